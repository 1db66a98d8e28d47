use std::path::Path;

use super::*;
use crate::model::{ForwardMethod, ServiceKey};

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
        .replace("wlc", "wlcc")
        .replace("weight = 3", "weight = -3");
    let found = errors(&text);
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines.len(), 3, "{found}");
    assert!(
        lines[0].starts_with("d.toml:11:13: unknown scheduler \"wlcc\""),
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
fn a_provisioner_listens_on_loopback_only() {
    let text = "[provisioner]\naddress = \"10.0.0.1\"\nlisten = \"10.0.0.1:9712\"\n";
    let found = provisioner::parse(Path::new("p.toml"), text)
        .unwrap_err()
        .to_string();
    assert!(
        found.starts_with("p.toml:3:10: listen must be a loopback address"),
        "{found}"
    );
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

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(at in 0usize..400, with in "\\PC{0,8}") {
        let at = (0..=at.min(GOOD.len())).rev().find(|i| GOOD.is_char_boundary(*i)).unwrap();
        drop(director::parse(Path::new("d.toml"), &format!("{}{with}{}", &GOOD[..at], &GOOD[at..])));
    }
}
