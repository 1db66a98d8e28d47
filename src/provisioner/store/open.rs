//! Opening a store: where it is, what its connections are told, its tables brought up to date.

use std::{
    fmt::{self, Write as _},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use sqlx::{
    AnyConnection, Connection,
    any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers},
    migrate::MigrateError,
};
use tokio::sync::watch;

use super::{
    Store, StoreError,
    error::{is_away, is_distrust},
    failed, now_ms,
    rows::Columns,
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/provisioner/store/migrations");

/// Another process may hold the file's lock for a backup; longer than this is a fault.
const BUSY: &str = "PRAGMA busy_timeout = 10000";

/// A caller that waits longer for the one connection to a file is told so.
const ACQUIRE_FILE: Duration = Duration::from_secs(30);

/// Or for one to a server: one that is away is to be said soon.
const ACQUIRE_SERVER: Duration = Duration::from_secs(5);

/// Writers take turns anyway; readers want a few.
const CONNECTIONS: u32 = 10;

/// A server is said to be away only after it had this long to come back.
const AT_START: Duration = Duration::from_secs(30);

/// What keeps a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A file on this host.
    Sqlite,
    /// A server.
    Postgres,
}

impl Engine {
    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }

    pub(super) const fn begin_writing(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        }
    }

    pub(super) const fn begin_reading(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    /// What each connection is told first.
    const fn session(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &[
                BUSY,
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = FULL",
                "PRAGMA foreign_keys = ON",
            ],
            Self::Postgres => &[
                // A provisioner that is stopped in the middle of a transaction holds up all others no longer.
                "SET idle_in_transaction_session_timeout = '5s'",
                "SET lock_timeout = '15s'",
                "SET statement_timeout = '30s'",
                // A host that is gone without a word.
                "SET tcp_keepalives_idle = 10",
                "SET tcp_keepalives_interval = 5",
                "SET tcp_keepalives_count = 3",
                // What was said to be written is; whoever asks for more of the server gets it.
                "SELECT set_config('synchronous_commit', 'on', false) \
                 WHERE current_setting('synchronous_commit') = 'off'",
            ],
        }
    }

    /// What the connection that changes tables is told besides: all of a fleet that start at once wait for the first, whose
    /// disk may be slow. Less than systemd waits for a start.
    const fn migrating(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &[],
            Self::Postgres => &["SET lock_timeout = '45s'", "SET statement_timeout = '45s'"],
        }
    }

    /// The audit trail is append-only, whoever writes: neither engine knows the other's way to say so.
    const fn guard_trail(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &[
                "CREATE TRIGGER IF NOT EXISTS event_is_not_changed BEFORE UPDATE ON event \
                 BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
                "CREATE TRIGGER IF NOT EXISTS event_is_not_removed BEFORE DELETE ON event \
                 BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
            ],
            Self::Postgres => &[
                "CREATE OR REPLACE FUNCTION event_stays() RETURNS trigger LANGUAGE plpgsql AS $$ \
                 BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$",
                "CREATE TRIGGER event_is_not_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON event \
                 FOR EACH STATEMENT EXECUTE FUNCTION event_stays()",
            ],
        }
    }
}

/// Where a store is.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A SQLite file.
    File(PathBuf),
    /// A PostgreSQL database.
    Server {
        /// `postgres://USER@HOST:PORT/DATABASE?sslmode=…`, without a password.
        url: String,
        /// The password, where one is needed.
        password: Option<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Server { url, .. } => f.write_str(url),
        }
    }
}

/// Never with the password.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

impl Place {
    const fn engine(&self) -> Engine {
        match self {
            Self::File(_) => Engine::Sqlite,
            Self::Server { .. } => Engine::Postgres,
        }
    }

    /// What is connected to.
    fn options(&self) -> Result<AnyConnectOptions, StoreError> {
        let (url, password) = match self {
            Self::File(path) => (sqlite_url(path), None),
            Self::Server { url, password } => (url.clone(), password.as_deref()),
        };
        let wrong = || StoreError::Place {
            at: self.to_string(),
        };
        let mut options = AnyConnectOptions::from_str(&url).map_err(|_unread| wrong())?;
        if let Some(password) = password {
            // What is not encoded here would be decoded there: `%41` is a password too.
            let set = options
                .database_url
                .set_password(Some(&encoded(password, b"")));
            set.map_err(|()| wrong())?;
        }
        Ok(options)
    }
}

