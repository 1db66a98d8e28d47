//! How a server is given an operating system: through its management controller or a driver of the
//! site's own, by which image.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{PinDigest, Verify};

/// Who installs an operating system on a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Nobody: it was installed beforehand and is only verified.
    #[default]
    Ready,
    /// Its management controller, over Redfish.
    Redfish(Box<Redfish>),
    /// A driver of the site's own, over HTTP.
    Http(Box<HttpDriver>),
}

impl Driver {
    /// The word in the inventory and in messages.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Redfish(_) => "redfish",
            Self::Http(_) => "http",
        }
    }

    /// What names the machine, the same for the same machine; nothing where it has no driver.
    #[must_use]
    pub fn machine(&self) -> Option<String> {
        let at = |door: &Door| {
            let host = door.url.host.trim_end_matches('.').to_ascii_lowercase();
            format!("{host}:{}{}", door.url.port, door.url.base)
        };
        match self {
            Self::Ready => None,
            Self::Redfish(r) => Some(at(&r.door) + r.system.trim_end_matches('/')),
            Self::Http(d) => Some(format!("{} {}", at(&d.door), d.machine)),
        }
    }
}

/// A management controller (BMC) that speaks Redfish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redfish {
    /// Where it listens, HTTPS.
    pub door: Door,
    /// The resource of the server in it, for example `/redfish/v1/Systems/1`.
    pub system: String,
    /// The resource of the virtual drive; the first CD drive that the system or its manager names
    /// where there is none.
    pub media: Option<String>,
    /// How it is logged in to.
    pub login: Login,
    /// Sent with each boot override. Supermicro loses the override without one, HPE refuses one.
    pub boot_mode: Option<BootMode>,
}

/// How a management controller is logged in to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Login {
    /// Name and password with each request.
    #[default]
    Basic,
    /// A session, opened when it is needed, closed at the end.
    Session,
}

/// `BootSourceOverrideMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootMode {
    /// UEFI.
    Uefi,
    /// BIOS.
    Legacy,
}

impl BootMode {
    /// As Redfish spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uefi => "UEFI",
            Self::Legacy => "Legacy",
        }
    }
}

/// A driver of the site's own, see `docs/driver-protocol.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpDriver {
    /// Where it listens.
    pub door: Door,
    /// What it calls the server.
    pub machine: String,
}

/// Where something listens, how it proves itself, and what we prove ourselves with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// Scheme, host, port and the beginning of all paths.
    pub url: Url,
    /// The certificate's SHA-256; by this host's certificate authorities where there is none.
    pub pin: Option<PinDigest>,
    /// Name of the credential, as `[credentials]` of `provisioner.toml` has it.
    pub credential: String,
}

impl Door {
    /// How the certificate is judged.
    #[must_use]
    pub fn verify(&self) -> Verify {
        self.pin.map_or(Verify::System, Verify::Pin)
    }
}

/// The address of an HTTP server, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Url {
    /// Over TLS.
    pub secure: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// As the `Host` header names it.
    pub authority: String,
    /// What all paths begin with, without a slash at the end.
    pub base: String,
}

/// A text that is no such address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no such URL: write \"https://bmc7.example\", without user, query and #; \
     http:// is for this host alone, as in \"http://127.0.0.1:8900\""
)]
pub struct NotAUrl(String);

impl FromStr for Url {
    type Err = NotAUrl;

    fn from_str(text: &str) -> Result<Self, NotAUrl> {
        let bad = || NotAUrl(text.to_owned());
        let (secure, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(bad()),
        };
        let plain = |c: char| c.is_ascii_graphic() && !"?#@\"<>\\^`{|}".contains(c);
        if !rest.chars().all(plain) {
            return Err(bad());
        }
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or_else(bad)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_no| bad())?;
                let port = match after {
                    "" => None,
                    _ => Some(after.strip_prefix(':').ok_or_else(bad)?),
                };
                (host, port)
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            None if secure => 443,
            None => 80,
            Some(text) => text.parse().map_err(|_no| bad())?,
        };
        let here = host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        if host.is_empty() || port == 0 || !(secure || here) {
            return Err(bad());
        }
        Ok(Self {
            secure,
            host: host.to_owned(),
            port,
            authority: authority.to_owned(),
            base: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.base)
    }
}

impl TryFrom<String> for Url {
    type Error = NotAUrl;

    fn try_from(text: String) -> Result<Self, NotAUrl> {
        text.parse()
    }
}

impl From<Url> for String {
    fn from(url: Url) -> Self {
        url.to_string()
    }
}

/// What installs an operating system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What it installs, as `ID-VERSION_ID` of os-release(5).
    pub os: String,
    /// How the server comes to it.
    pub boot: Boot,
    /// From the first request to the server's answer over SSH with this operating system.
    pub timeout: Duration,
    /// Host keys that a fresh installation shows until it has keys of its own. Whoever has the image
    /// has their private halves: the keys of its own are read and pinned at the first login.
    pub enrolment_keys: Vec<String>,
}

/// How a server comes to its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// From the network: the site's PXE server knows what it installs.
    Pxe,
    /// From a virtual drive with the image at this URL, which the controller fetches.
    VirtualMedia(String),
}

impl Boot {
    /// The word in the inventory and in the driver protocol.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Pxe => "pxe",
            Self::VirtualMedia(_) => "virtual_media",
        }
    }

    /// Where the image is.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::Pxe => None,
            Self::VirtualMedia(url) => Some(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_written_again() {
        for (text, host, port, base) in [
            ("https://bmc7", "bmc7", 443, ""),
            ("https://[fd00::7]:8443", "fd00::7", 8443, ""),
            (
                "http://127.0.0.1:8900/drivers",
                "127.0.0.1",
                8900,
                "/drivers",
            ),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((&*url.host, url.port, &*url.base), (host, port, base));
            assert_eq!(url.to_string(), text);
        }
        assert_eq!(
            "https://b/".parse::<Url>().unwrap().to_string(),
            "https://b"
        );
    }

    #[test]
    fn a_password_crosses_no_network_in_the_clear() {
        for text in [
            "http://bmc7",
            "http://192.0.2.7:80",
            "bmc7",
            "ftp://bmc7",
            "https://",
            "https://root:calvin@bmc7",
            "https://bmc7?x",
            "https://bmc7:0",
            "https://bmc7:x",
            "https://[bmc7]",
            "https://bmc 7",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
