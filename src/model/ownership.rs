//! What a running director owns, as its lock file says it to whoever would write to IPVS by hand.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{DirectorName, Marks, ServiceKey};

/// A director and its virtual services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Its name.
    pub director: DirectorName,
    /// Its process.
    pub pid: u32,
    /// Its network namespace: device and inode of `/proc/self/ns/net`. Tables of other namespaces
    /// are not its own.
    pub namespace: (u64, u64),
    /// Whether it owns every service of its namespace.
    pub exclusive: bool,
    /// After so many milliseconds it has put right what others changed.
    pub resync_ms: u64,
    /// Its virtual services.
    pub services: BTreeSet<ServiceKey>,
    /// Firewall marks of its hidden services, if it has checks through virtual addresses.
    #[serde(default)]
    pub hidden: Option<Marks>,
}

impl Ownership {
    /// Whether it owns this service.
    #[must_use]
    pub fn owns(&self, key: &ServiceKey) -> bool {
        self.exclusive || self.services.contains(key) || self.hides(key)
    }

    /// Whether this is a hidden service, on which probes travel.
    #[must_use]
    pub fn hides(&self, key: &ServiceKey) -> bool {
        match key {
            ServiceKey::Fwmark(_, mark) => self.hidden.is_some_and(|m| m.contains(*mark)),
            ServiceKey::Addr(..) => false,
        }
    }
}
