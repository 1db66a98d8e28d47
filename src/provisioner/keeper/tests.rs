use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::{
    model::{
        EventFilter,
        inventory::{Cleanup, Inventory},
        wire::{Confirmation, Replacement, ReplacementState, Want},
    },
    provisioner::{
        claiming, engine,
        store::{Asked, ConfirmOutcome, Ready},
        testing::*,
        upkeep::InHand,
    },
};

const LONG: Duration = Duration::from_secs(20);

async fn until<T>(mut what: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = what().await {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, found).await.expect("in time")
}

/// A keeper at work, which needs no secrets.
fn keep<H: Hands + Clone>(
    store: &Store,
    hands: &H,
    settings: Settings,
    observer: Observer,
) -> (CancellationToken, JoinSet<()>) {
    let stop = CancellationToken::new();
    let mut keeper = JoinSet::new();
    keeper.spawn(run(
        store.clone(),
        Arc::new(hands.clone()),
        settings,
        Secrets::default(),
        observer,
        stop.clone(),
    ));
    (stop, keeper)
}

#[tokio::test]
async fn spares_are_looked_at_before_they_are_needed() {
    let home = Home::of("sqlite").await;
    let store = home.open().await;
    let mut files = inventory();
    let role = files.roles.get_mut("web.shop.example").unwrap();
    role.spares.low_water = 3;
    store.apply(&files, false, "test").await.unwrap();
    let hands = FakeHands::default();
    hands.temper("spare2", |t| assert!(t.broken.insert("look".to_owned())));
    let views = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&views);
    let observer = Observer::new(move |fact| {
        if let Fact::Readiness(roles) = fact {
            *seen.lock().unwrap() = roles;
        }
    });
    let settings = Settings {
        rehearse: Some(Duration::from_secs(3600)),
        turn: Duration::from_millis(5),
    };
    let (stop, mut keeper) = keep(&store, &hands, settings, observer);
    let short = until(async || {
        let views = views.lock().unwrap();
        views.first().and_then(|view| view.short.clone())
    });
    let short = short.await;
    assert!(short.starts_with("2 usable of at least 3"), "{short}");
    let world = store.world().await.unwrap();
    let trouble = |name: &str| world.servers[name].keeping.trouble.clone();
    assert_eq!(trouble("spare1"), None);
    assert_eq!(
        trouble("spare2").as_deref(),
        Some("script_failed: exit 1"),
        "what the look said"
    );
    // An hour is not over: nobody is looked at twice. Who is released is.
    let looks = |name: &str| {
        let orders = hands.orders();
        orders
            .iter()
            .filter(|o| **o == format!("{name} look"))
            .count()
    };
    assert_eq!(looks("spare2"), 1);
    hands.temper("spare2", |t| t.broken.clear());
    store.release("spare2", "test").await.unwrap();
    until(async || {
        let views = views.lock().unwrap();
        let enough = views.first().is_some_and(|view| view.short.is_none());
        enough.then_some(())
    })
    .await;
    assert_eq!((looks("spare1"), looks("web1")), (1, 0));
    stop.cancel();
    let ended = timeout(LONG, keeper.join_next()).await.expect("ends");
    ended.unwrap().unwrap();
}

