//! The checks of a virtual service.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value},
};
use toml::Spanned;

use super::{Reader, address};
use crate::model::{
    CheckKind, CheckSpec, CheckTiming, Checks, Damping, DnsCheck, DnsType, Expect, ExternalCheck,
    Family, FileCheck, ForwardMethod, GrpcCheck, HttpCheck, HttpVersion, IcmpCheck, LoginCheck,
    Need, PinDigest, Protocol, ServiceKey, SmtpCheck, SmtpTls, StatusRange, TcpCheck, TlsOptions,
    UdpCheck, Verify, Via,
};

/// A certificate that ends within this is a warning where nobody says otherwise.
const EXPIRY_WARNING: Duration = Duration::from_hours(14 * 24);

/// No probe is asked for more often than this, nor given up sooner.
const SHORTEST: Duration = Duration::from_millis(10);

/// Bytes in an echo request that pass every link (RFC 8200, section 5, less the heads).
const MOST_ECHO: i64 = 1_232;

/// One or several of a thing: `[virtual_service.check]`, or `[[virtual_service.check]]` for each.
#[derive(Debug)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<Spanned<T>>),
}

impl<T> OneOrMany<T> {
    /// Each with its place.
    fn each(this: &Spanned<Self>) -> Vec<(&T, Range<usize>)> {
        match this.get_ref() {
            Self::One(one) => vec![(one, this.span())],
            Self::Many(many) => many.iter().map(|t| (t.get_ref(), t.span())).collect(),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Of<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table, or a list of tables")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = T::deserialize(value::MapAccessDeserializer::new(map))?;
                Ok(OneOrMany::One(one))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut many = Vec::new();
                while let Some(one) = seq.next_element()? {
                    many.push(one);
                }
                Ok(OneOrMany::Many(many))
            }
        }
        deserializer.deserialize_any(Of(PhantomData))
    }
}

/// `"all"`, `"any"` or a number.
#[derive(Clone, Debug)]
pub(super) enum RawNeed {
    Number(i64),
    Word(String),
}

