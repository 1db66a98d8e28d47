//! `provisioner.toml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{Diagnostics, TlsFiles, duration, tls::RawTls};
use crate::model::{Grant, ServiceKey};

/// No server does key exchange and log-in in less: every spare would be quarantined.
const SHORTEST_CONNECT: Duration = Duration::from_millis(100);

/// How often spares are looked at.
const REHEARSE: Duration = Duration::from_secs(3600);
const SHORTEST_REHEARSE: Duration = Duration::from_secs(60);

/// A provisioner's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisioner {
    /// Its identity: a request for another address is refused.
    pub address: IpAddr,
    /// What it calls itself beside other provisioners: a restarted one goes on with what one of this name had in hand.
    pub name: String,
    /// Folder of its store, where that is a file.
    pub state_dir: PathBuf,
    /// Folder with secrets of scripts and files, one a file; the unit's credentials alone where there
    /// is none.
    pub secrets_dir: Option<PathBuf>,
    /// The server of its store, where that is none.
    pub store: Option<StoreServer>,
    /// Whether others share the store.
    pub fleet: bool,
    /// API socket.
    pub socket: PathBuf,
    /// The address that all provisioners of a fleet share: a request for it is taken too.
    pub fleet_address: Option<IpAddr>,
    /// API port, if any.
    pub listen: Option<Listen>,
    /// Who may ask at a port with TLS, and for what.
    pub directors: Vec<Grant>,
    /// Where `/metrics` listens.
    pub metrics: Option<SocketAddr>,
    /// Each spare is looked at so often before it is needed; never where there is none.
    pub rehearse: Option<Duration>,
    /// How it logs in to servers.
    pub ssh: Ssh,
    /// Files of what proves it to drivers and controllers, by the name that the inventory uses; a bare
    /// file name is a systemd credential.
    pub credentials: BTreeMap<String, PathBuf>,
}

/// A PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreServer {
    /// `postgres://USER@HOST/DATABASE`, without a password.
    pub url: String,
    /// File with the password; the systemd credential `store_password` where there is none.
    pub password: Option<PathBuf>,
}

impl Provisioner {
    /// All addresses that requests may name as their destination.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        [Some(self.address), self.fleet_address]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// A port of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub at: SocketAddr,
    /// Mutual TLS is spoken there; without it the port is one of loopback, and everybody there may ask.
    pub tls: Option<TlsFiles>,
}

