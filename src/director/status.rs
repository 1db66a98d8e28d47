//! What `understudy status` shows, as a value.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Core, Link, Rule, Stage,
    explain::{Counts, found, since},
    standby::StandbyStatus,
    ways::diagnosis,
};
use crate::{
    config::VirtualService,
    health::{BLIND, CheckState, Health, Standing},
    model::{
        CheckSpec, Checks, DestAttrs, DestKey, DirectorName, DriftPolicy, MonoTime, Order,
        OrderedPlace, Outcome, QuorumRule, ServiceKey, Weight, wire::Want,
    },
    reconcile::drift::Difference,
};

/// Differences that a warning names; the others are counted.
const NAMED: usize = 3;

/// All that an operator asks first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The director's name.
    pub director: DirectorName,
    /// Services in order.
    pub services: Vec<ServiceStatus>,
    /// Failed servers that are to be replaced.
    pub incidents: Vec<IncidentStatus>,
    /// Servers from the pool.
    pub stand_ins: Vec<StandInStatus>,
    /// Warm spares, which are in no service yet.
    #[serde(default)]
    pub standbys: Vec<StandbyStatus>,
    /// What others changed in IPVS and what stands so.
    #[serde(default)]
    pub drift: Vec<DriftStatus>,
    /// Everything that is not as it should be, in words.
    pub warnings: Vec<String>,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Which.
    pub service: ServiceKey,
    /// Scheduler.
    pub scheduler: String,
    /// Forwarding method.
    pub forward: String,
    /// Its servers, stand-ins and strangers included.
    pub servers: Vec<ServerStatus>,
    /// Whether it has enough of them, where more than one is needed or somebody stands by.
    #[serde(default)]
    pub quorum: Option<QuorumStatus>,
}

/// Whether a virtual service has enough servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumStatus {
    /// Whether it has.
    pub held: bool,
    /// The weight of those that are up.
    pub live: u64,
    /// The weight that is needed.
    pub quorum: u32,
    /// So much more to regain it, and less to lose it.
    pub hysteresis: u32,
    /// Whether sorry servers take the new connections.
    pub sorry: bool,
}

/// A server in a virtual service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Address and port.
    pub server: String,
    /// `configured`, `sorry`, `stand-in` or `unclaimed` (in the kernel, but known to nobody yet).
    pub kind: String,
    /// `up`, `down`, `unknown`; `unchecked` where its service has no check; `-` where it is not ours.
    pub health: String,
    /// Why it is not in service as configured: what the last failed probe found, or who wants another
    /// weight.
    pub reason: Option<String>,
    /// Its checks, where there are several, or one that does not pass.
    #[serde(default)]
    pub checks: Vec<CheckStatus>,
    /// Seconds since the verdict.
    pub since_s: Option<u64>,
    /// Weight in the kernel; none where it is not there.
    pub weight: Option<u32>,
    /// Weight that the kernel is to have; none where it is to be out.
    #[serde(default)]
    pub wanted: Option<u32>,
    /// What holds it in or out: a label of [`super::Rule`].
    #[serde(default)]
    pub rule: String,
    /// What the kernel counts, where it could be asked.
    #[serde(default)]
    pub connections: Option<Counts>,
    /// What an operator ordered of it.
    #[serde(default)]
    pub order: Option<Order>,
}

/// One check of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// `tcp`, `http`, …
    pub check: String,
    /// `up`, `down`, `unknown`.
    pub health: String,
    /// What its last probe found.
    pub found: String,
}

/// A failed server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentStatus {
    /// Which.
    pub failed: IpAddr,
    /// `open`, `requested` or `cancelling`.
    pub stage: String,
    /// The replacement's id, once known.
    pub replacement: Option<String>,
    /// What it waits for, or how far it has come.
    pub detail: String,
}

