//! What a director of another host may have in its registration. PURE.
//!
//! All that it is let do later rests on the servers that it has registered, and those are its own word: who had another
//! one's server in a service could have it replaced, and who had a spare in one would keep that from everybody.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::plan::World;
use crate::model::{
    DirectorName, Grant, ServiceKey,
    wire::{RegisteredService, Registration},
};

/// Servers of one registration. Another director would wait while thousands more are looked at.
pub const SERVERS: usize = 4096;

/// Services of one registration.
pub const SERVICES: usize = 4096;

/// Why a registration is not taken, or no longer good for anything: names what and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// Too much for one director.
    #[error(
        "{found} {what} are registered, and a director has at most {most}: share them among several directors"
    )]
    TooMany {
        /// Of what.
        what: &'static str,
        /// So many.
        found: usize,
        /// So many it may be.
        most: usize,
    },
    /// A service that is not on its list.
    #[error(
        "the director {director} may not ask for {service}, only for [{allowed}]: add it under [[director]] in provisioner.toml, or take it out of director.toml"
    )]
    Service {
        /// Who.
        director: DirectorName,
        /// Which.
        service: ServiceKey,
        /// Its list.
        allowed: String,
    },
    /// A server of a role that is not on its list.
    #[error(
        "the server {server} has {}, and the director {director} may have servers of [{allowed}] alone: add the role under [[director]] in provisioner.toml, give the server one of these in the inventory, or take it out of director.toml",
        role.as_ref().map_or("no role in the inventory".to_owned(), |r| format!("the role {r}"))
    )]
    Role {
        /// Who.
        director: DirectorName,
        /// Its server.
        server: IpAddr,
        /// The role that the inventory gives that.
        role: Option<String>,
        /// Its list.
        allowed: String,
    },
    /// A server of the pool without a role.
    #[error(
        "the server {server} is {name} of the inventory, which has no role: it is a spare, and would be none any more; give it a role in the inventory, or take it out of director.toml"
    )]
    Spare {
        /// The address.
        server: IpAddr,
        /// Its name.
        name: String,
    },
    /// A server of somebody else.
    #[error(
        "the server {server} is in {service} of the director {other}, for which the director {director} may not ask: name the roles of its servers (roles) or that service (services) under [[director]] in provisioner.toml, or take the server out of director.toml"
    )]
    Others {
        /// Who.
        director: DirectorName,
        /// The server.
        server: IpAddr,
        /// Whose service it is in.
        other: DirectorName,
        /// That service.
        service: ServiceKey,
    },
}

impl NotGranted {
    /// Machine word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooMany { .. } => "too_many_servers",
            Self::Service { .. } => "service_not_allowed",
            Self::Role { .. } => "role_not_allowed",
            Self::Spare { .. } => "server_is_a_spare",
            Self::Others { .. } => "server_of_another_director",
        }
    }
}

fn servers(services: &[RegisteredService]) -> BTreeSet<IpAddr> {
    let all = services.iter().flat_map(|s| &s.servers);
    all.map(|s| s.address).collect()
}

/// Whether one director may have so much.
///
/// # Errors
/// [`NotGranted::TooMany`].
pub fn size(registration: &Registration) -> Result<(), NotGranted> {
    let found = [
        ("services", registration.services.len(), SERVICES),
        ("servers", servers(&registration.services).len(), SERVERS),
    ];
    let too_many = found.into_iter().find(|(_, found, most)| found > most);
    match too_many {
        Some((what, found, most)) => Err(NotGranted::TooMany { what, found, most }),
        None => Ok(()),
    }
}

/// Whether a director may register this.
///
/// # Errors
/// The first of it that it may not.
pub fn registering(
    world: &World,
    grant: &Grant,
    registration: &Registration,
) -> Result<(), NotGranted> {
    of_services(grant, registration)?;
    let named = named(world);
    let servers = servers(&registration.services);
    for server in &servers {
        let held = world.assignments.get(server);
        if let (None, Some(name)) = (held, named.get(server)) {
            return Err(NotGranted::Spare {
                server: *server,
                name: (*name).to_owned(),
            });
        }
        if let Some(roles) = &grant.roles
            && !held.is_some_and(|h| roles.contains(&h.role))
        {
            return Err(role(grant, *server, held.map(|h| h.role.clone()), roles));
        }
    }
    of_others(world, grant, &servers, &named)
}

