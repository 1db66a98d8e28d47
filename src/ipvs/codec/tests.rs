//! The kernel's own bytes (little-endian machines: netlink is native-endian), then any model, then any
//! bytes. A fixture is what strace or nlmon saw of the command in its comment.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{NlaBuffer, NlasIterator};
use proptest::prelude::*;

use super::{
    nla::{InetAddr, Netmask},
    read::Reader,
    write::{Ask, Envelope},
    *,
};
use crate::model::{
    DestAttrs, DestKey, DestState, ForwardMethod, Persistence, Protocol, Scheduler, ServiceAttrs,
    ServiceFlags, ServiceKey, ServiceState, Stats, Step, SyncDaemon, SyncRole, Timeouts, Tunnel,
    TunnelType, Weight,
};

/// One message of a fixture: its command, and the bytes of its attributes.
struct Captured {
    command: u8,
    bytes: Vec<u8>,
}

fn captured(text: &str) -> Vec<Captured> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let byte = |i: usize| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..line.len()).step_by(2).map(byte).collect();
            let length = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
            assert_eq!(usize::try_from(length), Ok(bytes.len()), "{line}");
            Captured {
                command: bytes[16],
                bytes: attributes(&bytes[16..]).unwrap().to_vec(),
            }
        })
        .collect()
}

macro_rules! fixture {
    ($name:literal) => {
        captured(include_str!(concat!("fixtures/", $name, ".hex")))
    };
}

/// What we would ask, as a fixture has it.
fn ours(ask: Ask<'_>) -> Captured {
    let mut bytes = Vec::new();
    let envelope = Envelope {
        family: 32,
        flags: 5,
        sequence: 7,
    };
    write::request(&mut bytes, envelope, ask);
    let head = [
        u32::try_from(bytes.len()).unwrap().to_ne_bytes(),
        [32, 0, 5, 0],
        7_u32.to_ne_bytes(),
        [0; 4],
    ];
    assert_eq!(bytes[..16], head.concat());
    assert_eq!(bytes[17..20], [1, 0, 0]);
    Captured {
        command: bytes[16],
        bytes: bytes[20..].to_vec(),
    }
}

/// Attributes of two levels by their numbers: order and flags for nesting do not count.
fn leaves(message: &Captured) -> BTreeMap<(u16, u16), Vec<u8>> {
    let mut found = BTreeMap::new();
    let nlas = |bytes: &[u8]| -> Vec<(u16, Vec<u8>)> {
        let read = |nla: Result<NlaBuffer<&[u8]>, _>| {
            let nla = nla.unwrap();
            (nla.kind(), nla.value().to_vec())
        };
        NlasIterator::new(bytes).map(read).collect()
    };
    for (outer, value) in nlas(&message.bytes) {
        // Services, destinations and daemons hold others, timeouts do not.
        let inner = if outer <= 3 {
            nlas(&value)
        } else {
            vec![(0, value)]
        };
        found.extend(inner.into_iter().map(|(kind, v)| ((outer, kind), v)));
    }
    found
}

/// We would ask as ipvsadm did; `but` names attributes that only ipvsadm gives, or gives otherwise.
fn asks_alike(ours: &Captured, theirs: &Captured, but: &[(u16, u16)]) {
    assert_eq!(ours.command, theirs.command);
    let but = |message| {
        let mut leaves = leaves(message);
        leaves.retain(|kind, _| !but.contains(kind));
        leaves
    };
    assert_eq!(but(ours), but(theirs));
}

fn attrs(
    scheduler: &str,
    flags: u32,
    persistence: Option<(u32, u8, Option<&str>)>,
) -> ServiceAttrs {
    ServiceAttrs {
        scheduler: Scheduler(scheduler.to_owned()),
        flags: ServiceFlags(flags),
        persistence: persistence.map(|(timeout_s, prefix, engine)| Persistence {
            timeout_s,
            prefix,
            engine: engine.map(str::to_owned),
        }),
    }
}

