//! The core's shell, with a real file and without a kernel.

use std::{os::unix::fs::OpenOptionsExt as _, path::Path};

use super::super::lock;
use super::*;
use crate::{
    config,
    director::{Recall, Start},
    model::{
        DestAttrs, DestKey, FailReason, ForwardMethod, Found, Outcome, Slot, Tunnel, WallMillis,
        Weight,
        wire::{self, Member, Members, Spare},
    },
};

const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[provisioner]
socket = "/run/understudy/provisioner.sock"
address = "10.77.0.1"
[replacement]
replace_after = "1ms"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
real_server = [{ address = "10.0.0.1:80" }, { address = "10.0.0.2:80" }]
"#;

fn service() -> ServiceKey {
    "tcp/192.0.2.1:80".parse().unwrap()
}

fn core(kernel: BTreeMap<DestKey, DestAttrs>) -> Core {
    let config = config::director::parse(Path::new("d.toml"), CONFIG).unwrap();
    let start = Start {
        now: clock::now(),
        wall: WallMillis(0),
        boot_id: "boot".into(),
        recall: Recall::Forgot("there is no state file".into()),
        kernel: [(service(), kernel)].into(),
        dropped: BTreeMap::new(),
        marked: BTreeSet::new(),
    };
    Core::new(Arc::new(config), start)
}

const LIMIT: Duration = Duration::from_secs(20);

fn dest(n: u8) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port: 80,
    }
}

/// A shell that runs, with both servers in the kernel and passing, and whoever talks to it.
struct World {
    desired: watch::Receiver<Desired>,
    outbox: watch::Receiver<Outbox>,
    happened: watch::Receiver<EventRing>,
    reports: mpsc::Sender<Report>,
    events: mpsc::Sender<Event>,
    loads: mpsc::Sender<Load>,
    heartbeat: watch::Receiver<MonoTime>,
    registry: prometheus_client::registry::Registry,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _others: (
        watch::Sender<Applied>,
        mpsc::Sender<Question>,
        watch::Sender<Vec<String>>,
    ),
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test itself sees the end of the task"
    )]
    async fn start(dir: &Path) -> Self {
        let (file, _) = StateFile::open(dir, &"lb1".parse().unwrap()).unwrap();
        let attrs = DestAttrs {
            weight: Weight::ONE,
            forward: ForwardMethod::Nat,
            upper: 0,
            lower: 0,
            tunnel: Tunnel::default(),
        };
        let core = core([(dest(1), attrs), (dest(2), attrs)].into());
        let out = Outputs::of(&core);
        let (desired, outbox) = (out.desired.subscribe(), out.outbox.subscribe());
        let happened = out.events.subscribe();
        let heartbeat = out.heartbeat.subscribe();
        let (reports, to_core) = mpsc::channel(16);
        let (events, events_to_core) = mpsc::channel(16);
        let (applied_to_core, applied) = watch::channel(Applied::default());
        let (asking, questions) = mpsc::channel(1);
        let (loads_to_core, loads) = mpsc::channel(1);
        let (host_to_core, host) = watch::channel(Vec::new());
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = DirectorMetrics::register(&mut registry, &crate::BUILD);
        let inputs = Inputs {
            reports: to_core,
            events: events_to_core,
            applied,
            questions,
            loads,
            stops: mpsc::channel(1).1,
            host,
            addresses: watch::channel(Vec::new()).1,
        };
        let mut config = (**core.config()).clone();
        config.socket = dir.join("director.sock");
        let lock = lock::take(&config).await.unwrap();
        let stop = CancellationToken::new();
        let shell = Shell::new(core, (file, lock), metrics, out);
        let world = Self {
            desired,
            outbox,
            happened,
            reports,
            events,
            loads: loads_to_core,
            registry,
            heartbeat,
            task: tokio::spawn(shell.run(inputs, stop.clone())),
            stop,
            _others: (applied_to_core, asking, host_to_core),
        };
        for n in [1, 2] {
            world.probe(dest(n), Outcome::Pass).await;
        }
        world
    }

    async fn probe(&self, dest: DestKey, outcome: Outcome) {
        for _ in 0..3 {
            let slot = Slot {
                service: service(),
                dest,
                check: 0,
            };
            let slots = [slot].into();
            let found = Found::of(outcome, Duration::ZERO);
            self.reports.send(Report { slots, found }).await.unwrap();
        }
    }

    /// The provisioner lists a warm spare for server 1.
    async fn warm(&self, n: u8) {
        let spare = Spare {
            name: format!("spare{n}"),
            addresses: vec![dest(n).addr],
        };
        let in_place_of = vec![dest(1).addr];
        let list = Members {
            version: 1,
            members: Vec::new(),
            standbys: vec![wire::Standby { spare, in_place_of }],
        };
        self.events.send(Event::Members(list)).await.unwrap();
    }

    /// The provisioner lists a stand-in of server 1 for each of these numbers.
    async fn listed(&self, spares: &[u8]) {
        let member = |n: &u8| Member {
            replacement: format!("r{n:03}").parse().unwrap(),
            origins: vec![dest(1).addr],
            spare: Spare {
                name: format!("spare{n}"),
                addresses: vec![dest(*n).addr],
            },
            want: wire::Want::Attach,
            confirmed: None,
        };
        let members = spares.iter().map(member).collect();
        let list = Members {
            version: 1,
            members,
            standbys: Vec::new(),
        };
        self.events.send(Event::Members(list)).await.unwrap();
    }

    async fn sees(&mut self, dests: &[u8]) {
        let is = |d: &Desired| {
            let dests = dests.iter().map(|n| dest(*n));
            d.services[&service()]
                .service
                .dests
                .keys()
                .copied()
                .eq(dests)
        };
        let seen = time::timeout(LIMIT, self.desired.wait_for(is)).await;
        seen.expect("IPVS comes to have these").unwrap();
    }

    async fn counts(&self, line: &str) {
        let counted = async {
            loop {
                let mut text = String::new();
                prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
                if text.contains(line) {
                    return;
                }
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        let counted = time::timeout(LIMIT, counted).await;
        counted.unwrap_or_else(|_| panic!("{line} comes to be counted"));
    }

    async fn stop(self) {
        self.stop.cancel();
        time::timeout(LIMIT, self.task).await.unwrap().unwrap();
    }
}

/// A pipe in the file's place: whoever opens it to write waits until somebody reads, as long as this is closed.
struct Pipe(std::path::PathBuf);

impl Pipe {
    fn lay(dir: &Path) -> Self {
        let path = dir.join("state.json.new");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Self(path)
    }

    fn open(&self) -> std::io::Result<std::fs::File> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).custom_flags(nix::libc::O_NONBLOCK);
        options.open(&self.0)
    }
}

