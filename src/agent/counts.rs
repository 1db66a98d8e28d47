//! What the kernel counts of destinations, for operators.

use std::collections::BTreeMap;

use tokio::{sync::Mutex, task};

use crate::{
    api::operator::{self, Counted, Found},
    director::explain::Counts,
    ipvs::{Error, Ipvs},
    model::{DestState, ServiceKey},
    telemetry::Chain,
};

/// Asks the kernel over a socket of its own, which only reads.
#[derive(Debug, Default)]
pub(super) struct KernelCounts(Mutex<Option<Ipvs>>);

impl operator::Kernel for KernelCounts {
    fn count(&self, services: Vec<ServiceKey>) -> Found<'_, Counted> {
        Box::pin(async move {
            let counted = self.read(&services).await;
            counted.map_err(|e| Chain(&e).to_string())
        })
    }
}

impl KernelCounts {
    async fn read(&self, services: &[ServiceKey]) -> Result<Counted, Error> {
        let mut kept = self.0.lock().await;
        // After an error the next one gets another socket.
        let mut kernel = match kept.take() {
            Some(kernel) => kernel,
            None => Ipvs::connect().await?.without_counters(),
        };
        let mut all = Counted::new();
        for service in services {
            let dests = kernel.dests(*service).await?;
            let of = |state: DestState| Counts {
                weight: state.attrs.weight.get(),
                active: state.active_connections,
                inactive: state.inactive_connections,
                persistent: state.persistent_connections,
            };
            let dests: BTreeMap<_, _> = dests.into_iter().map(|(d, s)| (d, of(s))).collect();
            all.insert(*service, dests);
            // The kernel answers within the call: others have their turn between two services.
            task::yield_now().await;
        }
        *kept = Some(kernel);
        Ok(all)
    }
}
