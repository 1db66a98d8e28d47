//! What an error of a socket says of the server, if it says anything.

use std::{io, net::SocketAddr};

use nix::errno::Errno;

use crate::model::{FailReason, Phase};

/// The reason that `error`, met on a socket to `at` during `phase`, stands for.
///
/// What a remote host or router can cause is a short list (`icmp_err_convert` and
/// `icmpv6_err_convert` in the kernel, resets and time-outs of TCP). All else is this host's: no
/// descriptor, no port, no memory, no interface, a local firewall.
pub(super) fn reason(error: &io::Error, at: SocketAddr, phase: Phase) -> FailReason {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return FailReason::Reset;
    }
    let Some(code) = error.raw_os_error() else {
        return FailReason::Local;
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
