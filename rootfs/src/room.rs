//! The account of the disk that store and roots share: what layers may still take of it.
//!
//! ```text
//! room = free - kept for everybody else - promised to roots and not taken yet
//! ```
//! A pull that does not fit takes unused layers away first, the longest unused before others. What it cannot know
//! ahead, how large layers are unpacked, is watched while they are.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::gc::Collect;
use crate::store::{Error, Inner, disk};
use crate::unpack::Limits;

/// One in so many bytes of the disk stays free for everybody else, but no more than this.
const KEPT_PART: u64 = 20;
const KEPT_BYTES_MAX: u64 = 2 << 30;
/// Layers are some three times as large unpacked as they are packed; for this much room is made ahead.
const UNPACKED_PART: u64 = 3;

pub struct Free {
    pub bytes: u64,
    /// Never taken.
    pub kept: u64,
}

/// Of the filesystem that `directory` is on.
pub fn free(directory: &Path) -> io::Result<Free> {
    let disk = rustix::fs::statvfs(directory)?;
    let kept = (disk.f_blocks * disk.f_frsize / KEPT_PART).min(KEPT_BYTES_MAX);
    Ok(Free { bytes: disk.f_bavail * disk.f_frsize, kept })
}

impl Inner {
    fn kept_free(&self) -> io::Result<u64> {
        let promised: u64 = self.areas.all().map(|area| area.promised()).sum::<io::Result<u64>>()?;
        Ok(free(&self.directory)?.kept + promised)
    }

    /// What layers may still take, in bytes.
    pub fn room(&self) -> io::Result<u64> {
        Ok(free(&self.directory)?.bytes.saturating_sub(self.kept_free()?))
    }

    /// What one layer is held to, at this moment.
    pub fn layer_limits(&self) -> io::Result<Limits> {
        let limits = self.config.limits;
        Ok(Limits { free_bytes_min: limits.free_bytes_min.max(self.kept_free()?), ..limits })
    }

    /// Makes room for a layer whose blob has so many bytes, or says that it cannot be had.
    pub async fn make_room(self: &Arc<Self>, layer: &str, blob_bytes: u64) -> Result<(), Error> {
        let inner = self.clone();
        let made = tokio::task::spawn_blocking(move || inner.make_room_blocking(blob_bytes)).await;
        let room =
            made.unwrap_or_else(|error| Err(disk("measure", &self.directory)(io::Error::other(error))))?;
        if room >= blob_bytes {
            return Ok(());
        }
        Err(Error::NoRoom { layer: layer.into(), path: self.directory.clone(), bytes: blob_bytes, room })
    }

    fn make_room_blocking(&self, blob_bytes: u64) -> Result<u64, Error> {
        let measure = || self.room().map_err(disk("measure", &self.directory));
        let (room, wanted) = (measure()?, blob_bytes.saturating_mul(UNPACKED_PART));
        if room >= wanted {
            return Ok(room);
        }
        let collect = Collect { bytes: wanted - room, unused_for: std::time::Duration::ZERO };
        let collected = self.collect(collect)?;
        if collected.layers > 0 {
            let (layers, bytes) = (collected.layers, collected.bytes);
            tracing::info!(layers, bytes, wanted, "removed unused layers to make room for a new one");
            self.chores.settle();
        }
        measure()
    }
}
