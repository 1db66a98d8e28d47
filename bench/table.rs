//! The table that every side writes: services in the order of their keys, all destinations alike.
//! Said in the words of each side.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use understudy::{
    model::{
        DestAttrs, DestKey, DriftPolicy, ForwardMethod, Protocol, Scheduler, Service, ServiceAttrs,
        ServiceFlags, ServiceKey, Step, Tunnel, Weight,
    },
    reconcile::plan::{Desired, Want},
};

pub(crate) const SERVICES: u16 = 500;
pub(crate) const DESTS: u16 = 20;
pub(crate) const SCHEDULER: &str = "wlc";
/// Services that share an address.
const PORTS: u16 = 10;

/// The virtual services, in order.
pub(crate) fn services() -> impl Iterator<Item = (Ipv4Addr, u16)> {
    (0..SERVICES).map(|n| (virtual_address(n / PORTS), 8000 + n % PORTS))
}

/// The destinations of each service, in order.
pub(crate) fn dests() -> impl Iterator<Item = (Ipv4Addr, u16)> {
    let first = u32::from(Ipv4Addr::new(10, 77, 1, 1));
    (0..DESTS).map(move |n| (Ipv4Addr::from(first + u32::from(n)), 8080))
}

/// The addresses of the services.
pub(crate) fn virtual_addresses() -> impl Iterator<Item = Ipv4Addr> {
    (0..SERVICES / PORTS).map(virtual_address)
}

fn virtual_address(n: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + u32::from(n))
}

fn key((addr, port): (Ipv4Addr, u16)) -> ServiceKey {
    ServiceKey::Addr(Protocol::Tcp, SocketAddr::new(addr.into(), port))
}

fn wanted() -> BTreeMap<ServiceKey, Service> {
    let attrs = ServiceAttrs {
        scheduler: Scheduler(SCHEDULER.to_owned()),
        flags: ServiceFlags(0),
        persistence: None,
    };
    let dest = DestAttrs {
        weight: Weight::ONE,
        forward: ForwardMethod::Nat,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    };
    let dests: BTreeMap<DestKey, DestAttrs> = dests()
        .map(|(addr, port)| {
            let addr = addr.into();
            (DestKey { addr, port }, dest)
        })
        .collect();
    services()
        .map(|s| {
            let (attrs, dests) = (attrs.clone(), dests.clone());
            (key(s), Service { attrs, dests })
        })
        .collect()
}

/// For the client: what makes the table from nothing.
pub(crate) fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    for (key, service) in wanted() {
        steps.push(Step::NewService(key, service.attrs));
        steps.extend(
            service
                .dests
                .into_iter()
                .map(|(dest, attrs)| Step::NewDest(key, dest, attrs)),
        );
    }
    steps
}

/// For the reconciler.
pub(crate) fn desired() -> Desired {
    let part = |(key, service)| {
        let want = Want {
            service,
            out: BTreeSet::new(),
            drift: DriftPolicy::Repair,
        };
        (key, Arc::new(want))
    };
    Desired {
        generation: 1,
        services: wanted().into_iter().map(part).collect(),
        resync: Duration::from_nanos(1),
        shadow: false,
        exclusive: false,
        made: Arc::default(),
    }
}

/// For `ipvsadm -R` and `understudy ipvs restore`.
pub(crate) fn rules() -> String {
    let mut text = String::new();
    for (addr, port) in services() {
        text.push_str(&format!("-A -t {addr}:{port} -s {SCHEDULER}\n"));
        for (server, at) in dests() {
            text.push_str(&format!("-a -t {addr}:{port} -r {server}:{at} -m -w 1\n"));
        }
    }
    text
}

/// For the director.
pub(crate) fn director_toml(folder: &str, resync: &str, metrics: Option<SocketAddr>) -> String {
    let mut text = format!(
        "[director]\nname = \"bench\"\naddress = \"127.0.0.1\"\nstate_dir = \"{folder}/state\"\n\
         socket = \"{folder}/director.sock\"\nresync = \"{resync}\"\n"
    );
    if let Some(at) = metrics {
        text.push_str(&format!("[metrics]\nlisten = \"{at}\"\n"));
    }
    for (addr, port) in services() {
        text.push_str(&format!(
            "[[virtual_service]]\naddress = \"{addr}:{port}\"\nscheduler = \"{SCHEDULER}\"\n\
             forward = \"nat\"\n[virtual_service.check.none]\n"
        ));
        for (server, at) in dests() {
            text.push_str(&format!(
                "[[virtual_service.real_server]]\naddress = \"{server}:{at}\"\nweight = 1\n"
            ));
        }
    }
    text
}

/// For keepalived.
pub(crate) fn keepalived_conf() -> String {
    let mut text = String::new();
    for (addr, port) in services() {
        text.push_str(&format!("virtual_server {addr} {port} {{\n  lvs_sched {SCHEDULER}\n  lvs_method NAT\n  protocol TCP\n"));
        for (server, at) in dests() {
            text.push_str(&format!(
                "  real_server {server} {at} {{\n    weight 1\n  }}\n"
            ));
        }
        text.push_str("}\n");
    }
    text
}
