//! What operators order of servers, whatever their health.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{DestKey, ServiceKey, WallMillis, Weight};

/// Reads the name of a server: an address, or an address and a port.
#[must_use]
pub fn parse_server(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(at) = text.parse::<SocketAddr>() {
        return Some((at.ip(), Some(at.port())));
    }
    Some((text.trim_matches(['[', ']']).parse().ok()?, None))
}

/// What is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Out of the service, with its connections: as if it were not there.
    Disabled,
    /// No new connections; out of the service when those that it has are gone, or their time is over.
    Drained,
    /// As drained, and once it is out nobody asks how it is. It comes back as one that was out.
    Maintenance,
    /// This weight, whatever the configuration and its checks say.
    Weight(Weight),
}

impl Wish {
    /// Whether it leaves when its connections are gone.
    #[must_use]
    pub const fn drains(self) -> bool {
        matches!(self, Self::Drained | Self::Maintenance)
    }

    /// Whether the server is to be out of service: for every threshold it is not there.
    #[must_use]
    pub const fn puts_aside(self) -> bool {
        matches!(self, Self::Disabled | Self::Drained | Self::Maintenance)
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("disabled"),
            Self::Drained => f.write_str("drained"),
            Self::Maintenance => f.write_str("maintenance"),
            Self::Weight(weight) => write!(f, "weight {}", weight.get()),
        }
    }
}

/// An order as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub wish: Wish,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// Who: a user of the director's host.
    pub by: String,
    /// When, for people.
    pub at: WallMillis,
    /// When it ends by itself.
    #[serde(default)]
    pub ends: Option<WallMillis>,
    /// Of a server that is drained: it leaves then, whatever connections it has.
    #[serde(default)]
    pub drain_ends: Option<WallMillis>,
    /// Whether it has left.
    #[serde(default)]
    pub drained: bool,
}

impl Order {
    /// An order without a reason and without an end.
    #[must_use]
    pub const fn new(wish: Wish, by: String, at: WallMillis) -> Self {
        Self {
            wish,
            reason: None,
            by,
            at,
            ends: None,
            drain_ends: None,
            drained: false,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.wish, self.by)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// One of a server's places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrderedPlace {
    /// In this service.
    pub service: ServiceKey,
    /// As this destination.
    pub server: DestKey,
}

/// The body of `POST /v1/orders`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    /// Address, or address and port; without it all servers of the service.
    pub server: Option<String>,
    /// In this service only; without it in all that have the server.
    pub service: Option<ServiceKey>,
    /// What; none takes back what was ordered before.
    pub wish: Option<Wish>,
    /// Why.
    pub reason: Option<String>,
    /// It ends by itself after so many seconds.
    #[serde(default)]
    pub for_s: Option<u64>,
    /// So many seconds connections of a drained server have; without it as the configuration says.
    #[serde(default)]
    pub drain_s: Option<u64>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderAnswer {
    /// Where the order stands now.
    pub places: Vec<OrderedPlace>,
    /// Why it would not outlive the director's process, if it would not.
    pub not_kept: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_with_or_without_a_port() {
        let one: IpAddr = [10, 0, 0, 1].into();
        assert_eq!(parse_server("10.0.0.1"), Some((one, None)));
        assert_eq!(parse_server("10.0.0.1:80"), Some((one, Some(80))));
        assert_eq!(parse_server("[fd00::1]").map(|s| s.1), Some(None));
        assert_eq!(parse_server("fd00::1").map(|s| s.1), Some(None));
        assert_eq!(parse_server("[fd00::1]:80").map(|s| s.1), Some(Some(80)));
        assert_eq!(parse_server("web1"), None);
    }
}
