//! Blobs on disk, named by their digest: what the registry cache keeps, compressed as it came.
//!
//! ```text
//! <dir>/tmp/blob-…  ──verified, rename──▶  <dir>/blobs/<hex>
//! ```
//! A blob is there whole and verified or not at all. Who may have it, and for how long, is not decided here.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use crate::digest::{Digest, Hasher};
use crate::tree;

#[derive(Debug)]
pub struct Blobs {
    blobs: PathBuf,
    tmp: PathBuf,
}

impl Blobs {
    /// Opens `directory` and removes what an earlier process left half written. Blocking.
    pub fn open(directory: &Path) -> io::Result<Blobs> {
        let blobs = Blobs { blobs: directory.join("blobs"), tmp: directory.join("tmp") };
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

    pub async fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        tokio::fs::read(self.path(digest)).await
    }

    /// A blob to be written.
    pub async fn begin(&self) -> io::Result<Incoming> {
        let path = self.tmp.join(format!("blob-{:016x}", rand::random::<u64>()));
        let file = File::options().write(true).create_new(true).open(&path).await?;
        Ok(Incoming { file, hasher: Hasher::default(), path: Unfinished(path) })
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
        let Incoming { mut file, hasher, path } = incoming;
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
}

impl Incoming {
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Waits until others can read what was written so far.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.file.flush().await
    }

    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    pub fn path(&self) -> &Path {
        &self.path.0
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
