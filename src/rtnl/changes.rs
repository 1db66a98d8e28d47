//! Neighbours that stop answering and links that go down (`RTM_NEWNEIGH`, `RTM_NEWLINK`), as the
//! kernel tells of them.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Cursor},
    net::IpAddr,
};

use neli::{
    FromBytes,
    consts::{
        rtnl::{Iff, Nda, Nud, Rtm},
        socket::{Msg, NlFamily},
    },
    nl::{NlPayload, Nlmsghdr},
    rtnl::{Ifinfomsg, Ndmsg},
    socket::NlSocket,
    utils::Groups,
};
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

/// `RTNLGRP_LINK` and `RTNLGRP_NEIGH` (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 2] = [1, 3];

/// The kernel cuts what it says to this and less (`NLMSG_GOODSIZE`).
const LARGEST: usize = 32 * 1024;

/// `struct nlmsghdr`.
const HEAD: usize = 16;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A neighbour no longer answers.
    NeighbourFailed(IpAddr),
    /// An interface has lost its link, was taken down or removed: its index.
    LinkDown(u32),
}

/// A message of the kernel's on a neighbour or a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Failed(IpAddr),
    Link { index: u32, runs: bool },
}

/// The kernel's own word on neighbours and links, as it comes.
pub struct Changes {
    socket: AsyncFd<NlSocket>,
    down: BTreeSet<u32>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be had.
    pub fn listen() -> io::Result<Self> {
        let socket = NlSocket::connect(NlFamily::Route, None, Groups::new_groups(&GROUPS))?;
        socket.nonblock()?;
        Ok(Self {
            socket: AsyncFd::new(socket)?,
            down: BTreeSet::new(),
        })
    }

    /// The next changes. What the kernel could not deliver in time is lost.
    ///
    /// # Errors
    ///
    /// Where the socket fails.
    pub async fn next(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let mut datagram = vec![0; LARGEST];
            let received = {
                let mut ready = self.socket.readable().await?;
                let receive = |socket: &AsyncFd<NlSocket>| {
                    let (length, _groups) = socket.get_ref().recv(&mut datagram, Msg::empty())?;
                    Ok(length)
                };
                match ready.try_io(receive) {
                    Ok(received) => received,
                    Err(_would_block) => continue,
                }
            };
            match received {
                Ok(length) => {
                    let told = read(datagram.get(..length).unwrap_or_default());
                    let changes: Vec<_> = told.into_iter().filter_map(|t| self.change(t)).collect();
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                // More came than there was room for.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Of a link that is down the kernel speaks more than once.
    fn change(&mut self, told: Told) -> Option<Change> {
        match told {
            Told::Failed(addr) => Some(Change::NeighbourFailed(addr)),
            Told::Link { index, runs: true } => {
                self.down.remove(&index);
                None
            }
            Told::Link { index, runs: false } => {
                self.down.insert(index).then_some(Change::LinkDown(index))
            }
        }
    }
}

/// The messages of a datagram that say something of neighbours or links. PURE.
fn read(mut datagram: &[u8]) -> Vec<Told> {
    let mut all = Vec::new();
    while let Some((message, rest)) = split(datagram) {
        all.extend(message.get(4..6).and_then(|kind| {
            let kind = u16::from_ne_bytes(kind.try_into().ok()?);
            match Rtm::from(kind) {
                Rtm::Newneigh => neighbour(message),
                Rtm::Newlink => link(message, true),
                Rtm::Dellink => link(message, false),
                _ => None,
            }
        }));
        datagram = rest;
    }
    all
}

/// The first message, and what follows it.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?);
    let length = usize::try_from(length).ok().filter(|n| *n >= HEAD)?;
    let message = datagram.get(..length)?;
    let next = length.next_multiple_of(4);
    Some((message, datagram.get(next..).unwrap_or_default()))
}

fn neighbour(message: &[u8]) -> Option<Told> {
    let parsed = Nlmsghdr::<Rtm, Ndmsg>::from_bytes(&mut Cursor::new(message)).ok()?;
    let NlPayload::Payload(entry) = parsed.nl_payload() else {
        return None;
    };
    if !entry.ndm_state().contains(Nud::FAILED) {
        return None;
    }
    let mut attributes = entry.rtattrs().iter();
    let dst = attributes.find(|a| *a.rta_type() == Nda::Dst)?;
    let bytes = dst.rta_payload().as_ref();
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let addr = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    addr.ok().map(Told::Failed)
}

fn link(message: &[u8], there: bool) -> Option<Told> {
    let parsed = Nlmsghdr::<Rtm, Ifinfomsg>::from_bytes(&mut Cursor::new(message)).ok()?;
    let NlPayload::Payload(link) = parsed.nl_payload() else {
        return None;
    };
    Some(Told::Link {
        index: u32::try_from(*link.ifi_index()).ok()?,
        runs: there && link.ifi_flags().contains(Iff::UP | Iff::RUNNING),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A neighbour that failed, built by the kernel's headers; tests/it/rtnl.rs has the kernel's own.
    fn failed_neighbour() -> Vec<u8> {
        let mut m = Vec::new();
        m.extend(36_u32.to_ne_bytes());
        m.extend(28_u16.to_ne_bytes());
        m.extend([0; 10]);
        // AF_INET, interface 3, NUD_FAILED, NTF 0, RTN_UNICAST.
        m.extend([2, 0, 0, 0, 3, 0, 0, 0, 0x20, 0, 0, 1]);
        m.extend([8, 0, 1, 0, 10, 0, 0, 7]);
        m
    }

    fn link_message(kind: u16, flags: u32) -> Vec<u8> {
        let mut m = Vec::new();
        m.extend(32_u32.to_ne_bytes());
        m.extend(kind.to_ne_bytes());
        m.extend([0; 10]);
        m.extend([0, 0, 1, 0, 5, 0, 0, 0]);
        m.extend(flags.to_ne_bytes());
        m.extend([0; 4]);
        m
    }

    #[test]
    fn a_neighbour_that_failed_and_links_are_told() {
        let (up, running) = (0x1, 0x40);
        let mut datagram = failed_neighbour();
        datagram.extend(link_message(16, up));
        datagram.extend(link_message(16, up | running));
        datagram.extend(link_message(17, up | running));
        let link = |runs| Told::Link { index: 5, runs };
        let failed = Told::Failed([10, 0, 0, 7].into());
        let wanted = [failed, link(false), link(true), link(false)];
        assert_eq!(read(&datagram), wanted);
    }

    #[test]
    fn one_that_answers_is_no_matter() {
        let mut reachable = failed_neighbour();
        reachable[24] = 0x02;
        assert_eq!(read(&reachable), []);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..36, with: u8) {
            drop(read(&bytes));
            let mut message = failed_neighbour();
            message[at] = with;
            drop(read(&message));
        }
    }
}
