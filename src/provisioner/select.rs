//! Which spare takes a failed server's place, and why not the others. PURE.
//!
//! A server is a spare for a role where its state allows it and nothing rules it out (`fits`). Of several goes
//! first, in this order: one that is kept warm for the role, and passes the directors' checks; one whose operating
//! system need not be installed, and of those that need it one that is not known to have another; one that the last
//! rehearsal found sound, and no director finds failing; one that was seen with the role's operating system; one that
//! shares fewest of the labels in which it had better differ from the failed server; one that has most of the preferred
//! labels; one that is reserved for the role; one that has not failed, or longest ago; by name, so that the same pool
//! gives the same answer.

use std::{cmp::Reverse, collections::BTreeSet, net::IpAddr};

use crate::model::{
    DirectorName, Family, WallMillis,
    inventory::{Labels, ServerState, SparePolicy},
    machine::{Driver, Image},
    wire::{PassedOver, RankedSpare},
};

/// The word of what a rehearsal finds of a spare that cannot be logged in to, whose driver can install it.
pub const BARE: &str = "bare";

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
    /// What is said of it.
    pub labels: Labels,
    /// The roles it is for; any where there are none.
    pub reserved_for: Vec<String>,
    /// Why it is in maintenance, if it is.
    pub maintenance: Option<String>,
    /// The role that it is kept warm for, and is configured for as that role now is.
    pub warm_for: Option<String>,
    /// The role that it was made ready for, also where that role, or a secret of it, is another now.
    pub kept_for: Option<String>,
    /// What the last rehearsal found wrong.
    pub trouble: Option<String>,
    /// What directors find wrong that watch it as a warm spare.
    pub doubt: Option<String>,
    /// When it failed last, as a server or as a spare.
    pub failed_at: Option<WallMillis>,
    /// Who installs an operating system on it.
    pub driver: Driver,
    /// Whether its disk may be wiped.
    pub wipe: bool,
}

/// What a spare must have, and had better have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The failed server's name: it is not its own spare.
    pub failed: String,
    /// The role's code.
    pub role: String,
    /// Operating system of the role.
    pub os: String,
    /// Families of the failed server's addresses in the services it is in.
    pub families: BTreeSet<Family>,
    /// What the role says of its spares.
    pub policy: SparePolicy,
    /// What is said of the failed server.
    pub failed_labels: Labels,
    /// What installs the operating system, where the role allows that.
    pub install: Install,
}

/// Whether an operating system may be installed for a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Install {
    /// The role does not allow it.
    Forbidden,
    /// It does, and no image installs this operating system.
    NoImage,
    /// By this image.
    By(Image),
}

/// The outcome: spares in their order, and why not the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Those that can be claimed, the best first, each with what speaks for and against it.
    pub ranked: Vec<RankedSpare>,
    /// Servers that are spares by their state or were, each with the reason, in order of name.
    pub not: Vec<PassedOver>,
    /// Number of servers that are no spares because they serve.
    pub serving: usize,
}

impl Selection {
    /// The spare to claim.
    #[must_use]
    pub fn chosen(&self) -> Option<&str> {
        self.ranked.first().map(|r| r.server.as_str())
    }

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

/// Puts the spares in order; see the module.
#[must_use]
pub fn select(pool: &[Candidate], need: &Need) -> Selection {
    let mut fit = Vec::new();
    let mut not = Vec::new();
    let mut serving = 0;
    for c in pool {
        match fits(c, need) {
            Ok(fitness) => fit.push((rank(c, need, fitness), c)),
            Err(_) if c.state == ServerState::Serving => serving += 1,
            Err(_) if c.name == need.failed => {}
            Err(reason) => not.push(PassedOver {
                server: c.name.clone(),
                reason,
            }),
        }
    }
    fit.sort_by(|(a, _), (b, _)| a.cmp(b));
    not.sort_by(|a, b| a.server.cmp(&b.server));
    let ranked = fit.into_iter().map(|(rank, c)| RankedSpare {
        server: c.name.clone(),
        warm: rank.is_warm(),
        trouble: rank.trouble,
        why: words(c, need, rank.fit),
    });
    Selection {
        ranked: ranked.collect(),
        not,
        serving,
    }
}

/// How far a spare is from the wanted operating system, the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// It has it, or may have it: then it is verified.
    AsItIs,
    /// It was never looked at, and gets the operating system if it has another one or none.
    Installed,
    /// It has another one: its disk is wiped.
    Wiped,
}

