use std::net::{SocketAddr, TcpListener, UdpSocket};

use domain::{base::iana::Rcode, rdata::A};
use proptest::prelude::*;

use super::{super::testing, *};
use crate::model::{CheckKind, Outcome};
use testing::failed;

fn options(answer: Option<&str>) -> DnsCheck {
    DnsCheck {
        name: "a.ex.test".to_owned(),
        record: DnsType::A,
        tcp: false,
        answer: answer.map(str::to_owned),
    }
}

fn query() -> Vec<u8> {
    Dns::prepare(&options(None)).unwrap().query(0x1234).unwrap()
}

/// An answer to `query` with these addresses.
fn answer(query: &[u8], code: Rcode, addresses: &[&str]) -> Vec<u8> {
    let query = Message::from_slice(query).unwrap();
    let mut builder = MessageBuilder::new_vec().start_answer(query, code).unwrap();
    let owner = query.sole_question().unwrap();
    for address in addresses {
        let address = A::new(address.parse().unwrap());
        builder.push((owner.qname(), 60, address)).unwrap();
    }
    builder.finish()
}

/// A name server that says these, one after the other, when it is asked once.
fn server(answers: impl FnOnce(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut seen = [0; 512];
        let (length, from) = socket.recv_from(&mut seen).unwrap();
        for answer in answers(&seen[..length]) {
            socket.send_to(&answer, from).unwrap();
        }
    });
    at
}

async fn asked(at: SocketAddr, options: DnsCheck) -> (Outcome, Option<String>) {
    let found = testing::found(at, CheckKind::Dns(options)).await;
    (found.outcome, found.detail.map(|detail| detail.to_string()))
}

#[test]
fn a_question_is_laid_out_as_the_rfc_says() {
    // What `dig +noedns +noadflag A a.ex.test` sends.
    let expected = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
        \x01a\x02ex\x04test\x00\x00\x01\x00\x01";
    assert_eq!(query(), expected);
}

#[tokio::test]
async fn the_answer_has_to_have_such_a_record() {
    let two = |q: &[u8]| vec![answer(q, Rcode::NOERROR, &["192.0.2.7", "192.0.2.8"])];
    let pass = (Outcome::Pass, None);
    assert_eq!(asked(server(two), options(None)).await, pass);
    assert_eq!(asked(server(two), options(Some("192.0.2.8"))).await, pass);
    let (outcome, detail) = asked(server(two), options(Some("192.0.2.9"))).await;
    assert_eq!(outcome, failed(FailReason::Mismatch));
    assert_eq!(detail.as_deref(), Some("\"192.0.2.7, 192.0.2.8\""));
    let none = |q: &[u8]| vec![answer(q, Rcode::NOERROR, &[])];
    let told = asked(server(none), options(None)).await;
    assert_eq!(told.0, failed(FailReason::NoRecord));
}

#[tokio::test]
async fn an_error_code_is_told() {
    let unknown = |q: &[u8]| vec![answer(q, Rcode::NXDOMAIN, &[])];
    let told = asked(server(unknown), options(None)).await;
    assert_eq!(told.0, failed(FailReason::DnsCode(3)));
    // A head alone, as servers send that do not want the question.
    let bare = |q: &[u8]| vec![[&q[..2], &[0x81, 0x05], &[0; 8]].concat()];
    let told = asked(server(bare), options(None)).await;
    assert_eq!(told.0, failed(FailReason::DnsCode(5)));
}

#[tokio::test]
async fn answers_to_other_questions_are_passed_over() {
    let strays = |q: &[u8]| {
        let good = answer(q, Rcode::NOERROR, &["192.0.2.7"]);
        let mut other_id = answer(q, Rcode::SERVFAIL, &[]);
        other_id[1] ^= 1;
        let mut other_name = answer(q, Rcode::SERVFAIL, &[]);
        other_name[13] = b'b';
        vec![b"x".to_vec(), q.to_vec(), other_id, other_name, good]
    };
    let told = asked(server(strays), options(None)).await;
    assert_eq!(told, (Outcome::Pass, None));
}

#[tokio::test]
async fn what_is_no_answer_at_all_is_shown() {
    let at = server(|_| vec![b"who are you?".to_vec()]);
    let spec = crate::model::CheckSpec {
        kind: CheckKind::Dns(options(None)),
        via: crate::model::Via::default(),
        timing: crate::model::CheckTiming::every(std::time::Duration::from_millis(300)),
    };
    let found = crate::check::Check::prepare(&spec.kind)
        .unwrap()
        .probe(at, &spec)
        .await;
    assert_eq!(found.outcome, failed(FailReason::Garbled));
    assert_eq!(found.detail.as_deref(), Some("\"who are you?\""));
}

#[tokio::test]
async fn an_answer_cut_short_is_fetched_over_tcp() {
    use std::io::{Read, Write};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(at).unwrap();
    let serving = std::thread::spawn(move || {
        let mut seen = [0; 512];
        let (length, from) = socket.recv_from(&mut seen).unwrap();
        let mut short = answer(&seen[..length], Rcode::NOERROR, &[]);
        short[2] |= 2;
        socket.send_to(&short, from).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut framed = vec![0; 2 + length];
        stream.read_exact(&mut framed).unwrap();
        assert_eq!(framed[2..], seen[..length], "the same question");
        let whole = answer(&framed[2..], Rcode::NOERROR, &["192.0.2.7"]);
        let head = u16::try_from(whole.len()).unwrap().to_be_bytes();
        stream.write_all(&[&head, &whole[..]].concat()).unwrap();
    });
    let told = asked(at, options(Some("192.0.2.7"))).await;
    assert_eq!(told, (Outcome::Pass, None));
    serving.join().unwrap();
}

#[test]
fn records_compare_as_people_write_them() {
    for (one, other) in [
        ("10 Mail.Ex.test.", "10  mail.ex.test"),
        ("\"v=spf1 -all\"", "v=spf1 -all"),
        ("2001:db8::17", "2001:DB8:0:0::17"),
        (
            "ns.ex.test. host.ex.test. 7 3600 900 604800 86400",
            "ns.ex.test host.ex.test 7 3600 900 604800 86400",
        ),
    ] {
        assert_eq!(plain(one), plain(other));
    }
    assert_ne!(plain("10 mail.ex.test"), plain("20 mail.ex.test"));
    assert_ne!(plain("a.ex.test"), plain("aex.test"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), text in "\\PC{0,20}") {
        drop(records(&bytes, Rtype::A));
        fits(&query(), &bytes);
        plain(&text);
    }

    /// A good answer with something wrong in it.
    #[test]
    fn no_damage_makes_it_panic(at in 0_usize..60, to: u8, record in 0..DnsType::ALL.len()) {
        let mut bytes = answer(&query(), Rcode::NOERROR, &["192.0.2.7", "192.0.2.8"]);
        let at = at.min(bytes.len() - 1);
        bytes[at] = to;
        drop(records(&bytes, rtype(DnsType::ALL[record].0)));
    }
}
