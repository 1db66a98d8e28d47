//! A provisioner of the product beside what a director tells it with, over TLS: stopped, killed, started again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use understudy::{
    agent::link,
    api::client::Client,
    config::{self, Director},
    director::{Event, Outbox},
    model::{IncidentKey, wire::Replacement},
    tls::{self, Identity as _},
};

use super::{
    pki::{Authority, Leaf, Side},
    port::Port,
};

/// Nothing here takes so long.
const LIMIT: Duration = Duration::from_secs(60);

/// Number of the director's certificate.
const DIRECTOR: u64 = 42;

struct Provisioner {
    dir: tempfile::TempDir,
    side: Side,
    port: Port,
    child: Option<Child>,
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Provisioner {
    fn new(ca: &Authority) -> Self {
        let leaf = Leaf {
            names: &["127.0.0.1"],
            ..Leaf::GOOD
        };
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.path().join("ssh_key"))
            .status();
        assert!(made.unwrap().success());
        let provisioner = Self {
            dir,
            side: Side::new(ca, &leaf, ca),
            port: Port::new(),
            child: None,
        };
        provisioner.side.write("crl.pem", &ca.revoke(&[]));
        provisioner.configure(&["lb1"]);
        provisioner
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, directors: &[&str]) {
        let here = self.dir.path().display();
        let tls = self.side.dir.path().display();
        let listed = directors.iter().map(|name| {
            format!("[[director]]\nname = \"{name}\"\ncertificate = \"{name}.example\"\n")
        });
        let text = format!(
            "[provisioner]\naddress = \"10.77.0.1\"\nstate_dir = \"{here}/state\"\nsocket = \"{here}/p.sock\"\n\
             listen = \"127.0.0.1:{}\"\n\
             [provisioner.tls]\ncertificate = \"{tls}/cert.pem\"\nkey = \"{tls}/key.pem\"\nca = \"{tls}/ca.pem\"\ncrl = \"{tls}/crl.pem\"\n\
             [ssh]\nkey = \"{here}/ssh_key\"\n{}",
            self.port.number(),
            listed.collect::<String>()
        );
        fs::write(self.path("provisioner.toml"), text).unwrap();
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_understudy"))
            .arg("provisioner")
            .arg("--config")
            .arg(self.path("provisioner.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        let id = Pid::from_raw(i32::try_from(id).unwrap());
        kill(id, signal).unwrap();
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn files(side: &Side) -> config::TlsFiles {
    config::TlsFiles {
        certificate: side.path("cert.pem"),
        key: side.path("key.pem"),
        ca: side.path("ca.pem"),
        crl: None,
    }
}

/// What a director tells a provisioner with, and what it hears.
struct Telling {
    outbox: watch::Sender<Outbox>,
    events: mpsc::Receiver<Event>,
    _tasks: JoinSet<()>,
    _in_force: watch::Sender<Arc<Director>>,
    _side: Side,
}

impl Telling {
    fn begin(ca: &Authority, ports: &[u16]) -> Self {
        let leaf = Leaf {
            names: &["lb1.example"],
            serial: DIRECTOR,
            ..Leaf::GOOD
        };
        let side = Side::new(ca, &leaf, ca);
        let tls = side.dir.path().display();
        let urls = ports.iter().map(|p| format!("\"https://127.0.0.1:{p}\""));
        let urls: Vec<_> = urls.collect();
        let text = format!(
            "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n\
             [provisioner]\naddress = \"10.77.0.1\"\nurls = [{}]\n\
             [provisioner.tls]\ncertificate = \"{tls}/cert.pem\"\nkey = \"{tls}/key.pem\"\nca = \"{tls}/ca.pem\"\n\
             [[virtual_service]]\naddress = \"192.0.2.1:80\"\nscheduler = \"wlc\"\nforward = \"nat\"\n\
             real_server = [{{ address = \"10.77.1.11:80\" }}, {{ address = \"10.77.1.12:80\" }}]\n",
            urls.join(", ")
        );
        let config = config::director::parse(Path::new("d.toml"), &text).unwrap();
        let config = Arc::new(config);
        let to = config.provisioner.clone().unwrap();
        let identity = tls::Client::read(&files(&side)).unwrap();
        let identity = watch::Sender::new(Arc::new(identity)).subscribe();
        let client = Client::of(to.at.clone(), Some(identity));
        let (events_tx, events) = mpsc::channel(64);
        let outbox = watch::Sender::new(Outbox::default());
        let in_force = watch::Sender::new(Arc::clone(&config));
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        tasks.spawn(link::follow(
            in_force.subscribe(),
            client.clone(),
            events_tx.clone(),
            stop.clone(),
        ));
        let told = outbox.subscribe();
        tasks.spawn(link::deliver(config, (to, client), told, events_tx, stop));
        Self {
            outbox,
            events,
            _tasks: tasks,
            _in_force: in_force,
            _side: side,
        }
    }

    fn ask(&self, number: u64) {
        let key = IncidentKey {
            director: "lb1".parse().unwrap(),
            failed: [10, 77, 1, 11].into(),
            number,
        };
        self.outbox.send_if_modified(|o| o.requests.insert(key));
    }

    /// The first event from now on that `pick` picks.
    async fn until<T>(&mut self, what: &str, pick: impl Fn(Event) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut seen = Vec::new();
        while let Ok(event) =
            timeout(LIMIT.saturating_sub(begun.elapsed()), self.events.recv()).await
        {
            let event = event.expect("the tasks run");
            seen.push(format!("{event:?}"));
            if let Some(found) = pick(event) {
                return found;
            }
        }
        panic!("{what} within {LIMIT:?}: {seen:#?}");
    }

    async fn silence(&mut self) -> String {
        let silent = |e| match e {
            Event::ProvisionerSilent(why) => Some(why),
            _ => None,
        };
        self.until("silence", silent).await
    }

    async fn answer(&mut self) -> Replacement {
        let answered = |e| match e {
            Event::Replacement(_, replacement) => Some(*replacement),
            _ => None,
        };
        self.until("an answer", answered).await
    }
}

#[tokio::test]
async fn a_provisioner_that_is_stopped_killed_and_started_again_costs_no_request() {
    let ca = Authority::new("ca");
    let mut provisioner = Provisioner::new(&ca);
    let mut director = Telling::begin(&ca, &[provisioner.port.number()]);
    let why = director.silence().await;
    assert!(why.contains("cannot be reached"), "{why}");

    // Asked before there is a provisioner: it is told when there is one.
    director.ask(1);
    provisioner.start();
    let first = director.answer().await;

    // Stopped: it takes connections and says nothing.
    provisioner.signal(Signal::SIGSTOP);
    director.silence().await;
    director.ask(2);
    provisioner.signal(Signal::SIGCONT);
    assert_eq!(director.answer().await.id, first.id);

    provisioner.kill();
    director.silence().await;
    provisioner.start();
    let again = director.answer().await;
    assert_eq!(
        again.id, first.id,
        "the same failure is the same replacement"
    );
    assert_eq!(again.failed, first.failed);

    // Taken off the list: refused from now on, without a restart.
    provisioner.configure(&["lb9"]);
    provisioner.signal(Signal::SIGHUP);
    let refused = |e| match e {
        Event::Refused(_, why) => Some(why),
        _ => None,
    };
    let why = director.until("a refusal", refused).await;
    assert!(why.starts_with("unknown_certificate: "), "{why}");
    provisioner.configure(&["lb1"]);
    provisioner.signal(Signal::SIGHUP);
    assert_eq!(director.answer().await.id, first.id);

    // Revoked: the list is looked at every few seconds.
    provisioner.side.write("crl.pem", &ca.revoke(&[DIRECTOR]));
    while !director.silence().await.contains("Revoked") {}
    provisioner.side.write("crl.pem", &ca.revoke(&[]));
    assert_eq!(director.answer().await.id, first.id);
}

#[tokio::test]
async fn where_a_provisioner_of_several_is_stopped_the_next_one_answers() {
    let ca = Authority::new("ca");
    let [mut one, mut other] = [Provisioner::new(&ca), Provisioner::new(&ca)];
    one.start();
    let mut director = Telling::begin(&ca, &[one.port.number(), other.port.number()]);
    director.ask(1);
    let first = director.answer().await;
    // The other one has a store of its own here: that it answers shows in the replacement's id.
    other.start();
    one.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    loop {
        if director.answer().await.id != first.id {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "the first one cannot answer");
    }
    // And it is kept, also when the first one is back.
    one.signal(Signal::SIGCONT);
    for _ in 0..3 {
        assert_ne!(director.answer().await.id, first.id);
    }
    other.kill();
    while director.answer().await.id != first.id {
        sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_provisioner_with_a_certificate_that_it_cannot_show_says_so_and_does_not_start() {
    let ca = Authority::new("ca");
    let provisioner = Provisioner::new(&ca);
    let (_, other) = ca.issue(&Leaf {
        names: &["127.0.0.1"],
        ..Leaf::GOOD
    });
    provisioner.side.write("key.pem", &other);
    let out = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .arg("provisioner")
        .arg("--config")
        .arg(provisioner.path("provisioner.toml"))
        .output()
        .unwrap();
    assert!(!out.status.success());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        said.contains("[provisioner.tls] cannot be used")
            && said.contains("it is the key of another certificate than"),
        "{said}"
    );
}
