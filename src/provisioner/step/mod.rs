//! The hands: orders carried out on a spare over SSH, one file a step.
//!
//! What runs on a spare is POSIX shell, in `sh/`: values come as arguments, never as text of the
//! script. Scripts that change something begin with `fence.sh`, so that the fence is compared and
//! held by the same command that acts. Beneath `base` on the spare:
//!
//! - `fence`, `fence.lock`: the highest fence seen
//! - `staging/`: uploads that are no job yet
//! - `jobs/<job>/`: `script`, `env`, `run`, `keep`, `out` with its parts, `rc`, and `lock`, held while
//!   it runs
//! - `pending/<software>`: files were placed, the software does not know yet
//! - `output/`: what start and reload commands print, also later

mod clean;
mod configure;
mod fence;
mod install;
mod lines;
mod look;
mod os;
mod path;
mod rehearse;
mod remote;
mod test;

use std::{net::SocketAddr, time::Duration};

use crate::{
    model::{CheckKind, Outcome, inventory::Server},
    provisioner::{
        driver::{Reach, Sight},
        order::{Class, Done, Hands, Order, RenderedFile, Said, Step, StepError, error},
        sealed::Masks,
        ssh::{ClientKey, HostKey, Ssh, SshError, Target},
    },
};

use lines::Door;
pub use lines::Lines;
pub use look::{Difference, Look, Looking, Wanted};
use remote::Remote;

/// Where a spare's sshd has its host keys.
pub const HOST_KEYS: &str = "/etc/ssh";

/// The folder on a spare.
pub const BASE: &str = "/var/lib/understudy";

/// Whoever can ask a service whether it answers: the check room, wired in by the agent.
pub trait Prober: Send + Sync + 'static {
    /// One probe.
    fn probe(
        &self,
        at: SocketAddr,
        kind: &CheckKind,
        timeout: Duration,
    ) -> impl Future<Output = Outcome> + Send;
}

/// Carries out orders over SSH.
#[derive(Clone, Debug)]
pub struct SshHands<P> {
    /// Logs in on every spare.
    pub key: ClientKey,
    /// As this user.
    pub user: String,
    /// Whether `sudo -n` goes before what needs root.
    pub elevate: bool,
    /// For TCP, key exchange and login together.
    pub connect_timeout: Duration,
    /// The folder on the spare: [`BASE`], except in tests.
    pub base: String,
    /// The folder of its host keys: [`HOST_KEYS`], except in tests.
    pub host_keys: String,
    /// Asks the service in the last step.
    pub prober: P,
    /// Connections between two steps.
    pub lines: Lines,
}

impl<P: Prober> Hands for SshHands<P> {
    async fn perform(&self, order: &Order, said: Said<'_>) -> Result<Done, StepError> {
        match &order.step {
            Step::OsInstall { .. } => Err(error(
                Class::Permanent,
                "no_driver",
                "an operating system cannot be installed over SSH",
            )),
            Step::Fence => {
                let remote = self.remote(order).await?;
                let result = fence::fence(&remote).await;
                remote.end(result.is_ok()).await;
                result
            }
            Step::Look => {
                let remote = self.remote(order).await?;
                let result = rehearse::rehearse(&remote).await;
                remote.close().await;
                result
            }
            Step::Os { wanted } => {
                let remote = self.remote(order).await?;
                let result = os::os(&remote, wanted).await;
                remote.end(result.is_ok()).await;
                result
            }
            Step::Install {
                job,
                software,
                script,
                timeout,
                variables,
                check,
                secrets: _,
            } => {
                let job = install::Job {
                    name: job,
                    software,
                    script,
                    timeout: *timeout,
                    variables,
                    check: check.as_deref(),
                };
                install::install(|| self.remote(order), &job, said).await
            }
            Step::Clean {
                job,
                role,
                script,
                timeout,
                variables,
                files,
            } => {
                let software = format!("the cleanup of {role}");
                let job = install::Job {
                    name: job,
                    software: &software,
                    script,
                    timeout: *timeout,
                    variables,
                    check: None,
                };
                clean::clean(|| self.remote(order), &job, files, said).await
            }
            Step::Configure {
                software,
                files,
                running,
                start,
                reload,
            } => {
                let service = configure::Service {
                    software,
                    running: running.as_deref(),
                    start: start.as_deref(),
                    reload: reload.as_deref(),
                };
                let remote = self.remote(order).await?;
                let result = configure::configure(&remote, files, &service).await;
                remote.end(result.is_ok()).await;
                result
            }
            Step::Test {
                os,
                installed,
                digests,
                answers,
                paths,
                sealed,
            } => {
                let remote = self.remote(order).await?;
                let found = test::read_back(&remote, os, installed, digests, sealed, paths).await;
                remote.close().await;
                test::answers(&self.prober, found?, answers).await
            }
        }
    }
}

