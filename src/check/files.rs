//! Files that tell of servers are watched (inotify): what is written there counts at once.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::{
    io::unix::AsyncFd,
    select,
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Nudge, Targets};
use crate::{model::CheckKind, telemetry::Chain};

/// A folder that was not there is looked for again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// Tells of each file that a check reads and that somebody wrote, until `stop`. Folders are watched:
/// a file that is replaced is another file.
pub async fn watch_files(
    mut targets: watch::Receiver<Arc<Targets>>,
    nudges: mpsc::Sender<Nudge>,
    stop: CancellationToken,
) {
    let mut watched = match Watched::new() {
        Ok(watched) => watched,
        Err(error) => {
            warn!(error = %Chain(&error), "files of checks cannot be watched: they are read at their interval");
            return stop.cancelled().await;
        }
    };
    targets.mark_changed();
    loop {
        select! {
            () = stop.cancelled() => return,
            // Cancel-safe: `changed` marks the value seen only when it returns.
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let files = files(&targets.borrow_and_update());
                watched.adopt(files);
            }
            () = sleep(AGAIN), if watched.lacks() => watched.look(),
            // Cancel-safe: events are taken where they are returned.
            written = watched.written() => match written {
                Ok(files) => {
                    for file in files {
                        if nudges.try_send(Nudge::File(file)).is_err() {
                            debug!("too many hints at a time: this file is read at its interval");
                        }
                    }
                }
                Err(error) => {
                    warn!(error = %Chain(&error), "files of checks can no longer be watched: they are read at their interval");
                    return stop.cancelled().await;
                }
            },
        }
    }
}

fn files(targets: &Targets) -> BTreeSet<PathBuf> {
    let file = |target: &super::Target| match &target.spec.kind {
        CheckKind::File(file) => Some(file.path_for(target.at)),
        _ => None,
    };
    targets.iter().filter_map(file).collect()
}

/// Inotify, for the reactor.
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Watched {
    inotify: AsyncFd<Fd>,
    files: BTreeSet<PathBuf>,
    folders: HashMap<WatchDescriptor, PathBuf>,
}

impl Watched {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self {
            inotify: AsyncFd::new(Fd(inotify))?,
            files: BTreeSet::new(),
            folders: HashMap::new(),
        })
    }

    fn adopt(&mut self, files: BTreeSet<PathBuf>) {
        self.files = files;
        let wanted: BTreeSet<_> = self.files.iter().filter_map(|f| f.parent()).collect();
        let inotify = &self.inotify.get_ref().0;
        self.folders.retain(|watch, folder| {
            let keep = wanted.contains(folder.as_path());
            if !keep {
                // The folder may be gone, and its watch with it.
                drop(inotify.rm_watch(*watch));
            }
            keep
        });
        self.look();
    }

    /// Folders that are not watched, and ought to be.
    fn missing(&self) -> BTreeSet<PathBuf> {
        let wanted: BTreeSet<_> = self.files.iter().filter_map(|f| f.parent()).collect();
        let there: BTreeSet<_> = self.folders.values().map(PathBuf::as_path).collect();
        wanted.difference(&there).map(|f| f.to_path_buf()).collect()
    }

    fn lacks(&self) -> bool {
        !self.missing().is_empty()
    }

    fn look(&mut self) {
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM;
        for folder in self.missing() {
            match self.inotify.get_ref().0.add_watch(&folder, events) {
                Ok(watch) => drop(self.folders.insert(watch, folder)),
                Err(error) => {
                    debug!(folder = %folder.display(), %error, "folder is not watched yet")
                }
            }
        }
    }

    async fn written(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let read = ready.try_io(|fd| fd.get_ref().0.read_events().map_err(io::Error::from));
            let Ok(events) = read else { continue };
            let mut written = BTreeSet::new();
            for event in events? {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    // The folder is gone.
                    self.folders.remove(&event.wd);
                    continue;
                }
                let folder = self.folders.get(&event.wd);
                if let Some((folder, name)) = folder.zip(event.name) {
                    let file = folder.join(name);
                    if self.files.contains(&file) {
                        written.insert(file);
                    }
                }
            }
            if !written.is_empty() {
                return Ok(written);
            }
        }
    }
}
