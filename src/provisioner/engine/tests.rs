use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::Semaphore;

use super::*;
use crate::{
    model::{
        EventKind,
        inventory::{Cleanup, ServerState},
        wire::{Confirmation, Findings, RegisteredServer, Replacement, Want},
    },
    provisioner::{
        store::{Asked, CancelOutcome, ConfirmOutcome, RetryOutcome, ServerOutcome, Which},
        testing::*,
    },
};

/// Short pauses; the rest as in production.
const FAST: Settings = Settings {
    retry: Retry {
        tries: 3,
        first: Duration::from_millis(2),
        longest: Duration::from_millis(10),
    },
    at_once: 8,
    installs_at_once: 2,
    look: Duration::from_millis(100),
    look_again: Duration::from_secs(5),
    lease: Duration::from_secs(15),
};

/// Nothing in these tests takes longer unless it hangs.
const SOON: Duration = Duration::from_secs(30);

struct Rig {
    home: Home,
    store: Store,
    hands: FakeHands,
    secrets: Secrets,
    facts: Arc<std::sync::Mutex<Vec<Fact>>>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), StoreError>>,
}

/// A replacement whose reason has this word.
fn says(word: &'static str) -> impl Fn(&Replacement) -> bool {
    move |r| r.reason.as_ref().is_some_and(|r| r.contains(word))
}

