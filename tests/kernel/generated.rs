//! A generated set of services that covers every attribute, both ways between the client and ipvsadm,
//! and the difference of generated tables applied to the kernel.
//!
//! What the kernel takes, and so what is generated (net/netfilter/ipvs/ip_vs_ctl.c, Linux 6.1):
//! - `ip_vs_add_dest`: lower <= upper (else `ERANGE`), upper <= `INT_MAX`, a gue tunnel has a port;
//!   `lower` 0 is kept as it is, three quarters of `upper` are reckoned beside it
//! - `ip_vs_genl_set_cmd`: another family than the service's for tunnels alone, and while no sync
//!   daemon runs
//! - `ip_vs_new_dest`: an IPv4 address must be unicast or local, an IPv6 address unicast; whether it
//!   is local changes nothing (`__ip_vs_update_dest` keeps the method that was asked for)
//! - `ip_vs_add_service`: netmask and timeout are kept without persistence too, but mean nothing; the
//!   timeout is kept in ticks of 32 bits
//!
//! What ipvsadm 1.31 takes and prints is less: a DR or TUN destination has its service's port, one
//! packet is for UDP and marks, timeouts go from 1 s to 31 days, `sh` and `mh` have two flags, marks are
//! printed as signed, local destinations as DR, and -S holds no thresholds.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    time::Instant,
};

use understudy::{
    ipvs::Ipvs,
    model::{
        DestAttrs, DestKey, Family, ForwardMethod, KernelTable, Persistence, Protocol, Scheduler,
        Service, ServiceAttrs, ServiceFlags, ServiceKey, Step, SyncDaemon, SyncRole, Table,
        Timeouts, Tunnel, TunnelType, Weight,
    },
    reconcile::plan::diff,
};

use crate::{
    ipvs::{READINGS, dest, flagged, in_namespace, ip, ipvsadm, key, server, service},
    lab::show,
};

const SEED: u64 = 0x1b50_2024;
/// Linux's, but for `twos`, which Debian does not build.
const SCHEDULERS: usize = 13;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    fn within(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high - low) + 1;
        low + u32::try_from(self.next() % span).unwrap()
    }

    fn port(&mut self) -> u16 {
        self.within(1, 65535).try_into().unwrap()
    }

    fn chance(&mut self, in_: u32) -> bool {
        self.within(1, in_) == 1
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.next() % u64::try_from(list.len()).unwrap()).unwrap()]
    }

    /// A number to `i32::MAX`, often at an end or small.
    fn number(&mut self) -> u32 {
        match self.within(0, 3) {
            0 => 0,
            1 => i32::MAX.unsigned_abs(),
            2 => self.within(1, 1000),
            _ => self.within(0, i32::MAX.unsigned_abs()),
        }
    }

    fn persistence(&mut self, family: Family, engine: bool) -> Persistence {
        let longest: u8 = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let timeouts = [1, 300, 31 * 86400, self.within(1, 31 * 86400)];
        let prefixes = [
            1,
            longest,
            self.within(1, longest.into()).try_into().unwrap(),
        ];
        Persistence {
            timeout_s: self.of(&timeouts),
            prefix: self.of(&prefixes),
            engine: engine.then(|| "sip".to_owned()),
        }
    }

    fn tunnel(&mut self) -> Tunnel {
        let kinds = [TunnelType::Ipip, TunnelType::Gue, TunnelType::Gre];
        let kind = self.of(&kinds);
        let (port, flags) = match kind {
            TunnelType::Ipip => (0, 0),
            TunnelType::Gue => (self.port(), self.within(0, 2)),
            TunnelType::Gre => (0, self.within(0, 1)),
        };
        Tunnel {
            kind,
            port,
            flags: flags.try_into().unwrap(),
        }
    }

    /// The n-th destination of a service.
    fn dest(&mut self, key: &ServiceKey, n: u8) -> (DestKey, DestAttrs) {
        let forwards = [ForwardMethod::Nat, ForwardMethod::Dr, ForwardMethod::Tun];
        let forward = self.of(&forwards);
        let other = forward == ForwardMethod::Tun && self.chance(3);
        let addr: IpAddr = if (key.family() == Family::V4) == other {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n.into()).into()
        } else {
            Ipv4Addr::new(198, 51, 100, n).into()
        };
        let port = match (key, forward) {
            (ServiceKey::Addr(_, addr), ForwardMethod::Dr | ForwardMethod::Tun) => addr.port(),
            (ServiceKey::Addr(..), _) => self.port(),
            (ServiceKey::Fwmark(..), _) if self.chance(2) => 0,
            (ServiceKey::Fwmark(..), _) => self.port(),
        };
        let upper = self.number();
        let lowers = [0, upper, self.within(0, upper)];
        let attrs = DestAttrs {
            weight: Weight::try_from(i64::from(self.number())).unwrap(),
            forward,
            upper,
            lower: self.of(&lowers),
            tunnel: match forward {
                ForwardMethod::Tun => self.tunnel(),
                _ => Tunnel::default(),
            },
        };
        (DestKey { addr, port }, attrs)
    }

    fn dests(&mut self, key: &ServiceKey, most: u8) -> BTreeMap<DestKey, DestAttrs> {
        let count = self.within(0, most.into()).try_into().unwrap();
        (1..=count).map(|n| self.dest(key, n)).collect()
    }

    /// What a service of this kind may have, by number of its variant.
    fn attrs(&mut self, key: &ServiceKey, scheduler: &str, variant: u32) -> ServiceAttrs {
        let mut attrs = service(scheduler);
        let udp = matches!(key, ServiceKey::Addr(Protocol::Udp, _));
        if variant >= 3 {
            attrs.persistence = Some(self.persistence(key.family(), udp && variant == 4));
        }
        let mut flags = match variant {
            1 => ServiceFlags::SCHED1,
            2 => ServiceFlags::SCHED2,
            4 => ServiceFlags::SCHED1 | ServiceFlags::SCHED2,
            _ => 0,
        };
        if variant != 0 && !["sh", "mh"].contains(&scheduler) && self.chance(2) {
            flags |= ServiceFlags::SCHED3;
        }
        if (udp || matches!(key, ServiceKey::Fwmark(..))) && self.chance(2) {
            flags |= ServiceFlags::ONE_PACKET;
        }
        attrs.flags = ServiceFlags(flags);
        attrs
    }
}

