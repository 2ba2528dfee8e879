//! Blobs on their way from another registry: stored once, while everybody who wants one reads along.
//!
//! A reader is never given the last byte before the blob is verified, so that nobody takes a wrong one for whole.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::blobs::{Blobs, Incoming};
use crate::digest::Digest;
use crate::registry::{Access, Error};

const PIECES_WAITING_MAX: usize = 32;
/// Readers are told in steps of this many bytes.
const STEP_BYTES: u64 = 256 * 1024;

#[derive(Debug, Clone)]
pub enum State {
    /// This many bytes can be read already.
    Running {
        readable: u64,
    },
    Whole,
    Failed(Failure),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Registry(Arc<Error>),
    #[error("layer {expected} is not what its registry sends, which has the digest {actual}")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error("cannot store a layer: {0}")]
    Disk(Arc<std::io::Error>),
    #[error("the download was stopped")]
    Stopped,
}

/// A blob being fetched, or one that just was.
#[derive(Debug, Clone)]
pub struct Download {
    /// Where its bytes are while it is under way.
    pub path: PathBuf,
    pub size: u64,
    pub state: watch::Receiver<State>,
}

#[derive(Debug, Default)]
pub struct Downloads {
    running: Mutex<HashMap<Digest, Download>>,
}

impl Downloads {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Download>> {
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn get(&self, digest: &Digest) -> Option<Download> {
        self.running().get(digest).cloned()
    }

    /// Bytes that the downloads under way have yet to write.
    pub fn outstanding(&self) -> u64 {
        let left = |download: &Download| match *download.state.borrow() {
            State::Running { readable } => download.size.saturating_sub(readable),
            _ => 0,
        };
        self.running().values().map(left).sum()
    }

    /// Joins the download of a blob, or begins it. It goes on when its readers leave: it was wanted once.
    pub async fn fetch(
        self: &Arc<Self>,
        blobs: &Arc<Blobs>,
        access: Arc<Access>,
        digest: &Digest,
        size: u64,
    ) -> Result<Download, Failure> {
        let incoming = blobs.begin().await.map_err(|error| Failure::Disk(Arc::new(error)))?;
        let (sender, state) = watch::channel(State::Running { readable: 0 });
        let download = Download { path: incoming.path().to_path_buf(), size, state };
        {
            let mut running = self.running();
            if let Some(other) = running.get(digest) {
                return Ok(other.clone());
            }
            // Its entry goes when its blob is kept: one that ended since it was looked for is here.
            if let Some(size) = blobs.used(digest) {
                let (_, state) = watch::channel(State::Whole);
                return Ok(Download { path: blobs.path(digest), size, state });
            }
            running.insert(digest.clone(), download.clone());
        }
        let (downloads, blobs, digest) = (self.clone(), blobs.clone(), digest.clone());
        tokio::spawn(async move {
            // Also a panic or the runtime's end must not leave an entry that nobody feeds.
            let _entry = Entry { downloads, digest: digest.clone() };
            let state = match store(&blobs, &access, incoming, &digest, size, &sender).await {
                Ok(()) => State::Whole,
                Err(failure) => State::Failed(failure),
            };
            sender.send_replace(state);
        });
        Ok(download)
    }
}

struct Entry {
    downloads: Arc<Downloads>,
    digest: Digest,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.downloads.running().remove(&self.digest);
    }
}

async fn store(
    blobs: &Blobs,
    access: &Arc<Access>,
    incoming: Incoming,
    digest: &Digest,
    size: u64,
    state: &watch::Sender<State>,
) -> Result<(), Failure> {
    let (sender, pieces) = mpsc::channel::<Bytes>(PIECES_WAITING_MAX);
    let fetching = async {
        let fetched = access.blob(digest, size, &sender).await;
        drop(sender);
        fetched.map_err(|error| Failure::Registry(Arc::new(error)))
    };
    let (fetched, written) = tokio::join!(fetching, write(incoming, pieces, size, state));
    fetched?;
    let failed = |error| Failure::Disk(Arc::new(error));
    match blobs.keep(written.map_err(failed)?, digest).await.map_err(failed)? {
        Ok(_) => Ok(()),
        Err(actual) => Err(Failure::WrongDigest { expected: digest.clone(), actual }),
    }
}

/// Drops its end of the channel when the disk is full, which ends the download, too.
async fn write(
    mut incoming: Incoming,
    mut pieces: mpsc::Receiver<Bytes>,
    size: u64,
    state: &watch::Sender<State>,
) -> std::io::Result<Incoming> {
    let mut told = 0;
    while let Some(piece) = pieces.recv().await {
        incoming.write(&piece).await?;
        if incoming.bytes() - told >= STEP_BYTES {
            told = incoming.bytes();
            incoming.flush().await?;
            state.send_replace(State::Running { readable: told.min(size.saturating_sub(1)) });
        }
    }
    Ok(incoming)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Reference, Selector};
    use crate::registry::{Client, Policy};

    #[tokio::test]
    async fn a_blob_that_came_since_it_was_looked_for_is_not_fetched_again() {
        let scratch = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(scratch.path()).unwrap());
        let digest = Digest::of(b"layer");
        blobs.put(b"layer").await.unwrap();
        let selector = Selector::Tag("v1".into());
        let nowhere = Reference { host: Some("127.0.0.1:1".into()), repository: "app".into(), selector };
        let access = Client::new(Policy::default()).unwrap().access(&nowhere, None);
        let download = Arc::new(Downloads::default()).fetch(&blobs, access, &digest, 5).await.unwrap();
        assert!(matches!(*download.state.borrow(), State::Whole), "{download:?}");
        assert_eq!((std::fs::read(&download.path).unwrap(), download.size), (b"layer".to_vec(), 5));
    }
}
