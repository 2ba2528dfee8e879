//! Accepts connections, within limits, until told to stop.

use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use russh::{MethodKind, MethodSet, SshId, server};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{connection::Connection, settings::Settings};

/// A client that has not proven itself after this time is cut off.
const LOGIN_TIME: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 128;
/// A peer is asked for a sign of life this often, and given up after this many unanswered questions (5 minutes).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVES_MAX: usize = 20;
const LOGIN_ATTEMPTS_MAX: usize = 6;
/// Slows guessing down; not the probe without credentials that every client begins with.
const REJECTION_TIME: Duration = Duration::from_millis(300);
/// Messages a channel holds for a reader that is behind; the connection waits when they are full. Large enough for a
/// whole window of data in small pieces, since a connection that waits also delays the window adjustments of the peer.
const CHANNEL_MESSAGES_MAX: usize = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
}

/// Serves until `shutdown`.
pub async fn serve(settings: Settings, shutdown: CancellationToken) -> Result<(), ServeError> {
    let listener = TcpListener::bind(&settings.address)
        .await
        .map_err(|source| ServeError::Listen { address: settings.address.clone(), source })?;
    let log = settings.log;
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let config = Arc::new(config(&settings));
    let settings = Arc::new(settings);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    log.info("started", json!({ "address": address }));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
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
        let connection = handle(stream, peer, config.clone(), settings.clone());
        tokio::spawn(async move {
            connection.await;
            drop(place);
        });
    }
    log.info("exited", json!({}));
    Ok(())
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
