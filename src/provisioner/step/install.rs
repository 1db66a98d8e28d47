//! Step 2: a software's script, run as a job that outlives the connection.
//!
//! The script is started at most once for each job name, whoever asks and whatever dies: an upload
//! becomes the job by one rename, and what the folder holds says the rest. A result: it ended. A
//! lock: it runs, follow it. Neither: the wrapper or the spare died in the middle, and nobody knows
//! how far the script came, so the next spare is taken.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::{
    error,
    remote::{Command, QUICK, Remote, checked_name, one_line, script, whole_seconds},
};
use crate::{
    model::inventory::Variables,
    provisioner::order::{Class, Done, Said, StepError},
};

/// One look at a running job waits for its end this long; then its output is fetched, where there is
/// more of it, for whoever follows.
const LOOK_SECS: &str = "2";
const LOOK: Duration = Duration::from_secs(50);
/// Beyond the script's limit: `timeout -k 5`, killing what is left, and finding the way back after a
/// lost link.
const MARGIN: Duration = Duration::from_secs(45);
/// Between attempts to connect again.
const RETRY: Duration = Duration::from_secs(1);
/// The check command's limit.
pub(super) const CHECK: Duration = Duration::from_secs(30);

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    pub(super) name: &'a str,
    pub(super) software: &'a str,
    pub(super) script: &'a str,
    pub(super) timeout: Duration,
    pub(super) variables: &'a Variables,
    pub(super) check: Option<&'a str>,
}

/// What we know of the job, beyond what the spare says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing: it may not be there.
    Nothing,
    /// We may have started it: a lost link is a reason to come back and look.
    MayRun,
    /// It was there.
    Seen,
}

/// What the spare says of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Absent,
    /// With a word that changes when it has printed more.
    Running(String),
    Lost,
    Exited {
        status: u32,
        seconds: u64,
    },
    TimedOut {
        seconds: u64,
    },
}

/// Runs the job, or goes on with it, over as many connections as it takes.
pub(super) async fn install<'a, C, F>(
    connect: C,
    job: &Job<'_>,
    said: Said<'_>,
) -> Result<Done, StepError>
where
    C: Fn() -> F,
    F: Future<Output = Result<Remote<'a>, StepError>>,
{
    checked_name("job", job.name)?;
    let end = Instant::now() + job.timeout + MARGIN;
    let mut known = Known::Nothing;
    loop {
        let result = match connect().await {
            Ok(remote) => {
                let result = drive(&remote, job, &mut known, end, said).await;
                remote.end(result.is_ok()).await;
                result
            }
            Err(e) => Err(e),
        };
        match result {
            Err(e)
                if e.class == Class::Transient
                    && known != Known::Nothing
                    && Instant::now() < end =>
            {
                sleep(RETRY).await;
            }
            other => return other,
        }
    }
}

async fn drive(
    remote: &Remote<'_>,
    job: &Job<'_>,
    known: &mut Known,
    end: Instant,
    said: Said<'_>,
) -> Result<Done, StepError> {
    let mut wait = "0";
    let mut told = String::new();
    loop {
        let (status, seconds) = match look(remote, job.name, wait).await? {
            State::Absent if *known == Known::Seen => return Err(lost(remote, job)),
            State::Absent => {
                let stage = upload(remote, job).await?;
                *known = Known::MayRun;
                if let Err(e) = claim(remote, job, &stage).await {
                    // It may hold secrets, and another order may have kept the script from removing it. Of what has
                    // become the job nothing is there any more.
                    if let Ok(files) = remote.files().await {
                        files.remove(&[format!("{stage}/env")]).await;
                    }
                    return Err(e);
                }
                *known = Known::Seen;
                continue;
            }
            State::Running(_) if Instant::now() >= end => {
                let detail = format!(
                    "the script of {} still runs on {}, long after its limit of {:?}",
                    job.software, remote.name, job.timeout
                );
                return Err(error(Class::Permanent, "script_timed_out", detail));
            }
            State::Running(printed) => {
                *known = Known::Seen;
                wait = LOOK_SECS;
                if printed != told {
                    let output = collect(remote, job).await?;
                    // A line, or a character, that is not whole yet would change afterwards.
                    let whole = output
                        .rfind('\n')
                        .map_or("", |n| output.get(..=n).unwrap_or(""));
                    said(whole.to_owned());
                    told = printed;
                }
                continue;
            }
            State::Lost => return Err(lost(remote, job)),
            State::TimedOut { seconds } => (None, seconds),
            State::Exited { status, seconds } => (Some(status), seconds),
        };
        *known = Known::Seen;
        return ended(remote, job, status, seconds).await;
    }
}

