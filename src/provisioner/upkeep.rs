//! What is done to the pool before anybody fails: spares made ready beforehand, servers cleaned. PURE.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    order::Step,
    plan::{self, World},
    render,
    workflow::Kind,
};
use crate::model::inventory::{Role, ServerState};

/// Made ready or cleaned at the same time: replacements go first, and a role that cannot be made ready shows it by one.
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

impl World {
    /// What is to be begun now, the most urgent first.
    #[must_use]
    pub fn upkeep(&self, in_hand: &InHand) -> Vec<Upkeep> {
        let under_way = in_hand.warming.values().sum::<usize>() + in_hand.cleaning;
        let warm = self.roles.values().filter(|_| !in_hand.awaited);
        let warm = warm.filter_map(|role| self.to_warm(role, in_hand));
        let all = self.to_clean().chain(warm);
        let most = if in_hand.awaited {
            CLEANED_AT_ONCE
        } else {
            AT_ONCE
        };
        all.take(most.saturating_sub(under_way)).collect()
    }

    fn to_clean(&self) -> impl Iterator<Item = Upkeep> {
        self.servers.values().filter_map(|s| {
            let role = s.keeping.clean_after.as_ref()?;
            self.roles.get(role)?.spares.cleanup.as_ref()?;
            let dirty = matches!(s.state, ServerState::Failed | ServerState::Quarantined);
            let due = dirty && s.keeping.maintenance.is_none() && !s.keeping.untidy;
            due.then(|| Upkeep {
                kind: Kind::Clean,
                server: s.server.name.clone(),
                state: s.state,
                role: role.clone(),
            })
        })
    }

    /// One of a role at a time: where its script fails, it is seen on one spare.
    fn to_warm(&self, role: &Role, in_hand: &InHand) -> Option<Upkeep> {
        let wanted = usize::try_from(role.spares.keep_warm).ok()?;
        let busy = in_hand.warming.contains_key(&role.code);
        if wanted == 0 || busy || in_hand.failed.contains(&role.code) {
            return None;
        }
        let kept = || {
            let standby = self.servers.values();
            let standby = standby.filter(|s| s.state == ServerState::Standby);
            standby.filter(|s| {
                let warm = s.keeping.warm.as_ref();
                warm.is_some_and(|warm| warm.role == role.code)
            })
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
        if kept().count() >= wanted {
            return None;
        }
        let spares = self.spares(role, None).ok()?;
        let next = spares.ranked.iter().find(|spare| !spare.warm)?;
        Some(of(&next.server, ServerState::Ready))
    }

    /// What is done to a server for it; `None`: what it needs is not in the inventory any more. `job` names its scripts'
    /// job directories.
    #[must_use]
    pub fn upkeep_steps(&self, of: &Upkeep, job: &str) -> Option<Vec<Step>> {
        let server = self.servers.get(&of.server)?;
        let role = self.roles.get(&of.role)?;
        let brief = self.brief_beforehand(role).ok()?;
        match of.kind {
            // All of them, also where some were done for the role as it was: what is noted as done is what was done last.
            Kind::Warm => {
                let pool = self.pool();
                let own = pool.iter().find(|c| c.name == of.server);
                let first = plan::install_step(own, &brief, job).into_iter();
                let mut steps = plan::steps(&brief, &server.server, job).ok()?;
                self.seal(&mut steps);
                Some(first.chain(steps).collect())
            }
            Kind::Clean => {
                let cleanup = role.spares.cleanup.as_ref()?;
                let clean = Step::Clean {
                    job: format!("{job}-1"),
                    role: role.code.clone(),
                    script: cleanup.script.clone(),
                    timeout: cleanup.timeout,
                    variables: render::variables(&brief, &server.server, "cleanup"),
                    files: server.keeping.placed.iter().cloned().collect(),
                };
                Some(vec![Step::Fence, clean])
            }
            Kind::Replace => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::inventory::Cleanup,
        provisioner::{testing::world, warm::Warm},
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
        role.spares.cleanup = Some(Cleanup {
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
}
