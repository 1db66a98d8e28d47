//! The clocks that rooms without a clock are told about.

use std::{
    fs, io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

use crate::model::{MonoTime, WallMillis};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The boot's id could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{BOOT_ID} could not be read: is /proc mounted, and all of it?")]
pub struct NoBootId(#[source] io::Error);

/// Time since the boot, suspend included. Not the runtime's clock: tests that pause that one do
/// not pause this one.
#[must_use]
pub fn now() -> MonoTime {
    #[expect(
        clippy::expect_used,
        reason = "fails only for an unknown clock, and this one is older than any kernel that runs Rust's std"
    )]
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME is readable");
    MonoTime::from_boot(Duration::from(time))
}

/// Names this boot: times of [`now`] compare only within one.
///
/// # Errors
///
/// `/proc` does not show it.
pub fn boot_id() -> Result<String, NoBootId> {
    let text = fs::read_to_string(BOOT_ID).map_err(NoBootId)?;
    Ok(text.trim().to_owned())
}

/// Wall-clock time, for people and records. Zero before 1970.
#[must_use]
pub fn wall() -> WallMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_is_the_kernels_and_never_goes_back() {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let (first, second) = (now(), now());
        assert!(second >= first);
        let first = first.since_boot().as_secs_f64();
        // /proc/uptime is cut to hundredths.
        assert!(first >= uptime && first < uptime + 60.0, "{first} {uptime}");
    }

    #[test]
    fn a_boot_has_one_id() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(id, boot_id().unwrap());
    }

    #[test]
    fn the_wall_clock_counts_milliseconds() {
        assert!(wall().0 > 1_700_000_000_000);
    }
}
