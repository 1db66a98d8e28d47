//! Drives every replacement that is not at its end: reads the journal, asks [`Journal::next`] what is
//! to be done, has it done, writes down what came of it. Decides nothing itself.
//!
//! One task a replacement, so many at once; each step is in the journal before it is ordered. A task
//! that is dropped at any point leaves a journal from which the next run goes on.
//!
//! It works on what it has a lease of, and drops what it has lost, with the step in hand. Several engines on one store
//! share the work. A store that is away is waited for.
//!
//! [`Journal::next`]: super::workflow::Journal::next

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    claiming::{choose, job},
    order::{self, Class, Done, Hands, OS_INSTALL, Order, Step, StepError},
    sealed::{Masks, digest, digests},
    secrets::Secrets,
    store::{Lease, Note, Run, Store, StoreError, Vacancy, Work},
    workflow::{Action, Event, Hand, Journal, Retry},
};
use crate::{
    model::{
        ReplacementId,
        wire::{PassedOver, ReplacementState, RoleView},
    },
    telemetry::Chain,
};

/// Something that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A step ended.
    StepEnded {
        /// `os_install`, `fence`, `os`, `install`, `configure`, `test`.
        step: &'static str,
        /// `done` or the error's code.
        result: &'static str,
        /// How long it took.
        elapsed: Duration,
    },
    /// A spare failed a step for good.
    SpareQuarantined,
    /// A spare is sound but not what the role needs.
    SparePassedOver,
    /// A replacement cannot go on now; the word before the colon of its reason.
    ReplacementWaits {
        /// `no_spare`, `role_unknown`, …
        code: String,
    },
    /// A request to the API was answered.
    Answered {
        /// The route's pattern.
        route: &'static str,
        /// The answer's.
        status: u16,
    },
    /// How each role stands.
    Readiness(Vec<RoleView>),
    /// A replacement came to its end.
    ReplacementEnded {
        /// Which.
        outcome: ReplacementState,
    },
    /// Another run took a replacement over that this one worked on.
    LeaseLost,
}

/// Told of every [`Fact`].
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(Fact) + Send + Sync>);

