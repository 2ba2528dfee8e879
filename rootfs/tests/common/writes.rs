//! What tests write, and how much of it is taken.

// Not every test needs all of it.
#![allow(dead_code)]

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rootfs::ledger::Ledger;
use rootfs::quota::Backend;
use rootfs::{Config, DiskLimit, DiskScope, Store};
use serde_json::json;

use crate::common::{BuiltImage, Entry, Tar, image};

const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes that cannot be compressed, others for each seed.
pub fn dense(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(word).flat_map(u64::to_le_bytes).take(bytes).collect()
}

/// An image with one file of such bytes.
pub fn dense_image(seed: u64, bytes: usize) -> BuiltImage {
    image(&[Tar::default().add(Entry::file("file", &dense(seed, bytes))).bytes()], json!({}))
}

/// The same as a layout below `directory`; its name.
pub fn dense_layout(directory: &Path, seed: u64, bytes: usize) -> String {
    let path = directory.join(format!("layout{seed}"));
    dense_image(seed, bytes).write_layout(&path, "v1");
    format!("oci://{}:v1", path.display())
}

/// A store below `directory`, without limits for roots.
pub fn plain_store(directory: &Path, ledger: Option<&Ledger>) -> Store {
    let mut config = Config::default();
    config.quota.backend = Backend::Plain;
    config.ledger = ledger.cloned();
    Store::open(&directory.join("store"), config).unwrap()
}

pub fn exclusive(bytes: u64) -> DiskLimit {
    DiskLimit { bytes, inodes: 0, scope: DiskScope::Exclusive }
}

/// Writes until it is refused, or until `most`; how much was taken.
pub fn fill(path: &Path, most: u64) -> (u64, Option<io::ErrorKind>) {
    let mut file = File::options().create(true).truncate(true).write(true).open(path).unwrap();
    let block = vec![7; 64 << 10];
    let mut taken = 0;
    while taken < most {
        match file.write(&block) {
            Ok(length) => taken += length as u64,
            Err(error) => return (taken, Some(error.kind())),
        }
    }
    (taken, None)
}

pub fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What was removed takes its room for as long as anybody has it open, and a program that a test beside this one begins has
/// all open files of this process until it is itself.
#[allow(dead_code)]
pub fn is_free_again(condition: impl Fn() -> bool) {
    until("what was removed takes no room", condition);
}
