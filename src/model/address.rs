//! Virtual addresses that the director puts on interfaces of this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::Deserialize;

use super::HostAddress;

/// Whether an address stays where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressPolicy {
    /// It stays.
    #[default]
    Keep,
    /// It is taken off.
    Withdraw,
}

/// Whose neighbours are asked whether an address is free, and told when it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AnnounceOn {
    /// Those of the address's own interface, if it has any: a dummy and the loopback have none.
    #[default]
    Own,
    /// Those of another interface.
    Interface(String),
    /// Nobody's: a router leads to the address.
    Nowhere,
}

/// Where a virtual address belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPlace {
    /// Name of the interface.
    pub interface: String,
    /// Length of its network's prefix in bits.
    pub prefix: u8,
    /// Whose neighbours are asked and told.
    pub announce_on: AnnounceOn,
    /// Whether the interface is made, as a dummy, where it is missing.
    pub create_dummy: bool,
}

/// What a virtual service wants of its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedAddress {
    /// Where it belongs.
    pub place: AddressPlace,
    /// What becomes of it when the quorum is lost and no sorry server serves.
    pub quorum_lost: AddressPolicy,
    /// What becomes of it when the director stops.
    pub shutdown: AddressPolicy,
}

/// Whether an address is to be on its interface. The greater one wins among services that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It is not.
    Off,
    /// It stays as it is found: nobody knows yet whether the service has enough servers.
    AsFound,
    /// It is.
    On,
}

/// What is wanted of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedAddress {
    /// Where it belongs.
    pub place: AddressPlace,
    /// Whether it is to be there.
    pub presence: Presence,
    /// What becomes of it when the director stops.
    pub shutdown: AddressPolicy,
}

/// What is wanted of all virtual addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The mark of those that this director has put on (`IFA_PROTO`).
    pub proto: u8,
    /// Those that it manages.
    pub wanted: BTreeMap<IpAddr, WantedAddress>,
    /// Those of services that do not manage theirs, or are on the way out: nobody takes one off.
    pub unmanaged: BTreeSet<IpAddr>,
}

impl Addresses {
    /// The mark unless the configuration names another one. The kernel itself uses 1 to 3
    /// (`IFAPROT_KERNEL_LO`, `_RA`, `_LL` in include/uapi/linux/if_addr.h).
    pub const PROTO: u8 = 117;
}

/// The address of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address that was found on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundAddress {
    /// Which, and where.
    pub at: HostAddress,
    /// Who put it there (`IFA_PROTO`), 0 where nobody said.
    pub proto: u8,
}

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether it was switched on (`IFF_UP`).
    pub up: bool,
    /// Whether it has a link (`IFF_RUNNING`).
    pub running: bool,
    /// Whether it is an Ethernet with neighbours: neither the loopback nor one without ARP, as dummies.
    pub neighbours: bool,
    /// Its own address on the Ethernet.
    pub mac: Mac,
}

/// What is there of addresses and interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundAddresses {
    /// All addresses.
    pub addresses: Vec<FoundAddress>,
    /// All interfaces.
    pub links: Vec<FoundLink>,
}

impl FoundAddresses {
    /// The interface of a name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&FoundLink> {
        self.links.iter().find(|l| l.name == name)
    }
}
