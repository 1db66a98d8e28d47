//! The kernel's own bytes both ways (little-endian machines: netlink is native-endian), then any
//! attributes, then any bytes. A fixture is what strace saw of the ipvsadm command in its comment.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DefaultNla, NetlinkHeader};
use proptest::prelude::*;

use super::{
    nla::{CommandNla, Count, Flags, InfoNla},
    *,
};

type Packet = NetlinkMessage<GenlMessage<Message>>;

fn bytes_of(packet: &Packet) -> Vec<u8> {
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

fn message_of(bytes: &[u8]) -> Message {
    match Packet::deserialize(bytes).unwrap().payload {
        NetlinkPayload::InnerMessage(message) => message.payload,
        other => panic!("{other:?}"),
    }
}

/// The messages of a fixture, each checked to survive the way to attributes and back. ipvsadm flags
/// its nested attributes (0x80), the kernel and we do not.
fn fixture(text: &str) -> Vec<Message> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let byte = |i: usize| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..line.len()).step_by(2).map(byte).collect();
            let packet = Packet::deserialize(&bytes).unwrap();
            let again = bytes_of(&packet);
            assert_eq!(Packet::deserialize(&again).unwrap(), packet);
            let unflagged = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let mut at = 20;
                while let Some(length) = bytes.get(at..at + 2) {
                    let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
                    bytes[at + 3] &= 0x7f;
                    at += length.next_multiple_of(4);
                }
                bytes
            };
            assert_eq!(unflagged(&again), unflagged(&bytes), "{line}");
            message_of(&bytes)
        })
        .collect()
}

