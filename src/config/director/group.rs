//! Services that share one list of real servers: several addresses or marks in one
//! `[[virtual_service]]`. To everybody else they are ordinary services.

use std::{collections::BTreeSet, fmt, marker::PhantomData, net::IpAddr, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{IntoDeserializer, SeqAccess, Visitor},
};
use toml::Spanned;

use super::{RawServer, RawService, Reader, socket_address};
use crate::model::{Family, ForwardMethod, Protocol, ServiceKey};

/// One value, or a list of them.
#[derive(Debug)]
pub(super) enum Listed<T> {
    One(T),
    Many(Vec<Spanned<T>>),
}

impl<T: Clone> Listed<T> {
    /// Each at its place.
    fn each(this: &Spanned<Self>) -> Vec<Spanned<T>> {
        match this.get_ref() {
            Self::One(one) => vec![Spanned::new(this.span(), one.clone())],
            Self::Many(many) => many.clone(),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Listed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Of<T> {
            type Value = Listed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value, or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(text.into_deserializer()).map(Listed::One)
            }

            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Self::Value, E> {
                T::deserialize(n.into_deserializer()).map(Listed::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut many = Vec::new();
                while let Some(one) = seq.next_element()? {
                    many.push(one);
                }
                Ok(Listed::Many(many))
            }
        }
        deserializer.deserialize_any(Of(PhantomData))
    }
}

/// The families that a group's services have.
#[derive(Debug)]
pub(super) struct Families(BTreeSet<Family>);

impl Families {
    pub(super) fn of(keys: &[(ServiceKey, Range<usize>)]) -> Self {
        Self(keys.iter().map(|(key, _)| key.family()).collect())
    }

    /// Those of `servers` that are for one service of the group. Of two families each service takes the
    /// servers of its own; through tunnels, where there are none of it, all of them.
    pub(super) fn part<'a>(
        &self,
        key: ServiceKey,
        forward: ForwardMethod,
        servers: &'a [RawServer],
    ) -> Vec<&'a RawServer> {
        let family = |s: &RawServer| family_of(s.address.get_ref());
        let own = servers.iter().any(|s| family(s) == Some(key.family()));
        let all = forward == ForwardMethod::Tun && !own;
        let is_for = |s: &&RawServer| {
            // What is no address, and what is for none of the services, is a mistake everywhere.
            let elsewhere = family(s).is_some_and(|f| f != key.family() && self.0.contains(&f));
            all || !elsewhere
        };
        servers.iter().filter(is_for).collect()
    }
}

fn family_of(text: &str) -> Option<Family> {
    server_address(text).ok().map(|(addr, _)| Family::of(addr))
}

/// A real server's address, with its port where it names one.
pub(super) fn server_address(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(addr) = text.parse() {
        return Ok((addr, None));
    }
    let at = socket_address(text);
    let at = at.map_err(|e| format!("{e}; without a port it has its service's"))?;
    Ok((at.ip(), Some(at.port())))
}

impl Reader {
    /// The services that one `[[virtual_service]]` stands for, each at its place.
    pub(super) fn service_keys(
        &mut self,
        raw: &Spanned<RawService>,
    ) -> Vec<(ServiceKey, Range<usize>)> {
        let s = raw.get_ref();
        match (&s.address, &s.fwmark) {
            (Some(all), None) => {
                let protocol = match &s.protocol {
                    None => Some(Protocol::Tcp),
                    Some(p) => self.value(p, |t| match t {
                        "tcp" => Ok(Protocol::Tcp),
                        "udp" => Ok(Protocol::Udp),
                        "sctp" => Ok(Protocol::Sctp),
                        _ => Err(format!("{t:?} is no protocol: write tcp, udp or sctp")),
                    }),
                };
                if let Some(f) = &s.family {
                    self.bad
                        .push(f.span(), "family belongs to services by fwmark");
                }
                let each = self.listed(all, "address", "[\"192.0.2.1:80\", \"192.0.2.1:443\"]");
                let each = each.into_iter();
                let read = |at: Spanned<String>| {
                    let addr = self.value(&at, socket_address)?;
                    Some((ServiceKey::Addr(protocol?, addr), at.span()))
                };
                each.filter_map(read).collect()
            }
            (None, Some(all)) => {
                let family = match &s.family {
                    None => Some(Family::V4),
                    Some(f) => self.value(f, |t| match t {
                        "ipv4" => Ok(Family::V4),
                        "ipv6" => Ok(Family::V6),
                        _ => Err(format!("{t:?} is no family: write ipv4 or ipv6")),
                    }),
                };
                if let Some(p) = &s.protocol {
                    self.bad
                        .push(p.span(), "a service by fwmark has no protocol");
                }
                let each = self.listed(all, "fwmark", "[5, 6]").into_iter();
                let read = |mark: Spanned<i64>| {
                    let known = self.bad.count();
                    let n = self.number(Some(&mark), 1, "fwmark", 1..=i64::from(u32::MAX));
                    let fits = self.bad.count() == known;
                    Some((ServiceKey::Fwmark(family?, n), mark.span())).filter(|_| fits)
                };
                each.filter_map(read).collect()
            }
            (Some(_), Some(mark)) => {
                let message = "a virtual service has an address or a fwmark, not both";
                self.bad.push(mark.span(), message);
                Vec::new()
            }
            (None, None) => {
                let message = "a virtual service needs an address (\"192.0.2.1:80\") or a fwmark";
                self.bad.push(raw.span(), message);
                Vec::new()
            }
        }
    }

    fn listed<T: Clone>(
        &mut self,
        all: &Spanned<Listed<T>>,
        what: &str,
        example: &str,
    ) -> Vec<Spanned<T>> {
        let each = Listed::each(all);
        if each.is_empty() {
            let message = format!("{what} is an empty list: write one, or several as {example}");
            self.bad.push(all.span(), message);
        }
        each
    }
}

#[cfg(test)]
mod tests;
