//! Drives every replacement that is not at its end: reads the journal, asks [`Journal::next`] what is
//! to be done, has it done, writes down what came of it. Decides nothing itself.
//!
//! One task a replacement, so many at once; each step is in the journal before it is ordered. A task
//! that is dropped at any point leaves a journal from which the next run goes on.
//!
//! [`Journal::next`]: super::workflow::Journal::next

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    order::{Class, Done, Hands, Order, Step, StepError},
    sealed::{Masks, digest},
    secrets::Secrets,
    store::{Claim, Note, Run, Store, StoreError, Work},
    workflow::{Action, Event, Hand, Journal, Retry},
};
use crate::{
    model::{ReplacementId, wire::PassedOver, wire::ReplacementState},
    telemetry::Chain,
};

/// Something that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A step ended.
    StepEnded {
        /// `fence`, `os`, `install`, `configure`, `test`.
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
    /// A replacement came to its end.
    ReplacementEnded {
        /// Which.
        outcome: ReplacementState,
    },
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
    /// Spares configured at the same time.
    pub at_once: usize,
    /// Replacements that wait are looked at again after this, even if nothing seems to have changed:
    /// another process may have changed the store.
    pub look_again: Duration,
}

impl Settings {
    /// Eight spares at once are a rack's worth of failures; their SSH sessions cost little.
    pub const STANDARD: Self = Self {
        retry: Retry::STANDARD,
        at_once: 8,
        look_again: Duration::from_secs(5),
    };
}

/// What a replacement's task came to.
enum Rest {
    /// It waits for the inventory or the pool to change.
    Waits,
    /// Nothing is left to do for the engine.
    Over,
    /// The engine is to stop.
    Stopped,
}

/// The journal moved between reading and writing: a cancellation. More often in a row is a fault.
const REREADS: u32 = 5;

/// Output of a step kept in the store: what a job's wrapper keeps, and a command's after it.
const OUTPUT: usize = 384 * 1024;

struct Context<H> {
    store: Store,
    hands: Arc<H>,
    settings: Settings,
    secrets: Secrets,
    observer: Observer,
    run: Run,
    stop: CancellationToken,
}

/// Works until `stop`; then leaves everything where it is, in the journal.
///
/// # Errors
/// [`StoreError`] where the store fails or another engine has taken over.
pub async fn run<H: Hands>(
    store: Store,
    hands: Arc<H>,
    settings: Settings,
    secrets: Secrets,
    observer: Observer,
    stop: CancellationToken,
) -> Result<(), StoreError> {
    let mut work = store.work();
    let run = store.take_over().await?;
    let context = Arc::new(Context {
        store: store.clone(),
        hands,
        settings,
        secrets,
        observer,
        run,
        stop: stop.clone(),
    });
    let mut tasks: JoinSet<(ReplacementId, Result<Rest, StoreError>)> = JoinSet::new();
    let mut active: BTreeSet<ReplacementId> = BTreeSet::new();
    let mut waiting: BTreeSet<ReplacementId> = BTreeSet::new();
    let mut look = tokio::time::Instant::now() + settings.look_again;
    loop {
        // Before the reading: what changes during it is seen by the next turn.
        work.borrow_and_update();
        for id in store.unfinished().await? {
            if active.len() >= settings.at_once {
                break;
            }
            if waiting.contains(&id) || !active.insert(id.clone()) {
                continue;
            }
            let context = Arc::clone(&context);
            let span = info_span!("replacement", id = %id);
            tasks.spawn(
                async move {
                    let rest = context.drive(&id).await;
                    (id, rest)
                }
                .instrument(span),
            );
        }
        tokio::select! {
            () = stop.cancelled() => break,
            // Cancel-safe: `changed` only marks the value seen when it returns.
            changed = work.changed() => {
                if changed.is_err() {
                    break;
                }
                waiting.clear();
            }
            // Cancel-safe: a task stays in the set until it is returned.
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                let (id, rest) = match ended {
                    Ok(ended) => ended,
                    Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                    // Only this function could abort one, by being dropped.
                    Err(_) => continue,
                };
                active.remove(&id);
                match rest {
                    Ok(Rest::Over | Rest::Stopped) => {}
                    Ok(Rest::Waits) => {
                        waiting.insert(id);
                    }
                    Err(StoreError::Fenced) => return Err(StoreError::Fenced),
                    Err(e) => {
                        error!(
                            replacement = %id, error = %Chain(&e),
                            "replacement could not be worked on, will be tried again"
                        );
                        waiting.insert(id);
                    }
                }
            }
            // Not a fresh sleep each turn: tasks that end often must not put it off for ever.
            () = sleep_until(look) => {
                waiting.clear();
                look = tokio::time::Instant::now() + settings.look_again;
            }
        }
    }
    // A transaction that is cut off here is rolled back: the journal says what was begun.
    tasks.shutdown().await;
    Ok(())
}

