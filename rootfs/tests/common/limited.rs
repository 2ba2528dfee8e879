//! A store whose roots have limits, and an image for them.

// Not every test needs all of it.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rootfs::quota::Backend;
use rootfs::{BaseIds, Config, DiskLimit, Image, RootMount, Store};
use serde_json::json;

use crate::common::{self, Tar, image};

pub const MIB: u64 = 1 << 20;
/// What all roots may take together.
pub const ROOTS_BYTES: u64 = 1 << 30;
/// What metadata may take of a limit, and a block that was begun.
pub const SLACK: u64 = 128 << 10;

pub fn config(backend: Backend) -> Config {
    let mut config = Config::default();
    config.quota.backend = backend;
    config.quota.image_bytes = Some(ROOTS_BYTES);
    config
}

pub struct World {
    pub directory: tempfile::TempDir,
    pub store: Store,
}

impl World {
    /// `None`, with a line that says why, where there can be none.
    pub fn new(test: &str, backend: Backend) -> Option<World> {
        if !common::is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        match Store::open(&directory.path().join("store"), config(backend)) {
            Ok(store) => Some(World { directory, store }),
            Err(error) => {
                println!("SKIPPED {test}: {error}");
                None
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn image(&self) -> Image {
        pull(&self.store, self.directory.path()).await
    }

    pub fn mount(&self, handle: &str, image: &Image, limit: DiskLimit) -> RootMount {
        self.store.mount(handle, image, None, BaseIds::default(), limit).unwrap()
    }
}

/// Two entries, of which one is a file of 3 MiB.
pub async fn pull(store: &Store, directory: &Path) -> Image {
    let tar = Tar::default().directory("etc", 0o755).file("lower", &"x".repeat(3 << 20));
    image(&[tar.bytes()], json!({})).write_layout(&directory.join("layout"), "v1");
    let uri = format!("oci://{}/layout:v1", directory.display());
    store.pull(&uri.parse().unwrap(), None, &|_| {}).await.unwrap()
}
