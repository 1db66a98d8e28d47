//! Asking for replacements, cancelling them, and showing them.

use std::net::IpAddr;

use tracing::warn;

use super::{
    Actor, Entry, News, Store, StoreError, Tx, audit, failed,
    journal::{self, Claim, Note, Vacancy},
    members::spare_of,
    next_fence, now_ms,
    rows::{Columns, corrupt, json},
    world::world,
};
use crate::{
    model::{
        EventKind, ReplacementId,
        wire::{PassedOver, Replacement, ReplacementRequest, ReplacementState, StepView},
    },
    provisioner::{
        order::repeatable,
        plan::{Source, World},
        workflow::{Event, Retry},
    },
    telemetry::Chain,
};

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Taken, now or before: this is the replacement.
    Taken {
        /// It.
        replacement: Box<Replacement>,
        /// Whether this request made it.
        new: bool,
    },
    /// The key was used with another body.
    KeyReused,
    /// The director never registered.
    NotRegistered,
    /// The director registered no server whose place this is.
    NotYours,
}

/// Chooses a spare on which nothing is left to do, for a replacement that is new.
pub(in crate::provisioner) type Ready<'a> =
    &'a (dyn Fn(World, &ReplacementId, &Vacancy) -> Option<Claim> + Sync);

/// Leaves the choice to the engine.
const LATER: (&str, Ready<'static>) = ("", &|_, _, _| None);

/// What became of a wish to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It is, or will be when the step in hand has ended.
    Cancelled {
        /// It.
        replacement: Box<Replacement>,
        /// Whether this ended it.
        ended: bool,
    },
    /// Its spare is offered or in service.
    TooLate(Box<Replacement>),
    /// There is none.
    NoSuchReplacement,
}

/// Replacements shown in a list, the newest first.
const LISTED: i64 = 500;

