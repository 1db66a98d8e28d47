//! The command line: one file a subcommand. Exit codes: 0 done, 1 it failed, 2 the command line or
//! a configuration is wrong, 3 not all is well (`status --check`).

mod check;
mod check_config;
mod documents;
mod events;
mod explain;
mod inventory;
mod ipvs;
mod live;
mod members;
mod order;
mod reload;
mod replacement;
mod role;
mod run;
mod screen;
mod status;
mod store;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use hyper::Method;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    agent,
    api::client,
    config::{self, Diagnostics},
    telemetry::{Chain, LogFormat},
};

/// Takes failed real servers out of IPVS, and puts freshly configured spares in their places.
#[derive(Debug, Parser)]
#[command(name = "understudy", version = VERSION, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("UNDERSTUDY_COMMIT"),
    ")"
);

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks real servers, edits IPVS, asks for spares; ends as on_stop says
    Director(run::DirectorArguments),
    /// Configures spares over SSH when a director asks
    Provisioner(run::Arguments),
    /// Says what is wrong in configuration files and inventory folders, and where
    CheckConfig(check_config::Arguments),
    /// Makes a real server's checks once, and explains each stage of them
    Check(check::Arguments),
    /// Shows a running director: services, servers, failures, stand-ins, and what is wrong
    Status(status::Arguments),
    /// Shows what happened to services, servers and replacements, and follows what happens
    Events(events::Arguments),
    /// Says why a server is in service or not: its checks, what decides, its replacement
    Explain(explain::Arguments),
    /// Reads the director's configuration again; a wrong one changes nothing
    Reload(reload::Reload),
    /// Says what a reload would do to IPVS, with the connections that it touches
    Plan(reload::Plan),
    /// Takes servers out at once, with their connections, until they are enabled again
    Disable(order::Out),
    /// Gives servers no new connections; they leave when those that they have are gone
    Drain(order::Drain),
    /// As drain, and does not ask servers that are out how they are
    Maintenance(order::Drain),
    /// Takes back what was ordered of servers
    Enable(order::Servers),
    /// Gives servers another weight until they are enabled again
    Weight(order::OfWeight),
    /// Servers from the pool that stand in for configured ones
    #[command(subcommand)]
    Members(members::Verb),
    /// The provisioner's tables: servers, roles, software, scripts, service configuration
    #[command(subcommand)]
    Inventory(inventory::Verb),
    /// Replacements: what they do and print; one is tried again, or ended
    #[command(subcommand)]
    Replacement(replacement::Verb),
    /// Roles: what one does to a server, how a server differs; one set going again
    #[command(subcommand)]
    Role(role::Verb),
    /// The provisioner's store: shows it, migrates it, backs it up, copies it
    #[command(subcommand)]
    Store(store::Verb),
    /// The kernel's IPVS table by hand: shows it, saves it, restores it, changes it
    #[command(subcommand)]
    Ipvs(ipvs::Verb),
    /// Prints what makes a shell complete this command line
    Completions(documents::Completions),
    /// Writes the man pages
    Man(documents::Man),
}

const DIRECTOR_SOCKET: &str = "/run/understudy/director.sock";
const PROVISIONER_SOCKET: &str = "/run/understudy/provisioner.sock";

/// Which director is asked.
#[derive(Debug, clap::Args)]
struct DirectorSocket {
    /// The director's socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = DIRECTOR_SOCKET
    )]
    socket: PathBuf,
}

impl DirectorSocket {
    /// The provisioner, where the same option names its socket.
    fn provisioner(&self) -> client::Client {
        let named = self.socket != Path::new(DIRECTOR_SOCKET);
        let socket = if named {
            &self.socket
        } else {
            Path::new(PROVISIONER_SOCKET)
        };
        client::Client::unix(socket.to_owned())
    }

    fn client(&self) -> client::Client {
        client::Client::unix(self.socket.clone())
    }

