//! Puts the director's tasks and channels together.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{debug, info, warn};

use super::{
    access, addresses,
    core::{Inputs, Outputs, Shell},
    counts::KernelCounts,
    drains, hints,
    host::Host,
    identity, link, lock, reload,
    state_file::{self, StateFile},
    stop::{Signals, WindDown},
    ways::KernelWays,
    witnesses,
};
use crate::{
    api::{
        client::Client,
        operator::{self, Admission, Desk},
    },
    check, clock,
    director::{Core, Recall, Start},
    hooks::{self, Told},
    http::{DoorError, Doors},
    ipvs::{self, Ipvs},
    model::ServiceKey,
    prepare::Unprepared,
    reconcile::{
        plan::Applied,
        task::{self, Fact, PassEnd},
    },
    supervise::{Exit, Supervisor},
    systemd,
    telemetry::{
        self,
        metrics::{DeliveryResult, DirectorMetrics, HookMetrics, PassResult, StepResult, Untold},
    },
    tls,
};

/// Reports of checks that wait for the core: most of a second's worth at ten thousand a second.
const REPORTS: usize = 8192;

/// Hints to the checks that wait: what finds no room is asked at its regular time.
const NUDGES: usize = 256;

/// Answers of the provisioner that wait for the core.
const EVENTS: usize = 64;

/// Reloads that wait: operators are few.
const RELOADS: usize = 4;

/// A pass that failed is repeated after this.
const RETRY: Duration = Duration::from_secs(1);

/// Tasks end within this after the stop.
const GRACE: Duration = Duration::from_secs(5);

