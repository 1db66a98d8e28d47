use std::path::Path;

use super::*;
use crate::model::{
    AddressPlace, AddressPolicy, AnnounceOn, DriftPolicy, ForwardMethod, ManagedAddress,
    QuorumRule, ServiceKey, Tunnel, TunnelType,
};

const GOOD: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"

[provisioner]
address = "10.77.0.1"

[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
persistence_timeout = "300s"
check.http.status = "200-399"

[[virtual_service.real_server]]
address = "10.77.1.11:8080"
weight = 3
"#;

fn errors(text: &str) -> String {
    director::parse(Path::new("d.toml"), text)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_good_file_loads() {
    let d = director::parse(Path::new("d.toml"), GOOD).unwrap();
    let key: ServiceKey = "tcp/192.0.2.1:80".parse().unwrap();
    let s = &d.services[&key];
    assert_eq!(s.forward, ForwardMethod::Nat);
    assert_eq!(s.servers.len(), 1);
    assert_eq!(s.attrs.persistence.as_ref().unwrap().timeout_s, 300);
    assert_eq!(
        d.replacement.replace_after,
        std::time::Duration::from_secs(60)
    );
}

#[test]
fn every_mistake_has_its_place() {
    let text = GOOD
        .replace("10.77.1.11:8080", "10.77.1.300:80")
        .replace("wlc", "wl cc")
        .replace("weight = 3", "weight = -3");
    let found = errors(&text);
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines.len(), 3, "{found}");
    assert!(
        lines[0].starts_with("d.toml:11:13: \"wl cc\" is no scheduler's name"),
        "{found}"
    );
    assert!(
        lines[1].starts_with("d.toml:17:11: \"10.77.1.300:80\" is no address and port"),
        "{found}"
    );
    assert!(
        lines[2].starts_with("d.toml:18:10: a weight is 0 to 2147483647, not -3"),
        "{found}"
    );
}

#[test]
fn a_service_twice_names_both_places() {
    let again = "\n[[virtual_service]]\naddress = \"192.0.2.1:80\"\nscheduler = \"rr\"\nforward = \"nat\"\n";
    let found = errors(&format!("{GOOD}{again}"));
    assert!(found.starts_with("d.toml:21:11: virtual service tcp/192.0.2.1:80 stands here a second time, first in line 10"), "{found}");
}

#[test]
fn unknown_keys_are_errors() {
    let found = errors(&GOOD.replace("weight = 3", "wieght = 3"));
    assert!(
        found.starts_with("d.toml:18:1: unknown field `wieght`"),
        "{found}"
    );
}

#[test]
fn ports_that_only_nat_can_translate() {
    let found = errors(&GOOD.replace("\"nat\"", "\"dr\""));
    assert!(
        found.contains("only forward = \"nat\" translates ports"),
        "{found}"
    );
}

#[test]
fn a_provisioner_listens_elsewhere_than_on_loopback_only_with_tls() {
    let text = "[provisioner]\naddress = \"10.0.0.1\"\nlisten = \"10.0.0.1:9712\"\n";
    let found = provisioner::parse(Path::new("p.toml"), text)
        .unwrap_err()
        .to_string();
    assert!(
        found.starts_with("p.toml:3:10: directors on other hosts need mutual TLS"),
        "{found}"
    );
}

const FLEET: &str = r#"
[provisioner]
address = "10.0.0.1"
fleet_address = "10.0.0.100"
listen = "0.0.0.0:9712"
[provisioner.tls]
certificate = "/etc/understudy/tls/cert.pem"
key = "tls_key"
ca = "/etc/understudy/tls/ca.pem"
crl = "/etc/understudy/tls/crl.pem"
[[director]]
name = "lb1"
[[director]]
name = "lb2"
certificate = "LB2.example"
services = ["tcp/192.0.2.1:80", "fwmark/7"]
roles = ["web.shop.example"]
"#;

#[test]
fn a_provisioner_knows_each_director_by_a_name_in_its_certificate() {
    let good = provisioner::parse(Path::new("p.toml"), FLEET).unwrap();
    let texts = |a: Vec<std::net::IpAddr>| a.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(good.addresses()), ["10.0.0.1", "10.0.0.100"]);
    let certificates: Vec<_> = good.directors.iter().map(|g| &*g.certificate).collect();
    assert_eq!(certificates, ["lb1", "lb2.example"]);
    assert_eq!(good.directors[0].services, None);
    assert_eq!(good.directors[1].services.as_ref().unwrap().len(), 2);
    assert_eq!(good.directors[0].roles, None);
    let roles = good.directors[1].roles.as_ref().unwrap();
    assert_eq!(roles.iter().collect::<Vec<_>>(), ["web.shop.example"]);
    let wrong = |from: &str, to: &str| {
        let text = FLEET.replace(from, to);
        let found = provisioner::parse(Path::new("p.toml"), &text).unwrap_err();
        found.to_string()
    };
    for (from, to, says) in [
        (
            "\"lb2\"",
            "\"lb1\"",
            "p.toml:14:8: a director lb1 is above already",
        ),
        (
            "\"LB2.example\"",
            "\"LB1\"",
            "p.toml:15:15: the certificate of lb1 would be this one too",
        ),
        (
            "\"LB2.example\"",
            "\"*.example\"",
            "p.toml:15:15: certificate is one whole name",
        ),
        ("fwmark/7", "fwmark/0", "p.toml:16:"),
        (
            "\"web.shop.example\"",
            "\"\"",
            "p.toml:17:10: a role is the code",
        ),
        ("/etc/understudy/tls/ca.pem", "", "p.toml:6:1: ca is empty"),
        (
            "listen = \"0.0.0.0:9712\"",
            "",
            "[provisioner.tls] goes with",
        ),
        (
            "10.0.0.100",
            "fleet",
            "p.toml:4:17: \"fleet\" is no IP address",
        ),
    ] {
        let found = wrong(from, to);
        assert!(found.contains(says), "{from}: {found}");
    }
}

