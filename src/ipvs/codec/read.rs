//! Bytes to model. Nothing is allocated but names, what the caller keeps, and where the last message
//! had its parts.

use std::net::SocketAddr;

use netlink_packet_core::DecodeError;

use super::{
    AF_INET, AF_INET6, FWD_MASK, PERSISTENT, STATE_BACKUP, STATE_MASTER, Version,
    nla::{Layout, command, daemon, dest, info, service, stats},
};
use crate::model::{
    DestAttrs, DestKey, DestState, Family, ForwardMethod, Persistence, Protocol, Scheduler,
    ServiceAttrs, ServiceFlags, ServiceKey, ServiceState, Stats, SyncDaemon, SyncRole, Timeouts,
    Tunnel, TunnelType, Weight,
};

/// Reads services and destinations, messages of one dump quicker than the first of them.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    whole: Layout<{ command::LENGTHS.len() }>,
    service: Layout<{ service::LENGTHS.len() }>,
    dest: Layout<{ dest::LENGTHS.len() }>,
    stats: Counters,
}

impl Reader {
    /// The service that the attributes of a message describe, with no destinations; `None` for a protocol
    /// that the vocabulary does not have.
    ///
    /// # Errors
    /// It lacks what names or makes a service, or holds what no kernel says.
    pub fn service(
        &mut self,
        attributes: &[u8],
    ) -> Result<Option<(ServiceKey, ServiceState)>, DecodeError> {
        let attributes = self.whole.read(attributes, &command::LENGTHS)?;
        let bytes = (attributes.bytes(command::SERVICE)).ok_or("no service in it")?;
        let from = self.service.read(bytes, &service::LENGTHS)?;
        let family = from.u16(service::FAMILY);
        let family = read_family(family.ok_or("a service without family")?)?;
        let key = match from.u32(service::FWMARK) {
            // `ip_vs_genl_fill_service` gives either a mark that is not zero, or the rest.
            Some(mark) if mark != 0 => ServiceKey::Fwmark(family, mark),
            _ => {
                let protocol = from.u16(service::PROTOCOL);
                let protocol = match protocol.ok_or("a service without protocol")? {
                    6 => Protocol::Tcp,
                    17 => Protocol::Udp,
                    132 => Protocol::Sctp,
                    _ => return Ok(None),
                };
                let addr = from.addr(service::ADDR);
                let ip = addr.ok_or("a service without address")?.ip(family);
                let port = from.be16(service::PORT);
                let port = port.ok_or("a service without port")?;
                ServiceKey::Addr(protocol, SocketAddr::new(ip, port))
            }
        };
        let flags = from.flags(service::FLAGS);
        let flags = flags.ok_or("a service without flags")?;
        let persistence = if flags & PERSISTENT == 0 {
            None
        } else {
            let timeout_s = from.u32(service::TIMEOUT);
            let netmask = from.netmask(service::NETMASK);
            let netmask = netmask.ok_or("a persistent service without netmask")?;
            Some(Persistence {
                timeout_s: timeout_s.ok_or("a persistent service without timeout")?,
                prefix: netmask.prefix(family)?,
                engine: from.text(service::PE_NAME)?,
            })
        };
        let scheduler = from.text(service::SCHED_NAME)?;
        let attrs = ServiceAttrs {
            scheduler: Scheduler(scheduler.ok_or("a service without scheduler")?),
            flags: ServiceFlags(flags & ServiceFlags::SETTABLE),
            persistence,
        };
        let state = ServiceState {
            attrs,
            stats: self
                .stats
                .read([from.bytes(service::STATS64), from.bytes(service::STATS)])?,
            dests: Default::default(),
        };
        Ok(Some((key, state)))
    }

    /// The destination that the attributes of a message describe; `family` is its service's. `None` for
    /// a forwarding method or tunnel type that the vocabulary does not have: a newer kernel's, perhaps
    /// in somebody else's service. Its counters are read only where they are wanted: they
    /// are half of a message.
    ///
    /// # Errors
    /// As for a service.
    pub fn dest(
        &mut self,
        attributes: &[u8],
        family: Family,
        counters: bool,
    ) -> Result<Option<(DestKey, DestState)>, DecodeError> {
        let attributes = self.whole.read(attributes, &command::LENGTHS)?;
        let bytes = (attributes.bytes(command::DEST)).ok_or("no destination in it")?;
        let from = self.dest.read(bytes, &dest::LENGTHS)?;
        let family = match from.u16(dest::ADDR_FAMILY) {
            Some(own) => read_family(own)?,
            None => family,
        };
        let addr = from.addr(dest::ADDR);
        let port = from.be16(dest::PORT);
        let key = DestKey {
            addr: addr.ok_or("a destination without address")?.ip(family),
            port: port.ok_or("a destination without port")?,
        };
        let forward = from.u32(dest::FWD_METHOD);
        let forward = match forward.ok_or("a destination without forwarding method")? & FWD_MASK {
            0 => ForwardMethod::Nat,
            1 => ForwardMethod::Local,
            2 => ForwardMethod::Tun,
            3 => ForwardMethod::Dr,
            4 => ForwardMethod::Bypass,
            _ => return Ok(None),
        };
        let kind = match from.u8(dest::TUN_TYPE).unwrap_or_default() {
            0 => TunnelType::Ipip,
            1 => TunnelType::Gue,
            2 => TunnelType::Gre,
            _ => return Ok(None),
        };
        let tunnel = Tunnel {
            kind,
            port: from.be16(dest::TUN_PORT).unwrap_or_default(),
            flags: from.u16(dest::TUN_FLAGS).unwrap_or_default(),
        };
        let weight = from.u32(dest::WEIGHT);
        let weight = i64::from(weight.ok_or("a destination without weight")?);
        let weight =
            Weight::try_from(weight).map_err(|_out_of_range| format!("weight {weight}"))?;
        let stats = [from.bytes(dest::STATS64), from.bytes(dest::STATS)];
        let stats = counters.then(|| self.stats.read(stats)).transpose()?;
        let state = DestState {
            attrs: DestAttrs {
                weight,
                forward,
                upper: from.u32(dest::U_THRESH).unwrap_or_default(),
                lower: from.u32(dest::L_THRESH).unwrap_or_default(),
                tunnel,
            },
            active_connections: from.u32(dest::ACTIVE_CONNS).unwrap_or_default(),
            inactive_connections: from.u32(dest::INACT_CONNS).unwrap_or_default(),
            persistent_connections: from.u32(dest::PERSIST_CONNS).unwrap_or_default(),
            counters: stats.map(Box::new),
        };
        Ok(Some((key, state)))
    }
}

