//! Whether it is the servers that fail, or this director that is cut off: what it must not believe yet. PURE.
//!
//! A link of this host's without a carrier says nothing of the servers behind it. And where more than a
//! share of all servers fails at once, it is rather this director: witnesses are asked before anybody is
//! taken out or replaced.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{Core, Effects, Guard, Note};
use crate::{
    config::MassFailure,
    health::{Health, Standing},
    model::{DestAttrs, DestKey, MonoTime, Outcome, ServiceKey},
};

/// Who fell so long before a link was seen without carrier fell with it.
const BEFORE: Duration = Duration::from_secs(10);

/// One that fell silent alone is held no longer, whether or not a witness answers.
const ALONE: Duration = Duration::from_secs(3);

/// Where a destination was in service until its checks failed.
pub(super) type Fallen = BTreeMap<(ServiceKey, DestKey), DestAttrs>;

/// A link without carrier, as of one server behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    interface: String,
    since: MonoTime,
}

/// Servers fail, and this director may be cut off: one that fell silent, or many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mass {
    /// When it was found.
    pub(super) since: MonoTime,
    /// What is known of it.
    pub(super) known: Known,
    /// Whether they are many: it was told of.
    pub(super) many: bool,
}

/// What is known of a mass failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing yet: the witnesses are being asked, or there are none.
    Nothing,
    /// No witness answers: this director is cut off.
    CutOff,
    /// A witness answers, or none could be asked for long enough: the servers failed.
    Real,
}

impl Core {
    /// Whether witnesses are to be asked.
    #[must_use]
    pub fn asks_witnesses(&self) -> bool {
        self.mass.is_some_and(|mass| mass.known != Known::Real)
    }

    /// Takes which servers are behind links without carrier.
    pub(super) fn cut_off(
        &mut self,
        servers: &BTreeMap<IpAddr, String>,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        let links = |cut: &BTreeMap<IpAddr, Cut>| -> BTreeSet<String> {
            cut.values().map(|c| c.interface.clone()).collect()
        };
        let before = links(&self.cut);
        let back: Vec<IpAddr> = self
            .cut
            .keys()
            .filter(|server| !servers.contains_key(*server))
            .copied()
            .collect();
        for (server, interface) in servers {
            let interface = interface.clone();
            let since = now;
            self.cut.entry(*server).or_insert(Cut { interface, since });
        }
        for server in back {
            if let Some(cut) = self.cut.remove(&server) {
                let fell = |addr: IpAddr, since: MonoTime| {
                    addr == server && since.after(BEFORE) >= cut.since
                };
                self.ask_anew(fell, now, fx);
            }
        }
        let after = links(&self.cut);
        self.dirty_fallen(fx);
        for interface in after.difference(&before) {
            let count = self
                .cut
                .values()
                .filter(|c| c.interface == *interface)
                .count();
            fx.notes.push(Note::LinkDown(interface.clone(), count));
        }
        for interface in before.difference(&after) {
            fx.notes.push(Note::LinkUp(interface.clone()));
        }
    }

    /// Looks whether too many servers fail; `silent`: one has just fallen silent, and the first of many is not to
    /// go before a witness was asked.
    pub(super) fn review_mass(&mut self, silent: bool, now: MonoTime, fx: &mut Effects) {
        let Some(rule) = self.config.mass_failure.clone() else {
            self.mass = None;
            return;
        };
        let (failing, all) = self.failing_share(&rule, now);
        let many = failing >= 2 && failing * 100 > all * usize::from(rule.share);
        let asks = rule.holds_removals && !rule.witnesses.is_empty();
        match self.mass {
            None if many || (silent && asks) => {
                self.mass = Some(Mass {
                    since: now,
                    known: Known::Nothing,
                    many,
                });
                self.dirty_fallen(fx);
                if many {
                    fx.notes
                        .push(Note::MassFailure(failing, all, rule.witnesses.len()));
                }
            }
            Some(mass) if many && !mass.many => {
                self.mass = Some(Mass { many, ..mass });
                fx.notes
                    .push(Note::MassFailure(failing, all, rule.witnesses.len()));
            }
            Some(mass) if !many && !mass.many => {
                if mass.since.after(ALONE) <= now {
                    self.mass_is_over(fx);
                }
            }
            // Servers that pass again say as much as a witness.
            Some(mass) if !many && mass.known == Known::CutOff && !silent => {
                self.mass_was_ours(now, fx);
            }
            Some(mass) if rule.witnesses.is_empty() && mass.known == Known::CutOff => {
                let known = Known::Nothing;
                self.mass = Some(Mass {
                    since: now,
                    known,
                    ..mass
                });
            }
            Some(mass) if !many && mass.known != Known::CutOff => {
                fx.notes.push(Note::MassFailureOver);
                self.mass_is_over(fx);
            }
            Some(mass)
                if mass.known == Known::Nothing
                    && rule.witnesses.is_empty()
                    && mass.since.after(rule.hold_for) <= now =>
            {
                self.mass_is_known(Known::Real, fx);
            }
            Some(_) | None => {}
        }
    }

