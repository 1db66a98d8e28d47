//! A director without IPVS: what tells the provisioners is the product's; what the core would decide is here, with a
//! table of who is in service in the place of the kernel's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use understudy::{
    agent::link,
    api::client::Client,
    config,
    director::{Event, Outbox},
    model::{
        DirectorName, IncidentKey, ReplacementId,
        wire::{Member, Members, Want},
    },
    tls,
};

use crate::{
    machine::FLEET,
    pki::{Authority, Leaf, Side},
};

/// What all directors have in service, and what was wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    served: BTreeMap<(DirectorName, IpAddr), String>,
    /// The replacements that each failure was told of.
    pub(crate) told: BTreeMap<IpAddr, BTreeSet<ReplacementId>>,
    /// When each failure was first answered.
    pub(crate) answered: BTreeMap<IpAddr, Instant>,
    /// Who stood in for each failure, and when first.
    pub(crate) stood_in: BTreeMap<IpAddr, (String, Instant)>,
    pub(crate) faults: Vec<String>,
    /// How often nobody answered.
    pub(crate) silent: usize,
}

impl Tables {
    /// Spares in service.
    pub(crate) fn serving(&self) -> BTreeSet<&str> {
        self.served.values().map(String::as_str).collect()
    }

    fn attach(&mut self, director: &DirectorName, failed: IpAddr, spare: &str) {
        for ((other, of), by) in &self.served {
            if *by == spare && *of != failed {
                self.faults.push(format!(
                    "{spare} has two roles: {failed} at {director}, {of} at {other}"
                ));
            }
            if *of == failed && *by != spare {
                self.faults.push(format!(
                    "{failed} has two spares: {spare} at {director}, {by} at {other}"
                ));
            }
        }
        let place = (director.clone(), failed);
        self.served.insert(place, spare.to_owned());
        let first = (spare.to_owned(), Instant::now());
        let (before, _) = self.stood_in.entry(failed).or_insert(first);
        if before != spare {
            self.faults
                .push(format!("{failed} had two spares: {before}, then {spare}"));
        }
    }

    fn detach(&mut self, director: &DirectorName, failed: IpAddr) {
        self.served.remove(&(director.clone(), failed));
    }
}

/// Shared by all directors.
pub(crate) type Scene = Arc<Mutex<Tables>>;

pub(crate) fn look(scene: &Scene) -> MutexGuard<'_, Tables> {
    scene.lock().unwrap()
}

/// One director.
pub(crate) struct Director {
    pub(crate) name: DirectorName,
    /// The servers behind it.
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) config: Arc<config::Director>,
    outbox: Arc<watch::Sender<Outbox>>,
    members: Arc<Mutex<BTreeMap<ReplacementId, Member>>>,
    _tasks: JoinSet<()>,
    _in_force: watch::Sender<Arc<config::Director>>,
    _side: Side,
}

/// The services of the directors that have the servers of `number`: two, with one server in both.
pub(crate) fn services(number: usize, servers: &[IpAddr], port: u16) -> (String, Vec<String>) {
    let middle = servers.len() / 2;
    let parts = [&servers[..=middle], &servers[middle..]];
    let mut text = String::new();
    let mut keys = Vec::new();
    for (part, n) in parts.into_iter().zip(1..) {
        let vip = format!("10.79.{number}.{n}:{port}");
        let servers: Vec<_> = part
            .iter()
            .map(|a| format!("{{ address = \"{a}:{port}\" }}"))
            .collect();
        let servers = servers.join(", ");
        text.push_str(&format!(
            "[[virtual_service]]\naddress = \"{vip}\"\nscheduler = \"wlc\"\nforward = \"nat\"\n\
             real_server = [{servers}]\n"
        ));
        keys.push(format!("\"tcp/{vip}\""));
    }
    (text, keys)
}

