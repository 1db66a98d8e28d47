//! The director's core: what to do on which event. PURE, and sole owner of the director's state.
//!
//! Events go in through [`Core::handle`]; what is wanted of the world comes out as values that the
//! shell makes true, however often it takes: [`Core::desired`] of the kernel, [`Core::outbox`] of
//! the provisioner, [`Core::memory`] of the state file, [`Core::targets`] of the checks.

mod addresses;
mod aftermath;
mod certificates;
mod doubt;
pub mod events;
pub mod explain;
pub mod findings;
mod guard;
mod incident;
mod initial;
mod leaving;
mod memory;
mod orders;
mod panic;
mod ramp;
mod reload;
mod rule;
mod service;
pub mod settings;
pub mod standby;
pub mod status;
pub mod stopping;
pub mod ways;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use crate::{
    config,
    health::{Health, Quorum, Standing, Transition},
    model::{
        Advice, DestAttrs, DestKey, FailReason, Found, IncidentKey, MonoTime, Order, OrderedPlace,
        Outcome, Presence, Reloaded, Removal, ReplacementId, Service, ServiceKey, Slot, WallMillis,
        Weight,
        wire::{Findings, Member, Members, Replacement, ReplacementState, Spare, Want},
    },
    reconcile::plan::Applied,
};

use doubt::{Cut, Fallen};
pub use doubt::{Known, Mass};
pub use guard::Guard;
use incident::Tries;
pub use incident::{Incident, Stage};
use leaving::LeavingService;
use orders::Ordered;
use ramp::Ramps;
pub use rule::{Rule, Seat};
use standby::{StandbyFailure, Standbys};
use stopping::Stopping;
use ways::{Ways, diagnosis};

pub use leaving::{Connections, HANDSHAKE};
pub use memory::{
    Memory, Recall, RememberedIncident, RememberedLeaving, RememberedOrder, RememberedTries, recall,
};
pub use reload::{Plan, Reload};

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A probe ended.
    Probe {
        /// For whom.
        slots: Arc<[Slot]>,
        /// What it found.
        found: Found,
    },
    /// The provisioner listed our stand-ins.
    Members(Members),
    /// The provisioner answered about the replacement asked for with a key.
    Replacement(IncidentKey, Box<Replacement>),
    /// The provisioner refused a request for good, in its words.
    Refused(IncidentKey, String),
    /// The provisioner could not be asked, in words.
    ProvisionerSilent(String),
    /// The provisioner took note of a confirmation.
    Confirmed(ReplacementId, Want),
    /// An operator ordered this of these, or took back what was ordered; now, for people.
    Ordered(Vec<OrderedPlace>, Option<Order>, WallMillis),
    /// Connections of those that are being drained were counted.
    Counted(Connections),
    /// These servers are behind interfaces without carrier, named with them; no others are.
    CutOff(BTreeMap<IpAddr, String>),
    /// So many witnesses answered.
    Witnessed(usize),
    /// There is another configuration.
    Reload(Box<Reload>),
    /// A pass over the kernel's table ended.
    Applied(Applied),
    /// The director is to end: one step further.
    Stop,
    /// Time went on.
    Tick,
    /// This process or host was stopped for a while: what was seen before says nothing of now.
    Woke,
}

