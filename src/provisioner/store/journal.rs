//! The journal: every event of a replacement is taken in by the workflow and written down in one
//! transaction, together with what it does to the spare.

use std::{
    io::{Read, Write},
    net::IpAddr,
};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use sha2::{Digest, Sha256};

use super::{
    News, Store, StoreError, Tx, audit, failed, next_fence, now_ms,
    offer::offer,
    rows::{Columns, corrupt, json, stored},
    world::world,
};
use crate::{
    model::{
        DirectorName, ReplacementId,
        inventory::{Server, ServerState},
        wire::{PassedOver, ReplacementState},
    },
    provisioner::{
        order::{Class, Step},
        workflow::{AttemptEnd, Event, Hand, Journal, Mark, MarkState, Retry, SpareChange},
    },
};

/// One run of the engine: only the newest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run(i64);

/// A replacement as the engine works on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Its id.
    pub id: ReplacementId,
    /// Who asked.
    pub director: DirectorName,
    /// The failed server's device identifier.
    pub failed: IpAddr,
    /// The configured server whose place it is.
    pub origin: IpAddr,
    /// All addresses of that one, as the inventory had it.
    pub origins: Vec<IpAddr>,
    /// What orders to the spare carry.
    pub fence: u64,
    /// How far it has come.
    pub journal: Journal,
    /// The replacement whose spare failed, where it was one.
    pub supersedes: Option<ReplacementId>,
    /// The role its spare was claimed for.
    pub(super) role: Option<String>,
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
pub(in crate::provisioner) struct Claim<'a> {
    /// Its name.
    pub(in crate::provisioner) server: &'a str,
    /// The role it is configured for.
    pub(in crate::provisioner) role: &'a str,
    /// What will be done to it.
    pub(in crate::provisioner) steps: &'a [Step],
    /// Why not the others.
    pub(in crate::provisioner) rejected: Vec<PassedOver>,
}

impl Store {
    /// Begins a run of the engine: older runs may write no more, and every spare in hand gets a new
    /// fence, to be written on it first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_over(&self) -> Result<Run, StoreError> {
        let mut tx = self.begin().await?;
        let owner = next_fence(&mut tx).await?;
        sqlx::query("UPDATE meta SET value = $1 WHERE name = 'owner'")
            .bind(owner)
            .execute(&mut *tx)
            .await
            .map_err(failed("take the store over"))?;
        for id in unfinished(&mut tx).await? {
            let fence = next_fence(&mut tx).await?;
            sqlx::query("UPDATE replacement SET fence = $2 WHERE id = $1")
                .bind(id.as_str())
                .bind(fence)
                .execute(&mut *tx)
                .await
                .map_err(failed("raise a fence"))?;
            apply(
                &mut tx,
                &id,
                "engine",
                &Event::Resumed,
                Note::default(),
                &Retry::STANDARD,
            )
            .await?;
        }
        self.commit(tx, News::State).await?;
        Ok(Run(owner))
    }

    /// Replacements that the engine has something to do for, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unfinished(&self) -> Result<Vec<ReplacementId>, StoreError> {
        let mut tx = self.begin().await?;
        let ids = unfinished(&mut tx).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(ids)
    }

    /// A replacement as the engine works on it.
    ///
    /// # Errors
    /// [`StoreError::NoReplacement`] and others.
    pub async fn work_on(&self, id: &ReplacementId) -> Result<Work, StoreError> {
        let mut tx = self.begin().await?;
        let work = load(&mut tx, id).await?;
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
        let mut tx = self.begin().await?;
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

    /// All steps planned for the spare in hand.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn plan(&self, id: &ReplacementId) -> Result<Vec<Step>, StoreError> {
        let mut tx = self.begin().await?;
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

    /// Claims a spare for a replacement and writes its plan down. `false` where the spare is no
    /// longer free: choose again.
    pub(in crate::provisioner) async fn claim(
        &self,
        run: Run,
        id: &ReplacementId,
        claim: Claim<'_>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        guard(&mut tx, run).await?;
        let taken = sqlx::query(
            "UPDATE server SET state = 'claimed', replacement = $2, reason = NULL \
             WHERE name = $1 AND state = 'ready'",
        )
        .bind(claim.server)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed("claim a spare"))?;
        if taken.rows_affected() == 0 {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(false);
        }
        let fence = next_fence(&mut tx).await?;
        sqlx::query("UPDATE replacement SET fence = $2, role = $3 WHERE id = $1")
            .bind(id.as_str())
            .bind(fence)
            .bind(claim.role)
            .execute(&mut *tx)
            .await
            .map_err(failed("raise a fence"))?;
        let event = Event::Claimed {
            server: claim.server.to_owned(),
            steps: claim.steps.iter().map(Step::name).collect(),
        };
        let note = Note {
            rejected: Some(claim.rejected),
            ..Note::default()
        };
        let journal = apply(&mut tx, id, "engine", &event, note, &Retry::STANDARD).await?;
        let attempt = i64::from(journal.attempts);
        for (position, step) in claim.steps.iter().enumerate() {
            let payload = json("step", step)?;
            sqlx::query(
                "INSERT INTO step (replacement, attempt, position, name, payload, digest, limit_ms, \
                 state, tries, failures, fence, detail) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, 'planned', 0, 0, 0, '')",
            )
            .bind(id.as_str())
            .bind(attempt)
            .bind(index(position))
            .bind(step.name())
            .bind(payload.as_str())
            .bind(hex(&Sha256::digest(&payload)))
            .bind(stored(
                u64::try_from(step.limit().as_millis()).unwrap_or(u64::MAX),
            ))
            .execute(&mut *tx)
            .await
            .map_err(failed("plan a step"))?;
        }
        self.commit(tx, News::State).await?;
        Ok(true)
    }

    /// Writes an event of the engine down and returns the journal from then on.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where a newer run has taken over, [`StoreError::Illegal`] where the
    /// workflow does not allow it, and others.
    pub async fn advance(
        &self,
        run: Run,
        id: &ReplacementId,
        event: &Event,
        note: Note,
        retry: &Retry,
    ) -> Result<Journal, StoreError> {
        let mut tx = self.begin().await?;
        guard(&mut tx, run).await?;
        let journal = apply(&mut tx, id, "engine", event, note, retry).await?;
        let freed = matches!(event, Event::Failed { .. } | Event::Abandoned);
        self.commit(tx, if freed { News::Work } else { News::State })
            .await?;
        Ok(journal)
    }
}

