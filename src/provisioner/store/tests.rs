use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{rows::Columns as _, *};
use crate::{
    model::{
        Event as Told, EventFilter, EventKind, ReplacementId,
        inventory::{ChangeAction, Inventory, InventoryAnswer, ServerState},
        wire::{Confirmation, Findings, ReplacementState, Want},
    },
    provisioner::{
        order::Step,
        testing::*,
        workflow::{Event, Retry},
    },
};

async fn fresh() -> (Home, Store) {
    let home = Home::of(module_path!()).await;
    let store = home.open().await;
    store.apply(&inventory(), false, "test").await.unwrap();
    store
        .register(&d("lb1"), &registration("lb1"))
        .await
        .unwrap();
    (home, store)
}

/// Whatever the engine may do with it.
async fn work(store: &Store, id: &ReplacementId) -> Work {
    let mut tx = store.read().await.unwrap();
    journal::load(&mut tx, id).await.unwrap()
}

/// As a new run of a host has it that freed what its last one had.
async fn leased(store: &Store, host: &str, id: &ReplacementId) -> Lease {
    let run = store.begin_run(host).await.unwrap();
    let leases = store.lease(&run, LONG, 100).await.unwrap();
    leases.into_iter().find(|lease| lease.id == *id).unwrap()
}

/// No test takes longer.
const LONG: Duration = Duration::from_secs(600);

fn d(name: &str) -> crate::model::DirectorName {
    name.parse().unwrap()
}

async fn asked(store: &Store, key: &str, director: &str, failed: &str) -> ReplacementId {
    match store.ask(key, &request(director, failed)).await.unwrap() {
        Asked::Taken { replacement, .. } => replacement.id,
        other => panic!("{other:?}"),
    }
}

/// Brings a replacement to its offer with a given spare, as the engine would.
async fn offered(store: &Store, id: &ReplacementId, spare: &str) {
    let lease = leased(store, "test", id).await;
    let claim = Claim {
        server: spare.to_owned(),
        role: "web.shop.example".to_owned(),
        steps: vec![Step::Fence],
        rejected: Vec::new(),
    };
    let claimed = store.claim(&lease, claim, |_| None).await.unwrap();
    let lease = claimed.unwrap().lease;
    for event in [
        Event::Started { position: 0 },
        Event::Done { position: 0 },
        Event::Offered,
    ] {
        let note = Note::default();
        store
            .advance(&lease, &event, note, &Retry::STANDARD)
            .await
            .unwrap();
    }
}

async fn confirm(store: &Store, director: &str, id: &ReplacementId, is: Want) -> ConfirmOutcome {
    store
        .confirm(&d(director), id, Confirmation { is })
        .await
        .unwrap()
}

async fn state(store: &Store, server: &str) -> ServerState {
    let servers = store.servers().await.unwrap();
    servers
        .iter()
        .find(|s| s.server.name == server)
        .unwrap()
        .state
}

fn said(answer: &InventoryAnswer, action: ChangeAction) -> Vec<String> {
    answer
        .changes
        .iter()
        .filter(|c| c.action == action)
        .map(|c| format!("{}: {}", c.object, c.detail))
        .collect()
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let (home, store) = fresh().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         SELECT 99, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1",
    )
    .execute(&store.pool)
    .await
    .unwrap();
    store.close().await;
    let e = Store::open_at(&home.place).await;
    assert!(
        matches!(e, Err(StoreError::Newer { migration: 99, .. })),
        "{e:?}"
    );
}

#[tokio::test]
async fn applying_twice_changes_nothing() {
    let home = Home::of(module_path!()).await;
    let store = home.open().await;
    let dry = store.apply(&inventory(), true, "test").await.unwrap();
    assert!(!dry.applied);
    assert_eq!(dry.changes.len(), 9, "{dry:?}");
    assert_eq!(store.servers().await.unwrap(), []);
    let first = store.apply(&inventory(), false, "test").await.unwrap();
    assert!(first.applied);
    assert_eq!(first.changes, dry.changes);
    let before = store.world().await.unwrap();
    let second = store.apply(&inventory(), false, "test").await.unwrap();
    assert!(!second.applied);
    assert_eq!(second.changes, []);
    assert_eq!(store.world().await.unwrap(), before);
    assert_eq!(state(&store, "web1").await, ServerState::Serving);
    assert_eq!(state(&store, "spare1").await, ServerState::Ready);
}

#[tokio::test]
async fn every_fault_of_an_inventory_is_listed_and_nothing_written() {
    let (_dir, store) = fresh().await;
    let before = store.world().await.unwrap();
    let mut bad = inventory();
    bad.software.remove(0);
    bad.files[0].body = "{{".into();
    let web1 = bad.servers.get_mut("web1").unwrap();
    web1.role = Some("nobody".into());
    web1.addresses = vec![ip("10.0.0.2")];
    bad.servers.get_mut("spare1").unwrap().host_keys.clear();
    let e = store.apply(&bad, false, "test").await.unwrap_err();
    let ApplyError::Problems(Problems(all)) = e else {
        panic!("{e}")
    };
    assert_eq!(all.len(), 5, "{all:#?}");
    assert_eq!(store.world().await.unwrap(), before);
}

#[tokio::test]
async fn two_software_of_a_role_with_one_file_are_a_fault() {
    let mut bad = inventory();
    let mut twice = bad.files[0].clone();
    twice.software = "storage".into();
    bad.files.push(twice);
    let Problems(all) = problems(&bad).unwrap_err();
    assert_eq!(
        all,
        ["role web.shop.example: nginx and storage both place /etc/nginx/conf.d/shop.conf"]
    );
}

#[tokio::test]
async fn what_differs_is_changed_and_said() {
    let (_dir, store) = fresh().await;
    let mut new = inventory();
    new.servers.remove("spare3");
    new.servers.get_mut("spare1").unwrap().host_keys = vec!["ssh-ed25519 BBBB".into()];
    new.servers.get_mut("spare2").unwrap().role = Some("web.shop.example".into());
    new.servers.get_mut("web2").unwrap().role = None;
    new.roles.get_mut("web.shop.example").unwrap().software = vec!["nginx".into()];
    new.files[0].body.push('#');
    let answer = store.apply(&new, false, "test").await.unwrap();
    assert_eq!(
        said(&answer, ChangeAction::Remove),
        ["server spare3: was ready"]
    );
    assert_eq!(
        said(&answer, ChangeAction::Change),
        [
            "file /etc/nginx/conf.d/shop.conf of nginx in shop.example: other text",
            "role web.shop.example: nginx on debian-12, was storage nginx on debian-12",
            "server spare1: other host keys",
            "server spare2: role web.shop.example, was none",
            "server web2: role none, was web.shop.example",
        ]
    );
    assert_eq!(state(&store, "spare2").await, ServerState::Serving);
    assert_eq!(state(&store, "web2").await, ServerState::Quarantined);
    let again = store.apply(&new, false, "test").await.unwrap();
    assert_eq!(
        (again.applied, again.changes.len()),
        (false, 0),
        "{again:?}"
    );
}

#[tokio::test]
async fn two_servers_may_swap_their_addresses() {
    let (_dir, store) = fresh().await;
    let mut new = inventory();
    let a = new.servers["spare1"].addresses.clone();
    let b = new.servers["spare2"].addresses.clone();
    new.servers.get_mut("spare1").unwrap().addresses = b;
    new.servers.get_mut("spare2").unwrap().addresses = a;
    assert!(store.apply(&new, false, "test").await.unwrap().applied);
    let world = store.world().await.unwrap();
    assert_eq!(
        world.server_of(ip("10.0.0.11")).unwrap().server.name,
        "spare2"
    );
}

#[tokio::test]
async fn what_a_replacement_gave_is_held_against_the_files() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &id, "spare1").await;
    confirm(&store, "lb1", &id, Want::Attach).await;
    let before = store.world().await.unwrap();
    let answer = store.apply(&inventory(), false, "test").await.unwrap();
    assert!(!answer.applied);
    assert_eq!(store.world().await.unwrap(), before);
    assert_eq!(
        said(&answer, ChangeAction::Held),
        [
            format!(
                "server spare1: the files say role none: it holds the role web.shop.example by {id}"
            ),
            format!(
                "server web1: the files say role web.shop.example: its role is held by spare1 ({id})"
            ),
        ]
    );
    // Nor can the files take it away by dropping it, or the role, or by moving its addresses.
    let mut new = inventory();
    new.servers.remove("spare1");
    new.servers.remove("web1");
    new.servers.remove("web2");
    new.roles.clear();
    let answer = store.apply(&new, false, "test").await.unwrap();
    assert!(!answer.applied, "{answer:?}");
    assert_eq!(said(&answer, ChangeAction::Held).len(), 4, "{answer:?}");
    let mut new = inventory();
    new.servers.get_mut("spare1").unwrap().addresses = vec![ip("10.0.0.99")];
    store.apply(&new, false, "test").await.unwrap();
    assert_eq!(store.world().await.unwrap(), before);
    // Files that agree with what is are no longer held.
    let mut new = inventory();
    new.servers.get_mut("spare1").unwrap().role = Some("web.shop.example".into());
    new.servers.get_mut("web1").unwrap().role = None;
    store.apply(&new, false, "test").await.unwrap();
    let again = store.apply(&new, false, "test").await.unwrap();
    assert_eq!(again.changes, []);
}

