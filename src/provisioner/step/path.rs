//! Step 4: whether a client gets its answer from the spare. What the spare says of its routes,
//! addresses and settings is read there; what follows from it is decided here.

use std::net::IpAddr;

use super::{
    error,
    remote::{QUICK, Remote, one_line, script},
};
use crate::provisioner::order::{Class, PathTest, StepError};

/// Looks at all paths; what was found of each.
pub(super) async fn paths(
    remote: &Remote<'_>,
    tests: &[PathTest],
) -> Result<Vec<String>, StepError> {
    let mut found = Vec::new();
    for test in tests {
        let fault = match test {
            PathTest::Back {
                client,
                gateways,
                own,
            } => {
                let client = client.to_string();
                let own = own.map(|a| a.to_string()).unwrap_or_default();
                let args = [client.as_str(), own.as_str()];
                let said = remote.read(script!("route"), &args, QUICK).await?;
                found.push(format!("the way to {client} leads through the director"));
                wrong_way(remote.name, &client, gateways, &said)
            }
            PathTest::Holds { vip, quiet_at } => {
                let own = quiet_at.map(|a| a.to_string()).unwrap_or_default();
                let args = [vip.to_string(), own];
                let args: Vec<_> = args.iter().map(String::as_str).collect();
                let said = remote.read(script!("holds"), &args, QUICK).await?;
                found.push(format!("{vip} is there"));
                let held = Held::read(&said).ok_or_else(|| remote.garbled(&said))?;
                held.fault(remote.name, *vip, *quiet_at)
            }
        };
        if let Some((code, detail)) = fault {
            return Err(error(Class::Permanent, code, detail));
        }
    }
    Ok(found)
}

/// What is wrong with a spare's way to a client: `ip route get`.
fn wrong_way(
    name: &str,
    client: &str,
    gateways: &[IpAddr],
    said: &str,
) -> Option<(&'static str, String)> {
    let words: Vec<_> = said.split_whitespace().collect();
    let after = |key| {
        let at = words.iter().position(|w| *w == key)?;
        words.get(at + 1).copied()
    };
    // A gateway of the other family is written `via inet6 fe80::1`.
    let via = match after("via") {
        Some("inet6") => after("inet6"),
        via => via,
    };
    let gateway: Option<IpAddr> = via.and_then(|v| v.parse().ok());
    if gateway.is_some_and(|g| gateways.contains(&g)) {
        return None;
    }
    let wanted: Vec<_> = gateways.iter().map(ToString::to_string).collect();
    let wanted = wanted.join(" or ");
    let how = match gateway {
        Some(gateway) => format!("leads through {gateway}"),
        None if after("dev").is_some() => "leads through no gateway".to_owned(),
        None => format!("is not there ({})", one_line(said)),
    };
    let detail = format!(
        "with NAT {name} must answer through the director, but its way to {client} {how}, not \
         through {wanted}: set its default route, or correct `gateways` of the role"
    );
    Some(("wrong_way_back", detail))
}

/// What `holds.sh` says.
#[derive(Debug, PartialEq, Eq)]
struct Held<'s> {
    /// The link with the virtual address.
    vip_at: Option<&'s str>,
    /// The link with the spare's own address.
    own: Option<&'s str>,
    /// Of IPv4: `arp_ignore` and `arp_announce` there.
    arp: Option<(u32, u32)>,
}

impl<'s> Held<'s> {
    fn read(said: &'s str) -> Option<Self> {
        let lines: Vec<_> = said.lines().collect();
        let link = |text: &'s str| Some(text).filter(|t| *t != "none");
        match lines.as_slice() {
            [vip] => Some(Self {
                vip_at: link(vip),
                own: None,
                arp: None,
            }),
            [vip, own] => Some(Self {
                vip_at: link(vip),
                own: Some(own),
                arp: None,
            }),
            [vip, own, ignore, announce] => Some(Self {
                vip_at: link(vip),
                own: Some(own),
                arp: Some((ignore.parse().ok()?, announce.parse().ok()?)),
            }),
            _ => None,
        }
    }

