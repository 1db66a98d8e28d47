//! When a target is asked next. PURE: instants come in, instants go out.

use std::{fmt::Display, time::Duration};

use tokio::time::Instant;

use crate::model::{CheckTiming, FailReason, Outcome};

/// A configuration that says less still leaves the servers alone this long.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// The timer's structure cannot hold years; nobody means more than this.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// A suspected server is not asked more often than this.
const SHORTEST_FAST_INTERVAL: Duration = Duration::from_millis(50);

/// A handful of new targets is asked within this.
const FIRST_WINDOW: Duration = Duration::from_millis(100);

/// Many new targets begin this far apart on average.
const FIRST_GAP: Duration = Duration::from_millis(1);

/// The interval as it is kept.
pub(super) fn interval(timing: &CheckTiming) -> Duration {
    timing.interval.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

/// The interval while a verdict is wanted soon: a tenth.
pub(super) fn fast_interval(timing: &CheckTiming) -> Duration {
    let interval = interval(timing);
    (interval / 10).max(SHORTEST_FAST_INTERVAL).min(interval)
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
    now + share(place, window.min(interval(timing)))
}

/// The target's first regular time that is not before `not_before`: its place within the interval,
/// counted from `epoch`.
pub(super) fn regular(
    epoch: Instant,
    not_before: Instant,
    place: u64,
    timing: &CheckTiming,
) -> Instant {
    let interval = interval(timing);
    let phase = share(place, interval);
    let since = not_before.saturating_duration_since(epoch);
    if since <= phase {
        return epoch + phase;
    }
    let (step, passed) = (nanos(interval), nanos(since - phase));
    let rounds = passed.div_ceil(step);
    epoch + phase + Duration::from_nanos(rounds.saturating_mul(step))
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
}

impl Pace {
    /// Notes an outcome. One that is this host's own fault changes nothing.
    pub(super) fn note(&mut self, outcome: Outcome, timing: &CheckTiming) {
        match outcome {
            Outcome::Pass => {
                *self = Self {
                    passing: true,
                    failures: 0,
                };
            }
            Outcome::Fail(FailReason::Local) => {}
            Outcome::Fail(_) => {
                self.failures = self.failures.saturating_add(1);
                self.passing &= self.failures < timing.fall;
            }
        }
    }

    /// Whether the target passed until it failed, and has not failed often enough to be out.
    pub(super) const fn suspected(self) -> bool {
        self.passing && self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Phase;

    fn timing(interval: Duration, fall: u32) -> CheckTiming {
        CheckTiming {
            interval,
            timeout: interval,
            rise: 1,
            fall,
        }
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
            [false, false, true, true, true, false, false, false],
            "never passed; passed; first; not the server's; second; fallen; fallen; back"
        );
    }

    proptest! {
        #[test]
        fn a_regular_time_is_the_next_of_its_grid(
            interval_ms in 10_u64..100_000,
            after_ms in 0_u64..1_000_000,
            place: u64,
        ) {
            let epoch = Instant::now();
            let t = timing(Duration::from_millis(interval_ms), 1);
            let not_before = epoch + Duration::from_millis(after_ms);
            let at = regular(epoch, not_before, place, &t);
            prop_assert!(at >= not_before);
            prop_assert!(at - not_before <= t.interval);
            let again = regular(epoch, at, place, &t);
            prop_assert_eq!(again, at);
            let next = regular(epoch, at + Duration::from_nanos(1), place, &t);
            prop_assert_eq!(next - at, t.interval);
        }
    }
}