/// Something worth a log line and a count: the shell writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A server became fit that had failed.
    WentUp(ServiceKey, DestKey),
    /// A server of which nothing was known is fit.
    FirstUp(ServiceKey, DestKey),
    /// A server became unfit: the reason, what its failed check found besides, and what becomes of it.
    WentDown(ServiceKey, DestKey, FailReason, Option<Arc<str>>, Removal),
    /// A server that was down fails otherwise than before, and this becomes of it.
    Removed(ServiceKey, DestKey, FailReason, Removal),
    /// A server passes, and stays out for its falls: for how long if it does not fall again.
    HeldOut(ServiceKey, DestKey, Duration),
    /// A server gets its share of new connections step by step, over so long.
    Ramps(ServiceKey, DestKey, Duration),
    /// A check of this kind could not be made several times in a row, and why.
    Blind(ServiceKey, DestKey, &'static str, Option<Arc<str>>),
    /// A check wants another weight of a server than before; none is the configured one.
    Advised(ServiceKey, DestKey, Option<Advice>),
    /// An operator ordered this of a server, or took back what was ordered.
    Ordered(OrderedPlace, Option<Order>),
    /// What an operator ordered of a server has ended by itself.
    OrderEnded(OrderedPlace, Order),
    /// A server that was drained by order is out; so many connections were cut off.
    Drained(OrderedPlace, u64),
    /// A server that is no longer wanted has left; so many connections were cut off.
    Left(OrderedPlace, u64),
    /// Another configuration is in force.
    Reloaded(Reloaded),
    /// The servers that are up have this weight together, and it takes the second; these sorry servers take
    /// the new connections.
    QuorumLost(ServiceKey, u64, u64, Vec<DestKey>),
    /// The servers that are up have enough weight again, this.
    QuorumHeld(ServiceKey, u64),
    /// The link of this interface is down, with so many servers behind it.
    LinkDown(String, usize),
    /// It is up again.
    LinkUp(String),
    /// So many servers of so many fail at once; there are so many witnesses.
    MassFailure(usize, usize, usize),
    /// What is known of that.
    MassFailureKnown(Known),
    /// Too many servers fail no longer.
    MassFailureOver,
    /// These servers stay in a service though they fail: fewer than the panic threshold would be left.
    Panic(ServiceKey, Vec<DestKey>),
    /// A failed server is to be replaced.
    Requested(IncidentKey),
    /// A request waits for a guard; told once per guard.
    Held(IpAddr, Guard),
    /// A server answers again before its spare came.
    Recovered(IncidentKey),
    /// The provisioner's answer moved on: state and reason.
    Progress(IncidentKey, ReplacementState, Option<String>),
    /// A request ended without a spare, in words.
    Gave(IncidentKey, String),
    /// A request that was called off has ended, in words.
    CalledOff(IncidentKey, String),
    /// A stand-in was announced by the provisioner.
    Joined(Member),
    /// A server that has come to be a stand-in passes its checks: it was watched as a warm spare.
    WasWarm(ServiceKey, DestKey),
    /// A warm spare passes everywhere where it could take the place of these.
    StandbyReady(Spare, Vec<IpAddr>),
    /// A warm spare does not pass.
    StandbyFails(StandbyFailure),
    /// A stand-in is to leave.
    Leaving(Member),
    /// A stand-in is given back: its server is well again, or has no place any more.
    GivenBack(Member, bool),
    /// The provisioner no longer knows a stand-in that serves: it stays.
    Unlisted(ReplacementId),
    /// The provisioner answered for the first time, or again.
    ProvisionerBack,
    /// The provisioner does not answer, in words; told once.
    ProvisionerSilent(String),
}

/// What an event changed, beside the notes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Services whose desired part may differ.
    pub dirty: BTreeSet<ServiceKey>,
    /// Whether others are to be checked than before.
    pub targets: bool,
    /// Whether something else is wanted of virtual addresses than before.
    pub addresses: bool,
    /// Notes in order.
    pub notes: Vec<Note>,
}

/// What the provisioner is to be told, until it has answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// Ask for these replacements, or how they stand.
    pub requests: BTreeSet<IncidentKey>,
    /// Cancel these.
    pub cancels: BTreeSet<(IncidentKey, ReplacementId)>,
    /// Confirm these.
    pub confirms: BTreeSet<(ReplacementId, Want)>,
    /// Take these stand-ins back.
    pub releases: BTreeSet<ReplacementId>,
    /// What is found of warm spares: told when it has changed, and of those that fail again and again.
    pub findings: Findings,
}

