//! Checks beside keepalived's: how soon a dead server leaves IPVS, what checks cost, and how much
//! memory they take. 500 servers in services of 20, asked every second with a time-out of one, two
//! failures take one out: the same for both.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::fd::{AsFd as _, AsRawFd as _},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    unistd::gettid,
};

use crate::{
    bare,
    floor::Floor,
    report::{Goal, Outcome, Peak},
    run::{Daemon, LIMIT, Programs, Taken, in_namespace},
};

const SERVICES: u16 = 25;
const EACH: u16 = 20;
const SERVERS: u32 = 500;
/// Servers that fail in one run of a daemon, each in a service of its own.
const VICTIMS: u16 = 20;
const PORT: u16 = 8080;
const VIP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Between two failures: they do not fall together.
const GAP: Duration = Duration::from_millis(137);
const POLL: Duration = Duration::from_millis(3);
const SETTLED: Duration = Duration::from_secs(3);
const WINDOW: Duration = Duration::from_secs(20);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const NFT: &str = "table ip dead {
    set hosts { type ipv4_addr; }
    chain in { type filter hook input priority 0; ip daddr @hosts drop; }
}";

fn server(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 88, 1, 0)) + n)
}

/// The `n`th service's `m`th server.
fn member(n: u16, m: u16) -> Ipv4Addr {
    server(u32::from(n) * u32::from(EACH) + u32::from(m))
}

fn vip_port(n: u16) -> u16 {
    9000 + n
}

/// What is done to a server.
enum Deed {
    /// Its port is closed: connections are refused.
    Refuse(Ipv4Addr),
    /// What is for it vanishes.
    Vanish(Ipv4Addr),
}

/// All servers, in a namespace of their own on the other end of a cable.
struct Servers {
    deeds: mpsc::Sender<(Deed, mpsc::Sender<Result<()>>)>,
}

impl Servers {
    /// Called in the directors' namespace.
    fn start() -> Result<Self> {
        let (deeds, orders) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let (go, plugged) = mpsc::channel::<()>();
        thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).map_err(anyhow::Error::from);
            drop(ready.send(made.map(|()| gettid().as_raw())));
            if plugged.recv().is_ok() {
                let served = serve(&orders, &ready);
                if let Err(error) = served {
                    drop(ready.send(Err(error)));
                }
            }
        });
        let thread = started.recv()??;
        ip(&format!(
            "link add servers type veth peer name director netns {thread}
             address add 10.88.0.1/16 dev servers
             link set servers up"
        ))?;
        go.send(())?;
        started.recv()??;
        Ok(Self { deeds })
    }

    fn does(&self, deed: Deed) -> Result<()> {
        let (done, answer) = mpsc::channel();
        self.deeds.send((deed, done))?;
        answer.recv()?
    }
}

fn ip(batch: &str) -> Result<()> {
    run("ip", &["-batch", "-"], batch)
}

fn run(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let status = child.wait()?;
    ensure!(status.success(), "{program} {args:?}: {status}");
    Ok(())
}

type Orders = mpsc::Receiver<(Deed, mpsc::Sender<Result<()>>)>;

/// Listens on every server's address, and answers a request if one comes.
fn serve(orders: &Orders, ready: &mpsc::Sender<Result<i32>>) -> Result<()> {
    let mut batch = "link set lo up\nlink set director up\n".to_owned();
    for n in 0..SERVERS {
        batch.push_str(&format!("address add {}/16 dev director\n", server(n)));
    }
    ip(&batch)?;
    run("nft", &["-f", "-"], NFT)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let listen = |n: u32| {
        let listener = TcpListener::bind(SocketAddrV4::new(server(n), PORT))?;
        listener.set_nonblocking(true)?;
        epoll.add(
            listener.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, n.into()),
        )?;
        anyhow::Ok(listener)
    };
    let mut listeners: BTreeMap<u32, TcpListener> = BTreeMap::new();
    for n in 0..SERVERS {
        listeners.insert(n, listen(n)?);
    }
    drop(ready.send(Ok(0)));
    let first = u32::from(server(0));
    let mut streams = BTreeMap::new();
    let mut events = [EpollEvent::empty(); 64];
    loop {
        match orders.try_recv() {
            Ok((deed, done)) => {
                let result = match deed {
                    Deed::Refuse(addr) => {
                        listeners.remove(&(u32::from(addr) - first));
                        Ok(())
                    }
                    Deed::Vanish(addr) => {
                        let element = format!("add element ip dead hosts {{ {addr} }}");
                        run("nft", &["-f", "-"], &element)
                    }
                };
                drop(done.send(result));
            }
            Err(mpsc::TryRecvError::Empty) => {}
            Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
        }
        let count = epoll.wait(&mut events, EpollTimeout::from(2_u8))?;
        for event in events.iter().take(count) {
            let id = event.data();
            if let Some(listener) = u32::try_from(id).ok().and_then(|n| listeners.get(&n)) {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let id = 1 << 32 | u64::try_from(stream.as_raw_fd())?;
                    epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, id))?;
                    streams.insert(id, stream);
                }
            } else if let Some(mut stream) = streams.remove(&id) {
                let mut request = [0; 1024];
                if matches!(stream.read(&mut request), Ok(n) if n > 0) {
                    drop(stream.write_all(ANSWER));
                }
            }
        }
    }
}

