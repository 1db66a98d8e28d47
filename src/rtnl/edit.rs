//! Changes: addresses put on and taken off (`RTM_NEWADDR`, `RTM_DELADDR`), a dummy made, an interface
//! switched on (`RTM_NEWLINK`). All need `CAP_NET_ADMIN`.

use std::{io, net::IpAddr};

use neli::{
    FromBytesWithInput, Size, ToBytes,
    consts::{
        nl::NlmF,
        rtnl::{Ifa, IfaF, Ifla, IflaInfo, RtAddrFamily, RtScope, RtaType, Rtm},
        socket::NlFamily,
    },
    nl::{NlPayload, NlmsghdrBuilder},
    rtnl::{Ifaddrmsg, IfaddrmsgBuilder, IfinfomsgBuilder, Rtattr, RtattrBuilder},
    socket::synchronous::NlSocketHandle,
    types::{Buffer, RtBuffer},
    utils::Groups,
};

use super::addresses::{Error, PROTO, within_limit};

const SEQUENCE: u32 = 1;

/// `INFINITY_LIFE_TIME` (include/net/addrconf.h).
const FOR_EVER: u32 = u32::MAX;

/// Puts an address on the interface of an index, marked as put there by `proto`. Blocks for a moment.
///
/// An IPv6 address works at once, as whoever could have it was asked (`IFA_F_NODAD`), and is no source of this
/// host's own connections (a preferred lifetime of 0: RFC 6724, rule 3).
///
/// # Errors
///
/// See [`Error`].
pub fn add_address(addr: IpAddr, prefix: u8, index: u32, proto: u8) -> Result<(), Error> {
    let mut more = vec![attribute(Ifa::from(PROTO), vec![proto])?];
    let mut flags = IfaF::empty();
    if addr.is_ipv6() {
        flags = IfaF::NODAD;
        // `struct ifa_cacheinfo`: preferred, valid, created, changed.
        let times = [0, FOR_EVER, 0, 0].map(u32::to_ne_bytes).concat();
        more.push(attribute(Ifa::Cacheinfo, times)?);
    }
    let wanted = address(addr, prefix, index, flags, more)?;
    let flags = NlmF::CREATE | NlmF::EXCL;
    within_limit(move || change(Rtm::Newaddr, flags, wanted))
}

/// Takes an address off the interface of an index. Blocks for a moment.
///
/// # Errors
///
/// See [`Error`].
pub fn remove_address(addr: IpAddr, prefix: u8, index: u32) -> Result<(), Error> {
    let wanted = address(addr, prefix, index, IfaF::empty(), Vec::new())?;
    within_limit(move || change(Rtm::Deladdr, NlmF::empty(), wanted))
}

/// Makes a dummy interface, switched on. The kernel loads its module by itself. Blocks for a moment.
///
/// # Errors
///
/// See [`Error`].
pub fn create_dummy(name: &str) -> Result<(), Error> {
    let kind = attribute(IflaInfo::Kind, b"dummy".to_vec())?;
    let info = attribute(Ifla::Linkinfo, Vec::new())?;
    let info = info.nest(&kind).map_err(unbuilt)?;
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let wanted = IfinfomsgBuilder::default()
        .ifi_family(RtAddrFamily::Unspecified)
        .rtattrs([attribute(Ifla::Ifname, name)?, info].into_iter().collect())
        .up()
        .build()
        .map_err(unbuilt)?;
    let flags = NlmF::CREATE | NlmF::EXCL;
    within_limit(move || change(Rtm::Newlink, flags, wanted))
}

/// Switches the interface of an index on. Blocks for a moment.
///
/// # Errors
///
/// See [`Error`].
pub fn switch_on(index: u32) -> Result<(), Error> {
    let index = i32::try_from(index).map_err(unbuilt)?;
    let wanted = IfinfomsgBuilder::default()
        .ifi_family(RtAddrFamily::Unspecified)
        .ifi_index(index)
        .up()
        .build()
        .map_err(unbuilt)?;
    within_limit(move || change(Rtm::Newlink, NlmF::empty(), wanted))
}

fn unbuilt(error: impl ToString) -> Error {
    Error::Request(error.to_string())
}

fn attribute<T: RtaType + Size>(kind: T, payload: Vec<u8>) -> Result<Rtattr<T, Buffer>, Error> {
    let built = RtattrBuilder::default().rta_type(kind);
    built
        .rta_payload(Buffer::from(payload))
        .build()
        .map_err(unbuilt)
}

fn address(
    addr: IpAddr,
    prefix: u8,
    index: u32,
    flags: IfaF,
    more: Vec<Rtattr<Ifa, Buffer>>,
) -> Result<Ifaddrmsg, Error> {
    let (family, bytes) = match addr {
        IpAddr::V4(addr) => (RtAddrFamily::Inet, addr.octets().to_vec()),
        IpAddr::V6(addr) => (RtAddrFamily::Inet6, addr.octets().to_vec()),
    };
    let mut attributes: RtBuffer<Ifa, Buffer> = RtBuffer::new();
    attributes.push(attribute(Ifa::Local, bytes.clone())?);
    attributes.push(attribute(Ifa::Address, bytes)?);
    for attribute in more {
        attributes.push(attribute);
    }
    IfaddrmsgBuilder::default()
        .ifa_family(family)
        .ifa_prefixlen(prefix)
        .ifa_flags(flags)
        .ifa_scope(RtScope::Universe)
        .ifa_index(index)
        .rtattrs(attributes)
        .build()
        .map_err(unbuilt)
}

/// Sends one change, and waits for its acknowledgement.
fn change<P>(kind: Rtm, flags: NlmF, wanted: P) -> Result<(), Error>
where
    P: Size + ToBytes + FromBytesWithInput<Input = usize>,
{
    let failed = |doing| move |source| Error::Socket { doing, source };
    let socket = NlSocketHandle::connect(NlFamily::Route, None, Groups::empty())
        .map_err(failed("connecting"))?;
    let request = NlmsghdrBuilder::default()
        .nl_type(kind)
        .nl_flags(NlmF::REQUEST | NlmF::ACK | flags)
        .nl_pid(socket.pid())
        .nl_seq(SEQUENCE)
        .nl_payload(NlPayload::Payload(wanted))
        .build()
        .map_err(unbuilt)?;
    socket.send(&request).map_err(failed("asking"))?;
    loop {
        let (messages, _groups) = socket.recv::<u16, P>().map_err(failed("receiving"))?;
        for message in messages {
            let message = message.map_err(failed("decoding"))?;
            if *message.nl_seq() != SEQUENCE || *message.nl_pid() != socket.pid() {
                continue;
            }
            match message.nl_payload() {
                NlPayload::Ack(_) => return Ok(()),
                NlPayload::Err(e) => {
                    let errno = e.error().wrapping_neg();
                    return Err(Error::Refused(io::Error::from_raw_os_error(errno)));
                }
                NlPayload::Payload(_) | NlPayload::DumpExtAck(_) | NlPayload::Empty => {}
            }
        }
    }
}
