//! Model to bytes: one request after the other into one buffer, which goes out in one call.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NetlinkHeader};
use netlink_packet_generic::GenlHeader;

use super::{
    AF_INET, AF_INET6, Command, FAMILY_VERSION, PERSISTENT, STATE_BACKUP, STATE_MASTER,
    nla::{InetAddr, Netmask, command, daemon, dest, service},
};
use crate::model::{
    DestAttrs, DestKey, Family, ForwardMethod, Protocol, ServiceAttrs, ServiceFlags, ServiceKey,
    Step, SyncDaemon, SyncRole, Timeouts, TunnelType,
};

/// The length of the headers before the attributes: `struct nlmsghdr`, `struct genlmsghdr`.
const HEADERS: usize = 20;

/// What goes before a request's attributes.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The number that the kernel gave the family.
    pub family: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Its answer comes with the same.
    pub sequence: u32,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    /// A request without attributes.
    Bare(Command),
    /// A request that names a service.
    Service(Command, &'a ServiceKey),
    /// A change of the table.
    Step(&'a Step),
    /// `IPVS_CMD_SET_CONFIG`.
    SetTimeouts(&'a Timeouts),
    /// `IPVS_CMD_NEW_DAEMON`.
    StartDaemon(&'a SyncDaemon),
    /// `IPVS_CMD_DEL_DAEMON`.
    StopDaemon(SyncRole),
}

impl Ask<'_> {
    const fn command(self) -> Command {
        match self {
            Self::Bare(command) | Self::Service(command, _) => command,
            Self::Step(step) => match step {
                Step::NewService(..) => Command::NewService,
                Step::SetService(..) => Command::SetService,
                Step::DelService(_) => Command::DelService,
                Step::NewDest(..) => Command::NewDest,
                Step::SetDest(..) => Command::SetDest,
                Step::DelDest(..) => Command::DelDest,
            },
            Self::SetTimeouts(_) => Command::SetConfig,
            Self::StartDaemon(_) => Command::NewDaemon,
            Self::StopDaemon(_) => Command::DelDaemon,
        }
    }
}

/// Appends one request.
pub fn request(to: &mut Vec<u8>, envelope: Envelope, ask: Ask<'_>) {
    let start = to.len();
    let mut header = NetlinkHeader::default();
    header.message_type = envelope.family;
    header.flags = envelope.flags;
    header.sequence_number = envelope.sequence;
    let generic = GenlHeader {
        cmd: ask.command().into(),
        version: FAMILY_VERSION,
    };
    let mut headers = [0; HEADERS];
    let (first, second) = headers.split_at_mut(16);
    header.emit(first);
    generic.emit(second);
    to.extend_from_slice(&headers);
    attributes(to, ask);
    // A request is far below: names have at most 15 bytes.
    let length = u32::try_from(to.len().saturating_sub(start)).unwrap_or(u32::MAX);
    if let Some(place) = to.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
        *place = length.to_ne_bytes();
    }
}

fn attributes(to: &mut Vec<u8>, ask: Ask<'_>) {
    match ask {
        Ask::Bare(_) => {}
        Ask::Service(_, key) | Ask::Step(Step::DelService(key)) => {
            nest(to, command::SERVICE, |to| service_id(to, key));
        }
        Ask::Step(Step::NewService(key, attrs) | Step::SetService(key, attrs)) => {
            nest(to, command::SERVICE, |to| {
                service_id(to, key);
                service_attrs(to, key, attrs);
            });
        }
        Ask::Step(Step::NewDest(key, dest, attrs) | Step::SetDest(key, dest, attrs)) => {
            nest(to, command::SERVICE, |to| service_id(to, key));
            nest(to, command::DEST, |to| {
                dest_id(to, dest);
                dest_attrs(to, attrs);
            });
        }
        Ask::Step(Step::DelDest(key, dest)) => {
            nest(to, command::SERVICE, |to| service_id(to, key));
            nest(to, command::DEST, |to| dest_id(to, dest));
        }
        Ask::SetTimeouts(timeouts) => {
            let all = [
                short(command::TIMEOUT_TCP, timeouts.tcp_s.to_ne_bytes()),
                short(command::TIMEOUT_TCP_FIN, timeouts.tcp_fin_s.to_ne_bytes()),
                short(command::TIMEOUT_UDP, timeouts.udp_s.to_ne_bytes()),
            ];
            to.extend_from_slice(all.as_flattened());
        }
        Ask::StartDaemon(daemon) => nest(to, command::DAEMON, |to| daemon_attrs(to, daemon)),
        Ask::StopDaemon(role) => nest(to, command::DAEMON, |to| daemon_role(to, role)),
    }
}

/// An attribute whose value has up to four bytes: length, number, value, zeros. A table of 10,000
/// destinations has a hundred thousand of them, so those that stand together are written together.
fn short<const N: usize>(kind: u16, value: [u8; N]) -> [u8; 8] {
    const { assert!(N <= 4, "longer values are written otherwise") };
    let mut bytes = [0; 8];
    let (head, place) = bytes.split_at_mut(4);
    head.copy_from_slice(&attribute_head(kind, N + 4));
    for (to, from) in place.iter_mut().zip(value) {
        *to = from;
    }
    bytes
}

fn put<const N: usize>(to: &mut Vec<u8>, kind: u16, value: [u8; N]) {
    to.extend_from_slice(&short(kind, value));
}

/// An attribute that holds `union nf_inet_addr`.
fn address(kind: u16, addr: IpAddr) -> [u8; 20] {
    let mut bytes = [0; 20];
    let (head, place) = bytes.split_at_mut(4);
    head.copy_from_slice(&attribute_head(kind, 20));
    place.copy_from_slice(&InetAddr::from(addr).0);
    bytes
}

/// `struct nlattr`; the length has these four bytes in it.
fn attribute_head(kind: u16, length: usize) -> [u8; 4] {
    let [a, b] = u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    [a, b, c, d]
}

fn text(to: &mut Vec<u8>, kind: u16, text: &str) {
    nest(to, kind, |to| {
        to.extend_from_slice(text.as_bytes());
        to.push(0);
    });
}

fn nest(to: &mut Vec<u8>, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend_from_slice(&[0; 4]);
    value(to);
    let length = to.len().saturating_sub(start);
    to.resize(to.len().next_multiple_of(4), 0);
    if let Some(head) = to.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
        *head = attribute_head(kind, length);
    }
}

