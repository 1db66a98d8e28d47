//! A driver of the site's own over HTTP: what asks. [`protocol`](super::protocol) says what answers
//! mean.

use hyper::{
    Method,
    body::Bytes,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    At, Driver, Hold, Job, Leave, Ledger, Progress,
    client::{Client, secret_value},
    error,
    protocol::{Begin, Said, VERSION, greeted, is_id, progress, said},
};
use crate::{
    model::{inventory::Server, machine::HttpDriver},
    provisioner::order::{Class, StepError},
};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Noted before the driver is asked to begin: it may have begun or not.
const ASKED: &str = "?";

/// One installation by way of a site's driver.
pub(super) struct Run<'a> {
    client: Client,
    options: &'a HttpDriver,
    server: &'a str,
    token: HeaderValue,
    /// The driver's name for it, once it has begun.
    id: Option<String>,
    /// It may have begun.
    asked: bool,
}

impl<'a> Run<'a> {
    pub(super) async fn open(
        server: &'a Server,
        options: &'a HttpDriver,
        secret: &[u8],
        begun: Option<String>,
    ) -> Result<Self, StepError> {
        let who = format!("the driver of {}", server.name);
        let token = String::from_utf8_lossy(secret);
        Ok(Self {
            client: Client::open(&options.door, who).await?,
            options,
            server: &server.name,
            token: secret_value(&format!("Bearer {token}"))?,
            asked: begun.is_some(),
            id: begun.filter(|id| is_id(id)),
        })
    }

    /// Asks what changes nothing.
    async fn get(&self, path: &str) -> Result<(u16, Bytes), StepError> {
        let (headers, path) = (self.headers(None)?, self.path(path));
        let answer = self.client.ask(Method::GET, &path, headers, None).await?;
        Ok((answer.status.as_u16(), answer.body))
    }

    /// Asks what changes something: it is written down when nothing is left but to send it.
    async fn post<L: Ledger>(
        &self,
        hold: &Hold<'_, L>,
        leave: Leave<'_>,
        (path, key): (&str, Option<&str>),
        body: Option<&serde_json::Value>,
    ) -> Result<(u16, Bytes), StepError> {
        let (headers, path) = (self.headers(key)?, self.path(path));
        let line = self.client.connect().await?;
        hold.leave(leave).await?;
        let answer = line.ask(Method::POST, &path, headers, body).await?;
        Ok((answer.status.as_u16(), answer.body))
    }

    fn headers(&self, key: Option<&str>) -> Result<HeaderMap, StepError> {
        let mut headers = HeaderMap::from_iter([(AUTHORIZATION, self.token.clone())]);
        if let Some(key) = key {
            headers.insert(KEY, secret_value(key)?);
        }
        Ok(headers)
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.options.door.url.base)
    }

    /// Begins it, or finds what was begun with this key.
    async fn begin<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
    ) -> Result<Progress, StepError> {
        let order = Begin::new(&self.options.machine, self.server, job.image, hold.fence());
        // A struct of texts and numbers always has a JSON.
        let order = serde_json::to_value(order).unwrap_or_default();
        let path = format!("/v{VERSION}/installations");
        let noted = Leave::Note(At {
            word: ASKED,
            ahead: true,
            wiped: false,
        });
        self.asked = true;
        let asked = self.post(hold, noted, (&path, Some(job.name)), Some(&order));
        let (status, body) = asked.await?;
        let who = &self.client.who;
        match said(who, status, &body)? {
            Said::Installation(found) if is_id(&found.id) => {
                // Under way: the host keys go with the disk.
                hold.note(At {
                    word: &found.id,
                    ahead: false,
                    wiped: true,
                })
                .await?;
                let went = progress(who, &found);
                self.id = Some(found.id);
                went
            }
            Said::Installation(found) => {
                let detail = format!("{who} names an installation {:?}, which is no id", found.id);
                Err(error(Class::Permanent, "driver_garbled", detail))
            }
            Said::Forgotten => {
                let detail =
                    format!("{who} answers {status} to POST {path}: look at `url` in servers.toml");
                Err(error(Class::Permanent, "driver_refused", detail))
            }
        }
    }
}

impl Driver for Run<'_> {
    async fn look(&mut self) -> Result<(), StepError> {
        let (status, body) = self.get("/").await?;
        greeted(&self.client.who, status, &body)
    }

    async fn start<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
    ) -> Result<(), StepError> {
        self.look().await?;
        if self.id.is_none() {
            self.begin(job, hold).await?;
        }
        Ok(())
    }

    async fn poll<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
        _answers: bool,
    ) -> Result<Progress, StepError> {
        let Some(id) = self.id.clone() else {
            return self.begin(job, hold).await;
        };
        let path = format!("/v{VERSION}/installations/{id}");
        let (status, body) = self.get(&path).await?;
        match said(&self.client.who, status, &body)? {
            Said::Installation(found) => progress(&self.client.who, &found),
            Said::Forgotten => {
                self.id = None;
                self.begin(job, hold).await
            }
        }
    }

    async fn cancel<L: Ledger>(&mut self, hold: &Hold<'_, L>) -> Result<(), StepError> {
        if let Some(id) = self.id.clone() {
            let path = format!("/v{VERSION}/installations/{id}/cancel");
            let asked = self.post(hold, Leave::Tidy, (&path, None), None);
            let (status, body) = asked.await?;
            return said(&self.client.who, status, &body).map(drop);
        }
        if !self.asked {
            return Ok(());
        }
        // The request may be on its way still: the driver is told what it is not to begin.
        let path = format!("/v{VERSION}/cancellations");
        let asked = self.post(hold, Leave::Tidy, (&path, Some(hold.job)), None);
        let (status, body) = asked.await?;
        match said(&self.client.who, status, &body)? {
            Said::Installation(_) => Ok(()),
            Said::Forgotten => {
                let who = &self.client.who;
                let detail = format!(
                    "{who} cannot cancel {} by its key: look whether it installs {}",
                    hold.job, self.server
                );
                Err(error(Class::Permanent, "driver_uncancelled", detail))
            }
        }
    }
}