/// A service's key of each kind: the number makes it that one and no other.
fn key_of(kind: usize, family: Family, number: u16, random: &mut Random) -> ServiceKey {
    let [high, low] = number.to_be_bytes();
    let addr: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2 + high, low).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into(),
    };
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    match protocols.get(kind) {
        Some(protocol) => ServiceKey::Addr(*protocol, SocketAddr::new(addr, random.port())),
        // The low bits keep marks apart.
        None => ServiceKey::Fwmark(
            family,
            (random.number() & 0x7fff_0000) | u32::from(number + 1),
        ),
    }
}

/// Every kind of service with every scheduler in five variants.
fn generated(random: &mut Random) -> Table {
    let mut table = Table::new();
    let mut number = 0;
    for scheduler in &Scheduler::KNOWN[..SCHEDULERS] {
        for kind in 0..4 {
            for family in [Family::V4, Family::V6] {
                for variant in 0..5 {
                    number += 1;
                    let key = key_of(kind, family, number, random);
                    let attrs = random.attrs(&key, scheduler, variant);
                    let dests = random.dests(&key, 20);
                    table.insert(key, Service { attrs, dests });
                }
            }
        }
    }
    table
}

/// That all of the vocabulary is in it.
fn covers(table: &Table) {
    assert!(table.len() >= 500, "{} services", table.len());
    let dests = || table.values().flat_map(|s| &s.dests);
    let all = [
        dests().any(|(_, d)| d.weight.get() == i32::MAX.unsigned_abs()),
        dests().any(|(_, d)| d.weight == Weight::QUIESCED),
        dests().any(|(_, d)| d.upper == i32::MAX.unsigned_abs() && d.lower == d.upper),
        dests().any(|(_, d)| d.upper > 0 && d.lower == 0),
        dests().any(|(_, d)| d.tunnel.kind == TunnelType::Gue && d.tunnel.flags == 2),
        dests().any(|(_, d)| d.tunnel.kind == TunnelType::Gre && d.tunnel.flags == 1),
        table.values().any(|s| s.dests.len() == 20),
        table.values().any(|s| s.dests.is_empty()),
        table
            .iter()
            .any(|(k, s)| k.family() == Family::V6 && s.dests.keys().any(|d| d.addr.is_ipv4())),
        table
            .iter()
            .any(|(k, s)| k.family() == Family::V4 && s.dests.keys().any(|d| d.addr.is_ipv6())),
    ];
    assert_eq!(all, [true; 10]);
    let prefixes: BTreeSet<_> = table
        .iter()
        .filter_map(|(k, s)| Some((k.family(), s.attrs.persistence.as_ref()?.prefix)))
        .collect();
    for end in [
        (Family::V4, 1),
        (Family::V4, 32),
        (Family::V6, 1),
        (Family::V6, 128),
    ] {
        assert!(prefixes.contains(&end), "{end:?}");
    }
}

