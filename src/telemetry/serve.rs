//! `/metrics` and `/healthz` over HTTP, on a listener that is given.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    clock,
    http::{self, Doors, Limits},
    model::MonoTime,
};

/// A scraper or two, and a person; the request's head must come well before a scraper that waits
/// gives up.
const LIMITS: Limits = Limits {
    connections: 16,
    header: Duration::from_secs(2),
    lasting: Duration::from_secs(10),
    keep_alive: false,
    reserved: 0,
};

/// `/healthz` calls a core dead whose heart has not beaten for this long.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// When the core made progress last, by [`clock::now`].
pub type Heartbeat = watch::Receiver<MonoTime>;

/// What `/healthz` goes by.
#[derive(Clone, Debug)]
pub struct Health {
    /// When the core made progress last.
    pub heartbeat: Heartbeat,
    /// What keeps it from its work though it is well, in a few words.
    pub trouble: watch::Receiver<Option<&'static str>>,
}

impl From<Heartbeat> for Health {
    /// Of a core that is well as long as it makes progress.
    fn from(heartbeat: Heartbeat) -> Self {
        Self {
            heartbeat,
            trouble: watch::channel(None).1,
        }
    }
}

#[derive(Clone)]
struct Shown {
    registry: Arc<Registry>,
    health: Health,
}

/// Answers until `stop`: `GET /metrics` in OpenMetrics' text form, `GET /healthz` with 200 while
/// the core's heart beats and nothing keeps it from its work, else 503.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    health: Health,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(Shown { registry, health });
    http::serve(Doors::tcp(listener), router, LIMITS, stop).await;
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
    let silent = clock::now().since(*shown.health.heartbeat.borrow());
    let trouble = *shown.health.trouble.borrow();
    let text = match trouble {
        _ if silent > HEARTBEAT_LIMIT => format!("no progress for {} s\n", silent.as_secs()),
        Some(trouble) => format!("{trouble}\n"),
        None => return "ok\n".into_response(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
