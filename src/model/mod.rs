//! The vocabulary: types that every room shares. PURE: no I/O, no clock, no task.
//!
//! Values are parsed at the edge into types that cannot be wrong; names are LVS's own.

mod access;
mod address;
mod check;
mod drift;
mod event;
mod hook;
mod host;
mod ids;
pub mod inventory;
mod ipvs;
mod marks;
mod order;
mod ownership;
mod policy;
mod reload;
mod step;
mod sysctl;
mod time;
pub mod wire;

pub use access::{Access, GroupName, Operators, Right};
pub use address::{
    AddressPlace, AddressPolicy, Addresses, AnnounceOn, FoundAddress, FoundAddresses, FoundLink,
    Mac, ManagedAddress, Presence, WantedAddress,
};
pub use check::{
    Advice, CertFault, CheckKind, CheckSpec, CheckTiming, Checks, Damping, DnsCheck, DnsType,
    Expect, ExternalCheck, FailClass, FailReason, FileCheck, Found, GrpcCheck, HttpCheck,
    HttpVersion, IcmpCheck, LoginCheck, Need, OnFailure, Outcome, Phase, PinDigest, QuorumRule,
    Removal, Slot, SmtpCheck, SmtpTls, SqlState, StatusRange, TcpCheck, TlsOptions, UdpCheck,
    Verify, Via,
};
pub use drift::{DriftPolicy, NotADriftPolicy};
pub use event::{
    Event, EventDraft, EventFilter, EventKind, EventPage, EventRing, EventServer, EventsAsked,
    NotAWord, Role, Severity, Wanted,
};
pub use hook::{Hook, Hooks, Mail, Relay, RelayTls, Webhook};
pub use host::HostAddress;
pub use ids::{DirectorName, IdError, IncidentKey, ReplacementId};
pub use ipvs::{
    DestAttrs, DestKey, DestState, Family, ForwardMethod, KernelTable, LONGEST_NAME,
    NotAForwardMethod, NotAWeight, Persistence, Protocol, Scheduler, Service, ServiceAttrs,
    ServiceFlags, ServiceKey, ServiceKeyError, ServiceState, Stats, SyncDaemon, SyncRole, Table,
    Timeouts, Tunnel, TunnelType, Weight,
};
pub use marks::{Marks, NotMarks};
pub use order::{Order, OrderAnswer, OrderRequest, OrderedPlace, Wish, parse_server};
pub use ownership::Ownership;
pub use policy::{Initial, Keeping, NotOnStop, OnStop, Ramping, StopPolicy};
pub use reload::{
    Count, PlanRequest, Planned, PlannedStandIn, PlannedStep, ReloadAnswer, Reloaded,
};
pub use step::Step;
pub use sysctl::{Sysctl, SysctlName, SysctlNameError, SysctlValue};
pub use time::{MonoTime, WallMillis};
