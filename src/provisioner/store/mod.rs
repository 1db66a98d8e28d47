//! What the provisioner knows: the inventory, the journal of replacements, who holds which role. Every method is one
//! transaction; what was returned `Ok` survives a crash.
//!
//! One schema and one text per query for both engines (see the migration's head): SQLite in a file of this host, or
//! PostgreSQL for several provisioners.
//!
//! Writers take turns, on both: what a transaction has read is still so when it commits, and no two of them can each do
//! what only one may (write skew). SQLite has that of itself: `BEGIN IMMEDIATE`, over one connection, because writers
//! that wait in the pool's queue are faster than writers that meet in the file's lock. On PostgreSQL each writing
//! transaction takes one advisory lock before it reads anything, and then reads what is committed (READ COMMITTED).
//! SERIALIZABLE would need no lock, but these transactions read whole tables, so that nearly any two of them would
//! conflict, and each would have to be tried again. With the lock there is nothing to try again, no deadlock, and a
//! unique index is never hit by a race. It costs that writers do not run side by side; theirs are milliseconds. Readers
//! have a snapshot and wait for nobody. A provisioner that is stopped within a transaction is thrown out by the server
//! after 5 s (see `open.rs`).

mod copy;
mod diff;
mod error;
mod installation;
mod inventory;
mod journal;
mod lease;
mod members;
mod offer;
mod open;
mod pool;
mod replacements;
mod roles;
mod rows;
mod trail;
mod upkeep;
mod world;

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::{Any, AnyPool, Row, Transaction};
use tokio::sync::watch;

pub use copy::StoreStatus;
pub use diff::{Problems, problems};
pub use error::StoreError;
pub use inventory::ApplyError;
pub(in crate::provisioner) use journal::Vacancy;
pub use journal::{Claim, Claimed, Note, StepLog, Which, Work};
pub use lease::{Lease, Look, Run};
pub use members::{ConfirmOutcome, Finding, Registered};
pub use open::{Engine, Place};
pub use pool::{Rehearsed, ServerOutcome};
pub use replacements::{Asked, CancelOutcome};
pub(in crate::provisioner) use replacements::{Ready, new_id};
pub use roles::RetryOutcome;

use crate::model::WallMillis;
use error::failed;
pub use trail::Actor;
use trail::{Entry, audit};

/// The advisory lock of writers: any number that nobody else uses in this database ("understu").
const WRITERS: i64 = 0x756e_6465_7273_7475;

/// The store, open. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    engine: Engine,
    /// Where it is, for messages.
    at: String,
    changed: watch::Sender<u64>,
    work: watch::Sender<u64>,
}

/// One transaction.
type Tx = Transaction<'static, Any>;

impl Store {
    /// Closes it; what is under way ends first.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The same over connections of its own, where there are several: whoever takes up all of those holds up nobody who
    /// has these.
    #[must_use]
    pub fn apart(&self) -> Self {
        let pool = match self.engine {
            Engine::Sqlite => self.pool.clone(),
            Engine::Postgres => {
                let to = self.pool.connect_options().as_ref().clone();
                self.pool.options().clone().connect_lazy_with(to)
            }
        };
        Self {
            pool,
            ..self.clone()
        }
    }

    /// What keeps it.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(&self.pool)
            .await
            .map_err(failed("answer"))?;
        Ok(())
    }

    /// Marks every change of the store: a long poll reads again when this moves. The number means
    /// nothing. Changes by another process are not seen.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Marks changes that may let a waiting replacement go on.
    #[must_use]
    pub fn work(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    /// Begins a writing transaction, of which there is one at a time.
    async fn begin(&self) -> Result<Tx, StoreError> {
        let mut tx = self.start(self.engine.begin_writing()).await?;
        if self.engine == Engine::Postgres {
            // As text: the function's own type is none that this driver knows.
            sqlx::query("SELECT CAST(pg_advisory_xact_lock($1) AS TEXT)")
                .bind(WRITERS)
                .execute(&mut *tx)
                .await
                .map_err(failed("wait for its turn to write"))?;
        }
        Ok(tx)
    }

    /// Begins a transaction that only reads, all as of one moment.
    async fn read(&self) -> Result<Tx, StoreError> {
        self.start(self.engine.begin_reading()).await
    }

    async fn start(&self, statement: &'static str) -> Result<Tx, StoreError> {
        let pool = self.pool.clone();
        // In a task of its own: a caller that is dropped half way must not leave a connection in the pool which is in a
        // transaction of which nobody knows.
        #[expect(
            clippy::disallowed_methods,
            reason = "its end is awaited here, or is that of a caller who went away"
        )]
        let begun = tokio::spawn(async move { pool.begin_with(statement).await }).await;
        match begun {
            Ok(tx) => tx.map_err(failed("begin a transaction")),
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_ended) => Err(failed("begin a transaction")(sqlx::Error::PoolClosed)),
        }
    }

    /// Commits and tells who waits.
    async fn commit(&self, mut tx: Tx, news: News) -> Result<(), StoreError> {
        if news == News::Work {
            sqlx::query("UPDATE meta SET value = value + 1 WHERE name = 'work'")
                .execute(&mut *tx)
                .await
                .map_err(failed("tell of a change"))?;
        }
        tx.commit().await.map_err(failed("commit a transaction"))?;
        match news {
            News::None => {}
            News::State => self.changed.send_modify(|n| *n += 1),
            News::Work => {
                self.changed.send_modify(|n| *n += 1);
                self.work.send_modify(|n| *n += 1);
            }
        }
        Ok(())
    }
}

/// Who is to be told of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Nobody: nothing changed.
    None,
    /// Long polls.
    State,
    /// Long polls and the engines, also of other provisioners.
    Work,
}

/// The next fence: higher than any that this store has given.
async fn next_fence(tx: &mut Tx) -> Result<i64, StoreError> {
    sqlx::query("UPDATE meta SET value = value + 1 WHERE name = 'fence' RETURNING value")
        .fetch_one(&mut **tx)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed("take a fence"))
}

/// Wall time, for records only.
fn now_ms() -> WallMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;

/// The same on PostgreSQL.
#[cfg(test)]
mod tests_on_postgres {
    include!("tests.rs");
}
