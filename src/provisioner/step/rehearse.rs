//! A spare looked at before it is needed: changes nothing there.

use super::{
    error,
    remote::{QUICK, Remote, script},
};
use crate::provisioner::order::{Class, Done, StepError};

/// Scripts unpack packages: with less than this in KiB they would end half way.
const LEAST_FREE: u64 = 256 * 1024;

pub(super) async fn rehearse(remote: &Remote<'_>) -> Result<Done, StepError> {
    let said = remote.read(script!("rehearse"), &[], QUICK).await?;
    let mut lines = said.lines();
    let (Some(os), Some(Ok(free))) = (lines.next(), lines.next().map(str::parse::<u64>)) else {
        let detail = format!("{} answered what was not understood: {said:?}", remote.name);
        return Err(error(Class::Permanent, "shell_unusable", detail));
    };
    if free < LEAST_FREE {
        let detail = format!(
            "{} has {} MiB free where its jobs would lie, at least {} are needed",
            remote.name,
            free / 1024,
            LEAST_FREE / 1024
        );
        return Err(error(Class::Permanent, "disk_full", detail));
    }
    Ok(Done {
        detail: format!("{} runs {os}, {} MiB are free", remote.name, free / 1024),
        output: String::new(),
        os: Some(os.to_owned()),
    })
}