impl<'de> Deserialize<'de> for RawNeed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl Visitor<'_> for Of {
            type Value = RawNeed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\", \"any\" or a number")
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<RawNeed, E> {
                Ok(RawNeed::Number(n))
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<RawNeed, E> {
                Ok(RawNeed::Word(word.to_owned()))
            }
        }
        deserializer.deserialize_any(Of)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCheck {
    interval: Option<Spanned<String>>,
    fast_interval: Option<Spanned<String>>,
    down_interval: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    rise: Option<Spanned<i64>>,
    fall: Option<Spanned<i64>>,
    connect_address: Option<Spanned<String>>,
    connect_port: Option<Spanned<i64>>,
    source: Option<Spanned<String>>,
    interface: Option<Spanned<String>>,
    fwmark: Option<Spanned<i64>>,
    dscp: Option<Spanned<i64>>,
    through: Option<Spanned<String>>,
    none: Option<RawEmpty>,
    tcp: Option<Box<RawTcp>>,
    http: Option<Box<RawHttp>>,
    https: Option<Box<RawHttp>>,
    tls: Option<Box<RawTls>>,
    smtp: Option<Box<RawSmtp>>,
    dns: Option<Box<RawDns>>,
    udp: Option<Box<RawUdp>>,
    icmp: Option<Box<RawIcmp>>,
    postgres: Option<Box<RawLogin>>,
    mysql: Option<Box<RawLogin>>,
    redis: Option<Box<RawLogin>>,
    grpc: Option<Box<RawGrpc>>,
    agent: Option<Box<RawTcp>>,
    file: Option<Box<RawFile>>,
    external: Option<Box<RawExternal>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDamping {
    half_life: Option<Spanned<String>>,
    suppress: Option<Spanned<i64>>,
    reuse: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEmpty {}

/// What is sent and expected; shared by all kinds that have it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcp {
    send: Option<Spanned<String>>,
    send_hex: Option<Spanned<String>>,
    expect: Option<Spanned<String>>,
    expect_regex: Option<Spanned<String>>,
    expect_hex: Option<Spanned<String>>,
    hold: Option<Spanned<bool>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUdp {
    send: Option<Spanned<String>>,
    send_hex: Option<Spanned<String>>,
    expect: Option<Spanned<String>>,
    expect_regex: Option<Spanned<String>>,
    expect_hex: Option<Spanned<String>>,
    require_reply: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    path: Option<Spanned<String>>,
    host: Option<Spanned<String>>,
    method: Option<Spanned<String>>,
    #[serde(default)]
    headers: BTreeMap<Spanned<String>, Spanned<String>>,
    credentials: Option<Spanned<PathBuf>>,
    status: Option<Spanned<String>>,
    body: Option<Spanned<String>>,
    body_regex: Option<Spanned<String>>,
    body_sha256: Option<Spanned<String>>,
    version: Option<Spanned<String>>,
    tls: Option<Spanned<RawTls>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    sni: Option<Spanned<String>>,
    verify: Option<Spanned<bool>>,
    ca: Option<Spanned<PathBuf>>,
    pub(super) pin_sha256: Option<Spanned<String>>,
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
    pub(super) expiry_warning: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSmtp {
    ehlo: Option<Spanned<String>>,
    tls: Option<Spanned<RawTls>>,
    starttls: Option<Spanned<RawTls>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDns {
    name: Option<Spanned<String>>,
    r#type: Option<Spanned<String>>,
    tcp: Option<bool>,
    answer: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIcmp {
    size: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLogin {
    credentials: Option<Spanned<PathBuf>>,
    database: Option<Spanned<String>>,
    tls: Option<RawTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrpc {
    service: Option<Spanned<String>>,
    host: Option<Spanned<String>>,
    tls: Option<RawTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExternal {
    socket: Spanned<PathBuf>,
    name: Option<Spanned<String>>,
}

impl RawCheck {
    /// The kinds that stand there.
    fn named(&self) -> Vec<&'static str> {
        let all = [
            ("none", self.none.is_some()),
            ("tcp", self.tcp.is_some()),
            ("http", self.http.is_some()),
            ("https", self.https.is_some()),
            ("tls", self.tls.is_some()),
            ("smtp", self.smtp.is_some()),
            ("dns", self.dns.is_some()),
            ("udp", self.udp.is_some()),
            ("icmp", self.icmp.is_some()),
            ("postgres", self.postgres.is_some()),
            ("mysql", self.mysql.is_some()),
            ("redis", self.redis.is_some()),
            ("grpc", self.grpc.is_some()),
            ("agent", self.agent.is_some()),
            ("file", self.file.is_some()),
            ("external", self.external.is_some()),
        ];
        let there = all.into_iter().filter(|(_, there)| *there);
        there.map(|(name, _)| name).collect()
    }
}

impl Reader {
    pub(super) fn damping(&mut self, raw: Option<&RawDamping>) -> Damping {
        let usual = Damping::default();
        let Some(raw) = raw else { return usual };
        let damping = Damping {
            half_life: self.duration(raw.half_life.as_ref(), usual.half_life),
            suppress: self.number(raw.suppress.as_ref(), usual.suppress, "suppress", 1..=1000),
            reuse: self.number(raw.reuse.as_ref(), usual.reuse, "reuse", 1..=1000),
        };
        if let Some(at) = raw.reuse.as_ref().or(raw.suppress.as_ref())
            && damping.reuse > damping.suppress
        {
            let message = "reuse is above suppress: a server would be let in where it is held out";
            self.bad.push(at.span(), message);
        }
        if let Some(at) = &raw.suppress
            && damping.suppress > damping.reuse.saturating_mul(Damping::MOST)
        {
            let message = format!(
                "suppress is never reached: the penalty ends at {} times reuse",
                Damping::MOST
            );
            self.bad.push(at.span(), message);
        }
        damping
    }

    /// The checks of a service; one of TCP where none is named.
    pub(super) fn checks(
        &mut self,
        raw: Option<&Spanned<OneOrMany<RawCheck>>>,
        need: Option<&Spanned<RawNeed>>,
        (key, forward): (ServiceKey, ForwardMethod),
        at: Range<usize>,
    ) -> Checks {
        let many = raw.map_or_else(Vec::new, OneOrMany::each);
        let mut all = Vec::new();
        let mut nobody = false;
        for (one, span) in &many {
            match self.check(one, span, (key, forward)) {
                Some(spec) => all.push(Arc::new(spec)),
                None => nobody = true,
            }
        }
        if many.is_empty() {
            let usual = self.default_check(key, at);
            all.push(Arc::new(usual));
        } else if nobody && many.len() > 1 {
            let span = raw.map_or(0..0, Spanned::span);
            let message = format!("{key} has a check and none: keep one of the two");
            self.bad.push(span, message);
        }
        let need = need.map_or(Need::All, |n| self.need(n, all.len()));
        Checks { all, need }
    }

    fn default_check(&mut self, key: ServiceKey, at: Range<usize>) -> CheckSpec {
        if let ServiceKey::Addr(Protocol::Udp | Protocol::Sctp, _) = key {
            let message = format!(
                "{key} is not TCP: say which check tells its health, [virtual_service.check.udp] or [virtual_service.check.icmp] for example, or that it has none, [virtual_service.check.none]"
            );
            self.bad.push(at, message);
        }
        CheckSpec {
            kind: CheckKind::default(),
            via: Via::default(),
            timing: CheckTiming::every(Duration::from_secs(1)),
        }
    }

    fn need(&mut self, raw: &Spanned<RawNeed>, checks: usize) -> Need {
        let most = u32::try_from(checks).unwrap_or(u32::MAX);
        match raw.get_ref() {
            RawNeed::Word(word) if word == "all" => return Need::All,
            RawNeed::Word(word) if word == "any" => return Need::AtLeast(1),
            RawNeed::Number(n) => match u32::try_from(*n) {
                Ok(n) if (1..=most).contains(&n) => return Need::AtLeast(n),
                _ => {}
            },
            RawNeed::Word(_) => {}
        }
        let message = format!(
            "checks_needed is \"all\", \"any\" or how many of the {checks} checks have to be passed"
        );
        self.bad.push(raw.span(), message);
        Need::All
    }

    /// One check; `None` where it says that nobody is asked, or what it says makes no sense.
    fn check(
        &mut self,
        c: &RawCheck,
        span: &Range<usize>,
        service: (ServiceKey, ForwardMethod),
    ) -> Option<CheckSpec> {
        let (key, _) = service;
        let timing = self.timing(c);
        let mut via = self.via(c);
        if let Some(through) = &c.through {
            via.through = true;
            self.through(c, through, service, &mut via);
        }
        self.ways_out(c, &via, service);
        let named = c.named();
        if named.len() > 1 {
            let message = format!(
                "this check of {key} is {} at once: write [[virtual_service.check]] for each",
                named.join(" and ")
            );
            self.bad.push(span.clone(), message);
        }
        if c.none.is_some() {
            return None;
        }
        let Some(kind) = self.kind(c) else {
            let spec = self.default_check(key, span.clone());
            return Some(CheckSpec {
                via,
                timing,
                ..spec
            });
        };
        if let CheckKind::Tcp(TcpCheck { hold: true, .. }) = kind
            && timing.fall < 2
            && let Some(fall) = &c.fall
        {
            let message = "with hold = true a server that ends an idle connection fails once: fall is at least 2";
            self.bad.push(fall.span(), message);
        }
        Some(CheckSpec { kind, via, timing })
    }

    fn timing(&mut self, c: &RawCheck) -> CheckTiming {
        let mut duration = |at: &Option<Spanned<String>>, default: Duration, what: &str| {
            let d = self.duration(at.as_ref(), default);
            self.at_least(at.as_ref(), d, SHORTEST, what);
            d
        };
        let interval = duration(&c.interval, Duration::from_secs(1), "interval");
        let fast = CheckTiming::fast_of(interval);
        let fast_interval = duration(&c.fast_interval, fast, "fast_interval");
        let down_interval = duration(&c.down_interval, interval, "down_interval");
        let timeout = duration(&c.timeout, interval, "timeout");
        if let Some(at) = &c.fast_interval
            && fast_interval > interval
        {
            self.bad
                .push(at.span(), "fast_interval is longer than interval");
        }
        CheckTiming {
            interval,
            fast_interval,
            down_interval,
            timeout,
            rise: self.number(c.rise.as_ref(), 2, "rise", 1..=1000),
            fall: self.number(c.fall.as_ref(), 2, "fall", 1..=1000),
        }
    }

    fn via(&mut self, c: &RawCheck) -> Via {
        let mut number = |at: &Option<Spanned<i64>>, what: &str, least: i64, most: i64| {
            let range = least..=most;
            at.as_ref()
                .map(|n| self.number(Some(n), 0_u32, what, range))
        };
        let port = number(&c.connect_port, "connect_port", 1, 65_535);
        let mark = number(&c.fwmark, "fwmark", 1, i64::from(u32::MAX));
        let dscp = number(&c.dscp, "dscp", 0, 63);
        let connect = c.connect_address.as_ref();
        let source = c.source.as_ref();
        Via {
            address: connect.and_then(|t| self.value(t, address)),
            port: port.and_then(|n| u16::try_from(n).ok()),
            source: source.and_then(|t| self.value(t, address)),
            interface: c
                .interface
                .as_ref()
                .and_then(|t| self.value(t, interface_name)),
            mark,
            dscp: dscp.and_then(|n| u8::try_from(n).ok()),
            through: false,
        }
    }

    /// What cannot be together on the way out of this host.
    fn ways_out(&mut self, c: &RawCheck, via: &Via, (key, forward): (ServiceKey, ForwardMethod)) {
        if let (Some(raw), Some(mark), false) = (&c.fwmark, via.mark, via.through)
            && self.marks.contains(mark)
        {
            let message = format!(
                "mark {mark} lies in probe_marks, {}: packets with it go where a check through a virtual address goes",
                self.marks
            );
            self.bad.push(raw.span(), message);
        }
        // A tunnel's servers may be of another family than their service.
        let towards = match via.address {
            Some(address) => Some(Family::of(address)),
            None if forward == ForwardMethod::Tun => None,
            None => Some(key.family()),
        };
        if let (Some(raw), Some(source), Some(towards)) = (&c.source, via.source, towards)
            && Family::of(source) != towards
        {
            self.bad
                .push(raw.span(), "source is of another family than what is asked");
        }
    }

    /// What a check through the virtual address needs besides.
    fn through(
        &mut self,
        c: &RawCheck,
        through: &Spanned<String>,
        (key, forward): (ServiceKey, ForwardMethod),
        via: &mut Via,
    ) {
        if through.get_ref() != "vip" {
            let message = format!(
                "{:?} is no way for a check: write \"vip\"",
                through.get_ref()
            );
            self.bad.push(through.span(), message);
        }
        if !matches!(forward, ForwardMethod::Dr | ForwardMethod::Tun) {
            let message = "through = \"vip\" is for forward = \"dr\" and \"tun\": with NAT a server never sees the virtual address";
            self.bad.push(through.span(), message);
        }
        if let Some(mark) = &c.fwmark {
            let message = "a check through the virtual address has a mark of its own, from [director] probe_marks: without fwmark";
            self.bad.push(mark.span(), message);
        }
        for (kind, there) in [
            ("icmp", c.icmp.is_some()),
            ("file", c.file.is_some()),
            ("external", c.external.is_some()),
        ] {
            if there {
                let message = format!("{kind} does not go through IPVS: without through");
                self.bad.push(through.span(), message);
            }
        }
        let Some(vip) = via.virtual_address(key) else {
            let message = "a service by firewall mark names no virtual address: give the check one with connect_address";
            self.bad.push(through.span(), message);
            return;
        };
        // An answer to the virtual address itself would be taken for a packet of another's.
        let own = via.source.or(self.own);
        match own.filter(|own| own.is_ipv4() == vip.is_ipv4()) {
            None => {
                let message = "name this director's own address towards the servers with source: [director] address is of another family";
                self.bad.push(through.span(), message);
            }
            Some(own) if own == vip => {
                let message = "a check through the virtual address cannot come from it: name an own address of this director with source";
                self.bad.push(through.span(), message);
            }
            Some(own) => via.source = Some(own),
        }
    }

    fn kind(&mut self, c: &RawCheck) -> Option<CheckKind> {
        if let Some(raw) = &c.tcp {
            return Some(CheckKind::Tcp(self.talk(raw)));
        }
        if let Some(raw) = &c.agent {
            if let Some(hold) = &raw.hold {
                self.bad.push(
                    hold.span(),
                    "an agent is asked anew each time: without hold",
                );
            }
            let expected = [&raw.expect, &raw.expect_regex, &raw.expect_hex];
            if let Some(expect) = expected.into_iter().flatten().next() {
                let message = "an agent's words are known: without expect";
                self.bad.push(expect.span(), message);
            }
            return Some(CheckKind::Agent(self.talk(raw)));
        }
        if let Some(raw) = &c.http {
            if let Some(tls) = &raw.tls {
                let message = "http is without TLS: write [virtual_service.check.https]";
                self.bad.push(tls.span(), message);
            }
            return Some(CheckKind::Http(Box::new(self.http(raw, None))));
        }
        if let Some(raw) = &c.https {
            let none = RawTls::default();
            let host = raw.host.as_ref().and_then(|h| sni_of(h.get_ref()));
            let tls = self.tls(raw.tls.as_ref().map_or(&none, Spanned::get_ref), host);
            return Some(CheckKind::Http(Box::new(self.http(raw, Some(tls)))));
        }
        if let Some(raw) = &c.tls {
            return Some(CheckKind::Tls(self.tls(raw, None)));
        }
        if let Some(raw) = &c.smtp {
            return Some(CheckKind::Smtp(self.smtp(raw)));
        }
        if let Some(raw) = &c.dns {
            return Some(CheckKind::Dns(self.dns(raw)));
        }
        if let Some(raw) = &c.udp {
            let expect = [
                raw.expect.as_ref().map(Expecting::Text),
                raw.expect_regex.as_ref().map(Expecting::Regex),
                raw.expect_hex.as_ref().map(Expecting::Hex),
            ];
            let expect = self.expect(expect);
            return Some(CheckKind::Udp(UdpCheck {
                send: self.send(raw.send.as_ref(), raw.send_hex.as_ref()),
                require_reply: raw.require_reply.unwrap_or(expect.is_some()),
                expect,
            }));
        }
        if let Some(raw) = &c.icmp {
            let size = self.number(raw.size.as_ref(), 56, "size", 0..=MOST_ECHO);
            return Some(CheckKind::Icmp(IcmpCheck { size }));
        }
        let logins = [&c.postgres, &c.mysql, &c.redis];
        if let Some(raw) = logins.into_iter().flatten().next() {
            let login = self.login(raw);
            return Some(match (&c.postgres, &c.mysql) {
                (Some(_), _) => CheckKind::Postgres(login),
                (None, Some(_)) => CheckKind::Mysql(login),
                (None, None) => CheckKind::Redis(login),
            });
        }
        if let Some(raw) = &c.grpc {
            let host = raw.host.as_ref().and_then(|h| self.value(h, host));
            let sni = host.as_deref().and_then(sni_of);
            return Some(CheckKind::Grpc(GrpcCheck {
                service: raw
                    .service
                    .as_ref()
                    .map_or_else(String::new, |s| s.get_ref().clone()),
                tls: raw.tls.as_ref().map(|tls| self.tls(tls, sni)),
                host,
            }));
        }
        if let Some(raw) = &c.file {
            let path = self.value(&raw.path, |t| match Path::new(t).is_absolute() {
                true => Ok(t.to_owned()),
                false => Err(format!("{t:?} is no absolute path")),
            });
            return Some(CheckKind::FromFile(FileCheck {
                path: path.unwrap_or_default(),
            }));
        }
        c.external.as_ref().map(|raw| {
            CheckKind::External(ExternalCheck {
                socket: self.path(&raw.socket),
                name: raw
                    .name
                    .as_ref()
                    .map_or_else(String::new, |n| n.get_ref().clone()),
            })
        })
    }

    fn talk(&mut self, raw: &RawTcp) -> TcpCheck {
        let expect = [
            raw.expect.as_ref().map(Expecting::Text),
            raw.expect_regex.as_ref().map(Expecting::Regex),
            raw.expect_hex.as_ref().map(Expecting::Hex),
        ];
        TcpCheck {
            send: self.send(raw.send.as_ref(), raw.send_hex.as_ref()),
            expect: self.expect(expect),
            hold: raw.hold.as_ref().is_some_and(|hold| *hold.get_ref()),
        }
    }

    fn send(&mut self, text: Option<&Spanned<String>>, hex: Option<&Spanned<String>>) -> Vec<u8> {
        if let (Some(_), Some(hex)) = (text, hex) {
            self.bad.push(hex.span(), "send and send_hex: keep one");
        }
        if let Some(text) = text {
            return text.get_ref().clone().into_bytes();
        }
        let pairs = hex.and_then(|hex| {
            self.value(hex, |t| match masked(t) {
                Some(pairs) if pairs.iter().all(|(_, mask)| *mask == 0xff) => Ok(pairs),
                _ => Err(format!("{t:?} is no row of bytes: write \"0d0a\"")),
            })
        });
        pairs.into_iter().flatten().map(|(byte, _)| byte).collect()
    }

    fn expect<const N: usize>(&mut self, all: [Option<Expecting<'_>>; N]) -> Option<Expect> {
        let mut named = all.into_iter().flatten();
        let first = named.next()?;
        if let Some(second) = named.next() {
            let message = "this says a second time what the answer has to be: keep one";
            self.bad.push(second.span(), message);
        }
        match first {
            Expecting::Text(text) => {
                if text.get_ref().is_empty() {
                    self.bad.push(text.span(), "nothing is in every answer: say what is expected");
                }
                Some(Expect::Text(text.get_ref().clone()))
            }
            Expecting::Regex(pattern) => self.value(pattern, |t| {
                Expect::compile(t).map(|_| Expect::Regex(t.to_owned()))
            }),
            Expecting::Hex(text) => self.value(text, |t| {
                masked(t).filter(|pairs| !pairs.is_empty()).map(Expect::Bytes).ok_or_else(|| {
                    format!("{t:?} is no row of bytes: write \"0d0a\", with ? for a digit of any value")
                })
            }),
            Expecting::Sha256(text) => self.value(text, digest).map(Expect::Sha256),
        }
    }

    fn http(&mut self, raw: &RawHttp, tls: Option<TlsOptions>) -> HttpCheck {
        let usual = HttpCheck::default();
        let body = [
            raw.body.as_ref().map(Expecting::Text),
            raw.body_regex.as_ref().map(Expecting::Regex),
            raw.body_sha256.as_ref().map(Expecting::Sha256),
        ];
        let status = raw.status.as_ref().and_then(|s| self.value(s, statuses));
        let path = raw
            .path
            .as_ref()
            .and_then(|p| self.value(p, path_and_query));
        let method = raw.method.as_ref().and_then(|m| self.value(m, method));
        let body = self.expect(body);
        if let (Some(method), Some("HEAD"), Some(_)) = (&raw.method, method.as_deref(), &body) {
            self.bad
                .push(method.span(), "an answer to HEAD has no body");
        }
        let version = raw.version.as_ref().and_then(|v| {
            self.value(v, |t| match t {
                "1.1" => Ok(HttpVersion::One),
                "2" => Ok(HttpVersion::Two),
                _ => Err(format!(
                    "{t:?} is no version of HTTP: write \"1.1\" or \"2\""
                )),
            })
        });
        let mut headers = BTreeMap::new();
        for (name, value) in &raw.headers {
            let key = self.value(name, header_name);
            let value = self.value(value, header_value);
            if let (Some(key), Some(value)) = (key, value) {
                headers.insert(key, value);
            }
        }
        HttpCheck {
            path: path.unwrap_or(usual.path),
            host: raw.host.as_ref().and_then(|h| self.value(h, host)),
            method: method.unwrap_or(usual.method),
            headers,
            credentials: raw.credentials.as_ref().map(|c| self.secret(c)),
            status: status.unwrap_or(usual.status),
            body,
            version: version.unwrap_or_default(),
            tls,
        }
    }

    /// `sni` is what the check's host name says, if it has one.
    pub(super) fn tls(&mut self, raw: &RawTls, sni: Option<String>) -> TlsOptions {
        let named = raw.sni.as_ref().and_then(|s| self.value(s, server_name));
        let verify = match (&raw.verify, &raw.ca, &raw.pin_sha256) {
            (None, None, None) => Verify::System,
            (Some(verify), None, None) if *verify.get_ref() => Verify::System,
            (Some(_), None, None) => Verify::Off,
            (None, Some(ca), None) => Verify::Ca(self.path(ca)),
            (None, None, Some(pin)) => {
                let pin = self.value(pin, digest);
                Verify::Pin(PinDigest(pin.unwrap_or_default()))
            }
            (verify, ca, pin) => {
                let spans = [
                    verify.as_ref().map(Spanned::span),
                    ca.as_ref().map(Spanned::span),
                    pin.as_ref().map(Spanned::span),
                ];
                let last = spans.into_iter().flatten().max_by_key(|span| span.start);
                let message =
                    "verify, ca and pin_sha256 each say how the certificate is judged: keep one";
                self.bad.push(last.unwrap_or(0..0), message);
                Verify::System
            }
        };
        let client = match (&raw.certificate, &raw.key) {
            (Some(certificate), Some(key)) => Some((self.secret(certificate), self.secret(key))),
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => {
                let message = "certificate and key belong together: name both";
                self.bad.push(one.span(), message);
                None
            }
        };
        TlsOptions {
            sni: named.or(sni),
            verify,
            client,
            expiry_warning: self.duration(raw.expiry_warning.as_ref(), EXPIRY_WARNING),
        }
    }

    fn smtp(&mut self, raw: &RawSmtp) -> SmtpCheck {
        let tls = match (&raw.tls, &raw.starttls) {
            (None, None) => None,
            (Some(tls), None) => Some(SmtpTls::Implicit(self.tls(tls.get_ref(), None))),
            (None, Some(tls)) => Some(SmtpTls::Starttls(self.tls(tls.get_ref(), None))),
            (Some(_), Some(tls)) => {
                let message = "TLS begins with the first byte (tls) or later (starttls): keep one";
                self.bad.push(tls.span(), message);
                None
            }
        };
        SmtpCheck {
            ehlo: raw.ehlo.as_ref().and_then(|h| self.value(h, ehlo)),
            tls,
        }
    }

    fn dns(&mut self, raw: &RawDns) -> DnsCheck {
        let name = raw.name.as_ref().and_then(|n| self.value(n, domain_name));
        let record = raw.r#type.as_ref().and_then(|t| {
            self.value(t, |t| {
                let all = DnsType::ALL;
                let found = all.iter().find(|(_, name)| name.eq_ignore_ascii_case(t));
                found.map(|(record, _)| *record).ok_or_else(|| {
                    let names: Vec<_> = all.iter().map(|(_, name)| *name).collect();
                    format!(
                        "{t:?} is no type of record: write one of {}",
                        names.join(", ")
                    )
                })
            })
        });
        DnsCheck {
            name: name.unwrap_or_else(|| ".".to_owned()),
            record: record.unwrap_or_default(),
            tcp: raw.tcp.unwrap_or(false),
            answer: raw.answer.as_ref().map(|a| a.get_ref().clone()),
        }
    }

    fn login(&mut self, raw: &RawLogin) -> LoginCheck {
        if let (None, Some(database)) = (&raw.credentials, &raw.database) {
            let message = "a database is chosen after a login: name credentials, too";
            self.bad.push(database.span(), message);
        }
        LoginCheck {
            credentials: raw.credentials.as_ref().map(|c| self.secret(c)),
            database: raw.database.as_ref().map(|d| d.get_ref().clone()),
            tls: raw.tls.as_ref().map(|tls| self.tls(tls, None)),
        }
    }

    fn path(&mut self, path: &Spanned<PathBuf>) -> PathBuf {
        if !path.get_ref().is_absolute() {
            let message = format!("{:?} is no absolute path", path.get_ref());
            self.bad.push(path.span(), message);
        }
        path.get_ref().clone()
    }

    /// A file with a secret: a path, or the bare name of a systemd credential.
    pub(super) fn secret(&mut self, path: &Spanned<PathBuf>) -> PathBuf {
        let mut parts = path.get_ref().components();
        let bare = parts.next().is_some() && parts.next().is_none();
        if !path.get_ref().is_absolute() && !bare {
            let message = format!(
                "{:?} is neither an absolute path nor the name of a systemd credential",
                path.get_ref()
            );
            self.bad.push(path.span(), message);
        }
        path.get_ref().clone()
    }
}

/// What says how an answer is judged.
enum Expecting<'a> {
    Text(&'a Spanned<String>),
    Regex(&'a Spanned<String>),
    Hex(&'a Spanned<String>),
    Sha256(&'a Spanned<String>),
}

impl Expecting<'_> {
    fn span(&self) -> Range<usize> {
        match self {
            Self::Text(t) | Self::Regex(t) | Self::Hex(t) | Self::Sha256(t) => t.span(),
        }
    }
}

fn path_and_query(text: &str) -> Result<String, String> {
    let fits = text.starts_with('/')
        && text.parse::<hyper::http::uri::PathAndQuery>().is_ok()
        && !text.contains('#');
    match fits {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no path of a URL: it begins with / and has no blanks, # or <>"
        )),
    }
}

/// A host as requests name it, with or without a port.
fn host(text: &str) -> Result<String, String> {
    match text.parse::<hyper::http::uri::Authority>() {
        Ok(host) if !host.as_str().contains('@') => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is no host name: write \"shop.example\", \"shop.example:8443\" or \"[2001:db8::1]:8443\""
        )),
    }
}

/// What `EHLO` says: a name or an address in brackets (RFC 5321, section 4.1.3).
pub(super) fn ehlo(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name for EHLO")),
    }
}

/// A name as TLS sends it: no address, no port (RFC 6066, section 3).
fn server_name(text: &str) -> Result<String, String> {
    sni_of(text)
        .filter(|name| name == text)
        .ok_or_else(|| format!("{text:?} is no server name: write \"shop.example\""))
}

/// The name that TLS sends to a host; none to one that is an address.
pub(super) fn sni_of(host: &str) -> Option<String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let label = |label: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() < 64 && label.bytes().all(fits)
    };
    let is_name = name.split('.').all(label) && name.parse::<std::net::IpAddr>().is_err();
    (is_name && name.len() < 254).then(|| name.to_owned())
}

fn method(text: &str) -> Result<String, String> {
    match text.parse::<hyper::http::Method>() {
        Ok(method) if method != hyper::http::Method::CONNECT => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no method of HTTP")),
    }
}

fn header_name(text: &str) -> Result<String, String> {
    let name = text.parse::<hyper::http::HeaderName>();
    let name = name.map_err(|_e| format!("{text:?} is no name of a header"))?;
    match name.as_str() {
        "host" => Err("the Host header is named by host".to_owned()),
        "authorization" => {
            Err("a password belongs in the file that credentials names, not here".to_owned())
        }
        "content-length" | "transfer-encoding" | "connection" | "upgrade" => {
            Err(format!("{name} is written by the check itself"))
        }
        name => Ok(name.to_owned()),
    }
}

fn header_value(text: &str) -> Result<String, String> {
    match text.parse::<hyper::http::HeaderValue>() {
        Ok(value) if value.to_str().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no value of a header")),
    }
}

fn statuses(text: &str) -> Result<Vec<StatusRange>, String> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        (100 <= from && from <= to && to <= 599).then_some(StatusRange { from, to })
    };
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    ranges.ok_or_else(|| {
        format!(
            "{text:?} is no range of HTTP statuses: write \"200-299\", \"200\" or \"200-299, 401\""
        )
    })
}

