//! Asks witnesses whether this director is cut off.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    check::probe,
    config::Witness,
    director::Event,
    model::{CheckKind, FailReason, IcmpCheck, Outcome, TcpCheck},
};

/// A witness that does not answer within this does not answer.
const LIMIT: Duration = Duration::from_secs(1);

/// Asks all at once, again and again as long as somebody wants to know, until `stop`.
pub(super) async fn run(
    mut wanted: watch::Receiver<Vec<Witness>>,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let work = async {
        loop {
            let witnesses = wanted.borrow_and_update().clone();
            if witnesses.is_empty() {
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let pause = time::sleep(LIMIT);
            let answered = ask(&witnesses).await;
            if events.send(Event::Witnessed(answered)).await.is_err() {
                return;
            }
            tokio::select! {
                () = pause => {}
                // Cancel-safe: `changed` only marks the value seen when it returns. Who asks anew has not to wait.
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    };
    tokio::select! {
        // Cancel-safe: it only asks.
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// How many answer.
async fn ask(witnesses: &[Witness]) -> usize {
    let mut asked = JoinSet::new();
    for witness in witnesses.iter().copied() {
        asked.spawn(async move {
            let at = SocketAddr::new(witness.addr, witness.port.unwrap_or(0));
            let kind = match witness.port {
                Some(_) => CheckKind::Tcp(TcpCheck::default()),
                None => CheckKind::Icmp(IcmpCheck::default()),
            };
            let found = probe(at, &kind, LIMIT).await;
            // A refusal is an answer.
            matches!(found, Outcome::Pass | Outcome::Fail(FailReason::Refused))
        });
    }
    let answers = asked.join_all().await.into_iter();
    answers.filter(|answered| *answered).count()
}