#[tokio::test]
async fn a_server_at_work_is_held() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    let lease = leased(&store, "test", &id).await;
    let claim = Claim {
        server: "spare1".to_owned(),
        role: "web.shop.example".to_owned(),
        steps: vec![Step::Fence],
        rejected: Vec::new(),
    };
    store.claim(&lease, claim, |_| None).await.unwrap().unwrap();
    let mut new = inventory();
    new.servers.remove("spare1");
    let answer = store.apply(&new, false, "test").await.unwrap();
    assert_eq!(
        said(&answer, ChangeAction::Held),
        [format!(
            "server spare1: gone from the files: it is being configured by {id}"
        )]
    );
    assert_eq!(
        store.release("spare1", "test").await.unwrap(),
        ServerOutcome::Refused(
            "spare1 is claimed: only a server that is quarantined, failed or kept warm can be released".into()
        )
    );
}

#[tokio::test]
async fn one_failure_has_one_replacement_whoever_asks_with_whatever_key() {
    let (_dir, store) = fresh().await;
    store
        .register(&d("lb2"), &registration("lb2"))
        .await
        .unwrap();
    let mut set = tokio::task::JoinSet::new();
    for n in 0..50 {
        let store = store.clone();
        set.spawn(async move {
            // Its IPv4 and its IPv6 address are the same server.
            let failed = if n % 3 == 0 { "fd00::1" } else { "10.0.0.1" };
            let director = if n % 2 == 0 { "lb1" } else { "lb2" };
            let mut body = request(director, failed);
            body.director = ip("10.0.0.252");
            match store.ask(&format!("key-{n}"), &body).await.unwrap() {
                Asked::Taken { replacement, new } => (replacement.id, new),
                other => panic!("{other:?}"),
            }
        });
    }
    let all = set.join_all().await;
    assert_eq!(all.iter().filter(|(_, new)| *new).count(), 1);
    let ids: BTreeSet<_> = all.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_key_is_for_one_body_and_a_director_registers_first() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    assert_eq!(asked(&store, "k1", "lb1", "10.0.0.1").await, id);
    let other = store.ask("k1", &request("lb1", "10.0.0.2")).await.unwrap();
    assert_eq!(other, Asked::KeyReused);
    let stranger = store.ask("k2", &request("lb9", "10.0.0.1")).await.unwrap();
    assert_eq!(stranger, Asked::NotRegistered);
    assert!(id.as_str().starts_with("lb1-"));
}

#[tokio::test]
async fn who_asks_for_news_waits_for_nobody_who_writes() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    if store.engine() == Engine::Sqlite {
        // Its one connection is the writer's.
        return;
    }
    let writer = store.begin().await.unwrap();
    let body = request("lb1", "10.0.0.1");
    let again = tokio::time::timeout(LONG, store.ask("k1", &body)).await;
    match again.unwrap().unwrap() {
        Asked::Taken { replacement, new } => assert_eq!((replacement.id, new), (id, false)),
        other => panic!("{other:?}"),
    }
    // What is new waits its turn.
    let first = store.ask("k2", &body);
    assert!(
        tokio::time::timeout(Duration::from_millis(100), first)
            .await
            .is_err()
    );
    // The server throws out who writes for too long, and all others go on: that was not it.
    writer.rollback().await.unwrap();
}

#[tokio::test]
async fn a_key_is_its_directors_alone() {
    let (_dir, store) = fresh().await;
    store
        .register(&d("lb2"), &registration("lb2"))
        .await
        .unwrap();
    let key = "lb2/10.0.0.2/7";
    // Guessed beforehand, and used for another server.
    let mine = asked(&store, key, "lb1", "10.0.0.1").await;
    let yours = asked(&store, key, "lb2", "10.0.0.2").await;
    assert_ne!(mine, yours);
    assert_eq!(asked(&store, key, "lb1", "10.0.0.1").await, mine);
    let other = store.ask(key, &request("lb2", "10.0.0.1")).await.unwrap();
    assert_eq!(other, Asked::KeyReused);
}

#[tokio::test]
async fn many_keys_for_one_replacement_are_not_kept_for_ever() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "first", "lb1", "10.0.0.1").await;
    for n in 0..100 {
        let key = format!("again{n}");
        assert_eq!(asked(&store, &key, "lb1", "10.0.0.1").await, id);
    }
    let count = async |what: &'static str| {
        let row = sqlx::query(what).fetch_one(&store.pool).await.unwrap();
        row.count("n").unwrap()
    };
    assert_eq!(count("SELECT count(*) AS n FROM request").await, 16);
    let told = "SELECT count(*) AS n FROM event WHERE reason = 'asked_again'";
    assert_eq!(count(told).await, 15);
    // The first and the newest ones are known still.
    for key in ["first", "again99"] {
        let other = store.ask(key, &request("lb1", "10.0.0.2")).await.unwrap();
        assert_eq!(other, Asked::KeyReused, "{key}");
    }
}

#[tokio::test]
async fn what_a_director_said_before_is_not_written_again() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &id, "spare1").await;
    let all = async || {
        let mut tx = store.read().await.unwrap();
        let mut state = Vec::new();
        for what in [
            "SELECT count(*) AS n FROM event",
            "SELECT value AS n FROM meta WHERE name = 'work'",
            "SELECT registered_ms AS n FROM director",
            "SELECT version AS n FROM director",
        ] {
            let row = sqlx::query(what).fetch_one(&mut *tx).await.unwrap();
            state.push(row.count("n").unwrap());
        }
        tx.rollback().await.unwrap();
        state
    };
    let (changes, work) = (store.changes(), store.work());
    let before = all().await;
    let world = store.register(&d("lb1"), &registration("lb1")).await;
    assert_eq!(world.unwrap(), store.world().await.unwrap());
    assert_eq!(all().await, before);
    assert!(!changes.has_changed().unwrap() && !work.has_changed().unwrap());
    let mut other = registration("lb1");
    other.services.pop();
    store.register(&d("lb1"), &other).await.unwrap();
    assert_ne!(all().await, before);
    assert!(changes.has_changed().unwrap() && work.has_changed().unwrap());
}

#[tokio::test]
async fn a_text_that_not_every_engine_keeps_is_a_fault() {
    let (_dir, store) = fresh().await;
    let before = store.world().await.unwrap();
    let mut bad = inventory();
    bad.files[0].body = "a\0b".into();
    let labels = &mut bad.servers.get_mut("web1").unwrap().labels;
    labels.insert("rack".into(), "\0".into());
    let e = store.apply(&bad, false, "test").await.unwrap_err();
    let ApplyError::Problems(Problems(all)) = e else {
        panic!("{e:?}");
    };
    assert_eq!(
        all,
        [
            "a text of body in files in the inventory contains a NUL byte",
            "a text of rack in labels in web1 in servers in the inventory contains a NUL byte",
        ]
    );
    // Written out it is none.
    let mut good = inventory();
    good.files[0].body = "\\u0000".into();
    store.apply(&good, true, "test").await.unwrap();
    assert_eq!(store.world().await.unwrap(), before);
}

#[tokio::test]
async fn whoever_takes_up_all_connections_holds_up_nobody_apart() {
    let (_dir, store) = fresh().await;
    if store.engine() == Engine::Sqlite {
        // It has one.
        return;
    }
    let others = store.apart();
    let mut taken = Vec::new();
    while let Ok(tx) = tokio::time::timeout(Duration::from_millis(500), others.read()).await {
        taken.push(tx.unwrap());
    }
    assert!(!taken.is_empty());
    store.look().await.unwrap();
    // Of what is changed there those here are told.
    let told = others.work();
    asked(&store, "k1", "lb1", "10.0.0.1").await;
    assert!(told.has_changed().unwrap());
}

