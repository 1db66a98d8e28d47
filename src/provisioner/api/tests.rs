use crate::http::DoorError;
use std::{path::PathBuf, sync::Arc};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    task::JoinSet,
};

use super::*;
use crate::{
    model::{
        EventKind, EventPage,
        inventory::{ChangeAction, ServerState},
        wire::Want,
    },
    provisioner::{
        engine::{self, Settings},
        secrets::Secrets,
        testing::{self, CENTRE, FakeHands, inventory, ip, registration},
    },
};

struct Rig {
    _dir: TempDir,
    socket: PathBuf,
    tcp: std::net::SocketAddr,
    store: Store,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

struct Answer {
    status: u16,
    kind: String,
    location: Option<String>,
    retry_after: Option<String>,
    body: Value,
}

impl Answer {
    fn is<T: DeserializeOwned>(self) -> T {
        serde_json::from_value(self.body).unwrap()
    }

    /// Checks that it is a problem document of a code.
    fn problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.kind, "application/problem+json");
        assert_eq!(self.body["code"], code, "{}", self.body);
        assert_eq!(self.body["type"], format!("urn:understudy:problem:{code}"));
        assert_eq!(self.body["status"], status);
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Answer
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let talk = async {
        let response = sender.send_request(request).await.unwrap();
        let text = |name: &str| {
            let value = response.headers().get(name);
            value.map(|v| v.to_str().unwrap().to_owned())
        };
        let (status, kind) = (response.status().as_u16(), text("content-type"));
        let (location, retry_after) = (text("location"), text("retry-after"));
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Answer {
            status,
            kind: kind.unwrap_or_default(),
            location,
            retry_after,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    };
    let mut connection = std::pin::pin!(connection);
    let mut talk = std::pin::pin!(talk);
    tokio::select! {
        answer = &mut talk => answer,
        ended = &mut connection => {
            ended.unwrap();
            talk.await
        }
    }
}

fn build(method: &str, path: &str, key: Option<&str>, body: &Value) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "provisioner")
        .header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let bytes = if body.is_null() {
        Bytes::new()
    } else {
        Bytes::from(serde_json::to_vec(body).unwrap())
    };
    request.body(Full::new(bytes)).unwrap()
}

impl Rig {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("store")).await.unwrap();
        Self::on(dir, store).await
    }

    async fn on(dir: TempDir, store: Store) -> Self {
        let socket = dir.path().join("api.sock");
        let doors = Doors::open(Some(&socket), Some("127.0.0.1:0".parse().unwrap()))
            .await
            .unwrap();
        let tcp = doors.tcp_address().unwrap();
        let app = App {
            store: store.clone(),
            name: "centre".to_owned(),
            addresses: vec![ip(CENTRE)],
            observer: Observer::nobody(),
            grants: watch::channel(Arc::default()).1,
            look: Arc::new(FakeHands::default()),
            secrets: Secrets::default(),
        };
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let token = stop.clone();
        tasks.spawn(async move { serve(doors, app, token).await });
        Self {
            _dir: dir,
            socket,
            tcp,
            store,
            stop,
            tasks,
        }
    }

    /// With inventory, a director, and an engine.
    async fn working() -> Self {
        let mut rig = Self::new().await;
        let (store, stop) = (rig.store.clone(), rig.stop.clone());
        rig.tasks.spawn(async move {
            let hands = Arc::new(FakeHands::default());
            let observer = Observer::nobody();
            engine::run(
                store,
                hands,
                "centre",
                Settings::STANDARD,
                Secrets::default(),
                observer,
                stop,
            )
            .await
            .unwrap();
        });
        let answer = rig.send("PUT", "/v1/inventory", &json!(inventory())).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        rig.register().await;
        rig
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        exchange(stream, build(method, path, None, body)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &Value::Null).await
    }

    async fn ask(&self, key: Option<&str>, body: &ReplacementRequest) -> Answer {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        exchange(stream, build("POST", "/v1/replacements", key, &json!(body))).await
    }

    async fn register(&self) -> RegistrationAnswer {
        let body = json!(registration("lb1"));
        self.send("PUT", "/v1/directors/lb1", &body).await.is()
    }
}

fn request(failed: &str) -> ReplacementRequest {
    testing::request("lb1", failed)
}