impl<P: Prober> Reach for SshHands<P> {
    async fn look(&self, server: &Server, pins: &[String]) -> Result<Sight, StepError> {
        let ssh = self.connect(server, pins).await?;
        // Nothing is changed: no fence is needed.
        let masks = Masks::default();
        let remote = Remote::new(ssh, &self.base, 0, (&server.name, &masks), None);
        let sight = os::sight(&remote, &self.host_keys).await;
        remote.close().await;
        sight
    }
}

impl<P> SshHands<P> {
    async fn remote<'a>(&'a self, order: &'a Order) -> Result<Remote<'a>, StepError> {
        let server = &order.server;
        let door = Door::of(server, order.fence);
        let ssh = match self.lines.take(&door) {
            Some(ssh) => ssh,
            None => self.connect(server, server.pins()).await?,
        };
        Ok(Remote::new(
            ssh,
            &self.base,
            order.fence,
            (&server.name, &order.masks),
            Some((&self.lines, door)),
        ))
    }

    async fn connect(&self, server: &Server, pins: &[String]) -> Result<Ssh, StepError> {
        let pins: Result<Vec<_>, _> = pins.iter().map(|k| HostKey::parse(k)).collect();
        let pins = pins.map_err(|e| {
            let detail = format!("host key of {}: {e}", server.name);
            error(Class::Permanent, "host_key_unusable", detail)
        })?;
        if pins.is_empty() {
            let detail = format!("{} has no host key: enrol one in host_keys", server.name);
            return Err(error(Class::Permanent, "host_key_unusable", detail));
        }
        let target = Target {
            peer: SocketAddr::new(server.ssh_address, server.ssh_port),
            user: self.user.clone(),
            pins,
            connect_timeout: self.connect_timeout,
            elevate: self.elevate,
        };
        Ok(Ssh::connect(&target, &self.key).await?)
    }
}

/// Whether all paths can be placed.
fn checked_paths(files: &[RenderedFile]) -> Result<(), StepError> {
    files
        .iter()
        .try_for_each(|f| configure::checked_path(&f.path))
}

impl From<SshError> for StepError {
    fn from(e: SshError) -> Self {
        use Class::{Local, Permanent, Transient};
        let (class, code) = match &e {
            SshError::Unreachable { .. } => (Transient, "unreachable"),
            SshError::Local { .. } => (Local, "local_fault"),
            SshError::Refused { .. } => (Transient, "refused"),
            SshError::ConnectTimedOut { .. } => (Transient, "connect_timed_out"),
            SshError::Mute { .. } => (Transient, "mute"),
            SshError::Handshake { .. } => (Transient, "handshake_failed"),
            SshError::HostKeyMismatch { .. } => (Permanent, "host_key_mismatch"),
            SshError::AuthRefused { .. } => (Permanent, "auth_refused"),
            SshError::LinkLost { .. } => (Transient, "link_lost"),
            SshError::CommandTimedOut { .. } => (Transient, "command_timed_out"),
            SshError::ExecRefused { .. } => (Permanent, "exec_refused"),
            SshError::SftpMissing { .. } => (Permanent, "sftp_missing"),
            SshError::File { .. } => (Permanent, "place_failed"),
        };
        let mut detail = e.to_string();
        let mut cause = std::error::Error::source(&e);
        while let Some(source) = cause {
            detail.push_str(&format!(": {source}"));
            cause = source.source();
        }
        error(class, code, detail)
    }
}

