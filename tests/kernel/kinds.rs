//! Every kind of check against the real thing, from the director's configuration to IPVS: up, down,
//! and a wrong answer.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use understudy::director::status::ServerStatus;

use crate::lab::server::{Server, Tree};
use crate::lab::{Lab, VIP4, wait_for};
use crate::scene::{SOON, WIRING, run_director, status, table, understudy};

/// One test's certificates serve the other: made for `www.example.org`, signed by `ca.pem`.
const CA: &str = include_str!("../../src/check/testdata/ca.pem");
const GOOD: &str = include_str!("../../src/check/testdata/server.pem");
const EXPIRED: &str = include_str!("../../src/check/testdata/expired.pem");
const KEY: &str = include_str!("../../src/check/testdata/server.key");

const NGINX: &str = r#"
server {
    listen 80;
    default_type text/plain;
    location / { return 200 "all is well\n"; }
}
server {
    listen 443 ssl http2;
    ssl_certificate /etc/kinds/server.pem;
    ssl_certificate_key /etc/kinds/server.key;
    default_type text/plain;
    location / { return 200 "all is well\n"; }
}
# gRPC's health service, with what it answers in a file: HTTP/2, framing and trailers are nginx's.
server {
    listen 50051 http2;
    root /etc/kinds;
    location = /grpc.health.v1.Health/Check { error_page 405 =200 /health.grpc; return 405; }
    location = /health.grpc { types {} default_type application/grpc; add_trailer grpc-status 0; }
}
"#;

const POSTFIX: &str = "compatibility_level = 3.6
myhostname = mail.example.org
mydestination = localhost
inet_interfaces = all
inet_protocols = ipv4
alias_maps =
smtpd_delay_reject = no
smtpd_peername_lookup = no
smtpd_client_restrictions =
smtpd_tls_cert_file = /etc/kinds/server.pem
smtpd_tls_key_file = /etc/kinds/server.key
smtpd_tls_security_level = may
maillog_file = /var/log/postfix.log
";

const UNBOUND: &str = r#"server:
    interface: 0.0.0.0
    access-control: 0.0.0.0/0 ACCESS
    do-daemonize: yes
    username: ""
    chroot: ""
    pidfile: "/run/unbound.pid"
    local-zone: "example.org." static
    local-data: "www.example.org. A ADDRESS"
"#;

/// What servers say that are no daemons of Debian's: a word each, by name.
type Words = Arc<Mutex<BTreeMap<&'static str, String>>>;

fn say(words: &Words, name: &'static str, word: &str) {
    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
    words.insert(name, word.to_owned());
}

fn said(words: &Words, name: &'static str) -> String {
    let words = words.lock().unwrap_or_else(PoisonError::into_inner);
    words.get(name).cloned().unwrap_or_default()
}

/// An agent and an echo on the server, a helper on the director. Their threads end with the test.
fn speakers(lab: &Lab, server: &Server, words: &Words) {
    let agent = server
        .netns
        .run(|| TcpListener::bind("0.0.0.0:3333").unwrap());
    let echo = server.netns.run(|| UdpSocket::bind("0.0.0.0:7").unwrap());
    let helper = UnixListener::bind(lab.dir().join("helper.sock")).unwrap();
    let told = Arc::clone(words);
    thread::spawn(move || {
        for stream in agent.incoming().flatten() {
            let mut stream = stream;
            drop(writeln!(stream, "{}", said(&told, "agent")));
        }
    });
    let told = Arc::clone(words);
    thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((_, from)) = echo.recv_from(&mut datagram) {
            drop(echo.send_to(said(&told, "echo").as_bytes(), from));
        }
    });
    let told = Arc::clone(words);
    thread::spawn(move || {
        for stream in helper.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut question = String::new();
            if reader.read_line(&mut question).is_ok() && question.contains("\"port\":9,") {
                drop(writeln!(reader.get_mut(), "{}", said(&told, "helper")));
            }
        }
    });
}

/// A service that is checked in one way.
struct Case {
    name: &'static str,
    /// The real server's port.
    port: u16,
    /// The check's table.
    check: String,
}

