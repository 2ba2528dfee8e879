//! The embedded database: one SQLite file, one connection, held exclusively for the life of the process.
//!
//! The exclusive lock is what keeps a second BBS off the file. Write-ahead logging makes a commit one append.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

use super::schema::Dialect;
use super::{Contents, Durability, Error, Location, Record, Rows, Write, schema};

/// Primary result codes of SQLite; the low byte of an extended one.
const BUSY: i32 = 5;
const READONLY: i32 = 8;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;

/// A predecessor that is about to end may hold the lock for so long.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(50);

pub struct File {
    path: PathBuf,
    connection: SqliteConnection,
}

impl File {
    /// Opens or makes the file, takes its lock, proves that it is whole, and brings its schema up to date.
    pub async fn open(path: &Path, durability: Durability) -> Result<File, Error> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|source| Error::Unwritable {
                at: at(path),
                reason: format!("cannot make its directory: {source}"),
            })?;
        }
        let deadline = Instant::now() + LOCK_PATIENCE;
        let mut store = loop {
            match File::locked(path, durability).await {
                Err(Error::Locked { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_RETRY).await;
                }
                opened => break opened?,
            }
        };
        store.check().await?;
        store.migrate().await?;
        Ok(store)
    }

    async fn locked(path: &Path, durability: Durability) -> Result<File, Error> {
        let connection =
            options(path, durability).connect().await.map_err(|error| explain("open", path, error))?;
        let mut store = File { path: path.into(), connection };
        store.take_lock().await?;
        Ok(store)
    }

    /// In exclusive mode the first write transaction takes the file's lock, and nothing gives it back but the end.
    async fn take_lock(&mut self) -> Result<(), Error> {
        self.connection
            .execute("BEGIN EXCLUSIVE; COMMIT")
            .await
            .map_err(|error| explain("lock", &self.path, error))?;
        Ok(())
    }

    async fn check(&mut self) -> Result<(), Error> {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| explain("check", &self.path, error))?;
        if verdict == "ok" { Ok(()) } else { Err(Error::Corrupt { at: at(&self.path), reason: verdict }) }
    }

    async fn migrate(&mut self) -> Result<(), Error> {
        let path = self.path.clone();
        self.upgrade().await.map_err(|error| explain("bring the schema up to date of", &path, error))?;
        let found = self.version().await.map_err(|error| explain("read", &path, error))?;
        if found > schema::VERSION {
            return Err(Error::NewerSchema { at: at(&path), found, known: schema::VERSION });
        }
        Ok(())
    }

    async fn version(&mut self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM schema_version")
            .fetch_one(&mut self.connection)
            .await
    }

    /// Each step in a transaction with its number, so that a killed upgrade goes on where it was.
    async fn upgrade(&mut self) -> Result<(), sqlx::Error> {
        self.connection.execute(AssertSqlSafe(Dialect::Sqlite.version_table())).await?;
        let done = self.version().await?;
        for (number, step) in (1..).zip(Dialect::Sqlite.steps()).skip_while(|(number, _)| *number <= done) {
            let mut transaction = self.connection.begin().await?;
            for statement in step {
                transaction.execute(AssertSqlSafe(statement)).await?;
            }
            sqlx::query("INSERT INTO schema_version (version) VALUES (?)")
                .bind(number)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    pub async fn load(&mut self) -> Result<Contents, Error> {
        let path = self.path.clone();
        self.read().await.map_err(|error| explain("read", &path, error))
    }

    async fn read(&mut self) -> Result<Contents, sqlx::Error> {
        Ok(Contents {
            desired_lrps: self.records("SELECT process_guid, record FROM desired_lrps").await?,
            actual_lrps: self
                .records("SELECT process_guid || '/' || instance_index || '/' || presence, record FROM actual_lrps")
                .await?,
            tasks: self.records("SELECT guid, record FROM tasks").await?,
            domains: sqlx::query_as("SELECT domain, expire_time FROM domains")
                .fetch_all(&mut self.connection)
                .await?,
        })
    }

    async fn records(&mut self, statement: &'static str) -> Result<Vec<Record>, sqlx::Error> {
        let rows = sqlx::query(statement).fetch_all(&mut self.connection).await?;
        rows.into_iter().map(|row| Ok(Record::new(row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// All of `writes` or none of them. After [`Error::Lost`] nothing more can be written.
    pub async fn commit(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        let Err(error) = self.transaction(writes).await else { return Ok(()) };
        // An I/O error may have ended the transaction already; then there is nothing to roll back.
        let rolled_back = self.connection.execute("ROLLBACK").await;
        if rolled_back.is_err() && self.connection.ping().await.is_err() {
            return Err(Error::Lost { at: at(&self.path) });
        }
        Err(explain("write", &self.path, error))
    }

    async fn transaction(&mut self, writes: Vec<Write>) -> Result<(), sqlx::Error> {
        self.connection.execute("BEGIN IMMEDIATE").await?;
        for write in writes {
            write_row(&mut self.connection, write).await?;
        }
        self.connection.execute("COMMIT").await?;
        Ok(())
    }

    #[cfg(test)]
    pub async fn execute(&mut self, statement: &'static str) {
        self.connection.execute(statement).await.expect("a statement");
    }

    /// Folds the write-ahead log into the file and gives the lock back.
    pub async fn close(self) -> Result<(), Error> {
        let path = self.path;
        self.connection.close().await.map_err(|error| explain("close", &path, error))
    }
}

#[async_trait]
impl Rows for File {
    fn at(&self) -> String {
        at(&self.path)
    }

    async fn load(&mut self) -> Result<Contents, Error> {
        File::load(self).await
    }

    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        File::commit(self, writes).await
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        File::close(*self).await
    }
}

fn options(path: &Path, durability: Durability) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .locking_mode(SqliteLockingMode::Exclusive)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match durability {
            Durability::PowerLoss => SqliteSynchronous::Full,
            Durability::ProcessKill => SqliteSynchronous::Normal,
        })
        .busy_timeout(Duration::ZERO)
        .disable_statement_logging()
}

async fn write_row(connection: &mut SqliteConnection, write: Write) -> Result<(), sqlx::Error> {
    let query = match write {
        Write::PutDesiredLrp { process_guid, domain, record } => sqlx::query(
            "INSERT INTO desired_lrps (process_guid, domain, record) VALUES (?, ?, ?)
             ON CONFLICT (process_guid) DO UPDATE SET domain = excluded.domain, record = excluded.record",
        )
        .bind(process_guid)
        .bind(domain)
        .bind(record),
        Write::DropDesiredLrp { process_guid } => {
            sqlx::query("DELETE FROM desired_lrps WHERE process_guid = ?").bind(process_guid)
        }
        Write::PutActualLrp { key, domain, state, cell_id, record } => sqlx::query(
            "INSERT INTO actual_lrps
                (process_guid, instance_index, presence, domain, state, cell_id, record)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (process_guid, instance_index, presence) DO UPDATE SET
                domain = excluded.domain, state = excluded.state, cell_id = excluded.cell_id,
                record = excluded.record",
        )
        .bind(key.process_guid)
        .bind(key.index)
        .bind(key.presence)
        .bind(domain)
        .bind(state)
        .bind(cell_id)
        .bind(record),
        Write::DropActualLrp { key } => sqlx::query(
            "DELETE FROM actual_lrps WHERE process_guid = ? AND instance_index = ? AND presence = ?",
        )
        .bind(key.process_guid)
        .bind(key.index)
        .bind(key.presence),
        Write::PutTask { guid, domain, state, cell_id, record } => sqlx::query(
            "INSERT INTO tasks (guid, domain, state, cell_id, record) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (guid) DO UPDATE SET
                domain = excluded.domain, state = excluded.state, cell_id = excluded.cell_id,
                record = excluded.record",
        )
        .bind(guid)
        .bind(domain)
        .bind(state)
        .bind(cell_id)
        .bind(record),
        Write::DropTask { guid } => sqlx::query("DELETE FROM tasks WHERE guid = ?").bind(guid),
        Write::PutDomain { domain, expires_at_ns } => sqlx::query(
            "INSERT INTO domains (domain, expire_time) VALUES (?, ?)
             ON CONFLICT (domain) DO UPDATE SET expire_time = excluded.expire_time",
        )
        .bind(domain)
        .bind(expires_at_ns),
        Write::DropDomain { domain } => sqlx::query("DELETE FROM domains WHERE domain = ?").bind(domain),
    };
    query.execute(connection).await.map(drop)
}

/// SQLite's code, said in words that name the file.
fn explain(act: &'static str, path: &Path, error: sqlx::Error) -> Error {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<i32>().ok())
        .map(|code| code & 0xff);
    let at = at(path);
    match code {
        Some(BUSY) => Error::Locked { at },
        Some(CORRUPT | NOTADB) => Error::Corrupt { at, reason: message(&error) },
        Some(READONLY | CANTOPEN | FULL) => Error::Unwritable { at, reason: message(&error) },
        _ => Error::Failed { act, at, source: Box::new(error) },
    }
}

fn at(path: &Path) -> String {
    Location::from(path).to_string()
}

fn message(error: &sqlx::Error) -> String {
    error.as_database_error().map(|error| error.message().to_string()).unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("bbs-store-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }

        fn file(&self) -> PathBuf {
            self.0.join("diego.db")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    async fn refusal(path: &Path) -> String {
        File::open(path, Durability::PowerLoss).await.err().expect("refused").to_string()
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_a_reopen() {
        let folder = Folder::new("reopen");
        let mut store = File::open(&folder.file(), Durability::PowerLoss).await.unwrap();
        let task = |record: &[u8]| Write::PutTask {
            guid: "t".into(),
            domain: "d".into(),
            state: "Pending",
            cell_id: String::new(),
            record: record.into(),
        };
        store.commit(vec![task(b"one"), task(b"two")]).await.unwrap();
        store.commit(vec![Write::PutDomain { domain: "d".into(), expires_at_ns: 7 }]).await.unwrap();
        drop(store);
        let mut store = File::open(&folder.file(), Durability::PowerLoss).await.unwrap();
        let contents = store.load().await.unwrap();
        assert_eq!(contents.tasks, [Record::new("t".to_string(), b"two".to_vec())]);
        assert_eq!(contents.domains, [("d".to_string(), 7)]);
        store.commit(vec![Write::DropTask { guid: "t".into() }]).await.unwrap();
        assert!(store.load().await.unwrap().tasks.is_empty());
    }

    #[tokio::test]
    async fn a_file_in_use_is_refused_by_name() {
        let folder = Folder::new("locked");
        let _first = File::open(&folder.file(), Durability::PowerLoss).await.unwrap();
        let message = refusal(&folder.file()).await;
        assert_eq!(
            message,
            format!("the database file {} is in use by another process", folder.file().display())
        );
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused_by_name() {
        let folder = Folder::new("corrupt");
        std::fs::write(folder.file(), "this is a shopping list, not a database".repeat(100)).unwrap();
        let message = refusal(&folder.file()).await;
        assert!(message.starts_with(&format!("the database file {} is corrupt", folder.file().display())));
    }

    #[tokio::test]
    async fn a_file_with_a_damaged_page_is_refused() {
        let folder = Folder::new("damaged");
        let mut store = File::open(&folder.file(), Durability::PowerLoss).await.unwrap();
        let writes = (0..200).map(|number| Write::DropDomain { domain: number.to_string() }).collect();
        store.commit(writes).await.unwrap();
        store.close().await.unwrap();
        let mut bytes = std::fs::read(folder.file()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0xa5);
        std::fs::write(folder.file(), bytes).unwrap();
        assert!(refusal(&folder.file()).await.contains("is corrupt"));
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_is_named() {
        let folder = Folder::new("unwritable");
        std::fs::write(folder.0.join("file"), "").unwrap();
        let path = folder.0.join("file").join("diego.db");
        let message = refusal(&path).await;
        assert!(
            message.starts_with(&format!("cannot write the database file {}", path.display())),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let folder = Folder::new("newer");
        let mut store = File::open(&folder.file(), Durability::PowerLoss).await.unwrap();
        store.execute("INSERT INTO schema_version (version) VALUES (99)").await;
        store.close().await.unwrap();
        assert!(refusal(&folder.file()).await.contains("has schema version 99, newer than version 2"));
    }

    #[tokio::test]
    async fn a_refused_commit_leaves_nothing_and_the_next_one_works() {
        let folder = Folder::new("rollback");
        let mut store = File::open(&folder.file(), Durability::PowerLoss).await.unwrap();
        store
            .connection
            .execute("CREATE TRIGGER no BEFORE INSERT ON tasks BEGIN SELECT RAISE(ABORT, 'no'); END")
            .await
            .unwrap();
        let task = Write::PutTask {
            guid: "t".into(),
            domain: "d".into(),
            state: "Pending",
            cell_id: String::new(),
            record: vec![],
        };
        let domain = |name: &str| Write::PutDomain { domain: name.into(), expires_at_ns: 1 };
        assert!(store.commit(vec![domain("a"), task]).await.is_err());
        store.commit(vec![domain("b")]).await.unwrap();
        assert_eq!(store.load().await.unwrap().domains, [("b".to_string(), 1)]);
    }
}
