//! Locks in a database of PostgreSQL or MySQL: its rows are the truth, so that several Lockets may serve at once.
//!
//! Every call is one or two statements, each of which decides by itself: a row changes only where its owner is who asks.
//! A renewal raises the row's index. Every Locket looks at all rows once a second, and drops, by index, one that has not
//! changed for its time to live: so a key expires even if the Locket that heard of it last is gone, at most a second late.
//! The table is that of the original Locket. One that is gone is not made anew while this runs, for who held what is gone
//! with it: that is for the Locket that starts next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bbs_models::{CellPresence, LockKind, Resource};
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::table::{Refusal, TTL_MAX, Table};
use super::{Change, Command, StoreError, Witness, now};
use crate::store::{Dialect, Location, mysql, postgres};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Whoever did not look for longer did not answer renewals either: every key gets its full time again.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// As the original's for one operation.
const STATEMENT_PATIENCE: Duration = Duration::from_secs(10);
/// A database that let nobody in is not asked for so long: who waits is refused at once.
const AWAY: Duration = Duration::from_millis(500);

const TABLE: &str = "CREATE TABLE IF NOT EXISTS locks (
    path           VARCHAR(255) PRIMARY KEY,
    owner          VARCHAR(255),
    value          TEXT,
    type           VARCHAR(255) DEFAULT '',
    modified_index BIGINT       DEFAULT 0,
    modified_id    VARCHAR(255) DEFAULT '',
    ttl            BIGINT       DEFAULT 0
){table}";
const RENEW: &str =
    "UPDATE locks SET owner = ?, value = ?, type = ?, ttl = ?, modified_index = modified_index + 1
     WHERE path = ? AND owner IN (?, '')";
const TAKE: &str = "INSERT INTO locks (path, owner, value, type, ttl, modified_id, modified_index)
     VALUES (?, ?, ?, ?, ?, ?, 1)";
const RELEASE: &str = "DELETE FROM locks WHERE path = ? AND owner = ?";
const EXPIRE: &str =
    "DELETE FROM locks WHERE path = ? AND owner = ? AND modified_id = ? AND modified_index = ?";
const ALL: &str =
    "SELECT path, owner, value, type, modified_index, modified_id, ttl FROM locks WHERE owner <> ''";
const ONE: &str = "SELECT path, owner, value, type, modified_index, modified_id, ttl FROM locks
     WHERE path = ? AND owner <> ''";

enum Link {
    Postgres(PgConnection),
    Mysql(MySqlConnection),
}

enum Value<'a> {
    Text(&'a str),
    Number(i64),
}

use Value::{Number, Text};

/// A row as it is now.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    resource: Resource,
    index: i64,
    id: String,
    ttl: Duration,
}

/// Rows of a kind that we do not know are left alone.
macro_rules! found {
    ($row:expr) => {{
        let row = $row;
        let kind: Option<String> = row.try_get(3)?;
        let (ttl, text): (i64, Option<String>) = (row.try_get(6)?, row.try_get(2)?);
        LockKind::from_name(&kind.unwrap_or_default())
            .map(|kind| {
                let (key, owner, value) = (row.try_get(0)?, row.try_get(1)?, text.unwrap_or_default());
                Ok(Found {
                    resource: Resource { key, owner, value, kind },
                    index: row.try_get(4)?,
                    id: row.try_get(5)?,
                    ttl: Duration::from_secs(u64::try_from(ttl).unwrap_or(0)).min(TTL_MAX),
                })
            })
            .transpose()
    }};
}

macro_rules! bound {
    ($query:expr, $values:expr) => {
        $values.iter().fold($query, |query, value| match value {
            Text(text) => query.bind(text.to_string()),
            Number(number) => query.bind(*number),
        })
    };
}

impl Link {
    async fn connect(location: &Location) -> Result<Link, sqlx::Error> {
        match location {
            Location::Postgres(server) => Ok(Link::Postgres(postgres::options(server)?.connect().await?)),
            Location::Mysql(server) => {
                let mut connection = mysql::options(server)?.connect().await?;
                connection.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES'").await?;
                Ok(Link::Mysql(connection))
            }
            Location::Sqlite(_) => Err(sqlx::Error::Configuration("a file is not shared".into())),
        }
    }

