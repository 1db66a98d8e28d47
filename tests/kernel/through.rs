//! Checks that travel to a real server as a client's packets do: through IPVS, to the virtual address.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use understudy::director::status::ServerStatus;

use crate::lab::process::Process;
use crate::lab::server::{Server, Tree};
use crate::lab::{Forward, Lab, VIP4, VIP6, Wiring, wait_for, wait_until};
use crate::scene::{SOON, run_director, status, table, understudy, wait_for_table};

/// What lets the director hear servers answer it from its own virtual address.
const HEARS: &str =
    "\"net.ipv4.conf.server.accept_local\" = 1\n\"net.ipv4.conf.server.rp_filter\" = 0";

const DIRECT: Wiring = Wiring {
    v4: Forward::Direct,
    v6: Forward::Direct,
};

/// A service of both servers for each virtual address, checked directly and through that address;
/// for tunnels one over UDP as well.
fn start<'a>(lab: &'a Lab, forward: &str, kernel: &str) -> Process<'a> {
    let mut text = format!("resync = \"1s\"\n[kernel]\n{kernel}\n");
    let mut all = vec![
        (
            format!("{VIP4}:80"),
            "10.77.1.1",
            ["10.77.1.11:80", "10.77.1.12:80"],
            "tcp = {}",
        ),
        (
            format!("[{VIP6}]:80"),
            "fd77:1::1",
            ["[fd77:1::11]:80", "[fd77:1::12]:80"],
            "tcp = {}",
        ),
    ];
    if forward == "tun" {
        all.push((
            format!("{VIP4}:7"),
            "10.77.1.1",
            ["10.77.1.11:7", "10.77.1.12:7"],
            "udp = { send = \"?\", expect = \"?\" }",
        ));
    }
    for (vip, source, [one, two], check) in all {
        let protocol = &check[..3];
        text += &format!(
            r#"
[[virtual_service]]
address = "{vip}"
protocol = "{protocol}"
scheduler = "rr"
forward = "{forward}"
real_server = [{{ address = "{one}" }}, {{ address = "{two}" }}]
damping = {{ half_life = "0s" }}
[[virtual_service.check]]
interval = "300ms"
timeout = "2s"
{check}
[[virtual_service.check]]
interval = "300ms"
timeout = "2s"
{check}
through = "vip"
source = "{source}"
"#
        );
    }
    run_director(lab, &lab.write_lone_director(&text))
}

/// How one server stands in the service of this virtual address.
fn server(lab: &Lab, vip: &str, server: &str) -> ServerStatus {
    let status = status(lab);
    let service = status.services.iter();
    let mut service = service.filter(|s| s.service.to_string().contains(vip));
    let mut servers = service.next().unwrap().servers.clone().into_iter();
    servers.find(|s| s.server.contains(server)).unwrap()
}

fn wait_for_server(lab: &Lab, vip: &str, name: &str, health: &str) -> ServerStatus {
    wait_for(health, SOON, Duration::from_millis(300), || {
        let server = server(lab, vip, name);
        // The verdict is there a moment before the kernel has it.
        let done = server.weight.is_some() == (health == "up");
        match server.health == health && done {
            true => Ok(server),
            false => Err(format!("{server:?}")),
        }
    })
}

fn taken_out(director: &Process<'_>) -> usize {
    director.log().matches("it is taken out").count()
}

/// The table of the visible services has so many destinations.
fn visible(lab: &Lab) -> usize {
    table(lab).len()
}

