//! Leads ssh clients to the daemons inside containers. A client names an instance as its user
//! (`diego:<process guid>/<index>` or `cf:<app guid>/<index>`); the proxy checks its password, finds the instance at the
//! BBS, opens a connection of its own to the daemon there, whose key it checks, and relays channels both ways.
//!
//! `users` (grammar) → `instances` (where) and `cf` (may they) → `backends`, `backend` (the daemon) → `relay` (channels, with
//! `inbox` and `outbox` for what one side is slow to take), led by `connection`. Nobody's files or commands are looked at
//! or kept.

mod backend;
mod backends;
mod cf;
mod connection;
mod eager;
mod inbox;
mod instances;
pub mod keys;
mod outbox;
mod relay;
mod users;

use std::{
    net::{Shutdown, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use diego_base::serve::{self, Listen, Listener};
use russh::{MethodKind, MethodSet, SshId, server};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_util::sync::CancellationToken;

pub use cf::{CfAuthentication, CfError};
pub use instances::{BbsInstances, FindError, Found, Instances, SshRoute, Target};
pub use keys::{KeyError, KeyPair};

use connection::{Connection, Life};
use eager::Eager;

/// A client that has not logged in after this time is cut off.
const LOGIN_TIME: Duration = Duration::from_secs(30);
/// Connections that may be busy logging in at the same time.
const LOGINS_MAX: usize = 128;
const LOGIN_ATTEMPTS_MAX: usize = 6;
/// Slows guessing of passwords down; not the probe without credentials that clients begin with.
const REJECTION_TIME: Duration = Duration::from_secs(1);
/// A client is asked for a sign of life this often and given up after this many unanswered questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVES_MAX: usize = 3;
/// Messages between a session and whoever takes them from it; they are held in `inbox`, not here.
const CHANNEL_MESSAGES_MAX: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the daemon said last gets this long to reach the client after the daemon has gone.
const LAST_WORDS: Duration = Duration::from_millis(250);

pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
pub const STALLED_TIMEOUT: Duration = Duration::from_secs(60);
pub const CONNECTIONS_MAX: usize = 1000;

pub struct Config {
    pub listen: Listen,
    /// PEM or OpenSSH format; without one a key is made that lasts as long as the process.
    pub host_key: Option<String>,
    pub instances: Arc<dyn Instances>,
    /// `user:password` for `diego:` users; without, they are refused.
    pub diego_credentials: Option<String>,
    /// How `cf:` users are checked; without, they are refused.
    pub cf: Option<CfAuthentication>,
    /// A connection on which nothing has passed for this long is closed, unless it has a terminal.
    pub idle_timeout: Duration,
    /// A channel that is in the way of others because one side has read nothing of much for this long is closed.
    pub stalled_timeout: Duration,
    pub connections_max: usize,
}

impl Config {
    pub fn new(listen: Listen, instances: Arc<dyn Instances>) -> Config {
        Config {
            listen,
            host_key: None,
            instances,
            diego_credentials: None,
            cf: None,
            idle_timeout: IDLE_TIMEOUT,
            stalled_timeout: STALLED_TIMEOUT,
            connections_max: CONNECTIONS_MAX,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start the ssh proxy: {0}")]
    Listen(#[from] serve::Error),
    #[error("cannot start the ssh proxy: it listens on TCP only")]
    NotTcp,
    #[error("cannot read the ssh proxy's host key")]
    HostKey(#[source] KeyError),
}

/// What connections share.
struct Proxy {
    instances: Arc<dyn Instances>,
    diego_credentials: Option<String>,
    cf: Option<CfAuthentication>,
    idle_timeout: Duration,
    stalled_timeout: Duration,
    /// Places for clients that have not logged in.
    logins: Arc<Semaphore>,
}

/// Serves until `shutdown`; then open connections are closed.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let host_key = match &config.host_key {
        Some(pem) => keys::parse_private(pem).map_err(Error::HostKey)?,
        None => keys::new_private(),
    };
    let bound = Listener::bind(config.listen).await?;
    let Listener::Tcp(listener) = &bound else {
        return Err(Error::NotTcp);
    };
    let server = Arc::new(server_config(host_key));
    let places = Arc::new(Semaphore::new(config.connections_max));
    let proxy = Arc::new(Proxy {
        instances: config.instances,
        diego_credentials: config.diego_credentials,
        cf: config.cf,
        idle_timeout: config.idle_timeout,
        stalled_timeout: config.stalled_timeout,
        logins: Arc::new(Semaphore::new(LOGINS_MAX)),
    });
    let connections = tokio_util::task::TaskTracker::new();
    tracing::info!("started");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: it passes when somebody leaves.
                tracing::error!(%error, "accept-failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "refused a connection: too many are open");
            continue;
        };
        let serving = handle(stream, peer, server.clone(), proxy.clone(), shutdown.clone());
        connections.spawn(async move {
            serving.await;
            drop(place);
        });
    }
    drop(bound);
    connections.close();
    connections.wait().await;
    tracing::info!("exited");
    Ok(())
}

fn server_config(host_key: russh::keys::PrivateKey) -> server::Config {
    server::Config {
        server_id: SshId::Standard("SSH-2.0-diego-ssh-proxy".into()),
        methods: MethodSet::from(&[MethodKind::Password][..]),
        keys: vec![host_key],
        preferred: backend::preferred(),
        auth_rejection_time: REJECTION_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: LOGIN_ATTEMPTS_MAX,
        // Idleness is ours to judge: a terminal may be silent for hours.
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_MAX,
        channel_buffer_size: CHANNEL_MESSAGES_MAX,
        nodelay: true,
        ..Default::default()
    }
}

/// One client from handshake to end.
async fn handle(
    stream: TcpStream,
    peer: SocketAddr,
    server: Arc<server::Config>,
    proxy: Arc<Proxy>,
    shutdown: CancellationToken,
) {
    let Ok(login) = proxy.logins.clone().try_acquire_owned() else {
        tracing::warn!(%peer, "refused a connection: too many clients are logging in");
        return;
    };
    // Keystrokes are small and must not wait for more; a socket that cannot be set still works.
    let _ = stream.set_nodelay(true);
    let Ok(cutter) = stream.as_fd().try_clone_to_owned().map(std::net::TcpStream::from) else {
        tracing::warn!(%peer, "refused a connection: out of descriptors");
        return;
    };
    let life = Arc::new(Life::new(proxy.stalled_timeout));
    let connection = Connection::new(peer, proxy.clone(), life.clone());
    let session = async { server::run_stream(server, Eager::new(stream), connection).await?.await };
    let mut session = std::pin::pin!(session);
    let why = tokio::select! {
        ended = &mut session => ended.err().map(|error| error.to_string()),
        why = reason_to_cut(&life, login, proxy.idle_timeout, shutdown) => {
            // Ends the session; it fails only on a socket that is closed already.
            let _ = cutter.shutdown(Shutdown::Both);
            let _ = session.await;
            Some(why.to_owned())
        }
    };
    life.end().await;
    if let Some(why) = why {
        tracing::info!(%peer, why, "closed a connection");
    }
}

/// Waits until a connection must be cut although its client has not ended it.
async fn reason_to_cut(
    life: &Life,
    login: tokio::sync::OwnedSemaphorePermit,
    idle_timeout: Duration,
    shutdown: CancellationToken,
) -> &'static str {
    tokio::select! {
        () = life.authenticated.cancelled() => drop(login),
        () = tokio::time::sleep(LOGIN_TIME) => return "the client did not log in in time",
        () = shutdown.cancelled() => return "the proxy is stopping",
    }
    tokio::select! {
        () = life.idle(idle_timeout) => "nothing has passed for too long",
        () = life.backend_gone.cancelled() => {
            tokio::time::sleep(LAST_WORDS).await;
            "the instance has ended the connection"
        }
        () = shutdown.cancelled() => "the proxy is stopping",
    }
}