fn cases(lab: &Lab) -> Vec<Case> {
    let ca = lab.write("ca.pem", CA);
    let login = lab.write("login", "probe:secret\n");
    let dir = lab.dir().display();
    let tls = format!("sni = \"www.example.org\", ca = \"{ca}\"");
    let case = |name, port, check: String| Case { name, port, check };
    vec![
        case("tcp", 80, "tcp = {}".into()),
        case("held", 80, "tcp = { hold = true }".into()),
        case(
            "banner",
            25,
            "tcp = { expect_regex = \"^220 .*ESMTP\" }".into(),
        ),
        case("http", 80, "http = { body = \"all is well\" }".into()),
        case(
            "digest",
            80,
            format!("http = {{ body_sha256 = \"{}\" }}", digest("all is well\n")),
        ),
        case(
            "https",
            443,
            format!("https = {{ host = \"www.example.org\", tls = {{ {tls} }} }}"),
        ),
        case(
            "http2",
            443,
            format!(
                "https = {{ version = \"2\", body_regex = \"^all .* well\", tls = {{ {tls} }} }}"
            ),
        ),
        case("tls", 443, format!("tls = {{ {tls} }}")),
        case("grpc", 50051, "grpc = {}".into()),
        case(
            "smtp",
            25,
            format!("smtp = {{ ehlo = \"lb1.example.org\", starttls = {{ {tls} }} }}"),
        ),
        case(
            "dns",
            53,
            "dns = { name = \"www.example.org\", type = \"A\", answer = \"192.0.2.7\" }".into(),
        ),
        case(
            "dnstcp",
            53,
            "dns = { name = \"www.example.org\", type = \"A\", tcp = true }".into(),
        ),
        case("udp", 7, "udp = { send = \"?\", expect = \"yes\" }".into()),
        case("icmp", 1, "icmp = {}".into()),
        case(
            "postgres",
            5432,
            format!("postgres = {{ credentials = \"{login}\", database = \"postgres\" }}"),
        ),
        case(
            "mysql",
            3306,
            format!("mysql = {{ credentials = \"{login}\" }}"),
        ),
        case(
            "redis",
            6379,
            format!(
                "redis = {{ credentials = \"{}\" }}",
                lab.write("redis-login", ":secret\n")
            ),
        ),
        case("agent", 3333, "agent = {}".into()),
        case("file", 2, format!("file = {{ path = \"{dir}/weight\" }}")),
        case(
            "external",
            9,
            format!("external = {{ socket = \"{dir}/helper.sock\", name = \"own\" }}"),
        ),
    ]
}

fn digest(text: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_config(lab: &Lab, cases: &[Case], server: &Server) -> String {
    let mut text = String::new();
    for (case, vip) in cases.iter().zip(vips()) {
        text += &format!(
            r#"
[[virtual_service]]
address = "{vip}"
scheduler = "rr"
forward = "nat"
damping = {{ half_life = "0s" }}
on_failure = {{ busy = "remove", certificate = "remove" }}
check = {{ interval = "2s", timeout = "10s", rise = 1, fall = 2, {} }}
real_server = [{{ address = "{}:{}", weight = 100 }}]
"#,
            case.check,
            server.address4(),
            case.port,
        );
    }
    lab.write_lone_director(&text)
}

/// A virtual service for each case.
fn vips() -> impl Iterator<Item = SocketAddr> {
    (1000..).map(|port| SocketAddr::new(VIP4.parse().unwrap(), port))
}

/// None of them looks the director's name up before it greets: no name server is in reach, and whether
/// that shows at once or after ten seconds hangs on how many ICMP errors the router still sends.
fn start_daemons(server: &Server, words: &Words) {
    server.sh("mkdir /etc/kinds && chmod 755 /etc/kinds && rm -f /etc/nginx/sites-enabled/default");
    let write = |path: &str, text: &[u8]| fs::write(server.path(path), text).unwrap();
    write("/etc/kinds/server.pem", GOOD.as_bytes());
    write("/etc/kinds/server.key", KEY.as_bytes());
    write("/etc/kinds/health.grpc", &[0, 0, 0, 0, 2, 8, 1]);
    write("/etc/nginx/conf.d/kinds.conf", NGINX.as_bytes());
    write("/etc/postfix/main.cf", POSTFIX.as_bytes());
    write(
        "/etc/kinds/unbound.conf",
        unbound("allow", "192.0.2.7").as_bytes(),
    );
    for (name, word) in [
        ("agent", "up"),
        ("echo", "yes"),
        ("helper", "{\"status\":\"up\"}"),
    ] {
        say(words, name, word);
    }
    thread::scope(|scope| {
        scope.spawn(|| server.sh("nginx && unbound -c /etc/kinds/unbound.conf && postfix start"));
        scope.spawn(|| {
            server.sh("redis-server --bind 0.0.0.0 --requirepass secret --save '' --daemonize yes >/dev/null");
            server.sh(
                "cd /etc/postgresql/15/main && echo 'host all all 10.77.0.0/16 scram-sha-256' >>pg_hba.conf
                 echo \"listen_addresses = '*'\" >>postgresql.conf && echo 'fsync = off' >>postgresql.conf
                 pg_ctlcluster 15 main start && su postgres -c \"psql -qc \\\"create role probe login password 'secret'\\\"\"",
            );
        });
        scope.spawn(|| {
            server.sh("mkdir -p /run/mysqld && chown mysql /run/mysqld
                 (exec mariadbd --user=mysql --bind-address=0.0.0.0 --skip-name-resolve >/var/log/mariadb.log 2>&1) &
                 until mariadb-admin --silent ping >/dev/null 2>&1; do sleep 0.3; done
                 mariadb -e \"create user probe@'%' identified by 'secret'\"");
        });
    });
}

fn unbound(access: &str, address: &str) -> String {
    UNBOUND
        .replace("ACCESS", access)
        .replace("ADDRESS", address)
}

/// The check room asked by the director, its word in `status`, and IPVS.
struct Watch<'a> {
    lab: &'a Lab,
    vips: BTreeMap<&'static str, SocketAddr>,
}

