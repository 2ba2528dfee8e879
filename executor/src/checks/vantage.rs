//! Where a container's checks are made from: within its own network, as a process of it would make them.
//!
//! A garden that does not tell where that is, or whose containers are on the host's network, has them checked from outside.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use garden_client::{NETWORK_NAMESPACE_PROPERTY, NetworkNamespace, NotANamespace};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OnceCell, Semaphore};

use crate::Shared;
use crate::namespace::Namespace;
use crate::steps::{Stage, report};

/// Checks of one container under way at once: one that hangs holds up no other container's, and no more descriptors than
/// these.
const CHECKS_AT_ONCE: usize = 8;

pub(crate) struct Vantage {
    /// Found when it is first asked for; `None`: outside.
    network: OnceCell<Option<Arc<Namespace>>>,
    pub at_once: Semaphore,
}

impl Default for Vantage {
    fn default() -> Self {
        Vantage { network: OnceCell::new(), at_once: Semaphore::new(CHECKS_AT_ONCE) }
    }
}

#[derive(Debug, thiserror::Error)]
enum NotFound {
    #[error(transparent)]
    Garden(#[from] garden_client::Error),
    #[error(transparent)]
    Told(#[from] NotANamespace),
    #[error(transparent)]
    Namespace(#[from] crate::namespace::Error),
}

impl Vantage {
    /// `None`: checks are made from outside.
    pub async fn network(&self, shared: &Shared, guid: &str) -> Option<&Arc<Namespace>> {
        let network = self.network.get_or_try_init(|| find(shared, guid)).await;
        let network = network.unwrap_or_else(|error| {
            // It is asked for again; until then, or for good, outside is better than nothing.
            tracing::debug!(guid, error = %report(&error), "executor.checks.made-from-outside");
            &None
        });
        network.as_ref()
    }

    /// A socket for an address of this kind, not connected to anything.
    async fn socket(&self, shared: &Shared, guid: &str, to: IpAddr) -> io::Result<TcpSocket> {
        match self.network(shared, guid).await {
            Some(network) => {
                let made = shared.errands.stream(network, to).await.map_err(io::Error::other)?;
                Ok(TcpSocket::from_std_stream(made))
            }
            None if to.is_ipv4() => TcpSocket::new_v4(),
            None => TcpSocket::new_v6(),
        }
    }
}

/// The connections of one check. The first one's socket is made ahead: what this cell needs to do so is not counted against
/// the container.
pub(super) struct Way<'a> {
    stage: &'a Stage,
    ready: Option<io::Result<TcpSocket>>,
}

impl<'a> Way<'a> {
    pub async fn prepare(stage: &'a Stage, to: IpAddr) -> Way<'a> {
        let socket = stage.vantage.socket(&stage.shared, &stage.guid, to).await;
        Way { stage, ready: Some(socket) }
    }

    pub async fn connect(&mut self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = match self.ready.take() {
            Some(socket) => socket?,
            None => self.stage.vantage.socket(&self.stage.shared, &self.stage.guid, to.ip()).await?,
        };
        socket.connect(to).await
    }
}

async fn find(shared: &Shared, guid: &str) -> Result<Option<Arc<Namespace>>, NotFound> {
    let info = shared.garden.info(guid).await?;
    let Some(told) = info.properties.get(NETWORK_NAMESPACE_PROPERTY) else { return Ok(None) };
    let at: NetworkNamespace = told.parse()?;
    match Namespace::open(at) {
        Ok(namespace) => Ok(Some(Arc::new(namespace))),
        Err(crate::namespace::Error::NotApart(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