impl Store {
    /// Takes a request. The same key and body give the same replacement; another key for a server
    /// whose replacement is under way, or whose place a spare holds, gives that one. Which spare, is left to the engine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ask(&self, key: &str, body: &ReplacementRequest) -> Result<Asked, StoreError> {
        let from = body.director.to_string();
        self.ask_from(key, body, from, LATER).await
    }

    /// The same of somebody who may be known by something else than the address that it says; a spare on which nothing is
    /// left to do is offered with the answer already, by this provisioner.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(in crate::provisioner) async fn ask_from(
        &self,
        key: &str,
        body: &ReplacementRequest,
        from: String,
        ready: (&str, Ready<'_>),
    ) -> Result<Asked, StoreError> {
        // Directors ask again each second for news: that takes no turn of those who write.
        let mut tx = self.read().await?;
        let seen = seen(&mut tx, key, body).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        if let Some(seen) = seen {
            return Ok(seen);
        }
        match self.ask_first(key, body, from.clone(), ready).await {
            Err(e) if !e.is_away() => {
                warn!(
                    error = %Chain(&e), failed = %body.failed,
                    "a warm spare cannot be offered with the answer: the request is taken without one"
                );
                self.ask_first(key, body, from, LATER).await
            }
            asked => asked,
        }
    }

    async fn ask_first(
        &self,
        key: &str,
        body: &ReplacementRequest,
        from: String,
        (host, ready): (&str, Ready<'_>),
    ) -> Result<Asked, StoreError> {
        let mut tx = self.begin().await?;
        // Meanwhile it may have been.
        if let Some(seen) = seen(&mut tx, key, body).await? {
            return Ok(seen);
        }
        let world = world(&mut tx).await?;
        if !world.directors.contains_key(&body.name) {
            return Ok(Asked::NotRegistered);
        }
        let place = place(&mut tx, &world, body).await?;
        let mut addresses = world.addresses_of(body.failed);
        addresses.extend(&place.origins);
        if !world.directors_with(&addresses).any(|d| *d == body.name) {
            return Ok(Asked::NotYours);
        }
        let (id, new) = match standing(&mut tx, &world, body).await? {
            Some(id) => (id, false),
            None => (create(&mut tx, &world, key, body, place).await?, true),
        };
        let first = keep_key(&mut tx, key, body, &id).await?;
        let what = if new { "asked" } else { "asked_again" };
        let detail = format!("{} with key {key}", body.failed);
        let entry = Entry {
            director: Some(&body.name),
            replacement: Some(&id),
            server: Some(body.failed),
            ..Entry::new(EventKind::ReplacementRequested, what, &detail)
        };
        if first {
            let actor = Actor::director(&body.name, from);
            audit(&mut tx, &actor, entry).await?;
        }
        let offered = new && offer_ready(&mut tx, &id, world, host, ready).await?;
        let replacement = Box::new(view(&mut tx, &id).await?);
        let news = match (new, offered) {
            (true, false) => News::Work,
            (true, true) => News::State,
            (false, _) => News::None,
        };
        self.commit(tx, news).await?;
        Ok(Asked::Taken { replacement, new })
    }

    /// Asks a replacement to stop.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancel(
        &self,
        id: &ReplacementId,
        actor: impl Into<Actor>,
    ) -> Result<CancelOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let work = match journal::load(&mut tx, id).await {
            Ok(work) => work,
            Err(StoreError::NoReplacement { .. }) => return Ok(CancelOutcome::NoSuchReplacement),
            Err(e) => return Err(e),
        };
        use ReplacementState as S;
        match work.journal.state {
            S::Attaching | S::Succeeded => {
                Ok(CancelOutcome::TooLate(Box::new(view(&mut tx, id).await?)))
            }
            S::Failed | S::Cancelled | S::Superseded | S::Refused => Ok(CancelOutcome::Cancelled {
                replacement: Box::new(view(&mut tx, id).await?),
                ended: false,
            }),
            S::Pending | S::Claiming | S::Configuring | S::Testing => {
                if !work.journal.cancel {
                    let (note, retry) = (Note::default(), Retry::STANDARD);
                    let actor = actor.into();
                    journal::apply(&mut tx, id, &actor, &Event::CancelAsked, note, &retry).await?;
                }
                let replacement = Box::new(view(&mut tx, id).await?);
                self.commit(tx, News::Work).await?;
                let ended = !replacement.state.is_live();
                Ok(CancelOutcome::Cancelled { replacement, ended })
            }
        }
    }

    /// A replacement as the API shows it.
    ///
    /// # Errors
    /// [`StoreError::NoReplacement`] and others.
    pub async fn replacement(&self, id: &ReplacementId) -> Result<Replacement, StoreError> {
        let mut tx = self.read().await?;
        let view = view(&mut tx, id).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(view)
    }

    /// The newest replacements, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replacements(&self) -> Result<Vec<Replacement>, StoreError> {
        let mut tx = self.read().await?;
        let rows =
            sqlx::query("SELECT id FROM replacement WHERE kind = 'replace' ORDER BY created_ms DESC, id DESC LIMIT $1")
                .bind(LISTED)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed("list the replacements"))?;
        let mut list = Vec::with_capacity(rows.len());
        for row in rows {
            list.push(view(&mut tx, &row.parsed("id")?).await?);
        }
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(list)
    }
}

/// What became of a key that was used before.
async fn seen(
    tx: &mut Tx,
    key: &str,
    body: &ReplacementRequest,
) -> Result<Option<Asked>, StoreError> {
    // A key is one director's: it can be guessed, and another one's use of it says nothing.
    let row = sqlx::query("SELECT body, replacement FROM request WHERE director = $1 AND key = $2")
        .bind(body.name.as_str())
        .bind(key)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("look for a key"))?;
    let Some(row) = row else { return Ok(None) };
    let earlier: ReplacementRequest = row.json("body")?;
    if earlier != *body {
        return Ok(Some(Asked::KeyReused));
    }
    let replacement = Box::new(view(tx, &row.parsed("replacement")?).await?);
    Ok(Some(Asked::Taken {
        replacement,
        new: false,
    }))
}

/// Keys of one director that are kept for one replacement: a server has a few addresses, each with a failure of its own,
/// and who forgot its keys begins anew.
const KEYS: u64 = 16;

