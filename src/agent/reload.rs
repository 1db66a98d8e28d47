//! Reads the configuration, at the start and when it is to be read again: for an operator who waits for what
//! comes of it, or on SIGHUP.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tokio::{signal::unix::Signal, sync::mpsc, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::{
    api::operator::{Reading, ReadingFor},
    config,
};

/// A configuration as it was read.
#[derive(Debug)]
pub struct Loaded {
    /// It.
    pub config: config::Director,
    /// The SHA-256 of its file, in hexadecimal digits.
    pub digest: String,
}

/// A configuration on its way to the core, or what is wrong in it.
#[derive(Debug)]
pub struct Load {
    /// It.
    pub loaded: Result<Loaded, String>,
    /// What for; none: it is to be in force, and nobody waits for it.
    pub wish: Option<ReadingFor>,
}

/// Reads a director's configuration, for one that runs as a shadow if it is so.
///
/// # Errors
///
/// What is wrong in it, every mistake at its place.
pub fn load(path: &Path, shadow: bool) -> Result<Loaded, String> {
    parse(path, &read(path)?, shadow)
}

/// Reads a configuration's text.
///
/// # Errors
///
/// Why it cannot be read, in words.
pub fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| {
        let why = match e.kind() {
            io::ErrorKind::InvalidData => "is not UTF-8 text".to_owned(),
            _ => format!("cannot be read: {e}"),
        };
        format!("{}: {why}", path.display())
    })
}

fn parse(path: &Path, text: &str, shadow: bool) -> Result<Loaded, String> {
    let config = config::director::parse(path, text).map_err(|e| e.to_string())?;
    let config = if shadow { config.shadowed() } else { config };
    let digest = Sha256::digest(text);
    let digest = digest.iter().map(|b| format!("{b:02x}")).collect();
    Ok(Loaded { config, digest })
}

/// Reads when it is asked to, until `stop`.
pub async fn run(
    (file, shadow): (PathBuf, bool),
    mut asked: mpsc::Receiver<Reading>,
    mut hangup: Signal,
    loads: mpsc::Sender<Load>,
    stop: CancellationToken,
) {
    loop {
        let reading = tokio::select! {
            () = stop.cancelled() => return,
            // Cancel-safe, both: nothing is taken unless the branch wins.
            Some(reading) = asked.recv() => Some(reading),
            Some(()) = hangup.recv() => None,
        };
        let (text, wish) = match reading {
            Some(Reading { text, wish }) => (text, Some(wish)),
            None => (None, None),
        };
        let path = file.clone();
        let read = move || match text {
            Some((path, text)) => parse(&path, &text, shadow),
            None => load(&path, shadow),
        };
        // Off this thread: a large file takes a while, and a file system may hang.
        let read = tokio::select! {
            () = stop.cancelled() => return,
            read = spawn_blocking(read) => read,
        };
        let loaded = read.unwrap_or_else(|e| Err(e.to_string()));
        if loads.send(Load { loaded, wish }).await.is_err() {
            return;
        }
    }
}
