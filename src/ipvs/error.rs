//! What was asked of the kernel, and what can go wrong with it.

use std::{fmt, io, time::Duration};

use netlink_packet_core::DecodeError;

use crate::model::{DestKey, Scheduler, ServiceKey, SyncRole};

/// One request: the operation and its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Opens the socket and looks the family up.
    Connect,
    /// Reads version and table size.
    Info,
    /// Lists all services.
    ListServices,
    /// Reads a service.
    GetService(ServiceKey),
    /// Lists the destinations of a service.
    ListDests(ServiceKey),
    /// Adds a service.
    NewService(ServiceKey),
    /// Changes a service.
    SetService(ServiceKey),
    /// Removes a service.
    DelService(ServiceKey),
    /// Adds a destination.
    NewDest(ServiceKey, DestKey),
    /// Changes a destination.
    SetDest(ServiceKey, DestKey),
    /// Removes a destination.
    DelDest(ServiceKey, DestKey),
    /// Removes all services.
    Flush,
    /// Sets the counters of a service, or all, to zero.
    Zero(Option<ServiceKey>),
    /// Reads the timeouts.
    GetTimeouts,
    /// Changes the timeouts.
    SetTimeouts,
    /// Lists the sync daemons.
    ListDaemons,
    /// Starts a sync daemon.
    StartDaemon(SyncRole),
    /// Stops a sync daemon.
    StopDaemon(SyncRole),
}

impl Request {
    /// The operation as a word for metrics, one of a closed set.
    #[must_use]
    pub const fn operation(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Info => "info",
            Self::ListServices => "list_services",
            Self::GetService(_) => "get_service",
            Self::ListDests(_) => "list_dests",
            Self::NewService(_) => "new_service",
            Self::SetService(_) => "set_service",
            Self::DelService(_) => "del_service",
            Self::NewDest(..) => "new_dest",
            Self::SetDest(..) => "set_dest",
            Self::DelDest(..) => "del_dest",
            Self::Flush => "flush",
            Self::Zero(_) => "zero",
            Self::GetTimeouts => "get_config",
            Self::SetTimeouts => "set_config",
            Self::ListDaemons => "list_daemons",
            Self::StartDaemon(_) => "new_daemon",
            Self::StopDaemon(_) => "del_daemon",
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("reach IPVS in the kernel"),
            Self::Info => f.write_str("read the version of IPVS"),
            Self::ListServices => f.write_str("list the virtual services"),
            Self::GetService(s) => write!(f, "read virtual service {s}"),
            Self::ListDests(s) => write!(f, "list the destinations of {s}"),
            Self::NewService(s) => write!(f, "add virtual service {s}"),
            Self::SetService(s) => write!(f, "change virtual service {s}"),
            Self::DelService(s) => write!(f, "remove virtual service {s}"),
            Self::NewDest(s, d) => write!(f, "add destination {d} to {s}"),
            Self::SetDest(s, d) => write!(f, "change destination {d} of {s}"),
            Self::DelDest(s, d) => write!(f, "remove destination {d} from {s}"),
            Self::Flush => f.write_str("remove all virtual services"),
            Self::Zero(Some(s)) => write!(f, "set the counters of {s} to zero"),
            Self::Zero(None) => f.write_str("set all counters to zero"),
            Self::GetTimeouts => f.write_str("read the timeouts"),
            Self::SetTimeouts => f.write_str("change the timeouts"),
            Self::ListDaemons => f.write_str("list the sync daemons"),
            Self::StartDaemon(role) => write!(f, "start the {role} sync daemon"),
            Self::StopDaemon(role) => write!(f, "stop the {role} sync daemon"),
        }
    }
}

