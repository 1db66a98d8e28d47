//! How long a spare that failed is put aside. PURE.

use std::time::Duration;

use crate::model::WallMillis;

/// After the first failure, the second, and so on; then until somebody releases it.
const LENGTHS: [Duration; 3] = [
    Duration::from_secs(600),
    Duration::from_secs(3600),
    Duration::from_secs(24 * 3600),
];

/// When a quarantine ends by itself, the `nth` since the server was last released by hand.
#[must_use]
pub fn ends(nth: u64, now: WallMillis) -> Option<WallMillis> {
    let index = usize::try_from(nth.checked_sub(1)?).ok()?;
    let length = i64::try_from(LENGTHS.get(index)?.as_millis()).ok()?;
    Some(WallMillis(now.0.saturating_add(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_quarantine_is_longer_and_the_fourth_has_no_end() {
        let ends = [1, 2, 3, 4, u64::MAX].map(|nth| ends(nth, WallMillis(5)).map(|at| at.0));
        let day = 24 * 3_600_000 + 5;
        assert_eq!(
            ends,
            [Some(600_005), Some(3_600_005), Some(day), None, None]
        );
    }
}
