//! What operators order: it stands before health, and beside it.

use super::*;
use crate::model::{Order, OrderedPlace, Removal, Wish};

fn order(wish: Wish) -> Order {
    Order {
        reason: Some("new kernel".to_owned()),
        ..Order::new(wish, "uid 0".to_owned(), WallMillis(5))
    }
}

impl World {
    /// Of server `n` in all services.
    fn order(&mut self, n: u8, wish: Option<Wish>) -> Vec<Note> {
        let places = self.core.places_of(Some((ip(n), None)), None);
        assert!(!places.is_empty());
        self.event(Event::Ordered(places, wish.map(order), WallMillis(5)))
    }

    fn weight(&self, n: u8) -> Option<u32> {
        let want = self.core.desired(service(80)).unwrap();
        want.service.dests.get(&dest(n, 80)).map(|a| a.weight.get())
    }
}

fn world() -> World {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w
}

#[test]
fn a_disabled_server_is_out_whatever_its_checks_say_until_it_is_enabled() {
    let mut w = world();
    let notes = w.order(1, Some(Wish::Disabled));
    assert_eq!(notes.len(), 2, "one for each of its services: {notes:?}");
    assert_eq!((w.in_service(80), w.in_service(443)), (vec![2, 3], vec![2]));
    let want = w.core.desired(service(80)).unwrap();
    assert!(want.out.contains(&dest(1, 80)), "at once");
    w.all_pass(&[1]);
    w.dies(1);
    w.all_pass(&[1]);
    assert_eq!(w.in_service(80), [2, 3]);
    let status = w.core.status(at(w.now));
    let server = &status.services[0].servers[0];
    assert_eq!(server.health, "up", "its health is another matter");
    assert_eq!(
        server.order.as_ref().unwrap().to_string(),
        "disabled by uid 0: new kernel"
    );
    w.order(1, None);
    assert_eq!(w.in_service(80), [1, 2, 3]);
    assert_eq!(w.weight(1), Some(5));
    assert_eq!(w.order(1, None), [], "nothing was ordered");
}

#[test]
fn a_drained_server_keeps_its_connections_and_leaves_when_it_fails() {
    let mut w = world();
    w.order(1, Some(Wish::Drained));
    assert_eq!(w.weight(1), Some(0));
    w.dies(1);
    assert_eq!(w.weight(1), None);
    w.all_pass(&[1]);
    assert_eq!(w.weight(1), Some(0), "it comes back as it was ordered");
    w.order(1, None);
    assert_eq!(w.weight(1), Some(5));
}

#[test]
fn an_ordered_weight_goes_before_the_configurations_and_lets_nobody_in() {
    let mut w = world();
    w.order(1, Some(Wish::Weight(Weight::of(40))));
    assert_eq!(w.weight(1), Some(40));
    let notes = w.dies(1);
    assert!(
        notes
            .iter()
            .any(|n| matches!(n, Note::WentDown(_, _, _, _, Removal::Remove)))
    );
    assert_eq!(w.weight(1), None);
}

#[test]
fn nobody_takes_the_place_of_a_server_that_was_put_aside() {
    for wish in [Wish::Disabled, Wish::Drained] {
        let mut w = world();
        w.order(1, Some(wish));
        w.dies(1);
        w.passes(600);
        assert_eq!(w.requests(), [], "{wish}");
        // Nor does it show that the others' failure is not the director's own.
        w.all_pass(&[1]);
        w.dies(2);
        w.dies(3);
        w.passes(600);
        assert_eq!(w.requests(), [], "{wish}");
        w.order(1, None);
        w.passes(600);
        assert_eq!(w.requests().len(), 1, "{wish}");
    }
}

#[test]
fn a_server_that_is_disabled_while_its_spare_is_made_needs_none() {
    let mut w = world();
    w.dies(1);
    w.passes(10);
    let key = w.requests()[0].clone();
    w.event(answer(&key, "r1", ReplacementState::Configuring, None));
    let notes = w.order(1, Some(Wish::Disabled));
    assert!(
        notes.iter().any(|n| matches!(n, Note::Recovered(_))),
        "{notes:?}"
    );
    assert_eq!(w.core.outbox().cancels.len(), 1);
}

#[test]
fn damping_does_not_count_on_a_server_that_was_put_aside() {
    let mut w = world();
    // It falls until it would be held out.
    for _ in 0..5 {
        w.dies(1);
        w.all_pass(&[1]);
    }
    assert_eq!(
        w.weight(1),
        None,
        "it is held out: the others can take its place"
    );
    for n in [2, 3] {
        w.order(n, Some(Wish::Disabled));
    }
    w.all_pass(&[1]);
    assert_eq!(w.in_service(80), [1], "nobody else is left");
}

#[test]
fn orders_outlive_the_process_and_end_with_their_server() {
    let mut w = world();
    w.order(1, Some(Wish::Disabled));
    let text = serde_json::to_vec(&w.core.memory()).unwrap();
    let recalled = recall(Some(&text), &"lb1".parse().unwrap());
    let w2 = World::new(recalled.clone(), w.kernel());
    assert_eq!(w2.in_service(80), [2, 3]);
    let without = CONFIG.replace("{ address = \"10.0.0.1:80\", weight = 5 }, ", "");
    let w3 = World::of(&without, recalled, w.kernel());
    let places: Vec<OrderedPlace> = w3.core.memory().orders.iter().map(|o| o.place).collect();
    assert_eq!(places.len(), 1, "in the other service alone: {places:?}");
}

