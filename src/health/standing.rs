//! A server's place in one service: its checks together. PURE.

use std::sync::Arc;

use super::{Health, Penalty, Transition};
use crate::model::{
    Advice, CheckSpec, Checks, Damping, FailClass, FailReason, Found, MonoTime, Need, Outcome,
    Weight,
};

/// A check that could not be made so often in a row is told of.
pub const BLIND: u32 = 3;

/// What one check has found so far.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckState {
    /// Its verdict.
    pub health: Health,
    /// What the last probe found.
    pub last: Option<Outcome>,
    /// When it was.
    pub at: Option<MonoTime>,
    /// What is worth knowing beside it.
    pub detail: Option<Arc<str>>,
    /// What the last probe that passed said of the weight.
    pub advice: Option<Advice>,
    /// How often in a row it found the server gone.
    pub gone: u32,
    /// How often in a row it could not be made, for a reason of this host's own.
    pub blind: u32,
    /// When the certificate ends that it saw last, in seconds since 1970.
    pub certificate_ends: Option<i64>,
}

impl CheckState {
    /// What it says of the weight. A check that is down has no say.
    fn say(&self) -> Option<Advice> {
        self.advice.filter(|_| self.health.down_since().is_none())
    }

    /// Whether it may have something to say of the weight, and was not heard yet: neither did it pass, nor
    /// fail so often that it is down.
    fn awaited(&self, spec: &CheckSpec) -> bool {
        spec.kind.advises() && self.health.is_unknown() && self.last != Some(Outcome::Pass)
    }
}

/// Where a real server stands in one service: the verdict over all of its checks.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    checks: Box<[CheckState]>,
    verdict: Health,
    penalty: Penalty,
    /// It passes, and stays out for its falls.
    held_out: bool,
}

/// What a probe has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether what is wanted of the kernel may differ.
    pub matters: bool,
    /// The verdict's transition.
    pub transition: Option<Transition>,
    /// It would come back, and stays out for its falls.
    pub held_out: bool,
    /// The check says something else of the weight than before.
    pub advised: bool,
    /// It is down as before, and its failure says something else of it.
    pub class: bool,
    /// The check could not be made several times in a row: nobody knows how the server is.
    pub blind: bool,
}

impl Standing {
    /// Before the first probe. `was_out`: it was found taken out, so that each check has to pass
    /// `rise` times. Without checks it counts as up.
    #[must_use]
    pub fn new(checks: &Checks, was_out: bool, now: MonoTime) -> Self {
        let state = |check: &Arc<CheckSpec>| CheckState {
            health: Health::unknown(if was_out { check.timing.rise } else { 1 }),
            last: None,
            at: None,
            detail: None,
            advice: None,
            gone: 0,
            blind: 0,
            certificate_ends: None,
        };
        Self {
            checks: checks.all.iter().map(state).collect(),
            verdict: if checks.any() {
                Health::unknown(1)
            } else {
                Health::Up {
                    since: now,
                    failures: 0,
                }
            },
            penalty: Penalty::default(),
            held_out: false,
        }
    }

    /// The verdict.
    #[must_use]
    pub const fn verdict(&self) -> Health {
        self.verdict
    }

    /// Its checks, in the configuration's order.
    #[must_use]
    pub fn checks(&self) -> &[CheckState] {
        &self.checks
    }

    /// What its falls have added up to.
    #[must_use]
    pub const fn penalty(&self) -> &Penalty {
        &self.penalty
    }

    /// Whether it passes, and stays out for its falls.
    #[must_use]
    pub const fn is_held_out(&self) -> bool {
        self.held_out && self.verdict.down_since().is_some()
    }

    /// Since when it has failed so that another has to take its place: not while it passes and is only
    /// held out, and not where it is in maintenance.
    #[must_use]
    pub const fn failing_since(&self) -> Option<MonoTime> {
        match self.verdict {
            Health::Down {
                reason: FailReason::SaidMaintenance,
                ..
            } => None,
            Health::Down { since, .. } if !self.held_out => Some(since),
            Health::Down { .. } | Health::Unknown { .. } | Health::Up { .. } => None,
        }
    }

    /// What its checks want of its weight, and which of them: the least of what they say.
    #[must_use]
    pub fn advice(&self, configured: Weight) -> Option<(usize, Advice)> {
        let advised = self.checks.iter().enumerate();
        let advised = advised.filter_map(|(n, c)| Some((n, c.say()?)));
        advised.min_by_key(|(_, advice)| weight(*advice, configured))
    }

    /// Whether a check that may have a say in its weight was not heard yet.
    #[must_use]
    pub fn awaits_advice(&self, checks: &Checks) -> bool {
        let mut all = checks.all.iter().zip(&self.checks);
        all.any(|(spec, state)| state.awaited(spec))
    }

    /// When the first of the certificates ends that its checks saw, in seconds since 1970.
    #[must_use]
    pub fn certificate_ends(&self) -> Option<i64> {
        self.checks.iter().filter_map(|c| c.certificate_ends).min()
    }

    /// Its weight as its checks want it.
    #[must_use]
    pub fn weight(&self, configured: Weight) -> Weight {
        let advised = self.advice(configured);
        advised.map_or(configured, |(_, advice)| weight(advice, configured))
    }

    /// What the check found that the verdict is about.
    #[must_use]
    pub fn detail(&self) -> Option<Arc<str>> {
        let Health::Down { reason, .. } = self.verdict else {
            return None;
        };
        let about =
            |c: &&CheckState| matches!(c.health, Health::Down { reason: r, .. } if r == reason);
        self.checks.iter().find(about)?.detail.clone()
    }

