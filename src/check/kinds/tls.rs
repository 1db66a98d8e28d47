//! A TLS handshake succeeds, and the server's certificate holds.

use super::{
    super::{Unprepared, call::Call, tls::Client},
    Kind,
};
use crate::model::{FailReason, TlsOptions};

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Tls {
    client: Client,
}

impl Kind for Tls {
    type Options = TlsOptions;

    fn prepare(options: &TlsOptions) -> Result<Self, Unprepared> {
        let client = Client::prepare(options, &[])?;
        Ok(Self { client })
    }

    /// In TLS 1.3 a server that wants a certificate of ours refuses only after the handshake: that is
    /// not waited for.
    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let stream = call.connect_to_talk().await?;
        self.client.handshake(call, stream).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::testing::{
            LONG, SHORT, TLS, Tls as Server, fail, file, met, met_nobody, pinning, read_to, reset,
            trusting, write,
        },
        model::{CertFault, CheckKind, Found, Outcome, Phase, Verify},
    };

    /// What a probe with these options finds at such a server.
    async fn found(options: TlsOptions, server: Server) -> Found {
        let kind = CheckKind::Tls(options);
        met(kind, LONG, async |stream| server.accept(stream).await)
            .await
            .0
    }

    fn signed(certificate: &'static str) -> Server {
        Server { certificate, ..TLS }
    }

    fn bad(fault: CertFault) -> Outcome {
        fail(FailReason::Certificate(fault))
    }

    #[tokio::test]
    async fn a_certificate_that_holds_passes_and_its_end_is_told() {
        for old in [true, false] {
            let found = found(trusting(), Server { old, ..TLS }).await;
            assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
            assert_eq!(found.certificate_ends, Some(4_733_510_400), "2120-01-01");
        }
        let named = TlsOptions {
            sni: Some("www.example.org".into()),
            ..trusting()
        };
        assert_eq!(found(named, TLS).await.outcome, Outcome::Pass);
    }

    #[tokio::test]
    async fn a_certificate_that_does_not_hold_says_why() {
        let expired = found(trusting(), signed("expired.pem")).await;
        assert_eq!(expired.outcome, bad(CertFault::Expired));
        assert!(expired.detail.is_some());
        let early = found(trusting(), signed("early.pem")).await;
        assert_eq!(early.outcome, bad(CertFault::NotYetValid));
        let stranger = TlsOptions {
            verify: Verify::Ca(file("stranger.pem")),
            ..TlsOptions::default()
        };
        assert_eq!(
            found(stranger, TLS).await.outcome,
            bad(CertFault::UnknownIssuer)
        );
        let other = TlsOptions {
            sni: Some("other.example.org".into()),
            ..trusting()
        };
        assert_eq!(found(other, TLS).await.outcome, bad(CertFault::WrongName));
    }

    #[tokio::test]
    async fn a_pinned_certificate_passes_whatever_it_says() {
        for old in [true, false] {
            let server = Server {
                old,
                ..signed("expired.pem")
            };
            let it = found(pinning("expired.pem"), server).await;
            assert_eq!(it.outcome, Outcome::Pass, "{it:?}");
            let other = found(pinning("server.pem"), server).await;
            assert_eq!(other.outcome, bad(CertFault::NotPinned));
        }
        let any = TlsOptions {
            verify: Verify::Off,
            ..TlsOptions::default()
        };
        assert_eq!(
            found(any, signed("expired.pem")).await.outcome,
            Outcome::Pass
        );
    }

    #[tokio::test]
    async fn who_wants_a_certificate_of_ours_gets_it() {
        let server = Server {
            wants_client: true,
            old: true,
            ..TLS
        };
        let with = TlsOptions {
            client: Some((file("client.pem"), file("client.key"))),
            ..trusting()
        };
        assert_eq!(found(with, server).await.outcome, Outcome::Pass);
        // TLS 1.2 says handshake_failure or certificate_required.
        let without = found(trusting(), server).await.outcome;
        assert!(
            matches!(without, Outcome::Fail(FailReason::TlsAlert(_))),
            "{without:?}"
        );
    }

    #[tokio::test]
    async fn what_is_no_tls_says_so() {
        let kind = || CheckKind::Tls(trusting());
        let (found, _stream) = met(kind(), LONG, async |mut stream| {
            write(&mut stream, "220 mx.example.org ESMTP\r\n").await;
            read_to(&mut stream, b"").await;
            stream
        })
        .await;
        assert_eq!(found.outcome, fail(FailReason::TlsFailed));
        assert!(found.detail.is_some());
        let (found, ()) = met(kind(), LONG, async |stream| reset(stream)).await;
        assert_eq!(found.outcome, fail(FailReason::Reset));
        let (found, _stream) = met(kind(), SHORT, async |stream| stream).await;
        assert_eq!(found.outcome, fail(FailReason::TimedOut(Phase::Tls)));
        assert_eq!(met_nobody(kind()).await, fail(FailReason::Refused));
    }

    #[test]
    fn what_is_not_there_is_named_before_anybody_is_asked() {
        let options = TlsOptions {
            verify: Verify::Ca(file("nothing.pem")),
            ..TlsOptions::default()
        };
        let why = Tls::prepare(&options).unwrap_err().to_string();
        assert!(why.contains("nothing.pem cannot be read"), "{why}");
        let options = TlsOptions {
            verify: Verify::Ca(file("client.key")),
            ..TlsOptions::default()
        };
        let why = Tls::prepare(&options).unwrap_err().to_string();
        assert!(why.ends_with("no certificates in PEM are in it"), "{why}");
    }
}
