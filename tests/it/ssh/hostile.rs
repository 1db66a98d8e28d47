//! Spares that hang, lie, are full, or let nobody in: each ends in its time with the right reason.
//! A real sshd hangs where one stops the process of its session; a phase before that process is a
//! small server here.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use understudy::provisioner::{
    order::{Class, PathTest, Step},
    ssh::{Ssh, SshError},
};

use super::{
    files::{digest, file, hidden},
    lab::{Lab, keygen},
};

/// A silent peer is given up after three keep-alives, five seconds apart.
const SILENT: Duration = Duration::from_secs(40);

/// What a server says to each client before it hangs.
fn hanging(banner: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(banner.as_bytes()).unwrap();
            held.push(stream);
        }
    });
    port
}

#[tokio::test]
async fn who_hangs_before_the_login_is_mute() {
    // As for the login: sshd waits for the command that knows the keys.
    let command = "AuthorizedKeysCommandUser root\nAuthorizedKeysCommand /usr/bin/sleep 60\n\
                   AuthorizedKeysFile none\n";
    let lab = Lab::first(command).await;
    for port in [hanging(""), hanging("SSH-2.0-OpenSSH_9.2\r\n"), lab.port] {
        let mut hands = lab.hands();
        hands.connect_timeout = Duration::from_secs(1);
        let mut server = lab.server();
        server.ssh_port = port;
        let begun = Instant::now();
        let order = lab.order(1, Step::Fence, server);
        let e = perform(&hands, &order).await.unwrap_err();
        assert_eq!((e.class, e.code), (Class::Transient, "mute"), "{e}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

async fn perform(
    hands: &understudy::provisioner::step::SshHands<super::lab::Connects>,
    order: &understudy::provisioner::order::Order,
) -> Result<understudy::provisioner::order::Done, understudy::provisioner::order::StepError> {
    use understudy::provisioner::order::Hands;
    hands.perform(order, &drop).await
}

#[tokio::test]
async fn who_hangs_when_a_channel_is_opened_is_given_up() {
    let lab = Lab::new().await;
    let ssh = lab.connect().await;
    lab.stop_sessions();
    let e = tokio::time::timeout(SILENT, ssh.exec("true", SILENT)).await;
    assert!(matches!(e, Ok(Err(SshError::LinkLost { .. }))), "{e:?}");
}

#[tokio::test]
async fn who_hangs_in_the_middle_of_output_or_at_the_exit_is_given_up() {
    // The session's process runs the command, and is stopped by it.
    let (middle, exit) = (
        "echo @underst; kill -STOP $PPID; sleep 60",
        "sh -c \"$SSH_ORIGINAL_COMMAND\"; kill -STOP $PPID; sleep 60",
    );
    let ended = |command: &'static str| async move {
        let lab = Lab::with(&format!("ForceCommand {command}\n")).await;
        let begun = Instant::now();
        let e = lab.perform(1, Step::Fence).await.unwrap_err();
        assert_eq!((e.class, e.code), (Class::Transient, "link_lost"), "{e}");
        assert!(begun.elapsed() < SILENT);
    };
    tokio::join!(ended(middle), ended(exit));
}

#[tokio::test]
async fn a_command_that_writes_without_end_is_over_at_its_limit() {
    let lab = Lab::new().await;
    let ssh = lab.connect().await;
    let e = ssh.exec("exec yes", Duration::from_secs(1)).await;
    assert!(matches!(e, Err(SshError::CommandTimedOut { .. })), "{e:?}");
}

#[tokio::test]
async fn a_command_that_leaves_a_daemon_on_its_output_returns() {
    let lab = Lab::new().await;
    let step = |start: &str| Step::Configure {
        software: "thing".into(),
        files: Vec::new(),
        running: None,
        start: Some(start.into()),
        reload: None,
    };
    let begun = Instant::now();
    let done = lab.perform(1, step("sleep 60 & echo up")).await.unwrap();
    assert_eq!(done.output, "up\n");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// A small disk in the lab, gone with the test.
struct Disk(std::path::PathBuf);

impl Disk {
    fn new(path: &Path, size: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let tmpfs = Some("tmpfs");
        mount(tmpfs, path, tmpfs, MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(path.to_owned())
    }

    fn fill(&self) {
        // As much as there is room for.
        drop(fs::write(self.0.join("filler"), vec![0; 4 << 20]));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}

#[tokio::test]
async fn a_full_disk_is_said() {
    let lab = Lab::new().await;
    let disk = Disk::new(&lab.path("base"), "256k");
    lab.perform(1, Step::Fence).await.unwrap();
    disk.fill();
    let e = lab.perform(2, Step::Fence).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "spare_unusable"));
    assert!(e.detail.contains("is full"), "{e}");
    let e = lab.perform(1, lab.install("r-0", "true\n", 9)).await;
    let e = e.unwrap_err();
    assert_eq!(e.class, Class::Permanent, "{e}");
    assert!(!lab.path("base/jobs/r-0").exists());
}

#[tokio::test]
async fn a_script_that_fills_the_disk_still_has_its_result() {
    let lab = Lab::new().await;
    let _disk = Disk::new(&lab.path("base"), "512k");
    let script = format!(
        "head -c 4194304 /dev/zero >{}/filler\nseq 1 100000\necho last\nexit 9\n",
        lab.text("base")
    );
    let e = lab.perform(1, lab.install("r-0", &script, 30)).await;
    let e = e.unwrap_err();
    assert_eq!(e.code, "script_failed", "{e}");
    assert!(e.detail.contains("with status 9"), "{e}");
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    let lab = Lab::with("RevokedKeys /dev/null\n").await;
    lab.perform(1, Step::Fence).await.unwrap();
    let list = lab.path("revoked");
    fs::copy(lab.path("id.pub"), &list).unwrap();
    let lab = Lab::with(&format!("RevokedKeys {}\n", list.display())).await;
    fs::copy(lab.path("id.pub"), &list).unwrap();
    let e = lab.perform(1, Step::Fence).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "auth_refused"), "{e}");
}

/// A host key that its authority has signed: certificates are not pinned, revoked or not.
#[tokio::test]
async fn a_host_certificate_is_no_pinned_key() {
    let lab = Lab::new().await;
    keygen(&lab.path("ca"), &["-t", "ed25519", "-N", ""]);
    let e = Ssh::connect(&lab.target(&["ca"]), &lab.key("id")).await;
    let e = e.unwrap_err();
    assert!(matches!(e, SshError::HostKeyMismatch { .. }), "{e}");
}

#[tokio::test]
async fn a_file_that_its_command_refuses_does_not_replace_the_old_one() {
    let lab = Lab::new().await;
    fs::write(lab.path("conf"), "old").unwrap();
    let mut conf = file(&lab, "conf", "new\n");
    conf.validate = Some("grep -q sound {file} || { echo unsound; exit 4; }".into());
    let step = |file| Step::Configure {
        software: "thing".into(),
        files: vec![file],
        running: None,
        start: None,
        reload: None,
    };
    let e = lab.perform(1, step(conf.clone())).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "validate_failed"));
    assert!(e.detail.contains("status 4: unsound"), "{e}");
    assert_eq!(fs::read_to_string(lab.path("conf")).unwrap(), "old");
    assert!(hidden(&lab, "").is_empty(), "the upload is gone");
    conf.body = b"sound\n".to_vec();
    conf.sha256 = digest("sound\n");
    lab.perform(1, step(conf)).await.unwrap();
    assert_eq!(fs::read_to_string(lab.path("conf")).unwrap(), "sound\n");
}

