//! The director's operator socket: `GET /v1/status`, and `POST /v1/orders` for root and the director's own user.

use std::{net::IpAddr, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use nix::unistd::Uid;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    director::status::Status,
    http::{self, Caller, Doors, Limits},
    model::{Order, OrderAnswer, OrderRequest, ServiceKey, parse_server, wire::Problem},
};

/// To the core.
#[derive(Debug)]
pub enum Question {
    /// How it stands.
    Status(oneshot::Sender<Status>),
    /// What it is to do.
    Order(Box<Ordering>),
}

/// Whom to tell of an order; none: there is no such server.
pub type Answer = oneshot::Sender<Option<OrderAnswer>>;

/// An operator's order, on its way.
#[derive(Debug)]
pub struct Ordering {
    /// Of this server.
    pub addr: IpAddr,
    /// At this port only.
    pub port: Option<u16>,
    /// In this service only.
    pub service: Option<ServiceKey>,
    /// What; none takes back what was ordered before.
    pub order: Option<Order>,
    /// Answered when it is kept.
    pub answer: Answer,
}

/// Operators are few, and ask once.
const LIMITS: Limits = Limits {
    connections: 16,
    header: Duration::from_secs(5),
    lasting: Duration::from_secs(30),
    keep_alive: false,
};

/// The core answers within this, or it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// No reason is longer: it stands in a line of `status`.
const LONGEST_REASON: usize = 200;

type Core = State<mpsc::Sender<Question>>;

/// Answers until `stop`.
pub async fn serve(doors: Doors, questions: mpsc::Sender<Question>, stop: CancellationToken) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/orders", post(order))
        .fallback(|| async {
            let detail = "the operator socket has GET /v1/status and POST /v1/orders";
            problem(StatusCode::NOT_FOUND, "no_such_route", detail)
        })
        .with_state(questions);
    http::serve(doors, router, LIMITS, stop).await;
}

async fn status(State(questions): Core) -> Response {
    let (ask, answer) = oneshot::channel();
    match asked(&questions, Question::Status(ask), answer).await {
        Ok(status) => Json(status).into_response(),
        Err(silent) => silent,
    }
}

async fn order(
    State(questions): Core,
    Extension(caller): Extension<Caller>,
    body: Result<Json<OrderRequest>, JsonRejection>,
) -> Response {
    let bad = |detail: &str| problem(StatusCode::BAD_REQUEST, "bad_order", detail);
    if !may_order(&caller, Uid::effective().as_raw()) {
        let detail = format!("{caller} may not: ask as root or as the director's user");
        return problem(StatusCode::FORBIDDEN, "not_an_operator", &detail);
    }
    let request = match body {
        Ok(Json(request)) => request,
        Err(error) => return bad(&error.body_text()),
    };
    let Some((addr, port)) = parse_server(&request.server) else {
        let name = &request.server;
        return bad(&format!(
            "{name:?} is no server: write 10.77.1.11 or 10.77.1.11:80"
        ));
    };
    let reason = request.reason.filter(|reason| !reason.trim().is_empty());
    let fits = |r: &String| r.chars().count() <= LONGEST_REASON && !r.chars().any(char::is_control);
    if !reason.as_ref().is_none_or(fits) {
        return bad(&format!(
            "a reason is one line of at most {LONGEST_REASON} characters"
        ));
    }
    let order = request.wish.map(|wish| Order {
        wish,
        reason,
        by: caller.to_string(),
        at: clock::wall(),
    });
    let (ask, answer) = oneshot::channel();
    let ordering = Ordering {
        addr,
        port,
        service: request.service,
        order,
        answer: ask,
    };
    match asked(&questions, Question::Order(Box::new(ordering)), answer).await {
        Ok(Some(done)) => Json(done).into_response(),
        Ok(None) => {
            let name = &request.server;
            let detail = match request.service {
                None => format!("no virtual service has a server {name}: see understudy status"),
                Some(key) => {
                    format!("no virtual service {key} has a server {name}: see understudy status")
                }
            };
            problem(StatusCode::NOT_FOUND, "no_such_server", &detail)
        }
        Err(silent) => silent,
    }
}

/// What is ordered moves traffic: only root and the director's own user may.
const fn may_order(caller: &Caller, own: u32) -> bool {
    match caller {
        Caller::Local { uid } => *uid == 0 || *uid == own,
        Caller::Loopback(_) => false,
    }
}

async fn asked<T>(
    questions: &mpsc::Sender<Question>,
    question: Question,
    answer: oneshot::Receiver<T>,
) -> Result<T, Response> {
    let exchange = async {
        questions.send(question).await.ok()?;
        answer.await.ok()
    };
    let answered = time::timeout(ANSWER_LIMIT, exchange).await.ok().flatten();
    answered.ok_or_else(|| {
        let detail = "the director's core does not answer: it stops, or hangs; see its log";
        problem(StatusCode::SERVICE_UNAVAILABLE, "core_silent", detail)
    })
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
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
mod tests {
    use super::*;

    #[test]
    fn root_and_the_directors_user_may_order() {
        for (uid, may) in [(0, true), (7, true), (8, false)] {
            assert_eq!(may_order(&Caller::Local { uid }, 7), may);
        }
        let port = Caller::Loopback(([127, 0, 0, 1], 9).into());
        assert!(!may_order(&port, 7));
    }
}
