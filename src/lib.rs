pub mod ipvs;
pub mod model;
