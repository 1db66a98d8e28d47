//! What `understudy explain` answers: one server in one service, and which rule holds it in or out. PURE.

mod document;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    Core, Guard, Rule, Seat, Stage,
    standby::{StandbyStatus, some_of},
    status::{DriftStatus, StandInStatus},
};
use crate::{
    config::VirtualService,
    health::{CheckState, Health, Standing},
    model::{
        CheckKind, CheckSpec, DestKey, DriftPolicy, MonoTime, Order, OrderedPlace, Outcome,
        Removal, ReplacementId, ServiceKey, parse_server, wire::Want,
    },
};

pub use document::{
    CheckExplained, Counts, Explained, Explanation, IncidentExplained, Place, Weights,
};

impl Core {
    /// A server in one service, or in all that have it, in their order.
    #[must_use]
    pub fn explain(
        &self,
        addr: IpAddr,
        port: Option<u16>,
        only: Option<ServiceKey>,
        now: MonoTime,
    ) -> Vec<Explained> {
        let fits = |dest: &DestKey| dest.addr == addr && port.is_none_or(|p| p == dest.port);
        let services = self.config.services.iter();
        let services = services.filter(|(key, _)| only.is_none_or(|only| only == **key));
        let mut all = Vec::new();
        for (key, config) in services {
            let seats = self.seats(*key, config);
            let kernel = self.applied.kernel.get(key);
            let mut dests: BTreeSet<DestKey> = seats.keys().copied().collect();
            dests.extend(kernel.iter().flat_map(|k| k.keys()));
            let warm = self.standbys.places().filter(|(of, _)| of == key);
            dests.extend(warm.map(|(_, dest)| dest));
            for dest in dests.into_iter().filter(fits) {
                let there = kernel.is_some_and(|k| k.contains_key(&dest));
                let seat = seats.get(&dest).copied();
                let seat = seat.unwrap_or(match there {
                    true => Seat::out(Rule::Foreign),
                    false => Seat::out(Rule::Warm),
                });
                all.push(self.explained(*key, config, dest, seat, now));
            }
        }
        let gone = self.leaving.iter();
        let gone = gone.filter(|(key, _)| !self.config.services.contains_key(key));
        for (key, part) in gone.filter(|(key, _)| only.is_none_or(|only| only == **key)) {
            let dests = part.dests.keys().filter(|dest| fits(dest));
            all.extend(dests.map(|dest| self.leaving_explained(*key, *dest, part.drift, now)));
        }
        all
    }

    /// A server of a service that the configuration no longer names.
    fn leaving_explained(
        &self,
        key: ServiceKey,
        dest: DestKey,
        drift: DriftPolicy,
        now: MonoTime,
    ) -> Explained {
        let kernel = self.applied.kernel.get(&key).and_then(|k| k.get(&dest));
        let explanation = Explanation {
            director: self.config.name.clone(),
            service: key,
            server: dest.to_string(),
            kind: "unclaimed".to_owned(),
            place: Place::Quiesced,
            rule: Rule::Leaving.label().to_owned(),
            why: format!(
                "the configuration no longer names its service: {}",
                self.leaves(key, dest, now)
            ),
            health: "-".to_owned(),
            since_s: None,
            checks: Vec::new(),
            checks_needed: 0,
            weight: Weights {
                configured: 0,
                wanted: Some(0),
                kernel: kernel.map(|a| a.weight.get()),
            },
            advice: None,
            order: self.order(key, dest).cloned(),
            quorum: None,
            drift_policy: drift.label().to_owned(),
            drift: self.drift_of(key, dest),
            not_applied: self.applied.failed.get(&key).cloned(),
            kernel: None,
            kernel_unread: None,
            incident: None,
            stand_ins: self.stand_ins_of(dest.addr),
            standbys: self.standbys_of(dest.addr, now),
            replacement: None,
            provisioner_silent: None,
        };
        Explained {
            explanation,
            server: dest,
            ask: None,
        }
    }

