//! Hosts and ports by name, as `ipvsadm -S` without `-n` writes them.

use std::{
    cell::OnceCell,
    fs,
    net::{IpAddr, ToSocketAddrs},
};

use crate::{import::ipvsadm::Names, model::Protocol};

/// The names of this host: its resolver, and /etc/services.
#[derive(Default)]
pub(super) struct System {
    services: OnceCell<String>,
}

impl Names for System {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let found = (name, 0).to_socket_addrs().map_err(|e| e.to_string())?;
        let mut addresses: Vec<_> = found.map(|a| a.ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let services = self.services.get_or_init(|| {
            // Without the file no name is known, and the reader says which.
            fs::read_to_string("/etc/services").unwrap_or_default()
        });
        port(services, name, protocol)
    }
}

/// A line of services(5): `http 80/tcp www # a comment`.
fn port(services: &str, name: &str, protocol: Protocol) -> Option<u16> {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let official = words.next()?;
        let (port, of) = words.next()?.split_once('/')?;
        let named = official == name || words.any(|alias| alias == name);
        (named && of == protocol).then(|| port.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_names_and_aliases_for_each_protocol() {
        let file = "# Network services\n\
                    domain\t53/tcp\n\
                    domain\t53/udp # not sctp\n\
                    http\t80/tcp\twww web\n\
                    broken\n";
        assert_eq!(port(file, "http", Protocol::Tcp), Some(80));
        assert_eq!(port(file, "www", Protocol::Tcp), Some(80));
        assert_eq!(port(file, "www", Protocol::Udp), None);
        assert_eq!(port(file, "domain", Protocol::Udp), Some(53));
        assert_eq!(port(file, "domain", Protocol::Sctp), None);
        assert_eq!(port(file, "sctp", Protocol::Udp), None);
        assert_eq!(port(file, "broken", Protocol::Tcp), None);
    }
}
