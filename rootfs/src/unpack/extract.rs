//! A tar stream written below one directory, with descriptors only: no path of an archive is ever resolved by name
//! from the outside, so that no entry, however it is put, leaves the directory.
//!
//! Whiteouts become what the kernel's overlay understands: a character device 0/0, or the opaque attribute on a
//! directory. Device nodes are left out: containers get theirs from elsewhere. Later entries of one name replace
//! earlier ones. Ownership is kept as it is; mapping it is the mount's work.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::attributes::{Attributes, attributes, set_attributes, set_attributes_of_node, set_opaque};
use super::entry::{Meaning, Place, shown};
use super::{Error, Limits, Room};
use crate::tree;

/// Bytes of extended headers (long names, attributes) that one entry may have.
const HEADER_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of directory names kept to set their times at the end.
const DIRECTORY_NAMES_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Also the least stretch of zeros that becomes a hole.
const COPY_BYTES: usize = 64 * 1024;
/// What an entry takes beside its content, as far as that is looked at.
const ENTRY_BYTES: u64 = 4096;
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[derive(Debug, Default)]
pub struct Extracted {
    pub bytes: u64,
    pub entries: u64,
    pub implied: Vec<Place>,
    pub with_whiteouts: Vec<Place>,
    pub opaque: bool,
    pub devices_skipped: u64,
}

/// Reads `content` up to the archive's end. Blocking.
pub fn extract(
    content: impl Read,
    root: &Path,
    limits: Limits,
    room: &mut dyn Room,
) -> Result<Extracted, Error> {
    let root = rustix::fs::openat(CWD, root, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|errno| Error::Write { entry: "/".into(), source: errno.into() })?;
    let allowance = Rc::new(Cell::new(Some(HEADER_BYTES_MAX)));
    let mut archive = tar::Archive::new(Bounded { inner: content, allowance: allowance.clone() });
    let mut tree = Tree {
        root,
        parent: None,
        limits,
        room,
        implied: BTreeSet::new(),
        with_whiteouts: BTreeSet::new(),
        times: Vec::new(),
        times_bytes: 0,
        buffer: vec![0; COPY_BYTES],
        extracted: Extracted::default(),
    };
    let corrupt = |error: io::Error| Error::Corrupt(error.to_string());
    for entry in archive.entries().map_err(corrupt)? {
        let mut entry = entry.map_err(corrupt)?;
        allowance.set(None);
        tree.add(&mut entry)?;
        // What is left of this entry is content, too, and is not counted as the next one's header.
        io::copy(&mut entry, &mut io::sink()).map_err(corrupt)?;
        allowance.set(Some(HEADER_BYTES_MAX));
    }
    tree.finish()
}

/// Bounds what is read between two entries: extended headers are held in memory, so they must not be endless.
struct Bounded<R> {
    inner: R,
    /// `None` while the content of an entry is read.
    allowance: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(left) = self.allowance.get() {
            let left = left.checked_sub(length as u64).ok_or_else(|| {
                io::Error::other(format!("an entry has more than {HEADER_BYTES_MAX} bytes of headers"))
            })?;
            self.allowance.set(Some(left));
        }
        Ok(length)
    }
}

struct Tree<'a> {
    root: OwnedFd,
    /// The directory of the last entry: archives list a directory's files one after the other.
    parent: Option<(Place, Rc<OwnedFd>)>,
    limits: Limits,
    room: &'a mut dyn Room,
    implied: BTreeSet<Place>,
    with_whiteouts: BTreeSet<Place>,
    times: Vec<(Place, Timespec)>,
    times_bytes: usize,
    buffer: Vec<u8>,
    extracted: Extracted,
}

