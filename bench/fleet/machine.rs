//! What the fleet stands on: a PostgreSQL of its own, spares with an sshd each, provisioners.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    Scale,
    pki::{Authority, Leaf, Side},
    port::Port,
};

/// Keeps a server until its standard input ends, in whatever way this program ends.
const KEEPER: &str = r#"
bin=$1
dir=$(mktemp -d /tmp/understudy-fleet-pg-XXXXXX)
trap '"$bin/pg_ctl" -D "$dir/data" -m immediate -w stop >/dev/null 2>&1; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
"$bin/initdb" -A trust -U understudy -E UTF8 --locale=C -D "$dir/data" >"$dir/log" 2>&1
"$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 120 -o "-k $dir -c listen_addresses= -c log_lock_waits=on -c log_min_duration_statement=2s" start >/dev/null || cat "$dir/log" >&2
echo "$dir"
cat >/dev/null
"#;

/// A process that ends with this program, killed and waited for at the latest when dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    fn running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `program`, killed where this program ends without a word. To be started by the first thread alone: the kernel
/// takes the end of the thread that started it for the end of the parent.
fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A server with Debian's own settings: what it says to be written is on the disk.
#[derive(Debug)]
pub(crate) struct Postgres {
    dir: PathBuf,
    keeper: Child,
    input: Option<ChildStdin>,
    pub(crate) version: String,
}

impl Postgres {
    pub(crate) fn new() -> Self {
        let folders = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let bins = folders.map(|entry| entry.unwrap().path().join("bin"));
        let bin = bins
            .filter(|bin| bin.join("initdb").exists())
            .max()
            .expect("a real PostgreSQL is needed: apt-get install postgresql (15 or later)");
        let said = Command::new(bin.join("postgres")).arg("--version").output();
        let version = String::from_utf8(said.unwrap().stdout).unwrap();
        // It does not run as root.
        let mut keeper = Command::new("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .args(["sh", "-c", KEEPER, "keeper"])
            .arg(bin)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(keeper.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        Self {
            dir: PathBuf::from(line.trim()),
            input: keeper.stdin.take(),
            keeper,
            version: version.trim().to_owned(),
        }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        let dir = self.dir.display();
        format!("postgres://understudy@localhost/{database}?host={dir}&sslmode=disable")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub(crate) fn id(&self) -> u32 {
        let text = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.input.take());
        drop(self.keeper.wait());
    }
}

fn keygen(path: &Path) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "fleet", "-f"]);
    assert!(command.arg(path).status().unwrap().success());
}

/// A spare: an sshd with processes, `/srv` and `/var/lib/understudy` of its own.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    process: Process,
}

/// Folders of its own, in memory, of which they take next to nothing: what they may take is what the product wants to
/// see free. Its root logs in without this machine's start files.
const SPARE: &str = "mount -t tmpfs -o size=300m,mode=755 tmpfs /var/lib/understudy && \
    mount -t tmpfs -o size=1m,mode=755 tmpfs /srv && mount -t tmpfs -o size=1m,mode=700 tmpfs /root && exec /usr/sbin/sshd -D -f \"$0\" -E \"$1\"";

impl Spare {
    fn start(number: usize, port: u16, dir: &Path) -> Self {
        let name = format!("spare{number:03}");
        let address =
            Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + u32::try_from(number).unwrap());
        let d = dir.display();
        let config = dir.join(&name);
        let text = format!(
            "Port {port}\nListenAddress {address}\nHostKey {d}/host\nAuthorizedKeysFile {d}/key.pub\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             UsePAM no\nStrictModes no\nPidFile none\nSubsystem sftp internal-sftp\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = bound("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", SPARE])
            .arg(config)
            .arg(dir.join(format!("{name}.log")));
        Self {
            name,
            address,
            process: Process::start(&mut command),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// A path as the spare sees it.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.id()))
    }

    /// What the scripts of roles and those who cleaned said, in order.
    pub(crate) fn witness(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("/srv/witness")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// As somebody would who cleans it by hand.
    pub(crate) fn clean(&self) {
        let script = "echo clean >>witness; rm -rf taken app app.conf app.started";
        let done = Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.path("/srv"))
            .status();
        assert!(done.unwrap().success(), "{}", self.name);
    }
}

/// All spares, and the keys to them.
#[derive(Debug)]
pub(crate) struct Spares {
    pub(crate) all: Vec<Spare>,
    pub(crate) port: u16,
    pub(crate) dir: TempDir,
    _reserved: Port,
}

impl Spares {
    pub(crate) fn start(number: usize) -> Self {
        fs::create_dir_all("/run/sshd").unwrap();
        fs::create_dir_all("/var/lib/understudy").unwrap();
        let dir = TempDir::with_prefix("understudy-fleet-").unwrap();
        keygen(&dir.path().join("host"));
        keygen(&dir.path().join("key"));
        let reserved = Port::at(Ipv4Addr::new(127, 1, 0, 1), 0).unwrap();
        let port = reserved.number();
        let all = (1..=number).map(|n| Spare::start(n, port, dir.path()));
        Self {
            all: all.collect(),
            port,
            dir,
            _reserved: reserved,
        }
    }

