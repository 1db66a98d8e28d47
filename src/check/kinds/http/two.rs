//! HTTP/2 (RFC 9113), one request on a connection of its own. The `h2` crate and not hyper, which wants
//! to spawn tasks and keeps the connection's error to itself.

use std::{io, net::SocketAddr};

use h2::{
    RecvStream,
    client::{self, Connection, SendRequest},
};
use hyper::{
    HeaderMap, Request,
    body::Bytes,
    header::{HeaderName, TE},
    http::response::Parts,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

use super::{Chunks, Driver, MAX_HEAD};
use crate::{
    check::{call::Call, errno},
    model::{FailReason, Phase},
};

/// Its name in TLS (RFC 9113, section 3.1).
pub(in crate::check::kinds) const ALPN: &[u8] = b"h2";

/// Whether a header has no place in HTTP/2, beside those that the configuration keeps out (RFC 9113,
/// section 8.2.2).
pub(super) fn forbids(name: &HeaderName, value: &str) -> bool {
    matches!(name.as_str(), "keep-alive" | "proxy-connection")
        || (*name == TE && value != "trailers")
}

/// Whether the server chose HTTP/2: one that does not know ALPN chooses nothing.
pub(in crate::check::kinds) fn chosen<S>(
    call: &mut Call<'_>,
    stream: &TlsStream<S>,
) -> Result<(), FailReason> {
    if stream.get_ref().1.alpn_protocol() == Some(ALPN) {
        return Ok(());
    }
    call.note("TLS stands, but the server does not choose HTTP/2 (ALPN h2) in it");
    Err(FailReason::Garbled)
}

/// The body of an answer. Dropped, it closes the connection.
pub(in crate::check::kinds) struct Body<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    driver: Driver<Connection<S, Bytes>>,
    /// The connection ends once nobody can send on it.
    _sender: SendRequest<Bytes>,
    incoming: RecvStream,
    at: SocketAddr,
}

/// Sends a request and waits for the head of the answer.
pub(in crate::check::kinds) async fn ask<S>(
    call: &mut Call<'_>,
    stream: S,
    request: Request<()>,
    payload: Option<Bytes>,
) -> Result<(Parts, Body<S>), FailReason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let at = call.at;
    let talking = async {
        let (sender, connection) = client::Builder::new()
            .enable_push(false)
            .max_header_list_size(MAX_HEAD.into())
            .handshake(stream)
            .await?;
        let mut driver = Driver::new(connection);
        let answer = async {
            let mut sender = sender.ready().await?;
            let (answer, mut sending) = sender.send_request(request, payload.is_none())?;
            if let Some(payload) = payload {
                sending.send_data(payload, true)?;
            }
            Ok((answer.await?, sender))
        };
        let (answer, sender) = driver.with(answer).await?;
        let (head, incoming) = answer.into_parts();
        let body = Body {
            driver,
            _sender: sender,
            incoming,
            at,
        };
        Ok((head, body))
    };
    let mut why = None;
    let talking = async {
        talking.await.map_err(|error: h2::Error| {
            let reason = reason(&error, at, Phase::Answer);
            // An error of the socket is told by its reason alone.
            why = (!error.is_io() || reason == FailReason::TlsFailed).then_some(error);
            reason
        })
    };
    let result = call.hold(Phase::Answer, talking).await;
    if let Some(why) = why {
        call.note(why);
    }
    result
}

impl<S> Body<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// The next piece, `None` at the end.
    pub(in crate::check::kinds) async fn piece(&mut self) -> Result<Option<Bytes>, FailReason> {
        let Self {
            driver,
            incoming,
            at,
            ..
        } = self;
        let data = async {
            let data = incoming.data().await.transpose()?;
            if let Some(data) = &data {
                // Room for more (RFC 9113, section 5.2).
                let control = incoming.flow_control();
                control.release_capacity(data.len())?;
            }
            Ok(data)
        };
        let data = driver.with(data).await;
        data.map_err(|error| reason(&error, *at, Phase::Body))
    }

    /// What follows the body.
    pub(in crate::check::kinds) async fn trailers(
        &mut self,
    ) -> Result<Option<HeaderMap>, FailReason> {
        let trailers = self.driver.with(self.incoming.trailers()).await;
        trailers.map_err(|error| reason(&error, self.at, Phase::Body))
    }
}

impl<S> Chunks for Body<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    async fn next(&mut self) -> Result<Option<Bytes>, FailReason> {
        self.piece().await
    }
}

/// What a failure of the exchange says of the server.
fn reason(error: &h2::Error, at: SocketAddr, phase: Phase) -> FailReason {
    if let Some(io) = error.get_io() {
        // The crate keeps kind and text of an error: what was one of TLS is this by now.
        if io.kind() == io::ErrorKind::InvalidData {
            return FailReason::TlsFailed;
        }
        return errno::reason(io, at, phase);
    }
    if error.is_remote() {
        // RST_STREAM or GOAWAY: it gave up, and said so.
        return FailReason::Reset;
    }
    if error.is_library() {
        return FailReason::Garbled;
    }
    FailReason::Local
}
