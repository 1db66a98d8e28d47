//! The text that Prometheus reads, as a whole, and the port that shows it.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use understudy::{
    check::Observer,
    clock,
    model::{
        DestKey, EventKind, FailReason, MonoTime, Outcome, Phase, Protocol, ServiceKey,
        inventory::ServerState, wire::ReplacementState,
    },
    telemetry::{
        metrics::{
            Build, DeliveryResult, DirectorMetrics, MAX_SERVERS, PassResult, ProvisionerMetrics,
            StandInState, StepResult, To, Untold,
        },
        serve,
    },
};

const BUILD: Build = Build {
    version: "1.2.3",
    commit: "abcdef0",
};

const LIMIT: Duration = Duration::from_secs(20);

/// What is exposed. Series of a family come in no order: those without buckets are sorted.
fn text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    let mut families: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        match families.last_mut() {
            Some(family) if !line.starts_with('#') => family.push(line),
            Some(family) if line.starts_with("# TYPE") => family.push(line),
            _ => families.push(vec![line]),
        }
    }
    for family in &mut families {
        if !family.iter().any(|l| l.contains("_bucket{"))
            && let Some(series) = family.get_mut(2..)
        {
            series.sort_unstable();
        }
    }
    families.concat().join("\n") + "\n"
}

/// Compares with the golden file; writes it where `UPDATE_GOLDEN` is set.
fn assert_golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "{} differs; UPDATE_GOLDEN=1 writes it:\n{found}",
        path.display()
    );
}

fn service() -> ServiceKey {
    ServiceKey::Addr(Protocol::Tcp, "192.0.2.1:80".parse().unwrap())
}

fn dest(n: u32) -> DestKey {
    DestKey {
        addr: std::net::Ipv4Addr::from(0x0a00_0000 + n).into(),
        port: 80,
    }
}

#[test]
fn a_directors_families_are_as_documented() {
    let mut registry = Registry::default();
    let m = DirectorMetrics::register(&mut registry, &BUILD);
    m.set_server_up(service(), dest(1), true);
    m.set_server_up(service(), dest(1), false);
    m.transition(To::Down, FailReason::TimedOut(Phase::Connect).label());
    m.probed(Outcome::Pass, Duration::from_millis(2));
    m.probed(
        Outcome::Fail(FailReason::Status(503)),
        Duration::from_millis(30),
    );
    m.begun_late(Duration::from_micros(700));
    m.report_dropped();
    m.netlink_request("new_dest", "not_permitted");
    m.pass(PassResult::Applied);
    m.steps("new_dest", StepResult::Ok, 20);
    m.drift("alert", "weight", 2);
    m.drift_standing.set(2);
    m.foreign_services.set(2);
    m.replacements_requested.inc();
    m.set_held("all_down", 3);
    m.incidents_open.set(1);
    m.set_stand_ins(&BTreeMap::from([(StandInState::Serving, 1)]));
    m.state_file_ok.set(1);
    m.provisioner_up.set(1);
    m.set_kernel_setting_wrong("net.ipv4.ip_forward", false);
    m.set_kernel_setting_wrong("net.ipv4.vs.conntrack", true);
    m.certificate
        .told(understudy::tls::Told::Renewed(4_102_444_800));
    m.certificate
        .told(understudy::tls::Told::Lists(4_000_000_000));
    m.certificate.told(understudy::tls::Told::Refused);
    m.hooks.event(EventKind::ServerDown);
    m.hooks.delivery("pager", DeliveryResult::Ok);
    m.hooks.delivery("pager", DeliveryResult::Failed);
    m.hooks.untold("ops", Untold::Dropped, 3);
    m.hooks.untold("pager", Untold::GaveUp, 2);
    m.set_virtual_address_on([192, 0, 2, 1].into(), Some(true));
    m.set_virtual_address_on([192, 0, 2, 2].into(), Some(false));
    m.set_virtual_address_on([192, 0, 2, 3].into(), Some(false));
    m.set_virtual_address_on([192, 0, 2, 3].into(), None);
    m.virtual_address_conflicts.inc();
    m.set_config("0123");
    m.set_config("4567");
    assert_golden("director.prom", &text(&registry));
}

#[test]
fn a_provisioners_families_are_as_documented() {
    let mut registry = Registry::default();
    let m = ProvisionerMetrics::register(&mut registry, &BUILD);
    m.set_replacements(&BTreeMap::from([(ReplacementState::Pending, 2)]));
    m.set_replacements(&BTreeMap::from([(ReplacementState::Configuring, 1)]));
    m.replacement_ended(ReplacementState::Succeeded);
    m.replacement_ended(ReplacementState::Configuring);
    m.step("install:nginx", "done", Duration::from_secs(3));
    m.set_pool(&BTreeMap::from([(ServerState::Ready, 2)]));
    m.api_request("/v1/replacements", 202);
    assert_golden("provisioner.prom", &text(&registry));
}

#[test]
fn servers_that_are_gone_leave_no_series_and_there_is_a_bound() {
    let mut registry = Registry::default();
    let m = DirectorMetrics::register(&mut registry, &BUILD);
    let series = |r: &Registry| {
        text(r)
            .lines()
            .filter(|l| l.starts_with("understudy_real_server_up{"))
            .count()
    };
    for n in 0..u32::try_from(MAX_SERVERS).unwrap() + 10 {
        m.set_server_up(service(), dest(n), true);
    }
    assert_eq!(series(&registry), MAX_SERVERS);
    m.keep_servers(|(_, d)| *d == dest(7));
    assert_eq!(series(&registry), 1);
    m.set_server_up(service(), dest(8), true);
    assert_eq!(series(&registry), 2);
}

struct Port {
    at: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    beat: watch::Sender<MonoTime>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test itself sees the end of the task"
)]
async fn port() -> Port {
    let mut registry = Registry::default();
    DirectorMetrics::register(&mut registry, &BUILD);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (beat, heartbeat) = watch::channel(clock::now());
    let task = tokio::spawn(serve(
        listener,
        Arc::new(registry),
        heartbeat.into(),
        stop.clone(),
    ));
    Port {
        at,
        stop,
        task,
        beat,
    }
}

async fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The end of the stream: one request a connection.
    timeout(LIMIT, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

#[tokio::test]
async fn the_port_shows_metrics_and_health() {
    let port = port().await;
    let metrics = get(port.at, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(get(port.at, "/healthz").await.starts_with("HTTP/1.1 200"));
    port.beat.send_replace(MonoTime::ZERO);
    assert!(get(port.at, "/healthz").await.starts_with("HTTP/1.1 503"));
    assert!(get(port.at, "/").await.starts_with("HTTP/1.1 404"));
    port.stop.cancel();
    timeout(LIMIT, port.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn silent_connections_do_not_shut_the_scraper_out() {
    let port = port().await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(port.at).await.unwrap());
    }
    // All places are taken; they are free again after the head's time limit.
    let metrics = get(port.at, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
}
