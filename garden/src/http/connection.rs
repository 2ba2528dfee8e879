//! One connection: heads, bodies and answers on it, one after the other.
//!
//! What was read beyond the current request stays in a small buffer that an idle connection does not have.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::{Buf, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::head::{self, Framing, Head, Malformed, Position};
use crate::socket::{Incoming, Socket};

/// Read ahead at once, where content does not go straight to whoever wants it.
const READ_AHEAD_BYTES: usize = 8 << 10;
/// Likewise where a chunk's line is expected: most are a few bytes, and what follows is better had straight.
const LINE_AHEAD_BYTES: usize = 128;
/// What a connection may hold of a request without asking.
const OWN_BYTES: usize = 16 << 10;
/// Of an answer that nobody takes.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Of a body that was not wanted: read and thrown away, so that the connection can be used again.
const UNWANTED_BYTES_MAX: usize = 256 << 10;
/// For the rest of such a body to come.
const UNWANTED_TIME: Duration = Duration::from_millis(50);
/// Likewise after the last answer, which what is left unread would destroy on its way: much comes before it is heard.
const FAREWELL_BYTES_MAX: usize = 64 << 20;
const FAREWELL_READ_BYTES: usize = 64 << 10;
/// For the peer to take the last answer before what it still sends would break the connection.
const FAREWELL_TIME: Duration = Duration::from_millis(500);

/// What all connections together may hold of requests that are not complete.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Semaphore>);

/// More is being read already than this server wants to hold.
#[derive(Debug)]
pub struct Exhausted;

/// A part of the budget, given back when dropped.
#[derive(Debug, Default)]
pub struct Share {
    kibibytes: usize,
    permits: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub fn new(bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new(bytes >> 10)))
    }

    /// Makes `share` cover `bytes`.
    pub fn cover(&self, share: &mut Share, bytes: usize) -> Result<(), Exhausted> {
        let wanted = bytes.saturating_sub(OWN_BYTES).div_ceil(1 << 10);
        let more = wanted.saturating_sub(share.kibibytes);
        if more == 0 {
            return Ok(());
        }
        let count = u32::try_from(more).map_err(|_| Exhausted)?;
        let permits = self.0.clone().try_acquire_many_owned(count).map_err(|_| Exhausted)?;
        match &mut share.permits {
            Some(held) => held.merge(permits),
            None => share.permits = Some(permits),
        }
        share.kibibytes = wanted;
        Ok(())
    }
}

/// Why there is no request.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("too much is being asked at once")]
    Exhausted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Cheap to clone; all clones are the same connection.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    socket: Arc<Socket>,
    state: Mutex<State>,
}

struct State {
    /// Read and not used yet.
    buffer: BytesMut,
    position: Position,
    /// The client is yet to be told that its body is wanted.
    owes_continue: bool,
}

impl Connection {
    pub fn new(socket: Socket) -> Connection {
        let state = State { buffer: BytesMut::new(), position: Position::End, owes_continue: false };
        Connection(Arc::new(Shared { socket: Arc::new(socket), state: Mutex::new(state) }))
    }

