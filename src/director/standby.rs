//! Warm spares: configured and tested beforehand by the provisioner, and watched by this director in every place
//! that they could take, so that a failure costs no more than an admission. PURE.
//!
//! Until the provisioner lists one as a stand-in it is in no service and counts nowhere: its verdicts are kept apart
//! from those that thresholds, quorums and incidents are about. In the place that it takes its verdict goes with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Core, Effects, Note, explain::since};
use crate::{
    config,
    health::{Health, Standing},
    model::{
        DestAttrs, DestKey, FailReason, Found, MonoTime, ServiceKey, Slot,
        wire::{Findings, Spare, Standby},
    },
};

/// Servers that are named where there may be hundreds; the others are counted.
const NAMED: usize = 3;

/// How a warm spare is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// It passes in every place that it could take.
    Ready,
    /// There is no verdict yet, or one that is not believed; or it could not take every place.
    Waiting,
    /// It fails in one of them.
    Failing,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Failing => "failing",
        }
    }
}

/// A warm spare as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// Its name.
    pub name: String,
    /// The servers' addresses whose place it could take.
    pub in_place_of: Vec<IpAddr>,
    /// `ready`, `waiting` (there is no verdict yet, or it could not take every place) or `failing`.
    pub state: String,
    /// Every place that it could take.
    #[serde(default)]
    pub places: Vec<StandbyPlace>,
}

/// A place that a warm spare could take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyPlace {
    /// In this service.
    pub service: ServiceKey,
    /// As this destination.
    pub server: String,
    /// `up`, `down` or `unknown`.
    pub health: String,
    /// Why it does not pass.
    pub reason: Option<String>,
    /// Seconds since the verdict.
    pub since_s: Option<u64>,
}

/// A warm spare does not pass where it could be needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyFailure {
    /// Its name.
    pub name: String,
    /// Where.
    pub service: ServiceKey,
    /// As which destination.
    pub server: DestKey,
    /// What its checks found.
    pub reason: FailReason,
    /// What they found besides.
    pub detail: Option<Arc<str>>,
    /// Servers for which no other warm spare is ready.
    pub uncovered: Vec<IpAddr>,
}

impl fmt::Display for StandbyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the warm spare {} does not pass the checks of {} at {}: {}",
            self.name, self.service, self.server, self.reason
        )?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        match self.uncovered.is_empty() {
            true => f.write_str("; other warm spares are ready for the same servers"),
            false => write!(
                f,
                "; a failure of {} would not be covered at once",
                some_of(&self.uncovered, "or")
            ),
        }
    }
}

/// A warm spare and where it could stand.
#[derive(Clone, Debug)]
struct Warm {
    spare: Spare,
    in_place_of: BTreeSet<IpAddr>,
    /// The places, each with those who have it now.
    places: BTreeMap<(ServiceKey, DestKey), BTreeSet<DestKey>>,
    /// As last judged.
    state: State,
    /// Why it failed when it began to.
    why: Option<String>,
    /// What was told of it last; nothing is told of waiting.
    told: State,
}

impl Warm {
    fn origins(&self) -> Vec<IpAddr> {
        self.in_place_of.iter().copied().collect()
    }
}

/// All warm spares of a director.
#[derive(Clone, Debug, Default)]
pub(super) struct Standbys {
    /// As the provisioner listed them last, by name.
    warm: BTreeMap<String, Warm>,
    /// Where they stand in each place, unless somebody is watched there already.
    health: BTreeMap<(ServiceKey, DestKey), Standing>,
    /// Whether they are to be judged anew.
    stale: bool,
}

impl Standbys {
    /// The places in which they are watched.
    pub(super) fn places(&self) -> impl Iterator<Item = (ServiceKey, DestKey)> {
        self.health.keys().copied()
    }

    pub(super) fn standing(&self, service: ServiceKey, dest: DestKey) -> Option<&Standing> {
        self.health.get(&(service, dest))
    }
}

