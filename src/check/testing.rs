//! Servers on loopback that answer by hand, for the tests of the kinds.
//!
//! `testdata/` holds a certificate authority (`ca.pem`) and what it signed for one key: `server.pem`, for
//! `www.example.org` and `127.0.0.1` until 2120, `expired.pem` until 2020, `early.pem` from 2119; and
//! `client.pem`. Nobody knows `stranger.pem`. The authorities' keys were thrown away.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    join,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Check;
use crate::model::{
    CheckKind, CheckSpec, CheckTiming, FailReason, Found, Outcome, PinDigest, TlsOptions, Verify,
    Via,
};

/// Nobody waits so long: an outcome that comes is not the time-out's.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// For a server that says nothing.
pub(super) const SHORT: Duration = Duration::from_secs(1);

pub(super) fn fail(reason: FailReason) -> Outcome {
    Outcome::Fail(reason)
}

pub(super) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/check/testdata")
        .join(name)
}

/// A check and its way.
pub(super) struct Ready {
    check: Check,
    pub(super) spec: CheckSpec,
}

impl Ready {
    pub(super) async fn probe(&self, at: SocketAddr) -> Found {
        self.check.probe(at, &self.spec).await
    }
}

pub(super) fn prepared(kind: CheckKind, timeout: Duration) -> Ready {
    let spec = CheckSpec {
        kind,
        via: Via::default(),
        timing: CheckTiming::every(timeout),
    };
    let check = Check::prepare(&spec.kind).unwrap();
    Ready { check, spec }
}

/// One probe of a server that serves one connection; what it saw is the second.
///
/// A server keeps a connection open by returning it.
pub(super) async fn met<T>(
    kind: CheckKind,
    timeout: Duration,
    serve: impl AsyncFnOnce(TcpStream) -> T,
) -> (Found, T) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let check = prepared(kind, timeout);
    let serving = async {
        let (stream, _from) = listener.accept().await.unwrap();
        serve(stream).await
    };
    join!(check.probe(at), serving)
}

/// What a probe finds at a port where nobody listens.
pub(super) async fn met_nobody(kind: CheckKind) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    prepared(kind, LONG).probe(at).await.outcome
}

/// Closes with a reset.
pub(super) fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Reads up to and with `end`.
pub(super) async fn read_to(stream: &mut (impl AsyncRead + Unpin), end: &[u8]) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(end) {
        seen.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

/// Whether the other side took it is its own affair.
pub(super) async fn write(stream: &mut (impl AsyncWriteExt + Unpin), bytes: impl AsRef<[u8]>) {
    if stream.write_all(bytes.as_ref()).await.is_ok() {
        drop(stream.flush().await);
    }
}

/// A server's side of TLS.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tls {
    pub(super) certificate: &'static str,
    pub(super) alpn: &'static [&'static [u8]],
    pub(super) wants_client: bool,
    pub(super) old: bool,
}

pub(super) const TLS: Tls = Tls {
    certificate: "server.pem",
    alpn: &[],
    wants_client: false,
    old: false,
};

fn chain(name: &str) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_file(file(name)).unwrap()]
}

impl Tls {
    /// The handshake's end, whichever.
    pub(super) async fn accept(self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: &[_] = match self.old {
            true => &[&rustls::version::TLS12],
            false => rustls::ALL_VERSIONS,
        };
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let config = match self.wants_client {
            false => config.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(chain("ca.pem"));
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let mut config = config
            .with_single_cert(chain(self.certificate), key)
            .unwrap();
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config)).accept(stream).await
    }
}

/// A client that knows the authority of [`TLS`].
pub(super) fn trusting() -> TlsOptions {
    TlsOptions {
        verify: Verify::Ca(file("ca.pem")),
        ..TlsOptions::default()
    }
}

/// A client that takes this certificate only.
pub(super) fn pinning(name: &str) -> TlsOptions {
    let digest = Sha256::digest(chain(name).first().unwrap());
    TlsOptions {
        verify: Verify::Pin(PinDigest(digest.into())),
        ..TlsOptions::default()
    }
}
