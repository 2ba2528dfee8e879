//! The calls' common part: one protobuf message there, one back, tried again when the BBS cannot be reached.

use std::time::Duration;

use bbs_models::wire::{CellsResponse, DomainsResponse, LifecycleResponse, UpsertDomainRequest};
use bbs_models::wire::{Empty, PingResponse, Response};
use bbs_models::wire::{EventError, Invalid};
use bbs_models::{CellPresence, ErrorKind};
use diego_base::http::{ClientConfig, Failed, Way};
use prost::Message;
use reqwest::{Method, StatusCode};

use crate::paths;

pub const TRACE_HEADER: &str = "x-vcap-request-id";
pub(crate) const PROTOBUF: &str = "application/x-protobuf";
/// Set by a router between us and the BBS that found no BBS.
const ROUTER_ERROR_HEADER: &str = "x-cf-routererror";
/// Attempts of one call where nothing else is said, the first included.
const ATTEMPTS_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct BbsClient {
    http: Way,
    streams: Way,
    url: String,
    trace_id: Option<String>,
    /// Of one call, the first included.
    attempts_max: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The BBS answered, and refused.
    #[error("{0}")]
    Bbs(bbs_models::Error),
    #[error("cannot reach the BBS for {path}")]
    Unreachable { path: &'static str, source: Failed },
    #[error("the router before the BBS answered {path} with {message}")]
    Router { path: &'static str, message: String },
    #[error("Invalid Response with status code: {status} for {path}")]
    Status { path: &'static str, status: u16 },
    #[error("cannot decode the BBS's answer to {path}")]
    Decode { path: &'static str, source: prost::DecodeError },
    #[error("the BBS's answer to {path} is not valid")]
    Invalid { path: &'static str, source: Invalid },
    #[error("the BBS's answer to {path} lacks its {field}")]
    Missing { path: &'static str, field: &'static str },
    #[error("cannot read the BBS's event")]
    Event(#[source] EventError),
    #[error("cannot read the BBS's event stream: {reason}")]
    Stream { reason: String },
    #[error("cannot make a client for the BBS")]
    Build(#[source] diego_base::http::Error),
}

impl Error {
    /// What the BBS refused it for; `None` if it did not answer properly, so that trying later may help.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Bbs(error) => Some(error.kind),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.kind() == Some(ErrorKind::ResourceNotFound)
    }

    /// No answer came in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Unreachable { source: Failed::Network(error), .. } if error.is_timeout())
    }

    /// A route that this BBS does not have, which a retry cannot change.
    pub(crate) fn is_unknown_route(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl BbsClient {
    /// `url` is `http://host:port` or `https://host:port`; `config.timeout` is of calls, streams have none.
    pub fn new(url: &str, config: &ClientConfig) -> Result<Self> {
        // As all BBSes have it, and twice as fast for calls as small as these.
        let config = ClientConfig { http1_only: true, ..config.clone() };
        let streams = ClientConfig { timeout: None, ..config.clone() };
        Ok(Self {
            http: diego_base::http::client(&config).map_err(Error::Build)?.into(),
            streams: diego_base::http::client(&streams).map_err(Error::Build)?.into(),
            url: url.trim_end_matches('/').to_string(),
            trace_id: None,
            attempts_max: ATTEMPTS_MAX,
        })
    }

    /// To a BBS that is reached by a way of one's own.
    pub fn by(way: Way, url: &str) -> Self {
        let url = url.trim_end_matches('/').to_string();
        Self { http: way.clone(), streams: way, url, trace_id: None, attempts_max: ATTEMPTS_MAX }
    }

    /// The same client; what it does from now on is logged under `trace_id` on the other side too.
    pub fn traced(&self, trace_id: impl Into<String>) -> Self {
        Self { trace_id: Some(trace_id.into()), ..self.clone() }
    }

    /// The same client, which asks once and no more: for whoever waits for its answer.
    pub fn impatient(self) -> Self {
        Self { attempts_max: 1, ..self }
    }

    pub async fn ping(&self) -> Result<()> {
        let response: PingResponse = self.exchange(paths::PING, &Empty {}).await?;
        if response.available { Ok(()) } else { Err(Error::Status { path: paths::PING, status: 503 }) }
    }

    pub async fn domains(&self) -> Result<Vec<String>> {
        let response: DomainsResponse = self.call(paths::DOMAINS, &Empty {}).await?;
        Ok(response.domains)
    }

    /// Keeps a domain fresh for `ttl`, rounded down to seconds; `None` is forever.
    pub async fn upsert_domain(&self, domain: &str, ttl: Option<Duration>) -> Result<()> {
        let seconds = ttl.map_or(0, |ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1));
        let request = UpsertDomainRequest { domain: domain.to_string(), ttl: seconds };
        self.change(paths::UPSERT_DOMAIN, &request).await
    }

    pub async fn cells(&self) -> Result<Vec<CellPresence>> {
        let response: CellsResponse = self.call(paths::CELLS, &Empty {}).await?;
        Ok(response.cells.into_iter().map(Into::into).collect())
    }

    /// A call that answers with nothing but, perhaps, an error.
    pub(crate) async fn change(&self, path: &'static str, request: &impl Message) -> Result<()> {
        let _: LifecycleResponse = self.call(path, request).await?;
        Ok(())
    }

    pub(crate) async fn call<R: Response>(&self, path: &'static str, request: &impl Message) -> Result<R> {
        let mut response: R = self.exchange(path, request).await?;
        match response.error() {
            None => Ok(response),
            Some(error) => Err(Error::Bbs(error.into())),
        }
    }

    async fn exchange<R: Message + Default>(&self, path: &'static str, request: &impl Message) -> Result<R> {
        let body = bytes::Bytes::from(request.encode_to_vec());
        let mut attempt = 1;
        loop {
            match self.exchange_once(path, body.clone()).await {
                Err(error) if attempt < self.attempts_max && !error.is_unknown_route() => {
                    tracing::debug!(path, attempt, %error, "failed-doing-request");
                    attempt += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn exchange_once<R: Message + Default>(&self, path: &'static str, body: bytes::Bytes) -> Result<R> {
        let unreachable = |source| Error::Unreachable { path, source };
        let request = self.request(&self.http, Method::POST, path, body);
        let response = self.http.send(request).await.map_err(unreachable)?;
        let status = response.status();
        if let Some(message) = response.headers().get(ROUTER_ERROR_HEADER) {
            let message = String::from_utf8_lossy(message.as_bytes()).into_owned();
            return Err(Error::Router { path, message });
        }
        if !is_protobuf(&response) {
            return Err(Error::Status { path, status: status.as_u16() });
        }
        let body = response.bytes().await.map_err(|error| unreachable(error.into()))?;
        R::decode(body).map_err(|source| Error::Decode { path, source })
    }

    /// Opens a stream of server-sent events.
    pub(crate) async fn open_stream(
        &self,
        method: Method,
        path: &'static str,
        request: &impl Message,
    ) -> Result<reqwest::Response> {
        let request = self.request(&self.streams, method, path, request.encode_to_vec().into());
        let request = request.header(http::header::ACCEPT, "text/event-stream");
        let response =
            self.streams.send(request).await.map_err(|source| Error::Unreachable { path, source })?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(Error::Status { path, status: status.as_u16() }),
        }
    }

    fn request(
        &self,
        client: &Way,
        method: Method,
        path: &str,
        body: bytes::Bytes,
    ) -> reqwest::RequestBuilder {
        let request = client
            .request(method, format!("{}{path}", self.url))
            .header(http::header::CONTENT_TYPE, PROTOBUF)
            .body(body);
        match &self.trace_id {
            Some(trace_id) => request.header(TRACE_HEADER, trace_id),
            None => request,
        }
    }
}

fn is_protobuf(response: &reqwest::Response) -> bool {
    let content_type = response.headers().get(http::header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(PROTOBUF))
}

/// Each item of an answer, parsed.
pub(crate) fn parse_all<W, T>(path: &'static str, items: Vec<W>) -> Result<Vec<T>>
where
    T: TryFrom<W, Error = Invalid>,
{
    items.into_iter().map(|item| parse(path, item)).collect()
}

pub(crate) fn parse<W, T>(path: &'static str, item: W) -> Result<T>
where
    T: TryFrom<W, Error = Invalid>,
{
    T::try_from(item).map_err(|source| Error::Invalid { path, source })
}

/// The one item of an answer that had no error, parsed.
pub(crate) fn parse_one<W, T>(path: &'static str, field: &'static str, item: Option<W>) -> Result<T>
where
    T: TryFrom<W, Error = Invalid>,
{
    parse(path, item.ok_or(Error::Missing { path, field })?)
}
