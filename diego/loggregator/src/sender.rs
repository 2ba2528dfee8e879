//! The one connection to the forwarder: a stream of batches that is opened anew whenever it breaks.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::stream;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::queue::Queue;
use crate::{Config, Error};

const PATH: &str = "/loggregator.v2.Ingress/BatchSender";
/// Whom a forwarder's certificate names, wherever it runs.
const SERVER_NAME: &str = "metron";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two pings of the connection. Servers of gRPC take more than one in 5 minutes, while they have nothing to say
/// themselves, for abuse, and end the connection.
const PING_INTERVAL: Duration = Duration::from_secs(6 * 60);
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// By the kernel, of a connection on which nothing is sent.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// Between two attempts.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A stream that lived so long was well: the next attempt comes soon.
const WELL: Duration = Duration::from_secs(10);
/// Between two complaints of what was dropped.
const COMPLAIN: Duration = Duration::from_secs(30);
/// For what still waits when all ends.
const DRAIN: Duration = Duration::from_secs(2);

/// Passes on what a [`Forwarder`](crate::Forwarder) was given.
pub struct Sender {
    address: String,
    channel: Channel,
    queue: Arc<Queue>,
}

impl Sender {
    pub(crate) fn new(config: Config, queue: Arc<Queue>) -> Result<Sender, Error> {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let address = config.address;
        let bad = |source| Error::Address { address: address.clone(), source };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(bad)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_PATIENCE);
        if let Some(files) = &config.tls {
            diego_base::tls::install_provider();
            let failed = |source| Error::Tls { address: address.clone(), source };
            endpoint = endpoint.tls_config(tls(&address, files)?).map_err(failed)?;
        }
        Ok(Sender { channel: endpoint.connect_lazy(), address, queue })
    }

    /// Until `shutdown`; then what waits is given a moment to be taken.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let sending = self.keep_sending();
        tokio::pin!(sending);
        tokio::select! {
            () = shutdown => {}
            () = &mut sending => return,
            () = self.complain() => {}
        }
        self.queue.close();
        let _ = tokio::time::timeout(DRAIN, sending).await;
        let counts = self.queue.counts();
        let lost = counts.emitted - counts.sent;
        if lost > 0 {
            tracing::warn!(address = self.address, lost, "logs and metrics were not forwarded");
        }
    }

    /// Ends when the queue has.
    async fn keep_sending(&self) {
        let mut pause = RETRY_FIRST;
        loop {
            let begun = tokio::time::Instant::now();
            let Err(status) = self.send_stream().await else { return };
            if begun.elapsed() > WELL {
                pause = RETRY_FIRST;
            }
            if pause == RETRY_FIRST {
                let (address, error) = (&self.address, status.message());
                tracing::warn!(address, error, "the forwarder of logs does not take any; trying again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn send_stream(&self) -> Result<(), Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        let unavailable = |error: tonic::transport::Error| Status::unavailable(chain(&error));
        // Waits for the connection, so that no batch is taken from the queue before there is one.
        grpc.ready().await.map_err(unavailable)?;
        let batches = stream::unfold(self.queue.clone(), |queue| async move {
            let batch = queue.next().await?;
            Some((batch, queue))
        });
        let path = PathAndQuery::from_static(PATH);
        grpc.client_streaming(Request::new(batches), path, Encoded).await.map(|_| ())
    }

    /// Never ends.
    async fn complain(&self) {
        let mut told = 0;
        loop {
            tokio::time::sleep(COMPLAIN).await;
            let dropped = self.queue.counts().dropped;
            if dropped > told {
                let more = dropped - told;
                tracing::warn!(address = self.address, dropped = more, "the forwarder of logs is too slow");
                told = dropped;
            }
        }
    }
}

/// What went wrong and why, down to the first cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn tls(address: &str, files: &diego_base::tls::Files) -> Result<ClientTlsConfig, Error> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| Error::Read {
            address: address.into(),
            path: path.into(),
            source,
        })
    };
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    let tls = ClientTlsConfig::new().domain_name(SERVER_NAME).identity(identity);
    match &files.ca {
        Some(ca) => Ok(tls.ca_certificate(Certificate::from_pem(read(ca)?))),
        None => Ok(tls),
    }
}

/// Batches are encoded before they come here; of the answer only that there is one matters.
struct Encoded;

impl Codec for Encoded {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Encoded;
    type Decoder = Encoded;

    fn encoder(&mut self) -> Encoded {
        Encoded
    }

    fn decoder(&mut self) -> Encoded {
        Encoded
    }
}

impl Encoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, batch: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&batch);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Encoded {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        answer.advance(answer.remaining());
        Ok(Some(()))
    }
}
