//! Another configuration for a core that runs: what it does not touch keeps its verdicts, weights and
//! connections. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Arrival, Core, Effects, Event, Incident, Note, Stage};
use crate::{
    config::{self, VirtualService},
    health::Quorum,
    model::{
        Count, DestAttrs, DestKey, MonoTime, OrderedPlace, PlannedStandIn, Reloaded, ServiceKey,
        wire::Member,
    },
    reconcile::plan,
};

/// A configuration to run with from now on.
#[derive(Clone, Debug)]
pub struct Reload {
    /// It.
    pub config: Arc<config::Director>,
    /// What the kernel holds of services that the present configuration does not name: it is adopted, as at
    /// a start.
    pub found: BTreeMap<ServiceKey, BTreeMap<DestKey, DestAttrs>>,
}

/// What another configuration would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What of the configuration.
    pub reloaded: Reloaded,
    /// What would be wanted of the services of which something else would be wanted; `None`: nothing.
    pub wants: BTreeMap<ServiceKey, Option<plan::Want>>,
    /// Who would be sent on the way out.
    pub leaving: BTreeSet<OrderedPlace>,
    /// Stand-ins that would go back to the provisioner.
    pub stand_ins: Vec<PlannedStandIn>,
    /// Failed servers whose replacement would be called off.
    pub called_off: Vec<IpAddr>,
}

impl Core {
    /// Takes another configuration. Nobody keeps what the new one does not name: who served drains.
    pub(super) fn reload(&mut self, reload: Reload, now: MonoTime, fx: &mut Effects) {
        let old = Arc::clone(&self.config);
        let before: BTreeMap<ServiceKey, plan::Want> = old
            .services
            .keys()
            .filter_map(|key| Some((*key, self.desired(*key)?)))
            .collect();
        let Reload { config, found } = reload;
        for (key, service) in &config.services {
            match old.services.get(key) {
                Some(had) => self.check_anew(*key, had, service, before.get(key)),
                // A service that leaves, and is wanted again, is its own memory.
                None => self.adopt(*key, found.get(key)),
            }
        }
        self.adopted
            .retain(|key, _| config.services.contains_key(key));
        self.quorums
            .retain(|key, _| config.services.contains_key(key));
        for key in config.services.keys() {
            self.quorums.entry(*key).or_insert(Quorum::Held);
        }
        self.check_standbys_anew(&config);
        self.config = config;
        self.let_in(Some(&old));
        self.refresh_targets(Arrival::Later, now, fx);
        fx.targets = true;
        fx.dirty.extend(self.refresh_ways());
        self.forget_orders(fx);
        for (key, want) in &before {
            self.let_absent_go(*key, want, now);
        }
        fx.dirty.extend(before.keys());
        fx.dirty.extend(self.config.services.keys());
        fx.notes.push(Note::Reloaded(reloaded(&old, &self.config)));
    }

    /// Whoever is checked otherwise than before has no verdict any more, and keeps its place until it has one.
    fn check_anew(
        &mut self,
        key: ServiceKey,
        old: &VirtualService,
        new: &VirtualService,
        before: Option<&plan::Want>,
    ) {
        // Whatever its quorum: who was quiesced for that alone is not to stay so.
        let seats = self.lineup(key, old);
        let own = |dest: &DestKey| {
            let sorry = old.sorry.get(dest);
            let sorry = sorry.map(|attrs| self.place(key, *dest, *attrs));
            let seat = sorry.or_else(|| seats.get(dest).copied())?;
            let panics = before.and_then(|want| want.service.dests.get(dest).copied());
            // As it was when it fell: without the factor that ramps bring.
            let fell = self.fallen.get(&(key, *dest)).copied();
            seat.attrs
                .or_else(|| fell.filter(|_| panics.is_some()).or(panics))
        };
        let differs = |dest: &&DestKey| old.checks_of(dest) != new.checks_of(dest);
        let watched = self.health.get(&key).into_iter().flat_map(BTreeMap::keys);
        let anew: BTreeMap<DestKey, Option<DestAttrs>> = watched
            .filter(differs)
            .map(|dest| (*dest, own(dest)))
            .collect();
        let Some(watched) = self.health.get_mut(&key) else {
            return;
        };
        watched.retain(|dest, _| !anew.contains_key(dest));
        self.fallen
            .retain(|(of, dest), _| *of != key || !anew.contains_key(dest));
        let stays = anew.into_iter();
        let stays = stays.filter_map(|(dest, attrs)| Some((dest, attrs?)));
        self.adopted.entry(key).or_default().extend(stays);
    }

