//! What can be tested without privileges: one binary.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail like tests: at their place"
)]

mod check;
mod logs;
mod metrics;
mod rtnl;
mod support;
mod systemd;
mod units;
