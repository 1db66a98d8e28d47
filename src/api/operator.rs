//! The director's operator socket: `GET /v1/status`.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{director::status::Status, model::wire::Problem};

/// A question to the core.
pub type Question = oneshot::Sender<Status>;

/// Operators at a time.
const MAX_CONNECTIONS: usize = 16;

/// A connection lasts at most this long.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);

/// The core answers within this, or it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Answers until `stop`.
pub async fn serve(
    listener: UnixListener,
    questions: mpsc::Sender<Question>,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "no_such_route",
                "the operator socket has GET /v1/status",
            )
        })
        .with_state(questions);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // Cancel-safe per the docs of `join_next` and `accept`.
            Some(end) = connections.join_next() => if let Err(error) = end {
                warn!(%error, "an operator's connection panicked");
            },
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => drop(connections.spawn(converse(stream, router.clone()))),
                Err(error) => {
                    warn!(%error, "operator's connection could not be accepted");
                    time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

async fn converse(stream: UnixStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(ANSWER_LIMIT)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match time::timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "operator's connection broke"),
        Err(_elapsed) => debug!("operator's connection took too long"),
    }
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
