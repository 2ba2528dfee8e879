//! The Garden API over HTTP, on a unix socket or TCP: the client.
//!
//! Calls that are answered in JSON share connections, which wait for the next call for a while ([`pool`]); streams have one
//! each. Process streams leave HTTP after the response's head (see [`stream`]). A call that is dropped takes its
//! connection with it, so that no answer is ever taken for that of another call.

mod body;
mod pool;
mod stream;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use pool::Pool;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::ReaderStream;

use crate::wire::{self, Created, Handles, InfoEntry, MetricsEntry, NetInPorts, PropertyValue, StopRequest};
use crate::{
    Capacity, ContainerInfo, ContainerSpec, Error, Garden, Limits, Metrics, NetOutRule, Process, ProcessIo,
    ProcessSpec, Properties, Reader, Result,
};

/// A garden that does not take a connection for this long is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls that only look or note something.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// For calls that make containers, or wait for processes to end: an image may have to come from far away.
const LONG_CALL_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Of a tar stream, read at once: small enough that no allocator asks the kernel for each anew.
const TAR_PIECE_BYTES: usize = 64 << 10;
/// Of an answer in JSON: the metrics of a thousand containers are about 2 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => path.display().fmt(f),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Cheap to clone; all clones share connections.
#[derive(Debug, Clone)]
pub struct HttpGarden {
    address: Address,
    pool: Arc<Pool>,
}

impl HttpGarden {
    /// Nothing is connected before the first call.
    pub fn new(address: Address) -> Self {
        Self { address, pool: Arc::default() }
    }

    async fn connect(&self) -> Result<Box<dyn Connection>> {
        let connect = async {
            Ok::<Box<dyn Connection>, io::Error>(match &self.address {
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Address::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            })
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect);
        let connected = connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|error| {
            Error::Disconnected(format!("cannot connect to garden at {}: {error}", self.address))
        })
    }

    /// By a connection of its own, which ends with the answer.
    async fn send(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: Body,
    ) -> Result<Response<Incoming>> {
        let request = request(&method, target, content_type, body)?;
        let mut sender = pool::handshake(self.connect().await?).await.map_err(broken(&method, target))?;
        let response = sender.send_request(request).await.map_err(broken(&method, target))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = collect(response).await.map_err(broken(&method, target))?;
        Err(refusal(status.as_u16(), &body))
    }

    /// By a connection that others have used, if there is one.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<T> {
        let call = async {
            let (status, bytes) = self.exchange(&method, target, body.map(Bytes::from)).await?;
            if !(200..300).contains(&status) {
                return Err(refusal(status, &bytes));
            }
            serde_json::from_slice(&bytes).map_err(|error| unreadable(target, &error))
        };
        let late = |_| Error::Other(format!("{method} {target} at garden took longer than {deadline:?}"));
        tokio::time::timeout(deadline, call).await.map_err(late)?
    }

    async fn exchange(&self, method: &Method, target: &str, body: Option<Bytes>) -> Result<(u16, Bytes)> {
        let request = || {
            let content_type = if body.is_some() { "application/json" } else { "" };
            let body = body
                .clone()
                .map_or_else(empty, |bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
            request(method, target, content_type, body)
        };
        while let Some(mut sender) = self.pool.take() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request()?).await {
                Ok(response) => return self.finish(method, target, sender, response).await,
                Err(mut failed) => {
                    // Closed before a byte of this went out, it has asked nothing yet.
                    if failed.take_message().is_none() {
                        return Err(broken(method, target)(failed.into_error()));
                    }
                }
            }
        }
        let mut sender = pool::handshake(self.connect().await?).await.map_err(broken(method, target))?;
        let response = sender.send_request(request()?).await.map_err(broken(method, target))?;
        self.finish(method, target, sender, response).await
    }

    async fn finish(
        &self,
        method: &Method,
        target: &str,
        sender: pool::Sender,
        response: Response<Incoming>,
    ) -> Result<(u16, Bytes)> {
        let status = response.status().as_u16();
        let bytes = collect(response).await.map_err(broken(method, target))?;
        self.pool.put(sender);
        Ok((status, bytes))
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T> {
        self.call(Method::GET, target, None, CALL_TIMEOUT).await
    }

    /// An answer without content is an empty object.
    async fn tell(&self, method: Method, target: &str, message: &(impl Serialize + Sync)) -> Result<()> {
        self.call::<serde_json::Value>(method, target, Some(json(message)?), CALL_TIMEOUT).await.map(drop)
    }
}

