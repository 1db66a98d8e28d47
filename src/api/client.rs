//! One HTTP request over a Unix socket, a loopback port, or TLS; where several answer for one thing, the one that
//! answers is kept, and the next is asked where it does not.

use std::{
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tracing::{debug, info};

use crate::{config::Endpoint, model::wire::Problem, telemetry::Chain, tls};

/// Answers are small: a list of some hundred servers is far below.
const MAX_ANSWER: usize = 16 << 20;

/// Connecting, name and handshake included.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The same where somebody else can be asked instead.
const CONNECT_QUICKLY: Duration = Duration::from_secs(2);

/// Nobody has to wait longer because the other side said so.
const LATEST: Duration = Duration::from_secs(60);

/// The place is none of those that were meant.
const MISDIRECTED: u16 = StatusCode::MISDIRECTED_REQUEST.as_u16();

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

    /// How long the other side wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.problem()?.retry_after_s?;
        Some(Duration::from_secs(seconds).min(LATEST))
    }

    /// Whether somebody else may have an answer.
    fn is_of_this_one_alone(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. } => true,
            // Its store failed, it is another fleet's, a proxy answers in its place.
            Self::Problem(p) => p.status >= 500 || p.status == MISDIRECTED,
            Self::Foreign { .. } => true,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(p) => write!(f, "{}", p.display()),
            Self::Tcp(a) => write!(f, "{a}"),
            Self::Tls { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

/// What is spoken TLS with now.
pub type Identity = watch::Receiver<Arc<tls::Client>>;

/// Asks one API. Clones share which place answered last.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where it is: several places answer alike.
    places: Arc<[Endpoint]>,
    tls: Option<Identity>,
    /// The place that is asked first.
    kept: watch::Sender<usize>,
}

/// A request without a body.
pub const NOTHING: Option<&()> = None;

/// A request as it is told to each place.
struct Told<'a> {
    method: Method,
    path: &'a str,
    key: Option<&'a str>,
    body: Bytes,
}

impl Client {
    /// Of the API at `at`.
    #[must_use]
    pub fn new(at: Endpoint) -> Self {
        Self::of([at], None)
    }

    /// Of the API on a Unix socket.
    #[must_use]
    pub fn unix(path: PathBuf) -> Self {
        Self::new(Endpoint::Unix(path))
    }

    /// Of the API at each of `places`, in turn. `tls` is for those that speak it.
    pub fn of(places: impl Into<Arc<[Endpoint]>>, tls: Option<Identity>) -> Self {
        Self {
            places: places.into(),
            tls,
            kept: watch::Sender::new(0),
        }
    }

