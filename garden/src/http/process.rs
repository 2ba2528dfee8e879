//! Processes: the connection leaves HTTP after the head of the answer and carries lines of JSON both ways.
//!
//! ```text
//! POST …/processes ──▶ 201, {process_id, stream_id}   then input, signals ──▶   ◀── exit_status | error
//! GET …/attaches/ID/stdout ──▶ 200                    then the output, raw
//! ```
//! A client that goes is noticed wherever it is waited for; its process goes on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use garden_client::wire::{self, ProcessPayload, SIGNAL_KILL, SIGNAL_TERMINATE, STDIN};
use garden_client::{Process, ProcessIo, Result, Signal};
use http::StatusCode;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWriteExt, BufReader, DuplexStream, ReadBuf};

use super::connection::{AnswerHead, Body, Budget, Connection};
use super::messages::{Messages, Said};
use super::routes::Route;
use super::{Refusal, Server};
use crate::relay::OutputKind;

/// Input that a process has not read yet; then its client must wait.
const STDIN_BYTES_MAX: usize = 64 << 10;
/// How long input of a client that is gone may still take to reach a process that reads slowly.
const LAST_INPUT_TIME: Duration = Duration::from_secs(60);
/// Messages are short, but for input.
const READ_BYTES: usize = 4 << 10;

impl Server {
    /// Whether the connection carries HTTP still, because nothing came of it.
    pub(super) async fn hijack(&self, connection: &Connection, route: Route) -> io::Result<bool> {
        let (mut read, mut skipped) = (None, false);
        if let Route::Run { .. } = route {
            match self.read(connection).await {
                Ok(spec) => read = Some(spec),
                Err(refusal) => return refuse(connection, refusal).await,
            }
        } else {
            skipped = connection.skip_body().await;
        }
        match (route, read) {
            (Route::Run { handle }, Some(spec)) => {
                let start = async |io| self.garden.run(&handle, spec, io).await;
                self.process(StatusCode::CREATED, connection, start).await
            }
            (Route::Attach { handle, process_id }, _) if skipped => {
                let start = async |io| self.garden.attach(&handle, &process_id, io).await;
                self.process(StatusCode::OK, connection, start).await
            }
            (Route::Output { stream_id, kind, .. }, _) if skipped => {
                self.output(&stream_id, kind, connection).await.map(|()| false)
            }
            _ => {
                let refusal = Refusal::text(StatusCode::BAD_REQUEST, "this request has no body");
                refuse(connection, refusal).await
            }
        }
    }

    async fn process(
        &self,
        status: StatusCode,
        connection: &Connection,
        start: impl AsyncFnOnce(ProcessIo) -> Result<Box<dyn Process>>,
    ) -> io::Result<bool> {
        let (stream_id, outputs) = self.relays.open();
        // Ends the outputs on every way out of here.
        let closing = Closing { server: self, stream_id: stream_id.clone() };
        let (stdin, process_stdin) = input();
        let io = ProcessIo {
            stdin: Some(Box::new(process_stdin)),
            stdout: Some(Box::new(outputs.stdout.writer())),
            stderr: Some(Box::new(outputs.stderr.writer())),
        };
        let process = match start(io).await {
            Ok(process) => process,
            Err(error) => return refuse(connection, error.into()).await,
        };
        let process_id = process.id().to_owned();
        let first = ProcessPayload { process_id: process_id.clone(), stream_id, ..Default::default() };
        let head = raw_head(status, Some("application/json"));
        connection.send(&[head, wire::line(&first)?].concat()).await?;
        let mut messages = BufReader::with_capacity(READ_BYTES, connection.leave_http());
        let last = tokio::select! {
            status = process.wait() => match status {
                Ok(status) => ProcessPayload { process_id, exit_status: Some(status), ..Default::default() },
                Err(error) => ProcessPayload { process_id, error: Some(error.to_string()), ..Default::default() },
            },
            // The client is gone, or we are going: the process is let be.
            () = self.follow_client(connection, &mut messages, stdin, process.as_ref()) => return Ok(false),
            () = self.shutdown.cancelled() => return Ok(false),
        };
        // No longer in use, should the client leave its answer untouched.
        drop(process);
        connection.send(&wire::line(&last)?).await?;
        // Before the client's farewell is waited for: it may come only after the outputs have ended.
        drop(closing);
        connection.farewell().await;
        Ok(false)
    }

    /// Raw bytes until the process's output has ended or the client has gone.
    async fn output(&self, stream_id: &str, kind: OutputKind, connection: &Connection) -> io::Result<()> {
        connection.send(&raw_head(StatusCode::OK, None)).await?;
        let Some(mut output) = self.relays.fetch(stream_id, kind) else {
            connection.farewell().await;
            return Ok(());
        };
        let socket = connection.socket();
        let passed_on = async {
            while let Some(bytes) = output.next(Some(socket)).await {
                socket.write_all(&bytes).await?;
            }
            Ok(())
        };
        tokio::select! {
            passed_on = passed_on => {
                connection.farewell().await;
                passed_on
            }
            () = socket.gone() => Ok(()),
        }
    }