proptest! {
    /// An operator's `disable` wins, whatever comes in whatever order; and it takes nobody else out.
    #[test]
    fn a_disabled_server_is_never_in(
        steps in prop::collection::vec((1_u8..=3, 0_u8..5), 1..60)
    ) {
        let mut w = World::fresh();
        let mut disabled = BTreeSet::new();
        for (n, step) in steps {
            match step {
                0 | 1 => drop(w.probe(n, Outcome::Pass)),
                2 => drop(w.probe(n, FAIL)),
                3 => {
                    w.order(n, Some(Wish::Disabled));
                    disabled.insert(n);
                }
                _ => {
                    w.order(n, None);
                    disabled.remove(&n);
                }
            }
            for n in 1..=3 {
                let up = w.core.verdict(service(80), dest(n, 80)).unwrap().is_up();
                prop_assert_eq!(w.weight(n).is_some(), up && !disabled.contains(&n));
            }
        }
    }
}

#[test]
fn a_drained_server_is_out_when_its_connections_are_gone() {
    let mut w = world();
    w.order(1, Some(Wish::Drained));
    assert_eq!(w.weight(1), Some(0));
    assert_eq!(w.counted(Some(3)), []);
    assert_eq!(w.weight(1), Some(0));
    let notes = w.counted(Some(0));
    assert!(
        matches!(notes[..], [Note::Drained(_, 0), Note::Drained(_, 0)]),
        "{notes:?}"
    );
    assert_eq!(w.weight(1), None);
    assert_eq!(w.core.draining(), BTreeSet::new());
    w.all_pass(&[1]);
    assert_eq!(w.weight(1), None, "until it is enabled");
    w.order(1, None);
    assert_eq!(w.weight(1), Some(5));
}

#[test]
fn a_drained_server_is_out_at_its_deadline_also_over_a_restart() {
    let mut w = world();
    let mut drained = order(Wish::Drained);
    drained.drain_ends = Some(WallMillis(60_005));
    let places = w.core.places_of(Some((ip(1), None)), None);
    w.event(Event::Ordered(places, Some(drained), WallMillis(5)));
    w.counted(Some(7));
    assert_eq!(w.core.next_deadline(at(w.now)), Some(at(60)));
    let file = serde_json::to_vec(&w.core.memory()).unwrap();
    // 20 s later by the wall, 3 s after the boot.
    let start = Start {
        now: at(3),
        wall: WallMillis(20_005),
        boot_id: "another".into(),
        recall: recall(Some(&file), &"lb1".parse().unwrap()),
        kernel: w.kernel(),
        dropped: BTreeMap::new(),
        marked: BTreeSet::new(),
    };
    let mut again = Core::new(Arc::clone(w.core.config()), start);
    assert_eq!(again.next_deadline(at(3)), Some(at(43)));
    again.handle(Event::Tick, at(43));
    let want = again.desired(service(80)).unwrap();
    assert!(!want.service.dests.contains_key(&dest(1, 80)));
    let notes = w.passes(60);
    assert!(
        matches!(notes[..], [Note::Drained(_, 7), Note::Drained(_, 7)]),
        "{notes:?}"
    );
}

#[test]
fn an_order_ends_when_its_time_is_over() {
    let mut w = world();
    let mut disabled = order(Wish::Disabled);
    disabled.ends = Some(WallMillis(1_005));
    let places = w.core.places_of(None, Some(service(443)));
    assert_eq!(places.len(), 2, "all servers of the service");
    w.event(Event::Ordered(places, Some(disabled), WallMillis(5)));
    assert_eq!(
        (w.in_service(80), w.in_service(443)),
        (vec![1, 2, 3], vec![])
    );
    let notes = w.passes(1);
    assert!(
        matches!(
            notes[..],
            [
                Note::OrderEnded(..),
                Note::OrderEnded(..),
                Note::QuorumHeld(..)
            ]
        ),
        "{notes:?}"
    );
    assert_eq!(w.in_service(443), [1, 2]);
}

#[test]
fn who_is_in_maintenance_is_asked_no_more_and_comes_back_when_it_passes() {
    let mut w = world();
    let asked = |w: &World| {
        let slots = w.core.targets().into_values().flatten();
        slots.filter(|slot| slot.dest.addr == ip(1)).count()
    };
    w.order(1, Some(Wish::Maintenance));
    assert_eq!(
        (w.weight(1), asked(&w)),
        (Some(0), 2),
        "as long as it has connections"
    );
    w.counted(Some(0));
    assert_eq!((w.weight(1), asked(&w)), (None, 0));
    w.passes(3600);
    assert_eq!(w.requests(), [], "nobody takes its place");
    w.order(1, None);
    assert_eq!((w.weight(1), asked(&w)), (None, 2));
    w.probe(1, Outcome::Pass);
    assert_eq!(w.weight(1), None, "as one that was out");
    w.probe(1, Outcome::Pass);
    assert_eq!(w.weight(1), Some(5));
}