    fn fault(
        &self,
        name: &str,
        vip: IpAddr,
        quiet_at: Option<IpAddr>,
    ) -> Option<(&'static str, String)> {
        let Some(vip_at) = self.vip_at else {
            let length = if vip.is_ipv4() { 32 } else { 128 };
            let detail = format!(
                "{name} would drop what is sent to {vip}, which it does not have: put it on lo in the \
                 role's script (ip addr add {vip}/{length} dev lo; it is in UNDERSTUDY_VIPS_LOCAL)"
            );
            return Some(("vip_missing", detail));
        };
        let (link, own) = (self.own?, quiet_at?);
        if link == "none" {
            let detail =
                format!("{name} does not have its own address {own}: look at the inventory");
            return Some(("address_missing", detail));
        }
        if vip_at == link {
            let detail = format!(
                "{name} has {vip} on {link} and would tell its neighbours there that it is its own, in \
                 the director's place: put it on lo"
            );
            return Some(("arp_not_quiet", detail));
        }
        // In IPv6 a link answers for its own addresses alone.
        let (ignore, announce) = self.arp?;
        if !matches!(ignore, 1 | 2 | 8) || announce != 2 {
            let detail = format!(
                "{name} would tell others on {link} that {vip} is there: arp_ignore is {ignore} and \
                 arp_announce {announce}; set net.ipv4.conf.all.arp_ignore=1 and \
                 net.ipv4.conf.all.arp_announce=2 in the role's script"
            );
            return Some(("arp_not_quiet", detail));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_way_back_leads_through_the_director_or_is_said() {
        let fault = |said| wrong_way("spare1", "198.51.100.1", &[ip("10.0.0.251")], said);
        let good = "198.51.100.1 via 10.0.0.251 dev eth0 src 10.0.0.11 uid 0 \\    cache";
        assert_eq!(fault(good), None);
        for (said, word) in [
            ("198.51.100.1 via 10.0.0.254 dev eth0", "10.0.0.254"),
            ("198.51.100.1 dev eth0 src 10.0.0.11", "no gateway"),
            ("RTNETLINK answers: Network is unreachable", "unreachable"),
            ("", "is not there"),
        ] {
            let (code, detail) = fault(said).unwrap();
            assert_eq!(code, "wrong_way_back");
            assert!(detail.contains(word), "{detail}");
        }
        let six = "198.51.100.1 via inet6 fe80::1 dev eth0";
        assert_eq!(wrong_way("s", "198.51.100.1", &[ip("fe80::1")], six), None);
    }

    #[test]
    fn a_virtual_address_is_held_quietly() {
        let fault = |said: &str, own: Option<&str>| {
            let held = Held::read(said).unwrap();
            let fault = held.fault("spare1", ip("192.0.2.1"), own.map(ip));
            fault.map(|(code, _)| code)
        };
        let own = Some("10.0.0.11");
        assert_eq!(fault("lo\neth0\n1\n2\n", own), None);
        assert_eq!(fault("lo\n", None), None);
        assert_eq!(fault("none\n", None), Some("vip_missing"));
        assert_eq!(fault("none\neth0\n1\n2\n", own), Some("vip_missing"));
        assert_eq!(fault("eth0\neth0\n1\n2\n", own), Some("arp_not_quiet"));
        assert_eq!(fault("lo\neth0\n0\n2\n", own), Some("arp_not_quiet"));
        assert_eq!(fault("lo\neth0\n1\n0\n", own), Some("arp_not_quiet"));
        assert_eq!(fault("lo\nnone\n1\n2\n", own), Some("address_missing"));
        let six = Some("fd00::11");
        assert_eq!(fault("lo\neth0\n", six), None);
        assert_eq!(fault("dummy0\neth0\n", six), None);
        assert_eq!(fault("eth0\neth0\n", six), Some("arp_not_quiet"));
        assert_eq!(fault("lo\nnone\n", six), Some("address_missing"));
        assert_eq!(Held::read("lo\neth0\n1\n"), None);
    }
}
