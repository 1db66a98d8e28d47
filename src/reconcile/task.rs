//! Reads, plans, applies. The only one who writes to IPVS.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::plan::{Applied, Desired, Plan, plan};
use crate::{
    ipvs::Kernel,
    model::{DestAttrs, DestKey, KernelTable, ServiceKey, ServiceState, Step},
    telemetry::Chain,
};

/// Timing.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often the whole table is read to heal drift.
    pub resync: Duration,
    /// The wait after a pass that failed.
    pub retry: Duration,
}

/// What a pass did, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A pass ended.
    Pass(PassEnd),
    /// A step was applied, or refused.
    Step(&'static str, bool),
    /// A periodic reading found so many services changed by others.
    Drift(usize),
    /// A periodic reading found so many services that stand in no configuration.
    Foreign(usize),
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassEnd {
    /// Nothing was to be done.
    Unchanged,
    /// Every step was done.
    Applied,
    /// Some steps were refused.
    Partial,
    /// The table could not be read.
    Unread,
}

/// Runs until `stop`; leaves the kernel's table as it is.
pub async fn run(
    mut kernel: impl Kernel,
    mut desired: watch::Receiver<Desired>,
    applied: watch::Sender<Applied>,
    timing: Timing,
    observe: impl Fn(Fact) + Send + Sync,
    stop: CancellationToken,
) {
    let mut reconciler = Reconciler::new(observe);
    let mut next_whole = time::Instant::now();
    loop {
        let want = desired.borrow_and_update().clone();
        let now = time::Instant::now();
        let whole = now >= next_whole;
        let ok = reconciler.pass(&mut kernel, &want, whole).await;
        if whole {
            let readable = reconciler.applied.unreadable.is_none();
            next_whole = now
                + if readable {
                    timing.resync
                } else {
                    timing.retry
                };
        }
        applied.send_replace(reconciler.applied.clone());
        let retry = time::Instant::now() + timing.retry;
        let wake = if ok {
            next_whole
        } else {
            next_whole.min(retry)
        };
        tokio::select! {
            () = stop.cancelled() => return,
            // Cancel-safe: `changed` only marks the value seen when it returns.
            changed = desired.changed() => if changed.is_err() { return },
            () = time::sleep_until(wake) => {}
        }
    }
}

struct Reconciler<O> {
    applied: Applied,
    /// What was wanted of each service when it was last brought to it in full.
    reached: BTreeMap<ServiceKey, Arc<super::plan::Want>>,
    /// Steps applied since the start.
    steps: u64,
    observe: O,
}

impl<O: Fn(Fact)> Reconciler<O> {
    fn new(observe: O) -> Self {
        Self {
            applied: Applied::default(),
            reached: BTreeMap::new(),
            steps: 0,
            observe,
        }
    }

    /// One pass on one reading: of the whole table, or only of the services whose part changed or
    /// is not reached yet. Says whether everything is as wanted.
    async fn pass(&mut self, kernel: &mut impl Kernel, want: &Desired, whole: bool) -> bool {
        let steps_before = self.steps;
        let changed: BTreeSet<ServiceKey> = want
            .services
            .iter()
            .filter(|(k, w)| !self.reached.get(k).is_some_and(|r| Arc::ptr_eq(r, w)))
            .map(|(k, _)| *k)
            .collect();
        let scope: Vec<ServiceKey> = changed.iter().copied().collect();
        let reading = match whole {
            true => kernel.table().await,
            false if scope.is_empty() => Ok(KernelTable::new()),
            false => kernel.read(&scope).await,
        };
        let actual = match reading {
            Ok(actual) => actual,
            // A reading that failed is not an empty table: nothing is planned on it.
            Err(e) => {
                warn!(error = %Chain(&e), "kernel table could not be read, nothing was changed");
                self.applied.unreadable = Some(Chain(&e).to_string());
                (self.observe)(Fact::Pass(PassEnd::Unread));
                return false;
            }
        };
        self.applied.unreadable = None;
        let scope = if whole {
            self.whole_scope(want, &actual)
        } else {
            scope
        };
        let contradicted = self
            .make(kernel, want, &actual, &scope, whole.then_some(&changed))
            .await;
        if !contradicted.is_empty() {
            // The kernel contradicts what was read: somebody else changed it meanwhile. Once more.
            self.again(kernel, want, contradicted).await;
        }
        self.applied
            .kernel
            .retain(|k, _| want.services.contains_key(k));
        self.applied
            .failed
            .retain(|k, _| want.services.contains_key(k));
        let ok = self.applied.failed.is_empty();
        if ok {
            self.applied.generation = want.generation;
        }
        (self.observe)(Fact::Pass(match (ok, self.steps == steps_before) {
            (true, true) => PassEnd::Unchanged,
            (true, false) => PassEnd::Applied,
            (false, _) => PassEnd::Partial,
        }));
        ok
    }

    /// The owned services, found by walking the actual table; foreign ones are counted.
    fn whole_scope(&mut self, want: &Desired, actual: &KernelTable) -> Vec<ServiceKey> {
        let foreign = actual.keys().filter(|k| !want.services.contains_key(k));
        let mut scope: Vec<ServiceKey> = want.services.keys().copied().collect();
        if want.exclusive {
            scope.extend(foreign);
            self.applied.foreign = 0;
        } else {
            self.applied.foreign = foreign.count();
        }
        (self.observe)(Fact::Foreign(self.applied.foreign));
        scope
    }

    async fn again(
        &mut self,
        kernel: &mut impl Kernel,
        want: &Desired,
        services: BTreeSet<ServiceKey>,
    ) {
        let scope: Vec<ServiceKey> = services.into_iter().collect();
        match kernel.read(&scope).await {
            Ok(actual) => drop(self.make(kernel, want, &actual, &scope, None).await),
            Err(e) => warn!(error = %Chain(&e), "kernel table could not be read again"),
        }
    }

    /// Plans and applies for `scope`; returns the services whose reading an errno contradicted.
    /// `expected` are the services that were to change: others that need steps have drifted.
    async fn make(
        &mut self,
        kernel: &mut impl Kernel,
        want: &Desired,
        actual: &KernelTable,
        scope: &[ServiceKey],
        expected: Option<&BTreeSet<ServiceKey>>,
    ) -> BTreeSet<ServiceKey> {
        let mut work: Vec<Work> = Vec::with_capacity(scope.len());
        let mut drifted = 0;
        for key in scope {
            let wanted = want.services.get(key);
            let plan = plan(*key, wanted.map(AsRef::as_ref), actual.get(key));
            if !plan.is_empty() && expected.is_some_and(|e| !e.contains(key)) {
                warn!(service = %key, "service was changed by somebody else, it is put right");
                drifted += 1;
            }
            work.push(Work::new(*key, plan, actual.get(key)));
        }
        if expected.is_some() {
            (self.observe)(Fact::Drift(drifted));
        }
        // Failed servers leave first, of all services, and none waits for another.
        for w in &mut work {
            for step in std::mem::take(&mut w.plan.take_out) {
                self.apply(kernel, w, step).await;
            }
        }
        for w in &mut work {
            for step in std::mem::take(&mut w.plan.rest) {
                // What could not grow is not shrunk; other services go on.
                if !self.apply(kernel, w, step).await {
                    break;
                }
            }
        }
        let mut contradicted = BTreeSet::new();
        for w in work {
            if w.contradicted {
                contradicted.insert(w.key);
            }
            self.applied.kernel.insert(w.key, Arc::new(w.holds));
            match (w.failed, want.services.get(&w.key)) {
                (Some(why), _) => {
                    self.reached.remove(&w.key);
                    self.applied.failed.insert(w.key, why);
                }
                (None, wanted) => {
                    self.applied.failed.remove(&w.key);
                    match wanted {
                        Some(wanted) => self.reached.insert(w.key, Arc::clone(wanted)),
                        None => self.reached.remove(&w.key),
                    };
                }
            }
        }
        contradicted
    }

    async fn apply(&mut self, kernel: &mut impl Kernel, work: &mut Work, step: Step) -> bool {
        let result = kernel.apply(std::slice::from_ref(&step)).await.pop();
        match result.unwrap_or(Ok(())) {
            Ok(()) => {
                info!(service = %work.key, step = %step, "kernel table changed");
                (self.observe)(Fact::Step(step.label(), true));
                self.steps += 1;
                work.did(step);
                true
            }
            Err(e) => {
                warn!(service = %work.key, step = %step, error = %Chain(&e), "kernel refused a step, it will be tried again");
                (self.observe)(Fact::Step(step.label(), false));
                work.contradicted |= e.contradicts_reading();
                work.failed = Some(format!("{step}: {}", Chain(&e)));
                false
            }
        }
    }
}

/// One service in one pass.
struct Work {
    key: ServiceKey,
    plan: Plan,
    holds: BTreeMap<DestKey, DestAttrs>,
    failed: Option<String>,
    contradicted: bool,
}

impl Work {
    fn new(key: ServiceKey, plan: Plan, actual: Option<&ServiceState>) -> Self {
        let dests = actual.into_iter().flat_map(|a| &a.dests);
        let holds = dests.map(|(k, d)| (*k, d.attrs)).collect();
        Self {
            key,
            plan,
            holds,
            failed: None,
            contradicted: false,
        }
    }

    fn did(&mut self, step: Step) {
        match step {
            Step::NewDest(_, d, a) | Step::SetDest(_, d, a) => drop(self.holds.insert(d, a)),
            Step::DelDest(_, d) => drop(self.holds.remove(&d)),
            Step::DelService(_) => self.holds.clear(),
            Step::NewService(..) | Step::SetService(..) => {}
        }
    }
}

#[cfg(test)]
mod tests;
