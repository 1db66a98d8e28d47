use proptest::prelude::*;

use super::*;

const PATIENCE: u32 = 3;
const IMAGE: &str = "https://images.example/debian-12.iso";

/// A machine with its controller, as vendors make them.
#[derive(Clone, Debug)]
struct Machine {
    power: Power,
    /// Power state to come, and after how many readings.
    pending: Option<(Power, u8)>,
    boots_from: Option<String>,
    media: Media,
    installed: bool,
    /// Readings until the installation that runs is over.
    installing: Option<u8>,
    /// How long power takes to change.
    slow: u8,
    /// An override stays, whatever was asked.
    continuous: bool,
    /// `Image` stays when the drive is emptied.
    sticky: bool,
    /// Tells the image by another URL.
    renames: bool,
    /// The installation ends with power off.
    ends_off: bool,
    /// Takes so many requests without doing anything.
    deaf: u8,
    /// We asked for power: what begins now is ours.
    started: bool,
    /// Installations that began when we asked for power, or later.
    installations: u8,
    /// We asked for power in vain.
    start_lost: bool,
}

impl Machine {
    fn reading(&mut self, boot: &Boot) -> Reading {
        match &mut self.pending {
            Some((power, 0)) => {
                let on = *power == Power::On && self.power != Power::On;
                self.power = *power;
                self.pending = None;
                if on {
                    self.boot(boot);
                }
            }
            Some((_, left)) => *left -= 1,
            None => {}
        }
        match &mut self.installing {
            Some(0) => {
                self.installing = None;
                self.installed = true;
                if self.ends_off {
                    self.power = Power::Off;
                }
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Reading {
            power: self.power,
            boots_from: self.boots_from.clone(),
            lasting: self.continuous && self.boots_from.is_some(),
            media: matches!(boot, Boot::VirtualMedia(_)).then(|| self.media.clone()),
        }
    }

    fn boot(&mut self, boot: &Boot) {
        let from = self.boots_from.as_deref();
        let image = self.media.image.as_deref();
        let ours = match boot {
            Boot::Pxe => from == Some("Pxe"),
            Boot::VirtualMedia(_) => {
                from == Some("Cd")
                    && self.media.inserted
                    && image.is_some_and(|i| i.ends_with("debian-12.iso"))
            }
        };
        if ours {
            self.installing = Some(4);
            self.installations += u8::from(self.started);
            self.installed = false;
        }
        if !self.continuous {
            self.boots_from = None;
        }
    }

    fn take(&mut self, request: Request, boot: &Boot) {
        if self.deaf > 0 {
            self.deaf -= 1;
            self.start_lost |= request == Request::PowerOn;
            return;
        }
        match request {
            Request::PowerOff => {
                assert!(self.installing.is_none() || !self.started, "cut off");
                self.pending = Some((Power::Off, self.slow));
            }
            Request::PowerOn => {
                self.started = true;
                self.pending = Some((Power::On, self.slow));
            }
            Request::Insert => {
                assert!(!self.media.inserted, "two images in one drive");
                let image = if self.renames {
                    "//images/debian-12.iso"
                } else {
                    IMAGE
                };
                self.media = Media {
                    inserted: true,
                    image: Some(image.to_owned()),
                };
            }
            Request::Eject => {
                self.media.inserted = false;
                if !self.sticky {
                    self.media.image = None;
                }
            }
            Request::Override => {
                let from = if *boot == Boot::Pxe { "Pxe" } else { "Cd" };
                self.boots_from = Some(from.to_owned());
            }
            Request::ClearOverride => self.boots_from = None,
        }
    }

    fn answers(&self) -> bool {
        self.power == Power::On && self.installed && self.installing.is_none()
    }
}

fn machine() -> impl Strategy<Value = Machine> {
    let image = prop::option::of(prop::sample::select(vec![
        "https://other.example/rescue.iso",
        IMAGE,
    ]));
    (
        prop::sample::select(vec![Power::On, Power::Off, Power::Changing]),
        prop::option::of(prop::sample::select(vec!["Pxe", "Cd", "Hdd"])),
        (any::<bool>(), image),
        any::<[bool; 4]>(),
        0_u8..4,
        0_u8..3,
    )
        .prop_map(|(power, from, (inserted, image), flags, slow, deaf)| {
            let [continuous, sticky, renames, ends_off] = flags;
            Machine {
                power,
                // One that changes comes to its end.
                pending: (power == Power::Changing).then_some((Power::On, slow)),
                boots_from: from.map(str::to_owned),
                media: Media {
                    inserted: inserted && image.is_some(),
                    image: image.map(str::to_owned),
                },
                installed: false,
                installing: None,
                slow,
                continuous,
                sticky,
                renames,
                ends_off,
                deaf,
                started: false,
                installations: 0,
                start_lost: false,
            }
        })
}

proptest! {
    /// Whatever the controller is like and wherever it stands, and however often we start anew: the
    /// machine gets its operating system, once, in a bounded number of readings, and no medium and no
    /// override is left that would begin it again.
    #[test]
    fn from_any_state_a_machine_is_installed(
        mut machine in machine(),
        pxe in any::<bool>(),
        restarts in prop::collection::btree_set(0_u32..60, 0..4),
        unread in prop::collection::btree_set(0_u32..60, 0..6),
    ) {
        let boot = if pxe { Boot::Pxe } else { Boot::VirtualMedia(IMAGE.to_owned()) };
        let mut state = State::at(Phase::Stopping);
        // Noted before its requests are made.
        let mut noted = state.phase;
        let mut done = false;
        for turn in 0..200 {
            if restarts.contains(&turn) {
                state = State::at(noted);
            }
            let reading = machine.reading(&boot);
            if unread.contains(&turn) {
                state = state.unseen();
                continue;
            }
            let (after, next) = decide(state, &reading, &boot, machine.answers(), PATIENCE);
            state = after;
            noted = state.phase;
            match next {
                Next::Ask(request) => {
                    let off = request == Request::PowerOff;
                    prop_assert!(!off || state.phase == Phase::Stopping);
                    machine.take(request, &boot);
                }
                Next::Wait | Next::Boots => {}
                Next::Done => {
                    done = true;
                    break;
                }
                Next::Stuck(request) => prop_assert!(false, "stuck: {request:?} {state:?} {machine:?}"),
            }
        }
        // Nobody could tell whether such a machine was on meanwhile: it is not installed a second time.
        prop_assert!(done || (machine.start_lost && machine.continuous), "{state:?} {machine:?}");
        prop_assert!(!done || machine.answers());
        prop_assert!(machine.installations <= 1, "{machine:?}");
        prop_assert!(pxe || !machine.media.inserted);
        let left = if pxe { "Pxe" } else { "Cd" };
        prop_assert_ne!(machine.boots_from.as_deref(), Some(left));
    }

    /// A controller that does nothing is not asked for ever.
    #[test]
    fn a_controller_that_does_nothing_is_given_up(
        machine in machine(),
        pxe in any::<bool>(),
    ) {
        let boot = if pxe { Boot::Pxe } else { Boot::VirtualMedia(IMAGE.to_owned()) };
        let mut machine = Machine { deaf: u8::MAX, ..machine };
        let mut state = State::at(Phase::Stopping);
        let mut asked = 0;
        let stuck = (0..100).any(|_| {
            let reading = machine.reading(&boot);
            let (after, next) = decide(state, &reading, &boot, false, PATIENCE);
            state = after;
            asked += u32::from(matches!(next, Next::Ask(_)));
            matches!(next, Next::Stuck(_))
        });
        prop_assert!(stuck, "{state:?}");
        prop_assert!(asked <= 2 * MOST_ASKS);
    }
}

#[test]
fn a_phase_has_a_word() {
    for phase in [
        Phase::Stopping,
        Phase::Loading,
        Phase::Starting,
        Phase::Waking,
        Phase::Installing,
        Phase::Unloading,
        Phase::Returning,
    ] {
        assert_eq!(Phase::from_word(phase.as_str()), Some(phase));
    }
    assert_eq!(Phase::from_word("?"), None);
}

/// What is asked of a machine that answers, by a controller that refuses `refused`, and how that ends.
fn unloaded(refused: &[Request]) -> (Vec<Request>, Next) {
    let boot = Boot::VirtualMedia(IMAGE.to_owned());
    let mut reading = Reading {
        power: Power::On,
        boots_from: Some("Cd".to_owned()),
        lasting: true,
        media: Some(Media {
            inserted: true,
            image: Some(IMAGE.to_owned()),
        }),
    };
    let mut state = State::at(Phase::Installing);
    let mut asked = Vec::new();
    loop {
        let (after, next) = decide(state, &reading, &boot, true, PATIENCE);
        state = after;
        let Next::Ask(request) = next else {
            return (asked, next);
        };
        asked.push(request);
        match request {
            _ if refused.contains(&request) => assert!(state.refused(request)),
            Request::ClearOverride => reading.boots_from = None,
            Request::Eject => reading.media = None,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_refused_request_keeps_nothing_else_from_being_put_away() {
    let both = [Request::ClearOverride, Request::Eject];
    assert_eq!(unloaded(&[]), (both.to_vec(), Next::Done));
    // An image alone boots nothing.
    assert_eq!(unloaded(&[Request::Eject]), (both.to_vec(), Next::Done));
}

#[test]
fn a_boot_override_that_stays_keeps_a_machine_from_its_role() {
    let both = [Request::ClearOverride, Request::Eject];
    let left = Next::Stuck(Request::ClearOverride);
    assert_eq!(
        unloaded(&[Request::ClearOverride]),
        (both.to_vec(), left.clone())
    );
    assert_eq!(unloaded(&both), (both.to_vec(), left));
    // Nor does one that is ignored.
    let reading = Reading {
        power: Power::On,
        boots_from: Some("Pxe".to_owned()),
        lasting: false,
        media: None,
    };
    let mut state = State::at(Phase::Returning);
    let ended = (0..100).find_map(|_| {
        let (after, next) = decide(state, &reading, &Boot::Pxe, true, PATIENCE);
        state = after;
        (!matches!(next, Next::Ask(_) | Next::Wait)).then_some(next)
    });
    assert_eq!(ended, Some(Next::Stuck(Request::ClearOverride)));
}

#[test]
fn an_installation_that_ended_unseen_is_not_made_again() {
    let reading = |lasting: bool| Reading {
        power: Power::Off,
        boots_from: lasting.then(|| "Pxe".to_owned()),
        lasting,
        media: None,
    };
    for lasting in [false, true] {
        let mut state = State::at(Phase::Waking);
        for _ in 0..=PATIENCE {
            let (after, next) = decide(state, &reading(lasting), &Boot::Pxe, false, PATIENCE);
            state = after;
            let again = state.phase == Phase::Waking && next == Next::Ask(Request::PowerOn);
            assert!(!again, "{state:?}");
        }
        assert_ne!(state.phase, Phase::Waking);
    }
    // An override that is good for one boot is still there: there was none.
    let reading = Reading {
        boots_from: Some("Pxe".to_owned()),
        ..reading(false)
    };
    let (_, next) = decide(
        State::at(Phase::Waking),
        &reading,
        &Boot::Pxe,
        false,
        PATIENCE,
    );
    assert_eq!(next, Next::Ask(Request::PowerOn));
}

#[test]
fn a_machine_that_comes_on_by_itself_again_and_again_is_given_up() {
    let mut state = State::at(Phase::Stopping);
    let off = |power| Reading {
        power,
        boots_from: None,
        lasting: false,
        media: None,
    };
    for _ in 0..=MOST_ROUNDS {
        let (after, next) = decide(state, &off(Power::Off), &Boot::Pxe, false, PATIENCE);
        assert_eq!(next, Next::Ask(Request::Override));
        (state, _) = decide(after, &off(Power::On), &Boot::Pxe, false, PATIENCE);
    }
    let (_, next) = decide(state, &off(Power::On), &Boot::Pxe, false, PATIENCE);
    assert_eq!(next, Next::Stuck(Request::PowerOff));
}
