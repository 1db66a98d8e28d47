//! A server's management controller, over Redfish (DMTF DSP0266). [`mod@decide`] says what is asked next,
//! [`words`] how it is put; both are PURE. Here is what asks.

pub mod decide;
pub mod words;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    Method, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderName, IF_MATCH},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{info, warn};

use super::{
    At, Driver, Hold, Job, Leave, Ledger, Progress,
    client::{Answer, Client, secret_value},
    error,
};
use crate::{
    model::{
        inventory::Server,
        machine::{Boot, Login, Redfish},
    },
    provisioner::order::{Class, StepError},
};
use decide::{Next, Phase, Power, Reading, Request, State, decide, left};
use words::{Change, Drive, Links, System};

const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";

/// Virtual drives looked at until one takes a CD: controllers have up to four.
const MOST_DRIVES: usize = 16;

/// One installation by way of a controller.
pub(super) struct Run<'a> {
    client: Client,
    options: &'a Redfish,
    user: String,
    password: String,
    session: Option<Session>,
    /// The virtual drive's path, once it is known.
    drive: Option<String>,
    state: State,
    /// It has refused a request that names more properties than it must.
    plain: bool,
    patience: u32,
    /// What the controller said last of a request that it refused.
    refusal: Option<String>,
    /// Power was seen off, and nobody answered in the machine's name.
    silent: bool,
    /// What is left at the end, and boots nothing by itself.
    left: Option<String>,
}

/// Name and password in exchange for a token.
struct Session {
    token: String,
    place: Option<String>,
}

/// What was read, and what is needed to change it.
struct Found {
    reading: Reading,
    system: System,
    etag: Option<String>,
    drive: Option<(String, Drive)>,
}

impl<'a> Run<'a> {
    pub(super) async fn open(
        server: &Server,
        options: &'a Redfish,
        (user, password): (String, String),
        begun: Option<String>,
        patience: u32,
    ) -> Result<Self, StepError> {
        let who = format!("the controller of {}", server.name);
        let phase = begun.as_deref().and_then(Phase::from_word);
        Ok(Self {
            client: Client::open(&options.door, who).await?,
            options,
            user,
            password,
            session: None,
            drive: options.media.clone(),
            state: State::at(phase.unwrap_or(Phase::Stopping)),
            plain: false,
            patience,
            refusal: None,
            silent: phase.is_some_and(|p| p != Phase::Stopping),
            left: None,
        })
    }

    /// Reads power, override and, where the image comes from one, the virtual drive.
    async fn read(&mut self, media: bool) -> Result<Found, StepError> {
        let answer = self.get(&self.options.system).await?;
        let header = answer.header("etag").map(str::to_owned);
        let system: System = self.document(&answer, &self.options.system)?;
        let drive = match media {
            false => None,
            true => Some(self.virtual_drive(&system).await?),
        };
        Ok(Found {
            reading: words::reading(&system, drive.as_ref().map(|(_, d)| d)),
            etag: header.or_else(|| system.etag.clone()),
            system,
            drive,
        })
    }

    async fn virtual_drive(&mut self, system: &System) -> Result<(String, Drive), StepError> {
        if let Some(path) = self.drive.clone() {
            let drive = self.fetch(&path).await?;
            return Ok((path, drive));
        }
        let (listed, manager) = words::drives_of(system);
        let list = match (listed, manager) {
            (Some(list), _) => Some(list.to_owned()),
            (None, Some(manager)) => self.fetch::<Links>(manager).await?.media.map(|l| l.id),
            (None, None) => None,
        };
        let members = match &list {
            Some(list) => self.fetch::<Links>(list).await?.members,
            None => Vec::new(),
        };
        for member in members.into_iter().take(MOST_DRIVES) {
            let drive: Drive = self.fetch(&member.id).await?;
            if drive.is_cd() {
                self.drive = Some(member.id.clone());
                return Ok((member.id, drive));
            }
        }
        let detail = format!(
            "{} names no virtual CD drive: name it with `media` in the driver of servers.toml, or \
             let the image boot by PXE",
            self.client.who
        );
        Err(error(Class::Permanent, "no_virtual_media", detail))
    }

