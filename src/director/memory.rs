//! The state file as text and value: the director's own memory, a cache of what the provisioner
//! knows too.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::model::{
    DirectorName, MonoTime, Order, OrderedPlace, ReplacementId, ServiceKey, Weight, wire::Member,
};

/// The version this program writes and reads.
const VERSION: u32 = 1;

/// What outlives the director's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    version: u32,
    /// The boot in which `since` has its meaning.
    pub boot_id: String,
    /// Whose memory it is.
    pub director: DirectorName,
    /// The next incident's number.
    pub next_incident: u64,
    /// Incidents whose replacement was asked for.
    pub incidents: Vec<RememberedIncident>,
    /// Stand-ins.
    pub members: Vec<Member>,
    /// Hidden services that were made.
    #[serde(default)]
    pub made: BTreeSet<ServiceKey>,
    /// What operators ordered.
    #[serde(default)]
    pub orders: Vec<RememberedOrder>,
    /// Who is on the way out.
    #[serde(default)]
    pub leaving: Vec<RememberedLeaving>,
    /// When replacements were asked for within the last hour.
    #[serde(default)]
    pub requested: Vec<MonoTime>,
    /// How often in one place.
    #[serde(default)]
    pub tries: Vec<RememberedTries>,
    /// The services of the configuration.
    #[serde(default)]
    pub services: BTreeSet<ServiceKey>,
}

/// A destination on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedLeaving {
    /// Where.
    #[serde(flatten)]
    pub place: OrderedPlace,
    /// Its end.
    pub until: MonoTime,
    /// Its weight before it was let go.
    #[serde(default)]
    pub weight: Option<Weight>,
}

/// How often a replacement was asked for in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedTries {
    /// The server that had failed there first.
    pub place: IpAddr,
    /// So often, with less than an hour between two of them.
    pub times: u32,
    /// When last.
    pub last: MonoTime,
}

/// What an operator ordered of a server in one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedOrder {
    /// Where.
    #[serde(flatten)]
    pub place: OrderedPlace,
    /// What.
    #[serde(flatten)]
    pub order: Order,
}

/// An incident whose replacement was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedIncident {
    /// The failed server.
    pub failed: IpAddr,
    /// The incident's number.
    pub number: u64,
    /// When the server failed.
    pub since: MonoTime,
    /// Its replacement, if the provisioner answered.
    pub replacement: Option<ReplacementId>,
}

impl Memory {
    /// A memory of this program's version in which nothing is remembered.
    #[must_use]
    pub const fn empty(boot_id: String, director: DirectorName) -> Self {
        Self {
            version: VERSION,
            boot_id,
            director,
            next_incident: 0,
            incidents: Vec::new(),
            members: Vec::new(),
            made: BTreeSet::new(),
            orders: Vec::new(),
            leaving: Vec::new(),
            requested: Vec::new(),
            tries: Vec::new(),
            services: BTreeSet::new(),
        }
    }
}

/// What the state file said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one, at the start")]
pub enum Recall {
    /// This.
    Known(Memory),
    /// Nothing that can be used, and why.
    Forgot(String),
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a state file's bytes; `None` where there is no file.
#[must_use]
pub fn recall(bytes: Option<&[u8]>, director: &DirectorName) -> Recall {
    let Some(bytes) = bytes else {
        return Recall::Forgot("there is no state file".to_owned());
    };
    match serde_json::from_slice::<Versioned>(bytes) {
        Ok(v) if v.version > VERSION => {
            return Recall::Forgot(format!(
                "the state file is of version {}, this program knows up to {VERSION}",
                v.version
            ));
        }
        Ok(_) | Err(_) => {}
    }
    match serde_json::from_slice::<Memory>(bytes) {
        Ok(m) if m.director != *director => Recall::Forgot(format!(
            "the state file is that of director {}, not of {director}",
            m.director
        )),
        Ok(m) => Recall::Known(m),
        Err(e) => Recall::Forgot(format!("the state file is damaged: {e}")),
    }
}
