//! OCI layout directories: what a registry would answer, read from files.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::manifest::{Descriptor, MANIFEST_BYTES_MAX};

const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no image layout in {}: {source}", path.display())]
    NoLayout { path: PathBuf, source: std::io::Error },
    #[error("the image layout in {} has no valid index.json: {reason}", path.display())]
    BadIndex { path: PathBuf, reason: String },
    #[error("the image layout in {} has no image '{tag}', only: {}", path.display(), tags.join(", "))]
    NoSuchTag { path: PathBuf, tag: String, tags: Vec<String> },
    #[error("the image layout in {} holds {found} images: name one, as in oci://{}:TAG", path.display(), path.display())]
    Ambiguous { path: PathBuf, found: usize },
    #[error("cannot read blob {digest} of the image layout in {}: {source}", path.display())]
    Blob { path: PathBuf, digest: Digest, source: std::io::Error },
    #[error("blob {digest} of the image layout in {} has the digest {actual}", path.display())]
    WrongDigest { path: PathBuf, digest: Digest, actual: Digest },
}

#[derive(Debug, Clone)]
pub struct Layout {
    path: PathBuf,
}

#[derive(Deserialize)]
struct RawIndex {
    manifests: Vec<Descriptor>,
}

impl Layout {
    pub fn new(path: &Path) -> Layout {
        Layout { path: path.into() }
    }

    /// The manifest or index that `tag` names, or the only one there is.
    pub fn find(&self, tag: Option<&str>) -> Result<Descriptor, Error> {
        let path = self.path.clone();
        let mut bytes = Vec::new();
        File::open(self.path.join("index.json"))
            .and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes))
            .map_err(|source| Error::NoLayout { path: path.clone(), source })?;
        let index: RawIndex = serde_json::from_slice(&bytes)
            .map_err(|error| Error::BadIndex { path: path.clone(), reason: error.to_string() })?;
        let name = |entry: &Descriptor| entry.annotations.get(REFERENCE_NAME).cloned();
        match tag {
            Some(tag) => {
                let tags: Vec<String> = index.manifests.iter().filter_map(name).take(20).collect();
                let found = index.manifests.into_iter().find(|entry| name(entry).as_deref() == Some(tag));
                found.ok_or_else(|| Error::NoSuchTag { path, tag: tag.into(), tags })
            }
            None => match <[Descriptor; 1]>::try_from(index.manifests) {
                Ok([only]) => Ok(only),
                Err(all) => Err(Error::Ambiguous { path, found: all.len() }),
            },
        }
    }

    /// A small blob, whole and verified.
    pub fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let source = |source| Error::Blob { path: self.path.clone(), digest: digest.clone(), source };
        self.open(digest)?.take(limit).read_to_end(&mut bytes).map_err(source)?;
        let actual = Digest::of(&bytes);
        match actual == *digest {
            true => Ok(bytes),
            false => Err(Error::WrongDigest { path: self.path.clone(), digest: digest.clone(), actual }),
        }
    }

    /// A blob to be read and verified by the caller.
    pub fn open(&self, digest: &Digest) -> Result<File, Error> {
        File::open(self.path.join("blobs/sha256").join(digest.hex())).map_err(|source| Error::Blob {
            path: self.path.clone(),
            digest: digest.clone(),
            source,
        })
    }
}
