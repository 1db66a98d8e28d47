//! What a director counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{Build, SECONDS, begin, hooks::HookMetrics, words};
use crate::{
    check::Observer,
    model::{DestKey, Outcome, ServiceKey},
};

/// Destinations that have a series of their own. A director with more shows the first ones: a
/// scrape must not grow without a bound.
pub const MAX_SERVERS: usize = 20_000;

words! {
    /// Where a real server went.
    To {
        /// Into service.
        Up => "up",
        /// Out of service.
        Down => "down",
    }
}

words! {
    /// How a pass over the kernel's table ended.
    PassResult {
        /// Nothing was to be done.
        Unchanged => "unchanged",
        /// Every step was done.
        Applied => "applied",
        /// Some steps were refused.
        Partial => "partial",
        /// The table could not be read.
        Unread => "unread",
    }
}

words! {
    /// How a step of a pass ended.
    StepResult {
        /// Done.
        Ok => "ok",
        /// The kernel refused.
        Refused => "refused",
        /// Not tried, because an earlier step of its service failed.
        Skipped => "skipped",
    }
}

words! {
    /// Where a stand-in stands.
    StandInState {
        /// Wanted, not yet checked or added.
        Joining => "joining",
        /// In service.
        Serving => "serving",
        /// Being taken out.
        Leaving => "leaving",
    }
}

