//! Puts the provisioner's tasks and channels together.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::{
        self,
        unix::{Signal, SignalKind},
    },
    sync::watch,
    task::spawn_blocking,
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{identity, reload, shutdown_signal};
use crate::{
    check, clock, config,
    http::{DoorError, Doors},
    model::{CheckKind, Grant, MonoTime, Outcome},
    prepare::Unprepared,
    provisioner::{
        api::{self, App},
        driver::{Installer, Pace},
        engine::{self, Fact, Observer, Settings},
        keeper,
        secrets::Secrets,
        ssh::{ClientKey, ClientKeyError},
        step::{self, SshHands},
        store::{Place, Store, StoreError},
    },
    supervise::{Exit, Supervisor},
    systemd,
    telemetry::{self, Chain, Health, metrics::ProvisionerMetrics},
    tls,
};

/// Tasks end within this after the stop; running scripts go on without us and are found again.
const GRACE: Duration = Duration::from_secs(10);

/// How often the gauges of the pool are read, and the store is seen to answer.
const BEAT: Duration = Duration::from_secs(2);

/// The store has so long to answer what the gauges ask: a beat and this are less than `/healthz` and the watchdog allow.
const PATIENCE: Duration = Duration::from_secs(6);

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
    /// The store's password.
    #[error("the store's password cannot be read from {}", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store.
    #[error("the store cannot be used")]
    Store(#[source] StoreError),
    /// What directors are to know it by.
    #[error("certificate, key or authorities of [provisioner.tls] cannot be used")]
    Identity(#[source] Unprepared),
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

/// Runs a provisioner until it is told to stop. `file` is where its configuration came from, and is read again on SIGHUP
/// for the directors that may ask over TLS.
///
/// # Errors
///
/// What kept it from starting, or the task that ended.
pub async fn run(file: PathBuf, config: config::Provisioner) -> Result<(), Error> {
    let signal = shutdown_signal().map_err(Error::Signals)?;
    // Before it says that it is ready: a reload by signal would end it.
    let hangup = signal::unix::signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let key = config
        .ssh
        .key
        .clone()
        .or_else(|| systemd::credential("ssh_key"));
    let key = ClientKey::load(&key.ok_or(Error::NoKey)?).map_err(Error::Key)?;
    if config.store.is_none() {
        let path = config.state_dir.clone();
        std::fs::create_dir_all(&path).map_err(|source| Error::Folder { path, source })?;
    }
    let place = place(&config)?;
    let store = Store::open_at(&place).await.map_err(Error::Store)?;
    info!(store = %place, engine = store.engine().name(), provisioner = config.name, "store is open");
    let mut registry = Registry::default();
    let metrics = ProvisionerMetrics::register(&mut registry, &crate::BUILD);
    let counted = metrics.clone();
    let observer = Observer::new(move |fact| count(&counted, &fact));
    let mut tasks = Supervisor::default();
    let listen = config.listen.as_ref();
    let identity = listen.and_then(|l| l.tls.clone());
    let identity = identity
        .map(|files| identity::keep::<tls::Server>(files, &metrics.certificate, &mut tasks))
        .transpose()
        .map_err(Error::Identity)?;
    let doors = Doors::open_with(Some(&config.socket), listen.map(|l| l.at), identity)
        .await
        .map_err(Error::Door)?;
    let grants = watch::Sender::new(Arc::new(config.directors.clone()));
    let granted = grants.subscribe();
    let in_force = config.clone();
    tasks.start("directors", |stop| {
        directors(file, in_force, hangup, grants, stop)
    });
    let metrics_listener = match config.metrics {
        None => None,
        Some(at) => {
            let bound = TcpListener::bind(at).await;
            Some(bound.map_err(|source| Error::Metrics { at, source })?)
        }
    };
    let fingerprint = key.fingerprint();
    let ssh = SshHands {
        key,
        user: config.ssh.user.clone(),
        elevate: config.ssh.user != "root",
        connect_timeout: config.ssh.connect_timeout,
        base: step::BASE.to_owned(),
        host_keys: step::HOST_KEYS.to_owned(),
        prober: Checks,
        lines: step::Lines::default(),
    };
    let look: Arc<dyn step::Look> = Arc::new(ssh.clone());
    let hands = Arc::new(Installer {
        hands: ssh,
        ledger: store.clone(),
        credentials: config.credentials.clone(),
        pace: Pace::STANDARD,
    });

    let secrets = Secrets {
        dir: config.secrets_dir.clone(),
    };
    let (s, h, o, name) = (
        store.clone(),
        Arc::clone(&hands),
        observer.clone(),
        config.name.clone(),
    );
    let own = secrets.clone();
    tasks.start("engine", |stop| async move {
        if let Err(e) = engine::run(s, h, &name, Settings::STANDARD, own, o, stop).await {
            error!(error = %Chain(&e), "engine stopped");
        }
    });
    let (s, o) = (store.clone(), observer.clone());
    let keeping = keeper::Settings {
        rehearse: config.rehearse,
        ..keeper::Settings::STANDARD
    };
    tasks.start("keeper", |stop| {
        keeper::run(s, hands, keeping, secrets, o, stop)
    });
    let app = App {
        // Directors that ask much hold up neither engine nor keeper.
        store: store.apart(),
        name: config.name.clone(),
        addresses: config.addresses(),
        observer,
        grants: granted,
        look,
        secrets: Secrets {
            dir: config.secrets_dir,
        },
    };
    tasks.start("api", |stop| api::serve(doors, app, stop));
    let (heartbeat, heartbeat_rx) = watch::channel(clock::now());
    let (trouble, trouble_rx) = watch::channel(None);
    if let Some(listener) = metrics_listener {
        let health = Health {
            heartbeat: heartbeat_rx.clone(),
            trouble: trouble_rx,
        };
        let registry = Arc::new(registry);
        tasks.start("metrics", |stop| {
            telemetry::serve(listener, registry, health, stop)
        });
    }
    tasks.start("watchdog", |stop| systemd::watchdog(heartbeat_rx, stop));
    tasks.start("gauges", |stop| {
        gauges(store, metrics, heartbeat, trouble, stop)
    });
    systemd::ready();
    info!(address = %config.address, socket = %config.socket.display(), key = %fingerprint, "provisioner is ready");
    let ended = tasks.run(signal, GRACE).await;
    systemd::stopping();
    info!("provisioner stopped; running scripts go on and are found again");
    ended.map_err(Error::Ended)
}

/// Reads on SIGHUP which directors may ask over TLS, until `stop`. What else is new waits for a restart.
async fn directors(
    file: PathBuf,
    in_force: config::Provisioner,
    mut hangup: Signal,
    grants: watch::Sender<Arc<Vec<Grant>>>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // Cancel-safe: a signal is taken where it is returned.
            came = hangup.recv() => if came.is_none() {
                return stop.cancelled().await;
            },
        }
        let path = file.clone();
        // Off this thread: a file system may hang.
        let read = spawn_blocking(move || {
            let text = reload::read(&path)?;
            config::provisioner::parse(&path, &text).map_err(|e| e.to_string())
        });
        let read = tokio::select! {
            () = stop.cancelled() => return,
            read = read => read,
        };
        match read.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(config) => {
                let (directors, rest) = (Arc::new(config.directors.clone()), config);
                let rest = config::Provisioner {
                    directors: in_force.directors.clone(),
                    ..rest
                };
                if rest != in_force {
                    warn!(
                        "the configuration was read again for [[director]] alone: what else is new in it waits for a restart"
                    );
                }
                info!(
                    directors = directors.len(),
                    "who may ask over TLS was read anew"
                );
                grants.send_replace(directors);
            }
            Err(wrong) => {
                error!(
                    "who may ask over TLS is as before, the new configuration is wrong: {wrong}"
                );
            }
        }
    }
}

