//! `director.toml`.

mod address;
mod check;
mod group;
mod guard;
mod hooks;
mod keeping;
mod operators;
mod service;
mod stop;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use self::{
    address::{Managing, RawAddresses},
    check::{OneOrMany, RawCheck, RawDamping, RawNeed},
    group::{Families, Listed, server_address},
    hooks::{RawMail, RawSmtp, RawWebhook},
    keeping::Needs,
    operators::RawOperators,
    service::RawTunnel,
};
use super::{Diagnostics, TlsFiles, duration, kernel, tls::RawTls};
use crate::model::{
    CheckSpec, Checks, Damping, DestAttrs, DestKey, DirectorName, DriftPolicy, Family,
    ForwardMethod, Hooks, Initial, Keeping, ManagedAddress, Marks, OnFailure, OnStop, Operators,
    Persistence, Protocol, QuorumRule, Removal, Scheduler, ServiceAttrs, ServiceFlags, ServiceKey,
    StopPolicy, Sysctl, Tunnel, Weight,
};

/// A director's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Director {
    /// Its name at the provisioner.
    pub name: DirectorName,
    /// Its identity: the source address of configuration requests.
    pub address: IpAddr,
    /// Folder of its state file.
    pub state_dir: PathBuf,
    /// Operator socket.
    pub socket: PathBuf,
    /// Whether nothing is written: it runs beside another program, and tells what it would do otherwise.
    pub shadow: bool,
    /// Whether services in the kernel that stand in no configuration are removed.
    pub exclusive: bool,
    /// What becomes of the services when it is told to end.
    pub stop: StopPolicy,
    /// How often the whole table is read to heal drift.
    pub resync: Duration,
    /// How long a server that is drained may keep its connections.
    pub drain_timeout: Duration,
    /// Firewall marks for hidden services.
    pub probe_marks: Marks,
    /// Which groups may use the operator socket; none: whom its permissions let in, to ask.
    pub operators: Option<Operators>,
    /// Where `/metrics` listens.
    pub metrics: Option<SocketAddr>,
    /// The provisioner, if servers are to be replaced.
    pub provisioner: Option<ProvisionerLink>,
    /// When a failed server is replaced.
    pub replacement: ReplacementPolicy,
    /// When the director doubts itself.
    pub mass_failure: Option<MassFailure>,
    /// Who is told of events.
    pub hooks: Hooks,
    /// Settings of the kernel that are to hold, in the file's order.
    pub kernel: Vec<Sysctl>,
    /// The mark of virtual addresses that this director has put on (`IFA_PROTO`).
    pub address_proto: u8,
    /// Virtual services.
    pub services: BTreeMap<ServiceKey, VirtualService>,
}

impl Director {
    /// The same as a shadow: it has a folder and a socket of its own, writes no setting, asks nobody for spares,
    /// removes nothing, and leaves virtual addresses to whoever it stands beside.
    #[must_use]
    pub fn shadowed(mut self) -> Self {
        for service in self.services.values_mut() {
            service.address = None;
        }
        let mut socket = self.socket.into_os_string();
        socket.push(".shadow");
        Self {
            shadow: true,
            // It has nothing there that it could take away.
            stop: StopPolicy {
                on_stop: OnStop::Leave,
                ..self.stop
            },
            exclusive: false,
            provisioner: None,
            kernel: Vec::new(),
            metrics: None,
            state_dir: self.state_dir.join("shadow"),
            socket: socket.into(),
            ..self
        }
    }

    /// What of another configuration this one cannot become while the director runs, by its name in the file.
    #[must_use]
    pub fn fixed(&self, other: &Self) -> Vec<&'static str> {
        let fixed = [
            ("[director] name", self.name == other.name),
            ("[director] address", self.address == other.address),
            ("[director] state_dir", self.state_dir == other.state_dir),
            ("[director] socket", self.socket == other.socket),
            (
                "[director] probe_marks",
                self.probe_marks == other.probe_marks,
            ),
            (
                "[director.addresses] proto",
                self.address_proto == other.address_proto,
            ),
            ("[metrics]", self.metrics == other.metrics),
            ("[provisioner]", self.provisioner == other.provisioner),
        ];
        let differs = fixed.into_iter().filter(|(_, same)| !same);
        differs.map(|(name, _)| name).collect()
    }

    /// Whether any check goes through a virtual address, on a hidden service.
    #[must_use]
    pub fn has_hidden_services(&self) -> bool {
        let checks = self.services.values().flat_map(|s| &s.checks.all);
        checks.into_iter().any(|check| check.via.through)
    }
}

