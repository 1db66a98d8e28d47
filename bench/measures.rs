//! The measures. Each sees to it that every side did what it is timed for.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{runtime, sync::watch};
use tokio_util::sync::CancellationToken;
use understudy::{
    ipvs::Ipvs,
    reconcile::{
        plan::Applied,
        task::{self, Fact, PassEnd},
    },
};

use crate::{
    beside,
    floor::Floor,
    report::{Goal, Outcome, Peak},
    run::{Daemon, LIMIT, Programs, Side, in_namespace, rounds, start_to_exit, wait_for_table},
    table,
};

pub(crate) const ALL: [&str; 11] = [
    "apply",
    "restore",
    "start",
    "pass",
    "list",
    "memory",
    "refused",
    "dropped",
    "cost-tcp",
    "cost-http",
    "resident",
];

/// Windows of 20 s that the cost of checks is measured over.
const COST_WINDOWS: usize = 3;

/// Where the director under test answers, in its own namespace.
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 9711);
/// Passes over the unchanged table, after which memory is looked at.
const PASSES: u64 = 5;

pub(crate) fn measure(name: &str, programs: &Programs, count: usize) -> Result<Outcome> {
    match name {
        "apply" => apply(count),
        "restore" => restore(programs, count),
        "start" => start(programs, count),
        "pass" => pass(count),
        "list" => list(programs, count),
        "memory" => memory(programs),
        "refused" => beside::detect(programs, false),
        "dropped" => beside::detect(programs, true),
        "cost-tcp" => beside::cost(programs, "tcp", COST_WINDOWS),
        "cost-http" => beside::cost(programs, "http", COST_WINDOWS),
        "resident" => beside::resident(programs),
        _ => bail!("no such measure: write {}", ALL.join(", ")),
    }
}

/// The whole table, written by a client that is connected.
fn apply(count: usize) -> Result<Outcome> {
    let steps = table::steps();
    let ours = || {
        in_namespace(|| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (took, results) = runtime.block_on(async {
                let mut ipvs = Ipvs::connect().await?;
                let start = Instant::now();
                let results = ipvs.apply(&steps).await;
                anyhow::Ok((start.elapsed(), results))
            })?;
            ensure!(results.len() == steps.len(), "steps without a result");
            results.into_iter().collect::<Result<Vec<_>, _>>()?;
            end(&mut Floor::open()?)?;
            Ok(took)
        })
    };
    let floor = || {
        in_namespace(|| {
            let mut floor = Floor::open()?;
            let batches = floor.encode();
            let start = Instant::now();
            floor.write(&batches)?;
            let took = start.elapsed();
            end(&mut floor)?;
            Ok(took)
        })
    };
    let mut sides = [
        Side::new("understudy: Ipvs::apply", ours),
        Side::new("floor: encoded before, batches of 64", floor),
    ];
    Ok(Outcome::Times {
        measure: "apply",
        of: "the table written by a client that is connected",
        taken: rounds(count, &mut sides)?,
        goals: vec![Goal::first_against(1, 1.15)],
    })
}

/// The table has to be there; then it goes, so that the kernel has less to clear away later.
fn end(floor: &mut Floor) -> Result<()> {
    ensure!(floor.complete()?, "the table is not the wanted one");
    floor.flush()
}

fn restore(programs: &Programs, count: usize) -> Result<Outcome> {
    let file = programs.path("rules");
    fs::write(&file, table::rules())?;
    let timed = |command| {
        in_namespace(|| {
            let took = start_to_exit(command)?;
            end(&mut Floor::open()?)?;
            Ok(took)
        })
    };
    let ours = || {
        let args = ["ipvs".as_ref(), "restore".as_ref(), file.as_os_str()];
        timed(programs.command("understudy", args))
    };
    let other = || {
        let mut command = programs.command("ipvsadm", ["-R"]);
        command.stdin(File::open(&file)?);
        timed(command)
    };
    let mut sides = [
        Side::new("understudy ipvs restore FILE", ours),
        Side::new("ipvsadm -R < FILE", other),
    ];
    Ok(Outcome::Times {
        measure: "restore",
        of: "the table from a file, start to exit",
        taken: rounds(count, &mut sides)?,
        goals: vec![Goal::first_against(1, 0.25)],
    })
}

