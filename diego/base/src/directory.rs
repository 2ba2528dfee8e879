//! Directories that are a program's alone. What lies in them and belongs to nothing that is known is removed at the
//! start, as what an earlier life left, so one that others use must never be taken for one's own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What every filesystem of some kinds has in its uppermost directory.
const LOST_AND_FOUND: &str = "lost+found";

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("cannot use {path} as a directory of one's own")]
    Unusable { path: PathBuf, source: io::Error },
    #[error(
        "{path} is used by others, who keep '{found}' there: name a directory that is empty or not there yet"
    )]
    OfOthers { path: PathBuf, found: String },
}

/// Makes a directory if need be. One that was there is one's own if it is empty, or if it bears the `mark`, a file that
/// is written now and stays.
pub fn claim(path: &Path, mark: &str) -> Result<(), Refused> {
    let unusable = |source| Refused::Unusable { path: path.to_path_buf(), source };
    fs::create_dir_all(path).map_err(unusable)?;
    if path.join(mark).try_exists().map_err(unusable)? {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(unusable)? {
        let name = entry.map_err(unusable)?.file_name();
        // Another that claims it at this very moment has marked it.
        if !stays(&name, mark) {
            return Err(Refused::OfOthers {
                path: path.to_path_buf(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    fs::OpenOptions::new().create(true).append(true).open(path.join(mark)).map(drop).map_err(unusable)
}

/// What is in such a directory and is nobody's leavings.
pub fn stays(name: &OsStr, mark: &str) -> bool {
    name == mark || name == LOST_AND_FOUND
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = ".mark";

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("diego-directory-{name}-{}", std::process::id()));
        _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_directory_is_claimed_once_and_found_again() {
        let dir = scratch("claimed");
        let own = dir.join("a/b");
        claim(&own, MARK).unwrap();
        fs::write(own.join("thing"), "").unwrap();
        claim(&own, MARK).unwrap();
        assert!(matches!(claim(&own, ".other"), Err(Refused::OfOthers { .. })), "it is another's");
        fs::create_dir_all(dir.join("disk/lost+found")).unwrap();
        claim(&dir.join("disk"), MARK).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_others_use_is_refused_and_left_as_it_is() {
        let dir = scratch("others");
        fs::create_dir_all(dir.join("letters")).unwrap();
        let refused = claim(&dir, MARK).unwrap_err().to_string();
        assert!(refused.contains("'letters'"), "{refused}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let file = dir.join("letters/one");
        fs::write(&file, "").unwrap();
        assert!(matches!(claim(&file, MARK), Err(Refused::Unusable { .. })));
        fs::remove_dir_all(dir).unwrap();
    }
}
