//! Time as a value: the rooms that decide are told what time it is.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Time since this host booted (`CLOCK_BOOTTIME`): never goes back, counts suspend, means nothing
/// after a reboot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MonoTime(Duration);

impl MonoTime {
    /// The boot.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The time `since_boot` after the boot.
    #[must_use]
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// How long after the boot.
    #[must_use]
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// This time plus `d`.
    #[must_use]
    pub const fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d))
    }

    /// How long `earlier` lies back; zero where it does not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Wall-clock time in milliseconds since 1970: for people and records, never for a decision.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallMillis(pub i64);

impl WallMillis {
    /// This time plus `d`.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        let ms = i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(ms))
    }
}

impl fmt::Display for WallMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
