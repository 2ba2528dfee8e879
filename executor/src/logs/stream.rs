//! One container's voice: cuts what its processes write into lines, limits them, and names where they come from.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use diego_base::clock::Clock;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::limit::{Limiter, Verdict};
use super::recent::Topic;
use super::{LogLine, Logs};
use crate::{LogConfig, Occurrence, Witness};

/// A longer line is passed on in pieces, cut between characters.
pub const LINE_BYTES_MAX: usize = 61_440;
pub const DEFAULT_SOURCE: &str = "LOG";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Out {
    Out,
    Err,
}

/// The logs of one container, speaking for one source; cheap to clone.
#[derive(Clone)]
pub(crate) struct LogStream {
    source: Arc<str>,
    shared: Arc<Shared>,
}

struct Shared {
    logs: Logs,
    topic: Arc<Topic>,
    guid: Arc<str>,
    index: i32,
    instance_guid: Arc<str>,
    tags: Mutex<Arc<BTreeMap<String, String>>>,
    limiter: Mutex<Limiter>,
    passed_bytes: AtomicU64,
    clock: Arc<dyn Clock>,
    witness: Arc<dyn Witness>,
}

impl LogStream {
    pub fn new(
        logs: &Logs,
        config: &LogConfig,
        instance_guid: &str,
        limits: (i64, u32),
        clock: Arc<dyn Clock>,
        witness: Arc<dyn Witness>,
    ) -> Self {
        let guid: Arc<str> = Arc::from(config.guid.as_str());
        let source = if config.source_name.is_empty() { DEFAULT_SOURCE } else { &config.source_name };
        let shared = Shared {
            topic: logs.topic(&guid),
            logs: logs.clone(),
            index: config.index,
            instance_guid: Arc::from(instance_guid),
            tags: Mutex::new(Arc::new(complete_tags(config.tags.clone(), &guid, config.index))),
            limiter: Mutex::new(Limiter::new(limits.0, limits.1, Instant::now())),
            passed_bytes: AtomicU64::new(0),
            clock,
            witness,
            guid,
        };
        LogStream { source: Arc::from(source), shared: Arc::new(shared) }
    }

    /// The same container speaking for another source; an empty name changes nothing.
    pub fn with_source(&self, source: &str) -> Self {
        if source.is_empty() {
            return self.clone();
        }
        LogStream { source: Arc::from(source), shared: self.shared.clone() }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn writer(&self, out: Out) -> LogWriter {
        LogWriter(Arc::new(Mutex::new(Partial { stream: self.clone(), out, buffer: Vec::new() })))
    }

    /// The platform's own word about the container: not counted against its limit.
    pub fn announce(&self, out: Out, text: &str) {
        self.write_line(out, Bytes::copy_from_slice(text.as_bytes()));
    }

    pub fn set_tags(&self, tags: BTreeMap<String, String>) {
        let tags = complete_tags(tags, &self.shared.guid, self.shared.index);
        *lock(&self.shared.tags) = Arc::new(tags);
    }

    pub fn passed_bytes(&self) -> u64 {
        self.shared.passed_bytes.load(Ordering::Relaxed)
    }

    fn offer(&self, out: Out, message: Bytes) {
        let verdict = lock(&self.shared.limiter).judge(message.len(), Instant::now());
        match verdict {
            Verdict::Drop => {}
            Verdict::Notice(notice) => {
                self.shared.witness.saw(Occurrence::LogRateExceeded);
                self.write_line(Out::Out, Bytes::from(notice));
            }
            Verdict::Pass => {
                self.shared.passed_bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
                self.write_line(out, message);
            }
        }
    }

    fn write_line(&self, out: Out, message: Bytes) {
        let shared = &self.shared;
        if shared.guid.is_empty() {
            return;
        }
        let line = LogLine {
            timestamp_ns: shared.clock.now_ns(),
            guid: shared.guid.clone(),
            index: shared.index,
            instance_guid: shared.instance_guid.clone(),
            source: self.source.clone(),
            stream: out,
            tags: lock(&shared.tags).clone(),
            message,
        };
        shared.logs.write(&shared.topic, line);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn complete_tags(mut tags: BTreeMap<String, String>, guid: &str, index: i32) -> BTreeMap<String, String> {
    tags.entry("source_id".to_string()).or_insert_with(|| guid.to_string());
    tags.entry("instance_id".to_string()).or_insert_with(|| index.to_string());
    tags
}

/// Takes bytes, gives lines. Clones write into the same line; the last line is given when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct LogWriter(Arc<Mutex<Partial>>);

struct Partial {
    stream: LogStream,
    out: Out,
    buffer: Vec<u8>,
}

impl LogWriter {
    pub fn write_all(&self, data: &[u8]) {
        lock(&self.0).write_all(data);
    }

    /// Held for a line that has no end yet.
    #[cfg(test)]
    pub fn buffered_bytes(&self) -> usize {
        lock(&self.0).buffer.capacity()
    }

    /// Ends the line that is under way, if any.
    pub fn flush_line(&self) {
        lock(&self.0).flush();
    }
}

impl Partial {
    fn write_all(&mut self, mut data: &[u8]) {
        while let Some(end) = data.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.append(&data[..end]);
            self.flush();
            data = &data[end + 1..];
        }
        self.append(data);
    }

    fn append(&mut self, mut data: &[u8]) {
        while self.buffer.len() + data.len() >= LINE_BYTES_MAX {
            let (now, later) = data.split_at(LINE_BYTES_MAX - self.buffer.len());
            self.buffer.extend_from_slice(now);
            let whole = whole_characters(&self.buffer);
            let begun = self.buffer.split_off(whole);
            self.flush();
            self.buffer = begun;
            data = later;
        }
        self.buffer.extend_from_slice(data);
    }

    fn flush(&mut self) {
        if !self.buffer.is_empty() {
            let message = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            self.stream.offer(self.out, message);
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.flush();
    }
}

/// How many leading bytes end with a whole character. Bytes that are no UTF-8 anyway are left as they are.
fn whole_characters(bytes: &[u8]) -> usize {
    let Some(after) = bytes.iter().rev().take(4).position(|byte| byte & 0xC0 != 0x80) else {
        return bytes.len();
    };
    let start = bytes.len() - 1 - after;
    let wanted = match bytes[start] {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    };
    if after + 1 < wanted && start > 0 { start } else { bytes.len() }
}

impl AsyncWrite for LogWriter {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        self.write_all(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