/// How servers are logged in to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// Private key file; the systemd credential `ssh_key` where there is none.
    pub key: Option<PathBuf>,
    /// User; another than root becomes root by `sudo -n`.
    pub user: String,
    /// Connection, key exchange and log-in end within this.
    pub connect_timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    provisioner: RawProvisioner,
    ssh: Option<RawSsh>,
    metrics: Option<RawMetrics>,
    pool: Option<RawPool>,
    #[serde(default)]
    credentials: BTreeMap<String, PathBuf>,
    #[serde(default)]
    director: Vec<Spanned<RawGrant>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPool {
    rehearse: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProvisioner {
    address: Spanned<String>,
    name: Option<Spanned<String>>,
    state_dir: Option<PathBuf>,
    secrets_dir: Option<PathBuf>,
    store: Option<Spanned<String>>,
    store_password: Option<Spanned<PathBuf>>,
    fleet: Option<Spanned<bool>>,
    socket: Option<PathBuf>,
    listen: Option<Spanned<String>>,
    fleet_address: Option<Spanned<String>>,
    tls: Option<Spanned<RawTls>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant {
    name: Spanned<String>,
    certificate: Option<Spanned<String>>,
    services: Option<Vec<Spanned<String>>>,
    roles: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSsh {
    key: Option<PathBuf>,
    user: Option<String>,
    connect_timeout: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Spanned<String>,
}

/// Reads the text of `provisioner.toml`.
///
/// # Errors
///
/// Every mistake found, each at its place.
pub fn parse(path: &Path, source: &str) -> Result<Provisioner, Diagnostics> {
    let raw: Raw = Diagnostics::parse(path, source)?;
    let mut bad = Diagnostics::new(path, source);
    let mut listen = |text: &Spanned<String>| {
        text.get_ref().parse::<SocketAddr>().map_err(|_e| {
            let t = text.get_ref();
            bad.push(
                text.span(),
                format!("{t:?} is no address and port: write \"127.0.0.1:9712\""),
            );
        })
    };
    let port = raw.provisioner.listen.as_ref().and_then(|l| listen(l).ok());
    let metrics = raw.metrics.as_ref().and_then(|m| listen(&m.listen).ok());
    if let (Some(at), Some(text)) = (port, &raw.provisioner.listen)
        && raw.provisioner.tls.is_none()
        && !at.ip().is_loopback()
    {
        bad.push(text.span(), "directors on other hosts need mutual TLS: name certificate, key and ca in [provisioner.tls], or listen on a loopback address");
    }
    let tls = raw.provisioner.tls.as_ref();
    if let (None, Some(tls)) = (&raw.provisioner.listen, tls) {
        bad.push(
            tls.span(),
            "[provisioner.tls] goes with [provisioner] listen = \"ADDRESS:PORT\"",
        );
    }
    if let (None, Some(first)) = (tls, raw.director.first()) {
        bad.push(first.span(), "[[director]] says who may ask at a port with TLS: name certificate, key and ca in [provisioner.tls]");
    }
    let tls = tls.map(|tls| RawTls::files(tls, &mut bad));
    let listen = port.map(|at| Listen { at, tls });
    let directors = grants(&raw.director, &mut bad);
    let text = &raw.provisioner.address;
    let address = ip(text, &mut bad).unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let fleet_address = raw.provisioner.fleet_address.as_ref();
    let fleet_address = fleet_address.and_then(|text| ip(text, &mut bad));
    let name = match &raw.provisioner.name {
        None => address.to_string(),
        Some(name) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
            let text = name.get_ref();
            if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
                bad.push(
                    name.span(),
                    "a name is 1 to 64 letters, digits, dots, colons, hyphens and underscores",
                );
            }
            text.clone()
        }
    };
    let server = raw.provisioner.store.as_ref();
    if let Some(url) = server
        && let Err(why) = server_url(url.get_ref())
    {
        bad.push(url.span(), why);
    }
    if let (None, Some(password)) = (server, &raw.provisioner.store_password) {
        bad.push(
            password.span(),
            "a file needs no password: name a server with store = \"postgres://USER@HOST/DATABASE\"",
        );
    }
    let fleet = raw.provisioner.fleet.as_ref();
    if let (None, Some(fleet)) = (server, fleet.filter(|fleet| *fleet.get_ref())) {
        bad.push(
            fleet.span(),
            "several provisioners cannot share a SQLite file: name a database of all of them with store = \"postgres://USER@HOST/DATABASE\", or leave fleet out",
        );
    }
    let ssh = raw.ssh.unwrap_or(RawSsh {
        key: None,
        user: None,
        connect_timeout: None,
    });
    let connect_timeout = match &ssh.connect_timeout {
        None => Duration::from_secs(10),
        Some(t) => duration::parse(t.get_ref()).unwrap_or_else(|e| {
            bad.push(t.span(), e.to_string());
            Duration::from_secs(10)
        }),
    };
    if let Some(text) = &ssh.connect_timeout
        && connect_timeout < SHORTEST_CONNECT
    {
        bad.push(
            text.span(),
            format!("connect_timeout is at least {SHORTEST_CONNECT:?}"),
        );
    }
    let rehearse = raw.pool.and_then(|pool| pool.rehearse);
    let rehearse = match &rehearse {
        None => Some(REHEARSE),
        Some(text) if text.get_ref() == "never" => None,
        Some(text) => match duration::parse(text.get_ref()) {
            Ok(every) if every >= SHORTEST_REHEARSE => Some(every),
            Ok(_) => {
                bad.push(
                    text.span(),
                    "rehearse is at least 1m: each look is a log-in on each spare",
                );
                Some(REHEARSE)
            }
            Err(e) => {
                bad.push(text.span(), e.to_string());
                Some(REHEARSE)
            }
        },
    };
    let or = |path: Option<PathBuf>, default| path.unwrap_or_else(|| PathBuf::from(default));
    bad.or(Provisioner {
        address,
        name,
        store: server.map(|url| StoreServer {
            url: url.get_ref().clone(),
            password: raw.provisioner.store_password.map(Spanned::into_inner),
        }),
        fleet: fleet.is_some_and(|fleet| *fleet.get_ref()),
        state_dir: or(raw.provisioner.state_dir, "/var/lib/understudy/provisioner"),
        secrets_dir: raw.provisioner.secrets_dir,
        socket: or(raw.provisioner.socket, "/run/understudy/provisioner.sock"),
        fleet_address,
        listen,
        directors,
        metrics,
        rehearse,
        ssh: Ssh {
            key: ssh.key,
            user: ssh.user.unwrap_or_else(|| "root".to_owned()),
            connect_timeout,
        },
        credentials: raw.credentials,
    })
}

fn ip(text: &Spanned<String>, bad: &mut Diagnostics) -> Option<IpAddr> {
    let parsed = text.get_ref().parse();
    if parsed.is_err() {
        let message = format!("{:?} is no IP address", text.get_ref());
        bad.push(text.span(), message);
    }
    parsed.ok()
}

fn grants(raw: &[Spanned<RawGrant>], bad: &mut Diagnostics) -> Vec<Grant> {
    let mut names = BTreeSet::new();
    let mut certificates = BTreeMap::new();
    let mut grants = Vec::new();
    for one in raw.iter().map(Spanned::get_ref) {
        let text = one.name.get_ref();
        let name = match text.parse() {
            Ok(name) => name,
            Err(e) => {
                let e: crate::model::IdError = e;
                bad.push(one.name.span(), e.to_string());
                continue;
            }
        };
        if !names.insert(text) {
            bad.push(
                one.name.span(),
                format!("a director {text} is above already"),
            );
        }
        // By default its certificate names it as it is called here.
        let certificate = one.certificate.as_ref().unwrap_or(&one.name);
        if certificate.get_ref().is_empty() || certificate.get_ref().contains('*') {
            let message =
                "certificate is one whole name in the director's certificate: a DNS name, or a URI";
            bad.push(certificate.span(), message);
        }
        if let Some(other) = certificates.insert(Grant::canonical(certificate.get_ref()), text) {
            let message = format!(
                "the certificate of {other} would be this one too: each director has its own"
            );
            bad.push(certificate.span(), message);
        }
        let services = one.services.as_ref().map(|all| {
            let parsed = all.iter().filter_map(|s| service(s, bad));
            parsed.collect()
        });
        for empty in one.roles.iter().flatten() {
            if empty.get_ref().is_empty() {
                bad.push(
                    empty.span(),
                    "a role is the code that the inventory gives it",
                );
            }
        }
        let roles = one.roles.as_ref().map(|all| {
            let texts = all.iter().map(|r| r.get_ref().clone());
            texts.collect()
        });
        grants.push(Grant {
            name,
            certificate: Grant::canonical(certificate.get_ref()),
            services,
            roles,
        });
    }
    grants
}

fn service(text: &Spanned<String>, bad: &mut Diagnostics) -> Option<ServiceKey> {
    let parsed: Result<ServiceKey, _> = text.get_ref().parse();
    parsed
        .map_err(|e| bad.push(text.span(), e.to_string()))
        .ok()
}

/// Parts of a connection that may be named behind a URL's `?`.
const PARAMETERS: [&str; 9] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "port",
    "application_name",
    "statement-cache-capacity",
    "options",
];

