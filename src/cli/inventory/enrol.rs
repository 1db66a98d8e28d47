//! `understudy inventory add`: a server is written into an inventory folder, with the key that it shows.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::load;
use crate::{
    cli::{Failure, block_on, say},
    provisioner::ssh::{self, HostKey, Shown},
};

const SCAN: Duration = Duration::from_secs(10);

/// The server to enrol.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Add {
    /// Inventory folder
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// The server's name
    #[arg(value_name = "SERVER")]
    server: String,
    /// Where it serves; several times for several addresses
    #[arg(long = "address", value_name = "ADDRESS", required = true)]
    addresses: Vec<IpAddr>,
    /// Where its sshd listens, if not at the first address
    #[arg(long, value_name = "ADDRESS")]
    ssh_address: Option<IpAddr>,
    #[arg(long, value_name = "PORT", default_value_t = 22)]
    /// Port of its sshd
    ssh_port: u16,
    /// Its host key, from its /etc/ssh/ssh_host_ed25519_key.pub
    #[arg(long, value_name = "KEY", required_unless_present = "scan")]
    host_key: Option<String>,
    /// Connects, shows the fingerprint of its host key and asks
    #[arg(long, conflicts_with = "host_key")]
    scan: bool,
    /// With --scan: takes the key only if this is its fingerprint, and does not ask
    #[arg(long, value_name = "FINGERPRINT", requires = "scan")]
    accept: Option<String>,
    /// A label, as in rack=r1; several times for several
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| "write NAME=VALUE, as in rack=r1".to_owned())?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn add(a: &Add) -> Result<(), Failure> {
    // Before anybody is asked anything.
    let known = load(&a.folder)?;
    if known.servers.contains_key(&a.server) {
        let text = format!(
            "{}: there is a server {} already",
            a.folder.join("servers.toml").display(),
            a.server
        );
        return Err(Failure::Wrong(text));
    }
    let key = match &a.host_key {
        Some(key) => key.trim().to_owned(),
        None => scanned(a)?,
    };
    HostKey::parse(&key).map_err(|e| Failure::Wrong(e.to_string()))?;
    write(&a.folder, &section(a, &key))?;
    say(&format!(
        "{} stands in {}; `understudy inventory apply {}` makes it a spare\n",
        a.server,
        a.folder.join("servers.toml").display(),
        a.folder.display()
    ))
}

fn scanned(a: &Add) -> Result<String, Failure> {
    let first = a.addresses.first().copied();
    let Some(address) = a.ssh_address.or(first) else {
        return Err(Failure::Wrong("no address".to_owned()));
    };
    let peer = SocketAddr::new(address, a.ssh_port);
    let shown = block_on(async { ssh::scan(peer, SCAN).await.map_err(|e| Failure::failed(&e)) })?;
    match &a.accept {
        Some(expected) if *expected == shown.fingerprint => {}
        Some(expected) => {
            return Err(Failure::Failed(format!(
                "{peer} shows a host key with {}, not {expected}: nothing was written; is it the right server?",
                shown.fingerprint
            )));
        }
        None => ask(peer, &shown)?,
    }
    Ok(shown.line)
}

fn ask(peer: SocketAddr, shown: &Shown) -> Result<(), Failure> {
    let refused = |why: &str| {
        Failure::Failed(format!(
            "nothing was written: {why}. {peer} shows {}; compare it with `ssh-keygen -lf \
             /etc/ssh/ssh_host_ed25519_key.pub` on the server's console, then say yes or give --accept {}",
            shown.fingerprint, shown.fingerprint
        ))
    };
    if !io::stdin().is_terminal() {
        return Err(refused("there is no terminal to ask at"));
    }
    let mut stderr = io::stderr();
    // The answer decides, whether the question was seen or not.
    drop(write!(
        stderr,
        "{peer} shows the host key {}\nIs it the one that `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints \
         on the server's console? [y/N] ",
        shown.fingerprint
    ));
    drop(stderr.flush());
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|e| Failure::failed(&e))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(refused("it was not confirmed")),
    }
}

fn section(a: &Add, key: &str) -> String {
    // A text of TOML is one of JSON where there are no control characters, and names and addresses have none.
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let addresses: Vec<String> = a.addresses.iter().map(|a| quote(&a.to_string())).collect();
    let mut text = format!(
        "\n[[server]]\nname = {}\naddresses = [{}]\n",
        quote(&a.server),
        addresses.join(", ")
    );
    if let Some(address) = a.ssh_address {
        text.push_str(&format!("ssh_address = {}\n", quote(&address.to_string())));
    }
    if a.ssh_port != 22 {
        text.push_str(&format!("ssh_port = {}\n", a.ssh_port));
    }
    text.push_str(&format!("host_keys = [{}]\n", quote(key)));
    if !a.labels.is_empty() {
        let labels = a.labels.iter();
        let labels: Vec<String> = labels
            .map(|(name, value)| format!("{} = {}", quote(name), quote(value)))
            .collect();
        text.push_str(&format!("labels = {{ {} }}\n", labels.join(", ")));
    }
    text
}

/// Adds a section to `servers.toml`; the file stays as it is where the folder would not be read any more.
fn write(folder: &Path, section: &str) -> Result<(), Failure> {
    let path = folder.join("servers.toml");
    let failed = |e: io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    let before = fs::read_to_string(&path).map_err(failed)?;
    let replace = |text: &str| -> io::Result<()> {
        let new = folder.join(".servers.toml.new");
        fs::write(&new, text)?;
        fs::set_permissions(&new, fs::metadata(&path)?.permissions())?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &path)
    };
    replace(&format!("{}{section}", before)).map_err(failed)?;
    load(folder).map(drop).inspect_err(|_wrong| {
        // What is wrong is told; the old text was there a moment ago.
        drop(replace(&before));
    })
}
