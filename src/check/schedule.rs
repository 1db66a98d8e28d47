//! Runs all checks: one timer structure, a bounded set of probes in flight.
//!
//! ```text
//! watch<Arc<Targets>> ─► due times (DelayQueue) ─► probes (JoinSet) ─► mpsc<Report>
//! mpsc<Nudge> ─────────►       ▲                        │
//!                              └──── next time ◄────────┘
//! ```
//!
//! A target has at most one probe in flight, and a second one while the first is silent, whoever asks
//! for it: all services that ask the same of the same server have one target. A full output queue loses a report and counts it: the next probe
//! of that target supersedes it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use slab::Slab;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    select,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::{
    sync::CancellationToken,
    time::{DelayQueue, delay_queue},
};
use tracing::{debug, error, warn};

use super::{
    Check, Unprepared, errno,
    pace::{self, Lateness, Pace, Punctuality},
    prepared::Prepared,
};
use crate::model::{CheckKind, CheckSpec, CheckTiming, FailReason, Found, Outcome, Phase, Slot};

/// Probes in flight, each one descriptor: below the unit's `LimitNOFILE`, and as many silent
/// servers at an interval equal to the time-out.
const MAX_IN_FLIGHT: usize = 8_192;

/// A probe begun later than this (and than its interval) was held up by a stop of this process:
/// the start of all overdue probes is then spread anew.
const STOPPED: Duration = Duration::from_secs(1);

/// A hint does not have anybody asked again sooner than this.
const HINT_GAP: Duration = Duration::from_millis(500);

/// A connection that was kept and ended is replaced at once, but no more often than this.
const RECONNECT: Duration = Duration::from_millis(50);

/// One thing to be asked, for all who want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The server: what its check says goes before.
    pub at: SocketAddr,
    /// What is asked and when.
    pub spec: Arc<CheckSpec>,
    /// For whom.
    pub slots: Arc<[Slot]>,
    /// Ask at the fast interval: somebody waits for the verdict, as for a spare that is to enter.
    pub fast: bool,
}

/// All checks to be run. Of two with the same server and check the later one counts.
pub type Targets = Vec<Target>;

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// For whom.
    pub slots: Arc<[Slot]>,
    /// What.
    pub found: Found,
}

/// A reason to ask now rather than at the next interval. It blames nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nudge {
    /// Something happened on the way to these servers.
    Servers(BTreeSet<IpAddr>),
    /// A file was written.
    File(PathBuf),
}

impl Nudge {
    /// Sends it. Where there is no room it is lost: whoever it is about is asked at the regular time.
    pub fn send(self, to: &mpsc::Sender<Self>) {
        if to.try_send(self).is_err() {
            debug!("too many hints at a time: this one waits for its interval");
        }
    }
}

/// Counts what the schedule does.
pub trait Observer: Send + Sync + 'static {
    /// A probe ended.
    fn probed(&self, outcome: Outcome, elapsed: Duration);
    /// A probe was begun, `by` after it was due.
    fn begun_late(&self, by: Duration);
    /// A report found the output queue full.
    fn report_dropped(&self);
    /// So many probes run, of so many targets.
    fn in_flight(&self, probes: usize, targets: usize);
}

/// Asks servers.
pub trait Prober: Send + Sync + 'static {
    /// A check ready to be made.
    type Check: Send + Sync + 'static;
    /// Reads what a check names. May block: the schedule has a thread for it.
    ///
    /// # Errors
    ///
    /// What of this host keeps the check from being made.
    fn prepare(&self, kind: &CheckKind) -> Result<Self::Check, Unprepared>;
    /// Asks the server at `at` once, as `spec` says. A connection that is to be kept comes back.
    fn probe(
        &self,
        check: &Self::Check,
        at: SocketAddr,
        spec: &CheckSpec,
    ) -> impl Future<Output = (Found, Option<TcpStream>)> + Send;
}

/// Who can say whether IPVS has the hidden service of a firewall mark.
pub trait Ways: Send + Sync + 'static {
    /// Whether a packet to `at` with this mark goes to a real server now.
    fn stands(&self, at: SocketAddr, mark: u32) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

