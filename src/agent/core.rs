//! The core's shell: turns what happens into events, and what the core wants into calls. One task,
//! in which the core lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::state_file::{self, Keeper, StateFile};
use crate::{
    check::{Report, Target, Targets},
    clock,
    director::{Core, Effects, Event, Guard, Note, Outbox, status::Status},
    health::Standing,
    model::{MonoTime, ServiceKey},
    reconcile::plan::{Applied, Desired},
    telemetry::{
        Chain,
        metrics::{DirectorMetrics, StandInState, To},
    },
};

/// The longest sleep: the watchdog wants a sign of life.
const BEAT: Duration = Duration::from_secs(1);

/// How often it is looked for certificates that end soon.
const CERTIFICATES: Duration = Duration::from_secs(60);

/// A turn that comes so late says that this process or host was stopped.
const STOPPED: Duration = Duration::from_secs(5);

/// What comes in.
#[derive(Debug)]
pub struct Inputs {
    /// From the checks.
    pub reports: mpsc::Receiver<Report>,
    /// From the provisioner.
    pub events: mpsc::Receiver<Event>,
    /// From the reconciler.
    pub applied: watch::Receiver<Applied>,
    /// From operators.
    pub questions: mpsc::Receiver<oneshot::Sender<Status>>,
    /// What of this host does not fit.
    pub host: watch::Receiver<Vec<String>>,
}

/// What a turn begins with.
enum Input {
    Report(Report),
    Event(Event),
    Question(oneshot::Sender<Status>),
    Written(Result<(), state_file::Error>),
    Beat,
}

/// What goes out.
#[derive(Debug)]
pub struct Outputs {
    /// To the reconciler.
    pub desired: watch::Sender<Desired>,
    /// To the checks.
    pub targets: watch::Sender<Arc<Targets>>,
    /// To the provisioner.
    pub outbox: watch::Sender<Outbox>,
    /// To the watchdog.
    pub heartbeat: watch::Sender<MonoTime>,
}

/// The core and its hands.
#[derive(Debug)]
pub struct Shell {
    core: Core,
    memory: Keeper,
    metrics: DirectorMetrics,
    out: Outputs,
    /// Services whose part of what is wanted is to be computed anew.
    dirty: BTreeSet<ServiceKey>,
    /// Why the memory could not be kept, if it could not.
    not_kept: Option<String>,
    /// Services of whose certificates was told that they end soon.
    ending: BTreeSet<ServiceKey>,
}

