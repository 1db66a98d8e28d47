//! The core's shell: turns what happens into events, and what the core wants into calls. One task,
//! in which the core lives.

mod reload;

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
use tracing::{debug, error, info, warn};

use self::reload::Reloading;
use super::{
    lock::Lock,
    reader::Reader,
    reload::Load,
    state_file::{self, Keeper, StateFile},
};
use crate::{
    api::operator::{Answer, Explain, Ordering, Question},
    check::{Report, Target, Targets},
    clock,
    config::{self, Witness},
    director::{Core, Effects, Event, Guard, Known, Note, Outbox, events, status::Status},
    health::Standing,
    model::{
        Addresses, EventDraft, EventKind, EventRing, MonoTime, OrderAnswer, OrderedPlace, Removal,
        Role, ServiceKey, StopPolicy,
    },
    reconcile::plan::{Applied, Desired, Want},
    telemetry::{
        Chain,
        metrics::{DirectorMetrics, StandInState, StandbyState, To},
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
    pub questions: mpsc::Receiver<Question>,
    /// Configurations that were read.
    pub loads: mpsc::Receiver<Load>,
    /// Each a step towards the end.
    pub stops: mpsc::Receiver<oneshot::Sender<StopPolicy>>,
    /// What of this host does not fit.
    pub host: watch::Receiver<Vec<String>>,
    /// What of the virtual addresses is not as it should be.
    pub addresses: watch::Receiver<Vec<String>>,
}

/// What a turn begins with.
enum Input {
    Report(Report),
    Event(Event),
    Question(Question),
    Load(Box<Load>),
    Stop(oneshot::Sender<StopPolicy>),
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
    /// To who counts connections.
    pub draining: watch::Sender<BTreeSet<OrderedPlace>>,
    /// Who is to say whether this director is cut off; nobody while it does not doubt itself.
    pub witnesses: watch::Sender<Vec<Witness>>,
    /// The configuration, to whoever needs it.
    pub in_force: watch::Sender<Arc<config::Director>>,
    /// To whoever keeps the virtual addresses.
    pub addresses: watch::Sender<Arc<Addresses>>,
    /// To the watchdog.
    pub heartbeat: watch::Sender<MonoTime>,
    /// To operators and hooks: the last events.
    pub events: watch::Sender<EventRing>,
}

impl Outputs {
    /// What a core wants at the start; whoever is to hear of it subscribes.
    #[must_use]
    pub fn of(core: &Core) -> Self {
        Self {
            desired: watch::Sender::new(desired(core)),
            targets: watch::Sender::new(targets(core)),
            outbox: watch::Sender::new(core.outbox()),
            draining: watch::Sender::new(core.draining()),
            witnesses: watch::Sender::default(),
            in_force: watch::Sender::new(Arc::clone(core.config())),
            addresses: watch::Sender::new(Arc::new(core.addresses())),
            heartbeat: watch::Sender::new(clock::now()),
            events: watch::Sender::new(EventRing::new(
                Role::Director,
                Some(core.config().name.clone()),
                clock::wall(),
            )),
        }
    }
}

/// The core and its hands.
#[derive(Debug)]
pub struct Shell {
    core: Core,
    /// The configuration by which the virtual addresses were last told.
    config: Arc<config::Director>,
    memory: Keeper,
    lock: Lock,
    metrics: DirectorMetrics,
    out: Outputs,
    /// Services whose part of what is wanted is to be computed anew.
    dirty: BTreeSet<ServiceKey>,
    /// When the core wants a tick.
    due: Option<MonoTime>,
    /// Why the memory could not be kept, if it could not.
    not_kept: Option<String>,
    /// Services of whose certificates was told that they end soon.
    ending: BTreeSet<ServiceKey>,
    /// Orders that are answered when they are kept.
    orders: Vec<(Answer, Vec<OrderedPlace>)>,
    /// Reloads that are answered when the kernel's table is as wanted.
    reloads: Vec<Reloading>,
    /// Reads the kernel's table for a reload.
    reader: Reader,
}

impl Shell {
    /// Around a core, with its memory's file and its lock.
    #[must_use]
    pub fn new(
        core: Core,
        (file, lock): (StateFile, Lock),
        metrics: DirectorMetrics,
        out: Outputs,
    ) -> Self {
        let due = core.next_deadline(clock::now());
        Self {
            config: Arc::clone(core.config()),
            core,
            memory: Keeper::new(file),
            lock,
            metrics,
            out,
            due,
            dirty: BTreeSet::new(),
            not_kept: None,
            ending: BTreeSet::new(),
            orders: Vec::new(),
            reloads: Vec::new(),
            reader: Reader::default(),
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        self.happened(EventDraft::new(EventKind::Started, "director started"));
        let mut last = clock::now();
        let mut certificates = last;
        let mut tick = last;
        // One for all turns: under a steady stream of probes a new sleep each turn would never end.
        let mut sleep = pin!(time::sleep(Duration::ZERO));
        let mut wakes = tick;
        loop {
            tick = self.due.map_or(tick, |due| tick.min(due));
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
                Some(load) = inputs.loads.recv() => Input::Load(Box::new(load)),
                Some(answer) = inputs.stops.recv() => Input::Stop(answer),
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
                let stopped = now.since(last).as_secs();
                let text = format!(
                    "the director was stopped for {stopped} s: failed servers must show again that they fail"
                );
                self.happened(EventDraft::new(EventKind::WasStopped, &text));
                self.take(Event::Woke, now);
            }
            last = now;
            match input {
                Input::Report(report) => self.probed(report, now),
                Input::Event(event) => drop(self.take(event, now)),
                Input::Question(Question::Status(answer)) => {
                    let mut host = inputs.host.borrow().clone();
                    host.extend(inputs.addresses.borrow().iter().cloned());
                    self.answer(answer, &host, now);
                }
                Input::Question(Question::Explain(question)) => self.explain(question, now),
                Input::Question(Question::Order(ordering)) => self.order(*ordering, now),
                Input::Load(load) => self.load(*load, now).await,
                Input::Stop(answer) => {
                    self.take(Event::Stop, now);
                    if answer.send(self.core.stop_policy()).is_err() {
                        tracing::debug!("nobody waits for the end any more");
                    }
                }
                Input::Written(kept) => {
                    self.kept(kept);
                    self.remember();
                    self.publish(now);
                    self.answer_orders();
                }
                Input::Beat => {}
            }
            if now >= tick {
                self.take(Event::Tick, now);
                if self.memory.failed() {
                    self.remember();
                }
                self.look_at_memory();
                self.answer_reloads(now);
                tick = now.after(BEAT);
            }
            if now >= certificates {
                self.look_at_certificates();
                certificates = now.after(CERTIFICATES);
            }
        }
        // The newest memory, whatever is being written.
        self.remember();
        while !self.memory.is_settled() {
            let kept = self.memory.written().await;
            self.kept(kept);
            self.remember();
        }
    }

    fn answer(&self, question: oneshot::Sender<Status>, host: &[String], now: MonoTime) {
        let mut status = self.core.status(now);
        status.warnings.extend(self.not_kept.clone());
        status.warnings.extend(host.iter().cloned());
        let certificates = self.core.certificate_warnings(clock::wall());
        status.warnings.extend(certificates.into_values());
        told(question.send(status));
    }

    fn explain(&self, question: Explain, now: MonoTime) {
        let Explain {
            addr,
            port,
            service,
            answer,
        } = question;
        let found = self.core.explain(addr, port, service, now);
        told(answer.send(found));
    }

    /// Takes what an operator orders. It holds at once, and is answered when it is kept.
    fn order(&mut self, ordering: Ordering, now: MonoTime) {
        let Ordering {
            server,
            service,
            mut order,
            drains,
            answer,
        } = ordering;
        let places = self.core.places_of(server, service);
        if places.is_empty() {
            told(answer.send(None));
            return;
        }
        let wall = clock::wall();
        if let Some(order) = order.as_mut().filter(|order| order.wish.drains()) {
            let limit = drains.unwrap_or(self.out.in_force.borrow().drain_timeout);
            order.drain_ends = Some(wall.after(limit));
        }
        self.take(Event::Ordered(places.clone(), order, wall), now);
        self.orders.push((answer, places));
        self.answer_orders();
    }

    fn answer_orders(&mut self) {
        if !self.memory.is_settled() && self.not_kept.is_none() {
            return;
        }
        let not_kept = match self.core.may_write_memory() {
            true => self.not_kept.clone(),
            false => Some("the state file was lost, and is not written before the provisioner has said who stands in".to_owned()),
        };
        for (answer, places) in self.orders.drain(..) {
            let not_kept = not_kept.clone();
            told(answer.send(Some(OrderAnswer { places, not_kept })));
        }
    }

    /// Tells once of each service whose certificates end soon.
    fn look_at_certificates(&mut self) {
        let warnings = self.core.certificate_warnings(clock::wall());
        for (service, warning) in &warnings {
            if !self.ending.contains(service) {
                // In the text too: whoever reads the journal sees no fields.
                warn!(%service, "{warning}");
                let event = EventDraft::new(EventKind::CertificateEnds, warning).service(*service);
                self.happened(event);
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

    fn take(&mut self, event: Event, now: MonoTime) -> Effects {
        let probe = matches!(event, Event::Probe { .. });
        let quiet = probe || matches!(event, Event::Tick);
        let fx = self.core.handle(event, now);
        let nothing = fx == Effects::default();
        // A probe that changed nothing moves no deadline: ten thousand come in a second.
        if !(probe && nothing) {
            self.due = self.core.next_deadline(now);
        }
        if quiet && nothing {
            return fx;
        }
        for note in &fx.notes {
            self.tell(note);
            if let Some(event) = events::event(note) {
                self.happened(event);
            }
        }
        self.remember();
        self.dirty.extend(&fx.dirty);
        if fx.targets {
            let ids = self.core.watched_servers();
            self.metrics.keep_servers(|id| ids.contains(id));
            self.out.targets.send_replace(targets(&self.core));
        }
        if fx.addresses || !Arc::ptr_eq(self.core.config(), &self.config) {
            self.config = Arc::clone(self.core.config());
            let now = self.core.addresses();
            self.out.addresses.send_if_modified(|told| {
                let differs = **told != now;
                *told = Arc::new(now);
                differs
            });
        }
        self.publish(now);
        fx
    }

    /// Puts an event where operators and hooks see it. Nobody is waited for.
    fn happened(&self, event: EventDraft) {
        self.metrics.hooks.event(event.kind);
        let at = clock::wall();
        self.out.events.send_modify(|ring| ring.push(event, at));
    }

    fn remember(&mut self) {
        if self.core.may_write_memory() {
            self.memory.keep(|| self.core.memory());
        }
        let ok = self.not_kept.is_none() && self.core.remembers();
        self.metrics.state_file_ok.set(ok.into());
    }

    /// Tells of a disk that hangs.
    fn look_at_memory(&mut self) {
        if let (Some(since), None) = (self.memory.hangs(), &self.not_kept) {
            let why = format!(
                "the state file has been written for {} s: replacements are not asked for until it is there; does its disk answer?",
                since.as_secs()
            );
            error!("state was not kept: {why}");
            self.happened(EventDraft::new(
                EventKind::StateNotKept,
                &format!("state was not kept: {why}"),
            ));
            self.not_kept = Some(why);
            self.metrics.state_file_ok.set(0);
        }
        self.answer_orders();
    }

    fn kept(&mut self, kept: Result<(), state_file::Error>) {
        let before = self.not_kept.take();
        self.not_kept = kept.err().map(|e| {
            let why = Chain(&e);
            format!("{why}: a restart will ask the provisioner for the stand-ins; free space or mend permissions")
        });
        match &self.not_kept {
            // In the text too: whoever reads the journal sees no fields.
            Some(why) if before.is_none() => {
                error!("state was not kept: {why}");
                let text = format!("state was not kept: {why}");
                self.happened(EventDraft::new(EventKind::StateNotKept, &text));
            }
            None if before.is_some() => {
                info!("state is kept again");
                self.happened(EventDraft::new(EventKind::StateKept, "state is kept again"));
            }
            Some(_) | None => {}
        }
    }

    /// Memory first: while it is written, nobody is told what must not be forgotten. That is new requests of
    /// replacements, new hidden services, and stand-ins that enter; a failed server is taken out meanwhile.
    fn publish(&mut self, now: MonoTime) {
        let Self {
            core, dirty, out, ..
        } = self;
        let settled = self.memory.is_settled();
        out.desired.send_if_modified(|d| {
            let mut changed = false;
            let renewed = !dirty.is_empty();
            dirty.retain(|key| {
                let part = core.desired(*key);
                let enters = |part: &Want| enters(core, *key, part, d.services.get(key));
                let waits = !settled && part.as_ref().is_some_and(enters);
                let part = match (part, d.services.get(key)) {
                    (Some(new), Some(old)) if waits => Some(meanwhile(core, *key, old, &new)),
                    (Some(_), None) if waits => None,
                    (part, _) => part,
                };
                changed |= put(d, *key, part);
                waits
            });
            let remade = settled && *d.made != *core.made();
            if remade {
                d.made = Arc::new(core.made().clone());
            }
            d.generation += u64::from(changed);
            renewed || remade
        });
        let mut outbox = core.outbox();
        out.outbox.send_if_modified(|o| {
            if !settled {
                // Of requests those that were told before and are still wanted.
                outbox.requests.retain(|key| o.requests.contains(key));
            }
            let differs = *o != outbox;
            *o = outbox;
            differs
        });
        let draining = core.draining();
        out.draining.send_if_modified(|d| {
            let differs = *d != draining;
            *d = draining;
            differs
        });
        let asks = core.asks_witnesses();
        let rule = core.config().mass_failure.as_ref().filter(|_| asks);
        let witnesses = rule.map_or(&[][..], |rule| &rule.witnesses);
        out.witnesses.send_if_modified(|w| {
            let differs = w != witnesses;
            witnesses.clone_into(w);
            differs
        });
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
        for (guard, servers) in self.core.kept_in() {
            m.set_kept_in(guard, servers);
        }
        let mut stand_ins = BTreeMap::new();
        for s in self.core.stand_ins_now() {
            let state = StandInState::ALL.iter().find(|w| w.as_str() == s.state);
            if let Some(state) = state {
                *stand_ins.entry(*state).or_default() += 1;
            }
        }
        m.set_stand_ins(&stand_ins);
        let mut standbys = BTreeMap::new();
        for state in self.core.standby_states() {
            let state = StandbyState::ALL.iter().find(|w| w.as_str() == state);
            if let Some(state) = state {
                *standbys.entry(*state).or_default() += 1;
            }
        }
        m.set_standbys(&standbys);
    }

    fn tell(&self, note: &Note) {
        let m = &self.metrics;
        match note {
            Note::WentUp(service, dest) | Note::FirstUp(service, dest) => {
                info!(%service, server = %dest, "real server passed its checks");
                m.transition(To::Up, "passed");
                m.set_server_up(*service, *dest, true);
            }
            Note::WentDown(service, dest, why, detail, removal) => {
                let detail = detail.as_deref().unwrap_or_default();
                match removal {
                    Removal::Remove => {
                        warn!(%service, server = %dest, reason = %why, detail, "real server failed its checks, it is taken out");
                    }
                    Removal::Quiesce => {
                        warn!(%service, server = %dest, reason = %why, detail, "real server failed its checks, it keeps its connections and gets no new ones");
                    }
                }
                m.transition(To::Down, why.label());
                m.set_server_up(*service, *dest, false);
            }
            Note::Removed(service, dest, why, removal) => {
                let now = match removal {
                    Removal::Remove => "it is taken out",
                    Removal::Quiesce => "it gets no new connections",
                };
                // In the text too: whoever reads the journal sees no fields.
                warn!(%service, server = %dest, reason = %why, "real server that is down fails otherwise than before: {now}");
            }
            Note::HeldOut(service, dest, left) => {
                warn!(%service, server = %dest, seconds = left.as_secs(), "real server passes its checks again, and is held out because it came and went; another fall lengthens that");
                m.held_out.inc();
            }
            Note::Ramps(service, dest, over) => {
                info!(%service, server = %dest, seconds = over.as_secs(), "real server gets its share of new connections step by step (slow_start)");
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
            Note::Ordered(place, Some(order)) => {
                let OrderedPlace { service, server } = place;
                warn!(%service, %server, order = %order, "an operator ordered this of a real server");
            }
            Note::Ordered(place, None) => {
                let OrderedPlace { service, server } = place;
                info!(%service, %server, "an operator took back what was ordered of a real server");
            }
            Note::QuorumLost(service, live, needed, sorry) if sorry.is_empty() => {
                warn!(%service, live, needed, "quorum lost: too few real servers are up, and no sorry server is; those that are left go on");
                m.set_quorum_held(*service, false);
            }
            Note::QuorumLost(service, live, needed, sorry) => {
                let sorry: Vec<_> = sorry.iter().map(ToString::to_string).collect();
                warn!(%service, live, needed, sorry = sorry.join(" "), "quorum lost: too few real servers are up, sorry servers take the new connections");
                m.set_quorum_held(*service, false);
            }
            Note::QuorumHeld(service, live) => {
                info!(%service, live, "quorum regained: the real servers serve again");
                m.set_quorum_held(*service, true);
            }
            Note::OrderEnded(OrderedPlace { service, server }, order) => {
                warn!(%service, %server, was = %order, "the time of an operator's order is over: it is taken back");
            }
            Note::Drained(OrderedPlace { service, server }, 0) => {
                info!(%service, %server, "server is drained: no connection is left, it is out of the service");
            }
            Note::Drained(OrderedPlace { service, server }, cut) => {
                warn!(%service, %server, connections = cut, "the time for draining a server is over: it is out of the service, with the connections that it had left");
            }
            Note::Left(OrderedPlace { service, server }, 0) => {
                info!(%service, %server, "server that is no longer wanted has left, no connection was left");
            }
            Note::Left(OrderedPlace { service, server }, cut) => {
                warn!(%service, %server, connections = cut, "the time for draining a server that is no longer wanted is over: it has left, with the connections that it had");
            }
            Note::Reloaded(changes) => {
                info!(%changes, "the new configuration is in force");
            }
            Note::LinkDown(interface, servers) => {
                error!(%interface, servers, "the link of an interface is down: nobody behind it is taken out or replaced until it is up; look at cable, switch and driver");
            }
            Note::LinkUp(interface) => {
                info!(%interface, "the link of an interface is up again: the servers behind it are asked anew");
            }
            Note::MassFailure(failing, all, witnesses) => {
                error!(
                    failing,
                    of = all,
                    witnesses,
                    "too many servers fail at once: this director doubts itself, asks its witnesses, and holds requests back, and removals as configured"
                );
            }
            Note::MassFailureKnown(Known::CutOff) => {
                error!(
                    "no witness answers: this director is cut off itself, nobody is taken out or replaced until one does; look at its network"
                );
            }
            Note::MassFailureKnown(Known::Real | Known::Nothing) => {
                error!(
                    "a witness answers, or there is none to ask: the servers failed, they are taken out"
                );
            }
            Note::MassFailureOver => {
                info!("servers do not fail in masses any more: they are judged as ever");
            }
            Note::Panic(service, stay) if stay.is_empty() => {
                info!(%service, "enough servers are up again: those that fail are out");
            }
            Note::Panic(service, stay) => {
                let stay: Vec<_> = stay.iter().map(ToString::to_string).collect();
                error!(%service, stay = stay.join(", "), "fewer servers are left than panic_threshold allows: these stay in though they fail, until others are up");
            }
            Note::Requested(key) => {
                warn!(server = %key.failed, incident = %key, "replacement of a failed server was requested");
                m.replacements_requested.inc();
            }
            Note::Held(server, guard) => {
                info!(%server, guard = guard.label(), reason = %guard, "replacement of a failed server is held back");
            }
            Note::Recovered(key) => {
                info!(server = %key.failed, incident = %key, "failed server answers again, or was put aside by an operator: its replacement is called off");
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
            Note::WasWarm(service, dest) => {
                info!(%service, server = %dest, "stand-in was watched as a warm spare and passes its checks: it enters at once");
                m.transition(To::Up, "passed");
                m.set_server_up(*service, *dest, true);
            }
            Note::StandbyReady(spare, origins) => {
                info!(spare = %spare.name, addresses = ?spare.addresses, in_place_of = ?origins, "warm spare passes its checks: it could take a place at once");
            }
            Note::StandbyFails(failure) => {
                // In the text too: whoever reads the journal sees no fields.
                warn!(spare = %failure.name, service = %failure.service, server = %failure.server, reason = %failure.reason, "{failure}");
            }
            Note::Leaving(m) => {
                info!(spare = %m.spare.name, replacement = %m.replacement, "stand-in is withdrawn");
            }
            Note::GivenBack(m, true) => {
                info!(spare = %m.spare.name, in_place_of = ?m.origins, replacement = %m.replacement, "the server is well again and gets its place back: its stand-in is given back to the provisioner");
            }
            Note::GivenBack(m, false) => {
                warn!(spare = %m.spare.name, in_place_of = ?m.origins, replacement = %m.replacement, "stand-in is given back to the provisioner: the configuration names neither it nor those whose place it has");
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

/// An operator may have gone away before the answer.
fn told<T>(sent: Result<(), T>) {
    if sent.is_err() {
        debug!("operator went away before the answer");
    }
}

/// Whether something comes into a service that a director which forgot it would take for a stranger: a stand-in,
/// or the whole of a hidden service.
fn enters(core: &Core, key: ServiceKey, new: &Want, old: Option<&Arc<Want>>) -> bool {
    let Some(old) = old else { return true };
    let mut dests = new.service.dests.keys();
    dests.any(|dest| !old.service.dests.contains_key(dest) && !core.is_configured(key, *dest))
}

/// What is wanted of a service until what enters it is kept: all the rest, and whoever is to leave for it stays.
/// Servers that failed leave.
fn meanwhile(core: &Core, key: ServiceKey, old: &Want, new: &Want) -> Want {
    let mut part = new.clone();
    let before = &old.service.dests;
    let dests = &mut part.service.dests;
    dests.retain(|dest, _| before.contains_key(dest) || core.is_configured(key, *dest));
    for (dest, attrs) in before {
        if !new.out.contains(dest) {
            dests.entry(*dest).or_insert(*attrs);
        }
    }
    part
}

/// Puts one service's part in its place; an equal part stays the shared one.
fn put(desired: &mut Desired, key: ServiceKey, part: Option<Want>) -> bool {
    match (part, desired.services.get(&key)) {
        (Some(new), Some(old)) if new == **old => false,
        (Some(new), _) => {
            desired.services.insert(key, Arc::new(new));
            true
        }
        (None, _) => desired.services.remove(&key).is_some(),
    }
}

/// Everything the core wants of the kernel, at the start.
#[must_use]
pub fn desired(core: &Core) -> Desired {
    let config = core.config();
    let mut desired = Desired {
        generation: 1,
        services: BTreeMap::new(),
        resync: config.resync,
        shadow: config.shadow,
        exclusive: config.exclusive,
        made: Arc::new(core.made().clone()),
    };
    for key in core.services() {
        put(&mut desired, key, core.desired(key));
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
mod tests;
