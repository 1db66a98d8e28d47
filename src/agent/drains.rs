//! Counts the connections of those who leave when they have none.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::reader::Reader;
use crate::{
    director::{Connections, Event, stopping::connections},
    ipvs::Error,
    model::{OrderedPlace, ServiceKey, Weight},
    telemetry::Chain,
};

/// Between two counts.
const PAUSE: Duration = Duration::from_secs(1);

/// Counts until `stop`, as long as somebody is drained.
pub(super) async fn run(
    mut draining: watch::Receiver<BTreeSet<OrderedPlace>>,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let work = async {
        let mut kernel = Reader::default();
        let mut blind = false;
        loop {
            let places = draining.borrow_and_update().clone();
            if places.is_empty() {
                if draining.changed().await.is_err() {
                    return;
                }
                continue;
            }
            match count(&mut kernel, &places).await {
                Ok(counts) => {
                    if blind {
                        info!("connections of servers that are drained can be counted again");
                    }
                    blind = false;
                    if events.send(Event::Counted(counts)).await.is_err() {
                        return;
                    }
                }
                Err(e) => {
                    if !blind {
                        warn!(error = %Chain(&e), "connections of servers that are drained cannot be counted: they leave when their time is over");
                    }
                    blind = true;
                }
            }
            time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        // Cancel-safe: it only reads.
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn count(kernel: &mut Reader, places: &BTreeSet<OrderedPlace>) -> Result<Connections, Error> {
    let services: BTreeSet<ServiceKey> = places.iter().map(|place| place.service).collect();
    let services: Vec<ServiceKey> = services.into_iter().collect();
    let table = kernel.read(&services).await?;
    let mut counts = BTreeMap::new();
    for place in places {
        let service = table.get(&place.service);
        match service.and_then(|service| service.dests.get(&place.server)) {
            None => drop(counts.insert(*place, None)),
            // Before it is drained in the kernel too, none says nothing: the next client may be its own.
            Some(state) if state.attrs.weight != Weight::QUIESCED => {}
            Some(state) => drop(counts.insert(*place, Some(connections(place.service, state)))),
        }
    }
    Ok(counts)
}
