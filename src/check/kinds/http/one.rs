//! HTTP/1.1 (RFC 9112), on a connection of its own.

use std::{error::Error, io, net::SocketAddr};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    http::response::Parts,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Chunks, Driver, MAX_HEAD};
use crate::{
    check::{call::Call, errno, tls},
    model::{FailReason, Phase},
};

type Connection<S> = http1::Connection<TokioIo<S>, Empty<Bytes>>;

/// The body of an answer. Dropped, it closes the connection.
pub(super) struct Body<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    driver: Driver<Connection<S>>,
    /// The connection ends once nobody can send on it.
    _sender: http1::SendRequest<Empty<Bytes>>,
    incoming: Incoming,
    at: SocketAddr,
}

/// Sends a request and waits for the head of the answer.
pub(super) async fn ask<S>(
    call: &mut Call<'_>,
    stream: S,
    request: Request<()>,
) -> Result<(Parts, Body<S>), FailReason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let at = call.at;
    let request = request.map(|()| Empty::new());
    let talking = async {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD.into())
            .max_header_size(MAX_HEAD.into())
            .handshake(TokioIo::new(stream))
            .await?;
        let mut driver = Driver::new(connection);
        let answer = driver.with(sender.send_request(request)).await?;
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
        talking.await.map_err(|error: hyper::Error| {
            let reason = reason(&error, at, Phase::Answer);
            if reason == FailReason::Garbled {
                why = Some(error);
            }
            reason
        })
    };
    let result = call.hold(Phase::Answer, talking).await;
    if let Some(why) = why {
        call.note(why);
    }
    result
}

impl<S> Chunks for Body<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn next(&mut self) -> Result<Option<Bytes>, FailReason> {
        let Self {
            driver,
            incoming,
            at,
            ..
        } = self;
        loop {
            let frame = async { incoming.frame().await.transpose() };
            let frame = driver.with(frame).await;
            match frame.map_err(|error| reason(&error, *at, Phase::Body))? {
                None => return Ok(None),
                // What is no data is trailers.
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// What a failure of the exchange says of the server.
fn reason(error: &hyper::Error, at: SocketAddr, phase: Phase) -> FailReason {
    let cause = error.source();
    if let Some(io) = cause.and_then(|c| c.downcast_ref::<io::Error>()) {
        // What hyper says of a body that is not cut into chunks as it should be.
        let nonsense = matches!(
            io.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
        );
        if nonsense && io.raw_os_error().is_none() && tls::fault(io).is_none() {
            return FailReason::Garbled;
        }
        return errno::reason(io, at, phase);
    }
    if let Some(inner) = cause.and_then(|c| c.downcast_ref::<hyper::Error>()) {
        return reason(inner, at, phase);
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return FailReason::Reset;
    }
    FailReason::Garbled
}
