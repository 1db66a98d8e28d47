//! Texts to inventory, without reading a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use toml::Spanned;

use super::{
    FILES, machines,
    table::{Entry, Sections, sections, several},
    values::{
        Seen, address, host_keys, is_account, is_variable, limit, list, name, operating_system,
        permissions, script_mistake, target_path,
    },
};
use crate::{
    config::Diagnostics,
    model::{
        inventory::{Cleanup, Inventory, Role, Server, ServiceFile, Software, SparePolicy},
        machine::Driver,
    },
};

/// The texts of the four files.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'s> {
    /// `roles.toml`.
    pub roles: &'s str,
    /// `software.toml`.
    pub software: &'s str,
    /// `service_config.toml`.
    pub service_config: &'s str,
    /// `servers.toml`.
    pub servers: &'s str,
}

/// A script or file that the tables name and that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// Not there.
    #[error("there is no such file in the inventory folder")]
    Missing,
    /// Somewhere else.
    #[error("lies outside the inventory folder: copy it in")]
    Outside,
    /// Not UTF-8.
    #[error("is not UTF-8 text")]
    NotText,
    /// No database keeps it as a text.
    #[error("contains a NUL byte: it is no text")]
    Nul,
    /// Something else.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// A cleaning script ends within this where nothing else is said.
const CLEANUP: Duration = Duration::from_secs(300);

/// Gives the text of a file by its path in the folder.
type Attach<'a> = dyn FnMut(&str) -> Result<String, AttachmentError> + 'a;

/// Names that others refer to, kept also of entries with mistakes, so that one mistake is said once.
#[derive(Debug, Default)]
struct Names {
    roles: BTreeSet<String>,
    /// (domain, software) of every role.
    used: BTreeSet<(String, String)>,
    domains: BTreeSet<String>,
    /// Name to the operating systems it has an entry for.
    software: BTreeMap<String, Vec<Option<String>>>,
    /// Software with service files.
    configured: BTreeSet<String>,
    /// (name, operating system) to what it needs.
    needs: BTreeMap<(String, Option<String>), Vec<String>>,
}

/// Reads the four texts of the folder `dir`, and by `attach` the files that they name.
///
/// # Errors
///
/// All mistakes, by file.
pub fn parse(
    dir: &Path,
    texts: &Texts<'_>,
    attach: &mut Attach<'_>,
) -> Result<Inventory, Vec<Diagnostics>> {
    let [roles, software, config, servers] = FILES;
    let mut p = Parser {
        roles: Diagnostics::new(&dir.join(roles), texts.roles),
        software: Diagnostics::new(&dir.join(software), texts.software),
        config: Diagnostics::new(&dir.join(config), texts.service_config),
        servers: Diagnostics::new(&dir.join(servers), texts.servers),
        names: Names::default(),
        templates: BTreeMap::new(),
        dir,
        attach,
        inventory: Inventory::default(),
    };
    let keys = [
        "code",
        "domain",
        "os",
        "software",
        "gateways",
        "clients",
        "requires",
        "prefers",
        "apart",
        "keep_warm",
        "low_water",
        "clean",
        "cleanup",
        "cleanup_timeout",
        "install",
    ];
    let kinds: [(&str, &[&str]); 2] = [("role", &keys), ("image", &machines::IMAGE)];
    let [roles, images] = several(&mut p.roles, texts.roles, kinds);
    let keys = [
        "name", "os", "script", "timeout", "check", "running", "start", "reload", "needs",
        "secrets",
    ];
    let software = sections(&mut p.software, texts.software, "software", &keys);
    let keys = [
        "domain", "software", "path", "source", "mode", "owner", "group", "template", "validate",
    ];
    let config = sections(&mut p.config, texts.service_config, "service_config", &keys);
    let keys = [
        "name",
        "addresses",
        "ssh_address",
        "ssh_port",
        "host_keys",
        "role",
        "labels",
        "reserved_for",
        "driver",
        "wipe",
    ];
    let servers = sections(&mut p.servers, texts.servers, "server", &keys);

    p.collect_names(&roles, &software, &config);
    p.read_roles(&roles, software.whole);
    p.inventory.images = machines::images(&mut p.roles, &images);
    p.check_images(&roles);
    p.read_software(&software);
    p.read_config(&config, roles.whole, software.whole);
    p.read_servers(&servers, roles.whole);

    let all = [p.roles, p.software, p.config, p.servers];
    let mistakes: Vec<_> = all
        .into_iter()
        .chain(p.templates.into_values())
        .filter_map(|d| d.or(()).err())
        .collect();
    if mistakes.is_empty() {
        Ok(p.inventory)
    } else {
        Err(mistakes)
    }
}

