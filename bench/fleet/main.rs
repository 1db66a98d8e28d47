//! A fleet on one machine: directors (the product's request and membership code, without IPVS), three provisioners on
//! one PostgreSQL, spares with an sshd each. More servers fail than there are spares; the others wait, and get theirs as
//! stand-ins are given back. Provisioners are killed meanwhile.
//!
//! That no failure has two spares and no spare two roles is read where the product has no say: in the directors' tables
//! of who is in service, in the database, and on the spares, where each script notes that it ran.
//!
//! `make bench-fleet` runs all of it, with figures; `cargo test` a small one, for what must hold. `FLEET_SEED` repeats the
//! choice of who is killed, and when.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a program for people: it prints, and fails loudly where it stands"
)]

mod asked;
mod director;
mod machine;
#[path = "../../tests/it/pki.rs"]
#[expect(dead_code, reason = "nobody is revoked here")]
mod pki;
#[path = "../../tests/it/port.rs"]
mod port;
mod raw;
mod witness;

use std::{
    collections::BTreeMap,
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hyper::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{runtime, time::sleep};
use understudy::api::client::{Client, NOTHING};

use asked::{Asked, POLL, Times, quantile};
use director::{Director, Scene, look};
use machine::{Postgres, Provisioner, Spares};
use pki::Authority;
use witness::Ledger;

/// How much of it.
#[derive(Debug)]
pub(crate) struct Scale {
    /// Directors with servers of their own, five each.
    leaders: usize,
    /// Directors with the same services as one of those.
    seconds: usize,
    failures: usize,
    spares: usize,
    roles: usize,
    /// Kills of provisioners: each when so many stand-ins, in hundredths of all failures, have been attached.
    kills: &'static [usize],
}

const SMALL: Scale = Scale {
    leaders: 4,
    seconds: 1,
    failures: 20,
    spares: 12,
    roles: 5,
    kills: &[20, 80],
};

const FULL: Scale = Scale {
    leaders: 40,
    seconds: 10,
    failures: 200,
    spares: 120,
    roles: 10,
    kills: &[40, 75, 90],
};

/// One failure, and nothing beside it.
const ALONE: Scale = Scale {
    leaders: 1,
    seconds: 0,
    failures: 1,
    spares: 1,
    roles: 1,
    kills: &[],
};

const PROVISIONERS: usize = 3;

/// One that was killed is away so long.
const AWAY: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let full = arguments.iter().any(|a| a == "--bench");
    // As a test it is one, with a name that may be asked for.
    if arguments.iter().any(|a| a == "--list") {
        println!("fleet: test");
        return ExitCode::SUCCESS;
    }
    let mut wanted = arguments.iter().filter(|a| !a.starts_with('-'));
    if !full
        && wanted
            .next()
            .is_some_and(|name| !"fleet".contains(name.as_str()))
    {
        return ExitCode::SUCCESS;
    }
    let all = runtime::Builder::new_multi_thread().enable_all().build();
    let all = all.unwrap();
    let asked = Asked::listen();
    let rounds = if full { 5 } else { 1 };
    let mut alone = Vec::from_iter((0..rounds).map(|_| all.block_on(run(&ALONE, &asked, None))));
    alone.sort_unstable();
    println!(
        "fleet: one failure alone, from its request to the stand-in's place, its script does next to nothing: {alone:?} ms"
    );
    match full {
        true => all.block_on(run(&FULL, &asked, Some(&alone))),
        false => all.block_on(run(&SMALL, &asked, None)),
    };
    ExitCode::SUCCESS
}

/// Kills provisioners, and starts them again.
struct Killer {
    seed: u64,
    /// When so many have been attached, the next is killed.
    due: Vec<usize>,
    down: Option<(usize, Instant)>,
    killed: Vec<(String, f64)>,
    begun: Instant,
}

