//! Neighbours that stop answering and links that go down (`RTM_NEWNEIGH`, `RTM_NEWLINK`), as the
//! kernel tells of them.

use std::{collections::BTreeSet, fmt, io, mem, net::IpAddr};

use neli::{
    FromBytesWithInput, Size,
    consts::{
        rtnl::{Iff, Nda, Nud, Rtm},
        socket::NlFamily,
    },
    err::SocketError,
    nl::{NlPayload, Nlmsghdr},
    rtnl::{Ifinfomsg, Ndmsg},
    socket::asynchronous::NlSocketHandle,
    types::Buffer,
    utils::Groups,
};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
};

/// `RTNLGRP_LINK` (include/uapi/linux/rtnetlink.h).
const LINK: u32 = 1;

/// `RTNLGRP_NEIGH`.
const NEIGHBOUR: u32 = 3;

/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`.
const ADDRESS4: u32 = 5;
const ADDRESS6: u32 = 9;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A neighbour no longer answers.
    NeighbourFailed(IpAddr),
    /// An interface has lost its link, was taken down or removed: its index.
    LinkDown(u32),
    /// An interface that was down has its link again: its index.
    LinkUp(u32),
}

/// A message of the kernel's on a neighbour or a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Failed(IpAddr),
    Link { index: u32, runs: bool },
}

/// The kernel's own word on neighbours and links, as it comes.
pub struct Changes {
    neighbours: NlSocketHandle,
    links: NlSocketHandle,
    down: BTreeSet<u32>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    /// The interfaces that have no link now, by index.
    #[must_use]
    pub const fn down(&self) -> &BTreeSet<u32> {
        &self.down
    }

    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// Where the sockets cannot be had.
    pub fn listen() -> Result<Self, SocketError> {
        let socket =
            |group| NlSocketHandle::connect(NlFamily::Route, None, Groups::new_groups(&[group]));
        Ok(Self {
            neighbours: socket(NEIGHBOUR)?,
            links: socket(LINK)?,
            down: links_without_carrier(),
        })
    }

    /// The next changes. Where the kernel could not deliver all in time, links are read anew; neighbours that failed
    /// meanwhile are lost.
    ///
    /// # Errors
    ///
    /// Where a socket fails.
    pub async fn next(&mut self) -> Result<Vec<Change>, SocketError> {
        loop {
            let told = tokio::select! {
                // Cancel-safe, both: a datagram is taken in the turn in which it is returned.
                told = hear::<Ndmsg>(&self.neighbours, neighbour) => told,
                told = hear::<Ifinfomsg>(&self.links, link) => told,
            };
            match told {
                Ok(told) => {
                    let changes: Vec<_> = told.into_iter().filter_map(|t| self.change(t)).collect();
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                // More came than there was room for.
                Err(SocketError::Io(error)) if is_overrun(&error) => {
                    let changes = self.begin_anew()?;
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Listens with new sockets, as what still waits in the old ones is older than what was lost; says what has changed
    /// since the last word.
    fn begin_anew(&mut self) -> Result<Vec<Change>, SocketError> {
        let before = mem::replace(self, Self::listen()?);
        Ok(between(&before.down, &self.down))
    }

    /// Of a link that is down the kernel speaks more than once.
    fn change(&mut self, told: Told) -> Option<Change> {
        match told {
            Told::Failed(addr) => Some(Change::NeighbourFailed(addr)),
            Told::Link { index, runs: true } => {
                self.down.remove(&index).then_some(Change::LinkUp(index))
            }
            Told::Link { index, runs: false } => {
                self.down.insert(index).then_some(Change::LinkDown(index))
            }
        }
    }
}

/// What became of links.
fn between(before: &BTreeSet<u32>, now: &BTreeSet<u32>) -> Vec<Change> {
    let up = before.difference(now).copied().map(Change::LinkUp);
    let down = now.difference(before).copied().map(Change::LinkDown);
    up.chain(down).collect()
}

/// Those that are down already: the kernel tells of changes only.
fn links_without_carrier() -> BTreeSet<u32> {
    let runs = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    let all = getifaddrs().into_iter().flatten();
    let down = all.filter(|interface| !interface.flags.contains(runs));
    down.filter_map(|interface| if_nametoindex(interface.interface_name.as_str()).ok())
        .collect()
}

/// That addresses or links changed, however.
pub struct AddressChanges(NlSocketHandle);

impl fmt::Debug for AddressChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressChanges").finish_non_exhaustive()
    }
}

impl AddressChanges {
    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be had.
    pub fn listen() -> Result<Self, SocketError> {
        let groups = Groups::new_groups(&[LINK, ADDRESS4, ADDRESS6]);
        Ok(Self(NlSocketHandle::connect(
            NlFamily::Route,
            None,
            groups,
        )?))
    }

    /// Waits until something has changed. Cancel-safe.
    ///
    /// # Errors
    ///
    /// Where the socket fails.
    pub async fn next(&self) -> Result<(), SocketError> {
        match self.0.recv::<u16, Buffer>().await {
            Ok(_) => Ok(()),
            // What was lost was a change, too.
            Err(SocketError::Io(error)) if is_overrun(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS)
}

/// What a datagram says, as far as it is understood.
async fn hear<P: FromBytesWithInput<Input = usize> + Size>(
    socket: &NlSocketHandle,
    understand: impl Fn(Rtm, &P) -> Option<Told>,
) -> Result<Vec<Told>, SocketError> {
    let (messages, _groups) = socket.recv::<Rtm, P>().await?;
    let told = |message: Result<Nlmsghdr<Rtm, P>, SocketError>| {
        let message = message.ok()?;
        match message.nl_payload() {
            NlPayload::Payload(payload) => understand(*message.nl_type(), payload),
            _ => None,
        }
    };
    Ok(messages.into_iter().filter_map(told).collect())
}

fn neighbour(kind: Rtm, entry: &Ndmsg) -> Option<Told> {
    if kind != Rtm::Newneigh || !entry.ndm_state().contains(Nud::FAILED) {
        return None;
    }
    let mut attributes = entry.rtattrs().iter();
    let dst = attributes.find(|a| *a.rta_type() == Nda::Dst)?;
    let bytes = dst.rta_payload().as_ref();
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let addr = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    addr.ok().map(Told::Failed)
}

fn link(kind: Rtm, link: &Ifinfomsg) -> Option<Told> {
    let flags = link.ifi_flags();
    Some(Told::Link {
        index: u32::try_from(*link.ifi_index()).ok()?,
        runs: kind == Rtm::Newlink && flags.contains(Iff::UP) && flags.contains(Iff::RUNNING),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_found_by_comparing() {
        let (before, now) = ([1, 2].into(), [2, 3].into());
        assert_eq!(
            between(&before, &now),
            [Change::LinkUp(1), Change::LinkDown(3)]
        );
        assert_eq!(between(&now, &now), []);
    }
}
