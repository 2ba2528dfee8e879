//! Mounts by descriptor: clone a tree, change its attributes, configure and create a filesystem, put it somewhere,
//! take it away. One syscall a function. Which layers make up a root, and who may see it, is decided elsewhere.
//!
//! A mount made here is *detached*: it hangs in no directory tree until [`attach`] or [`move_mount`] puts it there, and it is
//! gone when its descriptor is closed before that. So nothing is left behind by a process that is killed in between.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

pub use rustix::mount::MountAttrFlags;

/// Bytes of the kernel's own explanation kept in an error.
const KERNEL_MESSAGE_BYTES_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a new {filesystem} filesystem: {source}")]
    FsOpen { filesystem: String, source: io::Error },
    #[error("cannot set {key}{} on a new filesystem: {source}{}", equals(value), said(message))]
    FsConfig { key: String, value: String, message: String, source: io::Error },
    #[error("cannot create a filesystem: {source}{}", said(message))]
    Create { message: String, source: io::Error },
    #[error("cannot make a mount of a new filesystem: {source}{}", said(message))]
    FsMount { message: String, source: io::Error },
    #[error("cannot put a mount on {}: {source}", path.display())]
    Move { path: PathBuf, source: io::Error },
    #[error("cannot unmount {}: {source}", path.display())]
    Unmount { path: PathBuf, source: io::Error },
}

impl Error {
    /// What the kernel answered, for those who tell "not there" from "not allowed".
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Error::FsOpen { source, .. }
            | Error::FsConfig { source, .. }
            | Error::Create { source, .. }
            | Error::FsMount { source, .. }
            | Error::Move { source, .. }
            | Error::Unmount { source, .. } => source.raw_os_error(),
        }
    }
}

fn equals(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!("={value}") }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// A detached copy of what is mounted at `path`, rooted there; `recursive`: with all that is mounted below it.
pub fn clone_mount(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, clone_flags(recursive))?)
}

/// The same of an open file or directory.
pub fn clone_mount_of(fd: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let flags = clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(fd, c"", flags)?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Shows the files of a detached mount with the ids of `user_namespace`: what is owned by 0 on disk is owned by that
/// namespace's root. A mount can be mapped once, and only while it is detached.
pub fn map_ids(mount: impl AsFd, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    mount_setattr(mount.as_fd(), &attributes, false)
}

/// Sets attributes (read-only, nosuid, nodev, …) of the mount that `mount` is the root of, or of it and all below it.
pub fn set_attributes(mount: impl AsFd, set: MountAttrFlags, recursive: bool) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: u64::from(set.bits()), attr_clr: 0, propagation: 0, userns_fd: 0 };
    mount_setattr(mount.as_fd(), &attributes, recursive)
}

/// A clone hears of mounts below the place it was made of, and what is mounted below the clone appears there, too, where the
/// mount of that place is a shared one; with this neither.
pub fn make_private(mount: impl AsFd) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    mount_setattr(mount.as_fd(), &attributes, true)
}

fn mount_setattr(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant, and `attributes` is a live `mount_attr` of the size we name.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A filesystem being configured. Nothing is mounted until [`Filesystem::mount`].
#[derive(Debug)]
pub struct Filesystem {
    context: OwnedFd,
}

impl Filesystem {
    pub fn open(filesystem: &str) -> Result<Filesystem, Error> {
        rustix::mount::fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)
            .map(|context| Filesystem { context })
            .map_err(|errno| Error::FsOpen { filesystem: filesystem.into(), source: errno.into() })
    }

    pub fn set_flag(&self, key: &str) -> Result<(), Error> {
        rustix::mount::fsconfig_set_flag(self.context.as_fd(), key)
            .map_err(|errno| self.refused(key, String::new(), errno))
    }

    pub fn set_string(&self, key: &str, value: &str) -> Result<(), Error> {
        rustix::mount::fsconfig_set_string(self.context.as_fd(), key, value)
            .map_err(|errno| self.refused(key, value.into(), errno))
    }

    /// A string option whose value is a path; it need not be UTF-8.
    pub fn set_path(&self, key: &str, path: &Path) -> Result<(), Error> {
        let refused = |errno| self.refused(key, path.display().to_string(), errno);
        let value =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| refused(rustix::io::Errno::INVAL))?;
        rustix::mount::fsconfig_set_string(self.context.as_fd(), key, value.as_c_str()).map_err(refused)
    }

    /// Hands over an open directory, such as one more layer for `lowerdir+`.
    pub fn set_descriptor(&self, key: &str, descriptor: BorrowedFd<'_>) -> Result<(), Error> {
        rustix::mount::fsconfig_set_fd(self.context.as_fd(), key, descriptor)
            .map_err(|errno| self.refused(key, format!("descriptor {}", descriptor.as_raw_fd()), errno))
    }

    pub fn create(&self) -> Result<(), Error> {
        rustix::mount::fsconfig_create(self.context.as_fd())
            .map_err(|errno| Error::Create { message: self.message(), source: errno.into() })
    }

    /// The created filesystem as a detached mount.
    pub fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Error> {
        rustix::mount::fsmount(self.context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| Error::FsMount { message: self.message(), source: errno.into() })
    }

    fn refused(&self, key: &str, value: String, errno: rustix::io::Errno) -> Error {
        Error::FsConfig { key: key.into(), value, message: self.message(), source: errno.into() }
    }

    /// The kernel's explanation of the last refusal, where the filesystem gave one.
    fn message(&self) -> String {
        let mut buffer = [0u8; KERNEL_MESSAGE_BYTES_MAX];
        match rustix::io::read(self.context.as_fd(), &mut buffer[..]) {
            // A line begins with its level: `e overlay: …`.
            Ok(length) => {
                let line = String::from_utf8_lossy(&buffer[..length]);
                line.trim().trim_start_matches(['e', 'w', 'i']).trim_start().to_string()
            }
            // Nothing to say (ENODATA), or nothing readable: the errno has to do.
            Err(_) => String::new(),
        }
    }
}

/// Puts a detached mount on an open file or directory: no path is looked up twice, and no symbolic link of an image can
/// lead the mount astray.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", target, c"", flags)?)
}

/// Puts a detached mount on the path `target`.
pub fn move_mount(mount: BorrowedFd<'_>, target: &Path) -> Result<(), Error> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| Error::Move { path: target.into(), source: errno.into() })
}

/// Takes the mount on `target` away, at once for lookups, in the end when its last user is gone. Not being mounted
/// is not an error: tear-down may run twice.
pub fn unmount(target: &Path) -> Result<(), Error> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::Unmount { path: target.into(), source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_kept() {
        // Overlay learnt to refuse an option at once only with Linux 6.5.
        let Ok(tmpfs) = Filesystem::open("tmpfs") else {
            println!("SKIPPED the_kernels_own_words_are_kept: needs root");
            return;
        };
        let error = tmpfs.set_string("no_such_option", "1").unwrap_err().to_string();
        assert!(error.starts_with("cannot set no_such_option=1 on a new filesystem: "), "{error}");
        assert!(error.contains("Unknown parameter"), "{error}");
    }

    #[test]
    fn unmounting_what_is_not_mounted_is_no_error() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED unmounting_what_is_not_mounted_is_no_error: needs root");
            return;
        }
        unmount(Path::new("/does/not/exist")).unwrap();
        let plain = std::env::temp_dir().join(format!("garden-sys-mount-{}", std::process::id()));
        std::fs::create_dir(&plain).unwrap();
        unmount(&plain).unwrap();
        std::fs::remove_dir(&plain).unwrap();
    }
}
