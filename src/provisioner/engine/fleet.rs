//! Several provisioners on one PostgreSQL, and that one away.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Stdio},
    sync::Mutex,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::*;
use crate::{
    model::{
        EventFilter,
        wire::{RegisteredServer, Registration, Replacement},
    },
    provisioner::{
        store::{Asked, Engine, Place},
        testing::*,
    },
};

const SOON: Duration = Duration::from_secs(60);

const QUICK: Settings = Settings {
    retry: Retry {
        tries: 3,
        first: Duration::from_millis(2),
        longest: Duration::from_millis(10),
    },
    at_once: 8,
    installs_at_once: 2,
    look: Duration::from_millis(100),
    look_again: Duration::from_secs(5),
    lease: Duration::from_secs(2),
};

/// A director with all servers of [`wide`] in a service.
fn all_of(name: &str, n: u8) -> Registration {
    let mut all = registration(name);
    let like = all.services[0].servers[0].clone();
    all.services[0].servers = (1..=n)
        .map(|i| RegisteredServer {
            address: ip(&format!("10.1.0.{i}")),
            ..like.clone()
        })
        .collect();
    all
}

/// Waits until `is` says so of all replacements.
async fn until(store: &Store, is: impl Fn(&[Replacement]) -> bool) -> Vec<Replacement> {
    let wait = async {
        loop {
            if let Ok(all) = store.replacements().await
                && is(&all)
            {
                return all;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(SOON, wait).await {
        Ok(all) => all,
        Err(_) => panic!("stuck at {:#?}", store.replacements().await),
    }
}

fn attaching(all: &[Replacement]) -> usize {
    let offered = |r: &&Replacement| r.state == ReplacementState::Attaching;
    all.iter().filter(offered).count()
}

/// Asks until the store answers, as a director does.
async fn ask(store: &Store, director: &str, key: &str, failed: &str) -> ReplacementId {
    let wait = async {
        loop {
            match store.ask(key, &request(director, failed)).await {
                Ok(Asked::Taken { replacement, .. }) => return replacement.id,
                Ok(other) => panic!("{other:?}"),
                Err(e) => assert!(e.is_away(), "{}", Chain(&e)),
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, wait).await.expect("an answer")
}

/// No script of any spare was started twice.
fn started_once(hands: &FakeHands) {
    for (name, remote) in hands.remotes.lock().unwrap().iter() {
        let mut jobs = remote.starts.clone();
        jobs.sort();
        jobs.dedup();
        assert_eq!(jobs.len(), remote.starts.len(), "{name}: {remote:?}");
        assert_eq!(remote.starts.len(), 2, "{name}: {remote:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_provisioners_share_sixty_failures_and_no_spare_has_two_places() {
    let home = Home::new(Engine::Postgres).await;
    let stores = [home.open().await, home.open().await, home.open().await];
    let mut few = wide(60);
    let late: Vec<_> = (31..=60)
        .map(|i| few.servers.remove(&format!("s{i:03}")).unwrap())
        .collect();
    stores[0].apply(&few, false, "test").await.unwrap();
    for director in ["lb1", "lb2"] {
        let name = director.parse().unwrap();
        let all = all_of(director, 60);
        stores[0].register(&name, &all).await.unwrap();
    }
    let hands = FakeHands {
        slow: Duration::from_millis(2),
        ..FakeHands::default()
    };
    let stop = CancellationToken::new();
    let mut engines = JoinSet::new();
    for (store, host) in stores.iter().zip(["one", "two", "three"]) {
        let (store, hands, stop) = (store.clone(), Arc::new(hands.clone()), stop.clone());
        engines.spawn(async move {
            run(
                store,
                hands,
                host,
                QUICK,
                Secrets::default(),
                Observer::nobody(),
                stop,
            )
            .await
        });
    }
    // Both directors of a pair see each failure, and ask different provisioners at the same moment.
    let mut asked = JoinSet::new();
    for i in 1..=60_usize {
        for (n, director) in ["lb1", "lb2"].into_iter().enumerate() {
            let store = stores[(i + n) % 3].clone();
            asked.spawn(async move {
                let key = format!("{director}-{i}");
                (i, ask(&store, director, &key, &format!("10.1.0.{i}")).await)
            });
        }
    }
    let mut by_failure = BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        let (i, id) = answer.unwrap();
        let first = by_failure.entry(i).or_insert_with(|| id.clone());
        assert_eq!(*first, id, "two replacements for one failure");
    }
    let told = |r: &Replacement| r.state == ReplacementState::Attaching || r.reason.is_some();
    let all = until(&stores[0], |all| {
        attaching(all) == 30 && all.iter().all(told)
    })
    .await;
    assert_eq!(all.len(), 60);
    distinct(&all);
    // Thirty more, told to one provisioner: whoever waits at whichever gets one.
    let mut more = few.clone();
    more.servers
        .extend(late.into_iter().map(|s| (s.name.clone(), s)));
    stores[2].apply(&more, false, "test").await.unwrap();
    let all = until(&stores[1], |all| attaching(all) == 60).await;
    distinct(&all);
    started_once(&hands);
    // Each had a part in it.
    for host in ["one", "two", "three"] {
        assert!(done_by(&stores[0], host).await > 0, "{host}");
    }
    stop.cancel();
    while let Some(ended) = engines.join_next().await {
        ended.unwrap().unwrap();
    }
}

fn distinct(all: &[Replacement]) {
    let mut spares: Vec<_> = all
        .iter()
        .filter_map(|r| r.spare.as_ref())
        .map(|s| &s.name)
        .collect();
    let n = spares.len();
    spares.sort();
    spares.dedup();
    assert_eq!(spares.len(), n, "a spare has two places");
}

/// How many steps a provisioner has journaled as done.
async fn done_by(store: &Store, host: &str) -> usize {
    let (mut after, mut n) = (Some(0), 0);
    loop {
        let page = store
            .events(None, after, &EventFilter::default())
            .await
            .unwrap();
        if page.events.is_empty() {
            return n;
        }
        after = Some(page.next);
        let of_it = page.events.iter().filter(|e| {
            e.reason.as_deref() == Some("step_done") && e.origin.as_deref() == Some(host)
        });
        n += of_it.count();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_under_work_loses_nothing() {
    let mut server = tokio::task::spawn_blocking(Postgres::new).await.unwrap();
    let place = server.database().await;
    let store = Store::open_at(&place).await.unwrap();
    store.apply(&wide(20), false, "test").await.unwrap();
    let lb1 = "lb1".parse().unwrap();
    store.register(&lb1, &all_of("lb1", 20)).await.unwrap();
    let hands = FakeHands {
        slow: Duration::from_millis(20),
        ..FakeHands::default()
    };
    let lost = Arc::new(Mutex::new(0_u32));
    let counted = Arc::clone(&lost);
    let observer = Observer::new(move |fact| {
        *counted.lock().unwrap() += u32::from(fact == Fact::LeaseLost);
    });
    let stop = CancellationToken::new();
    let patient = Settings {
        lease: Duration::from_secs(60),
        ..QUICK
    };
    let (s, h, st) = (store.clone(), Arc::new(hands.clone()), stop.clone());
    let mut engine = JoinSet::new();
    engine.spawn(async move { run(s, h, "one", patient, Secrets::default(), observer, st).await });
    for i in 1..=10 {
        ask(&store, "lb1", &format!("k{i}"), &format!("10.1.0.{i}")).await;
    }
    until(&store, |all| attaching(all) >= 2).await;
    // In order, and as a crash; directors ask meanwhile.
    for (n, mode) in ["fast", "immediate"].into_iter().enumerate() {
        tokio::task::block_in_place(|| server.stop(mode));
        let e = store.ping().await.unwrap_err();
        assert!(e.is_away(), "{}", Chain(&e));
        let mut asking = JoinSet::new();
        for i in 0..5 {
            let (store, i) = (store.clone(), 11 + n * 5 + i);
            asking.spawn(async move {
                ask(&store, "lb1", &format!("k{i}"), &format!("10.1.0.{i}")).await
            });
        }
        tokio::task::block_in_place(|| server.start());
        asking.join_all().await;
    }
    let all = until(&store, |all| attaching(all) == 20).await;
    distinct(&all);
    started_once(&hands);
    assert_eq!(*lost.lock().unwrap(), 0);
    assert!(
        engine.try_join_next().is_none(),
        "a store that was away ended the engine"
    );
    stop.cancel();
    engine.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_down_while_the_store_was_away_is_taken_up_when_it_is_back() {
    let mut server = tokio::task::spawn_blocking(Postgres::new).await.unwrap();
    let place = server.database().await;
    let store = Store::open_at(&place).await.unwrap();
    store.apply(&wide(6), false, "test").await.unwrap();
    let lb1 = "lb1".parse().unwrap();
    store.register(&lb1, &all_of("lb1", 6)).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let hands = FakeHands {
        gate: Some(("install:nginx".into(), Arc::clone(&gate))),
        ..FakeHands::default()
    };
    let (lost, mut told) = watch::channel(0_u32);
    let observer = Observer::new(move |fact| {
        lost.send_modify(|n| *n += u32::from(fact == Fact::LeaseLost));
    });
    let stop = CancellationToken::new();
    let (s, h, st) = (store.clone(), Arc::new(hands.clone()), stop.clone());
    let mut engine = JoinSet::new();
    engine.spawn(async move { run(s, h, "one", QUICK, Secrets::default(), observer, st).await });
    for i in 1..=3 {
        ask(&store, "lb1", &format!("k{i}"), &format!("10.1.0.{i}")).await;
    }
    let installing = |r: &Replacement| r.steps.iter().any(|s| s.step == "install:nginx");
    until(&store, |all| {
        all.iter().filter(|r| installing(r)).count() == 3
    })
    .await;
    // For longer than a lease: all of it is put down. And nobody else is there to take it up.
    tokio::task::block_in_place(|| server.stop("fast"));
    timeout(SOON, told.wait_for(|n| *n == 3))
        .await
        .unwrap()
        .unwrap();
    gate.add_permits(100);
    tokio::task::block_in_place(|| server.start());
    let all = until(&store, |all| attaching(all) == 3).await;
    distinct(&all);
    started_once(&hands);
    stop.cancel();
    engine.join_next().await.unwrap().unwrap().unwrap();
}

/// Environment of the process that is stopped: where its store is.
const AT: &str = "UNDERSTUDY_TEST_STORE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provisioner_that_was_stopped_goes_on_with_nothing_that_another_took_over() {
    let home = Home::new(Engine::Postgres).await;
    let Place::Server { url, .. } = &home.place else {
        panic!("{home:?}")
    };
    let store = home.open().await;
    store.apply(&inventory(), false, "test").await.unwrap();
    let lb1 = "lb1".parse().unwrap();
    store.register(&lb1, &registration("lb1")).await.unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg("provisioner::engine::fleet::the_one_that_is_stopped")
        .env(AT, url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let id = ask(&store, "lb1", "k1", "10.0.0.1").await;
    let installing = |all: &[Replacement]| {
        all.iter()
            .flat_map(|r| &r.steps)
            .any(|s| s.step.starts_with("install"))
    };
    until(&store, installing).await;
    kill(pid, Signal::SIGSTOP).unwrap();
    let stop = CancellationToken::new();
    let hands = Arc::new(FakeHands::default());
    let (s, st) = (store.clone(), stop.clone());
    let mut engine = JoinSet::new();
    engine.spawn(async move {
        run(
            s,
            hands,
            "other",
            QUICK,
            Secrets::default(),
            Observer::nobody(),
            st,
        )
        .await
    });
    let all = until(&store, |all| attaching(all) == 1).await;
    assert_eq!(all[0].id, id);
    let before = done_by(&store, "stopped").await;
    kill(pid, Signal::SIGCONT).unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (noticed, heard) = tokio::sync::oneshot::channel();
    let reader = tokio::task::spawn_blocking(move || {
        let mut noticed = Some(noticed);
        // To its end: who writes to nobody is killed.
        for line in output.lines().map_while(Result::ok) {
            if line.contains("lease lost")
                && let Some(noticed) = noticed.take()
            {
                noticed.send(()).unwrap();
            }
        }
    });
    timeout(SOON, heard)
        .await
        .expect("it never noticed")
        .unwrap();
    // It still runs, and has written nothing since.
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(done_by(&store, "stopped").await, before);
    assert_eq!(store.replacements().await.unwrap(), all);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    reader.await.unwrap();
    stop.cancel();
    engine.join_next().await.unwrap().unwrap().unwrap();
}

/// Started by the test above as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of another test"]
async fn the_one_that_is_stopped() {
    let place = Place::Server {
        url: std::env::var(AT).unwrap(),
        password: None,
    };
    let store = Store::open_at(&place).await.unwrap();
    let hands = Arc::new(FakeHands {
        slow: Duration::from_millis(400),
        ..FakeHands::default()
    });
    let stop = CancellationToken::new();
    let observer = Observer::new(|fact| {
        if fact == Fact::LeaseLost {
            writeln!(std::io::stdout(), "lease lost").unwrap();
        }
    });
    let st = stop.clone();
    let mut engine = JoinSet::new();
    engine.spawn(async move {
        run(
            store,
            hands,
            "stopped",
            QUICK,
            Secrets::default(),
            observer,
            st,
        )
        .await
    });
    // Until its parent has no more use for it.
    let closed = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    closed.await.unwrap().unwrap();
    stop.cancel();
    engine.join_next().await.unwrap().unwrap().unwrap();
}
