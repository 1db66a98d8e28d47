//! Events as a mail: what keepalived's mails say (`smtp_alert` in keepalived/core/smtp.c), and why. PURE.
//!
//! keepalived names its router, the real server, the virtual service, and UP or DOWN in the subject; the text says
//! which check failed, or the weight that is up beside the quorum. Here each event's own sentence has that.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::pile::Parcel;
use crate::model::{DirectorName, Event, EventKind, Mail, WallMillis};

/// No line of a mail is longer (RFC 5322, section 2.1.1).
const LONGEST_LINE: usize = 998;

/// Of a body in base64 (RFC 2045, section 6.8).
const BASE64_LINE: usize = 76;

/// Who writes.
fn author(event: &Event) -> &str {
    event
        .director
        .as_ref()
        .map_or("understudy", DirectorName::as_str)
}

/// A line of ASCII: `[lb1] server down: 10.77.1.11:80 of tcp/192.0.2.1:80`, or `[lb1] 5 events: 4 server down,
/// 1 quorum lost`.
fn subject(parcel: &Parcel) -> String {
    let words = |kind: EventKind| kind.label().replace('_', " ");
    let Some(first) = parcel.events.first() else {
        return String::new();
    };
    let by = author(first);
    if let [event] = &*parcel.events {
        let of = match (&event.server, &event.service) {
            (Some(server), Some(service)) => format!(": {server} of {service}"),
            (Some(server), None) => format!(": {server}"),
            (None, Some(service)) => format!(": {service}"),
            (None, None) => String::new(),
        };
        return format!("[{by}] {}{of}", words(event.kind));
    }
    let mut kinds: BTreeMap<_, usize> = BTreeMap::new();
    for event in &parcel.events {
        let badness = std::cmp::Reverse(event.severity);
        *kinds.entry((badness, event.kind)).or_default() += 1;
    }
    let kinds: Vec<_> = kinds
        .into_iter()
        .map(|((_, kind), count)| format!("{count} {}", words(kind)))
        .collect();
    format!(
        "[{by}] {} events: {}",
        parcel.events.len(),
        kinds.join(", ")
    )
}

fn body(parcel: &Parcel) -> String {
    let mut text = String::new();
    for event in &parcel.events {
        text.push_str(&format!(
            "{} {}: {}\r\n",
            event.at.rfc3339(),
            event.severity,
            event.text
        ));
    }
    if parcel.left_out > 0 {
        text.push_str(&format!(
            "\r\n{} earlier events are not in this mail: too many at once, or no mail could be sent. `understudy events` shows those that are kept.\r\n",
            parcel.left_out
        ));
    }
    if let Some(event) = parcel.events.first() {
        text.push_str(&format!(
            "\r\n-- \r\nunderstudy {}; how it stands: understudy status\r\n",
            author(event)
        ));
    }
    text
}

/// The whole mail, as `DATA` sends it.
pub(super) fn letter(mail: &Mail, parcel: &Parcel, now: WallMillis) -> Vec<u8> {
    let body = body(parcel);
    let plain = body.is_ascii() && body.lines().all(|line| line.len() <= LONGEST_LINE);
    let (encoding, body) = match plain {
        true => ("7bit", body),
        false => ("base64", base64(&body)),
    };
    let id = |event: &Event| format!("{}.{}.{}", author(event), event.run, event.number);
    let first = parcel.events.first().map_or_else(String::new, |e| id(e));
    let last = parcel.events.last().map_or(0, |event| event.number);
    let from = &mail.relay.from;
    let domain = from
        .rsplit_once('@')
        .map_or("localhost", |(_, domain)| domain);
    let to = mail.to.join(",\r\n ");
    // RFC 3834, section 5: no out-of-office note comes back.
    let head = format!(
        "From: {from}\r\nTo: {to}\r\nSubject: {subject}\r\nDate: {date}\r\n\
         Message-ID: <{first}-{last}@{domain}>\r\nAuto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n",
        subject = folded(&subject(parcel)),
        date = now.rfc5322(),
    );
    (head + &body).into_bytes()
}