/// Why the director does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock.
    #[error("the director must be the only one with its socket")]
    Lock(#[source] lock::Error),
    /// The state file.
    #[error("the director's memory could not be opened")]
    State(#[source] state_file::Error),
    /// The kernel.
    #[error("IPVS could not be read at the start; nothing was changed")]
    Kernel(#[source] ipvs::Error),
    /// What the provisioner is to know it by.
    #[error("certificate, key or authorities of [provisioner.tls] cannot be used")]
    Identity(#[source] Unprepared),
    /// The operator socket.
    #[error("the operator socket cannot listen")]
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
    /// This host says no boot id.
    #[error("this boot cannot be told from others")]
    Boot(#[source] clock::NoBootId),
    /// A task ended.
    #[error("the director stopped out of order")]
    Ended(#[source] Exit),
    /// Signals.
    #[error("signals cannot be waited for")]
    Signals(#[source] std::io::Error),
}

/// Runs a director until it is told to stop. IPVS stays as it is, unless its configuration says otherwise. `file` is where its configuration came from,
/// and is read again at a reload.
///
/// # Errors
///
/// What kept it from starting, or the task that ended.
pub async fn run(file: PathBuf, loaded: reload::Loaded) -> Result<(), Error> {
    let config = Arc::new(loaded.config);
    let shadow = config.shadow;
    if shadow {
        info!(socket = %config.socket.display(), "shadow: this director changes nothing in IPVS, and tells what it would make otherwise");
    }
    let signals = Signals::listen().map_err(Error::Signals)?;
    // Before it says that it is ready: a reload by signal would end it.
    let hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    // Before it touches anything that another director could be using.
    let lock = lock::take(&config).await.map_err(Error::Lock)?;
    let (mut memory, recall) =
        StateFile::open(&config.state_dir, &config.name).map_err(Error::State)?;
    if let (Recall::Forgot(why), Some(_)) = (&recall, &config.provisioner) {
        warn!(reason = %why, "state file says nothing: destinations that the configuration does not name keep their place until the provisioner has answered");
    }
    let mut registry = Registry::default();
    let metrics = DirectorMetrics::register(&mut registry, &crate::BUILD);
    metrics.set_config(&loaded.digest);
    let counted = metrics.clone();
    let mut kernel = Ipvs::connect()
        .await
        .map_err(Error::Kernel)?
        .without_counters()
        .with_observer(Arc::new(move |operation, result| {
            counted.netlink_request(operation, result)
        }));
    let keys: Vec<ServiceKey> = config.services.keys().copied().collect();
    // At once, however many services there are; those that are not ours are dropped.
    let mut found = kernel.table().await.map_err(Error::Kernel)?;
    let marked = |key: &&ServiceKey| matches!(key, ServiceKey::Fwmark(_, m) if config.probe_marks.contains(*m));
    let marked: BTreeSet<ServiceKey> = found.keys().filter(marked).copied().collect();
    let owned = match &recall {
        Recall::Known(memory) => memory.services.clone(),
        Recall::Forgot(_) => BTreeSet::new(),
    };
    let dropped = found
        .iter()
        .filter(|(key, _)| owned.contains(key) && !config.services.contains_key(key));
    let dropped = dropped
        .map(|(key, service)| (*key, service.plain()))
        .collect();
    found.retain(|key, _| config.services.contains_key(key));
    // After IPVS was looked up, which loads it and brings its settings; before the first change.
    let mut host = Host::new(Arc::clone(&config), metrics.clone());
    let (host_tx, host_rx) = watch::channel(host.pass());
    let adopted = found
        .into_iter()
        .map(|(k, s)| (k, s.dests.into_iter().map(|(d, s)| (d, s.attrs)).collect()))
        .collect();
    let start = Start {
        now: clock::now(),
        wall: clock::wall(),
        boot_id: clock::boot_id().map_err(Error::Boot)?,
        recall,
        kernel: adopted,
        dropped,
        marked,
    };
    let core = Core::new(Arc::clone(&config), start);
    for key in config.services.keys() {
        metrics.set_quorum_held(*key, core.quorum(*key).is_held());
    }
    // Before the kernel has any of them: what is not remembered is not removed later.
    if !core.made().is_empty() && core.may_write_memory() {
        memory.keep(core.memory()).map_err(Error::State)?;
    }

    let out = Outputs::of(&core);
    let heartbeat = out.heartbeat.subscribe();
    let (addresses_tx, addresses_rx) = watch::channel(Vec::new());
    let (applied_tx, applied) = watch::channel(Applied::default());
    let (reports_tx, reports) = mpsc::channel(REPORTS);
    let (nudges_tx, nudges_rx) = mpsc::channel(NUDGES);
    let (events_tx, events) = mpsc::channel(EVENTS);
    let (questions_tx, questions) = mpsc::channel(16);
    let (asked_tx, asked) = mpsc::channel(RELOADS);
    let (loads_tx, loads) = mpsc::channel(RELOADS);
    let (stops_tx, stops) = mpsc::channel(1);
    let wind_down = WindDown {
        signals,
        core: stops_tx,
        desired: out.desired.subscribe(),
    };

    let (admission, admission_rx) = watch::channel(Admission::default());
    let operator = Doors::open(Some(&config.socket), None)
        .await
        .map_err(Error::Door)?;
    let metrics_listener = match config.metrics {
        None => None,
        Some(at) => Some(
            TcpListener::bind(at)
                .await
                .map_err(|source| Error::Metrics { at, source })?,
        ),
    };

    let mut tasks = Supervisor::default();
    let observe = facts_to(metrics.clone(), nudges_tx.clone());
    let desired = out.desired.subscribe();
    tasks.start("reconcile", |stop| {
        task::run(kernel, desired, applied_tx, RETRY, observe, stop)
    });
    let now = out.in_force.subscribe();
    tasks.start("host", |stop| host.run(now, host_tx, stop));
    let (draining, counts) = (out.draining.subscribe(), events_tx.clone());
    tasks.start("drains", |stop| drains::run(draining, counts, stop));
    let (witnesses, answers) = (out.witnesses.subscribe(), events_tx.clone());
    tasks.start("witnesses", |stop| witnesses::run(witnesses, answers, stop));
    tasks.start("reload", |stop| {
        reload::run((file, shadow), asked, hangup, loads_tx, stop)
    });
    let work = addresses::Work {
        wanted: out.addresses.subscribe(),
        applied: applied.clone(),
        warnings: addresses_tx,
        in_force: out.in_force.subscribe(),
        events: out.events.clone(),
        metrics: metrics.clone(),
    };
    tasks.start("addresses", |stop| addresses::run(work, stop));
    let targets = || out.targets.subscribe();
    let (files_rx, hints_rx, targets_rx) = (targets(), targets(), targets());
    let (to_files, to_hints) = (nudges_tx.clone(), nudges_tx);
    let cuts = events_tx.clone();
    tasks.start("files", |stop| check::watch_files(files_rx, to_files, stop));
    tasks.start("hints", |stop| hints::run(hints_rx, to_hints, cuts, stop));
    let observer = metrics.clone();
    let ways: Arc<dyn check::Ways> = Arc::new(KernelWays::default());
    tasks.start("checks", |stop| {
        check::run(ways, targets_rx, nudges_rx, reports_tx, observer, stop)
    });
    let identity = config.provisioner.as_ref().and_then(|p| p.tls.clone());
    let identity = identity
        .map(|files| identity::keep::<tls::Client>(files, &metrics.certificate, &mut tasks))
        .transpose()
        .map_err(Error::Identity)?;
    let provisioner = config.provisioner.clone().map(|to| {
        let client = Client::of(to.at.clone(), identity);
        let (c, l, e) = (out.in_force.subscribe(), client.clone(), events_tx.clone());
        tasks.start("stand-ins", |stop| link::follow(c, l, e, stop));
        let (c, outbox) = (Arc::clone(&config), out.outbox.subscribe());
        let to = (to, client.clone());
        tasks.start("requests", |stop| {
            link::deliver(c, to, outbox, events_tx, stop)
        });
        client
    });
    let registry = Arc::new(registry);
    if let Some(listener) = metrics_listener {
        let beat = heartbeat.clone();
        tasks.start("metrics", |stop| {
            telemetry::serve(listener, registry, beat.into(), stop)
        });
    }
    tasks.start("watchdog", |stop| systemd::watchdog(heartbeat, stop));
    let ring = out.events.subscribe();
    let (followed, told) = (ring.clone(), told_to(metrics.hooks.clone()));
    let now = out.in_force.subscribe();
    tasks.start("hooks", |stop| {
        hooks::run(now, |config| &config.hooks, followed, told, stop)
    });
    let (socket, now) = (config.socket.clone(), out.in_force.subscribe());
    tasks.start("access", |stop| access::run(socket, now, admission, stop));
    let desk = Desk {
        questions: questions_tx,
        readings: asked_tx,
        ring,
        admission: admission_rx,
        directory: Arc::new(access::Directory::default()),
        kernel: Arc::new(KernelCounts::default()),
        provisioner: provisioner.clone(),
    };
    tasks.start("operator", |stop| operator::serve(operator, desk, stop));
    let mut first_pass = applied.clone();
    tasks.start("ready", |stop| async move {
        if first_pass.changed().await.is_ok() {
            systemd::ready();
            info!("director is ready");
        }
        stop.cancelled().await;
    });
    let shell = Shell::new(core, (memory, lock), metrics, out);
    tasks.start("core", |stop| {
        shell.run(
            Inputs {
                reports,
                events,
                applied,
                questions,
                loads,
                stops,
                host: host_rx,
                addresses: addresses_rx,
            },
            stop,
        )
    });
    info!(director = %config.name, services = keys.len(), "director started");
    let ended = tasks.run(Box::pin(wind_down.run()), GRACE).await;
    systemd::stopping();
    info!("director stopped");
    ended.map_err(Error::Ended)
}

fn told_to(metrics: HookMetrics) -> hooks::Observe {
    Arc::new(move |hook, told| match told {
        Told::Ok => metrics.delivery(hook, DeliveryResult::Ok),
        Told::Failed => metrics.delivery(hook, DeliveryResult::Failed),
        Told::Dropped(events) => metrics.untold(hook, Untold::Dropped, events),
        Told::GaveUp(events) => metrics.untold(hook, Untold::GaveUp, events),
    })
}

fn facts_to(
    metrics: DirectorMetrics,
    nudges: mpsc::Sender<check::Nudge>,
) -> impl Fn(Fact) + Send + Sync {
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    move |fact| match fact {
        Fact::Pass(end) => metrics.pass(match end {
            PassEnd::Unchanged => PassResult::Unchanged,
            PassEnd::Applied => PassResult::Applied,
            PassEnd::Partial => PassResult::Partial,
            PassEnd::Unread => PassResult::Unread,
        }),
        Fact::Step(step, true, n) => metrics.steps(step, StepResult::Ok, n),
        Fact::Step(step, false, n) => metrics.steps(step, StepResult::Refused, n),
        Fact::Drift(policy, field, n) => metrics.drift(policy.label(), field.label(), n),
        Fact::Standing(n) => drop(metrics.drift_standing.set(number(n))),
        Fact::Stalled(dests) => {
            let servers: BTreeSet<_> = dests.iter().map(|d| d.addr).collect();
            debug!(
                ?dests,
                "connections of these servers do not come to stand, they are asked at once"
            );
            check::Nudge::Servers(servers).send(&nudges);
        }
        Fact::Foreign(services) => drop(metrics.foreign_services.set(number(services))),
    }
}