#[cfg(test)]
mod tests {
    use std::{io, os::unix::fs::PermissionsExt, process::Command};

    use nix::errno::Errno;
    use sha2::Digest as _;

    use super::*;

    #[test]
    fn what_this_host_lacks_is_no_fault_of_the_spare() {
        let class = |errno: Errno| {
            let peer = "192.0.2.1:22".parse().unwrap();
            StepError::from(SshError::from_connect(peer, io::Error::from(errno))).class
        };
        for errno in [
            Errno::ENETUNREACH,
            Errno::EADDRNOTAVAIL,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOBUFS,
        ] {
            assert_eq!(class(errno), Class::Local, "{errno}");
        }
        for errno in [Errno::EHOSTUNREACH, Errno::ECONNREFUSED, Errno::ETIMEDOUT] {
            assert_eq!(class(errno), Class::Transient, "{errno}");
        }
    }

    #[test]
    fn a_missing_flock_is_not_a_busy_fence() {
        let dir = tempfile::tempdir().unwrap();
        let flock = dir.path().join("flock");
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        for (says, ends) in [(1, 75), (127, 70), (0, 0)] {
            std::fs::write(&flock, format!("#!/bin/sh\nexit {says}\n")).unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&flock, mode).unwrap();
            let text = concat!(include_str!("sh/prelude.sh"), include_str!("sh/fence.sh"));
            let ran = Command::new("sh")
                .args(["-c", text, "understudy"])
                .arg(dir.path().join("base"))
                .arg("7")
                .env("PATH", &path)
                .output()
                .unwrap();
            assert_eq!(ran.status.code(), Some(ends), "{ran:?}");
        }
    }

    #[test]
    fn an_upload_that_does_not_become_the_job_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        let stage = base.join("staging/r-0.x");
        let stub = dir.path().join("mkfifo");
        std::fs::write(&stub, "#!/bin/sh\nexit 1\n").unwrap();
        std::fs::set_permissions(&stub, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(&stage).unwrap();
        std::fs::create_dir_all(base.join("jobs")).unwrap();
        for name in ["script", "env", "run", "keep"] {
            std::fs::write(stage.join(name), "true\n").unwrap();
        }
        let text = concat!(
            include_str!("sh/prelude.sh"),
            include_str!("sh/fence.sh"),
            include_str!("sh/claim.sh")
        );
        let digest = install::hex(&sha2::Sha256::digest("true\n"));
        let ran = Command::new("sh")
            .args(["-c", text, "understudy"])
            .arg(&base)
            .args(["7", "r-0"])
            .arg(&stage)
            .args([digest.as_str(), "5"])
            .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
            .output()
            .unwrap();
        assert_eq!(ran.status.code(), Some(70), "{ran:?}");
        assert!(!stage.exists() && !base.join("jobs/r-0").exists());
    }

    #[test]
    fn a_wrapper_that_cannot_begin_leaves_no_environment() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("run"), include_str!("sh/run.sh")).unwrap();
        std::fs::write(at("env"), "TOKEN=opensesame\n").unwrap();
        std::fs::create_dir(at("kept.lock")).unwrap();
        let ran = Command::new("sh")
            .arg(at("run"))
            .arg(dir.path())
            .arg("5")
            .output();
        assert_ne!(ran.unwrap().status.code(), Some(0));
        assert!(!at("env").exists() && !at("rc").exists());
    }
}