    /// Passes on what the client sends; returns when it has gone or talks nonsense.
    async fn follow_client(
        &self,
        connection: &Connection,
        receive: &mut BufReader<Body>,
        stdin: InputWriter,
        process: &dyn Process,
    ) {
        let socket = connection.socket();
        tokio::select! {
            ended = follow_messages(receive, &self.budget, stdin, process) => if let Ended::OutOfInput = ended {
                // It may listen for the end still, though it has nothing more to say.
                socket.gone().await;
            },
            // Nobody reads while a process does not take its input.
            () = socket.broken() => tokio::time::sleep(LAST_INPUT_TIME).await,
        }
    }
}

/// A process's input on its way from the client to the process: at its end only when the client has said so. A client that
/// breaks off, or a server that goes, leaves the process waiting for who attaches next.
pub(super) fn input() -> (InputWriter, InputReader) {
    let (ours, theirs) = tokio::io::duplex(STDIN_BYTES_MAX);
    let finished = Arc::new(AtomicBool::new(false));
    (InputWriter { bytes: ours, finished: finished.clone() }, InputReader { bytes: theirs, finished })
}

pub(super) struct InputWriter {
    bytes: DuplexStream,
    finished: Arc<AtomicBool>,
}

pub(super) struct InputReader {
    bytes: DuplexStream,
    finished: Arc<AtomicBool>,
}

impl InputWriter {
    fn finish(self) {
        self.finished.store(true, Ordering::Release);
    }
}

impl AsyncRead for InputReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        ready!(Pin::new(&mut self.bytes).poll_read(context, buffer))?;
        let at_its_end = buffer.filled().len() == filled && buffer.remaining() > 0;
        if at_its_end && !self.finished.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

struct Closing<'a> {
    server: &'a Server,
    stream_id: String,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.server.relays.close(std::mem::take(&mut self.stream_id));
    }
}

/// Clients of this API take the connection over after this head, and refuse one that announces its end: it claims a
/// body in chunks, of which nothing follows.
fn raw_head(status: StatusCode, content_type: Option<&str>) -> Vec<u8> {
    AnswerHead { status, content_type, persistent: true, more: "" }.bytes(None)
}

/// The public client does not read an error whose head announces the end of the connection.
async fn refuse(connection: &Connection, refusal: Refusal) -> io::Result<bool> {
    tracing::debug!(error = %refusal.error, "process refused");
    let persistent = connection.skip_body().await;
    connection.send(&refusal.bytes(true)).await?;
    if !persistent {
        connection.farewell().await;
    }
    Ok(persistent)
}

pub(super) enum Ended {
    /// As a client does that has closed the process's input before.
    OutOfInput,
    /// It broke off, or cannot be understood.
    Gone,
}

pub(super) async fn follow_messages(
    receive: &mut (impl AsyncBufRead + Unpin),
    budget: &Budget,
    stdin: InputWriter,
    process: &dyn Process,
) -> Ended {
    let (mut stdin, mut input_ended, mut messages) = (Some(stdin), false, Messages::default());
    loop {
        let message = match messages.next(receive, budget).await {
            Ok(Some(Said::Message(message))) => *message,
            Ok(Some(Said::Input(bytes))) => {
                pass_on(&mut stdin, &bytes).await;
                continue;
            }
            Ok(None) => return if input_ended { Ended::OutOfInput } else { Ended::Gone },
            Err(error) => {
                tracing::debug!(%error, process = process.id(), "client of a process is gone");
                return Ended::Gone;
            }
        };
        match message {
            ProcessPayload { tty: Some(tty), .. } => {
                if let Some(size) = tty.window_size {
                    log_failure(process, process.set_window_size(size).await);
                }
            }
            ProcessPayload { source: Some(STDIN), data: Some(data), .. } => {
                pass_on(&mut stdin, data.as_bytes()).await;
            }
            ProcessPayload { source: Some(STDIN), data: None, .. } => {
                if let Some(pipe) = stdin.take() {
                    pipe.finish();
                }
                input_ended = true;
            }
            ProcessPayload { signal: Some(SIGNAL_KILL), .. } => {
                log_failure(process, process.signal(Signal::Kill).await);
            }
            ProcessPayload { signal: Some(SIGNAL_TERMINATE), .. } => {
                log_failure(process, process.signal(Signal::Terminate).await);
            }
            other => tracing::warn!(?other, process = process.id(), "message that says nothing"),
        }
    }
}

/// A process that has closed its input leaves the rest unread.
async fn pass_on(stdin: &mut Option<InputWriter>, bytes: &[u8]) {
    if let Some(pipe) = stdin
        && pipe.bytes.write_all(bytes).await.is_err()
    {
        *stdin = None;
    }
}

fn log_failure(process: &dyn Process, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, process = process.id(), "cannot do what a client asked of a process");
    }
}
