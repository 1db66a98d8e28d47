//! The client against a real IPVS, ipvsadm as the witness both ways. Each test has a network
//! namespace, and so an IPVS table, of its own.
#![expect(clippy::print_stdout, reason = "says what it measured")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::process::CommandExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use understudy::{
    ipvs::{Error, Ipvs},
    model::{
        DestAttrs, DestKey, ForwardMethod, KernelTable, Persistence, Scheduler, ServiceAttrs,
        ServiceFlags, ServiceKey, Step, Tunnel, TunnelType, Weight,
    },
};

/// Runs a test on a thread of its own, which alone is in the new namespace: so is what it starts.
pub(crate) fn in_namespace<T: Future>(test: impl FnOnce() -> T + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        // Without any route no address is unicast, and IPVS takes no destination (`EINVAL`).
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The lines that ipvsadm prints.
pub(crate) fn ipvsadm(arguments: &str) -> Vec<String> {
    let output = Command::new("ipvsadm")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "ipvsadm {arguments}: {output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// Runs ip(8).
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

pub(crate) fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

pub(crate) fn dest(text: &str) -> DestKey {
    let addr: SocketAddr = text.parse().unwrap();
    DestKey {
        addr: addr.ip(),
        port: addr.port(),
    }
}

pub(crate) fn service(scheduler: &str) -> ServiceAttrs {
    ServiceAttrs {
        scheduler: Scheduler(scheduler.to_owned()),
        flags: ServiceFlags(0),
        persistence: None,
    }
}

pub(crate) fn flagged(scheduler: &str, flags: u32) -> ServiceAttrs {
    ServiceAttrs {
        flags: ServiceFlags(flags),
        ..service(scheduler)
    }
}

pub(crate) fn persistent(timeout_s: u32, prefix: u8, engine: Option<&str>) -> ServiceAttrs {
    let engine = engine.map(str::to_owned);
    ServiceAttrs {
        persistence: Some(Persistence {
            timeout_s,
            prefix,
            engine,
        }),
        ..service("rr")
    }
}

pub(crate) fn server(forward: ForwardMethod, weight: i64) -> DestAttrs {
    DestAttrs {
        weight: Weight::try_from(weight).unwrap(),
        forward,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    }
}

pub(crate) fn tunnel(kind: TunnelType, port: u16, flags: u16) -> DestAttrs {
    DestAttrs {
        tunnel: Tunnel { kind, port, flags },
        ..server(ForwardMethod::Tun, 1)
    }
}

/// A service and its destinations, each in the model's words and in those of `ipvsadm -Sn`.
struct Case {
    key: &'static str,
    attrs: ServiceAttrs,
    ipvsadm: &'static str,
    dests: Vec<(&'static str, DestAttrs, &'static str)>,
}

fn cases() -> Vec<Case> {
    use ForwardMethod::{Dr, Nat, Tun};
    let case = |key, attrs, ipvsadm, dests: &[(&'static str, DestAttrs, &'static str)]| Case {
        key,
        attrs,
        ipvsadm,
        dests: dests.to_vec(),
    };
    let sched1 = ServiceFlags::SCHED1;
    let sched2 = ServiceFlags::SCHED2;
    let one_packet = ServiceFlags::ONE_PACKET;
    vec![
        case(
            "tcp/192.0.2.1:80",
            service("wrr"),
            "-t 192.0.2.1:80 -s wrr",
            &[
                (
                    "198.51.100.1:8080",
                    server(Nat, 10),
                    "-r 198.51.100.1:8080 -m -w 10",
                ),
                (
                    "198.51.100.2:80",
                    server(Dr, 0),
                    "-r 198.51.100.2:80 -g -w 0",
                ),
                (
                    "198.51.100.3:80",
                    server(Tun, 65535),
                    "-r 198.51.100.3:80 -i -w 65535 --tun-type ipip",
                ),
            ],
        ),
        case(
            "tcp/[2001:db8::1]:443",
            service("wlc"),
            "-t [2001:db8::1]:443 -s wlc",
            &[
                (
                    "[2001:db8::11]:8443",
                    server(Nat, 1),
                    "-r [2001:db8::11]:8443 -m -w 1",
                ),
                (
                    "[2001:db8::12]:443",
                    server(Dr, 2),
                    "-r [2001:db8::12]:443 -g -w 2",
                ),
                // Another family than the service's: tunnels alone may.
                (
                    "198.51.100.4:443",
                    server(Tun, 3),
                    "-r 198.51.100.4:443 -i -w 3 --tun-type ipip",
                ),
            ],
        ),
        case(
            "udp/192.0.2.1:53",
            flagged("sh", one_packet | sched1 | sched2),
            "-u 192.0.2.1:53 -s sh -o -b sh-fallback,sh-port",
            &[
                (
                    "198.51.100.5:53",
                    tunnel(TunnelType::Gue, 6080, 1),
                    "-r 198.51.100.5:53 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum",
                ),
                (
                    "198.51.100.6:53",
                    tunnel(TunnelType::Gre, 0, 1),
                    "-r 198.51.100.6:53 -i -w 1 --tun-type gre --tun-csum",
                ),
            ],
        ),
        case(
            "udp/[2001:db8::1]:53",
            flagged("mh", sched1),
            "-u [2001:db8::1]:53 -s mh -b mh-fallback",
            &[(
                "[2001:db8::13]:53",
                server(Dr, 1),
                "-r [2001:db8::13]:53 -g -w 1",
            )],
        ),
        case(
            "sctp/192.0.2.1:9",
            service("lc"),
            "--sctp-service 192.0.2.1:9 -s lc",
            &[],
        ),
        case(
            "fwmark/5",
            service("sed"),
            "-f 5 -s sed",
            &[("198.51.100.7:0", server(Dr, 1), "-r 198.51.100.7:0 -g -w 1")],
        ),
        case(
            "fwmark6/5",
            service("nq"),
            "-f 5 -6 -s nq",
            &[(
                "[2001:db8::14]:0",
                server(Dr, 1),
                "-r [2001:db8::14]:0 -g -w 1",
            )],
        ),
        case(
            "tcp/192.0.2.2:443",
            persistent(600, 24, None),
            "-t 192.0.2.2:443 -s rr -p 600 -M 255.255.255.0",
            &[],
        ),
        case(
            "tcp/[2001:db8::2]:443",
            persistent(300, 64, None),
            "-t [2001:db8::2]:443 -s rr -p 300 -M 64",
            &[],
        ),
        case(
            "tcp/192.0.2.3:21",
            persistent(360, 32, None),
            "-t 192.0.2.3:21 -s rr -p 360",
            &[],
        ),
        case(
            "udp/192.0.2.4:5060",
            persistent(60, 32, Some("sip")),
            "-u 192.0.2.4:5060 -s rr -p 60 --pe sip",
            &[],
        ),
    ]
}

/// `ipvsadm -Sn` of the cases, in order.
fn lines(cases: &[Case]) -> Vec<String> {
    let mut lines = Vec::new();
    for case in cases {
        // What names the service: the words before its scheduler.
        let name = case.ipvsadm.split(" -s ").next().unwrap();
        lines.push(format!("-A {}", case.ipvsadm));
        lines.extend(
            case.dests
                .iter()
                .map(|(_, _, text)| format!("-a {name} {text}")),
        );
    }
    lines.sort();
    lines
}

/// A table but for its counters.
pub(crate) type Plain = BTreeMap<ServiceKey, (ServiceAttrs, BTreeMap<DestKey, DestAttrs>)>;

pub(crate) fn plain(table: KernelTable) -> Plain {
    table
        .into_iter()
        .map(|(key, state)| {
            let dests = state
                .dests
                .into_iter()
                .map(|(key, dest)| (key, dest.attrs))
                .collect();
            (key, (state.attrs, dests))
        })
        .collect()
}

fn wanted(cases: &[Case]) -> Plain {
    let dests = |case: &Case| {
        case.dests
            .iter()
            .map(|(k, attrs, _)| (dest(k), *attrs))
            .collect()
    };
    cases
        .iter()
        .map(|case| (key(case.key), (case.attrs.clone(), dests(case))))
        .collect()
}

pub(crate) async fn apply(ipvs: &mut Ipvs, step: Step) {
    try_apply(ipvs, &step)
        .await
        .unwrap_or_else(|error| panic!("{step}: {error:?}"));
}

pub(crate) async fn try_apply(ipvs: &mut Ipvs, step: &Step) -> Result<(), Error> {
    ipvs.apply(std::slice::from_ref(step)).await.remove(0)
}

async fn write(ipvs: &mut Ipvs, cases: &[Case]) {
    for case in cases {
        apply(ipvs, Step::NewService(key(case.key), case.attrs.clone())).await;
        for (to, attrs, _) in &case.dests {
            apply(ipvs, Step::NewDest(key(case.key), dest(to), *attrs)).await;
        }
    }
}

#[test]
fn ipvsadm_reads_what_the_client_writes() {
    in_namespace(async || {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let cases = cases();
        write(&mut ipvs, &cases).await;
        let mut printed = ipvsadm("-Sn");
        printed.sort();
        assert_eq!(printed, lines(&cases));
        assert_eq!(plain(ipvs.table().await.unwrap()), wanted(&cases));
        // Some of them, and one that is not there.
        let some = [
            key("fwmark/5"),
            key("tcp/192.0.2.9:9"),
            key("udp/192.0.2.1:53"),
        ];
        let read = plain(ipvs.read(&some).await.unwrap());
        let all = wanted(&cases);
        assert_eq!(
            read,
            all.into_iter()
                .filter(|(key, _)| some.contains(key))
                .collect()
        );
        ipvs.flush().await.unwrap();
        assert_eq!(ipvsadm("-Sn"), Vec::<String>::new());
        assert_eq!(ipvs.table().await.unwrap(), KernelTable::new());
    });
}

#[test]
fn the_client_reads_what_ipvsadm_writes() {
    in_namespace(async || {
        let cases = cases();
        for line in lines(&cases) {
            ipvsadm(&line);
        }
        let mut ipvs = Ipvs::connect().await.unwrap();
        assert_eq!(plain(ipvs.table().await.unwrap()), wanted(&cases));
        let (version, buckets) = ipvs.info().await.unwrap();
        let head = format!("IP Virtual Server version {version} (size={buckets})");
        assert_eq!(ipvsadm("-Ln")[0], head);
        // What `-S` does not hold.
        ipvsadm("-e -t 192.0.2.1:80 -r 198.51.100.1:8080 -m -w 2147483647 -x 1000 -y 750");
        let state = &ipvs.read(&[key("tcp/192.0.2.1:80")]).await.unwrap()[&key("tcp/192.0.2.1:80")];
        let thresholds = DestAttrs {
            upper: 1000,
            lower: 750,
            ..server(ForwardMethod::Nat, i32::MAX.into())
        };
        assert_eq!(state.dests[&dest("198.51.100.1:8080")].attrs, thresholds);
    });
}

#[test]
fn changes_in_place() {
    in_namespace(async || {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let (web, one) = (key("tcp/192.0.2.1:80"), dest("198.51.100.1:80"));
        apply(&mut ipvs, Step::NewService(web, persistent(60, 24, None))).await;
        apply(
            &mut ipvs,
            Step::NewDest(web, one, server(ForwardMethod::Nat, 1)),
        )
        .await;
        // Persistence goes, a flag comes: what ipvsadm calls hashed is not touched.
        apply(
            &mut ipvs,
            Step::SetService(web, flagged("sh", ServiceFlags::SCHED2)),
        )
        .await;
        let changed = DestAttrs {
            upper: 7,
            lower: 3,
            ..server(ForwardMethod::Dr, 5)
        };
        apply(&mut ipvs, Step::SetDest(web, one, changed)).await;
        assert_eq!(
            ipvsadm("-Sn"),
            [
                "-A -t 192.0.2.1:80 -s sh -b sh-port",
                "-a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 5",
            ]
        );
        let listed = ipvsadm("-Ln --thresholds");
        let words: Vec<_> = listed.last().unwrap().split_whitespace().collect();
        assert_eq!(words[..4], ["->", "198.51.100.1:80", "7", "3"]);
        apply(&mut ipvs, Step::SetService(web, service("rr"))).await;
        apply(&mut ipvs, Step::DelDest(web, one)).await;
        assert_eq!(ipvsadm("-Sn"), ["-A -t 192.0.2.1:80 -s rr"]);
        // A service without destinations is there.
        assert_eq!(ipvs.table().await.unwrap().len(), 1);
        apply(&mut ipvs, Step::DelService(web)).await;
        assert_eq!(ipvsadm("-Sn"), Vec::<String>::new());
    });
}

#[test]
fn each_error_is_told_apart() {
    in_namespace(async || {
        let results = Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = Arc::clone(&results);
        let observer = move |operation, result| told.lock().unwrap().push((operation, result));
        let mut ipvs = Ipvs::connect()
            .await
            .unwrap()
            .with_observer(Arc::new(observer));
        let (web, gone) = (key("tcp/192.0.2.1:80"), key("tcp/192.0.2.9:80"));
        let (one, two) = (dest("198.51.100.1:80"), dest("198.51.100.2:80"));
        let to = server(ForwardMethod::Nat, 1);
        apply(&mut ipvs, Step::NewService(web, service("rr"))).await;
        apply(&mut ipvs, Step::NewDest(web, one, to)).await;
        // A mixed family is for tunnels alone (`ip_vs_genl_set_cmd`).
        let mixed = Step::NewDest(web, dest("[2001:db8::1]:80"), to);
        let failing = [
            (
                Step::NewService(web, service("rr")),
                "already_there",
                "cannot add virtual service tcp/192.0.2.1:80: the kernel has it already",
            ),
            (
                Step::SetService(gone, service("rr")),
                "no_such_service",
                "cannot change virtual service tcp/192.0.2.9:80: the kernel has no such virtual service",
            ),
            (
                Step::DelService(gone),
                "no_such_service",
                "cannot remove virtual service tcp/192.0.2.9:80: the kernel has no such virtual service",
            ),
            (
                Step::NewDest(gone, one, to),
                "no_such_service",
                "cannot add destination 198.51.100.1:80 to tcp/192.0.2.9:80: the kernel has no such virtual service",
            ),
            (
                Step::NewDest(web, one, to),
                "already_there",
                "cannot add destination 198.51.100.1:80 to tcp/192.0.2.1:80: the kernel has it already",
            ),
            (
                Step::SetDest(web, two, to),
                "no_such_dest",
                "cannot change destination 198.51.100.2:80 of tcp/192.0.2.1:80: the virtual service has no such destination",
            ),
            (
                Step::DelDest(web, two),
                "no_such_dest",
                "cannot remove destination 198.51.100.2:80 from tcp/192.0.2.1:80: the virtual service has no such destination",
            ),
            (
                Step::NewService(gone, service("nosuch")),
                "scheduler_missing",
                "cannot add virtual service tcp/192.0.2.9:80: the kernel lacks scheduler nosuch: try modprobe ip_vs_nosuch",
            ),
            (
                Step::SetService(web, service("nosuch")),
                "scheduler_missing",
                "cannot change virtual service tcp/192.0.2.1:80: the kernel lacks scheduler nosuch: try modprobe ip_vs_nosuch",
            ),
            (
                Step::NewService(gone, persistent(1, 32, Some("nosuch"))),
                "scheduler_missing",
                "cannot add virtual service tcp/192.0.2.9:80: the kernel lacks scheduler rr or persistence engine nosuch: try modprobe ip_vs_rr ip_vs_pe_nosuch",
            ),
            (
                Step::NewService(gone, service(&"x".repeat(70_000))),
                "scheduler_missing",
                "",
            ),
            (
                mixed,
                "refused",
                "cannot add destination [2001:db8::1]:80 to tcp/192.0.2.1:80: the kernel refused",
            ),
        ];
        for (step, kind, text) in failing {
            let error = try_apply(&mut ipvs, &step).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{step}: {error:?}");
            assert!(text.is_empty() || error.to_string() == text, "{error}");
            assert_eq!(results.lock().unwrap().last(), Some(&(step.label(), kind)));
        }
        // None of them changed anything, nothing is no error.
        assert_eq!(
            ipvsadm("-Sn"),
            [
                "-A -t 192.0.2.1:80 -s rr",
                "-a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 1",
            ]
        );
        assert_eq!(ipvs.service(gone).await.unwrap(), None);
        assert_eq!(ipvs.dests(gone).await.unwrap(), BTreeMap::new());
        assert_eq!(ipvs.read(&[gone]).await.unwrap(), KernelTable::new());
    });
}

#[test]
fn without_the_capability_nothing_is_read_or_written() {
    in_namespace(async || {
        let binary = std::env::current_exe().unwrap();
        let arguments = ["--exact", "--ignored", "ipvs::as_nobody"];
        let output = Command::new(binary)
            .args(arguments)
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && printed.contains("1 passed"),
            "{output:?}"
        );
    });
}

#[test]
#[ignore = "what without_the_capability_nothing_is_read_or_written runs"]
fn as_nobody() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let web = key("tcp/192.0.2.1:80");
        let refused = [
            ipvs.table().await.unwrap_err(),
            ipvs.read(&[web]).await.unwrap_err(),
            ipvs.info().await.unwrap_err(),
            try_apply(&mut ipvs, &Step::NewService(web, service("rr")))
                .await
                .unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, Error::NotPermitted { .. }), "{error:?}");
            assert!(
                error
                    .to_string()
                    .ends_with("not permitted, it needs CAP_NET_ADMIN")
            );
        }
    });
}

