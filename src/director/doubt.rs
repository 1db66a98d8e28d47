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

/// Where a destination was in service until its checks failed.
pub(super) type Fallen = BTreeMap<(ServiceKey, DestKey), DestAttrs>;

/// A link without carrier, as of one server behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    interface: String,
    since: MonoTime,
}

/// Many servers failed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mass {
    /// When it was found.
    pub(super) since: MonoTime,
    /// What is known of it.
    pub(super) known: Known,
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

    /// After a verdict: looks whether too many servers fail.
    pub(super) fn review_mass(&mut self, now: MonoTime, fx: &mut Effects) {
        let Some(rule) = self.config.mass_failure.clone() else {
            self.mass = None;
            return;
        };
        let (failing, all) = self.failing_share(&rule, now);
        let is_mass = failing >= 2 && failing * 100 > all * usize::from(rule.share);
        match self.mass {
            None if is_mass => {
                self.mass = Some(Mass {
                    since: now,
                    known: Known::Nothing,
                });
                fx.notes
                    .push(Note::MassFailure(failing, all, rule.witnesses.len()));
                self.dirty_fallen(fx);
            }
            Some(mass) if !is_mass && mass.known != Known::CutOff => {
                self.mass = None;
                fx.notes.push(Note::MassFailureOver);
                self.dirty_fallen(fx);
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

    /// Takes how many of the witnesses answered.
    pub(super) fn witnessed(&mut self, answered: usize, now: MonoTime, fx: &mut Effects) {
        match (self.mass.map(|mass| mass.known), answered) {
            (Some(Known::Nothing), 0) => self.mass_is_known(Known::CutOff, fx),
            (Some(Known::Nothing), _) => self.mass_is_known(Known::Real, fx),
            (Some(Known::CutOff), 1..) => {
                // What was found while it was cut off says nothing.
                let since = self.held_since();
                self.mass = None;
                fx.notes.push(Note::MassFailureOver);
                self.ask_anew(|_, fell| since.is_some_and(|since| fell >= since), now, fx);
            }
            (Some(Known::CutOff | Known::Real) | None, _) => {}
        }
    }

    fn mass_is_known(&mut self, known: Known, fx: &mut Effects) {
        if let Some(mass) = &mut self.mass {
            mass.known = known;
            fx.notes.push(Note::MassFailureKnown(known));
            self.dirty_fallen(fx);
        }
    }

    /// When a mass failure is believed without a witness.
    pub(super) fn mass_deadline(&self) -> Option<MonoTime> {
        let rule = self.config.mass_failure.as_ref()?;
        let mass = self.mass.filter(|mass| mass.known == Known::Nothing)?;
        rule.witnesses
            .is_empty()
            .then(|| mass.since.after(rule.hold_for))
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
            let held = self.mass.map(|mass| mass.since);
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

    /// What holds a server that failed then in its services: nobody knows yet that it did.
    pub(super) fn doubt(&self, server: IpAddr, fell: MonoTime) -> Option<Guard> {
        if let Some(cut) = self.cut.get(&server)
            && fell.after(BEFORE) >= cut.since
        {
            let interface = cut.interface.clone();
            return Some(Guard::LinkDown { interface });
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
    }

    fn dirty_fallen(&self, fx: &mut Effects) {
        fx.dirty.extend(self.fallen.keys().map(|(key, _)| *key));
    }
}
