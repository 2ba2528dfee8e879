//! One way to make an HTTP client, so that time-outs, pools and TLS are the same everywhere.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::tls::{self, Files};

/// How a component reaches another. Without `tls` files, `https` peers are verified against the system's roots.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    pub tls: Option<Files>,
    /// Believe any certificate of a server; for an operator's own tools only.
    pub skip_cert_verify: bool,
    /// From the first byte sent to the last received; `None` for streams.
    pub timeout: Option<Duration>,
    pub connect_timeout: Duration,
    pub idle_per_host_max: usize,
    /// A connection for each call under way instead of one for all, which is less work where calls are small and many.
    pub http1_only: bool,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            tls: None,
            skip_cert_verify: false,
            timeout: Some(Duration::from_secs(10)),
            connect_timeout: Duration::from_secs(5),
            idle_per_host_max: 64,
            http1_only: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error("cannot make an HTTP client")]
    Build(#[source] reqwest::Error),
}

/// How requests get to a peer and its answers back: over the network, or by a [`Carrier`], where a whole control plane
/// is one process.
#[derive(Clone)]
pub struct Way {
    client: reqwest::Client,
    carrier: Option<Arc<dyn Carrier>>,
}

/// Something else than the network that brings requests to where their URLs lead, or loses them.
pub trait Carrier: Send + Sync {
    fn carry(&self, request: reqwest::Request) -> Carried;
}

pub type Carried = Pin<Box<dyn Future<Output = Result<reqwest::Response, Failed>> + Send>>;

/// No answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error(transparent)]
    Network(#[from] reqwest::Error),
    #[error("{0}")]
    Lost(&'static str),
}

impl From<reqwest::Client> for Way {
    fn from(client: reqwest::Client) -> Way {
        Way { client, carrier: None }
    }
}

impl Way {
    /// `client` only puts requests together.
    pub fn carried(client: reqwest::Client, carrier: Arc<dyn Carrier>) -> Way {
        Way { client, carrier: Some(carrier) }
    }

    pub fn request(&self, method: reqwest::Method, url: impl reqwest::IntoUrl) -> reqwest::RequestBuilder {
        self.client.request(method, url)
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failed> {
        match &self.carrier {
            None => Ok(request.send().await?),
            Some(carrier) => carrier.carry(request.build()?).await,
        }
    }
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").field("carried", &self.carrier.is_some()).finish_non_exhaustive()
    }
}

pub fn client(config: &ClientConfig) -> Result<reqwest::Client, Error> {
    tls::install_provider();
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host(config.idle_per_host_max)
        .tcp_nodelay(true)
        .tls_danger_accept_invalid_certs(config.skip_cert_verify);
    if config.http1_only {
        builder = builder.http1_only();
    }
    if let Some(timeout) = config.timeout {
        builder = builder.timeout(timeout);
    }
    if let Some(files) = &config.tls {
        let mut identity = read(&files.cert)?;
        identity.extend(read(&files.key)?);
        builder = builder.identity(reqwest::Identity::from_pem(&identity).map_err(Error::Build)?);
        if let Some(ca) = &files.ca {
            let roots = reqwest::Certificate::from_pem_bundle(&read(ca)?).map_err(Error::Build)?;
            builder = builder.tls_certs_only(roots);
        }
    }
    builder.build().map_err(Error::Build)
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })
}
