//! The provisioner: takes a failed server's address, finds its role, configures a spare for it.
//!
//! In reading order: a request comes in at [`api`] and is written into the [`store`]; [`engine`] takes
//! it up, [`plan`] looks the role up and says what a spare must be told, [`select`] picks the spare, [`warm`] knows what was done to it beforehand,
//! [`render`] fills in its files, [`order`] is what goes to whoever has the hands on it: [`step`], over
//! [`ssh`], and [`driver`] where an operating system has to be installed first. [`folder`] reads what operators write.
//! What may happen when is decided by [`workflow`] alone. [`plan`], [`select`], [`warm`], [`render`], [`order`] and
//! [`workflow`] are PURE.

pub mod api;
mod claiming;
pub mod driver;
pub mod engine;
pub mod folder;
pub mod granted;
pub mod keeper;
pub mod log;
pub mod order;
pub mod pace;
pub mod plan;
pub mod quarantine;
pub mod readiness;
pub mod render;
pub mod same_cause;
pub mod sealed;
pub mod secrets;
pub mod select;
pub mod ssh;
pub mod step;
pub mod store;
pub mod text_diff;
pub mod upkeep;
pub mod warm;
pub mod workflow;

#[cfg(test)]
pub(crate) mod testing;
