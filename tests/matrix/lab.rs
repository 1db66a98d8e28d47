//! Spares: each a real sshd in a mount namespace of its own, with a `/var/lib`, a home without this machine's shell
//! settings, and a folder for what scripts do that no other has. And where the provisioner's store begins: with an inventory, and a director that has registered.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use sqlx::{AssertSqlSafe, Connection as _};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use understudy::{
    model::{
        CheckKind, CheckSpec, CheckTiming, ForwardMethod, Scheduler, Via, Weight,
        inventory::{Cleanup, Inventory, Role, Server, ServiceFile, Software, SparePolicy},
        machine::Driver,
        wire::{RegisteredServer, RegisteredService, Registration},
    },
    provisioner::store::{Place, Store},
};

use crate::home::Postgres;

pub(crate) const ROLE: &str = "web.shop.example";
pub(crate) const DIRECTOR: &str = "lb1";
pub(crate) const FAILED: &str = "web1";
pub(crate) const SPARES: [&str; 2] = ["spare1", "spare2"];

/// Nothing in a case takes so long unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct Lab {
    dir: TempDir,
    number: u8,
    pub(crate) port: u16,
    sshds: Vec<Child>,
    /// Stores as they begin, by whether the role keeps a spare warm.
    templates: BTreeMap<bool, Place>,
    postgres: Option<Postgres>,
    databases: u32,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for sshd in &mut self.sshds {
            // Sessions end with their connections.
            drop(sshd.kill());
            drop(sshd.wait());
        }
    }
}

