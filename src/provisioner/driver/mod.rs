//! Operating systems for spares that have another one or none: step `os_install`.
//!
//! A driver begins an installation and says how it goes; all of its calls may be repeated, and what
//! it has come to is noted in the store before each request that changes something, so that a restarted
//! provisioner goes on where it was. The note is the fence at the same time: it is refused to whoever no
//! longer holds the server, and then nothing is requested. A server that serves is in no replacement's
//! hands, so that no driver touches it.
//!
//! - [`Ready`](crate::model::machine::Driver::Ready): installed beforehand, there is nothing to do here
//! - `redfish`: the server's management controller; `redfish::decide` is PURE
//! - `site`: a driver of the site's own over HTTP, `docs/driver-protocol.md`; [`protocol`] is PURE
//!
//! What was noted stays noted until the installation has succeeded or what it left is put away: here at once where that
//! is possible, else by [`Hands::tidy`], while the spare is quarantined.
//!
//! Whatever the driver says, an installation has succeeded when the server answers over SSH, with a
//! host key that is expected, and runs the wanted operating system.

mod client;
pub mod protocol;
pub mod redfish;
mod site;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::{
    clock,
    model::{
        WallMillis,
        inventory::Server,
        machine::{Boot, Driver as Kind, HttpDriver, Image, Redfish},
    },
    prepare,
    provisioner::{
        order::{Class, Done, Hands, Order, Said, Step, StepError, error},
        select::BARE,
        store::StoreError,
    },
    telemetry::Chain,
};

/// Whether an order still holds its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It does.
    Yes,
    /// It does, and is to stop: its replacement was cancelled.
    Cancelled,
    /// It does, and may not go on: the server may not be wiped any more.
    Spared,
    /// It does not: a newer run, another replacement, or nobody has it; or it serves.
    No,
}

/// How far an installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noting<'a> {
    /// In words that the store does not read.
    pub text: &'a str,
    /// What is asked for next leads to the wiping: the server has to be one that may be wiped.
    pub ahead: bool,
    /// The host keys that were pinned go with the disk.
    pub forgets: bool,
}

/// Where installations are written down, and who holds a server: the store.
pub trait Ledger: Clone + Send + Sync + 'static {
    /// Whether the order with `fence` holds `server`, and what was noted last of its installation, by
    /// whomever.
    fn installation(
        &self,
        server: &str,
        fence: u64,
    ) -> impl Future<Output = Result<(Held, Option<String>), StoreError>> + Send;

    /// Notes how far the installation of a server has come, for whoever holds it alone.
    fn note_installation(
        &self,
        server: &str,
        fence: u64,
        noting: Noting<'_>,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Forgets what was noted: nothing is left of the installation. For whoever holds the server alone.
    fn close_installation(
        &self,
        server: &str,
        fence: u64,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Notes what is wrong with a server that goes into service all the same, for whoever holds it alone.
    fn note_trouble(
        &self,
        server: &str,
        fence: u64,
        trouble: &str,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// What was noted of an installation that nobody goes on with, and of which something may be left.
    fn left_behind(
        &self,
        server: &str,
    ) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// What was left behind is put away.
    fn tidied(
        &self,
        server: &str,
        note: &str,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Pins the host keys that a server was seen with, for whoever holds it alone.
    fn learn_host_keys(
        &self,
        server: &str,
        fence: u64,
        keys: &[String],
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;
}

/// What a server shows over SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Its operating system as `ID-VERSION_ID`.
    pub os: String,
    /// Whether a provisioner has been at work on this installation.
    pub used: bool,
    /// Its host keys, as its files have them.
    pub keys: Vec<String>,
}

/// Whoever can look at a server: SSH, wired in by the agent.
pub trait Reach: Send + Sync + 'static {
    /// Logs in on `server`, which has to show one of the keys `pins`, and reads.
    fn look(
        &self,
        server: &Server,
        pins: &[String],
    ) -> impl Future<Output = Result<Sight, StepError>> + Send;
}

/// How an installation goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The server cannot have the operating system yet.
    Works(String),
    /// It may answer with it at any time.
    Boots(String),
    /// Power is off: nobody may answer in the server's name. Nothing is asked for before that is known.
    Off,
    /// The driver has nothing more to do.
    Done,
}

/// An installation that a driver is to make.
#[derive(Clone, Copy, Debug)]
pub(in crate::provisioner) struct Job<'a> {
    /// Its name: idempotency key.
    pub(in crate::provisioner) name: &'a str,
    /// What is installed.
    pub(in crate::provisioner) image: &'a Image,
    /// Also where it is there.
    pub(in crate::provisioner) anew: bool,
}

