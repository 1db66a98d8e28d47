//! TLS as a probe speaks it: no session is resumed, so that every probe sees the certificate.

use std::{io, sync::Arc};

use rustls::{CertificateError, ClientConfig, Error, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_cert::{Certificate, der::Decode};

use super::{Unprepared, call::Call, errno};
use crate::{
    model::{CertFault, FailReason, Phase, TlsOptions},
    prepare,
};

/// A client of TLS, ready.
#[derive(Debug)]
pub(super) struct Client {
    config: Arc<ClientConfig>,
    sni: Option<ServerName<'static>>,
}

impl Client {
    /// `alpn` names the protocols offered inside (RFC 7301), the best first.
    pub(super) fn prepare(options: &TlsOptions, alpn: &[&[u8]]) -> Result<Self, Unprepared> {
        let config = prepare::tls_client(options, alpn)?;
        Ok(Self {
            config: Arc::new(config),
            sni: prepare::server_name(options)?,
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
