//! Each rule both ways: what brings the finding up, and what lets it be.

use std::path::Path;

use super::*;
use crate::config::director::parse;

/// One service, `line`s standing in it, and the settings that are declared.
fn config(address: &str, forward: &str, server: &str, lines: &str) -> Director {
    let text = format!(
        r#"[director]
name = "lb1"
address = "10.77.0.1"
[[virtual_service]]
address = "{address}"
scheduler = "wlc"
forward = "{forward}"
{lines}
[virtual_service.check.tcp]
[[virtual_service.real_server]]
{server}
"#
    );
    parse(Path::new("d.toml"), &text).unwrap()
}

fn plain(forward: &str) -> Director {
    config("192.0.2.1:80", forward, "address = \"10.0.0.1:80\"", "")
}

fn address(addr: &str, prefix: u8, interface: &str) -> HostAddress {
    HostAddress {
        addr: addr.parse().unwrap(),
        prefix,
        index: 1,
        interface: interface.to_owned(),
    }
}

/// A host on which nothing is amiss, but for these settings.
fn host(settings: &[(&str, &str)]) -> Facts {
    let usual = [
        (IP_FORWARD, "1"),
        (FORWARDING6, "1"),
        (EXPIRE_NODEST, "1"),
        (EXPIRE_QUIESCENT, "1"),
        (REUSE, "1"),
        (SYNC_PERSIST, "0"),
        (SLOPPY_TCP, "0"),
    ];
    let all = usual.iter().chain(settings);
    Facts {
        settings: all
            .map(|(n, v)| (n.parse().unwrap(), SysctlValue::of(v)))
            .collect(),
        addresses: Some(
            ["192.0.2.1", "2001:db8::1"]
                .map(|a| address(a, 128, "lo"))
                .into(),
        ),
        ..Facts::default()
    }
}

/// The one finding, with all these words in it.
fn assert_found(config: &Director, facts: &Facts, words: &[&str]) {
    let found = findings(config, facts);
    let [one] = found.as_slice() else {
        panic!("not one: {found:?}");
    };
    for word in words {
        assert!(one.contains(word), "no {word:?} in {one}");
    }
}

fn assert_none(config: &Director, facts: &Facts) {
    assert_eq!(findings(config, facts), [""; 0]);
}

#[test]
fn nat_needs_forwarding_in_its_servers_family() {
    let off = [(IP_FORWARD, "0")];
    assert_found(
        &plain("nat"),
        &host(&off),
        &[
            "net.ipv4.ip_forward is 0",
            "tcp/192.0.2.1:80",
            "under [kernel] write: \"net.ipv4.ip_forward\" = 1",
        ],
    );
    assert_none(&plain("nat"), &host(&[]));
    assert_none(&plain("nat"), &host(&[(FORWARDING6, "0")]));
    // Answers of these do not come through the director.
    assert_none(&plain("dr"), &host(&off));
    assert_none(&plain("tun"), &host(&off));
    let six = config("[2001:db8::1]:80", "nat", "address = \"[fd00::1]:80\"", "");
    assert_found(
        &six,
        &host(&[(FORWARDING6, "0")]),
        &["net.ipv6.conf.all.forwarding is 0"],
    );
    assert_none(&six, &host(&off));
}

#[test]
fn an_interface_that_forwards_by_itself_is_enough_for_ipv4() {
    let of = |interface: &str| {
        let name = format!("net.ipv4.conf.{interface}.forwarding");
        host(&[(IP_FORWARD, "0"), (name.as_str(), "1")])
    };
    assert_none(&plain("nat"), &of("server"));
    assert_found(&plain("nat"), &of("default"), &[IP_FORWARD]);
}

#[test]
fn a_nat_server_on_the_director_itself_needs_no_forwarding() {
    let mut facts = host(&[(IP_FORWARD, "0")]);
    let addresses = facts.addresses.as_mut().unwrap();
    addresses.push(address("10.0.0.1", 24, "eth0"));
    assert_none(&plain("nat"), &facts);
}