    /// A service that is new to the configuration is taken over as it is found; one that was on its way out, as it
    /// was before that.
    fn adopt(&mut self, key: ServiceKey, found: Option<&BTreeMap<DestKey, DestAttrs>>) {
        let mut all = found.cloned().unwrap_or_default();
        if let Some(part) = self.leaving.get(&key) {
            let there = |dest: &DestKey| found.is_none_or(|found| found.contains_key(dest));
            let left = part.dests.iter().filter(|(dest, _)| there(dest));
            all.extend(left.map(|(dest, leaving)| (*dest, leaving.attrs)));
        }
        if !all.is_empty() {
            self.adopted.insert(key, all);
        }
    }

    /// Sends those on their way who were in service and are not any more, unless they failed.
    pub(super) fn let_absent_go(&mut self, key: ServiceKey, before: &plan::Want, now: MonoTime) {
        let after = self.desired(key);
        let stays = |dest: &DestKey| {
            after.as_ref().is_some_and(|want| {
                want.service.dests.contains_key(dest) || want.out.contains(dest)
            })
        };
        // Of a service that goes, the servers that failed have gone.
        let gone: Vec<_> = before
            .service
            .dests
            .iter()
            .filter(|(dest, _)| !stays(dest))
            .map(|(dest, attrs)| (*dest, *attrs))
            .collect();
        let until = self.drain_limit(now);
        for dest in gone {
            let attrs = after.as_ref().unwrap_or(before);
            let of = (attrs.service.attrs.clone(), attrs.drift);
            self.let_go(key, (&of.0, of.1), dest, until);
        }
    }

    /// Of a server that is no longer there nothing is ordered.
    fn forget_orders(&mut self, fx: &mut Effects) {
        let unnamed: Vec<OrderedPlace> = self
            .orders
            .keys()
            .filter(|place| !self.is_named(**place))
            .copied()
            .collect();
        for place in unnamed {
            self.orders.remove(&place);
            fx.notes.push(Note::Ordered(place, None));
        }
    }

    /// What another configuration would make of what is wanted now. Changes nothing.
    #[must_use]
    pub fn plan(&self, reload: Reload, now: MonoTime) -> Plan {
        let mut after = self.clone();
        let fx = after.handle(Event::Reload(Box::new(reload)), now);
        let wants = fx.dirty.into_iter().filter_map(|key| {
            let want = after.desired(key);
            (want != self.desired(key)).then_some((key, want))
        });
        let wants = wants.collect();
        let stand_in = |m: &Member| PlannedStandIn {
            name: m.spare.name.clone(),
            addresses: m.spare.addresses.clone(),
            in_place_of: m.origins.clone(),
        };
        let called_off = |(server, incident): (&IpAddr, &Incident)| {
            let wished = |i: &Incident| matches!(i.stage, Stage::Cancelling { .. });
            let before = self.incidents.get(server).is_some_and(wished);
            (wished(incident) && !before).then_some(*server)
        };
        let leaving = &after.draining() - &self.draining();
        Plan {
            reloaded: reloaded(&self.config, &after.config),
            wants,
            leaving,
            stand_ins: after.homeless().map(stand_in).collect(),
            called_off: after.incidents.iter().filter_map(called_off).collect(),
        }
    }
}

/// What differs between two configurations, counted.
fn reloaded(old: &config::Director, new: &config::Director) -> Reloaded {
    let servers = |config: &config::Director| -> BTreeMap<(ServiceKey, DestKey), DestAttrs> {
        let all = config.services.iter().flat_map(|(key, service)| {
            let named = service.servers.iter().chain(&service.sorry);
            named.map(|(dest, attrs)| ((*key, *dest), *attrs))
        });
        all.collect()
    };
    let of = |service: &VirtualService| {
        let mut own = service.clone();
        own.servers.clear();
        own.sorry.clear();
        own
    };
    Reloaded {
        services: Count::of(&old.services, &new.services, |a, b| of(a) == of(b)),
        servers: Count::of(&servers(old), &servers(new), |a, b| a == b),
    }
}
