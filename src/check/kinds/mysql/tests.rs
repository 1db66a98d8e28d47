use proptest::prelude::*;
use tokio_util::bytes::BytesMut;

use super::{super::testing, wire::*, *};
use crate::model::{CheckKind, Outcome, TlsOptions, Verify};
use testing::{credentials, failed};

/// `MariaDB` 10.11, as it greets.
const GREETING: &[u8] = b"d\0\0\0\n5.5.5-10.11.19-MariaDB-0+deb12u1\0G\0\0\0]0w+mc,K\0\xfe\xff\x08\
    \x02\0\xff\x81\x15\0\0\0\0\0\0\x1d\0\0\0x;Y1)xB~tL^u\0mysql_native_password\0";
const SALT: &[u8] = b"]0w+mc,Kx;Y1)xB~tL^u";
/// As it turns down somebody whom it does not know.
const DENIED: &[u8] =
    b"M\0\0\x02\xff\x15\x04#28000Access denied for user 'understudy'@'localhost' \
    (using password: NO)";
const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
const COM_QUIT: &[u8] = &[1, 0, 0, 0, 1];

fn ok(sequence: u8) -> Vec<u8> {
    framed(sequence, OK)
}

fn err(sequence: u8, code: u16, text: &str) -> Vec<u8> {
    let body = [&[0xff], &code.to_le_bytes()[..], text.as_bytes()].concat();
    framed(sequence, &body)
}

/// A greeting of this method, with TLS or without.
fn greeting(method: &[u8], tls: bool) -> Vec<u8> {
    let [a, b] = if tls { [0xff, 0xff] } else { [0xff, 0xf7] };
    let body = [
        b"\x0a8.4.0\0\x07\0\0\0".as_slice(),
        &SALT[..8],
        &[0, a, b, 33, 2, 0, 0xff, 0xdf, 21],
        &[0; 10],
        &SALT[8..],
        b"\0",
        method,
        b"\0",
    ];
    framed(0, &body.concat())
}

fn nobody(method: &[u8]) -> Vec<u8> {
    framed(1, &response(false, "understudy", b"", None, method))
}

async fn greeted(script: &[(&[u8], &[u8])]) -> (Outcome, Option<String>, Vec<u8>) {
    testing::talk(script, CheckKind::Mysql(LoginCheck::default())).await
}

async fn logged_in(script: &[(&[u8], &[u8])]) -> (Outcome, Option<String>, Vec<u8>) {
    let file = credentials("nat:geheim");
    let options = LoginCheck {
        credentials: Some(file.path().to_owned()),
        ..LoginCheck::default()
    };
    testing::talk(script, CheckKind::Mysql(options)).await
}

#[tokio::test]
async fn without_credentials_a_login_is_gone_through_to_its_end() {
    let response = nobody(NATIVE);
    let script: [(&[u8], &[u8]); 2] = [(b"", GREETING), (&response, DENIED)];
    assert_eq!(greeted(&script).await, (Outcome::Pass, None, Vec::new()));
    let script: [(&[u8], &[u8]); 2] = [(b"", GREETING), (&response, &ok(2))];
    assert_eq!(
        greeted(&script).await,
        (Outcome::Pass, None, COM_QUIT.to_vec())
    );
    // A method that is known here, and one that is not.
    for (method, answer) in [
        (&b"sha256_password"[..], &[0][..]),
        (b"client_ed25519", b""),
    ] {
        let switch = framed(2, &[b"\xfe", method, b"\0", SALT, b"\0"].concat());
        let answer = framed(3, answer);
        let denied = err(4, 1045, "#28000Access denied");
        let script: [(&[u8], &[u8]); 3] =
            [(b"", GREETING), (&response, &switch), (&answer, &denied)];
        assert_eq!(greeted(&script).await, (Outcome::Pass, None, Vec::new()));
    }
}

#[tokio::test]
async fn a_server_that_does_not_serve_says_why() {
    let response = nobody(NATIVE);
    let full = err(0, 1040, "Too many connections");
    let told = greeted(&[(b"", &full)]).await;
    assert_eq!(told.0, failed(FailReason::Mysql(1040)));
    assert_eq!(told.1.as_deref(), Some("\"Too many connections\""));
    let shutdown = err(2, 1053, "#08S01Server shutdown in progress");
    let script: [(&[u8], &[u8]); 2] = [(b"", GREETING), (&response, &shutdown)];
    let told = greeted(&script).await;
    assert_eq!(told.0, failed(FailReason::Mysql(1053)));
    assert_eq!(told.1.as_deref(), Some("\"Server shutdown in progress\""));
    for other in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"\x03\0\0\0abc"] {
        let told = greeted(&[(b"", other)]).await;
        assert_eq!(told.0, failed(FailReason::Garbled));
    }
}

#[tokio::test]
async fn it_logs_in_and_pings() {
    let proof = native(b"geheim", SALT);
    let response = framed(1, &response(false, "nat", &proof, None, NATIVE));
    let ping = [1, 0, 0, 0, 0x0e];
    let script: [(&[u8], &[u8]); 3] = [(b"", GREETING), (&response, &ok(2)), (&ping, &ok(1))];
    assert_eq!(
        logged_in(&script).await,
        (Outcome::Pass, None, COM_QUIT.to_vec())
    );
    let script: [(&[u8], &[u8]); 2] = [(b"", GREETING), (&response, DENIED)];
    assert_eq!(logged_in(&script).await.0, failed(FailReason::LoginRefused));
    let sick = err(1, 1203, "#42000too many user connections");
    let script: [(&[u8], &[u8]); 3] = [(b"", GREETING), (&response, &ok(2)), (&ping, &sick)];
    assert_eq!(logged_in(&script).await.0, failed(FailReason::Mysql(1203)));
}

