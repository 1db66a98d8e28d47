//! `understudy ipvs list --connections`: the kernel tells connections by a file and not by netlink
//! (`ip_vs_conn_seq_show`, net/netfilter/ipvs/ip_vs_conn.c).

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use serde::Serialize;

use super::{Failure, list};
use crate::model::{Protocol, ServiceKey};

const FILE: &str = "/proc/net/ip_vs_conn";

/// A connection, or a persistence template.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Connection {
    /// In lower case; `ip` is a template of a service by firewall mark.
    protocol: String,
    client: SocketAddr,
    /// The virtual address; of a template by firewall mark, the mark as an address.
    service: SocketAddr,
    destination: SocketAddr,
    state: String,
    /// Seconds until it is forgotten without another packet.
    expires_s: u64,
    /// Persistence engine and what it found in the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    persistence_data: Option<String>,
}

/// Prints a line a connection, as they are read.
pub(super) fn table(services: &[ServiceKey]) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let row = |out: &mut dyn Write,
               [protocol, client, service, dest, state, expires, data]: [&str; 7]| {
        writeln!(
            out,
            "{protocol:<5} {client:<21}  {service:<21}  {dest:<21}  {state:<11}  {expires:>7}{data}"
        )
    };
    let head = row(
        &mut out,
        [
            "PROTO",
            "CLIENT",
            "SERVICE",
            "DESTINATION",
            "STATE",
            "EXPIRES",
            "",
        ],
    );
    let mut gone = head.is_err();
    each(services, |c| {
        let data = c.persistence_data.map(|d| format!("  {d}"));
        gone = gone
            || row(
                &mut out,
                [
                    &c.protocol,
                    &c.client.to_string(),
                    &c.service.to_string(),
                    &c.destination.to_string(),
                    &c.state,
                    &format!("{}:{:02}", c.expires_s / 60, c.expires_s % 60),
                    data.as_deref().unwrap_or_default(),
                ],
            )
            .is_err();
        !gone
    })?;
    match Write::flush(&mut out) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(&e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn json(services: &[ServiceKey]) -> Result<(), Failure> {
    let mut all = Vec::new();
    each(services, |c| {
        all.push(c);
        true
    })?;
    list::json(&all)
}

/// Hands out the connections of these services, of all if none is named, until `take` says no.
fn each(services: &[ServiceKey], mut take: impl FnMut(Connection) -> bool) -> Result<(), Failure> {
    if let Some(mark) = services
        .iter()
        .find(|k| matches!(k, ServiceKey::Fwmark(..)))
    {
        return Err(Failure::Wrong(format!(
            "{mark}: the kernel does not say by which firewall mark a connection came: list all of them"
        )));
    }
    let unread = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => {
            Failure::Failed("the kernel has no IPVS: load it: modprobe ip_vs".to_owned())
        }
        _ => Failure::Failed(format!("{FILE} cannot be read: {e}")),
    };
    let file = BufReader::new(File::open(FILE).map_err(unread)?);
    for line in lines(file).skip(1) {
        let line = line.map_err(unread)?;
        let connection = connection(&line)
            .ok_or_else(|| Failure::Failed(format!("{FILE} is not understood: {line:?}")))?;
        let wanted = services.is_empty() || services.iter().any(|k| is_of(k, &connection));
        if wanted && !take(connection) {
            break;
        }
    }
    Ok(())
}

/// Lines of any bytes: the persistence data of SIP is a Call-ID as a client sent it. What is no
/// UTF-8, and what would steer a terminal, becomes the replacement character.
fn lines(file: impl BufRead) -> impl Iterator<Item = io::Result<String>> {
    file.split(b'\n').map(|line| {
        let steers = |c: char| c.is_control() && c != '\t';
        Ok(String::from_utf8_lossy(&line?).replace(steers, "\u{fffd}"))
    })
}

fn is_of(key: &ServiceKey, c: &Connection) -> bool {
    let ServiceKey::Addr(protocol, at) = key else {
        return false;
    };
    let word = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    c.protocol == word && c.service == *at
}

fn connection(line: &str) -> Option<Connection> {
    let mut words = line.split_ascii_whitespace();
    let protocol = words.next()?.to_lowercase();
    let mut at = || {
        let address = match words.next()? {
            six if six.contains(':') => IpAddr::V6(six.parse().ok()?),
            four => Ipv4Addr::from(u32::from_str_radix(four, 16).ok()?).into(),
        };
        let port = u16::from_str_radix(words.next()?, 16).ok()?;
        Some(SocketAddr::new(address, port))
    };
    let (client, service, destination) = (at()?, at()?, at()?);
    let state = words.next()?.to_lowercase();
    let expires_s = words.next()?.parse().ok()?;
    let data: Vec<_> = words.collect();
    Some(Connection {
        protocol,
        client,
        service,
        destination,
        state,
        expires_s,
        persistence_data: (!data.is_empty()).then(|| data.join(" ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "TCP CB007107 80E8 C0000201 0050 C6336401 1F90 ESTABLISHED     899";
        let c = connection(line).unwrap();
        assert_eq!(c.client, "203.0.113.7:33000".parse().unwrap());
        assert_eq!(c.service, "192.0.2.1:80".parse().unwrap());
        assert_eq!(c.destination, "198.51.100.1:8080".parse().unwrap());
        assert_eq!((c.state.as_str(), c.expires_s), ("established", 899));
        assert!(is_of(&"tcp/192.0.2.1:80".parse().unwrap(), &c));
        assert!(!is_of(&"udp/192.0.2.1:80".parse().unwrap(), &c));
        assert!(!is_of(&"tcp/192.0.2.1:81".parse().unwrap(), &c));

        let line = "UDP 2001:0db8:0000:0000:0000:0000:0000:0007 80E8 \
                    2001:0db8:0000:0000:0000:0000:0000:0001 0035 C6336401 0035 UDP             7 \
                    sip 1234@example";
        let c = connection(line).unwrap();
        assert_eq!(c.client, "[2001:db8::7]:33000".parse().unwrap());
        assert_eq!(c.destination, "198.51.100.1:53".parse().unwrap());
        assert_eq!(c.persistence_data.as_deref(), Some("sip 1234@example"));
        let line = [line.as_bytes(), b"\xff\xc2\x1b[31m\r\nnext\n"].concat();
        let read: Result<Vec<_>, _> = lines(&line[..]).collect();
        let [line, next] = &read.unwrap()[..] else {
            panic!("two lines");
        };
        assert_eq!(next, "next");
        let data = connection(line).unwrap().persistence_data.unwrap();
        assert_eq!(data, "sip 1234@example\u{fffd}\u{fffd}\u{fffd}[31m\u{fffd}");

        assert_eq!(connection("TCP nonsense"), None);
        assert_eq!(connection(""), None);
    }
}
