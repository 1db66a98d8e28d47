//! `inventory apply`.

use super::{
    Actor, Entry, News, Problems, Store, StoreError, Tx, audit,
    diff::{Attached, Catalogue, ServerOp, diff, problems},
    failed,
    roles::forget_changed,
    rows::{Columns, json, stored},
    world::world,
};
use crate::model::{
    EventKind,
    inventory::{ChangeAction, Inventory, InventoryAnswer, Server, ServerState},
};

/// Why an inventory was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It has faults.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Brings the store to what the files say, but for what replacements hold.
    ///
    /// # Errors
    /// [`ApplyError::Problems`] lists every fault; then nothing was changed.
    pub async fn apply(
        &self,
        wanted: &Inventory,
        dry_run: bool,
        actor: impl Into<Actor>,
    ) -> Result<InventoryAnswer, ApplyError> {
        problems(wanted)?;
        let mut tx = self.begin().await?;
        let attached = attached(&mut tx).await?;
        let world = world(&mut tx).await?;
        let diff = diff(&world, &attached, wanted)?;
        let differs = diff.catalogue.is_some() || !diff.servers.is_empty();
        let applied = differs && !dry_run;
        if applied {
            if let Some(catalogue) = &diff.catalogue {
                write_catalogue(&mut tx, catalogue).await?;
                forget_changed(&mut tx, &world, catalogue).await?;
            }
            write_servers(&mut tx, &diff.servers).await?;
            let actor = actor.into();
            for change in &diff.changes {
                let what = match change.action {
                    ChangeAction::Add => "added",
                    ChangeAction::Change => "changed",
                    ChangeAction::Remove => "removed",
                    ChangeAction::Held => continue,
                };
                let detail = format!("{}: {}", change.object, change.detail);
                let entry = Entry::new(EventKind::InventoryChanged, what, &detail);
                audit(&mut tx, &actor, entry).await?;
            }
            self.commit(tx, News::Work).await?;
        }
        Ok(InventoryAnswer {
            applied,
            changes: diff.changes,
        })
    }
}

/// Servers that directors may have in service as stand-ins, with those directors.
pub(super) async fn attached(tx: &mut Tx) -> Result<Attached, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT a.server, m.director FROM attempt a \
         JOIN attachment m ON m.replacement = a.replacement \
         WHERE a.state IN ('open', 'serving', 'superseded') \
         AND (m.want = 'attach' OR m.confirmed IS NULL OR m.confirmed <> 'withdraw') \
         ORDER BY m.director",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("look who has which server in service"))?;
    let mut attached = Attached::new();
    for row in rows {
        let directors = attached.entry(row.text("server")?).or_default();
        directors.push(row.text("director")?);
    }
    Ok(attached)
}

