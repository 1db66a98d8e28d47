//! sushy-tools' Redfish emulator over HTTPS with Basic auth, and a machine that it powers.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use axum::{Json, Router, extract::State, routing::put};
use serde_json::Value;
use tokio::net::TcpListener;
use understudy::model::machine::{Door, Driver, Login, Redfish};

use super::lab::{Machine, file, pin};
use crate::{port::Port, ssh::lab::until};

const UUID: &str = "27946b59-9e44-4fa7-8e91-f3527a1ef094";
/// What `tests/vm/prepare` installs.
const PROGRAM: &str = "target/vm/redfish/bin/sushy-emulator";

pub(super) const LOGIN: &str = "root:calvin";
/// Of the password, by bcrypt with the fewest rounds.
const HASHED: &str = "root:$2b$04$qLwe2./MtQ.Y03DjqEDO1OCTitzmIkG/6frVh3np.gSHDr2PadlY6";

pub(super) struct Emulator {
    process: Child,
    port: Port,
}

impl Emulator {
    /// Tells `machine` whenever its power changes.
    pub(super) async fn start(machine: &Machine) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(PROGRAM);
        assert!(
            program.exists(),
            "{PROGRAM} is not there: tests/vm/prepare installs it"
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let told = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", put(power))
            .with_state(machine.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let port = Port::new();
        let dir = machine.path("emulator");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("users"), format!("{HASHED}\n")).unwrap();
        let config = format!(
            "SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {}\n\
             SUSHY_EMULATOR_SSL_CERT = '{}'\nSUSHY_EMULATOR_SSL_KEY = '{}'\n\
             SUSHY_EMULATOR_AUTH_FILE = '{}/users'\nSUSHY_EMULATOR_STATE_DIR = '{}'\n\
             SUSHY_EMULATOR_FAKE_DRIVER = True\n\
             SUSHY_EMULATOR_FAKE_SYSTEMS = [{{'uuid': '{UUID}', 'name': 'spare1', 'power_state': 'On', \
             'external_notifier': True, 'nics': []}}]\n\
             EXTERNAL_NOTIFICATION_URL = 'http://{told}/'\n",
            port.number(),
            file("server.pem").display(),
            file("server.key").display(),
            dir.display(),
            dir.display(),
        );
        fs::write(dir.join("emulator.conf"), config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let process = Command::new(program)
            .arg("--fake")
            .arg("--config")
            .arg(dir.join("emulator.conf"))
            .env("TMPDIR", &dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let emulator = Self { process, port };
        until("the emulator to listen", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, emulator.port.number())).is_ok()
        })
        .await;
        emulator
    }

    pub(super) fn driver(&self) -> Driver {
        Driver::Redfish(Box::new(Redfish {
            door: Door {
                url: format!("https://127.0.0.1:{}", self.port.number())
                    .parse()
                    .unwrap(),
                pin: Some(pin("server.pem")),
                credential: "bmc".into(),
            },
            system: format!("/redfish/v1/Systems/{UUID}"),
            media: None,
            login: Login::Basic,
            boot_mode: None,
        }))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The system as it is from now on.
async fn power(State(machine): State<Machine>, Json(system): Json<Value>) {
    let text = |key: &str| system.get(key).and_then(Value::as_str).map(str::to_owned);
    let from = text("boot_device");
    let medium = system
        .pointer("/boot_image/Cd/2")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let image = match from.as_deref() {
        Some("Pxe") => true,
        Some("Cd") => medium,
        _ => false,
    };
    machine.set_power(text("power_state").as_deref() == Some("On"), image);
}
