//! Virtual addresses on real interfaces, with real neighbours: they come after a probe and are announced, a
//! host that has one keeps it, what somebody takes off comes back, and what is whose is known over restarts.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::netns::NetNs;
use crate::lab::process::Process;
use crate::lab::server::Tree;
use crate::lab::{Lab, show, wait_for, wait_until};
use crate::scene::{SOON, WIRING, run_director, status, understudy};
use crate::settings::metrics;

/// A service nobody asks for the health of.
fn service(address: &str, lines: &str) -> String {
    format!(
        "[[virtual_service]]\naddress = \"{address}\"\nscheduler = \"rr\"\nforward = \"nat\"\ncheck.none = {{}}\n{lines}\n"
    )
}

/// A director that manages the addresses of these services, on its interface towards the client.
fn write_config(lab: &Lab, director: &str, services: &[String]) -> String {
    let head = format!(
        "resync = \"2s\"\nmanage_addresses = true\n{director}\n[metrics]\nlisten = \"127.0.0.1:9711\"\n"
    );
    lab.write_lone_director(&(head + &services.concat()))
}

const ON_CLIENT: &str = "addresses = { interface = \"client\" }";

/// Whether an interface of the director has an address.
fn has(lab: &Lab, interface: &str, address: &str) -> bool {
    let args = ["-o", "address", "show"];
    let all = lab.on_director("ip", &args);
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    all.lines().map(words).any(|w| {
        w.get(1).is_some_and(|name| name == interface)
            && w.get(3)
                .is_some_and(|a| a.split('/').next() == Some(address))
    })
}

fn wait_for_address(lab: &Lab, interface: &str, address: &str, is: bool) {
    let what = format!("{address} on {interface}: {is}");
    let poll = Duration::from_millis(200);
    wait_for(&what, SOON, poll, || {
        match has(lab, interface, address) == is {
            true => Ok(()),
            false => Err(lab.on_director("ip", &["-o", "address", "show"])),
        }
    });
}

fn mac(netns: &NetNs, interface: &'static str) -> String {
    let mut ip = Command::new("ip");
    ip.args(["-o", "link", "show", "dev", interface]);
    let out = netns.run(move || ip.output().unwrap());
    let text = String::from_utf8(out.stdout).unwrap();
    let mut words = text.split_whitespace().skip_while(|w| *w != "link/ether");
    words.nth(1).unwrap().to_owned()
}

/// What the client takes for the link-layer address of `address`.
fn neighbour(lab: &Lab, address: &str) -> String {
    let mut ip = Command::new("ip");
    ip.args(["neigh", "show", address, "dev", "eth0"]);
    let out = lab.client.run(move || ip.output().unwrap());
    String::from_utf8(out.stdout).unwrap()
}

/// The client believes that another host has these.
fn mislead(lab: &Lab, addresses: &[&str]) {
    let line =
        |a: &&str| format!("neigh replace {a} lladdr 02:00:00:00:00:99 nud stale dev eth0\n");
    lab.client
        .ip(&addresses.iter().map(line).collect::<String>());
    for address in addresses {
        assert!(neighbour(lab, address).contains("02:00:00:00:00:99"));
    }
}

