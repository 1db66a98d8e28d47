//! The provisioner's HTTP API: the table in [`crate::model::wire`]. Answers from the store; what
//! takes long is the engine's work, watched by long polls.

mod gate;
mod problem;
mod roles;

use std::{collections::BTreeMap, fmt, mem, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use nix::unistd::Uid;
use serde::Deserialize;
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use gate::{Allowed, Gate};
use problem::{Body, Path, Query, Refusal};

use super::{
    claiming,
    engine::{Fact, Observer},
    granted::{self, NotGranted},
    log::since,
    plan::{self, Assignment},
    secrets::Secrets,
    select::Candidate,
    step::Look,
    store::{
        Actor, ApplyError, Asked, CancelOutcome, ConfirmOutcome, Ready, Registered, RetryOutcome,
        ServerOutcome, StepLog, Store, Which,
    },
};
use crate::{
    clock,
    http::{self, Caller, Doors, Limits},
    model::{
        DirectorName, EventPage, EventsAsked, Family, Grant, ReplacementId, WallMillis,
        inventory::{Inventory, InventoryAnswer, ServerView},
        wire::{
            Confirmation, Findings, LogPart, MaintenanceOrder, Members, QuarantineOrder,
            Registration, RegistrationAnswer, Replacement, ReplacementRequest, ReplacementState,
            RoleView, ServerWarning, SparesView,
        },
    },
};

/// An inventory of some thousand servers with their scripts fits in here.
const INVENTORY: usize = 16 * 1024 * 1024;

/// The services of one director, some thousand servers in them.
const REGISTRATION: usize = 4 * 1024 * 1024;

/// All other bodies: names and addresses.
const BODY: usize = 64 * 1024;

/// Longest long poll.
const LONGEST_WAIT: u64 = 60;

/// No request takes longer, its body's arrival and a long poll included.
const REQUEST: Duration = Duration::from_secs(90);

/// A poll reads again after this even if this process changed nothing: another one may have.
const REREAD: Duration = Duration::from_secs(1);

/// Longest idempotency key.
const KEY: usize = 255;

/// What the API answers from.
#[derive(Clone)]
pub struct App {
    /// The store.
    pub store: Store,
    /// This provisioner's name.
    pub name: String,
    /// This provisioner's addresses: a request's `centre` must be one of them.
    pub addresses: Vec<IpAddr>,
    /// Told of replacements that end here.
    pub observer: Observer,
    /// Which directors may ask over TLS, and for what.
    pub grants: watch::Receiver<Arc<Vec<Grant>>>,
    /// Looks at servers.
    pub look: Arc<dyn Look>,
    /// Secrets of files, which are looked at.
    pub secrets: Secrets,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Shared {
    app: App,
    stop: CancellationToken,
}

/// Connections at once at each door; a long poll holds one. A connection may ask more than once, but not for ever: a
/// certificate that has ended meanwhile is looked at again.
const LIMITS: Limits = Limits {
    connections: 256,
    header: Duration::from_secs(20),
    lasting: Duration::from_secs(3600),
    keep_alive: true,
    reserved: 16,
    each: 32,
    unknown: 64,
};

/// Answers at `doors` until `stop`.
pub async fn serve(doors: Doors, app: App, stop: CancellationToken) {
    let doors = doors.for_listed(app.grants.clone());
    http::serve(doors, router(app, stop.clone()), LIMITS, stop).await;
}

/// The routes. `stop` ends long polls with what is then the case.
pub fn router(app: App, stop: CancellationToken) -> Router {
    let gate = Gate::new(app.grants.clone());
    let up_to = DefaultBodyLimit::max;
    Router::new()
        .route(
            "/v1/directors/{name}",
            put(register).layer(up_to(REGISTRATION)),
        )
        .route("/v1/directors/{name}/findings", put(find))
        .route("/v1/directors/{name}/members", get(members))
        .route("/v1/directors/{name}/members/{replacement}", post(confirm))
        .route(
            "/v1/directors/{name}/members/{replacement}/release",
            post(give_back),
        )
        .route("/v1/replacements", get(list).post(ask))
        .route("/v1/replacements/{id}", get(show))
        .route("/v1/replacements/{id}/log", get(log))
        .route("/v1/replacements/{id}/cancel", post(cancel))
        .route("/v1/replacements/{id}/retry", post(retry))
        .route("/v1/inventory", put(apply).layer(up_to(INVENTORY)))
        .route("/v1/inventory/servers", get(servers))
        .route("/v1/servers/{name}/release", post(release))
        .route("/v1/events", get(events))
        .route("/v1/servers/{name}/clean", post(clean))
        .route("/v1/servers/{name}/quarantine", post(quarantine))
        .route("/v1/servers/{name}/maintenance", post(maintain))
        .route("/v1/roles", get(roles))
        .route("/v1/roles/{code}/spares", get(spares))
        .route("/v1/roles/{code}/release", post(roles::release))
        .route("/v1/roles/{code}/servers/{name}", get(roles::look))
        .fallback(async || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "no_such_route",
                "there is no such route",
            )
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "wrong_method",
                "this route takes another method",
            )
        })
        .layer(up_to(BODY))
        .layer(middleware::from_fn(deadline))
        .layer(middleware::from_fn_with_state(gate, gate::pass))
        .layer(middleware::from_fn_with_state(
            app.observer.clone(),
            counted,
        ))
        .with_state(Shared { app, stop })
}

