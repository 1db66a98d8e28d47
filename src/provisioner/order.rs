//! What the workflow orders done on a spare, and what comes back: plain data, PURE. The workflow
//! (store, journal, decisions) and the hands (SSH) meet here and nowhere else.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sealed::{Masks, Sealed};
use crate::model::{
    CheckKind,
    inventory::{Server, Variables},
    machine::Image,
};

/// An order for one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The server to work on.
    pub server: Server,
    /// The fence of whoever orders: the spare refuses a lower one than it has seen.
    pub fence: u64,
    /// What to do.
    pub step: Step,
    /// What must not be seen in what comes back.
    pub masks: Masks,
}

/// One step. Each may be ordered again after a crash and must then neither harm nor repeat itself:
/// `Install` finds its job directory. The journal keeps the steps as they were planned, so that a
/// restart goes on with what was begun even where the inventory has changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// See whether it could be used: no step of a replacement, and nothing is changed.
    Look,
    /// Step 1 where the operating system has to be installed first: the server's driver does it, and
    /// the disk is wiped.
    OsInstall {
        /// Names the installation: `<replacement>-<attempt>`, the same after a restart, so that it is
        /// found again.
        job: String,
        /// What is installed, and how.
        image: Image,
        /// Also where the server has this operating system: its disk is to be wiped.
        #[serde(default)]
        anew: bool,
    },
    /// Write the fence on the spare. First order of every run on a spare that has its operating
    /// system, also after a restart.
    Fence,
    /// Step 1: read the running operating system back and compare it.
    Os {
        /// `ID-VERSION_ID` of os-release(5).
        wanted: String,
    },
    /// Step 2: run a software's script as a job.
    Install {
        /// Names the job directory: `<replacement>-<attempt>-<position>`, the same after a restart;
        /// another where a released spare is tried a second time.
        job: String,
        /// Software.
        software: String,
        /// The script's text.
        script: String,
        /// Its time limit.
        timeout: Duration,
        /// Environment.
        variables: Variables,
        /// Exit status 0 afterwards: it is installed.
        check: Option<String>,
        /// More environment, by name.
        #[serde(default)]
        secrets: Vec<Sealed>,
    },
    /// Step 3: place files, then start the software or make it read them again.
    Configure {
        /// Software.
        software: String,
        /// The files, rendered.
        files: Vec<RenderedFile>,
        /// Exit status 0: it runs.
        running: Option<String>,
        /// Starts it.
        start: Option<String>,
        /// Makes it read its configuration again.
        reload: Option<String>,
    },
    /// Make a server that had a role a spare again: run its cleaning script as a job, then remove these files.
    Clean {
        /// Names the job directory.
        job: String,
        /// The role that it had.
        role: String,
        /// The script's text.
        script: String,
        /// Its time limit.
        timeout: Duration,
        /// Environment.
        variables: Variables,
        /// Files that were placed there.
        files: Vec<String>,
    },
    /// Step 4: everything read back, and the service answers the provisioner.
    Test {
        /// Operating system wanted.
        os: String,
        /// (software, check command).
        installed: Vec<(String, String)>,
        /// (path, SHA-256 in hex).
        digests: Vec<(String, String)>,
        /// Where the service must answer, and how it is asked.
        answers: Vec<ServiceTest>,
        /// What must be so for clients to get answers.
        #[serde(default)]
        paths: Vec<PathTest>,
        /// The files with secrets: their digests are known when these are.
        #[serde(default)]
        sealed: Vec<RenderedFile>,
    },
}

/// The limit of a file's `validate`.
pub const VALIDATE: Duration = Duration::from_secs(60);
/// The name of [`Step::Fence`].
pub const FENCE: &str = "fence";
/// The name of [`Step::OsInstall`].
pub const OS_INSTALL: &str = "os_install";

impl Step {
    /// The step's name in the journal and in metrics' `step` label up to the colon.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Look => "look".to_owned(),
            Self::OsInstall { .. } => OS_INSTALL.to_owned(),
            Self::Fence => FENCE.to_owned(),
            Self::Os { .. } => "os".to_owned(),
            Self::Install { software, .. } => format!("install:{software}"),
            Self::Configure { software, .. } => format!("configure:{software}"),
            Self::Clean { .. } => "clean".to_owned(),
            Self::Test { .. } => "test".to_owned(),
        }
    }

    /// Whatever the hands' own limits, the step is over after this.
    #[must_use]
    pub fn limit(&self) -> Duration {
        /// Connecting, uploading, asking: what any step needs around its own work.
        const AROUND: Duration = Duration::from_secs(120);
        match self {
            // Its driver keeps the limit; a last answer and the putting away come after it.
            Self::OsInstall { image, .. } => AROUND.saturating_mul(5).saturating_add(image.timeout),
            Self::Look | Self::Fence | Self::Os { .. } => AROUND,
            Self::Install { timeout, .. } | Self::Clean { timeout, .. } => {
                AROUND.saturating_add(*timeout)
            }
            // Three commands and the files, and a command of its own for each file that has one.
            Self::Configure { files, .. } => files
                .iter()
                .filter(|file| file.validate.is_some())
                .fold(AROUND.saturating_mul(3), |sum, _| {
                    sum.saturating_add(VALIDATE)
                }),
            Self::Test { answers, .. } => answers
                .iter()
                .fold(AROUND, |sum, a| sum.saturating_add(a.limit)),
        }
    }
}

