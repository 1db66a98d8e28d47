//! A small cluster in namespaces: a client, a director and servers, each with real packets, a real
//! root and a real sshd.
//!
//! ```text
//!  client .100 ─── 10.77.0.0/24 ─┬─ .1 director .1 ─┬─ 10.77.1.0/24 ─┬─ web1 .11
//!                  fd77:0::/64  └─ .254 router .254 ┘   fd77:1::/64  └─ web2 .12 ...
//! ```
//!
//! Both networks are bridges in one more namespace, which is also the router that direct replies
//! (DR) take past the director. No namespace has a name and none is reachable from outside: two
//! labs use the same addresses side by side, and all of a lab ends with its descriptors and the
//! first process of each server, also when a test panics.
//!
//! Run under `tests/vm/run`, which provides the kernel, the servers' trees and the packages.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each of the suites that share this uses a part of it"
)]

pub(crate) mod files;
pub(crate) mod netns;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod traffic;

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use tempfile::TempDir;

use self::netns::NetNs;
use self::process::Process;
use self::server::{Server, Tree};

/// The virtual address of each family; the director has it on its loopback.
pub(crate) const VIP4: &str = "192.0.2.1";
pub(crate) const VIP6: &str = "2001:db8::1";
/// The director's address on the client's network, which is also its identity and the
/// provisioner's.
pub(crate) const DIRECTOR: &str = "10.77.0.1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    /// The servers' default route is the director.
    Nat,
    /// The servers have the virtual address on their loopback and answer through the router.
    Direct,
}

/// What becomes of what servers write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disks {
    /// It ends with them.
    InMemory,
    /// It lies in the lab's folder, and is there when they are switched on again.
    Kept,
}

/// What servers have in common.
#[derive(Debug, Clone, Copy)]
struct Site<'a> {
    folder: &'a Path,
    disks: Disks,
    /// The key that is let in.
    authorized: &'a str,
}

/// How a family's servers are wired. What IPVS is told is the test's affair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wiring {
    pub(crate) v4: Forward,
    pub(crate) v6: Forward,
}

#[derive(Debug)]
pub(crate) struct Lab {
    // First, so that servers end before the folders and namespaces that they use.
    servers: Vec<Server>,
    pub(crate) client: NetNs,
    pub(crate) director: NetNs,
    pub(crate) router: NetNs,
    folder: PathBuf,
    _gone_with_it: Option<TempDir>,
}

impl Lab {
    /// Builds the networks and starts `servers`, each with its sshd listening; a server of
    /// [`Tree::Web`] also serves.
    pub(crate) fn new(wiring: Wiring, servers: &[(&str, Tree)]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("lab-")
            .tempdir_in("/run")
            .unwrap();
        let lab = Self::build(dir.path(), Disks::InMemory, wiring, servers);
        Self {
            _gone_with_it: Some(dir),
            ..lab
        }
    }

    /// The same in a folder that stays, disks and keys of the servers with it: where there was a lab
    /// in it before, it is that one, switched on again.
    pub(crate) fn kept(folder: &Path, wiring: Wiring, servers: &[(&str, Tree)]) -> Self {
        Self::build(folder, Disks::Kept, wiring, servers)
    }

    fn build(folder: &Path, disks: Disks, wiring: Wiring, servers: &[(&str, Tree)]) -> Self {
        let authorized = keygen(&folder.join("key"));

        let (router, client, director) = (NetNs::new(), NetNs::new(), NetNs::new());
        router.forwarding();
        director.forwarding();
        let mut cables = "
            link add br-client type bridge mcast_snooping 0
            link add br-server type bridge mcast_snooping 0
            addr add 10.77.0.254/24 dev br-client
            addr add fd77:0::254/64 dev br-client
            addr add 10.77.1.254/24 dev br-server
            addr add fd77:1::254/64 dev br-server
            link set br-client up
            link set br-server up\n"
            .to_owned();
        cables += &NetNs::plug("client", "br-client", &client, "eth0");
        cables += &NetNs::plug("dir-client", "br-client", &director, "client");
        cables += &NetNs::plug("dir-server", "br-server", &director, "server");
        let numbered: Vec<_> = (11u8..)
            .zip(servers)
            .map(|(n, s)| (n, s, NetNs::new()))
            .collect();
        for (_, (name, _), netns) in &numbered {
            cables += &NetNs::plug(name, "br-server", netns, "eth0");
        }
        router.ip(&cables);

        let site = Site {
            folder,
            disks,
            authorized: &authorized,
        };
        let servers = std::thread::scope(|scope| {
            scope.spawn(|| {
                client.ip(&format!(
                    "link set lo up
                    addr add 10.77.0.100/24 dev eth0
                    addr add fd77:0::100/64 dev eth0
                    link set eth0 up
                    route add {VIP4} via {DIRECTOR}
                    route add {VIP6} via fd77:0::1
                    route add 10.77.1.0/24 via 10.77.0.254
                    route add fd77:1::/64 via fd77:0::254"
                ));
                director.ip(&format!(
                    "link set lo up
                    addr add {DIRECTOR}/24 dev client
                    addr add fd77:0::1/64 dev client
                    addr add 10.77.1.1/24 dev server
                    addr add fd77:1::1/64 dev server
                    addr add {VIP4}/32 dev lo
                    addr add {VIP6}/128 dev lo
                    link set client up
                    link set server up"
                ));
            });
            let starting: Vec<_> = numbered
                .into_iter()
                .map(|(number, &(name, tree), netns)| {
                    scope.spawn(move || Server::new(site, netns, wiring, number, name, tree))
                })
                .collect();
            starting.into_iter().map(|s| s.join().unwrap()).collect()
        });
        Self {
            servers,
            client,
            director,
            router,
            folder: folder.to_owned(),
            _gone_with_it: None,
        }
    }

