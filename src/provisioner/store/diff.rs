//! What `inventory apply` changes. PURE: the store's reading and the files go in, the changes come
//! out. What a replacement gave is the running system's: it is reported as held and left as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use serde_json::Value;

use crate::{
    model::{
        inventory::{
            ChangeAction, Inventory, InventoryChange, Labels, Role, Server, ServerState,
            ServiceFile, Software,
        },
        machine::{Driver, Image},
    },
    provisioner::{
        plan::{Assignment, Miss, PoolServer, Source, World, ordered, script_for},
        render,
    },
};

/// All that is wrong with an inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the inventory has faults: {}", self.0.join("; "))
    }
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Diff {
    /// For people, in order of object.
    pub(super) changes: Vec<InventoryChange>,
    /// Roles, scripts and files as they are to be, where any of them differs.
    pub(super) catalogue: Option<Catalogue>,
    /// What becomes of servers.
    pub(super) servers: Vec<ServerOp>,
}

/// Directors that may have a server in service as a stand-in, by the server's name.
pub(super) type Attached = BTreeMap<String, Vec<String>>;

/// Roles, scripts and files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Catalogue {
    pub(super) roles: Vec<Role>,
    pub(super) software: Vec<Software>,
    pub(super) files: Vec<ServiceFile>,
    pub(super) images: Vec<Image>,
}

/// What becomes of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerOp {
    Add(Server),
    Change {
        server: Server,
        /// Where it stands from now on, where that changes, with the reason.
        state: Option<(ServerState, Option<String>)>,
        /// Whether the role database follows the files for it.
        assign: bool,
    },
    Remove(String),
}