    pub fn socket(&self) -> &Arc<Socket> {
        &self.0.socket
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until something has come of the next request, or the end.
    pub async fn begun(&self) -> io::Result<()> {
        if self.state().buffer.is_empty() { self.0.socket.readable().await } else { Ok(()) }
    }

    /// The next request's head, after which its body can be read. `None`: the client asks nothing more.
    pub async fn read_head(&self, budget: &Budget) -> Result<Option<Head>, Unread> {
        let (mut share, mut seen) = (Share::default(), 0);
        loop {
            {
                let mut state = self.state();
                if let Some(head) = head::parse(&state.buffer, seen)? {
                    state.buffer.advance(head.length);
                    state.begin(head.body, head.expects_continue);
                    return Ok(Some(head));
                }
                seen = state.buffer.len();
            }
            budget.cover(&mut share, seen + READ_AHEAD_BYTES).map_err(|Exhausted| Unread::Exhausted)?;
            if std::future::poll_fn(|context| self.poll_ahead(context)).await? == 0 {
                let nothing = self.state().buffer.iter().all(u8::is_ascii_whitespace);
                return if nothing {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }

    fn poll_ahead(&self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.state().poll_ahead(READ_AHEAD_BYTES, &self.0.socket, context)
    }

    /// The body of the current request. There is one connection below all that are made.
    pub fn body(&self) -> Body {
        Body(self.clone())
    }

    /// From here on all that comes is content, and the connection is not used again for requests.
    pub fn leave_http(&self) -> Body {
        self.state().position = Position::Raw;
        self.body()
    }

    /// The whole body; the inner error: longer than `bytes_max`.
    pub async fn read_body(
        &self,
        bytes_max: usize,
        budget: &Budget,
    ) -> Result<Result<(Vec<u8>, Share), TooLong>, Unread> {
        let too_long = |length: u64| length > bytes_max as u64;
        if matches!(self.state().position, Position::Content { left, in_chunks: false } if too_long(left)) {
            return Ok(Err(TooLong));
        }
        let (mut content, mut share, mut body) = (Vec::new(), Share::default(), self.body());
        loop {
            budget
                .cover(&mut share, content.len() + READ_AHEAD_BYTES)
                .map_err(|Exhausted| Unread::Exhausted)?;
            let filled = content.len();
            content.resize(filled + READ_AHEAD_BYTES, 0);
            let read = std::future::poll_fn(|context| body.poll_bytes(context, &mut content[filled..])).await;
            content.truncate(filled + *read.as_ref().unwrap_or(&0));
            match read.map_err(unread)? {
                0 => return Ok(Ok((content, share))),
                _ if too_long(content.len() as u64) => return Ok(Err(TooLong)),
                _ => {}
            }
        }
    }

    /// Whether the next request follows: the body of this one has been read, or is short and comes at once.
    pub async fn skip_body(&self) -> bool {
        let (mut ignored, mut left, mut body) = (vec![0; READ_AHEAD_BYTES], UNWANTED_BYTES_MAX, self.body());
        if self.state().position == Position::End {
            return true;
        }
        if self.state().owes_continue {
            return false;
        }
        let skipped = async {
            while let Ok(length) =
                std::future::poll_fn(|context| body.poll_bytes(context, &mut ignored)).await
            {
                left = left.saturating_sub(length);
                if length == 0 || left == 0 {
                    break;
                }
            }
        };
        _ = tokio::time::timeout(UNWANTED_TIME, skipped).await;
        self.state().position == Position::End
    }

    /// An answer of known length, whole.
    pub async fn answer(&self, head: &AnswerHead<'_>, content: &[u8]) -> io::Result<()> {
        let mut bytes = head.bytes(Some(content.len()));
        bytes.extend_from_slice(content);
        self.send(&bytes).await
    }

    /// All of it, to a client that takes some of it every now and then.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(1 << 20) {
            let sent = tokio::time::timeout(ANSWER_TIME, self.0.socket.write_all(part)).await;
            sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        }
        Ok(())
    }

    /// Exactly so many bytes that are in a pipe, likewise.
    pub async fn send_from(&self, pipe: BorrowedFd<'_>, length: usize) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let some = async {
                loop {
                    match self.0.socket.splice_from(pipe, left).await {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        sent => break sent,
                    }
                }
            };
            match tokio::time::timeout(ANSWER_TIME, some).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(sent) => left -= sent?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }

    /// Ends the connection so that the client can still read what it was told, though it may be sending.
    pub async fn farewell(&self) {
        self.0.socket.finish();
        let (mut ignored, mut left) = (vec![0; FAREWELL_READ_BYTES], FAREWELL_BYTES_MAX);
        let read_on = async {
            while let Ok(length) = self.0.socket.read(&mut ignored).await {
                left = left.saturating_sub(length);
                if length == 0 || left == 0 {
                    return;
                }
            }
        };
        _ = tokio::time::timeout(FAREWELL_TIME, read_on).await;
    }
}

/// A body longer than its route takes.
#[derive(Debug)]
pub struct TooLong;

fn unread(error: io::Error) -> Unread {
    match error.downcast::<Malformed>() {
        Ok(malformed) => malformed.into(),
        Err(error) => error.into(),
    }
}

impl State {
    fn begin(&mut self, framing: Framing, expects_continue: bool) {
        self.position = Position::begin(framing);
        self.owes_continue = expects_continue && self.position != Position::End;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    fn poll_ahead(
        &mut self,
        bytes_max: usize,
        socket: &Socket,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + bytes_max, 0);
        let read = socket.poll_read(context, &mut self.buffer[filled..]);
        let length = if let Poll::Ready(Ok(length)) = read { length } else { 0 };
        self.buffer.truncate(filled + length);
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        read
    }

