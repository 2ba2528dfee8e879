//! What the cache knows of repositories: which manifests belong to each, and what its tags stand for.
//!
//! ```text
//! <dir>/repositories/<name, '/' as '+'>/manifests/<hex>    its media type
//! <dir>/repositories/<name, '/' as '+'>/tags/<tag>         a [`Tag`]
//! ```
//! The manifests themselves are blobs. A manifest is handed out only in a repository it was seen in.

use std::io;
use std::path::{Path, PathBuf};

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
        tokio::fs::read_to_string(self.repository(name).join("manifests").join(digest.hex())).await.ok()
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

async fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    tokio::fs::create_dir_all(directory).await?;
    let new = directory.join(format!(".new-{:016x}", rand::random::<u64>()));
    tokio::fs::write(&new, bytes).await?;
    tokio::fs::rename(new, directory.join(name)).await
}
