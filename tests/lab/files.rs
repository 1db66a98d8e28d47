//! The configuration files and the inventory folder of a lab.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{DIRECTOR, Lab};

/// The role's site: its answer names the server.
pub(crate) const SITE: &str = r#"server {
    listen 80 default_server;
    listen [::]:80 default_server;
    default_type text/plain;
    location / { return 200 "shop on $hostname\n"; }
}
"#;
/// Installs nginx. On a machine of its own that would take no CPU from those that serve.
pub(crate) const NGINX_SCRIPT: &str = concat!(
    "#!/bin/sh\nrenice -n 19 -p $$ >/dev/null\n",
    include_str!("nginx.sh")
);
pub(crate) const ROLE: &str = "web.shop.example";

/// A virtual service of director.toml.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    /// "nat", "dr" or "tun".
    pub(crate) forward: &'static str,
    /// The table of the check without its header; see [`HTTP_CHECK`].
    pub(crate) check: String,
    /// Each with its weight.
    pub(crate) real_servers: Vec<(SocketAddr, u32)>,
}

pub(crate) const HTTP_CHECK: &str = r#"interval = "500ms"
timeout = "500ms"
rise = 2
fall = 2

[virtual_service.check.http]
path = "/"
status = "200-299"
"#;

pub(crate) const TCP_CHECK: &str = r#"interval = "500ms"
timeout = "500ms"
rise = 2
fall = 2

[virtual_service.check.tcp]
"#;

impl Lab {
    pub(crate) fn director_socket(&self) -> String {
        format!("{}/director.sock", self.dir().display())
    }

    pub(crate) fn provisioner_socket(&self) -> String {
        format!("{}/provisioner.sock", self.dir().display())
    }

    pub(crate) fn director_state(&self) -> PathBuf {
        self.dir().join("director.state")
    }

    pub(crate) fn provisioner_state(&self) -> PathBuf {
        self.dir().join("provisioner.state")
    }

    /// Writes director.toml; where it is.
    pub(crate) fn write_director(&self, services: &[Service], replace_after: &str) -> String {
        let mut text = format!(
            r#"[director]
name = "lb1"
address = "{DIRECTOR}"
state_dir = "{}"
socket = "{}"

[provisioner]
address = "{DIRECTOR}"
socket = "{}"

[metrics]
listen = "127.0.0.1:9711"

[replacement]
replace_after = "{replace_after}"

[kernel]
"net.ipv4.vs.expire_nodest_conn" = 1
"#,
            self.director_state().display(),
            self.director_socket(),
            self.provisioner_socket(),
        );
        for service in services {
            let Service {
                address,
                forward,
                check,
                real_servers,
            } = service;
            write!(
                text,
                r#"
[[virtual_service]]
address = "{address}"
protocol = "tcp"
scheduler = "rr"
forward = "{forward}"

[virtual_service.check]
{check}"#
            )
            .unwrap();
            for (server, weight) in real_servers {
                write!(
                    text,
                    "\n[[virtual_service.real_server]]\naddress = \"{server}\"\nweight = {weight}\n"
                )
                .unwrap();
            }
        }
        fs::create_dir_all(self.director_state()).unwrap();
        self.write("director.toml", &text)
    }

    /// Writes provisioner.toml; where it is.
    pub(crate) fn write_provisioner(&self) -> String {
        fs::create_dir_all(self.provisioner_state()).unwrap();
        self.write(
            "provisioner.toml",
            &format!(
                r#"[provisioner]
address = "{DIRECTOR}"
state_dir = "{}"
socket = "{}"

[ssh]
key = "{}"
user = "root"

[metrics]
listen = "127.0.0.1:9713"
"#,
                self.provisioner_state().display(),
                self.provisioner_socket(),
                self.key().display(),
            ),
        )
    }

    /// Writes the inventory folder: the servers named in `serving` have the role, all others are
    /// spares. `script` installs the role's software: [`NGINX_SCRIPT`], or one that misbehaves.
    /// Where the folder is.
    pub(crate) fn write_inventory(&self, serving: &[&str], script: &str) -> String {
        let mut servers = String::new();
        for server in self.servers() {
            write!(
                servers,
                r#"[[server]]
name = "{}"
addresses = ["{v4}", "{}"]
ssh_address = "{v4}"
ssh_port = 22
host_keys = ["{}"]
"#,
                server.name,
                server.address6(),
                server.host_key(),
                v4 = server.address4(),
            )
            .unwrap();
            if serving.contains(&server.name.as_str()) {
                writeln!(servers, "role = \"{ROLE}\"").unwrap();
            }
            servers.push('\n');
        }
        for folder in ["scripts", "files/shop.example"] {
            fs::create_dir_all(self.dir().join("inventory").join(folder)).unwrap();
        }
        self.write("inventory/servers.toml", &servers);
        self.write("inventory/roles.toml", ROLES);
        self.write("inventory/software.toml", SOFTWARE);
        self.write("inventory/service_config.toml", SERVICE_CONFIG);
        self.write("inventory/scripts/nginx.sh", script);
        self.write("inventory/files/shop.example/nginx.conf", SITE);
        self.dir().join("inventory").display().to_string()
    }

    /// Writes director.toml of a director without a provisioner: its section's head, and the rest as given.
    pub(crate) fn write_lone_director(&self, rest: &str) -> String {
        fs::create_dir_all(self.director_state()).unwrap();
        let state = self.director_state().display().to_string();
        let socket = self.director_socket();
        let head = format!(
            "[director]\nname = \"lb1\"\naddress = \"{DIRECTOR}\"\nstate_dir = \"{state}\"\nsocket = \"{socket}\"\n"
        );
        self.write("director.toml", &(head + rest))
    }

    /// Writes a file of the lab's folder; where it is.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

const ROLES: &str = r#"[[role]]
code = "web.shop.example"
domain = "shop.example"
os = "debian-12"
software = ["nginx"]
"#;

const SOFTWARE: &str = r#"[[software]]
name = "nginx"
script = "scripts/nginx.sh"
timeout = "900s"
check = "test -x /usr/sbin/nginx && ! test -e /etc/nginx/sites-enabled/default"
start = "nginx"
reload = "nginx -s reload"
running = "kill -0 $(cat /run/nginx.pid)"
"#;

const SERVICE_CONFIG: &str = r#"[[service_config]]
domain = "shop.example"
software = "nginx"
path = "/etc/nginx/conf.d/shop.conf"
source = "files/shop.example/nginx.conf"
mode = "0644"
owner = "root"
group = "root"
template = true
"#;