/// The steps that make a table out of nothing, each destination after its service.
fn building(table: &Table) -> Vec<Step> {
    let mut steps = Vec::new();
    for (key, service) in table {
        steps.push(Step::NewService(*key, service.attrs.clone()));
        let dests = service.dests.iter();
        steps.extend(dests.map(|(dest, attrs)| Step::NewDest(*key, *dest, *attrs)));
    }
    steps
}

/// A service's name as ipvsadm's options say it.
fn option(key: &ServiceKey) -> String {
    match key {
        ServiceKey::Addr(Protocol::Tcp, addr) => format!("-t {addr}"),
        ServiceKey::Addr(Protocol::Udp, addr) => format!("-u {addr}"),
        ServiceKey::Addr(Protocol::Sctp, addr) => format!("--sctp-service {addr}"),
        ServiceKey::Fwmark(Family::V4, mark) => format!("-f {mark}"),
        ServiceKey::Fwmark(Family::V6, mark) => format!("-f {mark} -6"),
    }
}

/// The same as its lists say it.
fn name(key: &ServiceKey) -> String {
    match key {
        ServiceKey::Addr(Protocol::Tcp, addr) => format!("TCP {addr}"),
        ServiceKey::Addr(Protocol::Udp, addr) => format!("UDP {addr}"),
        ServiceKey::Addr(Protocol::Sctp, addr) => format!("SCTP {addr}"),
        ServiceKey::Fwmark(Family::V4, mark) => format!("FWM {mark}"),
        ServiceKey::Fwmark(Family::V6, mark) => format!("FWM {mark} IPv6"),
    }
}

fn rule_of_service(key: &ServiceKey, attrs: &ServiceAttrs) -> String {
    let mut line = format!("-A {} -s {}", option(key), attrs.scheduler);
    if let Some(persistence) = &attrs.persistence {
        line += &format!(" -p {}", persistence.timeout_s);
        match (key.family(), persistence.prefix) {
            (Family::V4, 32) | (Family::V6, 128) => {}
            (Family::V4, prefix) => {
                let mask = Ipv4Addr::from(u32::MAX << (32 - u32::from(prefix)));
                line += &format!(" -M {mask}");
            }
            (Family::V6, prefix) => line += &format!(" -M {prefix}"),
        }
        if let Some(engine) = &persistence.engine {
            line += &format!(" --pe {engine}");
        }
    }
    if attrs.flags.0 & ServiceFlags::ONE_PACKET != 0 {
        line += " -o";
    }
    let words = match attrs.scheduler.0.as_str() {
        "sh" => ["sh-fallback", "sh-port", ""],
        "mh" => ["mh-fallback", "mh-port", ""],
        _ => ["flag-1", "flag-2", "flag-3"],
    };
    let bits = [
        ServiceFlags::SCHED1,
        ServiceFlags::SCHED2,
        ServiceFlags::SCHED3,
    ];
    let set: Vec<_> = std::iter::zip(bits, words)
        .filter(|(bit, _)| attrs.flags.0 & bit != 0)
        .map(|(_, word)| word)
        .collect();
    if !set.is_empty() {
        line += &format!(" -b {}", set.join(","));
    }
    line
}

