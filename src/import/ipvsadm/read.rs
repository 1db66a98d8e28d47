//! Lines to the model.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::Path,
};

use super::{
    At, Names, Saved,
    options::{Command, Line, Mistake, Opt, Word, Words},
};
use crate::{
    config::Diagnostics,
    model::{
        DestAttrs, DestKey, Family, ForwardMethod, Protocol, Scheduler, Service, ServiceAttrs,
        ServiceFlags, ServiceKey, Weight,
    },
};

/// More mistakes than this are not read: they have one cause, or it is not such a file.
const MOST_MISTAKES: usize = 100;
/// `DEF_SCHED` in ipvsadm.c.
const DEFAULT_SCHEDULER: &str = "wlc";

/// Reads a saved table; `path` is for the messages.
///
/// # Errors
///
/// Every mistake at its line and column, up to 100.
pub fn parse(path: &Path, text: &str, names: &impl Names) -> Result<Saved, Diagnostics> {
    let (saved, wrong) = all(text, names, MOST_MISTAKES);
    if wrong.is_empty() {
        return Ok(saved);
    }
    let mut mistakes = Diagnostics::new(path, text);
    for (span, message) in wrong {
        mistakes.push(span, message);
    }
    Err(mistakes.sorted())
}

/// What could be read, and every mistake; after `most` of them no further line is read.
pub(super) fn all(text: &str, names: &impl Names, most: usize) -> (Saved, Vec<Mistake>) {
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
        if reader.wrong.len() >= most {
            break;
        }
    }
    let saved = reader.put_together();
    let mut wrong = reader.wrong;
    if wrong.len() >= most {
        wrong.truncate(most);
        let end = at.min(text.len());
        let message = "too many mistakes: what follows was not read";
        wrong.push((end..end, message.to_owned()));
    }
    (saved, wrong)
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

pub(super) struct Reader<'a, N> {
    pub(super) names: &'a N,
    /// Each name is looked up once.
    pub(super) hosts: BTreeMap<&'a str, Result<Vec<IpAddr>, String>>,
    wrong: Vec<Mistake>,
    services: Vec<Added<ServiceKey, ServiceAttrs>>,
    dests: Vec<Added<(ServiceKey, DestKey), (DestAttrs, bool)>>,
    /// The service of the line before in that line's words: the next is mostly about the same.
    last: Option<(Opt, &'a str, bool, About)>,
    /// Whether some `-A` names nobody knows what.
    lost: bool,
}

impl<'a, N: Names> Reader<'a, N> {
    pub(super) fn wrong(&mut self, at: Word<'_>, message: impl Into<String>) {
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
        let (upper, lower) = self.thresholds(line);
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
