//! What another configuration changes: counted, and as planned.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{OrderedPlace, ServiceKey};

/// How many are new, changed and gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// New.
    pub added: usize,
    /// Changed.
    pub changed: usize,
    /// Gone.
    pub removed: usize,
}

impl Count {
    /// Between two maps, by what counts as the same.
    pub fn of<K: Ord, V>(
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
        same: impl Fn(&V, &V) -> bool,
    ) -> Self {
        let mut count = Self::default();
        for (key, value) in new {
            match old.get(key) {
                None => count.added += 1,
                Some(before) if !same(before, value) => count.changed += 1,
                Some(_) => {}
            }
        }
        count.removed = old.keys().filter(|key| !new.contains_key(key)).count();
        count
    }

    const fn is_none(&self) -> bool {
        self.added == 0 && self.changed == 0 && self.removed == 0
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (added, changed, removed) = (self.added, self.changed, self.removed);
        write!(f, "{added} added, {changed} changed, {removed} removed")
    }
}

/// What a new configuration changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Virtual services: what is said of them, their servers left out.
    pub services: Count,
    /// Real servers and sorry servers, each in its service.
    pub servers: Count,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.services.is_none() && self.servers.is_none() {
            return f.write_str("no virtual service and no server differs");
        }
        let (services, servers) = (&self.services, &self.servers);
        write!(f, "virtual services: {services}; servers: {servers}")
    }
}

/// What a reload would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// What the configuration changes.
    pub reloaded: Reloaded,
    /// Changes of the kernel's table, in their order.
    pub steps: Vec<PlannedStep>,
    /// Who is sent on the way out: at weight 0 now, gone when its connections are.
    pub leaving: Vec<OrderedPlace>,
    /// Stand-ins that lose their places, and go back to the provisioner.
    pub stand_ins: Vec<PlannedStandIn>,
    /// Failed servers whose replacement is called off.
    pub called_off: Vec<IpAddr>,
}

/// What a new configuration did, or does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// What the configuration changes.
    pub reloaded: Reloaded,
    /// Whether the kernel's table is as wanted by now.
    pub applied: bool,
    /// What kept it from that, where it is known.
    pub failed: Vec<String>,
}

/// The body of `POST /v1/plan`: without a text, the director reads its own file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The name that mistakes are told with, and a configuration.
    pub config: Option<(PathBuf, String)>,
}

/// One change of the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// In which service.
    pub service: ServiceKey,
    /// At which destination; none is the service itself.
    pub server: Option<String>,
    /// What, in words.
    pub step: String,
    /// Active connections that it touches.
    pub connections: u64,
}

/// A stand-in that a reload sends back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStandIn {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The servers' addresses whose place it had.
    pub in_place_of: Vec<IpAddr>,
}
