//! `understudy store`: the provisioner's store as a whole, without a provisioner.

use std::path::{Path, PathBuf};

use super::{Failure, Output, block_on, read, say};
use crate::{
    agent::provisioner::{Passwords, place},
    config,
    provisioner::store::{Place, Store, StoreStatus},
};

/// Which store.
#[derive(Debug, clap::Args)]
pub(super) struct Of {
    /// The provisioner's configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/understudy/provisioner.toml"
    )]
    config: PathBuf,
}

impl Of {
    fn place(&self) -> Result<Place, Failure> {
        let config = config::provisioner::parse(&self.config, &read(&self.config)?)?;
        place(&config).map_err(|e| Failure::failed(&e))
    }
}

/// What to do with it.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Shows where it is, whether its tables are this version's, what is in it, who works on what
    Status {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        output: Output,
    },
    /// Brings its tables to this version's; a provisioner does so too when it starts
    Migrate {
        #[command(flatten)]
        of: Of,
    },
    /// Writes a SQLite store into a new file, as it is at one moment, beside a running provisioner
    Backup {
        /// A file that is not there yet
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        of: Of,
    },
    /// Copies a SQLite store into an empty PostgreSQL database; stop the provisioner first
    Copy {
        /// The SQLite file
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// postgres://USER@HOST/DATABASE, without a password
        #[arg(long, value_name = "URL")]
        to: String,
        /// File with the password; otherwise that of PGPASSWORD or ~/.pgpass
        #[arg(long, value_name = "FILE")]
        password: Option<PathBuf>,
    },
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::Status { of, output } => status(&of.place()?, output),
        Verb::Migrate { of } => migrate(&of.place()?),
        Verb::Backup { file, of } => backup(&of.place()?, file),
        Verb::Copy { from, to, password } => copy(from, to, password.as_deref()),
    }
}

/// A file that is not there is not made by looking at it.
fn there(place: &Place) -> Result<(), Failure> {
    match place {
        Place::File(path) if !path.exists() => Err(Failure::Failed(format!(
            "there is no store {}: a provisioner that starts makes it",
            path.display()
        ))),
        Place::File(_) | Place::Server { .. } => Ok(()),
    }
}

fn status(place: &Place, output: &Output) -> Result<(), Failure> {
    there(place)?;
    let status = block_on(async {
        let store = Store::connect(place)
            .await
            .map_err(|e| Failure::failed(&e))?;
        store.status().await.map_err(|e| Failure::failed(&e))
    })?;
    if output.json() {
        let text = serde_json::to_string(&status).map_err(|e| Failure::failed(&e))?;
        return say(&format!("{text}\n"));
    }
    say(&show(&status))
}

fn show(s: &StoreStatus) -> String {
    let mut text = format!("{} ({})\n", s.at, s.engine);
    if s.migrated < s.migrations {
        text.push_str(&format!(
            "tables: {} of {} migrations: understudy store migrate\n",
            s.migrated, s.migrations
        ));
        return text;
    }
    let counts = |what: &str, by: &mut dyn Iterator<Item = (&str, u64)>| {
        let by: Vec<_> = by
            .filter(|(_, n)| *n > 0)
            .map(|(state, n)| format!("{n} {state}"))
            .collect();
        let by = if by.is_empty() {
            "none".to_owned()
        } else {
            by.join(", ")
        };
        format!("{what}: {by}\n")
    };
    text.push_str(&format!("tables: up to date ({} migrations)\n", s.migrated));
    text.push_str(&counts(
        "servers",
        &mut s.servers.iter().map(|(s, n)| (*s, *n)),
    ));
    text.push_str(&counts(
        "replacements",
        &mut s.replacements.iter().map(|(s, n)| (*s, *n)),
    ));
    text.push_str(&counts(
        "in hand",
        &mut s.leases.iter().map(|(s, n)| (s.as_str(), *n)),
    ));
    text.push_str(&format!("audit trail: {} entries\n", s.events));
    text
}

fn migrate(place: &Place) -> Result<(), Failure> {
    there(place)?;
    block_on(async { Store::open_at(place).await.map_err(|e| Failure::failed(&e)) })?;
    say(&format!("{place}: up to date\n"))
}

fn backup(place: &Place, file: &Path) -> Result<(), Failure> {
    there(place)?;
    block_on(async {
        let store = Store::connect(place)
            .await
            .map_err(|e| Failure::failed(&e))?;
        store.backup(file).await.map_err(|e| Failure::failed(&e))
    })?;
    say(&format!("{place} is in {}\n", file.display()))
}

fn copy(from: &Path, to: &str, password: Option<&Path>) -> Result<(), Failure> {
    let from = Place::File(from.to_owned());
    there(&from)?;
    config::provisioner::server_url(to).map_err(|e| Failure::Wrong(format!("--to: {e}")))?;
    let to = Place::Server {
        url: to.to_owned(),
        password: Passwords::Named(password)
            .read()
            .map_err(|e| Failure::failed(&e))?,
    };
    let rows = block_on(async {
        let from = Store::open_at(&from)
            .await
            .map_err(|e| Failure::failed(&e))?;
        let to = Store::open_at(&to).await.map_err(|e| Failure::failed(&e))?;
        from.copy_to(&to).await.map_err(|e| Failure::failed(&e))
    })?;
    say(&format!(
        "{rows} rows copied into {to}: name it in provisioner.toml (store = …), and put the file away\n"
    ))
}
