//! Handing a role over.

use std::collections::BTreeSet;

use super::{
    StoreError, Tx, Work, failed, members,
    rows::{corrupt, json},
    world::world,
};
use crate::{
    model::{DirectorName, wire::Want},
    provisioner::plan::World,
};

/// The role goes over from the failed server to the spare, and every director concerned is to
/// attach it: all in the offer's transaction, so that no crash can part them.
pub(super) async fn offer(tx: &mut Tx, work: &Work) -> Result<(), StoreError> {
    let world = world(tx).await?;
    let place = work.place()?;
    let hand = work.journal.hand.as_ref();
    let spare = hand
        .and_then(|h| world.servers.get(&h.server))
        .ok_or_else(|| corrupt("spare to offer", work.id.as_str()))?;
    let role = work
        .role
        .as_deref()
        .ok_or_else(|| corrupt("replacement without role", work.id.as_str()))?;
    if let Some(old) = world.assignments.get(&place.failed) {
        sqlx::query("UPDATE role_assignment SET passed_on = $2 WHERE server = $1")
            .bind(old.server.as_str())
            .bind(work.id.as_str())
            .execute(&mut **tx)
            .await
            .map_err(failed("pass a role on"))?;
        sqlx::query(
            "UPDATE server SET state = 'failed', reason = $2 \
             WHERE name = $1 AND state IN ('serving', 'testing', 'enrolled')",
        )
        .bind(old.server.as_str())
        .bind(format!(
            "{} took its place ({})",
            spare.server.name, work.id
        ))
        .execute(&mut **tx)
        .await
        .map_err(failed("mark the failed server"))?;
    }
    for address in &spare.server.addresses {
        sqlx::query(
            "INSERT INTO role_assignment (address, role, server, source, passed_on) \
             VALUES ($1, $2, $3, $4, NULL) ON CONFLICT (address) DO UPDATE SET \
             role = excluded.role, server = excluded.server, source = excluded.source, \
             passed_on = NULL",
        )
        .bind(address.to_string())
        .bind(role)
        .bind(spare.server.name.as_str())
        .bind(work.id.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("assign the role"))?;
    }
    sqlx::query("UPDATE replacement SET origins = $2 WHERE id = $1")
        .bind(work.id.as_str())
        .bind(json("origins", &world.places(&place.origins))?)
        .execute(&mut **tx)
        .await
        .map_err(failed("keep a place's addresses"))?;
    // From here on it is what its role makes of it.
    sqlx::query("UPDATE server SET warm = NULL WHERE name = $1")
        .bind(spare.server.name.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("take a spare that was kept warm"))?;
    for director in concerned(tx, work, &world).await? {
        members::want(tx, &director, &work.id, Want::Attach).await?;
    }
    Ok(())
}

/// The director that asked, those that have the failed server or its origin in a service, and those
/// that have the stand-in whose place it is.
async fn concerned(
    tx: &mut Tx,
    work: &Work,
    world: &World,
) -> Result<BTreeSet<DirectorName>, StoreError> {
    let place = work.place()?;
    let mut addresses = world.places(&place.origins);
    addresses.extend(world.addresses_of(place.failed));
    let mut names: BTreeSet<DirectorName> = world.directors_with(&addresses).cloned().collect();
    names.insert(place.director.clone());
    if let Some(earlier) = &place.supersedes {
        names.extend(members::directors_of(tx, earlier).await?);
    }
    Ok(names)
}
