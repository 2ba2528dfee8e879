//! Directory trees that others have filled: removing them, and counting what they hold.
//!
//! Whoever filled them may have nested directories as deep as the disk allows. So nothing here recurses with them, and
//! no more than [`DEPTH_MAX`] directories are open at a time.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Directories opened one inside the other; what lies deeper is first moved up.
const DEPTH_MAX: usize = 64;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A name in `directory` for what is to be removed.
pub fn trash_in(directory: &Path) -> PathBuf {
    directory.join(format!("trash-{:016x}", rand::random::<u64>()))
}

/// Removes whatever is at `path`; nothing there is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match path.file_name() {
        Some(name) => match rustix::fs::openat(CWD, parent_of(path), DIRECTORY, Mode::empty()) {
            Ok(parent) => remove_at(parent.as_fd(), std::os::unix::ffi::OsStrExt::as_bytes(name)),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        },
        None => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// [`remove`] of one name in an open directory.
pub fn remove_at(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let top = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    let mut moved = 0;
    // Each round ends with all that was moved up still to be done: as many rounds as the depth needs.
    loop {
        let before = moved;
        empty(&top, &mut moved)?;
        if moved == before {
            break;
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Empties `top`, but for directories at [`DEPTH_MAX`], which end up directly in `top`.
fn empty(top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    struct Level {
        directory: OwnedFd,
        name: Vec<u8>,
        entries: Dir,
    }
    let level = |directory: OwnedFd, name: Vec<u8>| -> io::Result<Level> {
        let entries = Dir::read_from(&directory)?;
        Ok(Level { directory, name, entries })
    };
    let mut levels = vec![level(top.try_clone()?, Vec::new())?];
    while let Some(current) = levels.last_mut() {
        let Some(entry) = current.entries.next() else {
            let done = levels.pop().map(|level| level.name).unwrap_or_default();
            if let Some(above) = levels.last() {
                match rustix::fs::unlinkat(&above.directory, &done[..], AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            continue;
        };
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(&current.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        let name = name.to_vec();
        if levels.len() < DEPTH_MAX {
            let above = &levels[levels.len() - 1].directory;
            let directory = rustix::fs::openat(above, &name[..], DIRECTORY, Mode::empty())?;
            levels.push(level(directory, name)?);
        } else {
            *moved += 1;
            let up = format!(".removed-{moved}");
            rustix::fs::renameat(&levels[levels.len() - 1].directory, &name[..], top, up.as_str())?;
        }
    }
    Ok(())
}

/// What a tree takes on the disk. A file with several names counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated, in bytes.
    pub bytes: u64,
    /// Of file content, however it is stored.
    pub content_bytes: u64,
    pub inodes: u64,
}

/// Counts everything below `path`, and `path` itself. Blocking, and as slow as the tree is large; what vanishes
/// meanwhile is not counted, and neither is what is mounted below or lies deeper than a path can say.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut several_names = HashSet::new();
    let top = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
    let top_stat = rustix::fs::fstat(&top)?;
    add(&mut usage, &top_stat);
    let mut waiting = vec![b".".to_vec()];
    while let Some(place) = waiting.pop() {
        // Whoever fills the tree may swap a directory for a link while we look.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let Ok(directory) = rustix::fs::openat2(&top, &place[..], DIRECTORY, Mode::empty(), resolve) else {
            continue;
        };
        for entry in Dir::read_from(&directory)? {
            let Ok(entry) = entry else { break };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            // Mounted there, not a part of it.
            if stat.st_dev != top_stat.st_dev {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_directory && stat.st_nlink > 1 && !several_names.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            add(&mut usage, &stat);
            if is_directory {
                waiting.push([&place[..], b"/", name.to_bytes()].concat());
            }
        }
    }
    Ok(usage)
}

fn add(usage: &mut Usage, stat: &rustix::fs::Stat) {
    usage.bytes += stat.st_blocks as u64 * 512;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        usage.content_bytes += stat.st_size as u64;
    }
    usage.inodes += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let mut directory = rustix::fs::openat(CWD, &top, DIRECTORY, Mode::empty()).unwrap();
        for level in 0..3000 {
            rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
            let name = format!("f{level}");
            rustix::fs::openat(&directory, name, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            directory = rustix::fs::openat(&directory, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(directory);
        assert!(usage(&top).unwrap().inodes > 2000);
        remove(&top).unwrap();
        assert!(!top.exists());
        remove(&top).unwrap();
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_leads_to() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = scratch.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let top = scratch.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(&kept, top.join("link")).unwrap();
        remove(&top).unwrap();
        assert!(kept.join("file").exists());
    }

    #[test]
    fn a_file_with_two_names_counts_once() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("a"), vec![1; 100_000]).unwrap();
        let one = usage(scratch.path()).unwrap();
        assert_eq!(one.inodes, 2);
        std::fs::hard_link(scratch.path().join("a"), scratch.path().join("b")).unwrap();
        assert_eq!(usage(scratch.path()).unwrap(), one);
    }
}