/// Whether what it has registered is still what it may have: a list may have become shorter since, and the inventory may
/// have given a server another role.
///
/// # Errors
/// The first of it that it may not.
pub fn standing(world: &World, grant: &Grant) -> Result<(), NotGranted> {
    let Some(registration) = world.directors.get(&grant.name) else {
        return Ok(());
    };
    of_services(grant, registration)?;
    let Some(roles) = &grant.roles else {
        return Ok(());
    };
    for server in servers(&registration.services) {
        // One that has left the inventory is nobody else's.
        if let Some(held) = world.assignments.get(&server)
            && !roles.contains(&held.role)
        {
            return Err(role(grant, server, Some(held.role.clone()), roles));
        }
    }
    Ok(())
}

fn of_services(grant: &Grant, registration: &Registration) -> Result<(), NotGranted> {
    let Some(service) = grant.refuses(registration.services.iter().map(|s| &s.key)) else {
        return Ok(());
    };
    Err(NotGranted::Service {
        director: grant.name.clone(),
        service: *service,
        allowed: listed(grant.services.iter().flatten()),
    })
}

fn role(
    grant: &Grant,
    server: IpAddr,
    role: Option<String>,
    allowed: &BTreeSet<String>,
) -> NotGranted {
    NotGranted::Role {
        director: grant.name.clone(),
        server,
        role,
        allowed: listed(allowed),
    }
}

/// Servers of other directors, where no roles say whose a server is: those of services that this one may not ask for
/// are not its own, unless somebody has them in one of its services too, as the other one of a pair has.
fn of_others(
    world: &World,
    grant: &Grant,
    servers: &BTreeSet<IpAddr>,
    named: &BTreeMap<IpAddr, &str>,
) -> Result<(), NotGranted> {
    let (Some(services), None) = (&grant.services, &grant.roles) else {
        return Ok(());
    };
    // By its name, where it has one: a server has more than one address.
    let whose = |address: IpAddr| match named.get(&address) {
        Some(name) => (Some(*name), None),
        None => (None, Some(address)),
    };
    let mut shared = BTreeSet::new();
    let mut foreign = BTreeMap::new();
    for (name, other) in world.directors.iter().filter(|(n, _)| **n != grant.name) {
        for service in &other.services {
            for server in &service.servers {
                match services.contains(&service.key) {
                    true => {
                        shared.insert(whose(server.address));
                    }
                    false => {
                        foreign
                            .entry(whose(server.address))
                            .or_insert((name, service.key));
                    }
                }
            }
        }
    }
    for server in servers {
        let whose = whose(*server);
        if let Some((other, service)) = foreign.get(&whose)
            && !shared.contains(&whose)
        {
            return Err(NotGranted::Others {
                director: grant.name.clone(),
                server: *server,
                other: (*other).clone(),
                service: *service,
            });
        }
    }
    Ok(())
}

/// The names of the pool's servers by their addresses.
fn named(world: &World) -> BTreeMap<IpAddr, &str> {
    let all = world.servers.values().map(|s| &s.server);
    all.flat_map(|s| s.addresses.iter().map(|a| (*a, s.name.as_str())))
        .collect()
}

