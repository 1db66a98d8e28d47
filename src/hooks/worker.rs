//! One hook: follows the events, and tells them.

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    sync::watch,
    task::{self, JoinHandle},
    time::{self, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Error, Observe, Told,
    backoff::Backoff,
    mail,
    pile::{Parcel, Pile, Rule},
    webhook::{self, Connection},
};
use crate::{
    clock,
    model::{EventRing, Hook},
    prepare::Unprepared,
    random,
    telemetry::Chain,
};

/// Files are read within this.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Worker {
    name: String,
    hook: watch::Receiver<Arc<Hook>>,
    ring: watch::Receiver<EventRing>,
    observe: Observe,
    /// The last event that was looked at.
    seen: u64,
    pile: Pile,
    backoff: Backoff,
    carrier: Carrier,
    /// It was told that events are dropped.
    dropping: bool,
}

/// What an attempt leaves for the next.
#[derive(Default)]
struct Carrier {
    connection: Option<Connection>,
    /// A reading that has not ended: no other is begun beside it.
    reading: Option<JoinHandle<Result<Ready, Unprepared>>>,
}

enum Ready {
    Webhook(webhook::Ready),
    Mail(mail::Ready),
}

/// How a wait for an attempt ended.
enum End {
    Stopped,
    Changed,
    Told(Result<(), Error>),
}

impl Worker {
    pub(super) fn new(
        name: String,
        hook: watch::Receiver<Arc<Hook>>,
        ring: watch::Receiver<EventRing>,
        from: u64,
        observe: Observe,
    ) -> Self {
        let rule = Rule::of(&hook.borrow());
        Self {
            name,
            hook,
            ring,
            observe,
            seen: from,
            pile: Pile::new(rule),
            backoff: Backoff::default(),
            carrier: Carrier::default(),
            dropping: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let hook = Arc::clone(&self.hook.borrow_and_update());
            self.pile.change(Rule::of(&hook));
            self.look(&hook);
            match self.attempt(&hook, &stop).await {
                End::Stopped => break,
                // What was read for the old one is of no use.
                End::Changed => self.carrier = Carrier::default(),
                End::Told(Ok(())) => self.worked(&hook),
                End::Told(Err(why)) => self.failed(&hook, &why),
            }
        }
        if self.pile.len() > 0 {
            info!(hook = %self.name, untold = self.pile.len(), "hook ends with events that it could not tell");
        }
    }

    /// Takes what has happened since it looked last.
    fn look(&mut self, hook: &Hook) {
        let now = clock::now();
        let ring = self.ring.borrow_and_update();
        let missed = ring.missed(self.seen);
        self.pile.missed(missed);
        let mut dropped = missed;
        for event in ring.after(self.seen) {
            if hook.wanted().wants(event) {
                dropped += self.pile.push(Arc::clone(event), now);
            }
        }
        self.seen = ring.newest();
        drop(ring);
        if dropped > 0 {
            (self.observe)(&self.name, Told::Dropped(dropped));
            if !self.dropping {
                self.dropping = true;
                match hook {
                    Hook::Webhook(_) => {
                        warn!(hook = %self.name, at = %hook.place(), "hook is too slow or does not answer: its oldest events are dropped; `understudy events` shows those that are kept");
                    }
                    Hook::Mail(_) => {
                        warn!(hook = %self.name, at = %hook.place(), "more events than mails may tell: the oldest are left out, and counted in the next; `understudy events` shows those that are kept");
                    }
                }
            }
        }
    }

    /// Waits until there is something to tell and tells it once, looking at what happens meanwhile.
    async fn attempt(&mut self, hook: &Arc<Hook>, stop: &CancellationToken) -> End {
        let mut carrier = std::mem::take(&mut self.carrier);
        let end = loop {
            let (Some(due), Some(parcel)) = (self.pile.due(), self.pile.parcel()) else {
                // Nothing to tell, so nothing to be told over it.
                carrier.connection = None;
                match self.wait(hook, stop).await {
                    None => continue,
                    Some(end) => break end,
                }
            };
            let due = due.max(self.backoff.again());
            let now = clock::now();
            if due > now {
                select! {
                    end = self.wait(hook, stop) => match end {
                        None => {}
                        Some(end) => break end,
                    },
                    () = time::sleep(due.since(now)) => {}
                }
                continue;
            }
            let telling = carrier.tell(hook, &parcel);
            tokio::pin!(telling);
            let end = loop {
                select! {
                    told = &mut telling => break End::Told(told),
                    end = self.wait(hook, stop) => if let Some(end) = end {
                        break end;
                    },
                }
            };
            if let End::Told(Ok(())) = end {
                self.pile.done(&parcel, clock::now());
            }
            break end;
        };
        self.carrier = carrier;
        end
    }

