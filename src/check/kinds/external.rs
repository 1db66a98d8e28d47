//! A helper of the operator's is asked over a Unix socket: one line of JSON there, one back.
//!
//! There: `{"version":1,"name":"…","address":"10.0.0.1","port":80,"timeout_ms":1000}`. Back:
//! `{"status":"up"}`, with `"weight"` or `"percent"` if it is to have another, and `"detail"` for people.
//! `status` is a word of the agent's text.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::{
    super::{Unprepared, call::Call},
    Kind, words,
};
use crate::model::{Advice, ExternalCheck, FailReason, Phase};

/// A longer line is none of a helper's.
const LONGEST: u64 = 64 * 1024;

#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    name: &'a str,
    address: IpAddr,
    port: u16,
    timeout_ms: u64,
}

#[derive(Debug, Deserialize)]
struct Answer {
    status: String,
    weight: Option<u16>,
    percent: Option<u16>,
    detail: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct External {
    socket: PathBuf,
    name: String,
}

impl Kind for External {
    type Options = ExternalCheck;

    fn prepare(options: &ExternalCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            socket: options.socket.clone(),
            name: options.name.clone(),
        })
    }

    /// A helper that is not there, answers nonsense or nothing is this host's fault: it takes nobody
    /// out.
    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let question = Question {
            version: 1,
            name: &self.name,
            address: call.at.ip(),
            port: call.at.port(),
            timeout_ms: u64::try_from(call.limit().as_millis()).unwrap_or(u64::MAX),
        };
        let question = serde_json::to_vec(&question).map_err(|_never| FailReason::Local)?;
        let mut why = None;
        let talking = async {
            talk(&self.socket, question).await.map_err(|error| {
                why = Some(error.to_string());
                FailReason::Local
            })
        };
        let talked = call.hold(Phase::Answer, talking).await;
        if let Some(why) = why {
            call.note(format_args!("helper at {}: {why}", self.socket.display()));
        }
        let line = match talked {
            Err(FailReason::TimedOut(_)) => {
                call.note(format_args!(
                    "helper at {}: no answer in time",
                    self.socket.display()
                ));
                return Err(FailReason::Local);
            }
            talked => talked?,
        };
        let Some((answer, said)) = understand(&line) else {
            call.quote(&line);
            return Err(FailReason::Local);
        };
        call.advice = said.advice;
        call.advice = answer.percent.map(Advice::Percent).or(call.advice);
        call.advice = answer.weight.map(Advice::Weight).or(call.advice);
        if let Some(detail) = answer.detail {
            call.quote(detail.as_bytes());
        }
        said.down.map_or(Ok(()), Err)
    }
}

fn understand(line: &[u8]) -> Option<(Answer, words::Said)> {
    let answer: Answer = serde_json::from_slice(line).ok()?;
    let said = words::read(&answer.status).ok()?;
    Some((answer, said))
}

async fn talk(socket: &Path, mut question: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    question.push(b'\n');
    stream.write_all(&question).await?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream).take(LONGEST);
    if reader.read_until(b'\n', &mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}
