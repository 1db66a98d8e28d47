//! SSH: connections, commands and uploads. The only room that knows russh and russh-sftp, whose API
//! changes with every release; it knows nothing of steps.
//!
//! A server proves its key before anything of ours is sent: the pins decide which algorithms are
//! offered, and a key without a pin ends the connection before authentication begins.

mod error;
mod exec;
mod files;
mod keys;
mod scan;

pub use error::SshError;
pub use exec::{Captured, End, Ran, quote};
pub use files::Files;
pub use keys::{ClientKey, ClientKeyError, HostKey, HostKeyError};
pub use scan::{Shown, scan};

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use russh::{
    Disconnect, Preferred,
    client::{self, Handle},
    keys::{HashAlg, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

/// A peer that vanishes without a word is noticed after `KEEPALIVE` times `KEEPALIVE_MAX`. Commands
/// may be silent for as long as they like: there is no inactivity limit.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_MAX: usize = 3;
/// A polite goodbye waits no longer than this.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where to log in, as whom, and how the server proves itself.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address and port of its sshd.
    pub peer: SocketAddr,
    /// User there.
    pub user: String,
    /// Accepted host keys: several while a key is rotated, never none.
    pub pins: Vec<HostKey>,
    /// For TCP, key exchange and authentication together.
    pub connect_timeout: Duration,
    /// Whether `sudo -n` goes before what needs root.
    pub elevate: bool,
}

/// A connection that is logged in.
pub struct Ssh {
    handle: Handle<Verifier>,
    peer: SocketAddr,
    elevate: bool,
}

impl fmt::Debug for Ssh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ssh").field("peer", &self.peer).finish()
    }
}

/// Decides about the server's key, and remembers the one it refused.
struct Verifier {
    pins: Vec<HostKey>,
    refused: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Verifier {
    type Error = russh::Error;

    /// russh has verified the server's signature with this key before it asks.
    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let key = shown.public_key();
        let known = shown.certificate().is_none() && self.pins.iter().any(|p| p.is(&key));
        if !known {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            *refused = Some(keys::describe(&key));
        }
        Ok(known)
    }
}

impl Ssh {
    /// Connects, checks the host key, logs in.
    ///
    /// # Errors
    ///
    /// What went wrong, told apart as far as it matters for what to do next.
    pub async fn connect(target: &Target, key: &ClientKey) -> Result<Self, SshError> {
        let Target {
            peer,
            connect_timeout: limit,
            ..
        } = *target;
        let deadline = Instant::now() + limit;
        let stream = match timeout_at(deadline, TcpStream::connect(peer)).await {
            Err(_elapsed) => return Err(SshError::ConnectTimedOut { peer, limit }),
            Ok(Err(e)) => return Err(SshError::from_connect(peer, e)),
            Ok(Ok(stream)) => stream,
        };
        stream
            .set_nodelay(true)
            .map_err(|source| SshError::Unreachable { peer, source })?;
        let refused = Arc::new(Mutex::new(None));
        let verifier = Verifier {
            pins: target.pins.clone(),
            refused: Arc::clone(&refused),
        };
        let started = client::connect_stream(Arc::new(config(&target.pins)), stream, verifier);
        let mut handle = match timeout_at(deadline, started).await {
            Err(_elapsed) => return Err(SshError::Mute { peer, limit }),
            Ok(Err(e)) => {
                let seen = refused
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                return Err(handshake_error(target, seen, e));
            }
            Ok(Ok(handle)) => handle,
        };
        // No hash: RSA keys, which need one, were refused when the key was read.
        let login = PrivateKeyWithHashAlg::new(key.inner(), None);
        let answer = timeout_at(deadline, handle.authenticate_publickey(&target.user, login)).await;
        match answer {
            Err(_elapsed) => Err(SshError::Mute { peer, limit }),
            Ok(Err(e)) => Err(SshError::from_russh(peer, e)),
            Ok(Ok(result)) if result.success() => Ok(Self {
                handle,
                peer,
                elevate: target.elevate,
            }),
            Ok(Ok(_refused)) => Err(SshError::AuthRefused {
                peer,
                user: target.user.clone(),
                key: key.fingerprint(),
            }),
        }
    }

    /// The server's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether `sudo -n` must go before what needs root.
    #[must_use]
    pub fn elevates(&self) -> bool {
        self.elevate
    }

    /// Whether it stands, as far as is known here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.handle.is_closed()
    }

    /// Says goodbye. A connection that is only dropped is closed too, with a complaint in sshd's log.
    pub async fn close(self) {
        let bye = async {
            // A link that is already gone needs no goodbye.
            if self
                .handle
                .disconnect(Disconnect::ByApplication, "done", "en")
                .await
                .is_ok()
            {
                drop(self.handle.await);
            }
        };
        drop(timeout(GOODBYE, bye).await);
    }
}

fn config(pins: &[HostKey]) -> client::Config {
    // Only algorithms with a pin are offered: the server could show a key that nobody pinned while
    // it holds one that is.
    let mut algorithms: Vec<_> = pins.iter().map(HostKey::algorithm).collect();
    algorithms.dedup();
    client::Config {
        nodelay: true,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        inactivity_timeout: None,
        preferred: Preferred {
            key: algorithms.into(),
            ..Preferred::DEFAULT
        },
        ..Default::default()
    }
}

fn handshake_error(target: &Target, seen: Option<String>, e: russh::Error) -> SshError {
    let peer = target.peer;
    let expected = || {
        let all: Vec<_> = target.pins.iter().map(HostKey::describe).collect();
        all.join(" or ")
    };
    match (seen, e) {
        (Some(seen), _) => SshError::HostKeyMismatch {
            peer,
            expected: expected(),
            seen,
        },
        (
            None,
            russh::Error::NoCommonAlgo {
                kind: russh::AlgorithmKind::Key,
                theirs,
                ..
            },
        ) => SshError::HostKeyMismatch {
            peer,
            expected: expected(),
            seen: format!("only keys of the types {}", theirs.join(", ")),
        },
        (None, source) => SshError::Handshake { peer, source },
    }
}

/// The fingerprint as `ssh-keygen -l` prints it.
fn fingerprint(key: &russh::keys::PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}