/// One running installation, by whatever means. `noted` is what was noted of it last, by this run or
/// one before.
trait Driver: Send {
    /// Whether it answers, and knows us. Changes nothing.
    async fn look(&mut self) -> Result<(), StepError>;

    /// Begins, or takes up what was begun.
    async fn start<L: Ledger>(
        &mut self,
        _job: &Job<'_>,
        _hold: &Hold<'_, L>,
    ) -> Result<(), StepError> {
        Ok(())
    }

    /// Goes on, one request at most, and says how it goes. `answers`: the server was seen with the
    /// wanted operating system.
    async fn poll<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
        answers: bool,
    ) -> Result<Progress, StepError>;

    /// Nobody answers in the name of a server whose power is off.
    fn is_silent(&mut self) {}

    /// What stays at the end of an installation that succeeded, for whoever is to take it away.
    fn left(&self) -> Option<String> {
        None
    }

    /// Gives up: leaves nothing behind that would begin the installation again.
    async fn cancel<L: Ledger>(&mut self, hold: &Hold<'_, L>) -> Result<(), StepError>;

    /// It is asked nothing more for now.
    async fn leave(&mut self) {}
}

/// What is noted of an installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    job: String,
    /// In the driver's words.
    at: String,
    /// When it began: its time limit goes on over restarts.
    since: WallMillis,
    /// Whether a virtual drive has the image.
    media: bool,
    /// The disk is no longer what it was, and the host keys are forgotten.
    wiped: bool,
}

/// How far an installation has come.
#[derive(Clone, Copy, Debug)]
struct At<'a> {
    /// In the driver's words.
    word: &'a str,
    /// The wiping is still to come.
    ahead: bool,
    /// The disk counts as wiped.
    wiped: bool,
}

/// By what right something is requested.
#[derive(Clone, Copy, Debug)]
enum Leave<'a> {
    /// It is noted how far it is.
    Note(At<'a>),
    /// What is left is put away.
    Tidy,
}

/// Who has the right to change something on a server.
#[derive(Clone, Debug)]
enum Right {
    /// The order with this fence.
    Order(u64),
    /// Whoever puts away what this note says was left.
    Left(String),
}

/// The right to change something on a server, asked for anew each time.
#[derive(Debug)]
struct Hold<'a, L> {
    ledger: &'a L,
    job: &'a str,
    server: &'a str,
    right: Right,
    since: WallMillis,
    media: bool,
    wiped: AtomicBool,
    fresh: Duration,
}

