//! Keys of a virtual service that need more than a word: scheduler, forwarding, tunnel.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{RawService, Reader, duration};
use crate::model::{
    Checks, DestAttrs, DestKey, ForwardMethod, Initial, LONGEST_NAME, Protocol, QuorumRule,
    Ramping, Scheduler, ServiceFlags, ServiceKey, Tunnel, TunnelType,
};

/// The least weight that a slow start does something with where it cannot be multiplied.
const LEAST_WHOLE: u32 = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTunnel {
    r#type: Spanned<String>,
    port: Option<Spanned<i64>>,
    checksum: Option<Spanned<String>>,
}

/// Reads the name of a scheduler: an open set, of which the kernel alone knows what it has.
pub(super) fn scheduler(text: &str) -> Result<Scheduler, String> {
    match is_module(text) {
        true => Ok(Scheduler(text.to_owned())),
        false => Err(format!(
            "{text:?} is no scheduler's name: that is 1 to {LONGEST_NAME} characters of a-z, 0-9, '_' and '-', as in {}",
            Scheduler::KNOWN.join(", ")
        )),
    }
}

/// Reads the name of a persistence engine: as open a set, of which Linux ships one.
pub(super) fn engine(text: &str) -> Result<String, String> {
    match is_module(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no persistence engine's name: that is 1 to {LONGEST_NAME} characters of a-z, 0-9, '_' and '-', as in sip"
        )),
    }
}

fn is_module(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(fits)
}

/// Reads a flag of `scheduler`. The bits of sh's words are those of mh's: a word for the other one
/// is a mistake.
pub(super) fn scheduler_flag(text: &str, scheduler: &Scheduler) -> Result<u32, String> {
    let flag = ServiceFlags::scheduler_flag(text).ok_or_else(|| format!("{text:?} is no scheduler flag: write flag-1, flag-2, flag-3, sh-fallback, sh-port, mh-fallback or mh-port"))?;
    match text.split_once('-') {
        Some((of @ ("sh" | "mh"), _)) if of != scheduler.0 && !scheduler.0.is_empty() => Err(
            format!("{text:?} is a flag of scheduler {of}, not of {scheduler}"),
        ),
        _ => Ok(flag),
    }
}

/// Reads a forwarding method.
pub(super) fn forward(text: &str) -> Result<ForwardMethod, String> {
    // `__ip_vs_get_out_rt` (net/netfilter/ipvs/ip_vs_xmit.c) sees a local route for itself.
    if text == "local" {
        return Err("forward = \"local\" is not to be written: the kernel delivers to this host by itself where a real server's address is one of this host's; write nat, dr or tun".to_owned());
    }
    text.parse()
        .map_err(|e: crate::model::NotAForwardMethod| e.to_string())
}

impl Reader {
    /// Reads `quorum` and `hysteresis`. A quorum that all servers together do not reach is never held:
    /// keepalived lowers it in silence.
    pub(super) fn quorum(
        &mut self,
        s: &RawService,
        servers: &BTreeMap<DestKey, DestAttrs>,
    ) -> QuorumRule {
        let usual = QuorumRule::default();
        let most = i64::from(u32::MAX);
        let rule = QuorumRule {
            quorum: self.number(s.quorum.as_ref(), usual.quorum, "quorum", 1..=most),
            hysteresis: self.number(s.hysteresis.as_ref(), 0, "hysteresis", 0..=most),
        };
        if let Some(at) = &s.hysteresis
            && rule.hysteresis >= rule.quorum
        {
            let message =
                "hysteresis is below quorum: else only the last server's end would lose it";
            self.bad.push(at.span(), message);
        }
        let all: u64 = servers.values().map(|a| u64::from(a.weight.get())).sum();
        if let Some(at) = s.hysteresis.as_ref().or(s.quorum.as_ref())
            && u64::from(rule.quorum) + u64::from(rule.hysteresis) > all
        {
            let message = format!(
                "quorum and hysteresis together are at most {all}, the weight of all real servers: above it a lost quorum would not come back"
            );
            self.bad.push(at.span(), message);
        }
        rule
    }

    /// Reads `initial`.
    pub(super) fn initial(&mut self, s: &RawService) -> Initial {
        let read = |t: &str| match t {
            "down" => Ok(Initial::Down),
            "up" => Ok(Initial::Up),
            _ => Err(format!(
                "{t:?} is not how a new server comes in: write down, to be in after its checks, or up, to be in at once"
            )),
        };
        let initial = s.initial.as_ref().and_then(|text| self.value(text, read));
        initial.unwrap_or_default()
    }

