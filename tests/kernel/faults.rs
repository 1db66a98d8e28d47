//! What must not hurt: bad spares, a kernel that refuses, a wrong configuration, and what stood
//! before.

use std::process::Command;

use nix::sys::signal::Signal;
use russh::keys::{HashAlg, PublicKey};
use understudy::model::inventory::ServerState;

use crate::lab::Lab;
use crate::lab::files::Service;
use crate::lab::server::Tree;
use crate::lab::{VIP4, vip4, wait_for};
use crate::scene::{
    Clock, LIGHT_SCRIPT, REPLACED, SOON, Scene, WIRING, Watch, real_server, service,
    start_director, status, table, two_webs, wait_for_page, wait_for_table,
};

#[test]
fn bad_spares_are_passed_by() {
    let mut clock = Clock::start("bad_spares_are_passed_by");
    let lab = two_webs(&["spare1", "spare2", "spare3"]);
    let services = [service(&lab, vip4(80), "nat", &[("web1", 5), ("web2", 3)])];
    let script = format!(
        "{LIGHT_SCRIPT}[ \"$(hostname)\" != spare1 ] || {{ echo no room on stage >&2; exit 3; }}\n"
    );
    let scene = Scene::start(&lab, &["web1", "web2"], &script, &services);
    clock.lap("started");

    lab.server("spare2").mute_sshd();
    lab.server("web1").kill_nginx();
    wait_for_page(&lab, vip4(80), "spare3", REPLACED);
    clock.lap("the third spare answers");

    let witness = [
        "-A -t 192.0.2.1:80 -s rr",
        "-a -t 192.0.2.1:80 -r 10.77.1.12:80 -m -w 3",
        "-a -t 192.0.2.1:80 -r 10.77.1.15:80 -m -w 5",
    ];
    assert_eq!(lab.ipvs_table(), witness);
    let done = scene.wait_for_success(1);
    let failed = scene.spare("spare1");
    assert_quarantined(&failed, &["install:nginx", "script_failed", " 3"]);
    let mute = scene.spare("spare2");
    assert_quarantined(&mute, &["fence", "mute", "10.77.1.14:22"]);
    assert_eq!(scene.spare("spare3").state, ServerState::Serving);
    let passed: Vec<_> = done[0]
        .passed_over
        .iter()
        .map(|p| p.server.as_str())
        .collect();
    assert_eq!(passed, ["spare1", "spare2"], "{done:#?}");
    let log = "/var/lib/understudy/jobs";
    let said = lab
        .server("spare1")
        .sh(&format!("cat {log}/*/out {log}/*/rc"));
    assert!(said.starts_with("no room on stage\nexited 3 "), "{said}");
    clock.lap("looked at");
}

#[test]
fn other_os_is_passed_over_and_wrong_host_key_is_refused() {
    let mut clock = Clock::start("other_os_is_passed_over_and_wrong_host_key_is_refused");
    let servers = [
        ("web1", Tree::Web),
        ("web2", Tree::Web),
        ("spare1", Tree::Other),
        ("spare2", Tree::Idle),
        ("spare3", Tree::Idle),
    ];
    let lab = Lab::new(WIRING, &servers);
    let services = [service(&lab, vip4(80), "nat", &[("web1", 5), ("web2", 3)])];
    let scene = Scene::start(&lab, &["web1", "web2"], LIGHT_SCRIPT, &services);
    clock.lap("started");

    lab.server("spare2").replace_host_key();
    lab.server("web1").kill_nginx();
    wait_for_page(&lab, vip4(80), "spare3", REPLACED);
    clock.lap("the third spare answers");

    let done = scene.wait_for_success(1);
    let other = scene.spare("spare1");
    assert_eq!(other.state, ServerState::Ready, "{other:?}");
    assert_eq!(other.os_seen.as_deref(), Some("debian-13"));
    let passed = &done[0].passed_over;
    let names: Vec<_> = passed.iter().map(|p| p.server.as_str()).collect();
    assert_eq!(names, ["spare1", "spare2"]);
    for word in ["os_mismatch", "debian-13", "debian-12"] {
        assert!(passed[0].reason.contains(word), "{passed:?}");
    }
    assert!(!lab.server("spare1").path("/etc/nginx/conf.d").exists());

    let forged = lab.server("spare2");
    let enrolled = PublicKey::from_openssh(forged.host_key()).unwrap();
    let enrolled = enrolled.fingerprint(HashAlg::Sha256).to_string();
    let view = scene.spare("spare2");
    assert_quarantined(&view, &["host_key_mismatch", "10.77.1.14:22", &enrolled]);
    let reason = view.reason.unwrap();
    assert_eq!(reason.matches("SHA256:").count(), 2, "{reason}");
    let log = forged.sshd_log();
    assert!(log.contains("Connection from 10.77.1.1 "), "{log}");
    // sshd names a user as soon as one asks for anything.
    for word in ["Accepted", "Failed", "Postponed", "root"] {
        assert!(!log.contains(word), "{log}");
    }
    assert!(!forged.path("/var/lib/understudy").exists());
    assert!(!forged.path("/etc/nginx/conf.d/shop.conf").exists());
    clock.lap("looked at");
}

