//! The life of one replacement as a machine. PURE: the journal and an event go in, the new journal
//! and what changes for the spare come out; [`Journal::next`] says what is to be done.
//!
//! ```text
//!            no spare, no role: waits, says why
//!               ┌──┐
//!               │  ▼     claimed             first step        last step         all steps done
//!   asked ───► pending ─────────► claiming ─────────► configuring ───► testing ─────────► attaching
//!               ▲  │                 │                    │               │                   │
//!               │  │ cancelled       └─────── a step failed for good ─────┘   every director  │
//!               │  ▼                            or cancelled                     confirmed    ▼
//!               │ cancelled ◄── cancelled ──────────┤                                     succeeded
//!               └── spare quarantined, passed over ─┘                                         │
//!                                                                     its spare was replaced  ▼
//!                                                                                        superseded
//! ```
//!
//! The same machine makes spares ready beforehand and cleans servers ([`Kind`]): such work has its server from the
//! start, ends with its last step, and takes no other server where that one fails. A spare on which everything was done
//! beforehand has no steps left: it is offered at once.
//!
//! The steps of a spare: `os_install` where its operating system has to be installed, `fence`, `os`,
//! `install` and `configure` for each software, `test`. The fence on the spare's disk comes first in
//! every run, so that an older run can do nothing there any more. A bare server has no disk to write
//! it on, and an installation wipes it, with the job directories of whatever was before: `os_install`
//! precedes the fence, and is guarded by the one in the store, which its driver asks before each
//! request that changes something.
#![warn(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use crate::{
    model::{inventory::ServerState, wire::ReplacementState},
    provisioner::order::{Class, FENCE, OS_INSTALL},
};

/// How often a step is tried, and how long between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries of one step on one spare, the first included.
    pub tries: u32,
    /// Wait before the second try; doubled before each further one.
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
}

impl Retry {
    /// A lost connection or a locked package database is gone after a second or two; a spare that
    /// needs longer costs more than the next one.
    pub const STANDARD: Self = Self {
        tries: 3,
        first: Duration::from_millis(500),
        longest: Duration::from_secs(30),
    };

    /// How long to wait after `failures` failures. `salt` spreads replacements that failed together
    /// over an additional half of the wait.
    #[must_use]
    pub fn pause(&self, failures: u32, salt: u64) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let doublings = (failures - 1).min(16);
        let wait = self.first.saturating_mul(1 << doublings).min(self.longest);
        // splitmix64's finaliser: neighbouring salts must not give neighbouring waits.
        let mut z = salt ^ u64::from(failures).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let share = u32::try_from((z ^ (z >> 31)) % 512).unwrap_or(0);
        wait.saturating_add(wait.saturating_mul(share) / 1024)
    }
}

/// What is worked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A spare for a failed server.
    Replace,
    /// A spare made ready beforehand.
    Warm,
    /// A server made a spare again.
    Clean,
}

impl Kind {
    /// The word in the store and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Warm => "warm",
            Self::Clean => "clean",
        }
    }

    /// The kind of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Replace, Self::Warm, Self::Clean]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }

    /// Where a server stands that is in hand for this.
    const fn in_hand(self, state: ServerState) -> ServerState {
        match self {
            Self::Replace | Self::Warm => state,
            Self::Clean => ServerState::Cleaning,
        }
    }
}

/// One replacement as its journal has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// What is worked at.
    pub kind: Kind,
    /// Where it stands.
    pub state: ReplacementState,
    /// Whether it was asked to stop.
    pub cancel: bool,
    /// What it waits for or why it ended.
    pub reason: Option<String>,
    /// Spares tried so far, the one in hand included.
    pub attempts: u32,
    /// The spare in hand: claimed and neither given back nor put aside.
    pub hand: Option<Hand>,
}

/// A spare in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hand {
    /// Its name.
    pub server: String,
    /// Whether this run has written its fence on it.
    pub fenced: bool,
    /// The steps as planned.
    pub steps: Vec<Mark>,
}

impl Hand {
    /// Where the fence is in its steps.
    #[must_use]
    pub fn fence_at(&self) -> usize {
        let fence = |m: &Mark| m.name == FENCE;
        self.steps.iter().position(fence).unwrap_or(0)
    }

    /// Whether something was begun that leaves traces on it.
    #[must_use]
    pub fn touched(&self) -> bool {
        self.steps.iter().any(Mark::leaves_traces)
    }
}

/// How far a planned step has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its name, see [`crate::provisioner::order::Step::name`].
    pub name: String,
    /// How far.
    pub state: MarkState,
    /// How often it failed with a transient error.
    pub failures: u32,
}

