//! Tar into and out of the container: by a forked child, inside, as the user, so that whatever links and names an archive
//! or a directory holds, nothing is reached that the user could not reach itself.
//!
//! In: owners and special mode bits of the archive do not count, files become the user's. Out: sockets are passed over, and
//! holes in files are not read. Both ways: extended attributes are kept ([`attributes`]).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use garden_init::ERROR_BYTES_MAX;
use garden_init::users::User;
use garden_sys::process;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::attributes;
use crate::confinement::Confinement;
use crate::credentials;
use crate::pid1::pipe;
use crate::siphon::{self, Siphon};
use crate::spawn::{look_up, make_directories};
use crate::unpack::unpack;

const COPY_BUFFER_BYTES: usize = 256 * 1024;
/// Of a file's content, less than this is copied.
const MOVED_BYTES_MIN: u64 = 64 * 1024;
/// In which the kernel counts what a file takes.
const BLOCK_BYTES: u64 = 512;
const ATTRIBUTES_NAME: &[u8] = b"././@PaxHeader";
/// Deepest directory that is packed.
const DEPTH_MAX: usize = 1024;

#[derive(Clone, Copy)]
pub enum Direction {
    In,
    Out,
}

/// Starts the child; with it the pipe on which it complains before it ends.
pub fn start(
    confinement: Option<&Confinement>,
    direction: Direction,
    user: &str,
    path: &str,
    stream: OwnedFd,
) -> Result<(Pid, OwnedFd), String> {
    let user = look_up(user).map_err(|refused| refused.message)?;
    let (complaint, complain) = pipe().map_err(|error| error.to_string())?;
    // SAFETY: this program has one thread.
    match unsafe { process::fork() }.map_err(|error| format!("cannot start to stream: {error}"))? {
        Some(pid) => Ok((pid, complaint)),
        None => {
            process::unblock_signals();
            let confined = confinement.map_or(Ok(()), Confinement::enter_now);
            // SAFETY: whatever of pid 1 owned the other descriptors is not used in this child, which ends by `exit`.
            let Ok((stream, mut complain)) = (unsafe { keep_only(stream, complain) }) else {
                std::process::exit(1)
            };
            let outcome = confined
                .map_err(|error| format!("cannot set the AppArmor profile to stream: {error}"))
                .and_then(|()| carry(direction, &user, path, stream));
            if let Err(message) = &outcome {
                let message = &message.as_bytes()[..message.len().min(ERROR_BYTES_MAX)];
                // With nobody to read it, the status alone tells.
                let _ = complain.write_all(message);
            }
            std::process::exit(if outcome.is_ok() { 0 } else { 1 })
        }
    }
}

/// Of all descriptors only these two, in place of standard input and output: names in a container, or in an archive, lead
/// to them through `/proc/self/fd`, and would to pid 1's.
///
/// # Safety
/// Nothing that owns any other descriptor is used or dropped afterwards.
unsafe fn keep_only(stream: OwnedFd, complain: OwnedFd) -> io::Result<(OwnedFd, File)> {
    rustix::stdio::dup2_stdin(&stream)?;
    rustix::stdio::dup2_stdout(&complain)?;
    // Not dropped: their numbers are closed with all the others.
    let _ = (stream.into_raw_fd(), complain.into_raw_fd());
    // SAFETY: as our own contract says; nobody else in this program owns the two below 3.
    unsafe {
        process::close_from(3)?;
        Ok((OwnedFd::from_raw_fd(0), File::from_raw_fd(1)))
    }
}

