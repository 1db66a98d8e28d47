//! Firewall marks of hidden services: ways on which probes travel as clients' packets do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A range of firewall marks, both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Lowest.
    pub from: u32,
    /// Highest.
    pub to: u32,
}

impl Marks {
    /// Whether a mark lies in it.
    #[must_use]
    pub const fn contains(&self, mark: u32) -> bool {
        self.from <= mark && mark <= self.to
    }
}

impl Default for Marks {
    /// 65,536 marks high up, where hands seldom count to.
    fn default() -> Self {
        Self {
            from: 0x7e00_0000,
            to: 0x7e00_ffff,
        }
    }
}

/// A text that is no range of marks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no range of firewall marks: write \"0x7e000000-0x7e00ffff\" or \"1000-1999\""
)]
pub struct NotMarks {
    found: String,
}

impl FromStr for Marks {
    type Err = NotMarks;

    fn from_str(text: &str) -> Result<Self, NotMarks> {
        let number = |t: &str| match t.trim().strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => t.trim().parse().ok(),
        };
        let range = text
            .split_once('-')
            .and_then(|(from, to)| Some((number(from)?, number(to)?)));
        match range {
            // Mark 0 is no mark.
            Some((from, to)) if 0 < from && from <= to => Ok(Self { from, to }),
            _ => Err(NotMarks {
                found: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_numbers() {
        assert_eq!("0x10-31".parse(), Ok(Marks { from: 16, to: 31 }));
        assert!(Marks { from: 16, to: 31 }.contains(31));
        for text in ["", "5", "0-5", "6-5", "a-b", "1-0x1ffffffff"] {
            assert!(text.parse::<Marks>().is_err(), "{text}");
        }
        let usual = Marks::default();
        assert_eq!(usual.to_string().parse(), Ok(usual));
    }
}
