//! A driver of the site's own over HTTP: what asks. [`protocol`](super::protocol) says what answers
//! mean.

use hyper::{
    Method,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    Driver, Hold, Job, Ledger, Progress,
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
            id: begun.filter(|id| is_id(id)),
        })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&serde_json::Value>,
    ) -> Result<(u16, hyper::body::Bytes), StepError> {
        let mut headers = HeaderMap::from_iter([(AUTHORIZATION, self.token.clone())]);
        if let Some(key) = key {
            headers.insert(KEY, secret_value(key)?);
        }
        let path = format!("{}{path}", self.options.door.url.base);
        let answer = self.client.ask(method, &path, headers, body).await?;
        Ok((answer.status.as_u16(), answer.body))
    }

    /// Begins it, or finds what was begun with this key.
    async fn begin<L: Ledger>(
        &mut self,
        job: &Job<'_>,
        hold: &Hold<'_, L>,
    ) -> Result<Progress, StepError> {
        let order = Begin::new(&self.options.machine, self.server, job.image, hold.fence);
        // A struct of texts and numbers always has a JSON.
        let order = serde_json::to_value(order).unwrap_or_default();
        hold.note(ASKED).await?;
        let path = format!("/v{VERSION}/installations");
        let asked = self.ask(Method::POST, &path, Some(job.name), Some(&order));
        let (status, body) = asked.await?;
        let who = &self.client.who;
        match said(who, status, &body)? {
            Said::Installation(found) if is_id(&found.id) => {
                hold.note(&found.id).await?;
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
        let (status, body) = self.ask(Method::GET, "/", None, None).await?;
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
        let (status, body) = self.ask(Method::GET, &path, None, None).await?;
        match said(&self.client.who, status, &body)? {
            Said::Installation(found) => progress(&self.client.who, &found),
            Said::Forgotten => {
                self.id = None;
                self.begin(job, hold).await
            }
        }
    }

    async fn cancel<L: Ledger>(
        &mut self,
        _job: &Job<'_>,
        hold: &Hold<'_, L>,
    ) -> Result<(), StepError> {
        let Some(id) = self.id.clone() else {
            return Ok(());
        };
        if !hold.may_tidy().await {
            return Ok(());
        }
        let path = format!("/v{VERSION}/installations/{id}/cancel");
        let (status, body) = self.ask(Method::POST, &path, None, None).await?;
        said(&self.client.who, status, &body).map(|_| ())
    }
}
