//! Virtual addresses on interfaces of this host: reads what is there, asks `reconcile/addresses.rs` for the
//! next steps, makes them. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    select,
    sync::watch,
    task::{self, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    clock, config,
    model::{
        Addresses, EventDraft, EventKind, EventRing, FoundAddresses, FoundLink, Mac, MonoTime,
        SysctlName,
    },
    neighbours::{self, Question},
    reconcile::{
        addresses::{Answer, Keeper, Note, Step, Trouble, Turn, at_stop},
        plan::Applied,
    },
    rtnl::{self, AddressChanges},
    sysctl::ProcSys,
    telemetry::{Chain, metrics::DirectorMetrics},
};

/// The first address comes when IPVS was made, so that nobody is refused: but it does not wait for that
/// longer than this.
const IPVS_FIRST: Duration = Duration::from_secs(10);

/// Changes come in bursts: they are read so much later, together.
const SETTLE: Duration = Duration::from_millis(50);

/// Datagrams of a burst that are passed over at most.
const BURST: u32 = 4096;

/// What failed is read again after this, and nothing is read oftener for time alone.
const AGAIN: Duration = Duration::from_secs(1);

/// What the task works with.
#[derive(Debug)]
pub struct Work {
    /// What is wanted.
    pub wanted: watch::Receiver<Arc<Addresses>>,
    /// That IPVS was made.
    pub applied: watch::Receiver<Applied>,
    /// What is not as it should be.
    pub warnings: watch::Sender<Vec<String>>,
    /// The configuration, which says how often all is looked at although nothing was heard of.
    pub in_force: watch::Receiver<Arc<config::Director>>,
    /// The last events: what becomes of addresses is one.
    pub events: watch::Sender<EventRing>,
    /// Where it is counted.
    pub metrics: DirectorMetrics,
}

/// Keeps the virtual addresses until `stop`, and then does what is wanted at the end.
pub async fn run(mut work: Work, stop: CancellationToken) {
    let mut hand = Hand {
        keeper: Keeper::default(),
        metrics: work.metrics.clone(),
        events: work.events.clone(),
        shown: BTreeSet::new(),
        unread: false,
    };
    let mut changes = None;
    let mut first = true;
    loop {
        let wanted = Arc::clone(&work.wanted.borrow_and_update());
        if !hand.keeper.is_concerned(&wanted) {
            select! {
                () = stop.cancelled() => return,
                // Cancel-safe: it only marks the value seen.
                changed = work.wanted.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return stop.cancelled().await,
                },
            }
        }
        if first {
            first = false;
            changes = listen();
            select! {
                () = stop.cancelled() => return,
                // Cancel-safe, both.
                _ = work.applied.changed() => {}
                () = time::sleep(IPVS_FIRST) => {}
            }
            continue;
        }
        let next = hand.turn(&wanted, &stop).await;
        work.warnings.send_if_modified(|told| {
            let now = hand.keeper.warnings();
            let differs = *told != now;
            *told = now;
            differs
        });
        if stop.is_cancelled() {
            break;
        }
        let resync = work.in_force.borrow().resync.max(AGAIN);
        let wait = match next {
            Next::Now => continue,
            Next::Within(wait) => wait.min(resync),
            Next::Resync => resync,
        };
        select! {
            () = stop.cancelled() => break,
            // Cancel-safe, all of them: nothing is lost but that something changed, and then all is read.
            changed = work.wanted.changed() => if changed.is_err() { break },
            heard = hear(changes.as_ref()) => {
                if let Err(error) = heard {
                    warn!(error = %Chain(&error), "addresses and links can no longer be watched: what others take off is put back at the next resync");
                    changes = None;
                }
            }
            () = time::sleep(wait) => {}
        }
    }
    stop.cancelled().await;
    let wanted = Arc::clone(&work.wanted.borrow());
    hand.end(&wanted).await;
}

fn listen() -> Option<AddressChanges> {
    let listens = AddressChanges::listen();
    listens
        .inspect_err(|error| {
            warn!(error = %Chain(error), "addresses and links cannot be watched: what others take off is put back at the next resync");
        })
        .ok()
}

/// Waits for a change, and for the rest of those that come with it.
async fn hear(changes: Option<&AddressChanges>) -> Result<(), neli::err::SocketError> {
    let Some(changes) = changes else {
        return std::future::pending().await;
    };
    changes.next().await?;
    time::sleep(SETTLE).await;
    for _ in 0..BURST {
        match time::timeout(Duration::ZERO, changes.next()).await {
            Ok(heard) => heard?,
            Err(_) => break,
        }
    }
    Ok(())
}