    /// Asks, on a connection of its own, within `limit`. An empty answer reads as JSON `null`. Where a place gives no
    /// answer the next one is asked, each once: what is asked must be such that it may be told twice.
    ///
    /// # Errors
    ///
    /// Nobody there, no answer in time, or an answer that is an error: the last one's.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<T, Error> {
        let mut at = self.kept.subscribe();
        let mut kept = *at.borrow_and_update();
        let mut index = kept;
        let body = match body {
            None => Bytes::new(),
            Some(b) => serde_json::to_vec(b)
                .map_err(|e| broken(self.place(index), e))?
                .into(),
        };
        let told = Told {
            method,
            path,
            key,
            body,
        };
        let mut left = self.places.len();
        loop {
            left = left.saturating_sub(1);
            let place = self.place(index);
            let asked = tokio::select! {
                asked = self.ask_at(place, &told, limit) => asked,
                // Cancel-safe: it is asked again, elsewhere: somebody has had an answer there, and none here.
                () = moved(&mut at, kept), if left > 0 => {
                    kept = *at.borrow_and_update();
                    index = kept;
                    continue;
                }
            };
            match asked {
                Err(e) if e.is_of_this_one_alone() && left > 0 => {
                    debug!(error = %Chain(&e), "no answer here: the next place is asked");
                    index = (index + 1) % self.places.len().max(1);
                }
                Err(e) if e.is_of_this_one_alone() => return Err(e),
                answered => {
                    self.keep(index);
                    return answered;
                }
            }
        }
    }

    /// Who answered is asked first from now on, by whoever waits elsewhere too.
    fn keep(&self, index: usize) {
        let moved = self.kept.send_if_modified(|kept| {
            let differs = *kept != index;
            *kept = index;
            differs
        });
        if moved {
            info!(at = %self.place(index), "another provisioner answers: it is asked from now on");
        }
    }

    fn place(&self, index: usize) -> &Endpoint {
        const NOWHERE: &Endpoint = &Endpoint::Unix(PathBuf::new());
        self.places.get(index).unwrap_or(NOWHERE)
    }

    async fn ask_at<T: DeserializeOwned>(
        &self,
        place: &Endpoint,
        told: &Told<'_>,
        limit: Duration,
    ) -> Result<T, Error> {
        let mut request = Request::builder()
            .method(told.method.clone())
            .uri(told.path)
            .header(HOST, host(place))
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = told.key {
            request = request.header("Idempotency-Key", key);
        }
        let request = request.body(Full::new(told.body.clone()));
        let request = request.map_err(|e| broken(place, e))?;
        let at = || place.clone();
        let begun = Instant::now();
        let (status, bytes) = timeout(limit, self.exchange(place, request))
            .await
            .map_err(|_elapsed| Error::TimedOut { at: at(), limit })??;
        let elapsed_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        debug!(
            at = %place, method = %told.method, path = told.path, status = status.as_u16(), elapsed_us,
            "answered"
        );
        let foreign = |source| Error::Foreign { at: at(), source };
        if !status.is_success() {
            let problem: Problem = serde_json::from_slice(&bytes).map_err(foreign)?;
            return Err(Error::Problem(Box::new(problem)));
        }
        let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(json).map_err(foreign)
    }

    async fn exchange(
        &self,
        place: &Endpoint,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let unreachable = |source| Error::Unreachable {
            at: place.clone(),
            source,
        };
        let late = |_elapsed| unreachable(io::ErrorKind::TimedOut.into());
        let limit = match self.places.len() {
            0 | 1 => CONNECT_LIMIT,
            _ => CONNECT_QUICKLY,
        };
        match place {
            Endpoint::Unix(p) => {
                let connected = timeout(limit, UnixStream::connect(p)).await.map_err(late)?;
                converse(place, connected.map_err(unreachable)?, request).await
            }
            Endpoint::Tcp(a) => {
                let connected = timeout(limit, TcpStream::connect(a)).await.map_err(late)?;
                converse(place, connected.map_err(unreachable)?, request).await
            }
            Endpoint::Tls { host, port } => {
                let connected = timeout(limit, self.secured(host, *port));
                let connected = connected.await.map_err(late)?;
                converse(place, connected.map_err(unreachable)?, request).await
            }
        }
    }

    /// A connection with whoever proves to be `host`.
    async fn secured(
        &self,
        host: &str,
        port: u16,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let identity = self.tls.as_ref().map(|tls| tls.borrow().config());
        let identity = identity.ok_or_else(|| io::Error::other("no certificate to show"))?;
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let mut last = io::Error::other("the name has no address");
        for address in lookup_host((host, port)).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return TlsConnector::from(identity).connect(name, stream).await;
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

/// Ends when another place than `kept` is kept.
async fn moved(at: &mut watch::Receiver<usize>, kept: usize) {
    if at.wait_for(|now| *now != kept).await.is_err() {
        std::future::pending().await
    }
}

fn host(place: &Endpoint) -> String {
    match place {
        Endpoint::Unix(_) | Endpoint::Tcp(_) => "understudy".to_owned(),
        Endpoint::Tls { host, port } if host.contains(':') => format!("[{host}]:{port}"),
        Endpoint::Tls { host, port } => format!("{host}:{port}"),
    }
}

fn broken(place: &Endpoint, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Broken {
        at: place.clone(),
        source: source.into(),
    }
}

async fn converse(
    place: &Endpoint,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(place, e))?;
    let answer = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| broken(place, e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|e| broken(place, e))?.to_bytes()))
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        done = &mut answer => done,
        // The connection ended with the answer, or broke: `answer` says so.
        _end = &mut connection => answer.await,
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

    /// Answers each request with a word, and says that it was asked.
    async fn answers(listener: UnixListener, word: &'static str) {
        let router = axum::Router::new().fallback(async move || axum::Json(word));
        axum::serve(listener, router).await.unwrap();
    }

    #[tokio::test]
    async fn where_one_gives_no_answer_the_next_is_asked_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let places = ["nobody", "mute", "first", "second"].map(|n| Endpoint::Unix(path(n)));
        let _mute = UnixListener::bind(path("mute")).unwrap();
        let mut first = tokio::task::JoinSet::new();
        first.spawn(answers(UnixListener::bind(path("first")).unwrap(), "first"));
        let client = Client::of(places, None);
        let limit = Duration::from_secs(3);
        let ask = || client.ask::<String>(Method::GET, "/", None, NOTHING, limit);
        assert_eq!(ask().await.unwrap(), "first");
        assert_eq!(*client.kept.borrow(), 2, "who answered is asked first");
        first.shutdown().await;
        // Nobody: each was asked once, and what is told is told of the last.
        assert!(matches!(ask().await.unwrap_err(), Error::TimedOut { .. }));
        first.spawn(answers(
            UnixListener::bind(path("second")).unwrap(),
            "second",
        ));
        assert_eq!(ask().await.unwrap(), "second");
    }

    #[tokio::test]
    async fn who_answers_that_it_cannot_is_passed_over_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let problem = |status: u16| {
            let text = Problem::new(status, "no", "no", "no");
            (status, serde_json::to_string(&text).unwrap())
        };
        let page = "<html>Bad Gateway</html>".to_owned();
        for (n, (status, text, elsewhere)) in [
            (500, problem(500).1, true),
            (421, problem(421).1, true),
            (502, page.clone(), true),
            (200, page, true),
            (409, problem(409).1, false),
        ]
        .into_iter()
        .enumerate()
        {
            let names = [format!("bad{n}"), format!("good{n}")];
            let places = [0, 1].map(|i| Endpoint::Unix(path(&names[i])));
            let status = StatusCode::from_u16(status).unwrap();
            let mut both = tokio::task::JoinSet::new();
            let bad = UnixListener::bind(path(&names[0])).unwrap();
            both.spawn(async move {
                let router = axum::Router::new().fallback(async move || (status, text));
                axum::serve(bad, router).await.unwrap();
            });
            both.spawn(answers(
                UnixListener::bind(path(&names[1])).unwrap(),
                "good",
            ));
            let client = Client::of(places, None);
            let limit = Duration::from_secs(20);
            let answer = client.ask::<String>(Method::GET, "/", None, NOTHING, limit);
            assert_eq!(answer.await.is_ok(), elsewhere, "{status}");
            assert_eq!(*client.kept.borrow(), usize::from(elsewhere), "{status}");
        }
    }

    #[tokio::test]
    async fn who_waits_at_one_that_hangs_is_told_when_another_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let places = ["mute", "other"].map(|n| Endpoint::Unix(path(n)));
        let _mute = UnixListener::bind(path("mute")).unwrap();
        let mut other = tokio::task::JoinSet::new();
        other.spawn(answers(UnixListener::bind(path("other")).unwrap(), "other"));
        let client = Client::of(places, None);
        let day = Duration::from_hours(24);
        let poll = client.ask::<String>(Method::GET, "/", None, NOTHING, day);
        let limit = Duration::from_secs(3);
        let short = client.ask::<String>(Method::GET, "/", None, NOTHING, limit);
        let both = async { tokio::join!(poll, short) };
        let both = Box::pin(timeout(Duration::from_secs(20), both));
        let (poll, short) = both.await.expect("both end");
        assert_eq!(
            (poll.unwrap(), short.unwrap()),
            ("other".into(), "other".into())
        );
    }
}