    fn pay_continue(&mut self, socket: &Socket) -> io::Result<()> {
        if std::mem::take(&mut self.owes_continue) {
            const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
            // The first word on an idle connection: there is room for it.
            if socket.try_write(CONTINUE)? != CONTINUE.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Up to the next byte of content: how many may follow now. Zero: the end of the body.
    fn poll_content(&mut self, socket: &Socket, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        if self.buffer.is_empty() {
            self.pay_continue(socket)?;
        }
        loop {
            match self.position {
                Position::End => return Poll::Ready(Ok(0)),
                Position::Raw => return Poll::Ready(Ok(u64::MAX)),
                Position::Content { left, .. } => return Poll::Ready(Ok(left)),
                _ => {}
            }
            match self.position.step(&self.buffer).map_err(io::Error::other)? {
                Some((used, next)) => {
                    self.buffer.advance(used);
                    self.position = next;
                }
                None if ready!(self.poll_ahead(LINE_AHEAD_BYTES, socket, context))? == 0 => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                None => {}
            }
        }
    }
}

/// A request's body, or after HTTP all that comes.
pub struct Body(Connection);

impl Body {
    fn poll_bytes(&mut self, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let (socket, mut state) = (&self.0.0.socket, self.0.state());
        let allowed = ready!(state.poll_content(socket, context))?;
        let wanted = bytes.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let count = if state.buffer.is_empty() {
            let read = ready!(socket.poll_read(context, &mut bytes[..wanted]))?;
            if read == 0 && state.position != Position::Raw {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            read
        } else {
            let count = wanted.min(state.buffer.len());
            state.buffer.copy_to_slice(&mut bytes[..count]);
            count
        };
        state.position = state.position.after(count);
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for Body {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(self.poll_bytes(context, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl Incoming for Body {
    fn connection(&self) -> Arc<Socket> {
        self.0.0.socket.clone()
    }

    fn poll_straight(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<u64>>> {
        let mut state = self.0.state();
        let allowed = ready!(state.poll_content(&self.0.0.socket, context))?;
        Poll::Ready(Ok((allowed == 0 || state.buffer.is_empty()).then_some(allowed)))
    }

    fn taken(&mut self, count: usize) {
        let mut state = self.0.state();
        state.position = state.position.after(count);
    }
}

/// What stands before the content of an answer.
pub struct AnswerHead<'a> {
    pub status: StatusCode,
    pub content_type: Option<&'a str>,
    /// Another request may follow.
    pub persistent: bool,
    /// Whole lines.
    pub more: &'a str,
}

impl AnswerHead<'_> {
    /// With a length, or in chunks.
    pub fn bytes(&self, length: Option<usize>) -> Vec<u8> {
        let (code, reason) = (self.status.as_u16(), self.status.canonical_reason().unwrap_or_default());
        let date = httpdate::fmt_http_date(SystemTime::now());
        let kind = self.content_type.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
        let length = match length {
            Some(length) => format!("Content-Length: {length}\r\n"),
            None => "Transfer-Encoding: chunked\r\n".into(),
        };
        let close = if self.persistent { "" } else { "Connection: close\r\n" };
        let more = self.more;
        format!("HTTP/1.1 {code} {reason}\r\n{kind}Date: {date}\r\n{length}{close}{more}\r\n").into_bytes()
    }
}
