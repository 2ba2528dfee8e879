//! Roots: an image's layers under a directory of its own that one container may write, within a limit.
//!
//! ```text
//! <area>/<name>/   root.json, upper/, work/, files/: what one container takes of the disk; in an area of disks all
//!                  but the record in a filesystem below it
//! ```
//! Where the area is, and who enforces the limit, is for [`crate::quota`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layers::{Layers, Pins, ROOT};
use crate::overlay::{self, Lowers};
use crate::quota::{Areas, Limit, Quota, names};
use crate::sizes::Size;
use crate::stack::{Inherited, Layer, Lower, stack};
use crate::store::{Error, Image, Store, disk, stored, write_whole};

const HANDLE_BYTES_MAX: usize = 200;
const RECORD: &str = "root.json";
const FILES: &str = "files";
/// Itself, `hosts` and `resolv.conf`.
const FILES_COUNT: u64 = 3;
/// What a root may write however little its limit leaves, so that a container can be started in it at all.
const WRITABLE_BYTES_MIN: u64 = 256 << 10;
const WRITABLE_INODES_MIN: u64 = 16;

/// How much a root may take. 0: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimit {
    pub bytes: u64,
    pub inodes: u64,
    pub scope: DiskScope,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskScope {
    /// The image counts.
    #[default]
    Total,
    /// Only what the container writes counts.
    Exclusive,
}

impl DiskLimit {
    /// What remains for the container to write on an image of a size.
    fn on(self, image: &Image, size: Size, counts_inodes: bool) -> Result<Limit, Error> {
        let name = &image.name;
        let (bytes, inodes) = match self.scope {
            DiskScope::Exclusive => (self.bytes, self.inodes),
            DiskScope::Total => (
                remaining(self.bytes, size.bytes).ok_or_else(|| Error::ImageExceedsLimit {
                    image: name.clone(),
                    bytes: size.bytes,
                    limit: self.bytes,
                })?,
                remaining(self.inodes, if counts_inodes { size.entries } else { 0 }).ok_or_else(|| {
                    Error::ImageExceedsInodes {
                        image: name.clone(),
                        inodes: size.entries,
                        limit: self.inodes,
                    }
                })?,
            ),
        };
        Ok(Limit {
            bytes: if self.bytes == 0 { 0 } else { bytes.max(WRITABLE_BYTES_MIN) },
            inodes: if self.inodes == 0 { 0 } else { inodes.max(WRITABLE_INODES_MIN) },
            directories: image.inherited.len() as u64,
        })
    }
}

/// `None`: it exceeds the limit already.
fn remaining(limit: u64, taken: u64) -> Option<u64> {
    if limit == 0 { Some(0) } else { limit.checked_sub(taken) }
}

/// The host ids of a container's user and group 0; 0 and 0 without a user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseIds {
    pub uid: u32,
    pub gid: u32,
}

/// A root ready to be put somewhere with `move_mount`; gone when it is dropped before.
#[derive(Debug)]
pub struct RootMount {
    pub fd: OwnedFd,
    /// What the container writes lands here. A path for this process: it may lie in a mount that no other reaches.
    pub upper: PathBuf,
    /// Of the image.
    pub image_bytes: u64,
}

/// What a root takes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub exclusive_bytes: u64,
    /// 0 where nobody counts them.
    pub exclusive_inodes: u64,
    /// With the image.
    pub total_bytes: u64,
    pub total_inodes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RootRecord {
    handle: String,
    layers: Vec<Digest>,
    image_bytes: u64,
    image_inodes: u64,
}

#[derive(Debug)]
pub(crate) struct Root {
    record: RootRecord,
    area: Arc<dyn Quota>,
    _pins: Pins,
}

pub(crate) type Roots = BTreeMap<String, Root>;

