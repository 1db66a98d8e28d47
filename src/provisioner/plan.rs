//! From a failed server's address to the steps for one spare. PURE: the look-ups of R6 to R10 over a
//! reading of the store; what is missing has a name and a remedy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{
    model::{
        DirectorName, Family, ForwardMethod, ReplacementId, WallMillis,
        inventory::{Role, Server, ServerState, ServiceFile, Software},
        machine::Image,
        wire::{PassedOver, RegisteredServer, RegisteredService, Registration},
    },
    provisioner::{
        order::{PathTest, ServiceTest, Step},
        render::{self, RenderError},
        sealed::{Digests, Sealed},
        select::{self, Candidate, Install, Need, select},
        warm::Warm,
    },
};

/// What the store holds, read at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Roles by code.
    pub roles: BTreeMap<String, Role>,
    /// The script database, in the files' order.
    pub software: Vec<Software>,
    /// The service configuration table, in the files' order.
    pub files: Vec<ServiceFile>,
    /// The pool, by name.
    pub servers: BTreeMap<String, PoolServer>,
    /// The role database.
    pub assignments: BTreeMap<IpAddr, Assignment>,
    /// What each director told.
    pub directors: BTreeMap<DirectorName, Registration>,
    /// The warm spares that do not pass a director's checks, by name, and why.
    pub findings: BTreeMap<DirectorName, BTreeMap<String, String>>,
    /// What installs operating systems, by the one it installs.
    pub images: BTreeMap<String, Image>,
    /// What says whether secrets are still the same, of those that the reader knows: they are not in the store.
    pub secrets: Digests,
}

/// A server of the pool and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolServer {
    /// As enrolled by the files.
    pub server: Server,
    /// Where it stands.
    pub state: ServerState,
    /// Why, for people.
    pub reason: Option<String>,
    /// The operating system it was last seen with.
    pub os_seen: Option<String>,
    /// The replacement that has it in hand.
    pub claimed_for: Option<ReplacementId>,
    /// What is known of it as a spare.
    pub keeping: Keeping,
}

/// What is known of a server as a spare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// Why it is in maintenance, if it is.
    pub maintenance: Option<String>,
    /// Its quarantine ends then by itself.
    pub quarantined_until: Option<WallMillis>,
    /// When it failed last, as a server or as a spare.
    pub failed_at: Option<WallMillis>,
    /// When it was looked at last.
    pub rehearsed_at: Option<WallMillis>,
    /// What was found wrong then.
    pub trouble: Option<String>,
    /// What it was configured for beforehand.
    pub warm: Option<Warm>,
    /// The role after which it is to be cleaned.
    pub clean_after: Option<String>,
    /// Whether an installation is under way, or has left something.
    pub untidy: bool,
    /// Files that were placed there since it was clean.
    pub placed: BTreeSet<String>,
}

/// An entry of the role database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Role code.
    pub role: String,
    /// Whose address it is.
    pub server: String,
    /// Who gave the role.
    pub source: Source,
    /// The replacement that gave the role to another server: this one failed.
    pub passed_on: Option<ReplacementId>,
}

/// Who gave a server its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The inventory folder.
    Files,
    /// A replacement.
    Replacement(ReplacementId),
}

/// A look-up that found nothing: names what is missing and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Miss {
    /// R7.
    #[error(
        "no server of the inventory with a role has the address {0}: add it to the inventory folder with its role and apply"
    )]
    RoleUnknown(IpAddr),
    /// R8.
    #[error(
        "{server} has the role {role}, which is not defined: add the role to the inventory folder and apply"
    )]
    RoleUndefined {
        /// Who has it.
        server: String,
        /// Role code.
        role: String,
    },
    /// R8.
    #[error(
        "the role {0} names no software: list it in the role's catalogue entry of the inventory folder and apply"
    )]
    CatalogueEmpty(String),
    /// R9.
    #[error(
        "script_missing({software}, {os}): the role {role} needs {software}, and no script installs it on {os}: add one to the inventory folder and apply"
    )]
    ScriptMissing {
        /// Role code.
        role: String,
        /// Software.
        software: String,
        /// Operating system.
        os: String,
    },
    /// R8.
    #[error(
        "the role {role} cannot have {software}: it needs {needs}, which the role lacks or which needs {software} itself; mend the inventory folder and apply"
    )]
    NeedUnmet {
        /// Role code.
        role: String,
        /// Software.
        software: String,
        /// What it needs.
        needs: String,
    },
}

