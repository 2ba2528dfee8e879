//! A layer's blob turned into a directory: hashed, decompressed, hashed again and unpacked, all at once.
//!
//! One thread reads, hashes and decompresses; the other hashes what comes out and writes the files. Nothing is ever
//! held whole. The directory belongs to the caller, who throws it away on any error: that is what makes it safe to
//! verify the digests at the end. Which layer this is, and when it becomes visible, is not known here.

mod attributes;
mod compression;
mod entry;
mod extract;

use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

pub(crate) use attributes::OPAQUE_ATTRIBUTE;
pub use compression::Compression;
pub use entry::Place;

use crate::digest::{Digest, Hasher, Hashing};

/// Uncompressed bytes handed from one thread to the other at a time, and how many such pieces may wait.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES_WAITING_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("it is corrupt: {0}")]
    Corrupt(String),
    #[error("its digest is {actual}, not {expected}")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error("it has {actual} bytes, not {expected}")]
    WrongSize { expected: u64, actual: u64 },
    #[error("its uncompressed content has the digest {actual}, not {expected}")]
    WrongDiffId { expected: Digest, actual: Digest },
    #[error("its entry '{entry}' would be written outside of its root: {reason}")]
    Escapes { entry: String, reason: &'static str },
    #[error("its entry '{entry}' cannot be: {reason}")]
    Impossible { entry: String, reason: String },
    #[error("it unpacks to more than the {limit} bytes that are allowed")]
    TooManyBytes { limit: u64 },
    #[error("it holds more than the {limit} entries that are allowed")]
    TooManyEntries { limit: u64 },
    #[error("there is no room for its entry '{entry}' of {bytes} bytes: {reason}")]
    NoRoom { entry: String, bytes: u64, reason: String },
    #[error("cannot write its entry '{entry}': {source}")]
    Write { entry: String, source: io::Error },
}

impl Error {
    /// Whether the bytes themselves are to blame, so that reading them again may help no more than once.
    pub fn is_the_blobs_fault(&self) -> bool {
        !matches!(self, Error::Read(_) | Error::Write { .. } | Error::NoRoom { .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of file content, uncompressed.
    pub bytes_max: u64,
    pub entries_max: u64,
}

/// Who says whether there is room on the disk that is unpacked to.
pub trait Room {
    /// So many bytes are written next; those of the calls before are written. The error says why they cannot be.
    fn take(&mut self, bytes: u64) -> Result<(), String>;
}

/// Nobody.
impl Room for () {
    fn take(&mut self, _: u64) -> Result<(), String> {
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes_max: 64 * 1024 * 1024 * 1024, entries_max: 4_000_000 }
    }
}

/// What a blob must turn out to be.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    pub blob: Option<(Digest, u64)>,
    pub diff_id: Option<Digest>,
}

/// What a blob turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    pub blob: Digest,
    pub diff_id: Digest,
    /// Of file content.
    pub bytes: u64,
    pub entries: u64,
    /// Directories that had to be made for what is in them but have no entry of their own: in lower layers they may
    /// look otherwise.
    pub implied: Vec<Place>,
    /// Directories in which there are, or were, whiteouts.
    pub with_whiteouts: Vec<Place>,
    /// Nothing of lower layers shows through.
    pub opaque: bool,
    /// Device nodes, which no layer may bring.
    pub devices_skipped: u64,
}

/// Unpacks `source` into the existing, empty directory `root`. Blocking.
pub fn unpack(
    source: impl Read + Send,
    expected: &Expected,
    root: &Path,
    limits: Limits,
    room: &mut dyn Room,
) -> Result<Unpacked, Error> {
    let (sender, receiver) = sync_channel(PIECES_WAITING_MAX);
    // What was read goes back to be filled again: memory that is new each time costs more than what is in it.
    let (used, spare) = sync_channel(PIECES_WAITING_MAX);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| decompress(source, expected, sender, spare));
        let written = write(Pieces::new(receiver, used), root, limits, room);
        let read = reading.join().unwrap_or_else(|_| Err(Stop::Failed(corrupt("its decoder failed"))));
        let blob = match (read, &written) {
            (Ok(blob), _) => blob,
            (Err(Stop::Failed(error)), _) => return Err(error),
            // The writing side gave up first; its error says why.
            (Err(Stop::NotWanted), _) => Hasher::default().digest(),
        };
        let (extracted, diff_id) = written?;
        check_diff_id(expected, &diff_id)?;
        Ok(Unpacked {
            blob,
            diff_id,
            bytes: extracted.bytes,
            entries: extracted.entries,
            implied: extracted.implied,
            with_whiteouts: extracted.with_whiteouts,
            opaque: extracted.opaque,
            devices_skipped: extracted.devices_skipped,
        })
    })
}

fn check_diff_id(expected: &Expected, actual: &Digest) -> Result<(), Error> {
    match &expected.diff_id {
        Some(expected) if expected != actual => {
            Err(Error::WrongDiffId { expected: expected.clone(), actual: actual.clone() })
        }
        _ => Ok(()),
    }
}

