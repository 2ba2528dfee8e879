//! Droplets and caches: directories streamed into gzipped tar archives, without a copy on disk and without `tar` in the
//! container. Modes, owners, times, symbolic and hard links are kept; sockets and devices are left out.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use tar::{Builder, EntryType, Header};

#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PackError {
    path: PathBuf,
    source: io::Error,
}

/// An archive being written.
pub struct Archive {
    file: PathBuf,
    tar: Builder<GzEncoder<BufWriter<File>>>,
    /// Names of the files with more than one link, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Archive {
    pub fn create(file: &Path) -> Result<Archive, PackError> {
        let parent = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(at(parent))?;
        let output = BufWriter::with_capacity(256 * 1024, File::create(file).map_err(at(file))?);
        Ok(Archive {
            file: file.to_owned(),
            tar: Builder::new(GzEncoder::new(output, Compression::default())),
            links: HashMap::new(),
        })
    }

    /// Adds `source`, and all below it when it is a directory, as `name`. An empty name is the archive's own root.
    pub fn add(&mut self, source: &Path, name: &str) -> Result<(), PackError> {
        self.add_path(source, &Path::new(".").join(name))
    }

    fn add_path(&mut self, source: &Path, name: &Path) -> Result<(), PackError> {
        let metadata = fs::symlink_metadata(source).map_err(at(source))?;
        let kind = metadata.file_type();
        if kind.is_socket() || kind.is_block_device() || kind.is_char_device() || kind.is_fifo() {
            return Ok(());
        }
        self.add_entry(source, name, &metadata).map_err(at(source))?;
        if !kind.is_dir() {
            return Ok(());
        }
        let entries = fs::read_dir(source).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries = entries.map_err(at(source))?;
        // The same tree gives the same archive.
        entries.sort_by_key(fs::DirEntry::file_name);
        entries.iter().try_for_each(|entry| self.add_path(&entry.path(), &name.join(entry.file_name())))
    }

    fn add_entry(&mut self, source: &Path, name: &Path, metadata: &Metadata) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        if metadata.is_symlink() {
            return self.append_link(header, name, &fs::read_link(source)?);
        }
        if metadata.is_dir() {
            return self.append(header, &as_directory(name), io::empty());
        }
        if metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&key).cloned() {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.append_link(header, name, &first);
            }
            self.links.insert(key, name.to_owned());
        }
        // A file that grows while it is read would break the archive behind it.
        let content = io::Read::take(File::open(source)?, metadata.len());
        self.append(header, name, content)
    }

    fn append(&mut self, mut header: Header, name: &Path, content: impl io::Read) -> io::Result<()> {
        match set_field(&mut header.as_old_mut().name, name) {
            true => {
                header.set_cksum();
                self.tar.append(&header, content)
            }
            false => self.tar.append_data(&mut header, name, content),
        }
    }

    fn append_link(&mut self, mut header: Header, name: &Path, target: &Path) -> io::Result<()> {
        let old = header.as_old_mut();
        match set_field(&mut old.name, name) && set_field(&mut old.linkname, target) {
            true => {
                header.set_cksum();
                self.tar.append(&header, io::empty())
            }
            false => self.tar.append_link(&mut header, name, target),
        }
    }

    /// Adds an empty directory.
    pub fn add_directory(&mut self, name: &str, mode: u32) -> Result<(), PackError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(mode);
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_size(0);
        let path = as_directory(&Path::new(".").join(name));
        self.append(header, &path, io::empty()).map_err(at(&self.file))
    }

    pub fn finish(self) -> Result<(), PackError> {
        let finish = |tar: Builder<GzEncoder<BufWriter<File>>>| tar.into_inner()?.finish()?.flush();
        finish(self.tar).map_err(at(&self.file))
    }
}

/// Writes a path as it is, with the `./` in front that droplets are known by and the archive library would take away;
/// `false` when it is too long for the field.
fn set_field(field: &mut [u8; 100], path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() > field.len() {
        return false;
    }
    field.fill(0);
    field[..bytes.len()].copy_from_slice(bytes);
    true
}

fn as_directory(name: &Path) -> PathBuf {
    let mut path = name.as_os_str().to_owned();
    if !path.as_encoded_bytes().ends_with(b"/") {
        path.push(OsStr::new("/"));
    }
    path.into()
}

fn at(path: &Path) -> impl Fn(io::Error) -> PackError + '_ {
    |source| PackError { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_archive_holds_the_tree_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let app = root.path().join("source");
        let long = "d".repeat(120);
        fs::create_dir_all(app.join(&long)).unwrap();
        fs::write(app.join("a"), "text").unwrap();
        fs::hard_link(app.join("a"), app.join("b")).unwrap();
        std::os::unix::fs::symlink("a", app.join("c")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(app.join("socket")).unwrap();
        let file = root.path().join("droplet");
        let mut archive = Archive::create(&file).unwrap();
        archive.add(&app, "app").unwrap();
        archive.add_directory("logs", 0o755).unwrap();
        archive.finish().unwrap();

        let tar = |words: &[&str]| {
            let output = Command::new("tar").args(words).current_dir(root.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let names = tar(&["-tzf", "droplet"]);
        let expected = format!("./app/\n./app/a\n./app/b\n./app/c\n./app/{long}/\n./logs/\n");
        assert_eq!(names, expected);
        tar(&["-xzf", "droplet"]);
        let inode = |name| root.path().join("app").join(name).symlink_metadata().unwrap().ino();
        assert_eq!(inode("a"), inode("b"));
        assert_eq!(fs::read_to_string(root.path().join("app/c")).unwrap(), "text");
    }
}