impl Outbox {
    /// How many messages it holds that are answered: at most one for each failed server and each stand-in.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.requests.len() + self.cancels.len() + self.confirms.len() + self.releases.len()
    }
}

/// What the director knows at its start.
#[derive(Clone, Debug)]
pub struct Start {
    /// Now.
    pub now: MonoTime,
    /// Now, for people, and to number incidents when the memory is lost.
    pub wall: WallMillis,
    /// This boot.
    pub boot_id: String,
    /// The state file.
    pub recall: Recall,
    /// What the kernel holds of the configured services: it is adopted.
    pub kernel: BTreeMap<ServiceKey, BTreeMap<DestKey, DestAttrs>>,
    /// Services that the kernel holds, that this director owned, and that the configuration no longer names.
    pub dropped: BTreeMap<ServiceKey, Service>,
    /// Services by firewall mark that the kernel has, of the marks that are for probes.
    pub marked: BTreeSet<ServiceKey>,
}

/// How the provisioner was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Link {
    /// Not heard of since the start.
    Unheard(Option<String>),
    /// Answers.
    Up,
    /// Answered once, does not now.
    Silent(String),
}

/// When a target came to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// At the director's start: one that is missing in the kernel's table was taken out.
    Start,
    /// Later: a stand-in, tested by the provisioner.
    Later,
}

/// The director's state.
#[derive(Clone, Debug)]
pub struct Core {
    config: Arc<config::Director>,
    boot_id: String,
    health: BTreeMap<ServiceKey, BTreeMap<DestKey, Standing>>,
    /// What operators ordered.
    orders: BTreeMap<OrderedPlace, Ordered>,
    /// Who is on the way out.
    leaving: BTreeMap<ServiceKey, LeavingService>,
    /// Connections of those that are drained, as last counted.
    connections: BTreeMap<OrderedPlace, u64>,
    /// Since when they have none.
    idle: BTreeMap<OrderedPlace, MonoTime>,
    /// Of each configured service.
    quorums: BTreeMap<ServiceKey, Quorum>,
    /// What each service that manages its address wants of it.
    presences: BTreeMap<ServiceKey, Presence>,
    /// Which of them are at an address, sorry servers left out: nobody takes their place.
    places: BTreeMap<IpAddr, Vec<(ServiceKey, DestKey)>>,
    adopted: BTreeMap<ServiceKey, BTreeMap<DestKey, DestAttrs>>,
    /// Who is in before its first verdict, though the kernel did not have it.
    let_in: BTreeSet<(ServiceKey, DestKey)>,
    /// Who comes in with its whole weight when it passes for the first time.
    whole: BTreeSet<(ServiceKey, DestKey)>,
    /// Of services with slow start.
    ramps: BTreeMap<ServiceKey, Ramps>,
    /// Why the state file said nothing, if it did; ends when the provisioner has answered.
    forgot: Option<String>,
    members: BTreeMap<ReplacementId, Member>,
    /// Warm spares: in no service.
    standbys: Standbys,
    /// Those that the provisioner is to take back.
    releasing: BTreeSet<ReplacementId>,
    /// When each stand-in came to be known to this process.
    joined: BTreeMap<ReplacementId, MonoTime>,
    incidents: BTreeMap<IpAddr, Incident>,
    /// When replacements were asked for within the last hour.
    requested: Vec<MonoTime>,
    /// How often in one place.
    tries: BTreeMap<IpAddr, Tries>,
    /// Who was in service until its checks failed.
    fallen: Fallen,
    /// Servers behind links without carrier.
    cut: BTreeMap<IpAddr, Cut>,
    /// Many servers fail at once.
    mass: Option<Mass>,
    /// Who stays in though it fails.
    panics: BTreeMap<ServiceKey, Vec<DestKey>>,
    next_incident: u64,
    link: Link,
    /// Whether the provisioner has listed the stand-ins since the start.
    listed: bool,
    applied: Applied,
    ways: Ways,
    /// The hidden services that the kernel had when the targets were made.
    ways_there: BTreeSet<ServiceKey>,
    /// Where the director ends, how far it has come.
    stopping: Option<Stopping>,
}

