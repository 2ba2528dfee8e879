//! The cell's download cache: one download for many waiters, revalidated by ETag and Last-Modified, least recently
//! used out first, bytes in use never. Survives restarts by an index file beside the downloads.
//!
//! An archive is kept as it was downloaded; a directory is kept unpacked. The same key used both ways is kept twice.

pub(crate) mod archive;
mod checksum;
mod fetch;
mod index;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use diego_base::directory;
use fetch::{Answer, Validators};
pub(crate) use index::Entry;
use index::{Held, Index, Left};
use rootfs_ledger::{Evict, Evicted, Ledger, Tenant, Usage};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::StartError;
use crate::config::DIRECTORY_MARK;

/// What to get. Without a cache key it is fetched for this one use.
pub(crate) struct Wanted<'a> {
    pub url: &'a str,
    pub cache_key: &'a str,
    pub checksum_algorithm: &'a str,
    pub checksum_value: &'a str,
}

/// Something in the cache, which stays there while this is held.
#[derive(Debug)]
pub(crate) struct Fetched {
    entry: Arc<Entry>,
    /// 0: it was there already.
    pub downloaded_bytes: u64,
}

impl Fetched {
    pub fn path(&self) -> &Path {
        &self.entry.path
    }

    /// By which a later life asks for it.
    pub fn name(&self) -> String {
        self.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("cancelled")]
    Cancelled,
    #[error("cannot parse the URL")]
    Url(#[source] url_error::Error),
    #[error("request failed")]
    Request(#[source] reqwest::Error),
    #[error("nothing came for {0} s")]
    Idle(u64),
    #[error("Download failed: Status code {0}")]
    Status(u16),
    #[error("Checksum failed: '{problem}', expected '{expected}', got '{received}'")]
    Checksum { problem: &'static str, expected: String, received: String },
    #[error("cannot {act} {path}")]
    File { act: &'static str, path: PathBuf, source: std::io::Error },
    #[error("unknown archive format")]
    UnknownArchive,
    #[error(transparent)]
    Room(#[from] rootfs_ledger::Error),
}

/// The URL parser's error type, by the only name it is reachable under.
mod url_error {
    pub(crate) type Error = <reqwest::Url as std::str::FromStr>::Err;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Archive,
    Directory,
}

/// What the cache holds, as a tenant of the disk.
struct Kept(Mutex<Index>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Tenant for Kept {
    fn name(&self) -> &'static str {
        "downloads"
    }

    fn usage(&self) -> std::io::Result<Usage> {
        Ok(self.lock().usage())
    }

    fn evict(&self, evict: Evict) -> std::io::Result<Evicted> {
        let gone = self.lock().put_out(evict);
        let evicted =
            Evicted { things: gone.len() as u64, bytes: gone.iter().map(|entry| entry.bytes).sum() };
        gone.into_iter().try_for_each(Entry::remove)?;
        Ok(evicted)
    }
}

pub(crate) struct Cache {
    dir: PathBuf,
    http: reqwest::Client,
    downloads: Semaphore,
    index: Arc<Kept>,
    ledger: Ledger,
    /// One lock a key: who comes second finds what the first one fetched.
    under_way: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What an earlier life left in use, until those who use it have asked for it.
    again: Mutex<Held>,
    left: Left,
}

impl Cache {
    /// Reads what an earlier life left in `dir` and removes what it does not know, except what is `in_use`.
    pub fn open(
        dir: &Path,
        bytes_max: u64,
        downloads_max: usize,
        http: reqwest::Client,
        ledger: Ledger,
        in_use: &[String],
    ) -> Result<Self, StartError> {
        directory::claim(dir, DIRECTORY_MARK)?;
        let (index, again) = Index::open(dir, bytes_max, in_use)
            .map_err(|source| StartError::Directory { path: dir.to_path_buf(), source })?;
        let left = index.left().clone();
        let index = Arc::new(Kept(Mutex::new(index)));
        ledger.register(&index);
        Ok(Cache {
            ledger,
            dir: dir.to_path_buf(),
            http,
            downloads: Semaphore::new(downloads_max.max(1)),
            index,
            under_way: Mutex::default(),
            again: Mutex::new(again),
            left,
        })
    }

    /// Something that an earlier life had fetched for who asks now, by its name.
    pub fn again(&self, name: &str) -> Option<Fetched> {
        let again = self.again.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        again.get(name).map(|entry| Fetched { entry: entry.clone(), downloaded_bytes: 0 })
    }

    /// All have asked for what was theirs.
    pub fn forget_again(&self) {
        self.again.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
    }

    /// From now on what is let go of stays: a later life has use for it.
    pub fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// An archive as the server has it: tar, gzipped tar or zip.
    pub async fn archive(
        &self,
        wanted: &Wanted<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, FetchError> {
        self.get(wanted, Kind::Archive, cancel).await
    }

    /// An archive's contents as a directory that must not be written to.
    pub async fn directory(
        &self,
        wanted: &Wanted<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, FetchError> {
        self.get(wanted, Kind::Directory, cancel).await
    }

    async fn get(
        &self,
        wanted: &Wanted<'_>,
        kind: Kind,
        cancel: &CancellationToken,
    ) -> Result<Fetched, FetchError> {
        if wanted.cache_key.is_empty() {
            return self.fetch(wanted, kind, None, cancel).await;
        }
        let key = key(wanted.cache_key, kind);
        let turn = self.turn(&key);
        let guard = cancel.run_until_cancelled(turn.lock()).await.ok_or(FetchError::Cancelled)?;
        let result = self.fetch(wanted, kind, Some(&key), cancel).await;
        drop(guard);
        self.end_turn(&key, turn);
        result
    }

    async fn fetch(
        &self,
        wanted: &Wanted<'_>,
        kind: Kind,
        key: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, FetchError> {
        let cached = key.and_then(|key| self.index().find(key));
        let validators = cached.as_deref().map(|entry| entry.validators.clone()).unwrap_or_default();
        let answer = self.download(wanted, &validators, cancel).await?;
        let (download, validators) = match (answer, cached) {
            (Answer::NotModified, Some(entry)) => return Ok(Fetched { entry, downloaded_bytes: 0 }),
            (Answer::NotModified, None) => return Err(FetchError::Status(304)),
            (Answer::New(download, validators), _) => (download, validators),
        };
        let downloaded_bytes = download.bytes;
        let (path, bytes) = self.settle(download, kind).await?;
        let entry = match key {
            Some(key) if validators.any() => self.index().add(key, path, bytes, validators),
            Some(key) => {
                self.index().remove(key);
                Arc::new(Entry::passing(path, bytes, &self.left))
            }
            None => Arc::new(Entry::passing(path, bytes, &self.left)),
        };
        Ok(Fetched { entry, downloaded_bytes })
    }

    async fn download(
        &self,
        wanted: &Wanted<'_>,
        validators: &Validators,
        cancel: &CancellationToken,
    ) -> Result<Answer, FetchError> {
        let permit = cancel.run_until_cancelled(self.downloads.acquire()).await;
        let _permit = permit.ok_or(FetchError::Cancelled)?.map_err(|_| FetchError::Cancelled)?;
        let downloading = fetch::download(&self.http, wanted, validators, &self.dir, &self.ledger);
        cancel.run_until_cancelled(downloading).await.ok_or(FetchError::Cancelled)?
    }

    /// Makes of a download what is kept: its final path and size.
    async fn settle(&self, download: fetch::Download, kind: Kind) -> Result<(PathBuf, u64), FetchError> {
        let path = self.dir.join(uuid::Uuid::new_v4().to_string());
        let ledger = self.ledger.clone();
        let settling = tokio::task::spawn_blocking(move || match kind {
            Kind::Archive => {
                archive::Format::of(download.file.path())?;
                let bytes = download.bytes;
                let kept = download.file.persist(&path);
                kept.map_err(|error| file_error("keep", &path, error.error))?;
                Ok((path, bytes))
            }
            Kind::Directory => {
                let room = ledger.claim("an unpacked download", 0)?;
                let bytes = archive::unpack(download.file.path(), &path, room)?;
                Ok((path, bytes))
            }
        });
        settling.await.map_err(|error| file_error("settle", &self.dir, std::io::Error::other(error)))?
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.under_way.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        turns.entry(key.to_string()).or_default().clone()
    }

    fn end_turn(&self, key: &str, turn: Arc<tokio::sync::Mutex<()>>) {
        let mut turns = self.under_way.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if Arc::strong_count(&turn) <= 2 {
            turns.remove(key);
        }
    }
}

fn key(cache_key: &str, kind: Kind) -> String {
    let digest = format!("{:x}", md5::compute(cache_key));
    match kind {
        Kind::Archive => digest,
        Kind::Directory => format!("{digest}.d"),
    }
}

fn file_error(act: &'static str, path: &Path, source: std::io::Error) -> FetchError {
    FetchError::File { act, path: path.to_path_buf(), source }
}
