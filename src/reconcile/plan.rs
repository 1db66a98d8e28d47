//! What is wanted against what is there: a plan as data. PURE. Its order is part of it, so that
//! tests can see it.
//!
//! Every attribute of a service and of a destination changes in place: `ip_vs_edit_service` takes
//! over scheduler, flags, timeout, netmask and persistence engine, `__ip_vs_update_dest` takes over
//! weight, forwarding method, tunnel and thresholds (net/netfilter/ipvs/ip_vs_ctl.c, Linux 6.1). So
//! nothing is removed to be added again, and established connections stay.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::drift::Difference;
use crate::model::{
    DestAttrs, DestKey, DriftPolicy, Service, ServiceAttrs, ServiceKey, ServiceState, Step, Table,
    Weight,
};

/// What is wanted of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Attributes and destinations.
    pub service: Service,
    /// Destinations whose server failed: they are taken out first, and nothing holds that back.
    pub out: BTreeSet<DestKey>,
    /// What becomes of what others change.
    pub drift: DriftPolicy,
}

impl Want {
    /// Whether the service is as wanted, down to the last attribute. Allocates nothing.
    #[must_use]
    pub fn is_met_by(&self, actual: Option<&ServiceState>) -> bool {
        actual.is_some_and(|a| {
            a.attrs == self.service.attrs
                && a.dests.len() == self.service.dests.len()
                && (a.dests.iter().zip(&self.service.dests))
                    .all(|((have, state), (dest, attrs))| have == dest && state.attrs == *attrs)
        })
    }
}

/// What is wanted of the kernel, numbered so that one can wait for it. Unchanged services share
/// their part with the one before.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Grows with every change.
    pub generation: u64,
    /// The services.
    pub services: BTreeMap<ServiceKey, Arc<Want>>,
    /// How often the whole table is read to heal drift.
    pub resync: Duration,
    /// Whether nothing is written: only what differs is told.
    pub shadow: bool,
    /// Whether services that stand in no configuration are ours to remove.
    pub exclusive: bool,
    /// Hidden services that this director has ever made: ours to remove where they are not wanted.
    pub made: Arc<BTreeSet<ServiceKey>>,
}

impl Desired {
    /// Whether a service in the kernel is not wanted, and ours to remove even if it never was wanted.
    #[must_use]
    pub fn is_to_go(&self, key: &ServiceKey) -> bool {
        (self.exclusive || self.made.contains(key)) && !self.services.contains_key(key)
    }
}

/// What the kernel holds of the wanted services after a pass. Unchanged services share their part
/// with the one before.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The generation last reached in full.
    pub generation: u64,
    /// Destinations by service, as last read and written.
    pub kernel: BTreeMap<ServiceKey, Arc<BTreeMap<DestKey, DestAttrs>>>,
    /// Services in the kernel that stand in no configuration.
    pub foreign: usize,
    /// What others changed and what stands so: because it is left, or because the kernel refused to
    /// have it put right. No entry is empty.
    pub drift: BTreeMap<ServiceKey, Vec<Difference>>,
    /// Services that did not get all their steps, and why; or the reading that failed.
    pub failed: BTreeMap<ServiceKey, String>,
    /// Why the kernel could not be read, if it could not.
    pub unreadable: Option<String>,
}

/// The steps for one service, by phase. Phases go out in the order of the fields, each for all
/// services before the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Destinations of failed servers leave: first of all, and nothing holds that back.
    pub take_out: Vec<Step>,
    /// The service itself is created or changed.
    pub service: Option<Step>,
    /// Destinations that come, gain weight, or change without losing any.
    pub grow: Vec<Step>,
    /// Destinations that lose weight or leave, or the whole service: what could not grow is not
    /// shrunk.
    pub shrink: Vec<Step>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps().next().is_none()
    }

    /// All steps in their order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        let grow = self.service.iter().chain(&self.grow);
        self.take_out.iter().chain(grow).chain(&self.shrink)
    }
}

