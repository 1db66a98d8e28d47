//! What the files for systemd promise. Read as text: `systemd-analyze` is not everywhere.

use std::{collections::BTreeMap, fs, path::PathBuf};

/// `Section/Key` to its values in order.
type Unit = BTreeMap<String, Vec<String>>;

fn file(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn unit(name: &str) -> Unit {
    let mut unit = Unit::new();
    let mut section = String::new();
    for line in file(&format!("systemd/{name}")).lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        assert!(
            !line.ends_with('\\'),
            "this reader knows no continued lines: {line}"
        );
        let (key, value) = line
            .split_once('=')
            .unwrap_or_else(|| panic!("no assignment: {line}"));
        unit.entry(format!("{section}/{key}"))
            .or_default()
            .push(value.to_owned());
    }
    unit
}

fn assert_has(unit: &Unit, wanted: &[(&str, &str)]) {
    for (key, value) in wanted {
        let found = unit.get(&format!("Service/{key}"));
        assert_eq!(found, Some(&vec![(*value).to_owned()]), "{key}");
    }
}

/// What both daemons have in common.
const HARDENED: &[(&str, &str)] = &[
    ("Type", "notify"),
    ("Restart", "always"),
    ("WatchdogSec", "30s"),
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SupplementaryGroups", "understudy"),
    ("StateDirectoryMode", "0700"),
    ("UMask", "0007"),
];

#[test]
fn the_director_holds_network_capabilities_and_no_secret() {
    let unit = unit("understudy-director.service");
    assert_has(&unit, HARDENED);
    assert_has(
        &unit,
        &[
            ("User", "understudy-director"),
            // Declared kernel settings are written; ProtectKernelTunables keeps all others.
            ("ReadWritePaths", "/run/understudy /proc/sys/net"),
            ("AmbientCapabilities", "CAP_NET_ADMIN CAP_NET_RAW"),
            ("CapabilityBoundingSet", "CAP_NET_ADMIN CAP_NET_RAW"),
            (
                "RestrictAddressFamilies",
                "AF_NETLINK AF_INET AF_INET6 AF_PACKET AF_UNIX",
            ),
            ("StateDirectory", "understudy/director"),
            (
                "ExecStart",
                "/usr/bin/understudy director --config /etc/understudy/director.toml",
            ),
        ],
    );
    for none in [
        "LoadCredential",
        "PrivateUsers",
        "PrivateNetwork",
        "ExecStartPre",
    ] {
        assert!(!unit.contains_key(&format!("Service/{none}")), "{none}");
    }
    assert!(!file("systemd/understudy-director.service").contains("ssh_key"));
}

#[test]
fn the_provisioner_holds_the_key_and_no_capability() {
    let unit = unit("understudy-provisioner.service");
    assert_has(&unit, HARDENED);
    assert_has(
        &unit,
        &[
            ("User", "understudy-provisioner"),
            ("ReadWritePaths", "/run/understudy"),
            ("AmbientCapabilities", ""),
            ("CapabilityBoundingSet", ""),
            ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
            ("LoadCredential", "ssh_key:/etc/understudy/ssh_key"),
            ("StateDirectory", "understudy/provisioner"),
        ],
    );
}

#[test]
fn users_and_the_socket_folder_fit_the_units() {
    let users = file("systemd/sysusers.d/understudy.conf");
    for role in ["director", "provisioner"] {
        let unit = unit(&format!("understudy-{role}.service"));
        let name = &unit["Service/User"][0];
        let has = |first: &str, second: &str| {
            users.lines().any(|l| {
                let mut words = l.split_whitespace();
                words.next() == Some(first)
                    && words.next() == Some(name)
                    && words
                        .next()
                        .is_some_and(|w| second.is_empty() || w == second)
            })
        };
        assert!(has("u", ""), "{name} is made");
        assert!(has("m", "understudy"), "{name} may use the sockets");
    }
    let folder = file("systemd/tmpfiles.d/understudy.conf");
    let line = folder.lines().find(|l| !l.starts_with('#')).unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        // Set-group-ID and sticky; others may pass, to a socket that lets them in.
        ["d", "/run/understudy", "3771", "root", "understudy", "-"]
    );
    // Whoever ran a director before: the unit's user can open its lock.
    let lock = folder.lines().find(|l| l.starts_with('f')).unwrap();
    assert_eq!(
        lock,
        "f /run/understudy/director.lock 0640 understudy-director understudy -"
    );
}

#[test]
fn the_example_configurations_agree_with_the_units() {
    for (role, socket_key) in [("director", "socket"), ("provisioner", "socket")] {
        let text = file(&format!("config/{role}.toml"));
        let config: toml::Table = toml::from_str(&text).unwrap();
        let section = config[role].as_table().unwrap();
        let state = &unit(&format!("understudy-{role}.service"))["Service/StateDirectory"][0];
        assert_eq!(
            section["state_dir"].as_str(),
            Some(format!("/var/lib/{state}").as_str())
        );
        let socket = section[socket_key].as_str().unwrap();
        assert!(socket.starts_with("/run/understudy/"), "{socket}");
    }
    let director: toml::Table = toml::from_str(&file("config/director.toml")).unwrap();
    let provisioner: toml::Table = toml::from_str(&file("config/provisioner.toml")).unwrap();
    for key in ["address", "socket"] {
        assert_eq!(
            director["provisioner"][key], provisioner["provisioner"][key],
            "{key}"
        );
    }
}
