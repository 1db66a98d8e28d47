//! All metric families, a struct for each role. Names begin with `understudy_`; labels take their
//! values from closed sets (enums, and words of this program's own: `&'static str`), except names
//! of services, servers and kernel settings, which are as many as the configuration has.

mod certificate;
mod director;
mod hooks;
mod provisioner;

pub use certificate::CertificateMetrics;
pub use director::{
    DirectorMetrics, MAX_SERVERS, NetlinkLabels, PassResult, StandInState, StandbyState,
    StepLabels, StepResult, To, TransitionLabels,
};
pub use hooks::{DeliveryResult, HookMetrics, Untold};
pub use provisioner::ProvisionerMetrics;

use prometheus_client::{metrics::info::Info, registry::Registry};

const PREFIX: &str = "understudy";

/// Seconds: from a local refusal to the longest time-out that makes sense.
const SECONDS: [f64; 14] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Which program runs.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// Version.
    pub version: &'static str,
    /// Commit.
    pub commit: &'static str,
}

/// A label value whose set is closed.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The label's value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl prometheus_client::encoding::EncodeLabelValue for $name {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> Result<(), std::fmt::Error> {
                self.as_str().encode(encoder)
            }
        }
    };
}
use words;

/// The registry of a role, with what both roles show.
fn begin<'a>(registry: &'a mut Registry, build: &Build) -> &'a mut Registry {
    let r = registry.sub_registry_with_prefix(PREFIX);
    r.register(
        "build",
        "The program that runs",
        Info::new([("version", build.version), ("commit", build.commit)]),
    );
    r
}
