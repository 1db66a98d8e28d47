//! Servers beside replacements: released, quarantined, in maintenance, looked at.

use std::collections::BTreeSet;

use super::{
    Actor, Entry, News, Store, StoreError, Tx, audit, failed,
    inventory::attached,
    journal::address_of,
    now_ms,
    rows::{Columns, json},
    world::world,
};
use crate::{
    model::{
        EventKind, WallMillis,
        inventory::{ServerState, SparePolicy},
    },
    provisioner::{driver::MEDIA_LEFT, order::Step, quarantine},
};

/// Who does what nobody asked for.
pub(super) const KEEPER: &str = "keeper";

/// What became of a wish about a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerOutcome {
    /// It is so.
    Done,
    /// There is no such server.
    NoSuchServer,
    /// It cannot be from where it stands: says why.
    Refused(String),
}

/// What a rehearsal found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// The operating system, where it could be read.
    pub os: Option<String>,
    /// What is wrong.
    pub trouble: Option<String>,
}

impl Store {
    /// Gives a server that is quarantined, failed or kept warm back to the pool; whoever asks says that it is clean.
    /// What it was last seen with is forgotten, also of one that is ready: it is looked at anew.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release(
        &self,
        name: &str,
        actor: impl Into<Actor>,
    ) -> Result<ServerOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let Some(state) = state(&mut tx, name).await? else {
            return Ok(ServerOutcome::NoSuchServer);
        };
        match state {
            ServerState::Ready
            | ServerState::Quarantined
            | ServerState::Failed
            | ServerState::Standby => {}
            ServerState::Enrolled
            | ServerState::Claimed
            | ServerState::Configuring
            | ServerState::Testing
            | ServerState::Cleaning
            | ServerState::Serving => {
                return Ok(ServerOutcome::Refused(format!(
                    "{name} is {}: only a server that is quarantined, failed or kept warm can be released",
                    state.as_str()
                )));
            }
        }
        if let Some(attached) = attached(&mut tx).await?.get(name) {
            return Ok(ServerOutcome::Refused(format!(
                "{name} may still be in service: not confirmed to be withdrawn by {}",
                attached.join(", ")
            )));
        }
        free(&mut tx, name).await?;
        sqlx::query("UPDATE server SET quarantines = 0 WHERE name = $1")
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(failed("release a server"))?;
        tell(
            &mut tx,
            &actor.into(),
            name,
            (EventKind::SpareReleased, "released"),
            state.as_str(),
        )
        .await?;
        self.commit(tx, News::Work).await?;
        Ok(ServerOutcome::Done)
    }

    /// Puts a spare aside, until then or until it is released.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn quarantine(
        &self,
        name: &str,
        reason: &str,
        until: Option<WallMillis>,
        actor: impl Into<Actor>,
    ) -> Result<ServerOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let Some(state) = state(&mut tx, name).await? else {
            return Ok(ServerOutcome::NoSuchServer);
        };
        match state {
            ServerState::Ready | ServerState::Standby | ServerState::Quarantined => {}
            ServerState::Enrolled
            | ServerState::Claimed
            | ServerState::Configuring
            | ServerState::Testing
            | ServerState::Cleaning
            | ServerState::Failed
            | ServerState::Serving => {
                return Ok(ServerOutcome::Refused(format!(
                    "{name} is {}: only a spare can be quarantined; maintenance keeps a server from being chosen \
                     wherever it stands",
                    state.as_str()
                )));
            }
        }
        sqlx::query(
            "UPDATE server SET state = 'quarantined', reason = $2, quarantined_until = $3, warm = NULL \
             WHERE name = $1",
        )
        .bind(name)
        .bind(reason)
        .bind(until.map(|at| at.0))
        .execute(&mut *tx)
        .await
        .map_err(failed("quarantine a server"))?;
        tell(
            &mut tx,
            &actor.into(),
            name,
            (EventKind::SpareQuarantined, "quarantined"),
            reason,
        )
        .await?;
        self.commit(tx, News::State).await?;
        Ok(ServerOutcome::Done)
    }

    /// Has a server cleaned that is quarantined, failed or kept warm: as the role that it had says.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn clean(
        &self,
        name: &str,
        actor: impl Into<Actor>,
    ) -> Result<ServerOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let Some(state) = state(&mut tx, name).await? else {
            return Ok(ServerOutcome::NoSuchServer);
        };
        let dirty = [
            ServerState::Quarantined,
            ServerState::Failed,
            ServerState::Standby,
        ];
        if !dirty.contains(&state) {
            return Ok(ServerOutcome::Refused(format!(
                "{name} is {}: only a server that is quarantined, failed or kept warm can be cleaned",
                state.as_str()
            )));
        }
        if let Some(attached) = attached(&mut tx).await?.get(name) {
            return Ok(ServerOutcome::Refused(format!(
                "{name} may still be in service: not confirmed to be withdrawn by {}",
                attached.join(", ")
            )));
        }
        let role = last_role(&mut tx, name).await?;
        if !clean_after(&mut tx, name, role.as_deref()).await? {
            return Ok(ServerOutcome::Refused(match role {
                Some(role) => format!(
                    "the role {role}, which {name} had, has neither cleanup nor clean in roles.toml: clean it by hand, then \
                     `understudy inventory release {name}`"
                ),
                None => format!(
                    "{name} was never configured by this provisioner: clean it by hand, then `understudy inventory \
                     release {name}`"
                ),
            }));
        }
        let world = world(&mut tx).await?;
        if let Some(why) = world.servers.get(name).and_then(|s| world.uncleanable(s)) {
            return Ok(ServerOutcome::Refused(format!("{name}: {why}")));
        }
        sqlx::query(
            "UPDATE server SET warm = NULL, quarantined_until = NULL, reason = 'to be cleaned', \
             state = CASE WHEN state = 'standby' THEN 'quarantined' ELSE state END WHERE name = $1",
        )
        .bind(name)
        .execute(&mut *tx)
        .await
        .map_err(failed("have a server cleaned"))?;
        let word = (EventKind::ServerNoted, "to_be_cleaned");
        tell(&mut tx, &actor.into(), name, word, state.as_str()).await?;
        self.commit(tx, News::Work).await?;
        Ok(ServerOutcome::Done)
    }

    /// Keeps a server from being chosen, for a reason; or no longer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn maintain(
        &self,
        name: &str,
        reason: Option<&str>,
        actor: impl Into<Actor>,
    ) -> Result<ServerOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let changed = sqlx::query("UPDATE server SET maintenance = $2 WHERE name = $1")
            .bind(name)
            .bind(reason)
            .execute(&mut *tx)
            .await
            .map_err(failed("note a server's maintenance"))?;
        if changed.rows_affected() == 0 {
            return Ok(ServerOutcome::NoSuchServer);
        }
        let what = match reason {
            Some(_) => "maintenance",
            None => "maintenance_over",
        };
        tell(
            &mut tx,
            &actor.into(),
            name,
            (EventKind::ServerNoted, what),
            reason.unwrap_or_default(),
        )
        .await?;
        self.commit(tx, News::Work).await?;
        Ok(ServerOutcome::Done)
    }

    /// Ends quarantines whose time is over; whose they were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_quarantines(&self) -> Result<Vec<String>, StoreError> {
        let mut tx = self.begin().await?;
        let rows = sqlx::query(
            "SELECT name FROM server WHERE state = 'quarantined' AND quarantined_until <= $1 \
             AND installation IS NULL ORDER BY name",
        )
        .bind(now_ms().0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("look whose quarantine is over"))?;
        let attached = attached(&mut tx).await?;
        let mut ended = Vec::new();
        for row in rows {
            let name = row.text("name")?;
            if attached.contains_key(&name) {
                continue;
            }
            // Whose role says how it is cleaned is clean after that, and not before.
            let role = last_role(&mut tx, &name).await?;
            if clean_after(&mut tx, &name, role.as_deref()).await? {
                sqlx::query("UPDATE server SET quarantined_until = NULL WHERE name = $1")
                    .bind(name.as_str())
                    .execute(&mut *tx)
                    .await
                    .map_err(failed("end a quarantine"))?;
            } else {
                free(&mut tx, &name).await?;
            }
            let word = (EventKind::SpareReleased, "quarantine_over");
            tell(&mut tx, &KEEPER.into(), &name, word, "").await?;
            ended.push(name);
        }
        if ended.is_empty() {
            tx.rollback().await.map_err(failed("end a reading"))?;
        } else {
            self.commit(tx, News::Work).await?;
        }
        Ok(ended)
    }

    /// Takes the looking at a spare upon oneself until `until`: `false` where somebody has looked since `before`, or is
    /// about to.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_rehearsal(
        &self,
        name: &str,
        before: WallMillis,
        until: WallMillis,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let changed = sqlx::query(
            "UPDATE server SET rehearsing_until = $4 WHERE name = $1 AND state IN ('ready', 'standby') \
             AND (rehearsed_ms IS NULL OR rehearsed_ms <= $3) AND (rehearsing_until IS NULL OR rehearsing_until <= $2)",
        )
        .bind(name)
        .bind(now_ms().0)
        .bind(before.0)
        .bind(until.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("begin a rehearsal"))?;
        let begun = changed.rows_affected() == 1;
        self.commit(tx, News::None).await?;
        Ok(begun)
    }

    /// Notes what a rehearsal found. `true` where that is another than before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rehearsed(&self, name: &str, found: &Rehearsed) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT trouble FROM server WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("read a server"))?;
        let Some(row) = row else {
            return Ok(false);
        };
        let before = row.text_opt("trouble")?;
        // A look over SSH does not see it.
        let stays = before.clone().filter(|t| t.starts_with(MEDIA_LEFT));
        let trouble = found.trouble.clone().or(stays);
        let differs = before != trouble;
        // What it is claimed for meanwhile looks itself.
        sqlx::query(
            "UPDATE server SET trouble = $2, os_seen = COALESCE($3, os_seen), rehearsed_ms = $4, \
             rehearsing_until = NULL WHERE name = $1 AND state IN ('ready', 'standby')",
        )
        .bind(name)
        .bind(trouble.clone())
        .bind(found.os.clone())
        .bind(now_ms().0)
        .execute(&mut *tx)
        .await
        .map_err(failed("note a rehearsal"))?;
        if differs {
            let what = match trouble {
                Some(_) => "rehearsal_failed",
                None => "rehearsal_passed",
            };
            let detail = trouble.as_deref().unwrap_or_default();
            tell(
                &mut tx,
                &KEEPER.into(),
                name,
                (EventKind::ServerNoted, what),
                detail,
            )
            .await?;
        }
        self.commit(tx, if differs { News::Work } else { News::None })
            .await?;
        Ok(differs)
    }
}

