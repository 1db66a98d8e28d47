//! What ipvsadm 1.31 wrote and read in front of Linux 6.1, mistakes, and any table there and back.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use proptest::{option, prelude::*, sample::select};

use super::*;
use crate::model::{
    DestAttrs, Family, ForwardMethod, Persistence, Scheduler, Service, ServiceAttrs, ServiceFlags,
    Tunnel, TunnelType, Weight,
};

/// A few names, and how often they were asked for.
#[derive(Default)]
struct Known {
    asked: Cell<usize>,
}

impl Names for Known {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        self.asked.set(self.asked.get() + 1);
        match name {
            "www" => Ok(vec![ip("192.0.2.1"), ip("2001:db8::1"), ip("192.0.2.1")]),
            "web2" => Ok(vec![ip("198.51.100.2"), ip("2001:db8:1::2")]),
            "many" => Ok(vec![ip("192.0.2.1"), ip("192.0.2.2")]),
            "six" => Ok(vec![ip("2001:db8::6")]),
            _ => Err("unknown host".to_owned()),
        }
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        match (name, protocol) {
            ("http", Protocol::Tcp) => Some(80),
            ("domain", Protocol::Tcp | Protocol::Udp) => Some(53),
            _ => None,
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn dest(text: &str) -> DestKey {
    let addr: SocketAddr = text.parse().unwrap();
    DestKey {
        addr: addr.ip(),
        port: addr.port(),
    }
}

fn read(text: &str) -> Saved {
    parse(Path::new("saved"), text, &Known::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn mistakes(text: &str) -> String {
    let found = parse(Path::new("saved"), text, &Known::default());
    found.map(|s| s.table).expect_err(text).to_string()
}

/// What `ipvsadm -Sn` printed of a table that has all it can print.
const SAVED: &str = include_str!("golden/saved.rules");

#[test]
fn what_ipvsadm_saves_is_read_and_written_alike() {
    let saved = read(SAVED);
    let table = &saved.table;
    let mut names: Vec<_> = table.keys().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "fwmark/7",
            "fwmark6/7",
            "sctp/10.0.0.1:9",
            "tcp/10.0.0.1:80",
            "tcp/[fd00::1]:80",
            "udp/10.0.0.1:5060",
            "udp/10.0.0.1:53",
        ]
    );
    let web = &table[&key("tcp/10.0.0.1:80")];
    assert_eq!(
        web.attrs,
        ServiceAttrs {
            scheduler: Scheduler("wrr".to_owned()),
            flags: ServiceFlags(0),
            persistence: Some(Persistence {
                timeout_s: 300,
                prefix: 24,
                engine: None,
            }),
        }
    );
    let tunnel = |kind, port, flags| Tunnel { kind, port, flags };
    let expected = [
        ("10.0.0.2:8080", ForwardMethod::Nat, 10, Tunnel::default()),
        ("10.0.0.3:80", ForwardMethod::Dr, 0, Tunnel::default()),
        ("10.0.0.4:80", ForwardMethod::Tun, 1, Tunnel::default()),
        (
            "10.0.0.5:80",
            ForwardMethod::Tun,
            1,
            tunnel(TunnelType::Gue, 6080, 0),
        ),
        (
            "10.0.0.6:80",
            ForwardMethod::Tun,
            1,
            tunnel(TunnelType::Gue, 6080, Tunnel::CHECKSUM),
        ),
        (
            "10.0.0.7:80",
            ForwardMethod::Tun,
            1,
            tunnel(TunnelType::Gue, 6080, Tunnel::REMOTE_CHECKSUM),
        ),
        (
            "10.0.0.8:80",
            ForwardMethod::Tun,
            1,
            tunnel(TunnelType::Gre, 0, Tunnel::CHECKSUM),
        ),
    ];
    let expected = expected.map(|(name, forward, weight, tunnel)| {
        let attrs = DestAttrs {
            weight: Weight::try_from(weight).unwrap(),
            forward,
            upper: 0,
            lower: 0,
            tunnel,
        };
        (dest(name), attrs)
    });
    assert_eq!(web.dests, expected.into());
    let six = &table[&key("tcp/[fd00::1]:80")];
    assert_eq!(six.attrs.persistence.as_ref().unwrap().prefix, 64);
    assert_eq!(
        six.attrs.flags.0,
        ServiceFlags::SCHED1 | ServiceFlags::SCHED2
    );
    let largest = six.dests[&dest("[fd00::2]:80")].weight;
    assert_eq!(largest.get(), i32::MAX.unsigned_abs());
    let dns = table[&key("udp/10.0.0.1:53")].attrs.flags.0;
    assert_eq!(dns, ServiceFlags::ONE_PACKET | ServiceFlags::SCHED2);
    let sip = table[&key("udp/10.0.0.1:5060")].attrs.persistence.clone();
    assert_eq!(sip.unwrap().engine.as_deref(), Some("sip"));
    let marked = table[&key("fwmark6/7")].attrs.persistence.clone();
    assert_eq!(marked.unwrap().prefix, 128);

    // The same lines come out, in the model's order.
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&write(table)), sorted(SAVED));
}

