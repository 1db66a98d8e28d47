//! Certificates that end soon: a warning, long before a check fails for it. PURE.

use std::collections::BTreeMap;

use super::Core;
use crate::model::{DestKey, ServiceKey, WallMillis};

const DAY: i64 = 24 * 3600;

impl Core {
    /// What is to be said of each service whose servers' certificates end within the time that their
    /// check names.
    #[must_use]
    pub fn certificate_warnings(&self, wall: WallMillis) -> BTreeMap<ServiceKey, String> {
        let now = wall.0.div_euclid(1000);
        let warning = |key: &ServiceKey| {
            let ends = self.ending(key, now);
            let (first, left) = ends.iter().min_by_key(|(_, left)| **left)?;
            let when = match left {
                ..0 => "has ended".to_owned(),
                0..DAY => "ends within a day".to_owned(),
                _ => format!("ends in {} days", left / DAY + 1),
            };
            let more = match ends.len() - 1 {
                0 => String::new(),
                n => format!(", and those of {n} more servers soon"),
            };
            Some(format!(
                "the certificate of {first} in {key} {when}{more}: renew it, its check fails from then on where it verifies certificates"
            ))
        };
        let warned = |key: &ServiceKey| Some((*key, warning(key)?));
        self.health.keys().filter_map(warned).collect()
    }

    /// Servers whose certificate ends soon, and in how many seconds.
    fn ending(&self, key: &ServiceKey, now: i64) -> BTreeMap<DestKey, i64> {
        let config = self.config.services.get(key);
        let dests = self.health.get(key);
        let Some((config, dests)) = config.zip(dests) else {
            return BTreeMap::new();
        };
        let mut ending = BTreeMap::new();
        for (dest, standing) in dests {
            for (spec, state) in config.checks_of(dest).all.iter().zip(standing.checks()) {
                let Some((tls, ends)) = spec.kind.tls().zip(state.certificate_ends) else {
                    continue;
                };
                let left = ends - now;
                let within = i64::try_from(tls.expiry_warning.as_secs()).unwrap_or(i64::MAX);
                if left < within {
                    let earliest = ending.entry(*dest).or_insert(left);
                    *earliest = left.min(*earliest);
                }
            }
        }
        ending
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc, time::Duration};

    use super::*;
    use crate::{
        config,
        director::{Event, Recall, Start},
        model::{Found, MonoTime, Outcome, Slot},
    };

    const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[[virtual_service]]
address = "192.0.2.1:443"
scheduler = "wlc"
forward = "nat"
check.tls.expiry_warning = "240h"
real_server = [{ address = "10.0.0.1:443" }, { address = "10.0.0.2:443" }]
"#;

    #[test]
    fn a_certificate_that_ends_soon_is_told_with_its_days() {
        let start = Start {
            now: MonoTime::ZERO,
            wall: WallMillis(0),
            boot_id: "boot".into(),
            recall: Recall::Forgot("there is no state file".into()),
            kernel: BTreeMap::new(),
            dropped: BTreeMap::new(),
            marked: std::collections::BTreeSet::new(),
        };
        let config = config::director::parse(Path::new("d.toml"), CONFIG).unwrap();
        let mut core = Core::new(Arc::new(config), start);
        let service: ServiceKey = "tcp/192.0.2.1:443".parse().unwrap();
        for (n, ends) in [(1, 20 * DAY - 9), (2, 30 * DAY)] {
            let dest = DestKey {
                addr: [10, 0, 0, n].into(),
                port: 443,
            };
            let slot = Slot {
                service,
                dest,
                check: 0,
            };
            let found = Found {
                certificate_ends: Some(ends),
                ..Found::of(Outcome::Pass, Duration::ZERO)
            };
            let slots = [slot].into();
            core.handle(Event::Probe { slots, found }, MonoTime::ZERO);
        }
        let at = |day: i64| {
            let warnings = core.certificate_warnings(WallMillis(day * DAY * 1000 + 1));
            warnings.into_values().next()
        };
        assert_eq!(at(9), None);
        let told = |day, words: &str| {
            let text = at(day).unwrap();
            assert!(text.contains(words), "{text}");
        };
        told(
            12,
            "10.0.0.1:443 in tcp/192.0.2.1:443 ends in 8 days: renew it",
        );
        told(19, "ends within a day");
        told(21, "has ended, and those of 1 more servers soon");
    }
}