/// A spare that failed a step is put aside for a while, longer each time.
pub(super) async fn put_aside(tx: &mut Tx, name: &str) -> Result<(), StoreError> {
    let row = sqlx::query(
        "UPDATE server SET quarantines = quarantines + 1, failed_ms = $2 WHERE name = $1 RETURNING quarantines",
    )
    .bind(name)
    .bind(now_ms().0)
    .fetch_one(&mut **tx)
    .await
    .map_err(failed("count a quarantine"))?;
    let until = quarantine::ends(row.count("quarantines")?, now_ms());
    sqlx::query("UPDATE server SET quarantined_until = $2 WHERE name = $1")
        .bind(name)
        .bind(until.map(|at| at.0))
        .execute(&mut **tx)
        .await
        .map_err(failed("put a quarantine's end down"))?;
    Ok(())
}

/// A server is a spare of which nothing is known.
pub(super) async fn free(tx: &mut Tx, name: &str) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE server SET state = 'ready', reason = NULL, os_seen = NULL, replacement = NULL, \
         quarantined_until = NULL, trouble = NULL, rehearsed_ms = NULL, rehearsing_until = NULL, warm = NULL, \
         clean_after = NULL, installation = NULL WHERE name = $1",
    )
    .bind(name)
    .execute(&mut **tx)
    .await
    .map_err(failed("free a server"))?;
    // What a replacement gave is gone with the withdrawal. What the files gave and a replacement
    // passed on stays: a director may still ask about this place.
    sqlx::query("DELETE FROM role_assignment WHERE server = $1 AND source <> 'files'")
        .bind(name)
        .execute(&mut **tx)
        .await
        .map_err(failed("free a server"))?;
    Ok(())
}

