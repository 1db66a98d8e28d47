//! The director's state file: read once, replaced whole.

use std::{
    fs::{self, File},
    future::pending,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::{
    director::{Memory, Recall, recall},
    model::DirectorName,
};

/// What can go wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("the state file {} could not be {action}", path.display())]
pub struct Error {
    path: PathBuf,
    action: &'static str,
    #[source]
    source: io::Error,
}

/// The file, and what it held last.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Set while the file on disk is one that could not be used: it is kept aside, not overwritten.
    set_aside: bool,
    written: Option<Memory>,
}

impl StateFile {
    /// Reads `state.json` in `dir`.
    ///
    /// # Errors
    ///
    /// The folder cannot be made, or the file is there and cannot be read.
    pub fn open(dir: &Path, director: &DirectorName) -> Result<(Self, Recall), Error> {
        let path = dir.join("state.json");
        let fail = |action| {
            let path = path.clone();
            move |source| Error {
                path,
                action,
                source,
            }
        };
        fs::create_dir_all(dir).map_err(fail("given its folder"))?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail("read")(e)),
        };
        let found = recall(bytes.as_deref(), director);
        let set_aside = bytes.is_some() && matches!(found, Recall::Forgot(_));
        let written = match &found {
            Recall::Known(m) => Some(m.clone()),
            Recall::Forgot(_) => None,
        };
        Ok((
            Self {
                path,
                set_aside,
                written,
            },
            found,
        ))
    }

    /// Writes `memory` if it is not what the file holds; true where it was written.
    ///
    /// # Errors
    ///
    /// There is then no file: an old one would tell of stand-ins as they were.
    pub fn keep(&mut self, memory: Memory) -> Result<bool, Error> {
        if self.written.as_ref() == Some(&memory) {
            return Ok(false);
        }
        let fail = |action| {
            let path = self.path.clone();
            move |source| Error {
                path,
                action,
                source,
            }
        };
        if self.set_aside {
            let aside = self.path.with_extension("json.unreadable");
            match fs::rename(&self.path, aside) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail("set aside")(e)),
                Ok(()) | Err(_) => {}
            }
            self.set_aside = false;
        }
        let bytes = serde_json::to_vec_pretty(&memory).map_err(io::Error::other);
        let bytes = bytes.map_err(fail("written"))?;
        if let Err(e) = replace(&self.path, &bytes) {
            // An old memory is worse than none: with none, no stranger is removed before the
            // provisioner has spoken. A full disk still lets a file be removed.
            drop(fs::remove_file(&self.path));
            self.written = None;
            return Err(fail("written")(e));
        }
        self.written = Some(memory);
        Ok(true)
    }
}

/// A writing that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// A writing that takes longer is told of.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes the file on a thread of its own: a disk that hangs holds up neither a check nor IPVS.
#[derive(Debug)]
pub struct Keeper {
    /// Not here while it is written.
    file: Option<StateFile>,
    writing: Option<JoinHandle<(StateFile, Result<bool, Error>)>>,
    /// When the last writing failed, if it did.
    failed: Option<Instant>,
    /// When the last writing began.
    begun: Instant,
    path: PathBuf,
}

impl Keeper {
    /// Of this file.
    #[must_use]
    pub fn new(file: StateFile) -> Self {
        Self {
            path: file.path.clone(),
            begun: Instant::now(),
            file: Some(file),
            writing: None,
            failed: None,
        }
    }

    /// Begins to write `memory`, if nothing is being written, the file holds something else, and it did not
    /// fail just now.
    pub fn keep(&mut self, memory: impl FnOnce() -> Memory) {
        let Some(file) = &self.file else { return };
        if self.failed.is_some_and(|failed| failed.elapsed() < AGAIN) {
            return;
        }
        let memory = memory();
        if file.written.as_ref() != Some(&memory)
            && let Some(mut file) = self.file.take()
        {
            self.begun = Instant::now();
            self.writing = Some(spawn_blocking(move || {
                let kept = file.keep(memory);
                (file, kept)
            }));
        }
    }

    /// Whether nothing is being written: what was to be kept is kept, or cannot be.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.writing.is_none()
    }

    /// For how long a writing has gone on that should have ended long ago.
    #[must_use]
    pub fn hangs(&self) -> Option<Duration> {
        self.writing.as_ref()?;
        Some(self.begun.elapsed()).filter(|since| *since > PATIENCE)
    }

    /// Whether the last writing failed.
    #[must_use]
    pub const fn failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Waits for the end of a writing; for ever where there is none. Cancel-safe.
    ///
    /// # Errors
    ///
    /// See [`StateFile::keep`].
    pub async fn written(&mut self) -> Result<(), Error> {
        let Some(writing) = &mut self.writing else {
            return pending().await;
        };
        let ended = writing.await;
        self.writing = None;
        let kept = match ended {
            Ok((file, kept)) => {
                self.file = Some(file);
                kept.map(drop)
            }
            Err(panicked) => {
                // As where it could not be written. What it held is not known.
                drop(fs::remove_file(&self.path));
                self.file = Some(StateFile {
                    path: self.path.clone(),
                    set_aside: false,
                    written: None,
                });
                Err(Error {
                    path: self.path.clone(),
                    action: "written",
                    source: io::Error::other(panicked),
                })
            }
        };
        self.failed = kept.as_ref().err().map(|_| Instant::now());
        kept
    }
}

/// The old content or the new one, whatever dies when.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temp = path.with_extension("json.new");
    let mut file = File::create(&temp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temp, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn name() -> DirectorName {
        "lb1".parse().unwrap()
    }

    fn memory(next_incident: u64) -> Memory {
        let mut memory = Memory::empty("b".into(), name());
        memory.next_incident = next_incident;
        memory
    }

    #[test]
    fn what_is_kept_is_found_again_and_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, found) = StateFile::open(dir.path(), &name()).unwrap();
        assert!(matches!(found, Recall::Forgot(_)));
        let memory = memory(7);
        assert!(file.keep(memory.clone()).unwrap());
        assert!(!file.keep(memory.clone()).unwrap());
        let (_, found) = StateFile::open(dir.path(), &name()).unwrap();
        assert_eq!(found, Recall::Known(memory));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json"), b"{\"version\":9}").unwrap();
        let (mut file, found) = StateFile::open(dir.path(), &name()).unwrap();
        let Recall::Forgot(why) = found else {
            panic!("{found:?}")
        };
        assert!(why.contains("version 9"), "{why}");
        file.keep(memory(1)).unwrap();
        let aside = fs::read(dir.path().join("state.json.unreadable")).unwrap();
        assert_eq!(aside, b"{\"version\":9}");
    }

    #[test]
    fn a_memory_that_cannot_be_kept_leaves_no_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(dir.path(), &name()).unwrap();
        file.keep(memory(1)).unwrap();
        fs::create_dir(dir.path().join("state.json.new")).unwrap();
        file.keep(memory(2)).unwrap_err();
        let (_, found) = StateFile::open(dir.path(), &name()).unwrap();
        assert!(matches!(found, Recall::Forgot(_)), "{found:?}");
        fs::remove_dir(dir.path().join("state.json.new")).unwrap();
        assert!(file.keep(memory(2)).unwrap(), "tried again");
    }

    #[test]
    fn a_damaged_file_that_somebody_removed_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json"), b"garbage").unwrap();
        let (mut file, _) = StateFile::open(dir.path(), &name()).unwrap();
        fs::remove_file(dir.path().join("state.json")).unwrap();
        file.keep(memory(1)).unwrap();
    }
}
