use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const RETRY: Retry = Retry::STANDARD;
const STEPS: [&str; 5] = ["fence", "os", "install:nginx", "configure:nginx", "test"];

fn after(events: &[Event]) -> Journal {
    events.iter().fold(Journal::asked(), |j, e| {
        j.handle(e, &RETRY)
            .unwrap_or_else(|i| panic!("{i}"))
            .journal
    })
}

fn claimed() -> Vec<Event> {
    vec![Event::Claimed {
        server: "s1".into(),
        steps: STEPS.map(String::from).to_vec(),
    }]
}

fn through(position: usize) -> Vec<Event> {
    let mut events = claimed();
    for position in 0..=position {
        events.push(Event::Started { position });
        events.push(Event::Done { position });
    }
    events
}

fn failed(position: usize, class: Class) -> Event {
    Event::Failed {
        position,
        class,
        reason: "script_failed: exit 1".into(),
    }
}

fn order(position: usize, failures: u32) -> Action {
    Action::Order { position, failures }
}

#[test]
fn goes_through_the_steps_in_order() {
    let mut journal = after(&claimed());
    assert_eq!(journal.state, ReplacementState::Claiming);
    for position in 0..STEPS.len() {
        assert_eq!(journal.next(), order(position, 0));
        let started = journal
            .handle(&Event::Started { position }, &RETRY)
            .unwrap();
        let testing = position == 4;
        assert_eq!(
            started.journal.state == ReplacementState::Testing,
            testing,
            "{position}"
        );
        journal = started
            .journal
            .handle(&Event::Done { position }, &RETRY)
            .unwrap()
            .journal;
    }
    assert_eq!(journal.next(), Action::Offer);
    let offered = journal.handle(&Event::Offered, &RETRY).unwrap().journal;
    assert_eq!(offered.next(), Action::Await);
    let attached = offered.handle(&Event::Attached, &RETRY).unwrap();
    assert_eq!(attached.spare.unwrap().state, ServerState::Serving);
    assert_eq!(attached.journal.state, ReplacementState::Succeeded);
}

#[test]
fn what_was_done_beforehand_is_offered_at_once() {
    let claimed = Event::Claimed {
        server: "s1".into(),
        steps: Vec::new(),
    };
    let journal = after(&[claimed]);
    assert_eq!(journal.next(), Action::Offer);
    let asked = journal.handle(&Event::CancelAsked, &RETRY).unwrap();
    let put_down = asked.journal.handle(&Event::Abandoned, &RETRY).unwrap();
    assert_eq!(put_down.spare.unwrap().state, ServerState::Ready);
}

#[test]
fn upkeep_ends_with_its_last_step_and_takes_no_other_server() {
    for (kind, in_hand, at_the_end) in [
        (Kind::Warm, ServerState::Configuring, ServerState::Standby),
        (Kind::Clean, ServerState::Cleaning, ServerState::Ready),
    ] {
        let begin = |events: &[Event]| {
            events.iter().fold(Journal::begun(kind), |journal, event| {
                journal.handle(event, &RETRY).unwrap().journal
            })
        };
        let mut events = vec![Event::Claimed {
            server: "s1".into(),
            steps: vec!["fence".into(), "install:nginx".into()],
        }];
        events.extend([Event::Started { position: 0 }, Event::Done { position: 0 }]);
        let started = begin(&events).handle(&Event::Started { position: 1 }, &RETRY);
        assert_eq!(started.unwrap().spare.unwrap().state, in_hand);
        events.push(Event::Started { position: 1 });

        let failed = begin(&events).handle(&failed(1, Class::Permanent), &RETRY);
        let failed = failed.unwrap();
        assert_eq!(failed.journal.state, ReplacementState::Failed);
        assert_eq!(failed.journal.next(), Action::Ended);
        assert_eq!(failed.spare.unwrap().state, ServerState::Quarantined);

        events.push(Event::Done { position: 1 });
        let journal = begin(&events);
        assert_eq!(journal.next(), Action::Finish);
        assert!(journal.handle(&Event::Offered, &RETRY).is_err());
        let done = journal.handle(&Event::Finished, &RETRY).unwrap();
        assert_eq!(done.journal.state, ReplacementState::Succeeded);
        let spare = done.spare.unwrap();
        assert_eq!(spare.state, at_the_end);
        assert_eq!(spare.ended, Some(AttemptEnd::Finished));
    }
}

