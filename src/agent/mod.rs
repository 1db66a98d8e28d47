//! Puts tasks and channels together for each role; start, shutdown.

pub mod core;
pub mod director;
pub mod link;
pub mod provisioner;
pub mod state_file;

use std::{fs, io, path::Path};

use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};

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

/// Listens on a Unix socket for root and its group. A socket that a dead process left is taken
/// over, one that somebody listens on is not.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let message = "another process listens there: is this service already running?";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(path)?;
    Ok(listener)
}
