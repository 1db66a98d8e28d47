//! A small cluster for tests: two web servers, three spares, two virtual services.

mod home;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};

pub(crate) use home::{Home, Postgres};

use super::{
    order::{Class, Done, Hands, Order, RenderedFile, Said, Step, StepError},
    plan::{Assignment, Keeping, PoolServer, Source, World},
    secrets::Secrets,
    step::{Difference, Look, Looking, Wanted},
    text_diff::diff,
};
use crate::model::{
    CheckKind, CheckSpec, CheckTiming, ForwardMethod, Scheduler, Via, Weight,
    inventory::{
        Cleanup, Inventory, Labels, Role, Server, ServerState, ServiceFile, Software, SparePolicy,
    },
    machine::{Boot, Door, Driver, HttpDriver, Image},
    wire::{RegisteredServer, RegisteredService, Registration, ReplacementRequest},
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn server(name: &str, addresses: &[&str], role: Option<&str>) -> Server {
    Server {
        name: name.into(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        ssh_address: ip(addresses[0]),
        ssh_port: 22,
        host_keys: vec![format!("ssh-ed25519 AAAA{name}")],
        role: role.map(Into::into),
        labels: Labels::new(),
        reserved_for: Vec::new(),
        driver: Driver::Ready,
        wipe: false,
        learnt_keys: Vec::new(),
    }
}

fn software(name: &str) -> Software {
    Software {
        name: name.into(),
        os: None,
        script: format!("install {name}\n"),
        timeout: Duration::from_secs(60),
        check: Some(format!("{name} --version")),
        running: None,
        start: Some(format!("start {name}")),
        reload: None,
        needs: Vec::new(),
        secrets: Vec::new(),
    }
}

pub(crate) fn inventory() -> Inventory {
    let role = Role {
        code: "web.shop.example".into(),
        domain: "shop.example".into(),
        os: "debian-12".into(),
        software: vec!["storage".into(), "nginx".into()],
        gateways: Vec::new(),
        clients: Vec::new(),
        spares: SparePolicy::default(),
        install: false,
    };
    let web = Some("web.shop.example");
    Inventory {
        roles: BTreeMap::from([(role.code.clone(), role)]),
        software: vec![software("storage"), software("nginx")],
        files: vec![ServiceFile {
            domain: "shop.example".into(),
            software: "nginx".into(),
            path: "/etc/nginx/conf.d/shop.conf".into(),
            body: "server_name {{ domain }};\n".into(),
            template: true,
            mode: 0o644,
            owner: "root".into(),
            group: "root".into(),
            validate: None,
        }],
        servers: [
            server("web1", &["10.0.0.1", "fd00::1"], web),
            server("web2", &["10.0.0.2", "fd00::2"], web),
            server("spare1", &["10.0.0.11", "fd00::11"], None),
            server("spare2", &["10.0.0.12", "fd00::12"], None),
            server("spare3", &["10.0.0.13", "fd00::13"], None),
        ]
        .into_iter()
        .map(|s| (s.name.clone(), s))
        .collect(),
        images: BTreeMap::new(),
    }
}

/// Has a script and a file of an inventory use secrets: where they are, and the folder with their values.
pub(crate) fn with_secrets(inventory: &mut Inventory) -> (Secrets, tempfile::TempDir) {
    let home = tempfile::TempDir::new().unwrap();
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(home.path(), mode).unwrap();
    write_secret(&home, "DB_PASSWORD", "opensesame");
    write_secret(&home, "token", "swordfish");
    inventory.software[1].secrets = vec!["DB_PASSWORD".into()];
    inventory.files[0].body = "token {{ secret('token') }};\n".into();
    let dir = Some(home.path().to_owned());
    (Secrets { dir }, home)
}

/// Has servers of the role cleaned by installing them anew: spare1 alone can be.
pub(crate) fn with_reinstall(inventory: &mut Inventory) {
    let role = inventory.roles.get_mut("web.shop.example").unwrap();
    role.spares.cleanup = Some(Cleanup::Reinstall);
    let image = Image {
        os: role.os.clone(),
        boot: Boot::Pxe,
        timeout: Duration::from_secs(60),
        enrolment_keys: Vec::new(),
    };
    inventory.images.insert(image.os.clone(), image);
    let spare = inventory.servers.get_mut("spare1").unwrap();
    spare.wipe = true;
    spare.driver = Driver::Http(Box::new(HttpDriver {
        door: Door {
            url: "https://installer.example".parse().unwrap(),
            pin: None,
            credential: "installer".into(),
        },
        machine: "7".into(),
    }));
}

/// At once: a reader sees the old value or the new one.
pub(crate) fn write_secret(home: &tempfile::TempDir, name: &str, value: &str) {
    let beside = home.path().join(format!(".{name}"));
    std::fs::write(&beside, value).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(beside, home.path().join(name)).unwrap();
}

/// The inventory as a store gives it back, with both directors.
pub(crate) fn world() -> World {
    let inventory = inventory();
    World {
        roles: inventory.roles,
        software: inventory.software,
        files: inventory.files,
        images: inventory.images,
        servers: inventory
            .servers
            .iter()
            .map(|(name, s)| {
                let pool = PoolServer {
                    server: s.clone(),
                    state: ServerState::Ready,
                    reason: None,
                    os_seen: None,
                    claimed_for: None,
                    keeping: Keeping::default(),
                };
                (name.clone(), pool)
            })
            .collect(),
        findings: BTreeMap::new(),
        assignments: inventory
            .servers
            .values()
            .filter_map(|s| Some((s, s.role.clone()?)))
            .flat_map(|(s, role)| {
                s.addresses.iter().map(move |a| {
                    let held = Assignment {
                        role: role.clone(),
                        server: s.name.clone(),
                        source: Source::Files,
                        passed_on: None,
                    };
                    (*a, held)
                })
            })
            .collect(),
        directors: BTreeMap::from([
            ("lb1".parse().unwrap(), registration("lb1")),
            ("lb2".parse().unwrap(), registration("lb2")),
        ]),
        secrets: BTreeMap::new(),
    }
}

/// An inventory of `n` servers and `n` spares, IPv4 only.
pub(crate) fn wide(n: u8) -> Inventory {
    let mut inventory = inventory();
    let web = Some("web.shop.example");
    inventory.servers = (1..=n)
        .flat_map(|i| {
            [
                server(&format!("w{i}"), &[&format!("10.1.0.{i}")], web),
                server(&format!("s{i:03}"), &[&format!("10.2.0.{i}")], None),
            ]
        })
        .map(|s| (s.name.clone(), s))
        .collect();
    inventory
}

pub(crate) fn registration(name: &str) -> Registration {
    let service = |key: &str, forward, servers: &[(&str, u16)]| RegisteredService {
        key: key.parse().unwrap(),
        scheduler: Scheduler("wlc".into()),
        forward,
        checks: vec![CheckSpec {
            kind: CheckKind::Http(Box::default()),
            via: Via::default(),
            timing: CheckTiming {
                timeout: Duration::from_millis(500),
                ..CheckTiming::every(Duration::from_secs(1))
            },
        }],
        servers: servers
            .iter()
            .map(|(address, port)| RegisteredServer {
                address: ip(address),
                port: *port,
                weight: Weight::ONE,
            })
            .collect(),
    };
    Registration {
        address: ip(if name == "lb2" {
            "10.0.0.252"
        } else {
            "10.0.0.251"
        }),
        services: vec![
            service(
                "tcp/192.0.2.1:80",
                ForwardMethod::Nat,
                &[("10.0.0.1", 8080), ("10.0.0.2", 8080)],
            ),
            service(
                "tcp/[2001:db8::1]:80",
                ForwardMethod::Dr,
                &[("fd00::1", 80), ("fd00::2", 80)],
            ),
        ],
    }
}

pub(crate) const CENTRE: &str = "10.0.0.250";

pub(crate) fn request(director: &str, failed: &str) -> ReplacementRequest {
    ReplacementRequest {
        failed: ip(failed),
        director: ip("10.0.0.251"),
        centre: ip(CENTRE),
        name: director.parse().unwrap(),
    }
}

/// How a fake spare behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Temper {
    /// Steps (by name) that fail for good.
    pub(crate) broken: BTreeSet<String>,
    /// Steps that fail so many times with a transient error.
    pub(crate) shaky: BTreeMap<String, u32>,
    /// Steps that the provisioner's own host cannot do so many times.
    pub(crate) local: BTreeMap<String, u32>,
    /// Scripts whose link is lost for good after they have printed something.
    pub(crate) cut: BTreeSet<String>,
    /// Its operating system, where it is not the wanted one.
    pub(crate) os: Option<String>,
}

/// What happened on a fake spare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remote {
    pub(crate) fence: u64,
    /// Job directories: whether the job has ended.
    pub(crate) jobs: BTreeMap<String, bool>,
    /// Scripts started: must be one a job.
    pub(crate) starts: Vec<String>,
    /// Orders refused because of their fence.
    pub(crate) refused: u32,
}