impl Mark {
    /// A step that was not begun.
    #[must_use]
    pub fn planned(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state: MarkState::Planned,
            failures: 0,
        }
    }

    /// Whether having begun it leaves something on the spare.
    fn leaves_traces(&self) -> bool {
        let changes = ["install", "configure", "clean", OS_INSTALL];
        let changes = changes.iter().any(|word| self.name.starts_with(word));
        changes && self.state != MarkState::Planned
    }

    /// Whether it is a script of which nobody has seen the end.
    fn may_go_on(&self) -> bool {
        let script = self.name.starts_with("install:") || self.name == "clean";
        script && self.state == MarkState::Running
    }
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkState {
    /// Not begun.
    Planned,
    /// Ordered; after a crash it may have ended or not.
    Running,
    /// Succeeded.
    Done,
    /// Failed, to be tried again or for good.
    Failed,
}

impl MarkState {
    /// The word in the store and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Planned, Self::Running, Self::Done, Self::Failed]
            .into_iter()
            .find(|s| s.as_str() == word)
    }
}

/// What is to be done next for a replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find its role and claim a spare, or say why neither can be.
    Claim,
    /// Order a step of the spare in hand, after as many failures of it.
    Order {
        /// Index into [`Hand::steps`].
        position: usize,
        /// How often it failed before: says how long to wait first.
        failures: u32,
    },
    /// Offer the spare to the directors: every step is done.
    Offer,
    /// The server is what it was to be: every step is done.
    Finish,
    /// Put the spare down: the replacement is cancelled.
    Abandon,
    /// Nothing: directors have to confirm.
    Await,
    /// Nothing: it has ended.
    Ended,
}

/// What happened to a replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another run of the provisioner took it over, with a higher fence.
    Resumed,
    /// No spare can be claimed now.
    Waits {
        /// Why, `no_spare: …`.
        reason: String,
    },
    /// A spare was claimed for it.
    Claimed {
        /// Its name.
        server: String,
        /// Names of the steps planned for it.
        steps: Vec<String>,
    },
    /// A step is about to be ordered.
    Started {
        /// Which.
        position: usize,
    },
    /// A step succeeded.
    Done {
        /// Which.
        position: usize,
    },
    /// A step failed.
    Failed {
        /// Which.
        position: usize,
        /// Whether trying again may help.
        class: Class,
        /// Why, `code: detail`.
        reason: String,
    },
    /// The director or an operator wants it stopped.
    CancelAsked,
    /// The spare in hand was put down on that wish.
    Abandoned,
    /// The spare was offered to the directors.
    Offered,
    /// What was no replacement is done.
    Finished,
    /// Every director concerned has the spare in service.
    Attached,
    /// Its spare failed in its turn and another one is in service.
    Superseded,
}

/// What an event does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The journal from now on.
    pub journal: Journal,
    /// What becomes of the spare that is or was in hand.
    pub spare: Option<SpareChange>,
}

/// What becomes of a spare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpareChange {
    /// Its name.
    pub server: String,
    /// Where it stands from now on.
    pub state: ServerState,
    /// Why, for people.
    pub reason: Option<String>,
    /// How the attempt with it ended, where it did.
    pub ended: Option<AttemptEnd>,
}

/// How the attempt with a spare ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// A step failed for good: quarantined.
    Failed,
    /// It is sound, but not what the role needs: free again.
    PassedOver,
    /// The replacement was cancelled.
    Abandoned,
    /// It is ready, or clean.
    Finished,
}

/// An event that cannot happen to a replacement that stands where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a replacement that is {} cannot take {event:?}", state.as_str())]
pub struct Illegal {
    /// Where it stands.
    pub state: ReplacementState,
    /// What was said to have happened.
    pub event: Box<Event>,
}

/// The reason of a spare that was put down half way.
pub const HALF_CONFIGURED: &str = "half configured: cancelled, clean it";

/// The reason of a server whose cleaning was cancelled.
pub const NOT_CLEANED: &str = "cleaning was cancelled: clean it";

impl Journal {
    /// A replacement that was just asked for.
    #[must_use]
    pub const fn asked() -> Self {
        Self::begun(Kind::Replace)
    }

    /// Work of which nothing is done.
    #[must_use]
    pub const fn begun(kind: Kind) -> Self {
        Self {
            kind,
            state: ReplacementState::Pending,
            cancel: false,
            reason: None,
            attempts: 0,
            hand: None,
        }
    }

