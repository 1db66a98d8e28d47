//! An event as a POST.

use std::{fmt, pin::Pin, sync::Arc};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::{Body as _, Bytes},
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{Error, pile::Parcel, sign};
use crate::{
    clock,
    model::{Event, Webhook},
    prepare::{self, Unprepared},
};

/// An answer says yes or no: more of it is not read.
const MOST_ANSWER: usize = 64 << 10;

const AGENT: &str = concat!("understudy/", env!("CARGO_PKG_VERSION"));

/// What the hook names on this host, read.
#[derive(Clone)]
pub(super) struct Ready {
    secret: Option<Arc<[u8]>>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Ready {
    /// Reads. Blocks.
    pub(super) fn read(hook: &Webhook) -> Result<Self, Unprepared> {
        let secret = hook.secret.as_deref().map(prepare::secret).transpose()?;
        let tls = hook.tls.as_ref().map(|options| {
            let config = prepare::tls_client(options, &[b"http/1.1"])?;
            let name = match prepare::server_name(options)? {
                Some(name) => name,
                None => ServerName::try_from(hook.host.clone()).map_err(|_bad| {
                    Unprepared::Option(format!("{:?} is no server name", hook.host))
                })?,
            };
            Ok((Arc::new(config), name))
        });
        Ok(Self {
            secret: secret.map(Arc::from),
            tls: tls.transpose()?,
        })
    }
}

type Driver = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// A connection, kept as long as there is something to tell.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
    secret: Option<Arc<[u8]>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    pub(super) async fn open(hook: &Webhook, ready: Ready) -> Result<Self, Error> {
        let stream = TcpStream::connect((&*hook.host, hook.port)).await;
        let stream = stream.map_err(Error::Unreachable)?;
        stream.set_nodelay(true).map_err(Error::Unreachable)?;
        let (sender, driver) = match ready.tls {
            None => begin(stream).await?,
            Some((config, name)) => {
                let shaking = TlsConnector::from(config).connect(name, stream);
                begin(shaking.await.map_err(Error::Tls)?).await?
            }
        };
        Ok(Self {
            sender,
            driver,
            secret: ready.secret,
        })
    }

    /// Whether another request may go over it.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Tells of a parcel, which has one event.
    pub(super) async fn post(&mut self, hook: &Webhook, parcel: &Parcel) -> Result<(), Error> {
        let Some(event) = parcel.events.first() else {
            return Ok(());
        };
        let request = request(hook, event, parcel.left_out, self.secret.as_deref())?;
        let Self { sender, driver, .. } = self;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(Error::Broken)?;
            let (status, body) = (answer.status(), answer.into_body());
            // Read to its end, else the connection cannot be used again.
            if !body.is_end_stream() {
                drop(Limited::new(body, MOST_ANSWER).collect().await);
            }
            Ok(status)
        };
        tokio::pin!(answer);
        let status: StatusCode = tokio::select! {
            biased;
            done = &mut answer => done?,
            // The connection ended with the answer, or broke: `answer` says so.
            _end = driver.as_mut() => answer.await?,
        };
        match status.is_success() {
            true => Ok(()),
            false => Err(Error::Status(status.as_u16())),
        }
    }
}

async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(SendRequest<Full<Bytes>>, Driver), Error> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Error::Broken)?;
    Ok((sender, Box::pin(connection)))
}

fn request(
    hook: &Webhook,
    event: &Event,
    left_out: u64,
    secret: Option<&[u8]>,
) -> Result<Request<Full<Bytes>>, Error> {
    let body = serde_json::to_vec(event).map_err(Error::Json)?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&hook.target)
        .header(HOST, &hook.authority)
        .header(USER_AGENT, AGENT)
        .header(CONTENT_TYPE, "application/json")
        .header("Understudy-Event", event.kind.label())
        .header("Understudy-Event-Id", event.id());
    if left_out > 0 {
        request = request.header("Understudy-Left-Out", left_out);
    }
    if let Some(key) = secret {
        // The time of this attempt: a receiver refuses old ones, which somebody may have recorded.
        let seconds = clock::wall().0 / 1_000;
        request = request.header("Understudy-Signature", sign::signature(key, seconds, &body));
    }
    request.body(Full::new(body.into())).map_err(Error::Request)
}
