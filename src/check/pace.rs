//! When a target is asked next. PURE: instants come in, instants go out.

use std::{fmt::Display, time::Duration};

use tokio::time::Instant;

use crate::model::{CheckKind, CheckSpec, CheckTiming, FailReason, Outcome, Phase};

/// A configuration that says less still leaves the servers alone this long.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// The timer's structure cannot hold years; nobody means more than this.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// A handful of new targets is asked within this.
const FIRST_WINDOW: Duration = Duration::from_millis(100);

/// Many new targets begin this far apart on average.
const FIRST_GAP: Duration = Duration::from_millis(1);

/// Begun later than this after its time, a probe is late.
const LATE: Duration = Duration::from_millis(100);

/// Turns of so long are a busy host's everyday.
const LEAST_LATE: Duration = Duration::from_millis(16);

/// Lateness is judged over this long.
const WINDOW: Duration = Duration::from_secs(10);

/// One in so many may be late.
const TOLERATED: u64 = 100;

/// An interval as it is kept.
pub(super) fn clamp(interval: Duration) -> Duration {
    interval.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

/// A target that passed before and is silent for this long is asked once more beside: two probes that
/// each had their whole time are two failures, and a server that died without a word is out after five
/// quarters of its time-out instead of two. `None` where one failure is enough.
pub(super) fn patience(timing: &CheckTiming) -> Option<Duration> {
    let quarter = timing.timeout / 4;
    (timing.fall > 1).then(|| quarter.max(timing.fast_interval))
}

/// A target's place among all others: the same in every run and on every host (FNV-1a).
pub(super) fn place(id: &impl Display) -> u64 {
    id.to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// The first probe of one of `count` targets that begin at `now`: soon, and not all at once.
pub(super) fn first(now: Instant, place: u64, count: usize, timing: &CheckTiming) -> Instant {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let window = FIRST_GAP.saturating_mul(count).max(FIRST_WINDOW);
    now + share(place, window.min(clamp(timing.interval)))
}

/// A probe of one of `count` targets that are asked before their time: at once, if they are few.
pub(super) fn soon(now: Instant, place: u64, count: usize, timing: &CheckTiming) -> Instant {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let window = FIRST_GAP.saturating_mul(count);
    now + share(place, window.min(clamp(timing.interval)))
}

/// The target's first regular time that is not before `not_before`: its place within the interval,
/// counted from `epoch`.
fn regular(epoch: Instant, not_before: Instant, place: u64, interval: Duration) -> Instant {
    let phase = share(place, interval);
    let since = not_before.saturating_duration_since(epoch);
    if since <= phase {
        return epoch + phase;
    }
    let (step, passed) = (nanos(interval), nanos(since - phase));
    let rounds = passed.div_ceil(step);
    epoch + phase + Duration::from_nanos(rounds.saturating_mul(step))
}

/// The regular time that follows a probe which began at `begun`. One that began a little before its
/// regular time must not be followed by another one at that time.
pub(super) fn after(
    epoch: Instant,
    begun: Instant,
    now: Instant,
    place: u64,
    interval: Duration,
) -> Instant {
    let interval = clamp(interval);
    let not_before = (begun + interval / 2).max(now);
    regular(epoch, not_before, place, interval)
}

/// A part of `window`, evenly spread over places.
fn share(place: u64, window: Duration) -> Duration {
    // The high half of the hash times the window: neighbours in name are none in time.
    let scaled = (u128::from(place) * u128::from(nanos(window))) >> 64;
    Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// What the schedule remembers of a target's outcomes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    passing: bool,
    failures: u32,
    fallen: bool,
}

impl Pace {
    /// Notes an outcome. One that is this host's own fault changes nothing.
    pub(super) fn note(&mut self, outcome: Outcome, timing: &CheckTiming) {
        match outcome {
            Outcome::Pass => {
                *self = Self {
                    passing: true,
                    failures: 0,
                    fallen: false,
                };
            }
            Outcome::Fail(FailReason::Local) => {}
            Outcome::Fail(_) => {
                self.failures = self.failures.saturating_add(1);
                self.fallen |= self.failures >= timing.fall;
                self.passing &= !self.fallen;
            }
        }
    }

    /// Whether the target fails, and has not failed often enough to be out.
    pub(super) const fn suspected(self) -> bool {
        self.failures > 0 && !self.fallen
    }

    /// Whether the target passed when it was asked last.
    pub(super) const fn passing(self) -> bool {
        self.passing && self.failures == 0
    }

    /// Whether the target has failed often enough to be out, and not passed since.
    pub(super) const fn fallen(self) -> bool {
        self.fallen
    }
}

/// For how long this host was late: of each power of two of milliseconds the time in which a probe was overdue by
/// as much and more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lateness([Overdue; 16]);

#[derive(Clone, Copy, Debug, Default)]
struct Overdue {
    all: Duration,
    /// Counted up to here.
    until: Option<Instant>,
}

impl Lateness {
    /// Notes that a probe which was due at `due` begins now. Probes that were overdue together count once.
    pub(super) fn note(&mut self, due: Instant, now: Instant) {
        let late = now.saturating_duration_since(due).as_millis();
        let powers = late.checked_ilog2().map_or(0, |power| power + 1);
        let powers = usize::try_from(powers).unwrap_or(usize::MAX);
        for overdue in self.0.iter_mut().take(powers) {
            let from = overdue.until.map_or(due, |until| until.max(due));
            overdue.all += now.saturating_duration_since(from);
            overdue.until = Some(now);
        }
    }

    /// For how long, by so much as a step of a talk cannot bear: it has up to sixteen of them, and each waits for its
    /// turn.
    pub(super) fn all(&self, timing: &CheckTiming) -> Duration {
        let step = (timing.timeout / 16).max(LEAST_LATE).as_millis();
        let power = usize::try_from(step.next_power_of_two().ilog2()).ok();
        let overdue = power.and_then(|power| self.0.get(power));
        overdue.map_or(Duration::ZERO, |overdue| overdue.all)
    }

    /// Whether a failure of a probe that began when the lateness was `before` is perhaps this host's, which was late
    /// for half of the probe's time. What takes one step only has its own measure in [`super::deadline`].
    pub(super) fn excuses(&self, outcome: Outcome, before: Duration, spec: &CheckSpec) -> bool {
        let timing = &spec.timing;
        let Outcome::Fail(FailReason::TimedOut(phase)) = outcome else {
            return false;
        };
        let one_step = matches!(
            spec.kind,
            CheckKind::Icmp(_) | CheckKind::Udp(_) | CheckKind::Dns(_)
        );
        let late = self.all(timing).saturating_sub(before);
        phase != Phase::Connect && !one_step && late >= timing.timeout / 2
    }
}

/// Whether the schedule is kept.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Punctuality {
    since: Option<Instant>,
    begun: u64,
    late: u64,
    most: Duration,
}

/// A schedule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// Probes that began late.
    pub(super) late: u64,
    /// Probes that began.
    pub(super) of: u64,
    /// How late at most.
    pub(super) most: Duration,
}