/// The real prober.
#[derive(Clone, Default)]
pub struct Network {
    /// Asked after each probe through IPVS: without its hidden service a probe reaches this host itself
    /// or another server, and says nothing of the one that is meant.
    pub ways: Option<Arc<dyn Ways>>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

impl Prober for Network {
    type Check = Check;

    fn prepare(&self, kind: &CheckKind) -> Result<Check, Unprepared> {
        Check::prepare(kind)
    }

    async fn probe(
        &self,
        check: &Check,
        at: SocketAddr,
        spec: &CheckSpec,
    ) -> (Found, Option<TcpStream>) {
        let (mut found, call) = check.ask(at, spec, false).await;
        // After a pass as well: another server may have answered.
        if let (true, Some(mark), Some(ways)) = (spec.via.through, spec.via.mark, &self.ways)
            && !ways.stands(at, mark).await
        {
            found.outcome = Outcome::Fail(FailReason::Local);
            found.detail = Some("its hidden service is not in IPVS".into());
        }
        (found, call.kept)
    }
}

/// Checks `targets` over the network until `stop`, or until nobody sends targets or reads reports.
pub async fn run(
    ways: Arc<dyn Ways>,
    targets: watch::Receiver<Arc<Targets>>,
    nudges: mpsc::Receiver<Nudge>,
    reports: mpsc::Sender<Report>,
    observer: impl Observer,
    stop: CancellationToken,
) {
    let network = Network { ways: Some(ways) };
    run_with(network, targets, nudges, reports, observer, stop).await;
}

/// [`run`] with another prober.
pub async fn run_with(
    prober: impl Prober,
    mut targets: watch::Receiver<Arc<Targets>>,
    mut nudges: mpsc::Receiver<Nudge>,
    reports: mpsc::Sender<Report>,
    observer: impl Observer,
    stop: CancellationToken,
) {
    let mut schedule = Schedule {
        prober: Arc::new(prober),
        reports,
        observer,
        epoch: Instant::now(),
        watched: Slab::new(),
        known: HashMap::new(),
        prepared: HashMap::new(),
        due: DelayQueue::new(),
        probes: JoinSet::new(),
        running: 0,
        serial: 0,
        full_at: None,
        punctuality: Punctuality::default(),
        lateness: Lateness::default(),
    };
    targets.mark_changed();
    loop {
        let room = schedule.running < MAX_IN_FLIGHT;
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
            // Cancel-safe per the docs of `recv`. When nobody nudges any more, nothing is missing.
            Some(nudge) = nudges.recv() => schedule.hurry(&nudge),
            // Cancel-safe per the docs of `join_next`.
            Some(end) = schedule.probes.join_next() => {
                if schedule.ended(end).is_err() {
                    warn!("nobody reads reports of checks any more");
                    return;
                }
            }
            // Cancel-safe: an entry leaves the queue only when it is returned.
            Some(entry) = poll_fn(|cx| schedule.due.poll_expired(cx)), if room => {
                if schedule.begin(&entry).is_err() {
                    warn!("nobody reads reports of checks any more");
                    return;
                }
            }
        }
    }
}

/// The reports' receiver is gone.
struct Unread;

/// What makes two targets one.
type Known = (SocketAddr, Arc<CheckSpec>);

#[derive(Debug)]
struct Watched<C> {
    at: SocketAddr,
    spec: Arc<CheckSpec>,
    /// Shared with all targets of the same options.
    prepared: Arc<Prepared<C>>,
    slots: Arc<[Slot]>,
    fast: bool,
    place: u64,
    pace: Pace,
    /// When it was asked last.
    begun: Option<Instant>,
    /// How late this host had been until then.
    late_before: Duration,
    /// A hint came about it: a connection that is kept says nothing any more.
    doubted: bool,
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
        task: AbortHandle,
        serial: u64,
    },
    /// Its connection is kept open, and watched; at each interval that is told as a pass, unless there is a doubt:
    /// then it is asked anew, over another connection.
    Holds {
        task: AbortHandle,
        serial: u64,
        timer: delay_queue::Key,
    },
}

#[derive(Debug)]
struct Ended {
    target: usize,
    serial: u64,
    begun: Instant,
    found: Found,
    /// What a second probe found that was begun while the first one was silent, and failed too.
    second: Option<Found>,
    kept: Option<TcpStream>,
}

