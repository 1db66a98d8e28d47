//! What a note is for people elsewhere: each becomes one event.

use super::{Known, Note, standby::some_of};
use crate::model::{
    DestKey, EventDraft, EventKind, OrderedPlace, Removal, ServiceKey, wire::ReplacementState,
};

/// The event of a note. Of ten thousand servers that pass for the first time after a start nobody is told.
#[must_use]
pub fn event(note: &Note) -> Option<EventDraft> {
    Some(match note {
        // That it came in was told.
        Note::FirstUp(..) | Note::WasWarm(..) | Note::Ramps(..) => return None,
        Note::WentUp(service, dest) => {
            of(EventKind::ServerUp, *service, *dest, "passes its checks")
        }
        Note::WentDown(service, dest, why, detail, removal) => {
            let found = detail
                .as_deref()
                .map_or_else(String::new, |d| format!(" ({d})"));
            let what = format!("fails its checks: {why}{found}; {}", becomes(*removal));
            of(down(*removal), *service, *dest, &what).reason(why.label())
        }
        Note::Removed(service, dest, why, removal) => {
            let what = format!("fails otherwise than before: {why}; {}", becomes(*removal));
            of(down(*removal), *service, *dest, &what).reason(why.label())
        }
        Note::HeldOut(service, dest, left) => {
            let what = format!(
                "passes its checks again, and is held out for {} s because it came and went",
                left.as_secs()
            );
            of(EventKind::ServerHeldOut, *service, *dest, &what)
        }
        Note::Blind(service, dest, check, detail) => {
            let found = detail
                .as_deref()
                .map_or_else(String::new, |d| format!(": {d}"));
            let what = format!(
                "cannot be checked ({check}) on this host{found}; nobody knows how it is, it stays as it is"
            );
            of(EventKind::CheckBlind, *service, *dest, &what)
        }
        Note::Advised(service, dest, Some(advice)) => {
            let what = format!("is to have another weight, as a check says: {advice}");
            of(EventKind::ServerWeight, *service, *dest, &what)
        }
        Note::Advised(service, dest, None) => {
            let what = "has its configured weight again";
            of(EventKind::ServerWeight, *service, *dest, what)
        }
        Note::Ordered(OrderedPlace { service, server }, Some(order)) => {
            let what = format!("was {order}, an operator's order");
            of(EventKind::Ordered, *service, *server, &what)
        }
        Note::Ordered(OrderedPlace { service, server }, None) => {
            let what =
                "is as configured and as its checks say again: an operator took an order back";
            of(EventKind::OrderTakenBack, *service, *server, what)
        }
        Note::OrderEnded(OrderedPlace { service, server }, order) => {
            let what =
                format!("is as configured again: the time of an order is over, it was {order}");
            of(EventKind::OrderEnded, *service, *server, &what)
        }
        Note::Drained(OrderedPlace { service, server }, connections) => {
            let what = format!("is drained and out of the service: {}", cut(*connections));
            of(EventKind::ServerDrained, *service, *server, &what)
        }
        Note::Left(OrderedPlace { service, server }, connections) => {
            let what = format!("is no longer wanted and has left: {}", cut(*connections));
            of(EventKind::ServerLeft, *service, *server, &what)
        }
        Note::Reloaded(changes) => {
            let text = format!("the new configuration is in force: {changes}");
            EventDraft::new(EventKind::Reloaded, &text)
        }
        Note::QuorumLost(service, live, needed, sorry) => {
            let who = match sorry.is_empty() {
                true => "no sorry server is up, those that are left go on".to_owned(),
                false => {
                    let sorry: Vec<_> = sorry.iter().map(ToString::to_string).collect();
                    format!(
                        "sorry servers take the new connections: {}",
                        sorry.join(", ")
                    )
                }
            };
            let text = format!(
                "virtual service {service} lost its quorum: weight {live} is up, {needed} is needed; {who}"
            );
            EventDraft::new(EventKind::QuorumLost, &text).service(*service)
        }
        Note::QuorumHeld(service, live) => {
            let text = format!(
                "virtual service {service} has its quorum again: weight {live} is up, the real servers serve"
            );
            EventDraft::new(EventKind::QuorumHeld, &text).service(*service)
        }
        Note::LinkDown(interface, servers) => {
            let text = format!(
                "the link of {interface} is down: none of the {servers} servers behind it is taken out or replaced until it is up; look at cable, switch and driver"
            );
            EventDraft::new(EventKind::LinkDown, &text)
        }
        Note::LinkUp(interface) => {
            let text = format!(
                "the link of {interface} is up again: the servers behind it are asked anew"
            );
            EventDraft::new(EventKind::LinkUp, &text)
        }
        Note::MassFailure(failing, all, witnesses) => {
            let text = format!(
                "{failing} of {all} servers fail at once: the director doubts itself, asks its {witnesses} witnesses, and holds requests back, and removals as configured"
            );
            EventDraft::new(EventKind::MassFailure, &text)
        }
        Note::MassFailureKnown(Known::CutOff) => EventDraft::new(
            EventKind::DirectorCutOff,
            "no witness answers: the director is cut off itself, nobody is taken out or replaced until one does; look at its network",
        ),
        Note::MassFailureKnown(Known::Real | Known::Nothing) => EventDraft::new(
            EventKind::MassFailureReal,
            "a witness answers, or there is none to ask: the servers failed, they are taken out",
        ),
        Note::MassFailureOver => EventDraft::new(
            EventKind::MassFailureOver,
            "servers do not fail in masses any more: they are judged as ever",
        ),
        Note::Panic(service, stay) if stay.is_empty() => {
            let text = format!("enough servers of {service} are up again: those that fail are out");
            EventDraft::new(EventKind::PanicOver, &text).service(*service)
        }
        Note::Panic(service, stay) => {
            let stay: Vec<_> = stay.iter().map(ToString::to_string).collect();
            let text = format!(
                "fewer servers of {service} are left than panic_threshold allows: {} stay in though they fail, until others are up",
                stay.join(", ")
            );
            EventDraft::new(EventKind::Panic, &text).service(*service)
        }
        Note::Requested(key) => {
            let text = format!("replacement of failed server {} was requested", key.failed);
            EventDraft::new(EventKind::ReplacementRequested, &text)
                .server(key.failed)
                .replacement(key)
        }
        Note::Held(server, guard) => {
            let text = format!("replacement of failed server {server} is held back: {guard}");
            EventDraft::new(EventKind::ReplacementHeld, &text)
                .server(*server)
                .reason(guard.label())
        }
        Note::Recovered(key) => {
            let text = format!(
                "failed server {} answers again, or was put aside by an operator: its replacement is called off",
                key.failed
            );
            EventDraft::new(EventKind::ReplacementCalledOff, &text)
                .server(key.failed)
                .replacement(key)
        }
        Note::Progress(key, state, reason) => {
            let why = reason
                .as_deref()
                .map_or_else(String::new, |r| format!(": {r}"));
            let (kind, text) = match state {
                ReplacementState::Succeeded => (
                    EventKind::ReplacementSucceeded,
                    format!(
                        "a spare serves in the place of failed server {}",
                        key.failed
                    ),
                ),
                state => (
                    EventKind::ReplacementProgress,
                    format!(
                        "replacement of failed server {} is {}{why}",
                        key.failed,
                        state.as_str()
                    ),
                ),
            };
            EventDraft::new(kind, &text)
                .server(key.failed)
                .replacement(key)
                .reason(state.as_str())
        }
        Note::Gave(key, why) => {
            let text = format!(
                "replacement of failed server {} came to nothing: {why}; it is asked for again later if the server still fails",
                key.failed
            );
            EventDraft::new(EventKind::ReplacementFailed, &text)
                .server(key.failed)
                .replacement(key)
        }
        Note::CalledOff(key, why) => {
            let text = format!("replacement of server {} was called off: {why}", key.failed);
            EventDraft::new(EventKind::ReplacementCalledOff, &text)
                .server(key.failed)
                .replacement(key)
        }
        Note::Joined(m) => {
            let origins: Vec<_> = m.origins.iter().map(ToString::to_string).collect();
            let text = format!(
                "stand-in {} was announced in place of {}, it enters as soon as it passes its checks",
                m.spare.name,
                origins.join(", ")
            );
            let draft = EventDraft::new(EventKind::StandInJoined, &text);
            whose(draft, m)
        }
        Note::Leaving(m) => {
            let text = format!("stand-in {} is withdrawn", m.spare.name);
            whose(EventDraft::new(EventKind::StandInLeaving, &text), m)
        }
        Note::GivenBack(m, well) => {
            let why = match well {
                true => "the server is well again and gets its place back",
                false => "the configuration names neither it nor those whose place it has",
            };
            let text = format!("stand-in {} is given back: {why}", m.spare.name);
            whose(EventDraft::new(EventKind::StandInGivenBack, &text), m)
        }
        Note::StandbyReady(spare, origins) => {
            let text = format!(
                "the warm spare {} passes its checks: it could take the place of {} at once",
                spare.name,
                some_of(origins, "or")
            );
            EventDraft::new(EventKind::StandbyReady, &text)
        }
        Note::StandbyFails(failure) => {
            EventDraft::new(EventKind::StandbyFails, &failure.to_string())
                .service(failure.service)
                .server(failure.server)
                .reason(failure.reason.label())
        }
        Note::Unlisted(id) => {
            let text = format!(
                "provisioner does not list the stand-in of replacement {id}, which serves: it keeps its place; was the provisioner's store lost?"
            );
            EventDraft::new(EventKind::StandInUnlisted, &text).replacement(id)
        }
        Note::ProvisionerBack => EventDraft::new(EventKind::ProvisionerUp, "provisioner answers"),
        Note::ProvisionerSilent(why) => {
            let text = format!(
                "provisioner does not answer: {why}; failed servers are taken out, but not replaced"
            );
            EventDraft::new(EventKind::ProvisionerDown, &text)
        }
    })
}

