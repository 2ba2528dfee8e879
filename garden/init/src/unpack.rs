//! A tar stream into the current directory, as whoever runs this.
//!
//! Owners and special mode bits of the archive do not count; nothing is written beside the directory. Plain files are
//! made here, those with much in them without their content passing through this program; everything else, and every
//! refusal, is the tar crate's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::attributes;
use crate::source::{BUFFER_BYTES, Source};
use crate::sparse::{self, Sparse};

/// Bits of a mode that do not survive.
const UMASK: u32 = 0o022;
const PERMISSIONS: u32 = 0o777;
/// Where the archive's is not a number.
const MODE_DEFAULT: u32 = 0o644;
/// Less than this is read and written.
const MOVED_BYTES_MIN: u64 = 64 * 1024;

pub fn unpack(stream: File) -> io::Result<()> {
    unpack_into(stream, Path::new("."))
}

pub fn unpack_into(stream: File, directory: &Path) -> io::Result<()> {
    let source = Source::new(stream);
    unpack_archive(&source, directory).map_err(innermost)?;
    // What follows the end of the archive is taken too, so that its writer does not find the pipe closed.
    io::copy(&mut &source, &mut io::sink())?;
    Ok(())
}

fn unpack_archive(source: &Source, into: &Path) -> io::Result<()> {
    let mut archive = Archive::new(source);
    archive.set_preserve_permissions(false);
    archive.set_preserve_ownerships(false);
    archive.set_preserve_mtime(true);
    archive.set_mask(UMASK);
    archive.set_overwrite(true);
    let mut destination = Destination::open_at(into)?;
    let (mut directories, mut piece) = (Vec::new(), vec![0; BUFFER_BYTES]);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type() == EntryType::Directory {
            directories.push(entry);
            continue;
        }
        let sparse = sparse::of(&mut entry).map_err(|error| failed(&entry.path_bytes(), error))?;
        let name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let name = name.unwrap_or_else(|| entry.path_bytes().into_owned());
        match (destination.create(&entry, &name), sparse) {
            (Some(mut file), sparse) => fill(&mut file, &mut entry, sparse, source, &mut piece)
                .map_err(|error| failed(&name, error))?,
            (None, Some(_)) => {
                let error = io::Error::other("a sparse file cannot be made there");
                return Err(failed(&name, error));
            }
            (None, None) => {
                destination.parent = None;
                entry.unpack_in(&destination.path)?;
            }
        }
    }
    // Last and the innermost first: one that may not be written to does not stop what is in it from being made.
    directories.sort_by(|one, other| other.path_bytes().cmp(&one.path_bytes()));
    for directory in &mut directories {
        directory.unpack_in(&destination.path)?;
        // One that cannot be opened in this way comes without attributes.
        let opened = below(&directory.path_bytes()).and_then(|below| destination.open_to_read(&below));
        if let Some(opened) = opened {
            attributes::restore(directory, &opened)?;
        }
    }
    Ok(())
}

fn failed(name: &[u8], error: io::Error) -> io::Error {
    let why = match Errno::from_io_error(&error) {
        // As most programs say it, and people look for it.
        Some(Errno::DQUOT) => "Disk quota exceeded".into(),
        _ => error.to_string(),
    };
    let message = format!("failed to unpack `{}`: {why}", String::from_utf8_lossy(name));
    io::Error::new(error.kind(), message)
}

/// The whole content, then its time and mode.
fn fill<'a>(
    file: &mut File,
    entry: &mut Entry<'_, &'a Source>,
    sparse: Option<Sparse>,
    source: &'a Source,
    piece: &mut [u8],
) -> io::Result<()> {
    match sparse {
        None => move_content(file, entry, entry.size(), source, piece)?,
        Some(sparse) => {
            for stretch in sparse.stretches {
                file.seek(SeekFrom::Start(stretch.offset))?;
                move_content(file, entry, stretch.bytes, source, piece)?;
            }
            file.set_len(sparse.size)?;
        }
    }
    if let Ok(seconds) = entry.header().mtime() {
        // Like the tar crate: nothing comes from the beginning of time.
        let time = Timespec { tv_sec: seconds.max(1).cast_signed(), tv_nsec: 0 };
        rustix::fs::futimens(&*file, &Timestamps { last_access: time, last_modification: time })?;
    }
    // It has been made with it, but a directory's own rules for what is made in it may have changed that.
    let mode = mode_of(entry);
    if rustix::fs::fstat(&*file)?.st_mode & PERMISSIONS != mode {
        rustix::fs::fchmod(&*file, Mode::from_raw_mode(mode))?;
    }
    attributes::restore(entry, file)
}

