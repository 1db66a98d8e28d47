use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::{
    DestAttrs, ForwardMethod, Persistence, Scheduler, ServiceAttrs, ServiceFlags, ServiceKey,
    Tunnel, TunnelType, Weight,
};

const VERSION: Version = Version {
    major: 1,
    minor: 2,
    patch: 1,
};

fn dest(weight: i64, forward: ForwardMethod) -> DestState {
    DestState {
        attrs: DestAttrs {
            weight: Weight::try_from(weight).unwrap(),
            forward,
            upper: 0,
            lower: 0,
            tunnel: Tunnel::default(),
        },
        active_connections: 0,
        inactive_connections: 0,
        persistent_connections: 0,
        counters: None,
    }
}

fn service(scheduler: &str, dests: &[(&str, DestState)]) -> ServiceState {
    let key = |at: &str| {
        let at: SocketAddr = at.parse().unwrap();
        DestKey {
            addr: at.ip(),
            port: at.port(),
        }
    };
    ServiceState {
        attrs: ServiceAttrs {
            scheduler: Scheduler(scheduler.to_owned()),
            flags: ServiceFlags(0),
            persistence: None,
        },
        stats: Stats::default(),
        dests: dests.iter().map(|(at, d)| (key(at), d.clone())).collect(),
    }
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn example() -> KernelTable {
    use ForwardMethod::{Dr, Nat, Tun};
    let mut busy = dest(10, Nat);
    busy.active_connections = 1234;
    busy.inactive_connections = 15;
    let stats = Stats {
        connections: 99_999_999,
        packets_in: 100_000_000,
        bytes_in: u64::MAX,
        bytes_out: 7,
        connection_rate: 321,
        ..Stats::default()
    };
    busy.counters = Some(Box::new(stats));
    let mut gue = dest(1, Tun);
    gue.attrs.tunnel = Tunnel {
        kind: TunnelType::Gue,
        port: 6080,
        flags: Tunnel::CHECKSUM,
    };
    let mut web = service(
        "wlc",
        &[
            ("198.51.100.1:8080", busy),
            ("198.51.100.20:80", dest(0, Dr)),
        ],
    );
    web.attrs.persistence = Some(Persistence {
        timeout_s: 300,
        prefix: 24,
        engine: None,
    });
    web.stats = stats;
    let mut dns = service("sh", &[("[2001:db8::11]:53", gue)]);
    dns.attrs.flags = ServiceFlags(ServiceFlags::ONE_PACKET | ServiceFlags::SCHED1);
    KernelTable::from([
        (key("tcp/192.0.2.1:80"), web),
        (key("udp/[2001:db8::1]:53"), dns),
        (key("fwmark/5"), service("rr", &[])),
    ])
}

#[test]
fn a_list_is_aligned_over_all_services() {
    let text = table(VERSION, 4096, &example(), View::Now, false);
    assert_eq!(
        text,
        "\
IPVS 1.2.1, 4096 buckets, 3 services, 3 destinations
SERVICE              WEIGHT  FORWARD            ACTIVE  INACTIVE  PERSISTENT
tcp/192.0.2.1:80  wlc  persistent 300s/24
  198.51.100.1:8080      10  nat                  1234        15           0
  198.51.100.20:80        0  dr                      0         0           0
udp/[2001:db8::1]:53  sh  one-packet  sh-fallback
  [2001:db8::11]:53       1  tun gue:6080+csum       0         0           0
fwmark/5  rr
  no destinations
"
    );
}

#[test]
fn thresholds_have_columns_where_there_is_one() {
    let mut all = example();
    let web = all.get_mut(&key("tcp/192.0.2.1:80")).unwrap();
    web.dests.values_mut().next().unwrap().attrs.upper = 123_456;
    let text = table(VERSION, 4096, &all, View::Now, false);
    assert!(
        text.contains(
            "
SERVICE              WEIGHT  FORWARD             UPPER  LOWER  ACTIVE  INACTIVE  PERSISTENT
tcp/192.0.2.1:80  wlc  persistent 300s/24
  198.51.100.1:8080      10  nat                123456      0    1234        15           0
"
        ),
        "{text}"
    );
}

#[test]
fn counters_stand_beside_services_too() {
    let text = table(VERSION, 4096, &example(), View::Totals, false);
    assert_eq!(
        text,
        "\
IPVS 1.2.1, 4096 buckets, 3 services, 3 destinations
SERVICE               CONNECTIONS  PACKETS-IN  PACKETS-OUT   BYTES-IN  BYTES-OUT
tcp/192.0.2.1:80         99999999     100000K            0  18446744T          7
  198.51.100.1:8080      99999999     100000K            0  18446744T          7
  198.51.100.20:80              0           0            0          0          0
udp/[2001:db8::1]:53            0           0            0          0          0
  [2001:db8::11]:53             0           0            0          0          0
fwmark/5                        0           0            0          0          0
"
    );
    let exact = table(VERSION, 4096, &example(), View::Totals, true);
    assert!(exact.contains("  18446744073709551615  "), "{exact}");
    let rates = table(VERSION, 4096, &example(), View::Rates, false);
    let line = rates.lines().nth(2).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words, ["tcp/192.0.2.1:80", "321", "0", "0", "0", "0"]);
}

#[test]
fn an_empty_table_is_one_line() {
    let text = table(VERSION, 4096, &BTreeMap::new(), View::Now, false);
    assert_eq!(
        text,
        "IPVS 1.2.1, 4096 buckets, 0 services, 0 destinations\n"
    );
}

proptest! {
    #[test]
    fn numbers_are_those_of_the_library(n: u64, width in 0_usize..100) {
        let mut out = String::new();
        number(&mut out, n, width);
        prop_assert_eq!(&out, &format!("{n:>width$}"));
        out.clear();
        number(&mut out, n, 0);
        prop_assert_eq!(out.len(), length(n));
    }

    #[test]
    fn addresses_are_those_of_the_library(addr: IpAddr, port: u16) {
        let mut out = String::new();
        address(&mut out, DestKey { addr, port });
        prop_assert_eq!(out, SocketAddr::new(addr, port).to_string());
    }

    /// Every line of counters is as long as its head: the columns are wide enough for any number.
    #[test]
    fn columns_hold_any_numbers(numbers in prop::collection::vec(any::<u64>(), 5), shift in 0_u32..64) {
        let mut d = dest(1, ForwardMethod::Dr);
        let at = |n: usize| numbers[n] >> shift;
        d.counters = Some(Box::new(Stats {
            connections: at(0),
            packets_in: at(1),
            packets_out: at(2),
            bytes_in: at(3),
            bytes_out: at(4),
            ..Stats::default()
        }));
        let mut all = KernelTable::from([(key("fwmark/1"), service("rr", &[
            ("198.51.100.1:80", d),
            ("198.51.100.2:80", dest(1, ForwardMethod::Dr)),
        ]))]);
        all.get_mut(&key("fwmark/1")).unwrap().stats.bytes_in = 99_999_999;
        for exact in [false, true] {
            let text = table(VERSION, 1, &all, View::Totals, exact);
            let lengths: Vec<_> = text.lines().skip(1).map(str::len).collect();
            prop_assert!(lengths.iter().all(|l| *l == lengths[0]), "{}", text);
        }
    }
}