/// Hands without SSH: spares are entries of a map, which outlives the engine as real spares do.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeHands {
    pub(crate) tempers: Arc<Mutex<BTreeMap<String, Temper>>>,
    pub(crate) remotes: Arc<Mutex<BTreeMap<String, Remote>>>,
    /// Every step as it was ordered.
    pub(crate) steps: Arc<Mutex<Vec<Step>>>,
    /// What `opensesame swordfish` looks like where a step prints it.
    pub(crate) covered: Arc<Mutex<BTreeMap<String, String>>>,
    /// Every order, `server step`.
    pub(crate) orders: Arc<Mutex<Vec<String>>>,
    /// How long each step takes.
    pub(crate) slow: Duration,
    /// Names of steps that do not return before this is notified.
    pub(crate) gate: Option<(String, Arc<tokio::sync::Semaphore>)>,
}

impl FakeHands {
    pub(crate) fn temper(&self, server: &str, f: impl FnOnce(&mut Temper)) {
        f(self
            .tempers
            .lock()
            .unwrap()
            .entry(server.into())
            .or_default());
    }

    pub(crate) fn remote(&self, server: &str) -> Remote {
        let remotes = self.remotes.lock().unwrap();
        remotes.get(server).cloned().unwrap_or_default()
    }

    pub(crate) fn orders(&self) -> Vec<String> {
        self.orders.lock().unwrap().clone()
    }

