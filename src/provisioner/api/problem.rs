//! Errors as problem documents (RFC 9457), axum's own included.

use axum::{
    extract::{FromRequest, FromRequestParts, Json, Request, rejection::JsonRejection},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use tracing::{debug, error};

use crate::{model::wire::Problem, provisioner::store::StoreError, telemetry::Chain};

/// A problem as an answer.
#[derive(Debug)]
pub(super) struct Refusal(Problem);

/// The code of an answer that only the store keeps from being another one.
const STORE_AWAY: &str = "store_away";

/// A store that is away is asked for again after so many seconds.
const RETRY_AFTER: &str = "2";

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self(Problem::new(status.as_u16(), title, code, detail))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A problem is three texts and a number: it always has a JSON form.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        if self.0.code == STORE_AWAY {
            let later = [(header::RETRY_AFTER, RETRY_AFTER)];
            return (status, kind, later, body).into_response();
        }
        (status, kind, body).into_response()
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
                    STORE_AWAY,
                    "the provisioner's store is away: ask again",
                )
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
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(e) => {
                let code = match &e {
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
