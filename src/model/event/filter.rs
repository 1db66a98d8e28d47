//! Who wants which events.

use std::collections::BTreeSet;

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
