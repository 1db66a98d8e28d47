//! Which key a server shows: for enrolment, where a person compares it with the server's console.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use russh::{
    Preferred, client,
    keys::{Algorithm, EcdsaCurve, PublicKey, PublicKeyOrCertificate},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{SshError, fingerprint};

/// A key that a server has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// In OpenSSH's one-line form, without a comment.
    pub line: String,
    /// As `ssh-keygen -l` prints it.
    pub fingerprint: String,
}

/// Keeps the server's key, and goes no further.
struct Keeper(Arc<Mutex<Option<PublicKey>>>);

impl client::Handler for Keeper {
    type Error = russh::Error;

    /// russh has verified the server's signature with this key before it asks.
    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let key = shown.public_key().clone();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(false)
    }
}

/// Connects as far as the server's key: its Ed25519 key, or an ECDSA one where it has no other.
///
/// # Errors
///
/// What kept it from being shown.
pub async fn scan(peer: SocketAddr, limit: Duration) -> Result<Shown, SshError> {
    let deadline = Instant::now() + limit;
    let stream = match timeout_at(deadline, TcpStream::connect(peer)).await {
        Err(_elapsed) => return Err(SshError::ConnectTimedOut { peer, limit }),
        Ok(Err(e)) => return Err(SshError::from_connect(peer, e)),
        Ok(Ok(stream)) => stream,
    };
    let shown = Arc::new(Mutex::new(None));
    let config = client::Config {
        preferred: Preferred {
            key: vec![
                Algorithm::Ed25519,
                Algorithm::Ecdsa {
                    curve: EcdsaCurve::NistP256,
                },
                Algorithm::Ecdsa {
                    curve: EcdsaCurve::NistP384,
                },
            ]
            .into(),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    };
    let started = client::connect_stream(Arc::new(config), stream, Keeper(Arc::clone(&shown)));
    let ended = match timeout_at(deadline, started).await {
        Err(_elapsed) => return Err(SshError::Mute { peer, limit }),
        Ok(ended) => ended,
    };
    let key = shown.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (key, ended) {
        (Some(key), _) => {
            let unwritable =
                |e| SshError::from_russh(peer, russh::Error::Keys(russh::keys::Error::from(e)));
            let mut plain = key;
            plain.set_comment("");
            Ok(Shown {
                line: plain.to_openssh().map_err(unwritable)?,
                fingerprint: fingerprint(&plain),
            })
        }
        (None, Err(source)) => Err(SshError::Handshake { peer, source }),
        (None, Ok(_logged_in_without_a_key)) => Err(SshError::Mute { peer, limit }),
    }
}