impl Store {
    /// Stacks an image's layers under a new upper directory, which belongs to `base`. With `user_namespace` the layers'
    /// ids are mapped into it. Blocking, but short: what it takes does not depend on the image's size.
    pub fn mount(
        &self,
        handle: &str,
        image: &Image,
        user_namespace: Option<BorrowedFd<'_>>,
        base: BaseIds,
        limit: DiskLimit,
    ) -> Result<RootMount, Error> {
        let size = self.size(image, limit)?;
        let record = RootRecord {
            handle: handle.into(),
            layers: stored(&image.layers),
            image_bytes: size.bytes,
            image_inodes: size.entries,
        };
        let (area, within) = self.place(&record, image, size, limit)?;
        let inside = area.inside(handle);
        let prepared = match image.inherited.len() {
            0 => Ok(()),
            inherited => area.make_room_for(handle, inherited as u64).map_err(disk("make room in", &inside)),
        };
        let mounted = prepared
            .and_then(|()| self.mount_at(&inside, handle, image, user_namespace, base))
            .and_then(|fd| {
                let mounted = RootMount { fd, upper: inside.join(overlay::UPPER), image_bytes: size.bytes };
                // Last, so that what we write ourselves cannot fail for it.
                area.limit(handle, within).map_err(disk("limit", &inside))?;
                Ok(mounted)
            });
        if mounted.is_err()
            && let Err(error) = self.unmount(handle)
        {
            tracing::warn!(handle, %error, "cannot remove what a failed mount left");
        }
        mounted
    }

    /// Of the whole image. Directories that nobody has measured are when that matters, which takes a walk the first time.
    fn size(&self, image: &Image, limit: DiskLimit) -> Result<Size, Error> {
        let counts = limit.scope == DiskScope::Total && (limit.bytes > 0 || limit.inodes > 0);
        let mut size = Size::default();
        for layer in &image.layers {
            let of_layer = match &layer.lower {
                Lower::Stored(_) => Size { bytes: layer.bytes, entries: layer.entries },
                Lower::Directory(path) if counts => {
                    self.inner.sizes.measure(path).map_err(disk("measure", path))?
                }
                Lower::Directory(path) => self.inner.sizes.known(path).unwrap_or_default(),
            };
            size.bytes += of_layer.bytes;
            size.entries += of_layer.entries;
        }
        Ok(size)
    }

    /// Enters a root where its limits can be held, as far as they can be held anywhere.
    fn place(
        &self,
        record: &RootRecord,
        image: &Image,
        size: Size,
        limit: DiskLimit,
    ) -> Result<(Arc<dyn Quota>, Limit), Error> {
        let Areas { chosen, .. } = &*self.inner.areas;
        let handle = &record.handle;
        if let Some(counting) = self.inner.areas.counting(limit.inodes) {
            let within = limit.on(image, size, true)?;
            match self.reserve_with_room(counting, record, within) {
                Ok(()) => return Ok((counting.clone(), within)),
                // No loop device, say. With a limit of bytes at least, others are safe from it.
                Err(Error::Disk { source, .. }) if !is_full(&source) && chosen.enforces() => {
                    tracing::warn!(handle, error = %source, "disk.inode-limit-cannot-be-held");
                }
                Err(error) => return Err(error),
            }
        }
        let counts_inodes = chosen.counts_inodes();
        if limit.inodes > 0 && !counts_inodes {
            tracing::info!(handle, inodes = limit.inodes, "disk.inode-limit-not-held");
        }
        let within = limit.on(image, size, counts_inodes)?;
        self.reserve_with_room(chosen, record, within)?;
        Ok((chosen.clone(), within))
    }

    /// A second time, when what others left was still in the way.
    fn reserve_with_room(
        &self,
        area: &Arc<dyn Quota>,
        record: &RootRecord,
        limit: Limit,
    ) -> Result<(), Error> {
        match self.reserve(area, record, limit) {
            Err(Error::Disk { source, .. }) if is_full(&source) => {
                area.reclaim();
                self.reserve(area, record, limit)
            }
            reserved => reserved,
        }
    }

