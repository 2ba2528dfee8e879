//! Takes layers away that nothing needs, the longest unused first: when somebody asks for it, and when a pull needs
//! the room.

use std::time::{Duration, SystemTime};

use crate::store::{Error, Inner, Store, disk};

/// How much to take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collect {
    /// Stop once this much file content is freed; `u64::MAX`: all that may go.
    pub bytes: u64,
    /// Layers used more recently stay.
    pub unused_for: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub layers: usize,
    pub bytes: u64,
}

impl Store {
    /// Removes unused layers, and forgets the images that had them. Never takes what a root or a pull needs, and runs
    /// beside both. Blocking.
    pub fn collect(&self, collect: Collect) -> Result<Collected, Error> {
        self.inner.collect(collect)
    }
}

impl Inner {
    pub fn collect(&self, collect: Collect) -> Result<Collected, Error> {
        let layers = &self.layers;
        let failed = || disk("collect layers in", layers.directory());
        let mut collected = Collected::default();
        let now = SystemTime::now();
        for (used, layer) in layers.by_last_use().map_err(failed())? {
            let unused = now.duration_since(used).unwrap_or_default();
            if collected.bytes >= collect.bytes || unused < collect.unused_for {
                break;
            }
            if let Some(trash) = layers.withdraw(&layer.id).map_err(failed())? {
                self.chores.remove(trash);
                collected.layers += 1;
                collected.bytes += layer.bytes;
            }
        }
        if collected.layers > 0 {
            self.forget_images()?;
        }
        Ok(collected)
    }

    /// Records of images that lost a layer say nothing any more.
    fn forget_images(&self) -> Result<(), Error> {
        let path = self.directory.join("images");
        for entry in std::fs::read_dir(&path).map_err(disk("read", &path))? {
            let path = entry.map_err(disk("read", &path))?.path();
            let digest = path.file_stem().and_then(|stem| stem.to_str());
            let Some(digest) = digest.and_then(|hex| crate::digest::Digest::from_hex(hex).ok()) else {
                continue;
            };
            if self.known(&digest, "").is_none() {
                // Pulled again just now, it is written again; gone already, it is gone.
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(())
    }
}
