//! Puts tasks and channels together for each role; start, shutdown.

mod access;
pub mod addresses;
pub mod core;
mod counts;
pub mod director;
mod drains;
mod hints;
pub mod host;
mod identity;
pub mod link;
pub mod lock;
pub mod provisioner;
mod reader;
pub mod reload;
pub mod state_file;
mod stop;
mod ways;
mod witnesses;

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Completes when this process is told to end (SIGTERM, SIGINT).
fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
