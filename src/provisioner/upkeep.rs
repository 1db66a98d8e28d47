//! What is done to the pool before anybody fails: spares made ready beforehand, servers cleaned. PURE.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    order::Step,
    plan::{self, PoolServer, World},
    render,
    workflow::Kind,
};
use crate::model::{
    inventory::{Cleanup, Role, Server, ServerState},
    machine::{Driver, Image},
};

/// Made ready at the same time, and as many cleaned: replacements go first, and a role that cannot be made ready shows it
/// by one.
const AT_ONCE: usize = 2;

/// Cleaned at the same time where a replacement waits for a spare: what is clean is one.
const CLEANED_AT_ONCE: usize = 8;

/// What is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InHand {
    /// Spares that are being made ready, by role.
    pub warming: BTreeMap<String, usize>,
    /// Servers that are being cleaned.
    pub cleaning: usize,
    /// Roles for which a spare could not be made ready a short time ago.
    pub failed: BTreeSet<String>,
    /// Whether a replacement waits for a spare.
    pub awaited: bool,
}

/// A server, and what is to become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// Made ready, or cleaned.
    pub kind: Kind,
    /// It.
    pub server: String,
    /// Where it stands now.
    pub state: ServerState,
    /// The role for which it is made ready, or that it had.
    pub role: String,
}

/// Whether a server is out of service with what it had.
fn is_dirty(s: &PoolServer) -> bool {
    matches!(s.state, ServerState::Failed | ServerState::Quarantined)
}

impl World {
    /// What is to be begun now, the most urgent first.
    #[must_use]
    pub fn upkeep(&self, in_hand: &InHand) -> Vec<Upkeep> {
        let most = if in_hand.awaited {
            CLEANED_AT_ONCE
        } else {
            AT_ONCE
        };
        let clean = self.to_clean().take(most.saturating_sub(in_hand.cleaning));
        let warm = self.roles.values().filter(|_| !in_hand.awaited);
        let warm = warm.filter_map(|role| self.to_warm(role, in_hand));
        // A server that is installed anew for an hour holds up no spare that is to be made ready.
        let warming = in_hand.warming.values().sum::<usize>();
        let warm = warm.take(AT_ONCE.saturating_sub(warming));
        clean.chain(warm).collect()
    }

    fn to_clean(&self) -> impl Iterator<Item = Upkeep> {
        self.servers.values().filter_map(|s| {
            let role = s.keeping.clean_after.as_ref()?;
            let due = is_dirty(s) && s.keeping.maintenance.is_none() && !s.keeping.untidy;
            let can = due && self.uncleanable(s).is_none();
            can.then(|| Upkeep {
                kind: Kind::Clean,
                server: s.server.name.clone(),
                state: s.state,
                role: role.clone(),
            })
        })
    }

    /// What makes a server that had a role a spare again; or why nothing does.
    fn cleaning(&self, s: &PoolServer, role: &str, job: &str) -> Result<Vec<Step>, String> {
        let role = self.roles.get(role);
        let cleanup = role.and_then(|role| Some((role, role.spares.cleanup.as_ref()?)));
        let (role, cleanup) = cleanup.ok_or("roles.toml does not say how")?;
        let job = format!("{job}-1");
        match cleanup {
            Cleanup::Script { script, timeout } => {
                let brief = self
                    .brief_beforehand(role)
                    .map_err(|miss| miss.to_string())?;
                let clean = Step::Clean {
                    job,
                    role: role.code.clone(),
                    script: script.clone(),
                    timeout: *timeout,
                    variables: render::variables(&brief, &s.server, "cleanup"),
                    files: s.keeping.placed.iter().cloned().collect(),
                };
                Ok(vec![Step::Fence, clean])
            }
            Cleanup::Reinstall => {
                let image = self.image_for(&s.server, role);
                let image =
                    image.map_err(|lack| format!("it is to be installed anew, and {lack}"))?;
                let install = Step::OsInstall {
                    job,
                    image: image.clone(),
                    anew: true,
                };
                let wanted = role.os.clone();
                Ok(vec![install, Step::Fence, Step::Os { wanted }])
            }
        }
    }

    /// What installs a role's operating system on a server; or what is missing.
    fn image_for(&self, server: &Server, role: &Role) -> Result<&Image, String> {
        if server.driver == Driver::Ready {
            return Err("it has no driver that could, set `driver` in servers.toml".to_owned());
        }
        if !server.wipe {
            let lack = "it may not be wiped, set `wipe` in servers.toml if it may";
            return Err(lack.to_owned());
        }
        let image = self.images.get(&role.os);
        image.ok_or_else(|| format!("no [[image]] of roles.toml installs {}", role.os))
    }

