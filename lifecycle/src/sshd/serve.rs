//! Accepts connections, within limits, until told to stop. Each is served by a process of its own, this very program started
//! with [`SERVE_ONE`]: what a connection took is given back when it ends, and waiting for connections takes little.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use russh::{MethodKind, MethodSet, SshId, server};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{connection::Connection, log::Log, settings::Settings};

/// The first argument that makes this program serve the connection that is its standard input.
pub const SERVE_ONE: &str = "--serve-one-connection";

/// A client that has not proven itself after this time is cut off.
const LOGIN_TIME: Duration = Duration::from_secs(30);
/// Clients that use many channels come with many connections, where the proxy gives each channel its own.
const CONNECTIONS_MAX: usize = 256;
/// A peer is asked for a sign of life this often, and given up after this many unanswered questions (5 minutes).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVES_MAX: usize = 20;
const LOGIN_ATTEMPTS_MAX: usize = 6;
/// Slows guessing down; not the probe without credentials that every client begins with.
const REJECTION_TIME: Duration = Duration::from_millis(300);
/// Messages between a connection and whoever takes them from it; they are held in `inbox`, not here.
const CHANNEL_MESSAGES_MAX: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("cannot serve a connection: {0}")]
    One(#[source] io::Error),
}

/// Serves until `shutdown`, each connection by this program started with `arguments`.
pub async fn serve(
    address: &str,
    log: Log,
    arguments: Vec<String>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address: address.to_owned(), source })?;
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    log.info("started", json!({ "address": address }));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: it passes when somebody leaves.
                log.error("accept-failed", &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            log.error("connection-refused", &format!("{CONNECTIONS_MAX} connections are open"));
            continue;
        };
        match start(stream, &arguments) {
            Ok(mut server) => drop(tokio::spawn(async move {
                // How it ended is for its own log.
                let _ = server.wait().await;
                drop(place);
            })),
            Err(error) => log.error("connection-refused", &error),
        }
    }
    log.info("exited", json!({}));
    Ok(())
}

/// Hands a connection to a process, which ends with this one.
fn start(stream: TcpStream, arguments: &[String]) -> io::Result<Child> {
    let stream = OwnedFd::from(stream.into_std()?);
    let mut command = Command::new("/proc/self/exe");
    command.arg0("diego-sshd").arg(SERVE_ONE).args(arguments).stdin(Stdio::from(stream)).kill_on_drop(true);
    command.spawn()
}

/// Serves the connection that is this process's standard input.
pub async fn serve_one(settings: Settings) -> Result<(), ServeError> {
    let stream = connection_of_stdin().map_err(ServeError::One)?;
    let peer = stream.peer_addr().map_err(ServeError::One)?;
    let config = Arc::new(config(&settings));
    handle(stream, peer, config, Arc::new(settings)).await;
    Ok(())
}

fn connection_of_stdin() -> io::Result<TcpStream> {
    // A daemon that is killed takes its connections with it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let stream = std::net::TcpStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn config(settings: &Settings) -> server::Config {
    let method = match settings.allow_unauthenticated_clients {
        true => MethodKind::None,
        false => MethodKind::PublicKey,
    };
    server::Config {
        server_id: SshId::Standard("SSH-2.0-diego-sshd".into()),
        methods: MethodSet::from(&[method][..]),
        keys: vec![settings.host_key.clone()],
        preferred: settings.preferred.clone(),
        auth_rejection_time: REJECTION_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: LOGIN_ATTEMPTS_MAX,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_MAX,
        channel_buffer_size: CHANNEL_MESSAGES_MAX,
        nodelay: true,
        ..Default::default()
    }
}

/// One connection from handshake to end.
async fn handle(stream: TcpStream, peer: SocketAddr, config: Arc<server::Config>, settings: Arc<Settings>) {
    let log = settings.log;
    log.debug("handle-connection.started", json!({ "peer": peer.to_string() }));
    // Data goes out at once: keystrokes are small.
    let _ = stream.set_nodelay(true);
    let Ok(cutter) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    let authenticated = CancellationToken::new();
    let connection = Connection::new(settings, authenticated.clone());
    let session = async { server::run_stream(config, stream, connection).await?.await };
    let cut_off = async {
        tokio::select! {
            () = authenticated.cancelled() => {}
            () = tokio::time::sleep(LOGIN_TIME) => {
                log.error("handshake-failed", &format!("no login within {LOGIN_TIME:?}"));
                // Ends the session below; it fails only on a socket that is closed already.
                let _ = rustix::net::shutdown(&cutter, rustix::net::Shutdown::Both);
            }
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = session => if let Err(error) = ended {
            log.debug("handle-connection.ended", json!({ "error": error.to_string() }));
        },
        () = cut_off => {}
    }
    log.debug("handle-connection.completed", json!({ "peer": peer.to_string() }));
}
