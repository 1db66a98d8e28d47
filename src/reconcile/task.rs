//! Reads, plans, applies. The only one who writes to IPVS.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    drift::{Difference, Field, merge},
    plan::{Applied, Desired, Want, plan},
    stalled::Stalled,
    work::{Lines, Told, Wave, Work},
};
use crate::{
    ipvs::{self, Kernel},
    model::{DestAttrs, DestKey, DriftPolicy, KernelTable, ServiceKey, ServiceState, Step},
    telemetry::Chain,
};

/// So many steps, a failed server's removal aside, and it is looked whether something else is wanted
/// by now.
const PIECE: usize = 512;

/// What a pass did, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A pass ended.
    Pass(PassEnd),
    /// Steps were applied, or refused.
    Step(&'static str, bool, u64),
    /// A reading found so many differences that others made and that were not known before.
    Drift(DriftPolicy, Field, u64),
    /// So many differences that others made stand.
    Standing(usize),
    /// A periodic reading found so many services that stand in no configuration.
    Foreign(usize),
    /// Destinations that get connections of which none comes to stand, while their siblings' do.
    Stalled(BTreeSet<DestKey>),
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassEnd {
    /// Nothing was to be done.
    Unchanged,
    /// Every step was done.
    Applied,
    /// Some steps were refused, or left to the next pass.
    Partial,
    /// The table could not be read.
    Unread,
}

/// Runs until `stop`; leaves the kernel's table as it is. `retry` is the wait after a pass that failed, and
/// after one that was the first to find drift.
pub async fn run(
    mut kernel: impl Kernel,
    mut desired: watch::Receiver<Desired>,
    applied: watch::Sender<Applied>,
    retry: Duration,
    observe: impl Fn(Fact) + Send + Sync,
    stop: CancellationToken,
) {
    let mut reconciler = Reconciler::new(observe);
    let mut next_whole = time::Instant::now();
    let mut follows = false;
    loop {
        let want = desired.borrow_and_update().clone();
        let now = time::Instant::now();
        let whole = now >= next_whole;
        let newer = || desired.has_changed().unwrap_or(false);
        let ok = reconciler.pass(&mut kernel, &want, whole, &newer).await;
        if whole {
            // Who changes the table may be at it still, and a reading takes its time: after the
            // first pass that found something another one follows soon.
            let drifted = std::mem::take(&mut reconciler.drifted);
            let soon = drifted && !follows;
            follows = soon;
            next_whole = if reconciler.unread {
                // Trying took its time: what changes meanwhile has its turn before the next try.
                time::Instant::now() + retry
            } else {
                now + if soon { retry } else { want.resync }
            };
        }
        // A pass that found everything as it was has nothing to say.
        if std::mem::take(&mut reconciler.moved) {
            applied.send_replace(reconciler.applied.clone());
        }
        let wake = if ok {
            next_whole
        } else {
            next_whole.min(time::Instant::now() + retry)
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
    /// What was wanted of each service when it was last brought to it; after a failure, that with
    /// the steps that were made. Never the very part that is wanted, unless that is reached.
    base: BTreeMap<ServiceKey, Arc<Want>>,
    /// Whether `applied` is worth telling since it was told last.
    moved: bool,
    /// Whether a difference that others made was found since this was asked last.
    drifted: bool,
    /// Services that were wanted, and are no longer: ours to remove until they are gone.
    shed: BTreeSet<ServiceKey>,
    /// Services that are to go, and that the kernel still has.
    intruders: BTreeSet<ServiceKey>,
    stalled: Stalled,
    /// In shadow: what the last reading found for the first time.
    unsettled: BTreeMap<ServiceKey, Vec<Difference>>,
    /// Whether the whole table could not be read when that was last tried.
    unread: bool,
    /// Whether steps of the running pass are left to the next one.
    cut: bool,
    /// Steps since it was last looked whether something else is wanted.
    piece: usize,
    /// Steps applied since the start.
    steps: usize,
    observe: O,
}

impl<O: Fn(Fact)> Reconciler<O> {
    fn new(observe: O) -> Self {
        Self {
            applied: Applied::default(),
            base: BTreeMap::new(),
            moved: true,
            drifted: false,
            shed: BTreeSet::new(),
            intruders: BTreeSet::new(),
            stalled: Stalled::default(),
            unsettled: BTreeMap::new(),
            unread: false,
            cut: false,
            piece: 0,
            steps: 0,
            observe,
        }
    }

    /// One pass on one reading: of the whole table, or only of the services whose part changed or
    /// is not reached yet. Says whether everything is as wanted. Where `newer` says that something
    /// else is wanted by now, it may end before.
    async fn pass(
        &mut self,
        kernel: &mut impl Kernel,
        want: &Desired,
        whole: bool,
        newer: &impl Fn() -> bool,
    ) -> bool {
        let steps_before = self.steps;
        (self.cut, self.piece) = (false, 0);
        let dropped = self.base.keys().filter(|k| !want.services.contains_key(k));
        let dropped: Vec<ServiceKey> = dropped.copied().collect();
        self.intruders.extend(&dropped);
        self.shed.extend(dropped);
        self.shed.retain(|k| !want.services.contains_key(k));
        // A reading that failed is not an empty table: nothing is planned on it.
        let Some((scope, actual)) = self.reading(kernel, want, whole).await else {
            (self.observe)(Fact::Pass(PassEnd::Unread));
            return false;
        };
        let contradicted = self.make(kernel, want, &actual, &scope, newer).await;
        if !contradicted.is_empty() && !self.cut {
            // The kernel contradicts what was read: somebody else changed it meanwhile. Once more.
            self.again(kernel, want, contradicted, newer).await;
        }
        let ours = |k: &ServiceKey| want.services.contains_key(k);
        self.base.retain(|k, _| ours(k));
        self.applied.kernel.retain(|k, _| ours(k));
        let (intruders, shed) = (&mut self.intruders, &self.shed);
        intruders.retain(|k| is_to_go(want, shed, k));
        let intruders = &self.intruders;
        (self.applied.failed).retain(|k, _| ours(k) || intruders.contains(k));
        self.applied.drift.retain(|k, _| ours(k));
        let standing = self.applied.drift.values().map(Vec::len).sum();
        (self.observe)(Fact::Standing(standing));
        let ok = self.applied.failed.is_empty() && self.intruders.is_empty() && !self.cut;
        if ok && self.applied.generation != want.generation {
            self.applied.generation = want.generation;
            self.moved = true;
        }
        self.moved |= self.steps != steps_before;
        let unread = whole && self.unread;
        (self.observe)(Fact::Pass(match (ok, self.steps == steps_before) {
            _ if unread => PassEnd::Unread,
            (true, true) => PassEnd::Unchanged,
            (true, false) => PassEnd::Applied,
            (false, _) => PassEnd::Partial,
        }));
        ok && !unread
    }

    /// What a pass works on: the services in question and what the kernel has of them. Where the
    /// whole table cannot be read, those whose part changed are read all the same: a failed server's
    /// removal does not wait for the rest.
    async fn reading(
        &mut self,
        kernel: &mut impl Kernel,
        want: &Desired,
        whole: bool,
    ) -> Option<(Vec<ServiceKey>, KernelTable)> {
        if whole {
            let table = self.table(kernel).await;
            self.unread = table.is_err();
            match table {
                Ok(table) => {
                    self.readable();
                    let stalled = self.stalled.look(&table);
                    if !stalled.is_empty() {
                        (self.observe)(Fact::Stalled(stalled));
                    }
                    return Some((self.whole_scope(want, &table), table));
                }
                Err(e) => self.unreadable(&e),
            }
        }
        let reached = |k, w| self.base.get(k).is_some_and(|r| Arc::ptr_eq(r, w));
        let changed = want.services.iter().filter(|(k, w)| !reached(k, w));
        let mut scope: Vec<ServiceKey> = changed.map(|(k, _)| *k).collect();
        scope.extend(self.owed(want));
        let part = match scope.is_empty() {
            true => Ok(KernelTable::new()),
            false => kernel.read(&scope).await,
        };
        match part {
            Ok(part) => {
                if !self.unread {
                    self.readable();
                }
                Some((scope, part))
            }
            Err(e) => {
                if !self.unread {
                    self.unreadable(&e);
                }
                None
            }
        }
    }

    fn readable(&mut self) {
        self.moved |= self.applied.unreadable.take().is_some();
    }

    /// It is tried every second: what the log knows is not said again.
    fn unreadable(&mut self, error: &ipvs::Error) {
        let why = Some(Chain(error).to_string());
        if self.applied.unreadable == why {
            debug!(error = %Chain(error), "kernel table could not be read again, nothing was changed");
            return;
        }
        warn!(error = %Chain(error), "kernel table could not be read, nothing was changed");
        self.applied.unreadable = why;
        self.moved = true;
    }

    /// Services that are still to go.
    fn owed<'a>(&'a self, want: &'a Desired) -> impl Iterator<Item = ServiceKey> + 'a {
        let to_go = |k: &&ServiceKey| is_to_go(want, &self.shed, k);
        self.intruders.iter().filter(to_go).copied()
    }

    /// The whole table. A dump can leave a service out when others change theirs meanwhile: one that
    /// was there before is asked for by its name before it counts as gone.
    async fn table(&self, kernel: &mut impl Kernel) -> Result<KernelTable, ipvs::Error> {
        let mut table = kernel.table().await?;
        let absent = self.base.keys().filter(|key| !table.contains_key(key));
        let absent: Vec<ServiceKey> = absent.copied().collect();
        if !absent.is_empty() {
            table.extend(kernel.read(&absent).await?);
        }
        Ok(table)
    }

    /// The owned services, found by walking the actual table; foreign ones are counted.
    fn whole_scope(&mut self, want: &Desired, actual: &KernelTable) -> Vec<ServiceKey> {
        let others = actual.keys().filter(|k| !want.services.contains_key(k));
        let (to_go, foreign): (Vec<&ServiceKey>, Vec<&ServiceKey>) =
            others.partition(|k| is_to_go(want, &self.shed, k));
        let mut scope: Vec<ServiceKey> = want.services.keys().copied().collect();
        scope.extend(to_go);
        scope.extend(self.owed(want).filter(|k| !actual.contains_key(k)));
        let before = self.applied.foreign;
        self.applied.foreign = foreign.len();
        self.moved |= self.applied.foreign != before;
        (self.observe)(Fact::Foreign(self.applied.foreign));
        scope
    }

    async fn again(
        &mut self,
        kernel: &mut impl Kernel,
        want: &Desired,
        services: BTreeSet<ServiceKey>,
        newer: &impl Fn() -> bool,
    ) {
        let scope: Vec<ServiceKey> = services.into_iter().collect();
        match kernel.read(&scope).await {
            Ok(actual) => drop(self.make(kernel, want, &actual, &scope, newer).await),
            Err(e) => warn!(error = %Chain(&e), "kernel table could not be read again"),
        }
    }

    /// Plans and applies for `scope`; returns the services whose reading an errno contradicted.
    async fn make(
        &mut self,
        kernel: &mut impl Kernel,
        want: &Desired,
        actual: &KernelTable,
        scope: &[ServiceKey],
        newer: &impl Fn() -> bool,
    ) -> BTreeSet<ServiceKey> {
        let mut work = Vec::new();
        let mut lines = Lines::new();
        for key in scope {
            let (wanted, found) = (want.services.get(key), actual.get(key));
            if want.shadow {
                self.compare(*key, wanted, found);
                continue;
            }
            if let Some(wanted) = wanted
                && wanted.is_met_by(found)
            {
                self.reached(*key, Some(wanted), Vec::new());
                self.hold(*key, found);
                continue;
            }
            let (plan, differences) = match wanted {
                None => (plan(*key, None, &BTreeSet::new(), found), Vec::new()),
                Some(w) => {
                    let base = self.base.get(key).map(|b| &b.service);
                    let merged = merge(*key, base, &w.service, &w.out, found, w.drift);
                    self.tell(w.drift, &merged.differences, &mut lines);
                    let plan = plan(*key, merged.service.as_deref(), &w.out, found);
                    (plan, merged.differences)
                }
            };
            let known = self.applied.failed.get(key).cloned();
            work.push(Work::new(*key, wanted, found, differences, plan, known));
        }
        lines.end_drift();
        // Failed servers leave first, of all services, and none waits for another.
        for wave in Wave::ALL {
            if !self.wave(kernel, &mut work, wave, newer).await {
                break;
            }
        }
        let mut contradicted = BTreeSet::new();
        for w in work {
            if w.contradicted {
                contradicted.insert(w.key);
            }
            self.conclude(w);
        }
        contradicted
    }

    /// In shadow: tells what the kernel has otherwise than this director would make it, once that was so in two
    /// readings. Who else makes the table finds a failure sooner or later than this one.
    fn compare(
        &mut self,
        key: ServiceKey,
        wanted: Option<&Arc<Want>>,
        found: Option<&ServiceState>,
    ) {
        let Some(wanted) = wanted else {
            self.unsettled.remove(&key);
            return self.reached(key, None, Vec::new());
        };
        let (want, none) = (&wanted.service, BTreeSet::new());
        let merged = merge(key, Some(want), want, &none, found, DriftPolicy::Alert);
        let before = self.unsettled.remove(&key).unwrap_or_default();
        let known = self.applied.drift.get(&key).cloned().unwrap_or_default();
        let stands = |d: &&Difference| before.contains(d) || known.contains(d);
        let stand: Vec<Difference> = merged.differences.iter().filter(stands).cloned().collect();
        for d in stand.iter().filter(|d| !known.contains(d)) {
            (self.observe)(Fact::Drift(DriftPolicy::Alert, d.field, 1));
            let server = d.dest.map(tracing::field::display);
            let (field, wanted, found) = (d.field.label(), &d.wanted, &d.found);
            warn!(service = %key, server, field, would = %wanted, found = %found, "shadow: the kernel's table is not as this director would make it");
        }
        for d in known.iter().filter(|d| !stand.contains(d)) {
            let server = d.dest.map(tracing::field::display);
            let field = d.field.label();
            info!(service = %key, server, field, "shadow: the kernel's table is again as this director would make it");
        }
        if merged.differences.len() > stand.len() {
            self.drifted = true;
            self.unsettled.insert(key, merged.differences);
        }
        self.reached(key, Some(wanted), stand);
        self.hold(key, found);
    }

    /// Counts what others changed, and tells what was not told before.
    fn tell(&mut self, policy: DriftPolicy, differences: &[Difference], lines: &mut Lines) {
        for d in differences {
            let known = self.applied.drift.get(&d.service);
            if !known.is_some_and(|k| k.contains(d)) {
                self.drifted = true;
                (self.observe)(Fact::Drift(policy, d.field, 1));
                lines.drift(policy, d);
            }
        }
    }

    /// The steps of one phase, of all services. Says whether the next phase may follow: a change of
    /// what is wanted waits for one piece at most, since it may take a failed server out.
    async fn wave(
        &mut self,
        kernel: &mut impl Kernel,
        work: &mut [Work<'_>],
        wave: Wave,
        newer: &impl Fn() -> bool,
    ) -> bool {
        for w in &mut *work {
            w.begin(wave);
        }
        let mut told = Told::new();
        let mut counts: BTreeMap<(&'static str, bool), u64> = BTreeMap::new();
        let mut count = |step: &Step, ok| *counts.entry((step.label(), ok)).or_default() += 1;
        let ended = loop {
            // Failed servers leave in one call.
            let urgent = wave == Wave::TakeOut;
            let limit = if urgent {
                usize::MAX
            } else {
                PIECE - self.piece
            };
            let mut steps = Vec::new();
            for w in &mut *work {
                w.send(limit, &mut steps);
            }
            if steps.is_empty() {
                break true;
            }
            self.piece += if urgent { 0 } else { steps.len() };
            let results = kernel.apply(&steps).await;
            // A step of which nothing was said is not a success.
            let results = results
                .into_iter()
                .map(Some)
                .chain(iter::repeat_with(|| None));
            let mut results = steps.into_iter().zip(results);
            for w in &mut *work {
                w.take(wave, &mut results, &mut told, &mut count);
            }
            if self.piece >= PIECE {
                self.piece = 0;
                if newer() {
                    break false;
                }
            }
        };
        told.end();
        for ((step, ok), n) in counts {
            (self.observe)(Fact::Step(step, ok, n));
        }
        ended
    }

    /// Takes one service's account into what is known.
    fn conclude(&mut self, work: Work<'_>) {
        let key = work.key;
        self.steps += work.steps();
        if work.steps() == 0 {
            self.hold(key, work.found);
        } else {
            self.applied.kernel.insert(key, Arc::new(work.holds()));
        }
        let cut = work.failed.is_none() && work.is_cut();
        self.cut |= cut;
        if work.failed.is_none() && !cut {
            // What is put right differs no more.
            let left = work.wanted.is_some_and(|w| w.drift != DriftPolicy::Repair);
            let stands = if left { work.differences } else { Vec::new() };
            return self.reached(key, work.wanted, stands);
        }
        // Where it is not known what was made, all that is wanted is made so again.
        let old = self.base.remove(&key).filter(|_| !work.unsure);
        let base = old.map_or_else(|| work.first_base(), |old| Some(work.rebase(&old)));
        if let Some(base) = base {
            self.base.insert(key, Arc::new(base));
        }
        if work.wanted.is_none() {
            self.intruders.insert(key);
        }
        self.stand(key, work.differences);
        if let Some(why) = work.failed {
            self.moved |= self.applied.failed.get(&key) != Some(&why);
            self.applied.failed.insert(key, why);
        }
    }

    /// A service is as wanted, but for what others changed and what is left so.
    fn reached(&mut self, key: ServiceKey, wanted: Option<&Arc<Want>>, stands: Vec<Difference>) {
        match wanted {
            None => {
                self.base.remove(&key);
                self.intruders.remove(&key);
                self.shed.remove(&key);
            }
            Some(w) if self.base.get(&key).is_some_and(|b| Arc::ptr_eq(b, w)) => {}
            Some(w) => drop(self.base.insert(key, Arc::clone(w))),
        }
        self.moved |= self.applied.failed.remove(&key).is_some();
        self.stand(key, stands);
    }

    fn stand(&mut self, key: ServiceKey, differences: Vec<Difference>) {
        let before = self.applied.drift.get(&key);
        if before.map_or(&[][..], Vec::as_slice) == differences {
            return;
        }
        self.moved = true;
        match differences.is_empty() {
            true => drop(self.applied.drift.remove(&key)),
            false => drop(self.applied.drift.insert(key, differences)),
        }
    }

    /// Notes what the kernel holds of a service; what is unchanged stays shared.
    fn hold(&mut self, key: ServiceKey, found: Option<&ServiceState>) {
        let dests = || found.into_iter().flat_map(|f| &f.dests);
        let same = |old: &BTreeMap<DestKey, DestAttrs>| {
            old.len() == found.map_or(0, |f| f.dests.len())
                && (old.iter().zip(dests())).all(|((k, a), (d, s))| k == d && *a == s.attrs)
        };
        if self.applied.kernel.get(&key).is_some_and(|old| same(old)) {
            return;
        }
        self.moved = true;
        let holds = dests().map(|(k, d)| (*k, d.attrs)).collect();
        self.applied.kernel.insert(key, Arc::new(holds));
    }
}

/// Whether a service in the kernel is not wanted, and ours to remove.
fn is_to_go(want: &Desired, shed: &BTreeSet<ServiceKey>, key: &ServiceKey) -> bool {
    want.is_to_go(key) || (shed.contains(key) && !want.services.contains_key(key))
}

#[cfg(test)]
mod tests;
