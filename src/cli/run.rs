//! `understudy director` and `understudy provisioner`.

use std::path::PathBuf;

use tokio::runtime::Builder;

use super::{Failure, Logs, read};
use crate::{agent, config, telemetry};

/// Of a daemon.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    logs: Logs,
}

/// Of a director.
#[derive(Debug, clap::Args)]
pub(super) struct DirectorArguments {
    #[command(flatten)]
    daemon: Arguments,
    /// Change nothing, run beside keepalived or ldirectord, and tell where this director
    /// would have IPVS otherwise. Its socket is that of the configuration with .shadow
    /// behind it; it serves no /metrics
    #[arg(long, verbatim_doc_comment)]
    shadow: bool,
}

pub(super) fn director(a: &DirectorArguments) -> Result<(), Failure> {
    let (shadow, a) = (a.shadow, &a.daemon);
    let loaded = agent::reload::load(&a.config, shadow).map_err(Failure::Wrong)?;
    let file = a.config.clone();
    // Its work is thousands of short turns a second: to hand one to another thread costs more than it.
    daemon(a, Builder::new_current_thread(), async {
        agent::director::run(file, loaded)
            .await
            .map_err(|e| Failure::failed(&e))
    })
}

pub(super) fn provisioner(a: &Arguments) -> Result<(), Failure> {
    let config = config::provisioner::parse(&a.config, &read(&a.config)?)?;
    daemon(a, Builder::new_multi_thread(), async {
        agent::provisioner::run(a.config.clone(), config)
            .await
            .map_err(|e| Failure::failed(&e))
    })
}

fn daemon(
    a: &Arguments,
    mut runtime: Builder,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    telemetry::init_logs(a.logs.log_format).map_err(|e| Failure::failed(&e))?;
    let runtime = runtime.enable_all().build();
    let runtime = runtime.map_err(|e| Failure::failed(&e))?;
    let done = runtime.block_on(work);
    // A file system that hangs keeps a thread that reads there, and must not keep the process.
    runtime.shutdown_background();
    done
}
