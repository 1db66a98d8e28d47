//! Files that tell of servers are watched (inotify): what is written there counts at once.

use std::{
    collections::{BTreeSet, HashMap},
    future::{pending, poll_fn},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_core::Stream as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::{
    select,
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, interval_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Nudge, Targets};
use crate::{model::CheckKind, telemetry::Chain};

/// A folder that was not there is looked for again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// What a folder is watched for.
const CHANGES: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE);

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
    let mut again = interval_at(Instant::now() + AGAIN, AGAIN);
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
            // Cancel-safe: a tick is taken where it is returned.
            _ = again.tick() => watched.look(),
            // Cancel-safe: events are taken where they are returned.
            written = watched.written() => match written {
                Ok(file) => Nudge::File(file).send(&nudges),
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
        CheckKind::FromFile(file) => Some(file.path_for(target.at)),
        _ => None,
    };
    targets.iter().filter_map(file).collect()
}

struct Watched {
    events: EventStream<[u8; 4096]>,
    files: BTreeSet<PathBuf>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// Folders are being watched anew: a path leads into file systems that may hang.
    looking: Option<JoinHandle<Vec<(WatchDescriptor, PathBuf)>>>,
    /// There was reason for another look meanwhile.
    behind: bool,
}

/// Waits for the end of a look; for ever where there is none.
async fn looked(
    looking: &mut Option<JoinHandle<Vec<(WatchDescriptor, PathBuf)>>>,
) -> Vec<(WatchDescriptor, PathBuf)> {
    let Some(look) = looking else {
        return pending().await;
    };
    let found = look.await;
    *looking = None;
    found.unwrap_or_default()
}

impl Watched {
    fn new() -> io::Result<Self> {
        Ok(Self {
            events: Inotify::init()?.into_event_stream([0; 4096])?,
            files: BTreeSet::new(),
            folders: HashMap::new(),
            looking: None,
            behind: false,
        })
    }

    fn adopt(&mut self, files: BTreeSet<PathBuf>) {
        self.files = files;
        self.forget();
        self.look();
    }

    /// Ends the watch of folders that nobody asks for.
    fn forget(&mut self) {
        let wanted: BTreeSet<_> = self.files.iter().filter_map(|f| f.parent()).collect();
        let mut watches = self.events.watches();
        self.folders.retain(|watch, folder| {
            let keep = wanted.contains(folder.as_path());
            if !keep && let Err(error) = watches.remove(watch.clone()) {
                debug!(folder = %folder.display(), %error, "folder is gone, and its watch with it");
            }
            keep
        });
    }

    /// Folders that are not watched, and ought to be.
    fn missing(&self) -> BTreeSet<PathBuf> {
        let wanted: BTreeSet<_> = self.files.iter().filter_map(|f| f.parent()).collect();
        let there: BTreeSet<_> = self.folders.values().map(PathBuf::as_path).collect();
        wanted.difference(&there).map(|f| f.to_path_buf()).collect()
    }

    /// Begins to watch what is not watched. One look at a time.
    fn look(&mut self) {
        let missing = self.missing();
        self.behind = self.looking.is_some();
        if self.behind || missing.is_empty() {
            return;
        }
        let mut watches = self.events.watches();
        self.looking = Some(spawn_blocking(move || {
            let watch = |folder: PathBuf| match watches.add(&folder, CHANGES) {
                Ok(watch) => Some((watch, folder)),
                Err(error) => {
                    debug!(folder = %folder.display(), %error, "folder is not watched yet");
                    None
                }
            };
            missing.into_iter().filter_map(watch).collect()
        }));
    }

    /// The next of the files that somebody wrote.
    async fn written(&mut self) -> io::Result<PathBuf> {
        loop {
            let event = select! {
                // Cancel-safe: the task stays where it is until it has ended.
                found = looked(&mut self.looking) => {
                    self.folders.extend(found);
                    // Others may be wanted by now.
                    self.forget();
                    if self.behind {
                        self.look();
                    }
                    continue;
                }
                // Cancel-safe: an event is taken where it is returned.
                event = poll_fn(|cx| Pin::new(&mut self.events).poll_next(cx)) => event,
            };
            let event = event.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
            if event.mask.contains(EventMask::IGNORED) {
                // The folder is gone.
                self.folders.remove(&event.wd);
                continue;
            }
            let folder = self.folders.get(&event.wd);
            if let Some((folder, name)) = folder.zip(event.name) {
                let file = folder.join(name);
                if self.files.contains(&file) {
                    return Ok(file);
                }
            }
        }
    }
}
