//! What the cache holds: entries by key, their bytes, and which was used longest ago.
//!
//! An entry that is replaced or put out while somebody holds it is removed from disk when the last holder lets go.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::fetch::Validators;

const INDEX_FILE: &str = "index.json";

/// One thing on disk.
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: PathBuf,
    pub bytes: u64,
    pub validators: Validators,
    last_use: AtomicU64,
    /// No longer in the index: to be removed with its last holder.
    doomed: AtomicBool,
}

impl Entry {
    /// Never in the index.
    pub fn passing(path: PathBuf, bytes: u64) -> Self {
        Entry {
            path,
            bytes,
            validators: Validators::default(),
            last_use: AtomicU64::new(0),
            doomed: AtomicBool::new(true),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.doomed.load(Ordering::SeqCst) {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let remove = move || {
            if let Err(error) = remove(&path) {
                tracing::warn!(path = %path.display(), %error, "executor.cache.cannot-remove");
            }
        };
        // A large directory takes a while; whoever lets go of it should not wait.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

pub(super) struct Index {
    dir: PathBuf,
    bytes_max: u64,
    entries: HashMap<String, Arc<Entry>>,
    uses: u64,
}

/// The index as it stands on disk.
#[derive(Serialize, Deserialize)]
struct Record {
    key: String,
    name: String,
    bytes: u64,
    validators: Validators,
    last_use: u64,
}

impl Index {
    pub fn open(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut index = Index { dir: dir.to_path_buf(), bytes_max, entries: HashMap::new(), uses: 0 };
        for record in read(&dir.join(INDEX_FILE)) {
            index.recover(record);
        }
        index.remove_strangers()?;
        index.make_room(0);
        Ok(index)
    }

    fn recover(&mut self, record: Record) {
        let path = self.dir.join(&record.name);
        // A name that leads elsewhere was not written by us.
        let is_ours = Path::new(&record.name).file_name().is_some_and(|name| name == record.name.as_str());
        if is_ours && path.exists() {
            self.uses = self.uses.max(record.last_use + 1);
            let entry = Entry {
                path,
                bytes: record.bytes,
                validators: record.validators,
                last_use: AtomicU64::new(record.last_use),
                doomed: AtomicBool::new(false),
            };
            self.entries.insert(record.key, Arc::new(entry));
        }
    }

    /// Downloads that were cut short, directories half unpacked, entries whose record was lost.
    fn remove_strangers(&self) -> io::Result<()> {
        for item in std::fs::read_dir(&self.dir)? {
            let path = item?.path();
            let known = self.entries.values().any(|entry| entry.path == path);
            if !known && path.file_name().is_none_or(|name| name != INDEX_FILE) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    pub fn find(&mut self, key: &str) -> Option<Arc<Entry>> {
        let entry = self.entries.get(key)?.clone();
        if !entry.path.exists() {
            self.entries.remove(key);
            return None;
        }
        self.uses += 1;
        entry.last_use.store(self.uses, Ordering::Relaxed);
        Some(entry)
    }

    pub fn add(&mut self, key: &str, path: PathBuf, bytes: u64, validators: Validators) -> Arc<Entry> {
        self.doom(key);
        self.make_room(bytes);
        self.uses += 1;
        let entry = Arc::new(Entry {
            path,
            bytes,
            validators,
            last_use: AtomicU64::new(self.uses),
            doomed: AtomicBool::new(false),
        });
        self.entries.insert(key.to_string(), entry.clone());
        self.save();
        entry
    }

    pub fn remove(&mut self, key: &str) {
        if self.doom(key) {
            self.save();
        }
    }

    fn doom(&mut self, key: &str) -> bool {
        let entry = self.entries.remove(key);
        if let Some(entry) = &entry {
            entry.doomed.store(true, Ordering::SeqCst);
        }
        entry.is_some()
    }

    /// Puts out what nobody uses, oldest use first, until `bytes` more would fit or nothing is left to put out.
    fn make_room(&mut self, bytes: u64) {
        let mut used: u64 = self.entries.values().map(|entry| entry.bytes).sum();
        while used + bytes > self.bytes_max {
            let idle = self.entries.iter().filter(|(_, entry)| Arc::strong_count(entry) == 1);
            let oldest = idle.min_by_key(|(_, entry)| entry.last_use.load(Ordering::Relaxed));
            let Some((key, entry)) = oldest.map(|(key, entry)| (key.clone(), entry.bytes)) else { return };
            used -= entry;
            self.doom(&key);
        }
    }

    /// Losing the index costs downloads, nothing else: a failure is logged and not passed on.
    fn save(&self) {
        let records: Vec<_> = self.entries.iter().map(|(key, entry)| record(key, entry)).collect();
        let written = serde_json::to_vec(&records).map_err(io::Error::from).and_then(|json| {
            let temp = self.dir.join(format!("{INDEX_FILE}.new"));
            std::fs::write(&temp, json)?;
            std::fs::rename(&temp, self.dir.join(INDEX_FILE))
        });
        if let Err(error) = written {
            tracing::warn!(dir = %self.dir.display(), %error, "executor.cache.cannot-save-index");
        }
    }
}

fn record(key: &str, entry: &Entry) -> Record {
    Record {
        key: key.to_string(),
        name: entry.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        bytes: entry.bytes,
        validators: entry.validators.clone(),
        last_use: entry.last_use.load(Ordering::Relaxed),
    }
}

/// An index that is missing or unreadable is an empty one.
fn read(path: &Path) -> Vec<Record> {
    let Ok(json) = std::fs::read(path) else { return Vec::new() };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "executor.cache.index-unreadable");
        Vec::new()
    })
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
