//! `understudy check-config`.

use std::path::{Path, PathBuf};

use super::{Failure, read, say};
use crate::{config, provisioner::folder};

/// What is to be checked.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration files of a director ([director]) or provisioner ([provisioner] alone), and
    /// inventory folders
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
        folder::load(path).map_err(|e| Failure::Wrong(e.to_string()))?;
        return Ok("inventory folder");
    }
    let text = read(path)?;
    // A director's file may name a provisioner too.
    let is_director = text.lines().any(|l| l.trim() == "[director]");
    let has_provisioner = text.lines().any(|l| l.trim() == "[provisioner]");
    if has_provisioner && !is_director {
        config::provisioner::parse(path, &text)?;
        return Ok("provisioner configuration");
    }
    config::director::parse(path, &text)?;
    Ok("director configuration")
}
