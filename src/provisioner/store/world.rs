//! Reading the whole inventory at one moment.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    Store, StoreError, Tx, failed,
    members::Failing,
    now_ms,
    rows::{Columns, corrupt},
};
use crate::{
    model::{
        DirectorName, ReplacementId, WallMillis,
        inventory::{Role, Server, ServerState, ServerView, ServiceFile, Software},
        wire::ReplacementState,
    },
    provisioner::plan::{Assignment, Keeping, PoolServer, Source, World},
};

impl Store {
    /// All that look-ups, selection and rendering need.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn world(&self) -> Result<World, StoreError> {
        let mut tx = self.read().await?;
        let world = world(&mut tx).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(world)
    }

    /// The pool as `inventory list` shows it, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn servers(&self) -> Result<Vec<ServerView>, StoreError> {
        let world = self.world().await?;
        Ok(world.servers.values().map(|s| view(&world, s)).collect())
    }

    /// Number of servers in each state, zeros included.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pool_by_state(&self) -> Result<BTreeMap<ServerState, u64>, StoreError> {
        let rows = sqlx::query("SELECT state, count(*) AS n FROM server GROUP BY state")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("count the pool"))?;
        let mut counts: BTreeMap<_, _> = ServerState::ALL.into_iter().map(|s| (s, 0)).collect();
        for row in rows {
            counts.insert(row.word("state", ServerState::from_word)?, row.count("n")?);
        }
        Ok(counts)
    }

    /// Number of replacements in each state, zeros included.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replacements_by_state(
        &self,
    ) -> Result<BTreeMap<ReplacementState, u64>, StoreError> {
        let rows = sqlx::query(
            "SELECT state, count(*) AS n FROM replacement WHERE kind = 'replace' GROUP BY state",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("count the replacements"))?;
        let mut counts: BTreeMap<_, _> =
            ReplacementState::ALL.into_iter().map(|s| (s, 0)).collect();
        for row in rows {
            counts.insert(
                row.word("state", ReplacementState::from_word)?,
                row.count("n")?,
            );
        }
        Ok(counts)
    }
}

fn view(world: &World, s: &PoolServer) -> ServerView {
    let held = s
        .server
        .addresses
        .iter()
        .find_map(|a| world.assignments.get(a))
        .filter(|h| h.passed_on.is_none());
    ServerView {
        server: s.server.clone(),
        state: s.state,
        role: held.map(|h| h.role.clone()),
        by_replacement: held.and_then(|h| match &h.source {
            Source::Files => None,
            Source::Replacement(id) => Some(id.to_string()),
        }),
        os_seen: s.os_seen.clone(),
        reason: world.reason_of(s).or_else(|| {
            s.claimed_for
                .as_ref()
                .filter(|_| s.state != ServerState::Serving)
                .map(|id| format!("claimed for {id}"))
        }),
    }
}

/// The same within a transaction.
pub(super) async fn world(tx: &mut Tx) -> Result<World, StoreError> {
    let mut world = World::default();
    roles(tx, &mut world).await?;
    catalogue(tx, &mut world).await?;
    pool(tx, &mut world).await?;
    let rows = sqlx::query("SELECT address, role, server, source, passed_on FROM role_assignment")
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("read the role database"))?;
    for row in rows {
        let source = row.text("source")?;
        let source = if source == "files" {
            Source::Files
        } else {
            Source::Replacement(
                source
                    .parse()
                    .map_err(|_unread| corrupt("source of a role", source))?,
            )
        };
        world.assignments.insert(
            row.parsed("address")?,
            Assignment {
                role: row.text("role")?,
                server: row.text("server")?,
                source,
                passed_on: row.parsed_opt::<ReplacementId>("passed_on")?,
            },
        );
    }
    let now = now_ms();
    let rows = sqlx::query("SELECT name, registration, findings FROM director")
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("read the directors"))?;
    for row in rows {
        let name: DirectorName = row.parsed("name")?;
        let failing: BTreeMap<String, Failing> = row.json("findings")?;
        let failing = failing.into_iter().filter(|(_, f)| f.counts(now));
        let failing = failing.map(|(spare, failing)| (spare, failing.why));
        world.findings.insert(name.clone(), failing.collect());
        world.directors.insert(name, row.json("registration")?);
    }
    Ok(world)
}

