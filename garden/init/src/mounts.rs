//! Mounting by descriptor: every place inside the new root is opened so that no symbolic link of the image can lead out
//! of it, and every mount is attached to what was opened, never to a path looked up again.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use garden_sys::mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use crate::failure::{Context, Failure, Result};

pub const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Longest chain of directories made for one mount.
const DEPTH_MAX: usize = 256;

/// How often a place is looked up that somebody keeps changing.
const TRIES_MAX: u32 = 128;

/// For files of one file system that no link and no other mount may stand in for.
pub const NOWHERE_ELSE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

pub enum MountOption<'a> {
    Flag(&'a str),
    Value(&'a str, &'a str),
}

/// A new file system, mounted nowhere yet.
pub fn create(
    kind: &str,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in options {
        match option {
            MountOption::Flag(name) => fsconfig_set_flag(&context, *name)?,
            MountOption::Value(name, value) => fsconfig_set_string(&context, *name, *value)?,
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
}

pub fn kind_of(fd: &OwnedFd) -> rustix::io::Result<Kind> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(if FileType::from_raw_mode(mode) == FileType::Directory { Kind::Directory } else { Kind::File })
}

/// Opens a place inside `root`, links resolved as the container itself would; `NotFound` when it is missing.
pub fn open_inside(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let path = if path.trim_matches('/').is_empty() { "." } else { path };
    open_path(root, path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Any rename on the machine while `..` is walked is answered "try again": somebody who shares a volume with us may see to
/// that for a while, and only somebody hostile for long.
fn open_path(root: &OwnedFd, path: &str, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    for _ in 1..TRIES_MAX {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

pub fn is_proc(fd: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as libc::c_long == libc::PROC_SUPER_MAGIC as libc::c_long)
}

/// Whether it lies in a file system that shows or changes the kernel's own state.
pub fn is_of_the_kernel(fd: &OwnedFd) -> rustix::io::Result<bool> {
    let kind = rustix::fs::fstatfs(fd)?.f_type as libc::c_long;
    Ok([
        libc::PROC_SUPER_MAGIC,
        libc::SYSFS_MAGIC,
        libc::CGROUP_SUPER_MAGIC,
        libc::CGROUP2_SUPER_MAGIC,
        libc::DEVPTS_SUPER_MAGIC,
    ]
    .map(|magic| magic as libc::c_long)
    .contains(&kind))
}

/// Opens a place that must not be reached by any link.
pub fn open_exactly(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    open_path(root, path.trim_start_matches('/'), resolve)
}

/// Opens a place inside `root` for a mount, made when it is missing.
pub fn place(root: &OwnedFd, path: &str, kind: Kind) -> Result<OwnedFd> {
    place_at_depth(root, path.trim_end_matches('/'), kind, 0)
}

fn place_at_depth(root: &OwnedFd, path: &str, kind: Kind, depth: usize) -> Result<OwnedFd> {
    match open_inside(root, path) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) if depth < DEPTH_MAX => {}
        Err(errno) => return Err(Failure::new(format!("open {path} for a mount"), errno)),
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() || name == ".." || name == "." {
        return Err(Failure::new(format!("make a place for a mount at {path}"), Errno::INVAL));
    }
    let directory = place_at_depth(root, parent, Kind::Directory, depth + 1)?;
    match make(&directory, name, kind) {
        // A link to what is missing: that is made, where the container itself would look for it.
        Err(Errno::EXIST) => {
            let target = target_of_link(&directory, name).act(format!("make {path} for a mount"))?;
            let target = if target.starts_with('/') { target } else { format!("{parent}/{target}") };
            return place_at_depth(root, target.trim_end_matches('/'), kind, depth + 1);
        }
        made => made.act(format!("make {path} for a mount"))?,
    }
    openat(&directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .act(format!("open {path} for a mount"))
}

fn target_of_link(directory: &OwnedFd, name: &str) -> rustix::io::Result<String> {
    let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
    target.into_string().map_err(|_| Errno::ILSEQ)
}

pub fn make(parent: &OwnedFd, name: &str, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

/// A directory directly in the root that no image may turn into a link (`proc`, `sys`, `dev`).
pub fn own_directory(root: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let exactly = |name| open_exactly(root, name);
    match exactly(name) {
        Err(Errno::NOENT) => {
            mkdirat(root, name, Mode::from_raw_mode(0o755)).act(format!("make /{name}"))?;
            exactly(name)
        }
        other => other,
    }
    .act(format!("open /{name}, which must be a directory"))
}

/// Covers a path with nothing: a file with `/dev/null`, a directory with an empty one. Missing paths are as good.
pub struct Mask {
    null: OwnedFd,
    empty: Option<OwnedFd>,
}

impl Mask {
    /// `null`: the host's own null device, opened before the root of the host was left.
    pub fn new(null: OwnedFd) -> Mask {
        Mask { null, empty: None }
    }

    pub fn cover(&mut self, root: &OwnedFd, path: &str) -> Result<()> {
        let target = match open_exactly(root, path) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(Failure::new(format!("open {path} to mask it"), errno)),
        };
        let act = || format!("mask {path}");
        match kind_of(&target).act(act())? {
            Kind::File => {
                let cover = mount::clone_mount_of(&self.null, false).act(act())?;
                mount::attach(cover, target).act(act())
            }
            Kind::Directory => self.cover_directory(target).act(act()),
        }
    }

    fn cover_directory(&mut self, target: OwnedFd) -> std::io::Result<()> {
        // One empty file system serves all: the first mount of it is cloned for the others.
        if let Some(empty) = &self.empty {
            return mount::attach(mount::clone_mount_of(empty, false)?, target);
        }
        let options = [
            MountOption::Value("mode", "0555"),
            MountOption::Value("nr_inodes", "1"),
            MountOption::Flag("ro"),
        ];
        let empty = create("tmpfs", &options, PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        mount::attach(&empty, target)?;
        self.empty = Some(empty);
        Ok(())
    }
}

/// What is there stays there, but cannot be written to.
pub fn make_read_only(root: &OwnedFd, path: &str) -> Result<()> {
    let target = match open_exactly(root, path) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(Failure::new(format!("open {path} to make it read-only"), errno)),
    };
    let act = || format!("make {path} read-only");
    let clone = mount::clone_mount_of(&target, true).act(act())?;
    mount::set_attributes(&clone, MountAttrFlags::MOUNT_ATTR_RDONLY, true).act(act())?;
    mount::attach(clone, target).act(act())
}

/// For paths that come from a plan and may hold anything.
pub fn c_string(text: &str) -> Result<CString> {
    CString::new(text).act(format!("use {text:?}, which has a zero byte in it"))
}
