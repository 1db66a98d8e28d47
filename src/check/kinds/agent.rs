//! The server says a word on itself when it is connected to, as `HAProxy`'s agent-check.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{
    super::{Unprepared, call::Call, errno},
    Kind, words,
};
use crate::model::{FailReason, Phase, TcpCheck};

/// No agent has more to say.
const LONGEST: u64 = 4_096;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Agent {
    send: Vec<u8>,
}

impl Kind for Agent {
    type Options = TcpCheck;

    fn prepare(options: &TcpCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            send: options.send.clone(),
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let mut stream = call.connect_to_talk().await?;
        let at = call.at;
        let mut line = Vec::new();
        let talking = async {
            stream.write_all(&self.send).await?;
            let mut reader = BufReader::new(&mut stream).take(LONGEST);
            reader.read_until(b'\n', &mut line).await
        };
        let talking = async {
            let talked = talking.await;
            talked.map_err(|error| errno::reason(&error, at, Phase::Answer))
        };
        call.hold(Phase::Answer, talking).await?;
        if line.is_empty() {
            return Err(FailReason::Reset);
        }
        settle(call, &line)
    }
}

/// Judges a line of words.
pub(super) fn settle(call: &mut Call<'_>, line: &[u8]) -> Result<(), FailReason> {
    let text = String::from_utf8_lossy(line);
    let said = words::read(text.trim_end());
    let Ok(said) = said else {
        call.quote(line);
        return Err(FailReason::Garbled);
    };
    call.advice = said.advice;
    if let Some(text) = &said.text {
        call.quote(text.as_bytes());
    }
    said.down.map_or(Ok(()), Err)
}
