//! The one place of the command line that writes to IPVS. What changes virtual services asks the
//! lock of a running director first: a change of what it owns would last until its next pass.
//! Counters, timeouts and sync daemons are no director's.

use std::{collections::BTreeSet, path::PathBuf};

use super::{Failure, count, kernel, note};
use crate::{
    agent::lock,
    ipvs::{self, Ipvs},
    model::{Ownership, ServiceKey, Step, SyncDaemon, SyncRole, Timeouts},
};

/// Services that a message names; of more it says how many.
const NAMED: usize = 5;

/// Respect for a running director.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Guard {
    /// Change even what a running director owns, which may undo it
    #[arg(long)]
    force: bool,
    /// Its lock, beside its socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/understudy/director.lock"
    )]
    lock: PathBuf,
}

impl Guard {
    /// The running director, if one owns any of these services (`None`: of all that there are).
    fn owner(&self, touched: Option<&BTreeSet<ServiceKey>>) -> Result<Option<Owner>, lock::Error> {
        let Some(director) = lock::owner(&self.lock)? else {
            return Ok(None);
        };
        let owned: Vec<_> = match touched {
            Some(touched) => touched
                .iter()
                .filter(|k| director.owns(k))
                .copied()
                .collect(),
            None => director.services.iter().copied().collect(),
        };
        let any = !owned.is_empty() || (touched.is_none() && director.exclusive);
        Ok(any.then_some(Owner { director, owned }))
    }

    /// Nothing, where nobody owns what is to be touched; a refusal where a director does.
    fn ask(&self, touched: Option<&BTreeSet<ServiceKey>>) -> Result<(), Failure> {
        match (self.owner(touched), self.force) {
            (Ok(None), _) | (Err(_), true) => Ok(()),
            (Ok(Some(owner)), true) => {
                note(&format!(
                    "forced: {owner} undoes it within {} where drift = \"repair\"",
                    owner.resync()
                ));
                Ok(())
            }
            (Ok(Some(owner)), false) => Err(Failure::Failed(format!(
                "{owner} owns {}: nothing was changed; change its configuration and restart it, or insist with --force, which it undoes within {} where drift = \"repair\"",
                owner.what(),
                owner.resync()
            ))),
            (Err(e), false) => {
                let why = Failure::failed(&e);
                let Failure::Failed(why) = why else {
                    return Err(why);
                };
                Err(Failure::Failed(format!(
                    "{why}: what a running director owns cannot be told, nothing was changed; be root, or insist with --force"
                )))
            }
        }
    }

    /// What would be said of these steps, were they to be done.
    pub(super) fn foretell(&self, steps: &[Step]) -> Option<String> {
        let owner = self.owner(Some(&touched(steps))).ok()??;
        Some(format!("{owner} owns {}", owner.what()))
    }
}

/// A running director and those of its services that are in question.
struct Owner {
    director: Ownership,
    owned: Vec<ServiceKey>,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ownership { director, pid, .. } = &self.director;
        write!(f, "director {} (pid {pid})", director.as_str())
    }
}

impl Owner {
    fn what(&self) -> String {
        if self.director.exclusive {
            return "all virtual services (exclusive = true)".to_owned();
        }
        let mut names: Vec<_> = self
            .owned
            .iter()
            .take(NAMED)
            .map(ToString::to_string)
            .collect();
        let more = self.owned.len().saturating_sub(NAMED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        names.join(", ")
    }

    fn resync(&self) -> String {
        format!(
            "{:?}",
            std::time::Duration::from_millis(self.director.resync_ms)
        )
    }
}

fn touched(steps: &[Step]) -> BTreeSet<ServiceKey> {
    steps.iter().map(Step::service).collect()
}

/// A kernel that may be changed.
pub(super) struct Permitted<'a>(&'a mut Ipvs);

/// Asks whether these steps may be done.
pub(super) fn permit<'a>(
    ipvs: &'a mut Ipvs,
    guard: &Guard,
    steps: &[Step],
) -> Result<Permitted<'a>, Failure> {
    guard.ask(Some(&touched(steps)))?;
    Ok(Permitted(ipvs))
}

impl Permitted<'_> {
    pub(super) async fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), ipvs::Error>> {
        self.0.apply(steps).await
    }
}

pub(super) async fn flush(ipvs: &mut Ipvs, guard: &Guard) -> Result<(), Failure> {
    guard.ask(None)?;
    let services = ipvs.services().await.map_err(kernel)?.len();
    ipvs.flush().await.map_err(kernel)?;
    super::say(&format!("{} removed\n", count(services, "service")))
}

/// An owned service may be counted anew: its director does not read the counters.
pub(super) async fn zero(ipvs: &mut Ipvs, service: Option<ServiceKey>) -> Result<(), Failure> {
    ipvs.zero(service).await.map_err(kernel)
}

pub(super) async fn set_timeouts(ipvs: &mut Ipvs, to: &Timeouts) -> Result<(), Failure> {
    ipvs.set_timeouts(to).await.map_err(kernel)
}

pub(super) async fn start_daemon(ipvs: &mut Ipvs, daemon: &SyncDaemon) -> Result<(), Failure> {
    ipvs.start_daemon(daemon).await.map_err(kernel)
}

pub(super) async fn stop_daemon(ipvs: &mut Ipvs, role: SyncRole) -> Result<(), Failure> {
    ipvs.stop_daemon(role).await.map_err(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(services: usize, exclusive: bool) -> Owner {
        let owned: Vec<ServiceKey> = (1..=services)
            .map(|n| format!("fwmark/{n}").parse().unwrap())
            .collect();
        Owner {
            director: Ownership {
                director: "lb1".parse().unwrap(),
                pid: 7,
                namespace: (4, 4_026_531_840),
                exclusive,
                resync_ms: 1500,
                services: owned.iter().copied().collect(),
            },
            owned,
        }
    }

    #[test]
    fn a_message_names_a_few_services() {
        assert_eq!(owner(2, false).what(), "fwmark/1, fwmark/2");
        assert_eq!(
            owner(7, false).what(),
            "fwmark/1, fwmark/2, fwmark/3, fwmark/4, fwmark/5, 2 more"
        );
        assert_eq!(
            owner(7, true).what(),
            "all virtual services (exclusive = true)"
        );
        assert_eq!(owner(1, false).to_string(), "director lb1 (pid 7)");
        assert_eq!(owner(1, false).resync(), "1.5s");
    }
}
