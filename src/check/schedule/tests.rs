//! The schedule under the runtime's paused clock, with a prober that is told what to find.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    task::JoinHandle,
    time::{advance, sleep, timeout},
};

use super::{super::prepared::REREAD, *};
use crate::model::{CheckKind, CheckTiming, DestKey, Phase, Protocol, ServiceKey, TlsOptions, Via};

const SECOND: Duration = Duration::from_secs(1);
const REFUSED: Outcome = Outcome::Fail(FailReason::Refused);

/// What the prober finds, how long it takes, and what it did.
#[derive(Default)]
struct World {
    found: Mutex<HashMap<SocketAddr, (Outcome, Duration)>>,
    starts: Mutex<Vec<(Instant, SocketAddr)>>,
    running: AtomicUsize,
    most_running: AtomicUsize,
    probed: AtomicUsize,
    dropped: AtomicUsize,
    latest: Mutex<Duration>,
    prepared: AtomicUsize,
    /// Something that checks need is not there.
    missing: Mutex<bool>,
    /// What the next probe that passes keeps open.
    kept: Mutex<Option<TcpStream>>,
    /// Done at the end of the next probe.
    at_end: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl World {
    fn find(&self, n: u32, outcome: Outcome, after: Duration) {
        let at = SocketAddr::new(dest(n).addr, dest(n).port);
        self.found.lock().unwrap().insert(at, (outcome, after));
    }

    fn starts_of(&self, n: u32) -> Vec<Instant> {
        let starts = self.starts.lock().unwrap();
        starts
            .iter()
            .filter(|(_, at)| at.ip() == dest(n).addr)
            .map(|(when, _)| *when)
            .collect()
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<World>);

/// Counts a probe as running until it ends or is dropped.
struct Running<'a>(&'a World);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Prober for Fake {
    type Check = Self;

    fn prepare(&self, _kind: &CheckKind) -> Result<Self, Unprepared> {
        self.0.prepared.fetch_add(1, Ordering::SeqCst);
        match *self.0.missing.lock().unwrap() {
            true => Err(Unprepared::NoAuthorities),
            false => Ok(self.clone()),
        }
    }

    async fn probe(
        &self,
        check: &Self,
        at: SocketAddr,
        _spec: &CheckSpec,
    ) -> (Found, Option<TcpStream>) {
        let begun = Instant::now();
        let outcome = check.found(at).await;
        let kept = match outcome {
            Outcome::Pass => check.0.kept.lock().unwrap().take(),
            Outcome::Fail(_) => None,
        };
        (Found::of(outcome, begun.elapsed()), kept)
    }
}

impl Fake {
    async fn found(&self, at: SocketAddr) -> Outcome {
        self.0.starts.lock().unwrap().push((Instant::now(), at));
        let running = self.0.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_running.fetch_max(running, Ordering::SeqCst);
        let _running = Running(&self.0);
        let found = self.0.found.lock().unwrap().get(&at).copied();
        let (outcome, after) = found.unwrap_or((Outcome::Pass, Duration::from_millis(1)));
        sleep(after).await;
        if let Some(deed) = self.0.at_end.lock().unwrap().take() {
            deed();
        }
        outcome
    }
}

impl Observer for Fake {
    fn probed(&self, _outcome: Outcome, _elapsed: Duration) {
        self.0.probed.fetch_add(1, Ordering::SeqCst);
    }
    fn begun_late(&self, by: Duration) {
        let mut latest = self.0.latest.lock().unwrap();
        *latest = by.max(*latest);
    }
    fn report_dropped(&self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
    fn in_flight(&self, _probes: usize, _targets: usize) {}
}

fn service() -> ServiceKey {
    ServiceKey::Addr(Protocol::Tcp, "192.0.2.1:80".parse().unwrap())
}

fn dest(n: u32) -> DestKey {
    DestKey {
        addr: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)),
        port: 80,
    }
}

