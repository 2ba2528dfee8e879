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
use super::session::{self, Session};

/// Read at once: more is not faster. With what TLS adds, and for a record begun, a connection holds three times this at
/// the most.
const CHUNK_BYTES: usize = 128 * 1024;
/// Of an answer to the client's own messages, before more of them are read.
const ANSWER_BYTES_MAX: usize = CHUNK_BYTES;

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
    received: Buffer,
    to_client: Buffer,
    to_app: Buffer,
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
            self.session.finish(self.received.filled(), self.to_client.open())?;
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
        ready!(received.poll_fill(&mut self.stream, CHUNK_BYTES, cx)).map_err(Error::Client)?;
        let taken = self.session.take(received.filled(), self.to_app.open(), self.to_client.open())?;
        self.received.forget(taken);
        Poll::Ready(Ok(()))
    }

    fn close_buffers(&mut self) {
        self.received.close();
        self.to_client.close();
        self.to_app.close();
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
        [received, to_client, to_app].map(Buffer::held).iter().sum()
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
            if client.to_client.len() > ANSWER_BYTES_MAX {
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
            let mut plain = Buffer::default();
            let read = plain.open().poll_fill(&mut self.app, CHUNK_BYTES, cx);
            let (rest, out) = (client.received.filled(), client.to_client.open());
            let sealed = match &read {
                Poll::Ready(Ok(())) => client.session.encrypt(rest, plain.filled(), out),
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.app_finished = true;
                    client.session.finish(rest, out)
                }
                _ => Ok(()),
            };
            plain.clear();
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
