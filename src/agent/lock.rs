//! The director's lock: a file beside its operator socket, locked (flock(2)) as long as it runs, that
//! says what it owns. Two directors with one socket would write to one table; and who writes by hand
//! asks here first.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::{Uid, User},
};
use tracing::info;

use crate::{config, model::Ownership};

/// Who looks holds the lock for an instant, and who took it writes into it within one.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a director waits for a change by hand to be done: less than systemd waits for it.
const HANDS: u32 = 3000;

/// What can go wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another director runs.
    #[error(
        "{} is locked{}: two directors would write to one IPVS table; stop that one, or, if this one runs in another network namespace, give it a [director] socket of its own",
        path.display(),
        by.as_ref().map(|o| format!(" by director {} (pid {})", o.director.as_str(), o.pid)).unwrap_or_default()
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Who, where the file says it.
        by: Option<Box<Ownership>>,
    },
    /// The table is changed by hand.
    #[error(
        "{} is held by a change by hand (understudy ipvs) that does not come to an end: end that one",
        path.display()
    )]
    ByHand {
        /// The file.
        path: PathBuf,
    },
    /// The file is another user's.
    #[error(
        "the lock {} belongs to user {owner} and may not be written: it was left by a director run as another user: remove it",
        path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Its name, or its number.
        owner: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A director runs, and does not say what it owns.
    #[error("{} is locked, and does not say by whom", path.display())]
    Unclear {
        /// The file.
        path: PathBuf,
    },
    /// The file.
    #[error("the lock {} could not be {action}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn file(path: &Path, action: &'static str) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        path: path.clone(),
        action,
        source,
    }
}

/// A running director's lock, free again when this is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    held: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Writes into it what the director owns by now.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn renew(&mut self, config: &config::Director) -> Result<(), Error> {
        let owned = owned(config, &self.path)?;
        write(&mut self.held, &owned).map_err(file(&self.path, "written"))
    }
}

fn owned(config: &config::Director, path: &Path) -> Result<Ownership, Error> {
    let namespace = namespace().map_err(file(path, "given this network namespace"))?;
    Ok(Ownership {
        director: config.name.clone(),
        pid: std::process::id(),
        namespace,
        exclusive: config.exclusive,
        resync_ms: u64::try_from(config.resync.as_millis()).unwrap_or(u64::MAX),
        services: config.services.keys().copied().collect(),
        hidden: config.has_hidden_services().then_some(config.probe_marks),
    })
}

/// Until it is whole again, nobody can read it as anything: who looks meanwhile looks again.
fn write(file: &mut File, owned: &Ownership) -> io::Result<()> {
    let text = serde_json::to_vec(owned).map_err(io::Error::other)?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&text)
}

/// Where the director with this operator socket has its lock.
#[must_use]
pub fn beside(socket: &Path) -> PathBuf {
    match socket.extension() {
        Some(e) if e == "lock" => socket.with_extension("lock.lock"),
        Some(_) | None => socket.with_extension("lock"),
    }
}

/// Takes the lock of the director that `config` describes, and writes into it what that owns.
///
/// # Errors
///
/// [`Error::Held`] where another director runs, [`Error::ByHand`] where a change by hand takes more
/// than a minute, [`Error::NotOurs`], [`Error::File`].
pub async fn take(config: &config::Director) -> Result<Lock, Error> {
    let path = beside(&config.socket);
    let owned = owned(config, &path)?;
    wait(&path, &owned).await
}

