//! How large a disk is and how much of it is free, as the filesystem says.

use std::io;
use std::path::Path;

/// In bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Without what the filesystem keeps for root.
    pub total: u64,
    pub free: u64,
}

impl Space {
    /// Of the filesystem that `directory` is on.
    pub fn of(directory: &Path) -> io::Result<Space> {
        let disk = rustix::fs::statvfs(directory)?;
        let for_root = disk.f_bfree.saturating_sub(disk.f_bavail);
        Ok(Space {
            total: disk.f_blocks.saturating_sub(for_root) * disk.f_frsize,
            free: disk.f_bavail * disk.f_frsize,
        })
    }

    pub fn taken(self) -> u64 {
        self.total.saturating_sub(self.free)
    }
}
