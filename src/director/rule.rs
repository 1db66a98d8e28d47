//! Where a destination belongs in its service, and the one rule that holds it there. PURE.

use crate::model::{DestAttrs, DestKey, Weight};

/// What holds a destination in its service or out of it: of all that is true of it, that which decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// It passes its checks: in, with its configured weight.
    Passed,
    /// Nothing checks it: in, with its configured weight.
    Unchecked,
    /// It passes, and a check wants this weight of it.
    Advised,
    /// It passes, and a check that may want another weight has not spoken yet: it keeps the weight that was
    /// found at the start.
    AdviceAwaited,
    /// No verdict yet, and found in the kernel's table: it keeps its place and weight.
    Adopted,
    /// No verdict yet, new to the director, and its service lets such servers in at once.
    LetIn,
    /// An operator ordered this weight.
    OrderedWeight,
    /// Its checks fail, and this director may be cut off itself: it stays as it was until that is known.
    Doubted,
    /// Its checks fail, and too few others are left: it stays as it was.
    Panic,
    /// A sorry server that takes new connections while the quorum is lost.
    SorryServes,
    /// In the kernel's table, named by nobody: perhaps a stand-in that only the provisioner remembers.
    Unclaimed,
    /// Its checks fail: out, or at weight 0 with its connections, by what the failure says of it.
    Failed,
    /// It passes, and stays out (or at weight 0) for a while because it came and went.
    HeldOut,
    /// An operator ordered that it gets no new connections.
    Drained,
    /// It is no longer wanted: it keeps its connections until they are gone, or its time is over.
    Leaving,
    /// The quorum is lost: it keeps its connections, sorry servers take the new ones.
    QuorumLost,
    /// An operator ordered that it is drained, and it has left.
    DrainedOut,
    /// An operator ordered it out.
    Disabled,
    /// No verdict yet, and nobody found it in the kernel's table: it enters when it passes.
    Awaited,
    /// It passes, and this stand-in has its place.
    Replaced(DestKey),
    /// A sorry server that nobody needs, or that takes no connections.
    StandsBy,
    /// A warm spare: watched, and in no service until the provisioner gives it somebody's place.
    Warm,
    /// In the kernel's table, named by nobody: somebody else added it.
    Foreign,
}

impl Rule {
    /// Whether by this rule it serves as its health and weight have it: what a stand-in or an order stands before.
    #[must_use]
    pub const fn serves(self) -> bool {
        match self {
            Self::Passed
            | Self::Unchecked
            | Self::Advised
            | Self::AdviceAwaited
            | Self::Adopted
            | Self::LetIn
            | Self::OrderedWeight
            | Self::Doubted
            | Self::Panic
            | Self::SorryServes
            | Self::Unclaimed => true,
            Self::Failed
            | Self::HeldOut
            | Self::Drained
            | Self::Leaving
            | Self::DrainedOut
            | Self::QuorumLost
            | Self::Disabled
            | Self::Awaited
            | Self::Replaced(_)
            | Self::StandsBy
            | Self::Warm
            | Self::Foreign => false,
        }
    }

    /// The word in `explain`'s JSON: a closed set.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Unchecked => "unchecked",
            Self::Advised => "advised",
            Self::AdviceAwaited => "advice_awaited",
            Self::Adopted => "adopted",
            Self::LetIn => "let_in",
            Self::OrderedWeight => "ordered_weight",
            Self::SorryServes => "sorry_serves",
            Self::Unclaimed => "unclaimed",
            Self::Failed => "failed",
            Self::HeldOut => "held_out",
            Self::Drained => "drained",
            Self::QuorumLost => "quorum_lost",
            Self::Disabled => "disabled",
            Self::Awaited => "awaited",
            Self::Replaced(_) => "replaced",
            Self::StandsBy => "stands_by",
            Self::Warm => "warm",
            Self::Foreign => "foreign",
            Self::DrainedOut => "drained_out",
            Self::Leaving => "leaving",
            Self::Doubted => "doubted",
            Self::Panic => "panic",
        }
    }

    /// Whether a destination that is out by this rule is taken out before anything else is done.
    const fn leaves_first(self) -> bool {
        matches!(self, Self::Failed | Self::HeldOut | Self::Disabled)
    }
}

/// A destination's seat in its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// What decides.
    pub rule: Rule,
    /// What the kernel is to be told of it; none: it is out. At weight 0 it keeps its connections.
    pub attrs: Option<DestAttrs>,
}

impl Seat {
    /// In the kernel's table.
    pub(super) const fn has(rule: Rule, attrs: DestAttrs) -> Self {
        let attrs = Some(attrs);
        Self { rule, attrs }
    }

    /// Not in the kernel's table.
    pub(super) const fn out(rule: Rule) -> Self {
        Self { rule, attrs: None }
    }

    /// In the kernel's table without new connections.
    pub(super) fn quiesced(rule: Rule, attrs: DestAttrs) -> Self {
        let weight = Weight::QUIESCED;
        Self::has(rule, DestAttrs { weight, ..attrs })
    }

    /// Whether it takes new connections.
    #[must_use]
    pub fn takes(&self) -> bool {
        self.attrs.is_some_and(|a| a.weight != Weight::QUIESCED)
    }

    /// Whether its server failed, or was ordered out: nothing holds back taking it out.
    #[must_use]
    pub const fn is_taken_out(&self) -> bool {
        self.attrs.is_none() && self.rule.leaves_first()
    }
}
