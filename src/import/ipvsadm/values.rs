//! The values of options.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use super::{
    Names,
    options::{Given, Line, Opt, Word},
    read::Reader,
};
use crate::model::{
    Family, ForwardMethod, LONGEST_NAME, Persistence, Protocol, ServiceFlags, Tunnel, TunnelType,
};

/// `MAX_TIMEOUT` in ipvsadm.c: 31 days.
const LONGEST_PERSISTENCE: u32 = 31 * 86_400;
/// `IPVS_SVC_PERSISTENT_TIMEOUT` in libipvs.h; the manual page says 300.
const DEFAULT_PERSISTENCE: u32 = 360;

impl<'a, N: Names> Reader<'a, N> {
    /// A firewall mark. ipvsadm prints one above 2147483647 as the negative number that has the same
    /// bits (`print_service_and_dests` in ipvsadm.c), so a saved table has it so.
    pub(super) fn mark(&mut self, word: Word<'a>) -> Option<u32> {
        let number = word.text.parse::<i64>().ok();
        let same_bits =
            |n: i64| u32::try_from(n).or_else(|_| i32::try_from(n).map(i32::cast_unsigned));
        let mark = number
            .and_then(|n| same_bits(n).ok())
            .filter(|mark| *mark != 0);
        if mark.is_none() {
            let message = format!("{:?} is no mark: it is 1 to 4294967295", word.text);
            self.wrong(word, message);
        }
        mark
    }

    /// An address and the port beside it, if any, of a word as `parse_service` in ipvsadm.c takes it.
    pub(super) fn endpoint(
        &mut self,
        word: Word<'a>,
        protocol: Protocol,
    ) -> Option<(IpAddr, Option<u16>)> {
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

    pub(super) fn host(&mut self, word: Word<'a>, name: &'a str, family: Family) -> Option<IpAddr> {
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

    pub(super) fn port(&mut self, word: Word<'a>, port: &str, protocol: Protocol) -> Option<u16> {
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

    pub(super) fn number(
        &mut self,
        given: Option<Given<'a>>,
        absent: u32,
        range: RangeInclusive<u32>,
    ) -> u32 {
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

    /// `-x` and `-y`: at most what `-R` takes, and no lower one above the upper one, which the kernel
    /// refuses (`ip_vs_add_dest`); an upper one of 0 is none.
    pub(super) fn thresholds(&mut self, line: &Line<'a>) -> (u32, u32) {
        let most = i32::MAX.unsigned_abs();
        let upper = self.number(line.upper, 0, 0..=most);
        let lower = self.number(line.lower, 0, 0..=most);
        // One that was no number has been told of.
        let is_number = |g: Given<'_>| g.word().text.parse::<u32>().is_ok_and(|n| n <= most);
        if let Some(given) = line.lower
            && lower > upper
            && line.upper.is_none_or(is_number)
        {
            let message = match upper {
                0 => format!("{given} {lower} needs an -x of at least as many"),
                _ => format!("{given} {lower} is above -x {upper}: the kernel refuses that"),
            };
            self.wrong(given.word(), message);
        }
        (upper, lower)
    }

    /// The name of a scheduler or persistence engine.
    pub(super) fn kernel_name(&mut self, given: Given<'a>) -> Option<&'a str> {
        let word = given.word();
        if (1..=LONGEST_NAME).contains(&word.text.len()) {
            return Some(word.text);
        }
        let message = format!("a name of the kernel's has 1 to {LONGEST_NAME} bytes");
        self.wrong(word, message);
        None
    }

    pub(super) fn scheduler_flags(&mut self, given: Given<'a>, scheduler: &str) -> u32 {
        if given.value.is_none() {
            // So ipvsadm -S writes the one flag of sh and mh that it has no word for.
            if ["sh", "mh"].contains(&scheduler) {
                return ServiceFlags::SCHED3;
            }
            self.wrong(given.name, format!("{given} needs a value"));
            return 0;
        }
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

    pub(super) fn persistence(&mut self, line: &Line<'a>, family: Family) -> Option<Persistence> {
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

    pub(super) fn prefix(
        &mut self,
        given: Given<'a>,
        family: Family,
        line: &Line<'a>,
    ) -> Option<u8> {
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

    pub(super) fn tunnel(&mut self, line: &Line<'a>, forward: ForwardMethod) -> Tunnel {
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
