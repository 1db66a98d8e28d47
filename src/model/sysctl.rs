//! Settings of the kernel's network code, as sysctl(8) and `/proc/sys` name them.

use std::{fmt, str::FromStr};

/// The name of a setting below `net`. Text form: that of sysctl(8), `net.ipv4.ip_forward`. Where a
/// part has dots of its own, a slash stands for each, `net.ipv4.conf.eth0/100.forwarding`; or all
/// are slashes, as in the path below `/proc/sys`, `net/ipv4/conf/eth0.100/forwarding`: which of the
/// two it is, the first dot or slash says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysctlName(String);

/// A text that names no setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SysctlNameError {
    /// Not below `net`.
    #[error(
        "{0:?} is no setting of the kernel's network code: write a name below net, for example \"net.ipv4.ip_forward\""
    )]
    NotNet(String),
    /// A part is empty, or is no name.
    #[error(
        "{0:?} is no name of a setting: parts stand between dots and are neither empty nor \"..\", without blanks or patterns; a dot within a part is written as a slash, as in \"net.ipv4.conf.eth0/100.forwarding\""
    )]
    BadPart(String),
}

impl SysctlName {
    /// The path below `/proc/sys`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Where IPv4 says whether an interface forwards.
    #[must_use]
    pub fn ipv4_forwarding(interface: &str) -> Self {
        Self(format!("net/ipv4/conf/{interface}/forwarding"))
    }

    /// A setting of an interface, or of `all`, for IPv4.
    #[must_use]
    pub fn of_interface(interface: &str, setting: &str) -> Self {
        Self(format!("net/ipv4/conf/{interface}/{setting}"))
    }

    /// Whether it says of one interface, and not of `all`, whether it forwards IPv4.
    #[must_use]
    pub fn is_ipv4_forwarding(&self) -> bool {
        let interface = self.0.strip_prefix("net/ipv4/conf/");
        let interface = interface.and_then(|i| i.strip_suffix("/forwarding"));
        // What `default` says holds for interfaces that are yet to come.
        interface.is_some_and(|i| i != "all" && i != "default")
    }

    /// Whether IPVS makes it, and so only while it is loaded.
    #[must_use]
    pub fn is_ipvs(&self) -> bool {
        self.0.starts_with("net/ipv4/vs/")
    }

    /// Whether the kernel itself switches it between 1 and 2, by the memory that is left
    /// (`update_defense_level` in net/netfilter/ipvs/ip_vs_ctl.c).
    #[must_use]
    pub fn is_defense(&self) -> bool {
        matches!(
            self.0.as_str(),
            "net/ipv4/vs/drop_entry" | "net/ipv4/vs/drop_packet" | "net/ipv4/vs/secure_tcp"
        )
    }
}

impl fmt::Display for SysctlName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let swap = |c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        };
        f.write_str(&self.0.chars().map(swap).collect::<String>())
    }
}

impl FromStr for SysctlName {
    type Err = SysctlNameError;

    fn from_str(text: &str) -> Result<Self, SysctlNameError> {
        let dots_part = text.find(['.', '/']).and_then(|at| text.get(at..at + 1)) == Some(".");
        let path: String = text
            .chars()
            .map(|c| match c {
                '.' if dots_part => '/',
                '/' if dots_part => '.',
                other => other,
            })
            .collect();
        let bad = |c: char| c.is_whitespace() || c.is_control() || "*?[]".contains(c);
        let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(bad);
        if !path.split('/').all(good) {
            return Err(SysctlNameError::BadPart(text.to_owned()));
        }
        match path.strip_prefix("net/") {
            Some(_) => Ok(Self(path)),
            None => Err(SysctlNameError::NotNet(text.to_owned())),
        }
    }
}

/// A setting's value: words with one blank between them, whatever the kernel puts there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysctlValue(String);

impl SysctlValue {
    /// What `/proc/sys` shows.
    #[must_use]
    pub fn of(shown: &str) -> Self {
        Self(shown.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number, where it is one.
    #[must_use]
    pub fn number(&self) -> Option<i64> {
        self.0.parse().ok()
    }

    /// Whether a switch is on: not a number that is zero.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0 != "0"
    }
}

impl fmt::Display for SysctlValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<i64> for SysctlValue {
    fn from(n: i64) -> Self {
        Self(n.to_string())
    }
}

impl From<bool> for SysctlValue {
    fn from(on: bool) -> Self {
        Self::from(i64::from(on))
    }
}

/// A setting and the value that it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Which.
    pub name: SysctlName,
    /// What it is to be.
    pub value: SysctlValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_says_what_dots_and_slashes_mean() {
        for (text, path, shown) in [
            (
                "net.ipv4.ip_forward",
                "net/ipv4/ip_forward",
                "net.ipv4.ip_forward",
            ),
            (
                "net/ipv4/ip_forward",
                "net/ipv4/ip_forward",
                "net.ipv4.ip_forward",
            ),
            (
                "net.ipv4.conf.eth0/100.forwarding",
                "net/ipv4/conf/eth0.100/forwarding",
                "net.ipv4.conf.eth0/100.forwarding",
            ),
            (
                "net/ipv4/conf/eth0.100/forwarding",
                "net/ipv4/conf/eth0.100/forwarding",
                "net.ipv4.conf.eth0/100.forwarding",
            ),
        ] {
            let name: SysctlName = text.parse().unwrap();
            assert_eq!(
                (name.path(), name.to_string().as_str()),
                (path, shown),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_name_leads_nowhere() {
        for text in [
            "",
            "net",
            "net.",
            "net..ipv4",
            "net//ipv4",
            "net/../kernel/panic",
            // Slashes are dots here: "..".
            "net.//.kernel.panic",
            "/net/ipv4/ip_forward",
            "net.ipv4.conf.*.forwarding",
            "net.ipv4.ip forward",
            "kernel.panic",
            "network.ipv4",
        ] {
            assert!(text.parse::<SysctlName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn values_are_the_same_whatever_the_blanks() {
        assert_eq!(SysctlValue::of("3\t50\n"), SysctlValue::of(" 3 50"));
        assert_eq!(SysctlValue::from(true), SysctlValue::of("1\n"));
        assert!(!SysctlValue::from(false).is_on());
    }

    proptest::proptest! {
        #[test]
        fn a_name_survives_its_text_form_and_stays_below_net(text in "net[./][a-z./0-9]{1,20}") {
            if let Ok(name) = text.parse::<SysctlName>() {
                let again: SysctlName = name.to_string().parse().unwrap();
                proptest::prop_assert_eq!(&again, &name);
                proptest::prop_assert!(name.path().starts_with("net/"));
                proptest::prop_assert!(name.path().split('/').all(|p| p != ".." && !p.is_empty()));
            }
        }
    }
}
