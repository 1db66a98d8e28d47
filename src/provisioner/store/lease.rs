//! Who works on what. A replacement that the engine has something to do for is leased by one run of one provisioner,
//! under a fence that is higher than any before: every write of the engine is refused to whoever does not have both, and
//! the spare refuses orders under a lower fence than the last it has seen. So a provisioner that was stopped for a
//! minute, and whose lease another has taken over, can do nothing any more, and learns so with its next word.
//!
//! A lease runs out by the clock of the store: on PostgreSQL the server's, whatever the provisioners' clocks say; a
//! SQLite file has one host.
//!
//! A run gives its host a name. A run that begins frees the leases of earlier runs of the same name: a provisioner that
//! is started again does not wait for itself. Two provisioners of one name do no harm either, they share the work like
//! any two; but whoever of them starts takes the other's work in hand over, which costs a fence on each spare.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Actor, News, Note, Store, StoreError, Tx, failed, journal, next_fence, now_ms, open::Engine,
    rows::Columns,
};
use crate::{
    model::ReplacementId,
    provisioner::workflow::{Event, Retry},
};

/// One run of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    owner: String,
    host: String,
}

impl Run {
    /// Its provisioner, as the audit trail names it.
    pub(super) fn actor(&self) -> Actor {
        Actor::engine(&self.host)
    }
}

/// The right to work on a replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which.
    pub id: ReplacementId,
    pub(super) run: Run,
    pub(super) fence: i64,
}

impl Lease {
    /// What orders to the spare carry.
    #[must_use]
    pub fn fence(&self) -> u64 {
        u64::try_from(self.fence).unwrap_or(0)
    }

    fn lost(&self) -> StoreError {
        StoreError::LeaseLost {
            id: self.id.clone(),
        }
    }
}

/// What an engine sees at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Moves with every change that may let a waiting replacement go on, whoever made it.
    pub work: i64,
    /// Whether there is a replacement that nobody works on.
    pub free: bool,
}

const FREE: &str = "SELECT id, owner FROM replacement \
    WHERE state IN ('pending', 'claiming', 'configuring', 'testing') \
    AND (owner IS NULL OR lease_until <= $1) \
    ORDER BY CASE WHEN kind = 'replace' THEN 0 ELSE 1 END, created_ms, id LIMIT $2";

