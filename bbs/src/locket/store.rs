//! Locket's own database file: who held what, for the Locket that starts next. Without it, a restart would let another
//! contender take a lock before its holder has renewed it.
//!
//! Renewals are not written: after a restart every holder gets its full time again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bbs_models::{LockKind, Resource};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Executor, Row};

use super::table::Held;

/// A predecessor that is about to end may hold the file for so long.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS locks (
    path TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    value TEXT NOT NULL,
    type TEXT NOT NULL,
    ttl INTEGER NOT NULL
) WITHOUT ROWID";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {act} the lock database {path}: {source}")]
    Failed { act: &'static str, path: PathBuf, source: sqlx::Error },
    #[error("cannot keep locks in {at}: {why}")]
    Server { at: String, why: String },
    #[error("cannot make the directory of the lock database {path}")]
    Folder { path: PathBuf, source: std::io::Error },
}

/// The file and the one connection to it, or neither: then a restart forgets who held what.
pub enum LockStore {
    Memory,
    File { path: PathBuf, connection: Box<SqliteConnection> },
}

impl LockStore {
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| StoreError::Folder { path: path.into(), source })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .locking_mode(SqliteLockingMode::Exclusive)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(LOCK_PATIENCE)
            .disable_statement_logging();
        let failed = |act| move |source| StoreError::Failed { act, path: path.into(), source };
        let mut connection = options.connect().await.map_err(failed("open"))?;
        connection.execute(SCHEMA).await.map_err(failed("make the table of"))?;
        Ok(Self::File { path: path.into(), connection: Box::new(connection) })
    }

    /// Rows of a kind that we do not know are left alone.
    pub async fn load(&mut self) -> Result<Vec<Held>, StoreError> {
        let Self::File { path, connection } = self else { return Ok(Vec::new()) };
        let failed = |source| StoreError::Failed { act: "read", path: path.clone(), source };
        let rows =
            connection.fetch_all("SELECT path, owner, value, type, ttl FROM locks").await.map_err(failed)?;
        let held: Result<Vec<Option<Held>>, sqlx::Error> = rows.iter().map(read_row).collect();
        Ok(held.map_err(failed)?.into_iter().flatten().collect())
    }

    pub async fn put(&mut self, resource: &Resource, ttl: Duration) -> Result<(), StoreError> {
        let Self::File { path, connection } = self else { return Ok(()) };
        sqlx::query(
            "INSERT INTO locks (path, owner, value, type, ttl) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (path) DO UPDATE SET
                owner = excluded.owner, value = excluded.value, type = excluded.type, ttl = excluded.ttl",
        )
        .bind(&resource.key)
        .bind(&resource.owner)
        .bind(&resource.value)
        .bind(resource.kind.name())
        .bind(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX))
        .execute(&mut **connection)
        .await
        .map_err(|source| StoreError::Failed { act: "write", path: path.clone(), source })?;
        Ok(())
    }

    pub async fn drop_key(&mut self, key: &str) -> Result<(), StoreError> {
        let Self::File { path, connection } = self else { return Ok(()) };
        sqlx::query("DELETE FROM locks WHERE path = ?")
            .bind(key)
            .execute(&mut **connection)
            .await
            .map_err(|source| StoreError::Failed { act: "write", path: path.clone(), source })?;
        Ok(())
    }

    pub async fn close(self) -> Result<(), StoreError> {
        let Self::File { path, connection } = self else { return Ok(()) };
        connection.close().await.map_err(|source| StoreError::Failed { act: "close", path, source })
    }
}

fn read_row(row: &sqlx::sqlite::SqliteRow) -> Result<Option<Held>, sqlx::Error> {
    let kind: String = row.try_get("type")?;
    let Some(kind) = LockKind::from_name(&kind) else { return Ok(None) };
    let ttl: i64 = row.try_get("ttl")?;
    Ok(Some(Held {
        resource: Resource {
            key: row.try_get("path")?,
            owner: row.try_get("owner")?,
            value: row.try_get("value")?,
            kind,
        },
        ttl: Duration::from_secs(u64::try_from(ttl).unwrap_or(0)),
    }))
}
