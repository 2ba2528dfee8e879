//! Rows on a disk that is not there: what was committed survives its BBS, and nothing else does. For simulations.
//!
//! Whoever opened it last is the only one who writes to it, as with the lock of a database; commits take as long as
//! the simulation says, and can be made to get lost, before or after they have happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Contents, Error, Record, Rows, Write};

/// What becomes of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Written,
    /// Acknowledged and not written: what a database must never do.
    Forgotten,
    /// Refused: nothing has happened, and the next one may work.
    Refused,
    /// The connection breaks, before or after it was written.
    Lost {
        written: bool,
    },
}

/// Decides how long a commit takes and what becomes of it.
pub type Fates = Arc<dyn Fn() -> (std::time::Duration, Fate) + Send + Sync>;

/// Cheap to clone; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    rows: BTreeMap<(&'static str, String), Row>,
    owner: u64,
    commits: u64,
}

#[derive(Debug, Clone)]
enum Row {
    Record { name: String, record: Vec<u8> },
    Domain { domain: String, expires_at_ns: i64 },
}

/// The disk as one BBS has it.
pub struct DiskRows {
    disk: Disk,
    owner: u64,
    fates: Fates,
}

/// In errors.
const AT: &str = "the simulated disk";

const DESIRED: &str = "desired_lrps";
const ACTUAL: &str = "actual_lrps";
const TASKS: &str = "tasks";
const DOMAINS: &str = "domains";

impl Disk {
    /// Fences whoever had it before.
    pub fn open(&self, fates: Fates) -> DiskRows {
        let mut tables = self.lock();
        tables.owner += 1;
        DiskRows { disk: self.clone(), owner: tables.owner, fates }
    }

    /// How often something was committed.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Keys of the Tasks that are written down.
    pub fn tasks(&self) -> Vec<String> {
        self.keys(TASKS)
    }

    /// Process guids that are written down.
    pub fn desired_lrps(&self) -> Vec<String> {
        self.keys(DESIRED)
    }

    fn keys(&self, table: &str) -> Vec<String> {
        let tables = self.lock();
        tables.rows.keys().filter(|(of, _)| *of == table).map(|(_, key)| key.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn write(&mut self, write: Write) {
        let record = |name: String, record| Some(Row::Record { name, record });
        let ((table, key), row) = match write {
            Write::PutDesiredLrp { process_guid, record: bytes, .. } => {
                ((DESIRED, process_guid.clone()), record(process_guid, bytes))
            }
            Write::DropDesiredLrp { process_guid } => ((DESIRED, process_guid), None),
            Write::PutActualLrp { key, record: bytes, .. } => {
                let name = key.to_string();
                ((ACTUAL, name.clone()), record(name, bytes))
            }
            Write::DropActualLrp { key } => ((ACTUAL, key.to_string()), None),
            Write::PutTask { guid, record: bytes, .. } => ((TASKS, guid.clone()), record(guid, bytes)),
            Write::DropTask { guid } => ((TASKS, guid), None),
            Write::PutDomain { domain, expires_at_ns } => {
                ((DOMAINS, domain.clone()), Some(Row::Domain { domain, expires_at_ns }))
            }
            Write::DropDomain { domain } => ((DOMAINS, domain), None),
        };
        match row {
            Some(row) => self.rows.insert((table, key), row),
            None => self.rows.remove(&(table, key)),
        };
    }
}

#[async_trait]
impl Rows for DiskRows {
    fn at(&self) -> String {
        AT.into()
    }

    async fn load(&mut self) -> Result<Contents, Error> {
        let tables = self.disk.lock();
        let mut contents = Contents::default();
        for ((table, _), row) in &tables.rows {
            match row.clone() {
                Row::Domain { domain, expires_at_ns } => contents.domains.push((domain, expires_at_ns)),
                Row::Record { name, record } => match *table {
                    DESIRED => contents.desired_lrps.push(Record::new(name, record)),
                    ACTUAL => contents.actual_lrps.push(Record::new(name, record)),
                    _ => contents.tasks.push(Record::new(name, record)),
                },
            }
        }
        Ok(contents)
    }

    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        let (takes, fate) = (self.fates)();
        tokio::time::sleep(takes).await;
        let lost = || Error::Lost { at: AT.into() };
        let mut tables = self.disk.lock();
        if tables.owner != self.owner || fate == (Fate::Lost { written: false }) {
            return Err(lost());
        }
        if fate == Fate::Refused {
            return Err(Error::Unwritable { at: AT.into(), reason: "it is full".into() });
        }
        if fate == Fate::Forgotten {
            return Ok(());
        }
        writes.into_iter().for_each(|write| tables.write(write));
        tables.commits += 1;
        if fate == (Fate::Lost { written: true }) { Err(lost()) } else { Ok(()) }
    }

    fn may_be_away(&self) -> bool {
        true
    }

    async fn check(&mut self) -> Result<(), Error> {
        let is_ours = self.disk.lock().owner == self.owner;
        if is_ours { Ok(()) } else { Err(Error::Lost { at: AT.into() }) }
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}
