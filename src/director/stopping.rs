//! What a director that is told to end does with its services. PURE.
//!
//! A crash does nothing of this: it leaves the table as it is, and so does [`OnStop::Leave`].

use super::{Core, Effects};
use crate::{
    model::{DestState, KernelTable, OnStop, Protocol, ServiceKey, StopPolicy, Weight},
    reconcile::plan::{Desired, Want},
};

/// How far a director that ends has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    /// Nobody gets new connections.
    Draining,
    /// Its services leave, hidden ones too.
    Clearing,
}

impl Core {
    /// What is to be done when the director is told to end.
    #[must_use]
    pub fn stop_policy(&self) -> StopPolicy {
        self.config.stop
    }

    /// One step further towards the end.
    pub(super) fn stop(&mut self, fx: &mut Effects) {
        let next = match (self.stopping, self.config.stop.on_stop) {
            (None, OnStop::Leave) => return,
            (None, OnStop::Drain) => Stopping::Draining,
            // What was begun is ended, whatever a reload says meanwhile.
            (None, OnStop::Clear) | (Some(_), _) => Stopping::Clearing,
        };
        fx.dirty.extend(self.services());
        self.stopping = Some(next);
    }

    /// A service's part of what is wanted, as far as the director that ends wants it.
    pub(super) fn while_stopping(&self, key: ServiceKey, mut want: Want) -> Option<Want> {
        match self.stopping {
            // Checks through virtual addresses go on: who fails meanwhile is taken out.
            None => Some(want),
            Some(Stopping::Draining) if !self.config.services.contains_key(&key) => Some(want),
            Some(Stopping::Draining) => {
                for attrs in want.service.dests.values_mut() {
                    attrs.weight = Weight::QUIESCED;
                }
                Some(want)
            }
            Some(Stopping::Clearing) => None,
        }
    }
}

/// How many connections the servers still have that are wanted at weight 0; `None` while the kernel gives
/// one of them new ones.
#[must_use]
pub fn connections_left(wanted: &Desired, found: &KernelTable) -> Option<u64> {
    let mut left = 0;
    for (key, want) in &wanted.services {
        let Some(service) = found.get(key) else {
            continue;
        };
        for (dest, state) in &service.dests {
            let ours = want.service.dests.get(dest);
            if ours.is_none_or(|attrs| attrs.weight != Weight::QUIESCED) {
                continue;
            }
            if state.attrs.weight != Weight::QUIESCED {
                return None;
            }
            left += connections(*key, state);
        }
    }
    Some(left)
}

/// Connections that are worth waiting for. Those of UDP never count as active (`ip_vs_bind_dest`,
/// net/netfilter/ipvs/ip_vs_conn.c); of a firewall mark nobody knows which they are. Of TCP the inactive ones have
/// been closed.
#[must_use]
pub fn connections(service: ServiceKey, state: &DestState) -> u64 {
    let active = u64::from(state.active_connections);
    match service {
        ServiceKey::Addr(Protocol::Tcp | Protocol::Sctp, _) => active,
        ServiceKey::Addr(Protocol::Udp, _) | ServiceKey::Fwmark(..) => {
            active + u64::from(state.inactive_connections)
        }
    }
}
