//! Bytes between a client and an app until both have said their last.
//!
//! Nothing is read for one end before the other has taken what was read before: what waits is bounded, and a slow end
//! slows the other.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::buffer::Buffer;
use super::records::{self, Records};
use super::session::Session;

/// Read from a client at once; as much as is read from an app.
const CHUNK_BYTES: usize = 128 * 1024;
/// Of an answer to the client's own messages, before more of them are read.
const ANSWER_BYTES_MAX: usize = CHUNK_BYTES;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the handshake failed: {0}")]
    Handshake(#[source] rustls::Error),
    #[error(transparent)]
    Records(#[from] records::Error),
    #[error("the client's connection ended: {0}")]
    Client(#[source] io::Error),
    #[error("the app's connection ended: {0}")]
    App(#[source] io::Error),
}

#[derive(Default)]
struct Buffers {
    /// A record that has not come whole.
    received: Buffer,
    to_client: Buffer,
    to_app: Buffer,
}

impl Buffers {
    fn close(&mut self) {
        self.received.close();
        self.to_client.close();
        self.to_app.close();
    }
}

/// Somebody has come.
pub(super) struct Arrival {
    stream: TcpStream,
    session: Session,
    buffers: Buffers,
}

impl Arrival {
    pub fn new(stream: TcpStream, session: Session) -> Arrival {
        Arrival { stream, session, buffers: Buffers::default() }
    }

    /// Until both know each other. The caller bounds the time.
    pub async fn shake_hands(mut self) -> Result<Box<Client>, Error> {
        std::future::poll_fn(|cx| {
            let shaken = self.poll_shake_hands(cx);
            self.buffers.close();
            shaken
        })
        .await?;
        let Arrival { stream, session, buffers } = self;
        Ok(Box::new(Client { stream, records: session.into_records()?, buffers }))
    }

    fn poll_shake_hands(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Arrival { stream, session, buffers: Buffers { received, to_client, to_app } } = self;
        loop {
            ready!(to_client.poll_send(stream, cx)).map_err(Error::Client)?;
            if !session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(received.open().poll_fill(stream, CHUNK_BYTES, cx)).map_err(Error::Client)?;
            match session.take(received.filled(), to_app.open(), to_client.open()) {
                Ok(taken) => received.forget(taken),
                Err(error) => {
                    // The reason, if the client takes it at once.
                    let _ = to_client.poll_send(stream, cx);
                    return Poll::Ready(Err(Error::Handshake(error)));
                }
            }
        }
    }
}

/// The client's end. Boxed: it is large, and whoever awaits something would keep a place for each place it is moved to.
pub(super) struct Client {
    stream: TcpStream,
    records: Records,
    buffers: Buffers,
}

impl Client {
    /// Nothing comes from the app, and nothing will: said if the client takes it at once.
    pub async fn dismiss(mut self: Box<Self>) {
        let told = std::future::poll_fn(|cx| {
            let Client { stream, records, buffers: Buffers { to_client, .. } } = &mut *self;
            records.finish(to_client.open())?;
            Poll::Ready(match to_client.poll_send(stream, cx) {
                Poll::Ready(sent) => sent.map_err(Error::Client),
                Poll::Pending => Ok(()),
            })
        });
        if let Err(error) = told.await {
            tracing::debug!(%error, "executor.edge.client-not-told");
        }
    }

    /// Reads once from the client. The app has what it takes at once; the rest is in `to_app` then.
    fn poll_pass_up(&mut self, app: &mut TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Client { stream, records, buffers: Buffers { received, to_client, to_app } } = self;
        ready!(received.open().poll_fill(stream, CHUNK_BYTES, cx)).map_err(Error::Client)?;
        let taken = records.open(received.filled(), to_client.open())?;
        let mut content = &received.filled()[..taken.content_bytes];
        while !content.is_empty() {
            match Pin::new(&mut *app).poll_write(cx, content) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Error::App(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(sent)) => content = &content[sent..],
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::App(error))),
                Poll::Pending => {
                    to_app.open().extend(content);
                    break;
                }
            }
        }
        received.forget(taken.bytes);
        Poll::Ready(Ok(()))
    }

    /// Reads once from the app; what is for the client is in `to_client` then. Answers whether the app has finished.
    fn poll_pass_down(&mut self, app: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let Client { records, buffers: Buffers { to_client, .. }, .. } = self;
        loop {
            ready!(app.poll_read_ready(cx)).map_err(Error::App)?;
            let out = to_client.open();
            records.make_ready(out)?;
            let row = out.room(records.row_bytes());
            match app.try_read_vectored(&mut records.contents(row)) {
                Ok(0) => {
                    records.finish(out)?;
                    return Poll::Ready(Ok(true));
                }
                Ok(length) => {
                    let sealed = records.seal(row, length)?;
                    out.add(sealed);
                    return Poll::Ready(Ok(false));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Error::App(error))),
            }
        }
    }

    /// Why the connection ends, if the client takes it at once.
    fn explain(&mut self, error: &records::Error, cx: &mut Context<'_>) {
        let Client { stream, records, buffers: Buffers { to_client, .. } } = self;
        if records.explain(error, to_client.open()).is_ok() {
            let _ = to_client.poll_send(stream, cx);
        }
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
    client: Box<Client>,
    app: TcpStream,
    activity: &'a Activity,
    /// The app was told that the client has finished.
    app_told: bool,
    app_finished: bool,
    /// Each direction is the first in its turn: one that always has something to do would leave no time for the other.
    down_first: bool,
}

