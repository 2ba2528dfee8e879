//! The truth about containers, on disk: one directory each, in it one record.
//!
//! The record is written before anything else of a container exists and is dropped after everything else is gone, so
//! that whatever a killed garden leaves behind is found by the next one. Each write is atomic: a new file takes the
//! place of the old. What the records mean is the gardener's business.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use diego_base::directory;
use garden_client::{ContainerSpec, Properties};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::containerizer::{self, PeaRecord};
use crate::milestone;
use crate::networker::Connection;

const RECORD: &str = "container.json";
const NEW_RECORD: &str = "container.json.new";
/// Beside it, the record of a pea.
const PEA_SUFFIX: &str = ".pea.json";
const NEW_PEA_SUFFIX: &str = ".pea.new";
/// Beside a record whose container is going.
const GOING: &str = "going";
/// Becomes the name of a directory, each byte escaped at worst, which file systems end at 255.
pub const HANDLE_BYTES_MAX: usize = 200;
const NAME_BYTES_MAX: usize = 255;

#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {}", path.display())]
pub struct Error {
    act: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub type Result<T> = std::result::Result<T, Error>;

fn failed<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error { act, path: path.to_owned(), source }
}

/// Everything that must be known to take a container away, or to take it over; of its peas, their own records tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub handle: String,
    /// Since the epoch.
    pub created_at_ns: i64,
    /// False until its creation has succeeded.
    pub created: bool,
    /// As asked for, without credentials.
    pub spec: ContainerSpec,
    pub properties: Properties,
    pub grace_time_ns: u64,
    pub connection: Option<Connection>,
    /// A plugin was, or is about to be, asked for its network, and has not yet taken it away.
    #[serde(default)]
    pub plugged: bool,
    /// The same of its root.
    #[serde(default)]
    pub imaged: bool,
    /// Its processes were stopped by a client.
    pub stopped: bool,
    /// Once it has a pid 1.
    pub container: Option<containerizer::Record>,
}

impl Record {
    /// Of a container of which nothing is made yet.
    pub fn new(spec: ContainerSpec, created_at_ns: i64) -> Self {
        Self {
            handle: spec.handle.clone(),
            created_at_ns,
            created: false,
            properties: spec.properties.clone(),
            grace_time_ns: spec.grace_time,
            spec,
            connection: None,
            plugged: false,
            imaged: false,
            stopped: false,
            container: None,
        }
    }
}

/// Of a directory. That a record cannot be read does not mean that its container is gone.
#[derive(Debug)]
pub enum Content {
    /// The directory was made and no record yet written.
    Nothing,
    Record(Box<Record>),
    /// What could be made out of a record that cannot be read: its handle at least.
    Unclear(Box<Record>, io::Error),
}

/// Of a directory that is a depot: what stands there without a record is taken away.
const MARK: &str = ".depot";
/// In garden's own.
pub const DIRECTORY: &str = "depot";

#[derive(Debug)]
pub struct Depot {
    root: PathBuf,
}

/// What stands in one directory of the depot.
#[derive(Debug)]
pub struct Found {
    pub directory: PathBuf,
    pub content: Content,
    /// Its destruction had begun.
    pub going: bool,
}

impl Depot {
    pub fn open(root: PathBuf) -> Result<Self> {
        // Records hold environments, which hold secrets.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(failed("make", &root))?;
        let not_own = |refused| failed("use", &root)(io::Error::other(refused));
        directory::claim(&root, MARK).map_err(not_own)?;
        Ok(Self { root })
    }

    /// That of a garden which runs, to be looked at.
    pub fn of(directory: &Path) -> Self {
        Self { root: directory.join(DIRECTORY) }
    }

    /// Where files of a container may be kept. The name is the handle, escaped.
    pub fn directory(&self, handle: &str) -> PathBuf {
        self.root.join(name(handle))
    }

