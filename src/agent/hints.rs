//! Reasons to ask servers now: a link that went down, a neighbour that stopped answering. And who cannot be
//! asked: servers behind links without carrier.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    select,
    sync::{mpsc, watch},
    task,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    check::{Nudge, Targets},
    director::Event,
    model::HostAddress,
    rtnl::{self, Change, Changes},
    telemetry::Chain,
};

/// Addresses are read again no sooner than this; and a neighbour that is none of the servers hurries the
/// servers in other networks no sooner: a scan makes a failed neighbour of every address.
const AGAIN: Duration = Duration::from_secs(1);

/// Tells the checks until `stop`. A kernel that cannot be listened to costs quickness, nothing else.
pub(super) async fn run(
    mut targets: watch::Receiver<Arc<Targets>>,
    nudges: mpsc::Sender<Nudge>,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let mut changes = match Changes::listen() {
        Ok(changes) => changes,
        Err(error) => {
            warn!(error = %Chain(&error), "links and neighbours cannot be watched: their failures are found at the next interval");
            return stop.cancelled().await;
        }
    };
    // As they were before the change: a link that is removed takes its addresses with it.
    let mut here = addresses().await;
    let mut read_at = Instant::now();
    let mut far_at: Option<Instant> = None;
    let mut down = Down::default();
    for index in changes.down() {
        down.went_down(*index, &here);
    }
    let mut told = BTreeMap::new();
    loop {
        let cut = down.cut(&here, &servers(&targets.borrow_and_update()));
        if cut != told {
            told.clone_from(&cut);
            if events.send(Event::CutOff(cut)).await.is_err() {
                return;
            }
        }
        // A link that takes the place of one that is gone says so when it comes up, before it has addresses.
        let look = read_at + AGAIN;
        let news = select! {
            () = stop.cancelled() => return,
            // Cancel-safe, all: a datagram is taken only where it is returned or says nothing, and `changed` only
            // marks the value seen. Others may be behind a link that is down.
            news = changes.next() => news,
            () = time::sleep_until(look), if !told.is_empty() => {
                here = addresses().await;
                read_at = Instant::now();
                continue;
            }
            changed = targets.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let news = match news {
            Ok(news) => news,
            Err(error) => {
                warn!(error = %Chain(&error), "links and neighbours can no longer be watched: their failures are found at the next interval");
                // Nobody would hear that a link is up again.
                drop(events.send(Event::CutOff(BTreeMap::new())).await);
                return stop.cancelled().await;
            }
        };
        let servers = servers(&targets.borrow());
        for change in news {
            match change {
                Change::LinkDown(index) => down.went_down(index, &here),
                Change::LinkUp(index) => down.went_up(index),
                Change::NeighbourFailed(_) => {}
            }
            let behind = behind(change, &here, &servers);
            if behind.is_empty() {
                continue;
            }
            if let Change::NeighbourFailed(addr) = change
                && !servers.contains(&addr)
            {
                if far_at.is_some_and(|at| at.elapsed() < AGAIN) {
                    continue;
                }
                far_at = Some(Instant::now());
            }
            if let Change::LinkDown(_) = change {
                info!(
                    ?change,
                    servers = behind.len(),
                    "a link went down: the servers behind it are asked at once"
                );
            } else {
                debug!(
                    ?change,
                    servers = behind.len(),
                    "a neighbour fails: servers are asked at once"
                );
            }
            Nudge::Servers(behind).send(&nudges);
        }
        if read_at.elapsed() > AGAIN {
            here = addresses().await;
            read_at = Instant::now();
        }
    }
}

/// Links without carrier, with the addresses that they had.
#[derive(Debug, Default)]
struct Down(BTreeMap<u32, Vec<HostAddress>>);

impl Down {
    fn went_down(&mut self, index: u32, here: &[HostAddress]) {
        let own = here.iter().filter(|a| a.index == index).cloned();
        self.0.insert(index, own.collect());
    }

    fn went_up(&mut self, index: u32) {
        self.0.remove(&index);
    }

    /// The servers in networks of these links alone, each with the interface.
    fn cut(&self, here: &[HostAddress], servers: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, String> {
        if self.0.is_empty() {
            return BTreeMap::new();
        }
        let live = here.iter().filter(|a| !self.0.contains_key(&a.index));
        let live: Vec<HostAddress> = live.cloned().collect();
        let dead: Vec<HostAddress> = self.0.values().flatten().cloned().collect();
        let cut = servers.iter().filter_map(|server| {
            let through = HostAddress::towards(&dead, *server)?;
            let around = HostAddress::towards(&live, *server);
            let is_own = live.iter().any(|a| a.addr == *server);
            (around.is_none() && !is_own).then(|| (*server, through.interface.clone()))
        });
        cut.collect()
    }
}

/// Everybody who is asked, wherever the check goes.
fn servers(targets: &Targets) -> BTreeSet<IpAddr> {
    let slots = targets.iter().flat_map(|target| target.slots.iter());
    slots.map(|slot| slot.dest.addr).collect()
}

async fn addresses() -> Vec<HostAddress> {
    let read = task::spawn_blocking(rtnl::host_addresses).await;
    read.ok().and_then(Result::ok).unwrap_or_default()
}

/// The servers that a change may have cut off: those of the link's networks and, as they may be behind
/// a router there, those that are in no network of this host's.
fn behind(change: Change, here: &[HostAddress], servers: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let towards = |server: &IpAddr| HostAddress::towards(here, *server);
    let own = |server: &IpAddr| here.iter().any(|a| a.addr == *server);
    let far = |server: &IpAddr| towards(server).is_none() && !own(server);
    let cut = |server: &&IpAddr| match change {
        Change::LinkDown(index) => towards(server).is_some_and(|a| a.index == index) || far(server),
        Change::NeighbourFailed(addr) if servers.contains(&addr) => **server == addr,
        // Perhaps a router.
        Change::NeighbourFailed(_) => far(server),
        Change::LinkUp(_) => false,
    };
    servers.iter().filter(cut).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_behind_a_link_without_carrier_alone_is_cut_off() {
        let at = |addr: &str, index| HostAddress {
            addr: addr.parse().unwrap(),
            prefix: 24,
            index,
            interface: format!("eth{index}"),
        };
        let here = [at("10.0.1.1", 1), at("10.0.2.1", 2)];
        let servers = ["10.0.1.7", "10.0.2.7", "198.51.100.7"];
        let servers = servers.map(|a| a.parse().unwrap()).into();
        let mut down = Down::default();
        assert_eq!(down.cut(&here, &servers), BTreeMap::new());
        down.went_down(1, &here);
        let cut = |down: &Down, here: &[HostAddress]| {
            let cut = down.cut(here, &servers).into_iter();
            cut.map(|(a, i)| format!("{a} {i}")).collect::<Vec<_>>()
        };
        assert_eq!(cut(&down, &here), ["10.0.1.7 eth1"]);
        assert_eq!(
            cut(&down, &here[1..]),
            ["10.0.1.7 eth1"],
            "its addresses are gone"
        );
        let moved = [at("10.0.1.2", 3), at("10.0.2.1", 2)];
        assert!(cut(&down, &moved).is_empty(), "another link leads there");
        down.went_up(1);
        assert!(cut(&down, &here).is_empty());
    }

    #[test]
    fn who_may_be_cut_off_is_asked() {
        let here = [("10.0.1.1", 1), ("10.0.2.1", 2)].map(|(addr, index)| HostAddress {
            addr: addr.parse().unwrap(),
            prefix: 24,
            index,
            interface: format!("eth{index}"),
        });
        let set =
            |all: &[&str]| -> BTreeSet<IpAddr> { all.iter().map(|a| a.parse().unwrap()).collect() };
        let servers = set(&[
            "10.0.1.7",
            "10.0.1.8",
            "10.0.2.7",
            "198.51.100.7",
            "10.0.2.1",
        ]);
        let behind = |change| behind(change, &here, &servers);
        let failed = |addr: &str| Change::NeighbourFailed(addr.parse().unwrap());
        assert_eq!(
            behind(Change::LinkDown(1)),
            set(&["10.0.1.7", "10.0.1.8", "198.51.100.7"])
        );
        assert_eq!(behind(Change::LinkDown(3)), set(&["198.51.100.7"]));
        assert_eq!(behind(failed("10.0.1.8")), set(&["10.0.1.8"]));
        assert_eq!(behind(failed("10.0.1.254")), set(&["198.51.100.7"]));
    }
}