fn service_id(to: &mut Vec<u8>, key: &ServiceKey) {
    let family = short(service::FAMILY, family(key.family()).to_ne_bytes());
    match key {
        ServiceKey::Addr(protocol, addr) => {
            let number: u16 = match protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
                Protocol::Sctp => 132,
            };
            let protocol = short(service::PROTOCOL, number.to_ne_bytes());
            to.extend_from_slice([family, protocol].as_flattened());
            to.extend_from_slice(&address(service::ADDR, addr.ip()));
            put(to, service::PORT, addr.port().to_be_bytes());
        }
        ServiceKey::Fwmark(_, mark) => {
            let mark = short(service::FWMARK, mark.to_ne_bytes());
            to.extend_from_slice([family, mark].as_flattened());
        }
    }
}

/// The kernel wants scheduler, flags, timeout and netmask each time, and an IPv6 prefix from 1 to
/// 128 without persistence too (`ip_vs_genl_parse_service`, `ip_vs_add_service`).
fn service_attrs(to: &mut Vec<u8>, key: &ServiceKey, attrs: &ServiceAttrs) {
    let (persistent, timeout, prefix) = match &attrs.persistence {
        Some(p) => (PERSISTENT, p.timeout_s, p.prefix),
        None => (0, 0, u8::MAX),
    };
    let longest = match key.family() {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    text(to, service::SCHED_NAME, &attrs.scheduler.0);
    nest(to, service::FLAGS, |to| {
        let flags = attrs.flags.0 & ServiceFlags::SETTABLE | persistent;
        // What an owner may set is set or cleared, the kernel's own and later flags stay.
        let mask = ServiceFlags::SETTABLE | PERSISTENT;
        to.extend_from_slice(&flags.to_ne_bytes());
        to.extend_from_slice(&mask.to_ne_bytes());
    });
    let netmask = Netmask::from_prefix(key.family(), prefix.min(longest));
    let fixed = [
        short(service::TIMEOUT, timeout.to_ne_bytes()),
        short(service::NETMASK, netmask.0),
    ];
    to.extend_from_slice(fixed.as_flattened());
    let engine = attrs.persistence.as_ref().and_then(|p| p.engine.as_ref());
    if let Some(engine) = engine {
        text(to, service::PE_NAME, engine);
    }
}

fn dest_id(to: &mut Vec<u8>, key: &DestKey) {
    let family = family(Family::of(key.addr));
    put(to, dest::ADDR_FAMILY, family.to_ne_bytes());
    to.extend_from_slice(&address(dest::ADDR, key.addr));
    put(to, dest::PORT, key.port.to_be_bytes());
}

fn dest_attrs(to: &mut Vec<u8>, attrs: &DestAttrs) {
    let method: u32 = match attrs.forward {
        ForwardMethod::Nat => 0,
        ForwardMethod::Local => 1,
        ForwardMethod::Tun => 2,
        ForwardMethod::Dr => 3,
        ForwardMethod::Bypass => 4,
    };
    let tunnel: u8 = match attrs.tunnel.kind {
        TunnelType::Ipip => 0,
        TunnelType::Gue => 1,
        TunnelType::Gre => 2,
    };
    let all = [
        short(dest::FWD_METHOD, method.to_ne_bytes()),
        short(dest::WEIGHT, attrs.weight.get().to_ne_bytes()),
        short(dest::U_THRESH, attrs.upper.to_ne_bytes()),
        short(dest::L_THRESH, attrs.lower.to_ne_bytes()),
        short(dest::TUN_TYPE, [tunnel]),
        short(dest::TUN_PORT, attrs.tunnel.port.to_be_bytes()),
        short(dest::TUN_FLAGS, attrs.tunnel.flags.to_ne_bytes()),
    ];
    to.extend_from_slice(all.as_flattened());
}

fn daemon_role(to: &mut Vec<u8>, role: SyncRole) {
    let state = match role {
        SyncRole::Master => STATE_MASTER,
        SyncRole::Backup => STATE_BACKUP,
    };
    put(to, daemon::STATE, state.to_ne_bytes());
}

/// What is zero or absent is the kernel's to choose (`ip_vs_genl_new_daemon`, `start_sync_thread`).
fn daemon_attrs(to: &mut Vec<u8>, of: &SyncDaemon) {
    daemon_role(to, of.role);
    text(to, daemon::MCAST_IFN, &of.interface);
    put(to, daemon::SYNC_ID, u32::from(of.sync_id).to_ne_bytes());
    if of.max_length != 0 {
        put(to, daemon::SYNC_MAXLEN, of.max_length.to_ne_bytes());
    }
    match of.group {
        Some(IpAddr::V4(group)) => put(to, daemon::MCAST_GROUP, group.octets()),
        Some(IpAddr::V6(group)) => {
            to.extend_from_slice(&address(daemon::MCAST_GROUP6, group.into()))
        }
        None => {}
    }
    if of.port != 0 {
        put(to, daemon::MCAST_PORT, of.port.to_ne_bytes());
    }
    if of.ttl != 0 {
        put(to, daemon::MCAST_TTL, [of.ttl]);
    }
}

const fn family(family: Family) -> u16 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}
