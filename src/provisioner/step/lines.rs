//! Connections left open between the steps of one attempt: a log-in costs more than most of what is done after it.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};

use crate::{model::inventory::Server, provisioner::ssh::Ssh};

/// The next step follows after a word to the journal, or not at all. A link that died in so short a time is what
/// a step has to expect anyway.
const IDLE: Duration = Duration::from_secs(10);

/// Whose connection it is: a step under another fence, or that expects another host key, has to log in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Door {
    peer: SocketAddr,
    pins: Vec<String>,
    fence: u64,
}

impl Door {
    pub(super) fn of(server: &Server, fence: u64) -> Self {
        Self {
            peer: SocketAddr::new(server.ssh_address, server.ssh_port),
            pins: server.pins().to_vec(),
            fence,
        }
    }
}

/// Those that are open and not in use.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    lines: BTreeMap<Door, (u64, Ssh)>,
    /// How many were left here so far.
    left: u64,
    /// Close them.
    closing: JoinSet<()>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().lines.keys()).finish()
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that the step before has left, where it still stands.
    pub(super) fn take(&self, door: &Door) -> Option<Ssh> {
        let (_, ssh) = self.lock().lines.remove(door)?;
        ssh.is_open().then_some(ssh)
    }

    /// Leaves one for the next step, and closes it where none comes.
    pub(super) fn leave(&self, door: Door, ssh: Ssh) {
        let mut open = self.lock();
        open.left += 1;
        let number = open.left;
        open.lines.insert(door.clone(), (number, ssh));
        while open.closing.try_join_next().is_some() {}
        let lines = self.clone();
        open.closing.spawn(async move {
            sleep(IDLE).await;
            let unused = {
                let mut open = lines.lock();
                let same = open.lines.get(&door).is_some_and(|(n, _)| *n == number);
                same.then(|| open.lines.remove(&door)).flatten()
            };
            if let Some((_, ssh)) = unused {
                ssh.close().await;
            }
        });
    }
}