/// What ipvsadm asked for and what the kernel then said are this service, and we would ask the same.
fn is_service(messages: &[Captured], key: &str, asked: &ServiceAttrs, said: &ServiceAttrs) {
    let key: ServiceKey = key.parse().unwrap();
    let [request, answer] = messages else {
        panic!("{} messages", messages.len())
    };
    assert_eq!((request.command, answer.command), (1, 1));
    let state = |attrs: &ServiceAttrs| {
        let state = ServiceState {
            attrs: attrs.clone(),
            stats: Stats::default(),
            dests: [].into(),
        };
        Some((key, state))
    };
    assert_eq!(
        Reader::default().service(&request.bytes).unwrap(),
        state(asked)
    );
    assert_eq!(
        Reader::default().service(&answer.bytes).unwrap(),
        state(said)
    );
    let step = Step::NewService(key, asked.clone());
    let (ours, flags) = (ours(Ask::Step(&step)), (1, 7));
    // ipvsadm sets all flags, we those that are an owner's: the mask differs.
    asks_alike(&ours, request, &[flags]);
    assert_eq!(leaves(&ours)[&flags][..4], leaves(request)[&flags][..4]);
    assert_eq!(leaves(&ours)[&flags][4..], 0x3d_u32.to_ne_bytes());
}

#[test]
fn services_are_what_ipvsadm_and_the_kernel_say() {
    let same = |messages: Vec<Captured>, key, attrs| is_service(&messages, key, &attrs, &attrs);
    is_service(
        &fixture!("service-tcp4-nat"),
        "tcp/192.0.2.1:80",
        &attrs("wrr", 0, None),
        // `ipvsadm -E ... -s lc` came between.
        &attrs("lc", 0, None),
    );
    let flags = ServiceFlags::ONE_PACKET | ServiceFlags::SCHED1 | ServiceFlags::SCHED2;
    same(
        fixture!("service-udp6-dr"),
        "udp/[2001:db8::1]:53",
        attrs("sh", flags, None),
    );
    same(
        fixture!("service-fwmark-gue"),
        "fwmark/5",
        attrs("mh", 0, None),
    );
    let net4 = Some((600, 24, None));
    same(
        fixture!("service-persistent4"),
        "tcp/192.0.2.2:443",
        attrs("wlc", 0, net4),
    );
    let net6 = Some((300, 64, None));
    same(
        fixture!("service-persistent6"),
        "tcp/[2001:db8::2]:443",
        attrs("rr", 0, net6),
    );
    let sip = Some((60, 32, Some("sip")));
    same(
        fixture!("service-sip"),
        "udp/192.0.2.3:5060",
        attrs("rr", 0, sip),
    );
}

fn is_dest(messages: &[Captured], key: &str, dest: &str, asked: DestAttrs, said: DestAttrs) {
    let (key, dest): (ServiceKey, SocketAddr) = (key.parse().unwrap(), dest.parse().unwrap());
    let dest = DestKey {
        addr: dest.ip(),
        port: dest.port(),
    };
    let [request, answer] = messages else {
        panic!("{} messages", messages.len())
    };
    assert_eq!((request.command, answer.command), (5, 5));
    let of = |message: &Captured| {
        Reader::default()
            .dest(&message.bytes, key.family(), true)
            .unwrap()
            .unwrap()
    };
    let idle = |attrs| {
        let state = DestState {
            attrs,
            active_connections: 0,
            inactive_connections: 0,
            persistent_connections: 0,
            counters: Some(Box::default()),
        };
        (dest, state)
    };
    assert_eq!(of(request), idle(asked));
    assert_eq!(of(answer), idle(said));
    let step = Step::NewDest(key, dest, asked);
    // ipvsadm names a service by an empty scheduler, its flags, timeout and netmask too.
    let but = [(1, 6), (1, 7), (1, 8), (1, 9)];
    asks_alike(&ours(Ask::Step(&step)), request, &but);
}