#[tokio::test]
async fn two_directors_attach_before_it_has_succeeded() {
    let (_dir, store) = fresh().await;
    store
        .register(&d("lb2"), &registration("lb2"))
        .await
        .unwrap();
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    let before = store.members(&d("lb2")).await.unwrap().unwrap();
    assert_eq!(store.replacement(&id).await.unwrap().spare, None);
    offered(&store, &id, "spare1").await;
    let members = store.members(&d("lb2")).await.unwrap().unwrap();
    assert!(members.version > before.version);
    assert_eq!(members.members.len(), 1);
    assert_eq!(members.members[0].want, Want::Attach);
    assert_eq!(members.members[0].spare.addresses.len(), 2);
    let r = store.replacement(&id).await.unwrap();
    assert_eq!(r.state, ReplacementState::Attaching);
    assert_eq!(r.spare.unwrap().name, "spare1");
    assert_eq!(r.reason.as_deref(), Some("not_confirmed: by lb1, lb2"));
    assert_eq!(
        confirm(&store, "lb1", &id, Want::Attach).await,
        ConfirmOutcome::Noted
    );
    assert_eq!(state(&store, "spare1").await, ServerState::Testing);
    assert_eq!(
        confirm(&store, "lb2", &id, Want::Attach).await,
        ConfirmOutcome::Succeeded
    );
    assert_eq!(state(&store, "spare1").await, ServerState::Serving);
    assert_eq!(state(&store, "web1").await, ServerState::Failed);
    // Once more is no harm, and a stranger has none.
    assert_eq!(
        confirm(&store, "lb2", &id, Want::Attach).await,
        ConfirmOutcome::Noted
    );
    assert_eq!(
        confirm(&store, "lb9", &id, Want::Attach).await,
        ConfirmOutcome::NoSuchMember
    );
    // A third director comes later and gets it too; the replacement stays what it is.
    store
        .register(&d("lb3"), &registration("lb3"))
        .await
        .unwrap();
    let members = store.members(&d("lb3")).await.unwrap().unwrap();
    assert_eq!(members.members.len(), 1);
}

#[tokio::test]
async fn a_stand_in_that_is_given_back_leaves_its_place_to_whom_the_files_gave_it() {
    let (_dir, store) = fresh().await;
    let lb2 = registration("lb2");
    store.register(&d("lb2"), &lb2).await.unwrap();
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &id, "spare1").await;
    for director in ["lb1", "lb2"] {
        confirm(&store, director, &id, Want::Attach).await;
    }
    let want = async |director: &str| {
        let members = store.members(&d(director)).await.unwrap().unwrap().members;
        members.first().map(|m| m.want)
    };
    // The other director has it still.
    assert!(store.give_back(&d("lb1"), &id).await.unwrap());
    assert!(store.give_back(&d("lb1"), &id).await.unwrap(), "again");
    assert_eq!(want("lb1").await, Some(Want::Withdraw));
    assert_eq!(want("lb2").await, Some(Want::Attach));
    assert_eq!(state(&store, "spare1").await, ServerState::Serving);
    assert!(store.give_back(&d("lb2"), &id).await.unwrap());
    let ended = store.replacement(&id).await.unwrap().state;
    assert_eq!(ended, ReplacementState::Superseded);
    assert_eq!(state(&store, "spare1").await, ServerState::Failed);
    for director in ["lb1", "lb2"] {
        assert_eq!(
            want(director).await,
            Some(Want::Withdraw),
            "until it is out"
        );
        confirm(&store, director, &id, Want::Withdraw).await;
        assert_eq!(want(director).await, None);
    }
    let released = store.release("spare1", "test").await.unwrap();
    assert_eq!(released, ServerOutcome::Done);
    // If the first server fails once more, that is another failure.
    assert_ne!(asked(&store, "k2", "lb1", "10.0.0.1").await, id);
    assert!(!store.give_back(&d("lb9"), &id).await.unwrap());
}

#[tokio::test]
async fn a_stand_in_that_fails_is_replaced_in_its_origins_place() {
    let (_dir, store) = fresh().await;
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &first, "spare1").await;
    confirm(&store, "lb1", &first, Want::Attach).await;
    // Asked again for the first failure: the stand-in has its place.
    assert_eq!(asked(&store, "k1b", "lb1", "10.0.0.1").await, first);
    let second = asked(&store, "k2", "lb1", "10.0.0.11").await;
    assert_ne!(second, first);
    let r = store.replacement(&second).await.unwrap();
    assert_eq!(r.origin, ip("10.0.0.1"));
    offered(&store, &second, "spare2").await;
    assert_eq!(
        store.release("spare1", "test").await.unwrap(),
        ServerOutcome::Refused(
            "spare1 may still be in service: not confirmed to be withdrawn by lb1".into()
        )
    );
    confirm(&store, "lb1", &second, Want::Attach).await;
    let r = store.replacement(&first).await.unwrap();
    assert_eq!(r.state, ReplacementState::Superseded);
    let members = store.members(&d("lb1")).await.unwrap().unwrap().members;
    let wants: Vec<_> = members
        .iter()
        .map(|m| (m.spare.name.as_str(), m.want))
        .collect();
    assert_eq!(
        wants,
        [("spare1", Want::Withdraw), ("spare2", Want::Attach)]
    );
    // Both failures now lead to the one that holds the place.
    assert_eq!(asked(&store, "k1c", "lb1", "10.0.0.1").await, second);
    assert_eq!(asked(&store, "k2b", "lb1", "10.0.0.11").await, second);
    confirm(&store, "lb1", &first, Want::Withdraw).await;
    let members = store.members(&d("lb1")).await.unwrap().unwrap().members;
    assert_eq!(members.len(), 1);
    assert_eq!(state(&store, "spare1").await, ServerState::Failed);
    assert_eq!(
        store.release("spare1", "test").await.unwrap(),
        ServerOutcome::Done
    );
    // It can stand in again, for another.
    let third = asked(&store, "k3", "lb1", "10.0.0.2").await;
    offered(&store, &third, "spare1").await;
    assert_eq!(
        confirm(&store, "lb1", &third, Want::Attach).await,
        ConfirmOutcome::Succeeded
    );
}

#[tokio::test]
async fn a_chain_is_superseded_to_its_beginning_though_a_link_was_never_confirmed() {
    let (_dir, store) = fresh().await;
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &first, "spare1").await;
    confirm(&store, "lb1", &first, Want::Attach).await;
    let second = asked(&store, "k2", "lb1", "10.0.0.11").await;
    offered(&store, &second, "spare2").await;
    let third = asked(&store, "k3", "lb1", "10.0.0.12").await;
    offered(&store, &third, "spare3").await;
    confirm(&store, "lb1", &third, Want::Attach).await;
    for id in [&first, &second] {
        let r = store.replacement(id).await.unwrap();
        assert_eq!(r.state, ReplacementState::Superseded);
    }
    let members = store.members(&d("lb1")).await.unwrap().unwrap().members;
    let wants: Vec<_> = members.iter().map(|m| m.want).collect();
    assert_eq!(wants, [Want::Withdraw, Want::Withdraw, Want::Attach]);
}

#[tokio::test]
async fn a_late_confirmation_leaves_no_failed_stand_in_serving() {
    let (_dir, store) = fresh().await;
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &first, "spare1").await;
    let second = asked(&store, "k2", "lb1", "10.0.0.11").await;
    offered(&store, &second, "spare2").await;
    confirm(&store, "lb1", &first, Want::Attach).await;
    assert_eq!(state(&store, "spare1").await, ServerState::Serving);
    confirm(&store, "lb1", &second, Want::Attach).await;
    assert_eq!(state(&store, "spare1").await, ServerState::Failed);
    assert_eq!(state(&store, "spare2").await, ServerState::Serving);
}

#[tokio::test]
async fn a_place_keeps_its_addresses_when_its_server_leaves_the_inventory() {
    let (_dir, store) = fresh().await;
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &first, "spare1").await;
    confirm(&store, "lb1", &first, Want::Attach).await;
    let mut new = inventory();
    new.servers.get_mut("web1").unwrap().role = None;
    store.apply(&new, false, "test").await.unwrap();
    new.servers.remove("web1");
    store.apply(&new, false, "test").await.unwrap();
    assert!(!store.world().await.unwrap().servers.contains_key("web1"));
    let second = asked(&store, "k2", "lb1", "10.0.0.11").await;
    let work = work(&store, &second).await;
    let world = store.world().await.unwrap();
    let place = work.place().unwrap();
    let brief = world.brief(place.failed, &place.origins).unwrap();
    assert_eq!(brief.services.len(), 2);
    offered(&store, &second, "spare2").await;
    let members = store.members(&d("lb1")).await.unwrap().unwrap().members;
    assert_eq!(members.len(), 2);
    for m in members {
        assert_eq!(m.origins, [ip("10.0.0.1"), ip("fd00::1")]);
    }
}

