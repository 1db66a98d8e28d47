//! What is asked of a controller next, from what was read of it. PURE.
//!
//! ```text
//!   stopping ──off──► loading ──image in, override set──► starting ──asked──► waking ──on──► installing
//!      ▲ comes on by itself │                                                    │            │      │
//!      └────────────────────┘                  it was on, and nobody looked: the │        off │      │ answers with
//!                                                             installation ended │            │      │ what is wanted
//!                                                                                ▼            ▼      ▼
//!                                      done ◄──answers── returning ◄─────────────── unloading (override
//!                                        ▲                 (on again)                   │      gone, image out)
//!                                        └────────────────────answers───────────────────┘
//! ```
//!
//! A boot override that cannot be put away is the end: the machine would be wiped when it boots next. An image that stays
//! in its drive without one is told, and keeps nobody from its role.
//!
//! Power goes off first: whatever answers afterwards has booted since. A machine that is being installed
//! is never powered off by us.

use crate::model::machine::Boot;

/// How far an installation has come: kept in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Power is to go off.
    Stopping,
    /// The image goes in, the boot override is set, while power is off.
    Loading,
    /// Power is to come on.
    Starting,
    /// Power was asked for: it may have come on, whoever looked.
    Waking,
    /// It boots, and installs.
    Installing,
    /// Image and override go away.
    Unloading,
    /// Power comes on again after an installation that ended with power off.
    Returning,
}

impl Phase {
    /// The word in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopping => "stopping",
            Self::Loading => "loading",
            Self::Starting => "starting",
            Self::Waking => "starting asked",
            Self::Installing => "installing",
            Self::Unloading => "unloading",
            Self::Returning => "returning",
        }
    }

    /// The phase of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [
            Self::Stopping,
            Self::Loading,
            Self::Starting,
            Self::Waking,
            Self::Installing,
            Self::Unloading,
            Self::Returning,
        ]
        .into_iter()
        .find(|p| p.as_str() == word)
    }

    /// Whether the disk is still as it was, and what is asked for leads to its wiping.
    #[must_use]
    pub const fn is_ahead(self) -> bool {
        match self {
            Self::Stopping | Self::Loading | Self::Starting | Self::Waking => true,
            Self::Installing | Self::Unloading | Self::Returning => false,
        }
    }
}

/// Whether the machine has power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It has.
    On,
    /// It has not.
    Off,
    /// On the way, or not told.
    Changing,
}

/// What was read of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Power.
    pub power: Power,
    /// Where it boots from next, where an override is in force.
    pub boots_from: Option<String>,
    /// The override outlives a boot, whatever was asked.
    pub lasting: bool,
    /// The virtual drive, where one is used.
    pub media: Option<Media>,
}

/// A virtual drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// Whether there is something in it. What `Image` says of an empty one means nothing: some
    /// controllers keep it.
    pub inserted: bool,
    /// What is in it.
    pub image: Option<String>,
}

/// A request that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// Power off, at once.
    PowerOff,
    /// Power on.
    PowerOn,
    /// Put the image into the virtual drive.
    Insert,
    /// Empty the virtual drive.
    Eject,
    /// Boot from network or virtual drive, once.
    Override,
    /// Boot as always.
    ClearOverride,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Request this.
    Ask(Request),
    /// Nothing now; the machine may not answer with the new operating system yet.
    Wait,
    /// Nothing now; it may answer.
    Boots,
    /// Nothing any more.
    Done,
    /// This was asked for again and again and does not happen.
    Stuck(Request),
}

/// Requests of one phase, all kinds together: one that shows no effect so often shows none.
const MOST_ASKS: u32 = 6;
/// So often a machine may come on by itself while it should be off.
const MOST_ROUNDS: u32 = 3;

