//! `provisioner.toml`.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{Diagnostics, duration};

/// No server does key exchange and log-in in less: every spare would be quarantined.
const SHORTEST_CONNECT: Duration = Duration::from_millis(100);

/// A provisioner's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisioner {
    /// Its identity: a request for another address is refused.
    pub address: IpAddr,
    /// Folder of its store.
    pub state_dir: PathBuf,
    /// Folder with secrets of scripts and files, one a file; the unit's credentials alone where there
    /// is none.
    pub secrets_dir: Option<PathBuf>,
    /// API socket.
    pub socket: PathBuf,
    /// API port on loopback, if any.
    pub listen: Option<SocketAddr>,
    /// Where `/metrics` listens.
    pub metrics: Option<SocketAddr>,
    /// How it logs in to servers.
    pub ssh: Ssh,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProvisioner {
    address: Spanned<String>,
    state_dir: Option<PathBuf>,
    secrets_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    listen: Option<Spanned<String>>,
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
        && !at.ip().is_loopback()
    {
        bad.push(text.span(), "listen must be a loopback address: directors on other hosts need mutual TLS, which this version does not have");
    }
    let text = &raw.provisioner.address;
    let address = text.get_ref().parse().unwrap_or_else(|_e| {
        bad.push(
            text.span(),
            format!("{:?} is no IP address", text.get_ref()),
        );
        IpAddr::from([0, 0, 0, 0])
    });
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
    let or = |path: Option<PathBuf>, default| path.unwrap_or_else(|| PathBuf::from(default));
    bad.or(Provisioner {
        address,
        state_dir: or(raw.provisioner.state_dir, "/var/lib/understudy/provisioner"),
        secrets_dir: raw.provisioner.secrets_dir,
        socket: or(raw.provisioner.socket, "/run/understudy/provisioner.sock"),
        listen: port,
        metrics,
        ssh: Ssh {
            key: ssh.key,
            user: ssh.user.unwrap_or_else(|| "root".to_owned()),
            connect_timeout,
        },
    })
}
