use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::{
    ipvs::Request,
    model::{
        DestState, ForwardMethod, Protocol, Scheduler, Service, ServiceAttrs, ServiceFlags, Stats,
        Tunnel, Weight,
    },
    reconcile::plan::Want,
};

/// The kernel's table in memory: refuses what it is told to refuse.
#[derive(Clone, Default)]
struct FakeKernel(Arc<Mutex<Fake>>);

#[derive(Default)]
struct Fake {
    table: KernelTable,
    refuse_reads: u32,
    refuse: Option<DestKey>,
    /// Somebody else changes the table right before the next step.
    meddle: Option<KernelTable>,
    applied: Vec<Step>,
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
            .filter(|(k, _)| keys.is_none_or(|w| w.contains(k)))
            .collect())
    }
}

use crate::ipvs::Error;

impl Kernel for FakeKernel {
    async fn table(&mut self) -> Result<KernelTable, Error> {
        self.reading(None)
    }

    async fn read(&mut self, keys: &[ServiceKey]) -> Result<KernelTable, Error> {
        self.reading(Some(keys))
    }

    async fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), Error>> {
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
            Step::NewDest(k, d, a) | Step::SetDest(k, d, a) => {
                f.table
                    .get_mut(k)
                    .ok_or_else(gone)?
                    .dests
                    .insert(*d, dest_state(*a));
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

fn dest_state(attrs: DestAttrs) -> DestState {
    DestState {
        attrs,
        active_connections: 0,
        inactive_connections: 0,
        persistent_connections: 0,
        stats: Stats::default(),
    }
}

fn key(n: u8) -> ServiceKey {
    ServiceKey::Addr(Protocol::Tcp, ([192, 0, 2, n], 80).into())
}

fn dest(n: u8) -> DestKey {
    DestKey {
        addr: [10, 0, 0, n].into(),
        port: 80,
    }
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
    let state = |dests: &[DestKey]| {
        let s = service(dests);
        let dests = s
            .dests
            .into_iter()
            .map(|(k, a)| (k, dest_state(a)))
            .collect();
        ServiceState {
            attrs: s.attrs,
            stats: Stats::default(),
            dests,
        }
    };
    services.into_iter().map(|(k, d)| (k, state(d))).collect()
}

fn desired<const N: usize>(services: [(ServiceKey, &[DestKey], &[DestKey]); N]) -> Desired {
    let want = |dests: &[DestKey], out: &[DestKey]| {
        Arc::new(Want {
            service: service(dests),
            out: out.iter().copied().collect(),
        })
    };
    let services = services
        .into_iter()
        .map(|(k, d, o)| (k, want(d, o)))
        .collect();
    Desired {
        generation: 1,
        services,
        exclusive: false,
    }
}

async fn pass(kernel: &FakeKernel, want: &Desired) -> (bool, Applied) {
    let mut r = Reconciler::new(|_| {});
    let ok = r.pass(&mut kernel.clone(), want, true).await;
    (ok, r.applied)
}

const TIMING: Timing = Timing {
    resync: Duration::from_secs(10),
    retry: Duration::from_secs(1),
};

#[tokio::test(start_paused = true)]
async fn drift_is_put_right_and_stopping_leaves_the_table() {
    let kernel = FakeKernel::default();
    let want = desired([(key(1), &[dest(1)], &[])]);
    let whole = table([(key(1), &[dest(1)])]);
    let (_want, rx) = watch::channel(want);
    let (tx, mut applied) = watch::channel(Applied::default());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(kernel.clone(), rx, tx, TIMING, |_| {}, stop.clone()));
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
    tasks.spawn(run(kernel.clone(), rx, tx, TIMING, |_| {}, stop.clone()));
    applied.wait_for(|a| a.generation == 1).await.unwrap();
    let steps = kernel.get().applied.len();
    want.send_modify(|d| {
        d.generation = 2;
        let part = Want {
            service: service(&[dest(2)]),
            out: [dest(1)].into(),
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
async fn a_failed_reading_is_not_an_empty_table() {
    let kernel = FakeKernel::default();
    kernel.get().table = table([(key(1), &[dest(1), dest(2)])]);
    kernel.get().refuse_reads = 1;
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
    ]);
    let (ok, applied) = pass(&kernel, &want).await;
    assert!(!ok);
    assert_eq!(applied.failed.keys().copied().collect::<Vec<_>>(), [key(1)]);
    // The failed one is out; the sound one stays, since what was to replace it did not come.
    assert_eq!(
        kernel.get().table,
        table([(key(1), &[dest(2)]), (key(2), &[dest(2)])])
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
