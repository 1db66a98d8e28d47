//! Which spare is claimed, and what is done to it, with the secrets that this host has now.

use super::{
    order::Step,
    plan::{Brief, NoChoice, World},
    sealed::digests,
    secrets::Secrets,
    select::Candidate,
    store::{Claim, Vacancy},
};
use crate::{
    model::{ReplacementId, wire::PassedOver},
    telemetry::Chain,
};

/// No spare can be claimed now.
pub(super) struct NoClaim {
    pub(super) reason: String,
    /// Why not these.
    pub(super) not: Vec<PassedOver>,
}

/// Names the job directories of a replacement's scripts on its spare number `attempt`.
pub(super) fn job(id: &ReplacementId, attempt: u32) -> String {
    format!("{id}-{attempt}")
}

/// Picks a spare of `pool`, and seals what is to be done to it.
pub(super) fn choose(
    world: &World,
    secrets: &Secrets,
    brief: &Brief,
    pool: Vec<Candidate>,
    job: &str,
) -> Result<Claim, NoClaim> {
    let mut choice = world
        .choose(pool, brief, job)
        .map_err(|NoChoice { reason, not, .. }| NoClaim { reason, not })?;
    let sealed = choice.steps.iter().flat_map(Step::secrets);
    let values = secrets.read(sealed.map(|s| s.name.as_str()));
    let values = values.map_err(|e| NoClaim {
        reason: format!("secret_missing: {}", Chain(&e)),
        not: Vec::new(),
    })?;
    let now = digests(&values);
    choice.steps.iter_mut().for_each(|s| s.seal(&now));
    Ok(Claim {
        server: choice.spare.name,
        role: brief.role.code.clone(),
        steps: choice.steps,
        rejected: choice.not,
    })
}

/// A spare on which everything was done beforehand, for a replacement that is new. `None` where there is work to do, or
/// to wait for: that is the engine's.
pub(super) fn ready(
    mut world: World,
    secrets: &Secrets,
    id: &ReplacementId,
    place: &Vacancy,
) -> Option<Claim> {
    let role = &world.assignments.get(&place.failed)?.role;
    // Others wait for this transaction: where nobody is kept, no file is read for it.
    if !world.servers.values().any(|s| s.is_kept_for(role)) {
        return None;
    }
    world.secrets = digests(&secrets.known(world.secret_names()));
    let brief = world.brief(place.failed, &place.origins).ok()?;
    let claim = choose(&world, secrets, &brief, world.pool(), &job(id, 1)).ok()?;
    claim.steps.is_empty().then_some(claim)
}
