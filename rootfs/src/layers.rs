//! The layers on disk: one directory each, named by its digest, complete or not there.
//!
//! ```text
//! tmp/layer-…/{root/, layer.json} ──rename──▶ layers/<hex>/{root/, layer.json} ──synced──▶ layers/<hex>/durable
//! ```
//! The rename is the moment a layer exists. A process killed before it leaves something in `tmp`, which the next start
//! removes. A *machine* that lost its power may have lost the content behind a rename, so layers that were not known
//! to be on the disk when the machine stopped are thrown away at the next start, too.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::tree;

const RECORD: &str = "layer.json";
const DURABLE: &str = "durable";
pub const ROOT: &str = "root";

/// What is known of a layer beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    pub id: Digest,
    /// Of file content, uncompressed.
    pub bytes: u64,
    pub entries: u64,
    /// Directories made only because something is in them, parents first.
    pub implied: Vec<String>,
    /// Directories in which there are whiteouts.
    #[serde(default)]
    pub with_whiteouts: Vec<String>,
    pub opaque: bool,
    /// Of the machine's run in which it was unpacked.
    pub boot: String,
}

#[derive(Debug)]
pub struct Layers {
    directory: PathBuf,
    scratch: PathBuf,
    /// How many images and roots need a layer right now.
    pins: Mutex<HashMap<Digest, usize>>,
    boot: String,
}

impl Layers {
    /// Opens the layers of `store` and removes what an earlier run left half done.
    pub fn open(store: &Path) -> io::Result<Layers> {
        let layers = Layers {
            directory: store.join("layers"),
            scratch: store.join("tmp"),
            pins: Mutex::default(),
            boot: boot_id(),
        };
        fs::create_dir_all(&layers.directory)?;
        tree::remove(&layers.scratch)?;
        fs::create_dir_all(&layers.scratch)?;
        for entry in fs::read_dir(&layers.directory)? {
            layers.check(&entry?.path())?;
        }
        Ok(layers)
    }

    fn check(&self, path: &Path) -> io::Result<()> {
        let sound = match read_record(path) {
            Ok(record) => record.boot == self.boot || path.join(DURABLE).exists(),
            Err(_) => false,
        };
        if !sound {
            tracing::warn!(layer = %path.display(), "removing a layer that may be incomplete");
            tree::remove(path)?;
        }
        Ok(())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, id: &Digest) -> PathBuf {
        self.directory.join(id.hex())
    }

    pub fn get(&self, id: &Digest) -> Option<LayerRecord> {
        read_record(&self.path(id)).ok()
    }

    /// Marks a layer as used now; by this [`Layers::by_last_use`] orders.
    pub fn touch(&self, id: &Digest) {
        let record = self.path(id).join(RECORD);
        let touched =
            fs::File::options().append(true).open(record).and_then(|f| f.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(layer = %id, %error, "cannot mark a layer as used");
        }
    }

