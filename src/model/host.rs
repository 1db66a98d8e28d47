//! What is known of this host's network.

use std::net::IpAddr;

/// An address of one of this host's interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub addr: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix: u8,
    /// The interface's index.
    pub index: u32,
    /// Its name.
    pub interface: String,
}

impl HostAddress {
    /// Whether `other` is in its network.
    #[must_use]
    pub fn is_near(&self, other: IpAddr) -> bool {
        match (self.addr, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differs = u32::from(own) ^ u32::from(other);
                differs.leading_zeros() >= u32::from(self.prefix).min(32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differs = u128::from(own) ^ u128::from(other);
                differs.leading_zeros() >= u32::from(self.prefix).min(128)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// The one of `all` in whose network an address is, the narrowest if it is in several; `None` for
    /// one behind a router.
    #[must_use]
    pub fn towards(all: &[Self], other: IpAddr) -> Option<&Self> {
        let near = all.iter().filter(|a| a.is_near(other) && a.addr != other);
        near.max_by_key(|a| a.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_network_leads_to_a_server() {
        let at = |addr: &str, prefix, index| HostAddress {
            addr: addr.parse().unwrap(),
            prefix,
            index,
            interface: format!("eth{index}"),
        };
        let all = [
            at("10.0.0.1", 8, 1),
            at("10.77.1.1", 24, 2),
            at("192.0.2.1", 32, 3),
            at("fd77::1", 64, 4),
        ];
        let towards = |addr: &str| {
            let found = HostAddress::towards(&all, addr.parse().unwrap());
            found.map(|a| a.index)
        };
        assert_eq!(towards("10.77.1.9"), Some(2));
        assert_eq!(towards("10.78.1.9"), Some(1));
        assert_eq!(towards("192.0.2.1"), None, "this host itself");
        assert_eq!(towards("198.51.100.1"), None);
        assert_eq!(towards("fd77::9"), Some(4));
        assert_eq!(towards("fd78::9"), None);
    }
}