/// Where an installation is. Only the phase outlives a restart: what was asked for is then asked for
/// once more, which harms nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// See [`Phase`].
    pub phase: Phase,
    last: Option<Request>,
    /// Readings since the last request.
    waited: u32,
    asks: u32,
    rounds: u32,
    /// The image was inserted by this run while power was off: some controllers tell another URL.
    inserted: bool,
    /// What could not be put away, request by request.
    given_up: GivenUp,
    /// Every reading since power was asked for was this run's.
    watched: bool,
    off: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct GivenUp {
    eject: bool,
    clear: bool,
}

impl GivenUp {
    const fn has(self, request: Request) -> bool {
        match request {
            Request::Eject => self.eject,
            Request::ClearOverride => self.clear,
            Request::PowerOff | Request::PowerOn | Request::Insert | Request::Override => false,
        }
    }
}

/// Power has to be seen off so often before an installation has ended: some controllers say so for a
/// moment of a restart.
const OFF: u32 = 2;

impl State {
    /// In a phase, by this run or one before.
    #[must_use]
    pub const fn at(phase: Phase) -> Self {
        Self {
            phase,
            last: None,
            waited: 0,
            asks: 0,
            rounds: 0,
            inserted: false,
            given_up: GivenUp {
                eject: false,
                clear: false,
            },
            watched: false,
            off: 0,
        }
    }

    fn enter(self, phase: Phase) -> Self {
        Self {
            rounds: self.rounds,
            inserted: self.inserted && phase == Phase::Starting,
            ..Self::at(phase)
        }
    }

    /// A request was refused for good. `true` where it goes on without.
    #[must_use]
    pub fn refused(&mut self, request: Request) -> bool {
        let tidying = matches!(request, Request::Eject | Request::ClearOverride);
        if tidying && self.phase == Phase::Unloading {
            *self = self.without(request);
            return true;
        }
        // A state that it has already: the next reading shows it.
        matches!(request, Request::PowerOff | Request::PowerOn)
    }

    /// Gives up one request, and what else is to be asked begins afresh.
    fn without(self, request: Request) -> Self {
        let GivenUp { eject, clear } = self.given_up;
        Self {
            given_up: GivenUp {
                eject: eject || request == Request::Eject,
                clear: clear || request == Request::ClearOverride,
            },
            last: None,
            waited: 0,
            asks: 0,
            ..self
        }
    }

    /// Whether this can be put away no more.
    #[must_use]
    pub const fn has_given_up(&self, request: Request) -> bool {
        self.given_up.has(request)
    }

    /// A reading failed: what happened meanwhile was not seen.
    #[must_use]
    pub const fn unseen(self) -> Self {
        Self {
            watched: false,
            ..self
        }
    }

    /// The last request may not have reached the controller: it is made again at once, and not counted.
    #[must_use]
    pub fn unasked(self) -> Self {
        Self {
            last: None,
            asks: self.asks.saturating_sub(1),
            inserted: false,
            ..self
        }
    }

    /// Asks where that was not done lately, in vain.
    fn ask(mut self, request: Request, patience: u32) -> (Self, Next) {
        if self.last == Some(request) && self.waited < patience {
            self.waited += 1;
            return (self, Next::Wait);
        }
        if self.asks >= MOST_ASKS {
            return (self, Next::Stuck(request));
        }
        self.asks += 1;
        self.waited = 0;
        self.last = Some(request);
        self.inserted = match request {
            Request::Insert => true,
            Request::Eject => false,
            _ => self.inserted,
        };
        (self, Next::Ask(request))
    }
}

