//! What a director does about changes of the kernel's table that others made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What becomes of what others change in a virtual service.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DriftPolicy {
    /// It is put right.
    #[default]
    Repair,
    /// It is left, and warned of.
    Alert,
    /// It is left, and mentioned once.
    Respect,
}

impl DriftPolicy {
    /// The word in configurations and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Alert => "alert",
            Self::Respect => "respect",
        }
    }
}

impl fmt::Display for DriftPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A word that names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no policy for drift: write repair, alert or respect")]
pub struct NotADriftPolicy(String);

impl FromStr for DriftPolicy {
    type Err = NotADriftPolicy;

    fn from_str(text: &str) -> Result<Self, NotADriftPolicy> {
        match text {
            "repair" => Ok(Self::Repair),
            "alert" => Ok(Self::Alert),
            "respect" => Ok(Self::Respect),
            other => Err(NotADriftPolicy(other.to_owned())),
        }
    }
}
