//! The embedded database: one SQLite file, held for the life of the process, so that no second BBS writes there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{CachedStatement, Connection, params};

use super::embedded::{Gone, Synchronous, Worker};
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

pub struct File {
    path: PathBuf,
    worker: Worker,
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
        let synchronous = match durability {
            Durability::PowerLoss => Synchronous::Full,
            Durability::ProcessKill => Synchronous::Normal,
        };
        let worker = Worker::open(path, synchronous, LOCK_PATIENCE).await;
        let file = File { path: path.into(), worker: worker.map_err(|error| explain("open", path, error))? };
        file.prove_whole().await?;
        file.migrate().await?;
        Ok(file)
    }

    /// What `work` does with the connection; `act` is for errors.
    async fn run<T: Send + 'static>(
        &self,
        act: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.worker.run(work).await.map_err(|Gone| Error::Lost { at: at(&self.path) })?;
        done.map_err(|error| explain(act, &self.path, error))
    }

    async fn prove_whole(&self) -> Result<(), Error> {
        let check = |connection: &mut Connection| {
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
        };
        let verdict = self.run("check", check).await?;
        if verdict == "ok" { Ok(()) } else { Err(Error::Corrupt { at: at(&self.path), reason: verdict }) }
    }

    async fn migrate(&self) -> Result<(), Error> {
        self.run("bring the schema up to date of", upgrade).await?;
        let found = self.run("read", |connection| version(connection)).await?;
        if found > schema::VERSION {
            return Err(Error::NewerSchema { at: at(&self.path), found, known: schema::VERSION });
        }
        Ok(())
    }

    pub async fn load(&mut self) -> Result<Contents, Error> {
        self.run("read", |connection| read(connection)).await
    }

    /// All of `writes` or none of them. After [`Error::Lost`] nothing more can be written.
    pub async fn commit(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        let lost = || Error::Lost { at: at(&self.path) };
        let done = self.worker.run(|connection| {
            let Err(error) = transaction(connection, writes) else { return Ok(()) };
            // An I/O error may have ended the transaction already; then there is nothing to roll back.
            let ended = connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok();
            Err((error, ended))
        });
        match done.await.map_err(|Gone| lost())? {
            Ok(()) => Ok(()),
            Err((error, true)) => Err(explain("write", &self.path, error)),
            Err((_, false)) => Err(lost()),
        }
    }

    #[cfg(test)]
    pub async fn execute(&mut self, statement: &'static str) {
        let executed = self.run("change", |connection| connection.execute_batch(statement)).await;
        executed.expect("a statement");
    }

    /// Folds the write-ahead log into the file and gives the lock back.
    pub async fn close(self) -> Result<(), Error> {
        let path = self.path;
        self.worker.close().await.map_err(|error| explain("close", &path, error))
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

fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.query_row("SELECT COALESCE(MAX(version), 0) FROM schema_version", [], |row| row.get(0))
}

/// Each step in a transaction with its number, so that a killed upgrade goes on where it was.
fn upgrade(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(&Dialect::Sqlite.version_table())?;
    let done = version(connection)?;
    for (number, step) in (1..).zip(Dialect::Sqlite.steps()).skip_while(|(number, _)| *number <= done) {
        let transaction = connection.transaction()?;
        for statement in step {
            transaction.execute_batch(&statement)?;
        }
        transaction.execute("INSERT INTO schema_version (version) VALUES (?)", [number])?;
        transaction.commit()?;
    }
    Ok(())
}

