//! Asks real servers whether they serve. `kinds/` has one file a kind of probe; [`run`] says when each
//! is asked.
//!
//! A probe never blames a server for what this host could not do: a missing port, descriptor or file,
//! or a process that was stopped while the probe ran, is [`FailReason::Local`].

mod call;
mod deadline;
mod errno;
mod expect;
mod files;
mod kinds;
mod net;
mod pace;
mod prepared;
mod schedule;
#[cfg(test)]
mod testing;
mod tls;

use std::{net::SocketAddr, sync::Arc, time::Duration};

pub use call::Stage;
pub use files::watch_files;
pub use schedule::{
    Network, Nudge, Observer, Prober, Report, Target, Targets, Ways, run, run_with,
};

use crate::model::{CheckKind, CheckSpec, CheckTiming, FailReason, Found, Outcome, Via};
pub use crate::prepare::Unprepared;
use call::Call;
use kinds::Asker;

/// A check ready to be made: what its options name has been read. It serves all checks of these
/// options, whichever way they go.
#[derive(Debug)]
pub struct Check(Asker);

impl Check {
    /// Reads what the options name. Blocks where they name files.
    ///
    /// # Errors
    ///
    /// See [`Unprepared`].
    pub fn prepare(kind: &CheckKind) -> Result<Self, Unprepared> {
        Asker::prepare(kind).map(Self)
    }

    /// Asks the server at `at` once, on the way and in the time that `spec` says. One deadline covers the
    /// whole probe.
    ///
    /// Dropping the future ends the probe and closes its socket.
    pub async fn probe(&self, at: SocketAddr, spec: &CheckSpec) -> Found {
        self.ask(at, spec, false).await.0
    }

    /// The same, with each stage of the way.
    pub async fn explain(&self, at: SocketAddr, spec: &CheckSpec) -> (Found, Vec<Stage>) {
        let (found, call) = self.ask(at, spec, true).await;
        (found, call.stages.unwrap_or_default())
    }

    /// The same; the call holds what the probe left open.
    async fn ask<'s>(
        &self,
        at: SocketAddr,
        spec: &'s CheckSpec,
        explain: bool,
    ) -> (Found, Call<'s>) {
        let at = spec.via.towards(at);
        let mut call = Call::begin(at, &spec.via, spec.timing.timeout, explain);
        let asked = self.0.ask(&mut call).await;
        let outcome = match call.judge(asked) {
            Ok(()) => Outcome::Pass,
            Err(reason) => Outcome::Fail(reason),
        };
        let found = Found {
            outcome,
            advice: call.advice,
            detail: call.detail.take().map(Arc::from),
            certificate_ends: call.certificate_ends,
            elapsed: call.elapsed(),
        };
        (found, call)
    }
}

/// Asks the server at `at` once, with nothing kept.
pub async fn probe(at: SocketAddr, kind: &CheckKind, timeout: Duration) -> Outcome {
    let spec = CheckSpec {
        kind: kind.clone(),
        via: Via::default(),
        timing: CheckTiming {
            timeout,
            ..CheckTiming::every(timeout)
        },
    };
    match Check::prepare(kind) {
        Ok(check) => check.probe(at, &spec).await.outcome,
        Err(error) => {
            tracing::warn!(error = %crate::telemetry::Chain(&error), server = %at, "check cannot be made");
            Outcome::Fail(FailReason::Local)
        }
    }
}
