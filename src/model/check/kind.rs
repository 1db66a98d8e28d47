//! The kinds of checks with their options.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// What a probe asks of a real server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// A TCP connection is accepted; keepalived's `TCP_CHECK`.
    Tcp(TcpCheck),
    /// A request over HTTP is answered with a wanted status; with TLS `https`.
    Http(Box<HttpCheck>),
    /// A TLS handshake succeeds.
    Tls(TlsOptions),
    /// A mail server greets and answers `EHLO`.
    Smtp(SmtpCheck),
    /// A name server answers.
    Dns(DnsCheck),
    /// A datagram is answered, or at least not refused.
    Udp(UdpCheck),
    /// An ICMP echo request is answered.
    Icmp(IcmpCheck),
    /// A PostgreSQL server answers.
    Postgres(LoginCheck),
    /// A MySQL or MariaDB server answers.
    Mysql(LoginCheck),
    /// A Redis server answers `PING`.
    Redis(LoginCheck),
    /// The server says `SERVING` by grpc.health.v1.
    Grpc(GrpcCheck),
    /// The server says a word on itself, as `HAProxy`'s agent-check.
    Agent(TcpCheck),
    /// A file of this host says a word on the server, as keepalived's `FILE_CHECK`.
    FromFile(FileCheck),
    /// A helper of the operator's is asked over a Unix socket, the successor of `MISC_CHECK`.
    External(ExternalCheck),
}

impl Default for CheckKind {
    /// A connection is accepted.
    fn default() -> Self {
        Self::Tcp(TcpCheck::default())
    }
}

impl CheckKind {
    /// The word in the configuration, the log and `status`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Http(http) if http.tls.is_some() => "https",
            Self::Http(_) => "http",
            Self::Tls(_) => "tls",
            Self::Smtp(_) => "smtp",
            Self::Dns(_) => "dns",
            Self::Udp(_) => "udp",
            Self::Icmp(_) => "icmp",
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "mysql",
            Self::Redis(_) => "redis",
            Self::Grpc(_) => "grpc",
            Self::Agent(_) => "agent",
            Self::FromFile(_) => "file",
            Self::External(_) => "external",
        }
    }

    /// How it speaks TLS, if it does.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsOptions> {
        match self {
            Self::Http(http) => http.tls.as_ref(),
            Self::Tls(tls) => Some(tls),
            Self::Smtp(smtp) => match smtp.tls.as_ref()? {
                SmtpTls::Implicit(tls) | SmtpTls::Starttls(tls) => Some(tls),
            },
            Self::Postgres(login) | Self::Mysql(login) | Self::Redis(login) => login.tls.as_ref(),
            Self::Grpc(grpc) => grpc.tls.as_ref(),
            Self::Tcp(_)
            | Self::Dns(_)
            | Self::Udp(_)
            | Self::Icmp(_)
            | Self::Agent(_)
            | Self::FromFile(_)
            | Self::External(_) => None,
        }
    }

    /// Whether something of this host has to be read before it can be made: certificates, keys, passwords.
    #[must_use]
    pub fn reads(&self) -> bool {
        let credentials = match self {
            Self::Http(http) => http.credentials.is_some(),
            Self::Postgres(login) | Self::Mysql(login) | Self::Redis(login) => {
                login.credentials.is_some()
            }
            Self::Tls(_)
            | Self::Smtp(_)
            | Self::Grpc(_)
            | Self::Tcp(_)
            | Self::Dns(_)
            | Self::Udp(_)
            | Self::Icmp(_)
            | Self::Agent(_)
            | Self::FromFile(_)
            | Self::External(_) => false,
        };
        credentials || self.tls().is_some()
    }

    /// Whether an answer may say something of the server's weight.
    #[must_use]
    pub const fn advises(&self) -> bool {
        matches!(self, Self::Agent(_) | Self::FromFile(_) | Self::External(_))
    }

    /// Whether the server's port is asked: a check without it can stand in a service without ports.
    #[must_use]
    pub const fn needs_port(&self) -> bool {
        !matches!(self, Self::Icmp(_) | Self::FromFile(_) | Self::External(_))
    }

    /// The same without what only this host has, for a provisioner: no credentials, no client
    /// certificate; `None` where nothing is left to ask a server.
    #[must_use]
    pub fn for_others(&self) -> Option<Self> {
        match self {
            Self::FromFile(_) | Self::External(_) => None,
            // An echo asks for a privilege that a provisioner does not have.
            Self::Icmp(_) => None,
            Self::Http(http) if http.credentials.is_some() => Some(Self::Tcp(TcpCheck::default())),
            Self::Http(http) => match &http.tls {
                Some(tls) if tls.client.is_some() => Some(Self::Tcp(TcpCheck::default())),
                _ => Some(self.clone()),
            },
            Self::Tls(tls) if tls.client.is_some() => Some(Self::Tcp(TcpCheck::default())),
            Self::Grpc(GrpcCheck { tls: Some(tls), .. }) if tls.client.is_some() => {
                Some(Self::Tcp(TcpCheck::default()))
            }
            Self::Postgres(login) => Some(Self::Postgres(login.greeting_only())),
            Self::Mysql(login) => Some(Self::Mysql(login.greeting_only())),
            Self::Redis(login) => Some(Self::Redis(login.greeting_only())),
            Self::Tcp(tcp) => Some(Self::Tcp(TcpCheck {
                hold: false,
                ..tcp.clone()
            })),
            Self::Tls(_)
            | Self::Smtp(_)
            | Self::Dns(_)
            | Self::Udp(_)
            | Self::Grpc(_)
            | Self::Agent(_) => Some(self.clone()),
        }
    }
}

