//! A bare machine: no power, nothing on its disk. An installation gives it an sshd with the key that
//! its image carries; after the first login it starts again with a key of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use understudy::{
    model::{
        PinDigest,
        inventory::Server,
        machine::{Boot, Driver, Image},
    },
    provisioner::{
        driver::{Credentials, Held, Installer, Ledger, Noting, Pace},
        order::{Done, Hands, Order, Step, StepError},
        sealed::Masks,
        ssh::ClientKey,
        step::{Lines, SshHands},
        store::StoreError,
    },
};

use crate::{
    port::Port,
    ssh::lab::{Connects, keygen, until},
};

/// Long enough for a busy machine: an outcome that comes is not this limit's.
const LIMIT: Duration = Duration::from_secs(120);

pub(super) const PACE: Pace = Pace {
    poll: Duration::from_millis(100),
    // Power of the emulator changes within 11 s.
    patience: 120,
    silence: Duration::from_secs(20),
    fresh: Duration::from_secs(20),
};

/// A file of the certificates that tests of TLS have.
pub(super) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/check/testdata")
        .join(name)
}

pub(super) fn pin(name: &str) -> PinDigest {
    let certificate = CertificateDer::from_pem_file(file(name)).unwrap();
    PinDigest(Sha256::digest(&certificate).into())
}

/// This machine's: what an installation "installs".
pub(super) fn host_os() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap();
    let values: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once('=')).collect();
    let value = |key: &str| values.get(key).map(|v| v.trim_matches('"'));
    match value("VERSION_ID") {
        Some(version) => format!("{}-{version}", value("ID").unwrap()),
        None => value("ID").unwrap().to_owned(),
    }
}

#[derive(Clone)]
pub(super) struct Machine(Arc<Inner>);

struct Inner {
    dir: TempDir,
    port: Port,
    power: Mutex<Power>,
}

#[derive(Default)]
struct Power {
    on: bool,
    installed: bool,
    installations: usize,
    boots: Option<JoinHandle<()>>,
    sshd: Option<Child>,
}

impl Power {
    fn end_sshd(&mut self) {
        if let Some(mut sshd) = self.sshd.take() {
            // It may have ended by itself.
            drop(sshd.kill());
            drop(sshd.wait());
        }
    }
}

impl Machine {
    pub(super) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "sshd needs root");
        fs::create_dir_all("/run/sshd").unwrap();
        let dir = TempDir::with_prefix("understudy-machine-").unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("etc")).unwrap();
        for name in ["etc/ssh_host_ed25519_key", "image", "id"] {
            keygen(&at(name), &["-t", "ed25519", "-N", ""]);
        }
        fs::copy(at("id.pub"), at("authorized_keys")).unwrap();
        let power = Mutex::default();
        let port = Port::new();
        Self(Arc::new(Inner { dir, port, power }))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.dir.path().join(name)
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        self.0.power.lock().unwrap()
    }

    pub(super) fn is_on(&self) -> bool {
        self.power().on
    }

    pub(super) fn installations(&self) -> usize {
        self.power().installations
    }

    /// The controller says so. With power it boots the image, or its disk.
    pub(super) fn set_power(&self, on: bool, image: bool) {
        let mut power = self.power();
        if power.on == on {
            return;
        }
        power.on = on;
        if let Some(task) = power.boots.take() {
            task.abort();
        }
        power.end_sshd();
        if !on {
            return;
        }
        if image {
            power.installed = false;
            power.installations += 1;
            // What a provisioner has left goes with the disk.
            drop(fs::remove_dir_all(self.path("base")));
        }
        let machine = self.clone();
        power.boots = Some(tokio::spawn(async move { machine.boot(image).await }));
    }

    async fn boot(self, image: bool) {
        if image {
            let log = self.path("sshd.log");
            fs::write(&log, "").unwrap();
            self.start("image");
            until("the first login", || {
                fs::read_to_string(&log).is_ok_and(|l| l.contains("Accepted publickey"))
            })
            .await;
            self.power().installed = true;
        }
        if self.power().installed {
            self.start("etc/ssh_host_ed25519_key");
        }
    }

    fn start(&self, host_key: &str) {
        let d = self.0.dir.path().display();
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {d}/{host_key}\n\
             AuthorizedKeysFile {d}/authorized_keys\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
             StrictModes no\nPidFile none\nSubsystem sftp internal-sftp\n",
            self.0.port.number()
        );
        fs::write(self.path("sshd_config"), config).unwrap();
        let mut power = self.power();
        if !power.on {
            return;
        }
        // The next one has the same port.
        power.end_sshd();
        let sshd = Command::new("/usr/sbin/sshd")
            .arg("-D")
            .arg("-f")
            .arg(self.path("sshd_config"))
            .arg("-E")
            .arg(self.path("sshd.log"))
            .spawn();
        power.sshd = Some(sshd.unwrap());
    }

    pub(super) fn public(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.pub")))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(super) fn server(&self, driver: Driver) -> Server {
        Server {
            name: "spare1".into(),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            ssh_address: IpAddr::from(Ipv4Addr::LOCALHOST),
            ssh_port: self.0.port.number(),
            host_keys: Vec::new(),
            role: None,
            driver,
            wipe: true,
            learnt_keys: Vec::new(),
            labels: Default::default(),
            reserved_for: Vec::new(),
        }
    }

    pub(super) fn image(&self, boot: Boot) -> Image {
        Image {
            os: host_os(),
            boot,
            timeout: LIMIT,
            enrolment_keys: vec![self.public("image")],
        }
    }

    pub(super) fn installer<L: Ledger>(
        &self,
        ledger: L,
        secret: &str,
    ) -> Installer<SshHands<Connects>, L> {
        fs::write(self.path("credential"), secret).unwrap();
        Installer {
            hands: SshHands {
                key: ClientKey::load(&self.path("id")).unwrap(),
                user: "root".into(),
                elevate: false,
                connect_timeout: Duration::from_secs(20),
                base: self.path("base").display().to_string(),
                host_keys: self.path("etc").display().to_string(),
                prober: Connects,
                lines: Lines::default(),
            },
            ledger,
            credentials: Credentials::from([("bmc".to_owned(), self.path("credential"))]),
            pace: PACE,
        }
    }

    /// Has it installed, outside of any replacement.
    pub(super) async fn install<L: Ledger>(
        &self,
        ledger: L,
        secret: &str,
        driver: Driver,
        image: Image,
    ) -> Result<Done, StepError> {
        let order = Order {
            server: self.server(driver),
            fence: 7,
            step: Step::OsInstall {
                job: "lb1.1-1".into(),
                image,
                anew: false,
            },
            masks: Masks::default(),
        };
        self.installer(ledger, secret).perform(&order, &drop).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let power = self.power.get_mut().unwrap();
        if let Some(task) = power.boots.take() {
            task.abort();
        }
        power.end_sshd();
    }
}

