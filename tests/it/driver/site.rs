//! The example of a site's own driver, over the documented protocol.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
};

use axum::{Router, extract::State, routing::post};
use tokio::net::TcpListener;
use understudy::{
    model::{
        inventory::Server,
        machine::{Boot, Door, Driver, HttpDriver},
    },
    provisioner::{
        driver::Held,
        order::{Class, Hands, Order, Step},
        sealed::Masks,
    },
};

use super::lab::{Machine, Notes, host_os};
use crate::{port::Port, ssh::lab::until};

struct Example {
    process: Child,
    port: Port,
}

impl Example {
    /// Installs by powering `machine`, or fails where it says so.
    async fn start(machine: &Machine, command: Option<&str>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let told = listener.local_addr().unwrap();
        let router = Router::new()
            .route(
                "/",
                post(|State(machine): State<Machine>| async move {
                    machine.set_power(false, false);
                    machine.set_power(true, true);
                }),
            )
            .with_state(machine.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let power = format!(
            "test \"$UNDERSTUDY_MACHINE $UNDERSTUDY_BOOT\" = 'rack 7 pxe' && echo powers it && \
             exec /usr/bin/python3 -c \"import urllib.request as u; u.urlopen('http://{told}/', b'')\""
        );
        let token = machine.path("credential");
        fs::write(&token, "s3cret\n").unwrap();
        let port = Port::new();
        let log = fs::File::create(machine.path("driver.log")).unwrap();
        let process = Command::new("/usr/bin/python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/drivers/example.py"))
            .args([
                "--listen",
                &format!("127.0.0.1:{}", port.number()),
                "--token",
            ])
            .arg(&token)
            .args(["--state"])
            .arg(machine.path("driver-state"))
            .args(["--install", command.unwrap_or(&power)])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        until("the driver to listen", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port.number())).is_ok()
        })
        .await;
        Self { process, port }
    }

    fn driver(&self) -> Driver {
        Driver::Http(Box::new(HttpDriver {
            door: Door {
                url: format!("http://127.0.0.1:{}", self.port.number())
                    .parse()
                    .unwrap(),
                pin: None,
                credential: "bmc".into(),
            },
            machine: "rack 7".into(),
        }))
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_installs_and_a_second_order_finds_what_was_begun() {
    let machine = Machine::new();
    let example = Example::start(&machine, None).await;
    let notes = Notes::default();
    let install = || {
        machine.install(
            notes.clone(),
            "s3cret\n",
            example.driver(),
            machine.image(Boot::Pxe),
        )
    };
    // Dropped in the middle, as a kill does.
    tokio::select! {
        done = install() => panic!("{done:?}"),
        () = until("the installation to begin", || machine.installations() > 0) => {}
    }
    let done = install().await.unwrap();
    assert_eq!(done.os, Some(host_os()));
    assert_eq!(machine.installations(), 1);
}

/// As a server is cleaned that had a role.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_runs_the_system_already_is_installed_anew() {
    let machine = Machine::new();
    let example = Example::start(&machine, None).await;
    let mut server = machine.server(example.driver());
    let perform = async |server: &Server, notes: &Notes, step| {
        let order = Order {
            server: server.clone(),
            fence: 7,
            step,
            masks: Masks::default(),
        };
        let installer = machine.installer(notes.clone(), "s3cret\n");
        installer.perform(&order, &drop).await
    };
    let install = |job: &str, anew| Step::OsInstall {
        job: job.into(),
        image: machine.image(Boot::Pxe),
        anew,
    };
    let first = Notes::default();
    let done = perform(&server, &first, install("lb1.1-1", false)).await;
    done.unwrap();
    server.learnt_keys.clone_from(&first.keys.lock().unwrap());
    perform(&server, &first, Step::Fence).await.unwrap();
    assert!(machine.path("base").exists());
    let done = perform(&server, &first, install("lb1.2-1", false)).await;
    let done = done.unwrap();
    assert!(done.detail.contains("already"), "{}", done.detail);
    assert_eq!(machine.installations(), 1);

    // Somebody else answers there: whoever that is keeps the disk.
    let mut other = server.clone();
    other.learnt_keys = vec![fs::read_to_string(machine.path("id.pub")).unwrap()];
    let e = perform(&other, &Notes::default(), install("clean.0-1", true)).await;
    assert_eq!(e.unwrap_err().code, "host_key_mismatch");
    assert_eq!(machine.installations(), 1);

    let again = Notes::default();
    let done = perform(&server, &again, install("clean.1-1", true)).await;
    let done = done.unwrap();
    assert_eq!(done.os, Some(host_os()));
    assert_eq!(machine.installations(), 2);
    assert!(!machine.path("base").exists(), "a mark of what it was");
    assert!(again.forgot.lock().unwrap().is_some());
    assert_eq!(*again.keys.lock().unwrap(), server.learnt_keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_fails_says_why() {
    let machine = Machine::new();
    let example = Example::start(&machine, Some("echo no such rack; exit 3")).await;
    let image = machine.image(Boot::Pxe);
    let e = machine
        .install(Notes::default(), "s3cret\n", example.driver(), image)
        .await
        .unwrap_err();
    assert_eq!(
        (e.class, e.code),
        (Class::Permanent, "driver_failed"),
        "{e}"
    );
    assert!(e.detail.contains("no such rack"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_is_told_to_stop_and_a_wrong_token_gets_nothing() {
    let machine = Machine::new();
    let example = Example::start(&machine, Some("exec sleep 600")).await;
    let image = machine.image(Boot::Pxe);
    // Asked, begun.
    let notes = Notes::until(2, Held::Cancelled);
    let e = machine
        .install(notes.clone(), "s3cret\n", example.driver(), image.clone())
        .await
        .unwrap_err();
    assert_eq!(e.code, "cancelled", "{e}");
    // Said to whoever asks again with the same key.
    let again = machine.install(
        Notes::default(),
        "s3cret\n",
        example.driver(),
        image.clone(),
    );
    let e = again.await.unwrap_err();
    assert_eq!(e.code, "driver_failed", "{e}");
    assert!(e.detail.contains("cancelled"), "{e}");
    let e = machine
        .install(Notes::default(), "other\n", example.driver(), image)
        .await
        .unwrap_err();
    assert_eq!(e.code, "driver_auth_refused", "{e}");
}

/// The order's answer was lost, or the order is on its way still: its key is all that is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_begun_is_cancelled_by_its_key() {
    let machine = Machine::new();
    let example = Example::start(&machine, Some("exec sleep 600")).await;
    let image = machine.image(Boot::Pxe);
    let install =
        |notes: Notes| machine.install(notes, "s3cret\n", example.driver(), image.clone());
    // Asked; the answer may not be noted any more.
    let notes = Notes::until(1, Held::Cancelled);
    let e = install(notes.clone()).await.unwrap_err();
    assert_eq!(e.code, "cancelled", "{e}");
    assert!(notes.closed.load(Ordering::SeqCst));
    let e = install(Notes::default()).await.unwrap_err();
    assert!(e.detail.contains("cancelled"), "{e}");

    // Noted, and never heard of: the order comes late.
    let note = |job: &str| {
        let notes = Notes::default();
        let note =
            format!(r#"{{"job": "{job}", "at": "?", "since": 0, "media": false, "wiped": false}}"#);
        notes.notes.lock().unwrap().push(note);
        notes
    };
    let machine = Machine::new();
    let example = Example::start(&machine, None).await;
    let installer = machine.installer(note("lb1.1-1"), "s3cret\n");
    let server = machine.server(example.driver());
    installer.tidy(&server).await.unwrap();
    let late = machine.install(
        Notes::default(),
        "s3cret\n",
        example.driver(),
        machine.image(Boot::Pxe),
    );
    let e = late.await.unwrap_err();
    assert!(e.detail.contains("cancelled"), "{e}");
    assert_eq!(machine.installations(), 0);
}
