use std::{
    cell::RefCell,
    sync::{Mutex, MutexGuard},
};

use super::{
    super::testing::{dest, dest_state, state},
    *,
};
use crate::{
    ipvs::{Error, Request},
    model::{
        ForwardMethod, Protocol, Scheduler, Service, ServiceAttrs, ServiceFlags, Stats, Tunnel,
        Weight,
    },
};

/// The kernel's table in memory: refuses what it is told to refuse.
#[derive(Clone, Default)]
struct FakeKernel(Arc<Mutex<Fake>>);

#[derive(Default)]
struct Fake {
    table: KernelTable,
    refuse_reads: u32,
    /// The whole table cannot be read, and each try takes so long.
    refuse_whole: Option<Duration>,
    /// How often the whole table was asked for.
    tries: u32,
    refuse: Option<DestKey>,
    refuse_service: Option<ServiceKey>,
    refuse_removal: Option<ServiceKey>,
    /// Done in the first call with so many steps.
    during: Option<(usize, Box<dyn FnOnce() + Send>)>,
    /// What a reading of the whole table leaves out.
    left_out: Option<ServiceKey>,
    /// Says nothing of any step.
    mute: bool,
    /// Somebody else changes the table right before the next step.
    meddle: Option<KernelTable>,
    applied: Vec<Step>,
    /// Steps by call.
    calls: Vec<usize>,
    reads: Vec<usize>,
}

impl FakeKernel {
    fn get(&self) -> MutexGuard<'_, Fake> {
        self.0.lock().unwrap()
    }

    fn reading(&self, keys: Option<&[ServiceKey]>) -> Result<KernelTable, Error> {
        let mut f = self.get();
        if f.refuse_reads > 0 {
            f.refuse_reads -= 1;
            return Err(Error::NoFamily);
        }
        f.reads.push(keys.map_or(usize::MAX, <[_]>::len));
        let all = f.table.clone().into_iter();
        Ok(all
            .filter(|(k, _)| keys.map_or(f.left_out != Some(*k), |w| w.contains(k)))
            .collect())
    }
}

impl Kernel for FakeKernel {
    async fn table(&mut self) -> Result<KernelTable, Error> {
        let refuse = {
            let mut f = self.get();
            f.tries += 1;
            f.refuse_whole
        };
        if let Some(takes) = refuse {
            time::sleep(takes).await;
            return Err(Error::NoFamily);
        }
        self.reading(None)
    }

    async fn read(&mut self, keys: &[ServiceKey]) -> Result<KernelTable, Error> {
        self.reading(Some(keys))
    }

    async fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), Error>> {
        self.get().calls.push(steps.len());
        let during = self.get().during.take_if(|(n, _)| steps.len() >= *n);
        if let Some((_, during)) = during {
            during();
        }
        if self.get().mute {
            return Vec::new();
        }
        steps.iter().map(|step| self.step(step)).collect()
    }
}

impl FakeKernel {
    fn step(&self, step: &Step) -> Result<(), Error> {
        let mut f = self.get();
        if let Some(table) = f.meddle.take() {
            f.table = table;
        }
        let request = Request::of(step);
        let gone = || Error::NoSuchService { request };
        match step {
            Step::NewDest(_, d, _) | Step::SetDest(_, d, _) | Step::DelDest(_, d)
                if Some(*d) == f.refuse =>
            {
                let source = std::io::ErrorKind::OutOfMemory.into();
                return Err(Error::Refused { request, source });
            }
            Step::NewService(k, _) | Step::SetService(k, _) if Some(*k) == f.refuse_service => {
                let source = std::io::ErrorKind::InvalidInput.into();
                return Err(Error::Refused { request, source });
            }
            Step::DelService(k) if Some(*k) == f.refuse_removal => {
                let source = std::io::ErrorKind::OutOfMemory.into();
                return Err(Error::Refused { request, source });
            }
            Step::NewService(k, attrs) => {
                let empty = ServiceState {
                    attrs: attrs.clone(),
                    stats: Stats::default(),
                    dests: BTreeMap::new(),
                };
                if f.table.insert(*k, empty).is_some() {
                    return Err(Error::AlreadyThere { request });
                }
            }
            Step::SetService(k, attrs) => {
                f.table.get_mut(k).ok_or_else(gone)?.attrs = attrs.clone();
            }
            Step::DelService(k) => drop(f.table.remove(k).ok_or_else(gone)?),
            Step::NewDest(k, d, a) => {
                let dests = &mut f.table.get_mut(k).ok_or_else(gone)?.dests;
                if dests.contains_key(d) {
                    return Err(Error::AlreadyThere { request });
                }
                dests.insert(*d, dest_state(*a));
            }
            Step::SetDest(k, d, a) => {
                let dests = &mut f.table.get_mut(k).ok_or_else(gone)?.dests;
                dests.get_mut(d).ok_or(Error::NoSuchDest { request })?.attrs = *a;
            }
            Step::DelDest(k, d) => {
                let dests = &mut f.table.get_mut(k).ok_or_else(gone)?.dests;
                dests.remove(d).ok_or(Error::NoSuchDest { request })?;
            }
        }
        f.applied.push(step.clone());
        Ok(())
    }
}