#[test]
fn what_is_not_cleaned_to_the_end_is_no_spare() {
    let mut journal = Journal::begun(Kind::Clean);
    for event in [
        Event::Claimed {
            server: "s1".into(),
            steps: vec!["fence".into(), "clean".into()],
        },
        Event::Started { position: 0 },
        Event::Done { position: 0 },
        Event::CancelAsked,
    ] {
        journal = journal.handle(&event, &RETRY).unwrap().journal;
    }
    let put_down = journal.handle(&Event::Abandoned, &RETRY).unwrap();
    let spare = put_down.spare.unwrap();
    assert_eq!(spare.state, ServerState::Quarantined);
    assert_eq!(spare.reason.as_deref(), Some(NOT_CLEANED));
}

#[test]
fn a_restart_fences_first_and_goes_on_where_it_was() {
    let mut events = through(2);
    events.push(Event::Started { position: 3 });
    events.push(Event::Resumed);
    assert_eq!(after(&events).next(), order(0, 0));
    events.extend([Event::Started { position: 0 }, Event::Done { position: 0 }]);
    assert_eq!(after(&events).next(), order(3, 0));
}

#[test]
fn a_bare_spare_is_installed_before_its_fence_is_written() {
    let mut events = vec![Event::Claimed {
        server: "s1".into(),
        steps: ["os_install", "fence", "os", "test"]
            .map(String::from)
            .to_vec(),
    }];
    assert_eq!(after(&events).next(), order(0, 0));
    events.push(Event::Started { position: 0 });
    // A restart takes the installation up: there is nothing to write a fence on.
    events.push(Event::Resumed);
    let journal = after(&events);
    assert_eq!(journal.next(), order(0, 0));
    assert!(journal.hand.as_ref().unwrap().touched());
    events.extend([Event::Started { position: 0 }, Event::Done { position: 0 }]);
    assert_eq!(after(&events).next(), order(1, 0));
    events.extend([Event::Started { position: 1 }, Event::Done { position: 1 }]);
    assert_eq!(after(&events).next(), order(2, 0));
    // Later restarts fence first, and install nothing.
    events.push(Event::Resumed);
    assert_eq!(after(&events).next(), order(1, 0));
}

#[test]
fn a_restart_in_the_test_stays_in_the_test() {
    let mut events = through(3);
    events.extend([
        Event::Started { position: 4 },
        Event::Resumed,
        Event::Started { position: 0 },
    ]);
    let journal = after(&events);
    assert_eq!(journal.state, ReplacementState::Testing);
}

#[test]
fn a_transient_error_is_tried_again_so_many_times() {
    let mut events = through(1);
    for n in 0..2 {
        events.push(Event::Started { position: 2 });
        events.push(failed(2, Class::Transient));
        assert_eq!(after(&events).next(), order(2, n + 1));
    }
    events.push(Event::Started { position: 2 });
    let last = after(&events)
        .handle(&failed(2, Class::Transient), &RETRY)
        .unwrap();
    assert_eq!(last.journal.next(), Action::Claim);
    let spare = last.spare.unwrap();
    assert_eq!(spare.state, ServerState::Quarantined);
    assert_eq!(
        spare.reason.as_deref(),
        Some("install:nginx: script_failed: exit 1")
    );
}

#[test]
fn each_class_of_error_has_its_end() {
    let mut events = through(0);
    events.push(Event::Started { position: 1 });
    for (class, state, end) in [
        (
            Class::Permanent,
            ServerState::Quarantined,
            AttemptEnd::Failed,
        ),
        (Class::Fenced, ServerState::Quarantined, AttemptEnd::Failed),
        (
            Class::Unsuitable,
            ServerState::Ready,
            AttemptEnd::PassedOver,
        ),
    ] {
        let change = after(&events).handle(&failed(1, class), &RETRY).unwrap();
        assert_eq!(change.journal.state, ReplacementState::Pending);
        let spare = change.spare.unwrap();
        assert_eq!((spare.state, spare.ended), (state, Some(end)));
    }
}

#[test]
fn a_system_that_changed_under_the_work_is_put_aside() {
    let mut events = through(3);
    events.push(Event::Started { position: 4 });
    let change = after(&events).handle(&failed(4, Class::Unsuitable), &RETRY);
    let spare = change.unwrap().spare.unwrap();
    assert_eq!(
        (spare.state, spare.ended),
        (ServerState::Quarantined, Some(AttemptEnd::Failed))
    );
}

