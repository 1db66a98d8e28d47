//! A server: network, mount, UTS and PID namespaces of its own, its root an overlay over a prepared
//! tree, its first process a real sshd. Whatever is started on it ends with that process.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chdir, pivot_root, sethostname};

use super::netns::NetNs;
use super::{Disks, Forward, Site, VIP4, VIP6, Wiring, keygen, text, wait_for, wait_until};

const SOON: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

const SSHD_CONFIG: &str = "\
HostKey /etc/ssh/ssh_host_ed25519_key
LogLevel VERBOSE
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PidFile none
Subsystem sftp internal-sftp
UseDNS no
UsePAM no
";
const SSHD_LOG: &str = "/var/log/sshd.log";

/// The prepared roots (tests/vm/prepare).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tree {
    /// Debian 12 without nginx: a spare.
    Base,
    /// The same after the role's script; starts serving the role's site with the server.
    Web,
    /// The same, and nothing runs but sshd: a spare whose role is quickly given.
    Idle,
    /// Debian 13: the wrong operating system.
    Other,
    /// Debian 12 with everything that a kind of check asks; nothing runs but sshd.
    Kinds,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
    number: u8,
    dir: PathBuf,
    disks: Disks,
    authorized: String,
    host_key: String,
    init: Mutex<Option<Child>>,
    blackholed: AtomicBool,
}

impl Server {
    pub(super) fn new(
        site: Site<'_>,
        netns: NetNs,
        wiring: Wiring,
        number: u8,
        name: &str,
        tree: Tree,
    ) -> Self {
        let dir = site.folder.join(name);
        fs::create_dir_all(&dir).unwrap();
        let host_key = keygen(&dir.join("host_key"));
        let via = |forward| if forward == Forward::Nat { "1" } else { "254" };
        let mut links = format!(
            "link set lo up
             addr add 10.77.1.{number}/24 dev eth0
             addr add fd77:1::{number}/64 dev eth0
             link set eth0 up
             route add default via 10.77.1.{}
             route add default via fd77:1::{}\n",
            via(wiring.v4),
            via(wiring.v6),
        );
        if wiring.v4 == Forward::Direct {
            netns.sysctls(&[
                ("ipv4/conf/all/arp_ignore", "1"),
                ("ipv4/conf/all/arp_announce", "2"),
            ]);
            links += &format!("addr add {VIP4}/32 dev lo\n");
        }
        if wiring.v6 == Forward::Direct {
            links += &format!("addr add {VIP6}/128 dev lo nodad\n");
        }
        netns.ip(&links);
        let server = Self {
            name: name.to_owned(),
            netns,
            number,
            dir,
            disks: site.disks,
            authorized: site.authorized.to_owned(),
            host_key,
            init: Mutex::new(None),
            blackholed: AtomicBool::new(false),
        };
        server.boot(tree);
        server
    }

    pub(crate) fn address4(&self) -> String {
        format!("10.77.1.{}", self.number)
    }

    pub(crate) fn address6(&self) -> String {
        format!("fd77:1::{}", self.number)
    }

    /// The public host key as an inventory or known_hosts writes it: algorithm and key.
    pub(crate) fn host_key(&self) -> &str {
        &self.host_key
    }

    /// The server shows another host key from here on; [`Self::host_key`] stays the one that was
    /// enrolled.
    pub(crate) fn replace_host_key(&self) {
        let path = self.dir.join("other_key");
        keygen(&path);
        fs::copy(path, self.path("/etc/ssh/ssh_host_ed25519_key")).unwrap();
        let times = |log: String| log.matches("Server listening on :: port 22").count();
        let before = times(self.sshd_log());
        kill(self.init(), Signal::SIGHUP).unwrap();
        wait_until("sshd with another key", SOON, || {
            times(self.sshd_log()) > before
        });
    }

    /// Starts over with an untouched root: everything that ran or was written is gone, name,
    /// addresses and host key stay.
    pub(crate) fn reset(&self, tree: Tree) {
        self.power_off();
        self.unblackhole();
        self.boot(tree);
    }

