//! Identities are looked at again, and renewed.

use std::{sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use tokio::{select, sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Identity;
use crate::{
    clock,
    config::TlsFiles,
    prepare::{self, Unprepared, resolve},
    telemetry::Chain,
};

/// How often the files are looked at. Their content counts, whichever way it came there: by renaming, by a link that
/// was turned, by writing.
pub const EVERY: Duration = Duration::from_secs(10);

/// What became of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is another one, until this time in seconds since 1970.
    Renewed(i64),
    /// The first of its revocation lists is due to be replaced then.
    Lists(i64),
    /// What is there now cannot be used; the former one stays.
    Refused,
}

/// What the files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen([u8; 32]);

impl Seen {
    fn of(files: &TlsFiles) -> Self {
        let mut digest = Sha256::new();
        let all = [&files.certificate, &files.key, &files.ca].into_iter();
        for path in all.chain(&files.crl) {
            match prepare::read(&resolve(path)) {
                Ok(text) => digest.update(Sha256::digest(text)),
                // Something else than any content.
                Err(e) => digest.update(Chain(&e).to_string()),
            }
        }
        Self(digest.finalize().into())
    }
}

/// An identity, and what it was made of.
fn read<T: Identity>(files: &TlsFiles) -> (Seen, Result<T, Unprepared>) {
    // What is written between the two is seen as a change at the next look.
    let seen = Seen::of(files);
    (seen, T::read(files))
}

/// Keeps `now` at what the files hold, looking at them `every` so often, until `stop`.
pub async fn keep<T: Identity>(
    files: TlsFiles,
    now: watch::Sender<Arc<T>>,
    every: Duration,
    tell: impl Fn(Told),
    stop: CancellationToken,
) {
    let files = Arc::new(files);
    let mut last = None;
    // Until it was said that they are old.
    let mut lists_end = None;
    loop {
        let (looked_at, known) = (Arc::clone(&files), last);
        // A path may lead into a file system that hangs: not on this thread, and not twice at a time.
        let look = spawn_blocking(move || {
            let seen = Seen::of(&looked_at);
            (known != Some(seen)).then(|| read::<T>(&looked_at))
        });
        let looked = select! {
            () = stop.cancelled() => return,
            // Cancel-safe: only the end of the program comes between.
            looked = look => looked,
        };
        match looked {
            Ok(None) => {}
            Ok(Some((seen, Ok(identity)))) => {
                if last.is_some() {
                    info!(certificate = %files.certificate.display(), "certificate, key and authorities were read anew: the next connection uses them");
                }
                last = Some(seen);
                tell(Told::Renewed(identity.ends()));
                lists_end = identity.lists_end();
                if let Some(ends) = lists_end {
                    tell(Told::Lists(ends));
                }
                now.send_replace(Arc::new(identity));
            }
            Ok(Some((seen, Err(e)))) => {
                last = Some(seen);
                warn!(error = %Chain(&e), "new certificate, key or authorities cannot be used: the former ones stay in use");
                tell(Told::Refused);
            }
            Err(e) => error!(error = %e, "certificates could not be looked at"),
        }
        let seconds = clock::wall().0 / 1000;
        if lists_end.take_if(|ends| *ends < seconds).is_some() {
            warn!(crl = ?files.crl, "a revocation list is older than its authority meant it to be: it counts on, put the newest one there");
        }
        select! {
            () = stop.cancelled() => return,
            () = sleep(every) => {}
        }
    }
}
