//! From a dead web server to its spare taking client traffic, with nobody at the keys.

use std::net::SocketAddr;

use understudy::model::inventory::ServerState;

use crate::lab::Lab;
use crate::lab::files::{NGINX_SCRIPT, ROLE};
use crate::lab::server::Tree;
use crate::lab::{show, vip4, vip6};
use crate::scene::{
    Clock, LIGHT_SCRIPT, REPLACED, SOON, Scene, Table, WIRING, Watch, real_server, service, table,
    two_webs, wait_for_page, wait_for_table,
};

#[test]
fn nginx_killed_nat_v4() {
    let mut clock = Clock::start("nginx_killed_nat_v4");
    let servers = [
        ("web1", Tree::Web),
        ("web2", Tree::Web),
        ("spare1", Tree::Base),
    ];
    let lab = Lab::new(WIRING, &servers);
    let vip = vip4(8080);
    let [web1, web2, spare1] = ["web1", "web2", "spare1"].map(|n| real_server(&lab, n, vip));
    let services = [service(&lab, vip, "nat", &[("web1", 5), ("web2", 3)])];
    let scene = Scene::start(&lab, &["web1", "web2"], NGINX_SCRIPT, &services);
    let witness = [
        "-A -t 192.0.2.1:8080 -s rr",
        "-a -t 192.0.2.1:8080 -r 10.77.1.11:80 -m -w 5",
        "-a -t 192.0.2.1:8080 -r 10.77.1.12:80 -m -w 3",
    ];
    assert_eq!(lab.ipvs_table(), witness);
    let watch = Watch::start(&lab);
    clock.lap("started");

    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "IPVS without the dead", SOON, |t| {
        !t.contains_key(&(vip, web1))
    });
    clock.lap("the dead server is out");
    wait_for_page(&lab, vip, "spare1", REPLACED);
    clock.lap("its spare answers");

    let witness = [
        "-A -t 192.0.2.1:8080 -s rr",
        "-a -t 192.0.2.1:8080 -r 10.77.1.12:80 -m -w 3",
        "-a -t 192.0.2.1:8080 -r 10.77.1.13:80 -m -w 5",
    ];
    assert_eq!(lab.ipvs_table(), witness);
    lab.server("spare1").sh("dpkg -s nginx-light");
    assert_nobody_acted(&scene, "spare1");

    apply_again_changes_nothing(&scene);
    let states = watch.stop();
    assert_stayed(&scene, &states, &[(vip, web2)]);
    assert_stayed_once_in(&scene, &states, (vip, spare1));
    clock.lap("looked at");
}

#[test]
fn blackholed_dr_v6() {
    let mut clock = Clock::start("blackholed_dr_v6");
    let servers = [
        ("web1", Tree::Web),
        ("web2", Tree::Web),
        ("spare1", Tree::Base),
    ];
    let lab = Lab::new(WIRING, &servers);
    let vip = vip6(80);
    let [web1, web2, spare1] = ["web1", "web2", "spare1"].map(|n| real_server(&lab, n, vip));
    let services = [service(&lab, vip, "dr", &[("web1", 4), ("web2", 6)])];
    let scene = Scene::start(&lab, &["web1", "web2"], NGINX_SCRIPT, &services);
    let witness = [
        "-A -t [2001:db8::1]:80 -s rr",
        "-a -t [2001:db8::1]:80 -r [fd77:1::11]:80 -g -w 4",
        "-a -t [2001:db8::1]:80 -r [fd77:1::12]:80 -g -w 6",
    ];
    assert_eq!(lab.ipvs_table(), witness);
    let watch = Watch::start(&lab);
    clock.lap("started");

    lab.server("web1").blackhole(None);
    wait_for_table(&lab, "IPVS without the dead", SOON, |t| {
        !t.contains_key(&(vip, web1))
    });
    clock.lap("the dead server is out");
    wait_for_page(&lab, vip, "spare1", REPLACED);
    clock.lap("its spare answers");

    let witness = [
        "-A -t [2001:db8::1]:80 -s rr",
        "-a -t [2001:db8::1]:80 -r [fd77:1::12]:80 -g -w 6",
        "-a -t [2001:db8::1]:80 -r [fd77:1::13]:80 -g -w 4",
    ];
    assert_eq!(lab.ipvs_table(), witness);
    lab.server("spare1").sh("dpkg -s nginx-light");
    assert_nobody_acted(&scene, "spare1");
    let states = watch.stop();
    assert_stayed(&scene, &states, &[(vip, web2)]);
    assert_stayed_once_in(&scene, &states, (vip, spare1));
    clock.lap("looked at");
}