    fn mass_is_over(&mut self, fx: &mut Effects) {
        self.mass = None;
        self.dirty_fallen(fx);
    }

    /// Takes how many of the witnesses answered.
    pub(super) fn witnessed(&mut self, answered: usize, now: MonoTime, fx: &mut Effects) {
        let Some(mass) = self.mass else { return };
        match (mass.known, answered) {
            // Whether the others are silent too shows soon.
            (Known::Nothing, 0) if !mass.many => {}
            (Known::Nothing, 0) => self.mass_is_known(Known::CutOff, fx),
            (Known::Nothing, _) if !mass.many => self.mass_is_over(fx),
            (Known::Nothing, _) => self.mass_is_known(Known::Real, fx),
            (Known::CutOff, 1..) => self.mass_was_ours(now, fx),
            (Known::CutOff | Known::Real, _) => {}
        }
    }

    /// This director was cut off, and is not any more: what was found meanwhile says nothing.
    fn mass_was_ours(&mut self, now: MonoTime, fx: &mut Effects) {
        let since = self.held_since();
        self.mass = None;
        fx.notes.push(Note::MassFailureOver);
        self.ask_anew(|_, fell| since.is_some_and(|since| fell >= since), now, fx);
    }

    fn mass_is_known(&mut self, known: Known, fx: &mut Effects) {
        if let Some(mass) = &mut self.mass {
            mass.known = known;
            fx.notes.push(Note::MassFailureKnown(known));
            self.dirty_fallen(fx);
        }
    }

