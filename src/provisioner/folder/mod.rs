//! The inventory folder: `roles.toml`, `software.toml`, `service_config.toml`, `servers.toml`, and
//! the scripts and files that they name. Every mistake of all of them is said at once.

mod machines;
mod parse;
mod table;
mod values;

pub use parse::{AttachmentError, Texts, parse};

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use crate::{config::Diagnostics, model::inventory::Inventory};

/// The files that a folder holds. One that is missing is a mistake: taken for empty, it would empty
/// the pool.
pub const FILES: [&str; 4] = [
    "roles.toml",
    "software.toml",
    "service_config.toml",
    "servers.toml",
];

/// A folder that is no inventory.
#[derive(Debug)]
pub enum FolderError {
    /// Files that cannot be read.
    Unreadable(Vec<(PathBuf, io::Error)>),
    /// Files with mistakes.
    Mistakes(Vec<Diagnostics>),
}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = match self {
            Self::Unreadable(files) => files
                .iter()
                .map(|(path, e)| {
                    format!(
                        "{}: cannot be read ({e}): an inventory folder holds {}, empty or not",
                        path.display(),
                        FILES.join(", ")
                    )
                })
                .collect(),
            Self::Mistakes(files) => files.iter().map(Diagnostics::to_string).collect(),
        };
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for FolderError {}

/// Reads the inventory folder `dir`.
///
/// # Errors
///
/// All mistakes in it, a line each: `file:line:column: what is wrong, what to write`.
pub fn load(dir: &Path) -> Result<Inventory, FolderError> {
    let mut unreadable = Vec::new();
    let texts = FILES.map(|name| {
        let path = dir.join(name);
        fs::read_to_string(&path).unwrap_or_else(|e| {
            unreadable.push((path, e));
            String::new()
        })
    });
    if !unreadable.is_empty() {
        return Err(FolderError::Unreadable(unreadable));
    }
    let [roles, software, service_config, servers] = &texts;
    let texts = Texts {
        roles,
        software,
        service_config,
        servers,
    };
    parse(dir, &texts, &mut |name| attachment(dir, name)).map_err(FolderError::Mistakes)
}

/// Reads a file that the tables name, `name` being relative and without `..`.
fn attachment(dir: &Path, name: &str) -> Result<String, AttachmentError> {
    let other = |e: io::Error| match e.kind() {
        ErrorKind::NotFound => AttachmentError::Missing,
        ErrorKind::InvalidData => AttachmentError::NotText,
        _ => AttachmentError::Unreadable(e.to_string()),
    };
    // A link may lead out of the folder.
    let path = dir.join(name).canonicalize().map_err(other)?;
    if !path.starts_with(dir.canonicalize().map_err(other)?) {
        return Err(AttachmentError::Outside);
    }
    let text = fs::read_to_string(path).map_err(other)?;
    match text.contains('\0') {
        true => Err(AttachmentError::Nul),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests;
