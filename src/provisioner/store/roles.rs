//! Roles that are stopped because their spares fail in the same place, and setting them going again.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Actor, Entry, News, Store, StoreError, Tx, audit, diff::Catalogue, failed, journal, now_ms,
    replacements::view, rows::Columns, world::world,
};
use crate::{
    model::{
        EventKind, ReplacementId,
        inventory::{Role, ServiceFile, Software},
        wire::{Replacement, ReplacementState, RoleView},
    },
    provisioner::{
        plan::{World, script_for},
        same_cause::{Cause, End, Trial, cause},
    },
};

/// So many of a role's newest spares are looked at: enough to see past those that were unreachable.
const NEWEST: i64 = 100;

/// What became of a wish to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryOutcome {
    /// It is tried again at once.
    Retried(Box<Replacement>),
    /// It does not wait.
    NotWaiting(Box<Replacement>),
    /// There is none.
    NoSuchReplacement,
}

impl Store {
    /// Why a role is stopped, where it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stopped(&self, role: &str) -> Result<Option<Cause>, StoreError> {
        let mut tx = self.read().await?;
        let cause = stop(&mut tx, role).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(cause)
    }

    /// How each role stands.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn readiness(&self, world: &World) -> Result<Vec<RoleView>, StoreError> {
        let mut tx = self.read().await?;
        let mut views = Vec::with_capacity(world.roles.len());
        for role in world.roles.values() {
            let cause = stop(&mut tx, &role.code).await?;
            views.push(RoleView {
                stopped: cause.map(|cause| cause.reason(&role.code)),
                ..world.readiness(role)
            });
        }
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(views)
    }

    /// Codes of the roles that are stopped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stopped_roles(&self) -> Result<Vec<String>, StoreError> {
        let mut tx = self.read().await?;
        let rows = sqlx::query("SELECT code FROM role ORDER BY code")
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("list the roles"))?;
        let mut stopped = Vec::new();
        for row in rows {
            let code = row.text("code")?;
            if stop(&mut tx, &code).await?.is_some() {
                stopped.push(code);
            }
        }
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(stopped)
    }

    /// Forgets what a role's spares failed in. `false` where there is no such role.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release_role(
        &self,
        role: &str,
        actor: impl Into<Actor>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let known = sqlx::query("SELECT code FROM role WHERE code = $1")
            .bind(role)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("read a role"))?;
        if known.is_none() {
            return Ok(false);
        }
        forget(&mut tx, role).await?;
        let detail = format!("role {role}");
        let entry = Entry::new(EventKind::InventoryChanged, "role_released", &detail);
        audit(&mut tx, &actor.into(), entry).await?;
        self.commit(tx, News::Work).await?;
        Ok(true)
    }

    /// Has a replacement that waits tried again at once, its role released.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn retry(
        &self,
        id: &ReplacementId,
        actor: impl Into<Actor>,
    ) -> Result<RetryOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let work = match journal::load(&mut tx, id).await {
            Ok(work) => work,
            Err(StoreError::NoReplacement { .. }) => return Ok(RetryOutcome::NoSuchReplacement),
            Err(e) => return Err(e),
        };
        let seen = Box::new(view(&mut tx, id).await?);
        if work.journal.state != ReplacementState::Pending {
            return Ok(RetryOutcome::NotWaiting(seen));
        }
        let mut roles: BTreeSet<String> = seen.role.iter().cloned().collect();
        // One that never claimed a spare has noted no role, and may wait for one that others have stopped.
        if let Some(place) = &work.place
            && let Ok(brief) = world(&mut tx).await?.brief(place.failed, &place.origins)
        {
            roles.insert(brief.role.code);
        }
        for role in &roles {
            forget(&mut tx, role).await?;
        }
        let entry = Entry {
            replacement: Some(id),
            ..Entry::new(EventKind::ReplacementProgress, "retried", "")
        };
        audit(&mut tx, &actor.into(), entry).await?;
        self.commit(tx, News::Work).await?;
        Ok(RetryOutcome::Retried(seen))
    }
}

/// Why a role is stopped, where it is.
pub(super) async fn stop(tx: &mut Tx, role: &str) -> Result<Option<Cause>, StoreError> {
    Ok(cause(&trials(tx, role).await?))
}

/// What came of a role's spares that were planned since it was released last, the newest first: one that was planned
/// before was told what is not so any more.
async fn trials(tx: &mut Tx, role: &str) -> Result<Vec<Trial>, StoreError> {
    let rows = sqlx::query(
        "SELECT a.server, a.state, a.failed_step, a.failed_code FROM attempt a \
         JOIN replacement r ON r.id = a.replacement WHERE a.role = $1 AND r.kind <> 'clean' \
         AND (a.state IN ('failed', 'serving', 'superseded', 'finished') \
         OR (a.state = 'open' AND r.state = 'attaching')) \
         AND a.started_ms > \
         (SELECT COALESCE(MAX(since_ms), 0) FROM role_trial WHERE role = $1) \
         ORDER BY COALESCE(a.ended_ms, a.started_ms) DESC, a.number DESC LIMIT $2",
    )
    .bind(role)
    .bind(NEWEST)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read what a role's spares came to"))?;
    rows.iter()
        .map(|row| {
            Ok(Trial {
                server: row.text("server")?,
                end: match row.text("state")?.as_str() {
                    "failed" => End::Failed {
                        step: row.text_opt("failed_step")?.unwrap_or_default(),
                        code: row.text_opt("failed_code")?.unwrap_or_default(),
                    },
                    _ => End::Sound,
                },
            })
        })
        .collect()
}

async fn forget(tx: &mut Tx, role: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO role_trial (role, since_ms) VALUES ($1, $2) \
         ON CONFLICT (role) DO UPDATE SET since_ms = excluded.since_ms",
    )
    .bind(role)
    .bind(now_ms().0)
    .execute(&mut **tx)
    .await
    .map_err(failed("release a role"))?;
    Ok(())
}

/// Releases the roles whose software, scripts or files another catalogue changes.
pub(super) async fn forget_changed(
    tx: &mut Tx,
    world: &World,
    catalogue: &Catalogue,
) -> Result<(), StoreError> {
    for role in &catalogue.roles {
        let old = world
            .roles
            .get(&role.code)
            .map(|r| part(r, &world.software, &world.files));
        if old != Some(part(role, &catalogue.software, &catalogue.files)) {
            forget(tx, &role.code).await?;
        }
    }
    Ok(())
}

/// All of a catalogue that a role's spares are told and asked; not which servers may be its spares.
type Part<'a> = (
    [&'a str; 2],
    &'a [String],
    [&'a [IpAddr]; 2],
    Vec<Option<&'a Software>>,
    Vec<&'a ServiceFile>,
);

fn part<'a>(role: &'a Role, software: &'a [Software], files: &'a [ServiceFile]) -> Part<'a> {
    let scripts = role
        .software
        .iter()
        .map(|s| script_for(software, s, &role.os));
    let files = files
        .iter()
        .filter(|f| f.domain == role.domain && role.software.contains(&f.software));
    (
        [role.os.as_str(), role.domain.as_str()],
        role.software.as_slice(),
        [role.gateways.as_slice(), role.clients.as_slice()],
        scripts.collect(),
        files.collect(),
    )
}
