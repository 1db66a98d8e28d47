//! What operators order of servers: it stands beside their health, and before it. PURE.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Core, Effects, Note};
use crate::model::{DestKey, Order, OrderedPlace, ServiceKey};

impl Core {
    /// Where a server is, in one service or in all, stand-ins included.
    #[must_use]
    pub fn places_of(
        &self,
        addr: IpAddr,
        port: Option<u16>,
        only: Option<ServiceKey>,
    ) -> Vec<OrderedPlace> {
        let services = self.health.iter();
        let services = services.filter(|(key, _)| only.is_none_or(|only| only == **key));
        let fits = |dest: &&DestKey| dest.addr == addr && port.is_none_or(|port| port == dest.port);
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
        self.orders.get(&OrderedPlace { service, server })
    }

    /// Whether an operator has it out of service: for every threshold it is not there, and nobody takes its
    /// place.
    pub(super) fn is_put_aside(&self, service: ServiceKey, server: DestKey) -> bool {
        let order = self.order(service, server);
        order.is_some_and(|order| order.wish.puts_aside())
    }

    pub(super) fn ordered(
        &mut self,
        places: Vec<OrderedPlace>,
        order: Option<&Order>,
        fx: &mut Effects,
    ) {
        for place in places {
            let before = match order {
                Some(order) => self.orders.insert(place, order.clone()),
                None => self.orders.remove(&place),
            };
            if before.as_ref() != order {
                fx.dirty.insert(place.service);
                fx.notes.push(Note::Ordered(place, order.cloned()));
            }
        }
    }
}