#[test]
fn destinations_are_what_ipvsadm_and_the_kernel_say() {
    let weight = |n: i64| Weight::try_from(n).unwrap();
    let nat = DestAttrs {
        weight: weight(10),
        forward: ForwardMethod::Nat,
        upper: 1000,
        lower: 750,
        tunnel: Tunnel::default(),
    };
    let changed = DestAttrs {
        weight: weight(i64::from(i32::MAX)),
        upper: 0,
        lower: 0,
        ..nat
    };
    let (tcp, dest) = ("tcp/192.0.2.1:80", "198.51.100.7:8080");
    is_dest(&fixture!("dest-tcp4-nat"), tcp, dest, nat, changed);
    let dr = DestAttrs {
        weight: Weight::QUIESCED,
        forward: ForwardMethod::Dr,
        ..changed
    };
    is_dest(
        &fixture!("dest-udp6-dr"),
        "udp/[2001:db8::1]:53",
        "[2001:db8::7]:53",
        dr,
        dr,
    );
    let tunnel = Tunnel {
        kind: TunnelType::Gue,
        port: 6080,
        flags: Tunnel::CHECKSUM,
    };
    let gue = DestAttrs {
        weight: weight(3),
        forward: ForwardMethod::Tun,
        tunnel,
        ..changed
    };
    is_dest(
        &fixture!("dest-fwmark-gue"),
        "fwmark/5",
        "198.51.100.8:0",
        gue,
        gue,
    );
}

#[test]
fn the_rest_of_the_commands() {
    let [info] = &fixture!("info")[..] else {
        panic!()
    };
    let (version, size) = read::info(&info.bytes).unwrap();
    assert_eq!((version.to_string().as_str(), size), ("1.2.1", 4096));
    let [dest, service, flush] = &fixture!("delete")[..] else {
        panic!()
    };
    let (web, one): (ServiceKey, SocketAddr) = (
        "tcp/192.0.2.1:80".parse().unwrap(),
        "198.51.100.7:8080".parse().unwrap(),
    );
    let one = DestKey {
        addr: one.ip(),
        port: one.port(),
    };
    // To remove something ipvsadm describes it.
    let described = |message| {
        leaves(message)
            .into_keys()
            .filter(|(outer, kind)| match outer {
                1 => *kind > 5,
                _ => matches!(kind, 3..11 | 13..),
            })
    };
    let but: Vec<_> = described(dest).collect();
    asks_alike(&ours(Ask::Step(&Step::DelDest(web, one))), dest, &but);
    let but: Vec<_> = described(service).collect();
    let step = Step::DelService("fwmark/5".parse().unwrap());
    asks_alike(&ours(Ask::Step(&step)), service, &but);
    asks_alike(&ours(Ask::Bare(Command::Flush)), flush, &[]);
}

#[test]
fn what_ipvsadm_cannot_print_or_set() {
    // Marks that ipvsadm takes but prints as a negative number.
    let high = attrs("rr", 0, None);
    is_service(
        &fixture!("service-fwmark-high"),
        &format!("fwmark/{}", u32::MAX),
        &high,
        &high,
    );
    let to = |forward| DestAttrs {
        weight: Weight::try_from(3).unwrap(),
        forward,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    };
    for (messages, forward) in [
        (fixture!("dest-bypass"), ForwardMethod::Bypass),
        (fixture!("dest-local"), ForwardMethod::Local),
    ] {
        let (key, dest) = ("tcp/192.0.2.1:80", "198.51.100.9:80");
        is_dest(&messages, key, dest, to(forward), to(forward));
    }
    // Our own request, all flags set, and what the kernel made of it.
    let all = ServiceFlags::SETTABLE;
    let [request, answer] = &fixture!("service-flags")[..] else {
        panic!()
    };
    let key = ServiceKey::Fwmark(Family::V6, 1 << 31);
    let step = Step::NewService(key, attrs("sh", all, None));
    assert_eq!(ours(Ask::Step(&step)).bytes, request.bytes);
    let (found, state) = Reader::default().service(&answer.bytes).unwrap().unwrap();
    assert_eq!((found, state.attrs), (key, attrs("sh", all, None)));
}

