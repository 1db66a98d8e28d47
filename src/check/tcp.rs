//! The first half of every probe, and all of a TCP check: a connection is accepted.

use std::{io, net::SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use super::errno;
use crate::model::{FailReason, Phase};

/// Connects. The socket is closed by a reset (`SO_LINGER` of zero): thousands of probes a second
/// would otherwise fill this host's ports with `TIME_WAIT`, and no probe has data to lose.
pub(super) async fn connect(at: SocketAddr) -> Result<TcpStream, FailReason> {
    let connected = async {
        let socket = if at.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_zero_linger()?;
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
