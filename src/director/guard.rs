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
    /// As many replacements as may run at a time do.
    AtOnce {
        /// A server whose replacement runs.
        other: IpAddr,
    },
    /// As many as may run at a time for the servers of one service do.
    AtOncePerService {
        /// A server of the same service whose replacement runs.
        other: IpAddr,
    },
    /// As many were asked for within the last hour as may be.
    PerHour {
        /// The first of them is an hour old then.
        until: MonoTime,
    },
    /// What was asked for before in the same place came to nothing, or did not last.
    Backoff {
        /// It may be asked for again.
        until: MonoTime,
    },
    /// No server of the failed one's address family passes a check: more likely this director is cut
    /// off than right.
    AllServersDown,
    /// The link towards the server has no carrier.
    LinkDown {
        /// Of this interface.
        interface: String,
    },
    /// Too many servers failed at once; witnesses are asked.
    MassFailure,
    /// Too many servers failed at once, and no witness answers.
    CutOff,
}

impl Guard {
    /// Label values in metrics.
    pub const LABELS: [&'static str; 10] = [
        "replace_after",
        "provisioner_unheard",
        "at_once",
        "at_once_per_service",
        "per_hour",
        "backoff",
        "all_servers_down",
        "link_down",
        "mass_failure",
        "cut_off",
    ];

    /// The label of the panic threshold, which holds removals alone.
    pub const PANIC: &'static str = "panic";

    /// Labels of those that keep servers in.
    pub const KEEPS_IN: [&'static str; 4] = ["link_down", "mass_failure", "cut_off", Self::PANIC];

    /// The label value in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::ReplaceAfter { .. } => "replace_after",
            Self::ProvisionerUnheard => "provisioner_unheard",
            Self::AtOnce { .. } => "at_once",
            Self::AtOncePerService { .. } => "at_once_per_service",
            Self::PerHour { .. } => "per_hour",
            Self::Backoff { .. } => "backoff",
            Self::AllServersDown => "all_servers_down",
            Self::LinkDown { .. } => "link_down",
            Self::MassFailure => "mass_failure",
            Self::CutOff => "cut_off",
        }
    }

    /// When it ends by itself, where that is known.
    #[must_use]
    pub const fn until(&self) -> Option<MonoTime> {
        match self {
            Self::ReplaceAfter { until } | Self::PerHour { until } | Self::Backoff { until } => {
                Some(*until)
            }
            Self::ProvisionerUnheard
            | Self::AtOnce { .. }
            | Self::AtOncePerService { .. }
            | Self::AllServersDown
            | Self::LinkDown { .. }
            | Self::MassFailure
            | Self::CutOff => None,
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
            Self::AtOnce { other } => write!(f, "the replacement of {other} goes first (at_once)"),
            Self::AtOncePerService { other } => write!(
                f,
                "the replacement of {other}, of the same service, goes first (at_once_per_service)"
            ),
            Self::PerHour { .. } => f.write_str(
                "as many replacements were asked for within an hour as may be (per_hour)",
            ),
            Self::Backoff { .. } => f.write_str(
                "what was asked for before in this place came to nothing, or did not last: each time it waits twice as long",
            ),
            Self::AllServersDown => f.write_str(
                "no server of its address family is up: more likely this director is cut off itself; released when one passes its check",
            ),
            Self::LinkDown { interface } => write!(
                f,
                "the link of {interface} is down: nothing is known of the servers behind it; released when it is up"
            ),
            Self::MassFailure => f.write_str(
                "too many servers failed at once: released when a witness answers, or fewer fail",
            ),
            Self::CutOff => f.write_str(
                "too many servers failed at once, and no witness answers: this director is cut off itself; released when one answers",
            ),
        }
    }
}
