//! Ports forwarded through a connection: from the client to an address the container can reach, and from a port of the
//! container to the client.

use std::{io, time::Duration};

use bytes::Bytes;
use russh::{
    Channel, ChannelMsg, ChannelOpenFailure, ChannelWriteHalf,
    server::{ChannelOpenHandle, Handle, Msg},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::sync::CancellationToken;

use super::{inbox::Inbox, log::Log};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const PIECE_BYTES: usize = 32 * 1024;
/// Where a client that asks for "localhost" or for any address is served.
const ANY: &str = "0.0.0.0";
const LOCALHOST: &str = "127.0.0.1";

/// Connects to `host`:`port` for the client, then copies both ways until both are done.
pub async fn connect(channel: Channel<Msg>, host: String, port: u32, reply: ChannelOpenHandle, log: Log) {
    let Ok(port) = u16::try_from(port) else {
        return reply.reject(ChannelOpenFailure::ConnectFailed).await;
    };
    let connecting = TcpStream::connect((host.as_str(), port));
    let connected = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    match connected {
        Ok(target) => {
            reply.accept().await;
            copy(channel, target, log).await;
        }
        Err(error) => {
            log.debug(
                "direct-tcpip.failed",
                json!({ "target": format!("{host}:{port}"), "error": error.to_string() }),
            );
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    }
}

/// Listens in the container for the client; gives the port.
pub async fn listen(
    address: &str,
    port: u32,
    client: Handle,
    stop: CancellationToken,
    log: Log,
) -> io::Result<u16> {
    let port = u16::try_from(port).map_err(|_| io::ErrorKind::InvalidInput)?;
    let host = match address {
        "" | "*" => ANY,
        "localhost" => LOCALHOST,
        address => address,
    };
    let listener = TcpListener::bind((host, port)).await?;
    let bound = listener.local_addr()?.port();
    tokio::spawn(accept(listener, address.to_owned(), bound, client, stop, log));
    Ok(bound)
}

async fn accept(
    listener: TcpListener,
    address: String,
    port: u16,
    client: Handle,
    stop: CancellationToken,
    log: Log,
) {
    loop {
        let (target, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => return log.error("tcpip-forward.accept-failed", &error),
            },
            () = stop.cancelled() => return,
        };
        let (client, address) = (client.clone(), address.clone());
        tokio::spawn(async move {
            let originator = peer.ip().to_string();
            let opened = client
                .channel_open_forwarded_tcpip(address, port.into(), originator, peer.port().into())
                .await;
            match opened {
                Ok(channel) => copy(channel, target, log).await,
                Err(error) => log.error("tcpip-forward.failed-to-open-channel", &error),
            }
        });
    }
}

/// Copies both ways until both are done or the client closes the channel.
async fn copy(channel: Channel<Msg>, target: TcpStream, log: Log) {
    let (from_client, to_client) = channel.split();
    let (from_target, to_target) = target.into_split();
    let all_sent = CancellationToken::new();
    let both = async {
        to_the_client(from_target, &to_client).await?;
        all_sent.cancelled().await;
        Ok(())
    };
    let ended = tokio::select! {
        ended = to_the_target(Inbox::of(from_client), to_target, &all_sent) => ended,
        ended = both => ended,
    };
    if let Err(error) = ended {
        // A broken connection shows itself to both ends.
        log.debug("forward.ended", json!({ "error": error.to_string() }));
    }
    // A client that has left does not mind.
    let _ = to_client.close().await;
}

/// Until the client closes the channel; `all_sent` when it has said all before.
async fn to_the_target(
    mut from: Inbox,
    mut to: OwnedWriteHalf,
    all_sent: &CancellationToken,
) -> io::Result<()> {
    while let Some((message, _place)) = from.next().await {
        match message {
            ChannelMsg::Data { data } => to.write_all(&data).await?,
            ChannelMsg::Eof => {
                to.shutdown().await?;
                all_sent.cancel();
            }
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    Ok(())
}

async fn to_the_client(mut from: OwnedReadHalf, to: &ChannelWriteHalf<Msg>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        let sent = match length {
            0 => to.eof().await,
            length => to.data_bytes(Bytes::copy_from_slice(&buffer[..length])).await,
        };
        match sent {
            Ok(()) if length > 0 => {}
            // A client that has left shows itself to the other direction.
            _ => return Ok(()),
        }
    }
}
