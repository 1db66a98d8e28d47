//! Text to configuration. PURE: files are read at the edge. Every mistake is found at its
//! `file:line:column`, all of them at once.

mod diagnostics;
pub mod duration;

pub use diagnostics::Diagnostics;
pub use duration::DurationError;
