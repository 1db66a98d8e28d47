//! Reads services of the kernel over a socket of its own: nobody who writes waits for it.

use crate::{
    ipvs::{Error, Ipvs},
    model::{KernelTable, ServiceKey},
};

/// A socket that only reads; another one after each failure.
#[derive(Debug, Default)]
pub(super) struct Reader(Option<Ipvs>);

impl Reader {
    /// What the kernel has of these services, without counters.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub(super) async fn read(&mut self, keys: &[ServiceKey]) -> Result<KernelTable, Error> {
        if keys.is_empty() {
            return Ok(KernelTable::new());
        }
        let mut kernel = match self.0.take() {
            Some(kernel) => kernel,
            None => Ipvs::connect().await?.without_counters(),
        };
        let table = kernel.read(keys).await?;
        self.0 = Some(kernel);
        Ok(table)
    }
}