impl Miss {
    /// Machine word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::RoleUnknown(_) => "role_unknown",
            Self::RoleUndefined { .. } => "role_undefined",
            Self::CatalogueEmpty(_) => "catalogue_empty",
            Self::ScriptMissing { .. } => "script_missing",
            Self::NeedUnmet { .. } => "need_unmet",
        }
    }
}

/// All that a spare must be told to take a failed server's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brief {
    /// The failed server's device identifier; none where nobody has failed yet.
    pub failed: Option<IpAddr>,
    /// The role to take over.
    pub role: Role,
    /// The role's software in the order of installation, for the role's operating system.
    pub software: Vec<Software>,
    /// The domain's service configuration files.
    pub files: Vec<ServiceFile>,
    /// The virtual services that the configured server of this place is in.
    pub services: Vec<SlotService>,
    /// What a spare must have.
    pub need: Need,
}

/// A virtual service that the failed server's place is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotService {
    /// The service as a director registered it.
    pub service: RegisteredService,
    /// Family of the configured server's address in it.
    pub family: Family,
    /// The configured server's port in it.
    pub port: u16,
}

/// How long the service test of step 4 goes on before the spare is given up.
const TEST_LIMIT: Duration = Duration::from_secs(30);

impl World {
    /// The server that has an address.
    #[must_use]
    pub fn server_of(&self, address: IpAddr) -> Option<&PoolServer> {
        self.servers
            .values()
            .find(|s| s.server.addresses.contains(&address))
    }

    /// All addresses of the server that has this one; at least this one.
    #[must_use]
    pub fn addresses_of(&self, address: IpAddr) -> Vec<IpAddr> {
        self.server_of(address)
            .map_or_else(|| vec![address], |s| s.server.addresses.clone())
    }

    /// The addresses of a place, where the inventory did not know its server when that failed: as it
    /// knows it now.
    #[must_use]
    pub fn places(&self, origins: &[IpAddr]) -> Vec<IpAddr> {
        match origins {
            [alone] => self.addresses_of(*alone),
            all => all.to_vec(),
        }
    }

    /// The pool as selection sees it.
    #[must_use]
    pub fn pool(&self) -> Vec<Candidate> {
        let mut configured = BTreeMap::new();
        for (name, director) in &self.directors {
            for server in director.services.iter().flat_map(|s| &s.servers) {
                configured.entry(server.address).or_insert(name);
            }
        }
        self.servers
            .values()
            .map(|s| Candidate {
                name: s.server.name.clone(),
                state: s.state,
                reason: self.reason_of(s),
                addresses: s.server.addresses.clone(),
                os_seen: s.os_seen.clone(),
                configured: s
                    .server
                    .addresses
                    .iter()
                    .find_map(|a| configured.get(a).copied().cloned()),
                labels: s.server.labels.clone(),
                reserved_for: s.server.reserved_for.clone(),
                maintenance: s.keeping.maintenance.clone(),
                warm_for: self.warm_for(s),
                kept_for: s.keeping.warm.as_ref().map(|warm| warm.role.clone()),
                trouble: s.keeping.trouble.clone(),
                doubt: self.doubt(s),
                failed_at: s.keeping.failed_at,
                driver: s.server.driver.clone(),
                wipe: s.server.wipe,
            })
            .collect()
    }

    /// The registered services that any of these addresses is a server of. A pair's two directors
    /// register the same service: it stands once.
    #[must_use]
    pub fn services_with(&self, addresses: &[IpAddr]) -> Vec<SlotService> {
        let mut found: Vec<SlotService> = Vec::new();
        for service in self.directors.values().flat_map(|r| &r.services) {
            let here = |s: &&RegisteredServer| addresses.contains(&s.address);
            for server in service.servers.iter().filter(here) {
                let family = Family::of(server.address);
                let known = |f: &SlotService| {
                    f.service.key == service.key && f.port == server.port && f.family == family
                };
                if !found.iter().any(known) {
                    found.push(SlotService {
                        service: service.clone(),
                        family,
                        port: server.port,
                    });
                }
            }
        }
        found
    }