impl Watch<'_> {
    fn server(&self, name: &str) -> ServerStatus {
        let key = format!("tcp/{}", self.vips[name]);
        let status = status(self.lab);
        let mut services = status.services.into_iter();
        let service = services.find(|s| s.service.to_string() == key).unwrap();
        service.servers.into_iter().next().unwrap()
    }

    fn weight(&self, name: &str) -> Option<u32> {
        let vip = self.vips[name];
        let table = table(self.lab);
        table
            .iter()
            .find(|((at, _), _)| *at == vip)
            .map(|(_, weight)| *weight)
    }

    fn up(&self, names: &[&str]) {
        for name in names {
            wait_for(
                &format!("{name} up"),
                SOON,
                Duration::from_millis(500),
                || {
                    let server = self.server(name);
                    match server.health == "up" && self.weight(name) == Some(100) {
                        true => Ok(()),
                        false => Err(format!("{server:?}")),
                    }
                },
            );
        }
    }

    /// Out of IPVS, for this reason.
    fn down(&self, reasons: &[(&str, &str)]) {
        for (name, reason) in reasons {
            wait_for(
                &format!("{name} down"),
                SOON,
                Duration::from_millis(500),
                || {
                    let server = self.server(name);
                    let said = server.reason.as_deref().unwrap_or_default();
                    match server.health == "down"
                        && said.contains(reason)
                        && self.weight(name).is_none()
                    {
                        true => Ok(()),
                        false => Err(format!("{server:?}, not {reason:?}")),
                    }
                },
            );
        }
    }
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one lab for all: its daemons take a minute to start"
)]
fn every_kind_of_check_sees_the_real_thing_up_down_and_wrong() {
    let lab = Lab::new(WIRING, &[("kinds", Tree::Kinds)]);
    let server = lab.server("kinds");
    let words = Words::default();
    start_daemons(server, &words);
    speakers(&lab, server, &words);
    let weight = lab.write("weight", "up\n");
    let cases = cases(&lab);
    let config = write_config(&lab, &cases, server);
    let _director = run_director(&lab, &config);
    let names: Vec<_> = cases.iter().map(|c| c.name).collect();
    let watch = Watch {
        lab: &lab,
        vips: names.iter().copied().zip(vips()).collect(),
    };
    watch.up(&names);

    // By hand, all of them as well.
    let by_hand = understudy(&lab, &["check", &server.address4(), "--config", &config]);
    assert_eq!(
        by_hand.matches("passed after").count(),
        cases.len(),
        "{by_hand}"
    );

    // Wrong answers.
    let nginx = |from: &str, to: &str| {
        let text = NGINX.replace(from, to);
        fs::write(server.path("/etc/nginx/conf.d/kinds.conf"), text).unwrap();
        server.sh("nginx -s reload");
    };
    nginx("all is well", "under repair");
    watch.down(&[
        ("http", "not the expected one: \"under repair"),
        ("digest", "not the expected one"),
        ("http2", "not the expected one"),
    ]);
    nginx("return 200 \"all is well\\n\"", "return 503");
    watch.down(&[("http", "HTTP status 503"), ("https", "HTTP status 503")]);
    fs::write(server.path("/etc/kinds/server.pem"), EXPIRED).unwrap();
    fs::write(server.path("/etc/kinds/health.grpc"), [0, 0, 0, 0, 2, 8, 2]).unwrap();
    nginx("", "");
    server.sh("postfix reload");
    watch.down(&[
        ("https", "the certificate has expired"),
        ("tls", "the certificate has expired"),
        ("smtp", "the certificate has expired"),
        ("grpc", "it does not serve"),
    ]);
    watch.up(&["http", "digest", "tcp", "held"]);
    fs::write(server.path("/etc/kinds/server.pem"), GOOD).unwrap();
    fs::write(server.path("/etc/kinds/health.grpc"), [0, 0, 0, 0, 2, 8, 1]).unwrap();
    nginx("", "");
    let restrict = POSTFIX.replace("client_restrictions =", "client_restrictions = reject");
    fs::write(server.path("/etc/postfix/main.cf"), restrict).unwrap();
    server.sh("postfix reload");
    watch.down(&[
        ("smtp", "replies 554"),
        ("banner", "not the expected one: \"554"),
    ]);
    fs::write(server.path("/etc/postfix/main.cf"), POSTFIX).unwrap();
    server.sh("postfix reload");
    watch.up(&["https", "http2", "tls", "grpc", "smtp", "banner"]);

    let resolver = |access: &str, address: &str| {
        fs::write(
            server.path("/etc/kinds/unbound.conf"),
            unbound(access, address),
        )
        .unwrap();
        server.sh("kill -HUP $(cat /run/unbound.pid)");
    };
    resolver("allow", "192.0.2.8");
    watch.down(&[("dns", "not the expected one")]);
    watch.up(&["dnstcp"]);
    resolver("refuse", "192.0.2.7");
    watch.down(&[("dns", "REFUSED"), ("dnstcp", "REFUSED")]);
    resolver("allow", "192.0.2.7");
    watch.up(&["dns", "dnstcp"]);

    server.sh("su postgres -c \"psql -qc \\\"alter role probe password 'other'\\\"\"");
    server.sh("mariadb -e \"alter user probe@'%' identified by 'other'\"");
    server.sh("redis-cli -a secret --no-auth-warning config set requirepass other");
    say(&words, "echo", "no");
    say(&words, "agent", "down # out of disk");
    say(
        &words,
        "helper",
        "{\"status\":\"down\",\"detail\":\"no quorum\"}",
    );
    fs::write(&weight, "maint\n").unwrap();
    server.netns.sysctls(&[("ipv4/icmp_echo_ignore_all", "1")]);
    watch.down(&[
        ("postgres", "the login was refused"),
        ("mysql", "the login was refused"),
        ("redis", "the login was refused"),
        ("udp", "not the expected one"),
        ("agent", "declared down: \"out of disk\""),
        ("external", "declared down: \"no quorum\""),
        ("file", "declared in maintenance"),
        ("icmp", "no answer in time"),
    ]);
    server.sh("su postgres -c \"psql -qc \\\"alter role probe password 'secret'\\\"\"");
    server.sh("mariadb -e \"alter user probe@'%' identified by 'secret'\"");
    server.sh("redis-cli -a other --no-auth-warning config set requirepass secret");
    say(&words, "echo", "yes");
    say(&words, "agent", "up");
    say(&words, "helper", "{\"status\":\"up\"}");
    fs::write(&weight, "up\n").unwrap();
    server.netns.sysctls(&[("ipv4/icmp_echo_ignore_all", "0")]);
    watch.up(&[
        "postgres", "mysql", "redis", "udp", "agent", "external", "file", "icmp",
    ]);

    // Weights.
    say(&words, "agent", "75%");
    say(&words, "helper", "{\"status\":\"up\",\"weight\":7}");
    fs::write(&weight, "drain\n").unwrap();
    for (name, wanted) in [("agent", 75), ("external", 7), ("file", 0)] {
        wait_for(name, SOON, Duration::from_millis(300), || {
            match watch.weight(name) {
                Some(weight) if weight == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert_eq!(watch.server(name).health, "up");
    }

    // Down: nobody listens.
    for daemon in ["nginx", "unbound", "redis-server"] {
        for process in server.processes(daemon) {
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap_or_default();
        }
    }
    server.sh("postfix abort; pg_ctlcluster 15 main stop -m immediate; mariadb-admin shutdown");
    watch.down(&[
        ("tcp", "refused"),
        ("held", "refused"),
        ("banner", "refused"),
        ("http", "refused"),
        ("digest", "refused"),
        ("https", "refused"),
        ("http2", "refused"),
        ("tls", "refused"),
        ("grpc", "refused"),
        ("smtp", "refused"),
        ("dns", "refused"),
        ("dnstcp", "refused"),
        ("postgres", "refused"),
        ("mysql", "refused"),
        ("redis", "refused"),
    ]);
    let left: Vec<_> = names
        .iter()
        .filter(|name| watch.weight(name).is_some())
        .collect();
    assert_eq!(left, [&"udp", &"icmp", &"agent", &"file", &"external"]);
}