/// Checks the URL of a PostgreSQL database.
///
/// # Errors
///
/// What is wrong with it; never the whole URL, which may have a password in it.
pub fn server_url(url: &str) -> Result<(), String> {
    const FORM: &str = "write postgres://USER@HOST/DATABASE";
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or_else(|| format!("this is no PostgreSQL database: {FORM}"))?;
    if rest.contains('#') {
        return Err("a # is no part of a database's place: write %23".to_owned());
    }
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    let names = || {
        parameters
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|p| p.split('=').next().unwrap_or(p))
    };
    if user.is_some_and(|user| user.contains(':')) || names().any(|name| name == "password") {
        return Err("a password does not belong here: put it into a file and name that with store_password, or give the unit LoadCredential=store_password:FILE".to_owned());
    }
    if database.is_empty() {
        return Err(format!("it names no database: {FORM}"));
    }
    if let Some(unknown) = names().find(|name| !PARAMETERS.contains(name)) {
        return Err(format!(
            "{unknown:?} is no parameter of a connection: write one of {}",
            PARAMETERS.join(", ")
        ));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = names().find(|name| !seen.insert(*name)) {
        return Err(format!("{twice} stands there twice: write it once"));
    }
    let value = |name: &str| {
        parameters
            .split('&')
            .filter_map(|p| p.split_once('='))
            .find_map(|(n, value)| (n == name).then_some(value))
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    let host = value("host").unwrap_or(host);
    match value("sslmode") {
        Some("disable" | "require" | "verify-full") => Ok(()),
        // In the clear, where the server does not offer better.
        None | Some("allow" | "prefer") if is_here(host) => Ok(()),
        None | Some("allow" | "prefer") => Err(format!(
            "{host} is another host, and the connection may be read and bent on its way: add \
             ?sslmode=verify-full&sslrootcert=FILE, or sslmode=disable where only trusted hosts are on that way"
        )),
        Some("verify-ca") => Err(
            "sslmode verify-ca looks at no name, and any public authority's certificate would do: write verify-full"
                .to_owned(),
        ),
        Some(other) => Err(format!(
            "sslmode {other:?} is none: write verify-full, require or disable"
        )),
    }
}

/// Whether this host is meant: loopback, or a socket's folder.
fn is_here(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.split_once(']'));
    let name = match (bare, host.parse::<IpAddr>()) {
        (Some((address, _port)), _) => address,
        (None, Ok(_)) => host,
        (None, Err(_)) => host.split(':').next().unwrap_or(host),
    };
    let loopback = name.parse().is_ok_and(|a: IpAddr| a.is_loopback());
    let folder = ["/", "%2F", "%2f"]
        .iter()
        .any(|slash| name.starts_with(slash));
    host.is_empty() || name == "localhost" || loopback || folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_without_its_password() {
        for good in [
            "postgres://understudy@db.example/understudy?sslmode=disable",
            "postgres://understudy@[::1]:5433/understudy",
            "postgres://127.0.0.1:5433/understudy?sslmode=prefer",
            "postgres:///understudy",
            "postgresql://db:5433/u?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgres://u@localhost/u?host=/run/postgresql",
        ] {
            assert_eq!(server_url(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("/var/lib/x", "no PostgreSQL"),
            ("mysql://u@h/d", "no PostgreSQL"),
            ("postgres://u@h", "names no database"),
            ("postgres://u:secret@h/d", "does not belong here"),
            ("postgres://u@h/d?password=secret", "does not belong here"),
            ("postgres://u@h/d?ssl=on", "\"ssl\" is no parameter"),
            ("postgres://u@h:1/d", "h:1 is another host"),
            ("postgres://u@localhost/d?host=h", "h is another host"),
            (
                "postgres://u@[2001:db8::1]:1/d?sslmode=prefer",
                "sslmode=verify-full",
            ),
            (
                "postgres://u@localhost/d?sslmode=on",
                "sslmode \"on\" is none",
            ),
            ("postgres://u@h/d?sslmode=verify-ca", "looks at no name"),
            ("postgres://u@h/d?sslmode=require&sslmode=prefer", "twice"),
            (
                "postgres://u@localhost/d?host=::ffff:10.0.0.5",
                "another host",
            ),
            ("postgres://u@h/d#?host=localhost", "write %23"),
        ] {
            let e = server_url(bad).unwrap_err();
            assert!(e.contains(why) && !e.contains("secret"), "{bad}: {e}");
        }
    }
}