fn target(n: u32, interval: Duration, fall: u32) -> Target {
    let slot = Slot {
        service: service(),
        dest: dest(n),
        check: 0,
    };
    Target {
        at: SocketAddr::new(dest(n).addr, dest(n).port),
        spec: Arc::new(CheckSpec {
            kind: CheckKind::default(),
            via: Via::default(),
            timing: CheckTiming {
                fall,
                ..CheckTiming::every(interval)
            },
        }),
        slots: [slot].into(),
        fast: false,
    }
}

/// With a check for which something has to be read.
fn reading(n: u32) -> Target {
    let mut target = target(n, SECOND, 2);
    let spec = CheckSpec {
        kind: CheckKind::Tls(TlsOptions::default()),
        ..(*target.spec).clone()
    };
    target.spec = Arc::new(spec);
    target
}

struct Bench {
    world: Arc<World>,
    targets: watch::Sender<Arc<Targets>>,
    nudges: mpsc::Sender<Nudge>,
    reports: mpsc::Receiver<Report>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Bench {
    fn start(targets: Targets, queue: usize) -> Self {
        Self::start_in(Fake::default(), targets, queue)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the test itself sees the end of the task"
    )]
    fn start_in(fake: Fake, targets: Targets, queue: usize) -> Self {
        let (targets, seen) = watch::channel(Arc::new(targets));
        let (reports, received) = mpsc::channel(queue);
        let (nudges, nudged) = mpsc::channel(16);
        let stop = CancellationToken::new();
        Self {
            world: Arc::clone(&fake.0),
            targets,
            nudges,
            reports: received,
            task: tokio::spawn(run_with(
                fake.clone(),
                seen,
                nudged,
                reports,
                fake,
                stop.clone(),
            )),
            stop,
        }
    }

    async fn report(&mut self) -> Report {
        timeout(60 * SECOND, self.reports.recv())
            .await
            .expect("a report comes")
            .expect("the schedule runs")
    }
}

