//! How often a caller may ask. PURE: time comes in.

use std::{collections::BTreeMap, time::Duration};

use crate::model::MonoTime;

/// Callers that are remembered; who has not asked for a while is as good as unknown.
const REMEMBERED: usize = 4096;

/// A steady rate for each caller, and so many at once.
#[derive(Clone, Debug)]
pub struct Pace<K> {
    between: Duration,
    burst: u32,
    /// When each will have nothing left to pay for what it asked.
    paid: BTreeMap<K, MonoTime>,
}

impl<K: Ord> Pace<K> {
    /// One request each `between`, and `burst` at once.
    #[must_use]
    pub const fn new(between: Duration, burst: u32) -> Self {
        Self {
            between,
            burst,
            paid: BTreeMap::new(),
        }
    }

    /// Takes one request of `who`.
    ///
    /// # Errors
    /// It asked too often: after so long it may ask again.
    pub fn take(&mut self, who: K, now: MonoTime) -> Result<(), Duration> {
        if self.paid.len() >= REMEMBERED {
            self.paid.retain(|_, paid| *paid > now);
        }
        let paid = self.paid.get(&who).copied().unwrap_or(now).max(now);
        let owed = paid.since(now) + self.between;
        let credit = self.between * self.burst;
        if owed > credit {
            return Err(owed - credit);
        }
        self.paid.insert(who, now.after(owed));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BETWEEN: Duration = Duration::from_millis(20);
    const BURST: u32 = 50;

    proptest! {
        #[test]
        fn nobody_gets_more_than_burst_and_rate_and_nobody_pays_for_others(
            asks in prop::collection::vec((0_u8..3, 0_u64..4), 1..900)
        ) {
            let mut pace = Pace::new(BETWEEN, BURST);
            let mut now = MonoTime::ZERO.after(Duration::from_secs(1));
            let mut taken: BTreeMap<u8, Vec<MonoTime>> = BTreeMap::new();
            for (who, later) in asks {
                now = now.after(Duration::from_millis(later));
                // The third asks seldom.
                if who == 2 && taken.get(&2).and_then(|t| t.last()).is_some_and(|t| now.since(*t) < BETWEEN) {
                    continue;
                }
                match pace.take(who, now) {
                    Ok(()) => taken.entry(who).or_default().push(now),
                    Err(wait) => {
                        prop_assert!(who != 2, "who keeps to the rate is never refused");
                        prop_assert!(wait > Duration::ZERO && wait <= BETWEEN);
                        let mut later = pace.clone();
                        prop_assert!(later.take(who, now.after(wait)).is_ok(), "what it is told holds");
                    }
                }
            }
            for times in taken.values() {
                for (n, from) in times.iter().enumerate() {
                    for (m, to) in times.iter().enumerate().skip(n) {
                        let most = u128::from(BURST) + to.since(*from).as_millis() / BETWEEN.as_millis();
                        prop_assert!(u128::try_from(m - n).unwrap() <= most);
                    }
                }
            }
        }
    }

    #[test]
    fn who_has_paid_is_forgotten() {
        let mut pace = Pace::new(BETWEEN, BURST);
        let mut now = MonoTime::ZERO;
        for who in 0..3 * REMEMBERED {
            now = now.after(BETWEEN);
            pace.take(who, now).unwrap();
        }
        assert!(pace.paid.len() <= REMEMBERED);
    }
}