    async fn execute(&mut self, statement: &str, values: &[Value<'_>]) -> Result<u64, sqlx::Error> {
        Ok(match self {
            Link::Postgres(connection) => {
                let query = bound!(sqlx::query(AssertSqlSafe(numbered(statement))), values);
                query.execute(connection).await?.rows_affected()
            }
            Link::Mysql(connection) => {
                let query = bound!(sqlx::query(AssertSqlSafe(statement.to_string())), values);
                query.execute(connection).await?.rows_affected()
            }
        })
    }

    async fn find(&mut self, statement: &str, values: &[Value<'_>]) -> Result<Vec<Found>, sqlx::Error> {
        let found: Result<Vec<Option<Found>>, sqlx::Error> = match self {
            Link::Postgres(connection) => {
                let query = bound!(sqlx::query(AssertSqlSafe(numbered(statement))), values);
                query.fetch_all(connection).await?.iter().map(|row: &PgRow| found!(row)).collect()
            }
            Link::Mysql(connection) => {
                let query = bound!(sqlx::query(AssertSqlSafe(statement.to_string())), values);
                query.fetch_all(connection).await?.iter().map(|row: &MySqlRow| found!(row)).collect()
            }
        };
        Ok(found?.into_iter().flatten().collect())
    }

    async fn close(self) -> Result<(), sqlx::Error> {
        match self {
            Link::Postgres(connection) => connection.close().await,
            Link::Mysql(connection) => connection.close().await,
        }
    }
}

/// There is no such table, says PostgreSQL, or MySQL.
fn is_gone(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("42P01" | "42S02"))
}

/// `?` as PostgreSQL has them: `$1`, `$2`.
fn numbered(statement: &str) -> String {
    let mut parts = statement.split('?');
    let first = parts.next().unwrap_or_default().to_string();
    (1..).zip(parts).fold(first, |text, (number, part)| format!("{text}${number}{part}"))
}

/// What was seen of a key, and since when it is unchanged.
struct Seen {
    found: Found,
    since: Instant,
}

pub struct Shared {
    location: Location,
    link: Option<Link>,
    away_until: Instant,
    seen: HashMap<String, Seen>,
    looked_at: Instant,
    /// While nobody could renew, nothing expires.
    was_away: bool,
    is_gone: bool,
    witness: Arc<dyn Witness>,
    pub queue: mpsc::Receiver<Command>,
    pub changes: broadcast::Sender<Change>,
    pub cells: watch::Sender<Vec<CellPresence>>,
}

impl Shared {
    pub async fn open(
        location: Location,
        queue: mpsc::Receiver<Command>,
        changes: broadcast::Sender<Change>,
        cells: watch::Sender<Vec<CellPresence>>,
        witness: Arc<dyn Witness>,
    ) -> Result<Shared, StoreError> {
        let (link, seen, was_away, is_gone) = (None, HashMap::new(), false, false);
        let (away_until, looked_at) = (now(), now());
        let mut shared = Shared {
            location,
            link,
            away_until,
            seen,
            looked_at,
            was_away,
            is_gone,
            witness,
            queue,
            changes,
            cells,
        };
        let at = shared.location.to_string();
        let failed = |why: String| StoreError::Server { at: at.clone(), why };
        let dialect = match shared.location {
            Location::Mysql(_) => Dialect::Mysql,
            _ => Dialect::Postgres,
        };
        let table = dialect.say(TABLE);
        // Two that make it at once may hinder one another; the second time it is there.
        if shared.execute(&table, &[]).await.is_err() {
            shared.away_until = now();
            shared.execute(&table, &[]).await.map_err(failed)?;
        }
        shared.look().await.map_err(failed)?;
        Ok(shared)
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_gone {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = looks.tick() => self.look_or_say().await,
                command = self.queue.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => break,
                },
            }
        }
        if let Some(link) = self.link.take() {
            // Nothing is under way.
            let _ = timeout(LOOK_EVERY, link.close()).await;
        }
    }

    async fn look_or_say(&mut self) {
        if let Err(error) = self.look().await
            && !std::mem::replace(&mut self.was_away, true)
        {
            tracing::error!(error, "failed-to-read-locks");
        }
    }

    /// A caller that has gone away meanwhile is not told; what it asked for holds all the same.
    async fn carry_out(&mut self, command: Command) {
        match command {
            Command::Lock { resource, ttl, uuid, granted } => {
                let _ = granted.send(self.lock(resource, ttl, uuid).await);
            }
            Command::Release { key, owner, released } => {
                let _ = released.send(self.release(&key, &owner).await);
            }
            Command::Fetch { key, found } => {
                let _ = found.send(self.fetch(&key).await);
            }
            Command::FetchAll { kind, found } => {
                let all = self.find(ALL, &[]).await.map_err(Refusal::Store);
                let of_kind = |all: Vec<Found>| {
                    let mut all: Vec<Resource> =
                        all.into_iter().map(|found| found.resource).filter(|one| one.kind == kind).collect();
                    all.sort_by(|a, b| a.key.cmp(&b.key));
                    all
                };
                let _ = found.send(all.map(of_kind));
            }
        }
    }

    async fn lock(&mut self, resource: Resource, ttl: Duration, uuid: Option<String>) -> Result<(), Refusal> {
        // Nothing is held in an empty table: what is left is whether the request is one.
        Table::default().check_lock(&resource, ttl)?;
        let Resource { key, owner, value, kind } = &resource;
        let seconds = Number(i64::try_from(ttl.min(TTL_MAX).as_secs()).unwrap_or(i64::MAX));
        let renew = [Text(owner), Text(value), Text(kind.name()), seconds, Text(key), Text(owner)];
        if self.execute(RENEW, &renew).await.map_err(Refusal::Store)? > 0 {
            return Ok(());
        }
        let (id, [_, _, _, seconds, ..]) = (diego_base::names::guid(), renew);
        let take = [Text(key), Text(owner), Text(value), Text(kind.name()), seconds, Text(&id)];
        if self.execute(TAKE, &take).await.map_err(Refusal::Store)? == 0 {
            return Err(Refusal::Collision);
        }
        tracing::info!(key, owner, "request-uuid" = uuid, "acquired-lock");
        Ok(())
    }

    async fn release(&mut self, key: &str, owner: &str) -> Result<(), Refusal> {
        if self.execute(RELEASE, &[Text(key), Text(owner)]).await.map_err(Refusal::Store)? > 0 {
            tracing::info!(key, owner, "released-lock");
            return Ok(());
        }
        match self.fetch(key).await {
            Ok(_) => Err(Refusal::Collision),
            Err(Refusal::NotFound) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    async fn fetch(&mut self, key: &str) -> Result<Resource, Refusal> {
        let found = self.find(ONE, &[Text(key)]).await.map_err(Refusal::Store)?;
        found.into_iter().next().map(|found| found.resource).ok_or(Refusal::NotFound)
    }

    /// Sees what became of all keys, and drops those that nobody renewed.
    async fn look(&mut self) -> Result<(), String> {
        let rows = self.find(ALL, &[]).await?;
        let now = now();
        let pause = now.duration_since(std::mem::replace(&mut self.looked_at, now));
        if std::mem::take(&mut self.was_away) || pause > PAUSE_MAX {
            self.seen.values_mut().for_each(|seen| seen.since = now);
        }
        let before = std::mem::take(&mut self.seen);
        let mut expired = Vec::new();
        for found in rows {
            let since = match before.get(&found.resource.key) {
                Some(seen) if (&seen.found.id, seen.found.index) == (&found.id, found.index) => seen.since,
                _ => now,
            };
            if now.duration_since(since) >= found.ttl {
                expired.push(found.clone());
            }
            self.seen.insert(found.resource.key.clone(), Seen { found, since });
        }
        for found in expired {
            self.expire(found).await?;
        }
        self.tell(before);
        for kind in [LockKind::Lock, LockKind::Presence] {
            let of_kind = self.seen.values().filter(|seen| seen.found.resource.kind == kind);
            self.witness.holds(kind, of_kind.count());
        }
        Ok(())
    }

    async fn expire(&mut self, found: Found) -> Result<(), String> {
        let Resource { key, owner, .. } = &found.resource;
        let exactly = [Text(key), Text(owner), Text(&found.id), Number(found.index)];
        if self.execute(EXPIRE, &exactly).await? > 0 {
            tracing::info!(key, owner, "lock-expired");
            self.witness.expired(found.resource.kind);
        }
        // Otherwise another Locket was faster, or its holder was; the next look tells.
        self.seen.remove(key);
        Ok(())
    }

    fn tell(&self, before: HashMap<String, Seen>) {
        let mut changes = Vec::new();
        for (key, Seen { found, .. }) in &self.seen {
            match before.get(key).map(|seen| &seen.found.resource) {
                Some(resource) if *resource == found.resource => {}
                Some(resource) if resource.owner == found.resource.owner => {
                    changes.push(Change::Changed(found.resource.clone()));
                }
                _ => changes.push(Change::Acquired(found.resource.clone())),
            }
        }
        let gone = before.into_iter().filter(|(key, _)| !self.seen.contains_key(key));
        changes.extend(gone.map(|(_, seen)| Change::Released(seen.found.resource)));
        if changes.is_empty() {
            return;
        }
        let mut cells: Vec<&Resource> = self
            .seen
            .values()
            .map(|seen| &seen.found.resource)
            .filter(|one| one.kind == LockKind::Presence)
            .collect();
        cells.sort_by(|a, b| a.key.cmp(&b.key));
        self.cells.send_replace(cells.into_iter().filter_map(CellPresence::of_resource).collect());
        // No subscriber is no error.
        changes.into_iter().for_each(|change| drop(self.changes.send(change)));
    }

    /// How many rows it was; none if the row is there already.
    async fn execute(&mut self, statement: &str, values: &[Value<'_>]) -> Result<u64, String> {
        let (mut link, begun) = (self.link().await?, Instant::now());
        match timeout(STATEMENT_PATIENCE, link.execute(statement, values)).await {
            Ok(Err(error)) if error.as_database_error().is_some_and(|error| error.is_unique_violation()) => {
                self.settle(link, begun, Ok(Ok(0)))
            }
            done => self.settle(link, begun, done),
        }
    }

    async fn find(&mut self, statement: &str, values: &[Value<'_>]) -> Result<Vec<Found>, String> {
        let (mut link, begun) = (self.link().await?, Instant::now());
        let done = timeout(STATEMENT_PATIENCE, link.find(statement, values)).await;
        self.settle(link, begun, done)
    }

    /// A connection is used again only after an answer that was no error.
    fn settle<T>(
        &mut self,
        link: Link,
        begun: Instant,
        done: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, String> {
        self.witness.asked_database(begun.elapsed(), matches!(done, Ok(Ok(_))));
        match done {
            Ok(Ok(value)) => {
                self.link = Some(link);
                Ok(value)
            }
            Ok(Err(error)) => {
                if is_gone(&error) {
                    tracing::error!(%error, "unrecoverable-error");
                    self.is_gone = true;
                }
                Err(format!("{}: {error}", self.location))
            }
            Err(_) => Err(format!("{} does not answer", self.location)),
        }
    }

    async fn link(&mut self) -> Result<Link, String> {
        if let Some(link) = self.link.take() {
            return Ok(link);
        }
        if now() < self.away_until {
            return Err(format!("{} is away", self.location));
        }
        let connected = timeout(CONNECT_PATIENCE, Link::connect(&self.location)).await;
        let failed = match connected {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) => format!("cannot connect to {}: {error}", self.location),
            Err(_) => format!("cannot connect to {}: no answer", self.location),
        };
        self.away_until = now() + AWAY;
        Err(failed)
    }
}