impl Store {
    /// Keeps what a running step has printed so far.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where a newer run has taken over, and others.
    pub async fn said(
        &self,
        run: Run,
        id: &ReplacementId,
        position: usize,
        text: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        guard(&mut tx, run).await?;
        sqlx::query(
            "UPDATE step SET output = $3 WHERE replacement = $1 AND position = $2 \
             AND state = 'running' AND attempt = (SELECT number FROM attempt \
             WHERE replacement = $1 AND state = 'open')",
        )
        .bind(id.as_str())
        .bind(index(position))
        .bind(pack(text)?)
        .execute(&mut *tx)
        .await
        .map_err(failed("keep a script's output"))?;
        self.commit(tx, News::State).await
    }

    /// What the last step of this name has printed, or the last step that was begun.
    ///
    /// # Errors
    /// [`StoreError::NoReplacement`] and others.
    pub async fn log(
        &self,
        id: &ReplacementId,
        step: Option<&str>,
    ) -> Result<Option<StepLog>, StoreError> {
        let mut tx = self.begin().await?;
        let state = load(&mut tx, id).await?.journal.state;
        let row = sqlx::query(
            "SELECT s.name, s.state, s.attempt, s.position, s.output, a.server FROM step s \
             JOIN attempt a ON a.replacement = s.replacement AND a.number = s.attempt \
             WHERE s.replacement = $1 AND s.state <> 'planned' AND (s.name = $2 OR $2 = '') \
             ORDER BY s.attempt DESC, s.position DESC LIMIT 1",
        )
        .bind(id.as_str())
        .bind(step.unwrap_or_default())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("read a script's output"))?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StepLog {
            server: row.text("server")?,
            step: row.text("name")?,
            run: format!("{}.{}", row.number("attempt")?, row.number("position")?),
            ended: row.text("state")? != MarkState::Running.as_str(),
            over: !matches!(
                state,
                ReplacementState::Pending
                    | ReplacementState::Claiming
                    | ReplacementState::Configuring
                    | ReplacementState::Testing
            ),
            text: unpack(row.bytes("output")?)?,
        }))
    }
}

/// What a step has printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLog {
    /// Where.
    pub server: String,
    /// Which.
    pub step: String,
    /// Names the step among all of the replacement: another spare, another word.
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

/// Refuses a run that is not the newest.
async fn guard(tx: &mut Tx, run: Run) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT value FROM meta WHERE name = 'owner'")
        .fetch_one(&mut **tx)
        .await
        .map_err(failed("read its owner"))?;
    if row.number("value")? == run.0 {
        Ok(())
    } else {
        Err(StoreError::Fenced)
    }
}

async fn unfinished(tx: &mut Tx) -> Result<Vec<ReplacementId>, StoreError> {
    sqlx::query(
        "SELECT id FROM replacement WHERE state IN ('pending', 'claiming', 'configuring', 'testing') \
         ORDER BY created_ms, id",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("list what is unfinished"))?
    .iter()
    .map(|row| row.parsed("id"))
    .collect()
}