#[tokio::test]
async fn the_way_back_is_read_on_the_spare() {
    let lab = Lab::new().await;
    let code = async |path: PathTest| {
        let step = Step::Test {
            os: super::lab::system(),
            installed: Vec::new(),
            digests: Vec::new(),
            answers: Vec::new(),
            paths: vec![path],
            sealed: Vec::new(),
        };
        match lab.perform(1, step).await {
            Ok(_) => "fine",
            Err(e) => e.code,
        }
    };
    let holds = |vip: &str, own: Option<&str>| PathTest::Holds {
        vip: vip.parse().unwrap(),
        quiet_at: own.map(|a| a.parse().unwrap()),
    };
    assert_eq!(code(holds("127.0.0.1", None)).await, "fine");
    assert_eq!(code(holds("192.0.2.77", None)).await, "vip_missing");
    // The same link has both: nothing could keep it quiet.
    let both = holds("127.0.0.1", Some("127.0.0.1"));
    assert_eq!(code(both).await, "arp_not_quiet");
    let both = holds("::1", Some("::1"));
    assert_eq!(code(both).await, "arp_not_quiet");
    assert_eq!(
        code(holds("::1", Some("2001:db8::77"))).await,
        "address_missing"
    );
    let back = PathTest::Back {
        client: [127, 0, 0, 9].into(),
        gateways: vec![[192, 0, 2, 1].into()],
        own: Some([127, 0, 0, 1].into()),
    };
    assert_eq!(code(back).await, "wrong_way_back");
}

/// sudo as far as we use it: `-n` and `-H` first, then a command. The real one is not on every machine
/// that builds.
fn sudo(lab: &Lab, text: &str) {
    let path = lab.path("bin/sudo");
    fs::create_dir_all(lab.path("bin")).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn another_user_becomes_root_by_sudo_or_is_told() {
    let lab = Lab::with_path().await;
    let mut hands = lab.hands();
    // Another name of the same account, as far as this machine has one; root's name does not elevate.
    hands.elevate = true;
    sudo(&lab, "echo 'sudo: a password is required' >&2; exit 1\n");
    let order = lab.order(1, lab.install("r-0", "echo hello\n", 9), lab.server());
    let e = perform(&hands, &order).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "sudo_refused"), "{e}");
    assert!(e.detail.contains("a password is required"), "{e}");
    // What ends before the first word is no word of sudo's.
    for ends in ["exit 124", "exit 137", "kill -KILL $$"] {
        sudo(&lab, &format!("{ends}\n"));
        let order = lab.order(1, Step::Fence, lab.server());
        let e = perform(&hands, &order).await.unwrap_err();
        assert_eq!(
            (e.class, e.code),
            (Class::Transient, "command_timed_out"),
            "{ends}: {e}"
        );
    }
    let log = lab.text("sudo.log");
    sudo(
        &lab,
        &format!(
            "[ \"$1\" = -n ] || exit 1\nshift\n[ \"$1\" != -H ] || shift\necho \"$1\" >>{log}\nexec \"$@\"\n"
        ),
    );
    let done = perform(&hands, &order).await.unwrap();
    assert_eq!(done.output, "hello\n");
    let used = fs::read_to_string(&log).unwrap();
    assert!(
        used.contains("timeout") && used.contains("sftp-server"),
        "{used}"
    );
}
