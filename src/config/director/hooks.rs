//! Who is told of events: `[[webhook]]`, and `[[mail]]` over `[smtp]`.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Reader,
    check::{RawTls, ehlo, sni_of},
};
use crate::model::{
    EventKind, Hook, Hooks, Mail, Relay, RelayTls, Severity, TlsOptions, Wanted, Webhook,
};

/// An event that could not be told is given up after this where nobody says otherwise.
const RETRY_FOR: Duration = Duration::from_hours(24);

/// The ends of what is bad: whoever is told of that by mail is told of these.
const GOOD_NEWS: [EventKind; 8] = [
    EventKind::ServerUp,
    EventKind::QuorumHeld,
    EventKind::PanicOver,
    EventKind::LinkUp,
    EventKind::MassFailureOver,
    EventKind::ReplacementSucceeded,
    EventKind::ProvisionerUp,
    EventKind::StateKept,
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWebhook {
    name: Spanned<String>,
    url: Spanned<String>,
    secret: Option<Spanned<PathBuf>>,
    events: Option<Spanned<RawWanted>>,
    timeout: Option<Spanned<String>>,
    retry_for: Option<Spanned<String>>,
    tls: Option<Spanned<RawTls>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWanted {
    severity: Option<Spanned<String>>,
    #[serde(default)]
    kinds: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSmtp {
    relay: Spanned<String>,
    from: Spanned<String>,
    tls: Option<Spanned<RawTls>>,
    starttls: Option<Spanned<RawTls>>,
    credentials: Option<Spanned<PathBuf>>,
    ehlo: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMail {
    name: Spanned<String>,
    to: Spanned<Vec<Spanned<String>>>,
    events: Option<Spanned<RawWanted>>,
    window: Option<Spanned<String>>,
    per_hour: Option<Spanned<i64>>,
    retry_for: Option<Spanned<String>>,
}

impl Reader {
    /// All hooks. Names are told in logs and metrics, so there is one for each.
    pub(super) fn hooks(
        &mut self,
        webhooks: &[RawWebhook],
        smtp: Option<&Spanned<RawSmtp>>,
        mails: &[RawMail],
    ) -> Hooks {
        let mut hooks = Hooks::new();
        let mut places: Vec<(String, usize)> = Vec::new();
        for raw in webhooks {
            let webhook = self.webhook(raw);
            if let (Some(name), Some(webhook)) = (self.hook_name(&raw.name, &mut places), webhook) {
                hooks.insert(name, Hook::Webhook(webhook));
            }
        }
        let relay = smtp.map(|raw| self.relay(raw.get_ref()));
        if let (Some(smtp), []) = (smtp, mails) {
            let message = "[smtp] alone writes to nobody: add [[mail]] with name and to";
            self.bad.push(smtp.span(), message);
        }
        for raw in mails {
            let name = self.hook_name(&raw.name, &mut places);
            match &relay {
                None => {
                    let message = "[[mail]] goes over a relay: add [smtp] with relay and from";
                    self.bad.push(raw.name.span(), message);
                }
                Some(relay) => {
                    let mail = self.mail(raw, relay.clone());
                    if let (Some(name), Some(mail)) = (name, mail) {
                        hooks.insert(name, Hook::Mail(mail));
                    }
                }
            }
        }
        hooks
    }

    fn hook_name(
        &mut self,
        raw: &Spanned<String>,
        places: &mut Vec<(String, usize)>,
    ) -> Option<String> {
        let name = self.value(raw, hook_name)?;
        if let Some((_, first)) = places.iter().find(|(other, _)| *other == name) {
            let (line, _) = self.bad.position(*first);
            let message = format!(
                "hook {name:?} stands here a second time, first in line {line}: take another name"
            );
            self.bad.push(raw.span(), message);
        }
        places.push((name.clone(), raw.span().start));
        Some(name)
    }

    fn webhook(&mut self, raw: &RawWebhook) -> Option<Webhook> {
        let everything = Wanted {
            severity: Some(Severity::Info),
            kinds: [].into(),
        };
        let wanted = self.wanted(raw.events.as_ref(), everything);
        let timeout = self.attempt_time(raw.timeout.as_ref(), Duration::from_secs(5));
        let retry_for = self.retry_for(raw.retry_for.as_ref());
        let secret = raw.secret.as_ref().map(|s| self.secret(s));
        let url = self.value(&raw.url, url);
        let host = url.as_ref().map_or("", |url| &url.host);
        let tls = match (&raw.tls, url.as_ref().is_none_or(|url| url.secure)) {
            (Some(tls), true) => Some(self.hook_tls(tls, host)),
            (Some(tls), false) => {
                let message = "tls belongs to a url that begins with https://";
                self.bad.push(tls.span(), message);
                None
            }
            (None, true) => Some(TlsOptions {
                sni: sni_of(host),
                ..self.tls(&RawTls::default(), None)
            }),
            (None, false) => None,
        };
        let url = url?;
        Some(Webhook {
            host: url.host,
            port: url.port,
            target: url.target,
            authority: url.authority,
            tls,
            secret,
            wanted,
            timeout,
            retry_for,
        })
    }

    fn relay(&mut self, raw: &RawSmtp) -> Relay {
        let (host, port) = self.value(&raw.relay, host_and_port).unwrap_or_default();
        let from = self.value(&raw.from, mail_address).unwrap_or_default();
        let tls = match (&raw.tls, &raw.starttls) {
            (None, None) => RelayTls::None,
            (Some(tls), None) => RelayTls::Implicit(self.relay_tls(tls, &host)),
            (None, Some(tls)) => RelayTls::Starttls(self.relay_tls(tls, &host)),
            (Some(_), Some(tls)) => {
                let message = "TLS begins with the first byte (tls) or later (starttls): keep one";
                self.bad.push(tls.span(), message);
                RelayTls::None
            }
        };
        let own = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if let Some(credentials) = &raw.credentials
            && raw.tls.is_none()
            && raw.starttls.is_none()
            && !own
        {
            let message = "the password would cross the network for all to read: add starttls = {}, or tls = {} where the relay begins with TLS (port 465)";
            self.bad.push(credentials.span(), message);
        }
        Relay {
            host,
            port,
            tls,
            credentials: raw.credentials.as_ref().map(|c| self.secret(c)),
            ehlo: raw.ehlo.as_ref().and_then(|name| self.value(name, ehlo)),
            from,
            timeout: self.attempt_time(raw.timeout.as_ref(), Duration::from_secs(30)),
        }
    }

    fn mail(&mut self, raw: &RawMail, relay: Relay) -> Option<Mail> {
        let bad_news = Wanted {
            severity: Some(Severity::Warning),
            kinds: GOOD_NEWS.into(),
        };
        if raw.to.get_ref().is_empty() {
            self.bad.push(raw.to.span(), "to names nobody");
        }
        let mut to = Vec::new();
        for address in raw.to.get_ref() {
            to.extend(self.value(address, mail_address));
        }
        let window = self.duration(raw.window.as_ref(), Duration::from_secs(10));
        if let Some(at) = &raw.window
            && window > Duration::from_hours(1)
        {
            self.bad.push(at.span(), "window is at most 1h");
        }
        Some(Mail {
            relay,
            to,
            wanted: self.wanted(raw.events.as_ref(), bad_news),
            window,
            per_hour: self.number(raw.per_hour.as_ref(), 20, "per_hour", 1..=3_600),
            retry_for: self.retry_for(raw.retry_for.as_ref()),
        })
    }

    fn wanted(&mut self, raw: Option<&Spanned<RawWanted>>, usual: Wanted) -> Wanted {
        let Some(at) = raw else { return usual };
        let raw = at.get_ref();
        if raw.severity.is_none() && raw.kinds.is_empty() {
            let message = "events names nothing: write severity = \"warning\" for all that is at least so bad, kinds = [\"server_up\"] for others beside, or both";
            self.bad.push(at.span(), message);
        }
        let severity = raw
            .severity
            .as_ref()
            .and_then(|s| self.value(s, str::parse));
        let kinds = raw
            .kinds
            .iter()
            .filter_map(|k| self.value(k, str::parse))
            .collect();
        Wanted { severity, kinds }
    }

    fn attempt_time(&mut self, raw: Option<&Spanned<String>>, usual: Duration) -> Duration {
        let time = self.duration(raw, usual);
        self.at_least(raw, time, Duration::from_millis(100), "timeout");
        if let Some(at) = raw
            && time > Duration::from_mins(1)
        {
            self.bad.push(at.span(), "timeout is at most 1m");
        }
        time
    }

    fn retry_for(&mut self, raw: Option<&Spanned<String>>) -> Duration {
        let time = self.duration(raw, RETRY_FOR);
        self.at_least(raw, time, Duration::from_secs(1), "retry_for");
        time
    }

    fn hook_tls(&mut self, raw: &Spanned<RawTls>, host: &str) -> TlsOptions {
        if let Some(at) = &raw.get_ref().expiry_warning {
            self.bad.push(at.span(), "expiry_warning belongs to checks");
        }
        self.tls(raw.get_ref(), sni_of(host))
    }

    fn relay_tls(&mut self, raw: &Spanned<RawTls>, host: &str) -> TlsOptions {
        if let Some(at) = &raw.get_ref().pin_sha256 {
            let message = "a relay's certificate cannot be pinned: name its authority with ca";
            self.bad.push(at.span(), message);
        }
        self.hook_tls(raw, host)
    }
}

fn hook_name(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    match (1..=32).contains(&text.len()) && text.bytes().all(fits) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no hook's name: that is 1 to 32 characters of a-z, 0-9, '-' and '_'"
        )),
    }
}

struct Url {
    secure: bool,
    host: String,
    port: u16,
    target: String,
    authority: String,
}

/// What is wrong is said without the URL's own words: some services have a secret in its path.
fn url(text: &str) -> Result<Url, String> {
    let bad = || {
        "this is no URL for a webhook: write \"https://alerts.example/lvs\" or \"http://192.0.2.7:8080/lvs\"".to_owned()
    };
    let parsed: hyper::http::Uri = text.parse().map_err(|_e| bad())?;
    let secure = match parsed.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(bad()),
    };
    let authority = parsed.authority().ok_or_else(bad)?;
    if authority.as_str().contains('@') || text.contains('#') {
        return Err("the URL of a webhook has neither user nor password, and no #: receivers verify the signature, see secret".to_owned());
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let port = match (authority.port_u16(), authority.as_str().ends_with(':')) {
        (Some(0), _) | (None, true) => return Err(bad()),
        (Some(port), _) => port,
        (None, false) => match authority.as_str().len() == authority.host().len() {
            true if secure => 443,
            true => 80,
            false => return Err(bad()),
        },
    };
    if host.is_empty() {
        return Err(bad());
    }
    Ok(Url {
        secure,
        host,
        port,
        target: parsed
            .path_and_query()
            .map_or("/", |p| p.as_str())
            .to_owned(),
        authority: authority.as_str().to_owned(),
    })
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let bad =
        || format!("{text:?} is no relay: write \"mail.example.org:25\" or \"[2001:db8::25]:587\"");
    let authority: hyper::http::uri::Authority = text.parse().map_err(|_e| bad())?;
    let host = authority.host().trim_matches(['[', ']']);
    match authority.port_u16() {
        Some(port) if port != 0 && !host.is_empty() && !text.contains('@') => {
            Ok((host.to_owned(), port))
        }
        _ => Err(bad()),
    }
}

/// An address alone, without a name before it.
fn mail_address(text: &str) -> Result<String, String> {
    match text.parse::<lettre::Address>() {
        Ok(_) if text.is_ascii() => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is no mail address: write \"ops@example.org\", without a name or <>"
        )),
    }
}
