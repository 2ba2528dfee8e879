//! One channel, relayed: whatever either side sends on it is sent on by the other, in order, until either closes it.
//!
//! Requests the daemon always grants (terminal, variable, size) are answered at once by `connection`; shell, exec and
//! subsystem are answered when the daemon has. Back-pressure passes through: a side that does not read stops the
//! other's sending, sooner or later (see `inbox`).

use russh::{
    ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client,
    server::{self, Handle},
};
use tokio_util::sync::CancellationToken;

use super::{connection::Life, inbox::Inbox};

/// Where messages of a channel come from.
pub trait Messages {
    /// `None` when the channel has ended.
    fn next(&mut self) -> impl Future<Output = Option<ChannelMsg>> + Send;

    /// Cancelled when it stands in the way of others.
    fn stalled(&self) -> CancellationToken;
}

impl Messages for Inbox {
    fn next(&mut self) -> impl Future<Output = Option<ChannelMsg>> + Send {
        self.next()
    }

    fn stalled(&self) -> CancellationToken {
        self.stalled.clone()
    }
}

/// A connection's only channel: nothing need be held for it, and it is in nobody's way.
impl Messages for ChannelReadHalf {
    fn next(&mut self) -> impl Future<Output = Option<ChannelMsg>> + Send {
        self.wait()
    }

    fn stalled(&self) -> CancellationToken {
        CancellationToken::new()
    }
}

/// Relays until either side has closed the channel.
pub async fn channel(
    (from_client, to_client): (Inbox, ChannelWriteHalf<server::Msg>),
    (from_daemon, to_daemon): (impl Messages, ChannelWriteHalf<client::Msg>),
    client: Handle,
    life: &Life,
) {
    let (client_stalled, daemon_stalled) = (from_client.stalled(), from_daemon.stalled());
    let mut terminal = Terminal { life, counted: false };
    // The end of one direction is a close, which ends the channel; the other has nothing more to say.
    tokio::select! {
        () = to_the_daemon(from_client, &to_daemon, &mut terminal) => {}
        () = to_the_client(from_daemon, &to_client, &client, life) => {}
        () = client_stalled.cancelled() => tracing::warn!("closed a channel that the instance does not read"),
        () = daemon_stalled.cancelled() => tracing::warn!("closed a channel that the client does not read"),
    }
    // A side that has closed already, or has gone, does not mind.
    let _ = to_daemon.close().await;
    let _ = to_client.close().await;
}

/// Keeps a connection from counting as idle while one of its channels has a terminal.
struct Terminal<'a> {
    life: &'a Life,
    counted: bool,
}

impl Terminal<'_> {
    fn opened(&mut self) {
        if !self.counted {
            self.counted = true;
            self.life.terminal_opened();
        }
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.life.terminal_closed();
        }
    }
}

async fn to_the_daemon(mut from: Inbox, to: &ChannelWriteHalf<client::Msg>, terminal: &mut Terminal<'_>) {
    while let Some(message) = from.next().await {
        terminal.life.touch();
        let sent = match message {
            ChannelMsg::Data { data } => to.data_bytes(data).await,
            ChannelMsg::ExtendedData { data, ext } => to.extended_data_bytes(ext, data).await,
            ChannelMsg::Eof => to.eof().await,
            ChannelMsg::Close => return,
            ChannelMsg::RequestPty {
                term,
                col_width,
                row_height,
                pix_width,
                pix_height,
                terminal_modes,
                ..
            } => {
                terminal.opened();
                to.request_pty(false, &term, col_width, row_height, pix_width, pix_height, &terminal_modes)
                    .await
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                to.set_env(false, variable_name, variable_value).await
            }
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                to.window_change(col_width, row_height, pix_width, pix_height).await
            }
            ChannelMsg::Signal { signal } => to.signal(signal).await,
            ChannelMsg::RequestShell { .. } => to.request_shell(true).await,
            ChannelMsg::Exec { command, .. } => to.exec(true, command).await,
            ChannelMsg::RequestSubsystem { name, .. } => to.request_subsystem(true, name).await,
            // Agent and X11 forwarding have been refused; window adjustments are each side's own.
            _ => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn to_the_client(
    mut from: impl Messages,
    to: &ChannelWriteHalf<server::Msg>,
    client: &Handle,
    life: &Life,
) {
    let id = to.id();
    while let Some(message) = from.next().await {
        life.touch();
        let sent = match message {
            ChannelMsg::Data { data } => to.data_bytes(data).await.is_ok(),
            ChannelMsg::ExtendedData { data, ext } => to.extended_data_bytes(ext, data).await.is_ok(),
            ChannelMsg::Success => client.channel_success(id).await.is_ok(),
            ChannelMsg::Failure => client.channel_failure(id).await.is_ok(),
            ChannelMsg::ExitStatus { exit_status } => to.exit_status(exit_status).await.is_ok(),
            ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, lang_tag } => client
                .exit_signal_request(id, signal_name, core_dumped, error_message, lang_tag)
                .await
                .is_ok(),
            ChannelMsg::Eof => to.eof().await.is_ok(),
            ChannelMsg::Close => return,
            _ => true,
        };
        if !sent {
            return;
        }
    }
}
