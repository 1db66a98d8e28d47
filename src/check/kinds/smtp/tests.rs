use std::time::Duration;

use crate::{
    check::testing::{
        LONG, SHORT, TLS, Tls as Server, fail, file, met, met_nobody, read_to, reset, trusting,
        write,
    },
    model::{CertFault, CheckKind, Found, Outcome, TlsOptions, Verify},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::*;

/// A server's side of a talk: line by line, what is waited for, and what is said to it.
async fn play(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), script: &[(&str, &str)]) {
    for (heard, said) in script {
        if !heard.is_empty() {
            let line = read_to(stream, b"\r\n").await;
            assert!(line.starts_with(heard), "{line:?} and not {heard:?}");
        }
        write(stream, said).await;
    }
}

async fn played(tls: Option<SmtpTls>, timeout: Duration, script: &[(&str, &str)]) -> Found {
    let kind = CheckKind::Smtp(SmtpCheck { ehlo: None, tls });
    let (found, _stream) = met(kind, timeout, async |mut stream| {
        play(&mut stream, script).await;
        stream
    })
    .await;
    found
}

fn starttls() -> Option<SmtpTls> {
    Some(SmtpTls::Starttls(trusting()))
}

fn detail(found: &Found) -> &str {
    found.detail.as_deref().unwrap_or("")
}

const HELLO: (&str, &str) = ("", "220-mx.example.org\r\n220 ESMTP\r\n");
const OFFERS: (&str, &str) = (
    "EHLO [127.0.0.1]\r\n",
    "250-mx.example.org\r\n250-SIZE 1000\r\n250 STARTTLS\r\n",
);
const READY: (&str, &str) = ("STARTTLS\r\n", "220 go ahead\r\n");

#[tokio::test]
async fn a_server_that_greets_and_answers_passes() {
    let script = [
        HELLO,
        ("EHLO [127.0.0.1]\r\n", "250 mx\r\n"),
        ("QUIT\r\n", "221 bye\r\n"),
    ];
    let found = played(None, LONG, &script).await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    let kind = CheckKind::Smtp(SmtpCheck {
        ehlo: Some("lb.example.org".into()),
        tls: None,
    });
    let script = [HELLO, ("EHLO lb.example.org\r\n", "250 mx\r\n")];
    let (found, _stream) = met(kind, LONG, async |mut stream| {
        play(&mut stream, &script).await;
        stream
    })
    .await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
}

#[tokio::test]
async fn a_reply_that_is_not_the_wanted_one_is_told_with_its_words() {
    let busy = played(None, LONG, &[("", "421 too busy\r\n")]).await;
    assert_eq!(busy.outcome, fail(FailReason::SmtpReply(421)));
    assert_eq!(detail(&busy), "\"421 too busy\"");
    let none = played(None, LONG, &[("", "554-no\r\n554 service\r\n")]).await;
    assert_eq!(none.outcome, fail(FailReason::SmtpReply(554)));
    assert_eq!(detail(&none), "\"554-no\\r\\n554 service\"");
    let unknown = played(None, LONG, &[HELLO, ("EHLO", "502 what\r\n")]).await;
    assert_eq!(unknown.outcome, fail(FailReason::SmtpReply(502)));
    let positive = played(None, LONG, &[HELLO, ("EHLO", "220 mx\r\n")]).await;
    assert_eq!(positive.outcome, fail(FailReason::SmtpReply(220)));
    let later = [HELLO, OFFERS, ("STARTTLS", "454 not now\r\n")];
    let later = played(starttls(), LONG, &later).await;
    assert_eq!(later.outcome, fail(FailReason::SmtpReply(454)));
}

#[tokio::test]
async fn what_is_no_smtp_is_garbled() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\u{4a}\0\0\0\u{a}8.0",
        "220-a\r\n250 b\r\n",
    ] {
        let found = played(None, LONG, &[("", garbage)]).await;
        assert_eq!(found.outcome, fail(FailReason::Garbled), "{garbage:?}");
        assert_ne!(detail(&found), "", "{garbage:?}");
    }
    let hasty = played(None, LONG, &[("", "220 mx\r\n250 mx\r\n")]).await;
    assert_eq!(
        hasty.outcome,
        fail(FailReason::Garbled),
        "answers before it is asked"
    );
    let endless = played(None, LONG, &[("", &format!("220 {}", "x".repeat(5_000)))]).await;
    assert_eq!(endless.outcome, fail(FailReason::TooLong));
}

