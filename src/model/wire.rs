//! Messages between director and provisioner: JSON bodies of the HTTP API.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `PUT /v1/directors/{name}` | [`Registration`] | 200 [`RegistrationAnswer`] |
//! | `PUT /v1/directors/{name}/findings` | [`Findings`] | 204 |
//! | `GET /v1/directors/{name}/members?after=V&wait=S` | | 200 [`Members`] |
//! | `POST /v1/directors/{name}/members/{replacement}` | [`Confirmation`] | 204 |
//! | `POST /v1/directors/{name}/members/{replacement}/release` | | 204 |
//! | `POST /v1/replacements`, header `Idempotency-Key` | [`ReplacementRequest`] | 202 [`Replacement`], `Location` |
//! | `GET /v1/replacements` | | 200 list of [`Replacement`] |
//! | `GET /v1/replacements/{id}?after=V&wait=S` | | 200 [`Replacement`] |
//! | `GET /v1/replacements/{id}/log?step=NAME&run=R&after=OFFSET&wait=S` | | 200 [`LogPart`] |
//! | `POST /v1/replacements/{id}/cancel` | | 200 [`Replacement`] |
//! | `POST /v1/replacements/{id}/retry` | | 200 [`Replacement`] |
//! | `PUT /v1/inventory?dry_run=true` | [`super::inventory::Inventory`] | 200 [`super::inventory::InventoryAnswer`] |
//! | `GET /v1/inventory/servers` | | 200 list of [`super::inventory::ServerView`] |
//! | `POST /v1/servers/{name}/release` | | 204 |
//! | `POST /v1/servers/{name}/clean` | | 204 |
//! | `POST /v1/servers/{name}/quarantine` | [`QuarantineOrder`] | 204 |
//! | `POST /v1/servers/{name}/maintenance` | [`MaintenanceOrder`] | 204 |
//! | `GET /v1/roles` | | 200 list of [`RoleView`] |
//! | `GET /v1/roles/{code}/spares?failed=NAME` | | 200 [`SparesView`] |
//! | `POST /v1/roles/{code}/release` | | 204 |
//! | `GET /v1/roles/{code}/servers/{name}` | | 200 [`RoleLook`] |
//!
//! Errors are problem documents (RFC 9457): [`Problem`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use super::{CheckSpec, DirectorName, ForwardMethod, ReplacementId, Scheduler, ServiceKey, Weight};

/// The configuration request of R3: three addresses, and the director's name. Its idempotency key
/// (an [`super::IncidentKey`]'s text) travels in the header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplacementRequest {
    /// The failed server's device identifier.
    pub failed: IpAddr,
    /// The director's address (source).
    pub director: IpAddr,
    /// The provisioner's address (destination); another than its own is refused as `wrong_centre`.
    pub centre: IpAddr,
    /// The director's name.
    pub name: DirectorName,
}

/// Where a replacement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplacementState {
    /// Accepted; `reason` says what it waits for, for example a spare.
    Pending,
    /// Choosing a spare.
    Claiming,
    /// Steps 1 to 3 run on the spare.
    Configuring,
    /// Step 4 runs.
    Testing,
    /// The spare is configured and offered; a director puts it into service.
    Attaching,
    /// Every director concerned confirmed the attachment.
    Succeeded,
    /// Given up, `reason` says why.
    Failed,
    /// Cancelled by the director or an operator before it was attached.
    Cancelled,
    /// Its spare failed in its turn and was replaced.
    Superseded,
    /// Refused, `reason` says why.
    Refused,
}

impl ReplacementState {
    /// All of them, for metrics.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Claiming,
        Self::Configuring,
        Self::Testing,
        Self::Attaching,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Superseded,
        Self::Refused,
    ];

    /// The word in the store, the API and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Claiming => "claiming",
            Self::Configuring => "configuring",
            Self::Testing => "testing",
            Self::Attaching => "attaching",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Refused => "refused",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }

    /// Whether work is still to be done: no second one may begin for the same server.
    #[must_use]
    pub const fn is_live(self) -> bool {
        match self {
            Self::Pending
            | Self::Claiming
            | Self::Configuring
            | Self::Testing
            | Self::Attaching => true,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Superseded | Self::Refused => {
                false
            }
        }
    }
}

/// A spare as it is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// Its name in the inventory.
    pub name: String,
    /// All its service addresses; a place takes the nearest one.
    pub addresses: Vec<IpAddr>,
}

impl Spare {
    /// The address that takes the place of `of`; see [`nearest`].
    #[must_use]
    pub fn address_for(&self, of: IpAddr) -> Option<IpAddr> {
        nearest(&self.addresses, of)
    }
}

