use proptest::prelude::*;

use super::{
    super::testing::{apply, attrs, dest, dest_attrs, key, service, state, table},
    *,
};
use crate::model::KernelTable;

fn want() -> impl Strategy<Value = Want> {
    let out = prop::collection::btree_set((0u8..5).prop_map(dest), 0..3);
    (service(), out).prop_map(|(service, out)| {
        let out = out
            .into_iter()
            .filter(|d| !service.dests.contains_key(d))
            .collect();
        Want {
            service,
            out,
            drift: DriftPolicy::Repair,
        }
    })
}

fn plan_of(want: &Want, kernel: &KernelTable) -> Plan {
    plan(key(), Some(&want.service), &want.out, kernel.get(&key()))
}

fn kernel_with(service: Option<&Service>) -> KernelTable {
    service.map(|s| (key(), state(s))).into_iter().collect()
}

/// Weight that takes new connections and whose server has not failed.
fn live(table: &KernelTable, out: &BTreeSet<DestKey>) -> u64 {
    let dests = table.values().flat_map(|t| &t.dests);
    dests
        .filter(|(k, _)| !out.contains(k))
        .map(|(_, d)| u64::from(d.attrs.weight.get()))
        .sum()
}

fn whole(table: &Table) -> KernelTable {
    table.iter().map(|(k, s)| (*k, state(s))).collect()
}