#[test]
fn timeouts_and_zeroing() {
    let timeouts = |tcp_s, tcp_fin_s, udp_s| Timeouts {
        tcp_s,
        tcp_fin_s,
        udp_s,
    };
    let [set, one, get, answer] = &fixture!("timeouts")[..] else {
        panic!()
    };
    asks_alike(&ours(Ask::SetTimeouts(&timeouts(901, 121, 301))), set, &[]);
    asks_alike(&ours(Ask::SetTimeouts(&timeouts(0, 122, 0))), one, &[]);
    asks_alike(&ours(Ask::Bare(Command::GetConfig)), get, &[]);
    let read = read::timeouts(&answer.bytes).unwrap();
    assert_eq!(read, timeouts(901, 122, 301));

    let [all, service] = &fixture!("zero")[..] else {
        panic!()
    };
    asks_alike(&ours(Ask::Bare(Command::Zero)), all, &[]);
    let web = "tcp/192.0.2.1:80".parse().unwrap();
    // ipvsadm describes the service.
    let but = [(1, 6), (1, 7), (1, 8), (1, 9)];
    asks_alike(&ours(Ask::Service(Command::Zero, &web)), service, &but);
}

#[test]
fn sync_daemons_are_what_ipvsadm_and_the_kernel_say() {
    let of = |role, sync_id, max_length, group: &str, port, ttl| SyncDaemon {
        role,
        interface: "dummy0".to_owned(),
        sync_id,
        max_length,
        group: Some(group.parse().unwrap()),
        port,
        ttl,
    };
    let master = of(SyncRole::Master, 5, 1400, "239.1.2.3", 8850, 3);
    let backup = of(SyncRole::Backup, 6, 1300, "ff02::81:5", 8851, 4);
    let messages = fixture!("daemons");
    let [start, second, list, first, other, stop, last] = &messages[..] else {
        panic!("{} messages", messages.len())
    };
    asks_alike(&ours(Ask::StartDaemon(&master)), start, &[]);
    asks_alike(&ours(Ask::StartDaemon(&backup)), second, &[]);
    asks_alike(&ours(Ask::Bare(Command::GetDaemon)), list, &[]);
    assert_eq!((first.command, other.command), (9, 9));
    assert_eq!(read::daemon(&first.bytes).unwrap(), master);
    assert_eq!(read::daemon(&other.bytes).unwrap(), backup);
    // ipvsadm names an interface and an id too, both empty.
    let but = [(3, 2), (3, 3)];
    asks_alike(&ours(Ask::StopDaemon(SyncRole::Master)), stop, &but);
    asks_alike(&ours(Ask::StopDaemon(SyncRole::Backup)), last, &but);

    // What is not said, the kernel chooses.
    let [start, answer] = &fixture!("daemon-defaults")[..] else {
        panic!()
    };
    let said = read::daemon(&answer.bytes).unwrap();
    assert_eq!(said, of(SyncRole::Master, 0, 1472, "224.0.0.81", 8848, 1));
    let asked = SyncDaemon {
        max_length: 0,
        group: None,
        port: 0,
        ttl: 0,
        ..said
    };
    asks_alike(&ours(Ask::StartDaemon(&asked)), start, &[]);
}

#[test]
fn counters_of_either_width() {
    let [service, dest] = &fixture!("counters")[..] else {
        panic!()
    };
    let counted = Stats {
        connections: 3,
        packets_in: 3,
        packets_out: 3,
        bytes_in: 99,
        bytes_out: 105,
        byte_rate_in: 12,
        byte_rate_out: 13,
        ..Stats::default()
    };
    let of_service = |bytes: &[u8]| Reader::default().service(bytes).unwrap().unwrap().1.stats;
    let of_dest = |bytes: &[u8]| {
        Reader::default()
            .dest(bytes, Family::V4, true)
            .unwrap()
            .unwrap()
            .1
    };
    assert_eq!(of_service(&service.bytes), counted);
    assert_eq!(of_dest(&dest.bytes).stats(), counted);
    assert_eq!(of_dest(&dest.bytes).inactive_connections, 3);
    let (_, plain) = Reader::default()
        .dest(&dest.bytes, Family::V4, false)
        .unwrap()
        .unwrap();
    assert_eq!((&plain.counters, plain.inactive_connections), (&None, 3));
    // A kernel before 4.1 has the narrow ones alone. `*_ATTR_STATS64` is 12 in both.
    let narrow = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let wide = [0x7c, 0, 12, 0];
        let at = bytes.windows(4).position(|head| head == wide).unwrap();
        bytes[at + 2] = 0xbc;
        bytes
    };
    assert_eq!(of_service(&narrow(&service.bytes)), counted);
    assert_eq!(of_dest(&narrow(&dest.bytes)).stats(), counted);
}

