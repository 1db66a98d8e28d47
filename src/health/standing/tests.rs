use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{CheckKind, CheckSpec, CheckTiming, TcpCheck, Via};

const DAMPING: Damping = Damping {
    half_life: Duration::from_secs(60),
    suppress: 3,
    reuse: 2,
};
const REFUSED: Outcome = Outcome::Fail(FailReason::Refused);

fn checks(count: usize, need: Need) -> Checks {
    let spec = CheckSpec {
        kind: CheckKind::Tcp(TcpCheck::default()),
        via: Via::default(),
        timing: CheckTiming {
            rise: 1,
            fall: 1,
            ..CheckTiming::every(Duration::from_secs(1))
        },
    };
    Checks {
        all: vec![spec.into(); count],
        need,
    }
}

fn at(seconds: u64) -> MonoTime {
    MonoTime::from_boot(Duration::from_secs(seconds))
}

fn found(outcome: Outcome) -> Found {
    Found::of(outcome, Duration::ZERO)
}

/// Where it stands after the outcomes, each of its own check.
fn after(need: Need, outcomes: &[Option<bool>]) -> Health {
    let checks = checks(outcomes.len(), need);
    let mut standing = Standing::new(&checks, false, at(0));
    for (n, passed) in outcomes.iter().enumerate() {
        let outcome = match passed {
            Some(true) => Outcome::Pass,
            Some(false) => REFUSED,
            None => continue,
        };
        standing.observe(n, &found(outcome), &checks, &DAMPING, at(1), false);
    }
    standing.verdict()
}

#[test]
fn all_any_and_some() {
    let (up, down, none) = (Some(true), Some(false), None);
    for (need, outcomes, label) in [
        (Need::All, &[up, up][..], "up"),
        (Need::All, &[up, none], "unknown"),
        (Need::All, &[none, down], "down"),
        (Need::AtLeast(1), &[down, up], "up"),
        (Need::AtLeast(1), &[down, none], "unknown"),
        (Need::AtLeast(1), &[down, down], "down"),
        (Need::AtLeast(2), &[up, down, up], "up"),
        (Need::AtLeast(2), &[up, down, none], "unknown"),
        (Need::AtLeast(2), &[down, up, down], "down"),
    ] {
        assert_eq!(
            after(need, outcomes).label(),
            label,
            "{need:?} {outcomes:?}"
        );
    }
}

#[test]
fn without_checks_it_is_up() {
    let checks = Checks::default();
    assert!(Standing::new(&checks, true, at(0)).verdict().is_up());
}

#[test]
fn the_least_of_what_is_advised_counts_and_a_failed_probe_advises_nothing() {
    let checks = checks(2, Need::All);
    let mut standing = Standing::new(&checks, false, at(0));
    let ten = Weight::of(10);
    assert_eq!(standing.weight(ten), ten);
    let advise = |advice| Found {
        advice,
        ..found(Outcome::Pass)
    };
    let say = |standing: &mut Standing, n, f: &Found| {
        standing
            .observe(n, f, &checks, &DAMPING, at(1), false)
            .advised
    };
    assert!(say(&mut standing, 0, &advise(Some(Advice::Percent(75)))));
    assert_eq!(standing.weight(ten), Weight::of(8), "rounded up");
    assert_eq!(
        standing.weight(Weight::ONE),
        Weight::ONE,
        "a part is not nothing"
    );
    assert!(say(&mut standing, 1, &advise(Some(Advice::Weight(3)))));
    assert_eq!(standing.weight(ten), Weight::of(3));
    let local = Outcome::Fail(FailReason::Local);
    assert!(!say(&mut standing, 1, &found(local)), "that says nothing");
    // However small the configured weight is beside another that was advised.
    assert!(say(&mut standing, 1, &advise(Some(Advice::Weight(30)))));
    assert!(say(&mut standing, 0, &advise(Some(Advice::Percent(20)))));
    assert_eq!(standing.weight(ten), Weight::of(2));
    assert!(say(&mut standing, 0, &advise(Some(Advice::Percent(0)))));
    assert_eq!(standing.weight(ten), Weight::QUIESCED);
}

/// Falls and passes, a second each, until it is held out.
fn flapping(checks: &Checks, alone: bool) -> (Standing, u64) {
    let mut standing = Standing::new(checks, false, at(0));
    for n in 0..8 {
        let outcome = if n % 2 == 0 { Outcome::Pass } else { REFUSED };
        standing.observe(0, &found(outcome), checks, &DAMPING, at(n), alone);
    }
    (standing, 8)
}

#[test]
fn a_flapping_server_is_held_out_is_not_replaced_and_comes_back() {
    let checks = checks(1, Need::All);
    let (mut standing, now) = flapping(&checks, false);
    assert!(standing.failing_since().is_some(), "it fails");
    let pass = found(Outcome::Pass);
    let mut told = 0;
    let mut back = None;
    for second in now..now + 200 {
        let change = standing.observe(0, &pass, &checks, &DAMPING, at(second), false);
        told += u32::from(change.held_out);
        if change.transition == Some(Transition::WentUp) {
            back = Some(second - now);
            break;
        }
        assert_eq!(standing.failing_since(), None, "it answers");
    }
    assert_eq!(told, 1, "told once");
    assert!((50..=60).contains(&back.unwrap()), "{back:?}");
}

#[test]
fn the_only_server_left_is_not_held_out() {
    let checks = checks(1, Need::All);
    let (mut standing, now) = flapping(&checks, true);
    let pass = found(Outcome::Pass);
    let change = standing.observe(0, &pass, &checks, &DAMPING, at(now), true);
    assert_eq!(change.transition, Some(Transition::WentUp));
}

