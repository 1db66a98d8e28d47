//! What is wanted of one virtual service, computed alone; and who is to be checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter, mem,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Arrival, Core, Effects, LeavingService, Note, Rule, Seat, ramp::is_whole};
use crate::{
    config::VirtualService,
    health::{Health, Quorum, Standing},
    model::{
        CheckKind, CheckSpec, DestAttrs, DestKey, FailReason, MonoTime, Removal, Service,
        ServiceKey, Slot, Weight, Wish,
        wire::{Member, Spare, Want},
    },
    reconcile::plan,
};

impl Core {
    /// What is wanted of a configured service, or of one that leaves; `None` for another.
    #[must_use]
    pub fn desired(&self, key: ServiceKey) -> Option<plan::Want> {
        let want = self.ways.desired(key).or_else(|| self.wanted(key))?;
        self.while_stopping(key, want)
    }

    fn wanted(&self, key: ServiceKey) -> Option<plan::Want> {
        let Some(config) = self.config.services.get(&key) else {
            let part = self.leaving.get(&key)?;
            return Some(plan::Want {
                service: Service {
                    attrs: part.attrs.clone(),
                    dests: part.drained().collect(),
                },
                out: BTreeSet::new(),
                drift: part.drift,
            });
        };
        let mut dests = BTreeMap::new();
        let mut out = BTreeSet::new();
        for (dest, seat) in self.seats(key, config) {
            match seat.attrs {
                Some(attrs) => drop(dests.insert(dest, attrs)),
                None if seat.is_taken_out() => drop(out.insert(dest)),
                None => {}
            }
        }
        Some(plan::Want {
            service: Service {
                attrs: config.attrs.clone(),
                dests,
            },
            out,
            drift: config.drift,
        })
    }

    /// Where each destination of a configured service belongs, and why.
    pub(super) fn seats(
        &self,
        key: ServiceKey,
        config: &VirtualService,
    ) -> BTreeMap<DestKey, Seat> {
        let mut seats = self.lineup(key, config);
        let sorry = config.sorry.iter();
        let sorry = sorry.map(|(dest, attrs)| (*dest, self.place(key, *dest, *attrs)));
        let sorry: Vec<_> = sorry.collect();
        // Where no sorry server serves either, whoever is left is better than nobody.
        let takes_over = !self.quorum(key).is_held() && sorry.iter().any(|(_, s)| s.takes());
        if !takes_over {
            self.keep_the_last(key, config, &mut seats);
        } else {
            for seat in seats.values_mut().filter(|seat| seat.takes()) {
                // Their connections go on; new ones do not come.
                if let Some(attrs) = seat.attrs {
                    *seat = Seat::quiesced(Rule::QuorumLost, attrs);
                }
            }
        }
        for (dest, mut seat) in sorry {
            if seat.attrs.is_some() && !takes_over {
                seat = Seat::out(Rule::StandsBy);
            } else if seat.takes() {
                seat.rule = Rule::SorryServes;
            }
            seated(&mut seats, dest, seat);
        }
        if self.forgot.is_some() && self.config.provisioner.is_some() {
            // Perhaps a stand-in that only the provisioner remembers: it keeps its place.
            for (dest, attrs) in self.adopted.get(&key).into_iter().flatten() {
                let stranger = Seat::has(Rule::Unclaimed, *attrs);
                seats.entry(*dest).or_insert(stranger);
            }
        }
        self.ramped(key, config, &mut seats);
        let leaving = self.leaving.get(&key).into_iter();
        for (dest, attrs) in leaving.flat_map(LeavingService::drained) {
            let seat = seats.entry(dest).or_insert(Seat::out(Rule::Awaited));
            if seat.attrs.is_none() && !seat.is_taken_out() {
                *seat = Seat::has(Rule::Leaving, attrs);
            }
        }
        seats
    }

    /// Whether a destination is in service, or with its connections, other than on its way out.
    pub(super) fn serves(&self, key: ServiceKey, dest: DestKey) -> bool {
        let config = self.config.services.get(&key);
        let seat = config.and_then(|config| self.seats(key, config).get(&dest).copied());
        seat.is_some_and(|seat| seat.attrs.is_some() && seat.rule != Rule::Leaving)
    }