/// What is done next. `answers`: the machine was seen with the wanted operating system. A request that
/// shows no effect is made again after `patience` readings.
#[must_use]
pub fn decide(
    state: State,
    reading: &Reading,
    boot: &Boot,
    answers: bool,
    patience: u32,
) -> (State, Next) {
    let go = |state: State, phase| decide(state.enter(phase), reading, boot, answers, patience);
    match (state.phase, reading.power) {
        (Phase::Stopping, Power::Off) => go(state, Phase::Loading),
        (Phase::Stopping, Power::On) => state.ask(Request::PowerOff, patience),
        (Phase::Loading, Power::On) if state.rounds >= MOST_ROUNDS => {
            (state, Next::Stuck(Request::PowerOff))
        }
        (Phase::Loading, Power::On) => {
            let rounds = state.rounds + 1;
            go(State { rounds, ..state }, Phase::Stopping)
        }
        (Phase::Loading, Power::Off) => match missing(&state, reading, boot) {
            Some(request) => state.ask(request, patience),
            None => go(state, Phase::Starting),
        },
        (Phase::Starting, Power::Off) => {
            let waking = State {
                watched: true,
                ..state.enter(Phase::Waking)
            };
            waking.ask(Request::PowerOn, patience)
        }
        (Phase::Waking, Power::Off) => {
            let gone = override_left(reading).is_none();
            // An override that outlives boots does not tell whether there was one.
            match gone || (reading.lasting && !state.watched) {
                false => state.ask(Request::PowerOn, patience),
                // Power may be slow.
                true if state.waited < patience => {
                    let waited = state.waited + 1;
                    (State { waited, ..state }, Next::Wait)
                }
                true => go(state, Phase::Unloading),
            }
        }
        (Phase::Starting | Phase::Waking, Power::On) => go(state, Phase::Installing),
        (Phase::Installing, _) if answers => go(state, Phase::Unloading),
        (Phase::Installing, Power::Off) if state.off + 1 >= OFF => go(state, Phase::Unloading),
        (Phase::Installing, power) => {
            let off = if power == Power::Off {
                state.off + 1
            } else {
                0
            };
            (State { off, ..state }, Next::Boots)
        }
        (Phase::Unloading, _) => match left(reading).find(|r| !state.given_up.has(*r)) {
            Some(request) => match state.ask(request, patience) {
                (state, Next::Stuck(_)) => {
                    decide(state.without(request), reading, boot, answers, patience)
                }
                asked => asked,
            },
            // It would be installed again by its next boot, in the middle of its service.
            None if override_left(reading).is_some() => {
                (state, Next::Stuck(Request::ClearOverride))
            }
            None if answers => (state, Next::Done),
            None => go(state, Phase::Returning),
        },
        (Phase::Returning, _) if answers && override_left(reading).is_some() => {
            go(state, Phase::Unloading)
        }
        (Phase::Returning, _) if answers => (state, Next::Done),
        (Phase::Returning, Power::Off) => match state.ask(Request::PowerOn, patience) {
            (state, Next::Wait) => (state, Next::Boots),
            asked => asked,
        },
        (Phase::Returning, _) => (state, Next::Boots),
        (Phase::Stopping | Phase::Loading | Phase::Starting | Phase::Waking, Power::Changing) => {
            (state, Next::Wait)
        }
    }
}

/// What is missing before power may come on.
fn missing(state: &State, reading: &Reading, boot: &Boot) -> Option<Request> {
    if let Boot::VirtualMedia(url) = boot {
        match &reading.media {
            Some(Media { inserted: true, .. }) if state.inserted => {}
            Some(Media {
                inserted: true,
                image: Some(image),
            }) if image == url => {}
            Some(Media { inserted: true, .. }) => return Some(Request::Eject),
            Some(Media {
                inserted: false, ..
            })
            | None => return Some(Request::Insert),
        }
    }
    let from = reading.boots_from.as_deref();
    let wanted = match boot {
        Boot::Pxe => from == Some("Pxe"),
        Boot::VirtualMedia(_) => matches!(from, Some("Cd" | "UsbCd")),
    };
    (!wanted).then_some(Request::Override)
}

/// What could begin the installation again, the worst first.
pub fn left(reading: &Reading) -> impl Iterator<Item = Request> + use<> {
    let image = reading.media.as_ref().is_some_and(|m| m.inserted);
    let image = image.then_some(Request::Eject);
    override_left(reading).into_iter().chain(image)
}

fn override_left(reading: &Reading) -> Option<Request> {
    let boots = reading.boots_from.as_deref();
    matches!(boots, Some("Pxe" | "Cd" | "UsbCd")).then_some(Request::ClearOverride)
}

#[cfg(test)]
mod tests;
