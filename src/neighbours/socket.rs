//! Packet sockets (packet(7)): one that sends on one interface, one that hears claims on all.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{LinkAddr, bind, recvfrom},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::wire::{self, Claim};
use crate::model::FoundLink;

/// No frame of ARP or of neighbour discovery that means anything to us is longer.
const LONGEST: usize = 1500;

/// Why neighbours cannot be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface went away.
    #[error("there is no interface {0} any more")]
    Gone(String),
    /// A socket failed.
    #[error("{doing} on a packet socket failed")]
    Socket {
        /// What was done.
        doing: &'static str,
        /// How it failed.
        #[source]
        source: io::Error,
    },
    /// The address's multicast group could not be joined.
    #[error("the group of {0} could not be joined: is IPv6 switched off there?")]
    Group(IpAddr, #[source] io::Error),
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Socket { doing, source }
}

/// Sends frames on one interface, and hears nothing.
#[derive(Debug)]
pub(super) struct Mouth(Socket);

impl Mouth {
    /// Blocks for a moment.
    pub(super) fn open(link: &FoundLink) -> Result<Self, Error> {
        // The address of a packet socket is what the C library names an interface by.
        let mut all = getifaddrs().map_err(|e| failed("looking up interfaces")(e.into()))?;
        let at = all.find_map(|entry| {
            let at: LinkAddr = *entry.address.as_ref()?.as_link_addr()?;
            (u32::try_from(at.ifindex()) == Ok(link.index)).then_some(at)
        });
        let at = at.ok_or_else(|| Error::Gone(link.name.clone()))?;
        // Of protocol 0, and so is that address: no frame is queued here.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(failed("opening"))?;
        bind(socket.as_raw_fd(), &at).map_err(|e| failed("binding")(e.into()))?;
        socket.set_nonblocking(true).map_err(failed("opening"))?;
        Ok(Self(socket))
    }

    /// A frame that finds no room is as one lost on the way: all are sent more than once.
    pub(super) fn say(&self, frame: &[u8]) -> Result<(), Error> {
        match self.0.send(frame) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS) => {
                Ok(())
            }
            sent => sent.map(drop).map_err(failed("sending")),
        }
    }
}

/// Tells everybody on an interface that an address is here; `router` is whether this host forwards IPv6
/// there. Blocks for a moment.
///
/// # Errors
///
/// See [`Error`].
pub fn announce(addr: IpAddr, link: &FoundLink, router: bool) -> Result<(), Error> {
    let frame = wire::announcement(addr, link.mac, router);
    Mouth::open(link)?.say(&frame)
}

/// Hears claims, on all interfaces. Its type names UDP, which waits as any socket of messages does.
#[derive(Debug)]
pub(super) struct Ear(UdpSocket);

impl Ear {
    /// Hears ARP.
    pub(super) fn arp() -> Result<Self, Error> {
        Self::open(wire::ARP, &[])
    }

    /// Hears neighbour solicitations and advertisements: the kernel drops the rest of IPv6 before it is
    /// copied.
    pub(super) fn discovery() -> Result<Self, Error> {
        // Classic BPF (linux/filter.h), over a frame with its 14 bytes of Ethernet.
        const LOAD_BYTE: u16 = 0x30;
        const IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let next_header = 14 + 6;
        let icmp_type = 14 + 40;
        let whole = u32::try_from(LONGEST).unwrap_or(u32::MAX);
        let filter = [
            SockFilter::new(LOAD_BYTE, 0, 0, next_header),
            SockFilter::new(IF_EQUAL, 0, 4, 58),
            SockFilter::new(LOAD_BYTE, 0, 0, icmp_type),
            SockFilter::new(IF_EQUAL, 1, 0, 135),
            SockFilter::new(IF_EQUAL, 0, 1, 136),
            SockFilter::new(RETURN, 0, 0, whole),
            SockFilter::new(RETURN, 0, 0, 0),
        ];
        Self::open(wire::IPV6, &filter)
    }

    fn open(protocol: u16, filter: &[SockFilter]) -> Result<Self, Error> {
        let protocol = Protocol::from(i32::from(protocol.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol));
        let socket = socket.map_err(failed("opening"))?;
        if !filter.is_empty() {
            // What came before it is read, and means nothing.
            socket.attach_filter(filter).map_err(failed("filtering"))?;
        }
        socket.set_nonblocking(true).map_err(failed("opening"))?;
        let socket = UdpSocket::from_std(socket.into());
        socket.map(Self).map_err(failed("opening"))
    }

    /// The next claim, and the index of the interface that it came in on. Cancel-safe.
    pub(super) async fn hear(&self) -> Result<(u32, Claim), Error> {
        let mut frame = [0; LONGEST];
        loop {
            let heard = self.0.async_io(Interest::READABLE, || {
                Ok(recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut frame)?)
            });
            let (length, from) = match heard.await {
                Ok(heard) => heard,
                // More came than there was room for, or an interface went down.
                Err(e)
                    if matches!(
                        e.raw_os_error().map(Errno::from_raw),
                        Some(Errno::ENOBUFS | Errno::ENETDOWN)
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(failed("receiving")(error)),
            };
            let index = from.and_then(|from| u32::try_from(from.ifindex()).ok());
            let claim = wire::claim(frame.get(..length).unwrap_or_default());
            if let (Some(index), Some(claim)) = (index, claim) {
                return Ok((index, claim));
            }
        }
    }
}

/// Lets the questions of others about an IPv6 address reach this host, as long as it is kept.
pub(super) fn join(addr: Ipv6Addr, link: &FoundLink) -> Result<Socket, Error> {
    let failed = |error| Error::Group(IpAddr::V6(addr), error);
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).map_err(failed)?;
    let group = wire::solicited_node(addr);
    let joined = socket.join_multicast_v6(&group, link.index);
    let failed = |error| Error::Group(IpAddr::V6(addr), error);
    joined.map_err(failed)?;
    Ok(socket)
}
