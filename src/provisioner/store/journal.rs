//! The journal: every event of a replacement is taken in by the workflow and written down in one
//! transaction, together with what it does to the spare.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::IpAddr,
};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use sha2::{Digest, Sha256};

use super::{
    Actor, Entry, Lease, News, Store, StoreError, Tx, audit, failed, installation,
    lease::guard,
    next_fence, now_ms,
    offer::offer,
    pool::{clean_after, note_placed, put_aside},
    roles,
    rows::{Columns, corrupt, json, stored},
    upkeep::finish,
    world::world,
};
use crate::{
    model::{
        DirectorName, EventKind, ReplacementId,
        inventory::{Server, ServerState},
        wire::{PassedOver, ReplacementState},
    },
    provisioner::{
        order::{Class, FENCE, OS_INSTALL, Step},
        workflow::{AttemptEnd, Event, Hand, Journal, Kind, Mark, MarkState, Retry, SpareChange},
    },
};

/// A reading of the steps of a replacement that were begun.
macro_rules! begun {
    ($rest:literal) => {
        concat!(
            "SELECT s.name, s.state, s.attempt, s.position, s.tries, s.output, a.server FROM step s \
             JOIN attempt a ON a.replacement = s.replacement AND a.number = s.attempt \
             WHERE s.replacement = $1 AND s.state <> 'planned' AND (s.name = $2 OR $2 = '')",
            $rest
        )
    };
}

/// A replacement as the engine works on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Its id.
    pub id: ReplacementId,
    /// Whose place is to be taken; none where a spare is made ready, or a server cleaned.
    pub(in crate::provisioner) place: Option<Vacancy>,
    /// What orders to the spare carry.
    pub fence: u64,
    /// How far it has come.
    pub journal: Journal,
    /// The role its spare was claimed for.
    pub(in crate::provisioner) role: Option<String>,
}

impl Work {
    /// Whose place is to be taken.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where it is no replacement.
    pub(in crate::provisioner) fn place(&self) -> Result<&Vacancy, StoreError> {
        let place = self.place.as_ref();
        place.ok_or_else(|| corrupt("replacement without a failed server", self.id.as_str()))
    }
}

/// The place of a failed server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::provisioner) struct Vacancy {
    /// Who asked.
    pub(in crate::provisioner) director: DirectorName,
    /// The failed server's device identifier.
    pub(in crate::provisioner) failed: IpAddr,
    /// The configured server whose place it is.
    pub(in crate::provisioner) origin: IpAddr,
    /// All addresses of that one, as the inventory had it.
    pub(in crate::provisioner) origins: Vec<IpAddr>,
    /// The replacement whose spare failed, where it was one.
    pub(in crate::provisioner) supersedes: Option<ReplacementId>,
}

/// What is written down with an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// One line.
    pub detail: String,
    /// Output of scripts and commands.
    pub output: String,
    /// The operating system that was read.
    pub os: Option<String>,
    /// Servers that were not chosen, each with the reason, where this event is about choosing.
    pub rejected: Option<Vec<PassedOver>>,
}

/// A spare to be claimed.
#[derive(Debug)]
pub struct Claim {
    /// Its name.
    pub server: String,
    /// The role it is configured for.
    pub role: String,
    /// What will be done to it.
    pub steps: Vec<Step>,
    /// Why not the others.
    pub rejected: Vec<PassedOver>,
}

/// A spare that was claimed.
#[derive(Debug)]
pub struct Claimed {
    /// The lease from now on: its fence is higher.
    pub lease: Lease,
    /// Its name.
    pub server: String,
    /// Everything was done to it beforehand: it is offered already.
    pub warm: bool,
}

impl Store {
    /// A replacement as the engine works on it.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] and others.
    pub async fn work_on(&self, lease: &Lease) -> Result<Work, StoreError> {
        let mut tx = self.read().await?;
        guard(&mut tx, lease).await?;
        let work = load(&mut tx, &lease.id).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(work)
    }

