//! What the cache takes of the disk, and giving it back: whole images, the longest unused first.
//!
//! ```text
//! blobs of no image  →  images pulled through  →  images pinned long ago  →  (never) images pushed here
//! ```
//! An image pulled through is at its registry still. A pinned one may be nowhere else any more, or not to be had without
//! the credentials that nobody kept, so it goes only when it was not asked for in a long time. A pushed one is here or
//! nowhere: it is for its owner to delete. What to give up is decided by [`plan`] from an [`Inventory`]; the rest reads
//! the one and carries out the other. When to, and how much, is for who keeps the account of the disk to say.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rootfs_ledger::{Tenant, Usage};

use super::Cache;
use super::catalog::Entry;
use super::route::{Origin, origin};
use crate::blobs::Lying;
use crate::digest::Digest;
use crate::manifest::Document;

/// What the cache takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUsage {
    pub blobs: usize,
    pub bytes: u64,
    /// What [`Cache::evict`] could free, were it asked for all.
    pub evictable_bytes: u64,
}

/// What was given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    pub images: usize,
    pub blobs: usize,
    pub bytes: u64,
}

/// How much to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evict {
    /// Stop once this much is freed; `u64::MAX`: all that may go.
    pub bytes: u64,
    /// What was used more recently stays. Less than some minutes takes from pulls that are under way: they still
    /// succeed where the registry does.
    pub unused_for: Duration,
}

/// Who pulls an image that is here asks for its layers within this time.
const UNUSED_FOR_MIN: Duration = Duration::from_secs(300);

impl Cache {
    /// Makes room for so many bytes, or says that there is none.
    pub(super) async fn make_room(self: &Arc<Self>, bytes: u64) -> io::Result<()> {
        let cache = self.clone();
        let made = tokio::task::spawn_blocking(move || cache.make_room_blocking(bytes)).await;
        made.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Once it is under way it is promised, see [`Tenant::promised`].
    fn make_room_blocking(&self, bytes: u64) -> io::Result<()> {
        let claim = self.ledger.claim("an image", bytes);
        claim.map(drop).map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error))
    }

    /// Of all blobs, from the filesystem's own figures. Blocking.
    pub fn usage(&self) -> io::Result<CacheUsage> {
        let inventory = self.inventory()?;
        let all = Evict { bytes: u64::MAX, unused_for: Duration::ZERO };
        let evictable = plan(&inventory, all, self.keep_pinned, SystemTime::now());
        Ok(CacheUsage {
            blobs: inventory.blobs.len(),
            bytes: inventory.blobs.values().map(|blob| blob.bytes).sum(),
            evictable_bytes: evictable.blobs.iter().map(|digest| inventory.blobs[digest].bytes).sum(),
        })
    }

    /// Gives up what is needed the least. Never takes from an image that was used since, and runs beside everything
    /// else. Blocking.
    pub fn evict(&self, evict: Evict) -> io::Result<Evicted> {
        let inventory = self.inventory()?;
        let now = SystemTime::now();
        let Plan { images, blobs } = plan(&inventory, evict, self.keep_pinned, now);
        let mut evicted = Evicted { images: images.len(), ..Evicted::default() };
        // Manifests first: a manifest without its blobs would promise what is not there.
        for image in images {
            self.catalog.remove_manifest(&image.repository, &image.digest)?;
        }
        for digest in blobs {
            // Used since we looked: somebody relies on it.
            let seen = inventory.blobs[&digest].used;
            if let Some(bytes) = self.blobs.remove_unless_used(&digest, seen)? {
                evicted.blobs += 1;
                evicted.bytes += bytes;
            }
        }
        Ok(evicted)
    }

    fn inventory(&self) -> io::Result<Inventory> {
        let blobs = self.blobs.all()?;
        let images = self.catalog.all()?.into_iter().map(|entry| {
            // One that cannot be read names nothing, and goes with its age.
            let bytes = std::fs::read(self.blobs.path(&entry.digest)).unwrap_or_default();
            (named(&entry.media_type, &bytes), entry)
        });
        let images = images.map(|(named, entry)| Stored { named, entry }).collect();
        Ok(Inventory { blobs, images })
    }
}

impl Tenant for Cache {
    fn name(&self) -> &'static str {
        "registry cache"
    }

    fn usage(&self) -> io::Result<Usage> {
        let usage = Cache::usage(self)?;
        Ok(Usage { bytes: usage.bytes, evictable_bytes: usage.evictable_bytes })
    }

    fn promised(&self) -> io::Result<u64> {
        Ok(self.downloads.outstanding())
    }

    fn evict(&self, evict: rootfs_ledger::Evict) -> io::Result<rootfs_ledger::Evicted> {
        let unused_for = evict.unused_for.max(UNUSED_FOR_MIN);
        let evicted = Cache::evict(self, Evict { bytes: evict.bytes, unused_for })?;
        Ok(rootfs_ledger::Evicted { things: evicted.images as u64, bytes: evicted.bytes })
    }
}

/// The blobs that a manifest names; those of an index name their own.
fn named(media_type: &str, bytes: &[u8]) -> Vec<Digest> {
    match Document::parse(media_type, bytes) {
        Ok(Document::Manifest(manifest)) => {
            manifest.layers.into_iter().chain([manifest.config]).map(|blob| blob.digest).collect()
        }
        _ => Vec::new(),
    }
}

/// All that is here.
struct Inventory {
    blobs: HashMap<Digest, Lying>,
    images: Vec<Stored>,
}

struct Stored {
    entry: Entry,
    /// The blobs it names.
    named: Vec<Digest>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    images: Vec<Image>,
    blobs: Vec<Digest>,
}