impl<'a> Relay<'a> {
    pub fn new(client: Box<Client>, app: TcpStream, activity: &'a Activity) -> Relay<'a> {
        Relay { client, app, activity, app_told: false, app_finished: false, down_first: false }
    }

    #[cfg(test)]
    pub fn bytes_held(&self) -> usize {
        let Buffers { received, to_client, to_app } = &self.client.buffers;
        [received, to_client, to_app].map(Buffer::held).iter().sum()
    }

    /// Until both ends have finished.
    pub async fn run(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| {
            self.down_first = !self.down_first;
            let early = self.down_first.then(|| self.poll_down(cx));
            let up = self.poll_up(cx);
            let down = early.unwrap_or_else(|| self.poll_down(cx));
            let ended = match (up, down) {
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            };
            if let Poll::Ready(Err(Error::Records(error))) = &ended {
                self.client.explain(error, cx);
            }
            self.client.buffers.close();
            ended
        })
        .await
    }

    /// From the client to the app, until the client has finished and the app knows it.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let client = &mut self.client;
        loop {
            ready!(client.buffers.to_app.poll_send(&mut self.app, cx)).map_err(Error::App)?;
            if self.app_told {
                return Poll::Ready(Ok(()));
            }
            if client.records.client_finished() {
                // Who is gone already need not be told.
                let _ = ready!(Pin::new(&mut self.app).poll_shutdown(cx));
                self.app_told = true;
                continue;
            }
            let answers = &mut client.buffers.to_client;
            if answers.len() > ANSWER_BYTES_MAX {
                ready!(answers.poll_send(&mut client.stream, cx)).map_err(Error::Client)?;
            }
            match ready!(client.poll_pass_up(&mut self.app, cx)) {
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
            ready!(client.buffers.to_client.poll_send(&mut client.stream, cx)).map_err(Error::Client)?;
            if self.activity.client_told() {
                return Poll::Ready(Ok(()));
            }
            if self.app_finished {
                let _ = ready!(Pin::new(&mut client.stream).poll_shutdown(cx));
                self.activity.client_told.store(true, Ordering::Relaxed);
                continue;
            }
            self.app_finished = ready!(client.poll_pass_down(&self.app, cx))?;
            if !self.app_finished {
                self.activity.note();
            }
        }
    }
}

fn is_end(error: &Error) -> bool {
    matches!(error, Error::Client(error) if error.kind() == io::ErrorKind::UnexpectedEof)
}
