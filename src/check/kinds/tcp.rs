//! A connection is accepted; what is sent is answered as expected.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    super::{Unprepared, call::Call, errno, expect::Matcher},
    Kind,
};
use crate::model::{FailReason, Phase, TcpCheck};

/// A greeting or answer has said what it has to say by then.
const LONGEST_TALK: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Tcp {
    send: Vec<u8>,
    expect: Option<Matcher>,
    hold: bool,
}

impl Kind for Tcp {
    type Options = TcpCheck;

    fn prepare(options: &TcpCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            send: options.send.clone(),
            expect: options.expect.as_ref().map(Matcher::prepare).transpose()?,
            hold: options.hold,
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let mut stream = match self.send.is_empty() {
            true => call.connect().await?,
            false => call.connect_to_talk().await?,
        };
        let at = call.at;
        if !self.send.is_empty() {
            let sending = async {
                let sent = stream.write_all(&self.send).await;
                sent.map_err(|error| errno::reason(&error, at, Phase::Answer))
            };
            call.hold(Phase::Answer, sending).await?;
        }
        if let Some(expect) = &self.expect {
            let mut seen = Vec::new();
            let reading = read(&mut stream, &mut seen, at, expect);
            let result = Box::pin(call.hold(Phase::Answer, reading)).await;
            if result.is_err() && !seen.is_empty() {
                call.quote(&seen);
            }
            // It said something, and then nothing more.
            result.map_err(|reason| match reason {
                FailReason::TimedOut(_) if !seen.is_empty() => FailReason::Mismatch,
                other => other,
            })?;
        }
        if self.hold {
            call.kept = Some(stream);
        }
        Ok(())
    }
}

/// Reads until the answer is judged.
async fn read(
    stream: &mut tokio::net::TcpStream,
    seen: &mut Vec<u8>,
    at: std::net::SocketAddr,
    expect: &Matcher,
) -> Result<(), FailReason> {
    loop {
        let more = stream.read_buf(seen).await;
        let more = more.map_err(|error| errno::reason(&error, at, Phase::Answer))?;
        let verdict = match more {
            0 if seen.is_empty() => return Err(FailReason::Reset),
            0 => expect.judge(seen, true),
            fresh => expect.judge_open(seen, fresh),
        };
        match verdict {
            Some(true) => return Ok(()),
            Some(false) => return Err(FailReason::Mismatch),
            None if seen.len() >= LONGEST_TALK => return Err(FailReason::TooLong),
            None => {}
        }
    }
}
