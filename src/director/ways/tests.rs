use std::{path::Path, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    config,
    director::{Event, Recall, Start, tests::probe},
    model::{
        FailReason, Found, MonoTime, Outcome, Slot, WallMillis,
        wire::{Member, Members, Spare, Standby, Want},
    },
    reconcile::plan::Applied,
};

const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
probe_marks = "1000-1001"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "dr"
real_server = [{ address = "10.0.0.1:80" }, { address = "10.0.0.2:80" }]
[[virtual_service.check]]
tcp = {}
[[virtual_service.check]]
tcp = {}
through = "vip"
"#;

fn core(recall: Recall, marked: &[u32]) -> Core {
    core_of("1000-1001", recall, marked)
}

fn core_of(range: &str, recall: Recall, marked: &[u32]) -> Core {
    let start = Start {
        now: MonoTime::ZERO,
        wall: WallMillis(0),
        boot_id: "boot".into(),
        recall,
        kernel: BTreeMap::new(),
        dropped: BTreeMap::new(),
        marked: marked.iter().map(|m| hidden(*m)).collect(),
    };
    let text = CONFIG.replace("1000-1001", range);
    let config = config::director::parse(Path::new("d.toml"), &text);
    Core::new(Arc::new(config.unwrap_or_else(|e| panic!("{e}"))), start)
}

fn fresh() -> Core {
    core(Recall::Forgot("there is no state file".into()), &[])
}

fn hidden(mark: u32) -> ServiceKey {
    ServiceKey::Fwmark(Family::V4, mark)
}

fn service() -> ServiceKey {
    "tcp/192.0.2.1:80".parse().unwrap()
}

fn dest(n: u8) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port: 80,
    }
}

/// The kernel has what is wanted of these.
fn applied(core: &Core, keys: &[ServiceKey]) -> Event {
    let has = |key: &ServiceKey| (*key, Arc::new(core.desired(*key).unwrap().service.dests));
    Event::Applied(Applied {
        kernel: keys.iter().map(has).collect(),
        ..Applied::default()
    })
}

fn through(core: &Core) -> Vec<(SocketAddr, u32, DestKey)> {
    let targets = core.targets().into_iter();
    let through = targets.filter(|((_, spec), _)| spec.via.through);
    through
        .map(|((at, spec), slots)| (at, spec.via.mark.unwrap(), slots[0].dest))
        .collect()
}

#[test]
fn each_server_has_a_hidden_service_and_is_asked_once_the_kernel_has_it() {
    let mut core = fresh();
    let keys: Vec<_> = core.services().collect();
    assert_eq!(keys, [service(), hidden(1000), hidden(1001)]);
    let want = core.desired(hidden(1000)).unwrap().service;
    let (key, attrs) = want.dests.first_key_value().unwrap();
    assert_eq!((key.addr, key.port), (dest(1).addr, 0));
    assert_eq!(attrs.forward, ForwardMethod::Dr);
    assert_eq!(through(&core), [], "a probe would reach this host itself");

    let event = applied(&core, &[hidden(1001)]);
    assert!(core.handle(event, MonoTime::ZERO).targets);
    let vip = "192.0.2.1:80".parse().unwrap();
    assert_eq!(through(&core), [(vip, 1001, dest(2))]);
    let event = applied(&core, &[hidden(1001)]);
    assert!(!core.handle(event, MonoTime::ZERO).targets, "nothing new");
    let event = applied(&core, &[]);
    assert!(core.handle(event, MonoTime::ZERO).targets);
    assert_eq!(through(&core), [], "somebody removed it");
}

#[test]
fn a_warm_spare_is_asked_through_the_virtual_address_beforehand_and_keeps_its_way() {
    let forgot = Recall::Forgot("there is no state file".into());
    let mut core = core_of("1000-1002", forgot, &[]);
    let spare = Spare {
        name: "spare9".into(),
        addresses: vec![dest(9).addr],
    };
    let in_place_of = vec![dest(1).addr];
    let list = |members, standbys| {
        let version = 1;
        Event::Members(Members {
            version,
            members,
            standbys,
        })
    };
    let standby = Standby {
        spare: spare.clone(),
        in_place_of: in_place_of.clone(),
    };
    let fx = core.handle(list(Vec::new(), vec![standby]), MonoTime::ZERO);
    assert!(fx.dirty.contains(&hidden(1002)), "{fx:?}");
    let event = applied(&core, &[service(), hidden(1002)]);
    core.handle(event, MonoTime::ZERO);
    let vip = "192.0.2.1:80".parse().unwrap();
    assert_eq!(through(&core), [(vip, 1002, dest(9))]);
    for check in [0, 1] {
        let slots = [Slot {
            service: service(),
            dest: dest(9),
            check,
        }]
        .into();
        let found = Found::of(Outcome::Pass, Duration::ZERO);
        core.handle(Event::Probe { slots, found }, MonoTime::ZERO);
    }
    let mut dests = core.desired(service()).unwrap().service.dests.into_keys();
    assert!(!dests.any(|d| d == dest(9)));
    let member = Member {
        replacement: "r1".parse().unwrap(),
        origins: in_place_of,
        spare,
        want: Want::Attach,
        confirmed: None,
    };
    let fx = core.handle(list(vec![member], Vec::new()), MonoTime::ZERO);
    assert!(!fx.dirty.contains(&hidden(1002)), "{fx:?}");
    let mut dests = core.desired(service()).unwrap().service.dests.into_keys();
    assert!(dests.any(|d| d == dest(9)));
}