struct Schedule<P: Prober, O> {
    prober: Arc<P>,
    reports: mpsc::Sender<Report>,
    observer: O,
    /// Regular times are counted from here.
    epoch: Instant,
    watched: Slab<Watched<P::Check>>,
    known: HashMap<Known, usize>,
    prepared: HashMap<CheckKind, Arc<Prepared<P::Check>>>,
    due: DelayQueue<usize>,
    probes: JoinSet<Ended>,
    /// Probes in flight: the tasks without those that watch a kept connection.
    running: usize,
    /// Tells a target's probe from an earlier one in the same place.
    serial: u64,
    /// When there was no room for another probe last.
    full_at: Option<Instant>,
    punctuality: Punctuality,
    lateness: Lateness,
}

impl<P: Prober, O: Observer> Schedule<P, O> {
    /// Takes over what is to be checked. What did not change keeps its time and its memory.
    fn adopt(&mut self, targets: &Targets) {
        let key = |t: &Target| (t.at, Arc::clone(&t.spec));
        let wanted: HashMap<Known, &Target> = targets.iter().map(|t| (key(t), t)).collect();
        let gone = self.known.extract_if(|key, _| !wanted.contains_key(key));
        for (_, target) in gone {
            match self.watched.remove(target).turn {
                Turn::Waits { timer, .. } => cancel(&mut self.due, &timer),
                Turn::Runs { task, .. } => {
                    self.running -= 1;
                    task.abort();
                }
                Turn::Holds { task, timer, .. } => {
                    cancel(&mut self.due, &timer);
                    task.abort();
                }
            }
        }
        let kinds: HashSet<&CheckKind> = targets.iter().map(|t| &t.spec.kind).collect();
        self.prepared.retain(|kind, _| kinds.contains(kind));
        let now = Instant::now();
        let beginners = wanted.len().saturating_sub(self.known.len());
        for (key, target) in wanted {
            if let Some(known) = self
                .known
                .get(&key)
                .and_then(|at| self.watched.get_mut(*at))
            {
                known.slots = Arc::clone(&target.slots);
                if target.fast && !known.fast {
                    hurry(&mut self.due, known, now + known.spec.timing.fast_interval);
                }
                known.fast = target.fast;
                continue;
            }
            let check = target.slots.first().map_or(0, |slot| slot.check);
            let kind = target.spec.kind.label();
            let place = pace::place(&format_args!("{} {kind} {check}", target.at));
            let at = pace::first(now, place, beginners, &target.spec.timing);
            let prepared = match self.prepared.get(&target.spec.kind) {
                Some(prepared) => Arc::clone(prepared),
                None => {
                    let fresh = Arc::new(Prepared::new());
                    let kind = target.spec.kind.clone();
                    if !kind.reads() {
                        fresh.take(self.prober.prepare(&kind));
                    }
                    self.prepared.insert(kind, Arc::clone(&fresh));
                    fresh
                }
            };
            let entry = self.watched.vacant_entry();
            self.known.insert(key, entry.key());
            let timer = self.due.insert_at(entry.key(), at);
            entry.insert(Watched {
                at: target.at,
                spec: Arc::clone(&target.spec),
                prepared,
                slots: Arc::clone(&target.slots),
                fast: target.fast,
                place,
                pace: Pace::default(),
                begun: None,
                late_before: Duration::ZERO,
                doubted: false,
                turn: Turn::Waits {
                    timer,
                    respread: false,
                },
            });
        }
        self.observer.in_flight(self.running, self.watched.len());
    }

    /// Brings forward the probes that a nudge is about.
    fn hurry(&mut self, nudge: &Nudge) {
        let now = Instant::now();
        // Not all at once, if they are many.
        let count = match nudge {
            Nudge::Servers(servers) => servers.len(),
            Nudge::File(_) => 0,
        };
        for (_, target) in &mut self.watched {
            let meant = match nudge {
                Nudge::Servers(servers) => {
                    // A check may go elsewhere, above all to the virtual address.
                    let mut slots = target.slots.iter();
                    servers.contains(&target.at.ip())
                        || slots.any(|slot| servers.contains(&slot.dest.addr))
                }
                Nudge::File(path) => match &target.spec.kind {
                    CheckKind::FromFile(file) => file.path_for(target.at) == *path,
                    _ => false,
                },
            };
            if meant {
                let mut soon = pace::soon(now, target.place, count, &target.spec.timing);
                // However many hints there are.
                if let Some(begun) = target.begun {
                    soon = soon.max(begun + target.spec.timing.fast_interval.min(HINT_GAP));
                }
                // What is on its way may have come before.
                target.doubted = true;
                hurry(&mut self.due, target, soon);
            }
        }
    }

