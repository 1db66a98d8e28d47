use std::{collections::BTreeMap, future::pending, io::Write, time::Duration};

use h2::server;
use hyper::Response;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

use crate::{
    check::testing::{
        LONG, SHORT, TLS, Tls as Server, fail, met, met_nobody, prepared, read_to, reset, trusting,
        write,
    },
    model::{CheckKind, Expect, Found, Outcome, TlsOptions},
};

use super::*;

fn kind(change: impl FnOnce(&mut HttpCheck)) -> CheckKind {
    let mut options = HttpCheck::default();
    change(&mut options);
    CheckKind::Http(Box::new(options))
}

fn wanting(body: Expect) -> CheckKind {
    kind(|o| o.body = Some(body))
}

/// A probe answered with these bytes, after which the connection stays open.
async fn answered(kind: CheckKind, timeout: Duration, answer: &[u8]) -> (Found, String) {
    let (found, (asked, _stream)) = met(kind, timeout, async |mut stream| {
        let asked = read_to(&mut stream, b"\r\n\r\n").await;
        write(&mut stream, answer).await;
        (asked, stream)
    })
    .await;
    (found, asked)
}

async fn outcome(kind: CheckKind, answer: &[u8]) -> Outcome {
    answered(kind, LONG, answer).await.0.outcome
}

fn detail(found: &Found) -> &str {
    found.detail.as_deref().unwrap_or("")
}

#[tokio::test]
async fn a_plain_request_says_what_it_has_to() {
    let (found, asked) = answered(kind(|_| {}), LONG, b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(found.outcome, Outcome::Pass);
    let lower = asked.to_ascii_lowercase();
    assert!(lower.starts_with("get / http/1.1\r\n"), "{asked}");
    for line in [
        "host: 127.0.0.1:",
        "user-agent: understudy/",
        "accept: */*\r\n",
        "connection: close\r\n",
    ] {
        assert_eq!(lower.matches(line).count(), 1, "{line} in {asked}");
    }
}

#[tokio::test]
async fn all_of_a_request_can_be_chosen() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    // RFC 7617, section 2.
    file.write_all(b"Aladdin:open sesame\nmore\n").unwrap();
    let kind = kind(|o| {
        o.method = "POST".into();
        o.path = "/health?full=1".into();
        o.host = Some("www.example.org".into());
        o.credentials = Some(file.path().into());
        o.headers = BTreeMap::from([
            ("user-agent".into(), "mine".into()),
            ("x-probe".into(), "1".into()),
        ]);
    });
    let (found, asked) = answered(kind, LONG, b"HTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(found.outcome, Outcome::Pass);
    assert!(
        asked.starts_with("POST /health?full=1 HTTP/1.1\r\n"),
        "{asked}"
    );
    for line in [
        "host: www.example.org\r\n",
        "user-agent: mine\r\n",
        "x-probe: 1\r\n",
        "authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n",
    ] {
        assert!(asked.contains(line), "{line} in {asked}");
    }
    assert!(!asked.contains("understudy"), "{asked}");
}

#[test]
fn a_password_is_not_shown() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"user:secret\n").unwrap();
    let options = HttpCheck {
        credentials: Some(file.path().into()),
        ..HttpCheck::default()
    };
    let shown = format!("{:?}", Http::prepare(&options).unwrap());
    assert!(
        shown.contains("Sensitive") && !shown.contains("dXNlcjpzZWNyZXQ="),
        "{shown}"
    );
}

