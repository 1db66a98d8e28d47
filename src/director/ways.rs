//! Hidden services: one firewall mark for each real server and forwarding method, so that a probe
//! with that mark travels to this server as a client's packet does. PURE.
//!
//! The kernel prefers a service by firewall mark to one by address (`ip_vs_service_find`,
//! net/netfilter/ipvs/ip_vs_ctl.c), also for packets of this host's own. A destination with port 0
//! keeps the packet's port.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::Core;
use crate::{
    config::VirtualService,
    health::{CheckState, Standing},
    model::{
        CheckSpec, DestAttrs, DestKey, DriftPolicy, Family, ForwardMethod, Marks, Scheduler,
        Service, ServiceAttrs, ServiceFlags, ServiceKey, Tunnel, Weight,
    },
    reconcile::plan,
};

/// Of the only destination of a hidden service.
const WEIGHT: u16 = 10_000;

/// What tells one way from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// Of the virtual address.
    family: Family,
    server: IpAddr,
    forward: ForwardMethod,
    tunnel: Tunnel,
}

impl Way {
    fn dest(&self) -> (DestKey, DestAttrs) {
        let key = DestKey {
            addr: self.server,
            port: 0,
        };
        let attrs = DestAttrs {
            // Far from any overflow scheduler's limit, whatever its service has.
            weight: Weight::of(WEIGHT),
            forward: self.forward,
            upper: 0,
            lower: 0,
            tunnel: self.tunnel,
        };
        (key, attrs)
    }
}

/// All ways of a director, and their marks.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    range: Marks,
    /// Marks of services that others had made before us.
    strangers: BTreeSet<u32>,
    ways: BTreeMap<Way, (u32, Scheduler)>,
    /// The same, by key.
    services: BTreeMap<ServiceKey, Way>,
    /// What this director has ever made, and is to remove where it is no longer wanted.
    used: BTreeSet<ServiceKey>,
}

impl Ways {
    /// `used` is what an earlier run of this director made, `found` what the kernel has in the range.
    pub(super) fn new(
        range: Marks,
        used: BTreeSet<ServiceKey>,
        found: &BTreeSet<ServiceKey>,
    ) -> Self {
        let strangers = found.difference(&used).filter_map(|key| match key {
            ServiceKey::Fwmark(_, mark) => Some(*mark),
            ServiceKey::Addr(..) => None,
        });
        Self {
            range,
            strangers: strangers.collect(),
            ways: BTreeMap::new(),
            services: BTreeMap::new(),
            used,
        }
    }

    /// Keeps the marks of ways that are still wanted, frees those of the others, and gives new ones
    /// the lowest that are free. Returns the services that came or went.
    fn refresh(&mut self, wanted: &BTreeMap<Way, Scheduler>) -> BTreeSet<ServiceKey> {
        let before = self.services.clone();
        self.ways.retain(|way, _| wanted.contains_key(way));
        let mut taken: BTreeSet<u32> = self.ways.values().map(|(mark, _)| *mark).collect();
        taken.extend(&self.strangers);
        let mut free = (self.range.from..=self.range.to).filter(|mark| !taken.contains(mark));
        for (way, scheduler) in wanted {
            if self.ways.contains_key(way) {
                continue;
            }
            // None left: `lacking` tells of it.
            let Some(mark) = free.next() else { break };
            self.ways.insert(*way, (mark, scheduler.clone()));
        }
        let keyed = |(way, (mark, _)): (&Way, &(u32, Scheduler))| {
            (ServiceKey::Fwmark(way.family, *mark), *way)
        };
        self.services = self.ways.iter().map(keyed).collect();
        self.used.extend(self.services.keys());
        // Also those whose mark another server has by now.
        let all = before.keys().chain(self.services.keys());
        let moved = all.filter(|key| before.get(key) != self.services.get(key));
        moved.copied().collect()
    }

    /// The hidden services that are wanted.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.keys().copied()
    }

    /// What this director has ever made.
    pub(super) const fn used(&self) -> &BTreeSet<ServiceKey> {
        &self.used
    }

    /// What is wanted of a hidden service; `None` for another.
    pub(super) fn desired(&self, key: ServiceKey) -> Option<plan::Want> {
        let way = self.services.get(&key)?;
        let (_, scheduler) = self.ways.get(way)?;
        Some(plan::Want {
            service: Service {
                attrs: ServiceAttrs {
                    scheduler: scheduler.clone(),
                    // For UDP each packet is scheduled alone: an entry of five minutes would send a later
                    // probe from the same port to this server.
                    flags: ServiceFlags(ServiceFlags::ONE_PACKET),
                    persistence: None,
                },
                dests: [way.dest()].into(),
            },
            out: BTreeSet::new(),
            // Nobody else has a say in it.
            drift: DriftPolicy::Repair,
        })
    }
}

