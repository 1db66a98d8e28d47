//! Who gets through to the routes: how often, how much at a time, and for what.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{MatchedPath, Query, Request, State},
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::body::{Frame, SizeHint};
use nix::unistd::Uid;
use tokio::sync::watch;
use tracing::debug;

use super::problem::Refusal;
use crate::{
    clock,
    http::Caller,
    model::{CertificateNames, DirectorName, Grant},
    provisioner::pace::Pace,
};

/// A director asks a few times a second; after a mass failure for hundreds of servers at once.
const BETWEEN: Duration = Duration::from_millis(20);

/// What a caller may ask at once before it is held to the rate.
const BURST: u32 = 200;

/// Requests of one caller under way, long polls left out.
const ASKS: usize = 8;

/// Long polls of one caller: a director has one, and an operator beside it some.
const POLLS: usize = 8;

/// Whoever has too much under way may ask again after so many seconds.
const LATER: u64 = 1;

/// Who is counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Who {
    User(u32),
    Loopback,
    Director(DirectorName),
    /// Certificates of nobody who is listed, all of them.
    Unknown,
}

/// The gate of one API.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    grants: watch::Receiver<Arc<Vec<Grant>>>,
    pace: Mutex<Pace<Who>>,
    busy: Mutex<HashMap<(Who, Kind), usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Ask,
    Poll,
}

/// One request that is under way.
struct Turn {
    gate: Gate,
    of: (Who, Kind),
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut busy = lock(&self.gate.0.busy);
        if let Some(n) = busy.get_mut(&self.of) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                busy.remove(&self.of);
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a director with a certificate may do: what its grant says. Without one whoever asks is of this host, and may
/// ask for every director.
#[derive(Clone, Debug)]
pub(super) struct Allowed(Option<Grant>);

impl Allowed {
    /// Of somebody of this host.
    pub(super) const EVERYTHING: Self = Self(None);

    /// Under which grant; none: everybody's part of the API.
    pub(super) const fn grant(&self) -> Option<&Grant> {
        self.0.as_ref()
    }

    /// The same as the list says it now.
    pub(super) fn again(&self, all: &[Grant]) -> Result<Self, Refusal> {
        let Some(before) = &self.0 else {
            return Ok(Self::EVERYTHING);
        };
        let same = |g: &&Grant| g.name == before.name && g.certificate == before.certificate;
        match all.iter().find(same) {
            Some(grant) => Ok(Self(Some(grant.clone()))),
            None => Err(unknown(&CertificateNames::new([&*before.certificate]))),
        }
    }

    /// Lets `name` speak, and nobody else for it.
    pub(super) fn speaks_for(&self, name: &DirectorName) -> Result<(), Refusal> {
        match &self.0 {
            Some(grant) if grant.name != *name => Err(not_yours(
                &format!("your certificate is that of the director {}", grant.name),
                &format!("the director {name}"),
            )),
            Some(_) | None => Ok(()),
        }
    }
}

fn not_yours(presented: &str, wanted: &str) -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "not_your_name",
        format!("{presented}, and this is for {wanted} alone"),
    )
}

/// What a director may ask for over TCP; all else, also what is added one day, is for operators, at the socket.
const FOR_DIRECTORS: [&str; 8] = [
    "/v1/directors/{name}",
    "/v1/directors/{name}/findings",
    "/v1/directors/{name}/members",
    "/v1/directors/{name}/members/{replacement}",
    "/v1/directors/{name}/members/{replacement}/release",
    "/v1/replacements",
    "/v1/replacements/{id}",
    "/v1/replacements/{id}/cancel",
];

impl Gate {
    pub(super) fn new(grants: watch::Receiver<Arc<Vec<Grant>>>) -> Self {
        Self(Arc::new(Inner {
            grants,
            pace: Mutex::new(Pace::new(BETWEEN, BURST)),
            busy: Mutex::default(),
        }))
    }

    /// Who it is, and under which grant where it has a certificate; `route` and `name` are what it asks for.
    fn identify(
        &self,
        caller: &Caller,
        name: Option<&str>,
    ) -> (Option<Who>, Result<Allowed, Refusal>) {
        let names = match caller {
            // They could stop the program as well.
            Caller::Local { uid, .. } if *uid == 0 || *uid == Uid::effective().as_raw() => {
                return (None, Ok(Allowed(None)));
            }
            Caller::Local { uid, .. } => return (Some(Who::User(*uid)), Ok(Allowed(None))),
            Caller::Loopback(_) => return (Some(Who::Loopback), Ok(Allowed(None))),
            Caller::Certified { names, .. } => names,
        };
        let all = Arc::clone(&self.0.grants.borrow());
        let mut mine = names.grants(&all).peekable();
        let Some(first) = mine.peek().map(|g| (*g).clone()) else {
            return (Some(Who::Unknown), Err(unknown(names)));
        };
        let named = mine.find(|g| name.is_none_or(|n| g.name.as_str() == n));
        let who = Who::Director(named.unwrap_or(&first).name.clone());
        let allowed = named.cloned().ok_or_else(|| {
            not_yours(
                &format!(
                    "your certificate names {names}, the director {}",
                    first.name
                ),
                &format!("the director {}", name.unwrap_or_default()),
            )
        });
        (Some(who), allowed.map(|grant| Allowed(Some(grant))))
    }

