//! Text to configuration. PURE: files are read at the edge. Every mistake is found at its
//! `file:line:column`, all of them at once.

mod diagnostics;
pub mod director;
pub mod duration;
mod kernel;
pub mod provisioner;
mod tls;

#[cfg(test)]
mod tests;

pub use diagnostics::Diagnostics;
pub use director::{
    AfterReplacement, Director, Endpoint, FailingIn, MassFailure, PanicRule, ProvisionerLink,
    ReplacementPolicy, VirtualService, Witness,
};
pub use duration::DurationError;
pub use provisioner::{Listen, Provisioner, Ssh};
pub use tls::TlsFiles;