#[test]
fn what_cannot_be_sent_is_refused_before_anybody_is_asked() {
    let refused = |change: fn(&mut HttpCheck)| {
        let mut options = HttpCheck::default();
        change(&mut options);
        Http::prepare(&options).unwrap_err().to_string()
    };
    assert_eq!(
        refused(|o| o.host = Some("a\nb".into())),
        "\"a\\nb\" is no value of a header"
    );
    assert_eq!(refused(|o| o.path = "/ /".into()), "\"/ /\" is no path");
    assert_eq!(refused(|o| o.method = "G T".into()), "\"G T\" is no method");
    let two = |o: &mut HttpCheck, name: &str, value: &str| {
        o.version = HttpVersion::Two;
        o.headers.insert(name.into(), value.into());
    };
    assert_eq!(
        refused(|o| {
            o.version = HttpVersion::Two;
            o.host = Some("a/b".into());
        }),
        "\"a/b\" is no host"
    );
    for (name, value) in [("keep-alive", "1"), ("te", "gzip")] {
        let mut options = HttpCheck::default();
        two(&mut options, name, value);
        let why = Http::prepare(&options).unwrap_err().to_string();
        assert_eq!(why, format!("{name:?} is no header of HTTP/2"));
    }
}

#[tokio::test]
async fn another_address_family_is_named_in_brackets() {
    let plain = Http::prepare(&HttpCheck::default()).unwrap();
    let request = plain.request("[2001:db8::1]:80".parse().unwrap()).unwrap();
    assert_eq!(request.headers()[HOST], "[2001:db8::1]:80");
    let two = HttpCheck {
        version: HttpVersion::Two,
        ..HttpCheck::default()
    };
    let two = Http::prepare(&two).unwrap();
    let request = two.request("[2001:db8::1]:80".parse().unwrap()).unwrap();
    assert_eq!(request.uri(), "http://[2001:db8::1]:80/");
}

#[tokio::test]
async fn statuses_pass_by_their_ranges() {
    let some = || {
        kind(|o| {
            o.status = vec![
                StatusRange { from: 200, to: 299 },
                StatusRange { from: 401, to: 401 },
            ];
        })
    };
    assert_eq!(
        outcome(some(), b"HTTP/1.1 200 OK\r\n\r\n").await,
        Outcome::Pass
    );
    assert_eq!(
        outcome(some(), b"HTTP/1.0 401 No\r\n\r\n").await,
        Outcome::Pass
    );
    let (found, _asked) = answered(some(), LONG, b"HTTP/1.1 503 Busy\r\n\r\n").await;
    assert_eq!(found.outcome, fail(FailReason::Status(503)));
    assert_eq!(detail(&found), "Service Unavailable");
    let early =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(
        outcome(some(), early).await,
        Outcome::Pass,
        "what comes first is no answer"
    );
}

#[tokio::test]
async fn a_redirect_is_told_and_not_followed() {
    let answer = b"HTTP/1.1 302 Found\r\nLocation: https://a.example/\xff\r\n\r\n";
    let (found, _asked) = answered(kind(|_| {}), LONG, answer).await;
    assert_eq!(found.outcome, fail(FailReason::Status(302)));
    assert_eq!(detail(&found), "redirects to \"https://a.example/\\xff\"");
}

#[tokio::test]
async fn a_body_is_not_waited_for_where_none_is_expected() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
    assert_eq!(outcome(kind(|_| {}), answer).await, Outcome::Pass);
}

#[tokio::test]
async fn a_body_is_held_against_what_is_expected() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall green";
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nall g\r\n4\r\nreen\r\n0\r\nX-End: 1\r\n\r\n";
    let digest = |text: &[u8]| {
        use sha2::Digest;
        Expect::Sha256(sha2::Sha256::digest(text).into())
    };
    for answer in [answer.as_slice(), chunked] {
        for (expect, wanted) in [
            (Expect::Text("l gre".into()), Outcome::Pass),
            (Expect::Text("red".into()), fail(FailReason::Mismatch)),
            (Expect::Regex("^all (green|well)$".into()), Outcome::Pass),
            (Expect::Regex("^green$".into()), fail(FailReason::Mismatch)),
            (digest(b"all green"), Outcome::Pass),
            (digest(b"all red"), fail(FailReason::Mismatch)),
        ] {
            let (found, _asked) = answered(wanting(expect.clone()), LONG, answer).await;
            assert_eq!(found.outcome, wanted, "{expect:?}");
            let told = if wanted == Outcome::Pass {
                ""
            } else {
                "\"all green\""
            };
            assert_eq!(detail(&found), told, "{expect:?}");
        }
    }
}

