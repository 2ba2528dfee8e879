//! Files that come with a recipe, shown to the container read-only.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use bbs_models::File;

use crate::Config;

pub(crate) const CONTAINER_PATH: &str = "/etc/cf-service-bindings";

#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("'{0}' is no path of a volume mounted file: the format is serviceName/fileName")]
    Path(String),
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
}

pub(crate) fn dir(config: &Config, guid: &str) -> PathBuf {
    config.work_dir.join("files").join(guid)
}

/// The directory to mount.
pub(crate) fn write(config: &Config, guid: &str, files: &[File]) -> Result<PathBuf, FilesError> {
    let dir = dir(config, guid);
    for file in files {
        let path = dir.join(relative(&file.path)?);
        write_file(&path, &file.content).map_err(|source| FilesError::Write { path, source })?;
    }
    Ok(dir)
}

fn write_file(path: &Path, content: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// Below the directory, whatever it looks like.
fn relative(path: &str) -> Result<PathBuf, FilesError> {
    let mut relative = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(FilesError::Path(path.to_string())),
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(FilesError::Path(path.to_string()));
    }
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_below_their_directory() {
        assert_eq!(relative("/db/password").unwrap(), Path::new("db/password"));
        assert_eq!(relative("./a").unwrap(), Path::new("a"));
        assert!(relative("../etc/passwd").is_err());
        assert!(relative("db/../../x").is_err());
        assert!(relative("").is_err());
        assert!(relative("/").is_err());
    }
}
