//! Directors: what they registered, and which stand-ins they are to have in service.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Actor, Entry, News, Store, StoreError, Tx, audit, failed,
    journal::{self, Note, Work},
    now_ms,
    pool::{clean_after, tell},
    rows::{Columns, json},
    world::world,
};
use crate::{
    model::{
        DirectorName, EventKind, Grant, ReplacementId, WallMillis,
        wire::{
            Confirmation, Findings, Member, Members, Registration, ReplacementState, Spare,
            Standby, Want,
        },
    },
    provisioner::{
        granted::{self, NotGranted},
        plan::World,
        workflow::{Event, Retry},
    },
};

/// What a confirmation led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfirmOutcome {
    /// Written down.
    Noted,
    /// It was the last one missing: the replacement has succeeded.
    Succeeded,
    /// This director has no such stand-in.
    NoSuchMember,
}

fn word(want: Want) -> &'static str {
    match want {
        Want::Attach => "attach",
        Want::Withdraw => "withdraw",
    }
}

fn want_from(word: &str) -> Option<Want> {
    match word {
        "attach" => Some(Want::Attach),
        "withdraw" => Some(Want::Withdraw),
        _ => None,
    }
}

/// A warm spare, and what a director finds of it that it did not find before: why it does not pass; `None`: it does.
pub type Finding = (String, Option<String>);

/// A warm spare that does not pass a director's checks, as that director said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failing {
    pub(super) why: String,
    at: WallMillis,
}

impl Failing {
    /// What one says of itself is bounded.
    const LONGEST: usize = 200;

    /// A director says it again every minute. What one says that is gone since holds nobody back.
    const COUNTS: u64 = 5 * 60 * 1000;

    fn new(mut why: String, at: WallMillis) -> Self {
        why.truncate(why.floor_char_boundary(Self::LONGEST));
        let why = why.replace(char::is_control, " ");
        Self { why, at }
    }

    pub(super) fn counts(&self, now: WallMillis) -> bool {
        now.0.abs_diff(self.at.0) < Self::COUNTS
    }
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is kept: this is what the store holds then.
    Kept(Box<World>),
    /// It is not what this director may have.
    NotGranted(NotGranted),
}

