//! Sockets of probes, as `via` says.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, PoisonError},
};

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream, UdpSocket},
};

use super::errno;
use crate::model::{FailReason, Phase, Via};

/// Linux's own range of ports for outgoing connections (`ip_local_port_range`), first and last.
const PORTS: (u16, u16) = (32_768, 60_999);

/// Ports in a row that may be in use.
const TRIES: u32 = 64;

/// The next port towards each virtual address.
static TURNS: Mutex<BTreeMap<SocketAddr, u16>> = Mutex::new(BTreeMap::new());

/// Connects. The socket is closed by a reset (`SO_LINGER` of zero): thousands of probes a second
/// would otherwise fill this host's ports with `TIME_WAIT`, and no probe has data to lose.
pub(super) async fn connect(at: SocketAddr, via: &Via) -> Result<TcpStream, FailReason> {
    let connected = async {
        let socket = match at {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_zero_linger()?;
        leave(SockRef::from(&socket), at, via)?;
        if let Some(source) = via.source {
            if via.through {
                bind_in_turn(&socket, source, at)?;
            } else {
                // The port is chosen when it connects, apart for each destination (ip(7)).
                setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
                socket.bind(SocketAddr::new(source, 0))?;
            }
        }
        let stream = socket.connect(at).await?;
        // A host that probes an unused port of its own may be given that port as its source, and
        // then has connected to itself.
        if stream.local_addr()? == at {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(stream)
    };
    connected.await.map_err(|error: io::Error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return FailReason::Refused;
        }
        errno::reason(&error, at, Phase::Connect)
    })
}

/// IPVS knows a connection by its addresses and ports and not by its mark, and keeps one that was never
/// answered for a minute (`tcp_timeouts` in net/netfilter/ipvs/ip_vs_proto_tcp.c): a probe from the same
/// port would go to the server of the probe before. So ports are taken in turn for each virtual address
/// and port, not at random: thousands lie between two uses of one.
fn bind_in_turn(socket: &TcpSocket, source: IpAddr, at: SocketAddr) -> io::Result<()> {
    for _ in 0..TRIES {
        let port = {
            let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = turns.entry(at).or_insert(PORTS.0);
            let port = *turn;
            *turn = if port >= PORTS.1 { PORTS.0 } else { port + 1 };
            port
        };
        match socket.bind(SocketAddr::new(source, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// A datagram socket to `at`, that the kernel tells of ICMP errors.
pub(super) async fn datagram(at: SocketAddr, via: &Via) -> Result<UdpSocket, FailReason> {
    let made = async {
        let source = via.source.unwrap_or(match at {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        });
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM.nonblocking(), None)?;
        // Before the address: it may be one of that interface alone.
        leave(SockRef::from(&socket), at, via)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        hear_errors(&socket, at)?;
        socket.connect(at).await?;
        Ok(socket)
    };
    made.await
        .map_err(|error: io::Error| errno::reason(&error, at, Phase::Connect))
}

/// Asks for every ICMP error that concerns a socket to `at` (`IP_RECVERR`). Unasked the kernel tells
/// only of those that it takes for lasting: 'port unreachable', and not 'host unreachable'.
pub(super) fn hear_errors(socket: &impl AsFd, at: SocketAddr) -> io::Result<()> {
    let set = match at {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &true),
    };
    set.map_err(io::Error::from)
}

/// The next datagram, or the next ICMP error.
///
/// An error makes a socket neither readable nor writable (`EPOLLERR` alone): one that waits for a
/// datagram only would sleep on.
pub(super) async fn receive(socket: &UdpSocket, into: &mut [u8]) -> io::Result<usize> {
    let either = Interest::READABLE | Interest::ERROR;
    let mut read = || recv(socket.as_raw_fd(), into, MsgFlags::empty()).map_err(io::Error::from);
    socket.async_io(either, &mut read).await
}

/// Interface, firewall mark and code point of a socket to `at`. `SO_MARK` asks for `CAP_NET_ADMIN`.
pub(super) fn leave(socket: SockRef<'_>, at: SocketAddr, via: &Via) -> io::Result<()> {
    if let Some(interface) = &via.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some(mark) = via.mark {
        socket.set_mark(mark)?;
    }
    if let Some(dscp) = via.dscp {
        // The upper six bits of the octet (RFC 2474, section 3).
        let octet = u32::from(dscp) << 2;
        match at {
            SocketAddr::V4(_) => socket.set_tos_v4(octet)?,
            SocketAddr::V6(_) => socket.set_tclass_v6(octet)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ports_towards_a_virtual_address_are_taken_in_turn_past_those_in_use() {
        let source: IpAddr = Ipv4Addr::LOCALHOST.into();
        let at: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let bound = |at| {
            let socket = TcpSocket::new_v4().unwrap();
            bind_in_turn(&socket, source, at).unwrap();
            (socket.local_addr().unwrap().port(), socket)
        };
        let ports: Vec<_> = (0..20).map(|_| bound(at).0).collect();
        assert!(ports.is_sorted() && ports[0] >= PORTS.0, "{ports:?}");
        let (last, held) = bound(at);
        assert!(last > ports[19], "not one of those used before");
        // As if the turn had come round to a port that is in use.
        TURNS.lock().unwrap().insert(at, last);
        assert!(bound(at).0 > last);
        drop(held);
        TURNS.lock().unwrap().insert(at, PORTS.1);
        assert_eq!(bound(at).0, PORTS.1);
        let first = bound(at).0;
        assert!(
            (PORTS.0..=ports[0]).contains(&first),
            "it begins anew: {first}"
        );
        let other: SocketAddr = "192.0.2.2:80".parse().unwrap();
        assert!(
            (PORTS.0..last).contains(&bound(other).0),
            "a turn of its own"
        );
    }
}
