//! What operators do with a whole store: look at it, back it up, move it to a server.

use std::{collections::BTreeMap, fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use serde::Serialize;
use sqlx::{AssertSqlSafe, Row, any::AnyRow};

use super::{
    Engine, Store, StoreError, Tx, failed,
    rows::{Columns, corrupt},
};

/// A store at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreStatus {
    /// Where it is, without a password.
    pub at: String,
    /// `SQLite` or `PostgreSQL`.
    pub engine: &'static str,
    /// Migrations that this version has.
    pub migrations: usize,
    /// Those of them that the store has.
    pub migrated: usize,
    /// Servers by state.
    pub servers: BTreeMap<&'static str, u64>,
    /// Replacements by state.
    pub replacements: BTreeMap<&'static str, u64>,
    /// Replacements that a provisioner has in hand, by its name.
    pub leases: BTreeMap<String, u64>,
    /// Entries of the audit trail.
    pub events: u64,
}

/// A table and its columns with their declared types.
type Table = (String, Vec<(String, String)>);

impl Store {
    /// What is in it; of one without tables only that.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn status(&self) -> Result<StoreStatus, StoreError> {
        let (migrations, migrated) = self.migrations().await?;
        let mut status = StoreStatus {
            at: self.at.clone(),
            engine: self.engine.name(),
            migrations,
            migrated,
            servers: BTreeMap::new(),
            replacements: BTreeMap::new(),
            leases: BTreeMap::new(),
            events: 0,
        };
        if migrated < migrations {
            return Ok(status);
        }
        let servers = self.pool_by_state().await?.into_iter();
        status.servers = servers.map(|(state, n)| (state.as_str(), n)).collect();
        let replacements = self.replacements_by_state().await?.into_iter();
        status.replacements = replacements.map(|(state, n)| (state.as_str(), n)).collect();
        let mut tx = self.read().await?;
        let now = self.now(&mut tx).await?;
        let rows = sqlx::query(
            "SELECT host, count(*) AS n FROM replacement WHERE host IS NOT NULL AND lease_until > $1 \
             AND state IN ('pending', 'claiming', 'configuring', 'testing') GROUP BY host",
        )
        .bind(now)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("count its leases"))?;
        for row in rows {
            status.leases.insert(row.text("host")?, row.count("n")?);
        }
        status.events = sqlx::query("SELECT count(*) AS n FROM event")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("count its events"))?
            .count("n")?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(status)
    }

    /// Writes a SQLite store as it is at one moment into a new file, while a provisioner may go on with it.
    ///
    /// # Errors
    /// [`StoreError`]; then there is no such file.
    pub async fn backup(&self, file: &Path) -> Result<(), StoreError> {
        if self.engine != Engine::Sqlite {
            let at = self.at.clone();
            return Err(StoreError::NoFile { at });
        }
        let created = |source| StoreError::Create {
            path: file.to_owned(),
            source,
        };
        // It holds what the store holds: nobody else's business, whatever the umask.
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(file);
        made.map_err(created)?;
        let written = sqlx::query("VACUUM INTO $1")
            .bind(file.to_string_lossy().into_owned())
            .execute(&self.pool)
            .await
            .map_err(failed("write its backup"));
        let kept = match written {
            Ok(_) => sync(file).map_err(created),
            Err(e) => Err(e),
        };
        if kept.is_err() {
            // Half a backup is none.
            drop(std::fs::remove_file(file));
        }
        kept
    }

    /// Copies everything in this SQLite store into `to`, in one transaction; `to` has to be empty. The number of rows.
    ///
    /// # Errors
    /// [`StoreError`]; then `to` is as it was.
    pub async fn copy_to(&self, to: &Self) -> Result<u64, StoreError> {
        if self.engine != Engine::Sqlite {
            let at = self.at.clone();
            return Err(StoreError::NoFile { at });
        }
        let mut from = self.read().await?;
        let mut into = to.begin().await?;
        let tables = tables(&mut from).await?;
        for (table, _) in tables.iter().filter(|(table, _)| table != "meta") {
            let any = format!("SELECT count(*) AS n FROM {table}");
            let row = sqlx::query(AssertSqlSafe(any)).fetch_one(&mut *into).await;
            if row
                .map_err(failed("look whether it is empty"))?
                .count("n")?
                > 0
            {
                return Err(StoreError::NotEmpty {
                    at: to.at.clone(),
                    table: table.clone(),
                });
            }
        }
        let mut copied = 0;
        for table in &tables {
            copied += copy(&mut from, &mut into, table).await?;
        }
        // Whoever had work in hand has it in the other store.
        sqlx::query("UPDATE replacement SET owner = '', lease_until = 0 WHERE owner IS NOT NULL")
            .execute(&mut *into)
            .await
            .map_err(failed("free the leases of the copy"))?;
        into.commit().await.map_err(failed("commit the copy"))?;
        from.rollback().await.map_err(failed("end a reading"))?;
        Ok(copied)
    }
}

