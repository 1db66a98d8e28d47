use proptest::prelude::*;

use super::*;
use crate::model::{EventDraft, EventKind, EventRing, Role, WallMillis};

fn events(count: usize) -> Vec<Arc<Event>> {
    let mut ring = EventRing::new(Role::Director, None, WallMillis(1));
    for _ in 0..count {
        ring.push(
            EventDraft::new(EventKind::ServerDown, "down"),
            WallMillis(0),
        );
    }
    ring.after(0).cloned().collect()
}

fn at(seconds: u64) -> MonoTime {
    MonoTime::from_boot(Duration::from_secs(seconds))
}

const ONE_BY_ONE: Rule = Rule {
    together: 1,
    room: 3,
    window: Duration::ZERO,
    per_hour: None,
    keep_for: Duration::from_secs(60),
};

const MAILS: Rule = Rule {
    together: 100,
    room: 100,
    window: Duration::from_secs(10),
    per_hour: Some(2),
    keep_for: Duration::from_hours(24),
};

fn numbers(parcel: &Parcel) -> Vec<u64> {
    parcel.events.iter().map(|e| e.number).collect()
}

#[test]
fn what_finds_no_room_is_the_oldest_and_is_counted() {
    let mut pile = Pile::new(ONE_BY_ONE);
    let all = events(5);
    let dropped: Vec<_> = all
        .iter()
        .map(|e| pile.push(Arc::clone(e), at(1)))
        .collect();
    assert_eq!(dropped, [0, 0, 0, 1, 1]);
    let parcel = pile.parcel().unwrap();
    assert_eq!((numbers(&parcel), parcel.left_out), (vec![3], 2));
    pile.done(&parcel, at(1));
    let parcel = pile.parcel().unwrap();
    assert_eq!(
        (numbers(&parcel), parcel.left_out),
        (vec![4], 0),
        "told once"
    );
}

#[test]
fn one_that_made_room_while_it_was_told_takes_no_other_with_it() {
    let mut pile = Pile::new(ONE_BY_ONE);
    let all = events(5);
    for event in &all[..3] {
        pile.push(Arc::clone(event), at(1));
    }
    let under_way = pile.parcel().unwrap();
    pile.push(Arc::clone(&all[3]), at(1));
    pile.done(&under_way, at(1));
    assert_eq!(numbers(&pile.parcel().unwrap()), [2]);
}

#[test]
fn what_is_too_old_is_given_up_and_only_after_an_attempt() {
    let mut pile = Pile::new(ONE_BY_ONE);
    let all = events(2);
    pile.push(Arc::clone(&all[0]), at(0));
    pile.push(Arc::clone(&all[1]), at(30));
    assert_eq!(numbers(&pile.parcel().unwrap()), [1], "no attempt yet");
    assert_eq!(pile.failed(at(59)), 0);
    assert_eq!(pile.failed(at(60)), 1);
    let parcel = pile.parcel().unwrap();
    assert_eq!((numbers(&parcel), parcel.left_out), (vec![2], 1));
}

#[test]
fn events_of_one_window_are_one_mail() {
    let mut pile = Pile::new(MAILS);
    let all = events(3);
    assert_eq!(pile.due(), None);
    pile.push(Arc::clone(&all[0]), at(100));
    pile.push(Arc::clone(&all[1]), at(109));
    assert_eq!(pile.due(), Some(at(110)), "the first one waits no longer");
    let parcel = pile.parcel().unwrap();
    assert_eq!(numbers(&parcel), [1, 2]);
    pile.done(&parcel, at(110));
    assert_eq!(pile.due(), None);
    pile.push(Arc::clone(&all[2]), at(111));
    assert_eq!(pile.due(), Some(at(121)));
}

#[test]
fn an_hours_mails_are_bounded_and_what_was_left_out_is_told_in_the_next() {
    let mut pile = Pile::new(MAILS);
    let all = events(200);
    for (n, event) in (0..).zip(&all[..2]) {
        pile.push(Arc::clone(event), at(100 * n));
        let parcel = pile.parcel().unwrap();
        pile.done(&parcel, at(100 * n + 10));
    }
    for event in &all[2..] {
        pile.push(Arc::clone(event), at(200));
    }
    assert_eq!(pile.due(), Some(at(3_610)), "an hour after the first mail");
    let parcel = pile.parcel().unwrap();
    assert_eq!((parcel.events.len(), parcel.left_out), (100, 98));
    assert_eq!(numbers(&parcel)[0], 101, "the newest are kept");
    pile.done(&parcel, at(3_610));
    pile.push(Arc::clone(&all[0]), at(3_611));
    assert_eq!(pile.due(), Some(at(3_710)), "an hour after the second");
}

proptest! {
    /// Whatever comes and fails: order is kept, nothing is told twice, and told, left out and held are all there is.
    #[test]
    fn nothing_is_lost_uncounted_nor_told_out_of_order(
        steps in proptest::collection::vec((0_u8..4, 0_u64..40), 1..200),
    ) {
        let mut pile = Pile::new(ONE_BY_ONE);
        let mut all = events(200).into_iter();
        let (mut came, mut told, mut left_out, mut now) = (0_u64, Vec::new(), 0, 0);
        for (step, passes) in steps {
            now += passes;
            match step {
                0 | 1 => {
                    if let Some(event) = all.next() {
                        came += 1;
                        pile.push(event, at(now));
                    }
                }
                2 => if let Some(parcel) = pile.parcel() {
                    told.extend(numbers(&parcel));
                    left_out += parcel.left_out;
                    pile.done(&parcel, at(now));
                },
                _ => if pile.parcel().is_some() {
                    pile.failed(at(now));
                },
            }
            prop_assert!(pile.len() <= ONE_BY_ONE.room);
        }
        prop_assert!(told.is_sorted_by(|a, b| a < b), "{told:?}");
        let told_or_held = u64::try_from(told.len() + pile.len()).unwrap();
        let counted = told_or_held + left_out + pile.left_out;
        prop_assert_eq!(counted, came);
    }

    /// No hour has more mails than the rule lets through.
    #[test]
    fn no_hour_has_more_mails(gaps in proptest::collection::vec(0_u64..1_000, 1..60)) {
        let mut pile = Pile::new(MAILS);
        let (mut now, mut sent) = (0, Vec::new());
        for (event, gap) in events(60).into_iter().zip(gaps) {
            now += gap;
            pile.push(event, at(now));
            if pile.due().unwrap() <= at(now) {
                let parcel = pile.parcel().unwrap();
                pile.done(&parcel, at(now));
                sent.push(now);
            }
        }
        for window in sent.windows(3) {
            prop_assert!(window[2] - window[0] >= 3_600, "{sent:?}");
        }
    }
}