impl Drop for Pipe {
    /// Else a test that fails would wait for its writer.
    fn drop(&mut self) {
        drop(self.open());
    }
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_what_must_not_be_forgotten_and_no_removal() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = Pipe::lay(dir.path());
    let mut w = World::start(dir.path()).await;
    w.listed(&[]).await;
    w.sees(&[1, 2]).await;
    w.probe(dest(1), Outcome::Fail(FailReason::Refused)).await;
    w.sees(&[2]).await;
    w.counts("replacements_requested_total 1").await;
    assert!(
        w.outbox.borrow().requests.is_empty(),
        "it could be forgotten"
    );
    w.listed(&[3]).await;
    w.counts("stand_ins{state=\"joining\"} 1").await;
    w.probe(dest(3), Outcome::Pass).await;
    w.counts("server=\"10.0.0.3:80\"} 1").await;
    w.probe(dest(2), Outcome::Fail(FailReason::Refused)).await;
    w.sees(&[]).await;
    // After some seconds somebody hears of it.
    w.counts("state_file_ok 0").await;
    // That it could not be kept is said, and then it goes on: nothing can be synced to a pipe.
    let read = pipe.open().unwrap();
    w.sees(&[3]).await;
    w.stop().await;
    drop(read);
}

/// From its failure to its spare without a probe between: what is kept in the state file is all that it waits for.
#[tokio::test]
async fn a_warm_spare_takes_its_place_without_being_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::start(dir.path()).await;
    w.warm(3).await;
    w.counts("standbys{state=\"waiting\"} 1").await;
    w.probe(dest(3), Outcome::Pass).await;
    w.counts("standbys{state=\"ready\"} 1").await;
    w.sees(&[1, 2]).await;
    w.probe(dest(1), Outcome::Fail(FailReason::Refused)).await;
    let asked = w.outbox.wait_for(|o| !o.requests.is_empty());
    drop(time::timeout(LIMIT, asked).await.unwrap().unwrap());
    w.listed(&[3]).await;
    w.sees(&[2, 3]).await;
    let kept = std::fs::read_to_string(dir.path().join("state.json")).unwrap();
    assert!(kept.contains("spare3"), "it could be forgotten: {kept}");
    w.counts("real_server_up{service=\"tcp/192.0.2.1:80\",server=\"10.0.0.3:80\"} 1")
        .await;
    w.stop().await;
}