/// Where the message before had its attributes counts only as long as they are there.
#[test]
fn a_message_is_read_by_its_own_heads() {
    let key: ServiceKey = "tcp/192.0.2.1:80".parse().unwrap();
    let dest = "198.51.100.1:8080".parse::<SocketAddr>().unwrap();
    let (addr, port) = (dest.ip(), dest.port());
    let to = DestAttrs {
        weight: Weight::ONE,
        forward: ForwardMethod::Dr,
        upper: 500,
        lower: 400,
        tunnel: Tunnel::default(),
    };
    let ask = |to| ours(Ask::Step(&Step::NewDest(key, DestKey { addr, port }, to))).bytes;
    let first = last(&ask(to)).to_vec();
    // `IPVS_DEST_ATTR_U_THRESH` and `_L_THRESH` change places: as long as before.
    let mut swapped = first.clone();
    let at = |head: [u8; 4]| first.windows(4).position(|bytes| bytes == head).unwrap();
    let (upper, lower) = (at([8, 0, 5, 0]), at([8, 0, 6, 0]));
    for n in 0..8 {
        swapped.swap(upper + n, lower + n);
    }
    // The upper one has another number, which nobody knows.
    let mut unknown = first.clone();
    unknown[upper + 2] = 99;
    let mut reader = Reader::default();
    let mut thresholds = |bytes: &[u8]| {
        let (_, state) = reader.dest(bytes, key.family(), false).unwrap().unwrap();
        (state.attrs.upper, state.attrs.lower)
    };
    for _ in 0..2 {
        assert_eq!(thresholds(&first), (500, 400));
        assert_eq!(thresholds(&swapped), (500, 400));
        assert_eq!(thresholds(&unknown), (0, 400));
    }
    // One more attribute at the end, which counts; and that one gone again.
    let more = [&first[..], &[8, 0, 5, 0, 9, 0, 0, 0]].concat();
    let whole = |inner: &[u8]| {
        let [low, high] = u16::try_from(inner.len() + 4).unwrap().to_ne_bytes();
        [&[low, high, 2, 0], inner].concat()
    };
    for _ in 0..2 {
        assert_eq!(thresholds(&whole(&more[4..])), (9, 400));
        assert_eq!(thresholds(&first), (500, 400));
    }
    // A value of another length than the last one's is not that; what follows is read again.
    let mut cut = first.clone();
    cut[upper] = 7;
    let read = reader.dest(&cut, key.family(), false);
    let why = read.unwrap_err().to_string();
    assert_eq!(why, "attribute 5 has 3 bytes, not 4");
    let alone = Reader::default().dest(&first, key.family(), false);
    assert_eq!(
        reader.dest(&first, key.family(), false).unwrap(),
        alone.unwrap()
    );
}

#[test]
fn what_no_kernel_says_is_an_error_and_what_it_may_say_is_none() {
    let step = Step::NewService("tcp/192.0.2.1:80".parse().unwrap(), attrs("rr", 0, None));
    let whole = ours(Ask::Step(&step)).bytes;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        Reader::default().service(&bytes)
    };
    assert!(changed(&|_| {}).is_ok_and(|found| found.is_some()));
    // The family's value stands after three heads, the protocol's after one more and its padding.
    assert_eq!((whole[8], whole[16]), (2, 6));
    assert!(changed(&|bytes| bytes[16] = 51).is_ok_and(|found| found.is_none()));
    assert!(changed(&|bytes| bytes[8] = 1).is_err());
    assert!(changed(&|bytes| bytes.truncate(40)).is_err());
    // A forwarding method and a tunnel type that no kernel has yet: their attributes and values.
    let [request, _] = &fixture!("dest-fwmark-gue")[..] else {
        panic!()
    };
    for (known, unknown) in [
        ([8, 0, 3, 0, 2], [8, 0, 3, 0, 5]),
        ([5, 0, 13, 0, 1], [5, 0, 13, 0, 3]),
    ] {
        let mut bytes = request.bytes.clone();
        let at = bytes.windows(5).position(|part| part == known).unwrap();
        assert!(
            Reader::default()
                .dest(&bytes, Family::V4, true)
                .is_ok_and(|found| found.is_some())
        );
        bytes[at..at + 5].copy_from_slice(&unknown);
        assert!(
            Reader::default()
                .dest(&bytes, Family::V4, true)
                .is_ok_and(|found| found.is_none())
        );
    }
    assert!(Reader::default().service(&[]).is_err());
    assert!(Reader::default().dest(&[], Family::V4, true).is_err());
    assert!(read::info(&[]).is_err());
    assert!(read::daemon(&[]).is_err());
}

