//! What stands between 'failed' and 'request a spare'.

use std::{fmt, net::IpAddr};

use crate::model::MonoTime;

/// Why a request is held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The server has not failed for long enough.
    ReplaceAfter {
        /// It has then.
        until: MonoTime,
    },
    /// The provisioner has not yet said which stand-ins there are.
    ProvisionerUnheard,
    /// One replacement at a time.
    OneAtATime {
        /// The server whose replacement runs.
        other: IpAddr,
    },
    /// No server of the failed one's address family passes a check: more likely this director is cut
    /// off than right.
    AllServersDown,
}

impl Guard {
    /// Label values in metrics.
    pub const LABELS: [&'static str; 4] = [
        "replace_after",
        "provisioner_unheard",
        "one_at_a_time",
        "all_servers_down",
    ];

    /// The label value in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::ReplaceAfter { .. } => "replace_after",
            Self::ProvisionerUnheard => "provisioner_unheard",
            Self::OneAtATime { .. } => "one_at_a_time",
            Self::AllServersDown => "all_servers_down",
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplaceAfter { .. } => f.write_str("it has not failed for replace_after yet"),
            Self::ProvisionerUnheard => {
                f.write_str("the provisioner has not said which stand-ins there are: see that it runs")
            }
            Self::OneAtATime { other } => write!(f, "the replacement of {other} goes first"),
            Self::AllServersDown => f.write_str(
                "no server of its address family is up: more likely this director is cut off itself; released when one passes its check",
            ),
        }
    }
}