/// The label of a request that no route takes, and then every route's.
const ROUTES: [&str; 22] = [
    "other",
    "/v1/directors/{name}",
    "/v1/directors/{name}/findings",
    "/v1/directors/{name}/members",
    "/v1/directors/{name}/members/{replacement}",
    "/v1/directors/{name}/members/{replacement}/release",
    "/v1/replacements",
    "/v1/replacements/{id}",
    "/v1/replacements/{id}/log",
    "/v1/replacements/{id}/cancel",
    "/v1/replacements/{id}/retry",
    "/v1/inventory",
    "/v1/inventory/servers",
    "/v1/servers/{name}/release",
    "/v1/events",
    "/v1/servers/{name}/clean",
    "/v1/servers/{name}/quarantine",
    "/v1/servers/{name}/maintenance",
    "/v1/roles",
    "/v1/roles/{code}/spares",
    "/v1/roles/{code}/release",
    "/v1/roles/{code}/servers/{name}",
];

async fn counted(
    State(observer): State<Observer>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let here = |r: &&&str| path.as_ref().is_some_and(|p| p.as_str() == **r);
    let route = ROUTES.iter().find(here).unwrap_or(&ROUTES[0]);
    let answer = next.run(request).await;
    observer.tell(Fact::Answered {
        route,
        status: answer.status().as_u16(),
    });
    answer
}

async fn deadline(request: Request, next: Next) -> Response {
    timeout(REQUEST, next.run(request))
        .await
        .unwrap_or_else(|_elapsed| {
            let detail = format!("not answered within {} s", REQUEST.as_secs());
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "took_too_long", detail).into_response()
        })
}

#[derive(Debug, Deserialize)]
struct Wait {
    after: Option<u64>,
    wait: Option<u64>,
}

impl Wait {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.wait.unwrap_or(0).min(LONGEST_WAIT))
    }
}

/// A long poll: read, and where that is not enough and [`Poll::moved`], read again.
struct Poll<'a> {
    shared: &'a Shared,
    changes: watch::Receiver<u64>,
    grants: watch::Receiver<Arc<Vec<Grant>>>,
    allowed: Allowed,
    /// Whether that is to be looked at.
    anew: bool,
    until: Instant,
}

impl<'a> Poll<'a> {
    /// Begins before the first reading: what changes during it is then seen.
    fn new(shared: &'a Shared, wait: &Wait, allowed: Allowed) -> Self {
        Self {
            shared,
            changes: shared.app.store.changes(),
            grants: shared.app.grants.clone(),
            allowed,
            anew: true,
            until: Instant::now() + wait.limit(),
        }
    }