    pub(crate) fn server(&self, name: &str) -> &Server {
        self.servers.iter().find(|s| s.name == name).unwrap()
    }

    pub(crate) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// A folder of this lab: on tmpfs and gone with it, or [kept](Self::kept).
    pub(crate) fn dir(&self) -> &Path {
        &self.folder
    }

    /// The private key that every server lets in as root.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join("key")
    }

    /// Starts this package's program in the director's namespace.
    pub(crate) fn understudy(
        &self,
        name: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Process<'_> {
        Process::start(self, name, env!("CARGO_BIN_EXE_understudy"), args, env)
    }

    /// Starts whatever program there.
    pub(crate) fn process(&self, name: &str, program: &str, args: &[&str]) -> Process<'_> {
        Process::start(self, name, program, args, &[])
    }

    /// Runs a command in the director's namespace to its end; its output, or a panic that shows it.
    pub(crate) fn on_director(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(args);
        let output = self
            .director
            .run(move || command.stdin(Stdio::null()).output().unwrap());
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{program} {args:?}: {}\n{out}{err}",
            output.status
        );
        out
    }

    pub(crate) fn ipvsadm(&self, args: &str) -> String {
        self.on_director("ipvsadm", &args.split_whitespace().collect::<Vec<_>>())
    }

    /// The kernel's table as the independent witness writes it, a rule a line, sorted.
    pub(crate) fn ipvs_table(&self) -> Vec<String> {
        let mut lines: Vec<_> = self
            .ipvsadm("-Sn")
            .lines()
            .map(|l| l.trim_end().to_owned())
            .collect();
        lines.sort();
        lines
    }

    /// Runs `command` as root on a server through ssh with the lab's key, from the director;
    /// whether it succeeded and what it printed.
    pub(crate) fn ssh(&self, server: &Server, command: &str) -> (bool, String) {
        let known = self.folder.join(format!("known-{}", server.name));
        fs::write(
            &known,
            format!("{} {}\n", server.address4(), server.host_key()),
        )
        .unwrap();
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "ConnectTimeout=10",
            "-i",
        ])
        .arg(self.key())
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .arg(format!("root@{}", server.address4()))
        .arg(command);
        let output = self
            .director
            .run(move || ssh.stdin(Stdio::null()).output().unwrap());
        (
            output.status.success(),
            text(&output.stdout) + &text(&output.stderr),
        )
    }
}

/// Nanoseconds of CLOCK_BOOTTIME: what the daemons record their events with.
pub(crate) fn now() -> u64 {
    Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap())
        .as_nanos()
        .try_into()
        .unwrap()
}

/// `/proc/net/ip_vs` of the calling thread's namespace, in one read. A second one would go on at a
/// place that counts the services of all namespaces, and leave some out where another lab has any
/// (`ip_vs_info_seq_next`, net/netfilter/ipvs/ip_vs_ctl.c): the table must fit into a page.
pub(crate) fn proc_ip_vs() -> String {
    let mut page = vec![0; 1 << 16];
    let mut file = File::open("/proc/thread-self/net/ip_vs").unwrap();
    let length = file.read(&mut page).unwrap();
    assert!(length < 4096 - 80, "the table is too long for one read");
    page.truncate(length);
    String::from_utf8(page).unwrap()
}

pub(crate) fn vip4(port: u16) -> SocketAddr {
    SocketAddr::new(VIP4.parse::<IpAddr>().unwrap(), port)
}

pub(crate) fn vip6(port: u16) -> SocketAddr {
    SocketAddr::new(VIP6.parse::<IpAddr>().unwrap(), port)
}

/// Asks every `poll` until the answer is `Ok`; panics with the last `Err` when `limit` has passed.
pub(crate) fn wait_for<T, E: Display>(
    what: &str,
    limit: Duration,
    poll: Duration,
    mut ask: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) => assert!(
                start.elapsed() < limit,
                "no {what} within {limit:?}; last seen: {last}"
            ),
        }
        std::thread::sleep(poll);
    }
}

/// [`wait_for`] where there is nothing more to show than that the condition does not hold.
pub(crate) fn wait_until(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) {
    wait_for(what, limit, Duration::from_millis(20), || {
        ask().then_some(()).ok_or("it does not hold")
    });
}

/// Writes a new ed25519 private key to `path` if there is none; the public half as known_hosts and
/// authorized_keys take it. ssh-keygen would take an emulated guest 0.3 s each.
fn keygen(path: &Path) -> String {
    let key = if path.exists() {
        PrivateKey::read_openssh_file(path).unwrap()
    } else {
        let mut seed = [0; 32];
        File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut seed)
            .unwrap();
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        key.write_openssh_file(path, LineEnding::LF).unwrap();
        key
    };
    key.public_key().to_openssh().unwrap().trim_end().to_owned()
}

/// Runs a command to its end with `input` on its standard input; panics with what it printed if it
/// fails.
fn run(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{input}\n{out}{err}",
        output.status
    );
    out
}

/// Prints, whatever thread and whether or not the test harness captures: parts take seconds, so one
/// wants to see them.
pub(crate) fn show(line: &str) {
    let mut out = std::io::stderr().lock();
    writeln!(out, "{line}").unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
