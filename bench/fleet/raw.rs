//! The store alone: three provisioners that claim spares, and do nothing with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use understudy::{
    agent::link,
    model::{ReplacementId, wire::ReplacementRequest},
    provisioner::{
        folder,
        store::{Asked, Claim, Place, Store},
    },
};

use crate::director::Director;

/// Nobody else wants what is leased here.
const LEASE: Duration = Duration::from_secs(600);

/// As the engine has it.
const AT_ONCE: usize = 8;

/// What it came to.
pub(crate) struct Claims {
    pub(crate) asked: usize,
    pub(crate) asked_a_second: f64,
    pub(crate) claimed: usize,
    pub(crate) claimed_a_second: f64,
    /// How often another one was faster, and the choice was made anew.
    pub(crate) beaten: usize,
}

async fn open(url: &str) -> Store {
    let place = Place::Server {
        url: url.to_owned(),
        password: None,
    };
    Store::open_at(&place).await.unwrap()
}

fn per_second(n: usize, since: Instant) -> f64 {
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    let n = n as f64;
    n / since.elapsed().as_secs_f64()
}

/// In an empty database: every failed server is asked for, by as many tasks as there are directors, and one spare
/// after the other claimed for them until there is none.
pub(crate) async fn claims(url: &str, folder: &Path, directors: &[Director]) -> Claims {
    let inventory = folder::load(folder).unwrap();
    let stores = [open(url).await, open(url).await, open(url).await];
    stores[0].apply(&inventory, false, "bench").await.unwrap();
    for director in directors {
        let registration = link::registration(&director.config);
        let registered = stores[0].register(&director.name, &registration).await;
        registered.unwrap();
    }
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    for (n, director) in directors.iter().enumerate() {
        let (store, servers) = (stores[n % 3].clone(), director.servers.clone());
        let (name, director) = (director.name.clone(), director.config.address);
        asking.spawn(async move {
            let mut ids = Vec::new();
            for failed in servers {
                let body = ReplacementRequest {
                    failed,
                    director,
                    centre: director,
                    name: name.clone(),
                };
                let key = format!("{name}/{failed}/1");
                match store.ask(&key, &body).await.unwrap() {
                    Asked::Taken { replacement, .. } => ids.push((replacement.id, failed)),
                    other => panic!("{other:?}"),
                }
            }
            ids
        });
    }
    let ids: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
    let asked = ids.len();
    let asked_a_second = per_second(asked, begun);
    let failed: Arc<BTreeMap<ReplacementId, IpAddr>> = Arc::new(ids.into_iter().collect());
    let (claimed, beaten) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let begun = Instant::now();
    let mut provisioners = JoinSet::new();
    for (n, store) in stores.iter().enumerate() {
        let (store, failed) = (store.clone(), Arc::clone(&failed));
        let (claimed, beaten) = (Arc::clone(&claimed), Arc::clone(&beaten));
        provisioners.spawn(async move {
            let run = store.begin_run(&format!("centre-{n}")).await.unwrap();
            loop {
                let leases = store.lease(&run, LEASE, AT_ONCE).await.unwrap();
                if leases.is_empty() {
                    return;
                }
                let mut claiming = JoinSet::new();
                for lease in leases {
                    let (store, failed) = (store.clone(), failed[&lease.id]);
                    let (claimed, beaten) = (Arc::clone(&claimed), Arc::clone(&beaten));
                    claiming.spawn(async move {
                        let world = store.world().await.unwrap();
                        let brief = world.brief(failed, &[failed]).unwrap();
                        let job = format!("{}-1", lease.id);
                        let choose = |pool| {
                            let choice = world.choose(pool, &brief, &job).ok()?;
                            Some(Claim {
                                server: choice.spare.name,
                                role: brief.role.code.clone(),
                                steps: choice.steps,
                                rejected: choice.not,
                            })
                        };
                        let Some(first) = choose(world.pool()) else {
                            return;
                        };
                        let again = |free: &BTreeSet<String>| {
                            beaten.fetch_add(1, Ordering::Relaxed);
                            let mut pool = world.pool();
                            pool.retain(|c| free.contains(&c.name));
                            choose(pool)
                        };
                        if store.claim(&lease, first, again).await.unwrap().is_some() {
                            claimed.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                claiming.join_all().await;
            }
        });
    }
    provisioners.join_all().await;
    let claimed = claimed.load(Ordering::Relaxed);
    let result = Claims {
        asked,
        asked_a_second,
        claimed,
        claimed_a_second: per_second(claimed, begun),
        beaten: beaten.load(Ordering::Relaxed),
    };
    for store in &stores {
        store.close().await;
    }
    result
}
