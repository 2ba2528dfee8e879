//! Logs and metrics for the platform: envelopes of loggregator's v2 API, passed on to the forwarder beside this process.
//!
//! ```text
//! emit ─▶ envelope, encoded once ─▶ queue of batches, bounded ─▶ one gRPC stream (`BatchSender`)
//! ```
//!
//! Nobody who emits waits, and nobody fails: what a forwarder that is away or slow leaves no room for is counted and
//! dropped. What is said about whom is for the callers to decide.

mod envelope;
mod queue;
mod sender;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use envelope::{Message, Source, Stream, Value};
pub use queue::QUEUE_BYTES_MAX;
use queue::Queue;
pub use sender::Sender;

/// The forwarder's port where nothing else is said.
pub const PORT_DEFAULT: u16 = 3458;
pub const BATCH_ENVELOPES: usize = 100;
/// How long an envelope may wait for others to be sent with.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Where the forwarder is, and how to prove to one another who we are.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT`.
    pub address: String,
    /// Mutual TLS; the forwarder's certificate must be for `metron`. `None`: in clear, for a forwarder that says so.
    pub tls: Option<diego_base::tls::Files>,
    /// The tag `origin` of every envelope: which kind of component speaks. Empty: no such tag.
    pub origin: String,
    pub batch_envelopes: usize,
    pub flush_interval: Duration,
}

impl Config {
    pub fn new(address: impl Into<String>, origin: impl Into<String>) -> Config {
        Config {
            address: address.into(),
            tls: None,
            origin: origin.into(),
            batch_envelopes: BATCH_ENVELOPES,
            flush_interval: FLUSH_INTERVAL,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{address} is no address of a forwarder of logs")]
    Address { address: String, source: tonic::transport::Error },
    #[error("cannot read {path} to speak to the forwarder of logs at {address}")]
    Read { address: String, path: PathBuf, source: std::io::Error },
    #[error("cannot use the certificates to speak to the forwarder of logs at {address}")]
    Tls { address: String, source: tonic::transport::Error },
}

/// What became of the envelopes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub emitted: u64,
    /// Handed to the connection. Those under way when it breaks are lost without being known to be.
    pub sent: u64,
    pub dropped: u64,
}

/// Takes envelopes; cheap to clone.
#[derive(Clone)]
pub struct Forwarder {
    queue: Arc<Queue>,
    origin: Arc<str>,
}

impl Forwarder {
    /// The sender passes on what the forwarder takes, as long as it runs.
    pub fn new(config: Config) -> Result<(Forwarder, Sender), Error> {
        let queue = Arc::new(Queue::new(config.batch_envelopes, config.flush_interval));
        let origin = Arc::from(config.origin.as_str());
        let sender = Sender::new(config, queue.clone())?;
        Ok((Forwarder { queue, origin }, sender))
    }

    /// Who an envelope is about. To be kept by who emits many about the same.
    pub fn source<'a>(
        &self,
        source_id: &str,
        instance_id: &str,
        tags: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Source {
        Source::new(source_id, instance_id, &self.origin, tags)
    }

    /// `timestamp_ns`: since the epoch.
    pub fn emit(&self, timestamp_ns: i64, source: &Source, message: &Message<'_>) {
        envelope::encode(timestamp_ns, source, message, |envelope| self.queue.push(envelope));
    }

    pub fn counts(&self) -> Counts {
        self.queue.counts()
    }
}
