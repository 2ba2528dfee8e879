//! Takes layers away that nothing needs, the longest unused first: when somebody asks for it, and when the account of the
//! disk does.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rootfs_ledger::{Evict, Evicted, Tenant, Usage};

use crate::digest::Digest;
use crate::layers::Layers;
use crate::store::{Error, ImageRecord, Store, disk, stored};
use crate::tree;

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
    /// beside both. Blocking, until they are gone from the disk.
    pub fn collect(&self, collect: Collect) -> Result<Collected, Error> {
        let collector = &self.inner.collector;
        collector.collect(collect).map_err(disk("collect layers in", collector.layers.directory()))
    }

    /// Forgets an image, and removes those of its layers that nothing else needs: no root, no pull, no other image.
    /// False: it is not here. Blocking.
    pub fn remove_image(&self, digest: &Digest) -> Result<bool, Error> {
        let collector = &self.inner.collector;
        collector.remove_image(digest).map_err(disk("remove an image from", &collector.images))
    }
}

/// Layers as a tenant of the disk.
pub(crate) struct Collector {
    pub layers: Arc<Layers>,
    /// The directory of their records.
    pub images: PathBuf,
}

impl Collector {
    fn collect(&self, collect: Collect) -> io::Result<Collected> {
        let mut collected = Collected::default();
        let now = SystemTime::now();
        for (used, layer) in self.layers.by_last_use()? {
            let unused = now.duration_since(used).unwrap_or_default();
            if collected.bytes >= collect.bytes || unused < collect.unused_for {
                break;
            }
            if let Some(trash) = self.layers.withdraw(&layer.id)? {
                collected.layers += 1;
                collected.bytes += layer.bytes;
                tree::remove(&trash)?;
            }
        }
        if collected.layers > 0 {
            self.forget_images()?;
        }
        Ok(collected)
    }

    /// Records of images that lost a layer say nothing any more.
    fn forget_images(&self) -> io::Result<()> {
        for (path, record) in self.records()? {
            if !stored(&record.layers).iter().all(|id| self.layers.get(id).is_some()) {
                // Pulled again just now, it is written again; gone already, it is gone.
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(())
    }

    fn remove_image(&self, digest: &Digest) -> io::Result<bool> {
        let records = self.records()?;
        let (gone, others): (Vec<_>, Vec<_>) = records.into_iter().partition(|(path, record)| {
            record.digest == *digest || path.file_stem().is_some_and(|stem| stem == digest.hex())
        });
        for (path, _) in &gone {
            std::fs::remove_file(path)?;
        }
        let needed: Vec<Digest> = others.iter().flat_map(|(_, record)| stored(&record.layers)).collect();
        let unneeded = gone.iter().flat_map(|(_, record)| stored(&record.layers));
        for id in unneeded.filter(|id| !needed.contains(id)) {
            if let Some(trash) = self.layers.withdraw(&id)? {
                tree::remove(&trash)?;
            }
        }
        Ok(!gone.is_empty())
    }

    /// All that can be read; an image may have several, one for each digest it is known by.
    pub fn records(&self) -> io::Result<Vec<(PathBuf, ImageRecord)>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.images)? {
            let path = entry?.path();
            let read = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            records.extend(read.map(|record| (path, record)));
        }
        Ok(records)
    }
}

impl Tenant for Collector {
    fn name(&self) -> &'static str {
        "layers"
    }

    fn usage(&self) -> io::Result<Usage> {
        let in_use = self.layers.pinned();
        let mut usage = Usage::default();
        for (_, layer) in self.layers.by_last_use()? {
            usage.bytes += layer.bytes;
            usage.evictable_bytes += if in_use.contains(&layer.id) { 0 } else { layer.bytes };
        }
        Ok(usage)
    }

    fn evict(&self, evict: Evict) -> io::Result<Evicted> {
        let Collected { layers, bytes } =
            self.collect(Collect { bytes: evict.bytes, unused_for: evict.unused_for })?;
        Ok(Evicted { things: layers as u64, bytes })
    }
}