impl<L: Ledger> Hold<'_, L> {
    const fn fence(&self) -> u64 {
        match self.right {
            Right::Order(fence) => fence,
            Right::Left(_) => 0,
        }
    }

    /// What was noted of this job.
    async fn noted(&self) -> Result<Option<Note>, StepError> {
        let found = self.ledger.installation(self.server, self.fence()).await;
        let (held, text) = found.map_err(|e| self.unwritten(&e))?;
        self.judge(held)?;
        let note = text.and_then(|t| serde_json::from_str::<Note>(&t).ok());
        Ok(note.filter(|n| n.job == self.job))
    }

    /// How much of its time an installation had spent before this run.
    fn spent(&self) -> Duration {
        let spent = clock::wall().0.saturating_sub(self.since.0);
        Duration::from_millis(u64::try_from(spent).unwrap_or(0))
    }

    fn has_wiped(&self) -> bool {
        self.wiped.load(Ordering::Relaxed)
    }

    /// Leave for one request. Where this fails nothing may be requested; where it does not the request is sent at once.
    async fn leave(&self, leave: Leave<'_>) -> Result<(), StepError> {
        let asked = Instant::now();
        match leave {
            Leave::Note(at) => self.note(at).await?,
            Leave::Tidy if self.may_tidy().await => {}
            Leave::Tidy => self.judge(Held::No)?,
        }
        // Whose word is old may have lost the server since.
        if asked.elapsed() > self.fresh {
            let detail = format!(
                "the store took {} ms to note what is asked of {}: it is asked again",
                asked.elapsed().as_millis(),
                self.server
            );
            return Err(error(Class::Transient, "store_slow", detail));
        }
        Ok(())
    }

    /// Notes how far it has come.
    async fn note(&self, at: At<'_>) -> Result<(), StepError> {
        let had = self.has_wiped();
        let note = Note {
            job: self.job.to_owned(),
            at: at.word.to_owned(),
            since: self.since,
            media: self.media,
            wiped: had || at.wiped,
        };
        // A struct of texts and numbers always has a JSON.
        let text = serde_json::to_string(&note).unwrap_or_default();
        let noting = Noting {
            text: &text,
            ahead: at.ahead,
            forgets: at.wiped && !had,
        };
        let noted = self
            .ledger
            .note_installation(self.server, self.fence(), noting);
        let held = noted.await.map_err(|e| self.unwritten(&e))?;
        self.judge(held)?;
        self.wiped.store(note.wiped, Ordering::Relaxed);
        Ok(())
    }

    async fn learn(&self, keys: &[String]) -> Result<(), StepError> {
        let learnt = self.ledger.learn_host_keys(self.server, self.fence(), keys);
        let held = learnt.await.map_err(|e| self.unwritten(&e))?;
        self.judge(held)
    }

    /// Whether what is left behind may be put away: also of a cancelled one.
    async fn may_tidy(&self) -> bool {
        match &self.right {
            Right::Order(fence) => {
                let found = self.ledger.installation(self.server, *fence).await;
                found.is_ok_and(|(held, _)| held != Held::No)
            }
            Right::Left(note) => {
                let found = self.ledger.left_behind(self.server).await;
                found.is_ok_and(|found| found.as_ref() == Some(note))
            }
        }
    }

    /// Nothing is left of it.
    async fn close(&self) -> Result<(), StepError> {
        let closed = match &self.right {
            Right::Order(fence) => {
                let closed = self.ledger.close_installation(self.server, *fence).await;
                closed.map(drop)
            }
            Right::Left(note) => self.ledger.tidied(self.server, note).await,
        };
        closed.map_err(|e| self.unwritten(&e))
    }

    fn judge(&self, held: Held) -> Result<(), StepError> {
        let server = self.server;
        match held {
            Held::Yes => Ok(()),
            Held::Cancelled => Err(error(
                Class::Transient,
                CANCELLED,
                format!("the installation of {server} stops: its replacement was cancelled"),
            )),
            Held::Spared => Err(wipe_forbidden(server)),
            Held::No => Err(error(
                Class::Fenced,
                "fenced",
                format!(
                    "{server} is no longer in the hands of this order: nothing more is requested"
                ),
            )),
        }
    }

    fn unwritten(&self, e: &StoreError) -> StepError {
        let detail = format!(
            "how far the installation of {} is cannot be written down: {}",
            self.server,
            Chain(e)
        );
        error(Class::Local, "store_fault", detail)
    }
}

/// Errors of a look where nobody was there.
const NOBODY: [&str; 4] = ["unreachable", "refused", "connect_timed_out", "mute"];

