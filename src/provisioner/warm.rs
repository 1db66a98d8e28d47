//! Spares that are configured and tested beforehand: what was done to one, and what is left to do when it is needed.
//! PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::{
    DirectorName,
    inventory::ServerState,
    wire::{Spare, Standby},
};

use super::{
    order::Step,
    plan::{self, PoolServer, World},
    render::hex,
    sealed::Sealed,
};

/// What a spare was configured for beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// The role's code.
    pub role: String,
    /// Digests of what was done to it and asked of it.
    pub made: BTreeSet<String>,
    /// The secrets that it was told: by name, what says whether they are still the same.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
}

impl Warm {
    /// A spare on which these steps were done.
    #[must_use]
    pub fn of(role: &str, steps: &[Step]) -> Self {
        let secrets = steps.iter().flat_map(Step::secrets);
        let sealed = secrets.filter(|s| !s.digest.is_empty());
        Self {
            role: role.to_owned(),
            made: steps.iter().flat_map(digests).collect(),
            secrets: sealed.map(|s| (s.name.clone(), s.digest.clone())).collect(),
        }
    }

    /// Of a secret that is not known here nobody can say that it was changed.
    fn has(&self, step: &Step) -> bool {
        let told =
            |s: &&Sealed| s.digest.is_empty() || self.secrets.get(&s.name) == Some(&s.digest);
        digests(step).all(|digest| self.made.contains(&digest)) && step.secrets().iter().all(told)
    }

    /// Of the steps that a replacement takes those that are left: none at all where everything was done and every
    /// service was asked, as it is asked now.
    #[must_use]
    pub fn left(&self, steps: Vec<Step>) -> Vec<Step> {
        if steps.iter().all(|step| self.has(step)) {
            return Vec::new();
        }
        let needed = |step: &Step| match step {
            Step::Install { .. } | Step::Configure { .. } => !self.has(step),
            _ => true,
        };
        steps.into_iter().filter(needed).collect()
    }
}

/// What a step comes to, whenever and for whomever it is done: not the names of its job directory and of the failed
/// server, and not its secrets' values. A test is one of each question; what is only looked at comes to nothing.
fn digests(step: &Step) -> impl Iterator<Item = String> {
    let parts: Vec<Vec<u8>> = match step {
        Step::Look
        | Step::OsInstall { .. }
        | Step::Fence
        | Step::Os { .. }
        | Step::Clean { .. } => Vec::new(),
        Step::Install { .. } => {
            let mut step = step.clone();
            if let Step::Install { job, variables, .. } = &mut step {
                job.clear();
                variables.remove("UNDERSTUDY_FAILED");
            }
            step.unseal();
            vec![text(&step)]
        }
        Step::Configure { .. } => {
            let mut step = step.clone();
            step.unseal();
            vec![text(&step)]
        }
        Step::Test {
            answers,
            paths,
            installed,
            ..
        } => {
            let asked = answers.iter().map(text).chain(paths.iter().map(text));
            asked.chain(installed.iter().map(text)).collect()
        }
    };
    parts.into_iter().map(|part| hex(&Sha256::digest(part)))
}

/// Plain data always has a text.
fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

impl World {
    /// The role for which a server is kept warm, where it is as that role now wants it.
    #[must_use]
    pub fn warm_for(&self, server: &PoolServer) -> Option<String> {
        let warm = server.keeping.warm.as_ref()?;
        let role = self.roles.get(&warm.role)?;
        let brief = self.brief_beforehand(role).ok()?;
        let mut steps = plan::steps(&brief, &server.server, "").ok()?;
        self.seal(&mut steps);
        let stands = steps.iter().all(|step| warm.has(step));
        stands.then(|| role.code.clone())
    }