impl Killer {
    fn new(scale: &Scale) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = env::var("FLEET_SEED").map_or(now.subsec_nanos().into(), |s| s.parse().unwrap());
        let mut killer = Self {
            seed,
            due: Vec::new(),
            down: None,
            killed: Vec::new(),
            begun: Instant::now(),
        };
        let spread = u64::try_from(scale.failures / 20).unwrap();
        for at in scale.kills {
            let more = usize::try_from(killer.random() % spread.max(1)).unwrap();
            killer.due.push(at * scale.failures / 100 + more);
        }
        killer.due.reverse();
        killer
    }

    /// xorshift64*: a few numbers that a seed gives again.
    fn random(&mut self) -> u64 {
        let mut x = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.seed = self.seed.wrapping_add(1);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    fn tick(&mut self, provisioners: &mut [Provisioner], attached: usize) {
        if let Some((which, since)) = self.down {
            if since.elapsed() >= AWAY {
                provisioners[which].start();
                self.down = None;
            }
            return;
        }
        if self.due.last().is_some_and(|at| attached >= *at) {
            self.due.pop();
            let which = usize::try_from(self.random()).unwrap() % provisioners.len();
            provisioners[which].kill();
            self.down = Some((which, Instant::now()));
            let name = provisioners[which].name.clone();
            self.killed.push((name, self.begun.elapsed().as_secs_f64()));
        }
    }
}

/// Everything, in motion.
struct Fleet {
    provisioners: Vec<Provisioner>,
    spares: Spares,
    directors: Vec<Director>,
    scene: Scene,
    ledger: Ledger,
    killer: Killer,
    /// Cleaned by hand and released.
    by_hand: usize,
    /// Ends last.
    postgres: Postgres,
}

