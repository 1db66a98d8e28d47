//! Slow start: a server that comes in beside others gets its share of new connections step by step. PURE.
//!
//! A weight is a whole number, so that a server of weight 1 has no steps. While somebody in a service ramps, the
//! weights of all its servers are multiplied by one factor, which changes nothing of their proportions. The kernel
//! takes weights one by one: between two messages of the batch in which the factor comes or goes some servers have it
//! and others have not, for microseconds; who is new is added after the others have it (`reconcile/plan.rs`).
//! Thresholds and the quorum count configured weights.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Arrival, Core, Effects, Note, Rule, Seat};
use crate::{
    config::VirtualService,
    model::{DestAttrs, DestKey, MonoTime, OrderedPlace, Ramping, ServiceKey, Weight},
};

/// Of a ramp. Each is in the middle of what a line would be: 5 %, 15 %, ... 95 %, and then the whole.
const STEPS: u32 = 10;

/// The least weight that has as many steps: 5 % of it are 1.
const FINEST: u32 = 20;

/// No weight is scaled beyond it: it is what ipvsadm(8) takes.
const MOST: u32 = 65_535;

/// A server on its way to its whole weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ramp {
    since: MonoTime,
    percent: u16,
}

/// A service's servers, as far as it is for their ramps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ramps {
    /// Those that took new connections when it was last looked.
    serving: BTreeSet<DestKey>,
    ramping: BTreeMap<DestKey, Ramp>,
}

/// How much of its weight a server has after so long of `whole`; `None`: all of it.
fn percent(elapsed: Duration, whole: Duration) -> Option<u16> {
    let steps = elapsed.as_nanos() * u128::from(STEPS);
    let step = steps.checked_div(whole.as_nanos())?;
    let step = u16::try_from(step).ok()?;
    (u32::from(step) < STEPS).then(|| step * 10 + 5)
}

/// When the step after that of `percent` is due: never a nanosecond too early.
fn next_step(since: MonoTime, percent: u16, whole: Duration) -> MonoTime {
    // `percent` is 10 of the step's number and 5.
    let step = whole.as_nanos() * u128::from(percent / 10 + 1);
    let step = u64::try_from(step.div_ceil(u128::from(STEPS)));
    since.after(Duration::from_nanos(step.unwrap_or(u64::MAX)))
}

/// The weights that servers have while some of them have only so many percent of theirs.
fn scaled(
    weights: &BTreeMap<DestKey, Weight>,
    ramping: &BTreeMap<DestKey, u16>,
    may_scale: bool,
) -> BTreeMap<DestKey, Weight> {
    let least = ramping.keys().filter_map(|dest| weights.get(dest));
    let least = least.map(|weight| weight.get().max(1)).min();
    let most = weights.values().map(|weight| weight.get()).max();
    let room = MOST.checked_div(most.unwrap_or_default()).unwrap_or(1);
    let factor = match least {
        Some(least) if may_scale => FINEST.div_ceil(least).min(room).max(1),
        Some(_) | None => 1,
    };
    let one = |(dest, weight): (&DestKey, &Weight)| {
        let whole = weight.times(factor);
        let percent = ramping.get(dest);
        (
            *dest,
            percent.map_or(whole, |percent| whole.percent(*percent)),
        )
    };
    weights.iter().map(one).collect()
}

impl Core {
    /// Notes who has just come to be watched and comes in without a ramp: everybody at a start of the director,
    /// and of a service that is new to it.
    pub(super) fn comes_in_whole(&mut self, new: BTreeSet<(ServiceKey, DestKey)>) {
        let services = &self.config.services;
        let slow = |key: &ServiceKey| services.get(key).is_some_and(|s| s.slow_start.is_some());
        self.whole
            .extend(new.into_iter().filter(|(key, _)| slow(key)));
    }