#[test]
fn netmasks() {
    for (prefix, mask) in [(0, [0, 0, 0, 0]), (24, [255, 255, 255, 0]), (32, [255; 4])] {
        assert_eq!(Netmask::from_prefix(Family::V4, prefix), Netmask(mask));
        assert_eq!(Netmask(mask).prefix(Family::V4).unwrap(), prefix);
    }
    assert_eq!(Netmask([255, 0, 255, 0]).prefix(Family::V4).unwrap(), 8);
    assert!(Netmask(129_u32.to_ne_bytes()).prefix(Family::V6).is_err());
}

const SEQUENCE: u32 = 7;
const PORT: u32 = 4711;

/// One message as the kernel would send it, payload given.
fn sent(kind: u16, flags: u16, sequence: u32, port: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + payload.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    bytes.extend([sequence.to_ne_bytes(), port.to_ne_bytes()].concat());
    bytes.extend(payload);
    bytes
}

/// How the answer to the one request ended, and how many messages of it were taken.
fn answered(datagram: &[u8]) -> Result<(Option<Outcome>, usize), DecodeError> {
    let mut taken = 0;
    let take = |payload: &[u8]| {
        attributes(payload)?;
        taken += 1;
        Ok(())
    };
    let mut exchange = Exchange::new(SEQUENCE, 1, PORT);
    exchange.datagram(datagram, take)?;
    let complete = exchange.is_complete();
    let outcome = exchange.into_outcomes().pop().unwrap();
    assert_eq!(complete, outcome.is_some());
    Ok((outcome, taken))
}

const DONE: u16 = netlink_packet_core::NLMSG_DONE;
const ERROR: u16 = netlink_packet_core::NLMSG_ERROR;

fn errno(n: i32) -> [u8; 4] {
    (-n).to_ne_bytes()
}

#[test]
fn an_answer_is_taken_by_its_number_and_ends_as_it_says() {
    let info = sent(32, 0, SEQUENCE, PORT, &[15, 1, 0, 0]);
    let done = sent(DONE, 2, SEQUENCE, PORT, &errno(0));

    let whole = [info.clone(), info.clone(), done.clone()].concat();
    assert!(matches!(answered(&whole), Ok((Some(Outcome::Complete), 2))));
    assert!(matches!(answered(&info), Ok((None, 1))));
    // Late answers, and those of others.
    for (sequence, port) in [
        (SEQUENCE - 1, PORT),
        (SEQUENCE + 1, PORT),
        (SEQUENCE, PORT + 1),
    ] {
        let late = sent(ERROR, 0, sequence, port, &errno(3));
        assert!(matches!(answered(&late), Ok((None, 0))));
        assert!(matches!(
            answered(&[late, done.clone()].concat()),
            Ok((Some(Outcome::Complete), 0))
        ));
    }
    // The flag on any message of the dump counts.
    let flagged = sent(32, 2 | 16, SEQUENCE, PORT, &[15, 1, 0, 0]);
    assert!(matches!(
        answered(&[flagged, done].concat()),
        Ok((Some(Outcome::Interrupted), 1))
    ));
    for kind in [DONE, ERROR] {
        let refused = answered(&sent(kind, 0, SEQUENCE, PORT, &errno(17)));
        assert!(matches!(refused, Ok((Some(Outcome::Refused(17)), 0))));
    }
    let overrun = sent(netlink_packet_core::NLMSG_OVERRUN, 0, SEQUENCE, PORT, &[]);
    assert!(matches!(
        answered(&overrun),
        Ok((Some(Outcome::Overrun), 0))
    ));
    assert!(answered(&info[..18]).is_err());
    assert!(answered(&sent(32, 0, SEQUENCE, PORT, &[15])).is_err());
    assert!(answered(&sent(ERROR, 0, SEQUENCE, PORT, &[15])).is_err());
}

