//! IPVS over generic netlink. [`Kernel`] is the seam for the reconciler, [`Ipvs`] the kernel behind
//! it, [`Error`] what a caller can act on; `codec` is PURE and knows the bytes.
//!
//! Facts that shape it (net/netfilter/ipvs/ip_vs_ctl.c, Linux 6.1): the family sends no
//! notifications; `ip_vs_genl_dump_dests` answers for a service that is not there with an empty list
//! and no error; dumps resume by position and do not say that the table changed meanwhile.

mod client;
pub mod codec;
mod error;

use std::{fmt, future::Future};

pub use self::{
    client::{Ipvs, Observer},
    error::{Error, Request},
};
use crate::model::{DestAttrs, DestKey, KernelTable, ServiceAttrs, ServiceKey};

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

    /// Makes one change.
    fn apply(&mut self, step: &Step) -> impl Future<Output = Result<(), Error>> + Send;
}

/// One change of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds a service without destinations.
    NewService(ServiceKey, ServiceAttrs),
    /// Changes a service.
    SetService(ServiceKey, ServiceAttrs),
    /// Removes a service and its destinations.
    DelService(ServiceKey),
    /// Adds a destination.
    NewDest(ServiceKey, DestKey, DestAttrs),
    /// Changes a destination; its connections stay.
    SetDest(ServiceKey, DestKey, DestAttrs),
    /// Removes a destination.
    DelDest(ServiceKey, DestKey),
}

impl Step {
    /// The service that it changes.
    #[must_use]
    pub const fn service(&self) -> ServiceKey {
        match self {
            Self::NewService(key, _)
            | Self::SetService(key, _)
            | Self::DelService(key)
            | Self::NewDest(key, ..)
            | Self::SetDest(key, ..)
            | Self::DelDest(key, _) => *key,
        }
    }

    /// What it asks of the kernel.
    #[must_use]
    pub const fn request(&self) -> Request {
        match self {
            Self::NewService(key, _) => Request::NewService(*key),
            Self::SetService(key, _) => Request::SetService(*key),
            Self::DelService(key) => Request::DelService(*key),
            Self::NewDest(key, dest, _) => Request::NewDest(*key, *dest),
            Self::SetDest(key, dest, _) => Request::SetDest(*key, *dest),
            Self::DelDest(key, dest) => Request::DelDest(*key, *dest),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.request())?;
        match self {
            Self::NewService(_, a) | Self::SetService(_, a) => {
                write!(f, ", scheduler {}", a.scheduler)?;
                match &a.persistence {
                    Some(p) => write!(f, ", persistent {} s", p.timeout_s),
                    None => Ok(()),
                }
            }
            Self::NewDest(_, _, a) | Self::SetDest(_, _, a) => {
                write!(f, ", {}, weight {}", a.forward, a.weight)
            }
            Self::DelService(_) | Self::DelDest(..) => Ok(()),
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

    async fn apply(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::NewService(key, attrs) => self.new_service(*key, attrs).await,
            Step::SetService(key, attrs) => self.set_service(*key, attrs).await,
            Step::DelService(key) => self.del_service(*key).await,
            Step::NewDest(key, dest, attrs) => self.new_dest(*key, *dest, attrs).await,
            Step::SetDest(key, dest, attrs) => self.set_dest(*key, *dest, attrs).await,
            Step::DelDest(key, dest) => self.del_dest(*key, *dest).await,
        }
    }
}
