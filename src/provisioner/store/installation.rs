//! How far the installation of a spare's operating system has come, written down for its holder alone:
//! this is the fence of whatever a driver asks of a machine.

use super::{
    News, Store, StoreError, Tx, failed, now_ms,
    pool::tell,
    rows::{Columns, json, stored},
};
use crate::{
    model::{EventKind, WallMillis},
    provisioner::driver::{Held, Ledger, Noting},
};

/// Who notes it.
const ENGINE: &str = "engine";

/// What the reason of a quarantine says until an installation is put away.
const LEFT: &str =
    "; a boot override or image may be left: it stays quarantined until that is put away";

/// The server is in the hands of the replacement, or of the cleaning, that has this fence. A server that
/// serves, is offered, free or put aside is in nobody's: no driver touches it.
const HELD: &str = "SELECT r.cancel FROM server s JOIN replacement r ON r.id = s.replacement \
     WHERE s.name = $1 AND r.fence = $2 AND s.state IN ('claimed', 'configuring', 'cleaning') \
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
        noting: Noting<'_>,
    ) -> Result<Held, StoreError> {
        let mut tx = self.begin().await?;
        let found = match held(&mut tx, server, fence).await? {
            Held::Yes if noting.ahead && !may_be_wiped(&mut tx, server).await? => Held::Spared,
            found => found,
        };
        if matches!(found, Held::No | Held::Spared) {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(found);
        }
        sqlx::query(
            "UPDATE server SET installation = $2, \
             learnt_keys = CASE WHEN $3 = 1 THEN '[]' ELSE learnt_keys END WHERE name = $1",
        )
        .bind(server)
        .bind(noting.text)
        .bind(i64::from(noting.forgets))
        .execute(&mut *tx)
        .await
        .map_err(failed("note an installation"))?;
        let noted = (EventKind::ServerNoted, "installation");
        tell(&mut tx, &ENGINE.into(), server, noted, noting.text).await?;
        if noting.forgets {
            let noted = (EventKind::ServerNoted, "keys_forgotten");
            tell(&mut tx, &ENGINE.into(), server, noted, "").await?;
        }
        self.commit(tx, News::State).await?;
        Ok(found)
    }

    async fn close_installation(&self, server: &str, fence: u64) -> Result<Held, StoreError> {
        let mut tx = self.begin().await?;
        let found = held(&mut tx, server, fence).await?;
        if found == Held::No {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(found);
        }
        close(&mut tx, server).await?;
        let noted = (EventKind::ServerNoted, "installation_put_away");
        tell(&mut tx, &ENGINE.into(), server, noted, "").await?;
        self.commit(tx, News::State).await?;
        Ok(found)
    }

    async fn note_trouble(
        &self,
        server: &str,
        fence: u64,
        trouble: &str,
    ) -> Result<Held, StoreError> {
        let change = "UPDATE server SET trouble = $2 WHERE name = $1";
        let noted = ("trouble", trouble);
        self.note_of_server((server, fence), change, trouble, noted)
            .await
    }

    async fn left_behind(&self, server: &str) -> Result<Option<String>, StoreError> {
        let mut tx = self.read().await?;
        let row = sqlx::query(
            "SELECT installation FROM server WHERE name = $1 AND state = 'quarantined' \
             AND replacement IS NULL",
        )
        .bind(server)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("read an installation"))?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        let noted = row.map(|r| r.text_opt("installation")).transpose()?;
        Ok(noted.flatten())
    }

    async fn tidied(&self, server: &str, note: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let closed = sqlx::query(
            "UPDATE server SET installation = NULL, reason = replace(reason, $3, '') \
             WHERE name = $1 AND installation = $2 AND state = 'quarantined' \
             AND replacement IS NULL",
        )
        .bind(server)
        .bind(note)
        .bind(LEFT)
        .execute(&mut *tx)
        .await
        .map_err(failed("close an installation"))?;
        if closed.rows_affected() == 0 {
            return tx.rollback().await.map_err(failed("end a reading"));
        }
        let noted = (EventKind::ServerNoted, "installation_put_away");
        tell(&mut tx, &ENGINE.into(), server, noted, "").await?;
        self.commit(tx, News::Work).await
    }

    async fn learn_host_keys(
        &self,
        server: &str,
        fence: u64,
        keys: &[String],
    ) -> Result<Held, StoreError> {
        let change = "UPDATE server SET learnt_keys = $2 WHERE name = $1";
        let (value, said) = (json("host keys", &keys)?, keys.join(" "));
        self.note_of_server((server, fence), change, &value, ("keys_learnt", &said))
            .await
    }
}

impl Store {
    /// Writes `value` down of a server by `change`, for whoever holds it, and what is told of it.
    async fn note_of_server(
        &self,
        (server, fence): (&str, u64),
        change: &'static str,
        value: &str,
        (reason, detail): (&'static str, &str),
    ) -> Result<Held, StoreError> {
        let mut tx = self.begin().await?;
        let found = held(&mut tx, server, fence).await?;
        if found == Held::No {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(found);
        }
        sqlx::query(change)
            .bind(server)
            .bind(value)
            .execute(&mut *tx)
            .await
            .map_err(failed("note something of a server"))?;
        let noted = (EventKind::ServerNoted, reason);
        tell(&mut tx, &ENGINE.into(), server, noted, detail).await?;
        self.commit(tx, News::State).await?;
        Ok(found)
    }

    /// Takes the tidying of quarantined servers upon oneself of which an installation may have left something, and which
    /// nobody has tried since `before`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_tidying(&self, before: WallMillis) -> Result<Vec<String>, StoreError> {
        let mut tx = self.begin().await?;
        // A server that is put aside is not rehearsed: the column says when it was tried.
        let rows = sqlx::query(
            "UPDATE server SET rehearsed_ms = $1 WHERE state = 'quarantined' AND replacement IS NULL \
             AND installation IS NOT NULL AND (rehearsed_ms IS NULL OR rehearsed_ms <= $2) \
             RETURNING name",
        )
        .bind(now_ms().0)
        .bind(before.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("look what is to be put away"))?;
        match rows.is_empty() {
            true => tx.rollback().await.map_err(failed("end a reading"))?,
            false => self.commit(tx, News::None).await?,
        }
        rows.iter().map(|row| row.text("name")).collect()
    }
}

/// Says of a server that is put aside that its installation may have left something; nothing where none was begun.
pub(super) async fn left(tx: &mut Tx, server: &str) -> Result<&'static str, StoreError> {
    let row = sqlx::query("SELECT name FROM server WHERE name = $1 AND installation IS NOT NULL")
        .bind(server)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("read an installation"))?;
    Ok(row.map_or("", |_open| LEFT))
}

/// Nothing is left of an installation.
pub(super) async fn close(tx: &mut Tx, server: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE server SET installation = NULL WHERE name = $1")
        .bind(server)
        .execute(&mut **tx)
        .await
        .map_err(failed("close an installation"))?;
    Ok(())
}

async fn may_be_wiped(tx: &mut Tx, server: &str) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT wipe FROM server WHERE name = $1")
        .bind(server)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed("look whether a server may be wiped"))?;
    Ok(row.number("wipe")? != 0)
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