    /// What is allowed, where that has not been looked at as it is now.
    fn allowed(&mut self) -> Result<Option<Allowed>, Refusal> {
        if !mem::take(&mut self.anew) && !self.grants.has_changed().unwrap_or(false) {
            return Ok(None);
        }
        self.allowed = self.allowed.again(&self.grants.borrow_and_update())?;
        Ok(Some(self.allowed.clone()))
    }

    /// Waits for a change. `false` where the time is over: what was read last is the answer.
    async fn moved(&mut self) -> bool {
        if Instant::now() >= self.until || self.shared.stop.is_cancelled() {
            return false;
        }
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            // Cancel-safe: `changed` only marks the value seen when it returns.
            _ = self.changes.changed() => {}
            // Cancel-safe: the same. Nobody lists directors any more once the program ends.
            Ok(()) = self.grants.changed() => self.anew = true,
            () = sleep(REREAD) => {}
            () = sleep_until(self.until) => {}
        }
        true
    }
}

fn director(name: &str) -> Result<DirectorName, Refusal> {
    name.parse().map_err(|e: crate::model::IdError| {
        Refusal::new(StatusCode::BAD_REQUEST, "bad_name", e.to_string())
    })
}

fn replacement_id(id: &str) -> Result<ReplacementId, Refusal> {
    id.parse().map_err(|e: crate::model::IdError| {
        Refusal::new(StatusCode::NOT_FOUND, "no_such_replacement", e.to_string())
    })
}

/// The inventory says what runs as root on every server: only root and the provisioner's own user
/// may change it, and nobody at the port, where a caller has no name.
fn operator(caller: &Caller) -> Result<(), Refusal> {
    match caller {
        Caller::Local { uid, .. } if *uid == 0 || *uid == Uid::effective().as_raw() => Ok(()),
        Caller::Local { .. } | Caller::Loopback(_) | Caller::Certified { .. } => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "not_an_operator",
            format!("{caller} may not: ask as root or as the provisioner's user, at the socket"),
        )),
    }
}

/// Who asks, for the audit trail.
fn actor(caller: &Caller) -> Actor {
    match caller {
        Caller::Local { .. } => Actor {
            who: caller.to_string(),
            from: Some("socket".to_owned()),
        },
        Caller::Loopback(peer) => Actor {
            who: "anybody".to_owned(),
            from: Some(peer.to_string()),
        },
        Caller::Certified { names, peer } => Actor {
            who: names.to_string(),
            from: Some(peer.to_string()),
        },
    }
}

/// What a director is known by, for the audit trail: the address that it says is its own word.
fn origin(caller: &Caller) -> String {
    match caller {
        Caller::Local { .. } => "socket".to_owned(),
        Caller::Loopback(peer) => peer.to_string(),
        Caller::Certified { names, .. } => names.to_string(),
    }
}

fn not_registered(name: &DirectorName) -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        "not_registered",
        format!(
            "the director {name} never registered its services: PUT /v1/directors/{name} first"
        ),
    )
}

async fn register(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Extension(allowed): Extension<Allowed>,
    Path(name): Path<String>,
    Body(body): Body<Registration>,
) -> Result<Json<RegistrationAnswer>, Refusal> {
    let name = director(&name)?;
    granted::size(&body).map_err(|why| {
        Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            why.code(),
            why.to_string(),
        )
    })?;
    let store = &shared.app.store;
    let world = match allowed.grant() {
        None => store.register(&name, &body).await?,
        Some(grant) => {
            let from = origin(&caller);
            match store.register_granted(grant, &body, from).await? {
                Registered::Kept(world) => *world,
                Registered::NotGranted(why) => return Err(not_granted(&why)),
            }
        }
    };
    let warnings = warnings(&world, &body).await;
    info!(
        director = %name, %caller, services = body.services.len(), warnings = warnings.len(),
        "director registered"
    );
    Ok(Json(RegistrationAnswer { warnings }))
}

