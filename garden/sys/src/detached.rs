//! Detached mounts: cloned from a place, given attributes, attached somewhere else, all by descriptor, so that no path
//! is looked up twice and no symbolic link of an image can lead a mount astray.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

pub mod attributes {
    pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    pub const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
    pub const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
    pub const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
}

/// A detached copy of what is mounted at `path` of the host; `recursive`: with all that is mounted below it.
pub fn clone_mount(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    Ok(open_tree(rustix::fs::CWD, path, clone_flags(recursive))?)
}

/// The same of an open file or directory.
pub fn clone_mount_of(fd: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(fd, c"", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Sets and clears attributes of the mount that `fd` is the root of.
pub fn change_attributes(fd: impl AsFd, set: u64, clear: u64, recursive: bool) -> io::Result<()> {
    let change = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty path, and a structure that outlives the call.
    let result = unsafe {
        let size = size_of::<libc::mount_attr>();
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const change,
            size,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a detached mount on an open file or directory.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, c"", flags)?)
}
