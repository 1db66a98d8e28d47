//! What a service does with servers that fail, and when too few of them are up.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::lab::server::Tree;
use crate::lab::{Lab, vip4};
use crate::scene::{SOON, WIRING, run_director, status, understudy, wait_for_page, wait_for_table};

/// Two servers of which it takes both, and one that is sorry.
#[test]
fn a_lost_quorum_hands_over_to_the_sorry_server_and_back() {
    let servers = [
        ("web1", Tree::Web),
        ("web2", Tree::Web),
        ("web3", Tree::Web),
    ];
    let lab = Lab::new(WIRING, &servers);
    let vip = vip4(80);
    let config = lab.write_lone_director(&format!(
        r#"[[virtual_service]]
address = "{vip}"
scheduler = "rr"
forward = "nat"
quorum = 2
check = {{ interval = "500ms", timeout = "2s", rise = 2, fall = 2 }}
damping = {{ half_life = "0s" }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80" }}]
sorry_server = [{{ address = "10.77.1.13:80", weight = 3 }}]
"#,
    ));
    let mut director = run_director(&lab, &config);
    let [web1, web2, sorry] =
        ["10.77.1.11:80", "10.77.1.12:80", "10.77.1.13:80"].map(|at| at.parse().unwrap());
    let weights = |wanted: &[(SocketAddr, u32)], what: &str| {
        wait_for_table(&lab, what, SOON, |table| {
            let found: Vec<_> = table.iter().map(|((_, at), w)| (*at, *w)).collect();
            found == wanted
        });
    };
    weights(&[(web1, 1), (web2, 1)], "both servers, and nobody sorry");

    lab.server("web1").kill_nginx();
    weights(
        &[(web2, 0), (sorry, 3)],
        "the sorry server, and who is left for its connections",
    );
    director.wait_for_log("sorry servers take the new connections", SOON);
    wait_for_page(&lab, vip, "web3", SOON);
    let quorum = status(&lab).services[0].quorum.clone().unwrap();
    assert!(
        !quorum.held && quorum.sorry && quorum.live == 1,
        "{quorum:?}"
    );
    let shown = understudy(&lab, &["status", "--socket", &lab.director_socket()]);
    assert!(shown.contains("QUORUM LOST"), "{shown}");

    // A director that starts goes on where it was.
    drop(director);
    let mut director = run_director(&lab, &config);
    weights(&[(web2, 0), (sorry, 3)], "the same after a restart");

    lab.server("web1").sh("nginx");
    weights(
        &[(web1, 1), (web2, 1)],
        "both servers again, and nobody sorry",
    );
    director.wait_for_log("quorum regained", SOON);
    wait_for_page(&lab, vip, "web1", SOON);
}

/// It answers 503 as long as the file is there, and goes on with who is connected.
pub(crate) const BUSY_SITE: &str = r#"server {
    listen 80 default_server;
    default_type text/plain;
    location = /health { if (-f /tmp/busy) { return 503; } return 200; }
    location / { return 200 "shop on $hostname\n"; }
}"#;

#[test]
fn a_busy_server_keeps_its_connections_and_one_that_is_gone_does_not() {
    let servers = [("web1", Tree::Web), ("web2", Tree::Web)];
    let lab = Lab::new(WIRING, &servers);
    let vip = vip4(80);
    let web1 = lab.server("web1");
    fs::write(web1.path("/etc/nginx/conf.d/shop.conf"), BUSY_SITE).unwrap();
    web1.sh("nginx -s reload");
    let config = lab.write_lone_director(
        &format!(
            r#"[kernel]
"net.ipv4.vs.expire_nodest_conn" = 1
[[virtual_service]]
address = "{vip}"
scheduler = "wrr"
forward = "nat"
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2, http.path = "/health", http.status = "200" }}
damping = {{ half_life = "0s" }}
real_server = [{{ address = "10.77.1.11:80", weight = 7 }}, {{ address = "10.77.1.12:80" }}]
"#,
        ),
    );
    let mut director = run_director(&lab, &config);
    let weight = |wanted, what: &str| wait_for_weight(&lab, wanted, what);
    weight(Some(7), "the first server");
    let mut client = lab.client.run(|| keep(vip, "web1"));

    fs::write(web1.path("/tmp/busy"), "").unwrap();
    weight(Some(0), "the busy server, quiesced");
    director.wait_for_log("it keeps its connections and gets no new ones", SOON);
    stays_and_others_go_on(&lab, &mut client);
    web1.kill_nginx();
    weight(None, "no server that is gone");
    assert_eq!(ask(&mut client), None, "its connections end with it");
}

/// The first of two servers has this weight, or is not there.
fn wait_for_weight(lab: &Lab, wanted: Option<u32>, what: &str) {
    let place = (vip4(80), "10.77.1.11:80".parse().unwrap());
    wait_for_table(lab, what, SOON, |table| {
        table.get(&place).copied() == wanted
    });
}

/// Who is connected to the first stays, and new connections go to the second.
fn stays_and_others_go_on(lab: &Lab, client: &mut TcpStream) {
    for _ in 0..4 {
        let answered = ask(client);
        assert_eq!(answered.as_deref(), Some("web1"), "who is connected stays");
        wait_for_page(lab, vip4(80), "web2", SOON);
    }
}

/// A connection through the virtual address to this server.
pub(crate) fn keep(vip: SocketAddr, server: &str) -> TcpStream {
    for _ in 0..50 {
        let mut stream = TcpStream::connect(vip).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        if ask(&mut stream).as_deref() == Some(server) {
            return stream;
        }
    }
    panic!("no connection came to {server}");
}