/// A server from the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandInStatus {
    /// Its name.
    pub name: String,
    /// The servers' addresses whose place it has.
    pub in_place_of: Vec<IpAddr>,
    /// The replacement that made it.
    pub replacement: String,
    /// `joining`, `serving` or `leaving`.
    pub state: String,
    /// Where it serves, or is to.
    #[serde(default)]
    pub places: Vec<StandInPlace>,
}

/// One of a stand-in's places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandInPlace {
    /// In this service.
    pub service: ServiceKey,
    /// As this destination.
    pub server: String,
    /// In place of this one.
    pub in_place_of: String,
    /// With its weight.
    pub weight: u32,
}

/// One thing that somebody else changed in IPVS, and that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftStatus {
    /// In which service.
    pub service: ServiceKey,
    /// At which destination; none is the service itself.
    pub server: Option<String>,
    /// What of it: `weight`, `destination`, `scheduler`, …
    pub field: String,
    /// What is wanted.
    pub wanted: String,
    /// What the kernel has.
    pub found: String,
    /// `repair` (the kernel refused to have it put right), `alert` or `respect`.
    pub policy: String,
}

impl fmt::Display for QuorumStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (live, quorum) = (self.live, self.quorum);
        let back = u64::from(quorum) + u64::from(self.hysteresis);
        match (self.held, self.sorry) {
            (true, false) => write!(f, "weight {live} is up, quorum {quorum}"),
            (true, true) => write!(
                f,
                "weight {live} is up, quorum {quorum}; its sorry servers leave"
            ),
            (false, true) => write!(
                f,
                "weight {live} is up, it takes {back}; its sorry servers take the new connections"
            ),
            (false, false) => write!(
                f,
                "weight {live} is up, it takes {back}; no sorry server serves, who is left goes on"
            ),
        }
    }
}

impl Core {
    /// The whole of it.
    #[must_use]
    pub fn status(&self, now: MonoTime) -> Status {
        Status {
            director: self.config.name.clone(),
            services: self
                .config
                .services
                .keys()
                .map(|k| self.service_status(*k, now))
                .collect(),
            incidents: self.incident_status(now),
            stand_ins: self.stand_ins_now(),
            standbys: self.standbys_now(now),
            drift: self.drift_status(),
            warnings: self.warnings(now),
        }
    }

    fn service_status(&self, key: ServiceKey, now: MonoTime) -> ServiceStatus {
        let config = self.config.services.get(&key);
        let kernel = self.applied.kernel.get(&key);
        let mut dests: BTreeSet<_> = self.watched(key).collect();
        dests.extend(kernel.iter().flat_map(|k| k.keys()));
        let seats = config.map(|config| self.seats(key, config));
        let seats = seats.unwrap_or_default();
        let server = |dest| {
            let seat = seats.get(&dest);
            let standing = self.standing(key, dest);
            let health = standing.map(Standing::verdict);
            let unchecked = config.is_some_and(|c| !c.checks_of(&dest).any());
            let since_s = health.filter(|_| !unchecked).and_then(|h| since(h, now));
            let reason = config.zip(standing).and_then(|(config, standing)| {
                why(
                    config,
                    dest,
                    standing,
                    self.configured_weight(key, dest),
                    now,
                )
            });
            let weight = kernel.and_then(|k| k.get(&dest)).map(|a| a.weight.get());
            let yields = seat.is_some_and(|seat| seat.rule == Rule::QuorumLost);
            let reason = reason.or_else(|| {
                yields.then(|| "the quorum is lost: it keeps its connections, new ones go to the sorry servers".to_owned())
            });
            let place = OrderedPlace {
                service: key,
                server: dest,
            };
            let ramping = self.ramping(place);
            let reason =
                reason.or_else(|| ramping.map(|n| format!("ramping, {n} % of its weight")));
            let checks = config
                .zip(standing)
                .map_or_else(Vec::new, |(config, standing)| {
                    check_status(config.checks_of(&dest), standing)
                });
            ServerStatus {
                server: dest.to_string(),
                kind: self.kind(key, dest).to_owned(),
                health: match health {
                    Some(_) if unchecked => "unchecked",
                    Some(health) => health.label(),
                    None => "-",
                }
                .to_owned(),
                reason,
                checks,
                since_s,
                weight,
                wanted: seat.and_then(|seat| seat.attrs).map(|a| a.weight.get()),
                rule: seat
                    .map_or(Rule::Foreign, |seat| seat.rule)
                    .label()
                    .to_owned(),
                connections: None,
                order: self.order(key, dest).cloned(),
            }
        };
        ServiceStatus {
            service: key,
            scheduler: config
                .map(|c| c.attrs.scheduler.to_string())
                .unwrap_or_default(),
            forward: config.map(|c| c.forward.to_string()).unwrap_or_default(),
            servers: dests.into_iter().map(server).collect(),
            quorum: config.and_then(|config| self.quorum_status(key, config)),
        }
    }

