use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::*;
use crate::{
    config,
    director::{Event, Recall, Start},
    model::{FailReason, Outcome, WallMillis},
    reconcile::{drift::Field, plan::Applied},
};

const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
drift = "alert"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
check.none = {}
real_server = [{ address = "10.0.0.1:80" }, { address = "10.0.0.2:80" }]
[[virtual_service]]
address = "192.0.2.1:443"
drift = "respect"
scheduler = "wlc"
forward = "nat"
real_server = [{ address = "10.0.0.1:443" }]
"#;

fn core() -> Core {
    let start = Start {
        now: MonoTime::ZERO,
        wall: WallMillis(0),
        boot_id: "boot".into(),
        recall: Recall::Forgot("there is no state file".into()),
        kernel: BTreeMap::new(),
        dropped: BTreeMap::new(),
        marked: BTreeSet::new(),
    };
    let config = config::director::parse(Path::new("d.toml"), CONFIG).unwrap();
    Core::new(Arc::new(config), start)
}

fn service(port: u16) -> ServiceKey {
    format!("tcp/192.0.2.1:{port}").parse().unwrap()
}

fn dest(n: u8, port: u16) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port,
    }
}

#[test]
fn servers_without_a_check_are_up_from_the_start_and_nobody_asks_them() {
    let mut core = core();
    let want = core.desired(service(80)).unwrap();
    assert_eq!(want.service.dests.len(), 2);
    assert!(core.desired(service(443)).unwrap().service.dests.is_empty());
    let slots = core.targets().into_values().flatten();
    let asked: Vec<_> = slots.map(|s| (s.service, s.dest)).collect();
    assert_eq!(asked, [(service(443), dest(1, 443))]);
    let status = core.status(MonoTime::ZERO);
    let health = |s: &ServiceStatus| {
        s.servers
            .iter()
            .map(|s| s.health.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(health(&status.services[0]), ["unchecked", "unchecked"]);
    assert_eq!(health(&status.services[1]), ["unknown"]);
    // A server that fails in its other service serves here all the same.
    for _ in 0..2 {
        let refused = Outcome::Fail(FailReason::Refused);
        let probe = crate::director::tests::probe(service(443), dest(1, 443), refused);
        let fx = core.handle(probe, MonoTime::ZERO);
        assert!(!fx.dirty.contains(&service(80)) && !fx.targets);
    }
    assert_eq!(core.desired(service(80)).unwrap(), want);
}

#[test]
fn what_others_changed_is_shown_until_it_is_gone_and_warned_of_under_alert() {
    let mut core = core();
    let differences = |port: u16, n: u8| -> Vec<Difference> {
        let one = |n| Difference {
            service: service(port),
            dest: Some(dest(n, port)),
            field: Field::Weight,
            wanted: "1".to_owned(),
            found: "7".to_owned(),
        };
        (1..=n).map(one).collect()
    };
    let applied = Applied {
        drift: [
            (service(80), differences(80, 5)),
            (service(443), differences(443, 1)),
        ]
        .into(),
        ..Applied::default()
    };
    core.handle(Event::Applied(applied), MonoTime::ZERO);
    let status = core.status(MonoTime::ZERO);
    assert_eq!(status.drift.len(), 6);
    let policies: Vec<_> = status.drift.iter().map(|d| d.policy.as_str()).collect();
    assert_eq!(
        policies,
        ["alert", "alert", "alert", "alert", "alert", "respect"]
    );
    assert_eq!(
        status.warnings,
        [
            "tcp/192.0.2.1:80 was changed by somebody else and is left so: 10.0.0.1:80: weight is 7, wanted is 1; 10.0.0.2:80: weight is 7, wanted is 1; 10.0.0.3:80: weight is 7, wanted is 1; and 2 more"
        ]
    );
    core.handle(Event::Applied(Applied::default()), MonoTime::ZERO);
    let status = core.status(MonoTime::ZERO);
    assert!(status.drift.is_empty() && status.warnings.is_empty());
}