#[test]
fn lines_and_thresholds_are_remembered() {
    let saved = read(
        "# ipvsadm.rules\n\n-A -t 10.0.0.1:80\n\
         -a -t 10.0.0.1:80 -r 10.0.0.3 -x 4\n-a -t 10.0.0.1:80 -r 10.0.0.2\n",
    );
    let service = key("tcp/10.0.0.1:80");
    assert_eq!(saved.line_of(service, None), Some(3));
    assert_eq!(saved.line_of(service, Some(dest("10.0.0.3:80"))), Some(4));
    assert_eq!(saved.line_of(service, Some(dest("10.0.0.2:80"))), Some(5));
    assert_eq!(saved.line_of(service, Some(dest("10.0.0.4:80"))), None);
    assert_eq!(saved.line_of(key("udp/10.0.0.1:80"), None), None);
    assert!(saved.says_thresholds(service, dest("10.0.0.3:80")));
    assert!(!saved.says_thresholds(service, dest("10.0.0.2:80")));
    assert!(!saved.says_thresholds(service, dest("10.0.0.4:80")));
}

/// Each text is what `ipvsadm -R` took, beside what `-Sn` then printed.
#[test]
fn hand_written_lines_mean_what_ipvsadm_makes_of_them() {
    const SERVICE: &str = "-A -t 10.0.0.1:80 -s rr\n";
    for (text, same) in [
        ("-A -t 10.0.0.1:80", "-A -t 10.0.0.1:80 -s wlc"),
        ("-A -t=10.0.0.1:80 -srr", SERVICE),
        ("-At 10.0.0.1:80 --scheduler=rr", SERVICE),
        (
            "--add-service --tcp-service 10.0.0.1:80 --scheduler rr",
            SERVICE,
        ),
        (
            "ipvsadm -A ipvsadm -t\t10.0.0.1:80   -s rr \r\n\n \t\n",
            SERVICE,
        ),
        ("# first\n-A -t 10.0.0.1:80 -s rr\n#-A -t", SERVICE),
        (
            "-A -t 10.0.0.1:80 -s rr -p",
            "-A -t 10.0.0.1:80 -s rr -p 360",
        ),
        (
            "-A -t 10.0.0.1:80 -s rr -p -M 255.255.255.255",
            "-A -t 10.0.0.1:80 -s rr -p 360",
        ),
        (
            "-A -M 0.0.0.0 -t 10.0.0.1:80 -s rr --persistent=9",
            "-A -t 10.0.0.1:80 -s rr -p 9 -M 0.0.0.0",
        ),
        (
            "-A -t 10.0.0.1 -s rr -p9\n-a -t 10.0.0.1:0 -r 10.0.0.2",
            "-A -t 10.0.0.1:0 -s rr -p 9\n-a -t 10.0.0.1:0 -r 10.0.0.2:0 -g -w 1",
        ),
        ("-A -t fd00::1 -s rr -p=9", "-A -t [fd00::1]:0 -s rr -p 9"),
        (
            "-A -t 10.0.0.1:80 -b ,sh-port,,flag-3, -s sh",
            "-A -t 10.0.0.1:80 -s sh -b sh-port,flag-3",
        ),
        // So -S writes the flag that it has no word for.
        (
            "-A -t 10.0.0.1:80 -s sh -b \n-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 1",
            "-A -t 10.0.0.1:80 -s sh -b flag-3\n-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 1",
        ),
        (
            "-A -u 10.0.0.1:80 -s mh -o -b",
            "-A -u 10.0.0.1:80 -s mh -o -b flag-3",
        ),
        (
            "-A -f 4294967295 -s rr\n-a -f 4294967295 -r 10.0.0.2\n-a -f 4294967295 -r 10.0.0.2:80",
            "-A -f 4294967295 -s rr\n-a -f 4294967295 -r 10.0.0.2:0 -g -w 1\n\
             -a -f 4294967295 -r 10.0.0.2:80 -g -w 1",
        ),
        (
            "-A -f 1 -6 -6 -s rr\n-a --fwmark-service=1 --ipv6 -r fd00::2 -m",
            "-A -f 1 -6 -s rr\n-a -f 1 -6 -r [fd00::2]:0 -m -w 1",
        ),
        (
            "-A -t 10.0.0.1:80 -s rr\n-a -r 10.0.0.2:81 -mw=+7 -t 10.0.0.1:80 -x 5 --l-threshold=3",
            "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.0.2:81 -m -w 7 -x 5 -y 3",
        ),
        (
            "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.0.2 -m",
            "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 1",
        ),
        (
            "-A -t 10.0.0.1:80 -s rr\n--add-server -t 10.0.0.1:80 --real-server=[fd00::2]:80 --tun-type=gre --ipip",
            "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r [fd00::2]:80 -i -w 1 --tun-type gre --tun-nocsum",
        ),
    ] {
        assert_eq!(read(text).table, read(same).table, "{text}");
        assert_eq!(write(&read(text).table).trim_end(), same.trim_end());
    }
}

