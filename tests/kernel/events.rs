//! Events and hooks, from a real failure to a receiver, a mailbox and whoever follows.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use tokio_util::sync::CancellationToken;
use understudy::http::{self, Doors, Limits};
use understudy::model::{Event, EventKind};

use crate::lab::server::{Server, Tree};
use crate::lab::{Lab, vip4, wait_for};
use crate::scene::{SOON, WIRING, run_director, understudy};

const CA: &str = include_str!("../../src/check/testdata/ca.pem");
const GOOD: &str = include_str!("../../src/check/testdata/server.pem");
const KEY: &str = include_str!("../../src/check/testdata/server.key");

/// Ends TLS, and hands on to the receiver.
const NGINX: &str = r#"server {
    listen 443 ssl;
    ssl_certificate /etc/hooks/server.pem;
    ssl_certificate_key /etc/hooks/server.key;
    location = /secure { proxy_pass http://10.77.1.1:9000/secure; }
}"#;

const POSTFIX: &str = "compatibility_level = 3.6
myhostname = mail.example.org
mydestination = localhost, example.org
inet_interfaces = all
inet_protocols = ipv4
alias_maps =
smtpd_peername_lookup = no
smtpd_tls_cert_file = /etc/hooks/server.pem
smtpd_tls_key_file = /etc/hooks/server.key
smtpd_tls_security_level = encrypt
maillog_file = /var/log/postfix.log
";

const PORT: u16 = 9000;
const POLL: Duration = Duration::from_millis(200);
const SECRET: &str = "a key of this test";

#[derive(Clone)]
struct Post {
    to: &'static str,
    headers: HeaderMap,
    body: Bytes,
}

impl Post {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    fn event(&self) -> Event {
        serde_json::from_slice(&self.body).unwrap()
    }
}

type Posts = Arc<Mutex<Vec<Post>>>;

/// An HTTP server on the director's host.
struct Receiver {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Receiver {
    fn open(lab: &Lab, posts: &Posts) -> Self {
        let stop = CancellationToken::new();
        let (stopped, posts) = (stop.clone(), Arc::clone(posts));
        let keep = |to: &'static str| {
            post(
                move |State(posts): State<Posts>, headers: HeaderMap, body: Bytes| async move {
                    let mut posts = posts.lock().unwrap_or_else(PoisonError::into_inner);
                    posts.push(Post { to, headers, body });
                },
            )
        };
        let router = Router::new()
            .route("/plain", keep("plain"))
            .route("/secure", keep("secure"))
            .with_state(posts);
        let serve = async move {
            let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
            let listener = tokio::net::TcpListener::bind(at).await.unwrap();
            let limits = Limits {
                connections: 8,
                reserved: 0,
                each: 8,
                unknown: 8,
                header: SOON,
                lasting: SOON,
                keep_alive: true,
            };
            http::serve(Doors::tcp(listener), router, limits, stopped).await;
        };
        // A thread begins in the namespace of the one that starts it.
        let thread = lab.director.run(|| {
            thread::spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(serve);
            })
        });
        Self { stop, thread }
    }

    fn close(self) {
        self.stop.cancel();
        self.thread.join().unwrap();
    }
}

/// What came to one of them, once it holds.
fn wait_for_posts(
    posts: &Posts,
    to: &str,
    what: &str,
    holds: impl Fn(&[Event]) -> bool,
) -> Vec<Post> {
    wait_for(what, SOON, POLL, || {
        let posts = posts.lock().unwrap_or_else(PoisonError::into_inner);
        let got: Vec<Post> = posts.iter().filter(|p| p.to == to).cloned().collect();
        let events: Vec<_> = got.iter().map(Post::event).collect();
        match holds(&events) {
            true => Ok(got),
            false => Err(format!("{to}: {events:#?}")),
        }
    })
}

fn has(events: &[Event], kind: EventKind) -> bool {
    events.iter().any(|e| e.kind == kind)
}

/// As README.md says it is done, by another program.
fn verify(server: &Server, post: &Post) {
    let signature = post.header("Understudy-Signature");
    let (time, code) = signature.split_once(",v1=").unwrap();
    let time = time.strip_prefix("t=").unwrap();
    fs::write(server.path("/tmp/body"), &post.body).unwrap();
    let said = server.sh(&format!(
        "{{ printf '%s.' {time}; cat /tmp/body; }} | openssl dgst -sha256 -hmac '{SECRET}' -r"
    ));
    assert_eq!(said.split(' ').next(), Some(code), "{said}");
}

/// The mailbox, once these words are in it.
fn wait_for_mail(server: &Server, words: &str) -> String {
    wait_for(&format!("mail with {words:?}"), SOON, POLL, || {
        let mailbox = server.read("/var/mail/ops");
        match mailbox.contains(words) {
            true => Ok(mailbox),
            false => Err(format!(
                "{mailbox}\n{}",
                server.read("/var/log/postfix.log")
            )),
        }
    })
}

fn start_peers(server: &Server) {
    server.sh("mkdir /etc/hooks && chmod 755 /etc/hooks && rm -f /etc/nginx/sites-enabled/default && useradd -m ops");
    let write = |path: &str, text: &str| fs::write(server.path(path), text).unwrap();
    write("/etc/hooks/server.pem", GOOD);
    write("/etc/hooks/server.key", KEY);
    write("/etc/nginx/conf.d/hooks.conf", NGINX);
    write("/etc/postfix/main.cf", POSTFIX);
    server.sh("nginx && postfix start");
}

