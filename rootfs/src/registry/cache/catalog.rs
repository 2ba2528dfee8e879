//! What the cache knows of repositories: which manifests belong to each, and what its tags stand for.
//!
//! ```text
//! <dir>/repositories/<name, '/' as '+'>/manifests/<hex>    its media type; modified when it was last asked for
//! <dir>/repositories/<name, '/' as '+'>/pinned/<hex>       empty: an image was resolved to it
//! <dir>/repositories/<name, '/' as '+'>/tags/<tag>         a [`Tag`]
//! ```
//! The manifests themselves are blobs. A manifest is handed out only in a repository it was seen in.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

#[derive(Debug)]
pub struct Catalog {
    directory: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    pub digest: Digest,
    /// When its registry last said so; milliseconds since the epoch.
    pub checked_ms: u64,
}

/// A manifest of a repository, as whoever gives some up must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub repository: String,
    pub digest: Digest,
    pub media_type: String,
    pub used: SystemTime,
    /// Instances rely on it.
    pub pinned: bool,
}

impl Catalog {
    pub fn open(directory: &Path) -> io::Result<Catalog> {
        let directory = directory.join("repositories");
        std::fs::create_dir_all(&directory)?;
        Ok(Catalog { directory })
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.directory.join(name.replace('/', "+"))
    }

    /// The media type of a manifest of this repository.
    pub async fn manifest(&self, name: &str, digest: &Digest) -> Option<String> {
        tokio::fs::read_to_string(self.manifest_path(name, digest)).await.ok()
    }

    fn manifest_path(&self, name: &str, digest: &Digest) -> PathBuf {
        self.repository(name).join("manifests").join(digest.hex())
    }

    /// Marks a manifest as used now.
    pub fn touch(&self, name: &str, digest: &Digest) {
        crate::blobs::touch(&self.manifest_path(name, digest));
    }

    /// Marks a manifest as one that instances rely on from now on.
    pub async fn pin(&self, name: &str, digest: &Digest) -> io::Result<()> {
        self.touch(name, digest);
        write(&self.repository(name).join("pinned"), digest.hex(), b"").await
    }

    /// Every manifest of every repository. Blocking.
    pub fn all(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for repository in std::fs::read_dir(&self.directory)? {
            let repository = repository?;
            let path = repository.path();
            let Some(name) = repository.file_name().to_str().map(|name| name.replace('+', "/")) else {
                continue;
            };
            let Ok(manifests) = std::fs::read_dir(path.join("manifests")) else { continue };
            for manifest in manifests {
                let manifest = manifest?.path();
                let Some(digest) = digest_of(manifest.file_name()) else { continue };
                // Removed just now, it is none any more.
                let Ok(media_type) = std::fs::read_to_string(&manifest) else { continue };
                let used = std::fs::metadata(&manifest).and_then(|metadata| metadata.modified());
                let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
                let pinned = path.join("pinned").join(digest.hex()).exists();
                entries.push(Entry { repository: name.clone(), digest, media_type, used, pinned });
            }
        }
        Ok(entries)
    }

    /// Forgets a manifest and the tags that stand for it. Fine when it is not there. Blocking.
    pub fn remove_manifest(&self, name: &str, digest: &Digest) -> io::Result<()> {
        let repository = self.repository(name);
        crate::blobs::remove(&self.manifest_path(name, digest))?;
        crate::blobs::remove(&repository.join("pinned").join(digest.hex()))?;
        for tag in std::fs::read_dir(repository.join("tags")).into_iter().flatten() {
            let path = tag?.path();
            let bytes = std::fs::read(&path).unwrap_or_default();
            if serde_json::from_slice::<Tag>(&bytes).is_ok_and(|tag| tag.digest == *digest) {
                crate::blobs::remove(&path)?;
            }
        }
        Ok(())
    }

    pub async fn add_manifest(&self, name: &str, digest: &Digest, media_type: &str) -> io::Result<()> {
        write(&self.repository(name).join("manifests"), digest.hex(), media_type.as_bytes()).await
    }

    pub async fn tag(&self, name: &str, tag: &str) -> Option<Tag> {
        let bytes = tokio::fs::read(self.repository(name).join("tags").join(tag)).await.ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub async fn set_tag(&self, name: &str, tag: &str, value: &Tag) -> io::Result<()> {
        write(&self.repository(name).join("tags"), tag, &serde_json::to_vec(value)?).await
    }

    /// A tag that its registry no longer has.
    pub async fn remove_tag(&self, name: &str, tag: &str) {
        let _ = tokio::fs::remove_file(self.repository(name).join("tags").join(tag)).await;
    }

    /// Sorted.
    pub async fn tags(&self, name: &str) -> Vec<String> {
        let mut tags = Vec::new();
        let Ok(mut entries) = tokio::fs::read_dir(self.repository(name).join("tags")).await else {
            return tags;
        };
        while let Ok(Some(entry)) = entries.next_entry().await {
            // Names being written begin with a dot, which no tag does.
            tags.extend(entry.file_name().into_string().ok().filter(|tag| !tag.starts_with('.')));
        }
        tags.sort();
        tags
    }
}

/// Names being written are none.
fn digest_of(name: Option<&OsStr>) -> Option<Digest> {
    Digest::from_hex(name?.to_str()?).ok()
}

async fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    tokio::fs::create_dir_all(directory).await?;
    let new = directory.join(format!(".new-{:016x}", rand::random::<u64>()));
    tokio::fs::write(&new, bytes).await?;
    tokio::fs::rename(new, directory.join(name)).await
}