/// Of `addresses` the one of `of`'s family that shares most leading bits with it, so that a service
/// network is kept apart from a management network; the first of several.
#[must_use]
pub fn nearest(addresses: &[IpAddr], of: IpAddr) -> Option<IpAddr> {
    let shared = |a: &IpAddr| match (a, of) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        (IpAddr::V6(a), IpAddr::V6(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    };
    let mut best: Option<(u32, IpAddr)> = None;
    for address in addresses {
        if let Some(bits) = shared(address)
            && best.is_none_or(|(most, _)| bits > most)
        {
            best = Some((bits, *address));
        }
    }
    best.map(|(_, address)| address)
}

/// One journaled step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// Name of the server it runs on.
    pub server: String,
    /// `fence`, `os`, `install:nginx`, `configure:nginx`, `test`.
    pub step: String,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// Start, milliseconds since 1970.
    pub started_ms: i64,
    /// End, if it ended.
    pub ended_ms: Option<i64>,
    /// What it found, or why it failed.
    pub detail: String,
    /// SHA-256, in hex, of what it was told to do.
    #[serde(default)]
    pub digest: String,
    /// It is over after this many milliseconds.
    #[serde(default)]
    pub limit_ms: u64,
    /// How often it was ordered on this server, after crashes too.
    #[serde(default)]
    pub tries: u64,
    /// What makes it safe to order it again.
    #[serde(default)]
    pub repeatable: String,
}

/// A role held against a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleLook {
    /// The role's code.
    pub role: String,
    /// The server's name.
    pub server: String,
    /// What would be done to it.
    pub steps: Vec<PlannedStep>,
    /// Why the server could not be read, where it could not.
    pub unread: Option<String>,
    /// How it differs from the role.
    pub differences: Vec<RoleDifference>,
}

/// A step that would be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Its name.
    pub step: String,
    /// It would be over after this many milliseconds.
    pub limit_ms: u64,
    /// Scripts, commands, files and questions, for people; secrets by name.
    pub text: String,
}

/// What is not on a server as its role says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleDifference {
    /// `os`, `software nginx`, or a file's path.
    pub object: String,
    /// What it is instead.
    pub detail: String,
    /// Lines that would go (`-`) and come (`+`); secrets are covered.
    pub diff: String,
}

/// What a step printed, from an offset on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// Name of the server it runs on.
    pub server: String,
    /// Which step.
    pub step: String,
    /// Names the step among all of the replacement; where it is another than before, offsets begin
    /// anew.
    pub run: String,
    /// The text from `after` on. A line in it says where something was left out.
    pub text: String,
    /// Ask for what comes after this.
    pub next: u64,
    /// Whether the step has ended: no more text will come.
    pub ended: bool,
    /// Whether no further step can follow.
    pub over: bool,
}

/// A replacement as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// Its id.
    pub id: ReplacementId,
    /// The idempotency key it was asked for with.
    pub key: String,
    /// Who asked.
    pub director: DirectorName,
    /// The failed server's device identifier.
    pub failed: IpAddr,
    /// The server whose place in the configuration is to be taken: `failed`, or, where `failed` was
    /// itself a stand-in, the configured server at the chain's start.
    pub origin: IpAddr,
    /// The role that its last spare was claimed for.
    #[serde(default)]
    pub role: Option<String>,
    /// Where it stands.
    pub state: ReplacementState,
    /// Why it stands there, where that needs a word: `no_spare: …`.
    pub reason: Option<String>,
    /// The spare, only once it is configured and tested (R13).
    pub spare: Option<Spare>,
    /// Servers that were passed over or failed, each with the reason.
    pub passed_over: Vec<PassedOver>,
    /// Its steps so far.
    pub steps: Vec<StepView>,
    /// Grows with every change of this replacement.
    pub version: u64,
}

/// A server that was not used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Its name.
    pub server: String,
    /// Why.
    pub reason: String,
}

/// Puts a spare aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineOrder {
    /// Why.
    pub reason: String,
    /// For so many seconds; until it is released where there are none.
    pub seconds: Option<u64>,
}

/// Keeps a server from being chosen as a spare, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceOrder {
    /// Why; none ends it.
    pub reason: Option<String>,
}

/// How many spares a role has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleView {
    /// Its code.
    pub role: String,
    /// Servers that have it.
    pub servers: usize,
    /// Spares that could be claimed and with which nothing is known to be wrong.
    pub usable: usize,
    /// Those of them that are kept warm.
    pub warm: usize,
    /// So many are to be kept warm.
    pub keep_warm: u32,
    /// Fewer usable ones are warned of.
    pub low_water: u32,
    /// That it has too few of them, in words.
    pub short: Option<String>,
    /// Why no spare that needs a step is tried for it, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// A spare that could be claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankedSpare {
    /// Its name.
    pub server: String,
    /// Whether it is configured and tested already.
    pub warm: bool,
    /// Whether the last look at it found something that keeps it from being used.
    #[serde(default)]
    pub trouble: bool,
    /// What speaks for it, and against it.
    pub why: String,
}