impl Punctuality {
    /// Notes how late a probe begins; at the end of a bad window says how bad it was.
    pub(super) fn note(&mut self, late: Duration, now: Instant) -> Option<Behind> {
        let since = *self.since.get_or_insert(now);
        self.begun += 1;
        self.late += u64::from(late > LATE);
        self.most = self.most.max(late);
        if now.saturating_duration_since(since) < WINDOW {
            return None;
        }
        let window = std::mem::replace(
            self,
            Self {
                since: Some(now),
                ..Self::default()
            },
        );
        (window.late > window.begun / TOLERATED).then_some(Behind {
            late: window.late,
            of: window.begun,
            most: window.most,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{IcmpCheck, Via};

    fn timing(interval: Duration, fall: u32) -> CheckTiming {
        CheckTiming {
            rise: 1,
            fall,
            ..CheckTiming::every(interval)
        }
    }

    #[test]
    fn a_schedule_that_is_not_kept_is_told_of_at_the_end_of_its_window() {
        let begun = Instant::now();
        let mut p = Punctuality::default();
        let mut told = Vec::new();
        // Two windows of 10 s with a probe every 10 ms: in the first 2 in 100 are late, in the second 1 in 200.
        for n in 0..2_100_u32 {
            let late = if n < 1_000 { n % 50 == 0 } else { n % 200 == 0 };
            let by = Duration::from_millis(if late { 101 } else { 100 });
            told.extend(p.note(by, begun + n * Duration::from_millis(10)));
        }
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].late, told[0].of), (21, 1_001));
        assert_eq!(told[0].most, Duration::from_millis(101));
    }