    /// Begins the probe of a target whose time has come.
    fn begin(&mut self, entry: &delay_queue::Expired<usize>) -> Result<(), Unread> {
        let (deadline, id) = (entry.deadline(), *entry.get_ref());
        let all = self.watched.len();
        let Some(target) = self.watched.get_mut(id) else {
            return Ok(());
        };
        let now = Instant::now();
        match &mut target.turn {
            Turn::Holds { timer, .. } if !target.doubted => {
                let interval = target.spec.timing.interval;
                let at = pace::after(self.epoch, now, now, target.place, interval);
                *timer = self.due.insert_at(id, at);
                target.pace.note(Outcome::Pass, &target.spec.timing);
                return self.report(id, Found::of(Outcome::Pass, Duration::ZERO));
            }
            Turn::Holds { task, .. } => task.abort(),
            Turn::Waits { .. } | Turn::Runs { .. } => {}
        }
        let late = now.saturating_duration_since(deadline);
        self.observer.begun_late(late);
        if let Some(behind) = self.punctuality.note(late, now) {
            warn!(
                late = behind.late,
                of = behind.of,
                most_ms = behind.most.as_millis(),
                in_flight = self.running,
                "checks are begun more than 100 ms late: this host cannot keep the schedule; \
                 lengthen `interval`, or give it more CPU"
            );
        }
        let respread = matches!(target.turn, Turn::Waits { respread: true, .. });
        let waited_for_room = self.full_at.is_some_and(|full| full >= deadline);
        if !waited_for_room {
            self.lateness.note(deadline, now);
        }
        let interval = pace::clamp(target.spec.timing.interval);
        if late > STOPPED.max(interval) && !respread && !waited_for_room {
            // This process was stopped and everything is overdue at once.
            let at = pace::first(now, target.place, all, &target.spec.timing);
            target.turn = Turn::Waits {
                timer: self.due.insert_at(id, at),
                respread: true,
            };
            return Ok(());
        }
        let (prober, spec) = (Arc::clone(&self.prober), Arc::clone(&target.spec));
        if spec.kind.reads() && target.prepared.is_due(now) {
            target.prepared.read(now, reading(&prober, &spec));
        }
        self.serial += 1;
        target.begun = Some(now);
        target.doubted = false;
        target.late_before = self.lateness.all(&target.spec.timing);
        let (serial, at) = (self.serial, target.at);
        let prepared = Arc::clone(&target.prepared);
        let patience = pace::patience(&spec.timing).filter(|_| target.pace.passing());
        let task = self.probes.spawn(async move {
            let mut begun = now;
            let check = match prepared.ready() {
                Some(check) => check,
                None => {
                    let prepare = reading(&prober, &spec);
                    let check = prepared.check(spec.timing.timeout, prepare).await;
                    begun = Instant::now();
                    check
                }
            };
            let (found, second, kept) = match (check, patience) {
                (Err(why), _) => (Found::local(why.to_string()), None, None),
                (Ok(check), None) => {
                    let (found, kept) = prober.probe(&check, at, &spec).await;
                    (found, None, kept)
                }
                (Ok(check), Some(patience)) => {
                    let probe = || prober.probe(&check, at, &spec);
                    patiently(probe, begun + patience).await
                }
            };
            Ended {
                target: id,
                serial,
                begun: now,
                found,
                second,
                kept,
            }
        });
        self.running += 1;
        target.turn = Turn::Runs { task, serial };
        self.observer.in_flight(self.running, all);
        Ok(())
    }

