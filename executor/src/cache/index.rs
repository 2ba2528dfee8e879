//! What the cache holds: entries by key, their bytes, and which was used longest ago.
//!
//! An entry that is replaced or put out while somebody holds it is removed from disk when the last holder lets go.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use diego_base::directory;
use rootfs_ledger::{Evict, Usage};
use serde::{Deserialize, Serialize};

use super::fetch::Validators;
use crate::config::DIRECTORY_MARK;

const INDEX_FILE: &str = "index.json";

/// One thing on disk.
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: PathBuf,
    pub bytes: u64,
    pub validators: Validators,
    last_use: AtomicU64,
    /// In seconds since the epoch.
    used_at: AtomicU64,
    /// No longer in the index: to be removed with its last holder.
    doomed: AtomicBool,
    /// Set when its holders let go of it without being done with it.
    left: Left,
}

/// Whether this life of the executor leaves what it has to the next; one for all entries.
pub(super) type Left = Arc<AtomicBool>;

impl Entry {
    /// Never in the index.
    pub fn passing(path: PathBuf, bytes: u64, left: &Left) -> Self {
        Entry {
            left: left.clone(),
            path,
            bytes,
            validators: Validators::default(),
            last_use: AtomicU64::new(0),
            used_at: AtomicU64::new(now_s()),
            doomed: AtomicBool::new(true),
        }
    }