impl Core {
    /// The ways that checks need, each with a scheduler of a service that needs it.
    fn wanted_ways(&self) -> BTreeMap<Way, &Scheduler> {
        let mut wanted = BTreeMap::new();
        let members = self.health.iter();
        let members = members.flat_map(|(key, dests)| dests.keys().map(|dest| (*key, *dest)));
        // A warm spare keeps its way when it comes to stand in.
        for (key, dest) in members.chain(self.standbys.places()) {
            let Some(config) = self.config.services.get(&key) else {
                continue;
            };
            let through = config.checks.all.iter().any(|c| c.via.through);
            if through && !config.sorry.contains_key(&dest) {
                let way = way(config, key, dest);
                wanted.entry(way).or_insert(&config.attrs.scheduler);
            }
        }
        wanted
    }

    /// Brings the ways up to date with who is watched. Says which services came or went.
    pub(super) fn refresh_ways(&mut self) -> BTreeSet<ServiceKey> {
        let wanted = self.wanted_ways().into_iter();
        let wanted = wanted
            .map(|(way, scheduler)| (way, scheduler.clone()))
            .collect();
        self.ways.refresh(&wanted)
    }

    /// Servers that no mark is left for.
    pub(super) fn lacking_ways(&self) -> usize {
        let wanted = self.wanted_ways().into_keys();
        wanted
            .filter(|way| !self.ways.ways.contains_key(way))
            .count()
    }

    /// A check through the virtual address as it is made: where it goes and with which mark. `None` as
    /// long as the kernel does not have the way: an answer would be another's.
    pub(super) fn through(
        &self,
        key: ServiceKey,
        dest: DestKey,
        spec: &CheckSpec,
    ) -> Option<(SocketAddr, Arc<CheckSpec>)> {
        let config = self.config.services.get(&key)?;
        let way = way(config, key, dest);
        let (mark, _) = self.ways.ways.get(&way)?;
        self.is_there(&ServiceKey::Fwmark(way.family, *mark), &way)
            .then(|| spec.on_way(key, dest, *mark))?
    }

    /// The hidden services that the kernel has as they are wanted.
    pub(super) fn ways_there(&self) -> BTreeSet<ServiceKey> {
        let there = self.ways.services.iter();
        let there = there.filter(|(key, way)| self.is_there(key, way));
        there.map(|(key, _)| *key).collect()
    }

    /// Whether the kernel has a hidden service with this destination alone.
    fn is_there(&self, key: &ServiceKey, way: &Way) -> bool {
        let (only, attrs) = way.dest();
        let dests = self.applied.kernel.get(key);
        dests.is_some_and(|dests| dests.len() == 1 && dests.get(&only) == Some(&attrs))
    }
}

fn way(config: &VirtualService, key: ServiceKey, dest: DestKey) -> Way {
    let tunnel = config.servers.values().next().map(|attrs| attrs.tunnel);
    Way {
        family: key.family(),
        server: dest.addr,
        forward: config.forward,
        tunnel: tunnel.unwrap_or_default(),
    }
}

/// What a check through the virtual address and a direct one say together, where the first fails and
/// the second passes.
pub(super) fn diagnosis(config: &VirtualService, standing: &Standing) -> Option<&'static str> {
    let checks = || config.checks.all.iter().zip(standing.checks());
    let failing = |c: &CheckState| c.health.down_since().is_some();
    let through = checks().any(|(spec, state)| spec.via.through && failing(state));
    let direct = checks().any(|(spec, state)| !spec.via.through && state.health.is_up());
    if !(through && direct) {
        return None;
    }
    Some(words(config.forward))
}

/// What to look at on a server that answers on its own address, and not for the virtual one.
#[must_use]
pub const fn words(forward: ForwardMethod) -> &'static str {
    match forward {
        ForwardMethod::Tun => {
            "it answers on its own address, not for the virtual one: is the virtual address missing on its lo or tunnel interface, does it unpack the tunnel, is rp_filter strict there?"
        }
        _ => {
            "it answers on its own address, not for the virtual one: is the virtual address missing on its lo, or does another host answer ARP for it?"
        }
    }
}

#[cfg(test)]
mod tests;