    /// Whether one of its checks found it gone as often as it takes.
    fn is_gone(&self, checks: &Checks) -> bool {
        let mut all = checks.all.iter().zip(&self.checks);
        all.any(|(spec, state)| {
            state.health.down_since().is_some() && state.gone >= spec.timing.fall
        })
    }

    /// Takes what a probe of the `check`th check found. `needed` says that less than half of the
    /// service's servers can take its place: then nobody is held out.
    pub fn observe(
        &mut self,
        check: usize,
        found: &Found,
        checks: &Checks,
        damping: &Damping,
        now: MonoTime,
        needed: bool,
    ) -> Change {
        let (Some(state), Some(spec)) = (self.checks.get_mut(check), checks.all.get(check)) else {
            return Change::default();
        };
        let (said, awaited) = (state.say(), state.awaited(spec));
        state.last = Some(found.outcome);
        state.at = Some(now);
        state.detail.clone_from(&found.detail);
        if found.certificate_ends.is_some() {
            state.certificate_ends = found.certificate_ends;
        }
        if found.outcome == Outcome::Pass {
            state.advice = found.advice;
        }
        state.blind = match found.outcome {
            Outcome::Fail(FailReason::Local) => state.blind.saturating_add(1),
            Outcome::Pass | Outcome::Fail(_) => 0,
        };
        let blind = state.blind == BLIND;
        state.gone = match found.outcome {
            Outcome::Fail(FailReason::Local) => state.gone,
            Outcome::Fail(reason) if reason.class() == FailClass::Gone => {
                state.gone.saturating_add(1)
            }
            Outcome::Pass | Outcome::Fail(_) => 0,
        };
        state.health = state.health.observe(found.outcome, spec.timing, now).0;
        let advised = state.say() != said;
        let heard = awaited && !state.awaited(spec);
        let before = self.verdict;
        let mut change = Change {
            advised,
            blind,
            ..Change::default()
        };
        match together(&self.checks, checks.need) {
            Together::Up if before.is_up() => {}
            Together::Up if self.penalty.held(damping, now).is_some() && !needed => {
                change.held_out = !self.held_out;
                self.held_out = true;
            }
            Together::Up => {
                self.verdict = Health::Up {
                    since: now,
                    failures: 0,
                };
                self.held_out = false;
                self.penalty.release();
                change.transition = Some(Transition::WentUp);
            }
            Together::Down(reason) => {
                // Who was busy and answers nothing once is not gone yet.
                let reason = match before {
                    Health::Down { reason: old, .. }
                        if old.class() != FailClass::Gone
                            && reason.class() == FailClass::Gone
                            && !self.is_gone(checks) =>
                    {
                        old
                    }
                    Health::Down { .. } | Health::Up { .. } | Health::Unknown { .. } => reason,
                };
                if before.is_up() || before.is_unknown() {
                    change.transition = Some(Transition::WentDown(reason));
                }
                let quiet = reason == FailReason::SaidMaintenance;
                if (before.is_up() || self.held_out) && !quiet {
                    self.penalty.fell(damping, now);
                }
                // Neither the time in which it passed and was held out counts, nor maintenance.
                let since = match before {
                    Health::Down {
                        reason: FailReason::SaidMaintenance,
                        ..
                    } if !quiet => now,
                    Health::Down { since, .. } if !self.held_out => since,
                    Health::Down { .. } | Health::Up { .. } | Health::Unknown { .. } => now,
                };
                self.held_out = false;
                self.verdict = Health::Down {
                    since,
                    passes: 0,
                    reason,
                };
            }
            Together::Unknown => {}
        }
        let class = |verdict| match verdict {
            Health::Down { reason, .. } => Some(reason.class()),
            Health::Unknown { .. } | Health::Up { .. } => None,
        };
        change.class = before.down_since().is_some()
            && self.verdict.down_since().is_some()
            && class(before) != class(self.verdict);
        change.matters = advised
            || change.class
            || heard
            || change.transition.is_some()
            || before.is_unknown() != self.verdict.is_unknown();
        change
    }
}

fn weight(advice: Advice, configured: Weight) -> Weight {
    match advice {
        Advice::Percent(p) => configured.percent(p),
        Advice::Weight(w) => Weight::of(w),
    }
}

enum Together {
    Up,
    Down(FailReason),
    Unknown,
}

/// The checks' verdicts as one.
fn together(checks: &[CheckState], need: Need) -> Together {
    let maintained = |c: &CheckState| {
        let reason = FailReason::SaidMaintenance;
        matches!(c.health, Health::Down { reason: r, .. } if r == reason)
    };
    // Whatever the others say, and however many are needed.
    if checks.iter().any(maintained) {
        return Together::Down(FailReason::SaidMaintenance);
    }
    let need = need.of(checks.len());
    let up = checks.iter().filter(|c| c.health.is_up()).count();
    let down = checks.iter().filter_map(|c| match c.health {
        Health::Down { reason, .. } => Some(reason),
        Health::Unknown { .. } | Health::Up { .. } => None,
    });
    let reasons: Vec<_> = down.collect();
    // A server that is gone for one of them is gone.
    let gone = |reason: &&FailReason| reason.class() == FailClass::Gone;
    let first = reasons.iter().find(gone).or(reasons.first()).copied();
    let failed = reasons.len();
    match first {
        _ if up >= need => Together::Up,
        Some(reason) if failed + need > checks.len() => Together::Down(reason),
        _ => Together::Unknown,
    }
}

#[cfg(test)]
mod tests;
