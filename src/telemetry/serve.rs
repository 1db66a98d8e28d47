//! `/metrics` and `/healthz` over HTTP, on a listener that is given.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{clock, model::MonoTime};

/// Connections at a time: a scraper or two, and a person. More wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16;

/// A connection lasts at most this long; it serves one request.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// The request's head must have come by then: well before a scraper that waits gives up.
const HEAD_LIMIT: Duration = Duration::from_secs(2);

/// After an `accept` that failed (no descriptors), the next one waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// `/healthz` calls a core dead whose heart has not beaten for this long.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// When the core made progress last, by [`clock::now`].
pub type Heartbeat = watch::Receiver<MonoTime>;

#[derive(Clone)]
struct Shown {
    registry: Arc<Registry>,
    heartbeat: Heartbeat,
}

/// Answers until `stop`: `GET /metrics` in OpenMetrics' text form, `GET /healthz` with 200 while
/// the core's heart beats, else 503.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    heartbeat: Heartbeat,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(Shown {
            registry,
            heartbeat,
        });
    let mut connections = JoinSet::new();
    loop {
        select! {
            biased;
            () = stop.cancelled() => return,
            // Cancel-safe per the docs of `join_next`.
            Some(end) = connections.join_next() => {
                if let Err(error) = end {
                    error!(%error, "a metrics connection panicked");
                }
            }
            // Cancel-safe per the docs of `accept`.
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _peer)) => {
                    connections.spawn(converse(stream, router.clone()));
                }
                Err(error) => {
                    warn!(%error, "metrics connection could not be accepted");
                    select! {
                        () = stop.cancelled() => return,
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }
}

async fn converse(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "metrics connection broke"),
        Err(_elapsed) => debug!("metrics connection took too long"),
    }
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &shown.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => {
            error!(%error, "metrics could not be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn healthz(State(shown): State<Shown>) -> Response {
    let silent = clock::now().since(*shown.heartbeat.borrow());
    if silent <= HEARTBEAT_LIMIT {
        return "ok\n".into_response();
    }
    let text = format!("no progress for {} s\n", silent.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
