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
    Driver, Hold, Job, Ledger, Progress,
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
use decide::{Next, Phase, Reading, Request, State, decide, to_put_away};
use words::{Change, Drive, Links, System};

const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";

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
        })
    }

    /// Reads power, override and, where the image comes from one, the virtual drive.
    async fn read(&mut self, boot: &Boot) -> Result<Found, StepError> {
        let answer = self.get(&self.options.system).await?;
        let header = answer.header("etag").map(str::to_owned);
        let system: System = self.document(&answer, &self.options.system)?;
        let drive = match boot {
            Boot::Pxe => None,
            Boot::VirtualMedia(_) => Some(self.virtual_drive(&system).await?),
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
        for member in members {
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
        let answer = self.ask(Method::GET, path, HeaderMap::new(), None).await?;
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

    /// Asks, with name and password or within a session, which is opened anew where it has expired.
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<&serde_json::Value>,
    ) -> Result<Answer, StepError> {
        let mut fresh = false;
        loop {
            let mut all = headers.clone();
            match self.options.login {
                Login::Basic => {
                    let word = format!("{}:{}", self.user, self.password);
                    let word = format!("Basic {}", BASE64_STANDARD.encode(word));
                    all.insert(AUTHORIZATION, secret_value(&word)?);
                }
                Login::Session => {
                    if self.session.is_none() {
                        self.session = Some(self.log_in().await?);
                        fresh = true;
                    }
                    if let Some(session) = &self.session {
                        all.insert(TOKEN, secret_value(&session.token)?);
                    }
                }
            }
            let answer = self.client.ask(method.clone(), path, all, body).await?;
            let expired = answer.status == StatusCode::UNAUTHORIZED && self.session.is_some();
            if !expired || fresh {
                return Ok(answer);
            }
            self.session = None;
        }
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

    /// Makes a request that changes something. The caller has noted it.
    async fn request(
        &mut self,
        request: Request,
        boot: &Boot,
        found: &Found,
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
        let mut answer = self.make(&change, body, found).await?;
        if let (false, StatusCode::BAD_REQUEST, Some(instead)) =
            (self.plain, answer.status, &change.instead)
        {
            self.plain = true;
            answer = self.make(&change, instead, found).await?;
        }
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(self.refused("", &change.path, &answer)),
        }
    }

    async fn make(
        &mut self,
        change: &Change,
        body: &serde_json::Value,
        found: &Found,
    ) -> Result<Answer, StepError> {
        let mut headers = HeaderMap::new();
        let method = match change.patch {
            true => Method::PATCH,
            false => Method::POST,
        };
        if let (true, Some(etag)) = (change.patch, &found.etag)
            && let Ok(etag) = etag.parse()
        {
            headers.insert(IF_MATCH, etag);
        }
        self.ask(method, &change.path, headers, Some(body)).await
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
            Request::Override | Request::ClearOverride => (
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

    async fn start<L: Ledger>(
        &mut self,
        _job: &Job<'_>,
        hold: &Hold<'_, L>,
    ) -> Result<(), StepError> {
        hold.note(self.state.phase.as_str()).await
    }

    async fn poll<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
        answers: bool,
    ) -> Result<Progress, StepError> {
        let boot = &job.image.boot;
        let found = self.read(boot).await?;
        let before = self.state.phase;
        let (state, next) = decide(self.state, &found.reading, boot, answers, self.patience);
        // Also without a request: a restart goes on from here.
        if state.phase != before || matches!(next, Next::Ask(_)) {
            hold.note(state.phase.as_str()).await?;
        }
        self.state = state;
        match next {
            Next::Ask(request) => {
                info!(
                    controller = self.client.who,
                    ?request,
                    "controller is asked"
                );
                match self.request(request, boot, &found).await {
                    Ok(()) => {}
                    Err(e) if e.class == Class::Permanent && self.state.refused(request) => {
                        warn!(reason = %e, "controller refuses");
                        self.refusal = Some(e.detail);
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
                self.log_out().await;
                Ok(Progress::Done)
            }
            Next::Stuck(request) => Err(self.stuck(request)),
        }
    }

    async fn cancel<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
    ) -> Result<(), StepError> {
        let boot = &job.image.boot;
        let found = self.read(boot).await?;
        let mut result = Ok(());
        for request in to_put_away(&found.reading) {
            if !hold.may_tidy().await {
                break;
            }
            result = result.and(self.request(request, boot, &found).await);
        }
        self.log_out().await;
        result
    }
}

impl Run<'_> {
    fn progress(&self) -> Progress {
        let text = self.state.phase.as_str().to_owned();
        match self.state.phase {
            Phase::Stopping | Phase::Loading | Phase::Starting => Progress::Works(text),
            Phase::Installing | Phase::Unloading | Phase::Returning => Progress::Boots(text),
        }
    }
}