impl Store {
    /// Begins a run of an engine on the provisioner `host`, and frees what earlier runs there had in hand.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_run(&self, host: &str) -> Result<Run, StoreError> {
        let mut tx = self.begin().await?;
        // Not NULL: whoever takes it up sees that somebody had it.
        sqlx::query(
            "UPDATE replacement SET owner = '', lease_until = 0 WHERE host = $1 AND owner IS NOT NULL",
        )
            .bind(host)
            .execute(&mut *tx)
            .await
            .map_err(failed("free the leases of an earlier run"))?;
        self.commit(tx, News::State).await?;
        Ok(Run {
            owner: uuid::Uuid::now_v7().to_string(),
            host: host.to_owned(),
        })
    }

    /// What there is to do, without doing anything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn look(&self) -> Result<Look, StoreError> {
        let mut tx = self.read().await?;
        let work = sqlx::query("SELECT value FROM meta WHERE name = 'work'")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("look for changes"))?
            .number("value")?;
        let now = self.now(&mut tx).await?;
        let free = sqlx::query(FREE)
            .bind(now)
            .bind(1_i64)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("look for work"))?
            .is_some();
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(Look { work, free })
    }

    /// Leases up to `most` replacements that nobody works on, the oldest first, each under a new fence.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lease(
        &self,
        run: &Run,
        lasts: Duration,
        most: usize,
    ) -> Result<Vec<Lease>, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let rows = sqlx::query(FREE)
            .bind(now)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("look for work"))?;
        let mut leases = Vec::with_capacity(rows.len());
        for row in rows {
            let id: ReplacementId = row.parsed("id")?;
            let fence = next_fence(&mut tx).await?;
            sqlx::query(
                "UPDATE replacement SET owner = $2, host = $3, lease_until = $4, fence = $5 WHERE id = $1",
            )
            .bind(id.as_str())
            .bind(run.owner.as_str())
            .bind(run.host.as_str())
            .bind(until(now, lasts))
            .bind(fence)
            .execute(&mut *tx)
            .await
            .map_err(failed("lease a replacement"))?;
            if row.text_opt("owner")?.is_some() {
                let (note, retry) = (Note::default(), Retry::STANDARD);
                journal::apply(&mut tx, &id, &run.actor(), &Event::Resumed, note, &retry).await?;
            }
            leases.push(Lease {
                id,
                run: run.clone(),
                fence,
            });
        }
        self.commit(tx, News::State).await?;
        Ok(leases)
    }

    /// Prolongs every lease of a run, and returns what it still has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn renew(
        &self,
        run: &Run,
        lasts: Duration,
    ) -> Result<BTreeSet<ReplacementId>, StoreError> {
        let mut tx = self.begin().await?;
        let now = self.now(&mut tx).await?;
        let rows = sqlx::query(
            "UPDATE replacement SET lease_until = $2 WHERE owner = $1 \
             AND state IN ('pending', 'claiming', 'configuring', 'testing') RETURNING id",
        )
        .bind(run.owner.as_str())
        .bind(until(now, lasts))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("renew its leases"))?;
        self.commit(tx, News::None).await?;
        rows.iter().map(|row| row.parsed("id")).collect()
    }

    /// Gives leases back, so that any provisioner may take these up.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hand_back(&self, leases: &[Lease]) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        for lease in leases {
            sqlx::query(
                "UPDATE replacement SET owner = NULL, lease_until = 0 \
                 WHERE id = $1 AND owner = $2 AND fence = $3",
            )
            .bind(lease.id.as_str())
            .bind(lease.run.owner.as_str())
            .bind(lease.fence)
            .execute(&mut *tx)
            .await
            .map_err(failed("hand a replacement back"))?;
        }
        self.commit(tx, News::None).await
    }

    /// Frees what a run has and knows nothing of, so that any provisioner may take it up.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn disown(&self, run: &Run, ids: &[ReplacementId]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        for id in ids {
            // Not NULL: whoever takes it up sees that somebody had it.
            sqlx::query(
                "UPDATE replacement SET owner = '', lease_until = 0 WHERE id = $1 AND owner = $2",
            )
            .bind(id.as_str())
            .bind(run.owner.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed("free a replacement"))?;
        }
        self.commit(tx, News::None).await
    }

    /// Ends a run: what it had in hand is free at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_run(&self, run: &Run) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE replacement SET owner = '', lease_until = 0 WHERE owner = $1")
            .bind(run.owner.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed("free its leases"))?;
        self.commit(tx, News::None).await
    }

    /// The clock that leases run out by, in milliseconds since 1970.
    pub(super) async fn now(&self, tx: &mut Tx) -> Result<i64, StoreError> {
        match self.engine {
            Engine::Sqlite => Ok(now_ms().0),
            Engine::Postgres => sqlx::query(
                "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) AS now",
            )
            .fetch_one(&mut **tx)
            .await
            .map_err(failed("read its clock"))?
            .number("now"),
        }
    }
}

fn until(now: i64, lasts: Duration) -> i64 {
    now.saturating_add(i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX))
}

/// Refuses whoever no longer has the lease. Within a writing transaction, of which there is one at a time, this is as
/// good as the same condition in every statement.
pub(super) async fn guard(tx: &mut Tx, lease: &Lease) -> Result<(), StoreError> {
    let has = sqlx::query("SELECT id FROM replacement WHERE id = $1 AND owner = $2 AND fence = $3")
        .bind(lease.id.as_str())
        .bind(lease.run.owner.as_str())
        .bind(lease.fence)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("look whose replacement it is"))?;
    has.map(drop).ok_or_else(|| lease.lost())
}