async fn wait(path: &Path, owned: &Ownership) -> Result<Lock, Error> {
    let (mut tries, mut hands) = (PATIENCE, HANDS);
    loop {
        match try_take(path, owned) {
            Err(Error::Held { .. }) if tries > 0 => tries -= 1,
            Err(Error::ByHand { .. }) if hands > 0 => {
                // Most are over before anybody can read of them.
                if hands == HANDS - PATIENCE {
                    info!(lock = %path.display(), "the table is changed by hand: waiting for its end");
                }
                hands -= 1;
            }
            other => return other,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn try_take(path: &Path, owned: &Ownership) -> Result<Lock, Error> {
    let failed = |action| file(path, action);
    let opened = match OpenOptions::new().read(true).write(true).open(path) {
        // With O_CREAT not even root may open another user's file in a folder that is sticky and
        // writable by a group (sysctl fs.protected_regular).
        Err(e) if e.kind() == io::ErrorKind::NotFound => OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path),
        other => other,
    };
    let mut held = match Flock::lock(
        opened.map_err(|e| unopened(path, e))?,
        FlockArg::LockExclusiveNonblock,
    ) {
        Ok(held) => held,
        Err((other, Errno::EWOULDBLOCK)) => {
            let path = path.to_owned();
            // A director shares it with nobody. Of who shares it the text says nothing: it is that
            // of a director which is gone.
            return Err(match Flock::lock(other, FlockArg::LockSharedNonblock) {
                Ok(_shared) => Error::ByHand { path },
                Err((mut other, _)) => Error::Held {
                    path,
                    by: said(&mut other).map(Box::new),
                },
            });
        }
        Err((_, errno)) => return Err(failed("locked")(errno.into())),
    };
    write(&mut held, owned).map_err(failed("written"))?;
    let path = path.to_owned();
    Ok(Lock { held, path })
}

fn unopened(path: &Path, e: io::Error) -> Error {
    let there = fs::metadata(path);
    let Some(there) = there
        .ok()
        .filter(|_| e.kind() == io::ErrorKind::PermissionDenied)
    else {
        return file(path, "opened")(e);
    };
    let user = User::from_uid(Uid::from_raw(there.uid())).ok().flatten();
    Error::NotOurs {
        path: path.to_owned(),
        owner: user.map_or_else(|| there.uid().to_string(), |u| u.name),
        source: e,
    }
}

fn said(file: &mut File) -> Option<Ownership> {
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Who may write to the table of the caller's network namespace.
#[derive(Debug)]
pub enum Found {
    /// A director runs there and owns this.
    Director(Box<Ownership>),
    /// A director runs in another network namespace.
    Elsewhere,
    /// No director runs; none starts as long as this is held.
    Nobody(Hold),
    /// There is no such file: nothing was ever locked.
    NoFile,
}

/// A lock that was free, shared with others who write by hand. A director that starts waits.
#[derive(Debug)]
pub struct Hold {
    _shared: Flock<File>,
}

/// Looks who holds this lock, and holds it where no director does.
///
/// # Errors
///
/// [`Error::Unclear`], [`Error::File`].
pub fn look(path: &Path) -> Result<Found, Error> {
    let failed = |action| file(path, action);
    for _ in 0..PATIENCE {
        let opened = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::NoFile),
            other => other.map_err(failed("read"))?,
        };
        match Flock::lock(opened, FlockArg::LockSharedNonblock) {
            // Whoever wrote it is gone.
            Ok(free) => return Ok(Found::Nobody(Hold { _shared: free })),
            Err((mut held, Errno::EWOULDBLOCK)) => {
                if let Some(owned) = said(&mut held) {
                    let here = namespace().map_err(failed("compared with this network namespace"));
                    return Ok(if owned.namespace == here? {
                        Found::Director(Box::new(owned))
                    } else {
                        Found::Elsewhere
                    });
                }
            }
            Err((_, errno)) => return Err(failed("asked")(errno.into())),
        }
        thread::sleep(PAUSE);
    }
    Err(Error::Unclear {
        path: path.to_owned(),
    })
}

/// What the director of a lock owns, or owned when it ran last, in this network namespace.
#[must_use]
pub fn last_owner(path: &Path) -> Option<Ownership> {
    let text = fs::read(path).ok()?;
    let owned: Ownership = serde_json::from_slice(&text).ok()?;
    (namespace().ok()? == owned.namespace).then_some(owned)
}

fn namespace() -> io::Result<(u64, u64)> {
    let ns = fs::metadata("/proc/self/ns/net")?;
    Ok((ns.dev(), ns.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(path: &Path) -> Option<Ownership> {
        match look(path).unwrap() {
            Found::Director(owned) => Some(*owned),
            Found::Elsewhere | Found::Nobody(_) | Found::NoFile => None,
        }
    }

    fn owned() -> Ownership {
        Ownership {
            director: "lb1".parse().unwrap(),
            pid: 7,
            namespace: namespace().unwrap(),
            exclusive: false,
            hidden: None,
            resync_ms: 5000,
            services: ["tcp/192.0.2.1:80".parse().unwrap()].into(),
        }
    }

    #[test]
    fn a_director_that_runs_is_found_and_one_that_ended_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(&dir.path().join("director.sock"));
        assert_eq!(path, dir.path().join("director.lock"));
        assert!(matches!(look(&path).unwrap(), Found::NoFile));
        let lock = try_take(&path, &owned()).unwrap();
        assert_eq!(owner(&path), Some(owned()));
        drop(lock);
        assert!(path.exists());
        assert!(matches!(look(&path).unwrap(), Found::Nobody(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_director_waits_for_a_change_by_hand_and_blames_nobody_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("director.lock");
        drop(try_take(&path, &owned()).unwrap());
        let hand = look(&path).unwrap();
        assert!(matches!(hand, Found::Nobody(_)), "{hand:?}");
        assert!(matches!(look(&path).unwrap(), Found::Nobody(_)), "shared");
        let mine = owned();
        let mut starts = std::pin::pin!(wait(&path, &mine));
        let early = tokio::time::timeout(Duration::from_secs(30), &mut starts).await;
        assert!(early.is_err(), "{early:?}");
        drop(hand);
        let lock = starts.await.unwrap();
        drop(lock);

        let _hand = look(&path).unwrap();
        let error = wait(&path, &mine).await.unwrap_err();
        assert!(matches!(error, Error::ByHand { .. }), "{error:?}");
        let text = error.to_string();
        assert!(!text.contains("lb1"), "{text}");
    }

    #[test]
    fn a_lock_of_another_user_is_named_with_its_owner_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("director.lock");
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        let error = unopened(&path, refused());
        assert!(matches!(error, Error::File { .. }), "no file: {error:?}");
        fs::write(&path, "").unwrap();
        let me = User::from_uid(Uid::effective()).unwrap();
        let me = me.map_or(Uid::effective().to_string(), |u| u.name);
        let text = unopened(&path, refused()).to_string();
        assert!(text.contains(&format!("belongs to user {me} ")), "{text}");
        assert!(text.ends_with("run as another user: remove it"), "{text}");
        let other = unopened(&path, io::Error::other("full"));
        assert!(matches!(other, Error::File { .. }), "{other:?}");
    }

    #[test]
    fn a_second_director_is_refused_and_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("director.lock");
        let longer = Ownership {
            services: (1..99)
                .map(|n| format!("fwmark/{n}").parse().unwrap())
                .collect(),
            ..owned()
        };
        drop(try_take(&path, &longer).unwrap());
        let _lock = try_take(&path, &owned()).unwrap();
        let error = try_take(&path, &longer).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("locked by director lb1 (pid 7)"), "{text}");
        // The longer text of the run before is gone.
        assert_eq!(owner(&path), Some(owned()));
    }

    #[test]
    fn a_director_of_another_network_namespace_owns_nothing_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("director.lock");
        let (dev, ino) = namespace().unwrap();
        let elsewhere = Ownership {
            namespace: (dev, ino + 1),
            ..owned()
        };
        let _lock = try_take(&path, &elsewhere).unwrap();
        assert!(matches!(look(&path).unwrap(), Found::Elsewhere));
    }

    #[test]
    fn a_lock_that_says_nothing_is_no_free_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("director.lock");
        fs::write(&path, "").unwrap();
        let file = File::open(&path).unwrap();
        let _lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        let error = look(&path).unwrap_err();
        assert!(matches!(error, Error::Unclear { .. }), "{error:?}");
    }
}
