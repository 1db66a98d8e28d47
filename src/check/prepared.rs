//! What checks name on this host is read on threads of their own: a file system that hangs holds up the checks that
//! read files, and nothing else.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    task::{self, JoinHandle},
    time::{Instant, timeout},
};
use tracing::warn;

use super::Unprepared;
use crate::telemetry::Chain;

/// What a check names on this host is read again after this: certificates and passwords change on disk.
pub(super) const REREAD: Duration = Duration::from_secs(60);

/// The same where it could not be read.
const AGAIN: Duration = Duration::from_millis(500);

/// So many readings at a time, of all checks together: each that hangs keeps a thread of the runtime's five
/// hundred, which others need too.
static READERS: Semaphore = Semaphore::const_new(64);

/// Reads on a thread of its own. `None`: it panicked.
pub(super) async fn read<T: Send + 'static>(
    reading: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    // Nobody closes it.
    let permit = READERS.acquire().await.ok()?;
    begin(permit, reading).await.ok()
}

fn begin<T: Send + 'static>(
    permit: SemaphorePermit<'static>,
    reading: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    task::spawn_blocking(move || {
        let read = reading();
        drop(permit);
        read
    })
}

/// One check ready to be made, for all targets that have its options.
#[derive(Debug)]
pub(super) struct Prepared<C>(watch::Sender<Read<C>>);

#[derive(Debug)]
struct Read<C> {
    /// What was read; none as long as something of this host is missing.
    check: Option<Arc<C>>,
    /// Why there is none.
    why: Arc<str>,
    /// When the last reading began. Of a check that reads nothing there is none.
    begun: Option<Instant>,
    /// A reading goes on that began when there were so many doubts.
    reading: Option<u64>,
    /// How often a failure may have come from what was read.
    doubts: u64,
    /// So many of them were there when the last reading that has ended began.
    settled: u64,
    /// Somebody has waited in vain for the reading that goes on.
    hangs: bool,
}

impl<C> Read<C> {
    /// What a probe goes on with, if it need not wait for a reading: what it named before is good enough unless
    /// `doubts` say otherwise.
    fn ready(&self, doubts: u64) -> Option<Result<Arc<C>, Arc<str>>> {
        match &self.check {
            Some(check) if self.hangs || self.settled >= doubts => Some(Ok(Arc::clone(check))),
            None if self.hangs || (self.reading.is_none() && self.begun.is_some()) => {
                Some(Err(Arc::clone(&self.why)))
            }
            Some(_) | None => None,
        }
    }
}

