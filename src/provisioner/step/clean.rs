//! A server made a spare again: the role's script, as a job, and then the files that were placed.

use super::{
    install::{self, Job},
    remote::{QUICK, Remote, script},
};
use crate::provisioner::order::{Done, Said, StepError};

pub(super) async fn clean<'a, F>(
    connect: impl Fn() -> F,
    job: &Job<'_>,
    files: &[String],
    said: Said<'_>,
) -> Result<Done, StepError>
where
    F: Future<Output = Result<Remote<'a>, StepError>>,
{
    let ran = install::install(&connect, job, said).await?;
    let remote = connect().await?;
    let mut args = vec![job.name];
    args.extend(files.iter().map(String::as_str));
    let swept = remote.act(script!(fenced "sweep"), &args, QUICK).await;
    let name = remote.name;
    remote.close().await;
    swept?;
    Ok(Done {
        detail: format!(
            "{name} is cleaned, {} files that were placed are gone",
            files.len()
        ),
        ..ran
    })
}
