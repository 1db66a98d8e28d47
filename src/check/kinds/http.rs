//! A request over HTTP is answered with a wanted status and, where one is named, a wanted body.
//! Redirects are not followed: a status of theirs is an answer as any other.

mod one;
pub(super) mod two;

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri, Version,
    body::Bytes,
    header::{
        ACCEPT, AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT,
    },
    http::{
        response::Parts,
        uri::{Authority, PathAndQuery, Scheme},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
};

use super::{
    super::{
        Unprepared,
        call::{Call, quoted},
        expect::{LONGEST, Matcher},
        tls,
    },
    Kind,
};
use crate::{
    model::{FailReason, HttpCheck, HttpVersion, Phase, StatusRange},
    prepare,
};

/// Room for a response's head, more than any server sends that is well. Also the most that HTTP/1.1
/// reads ahead of a body: what hyper allows at least.
const MAX_HEAD: u16 = 8 * 1024;

pub(super) const AGENT: &str = concat!("understudy/", env!("CARGO_PKG_VERSION"));

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Http {
    method: Method,
    path: PathAndQuery,
    host: Option<String>,
    headers: HeaderMap,
    status: Vec<StatusRange>,
    body: Option<Matcher>,
    version: HttpVersion,
    tls: Option<tls::Client>,
}

impl Kind for Http {
    type Options = HttpCheck;

