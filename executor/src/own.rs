//! Directories that are the executor's alone. What lies in them and belongs to nothing that lives on is removed at the start, so
//! a directory that others use must never be taken for one: `/tmp` was once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Says whose a directory is.
const MARK: &str = ".executor";
/// What every filesystem of some kinds has in its uppermost directory.
const LOST_AND_FOUND: &str = "lost+found";

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("cannot make {path} a directory of the executor's own")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("{path} holds '{found}', which no executor put there: give it a directory of its own")]
    Strangers { path: PathBuf, found: String },
}

/// Makes a directory if need be. One that was there is the executor's if it is empty, or was its own before.
pub fn claim(path: &Path) -> Result<(), Refused> {
    let unusable = |source| Refused::Unusable { path: path.to_path_buf(), source };
    fs::create_dir_all(path).map_err(unusable)?;
    if path.join(MARK).try_exists().map_err(unusable)? {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(unusable)? {
        let found = entry.map_err(unusable)?.file_name().to_string_lossy().into_owned();
        if found != LOST_AND_FOUND {
            return Err(Refused::Strangers { path: path.to_path_buf(), found });
        }
    }
    fs::write(path.join(MARK), "").map_err(unusable)
}

/// What is never removed from such a directory, nor counted.
pub(crate) fn is_mark(name: &std::ffi::OsStr) -> bool {
    name == MARK || name == LOST_AND_FOUND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_claimed_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("a/b");
        claim(&own).unwrap();
        fs::write(own.join("thing"), "").unwrap();
        claim(&own).unwrap();
        fs::create_dir_all(dir.path().join("disk/lost+found")).unwrap();
        claim(&dir.path().join("disk")).unwrap();
    }

    #[test]
    fn what_others_use_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letters"), "dear").unwrap();
        let refused = claim(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("holds 'letters'") && refused.contains("of its own"), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
