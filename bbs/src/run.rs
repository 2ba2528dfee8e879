//! The component: boots the board, its peers and its API, and stops them in the reverse order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bbs_models::CellPresence;
use diego_base::clock::{Clock, SystemClock};
use diego_base::http::ClientConfig;
use diego_base::serve::{Listen, Listener, serve};
use diego_base::tls::ServerTls;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::controllers::{
    Auctioneer, Auctions, Callbacks, Cells, Controllers, Intervals, RepClients, Reps, VACANCIES_QUEUED_MAX,
    keep_converging,
};
use crate::http::{Served, router};
use crate::store::{self, Durability};

/// How often a Task may be rejected by auctions before it fails.
pub const TASK_RETRIES_MAX: u32 = 3;
/// A peer that does not answer for so long is left to convergence.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Config {
    pub listen: Listen,
    pub tls: Option<ServerTls>,
    pub database: PathBuf,
    pub durability: Durability,
    pub auctioneer: Arc<dyn Auctioneer>,
    pub reps: Arc<dyn Reps>,
    /// Who is there, as Locket knows it.
    pub cells: watch::Receiver<Vec<CellPresence>>,
    pub intervals: Intervals,
    pub task_retries_max: u32,
    /// For completion callbacks.
    pub callbacks: reqwest::Client,
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// Reps over plain HTTP and otherwise all defaults.
    pub fn new(
        listen: Listen,
        database: impl Into<PathBuf>,
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
            auctioneer,
            reps: Arc::new(RepClients(http.clone())),
            cells,
            intervals: Intervals::default(),
            task_retries_max: TASK_RETRIES_MAX,
            callbacks: http,
            clock: Arc::new(SystemClock),
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

/// Serves until `shutdown`. What was acknowledged is in the database, whenever and however this ends.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    // Our own end ends nobody else.
    let shutdown = shutdown.child_token();
    let (board, writer) = Board::open(config.database, config.durability, config.clock).await?;
    let listener = Listener::bind(config.listen).await?;
    let mut writer = tokio::spawn(writer.run());
    let mut queues = JoinSet::new();
    let (auctions, sending) = Auctions::new(config.auctioneer);
    queues.spawn(sending);
    let (cells, telling) = Cells::new(config.cells, config.reps);
    queues.spawn(telling);
    let (callbacks, calling) = Callbacks::new(board.clone(), config.callbacks);
    queues.spawn(calling);
    let (vacancies, vacant) = mpsc::channel(VACANCIES_QUEUED_MAX);
    let task_retries_max = config.task_retries_max;
    let controllers = Controllers { board, auctions, cells, callbacks, vacancies, task_retries_max };
    let converging =
        tokio::spawn(keep_converging(controllers.clone(), config.intervals, vacant, shutdown.clone()));
    tracing::info!("bbs.started");
    let served = Served { controllers, shutdown: shutdown.clone() };
    let serving = serve(listener, router(served), config.tls, shutdown.clone());
    let lost = tokio::select! {
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