    /// Enters a root under its handle: from here on [`Store::unmount`] undoes all.
    fn reserve(&self, area: &Arc<dyn Quota>, record: &RootRecord, limit: Limit) -> Result<(), Error> {
        let handle = &record.handle;
        check_handle(handle)?;
        let path = area.directory().join(handle);
        // The disk may be slow, and all others are not to wait for it: the name is taken, no lock.
        let name = self.take_name(handle)?;
        let pins = self.inner.layers.pin(record.layers.clone());
        area.make(handle, limit).map_err(disk("make", &path))?;
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        if let Err(error) = write_whole(&path.join(RECORD), &bytes) {
            // Not entered, so nobody else would.
            if let Err(error) = area.discard(handle) {
                tracing::warn!(handle, %error, "cannot remove a root that could not be made");
            }
            return Err(disk("write", &path)(error));
        }
        let root = Root { record: record.clone(), area: area.clone(), _pins: pins };
        self.roots().insert(handle.clone(), root);
        drop(name);
        Ok(())
    }

    /// Nobody else makes a root of this name until the answer is dropped.
    fn take_name<'a>(&'a self, handle: &'a str) -> Result<TakenName<'a>, Error> {
        let roots = self.roots();
        if roots.contains_key(handle) || !self.making().insert(handle.into()) {
            return Err(Error::HandleTaken { handle: handle.into() });
        }
        Ok(TakenName { store: self, handle })
    }

    fn making(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.inner.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mount_at(
        &self,
        path: &Path,
        handle: &str,
        image: &Image,
        user_namespace: Option<BorrowedFd<'_>>,
        base: BaseIds,
    ) -> Result<OwnedFd, Error> {
        let (upper, work) = (path.join(overlay::UPPER), path.join(overlay::WORK));
        for directory in [&upper, &work] {
            // Made ahead with the rest, or not.
            fs::create_dir_all(directory).map_err(disk("make", directory))?;
        }
        let overlays = self.inner.overlays.as_ref().map_err(Clone::clone)?;
        let lowers = self.lowers(&image.layers, user_namespace)?;
        dress(&upper, lowers.topmost(), &image.inherited, base).map_err(disk("prepare", &upper))?;
        let (fd, spent) = overlays.mount(handle, lowers, path)?;
        self.inner.chores.let_go(spent);
        Ok(fd)
    }

    /// Never empty.
    fn lowers<'a>(
        &self,
        layers: &[Layer],
        user_namespace: Option<BorrowedFd<'a>>,
    ) -> Result<Lowers<'a>, Error> {
        let mut lowers = Lowers::new(user_namespace);
        for lower in stack(layers) {
            match lower {
                Lower::Stored(id) => {
                    lowers.add(self.inner.layers.directory(), &Path::new(id.hex()).join(ROOT))?
                }
                Lower::Directory(path) => lowers.add(path, Path::new(""))?,
            }
        }
        if lowers.is_empty() {
            // An image without layers: the overlay wants one nevertheless.
            let empty = self.inner.directory.join("empty");
            fs::create_dir_all(&empty).map_err(disk("make", &empty))?;
            lowers.add(&empty, Path::new(""))?;
        }
        Ok(lowers)
    }

    /// Removes what a root has written. The mount itself goes with its last user. Safe to call twice, and for a root
    /// that never came to be. The files are removed behind the answer.
    pub fn unmount(&self, handle: &str) -> Result<(), Error> {
        check_handle(handle)?;
        // In every area: it may have been made by an earlier start. The name is free only once all is gone.
        for area in self.inner.areas.all() {
            let path = area.directory().join(handle);
            area.discard(handle).map_err(disk("remove", &path))?;
        }
        self.roots().remove(handle);
        Ok(())
    }

    /// Removes every root but those of `live` handles; the answer names the removed ones, or is the first failure when all
    /// were tried.
    pub fn recover(&self, live: &BTreeSet<String>) -> Result<Vec<String>, Error> {
        let known: Vec<String> = self.roots().keys().cloned().collect();
        let stray = known.into_iter().filter(|handle| !live.contains(handle));
        let (mut removed, mut outcome) = (Vec::new(), Ok(()));
        for handle in stray {
            match self.unmount(&handle) {
                Ok(()) => removed.push(handle),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| removed)
    }

    pub fn handles(&self) -> Vec<String> {
        self.roots().keys().cloned().collect()
    }

    /// What a root has written. Blocking; short where the kernel enforces limits, a walk through all files where not.
    pub fn usage(&self, handle: &str) -> Result<DiskUsage, Error> {
        let unknown = || Error::UnknownHandle { handle: handle.into() };
        let image = |root: &Root| (root.record.image_bytes, root.record.image_inodes);
        let known = self.roots().get(handle).map(|root| (image(root), root.area.clone()));
        let ((image_bytes, image_inodes), area) = known.ok_or_else(unknown)?;
        let written = area.written(handle).map_err(disk("measure", &area.directory().join(handle)))?;
        Ok(DiskUsage {
            exclusive_bytes: written.bytes,
            exclusive_inodes: written.inodes,
            total_bytes: written.bytes + image_bytes,
            total_inodes: written.inodes + image_inodes,
        })
    }

    /// A directory for files that are shown to a container beside its image, such as `/etc/hosts`: what it writes to
    /// them counts for its limit, and they go with its root. A path for this process, as [`RootMount::upper`].
    pub fn files(&self, handle: &str) -> Result<PathBuf, Error> {
        let unknown = || Error::UnknownHandle { handle: handle.into() };
        let area = self.roots().get(handle).map(|root| root.area.clone()).ok_or_else(unknown)?;
        let path = area.inside(handle).join(FILES);
        if !path.try_exists().map_err(disk("look for", &path))? {
            area.make_room_for(handle, FILES_COUNT).map_err(disk("make room for", &path))?;
        }
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(disk("make", &path)(error)),
            _ => Ok(path),
        }
    }

    /// Whether the kernel stops the write that exceeds a root's limit.
    pub fn enforces_limits(&self) -> bool {
        self.inner.areas.chosen.enforces()
    }

    /// How many accounts the filesystem of roots keeps; for those who look for what is left over.
    pub fn quota_groups(&self) -> Result<usize, Error> {
        let area = &self.inner.areas.chosen;
        area.groups().map_err(disk("read the quota groups of", area.directory()))
    }

    pub(crate) fn roots(&self) -> MutexGuard<'_, Roots> {
        self.inner.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct TakenName<'a> {
    store: &'a Store,
    handle: &'a str,
}

