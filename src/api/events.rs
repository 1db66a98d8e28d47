//! `GET /v1/events?after=N&wait=SECONDS&service=…&server=…&kind=A,B&severity=…`: the last events, as a long poll.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::operator::problem;
use crate::model::{EventFilter, EventKind, EventRing};

/// So many readers wait at once: half of the connections stay for those who ask and give orders.
const WAITING: usize = 8;

/// The longest wait: less than a connection lasts.
const LONGEST: u64 = 25;

#[derive(Clone)]
struct Feed {
    ring: watch::Receiver<EventRing>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// Those after this number; without it all that are kept.
    after: Option<u64>,
    /// The life of the process that `after` is of: those of another begin anew.
    run: Option<u64>,
    /// How long to wait where there is none yet, in seconds.
    #[serde(default)]
    wait: u64,
    service: Option<String>,
    server: Option<String>,
    kind: Option<String>,
    severity: Option<String>,
}

impl Asked {
    fn filter(&self) -> Result<EventFilter, String> {
        let kinds = self.kind.as_deref().unwrap_or_default();
        let kinds = kinds.split(',').filter(|word| !word.is_empty());
        let kinds: Result<BTreeSet<EventKind>, _> = kinds.map(str::parse).collect();
        Ok(EventFilter {
            service: read(self.service.as_deref())?,
            server: read(self.server.as_deref())?,
            kinds: kinds.map_err(|e| e.to_string())?,
            severity: read(self.severity.as_deref())?,
        })
    }
}

fn read<T: std::str::FromStr<Err: ToString>>(text: Option<&str>) -> Result<Option<T>, String> {
    let value = text.map(str::parse).transpose();
    value.map_err(|e: T::Err| e.to_string())
}

pub(super) fn router(ring: watch::Receiver<EventRing>, stop: CancellationToken) -> Router {
    let feed = Feed {
        ring,
        places: Arc::new(Semaphore::new(WAITING)),
        stop,
    };
    Router::new()
        .route("/v1/events", get(events))
        .with_state(feed)
}

async fn events(
    State(mut feed): State<Feed>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let bad = |detail: &str| problem(StatusCode::BAD_REQUEST, "bad_question", detail);
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(error) => return bad(&error.body_text()),
    };
    let filter = match asked.filter() {
        Ok(filter) => filter,
        Err(why) => return bad(&why),
    };
    let after = {
        let ring = feed.ring.borrow();
        // A number of another process, or one that never was.
        let another = asked.run.is_some_and(|run| run != ring.run());
        match asked.after {
            Some(after) if another || after > ring.newest() => None,
            after => after,
        }
    };
    let mut page = feed.ring.borrow_and_update().page(after, &filter);
    if !page.events.is_empty() || asked.wait == 0 {
        return Json(page).into_response();
    }
    let Ok(_place) = feed.places.try_acquire() else {
        let detail =
            format!("{WAITING} readers wait for events already: ask again later, or without wait");
        return problem(StatusCode::SERVICE_UNAVAILABLE, "too_many_readers", &detail);
    };
    let waiting = async {
        while page.events.is_empty() {
            tokio::select! {
                () = feed.stop.cancelled() => break,
                // Cancel-safe: `changed` only marks the value seen when it returns.
                changed = feed.ring.changed() => if changed.is_err() { break },
            }
            let next = feed.ring.borrow_and_update().page(Some(page.next), &filter);
            let missed = page.missed + next.missed;
            page = next;
            page.missed = missed;
        }
    };
    // Nothing happened, where the time is over: the answer says so, and where to go on.
    let _over = timeout(Duration::from_secs(asked.wait.min(LONGEST)), waiting).await;
    Json(page).into_response()
}
