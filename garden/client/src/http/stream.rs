//! A process's stream: after the head of the response the connection is no longer HTTP but lines of JSON both ways,
//! with its outputs as raw bytes on a connection each.

use std::io;

use http::Method;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::body::{Body, Framing};
use super::{Connection, HttpGarden, container, refusal};
use crate::wire::{self, ProcessPayload, SIGNAL_KILL, SIGNAL_TERMINATE, STDIN};
use crate::{Error, Process, ProcessIo, Reader, Result, Signal, TtySpec, WindowSize, Writer};

/// Of the response.
const HEAD_BYTES_MAX: u64 = 64 << 10;
const ERROR_BYTES_MAX: u64 = 1 << 20;
/// Of an output, read at once: most say little.
const OUTPUT_PIECE_BYTES_MIN: usize = 8 << 10;
const OUTPUT_PIECE_BYTES_MAX: usize = 256 << 10;
const STDIN_PIECE_BYTES: usize = 32 << 10;
/// Messages to a process that wait for the connection.
const MESSAGES_MAX: usize = 16;

pub(super) type Hijacked = BufReader<Box<dyn Connection>>;

/// The first message of a stream: which process it is and by which name its outputs are had.
pub(super) struct Head {
    process_id: String,
    stream_id: String,
}

impl HttpGarden {
    pub(super) async fn hijack(&self, method: Method, target: &str, body: &[u8]) -> Result<(Head, Hijacked)> {
        let broken = |error: io::Error| Error::Disconnected(format!("{method} {target} at garden: {error}"));
        let mut stream = self.open(&method, target, body).await?;
        let first: Option<ProcessPayload> = wire::read_message(&mut stream).await.map_err(broken)?;
        let first = first.ok_or_else(|| broken(io::ErrorKind::UnexpectedEof.into()))?;
        Ok((Head { process_id: first.process_id, stream_id: first.stream_id }, stream))
    }

    /// A connection that has left HTTP behind.
    async fn open(&self, method: &Method, target: &str, body: &[u8]) -> Result<Hijacked> {
        self.ask(method, target, body).await.map(|(_, stream)| stream)
    }

    /// The body of a good answer, which is read as it comes.
    pub(super) async fn body(&self, target: &str) -> Result<Body> {
        let (framing, stream) = self.ask(&Method::GET, target, &[]).await?;
        Ok(Body::new(stream, framing))
    }

    /// By a connection of its own, up to the body of a good answer.
    async fn ask(&self, method: &Method, target: &str, body: &[u8]) -> Result<(Framing, Hijacked)> {
        let broken = |error: io::Error| Error::Disconnected(format!("{method} {target} at garden: {error}"));
        let mut stream = BufReader::new(self.connect().await?);
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        let request = [head.as_bytes(), body].concat();
        stream.write_all(&request).await.map_err(broken)?;
        let (status, framing) = read_head(&mut stream).await.map_err(broken)?;
        if (200..300).contains(&status) {
            return Ok((framing, stream));
        }
        let mut why = Vec::new();
        Body::new(stream, framing).take(ERROR_BYTES_MAX).read_to_end(&mut why).await.map_err(broken)?;
        Err(refusal(status, &why))
    }

    pub(super) async fn follow(
        &self,
        handle: &str,
        head: Head,
        stream: Hijacked,
        io: ProcessIo,
    ) -> Result<Box<dyn Process>> {
        let mut outputs = JoinSet::new();
        for (name, writer) in [("stdout", io.stdout), ("stderr", io.stderr)] {
            let Some(writer) = writer else { continue };
            let (process, id) = (wire::encode(&head.process_id), wire::encode(&head.stream_id));
            let target = container(handle, &format!("/processes/{process}/attaches/{id}/{name}"));
            let output = self.open(&Method::GET, &target, &[]).await?;
            outputs.spawn(copy_output(output, writer));
        }
        let (messages, waiting) = mpsc::channel(MESSAGES_MAX);
        let (ended, status) = watch::channel(None);
        let buffered = stream.buffer().to_vec();
        let (read, write) = tokio::io::split(stream.into_inner());
        let mut tasks = JoinSet::new();
        tasks.spawn(send_messages(waiting, write));
        if let Some(stdin) = io.stdin {
            tasks.spawn(send_stdin(stdin, messages.clone(), head.process_id.clone()));
        }
        tasks.spawn(await_exit(buffered, read, outputs, ended));
        let process = HttpProcess { id: head.process_id, messages, status, _tasks: tasks };
        Ok(Box::new(process))
    }
}

/// The status, and how the body ends.
async fn read_head(stream: &mut Hijacked) -> io::Result<(u16, Framing)> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let mut stream = stream.take(HEAD_BYTES_MAX);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    let mut framing = Framing::UntilClosed;
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some(header) = line.strip_suffix('\n') else { return Err(malformed()) };
        if header.trim().is_empty() {
            return Ok((status, framing));
        }
        let Some((name, value)) = header.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            framing = Framing::Length(value.trim().parse().map_err(|_| malformed())?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            framing = Framing::Chunked;
        }
    }
}

