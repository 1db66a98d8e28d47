//! Puts the provisioner's tasks and channels together.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, time};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::shutdown_signal;
use crate::{
    check, clock, config,
    http::{DoorError, Doors},
    model::{CheckKind, MonoTime, Outcome},
    provisioner::{
        api::{self, App},
        engine::{self, Fact, Observer, Settings},
        secrets::Secrets,
        ssh::{ClientKey, ClientKeyError},
        step::{self, SshHands},
        store::{Store, StoreError},
    },
    supervise::{Exit, Supervisor},
    systemd,
    telemetry::{self, Chain, metrics::ProvisionerMetrics},
};

/// Tasks end within this after the stop; running scripts go on without us and are found again.
const GRACE: Duration = Duration::from_secs(10);

/// How often the gauges of the pool are read, and the store is seen to answer.
const BEAT: Duration = Duration::from_secs(2);

/// Why the provisioner does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key.
    #[error("the SSH key cannot be used")]
    Key(#[source] ClientKeyError),
    /// No key is named.
    #[error(
        "no SSH key: name one in [ssh] key, or give the unit LoadCredential=ssh_key:/etc/understudy/ssh_key"
    )]
    NoKey,
    /// The state folder.
    #[error("the state folder {} cannot be made", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store.
    #[error("the store cannot be used")]
    Store(#[source] StoreError),
    /// The API.
    #[error("the API cannot listen")]
    Door(#[source] DoorError),
    /// `/metrics`.
    #[error("/metrics cannot listen on {at}")]
    Metrics {
        /// Where.
        at: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A task ended.
    #[error("the provisioner stopped out of order")]
    Ended(#[source] Exit),
    /// Signals.
    #[error("signals cannot be waited for")]
    Signals(#[source] std::io::Error),
}

/// Step 4 asks as the director's checks ask.
#[derive(Clone, Copy, Debug)]
struct Checks;

impl step::Prober for Checks {
    async fn probe(&self, at: SocketAddr, kind: &CheckKind, timeout: Duration) -> Outcome {
        check::probe(at, kind, timeout).await
    }
}

/// Runs a provisioner until it is told to stop.
///
/// # Errors
///
/// What kept it from starting, or the task that ended.
pub async fn run(config: config::Provisioner) -> Result<(), Error> {
    let signal = shutdown_signal().map_err(Error::Signals)?;
    let key = config
        .ssh
        .key
        .clone()
        .or_else(|| systemd::credential("ssh_key"));
    let key = ClientKey::load(&key.ok_or(Error::NoKey)?).map_err(Error::Key)?;
    let dir = config.state_dir.clone();
    std::fs::create_dir_all(&dir).map_err(|source| Error::Folder {
        path: dir.clone(),
        source,
    })?;
    let store = Store::open(&dir.join("understudy.db"))
        .await
        .map_err(Error::Store)?;
    let mut registry = Registry::default();
    let metrics = ProvisionerMetrics::register(&mut registry, &crate::BUILD);
    let counted = metrics.clone();
    let observer = Observer::new(move |fact| count(&counted, &fact));
    let doors = Doors::open(Some(&config.socket), config.listen)
        .await
        .map_err(Error::Door)?;
    let metrics_listener = match config.metrics {
        None => None,
        Some(at) => {
            let bound = TcpListener::bind(at).await;
            Some(bound.map_err(|source| Error::Metrics { at, source })?)
        }
    };
    let fingerprint = key.fingerprint();
    let hands = Arc::new(SshHands {
        key,
        user: config.ssh.user.clone(),
        elevate: config.ssh.user != "root",
        connect_timeout: config.ssh.connect_timeout,
        base: step::BASE.to_owned(),
        prober: Checks,
    });

    let look: Arc<dyn step::Look> = Arc::clone(&hands) as _;
    let mut tasks = Supervisor::default();
    let secrets = Secrets {
        dir: config.secrets_dir.clone(),
    };
    let (s, o) = (store.clone(), observer.clone());
    tasks.start("engine", |stop| async move {
        if let Err(e) = engine::run(s, hands, Settings::STANDARD, secrets, o, stop).await {
            error!(error = %Chain(&e), "engine stopped");
        }
    });
    let app = App {
        store: store.clone(),
        addresses: vec![config.address],
        observer,
        look,
        secrets: Secrets {
            dir: config.secrets_dir,
        },
    };
    tasks.start("api", |stop| api::serve(doors, app, stop));
    let (heartbeat, heartbeat_rx) = watch::channel(clock::now());
    if let Some(listener) = metrics_listener {
        let (registry, beat) = (Arc::new(registry), heartbeat_rx.clone());
        tasks.start("metrics", |stop| {
            telemetry::serve(listener, registry, beat, stop)
        });
    }
    tasks.start("watchdog", |stop| systemd::watchdog(heartbeat_rx, stop));
    tasks.start("gauges", |stop| gauges(store, metrics, heartbeat, stop));
    systemd::ready();
    info!(address = %config.address, socket = %config.socket.display(), key = %fingerprint, "provisioner is ready");
    let ended = tasks.run(signal, GRACE).await;
    systemd::stopping();
    info!("provisioner stopped; running scripts go on and are found again");
    ended.map_err(Error::Ended)
}

/// Reads the gauges from the store; as long as that answers, the heart beats.
async fn gauges(
    store: Store,
    metrics: ProvisionerMetrics,
    heartbeat: watch::Sender<MonoTime>,
    stop: CancellationToken,
) {
    loop {
        match read_gauges(&store, &metrics).await {
            Ok(()) => drop(heartbeat.send_replace(clock::now())),
            Err(e) => warn!(error = %Chain(&e), "store could not be read"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = time::sleep(BEAT) => {}
        }
    }
}

async fn read_gauges(store: &Store, metrics: &ProvisionerMetrics) -> Result<(), StoreError> {
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let pool: BTreeMap<_, _> = store
        .pool_by_state()
        .await?
        .into_iter()
        .map(|(s, n)| (s, narrow(n)))
        .collect();
    metrics.set_pool(&pool);
    let replacements: BTreeMap<_, _> = store
        .replacements_by_state()
        .await?
        .into_iter()
        .map(|(s, n)| (s, narrow(n)))
        .collect();
    metrics.set_replacements(&replacements);
    let stopped = store.stopped_roles().await?.len();
    metrics.set_stopped(u32::try_from(stopped).unwrap_or(u32::MAX));
    Ok(())
}

fn count(metrics: &ProvisionerMetrics, fact: &Fact) {
    match fact {
        Fact::StepEnded {
            step,
            result,
            elapsed,
        } => metrics.step(step, result, *elapsed),
        Fact::ReplacementEnded { outcome } => metrics.replacement_ended(*outcome),
        Fact::Answered { route, status } => metrics.api_request(route, *status),
        Fact::SpareQuarantined | Fact::SparePassedOver | Fact::ReplacementWaits { .. } => {}
    }
}