#[test]
fn a_director_names_all_provisioners_of_a_fleet() {
    let with = |section: &str| {
        let text = GOOD.replace("[provisioner]\n", &format!("[provisioner]\n{section}\n"));
        director::parse(Path::new("d.toml"), &text)
    };
    let tls = "tls = { certificate = \"c\", key = \"k\", ca = \"a\" }\n";
    let urls = "urls = [\"https://prov1.example:9712\", \"https://[2001:db8::1]:9712/\"]\n";
    let link = with(&format!("{urls}{tls}")).unwrap().provisioner.unwrap();
    let places: Vec<_> = link.at.iter().map(ToString::to_string).collect();
    assert_eq!(
        places,
        ["https://prov1.example:9712", "https://[2001:db8::1]:9712"]
    );
    assert!(link.tls.unwrap().crl.is_none());
    for (section, says) in [
        (
            urls.to_owned(),
            "name certificate, key and ca in [provisioner.tls]",
        ),
        (
            tls.to_owned(),
            "[provisioner.tls] goes with [provisioner] urls",
        ),
        (format!("urls = []\n{tls}"), "urls is empty"),
        (
            format!("urls = [\"http://p:1\"]\n{tls}"),
            "names no provisioner: write \"https://HOST:PORT\"",
        ),
        (
            format!("urls = [\"https://p\"]\n{tls}"),
            "names no provisioner",
        ),
        (
            format!("urls = [\"https://u@p:1\"]\n{tls}"),
            "names no provisioner",
        ),
        (
            format!("socket = \"/x\"\n{urls}{tls}"),
            "more than one of socket, tcp and urls",
        ),
        (
            "tcp = \"10.0.0.1:9712\"\n".to_owned(),
            "tcp must be a loopback address",
        ),
    ] {
        let found = with(&section).unwrap_err().to_string();
        assert!(found.contains(says), "{section}: {found}");
    }
}

