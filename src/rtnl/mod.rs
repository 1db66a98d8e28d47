//! rtnetlink: what the interfaces of this host are.

mod addresses;

pub use addresses::{Error, local_addresses};