#[tokio::test]
async fn a_server_enrolled_after_its_failure_has_one_replacement() {
    let (_dir, store) = fresh().await;
    let mut without = inventory();
    let web1 = without.servers.get_mut("web1").unwrap();
    web1.role = None;
    store.apply(&without, false, "test").await.unwrap();
    without.servers.remove("web1");
    store.apply(&without, false, "test").await.unwrap();
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    store.apply(&inventory(), false, "test").await.unwrap();
    assert_eq!(asked(&store, "k2", "lb1", "fd00::1").await, first);
    assert_eq!(asked(&store, "k3", "lb1", "10.0.0.1").await, first);
    offered(&store, &first, "spare1").await;
    let members = store.members(&d("lb1")).await.unwrap().unwrap().members;
    assert_eq!(members[0].origins, [ip("10.0.0.1"), ip("fd00::1")]);
}

#[tokio::test]
async fn a_stand_in_that_a_director_may_have_in_service_stays_in_the_inventory() {
    let (_dir, store) = fresh().await;
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &first, "spare1").await;
    confirm(&store, "lb1", &first, Want::Attach).await;
    let second = asked(&store, "k2", "lb1", "10.0.0.11").await;
    offered(&store, &second, "spare2").await;
    confirm(&store, "lb1", &second, Want::Attach).await;
    let mut new = inventory();
    new.servers.remove("spare1");
    let answer = store.apply(&new, false, "test").await.unwrap();
    let held = said(&answer, ChangeAction::Held);
    let why = "server spare1: gone from the files: it may still be in service: not confirmed to be \
               withdrawn by lb1";
    assert!(held.contains(&why.to_owned()), "{held:?}");
    confirm(&store, "lb1", &first, Want::Withdraw).await;
    let answer = store.apply(&new, false, "test").await.unwrap();
    assert_eq!(
        said(&answer, ChangeAction::Remove),
        ["server spare1: was failed"]
    );
}

#[tokio::test]
async fn nobody_waits_for_a_director_that_has_given_the_place_up() {
    let (_dir, store) = fresh().await;
    store
        .register(&d("lb2"), &registration("lb2"))
        .await
        .unwrap();
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &id, "spare1").await;
    confirm(&store, "lb1", &id, Want::Attach).await;
    let mut less = registration("lb2");
    less.services.clear();
    store.register(&d("lb2"), &less).await.unwrap();
    let r = store.replacement(&id).await.unwrap();
    assert_eq!(r.state, ReplacementState::Succeeded);
    let members = store.members(&d("lb2")).await.unwrap().unwrap().members;
    assert_eq!(members[0].want, Want::Withdraw);
    // It takes the place up again.
    store
        .register(&d("lb2"), &registration("lb2"))
        .await
        .unwrap();
    let members = store.members(&d("lb2")).await.unwrap().unwrap().members;
    assert_eq!(members[0].want, Want::Attach);
}

#[tokio::test]
async fn a_director_asks_only_for_its_own_servers_and_their_stand_ins() {
    let (_dir, store) = fresh().await;
    let mut less = registration("lb2");
    for service in &mut less.services {
        service.servers.remove(0);
    }
    store.register(&d("lb2"), &less).await.unwrap();
    let other = store.ask("k1", &request("lb2", "10.0.0.1")).await.unwrap();
    assert_eq!(other, Asked::NotYours);
    let id = asked(&store, "k2", "lb2", "fd00::2").await;
    offered(&store, &id, "spare1").await;
    let other = store.ask("k3", &request("lb2", "10.0.0.12")).await.unwrap();
    assert_eq!(other, Asked::NotYours);
    assert_ne!(asked(&store, "k4", "lb2", "fd00::11").await, id);
}

#[tokio::test]
async fn a_restored_backup_does_not_fence_itself_out() {
    let (home, store) = fresh().await;
    sqlx::query("UPDATE meta SET value = 5 WHERE name = 'fence'")
        .execute(&store.pool)
        .await
        .unwrap();
    store.close().await;
    let store = home.open().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    assert!(work(&store, &id).await.fence > 1_600_000_000_000);
}

#[tokio::test]
async fn only_a_ready_server_can_be_claimed() {
    let (_dir, store) = fresh().await;
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    let second = asked(&store, "k2", "lb1", "10.0.0.2").await;
    let run = store.begin_run("test").await.unwrap();
    let leases = store.lease(&run, LONG, 100).await.unwrap();
    let claim = async |id: &ReplacementId, server: &str| {
        let lease = leases.iter().find(|lease| lease.id == *id).unwrap();
        let claim = Claim {
            server: server.to_owned(),
            role: "web.shop.example".to_owned(),
            steps: vec![Step::Fence],
            rejected: Vec::new(),
        };
        store.claim(lease, claim, |_| None).await.unwrap().is_some()
    };
    assert!(claim(&first, "spare1").await);
    // Claimed by another, serving, unknown: the journal is as it was.
    for server in ["spare1", "web2", "nobody"] {
        assert!(!claim(&second, server).await, "{server}");
    }
    let work = work(&store, &second).await;
    assert_eq!(work.journal.hand, None);
    assert!(claim(&second, "spare2").await);
}

#[tokio::test]
async fn whoever_was_beaten_to_a_spare_has_another_at_once() {
    let (_dir, store) = fresh().await;
    let first = asked(&store, "k1", "lb1", "10.0.0.1").await;
    let second = asked(&store, "k2", "lb1", "10.0.0.2").await;
    let run = store.begin_run("test").await.unwrap();
    let leases = store.lease(&run, LONG, 100).await.unwrap();
    let of = |id: &ReplacementId| leases.iter().find(|lease| lease.id == *id).unwrap();
    let spare = |name: &str| Claim {
        server: name.to_owned(),
        role: "web.shop.example".to_owned(),
        steps: vec![Step::Fence],
        rejected: Vec::new(),
    };
    let not_asked = |_: &BTreeSet<String>| panic!("it was free");
    let claimed = store.claim(of(&first), spare("spare1"), not_asked).await;
    assert_eq!(claimed.unwrap().unwrap().server, "spare1");
    // Whoever chooses anew is told the truth; what is not free is not given.
    let again = |free: &BTreeSet<String>| {
        assert!(
            !free.contains("spare1") && free.contains("spare2"),
            "{free:?}"
        );
        Some(spare("spare1"))
    };
    let claimed = store.claim(of(&second), spare("spare1"), again).await;
    assert!(claimed.unwrap().is_none());
    assert_eq!(work(&store, &second).await.journal.hand, None);
    let again = |_: &BTreeSet<String>| Some(spare("spare2"));
    let claimed = store.claim(of(&second), spare("spare1"), again).await;
    let claimed = claimed.unwrap().unwrap();
    assert_eq!(claimed.server, "spare2");
    assert_eq!(
        store
            .work_on(&claimed.lease)
            .await
            .unwrap()
            .journal
            .attempts,
        1
    );
}

#[tokio::test]
async fn an_older_run_can_write_no_more() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    let old = leased(&store, "test", &id).await;
    let new = leased(&store, "test", &id).await;
    assert!(new.fence() > old.fence());
    let waits = Event::Waits {
        reason: "no_spare: x".into(),
    };
    let write = |lease| store.advance(lease, &waits, Note::default(), &Retry::STANDARD);
    // By its word, and by its fence alone.
    let stale = Lease {
        fence: old.fence,
        ..new.clone()
    };
    for lost in [&old, &stale] {
        let e = write(lost).await;
        assert!(matches!(e, Err(StoreError::LeaseLost { .. })), "{e:?}");
        let e = store.work_on(lost).await;
        assert!(matches!(e, Err(StoreError::LeaseLost { .. })), "{e:?}");
        let claim = Claim {
            server: "spare1".to_owned(),
            role: "web.shop.example".to_owned(),
            steps: vec![Step::Fence],
            rejected: Vec::new(),
        };
        let e = store.claim(lost, claim, |_| None).await;
        assert!(matches!(e, Err(StoreError::LeaseLost { .. })), "{e:?}");
    }
    assert!(write(&new).await.is_ok());
}

