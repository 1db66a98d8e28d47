//! Random sequences of everything that can happen: check results, orders, the provisioner's answers, reloads,
//! restarts, links and witnesses. What an operator relies on holds after every step.

use super::{standbys::standby, *};
use crate::model::{Family, Order, Phase, Wish, wire::Standby};

const HEAD: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
drain_timeout = "20s"
[provisioner]
address = "10.77.0.1"
[replacement]
replace_after = "5s"
at_once = 2
at_once_per_service = 2
per_hour = 1000
"#;

const MASS: &str = "[mass_failure]\nwitnesses = [\"10.0.0.254\"]\nwithin = \"5s\"\n";

const WEB: &str = r#"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
check = { interval = "1s", rise = 1, fall = 2 }
damping = { half_life = "0s" }
panic_threshold = "50%"
quorum = 2
hysteresis = 1
sorry_server = [{ address = "10.0.0.7:80" }]
real_server = [{ address = "10.0.0.1:80", weight = 5 }, { address = "10.0.0.2:80" }, { address = "10.0.0.3:80" }, { address = "10.0.0.4:80" }]
"#;

const TLS: &str = r#"
[[virtual_service]]
address = "192.0.2.1:443"
scheduler = "wlc"
forward = "nat"
check = { interval = "1s", rise = 1, fall = 2 }
real_server = [{ address = "10.0.0.1:8443", weight = 7 }, { address = "10.0.0.2:8443" }]
"#;

