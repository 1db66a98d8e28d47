//! Redfish, from the reset to the operating system read back.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{Router, routing::get};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use understudy::{
    model::{
        CheckKind, CheckSpec, CheckTiming, ForwardMethod, PinDigest, Scheduler, Via, Weight,
        inventory::{Cleanup, Inventory, Role, ServerState, Software, SparePolicy},
        machine::{Boot, BootMode, Driver},
        wire::{
            Confirmation, RegisteredServer, RegisteredService, Registration, Replacement,
            ReplacementRequest, ReplacementState, Want,
        },
    },
    provisioner::{
        driver::{Held, Reach},
        engine::{self, Observer, Settings},
        keeper,
        order::{Class, Hands, Order, Step},
        sealed::Masks,
        secrets::Secrets,
        store::{Asked, Store, StoreError},
    },
};

use super::{
    bmc::{Bmc, Habits},
    emulator::{Emulator, LOGIN},
    lab::{Machine, Notes, host_os},
};
use crate::ssh::lab::until;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A web server, and one bare spare.
fn inventory(machine: &Machine, driver: Driver) -> Inventory {
    let role = Role {
        code: "web".into(),
        domain: "shop.example".into(),
        os: host_os(),
        software: vec!["thing".into()],
        install: true,
        gateways: Vec::new(),
        clients: Vec::new(),
        spares: SparePolicy {
            cleanup: Some(Cleanup::Reinstall),
            ..SparePolicy::default()
        },
    };
    let thing = Software {
        name: "thing".into(),
        os: None,
        script: "true\n".into(),
        timeout: Duration::from_secs(20),
        check: None,
        running: None,
        start: None,
        reload: None,
        needs: Vec::new(),
        secrets: Vec::new(),
    };
    let spare = machine.server(driver);
    let mut web = spare.clone();
    web.name = "web1".into();
    web.addresses = vec![ip("10.0.0.1")];
    web.ssh_address = ip("10.0.0.1");
    web.host_keys = vec![machine.public("id")];
    web.role = Some("web".into());
    web.driver = Driver::Ready;
    let image = machine.image(Boot::Pxe);
    Inventory {
        roles: BTreeMap::from([(role.code.clone(), role)]),
        software: vec![thing],
        files: Vec::new(),
        servers: [spare, web].map(|s| (s.name.clone(), s)).into(),
        images: BTreeMap::from([(image.os.clone(), image)]),
    }
}

/// One service on the port where the spare's sshd will be: the service test reaches it.
fn registration(port: u16) -> Registration {
    let service = RegisteredService {
        key: "tcp/192.0.2.1:80".parse().unwrap(),
        scheduler: Scheduler("wlc".into()),
        forward: ForwardMethod::Nat,
        checks: vec![CheckSpec {
            kind: CheckKind::Http(Box::default()),
            via: Via::default(),
            timing: CheckTiming::every(Duration::from_secs(1)),
        }],
        servers: vec![RegisteredServer {
            address: ip("10.0.0.1"),
            port,
            weight: Weight::ONE,
        }],
    };
    Registration {
        address: ip("10.0.0.251"),
        services: vec![service],
    }
}

struct Provisioner(JoinHandle<Result<(), StoreError>>);

impl Provisioner {
    fn start(machine: &Machine, store: &Store) -> Self {
        let hands = Arc::new(machine.installer(store.clone(), LOGIN));
        let stop = CancellationToken::new();
        let settings = Settings::STANDARD;
        let (store, nobody) = (store.clone(), Observer::nobody());
        Self(tokio::spawn(engine::run(
            store,
            hands,
            "test",
            settings,
            Secrets::default(),
            nobody,
            stop,
        )))
    }

    /// As a kill does: in the middle of whatever it waits for.
    async fn kill(self) {
        self.0.abort();
        drop(self.0.await);
    }
}