    fn begin(&self, who: Who, kind: Kind) -> Result<Turn, Refusal> {
        let (most, what) = match kind {
            Kind::Ask => (ASKS, "requests"),
            Kind::Poll => (POLLS, "long polls"),
        };
        lock(&self.0.pace)
            .take(who.clone(), clock::now())
            .map_err(|wait| {
                let seconds = wait.as_secs() + 1;
                too_many(
                    format!("asked too often: ask again in {seconds} s"),
                    seconds,
                )
            })?;
        let of = (who, kind);
        let mut busy = lock(&self.0.busy);
        let n = busy.entry(of.clone()).or_default();
        if *n >= most {
            return Err(too_many(
                format!("{most} {what} of yours are under way: wait for one of them"),
                LATER,
            ));
        }
        *n += 1;
        Ok(Turn {
            gate: self.clone(),
            of,
        })
    }
}

/// Whether a request is a long poll: as its route reads it, whichever way it is written.
fn kind(uri: &Uri) -> Kind {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
    match pairs {
        Ok(Query(pairs)) if pairs.iter().any(|(name, _)| name == "wait") => Kind::Poll,
        Ok(_) | Err(_) => Kind::Ask,
    }
}

/// So much of an answer is handed on at a time.
const PIECE: usize = 16 * 1024;

/// An answer's body in small pieces, which has its turn until the last of them was taken: who asks for much and reads
/// slowly holds what it asked for.
struct Held {
    body: Body,
    rest: Bytes,
    _turn: Turn,
}

impl Held {
    fn new(body: Body, turn: Turn) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            _turn: turn,
        }
    }
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let hint = self.body.size_hint();
        let mut all = SizeHint::new();
        all.set_lower(hint.lower().saturating_add(left));
        if let Some(upper) = hint.upper() {
            all.set_upper(upper.saturating_add(left));
        }
        all
    }
}

fn unknown(names: &CertificateNames) -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "unknown_certificate",
        format!(
            "your certificate names {names}, and that is none of the directors under [[director]] in provisioner.toml"
        ),
    )
}

fn too_many(detail: String, seconds: u64) -> Refusal {
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail).retry_after(seconds)
}

/// Lets a request through to its route, or answers it.
pub(super) async fn pass(
    State(gate): State<Gate>,
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    // Every door tells who asks.
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return Refusal::new(StatusCode::FORBIDDEN, "no_caller", "nobody asks").into_response();
    };
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    // As it was sent: one that hides its letters is nobody's.
    let path = request.uri().path();
    let name = path.strip_prefix("/v1/directors/");
    let name = name.and_then(|rest| rest.split('/').next());
    let (who, allowed) = gate.identify(&caller, name);
    let nobody = who == Some(Who::Unknown);
    let kind = kind(request.uri());
    let turn = match who.map(|who| gate.begin(who, kind)).transpose() {
        Ok(turn) => turn,
        Err(refusal) => return refusal.into_response(),
    };
    let allowed = allowed.and_then(|allowed| match allowed.grant() {
        Some(grant) if !route.is_empty() && !FOR_DIRECTORS.contains(&route) => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "not_an_operator",
            format!(
                "the director {} may not: operators ask at the provisioner's socket",
                grant.name
            ),
        )),
        Some(_) | None => Ok(allowed),
    });
    match allowed {
        Ok(allowed) => {
            request.extensions_mut().insert(allowed);
            let answer = next.run(request).await;
            answer.map(|body| match turn {
                Some(turn) => Body::new(Held::new(body, turn)),
                None => body,
            })
        }
        Err(refusal) => {
            debug!(%caller, route, "request refused");
            let mut answer = refusal.into_response();
            if nobody {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            answer
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn a_long_poll_is_one_however_it_is_written() {
        for (query, is) in [
            ("wait=60", Kind::Poll),
            ("after=1&w%61it=60", Kind::Poll),
            ("after=1&%77%61%69%74=60", Kind::Poll),
            ("after=1", Kind::Ask),
            ("await=1", Kind::Ask),
            ("after=wait=1", Kind::Ask),
        ] {
            let uri = format!("/v1/directors/lb1/members?{query}");
            assert_eq!(kind(&uri.parse().unwrap()), is, "{query}");
        }
    }

    #[tokio::test]
    async fn a_turn_lasts_until_its_answer_was_taken() {
        let gate = Gate::new(watch::channel(Arc::default()).1);
        let turn = gate.begin(Who::Loopback, Kind::Ask).unwrap();
        let whole: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut held = Held::new(Body::from(whole.clone()), turn);
        let busy = || lock(&gate.0.busy).len();
        let size = hyper::body::Body::size_hint(&held);
        assert_eq!(size.exact(), Some(100_000), "its length is told beforehand");
        let mut taken = Vec::new();
        while let Some(frame) = held.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE);
            taken.extend_from_slice(&piece);
            assert_eq!(busy(), 1);
        }
        assert_eq!(taken, whole);
        drop(held);
        assert_eq!(busy(), 0);
    }
}
