//! Another configuration while the director runs.

use super::*;
use crate::model::{Order, OrderedPlace, Reloaded, Wish};
use crate::reconcile::plan;

impl World {
    pub(super) fn reload(&mut self, text: &str) -> Vec<Note> {
        self.reload_onto(text, Kernel::new())
    }

    fn reload_onto(&mut self, text: &str, found: Kernel) -> Vec<Note> {
        let event = Event::Reload(Box::new(configured(text, found)));
        self.event(event)
    }

    fn weights(&self, port: u16) -> Vec<(u8, u32)> {
        let want = self.core.desired(service(port));
        let dests = want.into_iter().flat_map(|want| want.service.dests);
        let last = |d: DestKey| match d.addr {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(_) => 0,
        };
        dests.map(|(d, a)| (last(d), a.weight.get())).collect()
    }
}

fn configured(text: &str, found: Kernel) -> Reload {
    let config = config::director::parse(Path::new("d.toml"), text).unwrap();
    let config = Arc::new(config);
    Reload { config, found }
}

fn without(text: &str) -> String {
    assert!(CONFIG.contains(text), "{text}");
    CONFIG.replacen(text, "", 1)
}

fn place(n: u8) -> OrderedPlace {
    OrderedPlace {
        service: service(80),
        server: dest(n, 80),
    }
}

const THIRD: &str = r#", { address = "10.0.0.3:80" }"#;

fn world() -> World {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w
}

#[test]
fn what_a_reload_does_not_touch_keeps_verdict_weight_and_order() {
    let mut w = world();
    w.dies(2);
    let order = Order::new(
        Wish::Weight(Weight::of(3)),
        "root".to_owned(),
        WallMillis(0),
    );
    let places = w.core.places_of(Some((ip(1), None)), Some(service(80)));
    w.event(Event::Ordered(places, Some(order), WallMillis(0)));
    let since = w.core.verdict(service(80), dest(2, 80));
    let before = (w.weights(80), w.weights(443));
    assert_eq!(before.0, [(1, 3), (3, 1)]);
    w.now += 5;
    let notes = w.reload(&CONFIG.replace("replace_after = \"10s\"", "replace_after = \"20s\""));
    assert_eq!(notes[0], Note::Reloaded(Reloaded::default()));
    assert_eq!((w.weights(80), w.weights(443)), before);
    assert_eq!(w.core.verdict(service(80), dest(2, 80)), since);
    // Its failure goes on, under the new rule.
    w.passes(10);
    assert_eq!(w.requests().len(), 0);
    w.passes(10);
    assert_eq!(w.requests().len(), 1);
}

#[test]
fn a_server_that_is_dropped_drains_and_leaves_with_its_last_connection() {
    let mut w = world();
    w.reload(&without(THIRD));
    assert_eq!(w.weights(80), [(1, 5), (2, 1), (3, 0)]);
    assert!(
        w.core
            .targets()
            .into_values()
            .flatten()
            .all(|s| s.dest.addr != ip(3))
    );
    assert_eq!(w.counted(Some(4)), [], "they go on");
    let notes = w.counted(Some(0));
    assert_eq!(notes, [Note::Left(place(3), 0)]);
    assert_eq!(w.weights(80), [(1, 5), (2, 1)]);
}

#[test]
fn a_dropped_server_that_keeps_its_connections_leaves_at_the_deadline() {
    let mut w = world();
    let short = without(THIRD).replace("name = ", "drain_timeout = \"30s\"\nname = ");
    w.reload(&short);
    w.counted(Some(4));
    w.passes(26);
    assert_eq!(w.weights(80).len(), 3);
    assert_eq!(w.core.next_deadline(at(w.now)), Some(at(30)));
    let notes = w.passes(1);
    assert_eq!(notes, [Note::Left(place(3), 4)]);
    assert_eq!(w.weights(80).len(), 2);
}

#[test]
fn a_dropped_server_that_is_wanted_again_comes_back_when_it_passes() {
    let mut w = world();
    w.reload(&without(THIRD));
    w.reload(CONFIG);
    assert_eq!(w.weights(80), [(1, 5), (2, 1), (3, 0)]);
    w.all_pass(&[3]);
    assert_eq!(w.weights(80), [(1, 5), (2, 1), (3, 1)]);
    w.passes(1);
    assert_eq!(w.core.draining(), BTreeSet::new());
    assert_eq!(w.counted(Some(0)), []);
    assert_eq!(w.weights(80), [(1, 5), (2, 1), (3, 1)]);
}