impl Drop for TakenName<'_> {
    fn drop(&mut self) {
        self.store.making().remove(self.handle);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull)
}

/// A handle is a directory's name.
fn check_handle(handle: &str) -> Result<(), Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    let valid = !handle.is_empty()
        && handle.len() <= HANDLE_BYTES_MAX
        && !handle.starts_with('.')
        && handle.bytes().all(plain);
    match valid {
        true => Ok(()),
        false => Err(Error::InvalidHandle { handle: handle.chars().take(100).collect() }),
    }
}

/// Gives the upper directory the looks of the root below it, and makes the directories that come before all layers.
fn dress(
    upper: &Path,
    topmost: Option<BorrowedFd<'_>>,
    inherited: &[Inherited],
    base: BaseIds,
) -> io::Result<()> {
    let topmost = topmost.ok_or(io::ErrorKind::NotFound)?;
    let root = rustix::fs::statat(topmost, "", AtFlags::EMPTY_PATH)?;
    // Seen through the view, its owner is the container's already.
    let owner = Some(rustix::fs::Uid::from_raw(root.st_uid));
    let group = Some(rustix::fs::Gid::from_raw(root.st_gid));
    rustix::fs::chown(upper, owner, group)?;
    fs::set_permissions(upper, fs::Permissions::from_mode(root.st_mode & 0o7777))?;
    for directory in inherited {
        let path = upper.join(&directory.path);
        fs::create_dir(&path)?;
        rustix::fs::chownat(
            CWD,
            &path,
            Some(rustix::fs::Uid::from_raw(base.uid.saturating_add(directory.uid))),
            Some(rustix::fs::Gid::from_raw(base.gid.saturating_add(directory.gid))),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(directory.mode))?;
    }
    // Last, for what was made inside changed them; those inside first.
    for directory in inherited.iter().rev() {
        if let Some((tv_sec, tv_nsec)) = directory.modified {
            let modified = Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: modified, last_modification: modified };
            rustix::fs::utimensat(CWD, upper.join(&directory.path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

/// The roots that an earlier process left; what was killed before it had a record is removed.
pub(crate) fn read(areas: &Areas, layers: &Arc<Layers>) -> Result<Roots, Error> {
    let mut roots = BTreeMap::new();
    for area in areas.all() {
        for name in names(area.as_ref())? {
            let path = area.directory().join(&name);
            match read_record(&path, &area.inside(&name)).map_err(disk("read", &path.join(RECORD)))? {
                Some(record) => {
                    let pins = layers.pin(record.layers.clone());
                    let root = Root { record, area: area.clone(), _pins: pins };
                    roots.insert(root.record.handle.clone(), root);
                }
                None => area.discard(&name).map_err(disk("remove", &path))?,
            }
        }
    }
    Ok(roots)
}

/// `None`: it was killed before it had one, so that nothing was mounted from it. Of a root that a container may live on
/// an unreadable record is an error: to take it for half made would be to remove what the container has written.
fn read_record(root: &Path, inside: &Path) -> io::Result<Option<RootRecord>> {
    let bytes = match fs::read(root.join(RECORD)) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // What a power cut leaves of a record; no container outlives one.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(_) if !inside.join(overlay::UPPER).try_exists()? => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::quota::{Backend, Written};

    /// A disk that stalls while it makes the root `slow`, and refuses to make `broken`.
    #[derive(Debug)]
    struct Disk {
        directory: PathBuf,
        stalled: Barrier,
        goes_on: Barrier,
    }

    impl Quota for Disk {
        fn directory(&self) -> &Path {
            &self.directory
        }

        fn make(&self, name: &str, _: Limit) -> io::Result<()> {
            match name {
                "slow" => {
                    self.stalled.wait();
                    self.goes_on.wait();
                }
                "broken" => return Err(io::ErrorKind::StorageFull.into()),
                _ => {}
            }
            fs::create_dir(self.directory.join(name))
        }

        fn limit(&self, _: &str, _: Limit) -> io::Result<()> {
            Ok(())
        }

        fn written(&self, _: &str) -> io::Result<Written> {
            Ok(Written::default())
        }

        fn discard(&self, name: &str) -> io::Result<()> {
            fs::remove_dir_all(self.directory.join(name))
        }

        fn enforces(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_stalled_disk_holds_up_only_the_root_that_it_makes() {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = crate::store::Config::default();
        config.quota.backend = Backend::Plain;
        let mut store = Store::open(&scratch.path().join("store"), config).unwrap();
        let directory = scratch.path().join("disk");
        fs::create_dir(&directory).unwrap();
        let disk = Arc::new(Disk { directory, stalled: Barrier::new(2), goes_on: Barrier::new(2) });
        let areas = Areas { chosen: disk.clone(), counting: None, earlier: Vec::new() };
        Arc::get_mut(&mut store.inner).unwrap().areas = Arc::new(areas);
        let reserve = |handle: &str| {
            let record =
                RootRecord { handle: handle.into(), layers: Vec::new(), image_bytes: 5, image_inodes: 0 };
            let area = store.inner.areas.chosen.clone();
            store.reserve(&area, &record, Limit::default()).map_err(|error| error.to_string())
        };
        std::thread::scope(|threads| {
            let slow = threads.spawn(|| reserve("slow"));
            disk.stalled.wait();
            reserve("other").unwrap();
            assert_eq!(store.usage("other").unwrap().total_bytes, 5);
            assert_eq!(reserve("slow").unwrap_err(), "a root for 'slow' exists already");
            assert_eq!(store.handles(), ["other"], "what is half made is not there");
            disk.goes_on.wait();
            slow.join().unwrap().unwrap();
        });
        assert_eq!(store.handles(), ["other", "slow"]);
        assert_eq!(reserve("slow").unwrap_err(), "a root for 'slow' exists already");
        for _ in 0..2 {
            let refused = reserve("broken").unwrap_err();
            assert!(refused.starts_with("cannot make "), "its name is free again: {refused}");
        }
    }
}