impl Tree<'_> {
    fn take_room(&mut self, place: &Place, bytes: u64) -> Result<(), Error> {
        let refused = |reason| Error::NoRoom { entry: place.to_string(), bytes, reason };
        self.room.take(bytes.saturating_add(ENTRY_BYTES)).map_err(refused)
    }

    fn add(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), Error> {
        self.count()?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let escapes = |reason| Error::Escapes { entry: shown(&raw), reason };
        match Meaning::of(&raw).map_err(escapes)? {
            Meaning::Nothing => Ok(()),
            Meaning::Whiteout(place) => self.whiteout(&place),
            Meaning::Opaque(place) => self.opaque(&place),
            Meaning::Content(place) => {
                let kind = if raw.ends_with(b"/") && kind.is_file() { EntryType::Directory } else { kind };
                self.content(&place, kind, entry)
            }
        }
    }

    fn content(
        &mut self,
        place: &Place,
        kind: EntryType,
        entry: &mut Entry<'_, impl Read>,
    ) -> Result<(), Error> {
        let attributes = attributes(place, entry)?;
        match kind {
            EntryType::Directory => self.directory(place, &attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(place, &attributes, entry)
            }
            EntryType::Symlink => self.symlink(place, &attributes, &link_name(place, entry)?),
            EntryType::Link => self.hard_link(place, &link_name(place, entry)?),
            EntryType::Fifo => self.fifo(place, &attributes),
            EntryType::Block | EntryType::Char => {
                self.extracted.devices_skipped += 1;
                Ok(())
            }
            other => {
                Err(impossible(place, format!("its type '{}' is unknown", other.as_byte().escape_ascii())))
            }
        }
    }

    fn count(&mut self) -> Result<(), Error> {
        self.extracted.entries += 1;
        match self.extracted.entries > self.limits.entries_max {
            true => Err(Error::TooManyEntries { limit: self.limits.entries_max }),
            false => Ok(()),
        }
    }

    fn directory(&mut self, place: &Place, attributes: &Attributes) -> Result<(), Error> {
        let directory = match place.split() {
            None => self.root.try_clone().map_err(|source| failed(place, source))?,
            Some((parent, name)) => {
                let parent = self.parent(&parent, place)?;
                open_or_make_directory(parent.as_fd(), name, place, Replace::Anything)?.0
            }
        };
        self.implied.remove(place);
        set_attributes(directory.as_fd(), place, attributes)?;
        self.times_bytes += place.bytes().len() + size_of::<(Place, Timespec)>();
        if self.times_bytes > DIRECTORY_NAMES_BYTES_MAX {
            return Err(Error::TooManyEntries { limit: self.extracted.entries });
        }
        self.times.push((place.clone(), attributes.modified));
        Ok(())
    }

    fn file(
        &mut self,
        place: &Place,
        attributes: &Attributes,
        entry: &mut Entry<'_, impl Read>,
    ) -> Result<(), Error> {
        if entry.size() > self.limits.bytes_max - self.extracted.bytes {
            return Err(Error::TooManyBytes { limit: self.limits.bytes_max });
        }
        self.take_room(place, entry.size())?;
        let (parent, name) = split(place)?;
        let parent = self.parent(&parent, place)?;
        let parent = parent.as_fd();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let file = replacing(parent, name, place, create)?;
        let mut file = File::from(file);
        self.extracted.bytes += entry.size();
        copy(entry, &mut file, &mut self.buffer, place)?;
        set_attributes(file.as_fd(), place, attributes)?;
        let times = Timestamps { last_access: attributes.modified, last_modification: attributes.modified };
        rustix::fs::futimens(&file, &times).map_err(|errno| failed(place, errno.into()))
    }

    fn symlink(&mut self, place: &Place, attributes: &Attributes, target: &[u8]) -> Result<(), Error> {
        let (parent, name) = split(place)?;
        let parent = self.parent(&parent, place)?;
        let parent = parent.as_fd();
        replacing(parent, name, place, || rustix::fs::symlinkat(target, parent, name))?;
        set_attributes_of_node(parent, name, place, attributes)
    }

    fn fifo(&mut self, place: &Place, attributes: &Attributes) -> Result<(), Error> {
        let (parent, name) = split(place)?;
        let parent = self.parent(&parent, place)?;
        let parent = parent.as_fd();
        replacing(parent, name, place, || {
            rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        })?;
        rustix::fs::chownat(parent, name, attributes.owner, attributes.group, AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| rustix::fs::chmodat(parent, name, attributes.mode, AtFlags::empty()))
            .map_err(|errno| failed(place, errno.into()))?;
        set_attributes_of_node(parent, name, place, attributes)
    }

    /// The target must be in this layer: layers are unpacked each by itself.
    fn hard_link(&mut self, place: &Place, target: &[u8]) -> Result<(), Error> {
        let escapes = |_| Error::Escapes { entry: place.to_string(), reason: "its hard link leads out" };
        let target = Place::parse(target).map_err(escapes)?;
        if target == *place {
            return Ok(());
        }
        let Some((target_parent, target_name)) = target.split() else {
            return Err(impossible(place, "its hard link leads to the root".into()));
        };
        let missing =
            || impossible(place, format!("it is a hard link to '{target}', which is not in this layer"));
        let target_parent = match open_directory(self.root.as_fd(), &target_parent, place)? {
            Found::Directory(directory) => directory,
            Found::Absent | Found::NotADirectory => return Err(missing()),
        };
        let (parent, name) = split(place)?;
        let parent = self.parent(&parent, place)?;
        let parent = parent.as_fd();
        let link = || match rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(false),
            answer => answer.map(|()| true),
        };
        if replacing(parent, name, place, link)? { Ok(()) } else { Err(missing()) }
    }

    /// A place that this layer itself has filled stays; only what lower layers have there is hidden.
    fn whiteout(&mut self, place: &Place) -> Result<(), Error> {
        let (above, name) = split(place)?;
        let parent = self.parent(&above, place)?;
        let parent = parent.as_fd();
        match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.with_whiteouts.insert(above);
                Ok(())
            }
            Err(Errno::EXIST) => {
                match rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(directory) => set_opaque(directory.as_fd(), place),
                    Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                    Err(errno) => Err(failed(place, errno.into())),
                }
            }
            Err(errno) => Err(failed(place, errno.into())),
        }
    }

    fn opaque(&mut self, place: &Place) -> Result<(), Error> {
        if place.is_root() {
            // An overlay never asks its root's layers whether they are opaque.
            self.extracted.opaque = true;
            return Ok(());
        }
        let directory = self.parent(place, place)?;
        set_opaque(directory.as_fd(), place)
    }

    /// The directory `place`, made with all above it where it is not there yet.
    fn parent(&mut self, place: &Place, of: &Place) -> Result<Rc<OwnedFd>, Error> {
        if let Some((last, directory)) = &self.parent
            && last == place
        {
            return Ok(directory.clone());
        }
        let directory = match open_directory(self.root.as_fd(), place, of)? {
            Found::Directory(directory) => directory,
            Found::Absent | Found::NotADirectory => self.make_directories(place, of)?,
        };
        let directory = Rc::new(directory);
        // What replaces a directory is made in the one above it, which is then the one kept: never a removed one.
        self.parent = Some((place.clone(), directory.clone()));
        Ok(directory)
    }

    fn make_directories(&mut self, place: &Place, of: &Place) -> Result<OwnedFd, Error> {
        let mut current = self.root.try_clone().map_err(|source| failed(of, source))?;
        let mut path = Place::default();
        for component in place.components() {
            path = path.join(component);
            let at = rustix::fs::statat(&current, component, AtFlags::SYMLINK_NOFOLLOW);
            let is_symlink = at.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
            if is_symlink {
                current = match open_directory(self.root.as_fd(), &path, of)? {
                    Found::Directory(directory) => directory,
                    _ => {
                        return Err(impossible(of, format!("its parent '{path}' is a link to no directory")));
                    }
                };
                continue;
            }
            let made;
            (current, made) = open_or_make_directory(current.as_fd(), component, of, Replace::Whiteouts)?;
            if made {
                self.count()?;
                self.implied.insert(path.clone());
            }
        }
        Ok(current)
    }

    /// Directories get their times last, because everything made in them changes these.
    fn finish(mut self) -> Result<Extracted, Error> {
        for (place, modified) in std::mem::take(&mut self.times).into_iter().rev() {
            let directory = match open_directory(self.root.as_fd(), &place, &place) {
                Ok(Found::Directory(directory)) => directory,
                // A later entry replaced it, or one above it, perhaps by a link that leads elsewhere.
                Ok(Found::Absent | Found::NotADirectory) | Err(Error::Escapes { .. }) => continue,
                Err(error) => return Err(error),
            };
            let times = Timestamps { last_access: modified, last_modification: modified };
            rustix::fs::futimens(&directory, &times).map_err(|errno| failed(&place, errno.into()))?;
        }
        self.extracted.implied = self.implied.into_iter().collect();
        self.extracted.with_whiteouts = self.with_whiteouts.into_iter().collect();
        Ok(self.extracted)
    }
}

