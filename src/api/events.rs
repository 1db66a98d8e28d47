//! `GET /v1/events?after=N&wait=SECONDS&service=…&server=…&kind=A,B&severity=…`: the last events, as a long poll.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::operator::problem;
use crate::model::{EventRing, EventsAsked};

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
    asked: Result<Query<EventsAsked>, QueryRejection>,
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

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tokio::{join, task::JoinSet};
    use tower::ServiceExt as _;

    use super::*;
    use crate::model::{EventDraft, EventKind, EventPage, Role, WallMillis};

    const LIMIT: Duration = Duration::from_secs(60);

    fn feed() -> (watch::Sender<EventRing>, Router) {
        let (ring, followed) = watch::channel(EventRing::new(Role::Director, None, WallMillis(7)));
        (ring, router(followed, CancellationToken::new()))
    }

    fn push(ring: &watch::Sender<EventRing>, kind: EventKind) {
        let draft = EventDraft::new(kind, "it happened");
        ring.send_modify(|ring| ring.push(draft, WallMillis(0)));
    }

    async fn ask(router: &Router, query: &str) -> (StatusCode, String) {
        let request = Request::get(format!("/v1/events{query}"));
        let request = request.body(Body::empty()).unwrap();
        let answer = timeout(LIMIT, router.clone().oneshot(request)).await;
        let answer = answer.expect("an answer in time").unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn page(router: &Router, query: &str) -> (Vec<u64>, u64, u64) {
        let (status, body) = ask(router, query).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let page: EventPage = serde_json::from_str(&body).unwrap();
        let numbers = page.events.iter().map(|e| e.number).collect();
        (numbers, page.next, page.missed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_waits_for_an_event_that_it_looks_for() {
        let (ring, router) = feed();
        push(&ring, EventKind::Started);
        assert_eq!(page(&router, "").await, (vec![1], 1, 0));
        assert_eq!(page(&router, "?after=1&wait=5").await, (vec![], 1, 0));
        let waiting = page(&router, "?after=1&wait=20&kind=quorum_lost");
        let happening = async {
            tokio::task::yield_now().await;
            push(&ring, EventKind::ServerDown);
            tokio::task::yield_now().await;
            push(&ring, EventKind::QuorumLost);
        };
        let (got, ()) = join!(waiting, happening);
        assert_eq!(got, (vec![3], 3, 0));
        // Where none of those that it looks for came, it goes on after the others.
        let none = page(&router, "?after=1&kind=quorum_held").await;
        assert_eq!(none, (vec![], 3, 0));
    }

    #[tokio::test]
    async fn a_number_of_another_life_begins_anew() {
        let (ring, router) = feed();
        push(&ring, EventKind::Started);
        push(&ring, EventKind::ServerDown);
        assert_eq!(page(&router, "?after=1&run=7").await, (vec![2], 2, 0));
        assert_eq!(page(&router, "?after=1&run=6").await, (vec![1, 2], 2, 0));
        assert_eq!(page(&router, "?after=9").await, (vec![1, 2], 2, 0));
        for _ in 0..1_000 {
            push(&ring, EventKind::ServerUp);
        }
        let (_, next, missed) = page(&router, "?after=1&run=7").await;
        assert_eq!((next, missed), (202, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_readers_wait_and_no_more() {
        let (ring, router) = feed();
        push(&ring, EventKind::Started);
        let mut waiting = JoinSet::new();
        for _ in 0..WAITING {
            let router = router.clone();
            waiting.spawn(async move { page(&router, "?after=1&wait=25").await });
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let (status, body) = ask(&router, "?after=1&wait=1").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("too_many_readers"), "{body}");
        assert_eq!(page(&router, "?after=1").await, (vec![], 1, 0), "unwaited");
        push(&ring, EventKind::ServerDown);
        while let Some(got) = waiting.join_next().await {
            assert_eq!(got.unwrap(), (vec![2], 2, 0));
        }
        assert_eq!(page(&router, "?after=2&wait=1").await, (vec![], 2, 0));
    }

    #[tokio::test]
    async fn a_question_that_is_wrong_is_told_how() {
        let (_ring, router) = feed();
        for (query, word) in [
            ("?kind=server_gone", "is no kind of event: write one of"),
            (
                "?severity=bad",
                "is no severity: write one of info, warning",
            ),
            ("?server=web1", "is no server"),
            ("?service=web", "names no virtual service"),
            ("?colour=red", "unknown field `colour`"),
        ] {
            let (status, body) = ask(&router, query).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
            assert!(body.contains(word), "{query}: {body}");
        }
    }
}
