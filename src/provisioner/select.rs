//! Which spare takes a failed server's place, and why not the others. PURE.

use std::{collections::BTreeSet, net::IpAddr};

use crate::model::{DirectorName, Family, inventory::ServerState, wire::PassedOver};

/// A server of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: ServerState,
    /// Why it stands there.
    pub reason: Option<String>,
    /// Its service addresses.
    pub addresses: Vec<IpAddr>,
    /// The operating system it was last seen with; `not debian-12` where only that is known.
    pub os_seen: Option<String>,
    /// A director that has it as a configured server.
    pub configured: Option<DirectorName>,
}

/// What a spare must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The failed server's name: it is not its own spare.
    pub failed: String,
    /// Operating system of the role.
    pub os: String,
    /// Families of the failed server's addresses in the services it is in.
    pub families: BTreeSet<Family>,
}

/// The outcome: one spare or none, and why not the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The spare to claim.
    pub chosen: Option<String>,
    /// Servers that are spares by their state or were, each with the reason, in order of name.
    pub not: Vec<PassedOver>,
    /// Number of servers that are no spares because they serve.
    pub serving: usize,
}

impl Selection {
    /// The reason of a replacement that finds no spare: names each server and why it is none.
    #[must_use]
    pub fn no_spare(&self) -> String {
        use std::fmt::Write;
        let mut text = "no_spare: ".to_owned();
        if self.not.is_empty() {
            text.push_str("the pool has no server without a role");
        }
        for (n, p) in self.not.iter().enumerate() {
            if n == SHOWN {
                // Writing to a String cannot fail.
                let _infallible = write!(text, "; and {} more", self.not.len() - SHOWN);
                break;
            }
            let sep = if n == 0 { "" } else { "; " };
            let _infallible = write!(text, "{sep}{} ({})", p.server, p.reason);
        }
        text.push_str(". Enrol a spare, or put one right and release it");
        text
    }
}

/// Servers named in one reason: it has to stay readable in a log line.
const SHOWN: usize = 20;

/// Picks the spare: one that was seen with the wanted operating system first, else one that was never
/// looked at; by name among equals, so that the same pool gives the same answer.
#[must_use]
pub fn select(pool: &[Candidate], need: &Need) -> Selection {
    let mut fit: Vec<(bool, &str)> = Vec::new();
    let mut not = Vec::new();
    let mut serving = 0;
    for c in pool {
        match why_not(c, need) {
            None => fit.push((
                c.os_seen.as_deref() != Some(need.os.as_str()),
                c.name.as_str(),
            )),
            Some(_) if c.state == ServerState::Serving => serving += 1,
            Some(_) if c.name == need.failed => {}
            Some(reason) => not.push(PassedOver {
                server: c.name.clone(),
                reason,
            }),
        }
    }
    not.sort_by(|a, b| a.server.cmp(&b.server));
    Selection {
        chosen: fit.iter().min().map(|(_, name)| (*name).to_owned()),
        not,
        serving,
    }
}

