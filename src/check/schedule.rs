//! Runs all checks: one timer structure, a bounded set of probes in flight.
//!
//! ```text
//! watch<Arc<Targets>> ─► due times (DelayQueue) ─► probes (JoinSet) ─► mpsc<Report>
//!                              ▲                        │
//!                              └──── next time ◄────────┘
//! ```
//!
//! A target has at most one probe in flight. A full output queue loses a report and counts it: the
//! next probe of that target supersedes it.

use std::{
    collections::BTreeMap, future::poll_fn, net::SocketAddr, panic::resume_unwind, sync::Arc,
    time::Duration,
};

use tokio::{
    select,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::{
    sync::CancellationToken,
    time::{DelayQueue, delay_queue},
};
use tracing::{debug, warn};

use super::pace::{self, Pace};
use crate::model::{CheckSpec, DestKey, FailReason, Outcome, ServiceKey};

/// Probes in flight, each one descriptor: below the unit's `LimitNOFILE`, and as many silent
/// servers at an interval equal to the time-out.
const MAX_IN_FLIGHT: usize = 8_192;

/// A probe begun later than this (and than its interval) was held up by a stop of this process:
/// the start of all overdue probes is then spread anew.
const STOPPED: Duration = Duration::from_secs(1);

/// What is checked: a destination of a virtual service.
pub type TargetId = (ServiceKey, DestKey);

/// One check to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which; also where: the destination's address and port.
    pub id: TargetId,
    /// What is asked and when.
    pub spec: CheckSpec,
    /// Ask at the fast interval: somebody waits for the verdict, as for a spare that is to enter.
    pub fast: bool,
}

/// All checks to be run. Of two with the same id the later one counts.
pub type Targets = Vec<Target>;

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Virtual service.
    pub service: ServiceKey,
    /// Its destination.
    pub dest: DestKey,
    /// What was found.
    pub outcome: Outcome,
    /// How long the probe took.
    pub elapsed: Duration,
}

/// Counts what the schedule does.
pub trait Observer: Send + Sync + 'static {
    /// A probe ended.
    fn probed(&self, outcome: Outcome, elapsed: Duration);
    /// A probe was begun, `by` after it was due.
    fn begun_late(&self, by: Duration);
    /// A report found the output queue full.
    fn report_dropped(&self);
}

/// Asks a server once.
pub trait Prober: Send + Sync + 'static {
    /// Asks the server at `at` as `spec` says, within its time limit.
    fn probe(&self, at: SocketAddr, spec: &CheckSpec) -> impl Future<Output = Outcome> + Send;
}

/// The real prober.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

impl Prober for Network {
    fn probe(&self, at: SocketAddr, spec: &CheckSpec) -> impl Future<Output = Outcome> + Send {
        super::probe(at, &spec.kind, spec.timing.timeout)
    }
}

/// Checks `targets` over the network until `stop`, or until nobody sends targets or reads reports.
pub async fn run(
    targets: watch::Receiver<Arc<Targets>>,
    reports: mpsc::Sender<Report>,
    observer: impl Observer,
    stop: CancellationToken,
) {
    run_with(Network, targets, reports, observer, stop).await;
}

/// [`run`] with another prober.
pub async fn run_with(
    prober: impl Prober,
    mut targets: watch::Receiver<Arc<Targets>>,
    reports: mpsc::Sender<Report>,
    observer: impl Observer,
    stop: CancellationToken,
) {
    let mut schedule = Schedule {
        prober: Arc::new(prober),
        reports,
        observer,
        epoch: Instant::now(),
        watched: BTreeMap::new(),
        due: DelayQueue::new(),
        probes: JoinSet::new(),
        serial: 0,
        full_at: None,
    };
    targets.mark_changed();
    loop {
        let room = schedule.probes.len() < MAX_IN_FLIGHT;
        if !room {
            schedule.full_at = Some(Instant::now());
        }
        select! {
            biased;
            () = stop.cancelled() => return,
            // Cancel-safe: `changed` marks the value seen only when it returns.
            changed = targets.changed() => {
                if changed.is_err() {
                    warn!("nobody says what to check any more");
                    return;
                }
                let wanted = Arc::clone(&targets.borrow_and_update());
                schedule.adopt(&wanted);
            }
            // Cancel-safe per the docs of `join_next`.
            Some(end) = schedule.probes.join_next() => {
                if schedule.ended(end).is_err() {
                    warn!("nobody reads reports of checks any more");
                    return;
                }
            }
            // Cancel-safe: an entry leaves the queue only when it is returned.
            Some(entry) = poll_fn(|cx| schedule.due.poll_expired(cx)), if room => {
                schedule.begin(entry);
            }
        }
    }
}

/// The reports' receiver is gone.
struct Unread;

#[derive(Debug)]
struct Watched {
    spec: Arc<CheckSpec>,
    fast: bool,
    place: u64,
    pace: Pace,
    turn: Turn,
}

#[derive(Debug)]
enum Turn {
    Waits {
        timer: delay_queue::Key,
        /// Its start was spread anew after a stop: it is not put off again.
        respread: bool,
    },
    Runs {
        probe: AbortHandle,
        serial: u64,
    },
}

#[derive(Debug)]
struct Ended {
    id: TargetId,
    serial: u64,
    begun: Instant,
    outcome: Outcome,
    elapsed: Duration,
}

