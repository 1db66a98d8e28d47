//! Secrets of this host: systemd credentials, and files of a folder.

use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

use super::sealed::{SHORTEST, Values};
use crate::systemd;

/// A key with its chain fits in.
const LONGEST: u64 = 64 * 1024;

/// Where secrets are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// A folder with a file for each; credentials of the unit go before it.
    pub dir: Option<PathBuf>,
}

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Nowhere.
    #[error(
        "there is no secret {name:?}: give the unit LoadCredential={name}:FILE, or put a file of this \
         name into [provisioner] secrets_dir"
    )]
    Missing {
        /// Which.
        name: String,
    },
    /// Others can read or change it.
    #[error(
        "the secret {} is open to others: chown it to the provisioner's user and chmod {} it",
        path.display(), if *folder { "0700" } else { "0600" }
    )]
    Open {
        /// The file, or the folder.
        path: PathBuf,
        /// Whether it is the folder.
        folder: bool,
    },
    /// It cannot be used.
    #[error("the secret {} {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        what: &'static str,
    },
    /// It cannot be read.
    #[error("the secret {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Secrets {
    /// The values of these, as they are now.
    ///
    /// # Errors
    /// [`SecretError`] of the first that cannot be had.
    pub fn read<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Values, SecretError> {
        names
            .into_iter()
            .map(|name| Ok((name.to_owned(), self.value(name)?)))
            .collect()
    }

    /// The values of those of these that can be had.
    #[must_use]
    pub fn known(&self, names: impl IntoIterator<Item = String>) -> Values {
        let value = |name: String| {
            let value = self.value(&name).ok()?;
            Some((name, value))
        };
        names.into_iter().filter_map(value).collect()
    }

    fn value(&self, name: &str) -> Result<String, SecretError> {
        if let Some(path) = systemd::credential(name) {
            return content(&path);
        }
        let missing = || SecretError::Missing {
            name: name.to_owned(),
        };
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        let dir = self.dir.as_ref().filter(|_| plain).ok_or_else(missing)?;
        let path = dir.join(name);
        if !path.exists() {
            return Err(missing());
        }
        closed(dir, true)?;
        closed(&path, false)?;
        content(&path)
    }
}

/// Only root or this process's user may read or change it.
fn closed(path: &Path, folder: bool) -> Result<(), SecretError> {
    let meta = path.metadata().map_err(|source| SecretError::Read {
        path: path.to_owned(),
        source,
    })?;
    let ours = [0, Uid::effective().as_raw()].contains(&meta.uid());
    if ours && meta.mode() & 0o077 == 0 {
        Ok(())
    } else {
        let path = path.to_owned();
        Err(SecretError::Open { path, folder })
    }
}

/// Without the newline that an editor leaves at the end.
fn content(path: &Path) -> Result<String, SecretError> {
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(LONGEST + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes: Vec<u8> = read().map_err(|source| SecretError::Read {
        path: path.to_owned(),
        source,
    })?;
    let unusable = |what| SecretError::Unusable {
        path: path.to_owned(),
        what,
    };
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LONGEST {
        return Err(unusable("is longer than 64 KiB"));
    }
    let mut text = String::from_utf8(bytes).map_err(|_e| unusable("is not UTF-8 text"))?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.contains('\0') {
        return Err(unusable("contains a NUL byte"));
    }
    if text.len() < SHORTEST {
        return Err(unusable(
            "is shorter than 4 characters: it could not be covered in what scripts print",
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_what_is_closed_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("DB_PASSWORD");
        fs::write(&file, "opensesame\n").unwrap();
        let secrets = Secrets {
            dir: Some(dir.path().to_owned()),
        };
        let read = |name: &str| secrets.read([name]).map(|v| v.into_values().next());
        mode(dir.path(), 0o700);
        mode(&file, 0o600);
        assert_eq!(read("DB_PASSWORD").unwrap().unwrap(), "opensesame");
        for name in ["", "nobody", "../x", ".hidden"] {
            let e = read(name).unwrap_err();
            assert!(matches!(e, SecretError::Missing { .. }), "{e}");
        }
        mode(&file, 0o640);
        let e = read("DB_PASSWORD").unwrap_err().to_string();
        assert!(e.contains("open to others") && e.contains("0600"), "{e}");
        mode(&file, 0o600);
        mode(dir.path(), 0o750);
        let e = read("DB_PASSWORD").unwrap_err().to_string();
        assert!(e.contains("open to others") && e.contains("0700"), "{e}");
        mode(dir.path(), 0o700);
        fs::write(&file, "abc\n").unwrap();
        let e = read("DB_PASSWORD").unwrap_err().to_string();
        assert!(e.contains("shorter than 4"), "{e}");
    }
}
