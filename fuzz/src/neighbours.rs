//! As in the package.

#[path = "../../src/neighbours/wire/mod.rs"]
pub mod wire;