    pub(super) fn quorum_status(
        &self,
        key: ServiceKey,
        config: &VirtualService,
    ) -> Option<QuorumStatus> {
        let held = self.quorum(key).is_held();
        if held && config.sorry.is_empty() && config.quorum == QuorumRule::default() {
            return None;
        }
        let kernel = self.applied.kernel.get(&key);
        let serves = |dest| {
            let attrs = kernel.and_then(|k| k.get(dest));
            attrs.is_some_and(|a| a.weight.get() > 0)
        };
        Some(QuorumStatus {
            held,
            live: self.weights(key, config).0,
            quorum: config.quorum.quorum,
            hysteresis: config.quorum.hysteresis,
            sorry: config.sorry.keys().any(serves),
        })
    }

    /// The watched destinations of a service.
    fn watched(&self, key: ServiceKey) -> impl Iterator<Item = DestKey> {
        let dests = self.health.get(&key).into_iter().flatten();
        dests.map(|(dest, _)| *dest)
    }

    fn drift_policy(&self, key: &ServiceKey) -> DriftPolicy {
        let config = self.config.services.get(key);
        config.map(|c| c.drift).unwrap_or_default()
    }

    pub(super) fn drift_status(&self) -> Vec<DriftStatus> {
        let one = |d: &Difference| DriftStatus {
            service: d.service,
            server: d.dest.map(|d| d.to_string()),
            field: d.field.label().to_owned(),
            wanted: d.wanted.clone(),
            found: d.found.clone(),
            policy: self.drift_policy(&d.service).label().to_owned(),
        };
        self.applied.drift.values().flatten().map(one).collect()
    }

    pub(super) fn incident_status(&self, now: MonoTime) -> Vec<IncidentStatus> {
        let one = |(failed, incident): (&IpAddr, &super::Incident)| {
            let (stage, replacement, detail) = match &incident.stage {
                Stage::Open => {
                    let held = self.guard(*failed, now).map(|g| g.to_string());
                    ("open", None, held.unwrap_or_default())
                }
                Stage::Requested {
                    replacement,
                    standing,
                } => {
                    let detail = match standing {
                        None => "the provisioner has not answered yet".to_owned(),
                        Some((state, None)) => state.as_str().to_owned(),
                        Some((state, Some(why))) => format!("{}: {why}", state.as_str()),
                    };
                    ("requested", replacement.as_ref(), detail)
                }
                Stage::Cancelling { replacement } => (
                    "cancelling",
                    Some(replacement),
                    "the server answers again".to_owned(),
                ),
            };
            IncidentStatus {
                failed: *failed,
                stage: stage.to_owned(),
                replacement: replacement.map(ToString::to_string),
                detail,
            }
        };
        self.incidents.iter().map(one).collect()
    }

