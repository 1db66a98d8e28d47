//! Another configuration under live traffic, and what holds a director back that may be wrong itself.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::process::Process;
use crate::lab::server::Tree;
use crate::lab::traffic::Traffic;
use crate::lab::{Lab, vip4, wait_for, wait_until};
use crate::policy::{ask, keep};
use crate::scene::{
    LIGHT_SCRIPT, REPLACED, SOON, Scene, WIRING, Watch, run_director, service, status, table,
    two_webs, understudy, wait_for_page, wait_for_table,
};

const SERVERS: [(&str, Tree); 3] = [
    ("web1", Tree::Web),
    ("web2", Tree::Web),
    ("web3", Tree::Web),
];

/// A director of one service on three servers.
const ONE: &str = r#"resync = "2s"
drain_timeout = "60s"
[kernel]
"net.ipv4.vs.expire_nodest_conn" = 1
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wrr"
forward = "nat"
check = { interval = "500ms", timeout = "2s", rise = 1, fall = 2 }
damping = { half_life = "0s" }
real_server = [
    { address = "10.77.1.11:80", weight = 4 },
    { address = "10.77.1.12:80" },
    { address = "10.77.1.13:80" },
]
"#;

/// The same, and ten things of it changed, none of them the first server.
fn ten_changes() -> String {
    let mut text = ONE
        .replace("resync = \"2s\"", "resync = \"3s\"\ndrift = \"alert\"")
        .replace("drain_timeout = \"60s\"", "drain_timeout = \"50s\"")
        .replace("half_life = \"0s\"", "half_life = \"1s\"")
        .replace(
            "scheduler = \"wrr\"",
            "scheduler = \"wlc\"\nquorum = 2\nhysteresis = 1",
        )
        .replace("\"10.77.1.12:80\" }", "\"10.77.1.12:80\", weight = 3 }")
        .replace("    { address = \"10.77.1.13:80\" },\n", "");
    for port in [81, 82] {
        text.push_str(&format!(
            r#"[[virtual_service]]
address = "192.0.2.1:{port}"
scheduler = "rr"
forward = "nat"
check = {{ interval = "500ms" }}
real_server = [{{ address = "10.77.1.13:80" }}]
"#
        ));
    }
    text
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn weights(lab: &Lab, port: u16) -> BTreeMap<SocketAddr, u32> {
    let of = table(lab)
        .into_iter()
        .filter(|((vip, _), _)| *vip == vip4(port));
    of.map(|((_, server), weight)| (server, weight)).collect()
}

fn wait_for_weights(lab: &Lab, wanted: &[(&str, u32)], what: &str) {
    let wanted: BTreeMap<_, _> = wanted.iter().map(|(server, w)| (at(server), *w)).collect();
    wait_for_table(lab, what, SOON, |_| weights(lab, 80) == wanted);
}

/// Writes another configuration where the director reads it.
fn write(lab: &Lab, text: &str) {
    lab.write_lone_director(text);
}

/// `understudy VERB`, whatever its end.
fn verb(lab: &Lab, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
    command
        .args(words)
        .args(["--socket", &lab.director_socket()]);
    lab.director
        .run(move || command.stdin(Stdio::null()).output().unwrap())
}

fn reload(lab: &Lab) -> String {
    understudy(lab, &["reload", "--socket", &lab.director_socket()])
}

fn start(lab: &Lab) -> Process<'_> {
    let director = run_director(lab, &lab.write_lone_director(ONE));
    let all = [
        ("10.77.1.11:80", 4),
        ("10.77.1.12:80", 1),
        ("10.77.1.13:80", 1),
    ];
    wait_for_weights(lab, &all, "all servers");
    director
}