#[test]
fn a_service_that_is_not_tcp_says_how_it_is_checked() {
    let udp = GOOD
        .replace("scheduler = ", "protocol = \"udp\"\nscheduler = ")
        .replace("check.http.status = \"200-399\"\n", "");
    let found = errors(&udp);
    assert!(
        found.contains("is not TCP: say which check tells its health"),
        "{found}"
    );
}

#[test]
fn a_path_that_no_request_can_carry_is_refused() {
    let found = errors(&GOOD.replace(
        "check.http.status",
        "check.http.path = \"/a<b\"\ncheck.http.status",
    ));
    assert!(found.contains("is no path of a URL"), "{found}");
}

fn one(text: &str) -> VirtualService {
    let mut d = director::parse(Path::new("d.toml"), text).unwrap_or_else(|e| panic!("{e}"));
    d.services.pop_first().unwrap().1
}

#[test]
fn any_scheduler_that_a_kernel_may_have_is_taken() {
    for name in ["wlc", "a_later-one1", "x", "fifteen_letters"] {
        let text = GOOD.replace("\"wlc\"", &format!("{name:?}"));
        assert_eq!(one(&text).attrs.scheduler.0, name);
    }
    for name in ["", "sixteen__letters", "WLC", "ip_vs.rr"] {
        let found = errors(&GOOD.replace("\"wlc\"", &format!("{name:?}")));
        assert!(found.contains("is no scheduler's name"), "{found}");
    }
}

#[test]
fn a_service_without_a_check_says_so() {
    let text = GOOD.replace("check.http.status = \"200-399\"", "check.none = {}");
    assert!(!one(&text).checks.any());
    let mark = "fwmark = 5\nscheduler = \"rr\"\nforward = \"dr\"\n";
    let any_port = format!(
        "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n[[virtual_service]]\n{mark}check.none = {{}}\nreal_server = [{{ address = \"10.0.0.1:0\" }}]\n"
    );
    assert_eq!(one(&any_port).servers.keys().next().unwrap().port, 0);
}

#[test]
fn a_quorum_is_one_that_can_be_lost_and_regained() {
    let with = |lines: &str| GOOD.replace("scheduler = ", &format!("{lines}\nscheduler = "));
    let usual = one(GOOD);
    assert_eq!(usual.quorum, QuorumRule::default());
    assert!(usual.sorry.is_empty());
    let all: u32 = usual.servers.values().map(|a| a.weight.get()).sum();
    let text = with(&format!(
        "quorum = {all}\nsorry_server = [{{ address = \"10.0.0.9:80\" }}]"
    ));
    let service = one(&text);
    assert_eq!(service.quorum.quorum, all);
    let (sorry, attrs) = service.sorry.first_key_value().unwrap();
    assert_eq!(attrs.weight.get(), 1);
    assert_eq!(service.checks_of(sorry).all[0].kind.label(), "tcp");
    for (lines, wrong) in [
        (format!("quorum = {}", all + 1), "together are at most"),
        ("quorum = 0".to_owned(), "quorum is 1 to"),
        (
            "quorum = 1\nhysteresis = 1".to_owned(),
            "hysteresis is below quorum",
        ),
        (
            "sorry_check = { tcp = {} }".to_owned(),
            "sorry_check needs a sorry_server",
        ),
        (
            "sorry_server = [{ address = \"10.0.0.9:80\", weight = 0 }]".to_owned(),
            "would take nobody",
        ),
        (
            "sorry_server = [{ address = \"10.0.0.9:80\" }, { address = \"10.0.0.9:80\" }]"
                .to_owned(),
            "stands a second time",
        ),
    ] {
        let found = errors(&with(&lines));
        assert!(found.contains(wrong), "{lines}: {found}");
    }
    let twice = usual.servers.keys().next().unwrap();
    let found = errors(&with(&format!(
        "sorry_server = [{{ address = \"{twice}\" }}]"
    )));
    assert!(found.contains("is a real server of"), "{found}");
}