/// Keeps a key. Where there are many for this replacement the oldest one goes, but not the one that made it, and
/// `false`: there is nothing to tell.
async fn keep_key(
    tx: &mut Tx,
    key: &str,
    body: &ReplacementRequest,
    id: &ReplacementId,
) -> Result<bool, StoreError> {
    let kept =
        sqlx::query("SELECT count(*) AS n FROM request WHERE director = $1 AND replacement = $2")
            .bind(body.name.as_str())
            .bind(id.as_str())
            .fetch_one(&mut **tx)
            .await
            .map_err(failed("count the keys of a replacement"))?
            .count("n")?;
    let first = kept < KEYS;
    if !first {
        sqlx::query(
            "DELETE FROM request WHERE director = $1 AND key = (SELECT key FROM request \
             WHERE director = $1 AND replacement = $2 \
             AND key <> (SELECT first_key FROM replacement WHERE id = $2) ORDER BY at_ms, key LIMIT 1)",
        )
        .bind(body.name.as_str())
        .bind(id.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("forget a key"))?;
    }
    sqlx::query(
        "INSERT INTO request (director, key, body, replacement, at_ms) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(body.name.as_str())
    .bind(key)
    .bind(json("request", body)?)
    .bind(id.as_str())
    .bind(now_ms().0)
    .execute(&mut **tx)
    .await
    .map_err(failed("keep a key"))?;
    Ok(first)
}

/// The server that a request is about, by name where the inventory knows it.
fn slot(world: &World, body: &ReplacementRequest) -> String {
    world
        .server_of(body.failed)
        .map_or_else(|| body.failed.to_string(), |s| s.server.name.clone())
}

/// The replacement that is under way for this server or holds its place.
async fn standing(
    tx: &mut Tx,
    world: &World,
    body: &ReplacementRequest,
) -> Result<Option<ReplacementId>, StoreError> {
    let holder = world
        .assignments
        .get(&body.failed)
        .and_then(|held| held.passed_on.clone());
    if let Some(mut id) = holder {
        // A stand-in that failed in its turn passed the place on: to whoever holds it now.
        for _ in 0..MAX_CHAIN {
            let next = sqlx::query("SELECT superseded_by FROM replacement WHERE id = $1")
                .bind(id.as_str())
                .fetch_one(&mut **tx)
                .await
                .map_err(failed("follow a chain"))?
                .parsed_opt("superseded_by")?;
            match next {
                Some(next) => id = next,
                None => break,
            }
        }
        return Ok(Some(id));
    }
    // Asked for before the server was enrolled, it goes by the address of that request.
    let mut keys = vec![slot(world, body)];
    keys.extend(
        world
            .addresses_of(body.failed)
            .iter()
            .map(ToString::to_string),
    );
    for key in keys {
        let found = sqlx::query(
            "SELECT id FROM replacement WHERE slot = $1 \
             AND state IN ('pending', 'claiming', 'configuring', 'testing', 'attaching')",
        )
        .bind(key)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("look for a replacement under way"))?;
        if let Some(row) = found {
            return row.parsed("id").map(Some);
        }
    }
    Ok(None)
}

/// Whose place a failed server has.
struct Place {
    /// The replacement that gave it to a stand-in.
    earlier: Option<ReplacementId>,
    origin: IpAddr,
    origins: Vec<IpAddr>,
}

async fn place(tx: &mut Tx, world: &World, body: &ReplacementRequest) -> Result<Place, StoreError> {
    match world.assignments.get(&body.failed).map(|h| &h.source) {
        Some(Source::Replacement(earlier)) => {
            let work = journal::load(tx, earlier).await?;
            Ok(Place {
                earlier: Some(work.id.clone()),
                origin: work.place()?.origin,
                origins: work.place()?.origins.clone(),
            })
        }
        Some(Source::Files) | None => Ok(Place {
            earlier: None,
            origin: body.failed,
            origins: world.addresses_of(body.failed),
        }),
    }
}

/// A chain longer than this is a loop that nobody has written.
const MAX_CHAIN: usize = 10_000;

async fn create(
    tx: &mut Tx,
    world: &World,
    key: &str,
    body: &ReplacementRequest,
    place: Place,
) -> Result<ReplacementId, StoreError> {
    let id = new_id(body.name.as_str())?;
    let fence = next_fence(tx).await?;
    sqlx::query(
        "INSERT INTO replacement (id, kind, first_key, director, failed, slot, origin, origins, state, \
         rejected, cancel, fence, lease_until, supersedes, version, created_ms) \
         VALUES ($1, 'replace', $2, $3, $4, $5, $6, $7, 'pending', '[]', 0, $8, 0, $9, 1, $10)",
    )
    .bind(id.as_str())
    .bind(key)
    .bind(body.name.as_str())
    .bind(body.failed.to_string())
    .bind(slot(world, body))
    .bind(place.origin.to_string())
    .bind(json("origins", &place.origins)?)
    .bind(fence)
    .bind(place.earlier.as_ref().map(ReplacementId::as_str))
    .bind(now_ms().0)
    .execute(&mut **tx)
    .await
    .map_err(failed("write a replacement"))?;
    Ok(id)
}

