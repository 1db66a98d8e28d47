//! The first order of a run: from here on, orders of an older run are refused.

use super::remote::{QUICK, Remote, Script};
use crate::provisioner::order::{Done, StepError};

const FENCE: Script = Script::new(
    "fence",
    concat!(include_str!("sh/prelude.sh"), include_str!("sh/fence.sh")),
);

pub(super) async fn fence(remote: &Remote<'_>) -> Result<Done, StepError> {
    remote.act(FENCE, &[], QUICK).await?;
    Ok(Done {
        detail: format!("{} is held by this run", remote.name),
        ..Done::default()
    })
}