#[test]
fn an_address_is_announced_to_its_neighbours_and_put_back_when_it_is_taken_off() {
    let lab = Lab::new(WIRING, &[]);
    let dummy =
        "addresses = { interface = \"vip0\", create_dummy = true, announce_on = \"client\" }";
    let config = write_config(
        &lab,
        "",
        &[
            service("10.77.0.50:80", ON_CLIENT),
            service("[fd77::50]:80", ON_CLIENT),
            service("10.77.0.51:80", dummy),
            service("10.77.0.51:443", dummy),
        ],
    );
    let all = ["10.77.0.50", "fd77::50", "10.77.0.51"];
    mislead(&lab, &all);
    let mut director = run_director(&lab, &config);
    let own = mac(&lab.director, "client");
    for address in all {
        let interface = if address == "10.77.0.51" {
            "vip0"
        } else {
            "client"
        };
        wait_for_address(&lab, interface, address, true);
        // Nobody has said a word to it: the kernel by itself announces nothing.
        wait_for(address, SOON, Duration::from_millis(200), || {
            let seen = neighbour(&lab, address);
            if seen.contains(&own) {
                Ok(())
            } else {
                Err(seen)
            }
        });
    }
    assert_eq!(status(&lab).warnings, [""; 0]);
    show("addresses are on, and announced");

    for (interface, address) in [
        ("client", "10.77.0.50/32"),
        ("client", "fd77::50/128"),
        ("vip0", "10.77.0.51/32"),
    ] {
        lab.director
            .ip(&format!("address del {address} dev {interface}"));
        let address = address.split('/').next().unwrap();
        director.wait_for_log(
            &format!("virtual address {address} was taken off {interface}"),
            SOON,
        );
        wait_for_address(&lab, interface, address, true);
    }
    show("addresses that were taken off are back");

    // It takes the addresses of IPv6 and its dummy with it.
    lab.director.ip("link set client down\nlink del vip0");
    wait_until("a warning that the interface is down", SOON, || {
        status(&lab)
            .warnings
            .iter()
            .any(|w| w.contains("interface client is down"))
    });
    lab.director.ip("link set client up");
    for (interface, address) in [
        ("client", "10.77.0.50"),
        ("client", "fd77::50"),
        ("vip0", "10.77.0.51"),
    ] {
        wait_for_address(&lab, interface, address, true);
    }
    wait_until("no warning", SOON, || status(&lab).warnings.is_empty());
    show("addresses whose interfaces went are back");
}

#[test]
fn an_address_of_another_host_is_refused_until_that_host_gives_it_up() {
    let lab = Lab::new(WIRING, &[]);
    lab.client
        .ip("address add 10.77.0.60/24 dev eth0\naddress add fd77::60/64 dev eth0");
    let config = write_config(
        &lab,
        "",
        &[
            service("10.77.0.60:80", ON_CLIENT),
            service("[fd77::60]:80", ON_CLIENT),
            service("10.77.0.61:80", ON_CLIENT),
        ],
    );
    let mut director = run_director(&lab, &config);
    let theirs = mac(&lab.client, "eth0");
    for address in ["10.77.0.60", "fd77::60"] {
        let line = director.wait_for_log(&format!("virtual address {address} is not put on"), SOON);
        assert!(line.contains("ERROR") && line.contains(&theirs), "{line}");
        wait_until("a warning in status", SOON, || {
            status(&lab)
                .warnings
                .iter()
                .any(|w| w.contains(address) && w.contains(&theirs))
        });
    }
    wait_for_address(&lab, "client", "10.77.0.61", true);
    let text = metrics(&lab);
    for line in [
        "understudy_virtual_address_on{address=\"10.77.0.60\"} 0",
        "understudy_virtual_address_on{address=\"10.77.0.61\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in {text}");
    }
    assert!(
        !text.contains("virtual_address_conflicts_total 0\n"),
        "{text}"
    );
    for address in ["10.77.0.60", "fd77::60"] {
        assert!(!has(&lab, "client", address), "{address}");
    }
    let kind = ["--kind", "address_taken", "--socket"];
    let socket = lab.director_socket();
    let events = understudy(&lab, &[&["events"][..], &kind, &[&socket]].concat());
    assert_eq!(events.matches(&theirs).count(), 2, "{events}");
    show("addresses of another host were refused");

    lab.client
        .ip("address del 10.77.0.60/24 dev eth0\naddress del fd77::60/64 dev eth0");
    for address in ["10.77.0.60", "fd77::60"] {
        wait_for_address(&lab, "client", address, true);
    }
    wait_until("no warning", SOON, || status(&lab).warnings.is_empty());
    show("they came when it gave them up");
}

/// `ip monitor`, as long as it lives.
struct Monitor<'a>(Process<'a>);

impl<'a> Monitor<'a> {
    fn start(lab: &'a Lab) -> Self {
        let monitor = Self(Process::start(
            lab,
            "monitor",
            "ip",
            &["monitor", "address"],
            &[],
        ));
        // It listens when it tells of this one.
        wait_until("the monitor", SOON, || {
            lab.director
                .ip("address add 10.77.99.1/32 dev lo\naddress del 10.77.99.1/32 dev lo");
            monitor.0.log().contains("10.77.99.1")
        });
        monitor
    }