#[tokio::test]
async fn the_whole_way_over_the_socket() {
    let rig = Rig::working().await;
    let asked = rig.ask(Some("lb1/10.0.0.1/1"), &request("10.0.0.1")).await;
    assert_eq!(asked.status, 202);
    let location = asked.location.clone().unwrap();
    let r: Replacement = asked.is();
    assert_eq!(location, format!("/v1/replacements/{}", r.id));
    assert_eq!(r.spare, None);
    // One long poll until there is a spare.
    let r: Replacement = rig.get(&format!("{location}?wait=30")).await.is();
    assert_eq!(r.state, ReplacementState::Attaching);
    assert_eq!(r.spare.unwrap().name, "spare1");
    let members: Members = rig.get("/v1/directors/lb1/members").await.is();
    assert_eq!(members.members[0].want, Want::Attach);
    let path = format!("/v1/directors/lb1/members/{}", r.id);
    let done = rig.send("POST", &path, &json!({"is": "attach"})).await;
    assert_eq!(done.status, 204);
    let r: Replacement = rig.get(&location).await.is();
    assert_eq!(r.state, ReplacementState::Succeeded);
    let all: Vec<Replacement> = rig.get("/v1/replacements").await.is();
    assert_eq!(all, [r]);
    let servers: Vec<ServerView> = rig.get("/v1/inventory/servers").await.is();
    let serving = |s: &&ServerView| s.state == ServerState::Serving;
    assert_eq!(servers.iter().filter(serving).count(), 2);
    // The same files once more: nothing but what is held.
    let again: InventoryAnswer = rig
        .send("PUT", "/v1/inventory", &json!(inventory()))
        .await
        .is();
    assert!(!again.applied);
    assert!(again.changes.iter().all(|c| c.action == ChangeAction::Held));
    assert_eq!(again.changes.len(), 2);
}

#[tokio::test]
async fn requests_that_are_wrong_are_refused_with_a_code() {
    let rig = Rig::working().await;
    let good = request("10.0.0.1");
    rig.ask(None, &good)
        .await
        .problem(400, "idempotency_key_required");
    rig.ask(Some(&"k".repeat(256)), &good)
        .await
        .problem(400, "idempotency_key_invalid");
    let mut lost = good.clone();
    lost.centre = ip("10.0.0.9");
    rig.ask(Some("k1"), &lost)
        .await
        .problem(421, "wrong_centre");
    let mut stranger = good.clone();
    stranger.name = "lb9".parse().unwrap();
    rig.ask(Some("k1"), &stranger)
        .await
        .problem(409, "not_registered");
    assert_eq!(rig.ask(Some("k1"), &good).await.status, 202);
    rig.ask(Some("k1"), &request("10.0.0.2"))
        .await
        .problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn every_other_error_is_a_problem_document_too() {
    let rig = Rig::working().await;
    rig.get("/v2").await.problem(404, "no_such_route");
    let answer = rig.send("DELETE", "/v1/replacements", &Value::Null).await;
    answer.problem(405, "wrong_method");
    let answer = rig.send("PUT", "/v1/directors/lb1", &json!({})).await;
    answer.problem(422, "wrong_body");
    let answer = rig.send("PUT", "/v1/inventory", &Value::Null).await;
    answer.problem(400, "no_json");
    rig.get("/v1/replacements/lb1-none?wait=x")
        .await
        .problem(400, "bad_query");
    rig.get("/v1/replacements/lb1-none")
        .await
        .problem(404, "no_such_replacement");
    rig.get("/v1/directors/lb9/members")
        .await
        .problem(409, "not_registered");
    rig.get("/v1/directors/LB%201/members")
        .await
        .problem(400, "bad_name");
    let answer = rig
        .send("POST", "/v1/servers/nobody/release", &Value::Null)
        .await;
    answer.problem(404, "no_such_server");
    let answer = rig
        .send("POST", "/v1/servers/web1/release", &Value::Null)
        .await;
    answer.problem(409, "not_releasable");
    let answer = rig
        .send(
            "POST",
            "/v1/directors/lb1/members/lb1-none",
            &json!({"is": "attach"}),
        )
        .await;
    answer.problem(404, "no_such_member");
    let mut bad = inventory();
    bad.roles.clear();
    let answer = rig.send("PUT", "/v1/inventory", &json!(bad)).await;
    answer.problem(422, "inventory_faults");
}

#[tokio::test]
async fn only_an_operator_at_the_socket_changes_the_inventory() {
    let rig = Rig::new().await;
    for (method, path) in [
        ("PUT", "/v1/inventory"),
        ("PUT", "/v1/inventory?dry_run=true"),
        ("POST", "/v1/servers/spare1/release"),
    ] {
        let tcp = TcpStream::connect(rig.tcp).await.unwrap();
        let answer = exchange(tcp, build(method, path, None, &json!(inventory()))).await;
        answer.problem(403, "not_an_operator");
    }
    assert_eq!(rig.store.servers().await.unwrap(), []);
    let me = Uid::effective().as_raw();
    assert!(operator(&Caller::Local { uid: 0, gid: 0 }).is_ok());
    assert!(operator(&Caller::Local { uid: me, gid: 0 }).is_ok());
    assert!(
        operator(&Caller::Local {
            uid: me + 1,
            gid: 0
        })
        .is_err()
    );
}

#[tokio::test]
async fn every_answer_is_counted_under_its_route() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("store")).await.unwrap();
    let facts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&facts);
    let app = App {
        store,
        name: "centre".to_owned(),
        addresses: Vec::new(),
        observer: Observer::new(move |fact| told.lock().unwrap().push(fact)),
        grants: watch::channel(Arc::default()).1,
        look: Arc::new(FakeHands::default()),
        secrets: Secrets::default(),
    };
    let socket = dir.path().join("api.sock");
    let doors = Doors::open(Some(&socket), None).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(doors, app, CancellationToken::new()));
    for path in ["/v1/replacements/lb1-none", "/v2"] {
        let stream = UnixStream::connect(&socket).await.unwrap();
        exchange(stream, build("GET", path, None, &Value::Null)).await;
    }
    let counted = |route| Fact::Answered { route, status: 404 };
    assert_eq!(
        *facts.lock().unwrap(),
        [counted("/v1/replacements/{id}"), counted("other")]
    );
}

