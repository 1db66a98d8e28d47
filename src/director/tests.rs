mod addresses;
mod aftermath;
mod explain;
mod failure;
mod guards;
mod orders;
mod policy;
mod quorum;
mod ramp;
mod reload;
mod sequences;
mod standbys;
mod stopping;

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    config,
    model::{
        Advice, DestAttrs, DestKey, FailReason, ForwardMethod, Found, MonoTime, Outcome,
        ReplacementId, ServiceKey, Slot, Tunnel, WallMillis, Weight,
        wire::{Member, Members, Replacement, ReplacementState, Spare, Want},
    },
    reconcile::plan::Applied,
};

const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[provisioner]
address = "10.77.0.1"
[replacement]
replace_after = "10s"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
check = { interval = "1s", rise = 2, fall = 2 }
real_server = [{ address = "10.0.0.1:80", weight = 5 }, { address = "10.0.0.2:80" }, { address = "10.0.0.3:80" }]
[[virtual_service]]
address = "192.0.2.1:443"
scheduler = "wlc"
forward = "nat"
check = { interval = "1s", rise = 2, fall = 2 }
real_server = [{ address = "10.0.0.1:8443", weight = 7 }, { address = "10.0.0.2:8443" }]
"#;

/// The service's only check of a destination found this.
pub(super) fn probe(service: ServiceKey, dest: DestKey, outcome: Outcome) -> Event {
    let slot = Slot {
        service,
        dest,
        check: 0,
    };
    Event::Probe {
        slots: [slot].into(),
        found: Found::of(outcome, Duration::ZERO),
    }
}

const FAIL: Outcome = Outcome::Fail(FailReason::Refused);

fn service(port: u16) -> ServiceKey {
    format!("tcp/192.0.2.1:{port}").parse().unwrap()
}

fn dest(n: u8, port: u16) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port,
    }
}

