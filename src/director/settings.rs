//! Declared settings of the kernel: when one is written, and where it stands after that.

use std::fmt;

use crate::model::{Sysctl, SysctlValue};

/// Why a setting could not be read or written. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such file.
    NotThere,
    /// `/proc/sys` is mounted read-only.
    ReadOnly,
    /// This process may not.
    NotPermitted,
    /// The kernel refused the value, or something else.
    Refused(String),
}

/// What came of writing a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The writing.
    pub written: Result<(), Problem>,
    /// What was read after it.
    pub after: Result<SysctlValue, Problem>,
}

/// Where a declared setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As declared.
    Holds,
    /// It was written without an error, and the kernel shows this.
    NotTaken(SysctlValue),
    /// It is this and could not be changed.
    Stuck(SysctlValue, Problem),
    /// It could not even be read.
    Unread(Problem),
}

/// Whether a setting that is `found` has to be written; `last` is where it stood at the pass before.
///
/// What the kernel made of the declared value is not written again, else it would be at each pass.
#[must_use]
pub fn is_to_be_written(
    declared: &Sysctl,
    found: &Result<SysctlValue, Problem>,
    last: Option<&Standing>,
) -> bool {
    match (found, last) {
        (Err(_), _) => false,
        (Ok(v), _) if holds(declared, v) => false,
        (Ok(v), Some(Standing::NotTaken(shown))) => v != shown,
        (Ok(_), _) => true,
    }
}

/// Where a setting stands that was `found` so, and then written if it had to be.
#[must_use]
pub fn standing(
    declared: &Sysctl,
    found: Result<SysctlValue, Problem>,
    tried: Option<Tried>,
) -> Standing {
    let found = match found {
        Ok(v) => v,
        Err(problem) => return Standing::Unread(problem),
    };
    let shown = match tried {
        None => found,
        Some(Tried {
            written: Err(problem),
            ..
        }) => return Standing::Stuck(found, problem),
        Some(Tried {
            after: Err(problem),
            ..
        }) => return Standing::Unread(problem),
        Some(Tried { after: Ok(v), .. }) => v,
    };
    match holds(declared, &shown) {
        true => Standing::Holds,
        false => Standing::NotTaken(shown),
    }
}

/// Whether a setting is as declared, or as the kernel itself switches it from there.
#[must_use]
pub fn holds(declared: &Sysctl, found: &SysctlValue) -> bool {
    let automatic = |v: &SysctlValue| matches!(v.as_str(), "1" | "2");
    declared.value == *found
        || (declared.name.is_defense() && automatic(&declared.value) && automatic(found))
}

