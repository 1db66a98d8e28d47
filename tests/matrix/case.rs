//! One case: a provisioner that dies, or loses its database, at one point of a story; then the story is played to its end,
//! as directors and operators do, and what came of it is looked at.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use hyper::Method;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Connection as _, Row as _};
use tokio::time::{Instant, sleep};
use understudy::{
    api::client::{Client, NOTHING},
    model::{
        ReplacementId,
        inventory::{ServerState, ServerView},
        wire::{Confirmation, Replacement, ReplacementRequest, ReplacementState, Want},
    },
    provisioner::store::{Place, Store, StoreError},
};

use crate::{
    calls::{self, Class, Point, What, When},
    lab::{DIRECTOR, FAILED, LIMIT, Lab, ROLE, SPARES},
};

/// What happens, but for the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Story {
    /// A server fails, its spare takes its place.
    Plain,
    /// A script fails on the first spare, the second one is taken.
    Broken,
    /// Cancelled while a script runs; then the spare is cleaned.
    Cancelled,
    /// A spare is made ready before a server fails, and the next one afterwards.
    Warm,
    /// As plain, in a store that has no tables yet.
    Fresh,
}

impl Story {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Broken => "broken",
            Self::Cancelled => "cancelled",
            Self::Warm => "warm",
            Self::Fresh => "fresh",
        }
    }

    const fn warm(self) -> bool {
        match self {
            Self::Warm => true,
            Self::Plain | Self::Broken | Self::Cancelled | Self::Fresh => false,
        }
    }
}

/// States of steps by server and name, as the journal had them when the process was dead.
pub(crate) type Snapshot = BTreeMap<String, String>;

/// How a case went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Whether its point was reached.
    pub(crate) reached: bool,
    /// What the journal said then.
    pub(crate) snapshot: Snapshot,
    /// Whether its last calls were two journal writes.
    wrote_twice: bool,
    /// Whether they were a packet and a journal write.
    wrote_after_a_packet: bool,
    /// How many calls of each class the first process made.
    pub(crate) made: BTreeMap<Class, u64>,
}

/// Replacements, servers, and who has how many in hand.
type Contents = (
    Vec<Replacement>,
    BTreeMap<String, ServerView>,
    BTreeMap<String, u64>,
);

pub(crate) struct Case<'a> {
    lab: &'a mut Lab,
    story: Story,
    point: Option<Point>,
    dir: PathBuf,
    place: Place,
    client: Client,
    child: Option<Child>,
    starts: u32,
    outcome: Outcome,
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Plays a story in a lab that is as new.
pub(crate) async fn play(
    lab: &mut Lab,
    story: Story,
    point: Option<Point>,
) -> anyhow::Result<Outcome> {
    let dir = lab.path("case");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir(&dir)?;
    for spare in SPARES {
        lab.reset(spare)?;
    }
    let place = match story {
        Story::Fresh => Place::File(dir.join("understudy.db")),
        _ => lab.store(&dir, story.warm()).await?,
    };
    let client = Client::unix(dir.join("provisioner.sock"));
    let mut case = Case {
        lab,
        story,
        point,
        dir,
        place,
        client,
        child: None,
        starts: 0,
        outcome: Outcome::default(),
    };
    let played = case.play().await;
    if let Err(e) = played {
        let log = case.log();
        let from = log.len().saturating_sub(8000);
        let tail = log.get(log.ceil_char_boundary(from)..).unwrap_or_default();
        return Err(e.context(format!("the provisioner's log:\n{tail}")));
    }
    let first = case.dir.join("first");
    case.outcome.wrote_twice = calls::ended_with(&first, [Class::Journal; 2]);
    case.outcome.wrote_after_a_packet = calls::ended_with(&first, [Class::Ssh, Class::Journal]);
    for class in Class::ALL {
        let made = calls::made(&first, class);
        case.outcome.made.insert(class, made);
    }
    Ok(std::mem::take(&mut case.outcome))
}

