//! `make bench`, the part that needs no IPVS: how checks grow with the number of servers, and what
//! they cost beside a bare epoll loop that does the same with nothing around it.
//!
//! One process serves on the second core, the one that is measured has the first to itself. A server
//! is an address under 127/8 of one listener. CPU time is user and system time of the measured
//! process over a window after its start; of the work of the loopback device it has its half.
//!
//! Arguments name parts: `scale`, `loop`; none means all. `BENCH_SECONDS` is the window (10).

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people: it prints, and fails loudly where it stands"
)]

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd as _,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{UsageWho, getrusage},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, setsockopt, socket,
            sockopt,
        },
    },
    unistd::Pid,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use understudy::{
    check::{self, Network, Observer, Target},
    model::{CheckKind, CheckSpec, CheckTiming, DestKey, Outcome, Protocol, ServiceKey, Slot, Via},
};

/// The first probes are not as the later ones.
const WARM_UP: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_millis(100);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: loop\r\nConnection: close\r\n\r\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--serve", kind] => serve(kind),
        ["--ours", kind, port, count] => {
            ours(kind, port.parse().unwrap(), count.parse().unwrap());
        }
        ["--loop", kind, port, count] => {
            bare(kind, port.parse().unwrap(), count.parse().unwrap());
        }
        parts => {
            let any = |part| parts.is_empty() || parts.contains(&part);
            if any("scale") {
                scale();
            }
            if any("loop") {
                beside_a_loop();
            }
        }
    }
    ExitCode::SUCCESS
}

fn window() -> Duration {
    let seconds = env::var("BENCH_SECONDS").map_or(10, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// How checks grow.
fn scale() {
    println!("\nTCP checks every second, on one core");
    println!("  servers  probes/s   late  latest ms  CPU s/s  CPU us/probe  memory MB");
    let server = Server::start("tcp");
    for count in [100, 1_000, 5_000, 10_000, 20_000] {
        let line = child(&["--ours", "tcp", &server.port, &count.to_string()]);
        let [probes, failed, late, latest_us, cpu_us, kib] = numbers(&line);
        let seconds = window().as_secs_f64();
        println!(
            "  {count:>7}  {:>8.0}  {:>4.2}%  {:>9.1}  {:>7.3}  {:>12.1}  {:>9.1}{}",
            probes / seconds,
            100.0 * late / probes,
            latest_us / 1e3,
            cpu_us / 1e6 / seconds,
            cpu_us / probes,
            kib / 1024.0,
            if failed > 0.0 {
                format!("  {failed} FAILED")
            } else {
                String::new()
            }
        );
    }
}

/// The same number of connections with nothing around them.
fn beside_a_loop() {
    println!("\n500 checks a second on one core, beside a bare epoll loop");
    println!("  kind   ours us/probe  loop us/probe  ratio  goal");
    for kind in ["tcp", "http"] {
        let server = Server::start(kind);
        // In turn: these machines are noisy.
        let mut taken = [Vec::new(), Vec::new()];
        for _ in 0..3 {
            for (side, program) in taken.iter_mut().zip(["--ours", "--loop"]) {
                let line = child(&[program, kind, &server.port, "500"]);
                let [probes, failed, _, _, cpu_us, _] = numbers(&line);
                assert!(failed == 0.0, "{program} {kind}: {failed} failed");
                side.push(cpu_us / probes);
            }
        }
        let [ours, bare] = taken.map(|mut all| {
            all.sort_by(f64::total_cmp);
            *all.get(all.len() / 2).unwrap()
        });
        let ratio = ours / bare;
        println!("  {kind:<5}  {ours:>13.1}  {bare:>13.1}  {ratio:>5.2}  1.50");
    }
}

fn numbers(line: &str) -> [f64; 6] {
    let all: Vec<f64> = line
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    all.try_into().unwrap()
}

/// This program in another process, on the first core; the line that it prints.
fn child(arguments: &[&str]) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn on_core(number: usize) {
    let mut cores = CpuSet::new();
    cores.set(number).unwrap();
    // A machine with one core has no other.
    sched_setaffinity(Pid::from_raw(0), &cores).unwrap_or_default();
}

struct Server {
    child: Child,
    port: String,
}

impl Server {
    fn start(kind: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--serve", kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut port).unwrap();
        Self {
            child,
            port: port.trim().to_owned(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Accepts, answers a request if one comes, closes.
fn serve(kind: &str) {
    on_core(1);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(4096).unwrap();
    let listener = TcpListener::from(socket);
    println!("{}", listener.local_addr().unwrap().port());
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut request = [0; 1024];
        if kind == "http" && matches!(stream.read(&mut request), Ok(n) if n > 0) {
            drop(stream.write_all(ANSWER));
        }
    }
}

/// The `n`th server.
fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + n)
}

#[derive(Clone, Default)]
struct Counted(Arc<Counts>);

#[derive(Default)]
struct Counts {
    probes: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
    latest_us: AtomicU64,
}

impl Observer for Counted {
    fn probed(&self, outcome: Outcome, _elapsed: Duration) {
        self.0.probes.fetch_add(1, Ordering::Relaxed);
        let failed = outcome != Outcome::Pass;
        self.0.failed.fetch_add(failed.into(), Ordering::Relaxed);
    }
    fn begun_late(&self, by: Duration) {
        self.0.late.fetch_add((by > LATE).into(), Ordering::Relaxed);
        let us = u64::try_from(by.as_micros()).unwrap();
        self.0.latest_us.fetch_max(us, Ordering::Relaxed);
    }
    fn report_dropped(&self) {}
    fn in_flight(&self, _probes: usize, _targets: usize) {}
}

fn cpu_us() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let us = |t: nix::sys::time::TimeVal| t.tv_sec() * 1_000_000 + t.tv_usec();
    us(usage.user_time()) + us(usage.system_time())
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The check room as the director runs it.
fn ours(kind: &str, port: u16, count: u32) {
    on_core(0);
    let kind = match kind {
        "http" => CheckKind::Http(Box::default()),
        _ => CheckKind::default(),
    };
    let spec = Arc::new(CheckSpec {
        kind,
        via: Via::default(),
        timing: CheckTiming::every(Duration::from_secs(1)),
    });
    let service = ServiceKey::Addr(Protocol::Tcp, "192.0.2.1:80".parse().unwrap());
    let target = |n| {
        let dest = DestKey {
            addr: IpAddr::V4(address(n)),
            port,
        };
        let slot = Slot {
            service,
            dest,
            check: 0,
        };
        Target {
            at: SocketAddr::new(dest.addr, port),
            spec: Arc::clone(&spec),
            slots: [slot].into(),
            fast: false,
        }
    };
    let targets: Vec<Target> = (0..count).map(target).collect();
    let counted = Counted::default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_targets, targets) = watch::channel(Arc::new(targets));
        let (_nudges, nudges) = mpsc::channel(1);
        let (reports, mut read) = mpsc::channel(1024);
        let stop = CancellationToken::new();
        let observer = counted.clone();
        let network = Network::default();
        let mut checks = tokio::task::JoinSet::new();
        checks.spawn(check::run_with(
            network, targets, nudges, reports, observer, stop,
        ));
        // The core's part is not measured: reports are taken and dropped.
        checks.spawn(async move { while read.recv().await.is_some() {} });
        // Spread over a second of its own where there are more than a thousand.
        tokio::time::sleep(WARM_UP).await;
        let Counts {
            probes,
            failed,
            late,
            latest_us,
        } = &*counted.0;
        for count in [probes, failed, late, latest_us] {
            count.store(0, Ordering::Relaxed);
        }
        let before = cpu_us();
        tokio::time::sleep(window()).await;
        let cpu = cpu_us() - before;
        let [probes, failed, late, latest_us] =
            [probes, failed, late, latest_us].map(|n| n.load(Ordering::Relaxed));
        println!(
            "{probes} {failed} {late} {latest_us} {cpu} {}",
            memory_kib()
        );
    });
}

