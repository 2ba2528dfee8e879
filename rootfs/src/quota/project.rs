//! Each root a project of a filesystem that holds projects to limits: the store's own, XFS or ext4, or an ext4 in a file of
//! the store, made for this.
//!
//! Roots are plain directories; whatever is made in one belongs to its project. The kernel counts bytes and
//! inodes as they are taken and refuses what exceeds the limit: XFS as a disk that is full (ENOSPC), ext4 as EDQUOT. ext4
//! lets a process with CAP_SYS_RESOURCE pass; overlays give that up for what is written through them, also by root.
//!
//! All roots together are promised a part of the disk, as with a filesystem of their own; there is no project of projects
//! that would hold them to it, so one root without a limit is given that part as its own. An ext4 of their own is that part.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garden_sys::project::{self, Used};
use rootfs_ledger::Space;
use rustix::fs::{CWD, Mode, OFlags};

use super::image::{Image, Kind, Wanted};
use super::{Limit, Plain, Quota, Unavailable, Written};
use crate::chores::Chores;
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
    /// Where the filesystem is one for roots alone.
    image: Option<Image>,
}

/// In an ext4 of our own.
const ROOTS: &str = "roots";
const TRASH: &str = "trash";

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
    /// On the store's own filesystem.
    pub fn open(plain: Plain, filesystem: File, wanted: Wanted) -> Result<Project, Unavailable> {
        let mut project = Project { plain, filesystem, projects: Mutex::default(), capacity: 0, image: None };
        let space = project.measure()?;
        let taken = project.read()?;
        // What roots take already is theirs.
        let bytes = wanted.bytes.map(|bytes| bytes.saturating_sub(taken));
        project.capacity = taken + Wanted { bytes, ..wanted }.of(space);
        Ok(project)
    }

    /// In an ext4 in a file of the store.
    pub fn in_a_file(
        store: &Path,
        wanted: Wanted,
        lived_in: bool,
        chores: &Arc<Chores>,
    ) -> Result<Project, Unavailable> {
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable::NotRoot);
        }
        if !lived_in {
            super::image::probe(store, Kind::Ext4)?;
        }
        let image = Image::open(store, Kind::Ext4, wanted, lived_in)?;
        image.compare(wanted.bytes);
        let failed = |act| {
            let path = image.path.display().to_string();
            move |source| Unavailable::Image { act, path, source }
        };
        let trash = image.directory().join(TRASH);
        let plain = Plain::open(image.directory().join(ROOTS), &trash, chores.clone());
        let plain = plain.map_err(failed("enter the filesystem in"))?;
        for left in std::fs::read_dir(&trash).map_err(failed("read the filesystem in"))? {
            chores.remove(left.map_err(failed("read the filesystem in"))?.path());
        }
        let filesystem = File::open(image.directory()).map_err(failed("open the filesystem in"))?;
        let mut project =
            Project { plain, filesystem, projects: Mutex::default(), capacity: 0, image: Some(image) };
        // Without what the filesystem keeps free of containers.
        project.capacity = project.measure()?.total;
        project.read()?;
        Ok(project)
    }

    fn measure(&self) -> Result<Space, Unavailable> {
        Space::of(self.directory()).map_err(self.failed("measure"))
    }

    fn failed(&self, act: &'static str) -> impl FnOnce(io::Error) -> Unavailable + use<> {
        let path = self.directory().display().to_string();
        move |source| Unavailable::Image { act, path, source }
    }

    /// Learns the projects of the roots that are there; what they take together, in bytes.
    fn read(&mut self) -> Result<u64, Unavailable> {
        let (mut projects, mut taken) = (HashMap::new(), 0);
        for entry in std::fs::read_dir(self.directory()).map_err(self.failed("read"))? {
            let entry = entry.map_err(self.failed("read"))?;
            let of = File::open(entry.path()).and_then(|root| project::of(root.as_fd()));
            // None, of a root that was made without limits.
            if let Ok(id @ 1..) = of {
                projects.insert(entry.file_name().to_string_lossy().into_owned(), id);
                taken += self.used(id).unwrap_or_default().bytes;
            }
        }
        self.projects = Mutex::new(projects);
        Ok(taken)
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
        let bytes = self.capacity;
        let path = match &self.image {
            Some(image) => image.path.display(),
            None => self.directory().display(),
        };
        write!(f, "disk limits are enforced by project quotas on {path}, which takes up to {bytes} bytes")
    }
}

impl Quota for Project {
    fn directory(&self) -> &Path {
        self.plain.directory()
    }

    fn make(&self, name: &str, limit: Limit) -> io::Result<()> {
        let id = self.unused()?;
        self.plain.make(name, limit)?;
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
        if let Some(image) = &self.image {
            return image.taken();
        }
        let ids: Vec<u32> = self.projects().values().copied().collect();
        ids.into_iter().map(|id| self.used(id).map(|used| used.bytes)).sum()
    }

    fn promised(&self) -> io::Result<u64> {
        let most = self.image.as_ref().map_or(self.capacity, |image| image.bytes);
        Ok(most.saturating_sub(self.taken()?))
    }

    fn reclaim(&self) {
        self.plain.settle();
    }

    fn groups(&self) -> io::Result<usize> {
        Ok(self.projects().len())
    }
}
