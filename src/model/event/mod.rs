//! What happened, as hooks and `understudy events` tell it. Both roles speak this.

mod filter;
mod ring;

use std::{borrow::Cow, fmt, net::IpAddr, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{DestKey, DirectorName, ServiceKey, WallMillis, order::parse_server, time};

pub use filter::{EventFilter, EventsAsked, Wanted};
pub use ring::{EventPage, EventRing};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Info,
    /// Degraded, and somebody sees to it already: most often this program.
    Warning,
    /// Somebody must act.
    Error,
}

impl Severity {
    /// The least bad first.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// The word in files, documents and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A text that is no word of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no {what}: write one of {known}")]
pub struct NotAWord {
    what: &'static str,
    found: String,
    known: String,
}

fn word<T: Copy>(
    what: &'static str,
    all: &[T],
    label: fn(T) -> &'static str,
    text: &str,
) -> Result<T, NotAWord> {
    let found = all.iter().copied().find(|one| label(*one) == text);
    found.ok_or_else(|| NotAWord {
        what,
        found: text.to_owned(),
        known: all
            .iter()
            .map(|one| label(*one))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

impl FromStr for Severity {
    type Err = NotAWord;

    fn from_str(text: &str) -> Result<Self, NotAWord> {
        word("severity", &Self::ALL, Self::label, text)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $label:literal, $severity:ident;)+) => {
        /// What happened, in a word that later versions keep.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $label)] $kind,)+
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The word in files, documents and metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$kind => $label,)+ }
            }

            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$kind => Severity::$severity,)+ }
            }
        }
    };
}

kinds! {
    /// The process began.
    Started => "started", Info;
    /// The process, or its host, was stopped for a while.
    WasStopped => "was_stopped", Warning;
    /// A real server passes its checks.
    ServerUp => "server_up", Info;
    /// A real server fails its checks and is taken out.
    ServerDown => "server_down", Warning;
    /// A real server fails its checks and keeps its connections.
    ServerQuiesced => "server_quiesced", Warning;
    /// A real server passes, and stays out because it came and went.
    ServerHeldOut => "server_held_out", Warning;
    /// A server that was drained by order is out of its service.
    ServerDrained => "server_drained", Info;
    /// A server that is no longer wanted has left.
    ServerLeft => "server_left", Info;
    /// A check wants another weight of a real server, or no longer does.
    ServerWeight => "server_weight", Info;
    /// A check cannot be made on this host.
    CheckBlind => "check_blind", Warning;
    /// A certificate ends soon.
    CertificateEnds => "certificate_ends", Warning;
    /// Too few real servers of a service are up.
    QuorumLost => "quorum_lost", Error;
    /// Enough are up again.
    QuorumHeld => "quorum_held", Info;
    /// Servers stay in service though they fail: too few would be left.
    Panic => "panic", Error;
    /// Enough are up again.
    PanicOver => "panic_over", Info;
    /// An interface has no carrier.
    LinkDown => "link_down", Error;
    /// It has one again.
    LinkUp => "link_up", Info;
    /// Too many servers fail at once.
    MassFailure => "mass_failure", Error;
    /// No witness answers.
    DirectorCutOff => "director_cut_off", Error;
    /// The servers failed, the director is well.
    MassFailureReal => "mass_failure_real", Error;
    /// Servers do not fail in masses any more.
    MassFailureOver => "mass_failure_over", Info;
    /// Another host has a virtual address that is to be put on.
    AddressTaken => "address_taken", Error;
    /// A virtual address was taken off by somebody else.
    AddressLost => "address_lost", Warning;
    /// A virtual address is not as wanted for another reason.
    AddressTrouble => "address_trouble", Warning;
    /// A virtual address was put on.
    AddressPutOn => "address_put_on", Info;
    /// A virtual address was withdrawn.
    AddressWithdrawn => "address_withdrawn", Info;
    /// An operator ordered something of a server.
    Ordered => "ordered", Warning;
    /// An operator took that back.
    OrderTakenBack => "order_taken_back", Info;
    /// The time of an order is over.
    OrderEnded => "order_ended", Warning;
    /// Another configuration is in force.
    Reloaded => "reloaded", Info;
    /// Another configuration was not taken.
    ReloadRefused => "reload_refused", Error;
    /// A spare is asked for.
    ReplacementRequested => "replacement_requested", Warning;
    /// A guard holds the request back.
    ReplacementHeld => "replacement_held", Info;
    /// A replacement moved on.
    ReplacementProgress => "replacement_progress", Info;
    /// A spare serves in a failed server's place.
    ReplacementSucceeded => "replacement_succeeded", Info;
    /// A replacement came to nothing.
    ReplacementFailed => "replacement_failed", Error;
    /// A replacement is not needed any more.
    ReplacementCalledOff => "replacement_called_off", Info;
    /// A replacement cannot go on before somebody acts.
    ReplacementWaits => "replacement_waits", Error;
    /// The spares of a role fail in the same place: no more of them are tried.
    RoleStopped => "role_stopped", Error;
    /// A spare failed and is put aside.
    SpareQuarantined => "spare_quarantined", Error;
    /// A server is a spare again.
    SpareReleased => "spare_released", Info;
    /// A spare is configured and tested beforehand.
    SpareKeptWarm => "spare_kept_warm", Info;
    /// A server that had a role is clean, and a spare again.
    ServerCleaned => "server_cleaned", Info;
    /// What is known of a server as a spare, or wanted of it, has changed.
    ServerNoted => "server_noted", Info;
    /// The inventory was changed.
    InventoryChanged => "inventory_changed", Info;
    /// A director told the provisioner its services.
    DirectorRegistered => "director_registered", Info;
    /// A director has a stand-in in service, or out of it.
    StandInConfirmed => "stand_in_confirmed", Info;
    /// A stand-in was announced.
    StandInJoined => "stand_in_joined", Info;
    /// A stand-in is to leave.
    StandInLeaving => "stand_in_leaving", Info;
    /// A stand-in is given back.
    StandInGivenBack => "stand_in_given_back", Info;
    /// The provisioner does not know a stand-in that serves.
    StandInUnlisted => "stand_in_unlisted", Warning;
    /// A warm spare passes wherever it could be needed.
    StandbyReady => "standby_ready", Info;
    /// A warm spare does not pass: a failure would not be covered at once.
    StandbyFails => "standby_fails", Warning;
    /// The provisioner answers.
    ProvisionerUp => "provisioner_up", Info;
    /// The provisioner does not answer.
    ProvisionerDown => "provisioner_down", Warning;
    /// What must outlive the process could not be written.
    StateNotKept => "state_not_kept", Error;
    /// It is written again.
    StateKept => "state_kept", Info;
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl FromStr for EventKind {
    type Err = NotAWord;

    fn from_str(text: &str) -> Result<Self, NotAWord> {
        word("kind of event", Self::ALL, Self::label, text)
    }
}

/// Which daemon says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A director.
    Director,
    /// A provisioner.
    Provisioner,
}

