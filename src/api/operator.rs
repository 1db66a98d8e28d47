//! The director's operator socket: `GET /v1/status`, `GET /v1/explain`, `GET /v1/events`, `POST /v1/orders`,
//! `POST /v1/reload`, `POST /v1/plan`. `admit.rs` says who gets in, before any route.

mod admit;
mod show;

use std::{future::Future, net::IpAddr, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, State, rejection::JsonRejection},
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{client::Client, events};
use crate::{
    clock,
    director::status::Status,
    http::{self, Caller, Doors, Limits},
    model::{
        EventRing, Order, OrderAnswer, OrderRequest, PlanRequest, Planned, ReloadAnswer,
        ServiceKey, parse_server, wire::Problem,
    },
};

pub use admit::{Admission, Directory};
pub use show::{Counted, Explain, Kernel};

/// To the core.
#[derive(Debug)]
pub enum Question {
    /// How it stands.
    Status(oneshot::Sender<Status>),
    /// Why a server is where it is.
    Explain(Explain),
    /// What it is to do.
    Order(Box<Ordering>),
}

/// Whom to tell of an order; none: there is no such server.
pub type Answer = oneshot::Sender<Option<OrderAnswer>>;

/// An operator's order, on its way.
#[derive(Debug)]
pub struct Ordering {
    /// Of this server, perhaps at this port only; none: of all servers of the service.
    pub server: Option<(IpAddr, Option<u16>)>,
    /// In this service only.
    pub service: Option<ServiceKey>,
    /// What; none takes back what was ordered before.
    pub order: Option<Order>,
    /// How long connections of a server that is drained have; none: as the configuration says.
    pub drains: Option<Duration>,
    /// Answered when it is kept.
    pub answer: Answer,
}

/// A configuration that is to be read.
#[derive(Debug)]
pub struct Reading {
    /// The name that mistakes are told with, and the text; none: the director's own file.
    pub text: Option<(PathBuf, String)>,
    /// What for.
    pub wish: ReadingFor,
}

/// What a configuration is read for.
#[derive(Debug)]
pub enum ReadingFor {
    /// To be in force.
    Reload(oneshot::Sender<Result<ReloadAnswer, Refusal>>),
    /// To see what it would change.
    Plan(oneshot::Sender<Result<Planned, Refusal>>),
}

/// Why a configuration was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is wrong.
    Wrong(String),
    /// The director could not.
    Failed(String),
}

impl ReadingFor {
    /// Tells who asked that it came to nothing.
    pub fn refuse(self, why: Refusal) {
        let told = match self {
            Self::Reload(answer) => answer.send(Err(why)).is_ok(),
            Self::Plan(answer) => answer.send(Err(why)).is_ok(),
        };
        if !told {
            tracing::debug!("operator went away before the answer");
        }
    }
}

/// Operators are few, and ask once.
const LIMITS: Limits = Limits {
    connections: 16,
    header: Duration::from_secs(5),
    lasting: Duration::from_secs(30),
    keep_alive: false,
    reserved: 4,
    each: 16,
    unknown: 16,
};

/// The core answers within this, or it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// Ten years, in seconds.
const LONGEST_TERM: u64 = 10 * 366 * 86_400;

/// No reason is longer: it stands in a line of `status`.
const LONGEST_REASON: usize = 200;

/// A large configuration fits in here.
const BODY: usize = 16 * 1024 * 1024;

/// A reload waits for the kernel's table.
const RELOAD_LIMIT: Duration = Duration::from_secs(20);

/// What is looked up beside the core; or why it is not known, in words.
pub type Found<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// Whom the answers come from.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The core.
    pub questions: mpsc::Sender<Question>,
    /// Who reads configurations.
    pub readings: mpsc::Sender<Reading>,
    /// What happened.
    pub ring: watch::Receiver<EventRing>,
    /// Who gets in.
    pub admission: watch::Receiver<Admission>,
    /// In which groups whoever asks is.
    pub directory: Arc<dyn Directory>,
    /// What the kernel counts.
    pub kernel: Arc<dyn Kernel>,
    /// Who tells of replacements.
    pub provisioner: Option<Client>,
}

type Core = State<Desk>;

/// Answers until `stop`.
pub async fn serve(doors: Doors, desk: Desk, stop: CancellationToken) {
    let router = Router::new()
        .route("/v1/status", get(show::status))
        .route("/v1/explain", get(show::explain))
        .route("/v1/orders", post(order))
        .route("/v1/reload", post(reload))
        .route("/v1/plan", post(plan))
        .fallback(|| async {
            let detail =
                "the operator socket has GET /v1/status, /v1/explain and /v1/events, POST /v1/orders, /v1/reload and /v1/plan";
            problem(StatusCode::NOT_FOUND, "no_such_route", detail)
        })
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(desk.clone())
        .merge(events::router(desk.ring.clone(), stop.clone()))
        .layer(middleware::from_fn_with_state(desk, admit::admit));
    http::serve(doors, router, LIMITS, stop).await;
}

