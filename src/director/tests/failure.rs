//! What becomes of a failed server, by what its failure says of it.

use super::*;
use crate::model::{CertFault, EventKind, Removal};

const BUSY: Outcome = Outcome::Fail(FailReason::Status(503));
const EXPIRED: Outcome = Outcome::Fail(FailReason::Certificate(CertFault::Expired));

fn world(text: &str) -> World {
    let mut w = World::of(
        text,
        Recall::Forgot("there is no state file".into()),
        Kernel::new(),
    );
    w.members(vec![]);
    w.all_pass(&[1, 2, 3]);
    w
}

fn weight(w: &World) -> Option<u32> {
    let want = w.core.desired(service(80)).unwrap();
    let weight = want.service.dests.get(&dest(1, 80)).map(|a| a.weight.get());
    assert_eq!(want.out.contains(&dest(1, 80)), weight.is_none());
    weight
}

#[test]
fn who_is_busy_keeps_its_connections_and_who_is_gone_does_not() {
    for (outcome, kept) in [(FAIL, None), (BUSY, Some(0)), (EXPIRED, Some(0))] {
        let mut w = world(CONFIG);
        assert_eq!(weight(&w), Some(5));
        w.probe(1, outcome);
        let notes = w.probe(1, outcome);
        assert_eq!(weight(&w), kept, "{outcome:?}");
        let removal = match kept {
            None => Removal::Remove,
            Some(_) => Removal::Quiesce,
        };
        let told = notes.iter().any(|note| matches!(note, Note::WentDown(s, _, _, _, how) if *s == service(80) && *how == removal));
        assert!(told, "{notes:?}");
        w.all_pass(&[1]);
        assert_eq!(weight(&w), Some(5));
    }
}

#[test]
fn who_was_busy_and_is_gone_leaves_and_the_other_way_round_too() {
    let mut w = world(CONFIG);
    let mut seen = Vec::new();
    for outcome in [BUSY, BUSY, FAIL, BUSY, FAIL, FAIL, BUSY, EXPIRED] {
        w.probe(1, outcome);
        seen.push(weight(&w));
    }
    let quiesced = Some(0);
    assert_eq!(
        seen,
        [
            Some(5),
            quiesced,
            quiesced,
            quiesced,
            quiesced,
            None,
            quiesced,
            quiesced
        ],
        "once is not gone yet"
    );
}

#[test]
fn a_service_says_what_becomes_of_which() {
    let text = CONFIG.replacen(
        "scheduler = \"wlc\"",
        "scheduler = \"wlc\"\non_failure = { gone = \"quiesce\", busy = \"remove\" }",
        1,
    );
    for (outcome, kept) in [(FAIL, Some(0)), (BUSY, None), (EXPIRED, Some(0))] {
        let mut w = world(&text);
        w.probe(1, outcome);
        w.probe(1, outcome);
        assert_eq!(weight(&w), kept, "{outcome:?}");
    }
}

#[test]
fn a_busy_server_is_replaced_and_stands_aside_for_its_spare() {
    let mut w = world(CONFIG);
    w.probe(1, BUSY);
    w.probe(1, BUSY);
    w.passes(10);
    assert_eq!(w.requests().len(), 1, "it serves nobody new");
    w.members(vec![member("r1", 1, 9, Want::Attach)]);
    w.all_pass(&[9]);
    assert_eq!(w.in_service(80), [2, 3, 9]);
    assert_eq!(weight(&w), Some(0), "its connections go on");
    w.all_pass(&[1]);
    let want = w.core.desired(service(80)).unwrap();
    assert!(
        !want.service.dests.contains_key(&dest(1, 80)),
        "the role has passed on"
    );
    assert_eq!(w.in_service(80), [2, 3, 9]);
}

#[test]
fn a_first_pass_is_no_event_and_a_recovery_is_one() {
    let told = |notes: &[Note]| -> Vec<_> {
        let events = notes.iter().filter_map(events::event);
        events.map(|event| event.kind).collect()
    };
    let mut w = World::fresh();
    let mut first = w.probe(1, Outcome::Pass);
    first.extend(w.probe(1, Outcome::Pass));
    assert!(
        first.iter().any(|n| matches!(n, Note::FirstUp(..))),
        "{first:?}"
    );
    assert_eq!(told(&first), []);
    w.dies(1);
    let mut again = w.probe(1, Outcome::Pass);
    again.extend(w.probe(1, Outcome::Pass));
    assert!(told(&again).contains(&EventKind::ServerUp), "{again:?}");
}
