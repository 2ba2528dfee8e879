//! The Garden API: its types, the [`Garden`] trait that everything above garden speaks, and (see the modules) an
//! HTTP client for it and an in-memory garden for tests.
//!
//! JSON names are those of the public Go client, byte for byte.

mod error;
mod http;
#[cfg(feature = "memory")]
pub mod memory;
mod namespace;
mod spec;
pub mod wire;

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

pub use error::*;
pub use http::{Address, HttpGarden};
pub use namespace::*;
pub use spec::*;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes that come. What a garden is given it may look at: bytes of some kinds can be moved without passing through it.
pub trait Readable: AsyncRead + Send + Unpin + Any {}
impl<T: AsyncRead + Send + Unpin + Any> Readable for T {}

/// Bytes that go, likewise.
pub trait Writable: AsyncWrite + Send + Unpin + Any {}
impl<T: AsyncWrite + Send + Unpin + Any> Writable for T {}

pub type Reader = Box<dyn Readable>;
pub type Writer = Box<dyn Writable>;

/// Where a process's standard streams go. `None` for stdin is end of file at once; for an output, it is thrown away.
#[derive(Default)]
pub struct ProcessIo {
    pub stdin: Option<Reader>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
}

/// A garden server: in this process, behind a socket, or in memory.
#[async_trait::async_trait]
pub trait Garden: Send + Sync {
    async fn ping(&self) -> Result<()>;
    async fn capacity(&self) -> Result<Capacity>;
    /// The handle, given or made.
    async fn create(&self, spec: ContainerSpec) -> Result<String>;
    async fn destroy(&self, handle: &str) -> Result<()>;
    /// The handles of containers that have all of these properties.
    async fn containers(&self, properties: &Properties) -> Result<Vec<String>>;
    async fn bulk_info(&self, handles: &[String]) -> Result<BTreeMap<String, Result<ContainerInfo>>>;
    async fn bulk_metrics(&self, handles: &[String]) -> Result<BTreeMap<String, Result<Metrics>>>;

    async fn stop(&self, handle: &str, kill: bool) -> Result<()>;
    async fn info(&self, handle: &str) -> Result<ContainerInfo>;
    async fn metrics(&self, handle: &str) -> Result<Metrics>;
    /// The limits it was created with. A garden that keeps none has none.
    async fn current_limits(&self, handle: &str) -> Result<Limits> {
        self.info(handle).await.map(|_| Limits::default())
    }
    /// Unpacks a tar stream into `path`, as `user` (empty: root).
    async fn stream_in(&self, handle: &str, user: &str, path: &str, tar: Reader) -> Result<()>;
    /// `path` as a tar stream; a trailing `/` means its contents rather than itself.
    async fn stream_out(&self, handle: &str, user: &str, path: &str) -> Result<Reader>;
    async fn run(&self, handle: &str, spec: ProcessSpec, io: ProcessIo) -> Result<Box<dyn Process>>;
    async fn attach(&self, handle: &str, process_id: &str, io: ProcessIo) -> Result<Box<dyn Process>>;
    /// `(host port, container port)`; a host port of 0 is given one from the pool.
    async fn net_in(&self, handle: &str, host_port: u32, container_port: u32) -> Result<(u32, u32)>;
    async fn bulk_net_out(&self, handle: &str, rules: &[NetOutRule]) -> Result<()>;
    async fn set_grace_time(&self, handle: &str, grace_time: Duration) -> Result<()>;
    async fn properties(&self, handle: &str) -> Result<Properties>;
    async fn property(&self, handle: &str, name: &str) -> Result<String>;
    async fn set_property(&self, handle: &str, name: &str, value: &str) -> Result<()>;
    async fn remove_property(&self, handle: &str, name: &str) -> Result<()>;
}

/// A process in a container. Dropping it detaches; it does not end the process.
#[async_trait::async_trait]
pub trait Process: Send + Sync {
    fn id(&self) -> &str;
    /// Its exit status, once it has ended and all its output has been written; 128 + n for signal n.
    async fn wait(&self) -> Result<i32>;
    async fn signal(&self, signal: Signal) -> Result<()>;
    async fn set_window_size(&self, size: WindowSize) -> Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Kill,
}
