//! What holds removals and requests back.

use super::*;
use crate::model::{Order, Phase, Wish};

fn with(section: &str, service: &str) -> String {
    let text = CONFIG.replace("[replacement]\n", &format!("{section}\n[replacement]\n"));
    text.replace(
        "forward = \"nat\"\n",
        &format!("forward = \"nat\"\n{service}\n"),
    )
}

fn world(text: &str) -> World {
    let mut w = World::of(text, Recall::Forgot("new".into()), Kernel::new());
    w.members(vec![]);
    w.all_pass(&[1, 2, 3]);
    w.now += 100;
    w
}

const MASS: &str = "[mass_failure]\nwitnesses = [\"10.0.0.254\"]";

fn cut(w: &mut World, servers: &[u8]) -> Vec<Note> {
    let servers = servers.iter().map(|n| (ip(*n), "eth1".to_owned()));
    w.event(Event::CutOff(servers.collect()))
}

#[test]
fn nobody_behind_a_link_without_carrier_is_taken_out_or_replaced() {
    let mut w = world(CONFIG);
    w.dies(3);
    assert_eq!(cut(&mut w, &[1, 2]), [Note::LinkDown("eth1".into(), 2)]);
    for n in [1, 2] {
        w.dies(n);
    }
    w.passes(60);
    assert_eq!(w.in_service(80), [1, 2], "who failed before is out");
    assert_eq!(w.core.kept_in()["link_down"], 4, "two in each service");
    let held = Guard::LinkDown {
        interface: "eth1".into(),
    };
    assert_eq!(w.core.guard(ip(1), at(w.now)), Some(held));
    assert_eq!(w.requests(), [], "and nobody is up");
    cut(&mut w, &[]);
    assert_eq!(w.in_service(80), [1, 2], "until there is a verdict");
    assert!(
        w.core.guard(ip(1), at(w.now)).is_none(),
        "nothing is known of it"
    );
    w.dies(2);
    assert_eq!(w.in_service(80), [1]);
    w.all_pass(&[1]);
    assert_eq!(w.in_service(80), [1]);
}

#[test]
fn a_verdict_shortly_before_the_link_was_seen_down_is_taken_back() {
    let mut w = world(CONFIG);
    w.dies(1);
    assert_eq!(w.in_service(80), [2, 3]);
    w.passes(5);
    cut(&mut w, &[1, 2, 3]);
    assert_eq!(w.in_service(80), [1, 2, 3]);
}

#[test]
fn a_mass_failure_takes_nobody_out_before_a_witness_answers() {
    let mut w = world(&with(MASS, ""));
    // All have failed once when the first has failed for good.
    for n in [1, 2, 3] {
        w.probe(n, FAIL);
    }
    let notes = w.probe(1, FAIL);
    assert!(notes.contains(&Note::MassFailure(3, 3, 1)), "{notes:?}");
    assert!(w.core.asks_witnesses());
    for n in [2, 3] {
        w.probe(n, FAIL);
    }
    w.passes(10);
    assert_eq!(
        (w.in_service(80), w.in_service(443)),
        (vec![1, 2, 3], vec![1, 2])
    );
    assert_eq!(w.core.guard(ip(1), at(w.now)), Some(Guard::MassFailure));
    w.event(Event::Witnessed(0));
    w.passes(600);
    assert_eq!(w.in_service(80), [1, 2, 3]);
    assert_eq!(w.core.guard(ip(1), at(w.now)), Some(Guard::CutOff));
    assert_eq!(w.requests(), []);
    // One answers again: what was found meanwhile says nothing.
    w.event(Event::Witnessed(1));
    assert!(!w.core.asks_witnesses());
    assert_eq!(w.in_service(80), [1, 2, 3]);
    w.all_pass(&[1, 2]);
    w.dies(3);
    assert_eq!(w.in_service(80), [1, 2]);
}

#[test]
fn a_witness_that_answers_says_that_it_is_the_servers() {
    let mut w = world(&with(MASS, ""));
    for n in [1, 2, 3] {
        w.probe(n, FAIL);
    }
    for n in [1, 2] {
        w.probe(n, FAIL);
    }
    assert_eq!(w.in_service(80), [1, 2, 3]);
    let notes = w.event(Event::Witnessed(1));
    assert!(notes.contains(&Note::MassFailureKnown(Known::Real)));
    assert_eq!(w.in_service(80), [3]);
    w.passes(10);
    assert_eq!(w.requests().len(), 1);
    w.all_pass(&[1, 2, 3]);
    let notes = w.passes(1);
    assert!(notes.contains(&Note::MassFailureOver), "{notes:?}");
}

