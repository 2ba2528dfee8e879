//! Speaking to Locket: four calls, and holding on to a key for as long as a process lives.

mod cells;
mod guard;
mod hold;

use std::time::Duration;

use bbs_models::wire::{
    FETCH_ALL_PATH, FETCH_PATH, FetchAllRequest, FetchAllResponse, FetchRequest, FetchResponse, LOCK_PATH,
    LockRequest, LocketDone, RELEASE_PATH, ReleaseRequest, type_code,
};
use bbs_models::{LockKind, Resource};
use diego_base::http::ClientConfig;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

pub use cells::watch_cells;
pub use guard::Lock;
pub use hold::Hold;

/// Between two pings of a connection by which something is asked, and how long one may go unanswered. Servers of gRPC take
/// pings of a connection on which nothing goes on for abuse, and end it.
const KEEPALIVE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum LocketError {
    #[error("another owner holds {key}")]
    Collision { key: String },
    #[error("nobody holds {key}")]
    NotFound { key: String },
    #[error("Locket refused to {act} {key}: {}", status.message())]
    Refused { act: &'static str, key: String, status: Box<Status> },
    #[error("cannot reach Locket to {act} {key}: {}", status.message())]
    Unreachable { act: &'static str, key: String, status: Box<Status> },
    #[error("Locket's answer for {key} is not a resource")]
    Answer { key: String },
    #[error("{url} is no address of a Locket")]
    Address { url: String, source: tonic::transport::Error },
    #[error("cannot read {path}")]
    Read { path: std::path::PathBuf, source: std::io::Error },
}

impl LocketError {
    fn of(act: &'static str, key: &str, status: Status) -> Self {
        let key = key.to_string();
        match status.code() {
            Code::AlreadyExists => Self::Collision { key },
            Code::NotFound if status.message() == "resource-not-found" => Self::NotFound { key },
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Self::Unreachable { act, key, status: Box::new(status) }
            }
            _ => Self::Refused { act, key, status: Box::new(status) },
        }
    }

    pub fn is_collision(&self) -> bool {
        matches!(self, Self::Collision { .. })
    }
}

/// Cheap to clone; clones share one connection, which is made when first used and again when it breaks.
#[derive(Debug, Clone)]
pub struct LocketClient {
    channel: Channel,
}

impl LocketClient {
    /// `address` is `host:port` or a URL; with `config.tls` it is spoken to over TLS. Must be called in a runtime.
    pub fn new(address: &str, config: &ClientConfig) -> Result<Self, LocketError> {
        let url = match (address.contains("://"), &config.tls) {
            (true, _) => address.to_string(),
            (false, None) => format!("http://{address}"),
            (false, Some(_)) => format!("https://{address}"),
        };
        let bad_address = |source| LocketError::Address { url: url.clone(), source };
        let mut endpoint = Endpoint::from_shared(url.clone())
            .map_err(bad_address)?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        if let Some(timeout) = config.timeout {
            endpoint = endpoint.timeout(timeout);
        }
        if let Some(files) = &config.tls {
            diego_base::tls::install_provider();
            endpoint = endpoint.tls_config(client_tls(files)?).map_err(bad_address)?;
        }
        Ok(Self { channel: endpoint.connect_lazy() })
    }

    /// Takes the key, or renews it for its owner. `ttl` is rounded down to seconds, and at least one.
    pub async fn lock(&self, resource: &Resource, ttl: Duration) -> Result<(), LocketError> {
        let ttl_in_seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = LockRequest { resource: Some(resource.clone().into()), ttl_in_seconds };
        let _: LocketDone = self.call("lock", &resource.key, LOCK_PATH, request).await?;
        Ok(())
    }

    pub async fn fetch(&self, key: &str) -> Result<Resource, LocketError> {
        let request = FetchRequest { key: key.to_string() };
        let response: FetchResponse = self.call("fetch", key, FETCH_PATH, request).await?;
        let resource = response.resource.and_then(|resource| resource.parse());
        resource.ok_or_else(|| LocketError::Answer { key: key.to_string() })
    }

    /// Gives the key up; nothing happens if nobody holds it.
    pub async fn release(&self, resource: &Resource) -> Result<(), LocketError> {
        let request = ReleaseRequest { resource: Some(resource.clone().into()) };
        let _: LocketDone = self.call("release", &resource.key, RELEASE_PATH, request).await?;
        Ok(())
    }

    /// All keys of one kind, in no order.
    pub async fn fetch_all(&self, kind: LockKind) -> Result<Vec<Resource>, LocketError> {
        let what = kind.name();
        let request = FetchAllRequest { kind: what.to_string(), type_code: type_code(kind) };
        let response: FetchAllResponse = self.call("fetch every", what, FETCH_ALL_PATH, request).await?;
        Ok(response.resources.into_iter().filter_map(|resource| resource.parse()).collect())
    }

    async fn call<Q, A>(
        &self,
        act: &'static str,
        key: &str,
        path: &'static str,
        request: Q,
    ) -> Result<A, LocketError>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone());
        let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        grpc.ready().await.map_err(|error| LocketError::of(act, key, unavailable(error)))?;
        let path = PathAndQuery::from_static(path);
        let answer = grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| LocketError::of(act, key, status))
    }
}

fn client_tls(files: &diego_base::tls::Files) -> Result<ClientTlsConfig, LocketError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| LocketError::Read { path: path.into(), source })
    };
    let mut tls = ClientTlsConfig::new().identity(Identity::from_pem(read(&files.cert)?, read(&files.key)?));
    if let Some(ca) = &files.ca {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    Ok(tls)
}