fn key(n: u8) -> ServiceKey {
    ServiceKey::Addr(Protocol::Tcp, ([192, 0, 2, n], 80).into())
}

fn service(dests: &[DestKey]) -> Service {
    let attrs = DestAttrs {
        weight: Weight::ONE,
        forward: ForwardMethod::Dr,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    };
    let scheduler = Scheduler("wlc".to_owned());
    let flags = ServiceFlags::default();
    Service {
        attrs: ServiceAttrs {
            scheduler,
            flags,
            persistence: None,
        },
        dests: dests.iter().map(|d| (*d, attrs)).collect(),
    }
}

fn table<const N: usize>(services: [(ServiceKey, &[DestKey]); N]) -> KernelTable {
    let services = services.into_iter();
    services.map(|(k, d)| (k, state(&service(d)))).collect()
}

fn desired<const N: usize>(services: [(ServiceKey, &[DestKey], &[DestKey]); N]) -> Desired {
    let want = |dests: &[DestKey], out: &[DestKey]| {
        Arc::new(Want {
            service: service(dests),
            out: out.iter().copied().collect(),
            drift: DriftPolicy::Repair,
        })
    };
    let services = services
        .into_iter()
        .map(|(k, d, o)| (k, want(d, o)))
        .collect();
    Desired {
        generation: 1,
        services,
        resync: RESYNC,
        shadow: false,
        exclusive: false,
        made: Arc::default(),
    }
}

/// Nothing else is wanted meanwhile.
fn never() -> bool {
    false
}

async fn pass(kernel: &FakeKernel, want: &Desired) -> (bool, Applied) {
    let mut r = Reconciler::new(|_| {});
    let ok = r.pass(&mut kernel.clone(), want, true, &never).await;
    (ok, r.applied)
}

const RETRY: Duration = Duration::from_secs(1);
const RESYNC: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn drift_is_put_right_and_stopping_leaves_the_table() {
    let kernel = FakeKernel::default();
    let want = desired([(key(1), &[dest(1)], &[])]);
    let whole = table([(key(1), &[dest(1)])]);
    let (_want, rx) = watch::channel(want);
    let (tx, mut applied) = watch::channel(Applied::default());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(kernel.clone(), rx, tx, RETRY, |_| {}, stop.clone()));
    applied.wait_for(|a| a.generation == 1).await.unwrap();
    // Somebody runs `ipvsadm -C`.
    kernel.get().table.clear();
    applied.changed().await.unwrap();
    assert_eq!(kernel.get().table, whole);
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
    assert_eq!(kernel.get().table, whole);
}