words! {
    /// How a warm spare is.
    StandbyState {
        /// It passes wherever it could be needed.
        Ready => "ready",
        /// There is no verdict yet.
        Waiting => "waiting",
        /// It does not pass.
        Failing => "failing",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    service: String,
    server: String,
}

impl ServerLabels {
    fn of((service, dest): &(ServiceKey, DestKey)) -> Self {
        Self {
            service: service.to_string(),
            server: dest.to_string(),
        }
    }
}

/// Labels of a real server's transition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransitionLabels {
    /// Where to.
    pub to: To,
    /// Why: a word of [`crate::model::FailReason::label`], or `passed`.
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Labels of a netlink request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NetlinkLabels {
    /// Which: `new_service`, `dump_services`, …
    pub operation: &'static str,
    /// `ok`, or the kind of error.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabel {
    result: PassResult,
}

/// Labels of a step of a pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// Which: `add_service`, `set_dest`, …
    pub step: &'static str,
    /// How it ended.
    pub result: StepResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriftLabels {
    policy: &'static str,
    field: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GuardLabel {
    guard: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StandInLabel {
    state: StandInState,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StandbyLabel {
    state: StandbyState,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SettingLabel {
    setting: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabel {
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConfigLabel {
    sha256: String,
}

/// What a director counts. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct DirectorMetrics {
    up: Family<ServerLabels, Gauge>,
    certificate_ends: Family<ServerLabels, Gauge>,
    quorum_held: Family<ServiceLabel, Gauge>,
    shown: Arc<Mutex<BTreeSet<(ServiceKey, DestKey)>>>,
    transitions: Family<TransitionLabels, Counter>,
    probes: Family<ReasonLabel, Counter>,
    probe_duration: Histogram,
    probe_lateness: Histogram,
    reports_dropped: Counter,
    probes_in_flight: Gauge,
    probe_targets: Gauge,
    netlink_requests: Family<NetlinkLabels, Counter>,
    passes: Family<PassLabel, Counter>,
    steps: Family<StepLabels, Counter>,
    replacement_held: Family<GuardLabel, Gauge>,
    removal_held: Family<GuardLabel, Gauge>,
    stand_ins: Family<StandInLabel, Gauge>,
    standbys: Family<StandbyLabel, Gauge>,
    kernel_setting_wrong: Family<SettingLabel, Gauge>,
    virtual_address_on: Family<AddressLabel, Gauge>,
    /// Times that another host answered for a virtual address that was to be put on.
    pub virtual_address_conflicts: Counter,
    config: Family<ConfigLabel, Gauge>,
    /// Whether the last reload was taken.
    pub config_reload_ok: Gauge,
    drift: Family<DriftLabels, Counter>,
    /// Events, and who is told of them.
    pub hooks: HookMetrics,
    /// Differences that others made and that stand: left by policy, or refused by the kernel.
    pub drift_standing: Gauge,
    /// Virtual services in the kernel that this director does not own.
    pub foreign_services: Gauge,
    /// Times that a server which passed stayed out because it had come and gone.
    pub held_out: Counter,
    /// Replacements asked of the provisioner.
    pub replacements_requested: Counter,
    /// Failed servers whose incident is open.
    pub incidents_open: Gauge,
    /// 1 while the state file is readable and writable.
    pub state_file_ok: Gauge,
    /// 1 while the provisioner answers.
    pub provisioner_up: Gauge,
}

impl DirectorMetrics {
    /// Registers every family.
    pub fn register(registry: &mut Registry, build: &Build) -> Self {
        let seconds = || Histogram::new(SECONDS);
        let m = Self {
            up: Family::default(),
            certificate_ends: Family::default(),
            quorum_held: Family::default(),
            shown: Arc::default(),
            transitions: Family::default(),
            probes: Family::default(),
            probe_duration: seconds(),
            probe_lateness: seconds(),
            reports_dropped: Counter::default(),
            probes_in_flight: Gauge::default(),
            probe_targets: Gauge::default(),
            held_out: Counter::default(),
            netlink_requests: Family::default(),
            passes: Family::default(),
            steps: Family::default(),
            replacement_held: Family::default(),
            removal_held: Family::default(),
            stand_ins: Family::default(),
            standbys: Family::default(),
            kernel_setting_wrong: Family::default(),
            virtual_address_on: Family::default(),
            virtual_address_conflicts: Counter::default(),
            config: Family::default(),
            config_reload_ok: Gauge::default(),
            drift: Family::default(),
            hooks: HookMetrics::default(),
            drift_standing: Gauge::default(),
            foreign_services: Gauge::default(),
            replacements_requested: Counter::default(),
            incidents_open: Gauge::default(),
            state_file_ok: Gauge::default(),
            provisioner_up: Gauge::default(),
        };
        let r = begin(registry, build);
        r.register(
            "real_server_up",
            "1 while the real server is healthy in the virtual service",
            m.up.clone(),
        );
        r.register(
            "real_server_transitions",
            "Real servers that went up or down, by reason",
            m.transitions.clone(),
        );
        r.register(
            "real_server_held_out",
            "Times that a real server which passed again stayed out because it had come and gone",
            m.held_out.clone(),
        );
        r.register(
            "certificate_expiry_timestamp_seconds",
            "When the certificate ends that a check of the real server saw, since 1970",
            m.certificate_ends.clone(),
        );
        r.register(
            "quorum_held",
            "1 while enough real servers of the virtual service are up",
            m.quorum_held.clone(),
        );
        r.register(
            "probes",
            "Probes that ended, by what they found",
            m.probes.clone(),
        );
        r.register(
            "probe_duration_seconds",
            "From the start of a probe to its end",
            m.probe_duration.clone(),
        );
        r.register(
            "probe_lateness_seconds",
            "From the time a probe was due to its start",
            m.probe_lateness.clone(),
        );
        r.register(
            "reports_dropped",
            "Reports of probes that found their queue full",
            m.reports_dropped.clone(),
        );
        r.register(
            "probes_in_flight",
            "Probes that run now",
            m.probes_in_flight.clone(),
        );
        r.register(
            "probe_targets",
            "Things that are asked, each once an interval for all services that ask the same",
            m.probe_targets.clone(),
        );
        r.register(
            "netlink_requests",
            "Requests to the kernel, by how they ended",
            m.netlink_requests.clone(),
        );
        r.register(
            "reconcile_passes",
            "Passes over the kernel's table, by how they ended",
            m.passes.clone(),
        );
        r.register(
            "reconcile_steps",
            "Changes of the kernel's table, by how they ended",
            m.steps.clone(),
        );
        r.register(
            "drift",
            "Differences from the wanted table that this director did not make, by what becomes of them",
            m.drift.clone(),
        );
        r.register(
            "drift_standing",
            "Differences that others made and that stand: left by policy, or refused by the kernel",
            m.drift_standing.clone(),
        );
        r.register(
            "foreign_services",
            "Virtual services in the kernel that this director does not own",
            m.foreign_services.clone(),
        );
        r.register(
            "replacements_requested",
            "Replacements asked of the provisioner",
            m.replacements_requested.clone(),
        );
        r.register(
            "replacement_held",
            "Failed servers that the guard keeps from being replaced now",
            m.replacement_held.clone(),
        );
        r.register(
            "removal_held",
            "Failed servers, each in its service, that the guard keeps in",
            m.removal_held.clone(),
        );
        r.register(
            "incidents_open",
            "Failed servers that are not back and not replaced",
            m.incidents_open.clone(),
        );
        r.register(
            "stand_ins",
            "Spares that stand in, by state",
            m.stand_ins.clone(),
        );
        r.register(
            "standbys",
            "Warm spares that could stand in, by state",
            m.standbys.clone(),
        );
        r.register(
            "state_file_ok",
            "1 while the state file is readable and writable",
            m.state_file_ok.clone(),
        );
        r.register(
            "provisioner_up",
            "1 while the provisioner answers",
            m.provisioner_up.clone(),
        );
        r.register(
            "kernel_setting_wrong",
            "1 while a declared kernel setting is not as declared",
            m.kernel_setting_wrong.clone(),
        );
        r.register(
            "virtual_address_on",
            "1 while the virtual address that the director manages is on its interface",
            m.virtual_address_on.clone(),
        );
        r.register(
            "virtual_address_conflicts",
            "Times that another host answered for a virtual address that was to be put on",
            m.virtual_address_conflicts.clone(),
        );
        r.register(
            "config_info",
            "The configuration that is in force",
            m.config.clone(),
        );
        r.register(
            "config_reload_ok",
            "1 unless the last reload of the configuration was refused",
            m.config_reload_ok.clone(),
        );
        m.config_reload_ok.set(1);
        m.hooks.register(r);
        m.set_stand_ins(&BTreeMap::new());
        m.set_standbys(&BTreeMap::new());
        m
    }

    /// A destination's health, as the director judges it.
    pub fn set_server_up(&self, service: ServiceKey, dest: DestKey, up: bool) {
        let id = (service, dest);
        {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            if !shown.contains(&id) && shown.len() >= MAX_SERVERS {
                return;
            }
            shown.insert(id);
        }
        self.up
            .get_or_create(&ServerLabels::of(&id))
            .set(i64::from(up));
    }

    /// Whether a service has enough servers.
    pub fn set_quorum_held(&self, service: ServiceKey, held: bool) {
        let label = ServiceLabel {
            service: service.to_string(),
        };
        self.quorum_held.get_or_create(&label).set(i64::from(held));
    }

    /// Of services that are no longer there nothing is shown.
    pub fn drop_services(&self, gone: impl Iterator<Item = ServiceKey>) {
        for service in gone {
            let service = service.to_string();
            self.quorum_held.remove(&ServiceLabel { service });
        }
    }

    /// When a destination's certificate ends, in seconds since 1970.
    pub fn set_certificate_ends(&self, service: ServiceKey, dest: DestKey, ends: i64) {
        let id = (service, dest);
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.contains(&id) {
            self.certificate_ends
                .get_or_create(&ServerLabels::of(&id))
                .set(ends);
        }
    }

    /// Removes the series of destinations that are gone.
    pub fn keep_servers(&self, keep: impl Fn(&(ServiceKey, DestKey)) -> bool) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|id| {
            let kept = keep(id);
            if !kept {
                self.up.remove(&ServerLabels::of(id));
                self.certificate_ends.remove(&ServerLabels::of(id));
            }
            kept
        });
    }

    /// A real server went up or down.
    pub fn transition(&self, to: To, reason: &'static str) {
        self.transitions
            .get_or_create(&TransitionLabels { to, reason })
            .inc();
    }

    /// A request to the kernel ended.
    pub fn netlink_request(&self, operation: &'static str, result: &'static str) {
        self.netlink_requests
            .get_or_create(&NetlinkLabels { operation, result })
            .inc();
    }

    /// A pass over the kernel's table ended.
    pub fn pass(&self, result: PassResult) {
        self.passes.get_or_create(&PassLabel { result }).inc();
    }

    /// `count` steps of a pass ended.
    pub fn steps(&self, step: &'static str, result: StepResult, count: u64) {
        self.steps
            .get_or_create(&StepLabels { step, result })
            .inc_by(count);
    }

    /// `count` differences were found that others made, in a `field` and under a `policy` of closed
    /// sets.
    pub fn drift(&self, policy: &'static str, field: &'static str, count: u64) {
        self.drift
            .get_or_create(&DriftLabels { policy, field })
            .inc_by(count);
    }

    /// How many failed servers `guard` keeps from being replaced.
    pub fn set_held(&self, guard: &'static str, servers: u32) {
        self.replacement_held
            .get_or_create(&GuardLabel { guard })
            .set(i64::from(servers));
    }

    /// How many failed servers `guard` keeps in.
    pub fn set_kept_in(&self, guard: &'static str, servers: u32) {
        self.removal_held
            .get_or_create(&GuardLabel { guard })
            .set(i64::from(servers));
    }

    /// How many stand-ins there are; none of a state that is not named.
    pub fn set_stand_ins(&self, by_state: &BTreeMap<StandInState, u32>) {
        for state in StandInState::ALL.iter().copied() {
            let count = by_state.get(&state).copied().unwrap_or_default();
            self.stand_ins
                .get_or_create(&StandInLabel { state })
                .set(i64::from(count));
        }
    }

    /// How many warm spares there are; none of a state that is not named.
    pub fn set_standbys(&self, by_state: &BTreeMap<StandbyState, u32>) {
        for state in StandbyState::ALL.iter().copied() {
            let count = by_state.get(&state).copied().unwrap_or_default();
            self.standbys
                .get_or_create(&StandbyLabel { state })
                .set(i64::from(count));
        }
    }

    /// Whether a declared kernel setting is other than declared. As many series as are declared.
    pub fn set_kernel_setting_wrong(&self, setting: &str, wrong: bool) {
        let setting = setting.to_owned();
        self.kernel_setting_wrong
            .get_or_create(&SettingLabel { setting })
            .set(i64::from(wrong));
    }

    /// A setting that is no longer declared is not shown.
    pub fn forget_kernel_setting(&self, setting: &str) {
        let setting = setting.to_owned();
        self.kernel_setting_wrong.remove(&SettingLabel { setting });
    }

    /// Whether a managed virtual address is on its interface; none: it is no longer managed.
    pub fn set_virtual_address_on(&self, addr: IpAddr, on: Option<bool>) {
        let address = addr.to_string();
        let label = AddressLabel { address };
        match on {
            Some(on) => drop(self.virtual_address_on.get_or_create(&label).set(on.into())),
            None => drop(self.virtual_address_on.remove(&label)),
        }
    }

    /// The configuration with this digest is in force, and no other.
    pub fn set_config(&self, sha256: &str) {
        self.config.clear();
        self.config
            .get_or_create(&ConfigLabel {
                sha256: sha256.to_owned(),
            })
            .set(1);
    }
}

impl Observer for DirectorMetrics {
    fn probed(&self, outcome: Outcome, elapsed: Duration) {
        let reason = match outcome {
            Outcome::Pass => "passed",
            Outcome::Fail(reason) => reason.label(),
        };
        self.probes.get_or_create(&ReasonLabel { reason }).inc();
        self.probe_duration.observe(elapsed.as_secs_f64());
    }

    fn begun_late(&self, by: Duration) {
        self.probe_lateness.observe(by.as_secs_f64());
    }

    fn report_dropped(&self) {
        self.reports_dropped.inc();
    }

    fn in_flight(&self, probes: usize, targets: usize) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.probes_in_flight.set(count(probes));
        self.probe_targets.set(count(targets));
    }
}
