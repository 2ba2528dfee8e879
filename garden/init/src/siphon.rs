//! From a pipe to a file, or from a file to a pipe, without a copy in between.
//!
//! The kernel keeps a pipe locked while it moves bytes between it and a file, however long the file takes, and everybody
//! who touches the pipe meanwhile waits: garden, at the other end of ours, must not. So what is moved goes through a second
//! pipe, which nobody else has: from one pipe to another takes no time.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

use crate::pid1::pipe;

/// Carried at once: what the second pipe is made to hold, where that is allowed.
pub const BYTES_MAX: usize = 256 * 1024;
/// What every pipe holds.
const COPIED_BYTES_MAX: usize = 64 * 1024;

pub struct Siphon {
    read: OwnedFd,
    write: OwnedFd,
}

impl Siphon {
    pub fn new() -> io::Result<Siphon> {
        let (read, write) = pipe()?;
        // As it is, otherwise.
        let _ = fcntl_setpipe_size(&write, BYTES_MAX);
        Ok(Siphon { read, write })
    }

    /// Up to so many bytes from one to the other, at least one of which is a pipe. Zero: there are none. `None`: `from` is
    /// not something from which the kernel moves bytes. What `to` does not take in this way is copied.
    pub fn carry(&mut self, from: &File, to: &File, bytes_max: usize) -> io::Result<Option<usize>> {
        let taken = match moved(from, &self.write, bytes_max) {
            Err(Errno::INVAL) => return Ok(None),
            other => other?,
        };
        let mut left = taken;
        while left > 0 {
            match moved(&self.read, to, left) {
                // A pipe that has been filled is not at its end.
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => left -= count,
                Err(Errno::INVAL) => left -= self.copy(to, left)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Some(taken))
    }

    fn copy(&self, mut to: &File, bytes_max: usize) -> io::Result<usize> {
        let mut piece = vec![0; bytes_max.min(COPIED_BYTES_MAX)];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.read, &mut piece))?;
        to.write_all(&piece[..length])?;
        Ok(length)
    }
}

fn moved(from: impl AsFd, to: impl AsFd, bytes_max: usize) -> rustix::io::Result<usize> {
    rustix::io::retry_on_intr(|| splice(&from, None, &to, None, bytes_max, SpliceFlags::MOVE))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn what_takes_no_moved_bytes_gets_a_copy() {
        let path = std::env::temp_dir().join(format!("siphon-{}", std::process::id()));
        let content: Vec<u8> = (0..300_000).map(|at| (at % 253) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let (mut from, mut left) = (File::open(&path).unwrap(), content.len());
        // The kernel moves nothing to what is only added to.
        let to = File::options().append(true).open(&path).unwrap();
        let mut siphon = Siphon::new().unwrap();
        while left > 0 {
            left -= siphon.carry(&from, &to, left).unwrap().unwrap();
        }
        from.rewind().unwrap();
        let mut twice = Vec::new();
        from.read_to_end(&mut twice).unwrap();
        assert!(twice == [&content[..], &content].concat());
        std::fs::remove_file(path).unwrap();
    }
}