    /// Writes a record for the first time, or anew.
    pub fn save(&self, record: &Record) -> Result<()> {
        let directory = self.directory(&record.handle);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", &directory)(error));
            }
            _ => {}
        }
        let (path, new) = (directory.join(RECORD), directory.join(NEW_RECORD));
        let bytes = serde_json::to_vec(record).map_err(io::Error::other).map_err(failed("encode", &path))?;
        write_whole(&new, &bytes).map_err(failed("write", &new))?;
        milestone::passed();
        fs::rename(&new, &path).map_err(failed("replace", &path))?;
        milestone::passed();
        Ok(())
    }

    /// Why a record is not written any more.
    pub fn gone(&self, handle: &str) -> Error {
        failed("write", &self.directory(handle))(io::Error::other("its container has been destroyed"))
    }

    /// Beside the container's record, one for each of its peas.
    pub fn save_pea(&self, handle: &str, record: &PeaRecord) -> Result<()> {
        let directory = self.directory(handle);
        let path = directory.join(format!("{}{PEA_SUFFIX}", record.name));
        let new = directory.join(format!("{}{NEW_PEA_SUFFIX}", record.name));
        let bytes = serde_json::to_vec(record).map_err(io::Error::other).map_err(failed("encode", &path))?;
        write_whole(&new, &bytes).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("replace", &path))
    }

    /// Records that a garden was killed over. Only as long as nobody writes one.
    pub fn drop_half_peas(&self, handle: &str) -> Result<()> {
        let directory = self.directory(handle);
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let path = entry.map_err(failed("list", &directory))?.path();
            if path.to_string_lossy().ends_with(NEW_PEA_SUFFIX) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// It may be gone already.
    pub fn drop_pea(&self, handle: &str, name: &str) -> Result<()> {
        let path = self.directory(handle).join(format!("{name}{PEA_SUFFIX}"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Those of a container that are recorded; one that cannot be read is told of, and as good as none.
    pub fn peas(&self, handle: &str) -> Result<Vec<PeaRecord>> {
        let told = |error: &Error| tracing::warn!(error = crate::chain(error), "unreadable record");
        let peas = self.each_pea(handle)?.into_iter();
        Ok(peas.filter_map(|pea| pea.inspect_err(told).ok()).collect())
    }

    /// The same; an error if one of them cannot be read.
    pub fn all_peas(&self, handle: &str) -> Result<Vec<PeaRecord>> {
        self.each_pea(handle)?.into_iter().collect()
    }

    fn each_pea(&self, handle: &str) -> Result<Vec<Result<PeaRecord>>> {
        let directory = self.directory(handle);
        let list = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            list => list.map_err(failed("list", &directory))?,
        };
        let mut peas = Vec::new();
        for entry in list {
            let path = entry.map_err(failed("list", &directory))?.path();
            if path.to_string_lossy().ends_with(PEA_SUFFIX) {
                peas.extend(read::<PeaRecord>(&path).map_err(failed("read", &path)).transpose());
            }
        }
        Ok(peas)
    }

    /// Tells a later garden that the container is to go, whatever its record says. An empty file: much cheaper than the
    /// record anew. Safe to call twice. One that was never recorded needs no mark: a later garden takes its directory away.
    pub fn mark_going(&self, handle: &str) -> Result<()> {
        let directory = self.directory(handle);
        if !directory.join(RECORD).try_exists().unwrap_or(true) {
            return Ok(());
        }
        let path = directory.join(GOING);
        match fs::File::create(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("make", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The record goes first of its directory, then the rest; both may be gone already.
    pub fn drop_record(&self, handle: &str) -> Result<()> {
        remove(&self.directory(handle))
    }

    /// A directory without a record, which nothing is known about.
    pub fn drop_directory(&self, found: &Found) -> Result<()> {
        remove(&found.directory)
    }

    /// How many directories there are.
    pub fn count(&self) -> Result<usize> {
        Ok(self.directories()?.len())
    }

    fn directories(&self) -> Result<Vec<PathBuf>> {
        let mut directories = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed("list", &self.root))? {
            let entry = entry.map_err(failed("list", &self.root))?;
            if !directory::stays(&entry.file_name(), MARK) {
                directories.push(entry.path());
            }
        }
        Ok(directories)
    }

    pub fn found(&self) -> Result<Vec<Found>> {
        let directories = self.directories()?;
        let found = |directory: PathBuf| {
            let Some(content) = content(&directory) else {
                tracing::warn!(directory = %directory.display(), "not a container's");
                return None;
            };
            Some(Found { content, going: directory.join(GOING).exists(), directory })
        };
        Ok(directories.into_iter().filter_map(found).collect())
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Not synced: the record outlives garden, not the machine, whose containers end with it.
    fs::File::create(path)?.write_all(bytes)
}

/// `None`: it is not there, or empty, as a machine that lost its power may leave it.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
    }
}

/// `None`: there is no record, and the directory has no name that a handle could have.
fn content(directory: &Path) -> Option<Content> {
    let path = directory.join(RECORD);
    let why = match read(&path) {
        Ok(None) => return Some(Content::Nothing),
        Ok(Some(record)) => return Some(Content::Record(Box::new(record))),
        Err(why) => why,
    };
    let directory = directory.file_name()?.to_str()?;
    let handle = garden_client::wire::decode_segment(directory).filter(|handle| name(handle) == directory)?;
    let parts = read::<serde_json::Value>(&path).ok().flatten().unwrap_or_default();
    Some(Content::Unclear(Box::new(made_out(handle, &parts)), why))
}

/// Each part for itself: somebody may understand it only in part.
fn made_out(handle: String, parts: &serde_json::Value) -> Record {
    fn part<T: DeserializeOwned>(parts: &serde_json::Value, name: &str) -> Option<T> {
        serde_json::from_value(parts.get(name)?.clone()).ok()
    }
    Record {
        handle,
        created_at_ns: part(parts, "created_at_ns").unwrap_or_default(),
        created: true,
        spec: part(parts, "spec").unwrap_or_default(),
        properties: part(parts, "properties").unwrap_or_default(),
        grace_time_ns: part(parts, "grace_time_ns").unwrap_or_default(),
        connection: part(parts, "connection"),
        plugged: part(parts, "plugged").unwrap_or_default(),
        imaged: part(parts, "imaged").unwrap_or_default(),
        stopped: part(parts, "stopped").unwrap_or_default(),
        container: part(parts, "container"),
    }
}

/// Without its record first: whatever is left then tells of nothing that is still there.
fn remove(directory: &Path) -> Result<()> {
    let record = directory.join(RECORD);
    match fs::remove_file(&record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &record)(error));
        }
        _ => milestone::passed(),
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// Whether a handle can become a directory.
pub fn is_usable(handle: &str) -> bool {
    !handle.is_empty() && handle.len() <= HANDLE_BYTES_MAX && name(handle).len() <= NAME_BYTES_MAX
}

fn name(handle: &str) -> String {
    let escaped = garden_client::wire::encode(handle);
    // "." and ".." are places of their own.
    match escaped.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(handle: &str) -> Record {
        Record::new(ContainerSpec { handle: handle.into(), ..ContainerSpec::default() }, 7)
    }

    #[test]
    fn what_is_saved_is_found_until_it_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let depot = Depot::open(root.path().join("a/b")).unwrap();
        for handle in ["plain", "..", ".", "a/../b", "ü"] {
            depot.save(&record(handle)).unwrap();
            depot.save(&Record { created: true, ..record(handle) }).unwrap();
            let found = depot.found().unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            let Content::Record(ref read) = found[0].content else { panic!("{found:?}") };
            assert_eq!(**read, Record { created: true, ..record(handle) });
            assert_eq!(found[0].directory.parent().unwrap(), root.path().join("a/b"));
            assert!(!found[0].going);
            depot.mark_going(handle).unwrap();
            depot.mark_going(handle).unwrap();
            assert!(depot.found().unwrap()[0].going);
            depot.drop_record(handle).unwrap();
            depot.drop_record(handle).unwrap();
            assert_eq!(depot.found().unwrap().len(), 0);
        }
    }

    #[test]
    fn half_written_records_of_peas_go_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let depot = Depot::open(root.path().to_owned()).unwrap();
        depot.save(&record("h")).unwrap();
        for name in ["pea-1.pea.new", "pea-2.pea.json", "pea-2"] {
            fs::write(depot.directory("h").join(name), "").unwrap();
        }
        depot.drop_half_peas("h").unwrap();
        let left = fs::read_dir(depot.directory("h")).unwrap().map(|entry| entry.unwrap().file_name());
        let left: std::collections::BTreeSet<_> = left.collect();
        assert_eq!(left, [RECORD, "pea-2", "pea-2.pea.json"].map(Into::into).into());
    }

    #[test]
    fn what_cannot_be_read_is_not_nothing() {
        let root = tempfile::tempdir().unwrap();
        let depot = Depot::open(root.path().to_owned()).unwrap();
        let mut saved = record("%h");
        saved.connection =
            Some(Connection::new("10.254.0.0/18".parse().unwrap(), "fd00:1::/112".parse().ok(), 7, "d-"));
        depot.save(&saved).unwrap();
        let path = depot.directory("%h").join(RECORD);
        let newer = fs::read_to_string(&path).unwrap().replace("\"stopped\":false", "\"stopped\":{\"at\":1}");
        let unclear = |content: &str| {
            fs::write(&path, content).unwrap();
            let found = depot.found().unwrap();
            let Content::Unclear(ref made_out, _) = found[0].content else { panic!("{found:?}") };
            assert_eq!(made_out.handle, "%h");
            assert!(made_out.created);
            made_out.connection.clone()
        };
        assert_eq!(unclear(&newer), saved.connection);
        assert_eq!(unclear("{\"handle\":"), None);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let found = depot.found().unwrap();
        assert!(matches!(found[0].content, Content::Unclear(..)), "a read error: {found:?}");
        fs::remove_dir(&path).unwrap();
        for nothing in [None, Some("")] {
            nothing.iter().for_each(|text| fs::write(&path, text).unwrap());
            assert!(matches!(depot.found().unwrap()[0].content, Content::Nothing));
        }
        depot.drop_directory(&depot.found().unwrap()[0]).unwrap();
        assert_eq!(depot.found().unwrap().len(), 0);
    }

    #[test]
    fn handles_that_make_no_directory_are_known() {
        assert!(is_usable("a") && is_usable(&"x".repeat(200)) && is_usable(".."));
        assert!(!is_usable("") && !is_usable(&"x".repeat(201)) && !is_usable(&"/".repeat(100)));
    }
}
