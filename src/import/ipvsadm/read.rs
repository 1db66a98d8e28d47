//! Lines to the model.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::{Range, RangeInclusive},
    path::Path,
};

use super::{
    At, Names, Saved,
    options::{Command, Given, Line, Mistake, Opt, Word, Words},
};
use crate::{
    config::Diagnostics,
    model::{
        DestAttrs, DestKey, Family, ForwardMethod, Persistence, Protocol, Scheduler, Service,
        ServiceAttrs, ServiceFlags, ServiceKey, Tunnel, TunnelType, Weight,
    },
};

/// More mistakes than this are not read: they have one cause, or it is not such a file.
const MOST_MISTAKES: usize = 100;
/// `IP_VS_SCHEDNAME_MAXLEN` and `IP_VS_PENAME_MAXLEN` are 16 with the zero at the end.
const LONGEST_NAME: usize = 15;
/// `MAX_TIMEOUT` in ipvsadm.c: 31 days.
const LONGEST_PERSISTENCE: u32 = 31 * 86_400;
/// `IPVS_SVC_PERSISTENT_TIMEOUT` in libipvs.h; the manual page says 300.
const DEFAULT_PERSISTENCE: u32 = 360;
/// `DEF_SCHED` in ipvsadm.c.
const DEFAULT_SCHEDULER: &str = "wlc";

/// Reads a saved table; `path` is for the messages.
///
/// # Errors
///
/// Every mistake at its line and column, up to 100.
pub fn parse(path: &Path, text: &str, names: &impl Names) -> Result<Saved, Diagnostics> {
    let mut reader = Reader {
        names,
        hosts: BTreeMap::new(),
        wrong: Vec::new(),
        services: Vec::new(),
        // Few lines are shorter, and a few bytes too many are soon given back.
        dests: Vec::with_capacity(text.len() / 48),
        last: None,
        lost: false,
    };
    let mut at = 0;
    for (number, line) in (1..).zip(text.split('\n')) {
        reader.line(number, Word { text: line, at });
        at += line.len() + 1;
        if reader.wrong.len() >= MOST_MISTAKES {
            break;
        }
    }
    let saved = reader.put_together();
    if reader.wrong.is_empty() {
        return Ok(saved);
    }
    let mut mistakes = Diagnostics::new(path, text);
    let more = reader.wrong.len() >= MOST_MISTAKES;
    for (span, message) in reader.wrong.into_iter().take(MOST_MISTAKES) {
        mistakes.push(span, message);
    }
    if more {
        let end = at.min(text.len());
        mistakes.push(end..end, "too many mistakes: what follows was not read");
    }
    Err(mistakes.sorted())
}

/// A service or destination that a line adds.
struct Added<K, T> {
    key: K,
    value: T,
    line: usize,
    span: Range<usize>,
}

/// What a line is about.
#[derive(Clone, Copy)]
struct About {
    key: ServiceKey,
    says_port: bool,
}

struct Reader<'a, N> {
    names: &'a N,
    /// Each name is looked up once.
    hosts: BTreeMap<&'a str, Result<Vec<IpAddr>, String>>,
    wrong: Vec<Mistake>,
    services: Vec<Added<ServiceKey, ServiceAttrs>>,
    dests: Vec<Added<(ServiceKey, DestKey), (DestAttrs, bool)>>,
    /// The service of the line before in that line's words: the next is mostly about the same.
    last: Option<(Opt, &'a str, bool, About)>,
    /// Whether some `-A` names nobody knows what.
    lost: bool,
}

impl<'a, N: Names> Reader<'a, N> {
    fn wrong(&mut self, at: Word<'_>, message: impl Into<String>) {
        self.wrong.push((at.span(), message.into()));
    }

    fn line(&mut self, number: usize, text: Word<'a>) {
        if text.text.starts_with('#') {
            return;
        }
        let mut line = Line::default();
        let command = match line.read(Words(text)) {
            Ok(None) => return,
            Ok(Some(command)) => command,
            Err(mistake) => {
                // Where `-a` could not be told from `-A`, either.
                self.lost = true;
                return self.wrong.push(mistake);
            }
        };
        for given in line.others() {
            let message = match (given.opt.belongs_to(), command) {
                (Some(Command::Server), Command::Service) => "is for a destination (-a)",
                (Some(Command::Service), Command::Server) => "is for a virtual service (-A)",
                _ => continue,
            };
            self.wrong(given.name, format!("{given} {message}"));
        }
        match command {
            Command::Service => self.service(number, text, &line),
            Command::Server => self.server(number, text, &line),
        }
    }

