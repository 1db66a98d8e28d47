use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::model::CheckKind;

/// Cannot ask.
struct Unable;

impl Prober for Unable {
    async fn probe(&self, _at: SocketAddr, _kind: &CheckKind, _timeout: Duration) -> Outcome {
        Outcome::Fail(FailReason::Local)
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_this_host_cannot_make_blames_nobody() {
    let e = answers(&Unable, Done::default(), &one()).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Local, "local_fault"));
}

/// Refuses so many times.
struct After(AtomicU32);

impl Prober for After {
    async fn probe(&self, _at: SocketAddr, _kind: &CheckKind, _timeout: Duration) -> Outcome {
        let more = |n: u32| n.checked_sub(1);
        match self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        {
            Ok(_left) => Outcome::Fail(FailReason::Refused),
            Err(_none) => Outcome::Pass,
        }
    }
}

fn one() -> [ServiceTest; 1] {
    [ServiceTest {
        at: "192.0.2.1:80".parse().unwrap(),
        kind: CheckKind::default(),
        timeout: Duration::from_secs(1),
        limit: Duration::from_secs(5),
    }]
}

#[tokio::test(start_paused = true)]
async fn a_service_that_needs_time_is_given_it() {
    let late = After(AtomicU32::new(10));
    let done = answers(&late, Done::default(), &one()).await.unwrap();
    assert_eq!(done.detail, ", 192.0.2.1:80 answers");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stays_silent_is_named_with_the_last_reason() {
    let never = After(AtomicU32::new(u32::MAX));
    let e = answers(&never, Done::default(), &one()).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "service_silent"));
    assert_eq!(
        e.detail,
        "the service at 192.0.2.1:80 does not answer within 5s: connection refused"
    );
}