fn rule_of_dest(key: &ServiceKey, dest: &DestKey, attrs: &DestAttrs) -> String {
    let method = match attrs.forward {
        ForwardMethod::Nat => "-m",
        ForwardMethod::Tun => "-i",
        _ => "-g",
    };
    let mut line = format!(
        "-a {} -r {dest} {method} -w {}",
        option(key),
        attrs.weight.get()
    );
    if attrs.forward == ForwardMethod::Tun {
        let checksum = ["--tun-nocsum", "--tun-csum", "--tun-remcsum"];
        let checksum = checksum[usize::from(attrs.tunnel.flags)];
        line += &match attrs.tunnel.kind {
            TunnelType::Ipip => " --tun-type ipip".to_owned(),
            TunnelType::Gue => {
                format!(
                    " --tun-type gue --tun-port {} {checksum}",
                    attrs.tunnel.port
                )
            }
            TunnelType::Gre => format!(" --tun-type gre {checksum}"),
        };
    }
    line
}

/// What `ipvsadm -Sn` prints of a table.
fn rules(table: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, service) in table {
        lines.push(rule_of_service(key, &service.attrs));
        let dests = service.dests.iter();
        lines.extend(dests.map(|(dest, attrs)| rule_of_dest(key, dest, attrs)));
    }
    lines
}

/// What makes a table with `ipvsadm -R`: the rules in order, thresholds with them.
fn script(table: &Table) -> String {
    let mut lines = String::new();
    for (key, service) in table {
        lines += &format!("{}\n", rule_of_service(key, &service.attrs));
        for (dest, attrs) in &service.dests {
            let thresholds = format!("-x {} -y {}", attrs.upper, attrs.lower);
            lines += &format!("{} {thresholds}\n", rule_of_dest(key, dest, attrs));
        }
    }
    lines
}

/// A list of ipvsadm's: service, destination and the first `columns` words behind it.
fn list(arguments: &str, columns: usize) -> Vec<String> {
    let mut service = String::new();
    let mut found = Vec::new();
    // Three lines are headings.
    let lines = ipvsadm(arguments);
    for line in lines.iter().skip(3) {
        let words: Vec<_> = line.split_whitespace().collect();
        if words[0] == "->" {
            found.push(format!("{service} {}", words[1..2 + columns].join(" ")));
        } else {
            let v6 = words.get(2) == Some(&"IPv6");
            service = words[..if v6 { 3 } else { 2 }].join(" ");
        }
    }
    found
}

fn as_list(table: &Table, columns: impl Fn(&DestAttrs) -> String) -> Vec<String> {
    table
        .iter()
        .flat_map(|(key, service)| service.dests.iter().map(move |(d, a)| (key, d, a)))
        .map(|(key, dest, attrs)| format!("{} {dest} {}", name(key), columns(attrs)))
        .collect()
}

fn tunnel_column(attrs: &DestAttrs) -> String {
    let checksum = ["-c", "+c", "r+c"].get(usize::from(attrs.tunnel.flags));
    let checksum = checksum.copied().unwrap_or_default();
    let (method, tunnel) = match (attrs.forward, attrs.tunnel.kind) {
        (ForwardMethod::Tun, TunnelType::Ipip) => ("Tunnel", "ipip".to_owned()),
        (ForwardMethod::Tun, TunnelType::Gue) => {
            ("Tunnel", format!("gue:{}:{checksum}", attrs.tunnel.port))
        }
        (ForwardMethod::Tun, TunnelType::Gre) => ("Tunnel", format!("gre:{checksum}")),
        (ForwardMethod::Nat, _) => ("Masq", "n/a".to_owned()),
        (ForwardMethod::Local, _) => ("Local", "n/a".to_owned()),
        _ => ("Route", "n/a".to_owned()),
    };
    format!("{method} {tunnel} {}", attrs.weight.get())
}

/// Asks until it is right, at most [`READINGS`] times.
fn reread(mut ask: impl FnMut() -> Result<(), String>) {
    let mut wrong = String::new();
    for _ in 0..READINGS {
        match ask() {
            Ok(()) => return,
            Err(error) => wrong = error,
        }
    }
    panic!("{wrong}");
}

/// What ipvsadm prints is this table.
fn printed(table: &Table) {
    reread(|| same_lines("-Sn", ipvsadm("-Sn"), rules(table)));
    let thresholds = as_list(table, |attrs| format!("{} {}", attrs.upper, attrs.lower));
    let list_thresholds = || list("-Ln --thresholds", 2);
    reread(|| same_lines("thresholds", list_thresholds(), thresholds.clone()));
    let tunnels = as_list(table, tunnel_column);
    reread(|| same_lines("tunnels", list("-Ln --tun-info", 3), tunnels.clone()));
}