fn numbered(n: u16) -> DestKey {
    let [high, low] = n.to_be_bytes();
    dest(&format!("10.0.{high}.{low}:80"))
}

#[test]
fn a_service_of_2000_destinations_and_requests_given_up() {
    in_namespace(async || {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let web = key("tcp/192.0.2.1:80");
        apply(&mut ipvs, Step::NewService(web, service("rr"))).await;
        let begun = Instant::now();
        for n in 0..2000 {
            apply(
                &mut ipvs,
                Step::NewDest(web, numbered(n), server(ForwardMethod::Dr, n.into())),
            )
            .await;
        }
        let written = begun.elapsed();
        let begun = Instant::now();
        let dests = ipvs.dests(web).await.unwrap();
        println!(
            "2000 destinations: written in {written:?}, read in {:?}",
            begun.elapsed()
        );
        let found: Vec<_> = dests.iter().map(|(key, dest)| (*key, dest.attrs)).collect();
        let wanted = |n: u16| (numbered(n), server(ForwardMethod::Dr, n.into()));
        assert_eq!(found, (0..2000).map(wanted).collect::<Vec<_>>());
        assert_eq!(ipvsadm("-Sn").len(), 2001);

        // Dropped in the middle of a dump, at each place of it: the next answers are not its.
        for spent in 110..128 {
            given_up(&mut ipvs, web, spent).await;
            assert!(ipvs.service(web).await.unwrap().unwrap().dests.is_empty());
            given_up(&mut ipvs, web, spent).await;
            assert_eq!(ipvs.dests(web).await.unwrap().len(), 2000);
        }
        // The deadline does the same: it is looked at once in so long an answer, and there is no time.
        let mut ipvs = ipvs.with_limit(Duration::ZERO);
        let error = ipvs.dests(web).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        let mut ipvs = ipvs.with_limit(Duration::from_secs(5));
        assert_eq!(ipvs.table().await.unwrap()[&web].dests.len(), 2000);
    });
}