#[test]
fn a_server_that_failed_is_dropped_at_once() {
    let mut w = world();
    w.dies(3);
    w.reload(&without(THIRD));
    assert_eq!(w.weights(80), [(1, 5), (2, 1)]);
    assert_eq!(w.core.draining(), BTreeSet::new());
}

#[test]
fn a_service_that_is_dropped_leaves_with_its_last_connection() {
    let mut w = world();
    let (one, _) = CONFIG.rsplit_once("[[virtual_service]]").unwrap();
    let notes = w.core.handle(
        Event::Reload(Box::new(configured(one, Kernel::new()))),
        at(w.now),
    );
    assert!(notes.dirty.contains(&service(443)));
    assert_eq!(w.weights(443), [(1, 0), (2, 0)]);
    assert!(w.core.services().any(|key| key == service(443)));
    let counts = w.core.draining().into_iter().map(|place| (place, Some(0)));
    let counts: Connections = counts.collect();
    w.core.handle(Event::Counted(counts.clone()), at(w.now));
    let fx = w.core.handle(Event::Counted(counts), at(w.now + 3));
    assert!(fx.dirty.contains(&service(443)));
    assert_eq!(w.core.desired(service(443)), None);
    assert!(w.core.services().all(|key| key != service(443)));
}

#[test]
fn a_service_that_is_wanted_again_while_it_drains_serves_at_once_also_after_a_restart() {
    let mut w = world();
    let (one, _) = CONFIG.rsplit_once("[[virtual_service]]").unwrap();
    let full = [(1, 7), (2, 1)];
    assert_eq!(w.weights(443), full);
    let drop = |w: &mut World| {
        let event = Event::Reload(Box::new(configured(one, Kernel::new())));
        w.core.handle(event, at(w.now));
        assert_eq!(w.weights(443), [(1, 0), (2, 0)]);
    };
    drop(&mut w);
    let drained = w.core.desired(service(443)).unwrap().service;
    w.reload_onto(CONFIG, [(service(443), drained.dests.clone())].into());
    assert_eq!(w.weights(443), full, "before any verdict");

    drop(&mut w);
    let file = serde_json::to_vec(&w.core.memory()).unwrap();
    let start = Start {
        now: at(w.now),
        wall: WallMillis(9000),
        boot_id: "boot".into(),
        recall: recall(Some(&file), &"lb1".parse().unwrap()),
        kernel: [(service(80), full_kernel()[&service(80)].clone())].into(),
        dropped: [(service(443), drained.clone())].into(),
        marked: BTreeSet::new(),
    };
    w.core = Core::new(Arc::clone(w.core.config()), start);
    assert_eq!(w.weights(443), [(1, 0), (2, 0)]);
    w.reload_onto(CONFIG, [(service(443), drained.dests)].into());
    assert_eq!(w.weights(443), full);
}

#[test]
fn who_leaves_goes_on_leaving_after_a_restart() {
    let mut w = world();
    let text = without(THIRD);
    let (one, _) = text.rsplit_once("[[virtual_service]]").unwrap();
    w.core.handle(
        Event::Reload(Box::new(configured(one, Kernel::new()))),
        at(w.now),
    );
    let wanted = |w: &World| [80, 443].map(|port| w.core.desired(service(port)));
    let before = wanted(&w);
    let file = serde_json::to_vec(&w.core.memory()).unwrap();
    let config = Arc::clone(w.core.config());
    let dropped = before[1].clone().unwrap().service;
    let start = |dropped| Start {
        now: at(w.now + 9),
        wall: WallMillis(9000),
        boot_id: "boot".into(),
        recall: recall(Some(&file), &"lb1".parse().unwrap()),
        kernel: [(service(80), before[0].clone().unwrap().service.dests)].into(),
        dropped,
        marked: BTreeSet::new(),
    };
    let again = Core::new(Arc::clone(&config), start([(service(443), dropped)].into()));
    assert_eq!([80, 443].map(|port| again.desired(service(port))), before);
    assert_eq!(again.draining(), w.core.draining());
    assert_eq!(
        again.next_deadline(at(9)),
        Some(at(300)),
        "its time goes on"
    );
}