/// With how many connections somebody left.
fn cut(connections: u64) -> String {
    match connections {
        0 => "no connection was left".to_owned(),
        n => format!("its time was over, and {n} connections were cut off"),
    }
}

fn of(kind: EventKind, service: ServiceKey, dest: DestKey, what: &str) -> EventDraft {
    EventDraft::new(kind, &format!("real server {dest} of {service} {what}"))
        .service(service)
        .server(dest)
}

/// About the server whose place it takes.
fn whose(draft: EventDraft, member: &crate::model::wire::Member) -> EventDraft {
    let draft = draft.replacement(&member.replacement);
    match member.origins.first() {
        Some(origin) => draft.server(*origin),
        None => draft,
    }
}

const fn down(removal: Removal) -> EventKind {
    match removal {
        Removal::Remove => EventKind::ServerDown,
        Removal::Quiesce => EventKind::ServerQuiesced,
    }
}

const fn becomes(removal: Removal) -> &'static str {
    match removal {
        Removal::Remove => "it is taken out",
        Removal::Quiesce => "it keeps its connections and gets no new ones",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FailReason, Severity};

    fn told(note: &Note) -> EventDraft {
        event(note).expect("an event")
    }

    #[test]
    fn a_failure_says_of_whom_why_and_what_becomes_of_it() {
        let service = "tcp/192.0.2.1:80".parse().unwrap();
        let dest = DestKey {
            addr: [10, 77, 1, 11].into(),
            port: 80,
        };
        let failed = |removal| {
            let detail = Some("\"busy\"".into());
            told(&Note::WentDown(
                service,
                dest,
                FailReason::Status(503),
                detail,
                removal,
            ))
        };
        let out = failed(Removal::Remove);
        assert_eq!(
            out.text,
            "real server 10.77.1.11:80 of tcp/192.0.2.1:80 fails its checks: HTTP status 503 (\"busy\"); it is taken out"
        );
        assert_eq!(out.kind, EventKind::ServerDown);
        assert_eq!(out.reason.as_deref(), Some("status"));
        assert_eq!(
            (out.service, out.server),
            (Some(service), Some(dest.into()))
        );
        let quiesced = failed(Removal::Quiesce);
        assert_eq!(quiesced.kind, EventKind::ServerQuiesced);
        assert!(
            quiesced
                .text
                .ends_with("it keeps its connections and gets no new ones")
        );
    }

    #[test]
    fn a_lost_quorum_wants_somebody_and_says_who_serves() {
        let service = "tcp/192.0.2.1:80".parse().unwrap();
        let alone = told(&Note::QuorumLost(service, 1, 3, Vec::new()));
        assert_eq!(alone.kind.severity(), Severity::Error);
        assert_eq!(
            alone.text,
            "virtual service tcp/192.0.2.1:80 lost its quorum: weight 1 is up, 3 is needed; no sorry server is up, those that are left go on"
        );
        let dest = DestKey {
            addr: [10, 77, 1, 99].into(),
            port: 80,
        };
        let sorry = told(&Note::QuorumLost(service, 1, 3, vec![dest]));
        assert!(
            sorry
                .text
                .ends_with("sorry servers take the new connections: 10.77.1.99:80")
        );
    }
}
