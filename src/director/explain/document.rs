//! The document of an explanation.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    config::Endpoint,
    director::{
        standby::StandbyStatus,
        status::{DriftStatus, QuorumStatus, StandInStatus},
    },
    model::{DestKey, DirectorName, Order, ReplacementId, ServiceKey, wire::Replacement},
};

/// Where a server is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It takes new connections.
    In,
    /// At weight 0: those that it has go on.
    Quiesced,
    /// Not in the kernel's table.
    Out,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in service",
            Self::Quiesced => "at weight 0",
            Self::Out => "out of service",
        })
    }
}

/// A server in a virtual service, and why it is there or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whose words these are.
    pub director: DirectorName,
    /// The virtual service.
    pub service: ServiceKey,
    /// The server, address and port.
    pub server: String,
    /// `configured`, `sorry`, `stand-in`, `warm spare` or `unclaimed`.
    pub kind: String,
    /// Where it is to be.
    pub place: Place,
    /// What decides: a label of [`crate::director::Rule`].
    pub rule: String,
    /// The same in words, with what ends it.
    pub why: String,
    /// `up`, `down`, `unknown`; `unchecked` where its service has no check; `-` where it is not ours.
    pub health: String,
    /// Seconds since the verdict.
    pub since_s: Option<u64>,
    /// Its checks, in the configuration's order.
    pub checks: Vec<CheckExplained>,
    /// How many of them it has to pass.
    pub checks_needed: usize,
    /// Its weights.
    pub weight: Weights,
    /// What its checks want of its weight.
    pub advice: Option<String>,
    /// What an operator ordered of it.
    pub order: Option<Order>,
    /// The service's quorum, where more than one server is needed or somebody stands by.
    pub quorum: Option<QuorumStatus>,
    /// What becomes of what others change: `repair`, `alert` or `respect`.
    pub drift_policy: String,
    /// What others changed of it, and stands.
    pub drift: Vec<DriftStatus>,
    /// Why the kernel's table is not as wanted, if it is not.
    pub not_applied: Option<String>,
    /// What the kernel counts.
    #[serde(default)]
    pub kernel: Option<Counts>,
    /// Why that is not known.
    #[serde(default)]
    pub kernel_unread: Option<String>,
    /// Its failure.
    pub incident: Option<IncidentExplained>,
    /// Stand-ins that have its place, or the stand-in that it is.
    pub stand_ins: Vec<StandInStatus>,
    /// Warm spares that could take its place, or the warm spare that it is.
    #[serde(default)]
    pub standbys: Vec<StandbyStatus>,
    /// Its replacement as the provisioner tells of it.
    #[serde(default)]
    pub replacement: Option<Replacement>,
    /// Why the provisioner tells nothing of it.
    #[serde(default)]
    pub provisioner_silent: Option<String>,
}

/// One check of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckExplained {
    /// `tcp`, `http`, …
    pub check: String,
    /// What it asks, and what passes.
    pub asks: String,
    /// Where it goes.
    pub at: String,
    /// Milliseconds from probe to probe.
    pub interval_ms: u64,
    /// Milliseconds until silence is a failure.
    pub timeout_ms: u64,
    /// Passes in a row that bring it back.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
    /// `up`, `down`, `unknown`.
    pub health: String,
    /// Seconds since this verdict.
    pub since_s: Option<u64>,
    /// Passes in a row towards coming back, while it is not up.
    pub passes: u32,
    /// So many it takes.
    pub passes_needed: u32,
    /// Failures in a row towards being taken out, while it is not down.
    pub failures: u32,
    /// What the last probe found; none: it was not asked yet.
    pub found: Option<String>,
    /// Seconds since then.
    pub found_s: Option<u64>,
    /// How often in a row it could not be made on this host.
    pub blind: u32,
}

/// A server's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// The configuration's.
    pub configured: u32,
    /// What the kernel is to have; none: it is to be out.
    pub wanted: Option<u32>,
    /// What the kernel had at the last pass; none: it was not there.
    pub kernel: Option<u32>,
}

/// What the kernel counts of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Its weight.
    pub weight: u32,
    /// Established connections.
    pub active: u32,
    /// All others that are not over.
    pub inactive: u32,
    /// Clients that persistence binds to it.
    pub persistent: u32,
}

/// A failed server that is to be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentExplained {
    /// `open`, `requested` or `cancelling`.
    pub stage: String,
    /// Seconds since the server failed, or since the last attempt came to nothing.
    pub since_s: u64,
    /// What holds the request back.
    pub guard: Option<String>,
    /// The same in words, or how far it has come.
    pub detail: String,
    /// Seconds until the guard lets go, where it is a matter of time.
    pub until_s: Option<u64>,
    /// The replacement's id, once known.
    pub replacement: Option<String>,
}

/// An explanation, and whom to ask for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// What the director knows.
    pub explanation: Explanation,
    /// The same as a key.
    pub server: DestKey,
    /// Who tells of its replacement.
    pub ask: Option<(Endpoint, ReplacementId)>,
}
