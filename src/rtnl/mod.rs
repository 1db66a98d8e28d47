//! rtnetlink: what the interfaces of this host are, and what becomes of links and neighbours.

mod addresses;
mod changes;

pub use addresses::{Error, host_addresses};
pub use changes::{Change, Changes};