#[test]
fn a_direct_server_without_the_virtual_address_is_taken_out_though_it_answers() {
    let lab = Lab::new(DIRECT, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let mut director = start(&lab, "dr", HEARS);
    wait_for_table(&lab, "all servers", SOON, |t| t.len() == 4);

    let config = lab.dir().join("director.toml");
    let args = ["check", "10.77.1.11", "--config", config.to_str().unwrap()];
    let by_hand = understudy(&lab, &args);
    assert!(
        by_hand.contains("tcp through the virtual address 192.0.2.1:80"),
        "{by_hand}"
    );
    assert_eq!(by_hand.matches("passed after").count(), 2, "{by_hand}");

    // Hidden services are ours alone to see.
    let witness = lab.ipvsadm("-Sn");
    assert_eq!(witness.matches("-A -f ").count(), 4, "{witness}");
    let lock = lab.director_socket().replace(".sock", ".lock");
    let list = |more: &[&str]| {
        let args = [&["ipvs", "list", "--lock", &lock], more].concat();
        understudy(&lab, &args).matches("fwmark").count()
    };
    assert_eq!((list(&[]), list(&["--hidden"])), (0, 4));
    let saved = understudy(&lab, &["ipvs", "save", "--lock", &lock]);
    assert!(!saved.contains("-f "), "{saved}");
    assert_eq!(status(&lab).services.len(), 2);

    for (vip, prefix, name) in [(VIP4, 32, "10.77.1.11"), (VIP6, 128, "fd77:1::11")] {
        let web1 = lab.server("web1");
        web1.sh(&format!("ip addr del {vip}/{prefix} dev lo"));
        let down = wait_for_server(&lab, vip, name, "down");
        let reason = down.reason.unwrap();
        assert!(
            reason.contains("answers on its own address, not for the virtual one"),
            "{reason}"
        );
        assert_eq!(down.weight, None, "{vip}: out of IPVS");
        let found: Vec<_> = down.checks.iter().map(|c| c.health.as_str()).collect();
        assert_eq!(found, ["up", "down"]);
        assert_eq!(visible(&lab), 3);
        web1.sh(&format!("ip addr add {vip}/{prefix} dev lo"));
        wait_for_server(&lab, vip, name, "up");
    }
    wait_for_table(&lab, "all servers again", SOON, |t| t.len() == 4);

    let before = taken_out(&director);
    // Without its hidden service a probe reaches the director itself, and blames nobody.
    for line in witness.lines().filter(|l| l.starts_with("-A -f ")) {
        let mark = line.split_whitespace().nth(2).unwrap();
        let six = if line.contains("-6") { "-6" } else { "" };
        lab.ipvsadm(&format!("-D -f {mark} {six}"));
    }
    wait_until("hidden services again", SOON, || {
        lab.ipvsadm("-Sn").matches("-a -f ").count() == 4
    });
    assert_eq!(taken_out(&director), before, "nobody was blamed");
    assert_eq!(visible(&lab), 4);
    director.signal(Signal::SIGTERM);
    director.wait(SOON);
    assert_eq!(
        lab.ipvsadm("-Sn").matches("-A -f ").count(),
        4,
        "IPVS stays as it is"
    );
}

/// Sends every datagram back from the address that it came to.
fn echo(server: &Server) {
    for address in [server.address4(), VIP4.to_owned()] {
        let socket = server
            .netns
            .run(|| UdpSocket::bind((address.as_str(), 7)).unwrap());
        thread::spawn(move || {
            let mut datagram = [0; 64];
            // Ends with the process.
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                drop(socket.send_to(&datagram[..length], from));
            }
        });
    }
}

#[test]
fn a_tunnel_server_that_does_not_unpack_is_taken_out_though_it_answers() {
    let lab = Lab::new(DIRECT, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    for server in lab.servers() {
        // Each takes in what no tunnel of its own is for.
        server.sh("ip link set tunl0 up && ip link set ip6tnl0 up");
        server.sh("sysctl -qw net.ipv4.conf.tunl0.rp_filter=0 net.ipv4.conf.all.rp_filter=0");
        echo(server);
    }
    let _director = start(&lab, "tun", HEARS);
    // Of two virtual addresses and one service more.
    wait_for_table(&lab, "all servers", SOON, |t| t.len() == 6);
    for (device, services, name) in [
        (
            "tunl0",
            &["tcp/192.0.2.1:80", "udp/192.0.2.1:7"][..],
            "10.77.1.11",
        ),
        ("ip6tnl0", &["tcp/[2001:db8::1]:80"][..], "fd77:1::11"),
    ] {
        let web1 = lab.server("web1");
        web1.sh(&format!("ip link set {device} down"));
        for service in services {
            let down = wait_for_server(&lab, service, name, "down");
            let reason = down.reason.unwrap();
            assert!(reason.contains("does it unpack the tunnel"), "{reason}");
            let found: Vec<_> = down.checks.iter().map(|c| c.health.as_str()).collect();
            assert_eq!(found, ["up", "down"]);
        }
        assert_eq!(visible(&lab), 6 - services.len());
        web1.sh(&format!("ip link set {device} up"));
        for service in services {
            wait_for_server(&lab, service, name, "up");
        }
    }
    wait_for_table(&lab, "all servers again", SOON, |t| t.len() == 6);
}

#[test]
fn a_director_that_drops_the_answers_says_so_and_what_to_do() {
    let lab = Lab::new(DIRECT, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let _director = start(&lab, "dr", "\"net.ipv4.conf.server.accept_local\" = 0");
    wait_for("a warning", SOON, Duration::from_millis(300), || {
        let warnings = status(&lab).warnings;
        let says = |w: &String| {
            w.contains("net.ipv4.conf.server.accept_local is 0")
                && w.contains("under [kernel] write")
        };
        match warnings.iter().any(says) {
            true => Ok(()),
            false => Err(format!("{warnings:#?}")),
        }
    });
    let down = wait_for_server(&lab, VIP4, "10.77.1.11", "down");
    assert!(down.reason.unwrap().contains("no connection in time"));
}
