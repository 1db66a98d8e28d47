//! Workers against an HTTP server on loopback.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};

use super::*;
use crate::{
    http::{self, Doors, Limits},
    model::{Event, EventDraft, EventKind, Role, Severity, WallMillis, Wanted, Webhook},
};

const LIMIT: Duration = Duration::from_secs(60);

/// What a receiver got, and what it is to answer; then 200.
#[derive(Clone)]
struct Receiver {
    got: mpsc::Sender<(HeaderMap, Bytes)>,
    answers: Arc<Mutex<VecDeque<u16>>>,
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let answer = {
        let mut answers = receiver
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        answers.pop_front().unwrap_or(200)
    };
    receiver.got.send((headers, body)).await.unwrap();
    StatusCode::from_u16(answer).unwrap()
}

struct Open {
    got: mpsc::Receiver<(HeaderMap, Bytes)>,
    stop: CancellationToken,
    _task: JoinHandle<()>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test itself waits for what it does"
)]
fn open(listener: TcpListener, answers: &[u16]) -> Open {
    let (sender, got) = mpsc::channel(2_000);
    let receiver = Receiver {
        got: sender,
        answers: Arc::new(Mutex::new(answers.iter().copied().collect())),
    };
    let router = Router::new().route("/lvs", post(take)).with_state(receiver);
    let limits = Limits {
        connections: 8,
        reserved: 0,
        each: 8,
        unknown: 8,
        header: LIMIT,
        lasting: LIMIT,
        keep_alive: true,
    };
    let stop = CancellationToken::new();
    let serving = http::serve(Doors::tcp(listener), router, limits, stop.clone());
    Open {
        got,
        stop,
        _task: tokio::spawn(serving),
    }
}

impl Open {
    async fn next(&mut self) -> (HeaderMap, Event) {
        let got = timeout(LIMIT, self.got.recv()).await;
        let (headers, body) = got.expect("a request in time").unwrap();
        (headers, serde_json::from_slice(&body).unwrap())
    }

    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push(self.next().await.1.number);
        }
        numbers
    }
}

async fn port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

fn webhook(at: SocketAddr, secret: Option<PathBuf>) -> Webhook {
    Webhook {
        host: at.ip().to_string(),
        port: at.port(),
        target: "/lvs".to_owned(),
        authority: at.to_string(),
        tls: None,
        secret,
        wanted: Wanted {
            severity: Some(Severity::Warning),
            kinds: [].into(),
        },
        timeout: Duration::from_secs(5),
        retry_for: Duration::from_hours(1),
    }
}

fn hooks(webhook: Webhook) -> Arc<Hooks> {
    Arc::new([("pager".to_owned(), Hook::Webhook(webhook))].into())
}

/// The hooks' task, and what moves it.
struct World {
    ring: watch::Sender<EventRing>,
    hooks: watch::Sender<Arc<Hooks>>,
    told: mpsc::Receiver<Told>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test itself sees the end of the task"
    )]
    fn start(webhook: Webhook) -> Self {
        let name = "lb1".parse().unwrap();
        let ring = EventRing::new(Role::Director, Some(name), WallMillis(7));
        let (ring, followed) = watch::channel(ring);
        let (hooks, configured) = watch::channel(hooks(webhook));
        let (observed, told) = mpsc::channel(10_000);
        let observe: Observe = Arc::new(move |name, told| {
            assert_eq!(name, "pager");
            observed.try_send(told).unwrap();
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(configured, |all| all, followed, observe, stop.clone()));
        Self {
            ring,
            hooks,
            told,
            stop,
            task,
        }
    }

    fn push(&self, kind: EventKind) {
        let draft = EventDraft::new(kind, "it happened");
        self.ring
            .send_modify(|ring| ring.push(draft, WallMillis(0)));
    }

    async fn until(&mut self, wanted: impl Fn(Told) -> bool) -> Told {
        let told = async {
            loop {
                let told = self.told.recv().await.unwrap();
                if wanted(told) {
                    return told;
                }
            }
        };
        timeout(LIMIT, told).await.expect("it in time")
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.unwrap().unwrap();
    }
}

fn value<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).map_or("", |v| v.to_str().unwrap())
}

#[tokio::test]
async fn a_receiver_that_was_away_gets_all_events_in_their_order_signed() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("key");
    std::fs::write(&secret, "topsecret\n").unwrap();
    let (listener, at) = port().await;
    drop(listener);
    let mut w = World::start(webhook(at, Some(secret)));
    for kind in [
        EventKind::ServerDown,
        EventKind::ServerUp,
        EventKind::QuorumLost,
        EventKind::Ordered,
    ] {
        w.push(kind);
    }
    w.until(|told| told == Told::Failed).await;
    w.push(EventKind::ServerDown);
    let mut receiver = open(TcpListener::bind(at).await.unwrap(), &[]);
    let mut numbers = Vec::new();
    for _ in 0..4 {
        let (headers, body) = timeout(LIMIT, receiver.got.recv()).await.unwrap().unwrap();
        let event: Event = serde_json::from_slice(&body).unwrap();
        assert_eq!(value(&headers, "Understudy-Event-Id"), event.id());
        assert_eq!(value(&headers, "Understudy-Event"), event.kind.label());
        assert_eq!(value(&headers, "Content-Type"), "application/json");
        let signature = value(&headers, "Understudy-Signature");
        let (time, _) = signature.split_once(',').unwrap();
        let seconds = time.strip_prefix("t=").unwrap().parse().unwrap();
        assert_eq!(signature, sign::signature(b"topsecret", seconds, &body));
        let now = crate::clock::wall().0 / 1_000;
        assert!((now - 60..=now).contains(&seconds), "the time of sending");
        numbers.push(event.number);
    }
    // The second one is of no interest here.
    assert_eq!(numbers, [1, 3, 4, 5]);
    w.end().await;
}

