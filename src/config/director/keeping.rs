//! Persistent clients of failed servers: what a service wants, and the one setting of the kernel that all
//! services share.

use std::ops::Range;

use toml::Spanned;

use super::{RawOnFailure, RawService, Reader};
use crate::model::{Keeping, OnFailure, Removal, ServiceKey, Sysctl, SysctlValue};

/// A service that needs the setting so, and where it says that.
#[derive(Clone, Debug)]
pub(super) struct Needs {
    keeping: Keeping,
    key: ServiceKey,
    at: Range<usize>,
}

/// What becomes of failed servers where the configuration does not say it.
fn usual(keeping: Option<Keeping>) -> OnFailure {
    match keeping {
        // A removed server's clients cannot be kept.
        Some(Keeping::Keep) => OnFailure {
            gone: Removal::Quiesce,
            busy: Removal::Quiesce,
            certificate: Removal::Quiesce,
        },
        Some(Keeping::Cut) | None => OnFailure::default(),
    }
}

impl Reader {
    /// Reads `on_failure` and `persistence_on_failure`.
    pub(super) fn on_failure(
        &mut self,
        key: ServiceKey,
        s: &RawService,
    ) -> (OnFailure, Option<Keeping>) {
        let wanted = s.persistence_on_failure.as_ref();
        let keeping = wanted.and_then(|text| {
            self.value(text, |t| match t {
                "keep" => Ok(Keeping::Keep),
                "cut" => Ok(Keeping::Cut),
                _ => Err(format!(
                    "{t:?} is not what becomes of persistent clients: write keep or cut"
                )),
            })
        });
        let usual = usual(keeping);
        let on_failure = s.on_failure.as_ref().map_or(usual, |raw| {
            let RawOnFailure {
                gone,
                busy,
                certificate,
            } = raw.get_ref();
            OnFailure {
                gone: gone.unwrap_or(usual.gone),
                busy: busy.unwrap_or(usual.busy),
                certificate: certificate.unwrap_or(usual.certificate),
            }
        });
        let (Some(wanted), Some(keeping)) = (wanted, keeping) else {
            return (on_failure, None);
        };
        if s.persistence_timeout.is_none() {
            let message = "persistence_on_failure needs persistence_timeout: without it no client is bound to a server";
            self.bad.push(wanted.span(), message);
        }
        if keeping == Keeping::Keep
            && on_failure.removes()
            && let Some(at) = s.on_failure.as_ref().map(Spanned::span)
        {
            let message = "persistence_on_failure = \"keep\" is for servers that are quiesced: one that is removed loses its clients, leave \"remove\" out";
            self.bad.push(at, message);
        }
        // Who removes all that fail cuts them without the setting.
        if on_failure.quiesces() {
            self.need_setting(keeping, key, wanted.span());
        }
        (on_failure, Some(keeping))
    }

    fn need_setting(&mut self, keeping: Keeping, key: ServiceKey, at: Range<usize>) {
        match self.templates.clone() {
            Some(other) if other.keeping != keeping => {
                let (line, _) = self.bad.position(other.at.start);
                let (setting, other_word) = (Keeping::SETTING, other.keeping.word());
                let message = format!(
                    "persistence_on_failure is the same in all services, since {setting} is: {} has \"{other_word}\" in line {line}; \"cut\" stands beside \"keep\" only where on_failure removes all failed servers",
                    other.key
                );
                self.bad.push(at, message);
            }
            Some(_) => {}
            None => self.templates = Some(Needs { keeping, key, at }),
        }
    }

    /// The setting that the services need comes to the declared ones, which must not say otherwise.
    pub(super) fn declare_setting(&mut self, declared: &mut Vec<Sysctl>) {
        let Some(needs) = self.templates.take() else {
            return;
        };
        let Ok(name) = Keeping::SETTING.parse() else {
            return;
        };
        let wanted = needs.keeping.setting();
        match declared.iter().find(|s| s.name == name) {
            Some(found) if found.value.is_on() != wanted => {
                let message = format!(
                    "persistence_on_failure = \"{}\" needs {name} = {}, and [kernel] says {}: leave it out there",
                    needs.keeping.word(),
                    SysctlValue::from(wanted),
                    found.value
                );
                self.bad.push(needs.at, message);
            }
            Some(_) => {}
            None => declared.push(Sysctl {
                name,
                value: wanted.into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{
        config::{Director, director::parse},
        model::{OnFailure, Removal},
    };

    fn read(services: &[&str], kernel: &str) -> Result<Director, String> {
        let mut text =
            format!("[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n[kernel]\n{kernel}\n");
        for (n, service) in services.iter().enumerate() {
            text.push_str(&format!(
                "[[virtual_service]]\naddress = \"192.0.2.{n}:80\"\nscheduler = \"rr\"\nforward = \"nat\"\npersistence_timeout = \"60s\"\n{service}\n"
            ));
        }
        parse(Path::new("d.toml"), &text).map_err(|e| e.to_string())
    }

    fn settings(config: &Director) -> Vec<String> {
        let text = |s: &crate::model::Sysctl| format!("{} = {}", s.name, s.value);
        config.kernel.iter().map(text).collect()
    }

    const KEEP: &str = "persistence_on_failure = \"keep\"";
    const CUT: &str = "persistence_on_failure = \"cut\"";
    const REMOVE: &str = "on_failure = { busy = \"remove\", certificate = \"remove\" }";

    #[test]
    fn who_keeps_clients_keeps_the_failed_server_too() {
        let config = read(&[KEEP], "").unwrap();
        assert_eq!(
            settings(&config),
            ["net.ipv4.vs.expire_quiescent_template = 0"]
        );
        let all = OnFailure {
            gone: Removal::Quiesce,
            busy: Removal::Quiesce,
            certificate: Removal::Quiesce,
        };
        let found = config.services.values().map(|s| s.on_failure);
        assert_eq!(found.collect::<Vec<_>>(), [all]);
    }

    #[test]
    fn who_cuts_clients_has_the_setting_written_where_a_server_is_quiesced() {
        let setting = ["net.ipv4.vs.expire_quiescent_template = 1"];
        assert_eq!(settings(&read(&[CUT], "").unwrap()), setting);
        let declared = "\"net.ipv4.vs.expire_quiescent_template\" = 1";
        assert_eq!(settings(&read(&[CUT, CUT], declared).unwrap()), setting);
        let removing = format!("{CUT}\n{REMOVE}");
        assert!(settings(&read(&[&removing], "").unwrap()).is_empty());
        let both = read(&[KEEP, &removing], "").unwrap();
        assert_eq!(
            settings(&both),
            ["net.ipv4.vs.expire_quiescent_template = 0"]
        );
        assert!(settings(&read(&[""], "").unwrap()).is_empty());
    }
}