async fn copy_output(output: Hijacked, mut writer: Writer) -> io::Result<()> {
    writer.write_all(output.buffer()).await?;
    let mut output = output.into_inner();
    let (mut piece, mut bytes_max) = (Vec::new(), OUTPUT_PIECE_BYTES_MIN);
    loop {
        piece.resize(bytes_max, 0);
        let length = output.read(&mut piece).await?;
        if length == 0 {
            return writer.shutdown().await;
        }
        writer.write_all(&piece[..length]).await?;
        if length == bytes_max {
            bytes_max = OUTPUT_PIECE_BYTES_MAX;
        }
    }
}

async fn send_messages(mut waiting: mpsc::Receiver<Vec<u8>>, mut connection: WriteHalf<Box<dyn Connection>>) {
    while let Some(message) = waiting.recv().await {
        // The end of the connection is the reading side's to tell.
        if connection.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// The API carries input as text: a character that is cut by a piece's end waits for the next piece; bytes that are no
/// text arrive as U+FFFD.
async fn send_stdin(stdin: Reader, messages: mpsc::Sender<Vec<u8>>, process_id: String) {
    // A reader that fails ends the input, as the connection does.
    _ = try_send_stdin(stdin, &messages, &process_id).await;
}

async fn try_send_stdin(
    mut stdin: Reader,
    messages: &mpsc::Sender<Vec<u8>>,
    process_id: &str,
) -> io::Result<()> {
    let mut piece = Vec::with_capacity(STDIN_PIECE_BYTES);
    let send = async |data: Option<String>| {
        let message =
            ProcessPayload { process_id: process_id.into(), source: Some(STDIN), data, ..Default::default() };
        messages.send(wire::line(&message)?).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    };
    loop {
        let ended = (&mut stdin).take(STDIN_PIECE_BYTES as u64).read_buf(&mut piece).await? == 0;
        let cut = match std::str::from_utf8(&piece) {
            Err(error) if error.error_len().is_none() && !ended => error.valid_up_to(),
            _ => piece.len(),
        };
        let text = String::from_utf8_lossy(&piece[..cut]).into_owned();
        piece.drain(..cut);
        if !text.is_empty() {
            send(Some(text)).await?;
        }
        if ended {
            return send(None).await;
        }
    }
}

/// The exit status is told once the outputs have been written.
async fn await_exit(
    buffered: Vec<u8>,
    connection: ReadHalf<Box<dyn Connection>>,
    outputs: JoinSet<io::Result<()>>,
    ended: watch::Sender<Option<Result<i32>>>,
) {
    let mut messages = BufReader::new(io::Cursor::new(buffered).chain(connection));
    let result = loop {
        match wire::read_message::<ProcessPayload>(&mut messages).await {
            Ok(Some(ProcessPayload { error: Some(error), .. })) => {
                break Err(Error::Other(format!("connection: process error: {error}")));
            }
            Ok(Some(ProcessPayload { exit_status: Some(status), .. })) => break Ok(status),
            Ok(Some(_)) => {}
            Ok(None) => break Err(Error::Disconnected("connection: decode failed: EOF".into())),
            Err(error) => break Err(Error::Disconnected(format!("connection: decode failed: {error}"))),
        }
    };
    // An output that nobody takes any more is no failure of the process.
    outputs.join_all().await;
    ended.send_replace(Some(result));
}

struct HttpProcess {
    id: String,
    messages: mpsc::Sender<Vec<u8>>,
    status: watch::Receiver<Option<Result<i32>>>,
    /// Ended when this is dropped: to drop is to detach.
    _tasks: JoinSet<()>,
}

impl HttpProcess {
    async fn tell(&self, message: ProcessPayload) -> Result<()> {
        let message = ProcessPayload { process_id: self.id.clone(), ..message };
        let line = wire::line(&message).map_err(|error| Error::Other(error.to_string()))?;
        self.messages.send(line).await.map_err(|_| Error::Disconnected("connection: closed".into()))
    }
}

#[async_trait::async_trait]
impl Process for HttpProcess {
    fn id(&self) -> &str {
        &self.id
    }

    async fn wait(&self) -> Result<i32> {
        let mut status = self.status.clone();
        let ended = status.wait_for(Option::is_some).await.map(|status| status.clone());
        ended.ok().flatten().unwrap_or_else(|| Err(Error::Disconnected("connection: closed".into())))
    }

    async fn signal(&self, signal: Signal) -> Result<()> {
        let signal = match signal {
            Signal::Terminate => SIGNAL_TERMINATE,
            Signal::Kill => SIGNAL_KILL,
        };
        self.tell(ProcessPayload { signal: Some(signal), ..Default::default() }).await
    }

    async fn set_window_size(&self, size: WindowSize) -> Result<()> {
        self.tell(ProcessPayload { tty: Some(TtySpec { window_size: Some(size) }), ..Default::default() })
            .await
    }
}
