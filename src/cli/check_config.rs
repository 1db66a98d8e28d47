//! `understudy check-config`.

use std::path::{Path, PathBuf};

use super::{Failure, inventory, read, say};
use crate::config;

/// What is to be checked.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// director.toml, provisioner.toml, or an inventory folder: any number of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    for path in &a.paths {
        match check(path) {
            Ok(kind) => say(&format!("{}: good {kind}\n", path.display()))?,
            Err(Failure::Wrong(text)) => wrong.push(text),
            Err(other) => return Err(other),
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::Wrong(wrong.join("\n")))
    }
}

fn check(path: &Path) -> Result<&'static str, Failure> {
    if path.is_dir() {
        inventory::load(path)?;
        return Ok("inventory folder");
    }
    let text = read(path)?;
    let has = |section: &str| match text.parse::<toml::Table>() {
        Ok(table) => table.contains_key(section),
        // Whichever reads it says where it is no TOML.
        Err(_) => true,
    };
    // A director's file may name a provisioner too.
    match (has("director"), has("provisioner")) {
        (true, _) => {
            config::director::parse(path, &text)?;
            Ok("director configuration")
        }
        (false, true) => {
            config::provisioner::parse(path, &text)?;
            Ok("provisioner configuration")
        }
        (false, false) => Err(Failure::Wrong(format!(
            "{}:1:1: has neither a section [director] nor [provisioner]: one of them makes it a configuration",
            path.display()
        ))),
    }
}