fn domain_name(text: &str) -> Result<String, String> {
    match domain::base::Name::<Vec<u8>>::from_chars(text.chars()) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{text:?} is no domain name")),
    }
}

pub(super) fn interface_name(text: &str) -> Result<String, String> {
    // `dev_valid_name` in the kernel, `IFNAMSIZ` of 16 with the zero at the end.
    let fits = !text.is_empty()
        && text.len() < 16
        && !matches!(text, "." | "..")
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    match fits {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of an interface")),
    }
}

fn digest(text: &str) -> Result<[u8; 32], String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let bytes: Option<Vec<u8>> = masked(&digits).map(|pairs| {
        let sure = pairs.into_iter().filter(|(_, mask)| *mask == 0xff);
        sure.map(|(byte, _)| byte).collect()
    });
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("{text:?} is no SHA-256 digest: write its 64 hexadecimal digits"))
}

/// Bytes in hexadecimal, each with a mask of the bits that count: `?` is a digit of any value.
fn masked(text: &str) -> Option<Vec<(u8, u8)>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let nibble = |c: char| match c {
        '?' => Some((0, 0)),
        c => Some((u8::try_from(c.to_digit(16)?).ok()?, 0xf)),
    };
    if digits.len() % 2 == 1 {
        return None;
    }
    let pair = |pair: &[char]| match pair {
        [high, low] => {
            let ((high, high_mask), (low, low_mask)) = (nibble(*high)?, nibble(*low)?);
            Some((high << 4 | low, high_mask << 4 | low_mask))
        }
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests;
