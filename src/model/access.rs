//! Who may ask the director, and who may order. PURE.

use std::{collections::BTreeSet, fmt};

/// A group of users, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupName {
    /// By its name on this host.
    Name(String),
    /// By its number.
    Id(u32),
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(gid) => write!(f, "{gid}"),
        }
    }
}

/// The groups that the configuration lets in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operators {
    /// Whose members may ask.
    pub read: BTreeSet<GroupName>,
    /// Whose members may order, and ask.
    pub change: BTreeSet<GroupName>,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Ask how things stand.
    Read,
    /// Change how they stand.
    Change,
}

/// Who may do what, beside root and the director's own user, who may do all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// No group is named: whoever may connect to the socket may ask, nobody else may order.
    #[default]
    BySocket,
    /// Members of these groups, and nobody else.
    ByGroup {
        /// May ask.
        read: BTreeSet<u32>,
        /// May order, and ask.
        change: BTreeSet<u32>,
    },
}

impl Access {
    /// Whether a user who is in these groups may. `own` is the director's user.
    #[must_use]
    pub fn lets(&self, right: Right, uid: u32, groups: &[u32], own: u32) -> bool {
        if uid == 0 || uid == own {
            return true;
        }
        match (self, right) {
            (Self::BySocket, Right::Read) => true,
            (Self::BySocket, Right::Change) => false,
            (Self::ByGroup { read, change }, right) => groups
                .iter()
                .any(|gid| change.contains(gid) || (right == Right::Read && read.contains(gid))),
        }
    }

    /// Whether it takes the groups of this user to know.
    #[must_use]
    pub const fn asks_for_groups(&self, uid: u32, own: u32) -> bool {
        matches!(self, Self::ByGroup { .. }) && uid != 0 && uid != own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 7;

    #[test]
    fn root_and_the_directors_user_may_always() {
        let nobody = Access::ByGroup {
            read: BTreeSet::new(),
            change: BTreeSet::new(),
        };
        for access in [Access::BySocket, nobody] {
            for uid in [0, OWN] {
                assert!(access.lets(Right::Read, uid, &[], OWN));
                assert!(access.lets(Right::Change, uid, &[], OWN));
                assert!(!access.asks_for_groups(uid, OWN));
            }
            assert!(!access.lets(Right::Change, 8, &[0, OWN], OWN), "{access:?}");
        }
    }

    #[test]
    fn who_may_change_may_read_and_not_the_other_way_round() {
        let access = Access::ByGroup {
            read: [40].into(),
            change: [50].into(),
        };
        let may = |right, groups: &[u32]| access.lets(right, 1000, groups, OWN);
        assert!(may(Right::Read, &[1000, 40]) && !may(Right::Change, &[1000, 40]));
        assert!(may(Right::Read, &[1000, 50]) && may(Right::Change, &[1000, 50]));
        assert!(!may(Right::Read, &[1000]) && !may(Right::Change, &[]));
        assert!(access.asks_for_groups(1000, OWN));
    }

    #[test]
    fn without_groups_the_sockets_permissions_say_who_may_read() {
        assert!(Access::BySocket.lets(Right::Read, 1000, &[], OWN));
        assert!(!Access::BySocket.asks_for_groups(1000, OWN));
    }
}
