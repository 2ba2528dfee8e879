//! Tells routers where instances answer: keeps a routing table true to the BBS, and tells of each change, and now and
//! then of everything, over NATS. While NATS is away nothing is kept for it: when it is back, everything is told.
//!
//! Routes for TCP routers are not told: those listen to the routing API, not to NATS.

mod frames;
mod nats;
mod pace;
mod session;
mod unregistrations;

use std::time::Duration;

use bbs_client::{BbsClient, Lock, LocketError};
use diego_base::tls::ClientTls;
use nats::Connection;
pub use nats::Credentials;
use rand::Rng;
use session::Emitter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::routes::message::Change;
use crate::routes::table::RoutingTable;
use crate::routes::watch::{Routing, SYNC_INTERVAL, Watch};

/// Whoever holds it in Locket is the one emitter that tells of all cells' instances.
const LOCK_KEY: &str = "route_emitter";
/// Lists of changes that wait to be told; when there are more, the reading of events waits.
const CHANGES_WAITING_MAX: usize = 64;
/// Between two tries to reach NATS; doubled from the first to the last.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

pub struct Config {
    pub bbs: BbsClient,
    /// Of each NATS server `HOST:PORT`; one that answers is taken.
    pub nats_addresses: Vec<String>,
    pub nats_credentials: Credentials,
    /// Spoken with NATS servers, which must speak it too; `None`: they must not ask for it.
    pub nats_tls: Option<ClientTls>,
    /// Tells of this cell's instances only; otherwise of all.
    pub cell_id: Option<String>,
    /// Leads to instances' own addresses, if they prefer none.
    pub direct_instance_routes: bool,
    /// Tells the name service too.
    pub internal_routes: bool,
    pub sync_interval: Duration,
    /// Between two tellings of everything, until routers ask for another.
    pub emit_interval: Duration,
    /// Of the interval, how much at most the answer to a router's start is put off by chance.
    pub jitter_factor: f64,
    pub unregistration_interval: Duration,
    /// How often an unregistration is said again.
    pub unregistration_send_count: u32,
    /// By which several emitters agree which of them works; `None`: this is the only one.
    pub lock: Option<Lock>,
}

impl Config {
    pub fn new(bbs: BbsClient, nats_addresses: Vec<String>) -> Config {
        Config {
            bbs,
            nats_addresses,
            nats_credentials: Credentials::default(),
            nats_tls: None,
            cell_id: None,
            direct_instance_routes: false,
            internal_routes: true,
            sync_interval: SYNC_INTERVAL,
            emit_interval: Duration::from_secs(20),
            jitter_factor: 0.2,
            unregistration_interval: Duration::from_secs(30),
            unregistration_send_count: 20,
            lock: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot emit routes: no NATS server is given")]
    NoNats,
    #[error("the route emitter's lock was lost")]
    LockLost(#[source] LocketError),
}

/// Until told to stop, or until the lock is lost. Takes nothing back then: the instances go on, and so does another
/// emitter.
pub async fn run(mut config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    if config.nats_addresses.is_empty() {
        return Err(Error::NoNats);
    }
    let Some(lock) = config.lock.take() else {
        work(config, shutdown).await;
        return Ok(());
    };
    let worked = lock.while_held(LOCK_KEY, &shutdown, |stop| work(config, stop)).await;
    worked.map(drop).map_err(Error::LockLost)
}

async fn work(config: Config, shutdown: CancellationToken) {
    let table = if config.direct_instance_routes { RoutingTable::direct() } else { RoutingTable::default() };
    let routing = Routing::new(table);
    let (tell, changes) = mpsc::channel(CHANGES_WAITING_MAX);
    let watch = Watch {
        bbs: config.bbs.clone(),
        routing: routing.clone(),
        cell_id: config.cell_id.clone(),
        sync_interval: config.sync_interval,
        changes: Some(tell),
    };
    let emitter = Emitter::new(&config, routing);
    tokio::join!(watch.run(shutdown.clone()), emit(&config, emitter, changes, shutdown));
}

/// One connection after the other.
async fn emit(
    config: &Config,
    mut emitter: Emitter,
    mut changes: mpsc::Receiver<Vec<Change>>,
    shutdown: CancellationToken,
) {
    let mut started = false;
    let emitting = async {
        loop {
            let connection = tokio::select! {
                connection = connect(config) => connection,
                () = emitter.note_only(&mut changes) => return,
            };
            if !std::mem::replace(&mut started, true) {
                tracing::info!("started");
            }
            if let Err(error) = emitter.emit(connection, &mut changes).await {
                tracing::warn!(%error, "lost the NATS server");
            }
        }
    };
    tokio::select! {
        () = emitting => {}
        () = shutdown.cancelled() => {}
    }
}

/// Tries one server after the other, from any one on, for as long as it takes.
async fn connect(config: &Config) -> Connection {
    let mut turn = rand::rng().random_range(0..config.nats_addresses.len());
    let mut pause = RETRY_PAUSE_MIN;
    loop {
        let address = &config.nats_addresses[turn % config.nats_addresses.len()];
        match Connection::open(address, config.nats_tls.as_ref(), &config.nats_credentials).await {
            Ok(connection) => {
                tracing::info!(%address, "connected to NATS");
                return connection;
            }
            Err(error) => tracing::warn!(%error, "cannot reach NATS"),
        }
        let chance = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(chance)).await;
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
        turn += 1;
    }
}
