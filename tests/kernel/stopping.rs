//! What a director leaves behind: nothing changed, or nothing of its own.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::process::Process;
use crate::lab::server::Tree;
use crate::lab::traffic::get;
use crate::lab::{Lab, vip4, wait_until};
use crate::policy::{ask, keep};
use crate::scene::{SOON, WIRING, run_director, table, wait_for_table};

/// A director of one service with two servers, beside a service that is somebody else's.
fn config(lab: &Lab, lines: &str) -> String {
    lab.write_lone_director(&format!(
        r#"{lines}
[[virtual_service]]
address = "{}"
scheduler = "rr"
forward = "nat"
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2 }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80" }}]
"#,
        vip4(80)
    ))
}

fn lab() -> Lab {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    lab.ipvsadm("-A -t 192.0.2.9:99 -s rr");
    lab.ipvsadm("-a -t 192.0.2.9:99 -r 10.77.1.11:99 -m -w 7");
    lab
}

/// Both servers in service, and the other's.
fn wait_for_service(lab: &Lab) {
    wait_for_table(lab, "both servers", SOON, |t| {
        t.values().copied().collect::<Vec<_>>() == [1, 1, 7]
    });
}

fn is_cleared(lab: &Lab) -> bool {
    table(lab).values().copied().collect::<Vec<_>>() == [7]
}

fn ends_well(director: &mut Process<'_>) {
    let status = director.wait(SOON);
    assert!(status.success(), "{status}:\n{}", director.log());
}

#[test]
fn a_director_that_drains_waits_for_its_clients_and_then_clears() {
    let lab = lab();
    let drain = config(&lab, "on_stop = \"drain\"\nstop_timeout = \"600s\"");
    let mut director = run_director(&lab, &drain);
    wait_for_service(&lab);
    let mut client = lab.client.run(|| keep(vip4(80), "web1"));

    director.signal(Signal::SIGTERM);
    director.wait_for_log("its servers get no new connections", SOON);
    wait_for_table(&lab, "nobody with new connections", SOON, |t| {
        t.values().copied().collect::<Vec<_>>() == [0, 0, 7]
    });
    lab.client.run(|| get(vip4(80))).unwrap_err();
    assert_eq!(ask(&mut client).as_deref(), Some("web1"), "it goes on");
    drop(client);
    director.wait_for_log("no connection is left", SOON);
    director.wait_for_log("services were removed from IPVS", SOON);
    ends_well(&mut director);
    assert!(is_cleared(&lab), "{:?}", table(&lab));

    // Another signal ends the wait, with whoever is connected.
    director.restart();
    wait_for_service(&lab);
    let _client = lab.client.run(|| keep(vip4(80), "web1"));
    director.signal(Signal::SIGTERM);
    director.wait_for_log("its servers get no new connections", SOON);
    director.signal(Signal::SIGTERM);
    let line = director.wait_for_log("the drain is over", SOON);
    assert!(line.contains("another signal came"), "{line}");
    ends_well(&mut director);
    assert!(is_cleared(&lab), "{:?}", table(&lab));

    // And so does its time.
    config(&lab, "on_stop = \"drain\"\nstop_timeout = \"1s\"");
    director.restart();
    wait_for_service(&lab);
    let _client = lab.client.run(|| keep(vip4(80), "web1"));
    director.signal(Signal::SIGTERM);
    let line = director.wait_for_log("the drain is over", SOON);
    assert!(line.contains("connections are left after 1 s"), "{line}");
    ends_well(&mut director);
    assert!(is_cleared(&lab), "{:?}", table(&lab));
}

#[test]
fn a_director_that_clears_removes_its_own_and_a_crash_or_an_interrupt_nothing() {
    let lab = lab();
    let clear = config(&lab, "on_stop = \"clear\"");
    let mut director = run_director(&lab, &clear);
    wait_for_service(&lab);
    director.kill_hard();
    wait_for_service(&lab);
    director.restart();
    director.wait_for_log("director is ready", SOON);
    director.signal(Signal::SIGINT);
    ends_well(&mut director);
    wait_for_service(&lab);

    director.restart();
    director.wait_for_log("director is ready", SOON);
    director.signal(Signal::SIGTERM);
    ends_well(&mut director);
    wait_until("an empty table", Duration::from_secs(1), || {
        is_cleared(&lab)
    });

    // What is the default: it stays.
    config(&lab, "");
    director.restart();
    wait_for_service(&lab);
    director.signal(Signal::SIGTERM);
    ends_well(&mut director);
    wait_for_service(&lab);
}
