//! PURE: bytes <-> model. `nla` knows attributes, [`mod@write`] makes requests, [`read`] understands
//! answers, `exchange` tells whose answer a datagram is. Nothing here does I/O, and no bytes, however
//! wrong, make it panic or allocate much more than their own length.
//!
//! Facts: include/uapi/linux/ip_vs.h; `ip_vs_genl_parse_service`, `ip_vs_genl_parse_dest`,
//! `ip_vs_genl_fill_service` and `ip_vs_genl_fill_dest` in net/netfilter/ipvs/ip_vs_ctl.c (Linux 6.1).

mod exchange;
mod nla;
pub mod read;
pub mod write;

#[cfg(test)]
mod tests;

use netlink_packet_core::DecodeError;
use netlink_packet_generic::GenlHeader;

pub(super) use self::exchange::{Exchange, Outcome};
use crate::model::Family;

/// `IPVS_GENL_NAME`.
pub const FAMILY_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
const FAMILY_VERSION: u8 = 1;
/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 0x0001;
/// `IP_VS_CONN_F_FWD_MASK`.
const FWD_MASK: u32 = 0x0007;
/// `AF_INET`, `AF_INET6`.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `IP_VS_STATE_MASTER`, `IP_VS_STATE_BACKUP`.
const STATE_MASTER: u32 = 1;
const STATE_BACKUP: u32 = 2;

/// `IPVS_CMD_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Adds a service; also the command of each answer to `GetService`.
    NewService = 1,
    /// Changes a service.
    SetService = 2,
    /// Removes a service and its destinations.
    DelService = 3,
    /// Reads one service, or as a dump all.
    GetService = 4,
    /// Adds a destination; also the command of each answer to `GetDest`.
    NewDest = 5,
    /// Changes a destination.
    SetDest = 6,
    /// Removes a destination.
    DelDest = 7,
    /// Reads, as a dump, the destinations of a service.
    GetDest = 8,
    /// Starts a sync daemon; also the command of each answer to `GetDaemon`.
    NewDaemon = 9,
    /// Stops a sync daemon.
    DelDaemon = 10,
    /// Reads, as a dump, the sync daemons.
    GetDaemon = 11,
    /// Changes the timeouts; also the command of the answer to `GetConfig`.
    SetConfig = 12,
    /// Reads the timeouts.
    GetConfig = 13,
    /// The answer to `GetInfo`, which has attributes of its own.
    SetInfo = 14,
    /// Reads version and table size.
    GetInfo = 15,
    /// Sets the counters of a service, or all, to zero.
    Zero = 16,
    /// Removes all services.
    Flush = 17,
}

impl From<Command> for u8 {
    #[expect(clippy::as_conversions, reason = "the number of the variant")]
    fn from(command: Command) -> Self {
        command as Self
    }
}

/// IPVS's own version (`IP_VS_VERSION_CODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
    /// Patch.
    pub patch: u8,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The attributes in the payload of one netlink message of the family.
pub(super) fn attributes(payload: &[u8]) -> Result<&[u8], DecodeError> {
    GenlHeader::parse(payload)?;
    Ok(payload.get(4..).unwrap_or_default())
}

/// For fuzzing: reads the attributes of a message as each of the things that they can describe, and
/// says whether one of them made sense. The same reader takes a part of it before.
///
/// # Panics
/// A message is read otherwise after another one than alone.
#[must_use]
pub fn reads(bytes: &[u8]) -> bool {
    let mut used = read::Reader::default();
    let (part, _) = bytes.split_at(bytes.len() / 2);
    let _before = (used.service(part), used.dest(part, Family::V6, true));
    let service = used.service(bytes).ok();
    let dest = used.dest(bytes, Family::V6, true).ok();
    let mut fresh = read::Reader::default();
    assert_eq!(service, fresh.service(bytes).ok());
    assert_eq!(dest, fresh.dest(bytes, Family::V6, true).ok());
    [
        service.is_some(),
        dest.is_some(),
        read::info(bytes).is_ok(),
        read::timeouts(bytes).is_ok(),
        read::daemon(bytes).is_ok(),
    ]
    .contains(&true)
}

/// For fuzzing: takes a datagram as (part of) the answers to requests 0 to 2 on port 0, and says
/// whether that went well.
#[must_use]
pub fn answers(bytes: &[u8]) -> bool {
    let take = |payload: &[u8]| attributes(payload).map(drop);
    Exchange::new(0, 3, 0).datagram(bytes, take).is_ok()
}