#[test]
fn each_acknowledgement_of_a_batch_belongs_to_the_change_with_its_number() {
    // The numbers go round.
    let first = u32::MAX - 1;
    let mut exchange = Exchange::new(first, 5, PORT);
    let ack = |nth: u32, n| sent(ERROR, 0, first.wrapping_add(nth), PORT, &errno(n));
    let none = |_payload: &[u8]| -> Result<(), DecodeError> { panic!("no part of an answer") };
    exchange.datagram(&ack(0, 0), none).unwrap();
    exchange
        .datagram(&[ack(3, 2), ack(1, 17)].concat(), none)
        .unwrap();
    // Of another batch, and one a second time.
    exchange.datagram(&ack(5, 1), none).unwrap();
    exchange.datagram(&ack(1, 0), none).unwrap();
    exchange.datagram(&ack(4, 0), none).unwrap();
    assert!(!exchange.is_complete());
    let complete = Some(Outcome::Complete);
    let refused = |code| Some(Outcome::Refused(code));
    assert_eq!(
        exchange.into_outcomes(),
        [complete, refused(17), None, refused(2), complete]
    );
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let family = prop::sample::select(vec![Family::V4, Family::V6]);
    prop_oneof![
        (protocol, any::<IpAddr>(), any::<u16>())
            .prop_map(|(p, ip, port)| ServiceKey::Addr(p, SocketAddr::new(ip, port))),
        (family, 1..=u32::MAX).prop_map(|(f, mark)| ServiceKey::Fwmark(f, mark)),
    ]
}

fn service_attrs() -> impl Strategy<Value = ServiceAttrs> {
    let persistence = prop::option::of((any::<u32>(), 1..=32_u8, prop::option::of("[a-z]{1,15}")));
    ("[a-z]{1,15}", 0..16_u32, persistence).prop_map(|(scheduler, flags, persistence)| {
        ServiceAttrs {
            scheduler: Scheduler(scheduler),
            flags: ServiceFlags(flags << 2),
            persistence: persistence.map(|(timeout_s, prefix, engine)| Persistence {
                timeout_s,
                prefix,
                engine,
            }),
        }
    })
}

fn dest_attrs() -> impl Strategy<Value = DestAttrs> {
    use ForwardMethod::{Bypass, Dr, Local, Nat, Tun};
    let forward = prop::sample::select(vec![Nat, Local, Tun, Dr, Bypass]);
    let kind = prop::sample::select(vec![TunnelType::Ipip, TunnelType::Gue, TunnelType::Gre]);
    let tunnel = (kind, any::<u16>(), any::<u16>()).prop_map(|(kind, port, flags)| Tunnel {
        kind,
        port,
        flags,
    });
    let weight = (0..=i64::from(i32::MAX)).prop_map(|w| Weight::try_from(w).unwrap());
    (weight, forward, any::<u32>(), any::<u32>(), tunnel).prop_map(
        |(weight, forward, upper, lower, tunnel)| DestAttrs {
            weight,
            forward,
            upper,
            lower,
            tunnel,
        },
    )
}

fn sync_daemon() -> impl Strategy<Value = SyncDaemon> {
    let role = prop::sample::select(vec![SyncRole::Master, SyncRole::Backup]);
    let group = any::<Option<IpAddr>>();
    let numbers = any::<(u8, u16, u16, u8)>();
    (role, "[a-z0-9.]{1,15}", group, numbers).prop_map(
        |(role, interface, group, (sync_id, max_length, port, ttl))| SyncDaemon {
            role,
            interface,
            sync_id,
            max_length,
            group,
            port,
            ttl,
        },
    )
}

