//! Verdicts on real servers from the outcomes of probes. PURE: time comes in as an argument.
//!
//! [`Health`] is the verdict of one check, [`Standing`] that of all checks of a server together.

mod damping;
mod quorum;
mod standing;

pub use damping::Penalty;
pub use quorum::Quorum;
pub use standing::{BLIND, Change, CheckState, Standing};

use crate::model::{CheckTiming, FailReason, MonoTime, Outcome};

/// Where a real server stands in one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No verdict yet.
    Unknown {
        /// Passes in a row so far.
        passes: u32,
        /// Failures in a row so far.
        failures: u32,
        /// Passes in a row that make it up.
        need: u32,
    },
    /// Fit for service.
    Up {
        /// Since when.
        since: MonoTime,
        /// Failures in a row so far.
        failures: u32,
    },
    /// Not fit for service.
    Down {
        /// Since when.
        since: MonoTime,
        /// Passes in a row so far.
        passes: u32,
        /// What the last failed probe found.
        reason: FailReason,
    },
}

/// A change that others act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Became fit.
    WentUp,
    /// Became unfit.
    WentDown(FailReason),
}

impl Health {
    /// Before the first probe: one pass suffices for a server that is in the kernel's table or whose
    /// service is new, `rise` are needed for one that was found taken out.
    #[must_use]
    pub const fn unknown(need: u32) -> Self {
        Self::Unknown {
            passes: 0,
            failures: 0,
            need,
        }
    }

    /// The state after an outcome, and the transition if there was one. A probe that failed for a
    /// reason of this host's own ([`FailReason::Local`]) changes nothing.
    #[must_use]
    pub const fn observe(
        self,
        outcome: Outcome,
        timing: CheckTiming,
        now: MonoTime,
    ) -> (Self, Option<Transition>) {
        let up = (
            Self::Up {
                since: now,
                failures: 0,
            },
            Some(Transition::WentUp),
        );
        match (self, outcome) {
            (state, Outcome::Fail(FailReason::Local)) => (state, None),
            // Whoever announced maintenance may now stop what is asked: that is no failure until it
            // says so, as in HAProxy.
            (
                Self::Down {
                    since,
                    reason: FailReason::SaidMaintenance,
                    ..
                },
                Outcome::Fail(reason),
            ) if !matches!(reason, FailReason::SaidDown) => (
                Self::Down {
                    since,
                    passes: 0,
                    reason: FailReason::SaidMaintenance,
                },
                None,
            ),
            // A word of the operator's is no probe that may have gone wrong.
            (
                Self::Unknown { .. } | Self::Up { .. },
                Outcome::Fail(FailReason::SaidMaintenance),
            ) => Self::down(FailReason::SaidMaintenance, now),
            (Self::Unknown { passes, need, .. }, Outcome::Pass) => {
                if passes + 1 >= need {
                    return up;
                }
                (
                    Self::Unknown {
                        passes: passes + 1,
                        failures: 0,
                        need,
                    },
                    None,
                )
            }
            (Self::Unknown { failures, need, .. }, Outcome::Fail(reason)) => {
                if failures + 1 >= timing.fall {
                    return Self::down(reason, now);
                }
                (
                    Self::Unknown {
                        passes: 0,
                        failures: failures + 1,
                        need,
                    },
                    None,
                )
            }
            (Self::Up { since, .. }, Outcome::Pass) => (Self::Up { since, failures: 0 }, None),
            (Self::Up { since, failures }, Outcome::Fail(reason)) => {
                if failures + 1 >= timing.fall {
                    return Self::down(reason, now);
                }
                (
                    Self::Up {
                        since,
                        failures: failures + 1,
                    },
                    None,
                )
            }
            (
                Self::Down {
                    since,
                    passes,
                    reason,
                },
                Outcome::Pass,
            ) => {
                if passes + 1 >= timing.rise {
                    return up;
                }
                (
                    Self::Down {
                        since,
                        passes: passes + 1,
                        reason,
                    },
                    None,
                )
            }
            (Self::Down { since, .. }, Outcome::Fail(reason)) => (
                Self::Down {
                    since,
                    passes: 0,
                    reason,
                },
                None,
            ),
        }
    }

    const fn down(reason: FailReason, now: MonoTime) -> (Self, Option<Transition>) {
        (
            Self::Down {
                since: now,
                passes: 0,
                reason,
            },
            Some(Transition::WentDown(reason)),
        )
    }

    /// Whether it is fit for service.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// Whether there is no verdict yet.
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// Since when it is unfit, if it is.
    #[must_use]
    pub const fn down_since(self) -> Option<MonoTime> {
        match self {
            Self::Down { since, .. } => Some(since),
            Self::Unknown { .. } | Self::Up { .. } => None,
        }
    }

    /// The word in logs, `status` and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Up { .. } => "up",
            Self::Down { .. } => "down",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn timing(rise: u32, fall: u32) -> CheckTiming {
        CheckTiming {
            rise,
            fall,
            ..CheckTiming::every(Duration::from_secs(1))
        }
    }

    const REFUSED: Outcome = Outcome::Fail(FailReason::Refused);

    #[test]
    fn one_failure_short_of_fall_keeps_the_server_up() {
        let up = Health::Up {
            since: MonoTime::ZERO,
            failures: 1,
        };
        let (next, transition) = up.observe(REFUSED, timing(1, 3), MonoTime::ZERO);
        assert_eq!((next.is_up(), transition), (true, None));
        let (next, transition) = next.observe(REFUSED, timing(1, 3), MonoTime::ZERO);
        assert_eq!(transition, Some(Transition::WentDown(FailReason::Refused)));
        assert!(!next.is_up());
    }

    #[test]
    fn a_probe_that_this_host_could_not_make_says_nothing_of_the_server() {
        let up = Health::Up {
            since: MonoTime::ZERO,
            failures: 0,
        };
        let local = Outcome::Fail(FailReason::Local);
        assert_eq!(up.observe(local, timing(1, 1), MonoTime::ZERO), (up, None));
    }

    #[test]
    fn a_server_found_taken_out_needs_rise_passes() {
        let (next, _) = Health::unknown(2).observe(Outcome::Pass, timing(2, 1), MonoTime::ZERO);
        assert!(!next.is_up());
        assert!(
            next.observe(Outcome::Pass, timing(2, 1), MonoTime::ZERO)
                .0
                .is_up()
        );
    }

    proptest! {
        /// A verdict flips after exactly `fall` (or `rise`) equal outcomes in a row, never earlier, never later.
        #[test]
        fn flips_need_a_run(rise in 1u32..5, fall in 1u32..5, seq in prop::collection::vec(any::<bool>(), 0..60)) {
            let t = timing(rise, fall);
            let mut h = Health::unknown(rise);
            let (mut run, mut last) = (0, None);
            for (second, pass) in (0u64..).zip(seq) {
                let o = if pass { Outcome::Pass } else { REFUSED };
                run = if last == Some(o) { run + 1 } else { 1 };
                last = Some(o);
                let now = MonoTime::from_boot(Duration::from_secs(second));
                let (next, transition) = h.observe(o, t, now);
                match transition {
                    Some(Transition::WentUp) => prop_assert!(pass && run >= rise && !h.is_up()),
                    Some(Transition::WentDown(_)) => prop_assert!(!pass && run >= fall),
                    None => prop_assert_eq!(next.is_up(), h.is_up()),
                }
                let in_time = if pass { run < rise || next.is_up() } else { run < fall || !next.is_up() };
                prop_assert!(in_time);
                h = next;
            }
        }
    }
}
