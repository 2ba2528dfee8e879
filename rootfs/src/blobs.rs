//! Blobs on disk, named by their digest: what the registry cache keeps, compressed as it came.
//!
//! ```text
//! <dir>/tmp/blob-…  ──verified, rename──▶  <dir>/blobs/<hex>
//! ```
//! A blob is there whole and verified or not at all; its file is modified when it is used. Who may have it, and for how
//! long, is not decided here.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use crate::digest::{Digest, Hasher};
use crate::tree;

#[derive(Debug)]
pub struct Blobs {
    blobs: PathBuf,
    tmp: PathBuf,
    /// Held while a blob is marked as used or removed: never both.
    removing: Mutex<()>,
}

/// A blob as it lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lying {
    pub bytes: u64,
    pub used: SystemTime,
}

impl Blobs {
    /// Opens `directory` and removes what an earlier process left half written. Blocking.
    pub fn open(directory: &Path) -> io::Result<Blobs> {
        let blobs =
            Blobs { blobs: directory.join("blobs"), tmp: directory.join("tmp"), removing: Mutex::default() };
        std::fs::create_dir_all(&blobs.blobs)?;
        // Private images are in here.
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
        tree::remove(&blobs.tmp)?;
        std::fs::create_dir_all(&blobs.tmp)?;
        Ok(blobs)
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// The size of a blob that is here, in bytes.
    pub async fn size(&self, digest: &Digest) -> Option<u64> {
        tokio::fs::metadata(self.path(digest)).await.ok().map(|metadata| metadata.len())
    }

    /// The size of a blob that is here and, used now, stays for a while.
    pub fn used(&self, digest: &Digest) -> Option<u64> {
        let _removing = self.removing.lock().unwrap_or_else(|e| e.into_inner());
        let path = self.path(digest);
        let size = std::fs::metadata(&path).ok()?.len();
        touch(&path);
        Some(size)
    }

    /// Every blob. Blocking.
    pub fn all(&self) -> io::Result<HashMap<Digest, Lying>> {
        let mut all = HashMap::new();
        for entry in std::fs::read_dir(&self.blobs)? {
            let entry = entry?;
            let Some(digest) = entry.file_name().to_str().and_then(|hex| Digest::from_hex(hex).ok()) else {
                continue;
            };
            // Removed just now, it is none any more.
            if let Ok(metadata) = entry.metadata() {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                all.insert(digest, Lying { bytes: metadata.len(), used });
            }
        }
        Ok(all)
    }

    /// Removes a blob that was not used since `seen`; its size if it did. Who reads it goes on reading. Blocking.
    pub fn remove_unless_used(&self, digest: &Digest, seen: SystemTime) -> io::Result<Option<u64>> {
        let _removing = self.removing.lock().unwrap_or_else(|e| e.into_inner());
        let path = self.path(digest);
        let Ok(metadata) = std::fs::metadata(&path) else { return Ok(None) };
        if metadata.modified()? > seen {
            return Ok(None);
        }
        remove(&path)?;
        Ok(Some(metadata.len()))
    }

    pub async fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        tokio::fs::read(self.path(digest)).await
    }

    /// A blob to be written.
    pub async fn begin(&self) -> io::Result<Incoming> {
        let path = self.tmp.join(format!("blob-{:016x}", rand::random::<u64>()));
        let file = File::options().write(true).create_new(true).open(&path).await?;
        Ok(Incoming { file, hasher: Hasher::default(), path: Unfinished(path), broken: false })
    }

    /// Writes a small blob whole.
    pub async fn put(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        if self.size(&digest).await.is_none() {
            let mut incoming = self.begin().await?;
            incoming.write(bytes).await?;
            self.keep(incoming, &digest)
                .await?
                .map_err(|_| io::Error::other("written otherwise than hashed"))?;
        }
        Ok(digest)
    }

    /// Makes a written blob visible if it is the `expected` one; otherwise it is gone, and the answer is what it was.
    pub async fn keep(&self, incoming: Incoming, expected: &Digest) -> io::Result<Result<u64, Digest>> {
        incoming.check()?;
        let Incoming { mut file, hasher, path, .. } = incoming;
        file.flush().await?;
        let size = hasher.bytes();
        let actual = hasher.digest();
        if actual != *expected {
            return Ok(Err(actual));
        }
        // The cache must not hand out a blob that a power cut emptied.
        file.sync_data().await?;
        tokio::fs::rename(&path.0, self.path(expected)).await?;
        Ok(Ok(size))
    }
}

#[derive(Debug)]
pub struct Incoming {
    file: File,
    hasher: Hasher,
    path: Unfinished,
    /// A write failed: what is in the file is not what was hashed, and whoever goes on would not notice.
    broken: bool,
}

impl Incoming {
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.check()?;
        let written = self.file.write_all(bytes).await;
        self.broken = written.is_err();
        self.hasher.update(bytes);
        written
    }

    /// Waits until others can read what was written so far. Only then it is known to be written.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.check()?;
        let flushed = self.file.flush().await;
        self.broken = flushed.is_err();
        flushed
    }

    fn check(&self) -> io::Result<()> {
        if self.broken {
            Err(io::Error::other("an earlier piece of it could not be written"))
        } else {
            Ok(())
        }
    }

    /// It is good for nothing any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    pub fn path(&self) -> &Path {
        &self.path.0
    }
}

/// Marks a file as used now.
pub(crate) fn touch(path: &Path) {
    let touched = std::fs::File::options().append(true).open(path);
    if let Err(error) = touched.and_then(|file| file.set_modified(SystemTime::now()))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "cannot mark a file as used");
    }
}

/// Fine when it is not there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removed when it is dropped; renamed before, there is nothing to remove.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "cannot remove a half written blob");
            }
            _ => {}
        }
    }
}
