//! Spares: which would be chosen, which are put aside.

use std::time::Duration;

use hyper::Method;

use super::{LIMIT, Socket, unanswered};
use crate::{
    api::client::NOTHING,
    cli::{Failure, Output, block_on, json, say, table, term},
    model::wire::{MaintenanceOrder, QuarantineOrder, RoleView, SparesView},
};

/// Whose spares are looked at.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Explain {
    /// The role; all roles in short where there is none
    #[arg(value_name = "ROLE")]
    role: Option<String>,
    /// As if this server of the role had failed
    #[arg(long, value_name = "SERVER", requires = "role")]
    failed: Option<String>,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    output: Output,
}

/// Which spare is put aside.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Quarantine {
    /// Its name
    #[arg(value_name = "SERVER")]
    server: String,
    /// Why, for whoever looks for it later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// For so long, as in 2h; until it is released where nothing is said
    #[arg(long = "for", value_name = "TIME", value_parser = term)]
    length: Option<Duration>,
    #[command(flatten)]
    socket: Socket,
}

/// Which server is in maintenance.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Maintenance {
    /// Its name
    #[arg(value_name = "SERVER")]
    server: String,
    /// Why, for whoever looks for it later
    #[arg(long, value_name = "TEXT", required_unless_present = "over")]
    reason: Option<String>,
    /// It is over
    #[arg(long, conflicts_with = "reason")]
    over: bool,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn explain(a: &Explain) -> Result<(), Failure> {
    let client = a.socket.client();
    let Some(role) = &a.role else {
        let ask = client.ask(Method::GET, "/v1/roles", None, NOTHING, LIMIT);
        let roles: Vec<RoleView> = block_on(async { ask.await.map_err(unanswered) })?;
        return match a.output.json() {
            true => say(&json(&roles)?),
            false => say(&overview(&roles)),
        };
    };
    let mut path = format!("/v1/roles/{role}/spares");
    if let Some(failed) = &a.failed {
        path.push_str(&format!("?failed={failed}"));
    }
    let ask = client.ask(Method::GET, &path, None, NOTHING, LIMIT);
    let spares: SparesView = block_on(async { ask.await.map_err(unanswered) })?;
    match a.output.json() {
        true => say(&json(&spares)?),
        false => say(&explained(&spares)),
    }
}

fn overview(roles: &[RoleView]) -> String {
    let head = ["ROLE", "SERVERS", "SPARES", "WARM", ""].map(str::to_owned);
    let row = |r: &RoleView| {
        let warm = match r.keep_warm {
            0 => r.warm.to_string(),
            keep => format!("{} of {keep}", r.warm),
        };
        let remarks = [&r.stopped, &r.short].into_iter().flatten();
        let remark = remarks.cloned().collect::<Vec<_>>().join("; ");
        let (servers, usable) = (r.servers.to_string(), r.usable.to_string());
        vec![r.role.clone(), servers, usable, warm, remark]
    };
    let rows: Vec<_> = std::iter::once(head.to_vec())
        .chain(roles.iter().map(row))
        .collect();
    table(&rows)
}

fn explained(s: &SparesView) -> String {
    let whose = match &s.failed {
        Some(failed) => format!("if {failed} failed now"),
        None => "if one of its servers failed now".to_owned(),
    };
    let chosen = match s.ranked.first() {
        Some(first) => format!("{} would take over", first.server),
        None => "nobody could take over".to_owned(),
    };
    let mut text = format!("role {}: {whose}, {chosen}\n", s.role);
    if let Some(stopped) = &s.stopped {
        text.push_str(&format!("  only by a spare that is warm: {stopped}\n"));
    }
    let ranked = s.ranked.iter().zip(1..);
    let rows: Vec<_> = ranked
        .map(|(r, n)| vec![format!("  {n}."), r.server.clone(), r.why.clone()])
        .collect();
    text.push_str(&table(&rows));
    let not = s.not.iter();
    let rows: Vec<_> = not
        .map(|p| vec!["  no".to_owned(), p.server.clone(), p.reason.clone()])
        .collect();
    text.push_str(&table(&rows));
    if s.serving > 0 {
        text.push_str(&format!("  {} more are in service\n", s.serving));
    }
    text
}

pub(super) fn quarantine(a: &Quarantine) -> Result<(), Failure> {
    let order = QuarantineOrder {
        reason: a.reason.clone(),
        seconds: a.length.map(|length| length.as_secs()),
    };
    post(&a.socket, &a.server, "quarantine", &order)?;
    let end = match a.length {
        Some(length) => format!("for {length:?}"),
        None => format!("until `understudy inventory release {}`", a.server),
    };
    say(&format!("{} is put aside {end}\n", a.server))
}

pub(super) fn maintenance(a: &Maintenance) -> Result<(), Failure> {
    let order = MaintenanceOrder {
        reason: a.reason.clone().filter(|_| !a.over),
    };
    post(&a.socket, &a.server, "maintenance", &order)?;
    let how = match order.reason {
        Some(_) => "is not chosen as a spare until its maintenance is over",
        None => "may be chosen as a spare",
    };
    say(&format!("{} {how}\n", a.server))
}

fn post(
    socket: &Socket,
    server: &str,
    verb: &str,
    order: &impl serde::Serialize,
) -> Result<(), Failure> {
    let path = format!("/v1/servers/{server}/{verb}");
    let client = socket.client();
    let ask = client.ask::<serde_json::Value>(Method::POST, &path, None, Some(order), LIMIT);
    block_on(async { ask.await.map_err(unanswered) }).map(drop)
}
