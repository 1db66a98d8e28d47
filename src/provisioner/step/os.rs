//! Step 1: the running operating system, read back.

use super::{
    error,
    remote::{QUICK, Remote, script},
};
use crate::provisioner::{
    driver::Sight,
    order::{Class, Done, StepError},
    ssh::HostKey,
};

/// What shows which installation this is: operating system, use, host keys in the folder `keys`.
pub(super) async fn sight(remote: &Remote<'_>, keys: &str) -> Result<Sight, StepError> {
    let os = read(remote).await?;
    let said = remote.read(script!("sight"), &[keys], QUICK).await?;
    let mut lines = said.lines();
    let used = lines.next() == Some("used");
    let keys = lines.filter(|l| HostKey::parse(l).is_ok());
    Ok(Sight {
        os,
        used,
        keys: keys.map(str::to_owned).collect(),
    })
}

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