/// What is wrong with a declared setting, and what to do about it; none while it holds.
#[must_use]
pub fn warning(declared: &Sysctl, standing: &Standing) -> Option<String> {
    let Sysctl { name, value } = declared;
    Some(match standing {
        Standing::Holds => return None,
        Standing::NotTaken(shown) => format!(
            "kernel setting {name} is {shown}, not {value} as declared: the kernel took the value without an error and made that of it; write a value that it can hold under [kernel]"
        ),
        Standing::Stuck(found, problem) => format!(
            "kernel setting {name} is {found} and could not be set to {value} as declared: {problem}"
        ),
        Standing::Unread(Problem::NotThere) => {
            let why = match name.is_ipvs() {
                true => {
                    "IPVS is not loaded (modprobe ip_vs), or this kernel's IPVS does not have it"
                }
                false => {
                    "this kernel does not have it, or has not loaded the module or the interface that it belongs to"
                }
            };
            format!("kernel setting {name} is declared and not there: {why}")
        }
        Standing::Unread(problem) => {
            format!("kernel setting {name} is declared and could not be read: {problem}")
        }
    })
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("there is no such setting"),
            Self::ReadOnly => f.write_str(
                "/proc/sys is read-only here; in a systemd unit with ProtectKernelTunables=yes, ReadWritePaths=/proc/sys/net leaves the network's part writable",
            ),
            Self::NotPermitted => f.write_str(
                "not permitted; settings below net need CAP_NET_ADMIN, which a systemd unit gives with AmbientCapabilities=CAP_NET_ADMIN",
            ),
            Self::Refused(why) => write!(f, "the kernel refused ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(name: &str, value: &str) -> Sysctl {
        Sysctl {
            name: name.parse().unwrap(),
            value: SysctlValue::of(value),
        }
    }

    fn value(text: &str) -> SysctlValue {
        SysctlValue::of(text)
    }

    fn tried(written: Result<(), Problem>, after: &str) -> Option<Tried> {
        Some(Tried {
            written,
            after: Ok(value(after)),
        })
    }

    #[test]
    fn only_what_differs_is_written() {
        let d = declared("net.ipv4.ip_forward", "1");
        assert!(!is_to_be_written(&d, &Ok(value("1")), None));
        assert!(is_to_be_written(&d, &Ok(value("0")), None));
        // Somebody else changed it.
        assert!(is_to_be_written(
            &d,
            &Ok(value("0")),
            Some(&Standing::Holds)
        ));
        // A refusal may be over.
        let stuck = Standing::Stuck(value("0"), Problem::ReadOnly);
        assert!(is_to_be_written(&d, &Ok(value("0")), Some(&stuck)));
        assert!(!is_to_be_written(&d, &Err(Problem::NotThere), None));
    }

    #[test]
    fn what_the_kernel_made_of_a_value_is_not_written_again() {
        let d = declared("net.ipv4.vs.sync_ports", "0x2");
        let not_taken = standing(&d, Ok(value("1")), tried(Ok(()), "2"));
        assert_eq!(not_taken, Standing::NotTaken(value("2")));
        assert!(!is_to_be_written(&d, &Ok(value("2")), Some(&not_taken)));
        assert!(is_to_be_written(&d, &Ok(value("1")), Some(&not_taken)));
        // Still wrong at the next pass, though nothing was written.
        assert_eq!(standing(&d, Ok(value("2")), None), not_taken);
    }

    #[test]
    fn a_written_setting_stands_where_the_kernel_shows_it() {
        let d = declared("net.ipv4.ip_forward", "1");
        assert_eq!(
            standing(&d, Ok(value("0")), tried(Ok(()), "1")),
            Standing::Holds
        );
        assert_eq!(
            standing(&d, Ok(value("0")), tried(Err(Problem::ReadOnly), "0")),
            Standing::Stuck(value("0"), Problem::ReadOnly)
        );
        assert_eq!(
            standing(&d, Err(Problem::NotThere), None),
            Standing::Unread(Problem::NotThere)
        );
    }

    #[test]
    fn the_kernels_own_defense_is_no_difference() {
        let d = declared("net.ipv4.vs.drop_entry", "1");
        assert!(!is_to_be_written(&d, &Ok(value("2")), None));
        assert!(is_to_be_written(&d, &Ok(value("3")), None));
        let other = declared("net.ipv4.vs.conn_reuse_mode", "1");
        assert!(is_to_be_written(&other, &Ok(value("2")), None));
    }

    #[test]
    fn a_warning_names_setting_values_and_remedy() {
        let d = declared("net.ipv4.vs.conntrack", "1");
        assert_eq!(warning(&d, &Standing::Holds), None);
        for (standing, words) in [
            (
                Standing::Stuck(value("0"), Problem::ReadOnly),
                &["is 0", "set to 1", "ReadWritePaths=/proc/sys/net"][..],
            ),
            (
                Standing::Stuck(value("0"), Problem::NotPermitted),
                &["AmbientCapabilities=CAP_NET_ADMIN"],
            ),
            (Standing::Unread(Problem::NotThere), &["modprobe ip_vs"]),
            (Standing::NotTaken(value("2")), &["is 2, not 1"]),
        ] {
            let text = warning(&d, &standing).unwrap();
            for word in words.iter().chain(&["net.ipv4.vs.conntrack"]) {
                assert!(text.contains(word), "no {word:?} in {text}");
            }
        }
        let elsewhere = declared("net.ipv6.conf.eth9.forwarding", "1");
        let text = warning(&elsewhere, &Standing::Unread(Problem::NotThere)).unwrap();
        assert!(!text.contains("ip_vs"), "{text}");
    }
}
