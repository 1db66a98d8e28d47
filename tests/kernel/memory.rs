//! A director without its memory: what serves goes on serving, and `status` says so.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::kills::{Cluster, PATIENCE, Watch, new_lab, real_server};
use crate::lab::wait_for;

/// Checks, passes and attempts to reach the provisioner happen several times within this.
const A_WHILE: Duration = Duration::from_secs(3);

#[test]
fn a_spare_stays_in_service_without_the_directors_memory() {
    let lab = new_lab();
    let mut cluster = Cluster::start(&lab, "memory", Duration::ZERO);
    lab.server("web1").kill_nginx();
    let replacement = cluster.wait_for_stand_in();
    let spare = replacement.spare.unwrap().name;
    let [spare_at, web1_at, web2_at] =
        [spare.as_str(), "web1", "web2"].map(|n| real_server(&lab, n).to_string());
    let state = lab.director_state().join("state.json");
    let aside = lab.director_state().join("state.json.unreadable");

    let cases: [(Option<&str>, &str); 3] = [
        (None, "there is no state file"),
        (Some("\u{0}garbage { ]"), "the state file is damaged"),
        (
            Some(r#"{"version": 99, "stars": []}"#),
            "the state file is of version 99, this program knows up to 1",
        ),
    ];
    for (content, said) in cases {
        let watch = Watch::start(&lab, Duration::from_millis(4));
        cluster.director.kill_hard();
        cluster.provisioner.kill_hard();
        match content {
            None => fs::remove_file(&state).unwrap(),
            Some(text) => fs::write(&state, text).unwrap(),
        }
        cluster.director.restart();

        // Alone: it says what it does not know, and touches nothing that it does not know.
        let status = cluster.wait_for_status("verdicts without the provisioner", |status| {
            let servers: Vec<_> = status.services.iter().flat_map(|s| &s.servers).collect();
            let of = |at: &str| {
                servers
                    .iter()
                    .find(|s| s.server == at)
                    .map(|s| s.health.as_str())
            };
            let known = of(&web2_at) == Some("up") && of(&web1_at) == Some("down");
            let silent = status
                .warnings
                .iter()
                .any(|w| w.contains("provisioner does not answer"));
            known && silent
        });
        let unclaimed = status
            .services
            .iter()
            .flat_map(|s| &s.servers)
            .any(|s| s.server == spare_at && s.kind == "unclaimed" && s.weight == Some(1));
        assert!(unclaimed, "{status:#?}");
        sleep(A_WHILE);
        let text = cluster.status_text();
        let warning = format!("warning: {said}");
        assert!(text.contains(&warning), "{text}");
        assert!(text.contains("keep their place"), "{text}");
        // Not overwritten while it may be all that tells of stand-ins.
        match content {
            None => assert!(!state.exists()),
            Some(is) => assert_eq!(fs::read_to_string(&state).unwrap(), is),
        }

        cluster.provisioner.restart();
        let again = cluster.wait_for_stand_in();
        assert_eq!(again.id, replacement.id);
        let status = cluster.status().unwrap();
        let servers: Vec<_> = status.services.iter().flat_map(|s| &s.servers).collect();
        let kind = |at: &str| {
            servers
                .iter()
                .find(|s| s.server == at)
                .unwrap()
                .kind
                .as_str()
        };
        assert_eq!(
            (kind(&spare_at), kind(&web1_at)),
            ("stand-in", "configured")
        );
        wait_for("state file", PATIENCE, Duration::from_millis(50), || {
            let text = fs::read_to_string(&state).map_err(|e| e.to_string())?;
            if text.contains(replacement.id.as_str()) {
                Ok(())
            } else {
                Err(text)
            }
        });
        match content {
            None => assert!(!aside.exists()),
            Some(text) => {
                assert_eq!(fs::read_to_string(&aside).unwrap(), text);
                fs::remove_file(&aside).unwrap();
            }
        }
        sleep(A_WHILE / 3);
        let history = watch.stop();
        let expected = [web2_at.clone(), spare_at.clone()].into();
        assert_eq!(history, [expected], "{said}: the table changed");
        assert!(
            !cluster.status_text().contains("warning"),
            "{}",
            cluster.status_text()
        );
    }
}