async fn look(remote: &Remote<'_>, name: &str, wait: &str) -> Result<State, StepError> {
    let said = remote.read(script!("look"), &[name, wait], LOOK).await?;
    let words: Vec<_> = said.split_whitespace().collect();
    let state = match words.as_slice() {
        ["absent"] => Some(State::Absent),
        ["running", printed] => Some(State::Running((*printed).to_owned())),
        ["lost"] => Some(State::Lost),
        ["ended", how, status, seconds] => {
            match (*how, status.parse::<u32>(), seconds.parse::<u64>()) {
                ("exited", Ok(status), Ok(seconds)) => Some(State::Exited { status, seconds }),
                ("timed_out", Ok(_), Ok(seconds)) => Some(State::TimedOut { seconds }),
                _ => None,
            }
        }
        _ => None,
    };
    state.ok_or_else(|| remote.garbled(&said))
}

/// Brings script, environment and wrapper into a folder of their own; its path.
async fn upload(remote: &Remote<'_>, job: &Job<'_>) -> Result<String, StepError> {
    let environment = environment(job.variables)?;
    let files = remote.files().await?;
    let said = remote
        .act(script!(fenced "stage"), &[job.name], QUICK)
        .await?;
    let stage = said.trim();
    if !stage.starts_with(&remote.path("staging/")) {
        return Err(remote.garbled(&said));
    }
    for (name, text) in [
        ("script", job.script),
        ("env", &environment),
        ("run", include_str!("sh/run.sh")),
        ("keep", include_str!("sh/keep.sh")),
    ] {
        let path = format!("{stage}/{name}");
        files.create(&path, text.as_bytes(), 0o600).await?;
    }
    Ok(stage.to_owned())
}

async fn claim(remote: &Remote<'_>, job: &Job<'_>, stage: &str) -> Result<(), StepError> {
    let digest = hex(&Sha256::digest(job.script));
    let limit = whole_seconds(job.timeout);
    let args = [job.name, stage, digest.as_str(), limit.as_str()];
    let said = remote.act(script!(fenced "claim"), &args, QUICK).await?;
    match said.trim() {
        "started" | "claimed" => Ok(()),
        _ => Err(remote.garbled(&said)),
    }
}

async fn collect(remote: &Remote<'_>, job: &Job<'_>) -> Result<String, StepError> {
    let printed = remote.read(script!("collect"), &[job.name], QUICK).await?;
    Ok(remote.cover(&printed))
}

async fn ended(
    remote: &Remote<'_>,
    job: &Job<'_>,
    status: Option<u32>,
    seconds: u64,
) -> Result<Done, StepError> {
    let output = collect(remote, job).await?;
    let (name, software, last) = (remote.name, job.software, one_line(&output));
    let failed = |code, detail: String, output| {
        Err(StepError {
            output,
            ..error(Class::Permanent, code, detail)
        })
    };
    match status {
        Some(0) => {}
        Some(status) => {
            let signal = match status {
                129..=192 => format!(" (signal {})", status - 128),
                _ => String::new(),
            };
            let detail = format!(
                "the script of {software} ended on {name} with status {status}{signal}: {last}"
            );
            return failed("script_failed", detail, output);
        }
        None => {
            let detail = format!(
                "the script of {software} was killed on {name} after its limit of {:?}: {last}",
                job.timeout
            );
            return failed("script_timed_out", detail, output);
        }
    }
    if let Some(text) = job.check {
        let limit = CHECK;
        let answer = remote.ask(Command { text, limit }).await?;
        if answer.status != 0 {
            let detail = format!(
                "the script of {software} succeeded on {name}, but `{text}` says with status {} \
                 that it is not installed: {}",
                answer.status,
                one_line(&answer.output)
            );
            return failed("not_installed", detail, output + &answer.output);
        }
    }
    Ok(Done {
        detail: format!("{software} installed on {name} in {seconds} s"),
        output,
        os: None,
    })
}

fn lost(remote: &Remote<'_>, job: &Job<'_>) -> StepError {
    let detail = format!(
        "the script of {} was started on {} and vanished without a result (a reboot, or its \
         wrapper was killed): it may have run in part, see {}",
        job.software,
        remote.name,
        remote.path(&format!("jobs/{}", job.name))
    );
    error(Class::Permanent, "job_lost", detail)
}

/// Assignments for the wrapper to read: in a file, because arguments can be seen by everybody.
fn environment(variables: &Variables) -> Result<String, StepError> {
    let mut text = String::new();
    for (name, value) in variables {
        let mut chars = name.chars();
        let first = chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !first || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') || value.contains('\0') {
            let detail = format!("{name:?} cannot be an environment variable of a script");
            return Err(error(Class::Permanent, "bad_value", detail));
        }
        text.push_str(&format!(
            "{name}={}\n",
            crate::provisioner::ssh::quote(value)
        ));
    }
    Ok(text)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_quoted_and_checked() {
        let variables = Variables::from([("A_1".into(), "it's $B `c`\nd".into())]);
        assert_eq!(
            environment(&variables).unwrap(),
            "A_1='it'\\''s $B `c`\nd'\n"
        );
        for name in ["", "1A", "A-B", "A B", "A=B", "Ä"] {
            let variables = Variables::from([(name.into(), String::new())]);
            assert_eq!(environment(&variables).unwrap_err().code, "bad_value");
        }
    }
}