/// What a child that has ended complained of; `None`: nothing.
pub fn complaint(pipe: OwnedFd, status: i32) -> Option<String> {
    if status == 0 {
        return None;
    }
    let mut text = Vec::new();
    // Its only writer has ended; what cannot be read is not told.
    let _ = File::from(pipe).take(ERROR_BYTES_MAX as u64).read_to_end(&mut text);
    if text.is_empty() {
        return Some(format!("streaming ended with status {status}"));
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn carry(direction: Direction, user: &User, path: &str, stream: OwnedFd) -> Result<(), String> {
    let told = |act: &str, path: &str, error: io::Error| format!("cannot {act} {path}: {error}");
    // Names that are not absolute begin at home.
    let full = Path::new("/").join(&user.home).join(path);
    if let Direction::In = direction {
        make_directories(&full.to_string_lossy(), user)
            .map_err(|error| told("make the directory", path, error))?;
    }
    credentials::become_user(user)
        .and_then(|()| process::never_dumpable())
        .map_err(|error| told("become the user for", path, error))?;
    match direction {
        Direction::In => std::env::set_current_dir(&full)
            .and_then(|()| unpack(File::from(stream)))
            .map_err(|error| told("stream into", path, error)),
        Direction::Out => pack(&full, ends_in_contents(path), File::from(stream))
            .map_err(|error| told("stream out", path, error)),
    }
}

/// `a/` and `a/.` mean what is in `a`; `a` means `a` itself.
fn ends_in_contents(path: &str) -> bool {
    path.ends_with('/') || path == "." || path.ends_with("/.")
}

fn pack(path: &Path, contents: bool, stream: File) -> io::Result<()> {
    let out = io::BufWriter::with_capacity(COPY_BUFFER_BYTES, stream);
    let mut builder = Builder { out, siphon: None, piece: vec![0; MOVED_BYTES_MIN as usize] };
    if contents {
        builder.add(path, Path::new("./"), 0)?;
    } else {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        builder.add(path, Path::new(name), 0)?;
    }
    builder.out.write_all(&[0; 1024])?;
    builder.out.flush()
}

struct Builder {
    out: io::BufWriter<File>,
    /// `None` before it is needed.
    siphon: Option<Siphon>,
    piece: Vec<u8>,
}

impl Builder {
    /// One entry and, if it is a directory, all below it.
    fn add(&mut self, path: &Path, name: &Path, depth: usize) -> io::Result<()> {
        // The root of the stream may be reached by a link when its contents are asked for.
        let contents_of_link = depth == 0 && name == Path::new("./");
        let metadata = if contents_of_link { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        if kind.is_dir() || kind.is_file() {
            self.attributes(path)?;
        }
        if kind.is_dir() {
            header.set_size(0);
            self.header(&mut header, &with_slash(name), None)?;
            if depth >= DEPTH_MAX {
                return Err(io::Error::other(format!("{} lies too deep", path.display())));
            }
            return self.add_entries(path, name, depth);
        }
        if kind.is_symlink() {
            header.set_size(0);
            let target = fs::read_link(path)?;
            return self.header(&mut header, name, Some(&target));
        }
        if kind.is_file() {
            return self.add_file(path, name, header, &metadata);
        }
        header.set_size(0);
        if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        }
        self.header(&mut header, name, None)
    }

    fn add_entries(&mut self, path: &Path, name: &Path, depth: usize) -> io::Result<()> {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().into())).collect::<io::Result<_>>()?;
        entries.sort();
        for entry in entries {
            match self.add(&path.join(&entry), &name.join(&entry), depth + 1) {
                // Gone while we were at it, which is no error of anybody.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Exactly as many bytes as the header says, should the file change while it is read.
    fn add_file(
        &mut self,
        path: &Path,
        name: &Path,
        mut header: tar::Header,
        metadata: &fs::Metadata,
    ) -> io::Result<()> {
        // Whatever has taken the file's place meanwhile: no link is followed, no pipe waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let size = metadata.len();
        header.set_size(size);
        self.header(&mut header, name, None)?;
        let carried = if metadata.blocks() * BLOCK_BYTES < size {
            self.sparse_content(&file, size)?
        } else {
            self.content(&file, size)?
        };
        let padded = size.div_ceil(512) * 512;
        io::copy(&mut io::repeat(0).take(padded - carried), &mut self.out)?;
        Ok(())
    }

    /// The same of a file with holes, which are not read.
    fn sparse_content(&mut self, file: &File, size: u64) -> io::Result<u64> {
        let mut at = 0;
        while at < size {
            let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(from) => from.min(size),
                // Nothing but a hole is left.
                Err(Errno::NXIO) => size,
                Err(errno) => return Err(errno.into()),
            };
            self.zeros(from - at)?;
            at = from;
            if from < size {
                let to = rustix::fs::seek(file, SeekFrom::Hole(from)).map_or(size, |to| to.min(size));
                rustix::fs::seek(file, SeekFrom::Start(from))?;
                let carried = self.content(file, to - from)?;
                at += carried;
                if carried < to - from {
                    break;
                }
            }
        }
        Ok(at)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.piece.fill(0);
        let mut left = count;
        while left > 0 {
            let some = self.piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.out.write_all(&self.piece[..some])?;
            left -= some as u64;
        }
        Ok(())
    }

    /// A header before the header, where there is something for it to say.
    fn attributes(&mut self, path: &Path) -> io::Result<()> {
        let records = attributes::records(path)?;
        if records.is_empty() {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..ATTRIBUTES_NAME.len()].copy_from_slice(ATTRIBUTES_NAME);
        header.set_entry_type(tar::EntryType::XHeader);
        self.extension(header, &records)
    }

    /// Up to so many bytes of a file: as many as it has.
    fn content(&mut self, file: &File, size: u64) -> io::Result<u64> {
        let mut left = size;
        while left > 0 {
            let count = match self.moved(file, left)? {
                Some(count) => count,
                None => self.copied(file, left)?,
            };
            if count == 0 {
                break;
            }
            left -= count as u64;
        }
        Ok(size - left)
    }

    fn moved(&mut self, file: &File, left: u64) -> io::Result<Option<usize>> {
        if left < MOVED_BYTES_MIN {
            return Ok(None);
        }
        self.out.flush()?;
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(siphon::BYTES_MAX);
        let siphon = match &mut self.siphon {
            Some(siphon) => siphon,
            none => none.insert(Siphon::new()?),
        };
        siphon.carry(file, self.out.get_ref(), wanted)
    }

    /// By hand: the standard library would have the kernel move it, past the siphon.
    fn copied(&mut self, file: &File, left: u64) -> io::Result<usize> {
        let wanted = self.piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut self.piece[..wanted]))?;
        self.out.write_all(&self.piece[..length])?;
        Ok(length)
    }

    /// Names that do not fit come before, as GNU tar writes them.
    fn header(&mut self, header: &mut tar::Header, name: &Path, link: Option<&Path>) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        if let Some(link) = link
            && header.set_link_name_literal(link.as_os_str().as_bytes()).is_err()
        {
            self.long(b'K', link.as_os_str().as_bytes())?;
        }
        let bytes = name.as_os_str().as_bytes();
        let field = &mut header.as_old_mut().name;
        field.fill(0);
        if bytes.len() < field.len() {
            field[..bytes.len()].copy_from_slice(bytes);
        } else {
            field.copy_from_slice(&bytes[..100]);
            self.long(b'L', bytes)?;
        }
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn long(&mut self, kind: u8, text: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
        header.set_entry_type(tar::EntryType::new(kind));
        self.extension(header, &[text, b"\0"].concat())
    }

    /// An entry that says something of the next one.
    fn extension(&mut self, mut header: tar::Header, content: &[u8]) -> io::Result<()> {
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(content)?;
        let padding = content.len().div_ceil(512) * 512 - content.len();
        self.out.write_all(&[0; 512][..padding])
    }
}