impl Store {
    /// Keeps what a director finds of the warm spares that it watches; of others nothing is kept. What is new in it;
    /// `None` where it has not registered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find(
        &self,
        name: &DirectorName,
        told: Findings,
        actor: impl Into<Actor>,
    ) -> Result<Option<Vec<Finding>>, StoreError> {
        let (actor, now) = (actor.into(), now_ms());
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT findings FROM director WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("read a director's findings"))?;
        let Some(row) = row else {
            return Ok(None);
        };
        let before: BTreeMap<String, Failing> = row.json("findings")?;
        let rows = sqlx::query("SELECT name FROM server WHERE warm IS NOT NULL")
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("look for warm spares"))?;
        let warm = rows.iter().map(|row| row.text("name"));
        let warm: BTreeSet<String> = warm.collect::<Result<_, _>>()?;
        let mut kept = before.clone();
        kept.retain(|spare, failing| {
            warm.contains(spare) && failing.counts(now) && !told.passing.contains(spare)
        });
        let passing = told.passing.into_iter();
        let passing = passing.filter(|spare| before.contains_key(spare) && warm.contains(spare));
        let mut news: Vec<Finding> = passing.map(|spare| (spare, None)).collect();
        for (spare, why) in told.failing {
            if let Some(known) = kept.get_mut(&spare) {
                known.at = now;
            } else if warm.contains(&spare) {
                let failing = Failing::new(why, now);
                news.push((spare.clone(), Some(failing.why.clone())));
                kept.insert(spare, failing);
            }
        }
        if kept == before {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(Some(news));
        }
        sqlx::query("UPDATE director SET findings = $2 WHERE name = $1")
            .bind(name.as_str())
            .bind(json("findings", &kept)?)
            .execute(&mut *tx)
            .await
            .map_err(failed("keep a director's findings"))?;
        for (spare, why) in &news {
            let (what, why) = match why {
                Some(why) => ("standby_fails", why.as_str()),
                None => ("standby_passes", ""),
            };
            tell(&mut tx, &actor, spare, (EventKind::ServerNoted, what), why).await?;
        }
        let told = match news.is_empty() {
            true => News::None,
            false => News::Work,
        };
        self.commit(tx, told).await?;
        Ok(Some(news))
    }

    /// Keeps what a director told. Stand-ins that serve in a place which it has in a service become
    /// its members too: a pair's second director may come later. What is kept already is not written again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn register(
        &self,
        name: &DirectorName,
        registration: &Registration,
    ) -> Result<World, StoreError> {
        let actor = Actor::director(name, registration.address.to_string());
        let granted = |_: &World| Ok::<(), Infallible>(());
        match self
            .register_as(name, registration, &actor, granted)
            .await?
        {
            Ok(world) => Ok(*world),
            Err(never) => match never {},
        }
    }

    /// The same for a director of another host, which may have what its grant says: it is looked at in the transaction
    /// that keeps it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn register_granted(
        &self,
        grant: &Grant,
        registration: &Registration,
        from: String,
    ) -> Result<Registered, StoreError> {
        let actor = Actor::director(&grant.name, from);
        let granted = |world: &World| granted::registering(world, grant, registration);
        let kept = self.register_as(&grant.name, registration, &actor, granted);
        Ok(match kept.await? {
            Ok(world) => Registered::Kept(world),
            Err(why) => Registered::NotGranted(why),
        })
    }

    async fn register_as<E>(
        &self,
        name: &DirectorName,
        registration: &Registration,
        actor: &Actor,
        granted: impl Fn(&World) -> Result<(), E>,
    ) -> Result<Result<Box<World>, E>, StoreError> {
        // Most directors say again what they said before: nobody else has to wait for that.
        let mut tx = self.read().await?;
        let before = world(&mut tx).await?;
        let kept = before.directors.get(name) == Some(registration)
            && due(&mut tx, &before, name).await?.is_empty();
        tx.rollback().await.map_err(failed("end a reading"))?;
        if let Err(why) = granted(&before) {
            return Ok(Err(why));
        }
        if kept {
            return Ok(Ok(Box::new(before)));
        }
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO director (name, address, registration, version, registered_ms) \
             VALUES ($1, $2, $3, 1, $4) ON CONFLICT (name) DO UPDATE SET \
             address = excluded.address, registration = excluded.registration, \
             registered_ms = excluded.registered_ms",
        )
        .bind(name.as_str())
        .bind(registration.address.to_string())
        .bind(json("registration", registration)?)
        .bind(now_ms().0)
        .execute(&mut *tx)
        .await
        .map_err(failed("register a director"))?;
        let world = world(&mut tx).await?;
        // Others may have registered meanwhile.
        if let Err(why) = granted(&world) {
            tx.rollback().await.map_err(failed("undo a registration"))?;
            return Ok(Err(why));
        }
        let due = due(&mut tx, &world, name).await?;
        for id in &due.attach {
            want(&mut tx, name, id, Want::Attach).await?;
        }
        for id in &due.withdraw {
            want(&mut tx, name, id, Want::Withdraw).await?;
            succeed(&mut tx, name, id).await?;
        }
        let detail = format!("{} services", registration.services.len());
        let entry = Entry {
            director: Some(name),
            ..Entry::new(EventKind::DirectorRegistered, "registered", &detail)
        };
        audit(&mut tx, actor, entry).await?;
        self.commit(tx, News::Work).await?;
        Ok(Ok(Box::new(world)))
    }

    /// The stand-ins of a director; none where it never registered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn members(&self, name: &DirectorName) -> Result<Option<Members>, StoreError> {
        let mut tx = self.read().await?;
        let members = members(&mut tx, name).await?;
        tx.rollback().await.map_err(failed("end a reading"))?;
        Ok(members)
    }

    /// Takes in that a director has a stand-in in service or out of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn confirm(
        &self,
        name: &DirectorName,
        id: &ReplacementId,
        confirmation: Confirmation,
    ) -> Result<ConfirmOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let found = sqlx::query(
            "SELECT confirmed FROM attachment WHERE director = $1 AND replacement = $2",
        )
        .bind(name.as_str())
        .bind(id.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("read a member"))?;
        let Some(row) = found else {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(ConfirmOutcome::NoSuchMember);
        };
        if row.text_opt("confirmed")?.as_deref() != Some(word(confirmation.is)) {
            sqlx::query(
                "UPDATE attachment SET confirmed = $3 WHERE director = $1 AND replacement = $2",
            )
            .bind(name.as_str())
            .bind(id.as_str())
            .bind(word(confirmation.is))
            .execute(&mut *tx)
            .await
            .map_err(failed("note a confirmation"))?;
            moved(&mut tx, name).await?;
            let what = format!("confirmed_{}", word(confirmation.is));
            let entry = Entry {
                director: Some(name),
                replacement: Some(id),
                ..Entry::new(EventKind::StandInConfirmed, &what, "")
            };
            audit(&mut tx, &name.as_str().into(), entry).await?;
        }
        let succeeded = succeed(&mut tx, name, id).await?;
        self.commit(tx, if succeeded { News::Work } else { News::State })
            .await?;
        Ok(if succeeded {
            ConfirmOutcome::Succeeded
        } else {
            ConfirmOutcome::Noted
        })
    }
}