impl Observer {
    /// Tells `f`.
    pub fn new(f: impl Fn(Fact) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// Tells nobody.
    #[must_use]
    pub fn nobody() -> Self {
        Self::new(drop)
    }

    pub(crate) fn tell(&self, fact: Fact) {
        (self.0)(fact);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// How the engine works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often a step is tried.
    pub retry: Retry,
    /// Spares configured at the same time, those not counted whose operating system is being installed.
    pub at_once: usize,
    /// Operating systems installed at the same time.
    pub installs_at_once: usize,
    /// The store is looked at so often: for what others have changed, for work that nobody has.
    pub look: Duration,
    /// Replacements that wait are tried again after this, even if nothing seems to have changed.
    pub look_again: Duration,
    /// Work that an engine has in hand is another's so long after its last word. It renews its leases three times in
    /// this time.
    pub lease: Duration,
}

impl Settings {
    /// Eight spares at once are a rack's worth of failures; their SSH sessions cost little. An installation takes an hour
    /// and costs a question every few seconds: four racks' worth, so that one image server feeds them.
    pub const STANDARD: Self = Self {
        retry: Retry::STANDARD,
        at_once: 8,
        installs_at_once: 32,
        look: Duration::from_secs(1),
        look_again: Duration::from_secs(5),
        lease: Duration::from_secs(15),
    };
}

/// What a replacement's task came to.
enum Rest {
    /// It waits for the inventory or the pool to change.
    Waits,
    /// This host cannot go on with it, another one may.
    Elsewhere,
    /// Nothing is left to do for the engine.
    Over,
    /// The engine is to stop.
    Stopped,
    /// Another run has taken it over.
    Lost,
}

/// The journal moved between reading and writing: a cancellation. More often in a row is a fault.
const REREADS: u32 = 5;

/// A store that is away does not hold up the end.
const FAREWELL: Duration = Duration::from_secs(3);

/// Output of a step kept in the store: what a job's wrapper keeps, and a command's after it.
const OUTPUT: usize = 384 * 1024;

struct Context<H> {
    store: Store,
    hands: Arc<H>,
    settings: Settings,
    secrets: Secrets,
    observer: Observer,
    stop: CancellationToken,
    /// For [`Settings::installs_at_once`].
    installs: Semaphore,
}

/// Works for the provisioner `host` until `stop`; then leaves everything where it is, in the journal, for whoever takes
/// it up. Waits for a store that is away.
///
/// # Errors
/// [`StoreError`] where the store answers, and what it says is no use.
pub async fn run<H: Hands>(
    store: Store,
    hands: Arc<H>,
    host: &str,
    settings: Settings,
    secrets: Secrets,
    observer: Observer,
    stop: CancellationToken,
) -> Result<(), StoreError> {
    let mut changed = store.work();
    let context = Arc::new(Context {
        store: store.clone(),
        hands,
        settings,
        secrets,
        observer,
        stop: stop.clone(),
        installs: Semaphore::new(settings.installs_at_once),
    });
    let mut bench = Bench::new(Arc::clone(&context), host);
    let mut look = Instant::now();
    loop {
        // Before the reading: what changes during it is seen by the next turn.
        changed.borrow_and_update();
        let due = Instant::now() >= look;
        tokio::select! {
            // What it has just leased and not noted is given back with all the rest.
            () = stop.cancelled() => break,
            done = bench.turn(due) => done?,
        }
        if due {
            // Not a fresh sleep each turn: tasks that end often must not put it off for ever.
            look = Instant::now() + settings.look;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            // Cancel-safe: `changed` only marks the value seen when it returns.
            news = changed.changed(), if !bench.away => {
                if news.is_err() {
                    break;
                }
            }
            // Cancel-safe: a task stays in the set until it is returned.
            Some(ended) = bench.tasks.join_next(), if !bench.tasks.is_empty() => match ended {
                Ok(ended) => bench.ended(ended),
                Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                // Only this function could abort one, by being dropped.
                Err(_) => {}
            },
            () = sleep_until(look.into()) => {}
        }
    }
    // A transaction that is cut off here is rolled back: the journal says what was begun.
    bench.tasks.shutdown().await;
    if let Some(run) = &bench.run {
        match timeout(FAREWELL, store.end_run(run)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                warn!(error = %Chain(&e), "leases could not be given back, others wait until they run out");
            }
            Err(_elapsed) => {
                warn!("leases could not be given back in time, others wait until they run out");
            }
        }
    }
    Ok(())
}

/// How a task ended.
struct Ended {
    /// The lease that it began with.
    began: Lease,
    /// The one that it has now.
    lease: Lease,
    /// The count of changes when it began.
    work: i64,
    rest: Result<Rest, StoreError>,
}

/// A task.
struct Active {
    /// That it began with.
    fence: u64,
    /// Ends it.
    lost: CancellationToken,
    /// Whether it installs an operating system, or waits to: it takes nobody's place.
    installs: Arc<AtomicBool>,
}

/// No count of changes.
const UNSEEN: i64 = -1;

/// What one run has in hand.
struct Bench<H> {
    context: Arc<Context<H>>,
    host: String,
    /// None before the store has answered for the first time.
    run: Option<Run>,
    tasks: JoinSet<Ended>,
    /// What a task works on.
    active: BTreeMap<ReplacementId, Active>,
    /// What waits for the inventory or the pool to change.
    waiting: BTreeMap<ReplacementId, Lease>,
    /// What failed in the store.
    stalled: BTreeMap<ReplacementId, Lease>,
    /// What is for others, who have until the next look to take it.
    passed_on: Vec<Lease>,
    passing: bool,
    /// Before the last renewal was asked for.
    renewed: Instant,
    /// When those that wait were tried last.
    woken: Instant,
    /// The store's count of changes, as seen last.
    work: i64,
    /// Whether the store did not answer.
    away: bool,
}

impl<H: Hands> Bench<H> {
    fn new(context: Arc<Context<H>>, host: &str) -> Self {
        let now = Instant::now();
        Self {
            context,
            host: host.to_owned(),
            run: None,
            tasks: JoinSet::new(),
            active: BTreeMap::new(),
            waiting: BTreeMap::new(),
            stalled: BTreeMap::new(),
            passed_on: Vec::new(),
            passing: false,
            renewed: now,
            woken: now,
            work: UNSEEN,
            away: false,
        }
    }