#[derive(Debug, PartialEq, Eq)]
struct Image {
    repository: String,
    digest: Digest,
}

/// Images in the order in which they may go; `None`: not at all.
fn rank(entry: &Entry, unused: Duration, evict: Evict, keep_pinned: Duration) -> Option<u8> {
    match (origin(&entry.repository), entry.pinned) {
        (Origin::Ours, _) => None,
        (Origin::Upstream { .. }, false) => (unused >= evict.unused_for).then_some(0),
        (Origin::Upstream { .. }, true) => (unused >= evict.unused_for.max(keep_pinned)).then_some(1),
    }
}

fn plan(inventory: &Inventory, evict: Evict, keep_pinned: Duration, now: SystemTime) -> Plan {
    let unused = |used: SystemTime| now.duration_since(used).unwrap_or_default();
    let mut needed: HashMap<&Digest, usize> = HashMap::new();
    for image in &inventory.images {
        for digest in image.named.iter().chain([&image.entry.digest]) {
            *needed.entry(digest).or_default() += 1;
        }
    }
    let idle = |digest: &Digest| {
        inventory.blobs.get(digest).filter(|blob| unused(blob.used) >= evict.unused_for).map(|b| b.bytes)
    };
    let mut plan = Plan::default();
    let mut taken: HashSet<&Digest> = HashSet::new();
    let mut bytes = 0;
    let mut take = |plan: &mut Plan, digest, bytes: &mut u64| {
        if let Some(size) = idle(digest)
            && taken.insert(digest)
        {
            *bytes += size;
            plan.blobs.push(digest.clone());
        }
    };
    let orphans: BTreeMap<_, _> = inventory
        .blobs
        .iter()
        .filter(|(digest, _)| !needed.contains_key(digest))
        .map(|(digest, blob)| ((blob.used, digest), digest))
        .collect();
    for digest in orphans.into_values() {
        if bytes >= evict.bytes {
            return plan;
        }
        take(&mut plan, digest, &mut bytes);
    }
    let mut candidates: Vec<(u8, &Stored)> = inventory
        .images
        .iter()
        .filter_map(|image| Some((rank(&image.entry, unused(image.entry.used), evict, keep_pinned)?, image)))
        .collect();
    candidates.sort_by_key(|(rank, image)| (*rank, image.entry.used, &image.entry.digest));
    for (_, image) in candidates {
        if bytes >= evict.bytes {
            break;
        }
        let entry = &image.entry;
        plan.images.push(Image { repository: entry.repository.clone(), digest: entry.digest.clone() });
        for digest in image.named.iter().chain([&entry.digest]) {
            let left = needed.get_mut(digest).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                take(&mut plan, digest, &mut bytes);
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// `repository[!] hours: blob …` a line, `!` for pinned; each blob has 10 bytes, and so has each manifest.
    fn inventory(text: &str, now: SystemTime) -> Inventory {
        let mut inventory = Inventory { blobs: HashMap::new(), images: Vec::new() };
        let age = |hours: &str| now - Duration::from_secs(3600 * hours.parse::<u64>().unwrap());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (head, blobs) = line.split_once(':').unwrap();
            let (name, hours) = head.split_once(' ').unwrap();
            let used = age(hours);
            let named: Vec<Digest> = blobs.split_whitespace().map(|b| Digest::of(b.as_bytes())).collect();
            let digest = Digest::of(name.as_bytes());
            for blob in named.iter().chain((name != "-").then_some(&digest)) {
                let blob = inventory.blobs.entry(blob.clone()).or_insert(Lying { bytes: 10, used });
                blob.used = blob.used.max(used);
            }
            if name != "-" {
                let repository = name.trim_end_matches('!').to_string();
                let media_type = String::new();
                let entry = Entry { repository, digest, media_type, used, pinned: name.ends_with('!') };
                inventory.images.push(Stored { entry, named });
            }
        }
        inventory
    }

    /// The images given up, and how many blobs.
    fn check(text: &str, bytes: u64, unused_hours: u64) -> String {
        let now = SystemTime::now();
        let evict = Evict { bytes, unused_for: Duration::from_secs(3600 * unused_hours) };
        let plan = plan(&inventory(text, now), evict, 7 * DAY, now);
        let images: Vec<String> = plan.images.iter().map(|image| image.repository.clone()).collect();
        format!("{} {}", images.join(" "), plan.blobs.len())
    }

    #[test]
    fn the_longest_unused_image_goes_first_and_shared_layers_stay() {
        let two = "r.io/old 9: base a
                   r.io/new 2: base b";
        assert_eq!(check(two, 10, 0), "r.io/old 2");
        assert_eq!(check(two, 30, 0), "r.io/old r.io/new 5");
        assert_eq!(check(two, 0, 0), " 0");
        assert_eq!(check(two, u64::MAX, 3), "r.io/old 2");
    }

    #[test]
    fn what_no_image_names_goes_before_all() {
        let text = "- 5: lost
                    r.io/a 9: x";
        assert_eq!(check(text, 10, 0), " 1");
        // A push that is under way: its blobs are here, its manifest is not yet.
        assert_eq!(check(text, 10, 6), "r.io/a 2");
    }

    #[test]
    fn pinned_images_stay_for_long_and_pushed_ones_for_ever() {
        let text = "team/app 900: a
                    r.io/pinned! 100: b
                    r.io/pulled 1: c";
        assert_eq!(check(text, u64::MAX, 0), "r.io/pulled 2");
        let older = text.replace("100:", "200:");
        assert_eq!(check(&older, u64::MAX, 0), "r.io/pulled r.io/pinned! 4".replace('!', ""));
    }
}
