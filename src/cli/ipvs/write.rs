//! The one place of the command line that writes to IPVS. What changes virtual services asks the
//! lock of a running director first: a change of what it owns would last until its next pass.
//! Counters, timeouts and sync daemons are no director's.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{Failure, count, kernel, note};
use crate::{
    agent::lock::{self, Found, Hold},
    ipvs::{self, Ipvs},
    model::{Ownership, ServiceKey, Step, SyncDaemon, SyncRole, Timeouts},
    telemetry::Chain,
};

/// Services that a message names; of more it says how many.
const NAMED: usize = 5;

/// Where the lock lies of a director with the default socket.
pub(super) const LOCK: &str = "/run/understudy/director.lock";

/// Said after the options of what asks it.
pub(super) const ELSEWHERE: &str = "\
The lock of a director lies beside its socket: of one with another [director] socket, name it with
--lock. What such a director owns is not looked at otherwise.";

/// Respect for a running director.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Guard {
    /// Change even what a running director owns, which may undo it
    #[arg(long)]
    force: bool,
    /// Its lock, beside its own socket [default: /run/understudy/director.lock]
    #[arg(long, value_name = "PATH")]
    lock: Option<PathBuf>,
}

impl Guard {
    /// The lock, held if no director runs, where nobody owns any of these services (`None`: of all
    /// that there are).
    fn look(&self, touched: Option<&BTreeSet<ServiceKey>>) -> Result<Option<Hold>, Bar> {
        let path = self.lock.as_deref().unwrap_or(Path::new(LOCK));
        let director = match lock::look(path) {
            Ok(Found::Director(director)) => *director,
            Ok(Found::Elsewhere) => return Ok(None),
            Ok(Found::Nobody(hold)) => return Ok(Some(hold)),
            Ok(Found::NoFile) if self.lock.is_none() => return Ok(None),
            Ok(Found::NoFile) => {
                return Err(Bar::Unclear {
                    why: format!("the lock {} does not exist", path.display()),
                    remedy: "name the one beside the director's socket",
                });
            }
            Err(e) => {
                return Err(Bar::Unclear {
                    why: Chain(&e).to_string(),
                    remedy: "be root",
                });
            }
        };
        let owned: Vec<_> = match touched {
            Some(touched) => touched
                .iter()
                .filter(|k| director.owns(k))
                .copied()
                .collect(),
            None => director.services.iter().copied().collect(),
        };
        if owned.is_empty() && !(touched.is_none() && director.exclusive) {
            return Ok(None);
        }
        Err(Bar::Owner(Owner { director, owned }))
    }

    /// What would be said of these steps, were they to be done.
    pub(super) fn foretell(&self, steps: &[Step]) -> Option<String> {
        let what = match self.look(Some(&touched(steps))) {
            Ok(_) => return None,
            Err(Bar::Owner(owner)) => format!("{owner} owns {}", owner.what()),
            Err(Bar::Unclear { why, .. }) => why,
        };
        Some(format!("{what}: it is not done without --force"))
    }

    /// The start of a change by hand.
    pub(super) const fn begin(&self) -> Hand<'_> {
        Hand {
            guard: self,
            told: false,
        }
    }
}

/// What bars a change.
enum Bar {
    /// A director owns what is to be changed.
    Owner(Owner),
    /// What one owns cannot be told.
    Unclear { why: String, remedy: &'static str },
}

impl Bar {
    /// The refusal; `so_far` says what was changed before.
    fn refusal(&self, so_far: &str) -> String {
        match self {
            Self::Owner(owner) => format!(
                "{owner} owns {}: {so_far}; change its configuration and restart it, or insist with --force, which it undoes within {} where drift = \"repair\"",
                owner.what(),
                owner.resync()
            ),
            Self::Unclear { why, remedy } => format!(
                "{why}: what a running director owns cannot be told, {so_far}; {remedy}, or insist with --force"
            ),
        }
    }
}

/// A change by hand, in one pass or several.
pub(super) struct Hand<'a> {
    guard: &'a Guard,
    /// What is forced was said.
    told: bool,
}

