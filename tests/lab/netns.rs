//! Network namespaces that live as long as their descriptor.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

#[derive(Debug)]
pub(crate) struct NetNs {
    file: File,
}

impl NetNs {
    pub(crate) fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
        let ns = Self { file };
        // Before any link exists: every address works at once, redirects teach nobody a way around
        // the director.
        ns.sysctls(&[
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ]);
        ns
    }

    /// Runs `f` in this namespace: its sockets and child processes belong there.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.enter();
            f()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Moves the calling thread here for good.
    pub(crate) fn enter(&self) {
        setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs commands of ip(8), one a line. As many as possible at once: each start costs an
    /// emulated guest 0.1 s.
    pub(crate) fn ip(&self, batch: &str) {
        self.run(|| super::run(Command::new("ip").args(["-batch", "-"]), batch));
    }

    /// The same for what ip(8) cannot tell the family of.
    pub(crate) fn ip6(&self, batch: &str) {
        self.run(|| super::run(Command::new("ip").args(["-6", "-batch", "-"]), batch));
    }

    /// Writes settings under /proc/sys/net.
    pub(crate) fn sysctls(&self, settings: &[(&str, &str)]) {
        self.run(|| {
            for (key, value) in settings {
                fs::write(format!("/proc/sys/net/{key}"), value)
                    .unwrap_or_else(|e| panic!("{key}: {e}"));
            }
        });
    }

    pub(crate) fn forwarding(&self) {
        self.sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
    }

    /// Lines for [`Self::ip`] that connect `other` to a bridge; `other` sees the link as `name`.
    pub(crate) fn plug(port: &str, bridge: &str, other: &Self, name: &str) -> String {
        format!(
            "link add {port} type veth peer name {name} netns /proc/{}/fd/{}
             link set {port} master {bridge} up\n",
            std::process::id(),
            other.file.as_raw_fd(),
        )
    }
}