    /// The spare in hand and a step planned for it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn planned(
        &self,
        id: &ReplacementId,
        position: usize,
    ) -> Result<(Server, Step), StoreError> {
        let mut tx = self.read().await?;
        let row = sqlx::query(
            "SELECT s.payload, a.server FROM step s JOIN attempt a ON a.replacement = s.replacement \
             AND a.number = s.attempt WHERE s.replacement = $1 AND s.position = $2 AND a.state = 'open'",
        )
        .bind(id.as_str())
        .bind(index(position))
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("read a planned step"))?;
        let mut world = world(&mut tx).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        let name = row.text("server")?;
        let server = world
            .servers
            .remove(&name)
            .ok_or_else(|| corrupt("server in hand", name))?;
        Ok((server.server, row.json("payload")?))
    }

    /// The failed server of a replacement, and all addresses of the configured one whose place its spare has.
    ///
    /// # Errors
    /// [`StoreError::NoReplacement`] and others.
    pub async fn origins(&self, id: &ReplacementId) -> Result<(IpAddr, Vec<IpAddr>), StoreError> {
        let mut tx = self.read().await?;
        let work = load(&mut tx, id).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        let place = work.place()?;
        Ok((place.failed, place.origins.clone()))
    }

    /// All steps planned for the spare in hand.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn plan(&self, id: &ReplacementId) -> Result<Vec<Step>, StoreError> {
        let mut tx = self.read().await?;
        let rows = sqlx::query(
            "SELECT s.payload FROM step s JOIN attempt a ON a.replacement = s.replacement \
             AND a.number = s.attempt WHERE s.replacement = $1 AND a.state = 'open' \
             ORDER BY s.position",
        )
        .bind(id.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("read a plan"))?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        rows.iter().map(|row| row.json("payload")).collect()
    }

    /// Claims a spare for a replacement and writes its plan down; from then on the lease has a higher fence. Where
    /// somebody was faster with this spare, `again` chooses among those that are free now, and nobody else claims
    /// meanwhile: of many that claim at once each has a spare at the first try. `None` where it has no choice.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] and others.
    pub async fn claim(
        &self,
        lease: &Lease,
        claim: Claim,
        again: impl FnOnce(&BTreeSet<String>) -> Option<Claim> + Send,
    ) -> Result<Option<Claimed>, StoreError> {
        let id = &lease.id;
        let mut tx = self.begin().await?;
        guard(&mut tx, lease).await?;
        let claim = if take(&mut tx, id, &claim).await? {
            claim
        } else {
            let free = free(&mut tx).await?;
            match again(&free) {
                Some(other) if take(&mut tx, id, &other).await? => other,
                Some(_) | None => {
                    tx.rollback().await.map_err(failed("end a reading"))?;
                    return Ok(None);
                }
            }
        };
        let (server, warm) = (claim.server.clone(), claim.steps.is_empty());
        let fence = claimed(&mut tx, id, &lease.run.actor(), claim).await?;
        self.commit(tx, News::State).await?;
        Ok(Some(Claimed {
            lease: Lease {
                fence,
                ..lease.clone()
            },
            server,
            warm,
        }))
    }

    /// Writes an event of the engine down and returns the journal from then on.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] where another run has taken over, [`StoreError::Illegal`] where the
    /// workflow does not allow it, and others.
    pub async fn advance(
        &self,
        lease: &Lease,
        event: &Event,
        note: Note,
        retry: &Retry,
    ) -> Result<Journal, StoreError> {
        let mut tx = self.begin().await?;
        guard(&mut tx, lease).await?;
        let journal = apply(&mut tx, &lease.id, &lease.run.actor(), event, note, retry).await?;
        let freed = matches!(
            event,
            Event::Failed { .. } | Event::Abandoned | Event::Finished
        );
        self.commit(tx, if freed { News::Work } else { News::State })
            .await?;
        Ok(journal)
    }
}

impl Store {
    /// Keeps what a running step has printed so far.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] where another run has taken over, and others.
    pub async fn said(&self, lease: &Lease, position: usize, text: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        guard(&mut tx, lease).await?;
        sqlx::query(
            "UPDATE step SET output = $3 WHERE replacement = $1 AND position = $2 \
             AND state = 'running' AND attempt = (SELECT number FROM attempt \
             WHERE replacement = $1 AND state = 'open')",
        )
        .bind(lease.id.as_str())
        .bind(index(position))
        .bind(pack(text)?)
        .execute(&mut *tx)
        .await
        .map_err(failed("keep a script's output"))?;
        self.commit(tx, News::State).await
    }