/// Which answers pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// One that has this in it.
    Text(String),
    /// One that this regular expression (of the `regex` crate, on bytes) matches somewhere.
    Regex(String),
    /// One that begins with these bytes, of which only the bits set in the second of each pair count.
    Bytes(Vec<(u8, u8)>),
    /// One whose SHA-256 digest this is.
    Sha256([u8; 32]),
}

impl Expect {
    /// A compiled regular expression may take this many bytes.
    const LARGEST_REGEX: usize = 1 << 20;

    /// Compiles a regular expression on bytes.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words.
    pub fn compile(pattern: &str) -> Result<Regex, String> {
        let mut builder = RegexBuilder::new(pattern);
        let built = builder.size_limit(Self::LARGEST_REGEX).build();
        built.map_err(|error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            let why = last.trim_start_matches("error: ");
            format!("{pattern:?} is no regular expression: {why}")
        })
    }
}

/// Options of `tcp`, and of `agent`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TcpCheck {
    /// Sent when the connection stands.
    pub send: Vec<u8>,
    /// What the answer has to be.
    pub expect: Option<Expect>,
    /// Whether the connection is kept, so that its end is seen at once.
    pub hold: bool,
}

/// A range of HTTP statuses, both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StatusRange {
    /// Lowest.
    pub from: u16,
    /// Highest.
    pub to: u16,
}

/// Which version of HTTP is spoken.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum HttpVersion {
    /// HTTP/1.1.
    #[default]
    One,
    /// HTTP/2, over TLS by ALPN, without it by prior knowledge (RFC 9113, section 3).
    Two,
}

/// Options of `http` and `https`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HttpCheck {
    /// Path and query, begins with `/`.
    pub path: String,
    /// `Host` or `:authority`; the address and port where it is none.
    pub host: Option<String>,
    /// Method, `GET` where nobody says so.
    pub method: String,
    /// Further headers.
    pub headers: BTreeMap<String, String>,
    /// A file that holds `user:password` for basic authentication (RFC 7617).
    pub credentials: Option<PathBuf>,
    /// Wanted statuses.
    pub status: Vec<StatusRange>,
    /// What the body has to be; it is not read where this is none.
    pub body: Option<Expect>,
    /// Version.
    pub version: HttpVersion,
    /// With TLS.
    pub tls: Option<TlsOptions>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            path: "/".to_owned(),
            host: None,
            method: "GET".to_owned(),
            headers: BTreeMap::new(),
            credentials: None,
            status: vec![StatusRange { from: 200, to: 299 }],
            body: None,
            version: HttpVersion::One,
            tls: None,
        }
    }
}

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PinDigest(pub [u8; 32]);

