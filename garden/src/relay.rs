//! The outputs of processes on their way to clients, which fetch each by a connection of its own.
//!
//! Between the process and that connection stands a buffer of [`OUTPUT_BYTES_MAX`]. A full one holds the process up for
//! [`AWAIT_TIME`], in which a client that wants the output comes for it; if none does, what does not fit is thrown away,
//! so that a process whose output nobody wants is not held up for long. Of an output that nobody came for, only its
//! first [`UNLIKELY_BYTES_MAX`] are kept. Once somebody reads, a full buffer holds the process up until it is read. When
//! the reader is gone, so is this way out.
//!
//! ```text
//! Awaited ──AWAIT_TIME full, or DOUBT_TIME──▶ Unlikely ──reader()──▶ Reading
//! Awaited ──reader()──▶ Reading ◀──offer()──▶ Direct      the buffer is empty: whoever writes may write to the socket
//!    any ──reader dropped──▶ Gone
//! ```

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use crate::socket::Socket;

const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Of an output that nobody is likely to fetch.
const UNLIKELY_BYTES_MAX: usize = 16 << 10;
/// A client asks for the outputs as soon as it knows of the process.
const AWAIT_TIME: Duration = Duration::from_secs(2);
/// How long all of an output is kept for a client that is slow to ask, while nobody is held up by that.
const DOUBT_TIME: Duration = Duration::from_secs(10);
/// How long outputs of an ended process wait for a client that is about to fetch them.
pub const FETCH_TIME: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    Stdout,
    Stderr,
}

enum Reader {
    Awaited,
    /// It has been waited for.
    Unlikely,
    /// With bytes of ours in its hands, or about to look for some.
    Reading,
    /// It has passed on all it got, and waits; what is new may go to its socket without it.
    Direct(Arc<Socket>),
    Gone,
}

struct State {
    bytes: VecDeque<u8>,
    reader: Reader,
    ended: bool,
    writer_waker: Option<Waker>,
    reader_waker: Option<Waker>,
}

impl State {
    fn doubt(&mut self) {
        if matches!(self.reader, Reader::Awaited) {
            self.reader = Reader::Unlikely;
            self.bytes.truncate(UNLIKELY_BYTES_MAX);
            self.bytes.shrink_to_fit();
            wake(&mut self.writer_waker);
        }
    }

    fn room(&self) -> usize {
        let bytes_max =
            if matches!(self.reader, Reader::Unlikely) { UNLIKELY_BYTES_MAX } else { OUTPUT_BYTES_MAX };
        bytes_max.saturating_sub(self.bytes.len())
    }
}

#[derive(Clone)]
pub struct Output(Arc<Mutex<State>>);