fn request(method: &Method, target: &str, content_type: &str, body: Body) -> Result<Request<Body>> {
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, "api");
    if !content_type.is_empty() {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    request.body(body).map_err(broken(method, target))
}

fn broken<E: std::fmt::Display>(method: &Method, target: &str) -> impl Fn(E) -> Error {
    let call = format!("{method} {target}");
    move |error| Error::Disconnected(format!("{call} at garden: {error}"))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn json(message: &impl Serialize) -> Result<Vec<u8>> {
    wire::line(message).map_err(|error| Error::Other(format!("cannot say this in JSON: {error}")))
}

fn unreadable(target: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Other(format!("cannot read garden's answer to {target}: {error}"))
}

async fn collect(
    response: Response<Incoming>,
) -> std::result::Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    Ok(http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes())
}

/// The error in an answer that is none of success.
fn refusal(status: u16, body: &[u8]) -> Error {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        Error::Other(format!("garden answered {status}: {}", String::from_utf8_lossy(body).trim()))
    })
}

fn container(handle: &str, rest: &str) -> String {
    format!("/containers/{}{rest}", wire::encode(handle))
}

fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs =
        pairs.into_iter().map(|(name, value)| format!("{}={}", wire::encode(name), wire::encode(value)));
    format!("?{}", pairs.collect::<Vec<_>>().join("&"))
}

#[async_trait::async_trait]
impl Garden for HttpGarden {
    async fn ping(&self) -> Result<()> {
        self.get::<serde_json::Value>("/ping").await.map(drop)
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.get("/capacity").await
    }

    async fn create(&self, spec: ContainerSpec) -> Result<String> {
        let created: Created =
            self.call(Method::POST, "/containers", Some(json(&spec)?), LONG_CALL_TIMEOUT).await?;
        Ok(created.handle)
    }

    async fn destroy(&self, handle: &str) -> Result<()> {
        let target = container(handle, "");
        self.call::<serde_json::Value>(Method::DELETE, &target, None, LONG_CALL_TIMEOUT).await.map(drop)
    }

