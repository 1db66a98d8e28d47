//! `understudy inventory`.

mod enrol;
mod pool;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::Method;

use super::{Failure, block_on, say, table};
use crate::{
    api::client::{self, Client, NOTHING},
    model::inventory::{ChangeAction, Inventory, InventoryAnswer, ServerView},
    provisioner::folder,
};

pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Socket {
    /// The provisioner's socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = super::PROVISIONER_SOCKET
    )]
    socket: PathBuf,
}

impl Socket {
    pub(super) fn client(&self) -> Client {
        Client::unix(self.socket.clone())
    }
}

pub(super) fn unanswered(e: client::Error) -> Failure {
    Failure::unanswered("provisioner", &e)
}

/// What to do with the inventory.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Makes the tables those of a folder, except for what a replacement gave
    Apply {
        /// Folder with roles.toml, software.toml, service_config.toml, servers.toml
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Shows the servers: state, role, operating system, and why
    List {
        #[command(flatten)]
        socket: Socket,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Writes a server into a folder's servers.toml, with the host key that it shows
    Add(enrol::Add),
    /// Says which spare would be chosen for a role, and why not the others
    Explain(pool::Explain),
    /// Has a server cleaned as its role says, and put back into the pool
    Clean {
        /// Its name
        #[arg(value_name = "SERVER")]
        server: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Puts a spare aside
    Quarantine(pool::Quarantine),
    /// Keeps a server from being chosen as a spare
    Maintenance(pool::Maintenance),
    /// Puts a server that is quarantined, failed or kept warm back into the pool of spares
    Release {
        /// Its name
        #[arg(value_name = "SERVER")]
        server: String,
        #[command(flatten)]
        socket: Socket,
    },
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::Apply {
            folder,
            dry_run,
            socket,
        } => apply(folder, *dry_run, socket),
        Verb::List { socket, json } => list(socket, *json),
        Verb::Add(a) => enrol::add(a),
        Verb::Explain(a) => pool::explain(a),
        Verb::Clean { server, socket } => {
            post(socket, server, "clean")?;
            say(&format!("{server} is going to be cleaned\n"))
        }
        Verb::Quarantine(a) => pool::quarantine(a),
        Verb::Maintenance(a) => pool::maintenance(a),
        Verb::Release { server, socket } => release(server, socket),
    }
}

fn apply(folder: &Path, dry_run: bool, socket: &Socket) -> Result<(), Failure> {
    let inventory = load(folder)?;
    let client = socket.client();
    let path = if dry_run {
        "/v1/inventory?dry_run=true"
    } else {
        "/v1/inventory"
    };
    let ask = client.ask(Method::PUT, path, None, Some(&inventory), LIMIT);
    let answer: InventoryAnswer = block_on(async {
        ask.await.map_err(|e| match e.problem() {
            Some(p) if p.status == 422 => {
                Failure::Wrong(format!("{}: {}", folder.display(), p.detail))
            }
            Some(_) | None => unanswered(e),
        })
    })?;
    say(&show(&answer, dry_run))
}

/// Reads an inventory folder.
pub(super) fn load(path: &Path) -> Result<Inventory, Failure> {
    if !path.is_dir() {
        let text = format!(
            "{}: is no folder: an inventory is a folder with {}",
            path.display(),
            folder::FILES.join(", ")
        );
        return Err(Failure::Wrong(text));
    }
    folder::load(path).map_err(|e| Failure::Wrong(e.to_string()))
}

fn show(answer: &InventoryAnswer, dry_run: bool) -> String {
    let word = |action| match action {
        ChangeAction::Add => "add",
        ChangeAction::Change => "change",
        ChangeAction::Remove => "remove",
        ChangeAction::Held => "held",
    };
    let rows: Vec<_> = answer
        .changes
        .iter()
        .map(|c| {
            vec![
                word(c.action).to_owned(),
                c.object.clone(),
                c.detail.clone(),
            ]
        })
        .collect();
    let changes = answer
        .changes
        .iter()
        .filter(|c| c.action != ChangeAction::Held)
        .count();
    let end = match (changes, dry_run) {
        (0, _) => "nothing to change".to_owned(),
        (n, true) => format!("{n} to change, nothing was done (dry run)"),
        (n, false) => format!("{n} changed"),
    };
    format!("{}{end}\n", table(&rows))
}

fn list(socket: &Socket, json: bool) -> Result<(), Failure> {
    let client = socket.client();
    let ask = client.ask(Method::GET, "/v1/inventory/servers", None, NOTHING, LIMIT);
    let servers: Vec<ServerView> = block_on(async { ask.await.map_err(unanswered) })?;
    if json {
        return say(&super::json(&servers)?);
    }
    let head = ["SERVER", "STATE", "ROLE", "OS", "ADDRESSES", "REASON"]
        .map(str::to_owned)
        .to_vec();
    let row = |v: &ServerView| {
        let or_dash = |t: &Option<String>| t.clone().unwrap_or_else(|| "-".to_owned());
        let addresses: Vec<_> = v.server.addresses.iter().map(ToString::to_string).collect();
        let by = v
            .by_replacement
            .as_ref()
            .map(|r| format!("by replacement {r}"));
        let reason = v.reason.clone().or(by).unwrap_or_default();
        vec![
            v.server.name.clone(),
            v.state.as_str().to_owned(),
            or_dash(&v.role),
            or_dash(&v.os_seen),
            addresses.join(","),
            reason,
        ]
    };
    let rows: Vec<_> = std::iter::once(head)
        .chain(servers.iter().map(row))
        .collect();
    say(&table(&rows))
}

/// Has something done to a server.
fn post(socket: &Socket, server: &str, verb: &str) -> Result<(), Failure> {
    let client = socket.client();
    let path = format!("/v1/servers/{server}/{verb}");
    let ask = client.ask::<serde_json::Value>(Method::POST, &path, None, NOTHING, LIMIT);
    block_on(async { ask.await.map_err(unanswered) }).map(drop)
}

fn release(server: &str, socket: &Socket) -> Result<(), Failure> {
    post(socket, server, "release")?;
    say(&format!("{server} is a spare again\n"))
}
