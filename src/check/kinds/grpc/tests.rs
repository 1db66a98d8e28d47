use h2::server;
use hyper::Response;
use proptest::prelude::*;

use crate::{
    check::testing::{
        LONG, SHORT, TLS, Tls as Server, fail, met, met_nobody, reset, trusting, write,
    },
    model::{CheckKind, Found, Outcome},
};

use super::*;

fn kind() -> CheckKind {
    CheckKind::Grpc(GrpcCheck::default())
}

fn head(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.insert(*name, HeaderValue::from_static(value));
    }
    map
}

/// What a server answers: head, body, trailers; a head alone where the others are empty.
#[derive(Default)]
struct Answer {
    status: StatusCode,
    head: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// An answer with this message.
fn saying(message: &[u8]) -> Answer {
    Answer {
        body: framed(message).unwrap(),
        trailers: Some(head(&[("grpc-status", "0")])),
        ..Answer::default()
    }
}

/// Gives one request an answer; what was asked.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Answer,
) -> Option<(Request<()>, Vec<u8>)> {
    let mut connection = server::handshake(stream).await.ok()?;
    let (request, mut respond) = connection.accept().await?.ok()?;
    let (head, mut incoming) = request.into_parts();
    // The connection moves while the question is read.
    let mut asked = Vec::new();
    loop {
        tokio::select! {
            biased;
            piece = incoming.data() => match piece {
                Some(piece) => asked.extend_from_slice(&piece.ok()?),
                None => break,
            },
            next = connection.accept() => assert!(next.is_none(), "one request"),
        }
    }
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.head;
    let alone = answer.body.is_empty() && answer.trailers.is_none();
    let mut sending = respond.send_response(response, alone).ok()?;
    if !alone {
        let last = answer.trailers.is_none();
        sending.send_data(answer.body.into(), last).ok()?;
        if let Some(trailers) = answer.trailers {
            sending.send_trailers(trailers).ok()?;
        }
    }
    while let Some(Ok(_)) = connection.accept().await {}
    Some((Request::from_parts(head, ()), asked))
}

async fn answered(answer: Answer) -> Found {
    met(kind(), LONG, async |stream| serve(stream, answer).await)
        .await
        .0
}

fn detail(found: &Found) -> &str {
    found.detail.as_deref().unwrap_or("")
}

#[tokio::test]
async fn a_server_that_serves_passes() {
    let kind = CheckKind::Grpc(GrpcCheck {
        service: "shop.Cart".into(),
        host: Some("cart.example.org".into()),
        tls: None,
    });
    let serving = async |stream| serve(stream, saying(&[8, 1])).await;
    let (found, asked) = met(kind, LONG, serving).await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    let (request, message) = asked.unwrap();
    assert_eq!(request.method(), Method::POST);
    assert_eq!(
        request.uri(),
        "http://cart.example.org/grpc.health.v1.Health/Check"
    );
    assert_eq!(request.headers()[TE], "trailers");
    assert_eq!(request.headers()[CONTENT_TYPE], "application/grpc");
    assert_eq!(message, b"\0\0\0\0\x0b\x0a\x09shop.Cart");
}

#[tokio::test]
async fn the_whole_server_is_asked_about_with_an_empty_message() {
    let serving = async |stream| serve(stream, saying(&[8, 1])).await;
    let (found, asked) = met(kind(), LONG, serving).await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    assert_eq!(asked.unwrap().1, [0; 5]);
}

#[tokio::test]
async fn a_server_that_does_not_serve_says_how() {
    for (message, name) in [
        (&[8, 2][..], "NOT_SERVING"),
        (&[], "UNKNOWN"),
        (&[8, 0], "UNKNOWN"),
        (&[8, 3], "SERVICE_UNKNOWN"),
        (&[8, 9], "status 9, of which nothing is known here"),
    ] {
        let found = answered(saying(message)).await;
        assert_eq!(found.outcome, fail(FailReason::NotServing), "{name}");
        assert_eq!(detail(&found), name);
    }
}

#[tokio::test]
async fn a_status_of_grpc_is_told_wherever_it_stands() {
    let unimplemented = &[
        ("grpc-status", "12"),
        ("grpc-message", "unknown service%20grpc.health"),
    ];
    let alone = Answer {
        head: head(unimplemented),
        ..Answer::default()
    };
    let trailing = Answer {
        trailers: Some(head(unimplemented)),
        ..Answer::default()
    };
    for answer in [alone, trailing] {
        let found = answered(answer).await;
        assert_eq!(found.outcome, fail(FailReason::Grpc(12)), "{found:?}");
        assert_eq!(detail(&found), "\"unknown service grpc.health\"");
    }
    let odd = Answer {
        head: head(&[("grpc-status", "many")]),
        ..Answer::default()
    };
    assert_eq!(answered(odd).await.outcome, fail(FailReason::Grpc(2)));
}