enum Found {
    Directory(OwnedFd),
    Absent,
    NotADirectory,
}

/// Opens a directory of the tree. A symbolic link on the way is followed only where it stays below the root.
fn open_directory(root: BorrowedFd<'_>, place: &Place, of: &Place) -> Result<Found, Error> {
    if place.is_root() {
        return root.try_clone_to_owned().map(Found::Directory).map_err(|source| failed(of, source));
    }
    let strict = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let lenient = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = |resolve| rustix::fs::openat2(root, place.bytes(), DIRECTORY, Mode::empty(), resolve);
    let opened = match open(strict) {
        Err(Errno::LOOP) => open(lenient),
        opened => opened,
    };
    match opened {
        Ok(directory) => Ok(Found::Directory(directory)),
        Err(Errno::NOENT) => Ok(Found::Absent),
        Err(Errno::NOTDIR) => Ok(Found::NotADirectory),
        Err(Errno::XDEV | Errno::LOOP) => Err(Error::Escapes {
            entry: of.to_string(),
            reason: "a symbolic link on its way leads out of the layer",
        }),
        Err(errno) => Err(failed(of, errno.into())),
    }
}

/// What a directory may take the place of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replace {
    Anything,
    Whiteouts,
}

/// The directory, and whether it was made. One that takes the place of something else is opaque: that something hid
/// what lower layers have there.
fn open_or_make_directory(
    parent: BorrowedFd<'_>,
    name: &[u8],
    of: &Place,
    replace: Replace,
) -> Result<(OwnedFd, bool), Error> {
    let write_failed = |errno: Errno| failed(of, errno.into());
    let open = || rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let make = || rustix::fs::mkdirat(parent, name, DIRECTORY_MODE).and_then(|()| open());
    match open() {
        Ok(directory) => Ok((directory, false)),
        Err(Errno::NOENT) => make().map(|directory| (directory, true)).map_err(write_failed),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            if replace == Replace::Whiteouts && !is_whiteout(parent, name) {
                return Err(impossible(of, format!("its parent '{}' is no directory", shown(name))));
            }
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(write_failed)?;
            let directory = make().map_err(write_failed)?;
            set_opaque(directory.as_fd(), of)?;
            Ok((directory, true))
        }
        Err(errno) => Err(write_failed(errno)),
    }
}

