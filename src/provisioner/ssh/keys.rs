//! Keys: ours to log in, theirs as pins.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use russh::keys::{self, Algorithm, PrivateKey, PublicKey};

use super::fingerprint;

/// rsaEncryption, as PKCS#8 names it.
const RSA_OID: &str = "1.2.840.113549.1.1.1";
/// PEM headers end within this many bytes.
const ENCRYPTED_WITHIN: usize = 120;

/// A host key that is accepted.
#[derive(Clone, Debug)]
pub struct HostKey(PublicKey);

/// A text that is no usable host key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyError {
    /// Not `<type> <base64>`.
    #[error(
        "not a host key: give one line as in /etc/ssh/ssh_host_ed25519_key.pub \
         (of a line from ssh-keyscan leave out the first word)"
    )]
    Malformed,
    /// RSA.
    #[error(
        "an RSA host key cannot be checked by this build: give the server's Ed25519 or ECDSA key \
         (/etc/ssh/ssh_host_ed25519_key.pub)"
    )]
    Rsa,
    /// DSA, a hardware key, something new.
    #[error("host keys of type {0} are not supported: give the Ed25519 or ECDSA key")]
    Unsupported(String),
}

impl HostKey {
    /// Reads OpenSSH's one-line form; a comment is allowed and means nothing.
    ///
    /// # Errors
    ///
    /// Why it cannot be a pin, and what to give instead.
    pub fn parse(line: &str) -> Result<Self, HostKeyError> {
        if line.trim_start().starts_with("ssh-rsa ") {
            return Err(HostKeyError::Rsa);
        }
        let Ok(key) = PublicKey::from_openssh(line.trim()) else {
            return Err(HostKeyError::Malformed);
        };
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(Self(key)),
            Algorithm::Rsa { .. } => Err(HostKeyError::Rsa),
            other => Err(HostKeyError::Unsupported(other.to_string())),
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }

    /// Whether `key` is this key. Not `==` of the keys, which compares comments too.
    pub(super) fn is(&self, key: &PublicKey) -> bool {
        self.0.key_data() == key.key_data()
    }

    /// Type and fingerprint.
    #[must_use]
    pub fn describe(&self) -> String {
        describe(&self.0)
    }
}

/// Two pins are equal where they accept the same key, whatever their comments.
impl PartialEq for HostKey {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

pub(super) fn describe(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), fingerprint(key))
}

/// The private key that logs in on the spares.
#[derive(Clone)]
pub struct ClientKey(Arc<PrivateKey>);

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientKey")
            .field(&self.fingerprint())
            .finish()
    }
}

/// A key that cannot log in.
#[derive(Debug, thiserror::Error)]
pub enum ClientKeyError {
    /// The file cannot be read.
    #[error("the SSH key {path} cannot be read: check the path and its owner")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It has a passphrase.
    #[error(
        "the SSH key {name} is encrypted, and nobody is there to type its passphrase: give a key \
         without one as a systemd credential (LoadCredentialEncrypted= keeps it encrypted on disk)"
    )]
    Encrypted {
        /// File or credential.
        name: String,
    },
    /// RSA.
    #[error(
        "the SSH key {name} is an RSA key, which this build does not use: \
         make one with ssh-keygen -t ed25519"
    )]
    Rsa {
        /// File or credential.
        name: String,
    },
    /// The public half.
    #[error("{name} holds a public key: give the private one, without .pub")]
    Public {
        /// File or credential.
        name: String,
    },
    /// Neither Ed25519 nor ECDSA.
    #[error(
        "the SSH key {name} is of type {algorithm}, which cannot be used here: \
         make one with ssh-keygen -t ed25519"
    )]
    Unsupported {
        /// File or credential.
        name: String,
        /// Its type.
        algorithm: String,
    },
    /// No key at all.
    #[error("{name} holds no private SSH key: make one with ssh-keygen -t ed25519")]
    NotAKey {
        /// File or credential.
        name: String,
        /// What the reader says.
        #[source]
        source: keys::Error,
    },
}

impl ClientKey {
    /// Reads the private key in the file at `path`.
    ///
    /// # Errors
    ///
    /// Why it cannot be used, naming the file and the remedy.
    pub fn load(path: &Path) -> Result<Self, ClientKeyError> {
        let bytes = std::fs::read(path).map_err(|source| ClientKeyError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads a private key from `bytes`, called `name` in errors.
    ///
    /// # Errors
    ///
    /// Why it cannot be used, and the remedy.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self, ClientKeyError> {
        let name = || name.to_owned();
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start();
        if text.starts_with("-----BEGIN RSA ") {
            return Err(ClientKeyError::Rsa { name: name() });
        }
        if ["ssh-", "ecdsa-", "sk-"]
            .iter()
            .any(|p| text.starts_with(p))
        {
            return Err(ClientKeyError::Public { name: name() });
        }
        // The old forms say so in the clear; OpenSSH's own is seen below.
        let head = text.get(..ENCRYPTED_WITHIN).unwrap_or(text);
        if head.contains("BEGIN ENCRYPTED") || head.contains("4,ENCRYPTED") {
            return Err(ClientKeyError::Encrypted { name: name() });
        }
        let key = match keys::decode_secret_key(text, None) {
            Ok(key) => key,
            Err(keys::Error::KeyIsEncrypted) => {
                return Err(ClientKeyError::Encrypted { name: name() });
            }
            Err(keys::Error::UnknownAlgorithm(id)) if id.to_string() == RSA_OID => {
                return Err(ClientKeyError::Rsa { name: name() });
            }
            Err(source) => {
                return Err(ClientKeyError::NotAKey {
                    name: name(),
                    source,
                });
            }
        };
        match key.algorithm() {
            // OpenSSH's format shows the type of an encrypted key.
            _ if key.is_encrypted() => Err(ClientKeyError::Encrypted { name: name() }),
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(Self(Arc::new(key))),
            Algorithm::Rsa { .. } => Err(ClientKeyError::Rsa { name: name() }),
            other => Err(ClientKeyError::Unsupported {
                name: name(),
                algorithm: other.to_string(),
            }),
        }
    }

    /// As `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(self.0.public_key())
    }

    pub(super) fn inner(&self) -> Arc<PrivateKey> {
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIOjHGtJGwZPpcbH1Nb5cjC9UwfssTOxihIlZu+QoNatm";

    #[test]
    fn comments_do_not_matter() {
        let plain = HostKey::parse(ED25519).unwrap();
        let commented = HostKey::parse(&format!("{ED25519} root@web1\n")).unwrap();
        assert_eq!(plain, commented);
    }

    #[test]
    fn unusable_host_keys_say_what_to_give() {
        let rsa = HostKey::parse("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ== x").unwrap_err();
        assert_eq!(rsa, HostKeyError::Rsa);
        for text in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA!!",
            "web1 ssh-ed25519 AAAA",
        ] {
            let e = HostKey::parse(text).unwrap_err();
            assert_eq!(e, HostKeyError::Malformed, "{text:?}");
        }
    }
}
