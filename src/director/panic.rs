//! The panic threshold: of too few servers none is taken out any more. PURE.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Core, Effects, Note, Rule, Seat};
use crate::{
    config::VirtualService,
    health::Standing,
    model::{DestKey, ServiceKey},
};

impl Core {
    /// How many of a service's servers must stay, of those that no operator has put aside.
    pub(super) fn least(&self, key: ServiceKey, config: &VirtualService) -> usize {
        let counts = |dest: &&DestKey| !self.is_put_aside(key, **dest);
        let all = config.servers.keys().filter(counts).count();
        (all * usize::from(config.panic.threshold)).div_ceil(100)
    }

    /// Keeps the servers in that failed last, as many as the threshold takes.
    pub(super) fn keep_the_last(
        &self,
        key: ServiceKey,
        config: &VirtualService,
        seats: &mut BTreeMap<DestKey, Seat>,
    ) {
        let least = self.least(key, config);
        let taking = seats.values().filter(|seat| seat.takes()).count();
        let lacking = least.saturating_sub(taking);
        if lacking == 0 || !config.panic.stays {
            return;
        }
        let replaced = |dest: &DestKey| {
            let mut stand_ins = self.stand_ins(dest);
            stand_ins.any(|s| seats.get(&s).is_some_and(Seat::takes))
        };
        let fell = |(dest, seat): (&DestKey, &Seat)| {
            let attrs = *self.fallen.get(&(key, *dest))?;
            let since = self.standing(key, *dest).map(Standing::verdict)?;
            let failed = matches!(seat.rule, Rule::Failed | Rule::HeldOut);
            let counts = failed && !replaced(dest) && !self.is_put_aside(key, *dest);
            counts.then_some((Reverse(since.down_since()?), *dest, attrs))
        };
        let mut fallen: Vec<_> = seats.iter().filter_map(fell).collect();
        fallen.sort_by_key(|(since, dest, _)| (*since, *dest));
        for (_, dest, attrs) in fallen.into_iter().take(lacking) {
            seats.insert(dest, Seat::has(Rule::Panic, attrs));
        }
    }

    /// The servers that stay in a service though they fail, and how many of them it takes.
    #[must_use]
    pub fn panicking(&self, key: ServiceKey) -> Vec<DestKey> {
        let Some(config) = self.config.services.get(&key) else {
            return Vec::new();
        };
        if config.panic.threshold == 0 {
            return Vec::new();
        }
        let seats = self.seats(key, config).into_iter();
        let panics = seats.filter(|(_, seat)| seat.rule == Rule::Panic);
        panics.map(|(dest, _)| dest).collect()
    }

    /// Tells where the threshold begins to hold servers in, and where it ends.
    pub(super) fn review_panic(&mut self, key: ServiceKey, fx: &mut Effects) {
        let now = self.panicking(key);
        let before = self.panics.get(&key).map_or(&[][..], Vec::as_slice);
        if before == now {
            return;
        }
        fx.notes.push(Note::Panic(key, now.clone()));
        match now.is_empty() {
            true => drop(self.panics.remove(&key)),
            false => drop(self.panics.insert(key, now)),
        }
    }
}