/// When the next turn is due.
enum Next {
    /// Something was done, and has to be looked at.
    Now,
    Within(Duration),
    Resync,
}

struct Hand {
    keeper: Keeper,
    metrics: DirectorMetrics,
    events: watch::Sender<EventRing>,
    /// Addresses that have a series.
    shown: BTreeSet<IpAddr>,
    /// Whether it was told that nothing could be read.
    unread: bool,
}

impl Hand {
    async fn turn(&mut self, wanted: &Addresses, stop: &CancellationToken) -> Next {
        let Some(found) = self.read().await else {
            return Next::Within(AGAIN);
        };
        let now = clock::now();
        let Turn { steps, notes, wake } = self.keeper.turn(wanted, &found, now);
        self.tell(&notes);
        let mut questions = Vec::new();
        let mut done = false;
        for step in steps {
            match step {
                Step::Probe(addr, link) => questions.push(Question { addr, link }),
                step => done |= self.step(step, wanted.proto, &found).await,
            }
        }
        self.count();
        if !questions.is_empty() {
            select! {
                // Asked again after the stop is nobody.
                () = stop.cancelled() => return Next::Now,
                // Cancel-safe: no answer is no verdict.
                free = self.ask(questions, &found) => done |= free,
            }
        }
        match (done, wake) {
            (true, _) => Next::Now,
            (false, Some(at)) => Next::Within(at.since(clock::now())),
            (false, None) => Next::Resync,
        }
    }

    /// What is there; none, told once, where it cannot be read.
    async fn read(&mut self) -> Option<FoundAddresses> {
        let read = || {
            let addresses = rtnl::found_addresses().map_err(|e| Chain(&e).to_string())?;
            let links = rtnl::links().map_err(|e| Chain(&e).to_string())?;
            Ok::<_, String>(FoundAddresses { addresses, links })
        };
        let read = task::spawn_blocking(read).await;
        match read.map_err(|e| Chain(&e).to_string()).flatten() {
            Ok(found) => {
                self.unread = false;
                Some(found)
            }
            Err(error) => {
                if !self.unread {
                    error!(%error, "virtual addresses cannot be looked at, they stay as they are");
                }
                self.unread = true;
                None
            }
        }
    }

    /// Makes one step; whether it changed anything.
    async fn step(&mut self, step: Step, proto: u8, found: &FoundAddresses) -> bool {
        let index = |name: &str| found.link(name).map_or(0, |link| link.index);
        let making: Box<dyn FnOnce() -> Result<(), String> + Send> = match step.clone() {
            Step::CreateDummy(name) => Box::new(move || said(rtnl::create_dummy(&name))),
            Step::LinkUp(name) => {
                let index = index(&name);
                Box::new(move || said(rtnl::switch_on(index)))
            }
            Step::Add(addr, place, link) => {
                Box::new(move || said(rtnl::add_address(addr, place.prefix, link.index, proto)))
            }
            Step::Remove(f) => {
                let at = f.at;
                Box::new(move || said(rtnl::remove_address(at.addr, at.prefix, at.index)))
            }
            Step::Announce(addr, link) => Box::new(move || {
                let router = addr.is_ipv6() && forwards(&link);
                said(neighbours::announce(addr, &link, router))
            }),
            // Asked together with others.
            Step::Probe(..) => return false,
        };
        let made = task::spawn_blocking(making).await;
        let outcome = made.map_err(|e| Chain(&e).to_string()).flatten();
        let ok = outcome.is_ok();
        match (&step, &outcome) {
            (Step::Announce(..), Ok(())) => debug!(%step, "done"),
            (Step::Add(addr, place, _), Ok(())) => {
                info!(%addr, interface = place.interface, "virtual address was put on: {step}");
                self.happened(
                    EventKind::AddressPutOn,
                    &format!("virtual address was put on: {step}"),
                );
            }
            (Step::Remove(f), Ok(())) => {
                let at = &f.at;
                info!(addr = %at.addr, interface = at.interface, "virtual address was withdrawn: {step}");
                self.happened(
                    EventKind::AddressWithdrawn,
                    &format!("virtual address was withdrawn: {step}"),
                );
            }
            (step, Ok(())) => info!("done for virtual addresses: {step}"),
            // The keeper tells of those.
            (Step::Add(..) | Step::CreateDummy(_) | Step::LinkUp(_), Err(_)) => {}
            (step, Err(error)) => warn!(%error, "failed for virtual addresses: {step}"),
        }
        let notes = self.keeper.stepped(&step, outcome, clock::now());
        self.tell(&notes);
        ok && !matches!(step, Step::Announce(..))
    }

