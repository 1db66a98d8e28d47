//! What of this host keeps a declared service from working, or loses its connections.
//!
//! Nothing is said that is not sure: what could not be read, and what depends on more than was read,
//! is no finding. DR and TUN answers do not come back through the director, so that forwarding is
//! no matter of theirs. net.ipv4.vs.conntrack is none either: only firewall rules need it on, and
//! since Linux 5.9 a client's reused port does not wait for its old entry
//! (`ip_vs_conn_uses_old_conntrack` in include/net/ip_vs.h).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    config::{Director, VirtualService},
    model::{
        DestKey, Family, ForwardMethod, HostAddress, Keeping, Protocol, Scheduler, ServiceKey,
        SysctlName, SysctlValue, Weight,
    },
};

/// Settings that findings ask for; the forwarding of each interface comes to them.
pub const ASKED: [&str; 7] = [
    IP_FORWARD,
    FORWARDING6,
    EXPIRE_NODEST,
    EXPIRE_QUIESCENT,
    REUSE,
    SYNC_PERSIST,
    SLOPPY_TCP,
];

const IP_FORWARD: &str = "net.ipv4.ip_forward";
const IP_FORWARD_PATH: &str = "net/ipv4/ip_forward";
const FORWARDING6: &str = "net.ipv6.conf.all.forwarding";
const EXPIRE_NODEST: &str = "net.ipv4.vs.expire_nodest_conn";
const EXPIRE_QUIESCENT: &str = Keeping::SETTING;
const REUSE: &str = "net.ipv4.vs.conn_reuse_mode";
const SYNC_PERSIST: &str = "net.ipv4.vs.sync_persist_mode";
const SLOPPY_TCP: &str = "net.ipv4.vs.sloppy_tcp";

/// What was read of this host. What is not in it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Settings of the kernel.
    pub settings: BTreeMap<SysctlName, SysctlValue>,
    /// Addresses of all interfaces.
    pub addresses: Option<Vec<HostAddress>>,
    /// Schedulers that the kernel has not, and could not load.
    pub no_schedulers: BTreeSet<Scheduler>,
    /// Persistence engines of the same kind.
    pub no_engines: BTreeSet<String>,
}

impl Facts {
    /// The same host with the declared settings in force. One that is not there cannot be.
    #[must_use]
    pub fn as_declared(mut self, config: &Director) -> Self {
        for declared in &config.kernel {
            if let Some(value) = self.settings.get_mut(&declared.name) {
                *value = declared.value.clone();
            }
            // One switch under two names, and it switches every interface
            // (`devinet_sysctl_forward` in net/ipv4/devinet.c).
            if matches!(
                declared.name.path(),
                IP_FORWARD_PATH | "net/ipv4/conf/all/forwarding"
            ) {
                for (name, value) in &mut self.settings {
                    if name.path() == IP_FORWARD_PATH || name.is_ipv4_forwarding() {
                        *value = declared.value.clone();
                    }
                }
            }
        }
        self
    }

    fn is(&self, name: &str, on: bool) -> bool {
        let name = name.parse::<SysctlName>().ok();
        let value = name.and_then(|n| self.settings.get(&n));
        value.is_some_and(|v| v.is_on() == on)
    }

    /// Whether an interface of this host has the address.
    fn has(&self, addr: IpAddr) -> bool {
        let all = self.addresses.as_ref();
        all.is_some_and(|all| all.iter().any(|a| a.addr == addr))
    }

    /// What IPv4 says of an interface, or of all.
    fn of_interface(&self, interface: &str, setting: &str) -> Option<i64> {
        let name = SysctlName::of_interface(interface, setting);
        self.settings.get(&name)?.number()
    }

    fn forwards(&self, family: Family) -> bool {
        match family {
            // Off for all of them together; one that is on forwards nevertheless (`ip_route_input_slow`
            // in net/ipv4/route.c asks the interface).
            Family::V4 => {
                !self.is(IP_FORWARD, false)
                    || self
                        .settings
                        .iter()
                        .any(|(name, v)| name.is_ipv4_forwarding() && v.is_on())
            }
            // `ip6_forward` in net/ipv6/ip6_output.c asks for all of them.
            Family::V6 => !self.is(FORWARDING6, false),
        }
    }
}