    /// Ends every process at once, as a pulled plug does. The links stay: packets are answered with
    /// resets.
    pub(crate) fn power_off(&self) {
        let init = self
            .init
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut init) = init {
            // The end of its first process ends the PID namespace, and is complete only after all
            // others'.
            init.kill().unwrap();
            init.wait().unwrap();
        }
    }

    /// Runs a command line as root on the server, past its sshd.
    pub(crate) fn exec(&self, command: &str) -> Output {
        let namespaces = ["ipc", "uts", "net", "pid", "mnt"]
            .map(|n| File::open(self.proc(&format!("ns/{n}"))).unwrap());
        let inside = || {
            // A thread that shares its working folder with others may not change its mount
            // namespace.
            unshare(CloneFlags::CLONE_FS).unwrap();
            for namespace in &namespaces {
                setns(namespace, CloneFlags::empty()).unwrap();
            }
            shell(command).output().unwrap()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// [`Self::exec`] for a command that must succeed; what it printed.
    pub(crate) fn sh(&self, command: &str) -> String {
        let output = self.exec(command);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{}: {command}: {}\n{out}{err}",
            self.name,
            output.status
        );
        out
    }

    /// Where the server's file is found from here.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.proc("root").join(path.trim_start_matches('/'))
    }

    /// The content of the server's file; empty if it cannot be read.
    pub(crate) fn read(&self, path: &str) -> String {
        text(&fs::read(self.path(path)).unwrap_or_default())
    }

    pub(crate) fn sshd_log(&self) -> String {
        self.read(SSHD_LOG)
    }

    /// Places the role's site and starts nginx, as provisioning would.
    pub(crate) fn serve(&self) {
        fs::write(self.path("/etc/nginx/conf.d/shop.conf"), super::files::SITE).unwrap();
        self.sh("nginx");
    }

    /// Port 80 refuses from here on.
    pub(crate) fn kill_nginx(&self) {
        self.signal("nginx", Signal::SIGKILL);
        wait_until("end of nginx", SOON, || self.processes("nginx").is_empty());
    }

    /// The kernel accepts connections for nginx and nobody answers.
    pub(crate) fn stop_nginx(&self) {
        self.signal("nginx", Signal::SIGSTOP);
    }

    pub(crate) fn continue_nginx(&self) {
        self.signal("nginx", Signal::SIGCONT);
    }

    /// The kernel accepts connections for sshd and nobody answers.
    pub(crate) fn mute_sshd(&self) {
        self.signal("sshd", Signal::SIGSTOP);
    }

    pub(crate) fn unmute_sshd(&self) {
        self.signal("sshd", Signal::SIGCONT);
    }

    /// Drops what arrives, without an answer: all of it, or what is for one TCP port. Neighbour
    /// discovery goes on, for a host that is unreachable is another failure.
    pub(crate) fn blackhole(&self, port: Option<u16>) {
        let what = port.map_or("meta l4proto != ipv6-icmp".to_owned(), |p| {
            format!("tcp dport {p}")
        });
        self.unblackhole();
        self.blackholed.store(true, Ordering::Relaxed);
        self.nft(&format!(
            "table inet blackhole {{
                chain input {{
                    type filter hook input priority -300
                    iif lo accept
                    {what} drop
                }}
            }}"
        ));
    }

    pub(crate) fn unblackhole(&self) {
        if self.blackholed.swap(false, Ordering::Relaxed) {
            self.nft("delete table inet blackhole");
        }
    }

    /// The processes of that name, by their ids here.
    pub(crate) fn processes(&self, name: &str) -> Vec<Pid> {
        let Ok(namespace) = fs::metadata(self.proc("ns/pid")) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            // Any of these may end while it is looked at.
            let inside =
                fs::metadata(entry.path().join("ns/pid")).is_ok_and(|m| m.ino() == namespace.ino());
            let named =
                fs::read_to_string(entry.path().join("comm")).is_ok_and(|c| c.trim_end() == name);
            if inside && named && !is_zombie(&entry.path()) {
                found.push(Pid::from_raw(pid));
            }
        }
        found
    }

    fn signal(&self, name: &str, signal: Signal) {
        let processes = self.processes(name);
        assert!(!processes.is_empty(), "{}: no {name} runs", self.name);
        for pid in processes {
            match kill(pid, signal) {
                // A worker may have followed its master.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(e) => panic!("{}: {name}: {e}", self.name),
            }
        }
    }

    fn nft(&self, commands: &str) {
        self.netns
            .run(|| super::run(Command::new("nft").args(["-f", "-"]), commands));
    }

    /// The server's first process.
    fn init(&self) -> Pid {
        let init = self.init.lock().unwrap_or_else(PoisonError::into_inner);
        let child = init
            .as_ref()
            .unwrap_or_else(|| panic!("{} is off", self.name));
        Pid::from_raw(child.id().try_into().unwrap())
    }

    fn proc(&self, entry: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{entry}", self.init()))
    }

    fn boot(&self, tree: Tree) {
        let child =
            std::thread::scope(|scope| scope.spawn(|| self.start_init(tree)).join().unwrap());
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        wait_for("listening sshd", SOON, POLL, || {
            let log = self.sshd_log();
            if log.contains("Server listening on :: port 22") {
                Ok(())
            } else {
                Err(log)
            }
        });
        if tree == Tree::Web {
            self.serve();
        }
    }

    /// In a thread of its own, which takes on all of the server's namespaces: system calls, for
    /// each command started in an emulated guest costs more than all of these.
    fn start_init(&self, tree: Tree) -> Child {
        let trees = PathBuf::from(std::env::var_os("LAB_TREES").expect("run under tests/vm/run"));
        let packages =
            PathBuf::from(std::env::var_os("LAB_PACKAGES").expect("run under tests/vm/run"));
        let lower = trees.join(match tree {
            Tree::Base => "base",
            Tree::Web | Tree::Idle => "web",
            Tree::Other => "other",
            Tree::Kinds => "kinds",
        });
        let host_key = fs::read(self.dir.join("host_key")).unwrap();

        self.netns.enter();
        let kinds = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
        unshare(kinds).unwrap();
        sethostname(&self.name).unwrap();
        let none = None::<&Path>;
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();

        let top = self.dir.join("root");
        fs::create_dir_all(&top).unwrap();
        if self.disks == Disks::InMemory {
            mount(Some("tmpfs"), &top, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        }
        let [upper, work, root] = ["upper", "work", "root"].map(|n| top.join(n));
        for folder in [&upper, &work, &root] {
            let mut builder = DirBuilder::new();
            builder.mode(0o755).recursive(true);
            builder.create(folder).unwrap();
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        mount(
            Some("overlay"),
            &root,
            Some("overlay"),
            MsFlags::empty(),
            Some(OsStr::new(&layers)),
        )
        .unwrap();
        mount(Some("/dev"), &root.join("dev"), none, bind, none).unwrap();
        mount(Some(&packages), &root.join("packages"), none, bind, none).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &root.join("packages"), none, read_only, none).unwrap();
        chdir(&root).unwrap();
        pivot_root(".", ".").unwrap();
        umount2(".", MntFlags::MNT_DETACH).unwrap();
        chdir("/").unwrap();

        let secret = |path: &str, content: &[u8]| {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
                .unwrap();
            std::io::Write::write_all(&mut file, content).unwrap();
        };
        secret("/root/.ssh/authorized_keys", self.authorized.as_bytes());
        secret("/etc/ssh/ssh_host_ed25519_key", &host_key);
        // Of another life.
        fs::write(SSHD_LOG, "").unwrap();
        fs::write("/etc/ssh/lab_config", SSHD_CONFIG).unwrap();
        fs::write("/etc/hostname", format!("{}\n", self.name)).unwrap();
        fs::write(
            "/etc/hosts",
            format!(
                "127.0.0.1 localhost\n::1 localhost\n{} {0}\n",
                self.address4()
            ),
        )
        .unwrap();

        // Only children enter the new PID namespace; the first is its init. sshd reaps what is left
        // to it.
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        let start = format!(
            "mount -t proc proc /proc && exec /usr/sbin/sshd -D -f /etc/ssh/lab_config -E {SSHD_LOG}"
        );
        shell(&start)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.power_off();
    }
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", command])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null());
    shell
}

fn is_zombie(process: &Path) -> bool {
    fs::read_to_string(process.join("stat"))
        .is_ok_and(|s| s.rsplit(')').next().is_some_and(|s| s.starts_with(" Z")))
}