/// NAT and a black hole, DR and a killed nginx; and a server with an address in each of two
/// services is one server: one spare takes all its places.
#[test]
fn a_server_of_both_families_has_one_spare() {
    let mut clock = Clock::start("a_server_of_both_families_has_one_spare");
    let lab = two_webs(&["spare1", "spare2"]);
    let (nat, dr) = (vip4(8080), vip6(80));
    let places = |name| [nat, dr].map(|vip| (vip, real_server(&lab, name, vip)));
    let services = [
        service(&lab, nat, "nat", &[("web1", 5), ("web2", 3)]),
        service(&lab, dr, "dr", &[("web1", 4), ("web2", 6)]),
    ];
    let scene = Scene::start(&lab, &["web1", "web2"], LIGHT_SCRIPT, &services);
    let watch = Watch::start(&lab);
    clock.lap("started");

    lab.server("web1").blackhole(None);
    wait_for_table(&lab, "IPVS with the first spare", REPLACED, |t| {
        let dead = places("web1").iter().any(|p| t.contains_key(p));
        !dead && places("spare1").iter().all(|p| t.contains_key(p))
    });
    for vip in [nat, dr] {
        wait_for_page(&lab, vip, "spare1", SOON);
    }
    let witness = [
        "-A -t 192.0.2.1:8080 -s rr",
        "-A -t [2001:db8::1]:80 -s rr",
        "-a -t 192.0.2.1:8080 -r 10.77.1.12:80 -m -w 3",
        "-a -t 192.0.2.1:8080 -r 10.77.1.13:80 -m -w 5",
        "-a -t [2001:db8::1]:80 -r [fd77:1::12]:80 -g -w 6",
        "-a -t [2001:db8::1]:80 -r [fd77:1::13]:80 -g -w 4",
    ];
    assert_eq!(lab.ipvs_table(), witness);
    assert_nobody_acted(&scene, "spare1");
    assert_eq!(scene.spare("spare2").state, ServerState::Ready);
    assert_stayed(&scene, &watch.stop(), &places("web2"));
    clock.lap("the first spare serves");

    let watch = Watch::start(&lab);
    lab.server("web2").kill_nginx();
    wait_for_table(&lab, "IPVS with both spares", REPLACED, |t| {
        let dead = places("web2").iter().any(|p| t.contains_key(p));
        !dead && places("spare2").iter().all(|p| t.contains_key(p))
    });
    for vip in [nat, dr] {
        wait_for_page(&lab, vip, "spare2", SOON);
    }
    let witness = [
        "-A -t 192.0.2.1:8080 -s rr",
        "-A -t [2001:db8::1]:80 -s rr",
        "-a -t 192.0.2.1:8080 -r 10.77.1.13:80 -m -w 5",
        "-a -t 192.0.2.1:8080 -r 10.77.1.14:80 -m -w 3",
        "-a -t [2001:db8::1]:80 -r [fd77:1::13]:80 -g -w 4",
        "-a -t [2001:db8::1]:80 -r [fd77:1::14]:80 -g -w 6",
    ];
    assert_eq!(lab.ipvs_table(), witness);
    scene.wait_for_success(2);
    assert_stayed(&scene, &watch.stop(), &places("spare1"));
    clock.lap("the second spare serves");
}

/// One replacement, and each step of it followed from the one before: first the director saw the
/// failure, then the provisioner made the spare ready, then the director put it into service.
fn assert_nobody_acted(scene: &Scene<'_>, spare: &str) {
    let all = scene.wait_for_success(1);
    let steps: Vec<_> = all[0].steps.iter().collect();
    let names: Vec<_> = steps.iter().map(|s| s.step.as_str()).collect();
    let wanted = ["fence", "os", "install:nginx", "configure:nginx", "test"];
    assert_eq!(names, wanted, "{steps:#?}");
    for step in &steps {
        let took = step.ended_ms.unwrap() - step.started_ms;
        show(&format!("{took:>6} ms  {spare}: {}", step.step));
        assert_eq!((step.server.as_str(), step.state.as_str()), (spare, "done"));
    }
    for pair in steps.windows(2) {
        let ended = pair[0].ended_ms.unwrap();
        assert!(ended <= pair[1].started_ms, "{steps:#?}");
    }
    let log = scene.director.log();
    let at = |what: &str| {
        log.find(what)
            .unwrap_or_else(|| panic!("no {what:?}:\n{log}"))
    };
    let order = [
        "real server failed its checks, it is taken out",
        "replacement of a failed server was requested",
        "stand-in was announced",
    ]
    .map(at);
    assert!(order.is_sorted(), "{log}");

    let view = scene.spare(spare);
    assert_eq!(view.state, ServerState::Serving, "{view:?}");
    assert_eq!(view.role.as_deref(), Some(ROLE), "{view:?}");
    assert_eq!(view.by_replacement, Some(all[0].id.to_string()));
}

fn apply_again_changes_nothing(scene: &Scene<'_>) {
    let (pool, kernel) = (scene.pool(), table(scene.lab));
    let said = scene.apply();
    let id = scene.replacements()[0].id.to_string();
    let about = |server: &str| {
        said.lines()
            .find(|l| l.contains(&format!("server {server} ")))
    };
    let (spare, dead) = (about("spare1"), about("web1"));
    for (line, word) in [(spare, "holds the role"), (dead, "held by spare1")] {
        let line = line.unwrap_or_else(|| panic!("{said}"));
        assert!(line.starts_with("held "), "{said}");
        assert!(line.contains(word) && line.contains(&id), "{said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.ends_with("nothing to change\n"), "{said}");
    assert_eq!(scene.pool(), pool);
    assert_eq!(table(scene.lab), kernel);
}

fn assert_stayed(scene: &Scene<'_>, states: &[Table], places: &[(SocketAddr, SocketAddr)]) {
    let log = scene.director.log();
    for (vip, server) in places {
        let stayed = states.iter().all(|t| t.contains_key(&(*vip, *server)));
        assert!(stayed, "{server} left {vip}: {states:#?}");
        let step = format!("\"remove {server} from tcp/{vip}\"");
        assert!(!log.contains(&step), "{log}");
    }
}

fn assert_stayed_once_in(scene: &Scene<'_>, states: &[Table], place: (SocketAddr, SocketAddr)) {
    let came = states.iter().position(|t| t.contains_key(&place)).unwrap();
    assert_stayed(scene, &states[came..], &[place]);
}
