//! `make bench`, the part that needs no IPVS: how checks grow with the number of servers, and what
//! they cost beside a bare epoll loop that does the same with nothing around it.
//!
//! One process serves on the second core, the one that is measured has the first to itself. A server
//! is an address under 127/8 of one listener. CPU time is user and system time of the measured
//! process over a window after its start; of the work of the loopback device it has its half.
//!
//! Arguments name parts: `scale`, `loop`, `reload` (the CPU of one); none means all. `BENCH_SECONDS` is the window (10). `calm`
//! by itself lasts five minutes (`BENCH_SECONDS` too): 1,000 healthy servers while both cores spin.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people: it prints, and fails loudly where it stands"
)]

mod bare;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use understudy::{
    agent::{
        core::{Inputs, Outputs, Shell},
        lock,
        state_file::StateFile,
    },
    check::{self, Network, Observer},
    clock, config,
    director::{Core, Event, Recall, Reload, Start},
    model::{DestAttrs, DestKey, DestState, Found, KernelTable, Outcome, ServiceState, Stats},
    reconcile::plan::{Applied, plan},
    telemetry::metrics::DirectorMetrics,
};

/// The first probes are not as the later ones.
const WARM_UP: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_millis(100);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
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
        ["--spin"] => spin(),
        ["--calm", port] => calm_child(port.parse().unwrap()),
        ["calm"] => calm(),
        parts => {
            let any = |part| parts.is_empty() || parts.contains(&part);
            if any("scale") {
                scale();
            }
            if any("loop") {
                beside_a_loop();
            }
            if any("reload") {
                reload();
            }
        }
    }
    ExitCode::SUCCESS
}

fn window() -> Duration {
    seconds(10)
}