    /// Why a warm spare would not be let in: what the directors of its role's servers find.
    #[must_use]
    pub fn doubt(&self, server: &PoolServer) -> Option<String> {
        let role = &server.keeping.warm.as_ref()?.role;
        let found = self.findings.iter().filter_map(|(director, found)| {
            let why = found.get(&server.server.name)?;
            let concerned = self.servers_of(director).any(|a| self.has_role(a, role));
            concerned.then(|| format!("fails the checks of {director}: {why}"))
        });
        let all: Vec<String> = found.collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// The addresses that a director has in its services, as often as it has them.
    fn servers_of(&self, director: &DirectorName) -> impl Iterator<Item = IpAddr> {
        let registered = self.directors.get(director).into_iter();
        let servers = registered
            .flat_map(|r| &r.services)
            .flat_map(|s| &s.servers);
        servers.map(|s| s.address)
    }

    fn has_role(&self, address: IpAddr, role: &str) -> bool {
        let held = self.assignments.get(&address);
        held.is_some_and(|held| held.role == role)
    }
}

impl PoolServer {
    /// Whether it is kept warm for a role, also for one as it was before.
    pub(super) fn is_kept_for(&self, role: &str) -> bool {
        let warm = self.keeping.warm.as_ref();
        self.state == ServerState::Standby && warm.is_some_and(|warm| warm.role == role)
    }
}

impl World {
    /// The warm spares that a director is to watch, each with those of its configured servers whose place it could take.
    /// One that has just been claimed is among them until it is offered, so that nobody forgets it in between.
    #[must_use]
    pub fn standbys(&self, director: &DirectorName) -> Vec<Standby> {
        let servers: BTreeSet<IpAddr> = self.servers_of(director).collect();
        let kept = self.servers.values().filter(|s| match s.state {
            ServerState::Standby => s.keeping.maintenance.is_none(),
            ServerState::Claimed | ServerState::Configuring | ServerState::Testing => true,
            _ => false,
        });
        let standby = |s: &PoolServer| {
            let role = self.warm_for(s)?;
            let own = servers.iter().copied();
            let in_place_of: Vec<IpAddr> = own.filter(|a| self.has_role(*a, &role)).collect();
            (!in_place_of.is_empty()).then(|| Standby {
                spare: Spare {
                    name: s.server.name.clone(),
                    addresses: s.server.addresses.clone(),
                },
                in_place_of,
            })
        };
        kept.filter_map(standby).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provisioner::{
        order::PathTest,
        testing::{ip, world},
    };

    #[test]
    fn what_was_done_beforehand_is_not_done_again() {
        let world = world();
        let role = &world.roles["web.shop.example"];
        let spare = &world.servers["spare1"].server;
        let beforehand = world.brief_beforehand(role).unwrap();
        let steps = plan::steps(&beforehand, spare, "warm-1").unwrap();
        let warm = Warm::of(&role.code, &steps);
        let failed = ip("10.0.0.1");
        let brief = world.brief(failed, &[failed]).unwrap();
        let needed = plan::steps(&brief, spare, "r-1").unwrap();
        assert_eq!(warm.left(needed.clone()), []);

        // A script that is another now is run, and everything is asked again.
        let mut other = needed.clone();
        for step in &mut other {
            if let Step::Install {
                software, script, ..
            } = step
                && software == "nginx"
            {
                script.push_str("echo more\n");
            }
        }
        let left: Vec<String> = warm.left(other).iter().map(Step::name).collect();
        assert_eq!(left, ["fence", "os", "install:nginx", "test"]);

        // A way that was not looked at beforehand, and a question that was not put.
        let way: fn(&mut Step) = |test| {
            if let Step::Test { paths, .. } = test {
                paths.push(PathTest::Holds {
                    vip: ip("192.0.2.9"),
                    quiet_at: None,
                });
            }
        };
        let question: fn(&mut Step) = |test| {
            if let Step::Test { installed, .. } = test {
                installed.push(("nginx".into(), "nginx -t".into()));
            }
        };
        for change in [way, question] {
            let mut other = needed.clone();
            change(other.last_mut().unwrap());
            let left: Vec<String> = warm.left(other).iter().map(Step::name).collect();
            assert_eq!(left, ["fence", "os", "test"]);
        }

        // A service that was not asked beforehand is asked now.
        let mut asked = needed;
        if let Some(Step::Test { answers, .. }) = asked.last_mut() {
            answers[0].at.set_port(4711);
        }
        let left: Vec<String> = warm.left(asked).iter().map(Step::name).collect();
        assert_eq!(left, ["fence", "os", "test"]);
    }

    #[test]
    fn a_director_watches_the_warm_spares_of_its_own_servers() {
        let mut world = world();
        let role = world.roles["web.shop.example"].clone();
        let brief = world.brief_beforehand(&role).unwrap();
        let steps = plan::steps(&brief, &world.servers["spare1"].server, "").unwrap();
        let spare = world.servers.get_mut("spare1").unwrap();
        spare.keeping.warm = Some(Warm::of(&role.code, &steps));
        let lb1 = "lb1".parse().unwrap();
        assert_eq!(world.standbys(&lb1), [], "it is ready, and no more");
        for (state, listed) in [
            (ServerState::Standby, true),
            (ServerState::Claimed, true),
            (ServerState::Serving, false),
            (ServerState::Quarantined, false),
        ] {
            world.servers.get_mut("spare1").unwrap().state = state;
            assert_eq!(world.standbys(&lb1).len(), usize::from(listed), "{state:?}");
        }
        world.servers.get_mut("spare1").unwrap().state = ServerState::Standby;
        let standby = &world.standbys(&lb1)[0];
        assert_eq!(standby.spare.name, "spare1");
        let of = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"].map(ip);
        assert_eq!(standby.in_place_of, of);
        assert_eq!(world.standbys(&"lb9".parse().unwrap()), []);
    }

    #[test]
    fn a_spare_with_another_secret_is_not_warm() {
        let mut world = world();
        world.software[1].secrets = vec!["DB_PASSWORD".into()];
        world.files[0].body = "token {{ secret('token') }};\n".into();
        let names: Vec<String> = world.secret_names().into_iter().collect();
        assert_eq!(names, ["DB_PASSWORD", "token"]);
        world.secrets = [("DB_PASSWORD", "1111"), ("token", "2222")]
            .map(|(name, digest)| (name.to_owned(), digest.to_owned()))
            .into();
        let role = world.roles["web.shop.example"].clone();
        let brief = world.brief_beforehand(&role).unwrap();
        let mut steps = plan::steps(&brief, &world.servers["spare1"].server, "").unwrap();
        world.seal(&mut steps);
        let spare = world.servers.get_mut("spare1").unwrap();
        spare.keeping.warm = Some(Warm::of(&role.code, &steps));
        spare.state = ServerState::Standby;
        let spare = spare.clone();
        let job_free = |world: &World| {
            let brief = world.brief_beforehand(&role).unwrap();
            let only = world.pool().into_iter().filter(|c| c.name == "spare1");
            let choice = world.choose(only.collect(), &brief, "r-1");
            choice.map(|choice| choice.steps.iter().map(Step::name).collect::<Vec<_>>())
        };
        assert_eq!(world.warm_for(&spare), Some(role.code.clone()));
        assert_eq!(job_free(&world), Ok(Vec::new()));
        for (name, done) in [
            ("DB_PASSWORD", "install:nginx"),
            ("token", "configure:nginx"),
        ] {
            let before = world.secrets.insert(name.to_owned(), "3333".to_owned());
            assert_eq!(world.warm_for(&spare), None, "{name}");
            let steps = job_free(&world).unwrap();
            assert!(steps.contains(&done.to_owned()), "{name}: {steps:?}");
            world.secrets.insert(name.to_owned(), before.unwrap());
        }
        // Who cannot read them does not know.
        world.secrets.clear();
        assert_eq!(world.warm_for(&spare), Some(role.code.clone()));
    }

    #[test]
    fn a_spare_is_warm_only_while_its_role_stays_as_it_was() {
        let mut world = world();
        let role = world.roles["web.shop.example"].clone();
        let brief = world.brief_beforehand(&role).unwrap();
        let steps = plan::steps(&brief, &world.servers["spare1"].server, "").unwrap();
        let spare = world.servers.get_mut("spare1").unwrap();
        spare.keeping.warm = Some(Warm::of(&role.code, &steps));
        let spare = spare.clone();
        assert_eq!(world.warm_for(&spare), Some(role.code.clone()));
        world.files[0].body.push_str("# more\n");
        assert_eq!(world.warm_for(&spare), None);
        world.roles.clear();
        assert_eq!(world.warm_for(&spare), None);
    }
}