/// How the provisioner is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvisionerLink {
    /// Its identity: the destination address of configuration requests.
    pub address: IpAddr,
    /// Where it listens: one, or those of all provisioners of a fleet. Never empty.
    pub at: Vec<Endpoint>,
    /// What is spoken TLS with, where any of them wants it.
    pub tls: Option<TlsFiles>,
}

/// Where an HTTP API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port on loopback.
    Tcp(SocketAddr),
    /// A TCP port where mutual TLS is spoken.
    Tls {
        /// Its host by name or address, as its certificate names it.
        host: String,
        /// The port.
        port: u16,
    },
}

/// When a failed server is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplacementPolicy {
    /// How long it must have failed.
    pub replace_after: Duration,
    /// In which of its services it must fail.
    pub failing_in: FailingIn,
    /// So many replacements run at a time.
    pub at_once: usize,
    /// So many of them for the servers of one service.
    pub at_once_per_service: usize,
    /// So many are asked for within an hour.
    pub per_hour: usize,
    /// What becomes of its stand-in when it is well again.
    pub then: AfterReplacement,
}

/// When so many servers fail at once that the director doubts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MassFailure {
    /// More than this share of all servers, in percent.
    pub share: u8,
    /// Within this time.
    pub within: Duration,
    /// Addresses that must answer: an echo, or a TCP connection where there is a port.
    pub witnesses: Vec<Witness>,
    /// Whether removals wait until it is known; requests for spares always do.
    pub holds_removals: bool,
    /// How long, where there is no witness.
    pub hold_for: Duration,
}

/// Who says whether this director is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Witness {
    /// Address.
    pub addr: IpAddr,
    /// TCP port; none: an echo.
    pub port: Option<u16>,
}

/// How few of a service's servers may be left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PanicRule {
    /// In percent of those that no operator has put aside; 0: none has to be.
    pub threshold: u8,
    /// Whether the last ones stay though they fail.
    pub stays: bool,
}

/// What becomes of a stand-in when the server is well again whose place it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReplacement {
    /// It keeps the place.
    KeepSpare,
    /// The server has its place back once it has passed its checks for so long.
    Restore {
        /// For how long.
        after: Duration,
    },
}

/// In which of its services a server must fail to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailingIn {
    /// In all.
    All,
    /// In one or more.
    Any,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// What the kernel is told of it.
    pub attrs: ServiceAttrs,
    /// Forwarding method of its destinations.
    pub forward: ForwardMethod,
    /// What becomes of what others change in it.
    pub drift: DriftPolicy,
    /// Its checks.
    pub checks: Checks,
    /// How servers that come and go are held out.
    pub damping: Damping,
    /// Its real servers, with what the kernel is told of each in service.
    pub servers: BTreeMap<DestKey, DestAttrs>,
    /// How one comes in that is new.
    pub initial: Initial,
    /// How long one that comes in takes to get its whole share of new connections.
    pub slow_start: Option<Duration>,
    /// What becomes of one that fails.
    pub on_failure: OnFailure,
    /// How few of them may be left.
    pub panic: PanicRule,
    /// What becomes of the persistent clients of one that is quiesced; as the kernel's setting is, where it
    /// is not said.
    pub keeping: Option<Keeping>,
    /// How much of them it takes.
    pub quorum: QuorumRule,
    /// Who serves while the quorum is lost.
    pub sorry: BTreeMap<DestKey, DestAttrs>,
    /// Their checks.
    pub sorry_checks: Checks,
    /// What becomes of its address, if the director manages that.
    pub address: Option<ManagedAddress>,
}