    /// A new directory to unpack into; gone again unless it is [kept](Layers::keep).
    pub fn scratch(&self) -> io::Result<Scratch> {
        let path = self.scratch.join(format!("layer-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path)?;
        let scratch = Scratch { path };
        fs::create_dir(scratch.root())?;
        Ok(scratch)
    }

    /// Emptied at every start.
    pub fn scratch_directory(&self) -> &Path {
        &self.scratch
    }

    /// A place out of sight for what is to be removed.
    pub fn trash(&self) -> PathBuf {
        tree::trash_in(&self.scratch)
    }

    /// Makes what was unpacked visible as a layer, whole and at once.
    pub fn keep(&self, scratch: Scratch, mut record: LayerRecord) -> io::Result<LayerRecord> {
        record.boot = self.boot.clone();
        let mut file = fs::File::create(scratch.path.join(RECORD))?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        let path = self.path(&record.id);
        match fs::rename(&scratch.path, &path) {
            Ok(()) => std::mem::forget(scratch),
            // Unpacked twice, by a start of the store over the remains of a slow one: one is as good as the other.
            Err(_) if read_record(&path).is_ok() => {}
            Err(error) => return Err(error),
        }
        Ok(record)
    }

    /// Waits until the layers are on the disk, and notes it. Blocking, for as long as the disk needs.
    pub fn make_durable(&self, ids: &[Digest]) -> io::Result<()> {
        let pending: Vec<PathBuf> =
            ids.iter().map(|id| self.path(id).join(DURABLE)).filter(|path| !path.exists()).collect();
        if pending.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(fs::File::open(&self.directory)?)?;
        for path in pending {
            match fs::File::create(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps layers from being collected until the answer is dropped. They need not be there yet.
    pub fn pin(self: &Arc<Self>, ids: Vec<Digest>) -> Pins {
        let mut pins = self.lock();
        for id in &ids {
            *pins.entry(id.clone()).or_default() += 1;
        }
        Pins { layers: self.clone(), ids }
    }

    pub fn pinned(&self) -> HashSet<Digest> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.pins.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Every layer with its last use, the longest unused first.
    pub fn by_last_use(&self) -> io::Result<Vec<(SystemTime, LayerRecord)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let Ok(record) = read_record(&path) else { continue };
            let used = fs::metadata(path.join(RECORD)).and_then(|metadata| metadata.modified());
            all.push((used.unwrap_or(SystemTime::UNIX_EPOCH), record));
        }
        all.sort_by(|a, b| (a.0, &a.1.id).cmp(&(b.0, &b.1.id)));
        Ok(all)
    }

    /// Takes a layer out of sight unless somebody needs it; the answer is what is left to remove.
    pub fn withdraw(&self, id: &Digest) -> io::Result<Option<PathBuf>> {
        let pins = self.lock();
        if pins.contains_key(id) {
            return Ok(None);
        }
        let trash = self.trash();
        match fs::rename(self.path(id), &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read_record(layer: &Path) -> io::Result<LayerRecord> {
    Ok(serde_json::from_slice(&fs::read(layer.join(RECORD))?)?)
}

/// Tells one run of the machine from the next. Without it nothing that is not marked durable is trusted.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// Layers that somebody needs.
#[derive(Debug)]
pub struct Pins {
    layers: Arc<Layers>,
    ids: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = self.layers.lock();
        for id in &self.ids {
            match pins.get_mut(id) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    pins.remove(id);
                }
            }
        }
    }
}

/// A layer being unpacked.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn root(&self) -> PathBuf {
        self.path.join(ROOT)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a half unpacked layer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> LayerRecord {
        LayerRecord {
            id: Digest::of(name.as_bytes()),
            bytes: 1,
            entries: 1,
            implied: Vec::new(),
            with_whiteouts: Vec::new(),
            opaque: false,
            boot: String::new(),
        }
    }

    #[test]
    fn only_whole_layers_survive_a_restart() {
        let store = tempfile::tempdir().unwrap();
        let layers = Layers::open(store.path()).unwrap();
        layers.keep(layers.scratch().unwrap(), record("kept")).unwrap();
        // What a killed process leaves: an unpacked directory that was never renamed.
        std::mem::forget(layers.scratch().unwrap());
        assert_eq!(fs::read_dir(store.path().join("tmp")).unwrap().count(), 1);
        let layers = Layers::open(store.path()).unwrap();
        assert_eq!(fs::read_dir(store.path().join("tmp")).unwrap().count(), 0);
        assert!(layers.get(&record("kept").id).is_some());
    }

    #[test]
    fn a_layer_that_was_not_on_the_disk_when_the_machine_stopped_is_not_used() {
        let store = tempfile::tempdir().unwrap();
        let mut layers = Layers::open(store.path()).unwrap();
        layers.boot = "an earlier run".into();
        for name in ["lost", "durable"] {
            layers.keep(layers.scratch().unwrap(), record(name)).unwrap();
        }
        layers.make_durable(&[record("durable").id]).unwrap();
        let layers = Layers::open(store.path()).unwrap();
        assert!(layers.get(&record("lost").id).is_none());
        assert!(layers.get(&record("durable").id).is_some());
    }

    #[test]
    fn a_layer_in_use_is_not_withdrawn() {
        let store = tempfile::tempdir().unwrap();
        let layers = Arc::new(Layers::open(store.path()).unwrap());
        let id = layers.keep(layers.scratch().unwrap(), record("a")).unwrap().id;
        let (one, two) = (layers.pin(vec![id.clone()]), layers.pin(vec![id.clone()]));
        drop(one);
        assert_eq!(layers.withdraw(&id).unwrap(), None);
        drop(two);
        assert!(layers.withdraw(&id).unwrap().is_some());
        assert!(layers.get(&id).is_none());
        assert_eq!(layers.withdraw(&id).unwrap(), None);
    }
}
