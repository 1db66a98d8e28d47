//! One service in one pass: its steps by wave, what came of them, and what the log says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    sync::Arc,
    vec,
};

use tracing::{debug, info, warn};

use super::{
    drift::Difference,
    plan::{Plan, Want},
};
use crate::{
    ipvs::Error,
    model::{DestAttrs, DestKey, DriftPolicy, Service, ServiceKey, ServiceState, Step},
    telemetry::Chain,
};

/// Lines of one kind in the log for one wave or pass: what comes beyond is counted in one more.
const LINES: usize = 16;

/// The phases of a pass, each for all services before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wave {
    /// Failed servers leave.
    TakeOut,
    /// Services are created or changed.
    Service,
    /// Capacity is added.
    Grow,
    /// Capacity is taken away.
    Shrink,
}

impl Wave {
    pub(super) const ALL: [Self; 4] = [Self::TakeOut, Self::Service, Self::Grow, Self::Shrink];
}

/// One service in one pass.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) key: ServiceKey,
    pub(super) wanted: Option<&'a Arc<Want>>,
    pub(super) found: Option<&'a ServiceState>,
    pub(super) differences: Vec<Difference>,
    plan: Plan,
    /// Steps of the running wave that are still to be sent.
    queue: vec::IntoIter<Step>,
    /// Steps that were sent and of which nothing was heard yet.
    sent: usize,
    /// Steps that the kernel made.
    done: Vec<Step>,
    /// The first step that it did not make, and why.
    pub(super) failed: Option<String>,
    /// What the pass before said of that: the log knows it.
    known: Option<String>,
    /// Something did not grow, so nothing is shrunk.
    held: bool,
    /// An errno says that the reading is wrong.
    pub(super) contradicted: bool,
    /// Whether a step was made is not known.
    pub(super) unsure: bool,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        key: ServiceKey,
        wanted: Option<&'a Arc<Want>>,
        found: Option<&'a ServiceState>,
        differences: Vec<Difference>,
        plan: Plan,
        known: Option<String>,
    ) -> Self {
        Self {
            key,
            wanted,
            found,
            differences,
            plan,
            queue: Vec::new().into_iter(),
            sent: 0,
            done: Vec::new(),
            failed: None,
            known,
            held: false,
            contradicted: false,
            unsure: false,
        }
    }

    /// Gets the steps of a wave ready, if nothing holds them back.
    pub(super) fn begin(&mut self, wave: Wave) {
        let steps = match wave {
            Wave::TakeOut => mem::take(&mut self.plan.take_out),
            // What could not grow is not shrunk, and on a reading that proved wrong nothing more is
            // done; other services go on.
            _ if self.held || self.contradicted => return,
            Wave::Service => self.plan.service.take().into_iter().collect(),
            Wave::Grow => mem::take(&mut self.plan.grow),
            Wave::Shrink => mem::take(&mut self.plan.shrink),
        };
        self.queue = steps.into_iter();
    }

    /// Moves as many steps of the wave behind `steps` as make these `limit`.
    pub(super) fn send(&mut self, limit: usize, steps: &mut Vec<Step>) {
        if self.contradicted {
            return;
        }
        let before = steps.len();
        let room = limit.saturating_sub(before);
        steps.extend(self.queue.by_ref().take(room));
        self.sent = steps.len() - before;
    }

    /// Whether there are steps that were not sent.
    pub(super) fn is_cut(&self) -> bool {
        !(self.queue.as_slice().is_empty() && self.plan.is_empty())
    }

    /// Takes in what became of the steps that were sent. Of those that were refused the first is
    /// told, and how many there are.
    pub(super) fn take(
        &mut self,
        wave: Wave,
        results: &mut impl Iterator<Item = (Step, Option<Result<(), Error>>)>,
        told: &mut Told,
        mut count: impl FnMut(&Step, bool),
    ) {
        let before = self.done.len();
        let mut refused: Option<(Step, String, usize)> = None;
        for (step, result) in results.take(mem::take(&mut self.sent)) {
            count(&step, matches!(result, Some(Ok(()))));
            let error = match result {
                Some(Ok(())) => {
                    self.done.push(step);
                    continue;
                }
                Some(Err(error)) => Some(error),
                None => None,
            };
            self.held |= wave != Wave::TakeOut;
            self.contradicted |= error.as_ref().is_none_or(Error::contradicts_reading);
            self.unsure |= match &error {
                None | Some(Error::TimedOut { .. } | Error::Overrun { .. } | Error::Io { .. }) => {
                    true
                }
                Some(_) => false,
            };
            match &mut refused {
                Some((.., more)) => *more += 1,
                None => {
                    let why = error.map_or_else(
                        || "the kernel said nothing of it".to_owned(),
                        |e| Chain(&e).to_string(),
                    );
                    refused = Some((step, why, 0));
                }
            }
        }
        if let Some((step, error, more)) = refused {
            let first = (self.failed).get_or_insert_with(|| format!("{step}: {error}"));
            // It is tried every second: what the log knows is not said again.
            if self.known.as_ref() == Some(&*first) {
                debug!(service = %self.key, %step, %error, more, "kernel refused a step again");
            } else if told.refusals.one() {
                warn!(service = %self.key, %step, %error, "kernel refused a step, it will be tried again");
                if more > 0 {
                    warn!(service = %self.key, steps = more, "kernel refused more steps of this service");
                }
            }
        }
        self.tell(
            self.done.get(before..).unwrap_or_default(),
            &mut told.changes,
        );
    }

    fn tell(&self, done: &[Step], lines: &mut Lines) {
        let key = self.key;
        match done {
            [] => {}
            [step] => {
                if lines.one() {
                    info!(service = %key, %step, "kernel table changed");
                }
            }
            steps if steps.len() <= lines.left => {
                for step in steps {
                    lines.one();
                    info!(service = %key, %step, "kernel table changed");
                }
            }
            steps => {
                if lines.one() {
                    let step = Many(steps);
                    info!(service = %key, %step, "kernel table changed");
                }
                for step in steps {
                    debug!(service = %key, %step, "kernel table changed");
                }
            }
        }
    }

    /// How many steps the kernel made.
    pub(super) const fn steps(&self) -> usize {
        self.done.len()
    }

    /// The destinations that the kernel holds now.
    pub(super) fn holds(&self) -> BTreeMap<DestKey, DestAttrs> {
        let dests = self.found.into_iter().flat_map(|a| &a.dests);
        let mut holds = dests
            .map(|(k, d)| (*k, d.attrs))
            .collect::<BTreeMap<_, _>>();
        for step in &self.done {
            match step {
                Step::NewDest(_, d, a) | Step::SetDest(_, d, a) => drop(holds.insert(*d, *a)),
                Step::DelDest(_, d) => drop(holds.remove(d)),
                Step::DelService(_) => holds.clear(),
                Step::NewService(..) | Step::SetService(..) => {}
            }
        }
        holds
    }

    /// The base of a service that had none and did not get all its steps: what the kernel holds now.
    /// What is wanted beyond that is still this director's to make, what changes from now on is not.
    /// `None` where it is not known, or not there.
    pub(super) fn first_base(&self) -> Option<Want> {
        let wanted = self.wanted.filter(|_| !self.unsure && !self.contradicted)?;
        let made = |s: &Step| matches!(s, Step::NewService(..) | Step::SetService(..));
        let attrs = match self.done.iter().any(made) {
            true => &wanted.service.attrs,
            false => &self.found?.attrs,
        };
        let service = Service {
            attrs: attrs.clone(),
            dests: self.holds(),
        };
        Some(Want {
            service,
            out: BTreeSet::new(),
            drift: wanted.drift,
        })
    }

    /// The base after steps of which some failed: what this director made is its own, what others
    /// made stays theirs.
    pub(super) fn rebase(&self, old: &Want) -> Want {
        let mut base = old.clone();
        let Some(wanted) = self.wanted else {
            return base;
        };
        for step in &self.done {
            match step {
                Step::NewService(..) | Step::SetService(..) => {
                    base.service.attrs.clone_from(&wanted.service.attrs);
                }
                Step::NewDest(_, d, _) | Step::SetDest(_, d, _) => {
                    let own = wanted.service.dests.get(d).map(|a| (*d, *a));
                    base.service.dests.extend(own);
                }
                Step::DelDest(_, d) => drop(base.service.dests.remove(d)),
                Step::DelService(_) => {}
            }
        }
        base
    }
}