/// Errors of a look where somebody was there, and did not prove to be the server.
const NOT_SHOWN: [&str; 4] = [
    "handshake_failed",
    "host_key_mismatch",
    "host_key_unusable",
    "link_lost",
];

/// The word of a server in service whose virtual drive keeps an image; it stays until the server is released.
pub(in crate::provisioner) const MEDIA_LEFT: &str = "media_left";

/// Tries to put an installation away before that is left to the keeper.
const TRIES: u32 = 3;

/// The code of an installation whose driver names another server's machine.
const WRONG_MACHINE: &str = "wrong_machine";

/// The code of an installation that was cancelled.
const CANCELLED: &str = "cancelled";

/// How often is asked, and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two questions.
    pub poll: Duration,
    /// A request that shows no effect is made again after so many questions.
    pub patience: u32,
    /// A driver or controller may be silent for so long: controllers restart their web servers.
    pub silence: Duration,
    /// What is requested is sent so soon after it was noted, or not at all.
    pub fresh: Duration,
}

impl Pace {
    /// Power states change within seconds, installations take minutes.
    pub const STANDARD: Self = Self {
        poll: Duration::from_secs(5),
        patience: 12,
        silence: Duration::from_mins(5),
        // A third of an engine's lease, as often as that is renewed: within it nobody else has the server.
        fresh: Duration::from_secs(5),
    };
}

/// Files with what proves us to drivers, by the name that the inventory uses; a bare file name is a
/// systemd credential.
pub type Credentials = BTreeMap<String, PathBuf>;

/// Hands that also install operating systems.
#[derive(Clone, Debug)]
pub struct Installer<H, L> {
    /// Everything else, and looking at servers.
    pub hands: H,
    /// The store.
    pub ledger: L,
    /// See [`Credentials`].
    pub credentials: Credentials,
    /// How often is asked.
    pub pace: Pace,
}

impl<H: Hands + Reach, L: Ledger> Hands for Installer<H, L> {
    async fn perform(&self, order: &Order, said: Said<'_>) -> Result<Done, StepError> {
        match &order.step {
            Step::OsInstall { job, image, anew } => {
                let job = Job {
                    name: job,
                    image,
                    anew: *anew,
                };
                // Its future is large: most steps are others.
                Box::pin(self.install(&order.server, &job, order.fence)).await
            }
            Step::Look => match self.hands.perform(order, said).await {
                Err(e) if may_be_installed(&order.server) && is_nobody(&e) => {
                    Err(Box::pin(self.bare(&order.server, e)).await)
                }
                looked => looked,
            },
            Step::Fence
            | Step::Os { .. }
            | Step::Install { .. }
            | Step::Configure { .. }
            | Step::Clean { .. }
            | Step::Test { .. } => self.hands.perform(order, said).await,
        }
    }

    async fn tidy(&self, server: &Server) -> Result<(), StepError> {
        Box::pin(self.put_away_left(server)).await
    }
}

impl<H: Reach, L: Ledger> Installer<H, L> {
    /// What is to be said of a server that cannot be logged in to, but could be installed.
    async fn bare(&self, server: &Server, e: StepError) -> StepError {
        match self.ask_driver(server).await {
            Ok(()) => error(
                Class::Unsuitable,
                BARE,
                format!(
                    "{} has nothing yet that can be logged in to, its {} driver answers ({e})",
                    server.name,
                    server.driver.kind()
                ),
            ),
            Err(driver) => StepError {
                detail: format!("{}; nor could it be installed: {driver}", e.detail),
                ..e
            },
        }
    }

    /// Whether the server's driver answers.
    async fn ask_driver(&self, server: &Server) -> Result<(), StepError> {
        match &server.driver {
            Kind::Ready => Err(no_driver(server)),
            Kind::Redfish(options) => self.redfish(server, options, None).await?.look().await,
            Kind::Http(options) => self.site(server, options, None).await?.look().await,
        }
    }