impl Output {
    fn new() -> Self {
        let (writer_waker, reader_waker) = (None, None);
        let (bytes, reader, ended) = (VecDeque::new(), Reader::Awaited, false);
        Self(Arc::new(Mutex::new(State { bytes, reader, ended, writer_waker, reader_waker })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more will come.
    pub fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        wake(&mut state.reader_waker);
        wake(&mut state.writer_waker);
    }

    pub fn writer(&self) -> OutputWriter {
        OutputWriter { output: self.clone(), waiting: None }
    }

    /// Nobody has come for it, unless somebody has.
    fn doubt(&self) {
        self.lock().doubt();
    }

    /// `None` if somebody has fetched it already.
    pub fn reader(&self) -> Option<OutputReader> {
        let mut state = self.lock();
        if !matches!(state.reader, Reader::Awaited | Reader::Unlikely) {
            return None;
        }
        state.reader = Reader::Reading;
        wake(&mut state.writer_waker);
        Some(OutputReader(self.clone()))
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

pub struct OutputWriter {
    output: Output,
    /// For a reader to come.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl OutputWriter {
    /// The reader's connection, when nothing is under way to it: what is written there is in its place.
    pub fn direct(&self) -> Option<Arc<Socket>> {
        let state = self.output.lock();
        match &state.reader {
            Reader::Direct(socket) if !state.ended && state.bytes.is_empty() => Some(socket.clone()),
            _ => None,
        }
    }
}

impl AsyncWrite for OutputWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut state = this.output.lock();
        if matches!(state.reader, Reader::Gone) || state.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.room() == 0 && matches!(state.reader, Reader::Awaited) {
            let waiting = this.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(AWAIT_TIME)));
            if waiting.as_mut().poll(context).is_ready() {
                state.doubt();
            }
        }
        let room = state.room();
        if room == 0 && matches!(state.reader, Reader::Unlikely) {
            return Poll::Ready(Ok(bytes.len()));
        }
        if room == 0 {
            state.writer_waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let taken = bytes.len().min(room);
        state.bytes.extend(&bytes[..taken]);
        wake(&mut state.reader_waker);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for OutputWriter {
    fn drop(&mut self) {
        self.output.end();
    }
}

pub struct OutputReader(Output);

impl OutputReader {
    /// `None` at the end. Whoever asks has passed on what it got before; while it waits, the writer may use `socket`.
    pub async fn next(&mut self, socket: Option<&Arc<Socket>>) -> Option<Vec<u8>> {
        std::future::poll_fn(|context| {
            let mut state = self.0.lock();
            if state.bytes.is_empty() {
                if state.ended {
                    return Poll::Ready(None);
                }
                if let Some(socket) = socket {
                    state.reader = Reader::Direct(socket.clone());
                }
                state.reader_waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            state.reader = Reader::Reading;
            wake(&mut state.writer_waker);
            Poll::Ready(Some(std::mem::take(&mut state.bytes).into()))
        })
        .await
    }
}

impl Drop for OutputReader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.reader = Reader::Gone;
        state.bytes = VecDeque::new();
        wake(&mut state.writer_waker);
    }
}

/// Stdout and stderr of one process, as one client sees them.
#[derive(Clone)]
pub struct Outputs {
    pub stdout: Output,
    pub stderr: Output,
}

/// All that clients may fetch, by the id they were told.
#[derive(Default)]
pub struct Relays {
    next: AtomicU64,
    open: Arc<Mutex<HashMap<String, Outputs>>>,
}

impl Relays {
    pub fn open(&self) -> (String, Outputs) {
        let id = (self.next.fetch_add(1, Ordering::Relaxed) + 1).to_string();
        let outputs = Outputs { stdout: Output::new(), stderr: Output::new() };
        self.lock().insert(id.clone(), outputs.clone());
        let doubtful = outputs.clone();
        tokio::spawn(async move {
            tokio::time::sleep(DOUBT_TIME).await;
            doubtful.stdout.doubt();
            doubtful.stderr.doubt();
        });
        (id, outputs)
    }

    /// Nothing more comes; what is there may still be fetched for [`FETCH_TIME`].
    pub fn close(&self, id: String) {
        let Some(outputs) = self.lock().get(&id).cloned() else { return };
        outputs.stdout.end();
        outputs.stderr.end();
        let open = self.open.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FETCH_TIME).await;
            open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
    }

    pub fn fetch(&self, id: &str, kind: OutputKind) -> Option<OutputReader> {
        let outputs = self.lock().get(id).cloned()?;
        match kind {
            OutputKind::Stdout => outputs.stdout.reader(),
            OutputKind::Stderr => outputs.stderr.reader(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Outputs>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn output_nobody_wants_holds_nobody_up_for_long() {
        let output = Output::new();
        let mut writer = output.writer();
        writer.write_all(&vec![1; 2 * OUTPUT_BYTES_MAX]).await.unwrap();
        drop(writer);
        let mut reader = output.reader().unwrap();
        assert!(output.reader().is_none(), "one reader");
        assert_eq!(reader.next(None).await.map(|bytes| bytes.len()), Some(UNLIKELY_BYTES_MAX));
        assert_eq!(reader.next(None).await, None);
    }

    #[tokio::test]
    async fn of_output_nobody_came_for_only_the_beginning_is_kept() {
        let relays = Relays::default();
        let (id, outputs) = relays.open();
        let mut writer = outputs.stdout.writer();
        writer.write_all(&vec![1; OUTPUT_BYTES_MAX / 2]).await.unwrap();
        outputs.stdout.doubt();
        writer.write_all(&[2; 10]).await.unwrap();
        assert!(outputs.stdout.lock().bytes.capacity() <= 2 * UNLIKELY_BYTES_MAX);
        // Whoever comes at last gets that and all that follows.
        let mut reader = relays.fetch(&id, OutputKind::Stdout).unwrap();
        outputs.stdout.doubt();
        assert_eq!(reader.next(None).await, Some(vec![1; UNLIKELY_BYTES_MAX]));
        writer.write_all(&vec![3; OUTPUT_BYTES_MAX]).await.unwrap();
        assert_eq!(reader.next(None).await.map(|bytes| bytes.len()), Some(OUTPUT_BYTES_MAX));
    }

    #[tokio::test]
    async fn a_reader_that_comes_a_moment_late_misses_nothing() {
        let output = Output::new();
        let mut writer = output.writer();
        let writing = tokio::spawn(async move { writer.write_all(&vec![7; 3 * OUTPUT_BYTES_MAX]).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (mut reader, mut total) = (output.reader().unwrap(), 0);
        while let Some(bytes) = reader.next(None).await {
            total += bytes.len();
        }
        writing.await.unwrap().unwrap();
        assert_eq!(total, 3 * OUTPUT_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_reader_gets_every_byte_at_its_own_pace() {
        let output = Output::new();
        let (mut writer, mut reader) = (output.writer(), output.reader().unwrap());
        let writing = tokio::spawn(async move { writer.write_all(&vec![7; 3 * OUTPUT_BYTES_MAX]).await });
        let mut total = 0;
        while let Some(bytes) = reader.next(None).await {
            total += bytes.len();
            tokio::task::yield_now().await;
        }
        writing.await.unwrap().unwrap();
        assert_eq!(total, 3 * OUTPUT_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_reader_that_leaves_does_not_keep_the_writer_waiting() {
        let output = Output::new();
        let (mut writer, reader) = (output.writer(), output.reader().unwrap());
        let writing = tokio::spawn(async move { writer.write_all(&vec![7; 3 * OUTPUT_BYTES_MAX]).await });
        tokio::task::yield_now().await;
        drop(reader);
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