fn ip(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

fn attrs(weight: i64) -> DestAttrs {
    DestAttrs {
        weight: Weight::try_from(weight).unwrap(),
        forward: ForwardMethod::Nat,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    }
}

fn at(seconds: u64) -> MonoTime {
    MonoTime::from_boot(Duration::from_secs(seconds))
}

type Kernel = BTreeMap<ServiceKey, BTreeMap<DestKey, DestAttrs>>;

/// All five destinations with their weights, as an earlier run left them.
fn full_kernel() -> Kernel {
    let web = [
        (dest(1, 80), attrs(5)),
        (dest(2, 80), attrs(1)),
        (dest(3, 80), attrs(1)),
    ];
    let tls = [(dest(1, 8443), attrs(7)), (dest(2, 8443), attrs(1))];
    [(service(80), web.into()), (service(443), tls.into())].into()
}

struct World {
    core: Core,
    now: u64,
}

impl World {
    fn new(recall: Recall, kernel: Kernel) -> Self {
        Self::of(CONFIG, recall, kernel)
    }

    fn of(text: &str, recall: Recall, kernel: Kernel) -> Self {
        let config = Arc::new(config::director::parse(Path::new("d.toml"), text).unwrap());
        let wall = WallMillis(1000);
        let boot_id = "boot".to_owned();
        let start = Start {
            now: at(0),
            wall,
            boot_id,
            recall,
            kernel,
            dropped: BTreeMap::new(),
            marked: BTreeSet::new(),
        };
        Self {
            core: Core::new(config, start),
            now: 0,
        }
    }

    /// A first start: no file, nothing in the kernel, the provisioner knows no stand-ins.
    fn fresh() -> Self {
        let mut w = Self::new(
            Recall::Forgot("there is no state file".into()),
            Kernel::new(),
        );
        w.members(vec![]);
        w
    }

    fn event(&mut self, event: Event) -> Vec<Note> {
        let notes = self.core.handle(event, at(self.now)).notes;
        // The kernel obeys.
        let kernel = self
            .kernel()
            .into_iter()
            .map(|(k, d)| (k, Arc::new(d)))
            .collect();
        let mut all = notes;
        let applied = Applied {
            kernel,
            ..Applied::default()
        };
        all.extend(
            self.core
                .handle(Event::Applied(applied), at(self.now))
                .notes,
        );
        all
    }

    fn kernel(&self) -> Kernel {
        let part = |p| Some((service(p), self.core.desired(service(p))?.service.dests));
        [80, 443].into_iter().filter_map(part).collect()
    }

    fn probe(&mut self, n: u8, outcome: Outcome) -> Vec<Note> {
        let targets = self.core.targets();
        let slots = targets
            .into_values()
            .flatten()
            .filter(|s| s.dest.addr == ip(n));
        let mut slots: Vec<_> = slots.map(|s| (s.service, s.dest)).collect();
        slots.sort();
        let mut notes = Vec::new();
        for (service, dest) in slots {
            notes.extend(self.event(probe(service, dest, outcome)));
        }
        notes
    }

    fn all_pass(&mut self, servers: &[u8]) {
        for n in servers {
            self.probe(*n, Outcome::Pass);
            self.probe(*n, Outcome::Pass);
        }
    }

    fn dies(&mut self, n: u8) -> Vec<Note> {
        let mut notes = self.probe(n, FAIL);
        notes.extend(self.probe(n, FAIL));
        notes
    }

    fn passes(&mut self, seconds: u64) -> Vec<Note> {
        self.now += seconds;
        self.event(Event::Tick)
    }

    fn members(&mut self, members: Vec<Member>) -> Vec<Note> {
        self.event(Event::Members(Members {
            version: 1,
            members,
            standbys: Vec::new(),
        }))
    }

    fn requests(&self) -> Vec<IncidentKey> {
        self.core.outbox().requests.into_iter().collect()
    }

    fn in_service(&self, port: u16) -> Vec<u8> {
        let last = |d: &DestKey| match d.addr {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(_) => 0,
        };
        let want = self.core.desired(service(port)).unwrap();
        let takes = want.service.dests.iter();
        let takes = takes.filter(|(_, attrs)| attrs.weight != Weight::QUIESCED);
        takes.map(|(dest, _)| last(dest)).collect()
    }

    /// Whoever is drained has so many connections left.
    fn counted(&mut self, connections: Option<u64>) -> Vec<Note> {
        let counts = self.core.draining().into_iter();
        let counts: Connections = counts.map(|place| (place, connections)).collect();
        let mut notes = self.event(Event::Counted(counts.clone()));
        self.now += 3;
        notes.extend(self.event(Event::Counted(counts)));
        notes
    }
}

fn member(id: &str, origin: u8, spare: u8, want: Want) -> Member {
    Member {
        replacement: id.parse().unwrap(),
        origins: vec![ip(origin)],
        spare: Spare {
            name: format!("spare{spare}"),
            addresses: vec![ip(spare)],
        },
        want,
        confirmed: None,
    }
}

fn answer(key: &IncidentKey, id: &str, state: ReplacementState, reason: Option<&str>) -> Event {
    let replacement = Replacement {
        id: id.parse().unwrap(),
        key: key.to_string(),
        director: key.director.clone(),
        failed: key.failed,
        origin: key.failed,
        role: None,
        state,
        reason: reason.map(str::to_owned),
        spare: None,
        passed_over: vec![],
        steps: vec![],
        version: 1,
    };
    Event::Replacement(key.clone(), Box::new(replacement))
}

#[test]
fn a_dead_server_leaves_and_its_spare_takes_every_place_it_had() {
    let mut w = World::fresh();
    assert_eq!(w.in_service(80), [0u8; 0], "nobody is let in unchecked");
    w.all_pass(&[1, 2, 3]);
    assert_eq!(
        (w.in_service(80), w.in_service(443)),
        (vec![1, 2, 3], vec![1, 2])
    );

    w.dies(1);
    assert_eq!((w.in_service(80), w.in_service(443)), (vec![2, 3], vec![2]));
    assert!(
        w.core
            .desired(service(80))
            .unwrap()
            .out
            .contains(&dest(1, 80)),
        "taken out first"
    );
    assert_eq!(w.requests(), [], "replace_after is not over");
    assert_eq!(w.core.next_deadline(at(w.now)), Some(at(10)));
    w.passes(10);
    let [key] = w.requests().try_into().unwrap();
    assert_eq!(key.failed, ip(1));

    w.event(answer(&key, "r1", ReplacementState::Configuring, None));
    w.members(vec![member("r1", 1, 9, Want::Attach)]);
    assert_eq!(w.requests(), [], "the incident is closed");
    assert_eq!(
        w.in_service(80),
        [2, 3],
        "the director sees for itself before it lets it in"
    );
    assert!(w.core.outbox().confirms.is_empty());
    w.probe(9, Outcome::Pass);
    assert_eq!(
        (w.in_service(80), w.in_service(443)),
        (vec![2, 3, 9], vec![2, 9])
    );
    let web = w.core.desired(service(80)).unwrap().service.dests;
    let tls = w.core.desired(service(443)).unwrap().service.dests;
    assert_eq!(
        (web[&dest(9, 80)], tls[&dest(9, 8443)]),
        (attrs(5), attrs(7)),
        "weight and port are the place's"
    );
    let confirms: Vec<_> = w.core.outbox().confirms.into_iter().collect();
    assert_eq!(confirms, [("r1".parse().unwrap(), Want::Attach)]);
    w.event(Event::Confirmed("r1".parse().unwrap(), Want::Attach));
    assert!(w.core.outbox().confirms.is_empty());

    // The old one answers again: its role has passed on. The stand-in fails: it is better than none.
    w.all_pass(&[1]);
    assert_eq!(w.in_service(80), [2, 3, 9]);
    w.dies(9);
    assert_eq!(w.in_service(80), [1, 2, 3]);
    w.passes(10);
    assert_eq!(
        w.requests().iter().map(|k| k.failed).collect::<Vec<_>>(),
        [ip(9)],
        "a stand-in is replaced in its turn"
    );
}

#[test]
fn no_spare_is_asked_for_when_every_server_is_down() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    for n in [1, 2, 3] {
        w.dies(n);
    }
    let notes = w.passes(60);
    assert_eq!(w.requests(), []);
    assert!(
        notes.contains(&Note::Held(ip(1), Guard::AllServersDown)),
        "{notes:?}"
    );
    w.all_pass(&[2]);
    assert_eq!(
        w.requests().len(),
        1,
        "one answers: it is not the director that is cut off"
    );
}

