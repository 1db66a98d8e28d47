//! What is wanted of virtual addresses: each service says what it wants of its own, and whoever wants it
//! there goes before who does not.

use std::collections::BTreeMap;

use super::{Core, Effects};
use crate::{
    config,
    model::{AddressPolicy, Addresses, Presence, ServiceKey, WantedAddress},
};

/// Puts together what services want, each with what it says of its own address.
fn together(
    config: &config::Director,
    leaving: impl Iterator<Item = ServiceKey>,
    of: impl Fn(ServiceKey) -> Presence,
) -> Addresses {
    let mut all = Addresses {
        proto: config.address_proto,
        ..Addresses::default()
    };
    for (key, service) in &config.services {
        let ServiceKey::Addr(_, at) = key else {
            continue;
        };
        let Some(managed) = &service.address else {
            all.unmanaged.insert(at.ip());
            continue;
        };
        let presence = of(*key);
        let wanted = all.wanted.entry(at.ip()).or_insert_with(|| WantedAddress {
            place: managed.place.clone(),
            presence,
            shutdown: managed.shutdown,
        });
        wanted.presence = wanted.presence.max(presence);
        if managed.shutdown == AddressPolicy::Keep {
            wanted.shutdown = AddressPolicy::Keep;
        }
    }
    let left = leaving.filter(|key| !config.services.contains_key(key));
    all.unmanaged.extend(left.filter_map(|key| match key {
        ServiceKey::Addr(_, at) => Some(at.ip()),
        ServiceKey::Fwmark(..) => None,
    }));
    // Who does not manage it wants it there all the same.
    for (addr, wanted) in &mut all.wanted {
        if all.unmanaged.contains(addr) {
            wanted.presence = Presence::On;
            wanted.shutdown = AddressPolicy::Keep;
        }
    }
    all
}

impl Core {
    /// What is wanted of the virtual addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        let known = |key| self.presences.get(&key).copied();
        let of = |key| known(key).unwrap_or(Presence::AsFound);
        // Connections of a service that leaves end there.
        let leaving = self.leaving.keys().copied();
        together(&self.config, leaving, of)
    }

    /// Whether a service that manages its address wants it there; none for another.
    fn presence(&self, key: ServiceKey) -> Option<Presence> {
        let config = self.config.services.get(&key)?;
        let managed = config.address.as_ref()?;
        if managed.quorum_lost == AddressPolicy::Keep {
            return Some(Presence::On);
        }
        if !self.quorum(key).is_held() {
            let serves = self.sorry_servers(key, config).next().is_some();
            return Some(if serves { Presence::On } else { Presence::Off });
        }
        // Held is also what nobody has asked yet: an address that another director may have by now
        // does not come for that.
        let (live, _) = self.weights(key, config);
        let enough = u64::from(
            config
                .quorum
                .quorum
                .saturating_sub(config.quorum.hysteresis),
        );
        Some(match live > 0 && live >= enough {
            true => Presence::On,
            false => Presence::AsFound,
        })
    }

    /// Judges anew what a service wants of its address.
    pub(super) fn review_address(&mut self, key: ServiceKey, fx: &mut Effects) {
        let Some(presence) = self.presence(key) else {
            // Perhaps it has left, and was the last that held its address.
            fx.addresses |= !self.config.services.contains_key(&key);
            fx.addresses |= self.presences.remove(&key).is_some();
            return;
        };
        fx.addresses |= self.presences.insert(key, presence) != Some(presence);
    }

    /// What all services want of their addresses.
    pub(super) fn presences(&self) -> BTreeMap<ServiceKey, Presence> {
        let keys = self.config.services.keys();
        keys.filter_map(|key| Some((*key, self.presence(*key)?)))
            .collect()
    }
}