#[test]
fn a_mark_that_ipvsadm_prints_as_a_negative_number_is_the_one_with_its_bits() {
    let table = read("-A -f -1 -s rr\n-A -f -2147483648 -6 -s rr\n").table;
    let keys: Vec<_> = table.keys().map(ToString::to_string).collect();
    assert_eq!(keys, ["fwmark/4294967295", "fwmark6/2147483648"]);
}

#[test]
fn names_are_looked_up_once() {
    let names = Known::default();
    let mut text =
        "-A -t www:http -s rr\n-A -u www:domain -s rr\n-A -t [six]:http -s rr\n".to_owned();
    for port in 1..50 {
        text += &format!("-a -t www:http -r web2:{port} -m -w 1\n");
    }
    text += "-a -t [six]:http -r [web2]:http -g -w 1\n";
    let saved = parse(Path::new("saved"), &text, &names).unwrap();
    assert_eq!(names.asked.get(), 3, "www, six, web2");
    let table = &saved.table;
    assert!(table.contains_key(&key("udp/192.0.2.1:53")));
    assert_eq!(table[&key("tcp/192.0.2.1:80")].dests.len(), 49);
    let six = &table[&key("tcp/[2001:db8::6]:80")];
    assert!(six.dests.contains_key(&dest("[2001:db8:1::2]:80")));
}

#[test]
fn each_mistake_is_named_at_its_place() {
    let found = mistakes(include_str!("golden/mistakes.rules"));
    assert_eq!(found, include_str!("golden/mistakes.stderr").trim_end());
}