    /// Renews, looks, and takes up what there is room for. One that is away is an error once, and no end.
    async fn turn(&mut self, due: bool) -> Result<(), StoreError> {
        if self.away && !due {
            return Ok(());
        }
        match self.try_turn(due).await {
            Ok(()) => {
                if self.away {
                    info!("the store answers again");
                }
                self.away = false;
            }
            Err(e) if e.is_away() => {
                if !self.away {
                    error!(
                        error = %Chain(&e),
                        "the store is away: no replacement goes on before it answers; asking again"
                    );
                }
                self.away = true;
                // Whoever reaches the store may have taken all of it by now.
                if self.renewed.elapsed() >= self.context.settings.lease {
                    self.drop_all();
                }
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    async fn try_turn(&mut self, due: bool) -> Result<(), StoreError> {
        let settings = self.context.settings;
        let store = self.context.store.clone();
        let run = match &self.run {
            Some(run) => run.clone(),
            None => self.run.insert(store.begin_run(&self.host).await?).clone(),
        };
        if self.renewed.elapsed() >= settings.lease / 3 {
            let asked = Instant::now();
            let held = store.renew(&run, settings.lease).await?;
            self.renewed = asked;
            self.active.retain(|id, task| {
                let has = held.contains(id);
                if !has {
                    task.lost.cancel();
                }
                has
            });
            self.waiting.retain(|id, _| held.contains(id));
            // Each sees for itself whether somebody else has it or it came to its end.
            let gone = self.stalled.values().filter(|l| !held.contains(&l.id));
            for lease in gone.cloned().collect::<Vec<_>>() {
                self.stalled.remove(&lease.id);
                self.start(lease);
            }
            // Put down while the store was away, or leased by an answer that never came: nobody here works on these, and
            // nobody else may.
            let known = |id: &ReplacementId| {
                self.active.contains_key(id)
                    || self.waiting.contains_key(id)
                    || self.stalled.contains_key(id)
            };
            let strays: Vec<_> = held.into_iter().filter(|id| !known(id)).collect();
            store.disown(&run, &strays).await?;
        }
        if due {
            for (_, lease) in std::mem::take(&mut self.stalled) {
                self.start(lease);
            }
        }
        if !self.passed_on.is_empty() {
            store.hand_back(&self.passed_on).await?;
            self.passed_on.clear();
            self.passing = true;
            return Ok(());
        }
        if self.passing && !due {
            return Ok(());
        }
        self.passing = false;
        let look = store.look().await?;
        if look.work != self.work || self.woken.elapsed() >= settings.look_again {
            // Given back, not tried again here: other provisioners may have room for more of them.
            let waiting: Vec<Lease> = self.waiting.values().cloned().collect();
            store.hand_back(&waiting).await?;
            self.waiting.clear();
            self.work = look.work;
            self.woken = Instant::now();
            if waiting.is_empty() && !look.free {
                return Ok(());
            }
        } else if !look.free {
            return Ok(());
        }
        let tasks = self.active.values();
        let counted = tasks.filter(|task| !task.installs.load(Ordering::Relaxed));
        let room = settings.at_once.saturating_sub(counted.count());
        if room > 0 {
            for lease in store.lease(&run, settings.lease, room).await? {
                self.start(lease);
            }
        }
        Ok(())
    }

    fn start(&mut self, lease: Lease) {
        let context = Arc::clone(&self.context);
        let span = info_span!("replacement", id = %lease.id);
        let lost = CancellationToken::new();
        let work = self.work;
        let installs = Arc::new(AtomicBool::new(false));
        let task = Active {
            fence: lease.fence(),
            lost: lost.clone(),
            installs: Arc::clone(&installs),
        };
        if let Some(before) = self.active.insert(lease.id.clone(), task) {
            before.lost.cancel();
        }
        self.tasks.spawn(
            async move {
                let mut now = lease.clone();
                let rest = tokio::select! {
                    // One that has come to its end has no lease either, and has lost nothing.
                    biased;
                    rest = context.drive(&mut now, &installs) => rest,
                    // The step in hand is dropped: the spare belongs to somebody else.
                    () = lost.cancelled() => Ok(Rest::Lost),
                };
                Ended {
                    began: lease,
                    lease: now,
                    work,
                    rest,
                }
            }
            .instrument(span),
        );
    }

    fn ended(&mut self, ended: Ended) {
        let Ended {
            began,
            lease,
            work,
            rest,
        } = ended;
        let id = lease.id.clone();
        let ours = self
            .active
            .get(&id)
            .is_some_and(|task| task.fence == began.fence());
        if ours {
            self.active.remove(&id);
        }
        match rest {
            Ok(Rest::Over | Rest::Stopped) => {}
            Ok(Rest::Lost) | Err(StoreError::LeaseLost { .. }) => self.lost(&id),
            // Of a lease that was lost meanwhile nothing is kept.
            _ if !ours => {}
            Ok(Rest::Waits) => {
                self.waiting.insert(id, lease);
                if work != self.work {
                    // Something changed after it had looked: the next turn sees it anew.
                    self.work = UNSEEN;
                }
            }
            Ok(Rest::Elsewhere) => self.passed_on.push(lease),
            Err(e) => {
                if !self.away || !e.is_away() {
                    error!(
                        replacement = %id, error = %Chain(&e),
                        "replacement could not be worked on, will be tried again"
                    );
                }
                self.stalled.insert(id, lease);
            }
        }
    }

    fn lost(&self, id: &ReplacementId) {
        warn!(replacement = %id, "put down: another provisioner works on this replacement now");
        self.context.observer.tell(Fact::LeaseLost);
    }

    fn drop_all(&mut self) {
        for task in std::mem::take(&mut self.active).into_values() {
            task.lost.cancel();
        }
        for id in std::mem::take(&mut self.stalled).into_keys() {
            self.lost(&id);
        }
        self.waiting.clear();
        self.passed_on.clear();
    }
}

impl<H: Hands> Context<H> {
    async fn drive(&self, lease: &mut Lease, installs: &AtomicBool) -> Result<Rest, StoreError> {
        let mut rereads = 0;
        loop {
            if self.stop.is_cancelled() {
                return Ok(Rest::Stopped);
            }
            let work = self.store.work_on(lease).await?;
            let turn = match work.journal.next() {
                Action::Claim => self.claim(lease, &work).await,
                Action::Order { position, failures } => {
                    self.step(lease, &work, (position, failures), installs)
                        .await
                }
                Action::Offer => self.offer(lease, &work).await,
                Action::Finish => self.finish(lease, &work).await,
                Action::Abandon => self.abandon(lease, &work).await,
                Action::Await | Action::Ended => return Ok(Rest::Over),
            };
            match turn {
                Ok(None) => rereads = 0,
                Ok(Some(rest)) => return Ok(rest),
                Err(StoreError::Illegal { .. }) if rereads < REREADS => rereads += 1,
                Err(e) => return Err(e),
            }
        }
    }

    async fn advance(
        &self,
        lease: &Lease,
        event: Event,
        note: Note,
    ) -> Result<Journal, StoreError> {
        let retry = &self.settings.retry;
        self.store.advance(lease, &event, note, retry).await
    }

    /// Looks the role up, picks a spare and claims it.
    async fn claim(&self, lease: &mut Lease, work: &Work) -> Result<Option<Rest>, StoreError> {
        let mut world = self.store.world().await?;
        world.secrets = digests(&self.secrets.known(world.secret_names()));
        let Vacancy {
            failed, origins, ..
        } = work.place()?;
        let brief = match world.brief(*failed, origins) {
            Ok(brief) => brief,
            Err(miss) => {
                let reason = format!("{}: {miss}", miss.code());
                return self.wait(lease, work, reason, Vec::new()).await;
            }
        };
        let role = &brief.role.code;
        let stopped = self.store.stopped(role).await?;
        let is_stopped = stopped.is_some();
        let mut pool = world.pool();
        if is_stopped {
            // Those that came through are as good as they were: nothing is tried on them.
            pool.retain(|c| c.warm_for.as_ref() == Some(role));
        }
        let job = job(&work.id, work.journal.attempts + 1);
        let choose = |pool| choose(&world, &self.secrets, &brief, pool, &job);
        let first = choose(pool.clone());
        if let Some(cause) = stopped
            && !first.as_ref().is_ok_and(|claim| claim.steps.is_empty())
        {
            return self.wait(lease, work, cause.reason(role), Vec::new()).await;
        }
        let first = match first {
            Ok(claim) => claim,
            Err(none) => return self.wait(lease, work, none.reason, none.not).await,
        };
        // Of a moment ago, but for who is free.
        let again = |free: &BTreeSet<String>| {
            let mut pool = pool.clone();
            pool.retain(|c| free.contains(&c.name));
            let other = choose(pool).ok()?;
            (!is_stopped || other.steps.is_empty()).then_some(other)
        };
        // None: others were faster with all of them, the next turn chooses again.
        if let Some(claimed) = self.store.claim(lease, first, again).await? {
            *lease = claimed.lease;
            let (server, role) = (claimed.server, &brief.role.code);
            match claimed.warm {
                true => info!(server, %failed, role, "warm spare offered to the directors"),
                false => info!(server, %failed, role, "spare claimed"),
            }
        }
        Ok(None)
    }

    async fn wait(
        &self,
        lease: &Lease,
        work: &Work,
        reason: String,
        rejected: Vec<PassedOver>,
    ) -> Result<Option<Rest>, StoreError> {
        if work.journal.reason.as_ref() != Some(&reason) {
            let place = work.place()?;
            error!(
                failed = %place.failed, director = %place.director, reason,
                "replacement waits for somebody to act"
            );
            let code = reason.split(':').next().unwrap_or_default().to_owned();
            let note = Note {
                rejected: Some(rejected),
                ..Note::default()
            };
            self.advance(lease, Event::Waits { reason }, note).await?;
            self.observer.tell(Fact::ReplacementWaits { code });
        }
        Ok(Some(Rest::Waits))
    }

    /// Orders one step; an installation once there is room for it.
    async fn step(
        &self,
        lease: &Lease,
        work: &Work,
        at: (usize, u32),
        installs: &AtomicBool,
    ) -> Result<Option<Rest>, StoreError> {
        let hand = work.journal.hand.as_ref();
        let mark = hand.and_then(|hand| hand.steps.get(at.0));
        if mark.is_none_or(|mark| mark.name != OS_INSTALL) {
            return self.order(lease, work, at).await;
        }
        installs.store(true, Ordering::Relaxed);
        let room = tokio::select! {
            () = self.stop.cancelled() => return Ok(Some(Rest::Stopped)),
            // Never closed.
            room = self.installs.acquire() => room,
        };
        let turn = self.order(lease, work, at).await;
        drop(room);
        installs.store(false, Ordering::Relaxed);
        turn
    }

    /// Orders one step, after a pause where it failed before.
    async fn order(
        &self,
        lease: &Lease,
        work: &Work,
        (position, failures): (usize, u32),
    ) -> Result<Option<Rest>, StoreError> {
        let pause = self.settings.retry.pause(failures, salt(&work.id));
        if !pause.is_zero() {
            tokio::select! {
                () = self.stop.cancelled() => return Ok(Some(Rest::Stopped)),
                () = sleep(pause) => {}
            }
        }
        let (server, step) = self.store.planned(&work.id, position).await?;
        let mut order = Order {
            server,
            fence: work.fence,
            step,
            masks: Masks::default(),
        };
        self.advance(lease, Event::Started { position }, Note::default())
            .await?;
        let limit = order.step.limit();
        let begun = Instant::now();
        // From here on the order holds secrets: it is shown nowhere.
        let unsealed = self.unseal(work, &mut order).await?;
        let (say, said) = watch::channel(String::new());
        let tell = |text| drop(say.send_replace(text));
        let perform = async {
            unsealed?;
            self.hands.perform(&order, &tell).await
        };
        let result = tokio::select! {
            // The journal says it runs: the next run orders it again, and the hands find its job.
            () = self.stop.cancelled() => return Ok(Some(Rest::Stopped)),
            e = self.keep_said(lease, position, said) => return Err(e),
            result = timeout(limit, perform) => {
                result.unwrap_or_else(|_elapsed| Err(overran(limit)))
            }
        };
        let elapsed = begun.elapsed();
        self.observer.tell(Fact::StepEnded {
            step: kind(&order.step),
            result: match &result {
                Ok(_) => "done",
                Err(e) => e.code,
            },
            elapsed,
        });
        let name = order.step.name();
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(done) => {
                info!(
                    server = order.server.name,
                    step = name,
                    elapsed_ms,
                    detail = done.detail,
                    "step done"
                );
                let note = note_done(done);
                self.advance(lease, Event::Done { position }, note).await?;
            }
            Err(e) => {
                let (local, missing) = (e.class == Class::Local, e.code == SECRET_MISSING);
                self.failed(lease, work, &order, position, e, elapsed_ms)
                    .await?;
                if local {
                    tokio::select! {
                        () = self.stop.cancelled() => return Ok(Some(Rest::Stopped)),
                        () = sleep(self.settings.retry.longest) => {}
                    }
                }
                if missing {
                    // Another provisioner may have it.
                    return Ok(Some(Rest::Elsewhere));
                }
            }
        }
        Ok(None)
    }

    /// Puts the values of secrets in the places of their names.
    async fn unseal(
        &self,
        work: &Work,
        order: &mut Order,
    ) -> Result<Result<(), StepError>, StoreError> {
        let plan = self.store.plan(&work.id).await?;
        let sealed: Vec<_> = plan.iter().flat_map(Step::secrets).collect();
        if let Step::Clean { .. } = order.step {
            // It uses none, but what it cleans may print them.
            let names = self.store.world().await?.secret_names();
            order.masks = Masks::of(&self.secrets.known(names));
        }
        if sealed.is_empty() {
            return Ok(Ok(()));
        }
        let names = sealed.iter().map(|s| s.name.as_str());
        let values = match self.secrets.read(names) {
            Ok(values) => values,
            Err(e) => {
                return Ok(Err(order::error(
                    Class::Local,
                    SECRET_MISSING,
                    Chain(&e).to_string(),
                )));
            }
        };
        for secret in sealed {
            let now = values.get(&secret.name).map(|v| digest(&secret.name, v));
            // What was planned before this was noted says nothing of it.
            if !secret.digest.is_empty() && now.as_ref() != Some(&secret.digest) {
                let detail = format!(
                    "the secret {} was changed while {} was configured with the old one: it is put down, and \
                     cleaned where something was begun on it",
                    secret.name, order.server.name
                );
                return Ok(Err(order::error(Class::Outdated, "secret_changed", detail)));
            }
        }
        order.masks = Masks::of(&values);
        order.step = order.step.clone().reveal(&values);
        Ok(Ok(()))
    }

    /// Writes down what a running script has printed so far, for whoever follows it. Ends only where
    /// the store fails.
    async fn keep_said(
        &self,
        lease: &Lease,
        position: usize,
        mut said: watch::Receiver<String>,
    ) -> StoreError {
        loop {
            if said.changed().await.is_err() {
                return std::future::pending().await;
            }
            let text = clean(said.borrow_and_update().clone());
            if let Err(e) = self.store.said(lease, position, &text).await {
                return e;
            }
        }
    }

    async fn failed(
        &self,
        lease: &Lease,
        work: &Work,
        order: &Order,
        position: usize,
        e: StepError,
        elapsed_ms: u64,
    ) -> Result<(), StoreError> {
        let hand = work.journal.hand.as_ref();
        let mark = hand.and_then(|h| h.steps.get(position));
        let failures = mark.map_or(0, |m| m.failures);
        let (server, step, reason) = (&order.server.name, order.step.name(), e.to_string());
        let note = Note {
            detail: clean(reason.clone()),
            os: os_found(&order.step, &e),
            output: clean(e.output),
            rejected: None,
        };
        let event = Event::Failed {
            position,
            class: e.class,
            reason: reason.clone(),
        };
        let journal = self.advance(lease, event, note).await?;
        if journal.state == ReplacementState::Cancelled {
            self.observer.tell(Fact::ReplacementEnded {
                outcome: journal.state,
            });
        }
        let touched = work.journal.hand.as_ref().is_some_and(Hand::touched);
        match e.class {
            Class::Local => {
                warn!(
                    server,
                    step, reason, elapsed_ms, "this host cannot do a step, will be tried again"
                );
            }
            Class::Transient if failures + 1 < self.settings.retry.tries => {
                warn!(
                    server,
                    step,
                    reason,
                    elapsed_ms,
                    failures = failures + 1,
                    "step failed, will be tried again"
                );
            }
            Class::Outdated => {
                warn!(
                    server,
                    step, reason, elapsed_ms, "spare put down, not at fault"
                );
                self.observer.tell(Fact::SparePassedOver);
            }
            Class::Unsuitable if !touched => {
                warn!(server, step, reason, elapsed_ms, "spare passed over");
                self.observer.tell(Fact::SparePassedOver);
            }
            Class::Transient | Class::Permanent | Class::Fenced | Class::Unsuitable => {
                error!(
                    server,
                    step, reason, elapsed_ms, "spare quarantined, put it right and release it"
                );
                self.observer.tell(Fact::SpareQuarantined);
            }
        }
        Ok(())
    }

    async fn offer(&self, lease: &Lease, work: &Work) -> Result<Option<Rest>, StoreError> {
        self.advance(lease, Event::Offered, Note::default()).await?;
        let server = work.journal.hand.as_ref().map(|h| h.server.as_str());
        info!(server, failed = %work.place()?.failed, "spare offered to the directors");
        Ok(Some(Rest::Over))
    }

    async fn finish(&self, lease: &Lease, work: &Work) -> Result<Option<Rest>, StoreError> {
        self.advance(lease, Event::Finished, Note::default())
            .await?;
        let server = work.journal.hand.as_ref().map(|h| h.server.as_str());
        info!(
            server,
            role = work.role,
            work = work.journal.kind.as_str(),
            "server is ready"
        );
        Ok(Some(Rest::Over))
    }

    async fn abandon(&self, lease: &Lease, work: &Work) -> Result<Option<Rest>, StoreError> {
        self.advance(lease, Event::Abandoned, Note::default())
            .await?;
        let server = work.journal.hand.as_ref().map(|h| h.server.as_str());
        let failed = work.place.as_ref().map(|place| place.failed.to_string());
        warn!(
            server,
            failed, "replacement cancelled, look at its spare's state"
        );
        self.observer.tell(Fact::ReplacementEnded {
            outcome: ReplacementState::Cancelled,
        });
        Ok(Some(Rest::Over))
    }
}

/// A secret cannot be read on this host.
const SECRET_MISSING: &str = "secret_missing";

fn overran(limit: Duration) -> StepError {
    let detail = format!("not ended after {} s", limit.as_secs());
    order::error(Class::Transient, "overran", detail)
}

/// The `step` label of metrics: a closed set.
const fn kind(step: &Step) -> &'static str {
    match step {
        Step::Look => "look",
        Step::OsInstall { .. } => "os_install",
        Step::Fence => "fence",
        Step::Os { .. } => "os",
        Step::Install { .. } => "install",
        Step::Configure { .. } => "configure",
        Step::Clean { .. } => "clean",
        Step::Test { .. } => "test",
    }
}

fn note_done(done: Done) -> Note {
    Note {
        detail: clean(done.detail),
        output: clean(done.output),
        os: done.os,
        rejected: None,
    }
}

/// The operating system of a spare that has another one: alone in the output. Where the hands do not
/// say it, it is at least not the wanted one.
fn os_found(step: &Step, e: &StepError) -> Option<String> {
    let (Step::Os { wanted } | Step::Test { os: wanted, .. }) = step else {
        return None;
    };
    if e.class != Class::Unsuitable {
        return None;
    }
    let found = e.output.trim();
    let word = !found.is_empty()
        && found.len() <= 64
        && found
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    Some(if word && found != wanted {
        found.to_owned()
    } else {
        format!("not {wanted}")
    })
}

/// Text as both engines can keep it, no longer than there is a use for: its end says why it failed.
fn clean(mut text: String) -> String {
    if text.len() > OUTPUT {
        let from = text.ceil_char_boundary(text.len() - OUTPUT);
        text.drain(..from);
    }
    if text.contains('\0') {
        text = text.replace('\0', "\u{fffd}");
    }
    text
}

fn salt(id: &ReplacementId) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;

/// The same on PostgreSQL.
#[cfg(test)]
mod tests_on_postgres {
    include!("engine/tests.rs");
}

#[cfg(test)]
mod fleet;
