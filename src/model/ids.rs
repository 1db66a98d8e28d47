//! Names that must not be mixed up.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} must be 1 to {max} characters of a-z, 0-9, '-', '_' and '.', the first no '-' and no '.', not {found:?}"
)]
pub struct IdError {
    what: &'static str,
    max: usize,
    found: String,
}

fn checked(what: &'static str, max: usize, text: &str) -> Result<String, IdError> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if text.is_empty()
        || text.len() > max
        || text.starts_with(['.', '-'])
        || !text.chars().all(fine)
    {
        return Err(IdError {
            what,
            max,
            found: text.to_owned(),
        });
    }
    Ok(text.to_owned())
}

/// The name under which a director is known to its provisioner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DirectorName(String);

/// Names one replacement for ever: given by the provisioner, carries the director's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplacementId(String);

macro_rules! text_id {
    ($type:ident, $what:literal, $max:literal) => {
        impl $type {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                checked($what, $max, text).map(Self)
            }
        }
        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> Self {
                id.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(DirectorName, "a director's name", 64);
text_id!(ReplacementId, "a replacement's id", 128);

/// The idempotency key of one failure: `director/failed address/incident number`. The director
/// stores the number before it asks, so asking again after a crash names the same failure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IncidentKey {
    /// Who asks.
    pub director: DirectorName,
    /// The failed server's device identifier.
    pub failed: IpAddr,
    /// Counts this director's incidents.
    pub number: u64,
}

impl fmt::Display for IncidentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.director, self.failed, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_looks_like_an_option_or_a_hidden_file() {
        for name in ["", ".", "..", "-lb1", ".lb1", "LB1", "lb/1"] {
            assert!(name.parse::<DirectorName>().is_err(), "{name}");
        }
        assert!("lb-1.a_b".parse::<DirectorName>().is_ok());
    }
}
