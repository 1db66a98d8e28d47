//! Addresses of interfaces: which there are (`RTM_GETADDR`), and one more or less.

use std::{
    io,
    net::IpAddr,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use neli::{
    consts::{
        nl::{NlmF, Nlmsg},
        rtnl::{Ifa, RtAddrFamily, RtScope, Rtm},
        socket::NlFamily,
    },
    err::SocketError,
    nl::{NlPayload, NlmsghdrBuilder},
    rtnl::{Ifaddrmsg, IfaddrmsgBuilder},
    socket::synchronous::NlSocketHandle,
    utils::Groups,
};
use nix::net::if_::if_indextoname;

use crate::model::{FoundAddress, HostAddress};

/// The kernel answers a dump at once; what takes longer never comes.
const LIMIT: Duration = Duration::from_secs(5);

/// Readings that may be interrupted by changes before it is an error.
const TRIES: u32 = 10;

const SEQUENCE: u32 = 1;

/// `IFA_PROTO` (include/uapi/linux/if_addr.h), since Linux 5.18. An older kernel leaves it out: then no
/// address counts as this director's, and none is taken off after a restart.
pub(super) const PROTO: u16 = 11;

/// Addresses or interfaces could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket or its messages failed.
    #[error("{doing} over rtnetlink failed")]
    Socket {
        /// What was done.
        doing: &'static str,
        /// How it failed.
        #[source]
        source: SocketError,
    },
    /// The request cannot be built.
    #[error("the request could not be built: {0}")]
    Request(String),
    /// The kernel refused.
    #[error("the kernel refused")]
    Refused(#[source] io::Error),
    /// The addresses changed during each of several readings.
    #[error("addresses changed during each of {TRIES} readings")]
    Unsteady,
    /// No thread could be had for it.
    #[error("no thread could be started")]
    Thread(#[source] io::Error),
    /// The kernel did not answer.
    #[error("the kernel did not answer within {LIMIT:?}")]
    TimedOut,
}

/// All addresses, IPv4 and IPv6, of all interfaces in the calling thread's network namespace.
/// Blocks for a moment, at most five seconds.
///
/// # Errors
///
/// See [`Error`].
pub fn host_addresses() -> Result<Vec<HostAddress>, Error> {
    let all = found_addresses()?.into_iter();
    Ok(all.map(|found| found.at).collect())
}

/// The same, and who put each there.
///
/// # Errors
///
/// See [`Error`].
pub fn found_addresses() -> Result<Vec<FoundAddress>, Error> {
    within_limit(read_steadily)
}

/// Runs what talks to the kernel in a thread of its own, and waits for it, but not for ever.
pub(super) fn within_limit<T: Send + 'static>(
    talk: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // neli's socket has no time limit, so a thread of its own holds it. It is in this thread's
    // namespace: a new thread is in its creator's.
    let (tx, rx) = sync_channel(1);
    thread::Builder::new()
        .name("rtnl".to_owned())
        .spawn(move || {
            // Nobody is there to hear of it only when the time limit is over.
            drop(tx.send(talk()));
        })
        .map_err(Error::Thread)?;
    match rx.recv_timeout(LIMIT) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(Error::TimedOut),
    }
}

fn read_steadily() -> Result<Vec<FoundAddress>, Error> {
    for _ in 0..TRIES {
        if let Some(addresses) = read()? {
            return Ok(addresses);
        }
    }
    Err(Error::Unsteady)
}

/// One reading; none where the addresses changed during it (`NLM_F_DUMP_INTR`).
fn read() -> Result<Option<Vec<FoundAddress>>, Error> {
    let failed = |doing| move |source| Error::Socket { doing, source };
    let socket = NlSocketHandle::connect(NlFamily::Route, None, Groups::empty())
        .map_err(failed("connecting"))?;
    let wanted = IfaddrmsgBuilder::default()
        .ifa_family(RtAddrFamily::Unspecified)
        .ifa_prefixlen(0)
        .ifa_scope(RtScope::Universe)
        .ifa_index(0)
        .build()
        .map_err(|e| Error::Request(e.to_string()))?;
    let request = NlmsghdrBuilder::default()
        .nl_type(Rtm::Getaddr)
        .nl_flags(NlmF::REQUEST | NlmF::DUMP)
        .nl_pid(socket.pid())
        .nl_seq(SEQUENCE)
        .nl_payload(NlPayload::Payload(wanted))
        .build()
        .map_err(|e| Error::Request(e.to_string()))?;
    socket.send(&request).map_err(failed("asking"))?;

    let (mut addresses, mut interrupted) = (Vec::new(), false);
    loop {
        let (messages, _groups) = socket
            .recv::<u16, Ifaddrmsg>()
            .map_err(failed("receiving"))?;
        for message in messages {
            let message = message.map_err(failed("decoding"))?;
            if *message.nl_seq() != SEQUENCE || *message.nl_pid() != socket.pid() {
                continue;
            }
            interrupted |= message.nl_flags().contains(NlmF::DUMP_INTR);
            match message.nl_payload() {
                NlPayload::Err(e) => {
                    let errno = e.error().wrapping_neg();
                    return Err(Error::Refused(io::Error::from_raw_os_error(errno)));
                }
                NlPayload::Payload(p) => addresses.extend(address(p)),
                NlPayload::Ack(_) | NlPayload::DumpExtAck(_) | NlPayload::Empty => {}
            }
            if Nlmsg::from(*message.nl_type()) == Nlmsg::Done {
                return Ok((!interrupted).then_some(addresses));
            }
        }
    }
}

/// This end's address: `IFA_LOCAL` where there is a peer (and always for IPv4), else
/// `IFA_ADDRESS`. Of an interface that is gone meanwhile the name is empty.
fn address(message: &Ifaddrmsg) -> Option<FoundAddress> {
    let find = |kind| {
        let attribute = message.rtattrs().iter().find(|a| *a.rta_type() == kind)?;
        let bytes = attribute.rta_payload().as_ref();
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
            .ok()
    };
    let index = *message.ifa_index();
    let name = if_indextoname(index).ok();
    let mut attributes = message.rtattrs().iter();
    let proto = attributes.find(|a| *a.rta_type() == Ifa::from(PROTO));
    let at = HostAddress {
        addr: find(Ifa::Local).or_else(|| find(Ifa::Address))?,
        prefix: *message.ifa_prefixlen(),
        index,
        interface: name.map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
    };
    Some(FoundAddress {
        at,
        proto: proto
            .and_then(|a| a.rta_payload().as_ref().first().copied())
            .unwrap_or(0),
    })
}
