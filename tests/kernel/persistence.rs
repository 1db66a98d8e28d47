//! What becomes of persistent clients when their server is quiesced, drained or removed: of the connections that they
//! have, and of the next.

use std::fs;
use std::time::Duration;

use crate::lab::server::{Server, Tree};
use crate::lab::traffic::get;
use crate::lab::{Lab, vip4, wait_for};
use crate::policy::{BUSY_SITE, ask, keep};
use crate::scene::{SOON, WIRING, run_director, table, understudy, wait_for_table};

const SETTING: &str = "/proc/sys/net/ipv4/vs/expire_quiescent_template";

fn config(lab: &Lab, lines: &str) -> String {
    lab.write_lone_director(&format!(
        r#"[kernel]
"net.ipv4.vs.expire_nodest_conn" = 1
[[virtual_service]]
address = "{}"
scheduler = "rr"
forward = "nat"
persistence_timeout = "600s"
{lines}
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2, http.path = "/health", http.status = "200" }}
damping = {{ half_life = "0s" }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80" }}]
"#,
        vip4(80)
    ))
}

fn lab() -> Lab {
    let servers = [("web1", Tree::Web), ("web2", Tree::Web)];
    let lab = Lab::new(WIRING, &servers);
    for server in lab.servers() {
        fs::write(server.path("/etc/nginx/conf.d/shop.conf"), BUSY_SITE).unwrap();
        server.sh("nginx -s reload");
    }
    lab
}

/// The server that the client is bound to, and the other one.
fn bound(lab: &Lab) -> [&Server; 2] {
    let mine = next(lab).unwrap();
    let other = if mine == "web1" { "web2" } else { "web1" };
    [lab.server(&mine), lab.server(other)]
}

/// Who answers the client's next connection.
fn next(lab: &Lab) -> Result<String, String> {
    let body = lab.client.run(|| get(vip4(80)))?;
    let server = body.strip_prefix("shop on ").map(str::to_owned);
    server.ok_or(body)
}

fn wait_for_next(lab: &Lab, server: &Server) {
    wait_for(
        "the next connection",
        SOON,
        Duration::from_millis(200),
        || match next(lab) {
            Ok(name) if name == server.name => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
}

/// The server has this weight; none where it is not there.
fn wait_for_weight(lab: &Lab, server: &Server, weight: Option<u32>) {
    let place = (
        vip4(80),
        format!("{}:80", server.address4()).parse().unwrap(),
    );
    wait_for_table(lab, &format!("{} at {weight:?}", server.name), SOON, |t| {
        t.get(&place).copied() == weight
    });
}

fn setting(lab: &Lab) -> String {
    lab.director.run(|| fs::read_to_string(SETTING).unwrap())
}

#[test]
fn persistent_clients_of_a_failed_server_are_kept_where_that_is_wanted() {
    let lab = lab();
    let config = config(&lab, "persistence_on_failure = \"keep\"");
    let _director = run_director(&lab, &config);
    assert_eq!(setting(&lab).trim(), "0");
    wait_for_table(&lab, "both servers", SOON, |t| t.len() == 2);
    let [mine, _] = bound(&lab);
    let mut client = lab.client.run(|| keep(vip4(80), &mine.name));

    fs::write(mine.path("/tmp/busy"), "").unwrap();
    wait_for_weight(&lab, mine, Some(0));
    for _ in 0..4 {
        assert_eq!(
            next(&lab).as_deref(),
            Ok(mine.name.as_str()),
            "its next too"
        );
    }
    assert_eq!(ask(&mut client).as_ref(), Some(&mine.name));

    // One that is gone is not removed either: its clients get nothing, and then it again.
    mine.kill_nginx();
    next(&lab).unwrap_err();
    fs::remove_file(mine.path("/tmp/busy")).unwrap();
    mine.sh("nginx");
    wait_for_weight(&lab, mine, Some(1));
    assert_eq!(table(&lab).len(), 2);
    assert_eq!(next(&lab).as_deref(), Ok(mine.name.as_str()));

    let socket = lab.director_socket();
    understudy(&lab, &["drain", &mine.address4(), "--socket", &socket]);
    wait_for_weight(&lab, mine, Some(0));
    assert_eq!(next(&lab).as_deref(), Ok(mine.name.as_str()), "drained");
}

#[test]
fn persistent_clients_of_a_failed_server_get_another_where_that_is_wanted() {
    let lab = lab();
    let config = config(&lab, "persistence_on_failure = \"cut\"");
    let _director = run_director(&lab, &config);
    assert_eq!(setting(&lab).trim(), "1");
    wait_for_table(&lab, "both servers", SOON, |t| t.len() == 2);

    // Quiesced: what it has goes on, the next goes elsewhere.
    let [mine, other] = bound(&lab);
    let mut client = lab.client.run(|| keep(vip4(80), &mine.name));
    fs::write(mine.path("/tmp/busy"), "").unwrap();
    wait_for_weight(&lab, mine, Some(0));
    wait_for_next(&lab, other);
    assert_eq!(
        ask(&mut client).as_ref(),
        Some(&mine.name),
        "it stays connected"
    );
    fs::remove_file(mine.path("/tmp/busy")).unwrap();
    wait_for_weight(&lab, mine, Some(1));
    assert_eq!(next(&lab).as_deref(), Ok(other.name.as_str()), "bound anew");

    // Drained by an operator: the same.
    let [mine, other] = [other, mine];
    let mut client = lab.client.run(|| keep(vip4(80), &mine.name));
    let order = |verb| {
        let socket = lab.director_socket();
        understudy(&lab, &[verb, &mine.address4(), "--socket", &socket])
    };
    order("drain");
    wait_for_weight(&lab, mine, Some(0));
    wait_for_next(&lab, other);
    assert_eq!(
        ask(&mut client).as_ref(),
        Some(&mine.name),
        "it stays connected"
    );
    order("enable");
    wait_for_weight(&lab, mine, Some(1));

    // Removed: what it has ends, the next goes elsewhere.
    let [mine, other] = [other, mine];
    let mut client = lab.client.run(|| keep(vip4(80), &mine.name));
    mine.kill_nginx();
    wait_for_weight(&lab, mine, None);
    wait_for_next(&lab, other);
    assert_eq!(ask(&mut client), None, "it is cut off");
}

/// A removed server's clients get another whatever the setting.
#[test]
fn a_removed_server_loses_its_persistent_clients_without_the_setting() {
    let lab = lab();
    let lines = "persistence_on_failure = \"cut\"\non_failure = { busy = \"remove\", certificate = \"remove\" }";
    let config = config(&lab, lines);
    let _director = run_director(&lab, &config);
    assert_eq!(setting(&lab).trim(), "0", "not written");
    wait_for_table(&lab, "both servers", SOON, |t| t.len() == 2);
    let [mine, other] = bound(&lab);
    let mut client = lab.client.run(|| keep(vip4(80), &mine.name));
    fs::write(mine.path("/tmp/busy"), "").unwrap();
    wait_for_weight(&lab, mine, None);
    wait_for_next(&lab, other);
    assert_eq!(ask(&mut client), None, "it is cut off");
}
