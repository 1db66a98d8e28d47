pub mod config;
pub mod director;
pub mod health;
pub mod ipvs;
pub mod model;
pub mod provisioner;
pub mod reconcile;
