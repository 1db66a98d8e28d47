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

/// Wall-clock time for people and other programs: `2026-11-28T18:04:38.123Z` (RFC 3339), always in UTC and to the
/// millisecond.
pub(super) mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::WallMillis;

    /// Times past the year 9999 are that year's end.
    pub(super) fn text(at: WallMillis) -> String {
        let at = Timestamp::from_millisecond(at.0).unwrap_or(Timestamp::MAX);
        format!("{at:.3}")
    }

    pub(in crate::model) fn serialize<S: Serializer>(
        at: &WallMillis,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(*at))
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<WallMillis, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at: Timestamp = text.parse().map_err(D::Error::custom)?;
        Ok(WallMillis(at.as_millisecond()))
    }
}

impl WallMillis {
    /// As RFC 3339 has it: `2026-11-28T18:04:38.123Z`.
    #[must_use]
    pub fn rfc3339(self) -> String {
        rfc3339::text(self)
    }

    /// As mails have it (RFC 5322, section 3.3): `Sat, 28 Nov 2026 18:04:38 -0000`.
    #[must_use]
    pub fn rfc5322(self) -> String {
        let at = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::MAX);
        let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
        // Of times before the year 1 only, which no wall clock shows.
        printer.timestamp_to_string(&at).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people_are_written_as_the_standards_say() {
        let at = WallMillis(1_795_889_078_007);
        assert_eq!(at.rfc3339(), "2026-11-28T18:04:38.007Z");
        assert_eq!(at.rfc5322(), "Sat, 28 Nov 2026 18:04:38 -0000");
        assert_eq!(WallMillis(0).rfc3339(), "1970-01-01T00:00:00.000Z");
    }
}