#[tokio::test(start_paused = true)]
async fn where_somebody_changed_something_it_is_looked_again_soon() {
    let kernel = FakeKernel::default();
    let (_want, rx) = watch::channel(desired([(key(1), &[dest(1)], &[])]));
    let (tx, mut applied) = watch::channel(Applied::default());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(kernel.clone(), rx, tx, RETRY, |_| {}, stop.clone()));
    applied.wait_for(|a| a.generation == 1).await.unwrap();
    let mut waits = Vec::new();
    for _ in 0..3 {
        let begun = time::Instant::now();
        kernel.get().table.clear();
        applied.changed().await.unwrap();
        waits.push(begun.elapsed().as_secs_f64().round());
    }
    // Not for ever: two that undo each other's work would do nothing else.
    assert_eq!(waits, [10.0, 1.0, 10.0]);
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_reads_and_writes_only_its_own_service() {
    let kernel = FakeKernel::default();
    let first = desired([
        (key(1), &[dest(1)], &[]),
        (key(2), &[dest(1), dest(2)], &[]),
    ]);
    let (want, rx) = watch::channel(first);
    let (tx, mut applied) = watch::channel(Applied::default());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(kernel.clone(), rx, tx, RETRY, |_| {}, stop.clone()));
    applied.wait_for(|a| a.generation == 1).await.unwrap();
    let steps = kernel.get().applied.len();
    want.send_modify(|d| {
        d.generation = 2;
        let part = Want {
            service: service(&[dest(2)]),
            out: [dest(1)].into(),
            drift: DriftPolicy::Repair,
        };
        d.services.insert(key(2), Arc::new(part));
    });
    applied.wait_for(|a| a.generation == 2).await.unwrap();
    assert_eq!(
        kernel.get().applied[steps..],
        [Step::DelDest(key(2), dest(1))]
    );
    assert_eq!(
        kernel.get().reads,
        [usize::MAX, 1],
        "one service was read, not the table"
    );
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_service_that_a_reading_left_out_is_not_gone() {
    let kernel = FakeKernel::default();
    let want = desired([(key(1), &[dest(1)], &[]), (key(2), &[dest(2)], &[])]);
    let drift = RefCell::new(0);
    let mut reconciler = Reconciler::new(|fact| {
        if let Fact::Drift(_, _, n) = fact {
            *drift.borrow_mut() += n;
        }
    });
    let mut fake = kernel.clone();
    assert!(reconciler.pass(&mut fake, &want, true, &never).await);
    let steps = kernel.get().applied.len();
    kernel.get().left_out = Some(key(2));
    assert!(reconciler.pass(&mut fake, &want, true, &never).await);
    assert_eq!((kernel.get().applied.len(), *drift.borrow()), (steps, 0));
    // One that is gone is.
    kernel.get().table.remove(&key(2));
    assert!(reconciler.pass(&mut fake, &want, true, &never).await);
    assert_eq!(kernel.get().applied.len(), steps + 2);
    assert!(*drift.borrow() > 0);
}

#[tokio::test]
async fn a_failed_reading_is_not_an_empty_table() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1), dest(2)])]);
    // Neither the whole table nor the services in question.
    kernel.get().refuse_reads = 2;
    let (ok, applied) = pass(&kernel, &desired([(key(1), &[dest(1), dest(3)], &[])])).await;
    assert!(!ok && applied.unreadable.is_some());
    assert_eq!(kernel.get().applied, []);
}

#[tokio::test]
async fn a_refused_addition_holds_back_neither_a_removal_nor_another_service() {
    let kernel = FakeKernel::default();
    let before: &[DestKey] = &[dest(1), dest(2)];
    kernel.get().table = table([(key(1), before), (key(2), before)]);
    kernel.get().refuse = Some(dest(9));
    // 1 failed in both; service 1 is to get 9, which the kernel refuses, and to lose 2.
    let want = desired([
        (key(1), &[dest(9)], &[dest(1)]),
        (key(2), &[dest(2)], &[dest(1)]),
        (key(3), &[dest(3)], &[]),
    ]);
    let (ok, applied) = pass(&kernel, &want).await;
    assert!(!ok);
    assert_eq!(applied.failed.keys().copied().collect::<Vec<_>>(), [key(1)]);
    // The failed one is out; the sound one stays, since what was to replace it did not come.
    assert_eq!(
        kernel.get().table,
        table([
            (key(1), &[dest(2)]),
            (key(2), &[dest(2)]),
            (key(3), &[dest(3)])
        ])
    );
    let first: Vec<_> = kernel.get().applied.iter().take(2).cloned().collect();
    let out = [
        Step::DelDest(key(1), dest(1)),
        Step::DelDest(key(2), dest(1)),
    ];
    assert_eq!(
        first, out,
        "failed servers leave before anything else, in all services"
    );
}

#[tokio::test]
async fn a_refused_step_ends_its_own_service_only() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1)]), (key(2), &[dest(1)])]);
    kernel.get().refuse = Some(dest(9));
    let want = desired([
        (key(1), &[dest(1), dest(8), dest(9)], &[]),
        (key(2), &[dest(2)], &[]),
        (key(3), &[dest(3)], &[]),
    ]);
    let (ok, applied) = pass(&kernel, &want).await;
    assert!(!ok);
    assert_eq!(applied.failed.keys().copied().collect::<Vec<_>>(), [key(1)]);
    assert_eq!(
        kernel.get().table,
        table([
            (key(1), &[dest(1), dest(8)]),
            (key(2), &[dest(2)]),
            (key(3), &[dest(3)])
        ])
    );
}

#[tokio::test]
async fn an_errno_that_contradicts_the_reading_means_read_again() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1), dest(2)])]);
    // Between our reading and our step somebody removes the very destination.
    kernel.get().meddle = Some(table([(key(1), &[dest(2)])]));
    let (ok, _) = pass(&kernel, &desired([(key(1), &[dest(2)], &[dest(1)])])).await;
    assert!(ok, "read again, it is as wanted");
    assert_eq!(kernel.get().reads, [usize::MAX, 1]);
}

