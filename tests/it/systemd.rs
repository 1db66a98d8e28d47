//! What the service manager hears.

use std::{os::unix::net::UnixDatagram, process::Command, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy::{clock, systemd};

#[test]
fn the_service_manager_hears_of_the_daemons_life() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "systemd::lives", "--ignored"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .env_remove("WATCHDOG_PID")
        .spawn()
        .unwrap();
    let mut heard = Vec::new();
    while heard.last().is_none_or(|l| l != "STOPPING=1\n") {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).unwrap();
        heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    assert!(daemon.wait().unwrap().success());
    let pings = heard.iter().filter(|l| *l == "WATCHDOG=1\n").count();
    assert!(pings >= 1, "{heard:?}");
    heard.retain(|l| l != "WATCHDOG=1\n");
    let longer = "EXTEND_TIMEOUT_USEC=10000000\n";
    assert_eq!(
        heard,
        ["READY=1\n", "STATUS=3 of 3 up\n", longer, "STOPPING=1\n"]
    );
}

#[tokio::test]
#[ignore = "the daemon of the test above"]
async fn lives() {
    let (_beat, heartbeat) = watch::channel(clock::now());
    let stop = CancellationToken::new();
    systemd::ready();
    systemd::status("3 of 3\nup");
    let until = tokio::time::sleep(Duration::from_millis(150));
    tokio::select! {
        () = systemd::watchdog(heartbeat, stop) => panic!("the watchdog ended by itself"),
        () = until => {}
    }
    systemd::stopping_takes(Duration::from_secs(10));
    systemd::stopping();
}
