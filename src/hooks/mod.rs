//! Tells others of events: HTTP servers and people with a mailbox. No process is started for it.
//!
//! [`run`] has a worker for each hook. A worker follows the ring of events by itself, puts what its hook wants on a
//! pile of its own (`pile.rs`), and tells it in order, as often as it takes. Nobody waits for a worker: what it is
//! too slow for is dropped, the oldest first, counted, and told with the next that goes out.

mod backoff;
mod letter;
mod mail;
mod pile;
mod sign;
#[cfg(test)]
mod tests;
mod webhook;
mod worker;

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    model::{EventRing, Hook, Hooks},
    prepare::Unprepared,
};

/// What became of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// An attempt to tell succeeded.
    Ok,
    /// It failed, and is made again.
    Failed,
    /// So many events made room for newer ones.
    Dropped(u64),
    /// So many were given up for their age.
    GaveUp(u64),
}

/// Counts what becomes of a hook's events, by the hook's name.
pub type Observe = Arc<dyn Fn(&str, Told) + Send + Sync>;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("what it names on this host is not as it has to be")]
    Unprepared(#[source] Unprepared),
    #[error("a file that it names could not be read within {0:?}: does its file system answer?")]
    Hangs(Duration),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("it cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("no TLS with it")]
    Tls(#[source] io::Error),
    #[error("the connection broke before the answer")]
    Broken(#[source] hyper::Error),
    #[error("it answers with HTTP status {0}")]
    Status(u16),
    #[error("the request cannot be made")]
    Request(#[source] hyper::http::Error),
    #[error("the event cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    #[error("the relay did not take the mail: {0}")]
    Relay(String),
    #[error("reading what it names failed in this program")]
    Panicked,
}

/// A worker, from outside.
struct Hand {
    hook: watch::Sender<Arc<Hook>>,
    stop: CancellationToken,
}

/// Tells the hooks that `hooks` finds in the configuration in force, until `stop`.
pub async fn run<C>(
    mut config: watch::Receiver<Arc<C>>,
    hooks: fn(&C) -> &Hooks,
    ring: watch::Receiver<EventRing>,
    observe: Observe,
    stop: CancellationToken,
) {
    let mut workers: JoinSet<()> = JoinSet::new();
    let mut hands: BTreeMap<String, (Id, Hand)> = BTreeMap::new();
    // Hooks of the start are told what happened before this task ran, others what comes.
    let mut from = 0;
    loop {
        let config_now = Arc::clone(&config.borrow_and_update());
        let wanted = hooks(&config_now);
        hands.retain(|name, (_, hand)| {
            let stays = wanted.contains_key(name);
            if !stays {
                hand.stop.cancel();
                info!(hook = %name, "hook is not configured any more");
            }
            stays
        });
        for (name, hook) in wanted {
            if let Some((_, hand)) = hands.get(name) {
                hand.hook.send_if_modified(|old| {
                    let changed = **old != *hook;
                    if changed {
                        *old = Arc::new(hook.clone());
                    }
                    changed
                });
                continue;
            }
            let (sender, receiver) = watch::channel(Arc::new(hook.clone()));
            let hand = Hand {
                hook: sender,
                stop: stop.child_token(),
            };
            let worker = worker::Worker::new(
                name.clone(),
                receiver,
                ring.clone(),
                from,
                Arc::clone(&observe),
            );
            let id = workers.spawn(worker.run(hand.stop.clone())).id();
            hands.insert(name.clone(), (id, hand));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            // Cancel-safe: `changed` only marks the value seen when it returns.
            changed = config.changed() => if changed.is_err() { break },
            // Cancel-safe: a task stays in the set until it is returned.
            Some(ended) = workers.join_next(), if !workers.is_empty() => {
                if let Err(e) = ended {
                    // A mistake of this program: the others go on, and so does this one with what comes.
                    error!(error = %e, "worker of a hook failed, it begins anew");
                    hands.retain(|_, (id, _)| *id != e.id());
                }
            }
        }
        from = ring.borrow().newest();
    }
    stop.cancelled().await;
    while workers.join_next().await.is_some() {}
}