    /// A service's real servers and stand-ins, whatever its quorum.
    pub(super) fn lineup(
        &self,
        key: ServiceKey,
        config: &VirtualService,
    ) -> BTreeMap<DestKey, Seat> {
        let mut seats = BTreeMap::new();
        for (dest, attrs) in &config.servers {
            let mut replaced = None;
            let stand_ins = self.stand_ins(dest);
            for stand_in in stand_ins.filter(|d| !config.servers.contains_key(d)) {
                let seat = self.place(key, stand_in, *attrs);
                // One that takes nobody has nobody's place.
                if seat.takes() && seat.rule.serves() {
                    replaced = Some(stand_in);
                }
                seated(&mut seats, stand_in, seat);
            }
            let mut seat = self.place(key, *dest, *attrs);
            // The role has passed to the stand-in: while that serves, the old one stays out,
            // unless it serves as the stand-in of another.
            if let Some(stand_in) = replaced
                && seat.rule.serves()
                && !self.lent(dest)
            {
                seat = Seat::out(Rule::Replaced(stand_in));
            }
            seated(&mut seats, *dest, seat);
        }
        seats
    }

    /// Whether a service has enough servers.
    #[must_use]
    pub fn quorum(&self, key: ServiceKey) -> Quorum {
        self.quorums.get(&key).copied().unwrap_or_default()
    }

    /// The weight of a service's servers that are up, and of those on which there is no verdict yet.
    pub(super) fn weights(&self, key: ServiceKey, config: &VirtualService) -> (u64, u64) {
        let (mut live, mut unknown) = (0, 0);
        for (dest, seat) in self.lineup(key, config) {
            let weight = match (seat.attrs, config.servers.get(&dest)) {
                (Some(attrs), _) => attrs.weight,
                // A stand-in has no say before it enters.
                (None, Some(attrs)) if seat.rule == Rule::Awaited => attrs.weight,
                (None, _) => continue,
            };
            if seat.rule == Rule::Doubted {
                unknown += u64::from(weight.get());
                continue;
            }
            let is_up = self.verdict(key, dest).is_some_and(|v| v.is_up());
            *(if is_up { &mut live } else { &mut unknown }) += u64::from(weight.get());
        }
        (live, unknown)
    }

    /// A service's sorry servers that take connections while its quorum is lost.
    pub(super) fn sorry_servers(
        &self,
        key: ServiceKey,
        config: &VirtualService,
    ) -> impl Iterator<Item = DestKey> {
        let serves =
            move |(dest, attrs): &(&DestKey, &DestAttrs)| self.place(key, **dest, **attrs).takes();
        config.sorry.iter().filter(serves).map(|(dest, _)| *dest)
    }

    /// Judges a service's quorum anew.
    pub(super) fn review_quorum(&mut self, key: ServiceKey, fx: &mut Effects) {
        let config = Arc::clone(&self.config);
        let Some(config) = config.services.get(&key) else {
            return;
        };
        let (live, unknown) = self.weights(key, config);
        let before = self.quorum(key);
        let after = before.next(config.quorum, live, unknown);
        if after == before {
            return;
        }
        self.quorums.insert(key, after);
        fx.notes.push(match after {
            Quorum::Held => Note::QuorumHeld(key, live),
            Quorum::Lost => {
                let sorry = self.sorry_servers(key, config).collect();
                Note::QuorumLost(key, live, u64::from(config.quorum.quorum), sorry)
            }
        });
    }

    /// Where a destination belongs: what an operator ordered of it goes before its health.
    pub(super) fn place(&self, key: ServiceKey, dest: DestKey, attrs: DestAttrs) -> Seat {
        let seat = self.place_by_health(key, dest, attrs);
        let with = |weight| DestAttrs { weight, ..attrs };
        let Some(order) = self.order(key, dest) else {
            return seat;
        };
        match order.wish {
            Wish::Disabled => Seat::out(Rule::Disabled),
            Wish::Drained | Wish::Maintenance if order.drained => Seat::out(Rule::DrainedOut),
            Wish::Drained | Wish::Maintenance if seat.rule.serves() => {
                Seat::quiesced(Rule::Drained, attrs)
            }
            Wish::Weight(weight) if seat.rule.serves() => {
                Seat::has(Rule::OrderedWeight, with(weight))
            }
            Wish::Drained | Wish::Maintenance | Wish::Weight(_) => seat,
        }
    }

