//! An ICMP echo request is answered: keepalived's `PING_CHECK` (RFC 792, RFC 4443).
//!
//! An unprivileged ping socket is tried first: its group has to be in `net.ipv4.ping_group_range`, and
//! the kernel hands it its own replies only. Else a raw socket (`CAP_NET_RAW`), that sees every ICMP
//! message of the server's. Replies are told from those to others by a random number.

use std::{io, net::SocketAddr};

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use super::{
    super::{Unprepared, call::Call, errno, net},
    Kind,
};
use crate::{
    model::{FailReason, IcmpCheck, Phase, Via},
    random,
};

/// Type, code, checksum, identifier and sequence number.
const HEAD: usize = 8;

/// The longest header of IPv4: its length is told in four bits, in words of four bytes.
const LONGEST_IP_HEAD: usize = 15 * 4;

/// What fills a request, for those who look at the wire.
const FILLING: &[u8] = b"understudy ";

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Icmp {
    size: usize,
}

impl Kind for Icmp {
    type Options = IcmpCheck;

    fn prepare(options: &IcmpCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            size: options.size.into(),
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        // A port means nothing here.
        let mut at = call.at;
        at.set_port(0);
        let failed = |error: &io::Error| errno::reason(error, at, Phase::Answer);
        let (socket, raw) = match open(at, call.via) {
            Ok(opened) => opened,
            Err(error) => {
                if denied(&error) {
                    call.note(
                        "neither net.ipv4.ping_group_range nor CAP_NET_RAW lets this process ping",
                    );
                }
                return Err(failed(&error));
            }
        };
        let [a, b, c, d, ..] = random::number().to_be_bytes();
        let echo = Echo {
            v4: at.is_ipv4(),
            raw,
            mark: [a, b, c, d],
            cookie: random::number().to_be_bytes(),
            size: self.size,
        };
        let mut seen = vec![0; LONGEST_IP_HEAD + HEAD + self.size];
        let asking = async {
            let asked = async {
                socket.send(&echo.request()).await?;
                loop {
                    let length = net::receive(&socket, &mut seen).await?;
                    if echo.is_answered_by(seen.get(..length).unwrap_or_default()) {
                        return Ok(());
                    }
                }
            };
            asked.await.map_err(|error: io::Error| failed(&error))
        };
        call.hold(Phase::Answer, asking).await
    }
}

/// A socket for echoes to `at`, and whether it is a raw one.
fn open(at: SocketAddr, via: &Via) -> io::Result<(UdpSocket, bool)> {
    let (domain, protocol) = match at {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let (socket, raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Err(error) if denied(&error) => (Socket::new(domain, Type::RAW, Some(protocol))?, true),
        made => (made?, false),
    };
    socket.set_nonblocking(true)?;
    net::leave(SockRef::from(&socket), at, via)?;
    // A router's 'unreachable' is the answer.
    net::hear_errors(&socket, at)?;
    if let Some(source) = via.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&at.into())?;
    // Its type names UDP; what it does is what any socket of messages does.
    Ok((UdpSocket::from_std(socket.into())?, raw))
}

fn denied(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EACCES | Errno::EPERM))
}

/// A request, and what its reply has to be.
#[derive(Debug)]
struct Echo {
    v4: bool,
    raw: bool,
    /// Identifier and sequence number. A ping socket has an identifier of the kernel's instead.
    mark: [u8; 4],
    cookie: [u8; 8],
    size: usize,
}

impl Echo {
    fn payload(&self) -> Vec<u8> {
        let cookie: &[u8] = match self.size {
            // No room for it: identifier and sequence number have to do.
            0..8 => &[],
            _ => &self.cookie,
        };
        let filling = FILLING.iter().cycle();
        cookie
            .iter()
            .chain(filling)
            .take(self.size)
            .copied()
            .collect()
    }

    fn message(&self, kind: u8) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.mark);
        message.extend(self.payload());
        message
    }

    fn request(&self) -> Vec<u8> {
        if !self.v4 {
            // The kernel knows the addresses that this checksum covers, and writes it.
            return self.message(128);
        }
        let mut message = self.message(8);
        let sum = checksum(&message).to_be_bytes();
        for (to, from) in message.iter_mut().skip(2).zip(sum) {
            *to = from;
        }
        message
    }

    /// Whether a message off the socket is the reply. A raw socket of IPv4 delivers the header of IP,
    /// too (`raw(7)`).
    fn is_answered_by(&self, seen: &[u8]) -> bool {
        let head = match seen.first() {
            Some(first) if self.raw && self.v4 => usize::from(first & 0xf) * 4,
            _ => 0,
        };
        let Some((head, payload)) = seen.get(head..).and_then(|m| m.split_at_checked(HEAD)) else {
            return false;
        };
        let [kind, code, _, _, mark @ ..] = head else {
            return false;
        };
        let wanted = if self.v4 { 0 } else { 129 };
        let skipped = if self.raw { 0 } else { 2 };
        let same = mark
            .iter()
            .zip(&self.mark)
            .skip(skipped)
            .all(|(a, b)| a == b);
        (*kind, *code) == (wanted, 0) && same && payload == self.payload()
    }
}

/// The Internet's checksum (RFC 1071).
fn checksum(message: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in message.chunks(2) {
        let high = pair.first().copied().unwrap_or_default();
        let low = pair.get(1).copied().unwrap_or_default();
        sum += u64::from(u16::from_be_bytes([high, low]));
    }
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests;
