use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    time::Duration,
};

use understudy::provisioner::{
    order::{Class, Hands, Step, StepError},
    ssh::{ClientKey, ClientKeyError, End, HostKey, Ssh, SshError},
};

use super::lab::{Lab, keygen, until};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_pinned_key_connects_also_beside_others() {
    let lab = Lab::new().await;
    for pins in [["host"].as_slice(), &["other", "host"]] {
        let ssh = Ssh::connect(&lab.target(pins), &lab.key("id")).await;
        let ssh = ssh.unwrap();
        let ran = ssh.exec("echo hello; echo oops >&2; exit 7", SOON).await;
        let ran = ran.unwrap();
        assert_eq!(ran.end, End::Exit(7));
        assert_eq!(
            (ran.stdout.text(), ran.stderr.text()),
            ("hello\n".into(), "oops\n".into())
        );
        ssh.close().await;
    }
}

#[tokio::test]
async fn an_ecdsa_key_logs_in() {
    let lab = Lab::new().await;
    keygen(&lab.path("ec"), &["-t", "ecdsa", "-N", ""]);
    fs::copy(lab.path("ec.pub"), lab.path("authorized_keys")).unwrap();
    Ssh::connect(&lab.target(&["host"]), &lab.key("ec"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_key_that_is_not_pinned_gets_no_login_attempt() {
    let lab = Lab::new().await;
    let e = Ssh::connect(&lab.target(&["other"]), &lab.key("id")).await;
    let e = e.unwrap_err();
    let fingerprint = |name: &str| {
        let text = fs::read_to_string(lab.path(name)).unwrap();
        HostKey::parse(&text).unwrap().describe()
    };
    let text = e.to_string();
    assert!(matches!(e, SshError::HostKeyMismatch { .. }), "{e:?}");
    assert!(text.contains(&format!("expected {}", fingerprint("other.pub"))));
    assert!(text.contains(&format!("seen {}", fingerprint("host.pub"))));
    let step = StepError::from(e);
    assert_eq!(
        (step.class, step.code),
        (Class::Permanent, "host_key_mismatch")
    );
    // sshd has seen the end of this connection, and no user name.
    until("sshd to log the end", || lab.log().contains("[preauth]")).await;
    until("the connection to end", || {
        lab.log().contains("closed by 127.0.0.1")
    })
    .await;
    assert!(!lab.log().contains("userauth"), "{}", lab.log());
    // The log would show one.
    lab.connect().await.close().await;
    assert!(lab.log().contains("userauth-request for user root"));
}

#[tokio::test]
async fn a_server_without_a_key_of_a_pinned_type_is_a_mismatch() {
    let lab = Lab::new().await;
    keygen(&lab.path("ec"), &["-t", "ecdsa", "-N", ""]);
    let e = Ssh::connect(&lab.target(&["ec"]), &lab.key("id")).await;
    let e = e.unwrap_err();
    assert!(matches!(e, SshError::HostKeyMismatch { .. }), "{e:?}");
    assert!(
        e.to_string().contains("only keys of the types ssh-ed25519"),
        "{e}"
    );
    assert!(!lab.log().contains("userauth"));
}

#[tokio::test]
async fn an_unknown_user_key_is_refused_and_named() {
    let lab = Lab::new().await;
    let key = lab.key("stranger");
    let e = Ssh::connect(&lab.target(&["host"]), &key)
        .await
        .unwrap_err();
    assert!(matches!(e, SshError::AuthRefused { .. }), "{e:?}");
    assert!(e.to_string().contains(&key.fingerprint()), "{e}");
    let step = StepError::from(e);
    assert_eq!((step.class, step.code), (Class::Permanent, "auth_refused"));
}

#[tokio::test]
async fn peers_that_do_not_answer_are_told_apart() {
    let lab = Lab::new().await;
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut target = lab.target(&["host"]);
    target.peer = mute.local_addr().unwrap();
    target.connect_timeout = Duration::from_millis(300);
    let key = lab.key("id");
    let ended = tokio::time::timeout(Duration::from_secs(20), Ssh::connect(&target, &key)).await;
    let e = ended.expect("an end within the limit").unwrap_err();
    assert!(matches!(e, SshError::Mute { .. }), "{e:?}");
    assert_eq!(StepError::from(e).class, Class::Transient);
    drop(mute);
    let e = Ssh::connect(&target, &lab.key("id")).await.unwrap_err();
    assert!(matches!(e, SshError::Refused { .. }), "{e:?}");
    // The kernel makes no TCP connection to a broadcast address, whatever network this host is in.
    target.peer = "255.255.255.255:22".parse().unwrap();
    let e = Ssh::connect(&target, &lab.key("id")).await.unwrap_err();
    assert!(matches!(e, SshError::Local { .. }), "{e:?}");
}

#[tokio::test]
async fn unusable_keys_name_the_file_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    keygen(&at("rsa"), &["-t", "rsa", "-N", ""]);
    keygen(&at("rsa_pem"), &["-t", "rsa", "-m", "PEM", "-N", ""]);
    keygen(&at("rsa_pkcs8"), &["-t", "rsa", "-m", "PKCS8", "-N", ""]);
    keygen(&at("locked"), &["-t", "ed25519", "-N", "secret"]);
    keygen(
        &at("locked_pkcs8"),
        &["-t", "ecdsa", "-m", "PKCS8", "-N", "secret"],
    );
    keygen(
        &at("ecdsa_pkcs8"),
        &["-t", "ecdsa", "-m", "PKCS8", "-N", ""],
    );
    fs::write(at("empty"), "").unwrap();
    let load = |name: &str| ClientKey::load(&at(name));
    assert!(load("ecdsa_pkcs8").is_ok());
    for (name, remedy) in [
        ("rsa", "ssh-keygen -t ed25519"),
        ("rsa_pem", "is an RSA key"),
        ("rsa_pkcs8", "is an RSA key"),
        ("rsa.pub", "without .pub"),
        ("locked", "without one"),
        ("locked_pkcs8", "is encrypted"),
        ("empty", "ssh-keygen -t ed25519"),
        ("nowhere", "check the path"),
    ] {
        let e = load(name).unwrap_err();
        let path = at(name).display().to_string();
        assert!(
            e.to_string().contains(remedy) && e.to_string().contains(&path),
            "{e}"
        );
    }
    let e = ClientKey::load(Path::new("/")).unwrap_err();
    assert!(matches!(e, ClientKeyError::Unreadable { .. }));
}

#[tokio::test]
async fn a_signal_a_lost_link_and_a_late_command_are_no_status() {
    let lab = Lab::new().await;
    let ssh = lab.connect().await;
    let ran = ssh.exec("kill -SEGV $$", SOON).await.unwrap();
    assert_eq!(ran.end, End::Signal("SEGV".into()));
    let e = ssh.exec("exec sleep 5", Duration::from_millis(200)).await;
    assert!(matches!(e, Err(SshError::CommandTimedOut { .. })), "{e:?}");
    let started = lab.path("started");
    let command = format!("echo >{}; exec sleep 5", started.display());
    let (e, ()) = tokio::join!(ssh.exec(&command, SOON), async {
        until("the command to start", || started.exists()).await;
        assert!(lab.cut() > 0);
    });
    assert!(matches!(e, Err(SshError::LinkLost { .. })), "{e:?}");
}

#[tokio::test]
async fn output_is_bounded_and_keeps_both_ends() {
    let lab = Lab::new().await;
    let ssh = lab.connect().await;
    let command = "echo first; head -c 8388608 /dev/zero | tr '\\0' x; echo last";
    let ran = ssh.exec(command, SOON).await.unwrap();
    let text = ran.stdout.text();
    assert!(text.len() < 400_000 && text.starts_with("first\nx") && text.ends_with("xlast\n"));
    assert!(text.contains("bytes left out"));
}

#[tokio::test]
async fn a_chatty_shell_is_not_taken_for_an_answer() {
    let lab = Lab::with("ForceCommand echo Welcome; eval \"$SSH_ORIGINAL_COMMAND\"\n").await;
    lab.perform(1, Step::Fence).await.unwrap();
    let wanted = "plan9-4".into();
    let e = lab.perform(1, Step::Os { wanted }).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Unsuitable, "os_mismatch"));
    assert!(e.output.starts_with("debian-"));
}

