//! The component: boots the board, its peers and its API, and stops them in the reverse order.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bbs_models::CellPresence;
use diego_base::clock::{Clock, SystemClock};
use diego_base::http::ClientConfig;
use diego_base::serve::{Listen, Listener, serve};
use diego_base::tls::ServerTls;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Writer};
use crate::controllers::{
    Auctioneer, Auctions, Callbacks, Cells, Controllers, Intervals, RepClients, Reps, VACANCIES_QUEUED_MAX,
    keep_converging,
};
use crate::http::{Served, router};
use crate::store::{self, Durability, Keys, Location, Rows};
use crate::witness::{Nobody, Witness};

/// How often a Task may be rejected by auctions before it fails.
pub const TASK_RETRIES_MAX: u32 = 3;
/// A peer that does not answer for so long is left to convergence.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Config {
    pub listen: Listen,
    pub tls: Option<ServerTls>,
    pub database: Location,
    pub durability: Durability,
    /// What records are sealed with; without keys they are not.
    pub keys: Option<Keys>,
    pub auctioneer: Arc<dyn Auctioneer>,
    pub reps: Arc<dyn Reps>,
    /// Who is there, as Locket knows it.
    pub cells: watch::Receiver<Vec<CellPresence>>,
    pub intervals: Intervals,
    pub task_retries_max: u32,
    /// For completion callbacks.
    pub callbacks: reqwest::Client,
    pub clock: Arc<dyn Clock>,
    pub witness: Arc<dyn Witness>,
}

impl Config {
    /// Reps over plain HTTP and otherwise all defaults.
    pub fn new(
        listen: Listen,
        database: impl Into<Location>,
        auctioneer: Arc<dyn Auctioneer>,
        cells: watch::Receiver<Vec<CellPresence>>,
    ) -> Result<Config, diego_base::http::Error> {
        let client = ClientConfig { timeout: Some(PEER_TIMEOUT), ..ClientConfig::default() };
        let http = diego_base::http::client(&client)?;
        Ok(Config {
            listen,
            tls: None,
            database: database.into(),
            durability: Durability::default(),
            keys: None,
            auctioneer,
            reps: Arc::new(RepClients(http.clone().into())),
            cells,
            intervals: Intervals::default(),
            task_retries_max: TASK_RETRIES_MAX,
            callbacks: http,
            clock: Arc::new(SystemClock),
            witness: Arc::new(Nobody),
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Database(#[from] store::Error),
    #[error(transparent)]
    Listen(#[from] diego_base::serve::Error),
}

/// Everybody a BBS has to do with but its clients.
pub struct Peers {
    pub auctioneer: Arc<dyn Auctioneer>,
    pub reps: Arc<dyn Reps>,
    pub cells: watch::Receiver<Vec<CellPresence>>,
    pub callbacks: reqwest::Client,
}

/// Serves until `shutdown`. What was acknowledged is in the database, whenever and however this ends.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    // Our own end ends nobody else.
    let shutdown = shutdown.child_token();
    let rows = store::open(&config.database, config.durability, config.keys).await?;
    let rows = Box::new(store::Watched::new(rows, config.witness.clone()));
    let (board, writer) = Board::on(rows, config.clock).await?;
    tracing::info!("migration-manager.finished-migrations");
    let listener = Listener::bind(config.listen).await?;
    let (auctioneer, reps, cells, callbacks) =
        (config.auctioneer, config.reps, config.cells, config.callbacks);
    let peers = Peers { auctioneer, reps, cells, callbacks };
    let until = shutdown.clone();
    let door = |router| serve(listener, router, config.tls, until);
    let manner = Manner {
        intervals: config.intervals,
        task_retries_max: config.task_retries_max,
        witness: config.witness,
    };
    work((board, writer), peers, manner, door, shutdown).await
}

/// A BBS whose database and network are somebody else's: a simulation's. `door` serves its API until `shutdown`.
pub async fn run_behind<S: Future<Output = ()>>(
    rows: Box<dyn Rows>,
    clock: Arc<dyn Clock>,
    peers: Peers,
    intervals: Intervals,
    door: impl FnOnce(Router) -> S,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let opened = Board::on(rows, clock).await?;
    let manner = Manner { intervals, task_retries_max: TASK_RETRIES_MAX, witness: Arc::new(Nobody) };
    work(opened, peers, manner, door, shutdown.child_token()).await
}

/// What it is patient with, and who measures it.
struct Manner {
    intervals: Intervals,
    task_retries_max: u32,
    witness: Arc<dyn Witness>,
}

async fn work<S: Future<Output = ()>>(
    (board, writer): (Board, Writer),
    peers: Peers,
    Manner { intervals, task_retries_max, witness }: Manner,
    door: impl FnOnce(Router) -> S,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut writer = tokio::spawn(writer.run());
    let mut queues = JoinSet::new();
    let (auctions, sending) = Auctions::new(peers.auctioneer);
    queues.spawn(sending);
    let (cells, telling) = Cells::new(peers.cells, peers.reps);
    queues.spawn(telling);
    let (callbacks, calling) = Callbacks::new(board.clone(), peers.callbacks);
    queues.spawn(calling);
    let (vacancies, vacant) = mpsc::channel(VACANCIES_QUEUED_MAX);
    let controllers = Controllers { board, auctions, cells, callbacks, vacancies, task_retries_max, witness };
    let converging = tokio::spawn(keep_converging(controllers.clone(), intervals, vacant, shutdown.clone()));
    tracing::info!("bbs.started");
    let served = Served { controllers, shutdown: shutdown.clone() };
    let serving = door(router(served));
    let lost = tokio::select! {
        biased;
        () = serving => None,
        ended = &mut writer => Some(ended),
    };
    // From here on nobody asks for anything: what is queued for peers is convergence's business next time.
    shutdown.cancel();
    let _ = converging.await;
    queues.shutdown().await;
    let ended = match lost {
        Some(ended) => ended,
        None => writer.await,
    };
    tracing::info!("bbs.exited");
    match ended {
        Ok(ended) => ended.map_err(Error::Database),
        Err(lost) if lost.is_panic() => std::panic::resume_unwind(lost.into_panic()),
        // The runtime ends around us.
        Err(_) => Ok(()),
    }
}