impl Hand<'_> {
    /// Asks whether these steps may be done; `so_far` says what was done before.
    pub(super) fn permit<'i>(
        &mut self,
        ipvs: &'i mut Ipvs,
        steps: &[Step],
        so_far: &str,
    ) -> Result<Permitted<'i>, Failure> {
        let hold = self.ask(Some(&touched(steps)), so_far)?;
        Ok(Permitted { ipvs, _hold: hold })
    }

    /// The lock, where there is one to hold and nobody owns what is to be touched, or it is forced;
    /// a refusal where a director owns it.
    fn ask(
        &mut self,
        touched: Option<&BTreeSet<ServiceKey>>,
        so_far: &str,
    ) -> Result<Option<Hold>, Failure> {
        match self.guard.look(touched) {
            Ok(hold) => Ok(hold),
            Err(bar) if self.guard.force => {
                if let Some(forced) = self.forced(&bar) {
                    note(&forced);
                }
                Ok(None)
            }
            Err(bar) => Err(Failure::Failed(bar.refusal(so_far))),
        }
    }

    /// What is to be said of a forced change, once.
    fn forced(&mut self, bar: &Bar) -> Option<String> {
        if std::mem::replace(&mut self.told, true) {
            return None;
        }
        Some(match bar {
            Bar::Owner(owner) => format!(
                "forced: {owner} undoes it within {} where drift = \"repair\"",
                owner.resync()
            ),
            Bar::Unclear { why, .. } => format!("forced: {why}"),
        })
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
pub(super) struct Permitted<'a> {
    ipvs: &'a mut Ipvs,
    /// No director starts before the change is done.
    _hold: Option<Hold>,
}

impl Permitted<'_> {
    pub(super) async fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), ipvs::Error>> {
        self.ipvs.apply(steps).await
    }
}

pub(super) async fn flush(ipvs: &mut Ipvs, guard: &Guard) -> Result<(), Failure> {
    let _hold = guard.begin().ask(None, "nothing was changed")?;
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
                hidden: None,
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

    fn guard(lock: &Path, force: bool) -> Guard {
        Guard {
            force,
            lock: Some(lock.to_owned()),
        }
    }

    #[test]
    fn a_lock_that_is_named_must_be_there_and_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("director.lock");
        let refused = guard(&path, false).begin().ask(None, "made before: much");
        let Err(Failure::Failed(text)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(
            text,
            format!(
                "the lock {} does not exist: what a running director owns cannot be told, made \
                 before: much; name the one beside the director's socket, or insist with --force",
                path.display()
            )
        );
        assert_eq!(
            guard(&path, false).foretell(&[]).unwrap(),
            format!(
                "the lock {} does not exist: it is not done without --force",
                path.display()
            )
        );
        assert!(guard(&path, true).begin().ask(None, "").unwrap().is_none());

        std::fs::write(&path, "").unwrap();
        let hold = guard(&path, false).begin().ask(None, "").unwrap();
        let exclusive = || {
            let file = std::fs::File::open(&path).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
        };
        assert!(!exclusive());
        drop(hold);
        assert!(exclusive());
    }

    #[test]
    fn what_is_forced_is_said_once_and_a_refusal_says_what_was_done() {
        let guard = guard(Path::new("/none"), true);
        let mut hand = guard.begin();
        let bar = Bar::Owner(owner(1, false));
        assert_eq!(
            hand.forced(&bar).unwrap(),
            "forced: director lb1 (pid 7) undoes it within 1.5s where drift = \"repair\""
        );
        assert_eq!(hand.forced(&bar), None);
        let text = bar.refusal("made before: 1 added, 0 changed, 0 removed");
        assert!(!text.contains("nothing was changed"), "{text}");
        assert!(text.contains(": made before: 1 added, "), "{text}");
    }
}
