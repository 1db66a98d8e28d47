//! After a replacement: stand-ins whose place is wanted back, or that have no place any more. PURE.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Core, Effects, Note, Stage};
use crate::{
    config::AfterReplacement,
    health::Health,
    model::{
        MonoTime, ReplacementId,
        wire::{Member, Want},
    },
};

impl Core {
    /// Finds the stand-ins that the provisioner is to take back, and tells of those that are new.
    pub(super) fn review_stand_ins(&mut self, now: MonoTime, fx: &mut Effects) {
        let restored = self.restored(now);
        let releasing: BTreeSet<ReplacementId> = self
            .homeless()
            .map(|m| m.replacement.clone())
            .chain(restored.iter().cloned())
            .collect();
        for id in releasing.difference(&self.releasing) {
            if let Some(member) = self.members.get(id) {
                let restored = restored.contains(id);
                fx.notes.push(Note::GivenBack(member.clone(), restored));
            }
        }
        self.releasing = releasing;
    }

    /// Stand-ins in places that no service has any more, and that are in no service themselves.
    pub(super) fn homeless(&self) -> impl Iterator<Item = &Member> {
        let named = |addr: &IpAddr| {
            let mut services = self.config.services.values();
            services.any(|s| s.servers.keys().any(|dest| dest.addr == *addr))
        };
        self.attached().filter(move |m| {
            let mut all = m.origins.iter().chain(&m.spare.addresses);
            !all.any(named)
        })
    }

    pub(super) fn attached(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|m| m.want == Want::Attach)
    }

    /// Stand-ins whose server is well again for as long as it takes, in all of its services.
    fn restored(&self, now: MonoTime) -> BTreeSet<ReplacementId> {
        let AfterReplacement::Restore { after } = self.config.replacement.then else {
            return BTreeSet::new();
        };
        let well = |m: &&Member| {
            let since = self.well_since(&m.origins);
            since.is_some_and(|since| since.after(after) <= now)
        };
        let attached = self.attached().filter(well);
        attached.map(|m| m.replacement.clone()).collect()
    }

    /// Since when the servers at these addresses pass their checks in every service that has them; `None` while
    /// one does not, and while an operator has put one aside.
    fn well_since(&self, origins: &[IpAddr]) -> Option<MonoTime> {
        let places = origins.iter().filter_map(|a| self.places.get(a)).flatten();
        let since = places.map(|(service, dest)| match self.verdict(*service, *dest) {
            _ if self.is_put_aside(*service, *dest) => None,
            Some(Health::Up { since, .. }) => Some(since),
            Some(Health::Down { .. } | Health::Unknown { .. }) | None => None,
        });
        since.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// When the first of the stand-ins is to go back, if ever.
    pub(super) fn restores_at(&self) -> Option<MonoTime> {
        let AfterReplacement::Restore { after } = self.config.replacement.then else {
            return None;
        };
        let waiting = self
            .attached()
            .filter(|m| !self.releasing.contains(&m.replacement));
        let due = waiting.filter_map(|m| Some(self.well_since(&m.origins)?.after(after)));
        due.min()
    }

    /// Whether a replacement has come so far that calling it off would cost more than it saves: its spare is
    /// configured, and takes part in the service test.
    pub(super) const fn is_worth_finishing(stage: &Stage) -> bool {
        use crate::model::wire::ReplacementState as S;
        matches!(
            stage,
            Stage::Requested {
                standing: Some((S::Testing | S::Attaching | S::Succeeded, _)),
                ..
            }
        )
    }
}