#[test]
fn the_time_in_which_it_was_held_out_is_no_failure() {
    let checks = checks(1, Need::All);
    let (mut standing, now) = flapping(&checks, false);
    for second in now..now + 30 {
        let pass = found(Outcome::Pass);
        standing.observe(0, &pass, &checks, &DAMPING, at(second), false);
    }
    assert_eq!(standing.failing_since(), None);
    standing.observe(0, &found(REFUSED), &checks, &DAMPING, at(now + 30), false);
    assert_eq!(
        standing.failing_since(),
        Some(at(now + 30)),
        "not since the fall before"
    );
}

#[test]
fn maintenance_stays_whatever_else_fails_and_ends_by_its_own_word() {
    for need in [Need::All, Need::AtLeast(1)] {
        let checks = checks(2, need);
        let mut standing = Standing::new(&checks, false, at(0));
        let maint = Outcome::Fail(FailReason::SaidMaintenance);
        let mut say = |n, outcome, second| {
            let change = standing.observe(n, &found(outcome), &checks, &DAMPING, at(second), false);
            (
                change.transition,
                standing.verdict(),
                standing.failing_since(),
            )
        };
        say(0, Outcome::Pass, 1);
        say(1, Outcome::Pass, 1);
        let (_, verdict, since) = say(1, maint, 2);
        assert!(!verdict.is_up() && since.is_none(), "{need:?}");
        // What is asked is stopped, and then the agent itself.
        assert_eq!(say(0, REFUSED, 3).2, None);
        assert_eq!(say(1, REFUSED, 4).2, None);
        // The agent says that it is over, and the other still fails.
        let (_, verdict, since) = say(1, Outcome::Pass, 100);
        match need {
            Need::All => assert_eq!(since, Some(at(100)), "from now on"),
            Need::AtLeast(_) => assert!(verdict.is_up()),
        }
    }
}

#[test]
fn a_check_that_is_down_has_no_say_and_one_that_cannot_be_made_is_told_of_once() {
    let checks = checks(2, Need::AtLeast(1));
    let mut standing = Standing::new(&checks, false, at(0));
    let drain = Found {
        advice: Some(Advice::Percent(0)),
        ..found(Outcome::Pass)
    };
    let say = |standing: &mut Standing, n, f: &Found| {
        standing.observe(n, f, &checks, &DAMPING, at(1), false)
    };
    say(&mut standing, 0, &drain);
    say(&mut standing, 1, &found(Outcome::Pass));
    assert_eq!(standing.weight(Weight::of(9)), Weight::QUIESCED);
    assert!(say(&mut standing, 0, &found(REFUSED)).advised);
    assert_eq!(standing.weight(Weight::of(9)), Weight::of(9));
    let local = found(Outcome::Fail(FailReason::Local));
    let told: Vec<_> = (0..5)
        .map(|_| say(&mut standing, 1, &local).blind)
        .collect();
    assert_eq!(told, [false, false, true, false, false]);
}

#[test]
fn who_is_gone_for_one_of_its_checks_is_gone() {
    let checks = checks(3, Need::All);
    let mut standing = Standing::new(&checks, false, at(0));
    let busy = Outcome::Fail(FailReason::Status(503));
    let mut say = |n: usize, outcome| {
        let fall = checks.all[n].timing.fall;
        let say = |_| standing.observe(n, &found(outcome), &checks, &DAMPING, at(1), false);
        let matters = (0..fall).map(say).any(|change| change.matters);
        match standing.verdict() {
            Health::Down { reason, .. } => (reason, matters),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(say(0, busy), (FailReason::Status(503), true));
    assert_eq!(say(2, REFUSED), (FailReason::Refused, true));
    assert_eq!(say(1, busy), (FailReason::Refused, false));
}

#[test]
fn maintenance_takes_out_and_asks_for_nobody() {
    let checks = checks(1, Need::All);
    let mut standing = Standing::new(&checks, false, at(0));
    let said = found(Outcome::Fail(FailReason::SaidMaintenance));
    let change = standing.observe(0, &said, &checks, &DAMPING, at(1), false);
    assert!(change.matters && !standing.verdict().is_up());
    assert_eq!(standing.failing_since(), None);
}

proptest! {
    /// More passing checks never make a verdict worse.
    #[test]
    fn a_pass_more_never_harms(outcomes in prop::collection::vec(any::<Option<bool>>(), 1..6), n in 1_u32..6, which: prop::sample::Index) {
        let need = Need::AtLeast(n);
        let rank = |h: Health| match h { Health::Down { .. } => 0, Health::Unknown { .. } => 1, Health::Up { .. } => 2 };
        let mut better = outcomes.clone();
        better[which.index(outcomes.len())] = Some(true);
        prop_assert!(rank(after(need, &better)) >= rank(after(need, &outcomes)));
    }
}

#[test]
fn of_several_certificates_the_first_to_end_counts() {
    let checks = checks(3, Need::All);
    let mut standing = Standing::new(&checks, false, at(0));
    assert_eq!(standing.certificate_ends(), None);
    for (n, ends) in [(0, 2_000), (2, 3_000), (0, 2_500)] {
        let found = Found {
            certificate_ends: Some(ends),
            ..found(Outcome::Pass)
        };
        standing.observe(n, &found, &checks, &DAMPING, at(1), false);
    }
    assert_eq!(standing.certificate_ends(), Some(2_500));
}