/// Polls a dump once, with all but a few of the task's turns spent, and drops it.
async fn given_up(ipvs: &mut Ipvs, key: ServiceKey, spent: u32) {
    let spend = async {
        for _ in 0..spent {
            tokio::task::consume_budget().await;
        }
        std::future::pending::<()>().await;
    };
    tokio::task::yield_now().await;
    tokio::select! {
        biased;
        () = spend => {}
        dests = ipvs.dests(key) => panic!("not given up, {} read", dests.unwrap().len()),
        () = std::future::ready(()) => {}
    }
}

/// How often a whole table is read. A dump that takes more than one datagram resumes by a position
/// that counts the services of all network namespaces (`ip_vs_genl_dump_services`): one that another
/// test adds or removes meanwhile can make it leave one out, ours and ipvsadm's alike.
pub(crate) const READINGS: usize = 5;

#[test]
fn a_table_of_500_services_of_20_destinations() {
    in_namespace(async || {
        let counted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&counted);
        let observer = move |_operation, _result| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let mut ipvs = Ipvs::connect()
            .await
            .unwrap()
            .with_observer(Arc::new(observer));
        let keys: Vec<_> = (1..=500)
            .map(|mark| key(&format!("fwmark/{mark}")))
            .collect();
        let begun = Instant::now();
        let mut steps = Vec::new();
        for key in &keys {
            steps.push(Step::NewService(*key, service("wlc")));
            let to = |n: u16| server(ForwardMethod::Tun, n.into());
            steps.extend((0..20).map(|n| Step::NewDest(*key, numbered(n), to(n))));
        }
        assert!(ipvs.apply(&steps).await.iter().all(Result::is_ok));
        let written = begun.elapsed();
        assert_eq!(counted.swap(0, Ordering::Relaxed), 500 * 21);
        // Both are asked again where one service is missing: see `READINGS`.
        let mut whole = async || {
            for _ in 0..READINGS {
                counted.store(0, Ordering::Relaxed);
                let begun = Instant::now();
                let table = ipvs.table().await.unwrap();
                if table.keys().eq(&keys) {
                    return (table, begun.elapsed());
                }
            }
            panic!("each of {READINGS} readings lacks a service");
        };
        let (table, read) = whole().await;
        assert_eq!(counted.load(Ordering::Relaxed), 502);
        assert!(table.values().all(|service| service.dests.len() == 20));
        let listed = (0..READINGS).find_map(|_| {
            let begun = Instant::now();
            (ipvsadm("-Sn").len() == 500 * 21).then(|| begun.elapsed())
        });
        let listed = listed.expect("each of ipvsadm's listings lacks a service");
        println!(
            "500 services x 20: written in {written:?}, read in {read:?}, by ipvsadm -Sn in {listed:?}"
        );
    });
}