#[test]
fn without_witnesses_a_mass_failure_is_believed_after_a_while() {
    let mut w = world(&with("[mass_failure]\nhold_for = \"20s\"", ""));
    for n in [1, 2, 3] {
        w.probe(n, FAIL);
    }
    for n in [1, 2] {
        w.probe(n, FAIL);
    }
    let since = w.now;
    assert_eq!(
        w.core.next_deadline(at(since)),
        Some(at(since + 10)),
        "replace_after"
    );
    w.passes(19);
    assert_eq!(w.in_service(80), [1, 2, 3]);
    assert_eq!(w.core.next_deadline(at(w.now)), Some(at(since + 20)));
    w.passes(1);
    assert_eq!(w.in_service(80), [3]);
}

#[test]
fn where_removals_go_only_requests_are_held() {
    let mut w = world(&with(&format!("{MASS}\nremovals = \"go\""), ""));
    for n in [1, 2, 3] {
        w.probe(n, FAIL);
    }
    for n in [1, 2] {
        w.probe(n, FAIL);
    }
    w.passes(10);
    assert_eq!(w.in_service(80), [3]);
    assert_eq!(w.requests(), []);
}

#[test]
fn one_after_the_other_is_no_mass_failure_and_who_is_put_aside_counts_nowhere() {
    let mut w = world(&with(MASS, ""));
    for n in [1, 2] {
        w.dies(n);
        w.passes(60);
    }
    assert!(!w.core.asks_witnesses());
    let mut w = world(&with(MASS, ""));
    let places = w.core.places_of(Some((ip(3), None)), None);
    let order = Order::new(Wish::Disabled, "root".into(), WallMillis(0));
    w.event(Event::Ordered(places, Some(order), WallMillis(0)));
    w.probe(1, FAIL);
    let notes = w.dies(2);
    assert!(notes.contains(&Note::MassFailure(2, 2, 1)), "{notes:?}");
}

#[test]
fn the_servers_that_failed_last_stay_below_the_panic_threshold() {
    let mut w = world(&with("", "panic_threshold = \"60%\""));
    w.dies(1);
    assert_eq!(w.in_service(80), [2, 3], "two of three are enough");
    w.now += 1;
    let notes = w.dies(2);
    let stays = Note::Panic(service(80), vec![dest(2, 80)]);
    assert!(notes.contains(&stays), "{notes:?}");
    w.now += 1;
    w.dies(3);
    assert_eq!(w.in_service(80), [2, 3]);
    assert_eq!(w.core.panicking(service(80)), [dest(2, 80), dest(3, 80)]);
    assert_eq!(
        w.core.kept_in()["panic"],
        2 + 2,
        "and those of the other service"
    );
    w.all_pass(&[1]);
    assert_eq!(w.in_service(80), [1, 3]);
    let notes = w.probe(2, Outcome::Pass);
    assert_eq!(notes, []);
    let notes = w.probe(2, Outcome::Pass);
    assert!(
        notes.contains(&Note::Panic(service(80), vec![])),
        "{notes:?}"
    );
    assert_eq!(w.in_service(80), [1, 2]);
}

#[test]
fn a_disabled_server_counts_as_absent_and_panic_can_be_told_only() {
    let mut w = world(&with("", "panic_threshold = \"60%\""));
    let places = w.core.places_of(Some((ip(1), None)), None);
    let order = Order::new(Wish::Disabled, "root".into(), WallMillis(0));
    w.event(Event::Ordered(places, Some(order), WallMillis(0)));
    w.dies(2);
    assert_eq!(w.in_service(80), [2, 3], "two of two");
    let mut w = world(&with("", "panic_threshold = \"60%\"\npanic = \"drop\""));
    w.dies(1);
    w.dies(2);
    assert_eq!(w.in_service(80), [3]);
}

fn limits(limits: &str) -> World {
    world(&CONFIG.replace("\"10s\"", &format!("\"10s\"\n{limits}")))
}

#[test]
fn as_many_replacements_run_as_may() {
    let mut w = limits("at_once = 2\nat_once_per_service = 2");
    w.dies(1);
    w.dies(2);
    w.passes(10);
    assert_eq!(w.requests().len(), 2);
    let mut w = limits("at_once = 2");
    w.dies(1);
    w.dies(2);
    w.passes(10);
    assert_eq!(w.requests().len(), 1);
    let held = Some(Guard::AtOncePerService { other: ip(1) });
    assert_eq!(w.core.guard(ip(2), at(w.now)), held);
}

/// The replacement of a server that fails comes to nothing.
fn fails_in_vain(w: &mut World, n: u8) {
    let asked = w.requests().into_iter().find(|key| key.failed == ip(n));
    let key = asked.unwrap_or_else(|| panic!("{:?}", w.core.guard(ip(n), at(w.now))));
    w.event(Event::Refused(key, "no spare".into()));
}

