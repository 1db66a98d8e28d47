use proptest::prelude::*;

use super::{super::testing, *};
use crate::model::{CheckKind, Outcome};

fn echo(v4: bool, raw: bool, size: usize) -> Echo {
    Echo {
        v4,
        raw,
        mark: [0x12, 0x34, 0, 7],
        cookie: *b"\x01\x02\x03\x04\x05\x06\x07\x08",
        size,
    }
}

/// The message as a socket of this kind delivers it.
fn delivered(echo: &Echo, message: &[u8]) -> Vec<u8> {
    let ip: &[u8] = match echo.raw && echo.v4 {
        // Version 4, six words: an option follows the usual five.
        true => &[[0x46].as_slice(), &[0; 23]].concat(),
        false => &[],
    };
    [ip, message].concat()
}

#[test]
fn a_request_is_laid_out_as_the_rfcs_say() {
    assert_eq!(
        echo(true, true, 13).request(),
        b"\x08\x00\x89\xdc\x12\x34\x00\x07\x01\x02\x03\x04\x05\x06\x07\x08under"
    );
    assert_eq!(
        echo(false, true, 3).request(),
        b"\x80\x00\x00\x00\x12\x34\x00\x07und",
        "no room for a cookie, and the checksum is the kernel's"
    );
    assert_eq!(
        checksum(&echo(true, false, 57).request()),
        0,
        "summed with itself"
    );
}

#[test]
fn only_its_own_reply_answers() {
    for (v4, raw) in [(true, true), (true, false), (false, true), (false, false)] {
        let asked = echo(v4, raw, 20);
        let reply = asked.message(if v4 { 0 } else { 129 });
        assert!(asked.is_answered_by(&delivered(&asked, &reply)));
        assert!(
            !asked.is_answered_by(&delivered(&asked, &asked.request())),
            "itself"
        );
        for at in [0, 1, 6, 7, 8, 27] {
            let mut other = reply.clone();
            other[at] ^= 1;
            assert!(
                !asked.is_answered_by(&delivered(&asked, &other)),
                "byte {at}"
            );
        }
        let mut other = reply.clone();
        other[4] ^= 1;
        let counts = asked.is_answered_by(&delivered(&asked, &other));
        assert_eq!(counts, !raw, "a ping socket's identifier is the kernel's");
        assert!(
            !asked.is_answered_by(&delivered(&asked, &reply[..27])),
            "cut short"
        );
        assert!(!asked.is_answered_by(&[]));
    }
}

/// Where this process may ping at all, and says so otherwise.
#[tokio::test]
async fn this_host_answers() {
    for at in ["127.0.0.1:0", "[::1]:7"] {
        for size in [0, 56, 9_000] {
            let kind = CheckKind::Icmp(IcmpCheck { size });
            let found = testing::found(at.parse().unwrap(), kind).await;
            match found.outcome {
                Outcome::Fail(FailReason::Local) => {
                    assert!(found.detail.unwrap().contains("ping_group_range"));
                }
                outcome => assert_eq!(outcome, Outcome::Pass, "{at} {size}"),
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..90), v4: bool, raw: bool) {
        prop_assert!(!echo(v4, raw, 20).is_answered_by(&bytes));
    }
}
