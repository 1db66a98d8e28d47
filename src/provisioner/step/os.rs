//! Step 1: the running operating system, read back.

use super::{
    error,
    remote::{QUICK, Remote, script},
};
use crate::provisioner::order::{Class, Done, StepError};

/// The operating system as `ID-VERSION_ID`.
async fn read(remote: &Remote<'_>) -> Result<String, StepError> {
    let said = remote.read(script!("os"), &[], QUICK).await?;
    Ok(said.trim().to_owned())
}

pub(super) async fn os(remote: &Remote<'_>, wanted: &str) -> Result<Done, StepError> {
    let seen = read(remote).await?;
    if seen != wanted {
        let detail = format!("{} runs {seen}, the role wants {wanted}", remote.name);
        return Err(StepError {
            // Alone, for the pool to remember.
            output: seen,
            ..error(Class::Unsuitable, "os_mismatch", detail)
        });
    }
    Ok(Done {
        detail: format!("{} runs {seen}", remote.name),
        output: String::new(),
        os: Some(seen),
    })
}