/// The next `left` bytes of an entry to where `file` stands.
fn move_content<'a>(
    file: &mut File,
    entry: &mut Entry<'_, &'a Source>,
    mut left: u64,
    source: &'a Source,
    piece: &mut [u8],
) -> io::Result<()> {
    while left > 0 {
        let moved = if left < MOVED_BYTES_MIN { None } else { source.move_to(file, left)? };
        let count = match moved {
            Some(0) => 0,
            Some(moved) => pass_over(entry, moved, piece)?,
            None => copy_some(file, entry, left, piece)?,
        };
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within it"));
        }
        left -= count;
    }
    Ok(())
}

fn copy_some(file: &mut File, entry: &mut impl Read, left: u64, piece: &mut [u8]) -> io::Result<u64> {
    let wanted = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    let length = read(entry, &mut piece[..wanted])?;
    file.write_all(&piece[..length])?;
    Ok(length as u64)
}

/// Content that is in its file already.
fn pass_over(entry: &mut impl Read, count: u64, piece: &mut [u8]) -> io::Result<u64> {
    let mut left = count;
    while left > 0 {
        let wanted = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match read(entry, &mut piece[..wanted])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => left -= length as u64,
        }
    }
    Ok(count)
}

fn read(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn mode_of<R: Read>(entry: &Entry<'_, R>) -> u32 {
    entry.header().mode().unwrap_or(MODE_DEFAULT) & PERMISSIONS & !UMASK
}

struct Destination {
    path: PathBuf,
    root: OwnedFd,
    /// Where the last file was made, for as long as only files are made.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl Destination {
    fn open_at(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(CWD, path, directory(), Mode::empty())?;
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        Ok(Self { path, root, parent: None })
    }

    /// A new empty file where a plain one belongs, in the place of what is there. `None`: it is another kind of entry, or
    /// its name is one to be skipped, or it cannot be made in this way (links that are absolute, kernels before 5.6): the
    /// tar crate knows what to do, and says what is wrong.
    fn create<R: Read>(&mut self, entry: &Entry<'_, R>, name: &[u8]) -> Option<File> {
        // Old archives have directories that are files by their type.
        if entry.header().entry_type() != EntryType::Regular || name.ends_with(b"/") {
            return None;
        }
        let below = below(name)?;
        let (name, mode) = (below.file_name()?, Mode::from_raw_mode(mode_of(entry)));
        let parent = match self.parent.take() {
            Some((path, parent)) if path == below.parent()? => (path, parent),
            _ => (below.parent()?.into(), self.make_directories(below.parent()?)?),
        };
        let (_, parent) = self.parent.insert(parent);
        create_new(parent.as_fd(), name, mode)
    }

    fn make_directories(&self, below: &Path) -> Option<OwnedFd> {
        match self.open(below) {
            Err(Errno::NOENT) => {}
            opened => return opened.ok(),
        }
        // Names that are too long have been refused before this goes deep.
        let parent = self.make_directories(below.parent()?)?;
        match rustix::fs::mkdirat(parent, below.file_name()?, Mode::from_raw_mode(PERMISSIONS)) {
            Ok(()) | Err(Errno::EXIST) => self.open(below).ok(),
            Err(_) => None,
        }
    }

    /// Never through a link that leads out.
    fn open(&self, below: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_as(below, directory())
    }

    fn open_to_read(&self, below: &Path) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_as(below, flags).ok().map(File::from)
    }

    fn open_as(&self, below: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, below, flags, Mode::empty(), resolve)
    }
}

/// Where an entry of this name belongs; `None`: nowhere.
fn below(name: &[u8]) -> Option<PathBuf> {
    let mut below = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
            Component::ParentDir => return None,
            Component::Normal(part) => below.push(part),
        }
    }
    Some(below)
}