#[test]
fn a_failure_is_told_to_receivers_that_were_away_by_mail_and_to_who_follows() {
    let servers = [
        ("web1", Tree::Web),
        ("web2", Tree::Web),
        ("peers", Tree::Kinds),
    ];
    let lab = Lab::new(WIRING, &servers);
    let peers = lab.server("peers");
    start_peers(peers);
    let (ca, secret) = (lab.write("ca.pem", CA), lab.write("secret", SECRET));
    let (vip, at) = (vip4(80), peers.address4());
    let config = lab.write_lone_director(&format!(
        r#"
[[webhook]]
name = "plain"
url = "http://127.0.0.1:{PORT}/plain"
secret = "{secret}"
[[webhook]]
name = "secure"
url = "https://{at}/secure"
secret = "{secret}"
events = {{ severity = "error", kinds = ["quorum_held"] }}
tls = {{ ca = "{ca}", sni = "www.example.org" }}
[smtp]
relay = "{at}:25"
from = "lb1@example.org"
ehlo = "lb1.example.org"
starttls = {{ ca = "{ca}", sni = "www.example.org" }}
[[mail]]
name = "ops"
to = ["ops@example.org"]
window = "3s"
[[virtual_service]]
address = "{vip}"
scheduler = "rr"
forward = "nat"
quorum = 2
check = {{ interval = "500ms", timeout = "2s", rise = 1, fall = 2 }}
damping = {{ half_life = "0s" }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80" }}]
"#
    ));
    let mut director = run_director(&lab, &config);
    director.wait_for_log("hook plain does not take events", SOON);
    let socket = lab.director_socket();
    let follow = ["events", "--follow", "-o", "json", "--socket", &socket];
    let mut follower = lab.understudy("events", &follow, &[]);
    follower.wait_for_log("\"started\"", SOON);

    // A failure while the receiver is away.
    lab.server("web1").kill_nginx();
    let line = follower.wait_for_log("\"server_down\"", SOON);
    let event: Event = serde_json::from_str(&line).unwrap();
    assert_eq!(event.server.unwrap().to_string(), "10.77.1.11:80");
    assert_eq!(event.reason.as_deref(), Some("refused"));
    assert!(event.text.contains("connection refused"), "{line}");
    follower.wait_for_log("\"quorum_lost\"", SOON);
    let posts = Posts::default();
    let receiver = Receiver::open(&lab, &posts);
    let lost = |events: &[Event]| has(events, EventKind::QuorumLost);
    wait_for_posts(&posts, "plain", "the lost quorum", lost);
    director.wait_for_log("hook takes events again", SOON);
    let secured = wait_for_posts(&posts, "secure", "the lost quorum over TLS", lost);
    assert_eq!(secured.len(), 1, "what it wants, and no more");
    verify(peers, &secured[0]);

    // Another mail: this one's window is over.
    wait_for_mail(peers, "lost its quorum");

    // It goes away again, and what happened is told when it is back.
    receiver.close();
    lab.server("web1").sh("nginx");
    follower.wait_for_log("\"quorum_held\"", SOON);
    let receiver = Receiver::open(&lab, &posts);
    let held = |events: &[Event]| has(events, EventKind::QuorumHeld);
    wait_for_posts(&posts, "secure", "the quorum held again", held);
    let plain = wait_for_posts(&posts, "plain", "the quorum held again", held);
    // Each once it is told again after a doubt has the same id: a receiver knows it by that.
    let mut ids: Vec<_> = plain
        .iter()
        .map(|p| p.header("Understudy-Event-Id"))
        .collect();
    ids.dedup();
    let run = plain[0].event().run;
    let all = (1..=ids.len()).map(|n| format!("lb1/{run}/{n}"));
    assert_eq!(ids, all.collect::<Vec<_>>(), "all of them, in order");
    for post in &plain {
        verify(peers, post);
    }
    assert!(
        plain
            .iter()
            .all(|p| p.header("Understudy-Left-Out").is_empty())
    );

    // By mail.
    let mailbox = wait_for_mail(peers, "has its quorum again");
    for words in [
        "From: lb1@example.org",
        "To: ops@example.org",
        "Auto-Submitted: auto-generated",
        "Subject: [lb1] 2 events: 1 quorum lost, 1 server down",
        "warning: real server 10.77.1.11:80 of tcp/192.0.2.1:80 fails its checks: connection refused; it is taken out",
        "error: virtual service tcp/192.0.2.1:80 lost its quorum: weight 1 is up, 2 is needed",
        "with ESMTPS",
    ] {
        assert!(mailbox.contains(words), "no {words:?} in\n{mailbox}");
    }

    // Whoever follows goes on over a restart, and who asks once sees what it looks for.
    drop(director);
    let _director = run_director(&lab, &config);
    wait_for(
        "the start of the second life",
        SOON,
        POLL,
        || match follower.log().matches("\"started\"").count() {
            2 => Ok(()),
            _ => Err(follower.log()),
        },
    );
    let shown = understudy(&lab, &["events", "--kind", "started", "--socket", &socket]);
    assert!(shown.ends_with("director started\n"), "{shown}");
    assert_eq!(shown.lines().count(), 1, "{shown}");
    receiver.close();
}
