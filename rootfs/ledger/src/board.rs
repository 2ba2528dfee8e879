//! What other processes on the same disk are promised, or are about to write: a directory that all of them read.
//!
//! ```text
//! <root>/<device>/lock          held for the moment of a decision
//! <root>/<device>/<pid>-<n>     what one account has spoken for, in bytes; held as long as its process lives
//! ```
//! Holding is by `flock`, which ends with the process, however it ends: nobody's word outlives him, and no number of a
//! process has to be trusted. Figures are exact at the moment of a claim; what was given back is seen a moment later.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

const LOCK: &str = "lock";
/// A process that was stopped in the middle of its decision must not stop everybody else.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
/// Accounts of one process on one disk.
const ACCOUNTS_MAX: u32 = 1000;
/// Of a figure, with room for any `u64`.
const FIGURE_BYTES: usize = 20;

#[derive(Debug)]
pub struct Board {
    directory: PathBuf,
    name: String,
    own: File,
}

/// Nobody else decides until it is dropped.
pub struct Turn {
    _lock: Option<File>,
}

impl Board {
    /// Enters an account that has spoken for nothing.
    pub fn join(root: &Path, device: u64) -> io::Result<Board> {
        let directory = root.join(format!("{device:x}"));
        fs::create_dir_all(&directory)?;
        let _turn = turn(&directory)?;
        let (own, name) = enter(&directory)?;
        let board = Board { directory, name, own };
        board.publish(0);
        Ok(board)
    }

    /// Waits for it, but not for ever.
    pub fn turn(&self) -> Turn {
        turn(&self.directory).unwrap_or_else(|error| {
            tracing::warn!(disk = %self.directory.display(), %error, "deciding about the disk beside others");
            Turn { _lock: None }
        })
    }

    /// What all others have spoken for, in bytes. Only in turn; otherwise [`Board::glance`].
    pub fn others(&self, turn: &Turn) -> io::Result<u64> {
        self.sum(turn._lock.is_some())
    }

    /// The same, for who decides nothing.
    pub fn glance(&self) -> io::Result<u64> {
        self.sum(false)
    }

    fn sum(&self, tidy: bool) -> io::Result<u64> {
        let mut sum: u64 = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == LOCK || name == *self.name {
                continue;
            }
            let file = match File::open(entry.path()) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
                // Its process has ended. Who is just entering has the turn, so it is not his.
                // If he did not himself.
                Ok(()) if tidy => _ = fs::remove_file(entry.path()),
                Ok(()) => {}
                Err(_) => {
                    sum = sum.saturating_add(
                        figure(&file).unwrap_or_else(|error| unreadable(&entry.path(), &error)),
                    )
                }
            }
        }
        Ok(sum)
    }

    /// Says what this account has spoken for.
    pub fn publish(&self, bytes: u64) {
        let figure = format!("{bytes:>FIGURE_BYTES$}");
        if let Err(error) = self.own.write_all_at(figure.as_bytes(), 0) {
            tracing::warn!(disk = %self.directory.display(), %error, "cannot tell others what is spoken for");
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Otherwise others do.
        _ = fs::remove_file(self.directory.join(&self.name));
    }
}

fn turn(directory: &Path) -> io::Result<Turn> {
    let lock = File::options().write(true).create(true).truncate(false).open(directory.join(LOCK))?;
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Turn { _lock: Some(lock) }),
            Err(errno) if began.elapsed() > PATIENCE => return Err(errno.into()),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn enter(directory: &Path) -> io::Result<(File, String)> {
    for number in 0..ACCOUNTS_MAX {
        let name = format!("{}-{number}", std::process::id());
        let path = directory.join(&name);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        // Left by one that ended, it is as good as a new one.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok((file, name));
        }
    }
    Err(io::Error::other("too many accounts of one disk"))
}

/// 0 of one that has said nothing as yet.
fn figure(file: &File) -> io::Result<u64> {
    let mut text = [0; FIGURE_BYTES];
    let length = file.read_at(&mut text, 0)?;
    let text = str::from_utf8(&text[..length]).map_err(io::Error::other)?;
    if text.is_empty() { Ok(0) } else { text.trim().parse().map_err(io::Error::other) }
}

/// One figure that cannot be read must not stop everybody from deciding: its word counts for nothing until it is said anew,
/// which each living process does within a second.
fn unreadable(file: &Path, error: &io::Error) -> u64 {
    tracing::warn!(file = %file.display(), %error, "what another process has spoken for cannot be read and counts as nothing");
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ledger-board-{name}-{}", std::process::id()));
        _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn everybody_sees_what_others_have_spoken_for_and_nobodys_word_outlives_him() {
        let root = scratch("words");
        let [one, two, three] = [(); 3].map(|()| Board::join(&root, 7).unwrap());
        let elsewhere = Board::join(&root, 8).unwrap();
        one.publish(5);
        two.publish(u64::MAX - 1000);
        two.publish(70);
        elsewhere.publish(1000);
        assert_eq!((one.glance().unwrap(), two.glance().unwrap(), three.glance().unwrap()), (70, 5, 75));
        // What a killed process leaves.
        fs::write(root.join("7/4194305-0"), format!("{:>20}", 900)).unwrap();
        assert_eq!(three.glance().unwrap(), 75);
        let turn = three.turn();
        assert_eq!(three.others(&turn).unwrap(), 75);
        assert!(!root.join("7/4194305-0").exists(), "somebody tidies up");
        drop(turn);
        drop(two);
        assert_eq!(three.glance().unwrap(), 5);
        drop((one, three, elsewhere));
        let left = fs::read_dir(root.join("7")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), [LOCK]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_figure_that_cannot_be_read_stops_nobody() {
        let root = scratch("unreadable");
        let [one, two, three] = [(); 3].map(|()| Board::join(&root, 7).unwrap());
        one.publish(5);
        two.publish(70);
        for broken in [&b"no figure at all, and long"[..], b"\xff\xfe", b"-7                  "] {
            one.own.write_all_at(broken, 0).unwrap();
            assert_eq!(three.glance().unwrap(), 70);
            let turn = three.turn();
            assert_eq!(three.others(&turn).unwrap(), 70);
        }
        one.publish(6);
        assert_eq!(three.glance().unwrap(), 76, "said anew it counts again");
        drop((one, two, three));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn who_never_ends_his_turn_does_not_stop_others() {
        let root = scratch("turn");
        let (one, two) = (Board::join(&root, 7).unwrap(), Board::join(&root, 7).unwrap());
        let held = one.turn();
        let began = Instant::now();
        let other = two.turn();
        assert!(other._lock.is_none() && began.elapsed() >= PATIENCE);
        drop(held);
        assert!(two.turn()._lock.is_some());
        fs::remove_dir_all(root).unwrap();
    }
}
