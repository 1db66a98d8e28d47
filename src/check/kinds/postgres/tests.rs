use std::{
    io::{Read, Write},
    net::TcpListener,
};

use proptest::prelude::*;

use super::{super::testing, *};
use crate::model::{CheckKind, Outcome, TlsOptions, Verify};
use testing::{credentials, failed};

const NOBODYS_STARTUP: &[u8] =
    b"\0\0\0\x35\0\x03\0\0user\0understudy\0application_name\0understudy\0\0";
const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
/// As PostgreSQL 15 says it.
const SASL: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
const READY: &[u8] =
    b"S\0\0\0\x19client_encoding\0UTF8\0K\0\0\0\x0c\0\0q$\x1a\x96\x84\xbaZ\0\0\0\x05I";
const TERMINATE: &[u8] = b"X\0\0\0\x04";

fn error(code: &str, text: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0Fpostinit.c\0L948\0RInitPostgres\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    [b"E", &length[..], fields.as_bytes()].concat()
}

async fn greeted(says: &[u8]) -> (Outcome, Option<String>, Vec<u8>) {
    let kind = CheckKind::Postgres(LoginCheck::default());
    testing::talk(&[(NOBODYS_STARTUP, says)], kind).await
}

#[tokio::test]
async fn whoever_is_asked_for_a_password_has_met_a_server_that_lives() {
    for says in [SASL, b"R\0\0\0\x08\0\0\0\x03", b"R\0\0\0\x0c\0\0\0\x05salt"] {
        assert_eq!(greeted(says).await, (Outcome::Pass, None, Vec::new()));
    }
    let stranger = error("28000", "no pg_hba.conf entry for host \"192.0.2.2\"");
    assert_eq!(greeted(&stranger).await.0, Outcome::Pass);
    let no_role = [OK, &error("28000", "role \"understudy\" does not exist")].concat();
    assert_eq!(greeted(&no_role).await.0, Outcome::Pass);
    let no_database = [
        OK,
        &error("3D000", "database \"understudy\" does not exist"),
    ]
    .concat();
    assert_eq!(greeted(&no_database).await.0, Outcome::Pass);
    let in_at_once = [OK, READY].concat();
    assert_eq!(
        greeted(&in_at_once).await,
        (Outcome::Pass, None, TERMINATE.to_vec()),
        "a session is ended"
    );
}

#[tokio::test]
async fn a_server_that_does_not_serve_says_why() {
    for (says, expected, told) in [
        (
            error("57P03", "the database system is starting up"),
            FailReason::Postgres(SqlState(*b"57P03")),
            "\"the database system is starting up\"",
        ),
        (
            error("53300", "sorry, too many clients already"),
            FailReason::Postgres(SqlState(*b"53300")),
            "\"sorry, too many clients already\"",
        ),
        (
            // The postmaster's own, as of version 2.
            b"Ecould not fork new process for connection: Cannot allocate memory\n\0".to_vec(),
            FailReason::Postgres(SqlState(*b"53000")),
            "\"could not fork new process for connection: Cannot allocate memory\"",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            FailReason::Garbled,
            r#""HTTP/1.1 400 Bad Request\r\n\r\n""#,
        ),
    ] {
        let (outcome, detail, _) = greeted(&says).await;
        assert_eq!((outcome, detail.as_deref()), (failed(expected), Some(told)));
    }
}

#[tokio::test]
async fn it_logs_in_and_asks_nothing() {
    let file = credentials("md5u:geheim");
    let options = LoginCheck {
        credentials: Some(file.path().to_owned()),
        database: Some("app".to_owned()),
        tls: None,
    };
    let startup =
        b"\0\0\0\x3c\0\x03\0\0user\0md5u\0application_name\0understudy\0database\0app\0\0";
    let hash = md5_hash(b"md5u", b"geheim", *b"salt");
    let password = [b"p\0\0\0\x28", hash.as_bytes(), b"\0"].concat();
    let in_session = [OK, READY].concat();
    let script: [(&[u8], &[u8]); 3] = [
        (startup, b"R\0\0\0\x0c\0\0\0\x05salt"),
        (&password, &in_session),
        (b"Q\0\0\0\x05\0", b"I\0\0\0\x04Z\0\0\0\x05I"),
    ];
    let told = testing::talk(&script, CheckKind::Postgres(options.clone())).await;
    assert_eq!(told, (Outcome::Pass, None, TERMINATE.to_vec()));

    let refused = error("28P01", "password authentication failed for user \"md5u\"");
    let script: [(&[u8], &[u8]); 2] = [
        (startup, b"R\0\0\0\x0c\0\0\0\x05salt"),
        (&password, &refused),
    ];
    let told = testing::talk(&script, CheckKind::Postgres(options.clone())).await;
    assert_eq!(told.0, failed(FailReason::LoginRefused));

    let script: [(&[u8], &[u8]); 1] = [(startup, b"R\0\0\0\x08\0\0\0\x03")];
    let told = testing::talk(&script, CheckKind::Postgres(options.clone())).await;
    assert_eq!(told.0, failed(FailReason::LoginMethod));
    assert_eq!(told.2, b"", "no password goes over the wire in clear");

    let script: [(&[u8], &[u8]); 1] = [(startup, b"R\0\0\0\x08\0\0\0\x07")];
    let told = testing::talk(&script, CheckKind::Postgres(options)).await;
    assert_eq!(told.0, failed(FailReason::LoginMethod));
}

