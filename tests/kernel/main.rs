//! The suites that need IPVS. `make test` runs them under `tests/vm/run`.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
mod lab_smoke;
