//! The model as `ipvsadm -R` reads it.

use std::{fmt, net::Ipv4Addr};

use crate::model::{
    DestAttrs, DestKey, Family, ForwardMethod, Persistence, Protocol, Service, ServiceAttrs,
    ServiceFlags, ServiceKey, Table, Tunnel, TunnelType,
};

/// The table in the words of `ipvsadm -Sn`, thresholds and high marks as well: each service, then
/// its destinations.
///
/// [`ForwardMethod::Local`] is written as `-g`, as ipvsadm does it. Destinations of
/// [`ForwardMethod::Bypass`] are left out: ipvsadm has no words for them, and `-R` no comments. What
/// a kind of tunnel makes no use of is not written. [`super::losses()`] tells all of it.
#[must_use]
pub fn write(table: &Table) -> String {
    Text(table).to_string()
}

/// What each line of [`write()`] is about.
pub(super) fn lines(table: &Table) -> impl Iterator<Item = (ServiceKey, Option<DestKey>)> {
    table.iter().flat_map(|(key, service)| {
        let dests = said(service).map(|(dest, _)| (*key, Some(*dest)));
        std::iter::once((*key, None)).chain(dests)
    })
}

/// The destinations that have a line.
fn said(service: &Service) -> impl Iterator<Item = (&DestKey, &DestAttrs)> {
    let dests = service.dests.iter();
    dests.filter(|(_, d)| d.forward != ForwardMethod::Bypass)
}

struct Text<'a>(&'a Table);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, service) in self.0 {
            let name = Named(*key);
            write!(f, "-A {name}")?;
            attributes(f, *key, &service.attrs)?;
            for (dest, attrs) in said(service) {
                write!(f, "-a {name} -r {dest}")?;
                server(f, attrs)?;
            }
        }
        Ok(())
    }
}

/// A service as ipvsadm names it.
struct Named(ServiceKey);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ServiceKey::Addr(Protocol::Tcp, a) => write!(f, "-t {a}"),
            ServiceKey::Addr(Protocol::Udp, a) => write!(f, "-u {a}"),
            ServiceKey::Addr(Protocol::Sctp, a) => write!(f, "--sctp-service {a}"),
            ServiceKey::Fwmark(Family::V4, m) => write!(f, "-f {m}"),
            ServiceKey::Fwmark(Family::V6, m) => write!(f, "-f {m} -6"),
        }
    }
}

fn attributes(f: &mut fmt::Formatter<'_>, key: ServiceKey, attrs: &ServiceAttrs) -> fmt::Result {
    write!(f, " -s {}", attrs.scheduler)?;
    if let Some(Persistence {
        timeout_s,
        prefix,
        engine,
    }) = &attrs.persistence
    {
        write!(f, " -p {timeout_s}")?;
        match key.family() {
            Family::V4 if *prefix < 32 => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(*prefix))
                    .unwrap_or_default();
                write!(f, " -M {}", Ipv4Addr::from_bits(mask))?;
            }
            Family::V6 if *prefix < 128 => write!(f, " -M {prefix}")?,
            _ => {}
        }
        if let Some(engine) = engine {
            write!(f, " --pe {engine}")?;
        }
    }
    if attrs.flags.0 & ServiceFlags::ONE_PACKET != 0 {
        f.write_str(" -o")?;
    }
    let flags = attrs.flags.scheduler_flags(&attrs.scheduler);
    for (i, flag) in flags.enumerate() {
        write!(f, "{}{flag}", if i == 0 { " -b " } else { "," })?;
    }
    f.write_str("\n")
}

fn server(f: &mut fmt::Formatter<'_>, attrs: &DestAttrs) -> fmt::Result {
    let forward = match attrs.forward {
        ForwardMethod::Nat => "-m",
        ForwardMethod::Tun => "-i",
        ForwardMethod::Dr | ForwardMethod::Local | ForwardMethod::Bypass => "-g",
    };
    write!(f, " {forward} -w {}", attrs.weight)?;
    let Tunnel { kind, port, flags } = attrs.tunnel;
    let checksum = if flags & Tunnel::CHECKSUM != 0 {
        " --tun-csum"
    } else {
        " --tun-nocsum"
    };
    match kind {
        _ if attrs.forward != ForwardMethod::Tun => {}
        TunnelType::Ipip => f.write_str(" --tun-type ipip")?,
        TunnelType::Gre => write!(f, " --tun-type gre{checksum}")?,
        TunnelType::Gue => {
            // Both at once is more than -R takes, and so better refused than half said.
            let checksum = match flags & (Tunnel::CHECKSUM | Tunnel::REMOTE_CHECKSUM) {
                Tunnel::REMOTE_CHECKSUM => " --tun-remcsum",
                Tunnel::CHECKSUM | 0 => checksum,
                _ => " --tun-csum --tun-remcsum",
            };
            write!(f, " --tun-type gue --tun-port {port}{checksum}")?;
        }
    }
    if attrs.upper != 0 || attrs.lower != 0 {
        write!(f, " -x {} -y {}", attrs.upper, attrs.lower)?;
    }
    f.write_str("\n")
}