    fn service(&mut self, number: usize, text: Word<'a>, line: &Line<'a>) {
        let about = self.about(text, line);
        let scheduler = match line.scheduler {
            Some(given) => self.kernel_name(given).unwrap_or(DEFAULT_SCHEDULER),
            None => DEFAULT_SCHEDULER,
        };
        let mut flags = 0;
        if let Some(given) = line.flags {
            flags |= self.scheduler_flags(given, scheduler);
        }
        let Some(About { key, says_port }) = about else {
            self.lost = true;
            return;
        };
        if let Some(given) = line.one_packet {
            flags |= ServiceFlags::ONE_PACKET;
            if let ServiceKey::Addr(Protocol::Tcp | Protocol::Sctp, _) = key {
                self.wrong(given.name, "-o is for UDP services: ipvsadm refuses others");
            }
        }
        let persistence = self.persistence(line, key.family());
        if let (ServiceKey::Addr(_, a), Some(given)) = (key, line.service)
            && a.port() == 0
            && line.persistent.is_none()
        {
            let message = match says_port {
                true => "port 0 stands for all ports: that needs -p",
                false => "no port: write ADDRESS:PORT ([ADDRESS]:PORT of IPv6)",
            };
            self.wrong(given.word(), message);
        }
        self.services.push(Added {
            key,
            value: ServiceAttrs {
                scheduler: Scheduler(scheduler.to_owned()),
                flags: ServiceFlags(flags),
                persistence,
            },
            line: number,
            span: line.service.map_or(text.span(), |s| s.word().span()),
        });
    }

    fn server(&mut self, number: usize, text: Word<'a>, line: &Line<'a>) {
        let about = self.about(text, line);
        let weight = self.number(line.weight, 1, 0..=i32::MAX.unsigned_abs());
        let upper = self.number(line.upper, 0, 0..=u32::MAX);
        let lower = self.number(line.lower, 0, 0..=u32::MAX);
        let forward = match line.forward.map(|g| g.opt) {
            Some(Opt::Masq) => ForwardMethod::Nat,
            Some(Opt::Ipip) => ForwardMethod::Tun,
            _ => ForwardMethod::Dr,
        };
        let tunnel = self.tunnel(line, forward);
        let Some(real) = line.real else {
            return self.wrong(text, "no destination: -r ADDRESS:PORT names it");
        };
        let Some(About { key, .. }) = about else {
            return;
        };
        let (protocol, vip_port) = match key {
            ServiceKey::Addr(protocol, a) => (protocol, Some(a.port())),
            // So ipvsadm reads the names of ports.
            ServiceKey::Fwmark(..) => (Protocol::Tcp, None),
        };
        let Some((addr, port)) = self.endpoint(real.word(), protocol) else {
            return;
        };
        // ipvsadm does not know the service yet.
        let early = line.service.is_some_and(|s| real.name.at < s.name.at);
        let numeric = |w: Word<'_>| w.text.ends_with(|c: char| c.is_ascii_digit());
        if early && (port.is_none() || !numeric(real.word())) {
            let message = "-r stands before the service that its port depends on: put it after";
            self.wrong(real.name, message);
        }
        let dest = DestKey {
            addr,
            port: port.or(vip_port).unwrap_or(0),
        };
        if let Some(port) = vip_port.filter(|p| *p != dest.port)
            && forward != ForwardMethod::Nat
        {
            let message = format!(
                "port {} is not the service's, {port}: only -m translates ports",
                dest.port
            );
            self.wrong(real.word(), message);
        }
        if Family::of(addr) != key.family() && forward != ForwardMethod::Tun {
            let message = format!("{addr} is not of the service's family: only -i can mix them");
            self.wrong(real.word(), message);
        }
        let attrs = DestAttrs {
            weight: Weight::try_from(i64::from(weight)).unwrap_or(Weight::ONE),
            forward,
            upper,
            lower,
            tunnel,
        };
        let says_thresholds = line.upper.is_some() || line.lower.is_some();
        self.dests.push(Added {
            key: (key, dest),
            value: (attrs, says_thresholds),
            line: number,
            span: real.word().span(),
        });
    }

