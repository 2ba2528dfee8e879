//! Encoded envelopes that wait for the connection, already in the batches they will be sent in.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Counts;
use crate::envelope::encode_number;

/// Of all batches. With a forwarder that is away, what comes beyond it is dropped.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Of one batch; receivers take messages of up to 4 MiB.
const BATCH_BYTES_MAX: usize = 512 << 10;
/// A batch begins as large as the ones before it, but not larger than this.
const BATCH_BYTES_FIRST: usize = 64 << 10;
/// `EnvelopeBatch.batch`, length-delimited.
const KEY: u8 = 1 << 3 | 2;

pub struct Queue {
    envelopes_max: usize,
    flush_interval: Duration,
    waiting: Mutex<Waiting>,
    /// For the one that sends: a batch has begun, or is full, or no more will come.
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    bytes: usize,
    counts: Counts,
    closed: bool,
}

struct Batch {
    encoded: Vec<u8>,
    envelopes: usize,
    begun: Instant,
}

impl Batch {
    fn is_full(&self, envelopes_max: usize) -> bool {
        self.envelopes >= envelopes_max || self.encoded.len() >= BATCH_BYTES_MAX
    }
}

impl Queue {
    pub fn new(envelopes_max: usize, flush_interval: Duration) -> Queue {
        Queue {
            envelopes_max: envelopes_max.max(1),
            flush_interval,
            waiting: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub fn push(&self, envelope: &[u8]) {
        let mut length = [0; 10];
        let length = encode_number(envelope.len() as u64, &mut length);
        let taken = 1 + length.len() + envelope.len();
        let mut waiting = self.lock();
        waiting.counts.emitted += 1;
        if waiting.closed || waiting.bytes + taken > QUEUE_BYTES_MAX {
            waiting.counts.dropped += 1;
            return;
        }
        waiting.bytes += taken;
        let begins = waiting.batches.back().is_none_or(|batch| batch.is_full(self.envelopes_max));
        if begins {
            let batch = Batch { encoded: Vec::new(), envelopes: 0, begun: Instant::now() };
            waiting.batches.push_back(batch);
        }
        let Some(batch) = waiting.batches.back_mut() else { return };
        if begins {
            batch.encoded.reserve(BATCH_BYTES_FIRST.min(self.envelopes_max * taken));
        }
        batch.encoded.push(KEY);
        batch.encoded.extend_from_slice(length);
        batch.encoded.extend_from_slice(envelope);
        batch.envelopes += 1;
        let is_full = batch.is_full(self.envelopes_max);
        drop(waiting);
        if begins || is_full {
            self.changed.notify_one();
        }
    }

    /// The oldest batch, once it is full or has waited long enough; `None` after the last one. For one caller at a time.
    pub async fn next(&self) -> Option<Vec<u8>> {
        loop {
            let changed = self.changed.notified();
            let due = match self.take_ripe() {
                Ripe::Batch(batch) => return Some(batch),
                Ripe::Never => return None,
                Ripe::At(due) => Some(due),
                Ripe::Empty => None,
            };
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, changed).await;
                }
                None => changed.await,
            }
        }
    }

    fn take_ripe(&self) -> Ripe {
        let mut waiting = self.lock();
        let Some(oldest) = waiting.batches.front() else {
            return if waiting.closed { Ripe::Never } else { Ripe::Empty };
        };
        let due = oldest.begun + self.flush_interval;
        if !oldest.is_full(self.envelopes_max) && !waiting.closed && Instant::now() < due {
            return Ripe::At(due);
        }
        let Some(batch) = waiting.batches.pop_front() else { return Ripe::Empty };
        waiting.bytes -= batch.encoded.len();
        waiting.counts.sent += batch.envelopes as u64;
        Ripe::Batch(batch.encoded)
    }

    /// Takes no more; what waits can still be had.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }
}

enum Ripe {
    Batch(Vec<u8>),
    At(Instant),
    Empty,
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_goes_at_once_and_a_started_one_when_it_has_waited() {
        let queue = Queue::new(2, Duration::from_millis(100));
        let start = Instant::now();
        for envelope in [b"a", b"b", b"c"] {
            queue.push(envelope);
        }
        assert_eq!(queue.next().await.unwrap(), b"\x0a\x01a\x0a\x01b");
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(queue.next().await.unwrap(), b"\x0a\x01c");
        assert_eq!(start.elapsed().as_millis(), 100);
        assert_eq!(queue.counts(), Counts { emitted: 3, sent: 3, dropped: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_no_room_is_counted_and_dropped() {
        let queue = Queue::new(100, Duration::from_millis(100));
        let long = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            queue.push(&long);
        }
        assert_eq!(queue.counts(), Counts { emitted: 20, sent: 0, dropped: 5 });
        queue.next().await.unwrap();
        queue.push(&long);
        assert_eq!(queue.counts(), Counts { emitted: 21, sent: 1, dropped: 5 });
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_at_the_end_is_given_and_nothing_after_it() {
        let queue = Queue::new(100, Duration::from_secs(3600));
        queue.push(b"last");
        queue.close();
        queue.push(b"late");
        assert!(queue.next().await.is_some());
        assert!(queue.next().await.is_none());
        assert_eq!(queue.counts(), Counts { emitted: 2, sent: 1, dropped: 1 });
    }
}