impl Names {
    /// What a software needs on an operating system.
    fn needs_of(&self, name: &str, os: &str) -> &[String] {
        let of = |os: Option<&str>| self.needs.get(&(name.to_owned(), os.map(str::to_owned)));
        of(Some(os)).or_else(|| of(None)).map_or(&[], Vec::as_slice)
    }

    /// Whether `from` needs `to`, itself or by others.
    fn leads_to(&self, from: &str, to: &str, os: Option<&str>) -> bool {
        let mut seen = BTreeSet::new();
        let mut left = vec![from];
        while let Some(name) = left.pop() {
            if name == to {
                return true;
            }
            if seen.insert(name) {
                let needs = self.needs_of(name, os.unwrap_or_default());
                left.extend(needs.iter().map(String::as_str));
            }
        }
        false
    }
}

struct Parser<'a> {
    dir: &'a Path,
    attach: &'a mut Attach<'a>,
    roles: Diagnostics,
    software: Diagnostics,
    config: Diagnostics,
    servers: Diagnostics,
    /// Mistakes within templates, by path.
    templates: BTreeMap<String, Diagnostics>,
    names: Names,
    inventory: Inventory,
}

impl Parser<'_> {
    fn collect_names(
        &mut self,
        roles: &Sections<'_>,
        software: &Sections<'_>,
        config: &Sections<'_>,
    ) {
        // Mistakes are noted when the entries are read.
        let mut nowhere = Diagnostics::new(self.dir, "");
        let mut text = |e: &Entry<'_>, key| e.text(&mut nowhere, key).map(Spanned::into_inner);
        for e in &roles.entries {
            self.names.roles.extend(text(e, "code"));
            if let Some(domain) = text(e, "domain") {
                self.names.domains.insert(domain);
            }
        }
        for e in &software.entries {
            if let Some(name) = text(e, "name") {
                let os = text(e, "os");
                let needs = e.texts(&mut Diagnostics::new(self.dir, ""), "needs");
                let needs = needs.into_iter().map(Spanned::into_inner).collect();
                self.names.needs.insert((name.clone(), os.clone()), needs);
                self.names.software.entry(name).or_default().push(os);
            }
        }
        for e in &config.entries {
            self.names.configured.extend(text(e, "software"));
        }
        for e in &roles.entries {
            let domain = e.text(&mut nowhere, "domain");
            for software in e.texts(&mut nowhere, "software") {
                let domain = domain.clone().map(Spanned::into_inner);
                let pair = domain.map(|d| (d, software.into_inner()));
                self.names.used.extend(pair);
            }
        }
    }

    fn read_roles(&mut self, roles: &Sections<'_>, software_known: bool) {
        let d = &mut self.roles;
        let mut codes = Seen::default();
        for e in &roles.entries {
            let code = e.required(d, "code");
            let domain = e.required(d, "domain");
            let os = e.required(d, "os");
            let wanted = e.list(d, "software", "list what the role needs, in order");
            let install = e.flag(d, "install", false);
            if let Some(code) = &code {
                name(d, "a role's code", code);
                codes.once(d, "role", code.get_ref().clone(), code.span());
            }
            if let Some(domain) = &domain {
                name(d, "a domain", domain);
            }
            if let Some(os) = &os {
                operating_system(d, os);
            }
            let mut twice = Seen::default();
            for s in &wanted {
                twice.once(d, "software", s.get_ref().clone(), s.span());
                match (self.names.software.get(s.get_ref()), &os) {
                    _ if !software_known => {}
                    (None, _) => {
                        let there = list(self.names.software.keys());
                        let message = format!(
                            "no software {:?} in software.toml; there is {there}",
                            s.get_ref()
                        );
                        d.push(s.span(), message);
                    }
                    (Some(systems), Some(os)) => {
                        let fits =
                            |s: &Option<String>| s.as_ref().is_none_or(|s| s == os.get_ref());
                        if !systems.iter().any(fits) {
                            let message = format!(
                                "software {:?} has no entry for {}, only for {}: add one to \
                                 software.toml",
                                s.get_ref(),
                                os.get_ref(),
                                list(systems.iter().flatten())
                            );
                            d.push(s.span(), message);
                        }
                    }
                    (Some(_), None) => {}
                }
            }
            if let Some(os) = &os {
                for s in &wanted {
                    for need in self.names.needs_of(s.get_ref(), os.get_ref()) {
                        let known = self.names.software.contains_key(need);
                        if known && !wanted.iter().any(|w| w.get_ref() == need) {
                            let message = format!(
                                "software {:?} needs {need:?}, which this role lacks: list it here",
                                s.get_ref()
                            );
                            d.push(s.span(), message);
                        }
                    }
                }
            }
            let [gateways, clients] = ["gateways", "clients"].map(|key| {
                let texts = e.texts(d, key);
                texts.iter().filter_map(|t| address(d, t)).collect()
            });
            let spares = spare_policy(d, &mut *self.attach, e);
            if let (Some(code), Some(domain), Some(os)) = (code, domain, os) {
                let code = code.into_inner();
                let role = Role {
                    code: code.clone(),
                    domain: domain.into_inner(),
                    os: os.into_inner(),
                    software: wanted.into_iter().map(Spanned::into_inner).collect(),
                    gateways,
                    clients,
                    spares,
                    install,
                };
                self.inventory.roles.insert(code, role);
            }
        }
    }

    /// A role that installs, or has its servers installed anew, needs something to install.
    fn check_images(&mut self, roles: &Sections<'_>) {
        for e in &roles.entries {
            let mut nowhere = Diagnostics::new(self.dir, "");
            let os = e.text(&mut nowhere, "os").map(Spanned::into_inner);
            let Some(os) = os.filter(|os| !self.inventory.images.contains_key(os)) else {
                continue;
            };
            if e.flag(&mut nowhere, "install", false) {
                let message = format!("install = true, and no [[image]] installs {os}: add one");
                self.roles.push(e.span(), message);
            }
            let clean = e.text(&mut nowhere, "clean");
            if let Some(clean) = clean.filter(|clean| clean.get_ref() == REINSTALL) {
                let message =
                    format!("clean = {REINSTALL:?}, and no [[image]] installs {os}: add one");
                self.roles.push(clean.span(), message);
            }
        }
    }

    fn read_software(&mut self, software: &Sections<'_>) {
        let mut names = Seen::default();
        for e in &software.entries {
            let d = &mut self.software;
            let found_name = e.required(d, "name");
            let os = e.text(d, "os");
            let script = e.required(d, "script");
            let timeout = e.required(d, "timeout");
            let [check, running, start, reload] =
                ["check", "running", "start", "reload"].map(|key| {
                    let command = e.text(d, key)?;
                    if command.get_ref().trim().is_empty() {
                        d.push(command.span(), format!("`{key}` is empty: leave it out"));
                    }
                    Some(command.into_inner())
                });
            if let Some(os) = &os {
                operating_system(d, os);
            }
            let os = os.map(Spanned::into_inner);
            let needs = e.texts(d, "needs");
            for need in &needs {
                let text = need.get_ref();
                if !self.names.software.contains_key(text) {
                    let there = list(self.names.software.keys());
                    let message =
                        format!("no software {text:?} in software.toml; there is {there}");
                    d.push(need.span(), message);
                } else if let Some(found) = &found_name
                    && self.names.leads_to(text, found.get_ref(), os.as_deref())
                {
                    let message = format!("{:?} needs itself by way of {text:?}", found.get_ref());
                    d.push(need.span(), message);
                }
            }
            let secrets = e.texts(d, "secrets");
            for secret in &secrets {
                if !is_variable(secret.get_ref()) {
                    let message = "a secret of a script is named as its environment has it: A-Z, \
                                   a-z, 0-9 and '_', no digit first, not UNDERSTUDY_";
                    d.push(secret.span(), message);
                }
            }
            if let Some(found) = &found_name {
                name(d, "a software's name", found);
                let both = match &os {
                    Some(os) => format!("{} for {os}", found.get_ref()),
                    None => found.get_ref().clone(),
                };
                names.once(d, "software", both, found.span());
                let serves = running.is_some() || start.is_some();
                if serves && reload.is_none() && self.names.configured.contains(found.get_ref()) {
                    let message = format!(
                        "{:?} has service files but no `reload`: if the package starts it, it \
                         would not read them",
                        found.get_ref()
                    );
                    d.push(e.span(), message);
                }
            }
            let timeout = timeout.and_then(|t| limit(d, &t));
            let body = script.and_then(|s| {
                let body = attach(d, &mut *self.attach, &s)?;
                match script_mistake(&body) {
                    None => Some(body),
                    Some(mistake) => {
                        d.push(s.span(), format!("{}: {mistake}", s.get_ref()));
                        None
                    }
                }
            });
            if let (Some(name), Some(script), Some(timeout)) = (found_name, body, timeout) {
                self.inventory.software.push(Software {
                    name: name.into_inner(),
                    os,
                    script,
                    timeout,
                    check,
                    running,
                    start,
                    reload,
                    needs: needs.into_iter().map(Spanned::into_inner).collect(),
                    secrets: secrets.into_iter().map(Spanned::into_inner).collect(),
                });
            }
        }
    }

    fn read_config(&mut self, config: &Sections<'_>, roles_known: bool, software_known: bool) {
        let mut places = Seen::default();
        let mut spots: Vec<(String, String, String)> = Vec::new();
        for e in &config.entries {
            let d = &mut self.config;
            let domain = e.required(d, "domain");
            let software = e.required(d, "software");
            let path = e.required(d, "path");
            let source = e.required(d, "source");
            let mode = e.text(d, "mode");
            let [owner, group] = ["owner", "group"].map(|key| match e.text(d, key) {
                None => "root".to_owned(),
                Some(account) => {
                    if !is_account(account.get_ref()) {
                        let message = format!("`{key}` is the name of an account on the server");
                        d.push(account.span(), message);
                    }
                    account.into_inner()
                }
            });
            let template = e.flag(d, "template", false);
            let validate = e.text(d, "validate");
            if let Some(command) = &validate
                && !command.get_ref().contains("{file}")
            {
                let message = "`validate` says with {file} where the new content lies, as in \
                               \"nginx -t -c {file}\"";
                d.push(command.span(), message);
            }
            if let Some(command) = &validate
                && quoted(command.get_ref())
            {
                let message = "{file} of `validate` is quoted where it is put in: write it without \
                               quotes";
                d.push(command.span(), message);
            }
            if let (Some(domain), true) = (&domain, roles_known)
                && !self.names.domains.contains(domain.get_ref())
            {
                let there = list(&self.names.domains);
                let message = format!(
                    "no role has the domain {:?}; there is {there}",
                    domain.get_ref()
                );
                d.push(domain.span(), message);
            } else if let (Some(domain), Some(software)) = (&domain, &software)
                && roles_known
                && self.names.software.contains_key(software.get_ref())
            {
                let pair = (domain.get_ref().clone(), software.get_ref().clone());
                if !self.names.used.contains(&pair) {
                    let message = format!(
                        "no role of the domain {:?} has the software {:?}: the file would never be \
                         placed",
                        pair.0, pair.1
                    );
                    d.push(software.span(), message);
                }
            }
            if let (Some(software), true) = (&software, software_known)
                && !self.names.software.contains_key(software.get_ref())
            {
                let there = list(self.names.software.keys());
                let message = format!(
                    "no software {:?} in software.toml; there is {there}",
                    software.get_ref()
                );
                d.push(software.span(), message);
            }
            if let Some(path) = &path {
                target_path(d, path);
                if let (Some(domain), Some(software)) = (&domain, &software) {
                    let place = format!(
                        "{} for {} in the domain {}",
                        path.get_ref(),
                        software.get_ref(),
                        domain.get_ref()
                    );
                    places.once(d, "file", place, path.span());
                    let spot = [domain, software, path].map(|t| t.get_ref().clone());
                    let [domain, software, file] = spot;
                    for role in self.inventory.roles.values() {
                        let ours = |s: &String| role.domain == domain && role.software.contains(s);
                        let same = |(d, s, f): &&(String, String, String)| {
                            *d == domain && *f == file && *s != software && ours(s)
                        };
                        if ours(&software)
                            && let Some((_, other, _)) = spots.iter().find(same)
                        {
                            let message = format!(
                                "role {}: {other} and {software} both place {file}",
                                role.code
                            );
                            d.push(path.span(), message);
                            break;
                        }
                    }
                    spots.push((domain, software, file));
                }
            }
            let mode = mode.map_or(Some(0o644), |m| permissions(d, &m));
            let body = source
                .as_ref()
                .and_then(|s| attach(d, &mut *self.attach, s));
            if let (Some(source), Some(body), true) = (&source, &body, template) {
                self.check_template(source.get_ref(), body);
            }
            if let (Some(domain), Some(software), Some(path), Some(body), Some(mode)) =
                (domain, software, path, body, mode)
            {
                self.inventory.files.push(ServiceFile {
                    domain: domain.into_inner(),
                    software: software.into_inner(),
                    path: path.into_inner(),
                    body,
                    template,
                    mode,
                    owner,
                    group,
                    validate: validate.map(Spanned::into_inner),
                });
            }
        }
    }

    fn check_template(&mut self, source: &str, body: &str) {
        let environment = minijinja::Environment::new();
        if let Err(e) = environment.template_from_str(body) {
            let line = e.line().unwrap_or(1).max(1);
            let start: usize = body
                .split_inclusive('\n')
                .take(line - 1)
                .map(str::len)
                .sum();
            let mut d = Diagnostics::new(&self.dir.join(source), body);
            let detail = e.detail().unwrap_or("not understood");
            d.push(start..start, format!("template, {}: {detail}", e.kind()));
            self.templates.insert(source.to_owned(), d);
        }
    }

    fn read_servers(&mut self, servers: &Sections<'_>, roles_known: bool) {
        let d = &mut self.servers;
        let (mut names, mut all, mut ssh) = (Seen::default(), Seen::default(), Seen::default());
        let mut machines = Seen::default();
        for e in &servers.entries {
            let found_name = e.required(d, "name");
            let hint = "list where the server serves, as in addresses = [\"192.0.2.10\"]";
            let written = e.list(d, "addresses", hint);
            let ssh_text = e.text(d, "ssh_address");
            let ssh_port = e.port(d, "ssh_port", 22);
            let hint = "give the content of the server's /etc/ssh/ssh_host_ed25519_key.pub";
            let driver = machines::driver(d, e);
            if let Some(machine) = driver.as_ref().and_then(Driver::machine) {
                machines.once(d, "machine of a driver", machine, e.span());
            }
            let wipe = e.flag(d, "wipe", false);
            let keys = match driver {
                Some(Driver::Ready) => e.list(d, "host_keys", hint),
                // A bare server has none yet.
                Some(Driver::Redfish(_) | Driver::Http(_)) | None => e.texts(d, "host_keys"),
            };
            let mut enrols = self.inventory.images.values();
            let enrols = enrols.any(|i| !i.enrolment_keys.is_empty());
            if driver.as_ref().is_some_and(|d| *d != Driver::Ready) && keys.is_empty() && !enrols {
                let message = "it has no `host_keys`, and no [[image]] has `enrolment_keys`: no \
                               key could be trusted after an installation";
                d.push(e.span(), message);
            }
            let role = e.text(d, "role");
            if let Some(found) = &found_name {
                name(d, "a server's name", found);
                names.once(d, "server", found.get_ref().clone(), found.span());
            }
            let mut addresses = Vec::new();
            for text in &written {
                if let Some(a) = address(d, text) {
                    all.once(d, "address", a.to_string(), text.span());
                    addresses.push(a);
                }
            }
            let ssh_span = ssh_text.as_ref().or(written.first()).map(Spanned::span);
            let ssh_address = match &ssh_text {
                Some(text) => address(d, text),
                None => addresses.first().copied(),
            };
            if let (Some(a), Some(span)) = (ssh_address, ssh_span) {
                let at = std::net::SocketAddr::new(a, ssh_port).to_string();
                ssh.once(d, "SSH address", at, span);
            }
            host_keys(d, &keys);
            if let (Some(role), true) = (&role, roles_known)
                && !self.names.roles.contains(role.get_ref())
            {
                let there = list(&self.names.roles);
                let message = format!(
                    "no role {:?} in roles.toml; there is {there}; a spare has none",
                    role.get_ref()
                );
                d.push(role.span(), message);
            }
            let labels = e.words(d, "labels");
            let reserved = e.texts(d, "reserved_for");
            for role in reserved.iter().filter(|_| roles_known) {
                if !self.names.roles.contains(role.get_ref()) {
                    let there = list(&self.names.roles);
                    let message = format!(
                        "no role {:?} in roles.toml; there is {there}",
                        role.get_ref()
                    );
                    d.push(role.span(), message);
                }
            }
            if let (Some(name), Some(ssh_address)) = (found_name, ssh_address) {
                let name = name.into_inner();
                let server = Server {
                    name: name.clone(),
                    addresses,
                    ssh_address,
                    ssh_port,
                    host_keys: keys.into_iter().map(Spanned::into_inner).collect(),
                    role: role.map(Spanned::into_inner),
                    labels,
                    reserved_for: reserved.into_iter().map(Spanned::into_inner).collect(),
                    driver: driver.unwrap_or_default(),
                    wipe,
                    learnt_keys: Vec::new(),
                };
                self.inventory.servers.insert(name, server);
            }
        }
    }
}