fn seconds(usual: u64) -> Duration {
    let seconds = env::var("BENCH_SECONDS").map_or(usual, |text| text.parse().unwrap());
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

/// Nothing fails falsely.
fn calm() {
    println!(
        "\n1,000 healthy servers, checked every second with a time-out of 1 s, while both cores spin"
    );
    let server = Server::start("tcp");
    let mut spinners: Vec<Child> = (0..2).map(|_| spinner()).collect();
    let line = child(&["--calm", &server.port]);
    for spinner in &mut spinners {
        spinner.kill().unwrap();
        spinner.wait().unwrap();
    }
    let [probes, failed, late, latest_us, out, local] = numbers(&line);
    println!(
        "  {probes} probes, {late} begun more than 100 ms late, at most {:.0} ms",
        latest_us / 1e3
    );
    println!("  {failed} did not pass, {local} of them for reasons of this host's own");
    println!("  servers taken out: {out} (goal 0)");
}

fn spinner() -> Child {
    Command::new(env::current_exe().unwrap())
        .arg("--spin")
        .spawn()
        .unwrap()
}

fn spin() {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// Five minutes of a director.
fn calm_child(port: u16) {
    with_director("tcp", port, 1_000, async |counts, registry| {
        tokio::time::sleep(seconds(300)).await;
        let mut metrics = String::new();
        prometheus_client::encoding::text::encode(&mut metrics, registry).unwrap();
        let sum = |name: &str, label: &str| {
            let lines = metrics.lines();
            let lines = lines.filter(|l| l.starts_with(name) && l.contains(label));
            let values = lines.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok());
            values.sum::<u64>()
        };
        let up = sum("understudy_real_server_transitions_total", "to=\"up\"");
        assert_eq!(up, 1_000, "all servers went up once: {metrics}");
        let out = sum("understudy_real_server_transitions_total", "to=\"down\"");
        let local = sum("understudy_probes_total", "reason=\"local\"");
        let [probes, failed, late, latest_us] = counts.read();
        println!("{probes} {failed} {late} {latest_us} {out} {local}");
    });
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

#[derive(Clone)]
struct Counted(Arc<Counts>, DirectorMetrics);

#[derive(Default)]
struct Counts {
    probes: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
    latest_us: AtomicU64,
}

impl Counts {
    fn all(&self) -> [&AtomicU64; 4] {
        [&self.probes, &self.failed, &self.late, &self.latest_us]
    }
    fn read(&self) -> [u64; 4] {
        self.all().map(|n| n.load(Ordering::Relaxed))
    }
    fn reset(&self) {
        for n in self.all() {
            n.store(0, Ordering::Relaxed);
        }
    }
}

impl Observer for Counted {
    fn probed(&self, outcome: Outcome, elapsed: Duration) {
        self.0.probes.fetch_add(1, Ordering::Relaxed);
        let failed = outcome != Outcome::Pass;
        self.0.failed.fetch_add(failed.into(), Ordering::Relaxed);
        self.1.probed(outcome, elapsed);
    }
    fn begun_late(&self, by: Duration) {
        self.0.late.fetch_add((by > LATE).into(), Ordering::Relaxed);
        let us = u64::try_from(by.as_micros()).unwrap();
        self.0.latest_us.fetch_max(us, Ordering::Relaxed);
        self.1.begun_late(by);
    }
    fn report_dropped(&self) {
        self.1.report_dropped();
    }
    fn in_flight(&self, probes: usize, targets: usize) {
        self.1.in_flight(probes, targets);
    }
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Services of twenty servers each, asked every second.
fn config(kind: &str, port: u16, count: u32) -> config::Director {
    config::director::parse(Path::new("bench.toml"), &text(kind, port, count)).unwrap()
}

fn text(kind: &str, port: u16, count: u32) -> String {
    let mut text = "[director]\nname = \"bench\"\naddress = \"127.0.0.1\"\n".to_owned();
    for n in 0..count {
        if n % 20 == 0 {
            text.push_str(&format!(
                "[[virtual_service]]\naddress = \"192.0.2.1:{}\"\nscheduler = \"wlc\"\nforward = \"nat\"\ncheck = {{ interval = \"1s\", timeout = \"1s\", {kind} = {{}} }}\n",
                1 + n / 20
            ));
        }
        text.push_str(&format!(
            "[[virtual_service.real_server]]\naddress = \"{}:{port}\"\n",
            address(n)
        ));
    }
    text
}

/// The CPU that a reload of 500 services with 20 servers each takes, one line of which differs: reading the
/// text, what the core makes of it, and the plan against the table as it is.
fn reload() {
    let text = text("tcp", 9, 10_000);
    let parse = |text: &str| config::director::parse(Path::new("bench.toml"), text).unwrap();
    let config = Arc::new(parse(&text));
    let table: KernelTable = config
        .services
        .iter()
        .map(|(key, service)| {
            let dest = |(dest, attrs): (&DestKey, &DestAttrs)| {
                let state = DestState {
                    attrs: *attrs,
                    active_connections: 7,
                    inactive_connections: 7,
                    persistent_connections: 0,
                    counters: None,
                };
                (*dest, state)
            };
            let state = ServiceState {
                attrs: service.attrs.clone(),
                dests: service.servers.iter().map(dest).collect(),
                stats: Stats::default(),
            };
            (*key, state)
        })
        .collect();
    let kernel = table.iter().map(|(key, service)| {
        let dests = service
            .dests
            .iter()
            .map(|(dest, state)| (*dest, state.attrs));
        (*key, dests.collect())
    });
    let start = Start {
        now: clock::now(),
        wall: clock::wall(),
        boot_id: clock::boot_id().unwrap(),
        recall: Recall::Forgot("the first start".into()),
        kernel: kernel.collect(),
        dropped: BTreeMap::new(),
        marked: BTreeSet::new(),
    };
    let mut core = Core::new(config, start);
    for slots in core.targets().into_values() {
        let (slots, found) = (slots.into(), Found::of(Outcome::Pass, Duration::ZERO));
        core.handle(Event::Probe { slots, found }, clock::now());
    }
    let mut taken = Vec::new();
    for n in 0..20 {
        let last = match n % 2 {
            0 => format!("{text}weight = 5\n"),
            _ => text.clone(),
        };
        let began = cpu();
        let config = Arc::new(parse(&last));
        let parsed = cpu();
        let reload = Reload {
            config,
            found: BTreeMap::new(),
        };
        let fx = core.handle(Event::Reload(Box::new(reload)), clock::now());
        let mut steps = Vec::new();
        for key in &fx.dirty {
            let want = core.desired(*key).unwrap();
            // Others share their part with the one before, and are not looked at again.
            if !want.is_met_by(table.get(key)) {
                let plan = plan(*key, Some(&want.service), &want.out, table.get(key));
                steps.extend(plan.steps().cloned());
            }
        }
        let done = cpu();
        let expected = (n + 1) % 2;
        assert_eq!(steps.len(), expected, "{steps:?}");
        taken.push((done - began, parsed - began));
    }
    taken.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let (whole, parsed) = *taken.get(taken.len() / 2).unwrap();
    println!(
        "\nA reload of 500 services with 20 servers each, one line differs: {:.1} ms of CPU (goal 100), of which {:.1} ms are reading the text; slowest of {}: {:.1} ms",
        ms(whole),
        ms(parsed),
        taken.len(),
        ms(taken.last().unwrap().0)
    );
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .unwrap()
        .into()
}

/// A director on one thread, as it always runs, without what needs IPVS: its checks, its core, its
/// memory and its metrics. Nobody reads what it wants of the kernel.
fn with_director(kind: &str, port: u16, count: u32, look: impl AsyncFnOnce(&Counts, &Registry)) {
    let mut config = config(kind, port, count);
    let folder = tempfile::tempdir().unwrap();
    config.socket = folder.path().join("director.sock");
    let config = Arc::new(config);
    let (file, recall) = StateFile::open(folder.path(), &config.name).unwrap();
    let mut registry = Registry::default();
    let metrics = DirectorMetrics::register(&mut registry, &understudy::BUILD);
    let counted = Counted(Arc::default(), metrics.clone());
    let core = Core::new(
        Arc::clone(&config),
        Start {
            now: clock::now(),
            wall: clock::wall(),
            boot_id: clock::boot_id().unwrap(),
            recall,
            kernel: BTreeMap::new(),
            dropped: BTreeMap::new(),
            marked: BTreeSet::new(),
        },
    );
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        let out = Outputs::of(&core);
        let to_check = out.targets.subscribe();
        let (_applied, applied) = watch::channel(Applied::default());
        let (_nudges, nudges) = mpsc::channel(1);
        let (to_core, reports) = mpsc::channel(8192);
        let (_events, events) = mpsc::channel(1);
        let (_questions, questions) = mpsc::channel(1);
        let (_loads, loads) = mpsc::channel(1);
        let (_stops, stops) = mpsc::channel(1);
        let (_host, host) = watch::channel(Vec::new());
        let lock = lock::take(&config).await.unwrap();
        let shell = Shell::new(core, (file, lock), metrics, out);
        let inputs = Inputs {
            reports,
            events,
            applied,
            questions,
            loads,
            stops,
            host: host.clone(),
            addresses: host,
        };
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        let network = Network::default();
        tasks.spawn(check::run_with(
            network,
            to_check,
            nudges,
            to_core,
            counted.clone(),
            stop.clone(),
        ));
        tasks.spawn(shell.run(inputs, stop));
        look(&counted.0, &registry).await;
    });
}

/// A director of so many servers.
fn ours(kind: &str, port: u16, count: u32) {
    on_core(0);
    with_director(kind, port, count, async |counts, _| {
        // Spread over a second of its own where there are more than a thousand.
        tokio::time::sleep(WARM_UP).await;
        counts.reset();
        let before = bare::cpu_time();
        tokio::time::sleep(window()).await;
        let cpu = (bare::cpu_time() - before).as_micros();
        let [probes, failed, late, latest_us] = counts.read();
        println!(
            "{probes} {failed} {late} {latest_us} {cpu} {}",
            memory_kib()
        );
    });
}

/// The bare loop.
fn bare(kind: &str, port: u16, count: u32) {
    on_core(0);
    let (done, cpu) = bare::run(&bare::Work {
        address: &address,
        port,
        count,
        http: kind == "http",
        warm_up: WARM_UP,
        window: window(),
    });
    println!("{done} 0 0 0 {} {}", cpu.as_micros(), memory_kib());
}