    fn saw(&self, address: &str) -> bool {
        fs::read_to_string(self.0.log_path())
            .unwrap()
            .contains(address)
    }
}

#[test]
fn what_the_director_put_on_is_known_over_restarts_and_goes_when_it_should() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web)]);
    let at_stop = "addresses = { interface = \"client\", shutdown = \"withdraw\" }";
    let withdraw = "addresses = { interface = \"client\", quorum_lost = \"withdraw\", shutdown = \"withdraw\" }";
    let checked = format!(
        "[[virtual_service]]\naddress = \"10.77.0.71:80\"\nscheduler = \"rr\"\nforward = \"nat\"\n{withdraw}\nreal_server = [{{ address = \"10.77.1.11:80\" }}]\ncheck = {{ interval = \"500ms\", timeout = \"3s\", rise = 1, fall = 2, tcp = {{}} }}\n"
    );
    let config = write_config(
        &lab,
        "",
        &[
            service("10.77.0.70:80", ON_CLIENT),
            service("[fd77::70]:80", ON_CLIENT),
            checked,
            service("10.77.0.72:80", at_stop),
            service("[fd77::72]:80", at_stop),
        ],
    );
    // The operator's own.
    lab.director.ip("address add 10.77.0.72/32 dev client");
    let mut director = run_director(&lab, &config);
    let all = [
        "10.77.0.70",
        "fd77::70",
        "10.77.0.71",
        "10.77.0.72",
        "fd77::72",
    ];
    for address in all {
        wait_for_address(&lab, "client", address, true);
    }
    show("addresses are on");

    let monitor = Monitor::start(&lab);
    director.restart();
    for address in all {
        let whose = if address == "10.77.0.72" {
            "somebody else put it there"
        } else {
            "as this director left it"
        };
        // Of the one with a check it is said when its server has passed.
        director.wait_for_log(&format!("virtual address {address} is on client"), SOON);
        assert!(
            director
                .log()
                .lines()
                .any(|l| l.contains(address) && l.contains(whose)),
            "{address}"
        );
    }
    // What comes later shows that the earlier has been told.
    lab.director.ip("address add 10.77.99.2/32 dev lo");
    wait_until("the monitor's last word", SOON, || {
        monitor.saw("10.77.99.2")
    });
    for address in all {
        assert!(!monitor.saw(address), "{address} was touched");
    }
    drop(monitor);
    show("a restart touched none");

    let web1 = lab.server("web1");
    web1.kill_nginx();
    wait_for_address(&lab, "client", "10.77.0.71", false);
    web1.serve();
    wait_for_address(&lab, "client", "10.77.0.71", true);
    show("a lost quorum withdrew its address, a regained one put it back");

    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen("10.77.0.70:80", "10.77.0.73:80", 1)).unwrap();
    understudy(&lab, &["reload", "--socket", &lab.director_socket()]);
    wait_for_address(&lab, "client", "10.77.0.70", false);
    wait_for_address(&lab, "client", "10.77.0.73", true);
    show("a reload put one on and took one off");

    director.signal(Signal::SIGTERM);
    assert!(director.wait(SOON).success());
    for (address, stays) in [
        ("10.77.0.73", true),
        ("fd77::70", true),
        ("10.77.0.71", false),
        ("10.77.0.72", true),
        ("fd77::72", false),
    ] {
        assert_eq!(has(&lab, "client", address), stays, "{address}");
    }
}

#[test]
fn a_director_without_managed_addresses_touches_none() {
    let lab = Lab::new(WIRING, &[]);
    let managed = write_config(&lab, "", &[service("10.77.0.80:80", ON_CLIENT)]);
    let mut director = run_director(&lab, &managed);
    wait_for_address(&lab, "client", "10.77.0.80", true);
    director.kill_hard();

    let monitor = Monitor::start(&lab);
    lab.write_lone_director(&service("10.77.0.81:80", ""));
    director.restart();
    director.wait_for_log("director is ready", SOON);
    director.signal(Signal::SIGTERM);
    assert!(director.wait(SOON).success());
    lab.director.ip("address add 10.77.99.2/32 dev lo");
    wait_until("the monitor's last word", SOON, || {
        monitor.saw("10.77.99.2")
    });
    assert!(!monitor.saw("10.77.0.8"));
}
