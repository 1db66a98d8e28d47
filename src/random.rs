//! Numbers that nobody can guess: an answer that carries one of them was made for this question.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number. The standard library keys its hash tables by the kernel's random numbers, and each table
/// by another key; an empty input's hash under such a key is as good as random, at no call to the
/// kernel.
pub(crate) fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_number_comes_twice() {
        let numbers: BTreeSet<u64> = (0..10_000).map(|_| number()).collect();
        assert_eq!(numbers.len(), 10_000);
        let low: BTreeSet<u64> = numbers.iter().map(|n| n & 0xffff).collect();
        assert!(low.len() > 9_000, "nor do its last sixteen bits often");
    }
}
