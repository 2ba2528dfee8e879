//! Archives of any of the kinds that platforms send, as tar streams and as directories.
//!
//! Told apart by their first bytes, not by their names: tar, gzip, zstd, zip.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use bytes::Bytes;
use garden_client::Reader;
use rootfs_ledger::Claim;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::{FetchError, file_error};

/// Chunks between the decoder and whoever reads, 64 KiB each.
const CHUNKS_MAX: usize = 8;
const CHUNK_BYTES: usize = 64 * 1024;
/// What an entry takes beside its content.
const ENTRY_BYTES: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Tar,
    Gzip,
    Zstd,
    Zip,
}

impl Format {
    pub fn of(path: &Path) -> Result<Self, FetchError> {
        let error = |source| file_error("read", path, source);
        let mut head = Vec::with_capacity(512);
        File::open(path).map_err(error)?.take(512).read_to_end(&mut head).map_err(error)?;
        Format::of_bytes(&head).ok_or(FetchError::UnknownArchive)
    }

    fn of_bytes(head: &[u8]) -> Option<Self> {
        match head {
            [0x1F, 0x8B, ..] => Some(Format::Gzip),
            [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Format::Zstd),
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Format::Zip),
            _ if head.get(257..262) == Some(b"ustar") => Some(Format::Tar),
            // An empty tar archive is nothing but zeroes.
            _ if head.len() == 512 && head.iter().all(|byte| *byte == 0) => Some(Format::Tar),
            _ => None,
        }
    }
}

/// A file's contents as a tar stream. A file that turns out corrupt makes the stream fail, never end early.
pub(crate) async fn tar_stream(path: &Path) -> Result<Reader, FetchError> {
    let path = path.to_path_buf();
    if Format::of(&path)? == Format::Tar {
        let file = tokio::fs::File::open(&path).await;
        return Ok(Box::new(file.map_err(|source| file_error("open", &path, source))?));
    }
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_MAX);
    tokio::task::spawn_blocking(move || {
        let mut sink = io::BufWriter::with_capacity(CHUNK_BYTES, ChannelSink(sender.clone()));
        let written = write_tar(&path, &mut sink).and_then(|()| sink.flush());
        // Whoever reads may be gone; then nobody minds.
        let _ = written.map_err(|error| sender.blocking_send(Err(error)));
    });
    let stream = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    Ok(Box::new(StreamReader::new(stream)))
}

/// Unpacks into a directory that must not exist yet; the bytes of its files. Nothing is left of one that failed.
pub(crate) fn unpack(path: &Path, directory: &Path, mut room: Claim) -> Result<u64, FetchError> {
    let unpacked = std::fs::create_dir(directory).and_then(|()| unpack_into(path, directory, &mut room));
    unpacked.map_err(|source| {
        if let Err(error) = std::fs::remove_dir_all(directory) {
            tracing::warn!(path = %directory.display(), %error, "executor.cache.cannot-remove");
        }
        match source.downcast::<FetchError>() {
            Ok(error) => error,
            Err(source) => file_error("unpack", path, source),
        }
    })
}

fn unpack_into(path: &Path, directory: &Path, room: &mut Claim) -> io::Result<u64> {
    let mut bytes = 0;
    let mut unpack = |source: &mut dyn Read, room: &mut Claim| {
        let mut archive = tar::Archive::new(source);
        archive.set_preserve_permissions(true);
        for entry in archive.entries()? {
            let mut entry = entry?;
            bytes += entry.size();
            take(room, entry.size().saturating_add(ENTRY_BYTES))?;
            entry.unpack_in(directory)?;
        }
        io::Result::Ok(())
    };
    match Format::of(path).map_err(io::Error::other)? {
        Format::Zip => {
            // Through a file: a tar archive is read forwards, a zip archive is not.
            let mut tar = tempfile::tempfile_in(directory.parent().unwrap_or(directory))?;
            zip_to_tar(path, &mut Claiming { inner: &mut tar, room })?;
            tar.rewind()?;
            unpack(&mut BufReader::new(tar), room)?;
        }
        Format::Tar => unpack(&mut BufReader::new(File::open(path)?), room)?,
        Format::Gzip => unpack(&mut gzip(path)?, room)?,
        Format::Zstd => unpack(&mut zstd::Decoder::new(File::open(path)?)?, room)?,
    }
    Ok(bytes)
}

fn take(room: &mut Claim, bytes: u64) -> io::Result<()> {
    room.take(bytes).map_err(|error| io::Error::other(FetchError::from(error)))
}

/// Claims the room for all that is written.
struct Claiming<'a, W> {
    inner: W,
    room: &'a mut Claim,
}

impl<W: Write> Write for Claiming<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        take(self.room, bytes.len() as u64)?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn gzip(path: &Path) -> io::Result<impl Read> {
    Ok(flate2::read::MultiGzDecoder::new(BufReader::new(File::open(path)?)))
}

fn write_tar(path: &Path, sink: &mut dyn Write) -> io::Result<()> {
    match Format::of(path).map_err(io::Error::other)? {
        Format::Tar => io::copy(&mut File::open(path)?, sink).map(drop),
        Format::Gzip => io::copy(&mut gzip(path)?, sink).map(drop),
        Format::Zstd => io::copy(&mut zstd::Decoder::new(File::open(path)?)?, sink).map(drop),
        Format::Zip => zip_to_tar(path, sink),
    }
}

fn zip_to_tar(path: &Path, sink: &mut dyn Write) -> io::Result<()> {
    let mut zip = zip::ZipArchive::new(BufReader::new(File::open(path)?))?;
    let mut tar = tar::Builder::new(sink);
    for position in 0..zip.len() {
        zip_entry_to_tar(&mut zip.by_index(position)?, &mut tar)?;
    }
    tar.finish()
}

fn zip_entry_to_tar(
    entry: &mut zip::read::ZipFile<'_, BufReader<File>>,
    tar: &mut tar::Builder<&mut dyn Write>,
) -> io::Result<()> {
    let name = entry.name().to_string();
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    if entry.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(entry.unix_mode().unwrap_or(0o755) & 0o7777);
        header.set_size(0);
        return tar.append_data(&mut header, name, io::empty());
    }
    if entry.is_symlink() {
        let mut target = String::new();
        entry.read_to_string(&mut target)?;
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        return tar.append_link(&mut header, name, target);
    }
    header.set_mode(entry.unix_mode().unwrap_or(0o644) & 0o7777);
    header.set_size(entry.size());
    tar.append_data(&mut header, name, entry)
}

/// Hands what is written to an asynchronous reader.
struct ChannelSink(mpsc::Sender<io::Result<Bytes>>);

impl Write for ChannelSink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(data))).map_err(gone)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Result::Ok(())
    }
}
