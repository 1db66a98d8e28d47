//! This host: its settings, as the configuration declares them, and what of it does not fit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task, time};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    config,
    director::{
        findings::{self, Facts},
        settings::{self, Standing},
    },
    model::SysctlName,
    rtnl,
    sysctl::ProcSys,
    telemetry::{Chain, metrics::DirectorMetrics},
};

/// A pass is not made oftener than this: it starts a thread, and nobody changes settings by the
/// second.
const SHORTEST: Duration = Duration::from_secs(1);

/// What the findings ask of this host. Blocks for a moment, at most some seconds.
#[must_use]
pub fn facts() -> Facts {
    let sys = ProcSys::default();
    let asked = findings::ASKED.iter().filter_map(|n| n.parse().ok());
    let interfaces = sys.interfaces();
    let all = ["all".to_owned()];
    let of_interface = |i: &String| {
        [
            SysctlName::ipv4_forwarding(i),
            SysctlName::of_interface(i, "accept_local"),
            SysctlName::of_interface(i, "rp_filter"),
        ]
    };
    let per_interface = interfaces.iter().chain(&all).flat_map(of_interface);
    let read = |name: SysctlName| Some((name.clone(), sys.read(&name).ok()?));
    let addresses = rtnl::host_addresses();
    let addresses = addresses
        .inspect_err(|e| warn!(error = %Chain(e), "addresses of this host could not be read"));
    Facts {
        settings: asked.chain(per_interface).filter_map(read).collect(),
        addresses: addresses.ok(),
        ..Facts::default()
    }
}

/// Keeps the declared settings, and watches for what does not fit.
#[derive(Debug)]
pub struct Host {
    config: Arc<config::Director>,
    sys: ProcSys,
    metrics: DirectorMetrics,
    standing: BTreeMap<SysctlName, Standing>,
    said: BTreeSet<String>,
}

impl Host {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(config: Arc<config::Director>, metrics: DirectorMetrics) -> Self {
        Self {
            config,
            sys: ProcSys::default(),
            metrics,
            standing: BTreeMap::new(),
            said: BTreeSet::new(),
        }
    }

    /// Writes the declared settings that differ, and tells what is not as it should be: in the log
    /// what was not there at the pass before, and all of it to whom it returns to.
    ///
    /// Blocks for a moment, at most some seconds.
    pub fn pass(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        for declared in &self.config.kernel {
            let last = self.standing.get(&declared.name);
            let found = self.sys.read(&declared.name);
            let tried = settings::is_to_be_written(declared, &found, last)
                .then(|| self.sys.write(declared));
            let (was, written) = (found.clone(), tried.is_some());
            let standing = settings::standing(declared, found, tried);
            if let (Ok(from), true, Standing::Holds) = (was, written, &standing) {
                let (setting, to) = (&declared.name, &declared.value);
                if last == Some(&Standing::Holds) {
                    warn!(%setting, %from, %to, "somebody changed a declared kernel setting, it was set back");
                } else {
                    info!(%setting, %from, %to, "kernel setting was changed as declared");
                }
            }
            let warning = settings::warning(declared, &standing);
            self.metrics
                .set_kernel_setting_wrong(&declared.name.to_string(), warning.is_some());
            warnings.extend(warning);
            self.standing.insert(declared.name.clone(), standing);
        }
        warnings.extend(findings::findings(&self.config, &facts()));
        let now: BTreeSet<String> = warnings.iter().cloned().collect();
        for reason in now.difference(&self.said) {
            // In the text too: whoever reads the journal sees no fields.
            warn!(%reason, "this host does not fit the configuration: {reason}");
        }
        for reason in self.said.difference(&now) {
            info!(%reason, "no longer so: {reason}");
        }
        self.said = now;
        warnings
    }

    /// What is no longer declared stays as it is.
    fn renew(&mut self, config: &Arc<config::Director>) {
        if Arc::ptr_eq(&self.config, config) {
            return;
        }
        self.config = Arc::clone(config);
        let declared = |name: &SysctlName| config.kernel.iter().any(|s| s.name == *name);
        let gone = self.standing.keys().filter(|name| !declared(name));
        let gone: Vec<SysctlName> = gone.cloned().collect();
        for name in gone {
            self.standing.remove(&name);
            self.metrics.forget_kernel_setting(&name.to_string());
        }
    }

    /// A pass each `resync`, and when there is another configuration, until `stop`; `warnings` always holds
    /// those of the last one.
    pub async fn run(
        mut self,
        mut in_force: watch::Receiver<Arc<config::Director>>,
        warnings: watch::Sender<Vec<String>>,
        stop: CancellationToken,
    ) {
        loop {
            let every = self.config.resync.max(SHORTEST);
            tokio::select! {
                () = stop.cancelled() => return,
                // Cancel-safe, both: `changed` only marks the value seen when it returns.
                changed = in_force.changed() => if changed.is_err() { return },
                () = time::sleep(every) => {}
            }
            self.renew(&in_force.borrow_and_update());
            // Not cancelled, awaited: it ends within seconds by itself.
            let pass = task::spawn_blocking(move || {
                let found = self.pass();
                (self, found)
            });
            match pass.await {
                Ok((same, found)) => {
                    self = same;
                    warnings.send_replace(found);
                }
                Err(e) => return error!(error = %Chain(&e), "a pass over this host failed"),
            }
        }
    }
}