/// As `fresh`, and the second service is not checked.
fn half_checked() -> World {
    let (first, second) = CONFIG.rsplit_once("check = {").unwrap();
    let (_, rest) = second.split_once('\n').unwrap();
    let text = format!("{first}check = {{ none = {{}} }}\n{rest}");
    let forgot = Recall::Forgot("there is no state file".into());
    let mut w = World::of(&text, forgot, Kernel::new());
    w.members(vec![]);
    w
}

#[test]
fn a_service_without_checks_does_not_keep_a_dead_server_from_being_replaced() {
    let mut w = half_checked();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    assert_eq!(w.in_service(443), [1, 2], "nobody checks it there");
    w.passes(10);
    let failed: Vec<_> = w.requests().iter().map(|k| k.failed).collect();
    assert_eq!(failed, [ip(1)]);
}

#[test]
fn servers_that_nobody_checks_do_not_show_that_the_director_is_not_cut_off() {
    let mut w = half_checked();
    w.all_pass(&[1, 2, 3]);
    for n in [1, 2, 3] {
        w.dies(n);
    }
    w.passes(60);
    assert_eq!(w.requests(), []);
    assert_eq!(w.core.guard(ip(1), at(w.now)), Some(Guard::AllServersDown));
}

#[test]
fn one_replacement_at_a_time_and_one_without_a_spare_holds_up_nobody() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.dies(2);
    w.passes(10);
    let [first] = w.requests().try_into().unwrap();
    assert_eq!(
        w.core.guard(ip(2), at(w.now)),
        Some(Guard::AtOnce { other: ip(1) })
    );
    w.event(answer(&first, "r1", ReplacementState::Configuring, None));
    assert_eq!(w.requests().len(), 1);
    w.event(answer(
        &first,
        "r1",
        ReplacementState::Pending,
        Some("no_spare: none is ready"),
    ));
    assert_eq!(w.requests().len(), 2);
}

