//! Uploads over SFTP.

use std::{fmt, time::Duration};

use russh::ChannelMsg;
use russh_sftp::{
    client::{Config, RawSftpSession, error::Error as SftpError},
    protocol::{FileAttributes, OpenFlags},
};
use tokio::time::timeout;

use super::{Ssh, SshError};

/// For each request.
const REQUEST_SECS: u64 = 20;
/// For the subsystem to come up; a shell that prints something on the way makes it hang.
const START: Duration = Duration::from_secs(20);
/// Below the 32 KiB that every server takes.
const CHUNK: usize = 32 * 1024 - 256;
/// The subsystem runs as the user; this is where Debian and Red Hat have its program.
const AS_ROOT: &str = "for s in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server; do \
                       [ -x $s ] && exec sudo -n $s; done; exit 127";
const FSYNC: &str = "fsync@openssh.com";

/// An SFTP session.
pub struct Files {
    session: RawSftpSession,
    peer: std::net::SocketAddr,
    fsync: bool,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("peer", &self.peer).finish()
    }
}

impl Ssh {
    /// Opens SFTP on this connection.
    ///
    /// # Errors
    ///
    /// `SftpMissing` where the server has none.
    pub async fn files(&self) -> Result<Files, SshError> {
        let peer = self.peer;
        let mut channel = self
            .handle
            .channel_open_session()
            .await
            .map_err(|e| SshError::from_russh(peer, e))?;
        let missing = || SshError::SftpMissing { peer };
        let asked = async {
            if self.elevate {
                channel.exec(true, AS_ROOT).await?;
            } else {
                channel.request_subsystem(true, "sftp").await?;
            }
            // The request is only sent by then; the answer comes as a message.
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::Success) => return Ok(true),
                    Some(ChannelMsg::Failure | ChannelMsg::Close) | None => return Ok(false),
                    Some(_) => {}
                }
            }
        };
        match timeout(START, asked).await {
            Ok(Ok(true)) => {}
            Ok(Err(e)) => return Err(SshError::from_russh(peer, e)),
            Ok(Ok(false)) if self.handle.is_closed() => {
                return Err(SshError::LinkLost { peer, source: None });
            }
            Ok(Ok(false)) | Err(_) => return Err(missing()),
        }
        let session = RawSftpSession::new_with_config(
            channel.into_stream(),
            Config {
                request_timeout_secs: REQUEST_SECS,
                ..Default::default()
            },
        );
        match timeout(START, session.init()).await {
            Ok(Ok(version)) => Ok(Files {
                fsync: version.extensions.contains_key(FSYNC),
                session,
                peer,
            }),
            Ok(Err(_)) if self.handle.is_closed() => Err(SshError::LinkLost { peer, source: None }),
            Ok(Err(_)) | Err(_) => Err(missing()),
        }
    }
}

impl Files {
    /// Writes a file that must not be there yet (a planted link is not followed), with exactly
    /// these permission bits, to the disk. Leaves nothing behind where it fails.
    ///
    /// # Errors
    ///
    /// `File`, naming the operation that failed.
    pub async fn create(&self, path: &str, data: &[u8], mode: u32) -> Result<(), SshError> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let attributes = FileAttributes {
            permissions: Some(mode & 0o7777),
            ..FileAttributes::empty()
        };
        let opened = self.session.open(path, flags, attributes.clone()).await;
        let handle = opened.map_err(|e| self.failed(path, "create", e))?.handle;
        let written = self.fill(path, &handle, data, attributes).await;
        // Some write errors come only now.
        let closed = self.session.close(handle.as_str()).await;
        let closed = closed.map_err(|e| self.failed(path, "close", e));
        let result = written.and(closed.map(|_status| ()));
        if result.is_err() {
            // The first error is the one to tell.
            drop(self.session.remove(path).await);
        }
        result
    }

    async fn fill(
        &self,
        path: &str,
        handle: &str,
        data: &[u8],
        attributes: FileAttributes,
    ) -> Result<(), SshError> {
        let mut offset = 0;
        for chunk in data.chunks(CHUNK) {
            self.session
                .write(handle, offset, chunk.to_vec())
                .await
                .map_err(|e| self.failed(path, "write", e))?;
            offset += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        }
        // The mode at open went through the server's umask.
        self.session
            .fsetstat(handle, attributes)
            .await
            .map_err(|e| self.failed(path, "set the mode", e))?;
        if self.fsync {
            self.session
                .fsync(handle)
                .await
                .map_err(|e| self.failed(path, "fsync", e))?;
        }
        Ok(())
    }

    /// Removes files, as far as they are there.
    pub async fn remove(&self, paths: &[String]) {
        for path in paths {
            drop(self.session.remove(path).await);
        }
    }

    fn failed(&self, path: &str, what: &'static str, source: SftpError) -> SshError {
        match source {
            SftpError::Status(_) | SftpError::Limited(_) => SshError::File {
                peer: self.peer,
                path: path.to_owned(),
                what,
                source,
            },
            _ => SshError::LinkLost {
                peer: self.peer,
                source: None,
            },
        }
    }
}
