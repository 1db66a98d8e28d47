//! The hands on a real sshd, on loopback: every step, every trap.

mod connect;
mod files;
mod jobs;
mod lab;