#[test]
fn a_destination_follows_its_service() {
    let text = "-a -t 10.0.0.1:80 -r 10.0.0.2\n-A -t 10.0.0.1:80\n\
                -a -f 1 -r 10.0.0.2\n-A -f 1 -6\n-a -u 10.0.0.9:80 -r 10.0.0.2\n";
    assert_eq!(
        mistakes(text),
        "saved:1:22: no line before this one adds tcp/10.0.0.1:80 (-A)\n\
         saved:3:12: no line before this one adds fwmark/1 (-A)\n\
         saved:5:22: no line before this one adds udp/10.0.0.9:80 (-A)"
    );
    // Whether some line adds it is not known where one could not be read.
    let text = "-A -t nowhere:80\n-a -t 10.0.0.1:80 -r 10.0.0.2\n";
    assert_eq!(mistakes(text).lines().count(), 1);
}

#[test]
fn a_file_that_is_none_ends_after_a_hundred_mistakes() {
    let found = mistakes(&"no such table\n".repeat(10_000));
    assert_eq!(found.lines().count(), 101);
    let last = found.lines().last().unwrap();
    assert_eq!(
        last,
        "saved:101:1: too many mistakes: what follows was not read"
    );
}

#[test]
fn what_ipvsadm_cannot_say_is_left_out_or_said_as_it_does() {
    let mut table = read(
        "-A -t 10.0.0.1:80 -s sh\n-a -t 10.0.0.1:80 -r 10.0.0.2\n\
        -a -t 10.0.0.1:80 -r 10.0.0.3\n-a -t 10.0.0.1:80 -r 10.0.0.4 -i --tun-type gre\n",
    )
    .table;
    let service = table.values_mut().next().unwrap();
    service.attrs.flags.0 = ServiceFlags::SCHED3;
    let method = |dest: &mut DestAttrs, forward| dest.forward = forward;
    method(
        service.dests.get_mut(&dest("10.0.0.2:80")).unwrap(),
        ForwardMethod::Bypass,
    );
    method(
        service.dests.get_mut(&dest("10.0.0.3:80")).unwrap(),
        ForwardMethod::Local,
    );
    let tunnel = service.dests.get_mut(&dest("10.0.0.4:80")).unwrap();
    tunnel.tunnel.flags = u16::MAX;
    tunnel.tunnel.port = 1;
    assert_eq!(
        write(&table),
        "-A -t 10.0.0.1:80 -s sh -b flag-3\n-a -t 10.0.0.1:80 -r 10.0.0.3:80 -g -w 1\n\
         -a -t 10.0.0.1:80 -r 10.0.0.4:80 -i -w 1 --tun-type gre --tun-csum\n"
    );
    assert_eq!(
        lost(&table),
        [
            "10.0.0.2:80 in tcp/10.0.0.1:80: not in the file: ipvsadm has no word for forwarding method bypass",
            "10.0.0.3:80 in tcp/10.0.0.1:80: otherwise in the file: -g stands for forwarding method local",
            "10.0.0.4:80 in tcp/10.0.0.1:80: otherwise in the file: what its tunnel makes no use of is left out",
        ]
    );
}

fn lost(table: &Table) -> Vec<String> {
    let losses = losses(table, &write(table));
    losses.iter().map(ToString::to_string).collect()
}

