//! Subvolumes and their quota groups on a btrfs: one ioctl a function. The subvolume is the unit whose size btrfs limits.
//!
//! A quota group is a level and an id: `0/N` belongs to subvolume N and is made with it; groups of higher levels are made
//! by who wants the sum of many subvolumes limited.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of a subvolume's name.
pub const NAME_BYTES_MAX: usize = 255;

const IOCTL_TYPE: u32 = 0x94;
const WRITE: u32 = 1;
const READ: u32 = 2;
const SYNC: libc::Ioctl = ioctl(0, 8, 0);
const SUBVOLUME_DESTROY: libc::Ioctl = ioctl(WRITE, 15, size_of::<VolumeArgs>());
const INODE_LOOKUP: libc::Ioctl = ioctl(READ | WRITE, 18, size_of::<InodeLookup>());
const SUBVOLUME_CREATE: libc::Ioctl = ioctl(WRITE, 24, size_of::<VolumeArgs2>());
const FILESYSTEM: libc::Ioctl = ioctl(READ, 31, size_of::<FilesystemArgs>());
const QUOTA_CONTROL: libc::Ioctl = ioctl(READ | WRITE, 40, size_of::<QuotaControl>());
const GROUP_CREATE: libc::Ioctl = ioctl(WRITE, 42, size_of::<GroupCreate>());
const GROUP_LIMIT: libc::Ioctl = ioctl(READ, 43, size_of::<GroupLimit>());

const QUOTA_ENABLE: u64 = 1;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const LIMIT_REFERENCED: u64 = 1;
const INHERIT_GROUP: u64 = 1 << 2;
/// Of the root directory of every subvolume.
const FIRST_INODE: u64 = 256;

const fn ioctl(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    (direction << 30 | (size as u32) << 16 | IOCTL_TYPE << 8 | number) as libc::Ioctl
}

/// `btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `btrfs_ioctl_vol_args_v2`, of whose unions only these members are used.
#[repr(C)]
struct VolumeArgs2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    inherit_bytes: u64,
    inherit: u64,
    unused: [u64; 2],
    name: [u8; 4040],
}

/// `btrfs_qgroup_inherit` with one group.
#[repr(C)]
struct Inherit {
    flags: u64,
    groups: u64,
    referenced_copies: u64,
    exclusive_copies: u64,
    limit: [u64; 5],
    group: u64,
}

#[repr(C)]
struct InodeLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct FilesystemArgs {
    devices_max: u64,
    devices: u64,
    id: [u8; 16],
    rest: [u8; 992],
}

#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}

#[repr(C)]
struct GroupCreate {
    create: u64,
    group: u64,
}

#[repr(C)]
struct GroupLimit {
    group: u64,
    flags: u64,
    referenced_max: u64,
    exclusive_max: u64,
    reserved: [u64; 2],
}

/// Which group of which level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group(u64);

impl Group {
    pub const fn new(level: u16, id: u64) -> Group {
        Group((level as u64) << 48 | id & ((1 << 48) - 1))
    }

    /// As sysfs calls it.
    pub fn name(self) -> String {
        format!("{}_{}", self.0 >> 48, self.0 & ((1 << 48) - 1))
    }
}

fn named<const N: usize>(name: &str) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// Writes everything back, and has destroyed subvolumes freed soon after.
pub fn sync(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { call(directory, SYNC, std::ptr::null_mut::<()>()) }
}

/// Makes an empty subvolume in `parent`; what it takes counts for `group`, too.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &str, group: Group) -> io::Result<()> {
    let inherit = Inherit {
        flags: 0,
        groups: 1,
        referenced_copies: 0,
        exclusive_copies: 0,
        limit: [0; 5],
        group: group.0,
    };
    let mut args = VolumeArgs2 {
        fd: 0,
        transaction: 0,
        flags: INHERIT_GROUP,
        inherit_bytes: size_of::<Inherit>() as u64,
        inherit: (&raw const inherit).expose_provenance() as u64,
        unused: [0; 2],
        name: named(name)?,
    };
    // SAFETY: the request is for this structure, which outlives the call, as does `inherit`, whose address and size it holds.
    unsafe { call(parent, SUBVOLUME_CREATE, &raw mut args) }
}