#[test]
fn drift_is_said_for_all_services_or_for_one() {
    assert_eq!(one(GOOD).drift, DriftPolicy::Repair);
    let all = GOOD.replacen("name = ", "drift = \"alert\"\nname = ", 1);
    assert_eq!(one(&all).drift, DriftPolicy::Alert);
    let one_of_all = all.replace("scheduler = ", "drift = \"respect\"\nscheduler = ");
    assert_eq!(one(&one_of_all).drift, DriftPolicy::Respect);
}

#[test]
fn a_tunnel_is_what_ipvsadm_calls_it() {
    let tunnel = |keys: &str| {
        let text = GOOD
            .replace("\"nat\"", &format!("\"tun\"\ntunnel = {{ {keys} }}"))
            .replace(":8080", ":80");
        one(&text).servers.pop_first().unwrap().1.tunnel
    };
    let of = |kind, port, flags| Tunnel { kind, port, flags };
    assert_eq!(tunnel("type = \"ipip\""), Tunnel::default());
    assert_eq!(
        tunnel("type = \"gue\", port = 6080"),
        of(TunnelType::Gue, 6080, 0)
    );
    assert_eq!(
        tunnel("type = \"gue\", port = 6080, checksum = \"remote\""),
        of(TunnelType::Gue, 6080, Tunnel::REMOTE_CHECKSUM)
    );
    assert_eq!(
        tunnel("type = \"gre\", checksum = \"checksum\""),
        of(TunnelType::Gre, 0, Tunnel::CHECKSUM)
    );
}

#[test]
fn a_service_says_of_its_address_what_the_director_says_unless_it_says_otherwise() {
    let managed = GOOD.replacen(
        "[director]\n",
        "[director]\nmanage_addresses = true\naddresses = { interface = \"vip0\", create_dummy = true, announce_on = \"eth0\", shutdown = \"withdraw\", proto = 9 }\n",
        1,
    );
    let place = AddressPlace {
        interface: "vip0".to_owned(),
        prefix: 32,
        announce_on: AnnounceOn::Interface("eth0".to_owned()),
        create_dummy: true,
    };
    let wanted = ManagedAddress {
        place,
        quorum_lost: AddressPolicy::Keep,
        shutdown: AddressPolicy::Withdraw,
    };
    assert_eq!(one(&managed).address.as_ref(), Some(&wanted));
    let own = managed.replacen(
        "\"wlc\"",
        "\"wlc\"\naddresses = { interface = \"eth0\", prefix = 24, quorum_lost = \"withdraw\" }",
        1,
    );
    let place = AddressPlace {
        interface: "eth0".to_owned(),
        prefix: 24,
        // The interface that it would be announced on is its own.
        announce_on: AnnounceOn::Own,
        create_dummy: true,
    };
    let wanted = ManagedAddress {
        place,
        quorum_lost: AddressPolicy::Withdraw,
        shutdown: AddressPolicy::Withdraw,
    };
    assert_eq!(one(&own).address.as_ref(), Some(&wanted));
    let off = managed.replacen("\"wlc\"", "\"wlc\"\nmanage_addresses = false", 1);
    assert_eq!(one(&off).address, None);
    assert_eq!(one(GOOD).address, None, "nobody said so");

    let director = director::parse(Path::new("d.toml"), &managed).unwrap();
    assert_eq!(director.address_proto, 9);
    let other = director::parse(
        Path::new("d.toml"),
        &managed.replace("proto = 9", "proto = 8"),
    );
    assert_eq!(
        director.fixed(&other.unwrap()),
        ["[director.addresses] proto"]
    );
    let shadow = director.shadowed();
    assert!(shadow.services.values().all(|s| s.address.is_none()));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(at in 0usize..400, with in "\\PC{0,8}") {
        let at = (0..=at.min(GOOD.len())).rev().find(|i| GOOD.is_char_boundary(*i)).unwrap();
        drop(director::parse(Path::new("d.toml"), &format!("{}{with}{}", &GOOD[..at], &GOOD[at..])));
    }
}
