//! Step 4: everything read back, and the service answers the provisioner.

use tokio::time::{Instant, sleep};

use std::time::Duration;

use super::{
    Prober,
    configure::AT_ONCE,
    error,
    install::CHECK,
    os,
    path::paths,
    remote::{Command, QUICK, Remote, one_line, script},
};
use crate::{
    model::{FailReason, Outcome},
    provisioner::order::{Class, Done, PathTest, RenderedFile, ServiceTest, StepError},
};

/// Between the probes of a service that does not answer yet.
const AGAIN: Duration = Duration::from_millis(200);

/// Reads back what the steps before have done.
pub(super) async fn read_back(
    remote: &Remote<'_>,
    wanted: &str,
    installed: &[(String, String)],
    digests: &[(String, String)],
    sealed: &[RenderedFile],
    ways: &[PathTest],
) -> Result<Done, StepError> {
    let mut done = os::os(remote, wanted).await?;
    for (software, text) in installed {
        let limit = CHECK;
        let answer = remote.ask(Command { text, limit }).await?;
        if answer.status != 0 {
            let detail = format!(
                "{software} is not installed on {}: `{text}` ends with status {}: {}",
                remote.name,
                answer.status,
                one_line(&answer.output)
            );
            return Err(StepError {
                output: answer.output,
                ..error(Class::Permanent, "not_installed", detail)
            });
        }
    }
    for some in digests.chunks(AT_ONCE) {
        let paths: Vec<_> = some.iter().map(|(path, _digest)| path.as_str()).collect();
        let said = remote.read(script!("digests"), &paths, QUICK).await?;
        let mut lines = said.lines();
        for (path, digest) in some {
            let seen = lines.next().ok_or_else(|| remote.garbled(&said))?;
            if seen != digest {
                let mut detail = format!("{path} on {} is not what was placed", remote.name);
                // Whoever has the digest of a file with a secret can try secrets until one fits.
                if !sealed.iter().any(|file| file.path == *path) {
                    detail.push_str(&format!(": SHA-256 {seen}, not {digest}"));
                }
                return Err(error(Class::Permanent, "digest_mismatch", detail));
            }
        }
    }
    let ways = paths(remote, ways).await?;
    done.detail = format!(
        "{} software and {} files as they should be",
        installed.len(),
        digests.len()
    );
    for way in ways {
        done.detail.push_str(&format!(", {way}"));
    }
    Ok(done)
}

/// Waits until each service answers.
pub(super) async fn answers<P: Prober>(
    prober: &P,
    mut done: Done,
    tests: &[ServiceTest],
) -> Result<Done, StepError> {
    for test in tests {
        let end = Instant::now() + test.limit;
        loop {
            let reason = match prober.probe(test.at, &test.kind, test.timeout).await {
                Outcome::Pass => break,
                Outcome::Fail(reason) => reason,
            };
            if Instant::now() + AGAIN >= end {
                let detail = format!(
                    "the service at {} does not answer within {:?}: {reason}",
                    test.at, test.limit
                );
                let (class, code) = match reason {
                    FailReason::Local => (Class::Local, "local_fault"),
                    _ => (Class::Permanent, "service_silent"),
                };
                return Err(error(class, code, detail));
            }
            sleep(AGAIN).await;
        }
        done.detail.push_str(&format!(", {} answers", test.at));
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