/// Everything about this host that does not fit the configuration: what it is, what comes of it,
/// what to do.
#[must_use]
pub fn findings(config: &Director, facts: &Facts) -> Vec<String> {
    let mut all = Vec::new();
    let services = |which: &dyn Fn(&ServiceKey, &VirtualService) -> bool| {
        let which = config.services.iter().filter(|(k, s)| which(k, s));
        named(which.map(|(k, _)| k))
    };
    let mut warn = |who: Option<String>, text: &dyn Fn(&str) -> String| {
        all.extend(who.map(|who| text(&who)));
    };

    for (family, setting) in [(Family::V4, IP_FORWARD), (Family::V6, FORWARDING6)] {
        let who = services(&|_, s| {
            let elsewhere = |a: &IpAddr| !facts.has(*a);
            s.forward == ForwardMethod::Nat
                && s.servers
                    .keys()
                    .any(|d| Family::of(d.addr) == family && elsewhere(&d.addr))
        });
        if !facts.forwards(family) {
            warn(who, &|who| {
                format!(
                    "{setting} is 0: the answers of NAT servers are not forwarded, clients of {who} get none; {}",
                    set(setting, 1)
                )
            });
        }
    }
    if facts.is(EXPIRE_NODEST, false) {
        // A server that is not checked does not fail.
        let who = services(&|_, s| !s.servers.is_empty() && s.checks.any());
        warn(who, &|who| {
            format!(
                "{EXPIRE_NODEST} is 0: a failed server is removed, and packets of its connections are then dropped without a word, so that clients of {who} hang until their own time-outs; {}",
                set(EXPIRE_NODEST, 1)
            )
        });
    }
    if facts.is(EXPIRE_QUIESCENT, false) {
        // A removed server's template ends whatever the setting (`ip_vs_check_template`).
        let who = services(&|_, s| {
            let quiesced = s.servers.values().any(|d| d.weight == Weight::QUIESCED);
            // Who wants them kept has the setting declared.
            s.attrs.persistence.is_some() && quiesced && s.keeping.is_none()
        });
        warn(who, &|who| {
            format!(
                "{EXPIRE_QUIESCENT} is 0: a persistent client keeps its server of weight 0 for as long as it comes back, so that such a server of {who} never empties; {}",
                set(EXPIRE_QUIESCENT, 1)
            )
        });
    }
    for (keeping, is) in [(Keeping::Keep, true), (Keeping::Cut, false)] {
        // The director writes it: it was refused, or somebody was quicker.
        if facts.is(EXPIRE_QUIESCENT, is) {
            let who = services(&|_, s| s.keeping == Some(keeping) && s.on_failure.quiesces());
            warn(who, &|who| {
                let (word, now) = (keeping.word(), i64::from(is));
                format!(
                    "{EXPIRE_QUIESCENT} is {now}: persistence_on_failure = \"{word}\" of {who} does not hold for servers that are quiesced; see why it could not be set"
                )
            });
        }
    }
    if facts.is(REUSE, false) {
        let who = services(&|k, _| {
            !matches!(
                k,
                ServiceKey::Addr(Protocol::Udp, _) | ServiceKey::Fwmark(..)
            )
        });
        warn(who, &|who| {
            let lost = match facts.is(EXPIRE_NODEST, false) {
                true => {
                    ", and gets no answer while that server is removed and the old connection not forgotten"
                }
                false => "",
            };
            format!(
                "{REUSE} is 0: a client of {who} that uses a port again, as proxies do, goes to the server of the port's last connection, past the scheduler: stand-ins and servers that are back get nothing of it{lost}; {}",
                set(REUSE, 1)
            )
        });
    }
    if facts.is(SYNC_PERSIST, true) && facts.is(SLOPPY_TCP, false) {
        let who = services(&|k, s| {
            matches!(k, ServiceKey::Addr(Protocol::Tcp, _)) && s.attrs.persistence.is_some()
        });
        warn(who, &|who| {
            format!(
                "{SYNC_PERSIST} is 1 and {SLOPPY_TCP} is 0: a director that takes over knows which server a client of {who} has but not its connections, and breaks them; {}",
                set(SLOPPY_TCP, 1)
            )
        });
    }
    for scheduler in &facts.no_schedulers {
        warn(services(&|_, s| s.attrs.scheduler == *scheduler), &|who| {
            format!(
                "the kernel has no scheduler {scheduler} and could not load it: {who} cannot be added; see what modprobe ip_vs_{scheduler} says, or choose another scheduler"
            )
        });
    }
    for engine in &facts.no_engines {
        let has = |s: &VirtualService| {
            let engine_of = s.attrs.persistence.as_ref().and_then(|p| p.engine.as_ref());
            engine_of == Some(engine)
        };
        warn(services(&|_, s| has(s)), &|who| {
            format!(
                "the kernel has no persistence engine {engine} and could not load it: {who} cannot be added; see what modprobe ip_vs_pe_{engine} says, or leave persistence_engine out"
            )
        });
    }
    all.extend(missing_addresses(config, facts));
    all.extend(deaf_interfaces(config, facts));
    all
}