    /// Directors with a registered server of one of these addresses.
    pub fn directors_with(&self, addresses: &[IpAddr]) -> impl Iterator<Item = &DirectorName> {
        self.directors.iter().filter_map(move |(name, r)| {
            r.services
                .iter()
                .flat_map(|s| &s.servers)
                .any(|s| addresses.contains(&s.address))
                .then_some(name)
        })
    }

    /// Looks up all that replacing a server needs.
    ///
    /// # Errors
    /// [`Miss`] names what is not there.
    pub fn brief(&self, failed: IpAddr, origins: &[IpAddr]) -> Result<Brief, Miss> {
        let held = self
            .assignments
            .get(&failed)
            .ok_or(Miss::RoleUnknown(failed))?;
        let role = self
            .roles
            .get(&held.role)
            .ok_or_else(|| Miss::RoleUndefined {
                server: held.server.clone(),
                role: held.role.clone(),
            })?;
        let services = self.services_with(&self.places(origins));
        self.brief_of(role, Some(failed), Some(&held.server), services)
    }

    /// What makes a spare one of a role before anybody has failed: for all services that a server of this role is in.
    ///
    /// # Errors
    /// [`Miss`] names what is not there.
    pub fn brief_beforehand(&self, role: &Role) -> Result<Brief, Miss> {
        let servers = self.assignments.iter();
        let servers = servers.filter(|(_, held)| held.role == role.code);
        let addresses: Vec<IpAddr> = servers.map(|(address, _)| *address).collect();
        self.brief_of(role, None, None, self.services_with(&addresses))
    }

    /// The same for a role that is known already, of these services; `server` is the name of the failed one.
    ///
    /// # Errors
    /// [`Miss`] names what is not there.
    pub fn brief_of(
        &self,
        role: &Role,
        failed: Option<IpAddr>,
        server: Option<&str>,
        services: Vec<SlotService>,
    ) -> Result<Brief, Miss> {
        if role.software.is_empty() {
            return Err(Miss::CatalogueEmpty(role.code.clone()));
        }
        let failed_labels = server.and_then(|name| self.servers.get(name));
        let failed_labels = failed_labels.map(|s| &s.server.labels);
        let software = ordered(role, &self.software)?;
        Ok(Brief {
            failed,
            files: self
                .files
                .iter()
                .filter(|f| f.domain == role.domain && role.software.contains(&f.software))
                .cloned()
                .collect(),
            need: Need {
                failed: server.unwrap_or_default().to_owned(),
                role: role.code.clone(),
                os: role.os.clone(),
                families: services.iter().map(|s| s.family).collect::<BTreeSet<_>>(),
                policy: role.spares.clone(),
                failed_labels: failed_labels.cloned().unwrap_or_default(),
                install: match (role.install, self.images.get(&role.os)) {
                    (false, _) => Install::Forbidden,
                    (true, None) => Install::NoImage,
                    (true, Some(image)) => Install::By(image.clone()),
                },
            },
            role: role.clone(),
            software,
            services,
        })
    }
}

/// A spare, and what makes it what the brief says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// It.
    pub spare: Server,
    /// What is to be done to it.
    pub steps: Vec<Step>,
    /// Why not the others.
    pub not: Vec<PassedOver>,
}

/// No spare can be claimed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoChoice {
    /// Machine word.
    pub code: &'static str,
    /// For people, begins with the word.
    pub reason: String,
    /// Why not these.
    pub not: Vec<PassedOver>,
}

