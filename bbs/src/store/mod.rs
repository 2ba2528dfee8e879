//! The database: rows in, rows out, one transaction a commit. The only place that speaks SQL.
//!
//! Three databases have one schema: a file of SQLite's, held exclusively, or a server of PostgreSQL or MySQL, where a row
//! says who may write. It knows no state machine and no model: a row is its key, a few columns for people who look, and
//! a record (the protobuf of the value). Nothing is read from it while the BBS runs; it is read once at start.

mod batch;
pub(crate) mod embedded;
mod fence;
mod location;
pub mod memory;
pub(crate) mod mysql;
pub(crate) mod postgres;
mod schema;
mod seal;
mod sqlite;
mod watched;

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
pub use location::{BadLocation, Host, Location, Server, Tls, Trust};
pub(crate) use schema::Dialect;
pub use seal::{BadKeys, Keys};
pub use sqlite::File;
pub use watched::Watched;

use fence::Fenced;
use seal::Sealed;

/// What an acknowledged write has survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Flushed to the disk before it is acknowledged: a killed process and a lost power supply lose nothing.
    #[default]
    PowerLoss,
    /// Handed to the kernel before it is acknowledged: a killed process loses nothing, a lost power supply may lose
    /// the last moments (never the file's consistency).
    ProcessKill,
}

/// One change of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    PutDesiredLrp { process_guid: String, domain: String, record: Vec<u8> },
    DropDesiredLrp { process_guid: String },
    PutActualLrp { key: ActualKey, domain: String, state: &'static str, cell_id: String, record: Vec<u8> },
    DropActualLrp { key: ActualKey },
    PutTask { guid: String, domain: String, state: &'static str, cell_id: String, record: Vec<u8> },
    DropTask { guid: String },
    PutDomain { domain: String, expires_at_ns: i64 },
    DropDomain { domain: String },
}

/// The primary key of an instance's row. `presence` is the wire's number.
#[derive(Debug, Clone, PartialEq)]
pub struct ActualKey {
    pub process_guid: String,
    pub index: i32,
    pub presence: i32,
}

/// `PROCESS-GUID/INDEX/PRESENCE`.
impl fmt::Display for ActualKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.process_guid, self.index, self.presence)
    }
}

/// A record as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its row's, in one word.
    pub key: String,
    pub bytes: Vec<u8>,
    /// It should be written anew, for it is sealed with a key of before, or not sealed.
    pub is_outdated: bool,
}

impl Record {
    pub fn new(key: String, bytes: Vec<u8>) -> Record {
        Record { key, bytes, is_outdated: false }
    }
}

/// All that the database holds.
#[derive(Debug, Default)]
pub struct Contents {
    pub desired_lrps: Vec<Record>,
    pub actual_lrps: Vec<Record>,
    pub tasks: Vec<Record>,
    pub domains: Vec<(String, i64)>,
}

/// `at` is a [`Location`] in words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{at} is in use by another process")]
    Locked { at: String },
    #[error("{at} is corrupt: {reason}")]
    Corrupt { at: String, reason: String },
    #[error("cannot write {at}: {reason}")]
    Unwritable { at: String, reason: String },
    #[error("{at} has schema version {found}, newer than version {known} of this program")]
    NewerSchema { at: String, found: i64, known: i64 },
    #[error("cannot {act} {at}")]
    Failed { act: &'static str, at: String, source: Box<rusqlite::Error> },
    #[error("cannot {act} {at}: {why}")]
    Server { act: &'static str, at: String, why: String },
    #[error("{row} in {at} is sealed with the key {label:?}, {why}")]
    Unsealable { at: String, row: String, label: String, why: &'static str },
    /// Whether the commit was carried out is not known yet.
    #[error("{at} does not answer")]
    Unanswered { at: String },
    #[error("{at} ended the connection {attempts} times at the same commit, which is given up")]
    GivenUp { at: String, attempts: u32 },
    #[error("the connection to {at} is lost")]
    Lost { at: String },
    #[error("{at} is written by another BBS now, {owner}: this one may write no more")]
    Fenced { at: String, owner: String },
    #[error("{at} has lost commits that it had acknowledged: only a BBS that starts anew knows what is left")]
    WentBack { at: String },
}

impl Error {
    /// Nothing more can be written by this process.
    pub fn is_the_end(&self) -> bool {
        matches!(self, Error::Lost { .. } | Error::Fenced { .. } | Error::WentBack { .. })
    }
}

/// Where the rows are, with the right to write there.
#[async_trait]
pub trait Rows: Send {
    /// In words, for messages.
    fn at(&self) -> String;
    async fn load(&mut self) -> Result<Contents, Error>;
    /// All of `writes` or none of them. After [`Error::Unanswered`] nobody knows which, until [`Rows::resume`] does;
    /// after what [`Error::is_the_end`] nothing more can be written.
    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), Error>;
    /// Whether an answer may never come. What follows is asked of such only.
    fn may_be_away(&self) -> bool {
        false
    }
    /// Whether the database is there and still ours.
    async fn check(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// Asks anew what became of the commit that was not answered, and carries it out if it was not.
    async fn resume(&mut self) -> Result<(), Error> {
        Ok(())
    }
    async fn close(self: Box<Self>) -> Result<(), Error>;
}

/// What cannot be read the library would not name.
pub(crate) fn check_files(tls: &Tls) -> Result<(), sqlx::Error> {
    let readable = |path: &PathBuf| {
        let failed =
            |error| sqlx::Error::Configuration(format!("cannot read {}: {error}", path.display()).into());
        std::fs::File::open(path).map(drop).map_err(failed)
    };
    tls.files().try_for_each(readable)
}

/// Opens the database, brings its schema up to date, and takes it from whoever wrote there before. With `keys`, what is
/// written from now on is sealed.
pub async fn open(
    location: &Location,
    durability: Durability,
    keys: Option<Keys>,
) -> Result<Box<dyn Rows>, Error> {
    let at = location.to_string();
    // Nobody else's, and none that an earlier start had.
    let owner = diego_base::names::guid();
    let rows: Box<dyn Rows> = match location.clone() {
        Location::Sqlite(path) => Box::new(File::open(&path, durability).await?),
        Location::Postgres(server) => Box::new(Fenced::<postgres::Client>::open(server, at, owner).await?),
        Location::Mysql(server) => Box::new(Fenced::<mysql::Client>::open(server, at, owner).await?),
    };
    Ok(Box::new(Sealed::new(rows, keys)))
}