/// Both daemons without checks.
fn start(programs: &Programs, count: usize) -> Result<Outcome> {
    let text = table::director_toml(folder(programs)?, "1h", None);
    let config = programs.path("director.toml");
    fs::write(&config, text)?;
    let conf = programs.path("keepalived.conf");
    fs::write(&conf, table::keepalived_conf())?;
    let timed = |command| {
        in_namespace(|| {
            let mut floor = Floor::open()?;
            let start = Instant::now();
            let mut daemon = Daemon::start(command)?;
            let complete = wait_for_table(&mut floor, &mut daemon)?;
            daemon.end()?;
            floor.flush()?;
            Ok(complete - start)
        })
    };
    let ours = || {
        drop(fs::remove_dir_all(programs.path("state")));
        let args = ["director".as_ref(), "--config".as_ref(), config.as_os_str()];
        timed(programs.command("understudy", args))
    };
    let other = || {
        let [pid, checkers] = ["keepalived.pid", "checkers.pid"].map(|name| programs.path(name));
        let mut command = programs.command("keepalived", ["-n", "-C", "-G", "-l", "-I"]);
        command.arg("-f").arg(&conf).arg("-p").arg(pid);
        command.arg("-c").arg(checkers);
        timed(command)
    };
    let mut sides = [
        Side::new("understudy director", ours),
        Side::new("keepalived", other),
    ];
    Ok(Outcome::Times {
        measure: "start",
        of: "start of the daemon to table complete, no checks",
        taken: rounds(count, &mut sides)?,
        goals: vec![Goal::first_against(1, 0.6)],
    })
}

fn folder(programs: &Programs) -> Result<&str> {
    programs
        .folder()
        .to_str()
        .context("the temporary folder's name is not UTF-8")
}

/// The reconciler as the director runs it: a task of a runtime with threads.
fn pass(count: usize) -> Result<Outcome> {
    in_namespace(|| {
        let mut floor = Floor::open()?;
        floor.write(&floor.encode())?;
        let requests = floor.encode_dump();
        let mut sides = [
            Side::new("understudy: reconcile::task, one pass", one_pass),
            Side::new("floor: dump", || {
                let start = Instant::now();
                floor.dump(&requests)?;
                Ok(start.elapsed())
            }),
        ];
        Ok(Outcome::Times {
            measure: "pass",
            of: "a pass over the unchanged table",
            taken: rounds(count, &mut sides)?,
            goals: vec![Goal::first_against(1, 1.3)],
        })
    })
}

/// The time from the end of a pass to the end of the next, with no wait between them. The first pass
/// of a reconciler is another kind: all services are new to it.
fn one_pass() -> Result<Duration> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    let (told, ends) = mpsc::channel();
    let stop = CancellationToken::new();
    let (_want, desired) = watch::channel(table::desired());
    let (applied, holds) = watch::channel(Applied::default());
    let observe = move |fact| {
        if let Fact::Pass(end) = fact {
            // Passes after those that are looked at have no listener.
            told.send((Instant::now(), end)).ok();
        }
    };
    let took = runtime.block_on(async {
        let kernel = Ipvs::connect().await?.without_counters();
        let stopped = stop.clone();
        let run = task::run(
            kernel,
            desired,
            applied,
            Duration::from_secs(1),
            observe,
            stopped,
        );
        #[expect(clippy::disallowed_methods, reason = "joined below")]
        let reconciler = tokio::spawn(run);
        let passes: Result<Vec<_>> = tokio::task::spawn_blocking(move || {
            let next = || ends.recv_timeout(LIMIT).context("no pass");
            std::iter::repeat_with(next).take(3).collect()
        })
        .await?;
        stop.cancel();
        reconciler.await?;
        match passes?.as_slice() {
            [_, (from, PassEnd::Unchanged), (to, PassEnd::Unchanged)] => Ok(*to - *from),
            others => bail!("passes over an unchanged table: {others:?}"),
        }
    })?;
    let services = holds.borrow().kernel.len();
    ensure!(
        services == usize::from(table::SERVICES),
        "{services} services"
    );
    Ok(took)
}

