//! What a probe found, and why it failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a probe had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for the connection.
    Connect,
    /// Waiting for the end of the TLS handshake.
    Tls,
    /// Waiting for the server's greeting.
    Greeting,
    /// Waiting for the answer to a login.
    Login,
    /// Waiting for the answer.
    Answer,
    /// Waiting for the rest of the body.
    Body,
}

impl Phase {
    /// The word for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Greeting => "greeting",
            Self::Login => "login",
            Self::Answer => "answer",
            Self::Body => "body",
        }
    }
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertFault {
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It is for another name.
    WrongName,
    /// No known authority vouches for it.
    UnknownIssuer,
    /// Its authority has taken it back.
    Revoked,
    /// It is not the pinned one.
    NotPinned,
    /// It cannot be read, or may not be used for this.
    Unusable,
}

/// The five characters of an SQLSTATE (ISO 9075; appendix A of PostgreSQL's manual).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SqlState(pub [u8; 5]);

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Why a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailReason {
    /// Nothing listens: the connection was refused.
    Refused,
    /// The connection was reset or closed before the answer.
    Reset,
    /// A connection that was kept open was reset or closed.
    Dropped,
    /// The network or host is unreachable, or a router said so.
    Unreachable,
    /// Nothing came in time.
    TimedOut(Phase),
    /// An HTTP status outside the wanted ranges.
    Status(u16),
    /// The answer is not in the protocol's language.
    Garbled,
    /// The answer is not the expected one.
    Mismatch,
    /// The answer is longer than anything expected.
    TooLong,
    /// TLS: the server's certificate does not hold.
    Certificate(CertFault),
    /// TLS: the server gave up with this alert (RFC 8446, section 6).
    TlsAlert(u8),
    /// TLS: no common ground, or not TLS at all.
    TlsFailed,
    /// The server does not offer TLS.
    NoTls,
    /// A mail server's reply that is not a positive one (RFC 5321, section 4.2).
    SmtpReply(u16),
    /// A name server's response code that is not 0 (RFC 1035, section 4.1.1; RFC 6895).
    DnsCode(u16),
    /// A name server knows no such record.
    NoRecord,
    /// PostgreSQL's error.
    Postgres(SqlState),
    /// MySQL's or MariaDB's error number.
    Mysql(u16),
    /// Redis's error.
    Redis,
    /// The login was refused.
    LoginRefused,
    /// The login's method is none that this program knows.
    LoginMethod,
    /// gRPC's status code that is not 0.
    Grpc(u16),
    /// The server says that it does not serve.
    NotServing,
    /// The server, a file or a helper says: down.
    SaidDown,
    /// The server, a file or a helper says: maintenance. It is taken out, and not replaced.
    SaidMaintenance,
    /// This host could not probe: no socket, no port, no memory, no file, no helper. Says nothing of
    /// the server.
    Local,
}

/// What a failure says of a server, and so what is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailClass {
    /// It serves nobody, or nobody knows what it serves.
    Gone,
    /// It serves, and wants no more to do.
    Busy,
    /// It serves, and its certificate's time is over.
    Certificate,
}

