//! Slow start, in the core.

use super::*;
use crate::{
    director::Reload,
    model::{Order, OrderedPlace, Wish},
};

/// The weights 5, 1 and 1, and a minute from nothing to them.
fn slow() -> String {
    CONFIG.replacen(
        "forward = \"nat\"\n",
        "forward = \"nat\"\nslow_start = \"60s\"\n",
        1,
    )
}

fn world() -> World {
    let mut w = World::of(&slow(), Recall::Forgot("none".into()), Kernel::new());
    w.members(vec![]);
    w.all_pass(&[1, 2, 3]);
    w
}

fn weights(w: &World) -> Vec<(u8, u32)> {
    let dests = w.core.desired(service(80)).unwrap().service.dests;
    let last = |d: &DestKey| match d.addr {
        IpAddr::V4(a) => a.octets()[3],
        IpAddr::V6(_) => 0,
    };
    dests
        .iter()
        .map(|(d, a)| (last(d), a.weight.get()))
        .collect()
}

fn order(w: &mut World, n: u8, wish: Option<Wish>) -> Vec<Note> {
    let place = OrderedPlace {
        service: service(80),
        server: dest(n, 80),
    };
    let order = wish.map(|wish| Order::new(wish, "uid 0".to_owned(), WallMillis(0)));
    w.event(Event::Ordered(vec![place], order, WallMillis(0)))
}

#[test]
fn a_server_that_comes_back_gets_its_share_step_by_step() {
    let mut w = world();
    assert_eq!(weights(&w), [(1, 5), (2, 1), (3, 1)], "not at the start");
    w.dies(2);
    let notes = w.probe(2, Outcome::Pass);
    assert!(notes.is_empty());
    let notes = w.probe(2, Outcome::Pass);
    let ramps = Note::Ramps(service(80), dest(2, 80), Duration::from_secs(60));
    assert!(notes.contains(&ramps), "{notes:?}");
    let mut seen = Vec::new();
    for _ in 0..11 {
        seen.push(weights(&w));
        w.passes(6);
    }
    let steps = (0..10).map(|n| vec![(1, 100), (2, 2 * n + 1), (3, 20)]);
    let all: Vec<_> = steps.chain([vec![(1, 5), (2, 1), (3, 1)]]).collect();
    assert_eq!(seen, all);
    assert_eq!(w.core.next_deadline(at(w.now)), None);
}

#[test]
fn the_core_says_when_the_next_step_is_due_and_status_how_far_it_is() {
    let mut w = world();
    w.dies(2);
    w.now += 100;
    w.all_pass(&[2]);
    let begun = w.now;
    let due = w.core.next_deadline(at(w.now)).unwrap();
    assert_eq!(due.since(at(begun)).as_secs(), 6);
    w.passes(13);
    let servers = w.core.status(at(w.now)).services[0].servers.clone();
    let reason = servers[1].reason.clone();
    assert_eq!(reason.as_deref(), Some("ramping, 25 % of its weight"));
    assert_eq!(servers[0].reason, None);
}

#[test]
fn where_nobody_else_serves_nobody_waits() {
    let mut w = world();
    for n in [1, 2, 3] {
        w.dies(n);
    }
    w.all_pass(&[2]);
    assert_eq!(weights(&w), [(2, 1)]);
    w.all_pass(&[3]);
    assert_eq!(weights(&w), [(2, 20), (3, 1)]);
    // The only one at its whole weight falls.
    w.dies(2);
    assert_eq!(weights(&w), [(3, 1)]);
    w.passes(1);
    assert_eq!(weights(&w), [(3, 1)]);
}

#[test]
fn who_is_let_in_by_an_operator_ramps_and_who_has_an_ordered_weight_does_not() {
    let mut w = world();
    order(&mut w, 2, Some(Wish::Disabled));
    order(&mut w, 2, None);
    assert_eq!(weights(&w), [(1, 100), (2, 1), (3, 20)]);
    order(&mut w, 2, Some(Wish::Weight(Weight::of(7))));
    assert_eq!(weights(&w), [(1, 5), (2, 7), (3, 1)]);
    order(&mut w, 2, Some(Wish::Drained));
    assert_eq!(weights(&w), [(1, 5), (2, 0), (3, 1)]);
    order(&mut w, 2, None);
    assert_eq!(weights(&w), [(1, 100), (2, 1), (3, 20)]);
}

#[test]
fn a_stand_in_ramps_and_so_does_who_a_reload_adds_but_no_new_service() {
    let mut w = world();
    w.dies(2);
    w.members(vec![member("r1", 2, 9, Want::Attach)]);
    w.all_pass(&[9]);
    assert_eq!(weights(&w), [(1, 100), (3, 20), (9, 1)]);

    let mut w = world();
    let reload = |w: &mut World, text: &str| {
        let config = config::director::parse(Path::new("d.toml"), text).unwrap();
        let found = Kernel::new();
        let config = Arc::new(config);
        w.event(Event::Reload(Box::new(Reload { config, found })));
    };
    let third = ", { address = \"10.0.0.3:80\" }]";
    let fourth = ", { address = \"10.0.0.3:80\" }, { address = \"10.0.0.4:80\" }]";
    reload(&mut w, &slow().replacen(third, fourth, 1));
    w.all_pass(&[4]);
    assert_eq!(weights(&w), [(1, 100), (2, 20), (3, 20), (4, 1)]);
    reload(&mut w, &slow().replacen("192.0.2.1:80", "192.0.2.1:81", 1));
    w.all_pass(&[1, 2, 3]);
    let want = w.core.desired(service(81)).unwrap();
    let new: Vec<_> = want
        .service
        .dests
        .values()
        .map(|a| a.weight.get())
        .collect();
    assert_eq!(new, [5, 1, 1]);
}

