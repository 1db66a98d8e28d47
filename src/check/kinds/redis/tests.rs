use proptest::prelude::*;

use super::{super::testing, *};
use crate::model::{CheckKind, Outcome};
use testing::{credentials, failed};

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

async fn greeted(says: &[u8]) -> (Outcome, Option<String>) {
    let kind = CheckKind::Redis(LoginCheck::default());
    let (outcome, detail, _) = testing::talk(&[(PING, says)], kind).await;
    (outcome, detail)
}

#[tokio::test]
async fn a_server_that_lives_passes_and_one_that_does_not_serve_says_why() {
    let redis = failed(FailReason::Redis);
    let garbled = failed(FailReason::Garbled);
    for (says, expected, told) in [
        (&b"+PONG\r\n"[..], Outcome::Pass, None),
        (b"-NOAUTH Authentication required.\r\n", Outcome::Pass, None),
        (
            b"-LOADING Redis is loading the dataset in memory\r\n",
            redis,
            Some("\"LOADING Redis is loading the dataset in memory\""),
        ),
        (
            b"-MASTERDOWN Link with MASTER is down\r\n",
            redis,
            Some("\"MASTERDOWN Link with MASTER is down\""),
        ),
        (b"+OK\r\n", garbled, Some("\"OK\"")),
        (
            b"HTTP/1.1 400\r\n\r\n",
            garbled,
            Some(r#""HTTP/1.1 400\r\n\r\n""#),
        ),
    ] {
        let (outcome, detail) = greeted(says).await;
        assert_eq!(
            (outcome, detail.as_deref()),
            (expected, told),
            "{}",
            says.escape_ascii()
        );
    }
    let endless = [b"+".to_vec(), vec![b'x'; LONGEST + 1]].concat();
    assert_eq!(greeted(&endless).await.0, failed(FailReason::TooLong));
}

#[tokio::test]
async fn it_logs_in_by_user_or_by_password_alone() {
    for (line, auth) in [
        (
            "joe:a:b",
            &b"*3\r\n$4\r\nAUTH\r\n$3\r\njoe\r\n$3\r\na:b\r\n"[..],
        ),
        (":pw", b"*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n"),
    ] {
        let file = credentials(line);
        let options = LoginCheck {
            credentials: Some(file.path().to_owned()),
            database: Some("3".to_owned()),
            tls: None,
        };
        let select = b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n";
        let script: [(&[u8], &[u8]); 3] = [
            (auth, b"+OK\r\n"),
            (select, b"+OK\r\n"),
            (PING, b"+PONG\r\n"),
        ];
        let told = testing::talk(&script, CheckKind::Redis(options.clone())).await;
        assert_eq!(told.0, Outcome::Pass);
        for (says, expected) in [
            (
                &b"-WRONGPASS invalid username-password pair\r\n"[..],
                FailReason::LoginRefused,
            ),
            (b"-ERR invalid password\r\n", FailReason::LoginRefused),
            (b"-ERR max number of clients reached\r\n", FailReason::Redis),
            (b"-NOAUTH\r\n", FailReason::Redis),
        ] {
            let told = testing::talk(&[(auth, says)], CheckKind::Redis(options.clone())).await;
            assert_eq!(told.0, failed(expected));
        }
        let script: [(&[u8], &[u8]); 2] = [
            (auth, b"+OK\r\n"),
            (select, b"-ERR DB index is out of range\r\n"),
        ];
        let told = testing::talk(&script, CheckKind::Redis(options)).await;
        assert_eq!(told.0, failed(FailReason::Redis));
    }
}

/// As Redis does when it has no room, before anything was asked.
#[tokio::test]
async fn a_last_word_counts_although_the_connection_is_closed() {
    let kind = CheckKind::Redis(LoginCheck::default());
    let no_room = b"-ERR max number of clients reached\r\n";
    let (outcome, detail, _) = testing::talk(&[(b"", no_room)], kind).await;
    assert_eq!(outcome, failed(FailReason::Redis));
    assert_eq!(
        detail.as_deref(),
        Some("\"ERR max number of clients reached\"")
    );
}

#[tokio::test]
async fn silence_at_the_end_is_no_answer() {
    let (listener, kind) = (
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        CheckKind::Redis(LoginCheck::default()),
    );
    let at = listener.local_addr().unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let found = testing::found(at, kind).await;
    closing.join().unwrap();
    assert_eq!(found.outcome, failed(FailReason::Reset));
}

proptest! {
    /// What comes in pieces is the same answer.
    #[test]
    fn a_line_in_pieces_is_a_line(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0_usize..40) {
        let bytes = [&b"+"[..], &bytes, b"\r\n"].concat();
        let mut whole = BytesMut::from(&bytes[..]);
        let expected = answer(&mut whole).unwrap().unwrap();
        let cut = cut.min(bytes.len());
        let mut pieces = BytesMut::from(&bytes[..cut]);
        let told = match answer(&mut pieces).unwrap() {
            Some(told) => told,
            None => {
                pieces.extend_from_slice(&bytes[cut..]);
                answer(&mut pieces).unwrap().unwrap()
            }
        };
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        drop(answer(&mut BytesMut::from(&bytes[..])));
    }
}
