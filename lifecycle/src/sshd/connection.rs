//! One client: lets it in, answers its requests, and hands each channel to a task of its own. Nothing here waits for
//! anything slow, for all channels of the connection would wait with it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, Pty,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{forward, session, settings::Settings};

const CHANNELS_MAX: usize = 64;
const LISTENERS_MAX: usize = 16;

pub struct Connection {
    settings: Arc<Settings>,
    authenticated: CancellationToken,
    channels: Arc<Semaphore>,
    /// Channels in which a program was asked for; a second one is refused.
    started: HashSet<ChannelId>,
    /// Ports opened for the client, by the address it asked for.
    listeners: HashMap<(String, u32), CancellationToken>,
}

impl Connection {
    pub fn new(settings: Arc<Settings>, authenticated: CancellationToken) -> Self {
        Connection {
            settings,
            authenticated,
            channels: Arc::new(Semaphore::new(CHANNELS_MAX)),
            started: HashSet::new(),
            listeners: HashMap::new(),
        }
    }

    fn is_authorized(&self, key: &russh::keys::PublicKey) -> bool {
        let authorized = self.settings.authorized_key.as_ref();
        authorized.is_some_and(|authorized| authorized.key_data() == key.key_data())
    }

    fn judge(&self, key: &russh::keys::PublicKey) -> Auth {
        match self.is_authorized(key) {
            true => Auth::Accept,
            false => Auth::reject(),
        }
    }

    /// Answers a request to start something: yes to the first of a channel.
    fn answer_start(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        match self.started.insert(channel) {
            true => session.channel_success(channel),
            false => session.channel_failure(channel),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.listeners.values().for_each(CancellationToken::cancel);
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(match self.settings.allow_unauthenticated_clients {
            true => Auth::Accept,
            false => Auth::reject(),
        })
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge(offer.public_key))
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(key.public_key))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.authenticated.cancel();
        self.settings.log.info("handle-connection.authenticated", json!({}));
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(place) = self.channels.clone().try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        reply.accept().await;
        let serving = session::serve(channel, session.handle(), self.settings.clone());
        tokio::spawn(async move {
            serving.await;
            drop(place);
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(place) = self.channels.clone().try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let connecting = forward::connect(channel, host.to_owned(), port, reply, self.settings.log);
        tokio::spawn(async move {
            connecting.await;
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

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.answer_start(channel, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.answer_start(channel, session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match name == session::SFTP {
            true => self.answer_start(channel, session),
            false => session.channel_failure(channel),
        }
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

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.started.remove(&channel);
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        if self.listeners.len() >= LISTENERS_MAX {
            return Ok(false);
        }
        let stop = CancellationToken::new();
        match forward::listen(address, *port, session.handle(), stop.clone(), self.settings.log).await {
            Ok(bound) => {
                *port = bound.into();
                self.listeners.insert((address.to_owned(), *port), stop);
                Ok(true)
            }
            Err(error) => {
                self.settings.log.error("tcpip-forward.failed-to-listen", &error);
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let listener = self.listeners.remove(&(address.to_owned(), port));
        listener.iter().for_each(CancellationToken::cancel);
        Ok(listener.is_some())
    }
}