    fn begin(&self, order: &Order) -> Result<(), StepError> {
        let name = order.server.name.clone();
        let step = order.step.name();
        self.orders.lock().unwrap().push(format!("{name} {step}"));
        // It is no step of a replacement, and holds no fence.
        if order.step != Step::Look {
            let mut remotes = self.remotes.lock().unwrap();
            let remote = remotes.entry(name.clone()).or_default();
            if order.fence < remote.fence {
                remote.refused += 1;
                return Err(error(Class::Fenced, "fenced", "a newer run owns it", ""));
            }
            if order.step == Step::Fence {
                remote.fence = order.fence;
            } else if !matches!(order.step, Step::OsInstall { .. }) {
                assert_eq!(remote.fence, order.fence, "{step} before its fence");
            }
            if let Step::Install { job, .. } = &order.step
                && !remote.jobs.contains_key(job)
            {
                remote.jobs.insert(job.clone(), false);
                remote.starts.push(job.clone());
            }
        }
        let mut tempers = self.tempers.lock().unwrap();
        let temper = tempers.entry(name).or_default();
        if temper.broken.contains(&step) {
            return Err(error(Class::Permanent, "script_failed", "exit 1", "boom"));
        }
        if let Some(left) = temper.shaky.get_mut(&step)
            && *left > 0
        {
            *left -= 1;
            return Err(error(Class::Transient, "unreachable", "no route", ""));
        }
        if let Some(left) = temper.local.get_mut(&step)
            && *left > 0
        {
            *left -= 1;
            return Err(error(Class::Local, "local_fault", "no descriptors", ""));
        }
        if let (Some(os), Step::Os { wanted }) = (&temper.os, &order.step)
            && os != wanted
        {
            let detail = format!("runs {os}, wanted {wanted}");
            return Err(error(Class::Unsuitable, "os_mismatch", &detail, os));
        }
        Ok(())
    }
}

fn error(class: Class, code: &'static str, detail: &str, output: &str) -> StepError {
    StepError {
        class,
        code,
        detail: detail.into(),
        output: output.into(),
    }
}

impl Look for FakeHands {
    fn look<'a>(&'a self, _server: &'a Server, wanted: &'a Wanted) -> Looking<'a> {
        Box::pin(async move {
            let file = |f: &RenderedFile| Difference {
                object: f.path.clone(),
                detail: "not there".to_owned(),
                diff: match f.secrets.is_empty() {
                    true => diff(
                        "",
                        &wanted.masks.cover(String::from_utf8_lossy(&f.body).into()),
                    ),
                    false => String::new(),
                },
            };
            Ok(wanted.files.iter().map(file).collect())
        })
    }
}

impl Hands for FakeHands {
    async fn perform(&self, order: &Order, said: Said<'_>) -> Result<Done, StepError> {
        // A script goes on on the spare when the link to it is dropped: it is started before the wait.
        self.begin(order)?;
        self.steps.lock().unwrap().push(order.step.clone());
        let covered = order.masks.cover("opensesame swordfish".to_owned());
        self.covered
            .lock()
            .unwrap()
            .insert(order.step.name(), covered);
        if matches!(order.step, Step::Install { .. }) {
            said("working\n".to_owned());
        }
        if let Some((step, gate)) = &self.gate
            && *step == order.step.name()
        {
            gate.acquire().await.unwrap().forget();
        }
        if let Some(temper) = self.tempers.lock().unwrap().get_mut(&order.server.name) {
            let name = order.step.name();
            if temper.cut.remove(&name) {
                temper.shaky.insert(name, u32::MAX);
                return Err(error(Class::Transient, "link_lost", "gone", ""));
            }
        }
        if !self.slow.is_zero() {
            tokio::time::sleep(self.slow).await;
        }
        if let Step::Install { job, .. } = &order.step {
            let mut remotes = self.remotes.lock().unwrap();
            let remote = remotes.get_mut(&order.server.name).unwrap();
            remote.jobs.insert(job.clone(), true);
        }
        if let Step::OsInstall { .. } = &order.step {
            // Nothing of ours outlives it.
            let mut remotes = self.remotes.lock().unwrap();
            remotes.remove(&order.server.name);
        }
        Ok(Done {
            detail: "fine".into(),
            output: match &order.step {
                Step::Install { .. } => "working\n".to_owned(),
                _ => String::new(),
            },
            os: match &order.step {
                Step::Os { wanted } => Some(wanted.clone()),
                _ => None,
            },
        })
    }
}
