//! `understudy ipvs sync`.

use std::net::IpAddr;

use super::{Failure, block_on, connect, kernel, say, write};
use crate::{
    cli::table,
    model::{SyncDaemon, SyncRole},
};

/// What to do with the sync daemons; without a verb they are shown.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Starts a sync daemon
    Start(Start),
    /// Stops a sync daemon
    Stop {
        /// Which one
        #[arg(value_enum)]
        role: Role,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Role {
    Master,
    Backup,
}

impl From<Role> for SyncRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Master => Self::Master,
            Role::Backup => Self::Backup,
        }
    }
}

#[derive(Debug, clap::Args)]
struct Start {
    /// master sends connections, backup takes them in
    #[arg(value_enum)]
    role: Role,
    /// Interface of its multicast
    #[arg(long, value_name = "IF")]
    interface: String,
    /// Which connections: 0 takes in all, as a backup
    #[arg(long, value_name = "N", default_value_t = 0)]
    id: u8,
    /// Multicast group
    #[arg(long, value_name = "ADDRESS", default_value = "224.0.0.81")]
    group: IpAddr,
    /// UDP port
    #[arg(long, value_name = "PORT", default_value_t = 8848)]
    port: u16,
    /// Time to live of its packets
    #[arg(long, value_name = "N", default_value_t = 1)]
    ttl: u8,
    /// Largest UDP payload; without it what the interface's MTU lets through
    #[arg(long, value_name = "BYTES")]
    max_length: Option<u16>,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let mut ipvs = connect().await?;
        match &a.verb {
            None => {
                let daemons = ipvs.daemons().await.map_err(kernel)?;
                say(&show(&daemons))
            }
            Some(Verb::Start(start)) => {
                let group = (start.group != IpAddr::from([224, 0, 0, 81])).then_some(start.group);
                let daemon = SyncDaemon {
                    role: start.role.into(),
                    interface: start.interface.clone(),
                    sync_id: start.id,
                    max_length: start.max_length.unwrap_or(0),
                    group,
                    port: start.port,
                    ttl: start.ttl,
                };
                write::start_daemon(&mut ipvs, &daemon).await
            }
            Some(Verb::Stop { role }) => write::stop_daemon(&mut ipvs, (*role).into()).await,
        }
    })
}

fn show(daemons: &[SyncDaemon]) -> String {
    if daemons.is_empty() {
        return "no sync daemon runs\n".to_owned();
    }
    let head = [
        "ROLE",
        "INTERFACE",
        "ID",
        "GROUP",
        "PORT",
        "TTL",
        "MAX-LENGTH",
    ];
    let row = |d: &SyncDaemon| {
        let group = d.group.unwrap_or(IpAddr::from([224, 0, 0, 81]));
        vec![
            d.role.to_string(),
            d.interface.clone(),
            d.sync_id.to_string(),
            group.to_string(),
            d.port.to_string(),
            d.ttl.to_string(),
            d.max_length.to_string(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned).to_vec())
        .chain(daemons.iter().map(row))
        .collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_lines() {
        let master = SyncDaemon {
            role: SyncRole::Master,
            interface: "eth0".to_owned(),
            sync_id: 7,
            max_length: 1472,
            group: None,
            port: 8848,
            ttl: 1,
        };
        let backup = SyncDaemon {
            role: SyncRole::Backup,
            group: Some("ff02::81".parse().unwrap()),
            ..master.clone()
        };
        assert_eq!(
            show(&[master, backup]),
            "ROLE    INTERFACE  ID  GROUP       PORT  TTL  MAX-LENGTH\n\
             master  eth0       7   224.0.0.81  8848  1    1472\n\
             backup  eth0       7   ff02::81    8848  1    1472\n"
        );
        assert_eq!(show(&[]), "no sync daemon runs\n");
    }
}