impl World {
    /// Picks a spare of `pool` whose files can be rendered.
    ///
    /// # Errors
    /// [`NoChoice`] says why there is none.
    pub fn choose(
        &self,
        mut pool: Vec<Candidate>,
        brief: &Brief,
        job: &str,
    ) -> Result<Choice, NoChoice> {
        let mut unfit: Vec<PassedOver> = Vec::new();
        loop {
            let selection = select(&pool, &brief.need);
            let no_spare = selection.no_spare();
            let mut not = selection.not.clone();
            not.extend(unfit.iter().cloned());
            let Some(name) = selection.chosen().map(str::to_owned) else {
                let (code, reason) = match unfit.first() {
                    Some(first) => (
                        "template_error",
                        format!("{}; mend the file and apply", first.reason),
                    ),
                    None => ("no_spare", no_spare),
                };
                return Err(NoChoice { code, reason, not });
            };
            let spare = self.servers.get(&name).map(|s| s.server.clone());
            match spare.map(|spare| (steps(brief, &spare, job), spare)) {
                Some((Ok(mut steps), spare)) => {
                    self.seal(&mut steps);
                    let own = pool.iter().find(|c| c.name == name);
                    match install_step(own, brief, job) {
                        Some(first) => steps.insert(0, first),
                        None if own.is_some_and(|c| c.doubt.is_some()) => {}
                        None => {
                            let warm = self.servers.get(&name);
                            if let Some(warm) = warm.and_then(|s| s.keeping.warm.as_ref()) {
                                steps = warm.left(steps);
                            }
                        }
                    }
                    return Ok(Choice { spare, steps, not });
                }
                Some((Err(e), _)) => unfit.push(PassedOver {
                    server: name.clone(),
                    reason: format!("template_error: {}", e.line()),
                }),
                // Not of this world.
                None => {}
            }
            pool.retain(|c| c.name != name);
        }
    }
}

impl World {
    /// The secrets that the catalogue names, and those that warm spares were told.
    #[must_use]
    pub fn secret_names(&self) -> BTreeSet<String> {
        let scripts = self.software.iter().flat_map(|s| &s.secrets).cloned();
        let files = self.files.iter().flat_map(render::secrets_named);
        let kept = self
            .servers
            .values()
            .filter_map(|s| s.keeping.warm.as_ref());
        let kept = kept.flat_map(|warm| warm.secrets.keys().cloned());
        scripts
            .chain(files.map(str::to_owned))
            .chain(kept)
            .collect()
    }

    /// Writes down what the steps' secrets are now.
    pub fn seal(&self, steps: &mut [Step]) {
        steps.iter_mut().for_each(|step| step.seal(&self.secrets));
    }
}

/// What precedes the steps of a server that has to be installed.
pub fn install_step(server: Option<&Candidate>, brief: &Brief, job: &str) -> Option<Step> {
    let image = select::must_install(server?, &brief.need)?;
    Some(Step::OsInstall {
        job: job.to_owned(),
        image: image.clone(),
        anew: false,
    })
}

/// A role's software in the order of installation: what is needed first, and else as the catalogue
/// has it.
///
/// # Errors
/// [`Miss`] names software without a script, or that needs what is not there or needs itself.
pub fn ordered(role: &Role, all: &[Software]) -> Result<Vec<Software>, Miss> {
    let mut left = role
        .software
        .iter()
        .map(|name| {
            script_for(all, name, &role.os)
                .cloned()
                .ok_or_else(|| Miss::ScriptMissing {
                    role: role.code.clone(),
                    software: name.clone(),
                    os: role.os.clone(),
                })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut order: Vec<Software> = Vec::new();
    while !left.is_empty() {
        let here = |name: &String| order.iter().any(|s| s.name == *name);
        let Some(next) = left.iter().position(|s| s.needs.iter().all(here)) else {
            let (software, needs) = left
                .iter()
                .flat_map(|s| s.needs.iter().map(move |n| (s, n)))
                .find(|(_, n)| !role.software.contains(n))
                .or_else(|| left.iter().find_map(|s| Some((s, s.needs.first()?))))
                .map(|(s, n)| (s.name.clone(), n.clone()))
                .unwrap_or_default();
            return Err(Miss::NeedUnmet {
                role: role.code.clone(),
                software,
                needs,
            });
        };
        order.push(left.remove(next));
    }
    Ok(order)
}

/// The script of a software for an operating system: one written for it before one for any.
#[must_use]
pub fn script_for<'a>(all: &'a [Software], name: &str, os: &str) -> Option<&'a Software> {
    let named = || all.iter().filter(|s| s.name == name);
    named()
        .find(|s| s.os.as_deref() == Some(os))
        .or_else(|| named().find(|s| s.os.is_none()))
}

/// The address of a spare that a service takes: the first of its family.
#[must_use]
pub fn address_for(spare: &Server, family: Family) -> Option<IpAddr> {
    spare
        .addresses
        .iter()
        .copied()
        .find(|a| Family::of(*a) == family)
}

