//! What checks name on this host is read on a thread of its own: a file system that hangs holds up nobody
//! but the checks that name a file there.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task, time::Instant};
use tracing::warn;

use super::Unprepared;
use crate::telemetry::Chain;

/// What a check names on this host is read again after this: certificates and passwords change on disk.
pub(super) const REREAD: Duration = Duration::from_secs(60);

/// The same where it could not be read, or what was read is in doubt.
const AGAIN: Duration = Duration::from_millis(500);

/// One check ready to be made, for all targets that have its options.
#[derive(Debug)]
pub(super) struct Prepared<C>(watch::Sender<Read<C>>);

#[derive(Debug)]
struct Read<C> {
    /// What was read; none as long as something of this host is missing.
    check: Option<Arc<C>>,
    /// Why there is none.
    why: Arc<str>,
    /// When the last reading began.
    begun: Option<Instant>,
    /// A reading goes on.
    reading: bool,
    /// What was read may be old.
    doubted: bool,
}

impl<C> Read<C> {
    /// What a probe goes on with at once, if it need not wait for a reading.
    fn ready(&self) -> Option<Result<Arc<C>, Arc<str>>> {
        match &self.check {
            _ if self.reading && (self.doubted || self.check.is_none()) => None,
            Some(check) => Some(Ok(Arc::clone(check))),
            None => Some(Err(Arc::clone(&self.why))),
        }
    }
}

impl<C: Send + Sync + 'static> Prepared<C> {
    /// Nothing was read yet.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Read {
            check: None,
            why: "what it names was not read yet".into(),
            begun: None,
            reading: false,
            doubted: false,
        }))
    }

    /// Whether it is time to read: before the first probe, each minute, and soon after what was read failed.
    /// A reading that hangs is not joined by another.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let read = self.0.borrow();
        let patience = match read.doubted || read.check.is_none() {
            true => AGAIN,
            false => REREAD,
        };
        !read.reading && read.begun.is_none_or(|begun| now >= begun + patience)
    }

    /// What was read may be old.
    pub(super) fn doubt(&self) {
        self.0.send_modify(|read| read.doubted = true);
    }

    /// Reads. A check that cannot be read again stays as it was.
    pub(super) fn read(
        self: &Arc<Self>,
        now: Instant,
        prepare: impl FnOnce() -> Result<C, Unprepared> + Send + 'static,
    ) {
        self.0.send_modify(|read| {
            read.begun = Some(now);
            read.reading = true;
        });
        let prepared = Arc::clone(self);
        drop(task::spawn_blocking(move || prepared.take(prepare())));
    }

    fn take(&self, found: Result<C, Unprepared>) {
        self.0.send_modify(|read| {
            read.reading = false;
            read.doubted = false;
            match found {
                Ok(check) => read.check = Some(Arc::new(check)),
                Err(error) => {
                    read.why = Chain(&error).to_string().into();
                    if read.check.is_some() {
                        warn!(error = %read.why, "what a check names cannot be read again: it goes on with what was there");
                    }
                }
            }
        });
    }

    /// The check, or why there is none; `None` where a reading goes on that has to be waited for.
    pub(super) fn ready(&self) -> Option<Result<Arc<C>, Arc<str>>> {
        self.0.borrow().ready()
    }

    /// The same, when the reading has ended. One that takes longer than `limit` is given up on: then what was
    /// there before is good enough.
    pub(super) async fn check(&self, limit: Duration) -> Result<Arc<C>, Arc<str>> {
        let mut read = self.0.subscribe();
        let waited =
            tokio::time::timeout(limit, read.wait_for(|read| read.ready().is_some())).await;
        // The sender is here as long as this is.
        drop(waited);
        let read = self.0.borrow();
        match (&read.check, read.reading) {
            (Some(check), _) => Ok(Arc::clone(check)),
            (None, false) => Err(Arc::clone(&read.why)),
            (None, true) => {
                Err("what it names is still being read: does its file system answer?".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// For a reading that does not end by itself.
    const SHORT: Duration = Duration::from_millis(20);

    /// For one that does.
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_reading_that_hangs_holds_up_no_check_that_was_read_before() {
        let prepared = Arc::new(Prepared::new());
        let now = Instant::now();
        assert!(prepared.is_due(now));
        prepared.read(now, || Ok(1));
        assert_eq!(prepared.check(LONG).await.as_deref(), Ok(&1));
        assert!(!prepared.is_due(now + REREAD - SECOND));
        let late = now + REREAD;
        assert!(prepared.is_due(late));

        let (go, wait) = mpsc::channel::<()>();
        prepared.read(late, move || {
            wait.recv().expect("the test lets it go");
            Ok(2)
        });
        assert!(!prepared.is_due(late + 10 * REREAD), "one at a time");
        assert_eq!(prepared.ready().unwrap().as_deref(), Ok(&1));
        // Nobody knows whether the old one is good: it is waited for, and not for ever.
        prepared.doubt();
        assert!(prepared.ready().is_none());
        assert_eq!(prepared.check(SHORT).await.as_deref(), Ok(&1));
        go.send(()).unwrap();
        assert_eq!(prepared.check(LONG).await.as_deref(), Ok(&2));
    }

    #[tokio::test]
    async fn what_was_never_read_in_time_is_said_so() {
        let prepared = Arc::new(Prepared::<()>::new());
        let (go, wait) = mpsc::channel::<()>();
        prepared.read(Instant::now(), move || {
            wait.recv().expect("the test lets it go");
            Err(Unprepared::NoAuthorities)
        });
        let why = prepared.check(SHORT).await.unwrap_err();
        assert!(why.contains("file system"), "{why}");
        go.send(()).unwrap();
        let why = prepared.check(LONG).await.unwrap_err();
        assert!(why.contains("ca-certificates"), "{why}");
    }

    #[tokio::test]
    async fn in_doubt_it_is_read_soon_and_not_for_everybody_who_doubts() {
        let prepared = Arc::new(Prepared::new());
        let now = Instant::now();
        prepared.read(now, || Ok(()));
        prepared.check(LONG).await.unwrap();
        for _ in 0..500 {
            prepared.doubt();
        }
        assert!(!prepared.is_due(now));
        assert!(prepared.is_due(now + AGAIN));
    }
}
