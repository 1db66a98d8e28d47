//! As in the package.

#[path = "../../src/config/diagnostics.rs"]
mod diagnostics;

pub use self::diagnostics::Diagnostics;