/// Many steps of one service in one line.
struct Many<'a>(&'a [Step]);

impl fmt::Display for Many<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: BTreeSet<&str> = self.0.iter().map(Step::label).collect();
        for (i, label) in labels.into_iter().enumerate() {
            let count = self.0.iter().filter(|s| s.label() == label).count();
            let comma = if i == 0 { "" } else { ", " };
            let did = match label {
                "new_dest" => "add",
                "set_dest" => "change",
                _ => "remove",
            };
            let many = if count == 1 { "" } else { "s" };
            write!(f, "{comma}{did} {count} destination{many}")?;
        }
        Ok(())
    }
}

/// What the log was told of one wave.
#[derive(Debug)]
pub(super) struct Told {
    changes: Lines,
    refusals: Lines,
}

impl Told {
    pub(super) const fn new() -> Self {
        Self {
            changes: Lines::new(),
            refusals: Lines::new(),
        }
    }

    /// The last lines, for what was left out.
    pub(super) fn end(self) {
        if self.changes.more > 0 {
            info!(
                services = self.changes.more,
                "kernel table changed in more services"
            );
        }
        if self.refusals.more > 0 {
            warn!(
                services = self.refusals.more,
                "kernel refused steps of more services, they will be tried again"
            );
        }
    }
}

/// How many lines the log still gets; the rest is counted.
#[derive(Debug)]
pub(super) struct Lines {
    left: usize,
    more: usize,
}