impl Director {
    /// One that asks the provisioners at `ports`, in this order.
    pub(crate) fn start(
        name: &str,
        address: &str,
        (ca, ports): (&Authority, &[u16]),
        (services, servers): (&str, &[IpAddr]),
        scene: &Scene,
    ) -> Self {
        let leaf = Leaf {
            names: &[name],
            ..Leaf::GOOD
        };
        let side = Side::new(ca, &leaf, ca);
        let tls = side.dir.path().display();
        let urls: Vec<_> = ports
            .iter()
            .map(|p| format!("\"https://127.0.0.1:{p}\""))
            .collect();
        let text = format!(
            "[director]\nname = \"{name}\"\naddress = \"{address}\"\n\
             [provisioner]\naddress = \"{FLEET}\"\nurls = [{}]\n\
             [provisioner.tls]\ncertificate = \"{tls}/cert.pem\"\nkey = \"{tls}/key.pem\"\nca = \"{tls}/ca.pem\"\n\
             {services}",
            urls.join(", ")
        );
        let config = Arc::new(config::director::parse(Path::new("director.toml"), &text).unwrap());
        let to = config.provisioner.clone().unwrap();
        let files = config::TlsFiles {
            certificate: side.path("cert.pem"),
            key: side.path("key.pem"),
            ca: side.path("ca.pem"),
            crl: None,
        };
        let identity = <tls::Client as tls::Identity>::read(&files).unwrap();
        let identity = watch::Sender::new(Arc::new(identity)).subscribe();
        let client = Client::of(to.at.clone(), Some(identity));
        let (events_tx, events) = mpsc::channel(64);
        let outbox = Arc::new(watch::Sender::new(Outbox::default()));
        let in_force = watch::Sender::new(Arc::clone(&config));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(link::follow(
            in_force.subscribe(),
            client.clone(),
            events_tx.clone(),
            stop.clone(),
        ));
        let name = config.name.clone();
        let told = outbox.subscribe();
        let c = Arc::clone(&config);
        tasks.spawn(link::deliver(c, (to, client), told, events_tx, stop));
        let core = Core {
            name: name.clone(),
            servers: servers.to_vec(),
            outbox: Arc::clone(&outbox),
            scene: Arc::clone(scene),
            members: Arc::default(),
            served: BTreeMap::new(),
        };
        let members = Arc::clone(&core.members);
        tasks.spawn(core.run(events));
        Self {
            name,
            servers: servers.to_vec(),
            config,
            outbox,
            members,
            _tasks: tasks,
            _in_force: in_force,
            _side: side,
        }
    }

    /// All its servers fail.
    pub(crate) fn fail(&self) {
        let keys = self
            .servers
            .iter()
            .zip(1..)
            .map(|(failed, number)| IncidentKey {
                director: self.name.clone(),
                failed: *failed,
                number,
            });
        self.outbox.send_modify(|o| o.requests.extend(keys));
    }

    /// Its servers are well again: every stand-in is given back.
    pub(crate) fn release(&self) {
        let members = self.members.lock().unwrap().clone();
        let attached = members.into_iter().filter(|(_, m)| m.want == Want::Attach);
        let ids: Vec<_> = attached.map(|(id, _)| id).collect();
        self.outbox.send_if_modified(|o| {
            let before = o.releases.len();
            o.releases.extend(ids);
            o.releases.len() != before
        });
    }
}

/// What is decided here.
struct Core {
    name: DirectorName,
    servers: Vec<IpAddr>,
    outbox: Arc<watch::Sender<Outbox>>,
    scene: Scene,
    members: Arc<Mutex<BTreeMap<ReplacementId, Member>>>,
    /// Whose place each stand-in has.
    served: BTreeMap<ReplacementId, IpAddr>,
}

impl Core {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Members(list) => self.members(list),
                Event::Replacement(key, replacement) => {
                    let mut tables = look(&self.scene);
                    let ids = tables.told.entry(key.failed).or_default();
                    ids.insert(replacement.id);
                    let now = Instant::now();
                    tables.answered.entry(key.failed).or_insert(now);
                }
                Event::Confirmed(id, want) => {
                    self.outbox
                        .send_if_modified(|o| o.confirms.remove(&(id, want)));
                }
                Event::Refused(key, why) => {
                    let fault = format!("{key} was refused: {why}");
                    look(&self.scene).faults.push(fault);
                    self.outbox.send_if_modified(|o| o.requests.remove(&key));
                }
                Event::ProvisionerSilent(_) => look(&self.scene).silent += 1,
                other => look(&self.scene).faults.push(format!("{other:?}")),
            }
        }
    }

    fn members(&mut self, list: Members) {
        let mut told = BTreeSet::new();
        let mut placed = BTreeSet::new();
        for member in &list.members {
            let id = &member.replacement;
            let failed = member.origins.iter().find(|a| self.servers.contains(a));
            let mut tables = look(&self.scene);
            let Some(failed) = failed.copied() else {
                let fault = format!("{} is told of {member:?}", self.name);
                tables.faults.push(fault);
                continue;
            };
            if member.confirmed == Some(member.want) {
                continue;
            }
            match member.want {
                Want::Attach => {
                    tables.attach(&self.name, failed, &member.spare.name);
                    self.served.insert(id.clone(), failed);
                    placed.insert(failed);
                }
                Want::Withdraw => {
                    if let Some(failed) = self.served.remove(id) {
                        tables.detach(&self.name, failed);
                    }
                }
            }
            told.insert((id.clone(), member.want));
        }
        let members = list.members.into_iter().map(|m| (m.replacement.clone(), m));
        let members: BTreeMap<_, _> = members.collect();
        let wants = |id: &ReplacementId, want| members.get(id).is_some_and(|m| m.want == want);
        self.outbox.send_if_modified(|outbox| {
            let before = outbox.clone();
            outbox.requests.retain(|key| !placed.contains(&key.failed));
            outbox.releases.retain(|id| wants(id, Want::Attach));
            outbox.confirms.retain(|(id, want)| wants(id, *want));
            outbox.confirms.extend(told);
            *outbox != before
        });
        *self.members.lock().unwrap() = members;
    }
}