#[test]
fn so_many_replacements_an_hour_and_no_more() {
    let mut w = limits("per_hour = 2");
    w.dies(1);
    w.passes(10);
    let first = w.now;
    fails_in_vain(&mut w, 1);
    w.passes(60);
    fails_in_vain(&mut w, 1);
    w.passes(600);
    let until = at(first + 3600);
    assert_eq!(
        w.core.guard(ip(1), at(w.now)),
        Some(Guard::PerHour { until })
    );
    assert_eq!(w.core.next_deadline(at(w.now)), Some(until));
    w.passes(3600);
    assert_eq!(w.requests().len(), 1);
}

#[test]
fn each_further_try_in_one_place_waits_twice_as_long() {
    let mut w = limits("per_hour = 100");
    w.dies(1);
    let mut asked_at = Vec::new();
    for _ in 0..2000 {
        w.passes(1);
        if !w.requests().is_empty() {
            asked_at.push(w.now);
            fails_in_vain(&mut w, 1);
        }
    }
    let waits: Vec<_> = asked_at.windows(2).map(|w| w[1] - w[0]).collect();
    assert_eq!(waits, [30, 30, 60, 120, 240, 480, 960]);
}

#[test]
fn a_restart_forgets_no_limit() {
    let mut w = limits("per_hour = 2");
    w.dies(1);
    w.passes(10);
    let first = w.now;
    fails_in_vain(&mut w, 1);
    w.passes(60);
    fails_in_vain(&mut w, 1);
    let restarted = |boot: &str, now: u64| {
        let file = serde_json::to_vec(&w.core.memory()).unwrap();
        let start = Start {
            now: at(now),
            wall: WallMillis(9000),
            boot_id: boot.into(),
            recall: recall(Some(&file), &"lb1".parse().unwrap()),
            kernel: w.kernel(),
            dropped: BTreeMap::new(),
            marked: BTreeSet::new(),
        };
        let core = Core::new(Arc::clone(w.core.config()), start);
        let mut w = World { core, now };
        w.members(vec![]);
        w.dies(1);
        w.passes(10);
        w
    };
    let again = restarted("boot", w.now + 100);
    let held = |w: &World| w.core.guard(ip(1), at(w.now));
    let until = at(first + 3600);
    assert_eq!(held(&again), Some(Guard::PerHour { until }));
    let memory = again.core.memory();
    assert_eq!(memory.tries, w.core.memory().tries);
    assert_eq!(memory.tries[0].times, 2);

    let booted = restarted("another boot", 5);
    let until = at(5 + 3600);
    assert_eq!(
        held(&booted),
        Some(Guard::PerHour { until }),
        "no later than an hour from now"
    );
    assert_eq!(booted.core.memory().tries[0].last, at(5));
}

const SILENT: Outcome = Outcome::Fail(FailReason::TimedOut(Phase::Connect));

#[test]
fn who_falls_silent_goes_when_a_witness_has_answered_and_at_once_where_it_refuses() {
    let mut w = world(&with(MASS, ""));
    w.dies(3);
    assert_eq!(w.in_service(80), [1, 2], "it was heard");
    w.passes(60);
    let silent = |w: &mut World| {
        w.probe(1, SILENT);
        w.probe(1, SILENT);
    };
    silent(&mut w);
    assert!(w.core.asks_witnesses());
    assert_eq!(w.in_service(80), [1, 2], "until it is known");
    w.event(Event::Witnessed(1));
    assert_eq!(w.in_service(80), [2]);
    assert!(!w.core.asks_witnesses());
    // Where no witness answers, and nobody else is silent.
    w.all_pass(&[1]);
    silent(&mut w);
    w.event(Event::Witnessed(0));
    assert_eq!(w.in_service(80), [1, 2]);
    assert_eq!(w.core.next_deadline(at(w.now)), Some(at(w.now + 3)));
    w.passes(3);
    assert_eq!(w.in_service(80), [2]);
}

#[test]
fn the_first_of_many_that_fall_silent_stays_too() {
    let mut w = world(&with(MASS, ""));
    for n in [1, 2, 3] {
        w.probe(n, SILENT);
        w.probe(n, SILENT);
        assert_eq!(w.in_service(80), [1, 2, 3]);
    }
    w.event(Event::Witnessed(0));
    w.passes(100);
    assert_eq!(w.in_service(80), [1, 2, 3]);
    assert_eq!(w.core.guard(ip(1), at(w.now)), Some(Guard::CutOff));
}
