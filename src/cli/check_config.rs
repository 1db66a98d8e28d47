//! `understudy check-config`.

use std::path::{Path, PathBuf};

use super::{Failure, inventory, live, read, say};
use crate::config;

/// What is to be checked.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// director.toml, provisioner.toml, or an inventory folder: any number of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Also says what of this host does not fit a director.toml: kernel settings,
    /// schedulers that the kernel cannot load (asked as root alone), virtual addresses
    /// that no interface has. Changes nothing. The exit status is 0 with warnings too,
    /// 1 where the host cannot be checked (no IPVS), 2 for mistakes in a file
    #[arg(long, verbatim_doc_comment)]
    live: bool,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    let mut directors = Vec::new();
    for path in &a.paths {
        match check(path) {
            Ok(good) => {
                say(&format!("{}: good {}\n", path.display(), good.kind()))?;
                if let Good::Director(config) = good {
                    directors.push((path, config));
                }
            }
            Err(Failure::Wrong(text)) => wrong.push(text),
            Err(other) => return Err(other),
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::Wrong(wrong.join("\n")));
    }
    if a.live && directors.is_empty() {
        let missing = "--live compares this host with a director.toml: name one";
        return Err(Failure::Wrong(missing.to_owned()));
    }
    for (path, config) in directors.iter().filter(|_| a.live) {
        say(&live::check(path, config)?)?;
    }
    Ok(())
}

/// A file or folder without a mistake.
enum Good {
    Director(Box<config::Director>),
    Provisioner,
    Inventory,
}

impl Good {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Director(_) => "director configuration",
            Self::Provisioner => "provisioner configuration",
            Self::Inventory => "inventory folder",
        }
    }
}

fn check(path: &Path) -> Result<Good, Failure> {
    if path.is_dir() {
        inventory::load(path)?;
        return Ok(Good::Inventory);
    }
    let text = read(path)?;
    let whole = text.parse::<toml::Table>();
    // Whichever reads it says where it is no TOML.
    // What a provisioner knows of directors is a list.
    let section = |table: &toml::Table, name| table.get(name).is_some_and(|v| !v.is_array());
    let has = |name| !matches!(&whole, Ok(table) if !section(table, name));
    // A director's file may name a provisioner too.
    match (has("director"), has("provisioner")) {
        (true, _) => {
            let config = config::director::parse(path, &text)?;
            Ok(Good::Director(Box::new(config)))
        }
        (false, true) => {
            config::provisioner::parse(path, &text)?;
            Ok(Good::Provisioner)
        }
        (false, false) => Err(Failure::Wrong(format!(
            "{}:1:1: has neither a section [director] nor [provisioner]: one of them makes it a configuration",
            path.display()
        ))),
    }
}
