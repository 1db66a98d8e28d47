//! PURE: bytes <-> attributes <-> model. [`nla`] knows bytes, [`Message`] is one message of the
//! family, the functions below know what the attributes mean. Nothing here does I/O, and no bytes,
//! however wrong, make it panic.
//!
//! Facts: include/uapi/linux/ip_vs.h; `ip_vs_genl_parse_service`, `ip_vs_genl_parse_dest`,
//! `ip_vs_genl_fill_service` and `ip_vs_genl_fill_dest` in net/netfilter/ipvs/ip_vs_ctl.c (Linux 6.1).

mod exchange;
pub mod nla;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use netlink_packet_core::{
    DecodeError, Emitable, NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator, Parseable,
    ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

pub(super) use self::exchange::{Exchange, Outcome};
use self::nla::{
    Be16, CommandNla, DestNla, Flags, InetAddr, InfoNla, Netmask, ServiceNla, StatsNla,
};
use crate::model::{
    DestAttrs, DestKey, DestState, Family, ForwardMethod, Persistence, Protocol, Scheduler,
    ServiceAttrs, ServiceFlags, ServiceKey, ServiceState, Stats, Tunnel, TunnelType, Weight,
};

/// `IPVS_GENL_NAME`.
pub const FAMILY_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
const FAMILY_VERSION: u8 = 1;
/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 0x0001;
/// `IP_VS_CONN_F_FWD_MASK`.
const FWD_MASK: u32 = 0x0007;
/// `AF_INET`, `AF_INET6`.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// `IPVS_CMD_*`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Command {
            $($(#[$doc])* $name,)*
            /// Any other: sync daemons, timeouts, zeroing.
            Other(u8),
        }

        impl From<u8> for Command {
            fn from(number: u8) -> Self {
                match number {
                    $($number => Self::$name,)*
                    other => Self::Other(other),
                }
            }
        }

        impl From<Command> for u8 {
            fn from(command: Command) -> Self {
                match command {
                    $(Command::$name => $number,)*
                    Command::Other(other) => other,
                }
            }
        }
    };
}

commands! {
    /// Adds a service; also the command of each answer to `GetService`.
    NewService = 1,
    /// Changes a service.
    SetService = 2,
    /// Removes a service and its destinations.
    DelService = 3,
    /// Reads one service, or as a dump all.
    GetService = 4,
    /// Adds a destination; also the command of each answer to `GetDest`.
    NewDest = 5,
    /// Changes a destination.
    SetDest = 6,
    /// Removes a destination.
    DelDest = 7,
    /// Reads, as a dump, the destinations of a service.
    GetDest = 8,
    /// The answer to `GetInfo`, which has attributes of its own.
    SetInfo = 14,
    /// Reads version and table size.
    GetInfo = 15,
    /// Removes all services.
    Flush = 17,
}

/// The attributes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Of every command but one.
    Command(Vec<CommandNla>),
    /// Of [`Command::SetInfo`].
    Info(Vec<InfoNla>),
}

/// One message of the family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it asks or answers.
    pub command: Command,
    /// What it says.
    pub body: Body,
}

impl Message {
    /// A request without attributes.
    #[must_use]
    pub const fn bare(command: Command) -> Self {
        Self {
            command,
            body: Body::Command(Vec::new()),
        }
    }

    /// A request that names a service.
    #[must_use]
    pub fn of_service(command: Command, key: &ServiceKey) -> Self {
        Self::with(command, vec![CommandNla::Service(service_id(key))])
    }

    /// A request that names a service and says how it shall be.
    #[must_use]
    pub fn with_service(command: Command, key: &ServiceKey, attrs: &ServiceAttrs) -> Self {
        let mut nlas = service_id(key);
        nlas.extend(service_attrs(key, attrs));
        Self::with(command, vec![CommandNla::Service(nlas)])
    }

    /// A request that names a destination.
    #[must_use]
    pub fn of_dest(command: Command, key: &ServiceKey, dest: &DestKey) -> Self {
        Self::with(
            command,
            vec![
                CommandNla::Service(service_id(key)),
                CommandNla::Dest(dest_id(dest)),
            ],
        )
    }

    /// A request that names a destination and says how it shall be.
    #[must_use]
    pub fn with_dest(
        command: Command,
        key: &ServiceKey,
        dest: &DestKey,
        attrs: &DestAttrs,
    ) -> Self {
        let mut nlas = dest_id(dest);
        nlas.extend(dest_attrs(attrs));
        Self::with(
            command,
            vec![CommandNla::Service(service_id(key)), CommandNla::Dest(nlas)],
        )
    }

    const fn with(command: Command, nlas: Vec<CommandNla>) -> Self {
        Self {
            command,
            body: Body::Command(nlas),
        }
    }

