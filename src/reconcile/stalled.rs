//! What the kernel's own counters say of a server: connections are given to it and none of them
//! comes to stand, while those of its siblings do. PURE. A hint and no verdict: it brings a check
//! forward.
//!
//! A TCP connection is inactive from the client's SYN to its answer to the server's SYN (`tcp_states`
//! in net/netfilter/ipvs/ip_vs_proto_tcp.c), and again when it is closed. A dead server's stay
//! there.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{DestKey, KernelTable, Protocol, ServiceKey};

/// Fewer connections that wait are no sign.
const FEW: u32 = 5;

/// Destinations without an active connection, with how many inactive ones, at the last reading.
#[derive(Debug, Default)]
pub(super) struct Stalled(BTreeMap<(ServiceKey, DestKey), u32>);

impl Stalled {
    /// Takes a reading of the whole table, and returns the destinations that stood still since the
    /// last one.
    pub(super) fn look(&mut self, table: &KernelTable) -> BTreeSet<DestKey> {
        let mut now = BTreeMap::new();
        let mut stalled = BTreeSet::new();
        for (key, service) in table {
            if let ServiceKey::Addr(Protocol::Udp | Protocol::Sctp, _) = key {
                continue;
            }
            if !service.dests.values().any(|d| d.active_connections > 0) {
                continue;
            }
            for (dest, state) in &service.dests {
                let waiting = state.inactive_connections;
                if state.active_connections > 0 || waiting < FEW {
                    continue;
                }
                let before = self.0.get(&(*key, *dest));
                if before.is_some_and(|before| waiting > *before) {
                    stalled.insert(*dest);
                }
                now.insert((*key, *dest), waiting);
            }
        }
        self.0 = now;
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        DestAttrs, DestState, ForwardMethod, Scheduler, ServiceAttrs, ServiceFlags, ServiceState,
        Tunnel, Weight,
    };

    fn dest(n: u8) -> DestKey {
        DestKey {
            addr: [10, 0, 0, n].into(),
            port: 80,
        }
    }

    /// Active and inactive connections of each destination.
    fn table(service: &str, dests: &[(u32, u32)]) -> KernelTable {
        let state = |(active, inactive): &(u32, u32)| DestState {
            attrs: DestAttrs {
                weight: Weight::ONE,
                forward: ForwardMethod::Dr,
                upper: 0,
                lower: 0,
                tunnel: Tunnel::default(),
            },
            active_connections: *active,
            inactive_connections: *inactive,
            persistent_connections: 0,
            counters: None,
        };
        let service_state = ServiceState {
            attrs: ServiceAttrs {
                scheduler: Scheduler("rr".into()),
                flags: ServiceFlags(0),
                persistence: None,
            },
            dests: (1..).map(dest).zip(dests.iter().map(state)).collect(),
            stats: crate::model::Stats::default(),
        };
        [(service.parse().unwrap(), service_state)].into()
    }

    /// What the second of two readings says.
    fn found(service: &str, before: &[(u32, u32)], now: &[(u32, u32)]) -> Vec<DestKey> {
        let mut stalled = Stalled::default();
        assert!(stalled.look(&table(service, before)).is_empty());
        stalled.look(&table(service, now)).into_iter().collect()
    }

    #[test]
    fn one_whose_connections_do_not_come_to_stand_is_found() {
        let tcp = "tcp/192.0.2.1:80";
        assert_eq!(found(tcp, &[(9, 3), (0, 5)], &[(9, 4), (0, 8)]), [dest(2)]);
        assert_eq!(
            found("fwmark/7", &[(9, 3), (0, 5)], &[(9, 4), (0, 8)]),
            [dest(2)]
        );
        // Few, not more than before, active ones, nobody else's are active either, not TCP.
        assert_eq!(found(tcp, &[(9, 3), (0, 3)], &[(9, 3), (0, 4)]), []);
        assert_eq!(found(tcp, &[(9, 3), (0, 8)], &[(9, 3), (0, 8)]), []);
        assert_eq!(found(tcp, &[(9, 3), (0, 5)], &[(9, 3), (1, 8)]), []);
        assert_eq!(found(tcp, &[(0, 3), (0, 5)], &[(0, 3), (0, 8)]), []);
        assert_eq!(
            found("udp/192.0.2.1:53", &[(9, 3), (0, 5)], &[(9, 4), (0, 8)]),
            []
        );
    }
}
