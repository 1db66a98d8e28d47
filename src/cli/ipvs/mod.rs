//! `understudy ipvs`: the kernel's table by hand.

mod changes;
mod connections;
mod list;
mod names;
mod restore;
mod save;
mod show;
mod sync;
mod timeouts;
mod words;
mod write;

use std::io::{self, Write};

use super::{Failure, block_on, read, say};
use crate::{
    ipvs::{self, Ipvs},
    model::{KernelTable, ServiceKey, Table},
};

/// What to do with the table.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Shows virtual services and destinations, counters, rates, or connections
    List(list::Arguments),
    /// Prints the table as ipvsadm -Sn does: for ipvs restore, and for ipvsadm -R
    Save(list::Hidden),
    /// Makes the virtual services of a file what it says, changing only what differs
    #[command(after_help = write::ELSEWHERE)]
    Restore(restore::Arguments),
    /// Removes all virtual services
    #[command(after_help = write::ELSEWHERE)]
    Flush(write::Guard),
    /// Sets counters to zero
    Zero {
        /// This service and its destinations; without it all, and the totals
        #[arg(value_name = "SERVICE")]
        service: Option<ServiceKey>,
    },
    /// Shows how long connections without packets are kept, or changes it
    Timeouts(timeouts::Arguments),
    /// Shows the sync daemons, which share connections with another director, or runs them
    Sync(sync::Arguments),
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::List(a) => list::run(a),
        Verb::Save(hidden) => save::run(hidden),
        Verb::Restore(a) => restore::run(a),
        Verb::Flush(guard) => block_on(async {
            write::flush(&mut connect().await?, guard).await?;
            Ok(())
        }),
        Verb::Zero { service } => block_on(async {
            write::zero(&mut connect().await?, *service).await?;
            Ok(())
        }),
        Verb::Timeouts(a) => timeouts::run(a),
        Verb::Sync(a) => sync::run(a),
    }
}

async fn connect() -> Result<Ipvs, Failure> {
    Ipvs::connect().await.map_err(kernel)
}

fn kernel(e: ipvs::Error) -> Failure {
    Failure::failed(&e)
}

/// The table without counters and connections.
fn plain(table: &KernelTable) -> Table {
    table.iter().map(|(k, s)| (*k, s.plain())).collect()
}

/// Says something beside the result; nobody is left to tell where standard error is gone.
fn note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// `1 service`, `2 services`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