proptest! {
    #[test]
    fn the_plan_leads_from_what_is_there_to_what_is_wanted(want in want(), actual in prop::option::of(service())) {
        let mut kernel = kernel_with(actual.as_ref());
        plan_of(&want, &kernel).steps().for_each(|s| apply(&mut kernel, s));
        prop_assert_eq!(kernel.get(&key()), Some(&state(&want.service)));
        prop_assert!(plan_of(&want, &kernel).is_empty());
        prop_assert!(want.is_met_by(kernel.get(&key())));
    }

    #[test]
    fn a_service_is_met_when_there_is_nothing_to_do(want in want(), actual in prop::option::of(service())) {
        let kernel = kernel_with(actual.as_ref());
        prop_assert_eq!(want.is_met_by(kernel.get(&key())), plan_of(&want, &kernel).is_empty());
    }

    #[test]
    fn live_weight_never_dips_on_the_way(want in want(), actual in service()) {
        let mut kernel = kernel_with(Some(&actual));
        let before = live(&kernel, &want.out);
        let after = live(&kernel_with(Some(&want.service)), &want.out);
        for step in plan_of(&want, &kernel.clone()).steps() {
            apply(&mut kernel, step);
            prop_assert!(live(&kernel, &want.out) >= before.min(after), "dipped at {}", step);
        }
    }

    #[test]
    fn who_is_new_comes_after_the_others_have_grown(want in want(), actual in service()) {
        let kernel = kernel_with(Some(&actual));
        let serves = |dest| actual.dests.get(dest).is_some_and(|a| a.weight != Weight::QUIESCED);
        let plan = plan_of(&want, &kernel);
        let order = plan.grow.iter().map(|step| match step {
            Step::SetDest(_, dest, _) | Step::NewDest(_, dest, _) => serves(dest),
            _ => false,
        });
        prop_assert!(order.is_sorted_by(|a, b| a >= b), "{:?}", plan.grow);
    }

    /// A server that ramped has less than its part until the others have lost the factor too.
    #[test]
    fn where_a_factor_goes_nobody_who_ramped_has_more_than_its_part(
        weights in prop::collection::vec(1u32..50, 2..5), factor in 2u32..20, percent in 1u32..100,
        attrs in attrs(), dest_attrs in dest_attrs(),
    ) {
        let at = |n: usize| dest(u8::try_from(n).unwrap());
        let service = |weight: &dyn Fn(usize, u32) -> u32| {
            let one = |(n, w): (usize, &u32)| {
                let weight = Weight::try_from(i64::from(weight(n, *w))).unwrap();
                (at(n), DestAttrs { weight, ..dest_attrs })
            };
            Service { attrs: attrs.clone(), dests: weights.iter().enumerate().map(one).collect() }
        };
        // The last one in the order of the keys ramped, so that the order of the keys would be wrong.
        let last = weights.len() - 1;
        let ramped = service(&|n, w| {
            let whole = w * factor;
            if n == last { (whole * percent / 100).max(1) } else { whole }
        });
        let whole = service(&|_, w| w);
        let mut kernel = kernel_with(Some(&ramped));
        let plan = plan(key(), Some(&whole), &BTreeSet::new(), kernel.get(&key()));
        for step in plan.steps() {
            apply(&mut kernel, step);
            let dests = &kernel[&key()].dests;
            let has = |n: usize| dests[&at(n)].attrs.weight.get();
            // Beside each of the others it never has more than what is configured.
            for n in 0..last {
                prop_assert!(
                    u64::from(has(last)) * u64::from(weights[n]) <= u64::from(weights[last]) * u64::from(has(n)),
                    "{:?}", step
                );
            }
        }
    }

    #[test]
    fn a_failed_server_is_taken_out_before_anything_else(want in want(), actual in service()) {
        let p = plan_of(&want, &kernel_with(Some(&actual)));
        let out = want.out.iter().filter(|d| actual.dests.contains_key(d));
        let out: Vec<_> = out.map(|d| Step::DelDest(key(), *d)).collect();
        prop_assert_eq!(&p.take_out, &out);
        prop_assert!(p.steps().take(out.len()).eq(&out));
    }

    #[test]
    fn weights_change_in_place(want in want(), actual in service()) {
        for step in plan_of(&want, &kernel_with(Some(&actual))).steps() {
            if let Step::DelDest(_, d) = step {
                prop_assert!(!want.service.dests.contains_key(d), "{} is wanted and deleted", d);
            }
        }
    }

    #[test]
    fn a_difference_leads_from_one_table_to_the_other(a in table(), b in table()) {
        let mut kernel = whole(&a);
        diff(&a, &b).iter().for_each(|s| apply(&mut kernel, s));
        prop_assert_eq!(kernel, whole(&b));
        prop_assert_eq!(diff(&b, &b), []);
    }

    #[test]
    fn a_difference_never_dips_in_any_service(a in table(), b in table()) {
        let none = BTreeSet::new();
        let of = |t: &KernelTable, key: &ServiceKey| {
            live(&t.get(key).map(|s| (*key, s.clone())).into_iter().collect(), &none)
        };
        let (before, after) = (whole(&a), whole(&b));
        let mut kernel = before.clone();
        for step in diff(&a, &b) {
            apply(&mut kernel, &step);
            for key in a.keys() {
                let least = of(&before, key).min(of(&after, key));
                prop_assert!(of(&kernel, key) >= least, "{} dipped at {}", key, step);
            }
        }
    }

    #[test]
    fn a_difference_adds_before_it_removes_and_touches_nothing_else(a in table(), b in table()) {
        let steps = diff(&a, &b);
        let removes = |s: &&Step| matches!(s, Step::DelDest(..) | Step::DelService(_));
        let adds = |s: &&Step| matches!(s, Step::NewDest(..) | Step::NewService(..));
        let first = steps.iter().position(|s| removes(&s)).unwrap_or(steps.len());
        prop_assert!(!steps[first..].iter().any(|s| adds(&s)), "{:?}", steps);
        for step in &steps {
            let (key, old, new) = (step.service(), a.get(&step.service()), b.get(&step.service()));
            let both = |d: &DestKey| {
                (old.and_then(|s| s.dests.get(d)), new.and_then(|s| s.dests.get(d)))
            };
            let least = match step {
                Step::NewService(..) => old.is_none(),
                Step::DelService(_) => new.is_none(),
                Step::SetService(..) => old.unwrap().attrs != new.unwrap().attrs,
                Step::NewDest(_, d, _) => both(d).0.is_none(),
                Step::DelDest(_, d) => both(d).1.is_none(),
                Step::SetDest(_, d, _) => both(d).0.is_some() && both(d).0 != both(d).1,
            };
            prop_assert!(least, "{} in {} was not called for", step, key);
        }
    }
}
