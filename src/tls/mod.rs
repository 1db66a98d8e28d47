//! TLS between directors and provisioners: each side shows a certificate, and takes only one of an authority that it
//! was told of. TLS 1.3 alone, as all that speak here are this program. No session is resumed: whoever connects is
//! looked at each time.
//!
//! The files are read at the start, where a mistake ends the program, and looked at again every few seconds
//! ([`keep()`]): what was renewed is used from the next connection on, and what cannot be used changes nothing.

mod keep;
mod look;

#[cfg(test)]
#[path = "../../tests/it/pki.rs"]
pub(crate) mod pki;
#[cfg(test)]
pub(crate) mod tests;

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    version::TLS13,
};

use self::look::Use;
use crate::{
    config::TlsFiles,
    model::CertificateNames,
    prepare::{self, Unprepared, resolve},
    telemetry::Chain,
};

pub use keep::{EVERY, Told, keep};
pub(crate) use look::names;

/// A side's identity, ready.
pub trait Identity: Send + Sync + Sized + 'static {
    /// Reads it.
    ///
    /// # Errors
    /// What of the files is not as it has to be.
    fn read(files: &TlsFiles) -> Result<Self, Unprepared>;

    /// When its certificate ends, in seconds since 1970.
    fn ends(&self) -> i64;

    /// When the first of its revocation lists is due to be replaced, likewise; none where no list says.
    fn lists_end(&self) -> Option<i64>;
}

/// The provisioner's side.
pub struct Server {
    config: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
    ends: i64,
    lists_end: Option<i64>,
}

/// The director's side.
pub struct Client {
    config: Arc<ClientConfig>,
    ends: i64,
    lists_end: Option<i64>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("ends", &self.ends).finish()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("ends", &self.ends).finish()
    }
}

impl Server {
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Whether this certificate is taken still: it has not ended, its authority is known, nobody revoked it.
    pub(crate) fn takes(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let (own, rest) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        let verified = self.clients.verify_client_cert(own, rest, UnixTime::now());
        verified.map(|_verified| ())
    }
}

impl Client {
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

impl Identity for Server {
    fn read(files: &TlsFiles) -> Result<Self, Unprepared> {
        let own = Own::read(files, Use::Server)?;
        let provider = provider();
        let (roots, lists) = (roots(files)?, revoked(files)?);
        let lists_end = look::lists_end(&lists);
        // Each certificate of a chain: an authority that was revoked issues nothing that counts. One whose authority has
        // no list is refused; an old list counts on.
        let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(lists);
        let clients = builder.build().map_err(|e| of_crl(files, &e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(Unprepared::Tls)?
            .with_client_cert_verifier(Arc::clone(&clients))
            .with_single_cert(own.chain, own.key)
            .map_err(|e| of_pair(files, &e))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            clients,
            ends: own.ends,
            lists_end,
        })
    }

    fn ends(&self) -> i64 {
        self.ends
    }

    fn lists_end(&self) -> Option<i64> {
        self.lists_end
    }
}

impl Identity for Client {
    fn read(files: &TlsFiles) -> Result<Self, Unprepared> {
        let own = Own::read(files, Use::Client)?;
        let provider = provider();
        let (roots, lists) = (roots(files)?, revoked(files)?);
        let lists_end = look::lists_end(&lists);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(lists)
            .build()
            .map_err(|e| of_crl(files, &e))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(Unprepared::Tls)?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(own.chain, own.key)
            .map_err(|e| of_pair(files, &e))?;
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            ends: own.ends,
            lists_end,
        })
    }

    fn ends(&self) -> i64 {
        self.ends
    }

    fn lists_end(&self) -> Option<i64> {
        self.lists_end
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What a side shows.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
    ends: i64,
}

impl Own {
    fn read(files: &TlsFiles, for_use: Use) -> Result<Self, Unprepared> {
        let path = resolve(&files.certificate);
        let chain = prepare::certificates(&path)?;
        let looked = chain
            .first()
            .ok_or_else(|| "no certificate is in it".to_owned())
            .and_then(|own| look::look(own, for_use, UnixTime::now().as_secs()));
        let ends = looked.map_err(|what| Unprepared::Content { path, what })?;
        Ok(Self {
            chain,
            key: prepare::key_of(&resolve(&files.key))?,
            ends,
        })
    }
}

fn roots(files: &TlsFiles) -> Result<Arc<RootCertStore>, Unprepared> {
    let path = resolve(&files.ca);
    let mut roots = RootCertStore::empty();
    for certificate in prepare::certificates(&path)? {
        let added = roots.add(certificate);
        added.map_err(|e| Unprepared::Content {
            path: path.clone(),
            what: format!("one of its certificates is no authority: {e}"),
        })?;
    }
    Ok(Arc::new(roots))
}

fn revoked(files: &TlsFiles) -> Result<Vec<CertificateRevocationListDer<'static>>, Unprepared> {
    let Some(path) = &files.crl else {
        return Ok(Vec::new());
    };
    let path = resolve(path);
    let text = prepare::read(&path)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
    match lists {
        Ok(lists) if !lists.is_empty() => Ok(lists),
        _ => Err(Unprepared::Content {
            path,
            what: "no revocation list in PEM is in it: openssl crl -inform DER makes one of DER"
                .to_owned(),
        }),
    }
}

fn of_crl(files: &TlsFiles, error: &VerifierBuilderError) -> Unprepared {
    Unprepared::Content {
        path: files.crl.as_ref().unwrap_or(&files.ca).clone(),
        what: format!("it cannot be used: {error}"),
    }
}

fn of_pair(files: &TlsFiles, error: &rustls::Error) -> Unprepared {
    let what = match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "it is the key of another certificate than {}",
            files.certificate.display()
        ),
        other => format!(
            "it cannot be used with {}: {other}",
            files.certificate.display()
        ),
    };
    Unprepared::Content {
        path: files.key.clone(),
        what,
    }
}

/// Why TLS was not begun, with the remedy where the error's own words say none.
pub(crate) fn why(error: &std::io::Error) -> String {
    let text = Chain(error).to_string();
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownRevocationStatus)) => {
            format!("{text}: crl has to have a list of each authority in its chain")
        }
        Some(_) | None => text,
    }
}

/// Who showed this chain.
pub(crate) fn presented(chain: Option<&[CertificateDer<'_>]>) -> CertificateNames {
    let names = chain.and_then(<[_]>::first).map(|own| names(own));
    let names = names.unwrap_or_default();
    CertificateNames::new(names.iter().map(String::as_str))
}