    fn explained(
        &self,
        key: ServiceKey,
        config: &VirtualService,
        dest: DestKey,
        seat: Seat,
        now: MonoTime,
    ) -> Explained {
        let standing = self.watched_as(key, dest);
        let checks = config.checks_of(&dest);
        let configured = match self.standby_attrs(key, dest) {
            Some(attrs) if seat.rule == Rule::Warm => attrs.weight,
            Some(_) | None => self.configured_weight(key, dest),
        };
        let kernel = self.applied.kernel.get(&key).and_then(|k| k.get(&dest));
        let incident = self.incident_explained(dest.addr, now);
        let stand_ins = self.stand_ins_of(dest.addr);
        let advice = standing.and_then(|standing| {
            let (check, advice) = standing.advice(configured)?;
            let spec = checks.all.get(check)?;
            Some(format!("{} wants {advice}", spec.kind.label()))
        });
        let mut explanation = Explanation {
            director: self.config.name.clone(),
            service: key,
            server: dest.to_string(),
            kind: self.kind(key, dest).to_owned(),
            place: match seat {
                seat if seat.takes() => Place::In,
                Seat { attrs: Some(_), .. } => Place::Quiesced,
                Seat { attrs: None, .. } => Place::Out,
            },
            rule: seat.rule.label().to_owned(),
            why: String::new(),
            health: match standing.map(Standing::verdict) {
                Some(_) if !checks.any() => "unchecked",
                Some(health) => health.label(),
                None => "-",
            }
            .to_owned(),
            since_s: standing.and_then(|s| since(s.verdict(), now)),
            checks: standing.map_or_else(Vec::new, |standing| {
                let all = checks.all.iter().zip(standing.checks());
                all.map(|(spec, state)| self.check_explained(key, dest, spec, state, now))
                    .collect()
            }),
            checks_needed: checks.need.of(checks.all.len()),
            weight: Weights {
                configured: configured.get(),
                wanted: seat.attrs.map(|a| a.weight.get()),
                kernel: kernel.map(|a| a.weight.get()),
            },
            advice,
            order: self.order(key, dest).cloned(),
            quorum: self.quorum_status(key, config),
            drift_policy: config.drift.label().to_owned(),
            drift: self.drift_of(key, dest),
            not_applied: self.applied.failed.get(&key).cloned(),
            kernel: None,
            kernel_unread: self.applied.unreadable.clone(),
            incident,
            stand_ins,
            standbys: self.standbys_of(dest.addr, now),
            replacement: None,
            provisioner_silent: None,
        };
        explanation.why = self.why(key, config, dest, seat, &explanation, now);
        let replacement = self.replacement_of(dest.addr);
        let provisioner = self.config.provisioner.as_ref();
        Explained {
            explanation,
            server: dest,
            ask: provisioner.map(|p| p.at.clone()).zip(replacement),
        }
    }

