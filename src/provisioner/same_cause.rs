//! When a role is stopped: its last two spares failed in the same place. PURE.
//!
//! Two machines that fail in the same script, file or test are not at fault, what they were told is;
//! a third would be quarantined for nothing. A spare that could not be reached says nothing of the
//! role, and one that came through says that the role is sound.

use crate::provisioner::order::OS_INSTALL;

/// How an attempt with a spare ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The spare.
    pub server: String,
    /// What came of it.
    pub end: End,
}

/// What came of a spare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was offered.
    Sound,
    /// It failed a step for good.
    Failed {
        /// The step's name, `install:nginx`.
        step: String,
        /// The error's code.
        code: String,
    },
}

/// Why a role is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The step that failed.
    pub step: String,
    /// The error's code of the newest failure.
    pub code: String,
    /// Who failed in it, the newest first.
    pub servers: [String; 2],
}

/// Errors of the way to a spare, and of the spare's own state, not of what it was told.
const OF_THE_SPARE: [&str; 24] = [
    "unreachable",
    "refused",
    "connect_timed_out",
    "mute",
    "handshake_failed",
    "host_key_mismatch",
    "host_key_unusable",
    "auth_refused",
    "link_lost",
    "command_timed_out",
    "exec_refused",
    "sftp_missing",
    "sudo_refused",
    "shell_unusable",
    "spare_unusable",
    "job_lost",
    "fenced",
    "fence_busy",
    "fence_unreadable",
    "local_fault",
    "secret_missing",
    "secret_changed",
    "address_missing",
    "overran",
];

/// Of an installation, the one error that an image may cause: all others are of the way to a driver or controller, or of a
/// machine.
const OF_THE_IMAGE: &str = "driver_failed";

fn is_of_the_spare(step: &str, code: &str) -> bool {
    (step == OS_INSTALL && code != OF_THE_IMAGE) || OF_THE_SPARE.contains(&code)
}

/// Whether the newest spares of a role, newest first, say that the role is at fault.
#[must_use]
pub fn cause(trials: &[Trial]) -> Option<Cause> {
    let mut first: Option<(&str, &str, &str)> = None;
    for trial in trials {
        let End::Failed { step, code } = &trial.end else {
            return None;
        };
        if is_of_the_spare(step, code) {
            continue;
        }
        match first {
            None => first = Some((&trial.server, step, code)),
            // The same machine twice is one witness.
            Some((server, ..)) if server == trial.server => {}
            Some((server, at, code)) => {
                return (at == step).then(|| Cause {
                    step: step.clone(),
                    code: code.to_owned(),
                    servers: [server.to_owned(), trial.server.clone()],
                });
            }
        }
    }
    None
}

impl Cause {
    /// The reason of a replacement that waits for somebody to mend the role.
    #[must_use]
    pub fn reason(&self, role: &str) -> String {
        let [newest, older] = &self.servers;
        format!(
            "role_stopped: {newest} and {older} both failed in {} ({}), so {role} is at fault, not \
             they: mend its script or file and apply, or `understudy role release {role}`",
            self.step, self.code
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(text: &str) -> Trial {
        let words: Vec<_> = text.split(' ').collect();
        let end = match words[1..] {
            [step, code] => End::Failed {
                step: step.into(),
                code: code.into(),
            },
            _ => End::Sound,
        };
        let server = words[0].into();
        Trial { server, end }
    }

    fn stops(trials: &[&str]) -> bool {
        let trials: Vec<_> = trials.iter().map(|t| trial(t)).collect();
        cause(&trials).is_some()
    }

    #[test]
    fn two_spares_that_fail_in_the_same_place_stop_the_role() {
        let (a, b) = ("a install:x script_failed", "b install:x script_timed_out");
        assert!(stops(&[a, b]));
        assert!(stops(&[a, "c fence unreachable", b]));
        assert!(!stops(&[a]));
        assert!(!stops(&[a, "a install:x script_failed"]), "one machine");
        assert!(!stops(&[a, "b install:y script_failed"]), "another place");
        assert!(!stops(&[a, "b", b]), "one came through between them");
        let away = "d install:x link_lost";
        assert!(!stops(&[away, "e install:x unreachable"]), "connections");
        assert!(!stops(&["a configure:x overran", "b configure:x overran"]));
    }

    #[test]
    fn drivers_and_controllers_are_not_the_role() {
        for code in [
            "driver_silent",
            "driver_busy",
            "bmc_busy",
            "bmc_auth_refused",
            "driver_auth_refused",
            "driver_distrusted",
            "credential_unusable",
            "tls_unusable",
            "power_stuck",
            "media_stuck",
            "boot_override_left",
            "os_install_timed_out",
            "overran",
        ] {
            let [a, b] = ["a", "b"].map(|s| format!("{s} os_install {code}"));
            assert!(!stops(&[&a, &b]), "{code}");
        }
        let (a, b) = ("a os_install driver_failed", "b os_install driver_failed");
        assert!(stops(&[a, b]));
    }
}