impl VirtualService {
    /// The checks of one of its destinations.
    #[must_use]
    pub fn checks_of(&self, dest: &DestKey) -> &Checks {
        match self.sorry.contains_key(dest) {
            true => &self.sorry_checks,
            false => &self.checks,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    director: RawDirector,
    provisioner: Option<RawProvisioner>,
    operators: Option<RawOperators>,
    metrics: Option<RawMetrics>,
    replacement: Option<RawReplacement>,
    mass_failure: Option<guard::RawMassFailure>,
    #[serde(default)]
    webhook: Vec<RawWebhook>,
    smtp: Option<Spanned<RawSmtp>>,
    #[serde(default)]
    mail: Vec<RawMail>,
    #[serde(default)]
    kernel: kernel::Raw,
    #[serde(default)]
    virtual_service: Vec<Spanned<RawService>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDirector {
    name: Spanned<String>,
    address: Spanned<String>,
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    #[serde(default)]
    exclusive: bool,
    resync: Option<Spanned<String>>,
    on_stop: Option<Spanned<String>>,
    stop_timeout: Option<Spanned<String>>,
    drift: Option<Spanned<String>>,
    drain_timeout: Option<Spanned<String>>,
    probe_marks: Option<Spanned<String>>,
    #[serde(default)]
    manage_addresses: bool,
    addresses: Option<Spanned<RawAddresses>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProvisioner {
    address: Spanned<String>,
    socket: Option<Spanned<PathBuf>>,
    tcp: Option<Spanned<String>>,
    urls: Option<Spanned<Vec<Spanned<String>>>>,
    tls: Option<Spanned<RawTls>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReplacement {
    replace_after: Option<Spanned<String>>,
    failing_in: Option<FailingIn>,
    at_once: Option<Spanned<i64>>,
    at_once_per_service: Option<Spanned<i64>>,
    per_hour: Option<Spanned<i64>>,
    then: Option<Spanned<String>>,
    restore_after: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    address: Option<Spanned<Listed<String>>>,
    protocol: Option<Spanned<String>>,
    fwmark: Option<Spanned<Listed<i64>>>,
    family: Option<Spanned<String>>,
    scheduler: Spanned<String>,
    #[serde(default)]
    scheduler_flags: Vec<Spanned<String>>,
    one_packet: Option<Spanned<bool>>,
    forward: Spanned<String>,
    tunnel: Option<Spanned<RawTunnel>>,
    drift: Option<Spanned<String>>,
    persistence_timeout: Option<Spanned<String>>,
    persistence_prefix: Option<Spanned<i64>>,
    persistence_engine: Option<Spanned<String>>,
    check: Option<Spanned<OneOrMany<RawCheck>>>,
    checks_needed: Option<Spanned<RawNeed>>,
    damping: Option<RawDamping>,
    #[serde(default)]
    real_server: Vec<RawServer>,
    panic_threshold: Option<Spanned<String>>,
    panic: Option<Spanned<String>>,
    initial: Option<Spanned<String>>,
    slow_start: Option<Spanned<String>>,
    on_failure: Option<Spanned<RawOnFailure>>,
    persistence_on_failure: Option<Spanned<String>>,
    quorum: Option<Spanned<i64>>,
    hysteresis: Option<Spanned<i64>>,
    #[serde(default)]
    sorry_server: Vec<RawServer>,
    sorry_check: Option<Spanned<OneOrMany<RawCheck>>>,
    manage_addresses: Option<Spanned<bool>>,
    addresses: Option<Spanned<RawAddresses>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOnFailure {
    gone: Option<Removal>,
    busy: Option<Removal>,
    certificate: Option<Removal>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    address: Spanned<String>,
    weight: Option<Spanned<i64>>,
    upper_threshold: Option<Spanned<i64>>,
    lower_threshold: Option<Spanned<i64>>,
}

/// Reads the text of `director.toml`.
///
/// # Errors
///
/// Every mistake found, each at its place.
pub fn parse(path: &Path, source: &str) -> Result<Director, Diagnostics> {
    let raw: Raw = Diagnostics::parse(path, source)?;
    let mut r = Reader {
        bad: Diagnostics::new(path, source),
        own: None,
        marks: Marks::default(),
        templates: None,
    };
    let unspecified = IpAddr::from([0, 0, 0, 0]);
    let name = r.value(&raw.director.name, |t| t.parse::<DirectorName>());
    r.own = r.value(&raw.director.address, address);
    let address = r.own.unwrap_or(unspecified);
    let marks = raw.director.probe_marks.as_ref();
    let probe_marks = marks.and_then(|m| r.value(m, str::parse::<Marks>));
    let probe_marks = probe_marks.unwrap_or_default();
    r.marks = probe_marks;
    let resync = r.duration(raw.director.resync.as_ref(), Duration::from_secs(10));
    r.at_least(
        raw.director.resync.as_ref(),
        resync,
        Duration::from_millis(100),
        "resync",
    );
    let stop = r.stop(&raw.director);
    let drift = r.drift(raw.director.drift.as_ref(), DriftPolicy::default());
    let drain_timeout = r.duration(
        raw.director.drain_timeout.as_ref(),
        Duration::from_secs(300),
    );
    let provisioner = raw.provisioner.as_ref().map(|p| r.provisioner(p));
    let operators = raw.operators.as_ref().map(|o| r.operators(o));
    let metrics = raw
        .metrics
        .as_ref()
        .and_then(|m| r.value(&m.listen, socket_address));
    let policy = raw.replacement.as_ref();
    let replacement = ReplacementPolicy {
        replace_after: r.duration(
            policy.and_then(|p| p.replace_after.as_ref()),
            Duration::from_secs(60),
        ),
        failing_in: policy.and_then(|p| p.failing_in).unwrap_or(FailingIn::All),
        at_once: r.number(
            policy.and_then(|p| p.at_once.as_ref()),
            1,
            "at_once",
            1..=1000,
        ),
        at_once_per_service: r.number(
            policy.and_then(|p| p.at_once_per_service.as_ref()),
            1,
            "at_once_per_service",
            1..=1000,
        ),
        per_hour: r.number(
            policy.and_then(|p| p.per_hour.as_ref()),
            10,
            "per_hour",
            1..=1000,
        ),
        then: r.after_replacement(policy),
    };
    let mass_failure = raw.mass_failure.as_ref().map(|m| r.mass_failure(m));
    let hooks = r.hooks(&raw.webhook, raw.smtp.as_ref(), &raw.mail);
    let mut kernel = raw.kernel.read(&mut r.bad);
    let mut managing = Managing::new(&mut r, &raw.director);
    let mut services: BTreeMap<ServiceKey, VirtualService> = BTreeMap::new();
    let mut places: BTreeMap<ServiceKey, usize> = BTreeMap::new();
    for raw in &raw.virtual_service {
        let keys = r.service_keys(raw);
        let families = Families::of(&keys);
        let first = r.bad.count();
        for (key, span) in keys {
            let known = r.bad.count();
            let mut service = r.service((key, &span), raw.get_ref(), &families, drift);
            service.address = managing.of(&mut r, key, raw.get_ref(), &span);
            // What is wrong in several services of a group is wrong once.
            r.bad.forget_repeated(first, known);
            if let ServiceKey::Fwmark(_, mark) = key
                && probe_marks.contains(mark)
            {
                let message = format!(
                    "mark {mark} lies in probe_marks, {probe_marks}, which are for checks through virtual addresses: take another one, or move probe_marks"
                );
                r.bad.push(span.clone(), message);
            }
            if let Some(first) = places.insert(key, span.start) {
                let (line, _) = r.bad.position(first);
                r.bad.push(span, format!("virtual service {key} stands here a second time, first in line {line}: merge the two"));
            }
            services.insert(key, service);
        }
    }
    r.declare_setting(&mut kernel);
    let Some(name) = name else {
        return Err(r.bad.sorted());
    };
    let state_dir = raw
        .director
        .state_dir
        .unwrap_or_else(|| PathBuf::from("/var/lib/understudy/director"));
    let socket = raw
        .director
        .socket
        .unwrap_or_else(|| PathBuf::from("/run/understudy/director.sock"));
    let exclusive = raw.director.exclusive;
    r.bad.or(Director {
        name,
        address,
        state_dir,
        socket,
        shadow: false,
        exclusive,
        stop,
        resync,
        drain_timeout,
        probe_marks,
        operators,
        metrics,
        provisioner,
        replacement,
        mass_failure,
        hooks,
        kernel,
        address_proto: managing.proto,
        services,
    })
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_e| format!("{text:?} is no IP address"))
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let at = socket_address(text)?;
    match at.ip().is_loopback() {
        true => Ok(at),
        false => Err("tcp must be a loopback address: a provisioner on another host is named by urls = [\"https://HOST:PORT\"], with [provisioner.tls]".to_owned()),
    }
}

/// `https://HOST:PORT`, and nothing behind it.
fn url(text: &str) -> Result<Endpoint, String> {
    let bad = || format!("{text:?} names no provisioner: write \"https://HOST:PORT\"");
    let rest = text.strip_prefix("https://").ok_or_else(bad)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(bad)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let good = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= 253 && host.chars().all(plain),
    };
    match good {
        true => Ok(Endpoint::Tls {
            host: bare.unwrap_or(host).to_owned(),
            port,
        }),
        false => Err(bad()),
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse() {
        Ok(SocketAddr::V6(a)) if a.scope_id() != 0 => {
            Err(format!("{text:?} has a scope: IPVS knows none"))
        }
        Ok(at) => Ok(at),
        Err(_) => Err(format!(
            "{text:?} is no address and port: write \"192.0.2.1:80\" or \"[2001:db8::1]:80\""
        )),
    }
}

/// Reads values, and notes each mistake at its place.
struct Reader {
    bad: Diagnostics,
    /// The director's own address.
    own: Option<IpAddr>,
    /// Firewall marks for probes.
    marks: Marks,
    /// What services need of the setting that says what becomes of persistent clients.
    templates: Option<Needs>,
}

impl Reader {
    fn value<T, E: ToString>(
        &mut self,
        text: &Spanned<String>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(text.get_ref())
            .map_err(|e| self.bad.push(text.span(), e.to_string()))
            .ok()
    }

    fn number<T: TryFrom<i64>>(
        &mut self,
        number: Option<&Spanned<i64>>,
        default: T,
        what: &str,
        range: RangeInclusive<i64>,
    ) -> T {
        let Some(n) = number else { return default };
        match T::try_from(*n.get_ref()) {
            Ok(value) if range.contains(n.get_ref()) => value,
            _ => {
                let (low, high) = (range.start(), range.end());
                self.bad.push(
                    n.span(),
                    format!("{what} is {low} to {high}, not {}", n.get_ref()),
                );
                default
            }
        }
    }

    fn duration(&mut self, text: Option<&Spanned<String>>, default: Duration) -> Duration {
        text.and_then(|t| self.value(t, duration::parse))
            .unwrap_or(default)
    }

    fn at_least(&mut self, at: Option<&Spanned<String>>, d: Duration, min: Duration, what: &str) {
        if let Some(at) = at
            && d < min
        {
            self.bad
                .push(at.span(), format!("{what} is at least {min:?}"));
        }
    }

    fn drift(&mut self, text: Option<&Spanned<String>>, default: DriftPolicy) -> DriftPolicy {
        text.and_then(|t| self.value(t, str::parse))
            .unwrap_or(default)
    }

    fn after_replacement(&mut self, raw: Option<&RawReplacement>) -> AfterReplacement {
        let (then, after) = (
            raw.and_then(|r| r.then.as_ref()),
            raw.and_then(|r| r.restore_after.as_ref()),
        );
        let restores = then.and_then(|t| {
            self.value(t, |text| match text {
                "keep-spare" => Ok(false),
                "restore" => Ok(true),
                _ => Err(format!(
                    "{text:?} is no choice: write keep-spare or restore"
                )),
            })
        });
        match (restores, after) {
            (Some(true), after) => AfterReplacement::Restore {
                after: self.duration(after, Duration::from_secs(60)),
            },
            (Some(false) | None, Some(orphan)) => {
                let message = "restore_after goes with then = \"restore\"";
                self.bad.push(orphan.span(), message);
                AfterReplacement::KeepSpare
            }
            (Some(false) | None, None) => AfterReplacement::KeepSpare,
        }
    }

    fn provisioner(&mut self, raw: &RawProvisioner) -> ProvisionerLink {
        let address = self
            .value(&raw.address, address)
            .unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let urls = raw.urls.iter().flat_map(Spanned::get_ref);
        let mut at: Vec<Endpoint> = urls.filter_map(|u| self.value(u, url)).collect();
        let over_tls = raw.urls.is_some();
        if let Some(none) = raw.urls.as_ref().filter(|urls| urls.get_ref().is_empty()) {
            let message = "urls is empty: name at least one, \"https://HOST:PORT\"";
            self.bad.push(none.span(), message);
        }
        if let Some(s) = &raw.socket {
            at.push(Endpoint::Unix(s.get_ref().clone()));
        }
        if let Some(t) = &raw.tcp {
            at.extend(self.value(t, loopback).map(Endpoint::Tcp));
        }
        let ways = [over_tls, raw.socket.is_some(), raw.tcp.is_some()];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            let second = raw.tcp.as_ref().map(Spanned::span);
            let second = second.or(raw.socket.as_ref().map(Spanned::span));
            let message = "[provisioner] has more than one of socket, tcp and urls: keep one";
            self.bad.push(second.unwrap_or_default(), message);
        }
        if at.is_empty() {
            let default = "/run/understudy/provisioner.sock";
            at.push(Endpoint::Unix(PathBuf::from(default)));
        }
        let tls = raw.tls.as_ref();
        match (over_tls, tls) {
            (false, Some(tls)) => self.bad.push(
                tls.span(),
                "[provisioner.tls] goes with [provisioner] urls = [\"https://HOST:PORT\"]",
            ),
            (true, None) => self.bad.push(
                raw.address.span(),
                "a provisioner at one of urls knows its directors by certificates: name certificate, key and ca in [provisioner.tls]",
            ),
            (false, None) | (true, Some(_)) => {}
        }
        let tls = tls.map(|tls| RawTls::files(tls, &mut self.bad));
        ProvisionerLink { address, at, tls }
    }

    fn service(
        &mut self,
        (key, at): (ServiceKey, &Range<usize>),
        s: &RawService,
        families: &Families,
        drift: DriftPolicy,
    ) -> VirtualService {
        let scheduler = self
            .value(&s.scheduler, service::scheduler)
            .unwrap_or_else(|| Scheduler(String::new()));
        let forward = self
            .value(&s.forward, service::forward)
            .unwrap_or(ForwardMethod::Nat);
        let tunnel = self.tunnel(s.tunnel.as_ref(), forward);
        let drift = self.drift(s.drift.as_ref(), drift);
        let one_packet = s.one_packet.as_ref().filter(|o| *o.get_ref());
        let mut flags = one_packet.map_or(0, |_| ServiceFlags::ONE_PACKET);
        for f in &s.scheduler_flags {
            flags |= self
                .value(f, |t| service::scheduler_flag(t, &scheduler))
                .unwrap_or(0);
        }
        if let Some(at) = one_packet
            && !matches!(
                key,
                ServiceKey::Addr(Protocol::Udp, _) | ServiceKey::Fwmark(..)
            )
        {
            self.bad.push(at.span(), "one_packet is for UDP services");
        }
        let attrs = ServiceAttrs {
            scheduler,
            flags: ServiceFlags(flags),
            persistence: self.persistence(key, s),
        };
        if let ServiceKey::Addr(_, vip) = key
            && vip.port() == 0
            && s.persistence_timeout.is_none()
        {
            self.bad.push(at.clone(), "port 0 stands for every port, which the kernel serves only with persistence: give persistence_timeout, or a port");
        }
        let checks = self.checks(
            s.check.as_ref(),
            s.checks_needed.as_ref(),
            (key, forward),
            s.scheduler.span(),
        );
        let mut servers = BTreeMap::new();
        let own = families.part(key, forward, &s.real_server);
        if own.is_empty() && !s.real_server.is_empty() {
            let message = format!("none of the real servers is of the family of {key}");
            self.bad.push(at.clone(), message);
        }
        for raw in own {
            if let Some((dest, attrs)) = self.server(key, &checks, (forward, tunnel), raw)
                && servers.insert(dest, attrs).is_some()
            {
                self.bad.push(
                    raw.address.span(),
                    format!("real server {dest} stands a second time in {key}"),
                );
            }
        }
        let sorry_checks = self.sorry_checks(key, forward, s);
        let mut sorry = BTreeMap::new();
        for raw in families.part(key, forward, &s.sorry_server) {
            let read = self.server(key, &sorry_checks, (forward, tunnel), raw);
            let Some((dest, attrs)) = read else { continue };
            let mut wrong = |what| self.bad.push(raw.address.span(), what);
            if attrs.weight == Weight::QUIESCED {
                wrong(format!(
                    "sorry server {dest} has weight 0: it would take nobody"
                ));
            }
            if servers.contains_key(&dest) {
                wrong(format!(
                    "sorry server {dest} is a real server of {key} too: keep one of the two"
                ));
            }
            if sorry.insert(dest, attrs).is_some() {
                wrong(format!("sorry server {dest} stands a second time in {key}"));
            }
        }
        let (on_failure, keeping) = self.on_failure(key, s);
        VirtualService {
            panic: self.panic(s),
            initial: self.initial(s),
            slow_start: self.slow_start(s, &attrs.scheduler, &servers),
            on_failure,
            keeping,
            quorum: self.quorum(s, &servers),
            sorry,
            sorry_checks,
            attrs,
            // Read by `Managing`, which knows the other services.
            address: None,
            forward,
            drift,
            checks,
            damping: self.damping(s.damping.as_ref()),
            servers,
        }
    }

    fn persistence(&mut self, key: ServiceKey, s: &RawService) -> Option<Persistence> {
        let whole: u8 = match key.family() {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let prefix = self.number(
            s.persistence_prefix.as_ref(),
            whole,
            "persistence_prefix",
            1..=i64::from(whole),
        );
        let Some(timeout) = &s.persistence_timeout else {
            let orphan = s.persistence_prefix.as_ref().map(Spanned::span);
            if let Some(span) = orphan.or(s.persistence_engine.as_ref().map(Spanned::span)) {
                self.bad.push(span, "persistence needs persistence_timeout");
            }
            return None;
        };
        let d = self.value(timeout, duration::parse)?;
        let seconds = u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
        if d.subsec_nanos() != 0 || !(1..=2_678_400).contains(&seconds) {
            self.bad.push(
                timeout.span(),
                "persistence_timeout is 1 s to 31 days in whole seconds",
            );
        }
        let engine = s.persistence_engine.as_ref();
        let engine = engine.and_then(|e| self.value(e, service::engine));
        Some(Persistence {
            timeout_s: seconds,
            prefix,
            engine,
        })
    }

    fn server(
        &mut self,
        key: ServiceKey,
        checks: &Checks,
        (forward, tunnel): (ForwardMethod, Tunnel),
        raw: &RawServer,
    ) -> Option<(DestKey, DestAttrs)> {
        let weight = match &raw.weight {
            None => Weight::ONE,
            Some(w) => Weight::try_from(*w.get_ref()).unwrap_or_else(|e| {
                self.bad.push(w.span(), format!("{e}, not {}", w.get_ref()));
                Weight::ONE
            }),
        };
        let most = i64::from(u32::MAX);
        let upper = self.number(raw.upper_threshold.as_ref(), 0, "upper_threshold", 0..=most);
        let lower = self.number(raw.lower_threshold.as_ref(), 0, "lower_threshold", 0..=most);
        if let Some(l) = &raw.lower_threshold
            && lower > upper
        {
            self.bad
                .push(l.span(), "lower_threshold is above upper_threshold");
        }
        let (addr, port) = self.value(&raw.address, server_address)?;
        // Without a port of its own it has its service's.
        let of_service = match key {
            ServiceKey::Fwmark(..) => 0,
            ServiceKey::Addr(_, vip) => vip.port(),
        };
        let dest = DestKey {
            addr,
            port: port.unwrap_or(of_service),
        };
        // Where nobody asks at its port it may keep the client's, as its service does.
        let any_port = of_service == 0;
        let asked = |c: &Arc<CheckSpec>| c.kind.needs_port() && c.via.port.is_none();
        if dest.port == 0 && (!any_port || checks.all.iter().any(asked)) {
            let message = "a real server needs its port, or its check a connect_port: that is where it is checked";
            self.bad.push(raw.address.span(), message);
        }
        if Family::of(dest.addr) != key.family() && forward != ForwardMethod::Tun {
            self.bad.push(
                raw.address.span(),
                format!("{dest} and {key} are of different families: only forward = \"tun\" can mix them"),
            );
        }
        if let ServiceKey::Addr(_, vip) = key
            && forward != ForwardMethod::Nat
            && vip.port() != dest.port
        {
            self.bad.push(
                raw.address.span(),
                format!(
                    "{dest} has another port than {key}: only forward = \"nat\" translates ports; without a port it has that of its service"
                ),
            );
        }
        Some((
            dest,
            DestAttrs {
                weight,
                forward,
                upper,
                lower,
                tunnel,
            },
        ))
    }
}
