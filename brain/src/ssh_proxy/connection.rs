//! One client: who it is, which instance it wants, and what it asks for there. Waiting is done in tasks of the channels,
//! except while it logs in, when there is nothing else to do.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelReadHalf, Disconnect, Pty, client,
    server::{Auth, ChannelOpenHandle, Handle, Handler, Msg, Session},
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Proxy,
    backend::{self, Backend, BackendError},
    backends::Backends,
    inbox::Inbox,
    instances::Found,
    relay,
    users::{self, User},
};

/// How long looking an instance up may take.
const FIND_TIME: Duration = Duration::from_secs(10);
/// How long the daemon may take over a request for a port.
const FORWARD_TIME: Duration = Duration::from_secs(10);
/// How often idleness is looked at, at most.
const IDLE_LOOK: Duration = Duration::from_secs(1);
const CHANNELS_MAX: usize = 64;

/// What is known of a connection from outside of it: whether somebody has logged in, and when something last passed.
pub struct Life {
    pub authenticated: CancellationToken,
    pub backend_gone: CancellationToken,
    /// How long a channel may be in the way of others.
    pub patience: Duration,
    backends: OnceLock<Arc<Backends>>,
    started: Instant,
    /// Milliseconds after `started`.
    touched: AtomicU64,
    terminals: AtomicUsize,
}

impl Life {
    pub fn new(patience: Duration) -> Life {
        Life {
            authenticated: CancellationToken::new(),
            backend_gone: CancellationToken::new(),
            patience,
            backends: OnceLock::new(),
            started: Instant::now(),
            touched: AtomicU64::new(0),
            terminals: AtomicUsize::new(0),
        }
    }

    pub fn touch(&self) {
        let now = self.started.elapsed().as_millis() as u64;
        self.touched.store(now, Ordering::Relaxed);
    }

    pub fn terminal_opened(&self) {
        self.terminals.fetch_add(1, Ordering::Relaxed);
    }