#[test]
fn a_connection_survives_a_reload_a_restart_and_a_drain_until_its_deadline() {
    let lab = Lab::new(WIRING, &SERVERS);
    let director = start(&lab);
    let vip = vip4(80);
    let mut client = lab.client.run(|| keep(vip, "web1"));

    write(&lab, &ten_changes());
    let plan = understudy(&lab, &["plan", "--socket", &lab.director_socket()]);
    for line in [
        "virtual services: 2 added, 1 changed, 0 removed; servers: 2 added, 1 changed, 1 removed",
        "change service tcp/192.0.2.1:80 (wlc)",
        "new connections are refused for a moment",
        "1 active connection",
        "change 10.77.1.13:80 in tcp/192.0.2.1:80 (nat, weight 0), then it leaves",
        "add service tcp/192.0.2.1:81 (rr)",
        "nothing was done",
    ] {
        assert!(plan.contains(line), "no {line:?} in {plan}");
    }
    assert_eq!(weights(&lab, 80).len(), 3, "a plan does nothing");
    let said = reload(&lab);
    assert!(
        said.starts_with("reloaded: virtual services: 2 added"),
        "{said}"
    );
    assert_eq!(ask(&mut client).as_deref(), Some("web1"), "over the reload");
    let left = [("10.77.1.11:80", 4), ("10.77.1.12:80", 3)];
    wait_for_weights(&lab, &left, "the servers without the one that was dropped");
    wait_for_table(&lab, "the new services", SOON, |_| {
        weights(&lab, 81).len() == 1 && weights(&lab, 82).len() == 1
    });

    drop(director);
    let mut director = run_director(&lab, &lab.dir().join("director.toml").display().to_string());
    assert_eq!(
        ask(&mut client).as_deref(),
        Some("web1"),
        "over the restart"
    );

    let socket = lab.director_socket();
    let drain = [
        "drain",
        "10.77.1.11",
        "--timeout",
        "10s",
        "--socket",
        &socket,
    ];
    understudy(&lab, &drain);
    wait_for_weights(
        &lab,
        &[("10.77.1.11:80", 0), ("10.77.1.12:80", 3)],
        "the drained server",
    );
    assert_eq!(ask(&mut client).as_deref(), Some("web1"), "while it drains");
    wait_for_weights(
        &lab,
        &[("10.77.1.12:80", 3)],
        "no server whose time is over",
    );
    let line = director.wait_for_log("time for draining a server is over", SOON);
    assert!(line.contains("\"connections\":1"), "{line}");
    assert_eq!(ask(&mut client), None);
    let order = status(&lab).services[0].servers[0].order.clone().unwrap();
    assert!(order.drained);
}

#[test]
fn a_wrong_configuration_changes_nothing_and_says_what_is_wrong() {
    let lab = Lab::new(WIRING, &SERVERS);
    let mut director = start(&lab);
    let before = lab.ipvs_table();
    let twice = ten_changes()
        .replace("scheduler = \"rr\"", "scheduler = \"r r\"")
        .replace("10.77.1.12:80", "10.77.1.312:80");
    write(&lab, &twice);
    for name in ["reload", "plan"] {
        let ended = verb(&lab, &[name]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{name}: {said}");
        assert_eq!(
            said.matches("\"r r\" is no scheduler's name").count(),
            2,
            "{said}"
        );
        assert!(
            said.contains("director.toml:") && said.contains("10.77.1.312:80"),
            "{said}"
        );
    }
    director.signal(Signal::SIGHUP);
    // To look at it with `plan` is no reload.
    wait_for_refusals(&lab, 2);
    director.wait_for_log(
        "the configuration is as before, the new one was not taken",
        SOON,
    );
    assert_eq!(lab.ipvs_table(), before);

    write(
        &lab,
        &ONE.replace("[kernel]", "probe_marks = \"0x100-0x1ff\"\n[kernel]"),
    );
    let ended = verb(&lab, &["reload"]);
    assert_eq!(ended.status.code(), Some(2));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        said.contains("[director] probe_marks cannot change while"),
        "{said}"
    );
    wait_for_refusals(&lab, 3);

    write(&lab, &ONE.replace("weight = 4", "weight = 6"));
    director.signal(Signal::SIGHUP);
    let all = [
        ("10.77.1.11:80", 6),
        ("10.77.1.12:80", 1),
        ("10.77.1.13:80", 1),
    ];
    wait_for_weights(&lab, &all, "the new weight");
    director.wait_for_log("the new configuration is in force", SOON);
}

/// Waits until so many events say that a configuration was not taken.
fn wait_for_refusals(lab: &Lab, times: usize) {
    let socket = lab.director_socket();
    wait_for("reloads refused", SOON, Duration::from_millis(250), || {
        let events = understudy(lab, &["events", "-o", "json", "--socket", &socket]);
        let seen = events.matches("\"reload_refused\"").count();
        if seen == times { Ok(()) } else { Err(events) }
    });
}