/// Servers that could not be replaced if they failed now. One whose place a spare holds has failed
/// already and is not asked about. Servers that need the same of a spare are looked at once.
async fn warnings(world: &plan::World, registration: &Registration) -> Vec<ServerWarning> {
    let mut addresses: Vec<IpAddr> = registration
        .services
        .iter()
        .flat_map(|s| s.servers.iter().map(|s| s.address))
        .collect();
    addresses.sort();
    addresses.dedup();
    let pool = world.pool();
    let mut known = BTreeMap::new();
    let mut warnings = Vec::new();
    for server in addresses {
        let held = world.assignments.get(&server);
        if held.is_some_and(|held| held.passed_on.is_some()) {
            continue;
        }
        let found = match held.and_then(|held| alike(world, held, server)) {
            None => obstacle(world, &pool, server),
            Some(alike) => match known.get(&alike) {
                Some(found) => Option::clone(found),
                None => {
                    // Thousands of them take a while: others have their turns between.
                    yield_now().await;
                    let found = obstacle(world, &pool, server);
                    known.insert(alike, found.clone());
                    found
                }
            },
        };
        warnings.extend(found.map(|(code, detail)| ServerWarning {
            server,
            code: code.to_owned(),
            detail,
        }));
    }
    warnings
}

/// Servers of which this is the same can be replaced by the same spares: what their role asks of one is the same, of the
/// same family, and so are the labels in which it had better differ.
type Alike<'a> = (&'a str, Family, Vec<Option<&'a str>>);

fn alike<'a>(world: &'a plan::World, held: &'a Assignment, server: IpAddr) -> Option<Alike<'a>> {
    let role = world.roles.get(&held.role)?;
    let labels = &world.servers.get(&held.server)?.server.labels;
    let apart = role.spares.apart.iter();
    let apart = apart.map(|label| labels.get(label).map(String::as_str));
    Some((&role.code, Family::of(server), apart.collect()))
}

fn obstacle(
    world: &plan::World,
    pool: &[Candidate],
    server: IpAddr,
) -> Option<(&'static str, String)> {
    let brief = match world.brief(server, &[server]) {
        Ok(brief) => brief,
        Err(miss) => return Some((miss.code(), miss.to_string())),
    };
    let none = world.choose(pool.to_vec(), &brief, "never-run").err()?;
    Some((none.code, none.reason))
}

