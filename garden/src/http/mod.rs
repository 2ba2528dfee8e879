//! The Garden API over HTTP/1.1, on a unix socket or TCP.
//!
//! Requests whose connection stops being HTTP after the head of the answer (a process and its outputs) are served raw
//! in [`process`]; an HTTP library gives up a connection only after a status 101, while clients of this API expect
//! 200 and 201. So the head of each request is looked at here first; all others go to hyper with the bytes put back,
//! one request a connection, as clients of this API use them.

mod api;
mod process;
mod routes;
mod streams;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use diego_base::serve::{CONNECTIONS_MAX, DRAIN_TIME, Listener};
use garden_client::{Error, Garden};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use routes::Route;
use streams::Streams;

/// Of a request; query strings name all handles of a cell.
const HEAD_BYTES_MAX: usize = 256 << 10;
const HEADERS_MAX: usize = 64;
/// A connection that does not ask for anything this long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Out of descriptors, mostly: others end meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

struct Server {
    garden: Arc<dyn Garden>,
    streams: Streams,
    shutdown: CancellationToken,
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Serves until `shutdown`, then lets open requests finish for [`DRAIN_TIME`]. Streams of processes are detached.
pub async fn serve(listener: Listener, garden: Arc<dyn Garden>, shutdown: CancellationToken) {
    let server = Arc::new(Server { garden, streams: Streams::default(), shutdown });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        let accepted = tokio::select! {
            () = server.shutdown.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        match accepted {
            Ok(connection) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.serve(connection).await {
                        tracing::debug!(%error, "connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = places.acquire_many(u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX));
    _ = tokio::time::timeout(DRAIN_TIME, all).await;
}

async fn accept(listener: &Listener) -> io::Result<Box<dyn Connection>> {
    Ok(match listener {
        Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
        Listener::Unix(listener, _) => Box::new(listener.accept().await?.0),
    })
}

/// A request whose head has been read; `rest` are the bytes that came after it.
struct Head {
    /// `None`: no such route.
    route: Option<Route>,
    /// `None`: the length is not told (no body, or one in chunks).
    content_length: Option<usize>,
    chunked: bool,
    rest: Vec<u8>,
}

impl Server {
    async fn serve(self: Arc<Self>, mut connection: Box<dyn Connection>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(HEAD_TIMEOUT, read_head(&mut connection, &mut bytes));
        let head = tokio::select! {
            () = self.shutdown.cancelled() => return Ok(()),
            head = read => head.map_err(|_| io::ErrorKind::TimedOut)??,
        };
        let Some(head) = head else { return Ok(()) };
        match head.route {
            Some(Route::Run { .. } | Route::Attach { .. } | Route::Output { .. }) => {
                self.hijack(connection, head).await
            }
            _ => self.plain(connection, bytes).await,
        }
    }

    async fn plain(self: Arc<Self>, connection: Box<dyn Connection>, read: Vec<u8>) -> io::Result<()> {
        let (receive, send) = tokio::io::split(connection);
        let rewound = tokio::io::join(io::Cursor::new(read).chain(receive), send);
        let service = hyper::service::service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, std::convert::Infallible>(api::respond(server, request).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.keep_alive(false)
            .serve_connection(TokioIo::new(rewound), service)
            .await
            .map_err(io::Error::other)
    }
}

/// Reads into `bytes` until the head is complete. `None`: closed before anything was asked.
async fn read_head(connection: &mut Box<dyn Connection>, bytes: &mut Vec<u8>) -> io::Result<Option<Head>> {
    loop {
        if connection.read_buf(bytes).await? == 0 {
            return if bytes.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if let Some(head) = parse_head(bytes)? {
            return Ok(Some(head));
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head of the request is too long"));
        }
    }
}

fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let invalid = |error: httparse::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(invalid)? else { return Ok(None) };
    let route = routes::parse(request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    };
    Ok(Some(Head {
        route,
        content_length: header("content-length").and_then(|length| length.parse().ok()),
        chunked: header("transfer-encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked")),
        rest: bytes[length..].to_vec(),
    }))
}

fn status(error: &Error) -> StatusCode {
    match error {
        Error::ContainerNotFound { .. } | Error::ProcessNotFound { .. } => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