fn directory() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Never through what has the name now: that is unlinked, whatever else points to it.
fn create_new(parent: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> Option<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let created = match rustix::fs::openat(parent, name, flags, mode) {
        Err(Errno::EXIST) => match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => rustix::fs::openat(parent, name, flags, mode),
            Err(error) => Err(error),
        },
        other => other,
    };
    created.ok().map(File::from)
}

/// The tar crate wraps each reason in a sentence about the one before; the first and the last say it.
fn innermost(error: io::Error) -> io::Error {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let (outer, inner) = (error.to_string(), cause.to_string());
    if outer == inner { error } else { io::Error::new(error.kind(), format!("{outer}: {inner}")) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn world(name: &str) -> PathBuf {
        let world = std::env::temp_dir().join(format!("unpack-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&world);
        fs::create_dir_all(world.join("in")).unwrap();
        world
    }

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_mode(0o6777);
            header.set_mtime(1_234_567);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// From a file and from a pipe.
    fn unpacked(tar: &[u8], world: &Path) -> io::Result<()> {
        let mut file = File::from(memfd_create("tar", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(tar).unwrap();
        file.rewind().unwrap();
        let from_file = unpack_archive(&Source::new(file), &world.join("in"));
        let (read, write) = crate::pid1::pipe().unwrap();
        let from_pipe = std::thread::scope(|scope| {
            // Whoever reads may stop in the middle.
            scope.spawn(move || File::from(write).write_all(tar));
            unpack_archive(&Source::new(read.into()), &world.join("in"))
        });
        assert_eq!(from_file.is_ok(), from_pipe.is_ok());
        from_pipe
    }

    #[test]
    fn plain_files_come_whole_with_time_and_mode_and_the_directories_they_are_in() {
        let world = world("plain");
        let large: Vec<u8> = (0..3 * BUFFER_BYTES + 77).map(|at| (at % 251) as u8).collect();
        let middle = &large[..MOVED_BYTES_MIN as usize];
        let entries: [(&str, &[u8]); 5] = [
            ("/a/./b/large", &large),
            ("small", b"x"),
            ("none", b""),
            ("middle", middle),
            ("b/large", &large),
        ];
        unpacked(&archive(&entries), &world).unwrap();
        for (name, content) in [("a/b/large", &large[..]), ("middle", middle), ("b/large", &large)] {
            assert!(fs::read(world.join("in").join(name)).unwrap() == content, "{name}");
        }
        assert_eq!(fs::read(world.join("in/small")).unwrap(), b"x");
        assert_eq!(fs::read(world.join("in/none")).unwrap(), b"");
        let metadata = fs::metadata(world.join("in/a/b/large")).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o755, 1_234_567));
        fs::remove_dir_all(world).unwrap();
    }

    #[test]
    fn what_has_the_name_is_replaced_and_not_written_to() {
        let world = world("replaced");
        fs::write(world.join("other"), "other").unwrap();
        symlink(world.join("other"), world.join("in/link")).unwrap();
        fs::hard_link(world.join("other"), world.join("in/hard")).unwrap();
        unpacked(&archive(&[("link", b"new"), ("hard", b"new")]), &world).unwrap();
        for name in ["link", "hard"] {
            assert_eq!(fs::read(world.join("in").join(name)).unwrap(), b"new");
        }
        assert_eq!(fs::read(world.join("other")).unwrap(), b"other");
        // A directory is not.
        fs::create_dir(world.join("in/full")).unwrap();
        assert!(unpacked(&archive(&[("full", b"new")]), &world).is_err());
        fs::remove_dir_all(world).unwrap();
    }

    #[test]
    fn links_are_followed_inside_and_not_out() {
        let world = world("links");
        for (name, target) in [
            ("inside", PathBuf::from("place")),
            ("absolute", world.join("in/place")),
            ("up", "..".into()),
            ("out", world.clone()),
            ("nowhere", "../beside".into()),
        ] {
            symlink(target, world.join("in").join(name)).unwrap();
        }
        fs::create_dir(world.join("in/place")).unwrap();
        let good = archive(&[("inside/one", b"1"), ("absolute/sub/two", b"2"), ("../three", b"3")]);
        unpacked(&good, &world).unwrap();
        assert_eq!(fs::read(world.join("in/place/one")).unwrap(), b"1");
        assert_eq!(fs::read(world.join("in/place/sub/two")).unwrap(), b"2");
        for bad in ["up/file", "out/file", "out/new/file", "nowhere/file"] {
            assert!(unpacked(&archive(&[(bad, b"x")]), &world).is_err(), "{bad}");
        }
        let beside: Vec<_> = fs::read_dir(&world).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside, ["in"]);
        fs::remove_dir_all(world).unwrap();
    }

    #[test]
    fn an_archive_that_ends_too_early_is_an_error() {
        let world = world("short");
        for (size, left) in [(5_000, 2_000), (500_000, 2_000), (500_000, 400_000)] {
            let whole = archive(&[("file", &vec![7; size])]);
            let error = unpacked(&whole[..left], &world).unwrap_err().to_string();
            assert_eq!(error, "failed to unpack `file`: the archive ends within it");
        }
        fs::remove_dir_all(world).unwrap();
    }

    #[test]
    fn what_is_sparse_in_an_archive_is_sparse_in_the_root_whatever_its_form() {
        let world = world("sparse");
        let file = File::create(world.join("giant")).unwrap();
        file.set_len(64 << 20).unwrap();
        for (at, content) in [(4 << 20, vec![b'x'; 3 * BUFFER_BYTES]), (40 << 20, b"in the middle".to_vec())]
        {
            std::os::unix::fs::FileExt::write_all_at(&file, &content, at).unwrap();
        }
        fs::write(world.join("after"), "after").unwrap();
        let forms = [
            ["--format=gnu", "--sparse"],
            ["--format=pax", "--sparse-version=0.0"],
            ["--format=pax", "--sparse-version=0.1"],
            ["--format=pax", "--sparse-version=1.0"],
        ];
        for form in forms {
            let mut tar = std::process::Command::new("tar");
            tar.arg("-C").arg(&world).args(form).args(["-Scf", "-", "giant", "after"]);
            let archive = tar.output().unwrap().stdout;
            assert!(archive.len() < 2 << 20);
            unpacked(&archive, &world).unwrap();
            let unpacked = world.join("in/giant");
            assert!(fs::metadata(&unpacked).unwrap().blocks() < 4000, "{form:?}");
            assert!(fs::read(&unpacked).unwrap() == fs::read(world.join("giant")).unwrap(), "{form:?}");
            assert_eq!(fs::read(world.join("in/after")).unwrap(), b"after", "{form:?}");
            assert_eq!(fs::read_dir(world.join("in")).unwrap().count(), 2, "{form:?}");
            fs::remove_dir_all(world.join("in")).unwrap();
            fs::create_dir(world.join("in")).unwrap();
        }
        fs::remove_dir_all(world).unwrap();
    }

    #[test]
    fn a_sparse_file_that_lies_about_itself_is_refused_by_name() {
        let world = world("liar");
        for (records, content, why) in [
            (&[("major", "1"), ("realsize", "100")][..], "1\n90\n20\n", "is not in order or leads out of it"),
            (&[("major", "1"), ("realsize", "100")], "1\n0\n20\n", "does not fit what is stored of it"),
            (&[("major", "2"), ("realsize", "100")], "", "it is sparse in a form that is not known"),
            (&[("map", "0,1")], "x", "it is sparse and has no size"),
            (&[("size", "x")], "x", "has something else for a number"),
            (&[("size", "100"), ("map", "0,1"), ("name", "../out")], "x", "cannot be made there"),
        ] {
            let keys: Vec<_> =
                records.iter().map(|(key, value)| (format!("GNU.sparse.{key}"), value)).collect();
            let mut builder = tar::Builder::new(Vec::new());
            builder
                .append_pax_extensions(keys.iter().map(|(key, value)| (key.as_str(), value.as_bytes())))
                .unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_path("file").unwrap();
            header.set_size(content.len().next_multiple_of(if content.len() > 1 { 512 } else { 1 }) as u64);
            header.set_cksum();
            let mut content = content.as_bytes().to_vec();
            content.resize(header.size().unwrap() as usize, 0);
            builder.append(&header, content.as_slice()).unwrap();
            let error = unpacked(&builder.into_inner().unwrap(), &world).unwrap_err().to_string();
            assert!(error.starts_with("failed to unpack `") && error.ends_with(why), "{error}");
        }
        assert_eq!(fs::read_dir(&world).unwrap().count(), 1, "nothing beside the directory");
        fs::remove_dir_all(world).unwrap();
    }
}