#[tokio::test]
async fn a_request_leaves_once_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::start(dir.path()).await;
    w.listed(&[]).await;
    w.probe(dest(1), Outcome::Fail(FailReason::Refused)).await;
    let asked = w.outbox.wait_for(|o| !o.requests.is_empty());
    time::timeout(LIMIT, asked).await.unwrap().unwrap();
    w.counts("state_file_ok 1").await;
    let kept = std::fs::read_to_string(dir.path().join("state.json")).unwrap();
    assert!(kept.contains("\"failed\": \"10.0.0.1\""), "{kept}");
    w.stop().await;
}

#[tokio::test]
async fn a_failure_is_an_event_with_its_server_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::start(dir.path()).await;
    w.listed(&[]).await;
    w.probe(dest(1), Outcome::Fail(FailReason::Refused)).await;
    let told = |ring: &EventRing| {
        let down = |e: &&Arc<crate::model::Event>| e.kind == EventKind::ServerDown;
        ring.after(0).find(down).cloned()
    };
    let happened = w.happened.wait_for(|ring| told(ring).is_some());
    let ring = time::timeout(LIMIT, happened).await.unwrap().unwrap();
    let event = told(&ring).unwrap();
    assert_eq!(event.service, Some(service()));
    assert_eq!(event.server, Some(dest(1).into()));
    assert_eq!(event.reason.as_deref(), Some("refused"));
    assert_eq!(ring.after(0).next().unwrap().kind, EventKind::Started);
    drop(ring);
    w.counts("events_total{kind=\"server_down\",severity=\"warning\"} 1")
        .await;
    w.stop().await;
}

#[tokio::test]
async fn the_newest_memory_is_kept_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let w = World::start(dir.path()).await;
    for spares in 0..20 {
        let spares: Vec<u8> = (10..10 + spares).collect();
        w.listed(&spares).await;
    }
    w.counts("stand_ins{state=\"joining\"} 19").await;
    w.stop().await;
    let kept = std::fs::read_to_string(dir.path().join("state.json")).unwrap();
    assert!(kept.contains("spare28"), "{kept}");
}

#[test]
fn a_service_that_did_not_change_keeps_its_shared_part() {
    let key = service();
    let core = core(BTreeMap::new());
    let mut all = desired(&core);
    assert_eq!(all.services.len(), 1);
    let part = Arc::clone(&all.services[&key]);
    assert!(!put(&mut all, key, core.desired(key)));
    // The reconciler tells by this that there is nothing to read or write.
    assert!(Arc::ptr_eq(&part, &all.services[&key]));
}

/// What feeds the watchdog: each turn of the core, and there is one a second at least.
#[tokio::test]
async fn the_heart_beats_where_nothing_happens_and_stops_with_the_core() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.heartbeat.borrow_and_update();
    for _ in 0..2 {
        let beat = time::timeout(BEAT * 10, world.heartbeat.changed());
        beat.await.expect("it beats").expect("the core runs");
    }
    world.stop.cancel();
    world.task.await.unwrap();
    let silence = async { while world.heartbeat.changed().await.is_ok() {} };
    let silent = time::timeout(BEAT * 10, silence);
    silent.await.expect("nobody else beats for it");
}

#[tokio::test]
async fn a_configuration_that_is_not_taken_is_an_event_unless_it_was_only_looked_at() {
    use crate::api::operator::{ReadingFor, Refusal};
    let dir = tempfile::tempdir().unwrap();
    let w = World::start(dir.path()).await;
    let wrong = |n: u8| Err(format!("director.toml:{n}:1: no"));
    let (ask, answer) = oneshot::channel();
    let looked_at = Load {
        loaded: wrong(1),
        wish: Some(ReadingFor::Plan(ask)),
    };
    w.loads.send(looked_at).await.unwrap();
    let refused = Refusal::Wrong("director.toml:1:1: no".to_owned());
    assert_eq!(answer.await.unwrap().unwrap_err(), refused);
    let (ask, answer) = oneshot::channel();
    let asked = [Some(ReadingFor::Reload(ask)), None];
    for (n, wish) in (2..).zip(asked) {
        let loaded = wrong(n);
        w.loads.send(Load { loaded, wish }).await.unwrap();
    }
    assert!(answer.await.unwrap().is_err());
    let mut happened = w.happened.clone();
    let refusals = |ring: &EventRing| {
        let of = ring.after(0).filter(|e| e.kind == EventKind::ReloadRefused);
        of.map(|e| e.text.clone()).collect::<Vec<_>>()
    };
    let two = happened.wait_for(|ring| refusals(ring).len() == 2);
    let ring = time::timeout(LIMIT, two).await.unwrap().unwrap();
    for (n, text) in (2..).zip(refusals(&ring)) {
        assert!(text.contains(&format!("director.toml:{n}:1: no")), "{text}");
    }
    drop(ring);
    w.counts("config_reload_ok 0").await;
    w.stop().await;
}