    async fn install(&self, server: &Server, job: &Job<'_>, fence: u64) -> Result<Done, StepError> {
        let mut hold = Hold {
            ledger: &self.ledger,
            job: job.name,
            server: &server.name,
            right: Right::Order(fence),
            since: clock::wall(),
            media: matches!(job.image.boot, Boot::VirtualMedia(_)),
            wiped: AtomicBool::new(false),
            fresh: self.pace.fresh,
        };
        let begun = hold.noted().await?;
        let mut keys = Keys::of(server, job.image);
        match &begun {
            Some(note) => {
                hold.since = note.since;
                hold.wiped = AtomicBool::new(note.wiped);
            }
            None => {
                // Asked in any case: somebody else who answers there keeps the disk.
                let already = self.already(server, job.image).await?;
                if let Some(done) = already.filter(|_| !job.anew) {
                    return Ok(done);
                }
                if !server.wipe {
                    return Err(wipe_forbidden(&server.name));
                }
            }
        }
        // They go with the disk; the store keeps them until it does.
        if !hold.has_wiped() {
            keys.learnt.clear();
        }
        let begun = begun.map(|note| note.at);
        match &server.driver {
            Kind::Ready => Err(no_driver(server)),
            Kind::Redfish(options) => {
                let driver = self.redfish(server, options, begun).await?;
                self.follow(driver, server, job, &hold, keys).await
            }
            Kind::Http(options) => {
                let driver = self.site(server, options, begun).await?;
                self.follow(driver, server, job, &hold, keys).await
            }
        }
    }

    /// Puts away what an installation has left that nobody goes on with.
    async fn put_away_left(&self, server: &Server) -> Result<(), StepError> {
        let left = self.ledger.left_behind(&server.name).await;
        let unread = |e: StoreError| error(Class::Local, "store_fault", Chain(&e).to_string());
        let Some(text) = left.map_err(unread)? else {
            return Ok(());
        };
        let note: Note = serde_json::from_str(&text).map_err(|e| {
            let detail = format!("what was noted of {} is not understood: {e}", server.name);
            error(Class::Permanent, "note_garbled", detail)
        })?;
        let hold = Hold {
            ledger: &self.ledger,
            job: &note.job,
            server: &server.name,
            right: Right::Left(text),
            since: note.since,
            media: note.media,
            wiped: AtomicBool::new(note.wiped),
            fresh: self.pace.fresh,
        };
        let begun = Some(note.at.clone());
        match &server.driver {
            Kind::Ready => Err(no_driver(server)),
            Kind::Redfish(options) => {
                let mut driver = self.redfish(server, options, begun).await?;
                self.put_away(&mut driver, &hold).await
            }
            Kind::Http(options) => {
                let mut driver = self.site(server, options, begun).await?;
                self.put_away(&mut driver, &hold).await
            }
        }
    }

    /// Has the driver give up, and says so in the store.
    async fn put_away<D: Driver>(
        &self,
        driver: &mut D,
        hold: &Hold<'_, L>,
    ) -> Result<(), StepError> {
        let mut tries = 1;
        let result = loop {
            match driver.cancel(hold).await {
                Err(e) if e.class == Class::Transient && tries < TRIES => tries += 1,
                Err(e) => break Err(e),
                Ok(()) => break hold.close().await,
            }
            sleep(self.pace.poll).await;
        };
        driver.leave().await;
        result
    }