fn list(programs: &Programs, count: usize) -> Result<Outcome> {
    in_namespace(|| {
        let mut floor = Floor::open()?;
        floor.write(&floor.encode())?;
        let requests = floor.encode_dump();
        let mut sides = [
            Side::new("understudy ipvs list", || {
                start_to_exit(programs.command("understudy", ["ipvs", "list"]))
            }),
            Side::new("ipvsadm -Ln", || {
                start_to_exit(programs.command("ipvsadm", ["-Ln"]))
            }),
            Side::new("floor: dump", || {
                let start = Instant::now();
                floor.dump(&requests)?;
                Ok(start.elapsed())
            }),
            Side::new("floor: dump, a program of its own", || {
                start_to_exit(programs.command("floor", ["--dump"]))
            }),
        ];
        Ok(Outcome::Times {
            measure: "list",
            of: "the table listed to /dev/null, start to exit",
            taken: rounds(count, &mut sides)?,
            goals: vec![
                Goal::first_against(1, 0.8),
                Goal::first_against(2, 1.5),
                Goal::first_against(3, 1.5),
            ],
        })
    })
}

/// The whole program of the floor's dump.
pub(crate) fn dump() -> Result<()> {
    let mut floor = Floor::open()?;
    let requests = floor.encode_dump();
    floor.dump(&requests)?;
    Ok(())
}

/// The director itself, from a table that is there already, and from none. Its peak since the start
/// has the configuration in it, which is read once.
fn memory(programs: &Programs) -> Result<Outcome> {
    let at = SocketAddr::from(METRICS);
    let config = programs.path("memory.toml");
    let text = table::director_toml(folder(programs)?, "100ms", Some(at));
    fs::write(&config, text)?;
    let peaks = |there: bool| {
        in_namespace(|| {
            let mut floor = Floor::open()?;
            if there {
                floor.write(&floor.encode())?;
            }
            drop(fs::remove_dir_all(programs.path("state")));
            let args = ["director".as_ref(), "--config".as_ref(), config.as_os_str()];
            let mut daemon = Daemon::start(programs.command("understudy", args))?;
            passes(at, &mut daemon, PASSES)?;
            let since_start = peak(&daemon)?;
            // The peak is from now on that of what comes (proc(5)).
            fs::write(format!("/proc/{}/clear_refs", daemon.id()), "5")?;
            passes(at, &mut daemon, 2 * PASSES)?;
            let of_passes = peak(&daemon)?;
            daemon.end()?;
            end(&mut floor)?;
            Ok((since_start, of_passes))
        })
    };
    let (found, found_passes) = peaks(true)?;
    let (wrote, wrote_passes) = peaks(false)?;
    let named = [
        ("found the table, since its start", found),
        ("found the table, passes alone", found_passes),
        ("wrote the table, since its start", wrote),
        ("wrote the table, passes alone", wrote_passes),
    ];
    Ok(Outcome::Memory {
        measure: "memory",
        of: "peak of a director, with passes over the unchanged table",
        peaks: named
            .map(|(name, kilobytes)| Peak { name, kilobytes })
            .into(),
        below_kilobytes: 24_000,
    })
}

/// Waits until so many passes found nothing to do.
fn passes(at: SocketAddr, daemon: &mut Daemon, count: u64) -> Result<()> {
    let start = Instant::now();
    while unchanged(at).unwrap_or(0) < count {
        daemon.runs()?;
        ensure!(start.elapsed() < LIMIT, "fewer than {count} passes");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Passes that found nothing to do, as the director's metrics say.
fn unchanged(at: SocketAddr) -> Result<u64> {
    let mut stream = TcpStream::connect(at)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = text
        .lines()
        .find_map(|l| l.strip_prefix("understudy_reconcile_passes_total{result=\"unchanged\"} "));
    Ok(value.context("no such metric")?.parse()?)
}

fn peak(daemon: &Daemon) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id()))?;
    let value = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let value = value.and_then(|v| v.trim().strip_suffix(" kB"));
    Ok(value.context("no VmHWM")?.parse()?)
}