#[test]
fn what_will_not_be_read_back_is_told() {
    let good = "-A -t 10.0.0.1:80 -s rr\n\
        -a -t 10.0.0.1:80 -r 10.0.0.2 -g -x 9 -y 9\n-a -t 10.0.0.1:80 -r 10.0.0.3:81 -m\n\
        -a -t 10.0.0.1:80 -r 10.0.0.4 -i --tun-type gue --tun-port 7\n\
        -A -t 10.0.0.2:80 -s rr -p 9\n-A -t 10.0.0.3:0 -s rr -p 9\n-A -t 10.0.0.4:80 -s rr\n\
        -a -t 10.0.0.4:80 -r 10.0.0.2 -g\n";
    let mut table = read(good).table;
    assert_eq!(lost(&table), Vec::<String>::new());

    let web = table.get_mut(&key("tcp/10.0.0.1:80")).unwrap();
    let to = |web: &mut Service, name, change: fn(&mut DestAttrs)| {
        change(web.dests.get_mut(&dest(name)).unwrap());
    };
    to(web, "10.0.0.2:80", |d| d.upper = u32::MAX);
    to(web, "10.0.0.3:81", |d| d.forward = ForwardMethod::Dr);
    to(web, "10.0.0.4:80", |d| d.tunnel.flags = 3);
    let two = table.get_mut(&key("tcp/10.0.0.2:80")).unwrap();
    two.attrs.persistence.as_mut().unwrap().timeout_s = 2_678_401;
    let three = table.get_mut(&key("tcp/10.0.0.3:0")).unwrap();
    three.attrs.persistence = None;
    let four = table.get_mut(&key("tcp/10.0.0.4:80")).unwrap();
    four.attrs.flags = ServiceFlags(ServiceFlags::ONE_PACKET);
    assert_eq!(
        lost(&table),
        [
            "10.0.0.2:80 in tcp/10.0.0.1:80: will not be read back: -x is 0 to 2147483647, not \"4294967295\"",
            "10.0.0.3:81 in tcp/10.0.0.1:80: will not be read back: port 81 is not the service's, 80: only -m translates ports",
            "10.0.0.4:80 in tcp/10.0.0.1:80: will not be read back: --tun-remcsum contradicts --tun-csum on this line: keep one",
            "tcp/10.0.0.2:80: will not be read back: -p is 1 to 2678400, not \"2678401\"",
            "tcp/10.0.0.3:0: will not be read back: port 0 stands for all ports: that needs -p",
            "tcp/10.0.0.4:80: will not be read back: -o is for UDP services: ipvsadm refuses others",
        ]
    );
}

fn addr(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<Ipv4Addr>().prop_map(IpAddr::V4).boxed(),
        Family::V6 => any::<Ipv6Addr>().prop_map(IpAddr::V6).boxed(),
    }
}

fn family() -> impl Strategy<Value = Family> {
    select(vec![Family::V4, Family::V6])
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let by_addr = (protocol, family().prop_flat_map(addr), any::<u16>());
    prop_oneof![
        by_addr.prop_map(|(p, a, port)| ServiceKey::Addr(p, SocketAddr::new(a, port))),
        (family(), 1..=u32::MAX).prop_map(|(f, m)| ServiceKey::Fwmark(f, m)),
    ]
}

fn attrs(key: ServiceKey) -> impl Strategy<Value = ServiceAttrs> {
    let prefix = match key.family() {
        Family::V4 => 0..=32_u8,
        Family::V6 => 1..=128,
    };
    let engine = option::of(Just("sip".to_owned()));
    let persistence =
        (1..=2_678_400_u32, prefix, engine).prop_map(|(timeout_s, prefix, engine)| Persistence {
            timeout_s,
            prefix,
            engine,
        });
    let all_ports = matches!(key, ServiceKey::Addr(_, a) if a.port() == 0);
    let persistence = option::weighted(if all_ports { 1.0 } else { 0.5 }, persistence);
    let one_packet = match key {
        ServiceKey::Addr(Protocol::Tcp | Protocol::Sctp, _) => 0,
        _ => ServiceFlags::ONE_PACKET,
    };
    let settable = ServiceFlags::SETTABLE & !ServiceFlags::ONE_PACKET | one_packet;
    (select(Scheduler::KNOWN.to_vec()), any::<u32>(), persistence).prop_map(
        move |(scheduler, flags, persistence)| ServiceAttrs {
            scheduler: Scheduler(scheduler.to_owned()),
            flags: ServiceFlags(flags & settable),
            persistence,
        },
    )
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    let tunnel = |kind, port, flags| Tunnel { kind, port, flags };
    prop_oneof![
        Just(Tunnel::default()),
        (1..=u16::MAX, 0..=2_u16).prop_map(move |(p, f)| tunnel(TunnelType::Gue, p, f)),
        (0..=1_u16).prop_map(move |f| tunnel(TunnelType::Gre, 0, f)),
    ]
}