/// A replacement with its journal.
pub(super) async fn load(tx: &mut Tx, id: &ReplacementId) -> Result<Work, StoreError> {
    let row = sqlx::query(
        "SELECT director, failed, origin, origins, role, state, reason, cancel, fence, supersedes, \
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
    Ok(Work {
        id: id.clone(),
        director: row.parsed("director")?,
        failed: row.parsed("failed")?,
        origin: row.parsed("origin")?,
        origins: row.json("origins")?,
        fence,
        journal: Journal {
            state: row.word("state", ReplacementState::from_word)?,
            cancel: row.number("cancel")? != 0,
            reason: row.text_opt("reason")?,
            attempts: u32::try_from(attempts)
                .map_err(|_big| corrupt("count of attempts", attempts.to_string()))?,
            hand,
        },
        supersedes: row.parsed_opt("supersedes")?,
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
    for (position, step) in rows.iter().enumerate() {
        let state = step.word("state", MarkState::from_word)?;
        let failures = step.number("failures")?;
        if position == 0 {
            fenced = state == MarkState::Done && step.count("fence")? == fence;
        }
        steps.push(Mark {
            name: step.text("name")?,
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
    actor: &str,
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
            mark(tx, &work, *position, MarkState::Done, false, &note).await?
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
        Event::Attached => end_attempt(tx, id, "serving", None).await?,
        Event::Superseded => end_attempt(tx, id, "superseded", None).await?,
        Event::Resumed | Event::Waits { .. } | Event::CancelAsked | Event::Abandoned => {}
    }
    if let Some(spare) = &change.spare {
        move_spare(tx, id, spare).await?;
    }
    if let (Some(os), Some(hand)) = (&note.os, &work.journal.hand) {
        sqlx::query("UPDATE server SET os_seen = $2 WHERE name = $1")
            .bind(hand.server.as_str())
            .bind(os.as_str())
            .execute(&mut **tx)
            .await
            .map_err(failed("note an operating system"))?;
    }
    let (what, detail) = trail(event, &work.journal, &note);
    audit(tx, actor, id.as_str(), what, &detail).await?;
    Ok(journal)
}

/// An event in the audit trail's words.
fn trail(event: &Event, before: &Journal, note: &Note) -> (&'static str, String) {
    let step = |position: &usize| {
        let hand = before.hand.as_ref();
        let name = hand.and_then(|h| h.steps.get(*position)).map(|m| &m.name);
        let server = hand.map_or("?", |h| h.server.as_str());
        format!("{} on {server}", name.map_or("?", String::as_str))
    };
    match event {
        Event::Resumed => ("resumed", String::new()),
        Event::Waits { reason } => ("waits", reason.clone()),
        Event::Claimed { server, .. } => ("claimed", server.clone()),
        Event::Started { position } => ("step_started", step(position)),
        Event::Done { position } => ("step_done", format!("{}: {}", step(position), note.detail)),
        Event::Failed {
            position, reason, ..
        } => ("step_failed", format!("{}: {reason}", step(position))),
        Event::CancelAsked => ("cancel_asked", String::new()),
        Event::Abandoned => ("abandoned", String::new()),
        Event::Offered => ("offered", String::new()),
        Event::Attached => ("attached", String::new()),
        Event::Superseded => ("superseded", String::new()),
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
         ended_ms = CASE WHEN $6 = 1 THEN NULL ELSE $8 END, detail = $9, output = $10, \
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
    .execute(&mut **tx)
    .await
    .map_err(failed("journal a step"))?;
    if changed.rows_affected() == 1 {
        Ok(())
    } else {
        Err(corrupt("journal without step", position.to_string()))
    }
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
    id: &ReplacementId,
    spare: &SpareChange,
) -> Result<(), StoreError> {
    // One that is let go of belongs to nobody.
    let holder = spare.ended.is_none().then(|| id.as_str());
    sqlx::query("UPDATE server SET state = $2, reason = $3, replacement = $4 WHERE name = $1")
        .bind(spare.server.as_str())
        .bind(spare.state.as_str())
        // A sound server that was passed over says so in its `os_seen`.
        .bind(
            spare
                .reason
                .as_deref()
                .filter(|_| spare.state != ServerState::Ready),
        )
        .bind(holder)
        .execute(&mut **tx)
        .await
        .map_err(failed("move a server"))?;
    if let Some(end) = spare.ended {
        let word = match end {
            AttemptEnd::Failed => "failed",
            AttemptEnd::PassedOver => "passed_over",
            AttemptEnd::Abandoned => "abandoned",
        };
        end_attempt(tx, id, word, spare.reason.as_deref()).await?;
        audit(
            tx,
            "engine",
            &format!("server {}", spare.server),
            spare.state.as_str(),
            spare.reason.as_deref().unwrap_or_default(),
        )
        .await?;
    }
    Ok(())
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

/// A position as the store keeps it.
fn index(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
