//! One port of a container that speaks TLS: who is taken in, how long they may take, when they must go.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::faces::Face;
use super::relay::{Activity, Arrival, Client, Relay};
use super::session::Session;
use crate::namespace::{self, Errands, Namespace};

/// Slow clients are let go, and sooner while few places are left: who comes to shake hands is not to wait for who does not.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const HANDSHAKE_TIME_CROWDED: Duration = Duration::from_secs(2);
/// So large a part of all places is few.
const FEW: usize = 4;
/// The app's port is next door: only one that takes nothing any more needs longer.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Without a byte either way.
const IDLE_TIME: Duration = Duration::from_secs(3600);
/// Once the app has finished: for the client to say the same.
const LINGER_TIME: Duration = Duration::from_secs(60);
/// Without a byte either way, of a connection whose certificate has been replaced: nobody is in the middle of anything.
const QUIET_TIME: Duration = Duration::from_secs(30);
/// After a connection could not be taken: for want of descriptors it stays so for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all listeners of a container share.
pub(super) struct House {
    pub guid: String,
    pub errands: Errands,
    pub namespace: Arc<Namespace>,
    pub app: std::net::IpAddr,
    /// For connections of this container, and of all.
    pub places: [Places; 2],
    pub tasks: TaskTracker,
    /// Nobody is taken in any more.
    pub stop: CancellationToken,
    /// Everybody must go.
    pub abort: CancellationToken,
}

/// For so many connections at once.
#[derive(Debug, Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    few: usize,
}

impl Places {
    pub fn new(most: usize) -> Places {
        Places { free: Arc::new(Semaphore::new(most)), few: most / FEW }
    }

    fn are_few(&self) -> bool {
        self.free.available_permits() < self.few
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Relay(#[from] super::relay::Error),
    #[error("cannot begin a handshake")]
    Session(#[from] rustls::Error),
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    #[error("the client did not complete its handshake within {0:?}")]
    SlowHandshake(Duration),
    #[error("cannot connect to the app: {0}")]
    App(#[source] io::Error),
}

/// Takes connections until the house is closed; what is under way then goes on.
pub(super) async fn listen(
    house: Arc<House>,
    listener: TcpListener,
    app_port: u16,
    faces: watch::Receiver<Arc<Face>>,
) {
    let stop = house.stop.clone();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let client = match accepted {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(guid = house.guid, %error, "executor.edge.cannot-take-a-connection");
                let _ = stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
                continue;
            }
        };
        let Some(places) = stop.run_until_cancelled(places(&house.places)).await else { return };
        let (house, face) = (house.clone(), faces.borrow().clone());
        let abort = house.abort.clone();
        house.tasks.clone().spawn(async move {
            let served = abort.run_until_cancelled(serve(&house, client, app_port, &face)).await;
            if let Some(Err(error)) = served {
                tracing::debug!(guid = house.guid, error = %crate::steps::report(&error), "executor.edge.connection-failed");
            }
            drop(places);
        });
    }
}

/// Waits: who comes when all are taken stands in the kernel's line.
async fn places(of: &[Places; 2]) -> Vec<OwnedSemaphorePermit> {
    let mut places = Vec::with_capacity(of.len());
    for Places { free, .. } in of {
        // Never closed.
        places.extend(free.clone().acquire_owned().await);
    }
    places
}

async fn serve(house: &House, client: TcpStream, app_port: u16, face: &Face) -> Result<(), Error> {
    // Small messages are not held back for others to join them; where that is refused they are, which is bearable.
    let _ = client.set_nodelay(true);
    // Boxed, for what it takes to begin is given back then: connections are many, and stay.
    let crowded = house.places.iter().any(Places::are_few);
    let patience = if crowded { HANDSHAKE_TIME_CROWDED } else { HANDSHAKE_TIME };
    let client = Box::pin(welcome(client, face, patience)).await?;
    let app = match Box::pin(connect(house, app_port)).await {
        Ok(app) => app,
        Err(error) => {
            client.dismiss().await;
            return Err(error);
        }
    };
    let _ = app.set_nodelay(true);
    let activity = Activity::now();
    let mut relay = Relay::new(client, app, &activity);
    tokio::select! {
        ended = relay.run() => Ok(ended?),
        () = outstayed(&activity, face) => Ok(()),
    }
}

async fn welcome(client: TcpStream, face: &Face, patience: Duration) -> Result<Box<Client>, Error> {
    let arrival = Arrival::new(client, Session::new(face.config.clone())?);
    Ok(timeout(patience, arrival.shake_hands()).await.map_err(|_| Error::SlowHandshake(patience))??)
}

async fn connect(house: &House, port: u16) -> Result<TcpStream, Error> {
    match timeout(CONNECT_TIME, connect_from(house, None, port)).await {
        // A minute of connections that clients have ended takes all ports of the container's own address.
        Ok(Err(Error::App(error)))
            if error.kind() == io::ErrorKind::AddrNotAvailable && house.app.is_ipv4() =>
        {
            let [b, c, d] = rand::random();
            connect_from(house, Some(Ipv4Addr::new(127, b, c, d)), port).await
        }
        connected => connected.unwrap_or_else(|_| Err(Error::App(io::ErrorKind::TimedOut.into()))),
    }
}

/// From the container's own address, which apps are used to, or from another of its loopback's.
async fn connect_from(house: &House, from: Option<Ipv4Addr>, port: u16) -> Result<TcpStream, Error> {
    let socket = TcpSocket::from_std_stream(house.errands.stream(&house.namespace, house.app).await?);
    if let Some(from) = from {
        socket.bind((from, 0).into()).map_err(Error::App)?;
    }
    socket.connect(SocketAddr::new(house.app, port)).await.map_err(Error::App)
}

/// Until the connection has been idle for too long, or its certificate is not shown any more and it is quiet, or that
/// certificate ends.
pub(super) async fn outstayed(activity: &Activity, face: &Face) {
    loop {
        let idle = if activity.client_told() { LINGER_TIME } else { IDLE_TIME };
        let last_day = face.last_day();
        let until = match last_day {
            Some(last_day) => last_day.min(activity.last() + QUIET_TIME),
            None => activity.last() + idle,
        };
        if until <= Instant::now() {
            return;
        }
        match last_day {
            Some(_) => sleep_until(until).await,
            None => tokio::select! {
                () = sleep_until(until) => {}
                () = face.is_retired() => {}
            },
        }
    }
}
