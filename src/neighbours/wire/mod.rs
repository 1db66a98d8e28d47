//! Frames of ARP and of neighbour discovery, to bytes and back. PURE: what comes in was written by
//! anybody on the network.

mod arp;
mod nd;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};

use crate::model::Mac;

/// `ETH_P_ARP` (include/uapi/linux/if_ether.h).
pub const ARP: u16 = 0x0806;

/// `ETH_P_IPV6`.
pub const IPV6: u16 = 0x86dd;

const EVERYBODY: Mac = Mac([0xff; 6]);

/// That a host has an address, or is about to take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub addr: IpAddr,
    /// The host.
    pub mac: Mac,
}

/// The frame that asks whether anybody has an address.
#[must_use]
pub fn probe(addr: IpAddr, own: Mac) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => arp::probe(addr, own),
        IpAddr::V6(addr) => nd::probe(addr, own),
    }
}

/// The frame that tells everybody where an address is now; `router` is whether this host forwards IPv6
/// there.
#[must_use]
pub fn announcement(addr: IpAddr, own: Mac, router: bool) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => arp::announcement(addr, own),
        IpAddr::V6(addr) => nd::announcement(addr, own, router),
    }
}

/// What a frame claims, if it is a sound one of ARP or neighbour discovery that claims an address.
#[must_use]
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let (head, body) = frame.split_first_chunk::<14>()?;
    let [_, _, _, _, _, _, from @ .., high, low] = head;
    let from = Mac(*from);
    match u16::from_be_bytes([*high, *low]) {
        ARP => arp::claim(body),
        IPV6 => nd::claim(body, from),
        _ => None,
    }
}

/// Where questions about an IPv6 address go (RFC 4291 2.7.1): its solicited-node group.
#[must_use]
pub fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = addr.octets();
    let [high, low] = [u16::from_be_bytes([0xff, x]), u16::from_be_bytes([y, z])];
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

fn ethernet(to: Mac, from: Mac, protocol: u16, body: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &protocol.to_be_bytes(), body].concat()
}
