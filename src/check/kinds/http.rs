//! `GET` over HTTP/1.1 on a connection of its own. The status is the answer: the body is not read.

use std::{error::Error, io, net::SocketAddr, ops::RangeInclusive, pin::pin};

use http_body_util::Empty;
use hyper::{
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, select};
use tracing::debug;

use super::errno;
use crate::model::{FailReason, Phase};

/// Room for a response's head, more than any server sends that is well. Also the most that is ever
/// read ahead of a body: what hyper allows at least.
const MAX_HEAD: usize = 8 * 1024;

const AGENT: &str = concat!("understudy/", env!("CARGO_PKG_VERSION"));

/// What is asked, and which answers pass.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    /// The server.
    pub(super) at: SocketAddr,
    /// Path and query.
    pub(super) path: &'a str,
    /// `Host` header; `at` where it is none.
    pub(super) host: Option<&'a str>,
    /// Statuses that pass.
    pub(super) wanted: RangeInclusive<u16>,
}

/// Asks over `stream` and drops it. Runs until the answer is there: the caller sets the limit.
pub(super) async fn get(stream: TcpStream, request: Request<'_>) -> Result<(), FailReason> {
    let host = request
        .host
        .map_or_else(|| request.at.to_string(), str::to_owned);
    let message = hyper::Request::get(request.path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| {
            // The configuration lets no such path or host in; if it did, no server is to blame.
            debug!(%error, "request could not be built");
            FailReason::Local
        })?;
    let failed = |error: hyper::Error| reason(&error, request.at);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let mut answer = pin!(sender.send_request(message));
    let response = select! {
        // The answer first: the connection may end in the same turn, its work done.
        biased;
        answer = &mut answer => answer,
        end = connection => match end {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    let status = response.map_err(failed)?.status().as_u16();
    if request.wanted.contains(&status) {
        Ok(())
    } else {
        Err(FailReason::Status(status))
    }
}

/// What a failure of the exchange says of the server.
fn reason(error: &hyper::Error, at: SocketAddr) -> FailReason {
    let cause = error.source();
    if let Some(io) = cause.and_then(|c| c.downcast_ref::<io::Error>()) {
        return errno::reason(io, at, Phase::Answer);
    }
    if let Some(inner) = cause.and_then(|c| c.downcast_ref::<hyper::Error>()) {
        return reason(inner, at);
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return FailReason::Reset;
    }
    FailReason::Garbled
}
