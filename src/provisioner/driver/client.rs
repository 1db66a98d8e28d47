//! HTTP to a driver or a controller: a connection for each request, because controllers have few and
//! forget them.

use std::{io, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::error;
use crate::{
    model::{TlsOptions, machine::Door, machine::Url},
    prepare,
    provisioner::order::{Class, StepError},
    telemetry::Chain,
};

/// A description of a system has tens of kilobytes.
const MOST_ANSWER: usize = 1 << 20;
/// Controllers are slow, and some fetch the image's head before they answer.
const LIMIT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);

const AGENT: &str = concat!("understudy/", env!("CARGO_PKG_VERSION"));

/// What was answered, whatever it means.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// A header that is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// One of them.
#[derive(Clone)]
pub(super) struct Client {
    url: Url,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Whom errors are about: `the controller of web7`.
    pub(super) who: String,
}

impl Client {
    /// Reads this host's certificate authorities where they are needed.
    pub(super) async fn open(door: &Door, who: String) -> Result<Self, StepError> {
        let url = door.url.clone();
        if !url.secure {
            let tls = None;
            return Ok(Self { url, tls, who });
        }
        let options = TlsOptions {
            verify: door.verify(),
            ..TlsOptions::default()
        };
        let unusable = |what: String| {
            let detail = format!("TLS to {who} cannot be set up: {what}");
            error(Class::Local, "tls_unusable", detail)
        };
        let config =
            tokio::task::spawn_blocking(move || prepare::tls_client(&options, &[b"http/1.1"]))
                .await
                .map_err(|e| unusable(e.to_string()))?
                .map_err(|e| unusable(Chain(&e).to_string()))?;
        let name = ServerName::try_from(url.host.clone()).map_err(|_bad| {
            let detail = format!("{:?} of {who} is no server name", url.host);
            error(Class::Permanent, "bad_url", detail)
        })?;
        let tls = Some((Arc::new(config), name));
        Ok(Self { url, tls, who })
    }

    /// Asks. `path` begins with a slash; a relative one of the driver's own `url` stands after its base.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<&serde_json::Value>,
    ) -> Result<Answer, StepError> {
        let line = self.connect().await?;
        line.ask(method, path, headers, body).await
    }

    /// Connects, so that one request can be sent at once.
    pub(super) async fn connect(&self) -> Result<Line<'_>, StepError> {
        match timeout(LIMIT, self.open_line()).await {
            Ok(line) => line,
            Err(_elapsed) => {
                Err(self.silent(format!("no connection within {} s", LIMIT.as_secs())))
            }
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<&serde_json::Value>,
    ) -> Result<Request<Full<Bytes>>, StepError> {
        let bad = |what: String| {
            let detail = format!("{path:?} cannot be asked of {}: {what}", self.who);
            error(Class::Permanent, "bad_request", detail)
        };
        let bytes = match body {
            None => Bytes::new(),
            Some(json) => serde_json::to_vec(json)
                .map_err(|e| bad(e.to_string()))?
                .into(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.url.authority)
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let mut request = request
            .body(Full::new(bytes))
            .map_err(|e| bad(e.to_string()))?;
        request.headers_mut().extend(headers);
        Ok(request)
    }

    async fn open_line(&self) -> Result<Line<'_>, StepError> {
        let connecting = TcpStream::connect((self.url.host.as_str(), self.url.port));
        let stream = match timeout(CONNECT, connecting).await {
            Err(_elapsed) => {
                return Err(self.silent(format!("no connection within {} s", CONNECT.as_secs())));
            }
            Ok(Err(e)) => return Err(self.unreachable(&e)),
            Ok(Ok(stream)) => stream,
        };
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name.clone(), stream).await;
                Box::new(stream.map_err(|e| self.distrusted(&e))?)
            }
        };
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(&e))?;
        let client = self;
        Ok(Line {
            client,
            sender,
            driver,
        })
    }

    fn broken(&self, e: &hyper::Error) -> StepError {
        self.silent(format!("the connection broke: {}", Chain(e)))
    }

    fn silent(&self, what: String) -> StepError {
        let detail = format!("{} at {} cannot be asked: {what}", self.who, self.url);
        error(Class::Transient, "driver_silent", detail)
    }

    fn unreachable(&self, e: &io::Error) -> StepError {
        let local = matches!(
            e.raw_os_error().map(Errno::from_raw),
            Some(
                Errno::ENETUNREACH
                    | Errno::EADDRNOTAVAIL
                    | Errno::EMFILE
                    | Errno::ENFILE
                    | Errno::ENOBUFS
            )
        );
        match local {
            true => error(
                Class::Local,
                "local_fault",
                format!(
                    "this host cannot connect to {} at {}: {e}",
                    self.who, self.url
                ),
            ),
            false => self.silent(e.to_string()),
        }
    }

    /// A certificate that is not the one is no matter of time.
    fn distrusted(&self, e: &io::Error) -> StepError {
        let fault = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        match fault {
            Some(rustls::Error::InvalidCertificate(_)) => {
                let detail = format!(
                    "the certificate of {} at {} is not trusted ({e}): if it is the right one, pin \
                     it with pin_sha256 in servers.toml; openssl s_client -connect {}:{} shows it",
                    self.who, self.url, self.url.host, self.url.port
                );
                error(Class::Permanent, "driver_distrusted", detail)
            }
            _ => self.silent(format!("no TLS with it: {e}")),
        }
    }
}

/// What a connection goes over.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection, for one request.
pub(super) struct Line<'a> {
    client: &'a Client,
    sender: http1::SendRequest<Full<Bytes>>,
    driver: http1::Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>,
}

impl Line<'_> {
    /// Asks, as [`Client::ask`] does.
    pub(super) async fn ask(
        self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<&serde_json::Value>,
    ) -> Result<Answer, StepError> {
        let client = self.client;
        let request = client.request(method, path, headers, body)?;
        match timeout(LIMIT, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(client.silent(format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    async fn exchange(self, request: Request<Full<Bytes>>) -> Result<Answer, StepError> {
        let Self {
            client,
            mut sender,
            driver,
        } = self;
        let answer = async {
            let answer = sender.send_request(request).await;
            let (head, body) = answer.map_err(|e| client.broken(&e))?.into_parts();
            let body = Limited::new(body, MOST_ANSWER)
                .collect()
                .await
                .map_err(|e| client.silent(format!("its answer was not read to its end: {e}")))?;
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes(),
            })
        };
        tokio::pin!(answer, driver);
        tokio::select! {
            biased;
            done = &mut answer => done,
            // It ended with the answer, or broke: `answer` says so.
            _end = &mut driver => answer.await,
        }
    }
}

/// A value that is shown nowhere.
pub(super) fn secret_value(text: &str) -> Result<HeaderValue, StepError> {
    let mut value = HeaderValue::from_str(text).map_err(|_bad| {
        let detail = "the credential has characters that no HTTP header may have";
        error(Class::Local, "credential_unusable", detail)
    })?;
    value.set_sensitive(true);
    Ok(value)
}
