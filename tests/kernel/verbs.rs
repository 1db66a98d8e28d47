//! `understudy ipvs` against a real IPVS, ipvsadm as the witness both ways. Each test has a network
//! namespace, and so an IPVS table, of its own.

use std::{
    fs,
    io::Write as _,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::lab::{netns::NetNs, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// What a run of a program came to.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// What it printed; it must have ended well and said nothing else.
    fn good(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self.out
    }

    /// What it said; it must have ended with this status and printed nothing.
    fn bad(self, code: i32) -> String {
        let said = (self.code, self.out.as_str());
        assert_eq!(said, (Some(code), ""), "{self:?}");
        self.err
    }
}

/// A namespace with an empty table, and a folder.
struct Place {
    netns: NetNs,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let netns = NetNs::new();
        // Without any route no address is unicast, and IPVS takes no destination (`EINVAL`).
        netns.ip("link set lo up
             addr add 192.0.2.1/32 dev lo
             link add d0 type dummy
             addr add 198.51.100.254/24 dev d0
             link set d0 up multicast on\n");
        let dir = tempfile::tempdir().unwrap();
        Self { netns, dir }
    }

    fn run(&self, program: &str, args: &[&str], input: &str) -> Ran {
        self.netns.run(|| {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Small enough for the pipe.
            let written = child.stdin.take().unwrap().write_all(input.as_bytes());
            let ran = child.wait_with_output().unwrap();
            drop(written);
            Ran {
                code: ran.status.code(),
                out: String::from_utf8(ran.stdout).unwrap(),
                err: String::from_utf8(ran.stderr).unwrap(),
            }
        })
    }

    /// `understudy ipvs ...`, with a lock that nobody holds.
    fn ipvs(&self, args: &str, input: &str) -> Ran {
        let args: Vec<_> = ["ipvs"].into_iter().chain(args.split(' ')).collect();
        self.run(env!("CARGO_BIN_EXE_understudy"), &args, input)
    }

    fn ipvsadm(&self, args: &str, input: &str) -> String {
        let args: Vec<_> = args.split(' ').collect();
        self.run("ipvsadm", &args, input).good()
    }

    /// The services as `list -o json` tells them.
    fn json(&self) -> Value {
        let text = self.ipvs("list -o json", "").good();
        let mut all: Value = serde_json::from_str(&text).unwrap();
        all["services"].take()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn restore(&self, file: &Path, more: &str) -> Ran {
        self.ipvs(&format!("restore {}{more}", file.display()), "")
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.sort_unstable();
    lines
}

/// Something of all that ipvsadm can write and print.
const RICH: &str = "\
-A -t 192.0.2.1:80 -s wlc -p 600 -M 255.255.255.0
-a -t 192.0.2.1:80 -r 127.0.0.1:80 -m -w 7
-a -t 192.0.2.1:80 -r 198.51.100.1:8080 -m -w 10
-a -t 192.0.2.1:80 -r 198.51.100.2:80 -g -w 0
-a -t 192.0.2.1:80 -r 198.51.100.3:80 -i -w 65535 --tun-type ipip
-A -u 192.0.2.1:53 -s sh -o -b sh-fallback,sh-port
-a -u 192.0.2.1:53 -r 198.51.100.5:53 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum
-a -u 192.0.2.1:53 -r 198.51.100.6:53 -i -w 1 --tun-type gre --tun-csum
-A -t [2001:db8::1]:443 -s mh -b mh-fallback
-a -t [2001:db8::1]:443 -r 198.51.100.4:443 -i -w 3 --tun-type ipip
-A -u 192.0.2.4:5060 -s rr -p 60 --pe sip
-A --sctp-service 192.0.2.1:9 -s lc
-A -f 5 -s sed
-a -f 5 -r 198.51.100.7:0 -g -w 1
-A -f 5 -6 -s nq -p 300 -M 64
";

#[test]
fn what_one_saves_the_other_restores() {
    let place = Place::new();
    place.ipvsadm("-R", RICH);
    let table = place.json();
    assert_eq!(table.as_array().unwrap().len(), 7, "{table:#}");
    let witness = place.ipvsadm("-Sn", "");

    let saved = place.ipvs("save", "").good();
    assert_eq!(place.ipvs("flush", "").good(), "7 services removed\n");
    assert_eq!(place.ipvsadm("-Sn", ""), "");
    place.ipvsadm("-R", &saved);
    assert_eq!(place.json(), table);
    assert_eq!(sorted(&place.ipvsadm("-Sn", "")), sorted(&witness));

    // With names too: this one is in every /etc/hosts.
    let named = place.ipvsadm("-S", "");
    assert!(named.contains(" -r localhost:"), "{named}");
    for text in [saved, witness, named] {
        place.ipvsadm("-C", "");
        let said = place.ipvs("restore -", &text).good();
        assert_eq!(said, "15 added, 0 changed, 0 removed\n");
        assert_eq!(place.json(), table);
        assert_eq!(place.ipvs("restore", &text).good(), "nothing to change\n");
    }
}

#[test]
fn a_list_says_what_ipvsadm_says() {
    let place = Place::new();
    place.ipvsadm("-R", RICH);
    let thresholds = "-e -t 192.0.2.1:80 -r 198.51.100.1:8080 -m -w 10 -x 100 -y 50";
    place.ipvsadm(thresholds, "");
    let list = place.ipvs("list tcp/192.0.2.1:80 udp/192.0.2.1:53 fwmark6/5", "");
    let list = list.good();
    let (head, rest) = list.split_once('\n').unwrap();
    assert!(head.starts_with("IPVS 1.2.1, "), "{head}");
    assert!(head.ends_with(", 3 services, 6 destinations"), "{head}");
    assert_eq!(
        rest,
        "\
SERVICE              WEIGHT  FORWARD            UPPER  LOWER  ACTIVE  INACTIVE  PERSISTENT
tcp/192.0.2.1:80  wlc  persistent 600s/24
  127.0.0.1:80            7  nat                    0      0       0         0           0
  198.51.100.1:8080      10  nat                  100     50       0         0           0
  198.51.100.2:80         0  dr                     0      0       0         0           0
  198.51.100.3:80     65535  tun                    0      0       0         0           0
udp/192.0.2.1:53  sh  one-packet  sh-fallback  sh-port
  198.51.100.5:53         1  tun gue:6080+csum      0      0       0         0           0
  198.51.100.6:53         1  tun gre+csum           0      0       0         0           0
fwmark6/5  nq  persistent 300s/64
  no destinations
"
    );
    let said = place.ipvs("list tcp/192.0.2.1:80 tcp/192.0.2.9:80", "");
    let said = said.bad(1);
    assert_eq!(said, "the kernel has no virtual service tcp/192.0.2.9:80\n");
}

#[test]
fn counters_and_connections_are_shown_and_set_to_zero() {
    let place = Place::new();
    place.ipvsadm(
        "-R",
        "-A -u 192.0.2.1:53 -s rr\n-a -u 192.0.2.1:53 -r 198.51.100.5:53 -m\n",
    );
    place.netns.run(|| {
        let socket = UdpSocket::bind("192.0.2.1:33000").unwrap();
        socket.send_to(b"who?", "192.0.2.1:53").unwrap();
    });
    let connections = place.ipvs("list --connections udp/192.0.2.1:53", "").good();
    let words: Vec<_> = connections
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let wanted = [
        "udp",
        "192.0.2.1:33000",
        "192.0.2.1:53",
        "198.51.100.5:53",
        "udp",
    ];
    assert_eq!(words.get(..5), Some(&wanted[..]), "{connections}");
    let other = place.ipvs("list --connections tcp/192.0.2.1:53", "").good();
    assert_eq!(other.lines().count(), 1, "{other}");

    // Of the service, its destination.
    let counted = |place: &Place| {
        let ours = place.ipvs("list --stats", "").good();
        let theirs = place.ipvsadm("-Ln --stats", "");
        [(ours, 2), (theirs, 3)].map(|(text, head)| {
            let mut lines = Vec::new();
            for line in text.lines().skip(head) {
                let numbers = line
                    .split_whitespace()
                    .filter_map(|w| w.parse::<u64>().ok());
                lines.push(numbers.collect::<Vec<_>>());
            }
            lines
        })
    };
    // The kernel adds up every two seconds.
    wait_until("a counted connection", SOON, || {
        counted(&place).iter().all(|lines| lines[0][0] == 1)
    });
    let [ours, theirs] = counted(&place);
    assert_eq!(ours.len(), 2, "{ours:?}");
    assert_eq!(ours, theirs);
    let missing = place.ipvs("zero udp/192.0.2.1:54", "").bad(1);
    assert!(missing.contains("no such virtual service"), "{missing}");
    assert_eq!(counted(&place), [ours.clone(), theirs]);
    place.ipvs("zero udp/192.0.2.1:53", "").good();
    let zero = vec![vec![0; ours[0].len()]; 2];
    assert_eq!(counted(&place), [zero.clone(), zero]);
    place.ipvs("zero", "").good();
}

#[test]
fn a_file_with_mistakes_changes_nothing() {
    let place = Place::new();
    place.ipvsadm("-R", RICH);
    let before = place.json();
    let file = place.file(
        "wrong",
        "-A -t 192.0.2.7:80 -s rr\n\
         -a -t 192.0.2.7:80 -r 198.51.100.1:99999 -m\n\
         # a comment\n\
         -a -t 192.0.2.8:80 -r 198.51.100.1:80 -m\n",
    );
    let said = place.restore(&file, "").bad(2);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    for (line, number) in lines.iter().zip([2, 4]) {
        let at = format!("{}:{number}:", file.display());
        assert!(line.starts_with(&at), "{said}");
    }
    assert_eq!(place.json(), before);

    let empty = place.file("empty", "\n");
    let said = place.restore(&empty, " --exact").bad(1);
    assert!(said.contains("ipvs flush"), "{said}");
    let said = place.restore(&empty, "").good();
    assert!(said.contains("nothing to change"), "{said}");
    assert_eq!(place.json(), before);
}

#[test]
fn a_difference_is_shown_and_then_alone_is_made() {
    let place = Place::new();
    place.ipvsadm(
        "-R",
        "-A -t 192.0.2.1:80 -s rr\n\
         -a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 1\n\
         -a -t 192.0.2.1:80 -r 198.51.100.2:80 -m -w 1\n\
         -A -t 192.0.2.2:80 -s rr\n\
         -a -t 192.0.2.2:80 -r 198.51.100.1:80 -m -w 1\n",
    );
    let before = place.json();
    let file = place.file(
        "new",
        "-A -t 192.0.2.1:80 -s wlc -p 300\n\
         -a -t 192.0.2.1:80 -r 198.51.100.2:80 -m -w 5\n\
         -a -t 192.0.2.1:80 -r 198.51.100.3:80 -g -w 1\n\
         -A -f 7 -s rr\n",
    );
    let lines = "~ tcp/192.0.2.1:80: scheduler rr -> wlc, persistence none -> 300s\n\
                 ~ 198.51.100.2:80 in tcp/192.0.2.1:80: weight 1 -> 5\n\
                 + 198.51.100.3:80 in tcp/192.0.2.1:80: dr, weight 1\n\
                 - 198.51.100.1:80 in tcp/192.0.2.1:80\n";
    assert_eq!(
        place.restore(&file, " --diff").good(),
        format!(
            "{lines}+ fwmark/7: rr\n2 to add, 2 to change, 1 to remove, nothing was done (--diff)\
             ; 1 service that the file does not name left as it is (--exact removes it)\n"
        )
    );
    assert_eq!(
        place.restore(&file, " --diff --exact").good(),
        format!(
            "{lines}- tcp/192.0.2.2:80 and its 1 destination\n+ fwmark/7: rr\n\
             2 to add, 2 to change, 2 to remove, nothing was done (--diff)\n"
        )
    );
    assert_eq!(place.json(), before);

    assert_eq!(
        place.restore(&file, "").good(),
        "2 added, 2 changed, 1 removed; 1 service that the file does not name left as it is \
         (--exact removes it)\n"
    );
    let mut wanted: Vec<_> = vec![
        "-A -t 192.0.2.1:80 -s wlc -p 300",
        "-a -t 192.0.2.1:80 -r 198.51.100.2:80 -m -w 5",
        "-a -t 192.0.2.1:80 -r 198.51.100.3:80 -g -w 1",
        "-A -f 7 -s rr",
        "-A -t 192.0.2.2:80 -s rr",
        "-a -t 192.0.2.2:80 -r 198.51.100.1:80 -m -w 1",
    ];
    wanted.sort_unstable();
    assert_eq!(sorted(&place.ipvsadm("-Sn", "")), wanted);
    assert_eq!(
        place.restore(&file, " --exact").good(),
        "0 added, 0 changed, 1 removed\n"
    );
    wanted.retain(|l| !l.contains("192.0.2.2"));
    assert_eq!(sorted(&place.ipvsadm("-Sn", "")), wanted);
}

#[test]
fn a_live_threshold_is_not_cleared_without_a_word() {
    let place = Place::new();
    place.ipvsadm(
        "-R",
        "-A -t 192.0.2.1:80 -s rr\n\
         -a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 1 -x 100 -y 50\n",
    );
    let thresholds = |place: &Place| {
        let dest = &place.json()[0]["destinations"][0];
        (
            dest["upper"].as_u64().unwrap(),
            dest["lower"].as_u64().unwrap(),
        )
    };
    let own = place.ipvs("save", "").good();
    assert_eq!(place.ipvs("restore", &own).good(), "nothing to change\n");
    // It leaves them out.
    let file = place.file("saved", &place.ipvsadm("-Sn", ""));
    let kept = place.restore(&file, " --keep-thresholds").good();
    assert_eq!(kept, "nothing to change\n");
    assert_eq!(thresholds(&place), (100, 50));
    let ran = place.restore(&file, "");
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (Some(0), "0 added, 1 changed, 0 removed\n")
    );
    assert_eq!(
        ran.err,
        format!(
            "{}:2: warning: 198.51.100.1:80 in tcp/192.0.2.1:80 has thresholds (upper 100, lower \
             50), of which the file says nothing: they are cleared (--keep-thresholds keeps them)\n",
            file.display()
        )
    );
    assert_eq!(thresholds(&place), (0, 0));
}

#[test]
fn what_the_kernel_refuses_is_said_at_its_line() {
    let place = Place::new();
    place.ipvsadm(
        "-R",
        "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 198.51.100.9:80 -m -w 1\n",
    );
    let file = place.file(
        "refused",
        "-A -t 192.0.2.1:80 -s nosuch\n\
         -a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 1\n\
         -A -t 192.0.2.2:80 -s neither\n\
         -a -t 192.0.2.2:80 -r 198.51.100.1:80 -m -w 1\n\
         -A -t 192.0.2.3:80 -s rr\n\
         -a -t 192.0.2.3:80 -r 198.51.100.1:80 -m -w 1\n",
    );
    let said = place.restore(&file, "").bad(1);
    let lines: Vec<_> = said.lines().collect();
    let name = file.display();
    assert_eq!(lines.len(), 3, "{said}");
    for (line, n, scheduler) in [(lines[0], 1, "nosuch"), (lines[1], 3, "neither")] {
        assert!(line.starts_with(&format!("{name}:{n}: cannot ")), "{said}");
        assert!(
            line.contains(&format!("lacks scheduler {scheduler}")),
            "{said}"
        );
    }
    assert_eq!(
        lines[2],
        "4 changes not made (2 of them left because of another of the same service); \
         made: 3 added, 0 changed, 0 removed"
    );
    // What could not become what it should be has lost nothing.
    assert_eq!(
        sorted(&place.ipvsadm("-Sn", "")),
        [
            "-A -t 192.0.2.1:80 -s rr",
            "-A -t 192.0.2.3:80 -s rr",
            "-a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 1",
            "-a -t 192.0.2.1:80 -r 198.51.100.9:80 -m -w 1",
            "-a -t 192.0.2.3:80 -r 198.51.100.1:80 -m -w 1",
        ]
    );
}

#[test]
fn timeouts_and_sync_daemons_are_those_that_ipvsadm_sees() {
    let place = Place::new();
    let witness = |place: &Place| place.ipvsadm("-L --timeout", "").trim().to_owned();
    place.ipvsadm("--set 800 100 200", "");
    assert_eq!(
        place.ipvs("timeouts", "").good(),
        "tcp 800s\ntcp-fin 100s\nudp 200s\n"
    );
    assert_eq!(
        place.ipvs("timeouts --tcp 15m --udp 42", "").good(),
        "tcp 900s\ntcp-fin 100s\nudp 42s\n"
    );
    assert_eq!(witness(&place), "Timeout (tcp tcpfin udp): 900 100 42");

    assert_eq!(place.ipvs("sync", "").good(), "no sync daemon runs\n");
    let start = "sync start master --interface d0 --id 7 --ttl 3 --port 9000 --group 224.0.0.99";
    place.ipvs(start, "").good();
    let daemons = place.ipvsadm("-L --daemon", "");
    for word in ["master", "d0", "syncid=7", "224.0.0.99", "9000", "ttl=3"] {
        assert!(daemons.contains(word), "no {word} in {daemons}");
    }
    let again = place.ipvs(start, "").bad(1);
    assert!(again.contains("start the master sync daemon"), "{again}");
    place.ipvsadm("--start-daemon backup --mcast-interface d0 --syncid 9", "");
    let listed = place.ipvs("sync", "").good();
    let rows: Vec<Vec<_>> = listed
        .lines()
        .map(|l| l.split_whitespace().take(6).collect())
        .collect();
    assert_eq!(
        rows,
        [
            ["ROLE", "INTERFACE", "ID", "GROUP", "PORT", "TTL"],
            ["master", "d0", "7", "224.0.0.99", "9000", "3"],
            ["backup", "d0", "9", "224.0.0.81", "8848", "1"],
        ]
    );
    place.ipvs("sync stop master", "").good();
    place.ipvsadm("--stop-daemon backup", "");
    assert_eq!(place.ipvs("sync", "").good(), "no sync daemon runs\n");
    let none = place.ipvs("sync stop master", "").bad(1);
    assert!(none.contains("it does not run"), "{none}");
}

/// Killed when dropped.
struct Director(Child);

impl Drop for Director {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_a_running_director_owns_is_refused_or_healed() {
    let place = Place::new();
    let dir = place.dir.path().display();
    let config = place.file(
        "director.toml",
        &format!(
            r#"[director]
name = "lb1"
address = "192.0.2.1"
state_dir = "{dir}/state"
socket = "{dir}/director.sock"
resync = "500ms"

[[virtual_service]]
address = "192.0.2.1:80"
protocol = "tcp"
scheduler = "rr"
forward = "nat"

[virtual_service.check]
interval = "1s"
timeout = "500ms"

[virtual_service.check.tcp]

[[virtual_service.real_server]]
address = "127.0.0.1:8080"
weight = 3
"#
        ),
    );
    let _server = place
        .netns
        .run(|| TcpListener::bind("127.0.0.1:8080").unwrap());
    let args = ["director", "--config", config.to_str().unwrap()];
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
        command.args(args).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Director(place.netns.run(move || command.spawn().unwrap()))
    };
    let owned = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 127.0.0.1:8080 -m -w 3\n";
    let has_owned = || sorted(&place.ipvsadm("-Sn", "")) == sorted(owned);
    let director = start();
    wait_until("the director's table", SOON, has_owned);
    let pid = director.0.id();

    // Nothing owned is touched by hand, nor anything else on the way.
    let lock = format!(" --lock {dir}/director.lock");
    let owner = format!("director lb1 (pid {pid}) owns tcp/192.0.2.1:80");
    let theirs = place.file("theirs", "-A -f 7 -s rr\n-A -t 192.0.2.1:80 -s wlc\n");
    let shown = place.restore(&theirs, &format!(" --diff{lock}")).good();
    assert!(
        shown.ends_with(&format!("{owner}: it is not done without --force\n")),
        "{shown}"
    );
    for said in [
        place.restore(&theirs, &lock).bad(1),
        place.ipvs(&format!("flush{lock}"), "").bad(1),
    ] {
        assert_eq!(
            said,
            format!(
                "{owner}: nothing was changed; change its configuration and restart it, or insist \
                 with --force, which it undoes within 500ms where drift = \"repair\"\n"
            )
        );
    }
    assert!(has_owned());

    // What it does not own is free, and what is as the file wants it is not touched.
    let ours = place.file("ours", &format!("-A -f 7 -s rr\n{owned}"));
    let said = place.restore(&ours, &lock).good();
    assert_eq!(said, "1 added, 0 changed, 0 removed\n");
    place.ipvs("zero", "").good();
    // Its lock says nothing of other namespaces' tables.
    let elsewhere = Place::new();
    elsewhere.ipvsadm("-A -t 192.0.2.1:80 -s rr", "");
    let said = elsewhere.ipvs(&format!("flush{lock}"), "").good();
    assert_eq!(said, "1 service removed\n");

    // A lock that is named by mistake protects nothing.
    let nowhere = place.ipvs("flush --lock /run/no/such.lock", "").bad(1);
    let says = "the lock /run/no/such.lock does not exist";
    assert!(nowhere.starts_with(says), "{nowhere}");
    let both = format!("-A -f 7 -s rr\n{owned}");
    assert_eq!(sorted(&place.ipvsadm("-Sn", "")), sorted(&both));

    // A second one of this socket does not start.
    let second = place.run(env!("CARGO_BIN_EXE_understudy"), &args, "");
    assert_eq!(second.code, Some(1), "{second:?}");
    let why = format!("director.lock is locked by director lb1 (pid {pid})");
    assert!(second.err.contains(&why), "{second:?}");

    let forced = place.ipvs(&format!("flush --force{lock}"), "");
    assert_eq!(
        (forced.code, forced.out.as_str(), forced.err.as_str()),
        (
            Some(0),
            "2 services removed\n",
            &*format!(
                "forced: director lb1 (pid {pid}) undoes it within 500ms where drift = \"repair\"\n"
            )
        )
    );
    wait_until("the director's table again", SOON, has_owned);

    // A director that was killed owns nothing any more.
    drop(director);
    let said = place.ipvs(&format!("flush{lock}"), "").good();
    assert_eq!(said, "1 service removed\n");
    let _again = start();
    wait_until("the director's table", SOON, has_owned);
}