    fn place_by_health(&self, key: ServiceKey, dest: DestKey, attrs: DestAttrs) -> Seat {
        let found = self.adopted_as(key, dest);
        let with = |weight| DestAttrs { weight, ..attrs };
        let Some(standing) = self.standing(key, dest) else {
            return adopted(found, attrs);
        };
        match standing.verdict() {
            Health::Up { .. } => match found {
                // Perhaps its agent has it drained, and was not heard yet.
                Some(found) if self.awaits_advice(key, dest, standing) => {
                    Seat::has(Rule::AdviceAwaited, with(found.weight))
                }
                Some(_) | None => {
                    let rule = match standing.advice(attrs.weight) {
                        _ if standing.checks().is_empty() => Rule::Unchecked,
                        Some(_) => Rule::Advised,
                        None => Rule::Passed,
                    };
                    Seat::has(rule, with(standing.weight(attrs.weight)))
                }
            },
            Health::Down { since, .. } if let Some(held) = self.held_in(key, dest, since) => {
                Seat::has(Rule::Doubted, held)
            }
            Health::Down { reason, .. } => {
                let rule = match standing.is_held_out() {
                    true => Rule::HeldOut,
                    false => Rule::Failed,
                };
                match self.removal(key, reason) {
                    Removal::Remove => Seat::out(rule),
                    Removal::Quiesce => Seat::quiesced(rule, attrs),
                }
            }
            Health::Unknown { .. } if found.is_none() && self.let_in.contains(&(key, dest)) => {
                Seat::has(Rule::LetIn, attrs)
            }
            Health::Unknown { .. } => adopted(found, attrs),
        }
    }

    /// What becomes of a server of a service that failed so.
    pub(super) fn removal(&self, key: ServiceKey, reason: FailReason) -> Removal {
        let config = self.config.services.get(&key);
        config.map(|c| c.on_failure).unwrap_or_default().of(reason)
    }

    /// The weight that the configuration gives a destination, or the one in whose place it stands.
    pub(super) fn configured_weight(&self, key: ServiceKey, dest: DestKey) -> Weight {
        let attrs = self.config.services.get(&key).and_then(|config| {
            let sorry = config.sorry.get(&dest);
            sorry.or_else(|| self.attrs_of(config, dest))
        });
        attrs.map_or(Weight::ONE, |attrs| attrs.weight)
    }