/// An answer to a check through a virtual address that this host has comes from that address. The
/// kernel drops it as a martian where `accept_local` is off, or where `rp_filter` is strict
/// (`__fib_validate_source` in net/ipv4/fib_frontend.c). IPv6 asks neither.
fn deaf_interfaces(config: &Director, facts: &Facts) -> Vec<String> {
    let mut deaf: BTreeMap<&str, BTreeSet<&ServiceKey>> = BTreeMap::new();
    let here = facts.addresses.as_deref().unwrap_or_default();
    for (key, service) in &config.services {
        let through = service.checks.all.iter().filter(|c| c.via.through);
        let mut own = through.filter_map(|c| c.via.virtual_address(*key));
        if !own.any(|vip| vip.is_ipv4() && facts.has(vip)) {
            continue;
        }
        let towards = |dest: &DestKey| HostAddress::towards(here, dest.addr);
        for near in service.servers.keys().filter_map(towards) {
            deaf.entry(&near.interface).or_default().insert(key);
        }
    }
    let mut all = Vec::new();
    for (interface, keys) in deaf {
        let Some(who) = named(keys.into_iter()) else {
            continue;
        };
        let own = |setting| facts.of_interface(interface, setting);
        let common = |setting| facts.of_interface("all", setting);
        let dotted = interface.replace('.', "/");
        // Either of the two suffices (`IN_DEV_ORCONF` in include/linux/inetdevice.h).
        if (own("accept_local"), common("accept_local")) == (Some(0), Some(0)) {
            let setting = format!("net.ipv4.conf.{dotted}.accept_local");
            all.push(format!(
                "{setting} is 0: answers to the checks through the virtual address of {who} come from that address, and are dropped on {interface} as this host's own, so that the servers cannot enter; {}",
                set(&setting, 1)
            ));
        }
        // The higher of the two counts (`IN_DEV_MAXCONF`).
        let strict = own("rp_filter").max(common("rp_filter")) == Some(1);
        if strict && own("rp_filter").is_some() {
            let setting = format!("net.ipv4.conf.{dotted}.rp_filter");
            all.push(format!(
                "rp_filter is strict on {interface}: answers to the checks through the virtual address of {who} are dropped there, so that the servers cannot enter; {}",
                set(&setting, 2)
            ));
        }
    }
    all
}

/// IPVS sees only packets that are for this host.
fn missing_addresses(config: &Director, facts: &Facts) -> Vec<String> {
    if facts.addresses.is_none() {
        return Vec::new();
    }
    let mut missing: BTreeMap<IpAddr, Vec<&ServiceKey>> = BTreeMap::new();
    for (key, service) in &config.services {
        // Of one that the director manages itself it tells itself.
        if let ServiceKey::Addr(_, at) = key
            && service.address.is_none()
            && !facts.has(at.ip())
        {
            missing.entry(at.ip()).or_default().push(key);
        }
    }
    let text = |(ip, keys): (IpAddr, Vec<&ServiceKey>)| {
        let who = named(keys.into_iter())?;
        Some(format!(
            "no interface of this host has the virtual address {ip}: packets for {who} do not reach IPVS; add it, for example: ip address add {ip}/{} dev lo",
            if ip.is_ipv4() { 32 } else { 128 }
        ))
    };
    missing.into_iter().filter_map(text).collect()
}

/// The first one's name and how many more there are; none for none.
fn named<'a>(mut keys: impl Iterator<Item = &'a ServiceKey>) -> Option<String> {
    let first = keys.next()?;
    Some(match keys.count() {
        0 => first.to_string(),
        more => format!("{first} and {more} more"),
    })
}

fn set(setting: &str, value: i64) -> String {
    format!("under [kernel] write: \"{setting}\" = {value}")
}

#[cfg(test)]
mod tests;
