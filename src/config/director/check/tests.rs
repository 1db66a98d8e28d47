use std::path::Path;

use super::*;
use crate::{
    config::{VirtualService, director::parse},
    model::Damping,
};

/// A service with these lines in it.
fn text(lines: &str) -> String {
    format!(
        "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n[[virtual_service]]\naddress = \"192.0.2.1:80\"\nscheduler = \"wlc\"\nforward = \"dr\"\n{lines}\n"
    )
}

fn service(lines: &str) -> VirtualService {
    let config = parse(Path::new("d.toml"), &text(lines));
    let mut config = config.unwrap_or_else(|e| panic!("{e}"));
    config.services.pop_first().unwrap().1
}

fn kind(check: &str) -> CheckKind {
    let mut all = service(&format!("check = {{ {check} }}")).checks.all;
    assert_eq!(all.len(), 1);
    all.remove(0).kind.clone()
}

fn errors(lines: &str) -> String {
    match parse(Path::new("d.toml"), &text(lines)) {
        Ok(_) => panic!("{lines} is taken"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn each_kind_has_its_options() {
    let tls = |sni: Option<&str>| TlsOptions {
        sni: sni.map(str::to_owned),
        verify: Verify::System,
        client: None,
        expiry_warning: EXPIRY_WARNING,
    };
    assert_eq!(
        kind("tcp = { send = \"PING\\r\\n\", expect = \"PONG\", hold = true }"),
        CheckKind::Tcp(TcpCheck {
            send: b"PING\r\n".to_vec(),
            expect: Some(Expect::Text("PONG".into())),
            hold: true,
        })
    );
    assert_eq!(
        kind(
            "https = { path = \"/up\", host = \"shop.example:8443\", method = \"HEAD\", headers = { X-Probe = \"1\" }, credentials = \"web\", status = \"200-299, 401\", version = \"2\" }"
        ),
        CheckKind::Http(Box::new(HttpCheck {
            path: "/up".into(),
            host: Some("shop.example:8443".into()),
            method: "HEAD".into(),
            headers: [("x-probe".to_owned(), "1".to_owned())].into(),
            credentials: Some("web".into()),
            status: vec![
                StatusRange { from: 200, to: 299 },
                StatusRange { from: 401, to: 401 }
            ],
            body: None,
            version: HttpVersion::Two,
            tls: Some(tls(Some("shop.example"))),
        }))
    );
    assert_eq!(
        kind(
            "tls = { sni = \"a.example\", ca = \"/etc/ca.pem\", certificate = \"/etc/c.pem\", key = \"/etc/k.pem\", expiry_warning = \"24h\" }"
        ),
        CheckKind::Tls(TlsOptions {
            verify: Verify::Ca("/etc/ca.pem".into()),
            client: Some(("/etc/c.pem".into(), "/etc/k.pem".into())),
            expiry_warning: Duration::from_secs(24 * 3600),
            ..tls(Some("a.example"))
        })
    );
    assert_eq!(
        kind("smtp = { ehlo = \"lb1.example\", starttls = { verify = false } }"),
        CheckKind::Smtp(SmtpCheck {
            ehlo: Some("lb1.example".into()),
            tls: Some(SmtpTls::Starttls(TlsOptions {
                verify: Verify::Off,
                ..tls(None)
            })),
        })
    );
    assert_eq!(
        kind(
            "dns = { name = \"www.example\", type = \"aaaa\", tcp = true, answer = \"2001:db8::1\" }"
        ),
        CheckKind::Dns(DnsCheck {
            name: "www.example".into(),
            record: DnsType::Aaaa,
            tcp: true,
            answer: Some("2001:db8::1".into()),
        })
    );
    assert_eq!(
        kind("udp = { send_hex = \"00ff\", expect_hex = \"0?ff\" }"),
        CheckKind::Udp(UdpCheck {
            send: vec![0, 0xff],
            expect: Some(Expect::Bytes(vec![(0, 0xf0), (0xff, 0xff)])),
            require_reply: true,
        })
    );
    assert_eq!(kind("icmp = {}"), CheckKind::Icmp(IcmpCheck { size: 56 }));
    let login = LoginCheck {
        credentials: Some("/etc/db".into()),
        database: Some("shop".into()),
        tls: None,
    };
    let options = "{ credentials = \"/etc/db\", database = \"shop\" }";
    assert_eq!(
        kind(&format!("postgres = {options}")),
        CheckKind::Postgres(login.clone())
    );
    assert_eq!(
        kind(&format!("mysql = {options}")),
        CheckKind::Mysql(login.clone())
    );
    assert_eq!(kind(&format!("redis = {options}")), CheckKind::Redis(login));
    assert_eq!(
        kind("grpc = { service = \"shop.Cart\" }"),
        CheckKind::Grpc(GrpcCheck {
            service: "shop.Cart".into(),
            host: None,
            tls: None,
        })
    );
    assert_eq!(
        kind("file = { path = \"/run/weights/{address}\" }"),
        CheckKind::FromFile(FileCheck {
            path: "/run/weights/{address}".into(),
        })
    );
    assert_eq!(
        kind("external = { socket = \"/run/helper.sock\", name = \"ldap\" }"),
        CheckKind::External(ExternalCheck {
            socket: "/run/helper.sock".into(),
            name: "ldap".into(),
        })
    );
    assert_eq!(kind("agent = { send = \"web1\\n\" }").label(), "agent");
    assert_eq!(kind("interval = \"2s\""), CheckKind::default());
}

#[test]
fn times_follow_the_interval_where_they_are_not_named() {
    let timing = |lines: &str| service(&format!("check = {{ {lines} }}")).checks.all[0].timing;
    let ms = Duration::from_millis;
    let usual = timing("interval = \"2s\"");
    assert_eq!(usual.fast_interval, ms(200));
    assert_eq!((usual.down_interval, usual.timeout), (ms(2000), ms(2000)));
    assert_eq!(
        timing("interval = \"100ms\"").fast_interval,
        ms(50),
        "not below 50 ms"
    );
    let named = timing(
        "interval = \"2s\", fast_interval = \"20ms\", down_interval = \"10s\", timeout = \"1s\", rise = 3, fall = 4",
    );
    assert_eq!(named.fast_interval, ms(20));
    assert_eq!(named.down_interval, ms(10_000));
    assert_eq!((named.rise, named.fall), (3, 4));
}

#[test]
fn a_check_leaves_this_host_as_it_says() {
    let check = "tcp = {}, connect_address = \"10.0.9.9\", connect_port = 8080, source = \"10.77.0.2\", interface = \"eth1\", fwmark = 7, dscp = 46";
    let via = service(&format!("check = {{ {check} }}")).checks.all[0]
        .via
        .clone();
    assert_eq!(
        via,
        Via {
            address: Some([10, 0, 9, 9].into()),
            port: Some(8080),
            source: Some([10, 77, 0, 2].into()),
            interface: Some("eth1".into()),
            mark: Some(7),
            dscp: Some(46),
            through: false,
        }
    );
}

#[test]
fn several_checks_say_how_many_have_to_be_passed() {
    let three = "[[virtual_service.check]]\ntcp = {}\n[[virtual_service.check]]\nicmp = {}\n[[virtual_service.check]]\nhttp = {}\n";
    let need = |value: &str| {
        let checks = service(&format!("checks_needed = {value}\n{three}")).checks;
        assert_eq!(checks.all.len(), 3);
        checks.need
    };
    assert_eq!(service(three).checks.need, Need::All);
    assert_eq!(need("\"all\""), Need::All);
    assert_eq!(need("\"any\""), Need::AtLeast(1));
    assert_eq!(need("2"), Need::AtLeast(2));
    for value in ["0", "4", "\"most\""] {
        let found = errors(&format!("checks_needed = {value}\n{three}"));
        assert!(
            found.contains("d.toml:8:17: checks_needed is \"all\", \"any\" or how many of the 3"),
            "{found}"
        );
    }
}

#[test]
fn damping_is_on_unless_it_is_switched_off() {
    assert_eq!(service("").damping, Damping::default());
    let off = service("damping = { half_life = \"0s\" }").damping;
    assert!(!off.is_on());
    let found = errors("damping = { suppress = 17, reuse = 2 }");
    assert!(found.contains("ends at 8 times reuse"), "{found}");
    let found = errors("damping = { suppress = 2, reuse = 3 }");
    assert!(found.contains("reuse is above suppress"), "{found}");
}

#[test]
fn a_check_through_the_virtual_address_has_an_own_source() {
    let through = |more: &str| format!("check = {{ tcp = {{}}, through = \"vip\"{more} }}");
    let via = service(&through("")).checks.all[0].via.clone();
    assert!(via.through);
    assert_eq!(via.source, Some([10, 77, 0, 1].into()));
    for (more, words) in [
        (", source = \"192.0.2.1\"", "cannot come from it"),
        (", source = \"fd77::1\"", "of another family"),
        (", fwmark = 5", "has a mark of its own"),
    ] {
        let found = errors(&through(more));
        assert!(found.contains(words), "{found}");
    }
    for (lines, words) in [
        (
            "check = { icmp = {}, through = \"vip\" }",
            "icmp does not go through IPVS",
        ),
        (
            "check = { tcp = {}, through = \"tunnel\" }",
            "write \"vip\"",
        ),
    ] {
        let found = errors(lines);
        assert!(found.contains(words), "{found}");
    }
    let nat = text(&through("")).replace("\"dr\"", "\"nat\"");
    let found = parse(Path::new("d.toml"), &nat).unwrap_err().to_string();
    assert!(
        found.contains("a server never sees the virtual address"),
        "{found}"
    );
}

#[test]
fn marks_for_probes_are_nobody_elses() {
    let text = "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\nprobe_marks = \"100-199\"\n[[virtual_service]]\nfwmark = 150\nscheduler = \"rr\"\nforward = \"dr\"\n";
    let found = parse(Path::new("d.toml"), text).unwrap_err().to_string();
    assert!(
        found.contains("d.toml:6:10: mark 150 lies in probe_marks, 0x64-0xc7"),
        "{found}"
    );
}

#[test]
fn every_mistake_names_its_place_and_the_remedy() {
    for (check, place, words) in [
        (
            "tcp = {}, http = {}",
            "8:9",
            "is tcp and http at once: write [[virtual_service.check]] for each",
        ),
        (
            "tcp = { send = \"a\", send_hex = \"00\" }",
            "8:42",
            "keep one",
        ),
        (
            "tcp = { expect = \"\" }",
            "8:28",
            "nothing is in every answer",
        ),
        (
            "tcp = { expect = \"a\", expect_regex = \"b\" }",
            "8:48",
            "keep one",
        ),
        (
            "tcp = { expect_regex = \"a(\" }",
            "8:34",
            "is no regular expression: unclosed group",
        ),
        ("tcp = { expect_hex = \"0\" }", "8:32", "write \"0d0a\""),
        (
            "tcp = { hold = true }, fall = 1",
            "8:41",
            "fall is at least 2",
        ),
        (
            "interval = \"1s\", fast_interval = \"2s\"",
            "8:44",
            "longer than interval",
        ),
        (
            "http = { tls = {} }",
            "8:26",
            "write [virtual_service.check.https]",
        ),
        (
            "http = { method = \"HEAD\", body = \"x\" }",
            "8:29",
            "an answer to HEAD has no body",
        ),
        (
            "http = { headers = { Host = \"x\" } }",
            "8:32",
            "named by host",
        ),
        (
            "http = { headers = { Authorization = \"Basic x\" } }",
            "8:32",
            "belongs in the file that credentials names",
        ),
        ("http = { status = \"200-99\" }", "8:29", "200-299, 401"),
        (
            "http = { version = \"3\" }",
            "8:30",
            "write \"1.1\" or \"2\"",
        ),
        (
            "http = { body_sha256 = \"ab\" }",
            "8:34",
            "64 hexadecimal digits",
        ),
        ("tls = { verify = false, ca = \"/ca\" }", "8:40", "keep one"),
        ("tls = { certificate = \"/c\" }", "8:33", "name both"),
        ("tls = { ca = \"ca.pem\" }", "8:24", "is no absolute path"),
        ("smtp = { tls = {}, starttls = {} }", "8:41", "keep one"),
        ("dns = { type = \"Z\" }", "8:26", "write one of A, AAAA"),
        ("dns = { name = \"a..b\" }", "8:26", "is no domain name"),
        (
            "mysql = { database = \"x\" }",
            "8:32",
            "name credentials, too",
        ),
        (
            "postgres = { credentials = \"a/b\" }",
            "8:38",
            "neither an absolute path nor the name of a systemd credential",
        ),
        ("file = { path = \"x\" }", "8:27", "is no absolute path"),
        (
            "agent = { expect = \"up\" }",
            "8:30",
            "an agent's words are known",
        ),
        ("agent = { hold = true }", "8:28", "without hold"),
        (
            "tcp = {}, interface = \"a/b\"",
            "8:33",
            "is no name of an interface",
        ),
        ("tcp = {}, dscp = 64", "8:28", "dscp is 0 to 63"),
        ("icmp = { size = 9000 }", "8:27", "size is 0 to 1232"),
    ] {
        let found = errors(&format!("check = {{ {check} }}"));
        assert!(
            found.starts_with(&format!("d.toml:{place}: ")),
            "{check}: {found}"
        );
        assert!(found.contains(words), "{check}: {found}");
        assert_eq!(found.lines().count(), 1, "{check}: {found}");
    }
    let found = errors("[[virtual_service.check]]\ntcp = {}\n[[virtual_service.check]]\nnone = {}");
    assert!(found.contains("has a check and none"), "{found}");
}

#[test]
fn a_host_is_one_and_only_names_are_sent_by_tls() {
    let sni = |host: &str| match kind(&format!("https = {{ host = {host:?} }}")) {
        CheckKind::Http(http) => http.tls.unwrap().sni,
        other => panic!("{other:?}"),
    };
    assert_eq!(sni("shop.example:8443").as_deref(), Some("shop.example"));
    assert_eq!(sni("192.0.2.1:8443"), None);
    assert_eq!(sni("[2001:db8::1]:8443"), None);
    for host in ["a/b", "a b", "user@a", "2001:db8::1"] {
        let found = errors(&format!("check = {{ http = {{ host = {host:?} }} }}"));
        assert!(found.contains("is no host name"), "{host}: {found}");
    }
    for name in ["192.0.2.1", "a:443", "a/b"] {
        let found = errors(&format!("check = {{ tls = {{ sni = {name:?} }} }}"));
        assert!(found.contains("is no server name"), "{name}: {found}");
    }
}

#[test]
fn what_cannot_be_together_on_the_way_out_is_told() {
    let found = errors("check = { tcp = {}, source = \"fd77::1\" }");
    assert!(found.contains("source is of another family"), "{found}");
    let found = errors("check = { tcp = {}, fwmark = 0x7e000005 }");
    assert!(found.contains("lies in probe_marks"), "{found}");
}