impl fmt::Debug for PinDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How a server's certificate is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// By this host's certificate authorities, name and time.
    #[default]
    System,
    /// By the certificate authorities in a PEM file, name and time.
    Ca(PathBuf),
    /// It is this one, whatever it says.
    Pin(PinDigest),
    /// Not at all.
    Off,
}

/// Options of every check that speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TlsOptions {
    /// Server name: sent (RFC 6066, section 3) and looked for in the certificate. None is sent where it is none.
    pub sni: Option<String>,
    /// How the certificate is judged.
    pub verify: Verify,
    /// Certificate chain and key of our own, in PEM files.
    pub client: Option<(PathBuf, PathBuf)>,
    /// A certificate that ends sooner is a warning.
    pub expiry_warning: Duration,
}

/// Whether TLS follows in the midst of a mail server's talk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SmtpTls {
    /// From the first byte (RFC 8314).
    Implicit(TlsOptions),
    /// After `STARTTLS` (RFC 3207).
    Starttls(TlsOptions),
}

/// Options of `smtp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SmtpCheck {
    /// Named in `EHLO`, keepalived's `helo_name`; this host's address where it is none.
    pub ehlo: Option<String>,
    /// With TLS.
    pub tls: Option<SmtpTls>,
}

/// Record types of `dns`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "UPPERCASE")]
#[expect(
    missing_docs,
    reason = "the registered names (RFC 1035, 3596, 2782, 9460)"
)]
pub enum DnsType {
    A,
    Aaaa,
    Caa,
    Cname,
    Mx,
    Ns,
    Ptr,
    #[default]
    Soa,
    Srv,
    Txt,
}

impl DnsType {
    /// All, with the names of the configuration.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::A, "A"),
        (Self::Aaaa, "AAAA"),
        (Self::Caa, "CAA"),
        (Self::Cname, "CNAME"),
        (Self::Mx, "MX"),
        (Self::Ns, "NS"),
        (Self::Ptr, "PTR"),
        (Self::Soa, "SOA"),
        (Self::Srv, "SRV"),
        (Self::Txt, "TXT"),
    ];
}

/// Options of `dns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DnsCheck {
    /// What is asked for; `.` as keepalived's `DNS_CHECK` where nobody says so.
    pub name: String,
    /// Which records.
    pub record: DnsType,
    /// Over TCP.
    pub tcp: bool,
    /// What one of the records has to be, as `dig` shows it.
    pub answer: Option<String>,
}

/// Options of `udp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UdpCheck {
    /// The datagram.
    pub send: Vec<u8>,
    /// What the answer has to be.
    pub expect: Option<Expect>,
    /// Whether silence is a failure; without it only an ICMP error is, as in keepalived.
    pub require_reply: bool,
}

/// Options of `icmp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IcmpCheck {
    /// Bytes after the echo's head.
    pub size: u16,
}

/// Options of `postgres`, `mysql` and `redis`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoginCheck {
    /// A file that holds `user:password`; the server's greeting suffices where it is none.
    pub credentials: Option<PathBuf>,
    /// Database; the user's where it is none.
    pub database: Option<String>,
    /// With TLS: asked for in the protocol's own way, for Redis from the first byte.
    pub tls: Option<TlsOptions>,
}

impl LoginCheck {
    fn greeting_only(&self) -> Self {
        let without_key = |tls: &TlsOptions| TlsOptions {
            client: None,
            ..tls.clone()
        };
        Self {
            credentials: None,
            database: None,
            tls: self.tls.as_ref().map(without_key),
        }
    }
}

/// Options of `grpc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GrpcCheck {
    /// Service asked about; the whole server where it is empty.
    pub service: String,
    /// `:authority`; the address and port where it is none.
    pub host: Option<String>,
    /// With TLS.
    pub tls: Option<TlsOptions>,
}

/// Options of `file`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileCheck {
    /// Where; `{address}` and `{port}` in it stand for the server's.
    pub path: String,
}

impl FileCheck {
    /// The file that tells of a server.
    #[must_use]
    pub fn path_for(&self, server: SocketAddr) -> PathBuf {
        let address = self.path.replace("{address}", &server.ip().to_string());
        address.replace("{port}", &server.port().to_string()).into()
    }
}

/// Options of `external`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExternalCheck {
    /// The helper's Unix socket.
    pub socket: PathBuf,
    /// Passed on to it.
    pub name: String,
}
