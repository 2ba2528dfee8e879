//! The database: rows in, rows out, one transaction a commit. The only place that speaks SQL.
//!
//! It knows no state machine and no model: a row is its key, a few columns for people who look with `sqlite3`, and
//! a record (the protobuf of the value). Nothing is read from it while the BBS runs; it is read once at start.

mod schema;
mod sqlite;

use std::path::{Path, PathBuf};

pub use sqlite::Store;

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

/// All that the file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Each row's key, for messages, and its record.
    pub desired_lrps: Vec<(String, Vec<u8>)>,
    pub actual_lrps: Vec<(String, Vec<u8>)>,
    pub tasks: Vec<(String, Vec<u8>)>,
    pub domains: Vec<(String, i64)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database file {} is in use by another process", path.display())]
    Locked { path: PathBuf },
    #[error("the database file {} is corrupt: {reason}", path.display())]
    Corrupt { path: PathBuf, reason: String },
    #[error("cannot write the database file {}: {reason}", path.display())]
    Unwritable { path: PathBuf, reason: String },
    #[error(
        "the database file {} has schema version {found}, newer than version {known} of this program",
        path.display()
    )]
    NewerSchema { path: PathBuf, found: i64, known: i64 },
    #[error("cannot {act} the database file {}", path.display())]
    Failed { act: &'static str, path: PathBuf, source: Box<sqlx::Error> },
    #[error("the connection to the database file {} is lost", path.display())]
    Lost { path: PathBuf },
}

impl Error {
    fn corrupt(path: &Path, reason: impl Into<String>) -> Error {
        Error::Corrupt { path: path.into(), reason: reason.into() }
    }
}
