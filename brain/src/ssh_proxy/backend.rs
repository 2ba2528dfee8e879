//! The connection to an instance's daemon: opened when a client has logged in, checked against the route data's host
//! key, logged in with the route data's user key or password.

use std::{borrow::Cow, io, sync::Arc, time::Duration};

use russh::{
    Channel, ChannelOpenFailure, Preferred, cipher,
    client::{self, AuthResult, ChannelOpenHandle, Msg, Session},
    keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate},
    server,
};
use tokio::net::TcpStream;

use super::{
    CHANNEL_MESSAGES_MAX, KEEPALIVE_INTERVAL, KEEPALIVES_MAX,
    connection::Life,
    inbox::Inbox,
    instances::Target,
    keys::{self, KeyError},
    outbox::Outbox,
    relay,
};

const CONNECT_TIME: Duration = Duration::from_secs(10);
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// The daemon, once it has let us in.
pub type Backend = client::Handle<Daemon>;

/// What a connection to the daemon is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Purpose {
    /// Channels of the client; its end is the end of the client's connection.
    First,
    Channels,
    /// Channels that the daemon opens, for ports forwarded to the client.
    Forwarding,
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("cannot connect to the instance: {0}")]
    Connect(#[source] io::Error),
    #[error("the instance's ssh daemon did not answer in time")]
    Silent,
    #[error("Host fingerprint mismatch")]
    Fingerprint,
    #[error("cannot read the user key of the routing info")]
    UserKey(#[source] KeyError),
    #[error("the instance's ssh daemon refused the key of the routing info")]
    Refused,
    #[error("cannot speak with the instance's ssh daemon: {0}")]
    Ssh(#[from] russh::Error),
}

/// What clients and daemons of today take, quickest first.
pub fn preferred() -> Preferred {
    Preferred {
        cipher: Cow::Borrowed(&[
            cipher::AES_256_GCM,
            cipher::AES_128_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
            cipher::AES_192_CTR,
            cipher::AES_128_CTR,
        ]),
        compression: Cow::Borrowed(&[russh::compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// Connects and logs in. Channels the daemon opens (forwarded ports) lead to `client`.
pub async fn connect(
    target: &Target,
    client: server::Handle,
    life: Arc<Life>,
    purpose: Purpose,
) -> Result<Backend, BackendError> {
    let connecting = TcpStream::connect((target.host.as_str(), target.port));
    let stream = tokio::time::timeout(CONNECT_TIME, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(BackendError::Connect)?;
    // Only a delay is lost where this fails.
    let _ = stream.set_nodelay(true);
    let daemon = Daemon { expected: target.route.host_fingerprint.clone(), client, life, purpose };
    tokio::time::timeout(HANDSHAKE_TIME, log_in(stream, daemon, target))
        .await
        .unwrap_or(Err(BackendError::Silent))
}

async fn log_in(stream: TcpStream, daemon: Daemon, target: &Target) -> Result<Backend, BackendError> {
    let config = client::Config {
        preferred: preferred(),
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_MAX,
        channel_buffer_size: CHANNEL_MESSAGES_MAX,
        nodelay: true,
        ..Default::default()
    };
    let route = &target.route;
    let mut backend = match client::connect_stream(Arc::new(config), Outbox::new(stream), daemon).await {
        Err(BackendError::Ssh(russh::Error::UnknownKey)) => return Err(BackendError::Fingerprint),
        connected => connected?,
    };
    let mut outcome = backend.authenticate_none(&*route.user).await?;
    if outcome != AuthResult::Success && !route.private_key.is_empty() {
        let key = keys::parse_private(&route.private_key).map_err(BackendError::UserKey)?;
        // Asking waits for a second on daemons that do not say it.
        let hash = match key.algorithm().is_rsa() {
            true => backend.best_supported_rsa_hash().await?.flatten(),
            false => None,
        };
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        outcome = backend.authenticate_publickey(&*route.user, key).await?;
    }
    if outcome != AuthResult::Success && !route.user.is_empty() && !route.password.is_empty() {
        outcome = backend.authenticate_password(&*route.user, &*route.password).await?;
    }
    match outcome {
        AuthResult::Success => Ok(backend),
        AuthResult::Failure { .. } => Err(BackendError::Refused),
    }
}

/// The daemon's side of the conversation.
pub struct Daemon {
    /// Fingerprint of its host key; none means any.
    expected: String,
    client: server::Handle,
    life: Arc<Life>,
    purpose: Purpose,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.purpose == Purpose::First {
            self.life.backend_gone.cancel();
        }
    }
}

impl client::Handler for Daemon {
    type Error = BackendError;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, BackendError> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else {
            return Ok(false);
        };
        Ok(self.expected.is_empty() || keys::matches(&self.expected, key))
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        address: &str,
        port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), BackendError> {
        let (client, life) = (self.client.clone(), self.life.clone());
        let (address, originator_address) = (address.to_owned(), originator_address.to_owned());
        tokio::spawn(async move {
            let opened =
                client.channel_open_forwarded_tcpip(address, port, originator_address, originator_port).await;
            match opened {
                Ok(to_client) => {
                    reply.accept().await;
                    let (to_client, with_daemon) = (to_client.split(), channel.split());
                    // Both connections carry other channels too.
                    let from_client = Inbox::of(to_client.0, life.patience, || true);
                    let from_daemon = Inbox::of(with_daemon.0, life.patience, || true);
                    relay::channel((from_client, to_client.1), (from_daemon, with_daemon.1), client, &life)
                        .await;
                }
                Err(error) => reply.reject(refusal(error)).await,
            }
        });
        Ok(())
    }
}

/// The reason to give one side when the other has refused a channel.
pub fn refusal(error: russh::Error) -> ChannelOpenFailure {
    match error {
        russh::Error::ChannelOpenFailure(reason) => reason,
        _ => ChannelOpenFailure::ConnectFailed,
    }
}