struct Schedule<P, O> {
    prober: Arc<P>,
    reports: mpsc::Sender<Report>,
    observer: O,
    /// Regular times are counted from here.
    epoch: Instant,
    watched: BTreeMap<TargetId, Watched>,
    due: DelayQueue<TargetId>,
    probes: JoinSet<Ended>,
    /// Tells a target's probe from an earlier one of a target with the same id.
    serial: u64,
    /// When there was no room for another probe last.
    full_at: Option<Instant>,
}

impl<P: Prober, O: Observer> Schedule<P, O> {
    /// Takes over what is to be checked. What did not change keeps its time and its memory.
    fn adopt(&mut self, targets: &Targets) {
        let wanted: BTreeMap<TargetId, &Target> = targets.iter().map(|t| (t.id, t)).collect();
        let due = &mut self.due;
        self.watched.retain(|id, known| {
            let keep = wanted.get(id).is_some_and(|t| t.spec == *known.spec);
            if !keep {
                match &known.turn {
                    Turn::Waits { timer, .. } => drop(due.try_remove(timer)),
                    Turn::Runs { probe, .. } => probe.abort(),
                }
            }
            keep
        });
        let now = Instant::now();
        let beginners = wanted.len().saturating_sub(self.watched.len());
        for (id, target) in wanted {
            if let Some(known) = self.watched.get_mut(&id) {
                if target.fast
                    && !known.fast
                    && let Turn::Waits { timer, .. } = &known.turn
                {
                    let soon = now + pace::fast_interval(&known.spec.timing);
                    let at = self.due.deadline(timer).min(soon);
                    self.due.reset_at(timer, at);
                }
                known.fast = target.fast;
                continue;
            }
            let place = pace::place(&format_args!("{} {}", id.0, id.1));
            let at = pace::first(now, place, beginners, &target.spec.timing);
            let watched = Watched {
                spec: Arc::new(target.spec.clone()),
                fast: target.fast,
                place,
                pace: Pace::default(),
                turn: Turn::Waits {
                    timer: self.due.insert_at(id, at),
                    respread: false,
                },
            };
            self.watched.insert(id, watched);
        }
    }

    /// Begins the probe of a target whose time has come.
    fn begin(&mut self, entry: delay_queue::Expired<TargetId>) {
        let (deadline, id) = (entry.deadline(), entry.into_inner());
        let all = self.watched.len();
        let Some(target) = self.watched.get_mut(&id) else {
            return;
        };
        let now = Instant::now();
        let late = now.saturating_duration_since(deadline);
        self.observer.begun_late(late);
        let respread = matches!(target.turn, Turn::Waits { respread: true, .. });
        let waited_for_room = self.full_at.is_some_and(|full| full >= deadline);
        if late > STOPPED.max(pace::interval(&target.spec.timing)) && !respread && !waited_for_room
        {
            // This process was stopped and everything is overdue at once.
            let at = pace::first(now, target.place, all, &target.spec.timing);
            target.turn = Turn::Waits {
                timer: self.due.insert_at(id, at),
                respread: true,
            };
            return;
        }
        self.serial += 1;
        let serial = self.serial;
        let (prober, spec) = (Arc::clone(&self.prober), Arc::clone(&target.spec));
        let at = SocketAddr::new(id.1.addr, id.1.port);
        let probe = self.probes.spawn(async move {
            let begun = Instant::now();
            let outcome = prober.probe(at, &spec).await;
            Ended {
                id,
                serial,
                begun,
                outcome,
                elapsed: begun.elapsed(),
            }
        });
        target.turn = Turn::Runs { probe, serial };
    }

    /// Reports what a probe found and sets the target's next time.
    fn ended(&mut self, end: Result<Ended, JoinError>) -> Result<(), Unread> {
        let end = match end {
            Ok(end) => end,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // Its target was dropped.
            Err(_aborted) => return Ok(()),
        };
        let (service, dest) = end.id;
        let Some(target) = self.watched.get_mut(&end.id) else {
            return Ok(());
        };
        if !matches!(target.turn, Turn::Runs { serial, .. } if serial == end.serial) {
            return Ok(());
        }
        let (outcome, elapsed) = (end.outcome, end.elapsed);
        debug!(%service, server = %dest, ?outcome, elapsed_ms = elapsed.as_millis(), "probed");
        self.observer.probed(outcome, elapsed);
        let timing = &target.spec.timing;
        target.pace.note(outcome, timing);
        let now = Instant::now();
        // Hurry does not help where this host is short of something.
        let local = outcome == Outcome::Fail(FailReason::Local);
        let at = if (target.fast || target.pace.suspected()) && !local {
            (end.begun + pace::fast_interval(timing)).max(now)
        } else {
            // A probe begun a little before its regular time must not be followed by another one
            // at that time.
            let not_before = (end.begun + pace::interval(timing) / 2).max(now);
            pace::regular(self.epoch, not_before, target.place, timing)
        };
        target.turn = Turn::Waits {
            timer: self.due.insert_at(end.id, at),
            respread: false,
        };
        let report = Report {
            service,
            dest,
            outcome,
            elapsed,
        };
        match self.reports.try_send(report) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.observer.report_dropped();
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Unread),
        }
    }
}

#[cfg(test)]
mod tests;