    pub(crate) fn listen(&self) -> bool {
        self.all
            .iter()
            .all(|s| TcpStream::connect((s.address, self.port)).is_ok())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A provisioner: the product's binary.
pub(crate) struct Provisioner {
    pub(crate) name: String,
    pub(crate) port: u16,
    metrics: SocketAddr,
    dir: TempDir,
    _side: Side,
    /// It is started again on the same ones.
    _reserved: [Port; 2],
    process: Option<Process>,
    /// What those that were killed had used.
    spent: f64,
}

/// The address that requests name.
pub(crate) const FLEET: &str = "10.77.0.100";

impl Provisioner {
    pub(crate) fn new(
        number: usize,
        ca: &Authority,
        store: &str,
        key: &Path,
        grants: &str,
    ) -> Self {
        let leaf = Leaf {
            names: &["127.0.0.1"],
            ..Leaf::GOOD
        };
        let side = Side::new(ca, &leaf, ca);
        let dir = tempfile::tempdir().unwrap();
        let (here, tls) = (dir.path().display(), side.dir.path().display());
        let reserved = [Port::new(), Port::new()];
        let [port, metrics] = reserved.each_ref().map(Port::number);
        let name = format!("centre-{number}");
        let key = key.display();
        let text = format!(
            "[provisioner]\naddress = \"10.77.0.{number}\"\nfleet_address = \"{FLEET}\"\nfleet = true\n\
             name = \"{name}\"\nstate_dir = \"{here}/state\"\nsocket = \"{here}/p.sock\"\n\
             listen = \"127.0.0.1:{port}\"\nstore = \"{store}\"\n\
             [provisioner.tls]\ncertificate = \"{tls}/cert.pem\"\nkey = \"{tls}/key.pem\"\nca = \"{tls}/ca.pem\"\n\
             [ssh]\nkey = \"{key}\"\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n{grants}"
        );
        fs::write(dir.path().join("provisioner.toml"), text).unwrap();
        Self {
            name,
            port,
            metrics: (Ipv4Addr::LOCALHOST, metrics).into(),
            dir,
            _side: side,
            _reserved: reserved,
            process: None,
            spent: 0.0,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("p.sock")
    }

    pub(crate) fn start(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"));
        let mut command = bound(env!("CARGO_BIN_EXE_understudy"));
        command
            .args(["provisioner", "--config"])
            .arg(self.dir.path().join("provisioner.toml"))
            .stderr(log.unwrap());
        self.process = Some(Process::start(&mut command));
    }

    /// Without a word: SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.spent = self.cpu();
        self.process = None;
    }

    pub(crate) fn listens(&self) -> bool {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() && self.socket().exists()
    }

    /// Whether it ended by itself.
    pub(crate) fn ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| !p.running())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Seconds that it and its predecessors used.
    pub(crate) fn cpu(&self) -> f64 {
        self.spent + self.process.as_ref().map_or(0.0, |p| cpu(p.id()))
    }

    /// One of its metrics.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        use std::io::{Read as _, Write as _};
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        let ask = "GET /metrics HTTP/1.1\r\nHost: understudy\r\nConnection: close\r\n\r\n";
        stream.write_all(ask.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let lines = text.lines().filter(|l| l.starts_with(name));
        lines
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// Seconds of this process alone.
pub(crate) fn own_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let numbers = rest.split(' ').skip(11).take(2);
    let ticks = numbers.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>();
    ticks / TICKS
}

/// What /proc counts in, whatever the kernel does.
const TICKS: f64 = 100.0;

/// Seconds of a process, and of all that it started and waited for or still has.
pub(crate) fn cpu(of: u32) -> f64 {
    let mut ticks = 0.0;
    let mut left = vec![of];
    while let Some(pid) = left.pop() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let numbers = rest.split(' ').skip(11).take(4);
        ticks += numbers.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>();
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        for task in tasks.filter_map(Result::ok) {
            let children = fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            left.extend(
                children
                    .split_whitespace()
                    .filter_map(|c| c.parse::<u32>().ok()),
            );
        }
    }
    ticks / TICKS
}

const SCRIPT: &str = "set -eu
# Fails where another role is there already.
mkdir /srv/taken
echo \"begin $UNDERSTUDY_ROLE $UNDERSTUDY_FAILED\" >>/srv/witness
echo \"$UNDERSTUDY_ROLE\" >/srv/app
echo \"$UNDERSTUDY_SOFTWARE is installed for $UNDERSTUDY_ROLE\"
";

const CLEANUP: &str = "set -eu
echo clean >>/srv/witness
rm -rf /srv/taken /srv/app /srv/app.started
";

const FILE: &str = "role {{ role }}
failed {{ failed }}
{% for service in services %}serve {{ service.vip }}:{{ service.port }} at {{ service.address }}:{{ service.real_port }}
{% endfor %}";

/// The name of a role, and of its domain.
pub(crate) fn role(number: usize) -> String {
    format!("app{number}.fleet.example")
}

/// Whether the product cleans what had this role; the others are cleaned by hand.
pub(crate) fn is_cleaned(number: usize) -> bool {
    number.is_multiple_of(2)
}

/// The operating system of this machine.
fn system() -> String {
    let os = fs::read_to_string("/etc/os-release").unwrap();
    let value = |key: &str| {
        let line = os.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        line.trim_matches('"').to_owned()
    };
    format!("{}-{}", value("ID="), value("VERSION_ID="))
}

/// Writes the inventory as an operator would.
pub(crate) fn inventory(scale: &Scale, spares: &Spares) -> PathBuf {
    let folder = spares.path("inventory");
    fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write("app.sh", SCRIPT);
    write("cleanup.sh", CLEANUP);
    write("app.conf.j2", FILE);
    let os = system();
    let (mut roles, mut files) = (String::new(), String::new());
    for n in 0..scale.roles {
        let (role, cleanup) = (role(n), is_cleaned(n));
        let cleanup = if cleanup {
            "cleanup = \"cleanup.sh\"\n"
        } else {
            ""
        };
        write!(
            roles,
            "[[role]]\ncode = \"{role}\"\ndomain = \"{role}\"\nos = \"{os}\"\nsoftware = [\"app\"]\n{cleanup}"
        )
        .unwrap();
        write!(
            files,
            "[[service_config]]\ndomain = \"{role}\"\nsoftware = \"app\"\npath = \"/srv/app.conf\"\n\
             source = \"app.conf.j2\"\ntemplate = true\n"
        )
        .unwrap();
    }
    write("roles.toml", &roles);
    write("service_config.toml", &files);
    write(
        "software.toml",
        "[[software]]\nname = \"app\"\nscript = \"app.sh\"\ntimeout = \"1m\"\ncheck = \"test -s /srv/app\"\n\
         running = \"test -s /srv/app.started\"\nstart = \"cp /srv/app.conf /srv/app.started\"\n\
         reload = \"cp /srv/app.conf /srv/app.started\"\n",
    );
    let key = fs::read_to_string(spares.path("host.pub")).unwrap();
    let key = key.trim();
    let mut servers = String::new();
    for n in 0..scale.failures {
        let (address, role) = (server(n), role(n % scale.roles));
        write!(
            servers,
            "[[server]]\nname = \"app{n:03}\"\naddresses = [\"{address}\"]\nhost_keys = [\"{key}\"]\nrole = \"{role}\"\n"
        )
        .unwrap();
    }
    for spare in &spares.all {
        let (name, address, port) = (&spare.name, spare.address, spares.port);
        write!(
            servers,
            "[[server]]\nname = \"{name}\"\naddresses = [\"{address}\"]\nssh_port = {port}\nhost_keys = [\"{key}\"]\n"
        )
        .unwrap();
    }
    write("servers.toml", &servers);
    folder
}

/// The address of a configured server.
pub(crate) fn server(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 78, 0, 1)) + u32::try_from(number).unwrap())
}
