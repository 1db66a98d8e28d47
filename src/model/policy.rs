//! What a service or a director does with clients and servers, as the configuration words it. PURE.

use std::{str::FromStr, time::Duration};

use serde::Deserialize;

use super::Scheduler;

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

/// How a server comes in that is new to the director.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Initial {
    /// When it has passed its checks.
    #[default]
    Down,
    /// At once; it leaves when it fails.
    Up,
}

/// How a weight that grows step by step is to be told to a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramping {
    /// All weights of a service may be multiplied: only their proportions matter.
    Scaled,
    /// As it is: a weight is compared with connections, too.
    Whole,
    /// Not at all, and why.
    Never(&'static str),
}

impl Scheduler {
    /// What a slow start may do with the weights of its service (net/netfilter/ipvs, Linux 6.1).
    ///
    /// - `wlc`, `sed`, `nq` and `twos` divide connections by weights, `wrr` deals turns by them and takes out their
    ///   common divisor: a common factor changes nothing. `nq` gives an idle server a connection whatever its weight.
    /// - `lblc` and `lblcr` choose as `wlc`, and call a server overloaded that has more connections than weight
    ///   (`is_overloaded`): a factor would change that.
    /// - `rr` and `lc` see of a weight only whether it is 0. `dh` too.
    /// - `sh` and `mh` lay out their tables by weights: each step would move clients.
    /// - `fo` takes the highest weight alone, `ovf` the highest that has fewer connections than weight: there a weight
    ///   is a rank.
    #[must_use]
    pub fn ramping(&self) -> Ramping {
        match self.0.as_str() {
            "wlc" | "sed" | "nq" | "twos" | "wrr" => Ramping::Scaled,
            "lblc" | "lblcr" => Ramping::Whole,
            "rr" => Ramping::Never("it ignores weights: take wrr"),
            "lc" => Ramping::Never("it ignores weights: take wlc"),
            "sh" | "mh" => Ramping::Never(
                "clients are spread by weights, and each step would move some: take another scheduler, or leave slow_start out",
            ),
            "dh" => Ramping::Never(
                "it ignores weights: take another scheduler, or leave slow_start out",
            ),
            "fo" | "ovf" => Ramping::Never(
                "a weight is a rank there: take another scheduler, or leave slow_start out",
            ),
            _ => Ramping::Never(
                "nobody here knows what it makes of weights: take another scheduler, or leave slow_start out",
            ),
        }
    }
}