/// The steps that make `spare`, which has its operating system, what the brief says. `job` names its
/// scripts' job directories.
///
/// # Errors
/// [`RenderError`] names the file whose template cannot be rendered.
pub fn steps(brief: &Brief, spare: &Server, job: &str) -> Result<Vec<Step>, RenderError> {
    let mut steps = vec![
        Step::Fence,
        Step::Os {
            wanted: brief.role.os.clone(),
        },
    ];
    for software in &brief.software {
        steps.push(Step::Install {
            job: format!("{job}-{}", steps.len()),
            software: software.name.clone(),
            script: software.script.clone(),
            timeout: software.timeout,
            variables: render::variables(brief, spare, &software.name),
            check: software.check.clone(),
            secrets: software.secrets.iter().map(Sealed::named).collect(),
        });
    }
    let (mut digests, mut sealed) = (Vec::new(), Vec::new());
    for software in &brief.software {
        let files = brief
            .files
            .iter()
            .filter(|f| f.software == software.name)
            .map(|f| render::file(brief, spare, f))
            .collect::<Result<Vec<_>, _>>()?;
        digests.extend(files.iter().map(|f| (f.path.clone(), f.sha256.clone())));
        sealed.extend(files.iter().filter(|f| !f.secrets.is_empty()).cloned());
        steps.push(Step::Configure {
            software: software.name.clone(),
            files,
            running: software.running.clone(),
            start: software.start.clone(),
            reload: software.reload.clone(),
        });
    }
    steps.push(Step::Test {
        os: brief.role.os.clone(),
        installed: brief
            .software
            .iter()
            .filter_map(|s| Some((s.name.clone(), s.check.clone()?)))
            .collect(),
        digests,
        answers: answers(brief, spare),
        paths: paths(brief, spare),
        sealed,
    });
    Ok(steps)
}

/// The probes of step 4: each service of the place, at the spare's address of its family and the
/// configured server's port, once.
fn answers(brief: &Brief, spare: &Server) -> Vec<ServiceTest> {
    let mut tests: Vec<ServiceTest> = Vec::new();
    for slot in &brief.services {
        let Some(address) = address_for(spare, slot.family) else {
            continue;
        };
        for check in &slot.service.checks {
            let port = check.via.port.unwrap_or(slot.port);
            // A service by firewall mark may keep the client's port: there is none to probe.
            if port == 0 && check.kind.needs_port() {
                continue;
            }
            let test = ServiceTest {
                at: SocketAddr::new(address, port),
                kind: check.kind.clone(),
                timeout: check.timing.timeout,
                limit: TEST_LIMIT,
            };
            if !tests.contains(&test) {
                tests.push(test);
            }
        }
    }
    tests
}

/// Clients of no network in particular: addresses for documentation, which no spare is in.
const SOMEBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
];

/// What must be so on the spare for clients of each service to get its answers.
fn paths(brief: &Brief, spare: &Server) -> Vec<PathTest> {
    let mut tests: Vec<PathTest> = Vec::new();
    for slot in &brief.services {
        let of = |all: &[IpAddr], family| -> Vec<IpAddr> {
            let of_it = |a: &&IpAddr| Family::of(**a) == family;
            all.iter().filter(of_it).copied().collect()
        };
        let found: Vec<PathTest> = match slot.service.forward {
            ForwardMethod::Nat => {
                let gateways = of(&brief.role.gateways, slot.family);
                let mut clients = of(&brief.role.clients, slot.family);
                if clients.is_empty() {
                    clients = of(&SOMEBODY, slot.family);
                }
                clients.retain(|_| !gateways.is_empty());
                let back = |client| PathTest::Back {
                    client,
                    gateways: gateways.clone(),
                    own: address_for(spare, slot.family),
                };
                clients.into_iter().map(back).collect()
            }
            ForwardMethod::Dr | ForwardMethod::Tun => {
                let direct = slot.service.forward == ForwardMethod::Dr;
                let own = address_for(spare, slot.family).filter(|_| direct);
                let vip = render::local_vip(slot).map(|vip| vip.ip());
                vip.map(|vip| PathTest::Holds { vip, quiet_at: own })
                    .into_iter()
                    .collect()
            }
            ForwardMethod::Local | ForwardMethod::Bypass => Vec::new(),
        };
        for test in found {
            if !tests.contains(&test) {
                tests.push(test);
            }
        }
    }
    tests
}

#[cfg(test)]
mod tests;