pub(super) async fn state(tx: &mut Tx, name: &str) -> Result<Option<ServerState>, StoreError> {
    let row = sqlx::query("SELECT state FROM server WHERE name = $1")
        .bind(name)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("read a server"))?;
    row.map(|row| row.word("state", ServerState::from_word))
        .transpose()
}

pub(super) async fn tell(
    tx: &mut Tx,
    actor: &Actor,
    name: &str,
    (kind, what): (EventKind, &str),
    detail: &str,
) -> Result<(), StoreError> {
    let detail = match detail {
        "" => name.to_owned(),
        detail => format!("{name}: {detail}"),
    };
    let entry = Entry {
        server: address_of(tx, name).await?,
        ..Entry::new(kind, what, &detail)
    };
    audit(tx, actor, entry).await
}

/// The role that a server was configured for last.
pub(super) async fn last_role(tx: &mut Tx, name: &str) -> Result<Option<String>, StoreError> {
    let row = sqlx::query(
        "SELECT r.role FROM attempt a JOIN replacement r ON r.id = a.replacement \
         WHERE a.server = $1 ORDER BY a.started_ms DESC, r.id DESC LIMIT 1",
    )
    .bind(name)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("look what a server was"))?;
    row.map_or(Ok(None), |row| row.text_opt("role"))
}

