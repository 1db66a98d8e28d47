//! The audit trail: who did what to what, from where and why; and the same as events, for those who follow. Nothing
//! here changes or removes an entry, and triggers of the store refuse it to everybody else.

use std::{borrow::Cow, net::IpAddr};

use super::{
    Store, StoreError, Tx, failed, now_ms,
    rows::{Columns, stored},
};
use crate::model::{
    DirectorName, Event, EventFilter, EventKind, EventPage, EventServer, ReplacementId, Role,
    WallMillis,
};

/// So many are in one answer.
const A_PAGE: i64 = 200;

/// So many of the past are shown to somebody who does not say where to begin.
const RECENT: u64 = 1_000;

/// Rows read at once while a filter lets none of them through.
const AT_ONCE: i64 = 1_000;

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// A user, a director, a provisioner's engine.
    pub who: String,
    /// The address it spoke from, or the socket.
    pub from: Option<String>,
}

impl From<&str> for Actor {
    fn from(who: &str) -> Self {
        Self {
            who: who.to_owned(),
            from: None,
        }
    }
}

impl From<String> for Actor {
    fn from(who: String) -> Self {
        Self { who, from: None }
    }
}

impl Actor {
    /// The provisioner on `host`, of its own accord.
    pub(super) fn engine(host: &str) -> Self {
        Self {
            who: "engine".to_owned(),
            from: Some(host.to_owned()),
        }
    }

    /// A director, which speaks from an address, or shows a certificate.
    pub(in crate::provisioner) fn director(name: &DirectorName, from: String) -> Self {
        Self {
            who: name.as_str().to_owned(),
            from: Some(from),
        }
    }
}

/// One thing that happened.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) kind: EventKind,
    /// What exactly, in a word that later versions keep.
    pub(super) what: &'a str,
    pub(super) director: Option<&'a DirectorName>,
    pub(super) replacement: Option<&'a ReplacementId>,
    pub(super) server: Option<IpAddr>,
    /// For people: to what, why.
    pub(super) detail: &'a str,
}

impl<'a> Entry<'a> {
    pub(super) const fn new(kind: EventKind, what: &'a str, detail: &'a str) -> Self {
        Self {
            kind,
            what,
            director: None,
            replacement: None,
            server: None,
            detail,
        }
    }
}

/// Appends to the audit trail. Writers take turns, so that numbers have no gaps and come in the order of the commits:
/// who has read up to one has missed none.
pub(super) async fn audit(tx: &mut Tx, actor: &Actor, entry: Entry<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO event (number, at_ms, kind, actor, origin, director, replacement, server, reason, detail) \
         SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8, $9 FROM event",
    )
    .bind(now_ms().0)
    .bind(entry.kind.label())
    .bind(actor.who.as_str())
    .bind(actor.from.clone())
    .bind(entry.director.map(DirectorName::as_str))
    .bind(entry.replacement.map(ReplacementId::as_str))
    .bind(entry.server.map(|address| address.to_string()))
    .bind(entry.what)
    .bind(entry.detail)
    .execute(&mut **tx)
    .await
    .map_err(failed("write to the audit trail"))?;
    Ok(())
}

impl Store {
    /// The events after number `after` of the store that was made at `run`, as many as a page has. Without either, or of
    /// another store, the last ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn events(
        &self,
        run: Option<u64>,
        after: Option<u64>,
        filter: &EventFilter,
    ) -> Result<EventPage, StoreError> {
        let mut tx = self.read().await?;
        let born = sqlx::query("SELECT value FROM meta WHERE name = 'born'")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("read when it was made"))?
            .count("value")?;
        let newest = sqlx::query("SELECT COALESCE(MAX(number), 0) AS newest FROM event")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("read its newest event"))?
            .count("newest")?;
        let known = after.filter(|after| *after <= newest && run.is_none_or(|run| run == born));
        let mut page = EventPage {
            run: born,
            next: known.unwrap_or_else(|| newest.saturating_sub(RECENT)),
            missed: 0,
            events: Vec::new(),
        };
        while page.next < newest && page.events.is_empty() {
            let rows = sqlx::query(
                "SELECT number, at_ms, kind, actor, origin, director, replacement, server, reason, detail \
                 FROM event WHERE number > $1 ORDER BY number LIMIT $2",
            )
            .bind(stored(page.next))
            .bind(AT_ONCE)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("read the audit trail"))?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                let event = event(born, row)?;
                page.next = event.number;
                if filter.takes(&event) {
                    page.events.push(event);
                }
                if i64::try_from(page.events.len()).is_ok_and(|n| n >= A_PAGE) {
                    break;
                }
            }
        }
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(page)
    }
}

fn event(born: u64, row: &sqlx::any::AnyRow) -> Result<Event, StoreError> {
    let kind: EventKind = row.parsed("kind")?;
    let (what, detail) = (row.text("reason")?, row.text("detail")?);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    Ok(Event {
        run: born,
        number: row.count("number")?,
        at: WallMillis(row.number("at_ms")?),
        severity: kind.severity(),
        kind,
        role: Role::Provisioner,
        director: row.parsed_opt("director")?,
        service: None,
        server: row.parsed_opt::<IpAddr>("server")?.map(EventServer::from),
        replacement: row.text_opt("replacement")?,
        text: if detail.is_empty() {
            what.replace('_', " ")
        } else {
            format!("{}: {detail}", what.replace('_', " "))
        }
        .chars()
        .map(plain)
        .collect(),
        reason: Some(Cow::Owned(what)),
        actor: Some(row.text("actor")?),
        origin: row.text_opt("origin")?,
    })
}