#[tokio::test]
async fn foreign_services_are_counted_and_left_alone_unless_the_director_is_exclusive() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1)]), (key(7), &[dest(7)])]);
    let mut want = desired([(key(1), &[dest(1)], &[])]);
    let (ok, applied) = pass(&kernel, &want).await;
    assert!(ok && applied.foreign == 1);
    assert_eq!(kernel.get().applied, []);
    want.exclusive = true;
    pass(&kernel, &want).await;
    assert_eq!(kernel.get().applied, [Step::DelService(key(7))]);
}

#[tokio::test]
async fn each_phase_is_one_call_for_all_services() {
    let kernel = FakeKernel::default();
    let want = desired([
        (key(1), &[dest(1), dest(2)], &[]),
        (key(2), &[dest(1)], &[]),
        (key(3), &[dest(3)], &[]),
    ]);
    let (ok, _) = pass(&kernel, &want).await;
    assert!(ok);
    assert_eq!(kernel.get().calls, [3, 4]);
    // Now 1 failed in 1, 9 comes to all, 3 leaves the third.
    let want = desired([
        (key(1), &[dest(2), dest(9)], &[dest(1)]),
        (key(2), &[dest(1), dest(9)], &[]),
        (key(3), &[dest(9)], &[]),
    ]);
    kernel.get().calls.clear();
    let (ok, _) = pass(&kernel, &want).await;
    assert!(ok);
    assert_eq!(kernel.get().calls, [1, 3, 1]);
}

#[tokio::test]
async fn a_service_that_was_not_created_gets_no_destinations() {
    let kernel = FakeKernel::default();
    kernel.get().refuse_service = Some(key(1));
    let want = desired([
        (key(1), &[dest(1), dest(2)], &[]),
        (key(2), &[dest(1)], &[]),
    ]);
    let facts = RefCell::new(Vec::new());
    let mut r = Reconciler::new(|f| facts.borrow_mut().push(f));
    assert!(!r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert_eq!(kernel.get().table, table([(key(2), &[dest(1)])]));
    assert_eq!(r.applied.failed.len(), 1);
    let refused = |f: &&Fact| matches!(f, Fact::Step(_, false, _));
    let facts = facts.borrow();
    let refused: Vec<_> = facts.iter().filter(refused).collect();
    assert_eq!(refused, [&Fact::Step("new_service", false, 1)]);
}

#[tokio::test]
async fn what_is_there_already_is_no_success() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1)])]);
    // Between our reading and our step somebody adds the destination, with another weight.
    let mut others = table([(key(1), &[dest(1), dest(2)])]);
    let two = others.get_mut(&key(1)).unwrap().dests.get_mut(&dest(2));
    two.unwrap().attrs.weight = Weight::QUIESCED;
    kernel.get().meddle = Some(others);
    let both: &[DestKey] = &[dest(1), dest(2)];
    let (ok, applied) = pass(&kernel, &desired([(key(1), both, &[])])).await;
    assert!(ok, "read again and changed");
    assert_eq!(kernel.get().table, table([(key(1), both)]));
    assert_eq!(kernel.get().reads, [usize::MAX, 1]);
    assert_eq!(applied.kernel[&key(1)][&dest(2)].weight, Weight::ONE);
}

#[tokio::test]
async fn a_service_that_vanished_meanwhile_is_made_again() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1)])]);
    kernel.get().meddle = Some(KernelTable::new());
    let both: &[DestKey] = &[dest(1), dest(2)];
    let (ok, _) = pass(&kernel, &desired([(key(1), both, &[])])).await;
    assert!(ok);
    assert_eq!(kernel.get().table, table([(key(1), both)]));
}

#[tokio::test]
async fn a_step_of_which_nothing_is_said_is_no_success() {
    let kernel = FakeKernel::default();
    kernel.get().mute = true;
    let want = desired([(key(1), &[dest(1)], &[])]);
    let (ok, applied) = pass(&kernel, &want).await;
    assert!(!ok);
    let why = &applied.failed[&key(1)];
    assert!(why.ends_with("the kernel said nothing of it"), "{why}");
}