/// Has a server cleaned, if its role says how. `false`: it does not.
pub(super) async fn clean_after(
    tx: &mut Tx,
    name: &str,
    role: Option<&str>,
) -> Result<bool, StoreError> {
    let Some(role) = role else {
        return Ok(false);
    };
    let row = sqlx::query("SELECT spares FROM role WHERE code = $1")
        .bind(role)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("look how a role is cleaned"))?;
    let policy: Option<SparePolicy> = row.map(|row| row.json("spares")).transpose()?;
    if policy.is_none_or(|policy| policy.cleanup.is_none()) {
        return Ok(false);
    }
    sqlx::query("UPDATE server SET clean_after = $2 WHERE name = $1")
        .bind(name)
        .bind(role)
        .execute(&mut **tx)
        .await
        .map_err(failed("have a server cleaned"))?;
    Ok(true)
}

/// Remembers which files are going to be placed on a server.
pub(super) async fn note_placed(tx: &mut Tx, name: &str, steps: &[Step]) -> Result<(), StoreError> {
    let files = steps.iter().filter_map(|step| match step {
        Step::Configure { files, .. } => Some(files),
        _ => None,
    });
    let paths: BTreeSet<&str> = files.flatten().map(|file| file.path.as_str()).collect();
    if paths.is_empty() {
        return Ok(());
    }
    let row = sqlx::query("SELECT placed FROM server WHERE name = $1")
        .bind(name)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed("look what was placed on a server"))?;
    let mut placed: BTreeSet<String> = row.json("placed")?;
    placed.extend(paths.into_iter().map(str::to_owned));
    sqlx::query("UPDATE server SET placed = $2 WHERE name = $1")
        .bind(name)
        .bind(json("placed files", &placed)?)
        .execute(&mut **tx)
        .await
        .map_err(failed("note what is placed on a server"))?;
    Ok(())
}
