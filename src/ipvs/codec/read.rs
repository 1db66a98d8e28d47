//! Bytes to model. Nothing is allocated but the names and what the caller keeps.

use std::net::SocketAddr;

use netlink_packet_core::DecodeError;

use super::{
    AF_INET, AF_INET6, FWD_MASK, PERSISTENT, STATE_BACKUP, STATE_MASTER, Version,
    nla::{self, Value, command, daemon, dest, each, info, service, stats},
};
use crate::model::{
    DestAttrs, DestKey, DestState, Family, ForwardMethod, Persistence, Protocol, Scheduler,
    ServiceAttrs, ServiceFlags, ServiceKey, ServiceState, Stats, SyncDaemon, SyncRole, Timeouts,
    Tunnel, TunnelType, Weight,
};

/// The service that the attributes of a message describe, with no destinations; `None` for a protocol
/// that the vocabulary does not have.
///
/// # Errors
/// It lacks what names or makes a service, or holds what no kernel says.
pub fn service(attributes: &[u8]) -> Result<Option<(ServiceKey, ServiceState)>, DecodeError> {
    read_service(nested(attributes, command::SERVICE)?.ok_or("no service in it")?)
}

/// The destination that the attributes of a message describe; `family` is its service's. `None` for
/// a forwarding method or tunnel type that the vocabulary does not have: a newer kernel's, perhaps
/// in somebody else's service. Its counters are read where they are wanted, and zero otherwise: they
/// are half of a message.
///
/// # Errors
/// As for a service.
pub fn dest(
    attributes: &[u8],
    family: Family,
    counters: bool,
) -> Result<Option<(DestKey, DestState)>, DecodeError> {
    read_dest(
        nested(attributes, command::DEST)?.ok_or("no destination in it")?,
        family,
        counters,
    )
}

/// IPVS's version and the number of buckets of its connection table.
///
/// # Errors
/// The attributes are not those of an answer to `IPVS_CMD_GET_INFO`.
pub fn info(attributes: &[u8]) -> Result<(Version, u32), DecodeError> {
    let (mut version, mut size) = (None, None);
    each(attributes, |kind, value| {
        match kind {
            info::VERSION => version = Some(value.u32()?),
            info::CONN_TAB_SIZE => size = Some(value.u32()?),
            _ => {}
        }
        Ok(())
    })?;
    let [_, major, minor, patch] = version.ok_or("no version in it")?.to_be_bytes();
    let version = Version {
        major,
        minor,
        patch,
    };
    Ok((version, size.ok_or("no table size in it")?))
}

