//! Probes against real listeners on loopback.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::sleep,
};
use understudy::{
    check::{Network, Prober as _, Ways, probe},
    model::{CheckKind, CheckSpec, CheckTiming, FailReason, HttpCheck, Outcome, Phase, Via},
};

use crate::support::in_new_namespace;

/// Nobody waits so long: an outcome that comes is not the time-out's.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(400);

fn fail(reason: FailReason) -> Outcome {
    Outcome::Fail(reason)
}

fn http() -> CheckKind {
    CheckKind::Http(Box::new(HttpCheck {
        path: "/health?full=1".to_owned(),
        host: Some("www.example.org".to_owned()),
        ..HttpCheck::default()
    }))
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

/// Reads a request's head.
async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// A server for one connection, which `serve` has after the request's head.
#[expect(
    clippy::disallowed_methods,
    reason = "the test itself sees the end of the task"
)]
async fn server<F, Fut>(serve: F) -> (SocketAddr, JoinHandle<()>)
where
    F: FnOnce(TcpStream, String) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (listener, at) = listener().await;
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = head(&mut stream).await;
        serve(stream, head).await;
    });
    (at, task)
}

/// What a probe finds where every request is answered with `answer`, and then the connection is
/// kept open.
async fn answered(answer: &'static str) -> Outcome {
    let (at, task) = server(move |mut stream, _| async move {
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Until the probe goes: a server that never closes decides nothing.
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    })
    .await;
    let outcome = probe(at, &http(), LONG).await;
    task.await.unwrap();
    outcome
}

#[tokio::test]
async fn a_port_that_accepts_passes() {
    let (_listener, at) = listener().await;
    assert_eq!(probe(at, &CheckKind::default(), LONG).await, Outcome::Pass);
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    assert_eq!(probe(at, &CheckKind::default(), LONG).await, Outcome::Pass);
}

#[tokio::test]
async fn a_port_without_listener_is_refused() {
    // Bound, so that nobody else listens there.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = socket.local_addr().unwrap();
    for kind in [CheckKind::default(), http()] {
        assert_eq!(probe(at, &kind, LONG).await, fail(FailReason::Refused));
    }
}

#[test]
fn what_routers_say_counts_and_what_this_host_lacks_does_not() {
    in_new_namespace(
        "ip link set lo up
         ip route add unreachable 192.0.2.1/32
         ip route add blackhole 192.0.2.4/32
         ip -6 route add prohibit 2001:db8::1/128
         ulimit -n 64",
        "check::sees_routes_and_runs_short",
    );
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn sees_routes_and_runs_short() {
    for (at, wanted) in [
        // Unreachable host; no route at all; a firewall or router that prohibits, by ICMPv6.
        ("192.0.2.1:80", FailReason::Unreachable),
        ("192.0.2.2:80", FailReason::Unreachable),
        ("[2001:db8::1]:80", FailReason::Unreachable),
        // EINVAL: only a route of this host's own does this.
        ("192.0.2.4:80", FailReason::Local),
    ] {
        let at = at.parse().unwrap();
        assert_eq!(
            probe(at, &CheckKind::default(), LONG).await,
            fail(wanted),
            "{at}"
        );
    }
    let (_listener, at) = listener().await;
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    for kind in [CheckKind::default(), http()] {
        let outcome = probe(at, &kind, LONG).await;
        assert_eq!(outcome, fail(FailReason::Local), "no descriptor is free");
    }
    drop(taken);
    assert_eq!(probe(at, &CheckKind::default(), LONG).await, Outcome::Pass);
}

#[tokio::test]
async fn a_full_backlog_times_out_in_the_connect_phase() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // One connection waits to be accepted, one more is let in: then handshakes are left unanswered.
    let listener = socket.listen(0).unwrap();
    let at = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    loop {
        let connected = tokio::time::timeout(SHORT, TcpStream::connect(at)).await;
        match connected {
            Ok(stream) => waiting.push(stream.unwrap()),
            Err(_full) => break,
        }
    }
    let begun = Instant::now();
    let outcome = probe(at, &http(), SHORT).await;
    assert_eq!(outcome, fail(FailReason::TimedOut(Phase::Connect)));
    assert!(begun.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_times_out_in_the_answer_phase() {
    let (_listener, at) = listener().await;
    let outcome = probe(at, &http(), SHORT).await;
    assert_eq!(outcome, fail(FailReason::TimedOut(Phase::Answer)));
    assert_eq!(
        probe(at, &CheckKind::default(), LONG).await,
        Outcome::Pass,
        "mute, but it listens"
    );
}

#[tokio::test]
async fn a_connection_that_ends_before_the_answer_is_a_reset() {
    for (rst, half) in [
        (true, ""),
        (false, ""),
        (true, "HTTP/1.1 200 O"),
        (false, "HTTP/1.1 200 O"),
    ] {
        let (at, task) = server(move |mut stream, _| async move {
            stream.write_all(half.as_bytes()).await.unwrap();
            if rst {
                stream.set_zero_linger().unwrap();
            }
        })
        .await;
        let outcome = probe(at, &http(), LONG).await;
        assert_eq!(
            outcome,
            fail(FailReason::Reset),
            "by reset: {rst}, after {half:?}"
        );
        task.await.unwrap();
    }
}

#[tokio::test]
async fn the_status_decides() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(answered(ok).await, Outcome::Pass);
    let old = "HTTP/1.0 204 No Content\r\n\r\n";
    assert_eq!(answered(old).await, Outcome::Pass);
    let early = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(answered(early).await, Outcome::Pass);
    for (answer, status) in [
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            503,
        ),
        ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", 302),
        ("HTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 300 Odd\r\n\r\n", 300),
    ] {
        assert_eq!(answered(answer).await, fail(FailReason::Status(status)));
    }
}

