//! How far the installation of a spare's operating system has come, written down for its holder alone:
//! this is the fence of whatever a driver asks of a machine.

use super::{
    News, Store, StoreError, Tx, failed,
    pool::tell,
    rows::{Columns, json, stored},
};
use crate::{
    model::EventKind,
    provisioner::driver::{Held, Ledger},
};

/// Who notes it.
const ENGINE: &str = "engine";

/// The server is in the hands of the replacement that has this fence. A server that serves, is
/// offered, free or put aside is in nobody's: no driver touches it.
const HELD: &str = "SELECT r.cancel FROM server s JOIN replacement r ON r.id = s.replacement \
     WHERE s.name = $1 AND r.fence = $2 AND s.state IN ('claimed', 'configuring') \
     AND r.state IN ('claiming', 'configuring')";

impl Ledger for Store {
    async fn installation(
        &self,
        server: &str,
        fence: u64,
    ) -> Result<(Held, Option<String>), StoreError> {
        let mut tx = self.read().await?;
        let found = held(&mut tx, server, fence).await?;
        let row = sqlx::query("SELECT installation FROM server WHERE name = $1")
            .bind(server)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("read an installation"))?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        let noted = row.map(|r| r.text_opt("installation")).transpose()?;
        Ok((found, noted.flatten()))
    }

    async fn note_installation(
        &self,
        server: &str,
        fence: u64,
        note: &str,
    ) -> Result<Held, StoreError> {
        let mut tx = self.begin().await?;
        let found = held(&mut tx, server, fence).await?;
        if found == Held::No {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(found);
        }
        sqlx::query("UPDATE server SET installation = $2 WHERE name = $1")
            .bind(server)
            .bind(note)
            .execute(&mut *tx)
            .await
            .map_err(failed("note an installation"))?;
        let noted = (EventKind::ServerNoted, "installation");
        tell(&mut tx, &ENGINE.into(), server, noted, note).await?;
        self.commit(tx, News::State).await?;
        Ok(found)
    }

    async fn learn_host_keys(
        &self,
        server: &str,
        fence: u64,
        keys: &[String],
    ) -> Result<Held, StoreError> {
        let mut tx = self.begin().await?;
        let found = held(&mut tx, server, fence).await?;
        if found == Held::No {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(found);
        }
        sqlx::query("UPDATE server SET learnt_keys = $2 WHERE name = $1")
            .bind(server)
            .bind(json("host keys", &keys)?)
            .execute(&mut *tx)
            .await
            .map_err(failed("pin host keys"))?;
        let what = if keys.is_empty() {
            "keys_forgotten"
        } else {
            "keys_learnt"
        };
        let noted = (EventKind::ServerNoted, what);
        tell(&mut tx, &ENGINE.into(), server, noted, &keys.join(" ")).await?;
        self.commit(tx, News::State).await?;
        Ok(found)
    }
}

async fn held(tx: &mut Tx, server: &str, fence: u64) -> Result<Held, StoreError> {
    let row = sqlx::query(HELD)
        .bind(server)
        .bind(stored(fence))
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("look who holds a server"))?;
    Ok(match row {
        None => Held::No,
        Some(row) if row.number("cancel")? != 0 => Held::Cancelled,
        Some(_) => Held::Yes,
    })
}