#[tokio::test]
async fn a_lease_is_one_runs_until_it_runs_out_or_is_given_back() {
    let (_home, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    let a = store.begin_run("a").await.unwrap();
    let b = store.begin_run("b").await.unwrap();
    let first = store.lease(&a, LONG, 8).await.unwrap();
    assert_eq!(first.len(), 1);
    assert!(!store.look().await.unwrap().free);
    assert_eq!(store.lease(&b, LONG, 8).await.unwrap(), []);
    // Given back it is anybody's, under a higher fence.
    store.hand_back(&first).await.unwrap();
    assert!(store.look().await.unwrap().free);
    let second = store.lease(&b, Duration::ZERO, 8).await.unwrap();
    assert!(second[0].fence > first[0].fence);
    // What somebody else has is not given back by who had it once, nor renewed.
    store.hand_back(&first).await.unwrap();
    assert!(store.renew(&a, LONG).await.unwrap().is_empty());
    // It has run out. Renewed in time it is not taken over.
    assert!(store.look().await.unwrap().free);
    let held = store.renew(&b, LONG).await.unwrap();
    assert_eq!(held, BTreeSet::from([id.clone()]));
    assert_eq!(store.lease(&a, LONG, 8).await.unwrap(), []);
    // A run that ends, and one that begins anew, free what they had.
    store.end_run(&b).await.unwrap();
    let third = store.lease(&a, LONG, 8).await.unwrap();
    assert!(third[0].fence > second[0].fence);
    let a = store.begin_run("a").await.unwrap();
    let fourth = store.lease(&a, LONG, 8).await.unwrap();
    assert!(fourth[0].fence > third[0].fence);
}

#[tokio::test]
async fn nobody_changes_or_removes_what_the_audit_trail_says() {
    let (home, store) = fresh().await;
    // Opened twice, it is guarded once.
    let again = home.open().await;
    for change in ["UPDATE event SET actor = 'nobody'", "DELETE FROM event"] {
        let e = sqlx::query(change).execute(&again.pool).await.unwrap_err();
        assert!(e.to_string().contains("append-only"), "{e}");
    }
    let page = store
        .events(None, None, &EventFilter::default())
        .await
        .unwrap();
    assert!(page.events.len() > 5, "{page:?}");
}

#[tokio::test]
async fn fences_only_rise_and_start_above_those_of_a_lost_store() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    let first = work(&store, &id).await.fence;
    assert!(first > 1_600_000_000_000);
    offered(&store, &id, "spare1").await;
    assert!(work(&store, &id).await.fence > first);
}

#[tokio::test]
async fn the_audit_trail_tells_the_story() {
    let (_dir, store) = fresh().await;
    let id = asked(&store, "k1", "lb1", "10.0.0.1").await;
    offered(&store, &id, "spare1").await;
    confirm(&store, "lb1", &id, Want::Attach).await;
    let page = store
        .events(None, None, &EventFilter::default())
        .await
        .unwrap();
    let of_it = |e: &&Told| e.replacement.as_deref() == Some(id.as_str());
    let story: Vec<_> = page.events.iter().filter(of_it).collect();
    let said: Vec<_> = story.iter().map(|e| e.reason.as_deref().unwrap()).collect();
    assert_eq!(
        said,
        [
            "asked",
            "claimed",
            "step_started",
            "step_done",
            "offered",
            "confirmed_attach",
            "attached"
        ]
    );
    let told = |e: &Told| (e.actor.clone().unwrap(), e.origin.clone());
    assert_eq!(told(story[0]), ("lb1".into(), Some("10.0.0.251".into())));
    assert_eq!(told(story[1]), ("engine".into(), Some("test".into())));
    assert_eq!(story[0].server, Some(ip("10.0.0.1").into()));
    assert_eq!(story[0].kind, EventKind::ReplacementRequested);
    assert!(page.events.iter().map(|e| e.number).eq(1..=page.next));
}

#[tokio::test]
async fn counts_by_state_name_every_state() {
    let (_dir, store) = fresh().await;
    let pool = store.pool_by_state().await.unwrap();
    assert_eq!(pool.len(), ServerState::ALL.len());
    assert_eq!(pool[&ServerState::Ready], 3);
    let replacements = store.replacements_by_state().await.unwrap();
    assert_eq!(replacements.values().sum::<u64>(), 0);
    assert_eq!(replacements.len(), ReplacementState::ALL.len());
}

#[tokio::test]
async fn an_empty_inventory_is_no_fault() {
    let home = Home::of(module_path!()).await;
    let store = home.open().await;
    let answer = store.apply(&Inventory::default(), false, "test").await;
    assert!(!answer.unwrap().applied);
}

#[tokio::test]
async fn a_quarantine_ends_by_itself_and_a_longer_one_follows() {
    let (_dir, store) = fresh().await;
    let until = |world: &crate::provisioner::plan::World| {
        let keeping = &world.servers["spare1"].keeping;
        keeping.quarantined_until.map(|at| at.0 - now_ms().0)
    };
    let minutes = |ms: Option<i64>| ms.map(|ms| (ms + 30_000) / 60_000);
    for expected in [Some(10), Some(60), Some(24 * 60), None] {
        let mut tx = store.begin().await.unwrap();
        sqlx::query("UPDATE server SET state = 'quarantined' WHERE name = 'spare1'")
            .execute(&mut *tx)
            .await
            .unwrap();
        pool::put_aside(&mut tx, "spare1").await.unwrap();
        store.commit(tx, News::Work).await.unwrap();
        assert_eq!(minutes(until(&store.world().await.unwrap())), expected);
        assert_eq!(store.end_quarantines().await.unwrap(), [""; 0]);
        assert_eq!(state(&store, "spare1").await, ServerState::Quarantined);
        // Its time is over.
        sqlx::query("UPDATE server SET quarantined_until = 1 WHERE quarantined_until IS NOT NULL")
            .execute(&store.pool)
            .await
            .unwrap();
        let ended = store.end_quarantines().await.unwrap();
        assert_eq!(ended.len(), usize::from(expected.is_some()));
    }
    assert_eq!(state(&store, "spare1").await, ServerState::Quarantined);
    // Whoever releases it says that it is well: counted from the start.
    store.release("spare1", "test").await.unwrap();
    store
        .quarantine("spare1", "smells of smoke", None, "test")
        .await
        .unwrap();
    assert_eq!(state(&store, "spare1").await, ServerState::Quarantined);
    let refused = store.quarantine("web1", "why not", None, "test").await;
    assert!(
        matches!(refused, Ok(ServerOutcome::Refused(_))),
        "it serves: {refused:?}"
    );
}

#[tokio::test]
async fn a_rehearsal_is_made_once_and_says_what_is_new() {
    let (_dir, store) = fresh().await;
    let later = WallMillis(now_ms().0 - 1000);
    let begin = async |name: &str, until: i64| {
        let until = WallMillis(now_ms().0 + until);
        store.begin_rehearsal(name, later, until).await.unwrap()
    };
    // One that is cut off is not made: after its time the next may.
    assert!(begin("spare1", 0).await);
    assert!(begin("spare1", 60_000).await);
    assert!(!begin("spare1", 60_000).await);
    let refused = Some("auth_refused: no".to_owned());
    let (os, trouble) = (None, refused.clone());
    let found = Rehearsed { os, trouble };
    assert!(store.rehearsed("spare1", &found).await.unwrap());
    assert!(!store.rehearsed("spare1", &found).await.unwrap());
    let world = store.world().await.unwrap();
    assert_eq!(world.servers["spare1"].keeping.trouble, refused);
    let os = Some("debian-12".to_owned());
    let trouble = None;
    let found = Rehearsed { os, trouble };
    assert!(store.rehearsed("spare1", &found).await.unwrap());
    let world = store.world().await.unwrap();
    assert_eq!(
        world.servers["spare1"].os_seen.as_deref(),
        Some("debian-12")
    );
    assert_eq!(world.servers["spare1"].keeping.trouble, None);
    // Who serves is not looked at.
    assert!(!begin("web1", 0).await);
    // And who was looked at is not, until it is due.
    assert!(!begin("spare1", 0).await);
}

#[tokio::test]
async fn a_server_in_maintenance_is_no_spare_until_that_is_over() {
    let (_dir, store) = fresh().await;
    let usable = async || {
        let world = store.world().await.unwrap();
        world.readiness(&world.roles["web.shop.example"]).usable
    };
    assert_eq!(usable().await, 3);
    let why = Some("new disks");
    let done = store.maintain("spare1", why, "test").await.unwrap();
    assert_eq!(done, ServerOutcome::Done);
    assert_eq!(usable().await, 2);
    store.maintain("spare1", None, "test").await.unwrap();
    assert_eq!(usable().await, 3);
    let unknown = store.maintain("nobody", why, "test").await.unwrap();
    assert_eq!(unknown, ServerOutcome::NoSuchServer);
}