#[tokio::test]
async fn a_pass_over_an_unchanged_table_changes_and_tells_nothing() {
    let kernel = FakeKernel::default();
    let want = desired([(key(1), &[dest(1), dest(2)], &[])]);
    let mut r = Reconciler::new(|_| {});
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert!(std::mem::take(&mut r.moved));
    let (base, held) = (r.base.clone(), r.applied.kernel.clone());
    let calls = kernel.get().calls.len();
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert!(!r.moved);
    assert!(Arc::ptr_eq(&base[&key(1)], &r.base[&key(1)]));
    assert!(Arc::ptr_eq(&held[&key(1)], &r.applied.kernel[&key(1)]));
    assert_eq!(kernel.get().calls.len(), calls);
}

/// A director that leaves what others change, after its first pass over services 1 and 2, each
/// with destinations 1 and 2; and the facts from then on.
async fn leaves_drift(
    kernel: &FakeKernel,
    facts: &RefCell<Vec<Fact>>,
    policy: DriftPolicy,
) -> (Reconciler<impl Fn(Fact)>, Desired) {
    let mut want = desired([
        (key(1), &[dest(1), dest(2)], &[]),
        (key(2), &[dest(1), dest(2)], &[]),
    ]);
    for part in want.services.values_mut() {
        Arc::make_mut(part).drift = policy;
    }
    let mut r = Reconciler::new(|f| facts.borrow_mut().push(f));
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    facts.borrow_mut().clear();
    kernel.get().applied.clear();
    (r, want)
}

fn set_weight(kernel: &FakeKernel, service: u8, server: u8, weight: Weight) {
    let mut kernel = kernel.get();
    let service = kernel.table.get_mut(&key(service)).unwrap();
    service.dests.get_mut(&dest(server)).unwrap().attrs.weight = weight;
}

fn drifts(facts: &RefCell<Vec<Fact>>) -> Vec<Fact> {
    let drift = |f: &Fact| matches!(f, Fact::Drift(..));
    facts.take().into_iter().filter(drift).collect()
}

#[tokio::test]
async fn what_others_change_is_put_right_in_one_pass_and_counted_once() {
    let (kernel, facts) = (FakeKernel::default(), RefCell::default());
    let (mut r, want) = leaves_drift(&kernel, &facts, DriftPolicy::Repair).await;
    let whole = kernel.get().table.clone();
    set_weight(&kernel, 1, 2, Weight::QUIESCED);
    kernel.get().table.remove(&key(2));
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert_eq!(kernel.get().table, whole);
    assert!(r.applied.drift.is_empty());
    assert_eq!(
        drifts(&facts),
        [
            Fact::Drift(DriftPolicy::Repair, Field::Weight, 1),
            Fact::Drift(DriftPolicy::Repair, Field::Service, 1),
        ]
    );
    // What the kernel refuses to have put right stands, and is not told each time.
    kernel.get().refuse = Some(dest(2));
    set_weight(&kernel, 1, 2, Weight::QUIESCED);
    for _ in 0..2 {
        assert!(!r.pass(&mut kernel.clone(), &want, true, &never).await);
        assert_eq!(r.applied.drift[&key(1)].len(), 1);
    }
    assert_eq!(drifts(&facts).len(), 1);
}

#[tokio::test]
async fn under_alert_what_others_change_is_left_and_told_once() {
    let (kernel, facts) = (FakeKernel::default(), RefCell::default());
    let (mut r, want) = leaves_drift(&kernel, &facts, DriftPolicy::Alert).await;
    set_weight(&kernel, 1, 2, Weight::QUIESCED);
    kernel.get().table.remove(&key(2));
    let left = kernel.get().table.clone();
    for _ in 0..2 {
        assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
        assert_eq!(kernel.get().table, left);
        assert_eq!(r.applied.drift.len(), 2);
    }
    assert_eq!(drifts(&facts).len(), 2);
    assert_eq!(r.applied.kernel[&key(1)][&dest(2)].weight, Weight::QUIESCED);
    // Another value is another difference; the wanted one is none.
    set_weight(&kernel, 1, 2, Weight::try_from(7).unwrap());
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert_eq!(drifts(&facts).len(), 1);
    set_weight(&kernel, 1, 2, Weight::ONE);
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert_eq!(drifts(&facts), []);
    assert_eq!(r.applied.drift.keys().collect::<Vec<_>>(), [&key(2)]);
    assert_eq!(kernel.get().applied, [], "nothing was done all the time");
}