    /// Servers from the pool, and where each stands.
    #[must_use]
    pub fn stand_ins_now(&self) -> Vec<StandInStatus> {
        let state = |m: &super::Member| match m.want {
            Want::Attach if self.stands(m) => "serving",
            Want::Attach => "joining",
            Want::Withdraw => "leaving",
        };
        let members = self.members.values();
        members
            .map(|m| StandInStatus {
                name: m.spare.name.clone(),
                in_place_of: m.origins.clone(),
                replacement: m.replacement.to_string(),
                state: state(m).to_owned(),
                places: self.places_of_member(m),
            })
            .collect()
    }

    fn places_of_member(&self, m: &super::Member) -> Vec<StandInPlace> {
        let slots = self.slots(m);
        let place = |(service, dest): (ServiceKey, DestKey)| {
            let config = self.config.services.get(&service)?;
            let mut servers = config.servers.iter();
            let of = |(origin, _): &(&DestKey, &DestAttrs)| {
                m.origins.contains(&origin.addr) && origin.port == dest.port
            };
            let (origin, attrs) = servers.find(of)?;
            Some(StandInPlace {
                service,
                server: dest.to_string(),
                in_place_of: origin.to_string(),
                weight: attrs.weight.get(),
            })
        };
        slots.filter_map(place).collect()
    }

    fn overdue(&self, m: &super::Member, now: MonoTime) -> bool {
        let joined = self.joined.get(&m.replacement);
        joined.is_some_and(|at| now.since(*at) >= super::incident::ATTACH_LIMIT)
    }

    fn warnings(&self, now: MonoTime) -> Vec<String> {
        let mut all = Vec::new();
        if let (Some(why), Some(_)) = (&self.forgot, &self.config.provisioner) {
            all.push(format!(
                "{why}: destinations that the configuration does not name keep their place until the provisioner has said which are stand-ins"
            ));
        }
        match (&self.link, &self.config.provisioner) {
            (Link::Silent(why) | Link::Unheard(Some(why)), Some(_)) => {
                all.push(format!("the provisioner does not answer ({why}): failed servers are taken out, but not replaced"));
            }
            (Link::Unheard(None), Some(_)) => {
                all.push("the provisioner has not been heard yet".to_owned());
            }
            (Link::Up, _) | (_, None) => {}
        }
        for m in self.members.values().filter(|m| m.want == Want::Attach) {
            let name = &m.spare.name;
            if self.slots(m).next().is_none() {
                all.push(format!(
                    "stand-in {name} has no place, and is given back to the provisioner: the configuration names neither {:?} nor {:?}",
                    m.origins, m.spare.addresses
                ));
            } else if !self.stands(m) && self.overdue(m, now) {
                all.push(format!(
                    "stand-in {name} is not in service in all its places: see its checks above, and the log for what the kernel refused"
                ));
            }
        }
        all.extend(self.failing_standbys());
        all.extend(self.doubts());
        all.extend(self.blind());
        for (key, config) in &self.config.services {
            if self.quorum(*key).is_held() {
                continue;
            }
            let status = self.quorum_status(*key, config);
            all.extend(status.map(|status| format!("{key} has lost its quorum: {status}")));
        }
        match self.lacking_ways() {
            0 => {}
            n => all.push(format!(
                "no firewall mark is left for the checks through the virtual address of {n} servers, they cannot enter: widen [director] probe_marks"
            )),
        }
        if let Some(why) = &self.applied.unreadable {
            all.push(format!("the kernel's table cannot be read: {why}"));
        }
        for (service, why) in &self.applied.failed {
            all.push(format!("{service} is not as wanted: {why}"));
        }
        for (service, differences) in &self.applied.drift {
            if self.drift_policy(service) != DriftPolicy::Alert && !self.config.shadow {
                continue;
            }
            let named: Vec<_> = differences
                .iter()
                .take(NAMED)
                .map(ToString::to_string)
                .collect();
            let more = match differences.len().saturating_sub(NAMED) {
                0 => String::new(),
                n => format!("; and {n} more"),
            };
            let named = named.join("; ");
            all.push(match self.config.shadow {
                true => {
                    format!("shadow: this director would have {service} otherwise: {named}{more}")
                }
                false => {
                    format!("{service} was changed by somebody else and is left so: {named}{more}")
                }
            });
        }
        all
    }

