//! Ports for servers that are started later, or again.

use std::{io, net::Ipv4Addr};

use tokio::net::TcpSocket;

/// A port that the kernel gives to nobody who asks for any, until this is dropped. A server that names
/// it may bind it, with `SO_REUSEADDR`, as servers do: nobody listens on this socket.
#[derive(Debug)]
pub(crate) struct Port(TcpSocket);

impl Port {
    /// Any, of 127.0.0.1.
    pub(crate) fn new() -> Self {
        Self::at(Ipv4Addr::LOCALHOST, 0).unwrap()
    }

    /// This one; 0: any.
    pub(crate) fn at(address: Ipv4Addr, number: u16) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((address, number).into())?;
        Ok(Self(socket))
    }

    pub(crate) fn number(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }
}
