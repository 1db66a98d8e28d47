//! Attributes in words, alike in lists and in differences.

use crate::model::{
    DestAttrs, Family, ForwardMethod, Persistence, Scheduler, ServiceAttrs, ServiceFlags, Tunnel,
    TunnelType,
};

/// A forwarding method and its tunnel: `nat`, `tun`, `tun gue:6080+csum`.
pub(super) fn forward(out: &mut String, attrs: &DestAttrs) {
    out.push_str(match attrs.forward {
        ForwardMethod::Nat => "nat",
        ForwardMethod::Local => "local",
        ForwardMethod::Tun => "tun",
        ForwardMethod::Dr => "dr",
        ForwardMethod::Bypass => "bypass",
    });
    if attrs.forward != ForwardMethod::Tun {
        return;
    }
    let Tunnel { kind, port, flags } = attrs.tunnel;
    match kind {
        TunnelType::Ipip => {}
        TunnelType::Gue => out.push_str(&format!(" gue:{port}")),
        TunnelType::Gre => out.push_str(" gre"),
    }
    if flags & Tunnel::CHECKSUM != 0 {
        out.push_str("+csum");
    }
    if flags & Tunnel::REMOTE_CHECKSUM != 0 {
        out.push_str("+remcsum");
    }
}

/// `300s`, `300s/24` where clients of a network go together, `300s by sip`.
pub(super) fn persistence(p: &Persistence, family: Family) -> String {
    let mut out = format!("{}s", p.timeout_s);
    let one_client = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    if p.prefix != one_client {
        out.push_str(&format!("/{}", p.prefix));
    }
    if let Some(engine) = &p.engine {
        out.push_str(&format!(" by {engine}"));
    }
    out
}

/// The flags of a service, each a word.
pub(super) fn flags(flags: ServiceFlags, scheduler: &Scheduler) -> Vec<&'static str> {
    let one_packet = flags.0 & ServiceFlags::ONE_PACKET != 0;
    one_packet
        .then_some("one-packet")
        .into_iter()
        .chain(flags.scheduler_flags(scheduler))
        .collect()
}

/// The attributes of a service: scheduler, persistence, flags.
pub(super) fn service(attrs: &ServiceAttrs, family: Family) -> Vec<String> {
    let mut words = vec![attrs.scheduler.0.clone()];
    words.extend(
        attrs
            .persistence
            .as_ref()
            .map(|p| format!("persistent {}", persistence(p, family))),
    );
    words.extend(
        flags(attrs.flags, &attrs.scheduler)
            .into_iter()
            .map(str::to_owned),
    );
    words
}
