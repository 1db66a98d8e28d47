//! Who wants which events.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Event, EventKind, EventServer, Severity};
use crate::model::ServiceKey;

/// What a reader looks for: each part narrows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this service.
    pub service: Option<ServiceKey>,
    /// Of this server, or of all its ports.
    pub server: Option<EventServer>,
    /// Of these kinds; empty: of all.
    pub kinds: BTreeSet<EventKind>,
    /// At least so bad.
    pub severity: Option<Severity>,
}

impl EventFilter {
    /// Whether it lets `event` through.
    #[must_use]
    pub fn takes(&self, event: &Event) -> bool {
        let covers = |server: EventServer| event.server.is_some_and(|s| server.covers(&s));
        self.service.is_none_or(|s| event.service == Some(s))
            && self.server.is_none_or(covers)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.severity.is_none_or(|s| event.severity >= s)
    }
}

/// What a hook is told: each part adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// All that is so bad, or worse.
    pub severity: Option<Severity>,
    /// These beside.
    pub kinds: BTreeSet<EventKind>,
}

impl Wanted {
    /// Whether the hook is told of `event`.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        self.severity.is_some_and(|s| event.severity >= s) || self.kinds.contains(&event.kind)
    }
}

/// What is asked of a stream of events, in a query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsAsked {
    /// Those after this number; without it all that are kept.
    pub after: Option<u64>,
    /// The life of the process that `after` is of: those of another begin anew.
    pub run: Option<u64>,
    /// How long to wait where there is none yet, in seconds.
    #[serde(default)]
    pub wait: u64,
    /// See [`EventFilter`].
    pub service: Option<String>,
    /// See [`EventFilter`].
    pub server: Option<String>,
    /// See [`EventFilter`].
    pub kind: Option<String>,
    /// See [`EventFilter`].
    pub severity: Option<String>,
}

impl EventsAsked {
    /// What is looked for.
    ///
    /// # Errors
    ///
    /// Which word is none, for whoever asked.
    pub fn filter(&self) -> Result<EventFilter, String> {
        let kinds = self.kind.as_deref().unwrap_or_default();
        let kinds = kinds.split(',').filter(|word| !word.is_empty());
        let kinds: Result<BTreeSet<EventKind>, _> = kinds.map(str::parse).collect();
        Ok(EventFilter {
            service: read(self.service.as_deref())?,
            server: read(self.server.as_deref())?,
            kinds: kinds.map_err(|e| e.to_string())?,
            severity: read(self.severity.as_deref())?,
        })
    }
}

fn read<T: std::str::FromStr<Err: ToString>>(text: Option<&str>) -> Result<Option<T>, String> {
    let value = text.map(str::parse).transpose();
    value.map_err(|e: T::Err| e.to_string())
}
