//! `make demo`: a dead web server and its understudy, on a real IPVS kernel, with nobody at the keys.
//!
//! A client, a director, three web servers and two spares; client traffic through the virtual
//! address; one web server is switched off. What is printed comes from what was seen and when: lines
//! that the daemons wrote, changes of /proc/net/ip_vs, requests of the client, all by one monotonic
//! clock (CLOCK_BOOTTIME). Exit status 1 if the spare takes no traffic, if a client sees an error
//! later than two seconds after the removal, or if any other server left IPVS.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for people: it prints, and fails loudly where it stands"
)]

#[path = "../lab/mod.rs"]
mod lab;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lab::{
    Forward, Lab, Wiring,
    files::{HTTP_CHECK, NGINX_SCRIPT, Service},
    now,
    process::Process,
    server::Tree,
    traffic::{Request, Traffic},
    vip4, wait_until,
};

/// Requests a second, from one client.
const RATE: u32 = 20;

/// Requests at the most: a bound, not a goal.
const COUNT: u32 = RATE * 300;

/// After the removal no client may see an error later than this.
const GRACE: Duration = Duration::from_secs(2);

/// Something that was seen, and when.
#[derive(Clone, Debug)]
struct Seen {
    at: u64,
    who: &'static str,
    what: String,
}

fn main() -> ExitCode {
    println!("building a client, a director, three web servers and two spares ...");
    let wiring = Wiring {
        v4: Forward::Nat,
        v6: Forward::Direct,
    };
    let servers = [
        ("web1", Tree::Web),
        ("web2", Tree::Web),
        ("web3", Tree::Web),
        ("spare1", Tree::Base),
        ("spare2", Tree::Base),
    ];
    let lab = Lab::new(wiring, &servers);
    let web = ["web1", "web2", "web3"];
    let real_server = |name| SocketAddr::new(lab.server(name).address4().parse().unwrap(), 80);
    let provisioner_config = lab.write_provisioner();
    let inventory = lab.write_inventory(&web, NGINX_SCRIPT);
    let service = Service {
        address: vip4(80),
        forward: "nat",
        check: HTTP_CHECK.to_owned(),
        real_servers: web.map(|name| (real_server(name), 1)).to_vec(),
    };
    let director_config = lab.write_director(&[service], "3s");

    println!("starting the provisioner and the director ...");
    let args = |role, config| [role, "--config", config, "--log-format", "json"];
    let mut provisioner = lab.understudy(
        "provisioner",
        &args("provisioner", &provisioner_config),
        &[],
    );
    provisioner.wait_for_log("provisioner is ready", Duration::from_secs(60));
    let socket = lab.provisioner_socket();
    let applied = lab.on_director(
        env!("CARGO_BIN_EXE_understudy"),
        &["inventory", "apply", &inventory, "--socket", &socket],
    );
    print!("{applied}");
    let mut director = lab.understudy("director", &args("director", &director_config), &[]);
    director.wait_for_log("director is ready", Duration::from_secs(60));
    wait_until("three web servers in IPVS", Duration::from_secs(60), || {
        in_kernel(&lab).len() == 3
    });
    let before = in_kernel(&lab);

    println!(
        "sending {RATE} client requests a second to http://{}/ ...",
        vip4(80)
    );
    let traffic = Traffic::start(&lab, vip4(80), RATE, COUNT);
    wait_until("answers of all three", Duration::from_secs(60), || {
        let answers: BTreeSet<_> = traffic
            .so_far()
            .into_iter()
            .filter_map(|r| r.outcome.ok())
            .collect();
        answers.len() == 3
    });

    let watch = Watch::start(
        &lab,
        [("director", &director), ("provisioner", &provisioner)],
    );
    println!("switching web1 off; from here on nobody touches anything ...\n");
    let killed = now();
    lab.server("web1").power_off();
    let from_spare = |r: &Request| r.outcome.as_ref().is_ok_and(|body| body.contains("spare"));
    wait_until(
        "a client request answered by a spare",
        Duration::from_secs(240),
        || traffic.so_far().iter().any(from_spare),
    );
    // Errors that come late must have their chance to be seen.
    let served = now();
    let late = Duration::from_secs(3);
    wait_until("three more seconds of traffic", late * 3, || {
        now() > served + nanos(late)
    });
    let requests = traffic.stop();
    let mut seen = watch.stop();
    let after = in_kernel(&lab);

    if let Some(first) = requests.iter().find(|r| from_spare(r)) {
        let body = first.outcome.clone().unwrap_or_default();
        let what = format!("first request answered by the spare: {body:?}");
        seen.push(Seen {
            at: first.end,
            who: "client",
            what,
        });
    }
    seen.push(Seen {
        at: killed,
        who: "demo",
        what: "web1 was switched off".to_owned(),
    });
    seen.sort_by_key(|s| s.at);
    println!("     time  seen by      what");
    for s in &seen {
        println!("{:>8.3}s  {:<11}  {}", seconds(killed, s.at), s.who, s.what);
    }
    let status = lab.on_director(
        env!("CARGO_BIN_EXE_understudy"),
        &["status", "--socket", &lab.director_socket()],
    );
    println!("\nunderstudy status\n{status}");
    verdict(
        killed,
        &seen,
        &requests,
        &before,
        &after,
        &real_server("web1").to_string(),
    )
}