#[tokio::test]
async fn a_body_is_not_waited_for() {
    let promised = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nbegun";
    assert_eq!(answered(promised).await, Outcome::Pass);
}

#[tokio::test]
async fn what_is_not_http_is_garbled() {
    for answer in [
        "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        "HTTP/1.1 twohundred OK\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}",
        "<html>ok</html>\n\n",
    ] {
        assert_eq!(
            answered(answer).await,
            fail(FailReason::Garbled),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_banner_before_the_request_is_garbled() {
    let (listener, at) = listener().await;
    let talk = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"220 mail.example.org ESMTP\r\n")
            .await
            .unwrap();
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    };
    let kind = http();
    let (outcome, ()) = tokio::join!(probe(at, &kind, LONG), talk);
    assert_eq!(outcome, fail(FailReason::Garbled));
}

#[tokio::test]
async fn a_head_without_end_is_cut() {
    let (at, task) = server(|mut stream, _| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        let line = format!("X-Filler: {}\r\n", "x".repeat(1_000));
        let mut sent = 0;
        // Until the probe has enough: the socket's buffers and no more.
        while stream.write_all(line.as_bytes()).await.is_ok() {
            sent += line.len();
            assert!(sent < 100_000_000, "the probe reads on and on");
        }
    })
    .await;
    assert_eq!(probe(at, &http(), LONG).await, fail(FailReason::Garbled));
    task.await.unwrap();
}

#[tokio::test]
async fn a_head_is_read_up_to_8_kib() {
    for (filler, wanted) in [(7_000, Outcome::Pass), (9_000, fail(FailReason::Garbled))] {
        let (at, task) = server(move |mut stream, _| async move {
            let filler = "x".repeat(filler);
            let answer = format!("HTTP/1.1 200 OK\r\nX-Filler: {filler}\r\n\r\n");
            // The probe may go before all of it is sent.
            drop(stream.write_all(answer.as_bytes()).await);
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
        })
        .await;
        assert_eq!(probe(at, &http(), LONG).await, wanted, "{filler}");
        task.await.unwrap();
    }
}

#[tokio::test]
async fn one_deadline_covers_an_answer_that_trickles() {
    let (at, task) = server(|mut stream, _| async move {
        // Each byte comes well within the time limit, the answer does not.
        for byte in b"HTTP/1.1 200 OK\r\n\r\n" {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            sleep(SHORT / 4).await;
        }
    })
    .await;
    let begun = Instant::now();
    let outcome = probe(at, &http(), SHORT).await;
    assert_eq!(outcome, fail(FailReason::TimedOut(Phase::Answer)));
    assert!(begun.elapsed() < SHORT * 3, "{:?}", begun.elapsed());
    task.await.unwrap();
}

