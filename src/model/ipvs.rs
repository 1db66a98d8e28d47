//! IPVS's own terms. Facts: include/uapi/linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c (Linux 6.1).

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Address family of a service or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Transport protocol of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What makes a virtual service that one and no other. Text form: `tcp/192.0.2.1:80`,
/// `udp/[2001:db8::1]:53`, `fwmark/5`, `fwmark6/5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServiceKey {
    /// By protocol, address and port.
    Addr(Protocol, SocketAddr),
    /// By firewall mark (never zero) of packets of a family.
    Fwmark(Family, u32),
}

impl ServiceKey {
    /// The family of the service's address or mark.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::Addr(_, a) => Family::of(a.ip()),
            Self::Fwmark(f, _) => *f,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(Protocol::Tcp, a) => write!(f, "tcp/{a}"),
            Self::Addr(Protocol::Udp, a) => write!(f, "udp/{a}"),
            Self::Addr(Protocol::Sctp, a) => write!(f, "sctp/{a}"),
            Self::Fwmark(Family::V4, m) => write!(f, "fwmark/{m}"),
            Self::Fwmark(Family::V6, m) => write!(f, "fwmark6/{m}"),
        }
    }
}

/// A text that names no virtual service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no virtual service: write tcp/ADDRESS:PORT, udp/…, sctp/…, fwmark/NUMBER or fwmark6/NUMBER"
)]
pub struct ServiceKeyError(String);

impl FromStr for ServiceKey {
    type Err = ServiceKeyError;

    fn from_str(text: &str) -> Result<Self, ServiceKeyError> {
        let bad = || ServiceKeyError(text.to_owned());
        let (kind, rest) = text.split_once('/').ok_or_else(bad)?;
        let addr = |p| rest.parse().ok().map(|a| Self::Addr(p, a));
        let mark = |f| {
            rest.parse()
                .ok()
                .filter(|m| *m != 0)
                .map(|m| Self::Fwmark(f, m))
        };
        match kind {
            "tcp" => addr(Protocol::Tcp),
            "udp" => addr(Protocol::Udp),
            "sctp" => addr(Protocol::Sctp),
            "fwmark" => mark(Family::V4),
            "fwmark6" => mark(Family::V6),
            _ => None,
        }
        .ok_or_else(bad)
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = ServiceKeyError;

    fn try_from(text: String) -> Result<Self, ServiceKeyError> {
        text.parse()
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> Self {
        key.to_string()
    }
}

/// What makes a destination that one within its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DestKey {
    /// Address; its family may differ from the service's only for tunnels.
    pub addr: IpAddr,
    /// Port; zero for services by firewall mark that keep the client's port.
    pub port: u16,
}

impl fmt::Display for DestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", SocketAddr::new(self.addr, self.port))
    }
}

/// A destination's weight: zero quiesces, the kernel takes up to `i32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Weight(u32);

/// A number that is no weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a weight is 0 to {}", i32::MAX)]
pub struct NotAWeight;

impl Weight {
    /// Takes no new connections.
    pub const QUIESCED: Self = Self(0);
    /// The weight of a server that says none.
    pub const ONE: Self = Self(1);

    /// A small one.
    #[must_use]
    pub fn of(n: u16) -> Self {
        Self(n.into())
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// So many times as much, at most the most that there is.
    #[must_use]
    pub fn times(self, factor: u32) -> Self {
        let most = i32::MAX.unsigned_abs();
        Self(self.0.saturating_mul(factor).min(most))
    }

    /// Of so many equal parts one, rounded up.
    #[must_use]
    pub fn parted(self, parts: u32) -> Self {
        Self(self.0.div_ceil(parts.max(1)))
    }

    /// So much of it, rounded up: of a weight that is not 0 only 0 percent are nothing.
    #[must_use]
    pub fn percent(self, percent: u16) -> Self {
        let part = (u64::from(self.0) * u64::from(percent)).div_ceil(100);
        let most = i32::MAX.unsigned_abs();
        Self(u32::try_from(part).unwrap_or(most).min(most))
    }
}

impl TryFrom<i64> for Weight {
    type Error = NotAWeight;