/// Of a backup and of its name in the folder.
fn sync(file: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(file)?.sync_all()?;
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// In the order of the schema, where a table comes after those that it refers to.
async fn tables(tx: &mut Tx) -> Result<Vec<Table>, StoreError> {
    let rows = sqlx::query(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' \
         AND name NOT LIKE '!_%' ESCAPE '!' ORDER BY rowid",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("list its tables"))?;
    let mut tables = Vec::with_capacity(rows.len());
    for row in rows {
        let name = row.text("name")?;
        let columns = sqlx::query("SELECT name, type FROM pragma_table_info($1) ORDER BY cid")
            .bind(name.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(failed("list its columns"))?
            .iter()
            .map(|row| Ok((row.text("name")?, row.text("type")?)))
            .collect::<Result<_, StoreError>>()?;
        tables.push((name, columns));
    }
    Ok(tables)
}

async fn copy(from: &mut Tx, into: &mut Tx, (table, columns): &Table) -> Result<u64, StoreError> {
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let marks: Vec<String> = (1..=names.len()).map(|n| format!("${n}")).collect();
    let (names, marks) = (names.join(", "), marks.join(", "));
    let select = format!("SELECT {names} FROM {table}");
    let mut insert = format!("INSERT INTO {table} ({names}) VALUES ({marks})");
    if table == "meta" {
        // The one table that a new store has rows in. Fences never fall.
        insert.push_str(
            " ON CONFLICT (name) DO UPDATE SET value = CASE WHEN excluded.name <> 'fence' \
             OR excluded.value > meta.value THEN excluded.value ELSE meta.value END",
        );
    }
    let rows = sqlx::query(AssertSqlSafe(select))
        .fetch_all(&mut **from)
        .await
        .map_err(failed("read a table"))?;
    for row in &rows {
        let mut query = sqlx::query(AssertSqlSafe(insert.clone()));
        for (n, (name, kind)) in columns.iter().enumerate() {
            // By the declared type: a NULL has one too.
            query = match kind.as_str() {
                "TEXT" => query.bind(value::<Option<String>>(row, n)?),
                "BIGINT" => query.bind(value::<Option<i64>>(row, n)?),
                "BYTEA" => query.bind(value::<Option<Vec<u8>>>(row, n)?),
                other => {
                    return Err(corrupt(
                        "type of a column",
                        format!("{table}.{name} {other}"),
                    ));
                }
            };
        }
        query
            .execute(&mut **into)
            .await
            .map_err(failed("copy a row"))?;
    }
    Ok(u64::try_from(rows.len()).unwrap_or(u64::MAX))
}

fn value<'r, T>(row: &'r AnyRow, column: usize) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Any> + sqlx::Type<sqlx::Any>,
{
    row.try_get(column).map_err(failed("read a column"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::EventFilter,
        provisioner::{
            store::{Asked, Place},
            testing::*,
        },
    };

    async fn filled(engine: Engine) -> (Home, Store) {
        let home = Home::new(engine).await;
        let store = home.open().await;
        store.apply(&inventory(), false, "test").await.unwrap();
        let lb1 = "lb1".parse().unwrap();
        store.register(&lb1, &registration("lb1")).await.unwrap();
        let asked = store.ask("k1", &request("lb1", "10.0.0.1")).await.unwrap();
        assert!(matches!(asked, Asked::Taken { new: true, .. }));
        (home, store)
    }

    async fn everything(store: &Store) -> String {
        let world = store.world().await.unwrap();
        let replacements = store.replacements().await.unwrap();
        let events = store.events(None, Some(0), &EventFilter::default()).await;
        format!("{world:#?}\n{replacements:#?}\n{:#?}", events.unwrap())
    }

    #[tokio::test]
    async fn a_file_is_copied_whole_into_an_empty_database_and_into_no_other() {
        let (_home, from) = filled(Engine::Sqlite).await;
        let run = from.begin_run("centre").await.unwrap();
        let lasts = std::time::Duration::from_secs(600);
        assert_eq!(from.lease(&run, lasts, 8).await.unwrap().len(), 1);
        let home = Home::new(Engine::Postgres).await;
        let to = home.open().await;
        assert!(from.copy_to(&to).await.unwrap() > 20);
        assert_eq!(everything(&to).await, everything(&from).await);
        let before = from.status().await.unwrap();
        let after = to.status().await.unwrap();
        assert_eq!(after.servers, before.servers);
        assert_eq!(after.events, before.events);
        // The work in hand is free there; a key that was used is known.
        assert!(to.look().await.unwrap().free);
        let again = to.ask("k1", &request("lb1", "10.0.0.1")).await.unwrap();
        assert!(
            matches!(again, Asked::Taken { new: false, .. }),
            "{again:?}"
        );
        let here = everything(&to).await;
        let e = from.copy_to(&to).await.unwrap_err();
        assert!(matches!(e, StoreError::NotEmpty { .. }), "{e}");
        assert_eq!(everything(&to).await, here);
        let e = to.copy_to(&from).await.unwrap_err();
        assert!(matches!(e, StoreError::NoFile { .. }), "{e}");
    }

    #[tokio::test]
    async fn a_backup_is_the_store_of_that_moment_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_home, store) = filled(Engine::Sqlite).await;
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("backup of it.db");
        let then = everything(&store).await;
        store.backup(&file).await.unwrap();
        store.ask("k2", &request("lb1", "10.0.0.2")).await.unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Never over something that is there.
        let e = store.backup(&file).await.unwrap_err();
        assert!(matches!(e, StoreError::Create { .. }), "{e}");
        let backup = Store::open_at(&Place::File(file)).await.unwrap();
        assert_eq!(everything(&backup).await, then);
    }
}
