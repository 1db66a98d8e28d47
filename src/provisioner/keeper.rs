//! Keeps the pool: looks at spares before they are needed, puts away what installations have left, ends quarantines, and
//! says where spares are short.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    engine::{Fact, Observer},
    order::{Hands, Order, Step},
    plan::{PoolServer, World},
    sealed::{Masks, digests},
    secrets::Secrets,
    store::{Rehearsed, Store, StoreError, new_id},
    upkeep::{InHand, Upkeep},
};
use crate::{
    clock,
    model::{
        WallMillis,
        inventory::{Server, ServerState},
        wire::RoleView,
    },
    telemetry::Chain,
};

/// How the pool is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Each spare is looked at so often; never where there is none.
    pub rehearse: Option<Duration>,
    /// How often it is seen what is due.
    pub turn: Duration,
}

impl Settings {
    /// A day has time for a second look before anybody is woken.
    pub const STANDARD: Self = Self {
        rehearse: Some(Duration::from_secs(3600)),
        turn: Duration::from_secs(5),
    };
}

/// Spares looked at at the same time.
const AT_ONCE: usize = 4;

/// What an installation has left is tried to be put away so often: as long as the first quarantine lasts. A controller that
/// is told a wrong password more often locks the account.
const TIDY: Duration = Duration::from_secs(600);

/// A look is over after this, whatever the hands' own limits.
const LIMIT: Duration = Duration::from_secs(60);

/// A look of which nothing was noted by then was cut off: its provisioner ended, or the store was away. It is made again.
const CUT_OFF: Duration = Duration::from_secs(90);

/// What was said, of each role and of what.
type Told = BTreeMap<String, String>;

/// Works until `stop`.
pub async fn run<H: Hands>(
    store: Store,
    hands: Arc<H>,
    settings: Settings,
    secrets: Secrets,
    observer: Observer,
    stop: CancellationToken,
) {
    let mut told = Told::new();
    let mut lacks = Told::new();
    let mut fails = false;
    loop {
        let turn = async {
            tidy(&store, &hands).await?;
            end_quarantines(&store).await?;
            if let Some(every) = settings.rehearse {
                rehearse(&store, &hands, every).await?;
            }
            // Before the pool: what ends between the two readings is seen in hand still, not as if it were missing.
            let in_hand = store.upkeep_in_hand().await?;
            let mut world = store.world().await?;
            world.secrets = digests(&secrets.known(world.secret_names()));
            tell(store.readiness(&world).await?, &mut told, &observer);
            begin_upkeep(&store, &world, &in_hand, &secrets, &mut lacks).await?;
            Ok::<(), StoreError>(())
        };
        let ended = tokio::select! {
            // A look that is cut off is looked at again at the next turn that is due.
            () = stop.cancelled() => return,
            ended = turn => ended,
        };
        match ended {
            Ok(()) => fails = false,
            // The engine and the gauges say the same: once is enough.
            Err(e) if !fails => {
                fails = true;
                warn!(error = %Chain(&e), "pool cannot be kept: spares are neither looked at nor made ready until the store answers");
            }
            Err(_known) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(settings.turn) => {}
        }
    }
}

/// Puts away what installations have left behind that nobody goes on with.
async fn tidy<H: Hands>(store: &Store, hands: &Arc<H>) -> Result<(), StoreError> {
    let due = store.begin_tidying(before(TIDY)).await?;
    if due.is_empty() {
        return Ok(());
    }
    let mut world = store.world().await?;
    let mut tidying = JoinSet::new();
    for name in due {
        let Some(s) = world.servers.remove(&name) else {
            continue;
        };
        let hands = Arc::clone(hands);
        tidying.spawn(async move {
            match timeout(LIMIT, hands.tidy(&s.server)).await {
                Ok(Ok(())) => {
                    info!(server = name, "what an installation left is put away");
                }
                Ok(Err(e)) => {
                    warn!(server = name, reason = %e, "a boot override or image may be left: look at it, or release the spare when it is gone; it is tried again");
                }
                Err(_elapsed) => {
                    warn!(server = name, "a boot override or image may be left: its driver is slow; it is tried again");
                }
            }
        });
    }
    while let Some(ended) = tidying.join_next().await {
        match ended {
            Ok(()) => {}
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // Only this function could abort one, by being dropped.
            Err(_cut_off) => {}
        }
    }
    Ok(())
}

/// So long ago.
fn before(every: Duration) -> WallMillis {
    let ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
    WallMillis(clock::wall().0.saturating_sub(ms))
}

async fn end_quarantines(store: &Store) -> Result<(), StoreError> {
    for server in store.end_quarantines().await? {
        info!(
            server,
            "quarantine is over: it is a spare again, after its cleaning where its role has one"
        );
    }
    Ok(())
}

