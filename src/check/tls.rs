//! TLS as a probe speaks it: no session is resumed, so that every probe sees the certificate.

use std::{
    fs, io,
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_cert::{Certificate, der::Decode};

use super::{Unprepared, call::Call, errno};
use crate::{
    model::{CertFault, FailReason, Phase, PinDigest, TlsOptions, Verify},
    systemd,
};

/// The largest file of certificates or keys that is read.
const LARGEST: u64 = 4 << 20;

/// A client of TLS, ready.
#[derive(Debug)]
pub(super) struct Client {
    config: Arc<ClientConfig>,
    sni: Option<ServerName<'static>>,
}

impl Client {
    /// `alpn` names the protocols offered inside (RFC 7301), the best first.
    pub(super) fn prepare(options: &TlsOptions, alpn: &[&[u8]]) -> Result<Self, Unprepared> {
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
        let sni = options.sni.as_ref().map(|name| {
            let name = ServerName::try_from(name.clone());
            name.map_err(|_bad| Unprepared::Option(format!("{:?} is no server name", options.sni)))
        });
        Ok(Self {
            config: Arc::new(config),
            sni: sni.transpose()?,
        })
    }

    /// Begins TLS on a connection. Where no name is configured none is sent, and a certificate that is
    /// verified has to name the server's address.
    pub(super) async fn handshake<S>(
        &self,
        call: &mut Call<'_>,
        stream: S,
    ) -> Result<TlsStream<S>, FailReason>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let at = call.at;
        let name = self.sni.clone().unwrap_or_else(|| at.ip().into());
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let mut why = None;
        let shaking = async {
            let shaken = connector.connect(name, stream).await;
            shaken.map_err(|error| {
                why = fault(&error).map(Error::to_string);
                errno::reason(&error, at, Phase::Tls)
            })
        };
        let result = call.hold(Phase::Tls, shaking).await;
        if let Some(why) = why {
            call.note(why);
        }
        let stream = result?;
        let (_, session) = stream.get_ref();
        let own = session.peer_certificates().and_then(|chain| chain.first());
        call.certificate_ends = own.and_then(|der| ends(der));
        Ok(stream)
    }
}

/// The error of TLS that an error of its stream stands for.
pub(super) fn fault(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What an error of TLS says of the server.
pub(super) fn reason(error: &Error) -> FailReason {
    match error {
        Error::InvalidCertificate(fault) => FailReason::Certificate(match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                CertFault::Expired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                CertFault::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                CertFault::WrongName
            }
            CertificateError::UnknownIssuer => CertFault::UnknownIssuer,
            CertificateError::Revoked => CertFault::Revoked,
            CertificateError::ApplicationVerificationFailure => CertFault::NotPinned,
            _ => CertFault::Unusable,
        }),
        Error::AlertReceived(alert) => FailReason::TlsAlert(u8::from(*alert)),
        // What is not TLS at all, and versions or ciphers without common ground.
        _ => FailReason::TlsFailed,
    }
}

/// When a certificate ends, in seconds since 1970. A time before that cannot be told.
fn ends(der: &[u8]) -> Option<i64> {
    let certificate = Certificate::from_der(der).ok()?;
    let end = certificate.tbs_certificate().validity().not_after;
    i64::try_from(end.to_unix_duration().as_secs()).ok()
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unprepared> {
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

fn key_of(path: &Path) -> Result<PrivateKeyDer<'static>, Unprepared> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_bad| Unprepared::Content {
        path: path.to_owned(),
        what: "no private key in PEM is in it".to_owned(),
    })
}

/// The file of a secret: a bare name is a systemd credential.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let bare = path.file_name().filter(|name| Path::new(name) == path);
    let credential = bare.and_then(|name| systemd::credential(name.to_str()?));
    credential.unwrap_or_else(|| path.to_owned())
}

/// `user:password` of a file's first line.
pub(super) fn credentials(path: &Path) -> Result<(String, String), Unprepared> {
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

fn read(path: &Path) -> Result<Vec<u8>, Unprepared> {
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
