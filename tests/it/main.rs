//! What needs no IPVS: one binary. The suites over SSH run a real sshd and need root.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail like tests: at their place"
)]

mod check;
mod cli;
mod documents;
mod driver;
mod fleet;
mod inventory;
mod logs;
mod metrics;
mod pki;
mod port;
mod rooms;
mod rtnl;
mod ssh;
mod support;
mod systemd;
mod units;
mod watch;
