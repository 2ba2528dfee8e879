//! Processes: the connection leaves HTTP after the head of the answer and carries lines of JSON both ways.
//!
//! ```text
//! POST …/processes ──▶ 201, {process_id, stream_id}   then input, signals ──▶   ◀── exit_status | error
//! GET …/attaches/ID/stdout ──▶ 200                    then the output, raw
//! ```

use std::io;
use std::sync::Arc;

use garden_client::wire::{self, ProcessPayload, SIGNAL_KILL, SIGNAL_TERMINATE, STDIN};
use garden_client::{Error, Process, ProcessIo, Result, Signal};
use http::StatusCode;
use tokio::io::{AsyncBufRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream};

use super::api::REQUEST_BYTES_MAX;
use super::routes::{OutputKind, Route};
use super::{Connection, Head, Server};

/// Input that a process has not read yet; then its client must wait.
const STDIN_BYTES_MAX: usize = 64 << 10;

impl Server {
    pub(super) async fn hijack(&self, mut connection: Box<dyn Connection>, head: Head) -> io::Result<()> {
        let (body, rest) = match read_body(&mut connection, &head).await? {
            Ok(read) => read,
            Err(error) => return refuse(&mut connection, &error).await,
        };
        let (receive, send) = tokio::io::split(connection);
        let mut receive = BufReader::new(io::Cursor::new(rest).chain(receive));
        match head.route {
            Some(Route::Run { handle }) => match serde_json::from_slice(&body) {
                Ok(spec) => {
                    let start = async |io| self.garden.run(&handle, spec, io).await;
                    self.process(StatusCode::CREATED, &mut receive, send, start).await
                }
                Err(error) => refuse(&mut { send }, &Error::Other(error.to_string())).await,
            },
            Some(Route::Attach { handle, process_id }) => {
                let start = async |io| self.garden.attach(&handle, &process_id, io).await;
                self.process(StatusCode::OK, &mut receive, send, start).await
            }
            Some(Route::Output { stream_id, kind, .. }) => self.output(&stream_id, kind, receive, send).await,
            _ => refuse(&mut { send }, &Error::Other("not a stream".into())).await,
        }
    }

    async fn process(
        &self,
        status: StatusCode,
        receive: &mut (impl AsyncBufRead + Unpin),
        mut send: impl AsyncWrite + Unpin,
        start: impl AsyncFnOnce(ProcessIo) -> Result<Box<dyn Process>>,
    ) -> io::Result<()> {
        let (stream_id, outputs) = self.streams.open();
        // Ends the outputs on every way out of here.
        let _closing = Closing { server: self, stream_id: stream_id.clone() };
        let (stdin, process_stdin) = tokio::io::duplex(STDIN_BYTES_MAX);
        let io = ProcessIo {
            stdin: Some(Box::new(process_stdin)),
            stdout: Some(Box::new(outputs.stdout.writer())),
            stderr: Some(Box::new(outputs.stderr.writer())),
        };
        let process: Arc<dyn Process> = match start(io).await {
            Ok(process) => process.into(),
            Err(error) => return refuse(&mut send, &error).await,
        };
        send.write_all(&head(status, Some("application/json"))).await?;
        let process_id = process.id().to_owned();
        let first = ProcessPayload { process_id: process_id.clone(), stream_id, ..Default::default() };
        send.write_all(&wire::line(&first)?).await?;
        let last = tokio::select! {
            status = process.wait() => match status {
                Ok(status) => ProcessPayload { process_id, exit_status: Some(status), ..Default::default() },
                Err(error) => ProcessPayload { process_id, error: Some(error.to_string()), ..Default::default() },
            },
            // The client is gone, or we are going: the process is let be.
            () = follow_client(receive, stdin, process.as_ref()) => return Ok(()),
            () = self.shutdown.cancelled() => return Ok(()),
        };
        send.write_all(&wire::line(&last)?).await?;
        send.shutdown().await
    }

    /// Raw bytes until the process's output has ended or the client has gone.
    async fn output(
        &self,
        stream_id: &str,
        kind: OutputKind,
        mut receive: impl AsyncBufRead + Unpin,
        mut send: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        send.write_all(&head(StatusCode::OK, None)).await?;
        let Some(mut output) = self.streams.fetch(stream_id, kind) else { return send.shutdown().await };
        let mut ignored = [0; 64];
        loop {
            tokio::select! {
                bytes = output.next() => match bytes {
                    Some(bytes) => send.write_all(&bytes).await?,
                    None => return send.shutdown().await,
                },
                // A client says nothing here: this is how its going away is noticed.
                read = receive.read(&mut ignored) => if read? == 0 { return Ok(()) },
            }
        }
    }
}

struct Closing<'a> {
    server: &'a Server,
    stream_id: String,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.server.streams.close(std::mem::take(&mut self.stream_id));
    }
}

/// The body and the bytes after it.
async fn read_body(
    connection: &mut Box<dyn Connection>,
    head: &Head,
) -> io::Result<Result<(Vec<u8>, Vec<u8>)>> {
    let length = head.content_length.unwrap_or(0);
    if head.chunked || length > REQUEST_BYTES_MAX {
        return Ok(Err(Error::Other(format!(
            "a body with a length of at most {REQUEST_BYTES_MAX} bytes is expected"
        ))));
    }
    let mut body = head.rest.clone();
    while body.len() < length {
        if connection.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let rest = body.split_off(length);
    Ok(Ok((body, rest)))
}

/// Clients of this API take the connection over after this head, and refuse one that announces its end: it claims a
/// body in chunks, of which nothing follows.
fn head(status: StatusCode, content_type: Option<&str>) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let content_type = content_type.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
    format!("HTTP/1.1 {} {reason}\r\n{content_type}Transfer-Encoding: chunked\r\n\r\n", status.as_u16())
        .into_bytes()
}

async fn refuse(send: &mut (impl AsyncWrite + Unpin), error: &Error) -> io::Result<()> {
    let (status, body) = (super::status(error), wire::line(error)?);
    tracing::debug!(%error, "process refused");
    let reason = status.canonical_reason().unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        status.as_u16(),
        body.len()
    );
    send.write_all(&[head.as_bytes(), &body].concat()).await?;
    send.shutdown().await
}

/// Passes on what the client sends; returns when it has gone or talks nonsense.
async fn follow_client(
    receive: &mut (impl AsyncBufRead + Unpin),
    stdin: DuplexStream,
    process: &dyn Process,
) {
    let mut stdin = Some(stdin);
    loop {
        let message = match wire::read_message::<ProcessPayload>(receive).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, process = process.id(), "client of a process is gone");
                break;
            }
        };
        match message {
            ProcessPayload { tty: Some(tty), .. } => {
                if let Some(size) = tty.window_size {
                    log_failure(process, process.set_window_size(size).await);
                }
            }
            ProcessPayload { source: Some(STDIN), data: Some(data), .. } => {
                let Some(pipe) = &mut stdin else { continue };
                // A process that has closed its input leaves the rest unread.
                if pipe.write_all(data.as_bytes()).await.is_err() {
                    stdin = None;
                }
            }
            ProcessPayload { source: Some(STDIN), data: None, .. } => stdin = None,
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

fn log_failure(process: &dyn Process, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, process = process.id(), "cannot do what a client asked of a process");
    }
}
