//! As in the package.

#[path = "../../src/ipvs/codec/mod.rs"]
pub mod codec;