/// Who answers over an open connection; none where it is closed.
pub(crate) fn ask(stream: &mut TcpStream) -> Option<String> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
        .ok()?;
    let mut answer = Vec::new();
    let mut byte = [0];
    // The answer's only line of text.
    while !answer.ends_with(b"\n") || !String::from_utf8_lossy(&answer).contains("shop on ") {
        match stream.read(&mut byte) {
            Ok(1) => answer.push(byte[0]),
            Ok(_) | Err(_) => return None,
        }
    }
    let answer = String::from_utf8(answer).ok()?;
    Some(answer.rsplit("shop on ").next()?.trim().to_owned())
}

#[test]
fn an_operator_drains_disables_and_enables_a_server_over_a_restart() {
    let servers = [("web1", Tree::Web), ("web2", Tree::Web)];
    let lab = Lab::new(WIRING, &servers);
    let vip = vip4(80);
    let config = lab.write_lone_director(&format!(
        r#"[kernel]
"net.ipv4.vs.expire_nodest_conn" = 1
[[virtual_service]]
address = "{vip}"
scheduler = "wrr"
forward = "nat"
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2 }}
real_server = [{{ address = "10.77.1.11:80", weight = 7 }}, {{ address = "10.77.1.12:80" }}]
"#,
    ));
    let director = run_director(&lab, &config);
    let weight = |wanted, what: &str| wait_for_weight(&lab, wanted, what);
    let order = |words: &[&str]| {
        let socket = lab.director_socket();
        let all = [words, &["--socket", &socket]].concat();
        understudy(&lab, &all)
    };
    weight(Some(7), "the first server");
    let mut client = lab.client.run(|| keep(vip, "web1"));

    let said = order(&["drain", "10.77.1.11", "--reason", "new kernel"]);
    assert_eq!(
        said,
        "10.77.1.11:80 in tcp/192.0.2.1:80: drained: no new connections, out when those that it has are gone\n"
    );
    weight(Some(0), "the drained server");
    stays_and_others_go_on(&lab, &mut client);
    drop(director);
    let _director = run_director(&lab, &config);
    let shown = status(&lab).services[0].servers[0].order.clone().unwrap();
    assert_eq!(
        shown.to_string(),
        "drained by uid 0: new kernel",
        "after a restart"
    );
    weight(Some(0), "the server, still drained");
    assert_eq!(ask(&mut client).as_deref(), Some("web1"));

    order(&["weight", "10.77.1.11:80", "3"]);
    weight(Some(3), "the server with another weight");
    order(&["disable", "10.77.1.11", "--service", "tcp/192.0.2.1:80"]);
    weight(None, "no disabled server");
    assert_eq!(ask(&mut client), None, "its connections end");
    order(&["enable", "10.77.1.11"]);
    weight(Some(7), "the server as configured");
}

/// The first server passes; nobody knows of the second for four seconds, when it has been silent twice.
#[test]
fn a_new_server_is_in_at_once_where_that_is_wanted_and_leaves_when_it_fails() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    lab.server("web2").stop_nginx();
    let config = |initial: &str| {
        lab.write_lone_director(&format!(
            r#"[[virtual_service]]
address = "{}"
scheduler = "rr"
forward = "nat"
initial = "{initial}"
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2, http.path = "/" }}
real_server = [{{ address = "10.77.1.11" }}, {{ address = "10.77.1.12" }}]
"#,
            vip4(80)
        ))
    };
    let place = |at: &str| (vip4(80), at.parse::<SocketAddr>().unwrap());
    let (web1, web2) = (place("10.77.1.11:80"), place("10.77.1.12:80"));
    let director = run_director(&lab, &config("up"));
    wait_for_table(&lab, "both servers", SOON, |t| t.len() == 2);
    wait_for_table(&lab, "the one that answers", SOON, |t| {
        t.contains_key(&web1) && !t.contains_key(&web2)
    });
    drop(director);
    // Who is missing in a service that is there was taken out.
    let mut director = run_director(&lab, &config("up"));
    assert!(
        !wait_for_table(&lab, "the first", SOON, |t| t.contains_key(&web1)).contains_key(&web2)
    );
    director.kill_hard();
    lab.ipvsadm("-C");
    let mut director = run_director(&lab, &config("down"));
    wait_for_table(&lab, "the first", SOON, |t| t.contains_key(&web1));
    director.wait_for_log("failed its checks", SOON);
    let added = |l: &&str| l.contains("add 10.77.1.12:80");
    assert_eq!(
        director.log().lines().filter(added).count(),
        1,
        "once, while it was up"
    );
}

/// Two addresses and one list of servers: two services, of each server one check.
#[test]
fn services_that_share_their_servers_each_have_them_all_and_ask_them_once() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let (first, second) = (vip4(80), vip4(8080));
    let config = lab.write_lone_director(&format!(
        r#"[metrics]
listen = "127.0.0.1:9711"
[[virtual_service]]
address = ["{first}", "{second}"]
scheduler = "rr"
forward = "nat"
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2, http.path = "/" }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80" }}]
"#,
    ));
    let _director = run_director(&lab, &config);
    wait_for_table(&lab, "both servers in both services", SOON, |t| {
        t.len() == 4
    });
    for vip in [first, second] {
        wait_for_page(&lab, vip, "web1", SOON);
        wait_for_page(&lab, vip, "web2", SOON);
    }
    let metrics = crate::settings::metrics(&lab);
    let targets = metrics
        .lines()
        .find(|l| l.starts_with("understudy_probe_targets "));
    assert_eq!(targets, Some("understudy_probe_targets 2"), "{metrics}");
    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "the other one in both", SOON, |t| t.len() == 2);
}
