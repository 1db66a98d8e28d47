//! One probe on its way: where it goes, how long it may take, and what it has found so far.

use std::{fmt, net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time::Instant};

use super::{deadline::Deadline, errno, net};
use crate::model::{Advice, FailReason, Phase, Via};

/// Characters of a foreign text that are kept for people.
const TOLD: usize = 120;

/// A stage of a probe, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Which.
    pub phase: Phase,
    /// How long it took.
    pub took: Duration,
    /// How it failed, if it did.
    pub failed: Option<FailReason>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// The server.
    pub(super) at: SocketAddr,
    /// How its sockets leave this host.
    pub(super) via: &'a Via,
    /// What the server wants of its weight.
    pub(super) advice: Option<Advice>,
    /// What is worth knowing beside the reason.
    pub(super) detail: Option<String>,
    /// When its certificate ends, in seconds since 1970.
    pub(super) certificate_ends: Option<i64>,
    /// A connection to be kept open until the next probe.
    pub(super) kept: Option<TcpStream>,
    /// Stages gone through, if anybody wants to know.
    pub(super) stages: Option<Vec<Stage>>,
    begun: Instant,
    deadline: Deadline,
}

impl<'a> Call<'a> {
    /// Its time begins now.
    pub(super) fn begin(at: SocketAddr, via: &'a Via, timeout: Duration, explain: bool) -> Self {
        let begun = Instant::now();
        Self {
            at,
            via,
            advice: None,
            detail: None,
            certificate_ends: None,
            kept: None,
            stages: explain.then(Vec::new),
            begun,
            deadline: Deadline::new(begun, timeout),
        }
    }

    /// Since it began.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The whole time.
    pub(super) const fn limit(&self) -> Duration {
        self.deadline.limit()
    }

    /// Runs `work` within what is left of the time.
    pub(super) async fn hold<T>(
        &mut self,
        phase: Phase,
        work: impl Future<Output = Result<T, FailReason>>,
    ) -> Result<T, FailReason> {
        let Some(stages) = &mut self.stages else {
            return self.deadline.hold(phase, work).await;
        };
        let begun = Instant::now();
        let result = self.deadline.hold(phase, work).await;
        let (took, failed) = (begun.elapsed(), result.as_ref().err().copied());
        match stages.last_mut() {
            // A login of many messages is one stage.
            Some(last) if last.phase == phase && last.failed.is_none() => {
                last.took += took;
                last.failed = failed;
            }
            _ => stages.push(Stage {
                phase,
                took,
                failed,
            }),
        }
        result
    }

    /// What the whole probe found. A kind judges an answer once it has it, outside of [`Self::hold`]: but
    /// a server may well have said "time-out" because this process was stopped.
    pub(super) fn judge<T>(&self, found: Result<T, FailReason>) -> Result<T, FailReason> {
        self.deadline.judge(found)
    }

    /// Connects.
    pub(super) async fn connect(&mut self) -> Result<TcpStream, FailReason> {
        let connecting = net::connect(self.at, self.via);
        self.hold(Phase::Connect, connecting).await
    }

    /// Connects, for a talk in short messages.
    pub(super) async fn connect_to_talk(&mut self) -> Result<TcpStream, FailReason> {
        let stream = self.connect().await?;
        // Under TLS for one, it would wait out the other side's delayed acknowledgements (RFC 1122,
        // section 4.2.3.2): 40 ms each.
        let set = stream.set_nodelay(true);
        set.map_err(|error| errno::reason(&error, self.at, Phase::Connect))?;
        Ok(stream)
    }

    /// Notes something for people.
    pub(super) fn note(&mut self, what: impl fmt::Display) {
        self.detail = Some(what.to_string());
    }

    /// Notes the beginning of a foreign text.
    pub(super) fn quote(&mut self, text: &[u8]) {
        self.detail = Some(quoted(text));
    }
}

/// The beginning of a foreign text: printable, on one line, in quotation marks.
pub(super) fn quoted(text: &[u8]) -> String {
    let mut told: String = text
        .iter()
        .take(TOLD)
        .flat_map(|byte| byte.escape_ascii())
        .map(char::from)
        .collect();
    if text.len() > TOLD {
        told.push('…');
    }
    format!("\"{told}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_came_during_a_stop_blames_nobody() {
        let (at, via) = ("192.0.2.1:1".parse().unwrap(), Via::default());
        for (stop_ms, told) in [(20_000, FailReason::Local), (200, FailReason::Status(408))] {
            let mut call = Call::begin(at, &via, Duration::from_secs(1), false);
            let stopped = async {
                tokio::time::advance(Duration::from_millis(stop_ms)).await;
                Ok(408)
            };
            let status = call.hold(Phase::Answer, stopped).await.unwrap();
            let judged: Result<(), _> = call.judge(Err(FailReason::Status(status)));
            assert_eq!(judged, Err(told), "stopped for {stop_ms} ms");
        }
    }

    #[tokio::test]
    async fn messages_of_one_phase_are_one_stage() {
        let (at, via) = ("192.0.2.1:1".parse().unwrap(), Via::default());
        let mut call = Call::begin(at, &via, Duration::from_secs(20), true);
        for (phase, result) in [
            (Phase::Greeting, Ok(())),
            (Phase::Login, Ok(())),
            (Phase::Login, Ok(())),
            (Phase::Login, Err(FailReason::LoginRefused)),
        ] {
            assert_eq!(call.hold(phase, async { result }).await, result);
        }
        let stages = call.stages.unwrap();
        let told: Vec<_> = stages.iter().map(|s| (s.phase, s.failed)).collect();
        let expected = [
            (Phase::Greeting, None),
            (Phase::Login, Some(FailReason::LoginRefused)),
        ];
        assert_eq!(told, expected);
    }
}