/// Clients ask 500 times a second while the configuration changes again and again.
#[test]
fn a_reload_under_load_loses_no_request() {
    let lab = Lab::new(WIRING, &SERVERS);
    let _director = start(&lab);
    let traffic = Traffic::with_limit(&lab, vip4(80), 500, 5_000, SOON);
    wait_until("requests", SOON, || traffic.so_far().len() > 100);
    let (mut reloads, texts) = (0, [ten_changes(), ONE.to_owned()]);
    for text in texts.iter().cycle().take(6) {
        // Another scheduler is a moment without any (`ip_vs_edit_service`, net/netfilter/ipvs/ip_vs_ctl.c).
        write(&lab, &text.replace("wlc", "wrr"));
        reload(&lab);
        reloads += 1;
    }
    let during = traffic.so_far().len();
    let requests = traffic.stop();
    let lost: Vec<_> = requests.iter().filter(|r| r.outcome.is_err()).collect();
    let took = Duration::from_nanos(requests[requests.len() - 1].end - requests[0].start);
    crate::lab::show(&format!(
        "reload under load: {reloads} reloads, {during} requests until the last, {} in {took:?}",
        requests.len()
    ));
    assert!(during > 100, "{during}");
    assert!(
        lost.is_empty(),
        "{} of {}: {:?}",
        lost.len(),
        requests.len(),
        lost[0]
    );
}

/// The services that others make in a drain's way, and a table that somebody clears.
#[test]
fn a_cleared_table_in_a_drain_is_made_again_and_the_drain_ends() {
    let lab = Lab::new(WIRING, &SERVERS);
    let mut director = start(&lab);
    let mut client = lab.client.run(|| keep(vip4(80), "web1"));
    let socket = lab.director_socket();
    understudy(&lab, &["drain", "10.77.1.11", "--socket", &socket]);
    let drained = [
        ("10.77.1.11:80", 0),
        ("10.77.1.12:80", 1),
        ("10.77.1.13:80", 1),
    ];
    wait_for_weights(&lab, &drained, "the drained server");
    assert_eq!(ask(&mut client).as_deref(), Some("web1"));
    lab.ipvsadm("-C");
    let others = [("10.77.1.12:80", 1), ("10.77.1.13:80", 1)];
    wait_for_weights(
        &lab,
        &others,
        "the table without the one that has no connection left",
    );
    director.wait_for_log("server is drained: no connection is left", SOON);
    wait_for_page(&lab, vip4(80), "web2", SOON);
    understudy(&lab, &["enable", "10.77.1.11", "--socket", &socket]);
    wait_for_table(&lab, "all of them", SOON, |_| weights(&lab, 80).len() == 3);
}

/// Nobody leaves while `cut` holds, for longer than it takes to find a dead server.
fn nobody_leaves(lab: &Lab, director: &mut Process<'_>, sign: &str, servers: usize) {
    let watch = Watch::start(lab);
    director.wait_for_log(sign, SOON);
    // A silent server is out after less than two timeouts of 2 s; and the watch is to see all of a longer time.
    thread::sleep(Duration::from_secs(8));
    let states = watch.stop();
    for state in &states {
        assert_eq!(state.len(), servers, "{states:#?}");
    }
}

#[test]
fn a_director_whose_link_is_down_takes_nobody_out() {
    let lab = Lab::new(WIRING, &SERVERS);
    let mut director = start(&lab);
    lab.router.ip("link set dir-server down");
    nobody_leaves(&lab, &mut director, "the link of an interface is down", 3);
    let warnings = status(&lab).warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("link of server is down")),
        "{warnings:#?}"
    );
    lab.router.ip("link set dir-server up");
    director.wait_for_log("the link of an interface is up again", SOON);
    wait_until("no warning", SOON, || status(&lab).warnings.is_empty());
    assert_eq!(weights(&lab, 80).len(), 3);
    // And who fails then is found as ever.
    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "the others", SOON, |_| weights(&lab, 80).len() == 2);
}