    #[test]
    fn many_beginners_are_spread_and_few_are_quick() {
        let (now, second) = (Instant::now(), timing(Duration::from_secs(1), 2));
        for n in 0..3 {
            let at = first(
                now,
                place(&format!("tcp/192.0.2.1:80 10.0.0.{n}:80")),
                3,
                &second,
            );
            assert!(at - now < Duration::from_millis(100));
        }
        let mut slots = [0_u32; 20];
        for n in 0..1_000 {
            let at = first(
                now,
                place(&format!("tcp/192.0.2.1:80 10.0.0.{n}:80")),
                1_000,
                &second,
            );
            let slot = usize::try_from((at - now).as_millis() / 50).unwrap();
            slots[slot] += 1;
        }
        // 50 expected in each 50 ms.
        assert!(slots.iter().all(|n| (15..100).contains(n)), "{slots:?}");
    }

    #[test]
    fn suspicion_lasts_from_the_first_failure_to_the_fall() {
        let t = timing(Duration::from_secs(1), 3);
        let fail = Outcome::Fail(FailReason::TimedOut(Phase::Connect));
        let mut pace = Pace::default();
        let mut seen = Vec::new();
        for outcome in [
            fail,
            Outcome::Pass,
            fail,
            Outcome::Fail(FailReason::Local),
            fail,
            fail,
            fail,
            Outcome::Pass,
        ] {
            pace.note(outcome, &t);
            seen.push(pace.suspected());
        }
        assert_eq!(
            seen,
            [true, false, true, true, true, false, false, false],
            "first of a new one; passed; first; not the server's; second; fallen; fallen; back"
        );
    }

    #[test]
    fn a_talk_on_a_host_that_is_late_for_half_of_its_time_is_excused() {
        let spec = |kind| CheckSpec {
            kind,
            via: Via::default(),
            timing: timing(Duration::from_secs(1), 2),
        };
        let tcp = spec(CheckKind::default());
        let begun = Instant::now();
        let ms = Duration::from_millis;
        // So many turns, each so late, ten milliseconds between them.
        let late = |turns: u32, by: Duration| {
            let mut lateness = Lateness::default();
            for turn in 0..turns {
                let due = begun + turn * (by + ms(10));
                // Many are due in each.
                lateness.note(due, due + by);
                lateness.note(due + ms(1), due + by);
            }
            lateness
        };
        let slow = Outcome::Fail(FailReason::TimedOut(Phase::Login));
        for (turns, by, excused) in [
            (0, ms(1), false),
            // A hiccup is none, however many were due in it; nor is what a step can bear.
            (1, ms(200), false),
            (100, ms(60), false),
            (4, ms(120), false),
            (5, ms(120), true),
            (1, ms(90_000), true),
        ] {
            let lateness = late(turns, by);
            let found = lateness.excuses(slow, Duration::ZERO, &tcp);
            assert_eq!(found, excused, "{turns} turns {by:?} late");
            let before = lateness.all(&tcp.timing);
            assert!(!lateness.excuses(slow, before, &tcp), "before it began");
        }
        let much = late(100, ms(120));
        for other in [
            Outcome::Pass,
            Outcome::Fail(FailReason::Refused),
            Outcome::Fail(FailReason::TimedOut(Phase::Connect)),
        ] {
            assert!(!much.excuses(other, Duration::ZERO, &tcp), "{other:?}");
        }
        let echo = spec(CheckKind::Icmp(IcmpCheck::default()));
        assert!(!much.excuses(slow, Duration::ZERO, &echo));
    }

    proptest! {
        #[test]
        fn a_regular_time_is_the_next_of_its_grid(
            interval_ms in 10_u64..100_000,
            after_ms in 0_u64..1_000_000,
            place: u64,
        ) {
            let epoch = Instant::now();
            let t = Duration::from_millis(interval_ms);
            let not_before = epoch + Duration::from_millis(after_ms);
            let at = regular(epoch, not_before, place, t);
            prop_assert!(at >= not_before);
            prop_assert!(at - not_before <= t);
            let again = regular(epoch, at, place, t);
            prop_assert_eq!(again, at);
            let next = regular(epoch, at + Duration::from_nanos(1), place, t);
            prop_assert_eq!(next - at, t);
        }
    }
}
