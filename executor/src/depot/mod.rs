//! What outlives this process: a directory for each container that was reserved, from which a later life takes the
//! container over.
//!
//! ```text
//! containers/GUID/request.json      what it is to run: written when it begins, and when it is updated
//! containers/GUID/record.json     how far it has come: written when it is reserved, and before each step that must not be
//!                                 taken twice
//! ```
//! Each file is whole or the one before it. Nothing is forced onto the disk: containers do not outlive their machine. A
//! directory goes last, once nothing is left of its container. The files hold secrets of applications, and are root's.

mod journal;
mod name;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use diego_base::directory;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use journal::{Journal, Place};

use crate::config::DIRECTORY_MARK;
use crate::recipe::Settings;
use crate::steps::StepError;
use crate::volumes::Volume;
use crate::{Container, RunInfo, StartError, State};

/// Of the files, and of the recipes that the places of steps belong to: another number is another language.
const FORMAT: u32 = 1;
const REQUEST: &str = "request.json";
const RECORD: &str = "record.json";
const LOCK: &str = ".lock";
/// What its last owner was about to start has its lock, too, until it is another program.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a container is to do, and what of the cell's settings became part of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    format: u32,
    #[serde(serialize_with = "write_shared", deserialize_with = "read_shared")]
    pub run_info: Arc<RunInfo>,
    pub settings: Settings,
}

impl Request {
    pub fn new(run_info: Arc<RunInfo>, settings: Settings) -> Self {
        Request { format: FORMAT, run_info, settings }
    }
}

/// How far a container has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    /// Without its run info, which is in the request.
    pub container: Container,
    /// It was told to stop.
    pub stopping: bool,
    /// Names of the downloads that are mounted into it.
    pub downloads: Vec<String>,
    /// Volumes that are mounted into it.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// By their places in the recipe.
    pub steps: BTreeMap<String, Mark>,
}

impl Record {
    pub fn new(container: Container) -> Self {
        let (downloads, volumes, steps) = Default::default();
        Record { format: FORMAT, container, stopping: false, downloads, volumes, steps }
    }

    /// For a later life: before it was created a container uses none, and after it has completed neither.
    pub fn held_volumes(&self) -> &[Volume] {
        match self.container.state {
            State::Created | State::Running => &self.volumes,
            State::Reserved | State::Initializing | State::Completed(_) => &[],
        }
    }
}

/// What is noted of a step; the last one counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mark {
    /// Milliseconds since the machine was started: its clock is not turned.
    Begun {
        at_ms: u64,
    },
    /// Its process has this id, if it was started.
    Process {
        id: String,
    },
    /// A monitor that has found its container healthy, a readiness check that has found it ready.
    Passed,
    Ended(Result<(), StepError>),
}

impl Mark {
    pub fn begun_now() -> Mark {
        Mark::Begun { at_ms: since_boot_ms() }
    }
}

pub(crate) fn since_boot_ms() -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().and_then(|seconds| seconds.parse::<f64>().ok());
    // Where nothing tells, no time passes between lives.
    seconds.map_or(0, |seconds| (seconds * 1000.0) as u64)
}

/// What an earlier life left of one container.
#[derive(Debug)]
pub(crate) struct Found {
    pub record: Record,
    /// Or why it cannot be read.
    pub request: Result<Request, String>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {path}")]
pub(crate) struct Error {
    act: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(crate) struct Depot {
    dir: PathBuf,
    /// Held, not read: the lock ends with the process, however it ends.
    _lock: File,
}

impl Depot {
    /// One executor at a time.
    pub fn open(dir: &Path) -> Result<Depot, StartError> {
        let unusable = |source| StartError::Directory { path: dir.to_path_buf(), source };
        directory::claim(dir, DIRECTORY_MARK)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
        let lock = dir.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock);
        let lock = lock.map_err(unusable)?;
        let patience = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Depot { dir: dir.to_path_buf(), _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => thread::sleep(LOCK_PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(StartError::InUse(dir.to_path_buf())),
                Err(error) => return Err(unusable(error.into())),
            }
        }
    }

