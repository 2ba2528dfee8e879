//! The state directory: everything a Diego of one machine writes is below it, and one process at a time owns it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::sockets::Known;
use crate::operator::{ENDPOINTS_FILE, Endpoints};

const ADDRESSES_FILE: &str = "addresses.json";

pub struct StateDir {
    path: PathBuf,
    /// Held, not read: the lock ends with the process, however it ends.
    _lock: File,
}

impl StateDir {
    pub fn lock(path: &Path) -> Result<StateDir> {
        let unusable = || format!("cannot use {} as the state directory", path.display());
        std::fs::create_dir_all(path).with_context(unusable)?;
        // Droplets, the database and the ssh password are in it.
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(unusable)?;
        let path = path.canonicalize().with_context(unusable)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .with_context(unusable)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another diego runs with the state directory {}; stop it, or choose another with --state",
                path.display()
            );
        }
        let state = StateDir { path, _lock: lock };
        // Of a run that was killed.
        state.remove_endpoints();
        Ok(state)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A directory of the state directory, made if need be.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.path.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    pub fn log_file(&self) -> Result<File> {
        let path = self.path("diego.log");
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        opened.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Something made once and kept, such as a key: the file's text, or what `make` makes.
    pub fn kept(&self, name: &str, make: impl FnOnce() -> Result<String>) -> Result<String> {
        let path = self.path(name);
        if path.exists() {
            return std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
        }
        let text = make()?;
        self.write(name, &text)?;
        Ok(text)
    }

    /// The addresses of the last run; none if there was none, or its file is not to be read.
    pub fn known_addresses(&self) -> Known {
        let text = std::fs::read_to_string(self.path(ADDRESSES_FILE)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub fn remember_addresses(&self, known: &Known) -> Result<()> {
        self.write(ADDRESSES_FILE, &serde_json::to_string_pretty(known)?)
    }

    pub fn write_endpoints(&self, endpoints: &Endpoints) -> Result<()> {
        self.write(ENDPOINTS_FILE, &serde_json::to_string_pretty(endpoints)?)
    }

    /// What tells clients that nobody is there any more.
    pub fn remove_endpoints(&self) {
        let _ = std::fs::remove_file(self.path(ENDPOINTS_FILE));
    }

    /// Whole or not at all, and readable by root alone.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let unfinished = self.path(&format!(".{name}.unfinished"));
        let write = || -> std::io::Result<()> {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let owner = StateDir::lock(dir.path()).unwrap();
        let refused = StateDir::lock(dir.path()).err().unwrap().to_string();
        assert!(refused.starts_with("another diego runs with the state directory"), "{refused}");
        drop(owner);
        assert!(StateDir::lock(dir.path()).is_ok());
    }

    #[test]
    fn what_is_kept_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::lock(dir.path()).unwrap();
        assert_eq!(state.kept("key", || Ok("first".into())).unwrap(), "first");
        assert_eq!(state.kept("key", || Ok("second".into())).unwrap(), "first");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let error = StateDir::lock(Path::new("/proc/nowhere")).err().unwrap().to_string();
        assert_eq!(error, "cannot use /proc/nowhere as the state directory");
    }
}