    /// What the configuration says of a real server, or of the one in whose place a stand-in is.
    pub(super) fn attrs_of<'a>(
        &self,
        config: &'a VirtualService,
        dest: DestKey,
    ) -> Option<&'a DestAttrs> {
        let replaced = |(d, _): &(&DestKey, &DestAttrs)| self.stand_ins(d).any(|s| s == dest);
        let own = config.servers.get(&dest);
        own.or_else(|| Some(config.servers.iter().find(replaced)?.1))
    }

    fn awaits_advice(&self, key: ServiceKey, dest: DestKey, standing: &Standing) -> bool {
        let config = self.config.services.get(&key);
        config.is_some_and(|config| standing.awaits_advice(config.checks_of(&dest)))
    }

    /// Whether the configuration names a destination as one of a service's.
    #[must_use]
    pub fn is_configured(&self, key: ServiceKey, dest: DestKey) -> bool {
        let config = self.config.services.get(&key);
        config.is_some_and(|c| c.servers.contains_key(&dest) || c.sorry.contains_key(&dest))
    }

    /// What was found of a destination at the start, until there is a verdict on it.
    fn adopted_as(&self, key: ServiceKey, dest: DestKey) -> Option<&DestAttrs> {
        self.adopted.get(&key).and_then(|s| s.get(&dest))
    }

    /// Whether a configured server stands in for another one.
    fn lent(&self, dest: &DestKey) -> bool {
        let members = self.members.values().filter(|m| m.want == Want::Attach);
        members
            .filter(|m| m.spare.addresses.contains(&dest.addr))
            .any(|m| !m.origins.contains(&dest.addr))
    }

    /// Who is to stand in for a configured destination, with its port.
    pub(super) fn stand_ins(&self, dest: &DestKey) -> impl Iterator<Item = DestKey> {
        let members = self.members.values().filter(|m| m.want == Want::Attach);
        members
            .filter(|m| m.origins.contains(&dest.addr))
            .filter_map(|m| in_place_of(&m.spare, *dest))
    }

    /// The services a stand-in belongs to, and as which destination.
    pub(super) fn slots(&self, member: &Member) -> impl Iterator<Item = (ServiceKey, DestKey)> {
        let places = self.places_for(&member.spare, |addr| member.origins.contains(&addr));
        places.map(|(service, dest, _)| (service, dest))
    }

    /// The places of servers at such addresses as a spare takes them: the service, the spare's destination, and the
    /// one whose place it is.
    pub(super) fn places_for(
        &self,
        spare: &Spare,
        is_origin: impl Fn(IpAddr) -> bool + Copy,
    ) -> impl Iterator<Item = (ServiceKey, DestKey, DestKey)> {
        let services = self.config.services.iter();
        services.flat_map(move |(key, config)| {
            let servers = config.servers.keys();
            let origins = servers.filter(move |d| is_origin(d.addr));
            origins.filter_map(|d| Some((*key, in_place_of(spare, *d)?, *d)))
        })
    }

    /// Brings the set of watched destinations up to date; verdicts of those that stay are kept. One
    /// that is not checked counts as up from the start. Says whether the set changed.
    pub(super) fn refresh_targets(
        &mut self,
        arrival: Arrival,
        now: MonoTime,
        fx: &mut Effects,
    ) -> bool {
        let services = self.config.services.iter();
        let wanted: BTreeMap<ServiceKey, BTreeMap<DestKey, Standing>> = services
            .map(|(key, config)| {
                let found = self.adopted.get(key);
                let start = |dest: DestKey| {
                    let was_out = arrival == Arrival::Start
                        && found.is_some_and(|dests| !dests.contains_key(&dest));
                    Standing::new(config.checks_of(&dest), was_out, now)
                };
                let stand_ins = config.servers.keys().flat_map(|d| self.stand_ins(d));
                let named = config.servers.keys().chain(config.sorry.keys());
                let dests = stand_ins.chain(named.copied());
                (*key, dests.map(|d| (d, start(d))).collect())
            })
            .collect();
        if targets(&self.health).eq(targets(&wanted)) {
            return self.refresh_standbys(now);
        }
        let new = targets(&wanted).filter(|(key, dest)| {
            let known = self.health.get(*key);
            is_whole(arrival, known.is_some()) && known.is_none_or(|d| !d.contains_key(*dest))
        });
        let new = new.map(|(key, dest)| (*key, *dest)).collect();
        self.comes_in_whole(new);
        let old = mem::replace(&mut self.health, wanted);
        for (key, dests) in old {
            let Some(stay) = self.health.get_mut(&key) else {
                continue;
            };
            for (dest, standing) in dests {
                if let Some(place) = stay.get_mut(&dest) {
                    *place = standing;
                }
            }
        }
        self.admit_warm(fx);
        self.refresh_standbys(now);
        let mut places: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, dests) in self.checked() {
            let config = self.config.services.get(key);
            let real = |dest: &&DestKey| {
                config.is_some_and(|c| c.checks.any() && !c.sorry.contains_key(*dest))
            };
            for dest in dests.keys().filter(real) {
                places.entry(dest.addr).or_default().push((*key, *dest));
            }
        }
        self.places = places;
        let health = &self.health;
        let watched = |key: &ServiceKey, dest: &DestKey| {
            health.get(key).is_some_and(|d| d.contains_key(dest))
        };
        self.fallen.retain(|(key, dest), _| watched(key, dest));
        true
    }

    /// All destinations that are checked, warm spares left out.
    #[must_use]
    pub fn watched_servers(&self) -> BTreeSet<(ServiceKey, DestKey)> {
        let of = |(key, dests)| iter::repeat(key).zip(BTreeMap::keys(dests));
        let all = self.checked().flat_map(of);
        all.map(|(key, dest)| (*key, *dest)).collect()
    }

    /// Whether somebody waits for the verdict on a server: a stand-in that is to enter, or a warm spare on which
    /// there is none yet.
    #[must_use]
    pub fn is_awaited(&self, slot: &Slot) -> bool {
        if let Some(standby) = self.standbys.standing(slot.service, slot.dest) {
            return standby.verdict().is_unknown();
        }
        !self.is_configured(slot.service, slot.dest)
            && self
                .verdict(slot.service, slot.dest)
                .is_some_and(|h| !h.is_up())
    }

    /// All services that are ours, hidden ones included.
    pub fn services(&self) -> impl Iterator<Item = ServiceKey> {
        let named = self.config.services.keys();
        let leaving = self.leaving.keys();
        let leaving = leaving.filter(|key| !self.config.services.contains_key(key));
        named.chain(leaving).copied().chain(self.ways.services())
    }

    /// The hidden services that this director has ever made.
    #[must_use]
    pub const fn made(&self) -> &BTreeSet<ServiceKey> {
        self.ways.used()
    }

    /// Who is to be checked, and how: what several services ask of one server in the same way is one
    /// entry.
    #[must_use]
    pub fn targets(&self) -> BTreeMap<(SocketAddr, Arc<CheckSpec>), Vec<Slot>> {
        let mut all: BTreeMap<_, Vec<Slot>> = BTreeMap::new();
        let of = |(key, dests)| iter::repeat(key).zip(BTreeMap::keys(dests));
        let members = self.checked().flat_map(of).map(|(key, dest)| (*key, *dest));
        let watched = members.chain(self.standbys.places());
        for (service, dest) in watched.filter(|(key, dest)| !self.is_unasked(*key, *dest)) {
            let Some(config) = self.config.services.get(&service) else {
                continue;
            };
            let checks = &config.checks_of(&dest).all;
            for (check, spec) in checks.iter().enumerate() {
                let target = if spec.via.through {
                    self.through(service, dest, spec)
                } else {
                    let mut at = spec.via.towards(SocketAddr::new(dest.addr, dest.port));
                    // An echo has no port: one for all services on whatever ports.
                    if let CheckKind::Icmp(_) = spec.kind {
                        at.set_port(0);
                    }
                    Some((at, Arc::clone(spec)))
                };
                let Some(target) = target else { continue };
                let slot = Slot {
                    service,
                    dest,
                    check,
                };
                all.entry(target).or_default().push(slot);
            }
        }
        all
    }

    /// The services whose servers are checked, with the verdicts.
    pub(super) fn checked(
        &self,
    ) -> impl Iterator<Item = (&ServiceKey, &BTreeMap<DestKey, Standing>)> {
        self.health.iter().filter(|(key, _)| self.is_checked(key))
    }

    /// The verdict on a server as one of a service's; `None` if it is not watched.
    pub(super) fn verdict(&self, service: ServiceKey, dest: DestKey) -> Option<Health> {
        self.standing(service, dest).map(Standing::verdict)
    }

    /// Where a server stands as one of a service's; `None` if it is not watched.
    #[must_use]
    pub fn standing(&self, service: ServiceKey, dest: DestKey) -> Option<&Standing> {
        self.health.get(&service)?.get(&dest)
    }

    /// Whether a service's servers are checked. That those of another one count as up says nothing
    /// of them.
    pub(super) fn is_checked(&self, key: &ServiceKey) -> bool {
        let config = self.config.services.get(key);
        config.is_some_and(|s| s.checks.any() || s.sorry_checks.any())
    }

    /// Where one server stands, in all services that it is checked for and that no operator took it out of.
    pub(super) fn standings(&self, addr: IpAddr) -> impl Iterator<Item = &Standing> {
        let places = self.places.get(&addr).into_iter().flatten();
        let places = places.filter(|(service, dest)| !self.is_put_aside(*service, *dest));
        places.filter_map(|(service, dest)| self.standing(*service, *dest))
    }
}