async fn order(
    State(shared): Core,
    Extension(caller): Extension<Caller>,
    body: Result<Json<OrderRequest>, JsonRejection>,
) -> Response {
    let bad = |detail: &str| problem(StatusCode::BAD_REQUEST, "bad_order", detail);
    let request = match body {
        Ok(Json(request)) => request,
        Err(error) => return bad(&error.body_text()),
    };
    let server = match request.server.as_deref() {
        None if request.service.is_none() => {
            return bad("of which server, or of which service? name one of them");
        }
        None => None,
        Some(name) => match parse_server(name) {
            Some(server) => Some(server),
            None => {
                return bad(&unknown_server(name));
            }
        },
    };
    let reason = request.reason.filter(|reason| !reason.trim().is_empty());
    let fits = |r: &String| r.chars().count() <= LONGEST_REASON && !r.chars().any(char::is_control);
    if !reason.as_ref().is_none_or(fits) {
        return bad(&format!(
            "a reason is one line of at most {LONGEST_REASON} characters"
        ));
    }
    let longest = |s: &u64| *s <= LONGEST_TERM;
    if !request.for_s.iter().chain(&request.drain_s).all(longest) {
        return bad("no order lasts longer than ten years: leave its end out");
    }
    let at = clock::wall();
    let order = request.wish.map(|wish| Order {
        reason,
        ends: request.for_s.map(|s| at.after(Duration::from_secs(s))),
        ..Order::new(wish, caller.to_string(), at)
    });
    let (ask, answer) = oneshot::channel();
    let ordering = Ordering {
        server,
        service: request.service,
        order,
        drains: request.drain_s.map(Duration::from_secs),
        answer: ask,
    };
    let order = Question::Order(Box::new(ordering));
    match asked(&shared.questions, order, answer, ANSWER_LIMIT).await {
        Ok(Some(done)) => Json(done).into_response(),
        Ok(None) => {
            let server = request.server.map(|name| format!(" has a server {name}"));
            let server = server.unwrap_or_else(|| " has a server".to_owned());
            let service = request.service.map(|key| format!(" {key}"));
            let service = service.unwrap_or_default();
            let detail = format!("no virtual service{service}{server}: see understudy status");
            problem(StatusCode::NOT_FOUND, "no_such_server", &detail)
        }
        Err(silent) => silent,
    }
}

fn unknown_server(name: &str) -> String {
    format!("{name:?} is no server: write 10.77.1.11 or 10.77.1.11:80")
}

async fn reload(State(shared): Core) -> Response {
    let (ask, answer) = oneshot::channel();
    let reading = Reading {
        text: None,
        wish: ReadingFor::Reload(ask),
    };
    taken(asked(&shared.readings, reading, answer, RELOAD_LIMIT).await)
}

async fn plan(State(shared): Core, body: Result<Json<PlanRequest>, JsonRejection>) -> Response {
    let request = match body {
        Ok(Json(request)) => request,
        Err(error) => {
            return problem(StatusCode::BAD_REQUEST, "bad_plan", &error.body_text());
        }
    };
    let (ask, answer) = oneshot::channel();
    let reading = Reading {
        text: request.config,
        wish: ReadingFor::Plan(ask),
    };
    taken(asked(&shared.readings, reading, answer, RELOAD_LIMIT).await)
}

fn taken<T: Serialize>(answer: Result<Result<T, Refusal>, Response>) -> Response {
    match answer {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(Refusal::Wrong(why))) => {
            problem(StatusCode::UNPROCESSABLE_ENTITY, "bad_configuration", &why)
        }
        Ok(Err(Refusal::Failed(why))) => {
            problem(StatusCode::INTERNAL_SERVER_ERROR, "not_taken", &why)
        }
        Err(silent) => silent,
    }
}

async fn asked<Q, T>(
    questions: &mpsc::Sender<Q>,
    question: Q,
    answer: oneshot::Receiver<T>,
    limit: Duration,
) -> Result<T, Response> {
    let exchange = async {
        questions.send(question).await.ok()?;
        answer.await.ok()
    };
    let answered = time::timeout(limit, exchange).await.ok().flatten();
    answered.ok_or_else(|| {
        let detail = "the director's core does not answer: it stops, or hangs; see its log";
        problem(StatusCode::SERVICE_UNAVAILABLE, "core_silent", detail)
    })
}

pub(super) fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body = Problem::new(status.as_u16(), title, code, detail);
    (
        status,
        [("content-type", "application/problem+json")],
        Json(body),
    )
        .into_response()
}

#[cfg(test)]
mod tests;
