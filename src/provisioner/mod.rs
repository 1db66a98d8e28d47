//! The provisioner: takes a failed server's address, finds its role, configures a spare for it.

pub mod folder;
pub mod order;
pub mod ssh;
pub mod step;