    /// What this director does not believe yet, and which servers stay though they fail, in words.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut links: BTreeMap<&str, usize> = BTreeMap::new();
        for cut in self.cut.values() {
            *links.entry(&cut.interface).or_default() += 1;
        }
        let link = |(interface, count): (&str, usize)| {
            format!(
                "the link of {interface} is down: the {count} servers behind it are neither taken out nor replaced until it is up"
            )
        };
        let mut all: Vec<String> = links.into_iter().map(link).collect();
        all.extend(self.mass.and_then(|mass| match mass.known {
            Known::Nothing if mass.many => Some(Guard::MassFailure.to_string()),
            Known::Nothing => None,
            Known::CutOff => Some(Guard::CutOff.to_string()),
            Known::Real => None,
        }));
        for (key, stay) in &self.panics {
            let stay: Vec<_> = stay.iter().map(ToString::to_string).collect();
            all.push(format!(
                "{key} has fewer servers than panic_threshold allows: {} stay in though they fail, until others are up",
                stay.join(", ")
            ));
        }
        all
    }

    /// How many failed servers each guard keeps in, each counted in its services.
    #[must_use]
    pub fn kept_in(&self) -> BTreeMap<&'static str, u32> {
        let mut counts: BTreeMap<_, _> = Guard::KEEPS_IN.into_iter().map(|g| (g, 0)).collect();
        if self.cut.is_empty() && self.mass.is_none() && self.panics.is_empty() {
            return counts;
        }
        for (key, dest) in self.fallen.keys() {
            let down = self
                .standing(*key, *dest)
                .and_then(|s| s.verdict().down_since());
            let Some(fell) = down else { continue };
            let panics = || self.panics.get(key).is_some_and(|stay| stay.contains(dest));
            let guard = match self.held_in(*key, *dest, fell) {
                Some(_) => self.doubt(dest.addr, fell).map(|guard| guard.label()),
                None => panics().then_some(Guard::PANIC),
            };
            if let Some(count) = guard.and_then(|guard| counts.get_mut(guard)) {
                *count += 1;
            }
        }
        counts
    }

    /// When a failure is believed without a witness.
    pub(super) fn mass_deadline(&self) -> Option<MonoTime> {
        let rule = self.config.mass_failure.as_ref()?;
        let mass = self.mass.filter(|mass| mass.known == Known::Nothing)?;
        let limit = match mass.many {
            false => ALONE,
            true if rule.witnesses.is_empty() => rule.hold_for,
            true => return None,
        };
        Some(mass.since.after(limit))
    }

    /// Servers that fail by now, or have failed within the time, and all that are checked and not put aside.
    fn failing_share(&self, rule: &MassFailure, now: MonoTime) -> (usize, usize) {
        let (mut failing, mut all) = (0, 0);
        for server in self.places.keys() {
            let mut standings = self.standings(*server).peekable();
            if standings.peek().is_none() {
                continue;
            }
            all += 1;
            // What is known to be real is over when nobody else falls.
            let held = self.mass.filter(|mass| mass.known != Known::Real);
            let held = held.map(|mass| mass.since);
            let fails = |standing: &Standing| match standing.verdict() {
                Health::Down { since, .. } => {
                    now.since(since) <= rule.within
                        || held.is_some_and(|held| since.after(rule.within) >= held)
                }
                Health::Up { .. } | Health::Unknown { .. } => {
                    let mut last = standing.checks().iter().filter_map(|check| check.last);
                    last.any(|last| matches!(last, Outcome::Fail(_)))
                }
            };
            failing += usize::from(standings.any(fails));
        }
        (failing, all)
    }

    /// From when on a verdict is not believed.
    fn held_since(&self) -> Option<MonoTime> {
        let rule = self.config.mass_failure.as_ref()?;
        let mass = self.mass.filter(|mass| mass.known != Known::Real)?;
        let since = mass.since.since_boot().saturating_sub(rule.within);
        Some(MonoTime::from_boot(since))
    }

    /// Whether the link towards a server is down.
    pub(super) fn link_down(&self, server: IpAddr) -> Option<Guard> {
        let interface = self.cut.get(&server)?.interface.clone();
        Some(Guard::LinkDown { interface })
    }

    /// What holds a server that failed then in its services: nobody knows yet that it did.
    pub(super) fn doubt(&self, server: IpAddr, fell: MonoTime) -> Option<Guard> {
        if let Some(cut) = self.cut.get(&server)
            && fell.after(BEFORE) >= cut.since
        {
            return self.link_down(server);
        }
        if self.held_since().is_some_and(|since| fell >= since) {
            return Some(match self.mass.map(|mass| mass.known) {
                Some(Known::CutOff) => Guard::CutOff,
                Some(Known::Nothing | Known::Real) | None => Guard::MassFailure,
            });
        }
        None
    }

    /// The same for its removal: where the configuration says that it waits, and it was in service.
    pub(super) fn held_in(
        &self,
        key: ServiceKey,
        dest: DestKey,
        fell: MonoTime,
    ) -> Option<DestAttrs> {
        let attrs = self.fallen.get(&(key, dest))?;
        let holds = match self.doubt(dest.addr, fell)? {
            Guard::LinkDown { .. } => true,
            _ => self
                .config
                .mass_failure
                .as_ref()
                .is_some_and(|rule| rule.holds_removals),
        };
        holds.then_some(*attrs)
    }

    /// Those who fell and were in service until then are asked as if nothing had been found: they keep their
    /// places until there is a verdict.
    fn ask_anew(
        &mut self,
        fell: impl Fn(IpAddr, MonoTime) -> bool,
        now: MonoTime,
        fx: &mut Effects,
    ) {
        let config = Arc::clone(&self.config);
        let all: Vec<_> = self
            .fallen
            .iter()
            .map(|(place, attrs)| (*place, *attrs))
            .collect();
        for ((key, dest), attrs) in all {
            let down = self
                .standing(key, dest)
                .and_then(|s| s.verdict().down_since());
            let service = config.services.get(&key);
            let (Some(since), Some(service)) = (down, service) else {
                continue;
            };
            if !fell(dest.addr, since) {
                continue;
            }
            self.fallen.remove(&(key, dest));
            self.adopted.entry(key).or_default().insert(dest, attrs);
            let fresh = Standing::new(service.checks_of(&dest), false, now);
            self.health.entry(key).or_default().insert(dest, fresh);
            fx.dirty.insert(key);
        }
        fx.targets |= self.ask_standbys_anew(fell, now);
    }

    fn dirty_fallen(&self, fx: &mut Effects) {
        fx.dirty.extend(self.fallen.keys().map(|(key, _)| *key));
    }
}