    /// Asks the neighbours; whether any address is free.
    async fn ask(&mut self, questions: Vec<Question>, found: &FoundAddresses) -> bool {
        let own: Arc<[Mac]> = found.links.iter().map(|link| link.mac).collect();
        let mut apart: BTreeMap<(String, bool), Vec<Question>> = BTreeMap::new();
        for question in questions {
            let family = question.addr.is_ipv4();
            let all = apart
                .entry((question.link.name.clone(), family))
                .or_default();
            all.push(question);
        }
        // What fails on one interface fails for that one.
        let mut asking = JoinSet::new();
        for ((name, _), questions) in apart {
            let own = Arc::clone(&own);
            asking.spawn(async move {
                let answers = neighbours::ask(&questions, &own).await;
                (name, questions, answers)
            });
        }
        let mut free = false;
        while let Some(asked) = asking.join_next().await {
            let (name, questions, answers) = match asked {
                Ok(asked) => asked,
                Err(error) => {
                    error!(error = %Chain(&error), "neighbours were not asked to the end");
                    continue;
                }
            };
            let now = clock::now();
            for question in questions {
                let answer = match &answers {
                    Ok(found) => match found.get(&question.addr).copied().flatten() {
                        Some(mac) => Answer::Taken(mac),
                        None => Answer::Free,
                    },
                    Err(error) => Answer::Unasked(Chain(error).to_string()),
                };
                free |= answer == Answer::Free;
                self.answered(question.addr, &name, answer, now);
            }
        }
        free
    }

    fn answered(&mut self, addr: IpAddr, interface: &str, answer: Answer, now: MonoTime) {
        if let Answer::Taken(_) = answer {
            self.metrics.virtual_address_conflicts.inc();
        }
        let notes = self.keeper.answered(addr, interface, answer, now);
        self.tell(&notes);
    }

    fn count(&mut self) {
        let now: BTreeMap<IpAddr, bool> = self.keeper.presences().collect();
        for gone in self.shown.iter().filter(|addr| !now.contains_key(addr)) {
            self.metrics.set_virtual_address_on(*gone, None);
        }
        for (addr, on) in &now {
            self.metrics.set_virtual_address_on(*addr, Some(*on));
        }
        self.shown = now.into_keys().collect();
    }

    fn tell(&self, notes: &[Note]) {
        // In the text too, all of them: whoever reads the journal sees no fields.
        for note in notes {
            match note {
                Note::Adopted(addr, interface, true) => {
                    info!(%addr, interface, "virtual address {addr} is on {interface}, as this director left it");
                }
                Note::Adopted(addr, interface, false) => {
                    info!(%addr, interface, "virtual address {addr} is on {interface}; somebody else put it there, it is left there for good");
                }
                Note::Lost(addr, interface) => {
                    let text = format!(
                        "virtual address {addr} was taken off {interface} by somebody else, or went with it: it is put back as soon as nobody else has it"
                    );
                    warn!(%addr, interface, "{text}");
                    self.happened(EventKind::AddressLost, &text);
                }
                Note::Trouble(addr, trouble) => {
                    let text = trouble.about(*addr);
                    if let Trouble::Taken(mac, on) = trouble {
                        error!(%addr, %mac, interface = on, "{text}");
                        self.happened(EventKind::AddressTaken, &text);
                    } else {
                        warn!(%addr, "{text}");
                        self.happened(EventKind::AddressTrouble, &text);
                    }
                }
                Note::Over(addr, trouble) => {
                    info!(%addr, "no longer so: {}", trouble.about(*addr));
                }
            }
        }
    }

    fn happened(&self, kind: EventKind, text: &str) {
        self.metrics.hooks.event(kind);
        let event = EventDraft::new(kind, text);
        self.events
            .send_modify(|ring| ring.push(event, clock::wall()));
    }

    async fn end(&mut self, wanted: &Addresses) {
        if !self.keeper.is_concerned(wanted) {
            return;
        }
        let Some(found) = self.read().await else {
            return;
        };
        for step in at_stop(wanted, &found) {
            self.step(step, wanted.proto, &found).await;
        }
    }
}

fn said<E: std::error::Error + 'static>(outcome: Result<(), E>) -> Result<(), String> {
    outcome.map_err(|e| Chain(&e).to_string())
}

/// Whether this host is a router for the neighbours on an interface.
fn forwards(link: &FoundLink) -> bool {
    let interface = link.name.replace('.', "/");
    let name = format!("net.ipv6.conf.{interface}.forwarding");
    let read = |name: SysctlName| ProcSys::default().read(&name).ok();
    let value = name.parse().ok().and_then(read);
    value.is_some_and(|value| value.is_on())
}