impl Store {
    /// Takes a stand-in back that a director no longer wants: the place has its first server again, or is gone.
    /// Where no other director has it, its replacement ends, and it waits for somebody to clean it. `false`: the
    /// director has no such stand-in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn give_back(
        &self,
        name: &DirectorName,
        id: &ReplacementId,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let held =
            sqlx::query("SELECT want FROM attachment WHERE director = $1 AND replacement = $2")
                .bind(name.as_str())
                .bind(id.as_str())
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed("read a member"))?;
        let Some(row) = held else {
            tx.rollback().await.map_err(failed("end a reading"))?;
            return Ok(false);
        };
        if row.word("want", want_from)? == Want::Attach {
            want(&mut tx, name, id, Want::Withdraw).await?;
            let entry = Entry {
                director: Some(name),
                replacement: Some(id),
                ..Entry::new(EventKind::StandInGivenBack, "given_back", "")
            };
            audit(&mut tx, &name.as_str().into(), entry).await?;
        }
        let others = sqlx::query(
            "SELECT count(*) AS n FROM attachment WHERE replacement = $1 AND want = 'attach'",
        )
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("count who has a stand-in"))?
        .count("n")?;
        if others == 0 {
            end(&mut tx, name, id).await?;
        }
        self.commit(tx, News::Work).await?;
        Ok(true)
    }
}

/// What a director's registration changes about its stand-ins.
#[derive(Debug, Default)]
struct Due {
    attach: Vec<ReplacementId>,
    withdraw: Vec<ReplacementId>,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.attach.is_empty() && self.withdraw.is_empty()
    }
}

async fn due(tx: &mut Tx, world: &World, name: &DirectorName) -> Result<Due, StoreError> {
    let mut due = Due::default();
    let standing = sqlx::query(
        "SELECT id, origins FROM replacement r WHERE kind = 'replace' AND state IN ('attaching', 'succeeded') \
         AND NOT EXISTS (SELECT 1 FROM attachment a WHERE a.replacement = r.id \
         AND a.director = $1 AND a.want = 'attach')",
    )
    .bind(name.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("list the stand-ins"))?;
    for row in standing {
        let origins: Vec<IpAddr> = row.json("origins")?;
        if world.directors_with(&origins).any(|d| d == name) {
            due.attach.push(row.parsed("id")?);
        }
    }
    // A director that has given a place up confirms no stand-in in it.
    let awaited = sqlx::query(
        "SELECT a.replacement, r.origins FROM attachment a \
         JOIN replacement r ON r.id = a.replacement WHERE a.director = $1 \
         AND a.want = 'attach' AND (a.confirmed IS NULL OR a.confirmed <> 'attach')",
    )
    .bind(name.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("list what a director was to attach"))?;
    for row in awaited {
        let origins: Vec<IpAddr> = row.json("origins")?;
        if !world.directors_with(&origins).any(|d| d == name) {
            due.withdraw.push(row.parsed("replacement")?);
        }
    }
    Ok(due)
}