/// The same configuration in the words of each.
fn ours(programs: &Programs, check: &str) -> Result<Command> {
    let folder = programs.folder().to_str().context("not UTF-8")?;
    let mut text = format!(
        "[director]\nname = \"bench\"\naddress = \"127.0.0.1\"\nstate_dir = \"{folder}/state\"\nsocket = \"{folder}/director.sock\"\n"
    );
    for n in 0..SERVICES {
        text.push_str(&format!(
            "[[virtual_service]]\naddress = \"{VIP}:{}\"\nscheduler = \"wlc\"\nforward = \"nat\"\ncheck = {{ interval = \"1s\", timeout = \"1s\", rise = 1, fall = 2, {check} = {{}} }}\n",
            vip_port(n)
        ));
        for m in 0..EACH {
            text.push_str(&format!(
                "[[virtual_service.real_server]]\naddress = \"{}:{PORT}\"\n",
                member(n, m)
            ));
        }
    }
    drop(fs::remove_dir_all(programs.path("state")));
    let config = programs.path("checks.toml");
    fs::write(&config, text)?;
    let args = ["director".as_ref(), "--config".as_ref(), config.as_os_str()];
    Ok(programs.command("understudy", args))
}

fn theirs(programs: &Programs, check: &str) -> Result<Command> {
    let checker = match check {
        "http" => {
            "HTTP_GET { url { path / status_code 200 } connect_timeout 1 retry 1 delay_before_retry 1 }"
        }
        _ => "TCP_CHECK { connect_timeout 1 retry 1 delay_before_retry 1 }",
    };
    let mut text = String::new();
    for n in 0..SERVICES {
        text.push_str(&format!(
            "virtual_server {VIP} {} {{\n  delay_loop 1\n  lvs_sched wlc\n  lvs_method NAT\n  protocol TCP\n",
            vip_port(n)
        ));
        for m in 0..EACH {
            text.push_str(&format!(
                "  real_server {} {PORT} {{\n    weight 1\n    {checker}\n  }}\n",
                member(n, m)
            ));
        }
        text.push_str("}\n");
    }
    let conf = programs.path("checks.conf");
    fs::write(&conf, text)?;
    let [pid, checkers] = ["keepalived.pid", "checkers.pid"].map(|name| programs.path(name));
    let mut command = programs.command("keepalived", ["-n", "-C", "-G", "-l", "-I"]);
    command.arg("-f").arg(&conf).arg("-p").arg(pid);
    command.arg("-c").arg(checkers);
    Ok(command)
}

type Make = fn(&Programs, &str) -> Result<Command>;

const SIDES: [(&str, Make); 2] = [("understudy", ours), ("keepalived", theirs)];

/// A daemon over servers that all answer, settled.
fn settled<T: Send>(
    programs: &Programs,
    make: Make,
    check: &str,
    work: impl FnOnce(&mut Floor, &mut Daemon, &Servers) -> Result<T> + Send,
) -> Result<T> {
    in_namespace(|| {
        let servers = Servers::start()?;
        let mut floor = Floor::open()?;
        let mut daemon = Daemon::start(make(programs, check)?)?;
        let start = Instant::now();
        for n in 0..SERVICES {
            let request = floor.dump_of(VIP, vip_port(n));
            while floor.count(&request)? != usize::from(EACH) {
                daemon.runs()?;
                ensure!(start.elapsed() < LIMIT, "the table is not complete");
                thread::sleep(POLL);
            }
        }
        thread::sleep(SETTLED);
        let done = work(&mut floor, &mut daemon, &servers)?;
        daemon.end()?;
        floor.flush()?;
        Ok(done)
    })
}