    async fn containers(&self, properties: &Properties) -> Result<Vec<String>> {
        let query = query(properties.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        Ok(self.get::<Handles>(&format!("/containers{query}")).await?.handles)
    }

    async fn bulk_info(&self, handles: &[String]) -> Result<BTreeMap<String, Result<ContainerInfo>>> {
        let target = format!("/containers/bulk_info{}", query([("handles", handles.join(",").as_str())]));
        let entries: BTreeMap<String, InfoEntry> = self.get(&target).await?;
        Ok(entries
            .into_iter()
            .map(|(handle, entry)| (handle, entry.err.map_or(Ok(entry.info), Err)))
            .collect())
    }

    async fn bulk_metrics(&self, handles: &[String]) -> Result<BTreeMap<String, Result<Metrics>>> {
        let target = format!("/containers/bulk_metrics{}", query([("handles", handles.join(",").as_str())]));
        let entries: BTreeMap<String, MetricsEntry> = self.get(&target).await?;
        Ok(entries
            .into_iter()
            .map(|(handle, entry)| (handle, entry.err.map_or(Ok(entry.metrics), Err)))
            .collect())
    }

    async fn stop(&self, handle: &str, kill: bool) -> Result<()> {
        let (target, request) = (container(handle, "/stop"), json(&StopRequest { kill })?);
        self.call::<serde_json::Value>(Method::PUT, &target, Some(request), LONG_CALL_TIMEOUT).await.map(drop)
    }

    async fn info(&self, handle: &str) -> Result<ContainerInfo> {
        self.get(&container(handle, "/info")).await
    }

    async fn metrics(&self, handle: &str) -> Result<Metrics> {
        self.get(&container(handle, "/metrics")).await
    }

    async fn current_limits(&self, handle: &str) -> Result<Limits> {
        let limit = |kind: &str| container(handle, &format!("/limits/{kind}"));
        Ok(Limits {
            bandwidth: self.get(&limit("bandwidth")).await?,
            cpu: self.get(&limit("cpu")).await?,
            disk: self.get(&limit("disk")).await?,
            memory: self.get(&limit("memory")).await?,
            ..Limits::default()
        })
    }

    async fn stream_in(&self, handle: &str, user: &str, path: &str, tar: Reader) -> Result<()> {
        let target = container(handle, "/files") + &query([("user", user), ("destination", path)]);
        let body = StreamBody::new(ReaderStream::with_capacity(tar, TAR_PIECE_BYTES).map_ok(Frame::data))
            .boxed_unsync();
        self.send(Method::PUT, &target, "application/x-tar", body).await.map(drop)
    }

    async fn stream_out(&self, handle: &str, user: &str, path: &str) -> Result<Reader> {
        let target = container(handle, "/files") + &query([("user", user), ("source", path)]);
        Ok(Box::new(self.body(&target).await?))
    }

    async fn run(&self, handle: &str, spec: ProcessSpec, io: ProcessIo) -> Result<Box<dyn Process>> {
        let target = container(handle, "/processes");
        let (head, stream) = self.hijack(Method::POST, &target, &json(&spec)?).await?;
        self.follow(handle, head, stream, io).await
    }

    async fn attach(&self, handle: &str, process_id: &str, io: ProcessIo) -> Result<Box<dyn Process>> {
        let target = container(handle, &format!("/processes/{}", wire::encode(process_id)));
        let (head, stream) = self.hijack(Method::GET, &target, &[]).await?;
        self.follow(handle, head, stream, io).await
    }

    async fn net_in(&self, handle: &str, host_port: u32, container_port: u32) -> Result<(u32, u32)> {
        let request = NetInPorts { handle: handle.into(), host_port, container_port };
        let target = container(handle, "/net/in");
        let mapped: NetInPorts =
            self.call(Method::POST, &target, Some(json(&request)?), CALL_TIMEOUT).await?;
        Ok((mapped.host_port, mapped.container_port))
    }

    async fn bulk_net_out(&self, handle: &str, rules: &[NetOutRule]) -> Result<()> {
        self.tell(Method::POST, &container(handle, "/net/out/bulk"), &rules).await
    }

    async fn set_grace_time(&self, handle: &str, grace_time: Duration) -> Result<()> {
        let nanoseconds = u64::try_from(grace_time.as_nanos()).unwrap_or(i64::MAX as u64);
        self.tell(Method::PUT, &container(handle, "/grace_time"), &nanoseconds).await
    }

    async fn properties(&self, handle: &str) -> Result<Properties> {
        self.get(&container(handle, "/properties")).await
    }

    async fn property(&self, handle: &str, name: &str) -> Result<String> {
        let value: PropertyValue = self.get(&property(handle, name)).await?;
        Ok(value.value)
    }

    async fn set_property(&self, handle: &str, name: &str, value: &str) -> Result<()> {
        self.tell(Method::PUT, &property(handle, name), &PropertyValue { value: value.into() }).await
    }

    async fn remove_property(&self, handle: &str, name: &str) -> Result<()> {
        let target = property(handle, name);
        self.call::<serde_json::Value>(Method::DELETE, &target, None, CALL_TIMEOUT).await.map(drop)
    }
}

fn property(handle: &str, name: &str) -> String {
    container(handle, &format!("/properties/{}", wire::encode(name)))
}