/// Whoever is checked otherwise keeps its place: its own weight, and how far it has come.
#[test]
fn a_reload_of_the_checks_in_the_middle_changes_no_weight() {
    let mut w = world();
    w.dies(2);
    w.all_pass(&[2]);
    w.passes(7);
    let before = weights(&w);
    assert_eq!(before, [(1, 100), (2, 3), (3, 20)]);
    let other = slow().replacen("rise = 2", "rise = 3", 1);
    let config = config::director::parse(Path::new("d.toml"), &other).unwrap();
    let (config, found) = (Arc::new(config), Kernel::new());
    w.event(Event::Reload(Box::new(Reload { config, found })));
    assert_eq!(weights(&w), before);
    w.all_pass(&[1, 2, 3]);
    assert_eq!(weights(&w), before);
    w.passes(60);
    assert_eq!(weights(&w), [(1, 5), (2, 1), (3, 1)]);
}

#[test]
fn a_restart_in_the_middle_takes_the_factor_away() {
    let found = [
        (dest(1, 80), attrs(100)),
        (dest(2, 80), attrs(3)),
        (dest(3, 80), attrs(20)),
    ];
    let kernel = Kernel::from([(service(80), found.into())]);
    let w = World::of(&slow(), Recall::Forgot("none".into()), kernel.clone());
    assert_eq!(weights(&w), [(1, 5), (2, 1), (3, 1)]);
    // Of a service without slow start they are as somebody made them.
    let w = World::of(CONFIG, Recall::Forgot("none".into()), kernel);
    assert_eq!(weights(&w), [(1, 100), (2, 3), (3, 20)]);
}

#[derive(Clone, Debug)]
enum Op {
    Probe(u8, bool),
    Order(u8, u8),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1u8..4, any::<bool>()).prop_map(|(n, up)| Op::Probe(n, up)),
        1 => (1u8..4, 0u8..4).prop_map(|(n, what)| Op::Order(n, what)),
        2 => (1u64..30).prop_map(Op::Wait),
    ]
}

fn apply(w: &mut World, op: &Op) {
    match *op {
        Op::Probe(n, true) => drop(w.probe(n, Outcome::Pass)),
        Op::Probe(n, false) => drop(w.probe(n, FAIL)),
        Op::Order(n, what) => {
            let wishes = [
                None,
                Some(Wish::Disabled),
                Some(Wish::Weight(Weight::of(9))),
            ];
            let wish = wishes.get(usize::from(what)).cloned();
            drop(order(
                w,
                n,
                wish.unwrap_or(Some(Wish::Weight(Weight::of(0)))),
            ));
        }
        Op::Wait(seconds) => drop(w.passes(seconds)),
    }
}

proptest! {
    /// Beside a core without slow start: the same servers are in, whoever gets connections there gets some here,
    /// somebody always has a whole weight, and in the end the weights are the same.
    #[test]
    fn slow_start_changes_weights_alone_and_for_its_time(ops in prop::collection::vec(op(), 0..60)) {
        let of = |text: &str| {
            let mut w = World::of(text, Recall::Forgot("none".into()), Kernel::new());
            w.members(vec![]);
            w
        };
        let (mut slow, mut plain) = (of(&slow()), of(CONFIG));
        for op in &ops {
            apply(&mut slow, op);
            apply(&mut plain, op);
            let (has, wants) = (weights(&slow), weights(&plain));
            let takes = |all: &[(u8, u32)]| all.iter().map(|(n, w)| (*n, *w > 0)).collect::<Vec<_>>();
            prop_assert_eq!(takes(&has), takes(&wants), "{:?} {:?}", has, wants);
            let live = |w: &World| {
                let config = Arc::clone(w.core.config());
                w.core.weights(service(80), &config.services[&service(80)])
            };
            prop_assert_eq!(live(&slow), live(&plain), "the quorum counts configured weights");
            // Nobody's part of the whole is more than by the configured weights, but for those who are whole.
            let factors: Vec<_> = has.iter().zip(&wants).filter(|(_, (_, w))| *w > 0).map(|((n, h), (_, w))| {
                let place = OrderedPlace { service: service(80), server: dest(*n, 80) };
                (slow.core.ramping(place), f64::from(*h) / f64::from(*w))
            }).collect();
            let whole: Vec<f64> = factors.iter().filter(|(r, _)| r.is_none()).map(|(_, f)| *f).collect();
            prop_assert!(factors.is_empty() || !whole.is_empty(), "{:?}", factors);
            prop_assert!(whole.windows(2).all(|w| w[0] == w[1]), "{:?}", factors);
            for (percent, factor) in &factors {
                let most = whole[0] * f64::from(percent.unwrap_or(100)) / 100.0;
                prop_assert!(*factor < most + 1.0, "{:?}", factors);
            }
        }
        for _ in 0..11 {
            slow.passes(6);
            plain.passes(6);
        }
        prop_assert_eq!(slow.kernel(), plain.kernel());
    }
}
