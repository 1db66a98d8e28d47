//! Attributes: their numbers, as include/uapi/linux/ip_vs.h has them (Linux 6.1; a kernel of 2026 has
//! no others but `IPVS_STATS_ATTR_PAD`, which is empty), and what their bytes are.
//!
//! Numbers are native-endian but for ports; what is not listed is passed over, so that the attributes
//! of a newer kernel do no harm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, NLA_TYPE_MASK};

use crate::model::Family;

/// The first level of every command but the answer to `IPVS_CMD_GET_INFO` (`IPVS_CMD_ATTR_*`).
pub(super) mod command {
    pub(in crate::ipvs::codec) const SERVICE: u16 = 1;
    pub(in crate::ipvs::codec) const DEST: u16 = 2;
    pub(in crate::ipvs::codec) const DAEMON: u16 = 3;
    pub(in crate::ipvs::codec) const TIMEOUT_TCP: u16 = 4;
    pub(in crate::ipvs::codec) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(in crate::ipvs::codec) const TIMEOUT_UDP: u16 = 6;
}

/// A service (`IPVS_SVC_ATTR_*`).
pub(super) mod service {
    /// `AF_INET` or `AF_INET6`.
    pub(in crate::ipvs::codec) const FAMILY: u16 = 1;
    /// `IPPROTO_*`.
    pub(in crate::ipvs::codec) const PROTOCOL: u16 = 2;
    pub(in crate::ipvs::codec) const ADDR: u16 = 3;
    /// In network byte order.
    pub(in crate::ipvs::codec) const PORT: u16 = 4;
    pub(in crate::ipvs::codec) const FWMARK: u16 = 5;
    /// `none` is a service without scheduler.
    pub(in crate::ipvs::codec) const SCHED_NAME: u16 = 6;
    /// `struct ip_vs_flags`: values, and a mask of those that count.
    pub(in crate::ipvs::codec) const FLAGS: u16 = 7;
    /// Seconds of persistence.
    pub(in crate::ipvs::codec) const TIMEOUT: u16 = 8;
    pub(in crate::ipvs::codec) const NETMASK: u16 = 9;
    pub(in crate::ipvs::codec) const STATS: u16 = 10;
    pub(in crate::ipvs::codec) const PE_NAME: u16 = 11;
    pub(in crate::ipvs::codec) const STATS64: u16 = 12;
}