#[tokio::test]
async fn caching_sha2_is_asked_for_the_password_only_under_tls() {
    let hello = greeting(CACHING, false);
    let proof = caching(b"geheim", SALT);
    let response = framed(1, &response(false, "nat", &proof, None, CACHING));
    let suffices = [framed(2, &[1, 3]), ok(3)].concat();
    let ping = [1, 0, 0, 0, 0x0e];
    let script: [(&[u8], &[u8]); 3] = [(b"", &hello), (&response, &suffices), (&ping, &ok(1))];
    assert_eq!(logged_in(&script).await.0, Outcome::Pass);
    let please = framed(2, &[1, 4]);
    let script: [(&[u8], &[u8]); 2] = [(b"", &hello), (&response, &please)];
    let told = logged_in(&script).await;
    assert_eq!(told.0, failed(FailReason::LoginMethod));
    assert_eq!(told.2, b"", "no password goes over the wire in clear");
    for method in [CLEAR, SHA256, b"client_ed25519"] {
        let switch = framed(2, &[b"\xfe", method, b"\0", SALT, b"\0"].concat());
        let script: [(&[u8], &[u8]); 2] = [(b"", &hello), (&response, &switch)];
        let told = logged_in(&script).await;
        assert_eq!(
            (told.0, &*told.2),
            (failed(FailReason::LoginMethod), &b""[..])
        );
    }
    let script: [(&[u8], &[u8]); 2] = [(b"", &hello), (&response, &framed(2, &[0xfe]))];
    assert_eq!(
        logged_in(&script).await.0,
        failed(FailReason::LoginMethod),
        "of before 4.1"
    );
}

#[tokio::test]
async fn a_switch_is_answered_with_the_new_salt() {
    let hello = greeting(CACHING, false);
    let first = caching(b"geheim", SALT);
    let response = framed(1, &response(false, "nat", &first, None, CACHING));
    let salt = b"abcdefghijklmnopqrst";
    let switch = framed(2, &[b"\xfe", NATIVE, b"\0", salt, b"\0"].concat());
    let second = framed(3, &native(b"geheim", salt));
    let ping = [1, 0, 0, 0, 0x0e];
    let script: [(&[u8], &[u8]); 4] = [
        (b"", &hello),
        (&response, &switch),
        (&second, &ok(4)),
        (&ping, &ok(1)),
    ];
    assert_eq!(logged_in(&script).await.0, Outcome::Pass);
}

#[tokio::test]
async fn a_server_without_tls_is_told_from_one_with() {
    let kind = CheckKind::Mysql(LoginCheck {
        tls: Some(TlsOptions {
            verify: Verify::Off,
            ..TlsOptions::default()
        }),
        ..LoginCheck::default()
    });
    let told = testing::talk(&[(b"", &greeting(NATIVE, false))], kind.clone()).await;
    assert_eq!(told.0, failed(FailReason::NoTls));
    let request = framed(1, &ssl_request(false));
    let hello = greeting(NATIVE, true);
    let script: [(&[u8], &[u8]); 2] = [(b"", &hello), (&request, b"what is TLS, anyway?")];
    let told = testing::talk(&script, kind).await;
    assert_eq!(told.0, failed(FailReason::TlsFailed));
}

#[test]
fn a_greeting_is_read_as_it_came() {
    let mut seen = BytesMut::from(GREETING);
    let first = packet(&mut seen).unwrap().unwrap();
    assert_eq!(first.sequence, 0);
    let expected = Greeting {
        capabilities: 0x81ff_fffe,
        salt: SALT.to_vec(),
        method: NATIVE.to_vec(),
    };
    assert_eq!(opening(&first.body), Some(Opening::Greeting(expected)));
    assert!(seen.is_empty());
}

/// The formulas of the manual, written down once more in another language.
#[test]
fn proofs_are_those_of_the_manual() {
    let salt: Vec<u8> = (1..=20).collect();
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(
        hex(native(b"geheim", &salt)),
        "1dbf8316f278106244cf82d3e90677edc9a371e6"
    );
    assert_eq!(
        hex(caching(b"geheim", &salt)),
        "6473c806df99ceed81b3781c80e3e5434b38afc2004e452cb6ce5b1458a60404"
    );
    assert_eq!((native(b"", &salt), caching(b"", &salt)), (vec![], vec![]));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), first in 0_usize..5) {
        let first = [0, 1, 10, 0xfe, 0xff][first];
        let body = [&[first], &bytes[..]].concat();
        drop(opening(&body));
        drop(reply(&body));
        let mut seen = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = packet(&mut seen) {}
    }

    #[test]
    fn what_was_framed_is_read_again(body in proptest::collection::vec(any::<u8>(), 0..300), sequence: u8, rest: u8) {
        let mut seen = BytesMut::from(&[framed(sequence, &body), vec![rest]].concat()[..]);
        let read = packet(&mut seen).unwrap().unwrap();
        prop_assert_eq!((read.sequence, &read.body[..]), (sequence, &body[..]));
        prop_assert_eq!(&seen[..], &[rest][..]);
    }
}
