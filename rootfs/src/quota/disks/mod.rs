//! Each root a filesystem of its own, in a file: for limits that the filesystem all roots share cannot hold. An ext4 has as
//! many inodes and blocks as it was made with, so the kernel refuses what is beyond (ENOSPC), whoever asks.
//!
//! ```text
//! <store>/disks-<run of the machine>/
//!   templates/disk-<bytes>-<inodes>      one for each shape, see `template`, which in some has a third number
//!   roots/<name>/                        root.json, disk-<bytes>-<inodes> and, mounted from it,
//!                inside/                 upper/, work/, files/, and kept/ that takes what is beyond the limits
//!   ready/<name>/                        the same, made ahead, see `pool`
//!   trash/<name>/                        being removed
//! ```
//! Mounts are made in a clone of that directory that hangs in no directory tree: the host's mount table shows none of them,
//! and they end with this process. A filesystem and its loop device stay as long as a container lives from them; the
//! next start finds them by their files and mounts them again. The file is removed at once when its root is, and gives its
//! room back when the last user is gone. Nothing here outlives the machine's run.

mod pool;
mod template;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garden_sys::loop_device::{self, LoopDevice};
use garden_sys::{mount, trim};
use rootfs_ledger::Space;

use super::image::{Wanted, at};
use super::{Limit, Quota, Unavailable, Written};
use crate::chores::Chores;
use crate::{overlay, tree};
use pool::Pool;
pub use template::INODES_MAX;
use template::{BLOCK_BYTES, Free, GROUP_BYTES, Shape, Templates};

const PREFIX: &str = "disks-";
const ROOTS: &str = "roots";
const READY: &str = "ready";
const TRASH: &str = "trash";
const TEMPLATES: &str = "templates";
const INSIDE: &str = "inside";
const SECTOR_BYTES: u64 = 512;
/// A root that has written so much writes past the page cache from then on: its own pages are cached already. Those that
/// write little do not, for to begin with it takes a commit of the disk's journal, which would hold up everybody's creates.
const DIRECT_BYTES_MIN: u64 = 16 << 20;
/// What was removed inside is given back to the disk once it is so much,
const TRIM_BYTES_MIN: u64 = 16 << 20;
/// one group of blocks after the other, as long as so much is free: the kernel takes what it gives back for taken meanwhile, and
/// who writes is not to be told that his filesystem is full. So small ones keep what they have had.
const TRIM_FREE_MIN: u64 = 3 * GROUP_BYTES;
/// To see whether it can be done at all.
const PROBE: Shape = Shape { bytes: 1 << 20, inodes: 16, directories: 0 };

#[derive(Debug)]
pub struct Disks {
    // First to go, for its thread makes more.
    pool: Pool,
    shop: Arc<Shop>,
    roots: PathBuf,
    capacity: u64,
}

/// A filesystem that is mounted in the shop.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    name: String,
    shape: Shape,
    /// Its loop device.
    device: PathBuf,
}

/// One that is a root.
#[derive(Debug)]
struct LivedIn {
    shape: Shape,
    device: PathBuf,
    direct: bool,
    /// What the file took beyond what is used inside, when that was last given back.
    idle_bytes: u64,
}

/// Where they are made and taken apart.
#[derive(Debug)]
struct Shop {
    /// As this process reaches it.
    directory: PathBuf,
    /// Where it is: by this path `losetup` shows what lies behind a device.
    place: PathBuf,
    /// By the names of their roots.
    lived_in: Mutex<HashMap<String, LivedIn>>,
    /// Where mounts are seen by nobody else; without, on kernels before 6.15, they are in the host's mount table.
    clone: Option<OwnedFd>,
    templates: Templates,
    /// Two that take a free device at the same time only take it from each other.
    attaching: Mutex<()>,
    chores: Arc<Chores>,
}

fn directory_in(store: &Path) -> PathBuf {
    store.join(format!("{PREFIX}{}", crate::layers::boot_id()))
}

