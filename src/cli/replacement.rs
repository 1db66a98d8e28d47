//! `understudy replacement`.

use std::time::Duration;

use hyper::Method;

use super::{
    Failure, Output, block_on,
    inventory::{LIMIT, Socket, unanswered},
    json, say, table,
};
use crate::{
    api::client::{Client, NOTHING},
    model::wire::{LogPart, Replacement, StepView},
};

/// Longest wait of one question while following.
const WAIT: u64 = 30;

/// What to do with replacements.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Shows the newest replacements: state, failed server, spare, and why
    List {
        #[command(flatten)]
        socket: Socket,
        #[command(flatten)]
        output: Output,
    },
    /// Shows one: its steps, who was passed over and why, or what a script printed
    Show {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
        /// What this step printed, the last one if none is named
        #[arg(long, value_name = "STEP", num_args = 0..=1, default_missing_value = "")]
        log: Option<String>,
        /// Go on with what it prints until it ends; without a step, with all steps
        #[arg(long, requires = "log")]
        follow: bool,
        #[command(flatten)]
        socket: Socket,
        #[command(flatten)]
        output: Output,
    },
    /// Ends one before its spare is in service
    Cancel {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Has one that waits tried again at once, also where its role was stopped
    Retry {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        socket: Socket,
    },
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { socket, output } => list(socket, output),
        Verb::Show {
            id,
            log: Some(step),
            follow,
            socket,
            ..
        } => log(id, step, *follow, &socket.client()),
        Verb::Show {
            id, socket, output, ..
        } => show(id, socket, output),
        Verb::Cancel { id, socket } => {
            let r = act(id, "cancel", socket)?;
            say(&format!("{id} is {}\n", stands(&r)))
        }
        Verb::Retry { id, socket } => {
            act(id, "retry", socket)?;
            say(&format!("{id} is tried again\n"))
        }
    }
}

fn ask<T: serde::de::DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    limit: Duration,
) -> Result<T, Failure> {
    let ask = client.ask(method, path, None, NOTHING, limit);
    block_on(async { ask.await.map_err(unanswered) })
}

fn act(id: &str, verb: &str, socket: &Socket) -> Result<Replacement, Failure> {
    let path = format!("/v1/replacements/{id}/{verb}");
    ask(&socket.client(), Method::POST, &path, LIMIT)
}

/// Where it stands, and why.
fn stands(r: &Replacement) -> String {
    match &r.reason {
        Some(reason) => format!("{}: {reason}", r.state.as_str()),
        None => r.state.as_str().to_owned(),
    }
}

fn list(socket: &Socket, output: &Output) -> Result<(), Failure> {
    let all: Vec<Replacement> = ask(&socket.client(), Method::GET, "/v1/replacements", LIMIT)?;
    if output.json() {
        return say(&json(&all)?);
    }
    let head = ["REPLACEMENT", "FAILED", "ROLE", "SPARE", "STATE"].map(str::to_owned);
    let row = |r: &Replacement| {
        let spare = r.spare.as_ref().map(|s| s.name.clone());
        let at = r.steps.last().map(|s| s.server.clone());
        vec![
            r.id.to_string(),
            r.failed.to_string(),
            r.role.clone().unwrap_or_else(|| "-".to_owned()),
            spare.or(at).unwrap_or_else(|| "-".to_owned()),
            stands(r),
        ]
    };
    let rows: Vec<_> = std::iter::once(head.to_vec())
        .chain(all.iter().map(row))
        .collect();
    say(&table(&rows))
}

fn show(id: &str, socket: &Socket, output: &Output) -> Result<(), Failure> {
    let path = format!("/v1/replacements/{id}");
    let r: Replacement = ask(&socket.client(), Method::GET, &path, LIMIT)?;
    if output.json() {
        return say(&json(&r)?);
    }
    say(&text(&r))
}

fn text(r: &Replacement) -> String {
    let mut text = format!(
        "{}\nasked by {} for {} with key {}\n{}\n",
        r.id,
        r.director,
        r.failed,
        r.key,
        stands(r)
    );
    if let Some(spare) = &r.spare {
        let addresses: Vec<_> = spare.addresses.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "spare {} at {}\n",
            spare.name,
            addresses.join(", ")
        ));
    }
    if !r.passed_over.is_empty() {
        let rows = r
            .passed_over
            .iter()
            .map(|p| vec![format!("not {}", p.server), p.reason.clone()]);
        text.push('\n');
        text.push_str(&table(&rows.collect::<Vec<_>>()));
    }
    if !r.steps.is_empty() {
        let head = [
            "SERVER", "STEP", "STATE", "TRIES", "TOOK", "LIMIT", "INPUT", "DETAIL",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(r.steps.iter().map(step));
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}

fn step(s: &StepView) -> Vec<String> {
    let took = s.ended_ms.map(|end| {
        let took = u64::try_from(end - s.started_ms).unwrap_or(0);
        format!("{:?}", Duration::from_millis(took))
    });
    vec![
        s.server.clone(),
        s.step.clone(),
        s.state.clone(),
        s.tries.to_string(),
        took.unwrap_or_else(|| "-".to_owned()),
        format!("{:?}", Duration::from_millis(s.limit_ms)),
        s.digest.chars().take(12).collect(),
        s.detail.clone(),
    ]
}

/// What a step printed, and where it is followed what it prints.
fn log(id: &str, step: &str, follow: bool, client: &Client) -> Result<(), Failure> {
    let limit = Duration::from_secs(WAIT) + LIMIT;
    let (mut run, mut after) = (String::new(), 0);
    loop {
        // A step's name has a colon and what a software's name may have: nothing to be escaped but '+'.
        let mut path = format!("/v1/replacements/{id}/log?after={after}");
        if !step.is_empty() {
            path.push_str(&format!("&step={}", step.replace('+', "%2B")));
        }
        if !run.is_empty() {
            path.push_str(&format!("&run={run}"));
        }
        if follow {
            path.push_str(&format!("&wait={WAIT}"));
        }
        let part: LogPart = ask(client, Method::GET, &path, limit)?;
        if part.run != run {
            say(&format!("==> {} on {} <==\n", part.step, part.server))?;
        }
        say(&part.text)?;
        let over = part.over || (part.ended && !step.is_empty());
        if !follow || (over && part.text.is_empty()) {
            return Ok(());
        }
        (run, after) = (part.run, part.next);
    }
}
