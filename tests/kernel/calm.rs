//! What is no failure of a server's: a director that was stopped, a clock that jumps.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::lab::process::Process;
use crate::lab::server::Tree;
use crate::lab::{Lab, show, vip4, wait_for};
use crate::scene::{SOON, WIRING, service, start_director, status, table, wait_for_table};

/// Rounds of checks that are waited for: each server is asked every 300 ms.
const ROUNDS: u64 = 10;

/// Probes so far, by what `/metrics` says.
fn probes(lab: &Lab) -> u64 {
    let text = lab.director.run(|| {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", 9711)).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let counts = text
        .lines()
        .filter_map(|l| l.strip_prefix("understudy_probes_total{"));
    counts
        .map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Waits for rounds of checks after what happened, and sees that nothing was made of it.
fn nothing_came_of_it(lab: &Lab, director: &Process<'_>, what: &str) {
    let wanted = probes(lab) + ROUNDS * 3;
    wait_for(what, SOON, Duration::from_millis(300), || {
        match probes(lab) {
            now if now >= wanted => Ok(()),
            now => Err(format!("{now} of {wanted} probes")),
        }
    });
    let log = director.log();
    assert!(
        !log.contains("real server failed its checks"),
        "{what}: {log}"
    );
    assert_eq!(table(lab).len(), 3, "{what}");
    let status = status(lab);
    let servers = &status.services.first().unwrap().servers;
    assert!(
        servers.iter().all(|s| s.health == "up"),
        "{what}: {servers:?}"
    );
    show(&format!("{what}: nothing was taken out"));
}

#[test]
fn a_stop_of_half_a_minute_and_a_clock_that_jumps_take_nobody_out() {
    let lab = Lab::new(
        WIRING,
        &[
            ("web1", Tree::Web),
            ("web2", Tree::Web),
            ("web3", Tree::Web),
        ],
    );
    let servers = [("web1", 1), ("web2", 1), ("web3", 1)];
    let director = start_director(&lab, &[service(&lab, vip4(80), "nat", &servers)]);
    wait_for_table(&lab, "all servers", SOON, |t| t.len() == 3);

    director.signal(Signal::SIGSTOP);
    // The stop is what is tested.
    std::thread::sleep(Duration::from_secs(30));
    director.signal(Signal::SIGCONT);
    nothing_came_of_it(&lab, &director, "a stop of 30 s");

    // Only where the clock is the test's own.
    if std::env::var_os("IN_GUEST").is_none() {
        return show("the clock of this machine is left alone");
    }
    let day = Duration::from_secs(24 * 3600).into();
    let now = || clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    clock_settime(ClockId::CLOCK_REALTIME, now() + day).unwrap();
    nothing_came_of_it(&lab, &director, "a day forward");
    clock_settime(ClockId::CLOCK_REALTIME, now() - day - day).unwrap();
    nothing_came_of_it(&lab, &director, "two days back");
    clock_settime(ClockId::CLOCK_REALTIME, now() + day).unwrap();
}
