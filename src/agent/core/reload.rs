//! Another configuration: taken whole, or not at all; or only looked at.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::error;

use super::{Shell, told};
use crate::{
    agent::reload::{Load, Loaded},
    api::operator::{ReadingFor, Refusal},
    config,
    director::{Event, Note, Plan, Reload},
    model::{
        EventDraft, EventKind, KernelTable, MonoTime, Planned, PlannedStep, ReloadAnswer, Reloaded,
        ServiceKey, Step,
    },
    reconcile::plan::plan,
    telemetry::Chain,
};

/// A reload is answered after this, also where the kernel's table is not as wanted.
const LIMIT: Duration = Duration::from_secs(10);

/// A reload that is to be answered.
#[derive(Debug)]
pub(super) struct Reloading {
    answer: oneshot::Sender<Result<ReloadAnswer, Refusal>>,
    reloaded: Reloaded,
    /// What the kernel's table is to reach.
    generation: u64,
    since: MonoTime,
}

impl Shell {
    /// Takes a configuration that was read, or says what it would change.
    pub(super) async fn load(&mut self, load: Load, now: MonoTime) {
        let Load { loaded, wish } = load;
        let prepared = match loaded {
            Ok(Loaded { config, digest }) => self.prepare(config).await.map(|r| (r, digest)),
            Err(wrong) => Err(Refusal::Wrong(wrong)),
        };
        match (prepared, wish) {
            (Ok((reload, _)), Some(ReadingFor::Plan(answer))) => {
                let planned = self.planned(self.core.plan(reload, now)).await;
                told(answer.send(planned));
            }
            (Ok((reload, digest)), Some(ReadingFor::Reload(answer))) => {
                let reloaded = self.reload(reload, &digest, now);
                self.reloads.push(Reloading {
                    answer,
                    reloaded,
                    generation: self.out.desired.borrow().generation,
                    since: now,
                });
                self.answer_reloads(now);
            }
            (Ok((reload, digest)), None) => drop(self.reload(reload, &digest, now)),
            (Err(why), Some(wish @ ReadingFor::Plan(_))) => wish.refuse(why),
            (Err(why), wish) => {
                self.not_taken(&why);
                if let Some(wish) = wish {
                    wish.refuse(why);
                }
            }
        }
    }

    /// Says that the configuration is the old one.
    fn not_taken(&mut self, why: &Refusal) {
        let (Refusal::Wrong(why) | Refusal::Failed(why)) = why;
        self.metrics.config_reload_ok.set(0);
        error!("the configuration is as before, the new one was not taken: {why}");
        let text = format!("the configuration is as before, the new one was not taken: {why}");
        self.happened(EventDraft::new(EventKind::ReloadRefused, &text));
    }

    /// What the core needs of a new configuration and of the kernel.
    async fn prepare(&mut self, config: config::Director) -> Result<Reload, Refusal> {
        let old = Arc::clone(self.core.config());
        let fixed = old.fixed(&config);
        if !fixed.is_empty() {
            return Err(Refusal::Wrong(format!(
                "{} cannot change while the director runs: restart it (IPVS stays as it is meanwhile)",
                fixed.join(", ")
            )));
        }
        let config = Arc::new(config);
        let new = config.services.keys();
        let new: Vec<ServiceKey> = new
            .filter(|key| !old.services.contains_key(key))
            .copied()
            .collect();
        let found = self.read(&new).await?;
        let found = found.into_iter().map(|(key, s)| {
            (
                key,
                s.dests.into_iter().map(|(d, s)| (d, s.attrs)).collect(),
            )
        });
        let found = found.collect();
        Ok(Reload { config, found })
    }

    async fn read(&mut self, keys: &[ServiceKey]) -> Result<KernelTable, Refusal> {
        self.reader.read(keys).await.map_err(|e| {
            let why = Chain(&e);
            Refusal::Failed(format!(
                "IPVS could not be read, nothing was changed: {why}"
            ))
        })
    }