#[test]
fn connections_of_a_removed_server_are_to_end() {
    let off = host(&[(EXPIRE_NODEST, "0")]);
    let words = [
        "net.ipv4.vs.expire_nodest_conn is 0",
        "hang",
        "under [kernel] write: \"net.ipv4.vs.expire_nodest_conn\" = 1",
    ];
    for forward in ["nat", "dr", "tun"] {
        assert_found(&plain(forward), &off, &words);
        assert_none(&plain(forward), &host(&[]));
    }
    let mut nobody = plain("nat");
    nobody.services.clear();
    assert_none(&nobody, &off);
}

#[test]
fn persistent_clients_of_a_quiesced_server() {
    let off = host(&[(EXPIRE_QUIESCENT, "0")]);
    let persistent = "persistence_timeout = \"300s\"";
    let quiesced = "address = \"10.0.0.1:80\"\nweight = 0";
    let both = config("192.0.2.1:80", "dr", quiesced, persistent);
    assert_found(&both, &off, &["expire_quiescent_template is 0", "weight 0"]);
    assert_none(&both, &host(&[]));
    assert_none(&config("192.0.2.1:80", "dr", quiesced, ""), &off);
    let full = "address = \"10.0.0.1:80\"";
    assert_none(&config("192.0.2.1:80", "dr", full, persistent), &off);
}

#[test]
fn a_setting_that_contradicts_what_becomes_of_persistent_clients() {
    let full = "address = \"10.0.0.1:80\"";
    let of = |word| {
        let lines = format!("persistence_timeout = \"300s\"\npersistence_on_failure = \"{word}\"");
        config("192.0.2.1:80", "dr", full, &lines)
    };
    let (on, off) = (host(&[]), host(&[(EXPIRE_QUIESCENT, "0")]));
    assert_found(&of("keep"), &on, &["template is 1", "\"keep\""]);
    assert_none(&of("keep"), &off);
    assert_found(&of("cut"), &off, &["template is 0", "\"cut\""]);
    assert_none(&of("cut"), &on);
    // As the director itself will have it.
    assert_none(&of("keep"), &on.as_declared(&of("keep")));
    let quiesced = "address = \"10.0.0.1:80\"\nweight = 0";
    let lines = "persistence_timeout = \"300s\"\npersistence_on_failure = \"keep\"";
    assert_none(&config("192.0.2.1:80", "dr", quiesced, lines), &off);
}

#[test]
fn reused_ports_are_to_be_scheduled_anew() {
    let off = host(&[(REUSE, "0")]);
    let words = ["net.ipv4.vs.conn_reuse_mode is 0", "conn_reuse_mode\" = 1"];
    assert_found(&plain("dr"), &off, &words);
    assert!(!findings(&plain("dr"), &off)[0].contains("no answer"));
    assert_none(&plain("dr"), &host(&[(REUSE, "2")]));
    let udp = "protocol = \"udp\"";
    let full = "address = \"10.0.0.1:80\"";
    assert_none(&config("192.0.2.1:80", "dr", full, udp), &off);
    // With connections of removed servers kept, they are lost as well.
    let found = findings(&plain("dr"), &host(&[(REUSE, "0"), (EXPIRE_NODEST, "0")]));
    assert!(found.iter().any(|f| f.contains("no answer")), "{found:?}");
}

#[test]
fn templates_without_connections_want_a_sloppy_takeover() {
    let on = host(&[(SYNC_PERSIST, "1")]);
    let full = "address = \"10.0.0.1:80\"";
    let persistent = "persistence_timeout = \"300s\"";
    let service = config("192.0.2.1:80", "dr", full, persistent);
    assert_found(&service, &on, &["sloppy_tcp is 0", "sloppy_tcp\" = 1"]);
    assert_none(&plain("dr"), &on);
    assert_none(&service, &host(&[]));
    assert_none(&service, &host(&[(SYNC_PERSIST, "1"), (SLOPPY_TCP, "1")]));
}

