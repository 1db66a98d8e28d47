use std::net::SocketAddr;

use super::*;
use crate::{
    model::{
        DestKey, ForwardMethod, Persistence, Scheduler, Service, ServiceFlags, ServiceKey, Tunnel,
        TunnelType,
    },
    reconcile::plan,
};

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn service(scheduler: &str, dests: &[(&str, DestAttrs)]) -> Service {
    let at = |at: &str| {
        let at: SocketAddr = at.parse().unwrap();
        DestKey {
            addr: at.ip(),
            port: at.port(),
        }
    };
    Service {
        attrs: ServiceAttrs {
            scheduler: Scheduler(scheduler.to_owned()),
            flags: ServiceFlags(0),
            persistence: None,
        },
        dests: dests.iter().map(|(a, d)| (at(a), *d)).collect(),
    }
}

fn dest(weight: i64, forward: ForwardMethod) -> DestAttrs {
    DestAttrs {
        weight: Weight::try_from(weight).unwrap(),
        forward,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    }
}

#[test]
fn every_change_is_a_line_that_says_from_what_to_what() {
    use ForwardMethod::{Dr, Nat, Tun};
    let gone = service("rr", &[("198.51.100.9:80", dest(1, Nat))]);
    let from = Table::from([
        (
            key("tcp/192.0.2.1:80"),
            service(
                "rr",
                &[
                    ("198.51.100.1:80", dest(1, Nat)),
                    ("198.51.100.2:80", dest(5, Dr)),
                    ("198.51.100.3:80", dest(5, Dr)),
                ],
            ),
        ),
        (key("tcp/192.0.2.2:80"), gone),
        (key("fwmark/7"), service("rr", &[])),
    ]);
    let mut web = service(
        "sh",
        &[
            (
                "198.51.100.1:80",
                DestAttrs {
                    upper: 100,
                    tunnel: Tunnel {
                        kind: TunnelType::Gue,
                        port: 6080,
                        flags: Tunnel::CHECKSUM | Tunnel::REMOTE_CHECKSUM,
                    },
                    ..dest(2, Tun)
                },
            ),
            ("198.51.100.2:80", dest(4, Dr)),
            (
                "198.51.100.4:80",
                DestAttrs {
                    upper: 9,
                    lower: 5,
                    ..dest(1, Nat)
                },
            ),
        ],
    );
    web.attrs.flags = ServiceFlags(ServiceFlags::SCHED1 | ServiceFlags::SCHED2);
    web.attrs.persistence = Some(Persistence {
        timeout_s: 300,
        prefix: 32,
        engine: None,
    });
    let mut sip = service("rr", &[]);
    sip.attrs.flags = ServiceFlags(ServiceFlags::ONE_PACKET);
    sip.attrs.persistence = Some(Persistence {
        timeout_s: 60,
        prefix: 64,
        engine: Some("sip".to_owned()),
    });
    let to = Table::from([
        (key("tcp/192.0.2.1:80"), web),
        (key("udp/[2001:db8::1]:5060"), sip),
    ]);
    let text = lines(&plan::diff(&from, &to), &from);
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "~ tcp/192.0.2.1:80: scheduler rr -> sh, persistence none -> 300s, \
             flags none -> sh-fallback+sh-port",
            "~ 198.51.100.1:80 in tcp/192.0.2.1:80: forward nat -> tun gue:6080+csum+remcsum, \
             weight 1 -> 2, upper 0 -> 100",
            "+ 198.51.100.4:80 in tcp/192.0.2.1:80: nat, weight 1, upper 9, lower 5",
            "~ 198.51.100.2:80 in tcp/192.0.2.1:80: weight 5 -> 4",
            "- 198.51.100.3:80 in tcp/192.0.2.1:80",
            "- tcp/192.0.2.2:80 and its 1 destination",
            "+ udp/[2001:db8::1]:5060: rr, persistent 60s/64 by sip, one-packet",
            "- fwmark/7",
        ]
    );
    let tally: Tally = plan::diff(&from, &to).iter().collect();
    let wanted = Tally {
        added: 2,
        changed: 3,
        removed: 3,
    };
    assert_eq!((tally, tally.all()), (wanted, 8));
}
