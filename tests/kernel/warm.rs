//! A spare that was made ready beforehand: a failure costs its admission, and nothing is done to it.

use std::{net::SocketAddr, time::Duration};

use jiff::Timestamp;
use understudy::model::inventory::ServerState;

use crate::lab::{Lab, show, vip4, wait_until};
use crate::scene::{
    LIGHT_SCRIPT, REPLACED, SOON, Scene, real_server, service, status, two_webs, wait_for_page,
    wait_for_table,
};

/// When the first line that contains all these words was written.
fn at(log: &str, words: &[&str]) -> Timestamp {
    let has = |line: &&str| words.iter().all(|word| line.contains(word));
    let line = log
        .lines()
        .find(has)
        .unwrap_or_else(|| panic!("{words:?} in\n{log}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["timestamp"].as_str().unwrap().parse().unwrap()
}

/// What both daemons said from the request until `spare` was in IPVS, and how long that took.
fn show_the_way(scene: &Scene<'_>, what: &str, spare: &str) {
    let log = scene.director.log();
    let decided = at(&log, &["replacement of a failed server was requested"]);
    let in_service = at(&log, &["kernel table changed", "add", spare]);
    let took = Duration::try_from(in_service.duration_since(decided)).unwrap();
    for (who, log) in [
        ("director", &log),
        ("provisioner", &scene.provisioner.log()),
    ] {
        for line in log.lines() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
                continue;
            };
            let Some(at) = line["timestamp"]
                .as_str()
                .and_then(|t| t.parse::<Timestamp>().ok())
            else {
                continue;
            };
            if at >= decided && at <= in_service {
                let ms = at.duration_since(decided).as_millis();
                show(&format!(
                    "{ms:>6} ms  {who}: {} {}",
                    line["message"], line["step"]
                ));
            }
        }
    }
    show(&format!(
        "from the request to IPVS, {what}: {} ms",
        took.as_millis()
    ));
}

fn start(lab: &Lab, vip: SocketAddr) -> Scene<'_> {
    let services = [service(lab, vip, "nat", &[("web1", 5), ("web2", 3)])];
    Scene::start(lab, &["web1", "web2"], LIGHT_SCRIPT, &services)
}

fn keep_one_warm(lab: &Lab, scene: &Scene<'_>) {
    let roles = std::fs::read_to_string(lab.dir().join("inventory/roles.toml")).unwrap();
    lab.write("inventory/roles.toml", &format!("{roles}keep_warm = 1\n"));
    scene.apply();
}

/// Whether a warm spare passes the director's checks.
fn is_ready(lab: &Lab, spare: &str) -> bool {
    let standbys = status(lab).standbys;
    standbys
        .iter()
        .any(|s| s.name == spare && s.state == "ready")
}

/// The script does next to nothing: what is left is what the product adds to it.
#[test]
fn a_cold_spare_costs_one_log_in_besides_its_scripts() {
    let lab = two_webs(&["spare1"]);
    let vip = vip4(80);
    let scene = start(&lab, vip);
    let logins = || {
        let log = lab.server("spare1").sshd_log();
        log.matches("Accepted publickey").count()
    };
    lab.server("web1").kill_nginx();
    wait_for_page(&lab, vip, "spare1", REPLACED);
    let own = real_server(&lab, "spare1", vip).to_string();
    show_the_way(&scene, "cold", &own);
    // The steps, and the service test, which begins where the last of them has ended.
    assert_eq!(logins(), 1);
}

#[test]
fn a_warm_spare_is_in_service_at_once() {
    let lab = two_webs(&["spare1", "spare2"]);
    let vip = vip4(80);
    let scene = start(&lab, vip);
    keep_one_warm(&lab, &scene);
    wait_until("a warm spare", REPLACED, || {
        scene.spare("spare1").state == ServerState::Standby
    });
    wait_until("the director's own word on it", SOON, || {
        is_ready(&lab, "spare1")
    });
    let own = |service| real_server(&lab, service, vip);
    let jobs = || lab.server("spare1").sh("ls /var/lib/understudy/jobs");
    let before = (jobs(), lab.server("spare1").sshd_log().lines().count());

    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "the spare", SOON, |t| {
        t.get(&(vip, own("spare1"))) == Some(&5)
    });
    wait_for_page(&lab, vip, "spare1", SOON);
    show_the_way(&scene, "warm", &own("spare1").to_string());
    scene.wait_for_success(1);
    let replacement = &scene.replacements()[0];
    assert_eq!(replacement.steps, [], "nothing was done to it");
    assert_eq!(
        (jobs(), lab.server("spare1").sshd_log().lines().count()),
        before
    );
    // The next one is made ready.
    wait_until("another warm spare", REPLACED, || {
        scene.spare("spare2").state == ServerState::Standby
    });
}

/// What the directors find of it reaches the provisioner before a failure needs it.
#[test]
fn a_warm_spare_that_fails_is_not_the_one_that_is_taken() {
    let lab = two_webs(&["spare1", "spare2"]);
    let vip = vip4(80);
    let scene = start(&lab, vip);
    keep_one_warm(&lab, &scene);
    wait_until("a warm spare", REPLACED, || is_ready(&lab, "spare1"));

    lab.server("spare1").kill_nginx();
    wait_until("the provisioner to know", SOON, || {
        let reason = scene.spare("spare1").reason;
        reason.is_some_and(|r| r.starts_with("fails the checks of lb1: tcp/"))
    });
    wait_until("another in its stead", REPLACED, || {
        is_ready(&lab, "spare2")
    });

    lab.server("web1").kill_nginx();
    wait_for_page(&lab, vip, "spare2", SOON);
    scene.wait_for_success(1);
    let replacement = &scene.replacements()[0];
    assert_eq!(replacement.steps, [], "nothing was done to it");
    assert_eq!(scene.spare("spare1").state, ServerState::Standby);
}
