//! Who is on the way out: a destination that the configuration, or the provisioner, no longer wants
//! keeps its connections at weight 0 until they are gone, or its time is over. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Core, Effects, Note, RememberedLeaving};
use crate::{
    model::{
        DestAttrs, DestKey, DriftPolicy, MonoTime, OrderedPlace, Service, ServiceAttrs, ServiceKey,
        Weight,
        wire::{Member, Members, Spare, Want},
    },
    reconcile::plan,
};

/// A connection that is being made counts as inactive until it stands (`tcp_state_active_table`,
/// net/netfilter/ipvs/ip_vs_proto_tcp.c): who has none for so long has none. A lost SYN is sent again after 1 s.
pub const HANDSHAKE: Duration = Duration::from_secs(3);

/// A destination on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    /// As it was last wanted.
    pub(super) attrs: DestAttrs,
    /// It leaves then, whatever connections it has.
    pub(super) until: MonoTime,
}

impl Leaving {
    pub(super) const fn drained(&self) -> DestAttrs {
        DestAttrs {
            weight: Weight::QUIESCED,
            ..self.attrs
        }
    }
}

/// A service with somebody on the way out. Where the configuration no longer names it, it leaves with
/// the last of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeavingService {
    pub(super) attrs: ServiceAttrs,
    pub(super) drift: DriftPolicy,
    pub(super) dests: BTreeMap<DestKey, Leaving>,
}

impl LeavingService {
    /// With their weight 0.
    pub(super) fn drained(&self) -> impl Iterator<Item = (DestKey, DestAttrs)> {
        self.dests
            .iter()
            .map(|(dest, leaving)| (*dest, leaving.drained()))
    }
}

/// How many connections destinations of weight 0 still have; none where the kernel has no such
/// destination.
pub type Connections = BTreeMap<OrderedPlace, Option<u64>>;

impl Core {
    /// Whose connections are to be counted: all that leave when they have none.
    #[must_use]
    pub fn draining(&self) -> BTreeSet<OrderedPlace> {
        let leaving = self.on_the_way().map(|(place, _)| place);
        let ordered = self.orders.iter().filter(|(_, o)| o.is_draining());
        leaving.chain(ordered.map(|(place, _)| *place)).collect()
    }

    fn on_the_way(&self) -> impl Iterator<Item = (OrderedPlace, &Leaving)> {
        self.leaving.iter().flat_map(|(service, part)| {
            part.dests.iter().map(|(server, leaving)| {
                let place = OrderedPlace {
                    service: *service,
                    server: *server,
                };
                (place, leaving)
            })
        })
    }

    /// Those that have had no connection for long enough are gone.
    pub(super) fn counted(&mut self, counts: &Connections, now: MonoTime, fx: &mut Effects) {
        let draining = self.draining();
        let known = |place: &OrderedPlace| counts.get(place).copied().flatten();
        self.idle
            .retain(|place, _| draining.contains(place) && known(place).is_none_or(|n| n == 0));
        self.connections = draining
            .iter()
            .filter_map(|place| Some((*place, known(place)?)))
            .collect();
        for (place, count) in counts {
            let gone = match count {
                None => true,
                Some(0) => {
                    let since = self.idle.entry(*place).or_insert(now);
                    now.since(*since) >= HANDSHAKE
                }
                Some(_) => false,
            };
            if gone {
                self.left(*place, 0, fx);
                self.drained(*place, 0, fx);
            }
        }
    }

    /// Those whose time is over leave with what they have.
    pub(super) fn review_leaving(&mut self, now: MonoTime, fx: &mut Effects) {
        for place in self.draining() {
            let due = self.drain_ends(place);
            if due.is_some_and(|due| due <= now) {
                let cut = self.connections.get(&place).copied().unwrap_or_default();
                self.left(place, cut, fx);
                self.drained(place, cut, fx);
            }
        }
        self.forget_returned();
    }

    /// When a destination leaves whatever connections it has.
    pub(super) fn drain_ends(&self, place: OrderedPlace) -> Option<MonoTime> {
        let leaving = self.leaving.get(&place.service);
        let leaving = leaving.and_then(|part| part.dests.get(&place.server));
        let ordered = self.orders.get(&place).filter(|o| o.is_draining());
        let ordered = ordered.and_then(|o| o.drained_by);
        leaving.map(|l| l.until).into_iter().chain(ordered).min()
    }

    /// Connections of a destination that is being drained, as last counted.
    #[must_use]
    pub fn connections_left(&self, place: OrderedPlace) -> Option<u64> {
        self.connections.get(&place).copied()
    }

