//! `GET /v1/status` and `GET /v1/explain`: what the core says, and beside it what the kernel counts and the
//! provisioner tells.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyper::Method;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::{ANSWER_LIMIT, Desk, Found, Question, asked, problem, unknown_server};
use crate::{
    api::client::{Client, NOTHING},
    director::explain::{Counts, Explained, Explanation},
    model::{DestKey, ServiceKey, parse_server, wire::Replacement},
    telemetry::Chain,
};

/// Destinations by service.
pub type Counted = BTreeMap<ServiceKey, BTreeMap<DestKey, Counts>>;

/// The kernel's table, to be read.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// What it counts of the destinations of these services; or why that is not known.
    fn count(&self, services: Vec<ServiceKey>) -> Found<'_, Counted>;
}

/// A provisioner that says nothing for so long is silent: an operator waits for the rest.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn status(State(desk): State<Desk>) -> Response {
    let (ask, answer) = oneshot::channel();
    let mut status = match asked(&desk.questions, Question::Status(ask), answer, ANSWER_LIMIT).await
    {
        Ok(status) => status,
        Err(silent) => return silent,
    };
    status
        .warnings
        .extend(desk.admission.borrow().warnings.iter().cloned());
    let services = status.services.iter().map(|s| s.service).collect();
    match desk.kernel.count(services).await {
        Ok(counted) => {
            for service in &mut status.services {
                let Some(dests) = counted.get(&service.service) else {
                    continue;
                };
                let named: BTreeMap<_, _> =
                    dests.iter().map(|(d, c)| (d.to_string(), *c)).collect();
                for server in &mut service.servers {
                    server.connections = named.get(&server.server).copied();
                }
            }
        }
        Err(why) => {
            let text = format!("the kernel's connections cannot be read: {why}");
            status.warnings.push(text);
        }
    }
    Json(status).into_response()
}

/// Which server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    server: String,
    service: Option<ServiceKey>,
}

/// A server to be explained.
#[derive(Debug)]
pub struct Explain {
    /// Of this server.
    pub addr: IpAddr,
    /// At this port only.
    pub port: Option<u16>,
    /// In this service only.
    pub service: Option<ServiceKey>,
    /// Answered at once; nothing: there is no such server.
    pub answer: oneshot::Sender<Vec<Explained>>,
}

pub(super) async fn explain(
    State(desk): State<Desk>,
    which: Result<Query<Which>, QueryRejection>,
) -> Response {
    let bad = |detail: &str| problem(StatusCode::BAD_REQUEST, "bad_question", detail);
    let which = match which {
        Ok(Query(which)) => which,
        Err(error) => return bad(&error.body_text()),
    };
    let Some((addr, port)) = parse_server(&which.server) else {
        return bad(&unknown_server(&which.server));
    };
    let (ask, answer) = oneshot::channel();
    let question = Explain {
        addr,
        port,
        service: which.service,
        answer: ask,
    };
    let found = asked(
        &desk.questions,
        Question::Explain(question),
        answer,
        ANSWER_LIMIT,
    )
    .await;
    let mut found = match found {
        Ok(found) => found,
        Err(silent) => return silent,
    };
    if found.is_empty() {
        let place = which.service.map(|key| format!("virtual service {key}"));
        let place = place.unwrap_or_else(|| "no virtual service".to_owned());
        let has = if which.service.is_some() {
            "has no"
        } else {
            "has a"
        };
        let detail = format!(
            "{place} {has} server {}: see understudy status",
            which.server
        );
        return problem(StatusCode::NOT_FOUND, "no_such_server", &detail);
    }
    let services = found.iter().map(|e| e.explanation.service).collect();
    let counted = desk.kernel.count(services).await;
    for one in &mut found {
        let explanation = &mut one.explanation;
        match &counted {
            Ok(counted) => {
                let dests = counted.get(&explanation.service);
                explanation.kernel = dests.and_then(|d| d.get(&one.server)).copied();
                explanation.kernel_unread = None;
            }
            Err(why) => explanation.kernel_unread = Some(why.clone()),
        }
    }
    if let Some(provisioner) = &desk.provisioner {
        tell_of_replacements(provisioner, &mut found).await;
    }
    let all: Vec<Explanation> = found.into_iter().map(|e| e.explanation).collect();
    Json(all).into_response()
}

/// Asks the provisioner once for each replacement.
async fn tell_of_replacements(client: &Client, found: &mut [Explained]) {
    let mut told: BTreeMap<_, Result<Replacement, String>> = BTreeMap::new();
    for one in found {
        let Some(id) = one.ask.take() else {
            continue;
        };
        if !told.contains_key(&id) {
            let path = format!("/v1/replacements/{id}");
            let answer = client
                .ask(Method::GET, &path, None, NOTHING, PATIENCE)
                .await;
            told.insert(id.clone(), answer.map_err(|e| Chain(&e).to_string()));
        }
        match told.get(&id) {
            Some(Ok(replacement)) => one.explanation.replacement = Some(replacement.clone()),
            Some(Err(why)) => one.explanation.provisioner_silent = Some(why.clone()),
            None => {}
        }
    }
}
