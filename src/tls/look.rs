//! What a certificate says of itself.

use rustls::pki_types::CertificateRevocationListDer;
use x509_cert::{
    Certificate,
    certificate::Rfc5280,
    crl::CertificateList,
    der::{Decode, oid::ObjectIdentifier},
    ext::pkix::{ExtendedKeyUsage, SubjectAltName, name::GeneralName},
};

/// RFC 5280, section 4.2.1.12.
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A provisioner shows it.
    Server,
    /// A director shows it.
    Client,
}

impl Use {
    const fn oid(self) -> ObjectIdentifier {
        match self {
            Self::Server => SERVER_AUTH,
            Self::Client => CLIENT_AUTH,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Server => "servers (serverAuth)",
            Self::Client => "clients (clientAuth)",
        }
    }
}

/// When a certificate ends, in seconds since 1970, where it can be shown `now`. Otherwise what is wrong with it.
pub(super) fn look(der: &[u8], for_use: Use, now: u64) -> Result<i64, String> {
    let certificate = Certificate::from_der(der)
        .map_err(|e| format!("its first certificate cannot be read: {e}"))?;
    let body = certificate.tbs_certificate();
    let validity = body.validity();
    let (from, to) = (validity.not_before, validity.not_after);
    if now < from.to_unix_duration().as_secs() {
        return Err(format!(
            "it is not valid before {from}: is this host's clock right?"
        ));
    }
    let ends = to.to_unix_duration().as_secs();
    if now > ends {
        return Err(format!("it has ended on {to}: renew it"));
    }
    let usage = body.get_extension::<ExtendedKeyUsage>();
    let usage = usage.map_err(|e| format!("its extended key usage cannot be read: {e}"))?;
    if let Some((_, usage)) = usage
        && !usage.0.contains(&for_use.oid())
    {
        return Err(format!(
            "it is not for {}: its extended key usage leaves them out",
            for_use.word()
        ));
    }
    if names_in(&certificate, for_use == Use::Server).is_empty() {
        return Err(match for_use {
            Use::Server => "it names no host: it needs a DNS name or an address among its subject's alternative names".to_owned(),
            Use::Client => "it names no director: it needs a DNS name or a URI among its subject's alternative names".to_owned(),
        });
    }
    Ok(i64::try_from(ends).unwrap_or(i64::MAX))
}

/// When the first of these lists is due to be replaced, in seconds since 1970.
pub(super) fn lists_end(lists: &[CertificateRevocationListDer<'_>]) -> Option<i64> {
    let ends = lists.iter().filter_map(|list| {
        let list = CertificateList::<Rfc5280>::from_der(list).ok()?;
        let due = list.tbs_cert_list.next_update?.to_unix_duration();
        i64::try_from(due.as_secs()).ok()
    });
    ends.min()
}

/// The DNS names and URIs among a certificate's alternative names.
pub(crate) fn names(der: &[u8]) -> Vec<String> {
    let certificate = Certificate::from_der(der);
    certificate.map_or_else(|_bad| Vec::new(), |c| names_in(&c, false))
}

fn names_in(certificate: &Certificate, addresses: bool) -> Vec<String> {
    let found = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>();
    let Ok(Some((_, SubjectAltName(all)))) = found else {
        return Vec::new();
    };
    let name = |name: &GeneralName| match name {
        // A name of one kind must not pass for one of the other.
        GeneralName::DnsName(dns) => Some(dns.to_string()).filter(|n| !n.contains(':')),
        GeneralName::UniformResourceIdentifier(uri) => {
            Some(uri.to_string()).filter(|n| n.contains(':'))
        }
        GeneralName::IpAddress(_) if addresses => Some("an address".to_owned()),
        _ => None,
    };
    all.iter().filter_map(name).collect()
}