/// A change that is refused in the middle of a batch, its neighbours not.
#[test]
fn each_error_of_a_batch_belongs_to_its_change() {
    in_namespace(async || {
        let mut ipvs = Ipvs::connect().await.unwrap();
        let web = key("tcp/192.0.2.1:80");
        let to = server(ForwardMethod::Dr, 1);
        let mut steps = vec![
            Step::NewService(web, service("rr")),
            Step::NewService(key("fwmark/1"), service("nosuch")),
        ];
        // Each third a second time: 300 changes, 100 of them refused.
        for n in 0..100 {
            let dest = numbered(n);
            steps.extend([
                Step::NewDest(web, dest, to),
                Step::SetDest(web, dest, server(ForwardMethod::Dr, 2)),
                Step::NewDest(web, dest, to),
            ]);
        }
        steps.push(Step::DelDest(web, numbered(200)));
        let results = ipvs.apply(&steps).await;
        assert_eq!(results.len(), steps.len());
        for (nth, (step, result)) in steps.iter().zip(&results).enumerate() {
            let kind = result.as_ref().map_or_else(Error::kind, |()| "ok");
            let wanted = match nth {
                1 => "scheduler_missing",
                302 => "no_such_dest",
                _ if nth > 1 && nth % 3 == 1 => "already_there",
                _ => "ok",
            };
            assert_eq!(kind, wanted, "{nth}: {step}: {result:?}");
        }
        let lines = ipvsadm("-Sn");
        assert_eq!(lines.len(), 101);
        assert!(lines[1..].iter().all(|line| line.ends_with("-g -w 2")));
    });
}

