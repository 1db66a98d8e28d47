//! `understudy reload` and `understudy plan`.

use std::{path::PathBuf, time::Duration};

use hyper::Method;
use serde::{Serialize, de::DeserializeOwned};

use super::{DirectorSocket, Failure, block_on, read, say, table};
use crate::{
    api::client::NOTHING,
    model::{PlanRequest, Planned, ReloadAnswer},
};

/// Longer than the director waits for the kernel's table.
const LIMIT: Duration = Duration::from_secs(30);

/// Whose configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Reload {
    #[command(flatten)]
    director: DirectorSocket,
}

/// Which configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// The configuration to look at; without it the director's own file as it is now
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    director: DirectorSocket,
}

pub(super) fn reload(a: &Reload) -> Result<(), Failure> {
    let answer: ReloadAnswer = ask(&a.director, "/v1/reload", NOTHING)?;
    say(&format!("reloaded: {}\n", answer.reloaded))?;
    if answer.applied {
        return Ok(());
    }
    let why = match answer.failed.as_slice() {
        [] => "it takes longer than 10 s".to_owned(),
        failed => failed.join("; "),
    };
    Err(Failure::Failed(format!(
        "the configuration is in force, the kernel's table is not yet as it says: {why}; see understudy status"
    )))
}

pub(super) fn plan(a: &Plan) -> Result<(), Failure> {
    let config = match &a.config {
        None => None,
        Some(path) => Some((path.clone(), read(path)?)),
    };
    let body = PlanRequest { config };
    let planned: Planned = ask(&a.director, "/v1/plan", Some(&body))?;
    if a.json {
        let text = serde_json::to_string_pretty(&planned).map_err(|e| Failure::failed(&e))?;
        return say(&format!("{text}\n"));
    }
    say(&show(&planned))
}

fn ask<B: Serialize, T: DeserializeOwned>(
    director: &DirectorSocket,
    path: &str,
    body: Option<&B>,
) -> Result<T, Failure> {
    let client = director.client();
    let ask = client.ask(Method::POST, path, None, body, LIMIT);
    block_on(async {
        ask.await.map_err(|e| match e.problem() {
            Some(p) if p.status == 422 => Failure::Wrong(p.detail.clone()),
            Some(_) | None => Failure::unanswered("director", &e),
        })
    })
}

fn show(planned: &Planned) -> String {
    let mut text = format!("{}\n", planned.reloaded);
    let rows = planned.steps.iter().map(|step| {
        let leaves = planned.leaving.iter().any(|place| {
            place.service == step.service && step.server == Some(place.server.to_string())
        });
        let then = if leaves { ", then it leaves" } else { "" };
        let touched = match step.connections {
            0 => "no active connection".to_owned(),
            1 => "1 active connection".to_owned(),
            n => format!("{n} active connections"),
        };
        vec![format!("  {}{then}", step.step), touched]
    });
    text.push_str(&table(&rows.collect::<Vec<_>>()));
    for m in &planned.stand_ins {
        let places: Vec<_> = m.in_place_of.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "stand-in {} goes back to the provisioner: nobody has {} any more; understudy members export writes it as configuration\n",
            m.name,
            places.join(", ")
        ));
    }
    for server in &planned.called_off {
        text.push_str(&format!("the replacement of {server} is called off\n"));
    }
    text.push_str(match planned.steps.len() {
        0 => "the kernel's table stays as it is; nothing was done\n",
        _ => "nothing was done\n",
    });
    text
}
