//! A file of this host says a word on the server. It is read when it is due, and when it was written.

use std::{io, path::PathBuf};

use tokio::io::AsyncReadExt;

use super::{
    super::{Unprepared, call::Call},
    Kind, agent,
};
use crate::model::{FailReason, FileCheck, Phase};

/// The file's first line is read up to here.
const LONGEST: u64 = 4_096;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct File {
    options: FileCheck,
}

impl Kind for File {
    type Options = FileCheck;

    fn prepare(options: &FileCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            options: options.clone(),
        })
    }

    /// A file that is not there says nothing against the server: it is up, with its own weight.
    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let path = self.options.path_for(call.at);
        let mut why = None;
        let reading = async {
            let read = match read(path.clone()).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(b"up".to_vec()),
                read => read,
            };
            read.map_err(|error| {
                why = Some(error.to_string());
                FailReason::Local
            })
        };
        let read = call.hold(Phase::Answer, reading).await;
        if let Some(why) = why {
            call.note(format_args!("{}: {why}", path.display()));
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

async fn read(path: PathBuf) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(LONGEST).read_to_end(&mut text).await?;
    Ok(text)
}
