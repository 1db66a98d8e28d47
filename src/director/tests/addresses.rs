//! What is wanted of virtual addresses.

use super::*;
use crate::model::{AddressPolicy, Addresses, Presence, WantedAddress};

const MANAGED: &str = "manage_addresses = true\naddresses = { interface = \"eth0\", quorum_lost = \"withdraw\", shutdown = \"withdraw\" }\n";

/// Both services at one address; `web` and `tls` are more lines of each.
fn world(web: &str, tls: &str) -> World {
    let text = CONFIG.replacen("[provisioner]", &format!("{MANAGED}[provisioner]"), 1);
    let text = text.replacen(
        "scheduler = \"wlc\"",
        &format!("scheduler = \"wlc\"\n{web}"),
        1,
    );
    let second = text.rfind("scheduler = \"wlc\"").unwrap();
    let (first, second) = text.split_at(second);
    let text = format!("{first}{tls}\n{second}");
    let mut w = World::of(
        &text,
        Recall::Forgot("there is no state file".into()),
        Kernel::new(),
    );
    w.members(vec![]);
    w
}

fn wanted(w: &World) -> WantedAddress {
    let Addresses { wanted, proto, .. } = w.core.addresses();
    assert_eq!((wanted.len(), proto), (1, Addresses::PROTO));
    let at = "192.0.2.1".parse().unwrap();
    wanted.get(&at).unwrap().clone()
}

fn presence(w: &World) -> Presence {
    wanted(w).presence
}

#[test]
fn an_address_goes_when_all_its_services_have_lost_their_quorum() {
    let mut w = world("quorum = 6", "");
    assert_eq!(presence(&w), Presence::AsFound, "nobody was asked yet");
    w.all_pass(&[3]);
    assert_eq!(presence(&w), Presence::AsFound, "not yet enough");
    w.all_pass(&[1, 2, 3]);
    assert_eq!(presence(&w), Presence::On);
    w.dies(1);
    assert_eq!(presence(&w), Presence::On, "the other service has one");
    w.dies(2);
    assert_eq!(presence(&w), Presence::Off);
    w.all_pass(&[2]);
    assert_eq!(presence(&w), Presence::On);
}

#[test]
fn it_is_kept_where_one_service_says_so_or_does_not_manage_it() {
    for (web, shutdown) in [
        (
            "addresses = { quorum_lost = \"keep\" }",
            AddressPolicy::Withdraw,
        ),
        ("manage_addresses = false", AddressPolicy::Keep),
    ] {
        let mut w = world(web, "");
        w.all_pass(&[1, 2, 3]);
        for n in [1, 2, 3] {
            w.dies(n);
        }
        assert_eq!(presence(&w), Presence::On, "{web}");
        assert_eq!(wanted(&w).shutdown, shutdown, "{web}");
    }
    let w = world("addresses = { shutdown = \"keep\" }", "");
    assert_eq!(wanted(&w).shutdown, AddressPolicy::Keep);
}

#[test]
fn a_sorry_server_keeps_it_as_long_as_it_serves() {
    let sorry = "quorum = 3\nsorry_server = [{ address = \"10.0.0.9:80\" }]\nsorry_check = { interval = \"1s\", rise = 2, fall = 2 }";
    let mut w = world(sorry, "");
    w.all_pass(&[1, 2, 3, 9]);
    w.dies(1);
    w.dies(2);
    assert!(!w.core.quorum(service(80)).is_held());
    assert_eq!(presence(&w), Presence::On);
    w.dies(9);
    assert_eq!(presence(&w), Presence::Off);
    w.all_pass(&[9]);
    assert_eq!(presence(&w), Presence::On);
}

#[test]
fn no_change_goes_untold() {
    let mut w = world("", "");
    let mut told = w.core.addresses();
    let mut changes = 0;
    for outcome in [Outcome::Pass, FAIL, Outcome::Pass, FAIL] {
        for (n, port, key) in [
            (1, 80, 80),
            (2, 80, 80),
            (3, 80, 80),
            (1, 8443, 443),
            (2, 8443, 443),
        ]
        .into_iter()
        .cycle()
        .take(10)
        {
            let event = probe(service(key), dest(n, port), outcome);
            let fx = w.core.handle(event, at(w.now));
            let now = w.core.addresses();
            assert!(fx.addresses || now == told);
            changes += u32::from(now != told);
            told = now;
        }
    }
    assert_eq!(changes, 4);
}

#[test]
fn the_address_of_a_service_that_leaves_stays_until_its_connections_are_gone() {
    let managed = CONFIG.replacen("[provisioner]", &format!("{MANAGED}[provisioner]"), 1);
    let managed = managed.replace("192.0.2.1:443", "192.0.2.2:443");
    let mut w = World::of(
        &managed,
        Recall::Forgot("there is no state file".into()),
        Kernel::new(),
    );
    let event = |w: &mut World, event| w.core.handle(event, at(1));
    event(
        &mut w,
        Event::Members(Members {
            version: 1,
            members: vec![],
            standbys: vec![],
        }),
    );
    let vip: IpAddr = "192.0.2.2".parse().unwrap();
    let key: ServiceKey = "tcp/192.0.2.2:443".parse().unwrap();
    for n in [1, 2] {
        event(&mut w, probe(key, dest(n, 8443), Outcome::Pass));
        event(&mut w, probe(key, dest(n, 8443), Outcome::Pass));
    }
    assert_eq!(w.core.addresses().wanted[&vip].presence, Presence::On);

    let (first, _) = managed.split_at(managed.rfind("[[virtual_service]]").unwrap());
    let config = config::director::parse(Path::new("d.toml"), first).unwrap();
    let reload = Reload {
        config: Arc::new(config),
        found: Kernel::new(),
    };
    assert!(event(&mut w, Event::Reload(Box::new(reload))).addresses);
    let now = w.core.addresses();
    assert!(!now.wanted.contains_key(&vip) && now.unmanaged.contains(&vip));
    let here = w.core.draining().into_iter().map(|place| (place, Some(1)));
    event(&mut w, Event::Counted(here.collect()));
    assert!(w.core.addresses().unmanaged.contains(&vip));
    let gone = w.core.draining().into_iter().map(|place| (place, None));
    let fx = event(&mut w, Event::Counted(gone.collect()));
    assert!(fx.addresses && !w.core.addresses().unmanaged.contains(&vip));
}