fn corrupt(reason: impl ToString) -> Error {
    Error::Corrupt(reason.to_string())
}

enum Stop {
    NotWanted,
    Failed(Error),
}

/// The first thread: reads, hashes, decompresses and hands on. Its answer is the blob's digest.
fn decompress(
    source: impl Read,
    expected: &Expected,
    pieces: SyncSender<io::Result<Piece>>,
    spare: Receiver<Vec<u8>>,
) -> Result<Digest, Stop> {
    let most = expected.blob.as_ref().map_or(u64::MAX, |(_, size)| size.saturating_add(1));
    let mut source = Hashing::new(Faulty { inner: source.take(most), fault: None });
    let decoded = hand_on(&mut source, &pieces, &spare);
    let decoded = match decoded {
        Err(Decoding::NotWanted) => return Err(Stop::NotWanted),
        Err(Decoding::Failed(error)) => Err(error),
        Ok(()) => Ok(()),
    };
    // Also what follows the last compressed byte is part of the blob; and a blob that cannot be decoded is first of
    // all one with a wrong digest, if it has one.
    if source.inner_ref().fault.is_none() {
        let _ = io::copy(&mut source, &mut io::sink());
    }
    if let Some(fault) = source.inner_mut().fault.take() {
        let _ = pieces.send(Err(io::Error::other("the blob cannot be read")));
        return Err(Stop::Failed(Error::Read(fault)));
    }
    let hasher = source.into_hasher();
    let outcome = check_blob(expected, hasher).and_then(|digest| decoded.map(|()| digest).map_err(corrupt));
    if outcome.is_err() {
        let _ = pieces.send(Err(io::Error::other("the blob cannot be decoded")));
    }
    outcome.map_err(Stop::Failed)
}

fn check_blob(expected: &Expected, hasher: Hasher) -> Result<Digest, Error> {
    let size = hasher.bytes();
    let actual = hasher.digest();
    match &expected.blob {
        Some((_, wanted)) if *wanted != size => Err(Error::WrongSize { expected: *wanted, actual: size }),
        Some((wanted, _)) if *wanted != actual => {
            Err(Error::WrongDigest { expected: wanted.clone(), actual })
        }
        _ => Ok(actual),
    }
}

enum Decoding {
    NotWanted,
    Failed(io::Error),
}

fn hand_on(
    source: impl Read,
    pieces: &SyncSender<io::Result<Piece>>,
    spare: &Receiver<Vec<u8>>,
) -> Result<(), Decoding> {
    let mut decoder = compression::decoder(source).map_err(Decoding::Failed)?;
    loop {
        let mut bytes = spare.try_recv().unwrap_or_else(|_| vec![0; PIECE_BYTES]);
        let length = fill(&mut decoder, &mut bytes).map_err(Decoding::Failed)?;
        if length == 0 {
            return Ok(());
        }
        pieces.send(Ok(Piece { bytes, length })).map_err(|_| Decoding::NotWanted)?;
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Remembers a failure of the source itself, to tell it from bytes that cannot be decoded.
struct Faulty<R> {
    inner: R,
    fault: Option<io::Error>,
}

impl<R: Read> Read for Faulty<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.fault.is_some() {
            return Err(io::Error::other("failed before"));
        }
        match self.inner.read(buffer) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.fault = Some(error);
                Err(again)
            }
            answer => answer,
        }
    }
}

/// The second thread: hashes what arrives and writes it. All of it is read, also what follows the archive's end.
fn write(
    pieces: Pieces,
    root: &Path,
    limits: Limits,
    room: &mut dyn Room,
) -> Result<(extract::Extracted, Digest), Error> {
    let mut content = Hashing::new(pieces);
    let extracted = extract::extract(&mut content, root, limits, room)?;
    let most = limits.bytes_max.saturating_add(1);
    let rest = io::copy(&mut (&mut content).take(most), &mut io::sink()).map_err(corrupt)?;
    if rest > limits.bytes_max {
        return Err(Error::TooManyBytes { limit: limits.bytes_max });
    }
    Ok((extracted, content.into_hasher().digest()))
}

/// Uncompressed bytes: the first `length` of these.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    length: usize,
}

/// The channel as a reader.
struct Pieces {
    pieces: Receiver<io::Result<Piece>>,
    /// Back to the first thread.
    used: SyncSender<Vec<u8>>,
    current: Piece,
    offset: usize,
}

impl Pieces {
    fn new(pieces: Receiver<io::Result<Piece>>, used: SyncSender<Vec<u8>>) -> Pieces {
        Pieces { pieces, used, current: Piece::default(), offset: 0 }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.offset == self.current.length {
            let Piece { bytes, .. } = std::mem::take(&mut self.current);
            if !bytes.is_empty() {
                // Nobody takes it any more, or there are enough: then it goes.
                let _ = self.used.try_send(bytes);
            }
            self.offset = 0;
            match self.pieces.recv() {
                Ok(piece) => self.current = piece?,
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.length - self.offset);
        buffer[..length].copy_from_slice(&self.current.bytes[self.offset..self.offset + length]);
        self.offset += length;
        Ok(length)
    }
}
