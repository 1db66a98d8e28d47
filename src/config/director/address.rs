//! `manage_addresses` and `addresses`, of a director and of its virtual services.

use std::{collections::BTreeMap, net::IpAddr, ops::Range};

use serde::Deserialize;
use toml::Spanned;

use super::{RawDirector, RawService, Reader, check::interface_name};
use crate::model::{
    AddressPlace, AddressPolicy, Addresses, AnnounceOn, Family, ManagedAddress, ServiceKey,
};

/// The kernel's own marks end here (`IFAPROT_KERNEL_LL`).
const PROTOS: std::ops::RangeInclusive<i64> = 4..=255;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAddresses {
    interface: Option<Spanned<String>>,
    prefix: Option<Spanned<i64>>,
    announce_on: Option<Spanned<String>>,
    create_dummy: Option<bool>,
    quorum_lost: Option<AddressPolicy>,
    shutdown: Option<AddressPolicy>,
    proto: Option<Spanned<i64>>,
}

/// What holds for all services that do not say it themselves, and the addresses read so far.
pub(super) struct Managing {
    on: bool,
    interface: Option<String>,
    announce_on: Option<AnnounceOn>,
    create_dummy: bool,
    quorum_lost: AddressPolicy,
    shutdown: AddressPolicy,
    pub(super) proto: u8,
    /// Where each address belongs, and where in the file that stands.
    places: BTreeMap<IpAddr, (AddressPlace, usize)>,
}

impl Managing {
    pub(super) fn new(r: &mut Reader, director: &RawDirector) -> Self {
        let raw = director.addresses.as_ref().map(Spanned::get_ref);
        if let Some(prefix) = raw.and_then(|a| a.prefix.as_ref()) {
            let message = "prefix belongs to a virtual service: without it IPv4 has 32 and IPv6 has 128, which suits an address that is for IPVS alone";
            r.bad.push(prefix.span(), message);
        }
        let interface = raw.and_then(|a| a.interface.as_ref());
        let announce = raw.and_then(|a| a.announce_on.as_ref());
        let proto = raw.and_then(|a| a.proto.as_ref());
        Self {
            on: director.manage_addresses,
            interface: interface.and_then(|i| r.value(i, interface_name)),
            announce_on: announce.and_then(|a| r.value(a, announce_on)),
            create_dummy: raw.and_then(|a| a.create_dummy).unwrap_or(false),
            quorum_lost: raw.and_then(|a| a.quorum_lost).unwrap_or_default(),
            shutdown: raw.and_then(|a| a.shutdown).unwrap_or_default(),
            proto: r.number(proto, Addresses::PROTO, "proto", PROTOS),
            places: BTreeMap::new(),
        }
    }

    /// What becomes of a service's address; none where it is not managed.
    pub(super) fn of(
        &mut self,
        r: &mut Reader,
        key: ServiceKey,
        s: &RawService,
        at: &Range<usize>,
    ) -> Option<ManagedAddress> {
        let raw = s.addresses.as_ref().map(Spanned::get_ref);
        let said = s.manage_addresses.as_ref();
        let ServiceKey::Addr(_, vip) = key else {
            let told = said.filter(|said| *said.get_ref()).map(Spanned::span);
            if let Some(span) = told.or(s.addresses.as_ref().map(Spanned::span)) {
                r.bad.push(span, "a service by fwmark has no address to manage: put its addresses on an interface by other means");
            }
            return None;
        };
        if let Some(proto) = raw.and_then(|a| a.proto.as_ref()) {
            let message = "proto belongs to [director]: it tells this director's addresses from those of others";
            r.bad.push(proto.span(), message);
        }
        if !said.map_or(self.on, |said| *said.get_ref()) {
            if let Some(orphan) = &s.addresses {
                let message = "addresses says how an address is managed, but nobody manages it: write manage_addresses = true here or under [director], or leave addresses out";
                r.bad.push(orphan.span(), message);
            }
            return None;
        }
        let addr = vip.ip();
        let place = self.place(r, addr, raw, at)?;
        if let Some((first, start)) = self.places.get(&addr) {
            if *first != place {
                let (line, _) = r.bad.position(*start);
                let message = format!(
                    "{addr} belongs to {} here and to {} in line {line}: services that share an address say the same of interface, prefix, announce_on and create_dummy",
                    described(&place),
                    described(first)
                );
                r.bad.push(at.clone(), message);
            }
        } else {
            self.places.insert(addr, (place.clone(), at.start));
        }
        Some(ManagedAddress {
            place,
            quorum_lost: raw.and_then(|a| a.quorum_lost).unwrap_or(self.quorum_lost),
            shutdown: raw.and_then(|a| a.shutdown).unwrap_or(self.shutdown),
        })
    }