#[tokio::test]
async fn the_request_is_as_configured() {
    let (tx, rx) = tokio::sync::oneshot::channel();
    let (at, task) = server(|mut stream, head| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        tx.send(head).unwrap();
    })
    .await;
    assert_eq!(probe(at, &http(), LONG).await, Outcome::Pass);
    task.await.unwrap();
    let head = rx.await.unwrap().to_lowercase();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("get /health?full=1 http/1.1"));
    let lines: Vec<_> = lines.collect();
    for wanted in ["host: www.example.org", "connection: close"] {
        assert!(lines.contains(&wanted), "{wanted}: {lines:?}");
    }
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("user-agent: understudy/")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn probes_leave_no_time_wait() {
    let (at, task) = server(|mut stream, _| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        let mut rest = Vec::new();
        // Until the probe goes, however it goes.
        drop(stream.read_to_end(&mut rest).await);
    })
    .await;
    assert_eq!(probe(at, &http(), LONG).await, Outcome::Pass);
    task.await.unwrap();
    let port = format!(":{:04X} ", at.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // State 06 is TIME_WAIT.
    let left: Vec<_> = sockets
        .lines()
        .filter(|l| l.contains(&port) && l.contains(" 06 "))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Another process of this program that probes `at` once and prints what it found.
struct Prober {
    child: Child,
    pid: Pid,
}

impl Prober {
    fn start(at: SocketAddr) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "check::probes_once", "--ignored", "--nocapture"])
            .env("PROBE", at.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        Self { child, pid }
    }

    fn stop(&self) {
        kill(self.pid, Signal::SIGSTOP).unwrap();
        let stopped = waitpid(self.pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(
            matches!(stopped, WaitStatus::Stopped(_, Signal::SIGSTOP)),
            "{stopped:?}"
        );
    }

    fn resume(self) -> String {
        kill(self.pid, Signal::SIGCONT).unwrap();
        let out = self.child.wait_with_output().unwrap();
        assert!(out.status.success());
        let text = String::from_utf8(out.stdout).unwrap();
        let found = text
            .lines()
            .find_map(|l| l.split_once("found "))
            .expect("it says what it found");
        found.1.to_owned()
    }
}

#[tokio::test]
#[ignore = "the process that the next test stops"]
async fn probes_once() {
    let at = std::env::var("PROBE").unwrap().parse().unwrap();
    let outcome = probe(at, &http(), SHORT).await;
    let mut out = std::io::stdout();
    writeln!(out, "found {}", serde_json::to_string(&outcome).unwrap()).unwrap();
}

#[test]
fn a_process_that_was_stopped_blames_no_server() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    for (answer, wanted) in [
        (Some("HTTP/1.1 200 OK\r\n\r\n"), r#""pass""#),
        (
            Some("HTTP/1.1 408 Request Timeout\r\n\r\n"),
            r#"{"fail":"local"}"#,
        ),
        (Some(""), r#"{"fail":"local"}"#),
        (None, r#"{"fail":"local"}"#),
    ] {
        let prober = Prober::start(at);
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 64];
        assert!(stream.read(&mut head).unwrap() > 0, "the request is there");
        prober.stop();
        // The stop is what is tested: it lasts longer than the probe's time limit.
        std::thread::sleep(SHORT * 2);
        let kept = match answer {
            None => Some(stream),
            // Closed without a word.
            Some("") => None,
            Some(text) => {
                stream.write_all(text.as_bytes()).unwrap();
                Some(stream)
            }
        };
        assert_eq!(
            prober.resume(),
            wanted,
            "answered {answer:?} during the stop"
        );
        drop(kept);
    }
}

#[test]
fn a_probe_without_its_hidden_service_blames_nobody() {
    in_new_namespace("ip link set lo up", "check::blames_nobody_without_its_way");
}

/// Says of every mark whether its hidden service is there.
struct Said(bool);

impl Ways for Said {
    fn stands(
        &self,
        _at: SocketAddr,
        _mark: u32,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(self.0))
    }
}

#[tokio::test]
#[ignore = "run by the test above, for it sets a firewall mark"]
async fn blames_nobody_without_its_way() {
    // Bound, so that nobody else listens there.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = socket.local_addr().unwrap();
    let spec = CheckSpec {
        kind: CheckKind::default(),
        via: Via {
            through: true,
            mark: Some(7),
            ..Via::default()
        },
        timing: CheckTiming::every(LONG),
    };
    for (there, wanted) in [(true, FailReason::Refused), (false, FailReason::Local)] {
        let network = Network {
            ways: Some(Arc::new(Said(there))),
        };
        let check = network.prepare(&spec.kind).unwrap();
        let (found, _) = network.probe(&check, at, &spec).await;
        assert_eq!(found.outcome, fail(wanted));
    }
}