    /// Asks the director, and waits for its answer so long.
    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<T, Failure> {
        let client = self.client();
        let ask = client.ask(method, path, None, body, limit);
        block_on(async {
            ask.await.map_err(|e| match e.problem() {
                // A configuration that is wrong.
                Some(p) if p.status == 422 => Failure::Wrong(p.detail.clone()),
                Some(_) | None => Failure::unanswered("director", &e),
            })
        })
    }
}

/// In which form.
#[derive(Debug, clap::Args)]
struct Output {
    /// For people, or for programs
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    output: Format,
    /// As --output json
    #[arg(long, hide = true)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Output {
    fn json(&self) -> bool {
        self.json || self.output == Format::Json
    }
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The command line or a configuration is wrong: exit status 2.
    Wrong(String),
    /// It could not be done: exit status 1.
    Failed(String),
    /// What was shown is not as it should be: exit status 3.
    NotWell,
}

impl Failure {
    fn failed(e: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed(Chain(e).to_string())
    }

    /// What keeps `role`'s socket from answering, and what to do about it.
    fn unanswered(role: &str, e: &client::Error) -> Self {
        let client::Error::Unreachable { at, source } = e else {
            return Self::failed(e);
        };
        let start = format!(
            "start it (systemctl start understudy-{role}), or name its socket with --socket"
        );
        Self::Failed(match source.kind() {
            io::ErrorKind::NotFound => {
                format!("no {role} at {at}: there is no such socket; {start}")
            }
            io::ErrorKind::ConnectionRefused => {
                format!("no {role} at {at}: nobody listens on the socket; {start}")
            }
            io::ErrorKind::PermissionDenied => format!(
                "no access to the {role} at {at}: be root or a member of the group understudy{}",
                match role {
                    "director" => ", or of one that [operators] of its configuration names",
                    _ => "",
                }
            ),
            _ => format!("no {role} at {at}: {source}"),
        })
    }
}

impl From<Diagnostics> for Failure {
    fn from(d: Diagnostics) -> Self {
        Self::Wrong(d.to_string())
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Director(a) => run::director(&a),
        Command::Provisioner(a) => run::provisioner(&a),
        Command::CheckConfig(a) => check_config::run(&a),
        Command::Check(a) => check::run(&a),
        Command::Status(a) => status::run(&a),
        Command::Events(a) => events::run(&a),
        Command::Explain(a) => explain::run(&a),
        Command::Reload(a) => reload::reload(&a),
        Command::Plan(a) => reload::plan(&a),
        Command::Disable(a) => order::disable(&a),
        Command::Drain(a) => order::drain(&a),
        Command::Maintenance(a) => order::maintenance(&a),
        Command::Enable(a) => order::enable(&a),
        Command::Weight(a) => order::set_weight(&a),
        Command::Members(verb) => members::run(&verb),
        Command::Inventory(verb) => inventory::run(&verb),
        Command::Replacement(verb) => replacement::run(&verb),
        Command::Role(verb) => role::run(&verb),
        Command::Store(verb) => store::run(&verb),
        Command::Ipvs(verb) => ipvs::run(&verb),
        Command::Completions(a) => documents::completions(&a),
        Command::Man(a) => documents::man(&a),
    };
    let (text, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Wrong(text)) => (text, 2),
        Err(Failure::Failed(text)) => (text, 1),
        Err(Failure::NotWell) => return ExitCode::from(3),
    };
    // Nobody left to tell where standard error is gone.
    drop(writeln!(io::stderr(), "{text}"));
    ExitCode::from(code)
}

/// Reads a duration on the command line.
fn term(text: &str) -> Result<Duration, String> {
    config::duration::parse(text).map_err(|e| e.to_string())
}

/// Writes to standard output; a reader that went away is no error.
fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::failed(&e)),
    }
}

/// A document for programs.
fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::failed(&e))?;
    Ok(text + "\n")
}

fn read(path: &Path) -> Result<String, Failure> {
    agent::reload::read(path).map_err(Failure::Wrong)
}

/// Runs one short task.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|e| Failure::failed(&e))?.block_on(work)
}

/// Columns, as wide as their widest cell, two blanks apart.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|t| t.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How logs are written.
#[derive(Debug, clap::Args)]
struct Logs {
    /// How logs are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
}