    /// Checks that cannot be made here, by service and kind.
    fn blind(&self) -> Vec<String> {
        let mut found: BTreeMap<(ServiceKey, &str), (usize, String)> = BTreeMap::new();
        for (key, dests) in self.checked() {
            let Some(config) = self.config.services.get(key) else {
                continue;
            };
            for (dest, standing) in dests {
                for (spec, state) in config.checks_of(dest).all.iter().zip(standing.checks()) {
                    if state.blind >= BLIND {
                        let why = state
                            .detail
                            .as_deref()
                            .unwrap_or("no socket, port or memory");
                        let first = || (0, format!("{dest}: {why}"));
                        let known = found.entry((*key, spec.kind.label())).or_insert_with(first);
                        known.0 += 1;
                    }
                }
            }
        }
        let text = |((key, kind), (count, first)): ((ServiceKey, &str), (usize, String))| {
            let more = match count {
                1 => String::new(),
                n => format!(", and {} more", n - 1),
            };
            format!(
                "the {kind} check of {key} cannot be made on this host, so that nobody knows how its servers are: {first}{more}"
            )
        };
        found.into_iter().map(text).collect()
    }

    /// Failed servers by stage, and held requests by guard: for metrics.
    #[must_use]
    pub fn held(&self, now: MonoTime) -> Vec<&'static str> {
        let open = self
            .incidents
            .iter()
            .filter(|(_, i)| i.stage == Stage::Open);
        open.filter_map(|(a, _)| self.guard(*a, now).map(|g| g.label()))
            .collect()
    }

    /// Whether the provisioner answers.
    #[must_use]
    pub fn provisioner_answers(&self) -> bool {
        self.link == Link::Up
    }

    /// Whether the state file could be used, or its loss no longer matters.
    #[must_use]
    pub const fn remembers(&self) -> bool {
        self.forgot.is_none()
    }

    /// How many failed servers are to be replaced.
    #[must_use]
    pub fn incident_count(&self) -> usize {
        self.incidents.len()
    }
}

/// Why a server is not in service as configured.
fn why(
    config: &VirtualService,
    dest: DestKey,
    standing: &Standing,
    configured: Weight,
    now: MonoTime,
) -> Option<String> {
    match standing.verdict() {
        Health::Down { reason, .. } => {
            let held = standing.penalty().held(&config.damping, now);
            if let (None, Some(left)) = (standing.failing_since(), held) {
                return Some(format!(
                    "it passes, and is held out for {} s because it came and went: {reason} before",
                    left.as_secs() + 1
                ));
            }
            let detail = standing.detail();
            let mut text = match detail {
                Some(detail) => format!("{reason}: {detail}"),
                None => reason.to_string(),
            };
            if let Some(words) = diagnosis(config, standing) {
                text.push_str("; ");
                text.push_str(words);
            }
            Some(text)
        }
        Health::Up { .. } => {
            let (check, advice) = standing.advice(configured)?;
            let check = config.checks_of(&dest).all.get(check)?;
            Some(format!("{} wants {advice}", check.kind.label()))
        }
        Health::Unknown { .. } => None,
    }
}

fn check_status(checks: &Checks, standing: &Standing) -> Vec<CheckStatus> {
    let fine = |s: &CheckState| s.last.is_none_or(|last| last == Outcome::Pass);
    if standing.checks().len() < 2 && standing.checks().iter().all(fine) {
        return Vec::new();
    }
    let one = |(check, state): (&Arc<CheckSpec>, &CheckState)| CheckStatus {
        check: check.kind.label().to_owned(),
        health: state.health.label().to_owned(),
        found: match state.last {
            None => "not asked yet".to_owned(),
            Some(last) => found(last, state.detail.as_deref()),
        },
    };
    checks.all.iter().zip(standing.checks()).map(one).collect()
}

#[cfg(test)]
mod tests;