    fn try_from(n: i64) -> Result<Self, NotAWeight> {
        u32::try_from(n)
            .ok()
            .filter(|w| *w <= i32::MAX.unsigned_abs())
            .map(Self)
            .ok_or(NotAWeight)
    }
}

impl From<Weight> for i64 {
    fn from(w: Weight) -> Self {
        Self::from(w.0)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Longest name of a scheduler or persistence engine, in bytes (`IP_VS_SCHEDNAME_MAXLEN` and
/// `IP_VS_PENAME_MAXLEN` are 16, with the zero at the end).
pub const LONGEST_NAME: usize = 15;

/// Name of a scheduler, an open set: the kernel loads `ip_vs_<name>` or refuses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scheduler(pub String);

impl Scheduler {
    /// The schedulers that Linux 6.1 ships; `IP_VS_SCHEDNAME_MAXLEN` is 16.
    pub const KNOWN: [&'static str; 14] = [
        "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh",
        "twos",
    ];
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Flags of a service that its owner sets (`IP_VS_SVC_F_*`). Persistence and hashed are the
/// kernel's to derive and not in here.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ServiceFlags(pub u32);

impl ServiceFlags {
    /// `IP_VS_SVC_F_ONEPACKET`: each UDP packet is scheduled alone.
    pub const ONE_PACKET: u32 = 0x0004;
    /// `IP_VS_SVC_F_SCHED1`: sh-fallback, mh-fallback.
    pub const SCHED1: u32 = 0x0008;
    /// `IP_VS_SVC_F_SCHED2`: sh-port, mh-port.
    pub const SCHED2: u32 = 0x0010;
    /// `IP_VS_SVC_F_SCHED3`.
    pub const SCHED3: u32 = 0x0020;
    /// All that an owner may set.
    pub const SETTABLE: u32 = Self::ONE_PACKET | Self::SCHED1 | Self::SCHED2 | Self::SCHED3;

    /// The scheduler's flag that a word names, in `ipvsadm -b`'s words: `flag-1`, `sh-port`, ...
    #[must_use]
    pub fn scheduler_flag(word: &str) -> Option<u32> {
        match word {
            "flag-1" | "sh-fallback" | "mh-fallback" => Some(Self::SCHED1),
            "flag-2" | "sh-port" | "mh-port" => Some(Self::SCHED2),
            "flag-3" => Some(Self::SCHED3),
            _ => None,
        }
    }

    /// The scheduler's flags that are set, in the words that ipvsadm prints for this scheduler.
    pub fn scheduler_flags(self, scheduler: &Scheduler) -> impl Iterator<Item = &'static str> {
        let [one, two] = match scheduler.0.as_str() {
            "sh" => ["sh-fallback", "sh-port"],
            "mh" => ["mh-fallback", "mh-port"],
            _ => ["flag-1", "flag-2"],
        };
        [
            (Self::SCHED1, one),
            (Self::SCHED2, two),
            (Self::SCHED3, "flag-3"),
        ]
        .into_iter()
        .filter(move |(bit, _)| self.0 & bit != 0)
        .map(|(_, word)| word)
    }
}

/// Session persistence of a service (`IP_VS_SVC_F_PERSISTENT`, `IPVS_SVC_ATTR_TIMEOUT`, `_NETMASK`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistence {
    /// Seconds that a client keeps its destination.
    pub timeout_s: u32,
    /// Clients that agree in this many leading bits share a destination; 32 or 128 is one client.
    pub prefix: u8,
    /// Persistence engine, for example `sip`.
    pub engine: Option<String>,
}

/// Attributes of a service that can change in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAttrs {
    /// Scheduler.
    pub scheduler: Scheduler,
    /// Flags.
    pub flags: ServiceFlags,
    /// Persistence, if any.
    pub persistence: Option<Persistence>,
}

/// How packets reach a destination (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardMethod {
    /// NAT (`IP_VS_CONN_F_MASQ`).
    Nat,
    /// The director itself (`IP_VS_CONN_F_LOCALNODE`).
    Local,
    /// Tunnel (`IP_VS_CONN_F_TUNNEL`).
    Tun,
    /// Direct routing (`IP_VS_CONN_F_DROUTE`).
    Dr,
    /// Cache bypass (`IP_VS_CONN_F_BYPASS`).
    Bypass,
}

/// A word that names no forwarding method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no forwarding method: write nat, dr or tun")]
pub struct NotAForwardMethod(String);

impl FromStr for ForwardMethod {
    type Err = NotAForwardMethod;

    fn from_str(text: &str) -> Result<Self, NotAForwardMethod> {
        match text {
            "nat" => Ok(Self::Nat),
            "dr" => Ok(Self::Dr),
            "tun" => Ok(Self::Tun),
            other => Err(NotAForwardMethod(other.to_owned())),
        }
    }
}

impl fmt::Display for ForwardMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nat => "nat",
            Self::Local => "local",
            Self::Tun => "tun",
            Self::Dr => "dr",
            Self::Bypass => "bypass",
        })
    }
}