/// Whether roots of an earlier start may be there.
pub fn exists(store: &Path) -> Result<bool, Unavailable> {
    let roots = directory_in(store).join(ROOTS);
    match fs::read_dir(&roots) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at("read", &roots)(error)),
    }
}

impl Disks {
    /// Finds the roots of earlier starts, removes what they left half done, and tries whether more can be made.
    pub fn open(store: &Path, wanted: Wanted, chores: &Arc<Chores>) -> Result<Disks, Unavailable> {
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable::NotRoot);
        }
        let shop = Arc::new(Shop::open(store, chores)?);
        let roots = shop.directory.join(ROOTS);
        shop.adopt(&roots).map_err(at("find the filesystems of roots in", store))?;
        let tried = shop.make(PROBE)?;
        shop.discard(&shop.ready(&tried.name)).map_err(at("remove a filesystem in", store))?;
        let pool = Pool::start(shop.clone());
        let mut disks = Disks { pool, shop, roots, capacity: 0 };
        let taken = disks.taken().map_err(at("measure", store))?;
        let space = Space::of(store).map_err(at("measure", store))?;
        // What roots take already is theirs.
        let bytes = wanted.bytes.map(|bytes| bytes.saturating_sub(taken));
        disks.capacity = taken + Wanted { bytes, ..wanted }.of(space);
        Ok(disks)
    }

    fn shape(&self, name: &str) -> io::Result<Shape> {
        self.shop.lived_in().get(name).map(|root| root.shape).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Shop {
    fn open(store: &Path, chores: &Arc<Chores>) -> Result<Shop, Unavailable> {
        remove_earlier(store).map_err(at("remove earlier filesystems in", store))?;
        let base = directory_in(store);
        for part in [ROOTS, READY, TRASH, TEMPLATES] {
            let part = base.join(part);
            fs::create_dir_all(&part).map_err(at("make", &part))?;
        }
        // Left by a process that was killed, where mounts are in the host's table.
        for part in [ROOTS, READY, TRASH] {
            take_off(&base.join(part))?;
        }
        for part in [READY, TRASH] {
            empty(&base.join(part)).map_err(at("empty", &base.join(part)))?;
        }
        let (directory, clone) = match secluded(&base) {
            Ok((directory, clone)) => (directory, Some(clone)),
            Err(error) => {
                tracing::info!(path = %base.display(), %error, "filesystems of roots are mounted in the host's mount table");
                (base.clone(), None)
            }
        };
        let templates = Templates::open(base.join(TEMPLATES)).map_err(at("open the templates in", &base))?;
        let chores = chores.clone();
        let (lived_in, attaching) = (Mutex::default(), Mutex::default());
        Ok(Shop { directory, place: base, lived_in, clone, templates, attaching, chores })
    }

    fn lived_in(&self) -> MutexGuard<'_, HashMap<String, LivedIn>> {
        self.lived_in.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What containers may live from is mounted again.
    fn adopt(&self, roots: &Path) -> io::Result<()> {
        let mut devices = HashMap::new();
        for device in loop_device::attached()? {
            let (file, device) = device?;
            devices.insert(file, device);
        }
        for entry in fs::read_dir(roots)? {
            let entry = entry?;
            let Some((shape, file)) = disk_in(&entry.path())? else { continue };
            let metadata = file.metadata()?;
            // Without a device nobody lives from it: it is there to be removed.
            let Some(device) = devices.get(&(metadata.dev(), metadata.ino())) else { continue };
            match self.mount(device, &entry.path()) {
                Ok(()) => self.enter(&entry.file_name().to_string_lossy(), shape, &device.path),
                Err(error) => {
                    tracing::error!(root = %entry.path().display(), %error, "a root goes on, but is not measured any more");
                }
            }
        }
        Ok(())
    }

    fn enter(&self, name: &str, shape: Shape, device: &Path) {
        let root = LivedIn { shape, device: device.into(), direct: false, idle_bytes: 0 };
        self.lived_in().insert(name.into(), root);
    }

    fn ready(&self, name: &str) -> PathBuf {
        self.directory.join(READY).join(name)
    }

    /// Makes one among those that are ready.
    fn make(&self, shape: Shape) -> Result<Made, Unavailable> {
        let name = format!("{:016x}", rand::random::<u64>());
        let root = self.ready(&name);
        let made = self.make_at(shape, &root);
        if made.is_err()
            && let Err(error) = self.discard(&root)
        {
            tracing::warn!(%error, "cannot remove a filesystem that could not be made; the next start does");
        }
        made.map(|device| Made { name, shape, device })
    }

    fn make_at(&self, shape: Shape, root: &Path) -> Result<PathBuf, Unavailable> {
        let inside = root.join(INSIDE);
        fs::create_dir(root).and_then(|()| fs::create_dir(&inside)).map_err(at("make", root))?;
        let path = self.place.join(root.strip_prefix(&self.directory).unwrap_or(root)).join(shape.name());
        let file = self.templates.copy(shape, &path)?;
        let attached = {
            let _one = self.attaching.lock().unwrap_or_else(PoisonError::into_inner);
            loop_device::attach(&file, false)
        };
        let device = attached.map_err(at("make a loop device of", &path))?;
        let failed = |source| Unavailable::Mount { path: root.display().to_string(), source };
        self.mount(&device, root).map_err(failed)?;
        warm(&inside).map_err(at("write to", root))?;
        Ok(device.path)
    }

    fn mount(&self, device: &LoopDevice, root: &Path) -> Result<(), mount::Error> {
        let mounted = template::mount(device)?;
        mount::move_mount(mounted.as_fd(), &root.join(INSIDE))
    }

    /// Takes one away, wherever it is; what it took is freed behind the answer. Nothing there is no error.
    fn discard(&self, root: &Path) -> io::Result<()> {
        let trash = tree::trash_in(&self.directory.join(TRASH));
        match fs::rename(root, &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            moved => moved?,
        }
        self.chores.remove_by(take_apart, trash);
        Ok(())
    }

    /// Gives back to the disk what was removed inside, and takes those that write much past the page cache.
    fn tend(&self) {
        let names: Vec<String> = self.lived_in().keys().cloned().collect();
        for name in names {
            if let Err(error) = self.tend_root(&name) {
                tracing::debug!(handle = name, %error, "cannot look after the filesystem of a root");
            }
        }
    }

    fn tend_root(&self, name: &str) -> io::Result<()> {
        let known = self
            .lived_in()
            .get(name)
            .map(|root| (root.shape, root.device.clone(), root.direct, root.idle_bytes));
        let Some((shape, device, direct, idle_before)) = known else { return Ok(()) };
        let root = self.directory.join(ROOTS).join(name);
        let (inside, behind) = (root.join(INSIDE), root.join(shape.name()));
        let file = fs::metadata(&behind)?;
        let used = shape.bytes.saturating_sub(Free::of(&inside)?.bytes());
        let idle = |file: &fs::Metadata| (file.blocks() * SECTOR_BYTES).saturating_sub(used);
        let mut idle_bytes = idle(&file);
        if idle_bytes <= idle_before + TRIM_BYTES_MIN {
            idle_bytes = idle_bytes.min(idle_before);
        } else if give_back(&inside, &behind)? {
            idle_bytes = idle(&fs::metadata(behind)?);
        } else {
            idle_bytes = idle_before;
        }
        let goes_direct = !direct && used >= DIRECT_BYTES_MIN;
        if goes_direct
            && let Some((behind, device)) = loop_device::open(&device)?
            && behind == (file.dev(), file.ino())
            && let Err(error) = device.go_direct()
        {
            tracing::debug!(handle = name, %error, "what a root writes is cached twice");
        }
        if let Some(root) = self.lived_in().get_mut(name) {
            root.idle_bytes = idle_bytes;
            root.direct |= goes_direct;
        }
        Ok(())
    }
}

/// What `behind` holds of the filesystem that is mounted from it, and nobody inside uses. Answers whether all of it was looked at.
fn give_back(inside: &Path, behind: &Path) -> io::Result<bool> {
    let (top, behind) = (File::open(inside)?, File::open(behind)?);
    let mut group = 0;
    while let Some(held) = template::held(&behind, group)? {
        if Free::of(inside)?.bytes() < TRIM_FREE_MIN {
            return Ok(false);
        }
        group = held.start - held.start % GROUP_BYTES;
        trim::trim(top.as_fd(), group, GROUP_BYTES)?;
        group += GROUP_BYTES;
    }
    Ok(true)
}

/// Its last user waits until all of a filesystem is written: not who waits for a container to go.
fn take_apart(root: &Path) -> io::Result<()> {
    let inside = root.join(INSIDE);
    mount::unmount(&inside).map_err(io::Error::other)?;
    // With the directory goes what is mounted on it; whoever looked into it first would remove what is inside.
    match fs::remove_dir(&inside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => tree::remove(root),
    }
}

/// Makes what every root has, so that its create finds the tables in memory.
fn warm(inside: &Path) -> io::Result<()> {
    for part in [overlay::UPPER, overlay::WORK] {
        let part = inside.join(part);
        fs::create_dir(&part)?;
        let first = part.join("first");
        fs::create_dir(&first)?;
        fs::remove_dir(&first)?;
    }
    Ok(())
}

impl Drop for Shop {
    /// What hangs in the host's mount table would stay there.
    fn drop(&mut self) {
        if self.clone.is_some() {
            return;
        }
        for part in [ROOTS, READY, TRASH] {
            if let Err(error) = take_off(&self.directory.join(part)) {
                tracing::warn!(%error, "cannot unmount the filesystems of roots");
            }
        }
    }
}

/// A clone of a directory in which mounts are nobody else's.
fn secluded(directory: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let clone = mount::clone_mount(directory, false)?;
    mount::make_private(&clone)?;
    let reach = PathBuf::from(format!("/proc/self/fd/{}", clone.as_raw_fd()));
    // What is to be mounted there must be clonable in its turn, for the overlay.
    let place = mount::clone_mount(&reach.join(TEMPLATES), false)?;
    mount::move_mount(place.as_fd(), &reach.join(TEMPLATES)).map_err(io::Error::other)?;
    mount::clone_mount(&reach.join(TEMPLATES), false)?;
    Ok((reach, clone))
}

/// The file that a root lives in.
fn disk_in(root: &Path) -> io::Result<Option<(Shape, File)>> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if let Some(shape) = Shape::parse(&entry.file_name().to_string_lossy()) {
            return Ok(Some((shape, File::open(entry.path())?)));
        }
    }
    Ok(None)
}