#[test]
fn a_probe_through_the_virtual_address_comes_from_an_own_one() {
    let mut core = fresh();
    let event = applied(&core, &[hidden(1000)]);
    core.handle(event, MonoTime::ZERO);
    let targets = core.targets();
    let (_, spec) = targets.keys().find(|(_, spec)| spec.via.through).unwrap();
    assert_eq!(spec.via.source, Some([10, 77, 0, 1].into()));
}

#[test]
fn marks_that_others_use_are_left_to_them_and_own_ones_of_before_are_removed() {
    let strange = core(Recall::Forgot("there is no state file".into()), &[1000]);
    let keys: Vec<_> = strange.services().collect();
    assert_eq!(keys, [service(), hidden(1001)]);
    assert!(!strange.made().contains(&hidden(1000)));
    assert_eq!(strange.lacking_ways(), 1);
    let warnings = strange.status(MonoTime::ZERO).warnings;
    assert!(
        warnings.iter().any(|w| w.contains("probe_marks")),
        "{warnings:?}"
    );

    let before = fresh();
    let again = core(Recall::Known(before.memory()), &[1000, 1001]);
    let keys: Vec<_> = again.services().collect();
    assert_eq!(keys, [service(), hidden(1000), hidden(1001)]);
}

#[test]
fn two_checks_give_a_diagnosis_in_words() {
    let mut core = fresh();
    let refused = Outcome::Fail(FailReason::Refused);
    for (check, outcome) in [(0, Outcome::Pass), (1, refused), (1, refused)] {
        let Event::Probe { slots, found } = probe(service(), dest(1), outcome) else {
            unreachable!()
        };
        let slot = Slot { check, ..slots[0] };
        let slots = [slot].into();
        core.handle(Event::Probe { slots, found }, MonoTime::ZERO);
    }
    let status = core.status(MonoTime::ZERO);
    let server = &status.services[0].servers[0];
    let reason = server.reason.as_deref().unwrap();
    assert_eq!(server.health, "down");
    assert!(
        reason.starts_with(
            "connection refused; it answers on its own address, not for the virtual one"
        ),
        "{reason}"
    );
    let found: Vec<_> = server.checks.iter().map(|c| c.found.as_str()).collect();
    assert_eq!(found, ["passed", "connection refused"]);
}

proptest! {
    /// Whoever comes and goes: a way that stays keeps its mark, no mark is used twice or is a
    /// stranger's, and whatever was made is known.
    #[test]
    fn marks_are_kept_and_never_shared(rounds in prop::collection::vec(prop::collection::btree_set(0_u8..12, 0..8), 1..12), strangers in prop::collection::btree_set(100_u32..110, 0..4)) {
        let found = strangers.iter().map(|m| hidden(*m)).collect();
        let mut ways = Ways::new(Marks { from: 100, to: 109 }, BTreeSet::new(), &found);
        let way = |n: u8| Way { family: Family::V4, server: [10, 0, 0, n].into(), forward: ForwardMethod::Dr, tunnel: Tunnel::default() };
        let mut made = BTreeSet::new();
        for servers in rounds {
            let before = ways.ways.clone();
            let wanted = servers.iter().map(|n| (way(*n), Scheduler("rr".into()))).collect();
            let changed = ways.refresh(&wanted);
            let marks: BTreeSet<_> = ways.ways.values().map(|(m, _)| *m).collect();
            prop_assert_eq!(marks.len(), ways.ways.len());
            prop_assert!(marks.is_disjoint(&strangers));
            prop_assert!(marks.iter().all(|m| (100..110).contains(m)));
            for (way, mark) in &ways.ways {
                if let Some(old) = before.get(way) {
                    prop_assert_eq!(mark, old);
                    prop_assert!(!changed.contains(&hidden(mark.0)));
                }
            }
            let full = ways.ways.len() == 10 - strangers.len();
            prop_assert!(full || ways.ways.len() == servers.len());
            made.extend(ways.services());
            prop_assert_eq!(ways.used(), &made);
        }
    }
}