/// With no room for the acknowledgements of a batch the kernel still makes all changes: the client
/// says of those it heard nothing about that it does not know, and sends fewer at once from then on.
#[test]
fn acknowledgements_without_room_are_not_guessed() {
    in_namespace(async || {
        // The least that the kernel gives has room for three acknowledgements.
        let mut ipvs = Ipvs::connect()
            .await
            .unwrap()
            .with_receive_buffer(1)
            .unwrap();
        let web = key("tcp/192.0.2.1:80");
        let to = server(ForwardMethod::Dr, 1);
        let mut steps = vec![Step::NewService(web, service("rr"))];
        steps.extend((0..400).map(|n| Step::NewDest(web, numbered(n), to)));
        let mut passes = 0;
        let mut unknown = 0;
        loop {
            let results = ipvs.apply(&steps).await;
            passes += 1;
            let lost = |result: &Result<(), Error>| match result {
                Ok(()) => false,
                Err(Error::Overrun { .. }) => true,
                Err(error) => panic!("pass {passes}: {error:?}"),
            };
            let lost: Vec<bool> = results.iter().map(lost).collect();
            unknown += lost.iter().filter(|lost| **lost).count();
            if !lost.contains(&true) {
                break;
            }
            // What is not known is read, never guessed: all of it had been done.
            let table = ipvs.table().await.unwrap();
            let there = |step: &Step| match step {
                Step::NewDest(key, dest, _) => table[key].dests.contains_key(dest),
                _ => table.contains_key(&web),
            };
            for (step, lost) in steps.iter().zip(lost) {
                assert!(!lost || there(step), "{step}");
            }
            steps.retain(|step| !there(step));
            let more = 400 * (passes + 1)..400 * (passes + 2);
            steps.extend(more.map(|n| Step::NewDest(web, numbered(n), to)));
            assert!(passes < 5, "the window does not adapt");
        }
        println!("{unknown} acknowledgements lost in {passes} passes");
        assert!(unknown > 0 && passes > 1);
        let all = 400 * usize::from(passes);
        assert_eq!(ipvs.dests(web).await.unwrap().len(), all);
    });
}