async fn members(
    State(shared): State<Shared>,
    Extension(allowed): Extension<Allowed>,
    Path(name): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<Members>, Refusal> {
    let name = director(&name)?;
    let mut poll = Poll::new(&shared, &wait, allowed);
    loop {
        if let Some(allowed) = poll.allowed()? {
            may_ask(&shared, &allowed, &name).await?;
        }
        let members = shared.app.store.members(&name).await?;
        let members = members.ok_or_else(|| not_registered(&name))?;
        // Another version, not a higher one: a store that was made anew counts from the start.
        if wait.after != Some(members.version) || !poll.moved().await {
            return Ok(Json(members));
        }
    }
}

async fn confirm(
    State(shared): State<Shared>,
    Extension(allowed): Extension<Allowed>,
    Path((name, id)): Path<(String, String)>,
    Body(body): Body<Confirmation>,
) -> Result<StatusCode, Refusal> {
    let (name, id) = (director(&name)?, replacement_id(&id)?);
    may_ask(&shared, &allowed, &name).await?;
    match shared.app.store.confirm(&name, &id, body).await? {
        ConfirmOutcome::Noted => {
            info!(director = %name, replacement = %id, is = ?body.is, "stand-in confirmed");
        }
        ConfirmOutcome::Succeeded => {
            info!(director = %name, replacement = %id, "replacement succeeded");
            shared.app.observer.tell(Fact::ReplacementEnded {
                outcome: ReplacementState::Succeeded,
            });
        }
        ConfirmOutcome::NoSuchMember => {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "no_such_member",
                format!("the director {name} has no stand-in by {id}"),
            ));
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn ask(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Extension(allowed): Extension<Allowed>,
    headers: HeaderMap,
    Body(body): Body<ReplacementRequest>,
) -> Result<Response, Refusal> {
    let key = key(&headers)?;
    may_ask(&shared, &allowed, &body.name).await?;
    if !shared.app.addresses.contains(&body.centre) {
        return Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_centre",
            format!(
                "{} is no address of this provisioner: the director {} is configured for another",
                body.centre, body.name
            ),
        ));
    }
    let store = &shared.app.store;
    let from = match &caller {
        Caller::Certified { .. } => origin(&caller),
        Caller::Local { .. } | Caller::Loopback(_) => body.director.to_string(),
    };
    let secrets = &shared.app.secrets;
    let ready: Ready<'_> = &|world, id, place| claiming::ready(world, secrets, id, place);
    let by = (shared.app.name.as_str(), ready);
    let asked = store.ask_from(key, &body, from, by).await?;
    let (replacement, new) = match asked {
        Asked::Taken { replacement, new } => (replacement, new),
        Asked::KeyReused => {
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                format!("the key {key} was used with another body"),
            ));
        }
        Asked::NotRegistered => return Err(not_registered(&body.name)),
        Asked::NotYours => {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "not_yours",
                format!(
                    "the director {} registered no service with {}, nor with a server whose place \
                     that one took",
                    body.name, body.failed
                ),
            ));
        }
    };
    if new {
        info!(
            replacement = %replacement.id, director = %body.name, failed = %body.failed, key,
            %caller, "replacement asked for"
        );
        if let Some(spare) = &replacement.spare {
            info!(
                server = spare.name, failed = %body.failed, role = replacement.role,
                "warm spare offered to the directors"
            );
        }
    }
    let location = format!("/v1/replacements/{}", replacement.id);
    Ok((
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        Json(replacement),
    )
        .into_response())
}

fn key(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = headers.get("idempotency-key").ok_or_else(|| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "idempotency_key_required",
            "send the header Idempotency-Key: it names the failure, the same for every try",
        )
    })?;
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() || text.len() > KEY {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "idempotency_key_invalid",
            format!("an idempotency key is 1 to {KEY} printable ASCII characters"),
        ));
    }
    Ok(text)
}

async fn find(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Extension(allowed): Extension<Allowed>,
    Path(name): Path<String>,
    Body(body): Body<Findings>,
) -> Result<StatusCode, Refusal> {
    let name = director(&name)?;
    may_ask(&shared, &allowed, &name).await?;
    let actor = Actor::director(&name, origin(&caller));
    let found = shared.app.store.find(&name, body, actor).await?;
    for (spare, why) in found.ok_or_else(|| not_registered(&name))? {
        match why {
            Some(why) => warn!(
                director = %name, server = spare, reason = why,
                "a warm spare fails a director's checks: others are kept and chosen before it, look at the server"
            ),
            None => {
                info!(director = %name, server = spare, "a warm spare passes a director's checks again")
            }
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn give_back(
    State(shared): State<Shared>,
    Extension(allowed): Extension<Allowed>,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (name, id) = (director(&name)?, replacement_id(&id)?);
    may_ask(&shared, &allowed, &name).await?;
    if !shared.app.store.give_back(&name, &id).await? {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no_such_member",
            format!("{name} has no stand-in of {id}"),
        ));
    }
    info!(director = %name, replacement = %id, "stand-in given back");
    Ok(StatusCode::NO_CONTENT)
}

async fn list(
    State(shared): State<Shared>,
    Extension(allowed): Extension<Allowed>,
) -> Result<Json<Vec<Replacement>>, Refusal> {
    let mut all = shared.app.store.replacements().await?;
    if let Some(grant) = allowed.grant() {
        let (name, world) = (&grant.name, shared.app.store.world().await?);
        granted::standing(&world, grant).map_err(|why| not_granted(&why))?;
        all.retain(|r| concerns(&world, name, r));
    }
    Ok(Json(all))
}

/// Whether a replacement is one of a director: it asked for it, or has the server in a service, as the other one of a
/// pair has.
fn concerns(world: &plan::World, name: &DirectorName, replacement: &Replacement) -> bool {
    let places = [replacement.failed, replacement.origin];
    replacement.director == *name || world.directors_with(&places).any(|d| d == name)
}

/// Lets a director with a certificate ask about a replacement of its own, and nobody else of them.
async fn may_see(
    shared: &Shared,
    allowed: &Allowed,
    replacement: &Replacement,
) -> Result<(), Refusal> {
    let Some(grant) = allowed.grant() else {
        return Ok(());
    };
    let (name, world) = (&grant.name, shared.app.store.world().await?);
    granted::standing(&world, grant).map_err(|why| not_granted(&why))?;
    match concerns(&world, name, replacement) {
        true => Ok(()),
        false => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "not_your_replacement",
            format!(
                "{} is of {}, a server of the director {}, and none of {name}",
                replacement.id, replacement.failed, replacement.director
            ),
        )),
    }
}

