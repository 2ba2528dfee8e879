//! Bytes between a client and an app until both have said their last.
//!
//! Nothing is read for one end before the other has taken what was read before: what waits is bounded, and a slow end
//! slows the other. Buffers belong to the thread, not to the connection, which keeps only what could not be passed on.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::session::{self, Session};

/// Read at once. With what TLS adds, and for a record begun, a connection holds three times this at the most.
const CHUNK_BYTES: usize = 64 * 1024;
/// Of an answer to the client's own messages, before more of them are read.
const ANSWER_BYTES_MAX: usize = 2 * CHUNK_BYTES;
/// Buffers kept by a thread for the next connection.
const SPARE_BUFFERS: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes on their way, in a buffer of the thread's while there are any.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// To be added to.
    fn open(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.bytes
    }

    /// The first so many are not needed any more.
    fn forget(&mut self, length: usize) {
        self.bytes.drain(..length);
    }

    /// Back to the thread what is not used, and no more kept than is in use.
    fn close(&mut self) {
        if self.is_empty() {
            self.sent = 0;
            self.bytes.clear();
        }
        if self.bytes.capacity() == 0 {
            return;
        }
        let kept = self.bytes[self.sent..].to_vec();
        let mut spare = std::mem::replace(&mut self.bytes, kept);
        self.sent = 0;
        spare.clear();
        SPARE.with_borrow_mut(|spares| {
            if spares.len() < SPARE_BUFFERS {
                spares.push(spare);
            }
        });
    }

    fn poll_send(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let length = ready!(Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.sent..]))?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += length;
        }
        self.sent = 0;
        self.bytes.clear();
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Tls(#[from] session::Error),
    #[error("the client's connection ended: {0}")]
    Client(#[source] io::Error),
    #[error("the app's connection ended: {0}")]
    App(#[source] io::Error),
}

/// The client's end.
pub(super) struct Client {
    stream: TcpStream,
    session: Session,
    /// A record that has not come whole.
    received: Waiting,
    to_client: Waiting,
    to_app: Waiting,
}

impl Client {
    pub fn new(stream: TcpStream, session: Session) -> Client {
        let (received, to_client, to_app) = Default::default();
        Client { stream, session, received, to_client, to_app }
    }

    /// Until both know each other. The caller bounds the time.
    pub async fn shake_hands(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| {
            let shaken = self.poll_shake_hands(cx);
            self.close_buffers();
            shaken
        })
        .await
    }

    fn poll_shake_hands(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            ready!(self.to_client.poll_send(&mut self.stream, cx)).map_err(Error::Client)?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = ready!(self.poll_receive(cx)) {
                // The reason, if the client takes it at once.
                let _ = self.to_client.poll_send(&mut self.stream, cx);
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Nothing comes from the app, and nothing will: said if the client takes it at once.
    pub async fn dismiss(mut self) {
        let told = std::future::poll_fn(|cx| {
            self.session.finish(&mut self.received.bytes, self.to_client.open())?;
            Poll::Ready(match self.to_client.poll_send(&mut self.stream, cx) {
                Poll::Ready(sent) => sent.map_err(Error::Client),
                Poll::Pending => Ok(()),
            })
        });
        if let Err(error) = told.await {
            tracing::debug!(%error, "executor.edge.client-not-told");
        }
    }

    /// Reads once from the client; what is for the app is in `to_app` then.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let received = self.received.open();
        ready!(poll_read(&mut self.stream, received, cx)).map_err(Error::Client)?;
        let taken = self.session.take(received, self.to_app.open(), self.to_client.open())?;
        self.received.forget(taken);
        Poll::Ready(Ok(()))
    }

    fn close_buffers(&mut self) {
        self.received.close();
        self.to_client.close();
        self.to_app.close();
    }
}

/// Adds at least one byte to the buffer, or fails.
fn poll_read(stream: &mut TcpStream, buffer: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    buffer.reserve(CHUNK_BYTES);
    let mut space = buffer.limit(CHUNK_BYTES);
    match ready!(poll_read_buf(Pin::new(stream), cx, &mut space))? {
        0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        _ => Poll::Ready(Ok(())),
    }
}

/// When something last went through, for whoever waits for a quiet moment.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    last_ms: AtomicU64,
    /// The app has said its last, and the client knows.
    client_told: AtomicBool,
}

impl Activity {
    pub fn now() -> Activity {
        Activity { began: Instant::now(), last_ms: AtomicU64::new(0), client_told: AtomicBool::new(false) }
    }

    pub fn note(&self) {
        let since = self.began.elapsed().as_millis();
        self.last_ms.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn client_told(&self) -> bool {
        self.client_told.load(Ordering::Relaxed)
    }

    pub fn last(&self) -> Instant {
        self.began + std::time::Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// Both ends.
pub(super) struct Relay<'a> {
    client: Client,
    app: TcpStream,
    activity: &'a Activity,
    /// The app was told that the client has finished.
    app_told: bool,
    app_finished: bool,
}

impl<'a> Relay<'a> {
    pub fn new(client: Client, app: TcpStream, activity: &'a Activity) -> Relay<'a> {
        Relay { client, app, activity, app_told: false, app_finished: false }
    }

    #[cfg(test)]
    pub fn bytes_held(&self) -> usize {
        let Client { received, to_client, to_app, .. } = &self.client;
        [received, to_client, to_app].map(|waiting| waiting.bytes.capacity()).iter().sum()
    }

    /// Until both ends have finished.
    pub async fn run(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| {
            let (up, down) = (self.poll_up(cx), self.poll_down(cx));
            self.client.close_buffers();
            match (up, down) {
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// From the client to the app, until the client has finished and the app knows it.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let client = &mut self.client;
        loop {
            ready!(client.to_app.poll_send(&mut self.app, cx)).map_err(Error::App)?;
            if self.app_told {
                return Poll::Ready(Ok(()));
            }
            if client.session.client_finished() {
                // Who is gone already need not be told.
                let _ = ready!(Pin::new(&mut self.app).poll_shutdown(cx));
                self.app_told = true;
                continue;
            }
            if client.to_client.bytes.len() > ANSWER_BYTES_MAX {
                ready!(client.to_client.poll_send(&mut client.stream, cx)).map_err(Error::Client)?;
            }
            match ready!(client.poll_receive(cx)) {
                Ok(()) => self.activity.note(),
                Err(error) if self.activity.client_told() && is_end(&error) => return self.leave(cx),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// The client went without a word once it had everything, as many do.
    fn leave(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let _ = ready!(Pin::new(&mut self.app).poll_shutdown(cx));
        self.app_told = true;
        Poll::Ready(Ok(()))
    }

    /// From the app to the client, until the app has finished and the client knows it.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let client = &mut self.client;
        loop {
            ready!(client.to_client.poll_send(&mut client.stream, cx)).map_err(Error::Client)?;
            if self.activity.client_told() {
                return Poll::Ready(Ok(()));
            }
            if self.app_finished {
                let _ = ready!(Pin::new(&mut client.stream).poll_shutdown(cx));
                self.activity.client_told.store(true, Ordering::Relaxed);
                continue;
            }
            let mut plain = Waiting::default();
            let read = poll_read(&mut self.app, plain.open(), cx);
            let sealed = match &read {
                Poll::Ready(Ok(())) => {
                    let (rest, out) = (&mut client.received.bytes, client.to_client.open());
                    client.session.encrypt(rest, &plain.bytes, out)
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.app_finished = true;
                    client.session.finish(&mut client.received.bytes, client.to_client.open())
                }
                _ => Ok(()),
            };
            plain.sent = plain.bytes.len();
            plain.close();
            sealed?;
            match ready!(read) {
                Ok(()) => self.activity.note(),
                Err(_) if self.app_finished => {}
                Err(error) => return Poll::Ready(Err(Error::App(error))),
            }
        }
    }
}

fn is_end(error: &Error) -> bool {
    matches!(error, Error::Client(error) if error.kind() == io::ErrorKind::UnexpectedEof)
}