#[test]
fn a_server_that_is_checked_otherwise_keeps_its_place_until_it_has_a_verdict() {
    let mut w = world();
    w.dies(2);
    let text = CONFIG.replacen("fall = 2", "fall = 3", 1);
    w.reload(&text);
    assert_eq!(w.weights(80), [(1, 5), (3, 1)], "who failed stays out");
    assert_eq!(w.weights(443), [(1, 7)], "the other service is not touched");
    assert!(
        w.core
            .verdict(service(80), dest(1, 80))
            .unwrap()
            .is_unknown()
    );
    for _ in 0..3 {
        w.probe(1, FAIL);
    }
    assert_eq!(w.weights(80), [(3, 1)]);
    w.all_pass(&[1, 2]);
    assert_eq!(w.weights(80), [(1, 5), (2, 1), (3, 1)]);
}

#[test]
fn a_service_that_others_made_is_adopted() {
    let mut w = world();
    let mut found = full_kernel();
    found.remove(&service(443));
    let more = format!(
        "{CONFIG}{}",
        CONFIG
            .split("[[virtual_service]]")
            .nth(1)
            .map(|s| format!(
                "[[virtual_service]]{}",
                s.replace("192.0.2.1:80", "192.0.2.1:81")
            ))
            .unwrap()
    );
    let found = found.remove(&service(80)).unwrap();
    w.reload_onto(&more, [(service(81), found)].into());
    assert_eq!(
        w.weights(81),
        [(1, 5), (2, 1), (3, 1)],
        "before any verdict"
    );
    let mut w = world();
    w.reload(&more);
    assert_eq!(w.weights(81), [], "who is new has to pass first");
}

#[test]
fn a_plan_says_what_a_reload_does_and_does_nothing() {
    let mut w = world();
    w.dies(2);
    w.passes(10);
    let text = without(r#", { address = "10.0.0.2:80" }"#);
    let text = text.replace(r#", { address = "10.0.0.2:8443" }"#, "");
    let reload = configured(&text.replace("weight = 5", "weight = 6"), Kernel::new());
    let key = w.requests().pop().unwrap();
    w.event(answer(&key, "r-1", ReplacementState::Configuring, None));
    let before = format!("{:?}", w.core);
    let plan = w.core.plan(reload.clone(), at(w.now));
    assert_eq!(format!("{:?}", w.core), before);
    assert_eq!(plan.reloaded.servers.removed, 2);
    assert_eq!(plan.reloaded.servers.changed, 1);
    let dests = |want: &Option<plan::Want>| want.as_ref().map(|w| w.service.clone());
    let now = w.core.desired(service(443));
    let tls = &plan.wants[&service(443)];
    assert_eq!(
        dests(tls),
        dests(&now),
        "it has lost a server that had failed"
    );
    assert_eq!(plan.called_off, [ip(2)]);
    w.event(Event::Reload(Box::new(reload)));
    let did = w.core.desired(service(80));
    assert_eq!(plan.wants[&service(80)], did);
}

#[test]
fn a_stand_in_whose_place_is_gone_drains_and_is_given_back_unless_it_was_written_down() {
    let with = |spare: &str| CONFIG.replace("10.0.0.1:", spare);
    let serving = || {
        let mut w = world();
        w.dies(1);
        w.members(vec![member("m1", 1, 9, Want::Attach)]);
        w.all_pass(&[9]);
        assert_eq!(w.weights(80), [(2, 1), (3, 1), (9, 5)]);
        w
    };
    let mut w = serving();
    let notes = w.reload(&with("10.0.0.4:"));
    assert!(
        notes.iter().any(|n| matches!(n, Note::GivenBack(_, false))),
        "{notes:?}"
    );
    assert_eq!(w.weights(80), [(2, 1), (3, 1), (9, 0)]);
    let id: ReplacementId = "m1".parse().unwrap();
    assert!(w.core.outbox().releases.contains(&id));
    w.members(vec![member("m1", 1, 9, Want::Withdraw)]);
    assert!(w.core.outbox().releases.is_empty());
    assert!(w.core.outbox().confirms.is_empty(), "it has connections");
    w.counted(Some(0));
    assert!(w.core.outbox().confirms.contains(&(id, Want::Withdraw)));
    assert_eq!(w.weights(80), [(2, 1), (3, 1)]);

    let mut w = serving();
    w.reload(&with("10.0.0.9:"));
    assert_eq!(
        w.weights(80),
        [(2, 1), (3, 1), (9, 5)],
        "it serves as before"
    );
    assert!(w.core.outbox().releases.is_empty());
    assert_eq!(w.core.draining(), BTreeSet::new());
}
