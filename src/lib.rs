pub mod config;
pub mod health;
pub mod model;
pub mod provisioner;
pub mod reconcile;