    /// What a step has printed; of this name, where one is named.
    ///
    /// # Errors
    /// [`StoreError::NoReplacement`] and others.
    pub async fn log(
        &self,
        id: &ReplacementId,
        which: Which<'_>,
        step: Option<&str>,
    ) -> Result<Option<StepLog>, StoreError> {
        let at = match which {
            Which::Last => None,
            Which::Of(run) | Which::After(run) => {
                let mut numbers = run.split('.').map(str::parse::<i64>);
                let (Some(Ok(attempt)), Some(Ok(position))) = (numbers.next(), numbers.next())
                else {
                    return Ok(None);
                };
                Some((attempt, position))
            }
        };
        let mut tx = self.read().await?;
        let state = load(&mut tx, id).await?.journal.state;
        let query = match which {
            Which::Last => sqlx::query(begun!(" ORDER BY s.attempt DESC, s.position DESC LIMIT 1")),
            Which::Of(_) => sqlx::query(begun!(" AND s.attempt = $3 AND s.position = $4")),
            Which::After(_) => sqlx::query(begun!(
                " AND (s.attempt > $3 OR (s.attempt = $3 AND s.position > $4)) \
                 ORDER BY s.attempt, s.position LIMIT 1"
            )),
        };
        let mut query = query.bind(id.as_str()).bind(step.unwrap_or_default());
        if let Some((attempt, position)) = at {
            query = query.bind(attempt).bind(position);
        }
        let row = query
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("read a script's output"))?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        let Some(row) = row else { return Ok(None) };
        let (name, ended) = (
            row.text("name")?,
            row.text("state")? != MarkState::Running.as_str(),
        );
        // A job goes on where it was; what another step printed when it was tried before is no beginning of what it
        // prints now.
        let goes_on = ["install:", "clean", OS_INSTALL]
            .iter()
            .any(|word| name.starts_with(word));
        let text = match ended || goes_on {
            true => unpack(row.bytes("output")?)?,
            false => String::new(),
        };
        let (attempt, position) = (row.number("attempt")?, row.number("position")?);
        Ok(Some(StepLog {
            server: row.text("server")?,
            step: name,
            run: format!("{attempt}.{position}.{}", row.number("tries")?),
            ended,
            over: !matches!(
                state,
                ReplacementState::Pending
                    | ReplacementState::Claiming
                    | ReplacementState::Configuring
                    | ReplacementState::Testing
            ),
            text,
        }))
    }
}

/// Takes a spare in hand, if it is free.
pub(super) async fn take(
    tx: &mut Tx,
    id: &ReplacementId,
    claim: &Claim,
) -> Result<bool, StoreError> {
    let taken = sqlx::query(
        "UPDATE server SET state = 'claimed', replacement = $2, reason = NULL \
         WHERE name = $1 AND state IN ('ready', 'standby') AND maintenance IS NULL",
    )
    .bind(claim.server.as_str())
    .bind(id.as_str())
    .execute(&mut **tx)
    .await
    .map_err(failed("claim a spare"))?;
    Ok(taken.rows_affected() == 1)
}

/// Writes down that a spare was claimed and what will be done to it, and offers it where nothing will: nobody waits for
/// another turn. Returns the fence from then on.
pub(super) async fn claimed(
    tx: &mut Tx,
    id: &ReplacementId,
    actor: &Actor,
    claim: Claim,
) -> Result<i64, StoreError> {
    // The spare may have seen a higher one than this replacement's since that was given.
    let fence = next_fence(tx).await?;
    sqlx::query("UPDATE replacement SET fence = $2, role = $3 WHERE id = $1")
        .bind(id.as_str())
        .bind(fence)
        .bind(claim.role.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("raise a fence"))?;
    let event = Event::Claimed {
        server: claim.server.clone(),
        steps: claim.steps.iter().map(Step::name).collect(),
    };
    let note = Note {
        rejected: Some(claim.rejected),
        ..Note::default()
    };
    let journal = apply(tx, id, actor, &event, note, &Retry::STANDARD).await?;
    note_planned(tx, id, journal.attempts, &claim.server, &claim.steps).await?;
    if claim.steps.is_empty() {
        let (note, retry) = (Note::default(), Retry::STANDARD);
        apply(tx, id, actor, &Event::Offered, note, &retry).await?;
    }
    Ok(fence)
}

/// Servers that can be claimed now.
async fn free(tx: &mut Tx) -> Result<BTreeSet<String>, StoreError> {
    sqlx::query(
        "SELECT name FROM server WHERE state IN ('ready', 'standby') AND maintenance IS NULL",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("look which spares are free"))?
    .iter()
    .map(|row| row.text("name"))
    .collect()
}

