//! What the configuration names on this host, read: certificates, keys, passwords, and TLS made of them. Everything
//! here may block.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256};

use crate::{
    model::{PinDigest, TlsOptions, Verify},
    systemd,
};

/// The largest file of certificates or keys that is read.
const LARGEST: u64 = 4 << 20;

/// Why something cannot be done at all: what the configuration names on this host is not as it has to be.
#[derive(Debug, thiserror::Error)]
pub enum Unprepared {
    /// A file.
    #[error("{path} cannot be read: check the path and its owner")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its content.
    #[error("{path}: {what}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what it should be.
        what: String,
    },
    /// This host's certificate authorities.
    #[error(
        "this host has no certificate authorities: install ca-certificates, or name some with `ca`"
    )]
    NoAuthorities,
    /// TLS of these options.
    #[error("TLS cannot be set up")]
    Tls(#[source] Error),
    /// An option that the configuration should not have let in.
    #[error("{0}")]
    Option(String),
}

/// A client of TLS, of which no session is resumed. `alpn` names the protocols offered inside (RFC 7301), the best
/// first.
pub(crate) fn tls_client(options: &TlsOptions, alpn: &[&[u8]]) -> Result<ClientConfig, Unprepared> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = verifier(&options.verify, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Unprepared::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &options.client {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config
            .with_client_auth_cert(certificates(&resolve(chain))?, key_of(&resolve(key))?)
            .map_err(Unprepared::Tls)?,
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The name that the options send, if they send one.
pub(crate) fn server_name(options: &TlsOptions) -> Result<Option<ServerName<'static>>, Unprepared> {
    let name = options.sni.as_ref().map(|name| {
        let name = ServerName::try_from(name.clone());
        name.map_err(|_bad| Unprepared::Option(format!("{:?} is no server name", options.sni)))
    });
    name.transpose()
}

fn verifier(
    verify: &Verify,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Unprepared> {
    let by_roots = |roots| {
        let built =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
        built.map_err(|error| Unprepared::Option(error.to_string()))
    };
    Ok(match verify {
        Verify::System => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Unprepared::NoAuthorities);
            }
            by_roots(Arc::new(roots))?
        }
        Verify::Ca(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(Unprepared::Tls)?;
            }
            by_roots(Arc::new(roots))?
        }
        Verify::Pin(pin) => Arc::new(Named {
            pin: Some(*pin),
            provider: Arc::clone(provider),
        }),
        Verify::Off => Arc::new(Named {
            pin: None,
            provider: Arc::clone(provider),
        }),
    })
}

/// Takes one certificate, or any. That the server holds its key is verified in any case.
#[derive(Debug)]
struct Named {
    pin: Option<PinDigest>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = |pin: PinDigest| Sha256::digest(end_entity).as_slice() == pin.0;
        if self.pin.is_none_or(pinned) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unprepared> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Unprepared::Content {
            path: path.to_owned(),
            what: "no certificates in PEM are in it".to_owned(),
        }),
    }
}

pub(crate) fn key_of(path: &Path) -> Result<PrivateKeyDer<'static>, Unprepared> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_bad| Unprepared::Content {
        path: path.to_owned(),
        what: "no private key in PEM is in it".to_owned(),
    })
}

/// The file of a secret: a bare name is a systemd credential.
pub(crate) fn resolve(path: &Path) -> PathBuf {
    let bare = path.file_name().filter(|name| Path::new(name) == path);
    let credential = bare.and_then(|name| systemd::credential(name.to_str()?));
    credential.unwrap_or_else(|| path.to_owned())
}

/// `user:password` of a file's first line.
pub(crate) fn credentials(path: &Path) -> Result<(String, String), Unprepared> {
    let path = resolve(path);
    let bad = |what: &str| Unprepared::Content {
        path: path.clone(),
        what: what.to_owned(),
    };
    let text = read(&path)?;
    let text = String::from_utf8(text).map_err(|_bytes| bad("it is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    match line.split_once(':') {
        Some((user, password)) => Ok((user.to_owned(), password.to_owned())),
        None => Err(bad("its first line is not user:password")),
    }
}

/// A small file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Unprepared> {
    if path
        .parent()
        .is_some_and(|folder| folder.as_os_str().is_empty())
    {
        return Err(Unprepared::Content {
            path: path.to_owned(),
            what: "no credential of this name is loaded: add LoadCredential= to the unit, or write a path".to_owned(),
        });
    }
    let unread = |source| Unprepared::File {
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(unread)?.len();
    if length > LARGEST {
        return Err(Unprepared::Content {
            path: path.to_owned(),
            what: format!("it has {length} bytes, more than any such file"),
        });
    }
    fs::read(path).map_err(unread)
}

/// A key of a file's own, without the newline at its end.
pub(crate) fn secret(path: &Path) -> Result<Vec<u8>, Unprepared> {
    let path = resolve(path);
    let mut text = read(&path)?;
    while text.pop_if(|last| matches!(last, b'\n' | b'\r')).is_some() {}
    match text.is_empty() {
        false => Ok(text),
        true => Err(Unprepared::Content {
            path,
            what: "it is empty: write the key into it".to_owned(),
        }),
    }
}