    /// Begins, advances and ends a service's ramps.
    pub(super) fn review_ramps(&mut self, key: ServiceKey, now: MonoTime, fx: &mut Effects) {
        let config = self.config.services.get(&key);
        let Some((config, slow)) = config.and_then(|c| Some((c, c.slow_start?))) else {
            self.ramps.remove(&key);
            self.whole.retain(|(service, _)| *service != key);
            return;
        };
        let lineup = self.lineup(key, config);
        let serving = lineup.iter().filter(|(_, seat)| seat.takes());
        let serving: BTreeMap<DestKey, Rule> = serving.map(|(d, seat)| (*d, seat.rule)).collect();
        let before = self.ramps.get(&key).cloned().unwrap_or_default();
        let mut ramping = before.ramping.clone();
        for (dest, rule) in &serving {
            let comes = !before.serving.contains(dest) && !self.whole.contains(&(key, *dest));
            if comes && ramps_by(*rule) {
                let percent = 5;
                ramping.insert(
                    *dest,
                    Ramp {
                        since: now,
                        percent,
                    },
                );
            }
        }
        ramping.retain(|dest, ramp| {
            let percent = percent(now.since(ramp.since), slow);
            ramp.percent = percent.unwrap_or(ramp.percent);
            let rule = serving.get(dest);
            percent.is_some() && rule.is_some_and(|rule| *rule != Rule::OrderedWeight)
        });
        // Nobody waits for those who are not there.
        if serving.keys().all(|dest| ramping.contains_key(dest)) {
            ramping.clear();
        }
        for dest in ramping.keys() {
            if !before.ramping.contains_key(dest) {
                fx.notes.push(Note::Ramps(key, *dest, slow));
            }
        }
        if ramping != before.ramping {
            fx.dirty.insert(key);
        }
        let serving: BTreeSet<DestKey> = serving.into_keys().collect();
        let judged = |service: &ServiceKey, dest: &DestKey| {
            let verdict = self.verdict(*service, *dest);
            *service == key && verdict.is_none_or(|v| !v.is_unknown())
        };
        let done: Vec<_> = self
            .whole
            .iter()
            .filter(|(service, dest)| judged(service, dest))
            .copied()
            .collect();
        for place in done {
            self.whole.remove(&place);
        }
        self.ramps.insert(key, Ramps { serving, ramping });
    }

    /// Services in which somebody's next step is due.
    pub(super) fn ramps_due(&self, now: MonoTime) -> BTreeSet<ServiceKey> {
        let due = self.next_steps().filter(|(_, due)| *due <= now);
        due.map(|(key, _)| key).collect()
    }

    /// When each ramp's next step is due.
    pub(super) fn next_steps(&self) -> impl Iterator<Item = (ServiceKey, MonoTime)> {
        self.ramps.iter().flat_map(|(key, ramps)| {
            let config = self.config.services.get(key);
            let slow = config.and_then(|c| c.slow_start);
            let next = move |ramp: &Ramp| Some(next_step(ramp.since, ramp.percent, slow?));
            let ramps = ramps.ramping.values().filter_map(next);
            ramps.map(|due| (*key, due))
        })
    }

    /// How much of its weight a server has, while that is not all.
    #[must_use]
    pub fn ramping(&self, place: OrderedPlace) -> Option<u16> {
        let ramp = self.ramps.get(&place.service)?.ramping.get(&place.server)?;
        Some(ramp.percent)
    }

    /// Gives the servers of a service the weights that they have while some ramp.
    pub(super) fn ramped(
        &self,
        key: ServiceKey,
        config: &VirtualService,
        seats: &mut BTreeMap<DestKey, Seat>,
    ) {
        let ramping = self.ramps.get(&key).map(|ramps| &ramps.ramping);
        let Some(ramping) = ramping.filter(|ramping| !ramping.is_empty()) else {
            return;
        };
        let ramping = ramping.iter().map(|(dest, ramp)| (*dest, ramp.percent));
        let weights = seats.iter().filter(|(_, seat)| seat.takes());
        let weights = weights.filter_map(|(dest, seat)| Some((*dest, seat.attrs?.weight)));
        let may_scale = config.attrs.scheduler.ramping() == Ramping::Scaled;
        for (dest, weight) in scaled(&weights.collect(), &ramping.collect(), may_scale) {
            if let Some(attrs) = seats.get_mut(&dest).and_then(|seat| seat.attrs.as_mut()) {
                attrs.weight = weight;
            }
        }
    }

    /// A director that ended while somebody ramped has left weights with a factor in the kernel: those that are
    /// taken over at a start lose it, else who has a verdict and who has none would be out of proportion.
    pub(super) fn without_factor(&mut self) {
        for (key, config) in &self.config.services {
            let Some(found) = self
                .adopted
                .get_mut(key)
                .filter(|_| config.slow_start.is_some())
            else {
                continue;
            };
            let ratio = |(dest, configured): (&DestKey, &DestAttrs)| {
                let place = OrderedPlace {
                    service: *key,
                    server: *dest,
                };
                let found = found.get(dest)?.weight.get();
                let whole = found.is_multiple_of(configured.weight.get().max(1));
                (whole && !self.orders.contains_key(&place))
                    .then(|| found.checked_div(configured.weight.get()))?
            };
            let factor = config.servers.iter().filter_map(ratio).max();
            let factor = factor.filter(|factor| (2..=FINEST).contains(factor));
            for attrs in found.values_mut() {
                attrs.weight = attrs.weight.parted(factor.unwrap_or(1));
            }
        }
    }
}

/// Whether a server that comes in by this rule ramps: not one whose weight was found or ordered.
const fn ramps_by(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::Passed | Rule::Unchecked | Rule::Advised | Rule::LetIn
    )
}

/// Whether who comes to be watched then, in a service that was watched before or was not, comes in at once.
pub(super) const fn is_whole(arrival: Arrival, service_is_known: bool) -> bool {
    matches!(arrival, Arrival::Start) || !service_is_known
}

#[cfg(test)]
mod tests;