#[tokio::test]
async fn what_is_no_answer_of_grpc_is_garbled() {
    let garbled = fail(FailReason::Garbled);
    let page = Answer {
        body: b"<html>".to_vec(),
        ..Answer::default()
    };
    assert_eq!(answered(page).await.outcome, garbled, "no grpc-status");
    let empty = Answer {
        head: head(&[("grpc-status", "0")]),
        ..Answer::default()
    };
    assert_eq!(answered(empty).await.outcome, garbled, "no message");
    for body in [
        &b"\0\0\0\0\x03\x08\x01"[..],
        b"\x01\0\0\0\x02\x08\x01",
        b"\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\x01\x08",
    ] {
        let answer = Answer {
            body: body.to_vec(),
            ..saying(&[])
        };
        assert_eq!(answered(answer).await.outcome, garbled, "{body:?}");
    }
    let long = saying(&vec![0; LONGEST]);
    assert_eq!(answered(long).await.outcome, fail(FailReason::TooLong));
    let (found, _stream) = met(kind(), LONG, async |mut stream| {
        write(&mut stream, "HTTP/1.1 400 Bad Request\r\n\r\n").await;
        stream
    })
    .await;
    assert_eq!(found.outcome, garbled);
}

#[tokio::test]
async fn a_status_of_http_comes_first() {
    let answer = Answer {
        status: StatusCode::BAD_GATEWAY,
        ..Answer::default()
    };
    let found = answered(answer).await;
    assert_eq!(found.outcome, fail(FailReason::Status(502)));
    assert_eq!(detail(&found), "Bad Gateway");
}

#[tokio::test]
async fn who_says_nothing_or_closes_is_told_apart() {
    let (found, ()) = met(kind(), LONG, async |stream| reset(stream)).await;
    assert_eq!(found.outcome, fail(FailReason::Reset));
    let (found, _stream) = met(kind(), SHORT, async |stream| stream).await;
    assert_eq!(found.outcome, fail(FailReason::TimedOut(Phase::Answer)));
    assert_eq!(met_nobody(kind()).await, fail(FailReason::Refused));
    // The head comes, and nothing after it.
    let (found, ()) = met(kind(), SHORT, async |stream| {
        let mut connection = server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _open = respond.send_response(Response::new(()), false).unwrap();
        while let Some(Ok(_)) = connection.accept().await {}
    })
    .await;
    assert_eq!(found.outcome, fail(FailReason::TimedOut(Phase::Body)));
}

#[tokio::test]
async fn it_is_asked_inside_tls() {
    let kind = || {
        CheckKind::Grpc(GrpcCheck {
            tls: Some(trusting()),
            ..GrpcCheck::default()
        })
    };
    let (found, asked) = met(kind(), LONG, async |stream| {
        let alpn: &[&[u8]] = &[b"h2"];
        let stream = Server { alpn, ..TLS }.accept(stream).await.unwrap();
        serve(stream, saying(&[8, 1])).await
    })
    .await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    assert_eq!(asked.unwrap().0.uri().scheme_str(), Some("https"));
    assert!(found.certificate_ends.is_some());
    let (found, _end) = met(kind(), LONG, async |stream| TLS.accept(stream).await).await;
    assert_eq!(found.outcome, fail(FailReason::Garbled));
}

#[test]
fn unknown_fields_are_passed_over() {
    for message in [
        &[8, 1][..],
        // Twice: the last one counts.
        &[8, 2, 8, 1],
        // Field 2 of each wire type, then field 1.
        &[0x10, 0x96, 0x01, 8, 1],
        &[0x11, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1],
        &[0x12, 2, 8, 2, 8, 1],
        &[0x13, 8, 2, 0x1b, 0x1c, 0x14, 8, 1],
        &[0x15, 1, 2, 3, 4, 8, 1],
        // Field 1 of another type is unknown, too.
        &[8, 1, 0x0a, 1, 2],
    ] {
        assert_eq!(serving_status(message), Some(SERVING), "{message:?}");
    }
    for message in [
        &[8][..],
        &[0x12, 2, 8],
        &[0x13, 8, 1],
        &[0x14],
        &[0x16],
        &[0x00, 1],
        &[0x80; 11],
    ] {
        assert_eq!(serving_status(message), None, "{message:?}");
    }
}

#[test]
fn a_message_is_percent_encoded() {
    for (sent, plain) in [
        ("a%20b", "a b"),
        ("100%", "100%"),
        ("%4", "%4"),
        ("%zz%41", "%zzA"),
        ("%+1", "%+1"),
    ] {
        assert_eq!(unescaped(sent.as_bytes()), plain.as_bytes(), "{sent}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _message = unframed(&bytes).map(serving_status);
        let _status = serving_status(&bytes);
        drop(unescaped(&bytes));
    }

    #[test]
    fn what_is_written_is_read(service in "\\PC{0,300}") {
        let written = framed(&request(&service)).unwrap();
        let mut rest = unframed(&written).unwrap();
        if !service.is_empty() {
            prop_assert_eq!(take_varint(&mut rest), Some(0x0a));
            let length = take_varint(&mut rest).unwrap();
            prop_assert_eq!(usize::try_from(length).unwrap(), rest.len());
        }
        prop_assert_eq!(rest, service.as_bytes());
    }
}