#[tokio::test]
async fn a_text_passes_before_the_body_ends() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: ready\n";
    assert_eq!(
        outcome(wanting(Expect::Text("ready".into())), answer).await,
        Outcome::Pass
    );
    let (found, _asked) = answered(wanting(Expect::Text("well".into())), SHORT, answer).await;
    assert_eq!(found.outcome, fail(FailReason::TimedOut(Phase::Body)));
    assert_eq!(detail(&found), "\"data: ready\\n\"");
}

#[tokio::test]
async fn a_body_has_a_longest() {
    for (length, wanted) in [
        (LONGEST, FailReason::Mismatch),
        (LONGEST + 1, FailReason::TooLong),
    ] {
        let kind = wanting(Expect::Text("needle".into()));
        let (found, ()) = met(kind, LONG, async |mut stream| {
            read_to(&mut stream, b"\r\n\r\n").await;
            write(
                &mut stream,
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"),
            )
            .await;
            write(&mut stream, vec![b'x'; length]).await;
        })
        .await;
        assert_eq!(found.outcome, fail(wanted), "{length} bytes");
    }
}

#[tokio::test]
async fn a_body_cut_short_is_a_reset() {
    for answer in [
        "Content-Length: 9\r\n\r\nall",
        "Transfer-Encoding: chunked\r\n\r\n9\r\nall",
    ] {
        let kind = wanting(Expect::Text("green".into()));
        let (found, ()) = met(kind, LONG, async |mut stream| {
            read_to(&mut stream, b"\r\n\r\n").await;
            write(&mut stream, format!("HTTP/1.1 200 OK\r\n{answer}")).await;
        })
        .await;
        assert_eq!(found.outcome, fail(FailReason::Reset), "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_garbled() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/3.9 200 OK\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
    ] {
        let (found, _asked) = answered(kind(|_| {}), LONG, garbage.as_bytes()).await;
        assert_eq!(found.outcome, fail(FailReason::Garbled), "{garbage:?}");
        assert_ne!(detail(&found), "", "{garbage:?}");
    }
    for chunk in [
        "zz\r\n",
        "fffffffffffffffff\r\n",
        "1\r\nabc",
        "0\r\nno trailer\r\n\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
        let body = wanting(Expect::Text("x".into()));
        let told = outcome(body, answer.as_bytes()).await;
        assert_eq!(told, fail(FailReason::Garbled), "{chunk:?}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(9_000));
    assert_eq!(
        outcome(kind(|_| {}), endless.as_bytes()).await,
        fail(FailReason::Garbled)
    );
}

#[tokio::test]
async fn who_closes_before_the_answer_is_told_apart_from_who_says_nothing() {
    for version in [HttpVersion::One, HttpVersion::Two] {
        let kind = || kind(|o| o.version = version);
        let (found, ()) = met(kind(), LONG, async |stream| reset(stream)).await;
        assert_eq!(found.outcome, fail(FailReason::Reset), "{version:?}");
        let (found, ()) = met(kind(), LONG, async |stream| drop(stream)).await;
        assert_eq!(found.outcome, fail(FailReason::Reset), "{version:?}");
        let (found, _stream) = met(kind(), SHORT, async |stream| stream).await;
        assert_eq!(
            found.outcome,
            fail(FailReason::TimedOut(Phase::Answer)),
            "{version:?}"
        );
        assert_eq!(
            met_nobody(kind()).await,
            fail(FailReason::Refused),
            "{version:?}"
        );
    }
}

/// A server of HTTP/2 that gives one request this answer, its body cut in pieces.
async fn two(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Response<()>,
    body: &[&'static [u8]],
) -> Option<Request<()>> {
    let mut connection = server::handshake(stream).await.ok()?;
    let (request, mut respond) = connection.accept().await?.ok()?;
    let mut sending = respond.send_response(answer, body.is_empty()).ok()?;
    for (i, piece) in body.iter().enumerate() {
        sending
            .send_data(Bytes::from_static(piece), i + 1 == body.len())
            .ok()?;
    }
    // Until the client is gone.
    while let Some(Ok(_)) = connection.accept().await {}
    Some(request.map(drop))
}

fn status(code: u16) -> Response<()> {
    Response::builder().status(code).body(()).unwrap()
}

#[tokio::test]
async fn http_2_says_the_same_in_its_own_way() {
    let kind = kind(|o| {
        o.version = HttpVersion::Two;
        o.path = "/health?full=1".into();
        o.host = Some("www.example.org".into());
        o.headers.insert("x-probe".into(), "1".into());
    });
    let (found, request) = met(kind, LONG, async |stream| {
        two(stream, status(200), &[]).await
    })
    .await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    let request = request.unwrap();
    assert_eq!(request.uri(), "http://www.example.org/health?full=1");
    assert_eq!(request.headers()["x-probe"], "1");
    assert!(request.headers().get(CONNECTION).is_none() && request.headers().get(HOST).is_none());
}

#[tokio::test]
async fn http_2_is_judged_the_same() {
    let kind = |body| kind(|o| (o.version, o.body) = (HttpVersion::Two, body));
    let (found, _) = met(kind(None), LONG, async |s| {
        two(s, status(503), &[b"x"]).await
    })
    .await;
    assert_eq!(found.outcome, fail(FailReason::Status(503)));
    for (expect, wanted) in [
        (Expect::Text("l gre".into()), Outcome::Pass),
        (Expect::Regex("^all green$".into()), Outcome::Pass),
        (Expect::Text("red".into()), fail(FailReason::Mismatch)),
    ] {
        let pieces: &[&[u8]] = &[b"all", b" gr", b"een"];
        let serve = async |s| two(s, status(200), pieces).await;
        let (found, _) = met(kind(Some(expect.clone())), LONG, serve).await;
        assert_eq!(found.outcome, wanted, "{expect:?}");
    }
    // More than the window at the beginning (RFC 9113, section 6.9.2).
    static LARGE: [u8; LONGEST + 1] = [b'x'; LONGEST + 1];
    for (length, wanted) in [
        (LONGEST, FailReason::Mismatch),
        (LONGEST + 1, FailReason::TooLong),
    ] {
        let serve = async |s| two(s, status(200), &[&LARGE[..length]]).await;
        let (found, _) = met(kind(Some(Expect::Text("needle".into()))), LONG, serve).await;
        assert_eq!(found.outcome, fail(wanted), "{length}");
    }
}

#[tokio::test]
async fn who_does_not_speak_http_2_is_garbled() {
    let kind = kind(|o| o.version = HttpVersion::Two);
    let (found, _stream) = met(kind, LONG, async |mut stream| {
        write(
            &mut stream,
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        )
        .await;
        stream
    })
    .await;
    assert_eq!(found.outcome, fail(FailReason::Garbled));
    assert_eq!(
        detail(&found),
        "connection error detected: frame with invalid size"
    );
}

#[tokio::test]
async fn who_gives_up_by_http_2_is_told_in_its_words() {
    let kind = kind(|o| o.version = HttpVersion::Two);
    let (found, ()) = met(kind, LONG, async |stream| {
        let mut connection = server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        respond.send_reset(h2::Reason::HTTP_1_1_REQUIRED);
        while let Some(Ok(_)) = connection.accept().await {}
    })
    .await;
    assert_eq!(found.outcome, fail(FailReason::Reset));
    assert_eq!(
        detail(&found),
        "stream error received: endpoint requires HTTP/1.1"
    );
}

fn https(version: HttpVersion, tls: TlsOptions) -> CheckKind {
    kind(|o| (o.version, o.tls) = (version, Some(tls)))
}

#[tokio::test]
async fn https_asks_inside_tls() {
    let (found, asked) = met(https(HttpVersion::One, trusting()), LONG, async |stream| {
        let tls = Server {
            alpn: &[b"h2", b"http/1.1"],
            ..TLS
        };
        let mut stream = tls.accept(stream).await.unwrap();
        let asked = read_to(&mut stream, b"\r\n\r\n").await;
        write(&mut stream, "HTTP/1.1 200 OK\r\n\r\n").await;
        (asked, stream)
    })
    .await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    assert!(asked.0.starts_with("GET / HTTP/1.1\r\n"));
    assert_eq!(found.certificate_ends, Some(4_733_510_400), "2120-01-01");
}

#[tokio::test]
async fn http_2_is_chosen_in_tls() {
    let kind = || https(HttpVersion::Two, trusting());
    let (found, request) = met(kind(), LONG, async |stream| {
        let tls = Server {
            alpn: &[b"h2"],
            ..TLS
        };
        two(tls.accept(stream).await.unwrap(), status(200), &[]).await
    })
    .await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    assert_eq!(request.unwrap().uri().scheme(), Some(&Scheme::HTTPS));

    let (found, _end) = met(kind(), LONG, async |stream| TLS.accept(stream).await).await;
    assert_eq!(found.outcome, fail(FailReason::Garbled));
    assert!(
        detail(&found).contains("does not choose HTTP/2"),
        "{found:?}"
    );

    // RFC 7301, section 3.2: no_application_protocol.
    let (found, _end) = met(kind(), LONG, async |stream| {
        let tls = Server {
            alpn: &[b"http/1.1"],
            ..TLS
        };
        tls.accept(stream).await.map(drop)
    })
    .await;
    assert_eq!(found.outcome, fail(FailReason::TlsAlert(120)));
}

#[tokio::test]
async fn who_wants_a_certificate_refuses_after_the_handshake() {
    for (version, wanted) in [
        (HttpVersion::One, FailReason::TlsAlert(116)),
        // Its number is lost on the way through the crate.
        (HttpVersion::Two, FailReason::TlsFailed),
    ] {
        let (found, _end) = met(https(version, trusting()), LONG, async |stream| {
            let tls = Server {
                alpn: &[b"h2", b"http/1.1"],
                wants_client: true,
                ..TLS
            };
            tls.accept(stream).await.map(drop)
        })
        .await;
        assert_eq!(found.outcome, fail(wanted), "{version:?}: {found:?}");
    }
}

#[tokio::test]
async fn a_driver_outlives_its_connection() {
    let mut driver: Driver<std::future::Ready<Result<(), &str>>> =
        Driver::new(std::future::ready(Ok(())));
    let mut turns = 0;
    let late = std::future::poll_fn(|cx| {
        turns += 1;
        cx.waker().wake_by_ref();
        match turns {
            3 => std::task::Poll::Ready(Ok(7)),
            _ => std::task::Poll::Pending,
        }
    });
    assert_eq!(driver.with(late).await, Ok(7));
    assert_eq!(driver.with(async { Ok(8) }).await, Ok(8));

    let mut broken = Driver::new(std::future::ready(Err("broken")));
    assert_eq!(broken.with(pending::<Result<(), _>>()).await, Err("broken"));
}

/// The connection goes with the probe: nothing is left behind to hold it.
#[tokio::test]
async fn a_probe_that_is_dropped_closes_its_connection() {
    for version in [HttpVersion::One, HttpVersion::Two] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let check = prepared(kind(|o| o.version = version), LONG);
        let serving = async {
            let (mut stream, _from): (TcpStream, _) = listener.accept().await.unwrap();
            read_to(&mut stream, b"\r\n\r\n").await;
            stream
        };
        let mut stream = {
            let mut probe = Box::pin(check.probe(at));
            let mut serving = Box::pin(serving);
            select! {
                stream = &mut serving => stream,
                found = &mut probe => panic!("{found:?}"),
            }
        };
        // Ends, one way or the other.
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    }
}
