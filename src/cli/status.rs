//! `understudy status`.

use std::time::Duration;

use hyper::Method;

use super::{DirectorSocket, Failure, block_on, say, table};
use crate::{
    api::client::NOTHING,
    director::status::{ServerStatus, Status},
};

/// Whom to ask, and how to show it.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    director: DirectorSocket,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    let client = a.director.client();
    let ask = client.ask(
        Method::GET,
        "/v1/status",
        None,
        NOTHING,
        Duration::from_secs(10),
    );
    let unanswered = |e| Failure::unanswered("director", &e);
    let status: Status = block_on(async { ask.await.map_err(unanswered) })?;
    if a.json {
        let text = serde_json::to_string_pretty(&status).map_err(|e| Failure::failed(&e))?;
        return say(&format!("{text}\n"));
    }
    say(&show(&status))
}

fn show(status: &Status) -> String {
    let mut text = format!("director {}\n", status.director);
    for s in &status.services {
        let quorum = s.quorum.as_ref().map(|quorum| {
            let word = if quorum.held { "" } else { "QUORUM LOST, " };
            format!(": {word}{quorum}")
        });
        text.push_str(&format!(
            "\n{} ({}, {}){}\n",
            s.service,
            s.scheduler,
            s.forward,
            quorum.unwrap_or_default()
        ));
        let mut rows = vec![
            ["  SERVER", "KIND", "HEALTH", "WEIGHT", "SINCE", "REASON"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(s.servers.iter().map(row));
        text.push_str(&table(&rows));
    }
    if !status.stand_ins.is_empty() {
        text.push_str("\nstand-ins\n");
        let row = |s: &crate::director::status::StandInStatus| {
            let places: Vec<_> = s.in_place_of.iter().map(ToString::to_string).collect();
            let place = format!("in place of {}", places.join(", "));
            vec![
                format!("  {}", s.name),
                s.state.clone(),
                place,
                s.replacement.clone(),
            ]
        };
        text.push_str(&table(
            &status.stand_ins.iter().map(row).collect::<Vec<_>>(),
        ));
    }
    if !status.incidents.is_empty() {
        text.push_str("\nfailed servers\n");
        let row = |i: &crate::director::status::IncidentStatus| {
            vec![format!("  {}", i.failed), i.stage.clone(), i.detail.clone()]
        };
        text.push_str(&table(
            &status.incidents.iter().map(row).collect::<Vec<_>>(),
        ));
    }
    if !status.drift.is_empty() {
        text.push_str("\nchanged by others\n");
        let mut rows = vec![
            ["  SERVICE", "SERVER", "FIELD", "WANTED", "FOUND", "POLICY"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(status.drift.iter().map(|d| {
            vec![
                format!("  {}", d.service),
                d.server.clone().unwrap_or_else(|| "-".to_owned()),
                d.field.clone(),
                d.wanted.clone(),
                d.found.clone(),
                d.policy.clone(),
            ]
        }));
        text.push_str(&table(&rows));
    }
    for w in &status.warnings {
        text.push_str(&format!("\nwarning: {w}\n"));
    }
    text
}

fn row(s: &ServerStatus) -> Vec<String> {
    let or_dash = |t: Option<String>| t.unwrap_or_else(|| "-".to_owned());
    vec![
        format!("  {}", s.server),
        s.kind.clone(),
        s.health.clone(),
        or_dash(s.weight.map(|w| w.to_string())),
        or_dash(s.since_s.map(|t| format!("{t}s"))),
        match (&s.order, &s.reason) {
            (Some(order), Some(reason)) => format!("{order}; {reason}"),
            (Some(order), None) => order.to_string(),
            (None, reason) => reason.clone().unwrap_or_default(),
        },
    ]
}