/// A store, an engine and a keeper at work.
struct Pool {
    _home: Home,
    store: Store,
    hands: FakeHands,
    secrets: Secrets,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Pool {
    async fn new(keep_warm: u32) -> Self {
        Self::of(keep_warm, inventory(), Secrets::default()).await
    }

    async fn of(keep_warm: u32, mut files: Inventory, secrets: Secrets) -> Self {
        let home = Home::of("sqlite").await;
        let store = home.open().await;
        let role = files.roles.get_mut("web.shop.example").unwrap();
        role.spares.keep_warm = keep_warm;
        role.spares.cleanup = Some(Cleanup::Script {
            script: "purge\n".into(),
            timeout: Duration::from_secs(60),
        });
        store.apply(&files, false, "test").await.unwrap();
        let lb1 = "lb1".parse().unwrap();
        store.register(&lb1, &registration("lb1")).await.unwrap();
        let mut pool = Self {
            _home: home,
            store,
            hands: FakeHands::default(),
            secrets,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        pool.start();
        pool
    }

    fn start(&mut self) {
        let nobody = Observer::nobody;
        let settings = Settings {
            turn: Duration::from_millis(5),
            ..Settings::STANDARD
        };
        let hands = Arc::new(self.hands.clone());
        let keeper = run(
            self.store.clone(),
            Arc::clone(&hands),
            settings,
            self.secrets.clone(),
            nobody(),
            self.stop.clone(),
        );
        self.tasks.spawn(keeper);
        let (store, stop) = (self.store.clone(), self.stop.clone());
        let secrets = self.secrets.clone();
        self.tasks.spawn(async move {
            let settings = engine::Settings::STANDARD;
            engine::run(store, hands, "test", settings, secrets, nobody(), stop)
                .await
                .unwrap();
        });
    }

    async fn state(&self, name: &str) -> ServerState {
        self.store.world().await.unwrap().servers[name].state
    }

    async fn is(&self, name: &str, state: ServerState) {
        until(async || (self.state(name).await == state).then_some(())).await;
    }

    async fn ask(&self, failed: &str) -> Replacement {
        let asked = self.store.ask(failed, &request("lb1", failed)).await;
        let Ok(Asked::Taken { replacement, .. }) = asked else {
            panic!("{asked:?}");
        };
        let offered = || async {
            let now = self.store.replacement(&replacement.id).await.unwrap();
            (now.state == ReplacementState::Attaching).then_some(now)
        };
        until(offered).await
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = timeout(LONG, self.tasks.join_next()).await.expect("ends") {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn a_spare_that_is_kept_warm_is_offered_without_an_order() {
    let pool = Pool::new(1).await;
    pool.is("spare1", ServerState::Standby).await;
    let before = pool.hands.orders();
    assert!(
        before.contains(&"spare1 install:nginx".to_owned()),
        "{before:?}"
    );
    let offered = pool.ask("10.0.0.1").await;
    assert_eq!(offered.spare.unwrap().name, "spare1");
    assert_eq!(offered.steps, []);
    let after = pool.hands.orders();
    let of_spare1 = |orders: &[String]| {
        let own = orders.iter().filter(|o| o.starts_with("spare1 "));
        own.filter(|o| *o != "spare1 look").count()
    };
    assert_eq!(of_spare1(&after), of_spare1(&before));
    // Its place among those that are kept is filled.
    pool.is("spare2", ServerState::Standby).await;
    assert_eq!(
        pool.state("spare3").await,
        ServerState::Ready,
        "one is enough"
    );
    pool.end().await;
}

/// As the API asks: the answer has the spare, and nobody took a turn for it.
#[tokio::test]
async fn a_spare_that_is_kept_warm_is_offered_with_the_answer() {
    let mut files = inventory();
    let (secrets, _dir) = with_secrets(&mut files);
    let mut pool = Pool::of(1, files, secrets).await;
    pool.is("spare1", ServerState::Standby).await;
    pool.stop.cancel();
    while pool.tasks.join_next().await.is_some() {}
    let ask = async |key: &str, failed: &str| {
        let ready: Ready<'_> = &|world, id, place| claiming::ready(world, &pool.secrets, id, place);
        let (body, from) = (request("lb1", failed), "192.0.2.1".to_owned());
        let asked = pool.store.ask_from(key, &body, from, ("here", ready)).await;
        let Ok(Asked::Taken { replacement, new }) = asked else {
            panic!("{asked:?}");
        };
        (*replacement, new)
    };
    let (first, new) = ask("k1", "10.0.0.1").await;
    assert_eq!((first.state, new), (ReplacementState::Attaching, true));
    assert_eq!(first.spare.as_ref().unwrap().name, "spare1");
    assert_eq!(
        (first.steps.len(), pool.state("spare1").await),
        (0, ServerState::Testing)
    );
    // Whoever sees the same failure has the same.
    let (again, new) = ask("k2", "10.0.0.1").await;
    assert_eq!((again, new), (first.clone(), false));
    let members = pool.store.members(&"lb1".parse().unwrap()).await.unwrap();
    assert_eq!(members.unwrap().members.len(), 1);
    let filter = EventFilter::default();
    let trail = pool.store.events(None, None, &filter).await.unwrap();
    let trail = serde_json::json!(trail).to_string();
    assert!(trail.contains("\"here\""), "{trail}");
    // The next has to be made ready: that is the engine's.
    let (next, _) = ask("k3", "10.0.0.2").await;
    assert_eq!(next.state, ReplacementState::Pending);
    assert_eq!(pool.state("spare2").await, ServerState::Ready);
    pool.stop = CancellationToken::new();
    pool.start();
    let offered = pool.ask("10.0.0.2").await;
    assert_eq!(offered.spare.unwrap().name, "spare2");
    pool.end().await;
}

#[tokio::test]
async fn a_spare_that_cannot_be_made_ready_is_put_aside_and_the_role_rests() {
    let mut pool = Pool::new(0).await;
    pool.stop.cancel();
    while pool.tasks.join_next().await.is_some() {}
    pool.hands.temper("spare1", |t| {
        assert!(t.broken.insert("install:nginx".into()))
    });
    let mut files = inventory();
    files
        .roles
        .get_mut("web.shop.example")
        .unwrap()
        .spares
        .keep_warm = 2;
    pool.store.apply(&files, false, "test").await.unwrap();
    pool.stop = CancellationToken::new();
    pool.start();
    pool.is("spare1", ServerState::Quarantined).await;
    let in_hand = until(async || {
        let in_hand = pool.store.upkeep_in_hand().await.unwrap();
        in_hand.warming.is_empty().then_some(in_hand)
    });
    assert!(in_hand.await.failed.contains("web.shop.example"));
    // A failure has a spare all the same.
    let offered = pool.ask("10.0.0.1").await;
    assert_eq!(offered.spare.unwrap().name, "spare2");
    pool.end().await;
}

#[tokio::test]
async fn a_spare_that_is_given_back_is_cleaned_once_nobody_has_it() {
    let mut files = inventory();
    let (secrets, _dir) = with_secrets(&mut files);
    let pool = Pool::of(0, files, secrets).await;
    let offered = pool.ask("10.0.0.1").await;
    let lb1 = "lb1".parse().unwrap();
    let is = |is| Confirmation { is };
    let confirm = async |want| {
        pool.store
            .confirm(&lb1, &offered.id, is(want))
            .await
            .unwrap()
    };
    assert_eq!(confirm(Want::Attach).await, ConfirmOutcome::Succeeded);
    assert!(pool.store.give_back(&lb1, &offered.id).await.unwrap());
    assert_eq!(pool.state("spare1").await, ServerState::Failed);
    let world = pool.store.world().await.unwrap();
    let keeping = &world.servers["spare1"].keeping;
    assert_eq!(keeping.clean_after.as_deref(), Some("web.shop.example"));
    assert_eq!(
        world.upkeep(&InHand::default()).len(),
        1,
        "it would be cleaned"
    );
    let upkeep = &world.upkeep(&InHand::default())[0];
    let steps = world.upkeep_steps(upkeep, "x").unwrap();
    let id = new_id("clean").unwrap();
    let begun = pool.store.begin_upkeep(&id, upkeep, &steps).await.unwrap();
    assert!(!begun, "the director has it in its table still");
    confirm(Want::Withdraw).await;
    pool.is("spare1", ServerState::Ready).await;
    let orders = pool.hands.orders();
    assert_eq!(orders.iter().filter(|o| *o == "spare1 clean").count(), 1);
    assert_eq!(
        pool.hands.covered.lock().unwrap()["clean"],
        "******** ********"
    );
    let world = pool.store.world().await.unwrap();
    let keeping = &world.servers["spare1"].keeping;
    assert_eq!((keeping.placed.len(), &keeping.clean_after), (0, &None));
    // And it can be taken again.
    let again = pool.ask("10.0.0.2").await;
    assert_eq!(again.spare.unwrap().name, "spare1");
    pool.end().await;
}

/// Hands that put away what was left.
#[derive(Clone)]
struct Tidies {
    hands: FakeHands,
    store: Store,
    tries: Arc<std::sync::atomic::AtomicU32>,
}

impl Hands for Tidies {
    async fn perform(
        &self,
        order: &Order,
        said: crate::provisioner::order::Said<'_>,
    ) -> Result<crate::provisioner::order::Done, crate::provisioner::order::StepError> {
        self.hands.perform(order, said).await
    }

    async fn tidy(&self, server: &Server) -> Result<(), crate::provisioner::order::StepError> {
        use crate::provisioner::driver::Ledger;
        self.tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let left = self.store.left_behind(&server.name).await.unwrap().unwrap();
        self.store.tidied(&server.name, &left).await.unwrap();
        Ok(())
    }
}

#[tokio::test]
async fn what_an_installation_left_is_put_away_in_a_quarantine() {
    use crate::provisioner::{
        driver::{Ledger, Noting},
        store::Note,
        workflow::{Event, Retry},
    };
    let home = Home::of("sqlite").await;
    let store = home.open().await;
    store.apply(&inventory(), false, "test").await.unwrap();
    let hands = Tidies {
        hands: FakeHands::default(),
        store: store.clone(),
        tries: Arc::default(),
    };
    let settings = Settings {
        rehearse: None,
        turn: Duration::from_millis(5),
    };
    let (stop, mut keeper) = keep(&store, &hands, settings, Observer::nobody());
    store
        .register(&"lb1".parse().unwrap(), &registration("lb1"))
        .await
        .unwrap();
    store.ask("k1", &request("lb1", "10.0.0.1")).await.unwrap();
    let run = store.begin_run("test").await.unwrap();
    let lease = store.lease(&run, LONG, 1).await.unwrap().remove(0);
    let claim = crate::provisioner::store::Claim {
        server: "spare1".to_owned(),
        role: "web.shop.example".to_owned(),
        steps: vec![Step::Fence],
        rejected: Vec::new(),
    };
    let lease = store
        .claim(&lease, claim, |_| None)
        .await
        .unwrap()
        .unwrap()
        .lease;
    let noting = Noting {
        text: "loading",
        ahead: false,
        forgets: false,
    };
    store
        .note_installation("spare1", lease.fence(), noting)
        .await
        .unwrap();
    let (position, class) = (0, crate::provisioner::order::Class::Permanent);
    let reason = "overran: not ended".to_owned();
    let failed = Event::Failed {
        position,
        class,
        reason,
    };
    for event in [Event::Started { position }, failed] {
        let (note, retry) = (Note::default(), Retry::STANDARD);
        store.advance(&lease, &event, note, &retry).await.unwrap();
    }
    until(async || {
        let world = store.world().await.unwrap();
        let spare = world.servers.get("spare1").unwrap();
        (!spare.keeping.untidy).then_some(())
    })
    .await;
    assert_eq!(hands.tries.load(std::sync::atomic::Ordering::SeqCst), 1);
    stop.cancel();
    while let Some(ended) = keeper.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_spare_is_made_ready_anew_where_a_secret_changes() {
    let mut files = inventory();
    let (secrets, dir) = with_secrets(&mut files);
    std::fs::remove_file(dir.path().join("token")).unwrap();
    let pool = Pool::of(1, files, secrets).await;
    // One that cannot be told what it needs is not taken in hand.
    until(async || (pool.hands.orders().len() > 2).then_some(())).await;
    assert_eq!(pool.state("spare1").await, ServerState::Ready);
    write_secret(&dir, "token", "swordfish");
    pool.is("spare1", ServerState::Standby).await;
    let told = |value: &str| {
        let steps = pool.hands.steps.lock().unwrap();
        let wanted = format!("token {value};\n");
        let placed = |s: &&Step| {
            matches!(s, Step::Configure { files, .. }
                if files.iter().any(|f| f.body == wanted.as_bytes()))
        };
        steps.iter().filter(placed).count()
    };
    assert_eq!(told("swordfish"), 1);
    write_secret(&dir, "token", "another one");
    until(async || (told("another one") > 0).then_some(())).await;
    pool.is("spare1", ServerState::Standby).await;
    let offered = pool.ask("10.0.0.1").await;
    assert_eq!(
        (offered.spare.unwrap().name.as_str(), offered.steps),
        ("spare1", Vec::new())
    );
    pool.end().await;
}