/// Configurations that reloads go between.
fn texts() -> Vec<String> {
    let less = WEB.replace(r#", { address = "10.0.0.4:80" }"#, "");
    let new = "forward = \"nat\"\nslow_start = \"10s\"\ninitial = \"up\"";
    let slow = WEB.replace("forward = \"nat\"", new);
    vec![
        format!("{HEAD}{WEB}{TLS}"),
        format!("{HEAD}{MASS}{WEB}{TLS}"),
        format!("{HEAD}{MASS}{less}{TLS}"),
        format!("{HEAD}{WEB}"),
        format!("{HEAD}{}{TLS}", WEB.replace("fall = 2", "fall = 3")),
        format!("{HEAD}{MASS}{slow}{TLS}"),
        format!("{HEAD}{}", slow.replace("fall = 2", "fall = 3")),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Probe(u8, Outcome),
    Wait(u64),
    Order(u8, Option<Wish>, Option<u64>),
    Counted(u64),
    Answer(ReplacementState),
    /// The provisioner has a spare ready for what was asked for first.
    Provide,
    /// It keeps a spare warm, or none any more.
    Warm(bool),
    /// It confirms what is confirmed, and takes back what is given back.
    Settle,
    Silent,
    Reload(usize),
    Restart,
    CutOff(bool),
    Witnessed(usize),
    Woke,
}

fn op() -> impl Strategy<Value = Op> {
    let servers = prop::sample::select(vec![1u8, 2, 3, 4, 7, 20, 21, 22, 23]);
    let outcomes = prop::sample::select(vec![
        Outcome::Pass,
        Outcome::Pass,
        FAIL,
        Outcome::Fail(FailReason::TimedOut(Phase::Connect)),
        Outcome::Fail(FailReason::Status(503)),
        Outcome::Fail(FailReason::Local),
    ]);
    let wishes = prop::sample::select(vec![
        None,
        None,
        Some(Wish::Disabled),
        Some(Wish::Drained),
        Some(Wish::Maintenance),
        Some(Wish::Weight(Weight::of(3))),
    ]);
    let ends = prop::option::of(1u64..20);
    prop_oneof![
        24 => (servers.clone(), outcomes).prop_map(|(n, o)| Op::Probe(n, o)),
        5 => (0u64..8).prop_map(Op::Wait),
        3 => (servers, wishes, ends).prop_map(|(n, w, e)| Op::Order(n, w, e)),
        2 => (0u64..3).prop_map(Op::Counted),
        2 => prop::sample::select(ReplacementState::ALL.to_vec()).prop_map(Op::Answer),
        3 => Just(Op::Provide),
        2 => any::<bool>().prop_map(Op::Warm),
        2 => Just(Op::Settle),
        1 => Just(Op::Silent),
        1 => (0usize..7).prop_map(Op::Reload),
        1 => Just(Op::Restart),
        1 => any::<bool>().prop_map(Op::CutOff),
        2 => (0usize..2).prop_map(Op::Witnessed),
        1 => Just(Op::Woke),
    ]
}

type Wanted = BTreeMap<ServiceKey, plan::Want>;

/// A core, a kernel that obeys it, and a provisioner with spares.
struct Play {
    w: World,
    config: usize,
    /// What was published: only what the core said may differ was computed anew.
    published: Wanted,
    members: Vec<Member>,
    /// Spares that are kept warm.
    warm: Vec<Standby>,
    next: u8,
}

use crate::reconcile::plan;

fn all(core: &Core) -> Wanted {
    let keys = core.services();
    keys.filter_map(|key| Some((key, core.desired(key)?)))
        .collect()
}

impl Play {
    fn new() -> Self {
        let mut w = World::of(&texts()[0], Recall::Forgot("new".into()), Kernel::new());
        w.now = 100;
        w.core.handle(Event::Members(Members::default()), at(100));
        let published = all(&w.core);
        Self {
            w,
            config: 0,
            published,
            members: Vec::new(),
            warm: Vec::new(),
            next: 20,
        }
    }

    fn event(&mut self, event: Event) {
        let fx = self.w.core.handle(event, at(self.w.now));
        self.publish(&fx);
        let kernel = self.published.iter();
        let kernel = kernel.map(|(key, want)| (*key, Arc::new(want.service.dests.clone())));
        let applied = Applied {
            kernel: kernel.collect(),
            ..Applied::default()
        };
        let fx = self.w.core.handle(Event::Applied(applied), at(self.w.now));
        self.publish(&fx);
    }

    fn publish(&mut self, fx: &Effects) {
        for key in &fx.dirty {
            match self.w.core.desired(*key) {
                Some(want) => drop(self.published.insert(*key, want)),
                None => drop(self.published.remove(key)),
            }
        }
    }

    fn list(&mut self) {
        let members = self.members.clone();
        self.event(Event::Members(Members {
            version: 1,
            members,
            standbys: self.warm.clone(),
        }));
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Probe(n, outcome) => {
                let targets = self.w.core.targets().into_values().flatten();
                let slots: Vec<_> = targets.filter(|s| s.dest.addr == ip(*n)).collect();
                for slot in slots {
                    self.event(probe(slot.service, slot.dest, *outcome));
                }
            }
            Op::Wait(seconds) => {
                // No deadline is slept through.
                let until = at(self.w.now + seconds);
                while let Some(due) = self.w.core.next_deadline(at(self.w.now))
                    && due <= until
                {
                    self.w.now = due.since_boot().as_secs();
                    self.event(Event::Tick);
                }
                self.w.now = until.since_boot().as_secs();
                self.event(Event::Tick);
            }
            Op::Order(n, wish, ends) => {
                let places = self.w.core.places_of(Some((ip(*n), None)), None);
                let wall = self.wall();
                let order = wish.map(|wish| Order {
                    ends: ends.map(|s| wall.after(Duration::from_secs(s))),
                    drain_ends: Some(wall.after(Duration::from_secs(10))),
                    ..Order::new(wish, "root".into(), wall)
                });
                self.event(Event::Ordered(places, order, wall));
            }
            Op::Counted(count) => {
                let counts = self.w.core.draining().into_iter();
                let counts = counts.map(|place| (place, Some(*count)));
                self.event(Event::Counted(counts.collect()));
            }
            Op::Answer(state) => {
                if let Some(key) = self.w.requests().first() {
                    let id = format!("r-{}", key.number);
                    self.event(answer(key, &id, *state, Some("so it is")));
                }
            }
            Op::Provide => {
                let requests = self.w.requests();
                let Some(key) = requests.first() else { return };
                let place = self
                    .members
                    .iter()
                    .find(|m| m.spare.addresses.contains(&key.failed));
                let origins = place.map_or_else(|| vec![key.failed], |m| m.origins.clone());
                let id = format!("m-{}", key.number);
                if self.members.iter().any(|m| m.replacement.as_str() == id) {
                    return;
                }
                let mut made = member(&id, 1, self.next, Want::Attach);
                made.origins = origins;
                // One that is warm goes first; who is watched for it may not know of it yet.
                match self.warm.pop() {
                    Some(warm) => made.spare = warm.spare,
                    None => self.next = 20 + (self.next - 19) % 100,
                }
                let slots: Vec<_> = self.w.core.slots(&made).collect();
                let up = |(key, dest): &(ServiceKey, DestKey)| {
                    let standing = self.w.core.watched_as(*key, *dest);
                    standing.is_some_and(|s| s.verdict().is_up())
                };
                let warm: Vec<_> = slots.into_iter().filter(up).collect();
                self.members.push(made);
                self.list();
                for (key, dest) in warm {
                    let verdict = self.w.core.verdict(key, dest);
                    assert!(verdict.is_some_and(Health::is_up), "its verdict is lost");
                }
            }
            Op::Warm(true) => {
                self.warm.push(standby(self.next, &[1, 2, 3, 4]));
                self.next = 20 + (self.next - 19) % 100;
                self.list();
            }
            Op::Warm(false) => {
                self.warm.clear();
                self.list();
            }
            Op::Settle => {
                let outbox = self.w.core.outbox();
                for (id, want) in outbox.confirms {
                    self.event(Event::Confirmed(id.clone(), want));
                    self.members
                        .retain(|m| m.replacement != id || want == Want::Attach);
                    // Who was confirmed in the place of another ends that one.
                    let of = |m: &&Member| m.replacement == id;
                    let origins = self.members.iter().find(of).map(|m| m.origins.clone());
                    for m in &mut self.members {
                        let same = Some(&m.origins) == origins.as_ref();
                        if same && m.replacement < id {
                            m.want = Want::Withdraw;
                        }
                    }
                }
                for m in &mut self.members {
                    if outbox.releases.contains(&m.replacement) {
                        m.want = Want::Withdraw;
                    }
                }
                self.list();
            }
            Op::Silent => self.event(Event::ProvisionerSilent("no route".into())),
            Op::Reload(n) => {
                self.config = *n;
                let config = config::director::parse(Path::new("d.toml"), &texts()[*n]).unwrap();
                let (config, found) = (Arc::new(config), Kernel::new());
                self.event(Event::Reload(Box::new(Reload { config, found })));
            }
            Op::Restart => self.restart(),
            Op::CutOff(cut) => {
                let servers = [1, 2].into_iter().filter(|_| *cut);
                let servers = servers.map(|n| (ip(n), "eth1".to_owned()));
                self.event(Event::CutOff(servers.collect()));
            }
            Op::Witnessed(n) if self.w.core.asks_witnesses() => self.event(Event::Witnessed(*n)),
            Op::Witnessed(_) => {}
            Op::Woke => self.event(Event::Woke),
        }
    }

    fn wall(&self) -> WallMillis {
        WallMillis(i64::try_from(self.w.now).unwrap() * 1000)
    }

    fn restart(&mut self) {
        let file = serde_json::to_vec(&self.w.core.memory()).unwrap();
        let config = Arc::clone(self.w.core.config());
        let named = |key: &ServiceKey| config.services.contains_key(key);
        let table = || {
            self.published
                .iter()
                .map(|(key, want)| (*key, want.service.clone()))
        };
        let kernel = table().filter(|(key, _)| named(key));
        let start = Start {
            now: at(self.w.now),
            wall: self.wall(),
            boot_id: "boot".into(),
            recall: recall(Some(&file), &"lb1".parse().unwrap()),
            kernel: kernel.map(|(key, service)| (key, service.dests)).collect(),
            dropped: table().filter(|(key, _)| !named(key)).collect(),
            marked: BTreeSet::new(),
        };
        self.w.core = Core::new(Arc::clone(&config), start);
        self.published = all(&self.w.core);
    }

    fn weight(&self, key: ServiceKey, dest: DestKey) -> Option<u32> {
        let want = self.published.get(&key)?;
        want.service.dests.get(&dest).map(|a| a.weight.get())
    }

    fn check(&self, seen: &mut BTreeSet<IncidentKey>) -> Result<(), TestCaseError> {
        let core = &self.w.core;
        let now = at(self.w.now);
        prop_assert_eq!(
            &self.published,
            &all(core),
            "a service differs of which that was not said"
        );
        self.check_requests(seen)?;
        self.check_warm()?;
        for (key, config) in &core.config.services {
            // An operator's word always wins.
            for (place, ordered) in core.orders.iter().filter(|(p, _)| p.service == *key) {
                let weight = self.weight(*key, place.server);
                match ordered.order.wish {
                    Wish::Disabled => prop_assert_eq!(weight, None),
                    Wish::Drained | Wish::Maintenance => {
                        prop_assert!(weight.is_none_or(|w| w == 0))
                    }
                    Wish::Weight(_) => {}
                }
            }
            // Who is put aside counts nowhere; of the others the last ones stay.
            let sorry = |d: &DestKey| config.sorry.contains_key(d);
            let taking = self.published[key].service.dests.iter();
            let taking = taking.filter(|(_, a)| a.weight.get() > 0).map(|(d, _)| *d);
            let taking: Vec<DestKey> = taking.collect();
            let able = config.servers.keys().filter(|d| {
                let placed = core.is_put_aside(*key, **d);
                let up = core.verdict(*key, **d).is_some_and(Health::is_up);
                !placed && (up || core.fallen.contains_key(&(*key, **d)))
            });
            let least = core.least(*key, config).min(able.count());
            let hands_over = taking.iter().any(sorry);
            prop_assert!(
                hands_over || taking.len() >= least,
                "{} has {:?}, of {} at least",
                key,
                taking,
                least
            );
            // A failed server is in for a reason that is told.
            for dest in taking.iter().filter(|d| !sorry(d)) {
                let Some(since) = core.verdict(*key, *dest).and_then(Health::down_since) else {
                    continue;
                };
                let doubted = core.doubt(dest.addr, since).is_some();
                let panics = core.panicking(*key).contains(dest);
                prop_assert!(doubted || panics, "{} is down and in {}", dest, key);
                prop_assert!(
                    !panics || core.panics[key].contains(dest),
                    "nobody was told"
                );
            }
        }
        // Every request that waits says why.
        for (server, incident) in &core.incidents {
            if incident.stage == Stage::Open {
                prop_assert!(
                    core.guard(*server, now).is_some(),
                    "{} waits for nothing",
                    server
                );
            }
        }
        Ok(())
    }

    /// A warm spare is in no service, and nobody counts it.
    fn check_warm(&self) -> Result<(), TestCaseError> {
        let core = &self.w.core;
        for warm in &self.warm {
            let is = |dest: &DestKey| warm.spare.addresses.contains(&dest.addr);
            for key in core.config.services.keys() {
                let want = &self.published[key];
                let there = want.service.dests.keys().chain(&want.out);
                prop_assert!(!there.copied().any(|d| is(&d)), "{:?} is in {}", warm, key);
            }
            let counted = core.watched_servers();
            prop_assert!(!counted.iter().any(|(_, dest)| is(dest)));
            let incidents = core.incidents.keys().chain(core.places.keys());
            prop_assert!(
                !incidents
                    .into_iter()
                    .any(|a| warm.spare.addresses.contains(a))
            );
        }
        Ok(())
    }

    fn check_requests(&self, seen: &mut BTreeSet<IncidentKey>) -> Result<(), TestCaseError> {
        let core = &self.w.core;
        let now = at(self.w.now);
        let requests = self.w.requests();
        let mut failed: Vec<IpAddr> = requests.iter().map(|key| key.failed).collect();
        failed.dedup();
        prop_assert_eq!(failed.len(), requests.len(), "two spares for one failure");
        for key in &requests {
            if !seen.insert(key.clone()) {
                continue;
            }
            let server = key.failed;
            prop_assert!(
                core.standings(server).next().is_some(),
                "{} is put aside, or gone",
                server
            );
            prop_assert!(
                core.standings(server)
                    .all(|s| s.verdict().down_since().is_some())
            );
            prop_assert!(!core.cut.contains_key(&server), "its link is down");
            let covers =
                |m: &Member| m.origins.contains(&server) && !m.spare.addresses.contains(&server);
            prop_assert!(!core.attached().any(covers), "{} has a stand-in", server);
            let up = core.places.values().flatten().any(|(k, d)| {
                let ours = Family::of(d.addr) == Family::of(server) && !core.is_put_aside(*k, *d);
                ours && core.verdict(*k, *d).is_some_and(Health::is_up)
            });
            prop_assert!(up, "asked for while nobody is up");
            let fell = core
                .standings(server)
                .filter_map(|s| s.verdict().down_since())
                .max();
            prop_assert!(fell.is_none_or(|fell| core.doubt(server, fell).is_none()));
            prop_assert!(fell.is_none_or(|fell| now.since(fell) >= Duration::from_secs(5)));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_sequence_breaks_what_an_operator_relies_on(ops in prop::collection::vec(op(), 1..160)) {
        let mut play = Play::new();
        let mut seen = BTreeSet::new();
        for op in &ops {
            play.step(op);
            play.check(&mut seen)?;
        }
    }

    /// Warm spares that come, pass and fail leave everything of all others as it is without them.
    #[test]
    fn a_warm_spare_changes_nothing_for_anybody_else(
        ops in prop::collection::vec((op(), 120u8..122, any::<bool>()), 1..100),
    ) {
        let (mut with, mut without) = (Play::new(), Play::new());
        let warm = vec![standby(120, &[1, 2, 3, 4]), standby(121, &[1])];
        for (op, n, passes) in &ops {
            if let Op::Warm(_) = op {
                continue;
            }
            let list = |play: &mut Play, standbys| {
                let (version, members) = (1, play.members.clone());
                play.event(Event::Members(Members { version, members, standbys }));
            };
            list(&mut with, warm.clone());
            list(&mut without, Vec::new());
            with.step(&Op::Probe(*n, if *passes { Outcome::Pass } else { FAIL }));
            with.step(op);
            without.step(op);
            prop_assert_eq!(&with.published, &without.published);
            let (a, b, now) = (&with.w.core, &without.w.core, at(with.w.now));
            let (one, other) = (a.status(now), b.status(now));
            prop_assert_eq!(one.services, other.services);
            prop_assert_eq!(one.incidents, other.incidents);
            prop_assert_eq!(&a.quorums, &b.quorums);
            prop_assert_eq!((a.mass, &a.panics, &a.places), (b.mass, &b.panics, &b.places));
            prop_assert_eq!((a.held(now), a.kept_in()), (b.held(now), b.kept_in()));
            // That one of them fails is told, and nothing else.
            let told = Outbox { findings: Findings::default(), ..a.outbox() };
            prop_assert_eq!(told, b.outbox());
            prop_assert_eq!(a.next_deadline(now), b.next_deadline(now));
        }
    }

    /// Where nothing has a memory of its own by design (hysteresis, damping, doubts), two things that happen to
    /// different servers at one time lead to the same table in either order.
    #[test]
    fn the_table_follows_from_the_state_and_not_from_the_order_of_events(
        before in prop::collection::vec((1u8..4, any::<bool>()), 0..30),
        one in (Just(1u8), any::<bool>(), any::<bool>()),
        other in (2u8..4, any::<bool>(), any::<bool>()),
    ) {
        let text = CONFIG.replace("interval", "rise = 1, interval").replace("rise = 2, ", "");
        let text = text.replace("forward = \"nat\"", "forward = \"nat\"\ndamping = { half_life = \"0s\" }");
        let text = text.replace("forward = \"nat\"", "panic_threshold = \"50%\"\nforward = \"nat\"");
        let mut w = World::of(&text, Recall::Forgot("new".into()), Kernel::new());
        w.members(vec![]);
        for (n, pass) in before {
            w.now += 1;
            w.probe(n, if pass { Outcome::Pass } else { FAIL });
        }
        let happen = |core: &mut Core, (n, ordered, good): (u8, bool, bool)| {
            if ordered {
                let wish = Some(Wish::Disabled).filter(|_| !good);
                let order = wish.map(|wish| Order::new(wish, "root".into(), WallMillis(0)));
                let places = core.places_of(Some((ip(n), None)), None);
                core.handle(Event::Ordered(places, order, WallMillis(0)), at(999));
                return;
            }
            let outcome = if good { Outcome::Pass } else { FAIL };
            let slots: Vec<_> = core.targets().into_values().flatten().filter(|s| s.dest.addr == ip(n)).collect();
            for slot in slots {
                core.handle(probe(slot.service, slot.dest, outcome), at(999));
            }
        };
        let (mut a, mut b) = (w.core.clone(), w.core.clone());
        happen(&mut a, one);
        happen(&mut a, other);
        happen(&mut b, other);
        happen(&mut b, one);
        prop_assert_eq!(all(&a), all(&b));
    }
}
