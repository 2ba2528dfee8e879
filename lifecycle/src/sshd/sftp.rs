//! The `sftp` subsystem (protocol version 3, with the extensions OpenSSH's own client uses), straight onto the file
//! system as this process's user. File operations are done in place: they are short, and a transfer is one client's.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions, ReadDir},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use russh_sftp::{
    protocol::{
        Attrs, Data, ExtendedReply, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode,
        Version,
    },
    server::{Handler, StatusReply},
};
use tokio::{io::DuplexStream, sync::oneshot};

use super::program::home;

const HANDLES_MAX: usize = 1024;
const NAMES_IN_ONE_ANSWER: usize = 100;
/// What we say we take, which is also what OpenSSH's server takes.
const PACKET_BYTES_MAX: u32 = 256 * 1024;
const READ_BYTES_MAX: u32 = PACKET_BYTES_MAX - 1024;
const EXTENSIONS: [(&str, &str); 5] = [
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// Serves until the client has ended the stream.
pub fn serve(stream: DuplexStream) -> impl Future<Output = ()> {
    let (ended, end) = oneshot::channel();
    let files = Files { open: HashMap::new(), next: 0, _ended: ended };
    let config = russh_sftp::server::Config { max_client_packet_len: PACKET_BYTES_MAX };
    async move {
        russh_sftp::server::run_with_config(stream, files, config).await;
        // The sender goes with the server; that is the end.
        let _ = end.await;
    }
}

struct Files {
    open: HashMap<String, Open>,
    next: u64,
    _ended: oneshot::Sender<()>,
}

enum Open {
    File { file: File, append: bool },
    Directory { path: PathBuf, entries: ReadDir },
}

/// A refusal with the words the client shows.
#[derive(Debug)]
struct Refusal {
    code: StatusCode,
    words: String,
}

impl From<Refusal> for StatusReply {
    fn from(refusal: Refusal) -> Self {
        refusal.code.with_message(refusal.words)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => StatusCode::NoSuchFile,
            io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            io::ErrorKind::UnexpectedEof => StatusCode::Eof,
            io::ErrorKind::Unsupported => StatusCode::OpUnsupported,
            _ => StatusCode::Failure,
        };
        Refusal { code, words: error.to_string() }
    }
}

fn refuse(code: StatusCode) -> Refusal {
    Refusal { words: code.to_string(), code }
}

fn done(id: u32, outcome: io::Result<()>) -> Result<Status, Refusal> {
    outcome?;
    Ok(Status {
        id,
        status_code: StatusCode::Ok,
        error_message: "Ok".to_owned(),
        language_tag: "en-US".to_owned(),
    })
}

fn attributes(metadata: &Metadata) -> FileAttributes {
    let seconds = |time: i64| Some(time.clamp(0, u32::MAX.into()) as u32);
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
        ..FileAttributes::empty()
    }
}

fn one_name(id: u32, path: &Path) -> Name {
    let file = russh_sftp::protocol::File::dummy(path.to_string_lossy());
    Name { id, files: vec![file] }
}

fn times(given: &FileAttributes) -> Option<fs::FileTimes> {
    let at = |seconds: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
    let (accessed, modified) = (given.atime?, given.mtime?);
    Some(fs::FileTimes::new().set_accessed(at(accessed)).set_modified(at(modified)))
}

/// Sets what is given, in an order in which nothing undoes what went before.
fn set_attributes(path: &Path, given: &FileAttributes) -> io::Result<()> {
    if let Some(size) = given.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if given.uid.is_some() || given.gid.is_some() {
        chown(path, given.uid, given.gid)?;
    }
    if let Some(mode) = given.permissions {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    match times(given) {
        Some(times) => File::open(path)?.set_times(times),
        None => Ok(()),
    }
}

/// `.` and `..` taken out of an absolute path; symbolic links are followed where the path exists.
fn real_path(path: &str) -> io::Result<PathBuf> {
    if let Ok(real) = fs::canonicalize(if path.is_empty() { "." } else { path }) {
        return Ok(real);
    }
    let mut real = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            std::path::Component::ParentDir => {
                real.pop();
            }
            component => real.push(component),
        }
    }
    Ok(real)
}

/// The strings of an extended request.
fn strings(mut data: &[u8]) -> Option<Vec<String>> {
    let mut strings = Vec::new();
    while !data.is_empty() {
        let (length, rest) = data.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        strings.push(String::from_utf8(text.to_vec()).ok()?);
        data = rest;
    }
    Some(strings)
}

