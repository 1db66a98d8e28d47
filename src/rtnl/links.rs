//! The interfaces of this host.

use std::io;

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::LinkAddr};

use crate::model::{FoundLink, Mac};

/// `ARPHRD_ETHER` (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;

/// All interfaces in the calling thread's network namespace. Blocks for a moment: it is a dump of rtnetlink
/// that the C library makes (getifaddrs(3)).
///
/// # Errors
///
/// Where they cannot be read.
pub fn links() -> io::Result<Vec<FoundLink>> {
    let all = getifaddrs()?;
    Ok(all
        .filter_map(|entry| {
            link(
                &entry.interface_name,
                entry.flags,
                entry.address.as_ref()?.as_link_addr()?,
            )
        })
        .collect())
}

fn link(name: &str, flags: InterfaceFlags, at: &LinkAddr) -> Option<FoundLink> {
    let has = |flag| flags.contains(flag);
    let lonely = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_NOARP;
    Some(FoundLink {
        name: name.to_owned(),
        index: u32::try_from(at.ifindex()).ok()?,
        up: has(InterfaceFlags::IFF_UP),
        running: has(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
        neighbours: at.hatype() == ETHERNET && !flags.intersects(lonely),
        mac: Mac(at.addr().unwrap_or_default()),
    })
}