impl Shell {
    /// Around a core, with its memory's file.
    #[must_use]
    pub fn new(core: Core, file: StateFile, metrics: DirectorMetrics, out: Outputs) -> Self {
        Self {
            core,
            memory: Keeper::new(file),
            metrics,
            out,
            dirty: BTreeSet::new(),
            not_kept: None,
            ending: BTreeSet::new(),
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        let mut last = clock::now();
        let mut certificates = last;
        let mut tick = last;
        // One for all turns: under a steady stream of probes a new sleep each turn would never end.
        let mut sleep = pin!(time::sleep(Duration::ZERO));
        let mut wakes = tick;
        loop {
            let due = self.core.next_deadline(last);
            tick = due.map_or(tick, |due| tick.min(due));
            if tick != wakes {
                sleep
                    .as_mut()
                    .reset(time::Instant::now() + tick.since(last));
                wakes = tick;
            }
            let input = tokio::select! {
                () = stop.cancelled() => break,
                // Cancel-safe, all of them: nothing is taken unless the branch wins.
                Some(report) = inputs.reports.recv() => Input::Report(report),
                Some(event) = inputs.events.recv() => Input::Event(event),
                Ok(()) = inputs.applied.changed() => {
                    Input::Event(Event::Applied(inputs.applied.borrow_and_update().clone()))
                }
                Some(answer) = inputs.questions.recv() => Input::Question(answer),
                kept = self.memory.written() => Input::Written(kept),
                () = &mut sleep => Input::Beat,
            };
            let now = clock::now();
            self.out.heartbeat.send_replace(now);
            if now.since(last) > STOPPED {
                warn!(
                    stopped_s = now.since(last).as_secs(),
                    "this process was stopped: failed servers must show again that they fail"
                );
                self.take(Event::Woke, now);
            }
            last = now;
            match input {
                Input::Report(report) => self.probed(report, now),
                Input::Event(event) => self.take(event, now),
                Input::Question(answer) => self.answer(answer, &inputs.host.borrow(), now),
                Input::Written(kept) => {
                    self.kept(kept);
                    self.remember();
                    self.publish(now);
                }
                Input::Beat => {}
            }
            if now >= tick {
                self.take(Event::Tick, now);
                if self.memory.failed() {
                    self.remember();
                }
                tick = now.after(BEAT);
            }
            if now >= certificates {
                self.look_at_certificates();
                certificates = now.after(CERTIFICATES);
            }
        }
        if !self.memory.is_settled() {
            let kept = self.memory.written().await;
            self.kept(kept);
        }
    }

    fn answer(&self, question: oneshot::Sender<Status>, host: &[String], now: MonoTime) {
        let mut status = self.core.status(now);
        status.warnings.extend(self.not_kept.clone());
        status.warnings.extend(host.iter().cloned());
        let certificates = self.core.certificate_warnings(clock::wall());
        status.warnings.extend(certificates.into_values());
        if question.send(status).is_err() {
            tracing::debug!("operator went away before the answer");
        }
    }

    /// Tells once of each service whose certificates end soon.
    fn look_at_certificates(&mut self) {
        let warnings = self.core.certificate_warnings(clock::wall());
        for (service, warning) in &warnings {
            if !self.ending.contains(service) {
                // In the text too: whoever reads the journal sees no fields.
                warn!(%service, "{warning}");
            }
        }
        self.ending = warnings.into_keys().collect();
    }

    fn probed(&mut self, report: Report, now: MonoTime) {
        let Report { slots, found } = report;
        let with_certificate = found.certificate_ends.map(|_| Arc::clone(&slots));
        self.take(Event::Probe { slots, found }, now);
        for slot in with_certificate.iter().flat_map(|slots| slots.iter()) {
            let standing = self.core.standing(slot.service, slot.dest);
            if let Some(ends) = standing.and_then(Standing::certificate_ends) {
                self.metrics
                    .set_certificate_ends(slot.service, slot.dest, ends);
            }
        }
    }

    fn take(&mut self, event: Event, now: MonoTime) {
        let quiet = matches!(event, Event::Probe { .. } | Event::Tick);
        let fx = self.core.handle(event, now);
        if quiet && fx == Effects::default() {
            return;
        }
        for note in &fx.notes {
            self.tell(note);
        }
        self.remember();
        self.dirty.extend(&fx.dirty);
        if fx.targets {
            let ids = self.core.watched_servers();
            self.metrics.keep_servers(|id| ids.contains(id));
            self.out.targets.send_replace(targets(&self.core));
        }
        self.publish(now);
    }

    fn remember(&mut self) {
        if self.core.may_write_memory() {
            self.memory.keep(|| self.core.memory());
        }
        let ok = self.not_kept.is_none() && self.core.remembers();
        self.metrics.state_file_ok.set(ok.into());
    }

    fn kept(&mut self, kept: Result<(), state_file::Error>) {
        let before = self.not_kept.take();
        self.not_kept = kept.err().map(|e| {
            let why = Chain(&e);
            format!("{why}: a restart will ask the provisioner for the stand-ins; free space or mend permissions")
        });
        match &self.not_kept {
            // In the text too: whoever reads the journal sees no fields.
            Some(why) if before.is_none() => error!("state was not kept: {why}"),
            None if before.is_some() => info!("state is kept again"),
            Some(_) | None => {}
        }
    }

    /// Memory first: while it is written, nobody is told what must not be forgotten. That is no requests of
    /// replacements, and no new hidden services; a failed server is taken out meanwhile.
    fn publish(&mut self, now: MonoTime) {
        let Self {
            core, dirty, out, ..
        } = self;
        let settled = self.memory.is_settled();
        out.desired.send_if_modified(|d| {
            let mut changed = false;
            let mut renewed = false;
            dirty.retain(|key| {
                let waits = !settled && !d.services.contains_key(key);
                renewed |= !waits;
                changed |= !waits && renew(d, *key, core);
                waits
            });
            let remade = settled && *d.made != *core.made();
            if remade {
                d.made = Arc::new(core.made().clone());
            }
            d.generation += u64::from(changed);
            renewed || remade
        });
        if settled {
            let outbox = core.outbox();
            out.outbox.send_if_modified(|o| {
                let differs = *o != outbox;
                *o = outbox;
                differs
            });
        }
        self.count(now);
    }

    fn count(&self, now: MonoTime) {
        let m = &self.metrics;
        m.incidents_open
            .set(i64::try_from(self.core.incident_count()).unwrap_or(i64::MAX));
        m.provisioner_up.set(self.core.provisioner_answers().into());
        let held = self.core.held(now);
        for guard in Guard::LABELS {
            let n = held.iter().filter(|h| **h == guard).count();
            m.set_held(guard, u32::try_from(n).unwrap_or(u32::MAX));
        }
        let mut stand_ins = BTreeMap::new();
        for s in self.core.stand_ins_now() {
            let state = StandInState::ALL.iter().find(|w| w.as_str() == s.state);
            if let Some(state) = state {
                *stand_ins.entry(*state).or_default() += 1;
            }
        }
        m.set_stand_ins(&stand_ins);
    }

    fn tell(&self, note: &Note) {
        let m = &self.metrics;
        match note {
            Note::WentUp(service, dest) => {
                info!(%service, server = %dest, "real server passed its checks");
                m.transition(To::Up, "passed");
                m.set_server_up(*service, *dest, true);
            }
            Note::WentDown(service, dest, why, detail) => {
                let detail = detail.as_deref().unwrap_or_default();
                warn!(%service, server = %dest, reason = %why, detail, "real server failed its checks, it is taken out");
                m.transition(To::Down, why.label());
                m.set_server_up(*service, *dest, false);
            }
            Note::HeldOut(service, dest, left) => {
                warn!(%service, server = %dest, seconds = left.as_secs(), "real server passes its checks again, and is held out because it came and went; another fall lengthens that");
                m.held_out.inc();
            }
            Note::Blind(service, dest, check, detail) => {
                let detail = detail.as_deref().unwrap_or_default();
                warn!(%service, server = %dest, check, detail, "a check cannot be made on this host: nobody knows how the real server is, it stays as it is");
            }
            Note::Advised(service, dest, Some(advice)) => {
                info!(%service, server = %dest, %advice, "a check wants another weight for the real server");
            }
            Note::Advised(service, dest, None) => {
                info!(%service, server = %dest, "the real server has its configured weight again");
            }
            Note::Requested(key) => {
                warn!(server = %key.failed, incident = %key, "replacement of a failed server was requested");
                m.replacements_requested.inc();
            }
            Note::Held(server, guard) => {
                info!(%server, guard = guard.label(), reason = %guard, "replacement of a failed server is held back");
            }
            Note::Recovered(key) => {
                info!(server = %key.failed, incident = %key, "failed server answers again, its replacement is called off");
            }
            Note::Progress(key, state, reason) => {
                let reason = reason.as_deref().unwrap_or_default();
                info!(server = %key.failed, incident = %key, state = state.as_str(), reason, "replacement moved on");
            }
            Note::Gave(key, why) => {
                error!(server = %key.failed, incident = %key, reason = %why, "replacement came to nothing; it is asked for again later if the server still fails");
            }
            Note::CalledOff(key, why) => {
                info!(server = %key.failed, incident = %key, reason = %why, "replacement was called off");
            }
            Note::Joined(m) => {
                info!(spare = %m.spare.name, addresses = ?m.spare.addresses, in_place_of = ?m.origins, replacement = %m.replacement, "stand-in was announced, it enters as soon as it passes its checks");
            }
            Note::Leaving(m) => {
                info!(spare = %m.spare.name, replacement = %m.replacement, "stand-in is withdrawn");
            }
            Note::Unlisted(id) => {
                warn!(replacement = %id, "provisioner does not list a stand-in that serves: it keeps its place; was the provisioner's store lost?");
            }
            Note::ProvisionerBack => info!("provisioner answers"),
            Note::ProvisionerSilent(why) => {
                warn!(error = %why, "provisioner does not answer: failed servers are taken out, but not replaced");
            }
        }
    }
}

/// Brings one service's part up to date; an equal part stays the shared one.
fn renew(desired: &mut Desired, key: ServiceKey, core: &Core) -> bool {
    let part = core.desired(key).map(Arc::new);
    match (part, desired.services.get(&key)) {
        (Some(new), Some(old)) if new == *old => false,
        (Some(new), _) => {
            desired.services.insert(key, new);
            true
        }
        (None, _) => desired.services.remove(&key).is_some(),
    }
}

/// Everything the core wants of the kernel, at the start.
#[must_use]
pub fn desired(core: &Core, exclusive: bool) -> Desired {
    let mut desired = Desired {
        generation: 1,
        services: BTreeMap::new(),
        exclusive,
        made: Arc::new(core.made().clone()),
    };
    for key in core.services() {
        renew(&mut desired, key, core);
    }
    desired
}

/// Everybody whom the core wants checked.
#[must_use]
pub fn targets(core: &Core) -> Arc<Targets> {
    let target = |((at, spec), slots): ((_, _), Vec<_>)| Target {
        at,
        spec,
        fast: slots.iter().any(|slot| core.is_awaited(slot)),
        slots: slots.into(),
    };
    Arc::new(core.targets().into_iter().map(target).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config,
        director::{Recall, Start},
        model::{
            DestAttrs, DestKey, FailReason, ForwardMethod, Found, Outcome, Slot, Tunnel,
            WallMillis, Weight, wire::Members,
        },
    };

    const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[provisioner]
socket = "/run/understudy/provisioner.sock"
address = "10.77.0.1"
[replacement]
replace_after = "1ms"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
real_server = [{ address = "10.0.0.1:80" }, { address = "10.0.0.2:80" }]
"#;

    fn service() -> ServiceKey {
        "tcp/192.0.2.1:80".parse().unwrap()
    }

    fn core(kernel: BTreeMap<DestKey, DestAttrs>) -> Core {
        let config = config::director::parse(Path::new("d.toml"), CONFIG).unwrap();
        let start = Start {
            now: clock::now(),
            wall: WallMillis(0),
            boot_id: "boot".into(),
            recall: Recall::Forgot("there is no state file".into()),
            kernel: [(service(), kernel)].into(),
            marked: BTreeSet::new(),
        };
        Core::new(Arc::new(config), start)
    }

    /// Waits for the condition, with a limit.
    async fn sees<T>(watched: &mut watch::Receiver<T>, is: impl FnMut(&T) -> bool) {
        let seen = time::timeout(Duration::from_secs(20), watched.wait_for(is)).await;
        seen.expect("it comes to be so").unwrap();
    }

    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_a_request_and_no_removal() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("state.json.new");
        // Whoever opens a pipe to write waits for somebody who reads.
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (file, _) = StateFile::open(dir.path(), &"lb1".parse().unwrap()).unwrap();
        let dest = |n: u8| DestKey {
            addr: [10, 0, 0, n].into(),
            port: 80,
        };
        let attrs = DestAttrs {
            weight: Weight::ONE,
            forward: ForwardMethod::Nat,
            upper: 0,
            lower: 0,
            tunnel: Tunnel::default(),
        };
        let core = core([(dest(1), attrs), (dest(2), attrs)].into());
        let (desired, mut to_kernel) = watch::channel(desired(&core, false));
        let (targets, _targets) = watch::channel(Arc::default());
        let (outbox, mut to_provisioner) = watch::channel(core.outbox());
        let (heartbeat, _heartbeat) = watch::channel(clock::now());
        let (report, reports) = mpsc::channel(16);
        let (event, events) = mpsc::channel(16);
        let (_applied, applied) = watch::channel(Applied::default());
        let (_questions, questions) = mpsc::channel(1);
        let (_host, host) = watch::channel(Vec::new());
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = DirectorMetrics::register(&mut registry, &crate::BUILD);
        let out = Outputs {
            desired,
            targets,
            outbox,
            heartbeat,
        };
        let inputs = Inputs {
            reports,
            events,
            applied,
            questions,
            host,
        };
        let stop = CancellationToken::new();
        let shell = Shell::new(core, file, metrics, out);
        #[expect(
            clippy::disallowed_methods,
            reason = "the test itself sees the end of the task"
        )]
        let task = tokio::spawn(shell.run(inputs, stop.clone()));
        // The provisioner has spoken: from now on there is something to be kept.
        let listed = Event::Members(Members::default());
        event.send(listed).await.unwrap();
        for outcome in [Outcome::Pass, Outcome::Fail(FailReason::Refused)] {
            for n in [1, 2] {
                let outcome = if n == 2 { Outcome::Pass } else { outcome };
                for _ in 0..3 {
                    let slot = Slot {
                        service: service(),
                        dest: dest(n),
                        check: 0,
                    };
                    let slots = [slot].into();
                    let found = Found::of(outcome, Duration::ZERO);
                    report.send(Report { slots, found }).await.unwrap();
                }
            }
        }
        sees(&mut to_kernel, |d| {
            d.services[&service()].out.contains(&dest(1))
        })
        .await;
        let decided = async {
            loop {
                let mut text = String::new();
                prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
                if text.contains("replacements_requested_total 1") {
                    return;
                }
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        let decided = time::timeout(Duration::from_secs(20), decided).await;
        decided.expect("the core wants a replacement");
        let told_before = !to_provisioner.borrow().requests.is_empty();
        // It says that it could not, and goes on: nothing can be synced to a pipe.
        let read = tokio::task::spawn_blocking(move || std::fs::read(pipe));
        sees(&mut to_provisioner, |o| !o.requests.is_empty()).await;
        assert!(!read.await.unwrap().unwrap().is_empty());
        assert!(!told_before, "of what could be forgotten");
        stop.cancel();
        task.await.unwrap();
    }

    #[test]
    fn a_service_that_did_not_change_keeps_its_shared_part() {
        let key = service();
        let core = core(BTreeMap::new());
        let mut all = desired(&core, false);
        assert_eq!(all.services.len(), 1);
        let part = Arc::clone(&all.services[&key]);
        assert!(!renew(&mut all, key, &core));
        // The reconciler tells by this that there is nothing to read or write.
        assert!(Arc::ptr_eq(&part, &all.services[&key]));
    }
}
