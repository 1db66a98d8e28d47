//! The product at work in a lab: a provisioner that knows the servers, a director that balances
//! them, and what the kernel and the two say.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hyper::Method;
use understudy::api::client::{Client, NOTHING};
use understudy::director::status::Status;
use understudy::model::inventory::ServerView;
use understudy::model::wire::Replacement;

use crate::lab::files::Service;
use crate::lab::process::Process;
use crate::lab::server::Tree;
use crate::lab::traffic::get;
use crate::lab::{Forward, Lab, Wiring, show, wait_for};

/// Limits of waits say only when to give up: an emulated guest on a busy machine is slow.
pub(crate) const SOON: Duration = Duration::from_secs(90);
/// A spare's way into service, a real installation or several failed spares included.
pub(crate) const REPLACED: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(100);

/// A server is given up after two refusals, or 4 s of silence: an emulated server may be slow.
pub(crate) const CHECK: &str = r#"interval = "300ms"
timeout = "2s"
rise = 2
fall = 2

[virtual_service.check.http]
path = "/"
status = "200-299"
"#;

/// A role's script for servers of `Tree::Idle`, where there is nothing left to install.
pub(crate) const LIGHT_SCRIPT: &str = "#!/bin/sh\ntest -x /usr/sbin/nginx\n";

pub(crate) const WIRING: Wiring = Wiring {
    v4: Forward::Nat,
    v6: Forward::Direct,
};

/// Two web servers, and spares that become ones quickly.
pub(crate) fn two_webs(spares: &[&str]) -> Lab {
    let webs = ["web1", "web2"].map(|web| (web, Tree::Web));
    let spares = spares.iter().map(|spare| (*spare, Tree::Idle));
    Lab::new(WIRING, &Vec::from_iter(webs.into_iter().chain(spares)))
}

/// A virtual service with these servers and weights, in the family of its address.
pub(crate) fn service(
    lab: &Lab,
    address: SocketAddr,
    forward: &'static str,
    servers: &[(&str, u32)],
) -> Service {
    let real_servers = servers
        .iter()
        .map(|(name, weight)| (real_server(lab, name, address), *weight));
    Service {
        address,
        forward,
        check: CHECK.to_owned(),
        real_servers: real_servers.collect(),
    }
}

/// Where a server's nginx listens, in the family of `vip`.
pub(crate) fn real_server(lab: &Lab, name: &str, vip: SocketAddr) -> SocketAddr {
    let server = lab.server(name);
    let address = if vip.is_ipv4() {
        server.address4()
    } else {
        server.address6()
    };
    SocketAddr::new(address.parse().unwrap(), 80)
}

/// Weights by virtual service and real server, of TCP and UDP alike.
pub(crate) type Table = BTreeMap<(SocketAddr, SocketAddr), u32>;

/// What `/proc/net/ip_vs` says: costs a hundredth of an ipvsadm.
pub(crate) fn table(lab: &Lab) -> Table {
    lab.director.run(read_table)
}

pub(crate) fn wait_for_table(
    lab: &Lab,
    what: &str,
    limit: Duration,
    holds: impl Fn(&Table) -> bool,
) -> Table {
    wait_for(what, limit, POLL, || {
        let table = table(lab);
        if holds(&table) {
            Ok(table)
        } else {
            Err(format!("{table:?}"))
        }
    })
}

/// Asks the virtual service from the client until `server` answers with the role's content.
pub(crate) fn wait_for_page(lab: &Lab, vip: SocketAddr, server: &str, limit: Duration) {
    let wanted = format!("shop on {server}");
    let poll = Duration::from_millis(500);
    wait_for(&wanted, limit, poll, || match lab.client.run(|| get(vip)) {
        Ok(body) if body == wanted => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Runs the director on these services, until it is ready.
pub(crate) fn start_director<'a>(lab: &'a Lab, services: &[Service]) -> Process<'a> {
    run_director(lab, &lab.write_director(services, "1s"))
}

/// Runs a director of this configuration, until it is ready.
pub(crate) fn run_director<'a>(lab: &'a Lab, config: &str) -> Process<'a> {
    let args = ["director", "--config", config, "--log-format", "json"];
    let mut director = lab.understudy("director", &args, &[]);
    director.wait_for_log("director is ready", SOON);
    director
}

/// What `understudy status --json` says.
pub(crate) fn status(lab: &Lab) -> Status {
    let socket = lab.director_socket();
    let text = understudy(lab, &["status", "--json", "--socket", &socket]);
    serde_json::from_str(&text).unwrap()
}

/// Runs the program to its end, which must be a success; what it printed.
pub(crate) fn understudy(lab: &Lab, args: &[&str]) -> String {
    lab.on_director(env!("CARGO_BIN_EXE_understudy"), args)
}

#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) director: Process<'a>,
    pub(crate) provisioner: Process<'a>,
    inventory: String,
}