    /// The service that an answer to `GetService` describes, with no destinations; `None` for a
    /// protocol that the vocabulary does not have.
    ///
    /// # Errors
    /// It lacks what names or makes a service, or holds what no kernel says.
    pub fn service(&self) -> Result<Option<(ServiceKey, ServiceState)>, DecodeError> {
        read_service(self.service_nlas().ok_or("no service in it")?)
    }

    /// The destination that an answer to `GetDest` describes.
    ///
    /// # Errors
    /// As for a service.
    pub fn dest(&self, service: Family) -> Result<(DestKey, DestState), DecodeError> {
        let nlas = self.commands().find_map(|nla| match nla {
            CommandNla::Dest(nlas) => Some(nlas.as_slice()),
            _ => None,
        });
        read_dest(nlas.ok_or("no destination in it")?, service)
    }

    /// IPVS's version and the number of buckets of its connection table.
    ///
    /// # Errors
    /// It is no answer to `GetInfo`.
    pub fn info(&self) -> Result<(Version, u32), DecodeError> {
        let Body::Info(nlas) = &self.body else {
            return Err("no information in it".into());
        };
        let (mut version, mut size) = (None, None);
        for nla in nlas {
            match nla {
                InfoNla::Version(v) => version = Some(*v),
                InfoNla::ConnTabSize(n) => size = Some(*n),
                InfoNla::Other(_) => {}
            }
        }
        let [_, major, minor, patch] = version.ok_or("no version in it")?.to_be_bytes();
        Ok((
            Version {
                major,
                minor,
                patch,
            },
            size.ok_or("no table size in it")?,
        ))
    }

    /// The scheduler and the persistence engine that it asks for.
    #[must_use]
    pub fn modules(&self) -> Option<(Scheduler, Option<String>)> {
        let nlas = self.service_nlas()?;
        let scheduler = nlas.iter().find_map(|nla| match nla {
            ServiceNla::SchedName(name) => Some(Scheduler(name.clone())),
            _ => None,
        })?;
        let engine = nlas.iter().find_map(|nla| match nla {
            ServiceNla::PeName(name) => Some(name.clone()),
            _ => None,
        });
        Some((scheduler, engine))
    }

    fn service_nlas(&self) -> Option<&[ServiceNla]> {
        self.commands().find_map(|nla| match nla {
            CommandNla::Service(nlas) => Some(nlas.as_slice()),
            _ => None,
        })
    }

    fn commands(&self) -> impl Iterator<Item = &CommandNla> {
        match &self.body {
            Body::Command(nlas) => nlas.as_slice(),
            Body::Info(_) => &[],
        }
        .iter()
    }
}

/// IPVS's own version (`IP_VS_VERSION_CODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
    /// Patch.
    pub patch: u8,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY_NAME
    }
    fn command(&self) -> u8 {
        self.command.into()
    }
    fn version(&self) -> u8 {
        FAMILY_VERSION
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        match &self.body {
            Body::Command(nlas) => nlas.as_slice().buffer_len(),
            Body::Info(nlas) => nlas.as_slice().buffer_len(),
        }
    }
    fn emit(&self, buffer: &mut [u8]) {
        match &self.body {
            Body::Command(nlas) => nlas.as_slice().emit(buffer),
            Body::Info(nlas) => nlas.as_slice().emit(buffer),
        }
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let command = header.cmd.into();
        let body = match command {
            Command::SetInfo => Body::Info(attributes(bytes)?),
            _ => Body::Command(attributes(bytes)?),
        };
        Ok(Self { command, body })
    }
}

fn attributes<T>(bytes: &[u8]) -> Result<Vec<T>, DecodeError>
where
    T: for<'a> Parseable<NlaBuffer<&'a [u8]>>,
{
    NlasIterator::new(bytes)
        .map(|nla| T::parse(&nla?))
        .collect()
}

/// For fuzzing: parses one netlink message of the family and reads all that it describes, and says
/// whether that went well.
#[must_use]
pub fn reads(bytes: &[u8]) -> bool {
    NetlinkMessage::<GenlMessage<Message>>::deserialize(bytes).is_ok_and(|message| {
        match message.payload {
            NetlinkPayload::InnerMessage(GenlMessage { payload, .. }) => [
                payload.service().is_ok(),
                payload.dest(Family::V6).is_ok(),
                payload.info().is_ok(),
            ]
            .contains(&true),
            _ => true,
        }
    })
}

/// For fuzzing: takes a datagram as (part of) the answer to request 0 on port 0, and says whether
/// that went well.
#[must_use]
pub fn answers(bytes: &[u8]) -> bool {
    let take = |_message: GenlMessage<Message>| Ok(());
    Exchange::new(0, 0).datagram(bytes, take).is_ok()
}