#[tokio::test]
async fn a_shell_that_runs_nothing_is_said() {
    let lab = Lab::with("ForceCommand echo This account is not available.\n").await;
    let e = lab.perform(1, Step::Fence).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "shell_unusable"));
}

#[tokio::test]
async fn a_server_without_sftp_is_said() {
    let lab = Lab::with("").await;
    let e = lab
        .perform(1, lab.install("j", "true", 5))
        .await
        .unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "sftp_missing"));
}

/// A log-in costs more than most steps: those of one attempt share one, and nobody keeps it open.
#[tokio::test]
async fn the_steps_of_an_attempt_log_in_once() {
    let lab = Lab::new().await;
    let hands = lab.hands();
    let perform = async |fence, step| {
        let order = lab.order(fence, step, lab.server());
        hands.perform(&order, &drop).await
    };
    let said = |what: &str| lab.log().matches(what).count();
    let logins = || said("Accepted publickey for root");
    perform(1, Step::Fence).await.unwrap();
    perform(1, lab.install("r-0", "true\n", 9)).await.unwrap();
    perform(1, lab.install("r-1", "true\n", 9)).await.unwrap();
    assert_eq!(logins(), 1);
    // Another attempt, or another provisioner's.
    perform(2, Step::Fence).await.unwrap();
    assert_eq!(logins(), 2);
    // Whatever was wrong, the next try begins anew.
    let wanted = "templeos-5".to_owned();
    perform(2, Step::Os { wanted }).await.unwrap_err();
    perform(2, Step::Fence).await.unwrap();
    assert_eq!(logins(), 3);
    // A key that was withdrawn meanwhile is seen.
    let mut order = lab.order(2, Step::Fence, lab.server());
    order.server.host_keys = vec![fs::read_to_string(lab.path("other.pub")).unwrap()];
    let e = hands.perform(&order, &drop).await.unwrap_err();
    assert_eq!(e.code, "host_key_mismatch");
    until("all connections to be closed", || {
        said("Received disconnect from") == logins()
    })
    .await;
}