/// The steps from `actual` to `want` for one owned service; `None` is absent. Destinations in `out`
/// are those of failed servers.
#[must_use]
pub fn plan(
    key: ServiceKey,
    want: Option<&Service>,
    out: &BTreeSet<DestKey>,
    actual: Option<&ServiceState>,
) -> Plan {
    steps_of(key, want, out, actual.map(|a| (&a.attrs, &a.dests)))
}

fn steps_of<D: Borrow<DestAttrs>>(
    key: ServiceKey,
    want: Option<&Service>,
    out: &BTreeSet<DestKey>,
    actual: Option<(&ServiceAttrs, &BTreeMap<DestKey, D>)>,
) -> Plan {
    let mut plan = Plan::default();
    let Some(want) = want else {
        plan.shrink.extend(actual.map(|_| Step::DelService(key)));
        return plan;
    };
    plan.service = match actual {
        None => Some(Step::NewService(key, want.attrs.clone())),
        Some((have, _)) if *have != want.attrs => Some(Step::SetService(key, want.attrs.clone())),
        Some(_) => None,
    };
    let have = actual.map(|(_, dests)| dests);
    // Who gets its first connections, after the others have grown: where a factor comes to all weights (slow start) it is
    // not to meet them without it.
    let mut new = Vec::new();
    let mut lose = Vec::new();
    for (dest, attrs) in &want.dests {
        match have.and_then(|d| d.get(dest)).map(Borrow::borrow) {
            None => new.push(Step::NewDest(key, *dest, *attrs)),
            Some(old) if old == attrs => {}
            Some(old) if attrs.weight < old.weight => {
                lose.push((old.weight, *dest, *attrs));
            }
            Some(old) if old.weight == Weight::QUIESCED => {
                new.push(Step::SetDest(key, *dest, *attrs));
            }
            Some(_) => plan.grow.push(Step::SetDest(key, *dest, *attrs)),
        }
    }
    plan.grow.append(&mut new);
    // Where the factor goes, who ramped until now (19 of 20) loses it before those who were whole (20 of 20): it never
    // stands beside them with more than its part. Who loses the smaller part goes first; of equals the order stays.
    lose.sort_by(|(old, _, new), (other_old, _, other_new)| {
        let part = |new: Weight, of: Weight| u64::from(new.get()) * u64::from(of.get());
        part(other_new.weight, *old).cmp(&part(new.weight, *other_old))
    });
    let lose = lose.into_iter();
    plan.shrink
        .extend(lose.map(|(_, dest, attrs)| Step::SetDest(key, dest, attrs)));
    // Found by walking what is there, not what is wanted.
    for dest in have.into_iter().flat_map(BTreeMap::keys) {
        if want.dests.contains_key(dest) {
            continue;
        }
        let side = if out.contains(dest) {
            &mut plan.take_out
        } else {
            &mut plan.shrink
        };
        side.push(Step::DelDest(key, *dest));
    }
    plan
}

/// The steps that make `from` into `to`, both whole tables, with the least disturbance: what differs
/// is changed in place. Services come first, then all that adds capacity, in all services, and only
/// then what takes any away, each in the order of the services' keys.
#[must_use]
pub fn diff(from: &Table, to: &Table) -> Vec<Step> {
    let (mut grow, mut shrink) = phases(from, to);
    grow.append(&mut shrink);
    grow
}

/// The same in two parts, for who makes the second only where the first went well: services and
/// what adds capacity; what takes any away.
#[must_use]
pub fn phases(from: &Table, to: &Table) -> (Vec<Step>, Vec<Step>) {
    let keys: BTreeSet<&ServiceKey> = from.keys().chain(to.keys()).collect();
    let (mut services, mut grow, mut shrink) = (Vec::new(), Vec::new(), Vec::new());
    for key in keys {
        let have = from.get(key).map(|s| (&s.attrs, &s.dests));
        let mut plan = steps_of(*key, to.get(key), &BTreeSet::new(), have);
        services.extend(plan.service);
        grow.append(&mut plan.grow);
        shrink.append(&mut plan.shrink);
    }
    services.append(&mut grow);
    (services, shrink)
}

#[cfg(test)]
mod tests;