    /// What is to be done.
    #[must_use]
    pub fn next(&self) -> Action {
        match (self.state, &self.hand) {
            (ReplacementState::Pending, _) => Action::Claim,
            (
                ReplacementState::Claiming
                | ReplacementState::Configuring
                | ReplacementState::Testing,
                Some(hand),
            ) => {
                // A script that was begun goes on without us: nobody else may have the spare before its end.
                if self.cancel && !hand.steps.iter().any(Mark::may_go_on) {
                    return Action::Abandon;
                }
                // Of a spare on which everything was done beforehand there is none.
                let fence = hand.fence_at();
                let open = |(at, m): &(usize, &Mark)| {
                    m.state != MarkState::Done || (*at == fence && !hand.fenced)
                };
                match hand.steps.iter().enumerate().find(open) {
                    Some((position, m)) => Action::Order {
                        position,
                        failures: m.failures,
                    },
                    None if self.kind == Kind::Replace => Action::Offer,
                    None => Action::Finish,
                }
            }
            (ReplacementState::Attaching, _) => Action::Await,
            (
                ReplacementState::Claiming
                | ReplacementState::Configuring
                | ReplacementState::Testing
                | ReplacementState::Succeeded
                | ReplacementState::Failed
                | ReplacementState::Cancelled
                | ReplacementState::Superseded
                | ReplacementState::Refused,
                _,
            ) => Action::Ended,
        }
    }

    /// Takes an event in.
    ///
    /// # Errors
    /// [`Illegal`] where it cannot happen now: a fault in the caller, or a second writer.
    pub fn handle(&self, event: &Event, retry: &Retry) -> Result<Change, Illegal> {
        use ReplacementState as S;
        let illegal = || Illegal {
            state: self.state,
            event: Box::new(event.clone()),
        };
        let mut journal = self.clone();
        let working = matches!(self.state, S::Claiming | S::Configuring | S::Testing);
        let spare = match event {
            Event::Resumed => {
                if let Some(hand) = &mut journal.hand {
                    hand.fenced = false;
                }
                None
            }
            Event::Waits { reason } => {
                if self.state != S::Pending {
                    return Err(illegal());
                }
                journal.reason = Some(reason.clone());
                None
            }
            Event::Claimed { server, steps } => {
                if self.state != S::Pending || self.cancel {
                    return Err(illegal());
                }
                journal.state = S::Claiming;
                journal.reason = None;
                journal.attempts += 1;
                journal.hand = Some(Hand {
                    server: server.clone(),
                    fenced: false,
                    steps: steps.iter().map(Mark::planned).collect(),
                });
                SpareChange::to(server, self.kind.in_hand(ServerState::Claimed))
            }
            Event::Started { position } => {
                let hand = journal
                    .hand
                    .as_mut()
                    .filter(|_| working)
                    .ok_or_else(illegal)?;
                let expected = Action::Order {
                    position: *position,
                    failures: hand.steps.get(*position).map_or(0, |m| m.failures),
                };
                let mark = hand.steps.get_mut(*position).ok_or_else(illegal)?;
                if self.next() != expected {
                    return Err(illegal());
                }
                mark.state = MarkState::Running;
                let (state, spare) = if mark.name == "test" {
                    (S::Testing, ServerState::Testing)
                } else {
                    (S::Configuring, ServerState::Configuring)
                };
                // A fence that a restart repeats during the test is part of the test.
                if self.state != S::Testing {
                    journal.state = state;
                    SpareChange::to(&hand.server, self.kind.in_hand(spare))
                } else {
                    None
                }
            }
            Event::Done { position } => {
                let hand = journal
                    .hand
                    .as_mut()
                    .filter(|_| working)
                    .ok_or_else(illegal)?;
                let fence = hand.fence_at();
                let mark = hand.steps.get_mut(*position).ok_or_else(illegal)?;
                if mark.state != MarkState::Running {
                    return Err(illegal());
                }
                mark.state = MarkState::Done;
                journal.reason = None;
                if *position == fence {
                    hand.fenced = true;
                }
                None
            }
            Event::Failed {
                position,
                class,
                reason,
            } => {
                let hand = journal
                    .hand
                    .as_mut()
                    .filter(|_| working)
                    .ok_or_else(illegal)?;
                let mark = hand.steps.get_mut(*position).ok_or_else(illegal)?;
                if mark.state != MarkState::Running {
                    return Err(illegal());
                }
                mark.state = MarkState::Failed;
                mark.failures += u32::from(*class != Class::Local);
                let step = mark.name.clone();
                match class {
                    Class::Transient if mark.failures < retry.tries => None,
                    Class::Transient | Class::Permanent | Class::Fenced => journal.put_down(
                        ServerState::Quarantined,
                        Some(format!("{step}: {reason}")),
                        AttemptEnd::Failed,
                    ),
                    Class::Local => {
                        journal.reason = Some(format!("{step}: {reason}"));
                        None
                    }
                    // As if it were cancelled: cleaned, and at fault in nothing.
                    Class::Outdated => {
                        let state = if hand.touched() {
                            ServerState::Quarantined
                        } else {
                            ServerState::Ready
                        };
                        let reason = Some(format!("{step}: {reason}"));
                        let spare = journal.put_down(state, reason, AttemptEnd::Abandoned);
                        // What was made ready beforehand is begun anew at once: nothing failed.
                        if self.kind != Kind::Replace {
                            journal.state = S::Cancelled;
                        }
                        spare
                    }
                    // The whole spare is not what it was when it was looked at first.
                    Class::Unsuitable if hand.touched() => journal.put_down(
                        ServerState::Quarantined,
                        Some(format!("{step}: {reason}")),
                        AttemptEnd::Failed,
                    ),
                    Class::Unsuitable => journal.put_down(
                        ServerState::Ready,
                        Some(format!("{step}: {reason}")),
                        AttemptEnd::PassedOver,
                    ),
                }
            }
            Event::CancelAsked => match self.state {
                S::Pending => {
                    journal.cancel = true;
                    journal.state = S::Cancelled;
                    journal.reason = None;
                    None
                }
                S::Claiming | S::Configuring | S::Testing => {
                    journal.cancel = true;
                    None
                }
                S::Attaching
                | S::Succeeded
                | S::Failed
                | S::Cancelled
                | S::Superseded
                | S::Refused => return Err(illegal()),
            },
            Event::Abandoned => {
                if self.next() != Action::Abandon {
                    return Err(illegal());
                }
                let spare = if self.hand.as_ref().is_some_and(Hand::touched) {
                    journal.put_down(
                        ServerState::Quarantined,
                        Some(HALF_CONFIGURED.to_owned()),
                        AttemptEnd::Abandoned,
                    )
                } else {
                    journal.put_down(ServerState::Ready, None, AttemptEnd::Abandoned)
                };
                journal.state = S::Cancelled;
                spare
            }
            Event::Offered => {
                if self.next() != Action::Offer {
                    return Err(illegal());
                }
                journal.state = S::Attaching;
                let server = self.hand.as_ref().map(|h| h.server.clone());
                server.map(|server| SpareChange {
                    server,
                    state: ServerState::Testing,
                    reason: Some("offered, a director has to confirm it".to_owned()),
                    ended: None,
                })
            }
            Event::Finished => {
                if self.next() != Action::Finish {
                    return Err(illegal());
                }
                let state = match self.kind {
                    Kind::Warm => ServerState::Standby,
                    Kind::Clean | Kind::Replace => ServerState::Ready,
                };
                let spare = journal.put_down(state, None, AttemptEnd::Finished);
                journal.state = S::Succeeded;
                spare
            }
            Event::Attached => {
                if self.state != S::Attaching {
                    return Err(illegal());
                }
                journal.state = S::Succeeded;
                journal.reason = None;
                self.hand
                    .as_ref()
                    .and_then(|h| SpareChange::to(&h.server, ServerState::Serving))
            }
            Event::Superseded => {
                if !matches!(self.state, S::Attaching | S::Succeeded) {
                    return Err(illegal());
                }
                journal.state = S::Superseded;
                None
            }
        };
        Ok(Change { journal, spare })
    }

