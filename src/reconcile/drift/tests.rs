use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    super::testing::{dest, key, service, state},
    *,
};
use crate::model::{Scheduler, Weight};

fn policies() -> impl Strategy<Value = DriftPolicy> {
    prop::sample::select(vec![
        DriftPolicy::Repair,
        DriftPolicy::Alert,
        DriftPolicy::Respect,
    ])
}

fn leaving() -> impl Strategy<Value = DriftPolicy> {
    prop::sample::select(vec![DriftPolicy::Alert, DriftPolicy::Respect])
}

fn outs(want: &Service) -> BTreeSet<DestKey> {
    let odd = (0..5).filter(|n| n % 2 == 1).map(dest);
    odd.filter(|d| !want.dests.contains_key(d)).collect()
}

fn merged<'a>(
    base: Option<&Service>,
    want: &'a Service,
    actual: Option<&Service>,
    policy: DriftPolicy,
) -> Merged<'a> {
    let actual = actual.map(state);
    merge(key(), base, want, &outs(want), actual.as_ref(), policy)
}

/// All that a service consists of, as values that are compared one by one.
fn parts(s: &Service) -> BTreeMap<(Option<DestKey>, &'static str), String> {
    let attrs = [
        ("scheduler", s.attrs.scheduler.to_string()),
        ("flags", format!("{:?}", s.attrs.flags)),
        ("persistence", format!("{:?}", s.attrs.persistence)),
    ];
    let dests = s.dests.iter().flat_map(|(d, a)| {
        [
            ("destination", String::new()),
            ("weight", a.weight.to_string()),
            ("forward", format!("{:?} {:?}", a.forward, a.tunnel)),
            ("thresholds", format!("{} {}", a.upper, a.lower)),
        ]
        .map(|(f, v)| ((Some(*d), f), v))
    });
    attrs
        .into_iter()
        .map(|(f, v)| ((None, f), v))
        .chain(dests)
        .collect()
}

