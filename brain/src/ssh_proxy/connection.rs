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
    Channel, ChannelId, ChannelOpenFailure, Disconnect, Pty,
    server::{Auth, ChannelOpenHandle, Handler, Msg, Session},
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Proxy,
    backend::{self, Backend},
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
    backend: OnceLock<Arc<Backend>>,
    started: Instant,
    /// Milliseconds after `started`.
    touched: AtomicU64,
    terminals: AtomicUsize,
}

impl Life {
    pub fn new() -> Life {
        Life {
            authenticated: CancellationToken::new(),
            backend_gone: CancellationToken::new(),
            backend: OnceLock::new(),
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
        if let Some(backend) = self.backend.get() {
            // A daemon that has gone before is left as well.
            let _ = backend.disconnect(Disconnect::ByApplication, "the client has left", "").await;
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

    fn backend(&self) -> Option<Arc<Backend>> {
        self.life.backend.get().cloned()
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
        match backend::connect(&target, session.handle(), self.life.clone()).await {
            Ok(backend) => {
                let address = format!("{}:{}", target.host, target.port);
                tracing::info!(peer = %self.peer, instance_guid, address, "connected-to-backend");
                // Only this sets it, and a client logs in once.
                let _ = self.life.backend.set(Arc::new(backend));
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
        let (Some(backend), Ok(place)) = (self.backend(), self.channels.clone().try_acquire_owned()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (client, life) = (session.handle(), self.life.clone());
        tokio::spawn(async move {
            match backend.channel_open_session().await {
                Ok(with_daemon) => {
                    reply.accept().await;
                    relay::channel(channel, with_daemon, client, life).await;
                }
                Err(error) => reply.reject(backend::refusal(error)).await,
            }
            drop(place);
        });
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
        let (Some(backend), Ok(place)) = (self.backend(), self.channels.clone().try_acquire_owned()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (client, life) = (session.handle(), self.life.clone());
        let (host, originator) = (host.to_owned(), originator_address.to_owned());
        tokio::spawn(async move {
            match backend.channel_open_direct_tcpip(host, port, originator, originator_port).await {
                Ok(with_daemon) => {
                    reply.accept().await;
                    relay::channel(channel, with_daemon, client, life).await;
                }
                Err(error) => reply.reject(backend::refusal(error)).await,
            }
            drop(place);
        });
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
        let Some(backend) = self.backend() else {
            return Ok(false);
        };
        let asked = tokio::time::timeout(FORWARD_TIME, backend.tcpip_forward(address, *port)).await;
        let Ok(Ok(bound)) = asked else {
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
        let Some(backend) = self.backend() else {
            return Ok(false);
        };
        let asked = tokio::time::timeout(FORWARD_TIME, backend.cancel_tcpip_forward(address, port)).await;
        Ok(matches!(asked, Ok(Ok(()))))
    }
}