    /// What cannot be read tells nothing: it goes, and the reaper finds the container if there is one.
    pub fn found(&self) -> Result<Vec<Found>, Error> {
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.dir).map_err(failed("read", &self.dir))?;
        for entry in entries {
            let path = entry.map_err(failed("read", &self.dir))?.path();
            // The lock, and what others keep here: no container has such a name.
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                continue;
            }
            match read::<Record>(&path.join(RECORD)).and_then(|record| self.is_of(record, &path)) {
                Ok(record) => found.push(Found { record, request: read(&path.join(REQUEST)) }),
                Err(why) => {
                    tracing::error!(path = %path.display(), why, "executor.depot.forgotten");
                    remove(&path)?;
                }
            }
        }
        Ok(found)
    }

    fn is_of(&self, record: Record, path: &Path) -> Result<Record, String> {
        match self.path(&record.container.guid) == path {
            true => Ok(record),
            false => Err(format!("it is the record of {}", record.container.guid)),
        }
    }

    /// False: something is written down of a container of this name already.
    pub fn reserve(&self, record: &Record) -> Result<bool, Error> {
        let dir = self.path(&record.container.guid);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => write(&dir, RECORD, record).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(failed("make", &dir)(error)),
        }
    }

    /// Where a container's story is written from now on; its reservation is there before its first note, at most.
    pub fn journal(&self, record: Record) -> Journal {
        Journal::new(self.path(&record.container.guid), record)
    }

    /// The last of a container whose owner cannot write it.
    pub fn forget(&self, guid: &str) -> Result<(), Error> {
        remove(&self.path(guid))
    }

    fn path(&self, guid: &str) -> PathBuf {
        self.dir.join(name::of(guid))
    }
}

fn write_shared<S: Serializer>(shared: &Arc<RunInfo>, serializer: S) -> Result<S::Ok, S::Error> {
    shared.as_ref().serialize(serializer)
}

fn read_shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<RunInfo>, D::Error> {
    RunInfo::deserialize(deserializer).map(Arc::new)
}

trait Versioned {
    fn format(&self) -> u32;
}

impl Versioned for Request {
    fn format(&self) -> u32 {
        self.format
    }
}

impl Versioned for Record {
    fn format(&self) -> u32 {
        self.format
    }
}

fn read<T: for<'de> Deserialize<'de> + Versioned>(path: &Path) -> Result<T, String> {
    let json = fs::read(path).map_err(|error| format!("cannot read it: {error}"))?;
    let content: T =
        serde_json::from_slice(&json).map_err(|error| format!("cannot understand it: {error}"))?;
    match content.format() {
        FORMAT => Ok(content),
        other => Err(format!("it is of format {other}, and {FORMAT} is understood")),
    }
}

/// Whole or not at all, and readable by root alone.
fn write(dir: &Path, name: &str, content: &impl Serialize) -> Result<(), Error> {
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        let json = serde_json::to_vec(content)?;
        let unfinished = dir.join(format!("{name}.unfinished"));
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished);
        file?.write_all(&json)?;
        fs::rename(&unfinished, &path)
    };
    write().map_err(failed("write", &path))
}

fn make(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make", dir))
}

/// The record first: a directory without one is nobody's.
fn remove(dir: &Path) -> Result<(), Error> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(fs::remove_file(dir.join(RECORD))).map_err(failed("remove the record of", dir))?;
    gone(fs::remove_dir_all(dir)).map_err(failed("remove", dir))
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error { act, path, source }
}

/// Makes a directory of things by guid if need be, in one of the executor's own, and takes out what belongs to no container that lives on.
pub(crate) fn keep_only(dir: &Path, guids: &BTreeSet<&str>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if directory::stays(&name, DIRECTORY_MARK) || name.to_str().is_some_and(|name| guids.contains(name)) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
