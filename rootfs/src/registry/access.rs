//! One repository for one user, wherever it is to be had: its mirrors in order, and the registry itself at last. What
//! is interrupted goes on where it stopped, with the next one if need be; large blobs come in several parts at once.
//!
//! An [`Access`] holds the tokens it was given and is dropped with them. Nothing is written to disk here, and a blob's
//! digest is for its receiver to verify, who sees the bytes last.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use super::endpoint::{Endpoint, Fetched, Out, Streamed};
use crate::digest::Digest;
use crate::image::Selector;
use crate::manifest::Descriptor;

/// How often the rest of one part is asked for, however far each attempt came.
const RESUMES_MAX: u32 = 10;
/// Larger blobs come in parts of so many bytes, as far as their registry sends parts, so many at a time. What waits is
/// held in memory.
const PARTED_BYTES_MIN: u64 = 16 << 20;
const PART_BYTES: u64 = 1 << 20;
const PARTS_AT_ONCE_MAX: usize = 4;
/// A part is handed on in pieces of so many bytes, so that queues of pieces stay small.
const PIECE_BYTES: usize = 256 << 10;

pub struct Access {
    /// In the order they are asked.
    mirrors: Vec<Endpoint>,
    origin: Endpoint,
}

#[derive(Clone)]
struct Blob {
    digest: Digest,
    size: u64,
}

impl Access {
    pub(super) fn new(mirrors: Vec<Endpoint>, origin: Endpoint) -> Access {
        Access { mirrors, origin }
    }

    pub fn host(&self) -> &str {
        &self.origin.place.host
    }

    pub fn image(&self) -> &str {
        &self.origin.place.image
    }

    /// From now on only the registry itself is asked, because something that came was wrong; whether that is a change.
    pub fn distrust_mirrors(&self) -> bool {
        // Each of them, not only up to the first.
        self.mirrors.iter().filter(|mirror| mirror.forbid()).count() > 0
    }

    fn mirrors(&self) -> impl Iterator<Item = &Endpoint> {
        self.mirrors.iter().filter(|mirror| !mirror.is_passed_over())
    }

    pub async fn manifest(&self, selector: &Selector) -> Result<Fetched, Error> {
        for mirror in self.mirrors() {
            match mirror.manifest(selector).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => mirror.pass_over(&error),
            }
        }
        self.origin.manifest(selector).await
    }

    /// What a tag stands for now, where the registry says so without sending it.
    pub async fn digest(&self, selector: &Selector) -> Result<Option<Digest>, Error> {
        for mirror in self.mirrors() {
            match mirror.digest(selector).await {
                Ok(digest) => return Ok(digest),
                Err(error) => mirror.pass_over(&error),
            }
        }
        self.origin.digest(selector).await
    }

    /// A blob's size in bytes.
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64, Error> {
        for mirror in self.mirrors() {
            match mirror.blob_size(digest).await {
                Ok(size) => return Ok(size),
                Err(error) => mirror.pass_over(&error),
            }
        }
        self.origin.blob_size(digest).await
    }

    /// A small blob (an image's configuration), whole and verified.
    pub async fn small_blob(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        for mirror in self.mirrors() {
            match mirror.small_blob(descriptor).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => mirror.pass_over(&error),
            }
        }
        self.origin.small_blob(descriptor).await
    }

    /// Sends a blob's bytes in order to `sink`. Ends early, without an error, when nobody receives any more.
    pub async fn blob(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<(), Error> {
        let blob = Blob { digest: digest.clone(), size };
        let first = if size < PARTED_BYTES_MIN { 0..size } else { 0..PART_BYTES };
        // A registry that sends no parts sends all at once.
        match self.part(&blob, first, &mut Out::Sink(sink)).await? {
            Some(done) if done < size => self.parts(&blob, done, sink).await,
            _ => Ok(()),
        }
    }

    /// The parts from `done` on: several under way, handed on in order.
    async fn parts(
        self: &Arc<Self>,
        blob: &Blob,
        done: u64,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<(), Error> {
        let starts = (done..blob.size).step_by(PART_BYTES as usize);
        let mut parts = starts.map(|start| start..(start + PART_BYTES).min(blob.size));
        let mut under_way = VecDeque::new();
        loop {
            while under_way.len() < PARTS_AT_ONCE_MAX
                && let Some(part) = parts.next()
            {
                let (access, blob) = (self.clone(), blob.clone());
                let fetching = tokio::spawn(async move {
                    // Copied: a piece of an answer may keep much more than itself in memory.
                    let mut bytes = Vec::with_capacity((part.end - part.start) as usize);
                    access.part(&blob, part, &mut Out::Memory(&mut bytes)).await.map(|_| Bytes::from(bytes))
                });
                under_way.push_back(AbortOnDropHandle::new(fetching));
            }
            let Some(next) = under_way.pop_front() else { return Ok(()) };
            let fetched = next.await;
            let mut bytes =
                fetched.unwrap_or_else(|error| Err(self.origin.interrupted(error.to_string())))?;
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
                if sink.send(piece).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// One part, from whoever has it; how far it came, or `None` when nobody receives any more.
    async fn part(&self, blob: &Blob, part: Range<u64>, out: &mut Out<'_>) -> Result<Option<u64>, Error> {
        let mut done = part.start;
        for mirror in self.mirrors() {
            match persist(mirror, blob, &part, &mut done, out).await {
                Ok(received) => return Ok(received.then_some(done)),
                Err(error) => mirror.pass_over(&error),
            }
        }
        let received = persist(&self.origin, blob, &part, &mut done, out).await?;
        Ok(received.then_some(done))
    }
}

/// Asks one registry for a part until it is there; whether anybody receives it.
async fn persist(
    endpoint: &Endpoint,
    blob: &Blob,
    part: &Range<u64>,
    done: &mut u64,
    out: &mut Out<'_>,
) -> Result<bool, Error> {
    let Blob { digest, size } = blob;
    let began = Instant::now();
    let mut fruitless = 0;
    for _ in 0..=RESUMES_MAX {
        let before = *done;
        let reason = match endpoint.stretch(digest, *size, part, done, out).await? {
            Streamed::Whole => return Ok(true),
            Streamed::NotWanted => return Ok(false),
            Streamed::Interrupted(reason) => reason,
        };
        fruitless = if *done > before { 1 } else { fruitless + 1 };
        // Only attempts that bring nothing use up patience; RESUMES_MAX bounds the others.
        let elapsed = if *done > before { Duration::ZERO } else { began.elapsed() };
        match endpoint.place.retry.wait(fruitless, elapsed, None, rand::random()) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(endpoint.interrupted(reason)),
        }
        tracing::debug!(image = endpoint.place.image, %digest, done, size, "resuming a layer");
    }
    Err(endpoint.interrupted(format!("layer {digest} was interrupted {RESUMES_MAX} times")))
}
