//! What a daemon counts of the certificate that it shows to others of its kind.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::tls::Told;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    result: &'static str,
}

/// The certificate for TLS between directors and provisioners. Clones share the numbers; a daemon without one has none.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    ends: Family<[(&'static str, &'static str); 0], Gauge>,
    lists_end: Family<[(&'static str, &'static str); 0], Gauge>,
    readings: Family<Label, Counter>,
}

impl CertificateMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "certificate_end_timestamp_seconds",
            "When the certificate in use for TLS between directors and provisioners ends",
            self.ends.clone(),
        );
        r.register(
            "certificate_revocation_lists_due_timestamp_seconds",
            "When the first of the revocation lists in use is due to be replaced by a newer one",
            self.lists_end.clone(),
        );
        r.register(
            "certificate_readings",
            "New certificates, keys, authorities or revocation lists, by whether they can be used",
            self.readings.clone(),
        );
    }

    /// What became of an identity.
    pub fn told(&self, told: Told) {
        let result = match told {
            Told::Renewed(ends) => {
                self.ends.get_or_create(&[]).set(ends);
                "renewed"
            }
            Told::Lists(ends) => {
                self.lists_end.get_or_create(&[]).set(ends);
                return;
            }
            Told::Refused => "refused",
        };
        self.readings.get_or_create(&Label { result }).inc();
    }
}