async fn write_catalogue(tx: &mut Tx, catalogue: &Catalogue) -> Result<(), StoreError> {
    for table in [
        "DELETE FROM role_software",
        "DELETE FROM role",
        "DELETE FROM script",
        "DELETE FROM service_config",
        "DELETE FROM image",
    ] {
        sqlx::query(table)
            .execute(&mut **tx)
            .await
            .map_err(failed("clear the catalogue"))?;
    }
    for role in &catalogue.roles {
        sqlx::query(
            "INSERT INTO role (code, domain, os, gateways, clients, spares, install) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(role.code.as_str())
        .bind(role.domain.as_str())
        .bind(role.os.as_str())
        .bind(json("gateways", &role.gateways)?)
        .bind(json("clients", &role.clients)?)
        .bind(json("spares of a role", &role.spares)?)
        .bind(i64::from(role.install))
        .execute(&mut **tx)
        .await
        .map_err(failed("write a role"))?;
        for (ord, software) in (0_i64..).zip(&role.software) {
            sqlx::query("INSERT INTO role_software (role, ord, software) VALUES ($1, $2, $3)")
                .bind(role.code.as_str())
                .bind(ord)
                .bind(software.as_str())
                .execute(&mut **tx)
                .await
                .map_err(failed("write the catalogue"))?;
        }
    }
    for (ord, s) in (0_i64..).zip(&catalogue.software) {
        sqlx::query(
            "INSERT INTO script (software, os, ord, body, timeout_ms, check_command, \
             running_command, start_command, reload_command, needs, secrets) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(s.name.as_str())
        .bind(s.os.as_deref().unwrap_or_default())
        .bind(ord)
        .bind(s.script.as_str())
        .bind(stored(
            u64::try_from(s.timeout.as_millis()).unwrap_or(u64::MAX),
        ))
        .bind(s.check.clone())
        .bind(s.running.clone())
        .bind(s.start.clone())
        .bind(s.reload.clone())
        .bind(json("needs", &s.needs)?)
        .bind(json("secrets", &s.secrets)?)
        .execute(&mut **tx)
        .await
        .map_err(failed("write a script"))?;
    }
    for image in &catalogue.images {
        sqlx::query("INSERT INTO image (os, payload) VALUES ($1, $2)")
            .bind(image.os.as_str())
            .bind(json("image", image)?)
            .execute(&mut **tx)
            .await
            .map_err(failed("write an image"))?;
    }
    for (ord, f) in (0_i64..).zip(&catalogue.files) {
        sqlx::query(
            "INSERT INTO service_config (domain, software, path, ord, body, template, mode, owner, \
             grp, validate) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(f.domain.as_str())
        .bind(f.software.as_str())
        .bind(f.path.as_str())
        .bind(ord)
        .bind(f.body.as_str())
        .bind(i64::from(f.template))
        .bind(i64::from(f.mode))
        .bind(f.owner.as_str())
        .bind(f.group.as_str())
        .bind(f.validate.clone())
        .execute(&mut **tx)
        .await
        .map_err(failed("write a service configuration file"))?;
    }
    Ok(())
}

async fn write_servers(tx: &mut Tx, ops: &[ServerOp]) -> Result<(), StoreError> {
    // Addresses first go away everywhere: two servers may have swapped theirs.
    for op in ops {
        let (name, roles) = match op {
            ServerOp::Add(_) => continue,
            ServerOp::Change { server, assign, .. } => (server.name.as_str(), *assign),
            ServerOp::Remove(name) => (name.as_str(), true),
        };
        forget_addresses(tx, name, roles).await?;
        if let ServerOp::Remove(name) = op {
            sqlx::query("DELETE FROM server WHERE name = $1")
                .bind(name.as_str())
                .execute(&mut **tx)
                .await
                .map_err(failed("remove a server"))?;
        }
    }
    for op in ops {
        match op {
            ServerOp::Remove(_) => {}
            ServerOp::Add(server) => {
                let state = if server.role.is_some() {
                    ServerState::Serving
                } else {
                    ServerState::Ready
                };
                sqlx::query(
                    "INSERT INTO server (name, ssh_address, ssh_port, host_keys, state, labels, \
                     reserved_for, quarantines, placed, learnt_keys, driver, wipe) \
                     VALUES ($1, '', 0, '[]', $2, '{}', '[]', 0, '[]', '[]', '', 0)",
                )
                .bind(server.name.as_str())
                .bind(state.as_str())
                .execute(&mut **tx)
                .await
                .map_err(failed("add a server"))?;
                write_server(tx, server, true).await?;
            }
            ServerOp::Change {
                server,
                state,
                assign,
            } => {
                write_server(tx, server, *assign).await?;
                if let Some((state, reason)) = state {
                    // Of what it was before nothing is put away any more.
                    let moved = "UPDATE server SET state = $2, reason = $3, clean_after = NULL, \
                                 quarantined_until = NULL WHERE name = $1";
                    sqlx::query(moved)
                        .bind(server.name.as_str())
                        .bind(state.as_str())
                        .bind(reason.clone())
                        .execute(&mut **tx)
                        .await
                        .map_err(failed("move a server"))?;
                }
            }
        }
    }
    Ok(())
}

async fn forget_addresses(tx: &mut Tx, name: &str, roles: bool) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM server_address WHERE server = $1")
        .bind(name)
        .execute(&mut **tx)
        .await
        .map_err(failed("clear a server's addresses"))?;
    if roles {
        sqlx::query("DELETE FROM role_assignment WHERE server = $1")
            .bind(name)
            .execute(&mut **tx)
            .await
            .map_err(failed("clear a server's role"))?;
    }
    Ok(())
}

async fn write_server(tx: &mut Tx, server: &Server, assign: bool) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE server SET ssh_address = $2, ssh_port = $3, \
         learnt_keys = CASE WHEN host_keys = $4 THEN learnt_keys ELSE '[]' END, host_keys = $4, \
         files_role = $5, labels = $6, reserved_for = $7, driver = $8, wipe = $9 WHERE name = $1",
    )
    .bind(server.name.as_str())
    .bind(server.ssh_address.to_string())
    .bind(i64::from(server.ssh_port))
    .bind(json("host keys", &server.host_keys)?)
    .bind(server.role.clone())
    .bind(json("labels", &server.labels)?)
    .bind(json("reservations", &server.reserved_for)?)
    .bind(json("driver", &server.driver)?)
    .bind(i64::from(server.wipe))
    .execute(&mut **tx)
    .await
    .map_err(failed("write a server"))?;
    for (ord, address) in (0_i64..).zip(&server.addresses) {
        sqlx::query("INSERT INTO server_address (address, server, ord) VALUES ($1, $2, $3)")
            .bind(address.to_string())
            .bind(server.name.as_str())
            .bind(ord)
            .execute(&mut **tx)
            .await
            .map_err(failed("write a server's address"))?;
        if let (true, Some(role)) = (assign, &server.role) {
            sqlx::query(
                "INSERT INTO role_assignment (address, role, server, source, passed_on) \
                 VALUES ($1, $2, $3, 'files', NULL)",
            )
            .bind(address.to_string())
            .bind(role.as_str())
            .bind(server.name.as_str())
            .execute(&mut **tx)
            .await
            .map_err(failed("assign a role"))?;
        }
    }
    Ok(())
}
