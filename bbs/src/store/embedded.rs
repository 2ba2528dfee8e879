//! A connection to a SQLite file, on a thread of its own: SQLite's calls block.
//!
//! ```text
//! run(work) ─▶ writes ──▶ the log: one append, one flush a commit ─▶ answered
//!                └▶ folds: a second connection copies what is in the log to where it belongs, meanwhile
//! ```
//!
//! Whoever has work hands over all of it at once: each way to the thread and back is a wait for a processor, which on
//! a busy machine takes longer than the work.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::ffi::{self, SQLITE_BUSY, SQLITE_CANTOPEN, SQLITE_ERROR};
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

/// Pages, of 4 KiB, that come to the log before it is folded into the file again.
const PAGES_PER_FOLD: i32 = 500;
/// Where so many are in the log, who writes folds what is left, for the log begins anew only when all is folded; at twice
/// as many it waits for that.
const PAGES_LOGGED_MAX: i32 = 3_000;
/// The log's bytes from the start on, with room for a large transaction: to flush what overwrites a file takes the disk
/// half as long as what makes one longer.
const ROOM: u64 = 4_000 * (4096 + 24);
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// Pages in memory, as SQLite counts: negative numbers are KiB.
const CACHE: i32 = -16 * 1024;

thread_local! {
    /// Pages in the log of this thread's connection.
    static LOGGED: Cell<i32> = const { Cell::new(0) };
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// The disk.
    Full,
    /// The kernel.
    Normal,
}

impl Synchronous {
    fn name(self) -> &'static str {
        match self {
            Synchronous::Full => "FULL",
            Synchronous::Normal => "NORMAL",
        }
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Ends its threads when dropped, and gives the file back.
pub struct Worker {
    jobs: mpsc::Sender<Job>,
    ended: oneshot::Receiver<Result<(), rusqlite::Error>>,
}

/// The thread has ended before its time.
#[derive(Debug)]
pub struct Gone;

impl Worker {
    /// Opens or makes the file and takes its lock, which nothing gives back but the end; `patience` is with a predecessor
    /// that is about to end.
    pub async fn open(
        path: &Path,
        synchronous: Synchronous,
        patience: Duration,
    ) -> Result<Worker, rusqlite::Error> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tell_opened, opened) = oneshot::channel();
        let (tell_ended, ended) = oneshot::channel();
        let path = path.to_path_buf();
        let work = move || match Opened::patiently(&path, synchronous, patience) {
            Ok(file) => {
                if tell_opened.send(Ok(())).is_ok() {
                    drop(tell_ended.send(file.work(&queue)));
                }
            }
            Err(error) => drop(tell_opened.send(Err(error))),
        };
        start("sqlite", work)?;
        opened.await.unwrap_or_else(|_| Err(failure(SQLITE_ERROR, "its thread has ended".into())))?;
        Ok(Worker { jobs, ended })
    }

    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (answer, answered) = oneshot::channel();
        // Whoever asked may have gone; what was to be done is done.
        let job: Job = Box::new(move |connection| drop(answer.send(work(connection))));
        self.jobs.send(job).map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }

    /// Folds the log into the file and gives the lock back.
    pub async fn close(self) -> Result<(), rusqlite::Error> {
        drop(self.jobs);
        self.ended.await.unwrap_or(Ok(()))
    }
}

fn start(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, rusqlite::Error> {
    let started = thread::Builder::new().name(name.into()).spawn(work);
    started.map_err(|error| failure(SQLITE_ERROR, format!("cannot start a thread: {error}")))
}

/// In SQLite's words, what it was not asked for.
fn failure(code: i32, message: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message))
}

struct Opened {
    connection: Connection,
    folding: thread::JoinHandle<()>,
    /// Asks for the log to be folded.
    fold: mpsc::SyncSender<()>,
    /// Dropped last: with it goes the lock.
    _lock: File,
}

