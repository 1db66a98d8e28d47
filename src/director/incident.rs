//! From a failed server to the request for its spare, and what comes of it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::{Core, Effects, Guard, Note, RememberedIncident, RememberedTries};
use crate::{
    config::{FailingIn, ReplacementPolicy},
    health::Standing,
    model::{
        Family, IncidentKey, MonoTime, ReplacementId, ServiceKey,
        wire::{Replacement, ReplacementState, Want},
    },
};

/// After a replacement that came to nothing the next is not asked for sooner than this.
const REST: Duration = Duration::from_secs(30);

/// Requests are counted, and failed attempts remembered, for so long.
const HOUR: Duration = Duration::from_secs(3600);

/// A stand-in that is not in service after this holds up no other replacement.
pub(super) const ATTACH_LIMIT: Duration = Duration::from_secs(60);

/// One failed server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Numbers this director's incidents; meaningful from the request on.
    pub number: u64,
    /// When the server failed, or when the last attempt came to nothing.
    pub since: MonoTime,
    /// How far it has come.
    pub stage: Stage,
    /// The guard that was told of last.
    pub(super) told: Option<Guard>,
}

/// How far an incident has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not yet asked for.
    Open,
    /// Asked for.
    Requested {
        /// Its replacement, once the provisioner has answered.
        replacement: Option<ReplacementId>,
        /// Where that stands, and why.
        standing: Option<(ReplacementState, Option<String>)>,
    },
    /// The server answers again, the spare is called off.
    Cancelling {
        /// Its replacement.
        replacement: ReplacementId,
    },
}

impl Incident {
    pub(super) fn remembered(&self, failed: IpAddr) -> Option<RememberedIncident> {
        let replacement = match &self.stage {
            Stage::Open => return None,
            Stage::Requested { replacement, .. } => replacement.clone(),
            Stage::Cancelling { replacement } => Some(replacement.clone()),
        };
        Some(RememberedIncident {
            failed,
            number: self.number,
            since: self.since,
            replacement,
        })
    }

    fn deadline(&self, policy: &ReplacementPolicy) -> Option<MonoTime> {
        (self.stage == Stage::Open).then(|| self.since.after(policy.replace_after))
    }

    /// Whether a spare is being made for it: the next incident waits. One that itself waits, for a
    /// spare or for the remedy of its refusal, holds up nobody.
    fn is_running(&self) -> bool {
        match &self.stage {
            Stage::Open => false,
            Stage::Requested {
                standing: Some((ReplacementState::Pending, Some(_))),
                ..
            } => false,
            Stage::Requested { .. } | Stage::Cancelling { .. } => true,
        }
    }
}

/// How often a replacement was asked for in one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries {
    times: u32,
    last: MonoTime,
}

impl Tries {
    pub(super) const fn remembered(times: u32, last: MonoTime) -> Self {
        Self { times, last }
    }

    pub(super) const fn remember(self, place: IpAddr) -> RememberedTries {
        RememberedTries {
            place,
            times: self.times,
            last: self.last,
        }
    }

    /// One more; what lies more than an hour back counts no longer.
    fn again(&mut self, now: MonoTime) {
        self.times = match now.since(self.last) < HOUR {
            true => self.times.saturating_add(1),
            false => 1,
        };
        self.last = now;
    }

    /// When the next may be asked for: the second at once, the third after [`REST`], then after twice as long
    /// each time, up to an hour.
    fn next(&self) -> MonoTime {
        let Some(doublings) = self.times.checked_sub(2) else {
            return self.last;
        };
        let wait = REST.saturating_mul(2_u32.saturating_pow(doublings));
        self.last.after(wait.min(HOUR))
    }
}

impl Core {
    /// When a request that waits is to be looked at again, if that is known.
    pub(super) fn request_deadlines(&self, now: MonoTime) -> impl Iterator<Item = MonoTime> {
        let policy = &self.config.replacement;
        let open = self
            .incidents
            .iter()
            .filter(|(_, i)| i.stage == Stage::Open);
        open.filter_map(move |(server, incident)| {
            let due = incident.deadline(policy)?;
            // Limits and backoff are known only once it is due.
            let held = (due <= now).then(|| self.guard(*server, now)).flatten();
            Some(held.and_then(|guard| guard.until()).unwrap_or(due))
        })
    }

    /// Whether a server has failed so that its replacement is due, and since when.
    fn failing(&self, server: IpAddr) -> Option<MonoTime> {
        let down: Vec<_> = self
            .standings(server)
            .map(Standing::failing_since)
            .collect();
        match self.config.replacement.failing_in {
            FailingIn::Any => down.into_iter().flatten().min(),
            FailingIn::All if down.is_empty() => None,
            FailingIn::All => down
                .into_iter()
                .collect::<Option<Vec<_>>>()?
                .into_iter()
                .max(),
        }
    }

    fn recovered(&self, server: IpAddr) -> bool {
        self.failing(server).is_none() && !self.standings(server).any(|s| s.verdict().is_unknown())
    }

