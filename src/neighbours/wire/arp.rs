//! ARP on Ethernet for IPv4 (RFC 826), and what RFC 5227 makes of it.

use std::net::{IpAddr, Ipv4Addr};

use super::{ARP, Claim, EVERYBODY, ethernet};
use crate::model::Mac;

/// Ethernet, IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

const REQUEST: [u8; 2] = [0, 1];

const REPLY: [u8; 2] = [0, 2];

fn request(sender: Ipv4Addr, target: Ipv4Addr, own: Mac) -> Vec<u8> {
    let nobody = [0; 6];
    let body = [
        &KIND[..],
        &REQUEST,
        &own.0,
        &sender.octets(),
        &nobody,
        &target.octets(),
    ];
    ethernet(EVERYBODY, own, ARP, &body.concat())
}

/// An ARP Probe (RFC 5227 1.1): it comes from no address, so that it changes nobody's memory.
pub(super) fn probe(addr: Ipv4Addr, own: Mac) -> Vec<u8> {
    request(Ipv4Addr::UNSPECIFIED, addr, own)
}

/// An ARP Announcement (RFC 5227 1.1, 3): a request, which everybody takes note of.
pub(super) fn announcement(addr: Ipv4Addr, own: Mac) -> Vec<u8> {
    request(addr, addr, own)
}

/// Whoever speaks from an address has it; whoever probes for one is about to take it (RFC 5227 2.1.1).
pub(super) fn claim(body: &[u8]) -> Option<Claim> {
    let (kind, rest) = body.split_first_chunk::<6>()?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<6>()?;
    let (target, _) = rest.split_first_chunk::<4>()?;
    if *kind != KIND || !(*operation == REQUEST || *operation == REPLY) {
        return None;
    }
    let (sender, target) = (Ipv4Addr::from(*sender), Ipv4Addr::from(*target));
    let addr = match sender.is_unspecified() {
        false => sender,
        true if *operation == REQUEST => target,
        true => return None,
    };
    (!addr.is_unspecified()).then_some(Claim {
        addr: IpAddr::V4(addr),
        mac: Mac(*mac),
    })
}