macro_rules! fixture {
    ($name:literal) => {
        fixture(include_str!(concat!("fixtures/", $name, ".hex")))
    };
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

/// What ipvsadm asked for and what the kernel then said are this service, and what we would ask for
/// says the same.
fn is_service(messages: &[Message], key: &str, asked: &ServiceAttrs, said: &ServiceAttrs) {
    let key: ServiceKey = key.parse().unwrap();
    let [request, answer] = messages else {
        panic!("{messages:?}")
    };
    assert_eq!(
        (request.command, answer.command),
        (Command::NewService, Command::NewService)
    );
    let state = |attrs: &ServiceAttrs| {
        (
            key,
            ServiceState {
                attrs: attrs.clone(),
                stats: Stats::default(),
                dests: [].into(),
            },
        )
    };
    assert_eq!(request.service().unwrap().unwrap(), state(asked));
    assert_eq!(answer.service().unwrap().unwrap(), state(said));
    let ours = Message::with_service(Command::NewService, &key, asked);
    assert_eq!(ours.service().unwrap().unwrap(), state(asked));
    // But for the mask: ipvsadm sets all flags, we those that are an owner's.
    let plain = |message: &Message| {
        let mut nlas = message.service_nlas().unwrap().to_vec();
        for nla in &mut nlas {
            if let ServiceNla::Flags(flags) = nla {
                flags.mask = 0;
            }
        }
        nlas.sort_by_key(netlink_packet_core::Nla::kind);
        nlas
    };
    assert_eq!(plain(&ours), plain(request));
}

#[test]
fn services_are_what_ipvsadm_and_the_kernel_say() {
    let same = |messages: Vec<Message>, key, attrs| is_service(&messages, key, &attrs, &attrs);
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

fn is_dest(messages: &[Message], key: &str, dest: &str, asked: DestAttrs, said: DestAttrs) {
    let (key, dest): (ServiceKey, SocketAddr) = (key.parse().unwrap(), dest.parse().unwrap());
    let dest = DestKey {
        addr: dest.ip(),
        port: dest.port(),
    };
    let [request, answer] = messages else {
        panic!("{messages:?}")
    };
    assert_eq!(
        (request.command, answer.command),
        (Command::NewDest, Command::NewDest)
    );
    let of = |message: &Message| {
        let (key, state) = message.dest(key.family()).unwrap();
        assert_eq!(
            (state.active_connections, state.inactive_connections),
            (0, 0)
        );
        assert_eq!(
            (state.persistent_connections, state.stats),
            (0, Stats::default())
        );
        (key, state.attrs)
    };
    assert_eq!(of(request), (dest, asked));
    assert_eq!(of(answer), (dest, said));
    assert_eq!(
        of(&Message::with_dest(Command::NewDest, &key, &dest, &asked)),
        (dest, asked)
    );
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
        flags: 1,
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
    let (version, size) = info.info().unwrap();
    assert_eq!((version.to_string().as_str(), size), ("1.2.1", 4096));
    let [dest, service, flush] = &fixture!("delete")[..] else {
        panic!()
    };
    assert_eq!(dest.command, Command::DelDest);
    assert_eq!(
        dest.dest(Family::V4).unwrap().0.to_string(),
        "198.51.100.7:8080"
    );
    assert_eq!(service.command, Command::DelService);
    assert_eq!(
        service.service().unwrap().unwrap().0.to_string(),
        "fwmark/5"
    );
    assert_eq!(*flush, Message::bare(Command::Flush));
}

#[test]
fn what_no_kernel_says_is_an_error_and_what_it_may_say_is_none() {
    let key: ServiceKey = "tcp/192.0.2.1:80".parse().unwrap();
    let message = |change: &dyn Fn(&mut Vec<ServiceNla>)| {
        let mut nlas = service_id(&key);
        nlas.extend(service_attrs(&key, &attrs("rr", 0, None)));
        change(&mut nlas);
        Message::with(Command::NewService, vec![CommandNla::Service(nlas)]).service()
    };
    assert!(message(&|_| {}).is_ok_and(|found| found.is_some()));
    assert!(message(&|nlas| nlas[1] = ServiceNla::Protocol(51)).is_ok_and(|found| found.is_none()));
    assert!(message(&|nlas| nlas[0] = ServiceNla::Family(1)).is_err());
    assert!(message(&|nlas| nlas.truncate(4)).is_err());
    assert!(Message::bare(Command::NewService).service().is_err());
    assert!(Message::bare(Command::NewDest).dest(Family::V4).is_err());
    assert!(Message::bare(Command::GetInfo).info().is_err());
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

fn answered(datagram: &[u8]) -> Result<(Outcome, usize), DecodeError> {
    let mut taken = 0;
    let take = |_message: GenlMessage<Message>| {
        taken += 1;
        Ok(())
    };
    Exchange::new(SEQUENCE, PORT)
        .datagram(datagram, take)
        .map(|outcome| (outcome, taken))
}

#[test]
fn an_answer_is_taken_by_its_number_and_ends_as_it_says() {
    const DONE: u16 = netlink_packet_core::NLMSG_DONE;
    const ERROR: u16 = netlink_packet_core::NLMSG_ERROR;
    let errno = |n: i32| (-n).to_ne_bytes();
    let info = sent(32, 0, SEQUENCE, PORT, &[15, 1, 0, 0]);
    let done = sent(DONE, 2, SEQUENCE, PORT, &errno(0));

    let whole = [info.clone(), info.clone(), done.clone()].concat();
    assert!(matches!(answered(&whole), Ok((Outcome::Complete, 2))));
    assert!(matches!(answered(&info), Ok((Outcome::More, 1))));
    // Late answers, and those of others.
    for (sequence, port) in [(SEQUENCE - 1, PORT), (SEQUENCE, PORT + 1)] {
        let late = sent(ERROR, 0, sequence, port, &errno(3));
        assert!(matches!(answered(&late), Ok((Outcome::More, 0))));
        assert!(matches!(
            answered(&[late, done.clone()].concat()),
            Ok((Outcome::Complete, 0))
        ));
    }
    // The flag on any message of the dump counts.
    let flagged = sent(32, 2 | 16, SEQUENCE, PORT, &[15, 1, 0, 0]);
    assert!(matches!(
        answered(&[flagged, done].concat()),
        Ok((Outcome::Interrupted, 1))
    ));
    for kind in [DONE, ERROR] {
        let refused = answered(&sent(kind, 0, SEQUENCE, PORT, &errno(17)));
        let Ok((Outcome::Refused(error), 0)) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(error.raw_os_error(), Some(17));
    }
    let overrun = sent(netlink_packet_core::NLMSG_OVERRUN, 0, SEQUENCE, PORT, &[]);
    assert!(matches!(answered(&overrun), Ok((Outcome::Overrun, 0))));
    assert!(answered(&info[..18]).is_err());
    assert!(answered(&sent(32, 0, SEQUENCE, PORT, &[15])).is_err());
}

fn other() -> impl Strategy<Value = DefaultNla> {
    (100..0x4000_u16, prop::collection::vec(any::<u8>(), 0..20))
        .prop_map(|(kind, value)| DefaultNla::new(kind, value))
}

fn stats() -> impl Strategy<Value = Vec<StatsNla>> {
    let count = || {
        prop_oneof![
            any::<u32>().prop_map(Count::Narrow),
            any::<u64>().prop_map(Count::Wide)
        ]
    };
    let nla = prop_oneof![
        count().prop_map(StatsNla::Conns),
        count().prop_map(StatsNla::InPkts),
        count().prop_map(StatsNla::OutPkts),
        count().prop_map(StatsNla::InBytes),
        count().prop_map(StatsNla::OutBytes),
        count().prop_map(StatsNla::Cps),
        count().prop_map(StatsNla::InPps),
        count().prop_map(StatsNla::OutPps),
        count().prop_map(StatsNla::InBps),
        count().prop_map(StatsNla::OutBps),
        other().prop_map(StatsNla::Other),
    ];
    prop::collection::vec(nla, 0..12)
}

fn service_nla() -> impl Strategy<Value = ServiceNla> {
    prop_oneof![
        any::<u16>().prop_map(ServiceNla::Family),
        any::<u16>().prop_map(ServiceNla::Protocol),
        any::<IpAddr>().prop_map(|a| ServiceNla::Addr(a.into())),
        any::<u16>().prop_map(|p| ServiceNla::Port(Be16(p))),
        any::<u32>().prop_map(ServiceNla::Fwmark),
        "[a-z]{0,15}".prop_map(ServiceNla::SchedName),
        any::<(u32, u32)>().prop_map(|(flags, mask)| ServiceNla::Flags(Flags { flags, mask })),
        any::<u32>().prop_map(ServiceNla::Timeout),
        any::<[u8; 4]>().prop_map(|m| ServiceNla::Netmask(Netmask(m))),
        stats().prop_map(ServiceNla::Stats),
        "[a-z]{0,15}".prop_map(ServiceNla::PeName),
        stats().prop_map(ServiceNla::Stats64),
        other().prop_map(ServiceNla::Other),
    ]
}

fn dest_nla() -> impl Strategy<Value = DestNla> {
    prop_oneof![
        any::<IpAddr>().prop_map(|a| DestNla::Addr(a.into())),
        any::<u16>().prop_map(|p| DestNla::Port(Be16(p))),
        any::<u32>().prop_map(DestNla::FwdMethod),
        any::<u32>().prop_map(DestNla::Weight),
        any::<u32>().prop_map(DestNla::UThresh),
        any::<u32>().prop_map(DestNla::LThresh),
        any::<u32>().prop_map(DestNla::ActiveConns),
        any::<u32>().prop_map(DestNla::InactConns),
        any::<u32>().prop_map(DestNla::PersistConns),
        stats().prop_map(DestNla::Stats),
        any::<u16>().prop_map(DestNla::Family),
        stats().prop_map(DestNla::Stats64),
        any::<u8>().prop_map(DestNla::TunType),
        any::<u16>().prop_map(|p| DestNla::TunPort(Be16(p))),
        any::<u16>().prop_map(DestNla::TunFlags),
        other().prop_map(DestNla::Other),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let nla = prop_oneof![
        prop::collection::vec(service_nla(), 0..14).prop_map(CommandNla::Service),
        prop::collection::vec(dest_nla(), 0..17).prop_map(CommandNla::Dest),
        other().prop_map(CommandNla::Other),
    ];
    let info = prop_oneof![
        any::<u32>().prop_map(InfoNla::Version),
        any::<u32>().prop_map(InfoNla::ConnTabSize),
        other().prop_map(InfoNla::Other),
    ];
    prop_oneof![
        (
            (0..14_u8).prop_map(Command::from),
            prop::collection::vec(nla, 0..4)
        )
            .prop_map(|(command, nlas)| Message::with(command, nlas)),
        prop::collection::vec(info, 0..4).prop_map(|nlas| Message {
            command: Command::SetInfo,
            body: Body::Info(nlas)
        }),
    ]
}

proptest! {
    #[test]
    fn any_message_survives_the_way_to_bytes_and_back(message in message()) {
        let mut inner = GenlMessage::from_payload(message.clone());
        inner.set_resolved_family_id(32);
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), inner.into());
        packet.finalize();
        prop_assert_eq!(message_of(&bytes_of(&packet)), message);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize, message in message(),
    ) {
        let _outcome = (reads(&bytes), answers(&bytes));
        // A message with a hole, or cut short.
        let mut packet = NetlinkMessage::new(
            NetlinkHeader::default(), GenlMessage::from_payload(message).into(),
        );
        packet.finalize();
        let mut whole = bytes_of(&packet);
        if let Some(byte) = whole.get_mut(cut) {
            *byte = bytes.first().copied().unwrap_or(0);
        }
        let _outcome = (reads(&whole), answers(&whole));
        whole.truncate(cut);
        let _outcome = (reads(&whole), answers(&whole));
    }

    #[test]
    fn any_service_is_read_as_it_is_asked_for(
        v6: bool, mark in prop::option::of(1..u32::MAX), addr: std::net::Ipv6Addr, port: u16,
        scheduler in "[a-z]{1,15}", flags in 0..8_u32,
        persistence in prop::option::of((any::<u32>(), 1..=32_u8, prop::option::of("[a-z]{1,15}"))),
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let key = match mark {
            Some(mark) => ServiceKey::Fwmark(family, mark),
            None => ServiceKey::Addr(
                Protocol::Sctp, SocketAddr::new(InetAddr(addr.octets()).ip(family), port),
            ),
        };
        let attrs = ServiceAttrs {
            scheduler: Scheduler(scheduler),
            flags: ServiceFlags(flags << 2),
            persistence: persistence
                .map(|(timeout_s, prefix, engine)| Persistence { timeout_s, prefix, engine }),
        };
        let message = Message::with_service(Command::SetService, &key, &attrs);
        let (found, state) = message.service().unwrap().unwrap();
        prop_assert_eq!((found, state.attrs), (key, attrs));
    }
}