/// What would be chosen if a server failed now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparesView {
    /// The role.
    pub role: String,
    /// The server that is taken for the failed one, where one was named.
    pub failed: Option<String>,
    /// Those that can be claimed, the best first.
    pub ranked: Vec<RankedSpare>,
    /// Why not the others.
    pub not: Vec<PassedOver>,
    /// Number of servers that are no spares because they serve.
    pub serving: usize,
    /// Why no spare that needs a step is tried for the role, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// What the provisioner wants of a director for one stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// Be in service.
    Attach,
    /// Not be in service.
    Withdraw,
}

/// A stand-in of a director.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The replacement that made it.
    pub replacement: ReplacementId,
    /// All addresses of the configured server whose place it takes.
    pub origins: Vec<IpAddr>,
    /// Who it is.
    pub spare: Spare,
    /// What is wanted.
    pub want: Want,
    /// What the director has confirmed last.
    pub confirmed: Option<Want>,
}

/// A warm spare: configured and tested beforehand, so that a failure costs no more than its admission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Who it is.
    pub spare: Spare,
    /// The addresses of those configured servers of this director whose place it could take.
    pub in_place_of: Vec<IpAddr>,
}

/// What a director finds of the warm spares that it watches. Of one that is in neither list nothing is known: what was
/// said of it before stays, for some minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Findings {
    /// Those that do not pass its checks, by name, and why. Said again every minute as long as it is so.
    #[serde(default)]
    pub failing: BTreeMap<String, String>,
    /// Those that do.
    #[serde(default)]
    pub passing: BTreeSet<String>,
}

/// All stand-ins of a director: those to be attached, and those whose withdrawal is not confirmed. And
/// the warm spares that it is to watch beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Grows with every change.
    pub version: u64,
    /// Ordered by replacement.
    pub members: Vec<Member>,
    /// Ordered by name. A provisioner that knows of none says nothing of them.
    #[serde(default)]
    pub standbys: Vec<Standby>,
}

/// A director says that a stand-in is in (or out of) the kernel's table of every service concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// What is now the case.
    pub is: Want,
}

/// What a director tells at start and on reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Its address.
    pub address: IpAddr,
    /// Its virtual services.
    pub services: Vec<RegisteredService>,
}

/// A virtual service as a provisioner must know it: for templates and the service test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredService {
    /// Which.
    pub key: ServiceKey,
    /// Its scheduler.
    pub scheduler: Scheduler,
    /// Its forwarding method.
    pub forward: ForwardMethod,
    /// Its checks, as far as another host can make them.
    pub checks: Vec<CheckSpec>,
    /// Its configured real servers.
    pub servers: Vec<RegisteredServer>,
}

/// A real server of a registered service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredServer {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Weight.
    pub weight: Weight,
}

/// Answer to a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationAnswer {
    /// Servers that could not be replaced if they failed now.
    pub warnings: Vec<ServerWarning>,
}

/// Why a server could not be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerWarning {
    /// The server.
    pub server: IpAddr,
    /// `role_unknown`, `role_undefined`, `catalogue_empty`, `script_missing`, `template_error`, `no_spare`.
    pub code: String,
    /// In words, with the remedy.
    pub detail: String,
}

/// A problem document (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:understudy:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
    /// Machine word.
    pub code: String,
    /// After so many seconds it may be asked again, as the header `Retry-After` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem of a code.
    #[must_use]
    pub fn new(status: u16, title: &str, code: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:understudy:problem:{code}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
            code: code.to_owned(),
            retry_after_s: None,
        }
    }

    /// The same, to be asked again after so many seconds.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_place_takes_the_address_of_its_own_network() {
        let of = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        let addresses = [of("10.0.9.5"), of("10.77.1.21"), of("fd77:1::21")];
        assert_eq!(
            nearest(&addresses, of("10.77.1.11")),
            Some(of("10.77.1.21"))
        );
        assert_eq!(nearest(&addresses, of("10.0.9.4")), Some(of("10.0.9.5")));
        assert_eq!(
            nearest(&addresses, of("fd77:1::11")),
            Some(of("fd77:1::21"))
        );
        assert_eq!(nearest(&addresses[..2], of("fd77:1::11")), None);
    }
}