impl FailReason {
    /// Whether it may be the network that failed: nothing came back from the server itself.
    #[must_use]
    pub const fn is_silence(self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Unreachable)
    }

    /// Of which class it is.
    #[must_use]
    pub const fn class(self) -> FailClass {
        match self {
            Self::Certificate(CertFault::Expired) => FailClass::Certificate,
            // 'Service Unavailable', 'Too Many Requests' (RFC 9110, section 15.6.4; RFC 6585, section 4).
            Self::Status(503 | 429)
            // 'Service not available', 'mailbox busy', 'insufficient storage' (RFC 5321, section 4.2.3).
            | Self::SmtpReply(421 | 450 | 452)
            // 'Insufficient resources', above all too many connections (appendix A of PostgreSQL's manual).
            | Self::Postgres(SqlState([b'5', b'3', ..]))
            // ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS (MariaDB's error codes).
            | Self::Mysql(1040 | 1203)
            // RESOURCE_EXHAUSTED (gRPC's status codes).
            | Self::Grpc(8)
            // A server that shuts down in good order says so before (grpc.health.v1).
            | Self::NotServing => FailClass::Busy,
            _ => FailClass::Gone,
        }
    }

    /// The label value in metrics: a closed set.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Dropped => "dropped",
            Self::Unreachable => "unreachable",
            Self::TimedOut(Phase::Connect) => "connect_timed_out",
            Self::TimedOut(Phase::Tls) => "tls_timed_out",
            Self::TimedOut(Phase::Greeting) => "greeting_timed_out",
            Self::TimedOut(Phase::Login) => "login_timed_out",
            Self::TimedOut(Phase::Answer) => "answer_timed_out",
            Self::TimedOut(Phase::Body) => "body_timed_out",
            Self::Status(_) => "status",
            Self::Garbled => "garbled",
            Self::Mismatch => "mismatch",
            Self::TooLong => "too_long",
            Self::Certificate(CertFault::Expired) => "certificate_expired",
            Self::Certificate(CertFault::NotYetValid) => "certificate_not_yet_valid",
            Self::Certificate(CertFault::WrongName) => "certificate_wrong_name",
            Self::Certificate(CertFault::UnknownIssuer) => "certificate_unknown_issuer",
            Self::Certificate(CertFault::Revoked) => "certificate_revoked",
            Self::Certificate(CertFault::NotPinned) => "certificate_not_pinned",
            Self::Certificate(CertFault::Unusable) => "certificate_unusable",
            Self::TlsAlert(_) => "tls_alert",
            Self::TlsFailed => "tls_failed",
            Self::NoTls => "no_tls",
            Self::SmtpReply(_) => "smtp_reply",
            Self::DnsCode(_) => "dns_code",
            Self::NoRecord => "no_record",
            Self::Postgres(_) => "postgres_error",
            Self::Mysql(_) => "mysql_error",
            Self::Redis => "redis_error",
            Self::LoginRefused => "login_refused",
            Self::LoginMethod => "login_method",
            Self::Grpc(_) => "grpc_status",
            Self::NotServing => "not_serving",
            Self::SaidDown => "said_down",
            Self::SaidMaintenance => "said_maintenance",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Status(s) => return write!(f, "HTTP status {s}"),
            Self::TlsAlert(a) => return write!(f, "the server ended TLS with alert {a}"),
            Self::SmtpReply(c) => return write!(f, "the mail server replies {c}"),
            Self::DnsCode(c) => return f.write_str(&dns_code(*c)),
            Self::Postgres(s) => return write!(f, "PostgreSQL says error {s}"),
            Self::Mysql(c) => return write!(f, "the database says error {c}"),
            Self::Grpc(c) => return write!(f, "gRPC status {c}"),
            Self::Refused => "connection refused",
            Self::Reset => "connection closed before the answer",
            Self::Dropped => "the connection that was kept open ended",
            Self::Unreachable => "host or network unreachable",
            Self::TimedOut(Phase::Connect) => "no connection in time",
            Self::TimedOut(Phase::Tls) => "no TLS handshake in time",
            Self::TimedOut(Phase::Greeting) => "no greeting in time",
            Self::TimedOut(Phase::Login) => "no answer to the login in time",
            Self::TimedOut(Phase::Answer) => "no answer in time",
            Self::TimedOut(Phase::Body) => "the answer did not end in time",
            Self::Garbled => "the answer is in another protocol",
            Self::Mismatch => "the answer is not the expected one",
            Self::TooLong => "the answer is too long",
            Self::Certificate(CertFault::Expired) => "the certificate has expired",
            Self::Certificate(CertFault::NotYetValid) => "the certificate is not valid yet",
            Self::Certificate(CertFault::WrongName) => "the certificate is for another name",
            Self::Certificate(CertFault::UnknownIssuer) => {
                "no known authority signed the certificate"
            }
            Self::Certificate(CertFault::Revoked) => "the certificate was revoked",
            Self::Certificate(CertFault::NotPinned) => "the certificate is not the pinned one",
            Self::Certificate(CertFault::Unusable) => "the certificate cannot be used",
            Self::TlsFailed => "no TLS with this server",
            Self::NoTls => "the server does not offer TLS",
            Self::NoRecord => "the name server knows no such record",
            Self::Redis => "Redis answers with an error",
            Self::LoginRefused => "the login was refused",
            Self::LoginMethod => "the server wants a kind of login that is not known here",
            Self::NotServing => "the server says that it does not serve",
            Self::SaidDown => "declared down",
            Self::SaidMaintenance => "declared in maintenance",
            Self::Local => "this host could not probe",
        };
        f.write_str(text)
    }
}

/// The names of RFC 1035 and RFC 6895.
fn dns_code(code: u16) -> String {
    let name = match code {
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        9 => "NOTAUTH",
        _ => return format!("the name server answers with code {code}"),
    };
    format!("the name server answers {name}")
}

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The server answered as asked.
    Pass,
    /// It did not.
    Fail(FailReason),
}
