//! TLS at the edge of a container: for each port of an app a listener in the container's own network, served here.
//!
//! ```text
//! router ──TLS──▶ host port ──garden's NetIn──▶ [listener in the container's network] ──TCP──▶ app's port
//! ```
//! Nothing of it runs in the container, and nothing is charged to it. What the bytes mean is not looked at: HTTP/1.1 and
//! HTTP/2 pass through, whichever both ends agree on. What the container shows, and to whom, is in [`faces`]; where its
//! network is, garden must tell ([`garden_client::NETWORK_NAMESPACE_PROPERTY`]).

mod buffer;
mod cipher;
mod faces;
mod listener;
pub(crate) mod ports;
mod records;
mod relay;
mod session;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use garden_client::NetworkNamespace;
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::ContainerProxy;
use crate::credentials::Issued;
use crate::namespace::{self, Errands, Namespace};
use faces::{Face, Manners};
use listener::{House, Places};
use ports::Front;

/// A connection has a descriptor for each end; the rest of this process needs some, too.
const DESCRIPTORS_PER_CONNECTION: u64 = 4;
/// Of all places, for whoever comes to one container: the clients of one do not keep others' out.
const LARGEST_SHARE: usize = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Face(#[from] faces::Error),
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    #[error("cannot serve port {port}")]
    Serve { port: u16, source: std::io::Error },
}

/// What all containers of a cell have in common.
pub(crate) struct Edges {
    manners: Manners,
    errands: Errands,
    connections_of_one: usize,
    places_of_all: Places,
    /// Whether a container may be reached without TLS.
    may_go_without: bool,
    said: Once,
}

/// Where a container is found.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub network: NetworkNamespace,
    /// Where its app is connected to.
    pub app: IpAddr,
    /// It has an address of IPv6 beside that of IPv4.
    pub has_ipv6: bool,
}

/// The two certificates of a container.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub to_routers: &'a Issued,
    pub to_containers: &'a Issued,
}

impl Edges {
    pub fn new(proxy: &ContainerProxy, errands: Errands) -> Result<Edges, Error> {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most =
            (descriptors / DESCRIPTORS_PER_CONNECTION).clamp(1, Semaphore::MAX_PERMITS as u64) as usize;
        let connections_of_one = proxy.connections_max.min(most / LARGEST_SHARE).max(1);
        tracing::info!(connections_of_one, connections_of_all = most, "executor.edge.places");
        Ok(Edges {
            manners: Manners::of(proxy)?,
            errands,
            connections_of_one,
            places_of_all: Places::new(most),
            may_go_without: proxy.unproxied_port_mappings,
            said: Once::new(),
        })
    }

    /// Garden does not tell where a container's network is. Its own ports may be all there is, or not be enough.
    pub fn cannot_enter(&self, guid: &str) -> Result<(), String> {
        const WHY: &str = "garden does not tell where containers' networks are";
        if !self.may_go_without {
            return Err(format!("{WHY}, and their ports are not to be reached without TLS"));
        }
        self.said.call_once(|| {
            tracing::warn!(guid, "executor.edge.off: {WHY}; no container of this cell is served TLS");
        });
        Ok(())
    }

    /// Listens for one container until `stop`, or until what is returned is dropped.
    pub async fn open(
        &self,
        guid: &str,
        place: Place,
        fronts: &[Front],
        shown: Shown<'_>,
        stop: CancellationToken,
    ) -> Result<Edge, Error> {
        let namespace = Arc::new(Namespace::open(place.network)?);
        let mut listeners = Vec::new();
        for front in fronts {
            let socket = self.errands.listener(&namespace, front.port, place.has_ipv6).await?;
            let listener = TcpListener::from_std(socket);
            listeners.push((*front, listener.map_err(|source| Error::Serve { port: front.port, source })?));
        }
        let abort = CancellationToken::new();
        let house = Arc::new(House {
            guid: guid.to_string(),
            errands: self.errands.clone(),
            namespace,
            app: place.app,
            places: [Places::new(self.connections_of_one), self.places_of_all.clone()],
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            abort: abort.clone(),
        });
        let edge = Edge {
            to_routers: watch::Sender::new(Arc::new(Face::new(self.manners.for_routers(shown.to_routers)?))),
            to_containers: watch::Sender::new(Arc::new(Face::new(
                self.manners.for_containers(shown.to_containers)?,
            ))),
            manners: self.manners.clone(),
            tasks: house.tasks.clone(),
            _ends: [stop.drop_guard(), abort.clone().drop_guard()],
            abort,
        };
        for (front, listener) in listeners {
            let faces = if front.is_for_containers() { &edge.to_containers } else { &edge.to_routers };
            edge.tasks.spawn(listener::listen(house.clone(), listener, front.app_port, faces.subscribe()));
        }
        Ok(edge)
    }
}

/// The listeners of one container, and the connections they have taken.
pub(crate) struct Edge {
    manners: Manners,
    to_routers: watch::Sender<Arc<Face>>,
    to_containers: watch::Sender<Arc<Face>>,
    tasks: TaskTracker,
    abort: CancellationToken,
    _ends: [DropGuard; 2],
}

impl Edge {
    /// For new connections. Those under way go on until they are quiet, or until `last`: the certificate they have seen
    /// is not good any more then.
    pub fn show_routers(&self, issued: &Issued, last: Duration) -> Result<(), Error> {
        let config = self.manners.for_routers(issued)?;
        self.to_routers.send_replace(Arc::new(Face::new(config))).retire(last);
        Ok(())
    }

    /// The same for other containers.
    pub fn show_containers(&self, issued: &Issued, last: Duration) -> Result<(), Error> {
        let config = self.manners.for_containers(issued)?;
        self.to_containers.send_replace(Arc::new(Face::new(config))).retire(last);
        Ok(())
    }

    /// Takes nobody in any more, lets those who are there end within so long, and leaves nothing open.
    pub async fn close(self, within: Duration) {
        let Edge { tasks, abort, _ends: [stop, _abort], .. } = self;
        stop.disarm().cancel();
        tasks.close();
        if tokio::time::timeout(within, tasks.wait()).await.is_err() {
            abort.cancel();
            tasks.wait().await;
        }
    }
}
