pub mod config;
pub mod director;
pub mod health;
pub mod model;
pub mod provisioner;
pub mod reconcile;