#[test]
fn a_fault_of_this_host_costs_no_spare_and_is_told() {
    let mut events = through(1);
    for _ in 0..9 {
        events.push(Event::Started { position: 2 });
        events.push(failed(2, Class::Local));
    }
    let journal = after(&events);
    assert_eq!(journal.next(), order(2, 0));
    assert_eq!(
        journal.reason.as_deref(),
        Some("install:nginx: script_failed: exit 1")
    );
    events.extend([Event::Started { position: 2 }, Event::Done { position: 2 }]);
    assert_eq!(after(&events).reason, None);
}

#[test]
fn cancelling_waits_for_the_step_and_quarantines_what_was_touched() {
    // Nothing but the fence and a look: free again.
    let mut events = through(1);
    events.push(Event::CancelAsked);
    let journal = after(&events);
    assert_eq!(journal.next(), Action::Abandon);
    let spare = journal.handle(&Event::Abandoned, &RETRY).unwrap();
    assert_eq!(spare.spare.unwrap().state, ServerState::Ready);
    assert_eq!(spare.journal.state, ReplacementState::Cancelled);

    // A script that runs ends first.
    let mut events = through(1);
    events.extend([Event::Started { position: 2 }, Event::CancelAsked]);
    events.push(Event::Done { position: 2 });
    let spare = after(&events)
        .handle(&Event::Abandoned, &RETRY)
        .unwrap()
        .spare
        .unwrap();
    assert_eq!(spare.state, ServerState::Quarantined);
    assert_eq!(spare.reason.as_deref(), Some(HALF_CONFIGURED));
}

#[test]
fn a_cancelled_script_is_seen_to_its_end_by_the_run_that_finds_it() {
    let mut events = through(1);
    events.extend([
        Event::Started { position: 2 },
        Event::CancelAsked,
        Event::Resumed,
    ]);
    assert_eq!(after(&events).next(), order(0, 0));
    events.extend([Event::Started { position: 0 }, Event::Done { position: 0 }]);
    assert_eq!(after(&events).next(), order(2, 0));
    events.extend([Event::Started { position: 2 }, Event::Done { position: 2 }]);
    assert_eq!(after(&events).next(), Action::Abandon);
}

#[test]
fn a_step_that_fails_under_a_cancellation_ends_it() {
    let mut events = through(1);
    events.extend([Event::Started { position: 2 }, Event::CancelAsked]);
    events.push(failed(2, Class::Permanent));
    assert_eq!(after(&events).state, ReplacementState::Cancelled);
}

#[test]
fn an_offer_cannot_be_cancelled() {
    let mut events = through(4);
    events.push(Event::Offered);
    assert!(after(&events).handle(&Event::CancelAsked, &RETRY).is_err());
}

#[test]
fn pauses_double_and_are_spread() {
    assert_eq!(RETRY.pause(0, 7), Duration::ZERO);
    for salt in 0..100 {
        let first = RETRY.pause(1, salt);
        assert!(
            first >= RETRY.first && first < RETRY.first * 3 / 2,
            "{first:?}"
        );
        let second = RETRY.pause(2, salt);
        assert!(second >= RETRY.first * 2 && second < RETRY.first * 3);
        assert!(RETRY.pause(60, salt) <= RETRY.longest * 3 / 2);
    }
    let distinct: BTreeSet<_> = (0..100).map(|salt| RETRY.pause(1, salt)).collect();
    assert!(distinct.len() > 50);
}

/// Several replacements over one pool, as store and engine would play them: the store's part is the
/// guard that only a ready server can be claimed.
struct Play {
    journals: Vec<Journal>,
    pool: BTreeMap<String, ServerState>,
}

#[derive(Clone, Debug)]
enum Op {
    /// Do what the journal says; the step, if it is one, comes out like this.
    Turn(usize, Result<(), Class>),
    /// The provisioner dies between ordering a step and journaling what came of it.
    Crash(usize),
    Cancel(usize),
    Confirm(usize),
    Release(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let class = prop::sample::select(vec![
        Ok(()),
        Ok(()),
        Ok(()),
        Ok(()),
        Err(Class::Transient),
        Err(Class::Permanent),
        Err(Class::Unsuitable),
        Err(Class::Fenced),
        Err(Class::Local),
    ]);
    prop_oneof![
        12 => (0..3_usize, class).prop_map(|(r, c)| Op::Turn(r, c)),
        2 => (0..3_usize).prop_map(Op::Crash),
        1 => (0..3_usize).prop_map(Op::Cancel),
        2 => (0..3_usize).prop_map(Op::Confirm),
        1 => (0..3_usize).prop_map(Op::Release),
    ]
}

impl Play {
    fn new() -> Self {
        Self {
            journals: vec![
                Journal::asked(),
                Journal::asked(),
                Journal::begun(Kind::Warm),
            ],
            pool: (0..3)
                .map(|n| (format!("s{n}"), ServerState::Ready))
                .collect(),
        }
    }