    /// Whether a stand-in has the place of this server.
    fn covered(&self, server: IpAddr) -> bool {
        let stands_in = |m: &&super::Member| m.want == Want::Attach;
        let attached = || self.members.values().filter(stands_in);
        let own: Vec<_> = attached()
            .filter(|m| m.spare.addresses.contains(&server))
            .collect();
        // Ids are in the order of time: a newer stand-in has the place that this one had.
        let passed_on = |m: &super::Member| {
            own.iter()
                .any(|o| o.origins == m.origins && o.replacement < m.replacement)
        };
        attached()
            .filter(|m| !m.spare.addresses.contains(&server))
            .any(|m| m.origins.contains(&server) || passed_on(m))
    }

    /// Opens, requests, calls off and closes incidents.
    pub(super) fn review(&mut self, now: MonoTime, fx: &mut Effects) {
        if self.config.provisioner.is_none() || self.stopping.is_some() {
            return;
        }
        let watched = self.places.keys().chain(self.incidents.keys());
        let servers: BTreeSet<IpAddr> = watched.copied().collect();
        for server in servers {
            self.review_server(server, now, fx);
        }
    }

    /// The same after a verdict on some servers: of the others it can move those alone that have an
    /// incident.
    pub(super) fn review_after(
        &mut self,
        mut servers: BTreeSet<IpAddr>,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        if self.config.provisioner.is_none() || self.stopping.is_some() {
            return;
        }
        servers.extend(self.incidents.keys().copied());
        for server in servers {
            self.review_server(server, now, fx);
        }
    }

    fn review_server(&mut self, server: IpAddr, now: MonoTime, fx: &mut Effects) {
        let (failing, covered) = (self.failing(server), self.covered(server));
        let Some(incident) = self.incidents.get(&server) else {
            if let (Some(since), false) = (failing, covered) {
                let open = Incident {
                    number: 0,
                    since,
                    stage: Stage::Open,
                    told: None,
                };
                self.incidents.insert(server, open);
                self.review_server(server, now, fx);
            }
            return;
        };
        let number = incident.number;
        match incident.stage.clone() {
            Stage::Open if failing.is_none() || covered => drop(self.incidents.remove(&server)),
            Stage::Open => self.request_or_hold(server, now, fx),
            Stage::Requested { replacement, .. } => {
                if covered || replacement.as_ref().is_some_and(|r| self.attaches(r)) {
                    self.incidents.remove(&server);
                } else if let Some(replacement) = replacement
                    && !Self::is_worth_finishing(&incident.stage)
                    && self.recovered(server)
                {
                    fx.notes.push(Note::Recovered(self.key(server, number)));
                    self.stage(server, Stage::Cancelling { replacement });
                }
            }
            Stage::Cancelling { replacement } => {
                if covered || self.attaches(&replacement) {
                    self.incidents.remove(&server);
                }
            }
        }
    }

    /// Whether a replacement has come to its stand-in.
    fn attaches(&self, replacement: &ReplacementId) -> bool {
        self.members
            .get(replacement)
            .is_some_and(|m| m.want == Want::Attach)
    }

    fn stage(&mut self, server: IpAddr, stage: Stage) {
        if let Some(i) = self.incidents.get_mut(&server) {
            i.stage = stage;
        }
    }

    fn request_or_hold(&mut self, server: IpAddr, now: MonoTime, fx: &mut Effects) {
        let held = self.guard(server, now);
        let number = self.next_incident;
        let key = self.key(server, number);
        let Some(incident) = self.incidents.get_mut(&server) else {
            return;
        };
        if let Some(guard) = held {
            if incident.told.as_ref() != Some(&guard) {
                incident.told = Some(guard.clone());
                fx.notes.push(Note::Held(server, guard));
            }
            return;
        }
        incident.number = number;
        incident.stage = Stage::Requested {
            replacement: None,
            standing: None,
        };
        self.next_incident += 1;
        let place = self.place_of(server);
        self.tries.retain(|_, tries| now.since(tries.last) < HOUR);
        self.tries.entry(place).or_default().again(now);
        self.requested.retain(|at| now.since(*at) < HOUR);
        self.requested.push(now);
        fx.notes.push(Note::Requested(key));
    }

    /// What holds the request for a failed server back, if anything does.
    #[must_use]
    pub fn guard(&self, server: IpAddr, now: MonoTime) -> Option<Guard> {
        let incident = self.incidents.get(&server)?;
        let until = incident.since.after(self.config.replacement.replace_after);
        if now < until {
            return Some(Guard::ReplaceAfter { until });
        }
        if !self.listed {
            return Some(Guard::ProvisionerUnheard);
        }
        if let Some(cut) = self.link_down(server) {
            return Some(cut);
        }
        if let Some(doubt) = self
            .failing(server)
            .and_then(|fell| self.doubt(server, fell))
        {
            return Some(doubt);
        }
        if let Some(guard) = self.limit(server, now) {
            return Some(guard);
        }
        let family = Family::of(server);
        let checked = self.places.values().flatten();
        let mut checked = checked.filter(|(key, dest)| !self.is_put_aside(*key, *dest));
        let is_up = |(key, dest): &(_, _)| self.verdict(*key, *dest).is_some_and(|v| v.is_up());
        if !checked.any(|place| Family::of(place.1.addr) == family && is_up(place)) {
            return Some(Guard::AllServersDown);
        }
        None
    }