/// Offers a spare on which nothing is left to do; `false` where there is none.
async fn offer_ready(
    tx: &mut Tx,
    id: &ReplacementId,
    world: World,
    host: &str,
    ready: Ready<'_>,
) -> Result<bool, StoreError> {
    let work = journal::load(tx, id).await?;
    let Some(claim) = ready(world, id, work.place()?) else {
        return Ok(false);
    };
    let taken = journal::take(tx, id, &claim).await?;
    if taken {
        journal::claimed(tx, id, &Actor::engine(host), claim).await?;
    }
    Ok(taken)
}

/// An id that nobody has; later ones are greater.
pub(in crate::provisioner) fn new_id(whose: &str) -> Result<ReplacementId, StoreError> {
    let id = format!("{whose}-{}", uuid::Uuid::now_v7());
    id.parse()
        .map_err(|_long| corrupt("id of a replacement", id))
}

/// A replacement as the API shows it.
pub(super) async fn view(tx: &mut Tx, id: &ReplacementId) -> Result<Replacement, StoreError> {
    let row = sqlx::query(
        "SELECT first_key, director, failed, origin, role, state, reason, rejected, version \
         FROM replacement WHERE id = $1 AND kind = 'replace'",
    )
    .bind(id.as_str())
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("read a replacement"))?
    .ok_or_else(|| StoreError::NoReplacement { id: id.to_string() })?;
    let state = row.word("state", ReplacementState::from_word)?;
    let mut passed_over = Vec::new();
    let mut spare = None;
    for attempt in sqlx::query(
        "SELECT server, state, reason FROM attempt WHERE replacement = $1 ORDER BY number",
    )
    .bind(id.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read the spares tried"))?
    {
        let server = attempt.text("server")?;
        match attempt.text("state")?.as_str() {
            // R13: the spare's address is said only once it is configured and tested.
            "open" if state != ReplacementState::Attaching => {}
            "open" | "serving" | "superseded" => spare = Some(spare_of(tx, server).await?),
            _ => passed_over.push(PassedOver {
                server,
                reason: attempt.text_opt("reason")?.unwrap_or_default(),
            }),
        }
    }
    let rejected: Vec<PassedOver> = row.json("rejected")?;
    for server in rejected {
        if !passed_over.iter().any(|p| p.server == server.server) {
            passed_over.push(server);
        }
    }
    let reason = match row.text_opt("reason")? {
        None if state == ReplacementState::Attaching => Some(awaited(tx, id).await?),
        reason => reason,
    };
    Ok(Replacement {
        id: id.clone(),
        key: row.text("first_key")?,
        director: row.parsed("director")?,
        failed: row.parsed("failed")?,
        origin: row.parsed("origin")?,
        role: row.text_opt("role")?,
        state,
        reason,
        spare,
        passed_over,
        steps: steps(tx, id).await?,
        version: row.count("version")?,
    })
}

/// Whom an offered spare waits for.
async fn awaited(tx: &mut Tx, id: &ReplacementId) -> Result<String, StoreError> {
    let names = sqlx::query(
        "SELECT director FROM attachment WHERE replacement = $1 AND want = 'attach' \
         AND (confirmed IS NULL OR confirmed <> 'attach') ORDER BY director",
    )
    .bind(id.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("list whom an offer waits for"))?
    .iter()
    .map(|row| row.text("director"))
    .collect::<Result<Vec<_>, _>>()?;
    Ok(format!("not_confirmed: by {}", names.join(", ")))
}

async fn steps(tx: &mut Tx, id: &ReplacementId) -> Result<Vec<StepView>, StoreError> {
    let rows = sqlx::query(
        "SELECT a.server, s.name, s.state, s.started_ms, s.ended_ms, s.detail, s.digest, s.limit_ms, \
         s.tries FROM step s \
         JOIN attempt a ON a.replacement = s.replacement AND a.number = s.attempt \
         WHERE s.replacement = $1 AND s.state <> 'planned' ORDER BY s.attempt, s.position",
    )
    .bind(id.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read the journal"))?;
    rows.iter()
        .map(|row| {
            Ok(StepView {
                server: row.text("server")?,
                step: row.text("name")?,
                state: row.text("state")?,
                started_ms: row.number_opt("started_ms")?.unwrap_or(0),
                ended_ms: row.number_opt("ended_ms")?,
                detail: row.text("detail")?,
                digest: row.text("digest")?,
                limit_ms: row.count("limit_ms")?,
                tries: row.count("tries")?,
                repeatable: repeatable(&row.text("name")?).to_owned(),
            })
        })
        .collect()
}