    /// Why a server that is to be cleaned stays as it is.
    #[must_use]
    pub fn uncleanable(&self, s: &PoolServer) -> Option<String> {
        let out = is_dirty(s) || s.state == ServerState::Standby;
        let role = s.keeping.clean_after.as_ref().filter(|_| out)?;
        let why = self.cleaning(s, role, "").err()?;
        Some(format!("it cannot be cleaned after {role}: {why}"))
    }

    /// Why a server stands where it stands, and goes no further.
    #[must_use]
    pub fn reason_of(&self, s: &PoolServer) -> Option<String> {
        let doubt = self.doubt(s).filter(|_| s.state == ServerState::Standby);
        let reasons = [s.reason.clone(), doubt, self.uncleanable(s)];
        let all: Vec<String> = reasons.into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// One of a role at a time: where its script fails, it is seen on one spare.
    fn to_warm(&self, role: &Role, in_hand: &InHand) -> Option<Upkeep> {
        let wanted = usize::try_from(role.spares.keep_warm).ok()?;
        let busy = in_hand.warming.contains_key(&role.code);
        if wanted == 0 || busy || in_hand.failed.contains(&role.code) {
            return None;
        }
        let kept = || {
            let all = self.servers.values();
            all.filter(|s| s.is_kept_for(&role.code))
        };
        let of = |server: &str, state| Upkeep {
            kind: Kind::Warm,
            server: server.to_owned(),
            state,
            role: role.code.clone(),
        };
        // One that was made ready for the role as it was before.
        let stale = kept().find(|s| self.warm_for(s).is_none() && s.keeping.maintenance.is_none());
        if let Some(stale) = stale {
            return Some(of(&stale.server.name, ServerState::Standby));
        }
        // One that directors would not let in is kept, but not counted. Not one after the other, where none passes: then
        // it is not the spares' fault.
        let sound = kept().filter(|s| self.doubt(s).is_none()).count();
        if sound >= wanted || kept().count() >= wanted.saturating_mul(2) {
            return None;
        }
        let spares = self.spares(role, None).ok()?;
        let is_ready = |name: &str| {
            let server = self.servers.get(name);
            server.is_some_and(|s| s.state == ServerState::Ready)
        };
        let next = spares.ranked.iter().find(|s| is_ready(&s.server))?;
        Some(of(&next.server, ServerState::Ready))
    }

    /// What is done to a server for it; `None`: what it needs is not in the inventory any more. `job` names its scripts'
    /// job directories.
    #[must_use]
    pub fn upkeep_steps(&self, of: &Upkeep, job: &str) -> Option<Vec<Step>> {
        let server = self.servers.get(&of.server)?;
        match of.kind {
            // All of them, also where some were done for the role as it was: what is noted as done is what was done last.
            Kind::Warm => {
                let role = self.roles.get(&of.role)?;
                let brief = self.brief_beforehand(role).ok()?;
                let pool = self.pool();
                let own = pool.iter().find(|c| c.name == of.server);
                let first = plan::install_step(own, &brief, job).into_iter();
                let mut steps = plan::steps(&brief, &server.server, job).ok()?;
                self.seal(&mut steps);
                Some(first.chain(steps).collect())
            }
            Kind::Clean => self.cleaning(server, &of.role, job).ok(),
            Kind::Replace => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provisioner::{
        testing::{inventory, with_reinstall, world},
        warm::Warm,
    };

    const ROLE: &str = "web.shop.example";

    fn kept(keep_warm: u32) -> World {
        let mut world = world();
        for (name, s) in &mut world.servers {
            if name.starts_with("web") {
                s.state = ServerState::Serving;
            }
        }
        let role = world.roles.get_mut(ROLE).unwrap();
        role.spares.keep_warm = keep_warm;
        role.spares.cleanup = Some(Cleanup::Script {
            script: "apt-get -y purge nginx\n".into(),
            timeout: std::time::Duration::from_secs(60),
        });
        world
    }

    fn warm(world: &mut World, name: &str) {
        let role = &world.roles[ROLE];
        let brief = world.brief_beforehand(role).unwrap();
        let steps = plan::steps(&brief, &world.servers[name].server, "").unwrap();
        let made = Warm::of(ROLE, &steps);
        let server = world.servers.get_mut(name).unwrap();
        server.state = ServerState::Standby;
        server.keeping.warm = Some(made);
    }

    fn next(world: &World, in_hand: &InHand) -> Vec<String> {
        let all = world.upkeep(in_hand).into_iter();
        all.map(|u| format!("{} {}", u.kind.as_str(), u.server))
            .collect()
    }

    #[test]
    fn as_many_are_made_ready_as_the_role_wants_one_after_the_other() {
        let nothing = InHand::default();
        assert_eq!(next(&kept(0), &nothing), [""; 0]);
        let mut world = kept(2);
        assert_eq!(next(&world, &nothing), ["warm spare1"]);
        let busy = InHand {
            warming: [(ROLE.to_owned(), 1)].into(),
            ..InHand::default()
        };
        let awaited = InHand {
            awaited: true,
            ..InHand::default()
        };
        let failed = InHand {
            failed: [ROLE.to_owned()].into(),
            ..InHand::default()
        };
        for in_hand in [busy, awaited, failed] {
            assert_eq!(next(&world, &in_hand), [""; 0], "{in_hand:?}");
        }
        warm(&mut world, "spare1");
        assert_eq!(next(&world, &nothing), ["warm spare2"]);
        warm(&mut world, "spare2");
        assert_eq!(next(&world, &nothing), [""; 0]);
        // What the role is has changed: what was made ready is made ready anew.
        world.files[0].body.push_str("# more\n");
        let again = world.upkeep(&nothing);
        assert_eq!(
            (again[0].server.as_str(), again[0].state),
            ("spare1", ServerState::Standby)
        );
        let steps = world.upkeep_steps(&again[0], "j").unwrap();
        assert_eq!(steps.len(), 7, "{steps:?}");
    }

    /// lb1 finds that these do not pass.
    fn finds(world: &mut World, failing: &[&str]) {
        let found = failing
            .iter()
            .map(|s| ((*s).to_owned(), "refused".to_owned()));
        let lb1 = "lb1".parse().unwrap();
        world.findings.insert(lb1, found.collect());
    }

    #[test]
    fn another_is_made_ready_for_one_that_fails_a_directors_checks_and_no_third() {
        let nothing = InHand::default();
        let mut world = kept(1);
        warm(&mut world, "spare1");
        finds(&mut world, &["spare1", "nobody"]);
        let spare1 = &world.servers["spare1"];
        let why = "fails the checks of lb1: refused";
        assert_eq!(world.doubt(spare1).as_deref(), Some(why));
        assert_eq!(world.reason_of(spare1).as_deref(), Some(why));
        let role = &world.roles[ROLE];
        let view = world.readiness(role);
        assert_eq!((view.usable, view.warm), (2, 0));
        // It goes on being watched: it may pass again.
        assert_eq!(world.standbys(&"lb1".parse().unwrap()).len(), 1);
        assert_eq!(next(&world, &nothing), ["warm spare2"]);
        warm(&mut world, "spare2");
        assert_eq!(next(&world, &nothing), [""; 0]);
        finds(&mut world, &["spare1", "spare2"]);
        assert_eq!(
            next(&world, &nothing),
            [""; 0],
            "it is not the spares' fault"
        );
        // It is nobody's next itself, where nobody else is left.
        finds(&mut world, &["spare1"]);
        for (spare, state) in [
            ("spare2", ServerState::Quarantined),
            ("spare3", ServerState::Failed),
        ] {
            world.servers.get_mut(spare).unwrap().state = state;
        }
        assert_eq!(next(&world, &nothing), [""; 0]);
        // Where it is needed all the same, everything is done to it anew.
        let brief = world.brief_beforehand(&world.roles[ROLE]).unwrap();
        let own = |name: &str| {
            let pool = world.pool().into_iter().filter(|c| c.name == name);
            world
                .choose(pool.collect(), &brief, "j")
                .unwrap()
                .steps
                .len()
        };
        assert_eq!(own("spare1"), 7);
        // A director that has no server of the role has no say in it.
        for registered in world.directors.values_mut() {
            registered.services.clear();
        }
        assert_eq!(world.doubt(&world.servers["spare1"]), None);
    }

    #[test]
    fn who_must_be_installed_is_made_ready_last_and_installed_first() {
        use crate::model::machine::{Boot, Door, Driver, HttpDriver, Image};
        let mut world = kept(1);
        world.roles.get_mut(ROLE).unwrap().install = true;
        let image = Image {
            os: "debian-12".into(),
            boot: Boot::Pxe,
            timeout: std::time::Duration::from_secs(60),
            enrolment_keys: Vec::new(),
        };
        world.images.insert(image.os.clone(), image);
        let bare = world.servers.get_mut("spare1").unwrap();
        bare.server.wipe = true;
        bare.server.driver = Driver::Http(Box::new(HttpDriver {
            door: Door {
                url: "https://installer.example".parse().unwrap(),
                pin: None,
                credential: "installer".into(),
            },
            machine: "7".into(),
        }));
        let nothing = InHand::default();
        assert_eq!(next(&world, &nothing), ["warm spare2"]);
        for name in ["spare2", "spare3"] {
            world.servers.get_mut(name).unwrap().state = ServerState::Quarantined;
        }
        let of = &world.upkeep(&nothing)[0];
        assert_eq!(of.server, "spare1");
        let steps = world.upkeep_steps(of, "j").unwrap();
        assert!(matches!(steps[0], Step::OsInstall { .. }), "{steps:?}");
        assert_eq!(steps[1], Step::Fence);
        assert_eq!(Warm::of(ROLE, &steps), Warm::of(ROLE, &steps[1..]));
    }

    #[test]
    fn more_are_cleaned_at_once_while_a_replacement_waits() {
        let mut world = kept(0);
        let like = world.servers["spare3"].clone();
        for n in 10..30 {
            let mut dirty = like.clone();
            dirty.server.name = format!("spare{n}");
            dirty.state = ServerState::Failed;
            dirty.keeping.clean_after = Some(ROLE.to_owned());
            world.servers.insert(dirty.server.name.clone(), dirty);
        }
        let of = |awaited, cleaning| {
            let in_hand = InHand {
                awaited,
                cleaning,
                ..InHand::default()
            };
            world.upkeep(&in_hand).len()
        };
        assert_eq!([of(false, 0), of(false, 1), of(false, 2)], [2, 1, 0]);
        assert_eq!([of(true, 0), of(true, 3), of(true, 8)], [8, 5, 0]);
    }

    #[test]
    fn who_was_given_back_is_cleaned_with_what_was_placed_there() {
        let mut world = kept(1);
        let server = world.servers.get_mut("spare3").unwrap();
        server.state = ServerState::Failed;
        server.keeping.clean_after = Some(ROLE.to_owned());
        server.keeping.placed = ["/etc/nginx/conf.d/shop.conf".to_owned()].into();
        assert_eq!(
            next(&world, &InHand::default()),
            ["clean spare3", "warm spare1"]
        );
        let clean = &world.upkeep(&InHand::default())[0];
        let steps = world.upkeep_steps(clean, "j").unwrap();
        assert!(
            matches!(&steps[1], Step::Clean { files, script, .. }
                if files == &["/etc/nginx/conf.d/shop.conf"] && script.contains("purge")),
            "{steps:?}"
        );
        // Nobody knows how.
        world.roles.get_mut(ROLE).unwrap().spares.cleanup = None;
        assert_eq!(next(&world, &InHand::default()), ["warm spare1"]);
        assert_eq!(world.upkeep_steps(clean, "j"), None);
    }

    /// spare1 had the role, whose servers are installed anew.
    fn dirty() -> World {
        let mut files = inventory();
        with_reinstall(&mut files);
        let mut world = world();
        (world.roles, world.images) = (files.roles, files.images);
        let s = world.servers.get_mut("spare1").unwrap();
        s.server = files.servers["spare1"].clone();
        s.state = ServerState::Failed;
        s.reason = Some("given back".to_owned());
        s.keeping.clean_after = Some(ROLE.to_owned());
        world
    }

    #[test]
    fn who_is_installed_anew_runs_the_roles_system_afterwards() {
        let mut world = dirty();
        let nothing = InHand::default();
        assert_eq!(next(&world, &nothing), ["clean spare1"]);
        // Nothing that was placed outlives its disk, and no script of the role is asked for.
        world.software.clear();
        let of = &world.upkeep(&nothing)[0];
        let steps = world.upkeep_steps(of, "j").unwrap();
        let install = Step::OsInstall {
            job: "j-1".to_owned(),
            image: world.images["debian-12"].clone(),
            anew: true,
        };
        let wanted = "debian-12".to_owned();
        assert_eq!(steps, [install, Step::Fence, Step::Os { wanted }]);
        let reason = world.reason_of(&world.servers["spare1"]);
        assert_eq!(reason.as_deref(), Some("given back"));
    }

    #[test]
    fn who_cannot_be_installed_anew_stays_as_it_is_and_says_why() {
        type Take = fn(&mut World);
        let lacks: [(&str, Take); 4] = [
            ("it has no driver", |world| {
                world.servers.get_mut("spare1").unwrap().server.driver = Driver::Ready;
            }),
            ("set `wipe` in servers.toml", |world| {
                world.servers.get_mut("spare1").unwrap().server.wipe = false;
            }),
            ("no [[image]] of roles.toml installs debian-12", |world| {
                world.images.clear();
            }),
            ("roles.toml does not say how", |world| {
                world.roles.get_mut(ROLE).unwrap().spares.cleanup = None;
            }),
        ];
        for (why, take) in lacks {
            let mut world = dirty();
            let of = world.upkeep(&InHand::default()).remove(0);
            take(&mut world);
            assert_eq!(next(&world, &InHand::default()), [""; 0], "{why}");
            assert_eq!(world.upkeep_steps(&of, "j"), None, "{why}");
            let spares = world.spares(&world.roles[ROLE], None).unwrap();
            let not = spares.not.iter().find(|not| not.server == "spare1");
            let reason = &not.unwrap().reason;
            let begins =
                format!("failed, not released: given back; it cannot be cleaned after {ROLE}: ");
            assert!(
                reason.starts_with(&begins) && reason.contains(why),
                "{reason}"
            );
        }
    }
}