#[test]
fn a_server_that_comes_back_calls_its_spare_off() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.passes(10);
    let [key] = w.requests().try_into().unwrap();
    w.all_pass(&[1]);
    assert_eq!(
        w.requests().len(),
        1,
        "nobody knows yet whether the provisioner got the request"
    );
    w.event(answer(&key, "r1", ReplacementState::Configuring, None));
    let cancels: Vec<_> = w
        .core
        .outbox()
        .cancels
        .into_iter()
        .map(|(_, id)| id)
        .collect();
    assert_eq!(cancels, ["r1".parse::<ReplacementId>().unwrap()]);
    w.event(answer(&key, "r1", ReplacementState::Cancelled, None));
    assert_eq!(w.core.outbox(), Outbox::default());
}

#[test]
fn failing_in_one_of_two_services_starts_no_replacement() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    for _ in 0..2 {
        w.event(probe(service(443), dest(1, 8443), FAIL));
    }
    w.passes(60);
    assert_eq!(
        (w.in_service(80), w.in_service(443)),
        (vec![1, 2, 3], vec![2])
    );
    assert_eq!(w.requests(), []);
}

#[test]
fn a_refused_request_is_not_made_again_at_once() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.passes(10);
    let [key] = w.requests().try_into().unwrap();
    w.event(Event::Refused(key.clone(), "role_unknown".into()));
    w.passes(29);
    assert_eq!(w.requests(), []);
    w.passes(1);
    let [again] = w.requests().try_into().unwrap();
    assert!(
        again.number > key.number,
        "a new key: the old one has its answer"
    );
}

#[test]
fn a_restart_adopts_what_it_finds() {
    let mut kernel = full_kernel();
    kernel
        .get_mut(&service(80))
        .unwrap()
        .insert(dest(1, 80), attrs(3));
    kernel.get_mut(&service(80)).unwrap().remove(&dest(2, 80));
    let memory = World::fresh().core.memory();
    let mut w = World::new(Recall::Known(memory), kernel.clone());
    assert_eq!(
        w.kernel(),
        kernel,
        "of unknown health: it keeps the weight that it has, or its absence"
    );
    w.probe(1, Outcome::Pass);
    assert_eq!(
        w.core.desired(service(80)).unwrap().service.dests[&dest(1, 80)],
        attrs(5)
    );
    w.probe(2, Outcome::Pass);
    assert_eq!(
        w.in_service(80),
        [1, 3],
        "one that was found taken out needs rise passes"
    );
    w.probe(2, Outcome::Pass);
    assert_eq!(w.in_service(80), [1, 2, 3]);
}

/// The first service, where either of a plain check and an agent is enough.
fn advised(kernel: Kernel) -> World {
    let check = "check = { interval = \"1s\", rise = 2, fall = 2 }\nreal_server = [{ address = \"10.0.0.1:80\"";
    let agent = "check = [{ interval = \"1s\", rise = 2, fall = 2 }, { interval = \"1s\", connect_port = 9999, agent = {} }]\nchecks_needed = 1\nreal_server = [{ address = \"10.0.0.1:80\"";
    let text = CONFIG.replacen(check, agent, 1);
    let memory = World::fresh().core.memory();
    World::of(&text, Recall::Known(memory), kernel)
}