/// The same with a provisioner and a spare: the failures are due to be replaced, and the link holds the requests.
#[test]
fn a_director_whose_link_is_down_asks_for_no_spare() {
    let lab = two_webs(&["spare1"]);
    let vip = vip4(80);
    let services = [service(&lab, vip, "nat", &[("web1", 1), ("web2", 1)])];
    let mut scene = Scene::start(&lab, &["web1", "web2"], LIGHT_SCRIPT, &services);
    lab.router.ip("link set dir-server down");
    scene
        .director
        .wait_for_log("the link of an interface is down", SOON);
    let held = || {
        let incidents = status(&lab).incidents;
        let by_link = incidents.iter().filter(|i| i.detail.contains("link of"));
        assert!(
            incidents.iter().all(|i| i.stage == "open"),
            "{incidents:#?}"
        );
        by_link.count() == 2
    };
    wait_until("both failures held by the link", SOON, held);
    assert_eq!(table(&lab).len(), 2);
    lab.router.ip("link set dir-server up");
    wait_until("no failure", SOON, || status(&lab).incidents.is_empty());
    assert_eq!(scene.replacements(), []);
    // And who fails then is replaced as ever.
    lab.server("web1").kill_nginx();
    wait_for_page(&lab, vip, "spare1", REPLACED);
    scene.wait_for_success(1);
}

/// The switch between the director and its servers fails: its own link stays up.
#[test]
fn a_director_that_no_witness_answers_takes_nobody_out_and_one_with_a_witness_does() {
    let lab = Lab::new(WIRING, &SERVERS);
    let witnesses = "[mass_failure]\nwitnesses = [\"10.77.1.254\"]\n[kernel]";
    let config = lab.write_lone_director(&ONE.replace("[kernel]", witnesses));
    let mut director = run_director(&lab, &config);
    wait_for_table(&lab, "all servers", SOON, |_| weights(&lab, 80).len() == 3);
    lab.router.ip("link set br-server down");
    nobody_leaves(&lab, &mut director, "no witness answers", 3);
    let warnings = status(&lab).warnings;
    assert!(
        warnings.iter().any(|w| w.contains("cut off")),
        "{warnings:#?}"
    );
    lab.router.ip("link set br-server up");
    director.wait_for_log("servers do not fail in masses any more", SOON);
    wait_until("no warning", SOON, || status(&lab).warnings.is_empty());
    assert_eq!(weights(&lab, 80).len(), 3);

    for name in ["web1", "web2"] {
        lab.server(name).kill_nginx();
    }
    wait_for_weights(
        &lab,
        &[("10.77.1.13:80", 1)],
        "the only server that is left",
    );
    assert!(
        fs::read_to_string(director.log_path())
            .unwrap()
            .contains("a witness answers")
    );
}

/// Somebody else made the table, and takes nobody out.
#[test]
fn a_shadow_changes_nothing_and_says_what_it_would() {
    let lab = Lab::new(WIRING, &SERVERS);
    lab.ipvsadm("-A -t 192.0.2.1:80 -s wrr");
    for (server, weight) in [
        ("10.77.1.11:80", 4),
        ("10.77.1.12:80", 1),
        ("10.77.1.13:80", 2),
    ] {
        lab.ipvsadm(&format!("-a -t 192.0.2.1:80 -r {server} -m -w {weight}"));
    }
    let before = lab.ipvs_table();
    let config = lab.write_lone_director(ONE);
    let args = [
        "director",
        "--shadow",
        "--config",
        &config,
        "--log-format",
        "json",
    ];
    let mut shadow = lab.understudy("director", &args, &[]);
    shadow.wait_for_log("director is ready", SOON);
    let line = shadow.wait_for_log("is not as this director would make it", SOON);
    assert!(
        line.contains("10.77.1.13:80") && line.contains("\"field\":\"weight\""),
        "{line}"
    );
    lab.server("web1").kill_nginx();
    shadow.wait_for_log("real server failed its checks", SOON);
    shadow.wait_for_log(
        "\"server\":\"10.77.1.11:80\",\"field\":\"destination\"",
        SOON,
    );
    let socket = format!("{}.shadow", lab.director_socket());
    let shown = understudy(&lab, &["status", "--socket", &socket]);
    assert!(
        shown.contains("this director would have tcp/192.0.2.1:80 otherwise"),
        "{shown}"
    );
    assert_eq!(lab.ipvs_table(), before);
    // The other one takes it out too.
    lab.ipvsadm("-d -t 192.0.2.1:80 -r 10.77.1.11:80");
    shadow.wait_for_log("is again as this director would make it", SOON);
    // A director beside it is not kept from starting.
    let _director = run_director(&lab, &config);
}