    /// Lets go of the spare in hand and looks for another.
    fn put_down(
        &mut self,
        state: ServerState,
        reason: Option<String>,
        end: AttemptEnd,
    ) -> Option<SpareChange> {
        self.state = ReplacementState::Pending;
        self.reason = None;
        // It has no other one to look for.
        if self.kind != Kind::Replace {
            self.state = ReplacementState::Failed;
            self.reason.clone_from(&reason);
        }
        // What is not cleaned is no spare.
        let dirty = self.kind == Kind::Clean && end != AttemptEnd::Finished;
        let state = if dirty {
            ServerState::Quarantined
        } else {
            state
        };
        let reason = reason.or_else(|| dirty.then(|| NOT_CLEANED.to_owned()));
        // A cancelled one must not claim again.
        if self.cancel {
            self.state = ReplacementState::Cancelled;
        }
        self.hand.take().map(|hand| SpareChange {
            server: hand.server,
            state,
            reason,
            ended: Some(end),
        })
    }
}

impl SpareChange {
    // The `Option` spares the caller a match arm of another shape.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "every arm of `handle` yields an option"
    )]
    fn to(server: &str, state: ServerState) -> Option<Self> {
        Some(Self {
            server: server.to_owned(),
            state,
            reason: None,
            ended: None,
        })
    }
}

#[cfg(test)]
mod tests;