#[test]
fn a_drained_server_keeps_its_weight_over_a_restart_until_its_agent_has_spoken() {
    let mut kernel = full_kernel();
    let drained = (dest(1, 80), attrs(0));
    kernel.get_mut(&service(80)).unwrap().extend([drained]);
    for (says, weight) in [
        (Ok(None), 5),
        (Ok(Some(Advice::Percent(0))), 0),
        // It may have been drained by hand; an agent that is gone has no say.
        (Err(FailReason::Refused), 5),
    ] {
        let mut w = advised(kernel.clone());
        w.probe(1, Outcome::Pass);
        assert!(w.core.verdict(service(80), dest(1, 80)).unwrap().is_up());
        let has = |w: &World| w.kernel()[&service(80)][&dest(1, 80)];
        assert_eq!(has(&w), attrs(0), "its agent was not heard yet");
        let slot = Slot {
            service: service(80),
            dest: dest(1, 80),
            check: 1,
        };
        let mut probe = |found| {
            let slots = [slot].into();
            w.core.handle(Event::Probe { slots, found }, at(1))
        };
        // Nothing was heard where this host could not ask.
        let local = Found::of(Outcome::Fail(FailReason::Local), Duration::ZERO);
        for _ in 0..5 {
            assert!(!probe(local.clone()).dirty.contains(&service(80)));
        }
        let mut found = Found::of(Outcome::Pass, Duration::ZERO);
        match says {
            Ok(advice) => found.advice = advice,
            Err(reason) => found.outcome = Outcome::Fail(reason),
        }
        let mut times = (1..=3).filter(|_| probe(found.clone()).dirty.contains(&service(80)));
        let heard = times.next();
        let once = if says.is_ok() { 1 } else { 2 };
        assert_eq!(heard, Some(once), "one refusal says nothing yet");
        assert_eq!(has(&w), attrs(weight), "{says:?}");
    }
}

#[test]
fn a_restart_asks_again_with_the_same_key() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.passes(10);
    let asked = w.requests();
    let text = serde_json::to_vec(&w.core.memory()).unwrap();
    let recalled = recall(Some(&text), &"lb1".parse().unwrap());
    let w2 = World::new(recalled, w.kernel());
    assert_eq!(w2.requests(), asked);
}

#[test]
fn a_failure_of_another_boot_is_counted_from_this_one() {
    let mut w = World::fresh();
    w.now = 500;
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.passes(10);
    let text = serde_json::to_string(&w.core.memory()).unwrap();
    assert_eq!(w.core.memory().incidents[0].since, at(500));
    let rebooted = text.replace("\"boot\"", "\"another boot\"");
    assert_ne!(text, rebooted);
    let recalled = recall(Some(rebooted.as_bytes()), &"lb1".parse().unwrap());
    let w2 = World::new(recalled, w.kernel());
    assert_eq!(w2.requests(), w.requests());
    assert_eq!(w2.core.memory().incidents[0].since, at(0));
}

#[test]
fn a_check_result_touches_its_own_service_and_only_if_it_changes_something() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    let probe = |outcome| probe(service(80), dest(2, 80), outcome);
    for _ in 0..3 {
        let fx = w.core.handle(probe(Outcome::Pass), at(1));
        assert_eq!(fx, Effects::default(), "up, and passes");
    }
    let fx = w.core.handle(probe(FAIL), at(2));
    assert_eq!(fx, Effects::default(), "one failure is no verdict");
    let fx = w.core.handle(probe(FAIL), at(3));
    assert_eq!(fx.dirty, [service(80)].into());
}