impl Case<'_> {
    async fn play(&mut self) -> anyhow::Result<()> {
        self.configure()?;
        self.start()?;
        match self.story {
            Story::Plain => {
                let replaced = self.replace().await?;
                self.stop().await?;
                self.look_plain(&replaced).await
            }
            Story::Broken => {
                fs::write(self.lab.world(SPARES[0], "broken"), "")?;
                let replaced = self.replace().await?;
                self.stop().await?;
                self.look_broken(&replaced).await
            }
            Story::Cancelled => {
                let id = self.cancel().await?;
                self.stop().await?;
                self.look_cancelled(&id).await
            }
            Story::Warm => {
                self.until_servers("a warm spare", |s| {
                    s[SPARES[0]].state == ServerState::Standby
                })
                .await?;
                let replaced = self.replace().await?;
                self.until_servers("the next one", |s| {
                    s[SPARES[1]].state == ServerState::Standby
                })
                .await?;
                self.stop().await?;
                self.look_warm(&replaced).await
            }
            Story::Fresh => {
                // That it has tables is all that can be asked of it.
                self.servers().await?;
                self.stop().await?;
                self.look_sound().await
            }
        }
    }

    fn configure(&self) -> anyhow::Result<()> {
        let d = self.dir.display();
        let store = match &self.place {
            Place::File(_) => String::new(),
            Place::Server { url, .. } => format!("store = \"{url}\"\n"),
        };
        let text = format!(
            "[provisioner]\naddress = \"{}\"\nstate_dir = \"{d}\"\nsocket = \"{d}/provisioner.sock\"\n{store}\
             [ssh]\nkey = \"{}\"\nconnect_timeout = \"30s\"\n[pool]\nrehearse = \"never\"\n",
            self.lab.address("centre"),
            self.lab.path("id").display(),
        );
        Ok(fs::write(self.dir.join("provisioner.toml"), text)?)
    }

    /// Starts the product's provisioner: this program is it, beside the calls that it counts.
    fn start(&mut self) -> anyhow::Result<()> {
        let folder = self.folder();
        self.starts += 1;
        fs::create_dir_all(&folder)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("provisioner")
            .arg("--config")
            .arg(self.dir.join("provisioner.toml"))
            .env(calls::FOLDER, &folder)
            .env(calls::SSH_PORT, self.lab.port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(point) = self.point
            && self.starts == 1
        {
            command.env(calls::POINT, point.to_string());
        }
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Of the process that is started next, or, once it is, of the first one alone.
    fn folder(&self) -> PathBuf {
        self.dir.join(match self.starts {
            0 => "first",
            _ => "later",
        })
    }

    /// Starts it again where it died as it had to, crashes its database where it waits for that.
    fn tend(&mut self) -> anyhow::Result<()> {
        if self.died()? {
            self.start()?;
        }
        let first = self.dir.join("first");
        if calls::is_held(&first) {
            self.outcome.reached = true;
            self.lab.crash_postgres()?;
            calls::let_go(&first);
        }
        Ok(())
    }

    /// Whether it has died as it had to.
    fn died(&mut self) -> anyhow::Result<bool> {
        let child = self.child.as_mut().context("it runs")?;
        let Some(status) = child.try_wait()? else {
            return Ok(false);
        };
        let meant = match self.point.filter(|_| self.starts == 1).map(|p| p.what) {
            Some(What::Die) => status.signal() == Some(Signal::SIGKILL as i32),
            // It says so and ends where its database goes away before it is ready: systemd starts it again.
            Some(What::Hold) => {
                self.outcome.reached && status.code() == Some(1) && !self.log().contains("is ready")
            }
            None => false,
        };
        ensure!(meant, "the provisioner ended by itself: {status}");
        self.outcome.reached = true;
        Ok(true)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// What the journal says while nobody writes to it.
    async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let Place::File(file) = &self.place else {
            return Ok(Snapshot::new());
        };
        if self.story == Story::Fresh {
            return Ok(Snapshot::new());
        }
        // A copy: to look at it must not put it right.
        let copy = self.dir.join("copy.db");
        fs::copy(file, &copy)?;
        let log = |file: &Path| PathBuf::from(format!("{}-wal", file.display()));
        if log(file).exists() {
            fs::copy(log(file), log(&copy))?;
        }
        let store = Store::connect(&Place::File(copy)).await?;
        let all = store.replacements().await?;
        store.close().await;
        let steps = all.iter().flat_map(|r| &r.steps);
        Ok(steps
            .map(|s| (format!("{} {}", s.server, s.step), s.state.clone()))
            .collect())
    }

    /// Asks, as often as it takes: provisioner and database come back.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        (method, path): (Method, &str),
        key: Option<&str>,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            let client = self.client.clone();
            let limit = Duration::from_secs(30);
            let ask = client.ask(method.clone(), path, key, body, limit);
            tokio::pin!(ask);
            let asked = loop {
                tokio::select! {
                    asked = &mut ask => break asked,
                    () = sleep(Duration::from_millis(5)) => self.mind().await?,
                }
            };
            match asked {
                Ok(answer) => return Ok(answer),
                Err(e) => match e.problem() {
                    Some(problem) if problem.status != 503 => bail!("{method} {path}: {e}"),
                    _ => ensure!(begun.elapsed() < LIMIT, "{method} {path}: {e}"),
                },
            }
            self.mind().await?;
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// [`Case::tend`], and keeps what the journal said at the death.
    async fn mind(&mut self) -> anyhow::Result<()> {
        if self.starts == 1 && self.died()? {
            self.outcome.snapshot = self.snapshot().await?;
        }
        self.tend()
    }

    async fn servers(&mut self) -> anyhow::Result<BTreeMap<String, ServerView>> {
        let all: Vec<ServerView> = self
            .ask((Method::GET, "/v1/inventory/servers"), None, NOTHING)
            .await?;
        Ok(by_name(all))
    }

    async fn until_servers(
        &mut self,
        what: &str,
        is: impl Fn(&BTreeMap<String, ServerView>) -> bool,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let servers = self.servers().await?;
            if is(&servers) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < LIMIT,
                "waited in vain for {what}: {servers:#?}"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn request(&mut self) -> anyhow::Result<Replacement> {
        let failed = self.lab.address(FAILED);
        let body = ReplacementRequest {
            failed,
            director: self.lab.address(DIRECTOR),
            centre: self.lab.address("centre"),
            name: DIRECTOR.parse()?,
        };
        let key = format!("{DIRECTOR}/{failed}/1");
        self.ask((Method::POST, "/v1/replacements"), Some(&key), Some(&body))
            .await
    }

    /// What `r` has become, as soon as that is `is`.
    async fn until(
        &mut self,
        mut r: Replacement,
        what: &str,
        is: impl Fn(&Replacement) -> bool,
    ) -> anyhow::Result<Replacement> {
        let begun = Instant::now();
        while !is(&r) {
            ensure!(begun.elapsed() < LIMIT, "waited in vain for {what}: {r:#?}");
            let path = format!("/v1/replacements/{}?after={}&wait=1", r.id, r.version);
            r = self.ask((Method::GET, &path), None, NOTHING).await?;
        }
        Ok(r)
    }

    /// As a director does it: asks, and confirms when the spare is offered.
    async fn replace(&mut self) -> anyhow::Result<Replacement> {
        let r = self.request().await?;
        let offered = |r: &Replacement| r.state == ReplacementState::Attaching;
        let r = self.until(r, "an offer", offered).await?;
        let path = format!("/v1/directors/{DIRECTOR}/members/{}", r.id);
        let is = Confirmation { is: Want::Attach };
        let _nothing: serde_json::Value = self.ask((Method::POST, &path), None, Some(&is)).await?;
        let id = r.id.clone();
        let done = |r: &Replacement| r.state == ReplacementState::Succeeded;
        let r = self.until(r, "success", done).await?;
        // Asked once more it is the same one.
        ensure!(
            self.request().await?.id == id,
            "another one for one failure"
        );
        Ok(r)
    }

    /// As an operator does it: cancels while the second script runs. What is half configured is cleaned by itself then,
    /// and not beside the script.
    async fn cancel(&mut self) -> anyhow::Result<ReplacementId> {
        let hold = self.lab.world(SPARES[0], "hold");
        fs::write(&hold, "")?;
        let r = self.request().await?;
        let web = |r: &Replacement, tries| {
            let mut steps = r.steps.iter();
            steps.any(|s| s.step == "install:web" && s.state == "running" && s.tries >= tries)
        };
        let r = self.until(r, "the second script", |r| web(r, 1)).await?;
        let starts = self.starts;
        let path = format!("/v1/replacements/{}/cancel", r.id);
        let mut r: Replacement = self.ask((Method::POST, &path), None, NOTHING).await?;
        let ended = |r: &Replacement| r.state == ReplacementState::Cancelled;
        if self.starts > starts {
            // Whoever was started again has made up its mind.
            let decided = |r: &Replacement| ended(r) || web(r, 2);
            r = self.until(r, "what becomes of the script", decided).await?;
        }
        fs::remove_file(&hold)?;
        let r = self.until(r, "its end", ended).await?;
        self.until_servers("a clean spare", |s| {
            s[SPARES[0]].state == ServerState::Ready
        })
        .await?;
        Ok(r.id)
    }

    /// Has it end in order, unless its point is in the end.
    async fn stop(&mut self) -> anyhow::Result<()> {
        let id = self.child.as_ref().context("it runs")?.id();
        // One that has died just now is not waited for yet: its number is nobody else's.
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM)?;
        let begun = Instant::now();
        loop {
            ensure!(begun.elapsed() < LIMIT, "it does not end");
            let child = self.child.as_mut().context("it runs")?;
            if let Some(status) = child.try_wait()? {
                let died = status.signal() == Some(Signal::SIGKILL as i32);
                if died && self.died()? {
                    self.outcome.snapshot = self.snapshot().await?;
                } else {
                    ensure!(status.success(), "it ended with {status}");
                }
                self.child = None;
                return Ok(());
            }
            self.tend()?;
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn read(&self) -> Result<Contents, StoreError> {
        let store = Store::connect(&self.place).await?;
        let read = async {
            let all = store.replacements().await?;
            let servers = by_name(store.servers().await?);
            Ok((all, servers, store.status().await?.leases))
        };
        let read = read.await;
        store.close().await;
        read
    }

    /// The store as it is when nobody works with it, and all that holds whatever the story.
    async fn sound(&self) -> anyhow::Result<(Vec<Replacement>, BTreeMap<String, ServerView>)> {
        let begun = Instant::now();
        let (all, servers, leases) = loop {
            match self.read().await {
                Ok(read) => break read,
                // The server ends sessions of whoever does not get to run for seconds.
                Err(e) if e.is_away() && begun.elapsed() < LIMIT => {}
                Err(e) => return Err(e.into()),
            }
        };
        ensure!(leases.is_empty(), "still in hand: {leases:?}");
        if let Place::File(file) = &self.place {
            let url = format!("sqlite://{}", file.display());
            let mut connection = sqlx::AnyConnection::connect(&url).await?;
            let row = sqlx::query("PRAGMA integrity_check")
                .fetch_one(&mut connection)
                .await?;
            let said: String = row.try_get(0)?;
            ensure!(said == "ok", "the store is broken: {said}");
            connection.close().await?;
        }
        for s in servers.values() {
            // What is in hand, and nobody has in hand, is lost.
            let at_rest = matches!(
                s.state,
                ServerState::Ready
                    | ServerState::Standby
                    | ServerState::Serving
                    | ServerState::Failed
                    | ServerState::Quarantined
            );
            ensure!(at_rest, "{} is leaked: {s:#?}", s.server.name);
        }
        for r in &all {
            ensure!(!r.state.is_live(), "left in the middle: {r:#?}");
            let open = r.steps.iter().find(|s| s.ended_ms.is_none());
            ensure!(open.is_none(), "its journal has no end of {open:#?}");
        }
        Ok((all, servers))
    }

    async fn look_sound(&self) -> anyhow::Result<()> {
        let store = Store::connect(&self.place).await?;
        let status = store.status().await;
        store.close().await;
        let status = status?;
        ensure!(
            status.migrated == status.migrations,
            "{} of {} migrations",
            status.migrated,
            status.migrations
        );
        self.sound().await?;
        Ok(())
    }

    /// Which scripts ran on a spare, in order.
    fn ran(&self, spare: &str) -> Vec<String> {
        let text = fs::read_to_string(self.lab.world(spare, "runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What holds of a replacement that succeeded, and of the spare that it took.
    fn look_replaced(
        &self,
        r: &Replacement,
        servers: &BTreeMap<String, ServerView>,
        spare: &str,
    ) -> anyhow::Result<()> {
        let serving: Vec<_> = SPARES
            .into_iter()
            .filter(|s| servers[*s].state == ServerState::Serving)
            .collect();
        ensure!(serving == [spare], "in service: {serving:?}");
        let view = &servers[spare];
        ensure!(
            view.role.as_deref() == Some(ROLE)
                && view.by_replacement.as_deref() == Some(r.id.as_str()),
            "{view:#?}"
        );
        ensure!(
            servers[FAILED].state == ServerState::Failed && servers[FAILED].role.is_none(),
            "{:#?}",
            servers[FAILED]
        );
        ensure!(servers["web2"].state == ServerState::Serving);
        let ran = self.ran(spare);
        ensure!(
            ran == ["storage", "web", "web ended"],
            "ran on {spare}: {ran:?}"
        );
        let file = fs::read_to_string(self.lab.world(spare, "web.conf"))?;
        ensure!(file == format!("{ROLE} on {spare}\n"), "{file}");
        let runs = |software| self.lab.world(spare, &format!("{software}-runs")).exists();
        ensure!(runs("storage") && runs("web"), "not started");
        Ok(())
    }

    fn look_steps(r: &Replacement, spare: &str) -> anyhow::Result<()> {
        let of = r.steps.iter().filter(|s| s.server == spare);
        let steps: Vec<_> = of.map(|s| (s.step.as_str(), s.state.as_str())).collect();
        let wanted = [
            "fence",
            "os",
            "install:storage",
            "install:web",
            "configure:storage",
            "configure:web",
            "test",
        ];
        ensure!(steps == wanted.map(|s| (s, "done")), "{steps:#?}");
        Ok(())
    }

    async fn look_plain(&self, r: &Replacement) -> anyhow::Result<()> {
        let (all, servers) = self.sound().await?;
        ensure!(all.len() == 1 && all[0].id == r.id, "{all:#?}");
        self.look_replaced(&all[0], &servers, SPARES[0])?;
        Self::look_steps(&all[0], SPARES[0])?;
        ensure!(all[0].passed_over.is_empty(), "{:#?}", all[0].passed_over);
        ensure!(servers[SPARES[1]].state == ServerState::Ready);
        let ran = self.ran(SPARES[1]);
        ensure!(ran.is_empty(), "ran on the other spare: {ran:?}");
        Ok(())
    }

    async fn look_broken(&self, r: &Replacement) -> anyhow::Result<()> {
        let (all, servers) = self.sound().await?;
        ensure!(all.len() == 1 && all[0].id == r.id, "{all:#?}");
        self.look_replaced(&all[0], &servers, SPARES[1])?;
        Self::look_steps(&all[0], SPARES[1])?;
        let broken = &servers[SPARES[0]];
        let why = broken.reason.as_deref().unwrap_or_default();
        ensure!(
            broken.state == ServerState::Quarantined
                && why.starts_with("install:web: script_failed: "),
            "{broken:#?}"
        );
        let ran = self.ran(SPARES[0]);
        ensure!(
            ran == ["storage", "web", "web ended"],
            "ran on the first: {ran:?}"
        );
        let over: Vec<_> = all[0]
            .passed_over
            .iter()
            .map(|p| p.server.as_str())
            .collect();
        ensure!(over == [SPARES[0]], "{over:?}");
        Ok(())
    }

    async fn look_cancelled(&self, id: &ReplacementId) -> anyhow::Result<()> {
        let (all, servers) = self.sound().await?;
        let of = all.iter().find(|r| r.id == *id).context("it is listed")?;
        ensure!(of.state == ReplacementState::Cancelled, "{of:#?}");
        ensure!(servers[FAILED].role.as_deref() == Some(ROLE));
        for spare in SPARES {
            ensure!(servers[spare].state == ServerState::Ready, "{servers:#?}");
        }
        let ran = self.ran(SPARES[0]);
        ensure!(
            ran == ["storage", "web", "web ended", "clean"],
            "ran: {ran:?}"
        );
        let ran = self.ran(SPARES[1]);
        ensure!(ran.is_empty(), "ran on the other spare: {ran:?}");
        Ok(())
    }

    async fn look_warm(&self, r: &Replacement) -> anyhow::Result<()> {
        let (all, servers) = self.sound().await?;
        let of = all.iter().find(|a| a.id == r.id).context("it is listed")?;
        self.look_replaced(of, &servers, SPARES[0])?;
        ensure!(of.steps.is_empty(), "{:#?}", of.steps);
        let next = &servers[SPARES[1]];
        ensure!(next.state == ServerState::Standby, "{next:#?}");
        let ran = self.ran(SPARES[1]);
        ensure!(
            ran == ["storage", "web", "web ended"],
            "ran on the next: {ran:?}"
        );
        Ok(())
    }
}

fn by_name(all: Vec<ServerView>) -> BTreeMap<String, ServerView> {
    all.into_iter()
        .map(|s| (s.server.name.clone(), s))
        .collect()
}

/// Which sides of a step deaths were on: right before it, right after it.
pub(crate) type Sides = BTreeMap<String, [bool; 2]>;

impl Outcome {
    /// Adds the side of a step on which this death was.
    pub(crate) fn side(&self, when: When, sides: &mut Sides) {
        for (step, state) in &self.snapshot {
            let sides = sides.entry(step.clone()).or_default();
            let running = state == "running";
            // The end of the step before it was written, then that this one begins: nothing was sent since.
            sides[0] |= running && when == When::After && self.wrote_twice;
            // Its last packet was sent, and its end was to be written.
            sides[1] |= running && when == When::Before && self.wrote_after_a_packet;
        }
    }
}
