//! Locket's own database file: who held what, for the Locket that starts next. Without it, a restart would let another
//! contender take a lock before its holder has renewed it.
//!
//! Renewals are not written: after a restart every holder gets its full time again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bbs_models::{LockKind, Resource};
use rusqlite::{Connection, Row, params};

use super::Witness;
use super::table::Held;
use crate::store::embedded::{Gone, Synchronous, Worker};

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
    Failed { act: &'static str, path: PathBuf, source: rusqlite::Error },
    #[error("the lock database {path} was given up")]
    Gone { path: PathBuf },
    #[error("cannot keep locks in {at}: {why}")]
    Server { at: String, why: String },
    #[error("cannot make the directory of the lock database {path}")]
    Folder { path: PathBuf, source: std::io::Error },
}

/// The file and the one connection to it, or neither: then a restart forgets who held what.
pub enum LockStore {
    Memory,
    File { path: PathBuf, worker: Worker, witness: Arc<dyn Witness> },
}

impl LockStore {
    pub async fn open(path: &Path, witness: Arc<dyn Witness>) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| StoreError::Folder { path: path.into(), source })?;
        }
        let worker = Worker::open(path, Synchronous::Normal, LOCK_PATIENCE).await;
        let worker =
            worker.map_err(|source| StoreError::Failed { act: "open", path: path.into(), source })?;
        let store = Self::File { path: path.into(), worker, witness };
        store.run("make the table of", |connection| connection.execute_batch(SCHEMA)).await?;
        Ok(store)
    }

    /// What `work` does with the connection, if there is one; `act` is for errors.
    async fn run<T: Default + Send + 'static>(
        &self,
        act: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Self::File { path, worker, witness } = self else { return Ok(T::default()) };
        let begun = Instant::now();
        let done = worker.run(work).await;
        witness.asked_database(begun.elapsed(), matches!(done, Ok(Ok(_))));
        let done = done.map_err(|Gone| StoreError::Gone { path: path.clone() })?;
        done.map_err(|source| StoreError::Failed { act, path: path.clone(), source })
    }

    /// Rows of a kind that we do not know are left alone.
    pub async fn load(&mut self) -> Result<Vec<Held>, StoreError> {
        let rows = |connection: &mut Connection| {
            let mut rows = connection.prepare("SELECT path, owner, value, type, ttl FROM locks")?;
            let held = rows.query_map([], read_row)?.collect::<Result<Vec<Option<Held>>, _>>()?;
            Ok(held.into_iter().flatten().collect())
        };
        self.run("read", rows).await
    }

    pub async fn put(&mut self, resource: &Resource, ttl: Duration) -> Result<(), StoreError> {
        let (Resource { key, owner, value, kind }, ttl) = (resource.clone(), ttl.as_secs());
        let put = move |connection: &mut Connection| {
            let mut statement = connection.prepare_cached(
                "INSERT INTO locks (path, owner, value, type, ttl) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (path) DO UPDATE SET owner = excluded.owner, value = excluded.value,
                    type = excluded.type, ttl = excluded.ttl",
            )?;
            let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
            statement.execute(params![key, owner, value, kind.name(), ttl]).map(drop)
        };
        self.run("write", put).await
    }

    pub async fn drop_key(&mut self, key: &str) -> Result<(), StoreError> {
        let key = key.to_string();
        let statement = "DELETE FROM locks WHERE path = ?";
        self.run("write", move |connection| connection.execute(statement, [key]).map(drop)).await
    }

    pub async fn close(self) -> Result<(), StoreError> {
        let Self::File { path, worker, .. } = self else { return Ok(()) };
        worker.close().await.map_err(|source| StoreError::Failed { act: "close", path, source })
    }
}

fn read_row(row: &Row<'_>) -> Result<Option<Held>, rusqlite::Error> {
    let kind: String = row.get("type")?;
    let Some(kind) = LockKind::from_name(&kind) else { return Ok(None) };
    let ttl: i64 = row.get("ttl")?;
    Ok(Some(Held {
        resource: Resource {
            key: row.get("path")?,
            owner: row.get("owner")?,
            value: row.get("value")?,
            kind,
        },
        ttl: Duration::from_secs(u64::try_from(ttl).unwrap_or(0)),
    }))
}
