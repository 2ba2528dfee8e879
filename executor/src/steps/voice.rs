//! Where a step's output goes: the container's logs, or a buffer that becomes the reason of a failed check.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, Step, StepError, perform};
use crate::logs::{LogStream, LogWriter, Out};

/// Kept of a captured step's output; the rest is dropped.
pub const CAPTURED_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Default)]
pub(crate) struct Capture(Arc<Mutex<Vec<u8>>>);

impl Capture {
    fn write_all(&self, data: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let room = CAPTURED_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&data[..data.len().min(room)]);
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        String::from_utf8_lossy(&kept).trim().to_string()
    }
}

#[derive(Clone)]
pub(crate) enum Sink {
    Logs(LogWriter),
    Capture(Capture),
}

/// A step's standard output and standard error.
pub(crate) struct Voice {
    pub source: String,
    pub out: Sink,
    pub err: Sink,
}

impl Voice {
    pub fn new(logs: &LogStream, capture: Option<&Capture>) -> Self {
        let sink = |out| match capture {
            Some(capture) => Sink::Capture(capture.clone()),
            None => Sink::Logs(logs.writer(out)),
        };
        Voice { source: logs.source().to_string(), out: sink(Out::Out), err: sink(Out::Err) }
    }

    pub fn say(&self, text: &str) {
        self.out.say(text);
    }

    pub fn complain(&self, text: &str) {
        self.err.say(text);
    }
}

impl Sink {
    fn write_all(&self, data: &[u8]) {
        match self {
            Sink::Logs(writer) => writer.write_all(data),
            Sink::Capture(capture) => capture.write_all(data),
        }
    }

    /// Ends a line that a process left open, then says one of its own.
    fn say(&self, text: &str) {
        match self {
            Sink::Logs(writer) => {
                writer.flush_line();
                writer.write_all(text.as_bytes());
                writer.flush_line();
            }
            Sink::Capture(capture) => capture.write_all(text.as_bytes()),
        }
    }
}

impl AsyncWrite for Sink {
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

/// Runs a step with its output captured; what it said is the error when it fails.
pub(super) async fn capture(step: &Step, stage: &Stage, cancel: &CancellationToken, ready: &Ready) -> Result {
    let capture = Capture::default();
    let stage = Stage { capture: Some(capture.clone()), ..stage.clone() };
    match perform(step, &stage, cancel, ready).await {
        Ok(()) => Ok(()),
        Err(StepError::Cancelled) => Err(StepError::Cancelled),
        Err(error) => {
            let said = capture.text();
            let reason = if said.is_empty() { format!("Failed to invoke process: {error}") } else { said };
            Err(StepError::Emittable(reason))
        }
    }
}
