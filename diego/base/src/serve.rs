//! Serving HTTP: one accept loop for TCP and unix sockets, plain and TLS, that drains when told to stop.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::tls::ServerTls;

/// How long connections may finish what they do once a server was told to stop.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Open connections of one listener; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 10_000;

/// Where a server listens.
#[derive(Debug)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// Already bound: how a caller that wants port 0 learns which one it was.
    Bound(std::net::TcpListener),
}

impl Listen {
    /// A free port of the loopback interface, and its address.
    pub fn loopback() -> std::io::Result<(Listen, SocketAddr)> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        Ok((Listen::Bound(listener), address))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: String, reason: String, source: std::io::Error },
}

/// A bound socket. A unix socket's file is removed again when this is dropped.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub async fn bind(listen: Listen) -> Result<Listener, Error> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address)
                .await
                .map(Listener::Tcp)
                .map_err(|source| failed(address.to_string(), source)),
            Listen::Unix(path) => bind_unix(&path)
                .await
                .map(|listener| Listener::Unix(listener, path.clone()))
                .map_err(|source| failed(path.display().to_string(), source)),
            Listen::Bound(listener) => listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener))
                .map(Listener::Tcp)
                .map_err(|source| failed("a socket bound before".into(), source)),
        }
    }

    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn failed(address: String, source: std::io::Error) -> Error {
    let reason = match source.kind() {
        std::io::ErrorKind::AddrInUse => "another process listens there".to_string(),
        _ => source.to_string(),
    };
    Error::Listen { address, reason, source }
}

/// A socket file that nobody listens on any more is what a killed server leaves: it is replaced. A live one is not.
async fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// From where a request came: an extension of it. `None` over a unix socket, which its file's mode guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub Option<IpAddr>);

/// Serves until `shutdown`, then lets open requests finish for [`DRAIN_TIME`].
pub async fn serve(listener: Listener, router: Router, tls: Option<ServerTls>, shutdown: CancellationToken) {
    let server = Arc::new(Server { router, tls, shutdown });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let connection: Pin<Box<dyn Future<Output = ()> + Send>> = tokio::select! {
            () = server.shutdown.cancelled() => break,
            accepted = accept(&listener) => match accepted {
                Ok((stream, peer)) => Box::pin(server.clone().connection(stream, peer)),
                Err(error) => {
                    // Out of descriptors, mostly: waiting is all that helps, and connections end meanwhile.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        tokio::spawn(async move {
            connection.await;
            drop(place);
        });
    }
    drop(listener);
    let drained = async {
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        let _ = places.acquire_many(all).await;
    };
    let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: &Listener) -> std::io::Result<(Box<dyn Stream>, Peer)> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A socket of both kinds shows version 4 as a part of version 6.
            Ok((Box::new(stream), Peer(Some(address.ip().to_canonical()))))
        }
        Listener::Unix(listener, _) => Ok((Box::new(listener.accept().await?.0), Peer(None))),
    }
}

struct Server {
    router: Router,
    tls: Option<ServerTls>,
    shutdown: CancellationToken,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: Box<dyn Stream>, peer: Peer) {
        let Some(tls) = &self.tls else { return self.requests(stream, peer).await };
        let acceptor = tokio_rustls::TlsAcceptor::from(tls.0.clone());
        match tokio::time::timeout(DRAIN_TIME, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.requests(Box::new(stream), peer).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        }
    }

    async fn requests(&self, stream: Box<dyn Stream>, peer: Peer) {
        // As the fallback of another one, so that what is added for each connection is added once, not to each route.
        let router = Router::new().fallback_service(self.router.clone()).layer(Extension(peer));
        let service = TowerToHyperService::new(router);
        let builder = auto::Builder::new(TokioExecutor::new());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                // An event stream never ends by itself; what is in flight has its time and no more.
                tokio::time::timeout(DRAIN_TIME, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %error, "a connection ended early");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;

    fn router() -> Router {
        Router::new().route("/ping", get(|| async { "pong" }))
    }

    #[tokio::test]
    async fn a_server_answers_until_it_is_told_to_stop() {
        let (listen, address) = Listen::loopback().unwrap();
        let shutdown = CancellationToken::new();
        let listener = Listener::bind(listen).await.unwrap();
        let server = tokio::spawn(serve(listener, router(), None, shutdown.clone()));
        let client = crate::http::client(&Default::default()).unwrap();
        let url = format!("http://{address}/ping");
        assert_eq!(client.get(&url).send().await.unwrap().text().await.unwrap(), "pong");
        shutdown.cancel();
        server.await.unwrap();
        assert!(client.get(&url).send().await.is_err());
    }

    #[tokio::test]
    async fn a_request_tells_from_where_it_came() {
        let (listen, address) = Listen::loopback().unwrap();
        let listener = Listener::bind(listen).await.unwrap();
        let told = get(async |Extension(Peer(peer)): Extension<Peer>| format!("{peer:?}"));
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone().drop_guard();
        tokio::spawn(serve(listener, Router::new().route("/", told), None, shutdown));
        let client = crate::http::client(&Default::default()).unwrap();
        let answer = client.get(format!("http://{address}/")).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "Some(127.0.0.1)");
        drop(stop);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Listener::bind(Listen::Tcp(address)).await.err().unwrap();
        assert_eq!(error.to_string(), format!("cannot listen on {address}: another process listens there"));
    }

    #[tokio::test]
    async fn a_socket_left_by_a_killed_server_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("diego-base-{}.sock", std::process::id()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = Listener::bind(Listen::Unix(path.clone())).await.unwrap();
        assert!(Listener::bind(Listen::Unix(path.clone())).await.is_err());
        drop(live);
        assert!(!path.exists());
    }
}
