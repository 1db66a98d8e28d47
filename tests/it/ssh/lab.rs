//! A private sshd with keys of its own, and what tests need to look at the "spare" (this machine).

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use understudy::{
    model::{
        CheckKind, FailReason, Outcome, inventory::Server, inventory::Variables, machine::Driver,
    },
    provisioner::{
        order::{Done, Hands, Order, Step, StepError},
        sealed::Masks,
        ssh::{ClientKey, HostKey, Ssh, Target},
        step::{Lines, Prober, SshHands},
    },
};

use crate::port::Port;

const LIMIT: Duration = Duration::from_secs(60);

/// Asks by a TCP connection, whatever the kind.
#[derive(Clone, Debug)]
pub(crate) struct Connects;

impl Prober for Connects {
    async fn probe(&self, at: SocketAddr, _kind: &CheckKind, _timeout: Duration) -> Outcome {
        match tokio::net::TcpStream::connect(at).await {
            Ok(_) => Outcome::Pass,
            Err(_) => Outcome::Fail(FailReason::Refused),
        }
    }
}

/// Killed, and waited for, on drop; with its sessions.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    sshd: Child,
    _reserved: Port,
}

pub(crate) fn keygen(path: &Path, args: &[&str]) {
    let done = Command::new("ssh-keygen")
        .args(["-q", "-C", "lab", "-f"])
        .arg(path)
        .args(args)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(done.success(), "ssh-keygen {args:?}");
}