    pub fn terminal_closed(&self) {
        self.touch();
        self.terminals.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns once nothing has passed for `timeout`.
    pub async fn idle(&self, timeout: Duration) {
        loop {
            tokio::time::sleep(IDLE_LOOK.min(timeout)).await;
            let touched = Duration::from_millis(self.touched.load(Ordering::Relaxed));
            let idle = self.started.elapsed().saturating_sub(touched);
            if idle >= timeout && self.terminals.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// Leaves the daemon.
    pub async fn end(&self) {
        if let Some(backends) = self.backends.get() {
            backends.end().await;
        }
    }
}

pub struct Connection {
    peer: SocketAddr,
    proxy: Arc<Proxy>,
    life: Arc<Life>,
    /// Set by a login that succeeded.
    found: Mutex<Option<Found>>,
    channels: Arc<tokio::sync::Semaphore>,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, proxy: Arc<Proxy>, life: Arc<Life>) -> Connection {
        Connection {
            peer,
            proxy,
            life,
            found: Mutex::new(None),
            channels: Arc::new(tokio::sync::Semaphore::new(CHANNELS_MAX)),
        }
    }

    /// The instance a user may enter with this password, or why not.
    async fn admit(&self, user: &str, password: &str) -> Result<Found, String> {
        let (process_guid, index) = match users::parse(user).ok_or("Invalid authentication domain")? {
            User::Diego { process_guid, index } => {
                let expected = self.proxy.diego_credentials.as_ref();
                let expected = expected.ok_or("diego authentication is not enabled")?;
                if !same(expected, password) {
                    return Err("Invalid credentials".to_owned());
                }
                (process_guid, index)
            }
            User::Cf { app_guid, index } => {
                let cf = self.proxy.cf.as_ref().ok_or("cf authentication is not enabled")?;
                let access = cf.authenticate(&app_guid, index, password).await.map_err(whole)?;
                let (app, username, principal) =
                    (format!("{app_guid}/{index}"), access.username, access.principal);
                tracing::info!(%app, %username, %principal, "app-access-success");
                (access.process_guid, index)
            }
        };
        let finding = self.proxy.instances.find(&process_guid, index);
        match tokio::time::timeout(FIND_TIME, finding).await {
            Ok(found) => found.map_err(whole),
            Err(_) => Err("the BBS did not answer in time".to_owned()),
        }
    }

    fn backends(&self) -> Option<Arc<Backends>> {
        self.life.backends.get().cloned()
    }
}

/// Compares in a time that tells nothing of where the two differ.
fn same(expected: &str, given: &str) -> bool {
    Sha256::digest(expected) == Sha256::digest(given)
}

/// An error with its causes.
fn whole(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What kind of channel a client opens.
enum Wanted {
    Session,
    Forward { host: String, port: u32, originator: String, originator_port: u32 },
}

impl Wanted {
    /// Opens its other half at the daemon.
    async fn open(self, backend: &Backend) -> Result<Channel<client::Msg>, russh::Error> {
        match self {
            Wanted::Session => backend.channel_open_session().await,
            Wanted::Forward { host, port, originator, originator_port } => {
                backend.channel_open_direct_tcpip(host, port, originator, originator_port).await
            }
        }
    }
}

impl Connection {
    /// Leads a channel of the client on to the daemon, in a task of its own.
    async fn lead(&self, channel: Channel<Msg>, reply: ChannelOpenHandle, client: Handle, wanted: Wanted) {
        let (Some(backends), Ok(place)) = (self.backends(), self.channels.clone().try_acquire_owned()) else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let life = self.life.clone();
        let (from_client, to_client) = channel.split();
        let from_client = self.inbox(from_client, &wanted);
        tokio::spawn(async move {
            let Ok(backend) = backends.take(&life).await else {
                return reply.reject(ChannelOpenFailure::ConnectFailed).await;
            };
            match wanted.open(&backend).await {
                Ok(with_daemon) => {
                    reply.accept().await;
                    let (from_daemon, to_daemon) = with_daemon.split();
                    relay::channel((from_client, to_client), (from_daemon, to_daemon), client, &life).await;
                }
                Err(error) => reply.reject(backend::refusal(error)).await,
            }
            backends.give_back(backend).await;
            drop(place);
        });
    }

    /// A forwarded port that stands still is in the way of those to come; a session only of others that are there.
    fn inbox(&self, from_client: ChannelReadHalf, wanted: &Wanted) -> Inbox {
        let (channels, forwarded) = (self.channels.clone(), matches!(wanted, Wanted::Forward { .. }));
        let in_the_way = move || forwarded || channels.available_permits() + 1 < CHANNELS_MAX;
        Inbox::of(from_client, self.life.patience, in_the_way)
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        match self.admit(user, password).await {
            Ok(found) => {
                tracing::info!(user, peer = %self.peer, instance_guid = found.instance_guid, "authentication-attempted");
                *self.found.get_mut().unwrap_or_else(|broken| broken.into_inner()) = Some(found);
                Ok(Auth::Accept)
            }
            Err(error) => {
                tracing::error!(user, peer = %self.peer, error, "authentication-failed");
                Ok(Auth::reject())
            }
        }
    }

    /// Opens the connection to the daemon. A client that cannot be led on is told why as it is sent away.
    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        self.life.touch();
        self.life.authenticated.cancel();
        let found = self.found.get_mut().unwrap_or_else(|broken| broken.into_inner()).take();
        let Some(Found { target, instance_guid }) = found else {
            return Err(russh::Error::Inconsistent);
        };
        let address = format!("{}:{}", target.host, target.port);
        match Backends::open(target, session.handle(), &self.life).await {
            Ok(backends) => {
                tracing::info!(peer = %self.peer, instance_guid, address, "connected-to-backend");
                // Only this sets it, and a client logs in once.
                let _ = self.life.backends.set(Arc::new(backends));
                Ok(())
            }
            Err(error) => {
                let why = whole(&error);
                tracing::error!(peer = %self.peer, instance_guid, error = why, "handshake-failed");
                session.disconnect(Disconnect::ByApplication, &why, "")
            }
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.lead(channel, reply, session.handle(), Wanted::Session).await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (host, originator) = (host.to_owned(), originator_address.to_owned());
        let wanted = Wanted::Forward { host, port, originator, originator_port };
        self.lead(channel, reply, session.handle(), wanted).await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(backends) = self.backends() else {
            return Ok(false);
        };
        let asking = async {
            backends
                .forwarding(&self.life)
                .await?
                .tcpip_forward(address, *port)
                .await
                .map_err(BackendError::Ssh)
        };
        let Ok(Ok(bound)) = tokio::time::timeout(FORWARD_TIME, asking).await else {
            return Ok(false);
        };
        // 0 says that the port asked for is the one that was bound.
        if bound != 0 {
            *port = bound;
        }
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(backends) = self.backends() else {
            return Ok(false);
        };
        let asking = async {
            backends
                .forwarding(&self.life)
                .await?
                .cancel_tcpip_forward(address, port)
                .await
                .map_err(BackendError::Ssh)
        };
        Ok(matches!(tokio::time::timeout(FORWARD_TIME, asking).await, Ok(Ok(()))))
    }
}