impl Lines {
    pub(super) const fn new() -> Self {
        Self {
            left: LINES,
            more: 0,
        }
    }

    /// Whether there is room for one more line.
    const fn one(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return true;
        }
        self.more += 1;
        false
    }

    /// The last line, for the differences that were left out.
    pub(super) fn end_drift(self) {
        if self.more > 0 {
            warn!(
                differences = self.more,
                "and more was changed by somebody else"
            );
        }
    }

    /// Tells of what others changed.
    pub(super) fn drift(&mut self, policy: DriftPolicy, d: &Difference) {
        if !self.one() {
            return;
        }
        let (service, field) = (d.service, d.field.label());
        let server = d.dest.map(tracing::field::display);
        let (wanted, found) = (d.wanted.as_str(), d.found.as_str());
        match policy {
            DriftPolicy::Repair => {
                warn!(%service, server, field, wanted, found, "changed by somebody else, it is put right");
            }
            DriftPolicy::Alert => {
                warn!(%service, server, field, wanted, found, "changed by somebody else, it is left so and warned of");
            }
            DriftPolicy::Respect => {
                info!(%service, server, field, wanted, found, "changed by somebody else, it is left so");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ipvs::Request,
        reconcile::{
            plan::plan,
            testing::{dest, key, state},
        },
    };

    fn many() -> (Arc<Want>, Plan) {
        let mut service = Service {
            attrs: crate::model::ServiceAttrs {
                scheduler: crate::model::Scheduler("wlc".to_owned()),
                flags: crate::model::ServiceFlags::default(),
                persistence: None,
            },
            dests: BTreeMap::new(),
        };
        let attrs = DestAttrs {
            weight: crate::model::Weight::ONE,
            forward: crate::model::ForwardMethod::Dr,
            upper: 0,
            lower: 0,
            tunnel: crate::model::Tunnel::default(),
        };
        service.dests.insert(dest(0), attrs);
        let found = state(&service);
        service.dests.extend((0..40).map(|n| (dest(n), attrs)));
        if let Some(dest) = service.dests.get_mut(&dest(0)) {
            dest.upper = 9;
        }
        let plan = plan(key(), Some(&service), &BTreeSet::new(), Some(&found));
        let want = Want {
            service,
            out: BTreeSet::new(),
            drift: DriftPolicy::Repair,
        };
        (Arc::new(want), plan)
    }

    #[test]
    fn many_steps_of_a_service_are_one_line() {
        let (_, plan) = many();
        let line = Many(&plan.grow).to_string();
        assert_eq!(line, "add 39 destinations, change 1 destination");
    }

    /// All is refused; `known` is what the pass before said of it.
    fn refused(known: Option<String>) -> (Step, u32, Told, String) {
        let (want, plan) = many();
        let mut work = Work::new(key(), Some(&want), None, Vec::new(), plan, known);
        let mut steps = Vec::new();
        work.begin(Wave::Grow);
        work.send(usize::MAX, &mut steps);
        let first = steps.first().cloned().unwrap();
        let mut results = steps.into_iter().map(|step| {
            let request = Request::of(&step);
            let source = std::io::ErrorKind::OutOfMemory.into();
            (step, Some(Err(Error::Refused { request, source })))
        });
        let mut told = Told::new();
        let mut refused = 0;
        work.take(Wave::Grow, &mut results, &mut told, |_, ok| {
            refused += u32::from(!ok)
        });
        (first, refused, told, work.failed.unwrap())
    }

    #[test]
    fn of_many_refusals_the_first_is_told_and_what_is_beyond_is_counted() {
        let (first, refused, told, why) = refused(None);
        assert_eq!(refused, 40);
        assert_eq!(told.refusals.left, LINES - 1);
        assert!(why.starts_with(&first.to_string()));
        let mut lines = Lines::new();
        assert_eq!((0..20).filter(|_| lines.one()).count(), LINES);
        assert_eq!(lines.more, 20 - LINES);
    }

    #[test]
    fn a_refusal_that_the_log_knows_is_not_told_again() {
        let (.., why) = refused(None);
        let (.., again, same) = refused(Some(why.clone()));
        assert_eq!((again.refusals.left, same), (LINES, why));
        let (.., other, _) = refused(Some("another one".to_owned()));
        assert_eq!(other.refusals.left, LINES - 1);
    }
}