/// What decides between spares, the first difference first; the least is the best.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    warm: Reverse<bool>,
    fit: Fit,
    trouble: bool,
    unseen: bool,
    shared: usize,
    preferred: Reverse<usize>,
    reserved: Reverse<bool>,
    failed_at: Option<WallMillis>,
    name: &'a str,
}

impl Rank<'_> {
    const fn is_warm(&self) -> bool {
        self.warm.0
    }
}

fn rank<'a>(c: &'a Candidate, need: &Need, fit: Fit) -> Rank<'a> {
    Rank {
        warm: Reverse(is_warm(c, need)),
        fit,
        trouble: trouble(c, fit).is_some() || c.doubt.is_some(),
        unseen: c.os_seen.as_deref() != Some(need.os.as_str()),
        shared: shared(c, need).count(),
        preferred: Reverse(preferred(c, need).count()),
        reserved: Reverse(!c.reserved_for.is_empty()),
        failed_at: c.failed_at,
        name: &c.name,
    }
}

/// What is wrong with a spare. That a bare one cannot be logged in to is nothing wrong where it is installed anyway.
fn trouble(c: &Candidate, fit: Fit) -> Option<&str> {
    let bare = |trouble: &&str| fit != Fit::AsItIs && trouble.starts_with(BARE);
    c.trouble.as_deref().filter(|t| !bare(t))
}

fn is_warm(c: &Candidate, need: &Need) -> bool {
    c.state == ServerState::Standby && c.warm_for.as_ref() == Some(&need.role) && c.doubt.is_none()
}

/// Labels in which it had better differ from the failed server, and does not.
fn shared<'a>(c: &'a Candidate, need: &'a Need) -> impl Iterator<Item = (&'a str, &'a str)> {
    need.policy.apart.iter().filter_map(|name| {
        let (own, failed) = (c.labels.get(name)?, need.failed_labels.get(name)?);
        (own == failed).then_some((name.as_str(), own.as_str()))
    })
}

fn preferred<'a>(c: &'a Candidate, need: &'a Need) -> impl Iterator<Item = (&'a str, &'a str)> {
    let wanted = need.policy.prefers.iter();
    let has = wanted.filter(|(name, value)| c.labels.get(*name) == Some(*value));
    has.map(|(name, value)| (name.as_str(), value.as_str()))
}

/// What speaks for a spare, and against it.
fn words(c: &Candidate, need: &Need, fit: Fit) -> String {
    let mut all = Vec::new();
    if is_warm(c, need) {
        all.push("kept warm".to_owned());
    }
    if let Some(doubt) = &c.doubt {
        all.push(format!("made ready beforehand, {doubt}"));
    }
    if let Some(trouble) = trouble(c, fit) {
        all.push(format!("the last rehearsal found: {trouble}"));
    }
    all.push(match (c.os_seen.as_deref(), fit) {
        (Some(seen), Fit::AsItIs) if seen == need.os => format!("runs {seen}"),
        (_, Fit::AsItIs) => "its operating system was not looked at yet".to_owned(),
        (_, Fit::Installed) => format!("will be installed unless it runs {}", need.os),
        (seen, Fit::Wiped) => format!("runs {}, will be installed", seen.unwrap_or("another")),
    });
    all.extend(
        shared(c, need).map(|(name, value)| format!("in the failed server's {name} {value}")),
    );
    all.extend(preferred(c, need).map(|(name, value)| format!("has the preferred {name} {value}")));
    if !c.reserved_for.is_empty() {
        all.push("reserved for the role".to_owned());
    }
    if c.failed_at.is_some() {
        all.push("has failed before".to_owned());
    }
    all.join(", ")
}

