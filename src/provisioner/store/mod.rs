//! What the provisioner knows, on disk: the inventory, the journal of replacements, who holds which
//! role. Every method is one transaction; what was returned `Ok` survives a crash.
//!
//! One query text for SQLite and PostgreSQL (see the migration's head). SQLite has one connection:
//! writers that wait in the pool's queue are faster than writers that meet in the file's lock.

mod diff;
mod inventory;
mod journal;
mod members;
mod offer;
mod replacements;
mod roles;
mod rows;
mod world;

use std::{
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sqlx::{
    Any, AnyConnection, AnyPool, Connection, Row, Transaction,
    any::{AnyPoolOptions, install_default_drivers},
    migrate::MigrateError,
};
use tokio::sync::watch;

pub use diff::{Problems, problems};
pub use inventory::{ApplyError, ReleaseOutcome};
pub(in crate::provisioner) use journal::Claim;
pub use journal::{Note, Run, StepLog, Work};
pub use members::ConfirmOutcome;
pub use replacements::{Asked, CancelOutcome};
pub use roles::RetryOutcome;

use crate::{
    model::{ReplacementId, WallMillis},
    provisioner::workflow::Illegal,
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/provisioner/store/migrations");

/// Another process may hold the file's lock for a backup; longer than this is a fault.
const BUSY: &str = "PRAGMA busy_timeout = 10000";

/// A caller that waits longer for the one connection is told so.
const ACQUIRE: Duration = Duration::from_secs(30);

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not there and cannot be made.
    #[error(
        "the store {} cannot be created or written: give its folder to the provisioner's user", path.display()
    )]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is there and cannot be opened.
    #[error("the store {} cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The file holds something else.
    #[error(
        "the store {} is no database of understudy: move it away, or restore a backup", path.display()
    )]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A newer understudy has written it.
    #[error(
        "the store {} was written by a newer understudy (its migration {migration} is unknown here): run that version, or restore a backup from before the update", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The migration that this version does not know.
        migration: i64,
    },
    /// Its tables could not be brought up to date.
    #[error("the store {} could not be brought to this version's tables", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<MigrateError>,
    },
    /// A query failed.
    #[error("the store could not {what}")]
    Query {
        /// What was to be done.
        what: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A value in the store is none that this version writes.
    #[error("the store holds a {what} that cannot be read: {found:?}")]
    Corrupt {
        /// What it should be.
        what: &'static str,
        /// What is there.
        found: String,
    },
    /// A newer run of the engine has taken over: this one must stop.
    #[error("a newer run of the provisioner has taken over the store: is it started twice?")]
    Fenced,
    /// There is none of this id.
    #[error("there is no replacement {id}")]
    NoReplacement {
        /// Which.
        id: String,
    },
    /// The workflow does not allow it.
    #[error("the journal of {id} does not allow this")]
    Illegal {
        /// Which.
        id: ReplacementId,
        /// Why.
        #[source]
        source: Illegal,
    },
}

/// The store, open. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    begin: &'static str,
    changed: watch::Sender<u64>,
    work: watch::Sender<u64>,
}

/// One transaction.
type Tx = Transaction<'static, Any>;

/// Turns a failed query into an error that says what it was for.
fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { what, source }
}

impl Store {
    /// Opens the SQLite file at `path`, makes it where there is none, brings its tables up to date.
    ///
    /// # Errors
    /// [`StoreError`] says what is wrong with the file.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        install_default_drivers();
        // Scripts and host keys are nobody else's business, whatever the umask.
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::Create {
                path: path.to_owned(),
                source,
            })?;
        let url = sqlite_url(path);
        // The pool would try a file that is no database again and again, and then say "timed out".
        probe(&url).await.map_err(|e| open_error(path, e))?;
        let pool = AnyPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(|connection: &mut AnyConnection, _| {
                Box::pin(async move {
                    for pragma in [
                        BUSY,
                        "PRAGMA journal_mode = WAL",
                        "PRAGMA synchronous = FULL",
                        "PRAGMA foreign_keys = ON",
                    ] {
                        sqlx::query(pragma).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            })
            .connect(&url)
            .await
            .map_err(|source| open_error(path, source))?;
        let store = Self {
            pool,
            begin: "BEGIN IMMEDIATE",
            changed: watch::Sender::new(0),
            work: watch::Sender::new(0),
        };
        MIGRATIONS
            .run(&store.pool)
            .await
            .map_err(|e| migrate_error(path, e))?;
        sqlx::query("INSERT INTO meta (name, value) VALUES ('fence', $1), ('owner', $2) ON CONFLICT DO NOTHING")
            .bind(now_ms().0)
            .bind(0_i64)
            .execute(&store.pool)
            .await
            .map_err(failed("seed its counters"))?;
        // A restored backup has given fewer fences than the spares have seen.
        sqlx::query("UPDATE meta SET value = $1 WHERE name = 'fence' AND value < $1")
            .bind(now_ms().0)
            .execute(&store.pool)
            .await
            .map_err(failed("raise its fence"))?;
        Ok(store)
    }

    /// Closes the file; what is under way ends first.
    pub async fn close(&self) {
        self.pool.close().await;
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

    async fn begin(&self) -> Result<Tx, StoreError> {
        self.pool
            .begin_with(self.begin)
            .await
            .map_err(failed("begin a transaction"))
    }

    /// Commits and tells who waits.
    async fn commit(&self, tx: Tx, news: News) -> Result<(), StoreError> {
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
    /// Long polls and the engine.
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

/// Appends to the audit trail.
async fn audit(
    tx: &mut Tx,
    actor: &str,
    object: &str,
    what: &str,
    detail: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO event (id, at_ms, actor, object, what, detail) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(uuid::Uuid::now_v7().to_string())
    .bind(now_ms().0)
    .bind(actor)
    .bind(object)
    .bind(what)
    .bind(detail)
    .execute(&mut **tx)
    .await
    .map_err(failed("write to the audit trail"))?;
    Ok(())
}

/// Wall time, for records only.
fn now_ms() -> WallMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn sqlite_url(path: &Path) -> String {
    use std::{fmt::Write, os::unix::ffi::OsStrExt};
    let mut url = "sqlite://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(byte) {
            url.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(url, "%{byte:02X}");
        }
    }
    url.push_str("?mode=rwc");
    url
}

/// Reads the file's first page.
async fn probe(url: &str) -> Result<(), sqlx::Error> {
    let mut connection = AnyConnection::connect(url).await?;
    sqlx::query(BUSY).execute(&mut connection).await?;
    sqlx::query("SELECT count(*) FROM sqlite_master")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await
}

fn open_error(path: &Path, source: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    // SQLITE_NOTADB
    let code = source.as_database_error().and_then(|e| e.code());
    if code.as_deref() == Some("26") {
        StoreError::NotADatabase { path, source }
    } else {
        StoreError::Open { path, source }
    }
}

fn migrate_error(path: &Path, source: MigrateError) -> StoreError {
    match source {
        MigrateError::VersionMissing(migration) => StoreError::Newer {
            path: path.to_owned(),
            migration,
        },
        MigrateError::Execute(source) => open_error(path, source),
        other => StoreError::Migrate {
            path: path.to_owned(),
            source: Box::new(other),
        },
    }
}

#[cfg(test)]
mod tests;
