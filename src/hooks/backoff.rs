//! When a hook that failed is tried again. PURE.

use std::time::Duration;

use crate::model::MonoTime;

/// The wait after the first failure; each further one doubles it.
const FIRST: Duration = Duration::from_secs(1);

/// No wait is longer.
const LONGEST: Duration = Duration::from_secs(60);

/// Of a hook, how often it has failed in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    again: MonoTime,
}

impl Backoff {
    /// It failed. `random` spreads the next attempt over the second half of the wait, so that hooks that failed
    /// together do not come back together. Whether this is the first failure in a row.
    pub(super) fn failed(&mut self, now: MonoTime, random: u64) -> bool {
        let doubled = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let wait = doubled.min(LONGEST);
        let half = wait / 2;
        let millis = u64::try_from(half.as_millis()).unwrap_or(u64::MAX);
        let spread = Duration::from_millis(random % millis.max(1));
        self.again = now.after(half + spread);
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }

    /// It worked. How often it had failed before.
    pub(super) fn worked(&mut self) -> u32 {
        std::mem::take(self).failures
    }

    /// Not to be tried sooner.
    pub(super) const fn again(&self) -> MonoTime {
        self.again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew() {
        let mut backoff = Backoff::default();
        let now = MonoTime::from_boot(Duration::from_secs(1_000));
        for (n, wait) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
            for random in [0, 499, u64::MAX] {
                let mut this = backoff;
                assert_eq!(this.failed(now, random), n == 0);
                let waits = this.again().since(now).as_millis();
                let half = wait * 500;
                assert!((half..wait * 1_000).contains(&waits), "{n}: {waits} ms");
            }
            backoff.failed(now, 0);
        }
        assert_eq!(backoff.worked(), 8);
        assert_eq!(backoff, Backoff::default());
        for _ in 0..100 {
            backoff.failed(now, 7);
        }
        assert!(backoff.again().since(now) < LONGEST);
    }
}