async fn attaching(store: &Store, replacement: &Replacement) -> Replacement {
    let mut changes = store.changes();
    let wait = async {
        loop {
            changes.borrow_and_update();
            let now = store.replacement(&replacement.id).await.unwrap();
            let working = matches!(
                now.state,
                ReplacementState::Pending
                    | ReplacementState::Claiming
                    | ReplacementState::Configuring
                    | ReplacementState::Testing
            );
            if !working {
                return now;
            }
            assert_eq!(now.reason, None, "{now:?}");
            changes.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(180), wait).await.unwrap()
}

/// The whole chain: a bare spare with power on and nothing to boot is installed by PXE, by way of
/// sushy-tools' emulator, and configured. The provisioner is killed when power went off, and again when
/// the installation runs, and each time finds it where it is. Once it has given its role back it is installed anew,
/// though it runs what is wanted, and is a spare again.
#[tokio::test(flavor = "multi_thread")]
async fn a_bare_spare_is_installed_and_takes_the_role_over_two_kills() {
    let machine = Machine::new();
    machine.set_power(true, false);
    let emulator = Emulator::start(&machine).await;
    let store = Store::open(&machine.path("store")).await.unwrap();
    let inventory = inventory(&machine, emulator.driver());
    store.apply(&inventory, false, "test").await.unwrap();
    let director = "lb1".parse().unwrap();
    let port = machine.server(Driver::Ready).ssh_port;
    store
        .register(&director, &registration(port))
        .await
        .unwrap();
    let request = ReplacementRequest {
        failed: ip("10.0.0.1"),
        director: ip("10.0.0.251"),
        centre: ip("10.0.0.250"),
        name: director,
    };
    let Asked::Taken { replacement, .. } = store.ask("lb1.1", &request).await.unwrap() else {
        panic!("refused");
    };
    let first = Provisioner::start(&machine, &store);
    until("power to go off", || !machine.is_on()).await;
    first.kill().await;
    let second = Provisioner::start(&machine, &store);
    until("the installation to begin", || machine.installations() > 0).await;
    second.kill().await;
    let third = Provisioner::start(&machine, &store);
    let done = attaching(&store, &replacement).await;
    third.kill().await;

    assert_eq!(done.state, ReplacementState::Attaching, "{done:?}");
    assert_eq!(machine.installations(), 1);
    let names: Vec<_> = done.steps.iter().map(|s| s.step.as_str()).collect();
    assert_eq!(
        names,
        [
            "os_install",
            "fence",
            "os",
            "install:thing",
            "configure:thing",
            "test"
        ]
    );
    let world = store.world().await.unwrap();
    let spare = world.servers.get("spare1").unwrap();
    assert_eq!(spare.os_seen, Some(host_os()));
    // The image's key let us in once; its own counts from then on.
    let own = machine.public("etc/ssh_host_ed25519_key");
    assert_eq!(spare.server.learnt_keys, std::slice::from_ref(&own));
    assert_eq!(spare.state, ServerState::Testing);

    let lb1 = "lb1".parse().unwrap();
    let confirm = async |is| {
        let confirmed = store.confirm(&lb1, &done.id, Confirmation { is }).await;
        confirmed.unwrap();
    };
    confirm(Want::Attach).await;
    store.give_back(&lb1, &done.id).await.unwrap();
    confirm(Want::Withdraw).await;
    let settings = keeper::Settings {
        rehearse: None,
        turn: Duration::from_millis(50),
    };
    let hands = Arc::new(machine.installer(store.clone(), LOGIN));
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(keeper::run(
        store.clone(),
        hands,
        settings,
        Secrets::default(),
        Observer::nobody(),
        stop.clone(),
    ));
    let fourth = Provisioner::start(&machine, &store);
    until("the second installation", || machine.installations() > 1).await;
    fourth.kill().await;
    let fifth = Provisioner::start(&machine, &store);
    let clean = async {
        loop {
            let mut world = store.world().await.unwrap();
            let spare = world.servers.remove("spare1").unwrap();
            match spare.state {
                ServerState::Failed | ServerState::Cleaning => {}
                _ => return spare,
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let spare = timeout(Duration::from_secs(180), clean).await.unwrap();
    assert_eq!((spare.state, spare.reason), (ServerState::Ready, None));
    assert_eq!(machine.installations(), 2);
    assert_eq!(spare.server.learnt_keys, [own]);
    fifth.kill().await;
    stop.cancel();
    keeper.await.unwrap();
}

/// The same from a virtual drive, whose image the emulator fetches.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_a_virtual_drive_is_booted_and_taken_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/debian.iso", listener.local_addr().unwrap());
    let router = Router::new().route("/debian.iso", get(|| async { "not much of an image" }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let machine = Machine::new();
    machine.set_power(true, false);
    let emulator = Emulator::start(&machine).await;
    let notes = Notes::default();
    let image = machine.image(Boot::VirtualMedia(url));
    let done = machine
        .install(notes.clone(), LOGIN, emulator.driver(), image)
        .await
        .unwrap();
    assert_eq!(done.os, Some(host_os()));
    assert_eq!(machine.installations(), 1);
    assert!(
        notes.last().unwrap().contains("unloading"),
        "{:?}",
        notes.last()
    );
}

/// Sessions that expire, ETags, an override that is forgotten without a mode, an image that is told when
/// it is gone, properties that are not known, 503 in between.
#[tokio::test(flavor = "multi_thread")]
async fn the_habits_of_vendors_are_borne() {
    let machine = Machine::new();
    machine.set_power(true, false);
    let habits = Habits {
        session: Some(7),
        etags: true,
        needs_mode: true,
        sticky: true,
        busy: true,
        ..Habits::default()
    };
    let bmc = Bmc::start(&machine, habits).await;
    let image = machine.image(Boot::VirtualMedia(
        "https://images.example/debian.iso".into(),
    ));
    let driver = bmc.redfish(Some(BootMode::Uefi));
    let notes = Notes::default();
    machine
        .install(notes.clone(), LOGIN, driver, image)
        .await
        .unwrap();
    // Host keys are forgotten when power is off, and not before.
    let forgot = notes.forgot.lock().unwrap().clone().unwrap();
    assert!(forgot.contains("loading"), "{forgot}");
    assert_eq!(bmc.open_sessions(), 0);
    assert_eq!(
        bmc.changes(),
        [
            "reset ForceOff",
            "eject",
            "insert",
            "boot Cd",
            "reset On",
            "eject"
        ]
    );
    assert!(bmc.sessions() > 1);
    assert!(bmc.is_tidy());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_that_is_refused_or_not_shown_is_said_with_the_remedy() {
    let machine = Machine::new();
    let refuses = Habits {
        refuses_mode: true,
        ..Habits::default()
    };
    let bmc = Bmc::start(&machine, refuses).await;
    let driver = bmc.redfish(Some(BootMode::Uefi));
    let e = machine
        .install(Notes::default(), LOGIN, driver, machine.image(Boot::Pxe))
        .await
        .unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "bmc_refused"), "{e}");
    assert!(e.detail.contains("boot_mode"), "{e}");
}

/// The right to touch the machine is lost at each point: nothing is requested from there on.
#[tokio::test(flavor = "multi_thread")]
async fn who_no_longer_holds_a_machine_requests_nothing() {
    // A note for each request and phase: off, eject, insert …, on.
    for most in 0..6 {
        let machine = Machine::new();
        machine.set_power(true, false);
        let bmc = Bmc::start(&machine, Habits::default()).await;
        let image = machine.image(Boot::VirtualMedia(
            "https://images.example/debian.iso".into(),
        ));
        let notes = Notes::until(most, Held::No);
        let e = machine
            .install(notes.clone(), LOGIN, bmc.redfish(None), image)
            .await
            .unwrap_err();
        assert_eq!(e.class, Class::Fenced, "{most}: {e}");
        let noted = notes.notes.lock().unwrap().len();
        assert_eq!(noted, most);
        let changes = bmc.changes();
        assert!(changes.len() <= most, "{most}: {changes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cancelled_takes_image_and_override_away() {
    let machine = Machine::new();
    machine.set_power(true, false);
    // An eject changes the ETag that the override needs.
    let habits = Habits {
        etags: true,
        session: Some(100),
        ..Habits::default()
    };
    let bmc = Bmc::start(&machine, habits).await;
    let image = machine.image(Boot::VirtualMedia(
        "https://images.example/debian.iso".into(),
    ));
    // Off, eject, insert, override.
    let notes = Notes::until(4, Held::Cancelled);
    let e = machine
        .install(notes.clone(), LOGIN, bmc.redfish(None), image)
        .await
        .unwrap_err();
    assert_eq!(e.code, "cancelled");
    assert!(notes.closed.load(Ordering::SeqCst));
    assert_eq!(bmc.open_sessions(), 0);
    assert!(
        bmc.changes().contains(&"insert".to_owned()),
        "{:?}",
        bmc.changes()
    );
    assert!(bmc.is_tidy(), "{:?}", bmc.changes());
    assert_eq!(machine.installations(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_another_certificate_is_told_nothing() {
    let machine = Machine::new();
    let bmc = Bmc::start(&machine, Habits::default()).await;
    for pin in [Some(PinDigest([7; 32])), None] {
        let mut redfish = bmc.driver(None);
        redfish.door.pin = pin;
        let driver = Driver::Redfish(Box::new(redfish));
        let e = machine
            .install(Notes::default(), LOGIN, driver, machine.image(Boot::Pxe))
            .await
            .unwrap_err();
        assert_eq!(
            (e.class, e.code),
            (Class::Permanent, "driver_distrusted"),
            "{e}"
        );
        assert!(e.detail.contains("pin_sha256"), "{e}");
    }
    assert_eq!(bmc.asked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_once() {
    let machine = Machine::new();
    let bmc = Bmc::start(&machine, Habits::default()).await;
    let notes = Notes::default();
    let e = machine
        .install(
            notes.clone(),
            "root:wrong",
            bmc.redfish(None),
            machine.image(Boot::Pxe),
        )
        .await
        .unwrap_err();
    assert_eq!(
        (e.class, e.code),
        (Class::Permanent, "bmc_auth_refused"),
        "{e}"
    );
    assert!(!e.to_string().contains("wrong"), "{e}");
    assert_eq!(bmc.asked(), 1);
    // Nothing was asked for: nothing is to be put away, and the host keys stay.
    assert_eq!(notes.last(), None);
    assert_eq!(*notes.forgot.lock().unwrap(), None);
}

/// What a machine that answers already runs is looked at before its disk is.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_runs_what_is_wanted_is_left_as_it_is() {
    let machine = Machine::new();
    let bmc = Bmc::start(&machine, Habits::default()).await;
    machine.set_power(true, true);
    let mut image = machine.image(Boot::Pxe);
    let installer = machine.installer(Notes::default(), LOGIN);
    let mut server = machine.server(bmc.redfish(None));
    server.host_keys = vec![machine.public("image")];
    until("sshd", || {
        std::net::TcpStream::connect(("127.0.0.1", server.ssh_port)).is_ok()
    })
    .await;
    let order = |image: &understudy::model::machine::Image, wipe| {
        let mut server = server.clone();
        server.wipe = wipe;
        server
            .host_keys
            .push(machine.public("etc/ssh_host_ed25519_key"));
        Order {
            server,
            fence: 7,
            step: Step::OsInstall {
                job: "lb1.1-1".into(),
                image: image.clone(),
                anew: false,
            },
            masks: Masks::default(),
        }
    };
    let done = installer
        .perform(&order(&image, true), &drop)
        .await
        .unwrap();
    assert!(done.detail.contains("already"), "{}", done.detail);
    assert_eq!(bmc.asked(), 0);
    // Looked at beforehand it is sound; a bare one is told from one that nobody could install.
    let look = |driver| {
        let mut server = order(&image, true).server;
        server.driver = driver;
        server.ssh_port = 1;
        let step = Step::Look;
        let fence = 0;
        Order {
            server,
            fence,
            step,
            masks: Masks::default(),
        }
    };
    let e = installer.perform(&look(bmc.redfish(None)), &drop).await;
    assert_eq!(e.unwrap_err().code, "bare");
    let e = installer.perform(&look(Driver::Ready), &drop).await;
    assert_eq!(e.unwrap_err().code, "refused");
    let mut elsewhere = bmc.driver(None);
    elsewhere.door.pin = None;
    let elsewhere = Driver::Redfish(Box::new(elsewhere));
    let e = installer
        .perform(&look(elsewhere), &drop)
        .await
        .unwrap_err();
    assert_eq!(e.code, "refused");
    assert!(e.detail.contains("driver_distrusted"), "{e}");
    assert_eq!(bmc.changes(), [""; 0]);
    let asked = bmc.asked();
    // Another one would be installed, but not where the disk may not be wiped.
    image.os = "plan-9".into();
    let e = installer
        .perform(&order(&image, false), &drop)
        .await
        .unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "wipe_forbidden"));
    assert_eq!(bmc.asked(), asked);
}

const ISO: &str = "https://images.example/debian.iso";

/// It would be wiped by its next boot, in the middle of its service.
#[tokio::test(flavor = "multi_thread")]
async fn a_boot_override_that_stays_keeps_a_spare_from_its_role() {
    let machine = Machine::new();
    let habits = Habits {
        keeps_override: true,
        ..Habits::default()
    };
    let bmc = Bmc::start(&machine, habits).await;
    let notes = Notes::default();
    let image = machine.image(Boot::VirtualMedia(ISO.into()));
    let e = machine
        .install(notes.clone(), LOGIN, bmc.redfish(None), image)
        .await
        .unwrap_err();
    assert_eq!(
        (e.class, e.code),
        (Class::Permanent, "boot_override_left"),
        "{e}"
    );
    assert_eq!(machine.installations(), 1);
    // The image went all the same, and the rest is not forgotten.
    assert!(!bmc.is_tidy());
    assert_eq!(bmc.changes().iter().filter(|c| *c == "eject").count(), 2);
    assert!(!notes.closed.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_stays_is_told_and_keeps_nobody_from_its_role() {
    let machine = Machine::new();
    let habits = Habits {
        keeps_image: true,
        ..Habits::default()
    };
    let bmc = Bmc::start(&machine, habits).await;
    let notes = Notes::default();
    let image = machine.image(Boot::VirtualMedia(ISO.into()));
    let done = machine
        .install(notes.clone(), LOGIN, bmc.redfish(None), image)
        .await
        .unwrap();
    assert!(done.detail.contains("take it out"), "{}", done.detail);
    let trouble = notes.trouble.lock().unwrap().clone().unwrap();
    assert!(trouble.starts_with("media_left: "), "{trouble}");
}

fn order(machine: &Machine, driver: Driver, image: understudy::model::machine::Image) -> Order {
    Order {
        server: machine.server(driver),
        fence: 7,
        step: Step::OsInstall {
            job: "lb1.1-1".into(),
            image,
            anew: false,
        },
        masks: Masks::default(),
    }
}

/// A controller that falls silent with image and override in place: whoever comes later puts them away.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_controller_keeps_is_put_away_when_it_answers() {
    let machine = Machine::new();
    let bmc = Bmc::start(&machine, Habits::default()).await;
    let notes = Notes::default();
    let mut installer = machine.installer(notes.clone(), LOGIN);
    installer.pace.silence = Duration::from_millis(500);
    let image = machine.image(Boot::VirtualMedia(ISO.into()));
    let order = order(&machine, bmc.redfish(None), image);
    let falls_silent = async {
        until("the image", || bmc.changes().contains(&"insert".to_owned())).await;
        bmc.set_down(true);
        std::future::pending::<()>().await;
    };
    let e = tokio::select! {
        e = installer.perform(&order, &drop) => e.unwrap_err(),
        () = falls_silent => unreachable!(),
    };
    assert_eq!((e.class, e.code), (Class::Transient, "bmc_busy"), "{e}");
    assert!(!bmc.is_tidy());
    // As the engine leaves it after the last try: noted, in nobody's hands.
    installer.tidy(&order.server).await.unwrap_err();
    assert!(!notes.closed.load(Ordering::SeqCst));
    bmc.set_down(false);
    installer.tidy(&order.server).await.unwrap();
    assert!(bmc.is_tidy(), "{:?}", bmc.changes());
    assert!(notes.closed.load(Ordering::SeqCst));
    // Nothing is left: nothing more is asked.
    let asked = bmc.asked();
    installer.tidy(&order.server).await.unwrap();
    assert_eq!(bmc.asked(), asked);
}

/// Its driver names another machine: that one goes off, and this one goes on answering.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_without_power_is_another_machine() {
    let (machine, other) = (Machine::new(), Machine::new());
    machine.set_power(true, true);
    let bmc = Bmc::start(&other, Habits::default()).await;
    let mut image = machine.image(Boot::Pxe);
    image.os = "plan-9".into();
    let mut order = order(&machine, bmc.redfish(None), image);
    let notes = Notes::default();
    let installer = machine.installer(notes.clone(), LOGIN);
    // After the first login it has a key of its own.
    for key in ["image", "etc/ssh_host_ed25519_key"] {
        order.server.host_keys = vec![machine.public(key)];
        let answers = async {
            while let Err(e) = installer
                .hands
                .look(&order.server, order.server.pins())
                .await
            {
                assert_ne!(e.code, "auth_refused", "{e}");
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(60), answers).await.unwrap();
    }
    let e = installer.perform(&order, &drop).await.unwrap_err();
    assert_eq!(
        (e.class, e.code),
        (Class::Permanent, "wrong_machine"),
        "{e}"
    );
    // Nothing more is asked of it, and nothing is to be put away later.
    assert_eq!(bmc.changes(), ["reset ForceOff"]);
    assert!(notes.closed.load(Ordering::SeqCst));
    assert_eq!(*notes.forgot.lock().unwrap(), None);
    assert_eq!(other.installations(), 0);
}

/// Somebody else at its address is neither a bare machine nor leave to wipe one.
#[tokio::test(flavor = "multi_thread")]
async fn another_host_key_is_neither_bare_nor_installed_over() {
    let machine = Machine::new();
    machine.set_power(true, true);
    let bmc = Bmc::start(&machine, Habits::default()).await;
    let mut order = order(&machine, bmc.redfish(None), machine.image(Boot::Pxe));
    order.server.host_keys = vec![machine.public("id")];
    until("sshd", || {
        std::net::TcpStream::connect(("127.0.0.1", order.server.ssh_port)).is_ok()
    })
    .await;
    let installer = machine.installer(Notes::default(), LOGIN);
    let e = installer.perform(&order, &drop).await.unwrap_err();
    assert_eq!(e.code, "host_key_mismatch", "{e}");
    order.step = Step::Look;
    let e = installer.perform(&order, &drop).await.unwrap_err();
    assert_eq!(e.code, "host_key_mismatch", "{e}");
    assert_eq!(bmc.changes(), [""; 0]);
}

/// The limit of an installation goes on over restarts.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_gives_no_installation_more_time() {
    let machine = Machine::new();
    let bmc = Bmc::start(&machine, Habits::default()).await;
    let notes = Notes::default();
    let note =
        r#"{"job": "lb1.1-1", "at": "installing", "since": 0, "media": false, "wiped": true}"#;
    notes.notes.lock().unwrap().push(note.to_owned());
    let order = order(&machine, bmc.redfish(None), machine.image(Boot::Pxe));
    let installer = machine.installer(notes, LOGIN);
    let e = timeout(Duration::from_secs(60), installer.perform(&order, &drop));
    let e = e.await.unwrap().unwrap_err();
    assert_eq!(e.code, "os_install_timed_out", "{e}");
}

/// Whoever noted something too long ago may have lost the machine since.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_noted_long_ago_is_not_requested() {
    let machine = Machine::new();
    let bmc = Bmc::start(&machine, Habits::default()).await;
    let notes = Notes::default();
    let mut installer = machine.installer(notes.clone(), LOGIN);
    installer.pace.silence = Duration::from_millis(500);
    installer.pace.fresh = Duration::ZERO;
    let order = order(&machine, bmc.redfish(None), machine.image(Boot::Pxe));
    let e = installer.perform(&order, &drop).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Transient, "store_slow"), "{e}");
    assert!(notes.last().is_some());
    assert_eq!(bmc.changes(), [""; 0]);
}
