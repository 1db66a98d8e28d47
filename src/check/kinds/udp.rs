//! A datagram is answered as expected, or at least not refused: keepalived's `UDP_CHECK`.
//!
//! Where no reply is required, silence to the end of the time limit passes: only an ICMP error says
//! that nobody serves there, and it may come late.

use super::{
    super::{Unprepared, call::Call, errno, expect::Matcher, net},
    Kind,
};
use crate::model::{FailReason, Phase, UdpCheck};

/// No datagram is longer: its length is a number of 16 bits (RFC 768).
const LONGEST: usize = 65_535;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Udp {
    send: Vec<u8>,
    expect: Option<Matcher>,
    require_reply: bool,
}

impl Kind for Udp {
    type Options = UdpCheck;

    fn prepare(options: &UdpCheck) -> Result<Self, Unprepared> {
        Ok(Self {
            send: options.send.clone(),
            expect: options.expect.as_ref().map(Matcher::prepare).transpose()?,
            require_reply: options.require_reply,
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let (at, via) = (call.at, call.via);
        let socket = call.hold(Phase::Connect, net::datagram(at, via)).await?;
        let mut seen = vec![0; LONGEST];
        let asking = async {
            let asked = async {
                socket.send(&self.send).await?;
                net::receive(&socket, &mut seen).await
            };
            let asked = asked.await;
            asked.map_err(|error| errno::reason(&error, at, Phase::Answer))
        };
        let length = match call.hold(Phase::Answer, asking).await {
            Err(FailReason::TimedOut(_)) if !self.require_reply => return Ok(()),
            answered => answered?,
        };
        seen.truncate(length);
        match &self.expect {
            Some(expect) if expect.judge(&seen, true) != Some(true) => {
                call.quote(&seen);
                Err(FailReason::Mismatch)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{SocketAddr, UdpSocket},
        time::Duration,
    };

    use super::*;
    use crate::{
        check::{Check, testing::SHORT},
        model::{CheckKind, CheckSpec, CheckTiming, Expect, Found, Outcome, Via},
    };

    const LONG: Duration = Duration::from_secs(20);

    async fn found(at: SocketAddr, options: UdpCheck, timeout: Duration) -> Found {
        let spec = CheckSpec {
            kind: CheckKind::Udp(options),
            via: Via::default(),
            timing: CheckTiming::every(timeout),
        };
        Check::prepare(&spec.kind).unwrap().probe(at, &spec).await
    }

    /// A server that answers one datagram by this one, if it is the expected one.
    fn server(expected: &'static [u8], answer: &'static [u8]) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut seen = [0; 100];
            let (length, from) = socket.recv_from(&mut seen).unwrap();
            assert_eq!(&seen[..length], expected);
            socket.send_to(answer, from).unwrap();
        });
        at
    }

    fn asking(send: &[u8], expect: Option<&str>) -> UdpCheck {
        UdpCheck {
            send: send.to_vec(),
            expect: expect.map(|text| Expect::Text(text.to_owned())),
            require_reply: true,
        }
    }

    #[tokio::test]
    async fn an_answer_is_held_against_the_expected_one() {
        let good = found(
            server(b"ping", b"pong!"),
            asking(b"ping", Some("pong")),
            LONG,
        );
        assert_eq!(good.await.outcome, Outcome::Pass);
        let bad = found(
            server(b"ping", b"what?\n"),
            asking(b"ping", Some("pong")),
            LONG,
        )
        .await;
        assert_eq!(bad.outcome, Outcome::Fail(FailReason::Mismatch));
        assert_eq!(bad.detail.as_deref(), Some(r#""what?\n""#));
    }

    #[tokio::test]
    async fn an_empty_datagram_is_one() {
        let found = found(server(b"", b""), asking(b"", None), LONG);
        assert_eq!(found.await.outcome, Outcome::Pass);
    }

    #[tokio::test]
    async fn a_closed_port_is_told_at_once() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let at = UdpSocket::bind(host).unwrap().local_addr().unwrap();
            let options = UdpCheck::default();
            let found = found(at, options, LONG).await;
            assert_eq!(found.outcome, Outcome::Fail(FailReason::Refused), "{host}");
        }
    }

    #[tokio::test]
    async fn silence_fails_only_where_a_reply_is_required() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = silent.local_addr().unwrap();
        let short = SHORT;
        let required = found(at, asking(b"x", None), short).await;
        let timed_out = FailReason::TimedOut(Phase::Answer);
        assert_eq!(required.outcome, Outcome::Fail(timed_out));
        let free = UdpCheck {
            require_reply: false,
            ..asking(b"x", Some("y"))
        };
        let free = found(at, free, short).await;
        assert_eq!(free.outcome, Outcome::Pass);
        assert!(free.elapsed >= short, "an error may come late");
    }
}
