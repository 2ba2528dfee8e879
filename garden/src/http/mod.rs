//! The Garden API over HTTP/1.1, on a unix socket or TCP.
//!
//! Requests about processes leave HTTP after the head of the answer ([`process`]): their connection then carries raw
//! bytes, after a status 200 or 201. An HTTP library gives up a connection only after a status 101, so heads, bodies and
//! answers are our own ([`head`], [`connection`]), for all requests alike: one connection may carry any of them, one
//! after the other. No pipelining beyond that, no HTTP/2, no TLS: clients of this API use none.
//!
//! ```text
//! accepted ──place──▶ idle ──head──▶ answered ──persistent──▶ idle       idle too long, or others want the place: closed
//!     └─none──▶ 503                    └──process──▶ raw until either side ends
//! ```

mod api;
mod connection;
mod head;
mod messages;
mod process;
mod routes;
mod tar;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diego_base::serve::{CONNECTIONS_MAX, DRAIN_TIME, Listener};
use garden_client::{Error, Garden, wire};
use http::StatusCode;
use rustix::process::{Resource, getrlimit};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::relay::Relays;
use crate::socket::Socket;
use api::Answer;
use connection::{AnswerHead, Budget, Connection, Unread};
use head::Head;
use routes::Route;

/// Out of descriptors, mostly: others end meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a new connection waits for the place of an idle one.
const PLACE_WAIT: Duration = Duration::from_millis(100);

/// What clients may take of this server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections. Beyond them idle ones are closed, and if there are none, new ones are refused.
    pub connections: usize,
    /// From the first byte of a request, or from the connection's beginning, to the end of its head.
    pub head_time: Duration,
    /// Between requests. Longer than clients keep idle connections.
    pub idle_time: Duration,
    /// For a whole request in JSON.
    pub body_time: Duration,
    /// Of all requests that are being received.
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: connections(),
            head_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(150),
            body_time: Duration::from_secs(60),
            request_bytes: 256 << 20,
        }
    }
}

/// Half of the descriptors are for containers.
fn connections() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    CONNECTIONS_MAX.min(usize::try_from(descriptors / 2).unwrap_or(usize::MAX))
}

struct Server {
    garden: Arc<dyn Garden>,
    relays: Relays,
    limits: Limits,
    budget: Budget,
    /// Told once for each connection that finds no place: who has waited longest for a request leaves.
    crowded: Notify,
    /// How many would hear it.
    waiting: AtomicUsize,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, then lets open requests finish for [`DRAIN_TIME`]. Streams of processes are detached.
pub async fn serve(listener: Listener, garden: Arc<dyn Garden>, shutdown: CancellationToken) {
    serve_within(Limits::default(), listener, garden, shutdown).await;
}

pub async fn serve_within(
    limits: Limits,
    listener: Listener,
    garden: Arc<dyn Garden>,
    shutdown: CancellationToken,
) {
    let (relays, budget) = (Relays::default(), Budget::new(limits.request_bytes));
    let (crowded, waiting) = Default::default();
    let server = Arc::new(Server { garden, relays, limits, budget, crowded, waiting, shutdown });
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            () = server.shutdown.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        match accepted {
            Ok(socket) => server.receive(socket, &places).await,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = places.acquire_many(u32::try_from(limits.connections).unwrap_or(u32::MAX));
    _ = timeout(DRAIN_TIME, all).await;
}

async fn accept(listener: &Listener) -> io::Result<Socket> {
    let socket = match listener {
        Listener::Tcp(listener) => Socket::Tcp(listener.accept().await?.0),
        Listener::Unix(listener, _) => Socket::Unix(listener.accept().await?.0),
    };
    if let Err(error) = socket.prepare() {
        tracing::debug!(%error, "a connection ended before it began");
    }
    Ok(socket)
}

/// An error on its way to a client.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    error: Error,
}

impl Refusal {
    fn text(status: StatusCode, message: &str) -> Refusal {
        Refusal { status, error: Error::Other(message.into()) }
    }