    /// The service that a line names.
    fn about(&mut self, text: Word<'a>, line: &Line<'a>) -> Option<About> {
        let Some(given) = line.service else {
            let message = "no virtual service: -t, -u, --sctp-service or -f names it";
            self.wrong(text, message);
            return None;
        };
        let (opt, word, six) = (given.opt, given.word(), line.six.is_some());
        if let Some(six) = line.six {
            if opt != Opt::Mark {
                let message = format!("{six} is for firewall marks (-f) only");
                self.wrong(six.name, message);
                return None;
            }
            if six.name.at < given.name.at {
                self.wrong(six.name, format!("{six} stands before -f: put it after"));
            }
        }
        if let Some((_, _, _, about)) = self
            .last
            .filter(|(o, t, s, _)| (*o, *t, *s) == (opt, word.text, six))
        {
            return Some(about);
        }
        let about = if opt == Opt::Mark {
            let family = if six { Family::V6 } else { Family::V4 };
            let mark = self.mark(word)?;
            About {
                key: ServiceKey::Fwmark(family, mark),
                says_port: true,
            }
        } else {
            let protocol = match opt {
                Opt::Udp => Protocol::Udp,
                Opt::Sctp => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let (addr, port) = self.endpoint(word, protocol)?;
            About {
                key: ServiceKey::Addr(protocol, SocketAddr::new(addr, port.unwrap_or(0))),
                says_port: port.is_some(),
            }
        };
        self.last = Some((opt, word.text, six, about));
        Some(about)
    }

    fn mark(&mut self, word: Word<'a>) -> Option<u32> {
        let message = match word.text.parse::<i64>() {
            Ok(n @ -0x8000_0000..0) => format!(
                "a mark is no negative number: ipvsadm -S prints marks above 2147483647 so; write {}",
                n + 0x1_0000_0000
            ),
            Ok(n)
                if n != 0
                    && let Ok(mark) = u32::try_from(n) =>
            {
                return Some(mark);
            }
            _ => format!("{:?} is no mark: it is 1 to 4294967295", word.text),
        };
        self.wrong(word, message);
        None
    }

    /// An address and the port beside it, if any, of a word as `parse_service` in ipvsadm.c takes it.
    fn endpoint(&mut self, word: Word<'a>, protocol: Protocol) -> Option<(IpAddr, Option<u16>)> {
        // What -Sn writes. A scope (%eth0) is nothing to ipvsadm.
        if let Ok(a) = word.text.parse::<SocketAddr>()
            && !word.text.contains('%')
        {
            return Some((a.ip(), Some(a.port())));
        }
        if let Some(inner) = word.text.strip_prefix('[') {
            let Some((host, port)) = inner.split_once("]:") else {
                let message = format!("{:?}: after [ADDRESS] stands :PORT", word.text);
                self.wrong(word, message);
                return None;
            };
            let addr = match host.parse::<Ipv6Addr>() {
                Ok(addr) => IpAddr::V6(addr),
                Err(_) if looks_numeric(host) => {
                    self.wrong(word, "brackets are for IPv6 addresses: leave them out");
                    return None;
                }
                Err(_) if host.contains(':') => {
                    self.wrong(word, format!("{host:?} is no address of IPv6"));
                    return None;
                }
                Err(_) => self.host(word, host, Family::V6)?,
            };
            return Some((addr, Some(self.port(word, port, protocol)?)));
        }
        if let Ok(addr) = word.text.parse::<Ipv6Addr>() {
            return Some((IpAddr::V6(addr), None));
        }
        let (host, port) = match word.text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (word.text, None),
        };
        let addr = match host.parse::<Ipv4Addr>() {
            Ok(addr) => IpAddr::V4(addr),
            Err(_) if looks_numeric(host) => {
                let message = format!("{host:?} is no address: write four decimal numbers");
                self.wrong(word, message);
                return None;
            }
            Err(_) if host.contains(':') => {
                let message = format!(
                    "{:?} is no address: one of IPv6 stands in brackets before a port",
                    word.text
                );
                self.wrong(word, message);
                return None;
            }
            Err(_) => self.host(word, host, Family::V4)?,
        };
        let port = match port {
            Some(port) => Some(self.port(word, port, protocol)?),
            None => None,
        };
        Some((addr, port))
    }

    fn host(&mut self, word: Word<'a>, name: &'a str, family: Family) -> Option<IpAddr> {
        if name.is_empty() {
            self.wrong(word, "no address stands before the port");
            return None;
        }
        let names = self.names;
        let found = self.hosts.entry(name).or_insert_with(|| names.host(name));
        let which = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let message = match found {
            Err(why) => format!("{name:?} names no host: {why}; write its {which} address"),
            Ok(addrs) => {
                let mut of_family = addrs.iter().filter(|a| Family::of(**a) == family);
                match of_family.next() {
                    Some(addr) if of_family.all(|a| a == addr) => return Some(*addr),
                    Some(_) => format!("{name:?} has several {which} addresses: write one of them"),
                    None => format!("{name:?} has no {which} address: write the one that is meant"),
                }
            }
        };
        self.wrong(word, message);
        None
    }

