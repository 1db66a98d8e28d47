//! `understudy check-config --live`: whether this host fits a director's configuration.

use std::{collections::BTreeSet, path::Path};

use super::{Failure, block_on};
use crate::{
    agent::host,
    config::{Director, VirtualService},
    director::{
        findings::{Facts, findings},
        settings::{self, Standing},
    },
    ipvs::{
        self, Ipvs,
        probe::{self, ProbeError},
    },
    sysctl::ProcSys,
    telemetry::Chain,
};

/// What is to be said of this host, a line each that begins with the file's name. Changes nothing:
/// no setting, nothing in IPVS.
pub(super) fn check(path: &Path, config: &Director) -> Result<String, Failure> {
    // Also gives the kernel its chance to load IPVS, which brings the settings below net.ipv4.vs.
    let unchecked = |e: ipvs::Error| {
        let name = path.display();
        Failure::Failed(format!("{name}: this host was not checked: {}", Chain(&e)))
    };
    block_on(async { Ipvs::connect().await.map_err(unchecked) })?;
    let mut facts = host::facts();
    let (mut warnings, mut notes) = declared(config);
    if let Err(e) = modules(config, &mut facts) {
        notes.push(format!(
            "whether the kernel has the schedulers and persistence engines was not checked: {}",
            Chain(&e)
        ));
    }
    warnings.extend(findings(config, &facts.as_declared(config)));
    let lines = |kind: &str, texts: Vec<String>| -> String {
        let line = |text| format!("{}: {kind}: {text}\n", path.display());
        texts.into_iter().map(line).collect()
    };
    Ok(lines("warning", warnings) + &lines("note", notes))
}

/// Of the declared settings: what a director could not set, and what it would change.
fn declared(config: &Director) -> (Vec<String>, Vec<String>) {
    let sys = ProcSys::default();
    let (mut warnings, mut notes) = (Vec::new(), Vec::new());
    for declared in &config.kernel {
        let (name, to) = (&declared.name, &declared.value);
        match sys.read(name) {
            Ok(found) if settings::holds(declared, &found) => {}
            Ok(found) => notes.push(format!(
                "kernel setting {name} is {found} now, a director sets it to {to} when it starts"
            )),
            Err(problem) => {
                warnings.extend(settings::warning(declared, &Standing::Unread(problem)));
            }
        }
    }
    (warnings, notes)
}

fn modules(config: &Director, facts: &mut Facts) -> Result<(), ProbeError> {
    let services = || config.services.values();
    let schedulers: BTreeSet<_> = services().map(|s| s.attrs.scheduler.clone()).collect();
    let engine = |s: &VirtualService| s.attrs.persistence.clone()?.engine;
    let engines: BTreeSet<_> = services().filter_map(engine).collect();
    let missing = probe::missing(&schedulers, &engines)?;
    facts.no_schedulers = missing.schedulers;
    facts.no_engines = missing.engines;
    Ok(())
}
