//! A connection to a NATS server, as much of it as route emitting needs: publish, subscribe, stay alive, notice the
//! end. It does not connect again by itself and keeps nothing for later: who uses it knows what to say anew.
//!
//! Why it is our own: docs/decisions/0004-nats.md.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use diego_base::tls::ClientTls;
use futures_util::StreamExt;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::codec::FramedRead;

use super::frames::{Frame, FrameError, Frames, Hello, Message};

/// Until a server has taken us in, or refused.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A server that takes no bytes for so long is gone.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Between two pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Pings without an answer after which the server is gone.
const UNANSWERED_PINGS_MAX: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to the NATS server {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("the NATS server {address} did not greet within {CONNECT_TIME:?}")]
    Silent { address: String },
    #[error("the NATS server {address} wants TLS, and there is no certificate to speak it with")]
    TlsRequired { address: String },
    #[error("the NATS server {address} does not speak TLS, as it should")]
    NoTls { address: String },
    #[error("the NATS server {address} said something before TLS that belongs after it")]
    BeforeTls { address: String },
    #[error("cannot speak TLS with the NATS server {address}: {source}")]
    Tls { address: String, source: std::io::Error },
    #[error("the NATS server refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the NATS server said something else than its greeting")]
    NoHello,
    #[error("the NATS server closed the connection")]
    Closed,
    #[error("cannot write to the NATS server: {0}")]
    Write(std::io::Error),
    #[error("the NATS server does not answer")]
    Unresponsive,
    #[error("a message of {len} bytes for {subject} is more than the NATS server takes")]
    PayloadTooLong { subject: String, len: usize },
}

/// Who we are to a server.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

#[derive(Serialize)]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    headers: bool,
    name: &'a str,
    lang: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pass: &'a str,
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What is published waits in `out` until [`flush`](Self::flush).
pub struct Connection {
    frames: FramedRead<Reader, Frames>,
    writer: Writer,
    out: BytesMut,
    payload_bytes_max: usize,
    unanswered_pings: u32,
    subscriptions: u32,
}

impl Connection {
    /// `address` is `HOST:PORT`, with or without `nats://` before it.
    /// With `tls` all but the server's greeting is spoken over it; without, none of it is.
    pub async fn open(
        address: &str,
        tls: Option<&ClientTls>,
        credentials: &Credentials,
    ) -> Result<Connection, Error> {
        let address = address.strip_prefix("nats://").unwrap_or(address);
        let silent = |_| Error::Silent { address: address.into() };
        tokio::time::timeout(CONNECT_TIME, Self::greet(address, tls, credentials)).await.map_err(silent)?
    }

    async fn greet(
        address: &str,
        tls: Option<&ClientTls>,
        credentials: &Credentials,
    ) -> Result<Connection, Error> {
        let cannot = |source| Error::Connect { address: address.into(), source };
        let stream = TcpStream::connect(address).await.map_err(cannot)?;
        stream.set_nodelay(true).map_err(cannot)?;
        let mut frames = FramedRead::new(stream, Frames::default());
        let hello: Hello = match frames.next().await.transpose()? {
            Some(Frame::Hello(hello)) => hello,
            Some(Frame::Refused(reason)) => return Err(Error::Refused(reason)),
            Some(_) => return Err(Error::NoHello),
            None => return Err(Error::Closed),
        };
        let early = std::mem::take(frames.read_buffer_mut());
        let stream = frames.into_inner();
        let (reader, writer): (Reader, Writer) = match tls {
            None if hello.tls_required => return Err(Error::TlsRequired { address: address.into() }),
            Some(_) if !hello.tls_required && !hello.tls_available => {
                return Err(Error::NoTls { address: address.into() });
            }
            // Whoever is between us could have put it there.
            Some(_) if !early.is_empty() => return Err(Error::BeforeTls { address: address.into() }),
            None => {
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Some(tls) => {
                let (reader, writer) = tokio::io::split(secured(stream, address, tls).await?);
                (Box::new(reader), Box::new(writer))
            }
        };
        let mut frames = FramedRead::new(reader, Frames::default());
        *frames.read_buffer_mut() = early;
        let mut connection = Connection {
            frames,
            writer,
            out: BytesMut::new(),
            payload_bytes_max: hello.max_payload,
            unanswered_pings: 0,
            subscriptions: 0,
        };
        connection.introduce(credentials, tls.is_some()).await?;
        Ok(connection)
    }

    /// A refusal comes before the answer to the ping.
    async fn introduce(&mut self, credentials: &Credentials, tls_required: bool) -> Result<(), Error> {
        let connect = Connect {
            verbose: false,
            pedantic: false,
            tls_required,
            headers: false,
            name: "route-emitter",
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            user: &credentials.user,
            pass: &credentials.password,
        };
        let connect = serde_json::to_string(&connect).map_err(|error| Error::Write(error.into()))?;
        self.out.put_slice(format!("CONNECT {connect}\r\nPING\r\n").as_bytes());
        self.flush().await?;
        loop {
            match self.frames.next().await.transpose()? {
                Some(Frame::Pong) => return Ok(()),
                Some(Frame::Refused(reason)) => return Err(Error::Refused(reason)),
                Some(_) => {}
                None => return Err(Error::Closed),
            }
        }
    }

    pub fn subscribe(&mut self, subject: &str) {
        self.subscriptions += 1;
        self.out.put_slice(format!("SUB {subject} {}\r\n", self.subscriptions).as_bytes());
    }

    /// Too long a message would make the server end the connection.
    pub fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) -> Result<(), Error> {
        let len = payload.len();
        if len > self.payload_bytes_max {
            return Err(Error::PayloadTooLong { subject: subject.into(), len });
        }
        let reply = reply.map(|reply| format!("{reply} ")).unwrap_or_default();
        self.out.put_slice(format!("PUB {subject} {reply}{len}\r\n").as_bytes());
        self.out.put_slice(payload);
        self.out.put_slice(b"\r\n");
        Ok(())
    }

    /// To be called every [`PING_INTERVAL`].
    pub fn ping(&mut self) -> Result<(), Error> {
        if self.unanswered_pings >= UNANSWERED_PINGS_MAX {
            return Err(Error::Unresponsive);
        }
        self.unanswered_pings += 1;
        self.out.put_slice(b"PING\r\n");
        Ok(())
    }

    /// May be dropped and called again: nothing is written twice.
    pub async fn flush(&mut self) -> Result<(), Error> {
        let writing = async {
            self.writer.write_all_buf(&mut self.out).await?;
            self.writer.flush().await
        };
        let written = tokio::time::timeout(WRITE_TIME, writing).await;
        written.map_err(|_| Error::Unresponsive)?.map_err(Error::Write)
    }

    /// The next message; may be dropped and called again. Its answers to pings wait for the next flush, so it returns
    /// `None` after one.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        match self.frames.next().await.transpose()?.ok_or(Error::Closed)? {
            Frame::Message(message) => return Ok(Some(message)),
            Frame::Ping => self.out.put_slice(b"PONG\r\n"),
            Frame::Pong => self.unanswered_pings = 0,
            Frame::Refused(reason) => return Err(Error::Refused(reason)),
            // Servers repeat it when their cluster changes.
            Frame::Hello(_) | Frame::Ok => {}
        }
        Ok(None)
    }
}

async fn secured(stream: TcpStream, address: &str, tls: &ClientTls) -> Result<TlsStream<TcpStream>, Error> {
    let failed = |source| Error::Tls { address: address.into(), source };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(std::io::Error::other(error)))?;
    TlsConnector::from(tls.0.clone()).connect(name, stream).await.map_err(failed)
}
