//! The attributes: one enum for each level of nesting, with the names, kinds and widths of
//! include/uapi/linux/ip_vs.h (Linux 6.1). An attribute that is not listed there stays as it came
//! (`Other`), so that the bytes of a newer kernel survive a round trip.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, Nla, NlaBuffer, NlasIterator, Parseable,
};

use crate::model::Family;

/// The value of an attribute: bytes both ways. `emit` is given exactly `len` bytes.
pub(super) trait Value: Sized {
    fn len(&self) -> usize;
    fn emit(&self, buffer: &mut [u8]);
    fn read(bytes: &[u8]) -> Result<Self, DecodeError>;
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes
        .try_into()
        .map_err(|_wrong_length| DecodeError::invalid_number(N, bytes.len()))
}

macro_rules! native_numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn len(&self) -> usize {
                size_of::<Self>()
            }
            fn emit(&self, buffer: &mut [u8]) {
                buffer.copy_from_slice(&self.to_ne_bytes());
            }
            fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
                array(bytes).map(Self::from_ne_bytes)
            }
        }
    )*};
}
native_numbers!(u8, u16, u32);

/// A 16-bit number in network byte order: a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Be16(pub u16);

impl Value for Be16 {
    fn len(&self) -> usize {
        2
    }
    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        array(bytes).map(u16::from_be_bytes).map(Self)
    }
}

/// Four bytes whose order depends on the service's family: `IPVS_SVC_ATTR_NETMASK` is a mask in
/// network byte order for IPv4, and the length of a prefix as a native number for IPv6
/// (`ip_vs_add_service` compares it with 1 and 128).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netmask(pub [u8; 4]);

impl Netmask {
    /// The netmask for clients that agree in `prefix` bits.
    #[must_use]
    pub fn from_prefix(family: Family, prefix: u8) -> Self {
        Self(match family {
            Family::V4 => {
                let host_bits = 32_u32.saturating_sub(u32::from(prefix));
                u32::MAX.checked_shl(host_bits).unwrap_or(0).to_be_bytes()
            }
            Family::V6 => u32::from(prefix).to_ne_bytes(),
        })
    }

    /// Bits in which clients agree. An IPv4 mask with holes counts to its first hole.
    pub fn prefix(self, family: Family) -> Result<u8, DecodeError> {
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

impl Value for Netmask {
    fn len(&self) -> usize {
        4
    }
    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        array(bytes).map(Self)
    }
}

/// `union nf_inet_addr`: an IPv6 address, or an IPv4 address in the first four of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InetAddr(pub [u8; 16]);

impl InetAddr {
    /// The address that it is in a family.
    #[must_use]
    pub fn ip(self, family: Family) -> IpAddr {
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

impl Value for InetAddr {
    fn len(&self) -> usize {
        16
    }
    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        array(bytes).map(Self)
    }
}

/// `struct ip_vs_flags`: the bits of `mask` take the values that they have in `flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Values, `IP_VS_SVC_F_*`.
    pub flags: u32,
    /// Which of them count.
    pub mask: u32,
}

impl Value for Flags {
    fn len(&self) -> usize {
        8
    }
    fn emit(&self, buffer: &mut [u8]) {
        let (flags, mask) = buffer.split_at_mut(4);
        flags.copy_from_slice(&self.flags.to_ne_bytes());
        mask.copy_from_slice(&self.mask.to_ne_bytes());
    }
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [a, b, c, d, e, f, g, h] = array(bytes)?;
        Ok(Self {
            flags: u32::from_ne_bytes([a, b, c, d]),
            mask: u32::from_ne_bytes([e, f, g, h]),
        })
    }
}

/// Zero-terminated text.
impl Value for String {
    fn len(&self) -> usize {
        self.as_str().len().saturating_add(1)
    }
    fn emit(&self, buffer: &mut [u8]) {
        if let Some((end, text)) = buffer.split_last_mut() {
            text.copy_from_slice(self.as_bytes());
            *end = 0;
        }
    }
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self::from_utf8(text.to_vec())?)
    }
}