/// SCRAM proves both sides (RFC 5802, section 3): who does not know the password cannot say that it was
/// the right one.
#[tokio::test]
async fn a_server_that_does_not_know_the_password_is_not_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = [0; 200];
        assert!(stream.read(&mut heard).unwrap() > 0);
        stream.write_all(SASL).unwrap();
        let length = stream.read(&mut heard).unwrap();
        let first = String::from_utf8_lossy(&heard[..length]).into_owned();
        let nonce = first.split("r=").nth(1).unwrap().to_owned();
        let sasl = |kind: u8, text: String| {
            let length = u32::try_from(text.len() + 8).unwrap().to_be_bytes();
            [b"R", &length[..], &[0, 0, 0, kind], text.as_bytes()].concat()
        };
        let salt = sasl(11, format!("r={nonce}more,s=c2FsdA==,i=4096"));
        stream.write_all(&salt).unwrap();
        assert!(stream.read(&mut heard).unwrap() > 0);
        let proof = sasl(12, "v=bm8gcHJvb2Y=".to_owned());
        stream.write_all(&[&proof, OK, READY].concat()).unwrap();
    });
    let file = credentials("scr:geheim");
    let options = LoginCheck {
        credentials: Some(file.path().to_owned()),
        ..LoginCheck::default()
    };
    let found = testing::found(at, CheckKind::Postgres(options)).await;
    assert_eq!(found.outcome, failed(FailReason::Garbled));
    let told = "the server does not know the password: SCRAM verification error";
    assert_eq!(found.detail.as_deref(), Some(told));
    serving.join().unwrap();
}

#[tokio::test]
async fn tls_is_asked_for_first() {
    let kind = || {
        CheckKind::Postgres(LoginCheck {
            tls: Some(TlsOptions {
                verify: Verify::Off,
                ..TlsOptions::default()
            }),
            ..LoginCheck::default()
        })
    };
    let (outcome, ..) = testing::talk(&[(SSL_REQUEST, b"N")], kind()).await;
    assert_eq!(outcome, failed(FailReason::NoTls));
    let full = error("53300", "sorry, too many clients already");
    let (outcome, ..) = testing::talk(&[(SSL_REQUEST, &full)], kind()).await;
    assert_eq!(outcome, failed(FailReason::Postgres(SqlState(*b"53300"))));
    // What somebody slipped in before TLS.
    let injected = [b"S", OK, READY].concat();
    let (outcome, ..) = testing::talk(&[(SSL_REQUEST, &injected)], kind()).await;
    assert_eq!(outcome, failed(FailReason::Garbled));
}

#[test]
fn a_password_is_in_no_log() {
    let file = credentials("scr:geheim");
    let kind = Postgres::prepare(&LoginCheck {
        credentials: Some(file.path().to_owned()),
        ..LoginCheck::default()
    });
    let shown = format!("{:?}", kind.unwrap());
    assert!(
        shown.contains("scr") && !shown.contains("geheim"),
        "{shown}"
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), tag in "[ERSNKZIA]", small: u8) {
        drop(offer(&mut BytesMut::from(&bytes[..])));
        let length = u32::from(small % 90).to_be_bytes();
        let framed = [tag.as_bytes(), &length[..], &bytes[..]].concat();
        let mut seen = BytesMut::from(&framed[..]);
        while let Ok(Some(said)) = message(&mut seen) {
            match said {
                Said::Message(Message::ErrorResponse(body)) => drop(fault(&body)),
                Said::Message(Message::AuthenticationSasl(body)) => {
                    drop(body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256)));
                }
                _ => {}
            }
        }
    }
}
