//! The account of a disk that the components of one machine have in common, each in its own process.

use std::path::Path;

use anyhow::{Context, Result};
use rootfs::ledger::Ledger;

/// Emptied when the machine starts, as what is on it: words of processes that live.
const ACCOUNTS: &str = "/run/diego-disks";

/// Of the disk that `directory`, made if it is not there, is on.
pub fn account(directory: &Path) -> Result<Ledger> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ledger::open_in_common(directory, Path::new(ACCOUNTS)).context("cannot keep an account of the disk")
}
