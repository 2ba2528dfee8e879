//! Each root a project of the store's own filesystem, XFS or ext4, where that holds projects to limits.
//!
//! Roots are plain directories of the store; whatever is made in one belongs to its project. The kernel counts bytes and
//! inodes as they are taken and refuses what exceeds the limit: XFS as a disk that is full (ENOSPC), ext4 as EDQUOT. ext4
//! lets a process with CAP_SYS_RESOURCE pass; overlays give that up for what is written through them, also by root.
//!
//! All roots together are promised a part of the disk, as with a filesystem of their own; there is no project of projects
//! that would hold them to it, so one root without a limit is given that part as its own.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use garden_sys::project::{self, Used};
use rootfs_ledger::{Marks, Space};
use rustix::fs::{CWD, Mode, OFlags};

use super::{Config, Limit, Plain, Quota, Unavailable, Written};
use crate::tree;

/// Projects of ours; far from those that people number by hand. Other stores may have theirs on the same filesystem, so
/// they are taken by chance, and not if anything belongs to them.
const OURS: std::ops::Range<u32> = 0x1000_0000..0xF000_0000;
const TRIES: usize = 64;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub struct Project {
    plain: Plain,
    /// Any file of the filesystem, to ask it by.
    filesystem: File,
    /// Of those roots that have one, by name.
    projects: Mutex<HashMap<String, u32>>,
    capacity: u64,
}

/// Whether the filesystem of the store has them.
pub fn probe(store: &Path) -> Result<File, Unavailable> {
    if !rustix::process::geteuid().is_root() {
        return Err(Unavailable::NotRoot);
    }
    let refused = |source| Unavailable::NoProjects { path: store.display().to_string(), source };
    let filesystem = File::open(store).map_err(refused)?;
    match project::is_enforced(filesystem.as_fd()) {
        Ok(true) => Ok(filesystem),
        Ok(false) => Err(refused(io::Error::other("they are not enforced"))),
        Err(error) => Err(refused(error)),
    }
}

impl Project {
    pub fn open(plain: Plain, filesystem: File, config: &Config) -> Result<Project, Unavailable> {
        let path = plain.directory().display().to_string();
        let failed = |act| move |source| Unavailable::Image { act, path, source };
        let space = Space::of(plain.directory()).map_err(failed.clone()("measure"))?;
        let mut projects = HashMap::new();
        let mut taken = 0;
        for entry in std::fs::read_dir(plain.directory()).map_err(failed.clone()("read"))? {
            let entry = entry.map_err(failed.clone()("read"))?;
            let of = File::open(entry.path()).and_then(|root| project::of(root.as_fd()));
            // None, of a root that was made without limits.
            if let Ok(id @ 1..) = of {
                projects.insert(entry.file_name().to_string_lossy().into_owned(), id);
                taken += project::used(filesystem.as_fd(), id).unwrap_or_default().bytes;
            }
        }
        let room = Marks::of(space.total).room(space.taken());
        let capacity = taken + config.image_bytes.unwrap_or(space.free / 2).saturating_sub(taken).min(room);
        Ok(Project { plain, filesystem, projects: Mutex::new(projects), capacity })
    }

    fn projects(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.projects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn project(&self, name: &str) -> Option<u32> {
        self.projects().get(name).copied()
    }

    fn used(&self, id: u32) -> io::Result<Used> {
        project::used(self.filesystem.as_fd(), id)
    }

    /// A project that nothing belongs to: also none whose files are still being removed.
    fn unused(&self) -> io::Result<u32> {
        for _ in 0..TRIES {
            let id = rand::random_range(OURS);
            if self.used(id)? == Used::default() && !self.projects().values().any(|taken| *taken == id) {
                return Ok(id);
            }
        }
        Err(io::Error::other("no project is left"))
    }

    fn open_root(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(CWD, self.directory().join(name), DIRECTORY, Mode::empty())?)
    }
}

impl fmt::Display for Project {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, bytes) = (self.directory().display(), self.capacity);
        write!(f, "disk limits are enforced by project quotas on {path}, which takes up to {bytes} bytes")
    }
}

impl Quota for Project {
    fn directory(&self) -> &Path {
        self.plain.directory()
    }

    fn make(&self, name: &str) -> io::Result<()> {
        let id = self.unused()?;
        self.plain.make(name)?;
        let given = self.open_root(name).and_then(|root| project::set(root.as_fd(), id));
        if let Err(error) = given {
            self.plain.discard(name)?;
            return Err(error);
        }
        self.projects().insert(name.into(), id);
        Ok(())
    }

    fn limit(&self, name: &str, limit: Limit) -> io::Result<()> {
        let Some(id) = self.project(name) else { return Err(io::ErrorKind::NotFound.into()) };
        let bytes = if limit.bytes == 0 { self.capacity } else { limit.bytes };
        // What we have made ourselves is not the container's. It is looked at, for the kernel's own count is late: XFS
        // still has in it what the overlay made to try the filesystem and has removed.
        let inodes = match limit.inodes {
            0 => 0,
            inodes => tree::usage(&self.directory().join(name))?.inodes.saturating_add(inodes),
        };
        project::limit(self.filesystem.as_fd(), id, bytes, inodes)
    }

    fn written(&self, name: &str) -> io::Result<Written> {
        match self.project(name) {
            Some(id) => self.used(id).map(|used| Written { bytes: used.bytes, inodes: used.inodes }),
            None => self.plain.written(name),
        }
    }

    fn discard(&self, name: &str) -> io::Result<()> {
        self.plain.discard(name)?;
        let id = self.projects().remove(name);
        // Without a limit and, soon, without files the filesystem forgets it.
        id.map_or(Ok(()), |id| project::limit(self.filesystem.as_fd(), id, 0, 0))
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
        let ids: Vec<u32> = self.projects().values().copied().collect();
        ids.into_iter().map(|id| self.used(id).map(|used| used.bytes)).sum()
    }

    fn promised(&self) -> io::Result<u64> {
        Ok(self.capacity.saturating_sub(self.taken()?))
    }

    fn groups(&self) -> io::Result<usize> {
        Ok(self.projects().len())
    }
}