async fn roles(tx: &mut Tx, world: &mut World) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT code, domain, os, gateways, clients, spares, install FROM role")
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("read the roles"))?;
    for row in rows {
        let code = row.text("code")?;
        let role = Role {
            code: code.clone(),
            domain: row.text("domain")?,
            os: row.text("os")?,
            software: Vec::new(),
            gateways: row.json("gateways")?,
            clients: row.json("clients")?,
            spares: row.json("spares")?,
            install: row.number("install")? != 0,
        };
        world.roles.insert(code, role);
    }
    let rows = sqlx::query("SELECT os, payload FROM image")
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("read the images"))?;
    for row in rows {
        world.images.insert(row.text("os")?, row.json("payload")?);
    }
    let rows = sqlx::query("SELECT role, software FROM role_software ORDER BY role, ord")
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("read the catalogue"))?;
    for row in rows {
        if let Some(role) = world.roles.get_mut(&row.text("role")?) {
            role.software.push(row.text("software")?);
        }
    }
    Ok(())
}

async fn catalogue(tx: &mut Tx, world: &mut World) -> Result<(), StoreError> {
    let rows = sqlx::query(
        "SELECT software, os, body, timeout_ms, check_command, running_command, start_command, \
         reload_command, needs, secrets FROM script ORDER BY ord",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read the script database"))?;
    for row in rows {
        world.software.push(Software {
            name: row.text("software")?,
            os: Some(row.text("os")?).filter(|os| !os.is_empty()),
            script: row.text("body")?,
            timeout: Duration::from_millis(row.count("timeout_ms")?),
            check: row.text_opt("check_command")?,
            running: row.text_opt("running_command")?,
            start: row.text_opt("start_command")?,
            reload: row.text_opt("reload_command")?,
            needs: row.json("needs")?,
            secrets: row.json("secrets")?,
        });
    }
    let rows = sqlx::query(
        "SELECT domain, software, path, body, template, mode, owner, grp, validate FROM service_config \
         ORDER BY ord",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read the service configuration table"))?;
    for row in rows {
        let mode = row.number("mode")?;
        world.files.push(ServiceFile {
            domain: row.text("domain")?,
            software: row.text("software")?,
            path: row.text("path")?,
            body: row.text("body")?,
            template: row.number("template")? != 0,
            mode: u32::try_from(mode).map_err(|_big| corrupt("file mode", mode.to_string()))?,
            owner: row.text("owner")?,
            group: row.text("grp")?,
            validate: row.text_opt("validate")?,
        });
    }
    Ok(())
}

async fn pool(tx: &mut Tx, world: &mut World) -> Result<(), StoreError> {
    let rows = sqlx::query(
        "SELECT name, ssh_address, ssh_port, host_keys, learnt_keys, driver, wipe, files_role, state, \
         reason, os_seen, replacement, labels, reserved_for, maintenance, quarantined_until, failed_ms, \
         rehearsed_ms, trouble, warm, clean_after, placed, \
         CASE WHEN installation IS NULL THEN 0 ELSE 1 END AS untidy FROM server",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("read the pool"))?;
    for row in rows {
        let name = row.text("name")?;
        let port = row.number("ssh_port")?;
        let server = Server {
            name: name.clone(),
            addresses: Vec::new(),
            ssh_address: row.parsed::<IpAddr>("ssh_address")?,
            ssh_port: u16::try_from(port).map_err(|_big| corrupt("port", port.to_string()))?,
            host_keys: row.json("host_keys")?,
            role: row.text_opt("files_role")?,
            labels: row.json("labels")?,
            reserved_for: row.json("reserved_for")?,
            driver: row.json("driver")?,
            wipe: row.number("wipe")? != 0,
            learnt_keys: row.json("learnt_keys")?,
        };
        let at = |column| Ok::<_, StoreError>(row.number_opt(column)?.map(WallMillis));
        let keeping = Keeping {
            maintenance: row.text_opt("maintenance")?,
            quarantined_until: at("quarantined_until")?,
            failed_at: at("failed_ms")?,
            rehearsed_at: at("rehearsed_ms")?,
            trouble: row.text_opt("trouble")?,
            warm: row.json_opt("warm")?,
            clean_after: row.text_opt("clean_after")?,
            untidy: row.number("untidy")? != 0,
            placed: row.json("placed")?,
        };
        world.servers.insert(
            name,
            PoolServer {
                server,
                state: row.word("state", ServerState::from_word)?,
                reason: row.text_opt("reason")?,
                os_seen: row.text_opt("os_seen")?,
                claimed_for: row.parsed_opt::<ReplacementId>("replacement")?,
                keeping,
            },
        );
    }
    let rows = sqlx::query("SELECT address, server FROM server_address ORDER BY server, ord")
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("read the pool's addresses"))?;
    for row in rows {
        if let Some(s) = world.servers.get_mut(&row.text("server")?) {
            s.server.addresses.push(row.parsed("address")?);
        }
    }
    Ok(())
}