/// A destination (`IPVS_DEST_ATTR_*`).
pub(super) mod dest {
    pub(in crate::ipvs::codec) const ADDR: u16 = 1;
    /// In network byte order.
    pub(in crate::ipvs::codec) const PORT: u16 = 2;
    /// The method is in `IP_VS_CONN_F_FWD_MASK`, the low 3 bits.
    pub(in crate::ipvs::codec) const FWD_METHOD: u16 = 3;
    pub(in crate::ipvs::codec) const WEIGHT: u16 = 4;
    pub(in crate::ipvs::codec) const U_THRESH: u16 = 5;
    pub(in crate::ipvs::codec) const L_THRESH: u16 = 6;
    pub(in crate::ipvs::codec) const ACTIVE_CONNS: u16 = 7;
    pub(in crate::ipvs::codec) const INACT_CONNS: u16 = 8;
    pub(in crate::ipvs::codec) const PERSIST_CONNS: u16 = 9;
    pub(in crate::ipvs::codec) const STATS: u16 = 10;
    /// Kernels before 3.18 have none: the service's.
    pub(in crate::ipvs::codec) const ADDR_FAMILY: u16 = 11;
    pub(in crate::ipvs::codec) const STATS64: u16 = 12;
    /// `IP_VS_CONN_F_TUNNEL_TYPE_*`, one byte.
    pub(in crate::ipvs::codec) const TUN_TYPE: u16 = 13;
    /// In network byte order.
    pub(in crate::ipvs::codec) const TUN_PORT: u16 = 14;
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`, two bytes.
    pub(in crate::ipvs::codec) const TUN_FLAGS: u16 = 15;
}

/// A sync daemon (`IPVS_DAEMON_ATTR_*`).
pub(super) mod daemon {
    /// `IP_VS_STATE_MASTER` or `IP_VS_STATE_BACKUP`.
    pub(in crate::ipvs::codec) const STATE: u16 = 1;
    pub(in crate::ipvs::codec) const MCAST_IFN: u16 = 2;
    /// Four bytes, of which the kernel and ipvsadm use 0 to 255.
    pub(in crate::ipvs::codec) const SYNC_ID: u16 = 3;
    pub(in crate::ipvs::codec) const SYNC_MAXLEN: u16 = 4;
    /// Four bytes in network byte order.
    pub(in crate::ipvs::codec) const MCAST_GROUP: u16 = 5;
    pub(in crate::ipvs::codec) const MCAST_GROUP6: u16 = 6;
    /// Native, unlike every other port (`ip_vs_genl_fill_daemon`).
    pub(in crate::ipvs::codec) const MCAST_PORT: u16 = 7;
    pub(in crate::ipvs::codec) const MCAST_TTL: u16 = 8;
}

/// Counters (`IPVS_STATS_ATTR_*`): 32 bits wide in `*_ATTR_STATS` but for bytes, 64 bits in
/// `*_ATTR_STATS64`.
pub(super) mod stats {
    pub(in crate::ipvs::codec) const CONNS: u16 = 1;
    pub(in crate::ipvs::codec) const INPKTS: u16 = 2;
    pub(in crate::ipvs::codec) const OUTPKTS: u16 = 3;
    pub(in crate::ipvs::codec) const INBYTES: u16 = 4;
    pub(in crate::ipvs::codec) const OUTBYTES: u16 = 5;
    pub(in crate::ipvs::codec) const CPS: u16 = 6;
    pub(in crate::ipvs::codec) const INPPS: u16 = 7;
    pub(in crate::ipvs::codec) const OUTPPS: u16 = 8;
    pub(in crate::ipvs::codec) const INBPS: u16 = 9;
    pub(in crate::ipvs::codec) const OUTBPS: u16 = 10;
}

/// The answer to `IPVS_CMD_GET_INFO` (`IPVS_INFO_ATTR_*`).
pub(super) mod info {
    /// One byte each for major, minor and patch.
    pub(in crate::ipvs::codec) const VERSION: u16 = 1;
    /// Buckets of the connection table.
    pub(in crate::ipvs::codec) const CONN_TAB_SIZE: u16 = 2;
}

/// Hands every attribute of `bytes` to `take`: its number, without the flags for nesting and byte
/// order, and its value.
///
/// By hand, because every pass over a large table goes through here some hundred thousand times.
pub(super) fn each<'a>(
    bytes: &'a [u8],
    mut take: impl FnMut(u16, Value<'a>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let mut rest = bytes;
    while let [a, b, c, d, ..] = rest {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let kind = u16::from_ne_bytes([*c, *d]) & NLA_TYPE_MASK;
        let value = rest.get(4..length).ok_or("an attribute cut short")?;
        take(kind, Value { kind, bytes: value })?;
        // They start at multiples of four; the last need not be padded.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    match rest {
        [] => Ok(()),
        _ => Err("an attribute without a head".into()),
    }
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a> {
    kind: u16,
    pub(super) bytes: &'a [u8],
}

impl Value<'_> {
    fn array<const N: usize>(self) -> Result<[u8; N], DecodeError> {
        self.bytes.try_into().map_err(|_wrong_length| {
            let (kind, found) = (self.kind, self.bytes.len());
            format!("attribute {kind} has {found} bytes, not {N}").into()
        })
    }

    pub(super) fn u8(self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_ne_bytes)
    }

    pub(super) fn u16(self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    /// A port.
    pub(super) fn be16(self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A counter of either width.
    pub(super) fn count(self) -> Result<u64, DecodeError> {
        match self.bytes.len() {
            4 => self.u32().map(u64::from),
            _ => self.array().map(u64::from_ne_bytes),
        }
    }

    /// The first word of `struct ip_vs_flags`.
    pub(super) fn flags(self) -> Result<u32, DecodeError> {
        let [a, b, c, d, ..] = self.array::<8>()?;
        Ok(u32::from_ne_bytes([a, b, c, d]))
    }

    pub(super) fn addr(self) -> Result<InetAddr, DecodeError> {
        self.array().map(InetAddr)
    }

    pub(super) fn netmask(self) -> Result<Netmask, DecodeError> {
        self.array().map(Netmask)
    }

    pub(super) fn ipv4(self) -> Result<Ipv4Addr, DecodeError> {
        self.array::<4>().map(Ipv4Addr::from)
    }

    pub(super) fn ipv6(self) -> Result<Ipv6Addr, DecodeError> {
        self.array::<16>().map(Ipv6Addr::from)
    }

    /// Zero-terminated text.
    pub(super) fn text(self) -> Result<String, DecodeError> {
        let text = self.bytes.split(|byte| *byte == 0).next();
        Ok(String::from_utf8(text.unwrap_or_default().to_vec())?)
    }
}

/// `union nf_inet_addr`: an IPv6 address, or an IPv4 address in the first four of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InetAddr(pub(super) [u8; 16]);

impl InetAddr {
    /// The address that it is in a family.
    pub(super) fn ip(self, family: Family) -> IpAddr {
        let [a, b, c, d, ..] = self.0;
        match family {
            Family::V4 => Ipv4Addr::new(a, b, c, d).into(),
            Family::V6 => Ipv6Addr::from(self.0).into(),
        }
    }
}

impl From<IpAddr> for InetAddr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                Self([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

/// Four bytes whose order depends on the service's family: `IPVS_SVC_ATTR_NETMASK` is a mask in
/// network byte order for IPv4, and the length of a prefix as a native number for IPv6
/// (`ip_vs_add_service` compares it with 1 and 128).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Netmask(pub(super) [u8; 4]);

impl Netmask {
    /// The netmask for clients that agree in `prefix` bits.
    pub(super) fn from_prefix(family: Family, prefix: u8) -> Self {
        Self(match family {
            Family::V4 => {
                let host_bits = 32_u32.saturating_sub(u32::from(prefix));
                u32::MAX.checked_shl(host_bits).unwrap_or(0).to_be_bytes()
            }
            Family::V6 => u32::from(prefix).to_ne_bytes(),
        })
    }

    /// Bits in which clients agree. An IPv4 mask with holes counts to its first hole.
    pub(super) fn prefix(self, family: Family) -> Result<u8, DecodeError> {
        let bits = match family {
            Family::V4 => u32::from_be_bytes(self.0).leading_ones(),
            Family::V6 => u32::from_ne_bytes(self.0),
        };
        u8::try_from(bits)
            .ok()
            .filter(|bits| *bits <= 128)
            .ok_or_else(|| format!("a prefix of {bits} bits").into())
    }
}