/// IPVS's version and the number of buckets of its connection table.
///
/// # Errors
/// The attributes are not those of an answer to `IPVS_CMD_GET_INFO`.
pub fn info(attributes: &[u8]) -> Result<(Version, u32), DecodeError> {
    let mut layout = Layout::default();
    let from = layout.read(attributes, &info::LENGTHS)?;
    let version = from.u32(info::VERSION).ok_or("no version in it")?;
    let [_, major, minor, patch] = version.to_be_bytes();
    let version = Version {
        major,
        minor,
        patch,
    };
    let size = from.u32(info::CONN_TAB_SIZE);
    Ok((version, size.ok_or("no table size in it")?))
}

/// The timeouts; a kernel that is built without TCP or UDP says none for it: zero.
///
/// # Errors
/// A value is no number.
pub fn timeouts(attributes: &[u8]) -> Result<Timeouts, DecodeError> {
    let mut layout = Layout::default();
    let from = layout.read(attributes, &command::LENGTHS)?;
    Ok(Timeouts {
        tcp_s: from.u32(command::TIMEOUT_TCP).unwrap_or_default(),
        tcp_fin_s: from.u32(command::TIMEOUT_TCP_FIN).unwrap_or_default(),
        udp_s: from.u32(command::TIMEOUT_UDP).unwrap_or_default(),
    })
}

/// The sync daemon that the attributes of a message describe.
///
/// # Errors
/// It lacks its state, or holds what no kernel says.
pub fn daemon(attributes: &[u8]) -> Result<SyncDaemon, DecodeError> {
    let (mut whole, mut inner) = (Layout::default(), Layout::default());
    let attributes = whole.read(attributes, &command::LENGTHS)?;
    let bytes = (attributes.bytes(command::DAEMON)).ok_or("no sync daemon in it")?;
    let from = inner.read(bytes, &daemon::LENGTHS)?;
    let state = from.u32(daemon::STATE);
    let role = match state.ok_or("a sync daemon without state")? {
        STATE_MASTER => SyncRole::Master,
        STATE_BACKUP => SyncRole::Backup,
        other => return Err(format!("sync daemon state {other}").into()),
    };
    let interface = from.text(daemon::MCAST_IFN)?;
    let sync_id = from.u32(daemon::SYNC_ID).unwrap_or_default();
    let group = match from.ipv6(daemon::MCAST_GROUP6) {
        Some(group) => Some(group.into()),
        None => from.ipv4(daemon::MCAST_GROUP).map(Into::into),
    };
    Ok(SyncDaemon {
        role,
        interface: interface.ok_or("a sync daemon without interface")?,
        sync_id: u8::try_from(sync_id).map_err(|_large| format!("sync id {sync_id}"))?,
        max_length: from.u16(daemon::SYNC_MAXLEN).unwrap_or_default(),
        group,
        port: from.u16(daemon::MCAST_PORT).unwrap_or_default(),
        ttl: from.u8(daemon::MCAST_TTL).unwrap_or_default(),
    })
}

/// Counters of a service or a destination.
#[derive(Clone, Debug, Default)]
struct Counters(Layout<{ stats::LENGTHS.len() }>);

impl Counters {
    /// The wide counters where there are some, else the narrow ones; bytes are wide in both.
    fn read(&mut self, [wide, narrow]: [Option<&[u8]>; 2]) -> Result<Stats, DecodeError> {
        let Some(bytes) = wide.or(narrow) else {
            return Ok(Stats::default());
        };
        let from = self.0.read(bytes, &stats::LENGTHS)?;
        Ok(Stats {
            connections: from.count(stats::CONNS)?,
            packets_in: from.count(stats::INPKTS)?,
            packets_out: from.count(stats::OUTPKTS)?,
            bytes_in: from.count(stats::INBYTES)?,
            bytes_out: from.count(stats::OUTBYTES)?,
            connection_rate: from.count(stats::CPS)?,
            packet_rate_in: from.count(stats::INPPS)?,
            packet_rate_out: from.count(stats::OUTPPS)?,
            byte_rate_in: from.count(stats::INBPS)?,
            byte_rate_out: from.count(stats::OUTBPS)?,
        })
    }
}

fn read_family(number: u16) -> Result<Family, DecodeError> {
    match number {
        AF_INET => Ok(Family::V4),
        AF_INET6 => Ok(Family::V6),
        other => Err(format!("address family {other}").into()),
    }
}
