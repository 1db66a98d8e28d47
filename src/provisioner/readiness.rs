//! How a role stands before anybody has failed: which spare would be chosen, and whether there are enough. PURE.

use super::{
    plan::{Miss, PoolServer, World},
    select::{self, Selection},
};
use crate::model::{
    inventory::{Role, ServerState},
    wire::{RoleView, SparesView},
};

impl World {
    /// What would be chosen if this server of the role failed now; a server of which nothing is known where none is
    /// named.
    ///
    /// # Errors
    /// [`Miss`] names what keeps every spare from being one for the role.
    pub fn spares(&self, role: &Role, failed: Option<&PoolServer>) -> Result<SparesView, Miss> {
        let Selection {
            ranked,
            not,
            serving,
        } = self.selection(role, failed)?;
        Ok(SparesView {
            role: role.code.clone(),
            failed: failed.map(|s| s.server.name.clone()),
            ranked,
            not,
            serving,
            stopped: None,
        })
    }

    fn selection(&self, role: &Role, failed: Option<&PoolServer>) -> Result<Selection, Miss> {
        let mut need = self.brief_beforehand(role)?.need;
        if let Some(failed) = failed {
            need.failed.clone_from(&failed.server.name);
            need.failed_labels.clone_from(&failed.server.labels);
        }
        Ok(select::select(&self.pool(), &need))
    }

    /// Whether a role has enough spares.
    #[must_use]
    pub fn readiness(&self, role: &Role) -> RoleView {
        let selection = self.selection(role, None);
        let ranked = selection.as_ref().map(|s| s.ranked.as_slice());
        let ranked = ranked.unwrap_or_default().iter();
        let usable: Vec<_> = ranked.filter(|spare| !spare.trouble).collect();
        let serves = |s: &&PoolServer| {
            let mut held = s.server.addresses.iter();
            let held = held.find_map(|a| self.assignments.get(a));
            s.state == ServerState::Serving && held.is_some_and(|h| h.role == role.code)
        };
        let mut view = RoleView {
            role: role.code.clone(),
            servers: self.servers.values().filter(serves).count(),
            usable: usable.len(),
            warm: usable.iter().filter(|spare| spare.warm).count(),
            keep_warm: role.spares.keep_warm,
            low_water: role.spares.low_water,
            short: None,
            stopped: None,
        };
        view.short = shortage(&view, selection.err().as_ref());
        view
    }
}

/// Whether a role that is served has fewer usable spares than it is to have: says so for people.
fn shortage(view: &RoleView, obstacle: Option<&Miss>) -> Option<String> {
    let low = u32::try_from(view.usable).is_ok_and(|n| n < view.low_water);
    if view.servers == 0 || !low {
        return None;
    }
    Some(match obstacle {
        Some(miss) => miss.to_string(),
        None => format!(
            "{} usable of at least {}: `understudy inventory explain {}` says why not the others",
            view.usable, view.low_water, view.role
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provisioner::testing::world;

    #[test]
    fn a_role_with_too_few_spares_is_told() {
        let mut world = world();
        for (name, s) in &mut world.servers {
            if name.starts_with("web") {
                s.state = ServerState::Serving;
            }
        }
        let mut role = world.roles["web.shop.example"].clone();
        role.spares.low_water = 3;
        let view = world.readiness(&role);
        assert_eq!((view.servers, view.usable, view.warm), (2, 3, 0));
        assert_eq!(view.short, None);
        let trouble = &mut world.servers.get_mut("spare1").unwrap().keeping.trouble;
        *trouble = Some("unreachable".into());
        let view = world.readiness(&role);
        assert_eq!(view.usable, 2);
        let told = view.short.unwrap();
        assert!(told.starts_with("2 usable of at least 3"), "{told}");
        // It is still one, where there is none better.
        let spares = world.spares(&role, world.servers.get("web1")).unwrap();
        let order: Vec<&str> = spares.ranked.iter().map(|r| r.server.as_str()).collect();
        assert_eq!(order, ["spare2", "spare3", "spare1"]);
        world.software.clear();
        let told = world.readiness(&role).short.unwrap();
        assert!(told.starts_with("script_missing"), "{told}");
        // Nobody has the role: nobody needs a spare for it.
        world.servers.clear();
        assert_eq!(world.readiness(&role).short, None);
    }
}
