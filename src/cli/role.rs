//! `understudy role`.

use std::time::Duration;

use hyper::Method;

use super::{
    Failure, Output, block_on,
    inventory::{LIMIT, Socket, unanswered},
    json, say,
};
use crate::{
    api::client::NOTHING,
    model::wire::{RoleDifference, RoleLook},
};

/// What to do with a role.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Says what a role would do to a server, and what there differs; touches nothing
    Plan {
        #[command(flatten)]
        of: Of,
    },
    /// Says how a server in service differs from its role; exit status 1 where it does
    Verify {
        #[command(flatten)]
        of: Of,
    },
    /// Tries spares again for a role that was stopped because two failed in the same place
    Release {
        /// Its code
        #[arg(value_name = "ROLE")]
        role: String,
        #[command(flatten)]
        socket: Socket,
    },
}

/// A role and a server.
#[derive(Debug, clap::Args)]
pub(super) struct Of {
    /// The role's code
    #[arg(value_name = "ROLE")]
    role: String,
    /// The server's name
    #[arg(value_name = "SERVER")]
    server: String,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    output: Output,
}

impl Of {
    fn look(&self) -> Result<RoleLook, Failure> {
        let client = self.socket.client();
        let path = format!("/v1/roles/{}/servers/{}", self.role, self.server);
        let ask = client.ask(Method::GET, &path, None, NOTHING, LIMIT + LIMIT);
        block_on(async { ask.await.map_err(unanswered) })
    }
}

fn plan(of: &Of) -> Result<(), Failure> {
    let look = of.look()?;
    if of.output.json() {
        return say(&json(&look)?);
    }
    let mut text = String::new();
    for step in &look.steps {
        let limit = Duration::from_millis(step.limit_ms);
        text.push_str(&format!(
            "==> {} (at most {limit:?})\n{}",
            step.step, step.text
        ));
    }
    text.push_str(&format!("==> {} now\n{}", look.server, differences(&look)));
    say(&text)
}

fn verify(of: &Of) -> Result<(), Failure> {
    let look = of.look()?;
    if of.output.json() {
        say(&json(&look)?)?;
    } else {
        say(&differences(&look))?;
    }
    match (&look.unread, look.differences.len()) {
        (None, 0) => Ok(()),
        (Some(_), _) => Err(Failure::Failed(format!("{} was not compared", look.server))),
        (None, n) => Err(Failure::Failed(format!(
            "{} differs from {} in {n}",
            look.server, look.role
        ))),
    }
}

fn differences(look: &RoleLook) -> String {
    if let Some(why) = &look.unread {
        return format!("not read: {why}\n");
    }
    if look.differences.is_empty() {
        return format!("nothing differs from {}\n", look.role);
    }
    let line = |d: &RoleDifference| format!("{}: {}\n{}", d.object, d.detail, d.diff);
    look.differences.iter().map(line).collect()
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::Plan { of } => plan(of),
        Verb::Verify { of } => verify(of),
        Verb::Release { role, socket } => release(role, socket),
    }
}

fn release(role: &str, socket: &Socket) -> Result<(), Failure> {
    let client = socket.client();
    let path = format!("/v1/roles/{role}/release");
    let ask = client.ask::<serde_json::Value>(Method::POST, &path, None, NOTHING, LIMIT);
    block_on(async { ask.await.map_err(unanswered) })?;
    say(&format!("spares are tried for {role} again\n"))
}
