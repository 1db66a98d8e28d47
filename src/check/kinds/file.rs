//! A file of this host says a word on the server. It is read when it is due, and when it was written.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::Semaphore, task};

use super::{
    super::{Unprepared, call::Call},
    Kind, agent,
};
use crate::model::{FailReason, FileCheck, Phase};

/// The file's first line is read up to here.
const LONGEST: u64 = 4_096;

/// So many readings at a time: on a file system that hangs each keeps a thread.
const READERS: usize = 8;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct File {
    options: FileCheck,
    readers: Arc<Semaphore>,
}

impl Kind for File {
    type Options = FileCheck;

    fn prepare(options: &FileCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            options: options.clone(),
            readers: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// A file that is not there says nothing against the server: it is up, with its own weight.
    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let path = self.options.path_for(call.at);
        let mut why = None;
        let reading = async {
            let read = match self.read(path.clone()).await {
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
    async fn read(&self, path: PathBuf) -> io::Result<Vec<u8>> {
        let permit = Arc::clone(&self.readers).acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        let reading = task::spawn_blocking(move || {
            let text = read(&path);
            drop(permit);
            text
        });
        reading.await?
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
        check::testing::{fail, prepared},
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
        let check = prepared(kind, Duration::from_millis(100));
        let at = "192.0.2.1:80".parse().unwrap();
        let mut all = Vec::new();
        for _ in 0..2 * READERS {
            all.push(check.probe(at).await);
        }
        // Lets the readers go.
        fs::write(&pipe, "down").unwrap();
        for found in all {
            assert_eq!(found.outcome, fail(FailReason::Local));
            let detail = found.detail.unwrap();
            assert!(detail.contains("not read in time"), "{detail}");
        }
    }
}
