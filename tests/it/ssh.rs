//! The hands on a real sshd, on loopback: every step, every trap.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod connect;
mod files;
mod hostile;
mod jobs;
pub(crate) mod lab;
mod pool;