/// A counter: 32 bits wide in `*_ATTR_STATS` but for bytes, 64 bits in `*_ATTR_STATS64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// 32 bits.
    Narrow(u32),
    /// 64 bits.
    Wide(u64),
}

impl Count {
    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        match self {
            Self::Narrow(n) => n.into(),
            Self::Wide(n) => n,
        }
    }
}

impl Value for Count {
    fn len(&self) -> usize {
        match self {
            Self::Narrow(_) => 4,
            Self::Wide(_) => 8,
        }
    }
    fn emit(&self, buffer: &mut [u8]) {
        match self {
            Self::Narrow(n) => buffer.copy_from_slice(&n.to_ne_bytes()),
            Self::Wide(n) => buffer.copy_from_slice(&n.to_ne_bytes()),
        }
    }
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        match bytes.len() {
            4 => array(bytes).map(u32::from_ne_bytes).map(Self::Narrow),
            _ => array(bytes).map(u64::from_ne_bytes).map(Self::Wide),
        }
    }
}

/// Attributes within an attribute.
impl<T> Value for Vec<T>
where
    T: Nla + for<'a> Parseable<NlaBuffer<&'a [u8]>>,
{
    fn len(&self) -> usize {
        self.as_slice().buffer_len()
    }
    fn emit(&self, buffer: &mut [u8]) {
        self.as_slice().emit(buffer);
    }
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        NlasIterator::new(bytes)
            .map(|nla| T::parse(&nla?))
            .collect()
    }
}

/// Writes an enum of attributes with its `Nla` and `Parseable`: name, type of the value, kind.
macro_rules! attributes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident($value:ty) = $kind:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vdoc])* $variant($value),)*
            /// Any other, as it came.
            Other(DefaultNla),
        }

        impl Nla for $name {
            fn value_len(&self) -> usize {
                match self {
                    $(Self::$variant(value) => Value::len(value),)*
                    Self::Other(nla) => nla.value_len(),
                }
            }
            fn kind(&self) -> u16 {
                match self {
                    $(Self::$variant(_) => $kind,)*
                    Self::Other(nla) => nla.kind(),
                }
            }
            fn emit_value(&self, buffer: &mut [u8]) {
                match self {
                    $(Self::$variant(value) => Value::emit(value, buffer),)*
                    Self::Other(nla) => nla.emit_value(buffer),
                }
            }
        }

        impl<'a> Parseable<NlaBuffer<&'a [u8]>> for $name {
            fn parse(nla: &NlaBuffer<&'a [u8]>) -> Result<Self, DecodeError> {
                Ok(match nla.kind() {
                    $($kind => Self::$variant(<$value as Value>::read(nla.value()).context(
                        concat!(stringify!($name), "::", stringify!($variant)),
                    )?),)*
                    _ => Self::Other(DefaultNla::parse(nla)?),
                })
            }
        }
    };
}

attributes! {
    /// The first level of every command but the answer to `IPVS_CMD_GET_INFO` (`IPVS_CMD_ATTR_*`).
    CommandNla {
        /// `IPVS_CMD_ATTR_SERVICE`.
        Service(Vec<ServiceNla>) = 1,
        /// `IPVS_CMD_ATTR_DEST`.
        Dest(Vec<DestNla>) = 2,
    }
}

attributes! {
    /// The first level of the answer to `IPVS_CMD_GET_INFO` (`IPVS_INFO_ATTR_*`).
    InfoNla {
        /// `IPVS_INFO_ATTR_VERSION`: one byte each for major, minor and patch.
        Version(u32) = 1,
        /// `IPVS_INFO_ATTR_CONN_TAB_SIZE`: buckets of the connection table.
        ConnTabSize(u32) = 2,
    }
}

