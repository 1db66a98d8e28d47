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
    /// Of each the length; 0 for any.
    pub(in crate::ipvs::codec) const LENGTHS: [u16; 7] = [0, 0, 0, 0, 4, 4, 4];
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
    /// Of each the length; 0 for any.
    pub(in crate::ipvs::codec) const LENGTHS: [u16; 13] = [0, 2, 2, 16, 2, 4, 0, 8, 4, 4, 0, 0, 0];
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
    /// Of each the length; 0 for any.
    pub(in crate::ipvs::codec) const LENGTHS: [u16; 16] =
        [0, 16, 2, 4, 4, 4, 4, 4, 4, 4, 0, 2, 0, 1, 2, 2];
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
    /// Of each the length; 0 for any.
    pub(in crate::ipvs::codec) const LENGTHS: [u16; 9] = [0, 4, 0, 4, 2, 4, 16, 2, 1];
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
    /// Of each the length; 0 for any.
    pub(in crate::ipvs::codec) const LENGTHS: [u16; 11] = [0; 11];
}

/// The answer to `IPVS_CMD_GET_INFO` (`IPVS_INFO_ATTR_*`).
pub(super) mod info {
    /// One byte each for major, minor and patch.
    pub(in crate::ipvs::codec) const VERSION: u16 = 1;
    /// Buckets of the connection table.
    pub(in crate::ipvs::codec) const CONN_TAB_SIZE: u16 = 2;
    /// Of each the length; 0 for any.
    pub(in crate::ipvs::codec) const LENGTHS: [u16; 3] = [0, 4, 4];
}

/// Where the last message had its attributes: the next one of a dump has them there too, so that to
/// read ten thousand takes half the work.
#[derive(Clone, Debug)]
pub(super) struct Layout<const N: usize> {
    /// Bytes of the attributes together.
    length: usize,
    /// The head of each, in their order.
    heads: Vec<[u8; 4]>,
    /// Where the value of each begins and ends; both are zero where there is none.
    places: [(usize, usize); N],
}

/// That of no attributes.
impl<const N: usize> Default for Layout<N> {
    fn default() -> Self {
        Self {
            length: 0,
            heads: Vec::new(),
            places: [(0, 0); N],
        }
    }
}

impl<const N: usize> Layout<N> {
    /// The attributes in `bytes` by number, those below `N`: the last of each that is there.
    /// `lengths` is what each must have.
    pub(super) fn read<'a>(
        &'a mut self,
        bytes: &'a [u8],
        lengths: &[u16; N],
    ) -> Result<Attributes<'a, N>, DecodeError> {
        if !self.fits(bytes) {
            *self = Self::of(bytes, lengths)?;
        }
        let places = &self.places;
        Ok(Attributes { bytes, places })
    }

    fn fits(&self, bytes: &[u8]) -> bool {
        let mut at = 0;
        let has = |head: &[u8; 4]| {
            let there = bytes.get(at..).and_then(<[u8]>::first_chunk);
            at += step(*head);
            there == Some(head)
        };
        bytes.len() == self.length && self.heads.iter().all(has)
    }

    fn of(bytes: &[u8], lengths: &[u16; N]) -> Result<Self, DecodeError> {
        let mut layout = Self {
            length: bytes.len(),
            heads: Vec::new(),
            places: [(0, 0); N],
        };
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let head = rest.first_chunk().ok_or("an attribute without a head")?;
            let [a, b, c, d] = *head;
            let length = u16::from_ne_bytes([a, b]);
            // Without the flags for nesting and byte order.
            let kind = u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK;
            let (from, to) = (at + 4, at + usize::from(length));
            let value = bytes.get(from..to).ok_or("an attribute cut short")?;
            layout.heads.push(*head);
            let number = usize::from(kind);
            if let (Some(place), Some(wanted)) =
                (layout.places.get_mut(number), lengths.get(number))
            {
                let (found, wanted) = (value.len(), usize::from(*wanted));
                if wanted != 0 && found != wanted {
                    return Err(format!("attribute {kind} has {found} bytes, not {wanted}").into());
                }
                *place = (from, to);
            }
            at += step(*head);
        }
        Ok(layout)
    }
}

/// From one attribute to the next: they start at multiples of four. The last need not be padded.
fn step([a, b, ..]: [u8; 4]) -> usize {
    usize::from(u16::from_ne_bytes([a, b])).next_multiple_of(4)
}

/// The attributes of a message, by number: `None` for one that is not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a, const N: usize> {
    bytes: &'a [u8],
    places: &'a [(usize, usize); N],
}

impl<'a, const N: usize> Attributes<'a, N> {
    pub(super) fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        match self.places.get(usize::from(kind)) {
            None | Some((0, _)) => None,
            Some((from, to)) => self.bytes.get(*from..*to),
        }
    }

    /// Those that [`Layout::read`] was told to have this length.
    #[inline]
    fn array<const L: usize>(&self, kind: u16) -> Option<[u8; L]> {
        self.bytes(kind)?.try_into().ok()
    }

    pub(super) fn u8(&self, kind: u16) -> Option<u8> {
        self.array(kind).map(u8::from_ne_bytes)
    }

    pub(super) fn u16(&self, kind: u16) -> Option<u16> {
        self.array(kind).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&self, kind: u16) -> Option<u32> {
        self.array(kind).map(u32::from_ne_bytes)
    }

    /// A port.
    pub(super) fn be16(&self, kind: u16) -> Option<u16> {
        self.array(kind).map(u16::from_be_bytes)
    }

    /// The first word of `struct ip_vs_flags`.
    pub(super) fn flags(&self, kind: u16) -> Option<u32> {
        let first = |[a, b, c, d, ..]: [u8; 8]| u32::from_ne_bytes([a, b, c, d]);
        self.array(kind).map(first)
    }

    pub(super) fn addr(&self, kind: u16) -> Option<InetAddr> {
        self.array(kind).map(InetAddr)
    }

    pub(super) fn netmask(&self, kind: u16) -> Option<Netmask> {
        self.array(kind).map(Netmask)
    }

    pub(super) fn ipv4(&self, kind: u16) -> Option<Ipv4Addr> {
        self.array::<4>(kind).map(Ipv4Addr::from)
    }

    pub(super) fn ipv6(&self, kind: u16) -> Option<Ipv6Addr> {
        self.array::<16>(kind).map(Ipv6Addr::from)
    }

    /// A counter of either width; zero where there is none.
    pub(super) fn count(&self, kind: u16) -> Result<u64, DecodeError> {
        let Some(bytes) = self.bytes(kind) else {
            return Ok(0);
        };
        match (self.u32(kind), self.array(kind)) {
            (Some(narrow), _) => Ok(narrow.into()),
            (_, Some(wide)) => Ok(u64::from_ne_bytes(wide)),
            _ => Err(format!("counter {kind} has {} bytes, not 4 or 8", bytes.len()).into()),
        }
    }

    /// Zero-terminated text.
    pub(super) fn text(&self, kind: u16) -> Result<Option<String>, DecodeError> {
        let Some(bytes) = self.bytes(kind) else {
            return Ok(None);
        };
        let text = bytes.split(|byte| *byte == 0).next();
        Ok(Some(String::from_utf8(text.unwrap_or_default().to_vec())?))
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
