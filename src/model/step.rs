//! One change of the kernel's table.

use std::fmt;

use super::{DestAttrs, DestKey, ServiceAttrs, ServiceKey};

/// One step against the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create a service without destinations.
    NewService(ServiceKey, ServiceAttrs),
    /// Change a service in place.
    SetService(ServiceKey, ServiceAttrs),
    /// Remove a service and its destinations.
    DelService(ServiceKey),
    /// Create a destination.
    NewDest(ServiceKey, DestKey, DestAttrs),
    /// Change a destination in place.
    SetDest(ServiceKey, DestKey, DestAttrs),
    /// Remove a destination.
    DelDest(ServiceKey, DestKey),
}

impl Step {
    /// The service it is about.
    #[must_use]
    pub const fn service(&self) -> ServiceKey {
        match self {
            Self::NewService(k, _)
            | Self::SetService(k, _)
            | Self::DelService(k)
            | Self::NewDest(k, ..)
            | Self::SetDest(k, ..)
            | Self::DelDest(k, _) => *k,
        }
    }

    /// The destination it is about; none is the service itself.
    #[must_use]
    pub const fn dest(&self) -> Option<DestKey> {
        match self {
            Self::NewService(..) | Self::SetService(..) | Self::DelService(_) => None,
            Self::NewDest(_, d, _) | Self::SetDest(_, d, _) | Self::DelDest(_, d) => Some(*d),
        }
    }

    /// The word for logs and metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NewService(..) => "new_service",
            Self::SetService(..) => "set_service",
            Self::DelService(..) => "del_service",
            Self::NewDest(..) => "new_dest",
            Self::SetDest(..) => "set_dest",
            Self::DelDest(..) => "del_dest",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewService(k, a) => write!(f, "add service {k} ({})", a.scheduler),
            Self::SetService(k, a) => write!(f, "change service {k} ({})", a.scheduler),
            Self::DelService(k) => write!(f, "remove service {k}"),
            Self::NewDest(k, d, a) => {
                write!(f, "add {d} to {k} ({}, weight {})", a.forward, a.weight)
            }
            Self::SetDest(k, d, a) => {
                write!(f, "change {d} in {k} ({}, weight {})", a.forward, a.weight)
            }
            Self::DelDest(k, d) => write!(f, "remove {d} from {k}"),
        }
    }
}