fn read(connection: &Connection) -> Result<Contents, rusqlite::Error> {
    let records = |statement| {
        let mut statement = connection.prepare(statement)?;
        let rows = statement.query_map([], |row| Ok(Record::new(row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<Vec<Record>, rusqlite::Error>>()
    };
    let mut domains = connection.prepare("SELECT domain, expire_time FROM domains")?;
    Ok(Contents {
        desired_lrps: records("SELECT process_guid, record FROM desired_lrps")?,
        actual_lrps: records(
            "SELECT process_guid || '/' || instance_index || '/' || presence, record FROM actual_lrps",
        )?,
        tasks: records("SELECT guid, record FROM tasks")?,
        domains: domains.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?,
    })
}

fn transaction(connection: &Connection, writes: Vec<Write>) -> Result<(), rusqlite::Error> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    for write in writes {
        write_row(connection, write)?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

const PUT_DESIRED_LRP: &str = "INSERT INTO desired_lrps (process_guid, domain, record) VALUES (?, ?, ?)
     ON CONFLICT (process_guid) DO UPDATE SET domain = excluded.domain, record = excluded.record";
const DROP_DESIRED_LRP: &str = "DELETE FROM desired_lrps WHERE process_guid = ?";
const PUT_ACTUAL_LRP: &str = "INSERT INTO actual_lrps
        (process_guid, instance_index, presence, domain, state, cell_id, record)
     VALUES (?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (process_guid, instance_index, presence) DO UPDATE SET
        domain = excluded.domain, state = excluded.state, cell_id = excluded.cell_id,
        record = excluded.record";
const DROP_ACTUAL_LRP: &str =
    "DELETE FROM actual_lrps WHERE process_guid = ? AND instance_index = ? AND presence = ?";
const PUT_TASK: &str = "INSERT INTO tasks (guid, domain, state, cell_id, record) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT (guid) DO UPDATE SET
        domain = excluded.domain, state = excluded.state, cell_id = excluded.cell_id,
        record = excluded.record";
const DROP_TASK: &str = "DELETE FROM tasks WHERE guid = ?";
const PUT_DOMAIN: &str = "INSERT INTO domains (domain, expire_time) VALUES (?, ?)
     ON CONFLICT (domain) DO UPDATE SET expire_time = excluded.expire_time";
const DROP_DOMAIN: &str = "DELETE FROM domains WHERE domain = ?";

fn write_row(connection: &Connection, write: Write) -> Result<(), rusqlite::Error> {
    let statement = |text| -> Result<CachedStatement<'_>, _> { connection.prepare_cached(text) };
    let written = match write {
        Write::PutDesiredLrp { process_guid, domain, record } => {
            statement(PUT_DESIRED_LRP)?.execute(params![process_guid, domain, record])
        }
        Write::DropDesiredLrp { process_guid } => statement(DROP_DESIRED_LRP)?.execute([process_guid]),
        Write::PutActualLrp { key, domain, state, cell_id, record } => statement(PUT_ACTUAL_LRP)?
            .execute(params![key.process_guid, key.index, key.presence, domain, state, cell_id, record]),
        Write::DropActualLrp { key } => {
            statement(DROP_ACTUAL_LRP)?.execute(params![key.process_guid, key.index, key.presence])
        }
        Write::PutTask { guid, domain, state, cell_id, record } => {
            statement(PUT_TASK)?.execute(params![guid, domain, state, cell_id, record])
        }
        Write::DropTask { guid } => statement(DROP_TASK)?.execute([guid]),
        Write::PutDomain { domain, expires_at_ns } => {
            statement(PUT_DOMAIN)?.execute(params![domain, expires_at_ns])
        }
        Write::DropDomain { domain } => statement(DROP_DOMAIN)?.execute([domain]),
    };
    written.map(drop)
}

/// SQLite's code, said in words that name the file.
fn explain(act: &'static str, path: &Path, error: rusqlite::Error) -> Error {
    let code = error.sqlite_error().map(|error| error.extended_code & 0xff);
    let at = at(path);
    match code {
        Some(BUSY) => Error::Locked { at },
        Some(CORRUPT | NOTADB) => Error::Corrupt { at, reason: error.to_string() },
        Some(READONLY | CANTOPEN | FULL) => Error::Unwritable { at, reason: error.to_string() },
        _ => Error::Failed { act, at, source: Box::new(error) },
    }
}

fn at(path: &Path) -> String {
    Location::from(path).to_string()
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

    fn put_task(guid: &str, bytes: usize) -> Write {
        let (guid, domain, cell_id) = (guid.into(), "d".into(), String::new());
        Write::PutTask { guid, domain, state: "Pending", cell_id, record: vec![7; bytes] }
    }

    #[tokio::test]
    async fn what_was_committed_is_in_the_log_if_nobody_closes_the_file() {
        let (folder, copy) = (Folder::new("killed"), Folder::new("killed-copy"));
        let mut store = File::open(&folder.file(), Durability::PowerLoss).await.unwrap();
        store.commit(vec![put_task("t", 3)]).await.unwrap();
        for name in ["diego.db", "diego.db-wal"] {
            std::fs::copy(folder.0.join(name), copy.0.join(name)).unwrap();
        }
        let mut found = File::open(&copy.file(), Durability::PowerLoss).await.unwrap();
        assert_eq!(found.load().await.unwrap().tasks, [Record::new("t".to_string(), vec![7; 3])]);
    }

    #[tokio::test]
    async fn the_log_does_not_grow_for_ever() {
        const MIB: usize = 1024 * 1024;
        let folder = Folder::new("folded");
        let mut store = File::open(&folder.file(), Durability::ProcessKill).await.unwrap();
        for round in 0..64 {
            store.commit(vec![put_task(&round.to_string(), MIB)]).await.unwrap();
        }
        let log = std::fs::metadata(folder.0.join("diego.db-wal")).unwrap().len();
        assert!(log < 32 * MIB as u64, "{log} bytes");
        drop(store);
        let mut store = File::open(&folder.file(), Durability::ProcessKill).await.unwrap();
        assert_eq!(store.load().await.unwrap().tasks.len(), 64);
    }

    /// Unmounted when dropped.
    struct Small(tempfile::TempDir);

    impl Small {
        fn mount() -> Option<Small> {
            let directory = tempfile::tempdir().unwrap();
            let mut mount = std::process::Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=8m", "small"]).arg(directory.path());
            mount.status().is_ok_and(|status| status.success()).then_some(Small(directory))
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(self.0.path()).status();
        }
    }

    #[tokio::test]
    async fn a_disk_without_room_for_a_long_log_has_room_for_records() {
        let Some(small) = Small::mount() else {
            return println!("SKIPPED a_disk_without_room_for_a_long_log_has_room_for_records: cannot mount");
        };
        let path = small.0.path().join("bbs.sqlite");
        let mut file = File::open(&path, Durability::PowerLoss).await.unwrap();
        file.commit(vec![put_task("small", 1000)]).await.unwrap();
        let log = std::fs::metadata(small.0.path().join("bbs.sqlite-wal")).unwrap().len();
        assert!(log < 1 << 20, "{log} bytes are left of the attempt");
        file.close().await.unwrap();
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
        store.execute("CREATE TRIGGER no BEFORE INSERT ON tasks BEGIN SELECT RAISE(ABORT, 'no'); END").await;
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