impl<H: Hands> Context<H> {
    async fn drive(&self, id: &ReplacementId) -> Result<Rest, StoreError> {
        let mut rereads = 0;
        loop {
            if self.stop.is_cancelled() {
                return Ok(Rest::Stopped);
            }
            let work = self.store.work_on(id).await?;
            let turn = match work.journal.next() {
                Action::Claim => self.claim(&work).await,
                Action::Order { position, failures } => self.step(&work, position, failures).await,
                Action::Offer => self.offer(&work).await,
                Action::Abandon => self.abandon(&work).await,
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
        id: &ReplacementId,
        event: Event,
        note: Note,
    ) -> Result<Journal, StoreError> {
        let retry = &self.settings.retry;
        self.store.advance(self.run, id, &event, note, retry).await
    }

    /// Looks the role up, picks a spare and claims it.
    async fn claim(&self, work: &Work) -> Result<Option<Rest>, StoreError> {
        let world = self.store.world().await?;
        let brief = match world.brief(work.failed, &work.origins) {
            Ok(brief) => brief,
            Err(miss) => {
                let reason = format!("{}: {miss}", miss.code());
                return self.wait(work, reason, Vec::new()).await;
            }
        };
        if let Some(cause) = self.store.stopped(&brief.role.code).await? {
            return self
                .wait(work, cause.reason(&brief.role.code), Vec::new())
                .await;
        }
        let job = format!("{}-{}", work.id, work.journal.attempts + 1);
        let mut choice = match world.choose(world.pool(), &brief, &job) {
            Ok(choice) => choice,
            Err(none) => return self.wait(work, none.reason, none.not).await,
        };
        let sealed = choice.steps.iter().flat_map(Step::secrets);
        match self.secrets.read(sealed.map(|s| s.name.as_str())) {
            Ok(values) => choice.steps.iter_mut().for_each(|s| s.seal(&values)),
            Err(e) => {
                let reason = format!("secret_missing: {}", Chain(&e));
                return self.wait(work, reason, Vec::new()).await;
            }
        }
        let claim = Claim {
            server: &choice.spare.name,
            role: &brief.role.code,
            steps: &choice.steps,
            rejected: choice.not,
        };
        // `false`: another replacement was faster, the next turn chooses again.
        if self.store.claim(self.run, &work.id, claim).await? {
            info!(
                server = choice.spare.name, failed = %work.failed, role = brief.role.code,
                "spare claimed"
            );
        }
        Ok(None)
    }

    async fn wait(
        &self,
        work: &Work,
        reason: String,
        rejected: Vec<PassedOver>,
    ) -> Result<Option<Rest>, StoreError> {
        if work.journal.reason.as_ref() != Some(&reason) {
            error!(
                failed = %work.failed, director = %work.director, reason,
                "replacement waits for somebody to act"
            );
            let code = reason.split(':').next().unwrap_or_default().to_owned();
            let note = Note {
                rejected: Some(rejected),
                ..Note::default()
            };
            self.advance(&work.id, Event::Waits { reason }, note)
                .await?;
            self.observer.tell(Fact::ReplacementWaits { code });
        }
        Ok(Some(Rest::Waits))
    }

    /// Orders one step, after a pause where it failed before.
    async fn step(
        &self,
        work: &Work,
        position: usize,
        failures: u32,
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
        self.advance(&work.id, Event::Started { position }, Note::default())
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
            e = self.keep_said(&work.id, position, said) => return Err(e),
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
                self.advance(&work.id, Event::Done { position }, note)
                    .await?;
            }
            Err(e) => {
                let local = e.class == Class::Local;
                self.failed(work, &order, position, failures, e, elapsed_ms)
                    .await?;
                if local {
                    tokio::select! {
                        () = self.stop.cancelled() => return Ok(Some(Rest::Stopped)),
                        () = sleep(self.settings.retry.longest) => {}
                    }
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
        if sealed.is_empty() {
            return Ok(Ok(()));
        }
        let names = sealed.iter().map(|s| s.name.as_str());
        let values = match self.secrets.read(names) {
            Ok(values) => values,
            Err(e) => return Ok(Err(secret_error(Class::Local, &Chain(&e).to_string()))),
        };
        for secret in sealed {
            let now = values.get(&secret.name).map(|v| digest(&secret.name, v));
            if now.as_ref() != Some(&secret.digest) {
                let detail = format!(
                    "the secret {} was changed while {} was configured with the old one: release it, \
                     it is configured anew",
                    secret.name, order.server.name
                );
                return Ok(Err(secret_error(Class::Permanent, &detail)));
            }
        }
        order.masks = Masks::of(&values);
        order.step = order.step.clone().reveal(&plan, &values);
        Ok(Ok(()))
    }

    /// Writes down what a running script has printed so far, for whoever follows it. Ends only where
    /// the store fails.
    async fn keep_said(
        &self,
        id: &ReplacementId,
        position: usize,
        mut said: watch::Receiver<String>,
    ) -> StoreError {
        loop {
            if said.changed().await.is_err() {
                return std::future::pending().await;
            }
            let text = clean(said.borrow_and_update().clone());
            if let Err(e) = self.store.said(self.run, id, position, &text).await {
                return e;
            }
        }
    }

    async fn failed(
        &self,
        work: &Work,
        order: &Order,
        position: usize,
        failures: u32,
        e: StepError,
        elapsed_ms: u64,
    ) -> Result<(), StoreError> {
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
        let journal = self.advance(&work.id, event, note).await?;
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

    async fn offer(&self, work: &Work) -> Result<Option<Rest>, StoreError> {
        self.advance(&work.id, Event::Offered, Note::default())
            .await?;
        let server = work.journal.hand.as_ref().map(|h| h.server.as_str());
        info!(server, failed = %work.failed, "spare offered to the directors");
        Ok(Some(Rest::Over))
    }

    async fn abandon(&self, work: &Work) -> Result<Option<Rest>, StoreError> {
        self.advance(&work.id, Event::Abandoned, Note::default())
            .await?;
        let server = work.journal.hand.as_ref().map(|h| h.server.as_str());
        warn!(server, failed = %work.failed, "replacement cancelled, look at its spare's state");
        self.observer.tell(Fact::ReplacementEnded {
            outcome: ReplacementState::Cancelled,
        });
        Ok(Some(Rest::Over))
    }
}

fn secret_error(class: Class, detail: &str) -> StepError {
    StepError {
        class,
        code: match class {
            Class::Permanent => "secret_changed",
            _ => "local_fault",
        },
        detail: detail.to_owned(),
        output: String::new(),
    }
}

fn overran(limit: Duration) -> StepError {
    StepError {
        class: Class::Transient,
        code: "overran",
        detail: format!("not ended after {} s", limit.as_secs()),
        output: String::new(),
    }
}

/// The `step` label of metrics: a closed set.
const fn kind(step: &Step) -> &'static str {
    match step {
        Step::Fence => "fence",
        Step::Os { .. } => "os",
        Step::Install { .. } => "install",
        Step::Configure { .. } => "configure",
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
