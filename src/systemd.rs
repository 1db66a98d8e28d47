//! The service manager: notifications, watchdog, credentials. Without one, nothing happens.

use std::{
    env,
    ffi::OsStr,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    select,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{clock, model::MonoTime, telemetry::Heartbeat};

const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Pings within the watchdog's limit.
const PINGS: u32 = 4;

/// Says that the daemon does its work now.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// Says that the daemon is about to end.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Says that the end takes so much longer, counted from now: the service manager waits for it, beyond its
/// own limit too.
pub fn stopping_takes(longer: Duration) {
    let longer = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::ExtendTimeoutUsec(longer)]);
}

/// Says in one line what the daemon does, for `systemctl status`.
pub fn status(line: &str) {
    // A newline would begin another assignment.
    let line = line.replace(['\n', '\r'], " ");
    send(&[NotifyState::Status(&line)]);
}

/// Keeps the watchdog content while the core's heart beats, until `stop`. The core must beat at
/// least twice within `WatchdogSec`; when it does not, the pings cease and systemd starts the
/// daemon anew.
pub async fn watchdog(heartbeat: Heartbeat, stop: CancellationToken) {
    match sd_notify::watchdog_enabled() {
        Some(limit) => {
            let ping = || send(&[NotifyState::Watchdog]);
            pings(limit, heartbeat, clock::now, ping, stop).await;
        }
        None => stop.cancelled().await,
    }
}

async fn pings(
    limit: Duration,
    heartbeat: Heartbeat,
    now: impl Fn() -> MonoTime,
    mut ping: impl FnMut(),
    stop: CancellationToken,
) {
    let mut ticks = interval((limit / PINGS).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stalled = false;
    loop {
        select! {
            () = stop.cancelled() => return,
            // Cancel-safe per the docs of `tick`.
            _ = ticks.tick() => {}
        }
        let silent = now().since(*heartbeat.borrow());
        if silent <= limit / 2 {
            stalled = false;
            ping();
        } else if !stalled {
            stalled = true;
            error!(
                elapsed_ms = silent.as_millis(),
                "no progress: the watchdog is not fed until there is"
            );
        }
    }
}

/// The file of a credential that the unit loads (`LoadCredential=name:…`), if there is one.
#[must_use]
pub fn credential(name: &str) -> Option<PathBuf> {
    credential_in(env::var_os(CREDENTIALS_DIRECTORY)?.as_os_str(), name)
}

fn credential_in(directory: &OsStr, name: &str) -> Option<PathBuf> {
    // A name, never a path.
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(n)) if n == name);
    if !plain || parts.next().is_some() {
        return None;
    }
    let path = Path::new(directory).join(name);
    path.is_file().then_some(path)
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::{
        join,
        sync::watch,
        time::{Instant, advance},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_starves_when_the_core_stalls() {
        let begun = Instant::now();
        let now = || MonoTime::from_boot(begun.elapsed());
        let (beat, heartbeat) = watch::channel(now());
        let (fed_at, stop) = (Cell::new(Duration::ZERO), CancellationToken::new());
        let ping = || fed_at.set(begun.elapsed());
        join!(pings(LIMIT, heartbeat, now, ping, stop.clone()), async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                beat.send_replace(now());
            }
            let alive_for = fed_at.get();
            assert!(alive_for > Duration::from_secs(90), "{alive_for:?}");
            tokio::time::sleep(LIMIT * 4).await;
            let starved_at = fed_at.get();
            assert!(
                starved_at <= Duration::from_secs(100) + LIMIT / 2,
                "{starved_at:?}"
            );
            beat.send_replace(now());
            tokio::time::sleep(LIMIT / 2).await;
            assert!(fed_at.get() > starved_at, "fed again after progress");
            advance(LIMIT).await;
            stop.cancel();
        });
    }

    #[test]
    fn credentials_are_files_of_their_folder_only() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("credentials");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ssh_key"), "key").unwrap();
        std::fs::write(folder.path().join("other"), "other").unwrap();
        let found = |name| credential_in(dir.as_os_str(), name);
        assert_eq!(found("ssh_key"), Some(dir.join("ssh_key")));
        for none in [
            "other",
            "../other",
            "",
            ".",
            "..",
            "./ssh_key",
            "/etc/passwd",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
