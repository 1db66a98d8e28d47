//! The API over TLS: who is let in, for what, and that nobody takes it from the others.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use hyper::Method;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{
    api::client::{Client, Error, NOTHING},
    config::Endpoint,
    provisioner::testing::{self, CENTRE, FakeHands, inventory, ip, registration},
    tls::{
        self, Identity as _,
        pki::{Authority, Leaf, Side},
        tests::files,
    },
};

const LIMIT: Duration = Duration::from_secs(60);

const HOST: &str = "127.0.0.1";

struct Fleet {
    ca: Authority,
    side: Side,
    at: SocketAddr,
    socket: PathBuf,
    identity: watch::Sender<Arc<tls::Server>>,
    grants: watch::Sender<Arc<Vec<Grant>>>,
    store: Store,
    _tasks: JoinSet<()>,
    _dir: TempDir,
}

fn leaf<'a>(names: &'a [&'a str], serial: u64) -> Leaf<'a> {
    Leaf {
        names,
        serial,
        ..Leaf::GOOD
    }
}

fn grant(name: &str, services: Option<&[&str]>) -> Grant {
    let key = |s: &&str| s.parse().unwrap();
    Grant {
        name: name.parse().unwrap(),
        certificate: format!("{name}.example"),
        services: services.map(|all| all.iter().map(key).collect()),
        roles: None,
    }
}

/// A director, as a client.
struct Peer {
    client: Client,
    side: Side,
}

impl Fleet {
    /// With an inventory.
    async fn stocked() -> Self {
        let fleet = Self::new().await;
        let applied = fleet.store.apply(&inventory(), false, "test").await;
        applied.unwrap();
        fleet
    }

    async fn new() -> Self {
        let ca = Authority::new("ca");
        let side = Side::new(&ca, &leaf(&[HOST, "p.example"], 1), &ca);
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("store")).await.unwrap();
        let identity = tls::Server::read(&files(&side)).unwrap();
        let identity = watch::Sender::new(Arc::new(identity));
        let grants = vec![grant("lb1", None), grant("lb2", None)];
        let grants = watch::Sender::new(Arc::new(grants));
        let socket = dir.path().join("api.sock");
        let at = Some("127.0.0.1:0".parse().unwrap());
        let doors = Doors::open_with(Some(&socket), at, Some(identity.subscribe()));
        let doors = doors.await.unwrap();
        let at = doors.tcp_address().unwrap();
        let app = App {
            store: store.clone(),
            name: "centre".to_owned(),
            addresses: vec![ip(CENTRE)],
            observer: Observer::nobody(),
            grants: grants.subscribe(),
            look: Arc::new(FakeHands::default()),
            secrets: Secrets::default(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(doors, app, CancellationToken::new()));
        Self {
            ca,
            side,
            at,
            socket,
            identity,
            grants,
            store,
            _tasks: tasks,
            _dir: dir,
        }
    }

    fn reread(&self) {
        let read = tls::Server::read(&files(&self.side)).unwrap();
        self.identity.send_replace(Arc::new(read));
    }

    fn peer(&self, names: &[&str], serial: u64) -> Peer {
        let side = Side::new(&self.ca, &leaf(names, serial), &self.ca);
        let identity = tls::Client::read(&files(&side)).unwrap();
        let identity = watch::Sender::new(Arc::new(identity)).subscribe();
        let place = Endpoint::Tls {
            host: HOST.to_owned(),
            port: self.at.port(),
        };
        Peer {
            client: Client::of([place], Some(identity)),
            side,
        }
    }

    /// A connection with TLS that is begun, for who does not keep to HTTP.
    async fn raw(&self, peer: &Peer) -> TlsStream<TcpStream> {
        let identity = tls::Client::read(&files(&peer.side)).unwrap();
        let stream = TcpStream::connect(self.at).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        let connector = TlsConnector::from(identity.config());
        connector.connect(name, stream).await.unwrap()
    }
}

impl Peer {
    async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, Error> {
        let body = (!body.is_null()).then_some(body);
        let key = Some("k1");
        self.client.ask(method, path, key, body, LIMIT).await
    }

    async fn get(&self, path: &str) -> Result<Value, Error> {
        self.send(Method::GET, path, &Value::Null).await
    }

    async fn register(&self, name: &str) -> Result<Value, Error> {
        let path = format!("/v1/directors/{name}");
        self.send(Method::PUT, &path, &json!(registration(name)))
            .await
    }
}

/// Checks that an answer is a problem of this code, and says what of it.
fn problem(answer: Result<Value, Error>, status: u16, code: &str) -> String {
    let error = answer.unwrap_err();
    let problem = error.problem().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!((problem.status, &*problem.code), (status, code), "{error}");
    problem.detail.clone()
}

#[tokio::test]
async fn a_director_speaks_for_itself_alone() {
    let fleet = Fleet::stocked().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    let lb2 = fleet.peer(&["LB2.example"], 12);
    lb1.register("lb1").await.unwrap();
    let detail = problem(lb2.register("lb1").await, 403, "not_your_name");
    assert!(
        detail.contains("lb2.example") && detail.contains("director lb1"),
        "{detail}"
    );
    for path in ["/v1/directors/lb1/members", "/v1/directors/lb%31/members"] {
        problem(lb2.get(path).await, 403, "not_your_name");
    }
    let findings = json!({"failing": {"spare1": "refused"}});
    let find = lb2.send(Method::PUT, "/v1/directors/lb1/findings", &findings);
    problem(find.await, 403, "not_your_name");
    let find = lb2.send(Method::PUT, "/v1/directors/lb2/findings", &findings);
    problem(find.await, 409, "not_registered");
    lb1.send(Method::PUT, "/v1/directors/lb1/findings", &findings)
        .await
        .unwrap();
    let ask = |p: &'static str, name: &str| (p, json!(testing::request(name, "10.0.0.1")));
    let (path, body) = ask("/v1/replacements", "lb1");
    problem(
        lb2.send(Method::POST, path, &body).await,
        403,
        "not_your_name",
    );
    let asked = lb1.send(Method::POST, path, &body).await.unwrap();
    let id = asked["id"].as_str().unwrap().to_owned();

    // Who has none of its servers sees and stops nothing.
    let of = |what: &str| format!("/v1/replacements/{id}{what}");
    problem(lb2.get(&of("")).await, 403, "not_your_replacement");
    let cancel = lb2.send(Method::POST, &of("/cancel"), &Value::Null).await;
    problem(cancel, 403, "not_your_replacement");
    assert_eq!(lb2.get("/v1/replacements").await.unwrap(), json!([]));
    for what in ["", "/release"] {
        let path = format!("/v1/directors/lb1/members/{id}{what}");
        let body = json!({"is": "attach"});
        problem(
            lb2.send(Method::POST, &path, &body).await,
            403,
            "not_your_name",
        );
    }
    // The other one of a pair does.
    lb2.register("lb2").await.unwrap();
    assert_eq!(lb2.get(&of("")).await.unwrap()["id"], json!(id));
    assert_eq!(
        lb2.get("/v1/replacements").await.unwrap()[0]["id"],
        json!(id)
    );
    lb1.send(Method::POST, &of("/cancel"), &Value::Null)
        .await
        .unwrap();
}

#[tokio::test]
async fn operators_do_not_come_over_the_network() {
    let fleet = Fleet::new().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    let open = [
        "/v1/directors/{name}",
        "/v1/directors/{name}/findings",
        "/v1/directors/{name}/members",
        "/v1/directors/{name}/members/{replacement}",
        "/v1/directors/{name}/members/{replacement}/release",
        "/v1/replacements",
        "/v1/replacements/{id}",
        "/v1/replacements/{id}/cancel",
    ];
    let mut closed = 0;
    for route in ROUTES.iter().skip(1).filter(|r| !open.contains(r)) {
        let path = route.replace(['{', '}'], "");
        for method in [Method::GET, Method::PUT, Method::POST] {
            // It is not told either which methods there are.
            let answer = lb1.send(method, &path, &Value::Null).await;
            problem(answer, 403, "not_an_operator");
        }
        closed += 1;
    }
    assert_eq!(
        closed + open.len(),
        ROUTES.len() - 1,
        "each is one or the other"
    );
    problem(lb1.get("/v1/nothing").await, 404, "no_such_route");
    let local = Client::unix(fleet.socket.clone());
    let servers = local.ask::<Value>(Method::GET, "/v1/inventory/servers", None, NOTHING, LIMIT);
    assert_eq!(servers.await.unwrap(), json!([]));
}

#[tokio::test]
async fn a_director_asks_only_for_the_services_it_is_allowed() {
    let fleet = Fleet::stocked().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    let keys: Vec<String> = registration("lb1")
        .services
        .iter()
        .map(|s| s.key.to_string())
        .collect();
    let all: Vec<&str> = keys.iter().map(String::as_str).collect();
    let allow = |services: &[&str]| {
        fleet
            .grants
            .send_replace(Arc::new(vec![grant("lb1", Some(services))]));
    };
    allow(&["tcp/203.0.113.9:80"]);
    let detail = problem(lb1.register("lb1").await, 403, "service_not_allowed");
    assert!(
        detail.contains(all[0]) && detail.contains("[tcp/203.0.113.9:80]"),
        "{detail}"
    );
    allow(&all);
    lb1.register("lb1").await.unwrap();
    // Registered, and the list has become shorter since.
    allow(&["tcp/203.0.113.9:80"]);
    let body = json!(testing::request("lb1", "10.0.0.1"));
    let ask = || lb1.send(Method::POST, "/v1/replacements", &body);
    problem(ask().await, 403, "service_not_allowed");
    allow(&all);
    ask().await.unwrap();
}

/// One service with one server, of a director.
fn own(name: &str, key: &str, server: &str) -> Value {
    let mut own = registration(name);
    own.services.truncate(1);
    own.services[0].key = key.parse().unwrap();
    own.services[0].servers.truncate(1);
    own.services[0].servers[0].address = ip(server);
    json!(own)
}

#[tokio::test]
async fn a_director_cannot_make_anothers_servers_or_the_spares_its_own() {
    let fleet = Fleet::stocked().await;
    let [lb1, lb2] = [("lb1.example", 11), ("lb2.example", 12)].map(|(n, s)| fleet.peer(&[n], s));
    let grants = |roles: Option<&str>| {
        let mut one = grant("lb1", Some(&["fwmark/1"]));
        one.roles = roles.map(|role| [role.to_owned()].into());
        let all = vec![one, grant("lb2", Some(&["fwmark/2"]))];
        fleet.grants.send_replace(Arc::new(all));
    };
    let put = async |peer: &Peer, name: &str, key: &str, server: &str| {
        let path = format!("/v1/directors/{name}");
        let body = own(name, key, server);
        peer.send(Method::PUT, &path, &body).await
    };
    grants(None);
    put(&lb2, "lb2", "fwmark/2", "10.0.0.2").await.unwrap();
    let body = json!(testing::request("lb2", "10.0.0.2"));
    let asked = lb2.send(Method::POST, "/v1/replacements", &body).await;
    let asked = asked.unwrap();
    for server in ["10.0.0.2", "fd00::2"] {
        let refused = put(&lb1, "lb1", "fwmark/1", server).await;
        let detail = problem(refused, 403, "server_of_another_director");
        assert!(
            detail.contains(server) && detail.contains("fwmark/2"),
            "{detail}"
        );
    }
    let refused = put(&lb1, "lb1", "fwmark/1", "10.0.0.11").await;
    let detail = problem(refused, 403, "server_is_a_spare");
    assert!(detail.contains("spare1"), "{detail}");
    let world = fleet.store.world().await.unwrap();
    assert!(
        world
            .pool()
            .iter()
            .all(|c| c.configured.is_none() || c.addresses.contains(&ip("10.0.0.2")))
    );
    // What was refused is not kept either.
    let body = json!(testing::request("lb1", "10.0.0.2"));
    let ask = lb1.send(Method::POST, "/v1/replacements", &body).await;
    problem(ask, 409, "not_registered");
    let path = format!("/v1/replacements/{}", asked["id"].as_str().unwrap());
    problem(lb1.get(&path).await, 403, "not_your_replacement");

    // Roles say whose a server is, whoever came first.
    grants(Some("db.shop.example"));
    let refused = put(&lb1, "lb1", "fwmark/1", "10.0.0.1").await;
    let detail = problem(refused, 403, "role_not_allowed");
    assert!(detail.contains("web.shop.example"), "{detail}");
    grants(Some("web.shop.example"));
    put(&lb1, "lb1", "fwmark/1", "10.0.0.1").await.unwrap();
    // And they say it of what is registered already.
    grants(Some("db.shop.example"));
    let body = json!(testing::request("lb1", "10.0.0.1"));
    let ask = lb1.send(Method::POST, "/v1/replacements", &body).await;
    problem(ask, 403, "role_not_allowed");
    problem(lb1.get("/v1/replacements").await, 403, "role_not_allowed");
}

#[tokio::test]
async fn a_registration_has_its_bounds() {
    let fleet = Fleet::new().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    let mut big = registration("lb1");
    let one = big.services[0].servers[0].clone();
    let servers = (0..5000_u32).map(|n| crate::model::wire::RegisteredServer {
        address: std::net::Ipv4Addr::from(0x0a00_0000 + n).into(),
        ..one.clone()
    });
    big.services[0].servers = servers.collect();
    let put = lb1
        .send(Method::PUT, "/v1/directors/lb1", &json!(big))
        .await;
    let detail = problem(put, 422, "too_many_servers");
    assert!(detail.contains("4096"), "{detail}");
}

#[tokio::test]
async fn the_trail_says_which_certificate_asked() {
    let fleet = Fleet::stocked().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    lb1.register("lb1").await.unwrap();
    let body = json!(testing::request("lb1", "10.0.0.1"));
    lb1.send(Method::POST, "/v1/replacements", &body)
        .await
        .unwrap();
    let filter = crate::model::EventFilter::default();
    let page = fleet.store.events(None, None, &filter).await.unwrap();
    let text = json!(page).to_string();
    // The address that it says is its own word.
    assert!(text.contains("lb1.example"), "{text}");
    assert!(!text.contains("10.0.0.251"), "{text}");
}

#[tokio::test]
async fn a_list_that_became_shorter_closes_all_that_it_opened() {
    let fleet = Fleet::stocked().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    lb1.register("lb1").await.unwrap();
    let body = json!(testing::request("lb1", "10.0.0.1"));
    let asked = lb1.send(Method::POST, "/v1/replacements", &body).await;
    let id = asked.unwrap()["id"].as_str().unwrap().to_owned();
    let members = lb1.get("/v1/directors/lb1/members").await.unwrap();
    let path = format!(
        "/v1/directors/lb1/members?after={}&wait=60",
        members["version"]
    );
    let mut poll = std::pin::pin!(lb1.get(&path));
    let early = timeout(Duration::from_millis(300), poll.as_mut()).await;
    assert!(early.is_err(), "it waits");
    let allow = |all: Vec<Grant>| fleet.grants.send_replace(Arc::new(all));
    allow(vec![grant("lb1", Some(&["fwmark/9"]))]);
    let ended = timeout(LIMIT / 4, poll).await.expect("at once");
    problem(ended, 403, "service_not_allowed");
    let member = format!("/v1/directors/lb1/members/{id}");
    for (method, path, body) in [
        (
            Method::GET,
            "/v1/directors/lb1/members".to_owned(),
            Value::Null,
        ),
        (
            Method::PUT,
            "/v1/directors/lb1/findings".to_owned(),
            json!({"failing": {}}),
        ),
        (Method::POST, member.clone(), json!({"is": "attach"})),
        (Method::POST, format!("{member}/release"), Value::Null),
        (Method::GET, "/v1/replacements".to_owned(), Value::Null),
        (Method::GET, format!("/v1/replacements/{id}"), Value::Null),
        (
            Method::POST,
            format!("/v1/replacements/{id}/cancel"),
            Value::Null,
        ),
    ] {
        let answer = lb1.send(method, &path, &body).await;
        problem(answer, 403, "service_not_allowed");
    }
    // Nobody's at all.
    allow(vec![grant("lb1", None)]);
    let mut poll = std::pin::pin!(lb1.get(&path));
    let early = timeout(Duration::from_millis(300), poll.as_mut()).await;
    assert!(early.is_err(), "it waits");
    allow(Vec::new());
    let ended = timeout(LIMIT / 4, poll).await.expect("at once");
    problem(ended, 403, "unknown_certificate");
}

/// Asks on a connection, and gives the head of the answer; empty where it was closed.
async fn ask_raw(stream: &mut TlsStream<TcpStream>) -> String {
    let ask = "GET /v1/replacements HTTP/1.1\r\nHost: p\r\n\r\n";
    if stream.write_all(ask.as_bytes()).await.is_err() {
        return String::new();
    }
    let mut answer = Vec::new();
    let mut part = [0; 512];
    while !answer.windows(4).any(|w| w == b"\r\n\r\n") {
        match timeout(LIMIT, stream.read(&mut part)).await.unwrap() {
            Ok(n) if n > 0 => answer.extend_from_slice(&part[..n]),
            Ok(_) | Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn who_is_known_is_counted_by_its_certificate_and_who_is_not_by_its_address() {
    let fleet = Fleet::new().await;
    let [lb1, lb2] = [("lb1.example", 11), ("lb2.example", 12)].map(|(n, s)| fleet.peer(&[n], s));
    let stranger = fleet.peer(&["lb9.example"], 19);
    let mut held = Vec::new();
    for n in 0..=LIMITS.each {
        let mut stream = timeout(LIMIT / 4, fleet.raw(&lb1)).await.unwrap();
        let answered = !ask_raw(&mut stream).await.is_empty();
        assert_eq!(answered, n < LIMITS.each, "a certificate has its part: {n}");
        held.push(stream);
    }
    // Its address has places still, and others behind it theirs.
    let mut stream = fleet.raw(&lb2).await;
    assert!(ask_raw(&mut stream).await.starts_with("HTTP/1.1 200"));
    // Who is nobody is told so, and that is all.
    let mut stream = fleet.raw(&stranger).await;
    let head = ask_raw(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert!(head.to_lowercase().contains("connection: close"), "{head}");
    let mut rest = Vec::new();
    let closed = timeout(LIMIT / 4, stream.read_to_end(&mut rest)).await;
    drop(closed.expect("closed at once"));
    // Says nothing more once TLS has begun: one place holds few of these, and nobody who is listed waits for it.
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.extend(elsewhere_as(&fleet, &stranger).await);
    }
    let mut kept = 0;
    for stream in &mut idle {
        kept += usize::from(!ask_raw(stream).await.is_empty());
    }
    assert!(kept <= 8, "{kept}");
    drop(held);
    let begun = Instant::now();
    loop {
        let mut stream = fleet.raw(&lb1).await;
        if ask_raw(&mut stream).await.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "what was given back is free");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A connection from another address of this host with TLS that is begun, unless it was closed before.
async fn elsewhere_as(fleet: &Fleet, peer: &Peer) -> Option<TlsStream<TcpStream>> {
    let identity = tls::Client::read(&files(&peer.side)).unwrap();
    from(fleet.at, [127, 0, 0, 2], identity).await
}

async fn from(to: SocketAddr, own: [u8; 4], identity: tls::Client) -> Option<TlsStream<TcpStream>> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((own, 0).into()).unwrap();
    let stream = socket.connect(to).await.ok()?;
    let name = ServerName::try_from(HOST).unwrap();
    let connector = TlsConnector::from(identity.config());
    connector.connect(name, stream).await.ok()
}

#[tokio::test]
async fn who_is_listed_no_more_or_was_revoked_gets_no_further() {
    let fleet = Fleet::new().await;
    let [lb1, lb2] = [("lb1.example", 11), ("lb2.example", 12)].map(|(n, s)| fleet.peer(&[n], s));
    let stranger = fleet.peer(&["lb9.example"], 19);
    lb1.register("lb1").await.unwrap();
    lb2.register("lb2").await.unwrap();
    let detail = problem(stranger.register("lb1").await, 403, "unknown_certificate");
    assert!(detail.contains("lb9.example"), "{detail}");

    fleet
        .grants
        .send_replace(Arc::new(vec![grant("lb2", None)]));
    problem(lb1.register("lb1").await, 403, "unknown_certificate");
    lb2.register("lb2").await.unwrap();

    // A long poll of lb2 is under way when its certificate is revoked.
    let members = lb2.get("/v1/directors/lb2/members").await.unwrap();
    let path = format!(
        "/v1/directors/lb2/members?after={}&wait=60",
        members["version"]
    );
    let mut poll = std::pin::pin!(lb2.get(&path));
    let early = timeout(Duration::from_millis(300), poll.as_mut()).await;
    assert!(early.is_err(), "it waits");
    fleet.side.write("crl.pem", &fleet.ca.revoke(&[12]));
    fleet.reread();
    let cut = timeout(LIMIT / 2, poll).await.expect("cut off at once");
    assert!(matches!(cut, Err(Error::Broken { .. })), "{cut:?}");
    let refused = lb2.register("lb2").await.unwrap_err();
    assert!(
        crate::telemetry::Chain(&refused)
            .to_string()
            .contains("Revoked"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_renewal_under_load_costs_no_request() {
    let fleet = Fleet::new().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    lb1.register("lb1").await.unwrap();
    let (asked, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = async {
        while !over.load(SeqCst) {
            lb1.get("/v1/replacements").await.unwrap();
            asked.fetch_add(1, SeqCst);
            // Within its rate.
            sleep(BETWEEN_ASKS).await;
        }
    };
    let renewals = async {
        for n in 0..20 {
            let before = asked.load(SeqCst);
            fleet.side.renew(&fleet.ca, &leaf(&[HOST], 100 + n));
            fleet.reread();
            while asked.load(SeqCst) < before + 2 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        over.store(true, SeqCst);
    };
    Box::pin(timeout(LIMIT, async {
        tokio::join!(load, load2(&fleet, &over), renewals)
    }))
    .await
    .unwrap();
}

const BETWEEN_ASKS: Duration = Duration::from_millis(25);

/// A second director beside the first.
async fn load2(fleet: &Fleet, over: &AtomicBool) {
    let lb2 = fleet.peer(&["lb2.example"], 12);
    while !over.load(SeqCst) {
        lb2.register("lb2").await.unwrap();
        sleep(BETWEEN_ASKS).await;
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let fleet = Fleet::new().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    let lb2 = fleet.peer(&["lb2.example"], 12);
    lb1.register("lb1").await.unwrap();
    let mut all = JoinSet::new();
    let lb1 = Arc::new(lb1);
    // Fewer than may begin TLS at one address at once.
    for _ in 0..6 {
        let lb1 = Arc::clone(&lb1);
        all.spawn(async move {
            for _ in 0..2000 {
                if let Err(e) = lb1.get("/v1/replacements").await {
                    return Some(e);
                }
            }
            None
        });
    }
    let refused = timeout(LIMIT, all.join_next()).await.unwrap().unwrap();
    let refused = refused.unwrap().expect("a limit");
    assert!(refused.retry_after().unwrap() >= Duration::from_secs(1));
    problem(Err(refused), 429, "too_many_requests");
    lb2.register("lb2").await.unwrap();
}

#[tokio::test]
async fn long_polls_of_one_director_are_bounded() {
    let fleet = Fleet::new().await;
    let lb1 = Arc::new(fleet.peer(&["lb1.example"], 11));
    let lb2 = fleet.peer(&["lb2.example"], 12);
    lb1.register("lb1").await.unwrap();
    let members = lb1.get("/v1/directors/lb1/members").await.unwrap();
    let path = format!(
        "/v1/directors/lb1/members?after={}&wait=60",
        members["version"]
    );
    let mut polls = JoinSet::new();
    for _ in 0..20 {
        let (lb1, path) = (Arc::clone(&lb1), path.clone());
        polls.spawn(async move {
            loop {
                match lb1.get(&path).await {
                    // Too many of them began TLS at once.
                    Err(Error::Unreachable { .. } | Error::Broken { .. }) => {
                        sleep(Duration::from_millis(20)).await;
                    }
                    answered => return answered,
                }
            }
        });
    }
    for _ in 0..12 {
        let ended = timeout(LIMIT / 2, polls.join_next()).await;
        let ended = ended.expect("refused at once").unwrap().unwrap();
        problem(ended, 429, "too_many_requests");
    }
    let more = timeout(Duration::from_millis(300), polls.join_next()).await;
    assert!(more.is_err(), "its part is served");
    lb1.register("lb1").await.unwrap();
    lb2.register("lb2").await.unwrap();
    // What ended makes room for others.
    polls.shutdown().await;
    let begun = Instant::now();
    let again = format!("{path}&wait=0").replace("wait=60&", "");
    while let Err(e) = lb1.get(&again).await {
        problem(Err(e), 429, "too_many_requests");
        assert!(begun.elapsed() < LIMIT);
        sleep(Duration::from_millis(50)).await;
    }
}

/// A connection from another address of this host.
async fn elsewhere(to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// What a hostile director, or who pretends to be one, can do to the API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_client_starves_nobody() {
    let fleet = Fleet::new().await;
    let bad = fleet.peer(&["lb1.example"], 11);
    let good = fleet.peer(&["lb2.example"], 12);
    bad.register("lb1").await.unwrap();
    good.register("lb2").await.unwrap();
    let mut mess = Vec::new();
    // Says nothing, or half a greeting.
    let mut mute = Vec::new();
    for n in 0..100 {
        let mut stream = elsewhere(fleet.at).await;
        if n % 2 == 0 {
            // The provisioner may have closed it at once.
            drop(stream.write_all(&[22, 3, 1]).await);
        }
        mute.push(stream);
    }
    let head = |length: usize| {
        format!(
            "PUT /v1/directors/lb1 HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for n in 0..8 {
        let mut stream = fleet.raw(&bad).await;
        let text = match n % 3 {
            0 => "GET /v1/repl".to_owned(),
            1 => head(4000),
            _ => head(1 << 40),
        };
        drop(stream.write_all(text.as_bytes()).await);
        mess.push(stream);
    }
    // Asks again and again on one connection, and reads nothing.
    for _ in 0..4 {
        let mut stream = fleet.raw(&bad).await;
        let many = "GET /v1/directors/lb1/members HTTP/1.1\r\nHost: p\r\n\r\n".repeat(1000);
        let written = timeout(Duration::from_secs(1), stream.write_all(many.as_bytes())).await;
        drop(written);
        mess.push(stream);
    }
    // Thousands of long polls.
    let bad = Arc::new(bad);
    let mut polls = JoinSet::new();
    let at = fleet.at;
    for _ in 0..40 {
        let bad = Arc::clone(&bad);
        polls.spawn(async move {
            for _ in 0..50 {
                let identity = tls::Client::read(&files(&bad.side)).unwrap();
                let Some(mut stream) = from(at, [127, 0, 0, 3], identity).await else {
                    continue;
                };
                let ask =
                    "GET /v1/directors/lb1/members?after=1&wait=60 HTTP/1.1\r\nHost: p\r\n\r\n";
                drop(stream.write_all(ask.as_bytes()).await);
                drop(stream.read(&mut [0; 512]).await);
            }
        });
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let begun = Instant::now();
        let served = timeout(Duration::from_secs(5), good.register("lb2")).await;
        served.expect("served in time").unwrap();
        slowest = slowest.max(begun.elapsed());
    }
    let local = Client::unix(fleet.socket.clone());
    let path = "/v1/replacements";
    local
        .ask::<Value>(Method::GET, path, None, NOTHING, Duration::from_secs(5))
        .await
        .unwrap();
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    drop(mute);
    polls.shutdown().await;
}

#[tokio::test]
async fn a_body_is_as_big_as_its_route_takes() {
    let fleet = Fleet::new().await;
    let lb1 = fleet.peer(&["lb1.example"], 11);
    lb1.register("lb1").await.unwrap();
    let mut stream = fleet.raw(&lb1).await;
    let head = format!(
        "POST /v1/replacements HTTP/1.1\r\nHost: p\r\nIdempotency-Key: k\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        BODY + 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; BODY + 1]).await.unwrap();
    let mut answer = vec![0; 12];
    timeout(LIMIT, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}
