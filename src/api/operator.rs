//! The director's operator socket: `GET /v1/status`.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    director::status::Status,
    http::{self, Doors, Limits},
    model::wire::Problem,
};

/// A question to the core.
pub type Question = oneshot::Sender<Status>;

/// Operators are few, and ask once.
const LIMITS: Limits = Limits {
    connections: 16,
    header: Duration::from_secs(5),
    lasting: Duration::from_secs(30),
    keep_alive: false,
};

/// The core answers within this, or it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Answers until `stop`.
pub async fn serve(doors: Doors, questions: mpsc::Sender<Question>, stop: CancellationToken) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .fallback(|| async {
            let detail = "the operator socket has GET /v1/status";
            problem(StatusCode::NOT_FOUND, "no_such_route", detail)
        })
        .with_state(questions);
    http::serve(doors, router, LIMITS, stop).await;
}

async fn status(State(questions): State<mpsc::Sender<Question>>) -> Response {
    let (ask, answer) = oneshot::channel();
    let exchange = async {
        questions.send(ask).await.ok()?;
        answer.await.ok()
    };
    match time::timeout(ANSWER_LIMIT, exchange).await {
        Ok(Some(status)) => Json(status).into_response(),
        Ok(None) | Err(_) => {
            let detail = "the director's core does not answer: it stops, or hangs; see its log";
            problem(StatusCode::SERVICE_UNAVAILABLE, "core_silent", detail)
        }
    }
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
