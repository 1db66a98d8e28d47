//! The server says `SERVING` by `grpc.health.v1.Health/Check`.
//!
//! The protocol is gRPC over HTTP/2 (`doc/PROTOCOL-HTTP2.md` of grpc/grpc) with one message of one field
//! each way (`grpc/health/v1/health.proto` of grpc/grpc-proto), written and read here by hand.

use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT},
    http::uri::PathAndQuery,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::{Unprepared, call::Call, tls},
    Kind,
    http::{AGENT, authority, note_status, two, uri},
};
use crate::model::{FailReason, GrpcCheck, Phase};

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// An answer has a few bytes; one with unknown fields may have more.
const LONGEST: usize = 64 * 1024;

/// `ServingStatus`.
const SERVING: u64 = 1;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Grpc {
    question: Bytes,
    host: Option<String>,
    tls: Option<tls::Client>,
}

impl Kind for Grpc {
    type Options = GrpcCheck;

    fn prepare(options: &GrpcCheck) -> Result<Self, Unprepared> {
        if let Some(host) = &options.host {
            authority(host)?;
        }
        let question = framed(&request(&options.service)).ok_or_else(|| {
            Unprepared::Option("the name of the service is too long for gRPC".to_owned())
        })?;
        let prepare = |options| tls::Client::prepare(options, &[two::ALPN]);
        Ok(Self {
            question: question.into(),
            host: options.host.clone(),
            tls: options.tls.as_ref().map(prepare).transpose()?,
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let stream = call.connect_to_talk().await?;
        let Some(tls) = &self.tls else {
            return self.talk(call, stream).await;
        };
        let stream = Box::new(tls.handshake(call, stream).await?);
        two::chosen(call, &stream)?;
        self.talk(call, stream).await
    }
}

impl Grpc {
    async fn talk<S>(&self, call: &mut Call<'_>, stream: S) -> Result<(), FailReason>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let host = self.host.clone().unwrap_or_else(|| call.at.to_string());
        let path = PathAndQuery::from_static(CHECK);
        let Some(uri) = uri(&host, self.tls.is_some(), path) else {
            call.note("the request cannot be built");
            return Err(FailReason::Local);
        };
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let (head, mut body) = two::ask(call, stream, request, Some(self.question.clone())).await?;
        if head.status != StatusCode::OK {
            note_status(call, head.status, &head.headers);
            return Err(FailReason::Status(head.status.as_u16()));
        }
        // An answer of headers alone is one of trailers alone: an error.
        judge_status(call, &head.headers).unwrap_or(Ok(()))?;
        let reading = async {
            let mut seen = Vec::new();
            while let Some(piece) = body.piece().await? {
                seen.extend_from_slice(&piece);
                if seen.len() > LONGEST {
                    return Err(FailReason::TooLong);
                }
            }
            Ok((seen, body.trailers().await?))
        };
        let (seen, trailers) = call.hold(Phase::Body, reading).await?;
        let trailers = trailers.as_ref().unwrap_or(&head.headers);
        let Some(status) = judge_status(call, trailers) else {
            call.note("an answer over HTTP/2, but without grpc-status");
            return Err(FailReason::Garbled);
        };
        status?;
        let Some(status) = unframed(&seen).and_then(serving_status) else {
            call.quote(&seen);
            return Err(FailReason::Garbled);
        };
        if status == SERVING {
            return Ok(());
        }
        call.note(status_name(status));
        Err(FailReason::NotServing)
    }
}

/// What `grpc-status` says, if it is there; its message is noted.
fn judge_status(call: &mut Call<'_>, headers: &HeaderMap) -> Option<Result<(), FailReason>> {
    let code = headers.get("grpc-status")?;
    let code = code.to_str().ok().and_then(|code| code.parse().ok());
    if code == Some(0) {
        return Some(Ok(()));
    }
    if let Some(message) = headers.get("grpc-message") {
        call.quote(&unescaped(message.as_bytes()));
    }
    // "UNKNOWN" is what a client makes of a code that is none.
    Some(Err(FailReason::Grpc(code.unwrap_or(2))))
}

/// `grpc-message` is percent-encoded; what is not stands for itself.
fn unescaped(message: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = message;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, after @ ..]) => hex(*high, *low).map(|byte| (byte, after)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((first, after));
        plain.push(byte);
        rest = after;
    }
    plain
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// `HealthCheckRequest { string service = 1; }`.
fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    // The default of a field is not written.
    if !service.is_empty() {
        // Field 1, of a length.
        message.push(0x0a);
        put_varint(&mut message, service.len());
        message.extend_from_slice(service.as_bytes());
    }
    message
}

fn put_varint(to: &mut Vec<u8>, mut n: usize) {
    loop {
        let low = u8::try_from(n & 0x7f).unwrap_or_default();
        n >>= 7;
        if n == 0 {
            to.push(low);
            return;
        }
        to.push(low | 0x80);
    }
}

/// A message with its head: not compressed, so long.
fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).ok()?.to_be_bytes());
    frame.extend_from_slice(message);
    Some(frame)
}

/// The one message of an answer. A compressed one was not asked for.
fn unframed(answer: &[u8]) -> Option<&[u8]> {
    let (head, message) = answer.split_first_chunk::<5>()?;
    let [0, length @ ..] = *head else { return None };
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (length == message.len()).then_some(message)
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; fields of later days are passed over.
fn serving_status(message: &[u8]) -> Option<u64> {
    let mut rest = message;
    let mut status = 0;
    // Groups have no length: they are passed over field by field.
    let mut depth = 0_usize;
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        let (field, wire) = (tag >> 3, tag & 7);
        if field == 0 {
            return None;
        }
        match wire {
            0 => {
                let value = take_varint(&mut rest)?;
                if field == 1 && depth == 0 {
                    status = value;
                }
            }
            1 => skip(&mut rest, 8)?,
            2 => {
                let length = take_varint(&mut rest)?;
                skip(&mut rest, length)?;
            }
            3 => depth += 1,
            4 => depth = depth.checked_sub(1)?,
            5 => skip(&mut rest, 4)?,
            _ => return None,
        }
    }
    (depth == 0).then_some(status)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    // Ten bytes of seven bits hold 64.
    for shift in (0..70).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn skip(rest: &mut &[u8], length: u64) -> Option<()> {
    *rest = rest.get(usize::try_from(length).ok()?..)?;
    Some(())
}

fn status_name(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("status {other}, of which nothing is known here"),
    }
}

#[cfg(test)]
mod tests;