/// What is begun here is done by the engine, this one's or another provisioner's.
async fn begin_upkeep(
    store: &Store,
    world: &World,
    in_hand: &InHand,
    secrets: &Secrets,
    lacks: &mut Told,
) -> Result<(), StoreError> {
    let before = std::mem::take(lacks);
    for (name, s) in &world.servers {
        let Some(reason) = world.uncleanable(s) else {
            continue;
        };
        let what = format!("server {name}");
        if before.get(&what) != Some(&reason) {
            warn!(server = name, reason, "server stays out of use");
        }
        lacks.insert(what, reason);
    }
    for upkeep in world.upkeep(in_hand) {
        let work = upkeep.kind.as_str();
        let id = new_id(work)?;
        let Some(mut steps) = world.upkeep_steps(&upkeep, id.as_str()) else {
            continue;
        };
        let names = steps.iter().flat_map(Step::secrets);
        match secrets.read(names.map(|s| s.name.as_str())) {
            Ok(values) => {
                let now = digests(&values);
                steps.iter_mut().for_each(|step| step.seal(&now));
            }
            // A spare in hand that cannot go on is of use to nobody.
            Err(e) => {
                let (role, reason) = (upkeep.role, Chain(&e).to_string());
                if before.get(&role) != Some(&reason) {
                    warn!(
                        role,
                        reason, "spare cannot be made ready before it is needed"
                    );
                }
                lacks.insert(role, reason);
                continue;
            }
        }
        if store.begin_upkeep(&id, &upkeep, &steps).await? {
            let Upkeep { server, role, .. } = upkeep;
            info!(server, role, work, %id, "server is taken in hand before it is needed");
        }
    }
    Ok(())
}

/// Whether a server is looked at before it is needed.
fn is_spare(s: &PoolServer) -> bool {
    let spare = matches!(s.state, ServerState::Ready | ServerState::Standby);
    spare && s.keeping.maintenance.is_none()
}

async fn rehearse<H: Hands>(
    store: &Store,
    hands: &Arc<H>,
    every: Duration,
) -> Result<(), StoreError> {
    let before = before(every);
    let world = store.world().await?;
    let due = world.servers.values().filter(|s| {
        let last = s.keeping.rehearsed_at;
        is_spare(s) && last.is_none_or(|last| last <= before)
    });
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut looks = JoinSet::new();
    for s in due {
        let (store, hands, places) = (store.clone(), Arc::clone(hands), Arc::clone(&places));
        let server = s.server.clone();
        looks.spawn(async move {
            // Never closed.
            let _place = places.acquire().await;
            look(&store, &*hands, server, before).await
        });
    }
    while let Some(ended) = looks.join_next().await {
        match ended {
            Ok(looked) => looked?,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // Only this function could abort one, by being dropped.
            Err(_cut_off) => {}
        }
    }
    Ok(())
}

async fn look<H: Hands>(
    store: &Store,
    hands: &H,
    server: Server,
    before: WallMillis,
) -> Result<(), StoreError> {
    // Another provisioner may be about to.
    let until = clock::wall().after(CUT_OFF);
    if !store.begin_rehearsal(&server.name, before, until).await? {
        return Ok(());
    }
    let order = Order {
        server,
        fence: 0,
        step: Step::Look,
        masks: Masks::default(),
    };
    let found = match timeout(LIMIT, hands.perform(&order, &drop)).await {
        Ok(Ok(done)) => Rehearsed {
            os: done.os,
            trouble: None,
        },
        Ok(Err(e)) => Rehearsed {
            os: None,
            trouble: Some(e.to_string()),
        },
        Err(_elapsed) => Rehearsed {
            os: None,
            trouble: Some(format!("overran: not ended after {} s", LIMIT.as_secs())),
        },
    };
    let name = &order.server.name;
    if store.rehearsed(name, &found).await? {
        match &found.trouble {
            Some(trouble) => warn!(
                server = name,
                reason = trouble,
                "spare could not be used now: put it right before it is needed"
            ),
            None => info!(server = name, "spare could be used again"),
        }
    }
    Ok(())
}

/// Says what is new: once where it begins, once where it ends.
fn tell(views: Vec<RoleView>, told: &mut Told, observer: &Observer) {
    let mut now = Told::new();
    for view in &views {
        let (role, usable) = (&view.role, view.usable);
        let (is_stopped, is_short) = (format!("{role} stopped"), format!("{role} short"));
        match &view.stopped {
            Some(reason) if told.get(&is_stopped) != Some(reason) => {
                warn!(role, reason, "role is stopped");
            }
            None if told.contains_key(&is_stopped) => info!(role, "role is not stopped any more"),
            _ => {}
        }
        match &view.short {
            Some(reason) if told.get(&is_short) != Some(reason) => {
                warn!(role, reason, "role is short of spares");
            }
            None if told.contains_key(&is_short) => {
                info!(role, usable, "role has enough spares again");
            }
            _ => {}
        }
        let both = [(is_stopped, &view.stopped), (is_short, &view.short)];
        now.extend(
            both.into_iter()
                .filter_map(|(what, reason)| Some((what, reason.clone()?))),
        );
    }
    *told = now;
    observer.tell(Fact::Readiness(views));
}

#[cfg(test)]
mod tests;
