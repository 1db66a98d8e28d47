//! What can go wrong on the way to a server.

use std::{io, net::SocketAddr, time::Duration};

use nix::errno::Errno;

/// One variant for each thing that asks for another remedy.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// No TCP connection.
    #[error("{peer} cannot be reached: is the server up, is the route to it there?")]
    Unreachable {
        /// The server.
        peer: SocketAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// No TCP connection, for want of something here.
    #[error(
        "this host cannot connect to {peer}: look at its routes, addresses and open descriptors"
    )]
    Local {
        /// The server.
        peer: SocketAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A reset in answer to SYN.
    #[error("{peer} refuses the connection: does sshd run there, on this port?")]
    Refused {
        /// The server.
        peer: SocketAddr,
    },
    /// Nothing in answer to SYN.
    #[error(
        "{peer} does not answer: no connection within {limit:?}; is it up, does a filter drop?"
    )]
    ConnectTimedOut {
        /// The server.
        peer: SocketAddr,
        /// What it was given.
        limit: Duration,
    },
    /// TCP connects, but the handshake or login does not end.
    #[error("{peer} accepts the connection but is mute: no SSH login within {limit:?}")]
    Mute {
        /// The server.
        peer: SocketAddr,
        /// What it was given.
        limit: Duration,
    },
    /// The key exchange failed for another reason than the key.
    #[error("{peer} does not complete the SSH handshake")]
    Handshake {
        /// The server.
        peer: SocketAddr,
        /// What russh says.
        #[source]
        source: russh::Error,
    },
    /// Another server, or somebody in between, or a new key.
    #[error(
        "{peer} shows a host key that is not enrolled: expected {expected}, seen {seen}; \
         if the key was changed on purpose, put it in host_keys and apply the inventory"
    )]
    HostKeyMismatch {
        /// The server.
        peer: SocketAddr,
        /// Types and fingerprints of the pins.
        expected: String,
        /// Type and fingerprint of the key that was shown.
        seen: String,
    },
    /// Our key is not accepted.
    #[error(
        "{peer} refuses the key {key} for {user}: put it in the user's authorized_keys; \
         sshd refuses also where the account is locked (passwd -S) or root may not log in"
    )]
    AuthRefused {
        /// The server.
        peer: SocketAddr,
        /// The user there.
        user: String,
        /// Fingerprint of our key.
        key: String,
    },
    /// The connection ended in the middle: what ran may still run.
    #[error("the connection to {peer} was lost")]
    LinkLost {
        /// The server.
        peer: SocketAddr,
        /// What russh says, if anything.
        #[source]
        source: Option<russh::Error>,
    },
    /// A command did not end in time.
    #[error("a command on {peer} did not end within {limit:?}")]
    CommandTimedOut {
        /// The server.
        peer: SocketAddr,
        /// What it was given.
        limit: Duration,
    },
    /// sshd does not run commands for us.
    #[error("{peer} runs no commands for this user: look for ForceCommand or a nologin shell")]
    ExecRefused {
        /// The server.
        peer: SocketAddr,
    },
    /// No SFTP.
    #[error(
        "{peer} offers no SFTP: put 'Subsystem sftp internal-sftp' in its sshd_config, and let the \
         user's shell start-up files print nothing"
    )]
    SftpMissing {
        /// The server.
        peer: SocketAddr,
    },
    /// A file could not be written.
    #[error("{path} on {peer} cannot be written ({what})")]
    File {
        /// The server.
        peer: SocketAddr,
        /// Which file.
        path: String,
        /// The operation that failed.
        what: &'static str,
        /// What the server says.
        #[source]
        source: russh_sftp::client::error::Error,
    },
}

impl SshError {
    /// An error of `connect(2)` or before it.
    pub(in crate::provisioner) fn from_connect(peer: SocketAddr, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused { peer },
            Some(
                Errno::ENETUNREACH
                | Errno::EADDRNOTAVAIL
                | Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOBUFS,
            ) => Self::Local { peer, source },
            _ => Self::Unreachable { peer, source },
        }
    }

    /// An error of a connection that had been established.
    pub(super) fn from_russh(peer: SocketAddr, e: russh::Error) -> Self {
        Self::LinkLost {
            peer,
            source: Some(e),
        }
    }
}