fn assert_quarantined(view: &understudy::model::inventory::ServerView, words: &[&str]) {
    assert_eq!(view.state, ServerState::Quarantined, "{view:?}");
    let reason = view.reason.as_deref().unwrap_or_default();
    for word in words {
        assert!(reason.contains(word), "no {word:?} in {reason:?}");
    }
}

/// While IPVS synchronises connections with a peer, it takes no destination of another family into
/// a service.
#[test]
fn a_refused_addition_does_not_hold_back_the_removal() {
    let servers = [
        ("web1", Tree::Web),
        ("web2", Tree::Web),
        ("web3", Tree::Web),
    ];
    let lab = Lab::new(WIRING, &servers);
    lab.ipvsadm("--start-daemon master --mcast-interface client");
    let vip = vip4(80);
    let mut mixed = service(&lab, vip, "tun", &[("web1", 5), ("web2", 3)]);
    let [web1, web2] = [0, 1].map(|n: usize| (vip, mixed.real_servers[n].0));
    let six = format!("[{}]:80", lab.server("web3").address6());
    let web3 = (vip, six.parse().unwrap());
    mixed.real_servers.push((web3.1, 2));
    let _director = start_director(&lab, &[mixed]);
    let warned = |wanted: bool| {
        let what = format!("status with{} the refusal", if wanted { "" } else { "out" });
        wait_for(&what, SOON, std::time::Duration::from_millis(200), || {
            let warnings = status(&lab).warnings;
            let found = warnings.iter().find(|w| w.contains("not as wanted"));
            match found.is_some() == wanted {
                true => Ok(found.cloned().unwrap_or_default()),
                false => Err(format!("{warnings:#?}")),
            }
        })
    };
    wait_for_table(&lab, "IPVS with the allowed", SOON, |t| {
        t.contains_key(&web1) && t.contains_key(&web2)
    });
    let why = warned(true);
    for word in ["192.0.2.1:80", &six, "add", "Invalid argument"] {
        assert!(why.contains(word), "no {word:?} in {why:?}");
    }

    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "IPVS without the dead", SOON, |t| {
        !t.contains_key(&web1)
    });
    let left = table(&lab);
    assert!(left.contains_key(&web2) && !left.contains_key(&web3));
    warned(true);

    lab.ipvsadm("--stop-daemon master");
    wait_for_table(&lab, "IPVS with the one refused before", SOON, |t| {
        t.contains_key(&web2) && t.contains_key(&web3) && !t.contains_key(&web1)
    });
    warned(false);
}

