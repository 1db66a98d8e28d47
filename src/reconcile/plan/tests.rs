use proptest::prelude::*;

use super::*;
use crate::model::{
    DestState, ForwardMethod, Protocol, Scheduler, ServiceAttrs, ServiceFlags, Stats, Tunnel,
    Weight,
};

fn key() -> ServiceKey {
    ServiceKey::Addr(Protocol::Tcp, ([192, 0, 2, 1], 80).into())
}

fn state(service: &Service) -> ServiceState {
    let dest = |a: &DestAttrs| DestState {
        attrs: *a,
        active_connections: 0,
        inactive_connections: 0,
        persistent_connections: 0,
        stats: Stats::default(),
    };
    ServiceState {
        attrs: service.attrs.clone(),
        stats: Stats::default(),
        dests: service.dests.iter().map(|(k, a)| (*k, dest(a))).collect(),
    }
}

/// The kernel, as far as a plan can tell: refuses what the real one refuses.
fn apply(table: &mut Option<ServiceState>, step: &Step) {
    match step {
        Step::NewService(_, attrs) => {
            let empty = Service {
                attrs: attrs.clone(),
                dests: BTreeMap::new(),
            };
            assert!(table.replace(state(&empty)).is_none(), "EEXIST");
        }
        Step::SetService(_, attrs) => table.as_mut().expect("ESRCH").attrs = attrs.clone(),
        Step::DelService(_) => drop(table.take().expect("ESRCH")),
        Step::NewDest(_, d, a) => {
            let one = Service {
                attrs: attrs("rr"),
                dests: [(*d, *a)].into(),
            };
            let dest = state(&one).dests[d];
            assert!(
                table
                    .as_mut()
                    .expect("ESRCH")
                    .dests
                    .insert(*d, dest)
                    .is_none(),
                "EEXIST"
            );
        }
        Step::SetDest(_, d, a) => {
            table
                .as_mut()
                .expect("ESRCH")
                .dests
                .get_mut(d)
                .expect("ENOENT")
                .attrs = *a;
        }
        Step::DelDest(_, d) => {
            table
                .as_mut()
                .expect("ESRCH")
                .dests
                .remove(d)
                .expect("ENOENT");
        }
    }
}

fn attrs(scheduler: &str) -> ServiceAttrs {
    let scheduler = Scheduler(scheduler.to_owned());
    ServiceAttrs {
        scheduler,
        flags: ServiceFlags::default(),
        persistence: None,
    }
}

fn dest(n: u8) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port: 80,
    }
}

fn service() -> impl Strategy<Value = Service> {
    let attrs_of = |w: i64| DestAttrs {
        weight: Weight::try_from(w).unwrap(),
        forward: ForwardMethod::Dr,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    };
    let dests =
        prop::collection::btree_map((0u8..5).prop_map(dest), (0i64..4).prop_map(attrs_of), 0..5);
    (prop::sample::select(vec!["rr", "wlc"]), dests).prop_map(|(s, dests)| Service {
        attrs: attrs(s),
        dests,
    })
}

fn want() -> impl Strategy<Value = Want> {
    (
        service(),
        prop::collection::btree_set((0u8..5).prop_map(dest), 0..3),
    )
        .prop_map(|(service, out)| {
            let out = out
                .into_iter()
                .filter(|d| !service.dests.contains_key(d))
                .collect();
            Want { service, out }
        })
}

/// Weight that takes new connections and whose server has not failed.
fn live(table: Option<&ServiceState>, out: &BTreeSet<DestKey>) -> u64 {
    let dests = table.into_iter().flat_map(|t| &t.dests);
    dests
        .filter(|(k, _)| !out.contains(k))
        .map(|(_, d)| u64::from(d.attrs.weight.get()))
        .sum()
}

proptest! {
    #[test]
    fn the_plan_leads_from_what_is_there_to_what_is_wanted(want in want(), actual in prop::option::of(service())) {
        let mut kernel = actual.as_ref().map(state);
        let p = plan(key(), Some(&want), kernel.as_ref());
        p.take_out.iter().chain(&p.rest).for_each(|s| apply(&mut kernel, s));
        prop_assert_eq!(kernel.as_ref(), Some(&state(&want.service)));
        prop_assert!(plan(key(), Some(&want), kernel.as_ref()).is_empty());
    }

    #[test]
    fn live_weight_never_dips_on_the_way(want in want(), actual in service()) {
        let mut kernel = Some(state(&actual));
        let before = live(kernel.as_ref(), &want.out);
        let after = live(Some(&state(&want.service)), &want.out);
        let p = plan(key(), Some(&want), kernel.as_ref());
        for step in p.take_out.iter().chain(&p.rest) {
            apply(&mut kernel, step);
            prop_assert!(live(kernel.as_ref(), &want.out) >= before.min(after), "dipped at {}", step);
        }
    }

    #[test]
    fn a_failed_server_is_taken_out_before_anything_else(want in want(), actual in service()) {
        let p = plan(key(), Some(&want), Some(&state(&actual)));
        for d in want.out.iter().filter(|d| actual.dests.contains_key(d)) {
            prop_assert!(p.take_out.contains(&Step::DelDest(key(), *d)));
        }
        prop_assert!(p.take_out.iter().all(|s| matches!(s, Step::DelDest(_, d) if want.out.contains(d))));
    }

    #[test]
    fn weights_change_in_place(want in want(), actual in service()) {
        let p = plan(key(), Some(&want), Some(&state(&actual)));
        for step in p.take_out.iter().chain(&p.rest) {
            if let Step::DelDest(_, d) = step {
                prop_assert!(!want.service.dests.contains_key(d), "{} is wanted and deleted", d);
            }
        }
    }
}
