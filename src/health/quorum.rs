//! How many of a service's servers it takes. PURE.

use crate::model::QuorumRule;

/// Whether a service has enough servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quorum {
    /// It has.
    #[default]
    Held,
    /// It has not, and its sorry servers take over.
    Lost,
}

impl Quorum {
    /// Where it stands with `live`, the weight of the servers that are up, and `unknown`, that of those on
    /// which there is no verdict yet: a director that starts has not lost what it has not asked.
    ///
    /// The rule is keepalived's (keepalived.conf(5), `quorum` and `hysteresis`): lost below `quorum -
    /// hysteresis` or at nothing, held again from `quorum + hysteresis` on.
    #[must_use]
    pub fn next(self, rule: QuorumRule, live: u64, unknown: u64) -> Self {
        let (quorum, hysteresis) = (u64::from(rule.quorum), u64::from(rule.hysteresis));
        let most = live.saturating_add(unknown);
        match self {
            Self::Held if most == 0 || most.saturating_add(hysteresis) < quorum => Self::Lost,
            Self::Lost if live > 0 && live >= quorum.saturating_add(hysteresis) => Self::Held,
            Self::Held | Self::Lost => self,
        }
    }

    /// Whether it is held.
    #[must_use]
    pub const fn is_held(self) -> bool {
        matches!(self, Self::Held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn rule(quorum: u32, hysteresis: u32) -> QuorumRule {
        QuorumRule { quorum, hysteresis }
    }

    #[test]
    fn it_is_lost_and_regained_as_keepaliveds() {
        let rule = rule(5, 2);
        let mut quorum = Quorum::Held;
        let mut seen = Vec::new();
        for live in [9, 5, 3, 2, 3, 5, 6, 7, 3, 0] {
            quorum = quorum.next(rule, live, 0);
            seen.push((live, quorum.is_held()));
        }
        let held = [
            true, true, true, false, false, false, false, true, true, false,
        ];
        assert_eq!(
            seen.iter().map(|(_, held)| *held).collect::<Vec<_>>(),
            held,
            "{seen:?}"
        );
    }

    #[test]
    fn what_nobody_has_asked_yet_is_not_lost_and_regains_nothing() {
        assert_eq!(Quorum::Held.next(rule(2, 0), 0, 2), Quorum::Held);
        assert_eq!(Quorum::Held.next(rule(2, 0), 0, 1), Quorum::Lost);
        assert_eq!(Quorum::Lost.next(rule(2, 0), 1, 5), Quorum::Lost);
        assert_eq!(Quorum::Lost.next(rule(2, 0), 2, 0), Quorum::Held);
    }

    #[test]
    fn without_a_server_it_is_lost_whatever_the_rule() {
        assert_eq!(Quorum::Held.next(rule(0, 0), 0, 0), Quorum::Lost);
        assert_eq!(Quorum::Lost.next(rule(0, 0), 0, 0), Quorum::Lost);
        assert_eq!(Quorum::Held.next(rule(1, 5), 0, 0), Quorum::Lost);
    }

    proptest! {
        /// More live weight never loses what less would hold; and the same weight again changes nothing.
        #[test]
        fn more_is_never_worse(quorum: u32, hysteresis: u32, live: u32, more: u32, unknown: u32, held: bool) {
            let rule = rule(quorum, hysteresis);
            let from = if held { Quorum::Held } else { Quorum::Lost };
            let (live, more, unknown) = (u64::from(live), u64::from(more), u64::from(unknown));
            let after = from.next(rule, live, unknown);
            prop_assert!(!after.is_held() || from.next(rule, live + more, unknown).is_held());
            prop_assert_eq!(after.next(rule, live, unknown), after);
        }
    }
}