impl Files {
    fn keep(&mut self, id: u32, open: Open) -> Result<Handle, Refusal> {
        if self.open.len() >= HANDLES_MAX {
            return Err(Refusal { code: StatusCode::Failure, words: "too many open files".to_owned() });
        }
        let handle = self.next.to_string();
        self.next += 1;
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Result<(&File, bool), Refusal> {
        match self.open.get(handle) {
            Some(Open::File { file, append }) => Ok((file, *append)),
            _ => Err(refuse(StatusCode::Failure)),
        }
    }

    fn extend(&mut self, id: u32, request: &str, data: &[u8]) -> Result<Packet, Refusal> {
        let mut words = match request {
            "limits@openssh.com" => Vec::new(),
            _ => strings(data).ok_or_else(|| refuse(StatusCode::BadMessage))?,
        };
        let outcome = match (request, &mut words[..]) {
            ("posix-rename@openssh.com", [old, new]) => fs::rename(old, new),
            ("hardlink@openssh.com", [old, new]) => fs::hard_link(old, new),
            ("fsync@openssh.com", [handle]) => self.file(handle)?.0.sync_all(),
            ("expand-path@openssh.com", [path]) => {
                let expanded = super::glob::expand(path, &home()).swap_remove(0);
                return Ok(one_name(id, &real_path(&expanded.to_string_lossy())?).into());
            }
            ("limits@openssh.com", []) => {
                let limits = [PACKET_BYTES_MAX, READ_BYTES_MAX, READ_BYTES_MAX, HANDLES_MAX as u32];
                let data = limits.iter().flat_map(|limit| u64::from(*limit).to_be_bytes()).collect();
                return Ok(ExtendedReply { id, data }.into());
            }
            _ => return Err(refuse(StatusCode::OpUnsupported)),
        };
        done(id, outcome).map(Packet::from)
    }
}

impl Handler for Files {
    type Error = Refusal;

    fn unimplemented(&self) -> Refusal {
        refuse(StatusCode::OpUnsupported)
    }

    async fn init(
        &mut self,
        _version: u32,
        _extensions: HashMap<String, String>,
    ) -> Result<Version, Refusal> {
        let mut version = Version::new();
        let own = EXTENSIONS.map(|(name, version)| (name.to_owned(), version.to_owned()));
        version.extensions.extend(own);
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        given: FileAttributes,
    ) -> Result<Handle, Refusal> {
        let append = flags.contains(OpenFlags::APPEND);
        let mut options = OpenOptions::from(flags);
        options.mode(given.permissions.unwrap_or(0o666) & 0o7777);
        let file = options.open(path)?;
        self.keep(id, Open::File { file, append })
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Refusal> {
        match self.open.remove(&handle) {
            Some(_) => done(id, Ok(())),
            None => Err(refuse(StatusCode::Failure)),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Result<Data, Refusal> {
        let (file, _) = self.file(&handle)?;
        let mut data = vec![0; length.min(READ_BYTES_MAX) as usize];
        let read = file.read_at(&mut data, offset)?;
        if read == 0 {
            return Err(refuse(StatusCode::Eof));
        }
        data.truncate(read);
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, Refusal> {
        let (file, append) = self.file(&handle)?;
        let mut plain = file;
        let written = match append {
            true => io::Write::write_all(&mut plain, &data),
            false => file.write_all_at(&data, offset),
        };
        done(id, written)
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, Refusal> {
        Ok(Attrs { id, attrs: attributes(&fs::symlink_metadata(path)?) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, Refusal> {
        Ok(Attrs { id, attrs: attributes(&fs::metadata(path)?) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Refusal> {
        Ok(Attrs { id, attrs: attributes(&self.file(&handle)?.0.metadata()?) })
    }

    async fn setstat(&mut self, id: u32, path: String, given: FileAttributes) -> Result<Status, Refusal> {
        done(id, set_attributes(Path::new(&path), &given))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, given: FileAttributes) -> Result<Status, Refusal> {
        let (file, _) = self.file(&handle)?;
        let set = || {
            if let Some(size) = given.size {
                file.set_len(size)?;
            }
            if given.uid.is_some() || given.gid.is_some() {
                std::os::unix::fs::fchown(file, given.uid, given.gid)?;
            }
            if let Some(mode) = given.permissions {
                file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
            }
            times(&given).map_or(Ok(()), |times| file.set_times(times))
        };
        done(id, set())
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, Refusal> {
        let entries = fs::read_dir(&path)?;
        self.keep(id, Open::Directory { path: path.into(), entries })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Refusal> {
        let Some(Open::Directory { path, entries }) = self.open.get_mut(&handle) else {
            return Err(refuse(StatusCode::Failure));
        };
        let mut files = Vec::new();
        for entry in entries.by_ref().take(NAMES_IN_ONE_ANSWER) {
            let name = entry?.file_name();
            // A file that has just gone is not worth failing for.
            let found = fs::symlink_metadata(path.join(&name)).map(|metadata| attributes(&metadata));
            let attributes = found.unwrap_or_else(|_| FileAttributes::empty());
            files.push(russh_sftp::protocol::File::new(name.to_string_lossy(), attributes));
        }
        match files.is_empty() {
            true => Err(refuse(StatusCode::Eof)),
            false => Ok(Name { id, files }),
        }
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, Refusal> {
        done(id, fs::remove_file(path))
    }

    async fn mkdir(&mut self, id: u32, path: String, given: FileAttributes) -> Result<Status, Refusal> {
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, given.permissions.unwrap_or(0o777) & 0o7777);
        done(id, builder.create(path))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, Refusal> {
        done(id, fs::remove_dir(path))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, Refusal> {
        Ok(one_name(id, &real_path(&path)?))
    }

    /// Unlike the POSIX extension, this never replaces a file.
    async fn rename(&mut self, id: u32, old: String, new: String) -> Result<Status, Refusal> {
        if fs::symlink_metadata(&new).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
        }
        done(id, fs::rename(old, new))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, Refusal> {
        Ok(one_name(id, &fs::read_link(path)?))
    }

    /// OpenSSH sends the target first, against the draft; every client has followed it.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Result<Status, Refusal> {
        done(id, symlink(target, link))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Result<Packet, Refusal> {
        self.extend(id, &request, &data)
    }
}
