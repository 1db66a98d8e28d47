//! What a service or a director does with clients and servers, as the configuration words it. PURE.

use std::{str::FromStr, time::Duration};

use serde::Deserialize;

/// What becomes of the persistent clients of a server that was quiesced: of their next connections, not of
/// those that they have.
///
/// Which of the two, the kernel says for all services of a network namespace together
/// (`net.ipv4.vs.expire_quiescent_template`, `ip_vs_check_template` in net/netfilter/ipvs/ip_vs_conn.c). A server
/// that was removed loses them whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeping {
    /// They stay with their server: HAProxy's `option persist`.
    Keep,
    /// They get another one: HAProxy's `option redispatch`.
    Cut,
}

impl Keeping {
    /// The kernel's setting that says which.
    pub const SETTING: &str = "net.ipv4.vs.expire_quiescent_template";

    /// What the setting has to be.
    #[must_use]
    pub const fn setting(self) -> bool {
        matches!(self, Self::Cut)
    }

    /// Its word in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Cut => "cut",
        }
    }
}

/// What becomes of a director's services when it is told to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStop {
    /// IPVS stays as it is.
    #[default]
    Leave,
    /// No new connections; when those that there are have ended, the services leave.
    Drain,
    /// The services leave at once.
    Clear,
}

impl FromStr for OnStop {
    type Err = NotOnStop;

    fn from_str(text: &str) -> Result<Self, NotOnStop> {
        match text {
            "leave" => Ok(Self::Leave),
            "drain" => Ok(Self::Drain),
            "clear" => Ok(Self::Clear),
            other => Err(NotOnStop(other.to_owned())),
        }
    }
}

/// A text that says not what becomes of services.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not what becomes of the services at the end: write leave, drain or clear")]
pub struct NotOnStop(String);

/// What is to be done, and how long its clients have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopPolicy {
    /// What becomes of the services.
    pub on_stop: OnStop,
    /// How long a drain lasts at most.
    pub timeout: Duration,
}