#[tokio::test]
async fn under_alert_our_own_changes_go_out_all_the_same() {
    let (kernel, facts) = (FakeKernel::default(), RefCell::default());
    let (mut r, mut want) = leaves_drift(&kernel, &facts, DriftPolicy::Alert).await;
    set_weight(&kernel, 1, 1, Weight::QUIESCED);
    set_weight(&kernel, 1, 2, Weight::QUIESCED);
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    // 1 fails, 3 comes, 2 stays as it was wanted.
    let part = Want {
        service: service(&[dest(2), dest(3)]),
        out: [dest(1)].into(),
        drift: DriftPolicy::Alert,
    };
    let added = part.service.dests[&dest(3)];
    want.services.insert(key(1), Arc::new(part));
    assert!(r.pass(&mut kernel.clone(), &want, false, &never).await);
    assert_eq!(
        kernel.get().applied,
        [
            Step::DelDest(key(1), dest(1)),
            Step::NewDest(key(1), dest(3), added),
        ]
    );
    let stands = &r.applied.drift[&key(1)];
    assert_eq!(stands.len(), 1, "{stands:?}");
    assert_eq!(stands[0].dest, Some(dest(2)));
}

#[tokio::test]
async fn what_we_made_before_a_failure_is_not_taken_for_somebody_elses() {
    let (kernel, facts) = (FakeKernel::default(), RefCell::default());
    let (mut r, mut want) = leaves_drift(&kernel, &facts, DriftPolicy::Alert).await;
    let before = Arc::clone(&want.services[&key(1)]);
    kernel.get().refuse = Some(dest(9));
    let part = Want {
        service: service(&[dest(1), dest(2), dest(8), dest(9)]),
        ..Want::clone(&before)
    };
    want.services.insert(key(1), Arc::new(part));
    assert!(!r.pass(&mut kernel.clone(), &want, false, &never).await);
    assert!(kernel.get().table[&key(1)].dests.contains_key(&dest(8)));
    want.services.insert(key(1), before);
    assert!(r.pass(&mut kernel.clone(), &want, false, &never).await);
    assert!(!kernel.get().table[&key(1)].dests.contains_key(&dest(8)));
    assert_eq!(drifts(&facts), []);
}

/// So many destinations.
fn many(count: u16) -> Vec<DestKey> {
    let dest = |n: u16| DestKey {
        port: 1 + n,
        ..dest(1)
    };
    (0..count).map(dest).collect()
}

#[tokio::test(start_paused = true)]
async fn a_failed_server_leaves_in_the_midst_of_many_changes() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(9), &[dest(1), dest(2)])]);
    let dests = many(2000);
    let first = desired([(key(1), &dests, &[]), (key(9), &[dest(1), dest(2)], &[])]);
    let (want, rx) = watch::channel(first);
    let want = Arc::new(want);
    let fails = Arc::clone(&want);
    let during = move || {
        fails.send_modify(|d| {
            d.generation = 2;
            let part = Want {
                service: service(&[dest(2)]),
                out: [dest(1)].into(),
                drift: DriftPolicy::Repair,
            };
            d.services.insert(key(9), Arc::new(part));
        });
    };
    kernel.get().during = Some((100, Box::new(during)));
    let (tx, mut applied) = watch::channel(Applied::default());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(kernel.clone(), rx, tx, RETRY, |_| {}, stop.clone()));
    applied.wait_for(|a| a.generation == 2).await.unwrap();
    let out = Step::DelDest(key(9), dest(1));
    let place = kernel.get().applied.iter().position(|s| *s == out);
    assert_eq!(place, Some(PIECE), "after one piece");
    assert_eq!(
        kernel.get().table,
        table([(key(1), &dests), (key(9), &[dest(2)])])
    );
    assert_eq!(kernel.get().applied.len(), 2002, "nothing is done twice");
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_step_holds_back_no_later_piece_of_its_wave() {
    let kernel = FakeKernel::default();
    let dests = many(1500);
    kernel.get().refuse = Some(dests[0]);
    let (ok, applied) = pass(&kernel, &desired([(key(1), &dests, &[])])).await;
    assert!(!ok && applied.failed.len() == 1);
    assert_eq!(kernel.get().table, table([(key(1), &dests[1..])]));
}

#[tokio::test]
async fn a_pass_that_was_cut_short_has_not_reached_what_is_wanted() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(7), &[dest(7)])]);
    let dests = many(1500);
    let mut want = desired([(key(1), &dests, &[])]);
    want.exclusive = true;
    let mut r = Reconciler::new(|_| {});
    let newer = || true;
    let mut passes = 1;
    while !r
        .pass(&mut kernel.clone(), &want, passes == 1, &newer)
        .await
    {
        assert_eq!(kernel.get().applied.len(), passes * PIECE);
        assert_eq!(r.applied.generation, 0);
        assert!(r.applied.failed.is_empty(), "nothing was refused");
        passes += 1;
    }
    assert_eq!(r.applied.generation, 1);
    // Also what no configuration has is gone, though only the first pass read the whole table.
    assert_eq!(kernel.get().table, table([(key(1), &dests)]));
}