    fn reload(&mut self, reload: Reload, digest: &str, now: MonoTime) -> Reloaded {
        let old = Arc::clone(self.core.config());
        let new = Arc::clone(&reload.config);
        // Before services change hands: who writes by hand asks the lock.
        if let Err(e) = self.lock.renew(&new) {
            error!(error = %Chain(&e), "the lock does not say which services this director owns by now: leave changes by hand alone until the next reload");
        }
        self.out.in_force.send_replace(Arc::clone(&new));
        self.out.desired.send_if_modified(|d| {
            let differs = (d.resync, d.exclusive) != (new.resync, new.exclusive);
            (d.resync, d.exclusive) = (new.resync, new.exclusive);
            d.generation += u64::from(differs);
            differs
        });
        let fx = self.take(Event::Reload(Box::new(reload)), now);
        let reloaded = fx.notes.iter().find_map(|note| match note {
            Note::Reloaded(reloaded) => Some(*reloaded),
            _ => None,
        });
        let gone = old.services.keys();
        let gone = gone.filter(|key| !new.services.contains_key(key));
        self.metrics.drop_services(gone.copied());
        for key in new.services.keys() {
            let held = self.core.quorum(*key).is_held();
            self.metrics.set_quorum_held(*key, held);
        }
        self.metrics.set_config(digest);
        self.metrics.config_reload_ok.set(1);
        reloaded.unwrap_or_default()
    }

    /// Answers those whose changes the kernel has, and those that waited for long enough.
    pub(super) fn answer_reloads(&mut self, now: MonoTime) {
        let applied = self.core.applied();
        let reached = applied.generation;
        let failed = || {
            let failed = applied.failed.iter();
            let failed = failed.map(|(key, why)| format!("{key}: {why}"));
            applied.unreadable.clone().into_iter().chain(failed)
        };
        let done = |r: &Reloading| reached >= r.generation || now.since(r.since) >= LIMIT;
        for r in self.reloads.extract_if(.., |r| done(r)) {
            let applied = reached >= r.generation;
            let failed = if applied {
                Vec::new()
            } else {
                failed().collect()
            };
            let reloaded = r.reloaded;
            told(r.answer.send(Ok(ReloadAnswer {
                reloaded,
                applied,
                failed,
            })));
        }
    }

    /// The steps of a plan against the kernel's table as it is now, with the connections that each touches.
    async fn planned(&mut self, wanted: Plan) -> Result<Planned, Refusal> {
        let keys: Vec<ServiceKey> = wanted.wants.keys().copied().collect();
        let table = self.read(&keys).await?;
        let none = BTreeSet::new();
        let mut phases: [Vec<PlannedStep>; 4] = Default::default();
        for (key, want) in &wanted.wants {
            let out = want.as_ref().map_or(&none, |want| &want.out);
            let want = want.as_ref().map(|want| &want.service);
            let plan = plan(*key, want, out, table.get(key));
            let parts = [
                plan.take_out,
                plan.service.into_iter().collect(),
                plan.grow,
                plan.shrink,
            ];
            for (phase, part) in phases.iter_mut().zip(parts) {
                phase.extend(part.iter().map(|step| planned(step, &table)));
            }
        }
        Ok(Planned {
            reloaded: wanted.reloaded,
            steps: phases.into_iter().flatten().collect(),
            leaving: wanted.leaving.into_iter().collect(),
            stand_ins: wanted.stand_ins,
            called_off: wanted.called_off,
        })
    }
}

fn planned(step: &Step, table: &KernelTable) -> PlannedStep {
    let service = table.get(&step.service());
    let at = |dest| Some(service?.dests.get(&dest)?.active_connections);
    let active = |n: Option<u32>| u64::from(n.unwrap_or(0));
    let connections = match step {
        Step::NewService(..) => 0,
        Step::SetService(..) | Step::DelService(_) => {
            let dests = service.into_iter().flat_map(|s| s.dests.values());
            dests.map(|d| u64::from(d.active_connections)).sum()
        }
        Step::NewDest(_, dest, _) | Step::SetDest(_, dest, _) | Step::DelDest(_, dest) => {
            active(at(*dest))
        }
    };
    // Between the two it has none (`ip_vs_edit_service`, net/netfilter/ipvs/ip_vs_ctl.c).
    let reschedules = match step {
        Step::SetService(_, attrs) => service.is_some_and(|s| s.attrs.scheduler != attrs.scheduler),
        _ => false,
    };
    let refuses = match reschedules {
        true => ": another scheduler, new connections are refused for a moment",
        false => "",
    };
    PlannedStep {
        service: step.service(),
        server: step.dest().map(|dest| dest.to_string()),
        step: format!("{step}{refuses}"),
        connections,
    }
}