impl Core {
    /// Takes the list of warm spares. Whom it no longer names is no longer watched.
    pub(super) fn list_standbys(&mut self, listed: Vec<Standby>) {
        let before = mem::take(&mut self.standbys.warm);
        let warm = |standby: Standby| {
            let Standby { spare, in_place_of } = standby;
            let known = before.get(&spare.name);
            let told = known.map_or(State::Waiting, |w| w.told);
            let why = known.and_then(|w| w.why.clone());
            let warm = Warm {
                spare: spare.clone(),
                in_place_of: in_place_of.into_iter().collect(),
                places: BTreeMap::new(),
                state: State::Waiting,
                why,
                told,
            };
            (spare.name, warm)
        };
        self.standbys.warm = listed.into_iter().map(warm).collect();
    }

    /// Brings the places in which warm spares are watched up to date; verdicts of those that stay are kept. Says
    /// whether the set changed.
    pub(super) fn refresh_standbys(&mut self, now: MonoTime) -> bool {
        let mut warm = mem::take(&mut self.standbys.warm);
        let mut known = mem::take(&mut self.standbys.health);
        let mut changed = false;
        for one in warm.values_mut() {
            one.places.clear();
            let is_origin = |addr| one.in_place_of.contains(&addr);
            for (service, dest, origin) in self.places_for(&one.spare, is_origin) {
                let origins = one.places.entry((service, dest)).or_default();
                origins.insert(origin);
            }
            for (service, dest) in one.places.keys().copied() {
                let watched = self.standing(service, dest).is_some()
                    || self.standbys.standing(service, dest).is_some();
                let Some(config) = self.config.services.get(&service).filter(|_| !watched) else {
                    continue;
                };
                let standing = known.remove(&(service, dest)).unwrap_or_else(|| {
                    changed = true;
                    Standing::new(config.checks_of(&dest), false, now)
                });
                self.standbys.health.insert((service, dest), standing);
            }
        }
        self.standbys.warm = warm;
        self.standbys.stale = true;
        changed || !known.is_empty()
    }

    /// Who was watched as a warm spare, and has come to be a stand-in, brings its verdict along: no probe more is
    /// waited for. One that failed is asked as any stand-in is, from the start: until now nobody needed it.
    pub(super) fn admit_warm(&mut self, fx: &mut Effects) {
        let health = &mut self.health;
        self.standbys.health.retain(|(service, dest), standing| {
            let dests = health.get_mut(service);
            let Some(place) = dests.and_then(|dests| dests.get_mut(dest)) else {
                return true;
            };
            if standing.verdict().is_up() {
                fx.dirty.insert(*service);
                fx.notes.push(Note::WasWarm(*service, *dest));
            }
            if standing.verdict().down_since().is_none() || standing.is_held_out() {
                *place = standing.clone();
            }
            false
        });
    }

    /// Of a warm spare that another configuration checks otherwise nothing is known any more.
    pub(super) fn check_standbys_anew(&mut self, new: &config::Director) {
        let old = &self.config.services;
        self.standbys.health.retain(|(service, dest), _| {
            let both = old.get(service).zip(new.services.get(service));
            both.is_some_and(|(old, new)| old.checks_of(dest) == new.checks_of(dest))
        });
    }

    /// Those that fell so are asked as if nothing had been found. Says whether there are any.
    pub(super) fn ask_standbys_anew(
        &mut self,
        fell: impl Fn(IpAddr, MonoTime) -> bool,
        now: MonoTime,
    ) -> bool {
        let mut any = false;
        for ((service, dest), standing) in &mut self.standbys.health {
            let down = standing.verdict().down_since();
            let config = self.config.services.get(service);
            if let Some((since, config)) = down.zip(config)
                && fell(dest.addr, since)
            {
                *standing = Standing::new(config.checks_of(dest), false, now);
                any = true;
            }
        }
        self.standbys.stale |= any;
        any
    }