#[tokio::test(start_paused = true)]
async fn where_the_whole_table_cannot_be_read_a_failed_server_leaves_all_the_same() {
    let kernel = FakeKernel::default();
    let first = desired([(key(1), &[dest(1), dest(2)], &[])]);
    let (want, rx) = watch::channel(first);
    let (tx, mut applied) = watch::channel(Applied::default());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(kernel.clone(), rx, tx, RETRY, |_| {}, stop.clone()));
    applied.wait_for(|a| a.generation == 1).await.unwrap();
    let takes = Duration::from_secs(5);
    kernel.get().refuse_whole = Some(takes);
    let tries = kernel.get().tries;
    let tried = async {
        while kernel.get().tries == tries {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    time::timeout(RESYNC * 2, tried).await.unwrap();
    // While it is tried.
    let begun = time::Instant::now();
    want.send_modify(|d| {
        d.generation = 2;
        let part = Want {
            service: service(&[dest(2)]),
            out: [dest(1)].into(),
            drift: DriftPolicy::Repair,
        };
        d.services.insert(key(1), Arc::new(part));
    });
    let told = applied.wait_for(|a| a.generation == 2).await.unwrap();
    assert!(told.unreadable.is_some(), "it still cannot be read");
    drop(told);
    assert!(begun.elapsed() <= takes, "the next try waits for it");
    assert_eq!(kernel.get().table, table([(key(1), &[dest(2)])]));
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pass_that_cannot_read_the_whole_table_works_on_what_changed() {
    let kernel = FakeKernel::default();
    let mut r = Reconciler::new(|_| {});
    let both = desired([
        (key(1), &[dest(1), dest(2)], &[]),
        (key(2), &[dest(1)], &[]),
    ]);
    assert!(r.pass(&mut kernel.clone(), &both, true, &never).await);
    kernel.get().refuse_whole = Some(Duration::ZERO);
    let mut want = both;
    let part = desired([(key(1), &[dest(2)], &[dest(1)])]);
    want.services.extend(part.services);
    assert!(!r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert!(r.applied.unreadable.is_some());
    assert_eq!(
        kernel.get().table,
        table([(key(1), &[dest(2)]), (key(2), &[dest(1)])])
    );
    kernel.get().refuse_whole = None;
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert_eq!(r.applied.unreadable, None);
}

#[tokio::test]
async fn a_service_that_was_never_reached_keeps_what_others_changed_since() {
    let (kernel, facts) = (FakeKernel::default(), RefCell::<Vec<Fact>>::default());
    // 5 stands in no configuration, and goes when 9 has come.
    kernel.get().table = table([(key(1), &[dest(1), dest(5)])]);
    kernel.get().refuse = Some(dest(9));
    let mut want = desired([(key(1), &[dest(1), dest(2), dest(9)], &[])]);
    for part in want.services.values_mut() {
        Arc::make_mut(part).drift = DriftPolicy::Alert;
    }
    let mut r = Reconciler::new(|f| facts.borrow_mut().push(f));
    assert!(!r.pass(&mut kernel.clone(), &want, true, &never).await);
    for server in [1, 2] {
        set_weight(&kernel, 1, server, Weight::QUIESCED);
    }
    let left = kernel.get().table.clone();
    for _ in 0..2 {
        assert!(!r.pass(&mut kernel.clone(), &want, false, &never).await);
        assert_eq!(kernel.get().table, left);
        assert_eq!(r.applied.drift[&key(1)].len(), 2);
    }
    assert_eq!(drifts(&facts).len(), 2, "told once");
    kernel.get().refuse = None;
    assert!(r.pass(&mut kernel.clone(), &want, false, &never).await);
    let dests = kernel.get().table[&key(1)].dests.clone();
    let dests: Vec<_> = dests.into_keys().collect();
    assert_eq!(dests, [dest(1), dest(2), dest(9)]);
    assert_eq!(r.applied.drift[&key(1)].len(), 2, "it still stands");
}

#[tokio::test]
async fn a_change_of_ours_that_was_refused_from_the_start_is_not_taken_for_somebody_elses() {
    let (kernel, facts) = (FakeKernel::default(), RefCell::<Vec<Fact>>::default());
    kernel.get().table = table([(key(1), &[dest(1)])]);
    kernel.get().refuse_service = Some(key(1));
    let mut want = desired([(key(1), &[dest(1)], &[]), (key(2), &[dest(1)], &[])]);
    for part in want.services.values_mut() {
        let part = Arc::make_mut(part);
        part.service.attrs.scheduler = Scheduler("rr".to_owned());
        part.drift = DriftPolicy::Alert;
    }
    let mut r = Reconciler::new(|f| facts.borrow_mut().push(f));
    for _ in 0..2 {
        assert!(!r.pass(&mut kernel.clone(), &want, true, &never).await);
    }
    kernel.get().refuse_service = Some(key(2));
    kernel.get().table.remove(&key(2));
    let mut r = Reconciler::new(|f| facts.borrow_mut().push(f));
    for _ in 0..2 {
        assert!(!r.pass(&mut kernel.clone(), &want, true, &never).await);
    }
    assert_eq!(r.applied.failed.len(), 1);
    kernel.get().refuse_service = None;
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    let rr = |s: &ServiceState| s.attrs.scheduler.0 == "rr";
    assert!(kernel.get().table.values().all(rr));
    assert_eq!(kernel.get().table.len(), 2);
    assert_eq!(drifts(&facts), []);
}

#[tokio::test]
async fn an_intruder_that_cannot_be_removed_is_no_success_and_is_tried_again() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1)]), (key(7), &[dest(7)])]);
    kernel.get().refuse_removal = Some(key(7));
    let mut want = desired([(key(1), &[dest(1)], &[])]);
    want.exclusive = true;
    let mut r = Reconciler::new(|_| {});
    for whole in [true, false] {
        assert!(!r.pass(&mut kernel.clone(), &want, whole, &never).await);
        assert_eq!(r.applied.failed.keys().collect::<Vec<_>>(), [&key(7)]);
        assert_eq!(r.applied.generation, 0);
    }
    kernel.get().refuse_removal = None;
    assert!(r.pass(&mut kernel.clone(), &want, false, &never).await);
    assert!(r.applied.failed.is_empty());
    assert_eq!(kernel.get().table, table([(key(1), &[dest(1)])]));
    // One that somebody else removed is owed no more.
    kernel.get().table = table([(key(1), &[dest(1)]), (key(7), &[dest(7)])]);
    kernel.get().refuse_removal = Some(key(7));
    assert!(!r.pass(&mut kernel.clone(), &want, true, &never).await);
    kernel.get().table.remove(&key(7));
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
}

