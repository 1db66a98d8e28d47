//! A daemon under test, started in the director's namespace.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Lab, wait_for};

const POLL: Duration = Duration::from_millis(10);

/// Killed when dropped. Its output goes to one file over all its lives.
#[derive(Debug)]
pub(crate) struct Process<'a> {
    lab: &'a Lab,
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
    /// Where in the log the present life begins.
    since: usize,
    child: Option<Child>,
}

impl<'a> Process<'a> {
    pub(crate) fn start(
        lab: &'a Lab,
        name: &str,
        program: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let mut process = Self {
            lab,
            program: program.to_owned(),
            args: args.iter().map(|&a| a.to_owned()).collect(),
            env: env
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            log: lab.dir().join(format!("{name}.log")),
            since: 0,
            child: None,
        };
        process.restart();
        process
    }

    /// Starts it again, after killing it if it still runs.
    pub(crate) fn restart(&mut self) {
        self.kill_hard();
        let log = File::options()
            .append(true)
            .create(true)
            .open(&self.log)
            .unwrap();
        self.since = log.metadata().unwrap().len().try_into().unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log);
        self.child = Some(self.lab.director.run(move || command.spawn().unwrap()));
    }

    /// SIGKILL, and it is gone.
    pub(crate) fn kill_hard(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id().try_into().unwrap()), signal).unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child
            .as_ref()
            .unwrap_or_else(|| panic!("{} does not run", self.program))
            .id()
    }

    /// Waits for its end by itself or by a signal sent before.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let status = wait_for("end of the process", limit, POLL, || {
            child.try_wait().unwrap().ok_or("it runs")
        });
        self.child = None;
        status
    }

    /// Where it writes.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.log.clone()
    }

    /// All that it has written, in all its lives.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits until a line of its present life contains `needle`; that line. Panics with the log if
    /// the process ends first.
    pub(crate) fn wait_for_log(&mut self, needle: &str, limit: Duration) -> String {
        let what = format!("line with {needle:?}");
        wait_for(&what, limit, POLL, || {
            // Asked first: what it wrote before its end is then in the log.
            let ended = self.child.as_mut().and_then(|c| c.try_wait().unwrap());
            let log = self.log();
            let life = log.get(self.since..).unwrap_or_default();
            match (life.lines().find(|l| l.contains(needle)), ended) {
                (Some(line), _) => Ok(line.to_owned()),
                (None, Some(status)) => panic!("no {what}, the process ended ({status}):\n{life}"),
                (None, None) => Err(life.to_owned()),
            }
        })
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        self.kill_hard();
        if std::thread::panicking() {
            super::show(&format!("--- {}\n{}", self.log.display(), self.log()));
        }
    }
}
