//! The end of a director that is told to end: what its services need before its tasks stop.

use std::{collections::BTreeSet, io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};
use tracing::{info, warn};

use super::reader::Reader;
use crate::{
    director::{HANDSHAKE, stopping::connections_left},
    model::{KernelTable, OnStop, ServiceKey, StopPolicy},
    reconcile::plan::Desired,
    systemd,
    telemetry::Chain,
};

/// The core answers within this, or it hangs.
const ANSWER: Duration = Duration::from_secs(5);

/// The kernel has lost the services within this, or refuses.
const CLEARED: Duration = Duration::from_secs(10);

/// How often it is looked whether it is done.
const LOOK: Duration = Duration::from_millis(500);

/// The service manager waits so much longer each time it is told.
const MORE: Duration = Duration::from_secs(10);

/// What a director is told to end with.
#[derive(Debug)]
pub(super) struct Signals {
    term: Signal,
    int: Signal,
}

/// Which it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// SIGTERM: to end in order, as the configuration says.
    Term,
    /// SIGINT: to end at once, and leave the table.
    Int,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one. Cancel-safe: one that came is kept.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Term,
            _ = self.int.recv() => Told::Int,
        }
    }
}

/// The core's side: each question is a step towards the end, answered with the policy when it is made.
pub(super) type Asked = oneshot::Sender<StopPolicy>;

/// What it takes to wind a director down.
#[derive(Debug)]
pub(super) struct WindDown {
    pub(super) signals: Signals,
    pub(super) core: mpsc::Sender<Asked>,
    pub(super) desired: watch::Receiver<Desired>,
}

impl WindDown {
    /// Waits for the signal to end, and then until the services are as the configuration wants them left.
    pub(super) async fn run(mut self) {
        let told = self.signals.next().await;
        systemd::stopping();
        if told == Told::Int {
            return info!("director was interrupted: IPVS stays as it is");
        }
        // All that the reconciler was told to have, and hidden services of earlier runs.
        let mut ours: BTreeSet<ServiceKey> = self.desired.borrow().made.iter().copied().collect();
        ours.extend(self.desired.borrow().services.keys());
        match self.step().await {
            None => warn!("the core does not answer: IPVS stays as it is"),
            Some(StopPolicy {
                on_stop: OnStop::Leave,
                ..
            }) => info!("director ends: IPVS stays as it is"),
            Some(StopPolicy {
                on_stop: OnStop::Drain,
                timeout,
            }) => {
                self.drain(&ours, timeout).await;
                self.step().await;
                self.clear(&ours).await;
            }
            Some(StopPolicy {
                on_stop: OnStop::Clear,
                ..
            }) => self.clear(&ours).await,
        }
    }

    /// One step further; when it returns the core has said what it wants of the kernel.
    async fn step(&self) -> Option<StopPolicy> {
        let exchange = async {
            let (ask, answer) = oneshot::channel();
            self.core.send(ask).await.ok()?;
            answer.await.ok()
        };
        time::timeout(ANSWER, exchange).await.ok().flatten()
    }

    async fn drain(&mut self, ours: &BTreeSet<ServiceKey>, limit: Duration) {
        info!(
            limit_s = limit.as_secs(),
            "director ends: its servers get no new connections, those that they have may end; another SIGTERM ends the wait"
        );
        let mut idle = None;
        let what = |wanted: &Desired, table: &KernelTable| match connections_left(wanted, table) {
            None => Some("its servers are not at weight 0 yet".to_owned()),
            Some(0) => {
                let since: &mut Instant = idle.get_or_insert_with(Instant::now);
                (since.elapsed() < HANDSHAKE)
                    .then(|| "connections may be on their way still".to_owned())
            }
            Some(n) => {
                idle = None;
                Some(format!("{n} connections are left"))
            }
        };
        match self.wait(ours, limit, what).await {
            None => info!("no connection is left"),
            Some(left) => warn!("the drain is over: {left}"),
        }
    }

    async fn clear(&mut self, ours: &BTreeSet<ServiceKey>) {
        let what = |_: &Desired, table: &KernelTable| match table.len() {
            0 => None,
            n => Some(format!("{n} services are left")),
        };
        match self.wait(ours, CLEARED, what).await {
            None => info!("the director's services were removed from IPVS"),
            // In the text too: whoever reads the journal sees no fields.
            Some(left) => warn!(
                "the director's services could not be removed from IPVS: {left}; see the log for what the kernel refused, and understudy ipvs list"
            ),
        }
    }

    /// Looks at the table until nothing is left to do, for so long at most, or until another signal comes;
    /// what was left then.
    async fn wait(
        &mut self,
        ours: &BTreeSet<ServiceKey>,
        limit: Duration,
        mut left: impl FnMut(&Desired, &KernelTable) -> Option<String>,
    ) -> Option<String> {
        let until = Instant::now() + limit;
        let mut reader = Reader::default();
        let keys: Vec<ServiceKey> = ours.iter().copied().collect();
        let mut told = Instant::now();
        loop {
            let found = match reader.read(&keys).await {
                Ok(table) => left(&self.desired.borrow(), &table),
                Err(e) => Some(format!("the kernel's table cannot be read: {}", Chain(&e))),
            };
            let found = found?;
            let now = Instant::now();
            if now >= until {
                return Some(format!("{found} after {} s", limit.as_secs()));
            }
            if now >= told {
                systemd::stopping_takes(MORE);
                systemd::status(&format!("ends: {found}"));
                told = now + MORE / 4;
            }
            tokio::select! {
                _ = self.signals.next() => return Some(format!("{found}, and another signal came")),
                // Cancel-safe: nothing has begun.
                () = time::sleep_until((now + LOOK).min(until)) => {}
            }
        }
    }
}