#[test]
fn while_nobody_knows_the_stand_ins_no_stranger_is_removed() {
    let stranger = |kernel: &mut Kernel| {
        kernel
            .get_mut(&service(80))
            .unwrap()
            .insert(dest(9, 80), attrs(5));
    };
    for state_file in [
        None,
        Some(&b"garbage"[..]),
        Some(&br#"{"version":2,"x":1}"#[..]),
    ] {
        let mut kernel = full_kernel();
        stranger(&mut kernel);
        let recalled = recall(state_file, &"lb1".parse().unwrap());
        assert!(matches!(recalled, Recall::Forgot(_)));
        let mut w = World::new(recalled, kernel);
        w.all_pass(&[1, 2, 3]);
        w.dies(1);
        w.event(Event::ProvisionerSilent("connection refused".into()));
        w.passes(100);
        assert_eq!(w.in_service(80), [2, 3, 9]);
        assert_eq!(
            w.requests(),
            [],
            "who stands in for whom is not known: nobody is asked for a spare"
        );
        assert!(!w.core.may_write_memory());
        let warnings = w.core.status(at(w.now)).warnings;
        assert!(
            warnings.iter().any(|l| l.contains("state file")),
            "{warnings:?}"
        );
        // The provisioner speaks: 9 is the stand-in of 1, and no blink on the way.
        w.members(vec![member("r1", 1, 9, Want::Attach)]);
        assert_eq!(w.in_service(80), [2, 3, 9]);
        assert!(w.core.may_write_memory());
        w.passes(100);
        assert_eq!(w.requests(), []);
    }
}

#[test]
fn a_stranger_that_the_provisioner_does_not_know_goes() {
    let mut kernel = full_kernel();
    kernel
        .get_mut(&service(80))
        .unwrap()
        .insert(dest(9, 80), attrs(5));
    let mut w = World::new(Recall::Forgot("there is no state file".into()), kernel);
    w.members(vec![]);
    assert_eq!(w.in_service(80), [1, 2, 3]);
}

#[test]
fn a_stand_in_that_the_provisioner_forgot_keeps_its_place() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.members(vec![member("r1", 1, 9, Want::Attach)]);
    w.all_pass(&[9]);
    let notes = w.members(vec![]);
    assert_eq!(notes, [Note::Unlisted("r1".parse().unwrap())]);
    assert_eq!(w.in_service(80), [2, 3, 9]);
    w.members(vec![member("r1", 1, 9, Want::Withdraw)]);
    assert_eq!(w.in_service(80), [2, 3]);
    let confirmed = ("r1".parse().unwrap(), Want::Withdraw);
    assert!(!w.core.outbox().confirms.contains(&confirmed), "it drains");
    w.counted(Some(0));
    assert!(w.core.outbox().confirms.contains(&confirmed));
    w.event(Event::Confirmed("r1".parse().unwrap(), Want::Withdraw));
    assert_eq!(w.core.stand_ins_now().len(), 0);
}

#[test]
fn a_stand_in_that_never_gets_in_holds_up_nobody_for_ever() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    // It never passes a check here: offered, not in service.
    w.members(vec![member("m1", 1, 9, Want::Attach)]);
    w.dies(2);
    w.passes(10);
    assert_eq!(
        w.core.guard(ip(2), at(w.now)),
        Some(Guard::AtOnce { other: ip(1) })
    );
    w.passes(50);
    assert_eq!(w.requests().len(), 1);
    let warnings = w.core.status(at(w.now)).warnings;
    assert!(
        warnings
            .iter()
            .any(|l| l.contains("spare9 is not in service")),
        "{warnings:?}"
    );
}

#[test]
fn a_mended_server_that_was_drawn_as_a_spare_serves_in_both_places_it_has() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.members(vec![member("m1", 1, 9, Want::Attach)]);
    w.all_pass(&[9, 1]);
    assert_eq!(w.in_service(80), [2, 3, 9]);
    w.dies(2);
    let both = vec![
        member("m1", 1, 9, Want::Attach),
        member("m2", 2, 1, Want::Attach),
    ];
    w.members(both);
    assert_eq!(w.in_service(80), [1, 3, 9]);
    assert!(
        w.core
            .outbox()
            .confirms
            .contains(&("m2".parse().unwrap(), Want::Attach))
    );
}

#[test]
fn what_was_found_at_the_start_lets_nobody_in_unchecked_later() {
    let mut kernel = full_kernel();
    kernel
        .get_mut(&service(80))
        .unwrap()
        .insert(dest(9, 80), attrs(5));
    let mut w = World::new(Recall::Forgot("there is no state file".into()), kernel);
    w.members(vec![member("m1", 1, 9, Want::Attach)]);
    w.all_pass(&[1, 2, 3, 9]);
    w.members(vec![member("m1", 1, 9, Want::Withdraw)]);
    w.counted(Some(0));
    w.event(Event::Confirmed("m1".parse().unwrap(), Want::Withdraw));
    w.members(vec![member("m2", 2, 9, Want::Attach)]);
    assert!(!w.in_service(80).contains(&9), "nobody has probed it since");
}