fn service_id(key: &ServiceKey) -> Vec<ServiceNla> {
    let family = ServiceNla::Family(family_number(key.family()));
    match key {
        ServiceKey::Addr(protocol, addr) => vec![
            family,
            ServiceNla::Protocol(match protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
                Protocol::Sctp => 132,
            }),
            ServiceNla::Addr(addr.ip().into()),
            ServiceNla::Port(Be16(addr.port())),
        ],
        ServiceKey::Fwmark(_, mark) => vec![family, ServiceNla::Fwmark(*mark)],
    }
}

/// The kernel wants scheduler, flags, timeout and netmask each time, and an IPv6 prefix from 1 to
/// 128 without persistence too (`ip_vs_genl_parse_service`, `ip_vs_add_service`).
fn service_attrs(key: &ServiceKey, attrs: &ServiceAttrs) -> Vec<ServiceNla> {
    let (persistent, timeout, prefix) = match &attrs.persistence {
        Some(p) => (PERSISTENT, p.timeout_s, p.prefix),
        None => (0, 0, u8::MAX),
    };
    let longest = match key.family() {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let mut nlas = vec![
        ServiceNla::SchedName(attrs.scheduler.0.clone()),
        ServiceNla::Flags(Flags {
            flags: attrs.flags.0 & ServiceFlags::SETTABLE | persistent,
            // What an owner may set is set or cleared, the kernel's own and later flags stay.
            mask: ServiceFlags::SETTABLE | PERSISTENT,
        }),
        ServiceNla::Timeout(timeout),
        ServiceNla::Netmask(Netmask::from_prefix(key.family(), prefix.min(longest))),
    ];
    nlas.extend(
        attrs
            .persistence
            .iter()
            .filter_map(|p| p.engine.clone())
            .map(ServiceNla::PeName),
    );
    nlas
}

fn dest_id(key: &DestKey) -> Vec<DestNla> {
    vec![
        DestNla::Family(family_number(Family::of(key.addr))),
        DestNla::Addr(key.addr.into()),
        DestNla::Port(Be16(key.port)),
    ]
}

fn dest_attrs(attrs: &DestAttrs) -> [DestNla; 7] {
    [
        DestNla::FwdMethod(match attrs.forward {
            ForwardMethod::Nat => 0,
            ForwardMethod::Local => 1,
            ForwardMethod::Tun => 2,
            ForwardMethod::Dr => 3,
            ForwardMethod::Bypass => 4,
        }),
        DestNla::Weight(attrs.weight.get()),
        DestNla::UThresh(attrs.upper),
        DestNla::LThresh(attrs.lower),
        DestNla::TunType(match attrs.tunnel.kind {
            TunnelType::Ipip => 0,
            TunnelType::Gue => 1,
            TunnelType::Gre => 2,
        }),
        DestNla::TunPort(Be16(attrs.tunnel.port)),
        DestNla::TunFlags(attrs.tunnel.flags),
    ]
}

fn read_service(nlas: &[ServiceNla]) -> Result<Option<(ServiceKey, ServiceState)>, DecodeError> {
    let (mut family, mut protocol, mut addr, mut port, mut mark) = (None, None, None, None, None);
    let (mut scheduler, mut flags, mut timeout, mut netmask) = (None, None, None, None);
    let (mut engine, mut stats, mut stats64) = (None, None, None);
    for nla in nlas {
        match nla {
            ServiceNla::Family(n) => family = Some(*n),
            ServiceNla::Protocol(n) => protocol = Some(*n),
            ServiceNla::Addr(a) => addr = Some(*a),
            ServiceNla::Port(p) => port = Some(p.0),
            ServiceNla::Fwmark(m) => mark = Some(*m),
            ServiceNla::SchedName(name) => scheduler = Some(name.clone()),
            ServiceNla::Flags(f) => flags = Some(f.flags),
            ServiceNla::Timeout(t) => timeout = Some(*t),
            ServiceNla::Netmask(m) => netmask = Some(*m),
            ServiceNla::Stats(s) => stats = Some(s),
            ServiceNla::PeName(name) => engine = Some(name.clone()),
            ServiceNla::Stats64(s) => stats64 = Some(s),
            ServiceNla::Other(_) => {}
        }
    }
    let family = read_family(family.ok_or("a service without family")?)?;
    let key = match mark {
        // `ip_vs_genl_fill_service` gives either a mark that is not zero, or the rest.
        Some(mark) if mark != 0 => ServiceKey::Fwmark(family, mark),
        _ => {
            let protocol = match protocol.ok_or("a service without protocol")? {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                132 => Protocol::Sctp,
                _ => return Ok(None),
            };
            let addr: InetAddr = addr.ok_or("a service without address")?;
            let port = port.ok_or("a service without port")?;
            ServiceKey::Addr(protocol, SocketAddr::new(addr.ip(family), port))
        }
    };
    let flags = flags.ok_or("a service without flags")?;
    let persistence = if flags & PERSISTENT == 0 {
        None
    } else {
        Some(Persistence {
            timeout_s: timeout.ok_or("a persistent service without timeout")?,
            prefix: netmask
                .ok_or("a persistent service without netmask")?
                .prefix(family)?,
            engine,
        })
    };
    let attrs = ServiceAttrs {
        scheduler: Scheduler(scheduler.ok_or("a service without scheduler")?),
        flags: ServiceFlags(flags & ServiceFlags::SETTABLE),
        persistence,
    };
    let stats = read_stats(stats64.or(stats));
    Ok(Some((
        key,
        ServiceState {
            attrs,
            stats,
            dests: Default::default(),
        },
    )))
}

fn read_dest(nlas: &[DestNla], service: Family) -> Result<(DestKey, DestState), DecodeError> {
    let (mut family, mut addr, mut port, mut forward, mut weight) = (None, None, None, None, None);
    let (mut upper, mut lower, mut tunnel) = (0, 0, Tunnel::default());
    let (mut active, mut inactive, mut persistent) = (0, 0, 0);
    let (mut stats, mut stats64) = (None, None);
    for nla in nlas {
        match nla {
            DestNla::Addr(a) => addr = Some(*a),
            DestNla::Port(p) => port = Some(p.0),
            DestNla::FwdMethod(m) => forward = Some(*m),
            DestNla::Weight(w) => weight = Some(*w),
            DestNla::UThresh(n) => upper = *n,
            DestNla::LThresh(n) => lower = *n,
            DestNla::ActiveConns(n) => active = *n,
            DestNla::InactConns(n) => inactive = *n,
            DestNla::PersistConns(n) => persistent = *n,
            DestNla::Stats(s) => stats = Some(s),
            DestNla::Family(n) => family = Some(read_family(*n)?),
            DestNla::Stats64(s) => stats64 = Some(s),
            DestNla::TunType(t) => tunnel.kind = read_tunnel(*t)?,
            DestNla::TunPort(p) => tunnel.port = p.0,
            DestNla::TunFlags(f) => tunnel.flags = *f,
            DestNla::Other(_) => {}
        }
    }
    let addr: InetAddr = addr.ok_or("a destination without address")?;
    let key = DestKey {
        addr: addr.ip(family.unwrap_or(service)),
        port: port.ok_or("a destination without port")?,
    };
    let forward = match forward.ok_or("a destination without forwarding method")? & FWD_MASK {
        0 => ForwardMethod::Nat,
        1 => ForwardMethod::Local,
        2 => ForwardMethod::Tun,
        3 => ForwardMethod::Dr,
        4 => ForwardMethod::Bypass,
        other => return Err(format!("forwarding method {other}").into()),
    };
    let weight = i64::from(weight.ok_or("a destination without weight")?);
    let weight = Weight::try_from(weight).map_err(|_out_of_range| format!("weight {weight}"))?;
    Ok((
        key,
        DestState {
            attrs: DestAttrs {
                weight,
                forward,
                upper,
                lower,
                tunnel,
            },
            active_connections: active,
            inactive_connections: inactive,
            persistent_connections: persistent,
            stats: read_stats(stats64.or(stats)),
        },
    ))
}

fn read_stats(nlas: Option<&Vec<StatsNla>>) -> Stats {
    let mut stats = Stats::default();
    for nla in nlas.into_iter().flatten() {
        match nla {
            StatsNla::Conns(n) => stats.connections = n.get(),
            StatsNla::InPkts(n) => stats.packets_in = n.get(),
            StatsNla::OutPkts(n) => stats.packets_out = n.get(),
            StatsNla::InBytes(n) => stats.bytes_in = n.get(),
            StatsNla::OutBytes(n) => stats.bytes_out = n.get(),
            StatsNla::Cps(n) => stats.connection_rate = n.get(),
            StatsNla::InPps(n) => stats.packet_rate_in = n.get(),
            StatsNla::OutPps(n) => stats.packet_rate_out = n.get(),
            StatsNla::InBps(n) => stats.byte_rate_in = n.get(),
            StatsNla::OutBps(n) => stats.byte_rate_out = n.get(),
            StatsNla::Other(_) => {}
        }
    }
    stats
}

const fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn read_family(number: u16) -> Result<Family, DecodeError> {
    match number {
        AF_INET => Ok(Family::V4),
        AF_INET6 => Ok(Family::V6),
        other => Err(format!("address family {other}").into()),
    }
}

fn read_tunnel(number: u8) -> Result<TunnelType, DecodeError> {
    match number {
        0 => Ok(TunnelType::Ipip),
        1 => Ok(TunnelType::Gue),
        2 => Ok(TunnelType::Gre),
        other => Err(format!("tunnel type {other}").into()),
    }
}
