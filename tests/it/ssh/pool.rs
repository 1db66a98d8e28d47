//! Spares before they are needed: enrolled with the key that they show, and looked at.

use std::{fs, path::Path, process::Command, time::Duration};

use understudy::provisioner::{
    folder,
    order::{Class, Step},
    ssh::{self, HostKey, SshError},
};

use super::lab::{Lab, keygen};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_scan_shows_the_key_that_sshd_has_and_logs_in_nowhere() {
    let lab = Lab::new().await;
    let shown = ssh::scan(lab.peer(), SOON).await.unwrap();
    let file = fs::read_to_string(lab.path("host.pub")).unwrap();
    let key = HostKey::parse(&file).unwrap();
    assert_eq!(HostKey::parse(&shown.line).unwrap(), key);
    assert!(key.describe().ends_with(&shown.fingerprint));
    assert!(!lab.log().contains("userauth"), "{}", lab.log());

    // Somebody who says nothing is not waited for.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = mute.local_addr().unwrap();
    let e = ssh::scan(at, Duration::from_millis(300)).await;
    assert!(matches!(e, Err(SshError::Mute { .. })), "{e:?}");
}

fn add(folder: &Path, args: &[&str]) -> (bool, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(["inventory", "add"])
        .arg(folder)
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let text = [ran.stdout, ran.stderr].concat();
    (ran.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn a_server_is_enrolled_with_the_key_that_was_accepted_and_no_other() {
    let lab = Lab::new().await;
    let inventory = lab.path("inventory");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/inventory");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(example)
        .arg(&inventory)
        .status();
    assert!(copied.unwrap().success());
    let before = fs::read_to_string(inventory.join("servers.toml")).unwrap();
    let port = lab.port.to_string();
    let place = ["spare9", "--address", "127.0.0.1", "--ssh-port", &port];
    let scan = |more: &[&str]| add(&inventory, &[&place, ["--scan"].as_slice(), more].concat());

    let shown = ssh::scan(lab.peer(), SOON).await.unwrap().fingerprint;
    let (done, said) = scan(&[]);
    assert!(!done && said.contains(&shown), "nobody was asked: {said}");
    let (done, said) = scan(&["--accept", "SHA256:other"]);
    assert!(!done && said.contains("nothing was written"), "{said}");
    let text = || fs::read_to_string(inventory.join("servers.toml")).unwrap();
    assert_eq!(text(), before);

    let (done, said) = scan(&["--accept", &shown, "--label", "rack=r1"]);
    assert!(done, "{said}");
    let read = folder::load(&inventory).unwrap();
    let server = &read.servers["spare9"];
    assert_eq!(server.ssh_port, lab.port);
    assert_eq!(server.labels["rack"], "r1");
    assert!(text().starts_with(&before));
    let (done, said) = scan(&["--accept", &shown]);
    assert!(
        !done && said.contains("there is a server spare9 already"),
        "{said}"
    );

    // What the folder would not be read with is taken back.
    let key = &server.host_keys[0];
    let twice = ["spare8", "--address", "127.0.0.1", "--host-key", key];
    let now = text();
    let (done, said) = add(&inventory, &twice);
    assert!(
        !done && said.contains("127.0.0.1 is already at line"),
        "{said}"
    );
    assert_eq!(text(), now);
}

#[tokio::test]
async fn a_look_changes_nothing_and_finds_what_would_go_wrong() {
    let lab = Lab::new().await;
    let done = lab.perform(0, Step::Look).await.unwrap();
    let os = fs::read_to_string("/etc/os-release").unwrap();
    let id = os.lines().find_map(|l| l.strip_prefix("ID=")).unwrap();
    assert!(done.os.unwrap().starts_with(id.trim_matches('"')));
    assert!(!lab.path("base").exists(), "nothing was made there");

    keygen(&lab.path("newer"), &["-t", "ed25519", "-N", ""]);
    fs::copy(lab.path("newer.pub"), lab.path("authorized_keys")).unwrap();
    let refused = lab.perform(0, Step::Look).await.unwrap_err();
    assert_eq!(
        (refused.class, refused.code),
        (Class::Permanent, "auth_refused")
    );
}
