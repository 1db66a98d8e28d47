//! What a provisioner counts.

use std::{collections::BTreeMap, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{Build, begin, certificate::CertificateMetrics};
use crate::model::{
    inventory::ServerState,
    wire::{ReplacementState, RoleView},
};

/// Seconds: from a fence to the longest script.
const STEP_SECONDS: [f64; 11] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0, 1_800.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: String,
}

/// What a provisioner counts. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct ProvisionerMetrics {
    replacements: Family<StateLabel, Gauge>,
    ended: Family<OutcomeLabel, Counter>,
    steps: Family<StepLabels, Counter>,
    step_duration: Family<StepLabel, Histogram, fn() -> Histogram>,
    pool: Family<StateLabel, Gauge>,
    stopped: Gauge,
    usable: Family<RoleLabel, Gauge>,
    warm: Family<RoleLabel, Gauge>,
    short: Family<RoleLabel, Gauge>,
    api_requests: Family<RouteLabels, Counter>,
    store_up: Gauge,
    leases_lost: Counter,
    /// What it shows to directors.
    pub certificate: CertificateMetrics,
}

impl ProvisionerMetrics {
    /// Registers every family.
    pub fn register(registry: &mut Registry, build: &Build) -> Self {
        let m = Self {
            replacements: Family::default(),
            ended: Family::default(),
            steps: Family::default(),
            step_duration: Family::new_with_constructor(|| Histogram::new(STEP_SECONDS)),
            pool: Family::default(),
            stopped: Gauge::default(),
            usable: Family::default(),
            warm: Family::default(),
            short: Family::default(),
            api_requests: Family::default(),
            store_up: Gauge::default(),
            leases_lost: Counter::default(),
            certificate: CertificateMetrics::default(),
        };
        let r = begin(registry, build);
        r.register(
            "replacements_current",
            "Replacements in the store, by state",
            m.replacements.clone(),
        );
        r.register(
            "replacements",
            "Replacements that ended, by outcome",
            m.ended.clone(),
        );
        r.register(
            "replacement_steps",
            "Steps of replacements that ended, by outcome",
            m.steps.clone(),
        );
        r.register(
            "replacement_step_duration_seconds",
            "From the start of a step to its end",
            m.step_duration.clone(),
        );
        r.register(
            "pool_servers",
            "Servers of the pool, by state",
            m.pool.clone(),
        );
        r.register(
            "roles_stopped",
            "Roles whose last two spares failed in the same place: no spare is tried until they are released",
            m.stopped.clone(),
        );
        r.register(
            "role_spares",
            "Spares that a role could claim and with which nothing is known to be wrong",
            m.usable.clone(),
        );
        r.register(
            "role_spares_warm",
            "Those that are configured and tested beforehand",
            m.warm.clone(),
        );
        r.register(
            "role_short_of_spares",
            "1 where a role that is served has fewer usable spares than its low_water",
            m.short.clone(),
        );
        r.register(
            "api_requests",
            "Requests to the API, by the status of the answer",
            m.api_requests.clone(),
        );
        r.register(
            "store_up",
            "Whether the store answers (1) or is away (0)",
            m.store_up.clone(),
        );
        r.register(
            "leases_lost",
            "Replacements that another provisioner took over from this one",
            m.leases_lost.clone(),
        );
        m.certificate.register(r);
        m.set_replacements(&BTreeMap::new());
        m.set_pool(&BTreeMap::new());
        m
    }

    /// How many replacements there are; none of a state that is not named.
    pub fn set_replacements(&self, by_state: &BTreeMap<ReplacementState, u32>) {
        for state in ReplacementState::ALL {
            let count = by_state.get(&state).copied().unwrap_or_default();
            let label = StateLabel {
                state: state.as_str(),
            };
            self.replacements
                .get_or_create(&label)
                .set(i64::from(count));
        }
    }

    /// How each role stands; those that are not named are no more.
    pub fn set_roles(&self, roles: &[RoleView]) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for family in [&self.usable, &self.warm, &self.short] {
            family.clear();
        }
        for view in roles {
            let role = view.role.clone();
            let label = RoleLabel { role };
            self.usable.get_or_create(&label).set(number(view.usable));
            self.warm.get_or_create(&label).set(number(view.warm));
            let short = i64::from(view.short.is_some());
            self.short.get_or_create(&label).set(short);
        }
    }

    /// A replacement reached a state from which no work is left. Others are not counted.
    pub fn replacement_ended(&self, state: ReplacementState) {
        if state.is_live() {
            return;
        }
        let outcome = state.as_str();
        self.ended.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A step ended: `done`, or the error's code. `step` is the step's name; what follows its colon, a software's name, is cut.
    pub fn step(&self, step: &str, outcome: &'static str, elapsed: Duration) {
        let step = step_word(step);
        self.steps
            .get_or_create(&StepLabels { step, outcome })
            .inc();
        self.step_duration
            .get_or_create(&StepLabel { step })
            .observe(elapsed.as_secs_f64());
    }

    /// How many servers the pool has; none of a state that is not named.
    pub fn set_pool(&self, by_state: &BTreeMap<ServerState, u32>) {
        for state in ServerState::ALL {
            let count = by_state.get(&state).copied().unwrap_or_default();
            let label = StateLabel {
                state: state.as_str(),
            };
            self.pool.get_or_create(&label).set(i64::from(count));
        }
    }

    /// How many roles are stopped.
    pub fn set_stopped(&self, roles: u32) {
        self.stopped.set(i64::from(roles));
    }

    /// Whether the store answers.
    pub fn set_store(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    /// Another provisioner took a replacement over.
    pub fn lease_lost(&self) {
        self.leases_lost.inc();
    }

    /// A request was answered. `route` is the route's pattern, never the path that was asked.
    pub fn api_request(&self, route: &'static str, status: u16) {
        self.api_requests
            .get_or_create(&RouteLabels { route, status })
            .inc();
    }
}

/// The closed set of the `step` label.
fn step_word(step: &str) -> &'static str {
    let word = step.split(':').next().unwrap_or(step);
    ["os_install", "fence", "os", "install", "configure", "test"]
        .into_iter()
        .find(|w| *w == word)
        .unwrap_or("other")
}
