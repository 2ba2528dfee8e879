//! Tells what a filesystem lies on which of its blocks nobody uses any more.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const FITRIM: libc::Ioctl = 0xC018_5879_u32 as libc::Ioctl;

/// `fstrim_range`.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
    least: u64,
}

/// So many bytes of the filesystem that `file` is on; how many of them nobody uses. Meanwhile nobody can have these, nor what is free
/// next to them: who looks for room finds it elsewhere, or is told that there is none.
pub fn trim(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<u64> {
    let mut range = Range { start, length, least: 0 };
    // SAFETY: the request reads and fills this structure, which outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), FITRIM, &raw mut range) } {
        0 => Ok(range.length),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_filesystem_without_blocks_says_so() {
        assert_eq!(size_of::<Range>(), 24);
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(trim(proc.as_fd(), 0, u64::MAX).is_err());
    }
}