fn why_not(c: &Candidate, need: &Need) -> Option<String> {
    if c.name == need.failed {
        return Some("is the failed server".to_owned());
    }
    let because = |what: &str| {
        Some(match &c.reason {
            Some(reason) => format!("{what}: {reason}"),
            None => what.to_owned(),
        })
    };
    match c.state {
        ServerState::Ready => {}
        ServerState::Enrolled => return because("not verified yet"),
        ServerState::Claimed | ServerState::Configuring | ServerState::Testing => {
            return because("in use by another replacement");
        }
        ServerState::Serving => return because("serves"),
        ServerState::Failed => return because("failed, not released"),
        ServerState::Quarantined => return because("quarantined"),
    }
    if let Some(director) = &c.configured {
        return Some(format!(
            "is a configured server of director {director}: it would not take it as a stand-in"
        ));
    }
    if let Some(seen) = &c.os_seen
        && !os_may_fit(seen, &need.os)
    {
        return Some(format!("runs {seen}, the role needs {}", need.os));
    }
    let has: BTreeSet<Family> = c.addresses.iter().map(|a| Family::of(*a)).collect();
    let lacks: Vec<&str> = need
        .families
        .difference(&has)
        .map(|f| match f {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
        .collect();
    if !lacks.is_empty() {
        return Some(format!(
            "has no {} address, the services need one",
            lacks.join(" and no ")
        ));
    }
    None
}

/// Whether a server seen with `seen` may run `wanted`.
fn os_may_fit(seen: &str, wanted: &str) -> bool {
    match seen.strip_prefix("not ") {
        Some(other) => other != wanted,
        None => seen == wanted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spare(name: &str, state: ServerState, addresses: &[&str], os: Option<&str>) -> Candidate {
        Candidate {
            name: name.into(),
            state,
            reason: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            os_seen: os.map(Into::into),
            configured: None,
        }
    }

    fn need(families: &[Family]) -> Need {
        Need {
            failed: "web1".into(),
            os: "debian-12".into(),
            families: families.iter().copied().collect(),
        }
    }

    #[test]
    fn prefers_the_installed_system_then_the_name() {
        let pool = [
            spare("a", ServerState::Ready, &["10.0.0.1"], None),
            spare("c", ServerState::Ready, &["10.0.0.3"], Some("debian-12")),
            spare("b", ServerState::Ready, &["10.0.0.2"], Some("debian-12")),
        ];
        let s = select(&pool, &need(&[Family::V4]));
        assert_eq!(s.chosen.as_deref(), Some("b"));
        assert_eq!(s.not, []);
    }

    #[test]
    fn says_why_not() {
        let mut broken = spare("broken", ServerState::Quarantined, &["10.0.0.4"], None);
        broken.reason = Some("install:nginx: script_failed: exit 1".into());
        let pool = [
            broken,
            spare("old", ServerState::Ready, &["10.0.0.5"], Some("debian-11")),
            spare(
                "unlike",
                ServerState::Ready,
                &["10.0.0.9"],
                Some("not debian-12"),
            ),
            spare("v4", ServerState::Ready, &["10.0.0.6"], None),
            spare("web1", ServerState::Failed, &["10.0.0.7"], None),
            spare("web2", ServerState::Serving, &["10.0.0.8"], None),
        ];
        let mut repaired = spare(
            "repaired",
            ServerState::Ready,
            &["10.0.0.3", "fd00::3"],
            None,
        );
        repaired.configured = Some("lb1".parse().unwrap());
        let s = select(&[repaired], &need(&[Family::V4]));
        assert_eq!(s.chosen, None);
        assert_eq!(
            s.not[0].reason,
            "is a configured server of director lb1: it would not take it as a stand-in"
        );
        let s = select(&pool, &need(&[Family::V4, Family::V6]));
        assert_eq!(s.chosen, None);
        assert_eq!(s.serving, 1);
        assert_eq!(
            s.no_spare(),
            "no_spare: broken (quarantined: install:nginx: script_failed: exit 1); old (runs \
             debian-11, the role needs debian-12); unlike (runs not debian-12, the role needs \
             debian-12); v4 (has no IPv6 address, the services need one). Enrol a spare, or put \
             one right and release it"
        );
    }

    #[test]
    fn an_empty_pool_says_so() {
        let s = select(&[], &need(&[]));
        assert!(s.no_spare().contains("no server without a role"));
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        (
            "[a-d]",
            prop::sample::select(ServerState::ALL.to_vec()),
            any::<(bool, bool)>(),
            prop::option::of(prop::sample::select(vec![
                "debian-12",
                "debian-11",
                "not debian-12",
                "not debian-11",
            ])),
        )
            .prop_map(|(name, state, (v4, v6), os)| {
                let mut addresses: Vec<&str> = Vec::new();
                if v4 {
                    addresses.push("10.0.0.1");
                }
                if v6 {
                    addresses.push("fd00::1");
                }
                spare(&name, state, &addresses, os)
            })
    }

    proptest! {
        #[test]
        fn the_chosen_is_fit_and_every_other_has_a_reason(
            pool in prop::collection::vec(candidate(), 0..6),
            v6 in any::<bool>(),
        ) {
            let mut pool = pool;
            pool.sort_by(|a, b| a.name.cmp(&b.name));
            pool.dedup_by(|a, b| a.name == b.name);
            let need = need(if v6 { &[Family::V6] } else { &[] });
            let s = select(&pool, &need);
            if let Some(name) = &s.chosen {
                let c = pool.iter().find(|c| c.name == *name).unwrap();
                prop_assert_eq!(c.state, ServerState::Ready);
                prop_assert!(!v6 || c.addresses.iter().any(IpAddr::is_ipv6));
                prop_assert!(c.os_seen.as_deref() != Some("debian-11"));
                prop_assert!(c.os_seen.as_deref() != Some("not debian-12"));
            } else {
                // Nobody fits: each ready one is named.
                for c in pool.iter().filter(|c| c.state == ServerState::Ready) {
                    prop_assert!(s.not.iter().any(|p| p.server == c.name));
                }
            }
        }
    }
}
