//! The provisioner's tables as values: what the inventory folder says, what the store holds.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::machine::{Driver, Image};

/// A role: what a server is in the cluster (requirements: role code), with its operating system and
/// the software it needs, in order (R8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Role code, for example `web.shop.example`.
    pub code: String,
    /// Domain identifier: selects service configuration files.
    pub domain: String,
    /// Operating system as `ID-VERSION_ID` of os-release(5), for example `debian-12`.
    pub os: String,
    /// Software names in the order of installation.
    pub software: Vec<String>,
    /// Where a spare's way back to clients must lead through: the directors' addresses in its own
    /// network. Nothing is asked of a family that has none.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Addresses of clients, of which that is asked; any address outside where there is none.
    #[serde(default)]
    pub clients: Vec<IpAddr>,
    /// Which spares it takes, and how many are kept.
    #[serde(default)]
    pub spares: SparePolicy,
    /// Whether an operating system may be installed on a spare for it, which wipes its disk.
    #[serde(default)]
    pub install: bool,
}

/// Words about a server, as `rack = "r1"`.
pub type Labels = BTreeMap<String, String>;

/// Which spares a role takes, and how many are kept for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparePolicy {
    /// Labels without which a server is no spare for it.
    pub requires: Labels,
    /// Labels with which a spare goes first.
    pub prefers: Labels,
    /// Names of labels in which a spare had better differ from the failed server.
    pub apart: Vec<String>,
    /// So many spares are kept configured and tested.
    pub keep_warm: u32,
    /// Fewer usable spares than this are warned of.
    pub low_water: u32,
    /// Makes a server that had this role a spare again.
    pub cleanup: Option<Cleanup>,
}

/// How a server is cleaned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleanup {
    /// By a script.
    Script {
        /// Its text.
        script: String,
        /// It ends within this.
        timeout: Duration,
    },
    /// Its own driver installs the role's operating system anew, which wipes its disk.
    Reinstall,
}

/// A piece of software and how it is installed (R9). Commands run as `sh -c` on the spare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Software {
    /// Name.
    pub name: String,
    /// Only for this operating system; any where it is none.
    pub os: Option<String>,
    /// The text of the script that installs it.
    pub script: String,
    /// The script ends within this.
    pub timeout: Duration,
    /// Exit status 0: it is installed.
    pub check: Option<String>,
    /// Exit status 0: it runs.
    pub running: Option<String>,
    /// Starts it.
    pub start: Option<String>,
    /// Makes it read its configuration again.
    pub reload: Option<String>,
    /// Software of the same role that is installed before it.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Names of secrets that its script finds in its environment.
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// A service configuration file (R10): (domain, software, path) -> text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFile {
    /// Domain identifier.
    pub domain: String,
    /// Software name.
    pub software: String,
    /// Absolute path on the server.
    pub path: String,
    /// Text, a minijinja template where `template` is set.
    pub body: String,
    /// Whether `body` is a template.
    pub template: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner's name.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// Asked of a new content before it takes its place, `{file}` in it being where that lies: exit
    /// status 0, it is sound.
    #[serde(default)]
    pub validate: Option<String>,
}

/// A server as the files enrol it: a spare where it has no role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Name.
    pub name: String,
    /// Service addresses; each is a device identifier that finds this server.
    pub addresses: Vec<IpAddr>,
    /// Where its sshd listens.
    pub ssh_address: IpAddr,
    /// Port of its sshd.
    pub ssh_port: u16,
    /// Accepted host keys in OpenSSH's one-line form.
    pub host_keys: Vec<String>,
    /// Role code it serves from the start, none for a spare.
    pub role: Option<String>,
    /// What is said of it: rack, size, zone.
    #[serde(default)]
    pub labels: Labels,
    /// As a spare it is for these roles alone; for any where it names none.
    #[serde(default)]
    pub reserved_for: Vec<String>,
    /// Who installs an operating system on it.
    #[serde(default)]
    pub driver: Driver,
    /// Whether its disk may be wiped.
    #[serde(default)]
    pub wipe: bool,
    /// Host keys that were read from it at the first login after an installation. They are the
    /// store's: files do not have them.
    #[serde(default)]
    pub learnt_keys: Vec<String>,
}

impl Server {
    /// The host keys that it must show: those that were read from it after its installation, else
    /// those of the files.
    #[must_use]
    pub fn pins(&self) -> &[String] {
        match self.learnt_keys.as_slice() {
            [] => &self.host_keys,
            learnt => learnt,
        }
    }
}

/// All that an inventory folder says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// By code.
    pub roles: BTreeMap<String, Role>,
    /// In the order of the file; a name may stand once for each operating system.
    pub software: Vec<Software>,
    /// In the order of the file.
    pub files: Vec<ServiceFile>,
    /// By name.
    pub servers: BTreeMap<String, Server>,
    /// What installs operating systems, by the one it installs.
    #[serde(default)]
    pub images: BTreeMap<String, Image>,
}

/// Where a server of the pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// Known from the files.
    Enrolled,
    /// Free to be claimed.
    Ready,
    /// Claimed for a replacement.
    Claimed,
    /// Being configured.
    Configuring,
    /// Being tested.
    Testing,
    /// Configured for a role and tested, kept for the day it is needed.
    Standby,
    /// Holds a role.
    Serving,
    /// Held a role and failed.
    Failed,
    /// Failed a step: not used until released, with a reason.
    Quarantined,
    /// Being made a spare again.
    Cleaning,
}

impl ServerState {
    /// All of them, for metrics.
    pub const ALL: [Self; 10] = [
        Self::Enrolled,
        Self::Ready,
        Self::Claimed,
        Self::Configuring,
        Self::Testing,
        Self::Standby,
        Self::Serving,
        Self::Failed,
        Self::Quarantined,
        Self::Cleaning,
    ];

    /// The word in the store, the API and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Ready => "ready",
            Self::Claimed => "claimed",
            Self::Configuring => "configuring",
            Self::Testing => "testing",
            Self::Standby => "standby",
            Self::Serving => "serving",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
            Self::Cleaning => "cleaning",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

/// A server as `inventory list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// As enrolled by the files.
    pub server: Server,
    /// Where it stands.
    pub state: ServerState,
    /// The role it holds now, by the files or by a replacement.
    pub role: Option<String>,
    /// The replacement that gave it this role, if one did.
    pub by_replacement: Option<String>,
    /// The operating system it was last seen with.
    pub os_seen: Option<String>,
    /// Why it stands where it stands: the quarantine's reason, the replacement it is claimed for.
    pub reason: Option<String>,
}

/// One thing that `inventory apply` did, would do, or leaves alone because a replacement holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryChange {
    /// `add`, `change`, `remove`, or `held`.
    pub action: ChangeAction,
    /// What it is about: `role web.shop.example`, `server spare1`, `software nginx`, `file …`.
    pub object: String,
    /// What differs, or which replacement holds it.
    pub detail: String,
}

/// What becomes of an object of the inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// New in the files.
    Add,
    /// Differs from the files.
    Change,
    /// Gone from the files.
    Remove,
    /// Differs from the files because a replacement gave it: left as it is.
    Held,
}

/// Answer to `inventory apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryAnswer {
    /// Whether anything was written.
    pub applied: bool,
    /// In order of object.
    pub changes: Vec<InventoryChange>,
}

/// Variables of a template and environment of a script.
pub type Variables = BTreeMap<String, String>;
