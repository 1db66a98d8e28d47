//! Which schedulers and persistence engines the kernel has or can load, asked of the kernel itself.
//!
//! A service is tried in a network namespace that is made for it and goes with it: modules are the
//! kernel's, tables are the namespaces' (`ip_vs_add_service` in net/netfilter/ipvs/ip_vs_ctl.c). So
//! the table that carries traffic is neither read nor written, and the reconciler stays its one
//! writer.

use std::{collections::BTreeSet, io, thread};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};

use super::{Error, Ipvs};
use crate::model::{Family, Persistence, Scheduler, ServiceAttrs, ServiceFlags, ServiceKey, Step};

/// A service without a scheduler: the kernel takes this word for none.
const NONE: &str = "none";

/// What the kernel has not, and could not load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Schedulers.
    pub schedulers: BTreeSet<Scheduler>,
    /// Persistence engines.
    pub engines: BTreeSet<String>,
}

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// This process may make no namespace.
    #[error("asking the kernel needs a network namespace of its own, and so root (CAP_SYS_ADMIN)")]
    NotPermitted,
    /// No namespace for another reason.
    #[error("no network namespace could be made to ask the kernel in")]
    Namespace(#[source] io::Error),
    /// No thread or runtime.
    #[error("no thread could be started to ask the kernel")]
    Thread(#[source] io::Error),
    /// The kernel answered otherwise than with yes or no.
    #[error("the kernel did not say which schedulers it has")]
    Kernel(#[source] Error),
}

/// Those of `schedulers` and `engines` that the kernel has not, after it had its chance to load each.
/// Blocks until each is answered: loading a module may take a second or two.
///
/// # Errors
///
/// See [`ProbeError`].
pub fn missing(
    schedulers: &BTreeSet<Scheduler>,
    engines: &BTreeSet<String>,
) -> Result<Missing, ProbeError> {
    // A thread of its own: it does not come back from its namespace, and ends with it.
    thread::scope(|scope| {
        let asking = thread::Builder::new().name("probe".to_owned());
        let asking = asking.spawn_scoped(scope, || ask(schedulers, engines));
        match asking.map_err(ProbeError::Thread)?.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn ask(
    schedulers: &BTreeSet<Scheduler>,
    engines: &BTreeSet<String>,
) -> Result<Missing, ProbeError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EPERM => ProbeError::NotPermitted,
        errno => ProbeError::Namespace(errno.into()),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(ProbeError::Thread)?.block_on(async {
        let mut ipvs = Ipvs::connect().await.map_err(ProbeError::Kernel)?;
        let mut missing = Missing::default();
        for scheduler in schedulers {
            if !has(&mut ipvs, scheduler.clone(), None).await? {
                missing.schedulers.insert(scheduler.clone());
            }
        }
        for engine in engines {
            if !has(&mut ipvs, Scheduler(NONE.to_owned()), Some(engine)).await? {
                missing.engines.insert(engine.clone());
            }
        }
        Ok(missing)
    })
}

async fn has(
    ipvs: &mut Ipvs,
    scheduler: Scheduler,
    engine: Option<&String>,
) -> Result<bool, ProbeError> {
    let key = ServiceKey::Fwmark(Family::V4, 1);
    let attrs = ServiceAttrs {
        scheduler,
        flags: ServiceFlags(0),
        persistence: engine.map(|engine| Persistence {
            timeout_s: 1,
            prefix: 32,
            engine: Some(engine.clone()),
        }),
    };
    for result in ipvs
        .apply(&[Step::NewService(key, attrs), Step::DelService(key)])
        .await
    {
        match result {
            Ok(()) => {}
            Err(Error::SchedulerMissing { .. }) => return Ok(false),
            Err(error) => return Err(ProbeError::Kernel(error)),
        }
    }
    Ok(true)
}