fn take_off(roots: &Path) -> Result<(), Unavailable> {
    for entry in fs::read_dir(roots).map_err(at("read", roots))? {
        let inside = entry.map_err(at("read", roots))?.path().join(INSIDE);
        let failed = |source| Unavailable::Mount { path: inside.display().to_string(), source };
        mount::unmount(&inside).map_err(failed)?;
    }
    Ok(())
}

fn empty(directory: &Path) -> io::Result<()> {
    fs::read_dir(directory)?.try_for_each(|entry| tree::remove(&entry?.path()))
}

/// Of earlier runs of the machine.
pub fn remove_earlier(store: &Path) -> io::Result<()> {
    let current = directory_in(store);
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && entry.path() != current {
            tree::remove(&entry.path())?;
        }
    }
    Ok(())
}

impl fmt::Display for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, bytes) = (self.roots.display(), self.capacity);
        write!(
            f,
            "disk limits are enforced by an ext4 for each root in {path}, which take up to {bytes} bytes together"
        )
    }
}

impl Quota for Disks {
    fn directory(&self) -> &Path {
        &self.roots
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.roots.join(name).join(INSIDE)
    }

    fn make(&self, name: &str, limit: Limit) -> io::Result<()> {
        let shape = Shape::of(limit, self.capacity);
        let root = self.roots.join(name);
        // A directory that is empty would be replaced.
        if root.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let ready = match self.pool.take(shape) {
            Some(ready) => ready,
            None => self.shop.make(shape).map_err(Unavailable::into_io)?,
        };
        if let Err(error) = fs::rename(self.shop.ready(&ready.name), &root) {
            self.shop.discard(&self.shop.ready(&ready.name))?;
            return Err(error);
        }
        self.shop.enter(name, shape, &ready.device);
        Ok(())
    }

