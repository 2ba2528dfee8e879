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
use bbs_client::{BbsClient, Hold, LocketClient, LocketError};
use bbs_models::{LockKind, Resource};
use diego_base::serve::{self, Listen, Listener, serve};
use diego_base::tls::ServerTls;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whoever holds it in Locket is the one auctioneer that works.
const LOCK_KEY: &str = "auctioneer";
/// After the BBS could not be asked for its cells.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub struct Config {
    pub listen: Listen,
    pub tls: Option<ServerTls>,
    pub bbs: BbsClient,
    /// For requests to reps.
    pub http: reqwest::Client,
    pub weights: Weights,
    /// A cell that takes longer to tell its state is left out of the auction.
    pub cell_state_timeout: Duration,
    /// Where several auctioneers agree which of them works; `None`: this is the only one.
    pub locket: Option<LocketClient>,
    /// As whom the lock is held; otherwise as nobody before.
    pub lock_owner: Option<String>,
}

impl Config {
    /// The defaults of an auctioneer.
    pub fn new(listen: Listen, bbs: BbsClient, http: reqwest::Client) -> Self {
        let cell_state_timeout = rep_client::STATE_TIMEOUT;
        Config {
            listen,
            tls: None,
            bbs,
            http,
            weights: Weights::default(),
            cell_state_timeout,
            locket: None,
            lock_owner: None,
        }
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
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let (stop, release) = (shutdown.child_token(), CancellationToken::new());
    let (held, is_held) = watch::channel(config.locket.is_none());
    let lock = config.locket.clone().map(|locket| (locket, lock(config.lock_owner.clone())));
    let keeping = keep_lock(lock, held, stop.clone(), release.clone());
    let working = async move {
        let served = if until_held(is_held, stop.clone()).await { work(config, stop).await } else { Ok(()) };
        release.cancel();
        served
    };
    let (kept, served) = tokio::join!(keeping, working);
    served.and(kept.map_err(Error::LockLost))
}

/// Holds the lock until `release`; tells all to stop when it is lost.
async fn keep_lock(
    lock: Option<(LocketClient, Hold)>,
    held: watch::Sender<bool>,
    stop: CancellationToken,
    release: CancellationToken,
) -> Result<(), LocketError> {
    let kept = match lock {
        Some((locket, lock)) => lock.keep(locket, held, release).await,
        None => {
            release.cancelled().await;
            Ok(())
        }
    };
    stop.cancel();
    kept
}

/// `false` if it is time to stop first.
async fn until_held(mut is_held: watch::Receiver<bool>, stop: CancellationToken) -> bool {
    tokio::select! {
        held = is_held.wait_for(|held| *held) => held.is_ok(),
        () = stop.cancelled() => false,
    }
}

fn lock(owner: Option<String>) -> Hold {
    let owner = owner.unwrap_or_else(uuid);
    Hold::new(Resource { key: LOCK_KEY.into(), owner, value: String::new(), kind: LockKind::Lock })
}

/// New for each process.
fn uuid() -> String {
    format!("{:032x}", rand::random::<u128>())
}

async fn work(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let Config { listen, tls, bbs, http, weights, cell_state_timeout, .. } = config;
    let listener = Listener::bind(listen).await?;
    let batch = Arc::new(Batch::default());
    let auctioneer = hold::Auctioneer { bbs, http, weights, cell_state_timeout };
    let server = serve(listener, http::router(batch.clone()), tls, stop.clone());
    tracing::info!("auctioneer.started");
    tokio::join!(server, hold_auctions(&auctioneer, &batch, stop));
    tracing::info!("auctioneer.exited");
    Ok(())
}

/// One auction at a time; one under way is brought to its end.
async fn hold_auctions(auctioneer: &hold::Auctioneer, batch: &Batch, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = batch.filled() => {}
            () = shutdown.cancelled() => return,
        }
        while let Err(error) = auctioneer.hold(batch).await {
            tracing::error!(%error, "failed-to-fetch-reps");
            tokio::select! {
                () = tokio::time::sleep(RETRY_AFTER) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}