#[test]
fn a_replaced_stand_in_is_not_asked_for_again() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.members(vec![member("m1", 1, 9, Want::Attach)]);
    w.all_pass(&[9]);
    w.event(Event::Confirmed("m1".parse().unwrap(), Want::Attach));
    w.dies(9);
    w.passes(10);
    assert_eq!(w.requests().len(), 1);
    let both = vec![
        member("m1", 1, 9, Want::Attach),
        member("m2", 1, 8, Want::Attach),
    ];
    w.members(both);
    w.all_pass(&[8]);
    w.event(Event::Confirmed("m2".parse().unwrap(), Want::Attach));
    let notes = w.passes(100);
    assert_eq!((w.requests(), notes), (vec![], vec![]));
}

#[test]
fn what_failed_before_a_stop_of_this_process_must_show_again_that_it_fails() {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.now += 600;
    w.event(Event::Woke);
    w.passes(9);
    assert_eq!(w.requests(), []);
    w.passes(1);
    assert_eq!(w.requests().len(), 1);
}

#[derive(Clone, Debug)]
enum Op {
    Probe(u8, bool),
    Wait(u64),
    Answer(ReplacementState),
    Attach(u8),
    Withdraw,
    Silent,
    Restart { keep_file: bool },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (prop::sample::select(vec![1u8, 2, 3, 8, 9]), any::<bool>()).prop_map(|(n, p)| Op::Probe(n, p)),
        3 => (0u64..15).prop_map(Op::Wait),
        2 => prop::sample::select(ReplacementState::ALL.to_vec()).prop_map(Op::Answer),
        2 => (8u8..10).prop_map(Op::Attach),
        1 => Just(Op::Withdraw),
        1 => Just(Op::Silent),
        1 => any::<bool>().prop_map(|keep_file| Op::Restart { keep_file }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happens in whatever order, these hold after every step.
    #[test]
    fn invariants(ops in prop::collection::vec(op(), 1..120)) {
        let mut w = World::fresh();
        let mut listed: Vec<Member> = Vec::new();
        let mut seen: BTreeSet<IncidentKey> = BTreeSet::new();
        let mut heard = true;
        for (step, op) in ops.into_iter().enumerate() {
            let before = w.kernel();
            let up: BTreeSet<_> = w.core.health.iter().flat_map(|(k, dests)| dests.iter().filter(|(_, s)| s.verdict().is_up()).map(|(d, _)| (*k, *d))).collect();
            let asked_before: BTreeSet<_> = w.requests().into_iter().collect();
            match &op {
                Op::Probe(n, pass) => drop(w.probe(*n, if *pass { Outcome::Pass } else { FAIL })),
                Op::Wait(s) => drop(w.passes(*s)),
                Op::Answer(state) => {
                    if let Some(key) = asked_before.first() {
                        let id = format!("r-{}", key.number);
                        w.event(answer(key, &id, *state, (*state == ReplacementState::Pending).then_some("no_spare")));
                    }
                }
                Op::Attach(spare) => {
                    if !listed.iter().any(|m| m.spare.addresses.contains(&ip(*spare))) {
                        listed.push(member(&format!("m{step}"), 1 + spare % 3, *spare, Want::Attach));
                    }
                    heard = true;
                    w.members(listed.clone());
                }
                Op::Withdraw => {
                    if let Some(mut m) = listed.pop() {
                        m.want = Want::Withdraw;
                        w.members(listed.iter().cloned().chain([m.clone()]).collect());
                        w.counted(Some(0));
                        w.event(Event::Confirmed(m.replacement, Want::Withdraw));
                        heard = true;
                    }
                }
                Op::Silent => drop(w.event(Event::ProvisionerSilent("no route".into()))),
                Op::Restart { keep_file } => {
                    let file = serde_json::to_vec(&w.core.memory()).unwrap();
                    let keep = *keep_file && w.core.may_write_memory();
                    let recalled = recall(keep.then_some(&file), &"lb1".parse().unwrap());
                    let now = w.now;
                    let wall = WallMillis(1_000_000 + i64::try_from(step).unwrap() * 1000);
                    let config = Arc::clone(&w.core.config);
                    let start = Start { now: at(now), wall, boot_id: "boot".into(), recall: recalled, kernel: before.clone(), dropped: BTreeMap::new(), marked: BTreeSet::new() };
                    w.core = Core::new(config, start);
                    heard = false;
                    // Nothing blinks: what was there stays exactly as it was.
                    prop_assert_eq!(w.kernel(), before.clone(), "a restart changed the table");
                }
            }
            // One replacement at a time, each failure under one key, none without a server that is up.
            let waits = |s: &Stage| {
                matches!(s, Stage::Requested { standing: Some((ReplacementState::Pending, Some(_))), .. })
            };
            let runs = |i: &&Incident| matches!(i.stage, Stage::Requested { .. }) && !waits(&i.stage);
            let running = w.core.incidents.values().filter(runs).count();
            for key in w.requests() {
                if seen.contains(&key) { continue }
                prop_assert!(seen.iter().all(|k| k.number < key.number), "a number was used twice");
                prop_assert!(running == 1, "asked for another while one runs");
                prop_assert!(heard, "a spare was asked for before the stand-ins were known");
                prop_assert!(w.core.health.values().flat_map(BTreeMap::values).any(|s| s.verdict().is_up()), "a spare was asked for while all are down");
                prop_assert!(w.core.standings(key.failed).all(|s| s.verdict().down_since().is_some()));
                seen.insert(key);
            }
            for key in [service(80), service(443)] {
                let want = w.core.desired(key).unwrap();
                for (d, a) in &want.service.dests {
                    match w.core.verdict(key, *d) {
                        // Down is out, unknown keeps what it had, up has its configured weight.
                        Some(h) => prop_assert!(h.down_since().is_none(), "{} is down and in", d),
                        None if a.weight == Weight::QUIESCED => {
                            let place = OrderedPlace { service: key, server: *d };
                            prop_assert!(w.core.forgot.is_some() || w.core.draining().contains(&place));
                            continue;
                        }
                        None => prop_assert!(w.core.forgot.is_some(), "{} is a stranger", d),
                    }
                    prop_assert!(!want.out.contains(d) && a.weight.get() > 0);
                }
                // A server that was up stays in unless it failed or a stand-in has its place.
                for (_, d) in up.iter().filter(|(k, _)| *k == key) {
                    let h = w.core.verdict(key, *d);
                    let replaced = listed.iter().any(|m| m.origins.contains(&d.addr));
                    if h.is_some_and(Health::is_up) && !replaced {
                        prop_assert!(want.service.dests.contains_key(d), "{} was dropped", d);
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn no_state_file_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(recall(Some(&bytes), &"lb1".parse().unwrap()));
    }
}

#[test]
fn fifty_services_on_ten_servers_cost_ten_probes() {
    let servers: Vec<String> = (1..=10)
        .map(|n| format!("{{ address = \"10.0.0.{n}:80\" }}"))
        .collect();
    let mut text = "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n".to_owned();
    for n in 1..=50 {
        text.push_str(&format!(
            "[[virtual_service]]\naddress = \"192.0.2.{n}:80\"\nscheduler = \"rr\"\nforward = \"nat\"\ncheck.http.path = \"/\"\nreal_server = [{}]\n",
            servers.join(", ")
        ));
    }
    let config = config::director::parse(Path::new("d.toml"), &text).unwrap();
    let start = Start {
        now: at(0),
        wall: WallMillis(0),
        boot_id: "boot".into(),
        recall: Recall::Forgot("there is no state file".into()),
        kernel: BTreeMap::new(),
        dropped: BTreeMap::new(),
        marked: BTreeSet::new(),
    };
    let mut core = Core::new(Arc::new(config), start);
    let targets = core.targets();
    assert_eq!(targets.len(), 10);
    assert!(targets.values().all(|slots| slots.len() == 50));
    // One report is each service's.
    let slots: Arc<[Slot]> = targets.into_values().next().unwrap().into();
    let found = Found::of(Outcome::Pass, Duration::ZERO);
    let fx = core.handle(Event::Probe { slots, found }, at(1));
    assert_eq!((fx.dirty.len(), fx.notes.len()), (50, 50));
}
