//! Whom a daemon tells of its events.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use super::{TlsOptions, Wanted};

/// All hooks, by name.
pub type Hooks = BTreeMap<String, Hook>;

/// One that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// An HTTP server.
    Webhook(Webhook),
    /// People, by mail.
    Mail(Mail),
}

impl Hook {
    /// Of what it is told.
    #[must_use]
    pub const fn wanted(&self) -> &Wanted {
        match self {
            Self::Webhook(webhook) => &webhook.wanted,
            Self::Mail(mail) => &mail.wanted,
        }
    }

    /// What is said in the log of where it is: no path, in which some services have a secret.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Webhook(webhook) => format!("{}:{}", webhook.host, webhook.port),
            Self::Mail(mail) => format!("{}:{}", mail.relay.host, mail.relay.port),
        }
    }
}

/// An HTTP server that takes each event in a POST of its own.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// As the request names it: path and query.
    pub target: String,
    /// As the `Host` header names it.
    pub authority: String,
    /// Over TLS.
    pub tls: Option<TlsOptions>,
    /// A file with the key of the signature; a bare name is a systemd credential.
    pub secret: Option<PathBuf>,
    /// Of what it is told.
    pub wanted: Wanted,
    /// For one attempt as a whole.
    pub timeout: Duration,
    /// An event is tried again until it is so old.
    pub retry_for: Duration,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not its path.
        f.debug_struct("Webhook")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// How a mail relay is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether and when TLS begins.
    pub tls: RelayTls,
    /// A file with `user:password`; a bare name is a systemd credential.
    pub credentials: Option<PathBuf>,
    /// What `EHLO` says; the host's own name where it is not said.
    pub ehlo: Option<String>,
    /// The sender's address.
    pub from: String,
    /// For one mail as a whole.
    pub timeout: Duration,
}

/// When TLS begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayTls {
    /// Never.
    None,
    /// After `STARTTLS`, which the relay must offer (RFC 3207).
    Starttls(TlsOptions),
    /// With the first byte (RFC 8314).
    Implicit(TlsOptions),
}

/// People who are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Over this relay.
    pub relay: Relay,
    /// Their addresses.
    pub to: Vec<String>,
    /// Of what they are told.
    pub wanted: Wanted,
    /// Events so soon after the first are in one mail with it.
    pub window: Duration,
    /// No more mails within any hour.
    pub per_hour: u32,
    /// An event is tried again until it is so old.
    pub retry_for: Duration,
}
