//! A small disk: an ext4 in a file, mounted for one test.

// Not every test needs all of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;

use garden_sys::mount::{self, Filesystem, MountAttrFlags};
use rootfs::ledger::Space;

const DISK_BYTES: u64 = 700 << 20;

/// A disk of its own; gone with the answer.
pub struct SmallDisk {
    pub path: PathBuf,
    _file: tempfile::TempDir,
}

impl SmallDisk {
    pub fn new(test: &str) -> Option<SmallDisk> {
        if !crate::common::is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        match SmallDisk::make() {
            Ok(disk) => Some(disk),
            Err(reason) => {
                println!("SKIPPED {test}: {reason}");
                None
            }
        }
    }

    fn make() -> Result<SmallDisk, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        let disk = File::options().read(true).write(true).create_new(true).open(&file).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file).status();
        if !made.as_ref().is_ok_and(|status| status.success()) {
            return Err(format!("mkfs.ext4: {made:?}"));
        }
        let device = garden_sys::loop_device::attach(&disk, false).map_err(|error| error.to_string())?;
        let ext4 = Filesystem::open("ext4").map_err(|error| error.to_string())?;
        ext4.set_path("source", &device.path).unwrap();
        ext4.create().map_err(|error| error.to_string())?;
        let mounted = ext4.mount(MountAttrFlags::empty()).unwrap();
        let path = directory.path().join("mounted");
        fs::create_dir(&path).unwrap();
        mount::move_mount(mounted.as_fd(), &path).unwrap();
        Ok(SmallDisk { path, _file: directory })
    }

    pub fn space(&self) -> Space {
        Space::of(&self.path).unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        mount::unmount(&self.path).unwrap();
    }
}
