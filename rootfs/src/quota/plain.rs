//! Roots as plain directories of the store: nothing stops a write, and what was written is found by walking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Limit, Quota, Written};
use crate::chores::Chores;
use crate::{overlay, tree};

#[derive(Debug)]
pub struct Plain {
    directory: PathBuf,
    trash: PathBuf,
    chores: Arc<Chores>,
}

impl Plain {
    /// `trash`: a directory of the same filesystem, where what is discarded waits to be removed.
    pub fn open(directory: PathBuf, trash: &Path, chores: Arc<Chores>) -> io::Result<Plain> {
        for directory in [&directory, trash] {
            fs::create_dir_all(directory)?;
        }
        Ok(Plain { directory, trash: trash.into(), chores })
    }

    /// Waits until all that was discarded is removed.
    pub fn settle(&self) {
        self.chores.settle();
    }
}

impl Quota for Plain {
    fn directory(&self) -> &Path {
        &self.directory
    }

    fn make(&self, name: &str, _: Limit) -> io::Result<()> {
        fs::create_dir(self.directory.join(name))
    }

    fn limit(&self, _: &str, _: Limit) -> io::Result<()> {
        Ok(())
    }

    fn written(&self, name: &str) -> io::Result<Written> {
        let usage = tree::usage(&self.directory.join(name).join(overlay::UPPER))?;
        Ok(Written { bytes: usage.bytes, inodes: usage.inodes })
    }

    fn discard(&self, name: &str) -> io::Result<()> {
        let trash = tree::trash_in(&self.trash);
        match fs::rename(self.directory.join(name), &trash) {
            Ok(()) => self.chores.remove(trash),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn enforces(&self) -> bool {
        false
    }
}
