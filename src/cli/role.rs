//! `understudy role`.

use hyper::Method;

use super::{
    Failure, block_on,
    inventory::{LIMIT, Socket, unanswered},
    say,
};
use crate::api::client::NOTHING;

/// What to do with a role.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Tries spares again for a role that was stopped because two failed in the same place
    Release {
        /// Its code
        #[arg(value_name = "ROLE")]
        role: String,
        #[command(flatten)]
        socket: Socket,
    },
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
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