#[tokio::test]
async fn who_says_nothing_or_closes_is_told_with_the_phase() {
    let greeting = fail(FailReason::TimedOut(Phase::Greeting));
    assert_eq!(played(None, SHORT, &[]).await.outcome, greeting);
    assert_eq!(played(None, SHORT, &[("", "220-")]).await.outcome, greeting);
    let answer = fail(FailReason::TimedOut(Phase::Answer));
    assert_eq!(played(None, SHORT, &[HELLO]).await.outcome, answer);
    let tls = fail(FailReason::TimedOut(Phase::Tls));
    let silent = played(starttls(), SHORT, &[HELLO, OFFERS, READY]).await;
    assert_eq!(silent.outcome, tls);
    let kind = || CheckKind::Smtp(SmtpCheck::default());
    let (found, ()) = met(kind(), LONG, async |stream| reset(stream)).await;
    assert_eq!(found.outcome, fail(FailReason::Reset));
    let (found, ()) = met(kind(), LONG, async |mut stream| {
        play(&mut stream, &[HELLO]).await
    })
    .await;
    assert_eq!(found.outcome, fail(FailReason::Reset));
    assert_eq!(met_nobody(kind()).await, fail(FailReason::Refused));
}

#[tokio::test]
async fn tls_begins_at_once() {
    let kind = |tls| CheckKind::Smtp(SmtpCheck { ehlo: None, tls });
    let implicit = kind(Some(SmtpTls::Implicit(trusting())));
    let (found, _stream) = met(implicit, LONG, async |stream| {
        let mut stream = TLS.accept(stream).await.unwrap();
        play(
            &mut stream,
            &[HELLO, ("EHLO [127.0.0.1]", "250 mx\r\n"), ("QUIT", "")],
        )
        .await;
        stream
    })
    .await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    assert!(found.certificate_ends.is_some());
}

#[tokio::test]
async fn tls_begins_after_starttls() {
    let kind = |options| {
        CheckKind::Smtp(SmtpCheck {
            ehlo: None,
            tls: Some(SmtpTls::Starttls(options)),
        })
    };
    let (found, _stream) = met(kind(trusting()), LONG, async |mut stream| {
        play(&mut stream, &[HELLO, OFFERS, READY]).await;
        let mut stream = TLS.accept(stream).await.unwrap();
        play(
            &mut stream,
            &[("EHLO [127.0.0.1]", "250 mx\r\n"), ("QUIT", "")],
        )
        .await;
        stream
    })
    .await;
    assert_eq!(found.outcome, Outcome::Pass, "{found:?}");
    assert!(found.certificate_ends.is_some());

    let stranger = TlsOptions {
        verify: Verify::Ca(file("stranger.pem")),
        ..TlsOptions::default()
    };
    for (options, certificate, fault) in [
        (stranger, "server.pem", CertFault::UnknownIssuer),
        (trusting(), "expired.pem", CertFault::Expired),
    ] {
        let (found, ()) = met(kind(options), LONG, async |mut stream| {
            play(&mut stream, &[HELLO, OFFERS, READY]).await;
            drop(Server { certificate, ..TLS }.accept(stream).await);
        })
        .await;
        assert_eq!(found.outcome, fail(FailReason::Certificate(fault)));
    }
}

#[tokio::test]
async fn who_does_not_offer_tls_is_told_so() {
    let plain = [HELLO, ("EHLO", "250-mx\r\n250 8BITMIME\r\n")];
    let found = played(starttls(), LONG, &plain).await;
    assert_eq!(found.outcome, fail(FailReason::NoTls));
}

/// RFC 3207, section 4.2, and CVE-2011-0411 the other way round.
#[tokio::test]
async fn what_was_slipped_in_before_tls_is_refused() {
    let injected = ("STARTTLS", "220 go ahead\r\n250 mx\r\n");
    let found = played(starttls(), LONG, &[HELLO, OFFERS, injected]).await;
    assert_eq!(found.outcome, fail(FailReason::Garbled));
    assert_eq!(detail(&found), "\"250 mx\\r\\n\"");
}