fn destination(key: ServiceKey) -> impl Strategy<Value = (DestKey, DestAttrs)> {
    let forward = select(vec![
        ForwardMethod::Nat,
        ForwardMethod::Dr,
        ForwardMethod::Tun,
    ]);
    let upper = prop_oneof![Just(0), 0..=i32::MAX.unsigned_abs()];
    let thresholds = upper.prop_flat_map(|upper| (Just(upper), 0..=upper));
    let numbers = (0..=i32::MAX, thresholds, any::<u16>());
    let anywhere = family().prop_flat_map(addr);
    (forward, addr(key.family()), anywhere, numbers, tunnel()).prop_map(
        move |(forward, near, far, (weight, (upper, lower), port), tunnel)| {
            let is_tunnel = forward == ForwardMethod::Tun;
            let port = match key {
                ServiceKey::Addr(_, a) if forward != ForwardMethod::Nat => a.port(),
                _ => port,
            };
            let dest = DestKey {
                addr: if is_tunnel { far } else { near },
                port,
            };
            let attrs = DestAttrs {
                weight: Weight::try_from(i64::from(weight)).unwrap(),
                forward,
                upper,
                lower,
                tunnel: if is_tunnel { tunnel } else { Tunnel::default() },
            };
            (dest, attrs)
        },
    )
}

fn service() -> impl Strategy<Value = (ServiceKey, Service)> {
    service_key().prop_flat_map(|key| {
        let dests = prop::collection::vec(destination(key), 0..6);
        (attrs(key), dests).prop_map(move |(attrs, dests)| {
            let dests = dests.into_iter().collect();
            (key, Service { attrs, dests })
        })
    })
}

proptest! {
    #[test]
    fn any_table_is_read_as_it_was_written(
        table in prop::collection::vec(service(), 0..8)
    ) {
        let table: Table = table.into_iter().collect();
        let text = write(&table);
        let saved = parse(Path::new("saved"), &text, &Known::default());
        let saved = saved.unwrap_or_else(|e| panic!("{text}{e}"));
        prop_assert_eq!(&saved.table, &table);
        for (service, s) in &table {
            let line = saved.line_of(*service, None).unwrap();
            prop_assert!(text.lines().nth(line - 1).unwrap().starts_with("-A"));
            for (dest, attrs) in &s.dests {
                let line = saved.line_of(*service, Some(*dest)).unwrap();
                let line = text.lines().nth(line - 1).unwrap();
                let at = format!(" -r {dest} ");
                prop_assert!(line.contains(&at));
                let says = (attrs.upper, attrs.lower) != (0, 0);
                prop_assert_eq!(saved.says_thresholds(*service, *dest), says);
            }
        }
        prop_assert_eq!(losses(&table, &text), []);
    }

    #[test]
    fn any_words_are_read_or_refused(
        words in prop::collection::vec(
            select(vec![
                "-A", "-a", "-t", "-u", "-f", "10.0.0.1:80", "10.0.0.1", "[fd00::1]:80", "[", "]:",
                "[]:", ":", "www:http", "-r", "-s", "rr", "-p", "-M", "-6", "7", "-1", "\n", "\n-A",
                "\n-a", "-w", "--", "-", "--=", "--weight=", "-w=", "é", "-é", "#", "-i", "--tun-type",
                "gue", "\r", "\0",
            ]),
            0..60,
        )
    ) {
        let text = words.join(" ");
        if let Err(mistakes) = parse(Path::new("saved"), &text, &Known::default()) {
            prop_assert!(!mistakes.to_string().is_empty());
        }
    }
}
