//! Where the stores of tests live: a SQLite file of each test's own, or a database of its own on a real PostgreSQL that
//! this process starts from Debian's package.

use std::{
    fs::Permissions,
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::unistd::Uid;
use sqlx::{AssertSqlSafe, Connection as _, any::install_default_drivers};
use tempfile::TempDir;

use crate::provisioner::store::{Engine, Place, Store};

/// A server until it is dropped, or until this process ends in whatever way: then the shell that keeps it reads no more,
/// stops it by its process id, and removes its folder.
const KEEPER: &str = r#"
bin=$1
dir=$(mktemp -d /tmp/understudy-pg-XXXXXX)
stop() { "$bin/pg_ctl" -D "$dir/data" -m "$1" -w stop >/dev/null; }
start() {
    "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 120 -o "-k $dir -c fsync=off \
        -c max_connections=400 -c shared_buffers=32MB" start >/dev/null
}
trap 'stop immediate 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
"$bin/initdb" --no-sync -A trust -U understudy -E UTF8 --locale=C -D "$dir/data" >"$dir/log" 2>&1 || cat "$dir/log"
echo "listen_addresses = ''" >>"$dir/data/postgresql.conf"
start || cat "$dir/log"
echo "$dir"
while read -r verb mode; do
    "$verb" $mode || cat "$dir/log"
    echo done
done
"#;

#[derive(Debug)]
pub(crate) struct Postgres {
    dir: PathBuf,
    keeper: Child,
    verbs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Postgres {
    pub(crate) fn new() -> Self {
        let mut all: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
            .map(|folder| {
                folder
                    .map(|entry| entry.unwrap().path().join("bin"))
                    .collect()
            })
            .unwrap_or_default();
        all.retain(|bin| bin.join("initdb").exists());
        all.sort();
        let bin = all
            .pop()
            .expect("these tests need a real PostgreSQL: apt-get install postgresql (15 or later)");
        let mut command = if Uid::effective().is_root() {
            // It does not run as root.
            let mut command = Command::new("setpriv");
            command.args([
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                "sh",
            ]);
            command
        } else {
            Command::new("sh")
        };
        let mut keeper = command
            .args(["-c", KEEPER, "keeper"])
            .arg(bin)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and sh run");
        let verbs = keeper.stdin.take();
        let mut answers = BufReader::new(keeper.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let dir = PathBuf::from(line.trim());
        assert!(dir.starts_with("/tmp"), "PostgreSQL does not start: {line}");
        Self {
            dir,
            keeper,
            verbs,
            answers,
        }
    }

    fn order(&mut self, verb: &str) {
        writeln!(self.verbs.as_mut().unwrap(), "{verb}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }

    pub(crate) fn start(&mut self) {
        self.order("start");
    }

    /// `fast` ends every session in order, `immediate` is a crash.
    pub(crate) fn stop(&mut self, mode: &str) {
        self.order(&format!("stop {mode}"));
    }

    fn url(&self, database: &str) -> String {
        let dir = self.dir.display();
        format!("postgres://understudy@localhost/{database}?host={dir}&sslmode=disable")
    }

    /// Listens at `address` from now on, by TLS alone, to those who know the password.
    pub(crate) async fn listen(
        &mut self,
        (address, port): (Ipv4Addr, u16),
        certificate: &str,
        key: &str,
        password: &str,
    ) {
        let data = self.dir.join("data");
        let own = std::fs::metadata(&data).unwrap();
        let write = |name: &str, text: &str| {
            let file = data.join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&file, Some(own.uid()), Some(own.gid())).unwrap();
        };
        write("server.crt", certificate);
        write("server.key", key);
        let admitted = "local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n";
        write("pg_hba.conf", admitted);
        let password = password.replace('\'', "''");
        for statement in [
            format!("ALTER SYSTEM SET listen_addresses = '{address}'"),
            format!("ALTER SYSTEM SET port = {port}"),
            "ALTER SYSTEM SET ssl = 'on'".to_owned(),
            format!("ALTER ROLE understudy PASSWORD '{password}'"),
        ] {
            self.execute(statement).await;
        }
        tokio::task::block_in_place(|| {
            self.stop("fast");
            self.start();
        });
    }

    async fn execute(&self, statement: String) {
        install_default_drivers();
        let url = self.url("postgres");
        let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .unwrap();
    }

    /// A new database.
    pub(crate) async fn database(&self) -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.execute(format!("CREATE DATABASE {name}")).await;
        Place::Server {
            url: self.url(&name),
            password: None,
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.verbs.take());
        self.keeper.wait().unwrap();
    }
}

/// The server of all tests of this process that do not stop it.
fn shared() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::new)
}

/// One store's place, which outlives the store.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) place: Place,
    _dir: Option<TempDir>,
}

impl Home {
    pub(crate) async fn new(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => {
                let dir = TempDir::new().unwrap();
                Self {
                    place: Place::File(dir.path().join("store.db")),
                    _dir: Some(dir),
                }
            }
            Engine::Postgres => {
                let server = tokio::task::spawn_blocking(shared).await.unwrap();
                Self {
                    place: server.database().await,
                    _dir: None,
                }
            }
        }
    }

    /// For a test module: the one whose name says so runs on PostgreSQL.
    pub(crate) async fn of(module: &str) -> Self {
        let engine = if module.contains("on_postgres") {
            Engine::Postgres
        } else {
            Engine::Sqlite
        };
        Self::new(engine).await
    }

    pub(crate) async fn open(&self) -> Store {
        Store::open_at(&self.place).await.unwrap()
    }
}
