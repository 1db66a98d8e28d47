//! The PURE rooms that read what others wrote, by themselves: the rest of the package would take
//! minutes to build with coverage, and no byte gets further than here unread.
#![allow(dead_code, unused_imports, reason = "who calls them is not here")]

pub mod check;
pub mod config;
#[path = "../../src/import/mod.rs"]
pub mod import;
pub mod ipvs;
#[path = "../../src/model/mod.rs"]
pub mod model;
pub mod neighbours;

/// As in the package.
mod talk {
    pub(crate) const LONGEST: usize = 64 * 1024;
}
