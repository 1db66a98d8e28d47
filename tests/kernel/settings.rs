//! Settings of the kernel: what a director declares holds where it runs, and what of the host does
//! not fit is said.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use understudy::ipvs::probe;
use understudy::model::Scheduler;

use crate::lab::{Lab, VIP6, vip4, wait_for, wait_until};
use crate::scene::{SOON, WIRING, service, status, understudy};

const EXPIRE: &str = "ipv4/vs/expire_nodest_conn";

fn setting(lab: &Lab, path: &str) -> String {
    let path = format!("/proc/sys/net/{path}");
    let text = lab.director.run(|| fs::read_to_string(&path).unwrap());
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A director.toml with a NAT service, a pass every second, and these lines under `[kernel]`.
fn write_config(lab: &Lab, kernel: &str) -> String {
    let path = lab.write_director(&[service(lab, vip4(80), "nat", &[])], "60s");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replacen("[director]\n", "[director]\nresync = \"1s\"\n", 1);
    let server = "[[virtual_service.real_server]]\naddress = \"10.77.1.11:80\"";
    // In the place of what the lab declares.
    let (text, services) = text.split_once("[kernel]\n").unwrap();
    let (_, services) = services.split_once("\n\n").unwrap();
    let text = format!("{text}\n{services}");
    fs::write(&path, format!("{text}\n{server}\n[kernel]\n{kernel}")).unwrap();
    path
}

fn wait_for_warnings(lab: &Lab, what: &str, holds: impl Fn(&[String]) -> bool) {
    wait_for(what, SOON, Duration::from_millis(500), || {
        let warnings = status(lab).warnings;
        match holds(&warnings) {
            true => Ok(()),
            false => Err(format!("{warnings:#?}")),
        }
    });
}

pub(crate) fn metrics(lab: &Lab) -> String {
    lab.director.run(|| {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 9711))).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

fn any(lines: &[String], words: &[&str]) -> bool {
    lines.iter().any(|l| words.iter().all(|w| l.contains(w)))
}

#[test]
fn declared_settings_are_written_and_kept_and_what_does_not_fit_is_told() {
    let lab = Lab::new(WIRING, &[]);
    lab.director.sysctls(&[("ipv4/ip_forward", "0")]);
    lab.ipvsadm("-C");
    assert_eq!(setting(&lab, EXPIRE), "0", "a new namespace's own");
    let config = write_config(
        &lab,
        "\"net.ipv4.vs.expire_nodest_conn\" = true\n\"net.ipv4.vs.sync_threshold\" = \"4 60\"\n\"net.ipv4.vs.nosuch\" = 1\n",
    );

    // Before anything runs: nothing is changed, what will be is said.
    let text = understudy(&lab, &["check-config", "--live", &config]);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(any(&lines, &[": good director configuration"]), "{text}");
    for words in [
        &["warning: net.ipv4.ip_forward is 0", "tcp/192.0.2.1:80"][..],
        &["warning: kernel setting net.ipv4.vs.nosuch"],
        &["note: kernel setting net.ipv4.vs.expire_nodest_conn is 0 now"],
    ] {
        assert!(any(&lines, words), "{words:?} in {text}");
    }
    let all = ["expire_nodest_conn is 0:", "scheduler", "virtual address"];
    assert!(!all.iter().any(|w| any(&lines, &[w])), "{text}");
    assert_eq!(setting(&lab, EXPIRE), "0");
    assert_eq!(lab.ipvs_table(), [""; 0]);

    let args = ["director", "--config", &config, "--log-format", "json"];
    let mut director = lab.understudy("director", &args, &[]);
    let line = director.wait_for_log("kernel setting was changed as declared", SOON);
    for word in [
        "net.ipv4.vs.expire_nodest_conn",
        "\"from\":\"0\"",
        "\"to\":\"1\"",
    ] {
        assert!(line.contains(word), "no {word} in {line}");
    }
    director.wait_for_log("director is ready", SOON);
    assert_eq!(setting(&lab, EXPIRE), "1");
    assert_eq!(setting(&lab, "ipv4/vs/sync_threshold"), "4 60");
    wait_for_warnings(&lab, "warnings of both kinds", |all| {
        any(all, &["net.ipv4.ip_forward is 0", "under [kernel]"])
            && any(all, &["net.ipv4.vs.nosuch", "not there"])
            && !any(all, &["expire_nodest_conn"])
    });
    let text = metrics(&lab);
    for line in [
        "understudy_kernel_setting_wrong{setting=\"net.ipv4.vs.nosuch\"} 1",
        "understudy_kernel_setting_wrong{setting=\"net.ipv4.vs.expire_nodest_conn\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in {text}");
    }

    // Somebody else's hand.
    lab.director
        .sysctls(&[(EXPIRE, "0"), ("ipv4/ip_forward", "1")]);
    wait_until("declared value again", SOON, || {
        setting(&lab, EXPIRE) == "1"
    });
    director.wait_for_log("somebody changed a declared kernel setting", SOON);
    wait_for_warnings(&lab, "forwarding no longer missed", |all| {
        !any(all, &["ip_forward"])
    });
    // Nothing but what is declared is anybody's.
    assert_eq!(setting(&lab, "ipv4/vs/conn_reuse_mode"), "1");
}

