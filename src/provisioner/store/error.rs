//! What can go wrong with the store, and whether waiting helps.

use std::{io, path::PathBuf};

use sqlx::migrate::MigrateError;

use crate::{model::ReplacementId, provisioner::workflow::Illegal};

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
    /// It is there and cannot be opened.
    #[error("the store {at} cannot be opened")]
    Open {
        /// Where it is, without a password.
        at: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The server knows nobody of this name and password.
    #[error(
        "the store {at} refuses this user: look at the name in `store`, at store_password, and at the server's pg_hba.conf"
    )]
    Refused {
        /// Where it is, without a password.
        at: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The server shows another certificate than it should.
    #[error(
        "the store {at} cannot be trusted: look at sslrootcert and at the host's name in `store`, and at the server's certificate"
    )]
    Distrusted {
        /// Where it is, without a password.
        at: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A certificate or key that the place names cannot be read.
    #[error("the store {at} cannot be opened: {file}, which it names, cannot be read")]
    File {
        /// Where it is, without a password.
        at: String,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("the store {at} is no database of understudy: move it away, or restore a backup")]
    NotADatabase {
        /// The file.
        at: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A newer understudy has written it.
    #[error(
        "the store {at} was written by a newer understudy (its migration {migration} is unknown here): run that version, or restore a backup from before the update"
    )]
    Newer {
        /// Where it is.
        at: String,
        /// The migration that this version does not know.
        migration: i64,
    },
    /// Its tables could not be brought up to date.
    #[error("the store {at} could not be brought to this version's tables")]
    Migrate {
        /// Where it is.
        at: String,
        /// Why.
        #[source]
        source: Box<MigrateError>,
    },
    /// The place of a store is none.
    #[error("{at:?} is no place of a store: write postgres://USER@HOST/DATABASE or a file's path")]
    Place {
        /// What was written, without a password.
        at: String,
    },
    /// It does not answer now and may again later: a server that restarts, a lost connection, a full disk, a lock that
    /// somebody else holds for too long.
    #[error("the store is away: it could not {what}")]
    Away {
        /// What was to be done.
        what: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
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
    /// Another run of the engine works on it now: this one must leave it alone.
    #[error("another run of a provisioner has taken {id} over")]
    LeaseLost {
        /// Which.
        id: ReplacementId,
    },
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
    /// A copy goes into an empty store only.
    #[error("the store {at} is not empty: its table {table} has rows; copy into a new database")]
    NotEmpty {
        /// Where it is.
        at: String,
        /// The first table that has rows.
        table: String,
    },
    /// Only a file is backed up or copied.
    #[error("{at} is a PostgreSQL database: pg_dump backs it up and copies it")]
    NoFile {
        /// Where it is.
        at: String,
    },
}

impl StoreError {
    /// Whether the same may succeed later without anybody having changed anything here.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
}

/// Turns a failed query into an error that says what it was for.
pub(super) fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| {
        if is_away(&source) {
            StoreError::Away { what, source }
        } else {
            StoreError::Query { what, source }
        }
    }
}

/// Whether there is no certificate that is good: waiting does not help.
pub(super) fn is_distrust(e: &sqlx::Error) -> bool {
    match e {
        // It has none, or ours cannot be read.
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(e) => {
            let tls = e.get_ref().and_then(|e| e.downcast_ref());
            matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
        }
        _ => false,
    }
}

/// Whether an error is about the way to the store, or about a state of it that passes.
pub(super) fn is_away(e: &sqlx::Error) -> bool {
    match e {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        // What a server that is cut off in the middle of an answer leaves.
        | sqlx::Error::Protocol(_)
        | sqlx::Error::BeginFailed
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(e) => e.code().is_some_and(|code| passes(&code)),
        _ => false,
    }
}

/// SQLSTATEs of PostgreSQL (five characters) and result codes of SQLite (a number).
fn passes(code: &str) -> bool {
    if code.len() == 5 {
        // Connection lost, out of something (disk, connections), stopped or shutting down; then: serialization,
        // deadlock, no answer within the statement's time, no lock within its time, a transaction that was idle for too
        // long, a server that only reads because another one is the first now.
        return ["08", "53", "57"]
            .iter()
            .any(|class| code.starts_with(class))
            || ["40001", "40P01", "55P03", "25P03", "25006"].contains(&code);
    }
    // The low byte is the primary code: SQLITE_BUSY, SQLITE_LOCKED, SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN.
    code.parse::<i32>()
        .is_ok_and(|code| [5, 6, 10, 13, 14].contains(&(code & 0xff)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for code in [
            "57P01", "57014", "08006", "53300", "53100", "55P03", "40001", "5", "517", "13", "522",
        ] {
            assert!(passes(code), "{code}");
        }
        for code in [
            "23505", "42P01", "22021", "28P01", "1", "19", "26", "2067", "",
        ] {
            assert!(!passes(code), "{code}");
        }
    }
}