fn is_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
    })
}

/// Makes a node with `make`; what an earlier entry put there goes.
fn replacing<T>(
    parent: BorrowedFd<'_>,
    name: &[u8],
    place: &Place,
    make: impl Fn() -> Result<T, Errno>,
) -> Result<T, Error> {
    match make() {
        Err(Errno::EXIST) => {
            tree::remove_at(parent, name).map_err(|source| failed(place, source))?;
            make().map_err(|errno| failed(place, errno.into()))
        }
        made => made.map_err(|errno| failed(place, errno.into())),
    }
}

fn split(place: &Place) -> Result<(Place, &[u8]), Error> {
    place.split().ok_or_else(|| impossible(place, "the root must be a directory".into()))
}

/// Stretches of zeros become holes.
fn copy(
    entry: &mut Entry<'_, impl Read>,
    file: &mut File,
    buffer: &mut [u8],
    place: &Place,
) -> Result<(), Error> {
    let size = entry.size();
    let mut copied = 0;
    let mut ends_in_a_hole = false;
    while copied < size {
        let length =
            super::fill(&mut entry.take(size - copied), buffer).map_err(|e| Error::Corrupt(e.to_string()))?;
        if length == 0 {
            return Err(Error::Corrupt(format!("it ends in the middle of entry '{place}'")));
        }
        let piece = &buffer[..length];
        ends_in_a_hole = length == buffer.len() && piece.iter().all(|byte| *byte == 0);
        let written = match ends_in_a_hole {
            true => file.seek(SeekFrom::Current(length as i64)).map(|_| ()),
            false => file.write_all(piece),
        };
        written.map_err(|source| failed(place, source))?;
        copied += length as u64;
    }
    if ends_in_a_hole {
        file.set_len(size).map_err(|source| failed(place, source))?;
    }
    Ok(())
}

fn link_name(place: &Place, entry: &Entry<'_, impl Read>) -> Result<Vec<u8>, Error> {
    match entry.link_name_bytes() {
        Some(name) if !name.is_empty() && !name.contains(&0) => Ok(name.into_owned()),
        _ => Err(impossible(place, "it is a link to nothing".into())),
    }
}

pub fn failed(place: &Place, source: io::Error) -> Error {
    Error::Write { entry: place.to_string(), source }
}

pub fn impossible(place: &Place, reason: String) -> Error {
    Error::Impossible { entry: place.to_string(), reason }
}