    /// Takes what a probe of a warm spare found. Says whether it was one.
    pub(super) fn standby_probed(
        &mut self,
        slot: Slot,
        found: &Found,
        now: MonoTime,
        fx: &mut Effects,
    ) -> bool {
        let place = (slot.service, slot.dest);
        let Some(standing) = self.standbys.health.get_mut(&place) else {
            return false;
        };
        let Some(config) = self.config.services.get(&slot.service) else {
            return true;
        };
        let checks = config.checks_of(&slot.dest);
        let first = standing.verdict().is_unknown();
        let change = standing.observe(slot.check, found, checks, &config.damping, now, false);
        if change.transition.is_some() {
            // With its first verdict the hurry is over.
            fx.targets |= first;
            self.standbys.stale = true;
            self.review_standbys(fx);
        }
        true
    }

    /// Judges warm spares anew where anything may differ, and tells of those that have become ready, or do not pass
    /// any more.
    pub(super) fn review_standbys(&mut self, fx: &mut Effects) {
        let doubts = self.mass.is_some() || !self.cut.is_empty();
        if !self.standbys.stale && !doubts {
            return;
        }
        // Once more after the doubts have ended.
        self.standbys.stale = doubts;
        let all = self.standbys.warm.values();
        let judged: Vec<_> = all.map(|warm| self.judge(warm)).collect();
        let mut news = Vec::new();
        for (warm, (state, why)) in self.standbys.warm.values_mut().zip(judged) {
            warm.state = state;
            // As it was at first: a reason that changes with each probe is no news.
            warm.why = why.map(|why| warm.why.take().unwrap_or(why));
            if state != warm.told && state != State::Waiting {
                warm.told = state;
                news.push(warm.spare.name.clone());
            }
        }
        let told = news.iter().filter_map(|name| self.standbys.warm.get(name));
        fx.notes
            .extend(told.map(|warm| match self.failure_of(warm) {
                Some(failure) => Note::StandbyFails(failure),
                None => Note::StandbyReady(warm.spare.clone(), warm.origins()),
            }));
    }

    /// How it is, and where and why it fails.
    fn judge(&self, warm: &Warm) -> (State, Option<String>) {
        if let Some((service, dest, reason)) = self.first_failure(warm) {
            return (
                State::Failing,
                Some(format!("{service} at {dest}: {reason}")),
            );
        }
        match !warm.places.is_empty() && warm.places.keys().all(|place| self.passes(*place)) {
            true => (State::Ready, None),
            false => (State::Waiting, None),
        }
    }

    fn first_failure(&self, warm: &Warm) -> Option<(ServiceKey, DestKey, FailReason)> {
        warm.places.keys().find_map(|place| {
            let reason = self.fails(*place)?;
            Some((place.0, place.1, reason))
        })
    }

    fn passes(&self, (service, dest): (ServiceKey, DestKey)) -> bool {
        let standing = self.standbys.standing(service, dest);
        standing.is_some_and(|s| s.verdict().is_up())
    }

    /// Why it does not pass in a place, unless it may be this director that is cut off.
    fn fails(&self, (service, dest): (ServiceKey, DestKey)) -> Option<FailReason> {
        match self.standbys.standing(service, dest)?.verdict() {
            Health::Down { since, reason, .. } if self.doubt(dest.addr, since).is_none() => {
                Some(reason)
            }
            Health::Down { .. } | Health::Up { .. } | Health::Unknown { .. } => None,
        }
    }

    fn failure_of(&self, warm: &Warm) -> Option<StandbyFailure> {
        let (service, dest, reason) = self.first_failure(warm)?;
        let lacking = warm.places.iter();
        let lacking = lacking.filter(|(place, _)| !self.passes(**place));
        let lacking: BTreeSet<IpAddr> = lacking
            .flat_map(|(_, of)| of.iter().map(|o| o.addr))
            .collect();
        let ready = self.standbys.warm.values();
        let ready = ready.filter(|other| other.state == State::Ready);
        let covered: BTreeSet<IpAddr> = ready
            .flat_map(|other| &other.in_place_of)
            .copied()
            .collect();
        Some(StandbyFailure {
            name: warm.spare.name.clone(),
            service,
            server: dest,
            reason,
            detail: self
                .standbys
                .standing(service, dest)
                .and_then(Standing::detail),
            uncovered: lacking.difference(&covered).copied().collect(),
        })
    }

