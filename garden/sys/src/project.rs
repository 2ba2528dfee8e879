//! Project quotas: whatever is made below a directory belongs to its project, and the filesystem holds a project to its
//! limits. XFS and ext4 have them, where they are mounted with them (`prjquota`); both understand the same requests.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801C_581F_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401C_5820_u32 as libc::Ioctl;
/// What is made in a directory has its project.
const INHERIT: u32 = 0x200;

const PROJECT: u32 = 2;
const GET_QUOTA: u32 = request(3);
const SET_LIMITS: u32 = request(4);
const GET_STATE: u32 = request(8);
const STATE_VERSION: i8 = 1;
const ACCOUNTED_AND_ENFORCED: u16 = 1 << 4 | 1 << 5;
const QUOTA_VERSION: i8 = 1;
const OF_A_PROJECT: i8 = 2;
/// Hard and soft limits of inodes and of blocks.
const ALL_LIMITS: u16 = 0b1111;
const BLOCK_BYTES: u64 = 512;

const fn request(number: u32) -> u32 {
    (((b'X' as u32) << 8) + number) << 8 | PROJECT
}

/// `fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// `fs_quota_statv`.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    in_core: u32,
    files: [u64; 9],
    limits: [i32; 3],
    warnings: [u16; 3],
    more_padding: u16,
    still_more_padding: u32,
    unused: [u64; 7],
}

/// `fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    kind: i8,
    fields: u16,
    id: u32,
    blocks_hard: u64,
    blocks_soft: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    blocks: u64,
    inodes: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    realtime: [u64; 3],
    realtime_timer: i32,
    realtime_warnings: u16,
    padding: i16,
    more_padding: [u8; 8],
}

/// What a project has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub bytes: u64,
    pub inodes: u64,
}

/// Whether the filesystem of `file` counts for projects, and holds them to their limits.
pub fn is_enforced(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut state = State { version: STATE_VERSION, ..State::default() };
    quotactl(file, GET_STATE, 0, &mut state)?;
    Ok(state.flags & ACCOUNTED_AND_ENFORCED == ACCOUNTED_AND_ENFORCED)
}

/// The project that `file` belongs to; 0: none.
pub fn of(file: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(attributes(file)?.project)
}

/// Gives a directory to a project, and all that will be made in it.
pub fn set(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = attributes(directory)?;
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: the request reads this structure, which outlives the call.
    match unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the request fills this structure, which outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) } {
        0 => Ok(attributes),
        _ => Err(io::Error::last_os_error()),
    }
}

/// 0: no limit.
pub fn limit(file: BorrowedFd<'_>, project: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    let blocks = bytes / BLOCK_BYTES;
    let mut quota = DiskQuota {
        version: QUOTA_VERSION,
        kind: OF_A_PROJECT,
        fields: ALL_LIMITS,
        id: project,
        blocks_hard: blocks,
        inodes_hard: inodes,
        ..DiskQuota::default()
    };
    quotactl(file, SET_LIMITS, project, &mut quota)
}

pub fn used(file: BorrowedFd<'_>, project: u32) -> io::Result<Used> {
    let mut quota = DiskQuota::default();
    match quotactl(file, GET_QUOTA, project, &mut quota) {
        Ok(()) => Ok(Used { bytes: quota.blocks * BLOCK_BYTES, inodes: quota.inodes }),
        // Nothing was ever made for it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Used::default()),
        Err(error) => Err(error),
    }
}

/// `structure` is the one that goes with the request.
fn quotactl<T>(file: BorrowedFd<'_>, request: u32, project: u32, structure: &mut T) -> io::Result<()> {
    // SAFETY: `structure` is the request's own, of the kernel's size, and outlives the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            file.as_raw_fd(),
            request,
            project,
            std::ptr::from_mut(structure),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!((size_of::<Attributes>(), size_of::<State>(), size_of::<DiskQuota>()), (28, 160, 112));
    }

    #[test]
    fn a_filesystem_without_them_says_so() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(is_enforced(proc.as_fd()).is_err());
    }
}
