//! Places work on cells: collects the auctions that the BBS asks for, fetches the state of every cell, lets the pure
//! [`auction`] decide, gives each cell its work and tells the BBS what could not be placed.
//!
//! Auctions that come in while one is held make the next batch. What is lost when the auctioneer dies is asked for
//! again by the BBS's convergence.

mod batch;
mod cells;
mod hold;
mod http;

use std::sync::Arc;
use std::time::Duration;

pub use auction::Weights;
use batch::Batch;
use bbs_client::{BbsClient, Lock, LocketError};
use diego_base::http::Way;
use diego_base::serve::{self, Listen, Listener, serve};
use diego_base::tls::ServerTls;
use tokio_util::sync::CancellationToken;

/// Whoever holds it in Locket is the one auctioneer that works.
const LOCK_KEY: &str = "auctioneer";
/// After the BBS could not be asked for its cells.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub struct Config {
    pub listen: Listen,
    pub tls: Option<ServerTls>,
    pub bbs: BbsClient,
    /// To reps.
    pub http: Way,
    pub weights: Weights,
    /// A cell that takes longer to tell its state is left out of the auction.
    pub cell_state_timeout: Duration,
    /// By which several auctioneers agree which of them works; `None`: this is the only one.
    pub lock: Option<Lock>,
}

impl Config {
    /// The defaults of an auctioneer.
    pub fn new(listen: Listen, bbs: BbsClient, http: impl Into<Way>) -> Self {
        let cell_state_timeout = rep_client::STATE_TIMEOUT;
        let http = http.into();
        Config { listen, tls: None, bbs, http, weights: Weights::default(), cell_state_timeout, lock: None }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve the auctioneer")]
    Serve(#[from] serve::Error),
    #[error("the auctioneer's lock was lost")]
    LockLost(#[source] LocketError),
}

/// Until told to stop, or until the lock is lost.
pub async fn run(mut config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let Some(lock) = config.lock.take() else { return work(config, shutdown.child_token()).await };
    match lock.while_held(LOCK_KEY, &shutdown, |stop| work(config, stop)).await {
        Ok(worked) => worked.unwrap_or(Ok(())),
        Err(lost) => Err(Error::LockLost(lost)),
    }
}

async fn work(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let Config { listen, tls, bbs, http, weights, cell_state_timeout, .. } = config;
    let listener = Listener::bind(listen).await?;
    let until = stop.clone();
    let door = |router| serve(listener, router, tls, until);
    work_behind(bbs, http, weights, cell_state_timeout, door, stop).await;
    Ok(())
}

/// What an auctioneer does once it is the one that works. `door` serves its API until `stop`.
pub async fn work_behind<S: Future<Output = ()>>(
    bbs: BbsClient,
    http: Way,
    weights: Weights,
    cell_state_timeout: Duration,
    door: impl FnOnce(axum::Router) -> S,
    stop: CancellationToken,
) {
    let batch = Arc::new(Batch::default());
    let auctioneer = hold::Auctioneer { bbs, http, weights, cell_state_timeout };
    let server = door(http::router(batch.clone()));
    tracing::info!("auctioneer.started");
    tokio::join!(server, hold_auctions(&auctioneer, &batch, stop));
    tracing::info!("auctioneer.exited");
}

/// One auction at a time; one under way is brought to its end.
async fn hold_auctions(auctioneer: &hold::Auctioneer, batch: &Batch, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = batch.filled() => {}
        }
        while let Err(error) = auctioneer.hold(batch).await {
            tracing::error!(%error, "failed-to-fetch-reps");
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
    }
}