/// Lets a director with a certificate ask for itself, as long as all that it has registered is allowed: the list may
/// have become shorter since, and somebody of that host may have registered more.
async fn may_ask(shared: &Shared, allowed: &Allowed, name: &DirectorName) -> Result<(), Refusal> {
    allowed.speaks_for(name)?;
    match allowed.grant() {
        Some(grant) if grant.is_limited() => {
            let world = shared.app.store.world().await?;
            granted::standing(&world, grant).map_err(|why| not_granted(&why))
        }
        Some(_) | None => Ok(()),
    }
}

fn not_granted(why: &NotGranted) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, why.code(), why.to_string())
}

async fn show(
    State(shared): State<Shared>,
    Extension(allowed): Extension<Allowed>,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<Replacement>, Refusal> {
    let id = replacement_id(&id)?;
    let mut poll = Poll::new(&shared, &wait, allowed);
    loop {
        let replacement = shared.app.store.replacement(&id).await?;
        if let Some(allowed) = poll.allowed()? {
            may_see(&shared, &allowed, &replacement).await?;
        }
        // Without a version to go by: until there is a spare, or none will come.
        let enough = match wait.after {
            Some(after) => replacement.version != after,
            None => {
                replacement.state == ReplacementState::Attaching || !replacement.state.is_live()
            }
        };
        if enough || !poll.moved().await {
            return Ok(Json(replacement));
        }
    }
}

async fn cancel(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Extension(allowed): Extension<Allowed>,
    Path(id): Path<String>,
) -> Result<Json<Replacement>, Refusal> {
    let id = replacement_id(&id)?;
    may_see(&shared, &allowed, &shared.app.store.replacement(&id).await?).await?;
    match shared.app.store.cancel(&id, actor(&caller)).await? {
        CancelOutcome::Cancelled { replacement, ended } => {
            info!(replacement = %id, %caller, state = replacement.state.as_str(), "cancel asked for");
            if ended {
                shared.app.observer.tell(Fact::ReplacementEnded {
                    outcome: ReplacementState::Cancelled,
                });
            }
            Ok(Json(*replacement))
        }
        CancelOutcome::TooLate(replacement) => Err(Refusal::new(
            StatusCode::CONFLICT,
            "too_late",
            format!(
                "{id} is {}: its spare is offered or in service",
                replacement.state.as_str()
            ),
        )),
        CancelOutcome::NoSuchReplacement => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no_such_replacement",
            format!("there is no replacement {id}"),
        )),
    }
}

#[derive(Debug, Deserialize)]
struct Follow {
    step: Option<String>,
    run: Option<String>,
    after: Option<u64>,
    wait: Option<u64>,
}