/// Ends the replacement of a stand-in that nobody wants: the role goes back to whom the files gave it.
async fn end(tx: &mut Tx, name: &DirectorName, id: &ReplacementId) -> Result<(), StoreError> {
    let reason = format!("given back by {name}: clean it, then understudy inventory release it");
    retire(tx, name, id, &reason).await?;
    let role = journal::load(tx, id).await?.role;
    for server in servers_of(tx, id).await? {
        clean_after(tx, &server, role.as_deref()).await?;
    }
    let mut next = Some(id.clone());
    while let Some(of) = next {
        sqlx::query(
            "UPDATE server SET state = 'serving', reason = NULL WHERE state = 'failed' AND name IN \
             (SELECT server FROM role_assignment WHERE passed_on = $1 AND source = 'files')",
        )
        .bind(of.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("give a place back"))?;
        sqlx::query(
            "UPDATE role_assignment SET passed_on = NULL WHERE passed_on = $1 AND source = 'files'",
        )
        .bind(of.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("give a role back"))?;
        next = supersedes(journal::load(tx, &of).await?);
    }
    Ok(())
}

/// Ends a replacement that every director has attached, and the one whose spare it replaces.
async fn succeed(tx: &mut Tx, name: &DirectorName, id: &ReplacementId) -> Result<bool, StoreError> {
    let work = journal::load(tx, id).await?;
    if work.journal.state != ReplacementState::Attaching {
        return Ok(false);
    }
    let missing = sqlx::query(
        "SELECT count(*) AS n FROM attachment WHERE replacement = $1 AND want = 'attach' \
         AND (confirmed IS NULL OR confirmed <> 'attach')",
    )
    .bind(id.as_str())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed("count confirmations"))?
    .count("n")?;
    if missing > 0 {
        return Ok(false);
    }
    let (note, retry) = (Note::default(), Retry::STANDARD);
    journal::apply(
        tx,
        id,
        &name.as_str().into(),
        &Event::Attached,
        note,
        &retry,
    )
    .await?;
    // All that came before: a stand-in that failed before it was confirmed has ended nothing.
    let mut next = supersedes(work);
    while let Some(earlier) = next {
        let before = journal::load(tx, &earlier).await?;
        if before.journal.state == ReplacementState::Superseded {
            break;
        }
        supersede(tx, name, &earlier, id).await?;
        next = supersedes(before);
    }
    Ok(true)
}

async fn supersede(
    tx: &mut Tx,
    name: &DirectorName,
    earlier: &ReplacementId,
    by: &ReplacementId,
) -> Result<(), StoreError> {
    let reason = format!("another took its place ({by})");
    retire(tx, name, earlier, &reason).await?;
    sqlx::query("UPDATE replacement SET superseded_by = $2 WHERE id = $1")
        .bind(earlier.as_str())
        .bind(by.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("mark the earlier replacement"))?;
    for director in directors_of(tx, earlier).await? {
        want(tx, &director, earlier, Want::Withdraw).await?;
    }
    Ok(())
}

/// Ends a replacement whose stand-in serves no longer, and puts that one down as failed.
async fn retire(
    tx: &mut Tx,
    name: &DirectorName,
    id: &ReplacementId,
    reason: &str,
) -> Result<(), StoreError> {
    let (note, retry) = (Note::default(), Retry::STANDARD);
    let state = journal::load(tx, id).await?.journal.state;
    if matches!(
        state,
        ReplacementState::Attaching | ReplacementState::Succeeded
    ) {
        journal::apply(
            tx,
            id,
            &name.as_str().into(),
            &Event::Superseded,
            note,
            &retry,
        )
        .await?;
    }
    // Also one whose confirmation came late.
    sqlx::query(
        "UPDATE server SET state = 'failed', reason = $2 \
         WHERE replacement = $1 AND state IN ('testing', 'serving')",
    )
    .bind(id.as_str())
    .bind(reason)
    .execute(&mut **tx)
    .await
    .map_err(failed("mark the failed server"))?;
    Ok(())
}

/// The replacement whose spare this one replaces.
fn supersedes(work: Work) -> Option<ReplacementId> {
    work.place.and_then(|place| place.supersedes)
}

/// The servers that a replacement had in service.
async fn servers_of(tx: &mut Tx, id: &ReplacementId) -> Result<Vec<String>, StoreError> {
    sqlx::query("SELECT name FROM server WHERE replacement = $1 AND state = 'failed'")
        .bind(id.as_str())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("look whose stand-in it was"))?
        .iter()
        .map(|row| row.text("name"))
        .collect()
}

