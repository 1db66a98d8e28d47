//! rtnetlink: what the interfaces of this host are, what becomes of links and neighbours; addresses put on
//! and taken off.

mod addresses;
mod changes;
mod edit;
mod links;

pub use addresses::{Error, found_addresses, host_addresses};
pub use changes::{AddressChanges, Change, Changes};
pub use edit::{add_address, create_dummy, remove_address, switch_on};
pub use links::links;