#[tokio::test]
async fn what_was_refused_is_told_again_before_anything_newer() {
    let (listener, at) = port().await;
    let mut receiver = open(listener, &[503, 200, 301]);
    let w = World::start(webhook(at, None));
    w.push(EventKind::ServerDown);
    w.push(EventKind::ServerDown);
    w.push(EventKind::ServerDown);
    assert_eq!(receiver.numbers(5).await, [1, 1, 2, 2, 3]);
    w.end().await;
}

#[tokio::test]
async fn nobody_waits_for_a_receiver_that_says_nothing_and_what_it_misses_is_counted() {
    let (listener, at) = port().await;
    let mut w = World::start(webhook(at, None));
    // Takes connections into its backlog, and that is all.
    for _ in 0..3 {
        for _ in 0..900 {
            w.push(EventKind::ServerDown);
        }
        // Looked at between: what one look finds is all in the ring.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    let mut dropped = 0;
    while dropped < 1_700 {
        let told = w.until(|told| matches!(told, Told::Dropped(_))).await;
        if let Told::Dropped(events) = told {
            dropped += events;
        }
    }
    assert_eq!(dropped, 1_700);
    let mut receiver = open(listener, &[]);
    // Whoever was in the backlog is served first: the attempt that was under way.
    loop {
        let (headers, event) = receiver.next().await;
        if event.number > 1_700 {
            assert_eq!(event.number, 1_701, "the oldest that is kept");
            assert_eq!(value(&headers, "Understudy-Left-Out"), "1700");
            break;
        }
    }
    assert_eq!(
        receiver.numbers(999).await,
        (1_702..=2_700).collect::<Vec<_>>()
    );
    w.end().await;
}

#[tokio::test]
async fn what_could_not_be_told_goes_where_a_new_configuration_says() {
    let (listener, old) = port().await;
    drop(listener);
    let mut w = World::start(webhook(old, None));
    w.push(EventKind::ServerDown);
    w.until(|told| told == Told::Failed).await;
    let (listener, new) = port().await;
    let mut receiver = open(listener, &[]);
    w.hooks.send_replace(hooks(webhook(new, None)));
    w.push(EventKind::QuorumLost);
    assert_eq!(receiver.numbers(2).await, [1, 2]);
    // One that comes later is told of what comes.
    w.hooks.send_replace(Arc::default());
    w.until(|told| told == Told::Ok).await;
    timeout(LIMIT, async {
        while w.ring.receiver_count() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the worker ends");
    w.push(EventKind::ServerDown);
    w.hooks.send_replace(hooks(webhook(new, None)));
    timeout(LIMIT, async {
        while w.ring.receiver_count() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a worker begins");
    w.push(EventKind::Ordered);
    assert_eq!(receiver.numbers(1).await, [4]);
    receiver.stop.cancel();
    w.end().await;
}

#[tokio::test]
async fn a_burst_goes_over_one_connection_and_a_closed_one_loses_nothing() {
    let (listener, at) = port().await;
    let mut receiver = open(listener, &[]);
    let w = World::start(webhook(at, None));
    for _ in 0..20 {
        w.push(EventKind::ServerDown);
    }
    assert_eq!(receiver.numbers(20).await, (1..=20).collect::<Vec<_>>());
    // It comes back at the same place; connections to the old one are gone.
    receiver.stop.cancel();
    let listener = timeout(LIMIT, async {
        loop {
            match TcpListener::bind(at).await {
                Ok(listener) => return listener,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
    .unwrap();
    let mut receiver = open(listener, &[]);
    w.push(EventKind::ServerDown);
    assert_eq!(receiver.numbers(1).await, [21]);
    w.end().await;
}

#[tokio::test]
async fn a_missing_secret_is_waited_for_and_nothing_goes_out_unsigned() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("key");
    let (listener, at) = port().await;
    let mut receiver = open(listener, &[]);
    let mut w = World::start(webhook(at, Some(secret.clone())));
    w.push(EventKind::ServerDown);
    w.until(|told| told == Told::Failed).await;
    std::fs::write(&secret, "late").unwrap();
    let (headers, event) = receiver.next().await;
    assert_eq!(event.number, 1);
    assert!(value(&headers, "Understudy-Signature").starts_with("t="));
    w.end().await;
}