    /// Warm spares that do not pass, in words.
    pub(super) fn failing_standbys(&self) -> impl Iterator<Item = String> {
        let all = self.standbys.warm.values();
        let failing = all.filter(|warm| warm.state == State::Failing);
        failing.filter_map(|warm| Some(self.failure_of(warm)?.to_string()))
    }

    /// What the provisioner should know of warm spares: it keeps others in the stead of those that do not pass. Of one
    /// without a verdict nothing is said.
    pub(super) fn standby_findings(&self) -> Findings {
        let mut found = Findings::default();
        for (name, warm) in &self.standbys.warm {
            if warm.state == State::Ready {
                found.passing.insert(name.clone());
            } else if let Some(why) = &warm.why {
                found.failing.insert(name.clone(), why.clone());
            }
        }
        found
    }

    /// How many warm spares are in each state: words of [`StandbyStatus::state`].
    pub fn standby_states(&self) -> impl Iterator<Item = &'static str> {
        let all = self.standbys.warm.values();
        all.map(|warm| warm.state.as_str())
    }

    /// Warm spares, and how each is in every place that it could take.
    #[must_use]
    pub fn standbys_now(&self, now: MonoTime) -> Vec<StandbyStatus> {
        let place = |(service, dest): &(ServiceKey, DestKey)| {
            let standing = self.watched_as(*service, *dest);
            let verdict = standing.map(Standing::verdict);
            let reason = verdict.and_then(|verdict| match verdict {
                Health::Down { reason, .. } => Some(reason),
                Health::Up { .. } | Health::Unknown { .. } => None,
            });
            let detail = standing.and_then(Standing::detail);
            StandbyPlace {
                service: *service,
                server: dest.to_string(),
                health: verdict.map_or("-", Health::label).to_owned(),
                reason: reason.map(|reason| match detail {
                    Some(detail) => format!("{reason}: {detail}"),
                    None => reason.to_string(),
                }),
                since_s: verdict.and_then(|verdict| since(verdict, now)),
            }
        };
        let one = |warm: &Warm| StandbyStatus {
            name: warm.spare.name.clone(),
            in_place_of: warm.origins(),
            state: warm.state.as_str().to_owned(),
            places: warm.places.keys().map(place).collect(),
        };
        self.standbys.warm.values().map(one).collect()
    }

    /// Where a destination stands in a service, warm spares included; `None` if it is not watched.
    pub(super) fn watched_as(&self, service: ServiceKey, dest: DestKey) -> Option<&Standing> {
        let serving = self.standing(service, dest);
        serving.or_else(|| self.standbys.standing(service, dest))
    }

    /// What the configuration says of the first of those whose place in a service a warm spare could take.
    pub(super) fn standby_attrs(&self, service: ServiceKey, dest: DestKey) -> Option<&DestAttrs> {
        let origins = self.standbys.warm.values();
        let mut origins = origins.filter_map(|warm| warm.places.get(&(service, dest)));
        let origin = origins.find_map(BTreeSet::first)?;
        self.config.services.get(&service)?.servers.get(origin)
    }
}

/// Addresses, joined by `word` before the last; of many the first ones, and how many more there are.
#[must_use]
pub fn some_of(addresses: &[IpAddr], word: &str) -> String {
    let mut named: Vec<_> = addresses
        .iter()
        .take(NAMED)
        .map(ToString::to_string)
        .collect();
    match addresses.len().saturating_sub(NAMED) {
        0 => {}
        n => named.push(format!("{n} more")),
    }
    match named.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} {word} {last}", others.join(", ")),
        None => String::new(),
    }
}