    /// A spare that was never looked at may have what is wanted: then its disk stays as it is.
    async fn already(&self, server: &Server, image: &Image) -> Result<Option<Done>, StepError> {
        if server.pins().is_empty() {
            return Ok(None);
        }
        match self.hands.look(server, server.pins()).await {
            Ok(sight) if sight.os == image.os => Ok(Some(Done {
                detail: format!("{} runs {} already", server.name, sight.os),
                os: Some(sight.os),
                ..Done::default()
            })),
            Ok(sight) => {
                info!(
                    server = server.name,
                    os = sight.os,
                    wanted = image.os,
                    "will be installed anew"
                );
                Ok(None)
            }
            Err(e) if is_nobody(&e) => {
                info!(server = server.name, reason = %e, wanted = image.os, "will be installed: nobody answers there");
                Ok(None)
            }
            // That this host cannot connect, or somebody else answers, is no reason to wipe a disk.
            Err(e) => Err(e),
        }
    }

    /// A server that was powered off and still answers is another than the one that its driver names.
    async fn is_off(&self, server: &Server) -> Result<(), StepError> {
        if server.pins().is_empty() {
            return Ok(());
        }
        match self.hands.look(server, server.pins()).await {
            Err(e) if e.class == Class::Local => Err(e),
            // Nobody, or somebody who has not shown its key.
            Err(e) if is_nobody(&e) || NOT_SHOWN.contains(&e.code) => Ok(()),
            Ok(_) | Err(_) => {
                let detail = format!(
                    "{} answers over SSH while the machine that its driver names is off: the driver names another \
                     machine, which may have been powered off; look at `driver` in servers.toml",
                    server.name
                );
                Err(error(Class::Permanent, WRONG_MACHINE, detail))
            }
        }
    }

    /// Starts, and asks until the server runs what is wanted or its time is over.
    async fn follow<D: Driver>(
        &self,
        mut driver: D,
        server: &Server,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
        keys: Keys<'_>,
    ) -> Result<Done, StepError> {
        let result = self.asked(&mut driver, server, job, hold, keys).await;
        if let Err(e) = &result
            && gives_up(e)
            && hold.may_tidy().await
        {
            // Another machine is left as it is: nothing of ours is on it.
            let left = match e.code {
                WRONG_MACHINE => hold.close().await,
                _ => self.put_away(&mut driver, hold).await,
            };
            if let Err(left) = left {
                warn!(server = server.name, reason = %left, "the installation could not be cancelled: a virtual medium or a boot override may be left; it is tried again while the spare is quarantined");
            }
        }
        driver.leave().await;
        result
    }

    async fn asked<D: Driver>(
        &self,
        driver: &mut D,
        server: &Server,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
        mut keys: Keys<'_>,
    ) -> Result<Done, StepError> {
        let (begun, spent) = (Instant::now(), hold.spent());
        let mut heard = begun;
        let mut started = false;
        let mut done = false;
        let mut view = View::Unseen;
        let mut last = String::new();
        loop {
            let asked = async {
                if !started {
                    driver.start(job, hold).await?;
                    started = true;
                }
                match done {
                    true => Ok(Progress::Done),
                    false => driver.poll(job, hold, view == View::Wanted).await,
                }
            };
            // One that takes longer is as good as silent.
            let asked = timeout(self.pace.silence, asked).await;
            match asked.unwrap_or_else(|_elapsed| Err(unheard(server, self.pace.silence))) {
                Ok(Progress::Off) => {
                    heard = Instant::now();
                    self.is_off(server).await?;
                    driver.is_silent();
                    continue;
                }
                Ok(progress) => {
                    heard = Instant::now();
                    done = progress == Progress::Done;
                    let boots = !matches!(progress, Progress::Works(_));
                    if let Progress::Works(text) | Progress::Boots(text) = progress
                        && text != last
                    {
                        info!(
                            server = server.name,
                            job = job.name,
                            progress = text,
                            "installation goes on"
                        );
                        last = text;
                    }
                    if boots && view != View::Wanted {
                        view = self.view(server, job.image, hold, &mut keys).await?;
                    }
                    if done && view == View::Wanted {
                        break;
                    }
                }
                Err(e) if e.code == CANCELLED => return Err(e),
                Err(e) if e.class == Class::Transient && heard.elapsed() < self.pace.silence => {
                    if last != e.detail {
                        warn!(server = server.name, reason = %e, "installation is asked about again");
                        last = e.detail;
                    }
                }
                Err(e) => return Err(e),
            }
            if begun.elapsed().saturating_add(spent) > job.image.timeout {
                return Err(overdue(server, job.image, &last, &view));
            }
            sleep(self.pace.poll).await;
            // A cancelled one waits for nothing more.
            hold.noted().await?;
        }
        let mut detail = format!("{} runs {}, installed", server.name, job.image.os);
        if let Some(left) = driver.left() {
            warn!(
                server = server.name,
                left, "installed, and not all is put away"
            );
            detail = format!("{detail}; {left}");
            let left = format!("{MEDIA_LEFT}: {left}");
            let noted = self.ledger.note_trouble(&server.name, hold.fence(), &left);
            hold.judge(noted.await.map_err(|e| hold.unwritten(&e))?)?;
        }
        Ok(Done {
            detail,
            output: String::new(),
            os: Some(job.image.os.clone()),
        })
    }