    /// Takes what a probe found, or the end of a kept connection.
    fn ended(&mut self, end: Result<Ended, JoinError>) -> Result<(), Unread> {
        let mut end = match end {
            Ok(end) => end,
            Err(error) if error.is_panic() => return self.panicked(&error),
            // Its target was dropped.
            Err(_aborted) => return Ok(()),
        };
        let id = end.target;
        let Some(target) = self.watched.get_mut(id) else {
            return Ok(());
        };
        match target.turn {
            Turn::Runs { serial, .. } if serial == end.serial => {
                self.running -= 1;
                self.observer.in_flight(self.running, self.known.len());
                for found in [Some(&mut end.found), end.second.as_mut()]
                    .into_iter()
                    .flatten()
                {
                    if self
                        .lateness
                        .excuses(found.outcome, target.late_before, &target.spec)
                    {
                        *found = Found {
                            detail: Some("no answer in time, but this host was late itself".into()),
                            outcome: Outcome::Fail(FailReason::Local),
                            ..found.clone()
                        };
                    }
                }
            }
            Turn::Holds { serial, timer, .. } if serial == end.serial => {
                cancel(&mut self.due, &timer);
            }
            // Of a target that was here before.
            Turn::Waits { .. } | Turn::Runs { .. } | Turn::Holds { .. } => return Ok(()),
        }
        let Some(stream) = end.kept else {
            if let Some(second) = end.second {
                let timing = &target.spec.timing;
                target.pace.note(end.found.outcome, timing);
                self.report(id, end.found)?;
                return self.settle(id, end.begun, second);
            }
            return self.settle(id, end.begun, end.found);
        };
        self.serial += 1;
        let (serial, at, begun) = (self.serial, target.at, end.begun);
        let timing = target.spec.timing;
        let now = Instant::now();
        let next = match target.doubted {
            true => now + pace::clamp(timing.fast_interval),
            false => pace::after(self.epoch, now, now, target.place, timing.interval),
        };
        let timer = self.due.insert_at(id, next);
        let task = self.probes.spawn(async move {
            let reason = kept(stream, at, &timing).await;
            Ended {
                target: id,
                serial,
                begun,
                found: Found::of(Outcome::Fail(reason), begun.elapsed()),
                second: None,
                kept: None,
            }
        });
        target.turn = Turn::Holds {
            task,
            serial,
            timer,
        };
        target.pace.note(end.found.outcome, &timing);
        self.report(id, end.found)
    }

    /// A probe ran into a mistake of this program's: that is no server's fault, and no reason to leave all
    /// the others unasked.
    fn panicked(&mut self, error: &JoinError) -> Result<(), Unread> {
        error!(%error, "a probe panicked: please report this, with what the server says to it");
        let now = Instant::now();
        let mut running = self.watched.iter();
        let ours = running.find_map(|(id, target)| match &target.turn {
            Turn::Runs { task, .. } | Turn::Holds { task, .. } if task.id() == error.id() => {
                Some(id)
            }
            Turn::Waits { .. } | Turn::Runs { .. } | Turn::Holds { .. } => None,
        });
        let Some(id) = ours else { return Ok(()) };
        match self.watched.get(id).map(|target| &target.turn) {
            Some(Turn::Runs { .. }) => self.running -= 1,
            Some(Turn::Holds { timer, .. }) => cancel(&mut self.due, timer),
            Some(Turn::Waits { .. }) | None => {}
        }
        self.settle(id, now, Found::local("the probe panicked: see the log"))
    }

    /// Reports what was found and sets the target's next time.
    fn settle(&mut self, id: usize, begun: Instant, found: Found) -> Result<(), Unread> {
        let Some(target) = self.watched.get_mut(id) else {
            return Ok(());
        };
        let timing = &target.spec.timing;
        target.pace.note(found.outcome, timing);
        let now = Instant::now();
        if is_ours_to_mend(found.outcome) && target.pace.suspected() {
            // Before this counts for a verdict: perhaps what was read of this host is old.
            if target.spec.kind.reads() {
                target.prepared.doubt();
            }
        }
        // Hurry does not help where this host is short of something.
        let local = found.outcome == Outcome::Fail(FailReason::Local);
        let dropped = found.outcome == Outcome::Fail(FailReason::Dropped);
        let at = if dropped && target.pace.suspected() {
            (begun + RECONNECT).max(now)
        } else if (target.fast || target.pace.suspected()) && !local {
            (begun + pace::clamp(timing.fast_interval)).max(now)
        } else {
            let interval = match target.pace.fallen() {
                true => timing.down_interval,
                false => timing.interval,
            };
            pace::after(self.epoch, begun, now, target.place, interval)
        };
        let at = match target.doubted {
            // A hint came while it was asked: what it found may be older.
            true => at.min((begun + pace::clamp(timing.fast_interval)).max(now)),
            false => at,
        };
        target.turn = Turn::Waits {
            timer: self.due.insert_at(id, at),
            respread: false,
        };
        self.report(id, found)
    }