/// Why a request did not do what it asks. Its text says what to do; the cause is its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service is not in the kernel (`ESRCH`): read again.
    #[error("cannot {request}: the kernel has no such virtual service")]
    NoSuchService {
        /// What was asked.
        request: Request,
    },
    /// The destination is not in its service (`ENOENT`): read again.
    #[error("cannot {request}: the virtual service has no such destination")]
    NoSuchDest {
        /// What was asked.
        request: Request,
    },
    /// The service or destination is in the kernel already (`EEXIST`): read again.
    #[error("cannot {request}: the kernel has it already")]
    AlreadyThere {
        /// What was asked.
        request: Request,
    },
    /// The sync daemon of this role does not run (`ESRCH`).
    #[error("cannot {request}: it does not run")]
    NoSuchDaemon {
        /// What was asked.
        request: Request,
    },
    /// This process may not (`EPERM`).
    #[error("cannot {request}: not permitted, it needs CAP_NET_ADMIN")]
    NotPermitted {
        /// What was asked.
        request: Request,
    },
    /// The kernel has no IPVS, and looking it up did not load it (`ENOENT`).
    #[error("the kernel has no IPVS: load it: modprobe ip_vs")]
    NoFamily,
    /// The kernel neither has nor could load the scheduler or the persistence engine (`ENOENT`).
    #[error(
        "cannot {request}: the kernel lacks scheduler {scheduler}{}: try modprobe ip_vs_{scheduler}{}",
        engine.iter().map(|e| format!(" or persistence engine {e}")).collect::<String>(),
        engine.iter().map(|e| format!(" ip_vs_pe_{e}")).collect::<String>()
    )]
    SchedulerMissing {
        /// What was asked.
        request: Request,
        /// The scheduler.
        scheduler: Scheduler,
        /// The persistence engine, if one was asked for; the kernel does not say which is missing.
        engine: Option<String>,
    },
    /// No answer in time. Whether a change was made is not known: read again.
    #[error("cannot {request}: the kernel did not answer within {limit:?}")]
    TimedOut {
        /// What was asked.
        request: Request,
        /// How long was waited.
        limit: Duration,
    },
    /// The table changed during each of several readings.
    #[error("cannot {request}: the table changed during each of {attempts} readings")]
    Interrupted {
        /// What was asked.
        request: Request,
        /// How many.
        attempts: u32,
    },
    /// The kernel's answer was lost for want of room in the socket (`ENOBUFS`). Whether a change was
    /// made is not known: read again.
    #[error("cannot {request}: the answer did not fit into the socket's receive buffer")]
    Overrun {
        /// What was asked.
        request: Request,
    },
    /// The kernel refused for another reason.
    #[error("cannot {request}: the kernel refused")]
    Refused {
        /// What was asked.
        request: Request,
        /// Its error number.
        source: io::Error,
    },
    /// The answer makes no sense.
    #[error("cannot {request}: the kernel's answer is not understood")]
    Malformed {
        /// What was asked.
        request: Request,
        /// Where it stopped making sense.
        source: DecodeError,
    },
    /// The socket failed.
    #[error("cannot {request}: the netlink socket failed")]
    Io {
        /// What was asked.
        request: Request,
        /// How.
        source: io::Error,
    },
}

impl Error {
    /// The kind as a word for metrics, one of a closed set.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NoSuchService { .. } => "no_such_service",
            Self::NoSuchDest { .. } => "no_such_dest",
            Self::AlreadyThere { .. } => "already_there",
            Self::NoSuchDaemon { .. } => "no_such_daemon",
            Self::NotPermitted { .. } => "not_permitted",
            Self::NoFamily => "no_family",
            Self::SchedulerMissing { .. } => "scheduler_missing",
            Self::TimedOut { .. } => "timed_out",
            Self::Interrupted { .. } => "interrupted",
            Self::Overrun { .. } => "overrun",
            Self::Refused { .. } => "refused",
            Self::Malformed { .. } => "malformed",
            Self::Io { .. } => "io",
        }
    }

    /// Whether the kernel's table is not what the caller took it for, so that it has to be read
    /// again before anything else is changed.
    #[must_use]
    pub const fn contradicts_reading(&self) -> bool {
        matches!(
            self,
            Self::NoSuchService { .. }
                | Self::NoSuchDest { .. }
                | Self::AlreadyThere { .. }
                | Self::TimedOut { .. }
                | Self::Overrun { .. }
        )
    }
}