/// Says which lines differ: there are thousands.
fn same_lines(what: &str, mut found: Vec<String>, mut wanted: Vec<String>) -> Result<(), String> {
    found.sort();
    wanted.sort();
    if found == wanted {
        return Ok(());
    }
    let [have, want]: [BTreeSet<_>; 2] = [&found, &wanted].map(|lines| lines.iter().collect());
    let missing: Vec<_> = want.difference(&have).take(5).collect();
    let too_many: Vec<_> = have.difference(&want).take(5).collect();
    Err(format!(
        "{what}: {} lines, not {}; missing {missing:#?}, too many {too_many:#?}",
        found.len(),
        wanted.len(),
    ))
}

/// What the client reads is this table: the difference says what is not.
async fn read(ipvs: &mut Ipvs, wanted: &Table) {
    let mut steps = Vec::new();
    for _ in 0..READINGS {
        let table = plain(&ipvs.table().await.unwrap());
        if table == *wanted {
            return;
        }
        steps = diff(&table, wanted);
    }
    panic!(
        "{} differ: {:#?}",
        steps.len(),
        &steps[..steps.len().min(5)]
    );
}

fn plain(table: &KernelTable) -> Table {
    table.iter().map(|(k, s)| (*k, s.plain())).collect()
}

/// Makes these changes in one call.
async fn apply_all(ipvs: &mut Ipvs, steps: &[Step]) {
    let results = ipvs.apply(steps).await;
    assert_eq!(results.len(), steps.len());
    for (step, result) in steps.iter().zip(results) {
        result.unwrap_or_else(|error| panic!("{step}: {error:?}"));
    }
}

