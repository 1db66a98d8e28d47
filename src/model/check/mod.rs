//! What a check asks, from where and when, and what a probe found.

mod asks;
mod kind;
mod reason;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{DestKey, ServiceKey};

pub use kind::{
    CheckKind, DnsCheck, DnsType, Expect, ExternalCheck, FileCheck, GrpcCheck, HttpCheck,
    HttpVersion, IcmpCheck, LoginCheck, PinDigest, SmtpCheck, SmtpTls, StatusRange, TcpCheck,
    TlsOptions, UdpCheck, Verify,
};
pub use reason::{CertFault, FailClass, FailReason, Outcome, Phase, SqlState};

/// When a check runs and how many equal outcomes in a row make a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckTiming {
    /// From the start of a probe to the start of the next.
    pub interval: Duration,
    /// The same while a server that passed has failed, but not `fall` times.
    pub fast_interval: Duration,
    /// The same while it is down.
    pub down_interval: Duration,
    /// A probe without an answer fails after this.
    pub timeout: Duration,
    /// Passes in a row that bring a server back, at least 1.
    pub rise: u32,
    /// Failures in a row that take it out, at least 1.
    pub fall: u32,
}

impl CheckTiming {
    /// A suspected server is not asked more often than this where nobody says so.
    const SHORTEST_FAST: Duration = Duration::from_millis(50);

    /// The fast interval of an interval where none is named: a tenth, at least 50 ms.
    #[must_use]
    pub fn fast_of(interval: Duration) -> Duration {
        (interval / 10).max(Self::SHORTEST_FAST).min(interval)
    }

    /// As usual for this interval: that is the time-out and the interval while down, too.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            fast_interval: Self::fast_of(interval),
            down_interval: interval,
            timeout: interval,
            rise: 2,
            fall: 2,
        }
    }
}

/// How a probe leaves this host, and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Via {
    /// Another address than the server's own, keepalived's `connect_ip`.
    pub address: Option<IpAddr>,
    /// Another port, keepalived's `connect_port`.
    pub port: Option<u16>,
    /// Source address, keepalived's `bindto`.
    pub source: Option<IpAddr>,
    /// Interface (`SO_BINDTODEVICE`), keepalived's `bind_if`.
    pub interface: Option<String>,
    /// Firewall mark (`SO_MARK`), keepalived's `fwmark`.
    pub mark: Option<u32>,
    /// Differentiated services code point, 0 to 63 (RFC 2474).
    pub dscp: Option<u8>,
    /// To the virtual address, through IPVS, as a client's packets travel: the mark says to which
    /// server.
    pub through: bool,
}

impl Via {
    /// Where a check of this server goes.
    #[must_use]
    pub fn towards(&self, server: SocketAddr) -> SocketAddr {
        SocketAddr::new(
            self.address.unwrap_or(server.ip()),
            self.port.unwrap_or(server.port()),
        )
    }

    /// The virtual address that a check of a service goes through; a service by firewall mark has none
    /// of its own.
    #[must_use]
    pub fn virtual_address(&self, service: ServiceKey) -> Option<IpAddr> {
        let own = match service {
            ServiceKey::Addr(_, vip) => Some(vip.ip()),
            ServiceKey::Fwmark(..) => None,
        };
        self.address.or(own)
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckSpec {
    /// What is asked.
    pub kind: CheckKind,
    /// From where, and where.
    #[serde(default)]
    pub via: Via,
    /// When.
    pub timing: CheckTiming,
}

impl CheckSpec {
    /// The check as it is made of a destination through the virtual address, and where it goes: on the
    /// hidden service with this mark.
    #[must_use]
    pub fn on_way(
        &self,
        service: ServiceKey,
        dest: DestKey,
        mark: u32,
    ) -> Option<(SocketAddr, Arc<Self>)> {
        let at = SocketAddr::new(
            self.via.virtual_address(service)?,
            self.via.port.unwrap_or(dest.port),
        );
        let via = Via {
            address: None,
            port: None,
            mark: Some(mark),
            ..self.via.clone()
        };
        let spec = Self {
            via,
            ..self.clone()
        };
        Some((at, Arc::new(spec)))
    }
}

/// How many of a server's checks have to be passed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// Every one.
    #[default]
    All,
    /// So many, at least 1.
    AtLeast(u32),
}

impl Need {
    /// The number, of `checks` in all.
    #[must_use]
    pub fn of(self, checks: usize) -> usize {
        match self {
            Self::All => checks,
            Self::AtLeast(n) => usize::try_from(n)
                .unwrap_or(usize::MAX)
                .clamp(1, checks.max(1)),
        }
    }
}

/// The checks of a virtual service. None: its servers count as up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Each, in the configuration's order.
    pub all: Vec<Arc<CheckSpec>>,
    /// How many have to be passed.
    pub need: Need,
}