/// Waits for a state, not for a time.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Lab {
    pub(crate) async fn new() -> Self {
        Self::with("Subsystem sftp internal-sftp\n").await
    }

    pub(crate) async fn with(extra: &str) -> Self {
        Self::made("", extra).await
    }

    /// With settings that go before the lab's own: sshd takes the first.
    pub(crate) async fn first(settings: &str) -> Self {
        Self::made(settings, "Subsystem sftp internal-sftp\n").await
    }

    /// With the folder `bin` of the lab before all others where commands are looked for.
    pub(crate) async fn with_path() -> Self {
        Self::made(
            "",
            "Subsystem sftp internal-sftp\nSetEnv PATH={d}/bin:/usr/bin:/bin:/usr/sbin:/sbin\n",
        )
        .await
    }

    async fn made(first: &str, extra: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "sshd needs root");
        fs::create_dir_all("/run/sshd").unwrap();
        let dir = TempDir::with_prefix("understudy-ssh-").unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["host", "other", "id", "stranger"] {
            keygen(&at(name), &["-t", "ed25519", "-N", ""]);
        }
        fs::copy(at("id.pub"), at("authorized_keys")).unwrap();
        let reserved = Port::new();
        let port = reserved.number();
        let d = dir.path().display();
        let extra = extra.replace("{d}", &d.to_string());
        let config = format!(
            "{first}Port {port}\nListenAddress 127.0.0.1\nHostKey {d}/host\n\
             AuthorizedKeysFile {d}/authorized_keys\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
             StrictModes no\nPidFile none\nMaxStartups 200:30:400\nLogLevel DEBUG1\n{extra}"
        );
        fs::write(at("sshd_config"), config).unwrap();
        let sshd = Command::new("/usr/sbin/sshd")
            .arg("-D")
            .arg("-f")
            .arg(at("sshd_config"))
            .arg("-E")
            .arg(at("sshd.log"))
            .spawn()
            .unwrap();
        let lab = Self {
            dir,
            port,
            sshd,
            _reserved: reserved,
        };
        until("sshd to listen", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        })
        .await;
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text, for scripts.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("sshd.log")).unwrap()
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub(crate) fn server(&self) -> Server {
        Server {
            name: "spare1".into(),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            ssh_address: Ipv4Addr::LOCALHOST.into(),
            ssh_port: self.port,
            host_keys: vec![fs::read_to_string(self.path("host.pub")).unwrap()],
            role: None,
            labels: Default::default(),
            reserved_for: Vec::new(),
            driver: Driver::Ready,
            wipe: false,
            learnt_keys: Vec::new(),
        }
    }

    pub(crate) fn key(&self, name: &str) -> ClientKey {
        ClientKey::load(&self.path(name)).unwrap()
    }

    pub(crate) fn target(&self, pins: &[&str]) -> Target {
        let pin = |name: &&str| {
            let text = fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
            HostKey::parse(&text).unwrap()
        };
        Target {
            peer: self.peer(),
            user: "root".into(),
            pins: pins.iter().map(pin).collect(),
            connect_timeout: Duration::from_secs(20),
            elevate: false,
        }
    }

    pub(crate) async fn connect(&self) -> Ssh {
        Ssh::connect(&self.target(&["host"]), &self.key("id"))
            .await
            .unwrap()
    }

    pub(crate) fn hands(&self) -> SshHands<Connects> {
        SshHands {
            key: self.key("id"),
            user: "root".into(),
            elevate: false,
            connect_timeout: Duration::from_secs(20),
            base: self.text("base"),
            host_keys: self.text("etc"),
            prober: Connects,
            lines: Lines::default(),
        }
    }

    pub(crate) fn order(&self, fence: u64, step: Step, server: Server) -> Order {
        Order {
            server,
            fence,
            step,
            masks: Masks::default(),
        }
    }

    pub(crate) async fn perform(&self, fence: u64, step: Step) -> Result<Done, StepError> {
        let order = self.order(fence, step, self.server());
        self.hands().perform(&order, &drop).await
    }

    /// An order to run `script` as the job `job`.
    pub(crate) fn install(&self, job: &str, script: &str, seconds: u64) -> Step {
        Step::Install {
            job: job.into(),
            software: "thing".into(),
            script: script.into(),
            timeout: Duration::from_secs(seconds),
            variables: Variables::new(),
            check: None,
            secrets: Vec::new(),
        }
    }

    /// A script that notes its start in `starts`, says something, and waits for the file `go`.
    pub(crate) fn waiting_script(&self) -> String {
        format!(
            "echo start >>{0}/starts\necho working\nwhile [ ! -e {0}/go ]; do sleep 0.05; done\n",
            self.dir.path().display()
        )
    }

    pub(crate) fn go(&self) {
        fs::write(self.path("go"), "").unwrap();
    }

    pub(crate) fn starts(&self) -> usize {
        let text = fs::read_to_string(self.path("starts")).unwrap_or_default();
        text.lines().count()
    }

    /// Living processes that a job of this lab left, zombies not counted.
    pub(crate) fn of_jobs(&self) -> Vec<i32> {
        let mark = format!("UNDERSTUDY_JOB={}", self.text("base"));
        processes(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .split(|b| *b == 0)
                .any(|v| v.starts_with(mark.as_bytes()))
        })
    }

    /// "Daemons" that a start command left: their output goes to a file of this lab.
    fn started(&self) -> Vec<i32> {
        let output = self.path("base/output");
        processes(|pid| {
            let to = fs::read_link(format!("/proc/{pid}/fd/1"));
            to.is_ok_and(|to| to.starts_with(&output))
        })
    }

    /// The wrappers of jobs of this lab.
    pub(crate) fn wrappers(&self) -> Vec<i32> {
        let base = self.text("base");
        processes(|pid| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = cmdline
                .split(|b| *b == 0)
                .map(String::from_utf8_lossy)
                .collect();
            words.first().is_some_and(|w| w == "sh")
                && words
                    .get(1)
                    .is_some_and(|w| w.starts_with(&base) && w.ends_with("/run"))
        })
    }

    /// Stops the processes of all sessions: their connections stay, and say nothing more.
    pub(crate) fn stop_sessions(&self) {
        let mine = i32::try_from(self.sshd.id()).unwrap();
        for pid in processes(|pid| parent(pid) == Some(mine)) {
            kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        }
    }

    /// Ends every connection as a broken link would, the daemon stays.
    pub(crate) fn cut(&self) -> usize {
        let mine = i32::try_from(self.sshd.id()).unwrap();
        let sessions = processes(|pid| parent(pid) == Some(mine));
        for pid in &sessions {
            end(*pid);
        }
        sessions.len()
    }
}

/// This machine's operating system, as a role names it.
pub(crate) fn system() -> String {
    let os = fs::read_to_string("/etc/os-release").unwrap();
    let value = |key: &str| {
        let line = os.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        line.trim_matches('"').to_owned()
    };
    format!("{}-{}", value("ID="), value("VERSION_ID="))
}

pub(crate) fn end(pid: i32) {
    // It may be gone by itself.
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat.rsplit_once(") ")?.1.split(' ');
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid).map(|(_state, parent)| parent)
}

fn processes(is: impl Fn(i32) -> bool) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|(state, _)| state != 'Z') && is(*pid))
        .collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.cut();
        for pid in self.of_jobs().into_iter().chain(self.started()) {
            end(pid);
        }
        drop(self.sshd.kill());
        drop(self.sshd.wait());
    }
}