/// What makes it safe to order a step of this name again after a crash, for people.
#[must_use]
pub fn repeatable(name: &str) -> &'static str {
    match name.split(':').next().unwrap_or_default() {
        "fence" => "raises the fence, never lowers it",
        OS_INSTALL => "goes on where it was noted last",
        "os" => "only reads",
        "install" | "clean" => "found again by its job directory, never started twice",
        "configure" => "places only what differs; a mark says that the service is to be told",
        "test" => "only reads and asks",
        _ => "",
    }
}

/// A probe of step 4; repeated until it passes or `limit` is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTest {
    /// The spare's service address and the virtual service's port.
    pub at: SocketAddr,
    /// What is asked.
    pub kind: CheckKind,
    /// Time limit of one probe.
    pub timeout: Duration,
    /// Time limit of all.
    pub limit: Duration,
}

/// Whether a client gets its answer from the spare; read there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathTest {
    /// NAT: what goes to a client must pass the director, or it comes from the wrong address.
    Back {
        /// A client's address.
        client: IpAddr,
        /// The directors' addresses in the spare's network.
        gateways: Vec<IpAddr>,
        /// The spare's address in the service, from which it answers: routes may depend on it.
        #[serde(default)]
        own: Option<IpAddr>,
    },
    /// Direct routing and tunnels: the spare takes what is sent to the virtual address.
    Holds {
        /// The virtual address.
        vip: IpAddr,
        /// Of direct routing the spare's own address: on the link that has it nobody may learn that the
        /// virtual address is here.
        quiet_at: Option<IpAddr>,
    },
}

/// A file ready to be placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedFile {
    /// Absolute path.
    pub path: String,
    /// Content.
    pub body: Vec<u8>,
    /// SHA-256 of `body` in hex.
    pub sha256: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner's name.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// Command that says whether the content is sound, `{file}` being where it lies.
    #[serde(default)]
    pub validate: Option<String>,
    /// Secrets whose names stand in `body`.
    #[serde(default)]
    pub secrets: Vec<Sealed>,
}

/// A step that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What was found or done, one line.
    pub detail: String,
    /// Output of scripts and commands, bounded.
    pub output: String,
    /// The operating system, where the step read it.
    pub os: Option<String>,
}

/// Whether trying the same again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Perhaps: a connection refused or lost, a time-out.
    Transient,
    /// A fault of this host, which says nothing of the spare: not counted, tried again.
    Local,
    /// No: next spare.
    Permanent,
    /// The spare is sound but not what is wanted (another operating system): next spare, no quarantine.
    Unsuitable,
    /// Neither the spare nor the role is at fault: what it was being made is not wanted any more. Put down, chosen anew.
    Outdated,
    /// A newer provisioner run owns the spare: stop at once.
    Fenced,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct StepError {
    /// What to do about it.
    pub class: Class,
    /// Machine word: `unreachable`, `host_key_mismatch`, `auth_refused`, `script_failed`,
    /// `script_timed_out`, `not_installed`, `os_mismatch`, `start_failed`, `digest_mismatch`,
    /// `service_silent`, `fenced`, `link_lost`, `local_fault`, …
    pub code: &'static str,
    /// One line for an operator: what happened, where, what to do.
    pub detail: String,
    /// Output so far, bounded. Of `os_mismatch`: the operating system found, `debian-11`, alone.
    pub output: String,
}

/// An error without output.
pub(in crate::provisioner) fn error(
    class: Class,
    code: &'static str,
    detail: impl Into<String>,
) -> StepError {
    StepError {
        class,
        code,
        detail: detail.into(),
        output: String::new(),
    }
}

/// Told, while a script runs, what it has printed so far.
pub type Said<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Whoever carries out orders.
pub trait Hands: Send + Sync + 'static {
    /// Carries out one order.
    fn perform(
        &self,
        order: &Order,
        said: Said<'_>,
    ) -> impl Future<Output = Result<Done, StepError>> + Send;

    /// Puts away what the installation of an operating system has left that nobody goes on with.
    fn tidy(&self, _server: &Server) -> impl Future<Output = Result<(), StepError>> + Send {
        std::future::ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_that_is_asked_about_has_its_time() {
        let file = |validate: Option<&str>| RenderedFile {
            path: "/etc/x".into(),
            body: Vec::new(),
            sha256: String::new(),
            mode: 0o644,
            owner: "root".into(),
            group: "root".into(),
            validate: validate.map(Into::into),
            secrets: Vec::new(),
        };
        let limit = |files: Vec<RenderedFile>| {
            let step = Step::Configure {
                software: "nginx".into(),
                files,
                running: None,
                start: None,
                reload: None,
            };
            step.limit()
        };
        let none = limit(vec![file(None); 9]);
        assert_eq!(none, limit(Vec::new()));
        assert_eq!(
            limit(vec![file(Some("nginx -t -c {file}")); 9]),
            none + VALIDATE * 9
        );
    }
}