/// The word of a role whose servers are cleaned by installing their operating system anew.
const REINSTALL: &str = "reinstall";

/// What a role says of its spares.
fn spare_policy(d: &mut Diagnostics, attach_file: &mut Attach<'_>, e: &Entry<'_>) -> SparePolicy {
    let apart = e.texts(d, "apart");
    SparePolicy {
        requires: e.words(d, "requires"),
        prefers: e.words(d, "prefers"),
        apart: apart.into_iter().map(Spanned::into_inner).collect(),
        keep_warm: e.count(d, "keep_warm", 0),
        low_water: e.count(d, "low_water", 1),
        cleanup: cleanup(d, attach_file, e),
    }
}

/// How a role has its servers cleaned.
fn cleanup(d: &mut Diagnostics, attach_file: &mut Attach<'_>, e: &Entry<'_>) -> Option<Cleanup> {
    let clean = e.text(d, "clean");
    let script = e.text(d, "cleanup");
    let timeout = e.text(d, "cleanup_timeout");
    if let (None, Some(timeout)) = (&script, &timeout) {
        d.push(
            timeout.span(),
            "`cleanup_timeout` is of `cleanup`, which is missing",
        );
    }
    let timeout = timeout.map_or(Some(CLEANUP), |t| limit(d, &t));
    if let Some(clean) = clean {
        if clean.get_ref() != REINSTALL {
            let message = format!("`clean` is {REINSTALL:?}; a script is named by `cleanup`");
            d.push(clean.span(), message);
        }
        if script.is_some() {
            let message = "a server is cleaned in one way: leave out `clean` or `cleanup`";
            d.push(clean.span(), message);
        }
        return Some(Cleanup::Reinstall);
    }
    let s = script?;
    let script = attach(d, attach_file, &s)?;
    if let Some(mistake) = script_mistake(&script) {
        d.push(s.span(), format!("{}: {mistake}", s.get_ref()));
        return None;
    }
    Some(Cleanup::Script {
        script,
        timeout: timeout?,
    })
}

/// Reads a file that the tables name.
fn attach(d: &mut Diagnostics, attach: &mut Attach<'_>, name: &Spanned<String>) -> Option<String> {
    let text = name.get_ref();
    let inside = !text.starts_with('/') && !text.split('/').any(|part| part == "..");
    let found = if inside && !text.contains('\0') {
        attach(text)
    } else {
        Err(AttachmentError::Outside)
    };
    found
        .map_err(|e| d.push(name.span(), format!("{text}: {e}")))
        .ok()
}
/// Whether `{file}` stands within quotes of a shell command, where it could not be quoted again.
fn quoted(command: &str) -> bool {
    let mut open = None;
    let mut chars = command.char_indices();
    while let Some((at, c)) = chars.next() {
        match (open, c) {
            (Some(_), '{') if command[at..].starts_with("{file}") => return true,
            (Some('\''), '\'') | (Some('"'), '"') => open = None,
            (None, '\'' | '"') => open = Some(c),
            (None | Some('"'), '\\') => drop(chars.next()),
            _ => {}
        }
    }
    false
}