/// Connects, asks, reads, closes, as few system calls as there can be, spread over each second.
fn bare(kind: &str, port: u16, count: u32) {
    on_core(0);
    let http = kind == "http";
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut open = std::collections::HashMap::new();
    let (mut done, mut next) = (0_u64, 0_u32);
    let mut began = Instant::now();
    let mut before = cpu_us();
    let mut warm = false;
    let gap = Duration::from_secs(1) / count;
    let mut due = Instant::now();
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let now = Instant::now();
        if !warm && now - began >= WARM_UP {
            (warm, began, before, done) = (true, now, cpu_us(), 0);
        } else if warm && now - began >= window() {
            break;
        }
        while due <= now {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&fd, sockopt::Linger, &linger).unwrap();
            let at = SocketAddr::new(address(next % count).into(), port);
            let SocketAddr::V4(at) = at else {
                unreachable!()
            };
            match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(at)) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
                Err(error) => panic!("{error}"),
            }
            let id = u64::from(next);
            let writable = EpollEvent::new(EpollFlags::EPOLLOUT, id);
            epoll.add(fd.as_fd(), writable).unwrap();
            open.insert(id, fd);
            next += 1;
            due += gap;
        }
        let left = due.saturating_duration_since(Instant::now());
        let wait = EpollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap();
        let ready = epoll.wait(&mut events, wait).unwrap();
        for event in events.iter().take(ready) {
            let id = event.data();
            let fd = open.get(&id).unwrap();
            if event.events().contains(EpollFlags::EPOLLOUT) {
                assert_eq!(getsockopt(fd, sockopt::SocketError).unwrap(), 0);
                if http {
                    nix::unistd::write(fd, REQUEST).unwrap();
                    let mut readable = EpollEvent::new(EpollFlags::EPOLLIN, id);
                    epoll.modify(fd.as_fd(), &mut readable).unwrap();
                    continue;
                }
            } else {
                let mut answer = [0; 1024];
                let length = nix::unistd::read(fd, &mut answer).unwrap();
                assert!(answer.get(..length).unwrap().starts_with(b"HTTP/1.1 200"));
            }
            open.remove(&id);
            done += 1;
        }
    }
    println!("{done} 0 0 0 {} {}", cpu_us() - before, memory_kib());
}