    /// As the typed errors of clients want it.
    fn bytes(&self, persistent: bool) -> Vec<u8> {
        let body = wire::line(&self.error).unwrap_or_default();
        let content_type = Some("application/json");
        let head = AnswerHead { status: self.status, content_type, persistent, more: "" };
        [head.bytes(Some(body.len())), body].concat()
    }
}

impl Server {
    async fn receive(self: &Arc<Self>, socket: Socket, places: &Arc<Semaphore>) {
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => Ok(place),
            Err(_) => {
                // With nobody to hear it, it would be kept for a connection that has only just found its place.
                if self.waiting.load(Ordering::Relaxed) > 0 {
                    self.crowded.notify_one();
                }
                // Nobody else is accepted meanwhile: the kernel's queue is where they wait.
                timeout(PLACE_WAIT, places.clone().acquire_owned())
                    .await
                    .map_err(drop)
                    .and_then(|place| place.map_err(drop))
            }
        };
        match place {
            Ok(place) => {
                let server = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.converse(Connection::new(socket)).await {
                        tracing::debug!(%error, "connection ended");
                    }
                    drop(place);
                });
            }
            Err(()) => {
                tracing::warn!(
                    connections = self.limits.connections,
                    "refused a connection: there are too many"
                );
                let error = Error::ServiceUnavailable("too many connections".into());
                let refusal = Refusal { status: StatusCode::SERVICE_UNAVAILABLE, error };
                // Whoever does not hear it sees the connection closed.
                _ = socket.try_write(&refusal.bytes(false));
            }
        }
    }

    /// One request after the other.
    async fn converse(self: Arc<Self>, connection: Connection) -> io::Result<()> {
        let mut patience = self.limits.head_time;
        loop {
            let head = tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                () = self.evicted() => return Ok(()),
                head = self.next_head(&connection, patience) => head,
            };
            let head = match head {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                Err(Unread::Io(error)) => return Err(error),
                Err(unread) => return end(&connection, &unread.into()).await,
            };
            let persistent = match routes::parse(&head.method, &head.target) {
                Some(route @ (Route::Run { .. } | Route::Attach { .. } | Route::Output { .. })) => {
                    if !Box::pin(self.hijack(&connection, route)).await? {
                        return Ok(());
                    }
                    head.persistent
                }
                Some(route) => Box::pin(self.plain(&connection, &head, route)).await?,
                None => self.unrouted(&connection, &head).await?,
            };
            if !persistent {
                connection.farewell().await;
                return Ok(());
            }
            patience = self.limits.idle_time;
        }
    }

    /// Until somebody else wants the place more than who waits here.
    async fn evicted(&self) {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut told = std::pin::pin!(self.crowded.notified());
        told.as_mut().enable();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        told.await;
    }

    async fn next_head(&self, connection: &Connection, patience: Duration) -> Result<Option<Head>, Unread> {
        // As upstream: who asks nothing is told nothing.
        let late = |_| Unread::Io(io::ErrorKind::TimedOut.into());
        timeout(patience, connection.begun()).await.map_err(late)??;
        timeout(self.limits.head_time, connection.read_head(&self.budget)).await.map_err(late)?
    }

    async fn plain(&self, connection: &Connection, head: &Head, route: Route) -> io::Result<bool> {
        match self.act(route, connection).await {
            Ok(Answer::Json(body)) => {
                let persistent = self.persists(connection, head).await;
                let content_type = Some("application/json");
                let answer = AnswerHead { status: StatusCode::OK, content_type, persistent, more: "" };
                connection.answer(&answer, &body).await?;
                Ok(persistent)
            }
            Ok(Answer::Tar(tar)) => {
                let persistent = head.takes_chunks && self.persists(connection, head).await;
                tar::send(connection, head.takes_chunks, persistent, tar).await?;
                Ok(persistent)
            }
            Err(refusal) => {
                let line = format!("{} {}", head.method, head.target);
                if !matches!(refusal.error, Error::ProcessNotFound { .. }) {
                    tracing::error!(request = line, error = %refusal.error, "request failed");
                }
                let persistent =
                    refusal.status != StatusCode::BAD_REQUEST && self.persists(connection, head).await;
                connection.send(&refusal.bytes(persistent)).await?;
                Ok(persistent)
            }
        }
    }

    async fn persists(&self, connection: &Connection, head: &Head) -> bool {
        head.persistent && !self.shutdown.is_cancelled() && connection.skip_body().await
    }

    async fn unrouted(&self, connection: &Connection, head: &Head) -> io::Result<bool> {
        let persistent = self.persists(connection, head).await;
        let methods = routes::methods(&head.target).join(", ");
        let (status, more, text) = if methods.is_empty() {
            (StatusCode::NOT_FOUND, String::new(), "404 page not found\n")
        } else {
            (StatusCode::METHOD_NOT_ALLOWED, format!("Allow: {methods}\r\n"), "Method Not Allowed\n")
        };
        let content_type = Some("text/plain; charset=utf-8");
        let answer = AnswerHead { status, content_type, persistent, more: &more };
        let text = if head.method == "HEAD" { "" } else { text };
        connection.answer(&answer, text.as_bytes()).await?;
        Ok(persistent)
    }
}

/// The last word on a connection.
async fn end(connection: &Connection, refusal: &Refusal) -> io::Result<()> {
    tracing::debug!(error = %refusal.error, "request refused");
    connection.send(&refusal.bytes(false)).await?;
    connection.farewell().await;
    Ok(())
}
