//! What a daemon counts of its events.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::words;
use crate::model::EventKind;

words! {
    /// How an attempt to tell a hook ended.
    DeliveryResult {
        /// It took what it was told.
        Ok => "ok",
        /// It did not; it is told again.
        Failed => "failed",
    }
}

words! {
    /// Why a hook was never told of an event.
    Untold {
        /// It made room for newer ones.
        Dropped => "dropped",
        /// It was tried for too long.
        GaveUp => "gave_up",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    kind: &'static str,
    severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabels {
    hook: String,
    result: DeliveryResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UntoldLabels {
    hook: String,
    why: Untold,
}

/// Events, and what hooks were told. Clones share the numbers; as many series as there are hooks.
#[derive(Clone, Debug, Default)]
pub struct HookMetrics {
    events: Family<EventLabels, Counter>,
    deliveries: Family<DeliveryLabels, Counter>,
    untold: Family<UntoldLabels, Counter>,
}

impl HookMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("events", "Events, by kind", self.events.clone());
        r.register(
            "hook_deliveries",
            "Attempts to tell a hook of events, by how they ended",
            self.deliveries.clone(),
        );
        r.register(
            "hook_events_untold",
            "Events that a hook was never told of",
            self.untold.clone(),
        );
    }

    /// Something happened.
    pub fn event(&self, kind: EventKind) {
        let labels = EventLabels {
            kind: kind.label(),
            severity: kind.severity().label(),
        };
        self.events.get_or_create(&labels).inc();
    }

    /// An attempt to tell `hook` ended.
    pub fn delivery(&self, hook: &str, result: DeliveryResult) {
        let hook = hook.to_owned();
        let labels = DeliveryLabels { hook, result };
        self.deliveries.get_or_create(&labels).inc();
    }

    /// `hook` was never told of so many events.
    pub fn untold(&self, hook: &str, why: Untold, events: u64) {
        let hook = hook.to_owned();
        let labels = UntoldLabels { hook, why };
        self.untold.get_or_create(&labels).inc_by(events);
    }
}