#[tokio::test]
async fn no_driver_touches_a_server_that_is_not_in_hand() {
    use crate::provisioner::driver::{Held, Ledger};
    let (_dir, store) = fresh().await;
    let (id, lease) = claimed_to_install(&store).await;
    let fence = lease.fence();
    let note = async |server: &str, fence| {
        let noted = store.note_installation(server, fence, AT).await;
        noted.unwrap()
    };
    assert_eq!(note("spare1", fence).await, Held::Yes);
    // Neither another's fence, nor one that serves, nor a free one.
    assert_eq!(note("spare1", fence - 1).await, Held::No);
    assert_eq!(note("web1", fence).await, Held::No);
    assert_eq!(note("spare2", fence).await, Held::No);
    let keys = ["ssh-ed25519 AAAAown".to_owned()];
    assert_eq!(
        store.learn_host_keys("spare2", fence, &keys).await.unwrap(),
        Held::No
    );
    store.learn_host_keys("spare1", fence, &keys).await.unwrap();
    let pins = async |name: &str| {
        let world = store.world().await.unwrap();
        world.servers.get(name).unwrap().server.pins().to_vec()
    };
    assert_eq!(pins("spare1").await, keys);
    assert_eq!(pins("spare2").await, ["ssh-ed25519 AAAAspare2"]);
    // A newer run has another fence.
    let lease = leased(&store, "test", &id).await;
    assert_eq!(note("spare1", fence).await, Held::No);
    let fence = lease.fence();
    assert_eq!(
        store.installation("spare1", fence).await.unwrap(),
        (Held::Yes, Some("at".to_owned()))
    );
    // Cancelled, it may be tidied up; offered, nobody touches it.
    for position in 0..2 {
        for event in [Event::Started { position }, Event::Done { position }] {
            let note = Note::default();
            store
                .advance(&lease, &event, note, &Retry::STANDARD)
                .await
                .unwrap();
        }
    }
    let other = store.clone();
    assert_eq!(note("spare1", fence).await, Held::Yes);
    other
        .advance(&lease, &Event::Offered, Note::default(), &Retry::STANDARD)
        .await
        .unwrap();
    assert_eq!(note("spare1", fence).await, Held::No);
    // The files' new keys go before what was read once.
    let mut files = inventory();
    let spare = files.servers.get_mut("spare1").unwrap();
    spare.host_keys = vec!["ssh-ed25519 AAAAnew".into()];
    store.apply(&files, false, "test").await.unwrap();
    assert_eq!(pins("spare1").await, ["ssh-ed25519 AAAAnew"]);
}

/// Somewhere behind the wiping.
const AT: crate::provisioner::driver::Noting<'static> = crate::provisioner::driver::Noting {
    text: "at",
    ahead: false,
    forgets: false,
};

#[tokio::test]
async fn who_was_cancelled_still_tidies_up() {
    use crate::provisioner::driver::{Held, Ledger};
    let (_dir, store) = fresh().await;
    let id = asked(&store, "lb1.1", "lb1", "10.0.0.1").await;
    let lease = leased(&store, "test", &id).await;
    let claim = Claim {
        server: "spare1".to_owned(),
        role: "web.shop.example".to_owned(),
        steps: vec![Step::Fence],
        rejected: Vec::new(),
    };
    let claimed = store.claim(&lease, claim, |_| None).await.unwrap();
    let lease = claimed.unwrap().lease;
    store.cancel(&id, "test").await.unwrap();
    let held = store.note_installation("spare1", lease.fence(), AT).await;
    assert_eq!(held.unwrap(), Held::Cancelled);
}

#[tokio::test]
async fn drivers_images_and_leave_to_wipe_are_kept() {
    use crate::model::machine::{Boot, Door, Driver, HttpDriver, Image};
    let (_dir, store) = fresh().await;
    let mut files = inventory();
    files.roles.get_mut("web.shop.example").unwrap().install = true;
    let image = Image {
        os: "debian-12".into(),
        boot: Boot::VirtualMedia("https://images.example/d.iso".into()),
        timeout: Duration::from_secs(60),
        enrolment_keys: vec!["ssh-ed25519 AAAAimage".into()],
    };
    files.images.insert(image.os.clone(), image);
    let spare = files.servers.get_mut("spare1").unwrap();
    spare.wipe = true;
    spare.host_keys.clear();
    spare.driver = Driver::Http(Box::new(HttpDriver {
        door: Door {
            url: "https://installer.example/x".parse().unwrap(),
            pin: Some(crate::model::PinDigest([7; 32])),
            credential: "installer".into(),
        },
        machine: "rack 7".into(),
    }));
    let answer = store.apply(&files, false, "test").await.unwrap();
    assert_eq!(
        said(&answer, ChangeAction::Change),
        [
            "role web.shop.example: storage nginx on debian-12, installed where needed, was storage \
             nginx on debian-12",
            "server spare1: other host keys; driver http, was ready; may be wiped",
        ]
    );
    assert_eq!(said(&answer, ChangeAction::Add), ["image debian-12: "]);
    let world = store.world().await.unwrap();
    assert_eq!(world.images, files.images);
    assert_eq!(world.roles, files.roles);
    let kept = &world.servers.get("spare1").unwrap().server;
    assert_eq!(kept, files.servers.get("spare1").unwrap());
    let again = store.apply(&files, false, "test").await.unwrap();
    assert!(!again.applied, "{again:?}");
}

/// A replacement with spare1 in hand, whose operating system is to be installed.
async fn claimed_to_install(store: &Store) -> (ReplacementId, Lease) {
    use crate::model::machine::{Boot, Image};
    let id = asked(store, "lb1.1", "lb1", "10.0.0.1").await;
    let lease = leased(store, "test", &id).await;
    let image = Image {
        os: "debian-12".into(),
        boot: Boot::Pxe,
        timeout: Duration::from_secs(60),
        enrolment_keys: Vec::new(),
    };
    let install = Step::OsInstall {
        job: "j".into(),
        image,
        anew: false,
    };
    let claim = Claim {
        server: "spare1".to_owned(),
        role: "web.shop.example".to_owned(),
        steps: vec![install, Step::Fence],
        rejected: Vec::new(),
    };
    let claimed = store.claim(&lease, claim, |_| None).await.unwrap().unwrap();
    (id, claimed.lease)
}

/// A replacement with spare1 in hand whose operating system is being installed, as far as `text`.
async fn installing(store: &Store, text: &str) -> (ReplacementId, Lease) {
    use crate::provisioner::driver::{Held, Ledger, Noting};
    let (id, lease) = claimed_to_install(store).await;
    tell(store, &lease, Event::Started { position: 0 }).await;
    let noting = Noting { text, ..AT };
    let held = store
        .note_installation("spare1", lease.fence(), noting)
        .await;
    assert_eq!(held.unwrap(), Held::Yes);
    (id, lease)
}

async fn tell(store: &Store, lease: &Lease, event: Event) {
    let note = Note::default();
    store
        .advance(lease, &event, note, &Retry::STANDARD)
        .await
        .unwrap();
}

async fn spare1(store: &Store) -> crate::provisioner::plan::PoolServer {
    let mut world = store.world().await.unwrap();
    world.servers.remove("spare1").unwrap()
}