    async fn fetch<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, StepError> {
        let answer = self.get(path).await?;
        self.document(&answer, path)
    }

    async fn get(&mut self, path: &str) -> Result<Answer, StepError> {
        let answer = self.ask(path).await?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(self.refused("GET", path, &answer)),
        }
    }

    fn document<T: DeserializeOwned>(&self, answer: &Answer, path: &str) -> Result<T, StepError> {
        serde_json::from_slice(&answer.body).map_err(|e| {
            let detail = format!("{path} of {} is not understood: {e}", self.client.who);
            error(Class::Transient, "bmc_garbled", detail)
        })
    }

    /// Asks what changes nothing, within a session that is opened anew where it has expired.
    async fn ask(&mut self, path: &str) -> Result<Answer, StepError> {
        let mut fresh = false;
        loop {
            let headers = self.proved(&mut fresh).await?;
            let answer = self.client.ask(Method::GET, path, headers, None).await?;
            if !self.has_expired(&answer) || fresh {
                return Ok(answer);
            }
            self.session = None;
        }
    }

    fn has_expired(&self, answer: &Answer) -> bool {
        answer.status == StatusCode::UNAUTHORIZED && self.session.is_some()
    }

    /// Name and password, or a session's token. `fresh`: the session was opened for this.
    async fn proved(&mut self, fresh: &mut bool) -> Result<HeaderMap, StepError> {
        let mut headers = HeaderMap::new();
        match self.options.login {
            Login::Basic => {
                let word = format!("{}:{}", self.user, self.password);
                let word = format!("Basic {}", BASE64_STANDARD.encode(word));
                headers.insert(AUTHORIZATION, secret_value(&word)?);
            }
            Login::Session => {
                if self.session.is_none() {
                    self.session = Some(self.log_in().await?);
                    *fresh = true;
                }
                if let Some(session) = &self.session {
                    headers.insert(TOKEN, secret_value(&session.token)?);
                }
            }
        }
        Ok(headers)
    }

    async fn log_in(&self) -> Result<Session, StepError> {
        let body = json!({ "UserName": self.user, "Password": self.password });
        let asked = self
            .client
            .ask(Method::POST, SESSIONS, HeaderMap::new(), Some(&body));
        let answer = asked.await?;
        match (answer.status.is_success(), answer.header("x-auth-token")) {
            (true, Some(token)) => Ok(Session {
                token: token.to_owned(),
                place: answer.header("location").map(str::to_owned),
            }),
            (true, None) => {
                let detail = format!("{} opened a session without a token", self.client.who);
                Err(error(Class::Permanent, "bmc_garbled", detail))
            }
            (false, _) => Err(self.refused("POST", SESSIONS, &answer)),
        }
    }

    /// Gives the session back: controllers have few.
    async fn log_out(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        // Some give a whole URL.
        let path = session.place.as_deref().map(|place| {
            let after = place.split_once("://").map_or(place, |(_, rest)| {
                rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
            });
            after.to_owned()
        });
        let (Some(path), Ok(token)) = (path, secret_value(&session.token)) else {
            return;
        };
        let headers = HeaderMap::from_iter([(TOKEN, token)]);
        let closed = self.client.ask(Method::DELETE, &path, headers, None).await;
        if let Err(e) = closed {
            info!(reason = %e, "a controller's session is left to expire");
        }
    }

    /// Makes a request that changes something.
    async fn request<L: Ledger>(
        &mut self,
        request: Request,
        boot: &Boot,
        found: &Found,
        hold: &Hold<'_, L>,
        leave: Leave<'_>,
    ) -> Result<(), StepError> {
        let drive = found.drive.as_ref().map(|(path, d)| (path.as_str(), d));
        let system = (self.options.system.as_str(), &found.system);
        let Some(change) = words::change(request, boot, self.options.boot_mode, system, drive)
        else {
            return Ok(());
        };
        let body = match (self.plain, &change.instead) {
            (true, Some(instead)) => instead,
            _ => &change.body,
        };
        let etag = found.etag.as_deref();
        let mut answer = self.make(&change, body, etag, hold, leave).await?;
        if let (false, StatusCode::BAD_REQUEST, Some(instead)) =
            (self.plain, answer.status, &change.instead)
        {
            self.plain = true;
            answer = self.make(&change, instead, etag, hold, leave).await?;
        }
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(self.refused("", &change.path, &answer)),
        }
    }

    /// Logs in, connects, and only then asks for leave: nothing is left but to send it.
    async fn make<L: Ledger>(
        &mut self,
        change: &Change,
        body: &serde_json::Value,
        etag: Option<&str>,
        hold: &Hold<'_, L>,
        leave: Leave<'_>,
    ) -> Result<Answer, StepError> {
        let method = match change.patch {
            true => Method::PATCH,
            false => Method::POST,
        };
        let mut fresh = false;
        loop {
            let mut headers = self.proved(&mut fresh).await?;
            if let (true, Some(etag)) = (change.patch, etag)
                && let Ok(etag) = etag.parse()
            {
                headers.insert(IF_MATCH, etag);
            }
            let line = self.client.connect().await?;
            hold.leave(leave).await?;
            let answer = line.ask(method.clone(), &change.path, headers, Some(body));
            let answer = answer.await?;
            if !self.has_expired(&answer) || fresh {
                return Ok(answer);
            }
            self.session = None;
        }
    }

    fn refused(&self, verb: &str, path: &str, answer: &Answer) -> StepError {
        let status = answer.status;
        let said = words::complaint(&answer.body);
        let who = &self.client.who;
        let (class, code, remedy) = match status.as_u16() {
            401 | 403 => (
                Class::Permanent,
                "bmc_auth_refused",
                "look at the credential, and whether the account is locked",
            ),
            404 => (
                Class::Permanent,
                "bmc_no_such_resource",
                "look at `system` and `media` in servers.toml",
            ),
            408 | 409 | 412 | 423 | 425 | 429 | 500 | 502..=599 => {
                (Class::Transient, "bmc_busy", "it is asked again")
            }
            _ => (
                Class::Permanent,
                "bmc_refused",
                "look whether it needs or refuses `boot_mode`",
            ),
        };
        let detail = format!("{who} answers {status} to {verb} {path}: {said}; {remedy}");
        error(class, code, detail)
    }

    fn stuck(&self, request: Request) -> StepError {
        let who = &self.client.who;
        let said = self.refusal.as_deref().unwrap_or("it did not refuse");
        let (code, what) = match request {
            Request::PowerOff => (
                "power_stuck",
                "does not power the machine off, or not for long",
            ),
            Request::PowerOn => ("power_stuck", "does not power the machine on"),
            Request::Insert | Request::Eject => (
                "media_stuck",
                "does not change what is in its virtual drive",
            ),
            Request::ClearOverride => (
                "boot_override_left",
                "keeps the boot override, which would wipe the machine when it boots next: clear it by hand",
            ),
            Request::Override => (
                "boot_override_ignored",
                "takes the boot override and does not show it: some need `boot_mode` in servers.toml",
            ),
        };
        let detail = format!("{who} {what} ({said})");
        error(Class::Permanent, code, detail)
    }
}

