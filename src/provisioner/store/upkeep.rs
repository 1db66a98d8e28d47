//! Work on servers that nobody asked for: made ready beforehand, cleaned.

use std::time::Duration;

use super::{
    Actor, News, Note, Store, StoreError, Tx, failed,
    inventory::attached,
    journal::{self, Work, note_planned},
    next_fence, now_ms,
    pool::{self, KEEPER},
    rows::{Columns, corrupt, json},
};
use crate::{
    model::ReplacementId,
    provisioner::{
        order::{OS_INSTALL, Step},
        upkeep::{InHand, Upkeep},
        warm::Warm,
        workflow::{Event, Kind, Retry},
    },
};

/// After one spare could not be made ready, the next of its role is not begun sooner.
const REST: Duration = Duration::from_secs(600);

impl Store {
    /// What upkeep is under way, or has failed a short time ago.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn upkeep_in_hand(&self) -> Result<InHand, StoreError> {
        let mut tx = self.read().await?;
        let mut in_hand = InHand::default();
        let since = now_ms().0 - i64::try_from(REST.as_millis()).unwrap_or(0);
        let rows = sqlx::query(
            "SELECT kind, role, state, count(*) AS n FROM replacement WHERE \
             (kind <> 'replace' AND state IN ('pending', 'claiming', 'configuring', 'testing')) \
             OR (kind = 'warm' AND state = 'failed' AND ended_ms > $1) \
             OR (kind = 'replace' AND state = 'pending') GROUP BY kind, role, state",
        )
        .bind(since)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("look what upkeep is under way"))?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        for row in rows {
            let number = usize::try_from(row.count("n")?).unwrap_or(usize::MAX);
            let role = row.text_opt("role")?.unwrap_or_default();
            match row.word("kind", Kind::from_word)? {
                Kind::Replace => in_hand.awaited = true,
                Kind::Clean => in_hand.cleaning += number,
                Kind::Warm if row.text("state")? == "failed" => drop(in_hand.failed.insert(role)),
                Kind::Warm => *in_hand.warming.entry(role).or_default() += number,
            }
        }
        // A role whose spares fail in one place fails in it beforehand too.
        in_hand.failed.extend(self.stopped_roles().await?);
        Ok(in_hand)
    }

    /// Takes a server in hand and writes down what is going to be done to it; the engine does it. `false` where it no
    /// longer stands where it stood.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_upkeep(
        &self,
        id: &ReplacementId,
        of: &Upkeep,
        steps: &[Step],
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let stands = pool::state(&mut tx, &of.server).await? == Some(of.state);
        let served = attached(&mut tx).await?.contains_key(&of.server);
        if !stands || served || !is_free(&mut tx, of).await? {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(false);
        }
        let fence = next_fence(&mut tx).await?;
        sqlx::query(
            "INSERT INTO replacement (id, kind, first_key, slot, origins, role, state, rejected, cancel, fence, \
             lease_until, version, created_ms) \
             VALUES ($1, $2, $1, $3, '[]', $4, 'pending', '[]', 0, $5, 0, 1, $6)",
        )
        .bind(id.as_str())
        .bind(of.kind.as_str())
        .bind(format!("{} {}", of.kind.as_str(), of.server))
        .bind(of.role.as_str())
        .bind(fence)
        .bind(now_ms().0)
        .execute(&mut *tx)
        .await
        .map_err(failed("begin upkeep"))?;
        // Whoever is cleaned is told anew what is wrong with it.
        sqlx::query(
            "UPDATE server SET warm = NULL, clean_after = NULL, \
             trouble = CASE WHEN $2 = 'clean' THEN NULL ELSE trouble END WHERE name = $1",
        )
        .bind(of.server.as_str())
        .bind(of.kind.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed("begin upkeep"))?;
        let event = Event::Claimed {
            server: of.server.clone(),
            steps: steps.iter().map(Step::name).collect(),
        };
        let (actor, note, retry) = (Actor::from(KEEPER), Note::default(), Retry::STANDARD);
        let journal = journal::apply(&mut tx, id, &actor, &event, note, &retry).await?;
        note_planned(&mut tx, id, journal.attempts, &of.server, steps).await?;
        self.commit(tx, News::Work).await?;
        Ok(true)
    }
}

/// Whether nobody has said meanwhile that a server is not for this, and nothing is left to be put away on it.
async fn is_free(tx: &mut Tx, of: &Upkeep) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT reserved_for FROM server WHERE name = $1 AND maintenance IS NULL AND installation IS NULL",
    )
    .bind(of.server.as_str())
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("look whether a server is free"))?;
    let Some(row) = row else {
        return Ok(false);
    };
    let reserved: Vec<String> = row.json("reserved_for")?;
    let for_it = reserved.is_empty() || reserved.contains(&of.role);
    Ok(for_it || of.kind == Kind::Clean)
}

/// What becomes of a server on which everything is done.
pub(super) async fn finish(tx: &mut Tx, work: &Work) -> Result<(), StoreError> {
    let hand = work.journal.hand.as_ref();
    let server = hand.map(|hand| hand.server.as_str());
    let server = server.ok_or_else(|| corrupt("upkeep without a server", work.id.as_str()))?;
    match work.journal.kind {
        Kind::Replace => Ok(()),
        Kind::Warm => {
            let role = work.role.as_deref().unwrap_or_default();
            let warm = Warm::of(role, &planned(tx, &work.id).await?);
            sqlx::query("UPDATE server SET warm = $2, quarantines = 0 WHERE name = $1")
                .bind(server)
                .bind(json("what was made ready", &warm)?)
                .execute(&mut **tx)
                .await
                .map_err(failed("keep a spare warm"))?;
            Ok(())
        }
        Kind::Clean => {
            // What was seen of a fresh installation, and of its image in a drive.
            let row = sqlx::query("SELECT os_seen, trouble FROM server WHERE name = $1")
                .bind(server)
                .fetch_one(&mut **tx)
                .await
                .map_err(failed("look what a server is now"))?;
            let is_fresh = hand.is_some_and(|hand| hand.steps.iter().any(|m| m.name == OS_INSTALL));
            let (os, trouble) = (row.text_opt("os_seen")?, row.text_opt("trouble")?);
            pool::free(tx, server).await?;
            sqlx::query(
                "UPDATE server SET placed = '[]', os_seen = $2, trouble = $3 WHERE name = $1",
            )
            .bind(server)
            .bind(os.filter(|_| is_fresh))
            .bind(trouble)
            .execute(&mut **tx)
            .await
            .map_err(failed("note that a server is clean"))?;
            Ok(())
        }
    }
}

/// The steps of the spare in hand, as they were planned.
async fn planned(tx: &mut Tx, id: &ReplacementId) -> Result<Vec<Step>, StoreError> {
    sqlx::query(
        "SELECT s.payload FROM step s JOIN attempt a ON a.replacement = s.replacement \
         AND a.number = s.attempt WHERE s.replacement = $1 AND a.state = 'open' ORDER BY s.position",
    )
    .bind(id.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read what was planned"))?
    .iter()
    .map(|row| row.json("payload"))
    .collect()
}
