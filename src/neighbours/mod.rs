//! The hosts on an Ethernet: asked whether anybody has an address, told where one is. ARP for IPv4
//! (RFC 5227), neighbour discovery for IPv6 (RFC 4861, RFC 4862). Needs `CAP_NET_RAW`.
//!
//! IPv6 is asked here and not left to the kernel's own detection of duplicates: that is not made for an
//! address that sits on a dummy or the loopback, nor where `accept_dad` is 0; it tells no program who has
//! the address; and the address would be on the interface meanwhile, and stay there after.

mod ask;
mod socket;
pub mod wire;

pub use ask::{Question, ask};
pub use socket::{Error, announce};