/// The timeouts; a kernel that is built without TCP or UDP says none for it: zero.
///
/// # Errors
/// A value is no number.
pub fn timeouts(attributes: &[u8]) -> Result<Timeouts, DecodeError> {
    let mut timeouts = Timeouts {
        tcp_s: 0,
        tcp_fin_s: 0,
        udp_s: 0,
    };
    each(attributes, |kind, value| {
        match kind {
            command::TIMEOUT_TCP => timeouts.tcp_s = value.u32()?,
            command::TIMEOUT_TCP_FIN => timeouts.tcp_fin_s = value.u32()?,
            command::TIMEOUT_UDP => timeouts.udp_s = value.u32()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(timeouts)
}

/// The sync daemon that the attributes of a message describe.
///
/// # Errors
/// It lacks its state, or holds what no kernel says.
pub fn daemon(attributes: &[u8]) -> Result<SyncDaemon, DecodeError> {
    let bytes = nested(attributes, command::DAEMON)?.ok_or("no sync daemon in it")?;
    let (mut state, mut interface, mut sync_id) = (None, None, 0);
    let (mut max_length, mut group, mut port, mut ttl) = (0, None, 0, 0);
    each(bytes, |kind, value| {
        match kind {
            daemon::STATE => state = Some(value.u32()?),
            daemon::MCAST_IFN => interface = Some(value.text()?),
            daemon::SYNC_ID => sync_id = value.u32()?,
            daemon::SYNC_MAXLEN => max_length = value.u16()?,
            daemon::MCAST_GROUP => group = Some(value.ipv4()?.into()),
            daemon::MCAST_GROUP6 => group = Some(value.ipv6()?.into()),
            daemon::MCAST_PORT => port = value.u16()?,
            daemon::MCAST_TTL => ttl = value.u8()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(SyncDaemon {
        role: match state.ok_or("a sync daemon without state")? {
            STATE_MASTER => SyncRole::Master,
            STATE_BACKUP => SyncRole::Backup,
            other => return Err(format!("sync daemon state {other}").into()),
        },
        interface: interface.ok_or("a sync daemon without interface")?,
        sync_id: u8::try_from(sync_id).map_err(|_large| format!("sync id {sync_id}"))?,
        max_length,
        group,
        port,
        ttl,
    })
}

/// The attribute of the first level that has this number.
fn nested(attributes: &[u8], wanted: u16) -> Result<Option<&[u8]>, DecodeError> {
    let mut found = None;
    each(attributes, |kind, value| {
        if kind == wanted {
            found = Some(value.bytes);
        }
        Ok(())
    })?;
    Ok(found)
}

fn read_service(bytes: &[u8]) -> Result<Option<(ServiceKey, ServiceState)>, DecodeError> {
    let (mut family, mut protocol, mut addr, mut port, mut mark) = (None, None, None, None, None);
    let (mut scheduler, mut flags, mut timeout, mut netmask) = (None, None, None, None);
    let (mut engine, mut stats, mut stats64) = (None, None, None);
    each(bytes, |kind, value| {
        match kind {
            service::FAMILY => family = Some(value.u16()?),
            service::PROTOCOL => protocol = Some(value.u16()?),
            service::ADDR => addr = Some(value.addr()?),
            service::PORT => port = Some(value.be16()?),
            service::FWMARK => mark = Some(value.u32()?),
            service::SCHED_NAME => scheduler = Some(value.text()?),
            service::FLAGS => flags = Some(value.flags()?),
            service::TIMEOUT => timeout = Some(value.u32()?),
            service::NETMASK => netmask = Some(value.netmask()?),
            service::STATS => stats = Some(value),
            service::PE_NAME => engine = Some(value.text()?),
            service::STATS64 => stats64 = Some(value),
            _ => {}
        }
        Ok(())
    })?;
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
            let addr: nla::InetAddr = addr.ok_or("a service without address")?;
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
    let state = ServiceState {
        attrs,
        stats: read_stats(stats64.or(stats))?,
        dests: Default::default(),
    };
    Ok(Some((key, state)))
}

fn read_dest(
    bytes: &[u8],
    service: Family,
    counters: bool,
) -> Result<Option<(DestKey, DestState)>, DecodeError> {
    let (mut family, mut addr, mut port, mut forward, mut weight) = (None, None, None, None, None);
    let (mut upper, mut lower) = (0, 0);
    let (mut kind, mut port_of_tunnel, mut flags) = (Some(TunnelType::Ipip), 0, 0);
    let (mut active, mut inactive, mut persistent) = (0, 0, 0);
    let (mut stats, mut stats64) = (None, None);
    each(bytes, |number, value| {
        match number {
            dest::ADDR => addr = Some(value.addr()?),
            dest::PORT => port = Some(value.be16()?),
            dest::FWD_METHOD => forward = Some(value.u32()?),
            dest::WEIGHT => weight = Some(value.u32()?),
            dest::U_THRESH => upper = value.u32()?,
            dest::L_THRESH => lower = value.u32()?,
            dest::ACTIVE_CONNS => active = value.u32()?,
            dest::INACT_CONNS => inactive = value.u32()?,
            dest::PERSIST_CONNS => persistent = value.u32()?,
            dest::STATS => stats = Some(value),
            dest::ADDR_FAMILY => family = Some(read_family(value.u16()?)?),
            dest::STATS64 => stats64 = Some(value),
            dest::TUN_TYPE => kind = read_tunnel(value.u8()?),
            dest::TUN_PORT => port_of_tunnel = value.be16()?,
            dest::TUN_FLAGS => flags = value.u16()?,
            _ => {}
        }
        Ok(())
    })?;
    let addr: nla::InetAddr = addr.ok_or("a destination without address")?;
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
        _ => return Ok(None),
    };
    let Some(kind) = kind else {
        return Ok(None);
    };
    let tunnel = Tunnel {
        kind,
        port: port_of_tunnel,
        flags,
    };
    let weight = i64::from(weight.ok_or("a destination without weight")?);
    let weight = Weight::try_from(weight).map_err(|_out_of_range| format!("weight {weight}"))?;
    let state = DestState {
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
        stats: read_stats(stats64.or(stats).filter(|_| counters))?,
    };
    Ok(Some((key, state)))
}

/// The wide counters where there are some, else the narrow ones; bytes are wide in both.
fn read_stats(counters: Option<Value<'_>>) -> Result<Stats, DecodeError> {
    let mut read = Stats::default();
    let Some(counters) = counters else {
        return Ok(read);
    };
    each(counters.bytes, |kind, value| {
        let counter = match kind {
            stats::CONNS => &mut read.connections,
            stats::INPKTS => &mut read.packets_in,
            stats::OUTPKTS => &mut read.packets_out,
            stats::INBYTES => &mut read.bytes_in,
            stats::OUTBYTES => &mut read.bytes_out,
            stats::CPS => &mut read.connection_rate,
            stats::INPPS => &mut read.packet_rate_in,
            stats::OUTPPS => &mut read.packet_rate_out,
            stats::INBPS => &mut read.byte_rate_in,
            stats::OUTBPS => &mut read.byte_rate_out,
            _ => return Ok(()),
        };
        *counter = value.count()?;
        Ok(())
    })?;
    Ok(read)
}

fn read_family(number: u16) -> Result<Family, DecodeError> {
    match number {
        AF_INET => Ok(Family::V4),
        AF_INET6 => Ok(Family::V6),
        other => Err(format!("address family {other}").into()),
    }
}

const fn read_tunnel(number: u8) -> Option<TunnelType> {
    match number {
        0 => Some(TunnelType::Ipip),
        1 => Some(TunnelType::Gue),
        2 => Some(TunnelType::Gre),
        _ => None,
    }
}