impl Driver for Run<'_> {
    async fn look(&mut self) -> Result<(), StepError> {
        let path = self.options.system.clone();
        let looked = self.fetch::<System>(&path).await;
        self.log_out().await;
        looked.map(drop)
    }

    async fn poll<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
        answers: bool,
    ) -> Result<Progress, StepError> {
        let boot = &job.image.boot;
        let found = self.read(hold.media).await.inspect_err(|_failed| {
            self.state = self.state.unseen();
        })?;
        let before = self.state;
        let off = before.phase == Phase::Stopping && found.reading.power == Power::Off;
        if off && !self.silent {
            return Ok(Progress::Off);
        }
        let (state, next) = decide(before, &found.reading, boot, answers, self.patience);
        for request in [Request::ClearOverride, Request::Eject] {
            if state.has_given_up(request) && !before.has_given_up(request) {
                self.warn_of(request);
            }
        }
        let at = At {
            word: state.phase.as_str(),
            ahead: state.phase.is_ahead(),
            // Power is off: what comes now is the wiping.
            wiped: state.phase != Phase::Stopping,
        };
        // Also without a request: a restart goes on from here.
        if state.phase != before.phase && !matches!(next, Next::Ask(_)) {
            hold.note(at).await?;
        }
        self.state = state;
        match next {
            Next::Ask(request) => {
                info!(
                    controller = self.client.who,
                    ?request,
                    "controller is asked"
                );
                let asked = self.request(request, boot, &found, hold, Leave::Note(at));
                match asked.await {
                    Ok(()) => {}
                    Err(e) if e.class == Class::Permanent && self.state.refused(request) => {
                        warn!(reason = %e, "controller refuses");
                        self.refusal = Some(e.detail);
                        if self.state.has_given_up(request) {
                            self.warn_of(request);
                        }
                    }
                    Err(e) => {
                        if e.class == Class::Transient {
                            self.state = self.state.unasked();
                        }
                        return Err(e);
                    }
                }
                Ok(self.progress())
            }
            Next::Wait | Next::Boots => Ok(self.progress()),
            Next::Done => {
                self.left = left(&found.reading).next().map(|_image| {
                    format!(
                        "{} keeps an image in its virtual drive: take it out",
                        self.client.who
                    )
                });
                Ok(Progress::Done)
            }
            Next::Stuck(request) => Err(self.stuck(request)),
        }
    }

    fn is_silent(&mut self) {
        self.silent = true;
    }

    fn left(&self) -> Option<String> {
        self.left.clone()
    }

    async fn cancel<L: Ledger>(&mut self, hold: &Hold<'_, L>) -> Result<(), StepError> {
        let mut result = Ok(());
        // Each by a reading of its own: the first may change the ETag that the second needs.
        for request in [Request::ClearOverride, Request::Eject] {
            let found = self.read(hold.media).await?;
            if left(&found.reading).any(|r| r == request) {
                // What is put away does not ask what was booted.
                let asked = self.request(request, &Boot::Pxe, &found, hold, Leave::Tidy);
                result = result.and(asked.await);
            }
        }
        result?;
        let found = self.read(hold.media).await?;
        match left(&found.reading).next() {
            None => Ok(()),
            Some(request) => {
                let detail = format!("{} shows no effect of {request:?} yet", self.client.who);
                Err(error(Class::Transient, "boot_override_left", detail))
            }
        }
    }

    /// Gives the session back: controllers have few.
    async fn leave(&mut self) {
        self.log_out().await;
    }
}

impl Run<'_> {
    fn warn_of(&self, request: Request) {
        let what = match request {
            Request::Eject => "its virtual drive keeps the image",
            _ => "it keeps the boot override: the machine would be wiped when it boots next",
        };
        warn!(
            controller = self.client.who,
            "an installation cannot be put away: {what}"
        );
    }

    fn progress(&self) -> Progress {
        let text = self.state.phase.as_str().to_owned();
        match self.state.phase {
            Phase::Stopping | Phase::Loading | Phase::Starting | Phase::Waking => {
                Progress::Works(text)
            }
            Phase::Installing | Phase::Unloading | Phase::Returning => Progress::Boots(text),
        }
    }
}
