//! Tables as `ipvsadm -S` and `-Sn` write them and `ipvsadm -R` reads them. Facts: ipvsadm.c and
//! config_stream.c of ipvsadm 1.31, tried on Linux 6.1.
//!
//! A file that is read gives the table that `ipvsadm -R` makes of it, on an empty one, or it is
//! refused with every mistake at its place. There is no third way, but for what `-S` writes and
//! `-R` cannot read, or reads as something else:
//!
//! * weights above 65535, which ipvsadm 1.31 refuses and Debian's takes: the kernel holds them;
//! * `-b` without a value at the end of a line, which `-S` writes of `sh` and `mh` where flag-3 alone
//!   is set (`print_sched_flags` has no word for it; beside other flags it leaves flag-3 out);
//! * `[name]:port`, where `-S` wrote the name of an IPv6 address (`-R` looks up an IPv4 address and
//!   forgets the port);
//! * lines that begin with `#`: `ipvsadm-restore` and Debian's `/etc/ipvsadm.rules` have them, while
//!   `-R` stops at one. `#` is no comment anywhere else.
//!
//! What `-R` reads and this refuses, because the table would silently not be as written: a port of
//! direct routing or a tunnel other than its service's (`-R` takes the service's), an IPv4 address
//! in brackets (`-R` forgets the port), `-M` or `--pe` without `-p`, masks that are no prefix, `-M`
//! before an IPv6 service and `-r` without a port before any (`-R` forgets them), names longer than
//! the kernel's (`-R` cuts them), names of several addresses (`-R` takes the first), numbers for
//! addresses that are not four decimal ones (`10.1`), an `-y` above its `-x` (`-R` asks the kernel,
//! which says `ERANGE`: `ip_vs_add_dest` in net/netfilter/ipvs/ip_vs_ctl.c). Beside these the words `--` and `--sort`.
//!
//! A mark above 2147483647 stands in the output of `-S` as a negative number, which `-R` refuses and
//! this takes for the mark with the same bits. Thresholds are missing from the output of `-S` ([`Saved::says_thresholds`]).

mod losses;
mod options;
mod read;
mod values;
mod write;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::model::{DestKey, Protocol, ServiceKey, Table};

pub use self::{
    losses::{How, Loss, losses},
    read::parse,
    write::write,
};

/// Names that `ipvsadm -S` without `-n` writes. The I/O is the caller's.
pub trait Names {
    /// The addresses of a host.
    ///
    /// # Errors
    ///
    /// Why there are none, in words for the person at the terminal.
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String>;

    /// The port of a service of `/etc/services`.
    fn port(&self, name: &str, protocol: Protocol) -> Option<u16>;
}

/// A table that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The table.
    pub table: Table,
    /// By key.
    services: Vec<(ServiceKey, usize)>,
    /// By service and key.
    dests: Vec<((ServiceKey, DestKey), At)>,
}

/// Where a destination stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    line: usize,
    says_thresholds: bool,
}

impl Saved {
    /// The line, from 1, of a service or of one of its destinations.
    #[must_use]
    pub fn line_of(&self, service: ServiceKey, dest: Option<DestKey>) -> Option<usize> {
        if let Some(dest) = dest {
            return Some(self.dest(service, dest)?.line);
        }
        let found = self.services.binary_search_by_key(&service, |(k, _)| *k);
        let (_, line) = self.services.get(found.ok()?)?;
        Some(*line)
    }

    /// Whether the line of a destination has an `-x` or a `-y`. `ipvsadm -S` writes neither, so
    /// where this is false the file does not know the thresholds that the table had.
    #[must_use]
    pub fn says_thresholds(&self, service: ServiceKey, dest: DestKey) -> bool {
        self.dest(service, dest)
            .is_some_and(|at| at.says_thresholds)
    }

    fn dest(&self, service: ServiceKey, dest: DestKey) -> Option<&At> {
        let key = (service, dest);
        let found = self.dests.binary_search_by_key(&key, |(k, _)| *k);
        Some(&self.dests.get(found.ok()?)?.1)
    }
}