#[test]
fn modules_that_the_kernel_cannot_load() {
    let mut facts = host(&[]);
    facts.no_schedulers.insert(Scheduler("wlc".into()));
    assert_found(
        &plain("dr"),
        &facts,
        &["no scheduler wlc", "modprobe ip_vs_wlc", "tcp/192.0.2.1:80"],
    );
    facts.no_schedulers = [Scheduler("rr".into())].into();
    assert_none(&plain("dr"), &facts);
    facts.no_engines.insert("sip".into());
    assert_none(&plain("dr"), &facts);
    let sip = config(
        "192.0.2.1:5060",
        "dr",
        "address = \"10.0.0.1:5060\"",
        "persistence_timeout = \"300s\"\npersistence_engine = \"sip\"",
    );
    assert_found(
        &sip,
        &facts,
        &["no persistence engine sip", "modprobe ip_vs_pe_sip"],
    );
}

#[test]
fn an_address_that_nobody_has_is_named_once() {
    let mut two = plain("dr");
    let again = config("192.0.2.1:81", "dr", "address = \"10.0.0.1:81\"", "");
    two.services.extend(again.services);
    let mut facts = host(&[]);
    assert_none(&two, &facts);
    facts.addresses = Some(Vec::new());
    assert_found(
        &two,
        &facts,
        &[
            "no interface of this host has the virtual address 192.0.2.1",
            "tcp/192.0.2.1:80 and 1 more",
            "ip address add 192.0.2.1/32 dev lo",
        ],
    );
    let six = config("[2001:db8::7]:80", "dr", "address = \"[fd00::1]:80\"", "");
    assert_found(&six, &facts, &["2001:db8::7/128"]);
    // Not read is not missing.
    facts.addresses = None;
    assert_none(&two, &facts);
}

#[test]
fn answers_to_checks_through_the_virtual_address_have_to_come_in() {
    let text = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "dr"
check = { tcp = {}, through = "vip" }
real_server = [{ address = "10.0.0.1:80" }]
"#;
    let config = parse(Path::new("d.toml"), text).unwrap();
    let facts = |accept: [&str; 2], rp: [&str; 2]| {
        let mut facts = host(&[
            ("net.ipv4.conf.all.accept_local", accept[0]),
            ("net.ipv4.conf.eth0/7.accept_local", accept[1]),
            ("net.ipv4.conf.all.rp_filter", rp[0]),
            ("net.ipv4.conf.eth0/7.rp_filter", rp[1]),
        ]);
        let own = address("10.0.0.254", 24, "eth0.7");
        facts.addresses.as_mut().unwrap().push(own);
        facts
    };
    for good in [facts(["0", "1"], ["0", "0"]), facts(["1", "0"], ["1", "2"])] {
        assert_none(&config, &good);
        assert_none(&plain("dr"), &facts(["0", "0"], ["1", "1"]));
    }
    let words = [
        "net.ipv4.conf.eth0/7.accept_local is 0",
        "tcp/192.0.2.1:80",
        "\"net.ipv4.conf.eth0/7.accept_local\" = 1",
    ];
    assert_found(&config, &facts(["0", "0"], ["0", "0"]), &words);
    let words = [
        "rp_filter is strict on eth0.7",
        "\"net.ipv4.conf.eth0/7.rp_filter\" = 2",
    ];
    assert_found(&config, &facts(["1", "1"], ["1", "0"]), &words);
    // Behind a router, or a virtual address that another host has: that depends on more.
    let mut far = facts(["0", "0"], ["1", "1"]);
    far.addresses.as_mut().unwrap().pop();
    assert_none(&config, &far);
}

#[test]
fn what_could_not_be_read_is_no_finding() {
    assert_none(&plain("nat"), &Facts::default());
}

#[test]
fn what_is_declared_counts_as_set_where_it_can_be() {
    let mut declares = plain("nat");
    declares.kernel = vec![crate::model::Sysctl {
        name: IP_FORWARD.parse().unwrap(),
        value: true.into(),
    }];
    let off = host(&[(IP_FORWARD, "0")]);
    assert_found(&declares, &off, &[IP_FORWARD]);
    assert_none(&declares, &off.as_declared(&declares));
    let nothing = Facts::default().as_declared(&declares);
    assert_eq!(nothing, Facts::default());
}

#[test]
fn every_setting_that_is_asked_for_has_a_name() {
    for name in ASKED {
        assert_eq!(name.parse::<SysctlName>().unwrap().to_string(), name);
    }
}
