//! Too few servers, and who serves then.

use super::*;
use crate::{
    health::Quorum,
    model::{Order, Wish},
};

/// Of the weights 5, 1 and 1 of the first service it takes 3, 4 to regain it and less than 2 to lose it.
/// Server 9 is its sorry server, and a sorry server has no other check than this.
fn config() -> String {
    let lines = "quorum = 3\nhysteresis = 1\nsorry_server = [{ address = \"10.0.0.9:80\", weight = 2 }]\nsorry_check = { interval = \"1s\", rise = 2, fall = 2 }\n[[virtual_service]]";
    let mut text = CONFIG.to_owned();
    let second = text.rfind("[[virtual_service]]").unwrap();
    text.replace_range(second..second + "[[virtual_service]]".len(), lines);
    text
}

fn world(kernel: Kernel) -> World {
    let mut w = World::of(
        &config(),
        Recall::Forgot("there is no state file".into()),
        kernel,
    );
    w.members(vec![]);
    w
}

fn weights(w: &World) -> Vec<(u8, u32)> {
    let dests = w.core.desired(service(80)).unwrap().service.dests;
    let last = |d: &DestKey| {
        d.addr
            .to_string()
            .rsplit('.')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    dests
        .iter()
        .map(|(d, a)| (last(d), a.weight.get()))
        .collect()
}

#[test]
fn a_lost_quorum_gives_new_connections_to_the_sorry_server_and_takes_them_back() {
    let mut w = world(Kernel::new());
    w.all_pass(&[1, 2, 3, 9]);
    assert_eq!(weights(&w), [(1, 5), (2, 1), (3, 1)], "nobody is sorry");
    let want = w.core.desired(service(80)).unwrap();
    assert!(
        !want.out.contains(&dest(9, 80)),
        "it leaves after the others have grown"
    );

    w.dies(1);
    assert_eq!(weights(&w), [(2, 1), (3, 1)], "hysteresis");
    let notes = w.dies(2);
    let lost = Note::QuorumLost(service(80), 1, 3, vec![dest(9, 80)]);
    assert!(notes.contains(&lost), "{notes:?}");
    assert_eq!(
        weights(&w),
        [(3, 0), (9, 2)],
        "who is left keeps its connections"
    );
    let status = w.core.status(at(w.now));
    let servers = &status.services[0].servers;
    let third = servers.iter().find(|s| s.server == "10.0.0.3:80").unwrap();
    assert!(
        third
            .reason
            .as_deref()
            .is_some_and(|why| why.contains("quorum is lost")),
        "{third:?}"
    );
    let quorum = status.services[0].quorum.clone().unwrap();
    assert!(!quorum.held && quorum.sorry && quorum.live == 1);
    assert!(
        status
            .warnings
            .iter()
            .any(|text| text.contains("has lost its quorum")),
        "{:?}",
        status.warnings
    );

    w.all_pass(&[2]);
    assert_eq!(weights(&w), [(2, 0), (3, 0), (9, 2)], "2 of 4");
    let notes: Vec<_> = [1, 1]
        .iter()
        .flat_map(|n| w.probe(*n, Outcome::Pass))
        .collect();
    assert!(
        notes.contains(&Note::QuorumHeld(service(80), 7)),
        "{notes:?}"
    );
    assert_eq!(weights(&w), [(1, 5), (2, 1), (3, 1)]);
}

#[test]
fn where_no_sorry_server_serves_whoever_is_left_goes_on() {
    let mut w = world(Kernel::new());
    w.all_pass(&[1, 2, 3]);
    w.dies(9);
    w.dies(1);
    let notes = w.dies(2);
    assert!(
        notes.contains(&Note::QuorumLost(service(80), 1, 3, vec![])),
        "{notes:?}"
    );
    assert_eq!(weights(&w), [(3, 1)]);
    w.all_pass(&[9]);
    assert_eq!(weights(&w), [(3, 0), (9, 2)], "as soon as it passes");
    w.dies(9);
    assert_eq!(weights(&w), [(3, 1)], "and no longer");
}

#[test]
fn a_restart_goes_on_where_it_was_and_loses_nothing_that_it_has_not_asked() {
    let [first, _] = [80, 443].map(service);
    let found = |dests: &[(u8, i64)]| -> Kernel {
        let dests = dests
            .iter()
            .map(|(n, weight)| (dest(*n, 80), attrs(*weight)));
        [(first, dests.collect())].into()
    };
    let mut w = world(found(&[(2, 0), (9, 2)]));
    assert_eq!(w.core.quorum(first), Quorum::Lost);
    assert_eq!(weights(&w), [(2, 0), (9, 2)], "as it was");
    w.all_pass(&[2, 3]);
    assert_eq!(weights(&w), [(2, 0), (3, 0), (9, 2)]);
    w.all_pass(&[1]);
    assert_eq!(weights(&w), [(1, 5), (2, 1), (3, 1)]);

    let mut w = world(found(&[(1, 5), (2, 1), (3, 1)]));
    assert_eq!(w.core.quorum(first), Quorum::Held);
    w.dies(2);
    assert_eq!(
        w.core.quorum(first),
        Quorum::Held,
        "the first was not asked yet"
    );
    w.dies(1);
    w.dies(3);
    assert_eq!(w.core.quorum(first), Quorum::Lost);
}

#[test]
fn a_sorry_server_that_takes_nobody_is_none() {
    let mut w = world(Kernel::new());
    w.all_pass(&[1, 2, 3, 9]);
    for n in [1, 2] {
        w.dies(n);
    }
    assert_eq!(weights(&w), [(3, 0), (9, 2)]);
    let places = w.core.places_of(Some((ip(9), None)), None);
    let order = |wish| Order::new(wish, "uid 0".to_owned(), WallMillis(0));
    for (wish, expected) in [
        (Wish::Weight(Weight::QUIESCED), vec![(3, 1)]),
        (Wish::Drained, vec![(3, 1)]),
        (Wish::Disabled, vec![(3, 1)]),
    ] {
        w.event(Event::Ordered(
            places.clone(),
            Some(order(wish)),
            WallMillis(0),
        ));
        assert_eq!(weights(&w), expected, "{wish}");
    }
    w.event(Event::Ordered(places, None, WallMillis(0)));
    assert_eq!(weights(&w), [(3, 0), (9, 2)]);
}

#[test]
fn a_real_server_that_became_a_sorry_one_loses_no_quorum() {
    let kernel = [
        (dest(1, 80), attrs(5)),
        (dest(2, 80), attrs(1)),
        (dest(9, 80), attrs(1)),
    ];
    let w = world([(service(80), kernel.into())].into());
    assert_eq!(w.core.quorum(service(80)), Quorum::Held);
}

#[test]
fn a_sorry_server_is_not_replaced_and_no_failed_server_is_while_it_alone_is_up() {
    let mut w = world(Kernel::new());
    w.all_pass(&[1, 2, 3, 9]);
    w.dies(9);
    w.passes(600);
    assert_eq!(w.requests(), []);
    assert_eq!(w.core.incident_count(), 0);
    w.all_pass(&[9]);
    for n in [1, 2, 3] {
        w.dies(n);
    }
    w.passes(600);
    assert_eq!(w.requests(), [], "all real servers are down");
}

proptest! {
    /// Whatever happens, somebody serves as long as anybody is up.
    #[test]
    fn whoever_is_up_serves_or_a_sorry_server_does(
        probes in prop::collection::vec((prop::sample::select(vec![1_u8, 2, 3, 9]), any::<bool>()), 1..80)
    ) {
        let mut w = world(Kernel::new());
        for (n, passes) in probes {
            w.probe(n, if passes { Outcome::Pass } else { FAIL });
            let up = |n| w.core.verdict(service(80), dest(n, 80)).unwrap().is_up();
            let weights: BTreeMap<u8, u32> = weights(&w).into_iter().collect();
            let takes = |n: &u8| weights.get(n).is_some_and(|weight| *weight > 0);
            let real = [1, 2, 3];
            prop_assert_eq!(
                real.iter().any(|n| up(*n)) || (up(9) && !w.core.quorum(service(80)).is_held()),
                [1, 2, 3, 9].iter().any(takes)
            );
            // Never both, and nobody who is down.
            prop_assert!(!(takes(&9) && real.iter().any(takes)));
            prop_assert!(weights.keys().all(|n| up(*n)));
        }
    }
}