/// Where the store is, as configured.
///
/// # Errors
///
/// [`Error::Password`].
pub fn place(config: &config::Provisioner) -> Result<Place, Error> {
    Ok(match &config.store {
        None => Place::File(config.state_dir.join("understudy.db")),
        Some(server) => Place::Server {
            url: server.url.clone(),
            password: Passwords::Configured(server.password.as_deref()).read()?,
        },
    })
}

/// Where a store's password is.
#[derive(Clone, Copy, Debug)]
pub enum Passwords<'a> {
    /// In this file, or in the unit's credential, if in any.
    Configured(Option<&'a Path>),
    /// In this file, if in any.
    Named(Option<&'a Path>),
}

impl Passwords<'_> {
    /// Reads it; a line's end behind it is none of it.
    ///
    /// # Errors
    ///
    /// [`Error::Password`].
    pub fn read(self) -> Result<Option<String>, Error> {
        let path = match self {
            Self::Configured(None) => systemd::credential("store_password"),
            Self::Configured(path) | Self::Named(path) => path.map(Path::to_owned),
        };
        let Some(path) = path else { return Ok(None) };
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|source| Error::Password { path, source })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// What `/healthz` says.
const AWAY: &str = "the store is away";

/// Reads the gauges from the store, and says whether it answers. The heart beats with the asking, not with the answer:
/// to be started again does not bring a database back.
async fn gauges(
    store: Store,
    metrics: ProvisionerMetrics,
    heartbeat: watch::Sender<MonoTime>,
    trouble: watch::Sender<Option<&'static str>>,
    stop: CancellationToken,
) {
    metrics.set_store(true);
    loop {
        // Longer than the heart may be silent is no answer either.
        let read = time::timeout(PATIENCE, read_gauges(&store, &metrics)).await;
        let away = match read {
            Ok(Ok(())) => false,
            Ok(Err(e)) => {
                // The engine says that it is away, once.
                if !e.is_away() {
                    warn!(error = %Chain(&e), "store could not be read");
                }
                true
            }
            Err(_elapsed) => true,
        };
        metrics.set_store(!away);
        trouble.send_if_modified(|now| {
            let new = away.then_some(AWAY);
            std::mem::replace(now, new) != new
        });
        heartbeat.send_replace(clock::now());
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
        Fact::LeaseLost => metrics.lease_lost(),
        Fact::Readiness(roles) => metrics.set_roles(roles),
    }
}
