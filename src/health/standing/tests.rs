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
    assert!(!say(&mut standing, 1, &found(REFUSED)));
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