#[test]
fn bad_configuration() {
    let lab = Lab::new(WIRING, &[]);
    lab.ipvsadm("-A -t 192.0.2.1:80 -s wlc");
    lab.ipvsadm("-a -t 192.0.2.1:80 -r 10.77.1.99:80 -m -w 9");
    let before = lab.ipvs_table();
    let one = Service {
        address: vip4(80),
        forward: "nat",
        check: crate::scene::CHECK.to_owned(),
        real_servers: vec![("10.77.1.11:80".parse().unwrap(), 1)],
    };
    let good = lab.write_director(std::slice::from_ref(&one), "1s");
    let good = std::fs::read_to_string(good).unwrap();
    lab.write_director(&[one.clone(), one], "1s");
    let twice = std::fs::read_to_string(lab.dir().join("director.toml")).unwrap();
    let cases = [
        ("twice", twice, "address = \"192.0.2.1:80\"", "second time"),
        (
            "scheduler",
            good.replace("scheduler = \"rr\"", "scheduler = \"round robin\""),
            "scheduler = \"round robin\"",
            "\"round robin\" is no scheduler's name",
        ),
        (
            "address",
            good.replace("\"10.77.1.11:80\"", "\"10.77.1.311:80\""),
            "address = \"10.77.1.311:80\"",
            "\"10.77.1.311:80\"",
        ),
    ];
    for (name, text, place, word) in cases {
        let path = lab.write(&format!("{name}.toml"), &text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
        command.args(["director", "--config", &path]);
        let output = lab.director.run(move || command.output().unwrap());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert_eq!(output.stdout, b"", "{name}");
        // The last such line: of two services the second is the mistake.
        let (row, line) = (1..)
            .zip(text.lines())
            .filter(|(_, l)| l.contains(place))
            .last()
            .unwrap();
        let column = line.find('"').unwrap() + 1;
        let at = format!("{path}:{row}:{column}: ");
        assert!(said.starts_with(&at) && said.contains(word), "{at}{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(lab.ipvs_table(), before);
}

#[test]
fn adoption() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let vip = vip4(80);
    let ours = ["web1", "web2"].map(|n| (vip, real_server(&lab, n, vip)));
    let foreign = (
        vip4(53),
        format!("{}:53", lab.server("web2").address4())
            .parse()
            .unwrap(),
    );
    for rule in [
        format!("-A -t {vip} -s wlc"),
        format!("-a -t {vip} -r {} -m -w 9", ours[0].1),
        format!("-a -t {vip} -r {} -m -w 2", ours[1].1),
        format!("-A -u {} -s sh", foreign.0),
        format!("-a -u {} -r {} -m -w 4", foreign.0, foreign.1),
    ] {
        lab.ipvsadm(&rule);
    }
    let stood = lab.ipvs_table();
    let watch = Watch::start(&lab);
    let services = [service(&lab, vip, "nat", &[("web1", 1), ("web2", 5)])];
    let mut director = start_director(&lab, &services);
    wait_for_table(&lab, "IPVS with the configured weights", SOON, |t| {
        (t.get(&ours[0]), t.get(&ours[1])) == (Some(&1), Some(&5))
    });
    let states = watch.stop();
    for state in &states {
        let weights = [ours[0], ours[1], foreign].map(|p| state.get(&p).copied());
        let [Some(1 | 9), Some(2 | 5), Some(4)] = weights else {
            panic!("{states:#?}");
        };
    }
    // What is shorter than the watch's beat shows in the log.
    let log = director.log();
    let steps: Vec<_> = log
        .lines()
        .filter(|l| l.contains("kernel table changed"))
        .collect();
    assert_eq!(steps.len(), 3, "{steps:#?}");
    assert!(steps.iter().all(|l| l.contains("\"change ")), "{steps:#?}");
    let is = lab.ipvs_table();
    let of_foreign = |table: &[String]| {
        let lines = table.iter().filter(|l| l.contains(" -u ")).cloned();
        lines.collect::<Vec<_>>()
    };
    assert_eq!(of_foreign(&is), of_foreign(&stood));
    let ours_now: Vec<_> = is.iter().filter(|l| l.contains(VIP4)).cloned().collect();
    assert_eq!(
        ours_now[..],
        [
            "-A -t 192.0.2.1:80 -s rr",
            "-A -u 192.0.2.1:53 -s sh",
            "-a -t 192.0.2.1:80 -r 10.77.1.11:80 -m -w 1",
            "-a -t 192.0.2.1:80 -r 10.77.1.12:80 -m -w 5",
            "-a -u 192.0.2.1:53 -r 10.77.1.12:53 -m -w 4",
        ]
    );

    lab.ipvsadm("-C");
    wait_for_table(&lab, "IPVS healed", SOON, |t| {
        t.len() == 2 && (t.get(&ours[0]), t.get(&ours[1])) == (Some(&1), Some(&5))
    });
    let healed = lab.ipvs_table();
    assert_eq!(healed.len(), 3, "{healed:?}");
    wait_for_page(&lab, vip, "web1", SOON);

    director.signal(Signal::SIGTERM);
    let status = director.wait(SOON);
    assert!(status.success(), "{status}");
    assert_eq!(lab.ipvs_table(), healed);
}