    fn prepare(options: &HttpCheck) -> Result<Self, Unprepared> {
        let two = options.version == HttpVersion::Two;
        if let Some(host) = &options.host {
            match two {
                true => authority(host).map(drop)?,
                false => value(host).map(drop)?,
            }
        }
        let method = Method::from_bytes(options.method.as_bytes());
        let path = PathAndQuery::try_from(options.path.as_str());
        let alpn: &[u8] = if two { two::ALPN } else { b"http/1.1" };
        let prepare = |options| tls::Client::prepare(options, &[alpn]);
        Ok(Self {
            method: method.map_err(|_bad| unfit(&options.method, "method"))?,
            path: path.map_err(|_bad| unfit(&options.path, "path"))?,
            host: options.host.clone(),
            headers: headers(options)?,
            status: options.status.clone(),
            body: options.body.as_ref().map(Matcher::prepare).transpose()?,
            version: options.version,
            tls: options.tls.as_ref().map(prepare).transpose()?,
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let stream = call.connect_to_talk().await?;
        let Some(tls) = &self.tls else {
            return self.talk(call, stream).await;
        };
        let stream = Box::new(tls.handshake(call, stream).await?);
        if self.version == HttpVersion::Two {
            two::chosen(call, &stream)?;
        }
        self.talk(call, stream).await
    }
}

impl Http {
    async fn talk<S>(&self, call: &mut Call<'_>, stream: S) -> Result<(), FailReason>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(request) = self.request(call.at) else {
            call.note("the request cannot be built");
            return Err(FailReason::Local);
        };
        match self.version {
            HttpVersion::One => {
                let (head, body) = one::ask(call, stream, request).await?;
                self.judge(call, &head, body).await
            }
            HttpVersion::Two => {
                let (head, body) = two::ask(call, stream, request, None).await?;
                self.judge(call, &head, body).await
            }
        }
    }

    /// `None` for what [`Kind::prepare`] has not let in.
    fn request(&self, at: SocketAddr) -> Option<Request<()>> {
        let host = self.host.clone().unwrap_or_else(|| at.to_string());
        let mut request = Request::new(());
        request.method_mut().clone_from(&self.method);
        request.headers_mut().clone_from(&self.headers);
        *request.uri_mut() = match self.version {
            HttpVersion::One => {
                let host = HeaderValue::from_str(&host).ok()?;
                request.headers_mut().insert(HOST, host);
                Uri::from(self.path.clone())
            }
            HttpVersion::Two => {
                *request.version_mut() = Version::HTTP_2;
                uri(&host, self.tls.is_some(), self.path.clone())?
            }
        };
        Some(request)
    }

    async fn judge(
        &self,
        call: &mut Call<'_>,
        head: &Parts,
        body: impl Chunks,
    ) -> Result<(), FailReason> {
        let status = head.status.as_u16();
        if !self
            .status
            .iter()
            .any(|r| (r.from..=r.to).contains(&status))
        {
            note_status(call, head.status, &head.headers);
            return Err(FailReason::Status(status));
        }
        let Some(expect) = &self.body else {
            return Ok(());
        };
        let mut seen = Vec::new();
        let reading = read(expect, body, &mut seen);
        let result = call.hold(Phase::Body, reading).await;
        if result.is_err() && !seen.is_empty() {
            call.quote(&seen);
        }
        result
    }
}

/// The body of an answer, as it comes.
trait Chunks: Send {
    /// `None` at its end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, FailReason>> + Send;
}

/// Reads until the body is judged.
async fn read(
    expect: &Matcher,
    mut body: impl Chunks,
    seen: &mut Vec<u8>,
) -> Result<(), FailReason> {
    loop {
        let verdict = match body.next().await? {
            None => expect.judge(seen, true),
            Some(chunk) => {
                let room = chunk.get(..LONGEST.saturating_sub(seen.len()));
                let fits = room.unwrap_or(&chunk);
                seen.extend_from_slice(fits);
                match expect.judge_piece(seen, fits.len()) {
                    None if fits.len() < chunk.len() => return Err(FailReason::TooLong),
                    verdict => verdict,
                }
            }
        };
        match verdict {
            Some(true) => return Ok(()),
            Some(false) => return Err(FailReason::Mismatch),
            None => {}
        }
    }
}

/// What moves the bytes of a connection, while something waits for what they say. It ends with this.
struct Driver<C>(Option<Pin<Box<C>>>);

impl<C, E> Driver<C>
where
    C: Future<Output = Result<(), E>>,
{
    fn new(connection: C) -> Self {
        Self(Some(Box::pin(connection)))
    }

    /// Waits for `work`.
    async fn with<T>(&mut self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut work = pin!(work);
        let Some(connection) = &mut self.0 else {
            return work.await;
        };
        let end = select! {
            // The work first: the connection may end in the same turn, its own work done.
            biased;
            done = &mut work => return done,
            end = connection => end,
        };
        // Dropped, it tells whoever waits for it.
        self.0 = None;
        match end {
            Ok(()) => work.await,
            Err(error) => select! {
                biased;
                done = &mut work => done,
                () = std::future::ready(()) => Err(error),
            },
        }
    }
}

/// Notes what a status says beside its number.
pub(super) fn note_status(call: &mut Call<'_>, status: StatusCode, headers: &HeaderMap) {
    let elsewhere = headers.get(LOCATION).filter(|_| status.is_redirection());
    if let Some(place) = elsewhere {
        call.note(format_args!("redirects to {}", quoted(place.as_bytes())));
    } else if let Some(words) = status.canonical_reason() {
        call.note(words);
    }
}

/// The URI of a request over HTTP/2, from which `:scheme`, `:authority` and `:path` are taken (RFC 9113,
/// section 8.3.1).
pub(super) fn uri(host: &str, tls: bool, path: PathAndQuery) -> Option<Uri> {
    let builder = Uri::builder().authority(authority(host).ok()?);
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    builder.scheme(scheme).path_and_query(path).build().ok()
}

/// A host, with or without a port.
pub(super) fn authority(host: &str) -> Result<Authority, Unprepared> {
    Authority::try_from(host).map_err(|_bad| unfit(host, "host"))
}

fn headers(options: &HttpCheck) -> Result<HeaderMap, Unprepared> {
    let mut all = HeaderMap::new();
    all.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    all.insert(ACCEPT, HeaderValue::from_static("*/*"));
    for (name, text) in &options.headers {
        let header = HeaderName::try_from(name).map_err(|_bad| unfit(name, "header"))?;
        if options.version == HttpVersion::Two && two::forbids(&header, text) {
            return Err(unfit(name, "header of HTTP/2"));
        }
        all.insert(header, value(text)?);
    }
    if let Some(path) = &options.credentials {
        let (user, password) = prepare::credentials(path)?;
        let word = BASE64_STANDARD.encode(format!("{user}:{password}"));
        let mut word = value(&format!("Basic {word}"))?;
        // Neither compressed, where it could be guessed at (RFC 7541, section 7.1), nor shown.
        word.set_sensitive(true);
        all.insert(AUTHORIZATION, word);
    }
    if options.version == HttpVersion::One {
        all.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(all)
}

fn value(text: &str) -> Result<HeaderValue, Unprepared> {
    HeaderValue::from_str(text).map_err(|_bad| unfit(text, "value of a header"))
}

fn unfit(text: &str, what: &str) -> Unprepared {
    Unprepared::Option(format!("{text:?} is no {what}"))
}

#[cfg(test)]
mod tests;