/// Encapsulation of a tunnel (`IP_VS_CONN_F_TUNNEL_TYPE_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelType {
    /// IP in IP.
    #[default]
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
    /// Generic routing encapsulation.
    Gre,
}

/// Attributes of a tunnel; meaningless, and the default, for other methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tunnel {
    /// Encapsulation.
    pub kind: TunnelType,
    /// UDP port of GUE.
    pub port: u16,
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`.
    pub flags: u16,
}

impl Tunnel {
    /// `IP_VS_TUNNEL_ENCAP_FLAG_CSUM`: the outer header has a checksum (GUE and GRE).
    pub const CHECKSUM: u16 = 1;
    /// `IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM`: remote checksum offload (GUE).
    pub const REMOTE_CHECKSUM: u16 = 2;
}

/// Attributes of a destination that can change in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestAttrs {
    /// Weight.
    pub weight: Weight,
    /// Forwarding method.
    pub forward: ForwardMethod,
    /// Connections from which no new ones come, zero for none.
    pub upper: u32,
    /// Connections below which new ones come again, zero for three quarters of `upper`.
    pub lower: u32,
    /// Tunnel.
    pub tunnel: Tunnel,
}

/// A service as wanted: attributes and destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Attributes.
    pub attrs: ServiceAttrs,
    /// Destinations.
    pub dests: BTreeMap<DestKey, DestAttrs>,
}

/// Virtual services as wanted.
pub type Table = BTreeMap<ServiceKey, Service>;

/// Counters of a service or destination (`IPVS_STATS_ATTR_*`; totals, and rates per second).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Connections a second.
    pub connection_rate: u64,
    /// Packets from clients a second.
    pub packet_rate_in: u64,
    /// Packets to clients a second.
    pub packet_rate_out: u64,
    /// Bytes from clients a second.
    pub byte_rate_in: u64,
    /// Bytes to clients a second.
    pub byte_rate_out: u64,
}

/// A destination as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestState {
    /// Attributes.
    pub attrs: DestAttrs,
    /// Active connections.
    pub active_connections: u32,
    /// Inactive connections.
    pub inactive_connections: u32,
    /// Persistence templates.
    pub persistent_connections: u32,
    /// Counters, where they were read: most of what there is to a destination, and few want them.
    pub counters: Option<Box<Stats>>,
}

impl DestState {
    /// The counters, zero where they were not read.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.as_deref().copied().unwrap_or_default()
    }
}

impl Borrow<DestAttrs> for DestState {
    fn borrow(&self) -> &DestAttrs {
        &self.attrs
    }
}

impl ServiceState {
    /// The service without what only the kernel knows: counters and connections.
    #[must_use]
    pub fn plain(&self) -> Service {
        Service {
            attrs: self.attrs.clone(),
            dests: self.dests.iter().map(|(k, d)| (*k, d.attrs)).collect(),
        }
    }
}

/// A service as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceState {
    /// Attributes.
    pub attrs: ServiceAttrs,
    /// Counters.
    pub stats: Stats,
    /// Destinations.
    pub dests: BTreeMap<DestKey, DestState>,
}

/// What one reading of the kernel found.
pub type KernelTable = BTreeMap<ServiceKey, ServiceState>;

/// How long connections without packets are kept, in whole seconds (`IPVS_CMD_ATTR_TIMEOUT_*`).
/// To the kernel a zero says: leave this one as it is (`ip_vs_set_timeout`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp_s: u32,
    /// TCP connections after a FIN.
    pub tcp_fin_s: u32,
    /// UDP.
    pub udp_s: u32,
}

/// What a sync daemon does (`IP_VS_STATE_MASTER`, `IP_VS_STATE_BACKUP`). A director may run one of
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncRole {
    /// Sends the connections of this director.
    Master,
    /// Takes in those of another.
    Backup,
}

impl fmt::Display for SyncRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Backup => "backup",
        })
    }
}

/// A sync daemon of the kernel (`IPVS_DAEMON_ATTR_*`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDaemon {
    /// What it does.
    pub role: SyncRole,
    /// Interface of its multicast; at most 15 bytes.
    pub interface: String,
    /// Directors with one id belong together; zero takes in all.
    pub sync_id: u8,
    /// Largest UDP payload; zero is derived from the interface's MTU.
    pub max_length: u16,
    /// Multicast group; `None` is 224.0.0.81.
    pub group: Option<IpAddr>,
    /// UDP port; zero is 8848.
    pub port: u16,
    /// Time to live of its packets; zero is 1.
    pub ttl: u8,
}