proptest! {
    #[test]
    fn repair_makes_everything_as_wanted(base in prop::option::of(service()), want in service(), actual in prop::option::of(service())) {
        let m = merged(base.as_ref(), &want, actual.as_ref(), DriftPolicy::Repair);
        prop_assert_eq!(m.service.as_deref(), Some(&want));
    }

    #[test]
    fn without_a_base_everything_is_made_as_wanted(want in service(), actual in prop::option::of(service()), policy in policies()) {
        let m = merged(None, &want, actual.as_ref(), policy);
        prop_assert_eq!(m.service.as_deref(), Some(&want));
        prop_assert_eq!(m.differences, []);
    }

    #[test]
    fn what_nobody_else_changed_is_no_difference(base in service(), want in service(), policy in policies()) {
        let m = merged(Some(&base), &want, Some(&base), policy);
        prop_assert_eq!(m.service.as_deref(), Some(&want));
        prop_assert_eq!(m.differences, []);
    }

    #[test]
    fn what_only_others_changed_is_left(base in service(), actual in service(), policy in leaving()) {
        // Nothing of our own is to change: all that differs is theirs, but for failed servers.
        let m = merged(Some(&base), &base, Some(&actual), policy);
        let mut left = actual.clone();
        left.dests.retain(|d, _| !outs(&base).contains(d));
        prop_assert_eq!(m.service.as_deref(), Some(&left));
        prop_assert_eq!(m.differences.is_empty(), base == left);
    }

    #[test]
    fn each_part_is_ours_or_theirs(base in service(), want in service(), actual in service(), policy in leaving()) {
        let m = merged(Some(&base), &want, Some(&actual), policy);
        let made = parts(m.service.as_deref().unwrap());
        let (base, want, actual) = (parts(&base), parts(&want), parts(&actual));
        let there = |t: &BTreeMap<(Option<DestKey>, &'static str), String>, d| t.contains_key(&(d, "destination"));
        for (part, value) in &made {
            let ours = want.get(part) == Some(value);
            let theirs = actual.get(part) == Some(value);
            prop_assert!(ours || theirs, "{:?} is nobody's", part);
            if part.1 != "destination" && there(&base, part.0) && base.get(part) != want.get(part) && want.contains_key(part) {
                prop_assert!(ours, "{:?} was changed by us and is not ours", part);
            }
        }
        for part in want.keys().filter(|p| p.1 == "destination") {
            if !base.contains_key(part) {
                prop_assert!(made.contains_key(part), "{:?} is new and not added", part);
            }
        }
        for part in base.keys().filter(|p| p.1 == "destination" && !want.contains_key(p)) {
            prop_assert!(!made.contains_key(part), "{:?} was to go and stays", part);
        }
    }

    #[test]
    fn a_failed_server_is_never_left_in(base in prop::option::of(service()), want in service(), actual in prop::option::of(service()), policy in policies()) {
        let m = merged(base.as_ref(), &want, actual.as_ref(), policy);
        let out = outs(&want);
        prop_assert!(m.service.iter().all(|s| s.dests.keys().all(|d| !out.contains(d))));
        prop_assert!(m.differences.iter().all(|d| d.dest.is_none_or(|d| !out.contains(&d))));
    }

    #[test]
    fn what_is_found_does_not_depend_on_what_becomes_of_it(base in service(), want in service(), actual in prop::option::of(service())) {
        let of = |policy| merged(Some(&base), &want, actual.as_ref(), policy).differences;
        prop_assert_eq!(of(DriftPolicy::Repair), of(DriftPolicy::Alert));
        prop_assert_eq!(of(DriftPolicy::Alert), of(DriftPolicy::Respect));
    }
}

fn plain() -> Service {
    let attrs = DestAttrs {
        weight: Weight::ONE,
        forward: crate::model::ForwardMethod::Nat,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    };
    Service {
        attrs: ServiceAttrs {
            scheduler: Scheduler("wlc".to_owned()),
            flags: crate::model::ServiceFlags::default(),
            persistence: None,
        },
        dests: [(dest(2), attrs), (dest(4), attrs)].into(),
    }
}

fn words(d: &[Difference]) -> Vec<String> {
    d.iter().map(ToString::to_string).collect()
}

#[test]
fn a_difference_says_what_was_wanted_and_what_was_found() {
    let want = plain();
    let mut found = want.clone();
    found.attrs.scheduler = Scheduler("rr".to_owned());
    found.attrs.persistence = Some(Persistence {
        timeout_s: 300,
        prefix: 24,
        engine: Some("sip".to_owned()),
    });
    let two = found.dests.get_mut(&dest(2)).unwrap();
    (two.weight, two.upper) = (Weight::QUIESCED, 9);
    (two.forward, two.tunnel.kind) = (crate::model::ForwardMethod::Tun, TunnelType::Gre);
    let four = found.dests.remove(&dest(4)).unwrap();
    found.dests.insert(dest(0), four);
    let m = merged(Some(&want), &want, Some(&found), DriftPolicy::Alert);
    assert_eq!(
        words(&m.differences),
        [
            "scheduler is rr, wanted is wlc",
            "persistence is 300 s, prefix 24, engine sip, wanted is none",
            "10.0.0.2:80: weight is 0, wanted is 1",
            "10.0.0.2:80: forward is tun gre, wanted is nat",
            "10.0.0.2:80: thresholds is upper 9, lower 0, wanted is upper 0, lower 0",
            "10.0.0.4:80: destination is absent, wanted is present (nat, weight 1)",
            "10.0.0.0:80: destination is present (nat, weight 1), wanted is absent",
        ]
    );
}

#[test]
fn a_service_that_vanished_is_one_difference_and_stays_so_where_that_is_left() {
    let want = plain();
    let m = merged(Some(&want), &want, None, DriftPolicy::Alert);
    assert_eq!(m.service, None);
    assert_eq!(
        words(&m.differences),
        ["service is absent, wanted is present"]
    );
    let m = merged(Some(&want), &want, None, DriftPolicy::Repair);
    assert_eq!(m.service.as_deref(), Some(&want));
    assert_eq!(m.differences.len(), 1);
}
