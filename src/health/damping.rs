//! Servers that come and go: each fall adds to a penalty, which halves with time, as RFC 2439 does it
//! for routes. PURE.

use std::time::Duration;

use crate::model::{Damping, MonoTime};

/// What a server's falls have added up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Penalty {
    points: f64,
    at: MonoTime,
    held: bool,
}

impl Penalty {
    /// The server fell.
    pub(super) fn fell(&mut self, damping: &Damping, now: MonoTime) {
        self.points = (self.points(damping, now) + 1.0)
            .min(f64::from(Damping::MOST) * f64::from(damping.reuse));
        self.at = now;
        self.held |= damping.is_on() && self.points >= f64::from(damping.suppress);
    }

    /// Whether it is to stay out for its falls, and for how long still if it does not fall again.
    #[must_use]
    pub fn held(&self, damping: &Damping, now: MonoTime) -> Option<Duration> {
        let points = self.points(damping, now);
        let reuse = f64::from(damping.reuse);
        if !self.held || !damping.is_on() || points <= reuse {
            return None;
        }
        Some(damping.half_life.mul_f64((points / reuse).log2()))
    }

    /// It may come back.
    pub(super) const fn release(&mut self) {
        self.held = false;
    }

    /// What is left of the penalty.
    #[must_use]
    pub fn points(&self, damping: &Damping, now: MonoTime) -> f64 {
        if !damping.is_on() {
            return 0.0;
        }
        let halvings = now.since(self.at).as_secs_f64() / damping.half_life.as_secs_f64();
        self.points * (-halvings).exp2()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL: Damping = Damping {
        half_life: Duration::from_secs(60),
        suppress: 4,
        reuse: 2,
    };

    fn at(seconds: u64) -> MonoTime {
        MonoTime::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn the_fourth_fall_in_a_row_holds_for_one_half_life() {
        let mut penalty = Penalty::default();
        for _ in 0..3 {
            penalty.fell(&USUAL, at(0));
            assert_eq!(penalty.held(&USUAL, at(0)), None);
        }
        penalty.fell(&USUAL, at(0));
        assert_eq!(penalty.held(&USUAL, at(0)), Some(Duration::from_secs(60)));
        assert!(penalty.held(&USUAL, at(59)).is_some());
        assert_eq!(penalty.held(&USUAL, at(60)), None);
    }

    #[test]
    fn falls_far_apart_hold_nobody() {
        let mut penalty = Penalty::default();
        for n in 0..100 {
            penalty.fell(&USUAL, at(n * 60));
            assert_eq!(penalty.held(&USUAL, at(n * 60)), None, "fall {n}");
        }
    }

    #[test]
    fn without_a_half_life_nobody_is_held() {
        let off = Damping {
            half_life: Duration::ZERO,
            ..USUAL
        };
        let mut penalty = Penalty::default();
        for _ in 0..100 {
            penalty.fell(&off, at(0));
        }
        assert_eq!(penalty.held(&off, at(0)), None);
    }

    proptest! {
        /// However often it falls, three half-lives without a fall bring it back, and less and less is
        /// left of the penalty.
        #[test]
        fn nobody_is_held_for_ever(falls in prop::collection::vec(0_u64..200, 0..200), later in 0_u64..400) {
            let mut penalty = Penalty::default();
            let mut now = 0;
            for gap in falls {
                now += gap;
                penalty.fell(&USUAL, at(now));
            }
            prop_assert_eq!(penalty.held(&USUAL, at(now + 180)), None);
            prop_assert!(penalty.points(&USUAL, at(now + later)) <= penalty.points(&USUAL, at(now)));
            let left = penalty.held(&USUAL, at(now)).unwrap_or_default();
            prop_assert!(left <= Duration::from_secs(180));
        }
    }
}