    /// Until something happened, which it takes, or there is another end. Cancel-safe.
    async fn wait(&mut self, hook: &Hook, stop: &CancellationToken) -> Option<End> {
        select! {
            () = stop.cancelled() => Some(End::Stopped),
            // Cancel-safe, both: `changed` only marks the value seen when it returns.
            changed = self.hook.changed() => Some(match changed {
                Ok(()) => End::Changed,
                Err(_) => End::Stopped,
            }),
            changed = self.ring.changed() => match changed {
                Ok(()) => { self.look(hook); None }
                Err(_) => Some(End::Stopped),
            },
        }
    }

    fn worked(&mut self, hook: &Hook) {
        (self.observe)(&self.name, Told::Ok);
        self.dropping &= self.pile.len() > 0;
        let failures = self.backoff.worked();
        if failures > 0 {
            info!(hook = %self.name, at = %hook.place(), failures, "hook takes events again");
        }
    }

    fn failed(&mut self, hook: &Hook, why: &Error) {
        (self.observe)(&self.name, Told::Failed);
        self.carrier.connection = None;
        let now = clock::now();
        let given_up = self.pile.failed(now);
        if given_up > 0 {
            (self.observe)(&self.name, Told::GaveUp(given_up));
            warn!(hook = %self.name, at = %hook.place(), events = given_up, error = %Chain(why), "events were given up: the hook did not take them in its time (retry_for)");
        }
        if self.backoff.failed(now, random::number()) {
            // In the text too: whoever reads the journal sees no fields.
            let (name, why) = (&self.name, Chain(why));
            warn!(hook = %name, at = %hook.place(), error = %why, "hook {name} does not take events: {why}; they are kept and told later");
        }
    }
}

impl Carrier {
    async fn tell(&mut self, hook: &Arc<Hook>, parcel: &Parcel) -> Result<(), Error> {
        let limit = match &**hook {
            Hook::Webhook(webhook) => webhook.timeout,
            Hook::Mail(mail) => mail.relay.timeout,
        };
        // A kept connection that the other side has closed meanwhile fails nobody.
        if let (Hook::Webhook(webhook), Some(mut kept)) = (&**hook, self.connection.take())
            && kept.is_open()
        {
            match timeout(limit, kept.post(webhook, parcel)).await {
                Ok(Err(Error::Broken(_))) => {}
                told => {
                    self.connection = kept.is_open().then_some(kept);
                    return told.map_err(|_elapsed| Error::TimedOut(limit))?;
                }
            }
        }
        let ready = self.read(hook).await?;
        let telling = async {
            match (&**hook, ready) {
                (Hook::Webhook(webhook), Ready::Webhook(ready)) => {
                    let mut connection = Connection::open(webhook, ready).await?;
                    connection.post(webhook, parcel).await?;
                    self.connection = connection.is_open().then_some(connection);
                    Ok(())
                }
                (Hook::Mail(mail), Ready::Mail(ready)) => ready.send(mail, parcel).await,
                // Another hook of the same name was read for: read again.
                (Hook::Webhook(_), Ready::Mail(_)) | (Hook::Mail(_), Ready::Webhook(_)) => {
                    Err(Error::Panicked)
                }
            }
        };
        let told = timeout(limit, telling).await;
        told.map_err(|_elapsed| Error::TimedOut(limit))?
    }

    /// Reads what the hook names on this host, on a thread of its own: each time anew, so that a secret may be
    /// changed at any time.
    async fn read(&mut self, hook: &Arc<Hook>) -> Result<Ready, Error> {
        let hook = Arc::clone(hook);
        let reading = self.reading.get_or_insert_with(|| {
            task::spawn_blocking(move || match &*hook {
                Hook::Webhook(webhook) => webhook::Ready::read(webhook).map(Ready::Webhook),
                Hook::Mail(mail) => mail::Ready::read(mail).map(Ready::Mail),
            })
        });
        let read = timeout(READ_LIMIT, reading)
            .await
            .map_err(|_elapsed| Error::Hangs(READ_LIMIT))?;
        self.reading = None;
        read.map_err(|_panic| Error::Panicked)?
            .map_err(Error::Unprepared)
    }
}