/// A directory's name ends in a slash.
fn with_slash(name: &Path) -> PathBuf {
    if name == Path::new("./") { name.into() } else { name.join("") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tar-streams-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn packed(path: &Path, contents: bool) -> Vec<String> {
        let archive = path.with_extension("tar");
        pack(path, contents, File::create(&archive).unwrap()).unwrap();
        let mut archive = tar::Archive::new(File::open(&archive).unwrap());
        let mut names: Vec<String> = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let link =
                entry.link_name().unwrap().map(|link| format!(" -> {}", link.display())).unwrap_or_default();
            names.push(format!(
                "{}{link}{}",
                String::from_utf8_lossy(&entry.path_bytes()),
                if content.is_empty() { String::new() } else { format!(" = {content}") }
            ));
        }
        names
    }

    #[test]
    fn a_slash_at_the_end_means_the_contents() {
        for (path, expected) in [("/a", false), ("/a/", true), ("/a/.", true), (".", true), ("/a.", false)] {
            assert_eq!(ends_in_contents(path), expected, "{path}");
        }
    }

    #[test]
    fn directories_links_and_long_names_are_packed() {
        let root = folder("pack");
        let long = "n".repeat(120);
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub").join(&long), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let name = root.file_name().unwrap().to_string_lossy().into_owned();
        let expected = ["", "link -> /etc/passwd", "sub/", &format!("sub/{long} = x")];
        let own: Vec<String> = expected.iter().map(|entry| format!("{name}/{entry}")).collect();
        assert_eq!(packed(&root, false), own);
        let contents: Vec<String> = expected.iter().map(|entry| format!("./{entry}")).collect();
        assert_eq!(packed(&root, true), contents);
        fs::remove_file(root.with_extension("tar")).unwrap();
        fs::remove_dir_all(root).unwrap();
    }

    /// The entries of an archive of this folder with their contents.
    fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
        let file = path.with_extension("tar");
        pack(path, true, File::create(&file).unwrap()).unwrap();
        let mut archive = tar::Archive::new(File::open(&file).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let (mut entry, mut content) = (entry.unwrap(), Vec::new());
            entry.read_to_end(&mut content).unwrap();
            (String::from_utf8_lossy(&entry.path_bytes()).into_owned(), content)
        });
        let entries = entries.collect();
        fs::remove_file(file).unwrap();
        entries
    }

    #[test]
    fn holes_are_zeros_wherever_they_are() {
        use std::os::unix::fs::FileExt;
        let root = folder("holes");
        let mut expected = vec![("./".to_owned(), Vec::new())];
        for (name, size, pieces) in [
            ("all", 3_000_000, vec![]),
            ("begin", 3_000_000, vec![(2_900_000, 100_000)]),
            ("end", 3_000_000, vec![(0, 100_001)]),
            ("middle", 3_000_000, vec![(0, 5_000), (1_000_000, 300_000), (2_999_000, 1_000)]),
        ] {
            let file = File::create(root.join(name)).unwrap();
            file.set_len(size as u64).unwrap();
            let mut content = vec![0; size];
            for (at, length) in pieces {
                let piece: Vec<u8> = (0..length).map(|at| (at % 251) as u8 + 1).collect();
                file.write_all_at(&piece, at as u64).unwrap();
                content[at..at + length].copy_from_slice(&piece);
            }
            expected.push((format!("./{name}"), content));
        }
        assert!(contents(&root) == expected);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn attributes_of_files_and_directories_go_out_and_come_in_again() {
        use rustix::fs::{XattrFlags, lgetxattr, setxattr};
        let (root, copy) = (folder("attributes"), folder("attributes-copy"));
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub").join("n".repeat(120)), "x").unwrap();
        let value = |path: &Path, name: &str| {
            let mut value = vec![0; 300];
            lgetxattr(path, name, &mut value[..]).map(|length| value[..length].to_vec()).ok()
        };
        // May bind low ports, in the kernel's own form.
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let file = format!("sub/{}", "n".repeat(120));
        let given: [(&str, &str, &[u8]); 4] = [
            ("sub", "user.of.directory", b"d"),
            (&file, "user.empty", b""),
            (&file, "user.binary", &[0, 255, b'=', b' ', 7]),
            (&file, "security.capability", &capability),
        ];
        for (path, name, value) in given {
            if let Err(errno) = setxattr(root.join(path), name, value, XattrFlags::empty()) {
                println!("SKIPPED attributes_of_files_and_directories…: {name} cannot be set here: {errno}");
                return;
            }
        }
        let archive = root.with_extension("tar");
        pack(&root, true, File::create(&archive).unwrap()).unwrap();
        crate::unpack::unpack_into(File::open(&archive).unwrap(), &copy).unwrap();
        for (path, name, expected) in given {
            assert_eq!(value(&copy.join(path), name).as_deref(), Some(expected), "{name}");
        }
        fs::remove_file(archive).unwrap();
        fs::remove_dir_all(root).unwrap();
        fs::remove_dir_all(copy).unwrap();
    }
}
