//! `make bench`: this program beside ipvsadm, keepalived and a bare socket, on one IPVS kernel.
//!
//! All sides of a measure run in turn, in network namespaces of their own, within one boot; what
//! counts is the ratio of their medians. Times of an emulated guest mean nothing by themselves.
//! Prints a table, and writes `ipvs.json` to the folder that survives a guest. Exit status 0
//! if everything could be measured, goals missed or not.
//!
//! Arguments name measures, none means all. `BENCH_ROUNDS` says how often each side runs.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for people: it prints, and fails loudly where it stands"
)]

mod bare;
mod beside;
mod floor;
mod measures;
mod report;
mod run;
mod table;

use std::{env, fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use report::Outcome;
use serde_json::{Value, json};

/// Rounds where nobody says how many.
const ROUNDS: usize = 7;

fn main() -> Result<ExitCode> {
    // `--bench` is cargo's.
    let names: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    if names == ["--dump"] {
        measures::dump()?;
        return Ok(ExitCode::SUCCESS);
    }
    if let [word, kind] = names.as_slice()
        && word == "--loop"
    {
        beside::run_loop(kind);
        return Ok(ExitCode::SUCCESS);
    }
    let rounds = match env::var("BENCH_ROUNDS") {
        Ok(text) => text.parse().context("BENCH_ROUNDS is a number")?,
        Err(_) => ROUNDS,
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let (text, mut all) = report::head(kernel.trim(), rounds);
    println!("{text}");
    let programs = run::Programs::copy()?;
    let names: Vec<&str> = match names.as_slice() {
        [] => measures::ALL.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let mut failed = false;
    let mut found: Vec<Value> = Vec::new();
    for name in names {
        let outcome = measures::measure(name, &programs, rounds).unwrap_or_else(|why| {
            let (measure, why) = (name.to_owned(), format!("{why:#}"));
            Outcome::Failed { measure, why }
        });
        println!("{outcome}");
        failed |= outcome.is_failure();
        found.push(outcome.json());
    }
    all["measures"] = json!(found);
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm/results");
    fs::create_dir_all(&results)?;
    fs::write(
        results.join("ipvs.json"),
        serde_json::to_string_pretty(&all)?,
    )?;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