impl Follow {
    /// What the reader has not seen yet: of another step than before that is all.
    fn part(&self, log: StepLog) -> LogPart {
        let same = self.run.as_ref().is_none_or(|r| *r == log.run);
        let after = self.after.filter(|_| same).unwrap_or(0);
        let (text, next) = since(&log.text, after);
        LogPart {
            server: log.server,
            step: log.step,
            run: log.run,
            text,
            next,
            ended: log.ended,
            over: log.over,
        }
    }
}

/// Outputs of scripts run as root may hold what is nobody else's business.
async fn log(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(follow): Query<Follow>,
) -> Result<Json<LogPart>, Refusal> {
    operator(&caller)?;
    let id = replacement_id(&id)?;
    let wait = Wait {
        after: None,
        wait: follow.wait,
    };
    let mut poll = Poll::new(&shared, &wait, Allowed::EVERYTHING);
    loop {
        let store = &shared.app.store;
        let step = follow.step.as_deref();
        let mut part = match &follow.run {
            Some(run) => store.log(&id, Which::Of(run), step).await?,
            None => store.log(&id, Which::Last, step).await?,
        }
        .map(|log| follow.part(log));
        // What the reader has begun is read to its end; then comes what was begun next.
        if let Some(run) = &follow.run
            && part
                .as_ref()
                .is_none_or(|p| p.ended && p.text.is_empty() && p.run == *run)
            && let Some(next) = store.log(&id, Which::After(run), step).await?
        {
            part = Some(follow.part(next));
        }
        if let Some(part) = part.as_mut().filter(|p| p.over) {
            let next = store.log(&id, Which::After(&part.run), step).await?;
            part.over = next.is_none();
        }
        let none = match (&part, step) {
            (Some(_), _) => None,
            (None, Some(step)) => Some(format!("{id} has not begun a step {step}")),
            (None, None) => Some(format!("{id} has not begun a step")),
        };
        let enough = part.as_ref().is_some_and(|p| {
            let ended = p.over || (p.ended && follow.step.is_some());
            !p.text.is_empty() || ended || follow.run.as_ref() != Some(&p.run)
        });
        if enough || !poll.moved().await {
            return part.map(Json).ok_or_else(|| {
                let detail = none.unwrap_or_default();
                Refusal::new(StatusCode::NOT_FOUND, "no_such_step", detail)
            });
        }
    }
}

async fn retry(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Replacement>, Refusal> {
    operator(&caller)?;
    let id = replacement_id(&id)?;
    match shared.app.store.retry(&id, actor(&caller)).await? {
        RetryOutcome::Retried(replacement) => {
            info!(replacement = %id, %caller, "replacement is tried again");
            Ok(Json(*replacement))
        }
        RetryOutcome::NotWaiting(replacement) => Err(Refusal::new(
            StatusCode::CONFLICT,
            "not_waiting",
            format!(
                "{id} is {}: only one that waits can be tried again",
                replacement.state.as_str()
            ),
        )),
        RetryOutcome::NoSuchReplacement => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no_such_replacement",
            format!("there is no replacement {id}"),
        )),
    }
}

#[derive(Debug, Deserialize)]
struct ApplyHow {
    #[serde(default)]
    dry_run: bool,
}

async fn apply(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Query(how): Query<ApplyHow>,
    Body(inventory): Body<Inventory>,
) -> Result<Json<InventoryAnswer>, Refusal> {
    operator(&caller)?;
    let store = &shared.app.store;
    match store.apply(&inventory, how.dry_run, actor(&caller)).await {
        Ok(answer) => {
            if answer.applied {
                info!(%caller, changes = answer.changes.len(), "inventory applied");
            }
            Ok(Json(answer))
        }
        Err(ApplyError::Problems(problems)) => {
            warn!(%caller, faults = problems.0.len(), "inventory refused");
            Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "inventory_faults",
                problems.0.join("\n"),
            ))
        }
        Err(ApplyError::Store(e)) => Err(e.into()),
    }
}

