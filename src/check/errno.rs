//! What an error of a socket says of the server, if it says anything.

use std::{io, net::SocketAddr};

use nix::errno::Errno;

use super::tls;
use crate::model::{FailReason, Phase};

/// The reason that `error`, met on a socket to `at` during `phase`, stands for.
///
/// What a remote host or router can cause is a short list (`icmp_err_convert` and
/// `icmpv6_err_convert` in the kernel, resets and time-outs of TCP). All else is this host's: no
/// descriptor, no port, no memory, no interface, a local firewall.
pub(super) fn reason(error: &io::Error, at: SocketAddr, phase: Phase) -> FailReason {
    // TLS 1.3 may refuse a client's certificate after the handshake (RFC 8446, section 4.4.2.4).
    if let Some(fault) = tls::fault(error) {
        return tls::reason(fault);
    }
    let Some(code) = error.raw_os_error() else {
        return by_kind(error.kind(), phase);
    };
    match Errno::from_raw(code) {
        Errno::ECONNREFUSED => FailReason::Refused,
        Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED | Errno::ENOTCONN => {
            FailReason::Reset
        }
        Errno::ETIMEDOUT => FailReason::TimedOut(phase),
        Errno::EHOSTUNREACH
        | Errno::ENETUNREACH
        | Errno::EHOSTDOWN
        | Errno::ENONET
        | Errno::ENOPROTOOPT
        | Errno::EOPNOTSUPP
        | Errno::EPROTO => FailReason::Unreachable,
        // 'Administratively prohibited' and 'reject route' of ICMPv6; ICMPv4 never becomes EACCES.
        Errno::EACCES if at.is_ipv6() => FailReason::Unreachable,
        _ => FailReason::Local,
    }
}

/// Libraries between a socket and us keep the kind of an error and lose its number.
const fn by_kind(kind: io::ErrorKind, phase: Phase) -> FailReason {
    match kind {
        io::ErrorKind::ConnectionRefused => FailReason::Refused,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected
        | io::ErrorKind::BrokenPipe => FailReason::Reset,
        io::ErrorKind::TimedOut => FailReason::TimedOut(phase),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            FailReason::Unreachable
        }
        _ => FailReason::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(errno: Errno, at: &str) -> FailReason {
        let error = io::Error::from(errno);
        reason(&error, at.parse().unwrap(), Phase::Connect)
    }

    #[test]
    fn what_the_network_says_counts() {
        let v4 = "192.0.2.1:80";
        assert_eq!(told(Errno::ECONNREFUSED, v4), FailReason::Refused);
        assert_eq!(told(Errno::ECONNRESET, v4), FailReason::Reset);
        assert_eq!(told(Errno::EHOSTUNREACH, v4), FailReason::Unreachable);
        assert_eq!(told(Errno::ENETUNREACH, v4), FailReason::Unreachable);
        assert_eq!(
            told(Errno::ETIMEDOUT, v4),
            FailReason::TimedOut(Phase::Connect)
        );
        assert_eq!(
            told(Errno::EACCES, "[2001:db8::1]:80"),
            FailReason::Unreachable
        );
    }

    #[test]
    fn an_error_without_its_number_is_told_by_its_kind() {
        for errno in [
            Errno::ECONNRESET,
            Errno::EPIPE,
            Errno::EHOSTUNREACH,
            Errno::EMFILE,
        ] {
            let whole = io::Error::from(errno);
            let kind = io::Error::new(whole.kind(), "from a library");
            let at = "192.0.2.1:80".parse().unwrap();
            let told = |error| reason(error, at, Phase::Answer);
            assert_eq!(told(&kind), told(&whole), "{errno}");
        }
    }

    #[test]
    fn an_error_of_tls_is_one_wherever_it_is_met() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let error = io::Error::new(io::ErrorKind::InvalidData, alert);
        let told = reason(&error, "192.0.2.1:443".parse().unwrap(), Phase::Answer);
        assert_eq!(told, FailReason::TlsAlert(116));
    }

    #[test]
    fn what_this_host_lacks_does_not() {
        for errno in [
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOBUFS,
            Errno::ENOMEM,
            Errno::EADDRNOTAVAIL,
            Errno::EADDRINUSE,
            Errno::EAGAIN,
            Errno::EPERM,
            Errno::EACCES,
            Errno::ENETDOWN,
            Errno::EAFNOSUPPORT,
            Errno::EINVAL,
        ] {
            assert_eq!(told(errno, "192.0.2.1:80"), FailReason::Local, "{errno}");
        }
    }
}