/// Whatever way an attempt ends whose installation was begun, its spare is not free before that is put away.
#[tokio::test]
async fn what_an_installation_left_holds_its_spare() {
    use crate::provisioner::{driver::Ledger, order::Class};
    for cancelled in [false, true] {
        let (_dir, store) = fresh().await;
        let (id, lease) = installing(&store, "loading").await;
        if cancelled {
            store.cancel(&id, "test").await.unwrap();
            tell(&store, &lease, Event::Abandoned).await;
        } else {
            assert_eq!(store.left_behind("spare1").await.unwrap(), None, "in hand");
            for _ in 0..Retry::STANDARD.tries {
                let failed = Event::Failed {
                    position: 0,
                    class: Class::Transient,
                    reason: "driver_silent: no answer".into(),
                };
                tell(&store, &lease, failed).await;
                if spare1(&store).await.state == ServerState::Configuring {
                    tell(&store, &lease, Event::Started { position: 0 }).await;
                }
            }
        }
        let spare = spare1(&store).await;
        assert_eq!(spare.state, ServerState::Quarantined);
        assert!(spare.reason.unwrap().contains("may be left"));
        let mut tx = store.begin().await.unwrap();
        sqlx::query("UPDATE server SET quarantined_until = 1 WHERE name = 'spare1'")
            .execute(&mut *tx)
            .await
            .unwrap();
        store.commit(tx, News::State).await.unwrap();
        assert_eq!(store.end_quarantines().await.unwrap(), [""; 0]);
        // Nor does it come to a role by the files, or to another machine's controller.
        let mut files = inventory();
        let web = Some("web.shop.example".to_owned());
        files.servers.get_mut("spare1").unwrap().role = web;
        let answer = store.apply(&files, false, "test").await.unwrap();
        assert_eq!(said(&answer, ChangeAction::Held).len(), 1, "{answer:?}");
        assert_eq!(spare1(&store).await.state, ServerState::Quarantined);

        // One of several provisioners tries, and not all the time.
        let now = WallMillis(now_ms().0);
        let before = WallMillis(now.0 - 600_000);
        assert_eq!(store.begin_tidying(before).await.unwrap(), ["spare1"]);
        assert_eq!(store.begin_tidying(before).await.unwrap(), [""; 0]);
        let left = store.left_behind("spare1").await.unwrap().unwrap();
        store.tidied("spare1", "another").await.unwrap();
        assert!(store.left_behind("spare1").await.unwrap().is_some());
        store.tidied("spare1", &left).await.unwrap();
        assert_eq!(store.left_behind("spare1").await.unwrap(), None);
        assert!(!spare1(&store).await.reason.unwrap().contains("may be left"));
        assert_eq!(store.end_quarantines().await.unwrap(), ["spare1"]);
        assert_eq!(spare1(&store).await.state, ServerState::Ready);
    }
}

#[tokio::test]
async fn an_installation_that_succeeded_leaves_nothing() {
    let (_dir, store) = fresh().await;
    let (_id, lease) = installing(&store, "returning").await;
    assert!(spare1(&store).await.keeping.untidy);
    tell(&store, &lease, Event::Done { position: 0 }).await;
    assert!(!spare1(&store).await.keeping.untidy);
}

#[tokio::test]
async fn who_releases_a_spare_says_that_nothing_is_left() {
    use crate::provisioner::order::Class;
    let (_dir, store) = fresh().await;
    let (_id, lease) = installing(&store, "loading").await;
    let failed = Event::Failed {
        position: 0,
        class: Class::Permanent,
        reason: "power_stuck: on".into(),
    };
    tell(&store, &lease, failed).await;
    let done = store.release("spare1", "test").await.unwrap();
    assert_eq!(done, ServerOutcome::Done);
    assert!(!spare1(&store).await.keeping.untidy);
}

/// What was decided a moment ago, and is no longer so.
#[tokio::test]
async fn maintenance_and_reservations_hold_against_what_was_decided() {
    use crate::provisioner::{upkeep::Upkeep, workflow::Kind};
    let (_dir, store) = fresh().await;
    let id = asked(&store, "lb1.1", "lb1", "10.0.0.1").await;
    let lease = leased(&store, "test", &id).await;
    let claim = || Claim {
        server: "spare1".to_owned(),
        role: "web.shop.example".to_owned(),
        steps: vec![Step::Fence],
        rejected: Vec::new(),
    };
    let warm = Upkeep {
        kind: Kind::Warm,
        server: "spare1".into(),
        state: ServerState::Ready,
        role: "web.shop.example".into(),
    };
    let begun = async || {
        let id = new_id("warm").unwrap();
        let begun = store.begin_upkeep(&id, &warm, &[Step::Fence]).await;
        begun.unwrap()
    };
    store
        .maintain("spare1", Some("disks"), "test")
        .await
        .unwrap();
    let none = store.claim(&lease, claim(), |_| None).await;
    assert!(none.unwrap().is_none());
    assert!(!begun().await);
    store.maintain("spare1", None, "test").await.unwrap();
    let mut files = inventory();
    let mut other = files.roles.get("web.shop.example").unwrap().clone();
    other.code = "db.shop.example".into();
    files.roles.insert(other.code.clone(), other);
    let spare = files.servers.get_mut("spare1").unwrap();
    spare.reserved_for = vec!["db.shop.example".into()];
    store.apply(&files, false, "test").await.unwrap();
    assert!(!begun().await);
    store.apply(&inventory(), false, "test").await.unwrap();
    let some = store.claim(&lease, claim(), |_| None).await;
    assert!(some.unwrap().is_some());
}

#[tokio::test]
async fn a_disk_is_not_wiped_once_that_is_forbidden() {
    use crate::provisioner::driver::{Held, Ledger, Noting};
    let (_dir, store) = fresh().await;
    let mut files = inventory();
    files.servers.get_mut("spare1").unwrap().wipe = true;
    store.apply(&files, false, "test").await.unwrap();
    let (_id, lease) = installing(&store, "stopping").await;
    let note = async |ahead, forgets| {
        let noting = Noting {
            text: "next",
            ahead,
            forgets,
        };
        let noted = store
            .note_installation("spare1", lease.fence(), noting)
            .await;
        noted.unwrap()
    };
    let keys = ["ssh-ed25519 AAAAown".to_owned()];
    let fence = lease.fence();
    store.learn_host_keys("spare1", fence, &keys).await.unwrap();
    assert_eq!(note(true, false).await, Held::Yes);
    assert_eq!(spare1(&store).await.server.learnt_keys, keys);
    assert_eq!(note(true, true).await, Held::Yes);
    assert_eq!(spare1(&store).await.server.learnt_keys, [""; 0]);
    store.apply(&inventory(), false, "test").await.unwrap();
    assert_eq!(note(true, false).await, Held::Spared);
    // It is wiped by now: what follows is putting away.
    assert_eq!(note(false, false).await, Held::Yes);
}

/// A role whose servers are installed anew, and spare1 that had it.
async fn given_back(store: &Store) -> Inventory {
    let mut files = inventory();
    with_reinstall(&mut files);
    store.apply(&files, false, "test").await.unwrap();
    let id = asked(store, "lb1.1", "lb1", "10.0.0.1").await;
    offered(store, &id, "spare1").await;
    sqlx::query("UPDATE server SET placed = '[\"/etc/x\"]' WHERE name = 'spare1'")
        .execute(&store.pool)
        .await
        .unwrap();
    assert!(store.give_back(&d("lb1"), &id).await.unwrap());
    let is = Confirmation { is: Want::Withdraw };
    store.confirm(&d("lb1"), &id, is).await.unwrap();
    files
}

/// Takes spare1 in hand to clean it.
async fn cleaning(store: &Store) -> (ReplacementId, Lease) {
    use crate::provisioner::upkeep::InHand;
    let world = store.world().await.unwrap();
    let of = world.upkeep(&InHand::default()).remove(0);
    assert_eq!((of.kind.as_str(), of.server.as_str()), ("clean", "spare1"));
    let id = new_id("clean").unwrap();
    let steps = world.upkeep_steps(&of, id.as_str()).unwrap();
    assert!(store.begin_upkeep(&id, &of, &steps).await.unwrap());
    let lease = leased(store, "test", &id).await;
    (id, lease)
}

#[tokio::test]
async fn who_is_installed_anew_is_a_spare_with_nothing_on_it() {
    use crate::provisioner::driver::{Held, Ledger, Noting};
    let (_dir, store) = fresh().await;
    given_back(&store).await;
    let (_id, lease) = cleaning(&store).await;
    tell(&store, &lease, Event::Started { position: 0 }).await;
    assert_eq!(spare1(&store).await.state, ServerState::Cleaning);
    // Half an installation by another driver would be none.
    let answer = store.apply(&inventory(), true, "test").await.unwrap();
    let held = said(&answer, ChangeAction::Held);
    assert!(
        held[0].contains("driver stays http as it was: it is being cleaned by clean"),
        "{held:?}"
    );
    let fence = lease.fence();
    let at = |forgets| Noting {
        ahead: true,
        forgets,
        ..AT
    };
    let noted = store.note_installation("spare1", fence, at(true)).await;
    assert_eq!(noted.unwrap(), Held::Yes);
    let keys = ["ssh-ed25519 AAAAown".to_owned()];
    let learnt = store.learn_host_keys("spare1", fence, &keys).await;
    assert_eq!(learnt.unwrap(), Held::Yes);
    let trouble = "media_left: an image";
    let noted = store.note_trouble("spare1", fence, trouble).await;
    assert_eq!(noted.unwrap(), Held::Yes);
    tell(&store, &lease, Event::Done { position: 0 }).await;
    for position in [1, 2] {
        tell(&store, &lease, Event::Started { position }).await;
        let os = (position == 2).then(|| "debian-12".to_owned());
        let note = Note {
            os,
            ..Note::default()
        };
        let done = Event::Done { position };
        let retry = &Retry::STANDARD;
        store.advance(&lease, &done, note, retry).await.unwrap();
    }
    tell(&store, &lease, Event::Finished).await;
    let spare = spare1(&store).await;
    assert_eq!((spare.state, spare.reason), (ServerState::Ready, None));
    assert_eq!(spare.os_seen.as_deref(), Some("debian-12"));
    assert_eq!(spare.server.learnt_keys, keys);
    assert_eq!(spare.keeping.trouble.as_deref(), Some(trouble));
    assert_eq!(
        (spare.keeping.placed.len(), spare.keeping.untidy),
        (0, false)
    );
    let gone = store.note_installation("spare1", fence, AT).await;
    assert_eq!(gone.unwrap(), Held::No);
}