/// From the failure to the removal, one server after the other.
pub(crate) fn detect(programs: &Programs, vanish: bool) -> Result<Outcome> {
    let mut taken = Vec::new();
    for (name, make) in SIDES {
        let runs = settled(programs, make, "tcp", |floor, daemon, servers| {
            let mut waiting = BTreeMap::new();
            let mut took = Vec::new();
            let requests: Vec<_> = (0..VICTIMS)
                .map(|n| floor.dump_of(VIP, vip_port(n)))
                .collect();
            let mut look = |waiting: &mut BTreeMap<u16, Instant>| -> Result<()> {
                for (n, request) in requests.iter().enumerate() {
                    let n = u16::try_from(n)?;
                    if let Some(since) = waiting.get(&n)
                        && floor.count(request)? < usize::from(EACH)
                    {
                        took.push(since.elapsed());
                        waiting.remove(&n);
                    }
                }
                Ok(())
            };
            for n in 0..VICTIMS {
                let victim = member(n, n % EACH);
                servers.does(match vanish {
                    true => Deed::Vanish(victim),
                    false => Deed::Refuse(victim),
                })?;
                let failed = Instant::now();
                waiting.insert(n, failed);
                while failed.elapsed() < GAP {
                    look(&mut waiting)?;
                    thread::sleep(POLL);
                }
            }
            let start = Instant::now();
            while !waiting.is_empty() {
                daemon.runs()?;
                ensure!(start.elapsed() < LIMIT, "some were never taken out");
                look(&mut waiting)?;
                thread::sleep(POLL);
            }
            Ok(took)
        })
        .context(name)?;
        taken.push(Taken { name, runs });
    }
    let (measure, of, goal) = match vanish {
        false => (
            "refused",
            "connection refused to removed, of 500 servers",
            0.25,
        ),
        true => (
            "dropped",
            "packets dropped to removed, of 500 servers",
            0.55,
        ),
    };
    Ok(Outcome::Times {
        measure,
        of,
        taken,
        goals: vec![Goal::first_against(1, goal)],
    })
}

/// User and system time of a process and its children, and their memory.
fn usage(pid: u32) -> Result<(Duration, u64)> {
    let mut all = vec![pid];
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        all.push(child.parse()?);
    }
    let (mut ticks, mut kilobytes) = (0, 0);
    for pid in all {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("no name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // utime and stime, the 14th and 15th field (proc_pid_stat(5)).
        for field in fields.iter().skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:"));
        let line = line.context("no VmRSS")?;
        kilobytes += line
            .split_whitespace()
            .nth(1)
            .context("no number")?
            .parse::<u64>()?;
    }
    // USER_HZ is 100 on every platform of ours.
    Ok((Duration::from_millis(ticks * 10), kilobytes))
}

/// CPU time for 500 checks a second.
pub(crate) fn cost(programs: &Programs, check: &'static str, count: usize) -> Result<Outcome> {
    let mut taken: Vec<Taken> = Vec::new();
    for (name, make) in SIDES {
        let runs = settled(programs, make, check, |_, daemon, _| {
            (0..count)
                .map(|_| {
                    let before = usage(daemon.id())?.0;
                    thread::sleep(WINDOW);
                    Ok(usage(daemon.id())?.0 - before)
                })
                .collect::<Result<Vec<_>>>()
        })
        .context(name)?;
        taken.push(Taken { name, runs });
    }
    let runs = in_namespace(|| {
        let _servers = Servers::start()?;
        (0..count)
            .map(|_| looped(check))
            .collect::<Result<Vec<_>>>()
    })?;
    taken.push(Taken {
        name: "bare epoll loop",
        runs,
    });
    Ok(Outcome::Times {
        measure: match check {
            "http" => "cost-http",
            _ => "cost-tcp",
        },
        of: "CPU time of 20 s, 500 checks a second",
        taken,
        goals: vec![Goal::first_against(1, 0.5), Goal::first_against(2, 1.5)],
    })
}

/// In a process of its own: the servers' threads are in this one.
fn looped(kind: &str) -> Result<Duration> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--loop", kind])
        .output()?;
    ensure!(output.status.success(), "the loop: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(done)), Some(Ok(micros))) = (numbers.next(), numbers.next()) else {
        bail!("the loop says {text:?}");
    };
    ensure!(
        done * 10 > u64::from(SERVERS) * 20 * 9,
        "the loop made {done} connections only"
    );
    Ok(Duration::from_micros(micros))
}

/// What [`looped`] starts.
pub(crate) fn run_loop(kind: &str) {
    let (done, cpu) = bare::run(&bare::Work {
        address: &server,
        port: PORT,
        count: SERVERS,
        http: kind == "http",
        warm_up: SETTLED,
        window: WINDOW,
    });
    println!("{done} {}", cpu.as_micros());
}

/// Memory of both with 500 checks.
pub(crate) fn resident(programs: &Programs) -> Result<Outcome> {
    let mut peaks = Vec::new();
    for (name, make) in SIDES {
        let kilobytes = settled(programs, make, "http", |_, daemon, _| {
            thread::sleep(WINDOW);
            Ok(usage(daemon.id())?.1)
        })
        .context(name)?;
        peaks.push(Peak { name, kilobytes });
    }
    let theirs = peaks.last().map_or(0, |peak| peak.kilobytes);
    Ok(Outcome::Memory {
        measure: "resident",
        of: "resident memory with 500 HTTP checks, children included",
        peaks,
        below_kilobytes: theirs * 3 / 2,
    })
}