    /// Removes it from the disk here and now.
    pub fn remove(self) -> io::Result<()> {
        // Nobody else holds it, and dropped it would be removed once more.
        self.doomed.store(false, Ordering::SeqCst);
        remove(&self.path)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.doomed.load(Ordering::SeqCst) || self.left.load(Ordering::SeqCst) {
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

/// By their names.
pub(super) type Held = HashMap<String, Arc<Entry>>;

pub(super) struct Index {
    dir: PathBuf,
    bytes_max: u64,
    entries: HashMap<String, Arc<Entry>>,
    uses: u64,
    left: Left,
}

/// The index as it stands on disk.
#[derive(Serialize, Deserialize)]
struct Record {
    key: String,
    name: String,
    bytes: u64,
    validators: Validators,
    last_use: u64,
    /// 0 in a record of an earlier version: long ago.
    #[serde(default)]
    used_at: u64,
}

impl Index {
    /// With what an earlier life had, and of that, by its name, what is `in_use` still.
    pub fn open(dir: &Path, bytes_max: u64, in_use: &[String]) -> io::Result<(Self, Held)> {
        std::fs::create_dir_all(dir)?;
        let (entries, left) = Default::default();
        let mut index = Index { dir: dir.to_path_buf(), bytes_max, entries, uses: 0, left };
        for record in read(&dir.join(INDEX_FILE)) {
            index.recover(record);
        }
        let held = in_use.iter().filter_map(|name| Some((name.clone(), index.hold_again(name)?))).collect();
        index.remove_strangers(&held)?;
        index.make_room(0);
        Ok((index, held))
    }

    /// It may have been replaced in the index since it was fetched.
    fn hold_again(&self, name: &str) -> Option<Arc<Entry>> {
        let path = self.dir.join(name);
        if let Some(entry) = self.entries.values().find(|entry| entry.path == path) {
            return Some(entry.clone());
        }
        path.exists().then(|| Arc::new(Entry::passing(path, 0, &self.left)))
    }

    pub fn left(&self) -> &Left {
        &self.left
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
                used_at: AtomicU64::new(record.used_at),
                doomed: AtomicBool::new(false),
                left: self.left.clone(),
            };
            self.entries.insert(record.key, Arc::new(entry));
        }
    }

    /// Downloads that were cut short, directories half unpacked, entries whose record was lost.
    fn remove_strangers(&self, held: &Held) -> io::Result<()> {
        for item in std::fs::read_dir(&self.dir)? {
            let item = item?;
            let (path, name) = (item.path(), item.file_name());
            let known = self.entries.values().chain(held.values()).any(|entry| entry.path == path);
            if !known && !directory::stays(&name, DIRECTORY_MARK) && name != INDEX_FILE {
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
        entry.used_at.store(now_s(), Ordering::Relaxed);
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
            used_at: AtomicU64::new(now_s()),
            doomed: AtomicBool::new(false),
            left: self.left.clone(),
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

    pub fn usage(&self) -> Usage {
        let bytes = |idle: bool| {
            let counted = self.entries.values().filter(|entry| !idle || Arc::strong_count(entry) == 1);
            counted.map(|entry| entry.bytes).sum()
        };
        Usage { bytes: bytes(false), evictable_bytes: bytes(true) }
    }

    /// Takes out what nobody uses, oldest use first; to be removed from the disk by the caller.
    pub fn put_out(&mut self, evict: Evict) -> Vec<Entry> {
        let (now, mut bytes) = (now_s(), 0);
        let mut idle: Vec<(u64, String)> = self
            .entries
            .iter()
            .filter(|(_, entry)| Arc::strong_count(entry) == 1)
            .filter(|(_, entry)| {
                now.saturating_sub(entry.used_at.load(Ordering::Relaxed)) >= evict.unused_for.as_secs()
            })
            .map(|(key, entry)| (entry.last_use.load(Ordering::Relaxed), key.clone()))
            .collect();
        idle.sort();
        let mut gone = Vec::new();
        for (_, key) in idle {
            if bytes >= evict.bytes {
                break;
            }
            if let Some(entry) = self.entries.remove(&key).and_then(Arc::into_inner) {
                bytes += entry.bytes;
                gone.push(entry);
            }
        }
        if !gone.is_empty() {
            self.save();
        }
        gone
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
        used_at: entry.used_at.load(Ordering::Relaxed),
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_and_what_is_held_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (mut index, _) = Index::open(dir.path(), 1000, &[]).unwrap();
        let mut add = |key: &str| {
            let path = dir.path().join(format!("file-{key}"));
            std::fs::write(&path, "0123456789").unwrap();
            index.add(key, path, 10, Validators { etag: key.into(), ..Validators::default() })
        };
        let held = add("held");
        ["a", "b", "c"].iter().for_each(|key| drop(add(key)));
        drop(index.find("a"));
        assert_eq!(index.usage(), Usage { bytes: 40, evictable_bytes: 30 });
        let ever = std::time::Duration::ZERO;
        let hour = std::time::Duration::from_secs(3600);
        assert_eq!(index.put_out(Evict { bytes: 100, unused_for: hour }).len(), 0, "all were used just now");
        let gone = index.put_out(Evict { bytes: 11, unused_for: ever });
        let names: Vec<_> = gone.iter().map(|entry| entry.validators.etag.clone()).collect();
        assert_eq!(names, ["b", "c"], "a was used since");
        gone.into_iter().for_each(|entry| entry.remove().unwrap());
        assert_eq!(index.put_out(Evict { bytes: 100, unused_for: ever }).len(), 1);
        assert!(held.path.exists() && !dir.path().join("file-b").exists());
        // What was put out is not known to a later life either.
        drop(index);
        let (index, _) = Index::open(dir.path(), 1000, &[]).unwrap();
        assert_eq!(index.usage().bytes, 10);
    }

    #[test]
    fn what_is_in_use_outlives_the_one_who_fetched_it() {
        let dir = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(dir.path(), 1000, &[]).unwrap();
        let passing = |name: &str| {
            std::fs::write(dir.path().join(name), "0123456789").unwrap();
            Entry::passing(dir.path().join(name), 10, index.left())
        };
        drop(passing("done-with"));
        assert!(!dir.path().join("done-with").exists());
        let left = [passing("mounted"), passing("forgotten")];
        index.left().store(true, Ordering::SeqCst);
        drop(left);
        let names = ["mounted".to_string(), "never-there".to_string()];
        let (_index, mut held) = Index::open(dir.path(), 1000, &names).unwrap();
        assert_eq!(held.keys().collect::<Vec<_>>(), ["mounted"]);
        assert!(dir.path().join("mounted").exists() && !dir.path().join("forgotten").exists());
        held.remove("mounted");
        assert!(!dir.path().join("mounted").exists(), "its last holder has let go");
    }
}
