use proptest::prelude::*;

use super::*;

const WHOLE: Duration = Duration::from_secs(60);

fn at(n: u8) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port: 80,
    }
}

fn weights(list: &[u32]) -> BTreeMap<DestKey, Weight> {
    let weight = |n: &u32| Weight::try_from(i64::from(*n)).unwrap();
    (0..).map(at).zip(list.iter().map(weight)).collect()
}

fn of(map: &BTreeMap<DestKey, Weight>) -> Vec<u32> {
    map.values().map(|w| w.get()).collect()
}

#[test]
fn a_server_of_weight_one_ramps_by_the_weights_of_its_siblings() {
    let own = weights(&[1, 1, 3]);
    let ramp = |n, percent| BTreeMap::from([(at(n), percent)]);
    assert_eq!(of(&scaled(&own, &ramp(0, 5), true)), [1, 20, 60]);
    assert_eq!(of(&scaled(&own, &ramp(0, 95), true)), [19, 20, 60]);
    // One that has steps of its own needs no factor.
    let own = weights(&[40, 1]);
    assert_eq!(of(&scaled(&own, &ramp(0, 5), true)), [2, 1]);
    assert_eq!(of(&scaled(&own, &BTreeMap::new(), true)), [40, 1]);
    // Where a factor would change what weights mean.
    assert_eq!(of(&scaled(&own, &ramp(1, 5), false)), [40, 1]);
    // As far as there is room.
    let own = weights(&[30_000, 1]);
    assert_eq!(of(&scaled(&own, &ramp(1, 5), true)), [60_000, 1]);
}

#[test]
fn ten_steps_and_then_the_whole() {
    let mut since = Duration::ZERO;
    let mut seen = Vec::new();
    while let Some(n) = percent(since, WHOLE) {
        seen.push(n);
        since = next_step(MonoTime::from_boot(Duration::ZERO), n, WHOLE)
            .since(MonoTime::from_boot(Duration::ZERO));
    }
    assert_eq!(seen, [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]);
    assert!(
        since >= WHOLE && since < WHOLE + Duration::from_millis(1),
        "{since:?}"
    );
    assert_eq!(percent(Duration::ZERO, Duration::ZERO), None);
}

/// Most are small: those need a factor.
fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 1u32..30, 1 => 1u32..70_000]
}

proptest! {
    /// Whoever is whole has one factor, the others their part of it but for less than 1, and nobody nothing.
    #[test]
    fn proportions_hold_but_for_rounding(
        list in prop::collection::vec((weight(), prop::option::of(0u16..10)), 1..8),
        may_scale: bool,
    ) {
        let own = weights(&list.iter().map(|(w, _)| *w).collect::<Vec<_>>());
        let steps = list.iter().map(|(_, step)| *step);
        let ramping = (0..).map(at).zip(steps).filter_map(|(d, s)| Some((d, s? * 10 + 5)));
        let ramping: BTreeMap<DestKey, u16> = ramping.collect();
        let found = scaled(&own, &ramping, may_scale);
        prop_assert!(found.keys().eq(own.keys()));
        let factor = |dest: &DestKey| found[dest].get() / own[dest].get();
        let whole: BTreeSet<u32> = own.keys().filter(|d| !ramping.contains_key(d)).map(factor).collect();
        prop_assert!(whole.len() <= 1, "one factor: {:?}", whole);
        let most = own.values().map(|w| w.get()).max().unwrap();
        prop_assert!(found.values().all(|w| w.get() <= most.max(MOST)));
        for (dest, percent) in &ramping {
            let Some(factor) = whole.first() else { continue };
            let exact = f64::from(own[dest].get()) * f64::from(*factor) * f64::from(*percent) / 100.0;
            let got = f64::from(found[dest].get());
            prop_assert!(got >= exact - 1e-6 && got < exact + 1.0 && got >= 1.0, "{got} for {exact}");
        }
        if ramping.is_empty() {
            prop_assert_eq!(found, own);
        }
    }

    /// Time takes nothing away, and it ends.
    #[test]
    fn a_ramp_only_grows(whole in 1u64..100_000, a in 0u64..200_000, b in 0u64..200_000) {
        let of = |ms| percent(Duration::from_millis(ms), Duration::from_millis(whole)).unwrap_or(100);
        let (early, late) = (a.min(b), a.max(b));
        prop_assert!(of(early) <= of(late));
        prop_assert_eq!(of(whole), 100);
        let begun = MonoTime::from_boot(Duration::ZERO);
        let uneven = Duration::from_nanos(whole);
        if let Some(now) = percent(Duration::from_nanos(early % whole), uneven) {
            let next = next_step(begun, now, uneven).since(begun);
            prop_assert!(percent(next, uneven).is_none_or(|n| n > now), "not due yet");
        }
        prop_assert!(of(whole - 1) < 100 || whole == 1);
    }
}