/// Texts with a NUL byte, which not every engine keeps.
fn nul(value: &Value, place: &str, all: &mut Vec<String>) {
    let say = |what: &str| format!("{what} of {place} contains a NUL byte");
    match value {
        Value::String(text) if text.contains('\0') => all.push(say("a text")),
        Value::Array(values) => {
            for value in values {
                nul(value, place, all);
            }
        }
        Value::Object(values) => {
            for (key, value) in values {
                match key.contains('\0') {
                    true => all.push(say("a name")),
                    false => nul(value, &format!("{key} in {place}"), all),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What is wrong with an inventory, whatever the store holds.
///
/// # Errors
/// [`Problems`], all of them.
pub fn problems(wanted: &Inventory) -> Result<(), Problems> {
    let mut all = Vec::new();
    match serde_json::to_value(wanted) {
        Ok(whole) => nul(&whole, "the inventory", &mut all),
        Err(e) => all.push(format!("the inventory has no JSON form: {e}")),
    }
    for (code, role) in &wanted.roles {
        if *code != role.code {
            all.push(format!("role {code} calls itself {}", role.code));
        }
        if role.software.is_empty() {
            all.push(format!("role {code} names no software"));
        }
        for name in &role.software {
            if script_for(&wanted.software, name, &role.os).is_none() {
                all.push(format!(
                    "role {code} needs {name} on {}, which has no script for it",
                    role.os
                ));
            }
        }
    }
    for role in wanted.roles.values() {
        // A missing script is told above.
        if let Err(e @ Miss::NeedUnmet { .. }) = ordered(role, &wanted.software) {
            all.push(e.to_string());
        }
    }
    let mut seen = BTreeSet::new();
    for s in &wanted.software {
        if !seen.insert((&s.name, &s.os)) {
            all.push(format!("{} stands twice", software_name(s)));
        }
    }
    let mut seen = BTreeSet::new();
    for f in &wanted.files {
        let name = file_name(f);
        if !seen.insert((&f.domain, &f.software, &f.path)) {
            all.push(format!("{name} stands twice"));
        }
        if !f.path.starts_with('/') {
            all.push(format!("{name} needs an absolute path"));
        }
        if !wanted.software.iter().any(|s| s.name == f.software) {
            all.push(format!(
                "{name} is of software that is not in the catalogue"
            ));
        }
        if let Err(e) = render::parse(f) {
            all.push(e.line());
        }
    }
    for role in wanted.roles.values() {
        let mut placed: BTreeMap<&str, &str> = BTreeMap::new();
        let ours =
            |f: &&ServiceFile| f.domain == role.domain && role.software.contains(&f.software);
        for f in wanted.files.iter().filter(ours) {
            match placed.insert(&f.path, &f.software) {
                Some(other) if other != f.software => all.push(format!(
                    "role {}: {other} and {} both place {}",
                    role.code, f.software, f.path
                )),
                Some(_) | None => {}
            }
        }
    }
    for (os, image) in &wanted.images {
        if *os != image.os {
            all.push(format!("the image of {os} calls itself {}", image.os));
        }
    }
    let mut owner: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (name, server) in &wanted.servers {
        if *name != server.name {
            all.push(format!("server {name} calls itself {}", server.name));
        }
        if server.addresses.is_empty() {
            all.push(format!("server {name} has no service address"));
        }
        if server.host_keys.is_empty() && server.driver == Driver::Ready {
            all.push(format!(
                "server {name} has no host key: it could not be trusted"
            ));
        }
        if server.ssh_port == 0 {
            all.push(format!("server {name} has the SSH port 0"));
        }
        if let Some(role) = &server.role
            && !wanted.roles.contains_key(role)
        {
            all.push(format!(
                "server {name} has the role {role}, which is not defined"
            ));
        }
        for role in &server.reserved_for {
            if !wanted.roles.contains_key(role) {
                all.push(format!(
                    "server {name} is reserved for the role {role}, which is not defined"
                ));
            }
        }
        for address in &server.addresses {
            if let Some(other) = owner.insert(*address, name) {
                all.push(format!("{address} is an address of {other} and of {name}"));
            }
        }
    }
    all.extend(one_machine(wanted.servers.values()));
    if all.is_empty() {
        Ok(())
    } else {
        Err(Problems(all))
    }
}

/// Drivers of different servers that name the same machine: who installs the one wipes the other.
fn one_machine<'s>(servers: impl Iterator<Item = &'s Server>) -> impl Iterator<Item = String> {
    let mut owner = BTreeMap::new();
    servers.filter_map(move |server| {
        let machine = server.driver.machine()?;
        let other = owner.insert(machine, &server.name)?;
        Some(format!(
            "the drivers of {other} and {} name the same machine: who installs one wipes the other",
            server.name
        ))
    })
}

/// Compares the store with the files.
pub(super) fn diff(
    world: &World,
    attached: &Attached,
    wanted: &Inventory,
) -> Result<Diff, Problems> {
    let mut diff = Diff::default();
    for (name, server) in &wanted.servers {
        match world.servers.get(name) {
            None => {
                let role = server.role.as_deref().unwrap_or("none, a spare");
                diff.say(
                    ChangeAction::Add,
                    format!("server {name}"),
                    format!("role {role}"),
                );
                diff.servers.push(ServerOp::Add(server.clone()));
            }
            Some(old) => diff.server(world, old, server),
        }
    }
    for (name, old) in &world.servers {
        if !wanted.servers.contains_key(name) {
            diff.gone(world, attached, name, old);
        }
    }
    diff.collisions(world)?;
    diff.catalogue(world, wanted);
    diff.changes.sort_by(|a, b| a.object.cmp(&b.object));
    Ok(diff)
}

/// Why the files cannot change a server's role or addresses.
enum Hold<'a> {
    /// They can.
    Free,
    /// A replacement has it in hand.
    Busy(String),
    /// A replacement gave it its role.
    By(String, &'a Assignment),
    /// Its role went over to another server.
    PassedOn(String),
}

/// A replacement works on it, or it is being cleaned.
const fn in_hand(s: &PoolServer) -> bool {
    matches!(
        s.state,
        ServerState::Claimed
            | ServerState::Configuring
            | ServerState::Testing
            | ServerState::Cleaning
    )
}

fn hold<'a>(world: &'a World, s: &PoolServer) -> Hold<'a> {
    let held = s
        .server
        .addresses
        .iter()
        .find_map(|a| world.assignments.get(a));
    if in_hand(s) {
        let id = s.claimed_for.as_ref().map_or("?", |id| id.as_str());
        let done = match s.state {
            ServerState::Cleaning => "cleaned",
            _ => "configured",
        };
        return Hold::Busy(format!("is being {done} by {id}"));
    }
    if s.keeping.untidy {
        return Hold::Busy("may keep a boot override or image of an installation".to_owned());
    }
    match held {
        Some(Assignment {
            passed_on: Some(id),
            ..
        }) => {
            let spare = world
                .assignments
                .values()
                .find(|a| a.passed_on.is_none() && a.source == Source::Replacement(id.clone()));
            Hold::PassedOn(match spare {
                Some(a) => format!("its role is held by {} ({id})", a.server),
                None => format!("its role was passed on ({id})"),
            })
        }
        Some(
            a @ Assignment {
                source: Source::Replacement(id),
                ..
            },
        ) => Hold::By(format!("holds the role {} by {id}", a.role), a),
        Some(_) | None => Hold::Free,
    }
}

impl Diff {
    fn say(&mut self, action: ChangeAction, object: String, detail: String) {
        self.changes.push(InventoryChange {
            action,
            object,
            detail,
        });
    }

    /// A server that is in the store and in the files.
    fn server(&mut self, world: &World, old: &PoolServer, new: &Server) {
        let object = format!("server {}", new.name);
        let hold = hold(world, old);
        let mut becomes = old.server.clone();
        let mut details = Vec::new();
        let mut held = Vec::new();
        let mut state = None;
        let mut assign = false;
        if (old.server.ssh_address, old.server.ssh_port) != (new.ssh_address, new.ssh_port) {
            details.push(format!(
                "SSH at {} port {}, was {} port {}",
                new.ssh_address, new.ssh_port, old.server.ssh_address, old.server.ssh_port
            ));
            becomes.ssh_address = new.ssh_address;
            becomes.ssh_port = new.ssh_port;
        }
        if old.server.host_keys != new.host_keys {
            details.push("other host keys".to_owned());
            becomes.host_keys.clone_from(&new.host_keys);
        }
        if old.server.labels != new.labels {
            let (old, new) = (labels(&old.server.labels), labels(&new.labels));
            details.push(format!("labels {new}, was {old}"));
        }
        if old.server.reserved_for != new.reserved_for {
            let names = |roles: &[String]| match roles {
                [] => "any role".to_owned(),
                roles => roles.join(", "),
            };
            let (old, new) = (names(&old.server.reserved_for), names(&new.reserved_for));
            details.push(format!("a spare for {new}, was for {old}"));
        }
        becomes.labels.clone_from(&new.labels);
        becomes.reserved_for.clone_from(&new.reserved_for);
        // Half an installation by one machine's controller, and half by another's.
        if old.server.driver != new.driver && in_hand(old) {
            if let Hold::Busy(why) = &hold {
                let kind = old.server.driver.kind();
                held.push(format!("driver stays {kind} as it was: it {why}"));
            }
        } else if old.server.driver != new.driver {
            details.push(match old.server.driver.kind() == new.driver.kind() {
                true => format!("other settings of its driver {}", new.driver.kind()),
                false => format!(
                    "driver {}, was {}",
                    new.driver.kind(),
                    old.server.driver.kind()
                ),
            });
            becomes.driver = new.driver.clone();
        }
        if old.server.wipe != new.wipe {
            let may = if new.wipe { "may" } else { "may not" };
            details.push(format!("{may} be wiped"));
            becomes.wipe = new.wipe;
        }
        if old.server.addresses != new.addresses {
            let list = list(&new.addresses);
            match &hold {
                Hold::Free => {
                    details.push(format!(
                        "addresses {list}, was {}",
                        self::list(&old.server.addresses)
                    ));
                    becomes.addresses.clone_from(&new.addresses);
                    assign = true;
                }
                Hold::Busy(why) | Hold::By(why, _) | Hold::PassedOn(why) => {
                    held.push(format!(
                        "addresses stay {}: it {why}",
                        self::list(&old.server.addresses)
                    ));
                }
            }
        }
        let role = |r: &Option<String>| r.clone().unwrap_or_else(|| "none".to_owned());
        let moves = old.server.role != new.role;
        match &hold {
            Hold::Free if moves => {
                details.push(format!(
                    "role {}, was {}",
                    role(&new.role),
                    role(&old.server.role)
                ));
                becomes.role.clone_from(&new.role);
                assign = true;
                state = Some(match (&old.server.role, &new.role) {
                    (_, Some(_)) => (ServerState::Serving, None),
                    (was, None) => (
                        ServerState::Quarantined,
                        Some(format!(
                            "had the role {} until the files took it: clean it, then release it",
                            role(was)
                        )),
                    ),
                });
            }
            Hold::Free => {}
            Hold::Busy(why) => {
                if moves {
                    held.push(format!("the files say role {}: it {why}", role(&new.role)));
                }
            }
            // Both are also what a second apply of unchanged files says after a replacement.
            Hold::By(_, given) if new.role.as_ref() == Some(&given.role) => {
                if moves {
                    details.push(format!("role {}, as it holds", given.role));
                    becomes.role.clone_from(&new.role);
                }
            }
            Hold::By(why, _) => {
                held.push(format!("the files say role {}: it {why}", role(&new.role)));
            }
            Hold::PassedOn(why) => {
                if new.role.is_some() {
                    held.push(format!("the files say role {}: {why}", role(&new.role)));
                } else if moves {
                    details.push(format!("role none, was {}", role(&old.server.role)));
                    becomes.role = None;
                }
            }
        }
        if !held.is_empty() {
            self.say(ChangeAction::Held, object.clone(), held.join("; "));
        }
        if !details.is_empty() {
            self.say(ChangeAction::Change, object, details.join("; "));
            self.servers.push(ServerOp::Change {
                server: becomes,
                state,
                assign,
            });
        }
    }

    /// A server that is no longer in the files.
    fn gone(&mut self, world: &World, attached: &Attached, name: &str, old: &PoolServer) {
        let object = format!("server {name}");
        let why = match hold(world, old) {
            Hold::Busy(why) => Some(format!("it {why}")),
            Hold::By(why, _) if old.state == ServerState::Serving => {
                Some(format!("it {why}: have it replaced first"))
            }
            Hold::PassedOn(why) if old.server.role.is_some() => {
                Some(format!("{why}: take its role in the files first"))
            }
            Hold::Free if old.state == ServerState::Serving => Some(format!(
                "it serves the role {}: take its role in the files first",
                old.server.role.as_deref().unwrap_or("?")
            )),
            Hold::Free | Hold::By(..) | Hold::PassedOn(_) => attached.get(name).map(|directors| {
                format!(
                    "it may still be in service: not confirmed to be withdrawn by {}",
                    directors.join(", ")
                )
            }),
        };
        match why {
            Some(why) => self.say(
                ChangeAction::Held,
                object,
                format!("gone from the files: {why}"),
            ),
            None => {
                self.say(
                    ChangeAction::Remove,
                    object,
                    format!("was {}", old.state.as_str()),
                );
                self.servers.push(ServerOp::Remove(name.to_owned()));
            }
        }
    }

    /// An address that a held server keeps must not come to another one.
    fn collisions(&self, world: &World) -> Result<(), Problems> {
        let mut servers: BTreeMap<&str, &Server> = world
            .servers
            .iter()
            .map(|(name, s)| (name.as_str(), &s.server))
            .collect();
        for op in &self.servers {
            match op {
                ServerOp::Add(s) | ServerOp::Change { server: s, .. } => {
                    servers.insert(&s.name, s);
                }
                ServerOp::Remove(name) => {
                    servers.remove(name.as_str());
                }
            }
        }
        let mut owner: BTreeMap<IpAddr, &str> = BTreeMap::new();
        let mut all: Vec<String> = one_machine(servers.values().copied()).collect();
        for (name, server) in servers {
            for address in &server.addresses {
                if let Some(other) = owner.insert(*address, name) {
                    all.push(format!(
                        "{address} would be an address of {other} and of {name}: one of them is \
                         held as it is, apply again when it is free"
                    ));
                }
            }
        }
        if all.is_empty() {
            Ok(())
        } else {
            Err(Problems(all))
        }
    }

    fn catalogue(&mut self, world: &World, wanted: &Inventory) {
        let before = self.changes.len();
        let mut target = Catalogue {
            roles: wanted.roles.values().cloned().collect(),
            software: wanted.software.iter().map(stored_software).collect(),
            files: wanted.files.clone(),
            images: wanted.images.values().cloned().collect(),
        };
        let mut kept = 0;
        for (code, old) in &world.roles {
            if wanted.roles.contains_key(code) {
                continue;
            }
            if let Some(server) = self.still_has(world, code) {
                self.say(
                    ChangeAction::Held,
                    format!("role {code}"),
                    format!("gone from the files: {server} has it"),
                );
                target.roles.push(old.clone());
                kept += 1;
            }
        }
        let roles = |r: &Role| (format!("role {}", r.code), r.clone());
        let software = |s: &Software| (software_name(s), s.clone());
        let files = |f: &ServiceFile| (file_name(f), f.clone());
        self.compare(
            world.roles.values().map(roles),
            target.roles.iter().map(roles),
            |a, b| {
                if (&a.software, &a.os, &a.domain, a.install)
                    == (&b.software, &b.os, &b.domain, b.install)
                {
                    return "other rules for its spares".to_owned();
                }
                let installs = |r: &Role| {
                    if r.install {
                        ", installed where needed"
                    } else {
                        ""
                    }
                };
                format!(
                    "{} on {}{}, was {} on {}{}",
                    b.software.join(" "),
                    b.os,
                    installs(b),
                    a.software.join(" "),
                    a.os,
                    installs(a)
                )
            },
        );
        let images = |i: &Image| (format!("image {}", i.os), i.clone());
        self.compare(
            world.images.values().map(images),
            target.images.iter().map(images),
            |_, _| "other settings".to_owned(),
        );
        self.compare(
            world.software.iter().map(software),
            target.software.iter().map(software),
            |a, b| {
                let what = if a.script == b.script {
                    "commands or time limit"
                } else {
                    "script"
                };
                format!("other {what}")
            },
        );
        self.compare(
            world.files.iter().map(files),
            target.files.iter().map(files),
            |a, b| {
                let what = if a.body == b.body {
                    "mode or owner"
                } else {
                    "text"
                };
                format!("other {what}")
            },
        );
        if self.changes.len() > before + kept {
            self.catalogue = Some(target);
        }
    }

    /// A server that has a role by what stays of the role database.
    fn still_has(&self, world: &World, code: &str) -> Option<String> {
        let follows_files = |name: &str| {
            self.servers.iter().any(|op| match op {
                ServerOp::Remove(n) => n == name,
                ServerOp::Change { server, assign, .. } => *assign && server.name == name,
                ServerOp::Add(_) => false,
            })
        };
        world
            .assignments
            .values()
            .find(|a| a.role == code && !follows_files(&a.server))
            .map(|a| a.server.clone())
    }

    fn compare<T: PartialEq>(
        &mut self,
        old: impl Iterator<Item = (String, T)>,
        new: impl Iterator<Item = (String, T)>,
        differs: impl Fn(&T, &T) -> String,
    ) {
        let mut old: BTreeMap<String, T> = old.collect();
        for (name, new) in new {
            match old.remove(&name) {
                None => self.say(ChangeAction::Add, name, String::new()),
                Some(old) if old != new => {
                    let detail = differs(&old, &new);
                    self.say(ChangeAction::Change, name, detail);
                }
                Some(_) => {}
            }
        }
        for name in old.into_keys() {
            self.say(ChangeAction::Remove, name, String::new());
        }
    }
}

/// As the store keeps it: times in milliseconds.
fn stored_software(s: &Software) -> Software {
    let ms = u64::try_from(s.timeout.as_millis()).unwrap_or(u64::MAX);
    Software {
        timeout: Duration::from_millis(ms),
        ..s.clone()
    }
}

fn software_name(s: &Software) -> String {
    match &s.os {
        Some(os) => format!("software {} for {os}", s.name),
        None => format!("software {}", s.name),
    }
}

fn file_name(f: &ServiceFile) -> String {
    format!("file {} of {} in {}", f.path, f.software, f.domain)
}

fn labels(labels: &Labels) -> String {
    let words: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    match words.as_slice() {
        [] => "none".to_owned(),
        words => words.join(" "),
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let words: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    words.join(" ")
}
