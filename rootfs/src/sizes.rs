//! How large the directories are that are used as layers where they lie. Nobody has unpacked them, so nobody has counted;
//! once walked through, a directory's size is remembered as long as it looks the same from outside.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::tree;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Of file content, as a layer's.
    pub bytes: u64,
    pub entries: u64,
}

/// Which directory it is, and when its own entries changed last.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug, Default)]
pub struct Sizes {
    known: Mutex<HashMap<PathBuf, (Stamp, Size)>>,
    /// One walk at a time: who waits for the same one finds it done.
    walking: Mutex<()>,
}

impl Sizes {
    /// Without a walk.
    pub fn known(&self, directory: &Path) -> Option<Size> {
        let stamp = stamp(directory).ok()?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(directory).filter(|(seen, _)| *seen == stamp).map(|(_, size)| *size)
    }

    /// Blocking, for a walk the first time.
    pub fn measure(&self, directory: &Path) -> io::Result<Size> {
        if let Some(size) = self.known(directory) {
            return Ok(size);
        }
        let _walking = self.walking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = self.known(directory) {
            return Ok(size);
        }
        let stamp = stamp(directory)?;
        let usage = tree::usage(directory)?;
        let size = Size { bytes: usage.content_bytes, entries: usage.inodes };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(directory.into(), (stamp, size));
        Ok(size)
    }

    /// On a thread of its own, so that it is known when somebody asks.
    pub fn measure_ahead(self: &Arc<Self>, directory: &Path) {
        if self.known(directory).is_none() {
            let (sizes, directory) = (self.clone(), directory.to_path_buf());
            std::thread::spawn(move || {
                if let Err(error) = sizes.measure(&directory) {
                    tracing::warn!(directory = %directory.display(), %error, "cannot tell how large a root filesystem is");
                }
            });
        }
    }
}

fn stamp(directory: &Path) -> io::Result<Stamp> {
    let metadata = std::fs::metadata(directory)?;
    Ok((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