    /// What kind of a destination it is, as `status` says it.
    pub(super) fn kind(&self, key: ServiceKey, dest: DestKey) -> &'static str {
        let config = self.config.services.get(&key);
        match config {
            Some(config) if config.sorry.contains_key(&dest) => "sorry",
            Some(config) if config.servers.contains_key(&dest) => "configured",
            Some(_) if self.standing(key, dest).is_some() => "stand-in",
            Some(_) if self.standbys.standing(key, dest).is_some() => "warm spare",
            Some(_) | None => "unclaimed",
        }
    }

    /// The rule in words: what decides, why, and what ends it.
    fn why(
        &self,
        key: ServiceKey,
        config: &VirtualService,
        dest: DestKey,
        seat: Seat,
        all: &Explanation,
        now: MonoTime,
    ) -> String {
        let quorum = || match &all.quorum {
            Some(quorum) => quorum.to_string(),
            None => "the quorum holds".to_owned(),
        };
        let order = || {
            all.order
                .as_ref()
                .map_or_else(String::new, Order::to_string)
        };
        let back = format!(
            "`understudy enable {} --service {key}` takes that back",
            dest.addr
        );
        let kept = match seat.attrs {
            Some(_) => "keeps its connections and gets no new ones",
            None => "is taken out, with its connections",
        };
        // An order or a stand-in may stand before a failure that is not believed.
        let verdict = self.watched_as(key, dest).map(Standing::verdict);
        let passes = match verdict {
            Some(Health::Up { .. }) => "it passes, and ",
            Some(Health::Down { .. }) => "it fails while this director may be cut off itself, and ",
            Some(Health::Unknown { .. }) | None => "",
        };
        match seat.rule {
            Rule::Passed => match all.checks.len() {
                1 => "it passes its check".to_owned(),
                n if n == all.checks_needed => format!("it passes its {n} checks"),
                n => format!("it passes {} of its {n} checks, or more", all.checks_needed),
            },
            Rule::Unchecked => "its service has no check: it counts as up".to_owned(),
            Rule::Advised => format!(
                "it passes, and {}{}",
                all.advice.as_deref().unwrap_or("a check wants another weight"),
                if seat.takes() { "" } else { ": it keeps its connections and gets no new ones" }
            ),
            Rule::AdviceAwaited => "it passes; it keeps the weight that was found at the director's start until the check that may want another one has spoken".to_owned(),
            Rule::Adopted => "there is no verdict yet: it keeps the place and the weight that it had".to_owned(),
            Rule::LetIn => "there is no verdict yet: its service lets new servers in at once (initial = \"up\")".to_owned(),
            Rule::OrderedWeight => format!("{passes}an operator ordered: {}; {back}", order()),
            Rule::SorryServes => format!("it is a sorry server, and the quorum is lost: {}", quorum()),
            Rule::Unclaimed => "it was there at the director's start, and nobody names it: it stays until the provisioner has said which servers stand in, because the state file was lost".to_owned(),
            Rule::Failed => format!("{}: it {kept}", self.failure(config, key, dest)),
            Rule::Doubted => {
                let fell = self.verdict(key, dest).and_then(Health::down_since);
                let doubt = fell.and_then(|fell| self.doubt(dest.addr, fell));
                let doubt = doubt.map_or_else(String::new, |guard| format!(": {guard}"));
                format!("{}; it stays as it was while this director may be cut off itself{doubt}", self.failure(config, key, dest))
            }
            Rule::Panic => format!(
                "{}; it stays as it was: of this service's servers {} have to stay (panic_threshold), and it is among those that failed last",
                self.failure(config, key, dest),
                self.least(key, config)
            ),
            Rule::HeldOut => {
                let held = self.standing(key, dest);
                let held = held.and_then(|s| s.penalty().held(&config.damping, now));
                let left = held.unwrap_or(Duration::ZERO).as_secs() + 1;
                format!("it passes again, and it came and went: it {kept} for {left} s more, and longer if it falls again (damping)")
            }
            Rule::Disabled => format!("an operator ordered: {}; {back}", order()),
            Rule::Drained => format!("an operator ordered: {}; {}; {back}", order(), self.leaves(key, dest, now)),
            Rule::DrainedOut => format!("an operator ordered: {}; its connections are gone, or their time was over; {back}", order()),
            Rule::Leaving => format!("the configuration, or the provisioner, no longer wants it here: {}", self.leaves(key, dest, now)),
            Rule::QuorumLost => format!("the quorum is lost: it keeps its connections, new ones go to the sorry servers; {}", quorum()),
            Rule::Awaited => {
                let left = all.checks.iter().map(|c| c.passes_needed.saturating_sub(c.passes));
                let left = left.max().unwrap_or(1).max(1);
                format!("there is no verdict yet: it enters when it has passed its checks, at the earliest after {left} more")
            }
            Rule::Replaced(stand_in) => format!("{passes}its place has passed to the stand-in {stand_in}: it comes back when that fails or is withdrawn"),
            Rule::StandsBy if self.quorum(key).is_held() => "it is a sorry server: it serves while the quorum is lost, and the quorum holds".to_owned(),
            Rule::StandsBy => "it is a sorry server, and no sorry server takes connections: whoever is left of the real servers goes on".to_owned(),
            Rule::Warm => {
                let own = all.standbys.iter().filter(|s| {
                    s.places.iter().any(|p| p.service == key && p.server == all.server)
                });
                let origins: BTreeSet<IpAddr> = own.flat_map(|s| s.in_place_of.clone()).collect();
                let origins: Vec<IpAddr> = origins.into_iter().collect();
                let of = some_of(&origins, "or");
                match verdict {
                    Some(Health::Up { .. }) => format!("it is a warm spare and passes: it enters at once when the provisioner gives it the place of {of}"),
                    Some(Health::Down { .. }) => format!("it is a warm spare, and {}: given the place of {of} it would have to pass first", self.failure(config, key, dest)),
                    Some(Health::Unknown { .. }) | None => format!("it is a warm spare, to take the place of {of}, and there is no verdict yet"),
                }
            }
            Rule::Foreign => match all.drift_policy.as_str() {
                "repair" => "neither the configuration nor the provisioner names it: it is removed with the next pass".to_owned(),
                policy => format!("neither the configuration nor the provisioner names it: somebody added it, and drift = \"{policy}\" leaves it"),
            },
        }
    }

    /// When a destination that is drained leaves.
    fn leaves(&self, service: ServiceKey, server: DestKey, now: MonoTime) -> String {
        let place = OrderedPlace { service, server };
        let left = match self.connections_left(place) {
            Some(1) => "1 connection is left".to_owned(),
            Some(n) => format!("{n} connections are left"),
            None => "its connections are being counted".to_owned(),
        };
        match self.drain_ends(place) {
            Some(until) => format!(
                "{left}; it leaves with the last of them, in {} s at the latest",
                until.since(now).as_secs()
            ),
            None => format!("{left}; it leaves with the last of them"),
        }
    }

    /// What failed, and what becomes of it by which key of the configuration.
    fn failure(&self, config: &VirtualService, key: ServiceKey, dest: DestKey) -> String {
        let Some(standing) = self.watched_as(key, dest) else {
            return "it fails".to_owned();
        };
        let Health::Down { reason, .. } = standing.verdict() else {
            return "it fails".to_owned();
        };
        let detail = standing.detail().map(|d| format!(" ({d})"));
        let class = match config.on_failure.of(reason) {
            Removal::Remove => "",
            Removal::Quiesce => ", which on_failure quiesces",
        };
        format!("it fails, {reason}{}{class}", detail.unwrap_or_default())
    }

    fn check_explained(
        &self,
        key: ServiceKey,
        dest: DestKey,
        spec: &CheckSpec,
        state: &CheckState,
        now: MonoTime,
    ) -> CheckExplained {
        let (passes, passes_needed, failures) = match state.health {
            Health::Unknown {
                passes,
                failures,
                need,
            } => (passes, need, failures),
            Health::Up { failures, .. } => (0, spec.timing.rise, failures),
            Health::Down { passes, .. } => (passes, spec.timing.rise, 0),
        };
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        CheckExplained {
            check: spec.kind.label().to_owned(),
            asks: spec.kind.asks(),
            at: self.goes(key, dest, spec),
            interval_ms: millis(match state.health {
                Health::Down { .. } => spec.timing.down_interval,
                Health::Up { .. } | Health::Unknown { .. } => spec.timing.interval,
            }),
            timeout_ms: millis(spec.timing.timeout),
            rise: spec.timing.rise,
            fall: spec.timing.fall,
            health: state.health.label().to_owned(),
            since_s: since(state.health, now),
            passes,
            passes_needed,
            failures,
            found: state.last.map(|last| found(last, state.detail.as_deref())),
            found_s: state.at.map(|at| now.since(at).as_secs()),
            blind: state.blind,
        }
    }

    /// Where a check goes.
    fn goes(&self, key: ServiceKey, dest: DestKey, spec: &CheckSpec) -> String {
        let server = SocketAddr::new(dest.addr, dest.port);
        match &spec.kind {
            CheckKind::FromFile(file) => file.path_for(server).display().to_string(),
            CheckKind::External(helper) => helper.socket.display().to_string(),
            CheckKind::Icmp(_) if !spec.via.through => spec.via.towards(server).ip().to_string(),
            _ if spec.via.through => match self.through(key, dest, spec) {
                Some((at, _)) => format!("{at} (the virtual address, to this server)"),
                None => "the virtual address, as soon as its hidden service stands".to_owned(),
            },
            _ => spec.via.towards(server).to_string(),
        }
    }

    fn drift_of(&self, key: ServiceKey, dest: DestKey) -> Vec<DriftStatus> {
        let name = dest.to_string();
        let mut all = self.drift_status();
        // What was changed of the service itself concerns every server.
        all.retain(|d| d.service == key && d.server.as_ref().is_none_or(|s| *s == name));
        all
    }

    fn stand_ins_of(&self, addr: IpAddr) -> Vec<StandInStatus> {
        let concerns =
            |m: &&super::Member| m.origins.contains(&addr) || m.spare.addresses.contains(&addr);
        let concerned = self.members.values().filter(concerns);
        let ids: BTreeSet<_> = concerned.map(|m| m.replacement.to_string()).collect();
        let mut all = self.stand_ins_now();
        all.retain(|s| ids.contains(&s.replacement));
        all
    }

    fn standbys_of(&self, addr: IpAddr, now: MonoTime) -> Vec<StandbyStatus> {
        let is = |server: &String| parse_server(server).is_some_and(|(a, _)| a == addr);
        let mut all = self.standbys_now(now);
        all.retain(|s| s.in_place_of.contains(&addr) || s.places.iter().any(|p| is(&p.server)));
        all
    }

    /// The replacement of a server that the provisioner can tell of: the one that runs, or the one whose spare
    /// is on its way into its place.
    fn replacement_of(&self, addr: IpAddr) -> Option<ReplacementId> {
        let running = self.incidents.get(&addr).and_then(|i| match &i.stage {
            Stage::Open => None,
            Stage::Requested { replacement, .. } => replacement.clone(),
            Stage::Cancelling { replacement } => Some(replacement.clone()),
        });
        running.or_else(|| {
            let own = self.members.values().filter(|m| m.want == Want::Attach);
            let own =
                own.filter(|m| m.origins.contains(&addr) || m.spare.addresses.contains(&addr));
            own.map(|m| m.replacement.clone()).max()
        })
    }

    fn incident_explained(&self, addr: IpAddr, now: MonoTime) -> Option<IncidentExplained> {
        let incident = self.incidents.get(&addr)?;
        let status = self.incident_status(now);
        let status = status.into_iter().find(|s| s.failed == addr)?;
        let guard = match incident.stage {
            Stage::Open => self.guard(addr, now),
            Stage::Requested { .. } | Stage::Cancelling { .. } => None,
        };
        let until = guard.as_ref().and_then(Guard::until);
        Some(IncidentExplained {
            stage: status.stage,
            since_s: now.since(incident.since).as_secs(),
            guard: guard.map(|g| g.label().to_owned()),
            detail: status.detail,
            until_s: until.map(|until| until.since(now).as_secs()),
            replacement: status.replacement,
        })
    }
}

/// Seconds since a verdict.
pub(super) fn since(health: Health, now: MonoTime) -> Option<u64> {
    match health {
        Health::Up { since, .. } | Health::Down { since, .. } => Some(now.since(since).as_secs()),
        Health::Unknown { .. } => None,
    }
}

/// What a probe found, in words.
pub(super) fn found(outcome: Outcome, detail: Option<&str>) -> String {
    let found = match outcome {
        Outcome::Pass => "passed".to_owned(),
        Outcome::Fail(reason) => reason.to_string(),
    };
    match detail {
        Some(detail) => format!("{found}: {detail}"),
        None => found,
    }
}
