//! The suites that need IPVS, root and the servers' trees. `make test` runs them under `tests/vm/run`.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
#[expect(dead_code, reason = "a provisioner's calls are the matrix's")]
#[path = "../matrix/calls.rs"]
mod calls;

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod calm;
#[cfg(test)]
mod capture;
#[cfg(test)]
mod drift;
#[cfg(test)]
mod events;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod forwarding;
#[cfg(test)]
mod generated;
#[cfg(test)]
mod hints;
#[cfg(test)]
mod ipvs;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod lab_smoke;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod operators;
#[cfg(test)]
mod persistence;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod power;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod replace;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod slow_start;
#[cfg(test)]
mod stopping;
#[cfg(test)]
mod through;
#[cfg(test)]
mod verbs;
#[cfg(test)]
mod warm;
