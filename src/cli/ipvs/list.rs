//! `understudy ipvs list`.

use std::{
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Failure, block_on, connect, connections, kernel, say, show, words};
use crate::agent::lock;
use crate::model::{
    DestKey, DestState, KernelTable, Persistence, ServiceKey, ServiceState, Stats, Tunnel,
};

/// What to show, and how.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Only these: tcp/ADDRESS:PORT, udp/..., sctp/..., fwmark/NUMBER, fwmark6/NUMBER
    #[arg(value_name = "SERVICE")]
    services: Vec<ServiceKey>,
    /// Connections, packets and bytes since the counters were zero
    #[arg(long, group = "what")]
    stats: bool,
    /// Connections, packets and bytes a second
    #[arg(long, group = "what")]
    rate: bool,
    /// The connections themselves: client, service, destination, state, time left
    #[arg(long, group = "what")]
    connections: bool,
    /// Counters in full, not in thousands (K), millions (M), ...
    #[arg(long)]
    exact: bool,
    #[command(flatten)]
    hidden: Hidden,
    /// For people or programs
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
    output: Output,
}

/// What a director's checks through virtual addresses have in the table.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Hidden {
    /// Also the hidden services of a director's checks through virtual addresses
    #[arg(long)]
    hidden: bool,
    /// The director's lock, beside its own socket
    #[arg(long, value_name = "PATH")]
    lock: Option<PathBuf>,
}

impl Hidden {
    /// Takes them out, unless they are asked for.
    pub(super) fn leave_out(&self, table: &mut KernelTable) {
        if !self.hidden
            && let Some(owner) = lock::last_owner(
                self.lock
                    .as_deref()
                    .unwrap_or(Path::new(super::write::LOCK)),
            )
        {
            table.retain(|key, _| !owner.hides(key));
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    if a.connections {
        return match a.output {
            Output::Table => connections::table(&a.services),
            Output::Json => connections::json(&a.services),
        };
    }
    let (version, buckets, table) = block_on(async {
        let mut ipvs = connect().await?;
        if matches!(a.output, Output::Table) && !a.stats && !a.rate {
            ipvs = ipvs.without_counters();
        }
        let (version, buckets) = ipvs.info().await.map_err(kernel)?;
        if !a.services.is_empty() {
            let table = ipvs.read(&a.services).await.map_err(kernel)?;
            return Ok((version, buckets, table));
        }
        let mut table = ipvs.table().await.map_err(kernel)?;
        a.hidden.leave_out(&mut table);
        Ok((version, buckets, table))
    })?;
    let missing: Vec<_> = a
        .services
        .iter()
        .filter(|k| !table.contains_key(k))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        let text = format!("the kernel has no virtual service {}", missing.join(", "));
        return Err(Failure::Failed(text));
    }
    match a.output {
        Output::Json => json(&All {
            version: version.to_string(),
            buckets,
            services: services(&table),
        }),
        Output::Table => {
            let view = match (a.stats, a.rate) {
                (true, _) => show::View::Totals,
                (_, true) => show::View::Rates,
                _ => show::View::Now,
            };
            say(&show::table(version, buckets, &table, view, a.exact))
        }
    }
}

/// Prints a document, as it is made: ten thousand destinations are some megabytes.
pub(super) fn json(document: &impl Serialize) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = serde_json::to_writer_pretty(&mut out, document)
        .map_err(io::Error::from)
        .and_then(|()| io::Write::write_all(&mut out, b"\n"))
        .and_then(|()| io::Write::flush(&mut out));
    match done {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(&e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[derive(Serialize)]
struct All<'a> {
    version: String,
    buckets: u32,
    services: Vec<Service<'a>>,
}

#[derive(Serialize)]
struct Service<'a> {
    service: ServiceKey,
    scheduler: &'a str,
    flags: Vec<&'static str>,
    persistence: Option<&'a Persistence>,
    stats: &'a Stats,
    destinations: Vec<Dest<'a>>,
}

#[derive(Serialize)]
struct Dest<'a> {
    #[serde(flatten)]
    at: &'a DestKey,
    weight: u32,
    forward: crate::model::ForwardMethod,
    tunnel: Option<&'a Tunnel>,
    upper: u32,
    lower: u32,
    active_connections: u32,
    inactive_connections: u32,
    persistent_connections: u32,
    stats: Stats,
}

fn services(table: &KernelTable) -> Vec<Service<'_>> {
    table.iter().map(|(k, s)| service(*k, s)).collect()
}

fn service(key: ServiceKey, s: &ServiceState) -> Service<'_> {
    Service {
        service: key,
        scheduler: &s.attrs.scheduler.0,
        flags: words::flags(s.attrs.flags, &s.attrs.scheduler),
        persistence: s.attrs.persistence.as_ref(),
        stats: &s.stats,
        destinations: s.dests.iter().map(|(k, d)| dest(k, d)).collect(),
    }
}

fn dest<'a>(at: &'a DestKey, d: &'a DestState) -> Dest<'a> {
    let tunnel = d.attrs.forward == crate::model::ForwardMethod::Tun;
    Dest {
        at,
        weight: d.attrs.weight.get(),
        forward: d.attrs.forward,
        tunnel: tunnel.then_some(&d.attrs.tunnel),
        upper: d.attrs.upper,
        lower: d.attrs.lower,
        active_connections: d.active_connections,
        inactive_connections: d.inactive_connections,
        persistent_connections: d.persistent_connections,
        stats: d.stats(),
    }
}