    fn take(&mut self, r: usize, event: &Event) -> bool {
        let Ok(change) = self.journals[r].handle(event, &RETRY) else {
            return false;
        };
        self.journals[r] = change.journal;
        if let Some(s) = change.spare {
            self.pool.insert(s.server, s.state);
        }
        true
    }

    fn claim(&mut self, r: usize) {
        let free = self.pool.iter().find(|(_, s)| **s == ServerState::Ready);
        let event = match free {
            Some((name, _)) => Event::Claimed {
                server: name.clone(),
                steps: STEPS.map(String::from).to_vec(),
            },
            None => Event::Waits {
                reason: "no_spare: all gone".into(),
            },
        };
        assert!(self.take(r, &event));
    }

    fn play(&mut self, op: &Op) {
        match op {
            Op::Turn(r, outcome) => match self.journals[*r].next() {
                Action::Claim => self.claim(*r),
                Action::Order { position, .. } => {
                    assert!(self.take(*r, &Event::Started { position }));
                    let event = match outcome {
                        Ok(()) => Event::Done { position },
                        Err(class) => failed(position, *class),
                    };
                    assert!(self.take(*r, &event));
                }
                Action::Offer => assert!(self.take(*r, &Event::Offered)),
                Action::Finish => assert!(self.take(*r, &Event::Finished)),
                Action::Abandon => assert!(self.take(*r, &Event::Abandoned)),
                Action::Await | Action::Ended => {}
            },
            Op::Crash(r) => {
                if let Action::Order { position, .. } = self.journals[*r].next() {
                    assert!(self.take(*r, &Event::Started { position }));
                }
                assert!(self.take(*r, &Event::Resumed));
            }
            Op::Cancel(r) => {
                self.take(*r, &Event::CancelAsked);
            }
            Op::Confirm(r) => {
                self.take(*r, &Event::Attached);
            }
            Op::Release(n) => {
                let state = self.pool.get_mut(&format!("s{n}")).unwrap();
                if *state == ServerState::Quarantined {
                    *state = ServerState::Ready;
                }
            }
        }
    }

    /// What must hold after every event.
    fn check(&self) {
        let mut held = BTreeSet::new();
        for journal in &self.journals {
            let at_work = journal.state.is_live() && journal.state != ReplacementState::Pending;
            let serves = journal.state == ReplacementState::Succeeded;
            let holds = at_work || serves && journal.kind == Kind::Replace;
            assert_eq!(journal.hand.is_some(), holds, "{journal:?}");
            if let Some(hand) = &journal.hand {
                assert!(held.insert(&hand.server), "{} in two hands", hand.server);
                let state = self.pool[&hand.server];
                assert!(
                    !matches!(state, ServerState::Ready | ServerState::Quarantined),
                    "{state:?} in hand"
                );
                // Never offered with a step undone.
                if matches!(
                    journal.state,
                    ReplacementState::Attaching | ReplacementState::Succeeded
                ) {
                    assert!(hand.steps.iter().all(|m| m.state == MarkState::Done));
                }
            }
        }
        for (name, state) in &self.pool {
            let free = [
                ServerState::Ready,
                ServerState::Standby,
                ServerState::Quarantined,
            ];
            let in_hand = !free.contains(state);
            assert_eq!(in_hand, held.contains(name), "{name} is {state:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_spare_in_two_hands_and_every_replacement_ends_or_says_what_it_waits_for(
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut play = Play::new();
        for op in &ops {
            play.play(op);
            play.check();
        }
        // Left alone with servers that do what they are told, each comes to its end or waits.
        for r in 0..3 {
            for _ in 0..40 {
                play.play(&Op::Turn(r, Ok(())));
                play.check();
            }
            let journal = &play.journals[r];
            if journal.state == ReplacementState::Pending {
                prop_assert!(journal.reason.is_some());
            } else {
                let offered = journal.state == ReplacementState::Attaching;
                prop_assert!(!journal.state.is_live() || offered, "{:?}", journal);
            }
        }
    }
}
