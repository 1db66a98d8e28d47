//! What brings a check forward: without it these would take ten minutes.

use std::fs;
use std::time::Duration;

use crate::lab::server::Tree;
use crate::lab::{Lab, VIP4};
use crate::scene::{SOON, WIRING, run_director, wait_for_table};

/// Nothing here waits for an interval.
const CHECK: &str = "interval = \"600s\", fast_interval = \"200ms\", down_interval = \"600s\", timeout = \"5s\", rise = 1, fall = 2";

#[test]
fn a_neighbour_that_fails_and_a_file_that_is_written_count_at_once() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let weights = lab.dir().join("weights");
    fs::create_dir(&weights).unwrap();
    for server in ["10.77.1.11", "10.77.1.12"] {
        fs::write(weights.join(server), "up\n").unwrap();
    }
    let config = lab.write_lone_director(
        &format!(
            r#"[[virtual_service]]
address = "{VIP4}:80"
scheduler = "rr"
forward = "nat"
real_server = [{{ address = "10.77.1.11:80", weight = 5 }}, {{ address = "10.77.1.12:80", weight = 5 }}]
[[virtual_service.check]]
{}
tcp = {{}}
[[virtual_service.check]]
{}
file = {{ path = "{}/{{address}}" }}
"#,
            CHECK.replace(", ", "\n"),
            CHECK.replace(", ", "\n"),
            weights.display(),
        ),
    );
    let _director = run_director(&lab, &config);
    wait_for_table(&lab, "both servers", SOON, |t| t.len() == 2);

    let web2 = "10.77.1.12:80".parse().unwrap();
    fs::write(weights.join("10.77.1.12"), "drain\n").unwrap();
    wait_for_table(&lab, "a drained server", SOON, |t| {
        t.iter()
            .any(|((_, server), weight)| *server == web2 && *weight == 0)
    });
    // As editors write: another file in its place.
    fs::write(weights.join("new"), "up\n").unwrap();
    fs::rename(weights.join("new"), weights.join("10.77.1.12")).unwrap();
    wait_for_table(&lab, "its weight again", SOON, |t| {
        t.values().all(|w| *w == 5)
    });

    lab.server("web1").kill_nginx();
    lab.director.run(|| {
        let mut ip = std::process::Command::new("ip");
        ip.args([
            "neigh",
            "replace",
            "10.77.1.11",
            "dev",
            "server",
            "nud",
            "failed",
        ]);
        assert!(ip.status().unwrap().success());
    });
    wait_for_table(&lab, "one server", Duration::from_secs(60), |t| {
        t.len() == 1
    });
}