/// Which of a replacement's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// The last one that was begun.
    Last,
    /// The one of this run.
    Of(&'a str),
    /// The first one that was begun after this run's.
    After(&'a str),
}

/// What a step has printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLog {
    /// Where.
    pub server: String,
    /// Which.
    pub step: String,
    /// Names the step among all of the replacement: another spare, or another try, another word.
    pub run: String,
    /// Whether it has ended.
    pub ended: bool,
    /// Whether no further step can follow.
    pub over: bool,
    /// The text; a line in it says where something was left out.
    pub text: String,
}

/// No output is longer when it is unpacked.
const UNPACKED: u64 = 4 * 1024 * 1024;

fn pack(text: &str) -> Result<Vec<u8>, StoreError> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    // Into memory: it cannot fail.
    packed
        .write_all(text.as_bytes())
        .and_then(|()| packed.finish())
        .map_err(|e| corrupt("output to compress", e.to_string()))
}

fn unpack(packed: Option<Vec<u8>>) -> Result<String, StoreError> {
    let mut text = String::new();
    if let Some(packed) = packed {
        ZlibDecoder::new(packed.as_slice())
            .take(UNPACKED)
            .read_to_string(&mut text)
            .map_err(|e| corrupt("compressed output", e.to_string()))?;
    }
    Ok(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes down what is going to be done to a server.
pub(super) async fn note_planned(
    tx: &mut Tx,
    id: &ReplacementId,
    attempt: u32,
    server: &str,
    steps: &[Step],
) -> Result<(), StoreError> {
    for (position, step) in steps.iter().enumerate() {
        let payload = json("step", step)?;
        sqlx::query(
            "INSERT INTO step (replacement, attempt, position, name, payload, digest, limit_ms, \
             state, tries, failures, fence, detail) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'planned', 0, 0, 0, '')",
        )
        .bind(id.as_str())
        .bind(i64::from(attempt))
        .bind(index(position))
        .bind(step.name())
        .bind(payload.as_str())
        .bind(hex(&Sha256::digest(&payload)))
        .bind(stored(
            u64::try_from(step.limit().as_millis()).unwrap_or(u64::MAX),
        ))
        .execute(&mut **tx)
        .await
        .map_err(failed("plan a step"))?;
    }
    note_placed(tx, server, steps).await
}

/// A replacement with its journal.
pub(super) async fn load(tx: &mut Tx, id: &ReplacementId) -> Result<Work, StoreError> {
    let row = sqlx::query(
        "SELECT kind, director, failed, origin, origins, role, state, reason, cancel, fence, supersedes, \
         (SELECT count(*) FROM attempt a WHERE a.replacement = r.id) AS attempts \
         FROM replacement r WHERE id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("read a replacement"))?
    .ok_or_else(|| StoreError::NoReplacement { id: id.to_string() })?;
    let fence = row.count("fence")?;
    let attempts = row.number("attempts")?;
    let hand = hand(tx, id, fence).await?;
    let kind = row.word("kind", Kind::from_word)?;
    let place = match kind {
        Kind::Warm | Kind::Clean => None,
        Kind::Replace => Some(Vacancy {
            director: row.parsed("director")?,
            failed: row.parsed("failed")?,
            origin: row.parsed("origin")?,
            origins: row.json("origins")?,
            supersedes: row.parsed_opt("supersedes")?,
        }),
    };
    Ok(Work {
        id: id.clone(),
        place,
        fence,
        journal: Journal {
            kind,
            state: row.word("state", ReplacementState::from_word)?,
            cancel: row.number("cancel")? != 0,
            reason: row.text_opt("reason")?,
            attempts: u32::try_from(attempts)
                .map_err(|_big| corrupt("count of attempts", attempts.to_string()))?,
            hand,
        },
        role: row.text_opt("role")?,
    })
}

async fn hand(tx: &mut Tx, id: &ReplacementId, fence: u64) -> Result<Option<Hand>, StoreError> {
    let Some(row) = sqlx::query(
        "SELECT number, server FROM attempt WHERE replacement = $1 AND state IN ('open', 'serving')",
    )
    .bind(id.as_str())
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("read the spare in hand"))?
    else {
        return Ok(None);
    };
    let rows = sqlx::query(
        "SELECT name, state, failures, fence FROM step WHERE replacement = $1 AND attempt = $2 \
         ORDER BY position",
    )
    .bind(id.as_str())
    .bind(row.number("number")?)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read the journal"))?;
    let mut steps = Vec::with_capacity(rows.len());
    let mut fenced = false;
    for step in &rows {
        let state = step.word("state", MarkState::from_word)?;
        let failures = step.number("failures")?;
        let name = step.text("name")?;
        if name == FENCE {
            fenced = state == MarkState::Done && step.count("fence")? == fence;
        }
        steps.push(Mark {
            name,
            state,
            failures: u32::try_from(failures)
                .map_err(|_big| corrupt("count of failures", failures.to_string()))?,
        });
    }
    Ok(Some(Hand {
        server: row.text("server")?,
        fenced,
        steps,
    }))
}

/// Takes an event into a replacement's journal.
pub(super) async fn apply(
    tx: &mut Tx,
    id: &ReplacementId,
    actor: &Actor,
    event: &Event,
    note: Note,
    retry: &Retry,
) -> Result<Journal, StoreError> {
    let work = load(tx, id).await?;
    let change = work
        .journal
        .handle(event, retry)
        .map_err(|source| StoreError::Illegal {
            id: id.clone(),
            source,
        })?;
    let now = now_ms().0;
    let journal = change.journal;
    sqlx::query(
        "UPDATE replacement SET state = $2, reason = $3, cancel = $4, version = version + 1, \
         rejected = CASE WHEN $5 = '' THEN rejected ELSE $5 END, \
         ended_ms = CASE WHEN $6 = 1 THEN ended_ms ELSE $7 END WHERE id = $1",
    )
    .bind(id.as_str())
    .bind(journal.state.as_str())
    .bind(journal.reason.clone())
    .bind(i64::from(journal.cancel))
    .bind(match &note.rejected {
        Some(list) => json("list of servers", list)?,
        None => String::new(),
    })
    .bind(i64::from(journal.state.is_live()))
    .bind(now)
    .execute(&mut **tx)
    .await
    .map_err(failed("write a replacement"))?;
    match event {
        Event::Claimed { server, .. } => {
            sqlx::query(
                "INSERT INTO attempt (replacement, number, server, state, role, started_ms) \
                 VALUES ($1, $2, $3, 'open', (SELECT COALESCE(role, '') FROM replacement \
                 WHERE id = $1), $4)",
            )
            .bind(id.as_str())
            .bind(i64::from(journal.attempts))
            .bind(server.as_str())
            .bind(now)
            .execute(&mut **tx)
            .await
            .map_err(failed("write down a claim"))?;
        }
        Event::Started { position } => {
            mark(tx, &work, *position, MarkState::Running, false, &note).await?
        }
        Event::Done { position } => {
            mark(tx, &work, *position, MarkState::Done, false, &note).await?;
            if let Some(server) = installed(&work, *position) {
                installation::close(tx, server).await?;
            }
        }
        Event::Failed {
            position,
            class,
            reason,
        } => {
            let counts = *class != Class::Local;
            mark(tx, &work, *position, MarkState::Failed, counts, &note).await?;
            note_failure(tx, &work, *position, reason).await?;
        }
        Event::Offered => offer(tx, &work).await?,
        Event::Finished => finish(tx, &work).await?,
        Event::Attached => end_attempt(tx, id, "serving", None).await?,
        Event::Superseded => end_attempt(tx, id, "superseded", None).await?,
        Event::Resumed | Event::Waits { .. } | Event::CancelAsked | Event::Abandoned => {}
    }
    if let Some(spare) = &change.spare {
        move_spare(tx, &work, actor, spare).await?;
    }
    if let (Some(os), Some(hand)) = (&note.os, &work.journal.hand) {
        sqlx::query("UPDATE server SET os_seen = $2 WHERE name = $1")
            .bind(hand.server.as_str())
            .bind(os.as_str())
            .execute(&mut **tx)
            .await
            .map_err(failed("note an operating system"))?;
    }
    let (kind, what, detail) = trail(event, &work.journal, &note);
    let server = match (&work.place, &work.journal.hand) {
        (Some(place), _) => Some(place.failed),
        (None, Some(hand)) => address_of(tx, &hand.server).await?,
        (None, None) => None,
    };
    let entry = Entry {
        director: work.place.as_ref().map(|place| &place.director),
        replacement: Some(id),
        server,
        ..Entry::new(kind, what, &detail)
    };
    audit(tx, actor, entry).await?;
    Ok(journal)
}

/// An event in the audit trail's words.
fn trail(event: &Event, before: &Journal, note: &Note) -> (EventKind, &'static str, String) {
    use EventKind as K;
    let step = |position: &usize| {
        let hand = before.hand.as_ref();
        let name = hand.and_then(|h| h.steps.get(*position)).map(|m| &m.name);
        let server = hand.map_or("?", |h| h.server.as_str());
        format!("{} on {server}", name.map_or("?", String::as_str))
    };
    let server = || {
        before
            .hand
            .as_ref()
            .map_or_else(String::new, |h| h.server.clone())
    };
    let progress = K::ReplacementProgress;
    match event {
        Event::Resumed => (progress, "resumed", server()),
        Event::Waits { reason } => (K::ReplacementWaits, "waits", reason.clone()),
        Event::Claimed { server, .. } => (progress, "claimed", server.clone()),
        Event::Started { position } => (progress, "step_started", step(position)),
        Event::Done { position } => (
            progress,
            "step_done",
            format!("{}: {}", step(position), note.detail),
        ),
        Event::Failed {
            position, reason, ..
        } => (
            progress,
            "step_failed",
            format!("{}: {reason}", step(position)),
        ),
        Event::CancelAsked => (K::ReplacementCalledOff, "cancel_asked", server()),
        Event::Abandoned => (K::ReplacementCalledOff, "abandoned", server()),
        Event::Offered => (progress, "offered", server()),
        Event::Attached => (K::ReplacementSucceeded, "attached", server()),
        Event::Finished => match before.kind {
            Kind::Clean => (K::ServerCleaned, "cleaned", server()),
            Kind::Warm | Kind::Replace => (K::SpareKeptWarm, "kept_warm", server()),
        },
        Event::Superseded => (progress, "superseded", server()),
    }
}

async fn mark(
    tx: &mut Tx,
    work: &Work,
    position: usize,
    state: MarkState,
    counts: bool,
    note: &Note,
) -> Result<(), StoreError> {
    let begins = state == MarkState::Running;
    let changed = sqlx::query(
        "UPDATE step SET state = $4, failures = failures + $5, \
         fence = CASE WHEN $6 = 1 THEN $7 ELSE fence END, \
         started_ms = CASE WHEN $6 = 1 THEN $8 ELSE started_ms END, \
         ended_ms = CASE WHEN $6 = 1 THEN NULL ELSE $8 END, detail = $9, \
         output = CASE WHEN $11 = 1 THEN $10 ELSE output END, \
         tries = tries + $6 WHERE replacement = $1 AND attempt = $2 AND position = $3",
    )
    .bind(work.id.as_str())
    .bind(i64::from(work.journal.attempts))
    .bind(index(position))
    .bind(state.as_str())
    .bind(i64::from(counts))
    .bind(i64::from(begins))
    .bind(stored(work.fence))
    .bind(now_ms().0)
    .bind(note.detail.as_str())
    .bind(pack(&note.output)?)
    // Of a spare that cannot be reached any more what it said before is all there is.
    .bind(i64::from(!note.output.is_empty()))
    .execute(&mut **tx)
    .await
    .map_err(failed("journal a step"))?;
    if changed.rows_affected() == 1 {
        Ok(())
    } else {
        Err(corrupt("journal without step", position.to_string()))
    }
}

/// The server whose operating system is installed with this step.
fn installed(work: &Work, position: usize) -> Option<&str> {
    let hand = work.journal.hand.as_ref()?;
    let mark = hand.steps.get(position)?;
    (mark.name == OS_INSTALL).then_some(hand.server.as_str())
}

/// Notes at the spare in hand where it failed.
async fn note_failure(
    tx: &mut Tx,
    work: &Work,
    position: usize,
    reason: &str,
) -> Result<(), StoreError> {
    let hand = work.journal.hand.as_ref();
    let step = hand.and_then(|h| h.steps.get(position)).map(|m| &m.name);
    sqlx::query(
        "UPDATE attempt SET failed_step = $2, failed_code = $3 \
         WHERE replacement = $1 AND state = 'open'",
    )
    .bind(work.id.as_str())
    .bind(step.map(String::as_str))
    .bind(reason.split(':').next())
    .execute(&mut **tx)
    .await
    .map_err(failed("note a failure"))?;
    Ok(())
}

async fn move_spare(
    tx: &mut Tx,
    work: &Work,
    actor: &Actor,
    spare: &SpareChange,
) -> Result<(), StoreError> {
    let id = &work.id;
    // One that is let go of belongs to nobody.
    let holder = spare.ended.is_none().then(|| id.as_str());
    let left = installation::left(tx, &spare.server).await?;
    let reason = spare.reason.as_ref().map(|reason| match spare.state {
        ServerState::Quarantined => format!("{reason}{left}"),
        _ => reason.clone(),
    });
    // One that was made ready beforehand, and on which nothing else was begun, is that again.
    sqlx::query(
        "UPDATE server SET reason = $3, replacement = $4, \
         state = CASE WHEN $2 = 'ready' AND warm IS NOT NULL THEN 'standby' ELSE $2 END, \
         warm = CASE WHEN $2 IN ('quarantined', 'serving') THEN NULL ELSE warm END WHERE name = $1",
    )
    .bind(spare.server.as_str())
    .bind(spare.state.as_str())
    // A sound server that was passed over says so in its `os_seen`.
    .bind(reason.filter(|_| spare.state != ServerState::Ready))
    .bind(holder)
    .execute(&mut **tx)
    .await
    .map_err(failed("move a server"))?;
    if let Some(end) = spare.ended {
        let word = match end {
            AttemptEnd::Failed => "failed",
            AttemptEnd::PassedOver => "passed_over",
            AttemptEnd::Abandoned => "abandoned",
            AttemptEnd::Finished => "finished",
        };
        let role = work.role.as_deref().unwrap_or_default();
        let before = roles::stop(tx, role).await?;
        end_attempt(tx, id, word, spare.reason.as_deref()).await?;
        end_interrupted(tx, work).await?;
        if let (None, Some(cause)) = (before, roles::stop(tx, role).await?) {
            let detail = cause.reason(role);
            let entry = Entry::new(EventKind::RoleStopped, "role_stopped", &detail);
            audit(tx, actor, entry).await?;
        }
        let touched = work.journal.hand.as_ref().is_some_and(Hand::touched);
        match end {
            AttemptEnd::Failed => put_aside(tx, &spare.server).await?,
            // It is sound, and half configured: it can be cleaned at once.
            AttemptEnd::Abandoned if touched && work.journal.kind != Kind::Clean => {
                clean_after(tx, &spare.server, work.role.as_deref()).await?;
            }
            AttemptEnd::Abandoned | AttemptEnd::PassedOver | AttemptEnd::Finished => {}
        }
        let kind = match spare.state {
            ServerState::Quarantined => EventKind::SpareQuarantined,
            _ => EventKind::SpareReleased,
        };
        let detail = match &spare.reason {
            Some(reason) => format!("{}: {reason}", spare.server),
            None => spare.server.clone(),
        };
        let entry = Entry {
            replacement: Some(id),
            server: address_of(tx, &spare.server).await?,
            ..Entry::new(kind, spare.state.as_str(), &detail)
        };
        audit(tx, actor, entry).await?;
    }
    Ok(())
}

/// The first address of a server.
pub(super) async fn address_of(tx: &mut Tx, server: &str) -> Result<Option<IpAddr>, StoreError> {
    sqlx::query("SELECT address FROM server_address WHERE server = $1 ORDER BY ord LIMIT 1")
        .bind(server)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("read a server's address"))?
        .map(|row| row.parsed("address"))
        .transpose()
}

async fn end_attempt(
    tx: &mut Tx,
    id: &ReplacementId,
    word: &str,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE attempt SET state = $2, reason = $3, ended_ms = $4 \
         WHERE replacement = $1 AND state IN ('open', 'serving')",
    )
    .bind(id.as_str())
    .bind(word)
    .bind(reason)
    .bind(now_ms().0)
    .execute(&mut **tx)
    .await
    .map_err(failed("end an attempt"))?;
    Ok(())
}

/// What an earlier run of ours had in hand when it died, and nobody has come back to.
async fn end_interrupted(tx: &mut Tx, work: &Work) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE step SET state = 'failed', ended_ms = $3, \
         detail = 'interrupted: the provisioner ended in the middle of it, and the spare was put down' \
         WHERE replacement = $1 AND attempt = $2 AND state = 'running'",
    )
    .bind(work.id.as_str())
    .bind(i64::from(work.journal.attempts))
    .bind(now_ms().0)
    .execute(&mut **tx)
    .await
    .map_err(failed("end an interrupted step"))?;
    Ok(())
}

/// A position as the store keeps it.
fn index(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