/// Neither the end of its quarantine nor anybody's wish makes it a spare before it is clean.
#[tokio::test]
async fn who_cannot_be_installed_anew_is_no_spare() {
    let (_dir, store) = fresh().await;
    let mut files = given_back(&store).await;
    files.servers.get_mut("spare1").unwrap().wipe = false;
    store.apply(&files, false, "test").await.unwrap();
    let refused = store.clean("spare1", "test").await.unwrap();
    let ServerOutcome::Refused(why) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("set `wipe` in servers.toml"), "{why}");
    sqlx::query(
        "UPDATE server SET state = 'quarantined', quarantined_until = 1, clean_after = NULL \
         WHERE name = 'spare1'",
    )
    .execute(&store.pool)
    .await
    .unwrap();
    assert_eq!(store.end_quarantines().await.unwrap(), ["spare1"]);
    let spare = spare1(&store).await;
    assert_eq!(spare.state, ServerState::Quarantined);
    let listed = store.servers().await.unwrap();
    let listed = listed.iter().find(|s| s.server.name == "spare1").unwrap();
    let reason = listed.reason.as_deref().unwrap();
    assert!(reason.contains("it cannot be cleaned after"), "{reason}");
    // What was missing is there: it goes on by itself.
    files.servers.get_mut("spare1").unwrap().wipe = true;
    store.apply(&files, false, "test").await.unwrap();
    cleaning(&store).await;
}

/// It has a role by its operator's hand: of what it was before nothing is put away, not when it fails either.
#[tokio::test]
async fn who_is_given_a_role_by_hand_is_not_cleaned_of_another() {
    let (_dir, store) = fresh().await;
    let mut files = inventory();
    sqlx::query(
        "UPDATE server SET state = 'quarantined', clean_after = 'web.shop.example' WHERE name = 'spare1'",
    )
    .execute(&store.pool)
    .await
    .unwrap();
    files.servers.get_mut("spare1").unwrap().role = Some("web.shop.example".into());
    store.apply(&files, false, "test").await.unwrap();
    let spare = spare1(&store).await;
    assert_eq!(
        (spare.state, spare.keeping.clean_after),
        (ServerState::Serving, None)
    );
}

/// What a rehearsal cannot see stays until somebody has looked.
#[tokio::test]
async fn an_image_left_in_a_drive_is_told_until_the_server_is_released() {
    let (_dir, store) = fresh().await;
    let found = |trouble: Option<&str>| Rehearsed {
        os: None,
        trouble: trouble.map(str::to_owned),
    };
    let trouble = async || spare1(&store).await.keeping.trouble;
    let left = Some("media_left: an image");
    store.rehearsed("spare1", &found(left)).await.unwrap();
    assert!(!store.rehearsed("spare1", &found(None)).await.unwrap());
    assert_eq!(trouble().await.as_deref(), left);
    store.release("spare1", "test").await.unwrap();
    assert_eq!(trouble().await, None);
}

#[tokio::test]
async fn no_two_servers_name_one_machine() {
    use crate::model::machine::{Door, Driver, HttpDriver, Login, Redfish};
    let door = |url: &str| Door {
        url: url.parse().unwrap(),
        pin: None,
        credential: "bmc".into(),
    };
    let redfish = |url: &str, system: &str| {
        Driver::Redfish(Box::new(Redfish {
            door: door(url),
            system: system.into(),
            media: None,
            login: Login::Basic,
            boot_mode: None,
        }))
    };
    let http = |machine: &str| {
        Driver::Http(Box::new(HttpDriver {
            door: door("https://installer.example/x"),
            machine: machine.into(),
        }))
    };
    let (_dir, store) = fresh().await;
    let with = |first: Driver, second: Driver| {
        let mut files = inventory();
        files.servers.get_mut("web1").unwrap().driver = first;
        files.servers.get_mut("spare1").unwrap().driver = second;
        files
    };
    let (one, two) = ("/redfish/v1/Systems/1", "/redfish/v1/Systems/2");
    for files in [
        with(
            redfish("https://bmc7", one),
            redfish("https://BMC7:443", one),
        ),
        with(http("7"), http("7")),
    ] {
        let e = store.apply(&files, true, "test").await.unwrap_err();
        let e = crate::telemetry::Chain(&e).to_string();
        assert!(
            e.contains("the drivers of spare1 and web1 name the same machine"),
            "{e}"
        );
    }
    let files = with(redfish("https://bmc7", one), redfish("https://bmc7", two));
    store.apply(&files, false, "test").await.unwrap();
    // A server in hand keeps its driver: half an installation by each would be none.
    installing(&store, "loading").await;
    let changed = with(redfish("https://bmc7", one), redfish("https://bmc8", two));
    let answer = store.apply(&changed, false, "test").await.unwrap();
    let held = said(&answer, ChangeAction::Held);
    assert!(held[0].contains("driver stays"), "{held:?}");
    let kept = spare1(&store).await.server.driver;
    assert_eq!(kept, redfish("https://bmc7", two));
}

/// A director that is gone holds no spare back for ever, and nobody is held back who is not warm any more.
#[tokio::test]
async fn what_a_director_found_counts_as_long_as_it_says_so() {
    let (_home, store) = fresh().await;
    let lb1 = d("lb1");
    let find = async || {
        let failing = [("spare1".to_owned(), "refused\u{7}".repeat(100))].into();
        let findings = Findings {
            failing,
            ..Findings::default()
        };
        store
            .find(&lb1, findings, "lb1")
            .await
            .unwrap()
            .unwrap()
            .len()
    };
    let counts = async || store.world().await.unwrap().findings[&lb1].len();
    assert_eq!((find().await, counts().await), (0, 0), "it is not warm");
    let warm = |warm: &str| format!("UPDATE server SET warm = {warm} WHERE name = 'spare1'");
    let run = async |statement: String| {
        let done = sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&store.pool)
            .await;
        assert_eq!(done.unwrap().rows_affected(), 1);
    };
    run(warm(r#"'{"role":"web.shop.example","made":[]}'"#)).await;
    assert_eq!((find().await, counts().await), (1, 1));
    let why = store.world().await.unwrap().findings[&lb1]["spare1"].clone();
    assert!(why.len() <= 200 && !why.contains('\u{7}'), "{why}");
    assert_eq!((find().await, counts().await), (0, 1));
    run(r#"UPDATE director SET findings = '{"spare1":{"why":"refused","at":1}}' WHERE name = 'lb1'"#.to_owned()).await;
    assert_eq!(counts().await, 0, "it was not said again");
    let ahead = r#"UPDATE director SET findings = '{"spare1":{"why":"refused","at":99999999999999}}' WHERE name = 'lb1'"#;
    run(ahead.to_owned()).await;
    assert_eq!(counts().await, 0, "by a clock that was put right since");
    assert_eq!((find().await, counts().await), (1, 1));
    run(warm("NULL")).await;
    assert_eq!(find().await, 0);
    assert_eq!(counts().await, 0);
}

/// The tables as the first version made them.
#[tokio::test]
async fn a_store_of_an_older_version_is_brought_up_to_date_with_what_it_holds() {
    let (home, store) = fresh().await;
    for statement in [
        "ALTER TABLE director DROP COLUMN findings",
        "DELETE FROM _sqlx_migrations WHERE version = 2",
    ] {
        sqlx::query(statement).execute(&store.pool).await.unwrap();
    }
    store.close().await;
    let store = Store::open_at(&home.place).await.unwrap();
    let world = store.world().await.unwrap();
    assert_eq!(world.directors[&d("lb1")], registration("lb1"));
    assert_eq!(world.findings[&d("lb1")], BTreeMap::new());
    let nothing = store.find(&d("lb1"), Findings::default(), "lb1").await;
    assert_eq!(nothing.unwrap(), Some(Vec::new()));
}
