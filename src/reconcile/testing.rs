//! Generated services, and a kernel in memory that makes a plan's steps.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::model::{
    DestAttrs, DestKey, DestState, Family, ForwardMethod, KernelTable, Persistence, Protocol,
    Scheduler, Service, ServiceAttrs, ServiceFlags, ServiceKey, ServiceState, Stats, Step, Table,
    Tunnel, TunnelType, Weight,
};

pub(super) fn key() -> ServiceKey {
    ServiceKey::Addr(Protocol::Tcp, ([192, 0, 2, 1], 80).into())
}

pub(super) fn dest(n: u8) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port: 80,
    }
}

/// Few values of each attribute, so that two tables often agree in some and differ in others.
pub(super) fn attrs() -> impl Strategy<Value = ServiceAttrs> {
    let scheduler = prop::sample::select(vec!["rr", "wlc", "mh"]);
    let flags = prop::sample::select(vec![0, ServiceFlags::SCHED1, ServiceFlags::ONE_PACKET]);
    let engine = prop::option::of(Just("sip".to_owned()));
    let persistence =
        (1u32..3, 31u8..33, engine).prop_map(|(timeout_s, prefix, engine)| Persistence {
            timeout_s,
            prefix,
            engine,
        });
    let persistence = prop::option::of(persistence);
    (scheduler, flags, persistence).prop_map(|(scheduler, flags, persistence)| ServiceAttrs {
        scheduler: Scheduler(scheduler.to_owned()),
        flags: ServiceFlags(flags),
        persistence,
    })
}

pub(super) fn dest_attrs() -> impl Strategy<Value = DestAttrs> {
    let way = prop::sample::select(vec![
        (ForwardMethod::Nat, Tunnel::default()),
        (ForwardMethod::Dr, Tunnel::default()),
        (ForwardMethod::Tun, Tunnel::default()),
        (
            ForwardMethod::Tun,
            Tunnel {
                kind: TunnelType::Gue,
                port: 6080,
                flags: Tunnel::CHECKSUM,
            },
        ),
        (
            ForwardMethod::Tun,
            Tunnel {
                kind: TunnelType::Gre,
                port: 0,
                flags: 0,
            },
        ),
    ]);
    (0i64..4, way, 0u32..2, 0u32..2).prop_map(|(weight, (forward, tunnel), upper, lower)| {
        DestAttrs {
            weight: Weight::try_from(weight).unwrap(),
            forward,
            upper: upper + lower,
            lower,
            tunnel,
        }
    })
}

pub(super) fn service() -> impl Strategy<Value = Service> {
    let dests = prop::collection::btree_map((0u8..5).prop_map(dest), dest_attrs(), 0..5);
    (attrs(), dests).prop_map(|(attrs, dests)| Service { attrs, dests })
}

pub(super) fn table() -> impl Strategy<Value = Table> {
    let addr = |p| (80u16..82).prop_map(move |n| ServiceKey::Addr(p, ([192, 0, 2, 1], n).into()));
    let key = prop_oneof![
        addr(Protocol::Tcp),
        addr(Protocol::Udp),
        (1u32..3).prop_map(|n| ServiceKey::Fwmark(Family::V6, n)),
    ];
    prop::collection::btree_map(key, service(), 0..4)
}

pub(super) fn dest_state(attrs: DestAttrs) -> DestState {
    DestState {
        attrs,
        active_connections: 0,
        inactive_connections: 0,
        persistent_connections: 0,
        counters: None,
    }
}

pub(super) fn state(service: &Service) -> ServiceState {
    let dests = service.dests.iter();
    ServiceState {
        attrs: service.attrs.clone(),
        stats: Stats::default(),
        dests: dests.map(|(k, a)| (*k, dest_state(*a))).collect(),
    }
}

/// The kernel, as far as a plan can tell: refuses what the real one refuses.
pub(super) fn apply(table: &mut KernelTable, step: &Step) {
    let found = table.contains_key(&step.service());
    assert_eq!(found, !matches!(step, Step::NewService(..)), "{step}");
    match step {
        Step::NewService(k, attrs) => {
            let empty = Service {
                attrs: attrs.clone(),
                dests: BTreeMap::new(),
            };
            table.insert(*k, state(&empty));
        }
        Step::SetService(k, attrs) => table.get_mut(k).unwrap().attrs = attrs.clone(),
        Step::DelService(k) => drop(table.remove(k)),
        Step::NewDest(k, d, a) => {
            let old = table.get_mut(k).unwrap().dests.insert(*d, dest_state(*a));
            assert!(old.is_none(), "EEXIST: {step}");
        }
        Step::SetDest(k, d, a) => {
            let dest = table.get_mut(k).unwrap().dests.get_mut(d);
            dest.expect("ENOENT").attrs = *a;
        }
        Step::DelDest(k, d) => {
            let old = table.get_mut(k).unwrap().dests.remove(d);
            assert!(old.is_some(), "ENOENT: {step}");
        }
    }
}
