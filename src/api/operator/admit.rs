//! Who gets in: before any route, by the user and the groups of whoever connected.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use nix::unistd::Uid;
use tokio::time::timeout;

use super::{ANSWER_LIMIT, Desk, Found, problem};
use crate::{
    http::Caller,
    model::{Access, Right},
};

/// Whom the socket lets in, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Who may.
    pub access: Access,
    /// What is not as the configuration says, in words.
    pub warnings: Vec<String>,
    /// Whether it was looked up since the start.
    pub settled: bool,
}

/// This host's directory of users.
pub trait Directory: std::fmt::Debug + Send + Sync {
    /// All groups of a user whose process has this first group; or why that is not known.
    fn groups(&self, uid: u32, gid: u32) -> Found<'_, Arc<[u32]>>;
}

/// Reading is `GET`, and all else is changing.
pub(super) async fn admit(
    State(desk): State<Desk>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let right = match *request.method() {
        Method::GET | Method::HEAD => Right::Read,
        _ => Right::Change,
    };
    match check(&desk, caller, right, Uid::effective().as_raw()).await {
        Ok(()) => next.run(request).await,
        Err(refused) => refused,
    }
}

pub(super) async fn check(
    desk: &Desk,
    caller: Caller,
    right: Right,
    own: u32,
) -> Result<(), Response> {
    let Caller::Local { uid, gid } = caller else {
        return Err(refused(caller, right, &Access::BySocket));
    };
    // Root gets in whatever else hangs.
    if uid == 0 || uid == own {
        return Ok(());
    }
    let unknown = |why: &str| {
        let detail = format!("whether {caller} may is not known: {why}; root may");
        problem(StatusCode::SERVICE_UNAVAILABLE, "groups_unknown", &detail)
    };
    let Some(access) = settled(desk).await else {
        return Err(unknown("the groups of [operators] are being looked up"));
    };
    let groups = match access.asks_for_groups(uid, own) {
        true => (desk.directory.groups(uid, gid).await).map_err(|why| unknown(&why))?,
        false => [gid].into(),
    };
    match access.lets(right, uid, &groups, own) {
        true => Ok(()),
        false => Err(refused(caller, right, &access)),
    }
}

/// Who may, once that was looked up.
async fn settled(desk: &Desk) -> Option<Access> {
    let mut admission = desk.admission.clone();
    let settled = timeout(ANSWER_LIMIT, admission.wait_for(|a| a.settled)).await;
    settled.ok()?.ok().map(|admission| admission.access.clone())
}

fn refused(caller: Caller, right: Right, access: &Access) -> Response {
    let detail = match (access, right) {
        (Access::BySocket, _) => format!(
            "{caller} may not: ask as root or as the director's user, or let a group in with [operators] change"
        ),
        (Access::ByGroup { .. }, Right::Read) => format!(
            "{caller} may not ask: be root, the director's user, or a member of a group under [operators] read or change"
        ),
        (Access::ByGroup { .. }, Right::Change) => format!(
            "{caller} may not change anything: be root, the director's user, or a member of a group under [operators] change"
        ),
    };
    problem(StatusCode::FORBIDDEN, "not_an_operator", &detail)
}
