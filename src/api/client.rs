//! One HTTP request over a Unix socket or a loopback port.

use std::{fmt, io, path::PathBuf, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::{config::Endpoint, model::wire::Problem};

/// Answers are small: a list of some hundred servers is far below.
const MAX_ANSWER: usize = 16 << 20;

/// Connecting to a local socket.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody could be reached.
    #[error("{at} cannot be reached")]
    Unreachable {
        /// Where.
        at: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("{at} did not answer within {limit:?}")]
    TimedOut {
        /// Where.
        at: Endpoint,
        /// The limit.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the connection to {at} broke before the answer")]
    Broken {
        /// Where.
        at: Endpoint,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is an error.
    #[error("{}: {}", .0.code, .0.detail)]
    Problem(Box<Problem>),
    /// The answer is not what this program knows.
    #[error("{at} gave an answer that this version does not understand: are both of one version?")]
    Foreign {
        /// Where.
        at: Endpoint,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// The problem document, if that is what it is.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(p) => Some(p),
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::Foreign { .. } => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(p) => write!(f, "{}", p.display()),
            Self::Tcp(a) => write!(f, "{a}"),
        }
    }
}

/// Asks one API.
#[derive(Clone, Debug)]
pub struct Client {
    at: Endpoint,
}

/// A request without a body.
pub const NOTHING: Option<&()> = None;

impl Client {
    /// Of the API at `at`.
    #[must_use]
    pub const fn new(at: Endpoint) -> Self {
        Self { at }
    }

    /// Of the API on a Unix socket.
    #[must_use]
    pub const fn unix(path: PathBuf) -> Self {
        Self::new(Endpoint::Unix(path))
    }

    /// Asks once, on a connection of its own, within `limit`. An empty answer reads as JSON `null`.
    ///
    /// # Errors
    ///
    /// Nobody there, no answer in time, or an answer that is an error.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<T, Error> {
        let body = match body {
            None => Bytes::new(),
            Some(b) => serde_json::to_vec(b).map_err(|e| self.broken(e))?.into(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "understudy")
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let request = request.body(Full::new(body)).map_err(|e| self.broken(e))?;
        let at = || self.at.clone();
        let (status, bytes) = timeout(limit, self.exchange(request))
            .await
            .map_err(|_elapsed| Error::TimedOut { at: at(), limit })??;
        let foreign = |source| Error::Foreign { at: at(), source };
        if !status.is_success() {
            let problem: Problem = serde_json::from_slice(&bytes).map_err(foreign)?;
            return Err(Error::Problem(Box::new(problem)));
        }
        let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(json).map_err(foreign)
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Broken {
            at: self.at.clone(),
            source: source.into(),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Error> {
        let unreachable = |source| Error::Unreachable {
            at: self.at.clone(),
            source,
        };
        let late = |_elapsed| unreachable(io::ErrorKind::TimedOut.into());
        match &self.at {
            Endpoint::Unix(p) => {
                let connected = timeout(CONNECT_LIMIT, UnixStream::connect(p))
                    .await
                    .map_err(late)?;
                self.converse(connected.map_err(unreachable)?, request)
                    .await
            }
            Endpoint::Tcp(a) => {
                let connected = timeout(CONNECT_LIMIT, TcpStream::connect(a))
                    .await
                    .map_err(late)?;
                self.converse(connected.map_err(unreachable)?, request)
                    .await
            }
        }
    }

    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        let answer = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|e| self.broken(e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|e| self.broken(e))?.to_bytes()))
        };
        tokio::pin!(connection, answer);
        tokio::select! {
            biased;
            done = &mut answer => done,
            // The connection ended with the answer, or broke: `answer` says so.
            _end = &mut connection => answer.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn an_api_that_says_nothing_is_given_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mute.sock");
        // Takes the connection into its backlog, and that is all.
        let _mute = UnixListener::bind(&path).unwrap();
        let client = Client::unix(path);
        let limit = Duration::from_millis(50);
        let ask = client.ask::<()>(Method::GET, "/", None, NOTHING, limit);
        let ended = timeout(Duration::from_secs(20), ask).await;
        let error = ended.expect("an end within the limit").unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    }
}
