//! Sockets of probes, as `via` says.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::errno;
use crate::model::{FailReason, Phase, Via};

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
            socket.bind(SocketAddr::new(source, 0))?;
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

/// A datagram socket to `at`, that the kernel tells of ICMP errors.
pub(super) async fn datagram(at: SocketAddr, via: &Via) -> Result<UdpSocket, FailReason> {
    let made = async {
        let source = via.source.unwrap_or(match at {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        });
        let socket = UdpSocket::bind(SocketAddr::new(source, 0)).await?;
        leave(SockRef::from(&socket), at, via)?;
        socket.connect(at).await?;
        Ok(socket)
    };
    made.await
        .map_err(|error: io::Error| errno::reason(&error, at, Phase::Connect))
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