impl Lab {
    /// One of several at a time: `number` is a part of its addresses.
    pub(crate) async fn new(number: u8, warm: bool, postgres: bool) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "sshd and mount namespaces need root"
        );
        fs::create_dir_all("/run/sshd")?;
        let dir = TempDir::with_prefix("understudy-matrix-")?;
        for name in ["host", "id"] {
            let done = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"])
                .arg(dir.path().join(name))
                .stdin(Stdio::null())
                .status()?;
            ensure!(done.success(), "ssh-keygen");
        }
        let mut lab = Self {
            dir,
            number,
            port: 0,
            sshds: Vec::new(),
            templates: BTreeMap::new(),
            postgres: None,
            databases: 0,
        };
        lab.port = lab.free_port()?;
        fs::create_dir(lab.path("world"))?;
        for spare in SPARES {
            lab.reset(spare)?;
            let sshd = lab.sshd(spare)?;
            lab.sshds.push(sshd);
        }
        for spare in SPARES {
            let at = SocketAddr::new(lab.address(spare), lab.port);
            until("sshd to listen", || TcpStream::connect(at).is_ok()).await?;
        }
        let mut kinds = vec![false];
        kinds.extend(warm.then_some(true));
        for warm in kinds {
            let place = Place::File(lab.path(&format!("template-{warm}.db")));
            lab.fill(&place, warm).await?;
            lab.templates.insert(warm, place);
        }
        if postgres {
            let server = tokio::task::block_in_place(Postgres::new);
            let place = server.database().await;
            lab.fill(&place, false).await?;
            lab.templates.insert(false, place);
            lab.postgres = Some(server);
        }
        Ok(lab)
    }

    /// Free at all spares' addresses a moment ago.
    fn free_port(&self) -> anyhow::Result<u16> {
        loop {
            let first = TcpListener::bind((self.address(SPARES[0]), 0))?;
            let port = first.local_addr()?.port();
            if TcpListener::bind((self.address(SPARES[1]), port)).is_ok() {
                return Ok(port);
            }
        }
    }

    fn sshd(&self, spare: &str) -> anyhow::Result<Child> {
        let d = self.dir.path().display();
        let config = format!(
            "Port {}\nListenAddress {}\nHostKey {d}/host\nAuthorizedKeysFile {d}/id.pub\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
             StrictModes no\nPidFile none\nMaxStartups 200:30:400\nSubsystem sftp internal-sftp\n",
            self.port,
            self.address(spare),
        );
        let file = self.path(&format!("{spare}.conf"));
        fs::write(&file, config)?;
        let enter = format!(
            "mount --bind {d}/{spare}/lib /var/lib && mount --bind {d}/{spare}/home /root && \
             mount --bind {d}/{spare}/world {d}/world && exec /usr/sbin/sshd -D -f {} -E {d}/{spare}.log",
            file.display()
        );
        let sshd = Command::new("unshare")
            .args(["--mount", "sh", "-c", &enter])
            .spawn();
        sshd.context("unshare")
    }

    /// Makes a spare as if nobody had ever been there.
    pub(crate) fn reset(&self, spare: &str) -> anyhow::Result<()> {
        for folder in ["lib", "home", "world"] {
            let folder = self.path(spare).join(folder);
            fs::create_dir_all(&folder)?;
            // The folder itself is mounted.
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What scripts see as the folder `world`, of one spare.
    pub(crate) fn world(&self, spare: &str, name: &str) -> PathBuf {
        self.path(spare).join("world").join(name)
    }

    pub(crate) fn address(&self, server: &str) -> IpAddr {
        let last = match server {
            FAILED => 1,
            "web2" => 2,
            "spare1" => 11,
            "spare2" => 12,
            "centre" => 250,
            _ => 251,
        };
        Ipv4Addr::new(127, 77, self.number, last).into()
    }

    /// A store as a case finds it.
    pub(crate) async fn store(&mut self, case: &Path, warm: bool) -> anyhow::Result<Place> {
        match &self.templates[&warm] {
            Place::File(template) => {
                let file = case.join("understudy.db");
                fs::copy(template, &file)?;
                Ok(Place::File(file))
            }
            Place::Server { url, .. } => {
                self.databases += 1;
                let template = url
                    .split('?')
                    .next()
                    .and_then(|u| u.rsplit('/').next())
                    .context("a database's name")?;
                let name = format!("case{}", self.databases);
                let of =
                    |name: &str| url.replacen(&format!("/{template}?"), &format!("/{name}?"), 1);
                let mut connection = sqlx::AnyConnection::connect(&of("postgres")).await?;
                let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
                sqlx::query(AssertSqlSafe(create))
                    .execute(&mut connection)
                    .await?;
                Ok(Place::Server {
                    url: of(&name),
                    password: None,
                })
            }
        }
    }

    /// The database server crashes, and is started again.
    pub(crate) fn crash_postgres(&mut self) -> anyhow::Result<()> {
        let server = self.postgres.as_mut().context("no PostgreSQL here")?;
        tokio::task::block_in_place(|| {
            server.stop("immediate");
            server.start();
        });
        Ok(())
    }

    async fn fill(&self, place: &Place, warm: bool) -> anyhow::Result<()> {
        let store = Store::open_at(place).await?;
        let inventory = self.inventory(warm)?;
        store.apply(&inventory, false, "matrix").await?;
        let director = DIRECTOR.parse()?;
        store.register(&director, &self.registration()?).await?;
        store.close().await;
        Ok(())
    }

    fn registration(&self) -> anyhow::Result<Registration> {
        let server = |name| RegisteredServer {
            address: self.address(name),
            port: self.port,
            weight: Weight::ONE,
        };
        Ok(Registration {
            address: self.address(DIRECTOR),
            services: vec![RegisteredService {
                key: format!("tcp/192.0.2.1:{}", self.port).parse()?,
                scheduler: Scheduler("wlc".into()),
                forward: ForwardMethod::Nat,
                checks: vec![CheckSpec {
                    kind: CheckKind::default(),
                    via: Via::default(),
                    timing: CheckTiming::every(Duration::from_secs(20)),
                }],
                servers: vec![server(FAILED), server("web2")],
            }],
        })
    }

    /// Scripts say once more each time that they run; what they must not see is whether they did.
    fn inventory(&self, warm: bool) -> anyhow::Result<Inventory> {
        let world = self.path("world").display().to_string();
        let software = |name: &str, script: String| Software {
            name: name.into(),
            os: None,
            script,
            timeout: Duration::from_secs(80),
            check: Some(format!("grep -q '^{name}$' {world}/runs")),
            running: Some(format!("test -e {world}/{name}-runs")),
            start: Some(format!("touch {world}/{name}-runs")),
            reload: Some(format!("echo >>{world}/{name}-reloads")),
            needs: Vec::new(),
            secrets: Vec::new(),
        };
        let storage = software("storage", format!("echo storage >>{world}/runs\n"));
        let web = software(
            "web",
            format!(
                "echo web >>{world}/runs\nn=0\n\
                 while [ -e {world}/hold ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n + 1)); done\n\
                 echo web ended >>{world}/runs\n[ ! -e {world}/broken ]\n"
            ),
        );
        let cleanup = format!("echo clean >>{world}/runs\nrm -f {world}/*-runs\n");
        let role = Role {
            code: ROLE.into(),
            domain: "shop.example".into(),
            os: system()?,
            software: vec!["storage".into(), "web".into()],
            gateways: Vec::new(),
            clients: Vec::new(),
            spares: SparePolicy {
                keep_warm: warm.into(),
                cleanup: Some(Cleanup::Script {
                    script: cleanup,
                    timeout: Duration::from_secs(60),
                }),
                ..SparePolicy::default()
            },
            install: false,
        };
        let file = ServiceFile {
            domain: "shop.example".into(),
            software: "web".into(),
            path: format!("{world}/web.conf"),
            body: "{{ role }} on {{ server.name }}\n".into(),
            template: true,
            mode: 0o644,
            owner: "root".into(),
            group: "root".into(),
            validate: None,
        };
        let key = fs::read_to_string(self.path("host.pub"))?;
        let server = |name: &str, role: Option<&str>| {
            let server = Server {
                name: name.into(),
                addresses: vec![self.address(name)],
                ssh_address: self.address(name),
                ssh_port: self.port,
                host_keys: vec![key.clone()],
                role: role.map(Into::into),
                labels: BTreeMap::new(),
                reserved_for: Vec::new(),
                driver: Driver::Ready,
                wipe: false,
                learnt_keys: Vec::new(),
            };
            (name.to_owned(), server)
        };
        Ok(Inventory {
            roles: [(ROLE.to_owned(), role)].into(),
            software: vec![storage, web],
            files: vec![file],
            servers: [
                server(FAILED, Some(ROLE)),
                server("web2", Some(ROLE)),
                server(SPARES[0], None),
                server(SPARES[1], None),
            ]
            .into(),
            images: BTreeMap::new(),
        })
    }
}

/// This machine's operating system, as a role names it.
fn system() -> anyhow::Result<String> {
    let os = fs::read_to_string("/etc/os-release")?;
    let value = |key: &str| {
        let line = os.lines().find_map(|l| l.strip_prefix(key));
        line.map(|l| l.trim_matches('"').to_owned())
            .context("os-release")
    };
    Ok(format!("{}-{}", value("ID=")?, value("VERSION_ID=")?))
}

/// Waits for a state, not for a time.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is() {
        ensure!(begun.elapsed() < LIMIT, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
