//! What operators order of servers: it stands beside their health, and before it. PURE.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::{Core, Effects, Note};
use crate::{
    health::Standing,
    model::{DestKey, MonoTime, Order, OrderedPlace, ServiceKey, WallMillis, Wish},
};

/// An order that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ordered {
    /// It.
    pub(super) order: Order,
    /// When it ends by itself.
    pub(super) ends: Option<MonoTime>,
    /// When a server that is drained leaves, whatever connections it has.
    pub(super) drained_by: Option<MonoTime>,
}

impl Ordered {
    /// Wall time is for people, and over a boot: what is left of it is counted by the clock that nobody sets.
    pub(super) fn new(order: Order, wall: WallMillis, now: MonoTime) -> Self {
        let due = |at: WallMillis| {
            let left = u64::try_from(at.0.saturating_sub(wall.0)).unwrap_or(0);
            now.after(Duration::from_millis(left))
        };
        Self {
            ends: order.ends.map(due),
            drained_by: order.drain_ends.map(due),
            order,
        }
    }

    /// Whether a server is on its way out.
    pub(super) const fn is_draining(&self) -> bool {
        self.order.wish.drains() && !self.order.drained
    }

    /// Whether nobody asks how the server is.
    const fn is_unasked(&self) -> bool {
        matches!(self.order.wish, Wish::Maintenance) && self.order.drained
    }
}

impl Core {
    /// Where a server is, in one service or in all, stand-ins included; without an address, all servers of
    /// the service.
    #[must_use]
    pub fn places_of(
        &self,
        server: Option<(IpAddr, Option<u16>)>,
        only: Option<ServiceKey>,
    ) -> Vec<OrderedPlace> {
        let services = self.health.iter();
        let services = services.filter(|(key, _)| only.is_none_or(|only| only == **key));
        let fits = |dest: &&DestKey| {
            server.is_none_or(|(addr, port)| {
                dest.addr == addr && port.is_none_or(|port| port == dest.port)
            })
        };
        let places = services.flat_map(|(service, dests)| {
            let dests = dests.keys().filter(fits);
            dests.map(|server| OrderedPlace {
                service: *service,
                server: *server,
            })
        });
        // And those that are no longer there: what was ordered of them can be taken back.
        let ordered = self
            .orders
            .keys()
            .filter(|place| fits(&&place.server) && only.is_none_or(|only| only == place.service));
        let all: BTreeSet<_> = places.chain(ordered.copied()).collect();
        all.into_iter().collect()
    }

    /// Whether a place is one that the configuration or a stand-in makes.
    pub(super) fn is_named(&self, place: OrderedPlace) -> bool {
        let stand_in = |m| {
            self.slots(m)
                .any(|slot| slot == (place.service, place.server))
        };
        self.is_configured(place.service, place.server) || self.members.values().any(stand_in)
    }

    /// What an operator ordered of a destination.
    pub(super) fn order(&self, service: ServiceKey, server: DestKey) -> Option<&Order> {
        let ordered = self.orders.get(&OrderedPlace { service, server });
        ordered.map(|ordered| &ordered.order)
    }

    /// Whether an operator has it out of service: for every threshold it is not there, and nobody takes its
    /// place.
    pub(super) fn is_put_aside(&self, service: ServiceKey, server: DestKey) -> bool {
        let order = self.order(service, server);
        order.is_some_and(|order| order.wish.puts_aside())
    }

    /// Whether nobody asks how a destination is.
    pub(super) fn is_unasked(&self, service: ServiceKey, server: DestKey) -> bool {
        let ordered = self.orders.get(&OrderedPlace { service, server });
        ordered.is_some_and(Ordered::is_unasked)
    }

    pub(super) fn ordered(
        &mut self,
        places: Vec<OrderedPlace>,
        order: Option<&Order>,
        wall: WallMillis,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        for place in places {
            self.forget_counts(place);
            let before = match order {
                Some(order) => {
                    let ordered = Ordered::new(order.clone(), wall, now);
                    self.orders.insert(place, ordered)
                }
                None => self.orders.remove(&place),
            };
            if before.as_ref().map(|before| &before.order) != order {
                fx.notes.push(Note::Ordered(place, order.cloned()));
            }
            if before.is_some() || order.is_some() {
                self.order_moved(place, before.as_ref(), now, fx);
            }
        }
    }

    /// Orders whose time is over.
    pub(super) fn review_orders(&mut self, now: MonoTime, fx: &mut Effects) {
        let over = |o: &Ordered| o.ends.is_some_and(|ends| ends <= now);
        let over = self.orders.iter().filter(|(_, ordered)| over(ordered));
        let over: Vec<OrderedPlace> = over.map(|(place, _)| *place).collect();
        for place in over {
            if let Some(before) = self.orders.remove(&place) {
                self.order_moved(place, Some(&before), now, fx);
                fx.notes.push(Note::OrderEnded(place, before.order));
            }
        }
    }

    /// A server that is drained by order has no connection any more, or no time.
    pub(super) fn drained(&mut self, place: OrderedPlace, cut: u64, fx: &mut Effects) {
        let Some(ordered) = self.orders.get_mut(&place).filter(|o| o.is_draining()) else {
            return;
        };
        ordered.order.drained = true;
        fx.targets |= ordered.is_unasked();
        fx.dirty.insert(place.service);
        fx.notes.push(Note::Drained(place, cut));
    }

    fn order_moved(
        &mut self,
        place: OrderedPlace,
        before: Option<&Ordered>,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        let OrderedPlace { service, server } = place;
        fx.dirty.insert(service);
        if before.is_none_or(|before| !before.is_unasked()) || self.is_unasked(service, server) {
            return;
        }
        fx.targets = true;
        // Nobody asked meanwhile: what was found before says nothing any more.
        self.fallen.remove(&(service, server));
        let config = self.config.services.get(&service);
        let standing = self.health.get_mut(&service);
        let standing = standing.and_then(|dests| dests.get_mut(&server));
        if let (Some(config), Some(standing)) = (config, standing) {
            *standing = Standing::new(config.checks_of(&server), true, now);
        }
    }
}
