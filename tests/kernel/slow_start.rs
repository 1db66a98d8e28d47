//! Slow start: a server that comes back, and the connections that a scheduler of least connections gives it.

use std::collections::BTreeSet;
use std::net::TcpStream;

use crate::lab::server::Tree;
use crate::lab::{Lab, vip4};
use crate::policy::ask;
use crate::scene::{SOON, WIRING, run_director, status, table, wait_for_table};

/// So many are connected to the first server when the second comes back.
const BEFORE: usize = 20;

fn config(lab: &Lab, slow_start: &str) -> String {
    lab.write_lone_director(&format!(
        r#"[kernel]
"net.ipv4.vs.expire_nodest_conn" = 1
[[virtual_service]]
address = "{}"
scheduler = "wlc"
forward = "nat"
{slow_start}
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2 }}
damping = {{ half_life = "0s" }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80" }}]
"#,
        vip4(80)
    ))
}

/// Weights of the two; none where one is missing.
fn weights(lab: &Lab) -> Option<(u32, u32)> {
    let weights: Vec<_> = table(lab).values().copied().collect();
    <[u32; 2]>::try_from(weights).ok().map(Into::into)
}

fn wait_for_weights(lab: &Lab, first: u32, second: u32) {
    wait_for_table(lab, "these weights", SOON, |t| {
        t.values().copied().collect::<Vec<_>>() == [first, second]
    });
}

/// A connection that stays, and who has it.
fn connect(lab: &Lab) -> (String, TcpStream) {
    let mut stream = lab.client.run(|| TcpStream::connect(vip4(80)).unwrap());
    stream.set_read_timeout(Some(SOON)).unwrap();
    (ask(&mut stream).unwrap(), stream)
}

/// The second server is down, and many are connected to the first.
fn one_is_down(lab: &Lab) -> Vec<TcpStream> {
    wait_for_table(lab, "both servers", SOON, |t| t.len() == 2);
    assert_eq!(weights(lab), Some((1, 1)), "not at the director's start");
    lab.server("web2").kill_nginx();
    wait_for_table(lab, "the first alone", SOON, |t| t.len() == 1);
    (0..BEFORE).map(|_| connect(lab).1).collect()
}

/// What IPVS counts as active at the second server.
fn active(lab: &Lab) -> usize {
    let listed = lab.ipvsadm("-Ln");
    let line = listed
        .lines()
        .find(|l| l.contains("10.77.1.12:80"))
        .unwrap();
    line.split_whitespace().nth(4).unwrap().parse().unwrap()
}

#[test]
fn least_connections_flood_a_server_that_comes_back_and_slow_start_does_not() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let director = run_director(&lab, &config(&lab, ""));
    let held = one_is_down(&lab);
    lab.server("web2").sh("nginx");
    wait_for_weights(&lab, 1, 1);
    let flood: Vec<_> = (0..10).map(|_| connect(&lab)).collect();
    assert!(
        flood.iter().all(|(server, _)| server == "web2"),
        "{flood:?}"
    );
    assert_eq!(active(&lab), 10);
    drop((held, flood, director));

    // A minute for each step: the first one is what is seen.
    let _director = run_director(&lab, &config(&lab, "slow_start = \"10m\""));
    let _held = one_is_down(&lab);
    lab.server("web2").sh("nginx");
    wait_for_weights(&lab, 20, 1);
    let next: Vec<_> = (0..10).map(|_| connect(&lab)).collect();
    let came = next.iter().filter(|(server, _)| server == "web2").count();
    assert!((1..=2).contains(&came), "a twentieth: {next:?}");
    assert_eq!(active(&lab), came);
    let shown = status(&lab).services[0].servers[1].reason.clone();
    assert_eq!(shown.as_deref(), Some("ramping, 5 % of its weight"));
    // The other falls: the whole weight at once.
    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "the second with its own weight", SOON, |t| {
        t.values().copied().collect::<Vec<_>>() == [1]
    });
}

#[test]
fn a_server_that_comes_back_gets_its_share_step_by_step() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let _director = run_director(&lab, &config(&lab, "slow_start = \"20s\""));
    let _held = one_is_down(&lab);
    lab.server("web2").sh("nginx");
    wait_for_weights(&lab, 20, 1);
    let (mut seen, mut held, mut least) = (BTreeSet::new(), Vec::new(), 0);
    // Each connection is one more, and the weights say how many of them the second may have.
    loop {
        let (first, second) = weights(&lab).unwrap();
        assert!(
            second >= least || second == 1,
            "{second} after {least}, beside {first}"
        );
        // Its end is two messages: who ramped loses the factor first.
        if (first, second) == (1, 1) {
            break;
        }
        assert_eq!(first, 20);
        if second < least {
            wait_for_weights(&lab, 1, 1);
            break;
        }
        least = second;
        seen.insert(second);
        if held.len() < 40 {
            held.push(connect(&lab));
        }
        let has = held.iter().filter(|(server, _)| server == "web2").count();
        let others = BEFORE + held.len() - has;
        // One more than its part, at the most, and what a step brought between the two looks.
        let after = weights(&lab).unwrap().1.max(second);
        let part = if after == 1 && second > 1 {
            others
        } else {
            others * usize::try_from(after).unwrap() / 20
        };
        assert!(has <= part + 1, "{has} of {part}, beside {others}");
    }
    assert!(seen.len() >= 5, "in steps: {seen:?}");
    assert!(seen.iter().all(|w| w % 2 == 1 && *w < 20), "{seen:?}");
}
