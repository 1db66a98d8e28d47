//! What others change in IPVS while a director runs: put right, or left and told.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use understudy::director::status::Status;

use crate::lab::files::Service;
use crate::lab::process::Process;
use crate::lab::server::Tree;
use crate::lab::traffic::Traffic;
use crate::lab::{Lab, vip4, wait_for};
use crate::scene::{
    SOON, WIRING, real_server, run_director, service, status, table, wait_for_page, wait_for_table,
};

/// The director's periodic pass.
const RESYNC: Duration = Duration::from_secs(4);
/// A pass of an emulated guest on a busy machine takes no longer.
const PASS: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(100);
const UNCHECKED: &str = "\n[virtual_service.check.none]\n";

/// Runs a director on these services, each with a policy of its own.
fn start<'a>(lab: &'a Lab, services: &[(Service, &str)]) -> Process<'a> {
    let plain: Vec<_> = services.iter().map(|(s, _)| s.clone()).collect();
    let path = lab.write_director(&plain, "1s");
    let text = std::fs::read_to_string(path).unwrap();
    let mut parts = text.split("scheduler = ");
    let head = parts.next().unwrap();
    let mut text = head.replace("[director]\n", "[director]\nresync = \"4s\"\n");
    for (part, (_, drift)) in parts.zip(services) {
        text.push_str(&format!("drift = \"{drift}\"\nscheduler = {part}"));
    }
    let config = lab.write("director.toml", &text);
    run_director(lab, &config)
}