    fn port(&mut self, word: Word<'a>, port: &str, protocol: Protocol) -> Option<u16> {
        let found = port
            .parse()
            .ok()
            .or_else(|| match port.bytes().all(|b| b.is_ascii_digit()) {
                true => None,
                false => self.names.port(port, protocol),
            });
        if found.is_none() {
            let message = format!("{port:?} is no port: write its number, 0 to 65535");
            self.wrong(word, message);
        }
        found
    }

    fn number(&mut self, given: Option<Given<'a>>, absent: u32, range: RangeInclusive<u32>) -> u32 {
        let Some((given, word)) = given.and_then(|g| Some((g, g.value?))) else {
            return absent;
        };
        match word.text.parse() {
            Ok(n) if range.contains(&n) => n,
            _ => {
                let (from, to) = range.into_inner();
                let message = format!("{given} is {from} to {to}, not {:?}", word.text);
                self.wrong(word, message);
                absent
            }
        }
    }

    /// The name of a scheduler or persistence engine.
    fn kernel_name(&mut self, given: Given<'a>) -> Option<&'a str> {
        let word = given.word();
        if (1..=LONGEST_NAME).contains(&word.text.len()) {
            return Some(word.text);
        }
        let message = format!("a name of the kernel's has 1 to {LONGEST_NAME} bytes");
        self.wrong(word, message);
        None
    }

    fn scheduler_flags(&mut self, given: Given<'a>, scheduler: &str) -> u32 {
        let (word, mut flags) = (given.word(), 0);
        for flag in word.text.split(',').filter(|f| !f.is_empty()) {
            let only = ["sh", "mh"]
                .into_iter()
                .find(|s| flag.strip_prefix(s).is_some_and(|f| f.starts_with('-')));
            match ServiceFlags::scheduler_flag(flag) {
                Some(bit) if only.is_none_or(|s| s == scheduler) => flags |= bit,
                Some(_) => self.wrong(word, format!("{flag} is no flag of {scheduler}")),
                None => {
                    let message = format!(
                        "{flag:?} is no scheduler flag: write flag-1, flag-2, flag-3, sh-fallback, sh-port, mh-fallback or mh-port"
                    );
                    self.wrong(word, message);
                }
            }
        }
        if word.text.bytes().all(|b| b == b',') {
            self.wrong(word, "no scheduler flag: leave out -b");
        }
        flags
    }

    fn persistence(&mut self, line: &Line<'a>, family: Family) -> Option<Persistence> {
        if line.persistent.is_none() {
            for given in [line.netmask, line.engine].into_iter().flatten() {
                self.wrong(given.name, format!("{given} does nothing without -p"));
            }
            return None;
        }
        let timeout_s = self.number(
            line.persistent,
            DEFAULT_PERSISTENCE,
            1..=LONGEST_PERSISTENCE,
        );
        let whole = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let prefix = match line.netmask {
            Some(given) => self.prefix(given, family, line).unwrap_or(whole),
            None => whole,
        };
        let engine = line.engine.and_then(|given| self.kernel_name(given));
        Some(Persistence {
            timeout_s,
            prefix,
            engine: engine.map(str::to_owned),
        })
    }

    fn prefix(&mut self, given: Given<'a>, family: Family, line: &Line<'a>) -> Option<u8> {
        let word = given.word();
        match family {
            Family::V4 => {
                let mask = word.text.parse::<Ipv4Addr>().map(Ipv4Addr::to_bits).ok();
                let ones = mask.map(u32::leading_ones);
                if mask.map(u32::count_ones) == ones
                    && let Some(ones) = ones
                {
                    return u8::try_from(ones).ok();
                }
                let message = format!(
                    "{:?} is no netmask: write ones, then zeros, as 255.255.255.0",
                    word.text
                );
                self.wrong(word, message);
                None
            }
            Family::V6 => {
                // ipvsadm forgets a mask where an address of IPv6 or a -6 follows.
                let named = line.six.or(line.service);
                if named.is_some_and(|n| given.name.at < n.name.at) {
                    let message = format!("{given} stands before what makes it IPv6: put it after");
                    self.wrong(given.name, message);
                }
                let prefix = self.number(Some(given), 0, 1..=128);
                u8::try_from(prefix).ok().filter(|p| *p != 0)
            }
        }
    }

    fn tunnel(&mut self, line: &Line<'a>, forward: ForwardMethod) -> Tunnel {
        let kind = match line.tunnel_type.map(|g| g.word()) {
            None => TunnelType::Ipip,
            Some(word) => match word.text {
                "ipip" => TunnelType::Ipip,
                "gue" => TunnelType::Gue,
                "gre" => TunnelType::Gre,
                other => {
                    self.wrong(
                        word,
                        format!("{other:?} is no tunnel: write ipip, gue or gre"),
                    );
                    return Tunnel::default();
                }
            },
        };
        let flags = match line.checksum.map(|g| g.opt) {
            Some(Opt::Checksum) => Tunnel::CHECKSUM,
            Some(Opt::RemoteChecksum) => Tunnel::REMOTE_CHECKSUM,
            _ => 0,
        };
        let given = [line.tunnel_type, line.tunnel_port, line.checksum];
        let given = given.into_iter().flatten();
        if forward != ForwardMethod::Tun {
            for given in given {
                self.wrong(given.name, format!("{given} is for tunnels: it needs -i"));
            }
            return Tunnel::default();
        }
        for given in given {
            let message = match (kind, given.opt) {
                (TunnelType::Ipip, Opt::TunnelType) | (TunnelType::Gue, _) => continue,
                (TunnelType::Gre, Opt::TunnelPort | Opt::RemoteChecksum) => "gue",
                (TunnelType::Gre, _) => continue,
                (TunnelType::Ipip, Opt::TunnelPort | Opt::RemoteChecksum) => "gue",
                (TunnelType::Ipip, _) => "gue and gre",
            };
            let message = format!("{given} is for tunnels of {message}: --tun-type says it");
            self.wrong(given.name, message);
        }
        if kind == TunnelType::Gue && line.tunnel_port.is_none() {
            let at = line.tunnel_type.or(line.forward).map(|g| g.word());
            if let Some(at) = at {
                self.wrong(at, "a tunnel of gue needs its port: --tun-port");
            }
        }
        let port = self.number(line.tunnel_port, 0, 1..=u32::from(u16::MAX));
        Tunnel {
            kind,
            port: u16::try_from(port).unwrap_or_default(),
            flags,
        }
    }

    /// What all lines make together.
    fn put_together(&mut self) -> Saved {
        // Lines of one key stay in their order; a table that ipvsadm sorted is in order already.
        let (mut services, mut dests) = (
            std::mem::take(&mut self.services),
            std::mem::take(&mut self.dests),
        );
        services.sort_by_key(|s| s.key);
        dests.sort_by_key(|d| d.key);
        self.duplicates(&services, |key| key.to_string());
        self.duplicates(&dests, |(service, dest)| format!("{dest} of {service}"));
        let mut saved = Saved {
            table: BTreeMap::new(),
            services: services.iter().map(|s| (s.key, s.line)).collect(),
            dests: Vec::with_capacity(dests.len()),
        };
        let mut dests = dests.into_iter().peekable();
        let mut table = Vec::with_capacity(services.len());
        for service in services {
            let mut own = Vec::new();
            while let Some(dest) = dests.next_if(|d| d.key.0 <= service.key) {
                if dest.key.0 < service.key || dest.line < service.line {
                    self.orphan(&dest.span, dest.key.0);
                }
                let (attrs, says_thresholds) = dest.value;
                let at = At {
                    line: dest.line,
                    says_thresholds,
                };
                saved.dests.push((dest.key, at));
                own.push((dest.key.1, attrs));
            }
            let dests = own.into_iter().collect();
            let attrs = service.value;
            table.push((service.key, Service { attrs, dests }));
        }
        for dest in dests {
            self.orphan(&dest.span, dest.key.0);
        }
        saved.table = table.into_iter().collect();
        saved
    }

    fn orphan(&mut self, span: &Range<usize>, service: ServiceKey) {
        if !self.lost {
            let message = format!("no line before this one adds {service} (-A)");
            self.wrong.push((span.clone(), message));
        }
    }

    fn duplicates<K: Copy + Eq, T>(&mut self, all: &[Added<K, T>], name: impl Fn(K) -> String) {
        for pair in all.windows(2) {
            if let [first, second] = pair
                && first.key == second.key
            {
                let name = name(first.key);
                let message = format!("{name} stands in line {} already", first.line);
                self.wrong.push((second.span.clone(), message));
            }
        }
    }
}

/// Whether `inet_aton` may take it for an address: numbers, decimal, octal or hexadecimal.
fn looks_numeric(host: &str) -> bool {
    host.split('.').all(|part| {
        let (digits, hex) = match part.get(..2) {
            Some("0x" | "0X") => (part.get(2..).unwrap_or_default(), true),
            _ => (part, false),
        };
        let digit = |b: u8| b.is_ascii_digit() || (hex && b.is_ascii_hexdigit());
        !digits.is_empty() && digits.bytes().all(digit)
    })
}