/// As the director's socket answers it, from the audit trail.
async fn events(
    State(shared): State<Shared>,
    Query(asked): Query<EventsAsked>,
) -> Result<Json<EventPage>, Refusal> {
    let filter = asked
        .filter()
        .map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, "bad_question", why))?;
    let wait = Wait {
        after: None,
        wait: Some(asked.wait),
    };
    let mut poll = Poll::new(&shared, &wait, Allowed::EVERYTHING);
    let mut page = shared
        .app
        .store
        .events(asked.run, asked.after, &filter)
        .await?;
    while page.events.is_empty() && poll.moved().await {
        let (run, next) = (Some(page.run), Some(page.next));
        page = shared.app.store.events(run, next, &filter).await?;
    }
    Ok(Json(page))
}

async fn servers(State(shared): State<Shared>) -> Result<Json<Vec<ServerView>>, Refusal> {
    Ok(Json(shared.app.store.servers().await?))
}

async fn release(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    operator(&caller)?;
    let outcome = shared.app.store.release(&name, actor(&caller)).await?;
    info!(server = name, %caller, ?outcome, "release of a server");
    done(&name, outcome, "not_releasable")
}

async fn clean(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    operator(&caller)?;
    let outcome = shared.app.store.clean(&name, actor(&caller)).await?;
    info!(server = name, %caller, ?outcome, "cleaning of a server");
    done(&name, outcome, "not_cleanable")
}

async fn quarantine(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(order): Body<QuarantineOrder>,
) -> Result<StatusCode, Refusal> {
    operator(&caller)?;
    let store = &shared.app.store;
    let until = order.seconds.map(|seconds| {
        let ms = i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
        WallMillis(clock::wall().0.saturating_add(ms))
    });
    let outcome = store
        .quarantine(&name, &order.reason, until, actor(&caller))
        .await?;
    info!(server = name, %caller, reason = order.reason, ?outcome, "quarantine of a server");
    done(&name, outcome, "no_spare_now")
}

async fn maintain(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(order): Body<MaintenanceOrder>,
) -> Result<StatusCode, Refusal> {
    operator(&caller)?;
    let store = &shared.app.store;
    let outcome = store
        .maintain(&name, order.reason.as_deref(), actor(&caller))
        .await?;
    info!(server = name, %caller, reason = order.reason, ?outcome, "maintenance of a server");
    done(&name, outcome, "no_maintenance_now")
}

fn done(name: &str, outcome: ServerOutcome, refused: &'static str) -> Result<StatusCode, Refusal> {
    match outcome {
        ServerOutcome::Done => Ok(StatusCode::NO_CONTENT),
        ServerOutcome::NoSuchServer => Err(no_such_server(name)),
        ServerOutcome::Refused(why) => Err(Refusal::new(StatusCode::CONFLICT, refused, why)),
    }
}

fn no_such_server(name: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no_such_server",
        format!("the inventory has no server {name}"),
    )
}

async fn roles(State(shared): State<Shared>) -> Result<Json<Vec<RoleView>>, Refusal> {
    let world = shared.app.store.world().await?;
    Ok(Json(shared.app.store.readiness(&world).await?))
}

#[derive(Debug, Deserialize)]
struct Failed {
    failed: Option<String>,
}

async fn spares(
    State(shared): State<Shared>,
    Path(code): Path<String>,
    Query(of): Query<Failed>,
) -> Result<Json<SparesView>, Refusal> {
    let world = shared.app.store.world().await?;
    let role = world.roles.get(&code).ok_or_else(|| {
        let detail = format!("the inventory has no role {code}");
        Refusal::new(StatusCode::NOT_FOUND, "no_such_role", detail)
    })?;
    let failed = match &of.failed {
        None => None,
        Some(name) => Some(
            world
                .servers
                .get(name)
                .ok_or_else(|| no_such_server(name))?,
        ),
    };
    let spares = world.spares(role, failed);
    let mut spares =
        spares.map_err(|miss| Refusal::new(StatusCode::CONFLICT, miss.code(), miss.to_string()))?;
    let cause = shared.app.store.stopped(&code).await?;
    spares.stopped = cause.map(|cause| cause.reason(&code));
    Ok(Json(spares))
}

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod tests;