    /// Looks whether the server answers as it should.
    async fn view(
        &self,
        server: &Server,
        image: &Image,
        hold: &Hold<'_, L>,
        keys: &mut Keys<'_>,
    ) -> Result<View, StepError> {
        if !keys.expected().is_empty() {
            match self.hands.look(server, keys.expected()).await {
                Ok(sight) => return Ok(View::of(&sight, image)),
                Err(e) if e.code != "host_key_mismatch" || keys.enrolment().is_empty() => {
                    return Ok(View::Silent(e.to_string()));
                }
                Err(_) => {}
            }
        }
        if keys.enrolment().is_empty() {
            return Ok(View::Silent(format!(
                "{} has no host_keys and its image no enrolment_keys: nobody could be trusted",
                server.name
            )));
        }
        let sight = match self.hands.look(server, keys.enrolment()).await {
            Ok(sight) => sight,
            Err(e) => return Ok(View::Silent(e.to_string())),
        };
        if View::of(&sight, image) != View::Wanted {
            return Ok(View::of(&sight, image));
        }
        // Whoever has the image could show its key: the next login is by a key of its own.
        let own: Vec<String> = sight
            .keys
            .into_iter()
            .filter(|k| !keys.is_enrolment(k))
            .collect();
        if own.is_empty() {
            return Ok(View::Silent(format!(
                "{} has no host key of its own beside its image's: let the installation make one",
                server.name
            )));
        }
        hold.learn(&own).await?;
        info!(
            server = server.name,
            keys = own.len(),
            "host keys pinned after the installation"
        );
        keys.learnt = own;
        Ok(View::Silent(format!(
            "{} was enrolled and has not answered with its own host key yet",
            server.name
        )))
    }

    /// A server's controller; `begun`: as far as was noted.
    async fn redfish<'a>(
        &self,
        server: &Server,
        options: &'a Redfish,
        begun: Option<String>,
    ) -> Result<redfish::Run<'a>, StepError> {
        let secret = self.secret(&options.door.credential, prepare::credentials);
        redfish::Run::open(server, options, secret.await?, begun, self.pace.patience).await
    }

    /// A site's own driver; `begun`: what was noted.
    async fn site<'a>(
        &self,
        server: &'a Server,
        options: &'a HttpDriver,
        begun: Option<String>,
    ) -> Result<site::Run<'a>, StepError> {
        let secret = self.secret(&options.door.credential, prepare::secret);
        site::Run::open(server, options, &secret.await?, begun).await
    }

    /// Reads what a credential names. Files may hang: not on this thread.
    async fn secret<T: Send + 'static>(
        &self,
        name: &str,
        read: fn(&std::path::Path) -> Result<T, prepare::Unprepared>,
    ) -> Result<T, StepError> {
        // Of this host: it says nothing of the spare.
        let unusable = |detail: String| error(Class::Local, "credential_unusable", detail);
        let path = self.credentials.get(name).cloned().ok_or_else(|| {
            unusable(format!(
                "no credential {name:?} in [credentials] of provisioner.toml: name its file there"
            ))
        })?;
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        match read {
            Ok(read) => read.map_err(|e| unusable(format!("credential {name:?}: {}", Chain(&e)))),
            Err(_) => Err(unusable(format!("credential {name:?} could not be read"))),
        }
    }
}

