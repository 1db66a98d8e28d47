//! A certificate authority for tests, and what it issues.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What is to be issued.
#[derive(Clone, Debug)]
pub(crate) struct Leaf<'a> {
    /// DNS names, URIs where there is a colon, and addresses.
    pub(crate) names: &'a [&'a str],
    pub(crate) serial: u64,
    pub(crate) usage: &'a [ExtendedKeyUsagePurpose],
    /// The years it is valid in.
    pub(crate) years: (i32, i32),
}

impl Leaf<'_> {
    /// Good for everything.
    pub(crate) const GOOD: Self = Self {
        names: &[],
        serial: 7,
        usage: &[
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        years: (2020, 2120),
    };
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_after = date_time_ymd(2120, 1, 1);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate and key, in PEM.
    pub(crate) fn issue(&self, leaf: &Leaf<'_>) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = leaf
            .names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains(':') => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.serial_number = Some(SerialNumber::from(leaf.serial));
        params.extended_key_usages = leaf.usage.to_vec();
        params.not_before = date_time_ymd(leaf.years.0, 1, 1);
        params.not_after = date_time_ymd(leaf.years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A list in PEM of these serial numbers.
    pub(crate) fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A folder with the files of a side.
pub(crate) struct Side {
    pub(crate) dir: tempfile::TempDir,
}

impl Side {
    /// What `authority` issued as `leaf`, for a side that believes `believed`.
    pub(crate) fn new(authority: &Authority, leaf: &Leaf<'_>, believed: &Authority) -> Self {
        let side = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        side.write("ca.pem", &believed.pem);
        side.renew(authority, leaf);
        side
    }

    /// Another certificate in the place of this one.
    pub(crate) fn renew(&self, authority: &Authority, leaf: &Leaf<'_>) {
        let (certificate, key) = authority.issue(leaf);
        self.write("cert.pem", &certificate);
        self.write("key.pem", &key);
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::join(self.dir.path(), name)
    }
}
