//! The protocol of drivers of a site's own, `docs/driver-protocol.md`: documents and what answers mean.
//! PURE.

use serde::{Deserialize, Serialize};

use super::Progress;
use crate::{
    model::machine::Image,
    provisioner::order::{Class, StepError, error},
};

/// The version that this build speaks.
pub const VERSION: u32 = 1;

/// `GET /`: what the driver can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `understudy-driver`.
    pub protocol: String,
    /// Versions that it speaks.
    pub versions: Vec<u32>,
}

/// `POST /v1/installations`: begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// What the driver calls the machine.
    pub machine: String,
    /// The server's name in the inventory.
    pub server: String,
    /// What is to be installed, as `ID-VERSION_ID`.
    pub os: String,
    /// `pxe` or `virtual_media`.
    pub boot: String,
    /// URL of the image, where there is one.
    pub image: Option<String>,
    /// The whole installation ends within this.
    pub timeout_s: u64,
    /// Higher in every later order: a driver that remembers the highest of a machine refuses lower
    /// ones.
    pub fence: u64,
}

impl Begin {
    /// The order for a machine.
    #[must_use]
    pub fn new(machine: &str, server: &str, image: &Image, fence: u64) -> Self {
        Self {
            machine: machine.to_owned(),
            server: server.to_owned(),
            os: image.os.clone(),
            boot: image.boot.kind().to_owned(),
            image: image.boot.image().map(str::to_owned),
            timeout_s: image.timeout.as_secs(),
            fence,
        }
    }
}

/// An installation, as each answer has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Its name in the driver's paths.
    pub id: String,
    /// Where it is.
    pub state: Where,
    /// For people: what it does, why it failed.
    #[serde(default)]
    pub message: String,
}

/// Where an installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// Under way.
    Running,
    /// The machine boots what was installed.
    Done,
    /// Failed, for good.
    Failed,
    /// Cancelled.
    Cancelled,
}

/// An error's document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// `fenced`, `busy`, `no_such_machine`, …
    pub code: String,
    /// For people.
    pub message: String,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// This.
    Installation(Installation),
    /// The driver knows no such installation any more: begin it again, with the same key.
    Forgotten,
}

/// Whether the driver speaks this version.
///
/// # Errors
/// [`StepError`] says what it speaks.
pub fn greeted(who: &str, status: u16, body: &[u8]) -> Result<(), StepError> {
    let hello = match status {
        200 => serde_json::from_slice::<Hello>(body).ok(),
        _ => return Err(refused(who, status, body)),
    };
    match hello {
        Some(h) if h.protocol == "understudy-driver" && h.versions.contains(&VERSION) => Ok(()),
        Some(h) => Err(error(
            Class::Permanent,
            "driver_version",
            format!(
                "{who} speaks {} {:?}, this provisioner understudy-driver [{VERSION}]",
                h.protocol, h.versions
            ),
        )),
        None => Err(error(
            Class::Permanent,
            "driver_version",
            format!("{who} does not say that it is a driver: look at `url` in servers.toml"),
        )),
    }
}

/// What an answer about an installation means.
///
/// # Errors
/// [`StepError`], with whether to ask again.
pub fn said(who: &str, status: u16, body: &[u8]) -> Result<Said, StepError> {
    match status {
        200..=202 => match serde_json::from_slice(body) {
            Ok(installation) => Ok(Said::Installation(installation)),
            Err(e) => Err(error(
                Class::Permanent,
                "driver_garbled",
                format!("an answer of {who} is not of the protocol: {e}"),
            )),
        },
        404 | 410 => Ok(Said::Forgotten),
        _ => Err(refused(who, status, body)),
    }
}

/// How an installation goes.
///
/// # Errors
/// One that has failed.
pub fn progress(who: &str, installation: &Installation) -> Result<Progress, StepError> {
    let failed = |what: &str| {
        let message = line(&installation.message);
        let detail = format!("{who} says that the installation {what}: {message}");
        Err(error(Class::Permanent, "driver_failed", detail))
    };
    match installation.state {
        Where::Running => Ok(Progress::Works(line(&installation.message))),
        Where::Done => Ok(Progress::Done),
        Where::Failed => failed("failed"),
        Where::Cancelled => failed("was cancelled there"),
    }
}

/// Whether an id can be part of a path.
#[must_use]
pub fn is_id(id: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !id.is_empty() && id.len() <= 200 && !id.starts_with('.') && id.chars().all(fine)
}

fn refused(who: &str, status: u16, body: &[u8]) -> StepError {
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let (class, code) = match (status, refusal.code.as_str()) {
        (_, "fenced") => (Class::Fenced, "fenced"),
        (408 | 423 | 425 | 429 | 500 | 502..=599, _) | (409, "busy") => {
            (Class::Transient, "driver_busy")
        }
        (401 | 403, _) => (Class::Permanent, "driver_auth_refused"),
        _ => (Class::Permanent, "driver_refused"),
    };
    let detail = format!(
        "{who} answers {status} {}: {}",
        line(&refusal.code),
        line(&refusal.message)
    );
    error(class, code, detail)
}

/// One line of bounded length: it goes to the log.
fn line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_not_spoken_is_said() {
        let hello = br#"{"protocol": "understudy-driver", "versions": [1, 2], "name": "x"}"#;
        assert_eq!(greeted("d", 200, hello), Ok(()));
        let newer = br#"{"protocol": "understudy-driver", "versions": [2]}"#;
        let e = greeted("d", 200, newer).unwrap_err();
        assert_eq!(e.code, "driver_version");
        assert_eq!(
            greeted("d", 200, b"<html>").unwrap_err().code,
            "driver_version"
        );
        assert_eq!(greeted("d", 503, b"").unwrap_err().class, Class::Transient);
    }

    #[test]
    fn answers_mean_what_the_protocol_says() {
        let running = br#"{"id": "7", "state": "running", "message": "formats\nthe disk", "x": 1}"#;
        let Said::Installation(i) = said("d", 202, running).unwrap() else {
            panic!("forgotten");
        };
        assert_eq!(
            progress("d", &i),
            Ok(Progress::Works("formats the disk".into()))
        );
        assert_eq!(said("d", 404, b""), Ok(Said::Forgotten));
        let fenced = br#"{"code": "fenced", "message": "by 9"}"#;
        assert_eq!(said("d", 409, fenced).unwrap_err().class, Class::Fenced);
        let busy = br#"{"code": "busy"}"#;
        assert_eq!(said("d", 409, busy).unwrap_err().class, Class::Transient);
        assert_eq!(said("d", 409, b"").unwrap_err().class, Class::Permanent);
        assert_eq!(said("d", 429, b"").unwrap_err().class, Class::Transient);
        assert_eq!(said("d", 200, b"[]").unwrap_err().code, "driver_garbled");
        let failed = Installation {
            state: Where::Failed,
            ..i
        };
        assert_eq!(progress("d", &failed).unwrap_err().code, "driver_failed");
    }

    #[test]
    fn an_id_cannot_leave_its_path() {
        for id in ["", ".", "../x", "a/b", "a?b", "a b", "a%2f"] {
            assert!(!is_id(id), "{id}");
        }
        assert!(is_id("01H-x.7_y"));
    }
}