    /// Exactly, whatever was made in it until now.
    fn limit(&self, name: &str, _: Limit) -> io::Result<()> {
        let shape = self.shape(name)?;
        let wanted = Free { blocks: shape.bytes / BLOCK_BYTES, inodes: shape.inodes };
        let settled = template::settle(&self.inside(name), wanted);
        self.pool.refill();
        settled
    }

    fn make_room_for(&self, name: &str, files: u64) -> io::Result<()> {
        let inside = self.inside(name);
        let free = Free::of(&inside)?;
        template::settle(&inside, Free { blocks: free.blocks + files, inodes: free.inodes + files })
    }

    fn written(&self, name: &str) -> io::Result<Written> {
        // Nobody has lived from it since this process began.
        let Ok(shape) = self.shape(name) else { return Ok(Written::default()) };
        let free = Free::of(&self.inside(name))?;
        Ok(Written {
            bytes: shape.bytes.saturating_sub(free.bytes()),
            inodes: shape.inodes.saturating_sub(free.inodes),
        })
    }

    fn discard(&self, name: &str) -> io::Result<()> {
        self.shop.lived_in().remove(name);
        self.shop.discard(&self.roots.join(name))
    }

    fn enforces(&self) -> bool {
        true
    }

    fn counts_inodes(&self) -> bool {
        true
    }