fn verdict(
    killed: u64,
    seen: &[Seen],
    requests: &[Request],
    before: &BTreeSet<String>,
    after: &BTreeSet<String>,
    dead: &str,
) -> ExitCode {
    let lost: Vec<_> = requests.iter().filter(|r| r.outcome.is_err()).collect();
    println!(
        "client requests: {} sent, {} answered, {} lost",
        requests.len(),
        requests.len() - lost.len(),
        lost.len()
    );
    for r in &lost {
        let why = r
            .outcome
            .as_ref()
            .err()
            .map(String::as_str)
            .unwrap_or_default();
        let (start, end) = (seconds(killed, r.start), seconds(killed, r.end));
        println!("  lost: sent {start:.3}s, given up {end:.3}s: {why}");
    }
    let mut faults = Vec::new();
    let removal = seen
        .iter()
        .find(|s| s.who == "kernel" && s.what == format!("{dead} left IPVS"));
    match removal {
        None => faults.push(format!("{dead} was never taken out of IPVS")),
        Some(removal) => {
            let too_late = lost
                .iter()
                .filter(|r| r.start > removal.at + nanos(GRACE))
                .count();
            if too_late > 0 {
                faults.push(format!(
                    "{too_late} requests were lost later than {GRACE:?} after the removal"
                ));
            }
        }
    }
    let left: Vec<_> = seen
        .iter()
        .filter(|s| s.who == "kernel" && s.what.ends_with("left IPVS") && !s.what.starts_with(dead))
        .collect();
    if !left.is_empty() {
        faults.push(format!("other servers left IPVS: {left:?}"));
    }
    let joined: Vec<_> = after.difference(before).collect();
    if joined.len() != 1 {
        faults.push(format!(
            "one spare should have joined, but these did: {joined:?}"
        ));
    }
    if faults.is_empty() {
        println!("\nthe understudy is on stage: nobody was woken");
        return ExitCode::SUCCESS;
    }
    for fault in faults {
        println!("FAILED: {fault}");
    }
    ExitCode::FAILURE
}

/// Destinations with a weight, as /proc/net/ip_vs of the director has them.
fn in_kernel(lab: &Lab) -> BTreeSet<String> {
    lab.director.run(destinations)
}

fn destinations() -> BTreeSet<String> {
    let text = lab::proc_ip_vs();
    let dests = text.lines().filter_map(|l| l.trim().strip_prefix("-> "));
    dests
        .filter_map(|l| hex_address(l.split_whitespace().next()?))
        .collect()
}

/// `0A4D010B:0050` is 10.77.1.11:80.
fn hex_address(text: &str) -> Option<String> {
    let (address, port) = text.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(format!("{}:{port}", std::net::Ipv4Addr::from(address)))
}

/// Watches the kernel's table and the daemons' logs, and notes when something is seen.
struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Watch {
    fn start(lab: &Lab, logs: [(&'static str, &Process<'_>); 2]) -> Self {
        let (stop, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let mut threads = Vec::new();
        let (s, n) = (Arc::clone(&stop), Arc::clone(&seen));
        // A thread begins in the namespace of the one that starts it.
        threads.push(lab.director.run(|| {
            thread::spawn(move || {
                let mut last = destinations();
                while !s.load(Ordering::Relaxed) {
                    let is = destinations();
                    let at = now();
                    for gone in last.difference(&is) {
                        note(&n, at, "kernel", format!("{gone} left IPVS"));
                    }
                    for new in is.difference(&last) {
                        note(&n, at, "kernel", format!("{new} is in IPVS"));
                    }
                    last = is;
                    thread::sleep(Duration::from_millis(5));
                }
            })
        }));
        for (who, process) in logs {
            let (s, n, path) = (Arc::clone(&stop), Arc::clone(&seen), process.log_path());
            let mut read = process.log().len();
            threads.push(thread::spawn(move || {
                while !s.load(Ordering::Relaxed) {
                    let bytes = std::fs::read(&path).unwrap();
                    let at = now();
                    let new = bytes.get(read..).unwrap_or_default();
                    if let Some(end) = new.iter().rposition(|b| *b == b'\n') {
                        let text = String::from_utf8_lossy(new.get(..=end).unwrap_or_default());
                        read += end + 1;
                        for line in text.lines().filter_map(sentence) {
                            note(&n, at, who, line);
                        }
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            }));
        }
        Self {
            stop,
            seen,
            threads,
        }
    }

    fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads {
            t.join().expect("a watcher");
        }
        let seen = self.seen.lock().unwrap();
        seen.clone()
    }
}

fn note(seen: &Mutex<Vec<Seen>>, at: u64, who: &'static str, what: String) {
    seen.lock().unwrap().push(Seen { at, who, what });
}

/// A JSON log line as a sentence: the message and the fields that matter.
fn sentence(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = line.as_object()?;
    let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let message = text(fields.get("message")?);
    let shown = [
        "server",
        "failed",
        "step",
        "spare",
        "state",
        "reason",
        "elapsed_ms",
    ];
    let details: Vec<_> = shown
        .iter()
        .filter_map(|name| Some(format!("{name}={}", text(fields.get(*name)?))))
        .filter(|d| !d.ends_with('='))
        .collect();
    Some(format!("{message} ({})", details.join(" ")))
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).expect("a short duration")
}

fn seconds(from: u64, at: u64) -> f64 {
    let ns = |t: u64| Duration::from_nanos(t).as_secs_f64();
    ns(at) - ns(from)
}