impl Store {
    /// Opens the SQLite file at `path`, makes it where there is none, brings its tables up to date.
    ///
    /// # Errors
    /// [`StoreError`] says what is wrong with the file.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_at(&Place::File(path.to_owned())).await
    }

    /// Opens the store at `place` and brings its tables up to date; several at once may.
    ///
    /// # Errors
    /// [`StoreError`] says what is wrong with it.
    pub async fn open_at(place: &Place) -> Result<Self, StoreError> {
        let store = Self::connect(place).await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Connects, and leaves the tables as they are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connect(place: &Place) -> Result<Self, StoreError> {
        install_default_drivers();
        let engine = place.engine();
        let options = place.options()?;
        if let Place::File(path) = place {
            // Scripts and host keys are nobody else's business, whatever the umask.
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(|source| StoreError::Create {
                    path: path.clone(),
                    source,
                })?;
        }
        // The pool would try a wrong place again and again, and then say "timed out".
        let at = place.to_string();
        if engine == Engine::Postgres {
            readable(&at, &options)?;
        }
        probe(engine, &options)
            .await
            .map_err(|e| open_error(&at, e))?;
        let (connections, acquire) = match engine {
            Engine::Sqlite => (1, ACQUIRE_FILE),
            Engine::Postgres => (CONNECTIONS, ACQUIRE_SERVER),
        };
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(acquire)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection: &mut AnyConnection, _| {
                Box::pin(async move {
                    for setting in engine.session() {
                        sqlx::query(*setting).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(|e| open_error(&at, e))?;
        Ok(Self {
            pool,
            engine,
            at,
            changed: watch::Sender::new(0),
            work: watch::Sender::new(0),
        })
    }

    /// Brings the tables to what this version needs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.migrate_tables()
            .await
            .map_err(|e| migrate_error(&self.at, e))?;
        let mut tx = self.begin().await?;
        let now = now_ms().0;
        sqlx::query(
            "INSERT INTO meta (name, value) VALUES ('fence', $1), ('born', $1), ('work', $2) \
             ON CONFLICT DO NOTHING",
        )
        .bind(now)
        .bind(0_i64)
        .execute(&mut *tx)
        .await
        .map_err(failed("seed its counters"))?;
        // A restored backup has given fewer fences than the spares have seen.
        sqlx::query("UPDATE meta SET value = $1 WHERE name = 'fence' AND value < $1")
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed("raise its fence"))?;
        if !guarded(self.engine, &mut tx).await? {
            for statement in self.engine.guard_trail() {
                sqlx::query(*statement)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed("guard its audit trail"))?;
            }
        }
        tx.commit().await.map_err(failed("commit its counters"))
    }

    /// On a connection that waits longer than others do, and is not used again.
    async fn migrate_tables(&self) -> Result<(), MigrateError> {
        let mut connection = self.pool.acquire().await?;
        for setting in self.engine.migrating() {
            sqlx::query(*setting).execute(&mut *connection).await?;
        }
        // `run` takes any source of connections, and its future is then `Send` for nobody.
        MIGRATIONS.run_direct(None, &mut *connection, false).await?;
        if self.engine == Engine::Postgres {
            connection.close().await?;
        }
        Ok(())
    }

    /// Migrations that this version has, and those of them that the store has.
    pub(super) async fn migrations(&self) -> Result<(usize, usize), StoreError> {
        let known: Vec<i64> = MIGRATIONS.iter().map(|m| m.version).collect();
        let table = match self.engine {
            Engine::Sqlite => {
                "SELECT count(*) AS n FROM sqlite_master WHERE name = '_sqlx_migrations'"
            }
            Engine::Postgres => {
                "SELECT count(*) AS n FROM pg_tables WHERE tablename = '_sqlx_migrations' \
                 AND schemaname = current_schema()"
            }
        };
        let there = sqlx::query(table).fetch_one(&self.pool).await;
        if there.map_err(failed("look for its tables"))?.count("n")? == 0 {
            return Ok((known.len(), 0));
        }
        let rows = sqlx::query("SELECT version FROM _sqlx_migrations ORDER BY version")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read its migrations"))?;
        let mut applied = 0;
        for row in rows {
            let migration = row.number("version")?;
            if !known.contains(&migration) {
                let at = self.at.clone();
                return Err(StoreError::Newer { at, migration });
            }
            applied += 1;
        }
        Ok((known.len(), applied))
    }
}

/// Whether the trail's triggers are there: to make them needs a lock that waits for every reader.
async fn guarded(engine: Engine, tx: &mut super::Tx) -> Result<bool, StoreError> {
    let query = match engine {
        Engine::Sqlite => return Ok(false),
        Engine::Postgres => {
            "SELECT count(*) AS n FROM pg_trigger WHERE tgname = 'event_is_not_changed' \
             AND tgrelid = 'event'::regclass"
        }
    };
    let row = sqlx::query(query).fetch_one(&mut **tx).await;
    Ok(row.map_err(failed("look for its triggers"))?.count("n")? > 0)
}

/// Whether the files that a server's URL names are there: they are no server that may come back.
fn readable(at: &str, options: &AnyConnectOptions) -> Result<(), StoreError> {
    for (name, file) in options.database_url.query_pairs() {
        if ["sslrootcert", "sslcert", "sslkey"].contains(&&*name) {
            std::fs::File::open(&*file).map_err(|source| StoreError::File {
                at: at.to_owned(),
                file: file.into_owned(),
                source,
            })?;
        }
    }
    Ok(())
}

/// Connects once, and reads the file's first page.
async fn probe(engine: Engine, options: &AnyConnectOptions) -> Result<(), sqlx::Error> {
    use sqlx::ConnectOptions as _;
    let until = tokio::time::Instant::now() + AT_START;
    let mut connection = loop {
        match options.connect().await {
            // A server of the same host that starts with us.
            Err(e)
                if engine == Engine::Postgres
                    && is_away(&e)
                    && !is_distrust(&e)
                    && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            other => break other?,
        }
    };
    if engine == Engine::Sqlite {
        sqlx::query(BUSY).execute(&mut connection).await?;
        sqlx::query("SELECT count(*) FROM sqlite_master")
            .fetch_one(&mut connection)
            .await?;
    }
    connection.close().await
}

fn open_error(at: &str, source: sqlx::Error) -> StoreError {
    let at = at.to_owned();
    let code = source.as_database_error().and_then(|e| e.code());
    match code.as_deref() {
        // SQLITE_NOTADB
        Some("26") => StoreError::NotADatabase { at, source },
        // invalid_authorization_specification and invalid_password, of PostgreSQL
        Some("28000" | "28P01") => StoreError::Refused { at, source },
        _ if is_distrust(&source) => StoreError::Distrusted { at, source },
        _ => StoreError::Open { at, source },
    }
}

fn migrate_error(at: &str, source: MigrateError) -> StoreError {
    match source {
        MigrateError::VersionMissing(migration) => StoreError::Newer {
            at: at.to_owned(),
            migration,
        },
        MigrateError::Execute(source) => open_error(at, source),
        other => StoreError::Migrate {
            at: at.to_owned(),
            source: Box::new(other),
        },
    }
}

fn sqlite_url(path: &Path) -> String {
    let path = encoded(path.as_os_str().as_bytes(), b"/-_.~");
    format!("sqlite://{path}?mode=rwc")
}

/// Percent-encoded but for letters, digits and `plain`.
fn encoded(bytes: impl AsRef<[u8]>, plain: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.as_ref() {
        if byte.is_ascii_alphanumeric() || plain.contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Instant};

    use sqlx::Row as _;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        provisioner::testing::{Postgres, inventory},
        telemetry::Chain,
        tls::pki::{Authority, Leaf, Side},
    };

    #[tokio::test]
    async fn a_file_that_cannot_be_made_or_is_something_else_is_named() {
        let dir = TempDir::new().unwrap();
        let e = Store::open(&dir.path().join("no/such/store")).await;
        assert!(matches!(e, Err(StoreError::Create { .. })), "{e:?}");

        let garbage = dir.path().join("garbage");
        std::fs::write(&garbage, vec![b'x'; 8192]).unwrap();
        let e = Store::open(&garbage).await;
        assert!(matches!(e, Err(StoreError::NotADatabase { .. })), "{e:?}");
    }

    #[tokio::test]
    async fn the_file_is_private_and_its_path_may_have_blanks() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a ?b#%20.db");
        let store = Store::open(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        store.apply(&inventory(), false, "test").await.unwrap();
        store.close().await;
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.servers().await.unwrap().len(), 5);
        for (pragma, want) in [
            ("PRAGMA synchronous", 2_i64),
            ("PRAGMA foreign_keys", 1),
            ("PRAGMA busy_timeout", 10_000),
        ] {
            let row = sqlx::query(pragma).fetch_one(&store.pool).await.unwrap();
            assert_eq!(row.try_get::<i64, _>(0).unwrap(), want, "{pragma}");
        }
    }

    #[test]
    fn a_password_is_never_shown_and_always_understood() {
        let password = "a%41/@:é#? b";
        let place = Place::Server {
            url: "postgres://me@db.example:5433/understudy?sslmode=verify-full".into(),
            password: Some(password.into()),
        };
        assert!(!format!("{place:?} {place}").contains("41"));
        let url = place.options().unwrap().database_url;
        let shown = url.password().unwrap();
        assert_eq!(shown, "a%2541%2F%40%3A%C3%A9%23%3F%20b");
        let nowhere = Place::Server {
            url: "postgres://".into(),
            password: Some("secret".into()),
        };
        let e = nowhere.options().unwrap_err().to_string();
        assert!(!e.contains("secret"), "{e}");
    }

    /// A server on another host, as operators have it: TLS, and a password.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_far_away_shows_its_certificate_and_asks_for_a_password() {
        let authority = Authority::new("databases");
        // Nobody else's.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 99, high, low);
        let port = 20_000 + u16::from(low);
        let names = [address.to_string()];
        let leaf = Leaf {
            names: &[&names[0]],
            ..Leaf::GOOD
        };
        let side = Side::new(&authority, &leaf, &authority);
        let stranger = Side::new(&authority, &leaf, &Authority::new("others"));
        let read = |name| std::fs::read_to_string(side.path(name)).unwrap();
        let password = "a%41/@:é#? 'b";
        let mut server = tokio::task::spawn_blocking(Postgres::new).await.unwrap();
        let database = server.database().await.options().unwrap();
        let database = database.database_url.path();
        server
            .listen(
                (address, port),
                &read("cert.pem"),
                &read("key.pem"),
                password,
            )
            .await;
        let place = |settings: String, password: &str| Place::Server {
            url: format!("postgres://understudy@{address}:{port}{database}?{settings}"),
            password: Some(password.to_owned()),
        };
        let verified = |side: &Side| {
            let ca = side.path("ca.pem").display().to_string();
            format!("sslmode=verify-full&sslrootcert={ca}")
        };
        let store = Store::open_at(&place(verified(&side), password))
            .await
            .unwrap();
        store.apply(&inventory(), false, "test").await.unwrap();
        let row = sqlx::query(
            "SELECT count(*) AS n FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl",
        )
        .fetch_one(&store.pool)
        .await
        .unwrap();
        assert_eq!(row.count("n").unwrap(), 1);
        store.close().await;
        for (place, remedy, why) in [
            (
                place(verified(&side), "guessed"),
                "store_password",
                "authentication failed",
            ),
            (
                place("sslmode=disable".into(), password),
                "pg_hba.conf",
                "no encryption",
            ),
            (
                place(verified(&stranger), password),
                "sslrootcert",
                "UnknownIssuer",
            ),
            (
                place(
                    "sslmode=verify-full&sslrootcert=/nowhere.pem".into(),
                    password,
                ),
                "/nowhere.pem, which it names,",
                "No such file",
            ),
        ] {
            let begun = Instant::now();
            let e = Store::open_at(&place).await.unwrap_err();
            let e = Chain(&e).to_string();
            assert!(
                [remedy, why, &names[0]].iter().all(|word| e.contains(word)),
                "{e}"
            );
            // It is not waited for as one that starts.
            assert!(begun.elapsed() < AT_START / 2, "{e}");
        }
    }
}