/// Directors that have, or are to have, the stand-in of a replacement.
pub(super) async fn directors_of(
    tx: &mut Tx,
    id: &ReplacementId,
) -> Result<Vec<DirectorName>, StoreError> {
    sqlx::query("SELECT director FROM attachment WHERE replacement = $1 ORDER BY director")
        .bind(id.as_str())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("list the directors of a stand-in"))?
        .iter()
        .map(|row| row.parsed("director"))
        .collect()
}

/// Says what is wanted of a director for a stand-in.
pub(super) async fn want(
    tx: &mut Tx,
    director: &DirectorName,
    id: &ReplacementId,
    want: Want,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO attachment (director, replacement, want, confirmed) VALUES ($1, $2, $3, NULL) \
         ON CONFLICT (director, replacement) DO UPDATE SET want = excluded.want",
    )
    .bind(director.as_str())
    .bind(id.as_str())
    .bind(word(want))
    .execute(&mut **tx)
    .await
    .map_err(failed("want a member"))?;
    moved(tx, director).await
}

/// A director's stand-ins have changed.
async fn moved(tx: &mut Tx, director: &DirectorName) -> Result<(), StoreError> {
    sqlx::query("UPDATE director SET version = version + 1 WHERE name = $1")
        .bind(director.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("count a change of members"))?;
    Ok(())
}

/// The warm spares that a director is to watch.
async fn standbys(tx: &mut Tx, name: &DirectorName) -> Result<Vec<Standby>, StoreError> {
    // Most pools have none, and polls are many.
    let kept = sqlx::query("SELECT count(*) AS n FROM server WHERE warm IS NOT NULL")
        .fetch_one(&mut **tx)
        .await
        .map_err(failed("look for warm spares"))?
        .count("n")?;
    match kept {
        0 => Ok(Vec::new()),
        _ => Ok(world(tx).await?.standbys(name)),
    }
}

/// What is kept warm depends on roles, registrations and servers: it is counted by what it is. Whoever polls looks for
/// another version, not for a higher one.
fn versioned(version: u64, standbys: &[Standby]) -> Result<u64, StoreError> {
    if standbys.is_empty() {
        return Ok(version);
    }
    let digest = Sha256::digest(json("warm spares", &standbys)?);
    let part: [u8; 8] = std::array::from_fn(|n| digest.get(n).copied().unwrap_or_default());
    // JavaScript and JSON know whole numbers up to 2^53.
    Ok(version ^ (u64::from_be_bytes(part) >> 11))
}

async fn members(tx: &mut Tx, name: &DirectorName) -> Result<Option<Members>, StoreError> {
    let Some(row) = sqlx::query("SELECT version FROM director WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("read a director"))?
    else {
        return Ok(None);
    };
    let mut members = Members {
        version: row.count("version")?,
        members: Vec::new(),
        standbys: standbys(tx, name).await?,
    };
    members.version = versioned(members.version, &members.standbys)?;
    let rows = sqlx::query(
        "SELECT m.replacement, m.want, m.confirmed, r.origins, \
         (SELECT a.server FROM attempt a WHERE a.replacement = r.id \
          AND a.state IN ('open', 'serving', 'superseded')) AS spare \
         FROM attachment m JOIN replacement r ON r.id = m.replacement \
         WHERE m.director = $1 AND (m.want = 'attach' OR m.confirmed IS NULL \
         OR m.confirmed <> 'withdraw') ORDER BY m.replacement",
    )
    .bind(name.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("list the members"))?;
    for row in rows {
        let spare = row.text("spare")?;
        let confirmed = row.text_opt("confirmed")?;
        members.members.push(Member {
            replacement: row.parsed("replacement")?,
            origins: row.json("origins")?,
            spare: spare_of(tx, spare).await?,
            want: row.word("want", want_from)?,
            confirmed: confirmed.as_deref().and_then(want_from),
        });
    }
    Ok(Some(members))
}

/// A server as it is offered.
pub(super) async fn spare_of(tx: &mut Tx, name: String) -> Result<Spare, StoreError> {
    let addresses =
        sqlx::query("SELECT address FROM server_address WHERE server = $1 ORDER BY ord")
            .bind(name.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(failed("read a spare's addresses"))?
            .iter()
            .map(|row| row.parsed("address"))
            .collect::<Result<_, _>>()?;
    Ok(Spare { name, addresses })
}