#[tokio::test]
async fn a_service_that_is_wanted_no_more_goes_once_and_is_nobodys_then() {
    let kernel = FakeKernel::default();
    let both = desired([(key(1), &[dest(1)], &[]), (key(2), &[dest(2)], &[])]);
    let one = desired([(key(1), &[dest(1)], &[])]);
    let mut r = Reconciler::new(|_| {});
    assert!(r.pass(&mut kernel.clone(), &both, true, &never).await);
    // At once, not only when the whole table is read.
    assert!(r.pass(&mut kernel.clone(), &one, false, &never).await);
    assert_eq!(kernel.get().table, table([(key(1), &[dest(1)])]));
    // Somebody else takes the address.
    let theirs = table([(key(1), &[dest(1)]), (key(2), &[dest(9)])]);
    kernel.get().table.clone_from(&theirs);
    assert!(r.pass(&mut kernel.clone(), &one, true, &never).await);
    assert_eq!(kernel.get().table, theirs);
    assert_eq!(r.applied.foreign, 1);
}

#[tokio::test]
async fn a_shadow_writes_nothing_and_tells_what_differs_in_two_readings() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1), dest(2)]), (key(7), &[])]);
    let before = kernel.get().table.clone();
    let mut want = desired([(key(1), &[dest(1), dest(3)], &[dest(2)])]);
    (want.shadow, want.exclusive) = (true, false);
    let mut r = Reconciler::new(|_| {});
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert!(
        r.applied.drift.is_empty(),
        "perhaps the other one is about to"
    );
    assert!(r.drifted, "and is looked at again soon");
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    let told = &r.applied.drift[&key(1)];
    let told: Vec<_> = told
        .iter()
        .map(|d| (d.dest, d.wanted.as_str(), d.found.as_str()))
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((told[0].0, told[0].2), (Some(dest(3)), "absent"));
    assert_eq!((told[1].0, told[1].1), (Some(dest(2)), "absent"));
    assert_eq!(kernel.get().table, before);
    kernel.get().table = table([(key(1), &[dest(1), dest(3)])]);
    assert!(r.pass(&mut kernel.clone(), &want, true, &never).await);
    assert!(r.applied.drift.is_empty());
}