    /// A destination is sent on its way out.
    pub(super) fn let_go(
        &mut self,
        key: ServiceKey,
        (attrs, drift): (&ServiceAttrs, DriftPolicy),
        (dest, dest_attrs): (DestKey, DestAttrs),
        until: MonoTime,
    ) {
        let known = self.leaving.get(&key);
        if known.is_none_or(|part| !part.dests.contains_key(&dest)) {
            let (service, server) = (key, dest);
            self.forget_counts(OrderedPlace { service, server });
        }
        let part = self.leaving.entry(key).or_insert_with(|| LeavingService {
            attrs: attrs.clone(),
            drift,
            dests: BTreeMap::new(),
        });
        part.attrs.clone_from(attrs);
        let attrs = dest_attrs;
        part.dests.entry(dest).or_insert(Leaving { attrs, until });
    }

    /// What was counted in an earlier drain says nothing of the next.
    pub(super) fn forget_counts(&mut self, place: OrderedPlace) {
        self.idle.remove(&place);
        self.connections.remove(&place);
    }

    /// Until when whoever is let go now may have connections.
    pub(super) fn drain_limit(&self, now: MonoTime) -> MonoTime {
        now.after(self.config.drain_timeout)
    }

    /// Whether connections are left to a stand-in.
    pub(super) fn is_leaving(&self, spare: &Spare) -> bool {
        let mut leaving = self.on_the_way();
        leaving.any(|(place, _)| spare.addresses.contains(&place.server.addr))
    }

    /// What is wanted of services in which somebody serves whom the provisioner withdraws.
    pub(super) fn wants_of_those_withdrawn(&self, list: &Members) -> Vec<(ServiceKey, plan::Want)> {
        let withdrawn = |m: &&Member| {
            let before = self.members.get(&m.replacement).map(|before| before.want);
            m.want == Want::Withdraw && before == Some(Want::Attach)
        };
        let withdrawn = list.members.iter().filter(withdrawn);
        let services = withdrawn.flat_map(|m| self.slots(m).map(|(service, _)| service));
        let services: BTreeSet<ServiceKey> = services.collect();
        let services = services.into_iter();
        services
            .filter_map(|key| Some((key, self.desired(key)?)))
            .collect()
    }

    /// For the state file.
    pub(super) fn remembered_leaving(&self) -> Vec<RememberedLeaving> {
        let remembered = |(place, leaving): (OrderedPlace, &Leaving)| RememberedLeaving {
            place,
            until: leaving.until,
            weight: Some(leaving.attrs.weight),
        };
        self.on_the_way().map(remembered).collect()
    }

    /// After a restart: those who were on the way out and are there still, and all of services that the
    /// configuration no longer names.
    pub(super) fn remember_leaving(
        &mut self,
        remembered: &[RememberedLeaving],
        dropped: &BTreeMap<ServiceKey, Service>,
        now: MonoTime,
    ) {
        // The kernel has weight 0 of all of them.
        let weighed = |attrs: DestAttrs, r: Option<&RememberedLeaving>| DestAttrs {
            weight: r.and_then(|r| r.weight).unwrap_or(attrs.weight),
            ..attrs
        };
        let mut all = Vec::new();
        for (key, service) in dropped {
            for (dest, attrs) in &service.dests {
                let place = OrderedPlace {
                    service: *key,
                    server: *dest,
                };
                let of = (service.attrs.clone(), DriftPolicy::default());
                let before = remembered.iter().find(|r| r.place == place);
                let until = before.map_or_else(|| self.drain_limit(now), |r| r.until);
                all.push((*key, of, (*dest, weighed(*attrs, before)), until));
            }
        }
        for r in remembered {
            let OrderedPlace { service, server } = r.place;
            let config = self.config.services.get(&service);
            let found = self.adopted.get(&service).and_then(|d| d.get(&server));
            if let (Some(config), Some(attrs)) = (config, found) {
                let of = (config.attrs.clone(), config.drift);
                all.push((service, of, (server, weighed(*attrs, Some(r))), r.until));
            }
        }
        for (key, (attrs, drift), dest, until) in all {
            self.let_go(key, (&attrs, drift), dest, until);
        }
    }

    fn left(&mut self, place: OrderedPlace, cut: u64, fx: &mut Effects) {
        if self.gone(place) {
            fx.dirty.insert(place.service);
            fx.notes.push(Note::Left(place, cut));
        }
    }

    /// Who serves again is no longer on the way out.
    fn forget_returned(&mut self) {
        let places = self.on_the_way().map(|(place, _)| place);
        let returned = places.filter(|place| self.serves(place.service, place.server));
        let returned: Vec<OrderedPlace> = returned.collect();
        for place in returned {
            self.gone(place);
        }
    }

    /// No longer on the way out. Says whether it was.
    fn gone(&mut self, place: OrderedPlace) -> bool {
        let Some(part) = self.leaving.get_mut(&place.service) else {
            return false;
        };
        let was = part.dests.remove(&place.server).is_some();
        if part.dests.is_empty() {
            self.leaving.remove(&place.service);
        }
        was
    }
}