    /// What of the limits on replacements holds a request back.
    fn limit(&self, server: IpAddr, now: MonoTime) -> Option<Guard> {
        let policy = &self.config.replacement;
        let requested = self.incidents.iter().filter(|(_, i)| i.is_running());
        let requested = requested.map(|(server, _)| *server);
        let running: BTreeSet<IpAddr> = requested.chain(self.attaching(now)).collect();
        if let Some(other) = running.first().copied()
            && running.len() >= policy.at_once
        {
            return Some(Guard::AtOnce { other });
        }
        for service in self.services_of(server) {
            let mut same = running
                .iter()
                .filter(|other| self.services_of(**other).any(|s| s == service))
                .peekable();
            if let Some(other) = same.peek().map(|other| **other)
                && same.count() >= policy.at_once_per_service
            {
                return Some(Guard::AtOncePerService { other });
            }
        }
        let hour = |at: &&MonoTime| now.since(**at) < HOUR;
        let recent: Vec<MonoTime> = self.requested.iter().filter(hour).copied().collect();
        if let Some(first) = recent.get(recent.len().saturating_sub(policy.per_hour))
            && recent.len() >= policy.per_hour
        {
            let until = first.after(HOUR);
            return Some(Guard::PerHour { until });
        }
        let tries = self.tries.get(&self.place_of(server))?;
        let until = tries.next();
        (now < until).then_some(Guard::Backoff { until })
    }

    fn services_of(&self, server: IpAddr) -> impl Iterator<Item = ServiceKey> {
        let places = self.places.get(&server).into_iter().flatten();
        places.map(|(service, _)| *service)
    }

    /// Whose place a server has: its own, or that of the one it stands in for.
    fn place_of(&self, server: IpAddr) -> IpAddr {
        let stand_in = |m: &&super::Member| m.spare.addresses.contains(&server);
        let member = self.members.values().find(stand_in);
        member
            .and_then(|m| m.origins.first().copied())
            .unwrap_or(server)
    }

    /// Servers whose stand-ins are offered, not yet in service, and not found failing.
    fn attaching(&self, now: MonoTime) -> impl Iterator<Item = IpAddr> {
        let pending = move |m: &&super::Member| {
            let failing = m.spare.addresses.iter().any(|a| self.failing(*a).is_some());
            let joined = self.joined.get(&m.replacement);
            let fresh = joined.is_some_and(|at| now.since(*at) < ATTACH_LIMIT);
            let waits = m.want == Want::Attach && m.confirmed != Some(Want::Attach);
            waits && fresh && !failing && self.slots(m).next().is_some()
        };
        let pending = self.members.values().filter(pending);
        pending.filter_map(|m| m.origins.first().copied())
    }

    fn incident_of(&mut self, key: &IncidentKey) -> Option<&mut Incident> {
        let i = self.incidents.get_mut(&key.failed)?;
        (i.number == key.number && i.stage != Stage::Open).then_some(i)
    }

    pub(super) fn answered(
        &mut self,
        key: &IncidentKey,
        answer: &Replacement,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        let Some(incident) = self.incident_of(key) else {
            return;
        };
        match answer.state {
            // Its spare is on its way through the list of stand-ins, which closes the incident.
            ReplacementState::Attaching | ReplacementState::Succeeded => {}
            ReplacementState::Pending
            | ReplacementState::Claiming
            | ReplacementState::Configuring
            | ReplacementState::Testing => {}
            ReplacementState::Failed
            | ReplacementState::Cancelled
            | ReplacementState::Superseded
            | ReplacementState::Refused => {
                let why = answer
                    .reason
                    .clone()
                    .unwrap_or_else(|| answer.state.as_str().to_owned());
                return self.gave_up(key, why, now, fx);
            }
        }
        let stands = Some((answer.state, answer.reason.clone()));
        if let Stage::Requested {
            replacement,
            standing,
        } = &mut incident.stage
        {
            *replacement = Some(answer.id.clone());
            if *standing != stands {
                standing.clone_from(&stands);
                fx.notes.push(Note::Progress(
                    key.clone(),
                    answer.state,
                    answer.reason.clone(),
                ));
            }
        }
    }

    pub(super) fn gave_up(
        &mut self,
        key: &IncidentKey,
        why: String,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        let rest = REST.saturating_sub(self.config.replacement.replace_after);
        let Some(incident) = self.incident_of(key) else {
            return;
        };
        // Should it still fail, it is asked for anew, not at once.
        let wished = matches!(incident.stage, Stage::Cancelling { .. });
        incident.stage = Stage::Open;
        incident.since = now.after(rest);
        incident.told = None;
        fx.notes.push(if wished {
            Note::CalledOff(key.clone(), why)
        } else {
            Note::Gave(key.clone(), why)
        });
    }
}
