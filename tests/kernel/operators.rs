//! Who may ask a director and who may order, by the users and groups of a host; and what it explains.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use understudy::director::explain::{Explanation, Place};

use crate::lab::server::Tree;
use crate::lab::{Lab, vip4};
use crate::scene::{SOON, WIRING, understudy, wait_for_page, wait_for_table};

/// Accounts that the director's mount namespace alone has. Who is in no account is in the group of its process.
const PASSWD: &str = "olga:x:4001:4001::/:/bin/false\nrita:x:4002:4002::/:/bin/false\n";
const GROUP: &str = "lvs-admin:x:4100:olga\nlvs-read:x:4200:rita\n";

/// In that mount namespace.
const START: &str = r#"
mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group || exit 9
shift
exec "$@"
"#;

/// Whether the program does it for this user and group, and what it says.
fn asked(lab: &Lab, (uid, gid): (u32, u32), args: &[&str]) -> (bool, String) {
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={uid}"), format!("--regid={gid}")])
        .args([
            "--clear-groups",
            &format!("{}/understudy", lab.dir().display()),
        ])
        .args(args)
        .args(["--socket", &lab.director_socket()]);
    let output = lab.director.run(move || command.output().unwrap());
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn explained(lab: &Lab, server: &str) -> Explanation {
    let socket = lab.director_socket();
    let args = ["explain", server, "-o", "json", "--socket", &socket];
    let mut all: Vec<Explanation> = serde_json::from_str(&understudy(lab, &args)).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn operators_get_in_by_their_groups_and_are_told_why() {
    let lab = Lab::new(WIRING, &[("web1", Tree::Web), ("web2", Tree::Web)]);
    let vip = vip4(80);
    let config = lab.write_lone_director(&format!(
        r#"[operators]
read = ["lvs-read", 4300, "lvs-nobody"]
change = "lvs-admin"

[[virtual_service]]
address = "{vip}"
scheduler = "rr"
forward = "nat"
check = {{ interval = "500ms", timeout = "2s", rise = 2, fall = 2 }}
damping = {{ half_life = "0s" }}
real_server = [{{ address = "10.77.1.11:80" }}, {{ address = "10.77.1.12:80", weight = 3 }}]
"#,
    ));
    for (file, more) in [("passwd", PASSWD), ("group", GROUP)] {
        let own = fs::read_to_string(format!("/etc/{file}")).unwrap();
        fs::write(lab.dir().join(file), own + more).unwrap();
    }
    // Others may pass to the socket, and run the program.
    fs::set_permissions(lab.dir(), Permissions::from_mode(0o711)).unwrap();
    let program = env!("CARGO_BIN_EXE_understudy");
    fs::copy(program, lab.dir().join("understudy")).unwrap();
    let dir = lab.dir().display().to_string();
    let start = ["-m", "sh", "-c", START, "sh", &dir];
    let run = [
        program,
        "director",
        "--config",
        &config,
        "--log-format",
        "json",
    ];
    let mut director = lab.process("director", "unshare", &[&start[..], &run].concat());
    director.wait_for_log("director is ready", SOON);
    director.wait_for_log("lvs-nobody, which this host does not have", SOON);
    let both = |table: &crate::scene::Table| table.len() == 2;
    wait_for_table(&lab, "both servers", SOON, both);

    let (olga, rita) = ((4001, 4001), (4002, 4002));
    let (by_number, nobody) = ((4003, 4300), (4004, 4004));
    let drain = ["weight", "10.77.1.12", "7", "--reason", "more memory"];
    for (who, reads, orders) in [
        (olga, true, true),
        (rita, true, false),
        (by_number, true, false),
        (nobody, false, false),
        ((0, 0), true, true),
    ] {
        let (may, said) = asked(&lab, who, &["status"]);
        assert_eq!(may, reads, "{who:?}: {said}");
        assert_eq!(said.contains("may not ask"), !reads, "{said}");
        // A warning for whoever reads: the group that is not there.
        assert_eq!(said.contains("lvs-nobody"), reads, "{said}");
        let (may, said) = asked(&lab, who, &drain);
        assert_eq!(may, orders, "{who:?}: {said}");
        assert_eq!(said.contains("may not change"), !orders, "{said}");
    }

    let ordered = explained(&lab, "10.77.1.12");
    assert_eq!(
        (ordered.rule.as_str(), ordered.place),
        ("ordered_weight", Place::In)
    );
    assert!(ordered.why.contains("more memory"), "{}", ordered.why);
    assert_eq!(
        (
            ordered.weight.configured,
            ordered.weight.wanted,
            ordered.kernel.unwrap().weight
        ),
        (3, Some(7), 7)
    );
    assert!(
        ordered
            .checks
            .iter()
            .all(|check| check.found.as_deref() == Some("passed"))
    );

    // Who failed is told so, with what the kernel no longer has.
    lab.server("web1").kill_nginx();
    wait_for_table(&lab, "one server", SOON, |table| table.len() == 1);
    wait_for_page(&lab, vip, "web2", SOON);
    let failed = explained(&lab, "10.77.1.11:80");
    assert_eq!(
        (failed.rule.as_str(), failed.place, failed.kernel),
        ("failed", Place::Out, None)
    );
    let serving = explained(&lab, "10.77.1.12").kernel.unwrap();
    assert!(serving.active + serving.inactive > 0, "{serving:?}");
    let socket = lab.director_socket();
    let text = understudy(&lab, &["explain", "10.77.1.11", "--socket", &socket]);
    assert!(text.contains("OUT OF SERVICE, down for "), "{text}");
    assert!(text.contains("connection refused"), "{text}");
}