impl Core {
    /// Takes over where the kernel and the state file stand.
    #[must_use]
    pub fn new(config: Arc<config::Director>, start: Start) -> Self {
        let numbers_from = u64::try_from(start.wall.0).unwrap_or(0);
        let made = match &start.recall {
            // A boot empties IPVS: what is there now is somebody's who was quicker.
            Recall::Known(memory) if memory.boot_id == start.boot_id => memory.made.clone(),
            Recall::Known(_) | Recall::Forgot(_) => BTreeSet::new(),
        };
        let ways = Ways::new(config.probe_marks, made, &start.marked);
        let quorums = config.services.iter().map(|(key, service)| {
            let found = start.kernel.get(key);
            let takes = |dest: &DestKey| {
                let attrs = found.and_then(|dests| dests.get(dest));
                attrs.is_some_and(|a| a.weight != Weight::QUIESCED)
            };
            // One that has just come to be a sorry server is there beside the real ones.
            let lost = service.sorry.keys().any(takes) && !service.servers.keys().any(takes);
            (*key, if lost { Quorum::Lost } else { Quorum::Held })
        });
        let quorums = quorums.collect();
        let mut core = Self {
            config,
            boot_id: start.boot_id,
            health: BTreeMap::new(),
            orders: BTreeMap::new(),
            leaving: BTreeMap::new(),
            connections: BTreeMap::new(),
            idle: BTreeMap::new(),
            quorums,
            presences: BTreeMap::new(),
            places: BTreeMap::new(),
            adopted: start.kernel,
            let_in: BTreeSet::new(),
            whole: BTreeSet::new(),
            ramps: BTreeMap::new(),
            forgot: None,
            members: BTreeMap::new(),
            standbys: Standbys::default(),
            releasing: BTreeSet::new(),
            joined: BTreeMap::new(),
            incidents: BTreeMap::new(),
            requested: Vec::new(),
            tries: BTreeMap::new(),
            fallen: Fallen::new(),
            cut: BTreeMap::new(),
            mass: None,
            panics: BTreeMap::new(),
            next_incident: numbers_from,
            link: Link::Unheard(None),
            listed: false,
            applied: Applied::default(),
            ways,
            ways_there: BTreeSet::new(),
            stopping: None,
        };
        match start.recall {
            Recall::Known(memory) => core.remember(memory, start.now, start.wall, &start.dropped),
            Recall::Forgot(why) => core.forgot = Some(why),
        }
        core.let_in(None);
        core.refresh_targets(Arrival::Start, start.now, &mut Effects::default());
        core.refresh_ways();
        core.without_factor();
        for key in Arc::clone(&core.config).services.keys() {
            core.review_ramps(*key, start.now, &mut Effects::default());
        }
        core.presences = core.presences();
        core
    }

    fn remember(
        &mut self,
        memory: Memory,
        now: MonoTime,
        wall: WallMillis,
        dropped: &BTreeMap<ServiceKey, Service>,
    ) {
        self.next_incident = self.next_incident.max(memory.next_incident);
        self.members = memory
            .members
            .into_iter()
            .map(|m| (m.replacement.clone(), m))
            .collect();
        let orders = memory.orders.into_iter();
        // Of a server that the configuration no longer names nothing is ordered any more.
        let named = orders.filter(|o| self.is_named(o.place));
        self.orders = named
            .map(|o| (o.place, Ordered::new(o.order, wall, now)))
            .collect();
        self.joined = self.members.keys().map(|id| (id.clone(), now)).collect();
        let same_boot = memory.boot_id == self.boot_id;
        if same_boot {
            self.remember_leaving(&memory.leaving, dropped, now);
        }
        // Made in another boot, at the latest now: what is asked for too often waits an hour at the most.
        let made = |at: MonoTime| if same_boot { at } else { now };
        self.requested = memory.requested.into_iter().map(made).collect();
        let tries = memory.tries.into_iter();
        self.tries = tries
            .map(|t| (t.place, Tries::remembered(t.times, made(t.last))))
            .collect();
        for i in memory.incidents {
            let since = if same_boot { i.since } else { now };
            let stage = Stage::Requested {
                replacement: i.replacement,
                standing: None,
            };
            self.incidents.insert(
                i.failed,
                Incident {
                    number: i.number,
                    since,
                    stage,
                    told: None,
                },
            );
        }
    }

