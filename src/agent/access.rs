//! Which groups the operator socket lets in, and in which groups who asks is.
//!
//! The kernel says of a peer its user and first group (SO_PEERCRED of socket(7)). Its other groups are looked up by
//! its user, as a login would have them (getgrouplist(3)): SO_PEERGROUPS, which would say them, cannot be asked without
//! unsafe code, and `/proc` is hidden from the director (`ProtectProc=invisible`). So a member who was added is let in
//! without a new login, one who was removed is not, and groups that a unit alone gives its process
//! (`SupplementaryGroups=`) do not count: `Group=` does.
//!
//! A look-up may wait for a directory service: it is made on a thread of its own, and few at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::{
    sync::{Semaphore, watch},
    task,
    time::{self, Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::operator::{self, Admission, Found},
    config,
    model::{Access, GroupName, Operators},
};

/// A look-up takes no longer, or nobody waits for it.
const LIMIT: Duration = Duration::from_secs(3);

/// So many at a time: one that hangs keeps a thread.
static LOOKUPS: Semaphore = Semaphore::const_new(4);

/// What was found of a user counts so long: `status --watch` asks every two seconds.
const FRESH: Duration = Duration::from_secs(10);

/// Users of whom something is known at a time.
const KNOWN: usize = 64;

/// Groups that are not there are looked for again after this.
const AGAIN: Duration = Duration::from_secs(30);

/// Looks up on a thread of its own. `Err` says why there is no answer.
async fn look_up<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, &'static str> {
    let late = "this host's directory of users and groups does not answer";
    let found = timeout(LIMIT, async {
        let permit = LOOKUPS.acquire().await.ok()?;
        let work = task::spawn_blocking(move || {
            let found = work();
            drop(permit);
            found
        });
        work.await.ok()
    });
    found.await.ok().flatten().ok_or(late)
}

/// Keeps the groups of the configuration as numbers, and the socket's permissions in line, until `stop`.
pub(super) async fn run(
    socket: PathBuf,
    mut config: watch::Receiver<Arc<config::Director>>,
    admission: watch::Sender<Admission>,
    stop: CancellationToken,
) {
    loop {
        let now = config.borrow_and_update().operators.clone();
        let found = match &now {
            None => Admission::default(),
            Some(named) => {
                let before = admission.borrow().access.clone();
                resolve(named.clone(), before).await
            }
        };
        // Before anybody is let in by it.
        let opened = open_to(&socket, now.is_some());
        let complete = found.warnings.is_empty() && opened.is_ok();
        let mut found = Admission {
            settled: true,
            ..found
        };
        if let Err(e) = opened {
            let path = socket.display();
            let why = format!(
                "the permissions of {path} cannot be changed, so that operators may not get in: {e}"
            );
            found.warnings.push(why);
        }
        let before = admission.send_replace(found.clone());
        for warning in &found.warnings {
            if !before.warnings.contains(warning) {
                warn!("{warning}");
            }
        }
        if complete && !before.warnings.is_empty() {
            info!("all groups of [operators] were found");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = config.changed() => if changed.is_err() {
                return stop.cancelled().await;
            },
            () = time::sleep(AGAIN), if !complete => {}
        }
    }
}

/// The groups as numbers. A name that is not known lets nobody in, and is a warning: a director does not stay away
/// because a directory of users does.
async fn resolve(named: Operators, before: Access) -> Admission {
    let found = look_up(move || (number(&named.read), number(&named.change))).await;
    match found {
        Ok(((read, mut warnings), (change, more))) => {
            warnings.extend(more);
            warnings.sort();
            warnings.dedup();
            let access = Access::ByGroup { read, change };
            Admission {
                access,
                warnings,
                settled: false,
            }
        }
        Err(why) => Admission {
            // Never wider than before, and never open to all.
            access: match before {
                Access::BySocket => Access::ByGroup {
                    read: BTreeSet::new(),
                    change: BTreeSet::new(),
                },
                Access::ByGroup { .. } => before,
            },
            warnings: vec![format!(
                "the groups of [operators] could not be looked up: {why}; until they are, root and the director's user get in, and who got in before"
            )],
            settled: false,
        },
    }
}

fn number(names: &BTreeSet<GroupName>) -> (BTreeSet<u32>, Vec<String>) {
    let mut numbers = BTreeSet::new();
    let mut warnings = Vec::new();
    for name in names {
        let found = match name {
            GroupName::Id(gid) => Ok(Some(*gid)),
            GroupName::Name(name) => {
                let group = Group::from_name(name);
                group.map(|group| group.map(|g| g.gid.as_raw()))
            }
        };
        match found {
            Ok(Some(gid)) => drop(numbers.insert(gid)),
            Ok(None) => warnings.push(format!(
                "[operators] names the group {name}, which this host does not have: nobody gets in by it; groupadd {name}, or correct the name"
            )),
            Err(e) => warnings.push(format!(
                "the group {name} of [operators] could not be looked up: {}",
                e.desc()
            )),
        }
    }
    (numbers, warnings)
}

/// Whom the socket's permissions let connect: its owner and group, or everybody, where it is looked at the groups of
/// whoever connects.
fn open_to(socket: &Path, everybody: bool) -> io::Result<()> {
    let mode = if everybody { 0o666 } else { 0o660 };
    let now = fs::metadata(socket)?.permissions().mode() & 0o777;
    if now == mode {
        return Ok(());
    }
    fs::set_permissions(socket, PermissionsExt::from_mode(mode))
}

/// In which groups users are, as this host's directory has it.
#[derive(Debug, Default)]
pub(super) struct Directory(Mutex<Known>);

/// Groups by user and first group, and when they were looked up.
type Known = BTreeMap<(u32, u32), (Instant, Arc<[u32]>)>;

impl operator::Directory for Directory {
    fn groups(&self, uid: u32, gid: u32) -> Found<'_, Arc<[u32]>> {
        Box::pin(self.find(uid, gid))
    }
}

impl Directory {
    async fn find(&self, uid: u32, gid: u32) -> Result<Arc<[u32]>, String> {
        let fresh = |at: &Instant| at.elapsed() < FRESH;
        {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, groups)) = known.get(&(uid, gid))
                && fresh(at)
            {
                return Ok(Arc::clone(groups));
            }
        }
        let found = look_up(move || groups(uid, gid)).await??;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (at, _)| fresh(at));
        if known.len() < KNOWN {
            known.insert((uid, gid), (Instant::now(), Arc::clone(&found)));
        }
        Ok(found)
    }
}

/// All groups of a user. One without an account has the one that its process came with.
fn groups(uid: u32, gid: u32) -> Result<Arc<[u32]>, String> {
    let failed = |e: nix::Error| format!("uid {uid} could not be looked up: {}", e.desc());
    let Some(user) = User::from_uid(Uid::from_raw(uid)).map_err(failed)? else {
        return Ok([gid].into());
    };
    let name = CString::new(user.name).map_err(|e| e.to_string())?;
    let all = getgrouplist(&name, Gid::from_raw(gid)).map_err(failed)?;
    Ok(all.into_iter().map(Gid::as_raw).collect())
}

#[cfg(test)]
mod tests;
