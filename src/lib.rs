#![doc = include_str!("../ARCHITECTURE.md")]

pub mod agent;
pub mod api;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod director;
pub mod health;
pub mod hooks;
pub mod http;
pub mod import;
pub mod ipvs;
pub mod model;
pub mod neighbours;
mod prepare;
pub mod provisioner;
mod random;
pub mod reconcile;
pub mod rtnl;
pub mod supervise;
pub mod sysctl;
pub mod systemd;
pub mod telemetry;
pub mod tls;

use telemetry::metrics::Build;

/// Which program this is.
pub const BUILD: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    commit: env!("UNDERSTUDY_COMMIT"),
};
