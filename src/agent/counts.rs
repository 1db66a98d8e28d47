//! What the kernel counts of destinations, for operators.

use tokio::{sync::Mutex, task};

use super::reader::Reader;
use crate::{
    api::operator::{self, Counted, Found},
    director::explain::Counts,
    ipvs::Error,
    model::{DestState, ServiceKey},
    telemetry::Chain,
};

/// Asks the kernel over a socket of its own, which only reads.
#[derive(Debug, Default)]
pub(super) struct KernelCounts(Mutex<Reader>);

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
        let mut kernel = self.0.lock().await;
        let of = |state: DestState| Counts {
            weight: state.attrs.weight.get(),
            active: state.active_connections,
            inactive: state.inactive_connections,
            persistent: state.persistent_connections,
        };
        let mut all = Counted::new();
        for service in services {
            for (key, state) in kernel.read(&[*service]).await? {
                let dests = state.dests.into_iter();
                all.insert(key, dests.map(|(dest, state)| (dest, of(state))).collect());
            }
            // The kernel answers within the call: others have their turn between two services.
            task::yield_now().await;
        }
        Ok(all)
    }
}
