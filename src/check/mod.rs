//! Asks real servers whether they serve. One file a kind of probe; [`run`] says when each is asked.
//!
//! A probe never blames a server for what this host could not do: a missing port or descriptor, or
//! a process that was stopped while the probe ran, is [`FailReason::Local`].

mod deadline;
mod errno;
mod http;
mod pace;
mod schedule;
mod tcp;

use std::{net::SocketAddr, time::Duration};

pub use schedule::{Network, Observer, Prober, Report, Target, TargetId, Targets, run, run_with};

use crate::model::{CheckKind, FailReason, Outcome, Phase};
use deadline::Deadline;

/// Asks the server at `at` once. One deadline, `timeout` from now, covers the whole probe.
///
/// Dropping the future ends the probe and closes its socket.
pub async fn probe(at: SocketAddr, kind: &CheckKind, timeout: Duration) -> Outcome {
    match ask(at, kind, timeout).await {
        Ok(()) => Outcome::Pass,
        Err(reason) => Outcome::Fail(reason),
    }
}

async fn ask(at: SocketAddr, kind: &CheckKind, timeout: Duration) -> Result<(), FailReason> {
    if *kind == CheckKind::None {
        return Ok(());
    }
    let mut deadline = Deadline::after(timeout);
    let stream = deadline.hold(Phase::Connect, tcp::connect(at)).await?;
    match kind {
        CheckKind::None | CheckKind::Tcp => Ok(()),
        CheckKind::Http {
            path,
            host,
            status_from,
            status_to,
        } => {
            let request = http::Request {
                at,
                path,
                host: host.as_deref(),
                wanted: *status_from..=*status_to,
            };
            deadline
                .hold(Phase::Answer, http::get(stream, request))
                .await
        }
    }
}