    /// The configuration that is in force.
    #[must_use]
    pub const fn config(&self) -> &Arc<config::Director> {
        &self.config
    }

    /// What the kernel holds, as the reconciler said last.
    #[must_use]
    pub const fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: MonoTime) -> Effects {
        let mut fx = Effects::default();
        let probed = match &event {
            Event::Probe { slots, .. } => Some(Arc::clone(slots)),
            _ => None,
        };
        match event {
            Event::Probe { slots, found } => {
                for slot in &*slots {
                    self.probed(*slot, &found, now, &mut fx);
                }
            }
            Event::Members(list) => self.listed(list, now, &mut fx),
            Event::Replacement(key, answer) => {
                self.heard(&mut fx);
                self.answered(&key, &answer, now, &mut fx);
            }
            Event::Refused(key, why) => {
                self.heard(&mut fx);
                self.gave_up(&key, why, now, &mut fx);
            }
            Event::ProvisionerSilent(why) => self.silent(why, &mut fx),
            Event::Confirmed(id, is) => self.confirmed(&id, is, now, &mut fx),
            Event::Applied(applied) => {
                self.applied = applied;
                let there = self.ways_there();
                fx.targets |= there != self.ways_there;
                self.ways_there = there;
            }
            Event::Ordered(places, order, wall) => {
                self.ordered(places, order.as_ref(), wall, now, &mut fx);
            }
            Event::Counted(counts) => self.counted(&counts, now, &mut fx),
            Event::CutOff(servers) => self.cut_off(&servers, now, &mut fx),
            Event::Witnessed(answered) => self.witnessed(answered, now, &mut fx),
            Event::Reload(reload) => self.reload(*reload, now, &mut fx),
            Event::Tick => {
                self.review_orders(now, &mut fx);
                self.review_leaving(now, &mut fx);
                self.review_mass(false, now, &mut fx);
                fx.dirty.extend(self.ramps_due(now));
            }
            Event::Stop => self.stop(&mut fx),
            Event::Woke => self.woke(now),
        }
        for key in fx.dirty.clone() {
            self.review_quorum(key, &mut fx);
            self.review_panic(key, &mut fx);
            self.review_ramps(key, now, &mut fx);
            self.review_address(key, &mut fx);
        }
        match probed {
            None => {
                self.review_standbys(&mut fx);
                self.review_stand_ins(now, &mut fx);
                self.review(now, &mut fx);
            }
            // A probe that changed no verdict decides nothing: ten thousand come in a second.
            Some(_) if fx == Effects::default() => {}
            Some(slots) => {
                let servers = slots.iter().map(|slot| slot.dest.addr).collect();
                self.review_after(servers, now, &mut fx);
            }
        }
        fx
    }

    fn probed(&mut self, slot: Slot, found: &Found, now: MonoTime, fx: &mut Effects) {
        if self.standby_probed(slot, found, now, fx) {
            return;
        }
        let Slot {
            service,
            dest,
            check,
        } = slot;
        let Some(config) = self.config.services.get(&service) else {
            return;
        };
        let checks = config.checks_of(&dest);
        let spec = checks.all.get(check);
        let advises = spec.is_some_and(|spec| spec.kind.advises());
        let weight = advises.then(|| self.configured_weight(service, dest));
        let damping = &config.damping;
        let needed = self.is_needed(service, dest, now);
        let was = match found.outcome {
            Outcome::Fail(_) => self.attrs_before(service, dest),
            Outcome::Pass => None,
        };
        // A report about a target that is gone.
        let Some(dests) = self.health.get_mut(&service) else {
            return;
        };
        let Some(standing) = dests.get_mut(&dest) else {
            return;
        };
        let advice = |standing: &Standing| Some(standing.advice(weight?)?.1);
        let advised = advice(standing);
        let first = standing.verdict().is_unknown();
        let change = standing.observe(check, found, checks, damping, now, needed);
        let Some(standing) = dests.get(&dest) else {
            return;
        };
        if !standing.verdict().is_unknown() {
            self.let_in.remove(&(service, dest));
        }
        if !standing.verdict().is_unknown()
            && !standing.awaits_advice(checks)
            && let Some(kernel) = self.adopted.get_mut(&service)
        {
            // There is a verdict: what was found at the start has had its use.
            kernel.remove(&dest);
        }
        if change.matters {
            fx.dirty.insert(service);
        }
        // A stand-in that entered, or fell out, is asked at another pace.
        fx.targets |= change.transition.is_some() && !config.servers.contains_key(&dest);
        match change.transition {
            Some(Transition::WentUp) => {
                self.fallen.remove(&(service, dest));
                fx.notes.push(match first {
                    true => Note::FirstUp(service, dest),
                    false => Note::WentUp(service, dest),
                });
            }
            Some(Transition::WentDown(why)) => {
                let mut detail = standing.detail();
                if let Some(words) = diagnosis(config, standing) {
                    let found = detail.map_or_else(String::new, |d| format!("{d}; "));
                    detail = Some(format!("{found}{words}").into());
                }
                let removal = config.on_failure.of(why);
                fx.notes
                    .push(Note::WentDown(service, dest, why, detail, removal));
            }
            None => {}
        }
        if change.class
            && let Health::Down { reason, .. } = standing.verdict()
        {
            let removal = config.on_failure.of(reason);
            fx.notes.push(Note::Removed(service, dest, reason, removal));
        }
        if change.held_out
            && let Some(left) = standing.penalty().held(damping, now)
        {
            fx.notes.push(Note::HeldOut(service, dest, left));
        }
        if advice(standing) != advised {
            let advice = advice(standing);
            fx.notes.push(Note::Advised(service, dest, advice));
        }
        if change.blind {
            let kind = checks.all.get(check).map_or("", |spec| spec.kind.label());
            fx.notes
                .push(Note::Blind(service, dest, kind, found.detail.clone()));
        }
        if let Some(Transition::WentDown(why)) = change.transition {
            self.fell((service, dest), was, why, now, fx);
        }
    }

    /// How a destination that is not down is in service.
    fn attrs_before(&self, service: ServiceKey, dest: DestKey) -> Option<DestAttrs> {
        let config = self.config.services.get(&service)?;
        if self.verdict(service, dest)?.down_since().is_some() {
            return None;
        }
        let attrs = self.attrs_of(config, dest)?;
        let seat = self.place(service, dest, *attrs);
        seat.attrs.filter(|_| seat.takes())
    }

    /// Who was in service until now may have to stay.
    fn fell(
        &mut self,
        place: (ServiceKey, DestKey),
        was: Option<DestAttrs>,
        why: FailReason,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        if let Some(attrs) = was {
            self.fallen.insert(place, attrs);
        }
        // Of many servers not all for each.
        if self.mass.is_none_or(|mass| !mass.many) {
            self.review_mass(was.is_some() && why.is_silence(), now, fx);
        }
    }

    /// Whether a server that would have to stay out for its falls cannot be spared: less than half of its
    /// service's servers can take its place.
    fn is_needed(&self, service: ServiceKey, dest: DestKey, now: MonoTime) -> bool {
        let config = self.config.services.get(&service);
        let Some((config, dests)) = config.zip(self.health.get(&service)) else {
            return false;
        };
        let held = |standing: &Standing| standing.penalty().held(&config.damping, now);
        if dests.get(&dest).and_then(held).is_none() {
            return false;
        }
        let useful = |(d, s): &(&DestKey, &Standing)| {
            let attrs = config.servers.get(*d);
            let weight = attrs.map_or(Weight::ONE, |attrs| attrs.weight);
            s.verdict().is_up() && s.weight(weight) != Weight::QUIESCED && **d != dest
        };
        let counts = |d: &DestKey| !config.sorry.contains_key(d) && !self.is_put_aside(service, *d);
        let real = || dests.iter().filter(|(d, _)| counts(d));
        real().filter(useful).count() * 2 < real().count()
    }

    /// Nobody was checked meanwhile: what failed before must show again that it fails.
    fn woke(&mut self, now: MonoTime) {
        for incident in self
            .incidents
            .values_mut()
            .filter(|i| i.stage == Stage::Open)
        {
            incident.since = incident.since.max(now);
        }
    }

    fn listed(&mut self, list: Members, now: MonoTime, fx: &mut Effects) {
        self.heard(fx);
        self.listed = true;
        let mut unlisted: BTreeSet<_> = self.members.keys().cloned().collect();
        let before = self.wants_of_those_withdrawn(&list);
        self.list_standbys(list.standbys);
        for member in list.members {
            unlisted.remove(&member.replacement);
            let old = self
                .members
                .insert(member.replacement.clone(), member.clone());
            self.joined.entry(member.replacement.clone()).or_insert(now);
            let moved = |o: &&Member| (&o.origins, &o.spare) != (&member.origins, &member.spare);
            if let Some(old) = old.as_ref().filter(moved) {
                self.dirty_slots(old, fx);
                self.dirty_slots(&member, fx);
            }
            if old.as_ref().map(|o| o.want) != Some(member.want) {
                self.dirty_slots(&member, fx);
                fx.notes.push(match member.want {
                    Want::Attach => Note::Joined(member),
                    Want::Withdraw => Note::Leaving(member),
                });
            }
        }
        for id in unlisted {
            match self.members.get(&id).map(|m| m.want) {
                // It knew of our confirmation before we knew that it knows.
                Some(Want::Withdraw) => drop(self.members.remove(&id)),
                Some(Want::Attach) => fx.notes.push(Note::Unlisted(id)),
                None => {}
            }
        }
        for (key, want) in before {
            self.let_absent_go(key, &want, now);
        }
        if self.forgot.take().is_some() {
            fx.dirty.extend(self.config.services.keys());
        }
        self.retarget(now, fx);
    }

    fn retarget(&mut self, now: MonoTime, fx: &mut Effects) {
        if self.refresh_targets(Arrival::Later, now, fx) {
            fx.targets = true;
            fx.dirty.extend(self.refresh_ways());
        }
    }

    fn heard(&mut self, fx: &mut Effects) {
        if self.link != Link::Up {
            self.link = Link::Up;
            fx.notes.push(Note::ProvisionerBack);
        }
    }

    fn silent(&mut self, why: String, fx: &mut Effects) {
        let told = match &self.link {
            Link::Unheard(told) => told.as_ref() == Some(&why),
            Link::Silent(_) => true,
            Link::Up => false,
        };
        if !told {
            fx.notes.push(Note::ProvisionerSilent(why.clone()));
        }
        self.link = match self.link {
            Link::Unheard(_) => Link::Unheard(Some(why)),
            Link::Up | Link::Silent(_) => Link::Silent(why),
        };
    }

    fn confirmed(&mut self, id: &ReplacementId, is: Want, now: MonoTime, fx: &mut Effects) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        member.confirmed = Some(is);
        if is == Want::Withdraw && member.want == Want::Withdraw {
            if let Some(member) = self.members.remove(id) {
                self.dirty_slots(&member, fx);
            }
            self.retarget(now, fx);
        }
    }

    fn dirty_slots(&self, member: &Member, fx: &mut Effects) {
        fx.dirty
            .extend(self.slots(member).map(|(service, _)| service));
    }

    /// What the state file is to hold.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::empty(self.boot_id.clone(), self.config.name.clone());
        memory.next_incident = self.next_incident;
        let incidents = self.incidents.iter();
        memory.incidents = incidents
            .filter_map(|(failed, i)| i.remembered(*failed))
            .collect();
        memory.members = self.members.values().cloned().collect();
        memory.made = self.ways.used().clone();
        let order = |(place, ordered): (&OrderedPlace, &Ordered)| RememberedOrder {
            place: *place,
            order: ordered.order.clone(),
        };
        memory.orders = self.orders.iter().map(order).collect();
        memory.leaving = self.remembered_leaving();
        memory.requested.clone_from(&self.requested);
        let tries = |(place, tries): (&IpAddr, &Tries)| tries.remember(*place);
        memory.tries = self.tries.iter().map(tries).collect();
        memory.services = self.config.services.keys().copied().collect();
        memory
    }

    /// Whether the state file may be written: not while an unread one is all that tells of stand-ins.
    #[must_use]
    pub fn may_write_memory(&self) -> bool {
        self.forgot.is_none() || self.config.provisioner.is_none()
    }

    /// What the provisioner is to be told.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        let mut out = Outbox::default();
        for (failed, incident) in &self.incidents {
            let key = self.key(*failed, incident.number);
            match &incident.stage {
                Stage::Open => {}
                Stage::Requested { .. } => drop(out.requests.insert(key)),
                Stage::Cancelling { replacement } => {
                    out.cancels.insert((key, replacement.clone()));
                }
            }
        }
        out.releases = self.releasing.clone();
        out.findings = self.standby_findings();
        for member in self.members.values() {
            if member.confirmed != Some(member.want) && self.stands(member) {
                out.confirms
                    .insert((member.replacement.clone(), member.want));
            }
        }
        out
    }

    fn key(&self, failed: IpAddr, number: u64) -> IncidentKey {
        IncidentKey {
            director: self.config.name.clone(),
            failed,
            number,
        }
    }

    /// Whether the world is, in every service concerned, as the provisioner wants this stand-in: in
    /// the kernel and passing its checks, or not in the kernel.
    fn stands(&self, member: &Member) -> bool {
        let mut slots = self.slots(member).peekable();
        let kernel = |service: &ServiceKey| self.applied.kernel.get(service);
        match member.want {
            Want::Attach => {
                slots.peek().is_some()
                    && slots.all(|(service, dest)| {
                        let up = self.verdict(service, dest).is_some_and(Health::is_up);
                        up && kernel(&service).is_some_and(|k| k.contains_key(&dest))
                    })
            }
            // Those that it still has are the spare's to serve.
            Want::Withdraw if self.is_leaving(&member.spare) => false,
            Want::Withdraw => slots.all(|(service, dest)| {
                let config = self.config.services.get(&service);
                let configured = config.is_some_and(|c| c.servers.contains_key(&dest));
                kernel(&service).is_some_and(|k| configured || !k.contains_key(&dest))
            }),
        }
    }

    /// When [`Event::Tick`] is due, if ever.
    #[must_use]
    pub fn next_deadline(&self, now: MonoTime) -> Option<MonoTime> {
        let incidents = self.request_deadlines(now);
        let orders = self.orders.values().filter_map(|o| o.ends);
        let leaving = self.draining().into_iter();
        let leaving = leaving.filter_map(|place| self.drain_ends(place));
        let all = incidents.chain(orders).chain(leaving);
        let all = all.chain(self.restores_at()).chain(self.mass_deadline());
        let all = all.chain(self.next_steps().map(|(_, due)| due));
        all.filter(|due| *due > now).min()
    }
}