    fn place(
        &self,
        r: &mut Reader,
        addr: IpAddr,
        raw: Option<&RawAddresses>,
        at: &Range<usize>,
    ) -> Option<AddressPlace> {
        let own = raw.and_then(|a| a.interface.as_ref());
        let interface = match own {
            Some(name) => r.value(name, interface_name),
            None => self.interface.clone(),
        };
        let Some(interface) = interface else {
            // Where it stands and is wrong, that was said.
            if own.is_none() {
                let message = format!(
                    "nothing says which interface {addr} is put on: write addresses = {{ interface = \"eth0\" }} here or under [director]"
                );
                r.bad.push(at.clone(), message);
            }
            return None;
        };
        let whole: u8 = match Family::of(addr) {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let prefix = raw.and_then(|a| a.prefix.as_ref());
        let prefix = r.number(prefix, whole, "prefix", 1..=i64::from(whole));
        if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() {
            let message =
                format!("{addr} is nothing to put on an interface: write manage_addresses = false");
            r.bad.push(at.clone(), message);
        }
        let announce = raw.and_then(|a| a.announce_on.as_ref());
        let span = announce.map_or_else(|| at.clone(), Spanned::span);
        let announce_on = announce
            .and_then(|a| r.value(a, announce_on))
            .or_else(|| self.announce_on.clone())
            .unwrap_or_default();
        let announce_on = match announce_on {
            AnnounceOn::Interface(other) if other == interface => AnnounceOn::Own,
            other => other,
        };
        // `ndisc_recv_ns` (net/ipv6/ndisc.c) looks the target up on the interface that the question
        // came in on; ARP is answered on all (`arp_process`, net/ipv4/arp.c).
        if let (IpAddr::V6(_), AnnounceOn::Interface(other)) = (addr, &announce_on) {
            let message = format!(
                "nobody on {other} would find {addr}: of an IPv6 address the kernel tells the neighbours of its own interface only, which is {interface} here; write interface = \"{other}\" for it, or announce_on = \"nowhere\" if a router leads to it"
            );
            r.bad.push(span, message);
        }
        Some(AddressPlace {
            interface,
            prefix,
            announce_on,
            create_dummy: raw
                .and_then(|a| a.create_dummy)
                .unwrap_or(self.create_dummy),
        })
    }
}

fn announce_on(text: &str) -> Result<AnnounceOn, String> {
    match text {
        "nowhere" => Ok(AnnounceOn::Nowhere),
        "lo" => Err("nobody hears an announcement on lo: name the interface of the clients' or routers' network, or write \"nowhere\"".to_owned()),
        name => interface_name(name).map(AnnounceOn::Interface),
    }
}

fn described(place: &AddressPlace) -> String {
    let AddressPlace {
        interface,
        prefix,
        announce_on,
        create_dummy,
    } = place;
    let announced = match announce_on {
        AnnounceOn::Own => String::new(),
        AnnounceOn::Interface(name) => format!(", announced on {name}"),
        AnnounceOn::Nowhere => ", announced nowhere".to_owned(),
    };
    let made = if *create_dummy { ", created" } else { "" };
    format!("{interface}/{prefix}{announced}{made}")
}
