//! Keys of what holds removals and requests back: `[mass_failure]`, `panic_threshold`.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{MassFailure, PanicRule, RawService, Reader, Witness};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMassFailure {
    share: Option<Spanned<String>>,
    within: Option<Spanned<String>>,
    #[serde(default)]
    witnesses: Vec<Spanned<String>>,
    removals: Option<Spanned<String>>,
    hold_for: Option<Spanned<String>>,
}

/// Reads `50%`.
fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').and_then(|n| n.parse().ok());
    let number: Option<u8> = number.filter(|n| *n <= 100);
    number.ok_or_else(|| format!("{text:?} is no share: write \"0%\" to \"100%\""))
}

fn witness(text: &str) -> Result<Witness, String> {
    if let Ok(at) = text.parse::<SocketAddr>() {
        let (addr, port) = (at.ip(), Some(at.port()));
        return Ok(Witness { addr, port });
    }
    let addr = text.parse().map_err(|_e| {
        format!("{text:?} is no witness: write \"192.0.2.254\" for an echo, \"192.0.2.254:22\" for a TCP connection")
    })?;
    Ok(Witness { addr, port: None })
}

impl Reader {
    pub(super) fn mass_failure(&mut self, raw: &RawMassFailure) -> MassFailure {
        let share = raw.share.as_ref().and_then(|s| self.value(s, percent));
        let holds = raw.removals.as_ref().and_then(|r| {
            self.value(r, |text| match text {
                "hold" => Ok(true),
                "go" => Ok(false),
                _ => Err(format!("{text:?} is no choice: write hold or go")),
            })
        });
        let witnesses = raw.witnesses.iter();
        MassFailure {
            share: share.unwrap_or(50),
            within: self.duration(raw.within.as_ref(), Duration::from_secs(10)),
            witnesses: witnesses.filter_map(|w| self.value(w, witness)).collect(),
            holds_removals: holds.unwrap_or(true),
            hold_for: self.duration(raw.hold_for.as_ref(), Duration::from_secs(30)),
        }
    }

    pub(super) fn panic(&mut self, s: &RawService) -> PanicRule {
        let threshold = s.panic_threshold.as_ref();
        let threshold = threshold.and_then(|t| self.value(t, percent)).unwrap_or(0);
        let stays = s.panic.as_ref().and_then(|p| {
            self.value(p, |text| match text {
                "stay" => Ok(true),
                "drop" => Ok(false),
                _ => Err(format!("{text:?} is no choice: write stay or drop")),
            })
        });
        if let (None, Some(orphan)) = (&s.panic_threshold, &s.panic) {
            let message = "panic goes with panic_threshold: say below which share it begins";
            self.bad.push(orphan.span(), message);
        }
        let stays = stays.unwrap_or(true);
        PanicRule { threshold, stays }
    }
}
