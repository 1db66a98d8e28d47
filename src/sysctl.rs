//! `/proc/sys`: settings of the kernel, of the calling thread's network namespace. Decides nothing.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    director::settings::{Problem, Tried},
    model::{Sysctl, SysctlName, SysctlValue},
};

/// The folder with the settings. Reading and writing take microseconds: no disk is involved.
#[derive(Clone, Debug)]
pub struct ProcSys(PathBuf);

impl Default for ProcSys {
    fn default() -> Self {
        Self::at(Path::new("/proc/sys"))
    }
}

impl ProcSys {
    /// Another folder, for tests.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// What a setting is.
    ///
    /// # Errors
    ///
    /// It is not there, or is not shown to this process.
    pub fn read(&self, name: &SysctlName) -> Result<SysctlValue, Problem> {
        let text = fs::read_to_string(self.0.join(name.path())).map_err(|e| problem(&e))?;
        Ok(SysctlValue::of(&text))
    }

    /// Writes a setting and reads what came of it.
    pub fn write(&self, to: &Sysctl) -> Tried {
        let path = self.0.join(to.name.path());
        let write = || {
            // Not created: it is there, or cannot be.
            let mut file = OpenOptions::new().write(true).open(path)?;
            // In one call: the kernel takes each for a value of its own.
            file.write_all(format!("{}\n", to.value).as_bytes())
        };
        Tried {
            written: write().map_err(|e| problem(&e)),
            after: self.read(&to.name),
        }
    }

    /// Names of the interfaces that have settings of their own, and `all` and `default`; none where
    /// that cannot be read.
    #[must_use]
    pub fn interfaces(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.0.join("net/ipv4/conf")) else {
            return Vec::new();
        };
        let name = |e: io::Result<fs::DirEntry>| e.ok()?.file_name().into_string().ok();
        entries.filter_map(name).collect()
    }
}

fn problem(e: &io::Error) -> Problem {
    match e.kind() {
        io::ErrorKind::NotFound => Problem::NotThere,
        io::ErrorKind::ReadOnlyFilesystem => Problem::ReadOnly,
        io::ErrorKind::PermissionDenied => Problem::NotPermitted,
        _ => Problem::Refused(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> Sysctl {
        Sysctl {
            name: name.parse().unwrap(),
            value: SysctlValue::of(value),
        }
    }

    #[test]
    fn a_written_value_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("net/ipv4/conf/eth0.1")).unwrap();
        fs::write(dir.path().join("net/ipv4/conf/eth0.1/tag"), "3\t50\n").unwrap();
        let sys = ProcSys::at(dir.path());
        let to = setting("net.ipv4.conf.eth0/1.tag", "4 60");
        assert_eq!(sys.read(&to.name), Ok(SysctlValue::of("3 50")));
        let tried = sys.write(&to);
        assert_eq!((tried.written, tried.after), (Ok(()), Ok(to.value)));
        assert_eq!(sys.interfaces(), ["eth0.1"]);
    }

    #[test]
    fn what_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("net/ipv4")).unwrap();
        let sys = ProcSys::at(dir.path());
        let tried = sys.write(&setting("net.ipv4.nosuch", "1"));
        assert_eq!(tried.written, Err(Problem::NotThere));
        assert_eq!(tried.after, Err(Problem::NotThere));
        assert!(!dir.path().join("net/ipv4/nosuch").exists());
    }

    #[test]
    fn the_kernels_own_are_there() {
        let sys = ProcSys::default();
        let name = "net.ipv4.ip_forward".parse().unwrap();
        assert!(sys.read(&name).is_ok());
        assert!(sys.interfaces().contains(&"all".to_owned()));
    }
}