impl Checks {
    /// Whether anybody is asked.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.all.is_empty()
    }

    /// The most passes in a row that one of them wants.
    #[must_use]
    pub fn rise(&self) -> u32 {
        self.all.iter().map(|c| c.timing.rise).max().unwrap_or(1)
    }
}

/// What becomes of a failed server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// It is taken out of the service, with its connections.
    Remove,
    /// It keeps its connections, at weight 0.
    Quiesce,
}

/// The same, by what its failure says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnFailure {
    /// It serves nobody.
    pub gone: Removal,
    /// It wants no more to do.
    pub busy: Removal,
    /// Its certificate's time is over.
    pub certificate: Removal,
}

impl Default for OnFailure {
    fn default() -> Self {
        Self {
            gone: Removal::Remove,
            busy: Removal::Quiesce,
            certificate: Removal::Quiesce,
        }
    }
}

impl OnFailure {
    /// What becomes of a server that failed so.
    #[must_use]
    pub const fn of(self, reason: FailReason) -> Removal {
        match reason.class() {
            FailClass::Gone => self.gone,
            FailClass::Busy => self.busy,
            FailClass::Certificate => self.certificate,
        }
    }

    /// Whether one that failed may be quiesced.
    #[must_use]
    pub fn quiesces(self) -> bool {
        [self.gone, self.busy, self.certificate].contains(&Removal::Quiesce)
    }

    /// Whether one that failed may be removed.
    #[must_use]
    pub fn removes(self) -> bool {
        [self.gone, self.busy, self.certificate].contains(&Removal::Remove)
    }
}

/// How much weight a service's servers must have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumRule {
    /// Below this, less `hysteresis`, it is lost.
    pub quorum: u32,
    /// From `quorum` and this on it is held again.
    pub hysteresis: u32,
}

impl Default for QuorumRule {
    /// One server suffices.
    fn default() -> Self {
        Self {
            quorum: 1,
            hysteresis: 0,
        }
    }
}

/// What a server, a file or a helper wants of the server's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// A part of the configured weight, in percent; 0 drains.
    Percent(u16),
    /// This weight; 0 drains.
    Weight(u16),
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(0) | Self::Weight(0) => f.write_str("drain"),
            Self::Percent(p) => write!(f, "{p}% of its weight"),
            Self::Weight(w) => write!(f, "weight {w}"),
        }
    }
}

/// One check of a destination of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Virtual service.
    pub service: ServiceKey,
    /// Its destination.
    pub dest: DestKey,
    /// Which of the service's checks.
    pub check: usize,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The verdict.
    pub outcome: Outcome,
    /// What the server wants of its weight, if it says so.
    pub advice: Option<Advice>,
    /// What is worth knowing beside the reason: the first of the answer, the server's own words.
    pub detail: Option<Arc<str>>,
    /// When the server's certificate ends, in seconds since 1970.
    pub certificate_ends: Option<i64>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Found {
    /// Nothing but this.
    #[must_use]
    pub const fn of(outcome: Outcome, elapsed: Duration) -> Self {
        Self {
            outcome,
            advice: None,
            detail: None,
            certificate_ends: None,
            elapsed,
        }
    }

    /// Nothing of the server, for a reason of this host's own.
    #[must_use]
    pub fn local(why: impl Into<Arc<str>>) -> Self {
        Self {
            detail: Some(why.into()),
            ..Self::of(Outcome::Fail(FailReason::Local), Duration::ZERO)
        }
    }
}

/// How a server that comes and goes is held out (RFC 2439 in small): each fall adds 1 to a penalty that
/// halves with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damping {
    /// The penalty halves in this time; zero holds nobody out.
    pub half_life: Duration,
    /// At this penalty it is held out.
    pub suppress: u32,
    /// Under this it may come back.
    pub reuse: u32,
}

impl Damping {
    /// The penalty grows to so many times `reuse`, and no further: three half-lives bring it there.
    pub const MOST: u32 = 8;

    /// Whether anybody can be held out.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        !self.half_life.is_zero()
    }
}

impl Default for Damping {
    /// The fourth fall within about a minute holds out, for a minute to three.
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(60),
            suppress: 3,
            reuse: 2,
        }
    }
}