fn listed<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::wire::RegisteredServer,
        provisioner::testing::{ip, registration, world},
    };

    fn grant(name: &str, services: Option<&[&str]>, roles: Option<&[&str]>) -> Grant {
        Grant {
            name: name.parse().unwrap(),
            certificate: name.to_owned(),
            services: services.map(|all| all.iter().map(|s| s.parse().unwrap()).collect()),
            roles: roles.map(|all| all.iter().map(|r| (*r).to_owned()).collect()),
        }
    }

    /// One service with one server.
    fn with(name: &str, key: &str, server: &str) -> Registration {
        let mut registration = registration(name);
        registration.services.truncate(1);
        registration.services[0].key = key.parse().unwrap();
        registration.services[0].servers.truncate(1);
        registration.services[0].servers[0].address = ip(server);
        registration
    }

    #[test]
    fn a_director_has_servers_of_its_roles_alone() {
        let mut world = world();
        let held = world.assignments.get_mut(&ip("10.0.0.2")).unwrap();
        held.role = "db.shop.example".into();
        let web = grant("lb1", None, Some(&["web.shop.example"]));
        let ask = |server: &str| registering(&world, &web, &with("lb1", "fwmark/1", server));
        assert_eq!(ask("10.0.0.1"), Ok(()));
        let wrong = ask("10.0.0.2").unwrap_err();
        assert_eq!(wrong.code(), "role_not_allowed");
        let text = wrong.to_string();
        assert!(
            text.contains("server 10.0.0.2 has the role db.shop.example")
                && text.contains("[web.shop.example]"),
            "{text}"
        );
        // Nobody knows whose it will be.
        let text = ask("10.9.9.9").unwrap_err().to_string();
        assert!(text.contains("10.9.9.9 has no role in the inventory"));
        // Registered before its role was changed.
        let kept = |server: &str| {
            let mut world = world.clone();
            let own = with("lb1", "fwmark/1", server);
            world.directors.insert("lb1".parse().unwrap(), own);
            standing(&world, &web)
        };
        assert_eq!(kept("10.0.0.1"), Ok(()));
        assert_eq!(kept("10.9.9.9"), Ok(()));
        assert_eq!(kept("10.0.0.2").unwrap_err().code(), "role_not_allowed");
    }

    #[test]
    fn a_spare_is_nobodys_configured_server() {
        let world = world();
        for grant in [
            grant("lb1", None, None),
            grant("lb1", Some(&["fwmark/1"]), Some(&["web.shop.example"])),
        ] {
            let ask = with("lb1", "fwmark/1", "fd00::11");
            let wrong = registering(&world, &grant, &ask).unwrap_err();
            assert_eq!(wrong.code(), "server_is_a_spare");
            assert!(wrong.to_string().contains("spare1"), "{wrong}");
        }
    }

    #[test]
    fn servers_of_services_that_it_may_not_ask_for_are_not_its_own() {
        let mut world = world();
        let of = |world: &mut World, name: &str, registration| {
            world.directors.insert(name.parse().unwrap(), registration);
        };
        of(&mut world, "lb1", with("lb1", "fwmark/1", "10.9.9.9"));
        of(&mut world, "lb2", with("lb2", "fwmark/2", "10.0.0.1"));
        let one = grant("lb1", Some(&["fwmark/1"]), None);
        // The other address of the same server too.
        for server in ["10.0.0.1", "fd00::1"] {
            let ask = with("lb1", "fwmark/1", server);
            let wrong = registering(&world, &one, &ask).unwrap_err();
            assert_eq!(wrong.code(), "server_of_another_director");
            let text = wrong.to_string();
            assert!(
                text.contains("fwmark/2 of the director lb2") && text.contains(server),
                "{text}"
            );
            // Whoever may ask for all, or has its roles listed, is not held to that.
            assert_eq!(registering(&world, &grant("lb1", None, None), &ask), Ok(()));
            let roles = grant("lb1", Some(&["fwmark/1"]), Some(&["web.shop.example"]));
            assert_eq!(registering(&world, &roles, &ask), Ok(()));
        }
        let own = with("lb1", "fwmark/1", "10.0.0.2");
        assert_eq!(registering(&world, &one, &own), Ok(()));
        // The other one of the pair has it in the same service as well.
        of(&mut world, "lb3", with("lb3", "fwmark/1", "10.0.0.1"));
        let ask = with("lb1", "fwmark/1", "10.0.0.1");
        assert_eq!(registering(&world, &one, &ask), Ok(()));
    }

    #[test]
    fn a_registration_is_bounded_and_says_so() {
        let mut big = registration("lb1");
        let one = big.services[0].servers[0].clone();
        big.services[0].servers = (0..=u32::try_from(SERVERS).unwrap())
            .map(|n| RegisteredServer {
                address: std::net::Ipv4Addr::from(0x0a00_0000 + n).into(),
                ..one.clone()
            })
            .collect();
        big.services.truncate(1);
        let wrong = size(&big).unwrap_err().to_string();
        assert!(wrong.contains("4097 servers") && wrong.contains("at most 4096"));
        // The same ones in many services count once.
        big.services[0].servers.pop();
        let again = big.services[0].clone();
        big.services.push(again);
        assert_eq!(size(&big), Ok(()));
    }
}