/// No line of the subject is long (RFC 5322, section 2.2.3).
fn folded(subject: &str) -> String {
    let (mut text, mut line) = (String::new(), 0);
    for word in subject.split(' ') {
        if line > 0 && line + word.len() > 70 {
            text.push_str("\r\n");
            line = 0;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(word);
        line += word.len() + 1;
    }
    text
}

fn base64(text: &str) -> String {
    let mut out = String::new();
    for (n, c) in BASE64_STANDARD.encode(text).chars().enumerate() {
        if n > 0 && n % BASE64_LINE == 0 {
            out.push_str("\r\n");
        }
        out.push(c);
    }
    out + "\r\n"
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::model::{EventDraft, EventRing, Relay, RelayTls, Role, Severity, Wanted};

    fn mail() -> Mail {
        Mail {
            relay: Relay {
                host: "mail.example.org".to_owned(),
                port: 25,
                tls: RelayTls::None,
                credentials: None,
                ehlo: None,
                from: "lb1@example.org".to_owned(),
                timeout: Duration::from_secs(10),
            },
            to: vec!["ops@example.org".to_owned(), "night@example.org".to_owned()],
            wanted: Wanted {
                severity: Some(Severity::Info),
                kinds: [].into(),
            },
            window: Duration::ZERO,
            per_hour: 20,
            retry_for: Duration::from_hours(1),
        }
    }

    fn parcel(drafts: Vec<EventDraft>, left_out: u64) -> Parcel {
        let name = "lb1".parse().unwrap();
        let mut ring = EventRing::new(Role::Director, Some(name), WallMillis(7));
        for draft in drafts {
            ring.push(draft, WallMillis(1_795_889_078_007));
        }
        let events: Vec<Arc<Event>> = ring.after(0).cloned().collect();
        Parcel { events, left_out }
    }

    fn down(port: u16, text: &str) -> EventDraft {
        let dest = crate::model::DestKey {
            addr: [10, 77, 1, 11].into(),
            port,
        };
        EventDraft::new(EventKind::ServerDown, text)
            .service("tcp/192.0.2.1:80".parse().unwrap())
            .server(dest)
    }

    fn written(parcel: &Parcel) -> String {
        String::from_utf8(letter(&mail(), parcel, WallMillis(1_795_889_080_000))).unwrap()
    }

    #[test]
    fn one_event_is_one_mail_with_all_that_is_to_be_known() {
        let text = written(&parcel(vec![down(80, "it fails: refused")], 0));
        assert_eq!(
            text,
            "From: lb1@example.org\r\nTo: ops@example.org,\r\n night@example.org\r\n\
             Subject: [lb1] server down: 10.77.1.11:80 of tcp/192.0.2.1:80\r\n\
             Date: Sat, 28 Nov 2026 18:04:40 -0000\r\nMessage-ID: <lb1.7.1-1@example.org>\r\n\
             Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
             2026-11-28T18:04:38.007Z warning: it fails: refused\r\n\
             \r\n-- \r\nunderstudy lb1; how it stands: understudy status\r\n"
        );
    }

    #[test]
    fn several_are_counted_the_worst_first_and_those_left_out_are_told() {
        let lost = EventDraft::new(EventKind::QuorumLost, "too few");
        let text = written(&parcel(vec![down(80, "a"), down(81, "b"), lost], 3));
        assert!(
            text.contains("Subject: [lb1] 3 events: 1 quorum lost, 2 server down\r\n"),
            "{text}"
        );
        assert!(
            text.contains("\r\n3 earlier events are not in this mail"),
            "{text}"
        );
    }

    #[test]
    fn what_no_mail_can_carry_as_it_is_is_encoded() {
        for words in ["Straße gesperrt".to_owned(), "x".repeat(2_000)] {
            let text = written(&parcel(vec![down(80, &words)], 0));
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("Content-Transfer-Encoding: base64"), "{head}");
            assert!(body.lines().all(|line| line.len() <= 76), "{body}");
            let body = BASE64_STANDARD.decode(body.replace("\r\n", "")).unwrap();
            assert!(String::from_utf8(body).unwrap().contains(&words));
        }
    }

    #[test]
    fn a_long_subject_is_folded_between_words() {
        let all = EventKind::ALL
            .iter()
            .map(|kind| EventDraft::new(*kind, "text"));
        let text = written(&parcel(all.collect(), 0));
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.lines().all(|line| line.len() <= 80), "{head}");
        let unfolded = head.replace("\r\n ", " ");
        let subject = unfolded
            .lines()
            .find(|l| l.starts_with("Subject: "))
            .unwrap();
        assert!(subject.contains("1 quorum lost"), "{subject}");
    }
}
