//! Rounds: each side in turn, in a network namespace without history, on a machine that rests.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{floor::Floor, table};

/// The first round is dropped: it loads what is loaded once.
const WARM_UP: usize = 1;
/// Whatever is waited for; an emulated guest on a busy machine takes seconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// One of those that are held against each other; each call is one run, and says how long it took.
pub(crate) struct Side<'a> {
    pub(crate) name: &'static str,
    pub(crate) run: Box<dyn FnMut() -> Result<Duration> + 'a>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(name: &'static str, run: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Self {
            name,
            run: Box::new(run),
        }
    }
}

/// What one side took, in the order of the rounds.
pub(crate) struct Taken {
    pub(crate) name: &'static str,
    pub(crate) runs: Vec<Duration>,
}

/// Runs the sides one after the other, again and again, and each time another one first: what
/// disturbs the machine for a while disturbs all of them.
pub(crate) fn rounds(rounds: usize, sides: &mut [Side<'_>]) -> Result<Vec<Taken>> {
    let mut taken: Vec<Taken> = sides
        .iter()
        .map(|side| Taken {
            name: side.name,
            runs: Vec::new(),
        })
        .collect();
    for round in 0..rounds + WARM_UP {
        for turn in 0..sides.len() {
            let n = (round + turn) % sides.len();
            settle()?;
            let side = &mut sides[n];
            let took = (side.run)().with_context(|| side.name)?;
            if round >= WARM_UP {
                taken[n].runs.push(took);
            }
        }
    }
    Ok(taken)
}

/// Waits until the processors rest: the kernel clears a namespace away long after its end, and a
/// process that was ended may still be ending.
fn settle() -> Result<()> {
    const LOOK: Duration = Duration::from_millis(50);
    const GIVE_UP: Duration = Duration::from_secs(5);
    let start = Instant::now();
    let mut last = processors()?;
    while start.elapsed() < GIVE_UP {
        thread::sleep(LOOK);
        let now = processors()?;
        let (idle, all) = (now.0 - last.0, now.1 - last.1);
        if all > 0 && idle * 10 >= all * 9 {
            return Ok(());
        }
        last = now;
    }
    Ok(())
}

/// Ticks that all processors were idle, and ticks in all, since boot (proc_stat(5)).
fn processors() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok((ticks.iter().skip(3).take(2).sum(), ticks.iter().sum()))
}

/// Runs `work` in a network namespace of its own, which has the virtual addresses, and in which
/// IPVS remembers nothing: destinations that were removed would be kept for two minutes, and looked
/// for one by one (`ip_vs_trash_get_dest`). What `work` starts is there too.
pub(crate) fn in_namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).context("no network namespace: needs root")?;
        let mut batch = "link set lo up\n".to_owned();
        for addr in table::virtual_addresses() {
            batch.push_str(&format!("address add {addr}/32 dev lo\n"));
        }
        let folder = TempDir::with_prefix("bench-")?;
        let file = folder.path().join("addresses");
        fs::write(&file, batch)?;
        let done = Command::new("ip").arg("-batch").arg(file).status()?;
        ensure!(done.success(), "ip -batch: {done}");
        work()
    };
    thread::scope(|scope| {
        scope
            .spawn(inside)
            .join()
            .map_err(|_panic| anyhow!("a thread panicked"))?
    })
}

/// The programs, copied with their libraries to where a page once read stays in memory: the guest's
/// root is its host's, and each start from there reads the whole program anew.
pub(crate) struct Programs {
    folder: TempDir,
}

impl Programs {
    pub(crate) fn copy() -> Result<Self> {
        // Not /tmp, which in the guest is an overlay of its host's.
        let folder = TempDir::with_prefix_in("bench-", "/run")?;
        let programs = Self { folder };
        fs::create_dir(programs.path("lib"))?;
        let here = std::env::current_exe()?;
        let keepalived = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target/bench/keepalived/usr/sbin/keepalived");
        let all = [
            (
                "understudy",
                PathBuf::from(env!("CARGO_BIN_EXE_understudy")),
            ),
            ("ipvsadm", "/usr/sbin/ipvsadm".into()),
            ("keepalived", keepalived),
            ("floor", here),
        ];
        for (name, from) in all {
            fs::copy(&from, programs.path(name))
                .with_context(|| format!("{} cannot be copied", from.display()))?;
            let listed = Command::new("ldd").arg(&from).output()?;
            for line in String::from_utf8(listed.stdout)?.lines() {
                // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)"
                if let Some((library, found)) = line.trim().split_once(" => ") {
                    let found = found.split(" (").next().unwrap_or_default();
                    fs::copy(found, programs.path("lib").join(library))
                        .with_context(|| format!("{name} needs {library}, found: {found}"))?;
                }
            }
        }
        Ok(programs)
    }

    /// Where files of this run are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file of this run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command that says nothing.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(self.path(name));
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LD_LIBRARY_PATH", self.path("lib"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// From start to exit; anything but a success is an error.
pub(crate) fn start_to_exit(mut command: Command) -> Result<Duration> {
    let start = Instant::now();
    let status = command.status()?;
    let took = start.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took)
}

/// A daemon; killed when dropped, if it was not ended before.
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        Ok(Self(command.spawn()?))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// An error if it is there no more.
    pub(crate) fn runs(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended: {status}"),
        }
    }

    /// Asks it to end, and waits.
    pub(crate) fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        let start = Instant::now();
        while self.0.try_wait()?.is_none() {
            ensure!(start.elapsed() < LIMIT, "it does not end");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

/// Waits until all of the table is there; the moment when it was. Asks for the destinations of one
/// service each time, the last first, which costs the kernel as little as a question can, and goes
/// on to the next when that one is complete: a writer that leads from the first to the last is asked
/// for one service only until it is done.
pub(crate) fn wait_for_table(floor: &mut Floor, daemon: &mut Daemon) -> Result<Instant> {
    const POLL: Duration = Duration::from_millis(5);
    let dests = usize::from(table::DESTS);
    let start = Instant::now();
    let mut seen = start;
    let requests: Vec<Vec<u8>> = table::services()
        .map(|(addr, port)| floor.dump_of(addr, port))
        .collect();
    for request in requests.iter().rev() {
        let mut waited = false;
        while floor.count(request)? != dests {
            daemon.runs()?;
            ensure!(start.elapsed() < LIMIT, "the table is not complete");
            thread::sleep(POLL);
            waited = true;
        }
        if waited {
            seen = Instant::now();
        }
    }
    ensure!(floor.complete()?, "another table than the wanted one");
    Ok(seen)
}
