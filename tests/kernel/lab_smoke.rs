//! The lab itself: what the other suites stand on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::lab::server::Tree;
use crate::lab::traffic::{Traffic, get};
use crate::lab::{Forward, Lab, Wiring, files, show, vip4, vip6, wait_for};

/// Says how long a part took; the suites' time budget is made of these.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self, part: &str) {
        show(&format!("{:>6} ms  {part}", self.0.elapsed().as_millis()));
        self.0 = Instant::now();
    }
}

#[test]
fn a_lab_serves_over_nat_and_direct_routing_and_its_spare_can_be_provisioned() {
    let mut clock = Clock(Instant::now());
    let wiring = Wiring {
        v4: Forward::Nat,
        v6: Forward::Direct,
    };
    let lab = Lab::new(wiring, &[("web1", Tree::Web), ("spare1", Tree::Base)]);
    let (web, spare) = (lab.server("web1"), lab.server("spare1"));
    clock.lap("a lab with two servers");

    lab.ipvsadm("-A -t 192.0.2.1:80 -s rr");
    lab.ipvsadm(&format!("-a -t 192.0.2.1:80 -r {}:80 -m", web.address4()));
    lab.ipvsadm("-A -t [2001:db8::1]:80 -s rr");
    lab.ipvsadm(&format!(
        "-a -t [2001:db8::1]:80 -r [{}]:80 -g",
        web.address6()
    ));
    assert_eq!(lab.ipvs_table().len(), 4, "{:?}", lab.ipvs_table());
    clock.lap("six calls of ipvsadm");

    for vip in [vip4(80), vip6(80)] {
        assert_eq!(
            lab.client.run(|| get(vip)).as_deref(),
            Ok("shop on web1"),
            "{vip}"
        );
    }
    clock.lap("a page over NAT and IPv4, and one over DR and IPv6");

    let traffic = Traffic::start(&lab, vip4(80), 100, 200);
    wait_for(
        "answers",
        Duration::from_secs(20),
        Duration::from_millis(50),
        || {
            let done = traffic.so_far().len();
            if done == 200 { Ok(()) } else { Err(done) }
        },
    );
    let requests = traffic.stop();
    assert_eq!(
        requests.iter().filter(|r| r.outcome.is_err()).count(),
        0,
        "{requests:?}"
    );
    clock.lap("200 requests at 100 a second");

    web.blackhole(None);
    let lost = lab.client.run(|| get(vip4(80))).unwrap_err();
    assert!(lost.contains("timed out"), "{lost}");
    web.unblackhole();
    clock.lap("a request into a black hole, 1 s of it waiting");

    web.stop_nginx();
    let lost = lab.client.run(|| get(vip4(80))).unwrap_err();
    assert!(lost.starts_with("receive"), "{lost}");
    web.continue_nginx();
    web.kill_nginx();
    let lost = lab.client.run(|| get(vip4(80))).unwrap_err();
    assert!(lost.contains("refused"), "{lost}");
    clock.lap("a request to a stopped server, 1 s of it waiting, and one to a killed one");

    let (ok, output) = lab.ssh(
        spare,
        "hostname && . /etc/os-release && echo $ID-$VERSION_ID && ps ax",
    );
    assert!(ok && output.starts_with("spare1\ndebian-12\n"), "{output}");
    assert!(
        spare.sshd_log().contains("Accepted publickey for root"),
        "{}",
        spare.sshd_log()
    );
    clock.lap("a command by ssh");

    let path = spare.path("/root/nginx.sh");
    std::fs::write(path, files::NGINX_SCRIPT).unwrap();
    let (ok, output) = lab.ssh(spare, "sh /root/nginx.sh");
    assert!(ok, "{output}");
    clock.lap("the role's script by ssh");
    spare.serve();
    lab.ipvsadm(&format!("-a -t 192.0.2.1:80 -r {}:80 -m", spare.address4()));
    lab.ipvsadm(&format!("-d -t 192.0.2.1:80 -r {}:80", web.address4()));
    assert_eq!(
        lab.client.run(|| get(vip4(80))).as_deref(),
        Ok("shop on spare1")
    );
    clock.lap("the spare serves");

    spare.mute_sshd();
    let mut ssh = std::process::Command::new("ssh-keyscan");
    ssh.args(["-T", "1", &spare.address4()]);
    let scan = lab.director.run(move || ssh.output().unwrap());
    assert!(scan.stdout.is_empty(), "{scan:?}");
    spare.unmute_sshd();
    spare.replace_host_key();
    let (ok, output) = lab.ssh(spare, "true");
    assert!(
        !ok && output.contains("HOST IDENTIFICATION HAS CHANGED"),
        "{output}"
    );
    clock.lap("a mute sshd, 1 s of it waiting, and another host key");

    spare.reset(Tree::Base);
    clock.lap("reset of a spare");
    assert!(!spare.path("/usr/sbin/nginx").exists());
    assert!(lab.ssh(spare, "true").0);
    clock.lap("ssh after it");
    spare.reset(Tree::Other);
    assert!(
        spare
            .sh("cat /etc/os-release")
            .contains("VERSION_ID=\"13\"")
    );
    clock.lap("reset to the other operating system");
    web.reset(Tree::Web);
    clock.lap("reset of a web server");

    let mut process = lab.understudy("version", &["--version"], &[]);
    process.wait(Duration::from_secs(20));
    clock.lap("a process on the director");

    drop(process);
    drop(lab);
    clock.lap("the end of the lab");
}

#[test]
fn two_labs_at_once_do_not_meet() {
    let wiring = Wiring {
        v4: Forward::Nat,
        v6: Forward::Nat,
    };
    let labs = [(); 2].map(|()| Lab::new(wiring, &[("web1", Tree::Base)]));
    let keys: BTreeSet<_> = labs.iter().map(|l| l.server("web1").host_key()).collect();
    assert_eq!(keys.len(), 2);
    for lab in &labs {
        let (ok, output) = lab.ssh(lab.server("web1"), "hostname");
        assert!(ok, "{output}");
    }
}