impl Fleet {
    /// Waits until it is so, while everybody is watched, and what has no cleanup is cleaned by hand.
    async fn until(&mut self, what: &str, limit: Duration, is: impl AsyncFn(&Self) -> bool) {
        let begun = Instant::now();
        loop {
            self.ledger.look().await;
            let attached = look(&self.scene).stood_in.len();
            self.killer.tick(&mut self.provisioners, attached);
            for p in &mut self.provisioners {
                let postgres = &self.postgres;
                assert!(
                    !p.ended(),
                    "{} ended: {}\n{}",
                    p.name,
                    p.log(),
                    postgres.log()
                );
            }
            self.clean().await;
            if is(self).await {
                return;
            }
            if begun.elapsed() > limit {
                self.say_where_it_stands().await;
                panic!("waited {limit:?} in vain for: {what}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn say_where_it_stands(&self) {
        for p in &self.provisioners {
            let log = p.log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(30);
            println!("{}:\n{}", p.name, lines[last..].join("\n"));
        }
        println!("PostgreSQL:\n{}", self.postgres.log());
        println!("audit trail: {:?}", self.ledger.trail().await);
        println!(
            "spares not seen well: {:?}",
            self.ledger.texts(IN_TROUBLE).await
        );
        let tables = look(&self.scene);
        println!(
            "{} failures have had a spare, {} serve, faults: {:?} {:?}",
            tables.stood_in.len(),
            tables.serving().len(),
            tables.faults,
            self.ledger.faults
        );
    }

    async fn clean(&mut self) {
        for name in self.ledger.dirty().await {
            let spare = self.spares.all.iter().find(|s| s.name == name).unwrap();
            spare.clean();
            let path = format!("/v1/servers/{name}/release");
            let places = self.provisioners.iter().map(Provisioner::socket);
            let places: Vec<_> = places.map(understudy::config::Endpoint::Unix).collect();
            let limit = Duration::from_secs(30);
            let client = Client::of(places, None);
            let released = client.ask::<()>(Method::POST, &path, None, NOTHING, limit);
            released.await.unwrap();
            self.by_hand += 1;
        }
    }

    /// Seconds of CPU so far: provisioners, spares.
    fn cpu(&self) -> [f64; 2] {
        let provisioners = self.provisioners.iter().map(Provisioner::cpu).sum();
        let spares = self.spares.all.iter().map(|s| machine::cpu(s.id())).sum();
        [provisioners, spares]
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

const WAITING: &str = "SELECT count(*) FROM replacement WHERE kind = 'replace' AND state = 'pending' AND reason LIKE 'no_spare%'";
const SUCCEEDED: &str =
    "SELECT count(*) FROM replacement WHERE kind = 'replace' AND state = 'succeeded'";
const SEEN: &str = "SELECT count(*) FROM server WHERE files_role IS NULL AND os_seen IS NOT NULL AND trouble IS NULL";
const IN_TROUBLE: &str = "SELECT concat_ws(' ', name, state, os_seen, trouble) FROM server WHERE files_role IS NULL AND (os_seen IS NULL OR trouble IS NOT NULL)";
const READY: &str = "SELECT count(*) FROM server WHERE files_role IS NULL AND state = 'ready'";

/// Milliseconds until the first stand-in is in place. With all figures where `alone` has those of one failure.
async fn run(scale: &Scale, asked: &Asked, alone: Option<&[u64]>) -> u64 {
    let load_before = load();
    let (mut fleet, folder) = set_up(scale).await;
    let scaled = |n: usize| i64::try_from(n).unwrap();
    let (failures, spares) = (scale.failures, scale.spares);
    let waiting = failures - spares;
    let soon = Duration::from_secs(60);
    let long = Duration::from_secs(900);

    fleet
        .until("every spare to be looked at", soon * 3, async |f| {
            f.ledger.count(SEEN).await == scaled(spares)
        })
        .await;
    drop(asked.take());
    let idle = fleet.cpu();
    let postgres_idle = machine::cpu(fleet.postgres.id());
    let own_idle = machine::own_cpu();
    fleet.killer.begun = Instant::now();

    // All at once.
    let failed = Instant::now();
    for director in &fleet.directors {
        director.fail();
    }
    fleet
        .until(
            "all spares to serve and the others to wait",
            long,
            async |f| {
                look(&f.scene).serving().len() == spares
                    && f.ledger.count(SUCCEEDED).await == scaled(spares)
                    && f.ledger.count(WAITING).await == scaled(waiting)
            },
        )
        .await;
    let served = failed.elapsed();
    let in_the_failure = asked.take();
    assert_eq!(fleet.ledger.claims().await.len(), spares);
    let taken = fleet.spares.all.iter().map(|s| s.witness());
    let taken: Vec<_> = taken.map(|lines| lines.len()).collect();
    assert_eq!(taken, vec![1; spares], "each spare was given one role");

    // The servers are well again, but for those that never had a stand-in.
    let released = Instant::now();
    for director in &fleet.directors {
        director.release();
    }
    fleet
        .until("those that waited to be served", long, async |f| {
            look(&f.scene).stood_in.len() == failures
        })
        .await;
    let all_served = released.elapsed();
    // And those too: whoever is attached now is given back, until nobody is.
    fleet
        .until("all spares to be spares again", long, async |f| {
            f.directors.iter().for_each(Director::release);
            look(&f.scene).serving().is_empty()
                && f.ledger.count(READY).await == scaled(spares)
                && f.killer.down.is_none()
        })
        .await;
    let all_free = released.elapsed();
    let after = asked.take();
    let busy = fleet.cpu();
    let postgres_busy = machine::cpu(fleet.postgres.id()) - postgres_idle;
    let own = machine::own_cpu();

    hold(scale, &mut fleet).await;

    let claims = fleet.ledger.claims().await;
    let first: Vec<_> = claims.iter().take(spares).copied().collect();
    let claim_span = (first[spares - 1] - first[0]).max(1);
    #[expect(clippy::as_conversions, reason = "figures for people")]
    let claims_a_second = (spares - 1) as f64 * 1000.0 / claim_span as f64;
    let first_answers = {
        let tables = look(&fleet.scene);
        let at = |t: &Instant| u64::try_from((*t - failed).as_millis()).unwrap();
        let mut all: Vec<_> = tables.answered.values().map(at).collect();
        all.sort_unstable();
        all
    };
    let stood_in = {
        let tables = look(&fleet.scene);
        let at = |(_, t): &(String, Instant)| u64::try_from((*t - failed).as_millis()).unwrap();
        let mut all: Vec<_> = tables.stood_in.values().map(at).collect();
        all.sort_unstable();
        all.truncate(spares);
        all
    };
    let trail = fleet.ledger.trail().await;
    let silent = look(&fleet.scene).silent;
    let leases_lost: f64 = fleet
        .provisioners
        .iter()
        .map(|p| p.metric("understudy_leases_lost"))
        .sum();
    let directors = fleet.directors.len();
    println!(
        "fleet: {directors} directors, {PROVISIONERS} provisioners, {failures} failures, {spares} spares: each failure had \
         one spare, no spare two roles, {waiting} waited and were served; {} kills, the tables read {} times",
        fleet.killer.killed.len(),
        fleet.ledger.looks,
    );
    let first = stood_in.first().copied().unwrap_or_default();
    let Some(alone) = alone else {
        let [served, all_served, all_free] = [served, all_served, all_free].map(|t| t.as_secs());
        println!(
            "fleet: served after {served} s, after the release those that waited {all_served} s, all free {all_free} s"
        );
        return first;
    };

    let postgres = &fleet.postgres;
    let raw = raw::claims(&database(postgres, "raw").await, &folder, &fleet.directors).await;
    let [provisioners, sshds] = [0, 1].map(|n| busy[n] - idle[n]);
    let own = own - own_idle;
    let seconds = |d: Duration| d.as_secs_f64();
    println!(
        "\n{}; load before {load_before}, after {}",
        postgres.version,
        load()
    );
    println!(
        "killed (seconds after the failure): {:?}",
        fleet.killer.killed
    );
    println!("\nclaims");
    println!(
        "  with their steps over SSH: {claims_a_second:.2}/s ({spares} within {:.1} s)",
        per_mille(claim_span)
    );
    println!(
        "  the store alone: {:.1}/s ({} claims of three provisioners, {} chosen anew because another was faster)",
        raw.claimed_a_second, raw.claimed, raw.beaten
    );
    println!(
        "  requests, the store alone: {:.1}/s ({})",
        raw.asked_a_second, raw.asked
    );
    println!("\nfrom the failure of all, in seconds");
    println!(
        "  a request is answered: p50 {:.2}, p99 {:.2}, last {:.2}",
        ms(&first_answers, 0.5),
        ms(&first_answers, 0.99),
        ms(&first_answers, 1.0)
    );
    println!(
        "  a stand-in is in service: first {:.2}, p50 {:.2}, last of {spares} {:.2}",
        ms(&stood_in, 0.0),
        ms(&stood_in, 0.5),
        ms(&stood_in, 1.0)
    );
    println!(
        "  all serve that can, the others wait: {:.1}",
        seconds(served)
    );
    println!("from the release of all");
    println!(
        "  the {waiting} that waited are served: {:.1}",
        seconds(all_served)
    );
    println!(
        "  all spares are spares again: {:.1} ({} cleaned by hand)",
        seconds(all_free),
        fleet.by_hand
    );
    println!("\nthe API, milliseconds at the directors, TLS handshake included (long polls apart)");
    let table = |title: &str, times: &Times| {
        println!("  {title}");
        println!(
            "    {:<34} {:>7} {:>9} {:>9} {:>9}",
            "route", "n", "p50", "p99", "max"
        );
        for (route, [n, p50, p99, max]) in figures(times) {
            println!(
                "    {route:<34} {n:>7} {:>9.1} {:>9.1} {:>9.1}",
                p50 / 1e3,
                p99 / 1e3,
                max / 1e3
            );
        }
    };
    table("while all fail", &in_the_failure);
    table("while stand-ins are given back", &after);
    println!(
        "\nCPU seconds: provisioners {provisioners:.1}, PostgreSQL {postgres_busy:.1}, sshds and scripts {sshds:.1}, directors and this program {own:.1}"
    );
    println!("leases lost {leases_lost}, silences that directors met {silent}");
    println!("audit trail: {trail:?}");
    let result = json!({
        "directors": directors, "provisioners": PROVISIONERS, "failures": failures, "spares": spares,
        "postgres": postgres.version, "load_before": load_before, "load_after": load(),
        "killed": fleet.killer.killed,
        "claims_per_second": claims_a_second,
        "store_claims_per_second": raw.claimed_a_second, "store_claims": raw.claimed, "store_claims_chosen_anew": raw.beaten,
        "store_requests_per_second": raw.asked_a_second,
        "alone_ms": alone,
        "first_answer_ms": { "p50": quantile(&first_answers, 0.5), "p99": quantile(&first_answers, 0.99), "max": quantile(&first_answers, 1.0) },
        "stood_in_ms": { "first": quantile(&stood_in, 0.0), "p50": quantile(&stood_in, 0.5), "last": quantile(&stood_in, 1.0) },
        "served_s": seconds(served), "all_served_s": seconds(all_served), "all_free_s": seconds(all_free),
        "cleaned_by_hand": fleet.by_hand,
        "api_us": { "failure": api(&in_the_failure), "release": api(&after) },
        "cpu_s": { "provisioners": provisioners, "postgres": postgres_busy, "spares": sshds, "directors": own },
        "leases_lost": leases_lost, "silences": silent, "trail": trail, "looks": fleet.ledger.looks,
    });
    // Beside the other suites' results, wherever this is run from.
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    fs::create_dir_all(&to).unwrap();
    fs::write(to.join("fleet.json"), format!("{result:#}\n")).unwrap();
    first
}

/// What is so at the end.
async fn hold(scale: &Scale, fleet: &mut Fleet) {
    fleet.ledger.look().await;
    let begun = fleet.ledger.begun().await;
    each_had_one(scale, fleet, &begun);
    for (what, query) in [
        (
            "leases",
            "SELECT count(*) FROM replacement WHERE state IN ('pending', 'claiming', 'configuring', 'testing', 'attaching')",
        ),
        (
            "hands",
            "SELECT count(*) FROM attempt WHERE state IN ('open', 'serving')",
        ),
        (
            "stand-ins",
            "SELECT count(*) FROM attachment WHERE want = 'attach' OR confirmed IS NULL OR confirmed <> 'withdraw'",
        ),
        (
            "roles",
            "SELECT count(*) FROM role_assignment WHERE source <> 'files' OR passed_on IS NOT NULL",
        ),
        (
            "servers out of place",
            "SELECT count(*) FROM server WHERE state <> CASE WHEN files_role IS NULL THEN 'ready' ELSE 'serving' END",
        ),
    ] {
        assert_eq!(fleet.ledger.count(query).await, 0, "{what} are left");
    }
}

/// Each failure one replacement and one spare, each spare one role at a time, as directors, tables and spares saw it.
fn each_had_one(scale: &Scale, fleet: &Fleet, begun: &BTreeMap<String, Vec<(String, String)>>) {
    let tables = look(&fleet.scene);
    assert_eq!(tables.faults, Vec::<String>::new());
    assert!(fleet.ledger.faults.is_empty(), "{:#?}", fleet.ledger.faults);
    assert_eq!(fleet.killer.killed.len(), scale.kills.len());
    // One replacement and one spare for each, whoever asked and however often.
    assert_eq!(tables.told.len(), scale.failures);
    for (failed, ids) in &tables.told {
        assert_eq!(ids.len(), 1, "{failed}: {ids:?}");
    }
    assert_eq!(tables.stood_in.len(), scale.failures);
    // What ran on the spares is what was claimed, and each had one role at a time.
    let mut failed = Vec::new();
    for spare in &fleet.spares.all {
        let none = Vec::new();
        let of = begun.get(&spare.name).unwrap_or(&none);
        let mut expected = Vec::new();
        for (role, server) in of {
            expected.push(format!("begin {role} {server}"));
            expected.push("clean".to_owned());
            failed.push(server.parse::<IpAddr>().unwrap());
        }
        assert_eq!(spare.witness(), expected, "{}", spare.name);
    }
    failed.sort_unstable();
    let all: Vec<_> = tables.stood_in.keys().copied().collect();
    assert_eq!(failed, all, "each failure was on one spare");
}

async fn database(postgres: &Postgres, name: &str) -> String {
    let pool = PgPool::connect(&postgres.url("postgres")).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&pool).await.unwrap();
    pool.close().await;
    postgres.url(name)
}

async fn set_up(scale: &Scale) -> (Fleet, std::path::PathBuf) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "sshd and its namespaces need root"
    );
    let postgres = Postgres::new();
    let url = database(&postgres, "fleet").await;
    let spares = Spares::start(scale.spares);
    let folder = machine::inventory(scale, &spares);
    let ca = Authority::new("ca");
    let servers = |leader: usize| -> Vec<IpAddr> {
        let each = scale.failures / scale.leaders;
        (leader * each..(leader + 1) * each)
            .map(|n| machine::server(n).into())
            .collect()
    };
    // The second directors of pairs come last, each beside one of the first.
    let names = (0..scale.leaders).chain(0..scale.seconds).enumerate();
    let plans: Vec<_> = names
        .map(|(n, leader)| {
            let servers = servers(leader);
            let (services, keys) = director::services(leader, &servers, spares.port);
            (format!("lb{n:02}"), servers, services, keys)
        })
        .collect();
    let grants = plans.iter().map(|(name, _, _, keys)| {
        format!(
            "[[director]]\nname = \"{name}\"\nservices = [{}]\n",
            keys.join(", ")
        )
    });
    let grants: String = grants.collect();
    let key = spares.path("key");
    let provisioners = (1..=PROVISIONERS).map(|n| Provisioner::new(n, &ca, &url, &key, &grants));
    let mut provisioners: Vec<_> = provisioners.collect();
    provisioners.iter_mut().for_each(Provisioner::start);
    let begun = Instant::now();
    while !spares.listen() || !provisioners.iter().all(Provisioner::listens) {
        for p in &mut provisioners {
            assert!(!p.ended(), "{}\n{}", p.log(), postgres.log());
        }
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "they do not listen"
        );
        sleep(Duration::from_millis(20)).await;
    }
    let applied = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(["inventory", "apply"])
        .arg(&folder)
        .arg("--socket")
        .arg(provisioners[0].socket())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&applied.stderr);
    assert!(applied.status.success(), "{said}");
    let scene = Scene::default();
    let ports: Vec<_> = provisioners.iter().map(|p| p.port).collect();
    let directors = plans
        .iter()
        .enumerate()
        .map(|(n, (name, servers, services, _))| {
            let mut ports = ports.clone();
            ports.rotate_left(n % PROVISIONERS);
            let address =
                Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 1, 1)) + u32::try_from(n).unwrap());
            Director::start(
                name,
                &address.to_string(),
                (&ca, &ports),
                (services, servers),
                &scene,
            )
        });
    let directors = directors.collect();
    let ledger = Ledger::new(PgPool::connect(&url).await.unwrap());
    let fleet = Fleet {
        provisioners,
        spares,
        directors,
        scene,
        ledger,
        killer: Killer::new(scale),
        by_hand: 0,
        postgres,
    };
    (fleet, folder)
}

/// Number, middle, the slowest of a hundred, the slowest, for each route; long polls have no figure of their own.
fn figures(times: &Times) -> BTreeMap<String, [f64; 4]> {
    let routes = times.iter().filter(|(route, _)| *route != POLL);
    let all = routes.map(|(route, all)| {
        let mut all = all.clone();
        all.sort_unstable();
        #[expect(clippy::as_conversions, reason = "figures for people")]
        let of = |n: u64| n as f64;
        let n = u64::try_from(all.len()).unwrap();
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| of(quantile(&all, part)));
        (route.clone(), [of(n), p50, p99, max])
    });
    all.collect()
}

fn api(times: &Times) -> Value {
    let all = figures(times)
        .into_iter()
        .map(|(route, [n, p50, p99, max])| {
            (route, json!({ "n": n, "p50": p50, "p99": p99, "max": max }))
        });
    Value::Object(all.collect())
}

/// Seconds of milliseconds.
fn per_mille(ms: i64) -> f64 {
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    let ms = ms as f64;
    ms / 1e3
}

fn ms(sorted: &[u64], part: f64) -> f64 {
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    let ms = quantile(sorted, part) as f64;
    ms / 1e3
}
