//! What a check asks, and what a probe found.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What a probe asks of a real server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Nothing: the server counts as up.
    None,
    /// A TCP connection is accepted.
    Tcp,
    /// `GET path` over HTTP/1.1 is answered with a wanted status.
    Http {
        /// Path and query, begins with `/`.
        path: String,
        /// `Host` header; the address and port where it is none.
        host: Option<String>,
        /// Lowest wanted status.
        status_from: u16,
        /// Highest wanted status.
        status_to: u16,
    },
}

/// When a check runs and how many equal outcomes in a row make a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckTiming {
    /// From the start of a probe to the start of the next.
    pub interval: Duration,
    /// A probe without an answer fails after this.
    pub timeout: Duration,
    /// Passes in a row that bring a server back, at least 1.
    pub rise: u32,
    /// Failures in a row that take it out, at least 1.
    pub fall: u32,
}

/// A check as configured for a virtual service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// What is asked.
    pub kind: CheckKind,
    /// When.
    pub timing: CheckTiming,
}

/// How far a probe had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for the connection.
    Connect,
    /// Waiting for the answer.
    Answer,
}

/// Why a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailReason {
    /// Nothing listens: the connection was refused.
    Refused,
    /// The connection was reset or closed before the answer.
    Reset,
    /// The network or host is unreachable, or a router said so.
    Unreachable,
    /// Nothing came in time.
    TimedOut(Phase),
    /// An HTTP status outside the wanted range.
    Status(u16),
    /// The answer is not HTTP.
    Garbled,
    /// This host could not probe: no socket, no port, no memory. Says nothing of the server.
    Local,
}

impl FailReason {
    /// The label value in metrics: a closed set.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::TimedOut(Phase::Connect) => "connect_timed_out",
            Self::TimedOut(Phase::Answer) => "answer_timed_out",
            Self::Status(_) => "status",
            Self::Garbled => "garbled",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::Reset => f.write_str("connection closed before the answer"),
            Self::Unreachable => f.write_str("host or network unreachable"),
            Self::TimedOut(Phase::Connect) => f.write_str("no connection in time"),
            Self::TimedOut(Phase::Answer) => f.write_str("no answer in time"),
            Self::Status(s) => write!(f, "HTTP status {s}"),
            Self::Garbled => f.write_str("the answer is not HTTP"),
            Self::Local => f.write_str("this host could not probe"),
        }
    }
}

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The server answered as asked.
    Pass,
    /// It did not.
    Fail(FailReason),
}
