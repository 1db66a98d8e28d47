//! Errors as problem documents (RFC 9457), axum's own included.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Json, Request, rejection::JsonRejection},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::{debug, error};

use crate::{model::wire::Problem, provisioner::store::StoreError, telemetry::Chain};

/// A body arrives within this: whoever sends slowly holds up itself.
const ARRIVAL: Duration = Duration::from_secs(30);

/// A problem as an answer.
#[derive(Debug)]
pub(super) struct Refusal(Problem);

/// A store that is away is asked for again after so many seconds.
const RETRY_AFTER: u64 = 2;

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self(Problem::new(status.as_u16(), title, code, detail))
    }

    /// The same, to be asked again after so many seconds.
    pub(super) fn retry_after(self, seconds: u64) -> Self {
        Self(self.0.retry_after(seconds))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A problem is three texts and a number: it always has a JSON form.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut answer = (status, kind, body).into_response();
        if let Some(seconds) = self.0.retry_after_s {
            let headers = answer.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Self {
        match &e {
            StoreError::NoReplacement { id } => Self::new(
                StatusCode::NOT_FOUND,
                "no_such_replacement",
                format!("there is no replacement {id}"),
            ),
            // The engine says so, once.
            StoreError::Away { .. } => {
                debug!(error = %Chain(&e), "request while the store is away");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store_away",
                    "the provisioner's store is away: ask again",
                )
                .retry_after(RETRY_AFTER)
            }
            _ => {
                error!(error = %Chain(&e), "request failed in the store");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "store_failed",
                    format!("{e}: see the provisioner's log"),
                )
            }
        }
    }
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let read = timeout(ARRIVAL, Json::<T>::from_request(request, state)).await;
        let read = read.map_err(|_elapsed| {
            let detail = format!("the body did not arrive within {} s", ARRIVAL.as_secs());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "slow_body", detail)
        })?;
        match read {
            Ok(Json(body)) => Ok(Self(body)),
            Err(e) => {
                let code = match &e {
                    _ if e.status() == StatusCode::PAYLOAD_TOO_LARGE => "body_too_big",
                    JsonRejection::JsonDataError(_) => "wrong_body",
                    JsonRejection::JsonSyntaxError(_) => "no_json",
                    JsonRejection::MissingJsonContentType(_) => "wrong_content_type",
                    _ => "bad_body",
                };
                Err(Refusal::new(e.status(), code, e.body_text()))
            }
        }
    }
}

/// The query string.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(e) => Err(Refusal::new(e.status(), "bad_query", e.body_text())),
        }
    }
}

/// The parts of the path that vary.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(e) => Err(Refusal::new(e.status(), "bad_path", e.body_text())),
        }
    }
}
