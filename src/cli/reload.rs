//! `understudy reload` and `understudy plan`.

use std::{path::PathBuf, time::Duration};

use hyper::Method;

use super::{DirectorSocket, Failure, json, read, say, table};
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
    let answer: ReloadAnswer = a.director.ask(Method::POST, "/v1/reload", NOTHING, LIMIT)?;
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
    let planned: Planned = a
        .director
        .ask(Method::POST, "/v1/plan", Some(&body), LIMIT)?;
    if a.json {
        return say(&json(&planned)?);
    }
    say(&show(&planned))
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