#[test]
fn a_live_check_names_what_the_host_lacks() {
    let lab = Lab::new(WIRING, &[]);
    lab.director.ip(&format!("addr del {VIP6}/128 dev lo"));
    lab.director.sysctls(&[("ipv6/conf/all/forwarding", "0")]);
    let text = r#"[director]
name = "lb1"
address = "10.77.0.1"
[[virtual_service]]
address = "[2001:db8::1]:80"
scheduler = "wlc"
forward = "nat"
persistence_timeout = "60s"
persistence_engine = "nosuch"
check.tcp = {}
real_server = [{ address = "[fd77:1::11]:80" }]
"#;
    let config = lab.write("live.toml", text);
    let said = understudy(&lab, &["check-config", "--live", &config]);
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    for words in [
        &[
            "warning: the kernel has no persistence engine nosuch",
            "modprobe ip_vs_pe_nosuch",
        ][..],
        &["warning: no interface of this host has the virtual address 2001:db8::1"],
        &["warning: net.ipv6.conf.all.forwarding is 0"],
        &["warning: net.ipv4.vs.expire_nodest_conn is 0: "],
    ] {
        assert!(any(&lines, words), "{words:?} in {said}");
    }
    assert_eq!(lines.len(), 5, "{said}");

    // Without the right to make a namespace the rest is checked, and one line says so.
    let program = env!("CARGO_BIN_EXE_understudy");
    let args = [
        "--bounding-set=-sys_admin",
        program,
        "check-config",
        "--live",
        &config,
    ];
    let said = lab.on_director("setpriv", &args);
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    assert!(
        any(&lines, &["note: ", "not checked", "CAP_SYS_ADMIN"]),
        "{said}"
    );
    assert!(!any(&lines, &["engine nosuch"]), "{said}");
    assert!(any(&lines, &["forwarding is 0"]), "{said}");
}

#[test]
fn the_kernel_says_which_modules_it_has_and_its_table_is_left_alone() {
    let lab = Lab::new(WIRING, &[]);
    lab.ipvsadm("-A -f 1 -s rr");
    let before = lab.ipvs_table();
    // Not loaded where nobody uses it: the kernel has to load it.
    drop(Command::new("rmmod").args(["ip_vs_fo"]).output());
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let schedulers = |all: &[&str]| {
        names(all)
            .into_iter()
            .map(Scheduler)
            .collect::<BTreeSet<_>>()
    };
    let asked = schedulers(&["rr", "fo", "nosuch", "a-name-that-no-module-can-have"]);
    let missing = lab
        .director
        .run(|| probe::missing(&asked, &names(&["sip", "pop"])).unwrap());
    let lacks = schedulers(&["nosuch", "a-name-that-no-module-can-have"]);
    assert_eq!(missing.schedulers, lacks);
    assert_eq!(missing.engines, names(&["pop"]));
    assert_eq!(lab.ipvs_table(), before);
}

/// A real systemd builds the unit's sandbox.
#[test]
fn the_units_sandbox_lets_declared_settings_be_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ran = Command::new(root.join("tests/vm/units"))
        .arg(env!("CARGO_BIN_EXE_understudy"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert_eq!(said.matches("units: ").count(), 3, "{said}");
}
