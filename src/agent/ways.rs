//! Whether the kernel still has a probe's hidden service.

use std::{future::Future, net::SocketAddr, pin::Pin};

use tokio::sync::Mutex;

use super::reader::Reader;
use crate::{
    check,
    model::{Family, ServiceKey, Weight},
};

/// Asks the kernel over a socket of its own.
#[derive(Debug, Default)]
pub(super) struct KernelWays(Mutex<Reader>);

impl check::Ways for KernelWays {
    fn stands(&self, at: SocketAddr, mark: u32) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(self.has(ServiceKey::Fwmark(Family::of(at.ip()), mark)))
    }
}

impl KernelWays {
    /// A kernel that cannot be asked says nothing, and so does the probe.
    async fn has(&self, key: ServiceKey) -> bool {
        let Ok(table) = self.0.lock().await.read(&[key]).await else {
            return false;
        };
        let dests = table.get(&key).map(|service| &service.dests);
        dests.is_some_and(|dests| dests.values().any(|d| d.attrs.weight != Weight::QUIESCED))
    }
}