/// How near a server is, or why it is no spare for this.
fn fits(c: &Candidate, need: &Need) -> Result<Fit, String> {
    if c.name == need.failed {
        return Err("is the failed server".to_owned());
    }
    let because = |what: &str| {
        Err(match &c.reason {
            Some(reason) => format!("{what}: {reason}"),
            None => what.to_owned(),
        })
    };
    match c.state {
        ServerState::Ready => {}
        // One that is not as the role now wants it is a spare all the same: what differs is done.
        ServerState::Standby if c.kept_for.as_ref() == Some(&need.role) => {}
        ServerState::Standby => match &c.warm_for {
            Some(role) => return Err(format!("kept warm for {role}")),
            None => return because("kept warm for a role as it was before"),
        },
        ServerState::Enrolled => return because("not verified yet"),
        ServerState::Claimed | ServerState::Configuring | ServerState::Testing => {
            return because("in use by another replacement");
        }
        ServerState::Cleaning => return because("being cleaned"),
        ServerState::Serving => return because("serves"),
        ServerState::Failed => return because("failed, not released"),
        ServerState::Quarantined => return because("quarantined"),
    }
    if let Some(why) = &c.maintenance {
        return Err(format!("in maintenance: {why}"));
    }
    if let Some(director) = &c.configured {
        return Err(format!(
            "is a configured server of director {director}: it would not take it as a stand-in"
        ));
    }
    if !c.reserved_for.is_empty() && !c.reserved_for.contains(&need.role) {
        return Err(format!("reserved for {}", c.reserved_for.join(", ")));
    }
    let lacks = need.policy.requires.iter();
    let lacks = lacks.filter(|(name, value)| c.labels.get(*name) != Some(*value));
    let lacks: Vec<String> = lacks
        .map(|(name, value)| match c.labels.get(name) {
            Some(own) => format!("{name} {value}, it has {own}"),
            None => format!("{name} {value}, it has none"),
        })
        .collect();
    if !lacks.is_empty() {
        return Err(format!("the role requires {}", lacks.join("; ")));
    }
    let fit = match (&c.os_seen, installable(c, &need.install)) {
        (Some(seen), _) if *seen == need.os => Fit::AsItIs,
        (Some(seen), Ok(())) if !os_may_fit(seen, &need.os) => Fit::Wiped,
        (Some(seen), Err(why)) if !os_may_fit(seen, &need.os) => {
            return Err(format!("runs {seen}, the role needs {}{why}", need.os));
        }
        // Not known, or known to be another than one that is not wanted either.
        (_, Ok(())) if !is_warm(c, need) => Fit::Installed,
        (_, Ok(()) | Err(_)) => Fit::AsItIs,
    };
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
        return Err(format!(
            "has no {} address, the services need one",
            lacks.join(" and no ")
        ));
    }
    Ok(fit)
}

/// Whether the wanted operating system may be installed on a server, and if not why, to follow what it
/// has.
fn installable(c: &Candidate, install: &Install) -> Result<(), &'static str> {
    match (&c.driver, install) {
        (Driver::Ready, _) => Err(""),
        (_, _) if !c.wipe => Err("; it may not be wiped, set `wipe` in servers.toml if it may"),
        (_, Install::Forbidden) => {
            Err("; the role installs none, set `install` in roles.toml if it may wipe disks")
        }
        (_, Install::NoImage) => Err("; no [[image]] of roles.toml installs that"),
        (Driver::Redfish(_) | Driver::Http(_), Install::By(_)) => Ok(()),
    }
}