    /// Reads `slow_start`.
    pub(super) fn slow_start(
        &mut self,
        s: &RawService,
        scheduler: &Scheduler,
        servers: &BTreeMap<DestKey, DestAttrs>,
    ) -> Option<Duration> {
        let at = s.slow_start.as_ref()?;
        let over = self.value(at, duration::parse)?;
        self.at_least(Some(at), over, Duration::from_secs(1), "slow_start");
        let weights = servers.values().map(|attrs| attrs.weight.get());
        let least = weights.filter(|weight| *weight > 0).min();
        match scheduler.ramping() {
            Ramping::Scaled => {}
            Ramping::Whole if least.is_none_or(|least| least >= LEAST_WHOLE) => {}
            Ramping::Whole => self.bad.push(
                at.span(),
                format!("slow_start with {scheduler} needs weights of at least {LEAST_WHOLE}: it compares them with connections, so that they cannot be multiplied, and a smaller one has too few steps"),
            ),
            // Of no name at all something else is said.
            Ramping::Never(_) if scheduler.0.is_empty() => {}
            Ramping::Never(why) => {
                let message = format!("slow_start is not for scheduler {scheduler}: {why}");
                self.bad.push(at.span(), message);
            }
        }
        Some(over)
    }

    /// The checks of the sorry servers; one of TCP where none is named.
    pub(super) fn sorry_checks(
        &mut self,
        key: ServiceKey,
        forward: ForwardMethod,
        s: &RawService,
    ) -> Checks {
        let Some(first) = s.sorry_server.first() else {
            if let Some(orphan) = &s.sorry_check {
                let message = "sorry_check needs a sorry_server";
                self.bad.push(orphan.span(), message);
            }
            return Checks::default();
        };
        let udp = matches!(key, ServiceKey::Addr(Protocol::Udp | Protocol::Sctp, _));
        if s.sorry_check.is_none() && udp {
            let message = format!(
                "{key} is not TCP: say which check tells the health of its sorry servers, sorry_check = {{ icmp = {{}} }} for example, or that they have none, sorry_check = {{ none = {{}} }}"
            );
            self.bad.push(first.address.span(), message);
            return Checks::default();
        }
        let at = first.address.span();
        let checks = self.checks(s.sorry_check.as_ref(), None, (key, forward), at);
        if let Some(raw) = &s.sorry_check
            && checks.all.iter().any(|check| check.via.through)
        {
            let message = "a sorry server is asked at its own address: sorry_check without through";
            self.bad.push(raw.span(), message);
        }
        checks
    }

    /// Reads `[virtual_service.tunnel]`.
    pub(super) fn tunnel(
        &mut self,
        raw: Option<&Spanned<RawTunnel>>,
        way: ForwardMethod,
    ) -> Tunnel {
        let Some(at) = raw else {
            return Tunnel::default();
        };
        let raw = at.get_ref();
        if way != ForwardMethod::Tun {
            self.bad
                .push(at.span(), "a tunnel belongs to forward = \"tun\"");
        }
        let kind = self
            .value(&raw.r#type, |t| match t {
                "ipip" => Ok(TunnelType::Ipip),
                "gue" => Ok(TunnelType::Gue),
                "gre" => Ok(TunnelType::Gre),
                _ => Err(format!("{t:?} is no tunnel type: write ipip, gue or gre")),
            })
            .unwrap_or_default();
        let port = match (&raw.port, kind) {
            (Some(_), TunnelType::Gue) => self.number(raw.port.as_ref(), 0, "port", 1..=65_535),
            (None, TunnelType::Gue) => {
                let message = "a gue tunnel needs the UDP port on which its servers decapsulate";
                self.bad.push(raw.r#type.span(), message);
                0
            }
            (Some(port), TunnelType::Ipip | TunnelType::Gre) => {
                self.bad.push(port.span(), "only a gue tunnel has a port");
                0
            }
            (None, TunnelType::Ipip | TunnelType::Gre) => 0,
        };
        let checksum = raw.checksum.as_ref().and_then(|c| {
            self.value(c, |t| match (t, kind) {
                ("none", _) => Ok(0),
                ("checksum", TunnelType::Gue | TunnelType::Gre) => Ok(Tunnel::CHECKSUM),
                ("remote", TunnelType::Gue) => Ok(Tunnel::REMOTE_CHECKSUM),
                ("checksum" | "remote", _) => Err(format!(
                    "{t:?} is not for this type of tunnel: gue takes checksum and remote, gre takes checksum, ipip none"
                )),
                _ => Err(format!("{t:?} is no checksum: write none, checksum or remote")),
            })
        });
        Tunnel {
            kind,
            port,
            flags: checksum.unwrap_or(0),
        }
    }
}