/// Removes the subvolume `name` of `parent` with all that is in it, which is freed behind the answer. Files of it that
/// are open stay readable until they are closed.
pub fn destroy_subvolume(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut args = VolumeArgs { fd: 0, name: named(name)? };
    // SAFETY: the request is for this structure, which outlives the call.
    unsafe { call(parent, SUBVOLUME_DESTROY, &raw mut args) }
}

/// The id of the subvolume that `directory` is in.
pub fn subvolume_id(directory: BorrowedFd<'_>) -> io::Result<u64> {
    let mut args = InodeLookup { tree: 0, object: FIRST_INODE, name: [0; 4080] };
    // SAFETY: the request is for this structure, which outlives the call.
    unsafe { call(directory, INODE_LOOKUP, &raw mut args) }?;
    Ok(args.tree)
}

/// The filesystem's id, by which sysfs calls it.
pub fn filesystem_id(directory: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut args = FilesystemArgs { devices_max: 0, devices: 0, id: [0; 16], rest: [0; 992] };
    // SAFETY: the request is for this structure, which outlives the call.
    unsafe { call(directory, FILESYSTEM, &raw mut args) }?;
    Ok(args.id)
}

/// Counts every extent for the subvolume that wrote it: cheap, and right where nothing is shared. Linux 6.7 or newer.
pub fn enable_simple_quota(directory: BorrowedFd<'_>) -> io::Result<()> {
    quota(directory, QUOTA_ENABLE_SIMPLE)
}

/// Counts every extent for whoever refers to it, which costs at each commit.
pub fn enable_quota(directory: BorrowedFd<'_>) -> io::Result<()> {
    quota(directory, QUOTA_ENABLE)
}

fn quota(directory: BorrowedFd<'_>, command: u64) -> io::Result<()> {
    let mut args = QuotaControl { command, status: 0 };
    // SAFETY: the request is for this structure, which outlives the call.
    unsafe { call(directory, QUOTA_CONTROL, &raw mut args) }
}

pub fn create_group(directory: BorrowedFd<'_>, group: Group) -> io::Result<()> {
    let mut args = GroupCreate { create: 1, group: group.0 };
    // SAFETY: the request is for this structure, which outlives the call.
    unsafe { call(directory, GROUP_CREATE, &raw mut args) }
}

pub fn destroy_group(directory: BorrowedFd<'_>, group: Group) -> io::Result<()> {
    let mut args = GroupCreate { create: 0, group: group.0 };
    // SAFETY: the request is for this structure, which outlives the call.
    unsafe { call(directory, GROUP_CREATE, &raw mut args) }
}

/// The write that exceeds `bytes` fails with EDQUOT. Without a group: that of the subvolume `directory` is in.
pub fn limit(directory: BorrowedFd<'_>, group: Option<Group>, bytes: u64) -> io::Result<()> {
    let mut args = GroupLimit {
        group: group.map_or(0, |group| group.0),
        flags: LIMIT_REFERENCED,
        referenced_max: bytes,
        exclusive_max: 0,
        reserved: [0; 2],
    };
    // SAFETY: the request is for this structure, which outlives the call.
    unsafe { call(directory, GROUP_LIMIT, &raw mut args) }
}

/// # Safety
/// `request` must be one that takes a `T`, and all that `args` refers to must outlive the call.
unsafe fn call<T>(descriptor: BorrowedFd<'_>, request: libc::Ioctl, args: *mut T) -> io::Result<()> {
    // SAFETY: as promised by the caller.
    match unsafe { libc::ioctl(descriptor.as_raw_fd(), request, args) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        let sizes = [size_of::<VolumeArgs>(), size_of::<VolumeArgs2>(), size_of::<InodeLookup>()];
        assert_eq!(sizes, [4096; 3]);
        assert_eq!((size_of::<FilesystemArgs>(), size_of::<GroupLimit>()), (1024, 48));
        assert_eq!(size_of::<Inherit>(), 80);
    }

    #[test]
    fn a_group_is_called_by_its_level_and_id() {
        assert_eq!(Group::new(0, 256).name(), "0_256");
        assert_eq!(Group::new(1, 1).name(), "1_1");
    }

    #[test]
    fn a_name_with_a_slash_is_refused() {
        for bad in ["", "a/b", "a\0", &"x".repeat(256)] {
            assert!(named::<4040>(bad).is_err(), "{bad}");
        }
    }
}