impl<'a> Scene<'a> {
    /// Starts everything, until the kernel has all servers of `services`. The servers named in
    /// `serving` have the role, all others are spares on which `script` installs it.
    pub(crate) fn start(
        lab: &'a Lab,
        serving: &[&str],
        script: &str,
        services: &[Service],
    ) -> Self {
        // What is wrong with a spare is found by the replacement, not by a look beforehand that may be faster.
        let config = fs::read_to_string(lab.write_provisioner()).unwrap();
        let config = format!("{config}[pool]\nrehearse = \"never\"\n");
        let config = lab.write("provisioner.toml", &config);
        let inventory = lab.write_inventory(serving, script);
        let args = ["provisioner", "--config", &config, "--log-format", "json"];
        let mut provisioner = lab.understudy("provisioner", &args, &[]);
        provisioner.wait_for_log("provisioner is ready", SOON);
        apply(lab, &inventory);
        let director = start_director(lab, services);
        let wanted: Table = services
            .iter()
            .flat_map(|s| {
                s.real_servers
                    .iter()
                    .map(|(server, weight)| ((s.address, *server), *weight))
            })
            .collect();
        wait_for_table(lab, "IPVS with all servers", SOON, |t| *t == wanted);
        Self {
            lab,
            director,
            provisioner,
            inventory,
        }
    }

    /// Applies the inventory folder once more; what that printed.
    pub(crate) fn apply(&self) -> String {
        apply(self.lab, &self.inventory)
    }

    /// What `understudy inventory list --json` says.
    pub(crate) fn pool(&self) -> Vec<ServerView> {
        let socket = self.lab.provisioner_socket();
        let text = understudy(
            self.lab,
            &["inventory", "list", "--json", "--socket", &socket],
        );
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn spare(&self, name: &str) -> ServerView {
        let mut pool = self.pool().into_iter();
        pool.find(|s| s.server.name == name).unwrap()
    }

    pub(crate) fn replacements(&self) -> Vec<Replacement> {
        let client = Client::unix(self.lab.provisioner_socket().into());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ask = client.ask(Method::GET, "/v1/replacements", None, NOTHING, SOON);
        runtime.block_on(ask).unwrap()
    }

    /// Waits until the provisioner knows that so many replacements succeeded, and no other exists.
    pub(crate) fn wait_for_success(&self, count: usize) -> Vec<Replacement> {
        wait_for("success of the replacements", SOON, POLL, || {
            let all = self.replacements();
            let done = all.iter().filter(|r| r.state.as_str() == "succeeded");
            if done.count() == count && all.len() == count {
                Ok(all)
            } else {
                Err(format!("{all:#?}"))
            }
        })
    }
}

fn apply(lab: &Lab, folder: &str) -> String {
    let socket = lab.provisioner_socket();
    understudy(lab, &["inventory", "apply", folder, "--socket", &socket])
}

/// Sees the states of the kernel's table, but those that last some milliseconds only. Oftener would
/// take an emulated guest's CPU from those who are watched.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Table>>,
}

impl Watch {
    pub(crate) fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let watch = move || {
            let mut states = vec![read_table()];
            while !seen.load(Ordering::Relaxed) {
                let now = read_table();
                if states.last() != Some(&now) {
                    states.push(now);
                }
                thread::sleep(Duration::from_millis(25));
            }
            states
        };
        // A thread begins in the namespace of the one that starts it.
        let thread = lab.director.run(|| thread::spawn(watch));
        Self { stop, thread }
    }

    /// The states in order, each unlike the one before.
    pub(crate) fn stop(self) -> Vec<Table> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Says how long a part took.
pub(crate) struct Clock {
    of: &'static str,
    last: Instant,
}

impl Clock {
    pub(crate) fn start(of: &'static str) -> Self {
        Self {
            of,
            last: Instant::now(),
        }
    }

    pub(crate) fn lap(&mut self, part: &str) {
        let took = self.last.elapsed().as_secs_f64();
        show(&format!("{:>6.1} s  {}: {part}", took, self.of));
        self.last = Instant::now();
    }
}

fn read_table() -> Table {
    let text = crate::lab::proc_ip_vs();
    let mut table = Table::new();
    let mut service = None;
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["TCP" | "UDP", at, ..] => service = Some(address(at)),
            ["->", at, _forward, weight, ..] if service.is_some() => {
                table.insert((service.unwrap(), address(at)), weight.parse().unwrap());
            }
            // The head, and services by firewall mark.
            _ => service = None,
        }
    }
    table
}

/// `0A4D010B:0050` is 10.77.1.11:80; IPv6 stands in brackets, in full.
fn address(text: &str) -> SocketAddr {
    let (address, port) = text.rsplit_once(':').unwrap();
    let port = u16::from_str_radix(port, 16).unwrap();
    let address = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(six) => six.parse().unwrap(),
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).unwrap()).into(),
    };
    SocketAddr::new(address, port)
}