    fn capacity(&self) -> Option<u64> {
        Some(self.capacity)
    }

    fn taken(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for (name, root) in self.shop.lived_in().iter() {
            match fs::metadata(self.roots.join(name).join(root.shape.name())) {
                Ok(file) => bytes += file.blocks() * SECTOR_BYTES,
                // On its way out.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    fn promised(&self) -> io::Result<u64> {
        Ok(self.capacity.saturating_sub(self.taken()?))
    }

    fn reclaim(&self) {
        self.shop.tend();
        self.shop.chores.settle();
    }

    fn groups(&self) -> io::Result<usize> {
        Ok(self.shop.lived_in().len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::layers::Layers;

    const MIB: u64 = 1 << 20;

    fn disks(store: &Path, test: &str) -> Option<Disks> {
        let chores = Arc::new(Chores::start(Arc::new(Layers::open(store).unwrap())));
        let wanted = Wanted { bytes: Some(1 << 30), elsewhere: 0 };
        Disks::open(store, wanted, &chores).map_err(|error| println!("SKIPPED {test}: {error}")).ok()
    }

    /// Whether a device goes past the page cache.
    fn is_direct(device: &Path) -> bool {
        let path = Path::new("/sys/block").join(device.file_name().unwrap()).join("loop/dio");
        fs::read_to_string(path).unwrap().trim() == "1"
    }

    /// The root `a` of such a filesystem.
    fn lived_in(disks: &Disks, bytes: u64) -> PathBuf {
        let limit = Limit { bytes, inodes: 20, directories: 0 };
        disks.make("a", limit).unwrap();
        disks.limit("a", limit).unwrap();
        disks.inside("a")
    }

    fn write(path: &Path, mebibytes: usize) -> io::Result<()> {
        let (mut file, piece) = (File::create(path)?, vec![7; 1 << 20]);
        (0..mebibytes).try_for_each(|_| io::Write::write_all(&mut file, &piece))?;
        file.sync_all()
    }

    #[test]
    fn who_writes_much_goes_past_the_cache_and_what_is_removed_is_given_back() {
        let store = tempfile::tempdir().unwrap();
        let test = "who_writes_much_goes_past_the_cache_and_what_is_removed_is_given_back";
        let Some(disks) = disks(store.path(), test) else { return };
        let inside = lived_in(&disks, 512 * MIB);
        let device = disks.shop.lived_in()["a"].device.clone();
        disks.shop.tend();
        assert!(!is_direct(&device) && disks.taken().unwrap() < 2 * MIB, "{}", disks.taken().unwrap());
        let big = inside.join("upper/big");
        write(&big, 150).unwrap();
        assert!(disks.taken().unwrap() >= 150 * MIB && disks.written("a").unwrap().bytes >= 150 * MIB);
        disks.shop.tend();
        let able = loop_device::open(&device).unwrap().unwrap().1.go_direct().is_ok();
        assert_eq!(is_direct(&device), able);
        assert!(fs::read(&big).unwrap().iter().all(|byte| *byte == 7));
        fs::remove_file(&big).unwrap();
        rustix::fs::syncfs(File::open(&inside).unwrap()).unwrap();
        disks.shop.tend();
        assert!(disks.taken().unwrap() < 8 * MIB, "{}", disks.taken().unwrap());
        assert_eq!(disks.written("a").unwrap(), Written::default());
    }

    #[test]
    fn who_writes_while_room_is_given_back_is_not_told_that_there_is_none() {
        let test = "who_writes_while_room_is_given_back_is_not_told_that_there_is_none";
        // A small one, and one that gives back what it has removed.
        for (limit, removed) in [(64, 60), (512, 120)] {
            let store = tempfile::tempdir().unwrap();
            let Some(disks) = disks(store.path(), test) else { return };
            let upper = lived_in(&disks, limit * MIB).join("upper");
            for round in 0..4 {
                write(&upper.join("big"), removed).unwrap();
                fs::remove_file(upper.join("big")).unwrap();
                let over = AtomicBool::new(false);
                std::thread::scope(|threads| {
                    threads.spawn(|| {
                        disks.shop.tend();
                        over.store(true, Ordering::Relaxed);
                    });
                    let mut writes = 0;
                    while !over.load(Ordering::Relaxed) || writes == 0 {
                        let written = write(&upper.join("small"), 1);
                        assert!(written.is_ok(), "of {limit}, round {round}, write {writes}: {written:?}");
                        fs::remove_file(upper.join("small")).unwrap();
                        writes += 1;
                    }
                });
            }
        }
    }

    #[test]
    fn what_was_made_before_the_limit_is_not_the_containers() {
        let store = tempfile::tempdir().unwrap();
        let Some(disks) = disks(store.path(), "what_was_made_before_the_limit_is_not_the_containers") else {
            return;
        };
        for made in [0, 1, 5, 60, 70, 2000] {
            let (name, limit) = (format!("h{made}"), Limit { bytes: 8 * MIB, inodes: 40, directories: made });
            disks.make(&name, limit).unwrap();
            assert_eq!(disks.make(&name, limit).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            let upper = disks.inside(&name).join("upper");
            disks.make_room_for(&name, made).unwrap();
            (0..made).for_each(|number| fs::create_dir(upper.join(number.to_string())).unwrap());
            disks.limit(&name, limit).unwrap();
            let free = Free::of(&disks.inside(&name)).unwrap();
            assert_eq!(free, Free { blocks: 8 * MIB / BLOCK_BYTES, inodes: 40 }, "{made}");
            assert_eq!(disks.written(&name).unwrap(), Written::default());
        }
    }
}