/// All that is watched, in order.
fn targets(
    health: &BTreeMap<ServiceKey, BTreeMap<DestKey, Standing>>,
) -> impl Iterator<Item = (&ServiceKey, &DestKey)> {
    let of = |(key, dests)| iter::repeat(key).zip(BTreeMap::keys(dests));
    health.iter().flat_map(of)
}

/// Of unknown health: it keeps the weight that it has, where it has one.
fn adopted(found: Option<&DestAttrs>, attrs: DestAttrs) -> Seat {
    match found {
        Some(found) => {
            let weight = found.weight;
            Seat::has(Rule::Adopted, DestAttrs { weight, ..attrs })
        }
        None => Seat::out(Rule::Awaited),
    }
}

/// Whoever has two seats takes the one in the kernel's table.
fn seated(seats: &mut BTreeMap<DestKey, Seat>, dest: DestKey, seat: Seat) {
    match seats.get(&dest) {
        Some(other) if other.attrs.is_some() && seat.attrs.is_none() => {}
        Some(_) | None => drop(seats.insert(dest, seat)),
    }
}

/// The spare's address nearest to the destination's, with its port.
fn in_place_of(spare: &Spare, dest: DestKey) -> Option<DestKey> {
    let addr = spare.address_for(dest.addr)?;
    Some(DestKey {
        addr,
        port: dest.port,
    })
}