/// A server as an event names it: at one port, or the whole of it. Written `10.77.1.11:80` or `10.77.1.11`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventServer {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: Option<u16>,
}

impl EventServer {
    /// Whether `other` is this server, or a port of it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.addr == other.addr && (self.port.is_none() || self.port == other.port)
    }
}

impl From<DestKey> for EventServer {
    fn from(dest: DestKey) -> Self {
        Self {
            addr: dest.addr,
            port: Some(dest.port),
        }
    }
}

impl From<IpAddr> for EventServer {
    fn from(addr: IpAddr) -> Self {
        Self { addr, port: None }
    }
}

impl fmt::Display for EventServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.addr, port)),
            None => write!(f, "{}", self.addr),
        }
    }
}

impl FromStr for EventServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, port) = parse_server(text)
            .ok_or_else(|| format!("{text:?} is no server: write 10.77.1.11 or 10.77.1.11:80"))?;
        Ok(Self { addr, port })
    }
}

impl TryFrom<String> for EventServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<EventServer> for String {
    fn from(server: EventServer) -> Self {
        server.to_string()
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The life of the process that says so: when that began, in milliseconds since 1970.
    pub run: u64,
    /// Counts that process's events, from 1.
    pub number: u64,
    /// When, for people: in JSON as RFC 3339 has it, in UTC.
    #[serde(with = "time::rfc3339")]
    pub at: WallMillis,
    /// How bad.
    pub severity: Severity,
    /// What.
    pub kind: EventKind,
    /// Who says so.
    pub role: Role,
    /// The director concerned.
    pub director: Option<DirectorName>,
    /// The virtual service concerned.
    pub service: Option<ServiceKey>,
    /// The server concerned.
    pub server: Option<EventServer>,
    /// The replacement concerned: its id, or the key of the request.
    pub replacement: Option<String>,
    /// Why, in a word of a closed set: a check's reason, a guard, a replacement's state.
    pub reason: Option<Cow<'static, str>>,
    /// The whole in a sentence.
    pub text: String,
    /// Who did it, where somebody did: a user, a director, an engine. Of a provisioner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Where that one spoke from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

impl Event {
    /// Names this event for ever: a receiver that has seen it has seen this event.
    #[must_use]
    pub fn id(&self) -> String {
        let by = match (self.role, &self.director) {
            // Its events are about directors, and one's numbers are not the other's.
            (Role::Provisioner, _) => "provisioner",
            (Role::Director, Some(name)) => name.as_str(),
            (Role::Director, None) => "-",
        };
        format!("{by}/{}/{}", self.run, self.number)
    }
}

/// An event before it has a number and a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventDraft {
    /// What.
    pub kind: EventKind,
    /// The virtual service concerned.
    pub service: Option<ServiceKey>,
    /// The server concerned.
    pub server: Option<EventServer>,
    /// The replacement concerned.
    pub replacement: Option<String>,
    /// Why, in a word.
    pub reason: Option<Cow<'static, str>>,
    /// The whole in a sentence.
    pub text: String,
}

impl EventDraft {
    /// Of a kind, in words: on one line, whatever foreign text is in them.
    #[must_use]
    pub fn new(kind: EventKind, text: &str) -> Self {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        Self {
            kind,
            service: None,
            server: None,
            replacement: None,
            reason: None,
            text: text.chars().map(plain).collect(),
        }
    }

    /// About this service.
    #[must_use]
    pub fn service(mut self, service: ServiceKey) -> Self {
        self.service = Some(service);
        self
    }

    /// About this server.
    #[must_use]
    pub fn server(mut self, server: impl Into<EventServer>) -> Self {
        self.server = Some(server.into());
        self
    }

    /// About this replacement.
    #[must_use]
    pub fn replacement(mut self, replacement: &impl fmt::Display) -> Self {
        self.replacement = Some(replacement.to_string());
        self
    }

    /// For this reason.
    #[must_use]
    pub fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(Cow::Borrowed(reason));
        self
    }
}

#[cfg(test)]
mod tests;
