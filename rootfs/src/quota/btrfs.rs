//! Each root a subvolume: made, limited and thrown away in microseconds, whatever is in it.
//!
//! The kernel reserves room in a subvolume's quota group before it takes a write, so limits hold exactly; figures of what
//! is used become exact at a commit, and are added up with the reservations until then. All roots together are in one
//! more group, which keeps the filesystem itself from being filled to the brim. There are no limits of inodes: they are
//! taken from the same room as everything else, so the limit of bytes bounds them; who has one lives elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use garden_sys::btrfs::{self, Group};
use rustix::fs::{CWD, Mode, OFlags};

use super::image::{Image, Kind, Wanted};
use super::{Limit, Quota, Unavailable, Written};
use crate::tree;

const ALL_ROOTS: Group = Group::new(1, 1);
/// One in so many bytes of the filesystem is never given to roots, and this much at least.
const KEPT_FREE_PART: u64 = 20;
const KEPT_FREE_BYTES_MIN: u64 = 64 << 20;
const FIGURE_BYTES_MAX: usize = 32;
/// A new root waits for what others left until there is this much room, as long as it becomes more within this time.
const RECLAIM_BYTES: u64 = 16 << 20;
const RECLAIM_PATIENCE: Duration = Duration::from_secs(30);
const RECLAIM_PUSH: Duration = Duration::from_secs(1);
const RECLAIM_PAUSE: Duration = Duration::from_millis(10);
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub struct Btrfs {
    image: Image,
    /// In sysfs, a directory for each group.
    groups: OwnedFd,
    /// Subvolumes by their roots' names, as far as they were asked for.
    ids: Mutex<HashMap<String, u64>>,
    simple: bool,
}

impl Btrfs {
    pub fn open(store: &Path, wanted: Wanted, lived_in: bool) -> Result<Btrfs, Unavailable> {
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable::NotRoot);
        }
        if garden_sys::mount::Filesystem::open("btrfs").is_err() {
            return Err(Unavailable::NoBtrfs);
        }
        let image = Image::open(store, Kind::Btrfs, wanted, lived_in)?;
        image.compare(wanted.bytes);
        let refused = |act| move |source| Unavailable::Quota { act, source };
        let simple = enable_quota(&image).map_err(refused("enable quotas"))?;
        match btrfs::create_group(image.top(), ALL_ROOTS) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(refused("make a quota group")(error));
            }
            _ => {}
        }
        btrfs::limit(image.top(), Some(ALL_ROOTS), image.bytes - kept_free(&image))
            .map_err(refused("limit all roots together"))?;
        let id = btrfs::filesystem_id(image.top()).map_err(refused("read the id"))?;
        let groups = Path::new("/sys/fs/btrfs").join(uuid(id)).join("qgroups");
        let groups = rustix::fs::openat(CWD, &groups, DIRECTORY, Mode::empty());
        let groups = groups.map_err(|errno| refused("find the quota groups")(errno.into()))?;
        Ok(Btrfs { image, groups, ids: Mutex::default(), simple })
    }

    fn open_root(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(self.image.top(), name, DIRECTORY, Mode::empty())?)
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self, name: &str) -> io::Result<Group> {
        let known = self.ids().get(name).copied();
        let id = match known {
            Some(id) => id,
            None => {
                let id = btrfs::subvolume_id(self.open_root(name)?.as_fd())?;
                self.ids().insert(name.into(), id);
                id
            }
        };
        Ok(Group::new(0, id))
    }

    /// What roots that are there take, in bytes: no waiting makes that less.
    fn living(&self) -> u64 {
        let names = super::names(self).unwrap_or_default();
        names.iter().filter_map(|name| self.figure(self.group(name).ok()?, "referenced").ok()).sum()
    }

    fn figure(&self, group: Group, name: &str) -> io::Result<u64> {
        let path = format!("{}/{name}", group.name());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.groups, path, flags, Mode::empty())?;
        // A page at most, and always whole.
        let mut text = [0; FIGURE_BYTES_MAX];
        let length = rustix::io::read(&file, &mut text)?;
        let text = str::from_utf8(&text[..length]).map_err(io::Error::other)?;
        text.trim().parse().map_err(io::Error::other)
    }
}

impl fmt::Display for Btrfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.simple { "simple quotas" } else { "quota groups" };
        let (bytes, path) = (self.image.bytes, self.image.path.display());
        write!(f, "disk limits are enforced by btrfs ({kind}) on {path}, which takes up to {bytes} bytes")
    }
}

fn kept_free(image: &Image) -> u64 {
    (image.bytes / KEPT_FREE_PART).max(KEPT_FREE_BYTES_MIN)
}

/// Whether they are the cheap ones.
fn enable_quota(image: &Image) -> io::Result<bool> {
    if btrfs::enable_simple_quota(image.top()).is_ok() {
        return Ok(true);
    }
    btrfs::enable_quota(image.top())?;
    Ok(false)
}

fn uuid(id: [u8; 16]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl Quota for Btrfs {
    fn directory(&self) -> &Path {
        self.image.directory()
    }

    fn make(&self, name: &str, _: Limit) -> io::Result<()> {
        // Who asked while one of the same name went away may have entered it once more.
        self.ids().remove(name);
        btrfs::create_subvolume(self.image.top(), name, ALL_ROOTS)
    }

    fn limit(&self, name: &str, limit: Limit) -> io::Result<()> {
        if limit.bytes == 0 {
            return Ok(());
        }
        btrfs::limit(self.open_root(name)?.as_fd(), None, limit.bytes)
    }

    fn written(&self, name: &str) -> io::Result<Written> {
        let group = self.group(name)?;
        let bytes = self.figure(group, "referenced")? + self.figure(group, "rsv_data")?;
        Ok(Written { bytes, inodes: 0 })
    }

    fn discard(&self, name: &str) -> io::Result<()> {
        self.ids().remove(name);
        match btrfs::destroy_subvolume(self.image.top(), name) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // No subvolume: nothing of ours, but in the way.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tree::remove(&self.directory().join(name))
            }
            Err(error) => Err(error),
        }
    }

    fn enforces(&self) -> bool {
        true
    }

    fn capacity(&self) -> Option<u64> {
        Some(self.image.bytes - kept_free(&self.image))
    }

    fn taken(&self) -> io::Result<u64> {
        self.image.taken()
    }

    fn promised(&self) -> io::Result<u64> {
        Ok(self.image.bytes.saturating_sub(self.taken()?))
    }

    fn reclaim(&self) {
        let enough = (self.image.bytes - kept_free(&self.image)).saturating_sub(RECLAIM_BYTES);
        let taken = || self.figure(ALL_ROOTS, "referenced").unwrap_or(0);
        if self.living() > enough {
            return;
        }
        let (mut least, mut since, mut pushed) = (taken(), Instant::now(), None);
        while least > enough && since.elapsed() < RECLAIM_PATIENCE {
            // What goes away only after one push is freed by the next.
            if pushed.is_none_or(|at: Instant| at.elapsed() > RECLAIM_PUSH) {
                if let Err(error) = btrfs::sync(self.image.top()) {
                    tracing::warn!(%error, "cannot write the filesystem for roots back");
                }
                pushed = Some(Instant::now());
            }
            std::thread::sleep(RECLAIM_PAUSE);
            let now = taken();
            if now < least {
                (least, since) = (now, Instant::now());
            }
        }
    }

    fn groups(&self) -> io::Result<usize> {
        Ok(rustix::fs::Dir::read_from(&self.groups)?.count())
    }
}
