//! Neighbour solicitations and advertisements (RFC 4861), as detection of duplicates uses them (RFC 4862
//! 5.4).

use std::net::{IpAddr, Ipv6Addr};

use super::{Claim, IPV6, ethernet, solicited_node};
use crate::model::Mac;

const SOLICITATION: u8 = 135;

const ADVERTISEMENT: u8 = 136;

/// `Next Header` of ICMPv6.
const ICMPV6: u8 = 58;

/// What no router has forwarded (RFC 4861 7.1.1).
const HOPS: u8 = 255;

/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const FROM_ROUTER: u8 = 0x80;

const OVERRIDE: u8 = 0x20;

/// "Target Link-Layer Address", of one unit of eight bytes.
const TARGET: [u8; 2] = [2, 1];

/// A solicitation from no address (RFC 4862 5.4.2).
pub(super) fn probe(addr: Ipv6Addr, own: Mac) -> Vec<u8> {
    let to = solicited_node(addr);
    let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &addr.octets()];
    frame(own, Ipv6Addr::UNSPECIFIED, to, message.concat())
}

/// An unsolicited advertisement that overrides what is remembered (RFC 4861 7.2.6). Whoever hears one from
/// a host that it knew as a router no longer takes it for one if that bit is not set.
pub(super) fn announcement(addr: Ipv6Addr, own: Mac, router: bool) -> Vec<u8> {
    let flags = if router { FROM_ROUTER } else { 0 } | OVERRIDE;
    let head = [ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    let message = [&head[..], &addr.octets(), &TARGET, &own.0];
    frame(own, addr, ALL_NODES, message.concat())
}

/// Whoever advertises an address has it; whoever solicits one from no address is about to take it
/// (RFC 4862 5.4.3, 5.4.4). A solicitation from an address only looks for the other one.
pub(super) fn claim(packet: &[u8], mac: Mac) -> Option<Claim> {
    let (head, rest) = packet.split_first_chunk::<8>()?;
    let (from, rest) = rest.split_first_chunk::<16>()?;
    let (to, payload) = rest.split_first_chunk::<16>()?;
    let [version, _, _, _, high, low, next, hops] = *head;
    if version >> 4 != 6 || next != ICMPV6 || hops != HOPS {
        return None;
    }
    // Ethernet fills short frames up.
    let message = payload.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let (from, to) = (Ipv6Addr::from(*from), Ipv6Addr::from(*to));
    if sum(from, to, message) != 0 {
        return None;
    }
    let (head, rest) = message.split_first_chunk::<8>()?;
    let (target, _options) = rest.split_first_chunk::<16>()?;
    let addr = Ipv6Addr::from(*target);
    let claims = match (head[0], head[1]) {
        (ADVERTISEMENT, 0) => true,
        (SOLICITATION, 0) => from.is_unspecified(),
        _ => false,
    };
    (claims && !addr.is_multicast() && !addr.is_unspecified()).then_some(Claim {
        addr: IpAddr::V6(addr),
        mac,
    })
}

/// The group's address on the Ethernet (RFC 2464 7).
fn ethernet_group(group: Ipv6Addr) -> Mac {
    let [.., w, x, y, z] = group.octets();
    Mac([0x33, 0x33, w, x, y, z])
}

fn frame(own: Mac, from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let checksum = sum(from, to, &message).to_be_bytes();
    for (at, byte) in message.iter_mut().skip(2).zip(checksum) {
        *at = byte;
    }
    // Two dozen bytes.
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let head = [0x60, 0, 0, 0, high, low, ICMPV6, HOPS];
    let packet = [&head[..], &from.octets(), &to.octets(), &message].concat();
    ethernet(ethernet_group(to), own, IPV6, &packet)
}

/// The Internet's checksum over the pseudo header and a message (RFC 8200 8.1): of one that carries its
/// own, 0.
fn sum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let addresses = [from.octets(), to.octets()].concat();
    let mut sum = u64::from(ICMPV6) + u64::try_from(message.len()).unwrap_or(u64::MAX);
    for pair in addresses.chunks(2).chain(message.chunks(2)) {
        let byte = |at: usize| pair.get(at).copied().unwrap_or_default();
        sum += u64::from(u16::from_be_bytes([byte(0), byte(1)]));
    }
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}