/// A store of one server, held until so many notes were taken.
#[derive(Clone, Default)]
pub(super) struct Notes {
    pub(super) notes: Arc<Mutex<Vec<String>>>,
    pub(super) keys: Arc<Mutex<Vec<String>>>,
    /// Nothing is left to put away.
    pub(super) closed: Arc<AtomicBool>,
    pub(super) trouble: Arc<Mutex<Option<String>>>,
    /// What was noted when the host keys were forgotten.
    pub(super) forgot: Arc<Mutex<Option<String>>>,
    taken: Arc<AtomicUsize>,
    /// Then the server is somebody else's, or the replacement cancelled.
    pub(super) until: Option<(usize, Held)>,
}

impl Notes {
    pub(super) fn until(notes: usize, held: Held) -> Self {
        Self {
            until: Some((notes, held)),
            ..Self::default()
        }
    }

    fn held(&self) -> Held {
        let taken = self.taken.load(Ordering::SeqCst);
        match self.until {
            Some((most, then)) if taken >= most => then,
            _ => Held::Yes,
        }
    }

    pub(super) fn last(&self) -> Option<String> {
        self.notes.lock().unwrap().last().cloned()
    }
}

impl Ledger for Notes {
    async fn installation(
        &self,
        _server: &str,
        _fence: u64,
    ) -> Result<(Held, Option<String>), StoreError> {
        Ok((self.held(), self.last()))
    }

    async fn note_installation(
        &self,
        _server: &str,
        _fence: u64,
        noting: Noting<'_>,
    ) -> Result<Held, StoreError> {
        let held = self.held();
        if held == Held::Yes {
            self.taken.fetch_add(1, Ordering::SeqCst);
            self.notes.lock().unwrap().push(noting.text.to_owned());
            if noting.forgets {
                *self.forgot.lock().unwrap() = Some(noting.text.to_owned());
            }
        }
        Ok(held)
    }

    async fn close_installation(&self, _server: &str, _fence: u64) -> Result<Held, StoreError> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(self.held())
    }

    async fn note_trouble(
        &self,
        _server: &str,
        _fence: u64,
        trouble: &str,
    ) -> Result<Held, StoreError> {
        *self.trouble.lock().unwrap() = Some(trouble.to_owned());
        Ok(self.held())
    }

    async fn left_behind(&self, _server: &str) -> Result<Option<String>, StoreError> {
        let closed = self.closed.load(Ordering::SeqCst);
        Ok(self.last().filter(|_| !closed))
    }

    async fn tidied(&self, _server: &str, note: &str) -> Result<(), StoreError> {
        assert_eq!(self.last().as_deref(), Some(note));
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn learn_host_keys(
        &self,
        _server: &str,
        _fence: u64,
        keys: &[String],
    ) -> Result<Held, StoreError> {
        *self.keys.lock().unwrap() = keys.to_vec();
        Ok(self.held())
    }
}
