//! IPVS over generic netlink. [`Kernel`] is the seam for the reconciler, [`Ipvs`] the kernel behind
//! it, [`Error`] what a caller can act on; `codec` is PURE and knows the bytes.
//!
//! Facts that shape it (net/netfilter/ipvs/ip_vs_ctl.c, Linux 6.1): the family sends no
//! notifications; `ip_vs_genl_dump_dests` answers for a service that is not there with an empty list
//! and no error; dumps resume by position and do not say that the table changed meanwhile.

mod client;
pub mod codec;
mod error;
pub mod probe;

use std::future::Future;

pub use self::{
    client::{Ipvs, Observer},
    error::{Error, Request},
};
use crate::model::{KernelTable, ServiceKey, Step};

/// The kernel's table as the reconciler sees it. One owner, one request at a time.
pub trait Kernel: Send {
    /// Reads the whole table: the services, then the destinations of each. A service that vanished
    /// meanwhile is absent.
    fn table(&mut self) -> impl Future<Output = Result<KernelTable, Error>> + Send;

    /// Reads these services with their destinations; one that is not there is absent.
    fn read(
        &mut self,
        keys: &[ServiceKey],
    ) -> impl Future<Output = Result<KernelTable, Error>> + Send;

    /// Makes these changes in their order, each whether those before it went well or not, and says of
    /// each how it went: as many results as steps.
    fn apply(&mut self, steps: &[Step]) -> impl Future<Output = Vec<Result<(), Error>>> + Send;
}

impl Request {
    /// What a step asks of the kernel.
    #[must_use]
    pub const fn of(step: &Step) -> Self {
        match step {
            Step::NewService(key, _) => Self::NewService(*key),
            Step::SetService(key, _) => Self::SetService(*key),
            Step::DelService(key) => Self::DelService(*key),
            Step::NewDest(key, dest, _) => Self::NewDest(*key, *dest),
            Step::SetDest(key, dest, _) => Self::SetDest(*key, *dest),
            Step::DelDest(key, dest) => Self::DelDest(*key, *dest),
        }
    }
}

impl Kernel for Ipvs {
    async fn table(&mut self) -> Result<KernelTable, Error> {
        Self::table(self).await
    }

    async fn read(&mut self, keys: &[ServiceKey]) -> Result<KernelTable, Error> {
        Self::read(self, keys).await
    }

    async fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), Error>> {
        Self::apply(self, steps).await
    }
}
