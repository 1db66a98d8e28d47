//! A director that is told to end.

use super::*;
use crate::{
    director::stopping::connections_left,
    model::{DestState, ServiceState},
    reconcile::plan::Desired,
};

fn world(lines: &str) -> World {
    let head = "address = \"10.77.0.1\"\n";
    let text = CONFIG.replacen(head, &format!("{head}{lines}"), 1);
    let forgot = Recall::Forgot("there is no state file".into());
    let mut w = World::of(&text, forgot, full_kernel());
    w.members(vec![]);
    w
}

fn weights(w: &World) -> Option<Vec<u32>> {
    let dests = w.core.desired(service(80))?.service.dests;
    Some(dests.values().map(|a| a.weight.get()).collect())
}

#[test]
fn who_leaves_the_table_wants_of_it_what_it_wanted_before() {
    let mut w = world("");
    let before = w.kernel();
    w.core.handle(Event::Stop, at(1));
    w.core.handle(Event::Stop, at(1));
    assert_eq!(w.kernel(), before);
}

#[test]
fn who_drains_takes_new_connections_from_all_then_removes_its_services() {
    let mut w = world("on_stop = \"drain\"\n");
    let fx = w.core.handle(Event::Stop, at(1));
    assert_eq!(fx.dirty, [service(80), service(443)].into());
    assert_eq!(weights(&w).unwrap(), [0, 0, 0]);
    // One that fails meanwhile is taken out, and nobody is asked for another.
    w.dies(1);
    assert_eq!(weights(&w).unwrap(), [0, 0]);
    w.passes(60);
    assert!(w.core.outbox().requests.is_empty());

    w.core.handle(Event::Stop, at(100));
    assert_eq!(weights(&w), None);
    assert_eq!(w.core.desired(service(443)), None);
}

#[test]
fn who_clears_removes_its_services_at_once() {
    let mut w = world("on_stop = \"clear\"\n");
    w.core.handle(Event::Stop, at(1));
    assert_eq!(w.core.desired(service(443)), None);
    assert_eq!(weights(&w), None);
}

/// What is counted while a director drains: its own servers, and only when none of them gets new ones.
#[test]
fn connections_are_left_as_long_as_the_kernel_counts_some() {
    let w = world("on_stop = \"drain\"\n");
    let table = |weights: [i64; 3], active: u32| {
        let state = |(n, weight): (u8, i64)| {
            let state = DestState {
                attrs: attrs(weight),
                active_connections: active,
                inactive_connections: 9,
                persistent_connections: 9,
                counters: None,
            };
            (dest(n, 80), state)
        };
        let dests = [(1, weights[0]), (2, weights[1]), (9, weights[2])];
        let found = ServiceState {
            attrs: w.core.desired(service(80)).unwrap().service.attrs,
            stats: Default::default(),
            dests: dests.map(state).into(),
        };
        // And one that is somebody else's.
        crate::model::KernelTable::from([(service(80), found.clone()), (service(81), found)])
    };
    let mut w = world("on_stop = \"drain\"\n");
    w.core.handle(Event::Stop, at(1));
    let mut wanted = Desired::default();
    let part = w.core.desired(service(80)).unwrap();
    wanted.services.insert(service(80), Arc::new(part));
    assert_eq!(connections_left(&wanted, &table([0, 1, 5], 2)), None);
    // The third destination is somebody else's.
    assert_eq!(connections_left(&wanted, &table([0, 0, 5], 2)), Some(4));
    assert_eq!(connections_left(&wanted, &table([0, 0, 5], 0)), Some(0));
}
