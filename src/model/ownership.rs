//! What a running director owns, as its lock file says it to whoever would write to IPVS by hand.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{DirectorName, ServiceKey};

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
}

impl Ownership {
    /// Whether it owns this service.
    #[must_use]
    pub fn owns(&self, key: &ServiceKey) -> bool {
        self.exclusive || self.services.contains(key)
    }
}