#[tokio::test]
async fn a_director_asks_for_no_server_of_another() {
    let rig = Rig::working().await;
    rig.ask(Some("k1"), &request("10.0.0.99"))
        .await
        .problem(409, "not_yours");
}

#[tokio::test]
async fn cancelling_over_the_api() {
    let rig = Rig::new().await;
    rig.store.apply(&inventory(), false, "test").await.unwrap();
    rig.register().await;
    let r: Replacement = rig.ask(Some("k1"), &request("10.0.0.1")).await.is();
    let path = format!("/v1/replacements/{}/cancel", r.id);
    for _ in 0..2 {
        let r: Replacement = rig.send("POST", &path, &Value::Null).await.is();
        assert_eq!(r.state, ReplacementState::Cancelled);
    }
}

#[tokio::test]
async fn registration_warns_of_what_could_not_be_replaced() {
    let rig = Rig::new().await;
    let codes =
        |a: RegistrationAnswer| -> Vec<String> { a.warnings.into_iter().map(|w| w.code).collect() };
    assert_eq!(codes(rig.register().await), ["role_unknown"; 4]);
    let mut few = inventory();
    few.servers.retain(|name, _| name.starts_with("web"));
    rig.store.apply(&few, false, "test").await.unwrap();
    assert_eq!(codes(rig.register().await), ["no_spare"; 4]);
    let mut bad = inventory();
    bad.files[0].body = "{{ nothing }}".into();
    rig.store.apply(&bad, false, "test").await.unwrap();
    assert_eq!(codes(rig.register().await), ["template_error"; 4]);
    rig.store.apply(&inventory(), false, "test").await.unwrap();
    assert_eq!(codes(rig.register().await), Vec::<String>::new());
}