/// What `/metrics` says.
fn metrics(lab: &Lab) -> String {
    let at: SocketAddr = "127.0.0.1:9711".parse().unwrap();
    let text = lab.director.run(|| {
        let mut stream = TcpStream::connect(at).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    text
}

/// What `/metrics` says of one series, or of all of a family; zero where it says nothing.
fn metric(lab: &Lab, series: &str) -> u64 {
    let text = metrics(lab);
    let lines = text
        .lines()
        .filter_map(|l| l.strip_prefix("understudy_")?.strip_prefix(series));
    let values = lines.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    values.sum()
}

fn drift(lab: &Lab, policy: &str, field: &str) -> u64 {
    let labels = format!("{{policy=\"{policy}\",field=\"{field}\"}}");
    metric(lab, &format!("drift_total{labels}"))
}

/// Waits until the director has made two more passes: whatever it does, it has done by then.
fn two_passes(lab: &Lab) {
    let passes = || metric(lab, "reconcile_passes_total");
    let before = passes();
    wait_for("two more passes", SOON, POLL, || {
        let now = passes();
        if now >= before + 2 { Ok(()) } else { Err(now) }
    });
}

fn wait_for_status(lab: &Lab, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
    wait_for(what, SOON, Duration::from_millis(500), || {
        let status = status(lab);
        if holds(&status) {
            Ok(status)
        } else {
            Err(format!("{status:#?}"))
        }
    })
}

#[test]
fn a_flushed_table_is_healed_in_one_pass_under_load() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let both: &[(&str, u32)] = &[("web1", 1), ("web2", 3)];
    let mut services = vec![(service(&lab, vip4(80), "nat", both), "repair")];
    for port in 1001..1021 {
        let mut plain = service(&lab, vip4(port), "nat", both);
        plain.check = UNCHECKED.to_owned();
        services.push((plain, "repair"));
    }
    let director = start(&lab, &services);
    let whole = wait_for_table(&lab, "the whole table", SOON, |t| t.len() == 42);
    let traffic = Traffic::start(&lab, vip4(80), 20, 100_000);
    wait_for_page(&lab, vip4(80), "web2", SOON);

    let applied = "reconcile_passes_total{result=\"applied\"}";
    let before = metric(&lab, applied);
    assert_eq!(drift(&lab, "repair", "service"), 0);
    // Right after a pass: a reading that the flush comes into sees a part of it only.
    two_passes(&lab);
    lab.ipvsadm("-C");
    let flushed = Instant::now();
    wait_for_table(&lab, "the table healed", RESYNC + PASS, |t| *t == whole);
    let took = flushed.elapsed();
    wait_for_page(&lab, vip4(80), "web1", SOON);
    two_passes(&lab);
    assert_eq!(
        metric(&lab, applied),
        before + 1,
        "passes that changed anything"
    );
    assert_eq!(drift(&lab, "repair", "service"), 21);
    assert_eq!(metric(&lab, "drift_standing"), 0);
    assert_eq!(table(&lab), whole);
    crate::lab::show(&format!("healed {took:?} after the flush"));

    let requests = traffic.stop();
    let late = requests.iter().rev().take(5);
    assert!(
        late.clone().all(|r| r.outcome.is_ok()),
        "{:?}",
        late.collect::<Vec<_>>()
    );
    let log = director.log();
    let told: Vec<_> = log
        .lines()
        .filter(|l| l.contains("changed by somebody else"))
        .collect();
    assert_eq!(told.len(), 17, "{told:#?}");
    let first = told[0];
    for word in [
        "put right",
        "tcp/192.0.2.1:80",
        "\"service\"",
        "\"absent\"",
        "\"present\"",
    ] {
        assert!(first.contains(word), "{word}: {first}");
    }
    assert!(told[16].contains("\"differences\":5"), "{}", told[16]);
}

#[test]
fn what_others_change_is_put_right_or_left_as_the_policy_says() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let both: &[(&str, u32)] = &[("web1", 1), ("web2", 3)];
    let [repair, alert, respect] = [80, 81, 82].map(vip4);
    let of = |vip, policy| (service(&lab, vip, "nat", both), policy);
    let foreign = [
        "-A -t 192.0.2.1:99 -s sh",
        "-a -t 192.0.2.1:99 -r 10.77.1.12:80 -m -w 4",
    ];
    foreign.iter().for_each(|rule| drop(lab.ipvsadm(rule)));
    let services = [
        of(repair, "repair"),
        of(alert, "alert"),
        of(respect, "respect"),
    ];
    let director = start(&lab, &services);
    wait_for_table(&lab, "all servers", SOON, |t| t.len() == 7);
    two_passes(&lab);
    let [web1, web2] = ["web1", "web2"].map(|n| real_server(&lab, n, repair));
    let stranger: SocketAddr = "10.77.1.99:80".parse().unwrap();

    // A weight: put right, left with a warning, left.
    for vip in [repair, alert, respect] {
        lab.ipvsadm(&format!("-e -t {vip} -r {web1} -m -w 7"));
    }
    two_passes(&lab);
    let weights = |server| {
        let t = table(&lab);
        [repair, alert, respect].map(|vip| t.get(&(vip, server)).copied())
    };
    assert_eq!(weights(web1), [Some(1), Some(7), Some(7)]);
    let counted = ["repair", "alert", "respect"].map(|p| drift(&lab, p, "weight"));
    assert_eq!(counted, [1, 1, 1]);
    assert_eq!(metric(&lab, "drift_standing"), 2);
    let shown = status(&lab);
    let shown_as: Vec<_> = shown.drift.iter().map(|d| d.policy.as_str()).collect();
    assert_eq!(shown_as, ["alert", "respect"]);
    let one = &shown.drift[0];
    let said = (
        one.server.as_deref(),
        one.wanted.as_str(),
        one.found.as_str(),
    );
    assert_eq!(said, (Some("10.77.1.11:80"), "1", "7"));
    let warned = |s: &Status, vip: SocketAddr| {
        let at = format!("tcp/{vip} was changed by somebody else");
        s.warnings.iter().any(|w| w.starts_with(&at))
    };
    assert!(
        warned(&shown, alert) && !warned(&shown, respect),
        "{shown:#?}"
    );

    // A destination more and one less.
    for vip in [repair, alert] {
        lab.ipvsadm(&format!("-a -t {vip} -r {stranger} -m -w 2"));
        lab.ipvsadm(&format!("-d -t {vip} -r {web2}"));
    }
    two_passes(&lab);
    assert_eq!(weights(stranger), [None, Some(2), None]);
    assert_eq!(weights(web2), [Some(3), None, Some(3)]);
    assert_eq!(drift(&lab, "repair", "destination"), 2);
    assert_eq!(drift(&lab, "alert", "destination"), 2);

    // Each difference was told once, however many passes saw it.
    let log = director.log();
    let told = |word: &str| log.lines().filter(|l| l.contains(word)).count();
    assert_eq!(told("it is put right"), 3);
    assert_eq!(told("it is left so and warned of"), 3);
    assert_eq!(told("\"changed by somebody else, it is left so\""), 1);

    // Put back by hand, it is gone from the status.
    lab.ipvsadm(&format!("-e -t {alert} -r {web1} -m -w 1"));
    lab.ipvsadm(&format!("-d -t {alert} -r {stranger}"));
    lab.ipvsadm(&format!("-a -t {alert} -r {web2} -m -w 3"));
    wait_for_status(&lab, "no more warning", |s| {
        !warned(s, alert) && s.drift.len() == 1
    });

    // A failed server is taken out of all, whoever set its weight last.
    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "web1 out of all services", SOON, |t| {
        [repair, alert, respect]
            .iter()
            .all(|v| !t.contains_key(&(*v, web1)))
    });
    for vip in [repair, alert, respect] {
        wait_for_page(&lab, vip, "web2", SOON);
    }
    let mut rules = lab.ipvs_table();
    rules.retain(|r| r.contains(":99 "));
    assert_eq!(rules, foreign);
}
