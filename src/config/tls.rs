//! TLS between directors and provisioners: which files a side's identity is made of.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::Diagnostics;

/// One side's identity, and whom it believes. A bare name is a systemd credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its own certificate in PEM, and what leads from it to the authority.
    pub certificate: PathBuf,
    /// The certificate's key in PEM.
    pub key: PathBuf,
    /// Authorities of the other side's certificates, in PEM.
    pub ca: PathBuf,
    /// What these authorities revoked: lists in PEM, one of each authority. None: nothing is looked up.
    pub crl: Option<PathBuf>,
}

/// The same as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawTls {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    crl: Option<PathBuf>,
}

impl RawTls {
    /// Takes the files, and says which is named with nothing.
    pub(in crate::config) fn files(raw: &Spanned<Self>, bad: &mut Diagnostics) -> TlsFiles {
        let it = raw.get_ref();
        let named = [
            ("certificate", Some(&it.certificate)),
            ("key", Some(&it.key)),
            ("ca", Some(&it.ca)),
            ("crl", it.crl.as_ref()),
        ];
        for (name, path) in named {
            if path.is_some_and(|p| p.as_os_str().is_empty()) {
                bad.push(
                    raw.span(),
                    format!("{name} is empty: name a file, or a credential of the unit"),
                );
            }
        }
        TlsFiles {
            certificate: it.certificate.clone(),
            key: it.key.clone(),
            ca: it.ca.clone(),
            crl: it.crl.clone(),
        }
    }
}