impl<C: Send + Sync + 'static> Prepared<C> {
    /// Nothing was read yet.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Read {
            check: None,
            why: "what it names is still being read: does its file system answer?".into(),
            begun: None,
            reading: None,
            doubts: 0,
            settled: 0,
            hangs: false,
        }))
    }

    /// Whether it is time to read: before the first probe, each minute, and where what was read is in doubt. A
    /// reading that hangs is not joined by another.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let read = self.0.borrow();
        let patience = match read.check {
            None => AGAIN,
            Some(_) => REREAD,
        };
        let stale = read.begun.is_none_or(|begun| now >= begun + patience);
        read.reading.is_none() && (stale || read.doubts > read.settled)
    }

    /// What was read may be old.
    pub(super) fn doubt(&self) {
        self.0.send_modify(|read| read.doubts += 1);
    }

    /// Reads beside, unless too many readings hang. A check that cannot be read again stays as it was.
    pub(super) fn read(
        self: &Arc<Self>,
        now: Instant,
        prepare: impl FnOnce() -> Result<C, Unprepared> + Send + 'static,
    ) {
        if let Ok(permit) = READERS.try_acquire() {
            self.read_with(permit, now, prepare);
        }
    }

    fn read_with(
        self: &Arc<Self>,
        permit: SemaphorePermit<'static>,
        now: Instant,
        prepare: impl FnOnce() -> Result<C, Unprepared> + Send + 'static,
    ) {
        self.0.send_modify(|read| {
            read.begun = Some(now);
            read.reading = Some(read.doubts);
            read.hangs = false;
        });
        let prepared = Arc::clone(self);
        drop(begin(permit, move || {
            let found = catch_unwind(AssertUnwindSafe(prepare));
            let panicked = |_| {
                Err(Unprepared::Option(
                    "reading it panicked: see the log".into(),
                ))
            };
            prepared.take(found.unwrap_or_else(panicked));
        }));
    }

    /// The same for a check that reads nothing.
    pub(super) fn take(&self, found: Result<C, Unprepared>) {
        self.0.send_modify(|read| {
            read.settled = read.reading.take().unwrap_or(read.settled);
            read.hangs = false;
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

    /// The check, or why there is none; `None` where a reading has to be waited for.
    pub(super) fn ready(&self) -> Option<Result<Arc<C>, Arc<str>>> {
        let read = self.0.borrow();
        read.ready(read.doubts)
    }

    /// The same, when a reading has ended that began after what is in doubt now. One that takes longer than `limit`
    /// is given up on: then what was there before is good enough.
    pub(super) async fn check(
        self: &Arc<Self>,
        limit: Duration,
        prepare: impl Fn() -> Result<C, Unprepared> + Clone + Send + 'static,
    ) -> Result<Arc<C>, Arc<str>> {
        let doubts = self.0.borrow().doubts;
        let mut seen = self.0.subscribe();
        let waiting = async {
            loop {
                // In a scope of its own: the lock must not be held over the wait.
                let (ready, idle) = {
                    let read = seen.borrow_and_update();
                    (read.ready(doubts), read.reading.is_none())
                };
                if let Some(ready) = ready {
                    return ready;
                }
                if idle {
                    // Kept until it is used: a permit that is given back goes to the next who waits.
                    let Ok(permit) = READERS.acquire().await else {
                        return Err("nobody reads what it names".into());
                    };
                    let wanted = {
                        let read = self.0.borrow();
                        read.reading.is_none() && read.ready(doubts).is_none()
                    };
                    if wanted {
                        self.read_with(permit, Instant::now(), prepare.clone());
                    }
                } else if seen.changed().await.is_err() {
                    // The sender is here as long as this is.
                    return Err("nobody reads what it names".into());
                }
            }
        };
        if let Ok(ready) = timeout(limit, waiting).await {
            return ready;
        }
        // Without a word to those who wait: they have a limit of their own.
        self.0.send_if_modified(|read| {
            read.hangs = true;
            false
        });
        let read = self.0.borrow();
        let check = read.check.as_ref().map(Arc::clone);
        check.ok_or_else(|| Arc::clone(&read.why))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// For a reading that does not end by itself.
    const SHORT: Duration = Duration::from_millis(20);

    /// For one that does.
    const LONG: Duration = Duration::from_secs(20);

    fn never() -> Result<u32, Unprepared> {
        panic!("nobody reads")
    }

    /// A reading that ends when it is let go.
    fn held(found: u32) -> (mpsc::Sender<()>, impl FnOnce() -> Result<u32, Unprepared>) {
        let (go, wait) = mpsc::channel::<()>();
        let reading = move || {
            wait.recv().expect("the test lets it go");
            Ok(found)
        };
        (go, reading)
    }

    #[tokio::test]
    async fn a_reading_that_hangs_holds_up_no_check_that_was_read_before() {
        let prepared = Arc::new(Prepared::new());
        let now = Instant::now();
        assert!(prepared.is_due(now));
        prepared.read(now, || Ok(1));
        assert_eq!(prepared.check(LONG, never).await.as_deref(), Ok(&1));
        assert!(!prepared.is_due(now + REREAD - SECOND));
        let late = now + REREAD;
        assert!(prepared.is_due(late));

        let (go, reading) = held(2);
        prepared.read(late, reading);
        assert!(!prepared.is_due(late + 10 * REREAD), "one at a time");
        assert_eq!(prepared.ready().unwrap().as_deref(), Ok(&1));
        // Nobody knows whether the old one is good: it is waited for, once.
        prepared.doubt();
        assert!(prepared.ready().is_none());
        assert_eq!(prepared.check(SHORT, never).await.as_deref(), Ok(&1));
        assert_eq!(prepared.ready().unwrap().as_deref(), Ok(&1), "not again");
        go.send(()).unwrap();
        // The doubt is younger than that reading: when it has ended it takes another one.
        let again = async {
            while prepared.check(LONG, || Ok(3)).await.as_deref() != Ok(&3) {
                task::yield_now().await;
            }
        };
        timeout(LONG, again).await.expect("it is read again");
        assert!(!prepared.is_due(Instant::now()));
    }

    #[tokio::test]
    async fn what_was_never_read_in_time_is_said_so() {
        let prepared = Arc::new(Prepared::new());
        let (go, reading) = held(1);
        prepared.read(Instant::now(), reading);
        let why = prepared.check(SHORT, never).await.unwrap_err();
        assert!(why.contains("file system"), "{why}");
        assert!(prepared.ready().unwrap().is_err(), "nobody waits again");
        go.send(()).unwrap();
        let read = async {
            while prepared.check(LONG, never).await.as_deref() != Ok(&1) {
                task::yield_now().await;
            }
        };
        timeout(LONG, read).await.expect("it is read in the end");
        let prepared = Arc::new(Prepared::<u32>::new());
        prepared.read(Instant::now(), || Err(Unprepared::NoAuthorities));
        let why = prepared.check(LONG, never).await.unwrap_err();
        assert!(why.contains("ca-certificates"), "{why}");
        assert!(!prepared.is_due(Instant::now()) && prepared.is_due(Instant::now() + AGAIN));
        let prepared = Arc::new(Prepared::<u32>::new());
        prepared.read(Instant::now(), never);
        let why = prepared.check(LONG, never).await.unwrap_err();
        assert!(why.contains("panicked"), "{why}");
    }

    #[tokio::test]
    async fn a_reading_settles_all_doubts_that_were_there_before_it() {
        let prepared = Arc::new(Prepared::new());
        let now = Instant::now();
        prepared.read(now, || Ok(0));
        prepared.check(LONG, never).await.unwrap();
        for _ in 0..500 {
            prepared.doubt();
        }
        assert!(prepared.is_due(now));
        let readings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&readings);
        let read = move || Ok(u32::try_from(counted.fetch_add(1, Ordering::SeqCst)).unwrap());
        let all: Mutex<Vec<_>> = Mutex::default();
        for _ in 0..500 {
            let check = prepared.check(LONG, read.clone()).await;
            all.lock().unwrap().push(*check.unwrap());
        }
        assert_eq!(readings.load(Ordering::SeqCst), 1);
    }
}