impl Opened {
    fn patiently(
        path: &Path,
        synchronous: Synchronous,
        patience: Duration,
    ) -> Result<Opened, rusqlite::Error> {
        let deadline = Instant::now() + patience;
        loop {
            match Opened::new(path, synchronous) {
                Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(LOCK_RETRY),
                opened => return opened,
            }
        }
    }

    fn new(path: &Path, synchronous: Synchronous) -> Result<Opened, rusqlite::Error> {
        let lock = lock(path)?;
        let connection = connect(path, synchronous)?;
        // Proves that nobody writes who does not know of our lock, and that we can.
        connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
        connection.wal_hook(Some(count));
        if synchronous == Synchronous::Full
            && let Err(error) = make_room(path)
        {
            // What is there can be read, and removed, on a full disk, too.
            tracing::warn!(%error, "no room ahead for the database's log: commits take longer");
        }
        let folder = connect(path, synchronous)?;
        let (fold, folds) = mpsc::sync_channel(0);
        let folding = start("sqlite-fold", move || folds.iter().for_each(|()| self::fold(&folder)))?;
        Ok(Opened { connection, folding, fold, _lock: lock })
    }

    /// Until nobody can ask for anything any more.
    fn work(mut self, jobs: &mpsc::Receiver<Job>) -> Result<(), rusqlite::Error> {
        let mut folded = 0;
        for job in jobs {
            job(&mut self.connection);
            let logged = LOGGED.get();
            // The log may have begun anew.
            folded = folded.min(logged);
            if logged >= 2 * PAGES_LOGGED_MAX {
                self.fold_all();
            } else if logged >= PAGES_LOGGED_MAX {
                // Nothing happens if the other connection folds at this moment; it is not asked for more.
                fold(&self.connection);
            } else if logged - folded >= PAGES_PER_FOLD && self.fold.try_send(()).is_ok() {
                folded = logged;
            }
        }
        drop(self.fold);
        drop(self.folding.join());
        self.connection.close().map_err(|(_, error)| error)
    }

    /// What is sent is taken when what was sent before is done.
    fn fold_all(&self) {
        for _ in 0..2 {
            // An error says that the thread has ended, which only a log that grows tells of.
            let _ = self.fold.send(());
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

/// SQLite's own locks are each transaction's only. To open the file once more drops what locks SQLite has in this process,
/// as POSIX wants it: that is done before it has any.
fn lock(path: &Path) -> Result<File, rusqlite::Error> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|error| failure(SQLITE_CANTOPEN, format!("cannot open it: {error}")))?;
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => failure(SQLITE_BUSY, "another process has it".into()),
        std::fs::TryLockError::Error(error) => failure(SQLITE_CANTOPEN, format!("cannot lock it: {error}")),
    })?;
    Ok(file)
}

/// With zeros, which SQLite takes for the end of the log. Nobody writes there meanwhile. All of it or nothing.
fn make_room(path: &Path) -> std::io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let mut log = File::options().append(true).create(true).open(log)?;
    let length = log.metadata()?.len();
    let zeros = std::io::repeat(0).take(ROOM.saturating_sub(length));
    let made = std::io::copy(&mut { zeros }, &mut log).and_then(|_| log.sync_data());
    if made.is_err() {
        log.set_len(length)?;
    }
    made
}

/// Write-ahead logging makes a commit one append.
fn connect(path: &Path, synchronous: Synchronous) -> Result<Connection, rusqlite::Error> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.execute_batch("PRAGMA journal_mode = WAL")?;
    connection.pragma_update(None, "cache_size", CACHE)?;
    connection.pragma_update(None, "synchronous", synchronous.name())?;
    // Ours, at its time, and not in whoever commits.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

fn count(_: &Wal, pages: std::ffi::c_int) -> Result<(), rusqlite::Error> {
    LOGGED.set(pages);
    Ok(())
}

/// As far as it goes without making anybody wait. What fails here is tried again, and the log has what was committed.
fn fold(connection: &Connection) {
    let folded = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = folded {
        tracing::warn!(%error, "cannot fold the log into the database file");
    }
}
