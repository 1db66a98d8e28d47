//! What is wanted against what is there: a plan as data. PURE. Its order is part of it, so that
//! tests can see it.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::model::{
    DestAttrs, DestKey, Service, ServiceAttrs, ServiceKey, ServiceState, Step, Table,
};

/// What is wanted of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Attributes and destinations.
    pub service: Service,
    /// Destinations whose server failed: they are taken out first, and nothing holds that back.
    pub out: BTreeSet<DestKey>,
}

/// What is wanted of the kernel, numbered so that one can wait for it. Unchanged services share
/// their part with the one before.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Grows with every change.
    pub generation: u64,
    /// The services.
    pub services: BTreeMap<ServiceKey, Arc<Want>>,
    /// Whether services that stand in no configuration are ours to remove.
    pub exclusive: bool,
}

/// What the kernel holds of the wanted services after a pass.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The generation last reached in full.
    pub generation: u64,
    /// Destinations by service, as last read and written.
    pub kernel: BTreeMap<ServiceKey, Arc<BTreeMap<DestKey, DestAttrs>>>,
    /// Services in the kernel that stand in no configuration.
    pub foreign: usize,
    /// Services that did not get all their steps, and why; or the reading that failed.
    pub failed: BTreeMap<ServiceKey, String>,
    /// Why the kernel could not be read, if it could not.
    pub unreadable: Option<String>,
}

/// The steps for one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Destinations of failed servers leave: first of all services, and each by itself.
    pub take_out: Vec<Step>,
    /// Everything else, capacity added before any is taken away. One that fails ends these.
    pub rest: Vec<Step>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.take_out.is_empty() && self.rest.is_empty()
    }
}

/// The steps from `actual` to `want` for one owned service; `None` is absent.
#[must_use]
pub fn plan(key: ServiceKey, want: Option<&Want>, actual: Option<&ServiceState>) -> Plan {
    let none = BTreeSet::new();
    let out = want.map_or(&none, |w| &w.out);
    let have = actual.map(|a| (&a.attrs, &a.dests));
    steps_of(key, want.map(|w| &w.service), out, have)
}

fn steps_of<D: Borrow<DestAttrs>>(
    key: ServiceKey,
    want: Option<&Service>,
    out: &BTreeSet<DestKey>,
    actual: Option<(&ServiceAttrs, &BTreeMap<DestKey, D>)>,
) -> Plan {
    let Some(want) = want else {
        let gone = actual.map(|_| Step::DelService(key));
        return Plan {
            take_out: Vec::new(),
            rest: gone.into_iter().collect(),
        };
    };
    let (mut take_out, mut grow, mut shrink) = (Vec::new(), Vec::new(), Vec::new());
    match actual {
        None => grow.push(Step::NewService(key, want.attrs.clone())),
        Some((have, _)) if *have != want.attrs => {
            grow.push(Step::SetService(key, want.attrs.clone()));
        }
        Some(_) => {}
    }
    let have = actual.map(|(_, dests)| dests);
    for (dest, attrs) in &want.dests {
        match have.and_then(|d| d.get(dest)).map(Borrow::borrow) {
            None => grow.push(Step::NewDest(key, *dest, *attrs)),
            Some(old) if old == attrs => {}
            Some(old) if attrs.weight < old.weight => {
                shrink.push(Step::SetDest(key, *dest, *attrs));
            }
            Some(_) => grow.push(Step::SetDest(key, *dest, *attrs)),
        }
    }
    // Found by walking what is there, not what is wanted.
    for dest in have.into_iter().flat_map(BTreeMap::keys) {
        if want.dests.contains_key(dest) {
            continue;
        }
        let side = if out.contains(dest) {
            &mut take_out
        } else {
            &mut shrink
        };
        side.push(Step::DelDest(key, *dest));
    }
    grow.append(&mut shrink);
    Plan {
        take_out,
        rest: grow,
    }
}

/// The steps that make `from` into `to`, both whole tables, with the least disturbance: what differs
/// is changed in place, capacity comes before any goes, in the order of the keys.
#[must_use]
pub fn diff(from: &Table, to: &Table) -> Vec<Step> {
    let keys: BTreeSet<&ServiceKey> = from.keys().chain(to.keys()).collect();
    let mut steps = Vec::new();
    for key in keys {
        let have = from.get(key).map(|s| (&s.attrs, &s.dests));
        let Plan { rest, .. } = steps_of(*key, to.get(key), &BTreeSet::new(), have);
        steps.extend(rest);
    }
    steps
}

#[cfg(test)]
mod tests;
