//! What a service does when too few of its servers are up.

use std::fs;

use crate::lab::server::Tree;
use crate::lab::{DIRECTOR, Lab, vip4};
use crate::scene::{SOON, WIRING, status, understudy, wait_for_page, wait_for_table};

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
    let config = lab.write(
        "director.toml",
        &format!(
            r#"[director]
name = "lb1"
address = "{DIRECTOR}"
state_dir = "{}"
socket = "{}"
[[virtual_service]]
address = "{vip}"
scheduler = "rr"
forward = "nat"
quorum = 2
check = {{ interval = "500ms", timeout = "2s", rise = 2, fall = 2 }}
damping = {{ half_life = "0s" }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80" }}]
sorry_server = [{{ address = "10.77.1.13:80", weight = 3 }}]
"#,
            lab.director_state().display(),
            lab.director_socket(),
        ),
    );
    fs::create_dir_all(lab.director_state()).unwrap();
    let args = ["director", "--config", &config, "--log-format", "json"];
    let mut director = lab.understudy("director", &args, &[]);
    director.wait_for_log("director is ready", SOON);
    let [web1, web2, sorry] =
        ["10.77.1.11:80", "10.77.1.12:80", "10.77.1.13:80"].map(|at| at.parse().unwrap());
    let weights = |wanted: &[(std::net::SocketAddr, u32)], what: &str| {
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
    let mut director = lab.understudy("director", &args, &[]);
    director.wait_for_log("director is ready", SOON);
    weights(&[(web2, 0), (sorry, 3)], "the same after a restart");

    lab.server("web1").sh("nginx");
    weights(
        &[(web1, 1), (web2, 1)],
        "both servers again, and nobody sorry",
    );
    director.wait_for_log("quorum regained", SOON);
    wait_for_page(&lab, vip, "web1", SOON);
}