/// Host keys that a server may show after its installation.
#[derive(Debug)]
struct Keys<'a> {
    files: &'a [String],
    image: &'a [String],
    /// Read in this installation.
    learnt: Vec<String>,
}

impl<'a> Keys<'a> {
    fn of(server: &'a Server, image: &'a Image) -> Self {
        Self {
            files: &server.host_keys,
            image: &image.enrolment_keys,
            learnt: server.learnt_keys.clone(),
        }
    }

    fn expected(&self) -> &[String] {
        match self.learnt.as_slice() {
            [] => self.files,
            learnt => learnt,
        }
    }

    /// None once it has been enrolled.
    fn enrolment(&self) -> &[String] {
        match self.learnt.as_slice() {
            [] => self.image,
            _ => &[],
        }
    }

    /// By type and key alone: comments differ.
    fn is_enrolment(&self, key: &str) -> bool {
        let parts = |k: &'a str| k.split_whitespace().take(2);
        self.image
            .iter()
            .any(|k| parts(k).eq(key.split_whitespace().take(2)))
    }
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum View {
    Unseen,
    Silent(String),
    Other(String),
    /// A provisioner has been at work on it: the disk was not wiped.
    Old,
    Wanted,
}

impl View {
    fn of(sight: &Sight, image: &Image) -> Self {
        match sight {
            Sight { os, .. } if *os != image.os => Self::Other(os.clone()),
            Sight { used: true, .. } => Self::Old,
            _ => Self::Wanted,
        }
    }
}

fn may_be_installed(server: &Server) -> bool {
    server.wipe && server.driver != Kind::Ready
}

/// Whether what could begin an installation again is put away: it is not to go on. A wrong password is not said again:
/// controllers lock the account.
fn gives_up(e: &StepError) -> bool {
    (e.code == CANCELLED || e.class == Class::Permanent) && !e.code.ends_with("auth_refused")
}

/// Nobody answers at the server's address.
fn is_nobody(e: &StepError) -> bool {
    NOBODY.contains(&e.code)
}

fn wipe_forbidden(server: &str) -> StepError {
    let detail =
        format!("{server} may not be wiped any more: set `wipe` in servers.toml if it may");
    error(Class::Permanent, "wipe_forbidden", detail)
}

fn unheard(server: &Server, limit: Duration) -> StepError {
    let detail = format!(
        "the driver of {} has not said within {} s how it goes",
        server.name,
        limit.as_secs()
    );
    error(Class::Transient, "driver_silent", detail)
}

fn no_driver(server: &Server) -> StepError {
    let detail = format!(
        "{} has no driver any more that could install it: look at servers.toml",
        server.name
    );
    error(Class::Permanent, "no_driver", detail)
}

fn overdue(server: &Server, image: &Image, last: &str, view: &View) -> StepError {
    let name = &server.name;
    let seen = match view {
        View::Unseen => "it was not to be logged in to yet".to_owned(),
        View::Silent(why) => why.clone(),
        View::Other(os) => {
            format!("{name} runs {os}: did it boot its old disk or the wrong image?")
        }
        View::Old => format!("{name} still has its old installation: it did not boot the image"),
        View::Wanted => format!("{name} runs it, but the driver is not done"),
    };
    let detail = format!(
        "{} is not installed on {name} within {} s; the driver says: {last}; {seen}",
        image.os,
        image.timeout.as_secs()
    );
    error(Class::Permanent, "os_install_timed_out", detail)
}

#[cfg(test)]
mod tests;
