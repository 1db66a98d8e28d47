//! A file of this host says a word on the server. It is read when it is due, and when it was written.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    super::{Unprepared, call::Call, prepared},
    Kind, agent,
};
use crate::model::{FailReason, FileCheck, Phase};

/// The file's first line is read up to here.
const LONGEST: u64 = 4_096;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct File {
    options: FileCheck,
    /// For whom is being read: on a file system that hangs each reading keeps a thread.
    reading: Arc<Mutex<BTreeSet<SocketAddr>>>,
}

impl Kind for File {
    type Options = FileCheck;

    fn prepare(options: &FileCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            options: options.clone(),
            reading: Arc::default(),
        })
    }

    /// A file that is not there says nothing against the server: it is up, with its own weight.
    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let at = call.at;
        let path = self.options.path_for(at);
        let mut why = None;
        let reading = async {
            let read = match self.read(at, path.clone()).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(b"up".to_vec()),
                read => read,
            };
            read.map_err(|error| {
                why = Some(error.to_string());
                FailReason::Local
            })
        };
        let read = call.hold(Phase::Answer, reading).await;
        if let Err(FailReason::TimedOut(_)) = read {
            // This host's file system, not the server.
            why = Some("it was not read in time: does its file system answer?".to_owned());
        }
        if let Some(why) = why {
            call.note(format_args!("{}: {why}", path.display()));
            return Err(FailReason::Local);
        }
        let text = read?;
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let judged = agent::settle(call, line);
        if judged == Err(FailReason::Garbled) {
            // Somebody's typing error is no failure of the server's.
            let found = call.detail.take().unwrap_or_default();
            call.note(format_args!(
                "{}: {found} is none of up, down, drain, maint, a weight or 75%",
                path.display()
            ));
            return Err(FailReason::Local);
        }
        judged
    }
}

impl File {
    async fn read(&self, at: SocketAddr, path: PathBuf) -> io::Result<Vec<u8>> {
        let Some(reading) = Reading::begin(&self.reading, at) else {
            return Err(io::Error::other(
                "it is still being read: does its file system answer?",
            ));
        };
        let text = prepared::read(move || {
            let text = read(&path);
            drop(reading);
            text
        });
        let text = text.await;
        text.unwrap_or_else(|| Err(io::Error::other("reading it panicked")))
    }
}

/// A reading for one server.
struct Reading {
    all: Arc<Mutex<BTreeSet<SocketAddr>>>,
    at: SocketAddr,
}

impl Reading {
    /// None where it is being read already.
    fn begin(all: &Arc<Mutex<BTreeSet<SocketAddr>>>, at: SocketAddr) -> Option<Self> {
        let mut set = all.lock().unwrap_or_else(PoisonError::into_inner);
        set.insert(at).then(|| Self {
            all: Arc::clone(all),
            at,
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut set = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        set.remove(&self.at);
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        check::testing::{SHORT, fail, prepared},
        model::CheckKind,
    };

    #[tokio::test]
    async fn a_file_that_cannot_be_read_in_time_blames_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("weight");
        // Whoever opens a pipe to read it waits for somebody who writes.
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let kind = CheckKind::FromFile(FileCheck {
            path: pipe.display().to_string(),
        });
        let check = prepared(kind, SHORT);
        let at = "192.0.2.1:80".parse().unwrap();
        let found = [check.probe(at).await, check.probe(at).await];
        // Lets the reader go, and takes what comes to it for its answer.
        fs::write(&pipe, "down").unwrap();
        let words = ["not read in time", "still being read"];
        for (found, words) in found.into_iter().zip(words) {
            assert_eq!(found.outcome, fail(FailReason::Local));
            let detail = found.detail.unwrap();
            assert!(detail.contains(words), "{detail}");
        }
        fs::remove_file(&pipe).unwrap();
        fs::write(&pipe, "down").unwrap();
        // The last reading may just be ending.
        let down = async {
            while check.probe(at).await.outcome != fail(FailReason::SaidDown) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let down = tokio::time::timeout(Duration::from_secs(20), down).await;
        down.expect("it is read again");
    }
}