#[tokio::test]
async fn a_long_poll_ends_at_the_change_and_at_shutdown() {
    let mut rig = Rig::new().await;
    rig.store.apply(&inventory(), false, "test").await.unwrap();
    rig.register().await;
    let r: Replacement = rig.ask(Some("k1"), &request("10.0.0.1")).await.is();
    let path = format!("/v1/replacements/{}?after={}&wait=60", r.id, r.version);
    let (poll, _) = tokio::join!(rig.get(&path), async {
        yield_now().await;
        rig.store.cancel(&r.id, "test").await.unwrap();
    });
    let seen: Replacement = poll.is();
    assert_eq!(seen.state, ReplacementState::Cancelled);
    let path = format!("/v1/replacements/{}?after={}&wait=60", r.id, seen.version);
    let poll = {
        let mut poll = std::pin::pin!(rig.get(&path));
        let early = timeout(Duration::from_millis(300), poll.as_mut()).await;
        assert!(early.is_err(), "answered although nothing has changed");
        rig.stop.cancel();
        poll.await
    };
    assert_eq!(poll.status, 200);
    let ended = timeout(Duration::from_secs(10), rig.tasks.join_next()).await;
    ended.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_mute_client_holds_up_nobody() {
    let rig = Rig::working().await;
    let mut mute = UnixStream::connect(&rig.socket).await.unwrap();
    mute.write_all(b"GET /v1/repl").await.unwrap();
    assert_eq!(rig.get("/v1/replacements").await.status, 200);
    let tcp = TcpStream::connect(rig.tcp).await.unwrap();
    let answer = exchange(tcp, build("GET", "/v1/replacements", None, &Value::Null)).await;
    assert_eq!(answer.status, 200);
    rig.stop.cancel();
    let mut rest = Vec::new();
    // Cut off at the end, whatever it was about to say.
    let closed = timeout(Duration::from_secs(20), mute.read_to_end(&mut rest)).await;
    assert!(closed.is_ok());
}

#[tokio::test]
async fn a_door_is_opened_only_where_it_may() {
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::new().await;
    let mode = std::fs::metadata(&rig.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let e = Doors::open(Some(&rig.socket), None).await.unwrap_err();
    assert!(matches!(e, DoorError::InUse { .. }), "{e}");
    let e = Doors::open(None, Some("0.0.0.0:0".parse().unwrap())).await;
    assert!(matches!(e, Err(DoorError::NotLoopback { .. })), "{e:?}");

    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let e = Doors::open(Some(&file), None).await.unwrap_err();
    assert!(matches!(e, DoorError::NoSocket { .. }), "{e}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");

    // Left behind by a run that was killed.
    let stale = dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    Doors::open(Some(&stale), None).await.unwrap();
}

#[tokio::test]
async fn a_role_is_held_against_a_server() {
    let rig = Rig::working().await;
    let look = rig.get("/v1/roles/web.shop.example/servers/spare1").await;
    let look: crate::model::wire::RoleLook = look.is();
    let names: Vec<_> = look.steps.iter().map(|s| s.step.as_str()).collect();
    assert_eq!(names[2..4], ["install:storage", "install:nginx"]);
    let install = &look.steps[3].text;
    assert!(install.contains("install nginx") && install.contains("UNDERSTUDY_ROLE=web"));
    // The services of the place that it would take.
    assert!(look.steps[6].text.contains("10.0.0.11:8080"));
    let file = &look.differences[0];
    assert_eq!(file.object, "/etc/nginx/conf.d/shop.conf");
    assert_eq!(file.diff, "+server_name shop.example;\n");
    let orders: Vec<Replacement> = rig.get("/v1/replacements").await.is();
    assert!(orders.is_empty(), "nothing was begun");
    for path in [
        "/v1/roles/nobody/servers/spare1",
        "/v1/roles/web.shop.example/servers/x",
    ] {
        assert_eq!(rig.send("GET", path, &Value::Null).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_whoever_asks_is_told_to_come_back() {
    let mut server = tokio::task::spawn_blocking(testing::Postgres::new)
        .await
        .unwrap();
    let store = Store::open_at(&server.database().await).await.unwrap();
    let rig = Rig::on(TempDir::new().unwrap(), store).await;
    assert_eq!(
        rig.send("GET", "/v1/replacements", &Value::Null)
            .await
            .status,
        200
    );
    tokio::task::block_in_place(|| server.stop("fast"));
    for path in [
        "/v1/replacements",
        "/v1/inventory/servers",
        "/v1/events?wait=20",
    ] {
        let answer = rig.send("GET", path, &Value::Null).await;
        answer.problem(503, "store_away");
        assert_eq!(answer.retry_after.as_deref(), Some("2"));
    }
    tokio::task::block_in_place(|| server.start());
    assert_eq!(
        rig.send("GET", "/v1/replacements", &Value::Null)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn events_tell_who_did_what_from_where_and_are_waited_for() {
    let rig = Rig::working().await;
    let first: EventPage = rig.send("GET", "/v1/events", &Value::Null).await.is();
    let added = &first.events[0];
    assert_eq!(added.kind, EventKind::InventoryChanged);
    assert!(
        added.actor.as_deref().unwrap().starts_with("uid "),
        "{added:?}"
    );
    assert_eq!(added.origin.as_deref(), Some("socket"));
    let registered = first.events.last().unwrap();
    assert_eq!(registered.kind, EventKind::DirectorRegistered);
    // A question that waits is answered by what happens next, if that is what it looks for.
    let path = format!(
        "/v1/events?run={}&after={}&wait=30&kind=replacement_requested&severity=warning",
        first.run, first.next
    );
    let (page, _) = tokio::join!(rig.send("GET", &path, &Value::Null), async {
        rig.register().await;
        let body = testing::request("lb1", "10.0.0.1");
        rig.store.ask("k1", &body).await.unwrap()
    });
    let page: EventPage = page.is();
    assert_eq!(page.events.len(), 1);
    assert_eq!(page.events[0].kind, EventKind::ReplacementRequested);
    assert!(page.events[0].number > first.next && page.next >= page.events[0].number);
    rig.send("GET", "/v1/events?severity=loud", &Value::Null)
        .await
        .problem(400, "bad_question");
}

#[tokio::test]
async fn who_follows_reads_every_script_to_its_end() {
    let rig = Rig::working().await;
    let asked = rig.ask(Some("k"), &request("10.0.0.1")).await;
    let location = asked.location.unwrap();
    let r: Replacement = rig.get(&format!("{location}?wait=30")).await.is();
    assert_eq!(r.state, ReplacementState::Attaching);
    // Whoever was slow: all steps have ended since its first question.
    let (mut run, mut after, mut read) = ("1.0.1".to_owned(), 0, Vec::new());
    loop {
        let path = format!("{location}/log?run={run}&after={after}");
        let part: LogPart = rig.get(&path).await.is();
        assert!(part.ended, "{part:?}");
        if part.run != run {
            read.push(part.step.clone());
        }
        if !part.text.is_empty() {
            read.push(part.text.clone());
        }
        if part.over && part.text.is_empty() {
            break;
        }
        (run, after) = (part.run, part.next);
    }
    let storage = ["install:storage", "working\n", "install:nginx", "working\n"];
    let told: Vec<&str> = read.iter().map(String::as_str).collect();
    assert_eq!(
        told[..5],
        ["os", storage[0], storage[1], storage[2], storage[3]]
    );
    assert_eq!(told[5..], ["configure:storage", "configure:nginx", "test"]);
    // One step alone, a part of which was read.
    let part: LogPart = rig
        .get(&format!(
            "{location}/log?step=install:storage&run=1.2.1&after=3"
        ))
        .await
        .is();
    assert_eq!((part.text.as_str(), part.ended), ("king\n", true));
    // Without a run it is the last one, as it ever was.
    let part: LogPart = rig.get(&format!("{location}/log")).await.is();
    assert_eq!((part.step.as_str(), part.over), ("test", true));
}

#[tokio::test]
async fn what_a_stand_in_was_told_is_no_difference_afterwards() {
    let rig = Rig::working().await;
    let mut files = inventory();
    files.files[0].body = "in the place of {{ failed }}\n".into();
    rig.send("PUT", "/v1/inventory", &json!(files)).await;
    let asked = rig.ask(Some("k"), &request("10.0.0.1")).await;
    let location = asked.location.unwrap();
    let r: Replacement = rig.get(&format!("{location}?wait=30")).await.is();
    let path = format!("/v1/directors/lb1/members/{}", r.id);
    rig.send("POST", &path, &json!({"is": "attach"})).await;
    let look = rig.get("/v1/roles/web.shop.example/servers/spare1").await;
    let look: crate::model::wire::RoleLook = look.is();
    let text: String = look.steps.iter().map(|s| s.text.as_str()).collect();
    assert!(text.contains("in the place of 10.0.0.1\n"), "{text}");
}

#[tokio::test]
async fn a_stop_is_shown_wherever_a_role_is() {
    let rig = Rig::new().await;
    rig.send("PUT", "/v1/inventory", &json!(inventory())).await;
    rig.register().await;
    let hands = FakeHands::default();
    for spare in ["spare1", "spare2"] {
        hands.temper(spare, |t| {
            t.broken.insert("test".into());
        });
    }
    let mut tasks = JoinSet::new();
    let (store, stop) = (rig.store.clone(), rig.stop.clone());
    tasks.spawn(async move {
        let (hands, observer) = (Arc::new(hands), Observer::nobody());
        let (settings, secrets) = (Settings::STANDARD, Secrets::default());
        engine::run(store, hands, "centre", settings, secrets, observer, stop).await
    });
    let asked = rig.ask(Some("k"), &request("10.0.0.1")).await;
    let id = asked.is::<Replacement>().id;
    let mut changes = rig.store.changes();
    loop {
        changes.borrow_and_update();
        let r = rig.store.replacement(&id).await.unwrap();
        if r.reason.is_some_and(|r| r.starts_with("role_stopped")) {
            break;
        }
        changes.changed().await.unwrap();
    }
    let roles: Vec<RoleView> = rig.get("/v1/roles").await.is();
    let stopped = roles[0].stopped.as_deref().unwrap();
    assert!(
        stopped.contains("spare2 and spare1 both failed in test"),
        "{stopped}"
    );
    let spares: SparesView = rig.get("/v1/roles/web.shop.example/spares").await.is();
    assert_eq!(spares.stopped.as_deref(), Some(stopped));
    rig.stop.cancel();
    while tasks.join_next().await.is_some() {}
}
