//! How a server comes in that is new to the director: after its checks, or before. PURE.

use super::Core;
use crate::{config, model::Initial};

impl Core {
    /// Notes who is let in before its first verdict: servers that `old`, the configuration before this one, did
    /// not name; of a service that is new too, only where the kernel has nothing of it. One that is missing in a
    /// service that the kernel has was taken out by somebody, and has to pass. So has every stand-in.
    pub(super) fn let_in(&mut self, old: Option<&config::Director>) {
        let mut all = std::mem::take(&mut self.let_in);
        let services = &self.config.services;
        all.retain(|(key, dest)| {
            let service = services.get(key);
            service.is_some_and(|s| s.initial == Initial::Up && s.servers.contains_key(dest))
        });
        for (key, service) in services {
            let had = old.and_then(|old| old.services.get(key));
            if service.initial == Initial::Down || (had.is_none() && self.adopted.contains_key(key))
            {
                continue;
            }
            let known = |dest| {
                had.is_some_and(|had| {
                    had.servers.contains_key(dest) || had.sorry.contains_key(dest)
                }) || self.standing(*key, *dest).is_some()
            };
            let new = service.servers.keys().filter(|dest| !known(dest));
            all.extend(new.map(|dest| (*key, *dest)));
        }
        self.let_in = all;
    }
}