fn gaps(starts: &[Instant]) -> Vec<Duration> {
    starts.windows(2).map(|w| w[1] - w[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn three_servers_have_first_verdicts_within_200_ms() {
    let begun = Instant::now();
    let mut bench = Bench::start((0..3).map(|n| target(n, SECOND, 2)).collect(), 16);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(bench.report().await.slots[0].dest);
    }
    assert!(begun.elapsed() <= SECOND / 5, "{:?}", begun.elapsed());
    seen.sort();
    assert_eq!(seen, [dest(0), dest(1), dest(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_servers_do_not_burst() {
    let bench = Bench::start((0..1_000).map(|n| target(n, SECOND, 2)).collect(), 65_536);
    sleep(10 * SECOND).await;
    let mut per_slot: HashMap<u128, u32> = HashMap::new();
    let starts = bench.world.starts.lock().unwrap();
    let begun = starts[0].0;
    for (when, _) in starts.iter() {
        *per_slot
            .entry((*when - begun).as_millis() / 50)
            .or_default() += 1;
    }
    // 50 expected in each 50 ms, some more while first probes and regular ones overlap.
    let most = per_slot.values().max().unwrap();
    assert!(*most < 130, "{most} probes begun within 50 ms");
    assert!((9_000..11_500).contains(&starts.len()), "{}", starts.len());
}

#[tokio::test(start_paused = true)]
async fn a_server_keeps_its_phase_when_others_come_and_go() {
    let bench = Bench::start(vec![target(1, SECOND, 2)], 1_024);
    for round in 0..50_u32 {
        sleep(Duration::from_millis(173)).await;
        let others = (2..2 + round % 5).map(|n| target(n, SECOND, 2));
        let wanted = std::iter::once(target(1, SECOND, 2))
            .chain(others)
            .collect();
        bench.targets.send_replace(Arc::new(wanted));
    }
    let starts = bench.world.starts_of(1);
    assert!(starts.len() >= 8);
    // The first gap leads from the first probe to the regular phase.
    let gaps = gaps(&starts);
    assert!(
        gaps[0] >= SECOND / 2 && gaps[0] <= SECOND * 3 / 2,
        "{gaps:?}"
    );
    for gap in &gaps[1..] {
        assert!(gap.abs_diff(SECOND) <= Duration::from_millis(2), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_failure_is_followed_quickly_until_the_fall() {
    let mut bench = Bench::start(vec![target(1, SECOND, 3)], 16);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    bench.world.find(1, REFUSED, Duration::ZERO);
    for _ in 0..5 {
        assert_eq!(bench.report().await.found.outcome, REFUSED);
    }
    let gaps = gaps(&bench.world.starts_of(1));
    let fast = Duration::from_millis(100);
    // Pass to first failure: regular. Two quick ones to the fall. Then regular again.
    for (gap, quick) in gaps.iter().zip([false, true, true, false, false]) {
        let near = gap.abs_diff(fast) <= Duration::from_millis(2);
        assert_eq!(near, quick, "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_this_host_hurries_nobody() {
    let mut bench = Bench::start(vec![target(1, SECOND, 3)], 16);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    let local = Outcome::Fail(FailReason::Local);
    bench.world.find(1, local, Duration::ZERO);
    for _ in 0..4 {
        assert_eq!(bench.report().await.found.outcome, local);
    }
    for gap in gaps(&bench.world.starts_of(1)) {
        assert!(gap >= SECOND / 2, "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_asked_once_more_beside_and_then_at_once() {
    let mut bench = Bench::start(vec![target(1, SECOND, 3)], 16);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    let silent = Outcome::Fail(FailReason::TimedOut(Phase::Connect));
    bench.world.find(1, silent, SECOND);
    for _ in 0..5 {
        assert_eq!(bench.report().await.found.outcome, silent);
    }
    assert_eq!(bench.world.most_running.load(Ordering::SeqCst), 2);
    let gaps = gaps(&bench.world.starts_of(1));
    let near = |gap: Duration, wanted| gap.abs_diff(wanted) <= Duration::from_millis(5);
    assert!(near(gaps[1], SECOND / 4), "the second beside: {gaps:?}");
    assert!(
        near(gaps[2], SECOND),
        "the third when both have failed: {gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_that_answers_has_one_report_and_no_failure() {
    let mut bench = Bench::start(vec![target(1, SECOND, 2)], 64);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    bench.world.find(1, Outcome::Pass, SECOND / 2);
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    }
    assert!(begun.elapsed() >= 9 * SECOND, "one report an interval");
    let running = bench.world.running.load(Ordering::SeqCst);
    assert_eq!(running, 0, "the second probe is dropped");
}

#[tokio::test(start_paused = true)]
async fn where_one_failure_is_enough_nobody_is_asked_beside() {
    let mut bench = Bench::start(vec![target(1, SECOND, 1)], 16);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    let silent = Outcome::Fail(FailReason::TimedOut(Phase::Connect));
    bench.world.find(1, silent, SECOND);
    assert_eq!(bench.report().await.found.outcome, silent);
    assert_eq!(bench.world.most_running.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_somebody_waits_for_is_asked_at_the_fast_interval() {
    let mut bench = Bench::start(vec![target(1, 10 * SECOND, 2)], 16);
    bench.report().await;
    let hurried = Target {
        fast: true,
        ..target(1, 10 * SECOND, 2)
    };
    let asked = Instant::now();
    bench.targets.send_replace(Arc::new(vec![hurried]));
    for _ in 0..3 {
        bench.report().await;
    }
    assert!(
        asked.elapsed() <= 3 * SECOND + Duration::from_millis(10),
        "{:?}",
        asked.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn what_many_services_ask_of_a_server_is_asked_once() {
    let slots: Arc<[Slot]> = (0..50_u16)
        .map(|n| Slot {
            service: ServiceKey::Addr(Protocol::Tcp, ([192, 0, 2, 1], 80 + n).into()),
            dest: dest(1),
            check: 0,
        })
        .collect();
    let shared = Target {
        slots: Arc::clone(&slots),
        ..target(1, SECOND, 2)
    };
    let mut bench = Bench::start(vec![shared], 16);
    for _ in 0..10 {
        assert_eq!(bench.report().await.slots, slots, "each is told");
    }
    assert_eq!(bench.world.starts_of(1).len(), 10);
    // One service goes: the probe keeps its time, and is reported to those who stay.
    let fewer: Arc<[Slot]> = slots[1..].into();
    let changed = Target {
        slots: Arc::clone(&fewer),
        ..target(1, SECOND, 2)
    };
    bench.targets.send_replace(Arc::new(vec![changed]));
    assert_eq!(bench.report().await.slots, fewer);
    let gaps = gaps(&bench.world.starts_of(1));
    let last = gaps[gaps.len() - 1];
    assert!(
        last.abs_diff(SECOND) <= Duration::from_millis(2),
        "{gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_is_asked_at_its_own_interval() {
    let mut slow = target(1, SECOND, 2);
    let spec = Arc::make_mut(&mut slow.spec);
    spec.timing.down_interval = 5 * SECOND;
    let mut bench = Bench::start(vec![slow], 16);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    bench.world.find(1, REFUSED, Duration::ZERO);
    for _ in 0..5 {
        assert_eq!(bench.report().await.found.outcome, REFUSED);
    }
    bench.world.find(1, Outcome::Pass, Duration::ZERO);
    for _ in 0..3 {
        assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    }
    let gaps = gaps(&bench.world.starts_of(1));
    // The last gaps of the failing time lead to each other at five seconds, those after the pass at one.
    for gap in &gaps[3..5] {
        assert!(
            gap.abs_diff(5 * SECOND) <= Duration::from_millis(2),
            "{gaps:?}"
        );
    }
    assert!(
        gaps[7].abs_diff(SECOND) <= Duration::from_millis(2),
        "{gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_nudge_brings_a_probe_forward_and_no_verdict() {
    let targets = (1..=2).map(|n| target(n, 100 * SECOND, 2)).collect();
    let mut bench = Bench::start(targets, 16);
    bench.report().await;
    bench.report().await;
    sleep(SECOND).await;
    let nudged = Instant::now();
    bench
        .nudges
        .send(Nudge::Servers([dest(2).addr].into()))
        .await
        .unwrap();
    let report = bench.report().await;
    assert_eq!(report.slots[0].dest, dest(2));
    assert_eq!(report.found.outcome, Outcome::Pass);
    assert!(nudged.elapsed() <= Duration::from_millis(5));
    assert_eq!(bench.world.starts_of(1).len(), 1, "nobody else is hurried");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_lacks_something_blames_nobody_and_is_tried_again() {
    let fake = Fake::default();
    *fake.0.missing.lock().unwrap() = true;
    let mut bench = Bench::start_in(fake, vec![reading(1)], 16);
    for _ in 0..3 {
        let found = bench.report().await.found;
        assert_eq!(found.outcome, Outcome::Fail(FailReason::Local));
        assert!(
            found.detail.unwrap().contains("ca-certificates"),
            "it says what to do"
        );
    }
    assert!(bench.world.starts_of(1).is_empty());
    *bench.world.missing.lock().unwrap() = false;
    for _ in 0..3 {
        assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    }
    assert_eq!(
        bench.world.prepared.load(Ordering::SeqCst),
        4,
        "once it is ready it stays so"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_check_names_is_read_again_each_minute_and_stays_where_it_cannot_be() {
    let mut bench = Bench::start(vec![reading(1)], 16);
    let mut readings = Vec::new();
    for second in 0..200 {
        // Of a file that is gone the old content goes on.
        *bench.world.missing.lock().unwrap() = second > 90;
        assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
        readings.push(bench.world.prepared.load(Ordering::SeqCst));
    }
    let begun = bench.world.starts_of(1);
    let read: Vec<_> = (1..200)
        .filter(|n| readings[*n] > readings[n - 1])
        .collect();
    assert_eq!(readings[0], 1);
    assert_eq!(readings[199], 4, "after one, two and three minutes");
    let after = |n: &usize| begun[*n] - begun[0];
    for (n, minute) in read.iter().zip(1..) {
        let due = minute * REREAD;
        assert!((due..due + 4 * SECOND).contains(&after(n)), "{read:?}");
    }
}

#[tokio::test]
async fn a_kept_connection_passes_at_each_interval_without_another_probe() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (_far, _) = listener.accept().await.unwrap();
    let fake = Fake::default();
    *fake.0.kept.lock().unwrap() = Some(near);
    // A full queue loses some: the next one supersedes them.
    let mut bench = Bench::start_in(fake, vec![target(1, SECOND / 10, 2)], 1);
    for _ in 0..5 {
        assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    }
    assert_eq!(bench.world.starts_of(1).len(), 1);
}

#[tokio::test]
async fn the_end_of_a_kept_connection_is_a_failure_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let fake = Fake::default();
    *fake.0.kept.lock().unwrap() = Some(near);
    let mut bench = Bench::start_in(fake, vec![target(1, 3_600 * SECOND, 2)], 16);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    bench.world.find(1, REFUSED, Duration::ZERO);
    drop(far);
    let dropped = Outcome::Fail(FailReason::Dropped);
    assert_eq!(bench.report().await.found.outcome, dropped);
    assert_eq!(bench.report().await.found.outcome, REFUSED, "asked at once");
}

#[tokio::test]
async fn a_hint_has_a_server_with_a_kept_connection_asked_anew() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let fake = Fake::default();
    *fake.0.kept.lock().unwrap() = Some(near);
    let mut bench = Bench::start_in(fake, vec![target(1, 3_600 * SECOND, 2)], 16);
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    bench.world.find(1, REFUSED, Duration::ZERO);
    let servers = [dest(1).addr].into();
    bench.nudges.send(Nudge::Servers(servers)).await.unwrap();
    assert_eq!(bench.report().await.found.outcome, REFUSED);
    // The kept one is not left behind.
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_talk_is_no_failure_where_the_schedule_was_late() {
    let slow = Outcome::Fail(FailReason::TimedOut(Phase::Login));
    let fake = Fake::default();
    fake.0.find(1, slow, 2 * SECOND);
    let mut bench = Bench::start_in(fake, vec![target(1, SECOND, 1), target(2, SECOND, 1)], 16);
    assert_eq!(bench.report().await.slots[0].dest, dest(2));
    while bench.world.starts_of(1).is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    // Beyond the second one's time, while the first one is asked.
    advance(9 * SECOND / 5).await;
    let report = loop {
        let report = bench.report().await;
        if report.slots[0].dest == dest(1) {
            break report;
        }
    };
    assert_eq!(report.found.outcome, Outcome::Fail(FailReason::Local));
    let report = loop {
        let report = bench.report().await;
        if report.slots[0].dest == dest(1) {
            break report;
        }
    };
    assert_eq!(report.found.outcome, slow, "nobody was late meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_removed_target_is_dropped_with_its_probe() {
    let fake = Fake::default();
    fake.0.find(1, Outcome::Pass, 30 * SECOND);
    let mut bench = Bench::start_in(fake, vec![target(1, SECOND, 2)], 16);
    sleep(SECOND).await;
    assert_eq!(
        bench.world.running.load(Ordering::SeqCst),
        1,
        "its probe runs"
    );
    bench
        .targets
        .send_replace(Arc::new(vec![target(2, SECOND, 2)]));
    for _ in 0..100 {
        assert_eq!(bench.report().await.slots[0].dest, dest(2));
    }
    assert_eq!(bench.world.starts_of(1).len(), 1);
    assert_eq!(
        bench.world.most_running.load(Ordering::SeqCst),
        1,
        "the probe ended at once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_changed_check_begins_anew_and_never_reports_the_old_one() {
    let fake = Fake::default();
    fake.0.find(1, REFUSED, 30 * SECOND);
    let mut bench = Bench::start_in(fake, vec![target(1, SECOND, 2)], 16);
    sleep(SECOND).await;
    bench.world.find(1, Outcome::Pass, Duration::ZERO);
    bench
        .targets
        .send_replace(Arc::new(vec![target(1, 2 * SECOND, 2)]));
    let changed = Instant::now();
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    assert!(changed.elapsed() <= SECOND / 5);
    for _ in 0..40 {
        assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_comes_together_with_the_change_is_not_reported() {
    let fake = Fake::default();
    fake.0.find(1, REFUSED, Duration::ZERO);
    let mut bench = Bench::start_in(fake, vec![target(1, SECOND, 2)], 16);
    let (targets, world) = (bench.targets.clone(), Arc::clone(&bench.world));
    let change = move || {
        targets.send_replace(Arc::new(vec![target(1, 2 * SECOND, 2)]));
        world.find(1, Outcome::Pass, Duration::ZERO);
    };
    *bench.world.at_end.lock().unwrap() = Some(Box::new(change));
    assert_eq!(bench.report().await.found.outcome, Outcome::Pass);
    assert_eq!(bench.world.starts_of(1).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_loses_reports_and_counts_them() {
    let mut bench = Bench::start(vec![target(1, SECOND, 2)], 1);
    sleep(10 * SECOND + SECOND / 2).await;
    let probed = bench.world.probed.load(Ordering::SeqCst);
    assert!(probed >= 10);
    assert_eq!(bench.world.dropped.load(Ordering::SeqCst), probed - 1);
    bench.world.find(1, REFUSED, Duration::ZERO);
    assert_eq!(
        bench.report().await.found.outcome,
        Outcome::Pass,
        "the one that had room"
    );
    assert_eq!(
        bench.report().await.found.outcome,
        REFUSED,
        "superseded by the next probe"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_stop_overdue_probes_are_spread() {
    let bench = Bench::start((0..1_000).map(|n| target(n, SECOND, 2)).collect(), 65_536);
    sleep(3 * SECOND).await;
    // Nothing runs while the clock goes on: the process was stopped.
    advance(60 * SECOND).await;
    let resumed = Instant::now();
    sleep(3 * SECOND).await;
    assert!(
        *bench.world.latest.lock().unwrap() >= 59 * SECOND,
        "lateness is measured"
    );
    let mut per_slot: HashMap<u128, u32> = HashMap::new();
    for (when, _) in bench.world.starts.lock().unwrap().iter() {
        if let Some(after) = when.checked_duration_since(resumed) {
            *per_slot.entry(after.as_millis() / 50).or_default() += 1;
        }
    }
    let most = per_slot.values().max().unwrap();
    assert!(*most < 130, "{most} probes begun within 50 ms");
    let all: u32 = per_slot.values().sum();
    assert!(all >= 2_000, "{all}");
}

#[tokio::test(start_paused = true)]
async fn probes_in_flight_are_bounded_and_all_targets_get_their_turn() {
    let count = u32::try_from(MAX_IN_FLIGHT).unwrap() + 1_000;
    let fake = Fake::default();
    let silent = Outcome::Fail(FailReason::TimedOut(Phase::Connect));
    for n in 0..count {
        fake.0.find(n, silent, 20 * SECOND);
    }
    let targets = (0..count).map(|n| target(n, 20 * SECOND, 2)).collect();
    let bench = Bench::start_in(fake, targets, 65_536);
    sleep(45 * SECOND).await;
    assert_eq!(
        bench.world.most_running.load(Ordering::SeqCst),
        MAX_IN_FLIGHT
    );
    let asked: HashSet<_> = {
        let starts = bench.world.starts.lock().unwrap();
        starts.iter().map(|(_, at)| *at).collect()
    };
    assert_eq!(asked.len(), usize::try_from(count).unwrap());
}

#[tokio::test(start_paused = true)]
async fn it_ends_on_the_token_and_when_nobody_listens() {
    let bench = Bench::start(vec![target(1, SECOND, 2)], 16);
    bench.stop.cancel();
    timeout(SECOND, bench.task).await.unwrap().unwrap();

    let bench = Bench::start(vec![target(1, SECOND, 2)], 16);
    drop(bench.reports);
    timeout(3 * SECOND, bench.task).await.unwrap().unwrap();

    let bench = Bench::start(vec![target(1, SECOND, 2)], 16);
    drop(bench.targets);
    timeout(SECOND, bench.task).await.unwrap().unwrap();
}