/// An attribute that nobody knows, before each of `bytes`'s first level or at its end.
fn with_strangers(bytes: &[u8], value: &[u8]) -> Vec<u8> {
    let mut stranger = u16::try_from(4 + value.len())
        .unwrap()
        .to_ne_bytes()
        .to_vec();
    stranger.extend(0x3abc_u16.to_ne_bytes());
    stranger.extend(value);
    stranger.resize(stranger.len().next_multiple_of(4), 0);
    let mut all = Vec::new();
    let mut rest = bytes;
    while let [low, high, ..] = rest {
        let length = usize::from(u16::from_ne_bytes([*low, *high])).next_multiple_of(4);
        all.extend(&stranger);
        all.extend(&rest[..length]);
        rest = &rest[length..];
    }
    all.extend(stranger);
    all
}

/// The same within the one attribute that holds others, and around it.
fn with_strangers_inside(bytes: &[u8], value: &[u8]) -> Vec<u8> {
    let inner = with_strangers(&bytes[4..], value);
    let mut nest = u16::try_from(4 + inner.len())
        .unwrap()
        .to_ne_bytes()
        .to_vec();
    nest.extend(&bytes[2..4]);
    nest.extend(inner);
    with_strangers(&nest, value)
}

/// The last attribute of the first level: that of the destination.
fn last(bytes: &[u8]) -> &[u8] {
    let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])).next_multiple_of(4);
    &bytes[length..]
}

proptest! {
    #[test]
    fn any_message_survives_the_way_to_bytes_and_back(
        key in service_key(), attrs in service_attrs(), addr: IpAddr, port: u16, to in dest_attrs(),
        daemon in sync_daemon(), timeouts in any::<(u32, u32, u32)>(), stranger: Vec<u8>,
    ) {
        let stranger = &stranger[..stranger.len().min(40)];
        let step = Step::SetService(key, attrs.clone());
        let bytes = ours(Ask::Step(&step)).bytes;
        let mut reader = Reader::default();
        for bytes in [with_strangers_inside(&bytes, stranger), bytes] {
            let (found, state) = reader.service(&bytes).unwrap().unwrap();
            prop_assert_eq!((found, &state.attrs), (key, &attrs));
        }
        let dest = DestKey { addr, port };
        let step = Step::SetDest(key, dest, to);
        let bytes = ours(Ask::Step(&step)).bytes;
        for bytes in [with_strangers_inside(last(&bytes), stranger), bytes] {
            let (found, state) = reader.dest(&bytes, key.family(), true).unwrap().unwrap();
            prop_assert_eq!((found, state.attrs), (dest, to));
        }
        let bytes = ours(Ask::StartDaemon(&daemon)).bytes;
        for bytes in [with_strangers_inside(&bytes, stranger), bytes] {
            prop_assert_eq!(&read::daemon(&bytes).unwrap(), &daemon);
        }
        let (tcp_s, tcp_fin_s, udp_s) = timeouts;
        let timeouts = Timeouts { tcp_s, tcp_fin_s, udp_s };
        let bytes = ours(Ask::SetTimeouts(&timeouts)).bytes;
        for bytes in [with_strangers(&bytes, stranger), bytes] {
            prop_assert_eq!(read::timeouts(&bytes).unwrap(), timeouts);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize,
        key in service_key(), addr: IpAddr, to in dest_attrs(),
    ) {
        let _outcome = (reads(&bytes), answers(&bytes));
        // A message with a hole, or cut short.
        let step = Step::NewDest(key, DestKey { addr, port: 80 }, to);
        let mut whole = ours(Ask::Step(&step)).bytes;
        if let Some(byte) = whole.get_mut(cut) {
            *byte = bytes.first().copied().unwrap_or(0);
        }
        let sent = |bytes: &[u8]| [&[5, 1, 0, 0], bytes].concat();
        let _outcome = (reads(&whole), answers(&sent(&whole)));
        whole.truncate(cut);
        let _outcome = (reads(&whole), answers(&sent(&whole)));
    }

    #[test]
    fn an_address_is_the_same_in_its_family(addr: Ipv6Addr) {
        let v6 = IpAddr::from(addr);
        prop_assert_eq!(InetAddr::from(v6).ip(Family::V6), v6);
        let v4 = InetAddr::from(v6).ip(Family::V4);
        prop_assert_eq!(InetAddr::from(v4).ip(Family::V4), v4);
    }
}