fn restore(script: &str) {
    let mut child = Command::new("ipvsadm")
        .arg("-R")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    // It ends with the last line's result, and says what it did not take.
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn five_hundred_services_are_the_same_to_ipvsadm_both_ways() {
    in_namespace(async || {
        let table = generated(&mut Random(SEED));
        covers(&table);
        let (steps, script) = (building(&table), script(&table));
        let mut ipvs = Ipvs::connect().await.unwrap();
        let (mut start, mut told) = (Instant::now(), Vec::new());
        let mut lap = |what: &str| {
            told.push(format!("{what} {} ms", start.elapsed().as_millis()));
            start = Instant::now();
        };
        apply_all(&mut ipvs, &steps).await;
        lap("written by us");
        read(&mut ipvs, &table).await;
        lap("read by us");
        printed(&table);
        lap("printed thrice by ipvsadm");
        ipvs.flush().await.unwrap();
        assert_eq!(ipvs.table().await.unwrap(), KernelTable::new());
        restore(&script);
        lap("written by ipvsadm");
        read(&mut ipvs, &table).await;
        show(&format!(
            "{} services, {} destinations, seed {SEED:#x}: {}",
            table.len(),
            steps.len() - table.len(),
            told.join(", ")
        ));
    });
}

/// What ipvsadm cannot set, or prints as something else; what we write is what we read.
#[test]
fn what_ipvsadm_has_no_word_for_is_read_as_written() {
    use ForwardMethod::{Bypass, Dr, Local, Nat};
    in_namespace(async || {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let all = ServiceFlags::SETTABLE;
        let zero = Persistence {
            timeout_s: 0,
            prefix: 24,
            engine: None,
        };
        let forever = Persistence {
            // In ticks, of which Debian's kernel has 250 a second, the most that 32 bits hold.
            timeout_s: u32::MAX / 250,
            prefix: 64,
            engine: Some("sip".to_owned()),
        };
        let held = |persistence| ServiceAttrs {
            persistence: Some(persistence),
            ..service("rr")
        };
        let services = [
            ("fwmark/4294967295", flagged("sh", all)),
            ("fwmark6/2147483648", flagged("mh", all)),
            ("tcp/192.0.2.1:80", flagged("rr", ServiceFlags::ONE_PACKET)),
            // A port of zero without persistence: ipvsadm refuses it, the kernel does not.
            ("sctp/[2001:db8::1]:0", service("none")),
            ("tcp/192.0.2.2:0", held(zero)),
            ("udp/[2001:db8::2]:5060", held(forever)),
        ];
        let to = |forward, weight| server(forward, weight);
        let both = Tunnel {
            kind: TunnelType::Gue,
            port: 1,
            flags: 3,
        };
        let tunnelled = DestAttrs {
            tunnel: both,
            ..to(ForwardMethod::Tun, 1)
        };
        let dests = BTreeMap::from([
            (dest("198.51.100.1:80"), to(Local, 1)),
            (dest("198.51.100.2:80"), to(Bypass, 0)),
            (dest("198.51.100.3:8080"), to(Dr, 3)),
            (dest("127.0.0.1:8080"), to(Nat, 4)),
        ]);
        let mut table: Table = services
            .into_iter()
            .map(|(text, attrs)| {
                let dests = if text == "tcp/192.0.2.1:80" {
                    dests.clone()
                } else {
                    BTreeMap::new()
                };
                (key(text), Service { attrs, dests })
            })
            .collect();
        apply_all(&mut ipvs, &building(&table)).await;
        read(&mut ipvs, &table).await;
        // As ipvsadm's manual does not say: signed, and the flags of sh and mh but for the third.
        let lines = ipvsadm("-Sn");
        for line in [
            "-A -f -1 -s sh -o -b sh-fallback,sh-port",
            "-A -f -2147483648 -6 -s mh -o -b mh-fallback,mh-port",
            "-a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 1",
        ] {
            assert!(lines.iter().any(|l| l == line), "{line}: {lines:#?}");
        }

        // Both checksum flags at once: Linux keeps them, ipvsadm reads past a table of three words
        // when it prints them, so it is not asked.
        let web = key("tcp/192.0.2.1:80");
        let step = Step::NewDest(web, dest("198.51.100.5:80"), tunnelled);
        apply_all(&mut ipvs, &[step]).await;
        let dests = &mut table.get_mut(&web).unwrap().dests;
        dests.insert(dest("198.51.100.5:80"), tunnelled);
        read(&mut ipvs, &table).await;

        // What the kernel does not take: each by itself is refused, and changes nothing.
        let new = |attrs| Step::NewDest(web, dest("198.51.100.9:80"), attrs);
        let refused = [
            new(DestAttrs {
                upper: 1,
                lower: 2,
                ..to(Nat, 1)
            }),
            new(DestAttrs {
                upper: 0x8000_0000,
                ..to(Nat, 1)
            }),
            new(DestAttrs {
                tunnel: Tunnel { port: 0, ..both },
                ..tunnelled
            }),
            Step::NewDest(web, dest("[2001:db8::9]:80"), to(Dr, 1)),
            Step::NewDest(web, dest("224.0.0.1:80"), to(Dr, 1)),
            Step::NewDest(key("sctp/[2001:db8::1]:0"), dest("[fe80::1]:80"), to(Dr, 1)),
        ];
        for (step, result) in refused.iter().zip(ipvs.apply(&refused).await) {
            let error = result.expect_err(&format!("{step}"));
            assert_eq!(error.kind(), "refused", "{step}: {error:?}");
        }
        read(&mut ipvs, &table).await;
    });
}

/// Each scheduler that the kernel has is taken by name, with ipvsadm as the witness which it has.
#[test]
fn every_scheduler_of_the_kernel_is_taken_and_no_other() {
    in_namespace(async || {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let mut taken = 0;
        for scheduler in Scheduler::KNOWN.into_iter().chain(["nosuch"]) {
            let step = Step::NewService(key("tcp/192.0.2.1:80"), service(scheduler));
            let ours = ipvs.apply(&[step]).await.remove(0);
            ipvs.flush().await.unwrap();
            let theirs = Command::new("ipvsadm")
                .args(["-A", "-t", "192.0.2.1:80", "-s", scheduler])
                .output()
                .unwrap();
            ipvs.flush().await.unwrap();
            assert_eq!(
                ours.is_ok(),
                theirs.status.success(),
                "{scheduler}: {ours:?}"
            );
            match ours {
                Ok(()) => taken += 1,
                Err(error) => assert_eq!(error.kind(), "scheduler_missing", "{scheduler}"),
            }
        }
        assert!(
            taken >= SCHEDULERS && taken <= Scheduler::KNOWN.len(),
            "{taken}"
        );
    });
}

/// A small table out of few keys, so that two of them have much in common.
fn small(random: &mut Random) -> Table {
    let mut table = Table::new();
    for number in 1..=5 {
        if random.chance(3) {
            continue;
        }
        // The same key in each table: of its own numbers.
        let mut own = Random(number.into());
        let kind = usize::from(number % 4);
        let families = [Family::V4, Family::V6];
        let key = key_of(kind, own.of(&families), number, &mut own);
        let scheduler = random.of(&["rr", "wrr", "mh", "lc"]);
        let variant = random.within(0, 4);
        let attrs = random.attrs(&key, scheduler, variant);
        let mut dests = BTreeMap::new();
        for n in 1..=5 {
            if random.chance(2) {
                // A few ways for each: of two tables' destinations some are the same, some differ in
                // attributes, some in their key.
                let mut own = Random(u64::from(n) * 10 + u64::from(random.within(0, 2)));
                dests.extend([own.dest(&key, n)]);
            }
        }
        table.insert(key, Service { attrs, dests });
    }
    table
}

#[test]
fn the_difference_of_two_tables_makes_the_one_into_the_other_in_the_kernel() {
    in_namespace(async || {
        let mut random = Random(SEED);
        let mut ipvs = Ipvs::connect().await.unwrap();
        let (mut before, mut kinds) = (Table::new(), BTreeSet::new());
        for pair in 0..60 {
            let after = small(&mut random);
            let steps = diff(&before, &after);
            kinds.extend(steps.iter().map(Step::label));
            let results = ipvs.apply(&steps).await;
            for (step, result) in steps.iter().zip(results) {
                result.unwrap_or_else(|e| panic!("seed {SEED:#x}, pair {pair}: {step}: {e:?}"));
            }
            let found = plain(&ipvs.table().await.unwrap());
            let left = diff(&found, &after);
            assert_eq!(left, [], "seed {SEED:#x}, pair {pair}");
            assert!(found == after);
            before = after;
        }
        // All six kinds of steps were among them.
        assert_eq!(kinds.len(), 6, "{kinds:?}");
    });
}

#[test]
fn timeouts_are_ipvsadms() {
    in_namespace(async || {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let of = |tcp_s, tcp_fin_s, udp_s| Timeouts {
            tcp_s,
            tcp_fin_s,
            udp_s,
        };
        let listed = || ipvsadm("-L --timeout").remove(0);
        let line = |t: &Timeouts| {
            let Timeouts {
                tcp_s,
                tcp_fin_s,
                udp_s,
            } = t;
            format!("Timeout (tcp tcpfin udp): {tcp_s} {tcp_fin_s} {udp_s}")
        };
        // The kernel's own.
        let first = ipvs.timeouts().await.unwrap();
        assert_eq!(first, of(900, 120, 300));
        assert_eq!(listed(), line(&first));
        ipvsadm("--set 901 121 301");
        assert_eq!(ipvs.timeouts().await.unwrap(), of(901, 121, 301));
        let ours = of(3600, 60, 2_678_400);
        ipvs.set_timeouts(&ours).await.unwrap();
        assert_eq!(listed(), line(&ours));
        // A zero leaves one as it is (`ip_vs_set_timeout`).
        ipvs.set_timeouts(&of(0, 61, 0)).await.unwrap();
        let ours = of(3600, 61, 2_678_400);
        assert_eq!(listed(), line(&ours));
        assert_eq!(ipvs.timeouts().await.unwrap(), ours);
        // More than a signed number of ticks holds is refused, and changes nothing.
        let error = ipvs.set_timeouts(&of(1, u32::MAX, 1)).await.unwrap_err();
        assert_eq!(error.kind(), "refused", "{error:?}");
        assert_eq!(ipvs.timeouts().await.unwrap(), ours);
    });
}

#[test]
fn sync_daemons_are_ipvsadms() {
    in_namespace(async || {
        ip("link add sync0 type dummy");
        ip("link set sync0 up");
        let mut ipvs = Ipvs::connect().await.unwrap();
        assert_eq!(ipvs.daemons().await.unwrap(), []);
        let full = [
            SyncDaemon {
                role: SyncRole::Master,
                interface: "sync0".to_owned(),
                sync_id: 5,
                max_length: 1400,
                group: Some("239.1.2.3".parse().unwrap()),
                port: 8850,
                ttl: 3,
            },
            SyncDaemon {
                role: SyncRole::Backup,
                interface: "sync0".to_owned(),
                sync_id: 255,
                max_length: 1300,
                group: Some("ff02::81:5".parse().unwrap()),
                port: 8851,
                ttl: 255,
            },
        ];
        let lines = [
            "master sync daemon (mcast=sync0, syncid=5, maxlen=1400, group=239.1.2.3, port=8850, ttl=3)",
            "backup sync daemon (mcast=sync0, syncid=255, maxlen=1300, group=ff02::81:5, port=8851, ttl=255)",
        ];
        for daemon in &full {
            ipvs.start_daemon(daemon).await.unwrap();
        }
        assert_eq!(ipvsadm("-L --daemon"), lines);
        assert_eq!(ipvs.daemons().await.unwrap(), full);
        // One that runs is not started again.
        let again = ipvs.start_daemon(&full[0]).await.unwrap_err();
        assert_eq!(again.kind(), "already_there", "{again:?}");
        ipvsadm("--stop-daemon master");
        assert_eq!(ipvs.daemons().await.unwrap(), full[1..]);
        let gone = ipvs.stop_daemon(SyncRole::Master).await.unwrap_err();
        assert_eq!(gone.kind(), "no_such_daemon", "{gone:?}");
        ipvs.stop_daemon(SyncRole::Backup).await.unwrap();
        assert_eq!(ipvsadm("-L --daemon"), Vec::<String>::new());

        for (daemon, options) in full.iter().zip([
            "master --mcast-interface sync0 --syncid 5 --sync-maxlen 1400 --mcast-group 239.1.2.3 \
             --mcast-port 8850 --mcast-ttl 3",
            "backup --mcast-interface sync0 --syncid 255 --sync-maxlen 1300 --mcast-group ff02::81:5 \
             --mcast-port 8851 --mcast-ttl 255",
        ]) {
            ipvsadm(&format!("--start-daemon {options}"));
            assert_eq!(ipvs.daemons().await.unwrap(), std::slice::from_ref(daemon));
            ipvs.stop_daemon(daemon.role).await.unwrap();
        }

        // What is not said the kernel says (`start_sync_thread`).
        let bare = |role| SyncDaemon {
            role,
            interface: "sync0".to_owned(),
            sync_id: 0,
            max_length: 0,
            group: None,
            port: 0,
            ttl: 0,
        };
        for role in [SyncRole::Master, SyncRole::Backup] {
            ipvs.start_daemon(&bare(role)).await.unwrap();
            let said = SyncDaemon {
                max_length: 1472,
                group: Some("224.0.0.81".parse().unwrap()),
                port: 8848,
                ttl: 1,
                ..bare(role)
            };
            assert_eq!(ipvs.daemons().await.unwrap(), [said]);
            // A sync daemon and a destination of another family than its service's exclude each
            // other, both ways (`ip_vs_genl_set_cmd`, `ip_vs_genl_new_daemon`).
            let mixed = mixed();
            let results = ipvs.apply(&mixed).await;
            assert!(results[0].is_ok() && results[1].is_err(), "{results:?}");
            ipvs.flush().await.unwrap();
            ipvs.stop_daemon(role).await.unwrap();
            apply_all(&mut ipvs, &mixed).await;
            let error = ipvs.start_daemon(&bare(role)).await.unwrap_err();
            assert_eq!(error.kind(), "refused", "{error:?}");
            ipvs.flush().await.unwrap();
        }
        // An interface that is not there.
        let nowhere = SyncDaemon {
            interface: "sync9".to_owned(),
            ..bare(SyncRole::Master)
        };
        ipvs.start_daemon(&nowhere).await.unwrap_err();
        assert_eq!(ipvs.daemons().await.unwrap(), []);
    });
}

fn mixed() -> [Step; 2] {
    let web = key("tcp/[2001:db8::1]:80");
    let to = server(ForwardMethod::Tun, 1);
    [
        Step::NewService(web, service("rr")),
        Step::NewDest(web, dest("198.51.100.1:80"), to),
    ]
}