/// The image by which a server that was chosen has to be installed first, if it has to.
#[must_use]
pub fn must_install<'n>(c: &Candidate, need: &'n Need) -> Option<&'n Image> {
    let anew = fits(c, need).is_ok_and(|fit| fit != Fit::AsItIs);
    match &need.install {
        Install::By(image) if anew => Some(image),
        Install::By(_) | Install::Forbidden | Install::NoImage => None,
    }
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
    use crate::model::machine::{Boot, Door, Login, Redfish};

    fn spare(name: &str, state: ServerState, addresses: &[&str], os: Option<&str>) -> Candidate {
        Candidate {
            name: name.into(),
            state,
            reason: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            os_seen: os.map(Into::into),
            configured: None,
            labels: Labels::new(),
            reserved_for: Vec::new(),
            maintenance: None,
            warm_for: None,
            doubt: None,
            kept_for: None,
            trouble: None,
            failed_at: None,
            driver: Driver::Ready,
            wipe: false,
        }
    }

    fn need(families: &[Family]) -> Need {
        Need {
            failed: "web1".into(),
            role: "web".into(),
            os: "debian-12".into(),
            families: families.iter().copied().collect(),
            policy: SparePolicy::default(),
            failed_labels: Labels::new(),
            install: Install::Forbidden,
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
        assert_eq!(s.chosen(), Some("b"));
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
        assert_eq!(s.chosen(), None);
        assert_eq!(
            s.not[0].reason,
            "is a configured server of director lb1: it would not take it as a stand-in"
        );
        let s = select(&pool, &need(&[Family::V4, Family::V6]));
        assert_eq!(s.chosen(), None);
        assert_eq!(s.serving, 1);
        assert_eq!(
            s.no_spare(),
            "no_spare: broken (quarantined: install:nginx: script_failed: exit 1); old (runs \
             debian-11, the role needs debian-12); unlike (runs not debian-12, the role needs \
             debian-12); v4 (has no IPv6 address, the services need one). Enrol a spare, or put \
             one right and release it"
        );
    }

    fn labels(all: &[(&str, &str)]) -> Labels {
        let pairs = all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    }

    fn order(pool: &[Candidate], need: &Need) -> Vec<String> {
        let ranked = select(pool, need).ranked.into_iter();
        ranked.map(|r| format!("{}: {}", r.server, r.why)).collect()
    }

    #[test]
    fn warm_ones_go_first_and_then_the_sounder_the_farther_and_the_liked() {
        let of = |name: &str| spare(name, ServerState::Ready, &["10.0.0.1"], Some("debian-12"));
        let warm = Candidate {
            state: ServerState::Standby,
            warm_for: Some("web".into()),
            kept_for: Some("web".into()),
            labels: labels(&[("rack", "r1")]),
            ..of("h")
        };
        let far = Candidate {
            labels: labels(&[("rack", "r2")]),
            ..of("g")
        };
        let liked = Candidate {
            labels: labels(&[("rack", "r1"), ("size", "l")]),
            ..of("f")
        };
        let own = Candidate {
            labels: labels(&[("rack", "r1")]),
            reserved_for: vec!["web".into()],
            ..of("e")
        };
        let near = Candidate {
            labels: labels(&[("rack", "r1")]),
            ..of("d")
        };
        let long_ago = Candidate {
            failed_at: Some(WallMillis(1)),
            ..near.clone()
        };
        let long_ago = Candidate {
            name: "c".into(),
            ..long_ago
        };
        let lately = Candidate {
            name: "b".into(),
            failed_at: Some(WallMillis(2)),
            ..near.clone()
        };
        let ill = Candidate {
            trouble: Some("unreachable: no route".into()),
            labels: labels(&[("rack", "r2")]),
            ..of("a")
        };
        let need = Need {
            policy: SparePolicy {
                apart: vec!["rack".into()],
                prefers: labels(&[("size", "l")]),
                ..SparePolicy::default()
            },
            failed_labels: labels(&[("rack", "r1")]),
            ..need(&[Family::V4])
        };
        let doubted = Candidate {
            name: "0".into(),
            doubt: Some("fails the checks of lb1: refused".into()),
            ..warm.clone()
        };
        let pool = [doubted, ill, lately, long_ago, near, own, liked, far, warm];
        assert_eq!(
            order(&pool, &need),
            [
                "h: kept warm, runs debian-12, in the failed server's rack r1",
                "g: runs debian-12",
                "f: runs debian-12, in the failed server's rack r1, has the preferred size l",
                "e: runs debian-12, in the failed server's rack r1, reserved for the role",
                "d: runs debian-12, in the failed server's rack r1",
                "c: runs debian-12, in the failed server's rack r1, has failed before",
                "b: runs debian-12, in the failed server's rack r1, has failed before",
                "a: the last rehearsal found: unreachable: no route, runs debian-12",
                "0: made ready beforehand, fails the checks of lb1: refused, runs debian-12, in the failed server's rack r1",
            ]
        );
    }

    #[test]
    fn what_a_role_requires_and_what_is_kept_for_others_rules_out() {
        let of = |name: &str| spare(name, ServerState::Ready, &["10.0.0.1"], None);
        let small = Candidate {
            labels: labels(&[("size", "s")]),
            ..of("small")
        };
        let mended = Candidate {
            maintenance: Some("new disks".into()),
            ..of("mended")
        };
        let theirs = Candidate {
            reserved_for: vec!["db".into(), "mail".into()],
            ..of("theirs")
        };
        let standby = |name: &str, role: Option<&str>| Candidate {
            state: ServerState::Standby,
            warm_for: role.map(Into::into),
            kept_for: Some("db".into()),
            ..of(name)
        };
        let need = Need {
            policy: SparePolicy {
                requires: labels(&[("size", "l")]),
                ..SparePolicy::default()
            },
            ..need(&[])
        };
        let pool = [
            small,
            of("unlabelled"),
            mended,
            theirs,
            standby("warm", Some("db")),
            standby("outdated", None),
        ];
        let not = select(&pool, &need).not.into_iter();
        let not: Vec<String> = not.map(|p| format!("{}: {}", p.server, p.reason)).collect();
        assert_eq!(
            not,
            [
                "mended: in maintenance: new disks",
                "outdated: kept warm for a role as it was before",
                "small: the role requires size l, it has s",
                "theirs: reserved for db, mail",
                "unlabelled: the role requires size l, it has none",
                "warm: kept warm for db",
            ]
        );
    }

    #[test]
    fn an_empty_pool_says_so() {
        let s = select(&[], &need(&[]));
        assert!(s.no_spare().contains("no server without a role"));
    }

    fn installable(mut c: Candidate, wipe: bool) -> Candidate {
        c.driver = Driver::Redfish(Box::new(Redfish {
            door: Door {
                url: "https://bmc.example".parse().unwrap(),
                pin: None,
                credential: "bmc".into(),
            },
            system: "/redfish/v1/Systems/1".into(),
            media: None,
            login: Login::Basic,
            boot_mode: None,
        }));
        c.wipe = wipe;
        c
    }

    fn image() -> Image {
        Image {
            os: "debian-12".into(),
            boot: Boot::Pxe,
            timeout: std::time::Duration::from_secs(60),
            enrolment_keys: Vec::new(),
        }
    }

    #[test]
    fn a_spare_that_must_be_installed_comes_last() {
        let v4 = &["10.0.0.1"];
        let need = Need {
            install: Install::By(image()),
            ..need(&[Family::V4])
        };
        let wiped = installable(spare("a", ServerState::Ready, v4, Some("debian-11")), true);
        let bare = installable(spare("b", ServerState::Ready, v4, None), true);
        let unseen = spare("c", ServerState::Ready, v4, None);
        let fits = spare("d", ServerState::Ready, v4, Some("debian-12"));
        let mut pool = vec![wiped, bare, unseen, fits];
        for (wanted, install) in [("d", false), ("c", false), ("b", true), ("a", true)] {
            let s = select(&pool, &need);
            assert_eq!(
                (
                    s.chosen(),
                    must_install(pool.last().unwrap(), &need).is_some()
                ),
                (Some(wanted), install)
            );
            pool.pop();
        }
    }

    #[test]
    fn that_a_bare_spare_cannot_be_logged_in_to_is_no_trouble_where_it_is_installed() {
        let v4 = &["10.0.0.1"];
        let mut bare = installable(spare("a", ServerState::Ready, v4, None), true);
        bare.trouble = Some(format!("{BARE}: x"));
        let pool = [bare];
        let may = Need {
            install: Install::By(image()),
            ..need(&[Family::V4])
        };
        assert!(!select(&pool, &may).ranked[0].trouble);
        assert!(select(&pool, &need(&[Family::V4])).ranked[0].trouble);
        let mut silent = pool[0].clone();
        silent.trouble = Some("unreachable: x".into());
        assert!(select(&[silent], &may).ranked[0].trouble);
    }

    #[test]
    fn says_why_it_is_not_installed() {
        let v4 = &["10.0.0.1"];
        let old = spare("a", ServerState::Ready, v4, Some("debian-11"));
        let why = |c: Candidate, install| {
            let need = Need {
                install,
                ..need(&[Family::V4])
            };
            let s = select(&[c], &need);
            assert_eq!(s.chosen(), None);
            s.not[0].reason.clone()
        };
        let by = || Install::By(image());
        assert_eq!(
            why(old.clone(), by()),
            "runs debian-11, the role needs debian-12"
        );
        assert!(why(installable(old.clone(), false), by()).contains("`wipe` in servers.toml"));
        assert!(
            why(installable(old.clone(), true), Install::Forbidden)
                .contains("`install` in roles.toml")
        );
        assert!(why(installable(old, true), Install::NoImage).contains("[[image]]"));
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        (
            "[a-d]",
            // Most are spares: what is between others is decided soon.
            prop_oneof![
                3 => Just(ServerState::Ready),
                1 => prop::sample::select(ServerState::ALL.to_vec()),
            ],
            any::<(bool, bool, bool, bool)>(),
            prop::option::of(prop::sample::select(vec![
                "debian-12",
                "debian-11",
                "not debian-12",
                "not debian-11",
            ])),
        )
            .prop_map(|(name, state, (v4, v6, driver, wipe), os)| {
                let mut addresses: Vec<&str> = Vec::new();
                if v4 {
                    addresses.push("10.0.0.1");
                }
                if v6 {
                    addresses.push("fd00::1");
                }
                let c = spare(&name, state, &addresses, os);
                if driver { installable(c, wipe) } else { c }
            })
    }

    proptest! {
        // One that must be installed beside one that need not is rare.
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_chosen_is_fit_and_every_other_has_a_reason(
            pool in prop::collection::vec(candidate(), 0..6),
            v6 in any::<bool>(),
            install in prop::sample::select(vec![Install::Forbidden, Install::NoImage, Install::By(image())]),
        ) {
            let mut pool = pool;
            pool.sort_by(|a, b| a.name.cmp(&b.name));
            pool.dedup_by(|a, b| a.name == b.name);
            let need = Need { install, ..need(if v6 { &[Family::V6] } else { &[] }) };
            let s = select(&pool, &need);
            if let Some(name) = s.chosen() {
                let c = pool.iter().find(|c| c.name == name).unwrap();
                prop_assert_eq!(c.state, ServerState::Ready);
                prop_assert!(!v6 || c.addresses.iter().any(IpAddr::is_ipv6));
                let seen = c.os_seen.as_deref();
                let other = matches!(seen, Some("debian-11" | "not debian-12"));
                let installs = must_install(c, &need).is_some();
                prop_assert!(installs || !other);
                // Never wiped but where everybody allows it, and nobody fits as he is.
                prop_assert!(!installs || (c.wipe && c.driver != Driver::Ready));
                prop_assert!(!installs || matches!(need.install, Install::By(_)));
                let as_it_is = |c: &Candidate| {
                    let reached = !v6 || c.addresses.iter().any(IpAddr::is_ipv6);
                    c.state == ServerState::Ready && reached && c.os_seen.as_deref() == Some("debian-12")
                };
                prop_assert!(!installs || !pool.iter().any(as_it_is));
            } else {
                // Nobody fits: each ready one is named.
                for c in pool.iter().filter(|c| c.state == ServerState::Ready) {
                    prop_assert!(s.not.iter().any(|p| p.server == c.name));
                }
            }
        }
    }
}