/// Waits for what is not said of a replacement.
async fn soon(is: impl AsyncFn() -> bool) {
    let wait = async {
        while !is().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.expect("stuck");
}

impl Rig {
    /// The role's script fails on these spares.
    fn breaks_on(&self, spares: &[&str]) {
        for spare in spares {
            self.hands.temper(spare, |t| {
                t.broken.insert("install:nginx".into());
            });
        }
    }

    async fn new() -> Self {
        let home = Home::of(module_path!()).await;
        let store = home.open().await;
        store.apply(&inventory(), false, "test").await.unwrap();
        let rig = Self {
            home,
            store,
            hands: FakeHands::default(),
            secrets: Secrets::default(),
            facts: Arc::default(),
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        rig.register("lb1").await;
        rig
    }

    async fn register(&self, name: &str) {
        let director = name.parse().unwrap();
        self.store
            .register(&director, &registration(name))
            .await
            .unwrap();
    }

    /// With these servers in its IPv4 service.
    async fn register_at(&self, servers: &[String]) {
        let mut all = registration("lb1");
        let service = &mut all.services[0].servers;
        let like = service[0].clone();
        service.extend(servers.iter().map(|s| RegisteredServer {
            address: ip(s),
            ..like.clone()
        }));
        let director = "lb1".parse().unwrap();
        self.store.register(&director, &all).await.unwrap();
    }

    fn start(&mut self) {
        self.start_at("centre", FAST, self.store.clone());
    }

    fn start_at(&mut self, host: &'static str, settings: Settings, store: Store) {
        let facts = Arc::clone(&self.facts);
        let observer = Observer::new(move |fact| facts.lock().unwrap().push(fact));
        let secrets = self.secrets.clone();
        let (hands, stop) = (Arc::new(self.hands.clone()), self.stop.clone());
        self.tasks
            .spawn(async move { run(store, hands, host, settings, secrets, observer, stop).await });
    }

    /// Has the engine make a spare ready beforehand.
    async fn keep_warm(&self, spare: &str) {
        let mut world = self.store.world().await.unwrap();
        let role = world.roles.get_mut("web.shop.example").unwrap();
        role.spares.keep_warm = 9;
        for (name, server) in &mut world.servers {
            if name != spare && server.state == ServerState::Ready {
                server.state = ServerState::Quarantined;
            }
        }
        let upkeep = world.upkeep(&Default::default()).remove(0);
        assert_eq!(upkeep.server, spare);
        let id = crate::provisioner::store::new_id("warm").unwrap();
        let steps = world.upkeep_steps(&upkeep, id.as_str()).unwrap();
        assert!(self.store.begin_upkeep(&id, &upkeep, &steps).await.unwrap());
        soon(async || self.states().await[spare].0 == ServerState::Standby).await;
    }

    async fn ask(&self, key: &str, failed: &str) -> ReplacementId {
        match self.store.ask(key, &request("lb1", failed)).await.unwrap() {
            Asked::Taken { replacement, .. } => replacement.id,
            other => panic!("{other:?}"),
        }
    }

    async fn until(&self, id: &ReplacementId, is: impl Fn(&Replacement) -> bool) -> Replacement {
        let mut changes = self.store.changes();
        let wait = async {
            loop {
                changes.borrow_and_update();
                let r = self.store.replacement(id).await.unwrap();
                if is(&r) {
                    return r;
                }
                changes.changed().await.unwrap();
            }
        };
        match timeout(SOON, wait).await {
            Ok(r) => r,
            Err(_) => panic!("stuck at {:#?}", self.store.replacement(id).await.unwrap()),
        }
    }

    /// The same where another store handle changes it: that is seen by looking.
    async fn until_other(
        &self,
        id: &ReplacementId,
        is: impl Fn(&Replacement) -> bool,
    ) -> Replacement {
        let wait = async {
            loop {
                let r = self.store.replacement(id).await.unwrap();
                if is(&r) {
                    return r;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(SOON, wait).await {
            Ok(r) => r,
            Err(_) => panic!("stuck at {:#?}", self.store.replacement(id).await.unwrap()),
        }
    }

    async fn until_state(&self, id: &ReplacementId, state: ReplacementState) -> Replacement {
        self.until(id, |r| r.state == state).await
    }

    async fn confirm(&self, id: &ReplacementId) -> ConfirmOutcome {
        let is = Confirmation { is: Want::Attach };
        let director = "lb1".parse().unwrap();
        self.store.confirm(&director, id, is).await.unwrap()
    }

    async fn states(&self) -> BTreeMap<String, (ServerState, Option<String>)> {
        let servers = self.store.servers().await.unwrap();
        servers
            .into_iter()
            .map(|s| (s.server.name, (s.state, s.reason)))
            .collect()
    }
}

#[tokio::test]
async fn configures_a_spare_and_hands_the_role_over() {
    let mut rig = Rig::new().await;
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    let spare = r.spare.unwrap();
    assert_eq!(spare.name, "spare1");
    assert_eq!(spare.addresses, [ip("10.0.0.11"), ip("fd00::11")]);
    let steps: Vec<_> = r.steps.iter().map(|s| s.step.as_str()).collect();
    assert_eq!(
        steps,
        [
            "fence",
            "os",
            "install:storage",
            "install:nginx",
            "configure:storage",
            "configure:nginx",
            "test"
        ]
    );
    assert!(
        r.steps
            .iter()
            .all(|s| s.state == "done" && s.ended_ms.is_some())
    );
    assert_eq!(rig.confirm(&id).await, ConfirmOutcome::Succeeded);
    let servers = rig.store.servers().await.unwrap();
    let spare = servers.iter().find(|s| s.server.name == "spare1").unwrap();
    assert_eq!(spare.state, ServerState::Serving);
    assert_eq!(spare.role.as_deref(), Some("web.shop.example"));
    assert_eq!(spare.by_replacement.as_deref(), Some(id.as_str()));
    assert_eq!(spare.os_seen.as_deref(), Some("debian-12"));
    let web1 = servers.iter().find(|s| s.server.name == "web1").unwrap();
    assert_eq!((web1.state, &web1.role), (ServerState::Failed, &None));
    let facts = rig.facts.lock().unwrap();
    assert_eq!(facts.len(), 7, "{facts:?}");
}

#[tokio::test]
async fn a_broken_spare_is_quarantined_and_the_next_one_taken() {
    let mut rig = Rig::new().await;
    rig.hands
        .temper("spare1", |t| t.broken.extend(["install:nginx".into()]));
    rig.hands
        .temper("spare2", |t| t.shaky.extend([("fence".into(), 99)]));
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare3");
    let why: Vec<_> = r
        .passed_over
        .iter()
        .map(|p| format!("{}: {}", p.server, p.reason))
        .collect();
    assert_eq!(
        why,
        [
            "spare1: install:nginx: script_failed: exit 1",
            "spare2: fence: unreachable: no route"
        ]
    );
    let states = rig.states().await;
    assert_eq!(states["spare1"].0, ServerState::Quarantined);
    assert_eq!(
        states["spare1"].1.as_deref(),
        Some("install:nginx: script_failed: exit 1")
    );
    // Three tries and no more of what may be transient.
    let tries = rig.hands.orders();
    assert_eq!(tries.iter().filter(|o| *o == "spare2 fence").count(), 3);
}

#[tokio::test]
async fn a_transient_error_is_got_over() {
    let mut rig = Rig::new().await;
    rig.hands
        .temper("spare1", |t| t.shaky.extend([("install:nginx".into(), 2)]));
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare1");
    assert_eq!(rig.hands.remote("spare1").starts.len(), 2);
}

#[tokio::test]
async fn another_operating_system_is_passed_over_once_and_remembered() {
    let mut rig = Rig::new().await;
    rig.hands
        .temper("spare1", |t| t.os = Some("debian-11".into()));
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare2");
    assert_eq!(r.passed_over[0].server, "spare1");
    assert!(r.passed_over[0].reason.contains("os_mismatch"));
    let servers = rig.store.servers().await.unwrap();
    let spare1 = servers.iter().find(|s| s.server.name == "spare1").unwrap();
    assert_eq!(spare1.state, ServerState::Ready);
    assert_eq!(spare1.os_seen.as_deref(), Some("debian-11"));
    // The next failure does not even look at it.
    let id = rig.ask("k2", "10.0.0.2").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare3");
    assert_eq!(
        r.passed_over[0].reason,
        "runs debian-11, the role needs debian-12"
    );
    let looks = rig.hands.orders();
    assert_eq!(looks.iter().filter(|o| *o == "spare1 os").count(), 1);
}

#[tokio::test]
async fn with_no_spare_left_it_waits_says_so_and_goes_on_after_a_release() {
    let mut rig = Rig::new().await;
    // Each in another place: the role is not at fault.
    for (spare, step) in [
        ("spare1", "test"),
        ("spare2", "install:nginx"),
        ("spare3", "test"),
    ] {
        rig.hands.temper(spare, |t| t.broken.extend([step.into()]));
    }
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until(&id, |r| r.reason.is_some()).await;
    assert_eq!(r.state, ReplacementState::Pending);
    let reason = r.reason.unwrap();
    assert!(reason.starts_with("no_spare: spare1 (quarantined: test: script_failed"));
    assert!(reason.contains("spare3 (quarantined"));
    rig.hands.temper("spare2", |t| t.broken.clear());
    let released = rig.store.release("spare2", "test").await.unwrap();
    assert_eq!(released, ServerOutcome::Done);
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare2");
    // The second try is another job: the first one's result is not taken for it.
    assert_eq!(rig.hands.remote("spare2").starts.len(), 4);
}

#[tokio::test]
async fn what_is_missing_in_the_inventory_is_waited_for() {
    let mut rig = Rig::new().await;
    rig.register_at(&["10.0.0.77".into()]).await;
    rig.start();
    let id = rig.ask("k1", "10.0.0.77").await;
    let r = rig.until(&id, |r| r.reason.is_some()).await;
    assert!(r.reason.unwrap().starts_with("role_unknown: "));
    let mut more = inventory();
    let web = Some("web.shop.example");
    more.servers
        .insert("web7".into(), server("web7", &["10.0.0.77"], web));
    rig.store.apply(&more, false, "test").await.unwrap();
    rig.until_state(&id, ReplacementState::Attaching).await;
}

#[tokio::test]
async fn a_template_that_cannot_be_rendered_costs_no_spare() {
    let mut rig = Rig::new().await;
    let mut bad = inventory();
    bad.files[0].body = "{{ nothing }}".into();
    rig.store.apply(&bad, false, "test").await.unwrap();
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until(&id, |r| r.reason.is_some()).await;
    let reason = r.reason.unwrap();
    assert!(reason.starts_with("template_error: "), "{reason}");
    assert!(reason.contains("/etc/nginx/conf.d/shop.conf"), "{reason}");
    assert_eq!(rig.hands.orders(), Vec::<String>::new());
    rig.store.apply(&inventory(), false, "test").await.unwrap();
    rig.until_state(&id, ReplacementState::Attaching).await;
}

#[tokio::test]
async fn a_template_that_does_not_fit_one_spare_passes_that_one_over() {
    let mut rig = Rig::new().await;
    let mut picky = inventory();
    picky.files[0].body = "{% if server.name == 'spare1' %}{{ nothing }}{% endif %}".into();
    rig.store.apply(&picky, false, "test").await.unwrap();
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare2");
    assert_eq!(r.passed_over[0].server, "spare1");
    assert!(r.passed_over[0].reason.starts_with("template_error: "));
}

#[tokio::test]
async fn a_fault_of_this_host_is_waited_out_with_the_same_spare() {
    let mut rig = Rig::new().await;
    rig.hands
        .temper("spare1", |t| t.local.extend([("install:nginx".into(), 5)]));
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until(&id, |r| r.reason.is_some()).await;
    assert_eq!(
        r.reason.as_deref(),
        Some("install:nginx: local_fault: no descriptors")
    );
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare1");
    assert_eq!(r.passed_over, []);
}

#[tokio::test]
async fn many_failures_get_a_spare_each_and_no_spare_two() {
    let mut rig = Rig::new().await;
    rig.store.apply(&wide(50), false, "test").await.unwrap();
    let all: Vec<_> = (1..=50).map(|n| format!("10.1.0.{n}")).collect();
    rig.register_at(&all).await;
    let mut set = JoinSet::new();
    for n in 1..=50 {
        let store = rig.store.clone();
        set.spawn(async move {
            let body = request("lb1", &format!("10.1.0.{n}"));
            match store.ask(&format!("k{n}"), &body).await.unwrap() {
                Asked::Taken { replacement, .. } => replacement.id,
                other => panic!("{other:?}"),
            }
        });
    }
    rig.start();
    let mut spares = BTreeSet::new();
    for id in set.join_all().await {
        let r = rig.until_state(&id, ReplacementState::Attaching).await;
        assert!(spares.insert(r.spare.unwrap().name));
    }
    assert_eq!(spares.len(), 50);
}

#[tokio::test]
async fn a_stand_in_that_fails_gets_one_in_its_turn() {
    let mut rig = Rig::new().await;
    rig.start();
    let first = rig.ask("k1", "10.0.0.1").await;
    rig.until_state(&first, ReplacementState::Attaching).await;
    rig.confirm(&first).await;
    let second = rig.ask("k2", "10.0.0.11").await;
    let r = rig.until_state(&second, ReplacementState::Attaching).await;
    assert_eq!(r.origin, ip("10.0.0.1"));
    assert_eq!(r.spare.unwrap().name, "spare2");
    assert_eq!(rig.confirm(&second).await, ConfirmOutcome::Succeeded);
    let r = rig.store.replacement(&first).await.unwrap();
    assert_eq!(r.state, ReplacementState::Superseded);
    assert_eq!(rig.states().await["spare1"].0, ServerState::Failed);
}

#[tokio::test]
async fn cancelled_before_a_script_the_spare_is_free_after_one_it_is_put_aside() {
    let mut rig = Rig::new().await;
    for (n, (gated, state)) in [
        ("os", ServerState::Ready),
        ("install:nginx", ServerState::Quarantined),
    ]
    .into_iter()
    .enumerate()
    {
        let gate = Arc::new(Semaphore::new(0));
        rig.hands.gate = Some((gated.into(), Arc::clone(&gate)));
        rig.start();
        let id = rig.ask(&format!("k{n}"), "10.0.0.1").await;
        rig.until(&id, |r| {
            r.steps
                .last()
                .is_some_and(|s| s.step == gated && s.state == "running")
        })
        .await;
        let outcome = rig.store.cancel(&id, "test").await.unwrap();
        assert!(matches!(
            outcome,
            CancelOutcome::Cancelled { ended: false, .. }
        ));
        gate.add_permits(1);
        rig.until_state(&id, ReplacementState::Cancelled).await;
        let (is, reason) = rig.states().await["spare1"].clone();
        assert_eq!(is, state);
        assert_eq!(reason.is_some(), is == ServerState::Quarantined);
        rig.stop.cancel();
        rig.tasks.join_next().await.unwrap().unwrap().unwrap();
        rig.stop = CancellationToken::new();
    }
}

/// A script that was cancelled under a provisioner that died is waited for by the next one: nobody cleans beside it.
#[tokio::test]
async fn cancelled_over_a_restart_a_script_ends_before_its_spare_is_put_aside() {
    let mut rig = Rig::new().await;
    for (n, gated) in ["install:nginx", "configure:storage"]
        .into_iter()
        .enumerate()
    {
        let spare = format!("spare{}", n + 1);
        let gate = Arc::new(Semaphore::new(0));
        rig.hands.gate = Some((gated.into(), Arc::clone(&gate)));
        rig.start();
        let id = rig.ask(&format!("k{n}"), "10.0.0.1").await;
        rig.until(&id, |r| {
            r.steps
                .last()
                .is_some_and(|s| s.step == gated && s.state == "running")
        })
        .await;
        rig.stop.cancel();
        rig.tasks.join_next().await.unwrap().unwrap().unwrap();
        rig.stop = CancellationToken::new();
        rig.store.cancel(&id, "test").await.unwrap();
        gate.add_permits(1);
        rig.start();
        let r = rig.until_state(&id, ReplacementState::Cancelled).await;
        assert!(rig.hands.remote(&spare).jobs.values().all(|ended| *ended));
        assert!(r.steps.iter().all(|s| s.ended_ms.is_some()), "{r:#?}");
        let last = r.steps.last().unwrap();
        let (state, word) = match gated {
            "install:nginx" => ("done", "fine"),
            _ => ("failed", "interrupted"),
        };
        assert_eq!(last.state, state);
        assert!(last.detail.starts_with(word), "{last:?}");
        assert_eq!(rig.states().await[&spare].0, ServerState::Quarantined);
        rig.stop.cancel();
        rig.tasks.join_next().await.unwrap().unwrap().unwrap();
        rig.stop = CancellationToken::new();
    }
}

#[tokio::test]
async fn an_offer_is_too_late_to_cancel() {
    let mut rig = Rig::new().await;
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    rig.until_state(&id, ReplacementState::Attaching).await;
    let outcome = rig.store.cancel(&id, "test").await.unwrap();
    assert!(matches!(outcome, CancelOutcome::TooLate(_)));
}

#[tokio::test]
async fn a_running_step_is_ordered_again_after_a_restart_under_a_higher_fence() {
    let mut rig = Rig::new().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("install:nginx".into(), Arc::clone(&gate)));
    rig.start();
    let id = rig.ask("k1", "10.0.0.1").await;
    // The journal has it before the hands do.
    let hands = rig.hands.clone();
    let ordered = |o: &String| o == "spare1 install:nginx";
    rig.until_other(&id, |_| hands.orders().iter().any(ordered))
        .await;
    // R13: nobody is told of a spare that is not finished.
    let r = rig.store.replacement(&id).await.unwrap();
    assert_eq!((r.state, r.spare), (ReplacementState::Configuring, None));
    let fence = rig.hands.remote("spare1").fence;
    rig.tasks.abort_all();
    while rig.tasks.join_next().await.is_some() {}
    rig.hands.gate = None;
    rig.start();
    rig.until_state(&id, ReplacementState::Attaching).await;
    let remote = rig.hands.remote("spare1");
    assert!(remote.fence > fence);
    let orders = rig.hands.orders();
    let nginx = orders
        .iter()
        .filter(|o| *o == "spare1 install:nginx")
        .count();
    let storage = orders
        .iter()
        .filter(|o| *o == "spare1 install:storage")
        .count();
    assert_eq!((nginx, storage), (2, 1), "{orders:?}");
    // Ordered twice, started once: the job directory was found.
    assert_eq!(remote.starts.len(), 2);
}

/// The lease of one that is stopped runs out; here it is one that is started again under the same name.
#[tokio::test]
async fn an_engine_that_lost_its_lease_drops_the_step_and_goes_on_with_others() {
    let mut rig = Rig::new().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("os".into(), Arc::clone(&gate)));
    let soon = Settings {
        lease: Duration::from_millis(300),
        ..FAST
    };
    rig.start_at("centre", soon, rig.home.open().await);
    let id = rig.ask("k1", "10.0.0.1").await;
    rig.until_other(&id, |r| r.steps.iter().any(|s| s.step == "os"))
        .await;
    rig.hands.gate = None;
    rig.start();
    let offered = |r: &Replacement| r.state == ReplacementState::Attaching;
    let r = rig.until_other(&id, offered).await;
    assert_eq!(r.spare.unwrap().name, "spare1");
    // The first one sees so at its next renewal, whatever the step does.
    let lost = || rig.facts.lock().unwrap().contains(&Fact::LeaseLost);
    timeout(SOON, async {
        while !lost() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(rig.hands.remote("spare1").starts.len(), 2);
    // Neither has ended: both take part in the next.
    assert!(rig.tasks.try_join_next().is_none());
    let id = rig.ask("k2", "10.0.0.2").await;
    gate.add_permits(10);
    // Whichever does it: each has a store handle of its own.
    rig.until_other(&id, offered).await;
}

/// What stalled because the store did not answer is not forgotten in silence when somebody else has it by then.
#[tokio::test]
async fn what_was_taken_over_while_it_stalled_is_told() {
    let rig = Rig::new().await;
    let facts = Arc::clone(&rig.facts);
    let context = Context {
        store: rig.store.clone(),
        hands: Arc::new(rig.hands.clone()),
        settings: Settings {
            // It renews in each turn.
            lease: Duration::ZERO,
            ..FAST
        },
        secrets: Secrets::default(),
        observer: Observer::new(move |fact| facts.lock().unwrap().push(fact)),
        stop: CancellationToken::new(),
        installs: Semaphore::new(1),
    };
    let mut bench = Bench::new(Arc::new(context), "centre");
    let lasts = Duration::from_secs(15);
    rig.ask("k1", "10.0.0.1").await;
    for by_its_clock in [false, true] {
        let run = rig.store.begin_run("centre").await.unwrap();
        let lease = rig.store.lease(&run, lasts, 1).await.unwrap().remove(0);
        bench.run = Some(run);
        bench.stalled.insert(lease.id.clone(), lease);
        if by_its_clock {
            bench.drop_all();
        } else {
            let other = rig.store.begin_run("centre").await.unwrap();
            assert_eq!(rig.store.lease(&other, lasts, 1).await.unwrap().len(), 1);
            bench.try_turn(false).await.unwrap();
            let ended = bench.tasks.join_next().await.unwrap().unwrap();
            bench.ended(ended);
        }
        assert!(bench.stalled.is_empty() && bench.active.is_empty());
        assert_eq!(
            std::mem::take(&mut *rig.facts.lock().unwrap()),
            [Fact::LeaseLost]
        );
    }
}

/// Dies at a random moment, again and again, on the same file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_one_spare_is_used_and_no_script_started_twice() {
    // A life must be long enough for a step or two, or nothing is ever done.
    let (seeds, longest) = match module_path!().contains("on_postgres") {
        false => (20, 25_000),
        true => (8, 100_000),
    };
    let mut random = 0x5eed_u64;
    let mut crashes = 0;
    for seed in 0..seeds {
        let mut rig = Rig::new().await;
        rig.hands.slow = Duration::from_millis(1);
        if seed % 4 == 0 {
            rig.hands
                .temper("spare1", |t| t.broken.extend(["configure:nginx".into()]));
        }
        let id = rig.ask("k1", "10.0.0.1").await;
        loop {
            // splitmix64: the same moments every time, as far as a machine keeps time.
            random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let life = Duration::from_micros((z >> 33) % longest);
            let hands = Arc::new(rig.hands.clone());
            let stop = CancellationToken::new();
            let engine = run(
                rig.store.clone(),
                hands,
                "centre",
                FAST,
                Secrets::default(),
                Observer::nobody(),
                stop,
            );
            let ended = timeout(life, engine).await;
            assert!(ended.is_err(), "the engine ended by itself: {ended:?}");
            // A process that is gone has its file closed.
            rig.store = rig.home.open().await;
            let r = rig.store.replacement(&id).await.unwrap();
            if r.state == ReplacementState::Attaching {
                let broken = usize::from(seed % 4 == 0);
                assert_eq!(r.passed_over.len(), broken, "{r:#?}");
                break;
            }
            crashes += 1;
        }
        assert_eq!(rig.confirm(&id).await, ConfirmOutcome::Succeeded);
        // Asked again after all: the same.
        assert_eq!(rig.ask("k1", "10.0.0.1").await, id);
        let states = rig.states().await;
        let serving: Vec<_> = states
            .iter()
            .filter(|(name, (s, _))| *s == ServerState::Serving && name.starts_with("spare"))
            .collect();
        assert_eq!(serving.len(), 1, "{states:?}");
        let used = rig.hands.remotes.lock().unwrap().clone();
        assert_eq!(used.len(), 1 + usize::from(seed % 4 == 0), "{used:?}");
        for (name, remote) in used {
            // One job a script, each started once.
            let jobs: BTreeSet<_> = remote.starts.iter().collect();
            assert_eq!(
                (jobs.len(), remote.starts.len()),
                (2, 2),
                "{name}: {remote:?}"
            );
        }
    }
    assert!(
        crashes >= seeds,
        "only {crashes} crashes: the moments are chosen badly"
    );
}

/// Another word in the script, as an operator's correction has it.
fn mended() -> crate::model::inventory::Inventory {
    let mut inventory = inventory();
    inventory.software[1].script.push_str("# mended\n");
    inventory
}

#[tokio::test]
async fn two_spares_that_fail_in_the_same_script_stop_the_role() {
    let mut rig = Rig::new().await;
    rig.breaks_on(&["spare1", "spare2", "spare3"]);
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    let r = rig.until(&id, says("role_stopped")).await;
    let reason = r.reason.unwrap();
    assert!(
        reason.contains("spare2 and spare1 both failed in install:nginx (script_failed)"),
        "{reason}"
    );
    assert_eq!(rig.hands.remote("spare3").fence, 0, "it was not touched");
    let world = rig.store.world().await.unwrap();
    let view = rig.store.readiness(&world).await.unwrap().remove(0);
    assert_eq!(view.stopped.as_ref(), Some(&reason));
    let events = rig.store.events(None, Some(0), &Default::default()).await;
    let events = events.unwrap().events;
    let told: Vec<_> = events
        .iter()
        .filter(|e| e.kind == EventKind::RoleStopped)
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        rig.store.stopped_roles().await.unwrap(),
        ["web.shop.example"]
    );

    // The same files change nothing; a script that was mended does.
    rig.store.apply(&inventory(), false, "test").await.unwrap();
    assert_eq!(rig.store.stopped_roles().await.unwrap().len(), 1);
    rig.hands.temper("spare3", |t| t.broken.clear());
    rig.store.apply(&mended(), false, "test").await.unwrap();
    let attached = |r: &Replacement| r.state == ReplacementState::Attaching;
    let r = rig.until(&id, attached).await;
    assert_eq!(r.spare.unwrap().name, "spare3");
    assert!(rig.store.stopped_roles().await.unwrap().is_empty());
}

#[tokio::test]
async fn connections_that_fail_stop_no_role() {
    let mut rig = Rig::new().await;
    for spare in ["spare1", "spare2"] {
        rig.hands.temper(spare, |t| {
            t.shaky.insert("install:nginx".into(), 99);
        });
    }
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    let attached = |r: &Replacement| r.state == ReplacementState::Attaching;
    let r = rig.until(&id, attached).await;
    assert_eq!(r.spare.unwrap().name, "spare3");
}

#[tokio::test]
async fn a_stopped_role_goes_on_when_it_is_released_or_tried_again() {
    for by_role in [true, false] {
        let mut rig = Rig::new().await;
        for spare in ["spare1", "spare2"] {
            rig.hands.temper(spare, |t| {
                t.broken.insert("test".into());
            });
        }
        rig.start();
        let id = rig.ask("k", "10.0.0.1").await;
        rig.until(&id, says("role_stopped")).await;
        if by_role {
            assert!(
                rig.store
                    .release_role("web.shop.example", "test")
                    .await
                    .unwrap()
            );
            assert!(!rig.store.release_role("nobody", "test").await.unwrap());
        } else {
            let outcome = rig.store.retry(&id, "test").await.unwrap();
            assert!(matches!(outcome, RetryOutcome::Retried(_)), "{outcome:?}");
        }
        let attached = |r: &Replacement| r.state == ReplacementState::Attaching;
        let r = rig.until(&id, attached).await;
        assert_eq!(r.spare.unwrap().name, "spare3");
        let outcome = rig.store.retry(&id, "test").await.unwrap();
        assert!(
            matches!(outcome, RetryOutcome::NotWaiting(_)),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn secrets_reach_the_spare_and_not_the_journal() {
    let mut rig = Rig::new().await;
    let mut inventory = inventory();
    let (secrets, _home) = with_secrets(&mut inventory);
    rig.secrets = secrets;
    rig.store.apply(&inventory, false, "test").await.unwrap();
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    let attached = |r: &Replacement| r.state == ReplacementState::Attaching;
    let shown = rig.until(&id, attached).await;
    let steps = rig.hands.steps.lock().unwrap().clone();
    let placed = steps.iter().any(|s| {
        matches!(s, Step::Configure { files, .. }
            if files.iter().any(|f| f.body == b"token swordfish;\n"))
    });
    let told = steps.iter().any(|s| {
        matches!(s, Step::Install { variables, .. }
            if variables.get("DB_PASSWORD").is_some_and(|v| v == "opensesame"))
    });
    let read_back = steps.iter().any(|s| {
        matches!(s, Step::Test { digests, .. }
            if steps.iter().any(|c| matches!(c, Step::Configure { files, .. }
                if files.iter().any(|f| f.sha256 == digests[0].1))))
    });
    assert!(placed && told && read_back, "{steps:?}");
    // Nothing of it in the journal, in the audit trail or in what is shown. Bodies of files as text.
    let plan = rig.store.plan(&id).await.unwrap();
    let events = rig.store.events(None, Some(0), &Default::default()).await;
    let mut all = format!("{plan:?} {shown:?} {:?}", events.unwrap());
    for step in &plan {
        if let Step::Configure { files, .. } | Step::Test { sealed: files, .. } = step {
            for file in files {
                all.push_str(&String::from_utf8_lossy(&file.body));
            }
        }
    }
    assert!(all.contains("{{ secret(\"token\") }}"));
    for secret in ["opensesame", "swordfish"] {
        assert!(!all.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_secret_that_is_missing_is_waited_for_and_one_that_changed_is_told() {
    let mut rig = Rig::new().await;
    let mut inventory = inventory();
    let (secrets, home) = with_secrets(&mut inventory);
    let role = inventory.roles.get_mut("web.shop.example").unwrap();
    role.spares.cleanup = Some(Cleanup::Script {
        script: "purge\n".into(),
        timeout: Duration::from_secs(60),
    });
    rig.secrets = secrets;
    rig.store.apply(&inventory, false, "test").await.unwrap();
    std::fs::remove_file(home.path().join("token")).unwrap();
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("install:storage".into(), Arc::clone(&gate)));
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    let r = rig.until(&id, says("secret_missing")).await;
    assert!(r.reason.unwrap().contains("\"token\""));
    assert!(rig.hands.orders().is_empty(), "no spare was touched");

    write_secret(&home, "token", "swordfish");
    rig.store.retry(&id, "test").await.unwrap();
    let runs = |r: &Replacement| r.steps.iter().any(|s| s.step == "install:storage");
    rig.until(&id, runs).await;
    write_secret(&home, "token", "another one");
    gate.add_permits(9);
    let passed = |r: &Replacement| !r.passed_over.is_empty();
    let r = rig.until(&id, passed).await;
    let reason = &r.passed_over[0].reason;
    assert!(
        reason.contains("secret_changed") && !reason.contains("another"),
        "{reason}"
    );
    // The next one is told the new one. Nobody was at fault: cleaned where there is a way, and no role is stopped.
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare2");
    let steps = rig.hands.steps.lock().unwrap().clone();
    let told = |s: &Step| {
        matches!(s, Step::Configure { files, .. }
            if files.iter().any(|f| f.body == b"token another one;\n"))
    };
    assert!(steps.iter().any(told), "{steps:?}");
    let world = rig.store.world().await.unwrap();
    let keeping = &world.servers["spare1"].keeping;
    assert_eq!(keeping.clean_after.as_deref(), Some("web.shop.example"));
    assert_eq!(keeping.failed_at, None);
    assert!(!rig.facts.lock().unwrap().contains(&Fact::SpareQuarantined));
}

#[tokio::test]
async fn secrets_that_change_again_and_again_stop_no_role() {
    let mut rig = Rig::new().await;
    let mut inventory = inventory();
    let (secrets, home) = with_secrets(&mut inventory);
    rig.secrets = secrets;
    rig.store.apply(&inventory, false, "test").await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("install:storage".into(), Arc::clone(&gate)));
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    for n in 1..=2 {
        let on = format!("spare{n} install:storage");
        let orders = async {
            while !rig.hands.orders().contains(&on) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, orders).await.unwrap();
        write_secret(&home, "token", &format!("word {n}"));
        gate.add_permits(1);
    }
    gate.add_permits(1);
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare3");
    assert_eq!(rig.store.stopped_roles().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_secret_that_goes_missing_gives_the_spare_to_whoever_has_it() {
    let mut rig = Rig::new().await;
    let mut inventory = inventory();
    let (secrets, home) = with_secrets(&mut inventory);
    rig.store.apply(&inventory, false, "test").await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("install:storage".into(), Arc::clone(&gate)));
    let (_elsewhere, theirs) = {
        let mut same = inventory.clone();
        let (theirs, dir) = with_secrets(&mut same);
        (dir, theirs)
    };
    let quick = Settings {
        look_again: Duration::from_millis(50),
        ..FAST
    };
    rig.secrets = secrets;
    rig.start_at("here", quick, rig.store.clone());
    let id = rig.ask("k", "10.0.0.1").await;
    let runs = |r: &Replacement| r.steps.iter().any(|s| s.step == "install:storage");
    rig.until(&id, runs).await;
    std::fs::remove_file(home.path().join("token")).unwrap();
    gate.add_permits(99);
    rig.until(&id, says("secret_missing")).await;
    rig.secrets = theirs;
    let other = rig.home.open().await;
    rig.start_at("there", quick, other);
    let attached = |r: &Replacement| r.state == ReplacementState::Attaching;
    let r = rig.until_other(&id, attached).await;
    assert_eq!(r.spare.unwrap().name, "spare1");
}

#[tokio::test]
async fn a_stopped_role_has_its_warm_spares() {
    let mut rig = Rig::new().await;
    rig.breaks_on(&["spare1", "spare2"]);
    // Made ready while all was well.
    rig.start();
    rig.keep_warm("spare3").await;
    rig.store
        .maintain("spare3", Some("later"), "test")
        .await
        .unwrap();
    let id = rig.ask("k", "10.0.0.1").await;
    rig.until(&id, says("role_stopped")).await;
    rig.store.maintain("spare3", None, "test").await.unwrap();
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare3");
    assert!(
        r.steps.iter().all(|s| s.server != "spare3"),
        "{:?}",
        r.steps
    );
    assert_eq!(
        rig.store.stopped_roles().await.unwrap(),
        [""; 0],
        "it came through"
    );
}

/// Whom the director would not let in is not offered before one that it would, and where nobody else is left,
/// everything is done to it again.
#[tokio::test]
async fn a_warm_spare_that_a_director_finds_failing_is_taken_last_and_made_anew() {
    let mut rig = Rig::new().await;
    rig.start();
    rig.keep_warm("spare1").await;
    rig.keep_warm("spare2").await;
    let lb1 = "lb1".parse().unwrap();
    let why = "tcp/192.0.2.1:80 at 10.0.1.1:80: refused";
    let find = async |failing: &[&str], passing: &[&str]| {
        let failing = failing.iter().map(|s| ((*s).to_owned(), why.to_owned()));
        let findings = Findings {
            failing: failing.collect(),
            passing: passing.iter().map(|s| (*s).to_owned()).collect(),
        };
        rig.store
            .find(&lb1, findings, "lb1")
            .await
            .unwrap()
            .unwrap()
    };
    let news = |why: Option<&str>| [("spare1".to_owned(), why.map(str::to_owned))];
    assert_eq!(find(&["spare1", "nobody"], &[]).await, news(Some(why)));
    assert_eq!(find(&["spare1"], &["spare2"]).await, [], "it is no news");
    assert_eq!(find(&[], &[]).await, [], "who starts anew knows nothing");
    let shown = rig.states().await.remove("spare1").unwrap();
    let (state, reason) = (shown.0, shown.1.unwrap());
    assert_eq!(state, ServerState::Standby);
    assert_eq!(reason, format!("fails the checks of lb1: {why}"));
    assert_eq!(find(&[], &["spare1"]).await, news(None));
    assert_eq!(rig.states().await["spare1"].1, None);
    assert_eq!(find(&["spare1"], &[]).await, news(Some(why)));

    let id = rig.ask("k1", "10.0.0.1").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(
        (r.spare.unwrap().name.as_str(), r.steps),
        ("spare2", Vec::new())
    );
    rig.store
        .maintain("spare3", Some("later"), "test")
        .await
        .unwrap();
    let id = rig.ask("k2", "10.0.0.2").await;
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert_eq!(
        (r.spare.unwrap().name.as_str(), r.steps.len()),
        ("spare1", 7)
    );
    let trail = rig
        .store
        .events(None, Some(0), &Default::default())
        .await
        .unwrap();
    let said = trail.events.iter().filter_map(|e| e.reason.as_deref());
    let said: Vec<_> = said.filter(|r| r.starts_with("standby_")).collect();
    assert_eq!(said, ["standby_fails", "standby_passes", "standby_fails"]);
    let stranger = "lb9".parse().unwrap();
    let none = rig.store.find(&stranger, Findings::default(), "lb9");
    assert_eq!(none.await.unwrap(), None);
}

#[tokio::test]
async fn a_replacement_that_never_claimed_sets_its_role_going_again() {
    let mut rig = Rig::new().await;
    rig.breaks_on(&["spare1", "spare2"]);
    rig.start();
    let first = rig.ask("k", "10.0.0.1").await;
    rig.until(&first, says("role_stopped")).await;
    let second = rig.ask("k2", "10.0.0.2").await;
    let r = rig.until(&second, says("role_stopped")).await;
    assert_eq!(r.role, None);
    rig.store.retry(&second, "test").await.unwrap();
    assert_eq!(rig.store.stopped_roles().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn what_a_script_prints_is_kept_while_it_runs_and_shown_in_parts() {
    let mut rig = Rig::new().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("install:nginx".into(), Arc::clone(&gate)));
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    let log = async || {
        rig.store
            .log(&id, Which::Last, Some("install:nginx"))
            .await
            .unwrap()
    };
    let mut changes = rig.store.changes();
    let live = timeout(SOON, async {
        loop {
            changes.borrow_and_update();
            if let Some(log) = log().await
                && !log.text.is_empty()
            {
                return log;
            }
            changes.changed().await.unwrap();
        }
    });
    let live = live.await.unwrap();
    assert_eq!(
        (live.text.as_str(), live.ended, live.over),
        ("working\n", false, false)
    );
    gate.add_permits(9);
    rig.until_state(&id, ReplacementState::Attaching).await;
    let kept = log().await.unwrap();
    assert!(kept.ended && kept.over);
    assert_eq!(kept.run, live.run);
    let shown = rig.store.replacement(&id).await.unwrap();
    let step = shown
        .steps
        .iter()
        .find(|s| s.step == "install:nginx")
        .unwrap();
    assert_eq!(
        (step.tries, step.limit_ms, step.digest.len()),
        (1, 180_000, 64)
    );
    assert!(step.repeatable.contains("never started twice"));
    assert_eq!(
        rig.store
            .log(&id, Which::Last, Some("nothing"))
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn what_a_script_printed_outlives_the_link_to_its_spare() {
    let mut rig = Rig::new().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("install:nginx".into(), Arc::clone(&gate)));
    rig.hands.temper("spare1", |t| {
        t.cut.insert("install:nginx".into());
    });
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    let log = async || {
        let log = rig.store.log(&id, Which::Of("1.3"), None).await;
        log.unwrap().unwrap_or_else(|| panic!("no such step"))
    };
    let runs = |r: &Replacement| {
        r.steps
            .iter()
            .any(|s| s.step == "install:nginx" && s.tries > 0)
    };
    rig.until(&id, runs).await;
    let mut changes = rig.store.changes();
    let said = async {
        while log().await.text.is_empty() {
            changes.changed().await.unwrap();
        }
    };
    timeout(SOON, said).await.unwrap();
    gate.add_permits(99);
    let r = rig.until_state(&id, ReplacementState::Attaching).await;
    assert!(r.passed_over[0].reason.contains("unreachable"), "{r:?}");
    let kept = log().await;
    assert_eq!(
        (kept.text.as_str(), kept.run.as_str()),
        ("working\n", "1.3.3")
    );
    let other = rig
        .store
        .log(&id, Which::Last, Some("install:storage"))
        .await;
    assert_eq!(other.unwrap().unwrap().text, "working\n");
}

#[tokio::test]
async fn what_was_planned_before_a_role_was_released_says_nothing_of_it() {
    let mut rig = Rig::new().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("os".into(), Arc::clone(&gate)));
    rig.breaks_on(&["spare1", "spare2"]);
    rig.start();
    let ids = [
        rig.ask("k", "10.0.0.1").await,
        rig.ask("k2", "10.0.0.2").await,
    ];
    let begun = |r: &Replacement| r.steps.iter().any(|s| s.step == "os" && s.tries > 0);
    for id in &ids {
        rig.until(id, begun).await;
    }
    assert!(
        rig.store
            .release_role("web.shop.example", "test")
            .await
            .unwrap()
    );
    gate.add_permits(99);
    // Both failed in the old script; the third is tried all the same.
    let mut changes = rig.store.changes();
    let one = async {
        loop {
            changes.borrow_and_update();
            for id in &ids {
                let r = rig.store.replacement(id).await.unwrap();
                if let (ReplacementState::Attaching, Some(spare)) = (r.state, r.spare) {
                    return spare.name;
                }
            }
            changes.changed().await.unwrap();
        }
    };
    assert_eq!(timeout(SOON, one).await.unwrap(), "spare3");
}

#[tokio::test]
async fn another_number_of_warm_spares_releases_no_role() {
    let mut rig = Rig::new().await;
    rig.breaks_on(&["spare1", "spare2"]);
    rig.start();
    let id = rig.ask("k", "10.0.0.1").await;
    rig.until(&id, says("role_stopped")).await;
    let mut files = inventory();
    let role = files.roles.get_mut("web.shop.example").unwrap();
    role.spares.keep_warm = 1;
    rig.store.apply(&files, false, "test").await.unwrap();
    assert_eq!(rig.store.stopped_roles().await.unwrap().len(), 1);
    // Where clients are is asked of each spare.
    let role = files.roles.get_mut("web.shop.example").unwrap();
    role.gateways = vec![ip("10.0.0.251")];
    rig.store.apply(&files, false, "test").await.unwrap();
    assert_eq!(rig.store.stopped_roles().await.unwrap(), [""; 0]);
}

/// A server that has given its role back is installed anew, also over a restart in the middle, and is a spare.
#[tokio::test]
async fn who_gave_its_role_back_is_installed_anew() {
    use crate::provisioner::{store::new_id, upkeep::InHand};
    let mut rig = Rig::new().await;
    let mut files = inventory();
    with_reinstall(&mut files);
    rig.store.apply(&files, false, "test").await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("os_install".to_owned(), Arc::clone(&gate)));
    rig.start();
    let first = rig.ask("k1", "10.0.0.1").await;
    rig.until_state(&first, ReplacementState::Attaching).await;
    rig.confirm(&first).await;
    let lb1 = "lb1".parse().unwrap();
    assert!(rig.store.give_back(&lb1, &first).await.unwrap());
    let is = Confirmation { is: Want::Withdraw };
    rig.store.confirm(&lb1, &first, is).await.unwrap();

    let world = rig.store.world().await.unwrap();
    assert_eq!(
        world.servers["spare1"].os_seen.as_deref(),
        Some("debian-12")
    );
    assert_eq!(world.servers["spare1"].keeping.placed.len(), 1);
    let of = world.upkeep(&InHand::default()).remove(0);
    let id = new_id("clean").unwrap();
    let steps = world.upkeep_steps(&of, id.as_str()).unwrap();
    assert!(rig.store.begin_upkeep(&id, &of, &steps).await.unwrap());
    let install = "spare1 os_install";
    soon(async || rig.hands.orders().iter().any(|o| o == install)).await;
    assert_eq!(rig.states().await["spare1"].0, ServerState::Cleaning);
    rig.stop.cancel();
    rig.tasks.join_next().await.unwrap().unwrap().unwrap();
    rig.stop = CancellationToken::new();
    gate.add_permits(1);
    rig.start();
    soon(async || rig.states().await["spare1"].0 == ServerState::Ready).await;

    let orders = rig.hands.orders();
    let [.., a, b, c, d] = orders.as_slice() else {
        panic!("{orders:?}");
    };
    assert_eq!(
        [a, b, c, d],
        [install, install, "spare1 fence", "spare1 os"]
    );
    let world = rig.store.world().await.unwrap();
    let spare = &world.servers["spare1"];
    assert_eq!((spare.state, &spare.reason), (ServerState::Ready, &None));
    assert_eq!(spare.os_seen.as_deref(), Some("debian-12"));
    assert_eq!(spare.keeping.placed.len(), 0);
    // It has nothing of what it was: all is done to it once more.
    let next = rig.ask("k2", "10.0.0.2").await;
    let r = rig.until_state(&next, ReplacementState::Attaching).await;
    assert_eq!(r.spare.unwrap().name, "spare1");
    assert_eq!(rig.hands.remote("spare1").starts.len(), 2);
}

/// An hour of installing keeps no place from what takes seconds.
#[tokio::test]
async fn an_installation_takes_no_place() {
    use crate::model::machine::{Boot, Door, Driver, HttpDriver, Image};
    let mut rig = Rig::new().await;
    let mut files = inventory();
    files.roles.get_mut("web.shop.example").unwrap().install = true;
    let image = Image {
        os: "debian-12".into(),
        boot: Boot::Pxe,
        timeout: Duration::from_secs(3600),
        enrolment_keys: vec!["ssh-ed25519 AAAAimage".into()],
    };
    files.images.insert(image.os.clone(), image);
    let bare = files.servers.get_mut("spare1").unwrap();
    bare.wipe = true;
    bare.driver = Driver::Http(Box::new(HttpDriver {
        door: Door {
            url: "https://installer.example".parse().unwrap(),
            pin: None,
            credential: "installer".into(),
        },
        machine: "7".into(),
    }));
    rig.store.apply(&files, false, "test").await.unwrap();
    for spare in ["spare2", "spare3"] {
        rig.store
            .maintain(spare, Some("later"), "test")
            .await
            .unwrap();
    }
    let gate = Arc::new(Semaphore::new(0));
    rig.hands.gate = Some(("os_install".to_owned(), Arc::clone(&gate)));
    let settings = Settings { at_once: 1, ..FAST };
    rig.start_at("centre", settings, rig.store.clone());
    let first = rig.ask("k1", "10.0.0.1").await;
    let installs = |r: &Replacement| {
        r.steps
            .iter()
            .any(|s| s.step == "os_install" && s.state == "running")
    };
    rig.until(&first, installs).await;
    rig.store.maintain("spare2", None, "test").await.unwrap();
    let second = rig.ask("k2", "10.0.0.2").await;
    rig.until_state(&second, ReplacementState::Attaching).await;
    let r = rig.store.replacement(&first).await.unwrap();
    assert_eq!(r.state, ReplacementState::Configuring);
    gate.add_permits(1);
    rig.until_state(&first, ReplacementState::Attaching).await;
}
