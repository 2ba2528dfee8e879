//! What containers say: lines with their origin, kept for a while, passed on to who follows.
//!
//! Bounded everywhere; nothing here ever makes a container wait.

mod limit;
mod recent;
mod stream;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
pub use recent::{Follow, Followed, Logs};
pub(crate) use stream::{DEFAULT_SOURCE, LogStream, LogWriter};
pub use stream::{LINE_BYTES_MAX, Out};

/// One line (or as much of it as [`LINE_BYTES_MAX`] allows), without its line end.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// Nanoseconds since the epoch.
    pub timestamp_ns: i64,
    /// The log guid of the recipe: for an app, its id.
    pub guid: Arc<str>,
    pub index: i32,
    pub instance_guid: Arc<str>,
    /// `APP/PROC/WEB`, `CELL`, `STG`, `HEALTH`, …
    pub source: Arc<str>,
    pub stream: Out,
    pub tags: Arc<BTreeMap<String, String>>,
    pub message: Bytes,
}

impl LogLine {
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.message)
    }
}

/// Where lines go besides the cell's own store: a forwarder, say.
pub trait LogSink: Send + Sync {
    /// Must not wait: a sink that is full drops, and counts what it dropped.
    fn emit(&self, line: &Arc<LogLine>);
}