    fn report(&mut self, id: usize, found: Found) -> Result<(), Unread> {
        let Some(target) = self.watched.get(id) else {
            return Ok(());
        };
        let (outcome, elapsed) = (found.outcome, found.elapsed);
        debug!(
            server = %target.at,
            check = target.spec.kind.label(),
            ?outcome,
            elapsed_ms = elapsed.as_millis(),
            "probed"
        );
        self.observer.probed(outcome, elapsed);
        let slots = Arc::clone(&target.slots);
        match self.reports.try_send(Report { slots, found }) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.observer.report_dropped();
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Unread),
        }
    }
}

/// Reads what a check names.
fn reading<P: Prober>(
    prober: &Arc<P>,
    spec: &Arc<CheckSpec>,
) -> impl Fn() -> Result<P::Check, Unprepared> + Clone + Send + use<P> {
    let (prober, spec) = (Arc::clone(prober), Arc::clone(spec));
    move || prober.prepare(&spec.kind)
}

/// A probe, and a second one beside it where the first is silent until `patience`. Where the first
/// passes after all the second is dropped; where it fails the second is waited for.
async fn patiently<F: Future<Output = (Found, Option<TcpStream>)>>(
    probe: impl Fn() -> F,
    patience: Instant,
) -> (Found, Option<Found>, Option<TcpStream>) {
    let mut first = pin!(probe());
    select! {
        biased;
        (found, kept) = &mut first => return (found, None, kept),
        () = sleep_until(patience) => {}
    }
    // On the heap: it is rarely there.
    let mut second = Box::pin(probe());
    let mut early = None;
    let (found, kept) = loop {
        select! {
            biased;
            end = &mut first => break end,
            (found, _) = &mut second, if early.is_none() => early = Some(found),
        }
    };
    if found.outcome == Outcome::Pass {
        return (found, None, kept);
    }
    let second = match early {
        Some(second) => second,
        None => second.await.0,
    };
    (found, Some(second), None)
}

/// Takes a target's time back. One that has come already is not there any more.
fn cancel(due: &mut DelayQueue<usize>, timer: &delay_queue::Key) {
    let _gone: Option<delay_queue::Expired<usize>> = due.try_remove(timer);
}

/// Whether a failure may come from a certificate, key or password of this host's.
const fn is_ours_to_mend(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Fail(
            FailReason::Certificate(_) | FailReason::TlsAlert(_) | FailReason::LoginRefused
        )
    )
}

/// Brings the next time of a target that is not being asked forward to `soon`.
fn hurry<C>(due: &mut DelayQueue<usize>, target: &Watched<C>, soon: Instant) {
    match &target.turn {
        Turn::Waits { timer, .. } | Turn::Holds { timer, .. } if due.deadline(timer) > soon => {
            due.reset_at(timer, soon);
        }
        Turn::Waits { .. } | Turn::Holds { .. } | Turn::Runs { .. } => {}
    }
}

/// As many does the kernel take (`MAX_TCP_KEEPCNT`, include/net/tcp.h).
const MOST_RETRIES: u32 = 127;

/// Waits for the end of a connection. A host that vanished without a word is found by TCP's keepalive.
async fn kept(mut stream: TcpStream, at: SocketAddr, timing: &CheckTiming) -> FailReason {
    // Whole seconds are what the kernel counts in.
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new()
        .with_time(timing.interval.max(second))
        .with_interval(timing.interval.max(second))
        .with_retries(timing.fall.clamp(1, MOST_RETRIES));
    if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
        return errno::reason(&error, at, Phase::Answer);
    }
    let mut chatter = [0; 512];
    loop {
        match stream.read(&mut chatter).await {
            Ok(0) => return FailReason::Dropped,
            Ok(_) => {}
            Err(error) => {
                return match errno::reason(&error, at, Phase::Answer) {
                    FailReason::Reset => FailReason::Dropped,
                    other => other,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests;