attributes! {
    /// A service (`IPVS_SVC_ATTR_*`).
    ServiceNla {
        /// `IPVS_SVC_ATTR_AF`: `AF_INET` or `AF_INET6`.
        Family(u16) = 1,
        /// `IPVS_SVC_ATTR_PROTOCOL`: `IPPROTO_*`.
        Protocol(u16) = 2,
        /// `IPVS_SVC_ATTR_ADDR`.
        Addr(InetAddr) = 3,
        /// `IPVS_SVC_ATTR_PORT`.
        Port(Be16) = 4,
        /// `IPVS_SVC_ATTR_FWMARK`.
        Fwmark(u32) = 5,
        /// `IPVS_SVC_ATTR_SCHED_NAME`; `none` is a service without scheduler.
        SchedName(String) = 6,
        /// `IPVS_SVC_ATTR_FLAGS`.
        Flags(Flags) = 7,
        /// `IPVS_SVC_ATTR_TIMEOUT`: seconds of persistence.
        Timeout(u32) = 8,
        /// `IPVS_SVC_ATTR_NETMASK`.
        Netmask(Netmask) = 9,
        /// `IPVS_SVC_ATTR_STATS`.
        Stats(Vec<StatsNla>) = 10,
        /// `IPVS_SVC_ATTR_PE_NAME`: persistence engine.
        PeName(String) = 11,
        /// `IPVS_SVC_ATTR_STATS64`.
        Stats64(Vec<StatsNla>) = 12,
    }
}

attributes! {
    /// A destination (`IPVS_DEST_ATTR_*`).
    DestNla {
        /// `IPVS_DEST_ATTR_ADDR`.
        Addr(InetAddr) = 1,
        /// `IPVS_DEST_ATTR_PORT`.
        Port(Be16) = 2,
        /// `IPVS_DEST_ATTR_FWD_METHOD`: the method is in `IP_VS_CONN_F_FWD_MASK`, the low 3 bits.
        FwdMethod(u32) = 3,
        /// `IPVS_DEST_ATTR_WEIGHT`.
        Weight(u32) = 4,
        /// `IPVS_DEST_ATTR_U_THRESH`.
        UThresh(u32) = 5,
        /// `IPVS_DEST_ATTR_L_THRESH`.
        LThresh(u32) = 6,
        /// `IPVS_DEST_ATTR_ACTIVE_CONNS`.
        ActiveConns(u32) = 7,
        /// `IPVS_DEST_ATTR_INACT_CONNS`.
        InactConns(u32) = 8,
        /// `IPVS_DEST_ATTR_PERSIST_CONNS`.
        PersistConns(u32) = 9,
        /// `IPVS_DEST_ATTR_STATS`.
        Stats(Vec<StatsNla>) = 10,
        /// `IPVS_DEST_ATTR_ADDR_FAMILY`; kernels before 3.18 have none: the service's.
        Family(u16) = 11,
        /// `IPVS_DEST_ATTR_STATS64`.
        Stats64(Vec<StatsNla>) = 12,
        /// `IPVS_DEST_ATTR_TUN_TYPE`: `IP_VS_CONN_F_TUNNEL_TYPE_*`.
        TunType(u8) = 13,
        /// `IPVS_DEST_ATTR_TUN_PORT`.
        TunPort(Be16) = 14,
        /// `IPVS_DEST_ATTR_TUN_FLAGS`: `IP_VS_TUNNEL_ENCAP_FLAG_*`.
        TunFlags(u16) = 15,
    }
}

attributes! {
    /// Counters (`IPVS_STATS_ATTR_*`).
    StatsNla {
        /// `IPVS_STATS_ATTR_CONNS`.
        Conns(Count) = 1,
        /// `IPVS_STATS_ATTR_INPKTS`.
        InPkts(Count) = 2,
        /// `IPVS_STATS_ATTR_OUTPKTS`.
        OutPkts(Count) = 3,
        /// `IPVS_STATS_ATTR_INBYTES`.
        InBytes(Count) = 4,
        /// `IPVS_STATS_ATTR_OUTBYTES`.
        OutBytes(Count) = 5,
        /// `IPVS_STATS_ATTR_CPS`.
        Cps(Count) = 6,
        /// `IPVS_STATS_ATTR_INPPS`.
        InPps(Count) = 7,
        /// `IPVS_STATS_ATTR_OUTPPS`.
        OutPps(Count) = 8,
        /// `IPVS_STATS_ATTR_INBPS`.
        InBps(Count) = 9,
        /// `IPVS_STATS_ATTR_OUTBPS`.
        OutBps(Count) = 10,
    }
}
